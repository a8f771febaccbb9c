"""A real Prometheus on the loopback, filled from OpenMetrics texts: what the tests of dashboard and rules ask."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import tools

DEADLINE = 60.0  # seconds for the server to be ready: a bound, not a wait


class Prometheus:
    """A server that runs; answers are those of its HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: Any) -> Any:
        asked = urlencode({name: value for name, value in parameters.items() if value is not None}, doseq=True)
        with urlopen(f"{self.address}{path}?{asked}", timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def now(self, expr: str, moment: float) -> list[tuple[dict[str, str], float]]:
        """An instant query: (labels, value)."""
        data = self.get("/api/v1/query", query=expr, time=moment)
        assert data["resultType"] == "vector"
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def over(self, expr: str, start: float, end: float, step: float) -> list[tuple[dict[str, str], dict[float, float]]]:
        """A range query: (labels, value by moment)."""
        data = self.get("/api/v1/query_range", query=expr, start=start, end=end, step=step)
        return [(one["metric"], {moment: float(value) for moment, value in one["values"]}) for one in data["result"]]


@contextmanager
def serving(directory: Path, texts: Sequence[Path], rule_files: Sequence[Path] = ()) -> Iterator[Prometheus]:
    """Prometheus on the data of these OpenMetrics files, evaluating these rules, until the block ends."""
    data, config, log = directory / "data", directory / "prometheus.yml", directory / "log"
    for text in texts:
        imported(text, data)
    settings = {"global": {"evaluation_interval": "1s"}, "rule_files": [str(path) for path in rule_files]}
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    port = _free_port()
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen(
            [
                tools.program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={data}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        polled(lambda: process.poll() is not None or _ready(server.address))
        assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def imported(text: Path, data: Path) -> None:
    """Blocks of an OpenMetrics file, by promtool, which checks it."""
    few = "--max-block-duration=2400h"
    command = [tools.program("promtool"), "tsdb", "create-blocks-from", few, "openmetrics", text, data]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def polled(true: Any) -> None:
    """Ask until it is true; fail where that takes longer than ``DEADLINE``."""
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s"
        time.sleep(0.02)


def scraped(textfile: str, moments: Sequence[float], **labels: str) -> str:
    """A textfile as Prometheus would have it from so many scrapes, as OpenMetrics. labels: those that a scrape adds, or
    replaces."""
    lines = []
    for line in textfile.splitlines():
        found = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        if found is None:
            assert line.startswith("#")
            lines.append(line)
            continue
        name, own, value = found.groups()
        kept = [pair for pair in re.findall(r'\w+="(?:[^"\\]|\\.)*"', own) if pair.partition("=")[0] not in labels]
        pairs = ",".join((*kept, *(f'{key}="{text}"' for key, text in labels.items())))
        lines += [f"{name}{{{pairs}}} {value} {moment:.0f}" for moment in moments]
    return "\n".join((*lines, "# EOF\n"))


def _ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
