"""The window before and the same window a year ago: scores against dense ones, what counts as usual, verdicts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from jobs import FIRST_DRIFTED, make_corpus, run, table_of, vectors, week, with_vectors
from make_cloud import dense_energy
from scipy import stats

from gpudrift import lagged
from gpudrift.calibrate import AANull, Limits, calibrate
from gpudrift.records import Cloud, Window
from gpudrift.source import ParquetSource
from gpudrift.windows import parse_period

pytestmark = pytest.mark.usefixtures("no_pictures")


def compared(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["with"]: found for found in result["compared"]}


def test_the_score_is_the_energy_between_the_two_windows(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path)
    rows = vectors(table_of(quiet)).astype(np.float64)
    found = compared(ran.result)["previous"]
    assert (found["window"], found["rows"], found["verdict"]) == (FIRST_DRIFTED, 150, "stable")
    wanted = dense_energy(rows[week(12)], rows[week(13)])
    assert found["calibration"]["score"] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    # usual: what the reference's own consecutive weeks differ by
    assert found["movement"] == "11 pairs of reference windows at this lag"
    usual = [dense_energy(rows[week(k - 1)], rows[week(k)]) for k in range(1, 12)]
    assert found["calibration"]["usual"] == 11
    assert found["calibration"]["aa_median"] == pytest.approx(np.median(usual), rel=1e-3, abs=1e-6)


def test_a_jump_warns_once_and_a_shifted_level_is_calm_again(drifted: Path, tmp_path: Path) -> None:
    first = run(drifted, tmp_path, {"run_date": "2026-04-01"})
    assert first.result["window"]["label"] == FIRST_DRIFTED
    assert compared(first.result)["previous"]["verdict"] == "warning"
    second = run(drifted, tmp_path)
    assert second.result["verdict"] == "alert"  # against the pinned reference
    assert compared(second.result)["previous"]["verdict"] == "stable"


def test_without_a_year_of_data_there_is_no_verdict_on_it(quiet: Path, tmp_path: Path) -> None:
    found = compared(run(quiet, tmp_path).result)["year_ago"]
    assert (found["verdict"], found["calibration"], found["rows"]) == ("insufficient", None, 0)
    assert found["window"] == "2025-W15"
    assert "2025-W15" in found["reason"]


def test_a_reference_that_cannot_carry_a_verdict_carries_none_of_these(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path, {"windows.reference.count": 5})
    assert ran.result["verdict"] == "insufficient"
    assert {found["verdict"] for found in ran.result["compared"]} == {"insufficient"}


def test_a_burst_that_a_window_is_compared_with_is_named(quiet: Path, tmp_path: Path) -> None:
    """The burst was an alarm against the week before it, and the week after it is one against the burst."""
    table = table_of(quiet)
    values = vectors(table)
    values[week(10)] += 0.8
    pq.write_table(with_vectors(table, values), tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out", {"run_date": "2026-03-23"})
    assert [w["label"] for w in ran.result["reference"]["dropped"]] == ["2026-W12"]
    found = compared(ran.result)["previous"]
    assert (found["window"], found["verdict"]) == ("2026-W12", "alert")
    assert "2026-W12 is a burst that reference hygiene dropped" in found["reason"]


def test_what_is_not_asked_for_is_not_compared(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path, {"calibrate.also": ["previous"]})
    assert list(compared(ran.result)) == ["previous"]
    ran = run(quiet, tmp_path, {"calibrate.also": []})
    assert ran.result["compared"] == []
    assert not list(tmp_path.glob("history/job/*-year_ago"))


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """67 weeks of 110 rows; the last three have drifted."""
    path = tmp_path_factory.mktemp("long") / "corpus"
    return make_corpus(path, weeks=67, rows_per_week=110, drift_week=64, mean_shift=0.4)


def test_a_year_ago_is_52_weeks_before_and_alerts_in_two_windows_running(long_corpus: Path, tmp_path: Path) -> None:
    ran = run(long_corpus, tmp_path)
    rows = vectors(table_of(long_corpus)).astype(np.float64)

    def of(k: int) -> slice:
        return slice(110 * k, 110 * (k + 1))

    found = compared(ran.result)["year_ago"]
    wanted = dense_energy(rows[of(14)], rows[of(66)])
    assert found["calibration"]["score"] == pytest.approx(wanted, rel=1e-4)
    assert found["verdict"] == "alert"  # a first run: the week before was compared with its year ago as well
    assert found["movement"] == "any two of the reference's 12 windows"
    assert found["calibration"]["usual"] == 66
    stored = sorted(path.name for path in tmp_path.glob("history/job/*-year_ago/*.parquet"))
    assert stored == ["2027-W14.parquet", "2027-W15.parquet"]
    rows_of_first = pq.read_table(next(tmp_path.glob("history/job/*-year_ago/2027-W14.parquet")), partitioning=None)
    assert rows_of_first["verdict"].to_pylist() == ["warning"]
    again = run(long_corpus, tmp_path)
    assert again.result["compared"] == ran.result["compared"]


def test_a_backfill_compares_as_single_runs_do_and_keeps_few_rows(
    long_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = {"backfill.start": "2027-03-01", "backfill.end": "2027-04-19"}

    def of(output: Path) -> dict[str, bytes]:
        return {path.parent.name + path.name: path.read_bytes() for path in output.glob("history/job/*-*/*.parquet")}

    run(long_corpus, tmp_path / "whole", {"job": "backfill", **span})
    monkeypatch.setattr(lagged, "KEPT_ROWS", 200)  # every window is forgotten and read again
    run(long_corpus, tmp_path / "thrifty", {"job": "backfill", **span})
    assert of(tmp_path / "whole") == of(tmp_path / "thrifty")
    shutil.copytree(tmp_path / "whole" / "reference", tmp_path / "single" / "reference")
    for monday in ("2027-04-05", "2027-04-12"):
        run(long_corpus, tmp_path / "single", {"run_date": monday})
    single, whole = of(tmp_path / "single"), of(tmp_path / "whole")
    assert single.items() <= whole.items()
    assert len(single) == 6


def test_a_backfill_reads_the_year_before_several_windows_at_a_time(
    long_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in files side by side is read side by side, each window once, and gives the same numbers."""
    real, reads = ParquetSource.read, list[list[str]]()

    def read(self: ParquetSource, windows: Sequence[Window], **named: Any) -> Cloud:
        reads.append([window.label for window in windows])
        return real(self, windows, **named)

    monkeypatch.setattr(ParquetSource, "read", read)
    histories = {}
    for ahead in (20_000, 250, 1):
        reads.clear()
        monkeypatch.setattr(lagged, "AHEAD_ROWS", ahead)
        output = tmp_path / str(ahead)
        run(long_corpus, output, {"job": "backfill", "backfill.start": "2027-03-08", "backfill.end": "2027-04-05"})
        histories[ahead] = {p.parent.name + p.name: p.read_bytes() for p in output.glob("history/job/*/*.parquet")}
        scored = [f"2027-W{k:02d}" for k in range(9, 14)]
        assert reads[1] == scored
        before = [label for labels in reads[2:] for label in labels]
        # the year before of each, and of the week before them, which is compared too: an alert needs two
        assert sorted(before) == [f"2026-W{k:02d}" for k in range(9, 15)] + ["2027-W07", "2027-W08"]
        assert max(map(len, reads[2:])) == {20_000: 6, 250: 2, 1: 1}[ahead]
    assert histories[250] == histories[1] == histories[20_000]


