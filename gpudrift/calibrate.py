"""Is the score larger than the reference's own movement from window to window?

The A/A null is the K leave-one-window-out energy scores of the reference's windows at one n0. With c the null standard
deviation at n0 (``metrics.pairs.null_sd``), u = log(max(s, 0) + c) is compared by a t(K - 1) prediction, sd of u
floored at .5: without the floor ties at log c make it too small. What gates is in ``judge``; false alarm rates measured
for this rule stand in docs/verdict.md.

The current window's score uses all of its rows even where it has more than n0: a U-statistic's expectation does not
depend on n and its noise only falls, so the prediction stays on the safe side and no data are thrown away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from gpudrift.records import Calibration, HistoryPoint, Verdict

SD_FLOOR = 0.5  # of u = log(score + c); both the A/A prediction and hygiene use it
SCORE_FLOOR = 3.0  # a warning needs a score above this many null sd
AUTOCORRELATION_LIMIT = 0.3
P_FLOOR = 1e-12  # a prediction from a dozen windows says nothing further out, and 1 - P has lost its digits there
# c is 0 when the reference's rows are too few or too alike for a positive variance; any score above 0 is then far out
_TINY = 1e-300
_NORMAL = NormalDist()


@dataclass(frozen=True)
class AANull:
    """The A/A null: scores by window label at n0 rows, and c at n0."""

    n0: int
    scores: Mapping[str, float]
    null_sd: float


@dataclass(frozen=True)
class Hygiene:
    """Reference windows kept, and those dropped with the score each had when it left."""

    null: AANull
    kept: tuple[int, ...]
    dropped: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """When a score is called drift; defaults and their sources are in ``config.CalibrateConfig``."""

    warn_p: float = 0.01
    close_p: float = 0.05
    clear_p: float = 0.05


@dataclass(frozen=True)
class Judgement:
    """What one window says by itself. alarm: warn, and no closer than the tolerance. calm: under the clear limit."""

    warn: bool
    alarm: bool
    calm: bool


def clean(score_windows: Callable[[Sequence[int]], AANull], count: int, hygiene_sd: float) -> Hygiene:
    """Drop reference windows that stand out of their peers until none does.

    A window more than ``hygiene_sd`` robust sd (1.4826 MAD of u, floored) above the median leaves the null and the
    reference cloud; all that are left are then scored again. At least three are always kept.

    Args:
        score_windows: indices of the windows in use -> their A/A null, scores in that order.
        count: K, the number of windows.
    """
    kept = list(range(count))
    dropped: list[tuple[int, float]] = []
    while True:
        null = score_windows(kept)
        values = list(null.scores.values())
        if not null.null_sd > 0:  # u means nothing then: the reference cannot be judged, let alone its windows
            return Hygiene(null, tuple(kept), tuple(sorted(dropped)))
        u = [_log_score(s, null.null_sd) for s in values]
        middle = median(u)
        spread = max(1.4826 * median(abs(v - middle) for v in u), SD_FLOOR)
        out = [i for i, v in enumerate(u) if v > middle + hygiene_sd * spread]
        if not out or len(kept) - len(out) < 3:
            return Hygiene(null, tuple(kept), tuple(sorted(dropped)))
        dropped += [(kept[i], values[i]) for i in out]
        kept = [k for i, k in enumerate(kept) if i not in set(out)]


def calibrate(
    score: float,
    se: float,
    null: AANull,
    *,
    null_sd_now: float,
    limits: Limits,
    recomputed: bool = False,
    in_reference: bool = False,
) -> Calibration:
    """The current score against the A/A null.

    Args:
        score, se: energy U-statistic and root of var_lin of the current window.
        null: A/A scores, K >= 3, the current window's own left out.
        null_sd_now: c at the current window's own number of rows, for what is detectable at all.
        recomputed: the null was made for another n0 than the reference's own.
    """
    c = null.null_sd
    values = list(null.scores.values())
    u = [_log_score(s, c) for s in values]
    count = len(u)
    mean = sum(u) / count
    sd = max(math.sqrt(sum((v - mean) ** 2 for v in u) / (count - 1)), SD_FLOOR)
    width = sd * math.sqrt(1 + 1 / count)
    p_aa = student_t_upper((_log_score(score, c) - mean) / width, count - 1)
    delta = _exp(mean + width * student_t_quantile(1 - limits.warn_p, count - 1)) - c
    clear_limit = _exp(mean + width * student_t_quantile(1 - limits.clear_p, count - 1)) - c
    aa_median = median(values)
    ratio = score / max(aa_median, c, _TINY)
    return Calibration(
        score=score,
        se=se,
        ci=(score - 1.959963984540054 * se, score + 1.959963984540054 * se),
        null_sd=c,
        aa_n=null.n0,
        aa_scores=dict(null.scores),
        aa_median=aa_median,
        aa_recomputed=recomputed,
        p_aa=p_aa,
        p_close=max(_NORMAL.cdf((delta - score) / se), P_FLOOR) if se > 0 else float(score <= delta),
        delta=delta,
        clear_limit=clear_limit,
        ratio=ratio,
        severity="none" if ratio < 2 else "low" if ratio < 4 else "medium" if ratio < 8 else "high",
        detectable_p=max(_NORMAL.cdf(-score / max(null_sd_now, _TINY)), P_FLOOR),
        smallest_detectable=(_NORMAL.inv_cdf(0.95) + _NORMAL.inv_cdf(0.8)) * null_sd_now,
        smallest_alerting=delta + (_NORMAL.inv_cdf(0.95) + _NORMAL.inv_cdf(0.8)) * se,
        autocorrelation=lag_one(u),
        in_reference=in_reference,
    )


def judge(
    score: float | None, p_aa: float | None, p_close: float | None, null_sd: float | None, limits: Limits
) -> Judgement | None:
    """What a window says by itself; None when it has no calibrated score."""
    if score is None or p_aa is None or p_close is None or null_sd is None:
        return None
    if not all(map(math.isfinite, (score, p_aa, p_close, null_sd))):
        return None  # a comparison with NaN is False, which would read as stable
    warn = p_aa < limits.warn_p and score > SCORE_FLOOR * null_sd
    return Judgement(warn=warn, alarm=warn and p_close < limits.close_p, calm=p_aa >= limits.clear_p)


def decide(now: Judgement | None, previous: HistoryPoint | None, limits: Limits) -> tuple[Verdict, str]:
    """The verdict and its reason in words. Alert: alarm in two windows running. An alert holds until two windows in a
    row are under the clear limit.

    Args:
        now: this window's judgement, None when it has too little data.
        previous: the window before in the same job and reference, None when there is none.
    """
    if now is None:
        return "insufficient", "there is too little data for a verdict"
    before = None
    if previous is not None:
        before = judge(previous.score, previous.p_aa, previous.p_close, previous.null_sd, limits)
    label = previous.window.label if previous is not None else ""
    if now.alarm and before is not None and before.alarm:
        return "alert", f"this window and the one before ({label}) are both further away than the reference ever moves"
    if previous is not None and previous.verdict == "alert" and not (now.calm and before is not None and before.calm):
        return "alert", "the alert holds: it clears after two windows in a row within the usual movement"
    if now.alarm:
        reason = "there is no window before it"
        if previous is not None:
            reason = f"the window before ({label}) " + ("did not" if before is not None else "has no score")
        return "warning", f"this window is further away than the reference ever moves; {reason}, and an alert needs two"
    if now.warn:
        return "warning", "this window moved more than the reference usually does, though perhaps not by much"
    return "stable", "this window moved no more than the reference usually does"


def lag_one(values: Sequence[float]) -> float | None:
    """Lag-1 autocorrelation; None below 4 values or without variation."""
    count = len(values)
    if count < 4:
        return None
    mean = sum(values) / count
    centred = [v - mean for v in values]
    power = sum(v * v for v in centred)
    if power <= 1e-24:
        return None
    return sum(a * b for a, b in itertools.pairwise(centred)) / power


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


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond it Python raises


def _log_score(score: float, c: float) -> float:
    return math.log(max(score, 0.0) + max(c, _TINY))
