"""Verdicts replayed from what windows once measured, at any thresholds, and what a series of verdicts was worth.

Scoring windows costs pairs, thresholds cost nothing: a window's metrics and the null they are held against are all that
a verdict needs (``calibrate``). An alarm is a run of alert windows; windows without a verdict do not make one and, a
few at most, do not end it. A false alarm is an alarm that begins in a quiet window. Rates carry Wilson's score interval
(Wilson 1927, JASA 22).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time
from statistics import NormalDist, mean
from typing import Any, Literal

from gpudrift.calibrate import AANull, Limits, MetricNull, calibrate, decide, gate, judge
from gpudrift.records import Calibration, GateMetric, HistoryPoint, Metric, Verdict, Window

_Z = NormalDist().inv_cdf(0.975)
YEAR = 365.25  # days


@dataclass(frozen=True)
class Kept:
    """A window as measured against one reference. metrics: empty where it has too little data; null: what it is held
    against, None where the reference has no noise level. counted: rows before bad ones were dropped; headline: of the
    encoder check."""

    window: Window
    rows: int
    counted: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    null: AANull | None = None
    in_reference: bool = False
    headline: str = ""


def to_plain(kept: Kept) -> dict[str, Any]:
    """Plain JSON values. The energies between any two reference windows are left out: no verdict needs them."""
    plain = asdict(kept)
    plain["window"] |= {"start": kept.window.start.isoformat(), "end": kept.window.end.isoformat()}
    plain["metrics"] = {name: [metric.value, metric.se] for name, metric in kept.metrics.items()}
    if kept.null is not None:
        del plain["null"]["between"]
    return plain


def from_plain(plain: Mapping[str, Any]) -> Kept:
    """What ``to_plain`` gave. KeyError, TypeError or ValueError where it is something else."""
    window = dict(plain["window"])
    for edge in ("start", "end"):
        window[edge] = datetime.fromisoformat(window[edge])
    null = plain["null"]
    if null is not None:
        others = {name: MetricNull(own["scores"], own["null_sd"]) for name, own in null["others"].items()}
        null = AANull(null["n0"], null["scores"], null["null_sd"], others)
    metrics = {name: Metric(name, value, se) for name, (value, se) in plain["metrics"].items()}
    return Kept(**{**plain, "window": Window(**window), "metrics": metrics, "null": null})


def replay(
    windows: Sequence[Kept], limits: Limits, gates: Sequence[str], *, passed_over: int, unstable: bool
) -> list[HistoryPoint]:
    """The verdicts of consecutive windows, each made of its own numbers and the verdicts before it.

    Args:
        windows: in time order, none left out; the first has nothing before it.
        gates: names of the gating metrics.
        passed_over: windows without a verdict between one and that which counts as before it.
        unstable: the reference cannot carry a verdict.
    """
    points: list[HistoryPoint] = []
    for kept in windows:
        previous = _before(points, passed_over)
        points.append(_point(kept, limits, gates, previous, unstable))
    return points


def _before(points: Sequence[HistoryPoint], passed_over: int) -> HistoryPoint | None:
    """What counts as the window before the next one, as in ``verdict.before_in_history``."""
    near = points[-1 - passed_over :]
    return next((point for point in reversed(near) if point.verdict != "insufficient"), None)


def _point(
    kept: Kept, limits: Limits, gates: Sequence[str], previous: HistoryPoint | None, unstable: bool
) -> HistoryPoint:
    energy, null = kept.metrics.get("energy"), kept.null
    verdict: Verdict = "insufficient"
    found: Calibration | None = None
    judged: tuple[GateMetric, ...] = ()
    if energy is not None and null is not None:
        # what is detectable at all, the only use of null_sd_now, is no part of a verdict
        found = calibrate(energy.value, energy.se or 0.0, null, null_sd_now=null.null_sd, limits=limits)
        judged = gate(kept.metrics, null, gates, limits)
        if not unstable:
            verdict, _ = decide(judge(judged, limits), previous, limits)
    return HistoryPoint(
        window=kept.window,
        verdict=verdict,
        score=None if energy is None else energy.value,
        se=None if energy is None else energy.se,
        p_aa=None if found is None else found.p_aa,
        p_close=None if found is None else found.p_close,
        null_sd=None if found is None else found.null_sd,
        delta=None if found is None else found.delta,
        clear_limit=None if found is None else found.clear_limit,
        ratio=None if found is None else found.ratio,
        rows=kept.rows,
        in_reference=kept.in_reference,
        gates=judged,
    )


@dataclass(frozen=True)
class Share:
    """``count`` of ``of``, with Wilson's 95% interval of the probability."""

    count: int
    of: int
    low: float
    high: float


