"""Vectors from Parquet straight to their place in one preallocated tensor, in bounded memory.

Every part of a file knows from the plan where its rows of each window go, so parts are read in any order and by any
number of threads with one result: rows stand by window, file and row. Bad rows are not written; the gaps they leave at
the end of a part are closed afterwards, in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from gpudrift.errors import DataError
from gpudrift.source.access import open_parquet
from gpudrift.source.cleaning import BatchReader, OpenBatch
from gpudrift.source.footers import DataFile
from gpudrift.source.planning import FilePlan, GroupPlan
from gpudrift.source.quality import BadRows

# Bytes of vectors decoded at a time: all threads together, and the least and most of one. Decoding a batch takes about
# eight times its size; below the least the overhead of a call shows, above the most the batch leaves the core's cache.
_BATCH_TOTAL, _BATCH_LEAST, _BATCH_MOST = 6 << 20, 3 << 18, 3 << 19


Places = Mapping[int, tuple[int, int]]  # of windows: the first slot and the number of rows


class Placed(Protocol):
    """What has a place among the rows of a cloud."""

    @property
    def places(self) -> Places: ...


@dataclass(frozen=True)
class Part:
    """Row groups of one file read by one thread. ``places``: for each window the first slot and the number of rows."""

    file: DataFile
    groups: tuple[GroupPlan, ...]
    places: Places


@dataclass
class PartResult:
    """What a part held, by window: rows kept, bad rows, and the carried columns' pieces."""

    kept: dict[int, int] = field(default_factory=dict)
    bad: dict[int, BadRows] = field(default_factory=dict)
    carried: dict[int, dict[str, list[Any]]] = field(default_factory=dict)


def cut_parts(plans: Sequence[FilePlan], windows: int, threads: int) -> tuple[list[Part], tuple[int, ...]]:
    """Parts in the order of their rows, and the window offsets (windows + 1). A file is one part unless that would
    leave threads idle: one large file is cut between row groups."""
    pieces: list[tuple[DataFile, list[GroupPlan]]] = []
    total = sum(item.group.rows for plan in plans for item in plan.groups)
    share = max(1, -(-total // threads))
    for plan in plans:
        piece: list[GroupPlan] = []
        for item in plan.groups:
            if piece and sum(one.group.rows for one in piece) >= share:
                pieces.append((plan.file, piece))
                piece = []
            piece.append(item)
        if piece:
            pieces.append((plan.file, piece))
    return place_parts(pieces, windows)


def place_parts(
    pieces: Sequence[tuple[DataFile, Sequence[GroupPlan]]], windows: int
) -> tuple[list[Part], tuple[int, ...]]:
    """A part for each piece of a file, and the window offsets (windows + 1)."""
    counts = [_added_counts(groups) for _, groups in pieces]
    places, offsets = placed(counts, windows)
    made = [Part(file, tuple(groups), at) for (file, groups), at in zip(pieces, places, strict=True)]
    return made, offsets


def placed(counts: Sequence[Mapping[int, int]], windows: int) -> tuple[list[Places], tuple[int, ...]]:
    """Places of so many rows by window, window after window and in each in the order given; and window offsets."""
    sizes = np.zeros(windows, dtype=np.int64)
    for count in counts:
        for k, number in count.items():
            sizes[k] += number
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    cursor = offsets[:-1].copy()
    places: list[Places] = []
    for count in counts:
        places.append({k: (int(cursor[k]), number) for k, number in count.items()})
        for k, number in count.items():
            cursor[k] += number
    return places, tuple(map(int, offsets))


def _added_counts(groups: Sequence[GroupPlan]) -> dict[int, int]:
    total: dict[int, int] = {}
    for item in groups:
        for k, number in item.counts.items():
            total[k] = total.get(k, 0) + number
    return total


class PartReader:
    """Reads parts into ``out``, (N, d) float32. ``progress`` gets the number of rows of each batch that lie in a
    window."""

    def __init__(self, filesystem: Any, rows: BatchReader, out: Tensor, progress: Callable[[int], None]) -> None:
        self._filesystem, self._rows, self._out, self._progress = filesystem, rows, out, progress
        self.stop = Event()

    def read(self, part: Part) -> PartResult:
        """Raises DataError where the file is damaged, or is no longer what its plan says."""
        result = PartResult()
        with open_parquet(self._filesystem, part.file.path) as reader:
            for item in part.groups:
                for batch, _ in self._rows.batches(reader, part.file, item):
                    if self.stop.is_set():
                        return result
                    self._place(part, batch, result)
                    self._progress(batch.inside)
                # each thread's allocator keeps freed memory to itself otherwise, which adds up over threads
                pa.default_memory_pool().release_unused()
        if _seen(result) != {k: number for k, (_, number) in part.places.items()}:
            raise changed(part.file)
        return result

    def _place(self, part: Part, batch: OpenBatch, result: PartResult) -> None:
        for k, positions in batch.windows():
            start, planned = part.places.get(k, (0, 0))
            bad = result.bad.setdefault(k, BadRows())
            done = result.kept.setdefault(k, 0)
            if done + bad.total + len(positions) > planned:
                raise changed(part.file)
            positions = batch.write(k, positions, self._out[start + done : start + planned], bad)
            result.kept[k] = done + len(positions)
            pieces = result.carried.setdefault(k, {})
            for column in batch.columns:
                pieces.setdefault(column, []).append(batch.carried(column, positions))


def batch_bytes(threads: int) -> int:
    """Bytes of vectors each of so many threads decodes at a time."""
    return min(max(_BATCH_TOTAL // threads, _BATCH_LEAST), _BATCH_MOST)


def close_gaps(out: Tensor, parts: Sequence[Placed], results: Sequence[PartResult], windows: int) -> tuple[int, ...]:
    """Move the kept rows of every part up to the ones before, window by window, in place; the new window offsets."""
    values = out.numpy()
    step = max(1, (8 << 20) // (4 * max(1, out.shape[1])))
    offsets = [0]
    target = 0
    for k in range(windows):
        for part, result in zip(parts, results, strict=True):
            source, kept = part.places.get(k, (0, 0))[0], result.kept.get(k, 0)
            if source != target:
                for i in range(0, kept, step):
                    rows = min(step, kept - i)
                    # numpy sees that the two overlap and goes through a copy of this piece
                    values[target + i : target + i + rows] = values[source + i : source + i + rows]
            target += kept
        offsets.append(target)
    return tuple(offsets)


def _seen(result: PartResult) -> dict[int, int]:
    return {k: kept + result.bad[k].total for k, kept in result.kept.items()}


def changed(file: DataFile) -> DataError:
    return DataError(
        "the file has changed while it was read",
        where=file.path,
        hint="run again when its writer is done; writers should rename finished files into place",
    )
