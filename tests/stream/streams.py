"""Inboxes, clocks and runs of the streaming job: what its tests share."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from jobs import Ran, make_corpus, run, week
from torch import Tensor

from gpudrift.sketch import Sketch
from gpudrift.stream import checkpoint
from gpudrift.stream.state import State
from gpudrift.stream.waiting import Waiter

REFERENCE = 8  # weeks of the corpus, 2026-W02 to W09; W10 to W15 are streamed
OLD = 1_700_000_000  # seconds since 1970 of the first file
NOW = 1_800_000_000.0
SMALL = {
    "job": "stream", "windows.reference.count": REFERENCE, "stream.features": 64, "stream.bins": 64,
    "stream.reservoir": 200, "stream.checkpoint_seconds": 0, "metrics.directions": 4, "windows.min_rows": 40,
}  # fmt: skip


class Script(Waiter):
    """A clock of its own, that runs on by each wait; before the k-th wait ``acts[k]`` is done. The last one stops the
    job where nothing else does. Descriptors are waited for as they are."""

    def __init__(self, *acts: Callable[[Script], None]) -> None:
        super().__init__()
        self.acts, self.seconds, self.waits = list(acts), 0.0, 0
        self.descriptors: tuple[int, ...] = ()

    def now(self) -> float:
        return self.seconds

    def clock(self) -> float:
        return NOW + self.seconds

    def wait(self, seconds: float, *descriptors: int) -> bool:
        self.waits, self.descriptors = self.waits + 1, descriptors
        assert self.waits < 500, "the job waits for ever"
        if self.acts:
            self.acts.pop(0)(self)
        if super().wait(0, *descriptors):
            return True
        self.seconds += seconds
        return False

    def stop(self) -> None:
        self.stopping = True

    def port(self) -> int:
        """Of the listening socket that is waited for."""
        with socket.socket(fileno=os.dup(self.descriptors[0])) as server:
            return int(server.getsockname()[1])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], Script]:
    """Lets runs wait by a script."""

    def put(script: Script) -> Script:
        monkeypatch.setattr("gpudrift.stream.job.Waiter", lambda: script)
        return script

    return put


def land(inbox: Path, name: str, rows: pa.Table, *, at: float = 0) -> Path:
    """A file in the inbox, ``at`` seconds after the first one."""
    path = inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, write_page_checksum=True)
    os.utime(path, (OLD + at, OLD + at))
    return path


def land_weeks(inbox: Path, table: pa.Table, weeks: Sequence[int], parts: int = 1) -> list[Path]:
    """Each week in ``parts`` files, in order of time."""
    made = []
    for k in weeks:
        rows = table.slice(week(k).start, week(k).stop - week(k).start)
        size = -(-len(rows) // parts)
        for part in range(parts):
            piece = rows.slice(part * size, size)
            made.append(land(inbox, f"week-{k:02d}-{part}.parquet", piece, at=10 * k + part))
    return made


def stream(corpus: Path, output: Path, inbox: Path | None, **settings: Any) -> Ran:
    """A run; dots of settings are written as two underscores."""
    own = {key.replace("__", "."): value for key, value in settings.items()}
    place = {} if inbox is None else {"stream.inbox": str(inbox)}
    return run(corpus, output, SMALL | place | own)


def lines(output: Path) -> list[dict[str, Any]]:
    """stream.jsonl."""
    path = output / "stream.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def status(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "stream.json").read_text(encoding="utf-8"))
    return found


def counts(output: Path) -> dict[str, int]:
    """The counters that are not 0."""
    return {name: number for name, number in status(output)["counts"].items() if number}


def saved(output: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checkpoint: what it says, and its tensors."""
    from safetensors import safe_open

    with safe_open(output / checkpoint.NAME, framework="pt") as file:
        return json.loads(file.metadata()["state"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sketches(output: Path) -> dict[str, Sketch]:
    """The open windows' sketches, of the checkpoint."""
    state = State.from_parts(*saved(output), plan_of(output))
    return {label: held.sketch for label, held in state.windows.items()}


def plan_of(output: Path) -> Any:
    (path,) = (output / "reference").glob("reference-sketch-*.safetensors")
    return Sketch.load(path).plan


def ipc(
    table: pa.Table, *, size: int = 50, first: int | None = 0, partition: str | None = None, schema: Any = None
) -> bytes:
    """A table as an IPC stream of batches; ``first``: the first batch's sequence, None for none."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema or table.schema) as writer:
        for k, batch in enumerate(table.combine_chunks().to_batches(max_chunksize=size)):
            metadata = {} if first is None else {"sequence": str(first + k)}
            writer.write_batch(
                batch, custom_metadata=metadata | ({} if partition is None else {"partition": partition})
            )
    return sink.getvalue().to_pybytes()


__all__ = ["make_corpus"]
