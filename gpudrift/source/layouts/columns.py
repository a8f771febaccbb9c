"""Vectors over several columns: one column a dimension, and Spark's struct of type, size, indices and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from gpudrift.errors import ConfigError
from gpudrift.source.layouts.elements import Element
from gpudrift.source.layouts.lists import lengths_of
from gpudrift.source.layouts.records import NONE, Decoded, Positions

SPARK = ("type", "size", "indices", "values")


def numbered_columns(names: Sequence[str], pattern: str, where: Any) -> list[str] | None:
    """The columns a pattern names, by number: ``dim_*`` (the star is the number) or ``re:`` and a regular expression
    whose one group is the number. None: no pattern.

    Raises:
        ConfigError: no column fits; numbers that repeat, leave gaps, or begin with neither 0 nor 1.
    """
    if pattern.startswith("re:"):
        try:
            wanted = re.compile(pattern[3:])
        except re.error as error:
            raise _bad_pattern(pattern, where, f"this is no regular expression: {error}") from None
        if wanted.groups != 1:
            raise _bad_pattern(pattern, where, f"the expression has {wanted.groups} groups, not one")
    elif "*" in pattern:
        if pattern.count("*") > 1:
            raise _bad_pattern(pattern, where, "the pattern has more than one star")
        wanted = re.compile(r"([0-9]+)".join(map(re.escape, pattern.split("*"))))
    else:
        return None
    found: dict[int, str] = {}
    for name in names:
        match = wanted.fullmatch(name)
        if match is None:
            continue
        if not re.fullmatch(r"[0-9]+", match[1] or ""):
            raise _bad_pattern(pattern, where, f"the group matches {match[1]!r} in {name!r}, which is not a number")
        number = int(match[1])
        if number in found:
            raise _bad_pattern(pattern, where, f"two columns have the number {number}: {found[number]!r} and {name!r}")
        found[number] = name
    if not found:
        raise ConfigError(
            "no column fits this pattern",
            where=where,
            field="source.embedding_column",
            value=pattern,
            allowed=short_list(names),
        )
    numbers = sorted(found)
    if numbers[0] > 1:
        raise _bad_pattern(pattern, where, f"the columns begin with {found[numbers[0]]!r}, not with number 0 or 1")
    for number, after in pairwise(numbers):
        if after != number + 1:
            gap = f"number {number + 1} is missing between {found[number]!r} and {found[after]!r}"
            raise _bad_pattern(pattern, where, gap)
    return [found[number] for number in numbers]


def numbered_families(names: Sequence[str]) -> dict[str, list[str]]:
    """Patterns (``dim_*``) of columns that differ by a number at their end, for at least four; with the columns."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem = name.rstrip("0123456789")
        if stem not in ("", name) and "*" not in stem:
            found.setdefault(f"{stem}*", []).append(name)
    return {pattern: columns for pattern, columns in found.items() if len(columns) >= 4}


def short_list(names: Sequence[str]) -> list[str]:
    """Column names to show: of a numbered family its first and last, since there may be thousands."""
    families = numbered_families(names)
    short = {columns[0]: f"{columns[0]} to {columns[-1]}" for columns in families.values()}
    left_out = {name for columns in families.values() for name in columns} - set(short)
    return [short.get(name, name) for name in names if name not in left_out]


def _bad_pattern(pattern: str, where: Any, message: str) -> ConfigError:
    return ConfigError(
        message,
        where=where,
        field="source.embedding_column",
        value=pattern,
        allowed="a column, 'dim_*' (the star: numbers from 0 or 1, no gaps), or 're:' with one group for the number",
    )


def decode_wide(arrays: Sequence[Any], rows: int, element: Element) -> Decoded:
    """One array a dimension, each of ``rows`` values; a null in any of them makes the row null."""
    missing = np.zeros(rows, dtype=bool)
    values = np.empty((len(arrays), rows), dtype=arrays[0].type.to_pandas_dtype())
    for k, array in enumerate(arrays):
        if array.null_count:
            missing |= array.is_null().to_numpy(zero_copy_only=False)
        # what lies under a null is anything; those rows are dropped
        bare = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], 0, array.offset)
        values[k] = bare.to_numpy()
    whole = values.T if not missing.any() else values.T[~missing]
    flat = pa.array(np.ascontiguousarray(whole).reshape(-1))
    if element.convert is not None:
        flat = element.convert(flat)
    if not missing.any():
        return Decoded(flat, None, NONE, NONE, NONE)
    return Decoded(flat, np.flatnonzero(~missing), np.flatnonzero(missing), NONE, NONE)


