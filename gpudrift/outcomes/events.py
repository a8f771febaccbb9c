"""What a metric does around spikes of the drift, beside what it does around quiet windows (an event study).

Spikes are declared before a metric is looked at. The change of the metric, its mean from t+0 to t+lags less that of
the windows before t, is averaged over the onsets; t, that mean over its standard error, is held against t of as many
windows drawn from the quiet ones, those without a spike near. t and not the mean: the odd content of a spike often
makes a metric more variable without moving it, and that is no finding. Not the difference from the quiet mean either:
quiet windows begin where the surroundings of a spike end, and chance moves the two apart (docs/outcomes.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpudrift.outcomes.records import DriftSeries, EventStudy, Floats
from gpudrift.student_t import student_t_quantile

LEAST_ONSETS = 5
LEAST_QUIET = 8  # windows without a spike near, below which there is nothing to hold the onsets against
CONFIDENCE = 0.95
BAND_DRAWS = 2000
_CHUNK = 2_000_000  # numbers a block of draws holds
_TIE = 1e-9
_FLAT = 1e-24  # squared standard error, of changes of size 1, that is none


@dataclass(frozen=True)
class Surroundings:
    """The metric around some windows, those with at least half of the windows before and half of those from t+0 on.
    places: (e,). profiles: (e, offsets), less the mean before, NaN where there is no value. changes: (e,)."""

    places: NDArray[np.intp]
    profiles: Floats
    changes: Floats


def onsets(drift: DriftSeries) -> NDArray[np.intp]:
    """Places of spikes whose previous scored window is none; not the first scored window, which nothing precedes."""
    scored = np.flatnonzero(np.isfinite(drift.scores))
    spikes = drift.spikes[scored]
    found: NDArray[np.intp] = scored[1:][spikes[1:] & ~spikes[:-1]]
    return found


def undisturbed(drift: DriftSeries, lags: int) -> NDArray[np.intp]:
    """Places of quiet windows without a spike from lags + 1 windows before to ``lags`` after."""
    steps = np.concatenate([[0], np.cumsum(drift.spikes)])
    at = np.arange(len(drift.windows))
    near = steps[np.minimum(at + lags + 1, len(at))] - steps[np.maximum(at - lags - 1, 0)]
    found: NDArray[np.intp] = np.flatnonzero(drift.quiet & (near == 0))
    return found


def event_study(
    drift: DriftSeries, values: Floats, lags: int, permutations: int, rng: np.random.Generator
) -> EventStudy:
    """The study of one metric: (k,) float64 on the windows of ``drift``, without trend (``whitening``), NaN for gaps.
    As many windows count before an onset as from it on, lags + 1. p: two-sided, (1 + as far out) / (1 + permutations);
    ci: Student's t over the onsets."""
    offsets = tuple(range(-lags - 1, lags + 1))
    events = around(values, onsets(drift), lags)
    quiet = around(values, undisturbed(drift, lags), lags)
    labels = tuple(drift.windows[place].label for place in events.places)
    reason = _reason(len(labels), len(onsets(drift)), len(quiet.places))
    if reason:
        empty = np.full(len(offsets), np.nan)
        return EventStudy(labels, None, None, None, offsets, empty, empty, empty, reason)
    k = len(labels)
    change = float(events.changes.mean())
    reach = student_t_quantile((1 + CONFIDENCE) / 2, k - 1) * float(events.changes.std(ddof=1)) / math.sqrt(k)
    low, high = _band(quiet.profiles, k, rng)
    return EventStudy(
        onsets=labels,
        change=change,
        ci=(change - reach, change + reach),
        p=_against_quiet(events.changes, quiet.changes, permutations, rng),
        offsets=offsets,
        profile=_mean(np.ones((1, k)), events.profiles)[0],
        low=low,
        high=high,
    )


def around(values: Floats, places: NDArray[np.intp], lags: int) -> Surroundings:
    """The metric from lags + 1 windows before to ``lags`` after each place."""
    before = lags + 1
    padded = np.concatenate([np.full(before, np.nan), values, np.full(lags, np.nan)])
    rows = padded[places[:, None] + np.arange(before + lags + 1)]
    early, late = _row_means(rows[:, :before]), _row_means(rows[:, before:])
    usable = np.isfinite(early) & np.isfinite(late)
    base = early[usable]
    return Surroundings(places[usable], rows[usable] - base[:, None], late[usable] - base)


def _row_means(rows: Floats) -> Floats:
    """Of the values that are there; NaN where fewer than half of them are."""
    there = np.isfinite(rows)
    count = there.sum(axis=1)
    means: Floats = np.where(there, rows, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.where(2 * count >= rows.shape[1], means, np.nan)


def _reason(usable: int, all_onsets: int, quiet: int) -> str:
    if usable < LEAST_ONSETS:
        without = f", {all_onsets - usable} more without enough values around" if all_onsets > usable else ""
        return (
            f"{usable} {'onset' if usable == 1 else 'onsets'} of a spike{without}, at least {LEAST_ONSETS} are needed"
        )
    least = max(LEAST_QUIET, usable)
    if quiet < least:
        return f"{quiet} quiet windows with no spike near and with values around, at least {least} are needed"
    return ""


def _against_quiet(events: Floats, quiet: Floats, permutations: int, rng: np.random.Generator) -> float:
    found, k = float(_studentised(events[None, :])[0]), len(events)
    as_far, left = 0, permutations
    while left:
        rows = min(left, max(1, _CHUNK // len(quiet)))
        drawn = rng.permuted(np.broadcast_to(quiet, (rows, len(quiet))), axis=1)[:, :k]
        as_far += int((_studentised(drawn) >= found * (1 - _TIE)).sum())
        left -= rows
    return (1 + as_far) / (1 + permutations)


def _studentised(rows: Floats) -> Floats:
    """|mean| over its standard error, of each row; 0 where all are 0."""
    size = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(size > 0, size, 1.0)
    error = np.sqrt(np.maximum(scaled.var(axis=1, ddof=1) / rows.shape[1], _FLAT))
    found: Floats = np.abs(scaled.mean(axis=1)) / error
    return found


def _band(profiles: Floats, k: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Between which 95% of the mean profiles of k quiet windows lie at each offset, drawn with replacement."""
    m = len(profiles)
    draws = rng.multinomial(k, np.full(m, 1 / m), size=BAND_DRAWS).astype(float)
    means = _mean(draws, profiles)
    low, high = np.full(profiles.shape[1], np.nan), np.full(profiles.shape[1], np.nan)
    for offset in range(profiles.shape[1]):
        known = means[np.isfinite(means[:, offset]), offset]
        if known.size:
            low[offset], high[offset] = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return low, high


def _mean(weights: Floats, profiles: Floats) -> Floats:
    """(draws, offsets): weighted means over the profiles that have a value there, NaN where none has."""
    there = np.isfinite(profiles)
    total = weights @ there.astype(float)
    means: Floats = (weights @ np.where(there, profiles, 0.0)) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, means, np.nan)