def share(count: int, of: int) -> Share | None:
    """None where ``of`` is 0."""
    if of == 0:
        return None
    p, z2 = count / of, _Z * _Z / of
    middle, reach = p + z2 / 2, _Z * math.sqrt(p * (1 - p) / of + z2 / of / 4)
    low, high = ((middle + sign * reach) / (1 + z2) for sign in (-1, 1))
    # exact at the ends, where rounding would leave 1e-17
    return Share(count, of, 0.0 if count == 0 else low, 1.0 if count == of else high)


@dataclass(frozen=True)
class Alarm:
    """A run of alert windows: labels of the first and the last, and how many windows have the verdict alert."""

    first: str
    last: str
    windows: int


@dataclass(frozen=True)
class Onset:
    """Drift known to have begun on a day."""

    day: date
    name: str


@dataclass(frozen=True)
class Detection:
    """What became of an onset until the next one. state: ``held`` where an alarm of an earlier onset still holds, and
    ``already`` where one does that no earlier onset explains; neither leaves a delay to tell. warning, alert: windows
    from the onset's own (0) to the first warning or alert, and to the first alert; the days run from the onset to the
    end of that window, when a run could first say so."""

    onset: Onset
    window: str
    state: Literal["found", "missed", "held", "already"]
    warning: int | None = None
    warning_days: float | None = None
    alert: int | None = None
    alert_days: float | None = None


@dataclass(frozen=True)
class Assessment:
    """A series of verdicts against what is known. false_alarms: alarms that begin in quiet windows, of the quiet
    windows with a verdict; per_year: they and their interval a year of quiet windows; quiet_warned: quiet windows with
    a warning or an alert. None without quiet windows."""

    windows: int
    verdicts: Mapping[str, int]
    alarms: tuple[Alarm, ...]
    false_alarms: Share | None
    per_year: tuple[float, float, float] | None
    quiet_warned: Share | None
    onsets: tuple[Detection, ...]


def assess(
    points: Sequence[HistoryPoint], quiet: Collection[str], onsets: Sequence[Onset], *, passed_over: int
) -> Assessment:
    """Alarms, false alarms and delays of consecutive windows.

    Args:
        quiet: labels of the windows known to be quiet. onsets: in time order, inside the windows.
        passed_over: windows without a verdict that do not end an alarm.
    """
    alarms = find_alarms(points, passed_over)
    judged = [p for p in points if p.window.label in quiet and p.verdict != "insufficient"]
    false = share(sum(alarm.first in quiet for alarm in alarms), len(judged))
    years = sum((p.window.end - p.window.start).total_seconds() for p in judged) / (86400 * YEAR)
    tally = Counter(p.verdict for p in points)
    return Assessment(
        windows=len(points),
        verdicts={verdict: tally[verdict] for verdict in ("stable", "warning", "alert", "insufficient")},
        alarms=alarms,
        false_alarms=false,
        per_year=None
        if false is None
        else (false.count / years, false.low * false.of / years, false.high * false.of / years),
        quiet_warned=share(sum(p.verdict in ("warning", "alert") for p in judged), len(judged)),
        onsets=tuple(_detect(points, alarms, onsets, k, passed_over) for k in range(len(onsets))),
    )


def find_alarms(points: Sequence[HistoryPoint], passed_over: int) -> tuple[Alarm, ...]:
    """The runs of alert windows."""
    runs: list[list[str]] = []
    for k, point in enumerate(points):
        if point.verdict == "alert":
            before = _before(points[:k], passed_over)
            if before is None or before.verdict != "alert":
                runs.append([])
            runs[-1].append(point.window.label)
    return tuple(Alarm(run[0], run[-1], len(run)) for run in runs)


