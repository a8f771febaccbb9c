"""Histories and metrics made up for tests of gpudrift.outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from gpudrift.history import ALL
from gpudrift.outcomes.records import DriftSeries, OutcomeSeries
from gpudrift.records import HistoryPoint, Window
from gpudrift.windows import Period

WEEK = Period("week")
NULL_SD = 1e-4


def calendar(count: int, period: Period = WEEK, start: date = date(2024, 1, 1)) -> tuple[Window, ...]:
    windows = [period.window_at(start)]
    while len(windows) < count:
        windows.append(period.next(windows[-1]))
    return tuple(windows[:count])


def point(window: Window, score: float | None, **changed: Any) -> HistoryPoint:
    """A stable window; p_aa .5 where there is a score."""
    known = None if score is None else 0.5
    values: dict[str, Any] = {
        "window": window,
        "verdict": "stable",
        "score": score,
        "se": None if score is None else 1e-4,
        "p_aa": known,
        "p_close": known,
        "null_sd": None if score is None else NULL_SD,
        "delta": None if score is None else 0.01,
        "clear_limit": None,
        "ratio": None,
        "rows": 300,
    }
    return HistoryPoint(**{**values, **changed})


def history(
    scores: Sequence[float], spikes: Sequence[int] = (), *, period: Period = WEEK, segment: str = ALL, gaps: Any = ()
) -> list[Mapping[str, HistoryPoint]]:
    """A window a score, NaN for one without; those at the places ``spikes`` have p_aa 1e-5; ``gaps`` are not there."""
    made = []
    for k, (window, score) in enumerate(zip(calendar(len(scores), period), scores, strict=True)):
        if k in gaps:
            continue
        own = {"p_aa": 1e-5, "verdict": "warning"} if k in spikes else {}
        made.append({segment: point(window, None if np.isnan(score) else float(score), **own)})
    return made


def metric(
    values: Sequence[float] | Any,
    *,
    name: str = "success_rate",
    worse: Any = "lower",
    segment: str = ALL,
    counts: Any = None,
    windows: tuple[Window, ...] | None = None,
) -> OutcomeSeries:
    found = np.asarray(values, dtype=float)
    known = np.full(len(found), np.nan) if counts is None else np.asarray(counts, dtype=float)
    return OutcomeSeries(name, worse, segment, windows or calendar(len(found)), found, known)


def drift_of(count: int, spikes: Sequence[int] = (), quiet: Sequence[int] | None = None) -> DriftSeries:
    """Scored everywhere; quiet where it does not spike unless said otherwise."""
    marks = np.isin(np.arange(count), spikes)
    calm = ~marks if quiet is None else np.isin(np.arange(count), quiet)
    return DriftSeries(ALL, calendar(count), np.ones(count), np.zeros(count), marks, calm)


def autoregressive(rng: np.random.Generator, count: int, phi: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.zeros(count + 30)
    for t in range(1, count + 30):
        values[t] = phi * values[t - 1] + rng.normal()
    return values[30:]


def unfinished(window: Window) -> Window:
    return replace(window, complete=False)
