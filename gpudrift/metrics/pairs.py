"""Energy distance and squared MMD (U- and V-statistics) from all-pairs sums, with variances and witness values.

With a kernel k (energy: k = -distance; MMD: the RBF itself), n rows of X and m of Y,

    U = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

is unbiased and may be negative; it is never clamped. The V-statistic keeps the self pairs. Energy is
E = 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Szekely and Rizzo 2013, eq. 1: unsquared norms, no factor 1/2, no root); MMD^2 is
Gretton et al. 2012, eq. 3, with k = exp(-|x-y|^2 / (2 s^2)).

The unbiased variance is the finite-sample one (Hoeffding components of a two-sample U-statistic of order (2, 2), each
estimated without bias from row sums and squared sums; verified in the tests by enumerating all outcomes of small
discrete distributions). ``var_lin`` = 4 var(a)/n + 4 var(b)/m over the influence values

    a_i = r_i/(n-1) - c_i/m        b_j = s_j/(m-1) - e_j/n        mean a + mean b = U

is always positive and serves intervals. With clusters, pairs of one cluster are left out of every sum, means are over
the pairs that remain, and var_lin adds up influence by cluster (Liang and Zeger 1986): that of a ratio of sums, k less
its mean over the pairs, since a row of a large cluster has fewer partners.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.kernels import PairSums


@dataclass(frozen=True)
class PairEstimate:
    """One pairwise statistic. value: the U-statistic. v_value: the V-statistic. se: root of var_lin. variance:
    unbiased, may be negative, NaN below 4 rows or with clusters. a: (n,), b: (m,) float64 influence (witness) values.
    null_sd: c, the standard deviation where both clouds come from the distribution of x (NaN below 4 rows of x)."""

    value: float
    v_value: float
    se: float
    variance: float
    a: Tensor
    b: Tensor
    null_sd: float


def estimate(
    xx: PairSums,
    yy: PairSums,
    xy: PairSums,
    f: int,
    *,
    clusters_x: Tensor | None = None,
    clusters_y: Tensor | None = None,
) -> PairEstimate:
    """The statistic of pair function f (0: energy; 1, 2, ...: MMD^2 at that bandwidth) between x and y.

    Args:
        xx, yy: self sums; xy: cross sums; all of the same functions.
        clusters_x, clusters_y: (n,), (m,) int64 codes when the sums leave out same-cluster pairs.
    """
    sign = -1.0 if f == 0 else 1.0
    n, m = xx.rows.shape[1], yy.rows.shape[1]
    if n < 2 or m < 2:
        raise ArgumentError("a U-statistic needs two rows on each side", field="n, m", value=(n, m), allowed=">= 2")
    if min(xx.pairs, yy.pairs, xy.pairs) <= 0:
        raise ArgumentError(
            "no pair of different clusters is left", field="clusters", allowed="at least two clusters on each side"
        )
    r, s = sign * xx.rows[f], sign * yy.rows[f]
    c, e = sign * xy.rows[f], sign * xy.columns[f]
    a = r * (n / xx.pairs) - c * (n / xy.pairs)
    b = s * (m / yy.pairs) - e * (m / xy.pairs)
    value = float(a.mean() + b.mean())
    self_value = 0.0 if f == 0 else 1.0
    cross = float(c.sum()) / (n * m)
    v_value = (float(r.sum()) + n * self_value) / n**2 + (float(s.sum()) + m * self_value) / m**2 - 2 * cross
    if clusters_x is None or clusters_y is None:
        squares = (float(xx.squares[f]), float(yy.squares[f]), float(xy.squares[f]))
        variance = _unbiased_variance(r, s, c, e, *squares) if n >= 4 and m >= 4 else math.nan
        se = math.sqrt(float(4 * a.var() / n + 4 * b.var() / m))
    else:
        v_value, variance = math.nan, math.nan  # neither is defined once pairs are left out
        # each mean is a ratio: a row of a large cluster has fewer partners, which is no movement of the statistic
        theta = [float(sums.sum()) / pairs for sums, pairs in ((r, xx.pairs), (s, yy.pairs), (c, xy.pairs))]
        sides = itertools.product((clusters_x, clusters_y), repeat=2)
        of_xx, of_xy, of_yx, of_yy = (_partners(own, other) for own, other in sides)
        free_a = a - of_xx * (theta[0] * n / xx.pairs) + of_xy * (theta[2] * n / xy.pairs)
        free_b = b - of_yy * (theta[1] * m / yy.pairs) + of_yx * (theta[2] * m / xy.pairs)
        se = _cluster_se(free_a, free_b, clusters_x, clusters_y)
    return PairEstimate(value, v_value, se, variance, a, b, null_sd(null_scale(xx, f, clusters_x), n, m))


def null_scale(xx: PairSums, f: int, clusters: Tensor | None = None) -> float:
    """The variance of a reference's doubly centred kernel: A2 - 2 A1 + A0, unbiased. NaN below 4 rows, and where no
    pair of different clusters is left.

    With clusters (n,) the means run over the pairs that remain, each row's over its own: the mean of
    (k_ij - k_i - k_j + k)^2 = A2 - 2 mean(k_i^2) + k^2, low by a share of 1/n. As a scale for independent rows either
    is exact only without repeated clusters.
    """
    n = xx.rows.shape[1]
    if n < 4 or not xx.pairs > 0:
        return math.nan
    if clusters is None:
        a2, a1, a0 = _self_moments(xx.rows[f], float(xx.squares[f]))
        return a2 - 2 * a1 + a0
    _, places, sizes = torch.unique(clusters.cpu(), return_inverse=True, return_counts=True)
    partners = (n - sizes[places]).double()  # rows of other clusters
    means = torch.where(partners > 0, xx.rows[f] / partners.clamp(min=1), 0.0)
    mean_square = float((partners * means.square()).sum()) / xx.pairs
    return float(xx.squares[f]) / xx.pairs - 2 * mean_square + (float(xx.rows[f].sum()) / xx.pairs) ** 2


def null_sd(scale: float, n: int, m: int) -> float:
    """c: the standard deviation of the U-statistic of n against m rows of one distribution with that null scale."""
    return math.sqrt(max(scale, 0.0) * (2 / (n * (n - 1)) + 2 / (m * (m - 1)) + 4 / (n * m)))


def leave_out_scores(blocks: Tensor, pairs: Tensor, parts: list[tuple[list[int], list[int]]]) -> list[float]:
    """Energy U-statistics between unions of groups, from one pass of self sums.

    Args:
        blocks, pairs: (G, G) float64, summed distances and numbers of ordered pairs between groups.
        parts: for each score the groups on the one side and on the other.
    """
    scores = []
    for left, right in parts:
        means = []
        for rows, columns in ((left, right), (left, left), (right, right)):
            block = blocks[rows][:, columns].sum() / pairs[rows][:, columns].sum()
            means.append(float(block))
        scores.append(2 * means[0] - means[1] - means[2])
    return scores


def less(whole: PairSums, kept: Tensor, xy: PairSums, yy: PairSums) -> PairSums:
    """Self sums of a cloud without some rows, from those of the whole: subtract what the left-out rows (y) add."""
    rows = whole.rows[:, kept] - xy.rows
    total, pairs = rows.sum(1), whole.pairs - 2 * xy.pairs - yy.pairs
    return replace(
        whole,
        total=total,
        rows=rows,
        columns=rows,
        squares=whole.squares - 2 * xy.squares - yy.squares,
        blocks=total[:, None, None],
        pairs=pairs,
        block_pairs=torch.tensor([[pairs]], dtype=torch.float64),
    )


def _self_moments(r: Tensor, squares: float) -> tuple[float, float, float]:
    """A2, A1, A0: unbiased means of k_ij^2, k_ij k_il and k_ij k_lp over distinct indices, from row sums."""
    n = len(r)
    total, r_r = float(r.sum()), float(r @ r)
    a2 = squares / (n * (n - 1))
    a1 = (r_r - squares) / (n * (n - 1) * (n - 2))
    a0 = (total * total - 4 * r_r + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
    return a2, a1, a0


def _self_variance(r: Tensor, squares: float) -> float:
    n = len(r)
    a2, a1, a0 = _self_moments(r, squares)
    return 4 * (n - 2) / (n * (n - 1)) * (a1 - a0) + 2 / (n * (n - 1)) * (a2 - a0)


def _unbiased_variance(r: Tensor, s: Tensor, c: Tensor, e: Tensor, f_x: float, f_y: float, f_xy: float) -> float:
    n, m = len(r), len(s)
    sum_c, c_c, e_e = float(c.sum()), float(c @ c), float(e @ e)
    c2 = f_xy / (n * m)
    c_x = (c_c - f_xy) / (n * m * (m - 1))
    c_y = (e_e - f_xy) / (m * n * (n - 1))
    c_0 = (sum_c**2 - c_c - e_e + f_xy) / (n * (n - 1) * m * (m - 1))
    v_xy = 4 / (n * m) * ((m - 1) * (c_x - c_0) + (n - 1) * (c_y - c_0) + (c2 - c_0))
    r_c, s_e = float(r @ c), float(s @ e)
    d_x = r_c / (n * (n - 1) * m)
    d_0x = (float(r.sum()) * sum_c - 2 * r_c) / (n * (n - 1) * (n - 2) * m)
    d_y = s_e / (m * (m - 1) * n)
    d_0y = (float(s.sum()) * float(e.sum()) - 2 * s_e) / (m * (m - 1) * (m - 2) * n)
    covariance = 8 / n * (d_x - d_0x) + 8 / m * (d_y - d_0y)
    return _self_variance(r, f_x) + _self_variance(s, f_y) + v_xy - covariance


def _partners(own: Tensor, other: Tensor) -> Tensor:
    """(len(own),) float64: rows of the other side that belong to another cluster."""
    codes, places = torch.unique(torch.cat([own, other]).cpu(), return_inverse=True)
    counts = torch.bincount(places[len(own) :], minlength=len(codes))
    return (len(other) - counts[places[: len(own)]]).double()


def _cluster_se(a: Tensor, b: Tensor, clusters_x: Tensor, clusters_y: Tensor) -> float:
    codes, places = torch.unique(torch.cat([clusters_x, clusters_y]).cpu(), return_inverse=True)
    groups = len(codes)
    if groups < 2:
        return math.nan
    psi = torch.zeros(groups, dtype=torch.float64)
    psi.index_add_(0, places[: len(a)], (a - a.mean()) * (2 / len(a)))
    psi.index_add_(0, places[len(a) :], (b - b.mean()) * (2 / len(b)))
    return math.sqrt(groups / (groups - 1) * float(psi @ psi))
