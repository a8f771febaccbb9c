"""The same ids under two encoders: does one linear map turn the old vectors into the new ones?

All in float64 and in linear time in the rows. x, y: (k, d) rows of the same k ids, before and after.

- Relative residual of a row: |y - f(x)|^2 / (2 tr C), C the covariance of y: 0 where f is exact, 1 on average for rows
  that have nothing to do with each other.
- Procrustes: the rotation R (reflections included), scale s and shift that minimise sum |s (x - mean x) R + mean y -
  y|^2. R = U V' of the SVD of X'Y, s = tr S / |X|^2 (Schoenemann 1966; Gower and Dijksterhuis 2004, chapter 4). With
  fewer pairs than dimensions R is known on the span of x alone, and what lies outside is mapped to the mean.
- CKA: linear centred kernel alignment, HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) (Kornblith et al. 2019), by the
  unbiased U-statistic HSIC_1 (Song et al. 2012, equation 5), so that it is 0 on average for unrelated rows however
  many dimensions there are: 1 for rotated and scaled rows, and whatever maps keep of who is near whom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearMap:
    """x -> scale * (x - before) @ left @ right.T + after; left, right: (d, r) with orthonormal columns."""

    before: Tensor
    after: Tensor
    left: Tensor
    right: Tensor
    scale: float

    def __call__(self, x_kd: Tensor) -> Tensor:
        return self.scale * ((x_kd - self.before) @ self.left) @ self.right.T + self.after


def procrustes(x_kd: Tensor, y_kd: Tensor) -> LinearMap:
    """The rotation, scale and shift that fit best, from k >= 2 pairs, float64. With k < d through two thin QR
    decompositions: k^2 d + k^3 operations instead of d^3."""
    before, after = x_kd.mean(0), y_kd.mean(0)
    x, y = x_kd - before, y_kd - after
    if x.shape[0] < x.shape[1]:
        (qx, rx), (qy, ry) = torch.linalg.qr(x.T), torch.linalg.qr(y.T)
        u, s, vh = torch.linalg.svd(rx @ ry.T)
        left, right = qx @ u, qy @ vh.T
    else:
        u, s, vh = torch.linalg.svd(x.T @ y)
        left, right = u, vh.T
    square = float(x.square().sum())
    return LinearMap(before, after, left, right, float(s.sum()) / square if square > 0 else 1.0)


def residuals(found_kd: Tensor, wanted_kd: Tensor, variance: float) -> Tensor:
    """(k,) relative residuals; variance: tr C of unrelated rows, above 0."""
    return (wanted_kd - found_kd).square().sum(1) / (2 * variance)


def cka(x_kd: Tensor, y_kd: Tensor) -> float:
    """Debiased linear CKA of k >= 4 pairs; may be slightly below 0 or above 1. NaN where a side has no spread."""
    x, y = x_kd - x_kd.mean(0), y_kd - y_kd.mean(0)
    scale = _hsic(x, x) * _hsic(y, y)
    return _hsic(x, y) / math.sqrt(scale) if scale > 0 else math.nan


def _hsic(x: Tensor, y: Tensor) -> float:
    """HSIC_1 of the Gram matrices without their diagonals, from (d, d') products; up to a factor that cancels."""
    k = x.shape[0]
    squares_x, squares_y = x.square().sum(1), y.square().sum(1)
    trace = (x.T @ y).square().sum() - squares_x @ squares_y
    sums_x, sums_y = x @ x.sum(0) - squares_x, y @ y.sum(0) - squares_y
    return float(trace + sums_x.sum() * sums_y.sum() / ((k - 1) * (k - 2)) - 2 / (k - 2) * (sums_x @ sums_y))
