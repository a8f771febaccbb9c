"""Vectors from Parquet straight to their place in one preallocated tensor, in bounded memory.

Every part of a file knows from the plan where its rows of each window go, so parts are read in any order and by any
number of threads with one result: rows stand by window, file and row. Bad rows are not written; the gaps they leave at
the end of a part are closed afterwards, in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from gpudrift.errors import DataError
from gpudrift.source.access import damaged, open_parquet, read_batches
from gpudrift.source.footers import Columns, DataFile, plain_type
from gpudrift.source.layouts import Decoded, Positions
from gpudrift.source.planning import FilePlan, GroupPlan, SmallColumns, WindowIndex, constant
from gpudrift.source.quality import BadRows, find_bad_values

# Bytes of vectors decoded at a time: all threads together, and the least and most of one. Decoding a batch takes about
# eight times its size; below the least the overhead of a call shows, above the most the batch leaves the core's cache.
_BATCH_TOTAL, _BATCH_LEAST, _BATCH_MOST = 6 << 20, 3 << 18, 3 << 19
# torch copies up to this many elements on the calling thread; more would start OpenMP threads beside each of ours
_SERIAL_ELEMENTS = 32_767


@dataclass(frozen=True)
class Part:
    """Row groups of one file read by one thread. ``places``: for each window the first slot and the number of rows."""

    file: DataFile
    groups: tuple[GroupPlan, ...]
    places: Mapping[int, tuple[int, int]]


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
    counts = [_added_counts(groups) for _, groups in pieces]
    sizes = [sum(count.get(k, 0) for count in counts) for k in range(windows)]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    cursor = offsets[:-1].copy()
    parts = []
    for (file, groups), count in zip(pieces, counts, strict=True):
        places = {k: (int(cursor[k]), number) for k, number in count.items()}
        for k, number in count.items():
            cursor[k] += number
        parts.append(Part(file, tuple(groups), places))
    return parts, tuple(map(int, offsets))


def _added_counts(groups: Sequence[GroupPlan]) -> dict[int, int]:
    total: dict[int, int] = {}
    for item in groups:
        for k, number in item.counts.items():
            total[k] = total.get(k, 0) + number
    return total


class PartReader:
    """Reads parts into ``out``, (N, d) float32. ``progress`` gets the number of rows of each batch that lie in a
    window; ``labels`` gives the name of each file in examples."""

    def __init__(
        self,
        filesystem: Any,
        columns: Columns,
        small: SmallColumns,
        index: WindowIndex,
        key_types: Mapping[str, Any],
        labels: Mapping[str, str],
        out: Tensor,
        threads: int,
        progress: Callable[[int], None],
    ) -> None:
        self._filesystem, self._columns, self._small, self._index = filesystem, columns, small, index
        self._key_types, self._labels, self._out, self._progress = key_types, labels, out, progress
        self._batch_bytes = min(max(_BATCH_TOTAL // threads, _BATCH_LEAST), _BATCH_MOST)
        self.stop = Event()

    def read(self, part: Part) -> PartResult:
        """Raises DataError where the file is damaged, or is no longer what its plan says."""
        result = PartResult()
        with open_parquet(self._filesystem, part.file.path) as reader:
            for item in part.groups:
                first_row = item.group.first_row
                for batch in self._batches(reader, part.file, item):
                    if self.stop.is_set():
                        return result
                    self._progress(self._place(part, item, batch, first_row, result))
                    first_row += batch.num_rows
                # each thread's allocator keeps freed memory to itself otherwise, which adds up over threads
                pa.default_memory_pool().release_unused()
        if _seen(result) != {k: number for k, (_, number) in part.places.items()}:
            raise _changed(part.file)
        return result

    def _batches(self, reader: Any, file: DataFile, item: GroupPlan) -> Iterator[Any]:
        names = [self._columns.embedding, *(name for name in self._columns.carried if name in file.types)]
        if item.sole is None:
            names += self._small.names(file)
        names = list(dict.fromkeys(names))
        rows = max(16, self._batch_bytes // (self._out.shape[1] * file.layout.element.bit_width // 8))
        yield from read_batches(reader, file.path, item.group.index, names, rows)

    def _place(self, part: Part, item: GroupPlan, batch: Any, first_row: int, result: PartResult) -> int:
        """Write one batch; the number of its rows that lie in a window."""
        file = part.file
        where = f"{file.path}, row group {item.group.index}"
        with damaged(file.path, self._columns.embedding, item.group.index):
            decoded = file.layout.decode(batch.column(self._columns.embedding), self._out.shape[1])
        vectors = None
        if len(decoded.values):
            vectors = from_dlpack(_without_validity(decoded.values)).view(-1, self._out.shape[1])
        codes = None if item.sole is None else np.full(batch.num_rows, item.sole, dtype=np.int64)
        if codes is None:
            codes = self._small.codes(file, batch, self._index, where)
        columns = {name: self._carried(file, batch, item.group.index, name) for name in self._columns.carried}

        def name(position: int) -> str:
            with damaged(file.path, self._columns.id, item.group.index):
                own = None if self._columns.id is None else columns[self._columns.id][position].as_py()
            return f"{self._labels[file.path]}:{first_row + position}" if own is None else str(own)

        for k in np.unique(codes[codes >= 0]).tolist():
            positions = np.flatnonzero(codes == k)
            start, planned = part.places.get(k, (0, 0))
            bad = result.bad.setdefault(k, BadRows())
            done = result.kept.setdefault(k, 0)
            if done + bad.total + len(positions) > planned:
                raise _changed(file)
            _count_shapeless(decoded, codes, k, bad, name)
            chosen, positions = _vectors_of(decoded, codes, k, positions)
            if vectors is not None and len(positions):
                target = self._out[start + done : start + done + len(positions)]
                _copy(target, vectors, chosen)
                positions = _drop_bad_values(target, positions, bad, name)
                result.kept[k] = done + len(positions)
            pieces = result.carried.setdefault(k, {})
            for column, values in columns.items():
                whole = len(positions) == batch.num_rows
                pieces.setdefault(column, []).append(values if whole else values.take(pa.array(positions)))
        return int((codes >= 0).sum())

    def _carried(self, file: DataFile, batch: Any, row_group: int, name: str) -> Any:
        if name not in file.types:
            return constant(file.keys[name], self._key_types[name], batch.num_rows)
        values = batch.column(name)
        kind = plain_type(values.type)
        with damaged(file.path, name, row_group):
            return values if values.type == kind else values.cast(kind)


def close_gaps(out: Tensor, parts: Sequence[Part], results: Sequence[PartResult], windows: int) -> tuple[int, ...]:
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


def _count_shapeless(decoded: Decoded, codes: Positions, k: int, bad: BadRows, name: Callable[[int], str]) -> None:
    bad.add("null", decoded.null[codes[decoded.null] == k], name)
    inside = codes[decoded.ragged] == k
    bad.add("ragged", decoded.ragged[inside], name)
    bad.lengths.update(decoded.ragged_lengths[inside].tolist())


def _vectors_of(decoded: Decoded, codes: Positions, k: int, positions: Positions) -> tuple[Positions, Positions]:
    """The vectors of window k as positions among the decoded vectors, and as positions in the batch."""
    if decoded.rows is None:
        return positions, positions
    chosen = np.flatnonzero(codes[decoded.rows] == k)
    return chosen, decoded.rows[chosen]


def _copy(target: Tensor, vectors: Tensor, chosen: Positions) -> None:
    """The chosen vectors to float32, on this thread; no copy in between where they stand in a row."""
    first = int(chosen[0])
    if int(chosen[-1]) - first + 1 == len(chosen):
        source = vectors[first : first + len(chosen)]
    else:
        source = torch.from_numpy(vectors.numpy().take(chosen, axis=0))
    step = max(1, _SERIAL_ELEMENTS // target.shape[1])
    for i in range(0, len(chosen), step):
        target[i : i + step].copy_(source[i : i + step])


def _drop_bad_values(target: Tensor, positions: Positions, bad: BadRows, name: Callable[[int], str]) -> Positions:
    """Count rows without a usable value and move the others up; the batch positions of the rows kept."""
    non_finite, zero = find_bad_values(target)
    if not len(non_finite) and not len(zero):
        return positions
    bad.add("non_finite", positions[non_finite], name)
    bad.add("zero", positions[zero], name)
    good = np.ones(len(positions), dtype=bool)
    good[non_finite] = good[zero] = False
    values = target.numpy()
    values[: int(good.sum())] = values[good]
    return positions[good]


def _without_validity(values: Any) -> Any:
    # DLPack refuses arrays with nulls; there are none left here, but a slice may still carry the bitmap of its parent
    return pa.Array.from_buffers(values.type, len(values), [None, values.buffers()[1]], 0, values.offset)


def _seen(result: PartResult) -> dict[int, int]:
    return {k: kept + result.bad[k].total for k, kept in result.kept.items()}


def _changed(file: DataFile) -> DataError:
    return DataError(
        "the file has changed while it was read",
        where=file.path,
        hint="run again when its writer is done; writers should rename finished files into place",
    )
