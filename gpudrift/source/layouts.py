"""The column layouts embeddings come in, and how each becomes one flat run of floats.

``LAYOUTS`` is the whole list: a predicate on the Arrow type and a decoder each. A new layout is a new line there; the
reader knows none of them by name. Decoders copy nothing where every row is good, and honour the offset of a sliced
array: a batch is a slice more often than not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """The vectors of one batch.

    values: flat Arrow float array without nulls, dim values a vector. rows: the batch row of each vector, None when all
    rows have one. null: rows without a vector, or with a vector that lacks a value. ragged: rows of another length,
    with those lengths beside them.
    """

    values: Any
    rows: Positions | None
    null: Positions
    ragged: Positions
    ragged_lengths: Positions


@dataclass(frozen=True)
class Layout:
    """How one embedding column is stored. ``size`` is the vector length where the type fixes it."""

    name: str
    element: Any
    size: int | None
    decode: Callable[[Any, int], Decoded]

    def describe(self) -> str:
        length = "" if self.size is None else f"[{self.size}]"
        return f"{self.name}<{self.element}>{length}"

    def same_kind(self, other: Layout) -> bool:
        """True when two files can be read together, their vector lengths apart."""
        return self.name == other.name and bool(self.element == other.element)


@dataclass(frozen=True)
class LayoutFamily:
    name: str
    matches: Callable[[Any], bool]
    decode: Callable[[Any, int], Decoded]


_NONE: Positions = np.empty(0, dtype=np.int64)


def _decode_fixed(column: Any, dim: int) -> Decoded:
    present = None if column.null_count == 0 else column.is_valid()
    return _whole_vectors(column, dim, present, _NONE, _NONE)


def _decode_list(column: Any, dim: int) -> Decoded:
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    ragged = np.flatnonzero((lengths != dim) & (lengths >= 0))
    good = None if bool((lengths == dim).all()) else pa.array(lengths == dim)
    return _whole_vectors(column, dim, good, ragged, lengths[ragged].astype(np.int64))


def _whole_vectors(column: Any, dim: int, good: Any, ragged: Positions, lengths: Positions) -> Decoded:
    """``good`` (Arrow booleans, None: all) marks the rows with a vector of dim values; those are flattened."""
    values = (column if good is None else column.filter(good)).flatten()
    if values.null_count:
        rows = np.arange(len(column)) if good is None else np.flatnonzero(good.to_numpy(zero_copy_only=False))
        holed = np.unique(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)) // dim)
        keep = np.ones(len(column), dtype=bool) if good is None else good.to_numpy(zero_copy_only=False).copy()
        keep[rows[holed]] = False
        good = pa.array(keep)
        values = column.filter(good).flatten()
    if good is None:
        return Decoded(values, None, _NONE, ragged, lengths)
    keep = good.to_numpy(zero_copy_only=False)
    null = np.setdiff1d(np.flatnonzero(~keep), ragged, assume_unique=True)
    return Decoded(values, np.flatnonzero(keep), null, ragged, lengths)


LAYOUTS = (
    LayoutFamily("fixed_size_list", pa.types.is_fixed_size_list, _decode_fixed),
    LayoutFamily("list", pa.types.is_list, _decode_list),
    LayoutFamily("large_list", pa.types.is_large_list, _decode_list),
)
READABLE = "fixed_size_list, list or large_list of float16, float32 or float64"


def layout_of(arrow_type: Any) -> Layout | None:
    """The layout of a column of this Arrow type, None when it is not one of ``LAYOUTS``."""
    for family in LAYOUTS:
        if family.matches(arrow_type) and pa.types.is_floating(arrow_type.value_type):
            size = arrow_type.list_size if family.name == "fixed_size_list" else None
            return Layout(family.name, arrow_type.value_type, size, family.decode)
    return None


def common_length(column: Any) -> int | None:
    """The most common length of the non-empty vectors of a list column, None when there is none."""
    lengths = pc.drop_null(pc.list_value_length(column)).to_numpy(zero_copy_only=False)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return None
    found, counts = np.unique(lengths, return_counts=True)
    return int(found[counts.argmax()])
