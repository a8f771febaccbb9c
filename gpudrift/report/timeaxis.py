"""The history's time axis: dates, and a visible break where nothing happened for long.

A reference of 2021 and a first window in 2026 would otherwise leave the picture empty in between and press both into
its edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num, num2date
from matplotlib.ticker import FixedFormatter, FixedLocator
from numpy.typing import NDArray

from gpudrift.report.style import CARD, MUTED

LEAST_WINDOWS = 12  # the axis spans at least so many windows: one point does not fill the picture
LEAST_SHARE = 0.12  # of the axis, for the shortest stretch beside a break
BREAK_SHARE = 0.05  # of the axis, for each break

Floats = NDArray[np.float64]
Span = tuple[float, float]  # in matplotlib's days


def day(moment: datetime) -> float:
    return float(date2num(moment))  # type: ignore[no-untyped-call]


def stretches(spans: Sequence[Span], length: float) -> list[Span]:
    """The spans joined, across every pause but those longer than all that is to be seen and than ``LEAST_WINDOWS``
    windows of ``length`` days: between two of the returned stretches the axis breaks."""
    least = LEAST_WINDOWS * length
    seen = sum(end - start for start, end in _joined(spans, least))
    return _joined(spans, max(seen, least))


def _joined(spans: Sequence[Span], pause: float) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= pause:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def time_axis(ax: Axes, spans: Sequence[Span], length: float, compact: bool = False, low: bool = False) -> Span:
    """Set up the axis for these spans, at least one, of windows of ``length`` days; returns its limits in days.

    compact: for a small picture, with fewer dates. low: the axes have no room for more than a word on its side.
    """
    parts = [(start - 0.5 * length, end + 0.5 * length) for start, end in stretches(spans, length)]
    if len(parts) > 1:
        _broken(ax, parts, compact, low or compact)
    else:
        ((left, right),) = parts
        ax.set_xlim(min(left, right - LEAST_WINDOWS * length), right)
        locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=6 if compact else 10)  # type: ignore[no-untyped-call]
        formatter = ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
        formatter.formats[2] = formatter.zero_formats[2] = "%d %b"  # "15" alone is no date
        formatter.offset_formats[2] = "%Y"
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(formatter)
    ax.grid(axis="x", visible=False)
    left, right = ax.get_xlim()
    return left, right


def _broken(ax: Axes, parts: Sequence[Span], compact: bool, low: bool) -> None:
    """An axis on which the time between the parts takes ``BREAK_SHARE`` each."""
    lengths = np.array([end - start for start, end in parts])
    widths = np.maximum(lengths / lengths.sum(), LEAST_SHARE)
    widths *= (1 - BREAK_SHARE * (len(parts) - 1)) / widths.sum()
    dates, places = [], []
    at = 0.0
    for (start, end), width in zip(parts, widths, strict=True):
        dates += [start, end]
        places += [at, at + float(width)]
        at += float(width) + BREAK_SHARE
    # far outside, so that the scale has an inverse wherever matplotlib looks
    knots = np.array([dates[0] - 1e6, *dates, dates[-1] + 1e6])
    values = np.array([places[0] - 1e6, *places, places[-1] + 1e6])

    def forward(date: Floats) -> Floats:
        return np.asarray(np.interp(date, knots, values))

    def inverse(place: Floats) -> Floats:
        return np.asarray(np.interp(place, values, knots))

    ax.set_xscale("function", functions=(forward, inverse))
    ax.set_xlim(dates[0], dates[-1])
    ticks, names = [], []
    for part, width in zip(parts, widths, strict=True):
        for tick, name in _dates(part, max(1, int(width * (4 if compact else 7)))):
            ticks.append(tick)
            names.append(name)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter(names))
    slash = [(-0.5, -1.0), (0.5, 1.0)]
    for (_, left), (right, _) in pairwise(parts):
        ax.axvspan(left, right, facecolor=CARD, linewidth=0, zorder=2.05)  # over the limits, under the points
        foot = ax.get_xaxis_transform()
        ax.plot([left, right], [0, 0], linestyle="", marker=slash, ms=9, color=MUTED, transform=foot, clip_on=False)
        middle = float(inverse((forward(np.array(left)) + forward(np.array(right))) / 2))
        pause = _duration(right - left) + ("" if low else " without a window")
        look = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 8, "color": MUTED, "zorder": 2.1}
        ax.text(middle, 0.5, pause, transform=foot, **look)  # type: ignore[arg-type]


def _dates(part: Span, most: int) -> list[tuple[float, str]]:
    """At most ``most`` ticks in a stretch, each a date that needs no neighbour to be understood: first days of months
    in equal steps, or single days where the stretch is too short for two of them."""
    first, last = (num2date(value, tz=UTC) for value in part)  # type: ignore[no-untyped-call]
    months = [(year, month) for year in range(first.year, last.year + 1) for month in range(12)]
    for step in (1, 2, 3, 6, 12, 24, 60, 120, 240, 600):
        found = [datetime(y, m + 1, 1, tzinfo=UTC) for y, m in months if (12 * y + m) % step == 0]
        found = [date for date in found if first <= date <= last]
        if len(found) <= most:
            break
    if len(found) >= min(most, 2):
        pattern = "%Y" if step >= 12 else "%b %Y"
        return [(day(date), f"{date:{pattern}}") for date in found]
    dates = [first + (last - first) * (2 * k + 1) / (2 * most) for k in range(most)]
    return [(day(date), f"{date:%d %b %Y}") for date in dates]


def _duration(days: float) -> str:
    if days > 700:
        return f"{days / 365.25:.1f} years"
    return f"{days / 30.44:.0f} months" if days > 60 else f"{days:.0f} days"
