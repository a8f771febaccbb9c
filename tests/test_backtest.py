"""job=backtest: the verdicts the job would have given then, at any reference size and threshold; resumable; and what it
reports of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ROWS, make_corpus, run, table_of

from gpudrift.errors import ConfigError
from gpudrift.history import History
from gpudrift.records import HistoryPoint
from gpudrift.scoring import Scorer

pytestmark = pytest.mark.usefixtures("no_pictures", "no_alarms")
ROOT = Path(__file__).resolve().parents[1]
WEEKS = 24
FIRST = 12  # the first week after the reference
ONSET = date(2026, 1, 5) + timedelta(weeks=16)
SPAN = {"windows.reference.start": "2026-01-12", "windows.reference.end": "2026-03-30"}  # weeks 1 to 11
TRIED = SPAN | {
    "job": "backtest", "backtest.windows": [8, 11], "backtest.warn_p": [0.01, 0.0001],
    "backtest.onsets": [f"{ONSET} new catalogue"],
}  # fmt: skip


def label(k: int) -> str:
    return f"2026-W{k + 2:02d}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 weeks: one week out of line (13), drift from week 16 to 19, a short week (18), a slightly drifted one (22)."""
    path = tmp_path_factory.mktemp("backtest")
    drift, calm, slight = (
        table_of(make_corpus(path / f"{shift}", weeks=WEEKS, drift_week=0, mean_shift=shift))
        for shift in (0.4, 0, 0.15)
    )
    weeks = [drift if k in (13, 16, 17, 18, 19) else slight if k == 22 else calm for k in range(WEEKS)]
    parts = [t.slice(k * ROWS, 40 if k == 18 else ROWS).replace_schema_metadata() for k, t in enumerate(weeks)]
    pq.write_table(pa.concat_tables(parts), path / "corpus.parquet")
    return path / "corpus.parquet"


@pytest.fixture
def no_alarms(done: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the picture is asked to show, in place of the picture; that of ``done`` is drawn."""
    asked: list[tuple[Any, dict[str, Any]]] = []
    assert done.exists()
    monkeypatch.setattr(
        "gpudrift.report.alarms.alarm_timeline", lambda strips, _, **known: asked.append((strips, known))
    )
    return asked


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a backtest with every setting. Do not write into it."""
    output = tmp_path_factory.mktemp("done") / "out"
    assert run(corpus, output, TRIED).code == 0
    return output


def summary(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "backtest.json").read_text(encoding="utf-8")))


def rows_of(output: Path, windows: int, warn_p: float) -> list[dict[str, Any]]:
    rows = pq.read_table(output / "backtest.parquet").to_pylist()
    return [row for row in rows if (row["reference_windows"], row["warn_p"]) == (windows, warn_p)]


def setting(output: Path, windows: int, warn_p: float = 0.01) -> dict[str, Any]:
    (found,) = (
        s for s in summary(output)["settings"] if (s["reference_windows"], s["warn_p"]) == (windows, warn_p)
    )  # fmt: skip
    return dict(found)


def verdict(point: HistoryPoint) -> dict[str, Any]:
    """A window of the job's history, as backtest.parquet has it."""
    least = min(point.gates, key=lambda g: g.p_holm, default=None)
    names = ("verdict", "score", "se", "p_aa", "delta", "ratio", "rows")
    numbers = {name: getattr(point, name) for name in names}
    p = {"p": None, "metric": None} if least is None else {"p": least.p_holm, "metric": least.metric}
    return {"window": point.window.label} | numbers | p


def history_of(output: Path, reference: str) -> list[dict[str, Any]]:
    points = History(output / "history", "job", reference).points()
    return [verdict(point) for point in points if point.window.label >= label(FIRST)]


def verdicts_of(output: Path, windows: int, warn_p: float) -> tuple[str, list[dict[str, Any]]]:
    rows = rows_of(output, windows, warn_p)
    common = ("reference_windows", "warn_p", "reference", "window_start", "window_end", "quiet")
    return rows[0]["reference"], [{k: v for k, v in row.items() if k not in common} for row in rows]


