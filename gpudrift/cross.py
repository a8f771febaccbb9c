"""The cross statistic: a two-sample test from one pass over half the pairs, without permutations.

Each sample is split into halves, x into x1, x2 and y into y1, y2. The second halves make a witness function, the first
halves are held against it (Shekhar, Kim and Ramdas 2022, NeurIPS, "A permutation-free kernel two-sample test", eq. 2
and 4). With k an RBF (MMD) or minus the distance (energy),

    u_i = mean_x2 k(x1_i, .) - mean_y2 k(x1_i, .)      v_j = mean_x2 k(y1_j, .) - mean_y2 k(y1_j, .)
    T = mean u - mean v                                z = T / sqrt(var u / n1 + var v / m1)

T is an unbiased estimate of MMD^2 or the energy distance. Given the second halves it is a difference of two means of
independent values: z is about standard normal where nothing drifts, and only large z speak against that. Of a few rows
z is about Student's t with the degrees of freedom of Welch (1947), or of the side with fewer clusters; p goes by that.
The variances are the unbiased ones (n1 - 1 where the paper divides by n1). It costs (n + m)^2 / 4 pairs, half of all,
and power: the drift it sees is about sqrt(2) times as large as what a permutation test of all pairs sees.

For energy the paper's k is the distance-induced |x - o| + |y - o| - |x - y| (Sejdinovic et al. 2013, Ann. Stat. 41)
about a point o. In u and v |x - o| cancels, and the means of |y - o| are the same for all rows: o drops out of T and z.

A ladder of bandwidths gives one z each, jointly normal with the correlation of the (u, v). The largest counts; p is the
probability that the largest of so many normals with that correlation is as large, from seeded draws, or Bonferroni's
bound where that is smaller (far out, beyond what draws resolve).

With clusters whole clusters are dealt to the halves, the same half on both sides: no pair of one cluster is ever
formed, and given the second halves the sums by cluster are independent. Their sandwich takes the variances' place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.estimators import NORMAL_FROM, deal
from gpudrift.student_t import student_t_upper

DRAWS = 100_000  # of the largest of correlated normals


@dataclass(frozen=True)
class CrossResult:
    """value: T, an unbiased estimate of the energy distance or, at the bandwidth whose z is largest, of MMD^2. se: of T
    given the second halves, what z needs: no standard error of the drift. z: T / se. p_value: one-sided; of several
    bandwidths that of the largest z. bandwidths: None for energy; else ``values``, ``ses`` and ``zs`` hold one of each
    a bandwidth, ``largest`` is the place of the largest z. rows: of x1, x2, y1, y2."""

    statistic: str
    value: float
    se: float
    z: float
    p_value: float
    bandwidths: tuple[float, ...] | None
    values: tuple[float, ...]
    ses: tuple[float, ...]
    zs: tuple[float, ...]
    largest: int
    rows: tuple[int, int, int, int]
    seed: int
    device: str
    precision: str
    precision_reason: str


@dataclass(frozen=True)
class Outcome:
    """What ``test`` finds: (F,) float64 values and (F, F) their covariance, p, and the rows of x1, x2, y1, y2."""

    values: Tensor
    covariance: Tensor
    p_value: float
    rows: tuple[int, int, int, int]

    @property
    def ses(self) -> Tensor:
        return self.covariance.diagonal().sqrt()

    @property
    def zs(self) -> Tensor:
        return self.values / self.ses


def test(
    x: Tensor,
    y: Tensor,
    codes: tuple[Tensor, Tensor] | None,
    *,
    bandwidths: Sequence[float],
    seed: int,
    centre: Tensor,
    precision: str,
    scale: float,
) -> Outcome:
    """The test of x (n, d) against y (m, d). codes: (n,) and (m,) int64 of clusters; no bandwidths: energy.

    Raises:
        ArgumentError: fewer than 4 rows a side, fewer than 2 clusters a half, or rows that do not differ.
    """
    if min(len(x), len(y)) < 4:
        raise ArgumentError("halves need two rows each", field="x, y", value=(len(x), len(y)), allowed="4 rows or more")
    clusters = (None, None) if codes is None else codes
    places = deal(len(x), len(y), 2, seed=seed, clusters_x=clusters[0], clusters_y=clusters[1])
    members = [(side == half).nonzero()[:, 0] for side in places for half in (0, 1)]
    rows = tuple(map(len, members))
    if min(rows) < 2:
        raise ArgumentError(
            "a half has too few rows once clusters stay together",
            field="clusters_x, clusters_y",
            value=rows,
            allowed="two clusters of each side or more, of similar size",
        )
    x1, x2, y1, y2 = (
        kernels.prepare(cloud[part.to(cloud.device)], centre=centre, precision=precision, scale=scale)
        for cloud, part in zip((x, x, y, y), members, strict=True)
    )
    functions = slice(1, None) if bandwidths else slice(0, 1)
    sign = 1.0 if bandwidths else -1.0

    def against_witness(first: kernels.Prepared) -> Tensor:
        sums = [kernels.cross_sums(first, half, bandwidths=bandwidths, squares=False) for half in (x2, y2)]
        return sign * (sums[0].rows[functions] / len(x2) - sums[1].rows[functions] / len(y2))

    u, v = against_witness(x1), against_witness(y1)
    values = u.mean(1) - v.mean(1)
    parts = ((u - u.mean(1, keepdim=True)) / len(x1), -(v - v.mean(1, keepdim=True)) / len(y1))
    if codes is None:
        of_sides = [len(p.T) / (len(p.T) - 1) * (p @ p.T) for p in parts]
        covariance = of_sides[0] + of_sides[1]
        dof = _welch([side.diagonal() for side in of_sides], (len(x1) - 1, len(y1) - 1))
    else:
        labels = torch.cat([codes[0].cpu()[members[0]], codes[1].cpu()[members[2]]])
        covariance = _by_cluster(torch.cat(parts, dim=1), labels)
        dof = max(min(len(torch.unique(part)) for part in labels.tensor_split((len(x1),))) - 1, 1)
    if not bool((covariance.diagonal() > 0).all()):
        raise ArgumentError(
            "the rows, or what an RBF makes of them, do not differ: the statistic has no standard error",
            field="bandwidths" if bandwidths else "x, y",
            value=tuple(bandwidths) or None,
            allowed="rows that differ, and bandwidths of the order of their distances",
        )
    z = values / covariance.diagonal().sqrt()
    return Outcome(values, covariance, _p_value(z, covariance, seed, dof), (rows[0], rows[1], rows[2], rows[3]))


def _by_cluster(psi: Tensor, labels: Tensor) -> Tensor:
    """(F, F) covariance of the sums of psi (F, n) over independent clusters (Liang and Zeger 1986)."""
    codes, group = torch.unique(labels, return_inverse=True)
    count = len(codes)
    if count < 2:
        raise ArgumentError(
            "the first halves are of one cluster", field="clusters_x, clusters_y", allowed="two clusters or more"
        )
    sums = torch.zeros(len(psi), count, dtype=torch.float64)
    sums.index_add_(1, group, psi)
    return count / (count - 1) * (sums @ sums.T)


def _welch(variances: Sequence[Tensor], dofs: Sequence[int]) -> int:
    """Degrees of freedom of the sums of two variances (Welch 1947), rounded down; the fewest over the functions."""
    total = variances[0] + variances[1]
    spread = sum(v.square() / dof for v, dof in zip(variances, dofs, strict=True))
    return max(int((total.square() / spread).nan_to_num(1.0).min()), 1)


def _p_value(z: Tensor, covariance: Tensor, seed: int, dof: int) -> float:
    """P(largest of Student's t values with that covariance's correlation >= largest z); of normals for many ``dof``."""
    largest, many = float(z.max()), dof >= NORMAL_FROM
    tail = math.erfc(largest / math.sqrt(2)) / 2 if many else student_t_upper(largest, dof)
    bound = min(1.0, len(z) * tail)
    if len(z) == 1:
        return bound
    sd = covariance.diagonal().sqrt()
    values, vectors = np.linalg.eigh((covariance / sd[:, None] / sd).numpy())
    root = vectors * np.sqrt(np.clip(values, 0, None))
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((DRAWS, len(z))) @ root.T
    if not many:
        draws /= np.sqrt(rng.chisquare(dof, (DRAWS, 1)) / dof)
    above = int((draws.max(axis=1) >= largest).sum())
    return min(bound, (1 + above) / (1 + DRAWS))
