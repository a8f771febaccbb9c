"""W1 of two windows from their histograms, with bounds.

A histogram here keeps the count AND the sum of the scores in each bin, so besides the distribution functions F and G at
the edges also their integrals over every bin are known: over [l, r), int F = (r - l) F(l) + (r c - s) / n, c and s the
bin's count and sum. Within a bin F - G stays between

    low = F(l) - G(l) - (share of G in the bin)        high = F(l) - G(l) + (share of F in the bin)

and W1 = int |F - G| (Vallender 1974) is exact over each bin where these have one sign. Only where the functions may
cross it is not: there |int (F - G)| is a lower bound, and

    |int (F - G)| + 2 (r - l) high (-low) / (high - low)      and      (r - l) max(high, -low)

are upper ones; the value taken between them is that of straight lines. The open ends reach to the extremes seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.sketch.state import Sketch


@dataclass(frozen=True)
class W1:
    """value; variance of its estimate; bound: the exact W1 of the rows is within value +- bound."""

    value: float
    variance: float
    bound: float


def wasserstein1(x: Sketch, y: Sketch, k: int) -> W1:
    """Along component k of two sketches of one plan, of a row each at least."""
    edges = torch.cat(
        [
            torch.minimum(torch.minimum(x.extent[:1, k], y.extent[:1, k]), x.plan.cuts[k, :1]),
            x.plan.cuts[k],
            torch.maximum(torch.maximum(x.extent[1:, k], y.extent[1:, k]), x.plan.cuts[k, -1:]),
        ]
    )
    left, right = edges[:-1], edges[1:]
    width = right - left
    (share_x, from_right_x), (share_y, from_right_y) = (_shares(side, right, k) for side in (x, y))
    at_right = (share_x - share_y).cumsum(dim=0)
    at_left = at_right - (share_x - share_y)
    integral = width * at_left + from_right_x - from_right_y
    low, high = at_left - share_y, at_left + share_x
    crossing = (low < 0) & (high > 0)
    least = integral.abs()
    span = (high - low).where(crossing, torch.ones_like(low))
    most = torch.minimum(least + 2.0 * width * (high * -low) / span, width * torch.maximum(high, -low))
    most = torch.maximum(most, least).where(crossing, least)  # rounding may put one bound past the other
    ends = (at_left.abs() + at_right.abs()).clamp(min=torch.finfo(torch.float64).tiny)
    opposite = at_left * at_right < 0
    line = width * torch.where(opposite, (at_left.square() + at_right.square()) / ends, ends) / 2.0
    taken = torch.minimum(torch.maximum(line, least), most).where(crossing, least)
    # the potential: its slope is the sign of F - G, over a bin with a crossing the mean of it on the line
    slope = torch.where(opposite & crossing, (at_left + at_right) / ends, integral.sign())
    start = (slope * width).cumsum(dim=0) - slope * width
    variance = sum(_variance(side, left, start, slope, k) for side in (x, y))
    bound = max(float((most - taken).sum()), float((taken - least).sum()))
    return W1(float(taken.sum()), variance, bound)


def _shares(side: Sketch, right: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of each bin: the share of the rows, and the integral of what they add to the distribution function."""
    counts, sums = side.sums["histograms.counts"][k].double(), side.sums["histograms.sums"][k]
    return counts / side.count, (right * counts - sums) / side.count


def _variance(side: Sketch, left: Tensor, start: Tensor, slope: Tensor, k: int) -> float:
    """Sampling variance of the mean of the potential, each row at its bin's mean."""
    counts, sums = side.sums["histograms.counts"][k].double(), side.sums["histograms.sums"][k]
    potential = start + slope * (sums / counts.clamp(min=1) - left)
    mean = float((counts * potential).sum()) / side.count
    return float((counts * (potential - mean).square()).sum()) / (side.count * (side.count - 1))


def pinned_counts(side: Sketch) -> Tensor:
    """(q', bins') int64: rows in the reference's own bins, those of PSI."""
    counts = torch.zeros(side.plan.components, side.plan.edges.shape[1] + 1, dtype=torch.int64)
    return counts.scatter_add_(1, side.plan.pinned_bins, side.sums["histograms.counts"])
