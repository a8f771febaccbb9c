"""The job end to end, in this process: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from jobs import FIRST_DRIFTED, LAST, ROWS, WEEKS, make_corpus, make_job, run, table_of, vectors, week, with_vectors
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from gpudrift import reference, scoring
from gpudrift.config import to_plain
from gpudrift.errors import ConfigError, DataError, InsufficientDataError, LockedError, ReferenceMismatchError
from gpudrift.files import exclusive

ROOT = Path(__file__).resolve().parents[1]
DRAWN = ("pca", "pc1", "components", "witness", "clusters", "history", "summary")
PICTURES = {f"{name}.{kind}" for name in DRAWN for kind in ("png", "svg")}


def energy(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The definition, dense: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, the diagonal left out."""
    n, m = len(x), len(y)
    return float(2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1)))


@pytest.fixture
def pinned_copy(pinned: Path, tmp_path: Path) -> Path:
    """An output directory that holds a pinned reference of the quiet corpus."""
    return Path(shutil.copytree(pinned, tmp_path / "out"))


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_a_quiet_corpus_is_stable_and_everything_is_written(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path / "out")
    assert (ran.code, ran.result["verdict"], ran.result["window"]["label"]) == (0, "stable", LAST)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml", "drifted_rows.parquet", "history", "index.html", "metrics.prom", "plots", "reference",
        "report.html", "reports", "result.json", "scores.parquet",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == PICTURES
    assert ran.out.startswith(f"STABLE  {LAST} shows no drift")
    assert "no windows.reference given: the first 12 complete windows" in ran.err  # the default is announced

    # an insufficient run into the same directory: the clouds' pictures go, what others put there stays
    (tmp_path / "out" / "plots" / "mine.png").write_bytes(b"")
    pq.write_table(half_a_last_week(quiet), tmp_path / "short.parquet")
    assert run(tmp_path / "short.parquet", tmp_path / "out").code == 30
    left = {"history.png", "history.svg", "summary.png", "summary.svg", "mine.png"}
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == left


def half_a_last_week(corpus: Path) -> pa.Table:
    """The corpus without every other row of its last week."""
    table = table_of(corpus)
    return table.filter(pa.array([k < ROWS * 13 or k % 2 == 0 for k in range(len(table))]))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("run_date", "fail_on", "verdict", "code"),
    [
        ("2026-04-01", "never", "warning", 0),  # the first drifted week
        ("2026-04-01", "alert", "warning", 0),
        ("2026-04-01", "warn", "warning", 10),
        (None, "never", "alert", 0),
        (None, "alert", "alert", 20),
        (None, "warn", "alert", 20),
        ("2026-03-25", "warn", "stable", 0),  # the week before the drift
    ],
)
def test_two_drifted_weeks_alert_and_the_first_only_warns(
    drifted: Path, tmp_path: Path, run_date: str | None, fail_on: str, verdict: str, code: int
) -> None:
    ran = run(drifted, tmp_path, {"run_date": run_date, "alert.fail_on": fail_on})
    assert (ran.result["verdict"], ran.code, ran.result["exit_code"]) == (verdict, code, code)


@pytest.mark.usefixtures("no_pictures")
def test_a_first_run_scores_the_window_before_and_a_second_finds_it_in_the_history(
    drifted: Path, tmp_path: Path
) -> None:
    first = run(drifted, tmp_path)
    assert first.result["run"] | {"ended": 0, "seconds": 0, "engine": 0, "sinks": 0} == {
        "ended": 0, "seconds": 0, "engine": 0, "reference": "made", "previous": "scored", "sinks": 0,
    }  # fmt: skip
    assert (first.result["previous"]["window"], first.result["previous"]["verdict"]) == (FIRST_DRIFTED, "warning")
    history = tmp_path / "history" / "job" / first.result["reference"]["id"]
    assert {file.name for file in history.iterdir()} == {f"{FIRST_DRIFTED}.parquet", f"{LAST}.parquet"}
    second = run(drifted, tmp_path)
    assert (second.result["run"]["reference"], second.result["run"]["previous"]) == ("loaded", "history")
    assert second.result["verdict"] == "alert"


@pytest.mark.usefixtures("no_pictures")
def test_too_few_rows_is_insufficient_data_and_no_score(quiet: Path, tmp_path: Path) -> None:
    pq.write_table(half_a_last_week(quiet), tmp_path / "short.parquet")
    ran = run(tmp_path / "short.parquet", tmp_path / "out")
    assert ran.code == ran.result["exit_code"] == 30
    assert ran.result["verdict"] == "insufficient"
    assert ran.result["reason"] == f"75 rows in {LAST}; windows.min_rows is 100"
    assert (ran.result["metrics"], ran.result["calibration"], ran.result["rows"]["current"]) == ({}, None, 75)
    assert ran.result["quality"] is None  # they are not even read
    assert pq.read_table(tmp_path / "out" / "scores.parquet").column("value").to_pylist() == [None]