def wide_lengths(arrays: Sequence[Any], rows: int) -> Positions:
    missing = np.zeros(rows, dtype=bool)
    for array in arrays:
        if array.null_count:
            missing |= array.is_null().to_numpy(zero_copy_only=False)
    return np.where(missing, -1, len(arrays))


def is_spark_vector(arrow_type: Any) -> bool:
    """Spark's VectorUDT: struct<type: int8, size: int32, indices: list<int32>, values: list<double>>."""
    if not pa.types.is_struct(arrow_type) or sorted(field.name for field in arrow_type) != sorted(SPARK):
        return False
    kind, size, indices, values = (arrow_type.field(name).type for name in SPARK)
    lists = all(pa.types.is_list(one) or pa.types.is_large_list(one) for one in (indices, values))
    return (
        lists
        and all(map(pa.types.is_integer, (kind, size, indices.value_type)))
        and pa.types.is_floating(values.value_type)
    )


def spark_lengths(column: Any) -> Positions:
    """Length of each vector; -1 where it is null or makes no sense."""
    _, lengths, _, _ = _spark_parts(column)
    return lengths


def decode_spark(column: Any, dim: int) -> Decoded:
    """Dense vectors are their values; sparse ones are scattered over zeros. A sparse vector with an index outside, an
    index twice, or other than a value an index has no meaning, and counts as null."""
    sparse, lengths, indices, values = _spark_parts(column)
    good = lengths == dim
    ragged = np.flatnonzero((lengths >= 0) & ~good)
    null = lengths < 0
    chosen = np.flatnonzero(good)
    listed = values.filter(pa.array(good))
    each = lengths_of(listed)
    numbers = listed.flatten()
    if not sparse[chosen].any() and not numbers.null_count:
        every = len(chosen) == len(column)
        return Decoded(numbers, None if every else chosen, np.flatnonzero(null), ragged, lengths[ragged])
    row = np.repeat(np.arange(len(chosen)), each)
    place = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)
    scattered = sparse[chosen][row]
    stated = indices.filter(pa.array(good & sparse)).flatten()
    broken = np.zeros(len(chosen), dtype=bool)
    broken[row[_nulls(numbers)]] = True
    place[scattered] = _filled(stated, -1)
    broken[row[(place < 0) | (place >= dim)]] = True
    sound = ~broken[row]
    target = row[sound] * dim + place[sound]
    order, counts = np.unique(target, return_counts=True)
    twice = np.unique(order[counts > 1] // dim)
    out = np.zeros(len(chosen) * dim, dtype=np.float64)
    out[target] = numbers.to_numpy(zero_copy_only=False)[sound]  # null ones are NaN, and not sound
    broken[twice] = True
    null[chosen[broken]] = True
    kept = out.reshape(-1, dim)[~broken].reshape(-1)
    rows = chosen[~broken]
    return Decoded(
        pa.array(kept),
        None if len(rows) == len(column) else rows,
        np.flatnonzero(null),
        ragged,
        lengths[ragged],
    )


def _spark_parts(column: Any) -> tuple[Any, Positions, Any, Any]:
    """Which rows are sparse, the length of each (-1: no vector), and the lists of indices and of values."""
    children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    kind, size = (_filled(children[name], -1).astype(np.int64) for name in ("type", "size"))
    indices, values = children["indices"], children["values"]
    stored, stated = lengths_of(values), lengths_of(indices)
    sparse = kind == 0
    lengths = np.where(sparse, size, stored)
    lengths[(kind != 0) & (kind != 1) | (stored < 0) | sparse & (stated != stored)] = -1
    return sparse, np.maximum(lengths, -1), indices, values


def _nulls(array: Any) -> Any:
    return array.is_null().to_numpy(zero_copy_only=False)


def _filled(array: Any, value: int) -> Any:
    if array.null_count:
        array = array.fill_null(value)
    return array.to_numpy(zero_copy_only=False)