def _detect(
    points: Sequence[HistoryPoint], alarms: Sequence[Alarm], onsets: Sequence[Onset], k: int, passed_over: int
) -> Detection:
    onset, begin = onsets[k], _midnight(onsets[k].day)
    labels = [p.window.label for p in points]
    own = next(i for i, p in enumerate(points) if p.window.start <= begin < p.window.end)
    before = _before(points[:own], passed_over)
    if before is not None and before.verdict == "alert":
        since = max(i for i in (labels.index(alarm.first) for alarm in alarms) if i < own)
        explained = k > 0 and points[since].window.end > _midnight(onsets[0].day)
        return Detection(onset, labels[own], "held" if explained else "already")
    end = _midnight(onsets[k + 1].day) if k + 1 < len(onsets) else None
    after = [(i, p) for i, p in enumerate(points[own:]) if end is None or p.window.end <= end or i == 0]

    def first(*verdicts: Verdict) -> tuple[int, float] | tuple[None, None]:
        for i, point in after:
            if point.verdict in verdicts:
                return i, (point.window.end - begin).total_seconds() / 86400
        return None, None

    alert = first("alert")
    return Detection(onset, labels[own], "missed" if alert[0] is None else "found", *first("warning", "alert"), *alert)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@dataclass(frozen=True)
class Setting:
    """One thing tried. windows: of the reference; warn_p: the threshold; unusable: why no verdict can be had."""

    windows: int
    warn_p: float
    assessment: Assessment
    unusable: str | None = None


def recommend(settings: Sequence[Setting]) -> tuple[Setting | None, str]:
    """The setting without a false alarm on the quiet windows that misses fewest onsets, alerts soonest after them, and
    warns least on quiet windows; of equals the largest reference at the smallest threshold. And the sentence that says
    so, or why there is none."""
    usable = [s for s in settings if s.unusable is None]
    if not usable:
        return None, "no setting has a reference that can carry a verdict"
    if not usable[0].assessment.onsets:
        return None, "no onset is given (backtest.onsets), so no setting can be recommended"
    if all(s.assessment.false_alarms is None for s in usable):
        return None, "no quiet window has a verdict, so no setting can be recommended"
    finding = [s for s in usable if _found(s)]
    if not finding:
        return None, "no setting alerted after an onset: none can be recommended"
    clean = [s for s in finding if s.assessment.false_alarms is not None and s.assessment.false_alarms.count == 0]
    if not clean:
        few = min(finding, key=lambda s: (_false(s), *_rank(s)))
        return None, (
            "no setting that alerted after an onset was without a false alarm in quiet windows; fewest: "
            f"{_false(few)}, with a reference of {few.windows} windows at warn_p {few.warn_p:g}"
        )
    best = min(clean, key=lambda s: (*_rank(s), -s.windows, s.warn_p))
    return best, _sentence(best, sum(_rank(s) == _rank(best) for s in clean) - 1)


def _false(setting: Setting) -> int:
    found = setting.assessment.false_alarms
    return 0 if found is None else found.count


def _found(setting: Setting) -> list[Detection]:
    return [d for d in setting.assessment.onsets if d.state == "found"]


def _rank(setting: Setting) -> tuple[float, ...]:
    """Smaller is better: onsets missed, days to the alert, quiet windows that warned. An onset at which the alarm of an
    earlier one still holds says nothing."""
    found, warned = _found(setting), setting.assessment.quiet_warned
    missed = sum(d.state in ("missed", "already") for d in setting.assessment.onsets)
    days = mean(d.alert_days for d in found if d.alert_days is not None)
    return missed, days, warned.count if warned is not None else 0


def _sentence(best: Setting, equal: int) -> str:
    found, false, rate = _found(best), best.assessment.false_alarms, best.assessment.per_year
    held = sum(d.state == "held" for d in best.assessment.onsets)
    days = mean(d.alert_days for d in found if d.alert_days is not None)
    told = ""
    if false is not None and rate is not None:
        told = f"{false.of} quiet windows (95% interval: up to {false.high:.2g} a window, {rate[2]:.2g} a year)"
    return (
        f"a reference of {best.windows} windows at warn_p {best.warn_p:g}: no false alarm in {told}; "
        f"{len(found)} of {len(best.assessment.onsets)} onsets found, the alert {days:.3g} days after the onset on "
        "average"
        + (f"; at {held} of them the alarm of an earlier one still held" if held else "")
        + (f"; {equal} other settings did as well" if equal else "")
        + ". Chosen on these data: expect it to do a little worse on new data"
    )
