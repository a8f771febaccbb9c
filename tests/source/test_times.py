"""Event times: every form of column, statistic and folder, in microseconds UTC."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudrift.errors import ConfigError, DataError, InsufficientDataError
from gpudrift.source import open_source
from gpudrift.source.times import DAY, parse_key, to_datetime, to_micros
from gpudrift.windows import covering, parse_period, plan_windows

MOMENTS = [datetime(2026, 1, 5, 13, 30, tzinfo=UTC), datetime(2026, 1, 11, 23, 59, 59, tzinfo=UTC)]
MICROS = [int(moment.timestamp()) * 1_000_000 for moment in MOMENTS]


def micros(column: pa.Array) -> list[int | None]:
    values, present = to_micros(column, field="t", where="here")
    return [int(v) if present is None or present[k] else None for k, v in enumerate(values)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "+05:30"])
def test_timestamps_of_any_unit_and_zone(unit: str, zone: str | None) -> None:
    column = pa.array([*MICROS, None], pa.int64()).cast(pa.timestamp("us", zone)).cast(pa.timestamp(unit, zone))
    assert micros(column) == [*MICROS, None]
    assert micros(column.slice(1)) == [MICROS[1], None]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_are_their_first_instant(kind: Any) -> None:
    assert micros(pa.array([date(1970, 1, 2), None, date(1969, 12, 31)], kind)) == [DAY, None, -DAY]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_iso_text(kind: Any) -> None:
    texts = [
        "2026-01-05",
        "2026-01-05T13:30:00",
        "2026-01-05 13:30:00.5",
        "2026-01-05T13:30:00.123456789",
        "2026-01-05T13:30:00Z",
        "2026-01-05T13:30:00.25+02:00",
        "2026-01-05 13:30:00-0530",
        None,
    ]
    offsets = [0.5, 0.123456]
    noon = MICROS[0]
    assert micros(pa.array(texts).cast(kind)) == [
        noon - int(13.5 * 3600e6),
        noon,
        *(noon + int(second * 1e6) for second in offsets),
        noon,
        noon + 250_000 - 2 * 3_600_000_000,
        noon + int(5.5 * 3600e6),
        None,
    ]


@given(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_iso_text_with_offsets_agrees_with_the_standard_library(moment: datetime, minutes: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (local - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert micros(pa.array([local.isoformat(), moment.isoformat()]))[0] == expected


def test_nanoseconds_are_rounded_down_on_both_sides_of_1970() -> None:
    assert micros(pa.array([-1, 0, 999, 1000, -1000, -1001], pa.timestamp("ns"))) == [-1, 0, 0, 1, -1, -2]


def test_times_beyond_microseconds_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)years 1 to 9999.*here.*field: t"):
        to_micros(pa.array([2**60], pa.timestamp("s")), field="t", where="here")


@pytest.mark.parametrize("text", ["yesterday", "2026-1-5", "", "05.01.2026", "2026-13-01"])
def test_other_text_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)'{text}'.*in: here.*field: t"):
        to_micros(pa.array(["2026-01-05", text]), field="t", where="here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-05", (date(2026, 1, 5), "day")),
        ("2026-02", (date(2026, 2, 1), "month")),
        ("2026-13", None),
        ("2026-02-30", None),
        ("20260105", None),
        ("2026", None),
        ("2026-W02", None),
        ("en", None),
    ],
)
def test_folder_dates(text: str, expected: Any) -> None:
    found = parse_key(text)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (to_datetime(found[0]).date(), found[1]) == expected


# --- through the source: what the footers say, what is read, and what is refused


def extent_of(path: Path, **settings: Any) -> tuple[datetime, datetime, int, int]:
    extent = open_source(str(path), **settings).extent()
    return extent.first, extent.last, extent.rows, extent.no_time


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("statistics", [True, False])
def test_extent_of_timestamps(
    write: Callable[..., Path], vectors: Any, unit: str, zone: str | None, statistics: bool
) -> None:
    column = (
        pa.array([MICROS[1], MICROS[0], None], pa.int64()).cast(pa.timestamp("us", zone)).cast(pa.timestamp(unit, zone))
    )
    path = write("a.parquet", vectors(3), times=column, options={"write_statistics": statistics, "version": "2.6"})
    assert extent_of(path, max_bad_fraction=0.5) == (*MOMENTS, 2, 1)


def test_extent_of_96_bit_timestamps_beyond_nanoseconds(write: Callable[..., Path], vectors: Any) -> None:
    far = datetime(3000, 1, 1, tzinfo=UTC)
    column = pa.array([MOMENTS[0], far], pa.timestamp("us"))
    path = write("a.parquet", vectors(2), times=column, options={"use_deprecated_int96_timestamps": True})
    assert extent_of(path) == (MOMENTS[0], far, 2, 0)


@pytest.mark.parametrize("statistics", [True, False])
def test_the_last_of_dates_stands_for_its_whole_day(write: Callable[..., Path], vectors: Any, statistics: bool) -> None:
    """Else the last day of daily windows would never count as complete."""
    days = pa.array([date(2026, 1, k) for k in (5, 6, 7)], pa.date32())
    path = write("a.parquet", vectors(3), times=days, options={"write_statistics": statistics})
    extent = open_source(str(path)).extent()
    assert extent.first == datetime(2026, 1, 5, tzinfo=UTC)
    assert extent.last == datetime(2026, 1, 7, 23, 59, 59, 999_999, tzinfo=UTC)
    assert plan_windows(parse_period("day"), extent.first, extent.last).current.label == "2026-01-07"


def test_text_times(write: Callable[..., Path], vectors: Any) -> None:
    """Text sorts by its letters, so the footer's least and greatest mean nothing here."""
    texts = pa.array(["2026-01-05T01:00:00+03:00", "2026-01-04T23:00:00Z", "2026-01-05T00:00:00-05:00"])
    path = write("a.parquet", vectors(3), times=texts)
    first, last = datetime(2026, 1, 4, 22, tzinfo=UTC), datetime(2026, 1, 5, 5, tzinfo=UTC)
    assert extent_of(path) == (first, last, 3, 0)


