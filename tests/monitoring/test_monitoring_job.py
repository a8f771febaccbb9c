"""job=dashboard: the files it leaves, and what the text beside them says."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from histories import backfilled
from jobs import run
from tools import program

from gpudrift.errors import ArgumentError, ConfigError
from gpudrift.files import exclusive
from gpudrift.history import ALL
from gpudrift.monitoring.job import default_stale_hours, window_days, write_monitoring
from gpudrift.monitoring.openmetrics import write_openmetrics
from gpudrift.records import HistoryPoint, Window


def test_the_files_are_there_and_a_second_run_replaces_them(tmp_path: Path) -> None:
    written = write_monitoring(tmp_path, ["weekly", "nightly"], period="day")
    assert [path.name for path in written] == ["rules.yml", "dashboard.json", "README.md"]
    assert sorted(path.name for path in (tmp_path / "monitoring").iterdir()) == sorted(path.name for path in written)
    before = [path.read_bytes() for path in written]
    with exclusive(tmp_path / "history" / ".weekly.lock"):  # a run that is under way is no hindrance
        assert write_monitoring(tmp_path, ["weekly", "nightly"], period="day") == written
    assert [path.read_bytes() for path in written] == before


def test_the_text_says_how_to_wire_it(tmp_path: Path) -> None:
    write_monitoring(tmp_path, ["weekly"], period="week", textfile=tmp_path / "node" / "weekly.prom")
    text = (tmp_path / "monitoring" / "README.md").read_text(encoding="utf-8")
    five = text.split("```")[1].strip().splitlines()
    assert len(five) == 5
    assert f"--collector.textfile.directory={tmp_path / 'node'}" in five[0]
    assert f'rule_files: ["{tmp_path}/monitoring/rules.yml"]' in five[2]
    assert five[4].endswith(f"{tmp_path}/monitoring/dashboard.json")
    assert "openmetrics" not in text


def test_a_history_that_is_given_can_be_taken_in_as_the_text_says(tmp_path: Path) -> None:
    start = datetime(2026, 1, 5, tzinfo=UTC)
    window = Window(start, start + timedelta(weeks=1), "2026-W02")
    past = [{ALL: HistoryPoint.of(window, "insufficient", None, rows=3)}]
    written = write_monitoring(tmp_path, ["weekly"], period="week", histories={"weekly": past})
    assert [path.name for path in written[3:]] == ["weekly.openmetrics"]
    command = written[2].read_text(encoding="utf-8").split("```")[-2].split()
    assert (command[0], command[-1]) == ("promtool", "/var/lib/prometheus")
    assert any(word.startswith("--max-block-duration=") for word in command)  # else minutes for years
    told = [program("promtool"), *command[1:-1], tmp_path / "data"]
    subprocess.run(told, cwd=tmp_path / "monitoring", check=True, capture_output=True, timeout=60)
    assert [len(list(block.glob("chunks/*"))) for block in (tmp_path / "data").iterdir()] == [1]


def test_the_job_needs_no_data(tmp_path: Path) -> None:
    settings = {"job": "dashboard", "name": "mine", "dashboard.jobs": ["mine", "other"], "windows.period": "day"}
    ran = run(tmp_path / "nowhere", tmp_path / "out", settings)
    assert ran.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["monitoring"]
    board = json.loads((tmp_path / "out" / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    assert board["title"] == "Embedding drift: mine, other"
    assert [one["current"]["value"] for one in board["templating"]["list"] if one["name"] == "hold"] == ["1d"]


def test_the_job_tells_the_past_of_its_own_history(drifted: Path, tmp_path: Path) -> None:
    past = backfilled(drifted, tmp_path)
    assert run(drifted, tmp_path, {"job": "dashboard", "name": "weekly"}).code == 0
    write_openmetrics("weekly", past, tmp_path / "expected")
    assert (tmp_path / "monitoring" / "weekly.openmetrics").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize(
    ("period", "days", "hours"), [("day", 1, 48), ("week", 7, 264), ("month", 31, 1128), ("10d", 10, 372)]
)
def test_a_job_is_stale_after_one_run_that_failed(tmp_path: Path, period: str, days: int, hours: float) -> None:
    assert (window_days(period), default_stale_hours(period)) == (days, hours)
    write_monitoring(tmp_path / "own", ["a"], period=period)
    write_monitoring(tmp_path / "given", ["a"], period=period, stale_hours=hours)
    for name in ("rules.yml", "dashboard.json"):
        texts = {(tmp_path / where / "monitoring" / name).read_text(encoding="utf-8") for where in ("own", "given")}
        assert len(texts) == 1
        assert f"{3600 * hours:.0f}" in texts.pop()


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (ConfigError, {"jobs": ["a"], "period": "fortnight"}),
        (ArgumentError, {"jobs": [], "period": "week"}),
        (ArgumentError, {"jobs": ["a", "a"], "period": "week"}),
    ]
    for error, arguments in bad:
        with pytest.raises(error):
            write_monitoring(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
