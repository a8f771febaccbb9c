"""Columns of lists, one vector a row: flattened without a copy where every row is good. And lists of lists.

A batch is a slice of a longer array more often than not; everything here honours its offset.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpudrift.errors import ConfigError, DataError
from gpudrift.source.layouts.elements import Element
from gpudrift.source.layouts.records import NONE, Decoded, Positions


def lengths_of(column: Any) -> Positions:
    """Length of each list, -1 for null."""
    lengths: Positions = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64, copy=False)


def decode_lists(column: Any, dim: int, element: Element, vectors: int = 1) -> Decoded:
    """A fixed-size, 32-bit or 64-bit list array. ``vectors``: a row holds so many, one after the other, to be
    averaged."""
    wanted = element.stored_for(dim * vectors)
    if pa.types.is_fixed_size_list(column.type) and column.type.list_size == wanted:
        good = None if column.null_count == 0 else column.is_valid()
        decoded = _whole_vectors(column, wanted, good, NONE, NONE)
    else:
        lengths = lengths_of(column)
        ragged = np.flatnonzero((lengths != wanted) & (lengths >= 0))
        good = None if bool((lengths == wanted).all()) else pa.array(lengths == wanted)
        decoded = _whole_vectors(column, wanted, good, ragged, values_in(lengths[ragged], element, vectors))
    if element.convert is not None:
        decoded = replace(decoded, values=element.convert(decoded.values))
    if vectors > 1:
        with np.errstate(invalid="ignore"):  # infinities that cancel: NaN, counted as such
            averaged = _numbers(decoded.values).reshape(-1, vectors, dim).mean(axis=1, dtype=np.float64)
        decoded = replace(decoded, values=pa.array(averaged.reshape(-1)))
    return decoded


def values_in(stored: Positions, element: Element, vectors: int = 1) -> Positions:
    """The vector length that so many stored values make; null (-1) stays."""
    return np.where(stored < 0, -1, stored * element.values // (element.stored * vectors))


def _whole_vectors(column: Any, stored: int, good: Any, ragged: Positions, lengths: Positions) -> Decoded:
    """``good`` (Arrow booleans, None: all) marks the rows with a vector of that many values; those are flattened."""
    values = (column if good is None else column.filter(good)).flatten()
    if values.null_count:
        rows = np.arange(len(column)) if good is None else np.flatnonzero(good.to_numpy(zero_copy_only=False))
        holed = np.unique(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)) // stored)
        keep = np.ones(len(column), dtype=bool) if good is None else good.to_numpy(zero_copy_only=False).copy()
        keep[rows[holed]] = False
        good = pa.array(keep)
        values = column.filter(good).flatten()
    if good is None:
        return Decoded(values, None, NONE, ragged, lengths)
    keep = good.to_numpy(zero_copy_only=False)
    null = np.setdiff1d(np.flatnonzero(~keep), ragged, assume_unique=True)
    return Decoded(values, np.flatnonzero(keep), null, ragged, lengths)


class NestedLists:
    """Lists of lists: one vector a row, a matrix of one shape (flattened row by row), or vectors to be averaged.

    Without ``pooling`` only a type that fixes the number of inner lists, or rows with one inner list each, are read:
    averaging and flattening mean different things, and the data do not tell which is meant.
    """

    def __init__(self, element: Element, pooling: str | None, outer_fixed: bool, column: str) -> None:
        self._element, self._pooling, self._column = element, pooling, column
        self._flatten = pooling == "flatten" or outer_fixed
        self.met: tuple[tuple[int, int], str] | None = None
        self._lock = Lock()

    def lengths(self, column: Any, where: str) -> Positions:
        counts, _, lens, row_of = self._parts(column, where)
        totals = np.bincount(row_of, np.maximum(lens, 0), len(column)).astype(np.int64)
        if self._pooling == "mean":
            totals = totals // np.maximum(counts, 1)
        broken = counts < 0
        broken[row_of[lens < 0]] = True
        return values_in(np.where(broken, -1, totals), self._element)

    def decode(self, column: Any, dim: int, where: str) -> Decoded:
        counts, inner, lens, row_of = self._parts(column, where)
        rows, mean = len(column), self._pooling == "mean"
        wanted = self._element.stored_for(dim)
        null = counts < 0
        null[row_of[lens < 0]] = True
        fits = lens == wanted if mean else lens * counts[row_of] == wanted
        fits &= lens % self._element.stored == 0  # no value lies in two inner lists
        good = (counts > 0) & ~null
        good[row_of[~fits]] = False
        if self._flatten and not mean:
            self._one_shape(counts[row_of][good[row_of]], lens[good[row_of]], where)
        ragged = np.flatnonzero(~good & ~null)
        totals = np.bincount(row_of, np.maximum(lens, 0), rows).astype(np.int64)
        lengths = totals[ragged] // np.maximum(counts[ragged], 1) if mean else totals[ragged]
        values = inner.filter(pa.array(good[row_of])).flatten()
        if values.null_count:
            owner = np.repeat(row_of[good[row_of]], lens[good[row_of]])
            holed = owner[values.is_null().to_numpy(zero_copy_only=False)]
            good[holed], null[holed] = False, True
            values = inner.filter(pa.array(good[row_of])).flatten()
        if self._element.convert is not None:
            values = self._element.convert(values)
        if mean and good.any():
            each = counts[good]
            starts = np.cumsum(each) - each
            with np.errstate(invalid="ignore", over="ignore"):  # infinities that cancel: NaN, counted as such
                sums = np.add.reduceat(_numbers(values).reshape(-1, dim).astype(np.float64), starts, axis=0)
            values = pa.array((sums / each[:, None]).reshape(-1))
        return Decoded(
            values,
            None if good.all() else np.flatnonzero(good),
            np.flatnonzero(null),
            ragged,
            values_in(lengths, self._element),
        )

    def _parts(self, column: Any, where: str) -> tuple[Positions, Any, Positions, Positions]:
        """Inner lists a row (-1: null), all of them, their lengths (-1: null), and the row of each."""
        counts = lengths_of(column)
        if not self._flatten and self._pooling is None and (counts > 1).any():
            raise ConfigError(
                f"the column {self._column!r} holds several vectors in one row ({counts.max()} in one of them)",
                where=where,
                field="source.pooling",
                value=None,
                allowed=["mean", "flatten"],
                hint="set source.pooling=mean to score the mean of each row's vectors, or source.pooling=flatten "
                "if every row is a matrix of one shape that stands for one vector",
            )
        inner = column.flatten()
        return counts, inner, lengths_of(inner), np.repeat(np.arange(len(column)), np.maximum(counts, 0))

    def _one_shape(self, counts: Positions, lens: Positions, where: str) -> None:
        """2 x 3 and 3 x 2 both hold six values; whichever is met, all must be it."""
        for shape in {(int(count), int(length)) for count, length in np.unique(np.stack([counts, lens]), axis=1).T}:
            self.meet(shape, where)

    def meet(self, shape: tuple[int, int], where: str) -> None:
        """Note the shape of matrices. Raises DataError where earlier ones had another."""
        with self._lock:
            self.met = self.met or (shape, where)
        first = self.met[0]
        if shape != first:
            raise DataError(
                f"matrices of two shapes, {shape[0]} x {shape[1]} and {first[0]} x {first[1]}, "
                "cannot be flattened to one kind of vector",
                where=where,
                field=self._column,
                hint="set source.pooling=mean to score the mean of each row's vectors, or leave one kind out",
            )


def _numbers(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
