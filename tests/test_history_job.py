"""``job=history``: what it prints, from which reference and segment, and its errors."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jobs import run
from rich.console import Console

from gpudrift.calibrate import Limits
from gpudrift.errors import ConfigError, DataError, GpudriftError
from gpudrift.files import write_json
from gpudrift.history import History
from gpudrift.history_job import NAMED, show_history, shown_histories
from gpudrift.records import Calibration, GateMetric, HistoryPoint, Metric, SegmentScore, Verdict, Window
from gpudrift.report.terminal import WIDTH, Reporter

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
PINNED, OTHER = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def window(k: int) -> Window:
    start = MONDAY + timedelta(weeks=k)
    year, number, _ = start.isocalendar()
    return Window(start, start + timedelta(days=7), f"{year}-W{number:02d}")


def point(k: int, verdict: Verdict = "stable", **changes: Any) -> HistoryPoint:
    named: dict[str, Any] = {
        "window": window(k), "verdict": verdict, "score": 0.0183, "se": 0.00216, "p_aa": 0.5, "p_close": 0.5,
        "null_sd": 1e-4, "delta": 0.00226, "clear_limit": 0.002, "ratio": 57.0, "rows": 1326 + k,
        "gates": (
            GateMetric("energy", 0.0183, 0.00216, 1e-4, 0.0003, 0.5, 0.00011, None, 0.00226, 0.01),
            GateMetric("classifier_auc", 0.2, 0.02, None, 0.0, 0.5, 0.5, -0.1, 0.1, 0.5),
        ),
    }  # fmt: skip
    return HistoryPoint(**(named | changes))


def nothing(k: int) -> HistoryPoint:
    absent = dict.fromkeys(("score", "se", "p_aa", "p_close", "null_sd", "delta", "clear_limit", "ratio"))
    return point(k, "insufficient", rows=0, gates=(), **absent)


def segment(value: str, ratio: float) -> SegmentScore:
    numbers: dict[str, Any] = dict.fromkeys(Calibration.__dataclass_fields__, 0.001)
    found = Calibration(**(numbers | {"ratio": ratio, "in_reference": False, "score": 0.5}))
    return SegmentScore(
        "lang", value, 0, 80, 400, 12, {"energy": Metric("energy", 0.5, 0.1)}, found, 0.03, "warning", ""
    )


def write(root: Path, reference: str, points: Sequence[HistoryPoint], segments: Sequence[SegmentScore] = ()) -> None:
    for one in points:
        metrics = [Metric(gate.metric, gate.value, gate.se) for gate in one.gates]
        History(root, "weekly", reference).write(one, metrics, segments)


def show(output: Path, quiet: bool = False, **settings: Any) -> list[str]:
    """The lines that are printed, and nothing on standard error."""
    out, err = io.StringIO(), io.StringIO()
    reporter = Reporter(Console(file=out), quiet, diagnostics=Console(file=err))
    code = show_history(output / "history", "weekly", reporter, reference_path=output / "reference", **settings)
    assert code == 0
    assert err.getvalue() == ""
    return out.getvalue().splitlines()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A pinned reference with four windows, and segments."""
    points = [point(0), nothing(1), point(2, "warning"), point(3, "alert")]
    write(tmp_path / "history", PINNED, points, [segment("en", 3.5), segment("de", 9.0)])
    write_json(tmp_path / "reference" / "reference.json", {"id": PINNED})
    return tmp_path


def test_the_table(output: Path) -> None:
    assert show(output) == [
        "weekly, against reference aaaaaaaaaaaa: 4 windows, 2026-01-05 to 2026-02-01: 1 stable, 1 warning, 1 alert, "
        "1 insufficient",
        "  window    from        verdict             score +- se  usual        p  tolerance   rows",
        "  2026-W02  2026-01-05  stable        0.0183 +- 0.00216    57x  0.00011    0.00226  1,326",
        "  2026-W03  2026-01-12  insufficient                  -      -        -          -      0",
        "  2026-W04  2026-01-19  warning       0.0183 +- 0.00216    57x  0.00011    0.00226  1,328",
        "  2026-W05  2026-01-26  alert         0.0183 +- 0.00216    57x  0.00011    0.00226  1,329",
        "metrics beyond the usual movement:",
        "  2026-W02        energy",
        "  2026-W04        energy",
        "  2026-W05        energy",
    ]


