"""A series without its trend, its weekday cycle and its autocorrelation: what is left can be shuffled.

Two series that both trend, or both wander, correlate over dozens of windows although neither knows of the other. So
each is made white by itself first (Box and Jenkins, Time Series Analysis, ch. 12): least squares on calendar time, then
a first-order autoregression.

The trend is a line with a bend every ``BEND`` windows that have a value. One straight line is not enough for more than
a year of weeks: a series that lies still for four years and then ramps leaves a low wave beside the noise of its
windows, which no autoregression of first order takes out, and two such series are "linked" more often than not
(docs/outcomes.md has the rates). Windows of a day have a weekday too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpudrift.outcomes.records import Floats

BEND = 26  # windows with a value between two bends of the trend
LEAST_CYCLES = 3  # weeks of days, below which weekdays are not told apart
_ROUNDING = 1e-9  # of the series' own size: what is left below it is rounding
_MOST = 0.99  # an autoregression estimated at 1 or beyond is a difference, all but


@dataclass(frozen=True)
class Fit:
    """A series taken apart. left: (k,) float64, values less trend and cycle; all NaN where nothing but rounding is
    left, or fewer than 3 values. trend: share of the variance that trend and cycle take; terms: degrees of freedom they
    take, beside the mean's."""

    left: Floats
    trend: float
    terms: int


@dataclass(frozen=True)
class Residuals:
    """A white series. values: (k,) float64, NaN where there is none: a window without a value, or after such a one.
    autoregression: the coefficient that was taken out. fit: what came before it."""

    values: Floats
    autoregression: float
    fit: Fit


def take_apart(values: Floats, cycle: int | None = None, bend: int = BEND) -> Fit:
    """Least squares of (k,) values, NaN for gaps, on calendar time with bends, and on the place in a cycle of so many
    windows (7 of a day's) where ``LEAST_CYCLES`` of it have values. bend: windows with a value between two bends."""
    known = np.isfinite(values)
    count, nothing = int(known.sum()), np.full(len(values), np.nan)
    size = float(np.abs(values[known]).max()) if count else 0.0
    if count < 3 or size == 0:
        return Fit(nothing, 0.0, 0)
    scaled = values / size  # else squares of tiny or huge values leave the range of float64
    level = float(scaled[known].mean())
    design = np.concatenate([_trend(known, bend), _places(known, cycle)], axis=1)
    terms = design.shape[1] - 1
    solution = np.linalg.lstsq(design[known], scaled[known] - level, rcond=None)[0]
    left = scaled - level - design @ solution
    total = float(((scaled[known] - level) ** 2).sum())
    if float(np.abs(left[known]).max()) <= _ROUNDING:
        return Fit(nothing, 1.0 if total > _ROUNDING**2 * count else 0.0, terms)
    return Fit(left * size, max(0.0, 1 - float((left[known] ** 2).sum()) / total), terms)


def prewhiten(values: Floats, cycle: int | None = None, bend: int = BEND) -> Residuals:
    """e_t = d_t - phi d_(t-1), d the series without trend and cycle, phi by least squares over the windows that follow
    one with a value, within .99 of 0."""
    fit = take_apart(values, cycle, bend)
    before, now = fit.left[:-1], fit.left[1:]
    pairs = np.isfinite(before) & np.isfinite(now)
    white = np.full(len(values), np.nan)
    if not pairs.any():
        return Residuals(white, 0.0, fit)
    scale = float(np.abs(fit.left[np.isfinite(fit.left)]).max())
    earlier, later = before[pairs] / scale, now[pairs] / scale
    power = float(earlier @ earlier)
    phi = min(max(float(earlier @ later) / power, -_MOST), _MOST) if power > 0 else 0.0
    white[1:] = now - phi * before
    return Residuals(white, phi, fit)


def _trend(known: NDArray[np.bool_], bend: int) -> Floats:
    """(k, 1 + segments): a constant, a line and its bends, evenly many values between two of them."""
    held = np.flatnonzero(known)
    time = np.arange(len(known), dtype=float)
    segments = max(1, round(len(held) / bend))
    bends = [time[held[len(held) * j // segments]] for j in range(1, segments)]
    span = max(float(held[-1] - held[0]), 1.0)
    line = (time - time[held].mean()) / span
    return np.stack([np.ones(len(known)), line, *[np.maximum(0.0, time - bend) / span for bend in bends]], axis=1)


def _places(known: NDArray[np.bool_], cycle: int | None) -> Floats:
    """(k, cycle - 1): the place of each window in the cycle; (k, 0) without one, or where too few values tell."""
    at = np.arange(len(known))
    if cycle is None or any((known & (at % cycle == place)).sum() < LEAST_CYCLES for place in range(cycle)):
        return np.zeros((len(known), 0))
    return np.equal(at[:, None] % cycle, np.arange(1, cycle)[None, :]).astype(np.float64)
