"""What goes into and comes out of the pairwise core, and how many pairs each sum runs over."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """A cloud ready for pair sums.

    rows (n, d): centred, times ``scale`` (a power of two), rounded to ``precision``. On the CPU 16-bit and tf32
    precisions are held as the same values in float32. norms (n,) float64: squared norms of ``rows``. offsets: group
    boundaries. clusters (n,) int64 or None. device: where pairs are computed; ``rows`` may stay in host memory when the
    cloud does not fit there.
    """

    rows: Tensor
    norms: Tensor
    offsets: tuple[int, ...]
    clusters: Tensor | None
    precision: str
    scale: float
    device: torch.device

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])

    def group(self, g: int) -> Prepared:
        """The rows of one group as a cloud of their own (a view)."""
        a, b = self.offsets[g], self.offsets[g + 1]
        clusters = None if self.clusters is None else self.clusters[a:b]
        return Prepared(self.rows[a:b], self.norms[a:b], (0, b - a), clusters, self.precision, self.scale, self.device)


@dataclass(frozen=True)
class Wanted:
    """What a pass shall sum. bandwidths in the units of the caller; ``margins``: row and column sums; ``labels``:
    (n, P) 0/1 vectors z for z'Kz, P at most ``LABELS``, self sums alone."""

    bandwidths: tuple[float, ...] = ()
    squares: bool = True
    margins: bool = True
    labels: Tensor | None = None

    @property
    def functions(self) -> int:
        return 1 + len(self.bandwidths)


LABELS = 128  # label vectors a pass


@dataclass(frozen=True)
class Rung:
    """One RBF in the order it is computed. f: its function index. gamma: exp(-gamma d2), d2 in the units of the
    prepared rows. chained: it is the fourth power of the rung before."""

    f: int
    gamma: float
    chained: bool


# a bandwidth times the scale below, a gamma above: k is then 0 for any two rows that differ
_NARROWEST, _STEEPEST = 1e-300, 1e300


def ladder(bandwidths: tuple[float, ...], scale: float) -> list[Rung]:
    """RBFs from the widest bandwidth down. One is chained when its bandwidth is half the one before: gamma is then 4
    times as large and k is the fourth power: two squarings instead of an exp, the square between is the squared sum."""
    order = sorted(range(len(bandwidths)), key=lambda b: -bandwidths[b])
    rungs: list[Rung] = []
    for place, b in enumerate(order):
        chained = place > 0 and math.isclose(bandwidths[order[place - 1]], 2 * bandwidths[b], rel_tol=1e-12)
        inverse = 1 / max(bandwidths[b] * scale, _NARROWEST)
        rungs.append(Rung(b + 1, min(inverse * inverse / 2, _STEEPEST), chained))
    return rungs


@dataclass(frozen=True)
class PairCounts:
    """Pairs behind each sum, after self pairs and same-cluster pairs are left out. blocks: (G, H) float64."""

    total: float
    blocks: Tensor


@dataclass(frozen=True)
class PairSums:
    """Sums of F = 1 + B pair functions: the distance, then one RBF a bandwidth. All float64, on the CPU.

    total (F,), rows (F, n), columns (F, m) (the rows again for self sums; both (F, 0) without margins), squares (F,)
    (NaN where not asked for), blocks (F, G, H), the number of pairs behind total and blocks, and labels (F, P): z'Kz of
    each label vector (P = 0 where none was given).
    """

    bandwidths: tuple[float, ...]
    total: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor
    blocks: Tensor
    pairs: float
    block_pairs: Tensor
    labels: Tensor


def no_labels(functions: int) -> Tensor:
    return torch.zeros(functions, 0, dtype=torch.float64)


def spans(offsets: tuple[int, ...], step: int) -> list[tuple[int, int, int]]:
    """(group, start, end) spans of at most ``step`` rows that never cross a group boundary."""
    return [
        (g, start, min(start + step, b))
        for g, (a, b) in enumerate(itertools.pairwise(offsets))
        for start in range(a, b, step)
    ]


def count_pairs(x: Prepared, y: Prepared | None) -> PairCounts:
    """Pairs between x and y (None: within x, ordered, without self pairs), same-cluster pairs left out."""
    other = x if y is None else y
    sizes_x, sizes_y = _sizes(x), _sizes(other)
    blocks = sizes_x[:, None] * sizes_y[None, :]
    if x.clusters is not None and other.clusters is not None:
        blocks = blocks - _same_cluster_pairs(x, x.clusters, other, other.clusters)  # self pairs are among them
    elif y is None:
        blocks = blocks - torch.diag(sizes_x)
    return PairCounts(float(blocks.sum()), blocks)


def _sizes(cloud: Prepared) -> Tensor:
    return torch.tensor(cloud.offsets, dtype=torch.float64).diff()


def _same_cluster_pairs(x: Prepared, clusters_x: Tensor, y: Prepared, clusters_y: Tensor) -> Tensor:
    """(G, H) float64: sum over clusters of (rows of group g) x (rows of group h). Exact: counts stay far below 2^53.
    Clusters are taken in chunks, so memory does not grow with groups x clusters."""
    codes = torch.unique(torch.cat([clusters_x, clusters_y]))
    places_x, places_y = torch.searchsorted(codes, clusters_x), torch.searchsorted(codes, clusters_y)
    groups = (len(x.offsets) - 1, len(y.offsets) - 1)
    pairs = torch.zeros(groups, dtype=torch.float64)
    step = max(1, min(len(codes), (1 << 21) // max(groups)))
    for start in range(0, len(codes), step):
        pairs += _table(x, places_x, start, step) @ _table(y, places_y, start, step).T
    return pairs


def _table(cloud: Prepared, places: Tensor, start: int, step: int) -> Tensor:
    """(G, step) float64: rows of group g in the clusters start ... start + step."""
    counts = []
    for a, b in itertools.pairwise(cloud.offsets):
        here = places[a:b] - start
        here = here[(here >= 0) & (here < step)]
        counts.append(torch.bincount(here, minlength=step).to("cpu", torch.float64))
    return torch.stack(counts)
