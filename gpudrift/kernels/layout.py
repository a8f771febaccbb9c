"""What goes into and comes out of the pairwise core, and how many pairs each sum runs over."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """A cloud ready for pair sums: rows (n, d), their squared norms (n,) float64, group offsets, cluster codes."""

    rows: Tensor
    norms: Tensor
    offsets: tuple[int, ...]
    clusters: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rows.shape[0])


@dataclass(frozen=True)
class PairCounts:
    """Pairs behind each sum, after self pairs and same-cluster pairs are left out. blocks: (G, H) float64."""

    total: float
    blocks: Tensor


@dataclass(frozen=True)
class PairSums:
    """Sums of F = 1 + B pair functions: the distance, then one RBF a bandwidth. All float64, on the CPU.

    total (F,), rows (F, n), columns (F, m) (the rows again for self sums), squares (F,) (NaN where not
    asked for), blocks (F, G, H), and the number of pairs behind total and blocks.
    """

    bandwidths: tuple[float, ...]
    total: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor
    blocks: Tensor
    pairs: float
    block_pairs: Tensor


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
    step = max(1, (1 << 21) // max(groups))
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
