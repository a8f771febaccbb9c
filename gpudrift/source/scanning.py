"""Rows of windows in passing: every good row once, in bounded memory, for whoever keeps sums and not rows.

``Scan`` goes through planned Parquet files, ``ArrowBatches`` cleans record batches that come by another way. Both take
the same path as ``ParquetSource.read`` (``cleaning``), so the rows, the windows and the bad rows are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.records import Quality
from gpudrift.source.access import open_parquet
from gpudrift.source.cleaning import BatchReader, joined
from gpudrift.source.footers import Columns
from gpudrift.source.names import row_ids
from gpudrift.source.quality import BadRows
from gpudrift.source.reading import Part, changed

_BATCH_BYTES = 8 << 20  # of float32 rows handed over at a time


@dataclass(frozen=True)
class ScanBatch:
    """Rows of one window.

    window: its index among those asked for. rows: (n, d) float32 on the CPU, good ones alone; they are overwritten when
    the next batch is asked for. ids: (n,) text without nulls, ``file:row`` where a row has none. segments: (n,) each.
    """

    window: int
    rows: Tensor
    ids: pa.Array
    segments: Mapping[str, pa.Array]


class Scan:
    """Made by ``ParquetSource.scan``; can be gone through once.

    Rows come by file, row group and row; where neighbours lie in several windows, some hundreds of rows at a time are
    put together by window, so that the rows of any one window keep their order.
    """

    def __init__(
        self,
        filesystem: Any,
        rows: BatchReader,
        columns: Columns,
        parts: Sequence[Part],
        labels: Mapping[str, str],
        windows: int,
        finish: Callable[[Sequence[BadRows]], tuple[Quality, ...]],
        progress: Callable[[int], None],
    ) -> None:
        self._filesystem, self._rows, self._columns, self._parts = filesystem, rows, columns, parts
        self._labels, self._finish, self._progress = labels, finish, progress
        self._bad = [BadRows() for _ in range(windows)]
        self._quality: tuple[Quality, ...] | None = None
        self._begun = False

    @property
    def quality(self) -> tuple[Quality, ...]:
        """What was read of each window, as ``Cloud.quality``.

        Raises:
            ArgumentError: rows are still to come.
        """
        if self._quality is None:
            raise ArgumentError("the scan has not come to its end", field="quality")
        return self._quality

    def __iter__(self) -> Iterator[ScanBatch]:
        """Raises DataError where a file is damaged or has changed, and at the end where a window holds more bad rows
        than allowed."""
        if self._begun:
            raise ArgumentError("a scan can be gone through once", field="scan")
        self._begun = True
        return self._batches()

    def _batches(self) -> Iterator[ScanBatch]:
        filling = _Filling(self._rows.dim, self._columns.segments)
        for part in self._parts:
            planned = {k: number for k, (_, number) in part.places.items()}
            seen = dict.fromkeys(planned, 0)
            with open_parquet(self._filesystem, part.file.path) as reader:
                for item in part.groups:
                    for batch, first_row in self._rows.batches(reader, part.file, item):
                        for k, positions in batch.windows():
                            seen[k] = seen.get(k, 0) + len(positions)
                            if not filling.takes(k, len(positions)):
                                yield filling.empty()
                            kept = batch.write(k, positions, filling.space(len(positions)), self._bad[k])
                            if len(kept):
                                ids = None if self._columns.id is None else batch.carried(self._columns.id, kept)
                                named = row_ids(ids, self._labels[part.file.path], first_row + kept)
                                carried = {name: batch.carried(name, kept) for name in self._columns.segments}
                                filling.add(k, named, carried)
                        self._progress(batch.inside)
                    pa.default_memory_pool().release_unused()
            if seen != planned:
                raise changed(part.file)
        if filling.count:
            yield filling.empty()
        self._quality = self._finish(self._bad)


class _Filling:
    """The batch being filled: pieces of one window, one after the other in a buffer that is used again and again."""

    def __init__(self, dim: int, segments: Sequence[str]) -> None:
        self._buffer = torch.empty((max(16, _BATCH_BYTES // (4 * dim)), dim), dtype=torch.float32)
        self._names = tuple(segments)
        self.count, self._window = 0, -1
        self._ids: list[Any] = []
        self._segments: list[Mapping[str, Any]] = []

    def takes(self, window: int, rows: int) -> bool:
        """Whether so many rows of the window may be added as things are."""
        return self.count == 0 or (window == self._window and self.count + rows <= len(self._buffer))

    def space(self, rows: int) -> Tensor:
        """Room for so many rows behind those already here; only their ``add`` keeps them."""
        if self.count + rows > len(self._buffer):  # a batch larger than the buffer, which is empty then
            self._buffer = torch.empty((rows, self._buffer.shape[1]), dtype=torch.float32)
        return self._buffer[self.count : self.count + rows]

    def add(self, window: int, ids: Any, segments: Mapping[str, Any]) -> None:
        self._window = window
        self.count += len(ids)
        self._ids.append(ids)
        self._segments.append(segments)

    def empty(self) -> ScanBatch:
        """What is here, as a batch."""
        batch = ScanBatch(
            self._window,
            self._buffer[: self.count],
            joined(self._ids),
            {name: joined([one[name] for one in self._segments]) for name in self._names},
        )
        self.count, self._ids, self._segments = 0, [], []
        return batch
