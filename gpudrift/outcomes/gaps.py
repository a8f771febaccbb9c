"""A metric on the windows of the drift, and what does not meet: told, never silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpudrift.history import ALL
from gpudrift.outcomes import sentences
from gpudrift.outcomes.records import DriftSeries, Floats, OutcomeSeries
from gpudrift.records import Window
from gpudrift.report.wording import printable

STRAIGHT = 0.5  # share of the variance on the trend from which it is told
FEW_WINDOWS = 52
LEAST_WINDOWS = 12  # with both, below which no number of a link is told


@dataclass(frozen=True)
class Joined:
    """A metric and its segment's drift on the same windows. values, counts: (k,) float64, NaN where there is none.
    missing: places with a score and no value. unscored: places in the table, up to the last window that counts, with a
    value and no score; later: those after it."""

    series: OutcomeSeries
    drift: DriftSeries
    values: Floats
    counts: Floats
    missing: tuple[int, ...]
    unscored: tuple[int, ...]
    later: tuple[int, ...]


def join(series: OutcomeSeries, drift: DriftSeries, until: Window | None) -> Joined:
    """By the windows' starts and ends. Values later than ``until`` do not count, in no way."""
    places = {(window.start, window.end): k for k, window in enumerate(drift.windows)}
    values, counts = np.full(len(drift.windows), np.nan), np.full(len(drift.windows), np.nan)
    unscored, later = [], []
    for k, window in enumerate(series.windows):
        value = float(series.values[k])
        if not np.isfinite(value):
            continue
        if until is not None and window.start > until.start:
            later.append(k)
            continue
        place = places.get((window.start, window.end))
        if place is None or not np.isfinite(drift.scores[place]):
            unscored.append(k)
        if place is not None:
            values[place], counts[place] = value, float(series.counts[k])
    missing = np.flatnonzero(np.isfinite(drift.scores) & ~np.isfinite(values))
    found = tuple(int(place) for place in missing)
    return Joined(series, drift, values, counts, found, tuple(unscored), tuple(later))


def notes_on(
    given: Sequence[OutcomeSeries],
    joined: Sequence[Joined],
    drift_trends: Mapping[str, float],
    metric_trends: Mapping[tuple[str, str], float],
) -> tuple[str, ...]:
    """A line for each set of windows that does not meet, naming all metrics it is true of; for segments without a
    history; for short series that mostly trend."""
    notes = _grouped(joined, "have a score but no value of", lambda one: _labels(one, one.missing, drift=True))
    for whole in (True, False):
        some = [one for one in joined if (one.series.segment == ALL) == whole]
        lines = _grouped(some, "have no score but a value of", lambda one: _labels(one, one.unscored))
        notes += [f"{line} (job=backfill scores those with enough rows)" if whole else line for line in lines]
    notes += _grouped(joined, "lie after the window of this run and do not count:", lambda one: _labels(one, one.later))
    known = {one.series.segment for one in joined}
    strangers = sorted({one.segment for one in given} - known)
    if strangers:
        named = ", ".join(printable(segment) for segment in strangers[:6])
        more = f" and {len(strangers) - 6} more" if len(strangers) > 6 else ""
        notes.append(f"the history has no scores of {named}{more}: metrics of these segments are left out")
    trending: dict[str, list[str]] = {}
    for one in joined:
        both = int((np.isfinite(one.drift.scores) & np.isfinite(one.values)).sum())
        scored = int(np.isfinite(one.drift.scores).sum())
        of_metric = metric_trends[one.series.metric, one.series.segment]
        of_score = drift_trends[one.series.segment] if scored < FEW_WINDOWS else 0.0
        share = max(of_metric, of_score)
        if LEAST_WINDOWS <= both < FEW_WINDOWS and share >= STRAIGHT:
            what = "the metric" if of_metric >= of_score else "the score"
            told = f"a trend makes up {share:.0%} of {what} over {both} windows and is taken out"
            trending.setdefault(told, []).append(sentences.name(one.series))
    notes += [f"{', '.join(names)}: {told}; what is left tells little" for told, names in trending.items()]
    return tuple(notes)


def _labels(one: Joined, places: Sequence[int], drift: bool = False) -> tuple[int, str]:
    windows = one.drift.windows if drift else one.series.windows
    return len(places), sentences.spans(places, [window.label for window in windows])


def _grouped(joined: Sequence[Joined], what: str, told: Callable[[Joined], tuple[int, str]]) -> list[str]:
    """``3 windows have a score but no value of a, b: ...``: metrics with the same windows share a line."""
    lines: dict[tuple[str, int, str], list[str]] = {}
    for one in joined:
        count, labels = told(one)
        if count:
            lines.setdefault((one.series.segment, count, labels), []).append(printable(one.series.metric))
    return [
        f"{count} window{'' if count == 1 else 's'} {_singular(what) if count == 1 else what} {', '.join(metrics)}"
        f"{'' if segment == ALL else f' of {printable(segment)}'}: {labels}"
        for (segment, count, labels), metrics in lines.items()
    ]


def _singular(what: str) -> str:
    return what.replace("have ", "has ", 1).replace("lie ", "lies ", 1).replace("do not count", "does not count", 1)
