"""A Parquet data set as the job sees it: its extent in time, rows a window, and the rows of windows as one cloud."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from threading import Lock
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from gpudrift.errors import DataError, InsufficientDataError, ReferenceMismatchError
from gpudrift.records import Cloud, Quality, Window
from gpudrift.source import times
from gpudrift.source.access import open_parquet, read_batches
from gpudrift.source.cleaning import BatchReader
from gpudrift.source.footers import Columns, DataFile, plain_type
from gpudrift.source.pieces import Cut, Reading, cut_pieces
from gpudrift.source.planning import FilePlan, SmallColumns, WindowIndex, in_order
from gpudrift.source.quality import BadRows, enforce, summarise
from gpudrift.source.reading import Part, PartReader, PartResult, Placed, batch_bytes, close_gaps, cut_parts
from gpudrift.source.rowfilter import RowFilter
from gpudrift.source.scanning import Scan

OnBadRows = Literal["drop", "fail"]
_PLANS = 8  # plans kept: a run asks for reference, current window and the one before by turns


@dataclass(frozen=True)
class Extent:
    """Event times of the first and the last row (UTC), and the number of rows that have a time and pass the filter.

    Where times are dates, the last row stands for its whole day (or month, for YYYY-MM folders) and ``last`` is the
    last moment of it, so that a finished day counts as finished. ``no_time``: rows without an event time; they belong
    to no window and are never read.
    """

    first: datetime
    last: datetime
    rows: int
    no_time: int = 0


class Plain(NamedTuple):
    """A source without vectors: file system, reader of small columns, types of folder keys, files with the bounds of
    their row groups, time column."""

    filesystem: Any
    small: SmallColumns
    key_types: Mapping[str, Any]
    files: tuple[DataFile, ...]
    time: str


class ParquetSource:
    """Made by ``opening.open_source``. What one call finds out (bounds, counts) the next one uses."""

    def __init__(
        self,
        filesystem: Any,
        files: tuple[DataFile, ...],
        types: dict[str, Any],
        columns: Columns,
        row_filter: RowFilter | None,
        *,
        encoder_id: str | None,
        threads: int,
        on_bad_rows: OnBadRows,
        max_bad_fraction: float,
    ) -> None:
        self._filesystem, self._files, self._key_types, self._columns = filesystem, files, types, columns
        self._filter = row_filter
        self._small = SmallColumns(filesystem, columns, row_filter, types)
        self._threads, self._on_bad_rows, self._max_bad_fraction = threads, on_bad_rows, max_bad_fraction
        self._bounded: tuple[DataFile, ...] | None = None
        self._plans: dict[tuple[Window, ...], list[FilePlan]] = {}
        self._dim = files[0].layout.size
        self.encoder_id = encoder_id

    @property
    def files(self) -> tuple[str, ...]:
        """Paths, in the order of their rows."""
        return tuple(file.path for file in self._files)

    @property
    def dim(self) -> int:
        """Length of the vectors. Where the type does not tell: the most common one in the first rows that have any.

        Raises:
            DataError: no row has a vector.
        """
        if self._dim is None:
            self._dim = self._peek_dim()
        return self._dim

    def extent(self) -> Extent:
        """First and last event time, from footers alone where they tell and no filter looks at rows.

        Raises:
            InsufficientDataError: no row has an event time, or none passes the filter.
            DataError: too many rows without an event time (``on_bad_rows``, ``max_bad_fraction``).
        """
        files = self._with_bounds()
        known = [(file, group.bounds) for file in files for group in file.groups if group.bounds and group.bounds.rows]
        if not known:
            raise InsufficientDataError(
                "there is no row with an event time" + (" that passes source.filter" if self._columns.filter else ""),
                field=self._columns.time,
                where=f"{len(self._files)} files, the first of them {self._files[0].path}",
            )
        last = max(times.last_moment(bounds.last, file.grain) for file, bounds in known)
        return Extent(
            first=times.to_datetime(min(bounds.first for _, bounds in known)),
            last=last,
            rows=sum(bounds.rows for _, bounds in known),
            no_time=_rows_without_time(files),
        )

    def count(self, windows: Sequence[Window]) -> list[int]:
        """Rows of each window, bad ones included; only footers and the time and filter columns are read."""
        counts = [0] * len(windows)
        for plan in self._planned(tuple(windows)):
            for item in plan.groups:
                for k, number in item.counts.items():
                    counts[k] += number
        return counts

    def size(self, windows: Sequence[Window]) -> tuple[frozenset[str], int]:
        """Files that hold rows of the windows, and the compressed bytes of these rows' vectors, by their share of each
        row group."""
        plans = self._planned(tuple(windows))
        groups = [item for plan in plans for item in plan.groups]
        size = sum(item.group.bytes * sum(item.counts.values()) / item.group.rows for item in groups)
        return frozenset(plan.file.path for plan in plans), round(size)

    @property
    def threads(self) -> int:
        """Parts of files read at a time."""
        return self._threads

    def plain(self) -> Plain:
        """What serves columns that are no part of a cloud (``columns``)."""
        return Plain(self._filesystem, self._small, self._key_types, self._with_bounds(), self._columns.time)

    def read(
        self,
        windows: Sequence[Window],
        *,
        pin_memory: bool = False,
        progress: Callable[[int], None] | None = None,
        expect_dim: int | None = None,
    ) -> Cloud:
        """The rows of all windows as one cloud: window after window, in each by file and row, whatever ``threads`` is.

        Memory: the (N, d) float32 tensor, the carried columns, and a few MB a thread. Bad rows are dropped and counted.

        Args:
            windows: in any order, not overlapping.
            pin_memory: page-locked memory, for copies to a CUDA device. The copy comes after the reading, not beside:
                at 25 GB/s (PCIe 4) it takes a few percent of the time of two cores that decode about 0.4 GB/s each, and
                rows are put in their canonical order before it.
            progress: called with numbers of rows as they are decoded, one call at a time; they add up to
                ``sum(count(windows))``.
            expect_dim: the length the vectors must have, such as the pinned reference's.

        Raises:
            DataError: a damaged file; more bad rows in a window than allowed.
            ReferenceMismatchError: vectors of another length than ``expect_dim``.
            ArgumentError: windows that overlap.
        """
        windows = tuple(windows)
        dim = self._checked_dim(expect_dim)
        parts, offsets = cut_parts(self._planned(windows), len(windows), self._threads)
        out = torch.empty((offsets[-1], dim), dtype=torch.float32, pin_memory=pin_memory)
        rows = self._batches(self._columns, windows, dim, self._threads)
        reader = PartReader(self._filesystem, rows, out, _one_at_a_time(progress))
        results = in_order(reader.read, parts, self._threads, reader.stop)
        return self._assembled(windows, out, offsets, parts, parts, results)

    def scan(
        self,
        windows: Sequence[Window],
        *,
        expect_dim: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Scan:
        """The rows ``read`` would give, batch after batch in the order of files and rows, on one thread.

        Memory: a few batches, however many rows there are. The limits on bad rows are enforced behind the last batch.

        Raises:
            as ``read``; what concerns rows is raised while they are gone through.
        """
        windows = tuple(windows)
        dim = self._checked_dim(expect_dim)
        parts, offsets = cut_parts(self._planned(windows), len(windows), 1)
        columns = replace(self._columns, cluster=None)
        return Scan(
            self._filesystem,
            self._batches(columns, windows, dim, 1),
            columns,
            parts,
            self._labels(),
            len(windows),
            lambda bad: self._judge(windows, parts, offsets, bad, dim),
            progress or (lambda _: None),
        )

    def cut(self, windows: Sequence[Window], most: int, *, expect_dim: int | None = None, clusters: bool = True) -> Cut:
        """The rows of all windows in pieces for other processes, of at most so many bytes of float32 rows or one row
        group; the same pieces whatever ``threads`` is. clusters: carry them along.

        Raises:
            as ``read``, but for what lies in the rows.
        """
        windows = tuple(windows)
        columns = self._columns if clusters else replace(self._columns, cluster=None)
        dim, index = self._checked_dim(expect_dim), WindowIndex(windows)
        reading = Reading(self._filesystem, columns, self._filter, self._key_types, index, len(windows), dim)
        return cut_pieces(reading, self._planned(windows), self._labels(), most)

    def cloud_of(self, cut: Cut, windows: Sequence[Window], out: Tensor, results: Sequence[PartResult]) -> Cloud:
        """What ``read`` gives, of the results of all pieces, whose rows stand at their places in ``out``.

        Raises:
            DataError: more bad rows in a window than allowed.
        """
        parts = [part for piece in cut.pieces for part in piece.parts]
        return self._assembled(tuple(windows), out, cut.offsets, parts, cut.pieces, results)

    def quality_of(self, cut: Cut, windows: Sequence[Window], results: Sequence[PartResult]) -> tuple[Quality, ...]:
        """What was read of each window, of the results of all pieces. Raises as ``cloud_of``."""
        parts = [part for piece in cut.pieces for part in piece.parts]
        bad = [_merged(results, k) for k in range(len(windows))]
        return self._judge(windows, parts, cut.offsets, bad, cut.reading.dim)

    def _assembled(
        self,
        windows: tuple[Window, ...],
        out: Tensor,
        offsets: Sequence[int],
        parts: Sequence[Part],
        places: Sequence[Placed],
        results: Sequence[PartResult],
    ) -> Cloud:
        bad = [_merged(results, k) for k in range(len(windows))]
        qualities = self._judge(windows, parts, offsets, bad, int(out.shape[1]))
        offsets = close_gaps(out, places, results, len(windows))
        columns = {name: self._joined(name, results, len(windows)) for name in self._columns.carried}
        named = self._columns
        return Cloud(
            embeddings=out[: offsets[-1]],
            windows=windows,
            offsets=offsets,
            quality=qualities,
            ids=None if named.id is None else columns[named.id],
            clusters=None if named.cluster is None else columns[named.cluster],
            segments={name: columns[name] for name in named.segments},
            encoder_id=self.encoder_id,
        )

    def _batches(self, columns: Columns, windows: Sequence[Window], dim: int, threads: int) -> BatchReader:
        index = WindowIndex(windows)
        return BatchReader(columns, self._small, index, self._key_types, self._labels(), dim, batch_bytes(threads))

    def _judge(
        self,
        windows: Sequence[Window],
        parts: Sequence[Part],
        offsets: Sequence[int],
        bad: Sequence[BadRows],
        dim: int,
    ) -> tuple[Quality, ...]:
        """What was read of each window; DataError where one lost more rows than it may."""
        rows = [b - a for a, b in pairwise(offsets)]
        qualities = tuple(summarise(rows[k], bad[k], *_touched(parts, k)) for k in range(len(windows)))
        enforce(
            windows,
            qualities,
            bad,
            on_bad_rows=self._on_bad_rows,
            max_bad_fraction=self._max_bad_fraction,
            column=self._columns.embedding,
            dim=dim,
        )
        return qualities

    def _with_bounds(self) -> tuple[DataFile, ...]:
        if self._bounded is None:
            files = tuple(in_order(self._small.bounds, self._files, self._threads))
            self._refuse_no_time(files)
            self._bounded = files
        return self._bounded

    def _refuse_no_time(self, files: Sequence[DataFile]) -> None:
        missing, rows = _rows_without_time(files), sum(file.rows for file in files)
        limit = 0.0 if self._on_bad_rows == "fail" else self._max_bad_fraction
        if missing > limit * rows:
            worst = max(files, key=lambda file: sum(group.bounds.no_time for group in file.groups if group.bounds))
            raise DataError(
                f"{missing:,} of {rows:,} rows have no event time",
                field=self._columns.time,
                where=f"{worst.path} (the file with most of them)",
                allowed=f"{limit:.2%} of the rows (quality.on_bad_rows, quality.max_bad_fraction)",
                hint="fill the times in where the rows are written, or leave these rows out with source.filter",
            )

    def _planned(self, windows: tuple[Window, ...]) -> list[FilePlan]:
        if windows not in self._plans:
            index = WindowIndex(windows)
            files = self._with_bounds()
            plans = in_order(lambda file: self._small.plan(file, index), files, self._threads)
            while len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[windows] = [plan for plan in plans if plan.groups]
        return self._plans[windows]

    def _checked_dim(self, expected: int | None) -> int:
        fixed = self._files[0].layout.size
        if expected is None:
            return self.dim
        if fixed is not None and fixed != expected:
            raise ReferenceMismatchError(
                f"the vectors have {fixed} dimensions, {expected} are expected",
                field=self._columns.embedding,
                value=self._files[0].layout.describe(),
                allowed=f"vectors of {expected} dimensions, from the encoder the reference was made with",
            )
        return expected

    def _peek_dim(self) -> int:
        for file in self._files:
            with open_parquet(self._filesystem, file.path) as reader:
                for group in file.groups:
                    for batch in read_batches(reader, file.path, group.index, file.layout.columns, 1024):
                        length = file.layout.common_length(batch, f"{file.path}, row group {group.index}")
                        if length is not None:
                            return length
        raise DataError(
            "no row has a vector",
            field=self._columns.embedding,
            where=f"{len(self._files)} files, {self._files[0].path} first",
        )

    def _labels(self) -> dict[str, str]:
        """Each file's path below the folder they share."""
        shared = posixpath.commonpath([posixpath.dirname(path) for path in self.files])
        return {path: posixpath.relpath(path, shared) for path in self.files}

    def _joined(self, name: str, results: Sequence[PartResult], windows: int) -> Any:
        pieces = [
            piece for k in range(windows) for result in results for piece in result.carried.get(k, {}).get(name, [])
        ]
        if pieces:
            return pa.concat_arrays(pieces)
        in_file = self._files[0].types.get(name)
        return pa.nulls(0, self._key_types[name] if in_file is None else plain_type(in_file))


def _rows_without_time(files: Sequence[DataFile]) -> int:
    return sum(group.bounds.no_time for file in files for group in file.groups if group.bounds)


def _merged(results: Sequence[PartResult], k: int) -> BadRows:
    total = BadRows()
    for result in results:
        if k in result.bad:
            total.merge(result.bad[k])
    return total


def _touched(parts: Sequence[Part], k: int) -> tuple[int, int]:
    """Files that hold rows of window k, and the share of their vectors' compressed bytes that its rows make up."""
    files = {part.file.path for part in parts if k in part.places}
    size = sum(
        item.group.bytes * item.counts[k] / item.group.rows
        for part in parts
        for item in part.groups
        if k in item.counts
    )
    return len(files), round(size)


def _one_at_a_time(progress: Callable[[int], None] | None) -> Callable[[int], None]:
    """``progress`` behind a lock, so that it need not know of threads."""
    if progress is None:
        return lambda _: None
    lock = Lock()

    def locked(rows: int) -> None:
        with lock:
            progress(rows)

    return locked
