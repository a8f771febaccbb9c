"""Outcomes made by hand, for the tests of what is written and drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gpudrift.outcomes.records import (
    DriftSeries,
    EventStudy,
    Finding,
    LagEffect,
    Level,
    Outcomes,
    OutcomeSeries,
)
from gpudrift.windows import covering, parse_period

METRICS = ("no_answer_rate", "retrieval_success_rate", "click_through", "escalations", "stars", "answers", "seventh")
START = datetime(2024, 1, 1, tzinfo=UTC)


def weeks(count: int) -> tuple[Any, ...]:
    period = parse_period("week")
    windows = [period.window_at(START)]
    while len(windows) < count:
        windows.append(period.next(windows[-1]))
    return covering(period, START, windows[-1].end)


def make_drift(count: int, spikes: Sequence[int] = (), gaps: Sequence[int] = (), segment: str = "all") -> DriftSeries:
    rng = np.random.default_rng(count)
    scores = np.exp(rng.normal(-7, 0.6, count)) - 2e-4
    marked = np.zeros(count, dtype=bool)
    marked[list(spikes)] = True
    scores[marked] = 0.02 + 0.01 * rng.uniform(size=int(marked.sum()))
    scores[list(gaps)] = np.nan
    known = np.isfinite(scores)
    logs = np.log(np.maximum(scores, 0) + 3e-4)
    return DriftSeries(segment, weeks(count), scores, logs, marked & known, known & ~marked)


def make_finding(
    metric: str = "no_answer_rate",
    *,
    worse: Any = "higher",
    segment: str = "all",
    link: Any = "worse",
    lags: int = 5,
    events: bool = True,
    degraded: bool | None = True,
    label: str = "2025-W08",
    **changes: Any,
) -> Finding:
    """degraded None: there is no level."""
    sign = 1 if worse == "higher" else -1
    effects = tuple(
        LagEffect(k, 55 - k, sign * (0.6 if k == 1 else 0.1 * (-1) ** k), sign * 0.012, (-0.001, 0.02))
        for k in range(lags)
    )
    offsets = tuple(range(-5, 5))
    profile = sign * np.where(np.array(offsets) >= 0, 0.03, 0.002)
    band = np.full(10, 0.012)
    study = EventStudy(("2024-W10", "2024-W20", "2024-W30", "2024-W40", "2024-W50"), sign * 0.028, (0.01, 0.04), 0.004,
                       offsets, profile, -band, band)  # fmt: skip
    few = replace(study, onsets=("2024-W10",), change=None, ci=None, p=None, profile=np.full(10, np.nan),
                  low=np.full(10, np.nan), high=np.full(10, np.nan),
                  reason="1 onset of a spike, at least 5 are needed")  # fmt: skip
    level = None
    if degraded is not None:
        value = 0.4 + sign * (0.09 if degraded else 0.01)
        level = Level(label, value, 512.0, 0.4, 0.4 + sign * 0.06, 0.0004 if degraded else 0.4, 40, degraded)
    found = Finding(
        metric=metric,
        worse=worse,
        segment=segment,
        windows=58,
        missing=("2024-W05", "2024-W06"),
        lag=1 if effects else None,
        effect=sign * 0.012 if effects else None,
        ci=(-0.001, 0.02) if effects else None,
        r=sign * 0.6 if effects else None,
        p=0.0004 if effects else None,
        q=0.003 if effects and link != "insufficient" else None,
        lags=effects,
        events=study if events else few,
        level=level,
        link=link,
        sentence=f"{metric} rises by 1.2 points where the score doubles, one window later (95% interval -0.1 to 2 "
        "points; q 0.003): it gets worse as drift rises",
    )
    return replace(found, **changes)


def make_outcomes(
    count: int = 60,
    metrics: int = 3,
    *,
    spikes: Sequence[int] = (9, 10, 22, 31, 40, 52),
    gaps: Sequence[int] = (15, 16),
    findings: Sequence[Finding] | None = None,
    segment: str = "all",
) -> Outcomes:
    """Metrics with gaps beside a drift; ways alternate, the second has no link, the third too few windows."""
    drift = make_drift(count, [k for k in spikes if k < count], [k for k in gaps if k < count], segment)
    last = drift.windows[-1].label
    if findings is None:
        kinds: tuple[dict[str, Any], ...] = (
            {"link": "worse"},
            {"link": "none", "degraded": False},
            {"link": "insufficient", "lags": 0, "events": False, "degraded": None},
        )
        findings = [
            make_finding(METRICS[k], worse=("higher", "lower")[k % 2], segment=segment, label=last, **kinds[k % 3])
            for k in range(metrics)
        ]
    series = {}
    for k, finding in enumerate(findings):
        rng = np.random.default_rng(k)
        values = 0.4 + rng.normal(0, 0.02, count)
        values[3 + k :: 17] = np.nan
        values[-1] = 0.4 if finding.level is None else finding.level.value
        counts = np.where(np.isfinite(values), 500.0, 0.0)
        series[finding.metric, finding.segment] = OutcomeSeries(
            finding.metric, finding.worse, finding.segment, drift.windows, values, counts
        )
    return Outcomes(tuple(findings), series, {segment: drift}, ("2 windows have no value",))