@pytest.mark.parametrize("windows", [8, 11])
def test_the_verdicts_are_those_of_running_the_job_each_week(
    corpus: Path, done: Path, tmp_path: Path, windows: int
) -> None:
    settings = dict(SPAN)
    if windows == 8:
        settings["windows.reference.start"] = "2026-02-02"
    for k in range(FIRST, WEEKS):
        monday = date(2026, 1, 5) + timedelta(weeks=k)
        ran = run(corpus, tmp_path, settings | {"run_date": str(monday)})
        assert ran.result["window"]["label"] == label(k)
    reference, found = verdicts_of(done, windows, 0.01)
    assert reference == ran.result["reference"]["id"]
    assert len(found) == WEEKS - FIRST
    assert found == history_of(tmp_path, reference)


@pytest.mark.parametrize("warn_p", [0.01, 0.0001])
def test_the_verdicts_are_those_of_a_backfill_at_the_same_threshold(
    corpus: Path, done: Path, tmp_path: Path, warn_p: float
) -> None:
    settings = SPAN | {"job": "backfill", "backfill.start": "2026-03-30", "calibrate.warn_p": warn_p}
    run(corpus, tmp_path, settings)
    reference, found = verdicts_of(done, 11, warn_p)
    assert found == history_of(tmp_path, reference)


def test_a_range_that_begins_within_an_alarm(corpus: Path, tmp_path: Path) -> None:
    """The window before the range is scored too, as the job does on its first night: an alert needs two."""
    start = {"start": str(ONSET + timedelta(weeks=1)), "end": str(ONSET + timedelta(weeks=4))}
    run(corpus, tmp_path, SPAN | {"job": "backfill"} | {f"backfill.{k}": v for k, v in start.items()})
    run(corpus, tmp_path, SPAN | {"job": "backtest"} | {f"backtest.{k}": v for k, v in start.items()})
    reference, found = verdicts_of(tmp_path, 11, 0.01)
    assert [w["verdict"] for w in found] == ["alert", "insufficient", "alert"]
    assert found == history_of(tmp_path, reference)[1:]


def test_the_settings_differ(done: Path) -> None:
    """Else the tests above say little."""
    verdicts = {key: [row["verdict"] for row in rows_of(done, *key)] for key in ((8, 0.01), (11, 0.01), (8, 0.0001))}
    assert verdicts[11, 0.01][4:10] == ["warning", "alert", "insufficient", "alert", "alert", "stable"]
    assert verdicts[8, 0.0001] != verdicts[8, 0.01]
    assert {v for one in verdicts.values() for v in one} == {"stable", "warning", "alert", "insufficient"}


def test_what_comes_later_changes_nothing(corpus: Path, done: Path, tmp_path: Path) -> None:
    until = table_of(corpus).slice(0, ROWS * 18)
    pq.write_table(until, tmp_path / "c.parquet")
    run(tmp_path / "c.parquet", tmp_path / "out", TRIED)
    for windows in (8, 11):
        found = rows_of(tmp_path / "out", windows, 0.01)
        assert [row["window"] for row in found] == [label(k) for k in range(12, 18)]
        assert found == rows_of(done, windows, 0.01)[:6]


def test_the_onset_is_found_with_its_delay(done: Path) -> None:
    found = setting(done, 11)
    assert found["onsets"] == [
        {
            "day": str(ONSET), "name": "new catalogue", "window": label(16), "state": "found",
            "warning": 0, "warning_days": 7.0, "alert": 1, "alert_days": 14.0,
        }
    ]  # fmt: skip
    assert found["alarms"] == [{"first": label(17), "last": label(20), "windows": 3}]  # week 18 has too few rows
    assert found["verdicts"] == dict(Counter(w["verdict"] for w in found["windows"]))


def test_rates_are_those_of_the_quiet_windows(done: Path) -> None:
    """By default all that lie before the first onset."""
    assert summary(done)["quiet"] == [label(k) for k in range(12, 16)]
    for windows, warn_p in ((8, 0.01), (11, 0.01), (11, 0.0001)):
        quiet = [row for row in rows_of(done, windows, warn_p) if row["quiet"]]
        found = setting(done, windows, warn_p)
        warned = sum(row["verdict"] in ("warning", "alert") for row in quiet)
        assert (found["quiet_warned"]["count"], found["quiet_warned"]["of"]) == (warned, 4)
        assert (found["false_alarms"]["count"], found["false_alarms"]["of"]) == (0, 4)
        assert found["false_alarms_per_year"]["high"] == pytest.approx(found["false_alarms"]["high"] * 365.25 / 7)
    assert setting(done, 11)["quiet_warned"]["count"] == 1  # week 13


