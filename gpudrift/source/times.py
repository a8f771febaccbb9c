"""Event times as int64 microseconds since 1970 (UTC), from columns, from row-group statistics and from folder names.

Columns may be timestamps of any unit (naive ones are UTC), dates, or ISO-8601 text; a ``key=value`` folder may hold
YYYY-MM-DD, or YYYY-MM for the first of a month. Nanoseconds are rounded down, so that no row crosses a window's edge.
"""

from __future__ import annotations

import json
import re
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpudrift.errors import DataError

Micros = NDArray[np.int64]
TimeKind = Literal["timestamp", "date", "text"]
# how much time one value stands for: a date means its whole day, a YYYY-MM folder its whole month
Grain = Literal["instant", "day", "month"]

READABLE = "a timestamp, date, or ISO-8601 text column, or a folder key of YYYY-MM-DD or YYYY-MM"
DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
_LONG_FRACTION = r"(\.\d{6})\d+"
_ZONED = r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$"


def time_kind(arrow_type: Any) -> TimeKind | None:
    """What a column of this Arrow type says about time, None when it cannot be read as event times."""
    if pa.types.is_timestamp(arrow_type):
        return "timestamp"
    if pa.types.is_date(arrow_type):
        return "date"
    return "text" if is_text(arrow_type) else None


def is_text(arrow_type: Any) -> bool:
    if pa.types.is_dictionary(arrow_type):
        return is_text(arrow_type.value_type)
    return bool(
        pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type)
    )


def to_micros(column: Any, *, field: str, where: str) -> tuple[Micros, NDArray[np.bool_] | None]:
    """Microseconds of each row, and which rows have a time (None: all). ``field`` and ``where`` go into errors.

    Raises:
        DataError: text that is not ISO-8601, or a time that microseconds cannot hold.
    """
    present = None if column.null_count == 0 else column.is_valid().to_numpy(zero_copy_only=False)
    if is_text(column.type):
        column = _parse_text(column, field, where)
    if pa.types.is_date32(column.type):
        raw, unit = column.cast(pa.int32()).cast(pa.int64()), "day"
    elif pa.types.is_date64(column.type):
        raw, unit = column.cast(pa.int64()), "ms"
    else:
        raw, unit = column.cast(pa.int64()), column.type.unit
    scaled = _scale(pc.fill_null(raw, 0).to_numpy(), unit)
    if scaled is None:
        raise beyond_calendar(field, where)
    return scaled, present


def statistics_unit(column_schema: Any) -> str | None:
    """The unit of a Parquet column's raw statistics (s, ms, us, ns, day), None where they do not tell times."""
    if column_schema.physical_type not in ("INT32", "INT64"):
        return None
    logical = json.loads(column_schema.logical_type.to_json())
    if logical.get("Type") == "Date":
        return "day"
    if logical.get("Type") == "Timestamp":
        return _UNITS.get(logical.get("timeUnit", ""))
    return None


def raw_to_micros(value: int, unit: str) -> int | None:
    """One raw statistic in microseconds, None where they cannot hold it."""
    scaled = _scale(np.array([value], dtype=np.int64), unit)
    return None if scaled is None else int(scaled[0])


def parse_key(text: str) -> tuple[int, Grain] | None:
    """A folder's date, in microseconds, and whether it names a day or a month; None when it is neither."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}", text):
            return date_to_micros(date.fromisoformat(f"{text}-01")), "month"
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date_to_micros(date.fromisoformat(text)), "day"
    except ValueError:
        pass
    return None


def date_to_micros(day: date) -> int:
    return (day.toordinal() - _EPOCH.toordinal()) * DAY


def datetime_to_micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(micros: int) -> datetime:
    """Microseconds as a UTC datetime.

    Raises:
        DataError: outside the years 1 to 9999.
    """
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        raise beyond_calendar(None, None) from None


def last_moment(micros: int, grain: Grain) -> datetime:
    """The last moment that a value of this grain stands for.

    Raises:
        DataError: as ``to_datetime``.
    """
    moment = to_datetime(micros)
    if grain == "instant":
        return moment
    last = moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return last if grain == "day" else last.replace(day=monthrange(last.year, last.month)[1])


def beyond_calendar(field: str | None, where: str | None) -> DataError:
    return DataError(
        "there is an event time outside the years 1 to 9999",
        field=field,
        where=where,
        hint="placeholder times can be left out with source.filter",
    )


def _scale(raw: NDArray[np.int64], unit: str) -> Micros | None:
    """Raw values in microseconds; None where one of them does not fit."""
    if unit == "us":
        return raw
    if unit == "ns":
        return np.floor_divide(raw, 1_000)
    factor = DAY if unit == "day" else 1_000_000 // _PER_SECOND[unit]
    limit = np.iinfo(np.int64).max // factor
    if len(raw) and (raw.max() > limit or raw.min() < -limit):
        return None
    return raw * np.int64(factor)


def _parse_text(column: Any, field: str, where: str) -> Any:
    """ISO-8601 text as timestamp[us, UTC]; texts with and without an offset may stand side by side."""
    # Arrow takes six digits of a second's fraction at most, some writers give seven or nine
    column = pc.replace_substring_regex(column.cast(pa.large_string()), _LONG_FRACTION, r"\1")
    zoned = pc.match_substring_regex(column, _ZONED)
    try:
        naive = pc.if_else(zoned, None, column).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
        return pc.coalesce(naive, pc.if_else(zoned, column, None).cast(pa.timestamp("us", "UTC")))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"an event time is not ISO-8601: {error}",
            field=field,
            where=where,
            allowed="text such as 2026-10-31, 2026-10-31T08:30:00 (UTC) or 2026-10-31T08:30:00+02:00",
        ) from error
