"""Does a metric move with the drift, at once or a few windows later? Cross-correlation of two short series.

Of two independent series with an autocorrelation of .8, the largest of five lagged correlations is "significant" in
every second pair of 26 windows. So both come in prewhitened (``gpudrift.outcomes.whitening``), and the largest of their
correlations is held against that of shuffled residuals. Measured in docs/outcomes.md.

Gaps: a residual exists where a window and the one before it both have a value; a pair, where both residuals exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpudrift.outcomes.records import Floats, LagEffect
from gpudrift.student_t import student_t_quantile

LEAST_PAIRS = 6  # of a lag, below which its correlation is not looked at
CONFIDENCE = 0.95
_CHUNK = 2_000_000  # numbers a block of shuffled series holds
_TIE = 1e-9  # a shuffle this close to what was observed is a tie and counts as such
_FLAT = 1e-18  # mean square, of residuals of size 1, below which they do not vary
_MOST_R = 1 - 1e-12


def paired(x: Floats, y: Floats, lag: int) -> tuple[Floats, Floats]:
    """x and y ``lag`` windows later, where both exist."""
    ahead, behind = (x[: len(x) - lag], y[lag:]) if lag < len(x) else (x[:0], y[:0])
    both = np.isfinite(ahead) & np.isfinite(behind)
    return ahead[both], behind[both]


def lag_effect(drift: Floats, metric: Floats, lag: int, spent: int = 0) -> LagEffect | None:
    """Correlation and slope of prewhitened series at one lag, None below ``LEAST_PAIRS`` + ``spent`` pairs or where
    either does not vary.

    Args:
        drift: natural logarithm of the score; the slope is for a doubling, its interval by Student's t with n - 2 -
            ``spent`` degrees of freedom.
        spent: degrees of freedom that the same trend took from both.
    """
    x, y = paired(drift, metric, lag)
    n = len(x)
    if n < LEAST_PAIRS + spent:
        return None
    x, y = x - x.mean(), y - y.mean()
    x_size, y_size = float(np.abs(x).max()), float(np.abs(y).max())
    if not (x_size > 0 and y_size > 0):
        return None
    x, y = x / x_size, y / y_size
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    slope = xy / xx
    error = math.sqrt(max(yy - slope * xy, 0.0) / (n - 2 - spent) / xx)
    doubling = math.log(2) * y_size / x_size
    reach = _t(n - 2 - spent) * error
    r = min(max(xy / math.sqrt(xx * yy), -1.0), 1.0)
    return LagEffect(lag, n, r, slope * doubling, ((slope - reach) * doubling, (slope + reach) * doubling))


@lru_cache(maxsize=4096)
def _t(dof: int) -> float:
    return student_t_quantile((1 + CONFIDENCE) / 2, dof)


def studentised(r: Floats, n: int, spent: int = 0) -> Floats:
    """|atanh r| sqrt(n - 3 - spent), Fisher (1921; 1924 for partial correlations): about standard normal whatever n is,
    so that a lag with few pairs, whose correlations are large by chance, does not rule the maximum."""
    found: Floats = np.abs(np.arctanh(np.clip(r, -_MOST_R, _MOST_R))) * math.sqrt(max(n - 3 - spent, 1))
    return found


def strongest(effects: Sequence[LagEffect], spent: int = 0) -> LagEffect:
    """The one with the largest studentised correlation, the earliest of equals."""
    return max(effects, key=lambda e: (float(studentised(np.array([e.r]), e.n, spent)[0]), -e.lag))


def shuffled_p(
    drift: Floats, metric: Floats, lags: Sequence[int], permutations: int, rng: np.random.Generator, spent: int = 0
) -> float:
    """p of the largest studentised |correlation| over ``lags``: the drift's residuals shuffled among the windows of
    all pairs, (1 + as large) / (1 + permutations). Both signs count.

    What a trend took from both series (``spent``) is missing from both at the same places, which makes them correlate
    more by chance; shuffled residuals have it again. So it counts for the observed correlation alone.
    """
    held = np.flatnonzero(_in_pairs(drift, metric, lags))
    values = drift[held] - drift[held].mean()
    values = values / np.abs(values).max()
    found = _largest(values[None, :], held, len(drift), metric, lags, spent)[0]
    as_large, left = 0, permutations
    while left:
        rows = min(left, max(1, _CHUNK // len(held)))
        draws = rng.permuted(np.broadcast_to(values, (rows, len(held))), axis=1)
        as_large += int((_largest(draws, held, len(drift), metric, lags) >= found * (1 - _TIE)).sum())
        left -= rows
    return (1 + as_large) / (1 + permutations)


def _in_pairs(drift: Floats, metric: Floats, lags: Sequence[int]) -> NDArray[np.bool_]:
    """(k,): windows whose drift is in a pair at some lag; a burst years before the first metric is dealt to none."""
    found = np.zeros(len(drift), dtype=bool)
    for lag in lags:
        end = max(len(drift) - lag, 0)
        found[:end] |= np.isfinite(drift[:end]) & np.isfinite(metric[lag:])
    return found


def _largest(
    rows: Floats, held: NDArray[np.intp], length: int, metric: Floats, lags: Sequence[int], spent: int = 0
) -> Floats:
    """The largest studentised correlation of each row, whose values stand at the places ``held``."""
    most = np.zeros(len(rows))
    for lag in lags:
        later = held + lag
        inside = later < length
        pairs = np.flatnonzero(inside)[np.isfinite(metric[later[inside]])]
        n = len(pairs)
        y = metric[later[pairs]]
        y = y - y.mean()
        y = y / np.abs(y).max()
        x = rows if n == rows.shape[1] else rows[:, pairs]
        spread = np.einsum("ij,ij->i", x, x) - x.sum(axis=1) ** 2 / n
        flat = spread <= _FLAT * n  # all the values that vary were dealt elsewhere
        r = np.where(flat, 0.0, (x @ y) / np.sqrt(np.where(flat, 1.0, spread) * (y @ y)))
        most = np.maximum(most, studentised(r, n, spent))
    return most
