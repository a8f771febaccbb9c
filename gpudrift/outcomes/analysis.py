"""Product metrics beside the drift: joined by window, analysed, ranked. Associations; never causes.

For each metric and segment: does it move with the score, at once or some windows later (``lags``); what does it do
around spikes (``events``); is it worse now than in its quiet windows (``levels``). All of them are one family of
q-values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from gpudrift.errors import ArgumentError
from gpudrift.fdr import benjamini_hochberg
from gpudrift.history import ALL
from gpudrift.outcomes import sentences
from gpudrift.outcomes.drift import drift_series
from gpudrift.outcomes.events import event_study
from gpudrift.outcomes.gaps import LEAST_WINDOWS, Joined, join, notes_on
from gpudrift.outcomes.lags import lag_effect, shuffled_p, strongest, studentised
from gpudrift.outcomes.levels import level
from gpudrift.outcomes.records import DriftSeries, Finding, LagEffect, Link, Outcomes, OutcomeSeries
from gpudrift.outcomes.whitening import Residuals, prewhiten
from gpudrift.records import HistoryPoint, Window
from gpudrift.windows import Period

_WEEK = 7  # windows of a day: their cycle


@dataclass(frozen=True)
class Settings:
    """lags: windows after the drift, at most. fdr: q-value below which there is a link. min_windows: with both."""

    lags: int = 4
    fdr: float = 0.05
    min_windows: int = 20
    permutations: int = 9999
    seed: int = 0


def analyse(
    series: Sequence[OutcomeSeries],
    history: Sequence[Mapping[str, HistoryPoint]],
    period: Period,
    *,
    until: Window | None = None,
    lags: int = 4,
    spike_p: float = 0.01,
    fdr: float = 0.05,
    min_windows: int = 20,
    permutations: int = 9999,
    seed: int = 0,
) -> Outcomes:
    """Every metric beside the drift of its own segment. The same for the same arguments, in whatever order they come.

    Args:
        series: metrics by segment; those of a segment that the history does not have are told and left out.
        history: as ``History.windows`` has it; ``until``: nothing later counts, in the history or in a metric.
        lags: windows after the drift to look at, 0 to so many. spike_p: p_aa below which a window spikes.
        fdr: q-value below which there is a link. min_windows: with a score and a value; fewer are insufficient.

    Raises:
        ArgumentError: a metric is given twice for a segment.
    """
    settings = Settings(lags, fdr, min_windows, permutations, seed)
    given = {(one.metric, one.segment): one for one in series}
    if len(given) < len(series):
        twice = next(f"{s.metric}, {s.segment}" for s in series if s is not given[s.metric, s.segment])
        raise ArgumentError("a metric is given twice for a segment", field="series", value=twice)
    drift = drift_series(history, period, until=until, spike_p=spike_p)
    joined = [join(one, drift[one.segment], until) for key, one in sorted(given.items()) if one.segment in drift]
    white = {segment: _white(drift[segment]) for segment in {one.series.segment for one in joined}}
    draft = [_finding(one, white[one.series.segment], settings) for one in joined]
    # a family of what can become a link: numbers beside "insufficient" decide nothing
    q = benjamini_hochberg([float("nan") if f.p is None or f.link == "insufficient" else f.p for f in draft])
    found = [_judged(f, _counted(one), value, fdr) for f, one, value in zip(draft, joined, q, strict=True)]
    trends = {(one.series.metric, one.series.segment): _metric_white(one).fit.trend for one in joined}
    return Outcomes(
        findings=tuple(sorted(found, key=_rank)),
        series=given,
        drift=drift,
        notes=notes_on(
            [given[key] for key in sorted(given)],
            joined,
            {segment: residuals.fit.trend for segment, residuals in white.items()},
            trends,
        ),
    )


def _finding(joined: Joined, drift: Residuals, settings: Settings) -> Finding:
    """All but q and what follows from it."""
    of, series = joined.drift, joined.series
    both = int((np.isfinite(of.scores) & np.isfinite(joined.values)).sum())
    metric = _metric_white(joined)
    spent = min(metric.fit.terms, drift.fit.terms)
    effects: tuple[LagEffect, ...] = ()
    if both >= LEAST_WINDOWS:
        found = [lag_effect(drift.values, metric.values, lag, spent) for lag in range(settings.lags + 1)]
        effects = tuple(one for one in found if one is not None)
    best = strongest(effects, spent) if effects else None
    p = None
    if best is not None:
        rng = _stream(settings.seed, "lags", series)
        p = shuffled_p(drift.values, metric.values, [e.lag for e in effects], settings.permutations, rng, spent)
    reason = _insufficient(joined, both, drift, metric, effects, settings.min_windows)
    rng = _stream(settings.seed, "events", series)
    return Finding(
        metric=series.metric,
        worse=series.worse,
        segment=series.segment,
        windows=both,
        missing=tuple(of.windows[place].label for place in joined.missing),
        lag=None if best is None else best.lag,
        effect=None if best is None else best.slope,
        ci=None if best is None else best.ci,
        r=None if best is None else best.r,
        p=p,
        q=None,
        lags=effects,
        events=event_study(of, metric.fit.left, settings.lags, settings.permutations, rng),
        level=level(of, joined.values, joined.counts, series.worse),
        link="insufficient" if reason else "none",
        sentence=sentences.insufficient(series, reason) if reason else "",
    )


def _insufficient(
    joined: Joined, both: int, drift: Residuals, metric: Residuals, effects: Sequence[LagEffect], least: int
) -> str:
    """Why there is no verdict on a link, empty where there is one."""
    if both < least:
        return f"{both} with both a score and a value, {least} are needed"
    for residuals, values, what in (
        (metric, joined.values, "the metric"),
        (drift, joined.drift.log_scores, "the score"),
    ):
        if not np.isfinite(residuals.fit.left).any():
            known = values[np.isfinite(values)]
            if not known.size:
                return f"the noise of {what} is not known in any of them"
            if float(np.ptp(known)) <= 1e-9 * float(np.abs(known).max()):
                return f"{what} is the same in all {len(known)}"
            return f"{what} lies on its trend in all {len(known)}, nothing is left to compare"
    pairs = max((effect.n for effect in effects), default=0)
    if pairs < LEAST_WINDOWS:
        return f"{both} with both a score and a value, but only {pairs} of them follow one with both"
    return ""


def _judged(finding: Finding, series: OutcomeSeries, q: float, fdr: float) -> Finding:
    if finding.link == "insufficient" or finding.lag is None:
        return finding
    best = next(effect for effect in finding.lags if effect.lag == finding.lag)
    if not q < fdr:
        return replace(finding, q=q, sentence=sentences.unlinked(series, finding.windows, best, q))
    link: Link = "worse" if sentences.is_worse(series.worse, best.slope) else "better"
    return replace(finding, q=q, link=link, sentence=sentences.linked(series, best, q))


def _counted(joined: Joined) -> OutcomeSeries:
    """The series as the words see it: no later value decides whether sizes are told in points."""
    return replace(joined.series, windows=joined.drift.windows, values=joined.values, counts=joined.counts)


def _rank(finding: Finding) -> tuple[object, ...]:
    """By q, so links first; then what could not be tested, by p. Of equals the stronger, the whole before segments."""
    p = 2.0 if finding.p is None else finding.p
    best = next((effect for effect in finding.lags if effect.lag == finding.lag), None)
    strength = 0.0 if best is None else float(studentised(np.array([best.r]), best.n)[0])
    first = finding.q if finding.q is not None else 2.0
    return first, p, -strength, finding.segment != ALL, finding.segment, finding.metric


def _metric_white(joined: Joined) -> Residuals:
    return prewhiten(joined.values, _cycle(joined.drift))


def _white(drift: DriftSeries) -> Residuals:
    return prewhiten(drift.log_scores, _cycle(drift))


def _cycle(drift: DriftSeries) -> int | None:
    days = bool(drift.windows) and drift.windows[0].end - drift.windows[0].start == timedelta(days=1)
    return _WEEK if days else None


def _stream(seed: int, use: str, series: OutcomeSeries) -> np.random.Generator:
    """Its own for each finding, so that none depends on which others there are."""
    words = [use.encode(), series.metric.encode(errors="surrogatepass"), series.segment.encode(errors="surrogatepass")]
    return np.random.default_rng([seed, *(int.from_bytes(hashlib.sha256(word).digest()[:8]) for word in words)])
