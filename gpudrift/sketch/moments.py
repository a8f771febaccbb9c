"""Means and co-moments that merge.

Kept for the d coordinates u of a row about the plan's mean and for two more columns: w = |u|^2 - T, T the reference's
total variance, and e = the squared norm outside the axes less the reference's own. Their co-moments hold what standard
errors need: the covariance of u, the variance of |x - m|^2 about any m, and its covariance with u.

Merging is the pairwise update of Chan, Golub and LeVeque (1983), in float64:

    mean = mean_a + delta n_b / n          delta = mean_b - mean_a
    M    = M_a + M_b + delta delta' n_a n_b / n
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PANEL = 128  # columns of the Gram matrix at a time: only the blocks on and above the diagonal are computed


@dataclass(frozen=True, eq=False)
class Moments:
    """count; mean: (p,) float64; scatter: (p, p) float64, sums of products about the mean."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, columns: int) -> Moments:
        return cls(0, torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, columns, dtype=torch.float64))

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of (n, p) float64 values, n >= 1, which are overwritten."""
        mean = values.mean(dim=0)
        values -= mean
        return cls(values.shape[0], mean, _gram(values))

    def merge(self, other: Moments) -> Moments:
        if not self.count or not other.count:
            return other if not self.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter.addr_(delta, delta, alpha=self.count * (other.count / count))
        return Moments(count, mean, scatter)

    def covariance(self) -> Tensor:
        """(p, p) unbiased, for a count of 2 or more."""
        return self.scatter / (self.count - 1)


def _gram(values: Tensor) -> Tensor:
    """values' values, the lower triangle copied from the upper."""
    columns = values.shape[1]
    gram = torch.empty(columns, columns, dtype=torch.float64)
    for start in range(0, columns, _PANEL):
        end = min(start + _PANEL, columns)
        gram[start:end, start:] = values[:, start:end].T @ values[:, start:]
        gram[end:, start:end] = gram[start:end, end:].T
    return gram
