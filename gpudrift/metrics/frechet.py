"""``frechet``: squared 2-Wasserstein distance of the two Gaussians with the clouds' moments, null mean removed.

F = |mean y - mean x|^2 + tr(Sx + Sy - 2 (Sx^1/2 Sy Sx^1/2)^1/2) (Dowson and Landau 1982), in squared units of the
embedding. The last trace is the nuclear norm of Lx' Ly for any factors S = L L', taken from singular values: no matrix
root is formed, and a current window of m <= d rows needs no covariance at all, its centred rows are the factor.

Null mean, removed: F of two samples of one distribution is far above 0 (m = 350 rows of 384 dimensions: a fifth of the
total variance) and depends on m, on the spectrum and on the tails. It is simulated from the reference's own rows:
``DRAWS`` times, s of its n rows, drawn without replacement by the pinned seed, against the other n - s; their mean F is
scaled to n and m by (1/n + 1/m) / (1/s + 1/(n - s)), the first-order law. s = m, but at most n/2, and at most 8 d: from
there on F is nearly proportional to 1/n + 1/m.

Measured on sentence embeddings, d = 384, disjoint samples, n = 4000 and 15000, m from 40 to 4000: within 1.3% of the
mean of F, most within .7%, and never more than 1.2 null standard deviations off. The closed second-order expansion
about equal covariances of Gaussian rows misses by +27% (m = 40), -18% (100), -15% (350), -7% (1000) and -3% to -5%
(4000, the tails): 2.5 to 22 standard deviations. Where the reference has few rows the simulation misses more: -3% at
n = 1000, m = 350, and -13% on white data at n = m = d.

No standard error: the plug-in's bias, of the order of its standard error unless n, m >> d, is not removed away from the
null, so an interval would not cover. extra ``null_sd``: the draws' standard deviation, scaled alike, the spread of
``raw`` without drift. From 8 draws it is itself uncertain by a quarter, and ``null_mean`` by a third of it.

Work space: a few float64 matrices of the size of the covariance (d, d) and of s rows; time O(d^3) and O(s d^2) a draw
(d = 384, one core, all draws together: .3 s at m = 350, 1 s at m = 4000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import covariance_of, mean_of, require_rows
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Metric, PanelInput

DRAWS = 8
_LARGEST = 8  # times d: rows of a draw


def compute(panel: PanelInput) -> list[Metric]:
    """``frechet``, with the reference's covariance as pinned. InsufficientDataError for n or m < 2.

    A reference of fewer than 4 rows cannot be split in two: nothing is removed then, and extra ``note`` says so.
    """
    require_rows(panel.x, 2)
    require_rows(panel.y, 2)
    mean_y, m = mean_of(panel.y), panel.y.shape[0]
    x = of_reference(panel, "frechet", lambda: _Reference.of(panel))
    shift = float((mean_y - x.mean).square().sum())
    raw = shift + bures(x.factor, _factor_of_rows(panel.y, mean_y))
    extra: dict[str, object] = {"raw": raw, "null_mean": 0.0, "null_sd": None}
    n, d = panel.x.shape
    if n < 4:
        return [Metric("frechet", raw, None, {**extra, "note": "too few reference rows for a null mean"})]
    s = _rows_of_draw(n, m, d)
    draws = of_reference(panel, ("draws", s), lambda: _draws(panel.x, x.mean, x.covariance, s, panel.seed))
    expected, spread = _scaled(draws, n, m, s)
    return [Metric("frechet", raw - expected, None, {**extra, "null_mean": expected, "null_sd": spread})]


@dataclass(frozen=True)
class _Reference:
    """Moments (d,), (d, d) and a factor (d, r) of the covariance, float64."""

    mean: Tensor
    covariance: Tensor
    factor: Tensor

    @classmethod
    def of(cls, panel: PanelInput) -> _Reference:
        mean = mean_of(panel.x)
        # the pinned covariance is that of all the reference's rows, y's among them when y is a part of it
        covariance = covariance_of(panel.x, mean) if panel.in_reference else panel.covariance
        return cls(mean, covariance, factor(covariance))


def null_moments(x_nd: Tensor, mean_d: Tensor, covariance_dd: Tensor, m: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of F between n rows like these, n >= 4, and m more of the same distribution.

    mean_d, covariance_dd: of x_nd, float64. The draws come from a CPU generator of their own, seeded by ``seed``.
    """
    n, d = x_nd.shape
    s = _rows_of_draw(n, m, d)
    return _scaled(_draws(x_nd, mean_d, covariance_dd, s, seed), n, m, s)


