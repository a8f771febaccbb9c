"""A uniform sample of the distinct rows of a stream: those with the k smallest keys.

A row's key is a 64-bit hash of the plan's seed, the row's id and its float32 bits. Over the draw of the seed every set
of k distinct rows is equally likely (bottom-k sampling, Cohen and Kaplan 2007; the cost is that of the Algorithm L of
Li 1994, since a threshold turns away nearly all rows of a long stream). The sample is a function of the set of rows:
merging in any grouping gives the very same one, shards of any size are represented row by row, and a row that is
delivered again (same id, same bits) collapses. Two distinct rows share a key with probability n^2 / 2^65: one in a
million for ten million rows; the sample then keeps one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift.errors import DataError
from gpudrift.fingerprint import binary_parts, id_bytes, id_hashes, mix, row_hashes

_ID = np.uint64(0x9E3779B97F4A7C15)


def keys_of(rows: Tensor, ids: pa.Array, seed: int) -> NDArray[np.uint64]:
    """(n,) uint64 keys of float32 rows (n, d) with their ids. DataError for ids that cannot be used."""
    of_seed = mix(np.array([seed], dtype=np.uint64) + _ID)
    return mix(row_hashes(rows) ^ mix(id_hashes(ids) + of_seed) * _ID)


@dataclass(frozen=True, eq=False)
class Reservoir:
    """keys: (k',) uint64, increasing. rows: (k', d) float32. ids: (k',) large_binary. k' is at most the plan's k."""

    keys: NDArray[np.uint64]
    rows: Tensor
    ids: pa.Array

    @classmethod
    def empty(cls, dim: int) -> Reservoir:
        return cls(np.zeros(0, dtype=np.uint64), torch.zeros(0, dim), pa.array([], type=pa.large_binary()))

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, keys: NDArray[np.uint64], rows: Tensor, ids: pa.Array, k: int) -> Reservoir:
        """With a batch of float32 rows (n, d), at most k kept."""
        near = np.flatnonzero(keys < self.keys[k - 1]) if len(self) >= k else np.arange(len(keys))
        if len(near) == 0:
            return self
        if len(near) > k:
            # a batch longer than the reservoir: the k smallest distinct keys are all that can stay
            kept = np.unique(keys[near], return_index=True)[1][:k]
            near = near[np.sort(kept)]
        taken = id_bytes(ids).take(pa.array(near))
        # + 0.0: a row with -0.0 has the key of the same row with 0.0, and must be the same row
        return self.merge(Reservoir(keys[near], rows[torch.from_numpy(near)] + 0.0, taken), k)

    def merge(self, other: Reservoir, k: int) -> Reservoir:
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_index=True)
        places, own = places[:k], len(self)
        theirs = np.flatnonzero(places >= own)
        if len(theirs) == len(places):
            rows = other.rows[torch.from_numpy(places - own)]
        else:  # one copy of the rows, not two: a batch seldom changes many
            rows = self.rows[torch.from_numpy(np.where(places < own, places, 0))]
            rows[torch.from_numpy(theirs)] = other.rows[torch.from_numpy(places[theirs] - own)]
        ids = pa.concat_arrays([self.ids, other.ids]).take(pa.array(places))
        return Reservoir(keys[:k], rows, ids)

    def labels(self) -> pa.Array:
        """The ids as text, or as bytes where they are no UTF-8."""
        try:
            return self.ids.cast(pa.large_string())
        except pa.ArrowInvalid:
            return self.ids

    def state(self) -> dict[str, Tensor]:
        values, offsets = binary_parts(self.ids)
        return {
            "reservoir.keys": torch.from_numpy(self.keys.view(np.int64).copy()),
            "reservoir.rows": self.rows.contiguous(),
            "reservoir.id_bytes": torch.from_numpy(values[offsets[0] : offsets[-1]].copy()),
            "reservoir.id_offsets": torch.from_numpy(offsets - offsets[0]),
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], dim: int, k: int, seed: int) -> Reservoir:
        """DataError where the parts do not fit each other: every key is recomputed from its row and id."""
        keys = tensors["reservoir.keys"].numpy().copy().view(np.uint64)
        rows = tensors["reservoir.rows"].clone()
        values = tensors["reservoir.id_bytes"].numpy().copy()
        offsets = tensors["reservoir.id_offsets"].numpy().copy()
        if (
            rows.shape != (len(keys), dim)
            or rows.dtype != torch.float32
            or len(keys) > k
            or values.dtype != np.uint8
            or offsets.dtype != np.int64
            or offsets.shape != (len(keys) + 1,)
            or offsets[0] != 0
            or offsets[-1] != len(values)
            or bool((np.diff(offsets) < 0).any())
        ):
            raise DataError("the reservoir's parts do not fit each other")
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
        ids = pa.Array.from_buffers(pa.large_binary(), len(keys), buffers)
        increasing = bool((keys[1:] > keys[:-1]).all())
        if not increasing or not np.array_equal(keys_of(rows, ids, seed), keys):
            raise DataError("the reservoir's keys are not those of its rows and ids")
        return cls(keys, rows, ids)
