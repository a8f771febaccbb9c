"""``energy_pc<k>``: energy distance along one principal component, U-statistic, in O(n log n).

E = 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013), no factor 1/2, no root, in the embedding's units. The
diagonal is left out: the value is unbiased, may be negative, and is never clamped.

On the line, the sums over pairs come from sorting: sum_j |t - x_j| = t (2 p - n) + sum x - 2 (sum of the p points below
t). With r_i, s_j the row sums within a cloud and c_i, e_j those between them, of distances,

    a_i = c_i / m - r_i / (n - 1),   b_j = e_j / n - s_j / (m - 1),   E = mean a + mean b,

and the standard error is the root of 4 var(a)/n + 4 var(b)/m (first-order; about 2x too large where the clouds agree).
extra: ``component`` and ``scaled`` = E / reference sd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import prefix_sums, reference_sd, require_rows, variance_of_mean
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Metric, PanelInput


def compute(panel: PanelInput) -> list[Metric]:
    """``energy_pc1`` .. ``energy_pc<components>``. InsufficientDataError for n or m < 2."""
    metrics = []
    for k in range(panel.components):
        x = of_reference(panel, ("line", k), partial(_Line.of, panel.px.scores[:, k]))
        value, variance = _against(x, panel.py.scores[:, k])
        sd = reference_sd(panel.basis, k)
        extra = {"component": k + 1, "scaled": value / sd if sd > 0 else None}
        metrics.append(Metric(f"energy_pc{k + 1}", value, math.sqrt(variance), extra))
    return metrics


def energy_1d(x_n: Tensor, y_m: Tensor) -> tuple[float, float]:
    """Energy distance (U-statistic) of two 1-D float64 samples and var_lin, the variance of its linear part."""
    return _against(_Line.of(x_n), y_m)


@dataclass(frozen=True)
class _Line:
    """A cloud on the line about its mean, ``centre``: in ascending order, with ``below``, the sums of its first points,
    and each point's distances to all the others."""

    centre: Tensor
    points: Tensor
    below: Tensor
    own: Tensor

    @classmethod
    def of(cls, x_n: Tensor, centre: Tensor | None = None) -> _Line:
        """InsufficientDataError for n < 2."""
        require_rows(x_n, 2)
        # distances do not know the origin, the prefix sums do: near 0 they lose least
        centre = x_n.mean() if centre is None else centre
        points = (x_n - centre).sort().values
        below = _padded_sums(points)
        return cls(centre, points, below, _distances(points, points, below))


def _against(x: _Line, y_m: Tensor) -> tuple[float, float]:
    y = _Line.of(y_m, x.centre)
    n, m = x.points.shape[0], y.points.shape[0]
    a = _distances(x.points, y.points, y.below) / m - x.own / (n - 1)
    b = _distances(y.points, x.points, x.below) / n - y.own / (m - 1)
    return float(a.mean() + b.mean()), 4.0 * variance_of_mean(a) + 4.0 * variance_of_mean(b)


def _padded_sums(points: Tensor) -> Tensor:
    """Sum of the first p points, p = 0 .. n."""
    return torch.cat([points.new_zeros(1), prefix_sums(points)])


def _distances(t: Tensor, points: Tensor, below: Tensor) -> Tensor:
    """sum_j |t_i - points_j| for sorted ``points`` with ``below`` their prefix sums."""
    p = torch.searchsorted(points, t)
    return t * (2 * p - points.shape[0]) + below[-1] - 2.0 * below[p]
