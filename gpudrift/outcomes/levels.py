"""Where a metric stands now: is its last value worse than its quiet windows let expect?"""

from __future__ import annotations

import math

import numpy as np

from gpudrift.outcomes.records import Direction, DriftSeries, Floats, Level
from gpudrift.student_t import P_FLOOR, student_t_quantile, student_t_upper

MOST_WINDOWS = 52  # quiet windows that make the usual, the last ones
LEAST_WINDOWS = 8
LATE = 2  # windows that the last value may be behind the last window: tables are often filled later than the job runs
COVERAGE = 0.99
_ROUNDING = 1e-9


def level(drift: DriftSeries, values: Floats, counts: Floats, worse: Direction) -> Level | None:
    """The last value against the quiet windows with a value before it; None without a value in the last window or the
    ``LATE`` before it, or with fewer than ``LEAST_WINDOWS`` quiet ones.

    The limit is one-sided, Student's t with k - 1 degrees of freedom: usual +- t_.99 sqrt(s^2 (1 + 1/k) + excess), s^2
    the variance of the k quiet windows, which holds the sampling error of their counts. excess: of a rate (all values
    inside 0 to 1) with fewer observations than those, what its count adds, v (1/n - mean 1/n_k), v the variance of an
    observation, u (1 - u), or all of s^2 where that is less.

    Args:
        values, counts: (k,) float64 on the windows of ``drift``, NaN where unknown.
    """
    held = np.flatnonzero(np.isfinite(values))
    if not held.size or held[-1] < len(values) - 1 - LATE:
        return None
    now = int(held[-1])
    before = held[(held < now) & drift.quiet[held]][-MOST_WINDOWS:]
    k = len(before)
    if k < LEAST_WINDOWS:
        return None
    value, quiet = float(values[now]), values[before]
    size = max(float(np.abs(quiet).max()), abs(value)) or 1.0
    usual = float((quiet / size).mean()) * size
    spread = float(((quiet / size - usual / size) ** 2).sum()) / (k - 1) * (1 + 1 / k)
    is_rate = bool((values[held] >= 0).all() and (values[held] <= 1).all())
    sd = size * math.sqrt(
        spread + (_excess(quiet, counts[before], float(counts[now]), usual) / size / size if is_rate else 0)
    )
    away = (usual - value) if worse == "lower" else (value - usual)
    reach = student_t_quantile(COVERAGE, k - 1) * sd
    same = abs(away) <= _ROUNDING * size
    flat = 0.5 if same else P_FLOOR if away > 0 else 1.0
    p = student_t_upper(away / sd, k - 1) if sd > _ROUNDING * size else flat
    return Level(
        window=drift.windows[now].label,
        value=value,
        count=float(counts[now]) if math.isfinite(counts[now]) else None,
        usual=usual,
        limit=usual - reach if worse == "lower" else usual + reach,
        p=p,
        windows=k,
        degraded=away > reach and not same,
    )


def _excess(quiet: Floats, counts: Floats, count: float, usual: float) -> float:
    """Variance of a rate of ``count`` observations beyond that of the quiet windows' own counts. Where most of these
    are exactly 0 (or exactly 1), their variance tells nothing of a rare event, and the binomial one stands for it,
    half an event added, that of one event at least."""
    known = np.isfinite(counts) & (counts > 0)
    if not (math.isfinite(count) and count > 0 and known.all()):
        return 0.0
    if float(((quiet == 0) | (quiet == 1)).mean()) >= 0.5:
        total = float(counts.sum())
        rate = (float(quiet @ counts) + 0.5) / (total + 1)
        return max(rate * (1 - rate) / count, 1 / count**2)
    shared = float((1 / counts).mean())
    each = min(usual * (1 - usual), float(quiet.var(ddof=1)) / shared)
    return each * max(0.0, 1 / count - shared)
