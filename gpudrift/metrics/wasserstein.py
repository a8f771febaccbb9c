"""Wasserstein distances: exact W1 along each principal component, and sliced W2 over the whole space.

``wasserstein1_pc<k>``: W1 = integral |F - G| dt of the two samples' distribution functions (Vallender 1974), any n and
m, in the embedding's units. Its standard error is var(f(x))/n + var(f(y))/m, rooted, with the Kantorovich potential
f(t) = integral_{-inf}^t sign(F - G) as influence function (del Barrio, Gine and Matran 1999). extra: ``scaled`` = W1 /
reference sd, ``mean_shift_sd`` = (mean y - mean x) / reference sd, ``log_variance_ratio`` = log(var y / var x) -
``optimism``, the log ratio that fresh rows show without drift because the axis was fitted on the reference's rows (the
reference's variance along it is too large; ``gpudrift.project``). It is the optimism of the axis of this rank: two axes
of nearly equal variance may stand in either order, and share theirs. W1 and the scaled figures hold the same effect
uncorrected, and are compared with stable windows.

``sliced_wasserstein``: SW2 = sqrt(mean over L directions of W2^2 of the projections) (Rabin et al. 2011), W2^2 =
integral (F^-1 - G^-1)^2 du over the merged grid of the quantiles {i/n} and {j/m}; L unit vectors, uniform, pinned by
the seed. In the embedding's units. Its standard error sums the potentials of the 1-D problems over the directions, row
by row (Xi and Niles-Weed 2022), and halves by the chain rule for the root.

Both are V-type (plug-in) distances: never negative, and biased upwards where the distributions agree. Both standard
errors hold where the two distributions differ by more than sampling noise; at equality the limit is not normal and they
are no test of it. The direction sample is pinned and no part of the standard error; ``direction_se`` in extra is what
another draw of directions would add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import (
    CHUNK,
    chunks,
    log_ratio,
    prefix_sums,
    reference_sd,
    require_rows,
    variance_of_mean,
)
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Basis, Metric, PanelInput


def compute(panel: PanelInput) -> list[Metric]:
    """``wasserstein1_pc1`` .. ``_pc<components>`` and ``sliced_wasserstein``. InsufficientDataError for n or m < 2."""
    return [*(_component(panel, k) for k in range(panel.components)), _sliced(panel)]


def wasserstein1(x_n: Tensor, y_m: Tensor) -> tuple[float, float]:
    """W1 of two 1-D float64 samples and the sampling variance of that estimate."""
    return wasserstein1_sorted(x_n.sort().values, y_m.sort().values)


def wasserstein1_sorted(x_n: Tensor, y_m: Tensor) -> tuple[float, float]:
    """``wasserstein1`` of samples in ascending order."""
    n, m = x_n.shape[0], y_m.shape[0]
    # where they lie together, x before y where they are equal
    of_x = torch.searchsorted(y_m, x_n).add_(torch.arange(n, device=x_n.device))
    of_y = torch.searchsorted(x_n, y_m, right=True).add_(torch.arange(m, device=x_n.device))
    values = x_n.new_empty(n + m)
    values[of_x], values[of_y] = x_n, y_m
    from_x = torch.zeros(n + m, dtype=torch.bool, device=x_n.device)
    from_x[of_x] = True
    # n m (F - G) between neighbours, in integers: the sign is exact where the distribution functions meet
    difference = torch.where(from_x, m, -n).cumsum(dim=0)[:-1]
    gaps = values.diff()
    value = float((difference.abs() * gaps).sum()) / (n * m)
    potential = torch.zeros_like(values)
    potential[1:] = prefix_sums(difference.sign() * gaps)
    own = (potential.index_select(0, places) for places in (of_x, of_y))
    return value, sum(map(variance_of_mean, own))


def _component(panel: PanelInput, k: int) -> Metric:
    x = of_reference(panel, ("component", k), partial(_Component.of, panel.px.scores[:, k]))
    y = _Component.of(panel.py.scores[:, k])
    value, variance = wasserstein1_sorted(x.ascending, y.ascending)
    square = max(x.square, y.square, panel.basis.total_variance)
    ratio = log_ratio(y.variance, x.variance, square)
    shift = y.mean - x.mean
    return component_metric(panel.basis, k, value, variance, shift, ratio, in_reference=panel.in_reference)


@dataclass(frozen=True)
class _Component:
    """A cloud along one axis: its scores in ascending order; square: their mean square."""

    ascending: Tensor
    mean: float
    square: float
    variance: float

    @classmethod
    def of(cls, scores_n: Tensor) -> _Component:
        require_rows(scores_n, 2)
        scores_n = scores_n.contiguous()
        mean, square = float(scores_n.mean()), float(scores_n.square().mean())
        return cls(scores_n.sort().values, mean, square, float(scores_n.var()))


def component_metric(
    basis: Basis,
    k: int,
    value: float,
    variance: float,
    shift: float,
    ratio: tuple[float, str | None],
    *,
    in_reference: bool = False,
) -> Metric:
    """``wasserstein1_pc<k + 1>`` from W1, its variance, the shift of the mean and ``log_ratio`` of the variances."""
    sd = reference_sd(basis, k)
    spread, note = ratio
    pinned = basis.variance_optimism
    # rows of the reference are as well fitted as the rest of it
    optimism = 0.0 if in_reference else None if pinned is None else float(pinned[k])
    extra: dict[str, object] = {
        "component": k + 1,
        "scaled": value / sd if sd > 0 else None,
        "mean_shift_sd": shift / sd if sd > 0 else None,
        "log_variance_ratio": spread - (optimism or 0.0),
        "optimism": optimism,
    }
    if note is not None:
        extra["note"] = note
    return Metric(f"wasserstein1_pc{k + 1}", value, math.sqrt(variance), extra)


def _sliced(panel: PanelInput) -> Metric:
    x_nd, y_md = panel.x, panel.y
    n, m = x_nd.shape[0], y_md.shape[0]
    axes_ld = directions(panel.directions, x_nd.shape[1], panel.seed).to(x_nd.device)
    grid = _Grid(n, m, x_nd.device)
    squares = torch.empty(panel.directions, dtype=torch.float64, device=x_nd.device)
    influence_x = torch.zeros(n, dtype=torch.float64, device=x_nd.device)
    influence_y = torch.zeros(m, dtype=torch.float64, device=x_nd.device)
    block = max(4, CHUNK // (n + m))
    for start in range(0, panel.directions, block):
        axes = axes_ld[start : start + block]
        # by which axes, for the last bit of a product depends on how many are in it, and that on n + m
        which = ("along", start, len(axes))
        sorted_x = of_reference(panel, which, partial(_Sorted.of, x_nd, axes))
        sorted_y = _Sorted.of(y_md, axes)
        for k in range(len(axes)):
            squares[start + k], f_x, f_y = grid.squared(sorted_x.ascending[k], sorted_y.ascending[k])
            influence_x += f_x.index_select(0, sorted_x.rank[k])
            influence_y += f_y.index_select(0, sorted_y.rank[k])
    mean = float(squares.mean())
    value = math.sqrt(mean)
    extra: dict[str, object] = {"directions": panel.directions, "seed": panel.seed, "p": 2}
    if value == 0.0:
        return Metric("sliced_wasserstein", 0.0, None, extra)
    variance = variance_of_mean(influence_x / panel.directions) + variance_of_mean(influence_y / panel.directions)
    if panel.directions > 1:
        extra["direction_se"] = math.sqrt(variance_of_mean(squares)) / (2.0 * value)
    extra["se_covers"] = "sampling of the rows, at the pinned directions"
    return Metric("sliced_wasserstein", value, math.sqrt(variance) / (2.0 * value), extra)


def directions(count: int, d: int, seed: int) -> Tensor:
    """(count, d) float64 unit vectors, uniform on the sphere, from a CPU generator of their own."""
    draws = torch.randn(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draws / draws.square().sum(dim=1, keepdim=True).sqrt()


def _along(x_nd: Tensor, axes_ld: Tensor) -> Tensor:
    """Projections of (n, d) rows on (l, d) axes: (l, n) float64."""
    out = torch.empty(axes_ld.shape[0], x_nd.shape[0], dtype=torch.float64, device=x_nd.device)
    for rows in chunks(*x_nd.shape):
        out[:, rows] = axes_ld @ x_nd[rows].double().T
    return out


@dataclass(frozen=True)
class _Sorted:
    """Projections (l, n), each in ascending order, and where in that order each row stands (int32)."""

    ascending: Tensor
    rank: Tensor

    @classmethod
    def of(cls, x_nd: Tensor, axes_ld: Tensor) -> _Sorted:
        ascending, order = _along(x_nd, axes_ld).sort(dim=1, stable=True)
        rank = torch.empty(order.shape, dtype=torch.int32, device=order.device)
        places = torch.arange(order.shape[1], dtype=torch.int32, device=order.device)
        return cls(ascending, rank.scatter_(1, order, places.expand_as(rank)))


class _Grid:
    """The optimal coupling of n and m sorted points: interval k of [0, 1] pairs x[i[k]] with y[j[k]] at ``weight[k]``.

    It depends on n and m alone, so all directions share it. Breakpoints are kept as integers over n m: quantiles that
    coincide (n and m with a common divisor) then coincide exactly.
    """

    def __init__(self, n: int, m: int, device: torch.device) -> None:
        ends_x = torch.arange(1, n + 1, device=device) * m
        ends_y = torch.arange(1, m + 1, device=device) * n
        ends = torch.cat([ends_x, ends_y]).sort().values
        ends = ends[ends.diff(prepend=ends.new_zeros(1)) > 0]
        self.i, self.j = torch.searchsorted(ends_x, ends), torch.searchsorted(ends_y, ends)
        self.of_x, self.of_y = torch.searchsorted(ends, ends_x), torch.searchsorted(ends, ends_y)
        self.weight = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)

    def squared(self, x_n: Tensor, y_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W2^2 of two sorted samples and its dual potentials at their points.

        On the coupling's support f(x) + g(y) = (x - y)^2, so the potentials follow along the staircase of pairs. Where
        i and j step together the dual is not unique: the mean of the two orders of stepping is taken.
        """
        x, y = x_n.index_select(0, self.i), y_m.index_select(0, self.j)
        value = (self.weight * (x - y).square()).sum()
        x_sum, y_sum = x[1:] + x[:-1], y[1:] + y[:-1]
        f, g = torch.zeros_like(x), torch.zeros_like(y)
        f[1:] = prefix_sums(x.diff() * (x_sum - y_sum))
        g[1:] = prefix_sums(y.diff() * (y_sum - x_sum))
        return value, f.index_select(0, self.of_x), g.index_select(0, self.of_y)
