"""The pairwise core's front door: sums over ALL pairs of two clouds, with no n x m matrix anywhere.

For clouds X (n, d) and Y (m, d) and pair functions k_f (the Euclidean distance; Gaussian RBFs at given bandwidths) one
pass over tiles yields, in float64,

    total_f = sum_ij k_f(x_i, y_j)            rows_f[i] = sum_j k_f          columns_f[j] = sum_i k_f
    squares_f = sum_ij k_f^2                  blocks_f[g, h] = sum over rows of group g, columns of group h

which is all that energy distance, MMD, their standard errors, witness values and leave-one-window-out scores need
(``gpudrift.metrics.pairs`` has the formulas). ``self_sums`` treats a cloud against itself: self pairs are left out by
index, only the upper tiles are computed, and sums run over ordered pairs (i, j), i != j; it also takes 0/1 label
vectors z and returns z'K_f z, all a permutation test needs. ``batch_sums`` runs many ragged pairs of groups at
once.

The contract every backend keeps:

* ``prepare`` centres, scales and rounds a cloud ONCE; norms are taken from the rounded rows; the same prepared cloud
  serves X against X, X against Y, and a pinned reference is prepared once a job.
* Within a tile sums are in float32 (float64 in float64 mode); across tiles they are accumulated in float64 in a fixed
  order: the same input on the same backend gives the same bits.
* Distances of near-duplicates come out near 0, never NaN.
* Cluster codes leave out the pairs of equal code; groups are contiguous row ranges.

``backend_for`` names the backend that serves a call and why: ``triton_ops`` (fused kernels, CUDA), or ``torch_ops``
(tiled torch: the CPU, and CUDA where Triton cannot serve). ``reference`` is the dense float64 definition, for tests.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, RangeError
from gpudrift.kernels import torch_ops
from gpudrift.kernels.closed_forms import squared_norms
from gpudrift.kernels.layout import LABELS, PairSums, Prepared, Wanted, count_pairs
from gpudrift.kernels.precision import MODES, Mode, largest_entry, place, scale_for

__all__ = [
    "MODES",
    "Backend",
    "PairSums",
    "Prepared",
    "Progress",
    "backend_for",
    "batch_sums",
    "cross_sums",
    "prepare",
    "self_sums",
]

_log = logging.getLogger(__name__)
Progress = Callable[[int], None]
BANDWIDTHS = 8  # a pass


@dataclass(frozen=True)
class Backend:
    """Which implementation serves a call, and why."""

    name: str
    reason: str


def backend_for(device: torch.device, precision: str) -> Backend:
    """The one place where a backend is chosen: ``triton`` (fused), ``torch-cuda`` or ``torch-cpu`` (tiled torch).

    Raises ArgumentError for a device that is neither CUDA nor the CPU.
    """
    if device.type == "cpu":
        return Backend("torch-cpu", f"tiled torch on the CPU, {precision}")
    if device.type != "cuda":
        raise ArgumentError("no backend for this device", field="device", value=str(device), allowed=["cpu", "cuda"])
    if precision == "float64":
        return Backend("torch-cuda", f"tiled torch on {device}: the fused kernels have no float64")
    obstacle = _obstacle(torch.cuda.current_device() if device.index is None else device.index)
    if obstacle:
        return Backend("torch-cuda", f"tiled torch on {device}, {precision}: {obstacle}")
    return Backend("triton", f"fused Triton kernels on {torch.cuda.get_device_name(device)}, {precision}")


@cache
def _obstacle(index: int) -> str:
    """Why the fused kernels cannot serve a CUDA device; empty where they can. They are tried once: Triton also needs a
    C compiler, and a driver it knows."""
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"compute capability {major}.{minor} is below 8.0"
    step = "be imported"
    try:  # whatever stops Triton, at import or at run time, is a reason to go without it
        from gpudrift.kernels import triton_ops

        step = "compile and run here"
        triton_ops.probe(torch.device("cuda", index))
    except Exception as error:  # noqa: BLE001
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"Triton cannot {step} ({': '.join([type(error).__name__, *said[:1]])})"
    return ""


def prepare(
    rows: Tensor,
    *,
    centre: Tensor | None = None,
    precision: str = "float32",
    scale: float | None = None,
    device: torch.device | str | None = None,
    offsets: Sequence[int] | None = None,
    clusters: Tensor | None = None,
) -> Prepared:
    """Centre, scale, round and measure a cloud once.

    Args:
        rows: (n, d) floating tensor.
        centre: (d,) subtracted from every row in float64 before rounding; distances do not change, cancellation does.
            None: the rows are used as they are, without a copy where dtype and device already fit.
        precision: a key of ``MODES``: float16, bfloat16, tf32, float32, float64.
        scale: power of two the rows are multiplied with; clouds that meet need the same one. None: chosen from these
            rows in float16, 1 otherwise.
        device: where pairs are computed; None: where the rows are.
        offsets: group boundaries, ascending from 0 to n; None: one group.
        clusters: (n,) int64 codes; pairs of equal code are left out of every sum.
    """
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ArgumentError("a cloud has the shape (n, d)", field="rows", value=tuple(rows.shape), allowed="n, d >= 1")
    if precision not in MODES:
        raise ArgumentError("unknown precision", field="precision", value=precision, allowed=list(MODES))
    n = int(rows.shape[0])
    bounds = (0, n) if offsets is None else tuple(int(o) for o in offsets)
    if bounds[0] != 0 or bounds[-1] != n or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ArgumentError("offsets must ascend from 0 to n", field="offsets", value=bounds, allowed=f"0 ... {n}")
    if clusters is not None and tuple(clusters.shape) != (n,):
        raise ArgumentError("one cluster code a row", field="clusters", value=tuple(clusters.shape), allowed=(n,))
    if scale is not None and (scale <= 0 or math.frexp(scale)[0] != 0.5):
        raise ArgumentError("the scale must be a power of two", field="scale", value=scale, allowed="2^k")
    rows = rows.detach()
    target = torch.device(device) if device is not None else rows.device
    mode = MODES[precision]
    if scale is None:
        scale = scale_for(rows, centre, mode)
    try:
        prepared = place(rows, centre, mode, scale, target)
    except torch.OutOfMemoryError:
        _log.warning("%d x %d rows do not fit on %s: they are streamed from host memory", *rows.shape, target)
        prepared = place(rows, centre, mode, scale, target, resident=False)
    norms = squared_norms(prepared, target)
    _check_range(norms, mode, scale, rows, centre)
    return Prepared(
        rows=prepared,
        norms=norms,
        offsets=bounds,
        clusters=None if clusters is None else clusters.to(device=target, dtype=torch.int64),
        precision=precision,
        scale=scale,
        device=target,
    )


def _check_range(norms: Tensor, mode: Mode, scale: float, rows: Tensor, centre: Tensor | None) -> None:
    """Refuse rows whose squared distances overflow, or are all lost below the smallest number of the dtype."""
    if not len(norms):
        return
    largest = float(norms.max())
    if math.isnan(largest):
        worst = int(norms.isnan().nonzero()[0])
        raise ArgumentError(f"row {worst} holds NaN", field="embedding", value="NaN", allowed="finite numbers")
    if largest > mode.high or not math.isfinite(largest):
        raise RangeError(
            f"row {int(norms.argmax())} is too long for {mode.name}: its squares overflow",
            field="embedding",
            value=f"length {math.sqrt(largest) / scale:.3g} from the centre",
            allowed=f"lengths up to {mode.longest / scale:.3g}",
            hint="look for corrupt rows, or rescale; precision=float64 widens the range",
        )
    if largest < mode.low and _differ(rows, centre):
        raise RangeError(
            f"all rows are too short for {mode.name}: their squares underflow",
            field="embedding",
            value=f"length at most {math.sqrt(largest) / scale:.3g} from the centre",
            allowed=f"lengths of {math.sqrt(mode.low) / scale:.3g} or more",
            hint="rescale the embeddings; precision=float64 widens the range",
        )


def _differ(rows: Tensor, centre: Tensor | None) -> bool:
    """Whether rows differ from their centre by more than the rounding of a mean of equal rows."""
    rounding = 0.0 if centre is None else 1e-14 * float(centre.abs().max())
    return largest_entry(rows, centre) > rounding


def cross_sums(
    x: Prepared,
    y: Prepared,
    *,
    bandwidths: Sequence[float] = (),
    squares: bool = True,
    margins: bool = True,
    progress: Progress | None = None,
    tile: tuple[int, int] | None = None,
) -> PairSums:
    """Sums over all pairs (x_i, y_j).

    Args:
        x, y: prepared clouds of equal d, precision, scale and device, centred by the same point.
        bandwidths: standard deviations s of the RBFs exp(-|x - y|^2 / (2 s^2)); the distance always comes first.
        squares: also sum k^2: free for the distance, one more reduction an RBF. NaN where not asked for.
        margins: also row and column sums, what standard errors and witness values need.
        progress: called with the number of pairs done since the last call.
        tile: (rows, columns) of a tile; None: by backend. Results agree across tiles to rounding, not to the bit.
    """
    _check_match(x, y)
    wanted = Wanted(_usable(bandwidths), squares, margins)
    found: PairSums = _serving(x).pair_sums(x, y, wanted, progress, tile, count_pairs(x, y))
    return found


def self_sums(
    x: Prepared,
    *,
    bandwidths: Sequence[float] = (),
    squares: bool = True,
    margins: bool = True,
    labels: Tensor | None = None,
    progress: Progress | None = None,
    tile: tuple[int, int] | None = None,
) -> PairSums:
    """Sums over all ordered pairs (x_i, x_j), i != j; rows and columns are the same. Arguments as ``cross_sums``, and

    labels: (n, P) of 0 and 1, any P: also z'K_f z of each column z, in one pass for every 128 columns.
    """
    _check_match(x, x)
    if labels is not None and (labels.ndim != 2 or labels.shape[0] != len(x)):
        raise ArgumentError("one label a row", field="labels", value=tuple(labels.shape), allowed=(len(x), "P"))
    serving, counts = _serving(x), count_pairs(x, None)
    parts = [None] if labels is None or not labels.shape[1] else list(torch.split(labels.to(x.device), LABELS, dim=1))
    wanted = Wanted(_usable(bandwidths), squares, margins, parts[0])
    found: PairSums = serving.pair_sums(x, None, wanted, progress, tile, counts)
    for part in parts[1:]:
        more = serving.pair_sums(x, None, Wanted(wanted.bandwidths, False, False, part), None, tile, counts)
        found = replace(found, labels=torch.cat([found.labels, more.labels], dim=1))
    return found


def batch_sums(
    x: Prepared,
    y: Prepared | None,
    pairs: Sequence[tuple[int, int]],
    *,
    bandwidths: Sequence[float] = (),
    squares: bool = True,
    margins: bool = True,
    progress: Progress | None = None,
) -> list[PairSums]:
    """Sums for many pairs of groups in one call: segments, windows, A/A splits.

    Args:
        x, y: prepared clouds whose ``offsets`` mark the groups. y None: groups of x among themselves.
        pairs: (g, h): rows of group g of x against rows of group h of y. With y None, (g, g) is a group's self sums.
        The others as for ``cross_sums``.

    Returns one ``PairSums`` a pair, as ``cross_sums`` or ``self_sums`` of the two groups alone would give it.
    """
    other = x if y is None else y
    _check_match(x, other)
    for g, h in pairs:
        if not (0 <= g < len(x.offsets) - 1 and 0 <= h < len(other.offsets) - 1):
            raise ArgumentError(
                "no such pair of groups",
                field="pairs",
                value=(g, h),
                allowed=f"below {len(x.offsets) - 1}, {len(other.offsets) - 1}",
            )
    wanted = Wanted(_usable(bandwidths), squares, margins)
    found: list[PairSums] = _serving(x).batch_sums(x, y, tuple(pairs), wanted, progress)
    return found


def _usable(bandwidths: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(s) for s in bandwidths)
    if len(values) > BANDWIDTHS or not all(math.isfinite(s) and s > 0 for s in values):
        allowed = f"at most {BANDWIDTHS} positive numbers"
        raise ArgumentError("unusable bandwidths", field="bandwidths", value=values, allowed=allowed)
    return values


def _check_match(x: Prepared, y: Prepared) -> None:
    if x.dim != y.dim:
        raise ArgumentError("both clouds need the same dimension", field="d", value=y.dim, allowed=x.dim)
    if (x.precision, x.scale, x.device) != (y.precision, y.scale, y.device):
        raise ArgumentError(
            "both clouds need one precision, scale and device",
            field="y",
            value=(y.precision, y.scale, str(y.device)),
            allowed=(x.precision, x.scale, str(x.device)),
        )
    if (x.clusters is None) != (y.clusters is None):
        raise ArgumentError("cluster codes are needed for both clouds or neither", field="clusters")


def _serving(x: Prepared) -> ModuleType:
    backend = backend_for(x.device, x.precision)
    _announce(backend)
    if backend.name == "triton":
        from gpudrift.kernels import triton_ops

        return triton_ops
    return torch_ops


@cache
def _announce(backend: Backend) -> None:
    """Once a process for each choice."""
    _log.info("pair sums by %s: %s", backend.name, backend.reason)
