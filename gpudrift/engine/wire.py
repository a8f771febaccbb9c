"""A prepared cloud, or a block of one, as plain arrays that can leave the process, and back on a worker's device.

Rows travel as ``kernels.precision`` rounded them: 16-bit precisions as 16 bits, which the CPU holds as float32 of the
same values. So a block that came back has the bits of one that never left, on the CPU and on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpudrift.engine.tasks import Worker
from gpudrift.kernels import MODES, Prepared
from gpudrift.kernels.precision import Mode, padded

ALIGNED = 64  # bytes: torch's own tensors begin at multiples of it


@dataclass(frozen=True)
class PackedBlock:
    """A ``Prepared`` as arrays.

    rows (n, d): float16, int16 (the bits of bfloat16), float32 (tf32 too) or float64, by precision. norms (n,) float64.
    clusters (n,) int64 or None.
    """

    rows: npt.NDArray[Any]
    norms: npt.NDArray[np.float64]
    offsets: tuple[int, ...]
    clusters: npt.NDArray[np.int64] | None
    precision: str
    scale: float

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return self.rows.nbytes + self.norms.nbytes + (0 if self.clusters is None else self.clusters.nbytes)


def pack(prepared: Prepared) -> PackedBlock:
    """A cloud as arrays. They share its memory where that is on the CPU and holds what travels."""
    rows = prepared.rows.to(MODES[prepared.precision].storage)
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.int16)
    return PackedBlock(
        rows=_array(rows),
        norms=_array(prepared.norms),
        offsets=prepared.offsets,
        clusters=None if prepared.clusters is None else _array(prepared.clusters),
        precision=prepared.precision,
        scale=prepared.scale,
    )


def unpack(worker: Worker, value: PackedBlock | Prepared, key: str) -> Prepared:
    """The cloud on the worker's device, as ``kernels.precision.place`` holds it there.

    Args:
        worker: without a device: a ``Prepared`` is computed where it says, arrays on the CPU. What had to be copied is
            kept there by ``key``; what could be used as it lies is not, so nothing is held back from an object store.

    On the CPU rows begin at a multiple of 64 bytes and are copied there where they do not: last bits of the libraries'
    products depend on it, and no two processes would have the same.
    """
    if isinstance(value, Prepared):
        device = value.device if worker.device is None else worker.device
        if _same(value.rows.device, device) and (device.type != "cpu" or value.rows.data_ptr() % ALIGNED == 0):
            return value if _same(value.device, device) else replace(value, device=device)
    else:
        device = torch.device("cpu") if worker.device is None else worker.device
        lying = _where_it_lies(value, device)
        if lying is not None:
            return lying
    mode = MODES[value.precision]
    n, d = value.rows.shape
    size = n * (_width(d, mode, device) * _dtype(mode, device).itemsize + 16)
    found: Prepared
    try:
        found = worker.keep(key, size, lambda: _copy(value, mode, device))
    except torch.OutOfMemoryError:
        worker.clear()  # what is kept of other tasks takes the room
        if isinstance(value, Prepared) and _same(value.device, device):
            return value  # it did not fit when it was prepared either: the kernels stream it
        found = worker.keep(key, size, lambda: _copy(value, mode, device))
    return found


def take(cloud: Prepared, places: Tensor) -> Prepared:
    """A copy of some rows as a cloud of one group, held as the cloud's are. places (k,) int64 on the CPU."""
    placed = _empty(len(places), cloud.dim, MODES[cloud.precision], cloud.device, cloud.rows)
    placed.copy_(cloud.rows[places.to(cloud.rows.device)])
    at = places.to(cloud.norms.device)
    clusters = None if cloud.clusters is None else cloud.clusters[at]
    return replace(cloud, rows=placed, norms=cloud.norms[at], clusters=clusters, offsets=(0, len(places)))


def _copy(value: PackedBlock | Prepared, mode: Mode, device: torch.device) -> Prepared:
    if isinstance(value, PackedBlock):
        rows, norms = _tensor(value.rows), _tensor(value.norms)
        clusters = None if value.clusters is None else _tensor(value.clusters)
        if rows.dtype == torch.int16:
            rows = rows.view(torch.bfloat16)
    else:
        rows, norms, clusters = value.rows, value.norms, value.clusters
    n, d = rows.shape
    placed = _empty(n, d, mode, device)
    placed.copy_(rows)
    return Prepared(
        rows=placed,
        norms=_own(norms, device),
        offsets=value.offsets,
        clusters=None if clusters is None else _own(clusters, device),
        precision=value.precision,
        scale=value.scale,
        device=device,
    )


def _where_it_lies(value: PackedBlock, device: torch.device) -> Prepared | None:
    """The arrays themselves as a cloud; None where they are not what the device's backend computes with."""
    rows = value.rows
    fits = device.type == "cpu" and rows.dtype in (np.float32, np.float64)
    if not fits or not rows.flags.c_contiguous or rows.ctypes.data % ALIGNED:
        return None
    return Prepared(
        rows=_tensor(rows),
        norms=_tensor(value.norms),
        offsets=value.offsets,
        clusters=None if value.clusters is None else _tensor(value.clusters),
        precision=value.precision,
        scale=value.scale,
        device=device,
    )


class _Writable:
    """An array's memory as if it could be written: an object store hands out read-only arrays, and torch, which knows
    no read-only tensors, warns of them. Nothing here writes to what it was handed."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array  # alive as long as the tensor
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return found


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which holds on to no memory of others."""
    return tensor.to(device, copy=True)


def _empty(n: int, d: int, mode: Mode, device: torch.device, like: Tensor | None = None) -> Tensor:
    """Room for rows computed on the device, padded as the fused kernels need them. like: lies where that does."""
    width = _width(d, mode, device)
    held = torch.zeros if width > d else torch.empty
    home, dtype = (device, _dtype(mode, device)) if like is None else (like.device, like.dtype)
    return held((n, width), dtype=dtype, device=home)[:, :d]


def _dtype(mode: Mode, device: torch.device) -> torch.dtype:
    return mode.storage if device.type == "cuda" else mode.held


def _width(d: int, mode: Mode, device: torch.device) -> int:
    return padded(d) if device.type == "cuda" and mode.name != "float64" else d


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean one device: ``cuda`` is the current one."""
    return one.type == other.type and (one.type != "cuda" or _index(one) == _index(other))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