def test_lines_are_plain_and_fit_a_log(output: Path) -> None:
    lines = show(output)
    assert all(len(line) <= WIDTH for line in lines[1:])
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_the_last_ones(output: Path) -> None:
    assert [line.split()[0] for line in show(output, last=2)[2:4]] == ["2026-W04", "2026-W05"]
    assert show(output, last=1_000_000) == show(output)
    assert "4 windows" in show(output, last=1)[0]  # counted all the same


def test_what_counts_as_beyond_is_the_configured_level(output: Path) -> None:
    none = show(output, limits=Limits(warn_p=1e-6))
    assert not any("beyond" in line for line in none)
    both = show(output, limits=Limits(warn_p=0.6))
    assert both[-1] == "  2026-W05        energy, classifier_auc"


def test_of_a_segment_the_level_of_its_verdict_decides(output: Path) -> None:
    """q .03: it warns below segments.fdr, .05, so that what made it warn is beyond."""
    assert show(output, segment="lang=de")[-1] == "  2026-W05        energy"
    assert not any("beyond" in line for line in show(output, segment="lang=de", fdr=0.02))


def test_quiet_prints_the_tally_alone(output: Path) -> None:
    assert len(show(output, quiet=True)) == 1


def test_a_window_that_was_not_covered_is_marked(tmp_path: Path) -> None:
    write(tmp_path / "history", PINNED, [point(0), point(1, window=replace(window(1), complete=False))])
    lines = show(tmp_path)
    assert lines[3].split()[2:4] == ["stable", "*"]
    assert lines[-1] == "* the data did not cover the whole window"
    assert not any("*" in line for line in lines[:3])


def test_a_segment(output: Path) -> None:
    lines = show(output, segment="lang=de")
    assert lines[0].startswith("weekly, lang=de, against reference aaaaaaaaaaaa: 4 windows, ")
    assert lines[1].split()[:9] == ["window", "from", "verdict", "score", "+-", "se", "usual", "q", "tolerance"]
    assert lines[2].split() == [
        "2026-W02",
        "2026-01-05",
        "warning",
        "0.5",
        "+-",
        "0.001",
        "9.0x",
        "0.03",
        "0.001",
        "80",
    ]


def test_windows_without_the_segment_are_left_out(output: Path) -> None:
    write(output / "history", PINNED, [point(4)], [segment("en", 1.0)])
    assert "4 windows" in show(output, segment="lang=de")[0]
    assert "5 windows" in show(output, segment="lang=en")[0]


def test_a_segment_that_does_not_exist_lists_those_there_are(output: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        show(output, segment="lang=xx")
    assert caught.value.field == "history.segment"
    assert caught.value.allowed == ["all", "lang=de", "lang=en"]
    many = [segment(f"{k:03d}", 1.0) for k in range(60)]
    write(output / "history", PINNED, [point(4)], many)
    with pytest.raises(ConfigError) as caught:
        show(output, segment="lang=xx")
    assert len(caught.value.allowed) == NAMED + 1
    assert caught.value.allowed[-1] == f"and {63 - NAMED} more"


# references


@pytest.fixture
def several(output: Path) -> Path:
    """The pinned reference with its comparisons, and another one with newer windows."""
    write(output / "history", f"{PINNED}-previous", [point(3, "stable", ratio=1.5, gates=())])
    write(output / "history", f"{PINNED}-year_ago", [point(3, "warning", gates=())])
    write(output / "history", OTHER, [point(8, "stable"), point(9, "alert")])
    (output / "history" / "weekly" / ".notified.json").write_text("{}")
    (output / "history" / "weekly" / "cccccccccccc").mkdir()  # nothing was written into it
    (output / "history" / ".weekly.lock").write_text("")
    return output


def test_references_are_listed_where_there_are_several(several: Path) -> None:
    assert show(several)[-6:] == [
        "references (history.reference):",
        "  reference              windows  first     last      verdict",
        "  aaaaaaaaaaaa                 4  2026-W02  2026-W05  alert    pinned, shown",
        "  aaaaaaaaaaaa-previous        1  2026-W05  2026-W05  stable   against the window before",
        "  aaaaaaaaaaaa-year_ago        1  2026-W05  2026-W05  warning  against a year ago",
        "  bbbbbbbbbbbb                 2  2026-W10  2026-W11  alert",
    ]
    assert not any("references" in line for line in show(several, quiet=True))


def test_ids_that_can_be_asked_for_are_whole_beside_long_labels(output: Path) -> None:
    long = Window(MONDAY, MONDAY + timedelta(days=10), "2026-01-05+10d")
    for name in (PINNED, f"{PINNED}-previous", f"{PINNED}-year_ago"):
        write(output / "history", name, [point(0, "insufficient", window=long)])
    listed = show(output)[-3:]
    assert [line.split()[0] for line in listed] == [PINNED, f"{PINNED}-previous", f"{PINNED}-year_ago"]


@pytest.mark.parametrize(
    ("asked", "lead"),
    [
        (None, "weekly, against reference aaaaaaaaaaaa: 4 windows, "),
        (OTHER, "weekly, against reference bbbbbbbbbbbb: 2 windows, "),
        (f"{PINNED}-year_ago", "weekly, against a year ago (aaaaaaaaaaaa-year_ago): 1 window, "),
        ("year_ago", "weekly, against a year ago (aaaaaaaaaaaa-year_ago): 1 window, "),
        ("previous", "weekly, against the window before (aaaaaaaaaaaa-previous): 1 window, "),
    ],
)
def test_the_reference_that_is_shown(several: Path, asked: str | None, lead: str) -> None:
    assert show(several, reference=asked)[0].startswith(lead)


@pytest.mark.parametrize("damage", ["gone", "{", "[]", '{"name": 1}', '{"id": "dddddddddddd"}'])
def test_without_a_pinned_reference_the_newest_window_decides(several: Path, damage: str) -> None:
    path = several / "reference" / "reference.json"
    path.unlink()
    if damage != "gone":
        path.write_text(damage)
    write(several / "history", f"{PINNED}-previous", [point(30)])  # a comparison is no reference
    lines = show(several)
    assert lines[0].startswith("weekly, against reference bbbbbbbbbbbb: 2 windows, ")
    assert not any("pinned" in line for line in lines)


def test_a_history_of_comparisons_alone_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "history", f"{PINNED}-previous", [point(0)])
    assert show(tmp_path)[0].startswith("weekly, against the window before (aaaaaaaaaaaa-previous): 1 window, ")