def test_what_it_prints(corpus: Path, tmp_path: Path) -> None:
    ran = run(corpus, tmp_path, TRIED | {"backtest.windows": [11], "backtest.warn_p": []})
    lines = ran.out.splitlines()
    assert lines[0] == "12 windows replayed, 2026-W14 to 2026-W25; 4 of them known to be quiet"
    assert re.fullmatch(r" +11 +0\.01 +3 +3 +1 +0 of 4 +0 to 0\.49 +0 +0 to 26", lines[2])
    assert "  11 at 0.01      2026-W19 to 2026-W22" in lines
    assert f"onset {ONSET}, new catalogue, in 2026-W18" in lines
    assert lines[-2].split() == ["11", "0.01", "after", "0", "(7", "days)", "after", "1", "(14", "days)"]
    assert "a reference of 11 windows at warn_p 0.01: no false alarm in 4 quiet windows" in lines[-1]
    assert lines[-1].endswith("Chosen on these data: expect it to do a little worse on new data")
    assert summary(tmp_path)["recommended"] == {"reference_windows": 11, "warn_p": 0.01}
    assert max(map(len, lines[:-1])) <= 100


def test_the_picture(corpus: Path, done: Path, tmp_path: Path, no_alarms: list[tuple[Any, dict[str, Any]]]) -> None:
    assert {"alarms.png", "alarms.svg"} <= {path.name for path in (done / "plots").iterdir()}
    thresholds = [0.05 / (k + 1) for k in range(13)]
    settings = {"backtest.windows": [11], "backtest.warn_p": thresholds}
    ran = run(
        corpus, tmp_path, TRIED | settings | {"backtest.quiet": ["2026-04-06..2026-04-27", "2026-06-01..2026-06-08"]}
    )
    assert "the picture shows the first 12 of 13 settings" in ran.err
    ((strips, known),) = no_alarms
    assert [strip.label for strip in strips][:2] == ["11 windows at 0.05", "11 windows at 0.025"]
    assert [p.verdict for p in strips[0].points] == [row["verdict"] for row in rows_of(tmp_path, 11, 0.05)]
    spans = [[day.date().isoformat() for day in span] for span in known["quiet"]]
    assert spans == [["2026-04-06", "2026-04-27"], ["2026-06-01", "2026-06-08"]]
    assert [(moment.date(), name) for moment, name in known["onsets"]] == [(ONSET, "new catalogue")]


def test_given_quiet_ranges_and_no_onset(corpus: Path, tmp_path: Path) -> None:
    settings = TRIED | {"backtest.windows": [11], "backtest.warn_p": [], "backtest.onsets": []}
    ran = run(corpus, tmp_path, settings)
    found = summary(tmp_path)
    assert (found["quiet"], found["recommended"]) == ([], None)
    assert setting(tmp_path, 11)["false_alarms"] is None
    assert "no onset is given (backtest.onsets), so no setting can be recommended" in ran.out
    assert "none known to be quiet" in ran.out
    ranges = ["2026-04-01..2026-04-20", "2026-05-25..2026-06-08"]
    run(corpus, tmp_path, settings | {"backtest.quiet": ranges})
    assert summary(tmp_path)["quiet"] == [label(13), label(14), label(20), label(21)]  # those that no range cuts
    assert setting(tmp_path, 11)["false_alarms"]["of"] == 4


