"""First and second moments of the whole embedding: ``mean_shift``, ``log_variance_ratio``, ``residual_energy``.

``mean_shift`` = (|mean y - mean x|^2 - tr Sx / n - tr Sy / m) / T: the unbiased squared distance of the means (the
U-statistic with kernel x . y) as a share of the reference's total variance T; may be negative. Its standard error comes
from the row sums, a_i = sum_{i' != i} x_i . x_i' / (n - 1) - x_i . mean y and b_j alike, as root of 4 var(a)/n + 4
var(b)/m, the reference's share of it with T's own influence (delta method). extra ``raw``: |mean y - mean x|, in the
embedding's units, not bias-corrected.

``log_variance_ratio`` = log(tr Sy / tr Sx), S the unbiased covariances, each about its own mean; signed, 0 without
drift. Standard error by the delta method from the rows' squared distances to their mean, so heavy tails are accounted
for.

``residual_energy`` = log(mean residual of y / mean residual of x) - the axes' optimism, the residual being the squared
norm outside the pinned axes, about the pinned mean; signed. The optimism, pinned with the axes (``gpudrift.project``),
is what the log ratio of fresh rows shows without drift, since the axes were fitted on the reference's rows. It is not
subtracted where y is a part of these rows itself. extra: the ``optimism`` subtracted (None, with a ``note``, where the
reference has too few rows to tell it), and the share of each cloud's mean square that lies outside.

Where a variance is numerically zero (below 1e-12 of the clouds' mean square: a constant cloud, or axes that span
everything) it is taken as that floor: two zeros give 0, one gives a large finite value; ``se`` is None and extra
``note`` says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import ZERO, chunks, log_ratio, mean_of, require_rows, variance_of_mean
from gpudrift.records import Metric, PanelInput


def compute(panel: PanelInput) -> list[Metric]:
    """``mean_shift``, ``log_variance_ratio``, ``residual_energy``. InsufficientDataError for n or m < 2."""
    require_rows(panel.x, 2)
    require_rows(panel.y, 2)
    n, m = panel.x.shape[0], panel.y.shape[0]
    mean_x, mean_y = mean_of(panel.x), mean_of(panel.y)
    shift = mean_y - mean_x
    square_x, along_x = _about(panel.x, mean_x, shift)
    square_y, along_y = _about(panel.y, mean_y, shift)
    trace_x, trace_y = float(square_x.sum()) / (n - 1), float(square_y.sum()) / (m - 1)
    # mean squares about the pinned mean: what "numerically zero" is measured by
    scale = max(trace_x + float(mean_x.square().sum()), trace_y + float(mean_y.square().sum()))
    return [
        _mean_shift(panel, shift, (square_x, along_x, trace_x), (square_y, along_y, trace_y), scale),
        _log_ratio_metric("log_variance_ratio", square_x, square_y, trace_x, trace_y, scale, {}),
        _residual_energy(panel),
    ]


def _about(x_nd: Tensor, mean_d: Tensor, shift_d: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, the squared distance to ``mean_d`` and the product of that difference with ``shift_d``: (n,) float64."""
    square = torch.empty(x_nd.shape[0], dtype=torch.float64, device=x_nd.device)
    along = torch.empty_like(square)
    for rows in chunks(*x_nd.shape):
        centred = x_nd[rows].double() - mean_d
        along[rows] = centred @ shift_d
        square[rows] = centred.square_().sum(dim=1)
    return square, along


def _mean_shift(
    panel: PanelInput,
    shift: Tensor,
    of_x: tuple[Tensor, Tensor, float],
    of_y: tuple[Tensor, Tensor, float],
    scale: float,
) -> Metric:
    (square_x, along_x, trace_x), (square_y, along_y, trace_y) = of_x, of_y
    n, m = square_x.shape[0], square_y.shape[0]
    distance = float(shift.square().sum())
    extra: dict[str, object] = {"raw": math.sqrt(distance)}
    unit = panel.basis.total_variance
    if not unit > ZERO * scale:
        extra["note"] = "reference numerically zero"
        unit = ZERO * scale
        if unit == 0.0:
            return Metric("mean_shift", 0.0, None, extra)
    value = (distance - trace_x / n - trace_y / m) / unit
    if "note" in extra:
        return Metric("mean_shift", value, None, extra)
    # origin at mean x: sum of x is 0, sum of y is m * shift
    a = -square_x / (n - 1) - along_x
    b = distance + ((m - 2) * along_y - square_y) / (m - 1)
    variance = variance_of_mean(2.0 * a / unit - value * square_x / unit) + variance_of_mean(2.0 * b / unit)
    return Metric("mean_shift", value, math.sqrt(variance), extra)


def _residual_energy(panel: PanelInput) -> Metric:
    px, py = panel.px, panel.py
    mean_x, mean_y = float(px.residual.mean()), float(py.residual.mean())
    total_x, total_y = mean_x + _mean_square(px.scores), mean_y + _mean_square(py.scores)
    # rows of the reference are as well fitted as the rest of it
    optimism = 0.0 if panel.in_reference else panel.basis.residual_optimism
    extra: dict[str, object] = {
        "share_reference": mean_x / total_x if total_x > 0 else 0.0,
        "share_current": mean_y / total_y if total_y > 0 else 0.0,
        "optimism": optimism,
    }
    if optimism is None:
        extra["note"] = "too few reference rows to correct for the axes' fit"
    scale = max(total_x, total_y)
    name = "residual_energy"
    return _log_ratio_metric(name, px.residual, py.residual, mean_x, mean_y, scale, extra, optimism or 0.0)


def _log_ratio_metric(
    name: str,
    x_n: Tensor,
    y_m: Tensor,
    mean_x: float,
    mean_y: float,
    scale: float,
    extra: dict[str, object],
    optimism: float = 0.0,
) -> Metric:
    value, note = log_ratio(mean_y, mean_x, scale)
    value -= optimism
    if note is not None:
        return Metric(name, value, None, {**extra, "note": note})
    se = math.sqrt(variance_of_mean(x_n / mean_x) + variance_of_mean(y_m / mean_y))
    return Metric(name, value, se, extra)


def _mean_square(scores_nq: Tensor) -> float:
    total = 0.0
    for rows in chunks(*scores_nq.shape):
        total += float(scores_nq[rows].square().sum())
    return total / scores_nq.shape[0]