@pytest.mark.parametrize("asked", ["dddddddddddd", "", "../weekly", "all"])
def test_a_reference_that_does_not_exist_lists_those_there_are(several: Path, asked: str) -> None:
    with pytest.raises(ConfigError) as caught:
        show(several, reference=asked)
    assert caught.value.field == "history.reference"
    assert caught.value.allowed == [PINNED, f"{PINNED}-previous", f"{PINNED}-year_ago", OTHER]


def test_a_comparison_that_was_not_asked_for_when_it_ran(output: Path) -> None:
    with pytest.raises(ConfigError, match="no such reference"):
        show(output, reference="previous")


# errors


def test_no_history_is_one_clear_error_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        show(tmp_path / "none")
    assert "there is no history of this job" in str(caught.value)
    assert "received: 'weekly'" in str(caught.value)
    assert caught.value.exit_code == 30
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_have_a_history_are_named(several: Path) -> None:
    shutil.move(several / "history" / "weekly", several / "history" / "nightly")
    with pytest.raises(DataError) as caught:
        show(several)
    assert caught.value.allowed == ["nightly"]


def test_a_damaged_file_is_named(output: Path) -> None:
    path = output / "history" / "weekly" / PINNED / "2026-W03.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(GpudriftError) as caught:
        show(output)
    assert str(path) in str(caught.value)


# as a job


def test_the_job_needs_no_data_and_makes_nothing(several: Path) -> None:
    before = sorted(path for path in several.rglob("*"))
    missing = several / "no such corpus"
    settings = {"job": "history", "name": "weekly", "history.last": 1, "history.reference": "year_ago"}
    ran = run(missing, several, settings)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[:3] == show(several, last=1, reference="year_ago")[:3]
    assert (
        run(missing, several, settings | {"calibrate.warn_p": 1e-8, "history.reference": OTHER}).out.count("beyond")
        == 0
    )
    assert sorted(path for path in several.rglob("*")) == before
    elsewhere = settings | {"history.path": str(several / "history"), "reference.path": str(several / "reference")}
    assert run(missing, several / "new", elsewhere).out == ran.out
    assert not (several / "new").exists()


def test_the_histories_that_dashboards_show(several: Path) -> None:
    root, pinned = several / "history", several / "reference"
    History(root, "nightly", OTHER).write(point(0), [])
    found = shown_histories(root, ["weekly", "nightly", "none"], pinned)
    labels = {job: [window["all"].window.label for window in windows] for job, windows in found.items()}
    assert labels == {"weekly": ["2026-W02", "2026-W03", "2026-W04", "2026-W05"], "nightly": ["2026-W02"]}
