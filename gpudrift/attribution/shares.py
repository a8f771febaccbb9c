"""Has the share of a cluster or segment changed between two windows? Counts, two-proportion tests, the usual movement.

Independent rows: the exact conditional test of two binomial shares (Fisher), two-sided by doubling, with mid-p
(Lancaster 1961): its level is close to nominal where Fisher's own is far below, and it holds for the handful of rows
that a new cluster has, where z does not.

Rows of one user are no independent rows. Their design effect (Kish 1965) is the variance of the difference of the
shares from sums by user, over the variance from rows; counts and rows are divided by it before the test (Rao and Scott
1992), at least by 1. A new cluster made of one user's thirty rows is then tested as a single row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpudrift.student_t import student_t_upper

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Rows by group: reference, current (g,), of n and m in all. windows: (K, g) of the reference's windows.
    design: (g,) design effect >= 1; NaN where a side has fewer than two users."""

    reference: Ints
    current: Ints
    n: int
    m: int
    windows: Ints
    design: Floats

    @property
    def reference_shares(self) -> Floats:
        return self.reference / max(self.n, 1)

    @property
    def shares(self) -> Floats:
        return self.current / max(self.m, 1)


def count(
    x: Ints, y: Ints, groups: int, windows: Ints, window_count: int, users: tuple[Ints, Ints] | None = None
) -> Counts:
    """Count rows.

    Args:
        x, y: (n,), (m,) group of each reference and current row, 0 to ``groups`` - 1.
        windows: (n,) window of each reference row, 0 to ``window_count`` - 1.
        users: (n,), (m,) codes of the rows' users or documents, the same code on both sides for the same one.
    """
    by_window = np.bincount(windows * groups + x, minlength=window_count * groups).reshape(window_count, groups)
    design = np.ones(groups) if users is None else _design(x, y, groups, *users)
    return Counts(np.bincount(x, minlength=groups), np.bincount(y, minlength=groups), len(x), len(y), by_window, design)


def p_values(counts: Counts) -> list[float]:
    """p of an unchanged share, two-sided, by group. NaN without rows of the group or of a side."""
    found = []
    for k_x, k_y, design in zip(counts.reference, counts.current, counts.design, strict=True):
        if not counts.n or not counts.m or k_x + k_y == 0 or math.isnan(design):
            found.append(math.nan)
            continue
        n, m, left, right = (round(float(v) / float(design)) for v in (counts.n, counts.m, k_x, k_y))
        found.append(_mid_p(left, right, max(n, 1), max(m, 1)))
    return found


def usual(counts: Counts, p: list[float]) -> tuple[list[float], list[float]]:
    """The usual movement of the shares: sd and p, by group.

    sd: of a current share where the group moves as it does between the reference's windows: their variance less what
    the sampling of their rows adds (not below 0), plus the sampling of the current rows. p: two-sided, of a t(K - 1)
    prediction from K windows; never below ``p`` of no change at all, which is a movement no larger. NaN for K < 2.
    """
    sizes = counts.windows.sum(axis=1)
    shares = counts.windows[sizes > 0] / sizes[sizes > 0, None]
    k = len(shares)
    if k < 2 or not counts.m:
        return [math.nan] * len(p), [math.nan] * len(p)
    pooled = (counts.reference + 0.5) / (counts.n + 1)  # never 0: one row more is always possible
    binomial = pooled * (1 - pooled) * np.where(np.isnan(counts.design), 1.0, counts.design)
    between = np.maximum(shares.var(axis=0, ddof=1) - binomial * (1 / sizes[sizes > 0]).mean(), 0.0)
    sd = np.sqrt(between + binomial / counts.m)
    t = np.abs(counts.shares - shares.mean(axis=0)) / (sd * math.sqrt(1 + 1 / k))
    found = [min(1.0, 2 * student_t_upper(float(t_g), k - 1)) for t_g in t]
    return sd.tolist(), [t_g if math.isnan(p_g) else max(t_g, p_g) for t_g, p_g in zip(found, p, strict=True)]


def _mid_p(k_x: int, k_y: int, n: int, m: int) -> float:
    """Two-sided mid-p of k_y of m against k_x of n: the hypergeometric distribution of k_y given k_x + k_y."""
    total = k_x + k_y
    low, high = max(0, total - n), min(total, m)
    if low >= high:
        return 1.0
    k = np.arange(low, high, dtype=np.float64)
    # ratios of neighbouring probabilities: no factorial, so nothing cancels however many rows there are
    steps = np.log(total - k) + np.log(m - k) - np.log(k + 1) - np.log(n - total + k + 1)
    logs = np.r_[0.0, steps.cumsum()]
    weights = np.exp(logs - logs.max())
    place = k_y - low
    middle = weights[place] / 2
    tail = min(weights[:place].sum(), weights[place + 1 :].sum()) + middle
    return float(min(1.0, 2 * tail / weights.sum()))


def _design(x: Ints, y: Ints, groups: int, users_x: Ints, users_y: Ints) -> Floats:
    """Sum over users u of psi_u^2, psi_u = (in_y - share_y held_y) / m - (in_x - share_x held_x) / n with the rows that
    the user has in the group and in all, over share (1 - share) / rows of both sides."""
    codes, users = np.unique(np.concatenate([users_x, users_y]), return_inverse=True)
    n, m = len(x), len(y)
    held_x, held_y = (np.bincount(part, minlength=len(codes)) for part in (users[:n], users[n:]))
    fewest = min(int((held > 0).sum()) for held in (held_x, held_y))
    if fewest < 2:
        return np.full(groups, math.nan)
    of_x, of_y = held_x / n, held_y / m
    share_x, share_y = np.bincount(x, minlength=groups) / n, np.bincount(y, minlength=groups) / m
    # only the pairs of user and group that occur: there may be many of either
    keys, places = np.unique(users * groups + np.concatenate([x, y]), return_inverse=True)
    user, group = keys // groups, keys % groups
    inside = np.bincount(places, weights=np.r_[np.full(n, -1 / n), np.full(m, 1 / m)])
    expected = of_y[user] * share_y[group] - of_x[user] * share_x[group]
    crossed = np.bincount(group, weights=inside**2 - 2 * inside * expected, minlength=groups)
    squared = share_y**2 * (of_y @ of_y) - 2 * share_x * share_y * (of_x @ of_y) + share_x**2 * (of_x @ of_x)
    variance = (crossed + squared) * fewest / (fewest - 1)
    rowwise = (share_y * (1 - share_y) / m + share_x * (1 - share_x) / n) * min(n, m) / max(min(n, m) - 1, 1)
    # all rows of a side are in the group, none of the other: as if each user were of one mind
    most = max(n * float(of_x @ of_x), m * float(of_y @ of_y))
    ratio = np.where(rowwise > 0, variance / np.where(rowwise > 0, rowwise, 1.0), most)
    return np.asarray(np.maximum(ratio, 1.0), dtype=np.float64)
