"""First and second moments of the whole embedding: ``mean_shift``, ``log_variance_ratio``, ``residual_energy``.

``mean_shift`` = (|mean y - mean x|^2 - tr Sx / n - tr Sy / m) / T: the unbiased squared distance of the means (the
U-statistic with kernel x . y) as a share of the reference's total variance T; may be negative. With clusters the noise
of a mean, tr S / n, is that of its sums by cluster. Its standard error comes from the row sums, a_i = sum_{i' != i}
x_i . x_i' / (n - 1) - x_i . mean y and b_j alike, as root of 4 var(a)/n + 4 var(b)/m, the reference's share of it with
T's own influence (delta method). extra ``raw``: |mean y - mean x|, in the embedding's units, not bias-corrected.

``log_variance_ratio`` = log(tr Sy / tr Sx), S the unbiased covariances, each about its own mean; signed, 0 without
drift. Standard error by the delta method from the rows' squared distances to their mean, so heavy tails are accounted
for.

``residual_energy`` = log(mean residual of y / mean residual of x) - the axes' optimism, the residual being the squared
norm outside the pinned axes, about the pinned mean; signed. The optimism, pinned with the axes (``gpudrift.project``),
is what the log ratio of fresh rows shows without drift, since the axes were fitted on the reference's rows. It is not
subtracted where y is a part of these rows itself. extra: the ``optimism`` subtracted (None, with a ``note``, where the
reference has too few rows to tell it), and the share of each cloud's mean square that lies outside.

With clusters (users, documents) the influence of their rows is added up before it is squared, for all three standard
errors; one that occurs on both sides counts on each, which makes them too large rather than too small.

Where a variance is numerically zero (below 1e-12 of the clouds' mean square: a constant cloud, or axes that span
everything) it is taken as that floor: two zeros give 0, one gives a large finite value; ``se`` is None and extra
``note`` says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import ZERO, chunks, log_ratio, mean_of, require, require_rows
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Basis, Metric, PanelInput, Projection


@dataclass(frozen=True)
class Side:
    """What ``of_moments`` needs of a cloud. trace: of its unbiased covariance. mean_square: trace + |mean|^2.
    Between rows, unbiased: the variance of the squared distance to the own mean (``square``), of that difference's
    product with the shift of the means (``along``), and their covariance (``joint``); with clusters the rows times that
    of the mean. residual: mean squared norm
    outside the pinned axes, residual_variance: between rows; captured: mean squared norm within them.
    noise: expected squared error of the mean, where it is not trace / rows (clusters)."""

    rows: int
    trace: float
    mean_square: float
    square: float
    along: float
    joint: float
    residual: float
    residual_variance: float
    captured: float
    noise: float | None = None


def compute(panel: PanelInput) -> list[Metric]:
    """``mean_shift``, ``log_variance_ratio``, ``residual_energy``. InsufficientDataError for n or m < 2."""
    require_rows(panel.x, 2)
    require_rows(panel.y, 2)
    codes_x, codes_y = panel.clusters or (None, None)
    own_x = of_reference(panel, "moments", lambda: _own(panel.x, panel.px, codes_x))
    own_y = _own(panel.y, panel.py, codes_y)
    shift = own_y.mean - own_x.mean
    x, y = _side(panel.x, own_x, shift), _side(panel.y, own_y, shift)
    return of_moments(shift, x, y, panel.basis, in_reference=panel.in_reference)


def of_moments(shift: Tensor, x: Side, y: Side, basis: Basis, *, in_reference: bool = False) -> list[Metric]:
    """The metrics from both sides' moments and the shift of the means (d,), current less reference."""
    for side in (x, y):
        require(side.rows, 2)
    # what "numerically zero" is measured by
    scale = max(x.mean_square, y.mean_square)
    spread = _log_ratio_metric("log_variance_ratio", (x.trace, x.square), (y.trace, y.square), x, y, scale, {})
    return [_mean_shift(shift, x, y, basis.total_variance, scale), spread, _residual_energy(x, y, basis, in_reference)]