def _rows_of_draw(n: int, m: int, d: int) -> int:
    return min(m, n // 2, _LARGEST * d)


def _draws(x_nd: Tensor, mean_d: Tensor, covariance_dd: Tensor, s: int, seed: int) -> Tensor:
    """(``DRAWS``,) float64: F between s of the rows and the others."""
    n = x_nd.shape[0]
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(DRAWS, dtype=torch.float64)
    for draw in range(DRAWS):
        places = torch.randperm(n, generator=generator)[:s].sort().values
        found[draw] = _part_against_rest(x_nd[places.to(x_nd.device)], mean_d, covariance_dd, n)
    return found


def _scaled(draws: Tensor, n: int, m: int, s: int) -> tuple[float, float]:
    """Mean and standard deviation of draws of s rows against n - s, brought to n rows against m."""
    scale = (1.0 / n + 1.0 / m) / (1.0 / s + 1.0 / (n - s))
    return float(draws.mean()) * scale, float(draws.std()) * scale


def _part_against_rest(part_sd: Tensor, mean_d: Tensor, covariance_dd: Tensor, n: int) -> float:
    """F between s of n rows and the others, whose moments follow from those of all: they are not read."""
    s, d = part_sd.shape
    rest = n - s
    away = mean_of(part_sd) - mean_d
    centred = part_sd.double() - (mean_d + away)
    scatter = centred.T @ centred
    covariance = (covariance_dd * (n - 1) - scatter - torch.outer(away, away) * (s * n / rest)) / (rest - 1)
    root = centred / math.sqrt(s - 1) if s <= d else _root(scatter / (s - 1))
    # singular values as roots of eigenvalues: good to 1e-8 of the largest, and many times faster
    squares = torch.linalg.eigvalsh(root @ covariance @ root.T)
    cross = float(squares.clamp(min=0.0).sqrt().sum())
    shift = float(away.square().sum()) * (n / rest) ** 2
    return shift + float(covariance.trace()) + float(scatter.trace()) / (s - 1) - 2.0 * cross


def _root(covariance_dd: Tensor) -> Tensor:
    """R (r, d) with S = R' R."""
    upper, info = torch.linalg.cholesky_ex(covariance_dd, upper=True)
    # a factor of eigenvectors is several times slower, and the only one where S is singular
    return factor(covariance_dd).T if int(info) else upper


def factor(covariance_dd: Tensor) -> Tensor:
    """L (d, r) with S = L L', r the numerical rank."""
    eigenvalues, vectors = torch.linalg.eigh(covariance_dd)
    noise = covariance_dd.shape[0] * torch.finfo(torch.float64).eps * eigenvalues[-1].clamp(min=0.0)
    # left in, noise of 1e-16 would come back as 1e-8 from the root
    kept = eigenvalues > noise
    scaled: Tensor = vectors[:, kept] * eigenvalues[kept].sqrt()
    return scaled


def _factor_of_rows(y_md: Tensor, mean_d: Tensor) -> Tensor:
    """L (d, r) with L L' the unbiased covariance of the rows."""
    m, d = y_md.shape
    if m <= d:
        return (y_md.double() - mean_d).div_((m - 1) ** 0.5).T
    return factor(covariance_of(y_md, mean_d))


def bures(factor_x: Tensor, factor_y: Tensor) -> float:
    """tr(Sx + Sy - 2 (Sx^1/2 Sy Sx^1/2)^1/2) from factors (d, r) of Sx and Sy."""
    traces = float(factor_x.square().sum()) + float(factor_y.square().sum())
    product = factor_x.T @ factor_y
    cross = float(torch.linalg.svdvals(product).sum()) if product.numel() else 0.0
    return traces - 2.0 * cross
