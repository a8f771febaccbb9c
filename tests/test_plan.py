"""job=plan and the check before a run: the amounts are those of the run, and what cannot fit is refused unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import LAST, ROWS, WEEKS, run

from gpudrift import device, plan
from gpudrift.errors import ConfigError
from gpudrift.source import ParquetSource

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_SECOND", 0.01)


def planned(output: Path) -> dict[str, object]:
    return dict(json.loads((output / "plan.json").read_text(encoding="utf-8")))


def test_the_amounts_are_those_of_the_run(quiet: Path, tmp_path: Path) -> None:
    settings = {"score.rows": 600}
    before = run(quiet, tmp_path, {"job": "plan", **settings})
    found = planned(tmp_path)
    assert before.code == 0
    assert not (tmp_path / "reference").exists()  # nothing but plan.json is left behind
    assert not (tmp_path / "result.json").exists()
    assert (found["window"], found["dim"]) == (LAST, 16)
    reference, current = found["reference"], found["current"]
    sizes = [path.stat().st_size for path in quiet.rglob("*.parquet")]
    assert len(sizes) == WEEKS
    assert (reference["rows"], reference["pair_rows"], reference["windows"], reference["files"]) == (
        12 * ROWS,
        600,
        12,
        12,
    )
    assert (current["rows"], current["pair_rows"], current["windows"], current["files"]) == (ROWS, ROWS, 1, 1)
    assert 0.5 * sum(sizes) < (reference["bytes"] + current["bytes"]) * WEEKS / 13 < sum(sizes)
    assert found["pairs"] == 600 * ROWS + ROWS * ROWS // 2
    assert found["pinning"] == 600 * 600
    assert found["flop"] == 2 * 16 * (found["pairs"] + found["pinning"])
    ran = run(quiet, tmp_path, settings)
    assert (ran.result["pair_rows"]["reference"], ran.result["pair_rows"]["current"]) == (600, ROWS)
    run(quiet, tmp_path, {"job": "plan", **settings})
    again = planned(tmp_path)
    assert (again["pairs"], again["pinning"]) == (found["pairs"], 0)  # the reference is pinned now
    assert again["precision"] == ran.result["precision"]
    assert 1 / 3 * plan.BASE_BYTES < again["memory"] < 2 * plan.BASE_BYTES  # a small corpus is next to nothing


def test_a_pinned_reference_keeps_its_limit_in_the_plan(quiet: Path, tmp_path: Path) -> None:
    run(quiet, tmp_path, {"score.rows": 600})
    run(quiet, tmp_path, {"job": "plan"})
    found = planned(tmp_path)
    assert (found["reference"]["pair_rows"], found["current"]["pair_rows"]) == (600, ROWS)
    assert run(quiet, tmp_path).result["pair_rows"]["reference"] == 600


def test_the_terminal_shows_amounts_time_and_rates(quiet: Path, tmp_path: Path) -> None:
    out = run(quiet, tmp_path, {"job": "plan"}).out
    for text in ("1,950 rows", "150 against 1,800", "TFLOP in float32", "GB free", "measured here", "under 1 s"):
        assert text in " ".join(out.split()), text


def unread(*_: object, **__: object) -> None:
    raise AssertionError("rows were read")


@pytest.mark.parametrize("job", ["run", "plan"])
def test_a_run_that_cannot_fit_is_refused_before_it_reads(
    job: str, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_memory", lambda: 10**8)
    really_read = ParquetSource.read
    monkeypatch.setattr(ParquetSource, "read", unread)
    with pytest.raises(ConfigError, match="more than is free on this machine") as caught:
        run(quiet, tmp_path, {"job": job})
    assert caught.value.allowed == "0.1 GB"
    assert "job=stream" in str(caught.value)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.setattr(device, "free_memory", lambda: None)  # not known: not refused
    monkeypatch.setattr(ParquetSource, "read", really_read)
    assert run(quiet, tmp_path, {"job": job}).code == 0


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> int | None:
    for name, text in ({"memory.stat": STAT} | files).items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(device, "_MEMINFO", folder / "meminfo")
    groups = ((folder, "max", "current"), (folder, "limit_in_bytes", "usage_in_bytes"))
    monkeypatch.setattr(device, "_CGROUP", groups)
    return device.free_memory()


STAT = "anon 5\ninactive_file 0\nactive_file 0\nslab 3\n"
MEMINFO = "MemTotal:       24684096 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"meminfo": MEMINFO}, 2_048_000_000),
        ({"meminfo": MEMINFO, "max": "max\n", "current": "5\n"}, 2_048_000_000),
        ({"meminfo": MEMINFO, "max": "1000\n", "current": "300\n"}, 700),
        (
            {"meminfo": MEMINFO, "max": "1000\n", "current": "900\n", "memory.stat": STAT.replace("file 0", "file 40")},
            180,
        ),
        ({"meminfo": MEMINFO, "max": "1000\n", "current": "1300\n"}, 0),
        ({"meminfo": MEMINFO, "limit_in_bytes": "9223372036854771712\n", "usage_in_bytes": "7\n"}, 2_048_000_000),
        ({"limit_in_bytes": "5000\n", "usage_in_bytes": "7\n"}, 4993),
        ({"meminfo": "nothing of use\n"}, None),
        ({}, None),
    ],
)
def test_free_memory_is_that_of_the_system_or_the_container(
    files: dict[str, str], wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine(tmp_path, monkeypatch, files) == wanted


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0.3, "under 1 s"), (42.4, "about 42 s"), (600.0, "about 10 min"), (9000.0, "about 2.5 h")],
)
def test_durations_in_words(seconds: float | None, text: str) -> None:
    assert plan._duration(seconds) == text
