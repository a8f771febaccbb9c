"""Product metrics from tables: one value a window, whatever the rows are and in whatever order they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudrift import sample
from gpudrift.errors import ArgumentError, ConfigError, DataError, InsufficientDataError
from gpudrift.outcomes import table, tally
from gpudrift.outcomes.records import OutcomeSeries
from gpudrift.outcomes.table import read_outcomes
from gpudrift.records import segment_text
from gpudrift.source import columns, open_source
from gpudrift.windows import Period, parse_period

WEEK = parse_period("week")
WORSE = {"rate": "lower"}
BOTH = {"rate": "lower", "wait": "higher"}
Read = tuple[tuple[OutcomeSeries, ...], tuple[str, ...]]


def read(path: Path | str, worse: Mapping[str, Any] = WORSE, period: Period = WEEK, **settings: Any) -> Read:
    return read_outcomes(str(path), **{"time_column": "time", "worse": worse, "period": period} | settings)


def write(path: Path, **made: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(made), path)
    return path


def log(rows: int = 4000, seed: int = 0) -> pd.DataFrame:
    """A row a request over 13 weeks: shuffled, with a tenant, missing values and weights."""
    rng = np.random.default_rng(seed)
    seconds = rng.integers(0, 13 * 7 * 86_400, rows)
    tenant = rng.choice(["a", "b", "c", None], rows, p=[0.5, 0.3, 0.1, 0.1])
    wait = rng.lognormal(0, 2, rows)
    wait[rng.uniform(size=rows) < 0.05] = np.nan
    return pd.DataFrame(
        {
            "time": pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(seconds, unit="s"),
            "rate": rng.uniform(size=rows) < 0.2,
            "wait": wait,
            "n": rng.integers(0, 50, rows),
            "tenant": pd.Series(tenant, dtype=object),
        }
    )


def to_parquet(made: pd.DataFrame, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(made, preserve_index=False), path, **options)
    return path


def by_name(found: Sequence[OutcomeSeries]) -> dict[tuple[str, str], OutcomeSeries]:
    return {(one.metric, one.segment): one for one in found}


def identical(one: Sequence[OutcomeSeries], other: Sequence[OutcomeSeries]) -> bool:
    def plain(s: OutcomeSeries) -> tuple[Any, ...]:
        return s.metric, s.worse, s.segment, s.windows, s.values.tobytes(), s.counts.tobytes()

    return [plain(s) for s in one] == [plain(s) for s in other]


# --- oracles


def test_pandas_finds_the_same_weighted_means(tmp_path: Path) -> None:
    made = log()
    path = to_parquet(made, tmp_path / "log.parquet", row_group_size=333)
    found, notes = read(path, BOTH, count_column="n", segment_columns=["tenant"])
    made["week"] = made["time"].dt.tz_localize(None).dt.to_period("W-SUN").dt.start_time.dt.tz_localize("UTC")
    names = [("all", made)] + [
        (f"tenant={segment_text(None if pd.isna(v) else v, 0)}", made[made["tenant"].isna() if pd.isna(v) else
                                                                     made["tenant"] == v])
        for v in made["tenant"].unique()
    ]  # fmt: skip
    assert {one.segment for one in found} == {name for name, _ in names}
    for metric in BOTH:
        for name, rows in names:
            own = by_name(found)[metric, name]
            rows = rows[rows[metric].notna()]
            weights = rows["n"].groupby(rows["week"]).sum()
            means = (rows["n"] * rows[metric].astype(float)).groupby(rows["week"]).sum() / weights
            assert [w.start for w in own.windows] == [stamp.to_pydatetime() for stamp in means.index]
            np.testing.assert_allclose(own.values, means, rtol=1e-12)
            assert own.counts.tolist() == weights.tolist()
    missing = int((made["wait"].isna() & (made["n"] > 0)).sum())
    assert notes == (f"wait is null or NaN in {missing:,} rows, which are left out",)


def test_polars_finds_the_same_means_by_day_and_month(tmp_path: Path) -> None:
    made = log(1500, 1)
    path = to_parquet(made, tmp_path / "log.parquet")
    for name, every in (("day", "1d"), ("month", "1mo"), ("10d", "10d")):
        origin = date(2026, 1, 1)
        period = parse_period(name, origin)
        ((one,), _) = read(path, period=period)
        frame = pl.from_pandas(made[["time", "rate"]])
        if name == "10d":
            frame = frame.with_columns(
                pl.col("time").dt.date().map_elements(
                    lambda d, o=origin: o + timedelta(days=(d - o).days // 10 * 10), return_dtype=pl.Date
                )
            )  # fmt: skip
        else:
            frame = frame.with_columns(pl.col("time").dt.truncate(every).dt.date())
        wanted = frame.group_by("time").agg(pl.col("rate").cast(pl.Float64).mean(), pl.len()).sort("time")
        filled = np.isfinite(one.values)
        assert [w.start.date() for w, f in zip(one.windows, filled, strict=True) if f] == wanted["time"].to_list()
        np.testing.assert_allclose(one.values[filled], wanted["rate"].to_numpy(), rtol=1e-12)
        assert one.counts[filled].tolist() == wanted["len"].to_list()


def test_the_sample_that_ships() -> None:
    worse = {"no_answer_rate": "higher", "retrieval_success_rate": "lower", "mean_top1_similarity": "lower"}
    found, notes = read(sample.outcomes_path(), worse, time_column="week_start", count_column="queries")
    made = pd.read_csv(sample.outcomes_path())
    assert notes == ()
    assert [(one.metric, one.worse, one.segment) for one in found] == [(m, w, "all") for m, w in worse.items()]
    for one in found:
        filled = np.isfinite(one.values)
        assert one.values[filled].tolist() == made[one.metric].tolist()  # to the last bit
        assert (one.counts[~filled] == 0).all()
        assert one.counts[filled].tolist() == made["queries"].tolist()
        assert [w.start.date().isoformat() for w, f in zip(one.windows, filled, strict=True) if f] == list(
            made["week_start"]
        )
        assert all(a.end == b.start for a, b in pairwise(one.windows))
        assert one.windows[0].label == "2021-W20"
        assert one.windows[-1].label == "2026-W44"


# --- what does not matter


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    group=st.integers(40, 200),
    as_csv=st.booleans(),
    counted=st.booleans(),
)
def test_no_order_of_rows_and_no_cut_into_files_changes_a_bit(
    tmp_path: Path, seed: int, cuts: list[int], group: int, as_csv: bool, counted: bool
) -> None:
    made = log(200, 5)
    arguments: dict[str, Any] = {"segment_columns": ["tenant"], "count_column": "n" if counted else None}
    if not (tmp_path / "whole.parquet").exists():
        to_parquet(made, tmp_path / "whole.parquet")
    wanted, notes = read(tmp_path / "whole.parquet", BOTH, **arguments)
    made = made.fillna({"tenant": "(none)"}) if as_csv else made  # CSV has no null text
    shuffled = made.sample(frac=1, random_state=seed)
    edges = [0, *sorted(cuts), len(made)]
    folder = tmp_path / f"{seed}-{cuts}-{group}-{as_csv}".replace("[", "").replace("]", "")
    for k, (a, b) in enumerate(pairwise(edges)):
        path = folder / f"{7 * k % 5}-{k}.{'csv' if as_csv else 'parquet'}"
        path.parent.mkdir(exist_ok=True)
        if as_csv:
            shuffled[a:b].to_csv(path, index=False)
        else:
            to_parquet(shuffled[a:b], path, row_group_size=group)
    found, others = read(folder, BOTH, **arguments)
    if as_csv:  # only the text says so
        found = tuple(
            OutcomeSeries(s.metric, s.worse, s.segment.replace("'(none)'", "(none)"), s.windows, s.values, s.counts)
            for s in found
        )
        order = {(s.metric, s.segment): k for k, s in enumerate(wanted)}
        found = tuple(sorted(found, key=lambda s: order[s.metric, s.segment]))
    assert identical(found, wanted)
    assert others == notes


def test_batches_of_any_size_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = to_parquet(log(150), tmp_path / "log.parquet")
    wanted = read(path, BOTH, count_column="n", segment_columns=["tenant"])
    for rows in (1, 7, 149):
        monkeypatch.setattr(columns, "_BATCH", rows)
        found = read(path, BOTH, count_column="n", segment_columns=["tenant"])
        assert identical(found[0], wanted[0])
        assert found[1] == wanted[1]


# --- windows


@given(st.floats(-1e300, 1e300), st.floats(1e-3, 1e12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_window_of_one_row_has_its_value_to_the_last_bit(tmp_path: Path, value: float, count: float) -> None:
    path = write(tmp_path / "one.parquet", time=[date(2026, 1, 7)], rate=[value], n=[count])
    ((one,), _) = read(path, count_column="n")
    assert (one.values.tolist(), one.counts.tolist()) == ([value], [count])


def test_a_time_decides_its_window_at_both_edges(tmp_path: Path) -> None:
    monday = datetime(2026, 1, 12, tzinfo=UTC)
    times = [monday - timedelta(microseconds=1), monday, monday + timedelta(days=7) - timedelta(microseconds=1)]
    ((one,), _) = read(write(tmp_path / "a.parquet", time=pa.array(times), rate=[1.0, 2.0, 4.0]))
    assert [w.label for w in one.windows] == ["2026-W02", "2026-W03"]
    assert one.values.tolist() == [1.0, 3.0]


def test_times_before_1970_and_in_other_zones(tmp_path: Path) -> None:
    zoned = pa.array([datetime(1969, 12, 28, 23, 30, tzinfo=UTC)], pa.timestamp("us", "Asia/Tokyo"))
    ((one,), _) = read(write(tmp_path / "a.parquet", time=zoned, rate=[1.0]))
    assert one.windows[0].label == "1969-W52"


def test_gaps_are_windows_without_a_value_and_count_nothing(tmp_path: Path) -> None:
    days = [date(2026, 1, 5) + timedelta(weeks=k) for k in (0, 1, 3, 6)]
    path = write(tmp_path / "a.parquet", time=days, rate=[None, 0.5, 0.25, None], wait=[1.0, None, None, 4.0])
    found, notes = read(path, BOTH)
    rate, wait = found
    assert [w.label for w in rate.windows] == ["2026-W03", "2026-W04", "2026-W05"]
    np.testing.assert_array_equal(rate.values, [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(rate.counts, [np.nan, 0.0, np.nan])
    assert [w.label for w in wait.windows] == [f"2026-W0{k}" for k in range(2, 9)]
    assert notes == tuple(f"{m} is null or NaN in 2 rows, which are left out" for m in BOTH)


def test_windows_are_those_of_the_history(tmp_path: Path) -> None:
    ((one,), _) = read(write(tmp_path / "a.parquet", time=[date(2026, 1, 7)], rate=[1.0]))
    assert one.windows == (WEEK.window_at(date(2026, 1, 7)),)


def test_a_daily_table_of_a_weekly_job(tmp_path: Path) -> None:
    days = [date(2026, 1, 5) + timedelta(days=k) for k in range(14)]
    made = {"time": days, "rate": [0.1] * 6 + [0.8] + [0.2] * 7, "n": [100] * 6 + [300] + [10] * 7}
    path = write(tmp_path / "a.parquet", **made)
    ((one,), notes) = read(path, count_column="n")
    assert one.values.tolist() == pytest.approx([(60 + 240) / 900, 0.2], rel=1e-15)
    assert (one.counts.tolist(), notes) == ([900.0, 70.0], ())
    ((one,), notes) = read(path)
    assert one.values.tolist() == pytest.approx([0.2, 0.2], rel=1e-15)
    assert np.isnan(one.counts).all()
    assert notes == (
        "rate: 2 of 2 windows (2026-W02, 2026-W03) have several rows, up to 7: averaged as equals, since "
        "outcomes.count_column is not set",
    )


def test_a_table_with_rows_twice_says_so(tmp_path: Path) -> None:
    days = [date(2026, 1, 5) + timedelta(weeks=k) for k in (0, 1, 2, 2)]
    path = write(tmp_path / "a.parquet", time=days, rate=[0.1, 0.2, 0.3, 0.5], n=[10, 10, 10, 30])
    ((one,), notes) = read(path)
    assert one.values[-1] == 0.4
    assert "1 of 3 windows (2026-W04) have several rows, up to 2: averaged as equals" in notes[0]
    ((one,), notes) = read(path, count_column="n")
    assert (one.values[-1], one.counts[-1]) == (pytest.approx(0.45), 40)
    assert "averaged by their counts" in notes[0]


# --- counts


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([True, False, True], True),
        ([1.0, 0.0, 0.0], True),
        ([1, None, 0], True),
        ([0.5, 1.0, 0.0], False),
        ([3, 4, 5], False),
    ],
)
def test_rows_are_observations_where_they_are_0_or_1(tmp_path: Path, values: list[Any], known: bool) -> None:
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5)] * 3, rate=values)
    ((one,), _) = read(path)
    given_ = sum(value is not None for value in values)
    assert one.counts.tolist() == [given_] if known else np.isnan(one.counts).all()


def test_one_row_a_window_is_no_observation_even_where_it_is_0_or_1(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5), date(2026, 1, 12)], rate=[0.0, 1.0])
    assert np.isnan(read(path)[0][0].counts).all()


def test_rows_of_the_corpus_are_observations() -> None:
    source = open_source(str(sample.path()), id_column="package", segment_columns=["family"])
    arguments: dict[str, Any] = {"time_column": "event_time", "source": source, "segment_columns": ["family"]}
    found, notes = read("corpus", {"year": "lower"}, parse_period("month"), **arguments)
    whole = found[0]
    filled = np.isfinite(whole.values)
    assert int(whole.counts.sum()) == 8854
    assert whole.values[filled].tolist() == [w.start.year for w, f in zip(whole.windows, filled, strict=True) if f]
    assert len(found) == 201
    assert len(notes) == 1
    assert "family has" in notes[0]
    assert "the 200 with the largest counts are looked at" in notes[0]


def test_a_count_of_nothing_is_no_value_and_no_null(tmp_path: Path) -> None:
    days = [date(2026, 1, 5) + timedelta(weeks=k) for k in range(4)]
    path = write(tmp_path / "a.parquet", time=days, rate=[0.5, None, 0.25, 0.75], n=[4, 0, None, 4])
    ((one,), notes) = read(path, count_column="n")
    np.testing.assert_array_equal(one.values, [0.5, np.nan, np.nan, 0.75])
    assert one.counts.tolist() == [4, 0, 0, 4]
    assert notes == ("n is null in 1 row, which is left out",)


# --- segments


def test_segments_are_named_as_the_history_names_them(tmp_path: Path) -> None:
    names = ["en", None, "(none)", "(others)", "", "en"]
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5)] * 6, rate=[1.0, 2.0, 3.0, 4.0, 5.0, 2.0],
                 lang=names, tier=pa.array([1, 1, 2, 2, 2, 2], pa.int8()))  # fmt: skip
    found, _ = read(path, segment_columns=["lang", "tier", "nosuch"])
    assert {one.segment: one.values.tolist() for one in found} == {
        "all": [17 / 6],
        "lang=": [5.0],
        "lang='(none)'": [3.0],
        "lang='(others)'": [4.0],
        "lang=(none)": [2.0],
        "lang=en": [1.5],
        "tier=1": [1.5],
        "tier=2": [3.5],
    }
    assert found[0].segment == "all"


def test_the_values_with_the_largest_counts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MOST_VALUES", 2)
    names = ["a"] * 5 + ["b"] * 2 + ["c"] + ["d"]
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5)] * 9, rate=[1.0] * 9, lang=names,
                 n=[1, 1, 1, 1, 1, 1, 1, 50, 5])  # fmt: skip
    found, notes = read(path, segment_columns=["lang"])
    assert [one.segment for one in found] == ["all", "lang=a", "lang=b"]
    found, notes = read(path, segment_columns=["lang"], count_column="n")
    assert [one.segment for one in found] == ["all", "lang=a", "lang=c"]  # a and d are equal: by name
    assert found[0].counts.tolist() == [62]
    assert any("lang has 4 values: the 2 with the largest counts" in note for note in notes)


def test_a_column_of_ids_gives_no_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MOST_DISTINCT", 3)
    path = write(
        tmp_path / "a.parquet", time=[date(2026, 1, 5)] * 5, rate=[1.0] * 5, user=list("abcde"), lang=list("aabbc")
    )
    found, notes = read(path, segment_columns=["user", "lang"])
    assert [one.segment for one in found] == ["all", "lang=a", "lang=b", "lang=c"]
    assert "user has more than 3 values and gives no segments" in notes


# --- bad input


@pytest.mark.parametrize(
    ("made", "arguments", "error", "field", "words"),
    [
        ({"rate": [0.5], "n": [-1]}, {"count_column": "n"}, DataError, "outcomes.count_column", "received: -1.0"),
        ({"rate": [0.5], "n": [1e16]}, {"count_column": "n"}, DataError, "outcomes.count_column", "too large"),
        ({"rate": [0.5], "n": [float("inf")]}, {"count_column": "n"}, DataError, "outcomes.count_column", "infinite"),
        ({"rate": [0.5], "n": [["x"]]}, {"count_column": "n"}, ConfigError, "outcomes.count_column", "no numbers"),
        ({"rate": [0.5]}, {"count_column": "n"}, ConfigError, "outcomes.count_column", "allowed: time, rate"),
        ({"rate": [0.5]}, {"time_column": "day"}, ConfigError, "outcomes.time_column", "allowed: time, rate"),
        ({"rate": [0.5]}, {"worse": {"nosuch": "lower"}}, ConfigError, "outcomes.lower_is_worse", "there is no column"),
        ({"rate": [0.5]}, {"worse": {}}, ConfigError, "outcomes.lower_is_worse, outcomes.higher_is_worse",
         "no metric is named"),
        ({"rate": ["much"]}, {}, DataError, "outcomes.lower_is_worse", "received: 'much'"),
        ({"rate": [0.5], "time": [None]}, {}, InsufficientDataError, "outcomes.time_column", "no row of this table"),
        ({"rate": pa.array([], pa.float64()), "time": pa.array([], pa.date32())}, {}, InsufficientDataError,
         "outcomes.uri", "no rows"),
        ({"rate": [0.5], "time": pa.array([2**60], pa.timestamp("us"))}, {}, DataError, "outcomes.time_column",
         "end of the calendar"),
        ({"rate": [0.5], "time": [date(9999, 12, 31)]}, {}, DataError, "outcomes.time_column", "end of the calendar"),
        ({"rate": [0.5] * 2, "time": [date(1, 1, 9), date(2026, 1, 5)]}, {}, DataError, "outcomes.time_column",
         "more than 20,000 windows"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_error(
    tmp_path: Path, made: dict[str, Any], arguments: dict[str, Any], error: type[Exception], field: str, words: str
) -> None:
    path = write(tmp_path / "bad.parquet", **({"time": [date(2026, 1, 5)]} | made))
    with pytest.raises(error) as caught:
        read(path, **arguments)
    assert type(caught.value) is error
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.exit_code == (1 if error is ConfigError else 30)


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,rate\n")
    with pytest.raises(InsufficientDataError, match="no rows"):
        read(tmp_path / "a.csv")


def test_a_metric_without_any_value_is_told_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5)] * 2, rate=pa.nulls(2), wait=[1.0, 2.0])
    found, notes = read(path, BOTH)
    assert [one.metric for one in found] == ["wait"]
    assert "rate has no value in any window" in notes
    found, notes = read(path, WORSE)
    assert found == ()
    assert "rate has no value in any window" in notes


def test_rows_without_a_time_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5), None, None], rate=[1.0, 2.0, 3.0])
    found, notes = read(path)
    assert found[0].values.tolist() == [1.0]
    assert notes == ("2 of 3 rows have no time and are left out",)


def test_a_direction_is_lower_or_higher(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", time=[date(2026, 1, 5)], rate=[1.0])
    with pytest.raises(ArgumentError, match="allowed: lower, higher"):
        read(path, {"rate": "down"})
    with pytest.raises(ConfigError) as caught:
        read(path, {"rate": "lower", "nosuch": "higher"})
    assert caught.value.field == "outcomes.higher_is_worse"


def test_the_corpus_needs_its_source_and_its_own_time_column() -> None:
    with pytest.raises(ArgumentError, match="the source they are columns of"):
        read("corpus")
    with pytest.raises(ConfigError, match="has its own time column") as caught:
        read("corpus", {"year": "lower"}, source=open_source(str(sample.path())), time_column="week")
    assert (caught.value.field, caught.value.value) == ("outcomes.time_column", "week")


def test_the_span_that_is_allowed_holds_half_a_century_of_days() -> None:
    assert tally.MOST_WINDOWS > 50 * 366
