"""Student's t with a whole number of degrees of freedom: upper tail and quantile, without a statistics library."""

from __future__ import annotations

import math

P_FLOOR = 1e-12  # a prediction from a dozen windows says nothing further out, and 1 - P has lost its digits there


def student_t_upper(t: float, dof: int) -> float:
    """P(T > t) for Student's t with a whole number of degrees of freedom, floored at ``P_FLOOR``.

    Closed form: Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even), finite trigonometric sums.
    """
    if dof < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {dof}")
    if t < 0:
        return 1 - student_t_upper(-t, dof)
    theta = math.atan(t / math.sqrt(dof))
    cosine, sine = math.cos(theta), math.sin(theta)
    if dof % 2:
        term = total = cosine if dof > 1 else 0.0
        for j in range(3, dof - 1, 2):
            term *= cosine * cosine * (j - 1) / j
            total += term
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term = total = 1.0
        for j in range(2, dof - 1, 2):
            term *= cosine * cosine * (j - 1) / j
            total += term
        inside = sine * total
    return max((1 - inside) / 2, P_FLOOR)


def student_t_quantile(p: float, dof: int) -> float:
    """t with P(T <= t) = p, by bisection on ``student_t_upper``."""
    if not 0 < p < 1:
        raise ValueError(f"p must be inside (0, 1), got {p}")
    if p < 0.5:
        return -student_t_quantile(1 - p, dof)
    upper = max(1 - p, P_FLOOR)  # student_t_upper never falls below it: no t would be far enough out
    low, high = 0.0, 1.0
    while student_t_upper(high, dof) > upper:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if student_t_upper(middle, dof) > upper:
            low = middle
        else:
            high = middle
    return (low + high) / 2