@pytest.mark.usefixtures("no_pictures")
def test_a_window_smaller_than_the_references_has_the_usual_movement_recomputed(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    pq.write_table(table.slice(0, ROWS * 13 + 120), tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out", {"run_date": "2026-04-06"})
    found = ran.result["calibration"]
    assert (found["aa_recomputed"], found["aa_n"], ran.result["reference"]["aa_n"]) == (True, 120, ROWS)
    assert found["null_sd"] > ran.result["reference"]["null_sd"]
    assert any("recomputed at 120 rows" in note for note in ran.result["notes"])


@pytest.mark.usefixtures("no_pictures")
def test_a_reference_of_too_few_windows_gives_every_metric_and_no_verdict(quiet: Path, tmp_path: Path) -> None:
    few = {"windows.reference.start": "2026-01-05", "windows.reference.end": "2026-02-23"}
    ran = run(quiet, tmp_path, few)
    assert (ran.code, ran.result["verdict"]) == (30, "insufficient")
    assert ran.result["reason"] == ("unstable reference: 7 usable reference windows; calibrate.min_windows is 8")
    assert ran.result["metrics"]["energy"]["value"] == ran.result["calibration"]["score"]
    assert run(quiet, tmp_path, few | {"calibrate.min_windows": 7}).result["verdict"] == "stable"


def burst(corpus: Path, weeks: tuple[int, ...]) -> pa.Table:
    """The corpus with some weeks moved far away, each to a place of its own."""
    table = table_of(corpus)
    values = vectors(table)
    for k in weeks:
        values[week(k), k] += np.float32(2)
    return with_vectors(table, values)


@pytest.mark.usefixtures("no_pictures")
def test_bursts_leave_the_reference_and_are_listed(quiet: Path, tmp_path: Path) -> None:
    pq.write_table(burst(quiet, (3, 7)), tmp_path / "two.parquet")
    ran = run(tmp_path / "two.parquet", tmp_path / "out")
    assert ran.result["verdict"] == "stable"
    assert [w["label"] for w in ran.result["reference"]["dropped"]] == ["2026-W05", "2026-W09"]
    assert len(ran.result["reference"]["windows"]) == 10
    assert min(w["aa_score"] for w in ran.result["reference"]["dropped"]) > 0.05
    assert "2026-W05" in next(note for note in ran.result["notes"] if "hygiene" in note)
    again = run(tmp_path / "two.parquet", tmp_path / "out")
    assert again.lasting == ran.lasting

    pq.write_table(burst(quiet, (1, 4, 7, 10)), tmp_path / "four.parquet")
    ran = run(tmp_path / "four.parquet", tmp_path / "out4")
    assert (ran.code, ran.result["verdict"]) == (30, "insufficient")
    assert ran.result["reason"].startswith("unstable reference: 4 of 12 reference windows")
    assert ran.result["metrics"]["energy"]["value"] is not None


@pytest.mark.usefixtures("no_pictures")
def test_a_gate_that_cannot_be_judged_is_said(quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scoring.gate

    def without_residual(*given: Any) -> Any:
        return tuple(found for found in real(*given) if found.metric != "residual_energy")

    monkeypatch.setattr(scoring, "gate", without_residual)
    said = "without a usual movement to be judged by, and so without a say: residual_energy"
    ran = run(quiet, tmp_path)
    assert said in ran.result["notes"]
    assert "residual_energy" not in {gate["metric"] for gate in ran.result["gates"]}
    ran = run(quiet, tmp_path, {"calibrate.gates": ["residual_energy"]})
    assert (ran.code, ran.result["verdict"]) == (30, "insufficient")
    assert ran.result["reason"] == "none of the metrics that gate can be judged: residual_energy"
    ran = run(quiet, tmp_path, {"calibrate.gates": ["energy"]})
    assert said not in ran.result["notes"]


@pytest.mark.usefixtures("no_pictures")
def test_segments_asked_for_later_have_a_window_before_them(drifted: Path, tmp_path: Path) -> None:
    more = {"source.segment_columns": ["language"], "segments.min_rows": 8, "segments.panel": False}
    run(drifted, tmp_path / "later")
    later = run(drifted, tmp_path / "later", more)
    first = run(drifted, tmp_path / "first", more)
    assert "alert" in {segment["verdict"] for segment in first.result["segments"]}
    assert later.result["segments"] == first.result["segments"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("job", ["run", "backfill"])
def test_a_refused_run_leaves_no_result_of_an_earlier_one(quiet: Path, pinned_copy: Path, job: str) -> None:
    run(quiet, pinned_copy, {"job": job})
    left = pinned_copy / {"run": "result.json", "backfill": "backfill.json"}[job]
    assert left.exists()
    with pytest.raises(InsufficientDataError):
        run(quiet, pinned_copy, {"job": job, "run_date": "2030-01-01"})
    assert not left.exists()


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_float64_is_the_definition(drifted: Path, tmp_path: Path) -> None:
    ran = run(drifted, tmp_path, {"precision": "float64"})
    values = vectors(table_of(drifted)).astype(np.float64)
    x, y = values[: 12 * ROWS], values[week(13)]
    assert ran.result["precision"] == "float64"
    assert ran.result["rows"] == {"current": ROWS, "reference": 12 * ROWS}
    # the job holds rows centred by the reference's mean in float32
    assert ran.result["metrics"]["energy"]["value"] == pytest.approx(energy(x, y), rel=1e-5)
    mean = x.mean(0)
    x32, y32 = ((part - mean).astype(np.float32).astype(np.float64) for part in (x, y))
    assert ran.result["metrics"]["energy"]["value"] == pytest.approx(energy(x32, y32), rel=1e-9)
    mmd = ran.result["metrics"]["mmd2_b2"]
    gram = {
        (i, j): np.exp(-(cdist(a, b) ** 2) / (2 * mmd["bandwidth"] ** 2))
        for i, a in enumerate((x32, y32))
        for j, b in enumerate((x32, y32))
    }
    n, m = len(x), len(y)
    expected = (gram[0, 0].sum() - n) / (n * (n - 1)) + (gram[1, 1].sum() - m) / (m * (m - 1)) - 2 * gram[0, 1].mean()
    assert mmd["value"] == pytest.approx(expected, rel=1e-9)
    single = run(drifted, tmp_path / "single").result
    assert single["metrics"]["energy"]["value"] == pytest.approx(energy(x, y), rel=1e-4)
    assert single["precision"] == "float32"


@pytest.mark.usefixtures("no_pictures")
def test_a_window_of_the_reference_is_scored_against_the_others(quiet: Path, pinned_copy: Path) -> None:
    ran = run(quiet, pinned_copy, {"run_date": "2026-02-04"})  # week 4
    values = vectors(table_of(quiet)).astype(np.float64)
    others = np.concatenate([values[week(k)] for k in range(12) if k != 4])
    label = ran.result["window"]["label"]
    assert label == "2026-W06"
    assert ran.result["metrics"]["energy"]["value"] == pytest.approx(energy(others, values[week(4)]), abs=1e-6)
    assert ran.result["calibration"]["in_reference"] is True
    assert len(ran.result["calibration"]["aa_scores"]) == 11
    assert label not in ran.result["calibration"]["aa_scores"]
    assert any("scored against the other reference windows" in note for note in ran.result["notes"])
    own = next(w for w in ran.result["reference"]["windows"] if w["label"] == label)
    assert own["aa_score"] == pytest.approx(energy(others, values[week(4)]), abs=1e-6)  # all weeks are n0 long


@pytest.mark.usefixtures("no_pictures")
def test_rows_of_one_user_widen_the_standard_error(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "users", rows_per_user=8.0, spread=2.0, clusters=1)
    rows, users = (
        run(corpus, tmp_path / name, {"source.cluster_column": column}).result["metrics"]["energy"]
        for name, column in (("rows", None), ("users", "user"))
    )
    assert users["se"] > 1.3 * rows["se"]
    assert users["value"] != rows["value"]  # pairs of one user are left out
    assert (users["variance"], rows["variance"] is None) == (None, False)


@pytest.mark.usefixtures("no_pictures")
def test_a_cluster_column_that_leaves_no_pair_is_refused(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    one = table.append_column("team", pa.array(["a"] * len(table)))
    pq.write_table(one, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="one cluster") as error:
        run(tmp_path / "c.parquet", tmp_path / "out", {"source.cluster_column": "team"})
    assert error.value.field == "source.cluster_column"


@pytest.mark.usefixtures("no_pictures")
def test_the_row_filter_decides_what_is_scored(quiet: Path, tmp_path: Path) -> None:
    english = table_of(quiet).filter(pa.compute.equal(table_of(quiet)["language"], "en"))
    pq.write_table(english, tmp_path / "en.parquet")
    plain = run(tmp_path / "en.parquet", tmp_path / "plain", {"windows.min_rows": 30})
    filtered = run(quiet, tmp_path / "out", {"windows.min_rows": 30, "source.filter": [["language", "==", "en"]]})
    assert filtered.result["metrics"] == plain.result["metrics"]


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("period", "least", "windows", "current", "first"),
    [
        ("day", 10, 12, "2026-04-12", "2026-01-05"),
        ("10d", 100, 8, "2026-04-01+10d", "2026-01-11+10d"),
        ("month", 100, 4, "2026-06", "2026-02"),
    ],
)
def test_periods(quiet: Path, tmp_path: Path, period: str, least: int, windows: int, current: str, first: str) -> None:
    corpus = quiet if period != "month" else make_corpus(tmp_path / "half_year", weeks=26, rows_per_week=50)
    settings = {"windows.period": period, "windows.min_rows": least, "calibrate.min_windows": 4}
    ran, again = (run(corpus, tmp_path / "out", settings) for _ in range(2))
    assert (ran.code, ran.result["verdict"]) == (0, "stable")
    assert ran.result["window"]["label"] == current
    assert ran.result["reference"]["windows"][0]["label"] == first
    assert len(ran.result["reference"]["windows"]) == windows
    assert again.lasting == ran.lasting
    assert again.result["run"]["reference"] == "loaded"


@pytest.mark.usefixtures("no_pictures")
def test_an_unfinished_window_is_flagged_and_scored_again_once_it_is_whole(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    corpus = tmp_path / "c.parquet"
    pq.write_table(table.slice(0, ROWS * 13 + 110), corpus)  # the last week ends on Saturday
    by_default = run(corpus, tmp_path / "out")
    assert by_default.result["window"]["label"] == FIRST_DRIFTED  # the last complete one
    assert [item["window"] for item in by_default.result["left_out"]] == [LAST]
    ran = run(corpus, tmp_path / "out", {"run_date": "2026-04-08"})
    assert ran.result["window"] | {"start": 0, "end": 0} == {"label": LAST, "start": 0, "end": 0, "complete": False}
    assert any(note.startswith(f"window {LAST} is unfinished") for note in ran.result["notes"])
    assert ran.result["rows"]["current"] == 110

    more = make_corpus(tmp_path / "more", weeks=15, drift_week=14)
    pq.write_table(table_of(more), corpus)
    ran = run(corpus, tmp_path / "out")
    assert (ran.result["window"]["label"], ran.result["previous"]["window"]) == ("2026-W16", LAST)
    assert ran.result["previous"]["rows"] == ROWS
    assert ran.result["run"]["previous"] == "scored"


@pytest.mark.usefixtures("no_pictures")
def test_a_run_date_outside_the_data_is_refused(quiet: Path, pinned_copy: Path) -> None:
    with pytest.raises(InsufficientDataError, match="no data in the window of the run date") as error:
        run(quiet, pinned_copy, {"run_date": "2026-05-01"})
    assert (error.value.field, error.value.exit_code) == ("run_date", 30)


@pytest.mark.usefixtures("no_pictures")
def test_a_reference_range_that_cuts_windows_leaves_them_out(quiet: Path, tmp_path: Path) -> None:
    span = {"windows.reference.start": "2026-01-07", "windows.reference.end": "2026-03-26"}
    ran, again = (run(quiet, tmp_path, span) for _ in range(2))
    assert [item["window"] for item in ran.result["reference"]["left_out"]] == ["2026-W02", "2026-W13"]
    assert len(ran.result["reference"]["windows"]) == 10
    assert again.lasting == ran.lasting


# --- bad rows -------------------------------------------------------------------------------------------------------


def damaged_rows(corpus: Path) -> pa.Table:
    """Two null and one NaN vector in the last week, one of zeros in the first."""
    table = table_of(corpus)
    values = vectors(table)
    values[-5] = np.nan
    values[3] = 0
    listed = list(values)
    listed[-2] = listed[-1] = None
    column = pa.array(listed, pa.list_(pa.float32(), 16))
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)


@pytest.mark.usefixtures("no_pictures")
def test_bad_rows_are_dropped_counted_and_bounded(quiet: Path, tmp_path: Path) -> None:
    table = damaged_rows(quiet)
    pq.write_table(table, tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out", {"quality.max_bad_fraction": 0.02})
    names = table["id"].to_pylist()
    counted = ("rows_read", "rows_kept", "bad_fraction", "dropped", "examples")
    assert {key: ran.result["quality"][key] for key in counted} == {
        "rows_read": 150,
        "rows_kept": 147,
        "bad_fraction": 0.02,
        "dropped": {"null": 2, "non_finite": 1},
        "examples": {"null": names[-2:], "non_finite": [names[-5]]},
    }
    assert ran.result["rows"] == {"current": 147, "reference": 12 * ROWS - 1}
    assert "3 of 150 rows of 2026-W15 dropped: 1 non_finite, 2 null" in ran.result["notes"]
    assert "1 of 1,800 rows of the reference dropped: 1 zero" in ran.result["notes"]
    assert run(tmp_path / "c.parquet", tmp_path / "out", {"quality.max_bad_fraction": 0.02}).lasting == ran.lasting

    for settings in ({"quality.max_bad_fraction": 0.019}, {"quality.on_bad_rows": "fail"}):
        with pytest.raises(DataError, match="rows of 2026-W"):
            run(tmp_path / "c.parquet", tmp_path / "strict", settings)
    assert not (tmp_path / "strict" / "result.json").exists()


@pytest.mark.usefixtures("no_pictures")
def test_bad_rows_can_leave_too_few(quiet: Path, tmp_path: Path) -> None:
    pq.write_table(damaged_rows(quiet), tmp_path / "c.parquet")
    span = {"windows.reference.start": "2026-01-12", "windows.reference.end": "2026-03-30"}
    ran = run(tmp_path / "c.parquet", tmp_path / "out", span | {"windows.min_rows": 149, "quality.max_bad_fraction": 1})
    assert (ran.code, ran.result["verdict"], ran.result["quality"]["rows_kept"]) == (30, "insufficient", 147)


# --- the same bytes -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_rerun_writes_the_same_bytes_but_for_the_run_object(drifted: Path, tmp_path: Path) -> None:
    first = run(drifted, tmp_path / "out")
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")}
    second = run(drifted, tmp_path / "out")
    assert (first.result["run"]["reference"], second.result["run"]["reference"]) == ("made", "loaded")
    assert first.lasting == second.lasting
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")} == files
    assert run(drifted, tmp_path / "out", {"seed": 1, "reference.path": str(tmp_path / "r")}).lasting != first.lasting


@pytest.mark.usefixtures("no_pictures")
def test_how_files_hold_the_rows_does_not_matter(drifted: Path, tmp_path: Path) -> None:
    first = run(drifted, tmp_path / "out")
    table = table_of(drifted)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    other = tmp_path / "other"
    other.mkdir()
    for k, start in enumerate(range(0, len(table), 700)):
        pq.write_table(shuffled.slice(start, 700), other / f"part-{9 - k}.parquet", row_group_size=33)
    # the reference pinned from the one layout fits the other, and threads change nothing either
    for threads in (1, 3):
        ran = run(other, tmp_path / "out", {"source.threads": threads})
        assert ran.result["run"]["reference"] == "loaded"
        for key in ("metrics", "calibration", "reference", "previous", "verdict"):
            assert json.dumps(ran.result[key]) == json.dumps(first.result[key])
    fresh = run(other, tmp_path / "fresh", {"reference.path": str(tmp_path / "out" / "reference2")})
    assert fresh.result["run"]["reference"] == "made"
    assert json.dumps(fresh.result["metrics"]) == json.dumps(first.result["metrics"])
    assert fresh.result["reference"]["id"] == first.result["reference"]["id"]


@pytest.mark.usefixtures("no_pictures")
def test_the_result_holds_the_whole_configuration(quiet: Path, pinned_copy: Path) -> None:
    settings = {"job": "run", "alert.fail_on": "warn", "name": "n"}
    ran = run(quiet, pinned_copy, settings)
    basis = {"source.uri": str(quiet), "source.id_column": "id", "device": "cpu", "output.dir": str(pinned_copy)}
    assert ran.result["config"] == to_plain(make_job(basis | settings))


# --- the history ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_the_history_is_one_data_set_and_a_rerun_replaces_its_own_rows(drifted: Path, tmp_path: Path) -> None:
    for name, day in (("a", "2026-03-25"), ("a", None), ("a", None), ("b", None)):
        ran = run(drifted, tmp_path / name, {"name": name, "run_date": day, "history.path": str(tmp_path / "history")})
    rows = ds.dataset(tmp_path / "history", format="parquet", exclude_invalid_files=True).to_table().to_pylist()
    keys = [(r["job"], r["reference"], r["window"], r["segment"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys))
    pinned = ran.result["reference"]["id"]
    assert {r["reference"] for r in rows} == {pinned, f"{pinned}-previous", f"{pinned}-year_ago"}
    rows = [r for r in rows if r["reference"] == pinned]
    windows = {(r["job"], r["window"]): r["verdict"] for r in rows if r["metric"] == "energy"}
    assert windows == {
        ("a", "2026-W12"): "stable",
        ("a", "2026-W13"): "stable",
        ("a", "2026-W14"): "warning",
        ("a", "2026-W15"): "alert",
        ("b", "2026-W14"): "warning",
        ("b", "2026-W15"): "alert",
    }
    stored = {r["metric"]: r["value"] for r in rows if (r["job"], r["window"]) == ("b", LAST)}
    assert stored == {name: metric["value"] for name, metric in ran.result["metrics"].items()}
    scores = pq.read_table(tmp_path / "b" / "scores.parquet").to_pylist()
    assert scores == [r for r in rows if (r["job"], r["window"]) == ("b", LAST)]


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_history_file_is_named(drifted: Path, tmp_path: Path) -> None:
    ran = run(drifted, tmp_path)
    file = tmp_path / "history" / "job" / ran.result["reference"]["id"] / f"{FIRST_DRIFTED}.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="history cannot be read") as error:
        run(drifted, tmp_path)
    assert str(error.value.where) == str(file)


# --- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_job_reference_pins_once_and_replaces_on_request_alone(quiet: Path, tmp_path: Path) -> None:
    made = run(quiet, tmp_path, {"job": "reference"})
    assert made.code == 0
    artifact = {path.name: path.read_bytes() for path in (tmp_path / "reference").iterdir()}
    assert set(artifact) == {"reference.json", *(name for name in artifact if name.endswith(".safetensors"))}
    assert len(artifact) == 2
    with pytest.raises(ConfigError, match="not overwritten") as error:
        run(quiet, tmp_path, {"job": "reference", "seed": 1})
    assert (error.value.field, error.value.exit_code) == ("reference.replace", 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "reference").iterdir()} == artifact
    assert run(quiet, tmp_path).result["run"]["reference"] == "loaded"
    assert run(quiet, tmp_path, {"job": "reference", "seed": 1, "reference.replace": True}).code == 0
    replaced = {path.name: path.read_bytes() for path in (tmp_path / "reference").iterdir()}
    assert len(replaced) == 2
    assert not set(replaced.values()) & set(artifact.values())


def test_job_reference_says_when_no_verdict_can_come_of_it(quiet: Path, tmp_path: Path) -> None:
    few = {"windows.reference.start": "2026-01-05", "windows.reference.end": "2026-02-09"}
    ran = run(quiet, tmp_path, few | {"job": "reference"})
    assert ran.code == 30
    assert "every verdict against it will be insufficient: 5 usable reference windows" in ran.err
    with pytest.raises(InsufficientDataError, match="fewer than three windows"):
        run(quiet, tmp_path / "b", few | {"windows.reference.end": "2026-01-19", "job": "reference"})


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"precision": "float64"}, "precision"),
        ({"metrics.bins": 12}, "metrics.bins"),
        ({"project.components": 8}, "project.components"),
        ({"windows.period": "day"}, "windows.period"),
        ({"windows.reference.start": "2026-01-12", "windows.reference.end": "2026-03-30"}, "windows.reference"),
        ({"source.encoder_id": "other-model"}, "source.encoder_id"),
        ({"source.filter": [["language", "==", "en"]]}, "source.filter"),
    ],
)
def test_a_reference_of_other_settings_is_refused(
    quiet: Path, pinned_copy: Path, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(ReferenceMismatchError, match=r"what to do: make a new reference") as error:
        run(quiet, pinned_copy, settings)
    assert (error.value.field, error.value.exit_code) == (field, 30)
    assert not (pinned_copy / "result.json").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("settings", [{"name": "x"}, {"alert.fail_on": "warn"}, {"calibrate.warn_p": 0.02}])
def test_settings_that_leave_scores_alone_are_not_refused(
    quiet: Path, pinned_copy: Path, settings: dict[str, Any]
) -> None:
    assert run(quiet, pinned_copy, settings).result["run"]["reference"] == "loaded"


@pytest.mark.usefixtures("no_pictures")
def test_embeddings_of_another_dimension_are_refused(pinned_copy: Path, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "other", dim=24)
    with pytest.raises(ReferenceMismatchError) as error:
        run(other, pinned_copy)
    assert (error.value.field, error.value.value, error.value.allowed) == (
        "source.embedding_column (dimension)", 24, 16,
    )  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("change", ["a value", "a row gone", "a row more"])
def test_reference_rows_that_changed_are_refused(quiet: Path, pinned_copy: Path, tmp_path: Path, change: str) -> None:
    table = table_of(quiet)
    if change == "a value":
        values = vectors(table)
        values[700, 3] = np.nextafter(values[700, 3], np.float32(9))
        table = with_vectors(table, values)
    elif change == "a row gone":
        table = pa.concat_tables([table.slice(0, 700), table.slice(701)])
    else:
        table = pa.concat_tables([table, table.slice(700, 1)])
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ReferenceMismatchError, match="2026-W06 are not those the reference was made of"):
        run(tmp_path / "c.parquet", pinned_copy)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("damage", ["json cut", "tensors cut", "tensors gone", "bit flipped", "format"])
def test_a_damaged_reference_is_refused_and_can_be_replaced(quiet: Path, pinned_copy: Path, damage: str) -> None:
    artifact = pinned_copy / "reference"
    meta, tensors = artifact / "reference.json", next(artifact.glob("*.safetensors"))
    if damage == "json cut":
        meta.write_bytes(meta.read_bytes()[:-100])
    elif damage == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "tensors gone":
        tensors.unlink()
    elif damage == "bit flipped":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    else:
        text = meta.read_text(encoding="utf-8")
        meta.write_text(text.replace(f'"format_version": {reference.FORMAT_VERSION}', '"format_version": 99'))
    with pytest.raises(ReferenceMismatchError, match="another format" if damage == "format" else "damaged") as error:
        run(quiet, pinned_copy)
    assert error.value.where == meta
    assert run(quiet, pinned_copy, {"job": "reference", "reference.replace": True}).code == 0
    assert run(quiet, pinned_copy).result["verdict"] == "stable"


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_second_run_at_once_ends_without_touching_anything(quiet: Path, tmp_path: Path) -> None:
    history = tmp_path / "history"
    with exclusive(history / ".job.lock"), pytest.raises(LockedError, match="another run of this job") as error:
        run(quiet, tmp_path / "out", {"history.path": str(history)})
    assert error.value.exit_code == 1
    assert str(os.getpid()) in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    with exclusive(history / ".other.lock"):  # another job's lock does not matter
        assert run(quiet, tmp_path / "out", {"history.path": str(history), "job": "reference"}).code == 0


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("job", ["run", "reference", "backfill", "compare"])
def test_an_output_directory_that_cannot_be_made(quiet: Path, tmp_path: Path, place: str, job: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="this directory cannot be made") as error:
        run(quiet, tmp_path / place, {"job": job})
    assert (error.value.field, error.value.exit_code) == ("output.dir", 1)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_history_that_cannot_be_written(quiet: Path, tmp_path: Path) -> None:
    (tmp_path / "history" / ".job.lock").mkdir(parents=True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in ("history", "file", "file/below"):
        with pytest.raises(ConfigError, match="cannot be") as error:
            run(quiet, tmp_path / "out", {"history.path": str(tmp_path / path)})
        assert error.value.field == "history.path"


KILLED = """
import os, pathlib, sys
import torch
torch.set_num_threads(1)  # a fork must not inherit a thread pool
sys.path.insert(0, {tests!r})
from gpudrift.report import pictures
from jobs import run
pictures.draw = lambda *_: []
real = pathlib.Path.replace
for k in range({times}):
    child = os.fork()
    if child == 0:
        left = k

        def replace(self, target):
            global left
            if left == 0:
                os._exit(9)
            left -= 1
            return real(self, target)

        pathlib.Path.replace = replace
        run({corpus!r}, pathlib.Path({output!r}) / str(k))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("before", ["nothing", "a run of another week"])
def test_a_run_killed_at_any_file_leaves_no_broken_one_and_reruns_clean(
    drifted: Path, tmp_path: Path, before: str
) -> None:
    names = 16 if before == "nothing" else 14  # the second loads its reference
    clean = run(drifted, tmp_path / "clean")
    for k in range(names + 1):
        if before != "nothing":
            run(drifted, tmp_path / str(k), {"run_date": "2026-03-25"})
    script = KILLED.format(tests=str(Path(__file__).parent), times=names + 1, corpus=str(drifted), output=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    # each file is renamed once: killed before each of them, and before none
    assert done.stdout.split() == ["9"] * names + ["0"], done.stderr
    for k in range(names):
        output = tmp_path / str(k)
        for file in output.rglob("[!.]*.parquet"):
            pq.read_table(file)
        for file in output.rglob("[!.]*.json"):
            json.loads(file.read_text(encoding="utf-8"))
        if reference.exists(output / "reference"):
            reference.load(output / "reference", "cpu")
        assert (
            not (output / "result.json").exists()
            or json.loads((output / "result.json").read_text())["window"]["label"] != LAST
        )
        ran = run(drifted, output)
        assert (ran.result["verdict"], ran.result["metrics"]) == ("alert", clean.result["metrics"])


# --- result.json is documented --------------------------------------------------------------------------------------

OPEN = {"metrics": "<name>", "aa_scores": "<window>", "dropped": "<cause>", "examples": "<cause>", "seconds": "<stage>"}
OPEN |= {"tasks": "<kind>", "bytes": "<stage>"}
CLOSED = ("config", "run.engine.workers", "run.engine.measures")  # told elsewhere: by the settings, by each engine


def key_paths(value: Any, path: str = "") -> Iterator[str]:
    """Every key of a JSON value, entries of lists as ``[]`` and keys that come from data by their placeholder."""
    if isinstance(value, list):
        for item in value:
            yield from key_paths(item, f"{path}[]")
    elif isinstance(value, dict) and path not in CLOSED:
        parent = path.rsplit(".", 1)[-1]
        for key, item in value.items():
            name = str(OPEN.get(parent, key))
            here = f"{path}.{name}" if path else name
            yield here
            yield from key_paths(item, here)


def documented(heading: str) -> set[str]:
    """The keys of the tables under a heading of docs/result.md."""
    text = (ROOT / "docs" / "result.md").read_text(encoding="utf-8")
    section = re.split(rf"^## {heading}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))


@pytest.mark.usefixtures("no_pictures")
def test_every_key_of_result_json_is_documented_and_every_documented_key_exists(quiet: Path, tmp_path: Path) -> None:
    # a corpus with everything: a burst, a short week, bad rows, a last window without spread, an unfinished one after
    table = pa.concat_tables([damaged_rows(quiet).slice(0, ROWS * 5 + 40), damaged_rows(quiet).slice(ROWS * 6)])
    values: list[Any] = [None if v is None else np.array(v) for v in table["embedding"].to_pylist()]
    values[2 * ROWS : 3 * ROWS] = [v + 0.6 for v in values[2 * ROWS : 3 * ROWS]]
    values[-ROWS:-5] = [np.full(16, 0.25)] * (ROWS - 5)
    column = pa.array(values, pa.list_(pa.float32(), 16))
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", column)
    unfinished = table_of(make_corpus(tmp_path / "more", weeks=15)).slice(14 * ROWS, 50)
    schema = table.schema
    pq.write_table(pa.concat_tables([table, unfinished.cast(schema)]), tmp_path / "c.parquet")
    settings = {"quality.max_bad_fraction": 0.05}
    ran = run(tmp_path / "c.parquet", tmp_path / "out", settings)
    assert ran.result["verdict"] == "warning"
    insufficient = run(tmp_path / "c.parquet", tmp_path / "out", settings | {"run_date": "2026-02-09"})
    assert insufficient.code == 30
    moved = make_corpus(tmp_path / "moved", new_cluster=0.3, rows_per_user=3.0)
    weeks = [f"{date(2026, 1, 5) + timedelta(weeks=k)},{0.1 + 0.01 * (k % 3)},100" for k in range(WEEKS) if k != 5]
    (tmp_path / "outcomes.csv").write_text("\n".join(["week,no_answer,asked", *weeks]), encoding="utf-8")
    drift = run(
        moved,
        tmp_path / "quiet",
        {
            "source.segment_columns": ["cluster"],
            "segments.min_rows": 12,
            "outcomes.uri": str(tmp_path / "outcomes.csv"),
            "outcomes.time_column": "week",
            "outcomes.count_column": "asked",
            "outcomes.higher_is_worse": ["no_answer"],
        },
    )
    assert drift.result["phenomena"]
    assert any(segment["calibration"] for segment in drift.result["segments"])

    found = {path for some in (ran, insufficient, drift) for path in key_paths(some.result)}
    metrics = {path for path in found if path.startswith(("metrics.<name>.", "segments[].metrics."))}
    assert found - metrics == documented("Keys")
    # a note is of degenerate rows, which these are not
    of_metrics = {path.rpartition(".")[2] for path in metrics if path.count("<name>.")} | {"note"}
    assert of_metrics == documented("Keys of a metric")
    named = {re.sub(r"(pc|b)\d+$", r"\1<k>", name) for name in drift.result["metrics"]}
    assert named == documented("Metrics")


@pytest.mark.usefixtures("no_pictures")
def test_a_refused_run_leaves_the_metrics_of_the_last_success(quiet: Path, pinned_copy: Path) -> None:
    """Its job then goes stale by ``gpudrift_last_success_timestamp_seconds``."""
    run(quiet, pinned_copy)
    before = (pinned_copy / "metrics.prom").read_bytes()
    with pytest.raises(ConfigError):
        run(quiet, pinned_copy, {"source.embedding_column": "nothing"})
    assert (pinned_copy / "metrics.prom").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_a_table_of_product_metrics_that_cannot_be_read_ends_the_run_before_it_costs(
    quiet: Path, pinned_copy: Path
) -> None:
    run(quiet, pinned_copy)
    before = {file: file.read_bytes() for file in (pinned_copy / "history").rglob("*.parquet")}
    (pinned_copy / "metrics.csv").write_text("week,rate\n2026-01-05,high\n", encoding="utf-8")
    settings = {"outcomes.time_column": "week", "outcomes.lower_is_worse": ["rate"]}
    with pytest.raises(DataError, match=r"there is text in 'rate' that is no number"):
        run(quiet, pinned_copy, settings | {"outcomes.uri": str(pinned_copy / "metrics.csv")})
    assert {file: file.read_bytes() for file in (pinned_copy / "history").rglob("*.parquet")} == before
    assert not (pinned_copy / "result.json").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_sink_that_fails_is_told_and_changes_nothing_else(
    drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUDRIFT_WEBHOOK_URL", raising=False)
    clean = run(drifted, tmp_path / "clean", {"alert.fail_on": "alert"})
    (tmp_path / "failing" / "metrics.prom").mkdir(parents=True)  # a directory where the textfile should be
    failing = {"notify.webhook": "slack", "prometheus.push": "http://127.0.0.1:9", "prometheus.timeout_seconds": 5}
    ran = run(drifted, tmp_path / "failing", failing | {"alert.fail_on": "alert"})
    assert (ran.code, ran.result["verdict"]) == (clean.code, clean.result["verdict"]) == (20, "alert")
    assert [(one["sink"], one["ok"]) for one in ran.result["run"]["sinks"]] == [
        ("webhook", False), ("pushgateway", False), ("textfile", False),
    ]  # fmt: skip
    for name in ("webhook", "pushgateway", "textfile"):
        assert f"warning: {name}: " in ran.err
    nobody = run(drifted, tmp_path / "failing", {"prometheus.textfile": "~nosuchuser/x.prom"})
    assert (nobody.code, nobody.result["verdict"]) == (0, "alert")
    (sink,) = nobody.result["run"]["sinks"]
    assert (sink["sink"], sink["ok"], "home directory" in sink["reason"]) == ("textfile", False, True)


def test_the_walk_finds_keys_that_are_not_documented() -> None:
    assert list(key_paths({"a": {"b": [{"c": 1}]}, "metrics": {"energy": {"new": 1}}})) == [
        "a", "a.b", "a.b[].c", "metrics", "metrics.<name>", "metrics.<name>.new",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
def test_a_reference_pinned_from_other_data_is_named_as_the_cause(pinned_copy: Path, tmp_path: Path) -> None:
    from gpudrift.generate import generate

    generate(
        tmp_path / "later",
        start=date(2030, 1, 7),
        weeks=5,
        rows_per_week=150,
        dim=16,
        clusters=4,
        spread=0.35,
        rows_per_user=1.0,
        dtype="float32",
        drift_week=0,
        mean_shift=0.0,
        spread_change=1.0,
        new_cluster=0.0,
        reweight=0.0,
        seed=0,
        overwrite=False,
    )
    with pytest.raises(ReferenceMismatchError, match="made from other data"):
        run(tmp_path / "later", pinned_copy, {})