def leave_one_out(x_nd: Tensor, px: Projection, offsets: Sequence[int], n0: int) -> tuple[list[float], list[float]]:
    """``log_variance_ratio`` and ``residual_energy`` of each window's first n0 rows against the rows of all the others.

    x_nd, px: rows of all windows, window-major, about the pinned mean, and their projection. offsets: K + 1 bounds. The
    axes were fitted on these rows, so no optimism is subtracted. One pass, no copy of the rows.
    """
    windows = [(_sums(x_nd, px, a, b), _sums(x_nd, px, a, min(a + n0, b))) for a, b in itertools.pairwise(offsets)]
    every = [sum(parts) for parts in zip(*(all_rows for all_rows, _ in windows), strict=True)]
    spread, residual = [], []
    for all_rows, first in windows:
        rest = [whole - part for whole, part in zip(every, all_rows, strict=True)]
        (trace_x, square_x, outside_x), (trace_y, square_y, outside_y) = _of_sums(*rest), _of_sums(*first)
        scale = max(square_x, square_y)
        spread.append(log_ratio(trace_y, trace_x, scale)[0])
        residual.append(log_ratio(outside_y, outside_x, scale)[0])
    return spread, residual


def _sums(x_nd: Tensor, px: Projection, start: int, end: int) -> tuple[float, Tensor, float, float]:
    """Number of rows, their sum (d,), sum of squares, and sum of what lies outside the axes, float64."""
    total = torch.zeros(x_nd.shape[1], dtype=torch.float64, device=x_nd.device)
    square = 0.0
    for rows in chunks(end - start, x_nd.shape[1]):
        part = x_nd[start:end][rows].double()
        total += part.sum(dim=0)
        square += float(part.square_().sum())
    return float(end - start), total, square, float(px.residual[start:end].sum())


def _of_sums(count: float, total: Any, square: float, outside: float) -> tuple[float, float, float]:
    """Trace of the unbiased covariance, mean square, and mean square outside the axes."""
    return (square - float(total.square().sum()) / count) / (count - 1), square / count, outside / count


@dataclass(frozen=True)
class _Own:
    """What of a cloud's ``Side`` does not know the other cloud. mean: (d,). square: (n,) squared distances to it, or
    their sums by cluster, centred and scaled as ``_between`` has them. groups: the rows' clusters."""

    mean: Tensor
    square: Tensor
    trace: float
    residual: float
    residual_variance: float
    captured: float
    noise: float | None
    groups: _Groups | None


def _own(x_nd: Tensor, px: Projection, codes: Tensor | None) -> _Own:
    mean_d = mean_of(x_nd)
    groups = None if codes is None else _Groups.of(codes)
    square = torch.empty(x_nd.shape[0], dtype=torch.float64, device=x_nd.device)
    for rows in chunks(*x_nd.shape):
        square[rows] = (x_nd[rows].double() - mean_d).square_().sum(dim=1)
    residual = _between(px.residual, groups)
    return _Own(
        mean=mean_d,
        square=_between(square, groups),
        trace=float(square.sum()) / (x_nd.shape[0] - 1),
        residual=float(px.residual.mean()),
        residual_variance=float(residual @ residual),
        captured=_mean_square(px.scores),
        noise=None if groups is None else _clustered_noise(x_nd, mean_d, groups),
        groups=groups,
    )


def _side(x_nd: Tensor, own: _Own, shift_d: Tensor) -> Side:
    along = torch.empty(x_nd.shape[0], dtype=torch.float64, device=x_nd.device)
    for rows in chunks(*x_nd.shape):
        along[rows] = (x_nd[rows].double() - own.mean) @ shift_d
    along = _between(along, own.groups)
    return Side(
        rows=x_nd.shape[0],
        trace=own.trace,
        mean_square=own.trace + float(own.mean.square().sum()),
        square=float(own.square @ own.square),
        along=float(along @ along),
        joint=float(own.square @ along),
        residual=own.residual,
        residual_variance=own.residual_variance,
        captured=own.captured,
        noise=own.noise,
    )


@dataclass(frozen=True)
class _Groups:
    """Clusters of n rows. count: of clusters. places: (n,) int64 on the CPU, each row's."""

    count: int
    places: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> _Groups:
        found, places = torch.unique(codes.cpu(), return_inverse=True)
        return cls(len(found), places)


