"""The benchmark of job=backfill runs, alternates, takes the least times, and fails where histories differ."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import ROOT, benchmarks_on_path, module

__all__ = ["benchmarks_on_path"]  # a fixture
pytestmark = pytest.mark.usefixtures("benchmarks_on_path")


def test_the_short_form_runs_the_job_on_the_shipped_sample(tmp_path: Path) -> None:
    results = tmp_path / "backfill.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "backfill.py"), "--short", "--save", "--results", str(results)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(results.read_text(encoding="utf-8"))["found"]
    assert found["windows"] == 3  # two, and the one before them
    assert found["reference"] == {"rows": 3460, "windows": 10}
    assert (found["dim"], found["identical"]) == (384, True)
    assert found["now"]["x_floor"] > 1
    assert found["now"]["processor_seconds"] > 0
    assert "the same to the byte" in ran.stdout


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """Children that take the times given, and write the histories given; returns (what ran, where) as they run."""
    backfill = module("backfill")

    def make(seconds: dict[str, list[float]], histories: dict[str, str]) -> list[tuple[str, str]]:
        ran: list[tuple[str, str]] = []

        def child(code: str, words: list[str], tree: Path) -> dict[str, Any]:
            if code == backfill._PIN:
                ran.append(("pin", tree.name))
                return {}
            if code == backfill._FLOOR:
                ran.append(("floor", tree.name))
                return {"products": 2.0 - 0.5 * len(ran) / 100, "read": 1.0}
            name = "now" if tree == backfill.ROOT else "before"
            ran.append(("run", name))
            folder = Path(words[-1].partition("=")[2].strip("'")) / "history" / "job"
            folder.mkdir(parents=True)
            (folder / "2026-W01.parquet").write_text(histories[name])
            taken = seconds[name][sum(one == ("run", name) for one in ran) - 1]
            work = {"products": [[10, 5]], "dim": 4, "files": [], "column": "embedding"}
            return {
                "code": 0, "wall": 3 * taken, "processor": taken, "peak_mb": round(100 * taken), "windows": 30,
                "rows": [5, 9], "reference": {"rows": 10, "windows": 2}, "work": work,
            }  # fmt: skip

        monkeypatch.setattr(backfill, "child", child)
        return ran

    return make


def options(**changes: Any) -> Any:
    found = module("backfill").parse(["--data", "folder", "--rounds", "3"])
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_sides_alternate_and_the_least_time_of_each_counts(
    children: Callable[..., list[tuple[str, str]]], tmp_path: Path
) -> None:
    backfill = module("backfill")
    ran = children({"before": [9.0, 8.0, 12.0], "now": [4.0, 5.0, 3.0]}, {"before": "same", "now": "same"})
    found = backfill.measure({"before": tmp_path / "tree", "now": backfill.ROOT}, options(), tmp_path)
    sides = [name for what, name in ran if what == "run"]
    assert sides == ["before", "now", "now", "before", "before", "now"]
    assert (found["before"]["processor_seconds"], found["now"]["processor_seconds"]) == (8.0, 3.0)
    assert found["now"]["wall_seconds"] == 9.0
    assert found["now"]["windows_a_minute"] == 60 * 30 / 3.0
    assert found["now"]["peak_mb"] == 500
    assert found["speedup"] == 8.0 / 3.0
    assert found["speedup_by_round"] == [9.0 / 4.0, 8.0 / 5.0, 12.0 / 3.0]
    assert found["now"]["x_floor"] == 3.0 / sum(found["floor"].values())
    assert found["identical"]


def test_histories_that_differ_fail_the_command(
    children: Callable[..., list[tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill = module("backfill")
    children({"before": [2.0] * 3, "now": [1.0] * 3}, {"before": "one", "now": "other"})
    found = backfill.measure({"before": tmp_path / "tree", "now": backfill.ROOT}, options(), tmp_path)
    assert not found["identical"]
    monkeypatch.setattr(backfill, "measure", lambda *_: found)
    assert backfill.main(["--data", "folder"]) == 1


@pytest.mark.parametrize("words", [[], ["--data", "folder", "--rounds", "0"]])
def test_unusable_options_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        module("backfill").main(words)
    assert caught.value.code == 2
