"""One batch of rows made clean: vectors copied to float32, bad ones counted and left out, columns carried along.

``ParquetSource.read``, its ``scan`` and ``ArrowBatches`` go through here, so that a row is good or bad for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from gpudrift.source.access import damaged, read_batches
from gpudrift.source.footers import Columns, DataFile, plain_type
from gpudrift.source.layouts import Decoded, Positions
from gpudrift.source.planning import GroupPlan, SmallColumns, WindowIndex, constant
from gpudrift.source.quality import BadRows, find_bad_values

# torch copies up to this many elements on the calling thread; more would start OpenMP threads beside each of ours
_SERIAL_ELEMENTS = 32_767


@dataclass(frozen=True)
class OpenBatch:
    """Rows of one record batch. ``codes``: the window of each row, -1 for none; ``columns``: those carried along;
    ``name``: what a row is called among the examples of bad ones, by its position here."""

    decoded: Decoded
    dim: int
    codes: Positions
    columns: Mapping[str, Any]
    name: Callable[[int], str]

    def windows(self) -> Iterator[tuple[int, Positions]]:
        """Each window that rows lie in, and their positions in the batch."""
        if len(self.codes) and self.codes[0] >= 0 and (self.codes == self.codes[0]).all():
            yield int(self.codes[0]), np.arange(len(self.codes))
            return
        for k in np.unique(self.codes[self.codes >= 0]).tolist():
            yield k, np.flatnonzero(self.codes == k)

    @property
    def inside(self) -> int:
        """Rows that lie in a window."""
        return int((self.codes >= 0).sum())

    def write(self, k: int, positions: Positions, space: Tensor, bad: BadRows) -> Positions:
        """The good ones of window k's rows at ``positions``, float32, to the front of ``space`` (at least as many, d).

        Returns their positions in the batch. The others are counted in ``bad``.
        """
        decoded, codes = self.decoded, self.codes
        bad.add("null", decoded.null[codes[decoded.null] == k], self.name)
        inside = codes[decoded.ragged] == k
        bad.add("ragged", decoded.ragged[inside], self.name)
        bad.lengths.update(decoded.ragged_lengths[inside].tolist())
        chosen = positions
        if decoded.rows is not None:
            chosen = np.flatnonzero(codes[decoded.rows] == k)
            positions = decoded.rows[chosen]
        if not len(positions):
            return positions
        vectors = from_dlpack(_without_validity(decoded.values)).view(-1, self.dim)
        target = space[: len(positions)]
        _copy(target, vectors, chosen)
        return _drop_bad_values(target, positions, bad, self.name)

    def carried(self, name: str, positions: Positions) -> Any:
        """The values of a carried column at the positions ``write`` returned."""
        values = self.columns[name]
        return values if len(positions) == len(values) else values.take(pa.array(positions))


class BatchReader:
    """Record batches of planned row groups, opened for ``write``. ``labels`` name files in examples."""

    def __init__(
        self,
        columns: Columns,
        small: SmallColumns,
        index: WindowIndex,
        key_types: Mapping[str, Any],
        labels: Mapping[str, str],
        dim: int,
        batch_bytes: int,
    ) -> None:
        self._columns, self._small, self._index = columns, small, index
        self._key_types, self._labels, self.dim, self._batch_bytes = key_types, labels, dim, batch_bytes

    def batches(self, reader: Any, file: DataFile, item: GroupPlan) -> Iterator[tuple[OpenBatch, int]]:
        """Each batch of a row group in order, and the number of its first row in the file."""
        names = [*file.layout.columns, *(name for name in self._columns.carried if name in file.types)]
        if item.sole is None:
            names += self._small.names(file)
        names = list(dict.fromkeys(names))
        first_row = item.group.first_row
        for batch in read_batches(reader, file.path, item.group.index, names, self.rows_at_most(file)):
            yield self._open(file, item, batch, first_row), first_row
            first_row += batch.num_rows

    def rows_at_most(self, file: DataFile) -> int:
        """Rows of a batch. Of a column a dimension more than fit the cache: each column has a price of its own."""
        least = 16 if len(file.layout.columns) == 1 else 512
        return max(least, int(self._batch_bytes / (self.dim * file.layout.value_bytes)))

    def _open(self, file: DataFile, item: GroupPlan, batch: Any, first_row: int) -> OpenBatch:
        group = item.group.index
        where = f"{file.path}, row group {group}"
        with damaged(file.path, self._columns.embedding, group):
            decoded = file.layout.decode(batch, self.dim, where)
        if item.sole is None:
            codes = self._small.codes(file, batch, self._index, where)
        else:
            codes = np.full(batch.num_rows, item.sole, dtype=np.int64)
        columns = {name: self._carried(file, batch, group, name) for name in self._columns.carried}

        def name(position: int) -> str:
            with damaged(file.path, self._columns.id, group):
                own = None if self._columns.id is None else columns[self._columns.id][position].as_py()
            return f"{self._labels[file.path]}:{first_row + position}" if own is None else str(own)

        return OpenBatch(decoded, self.dim, codes, columns, name)

    def _carried(self, file: DataFile, batch: Any, row_group: int, name: str) -> Any:
        if name not in file.types:
            return constant(file.keys[name], self._key_types[name], batch.num_rows)
        with damaged(file.path, name, row_group):
            return plain(batch.column(name))


def plain(values: Any) -> Any:
    """A carried column in its ``plain_type``."""
    kind = plain_type(values.type)
    return values if values.type == kind else values.cast(kind)


def joined(pieces: Sequence[Any]) -> Any:
    """One Arrow array of several of one type."""
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


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
