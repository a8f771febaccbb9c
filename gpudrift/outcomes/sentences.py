"""Findings in words. They tell what goes with what, and never why."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpudrift.history import ALL
from gpudrift.outcomes.records import Direction, LagEffect, OutcomeSeries
from gpudrift.report.wording import p_value, printable, quantity

_SHOWN = 6  # windows, or spans of them, that a note names
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def linked(series: OutcomeSeries, effect: LagEffect, q: float) -> str:
    """``retrieval_success_rate falls by 1.2 points where the score doubles, one window later (95% interval -2.1 to -0.3
    points; q 0.003): it gets worse as drift rises``."""
    scale, unit = _unit(series.values)
    low, high = (quantity(end * scale) for end in effect.ci)
    way = "rises" if effect.slope > 0 else "falls"
    size = quantity(abs(effect.slope) * scale)
    found = f"{name(series)} {way} by {size}{unit} where the score doubles, {when(effect.lag)}"
    end = "worse" if is_worse(series.worse, effect.slope) else "better"
    return f"{found} (95% interval {low} to {high}{unit}; q {_chance(q)}): it gets {end} as drift rises"


def unlinked(series: OutcomeSeries, windows: int, effect: LagEffect, q: float) -> str:
    """``no link found: click_rate, 112 windows, largest correlation 0.14 (one window later, q 0.62)``."""
    told = f"largest correlation {effect.r:.2f} ({when(effect.lag)}, q {_chance(q)})"
    return f"no link found: {name(series)}, {windows} windows, {told}"


def insufficient(series: OutcomeSeries, reason: str) -> str:
    return f"insufficient windows: {name(series)}, {reason}"


def name(series: OutcomeSeries) -> str:
    """The metric, and of which segment where it is not of all."""
    metric = printable(series.metric)
    return metric if series.segment == ALL else f"{metric} of {printable(series.segment)}"


def when(lag: int) -> str:
    """``in the same window``, ``one window later``, ``13 windows later``."""
    if lag == 0:
        return "in the same window"
    count = _WORDS[lag] if lag < len(_WORDS) else str(lag)
    return f"{count} window{'' if lag == 1 else 's'} later"


def is_worse(worse: Direction, change: float) -> bool:
    return change < 0 if worse == "lower" else change > 0


def spans(places: Sequence[int], labels: Sequence[str]) -> str:
    """Places of a calendar as ``2024-W10, 2024-W13 to 2024-W20``, the first ``_SHOWN`` and how many more."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    told = [labels[run[0]] if len(run) == 1 else f"{labels[run[0]]} to {labels[run[-1]]}" for run in runs[:_SHOWN]]
    rest = sum(len(run) for run in runs[_SHOWN:])
    return ", ".join(told) + (f" and {rest} more" if rest else "")


def _unit(values: object) -> tuple[float, str]:
    """Percentage points where all values lie inside 0 to 1, else the metric's own unit."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    inside = known.size > 0 and bool((known >= 0).all() and (known <= 1).all())
    return (100.0, " points") if inside else (1.0, "")


def _chance(q: float) -> str:
    return p_value(q) if math.isfinite(q) else "-"
