"""The pairwise core's front door: sums over ALL pairs of two clouds, with no n x m matrix anywhere.

For clouds X (n, d) and Y (m, d) and pair functions k_f (the Euclidean distance; Gaussian RBFs at given bandwidths) one
pass over tiles yields, in float64,

    total_f = sum_ij k_f(x_i, y_j)            rows_f[i] = sum_j k_f          columns_f[j] = sum_i k_f
    squares_f = sum_ij k_f^2                  blocks_f[g, h] = sum over rows of group g, columns of group h

which is all that energy distance, MMD, their standard errors, witness values and leave-one-window-out scores need
(``gpudrift.metrics.pairs`` has the formulas). ``self_sums`` treats a cloud against itself: self pairs are left out by
index, only the upper tiles are computed, and sums run over ordered pairs (i, j), i != j.

The contract every backend keeps:

* ``prepare`` centres and rounds a cloud ONCE; norms are taken from the rounded rows; the same prepared cloud serves X
  against X, X against Y, and a pinned reference is prepared once a job.
* Within a tile sums are in the compute dtype; across tiles they are accumulated in float64 in a fixed order: the same
  input on the same backend gives the same bits.
* Distances of near-duplicates come out near 0, never NaN.
* Cluster codes leave out the pairs of equal code; groups are contiguous row ranges.

``torch_ops`` serves CPU and CUDA with tiled torch; ``reference`` is the dense float64 definition, for tests alone.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, RangeError
from gpudrift.kernels import torch_ops
from gpudrift.kernels.layout import PairSums, Prepared, count_pairs

__all__ = ["Backend", "PairSums", "Prepared", "backend_for", "cross_sums", "prepare", "self_sums"]

_log = logging.getLogger(__name__)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Backend:
    """Which implementation serves a call, and why."""

    name: str
    reason: str


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """The one place where a backend is chosen."""
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return Backend("torch-cuda", f"tiled torch on {device}, {kind}")
    if device.type == "cpu":
        return Backend("torch-cpu", f"tiled torch on the CPU, {kind}")
    raise ArgumentError("no backend for this device", field="device", value=str(device), allowed=["cpu", "cuda"])


def prepare(
    rows: Tensor,
    *,
    centre: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    offsets: Sequence[int] | None = None,
    clusters: Tensor | None = None,
) -> Prepared:
    """Centre, round and measure a cloud once.

    Args:
        rows: (n, d) floating tensor.
        centre: (d,) subtracted from every row in float64 before rounding; distances do not change, cancellation does.
            None: the rows are used as they are, without a copy where dtype and device already fit.
        dtype: float32 or float64, what pairs are computed in.
        device: where; None: where the rows are.
        offsets: group boundaries, ascending from 0 to n; None: one group.
        clusters: (n,) int64 codes; pairs of equal code are left out of every sum.
    """
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ArgumentError("a cloud has the shape (n, d)", field="rows", value=tuple(rows.shape), allowed="n, d >= 1")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError("unknown dtype", field="dtype", value=dtype, allowed=["float32", "float64"])
    n = int(rows.shape[0])
    bounds = (0, n) if offsets is None else tuple(int(o) for o in offsets)
    if bounds[0] != 0 or bounds[-1] != n or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ArgumentError("offsets must ascend from 0 to n", field="offsets", value=bounds, allowed=f"0 ... {n}")
    if clusters is not None and tuple(clusters.shape) != (n,):
        raise ArgumentError("one cluster code a row", field="clusters", value=tuple(clusters.shape), allowed=(n,))
    target = torch.device(device) if device is not None else rows.device
    moved = rows.to(target)
    if centre is None:
        prepared = moved.to(dtype).contiguous()
    else:
        prepared = torch.empty(moved.shape, dtype=dtype, device=target)
        middle = centre.to(device=target, dtype=torch.float64)
        step = max(1, (1 << 22) // moved.shape[1])
        for start in range(0, n, step):
            prepared[start : start + step] = moved[start : start + step].to(torch.float64) - middle
    norms = torch_ops.squared_norms(prepared)
    _check_range(norms, dtype)
    return Prepared(
        rows=prepared,
        norms=norms,
        offsets=bounds,
        clusters=None if clusters is None else clusters.to(device=target, dtype=torch.int64),
    )


def _check_range(norms: Tensor, dtype: torch.dtype) -> None:
    """Refuse rows whose squared distances overflow, or are all lost below the smallest number of the dtype."""
    if not len(norms):
        return
    low, high = (1e-30, 1e36) if dtype == torch.float32 else (1e-200, 1e200)
    largest = float(norms.max())
    if largest > high or not math.isfinite(largest):
        raise RangeError(
            f"row {int(norms.argmax())} is too long for {str(dtype).removeprefix('torch.')}: its squares overflow",
            field="embedding",
            value=f"length {math.sqrt(largest):.3g} from the centre",
            allowed=f"lengths up to {math.sqrt(high):.3g}",
            hint="look for corrupt rows, or rescale; precision=float64 widens the range",
        )
    if 0 < largest < low:
        raise RangeError(
            f"all rows are too short for {str(dtype).removeprefix('torch.')}: their squares underflow",
            field="embedding",
            value=f"length at most {math.sqrt(largest):.3g} from the centre",
            allowed=f"lengths of {math.sqrt(low):.3g} or more",
            hint="rescale the embeddings; precision=float64 widens the range",
        )


def cross_sums(
    x: Prepared,
    y: Prepared,
    *,
    bandwidths: Sequence[float] = (),
    squares: bool = True,
    progress: Progress | None = None,
    tile: tuple[int, int] | None = None,
) -> PairSums:
    """Sums over all pairs (x_i, y_j).

    Args:
        x, y: prepared clouds of equal d, dtype and device, centred by the same point.
        bandwidths: standard deviations s of the RBFs exp(-|x - y|^2 / (2 s^2)); the distance always comes first.
        squares: also sum k^2: free for the distance, one more reduction an RBF. NaN where not asked for.
        progress: called with the number of pairs done since the last call.
        tile: (rows, columns) of a tile; None: by backend. Results agree across tiles to rounding, not to the bit.
    """
    _check_match(x, y)
    _announce(x)
    return torch_ops.pair_sums(x, y, tuple(bandwidths), squares, progress, tile, count_pairs(x, y))


def self_sums(
    x: Prepared,
    *,
    bandwidths: Sequence[float] = (),
    squares: bool = True,
    progress: Progress | None = None,
    tile: tuple[int, int] | None = None,
) -> PairSums:
    """Sums over all ordered pairs (x_i, x_j), i != j; rows and columns are the same. Arguments as ``cross_sums``."""
    _check_match(x, x)
    _announce(x)
    return torch_ops.pair_sums(x, None, tuple(bandwidths), squares, progress, tile, count_pairs(x, None))


def _check_match(x: Prepared, y: Prepared) -> None:
    if x.rows.shape[1] != y.rows.shape[1]:
        raise ArgumentError(
            "both clouds need the same dimension", field="d", value=int(y.rows.shape[1]), allowed=int(x.rows.shape[1])
        )
    if (x.rows.dtype, x.rows.device) != (y.rows.dtype, y.rows.device):
        raise ArgumentError("both clouds need one dtype and device", field="y", value=(y.rows.dtype, y.rows.device))
    if (x.clusters is None) != (y.clusters is None):
        raise ArgumentError("cluster codes are needed for both clouds or neither", field="clusters")


def _announce(x: Prepared) -> None:
    backend = backend_for(x.rows.device, x.rows.dtype)
    _log.debug("pair sums by %s: %s", backend.name, backend.reason)