def test_pairs_that_share_windows_count_as_fewer() -> None:
    """66 energies between 12 windows hold no more than 12 windows do: 11 degrees of freedom."""
    scores = {str(k): 0.01 * (1 + k % 7) for k in range(66)}
    every = AANull(100, scores, 0.002)
    few = replace(every, independent=12)
    wide, narrow = (calibrate(0.2, 0.01, null, null_sd_now=0.002, limits=Limits()) for null in (few, every))
    assert wide.p_aa > narrow.p_aa
    assert wide.delta > narrow.delta
    u = np.log(np.array(list(scores.values())) + 0.002)

    t = (np.log(0.202) - u.mean()) / (max(u.std(ddof=1), 0.5) * np.sqrt(1 + 1 / 12))
    assert wide.p_aa == pytest.approx(stats.t.sf(t, 11), rel=1e-9)


@pytest.mark.parametrize(
    ("period", "moment", "label"),
    [
        ("week", "2026-10-21", "2025-W43"),
        ("week", "2021-01-01", "2020-W01"),  # of the 53rd week of 2020
        ("day", "2026-10-21", "2025-10-22"),  # the same weekday
        ("month", "2024-02-29", "2023-02"),
        ("10d", "2026-10-21", None),
    ],
)
def test_the_same_window_a_year_ago(period: str, moment: str, label: str | None) -> None:

    periods = parse_period(period)
    window = periods.window_at(date.fromisoformat(moment))
    found = periods.year_before(window)
    if label is not None:
        assert found.label == label
    assert 350 <= (window.start - found.start).days <= 371
    assert found.end - found.start == window.end - window.start or period == "month"


def test_a_window_of_the_reference_is_no_part_of_what_is_usual_for_it(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path, {"run_date": "2026-02-04"})
    assert (ran.result["window"]["label"], ran.result["calibration"]["in_reference"]) == ("2026-W06", True)
    found = compared(ran.result)["previous"]
    rows = vectors(table_of(quiet)).astype(np.float64)
    usual = [dense_energy(rows[week(k - 1)], rows[week(k)]) for k in range(1, 12) if 4 not in (k - 1, k)]
    assert found["movement"] == "9 pairs of reference windows at this lag"
    assert found["calibration"]["aa_median"] == pytest.approx(np.median(usual), rel=1e-3, abs=1e-6)
    few = run(quiet, tmp_path / "few", {"run_date": "2026-02-04", "calibrate.min_windows": 10})
    found = compared(few.result)["previous"]
    assert found["movement"] == "any two of the reference's 11 windows"
    assert found["calibration"]["usual"] == 55


def test_a_window_that_the_data_begin_inside_is_not_compared_with(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    late = table.filter(pc.greater_equal(table["event_time"], pa.scalar(datetime(2026, 1, 8, tzinfo=UTC))))
    assert late.num_rows > 14 * 150 - 90
    (tmp_path / "late").mkdir()
    pq.write_table(late, tmp_path / "late" / "rows.parquet")
    settings = {
        "windows.min_rows": 50,
        "windows.reference.start": "2026-01-19",
        "windows.reference.end": "2026-04-13",
        "run_date": "2026-01-14",
    }
    ran = run(tmp_path / "late", tmp_path / "out", settings)
    assert ran.result["previous"] is None  # the pinned reference's verdict does without it as well
    found = compared(ran.result)["previous"]
    assert (found["window"], found["verdict"], found["calibration"]) == ("2026-W02", "insufficient", None)
    assert "do not cover all of 2026-W02" in found["reason"]
    after = run(tmp_path / "late", tmp_path / "out", settings | {"run_date": "2026-01-21"})
    assert compared(after.result)["previous"]["calibration"] is not None