def _clustered_noise(x_nd: Tensor, mean_d: Tensor, of: _Groups) -> float:
    """Expected squared error of the mean of clustered rows: the squared sums by cluster of what is about the mean."""
    (n, d), groups, total = x_nd.shape, of.count, 0.0
    for columns in chunks(d, max(n, groups)):
        centred = (x_nd[:, columns].double() - mean_d[columns]).cpu()  # CUDA adds in any order
        sums = torch.zeros(groups, centred.shape[1], dtype=torch.float64).index_add_(0, of.places, centred)
        total += float(sums.square().sum())
    return total / n**2 * groups / max(groups - 1, 1)


def _between(values_n: Tensor, of: _Groups | None) -> Tensor:
    """Centred values, or their sums by cluster, scaled: products of two of these are (co)variances between rows, or n
    times those of the means of clustered rows."""
    n, centred = values_n.shape[0], values_n - values_n.mean()
    if of is None:
        return centred / math.sqrt(n - 1)
    # on the CPU: CUDA adds in any order
    sums = torch.zeros(of.count, dtype=torch.float64).index_add_(0, of.places, centred.cpu())
    return sums * math.sqrt(of.count / max(of.count - 1, 1) / n)


def _mean_shift(shift: Tensor, x: Side, y: Side, unit: float, scale: float) -> Metric:
    n, m = x.rows, y.rows
    distance = float(shift.square().sum())
    extra: dict[str, object] = {"raw": math.sqrt(distance)}
    if not unit > ZERO * scale:
        extra["note"] = "reference numerically zero"
        unit = ZERO * scale
        if unit == 0.0:
            return Metric("mean_shift", 0.0, None, extra)
    noise = sum(side.trace / side.rows if side.noise is None else side.noise for side in (x, y))
    value = (distance - noise) / unit
    if "note" in extra:
        return Metric("mean_shift", value, None, extra)
    # origin at mean x: sum of x is 0, sum of y is m * shift. The influences are sums of square and along,
    #     2 a / unit - value square / unit, a = -square / (n - 1) - along;   2 b / unit, b = ((m - 2) along - square)
    # / (m - 1) + constant
    of_x = _combined(x, (-2.0 / (n - 1) - value) / unit, -2.0 / unit)
    of_y = _combined(y, -2.0 / (m - 1) / unit, 2.0 * (m - 2) / (m - 1) / unit)
    return Metric("mean_shift", value, math.sqrt(of_x / n + of_y / m), extra)


def _combined(side: Side, by_square: float, by_along: float) -> float:
    """Variance between rows of ``by_square`` square + ``by_along`` along."""
    variance = by_square**2 * side.square + by_along**2 * side.along + 2.0 * by_square * by_along * side.joint
    return max(variance, 0.0)


def _residual_energy(x: Side, y: Side, basis: Basis, in_reference: bool) -> Metric:
    # rows of the reference are as well fitted as the rest of it
    optimism = 0.0 if in_reference else basis.residual_optimism
    total_x, total_y = x.residual + x.captured, y.residual + y.captured
    extra: dict[str, object] = {
        "share_reference": x.residual / total_x if total_x > 0 else 0.0,
        "share_current": y.residual / total_y if total_y > 0 else 0.0,
        "optimism": optimism,
    }
    if optimism is None:
        extra["note"] = "too few reference rows to correct for the axes' fit"
    scale = max(total_x, total_y)
    parts = (x.residual, x.residual_variance), (y.residual, y.residual_variance)
    return _log_ratio_metric("residual_energy", *parts, x, y, scale, extra, optimism or 0.0)


def _log_ratio_metric(
    name: str,
    of_x: tuple[float, float],
    of_y: tuple[float, float],
    x: Side,
    y: Side,
    scale: float,
    extra: dict[str, object],
    optimism: float = 0.0,
) -> Metric:
    """From mean and variance between rows of a non-negative quantity on both sides."""
    value, note = log_ratio(of_y[0], of_x[0], scale)
    value -= optimism
    if note is not None:
        return Metric(name, value, None, {**extra, "note": note})
    se = math.sqrt(of_x[1] / of_x[0] ** 2 / x.rows + of_y[1] / of_y[0] ** 2 / y.rows)
    return Metric(name, value, se, extra)


def _mean_square(scores_nq: Tensor) -> float:
    total = 0.0
    for rows in chunks(*scores_nq.shape):
        total += float(scores_nq[rows].square().sum())
    return total / scores_nq.shape[0]
