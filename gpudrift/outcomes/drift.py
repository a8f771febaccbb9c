"""The drift as a time series: the history of a job on the full calendar of its windows, by segment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from gpudrift.calibrate import SCORE_FLOOR
from gpudrift.errors import ArgumentError
from gpudrift.outcomes.records import DriftSeries, Floats
from gpudrift.records import HistoryPoint, Window
from gpudrift.windows import Period

MOST_WINDOWS = 200_000  # of a calendar: five centuries of days


def calendar(history: Sequence[Mapping[str, HistoryPoint]], period: Period, until: Window | None) -> tuple[Window, ...]:
    """Every window from the first finished one of the history to the last, gaps included; none later than ``until``,
    and on to it where it is finished and the history does not have it yet."""
    known = _finished(history, until)
    if not known:
        return ()
    ends = [known[-1].start] + ([until.start] if until is not None and until.complete else [])
    window, last = period.window_at(known[0].start), max(ends)
    windows: list[Window] = []
    while window.start <= last:
        if len(windows) == MOST_WINDOWS:
            raise ArgumentError(
                "the history spans too many windows", value=f"{known[0].label} to {known[-1].label}", field="history"
            )
        windows.append(window)
        window = period.next(window)
    return tuple(windows)


def drift_series(
    history: Sequence[Mapping[str, HistoryPoint]],
    period: Period,
    *,
    until: Window | None = None,
    spike_p: float = 0.01,
) -> dict[str, DriftSeries]:
    """The drift of each segment, all on the same windows (``calendar``).

    Unfinished windows, windows later than ``until`` and windows that are none of ``period`` are left out. A spike is a
    window whose energy has p_aa below ``spike_p`` and lies above the floor that a warning needs (``SCORE_FLOOR`` null
    sd): nothing about a metric enters. A window of the reference, scored against the others, must lie beyond their 99%
    limit as well, however large ``spike_p`` is.

    Args:
        history: a mapping from segment to point for each window, as ``History.windows`` has it.
    """
    windows = calendar(history, period, until)
    places = {window.start: k for k, window in enumerate(windows)}
    by_segment: dict[str, dict[int, HistoryPoint]] = {}
    for points in history:
        for segment, point in points.items():
            place = places.get(point.window.start)
            if point.window.complete and place is not None and windows[place].end == point.window.end:
                by_segment.setdefault(segment, {})[place] = point
    return {segment: _series(segment, windows, own, spike_p) for segment, own in by_segment.items()}


def _finished(history: Sequence[Mapping[str, HistoryPoint]], until: Window | None) -> list[Window]:
    end: datetime | None = None if until is None else until.start
    found = {
        point.window.start: point.window
        for points in history
        for point in points.values()
        if point.window.complete and (end is None or point.window.start <= end)
    }
    return [found[start] for start in sorted(found)]


def _series(
    segment: str, windows: tuple[Window, ...], points: Mapping[int, HistoryPoint], spike_p: float
) -> DriftSeries:
    scores, noise = np.full(len(windows), np.nan), np.full(len(windows), np.nan)
    spikes, quiet = np.zeros(len(windows), dtype=bool), np.zeros(len(windows), dtype=bool)
    for place, point in points.items():
        if point.score is None or not math.isfinite(point.score):
            continue
        scores[place] = point.score
        if point.null_sd is not None and math.isfinite(point.null_sd) and point.null_sd > 0:
            noise[place] = point.null_sd
        spikes[place] = is_spike(point, spike_p)
        quiet[place] = point.verdict == "stable" and not spikes[place]
    return DriftSeries(segment, windows, scores, _log_scores(scores, noise, points), spikes, quiet)


def is_spike(point: HistoryPoint, spike_p: float) -> bool:
    """Whether the point's energy spikes: the rule of ``drift_series``."""
    if point.score is None or point.p_aa is None or not point.p_aa < spike_p:
        return False
    if point.null_sd is not None and not point.score > SCORE_FLOOR * point.null_sd:
        return False
    return not point.in_reference or point.delta is None or point.score > point.delta


def _log_scores(scores: Floats, noise: Floats, points: Mapping[int, HistoryPoint]) -> Floats:
    """log(max(score, 0) + null_sd). Where a point has no null_sd (too little data for a verdict) the median of the
    others stands in, without any the median of the standard errors; NaN where there is neither."""
    known = noise[np.isfinite(noise)]
    if not known.size:
        errors = [p.se for p in points.values() if p.se is not None and math.isfinite(p.se) and p.se > 0]
        known = np.array(errors)
    if not known.size:
        return np.full(len(scores), np.nan)
    floor = np.where(np.isfinite(noise), noise, np.median(known))
    logs: Floats = np.log(np.maximum(scores, 0) + floor)  # NaN stays NaN
    return logs