def test_times_from_folders(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("hive/month=2026-01/a.parquet", vectors(2), times=None)
    write("hive/month=2026-02/a.parquet", vectors(3), times=None)
    source = open_source(str(tmp_path / "hive"), time_column="month")
    extent = source.extent()
    assert extent.first == datetime(2026, 1, 1, tzinfo=UTC)
    assert extent.last == datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    windows = covering(parse_period("month"), extent.first, extent.last)
    assert source.count(windows) == [2, 3]
    assert source.read(windows).sizes() == (2, 3)


def test_a_column_of_the_file_goes_before_a_folder_of_its_name(
    write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    write("event_time=1999-01-01/a.parquet", vectors(1), times=[MOMENTS[0]])
    assert extent_of(tmp_path)[0] == MOMENTS[0]


def test_timestamps_of_several_units_may_stand_in_one_data_set(
    write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    write("a.parquet", vectors(1), times=pa.array([MOMENTS[0]], pa.timestamp("ns")))
    write("b.parquet", vectors(1), times=pa.array([MOMENTS[1]], pa.timestamp("us", "UTC")))
    assert extent_of(tmp_path) == (*MOMENTS, 2, 0)


@pytest.mark.parametrize(
    "column",
    [pa.array([1, 2]), pa.array([1.0, 2.0]), pa.array([True, False]), pa.array([1, 2], pa.time64("us")), pa.nulls(2)],
)
def test_other_types_are_a_config_error(write: Callable[..., Path], vectors: Any, column: pa.Array) -> None:
    with pytest.raises(ConfigError, match=r"source\.time_column") as caught:
        open_source(str(write("a.parquet", vectors(2), times=column)))
    assert str(column.type) in str(caught.value)
    assert "to_datetime" in str(caught.value.hint)


def test_a_folder_that_is_no_date_is_a_config_error(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("lang=en/a.parquet", vectors(2), times=None)
    with pytest.raises(ConfigError, match="lang=en") as caught:
        open_source(str(tmp_path), time_column="lang")
    assert caught.value.hint is None


def test_bad_text_names_file_column_and_row_group(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", vectors(3), times=pa.array(["2026-01-05", "2026-01-06", "soon"]), group_rows=2)
    with pytest.raises(DataError, match=r"(?s)'soon'.*a\.parquet, row group 1.*event_time"):
        open_source(str(path)).extent()


def test_a_placeholder_beyond_the_calendar_is_a_data_error(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", vectors(2), times=pa.array([0, 2**62], pa.timestamp("us")))
    with pytest.raises(DataError, match="years 1 to 9999"):
        open_source(str(path)).extent()


def test_the_last_date_of_the_calendar_is_a_date(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", vectors(1), times=pa.array([date.max], pa.date32()))
    assert extent_of(path)[1] == datetime.max.replace(tzinfo=UTC)


# --- rows without a time


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_a_time_are_counted_and_never_read(
    write: Callable[..., Path], vectors: Any, statistics: bool
) -> None:
    times = [MOMENTS[0], None, MOMENTS[1], None]
    path = write("a.parquet", x := vectors(4), times=times, options={"write_statistics": statistics})
    source = open_source(str(path), max_bad_fraction=0.5)
    assert source.extent().no_time == 2
    windows = covering(parse_period("week"), MOMENTS[0], MOMENTS[1])
    cloud = source.read(windows)
    assert np.array_equal(cloud.embeddings.numpy(), x[[0, 2]])
    assert cloud.quality[0].rows_read == 2
    since_1970 = covering(parse_period("9999d"), datetime(1969, 12, 1, tzinfo=UTC), MOMENTS[1])
    assert sum(source.count(since_1970)) == len(source.read(since_1970)) == 2


@pytest.mark.parametrize("settings", [{"max_bad_fraction": 0.49}, {"on_bad_rows": "fail", "max_bad_fraction": 1.0}])
@pytest.mark.parametrize("call", ["extent", "count", "read"])
def test_too_many_rows_without_a_time_are_a_data_error(
    write: Callable[..., Path], vectors: Any, settings: dict[str, Any], call: str
) -> None:
    path = write("a.parquet", vectors(4), times=[MOMENTS[0], None, MOMENTS[1], None])
    source = open_source(str(path), **settings)
    with pytest.raises(DataError, match=r"2 of 4 rows have no event time"):
        source.extent() if call == "extent" else getattr(source, call)([])


def test_a_folder_without_a_date_holds_rows_without_a_time(
    write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    write("day=2026-01-05/a.parquet", vectors(3), times=None)
    write("day=__HIVE_DEFAULT_PARTITION__/a.parquet", vectors(1), times=None)
    source = open_source(str(tmp_path), time_column="day", max_bad_fraction=0.25)
    assert (source.extent().rows, source.extent().no_time) == (3, 1)


@pytest.mark.parametrize("statistics", [True, False])
def test_no_row_at_all_is_insufficient(write: Callable[..., Path], statistics: bool) -> None:
    options = {"write_statistics": statistics}
    path = write("a.parquet", [], kind=pa.list_(pa.float32(), 3), options=options)
    with pytest.raises(InsufficientDataError, match="no row with an event time"):
        open_source(str(path)).extent()
    path = write("b.parquet", [[1.0, 2.0, 3.0]], times=[None], options=options)
    with pytest.raises(InsufficientDataError, match="no row with an event time"):
        open_source(str(path), max_bad_fraction=1.0).extent()
