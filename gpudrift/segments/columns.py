"""Which segments there are: values of the segment columns scored alone, and the rare ones of a column together.

The reference decides, so that a segment is the same one every week: a value is scored alone when at least three of the
reference's windows hold ``min_rows`` rows of it. All other values of the column, those the reference has never seen
among them, are its pool. Rows without a value are a value of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpudrift.calibrate import MIN_NULL
from gpudrift.errors import ArgumentError
from gpudrift.records import SegmentScore
from gpudrift.sampling import LEAST, apportion
from gpudrift.source.names import as_text

Places = NDArray[np.int64]


@dataclass(frozen=True)
class SegmentSettings:
    """min_rows: of a segment in a window, below which it is not scored. fdr: q-value below which a segment warns. most:
    values scored alone in a run, those with the most reference rows; the others are pooled."""

    min_rows: int = 50
    fdr: float = 0.05
    most: int = 200

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("min_rows", self.min_rows >= LEAST, f"{LEAST} or more"),
            ("fdr", 0 < self.fdr < 1, "above 0, below 1"),
            ("most", self.most >= 1, "1 or more"),
        ):
            if not ok:
                value = getattr(self, name)
                raise ArgumentError("unusable setting", field=f"segments.{name}", value=value, allowed=allowed)


@dataclass(frozen=True)
class Segment:
    """A segment as the reference has it. value None: rows without one, or the pool; pooled: rare values in the pool, 0
    for a single value. rows: places of its reference rows, ascending. sizes: rows by window; pairs: those of them, the
    first, that take part in pairs."""

    column: str
    value: str | None
    pooled: int
    rows: Places
    sizes: tuple[int, ...]
    pairs: tuple[int, ...]

    @property
    def key(self) -> tuple[str, bool, bool, str]:
        return key_of(self)


@dataclass(frozen=True)
class SegmentColumn:
    """values: those scored alone, an Arrow array of text in the order of ``segments``; the pool, perhaps without rows,
    comes last."""

    values: Any
    segments: tuple[Segment, ...]

    def split(self, values: Any) -> list[Places]:
        """Places of the rows of each segment, ascending, among rows with these values."""
        known = pc.index_in(as_text(values), value_set=self.values, skip_nulls=False).fill_null(len(self.values))
        codes = known.to_numpy(zero_copy_only=False).astype(np.int64)
        sizes = np.bincount(codes, minlength=len(self.values) + 1)
        return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


def key_of(segment: Segment | SegmentScore) -> tuple[str, bool, bool, str]:
    """What tells segments apart, and their order: by column, then text; rows without a value and the pool last."""
    return segment.column, segment.pooled > 0, *_rank(segment.value)


def segment_columns(
    columns: Mapping[str, Any],
    offsets: Sequence[int],
    settings: SegmentSettings,
    limit: int,
    min_windows: int = MIN_NULL,
) -> dict[str, SegmentColumn]:
    """The segments of a reference, by column in order of name.

    Args:
        columns: Arrow arrays aligned with the reference's rows. offsets: of its windows among the rows.
        limit: the segments of a column together take part in no more pairs than so many rows would; see ``cap``.
        min_windows: a value with enough rows in fewer of the windows is pooled: alone it could have no verdict.
    """
    windows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found, numbers = [], {}
    for name in sorted(columns):
        encoded = as_text(columns[name]).dictionary_encode(null_encoding="encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        numbers[name] = len(encoded.dictionary)
        sizes = np.bincount(codes, minlength=numbers[name])
        # only the cells that occur: a column may have as many values as rows
        cells, rows = np.unique(codes * len(offsets) + windows, return_counts=True)
        usable = np.bincount(cells[rows >= settings.min_rows] // len(offsets), minlength=numbers[name])
        found += [
            (-int(sizes[code]), name, _rank(encoded.dictionary[int(code)].as_py()))
            for code in np.flatnonzero(usable >= min_windows)
        ]
    alone = sorted(found)[: settings.most]
    return {
        name: _column(
            name,
            columns[name],
            [None if rank[0] else rank[1] for rank in sorted(rank for _, of, rank in alone if of == name)],
            numbers[name],
            windows,
            len(offsets) - 1,
            settings.min_rows,
            limit,
        )
        for name in sorted(columns)
    }


def cap(sizes: Sequence[int], limit: int) -> int:
    """Most rows of a segment, so that segments of these sizes, each cut to it, have at most ``limit``^2 pairs together:
    the largest are cut, the small keep all."""
    budget, ordered = limit * limit, sorted(sizes)
    for k, size in enumerate(ordered):
        left = len(ordered) - k
        if size * size * left > budget:
            return math.isqrt(budget // left)
        budget -= size * size
    return ordered[-1] if ordered else limit


def _column(
    name: str,
    values: Any,
    alone: Sequence[str | None],
    number: int,
    windows: Places,
    count: int,
    min_rows: int,
    limit: int,
) -> SegmentColumn:
    """``alone``: of the column's ``number`` values those scored alone, in order. windows: of each row, by index."""
    texts = pa.array(alone, pa.large_string())
    parts = SegmentColumn(texts, ()).split(values)
    most = cap([len(rows) for rows in parts if len(rows) >= min_rows], limit)
    labels = [*((value, 0) for value in alone), (None, number - len(alone))]
    segments = []
    for (value, pooled), rows in zip(labels, parts, strict=True):
        sizes = tuple(np.bincount(windows[rows], minlength=count).tolist())
        segments.append(Segment(name, value, pooled, rows, sizes, _shares(sizes, most, min_rows)))
    return SegmentColumn(texts, tuple(segments))


def _shares(sizes: Sequence[int], most: int, floor: int) -> tuple[int, ...]:
    """Rows of each window in pairs: ``most`` in proportion to all, and at least ``floor`` where a window has them, but
    for floors that together make more than ``most``."""
    occupied = sum(size > 0 for size in sizes)
    floor = max(min(floor, most // max(occupied, 1)), LEAST)
    return tuple(max(share, min(size, floor)) for size, share in zip(sizes, apportion(sizes, most), strict=True))


def _rank(value: str | None) -> tuple[bool, str]:
    """Sorts texts, and no text after them."""
    return value is None, value or ""