def test_thresholds_and_onsets_are_tried_without_scoring_again(
    corpus: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = TRIED | {"backtest.warn_p": [0.02], "backtest.windows": [8], "backtest.onsets": []}
    run(corpus, tmp_path, few)

    def never(_: Scorer, cloud: Any, *__: Any) -> None:
        raise AssertionError(f"{cloud.windows[0].label} was scored again")

    monkeypatch.setattr(Scorer, "score", never)
    ran = run(corpus, tmp_path, TRIED | {"backtest.windows": [8]})
    assert "13 windows with the one before the range, 12 already scored" in ran.err  # the short one has no numbers
    assert rows_of(tmp_path, 8, 0.0001) == rows_of(done, 8, 0.0001)
    with pytest.raises(AssertionError, match="was scored again"):  # another reference
        run(corpus, tmp_path, TRIED)


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from jobs import run
from gpudrift.scoring import Scorer
real, scored = Scorer.score, []
def score(self, *args):
    if len(scored) == 15:
        os._exit(9)
    scored.append(args)
    return real(self, *args)
Scorer.score = score
run(Path({corpus!r}), Path({output!r}), {settings!r})
"""


def test_killed_it_goes_on_where_it_stopped(corpus: Path, done: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    paths = [str(ROOT), str(ROOT / "tests")]
    script = KILLED.format(paths=paths, corpus=str(corpus), output=str(output), settings=TRIED)
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert killed.returncode == 9
    assert not (output / "backtest.json").exists()
    assert len(list(output.glob("backtest/*/2026-*.json"))) == 15
    ran = run(corpus, output, TRIED)
    already = re.findall(r"(\d+) already scored", ran.err)
    assert already == ["12", "3"]
    for name in ("backtest.json", "backtest.parquet"):
        assert (output / name).read_bytes() == (done / name).read_bytes()


def test_a_window_whose_rows_or_file_changed_is_scored_again(corpus: Path, tmp_path: Path) -> None:
    settings = TRIED | {"backtest.windows": [8]}
    table, source, output = table_of(corpus), tmp_path / "c.parquet", tmp_path / "out"
    last = slice_of(table, 23)
    pq.write_table(table.slice(0, len(table) - 10), source)
    run(source, output, settings)
    before = rows_of(output, 8, 0.01)
    run(source, output, settings | {"windows.min_rows": ROWS - 5})
    found = [row["verdict"] for row in rows_of(output, 8, 0.01)]
    assert found == [row["verdict"] for row in before[:-1]] + ["insufficient"]  # though it had been scored
    pq.write_table(table, source)
    (damaged,) = output.glob(f"backtest/*/{label(15)}.json")
    damaged.write_text(damaged.read_text(encoding="utf-8")[:200], encoding="utf-8")
    (older,) = output.glob(f"backtest/*/{label(14)}.json")
    older.write_text(older.read_text(encoding="utf-8").replace('"format": 1', '"format": 0'), encoding="utf-8")
    ran = run(source, output, settings)
    assert "13 windows with the one before the range, 9 already scored" in ran.err
    after = rows_of(output, 8, 0.01)
    assert (before[-1]["rows"], after[-1]["rows"]) == (ROWS - 10, len(last))
    assert after[:-1] == before[:-1]
    ran = run(source, output, settings | {"quality.max_bad_fraction": 0.5})  # other rows may be read
    assert "13 windows with the one before the range, 0 already scored" in ran.err


def slice_of(table: pa.Table, week: int) -> pa.Table:
    start = week * ROWS - (ROWS - 40 if week > 18 else 0)
    return table.slice(start, ROWS)


def test_the_jobs_own_reference_and_history_stay_as_they_are(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path, SPAN | {"run_date": "2026-06-01"})

    def held() -> dict[str, bytes]:
        files = [f for name in ("reference", "history") for f in (tmp_path / name).rglob("*") if f.suffix]
        return {str(f.relative_to(tmp_path)): f.read_bytes() for f in files if f.suffix != ".lock"}

    before = held()
    assert len(before) >= 4
    run(corpus, tmp_path, TRIED | {"backtest.windows": [8]})
    run(corpus, tmp_path, {"job": "backtest"})  # the range is that of the pinned reference
    assert held() == before
    assert (
        setting(tmp_path, 11)["reference"]["id"]
        == next(name for name in sorted(before) if "safetensors" in name).split("-")[1]
    )
    assert {path.name for path in (tmp_path / "backtest").glob("reference-*")} == {"reference-8", "reference-11"}


def test_an_unusable_reference_is_said(corpus: Path, tmp_path: Path) -> None:
    table = table_of(corpus)
    short = pa.concat_tables([table.slice(0, 5 * ROWS + 40), table.slice(6 * ROWS)])
    pq.write_table(short, tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out", TRIED | {"backtest.windows": [8], "backtest.warn_p": []})
    found = setting(tmp_path / "out", 8)
    assert found["verdicts"] == {"stable": 0, "warning": 0, "alert": 0, "insufficient": 12}
    assert "7 usable reference windows" in found["reference"]["unusable"]
    assert "8 at 0.01: every verdict is insufficient: 7 usable reference windows" in ran.err
    assert summary(tmp_path / "out")["recommendation"] == "no setting has a reference that can carry a verdict"


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"backtest.start": "2026-03-16"}, "backtest.start", "2026-03-30 .* or later"),
        ({"backtest.start": "2027-01-01"}, "backtest.start, backtest.end", "2026-03-30 .* to 2026-06-2"),
        ({"backtest.end": "2026-04-01"}, "backtest.start, backtest.end", "no complete window"),
        ({"backtest.windows": [13]}, "backtest.windows", r"8 \(calibrate.min_windows\) to 12"),
        ({"backtest.windows": [7]}, "backtest.windows", r"8 \(calibrate.min_windows\) to 12"),
        ({"backtest.warn_p": [0.01, 0.06]}, "backtest.warn_p", r"at most calibrate.clear_p \(0.05\)"),
        ({"backtest.onsets": ["2026-03-29"]}, "backtest.onsets", "2026-03-30 to 2026-06-22 .excluded."),
        ({"backtest.onsets": ["2026-06-22"]}, "backtest.onsets", "2026-03-30 to 2026-06-22 .excluded."),
        ({"backtest.quiet": ["2026-03-31..2026-04-12"]}, "backtest.quiet", "no whole window"),
        ({"backtest.quiet": ["2025-03-31..2025-06-12"]}, "backtest.quiet", "no whole window"),
        ({"backtest.quiet": ["2026-03-31..2026-06-12"]}, "backtest.quiet", f"holds a known onset(.|\n)*{ONSET} is one"),
        ({"backtest.onsets": ["soon"]}, "backtest.onsets", "not a date"),
        ({"backtest.onsets": ["2026-05-01", "2026-05-01 x"]}, "backtest.onsets", "different dates"),
        ({"backtest.quiet": ["2026-04-01"]}, "backtest.quiet", "not a range of dates(.|\n)*start before end"),
        ({"backtest.quiet": ["2026-05-01..2026-04-01"]}, "backtest.quiet", "start before end"),
        ({"backtest.quiet": ["2026-05-01..then"]}, "backtest.quiet", "not a date"),
        ({"backtest.windows": [12, 12]}, "backtest.windows", "different numbers"),
        ({"backtest.windows": [2]}, "backtest.windows", "3 to 10000"),
        ({"backtest.warn_p": [0.5]}, "backtest.warn_p", "below 0.5"),
        ({"backtest.warn_p": [0.01, 0.01]}, "backtest.warn_p", "different thresholds"),
        ({"backtest.start": "x"}, "backtest.start", "not a date"),
        ({"backtest.start": "2026-05-01", "backtest.end": "2026-05-01"}, "backtest.end", "a date after backtest.start"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_scored(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], field: str, said: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a reference was pinned")

    monkeypatch.setattr("gpudrift.backtest.pin_reference", never)
    with pytest.raises(ConfigError, match=said) as error:
        run(corpus, tmp_path, TRIED | changes)
    assert (error.value.field, error.value.exit_code) == (field, 1)
    assert error.value.allowed


def test_every_key_and_column_is_documented(done: Path) -> None:
    def paths(value: Any, path: str = "") -> set[str]:
        if isinstance(value, list):
            return set().union(*(paths(item, f"{path}[]") for item in value))
        if not isinstance(value, dict):
            return set()
        here = {f"{path}.{key}" if path else key for key in value}
        return here.union(*(paths(item, f"{path}.{key}" if path else key) for key, item in value.items()))

    text = (ROOT / "docs" / "backtest.md").read_text(encoding="utf-8")

    def documented(heading: str) -> set[str]:
        section = re.split(rf"^## {heading}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
        return set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))

    assert paths(summary(done)) == documented("backtest.json")
    assert set(pq.read_schema(done / "backtest.parquet").names) == documented("backtest.parquet")
