"""Is the window further away than the reference's own movement from window to window?

The A/A null of a metric is its value for each of the K reference windows against all the others, at one n0. A
U-statistic (energy, MMD^2) is compared on the log scale: with c its null standard deviation at n0
(``metrics.pairs.null_sd``), u = log(max(s, 0) + c) against a t(K - 1) prediction, upper tail, sd of u floored at .5:
without the floor ties at log c make it too small. A signed metric is compared as it is, in both tails, with its sd
floored at the window's own standard error: K values may by chance lie closer together than sampling lets them.

Several metrics gate (``GATES``), since none sees everything: energy hardly sees a small new cluster, changed spread, or
a shift along directions of little variance. Their p-values are adjusted by Holm (1979), so that the false-alarm rate of
a window is that of the family. What warns and alerts is in ``judge`` and ``decide``; rates measured for this rule stand
in docs/verdict.md and docs/calibration.md.

The current window's U-statistics use all of its rows even where it has more than n0: their expectation does not depend
on n and their noise only falls, so the prediction stays on the safe side and no data are thrown away. The classifier's
AUC grows with the rows it is trained on; the panel cuts its rows to n0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, median

from gpudrift.fdr import holm
from gpudrift.records import Calibration, GateMetric, HistoryPoint, Metric, Verdict
from gpudrift.student_t import P_FLOOR, student_t_quantile, student_t_upper

HEADLINE = "energy"
SIGNED = ("log_variance_ratio", "residual_energy", "classifier_auc")
GATES = (HEADLINE, "mmd2_b1", "mmd2_b2", *SIGNED)
MIN_NULL = 3  # values below which there is no t prediction

SD_FLOOR = 0.5  # of u = log(score + c); both the A/A prediction and hygiene use it
SCORE_FLOOR = 3.0  # a warning needs a score above this many null sd
AUTOCORRELATION_LIMIT = 0.3
# c is 0 when the reference's rows are too few or too alike for a positive variance; any score above 0 is then far out
_TINY = 1e-300
_NORMAL = NormalDist()


@dataclass(frozen=True)
class MetricNull:
    """A metric's value for each reference window against the others, by label. null_sd: c of a U-statistic; None for a
    signed metric."""

    scores: Mapping[str, float]
    null_sd: float | None
    independent: int | None = None  # as in ``AANull``


@dataclass(frozen=True)
class AANull:
    """The A/A null at n0 rows: energy by window label and its c; the other metrics that can gate; and ``between``,
    (K, K), the energy between any two windows, in the order of the labels. independent: how many of the scores count
    as independent; None: all."""

    n0: int
    scores: Mapping[str, float]
    null_sd: float
    others: Mapping[str, MetricNull] = field(default_factory=dict)
    between: tuple[tuple[float, ...], ...] = ()
    independent: int | None = None

    def of(self, metric: str) -> MetricNull | None:
        if metric == HEADLINE:
            return MetricNull(self.scores, self.null_sd, self.independent)
        return self.others.get(metric)

    def without(self, label: str) -> AANull:
        """The null of the other windows. ``between`` stays: it is of pairs."""

        def rest(scores: Mapping[str, float]) -> dict[str, float]:
            return {other: score for other, score in scores.items() if other != label}

        others = {name: replace(null, scores=rest(null.scores)) for name, null in self.others.items()}
        return replace(self, scores=rest(self.scores), others=others)


@dataclass(frozen=True)
class Hygiene:
    """Reference windows kept, and those dropped with the score each had when it left."""

    null: AANull
    kept: tuple[int, ...]
    dropped: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """When a window is called drift; defaults and their sources are in ``config.CalibrateConfig``."""

    warn_p: float = 0.01
    close_p: float = 0.05
    clear_p: float = 0.05


@dataclass(frozen=True)
class Judgement:
    """What one window says by itself. alarm: warn, and no closer than the limit. calm: all under the clear limit."""

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
    predicted = _LogPrediction.of(values, c, null.independent)
    delta = predicted.limit(limits.warn_p)
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
        p_aa=predicted.tail(score),
        p_close=_within(score, delta, se),
        delta=delta,
        clear_limit=predicted.limit(limits.clear_p),
        ratio=ratio,
        severity="none" if ratio < 2 else "low" if ratio < 4 else "medium" if ratio < 8 else "high",
        detectable_p=max(_NORMAL.cdf(-score / max(null_sd_now, _TINY)), P_FLOOR),
        smallest_detectable=(_NORMAL.inv_cdf(0.95) + _NORMAL.inv_cdf(0.8)) * null_sd_now,
        smallest_alerting=delta + (_NORMAL.inv_cdf(0.95) + _NORMAL.inv_cdf(0.8)) * se,
        autocorrelation=lag_one([_log_score(value, c) for value in values]),
        in_reference=in_reference,
    )


def gate(metrics: Mapping[str, Metric], null: AANull, names: Iterable[str], limits: Limits) -> tuple[GateMetric, ...]:
    """Each gating metric of a window against its own usual movement, Holm-adjusted over those that could be judged.

    Args:
        metrics: the panel. null: A/A values, the window's own left out. names: of the gating metrics; one that the
            panel or the null lacks, or that is not finite, or has no noise level, is left out of the family.
    """
    found = []
    for name in names:
        metric, own = metrics.get(name), null.of(name)
        if metric is None or own is None or len(own.scores) < MIN_NULL or not math.isfinite(metric.value):
            continue
        if not all(map(math.isfinite, own.scores.values())):
            continue
        judged = (_gate_signed if own.null_sd is None else _gate_score)(metric, own, limits)
        if judged is not None:
            found.append(judged)
    adjusted = holm([g.p_aa for g in found])
    return tuple(replace(g, p_holm=p) for g, p in zip(found, adjusted, strict=True))


def _gate_score(metric: Metric, null: MetricNull, limits: Limits) -> GateMetric | None:
    """A U-statistic: upper tail on the log scale."""
    values, c = list(null.scores.values()), null.null_sd
    if c is None or not c > 0:
        return None
    predicted = _LogPrediction.of(values, c, null.independent)
    high = predicted.limit(limits.warn_p)
    p_close = None if metric.se is None else _within(metric.value, high, metric.se)
    p_aa = predicted.tail(metric.value)
    return GateMetric(metric.name, metric.value, metric.se, c, median(values), p_aa, p_aa, None, high, p_close)


def _gate_signed(metric: Metric, null: MetricNull, limits: Limits) -> GateMetric | None:
    """A signed metric: both tails, as it is."""
    values, se = list(null.scores.values()), metric.se or 0.0
    count = len(values)
    mean = sum(values) / count
    sd = max(math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1)), se)
    if not sd > 0:
        return None
    width = sd * math.sqrt(1 + 1 / count)
    p_aa = min(1.0, 2 * student_t_upper(abs(metric.value - mean) / width, count - 1))
    reach = width * student_t_quantile(1 - limits.warn_p / 2, count - 1)
    low, high = mean - reach, mean + reach
    p_close = None
    if metric.se is not None:
        beyond = metric.value - high if metric.value > mean else low - metric.value
        p_close = _within(beyond, 0.0, metric.se)
    return GateMetric(metric.name, metric.value, metric.se, None, median(values), p_aa, p_aa, low, high, p_close)


def judge(gates: Sequence[GateMetric], limits: Limits) -> Judgement | None:
    """What a window says by itself; None when no gating metric could be judged.

    warn: a metric beyond its usual movement at the family's level, and, for a U-statistic, above ``SCORE_FLOOR`` null
    sd. alarm: such a one is also no closer than its limit, by its standard error.
    """
    numbers = [n for g in gates for n in (g.value, g.p_aa, g.p_holm, g.p_close, g.null_sd) if n is not None]
    if not gates or not all(map(math.isfinite, numbers)):
        return None  # a comparison with NaN is False, which would read as stable
    return Judgement(
        warn=any(beyond(g, limits) for g in gates),
        alarm=any(surely_beyond(g, limits) for g in gates),
        calm=all(g.p_holm >= limits.clear_p for g in gates),
    )


def beyond(metric: GateMetric, limits: Limits) -> bool:
    """Whether a metric is beyond its usual movement, at the family's level."""
    floor = metric.null_sd is None or metric.value > SCORE_FLOOR * metric.null_sd
    return metric.p_holm < limits.warn_p and floor


