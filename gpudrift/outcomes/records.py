"""What is handed on about product metrics: read from a table, joined with the history by window, analysed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpudrift.records import Window

Floats = NDArray[np.float64]
Direction = Literal["lower", "higher"]  # which way is worse
Link = Literal["worse", "better", "none", "insufficient"]


@dataclass(frozen=True)
class OutcomeSeries:
    """A product metric by window. metric: its column. worse: which way is worse. segment: ``all`` or ``column=value``,
    as the history names segments. windows: oldest first, every window of the period from the first to the last one
    with a value. values: (k,) float64, NaN where the table has none. counts: (k,) float64, observations behind each
    value (0 where there is none), NaN where the table does not say."""

    metric: str
    worse: Direction
    segment: str
    windows: tuple[Window, ...]
    values: Floats
    counts: Floats


@dataclass(frozen=True)
class DriftSeries:
    """The drift beside which outcomes are looked at, on the windows of the history's span, none left out. scores: (k,)
    energy, NaN where a window has none. log_scores: (k,) log(max(score, 0) + null_sd), the scale the verdict uses.
    spikes: (k,) bool, p_aa below ``outcomes.spike_p``, declared before any metric is looked at. quiet: (k,) bool,
    scored, and stable."""

    segment: str
    windows: tuple[Window, ...]
    scores: Floats
    log_scores: Floats
    spikes: NDArray[np.bool_]
    quiet: NDArray[np.bool_]


@dataclass(frozen=True)
class LagEffect:
    """The metric ``lag`` windows after the drift, both without trend and autocorrelation. n: pairs of windows. r:
    correlation. slope: change of the metric, in its own units, where the score doubles; ci: its 95% interval."""

    lag: int
    n: int
    r: float
    slope: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class EventStudy:
    """The metric around spikes. onsets: labels of windows that spike after one that did not. change: mean over the
    onsets of the mean from t+0 to t+lags less that of the windows before; ci: its 95% interval; p: against the same
    number of randomly chosen quiet windows; all None where there are too few onsets (``reason``). offsets: windows from
    the onset, negative before it; profile, low, high: mean metric, without its trend, less that before, and the 95%
    band of the quiet windows, of the same length."""

    onsets: tuple[str, ...]
    change: float | None
    ci: tuple[float, float] | None
    p: float | None
    offsets: tuple[int, ...]
    profile: Floats
    low: Floats
    high: Floats
    reason: str = ""


@dataclass(frozen=True)
class Level:
    """Where the metric stands now. window: the last one with a value, the run's or one of the two before. usual: mean
    of its quiet windows, the last 52 at most; limit: what 99% of new quiet windows stay within on the worse side
    (t prediction limit, with the sampling error of its own count where known); p: chance of a quiet window this bad;
    degraded: beyond the limit."""

    window: str
    value: float
    count: float | None
    usual: float
    limit: float
    p: float
    windows: int
    degraded: bool


@dataclass(frozen=True)
class Finding:
    """A metric beside the drift. windows: with both. missing: labels of scored windows without a value. lag, effect,
    ci, r: at the lag of the largest correlation (slope as in ``LagEffect``), None where it cannot be told. p: of the
    maximum over the lags, by shuffling; q: BH over all findings with enough windows. link: ``worse`` the metric gets
    worse as drift rises, ``better``, ``none`` (no link found), ``insufficient`` windows. sentence: that in words."""

    metric: str
    worse: Direction
    segment: str
    windows: int
    missing: tuple[str, ...]
    lag: int | None
    effect: float | None
    ci: tuple[float, float] | None
    r: float | None
    p: float | None
    q: float | None
    lags: tuple[LagEffect, ...]
    events: EventStudy | None
    level: Level | None
    link: Link
    sentence: str


@dataclass(frozen=True)
class Outcomes:
    """All of it. findings: ranked, the most telling first. series and drift: what they are made of, by (metric,
    segment) and by segment. notes: gaps and what was left out, a line each."""

    findings: tuple[Finding, ...]
    series: Mapping[tuple[str, str], OutcomeSeries]
    drift: Mapping[str, DriftSeries]
    notes: tuple[str, ...] = ()
