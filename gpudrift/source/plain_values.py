"""Columns of numbers and times as they are written beside embeddings, in Parquet's types or as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpudrift.errors import ConfigError, DataError
from gpudrift.source import times

Floats = NDArray[np.float64]
NULLS = ("", "na", "n/a", "#n/a", "nan", "null", "none", "-")  # text for no value; case does not matter
NUMBERS = "numbers with a decimal point, true or false; null or NaN where there is no value"
_NUMBER = r"^[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf(inity)?)$"
Where = Callable[[int], str]  # the place of a row, by its position in the column


def to_times(column: Any, name: str, setting: str, where: Where) -> tuple[times.Micros, NDArray[np.bool_] | None]:
    """As ``times.to_micros``, after YYYY-MM and the words for no value have been looked after in text.

    Raises:
        ConfigError: a type that holds no times. DataError: times that cannot be read.
    """
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64), np.zeros(len(column), dtype=bool)
    if times.time_kind(column.type) is None:
        raise ConfigError(
            "this cannot be read as times",
            where=where(0),
            field=setting,
            value=f"{name} ({column.type})",
            allowed=times.READABLE,
            hint="write numbers such as seconds since 1970 as a timestamp: pandas.to_datetime(column, unit='s')",
        )
    if times.is_text(column.type):
        column = pc.replace_substring_regex(_words(column), r"^(\d{4}-\d{2})$", r"\1-01")  # months, as in folders
    try:
        return times.to_micros(column, field=setting, where=where(0))
    except DataError:
        place = _first_unreadable(column, setting)
        times.to_micros(column.slice(place, 1), field=setting, where=where(place))
        raise


def _first_unreadable(column: Any, setting: str) -> int:
    """Where the first time stands that cannot be read; there is one. Arrow tells of any of them, and not where."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            times.to_micros(column.slice(low, middle - low), field=setting, where="")
            low = middle
        except DataError:
            high = middle
    return low


def to_numbers(column: Any, name: str, setting: str, where: Where) -> Floats:
    """(n,) float64: null as NaN, true as 1 and false as 0.

    Raises:
        ConfigError: a type that holds no numbers. DataError: text that is no number, or an infinite value.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, t = column.type, pa.types
    if times.is_text(kind):
        column = _parsed(column, name, setting, where)
    elif t.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_null(kind)):
        raise ConfigError(
            "this column holds no numbers", where=where(0), field=setting, value=f"{name} ({kind})", allowed=NUMBERS
        )
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        place = int(infinite[0])
        raise DataError(
            f"there is an infinite value in {name!r}",
            where=where(place),
            field=setting,
            value=float(values[place]),
            allowed=NUMBERS,
        )
    return values


def _words(column: Any) -> Any:
    """Trimmed text, with nulls for the words that stand for them."""
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(NULLS, pa.large_string())), None, text)


def _parsed(column: Any, name: str, setting: str, where: Where) -> Any:
    text = pc.utf8_lower(_words(column))
    text = pc.if_else(pc.equal(text, "true"), "1", pc.if_else(pc.equal(text, "false"), "0", text))
    wrong = pc.invert(pc.match_substring_regex(text, _NUMBER)).fill_null(False)
    place = pc.index(wrong, True).as_py()
    if place >= 0:
        raise DataError(
            f"there is text in {name!r} that is no number",
            where=where(place),
            field=setting,
            value=column[place].as_py(),
            allowed=NUMBERS,
        )
    return pc.cast(text, pa.float64())