def surely_beyond(metric: GateMetric, limits: Limits) -> bool:
    """Whether it is, and by its standard error no closer than its limit either."""
    return beyond(metric, limits) and metric.p_close is not None and metric.p_close < limits.close_p


def p_panel(gates: Sequence[GateMetric]) -> float | None:
    """The panel's p-value: the smallest Holm-adjusted one."""
    return min((g.p_holm for g in gates), default=None)


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
        before = judge(previous.gates, limits)
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


@dataclass(frozen=True)
class _LogPrediction:
    """The t(K - 1) prediction of u = log(max(s, 0) + c) from K values of s."""

    mean: float
    width: float
    dof: int
    c: float

    @classmethod
    def of(cls, values: Sequence[float], c: float, independent: int | None = None) -> _LogPrediction:
        u = [_log_score(s, c) for s in values]
        count = len(u)
        mean = sum(u) / count
        sd = max(math.sqrt(sum((v - mean) ** 2 for v in u) / (count - 1)), SD_FLOOR)
        count = count if independent is None else independent
        return cls(mean, sd * math.sqrt(1 + 1 / count), count - 1, c)

    def tail(self, score: float) -> float:
        """Probability of a score this large or larger."""
        return student_t_upper((_log_score(score, self.c) - self.mean) / self.width, self.dof)

    def limit(self, p: float) -> float:
        """The score with upper tail ``p``."""
        return _exp(self.mean + self.width * student_t_quantile(1 - p, self.dof)) - self.c


def _within(value: float, limit: float, se: float) -> float:
    """One-sided p-value of "the true value is at most ``limit``"."""
    return max(_NORMAL.cdf((limit - value) / se), P_FLOOR) if se > 0 else float(value <= limit)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond it Python raises


def _log_score(score: float, c: float) -> float:
    return math.log(max(score, 0.0) + max(c, _TINY))
