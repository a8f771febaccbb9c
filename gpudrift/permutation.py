"""Permutation tests by z'Kz: all labellings from a few passes over the pairs of the pooled rows.

With K the pooled matrix of distances or RBF values without self pairs, r = K 1 and z the 0/1 labels of x,

    sum over XX = z'Kz      XY = r'z - z'Kz      YY = 1'K1 - z'Kz - 2 XY

so a labelling costs one quadratic form, 128 of which fit in a pass of the pairwise core. The p-value is
(1 + b) / (1 + B), b of B random labellings at or above the observed one (Phipson and Smyth 2010): it is never 0, and a
test at level a rejects with probability at most a where labels are exchangeable.

Rows of one user or document are not exchangeable one by one. With clusters their labels move together: clusters of one
side only are dealt to x and y in the same numbers as observed, clusters of both sides swap their two parts or not.
Pairs within a cluster are left out of every sum.

For MMD every bandwidth's statistic is divided by its standard deviation over the labellings, and the largest counts:
one p-value for the whole ladder, no correction for the number of bandwidths. Bandwidths default to those of the pooled
rows, which no labelling changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.kernels.layout import LABELS

_TIE = {"float64": 1e-12, "float32": 1e-6}  # share of the mean pair below which two statistics are one
_TIE_ROUNDED = 1e-4  # in the other precisions


@dataclass(frozen=True)
class PermutationResult:
    """value: the observed statistic: the energy distance, or the largest studentised MMD^2 over the bandwidths.
    p_value: (1 + b) / (1 + B). null: (B,) float64, the statistic of each labelling. bandwidths: None for energy; then
    ``values`` is the MMD^2 at each (U-statistics) and ``largest`` the place of the largest studentised one."""

    statistic: str
    value: float
    p_value: float
    permutations: int
    null: NDArray[np.float64] = field(repr=False)
    bandwidths: tuple[float, ...] | None
    values: tuple[float, ...]
    largest: int
    seed: int
    device: str
    precision: str
    precision_reason: str


@dataclass(frozen=True)
class Outcome:
    """What ``test`` finds: (F,) values of each function; (1 + B,) statistics, the observed one first; its function."""

    values: tuple[float, ...]
    statistics: NDArray[np.float64]
    p_value: float
    largest: int


def test(
    rows: Tensor,
    n: int,
    codes: Tensor | None,
    *,
    bandwidths: Sequence[float],
    permutations: int,
    seed: int,
    centre: Tensor,
    precision: str,
    scale: float,
) -> Outcome:
    """The test on pooled rows (n + m, d), x first. codes: (n + m,) int64 of clusters or None; no bandwidths: energy.

    Raises:
        ArgumentError: no other labelling exists.
    """
    pooled = kernels.prepare(rows, centre=centre, precision=precision, scale=scale, clusters=codes)
    functions = slice(1, None) if bandwidths else slice(0, 1)
    sign = 1.0 if bandwidths else -1.0
    found: list[NDArray[np.float64]] = []
    margins: Tensor | None = None
    total = torch.zeros(0)
    for z in _labellings(n, len(rows), codes, permutations, seed):
        first = margins is None
        sums = kernels.self_sums(
            pooled, bandwidths=bandwidths, squares=False, margins=first, labels=z.to(pooled.device)
        )
        if margins is None:
            margins, total = sums.rows.cpu(), sums.total.cpu()
        labels = z.double()
        xx = sums.labels.cpu()
        xy = margins @ labels - xx
        yy = total[:, None] - xx - 2 * xy
        pairs = _pair_counts(labels, codes)
        statistic = xx / pairs[0] + yy / pairs[2] - 2 * xy / pairs[1]
        found.append((sign * statistic[functions]).numpy())
    values = np.concatenate(found, axis=1)
    if not np.isfinite(values).all():
        raise ArgumentError(
            "a labelling leaves no pair of different clusters on one side",
            field="clusters_x, clusters_y",
            allowed="several clusters of about equal size on each side",
        )
    scales = values.std(axis=1) if bandwidths else np.ones(1)
    usable = np.flatnonzero(scales > 0)
    if not len(usable):
        usable, scales = np.arange(len(scales)), np.ones_like(scales)
    studentised = values[usable] / scales[usable, None]
    statistics = studentised.max(axis=0)
    mean_pair = float((total[functions] / max(1, len(rows) * (len(rows) - 1))).abs().max())
    tie = _TIE.get(precision, _TIE_ROUNDED) * mean_pair / float(scales[usable].min())
    above = int((statistics[1:] >= statistics[0] - tie).sum())
    return Outcome(
        values=tuple(map(float, values[:, 0])),
        statistics=statistics,
        p_value=(1 + above) / (1 + permutations),
        largest=int(usable[studentised[:, 0].argmax()]),
    )


def _labellings(n: int, rows: int, codes: Tensor | None, permutations: int, seed: int) -> Iterator[Tensor]:
    """(rows, P) uint8 labels, the observed ones first, as many columns at a time as one pass takes."""
    rng = np.random.default_rng(seed)
    observed = np.zeros(rows, dtype=np.uint8)
    observed[:n] = 1
    draw = _by_row(observed, rng) if codes is None else _by_cluster(observed, codes.cpu().numpy(), rng)
    left = 1 + permutations
    while left:
        count = min(left, LABELS)
        z = np.empty((count, rows), dtype=np.uint8)
        for k in range(count):
            z[k] = observed if left == 1 + permutations and k == 0 else next(draw)
        left -= count
        yield torch.from_numpy(np.ascontiguousarray(z.T))


def _by_row(observed: NDArray[np.uint8], rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    while True:
        yield rng.permutation(observed)


def _by_cluster(
    observed: NDArray[np.uint8], codes: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    _, group = np.unique(codes, return_inverse=True)
    in_x = np.bincount(group, weights=observed) > 0
    in_y = np.bincount(group, weights=1 - observed) > 0
    shared, alone = in_x & in_y, ~(in_x & in_y)
    side = in_x.astype(np.uint8)  # of clusters of one side
    if not shared.any() and not 0 < side.sum() < len(side):
        raise ArgumentError("one side has no cluster of its own", field="clusters_x, clusters_y")
    if not shared.any() and math.comb(len(side), int(side.sum())) < 2:
        raise ArgumentError("there is no other labelling of these clusters", field="clusters_x, clusters_y")
    own = np.flatnonzero(alone)
    while True:
        dealt = side.copy()
        dealt[own] = rng.permutation(side[own])
        swapped = rng.integers(0, 2, len(shared), dtype=np.uint8)
        yield np.where(shared[group], observed ^ swapped[group], dealt[group]).astype(np.uint8)


def _pair_counts(labels: Tensor, codes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) ordered pairs within x, between x and y (once), and within y, that the sums hold."""
    n = labels.sum(0)
    m = len(labels) - n
    if codes is None:
        return n * (n - 1), n * m, m * (m - 1)
    _, group = torch.unique(codes.cpu(), return_inverse=True)
    counts = torch.zeros(int(group.max()) + 1, labels.shape[1], dtype=torch.float64)
    counts.index_add_(0, group, labels)
    others = torch.bincount(group).double()[:, None] - counts
    return (
        n * n - counts.square().sum(0),
        n * m - (counts * others).sum(0),
        m * m - others.square().sum(0),
    )
