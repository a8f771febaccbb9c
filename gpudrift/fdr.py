"""Many p-values at once: Benjamini-Hochberg (false discovery rate) and Holm (family-wise error). NaN stands for "not
tested": it stays NaN and does not count."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpudrift.errors import ArgumentError


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """q-values of Benjamini and Hochberg (1995): the smallest false discovery rate at which each is still rejected,
    q_(i) = min over j >= i of p_(j) k / j, with k p-values that are not NaN. Valid for independent and for positively
    dependent p-values. ArgumentError: a p-value outside 0 to 1."""
    order = _tested(p)
    q, least = [math.nan] * len(p), 1.0
    for place in range(len(order), 0, -1):
        i = order[place - 1]
        least = min(least, float(p[i]) * (len(order) / place))  # times a ratio >= 1: never below p by rounding
        q[i] = least
    return q


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979): max over j <= i of min(1, p_(j) (k - j + 1)), with k p-values that are not NaN.
    Valid whatever their dependence. ArgumentError: a p-value outside 0 to 1."""
    order = _tested(p)
    adjusted, most = [math.nan] * len(p), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, float(p[i]) * (len(order) - place)))
        adjusted[i] = most
    return adjusted


def _tested(p: Sequence[float]) -> list[int]:
    """Places of the p-values that are not NaN, the smallest first."""
    places = [i for i, value in enumerate(p) if not math.isnan(value)]
    for i in places:
        if not 0 <= p[i] <= 1:
            raise ArgumentError("not a p-value", field=f"p[{i}]", value=p[i], allowed="0 to 1, or NaN")
    return sorted(places, key=lambda i: p[i])
