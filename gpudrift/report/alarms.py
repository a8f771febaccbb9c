"""The backtest over time: every setting's verdicts and scores, beside the drift that is known to have happened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from gpudrift.errors import ArgumentError
from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report import style
from gpudrift.report.density import Floats
from gpudrift.report.style import (
    BAND,
    INK,
    MUTED,
    VERDICT_COLORS,
    VERDICT_MARKERS,
    Picture,
    drawing,
    label,
    legend_below,
    save,
    sheet,
)
from gpudrift.report.timeaxis import day, time_axis
from gpudrift.report.timeline import JOIN, ORDER, period_name

MOST = 12  # settings below each other
LOWEST = 0.1  # of the tolerance: what lies below is drawn there
FOOT = 0.2  # of a panel's height, for the strip of verdicts
# The verdicts of the strip differ in height too, for readers without colours.
HEIGHTS: dict[Verdict, float] = {"stable": 0.3, "warning": 0.65, "alert": 1.0, "insufficient": 0.12}
WIDTH, AXES = 11.0, 8.3  # inches, of the page and the least of the axes
SIDE = 1.55  # inches, for the name of a setting and, above them and the panels, for that of an onset
LEVELS = 5  # rows of names of onsets


@dataclass(frozen=True)
class AlarmStrip:
    """What one setting (``label``: "26 windows, warn_p 0.01") made of the windows."""

    label: str
    points: Sequence[HistoryPoint]


def ratios_of(points: Sequence[HistoryPoint]) -> Floats:
    """(windows,) scores over their tolerance delta, at least ``LOWEST``; NaN where either is missing or not finite."""
    found = [np.nan if p.score is None or p.delta is None or not p.delta > 0 else p.score / p.delta for p in points]
    ratios = np.array(found, dtype=np.float64)
    return np.where(np.isfinite(ratios), np.maximum(ratios, LOWEST), np.nan)


def _decades(high: float, most: int) -> list[float]:
    ticks = [tick for tick in (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e8, 1e10) if tick <= high]
    if len(ticks) < 3 and most > 3:
        ticks = sorted({*ticks, *(tick for tick in (0.3, 3.0, 30.0) if tick <= high)})
    return ticks[:: -(-len(ticks) // most)] if 1.0 in ticks[:: -(-len(ticks) // most)] else [1.0, ticks[-1]]


def _strip(ax: Axes, points: Sequence[HistoryPoint]) -> None:
    """The verdict of every window at the panel's foot."""
    for verdict in ORDER:
        boxes = [
            Rectangle((day(p.window.start), 0), day(p.window.end) - day(p.window.start), FOOT * 0.8 * HEIGHTS[verdict])
            for p in points
            if p.verdict == verdict
        ]
        if boxes:
            look = {"facecolor": VERDICT_COLORS[verdict], "linewidth": 0.0, "zorder": 2.2}
            ax.add_collection(PatchCollection(boxes, transform=ax.get_xaxis_transform(), **look))  # type: ignore[arg-type]


def draw_strip(ax: Axes, strip: AlarmStrip, high: float, height: float) -> None:
    """A panel of ``height`` inches: scores over their tolerance up to ``high``, and the verdicts at its foot."""
    points = sorted(strip.points, key=lambda p: p.window)
    top, bottom = np.log10(high * 1.5), np.log10(LOWEST)
    # the lowest score stands above the strip
    ax.set_ylim(10 ** (bottom - (top - bottom) * (FOOT + 0.06) / (1 - FOOT - 0.06)), 10**top)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator(_decades(high * 1.5, max(2, int(height / 0.24)))))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.axhline(1.0, color=MUTED, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1.9)
    _strip(ax, points)
    if not points:
        ax.text(0.5, 0.6, "no windows", transform=ax.transAxes, ha="center", va="center", color=MUTED)
        return
    ratios = ratios_of(points)
    middle = np.array([(day(p.window.start) + day(p.window.end)) / 2 for p in points])
    x, y = [middle[0]], [ratios[0]]
    for k, (before, after) in enumerate(pairwise(points), start=1):
        if after.window.start > before.window.end:
            x.append(middle[k])
            y.append(np.nan)
        x.append(middle[k])
        y.append(ratios[k])
    ax.plot(x, y, color=JOIN, linewidth=0.9, zorder=2.3)
    size = 4.5 if len(points) <= 120 else 3.0
    for rank, verdict in enumerate(ORDER):
        chosen = np.array([p.verdict == verdict for p in points]) & np.isfinite(ratios)
        ax.plot(
            middle[chosen],
            ratios[chosen],
            VERDICT_MARKERS[verdict],
            ms=size * (0.7 if verdict == "stable" else 1.3),
            color=VERDICT_COLORS[verdict],
            mew=0,
            zorder=2.5 + 0.1 * rank,
        )


def onset_levels(places: Sequence[tuple[float, float]]) -> list[int | None]:
    """For ascending spans (left, right) of names: the row of each, above all names that begin within it, so that no
    name covers another and none lies across the line down from another's left end; None above ``LEVELS`` rows."""
    levels = [0] * len(places)
    for k in reversed(range(len(places))):
        right = [j for j in range(k + 1, len(places)) if places[j][0] < places[k][1]]
        levels[k] = 1 + max((levels[j] for j in right if levels[j] < LEVELS), default=-1)
    return [level if level < LEVELS else None for level in levels]


class _Named(NamedTuple):
    """The name of an onset above the first panel: in which row (None: no room)."""

    moment: datetime
    text: str
    level: int | None


def _place_names(onsets: Sequence[tuple[datetime, str]], spans: Sequence[tuple[float, float]]) -> list[_Named]:
    """Where the names go, found before the page is made: their rows are part of its height."""
    scratch = Figure().subplots()
    time_axis(scratch, spans, _length(spans))
    texts = [style.shorten(name, SIDE, 8.5) for _, name in onsets]
    taken = []
    for (moment, _), text in zip(onsets, texts, strict=True):
        # by the place on the axis, which may be broken; in inches of axes that are in truth a little wider
        place = scratch.transAxes.inverted().transform(scratch.get_xaxis_transform().transform((day(moment), 0.0)))[0]
        at = float(place) * AXES
        taken.append((at, at + style.text_width(text, 8.5) + 0.1))
    moments = [moment for moment, _ in onsets]
    return [_Named(*found) for found in zip(moments, texts, onset_levels(taken), strict=True)]


def _name_onsets(ax: Axes, names: Sequence[_Named]) -> None:
    for name in names:
        if name.level is not None:
            ax.annotate(
                name.text,
                (day(name.moment), 1.0),
                xycoords=ax.get_xaxis_transform(),
                xytext=(0, 3 + 13 * name.level),
                textcoords="offset points",
                ha="left",
                va="bottom",
                fontsize=8.5,
                color=INK,
                arrowprops={
                    "arrowstyle": "-",
                    "color": INK,
                    "linewidth": 1.1,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "relpos": (0.0, 1.0),
                },
                bbox={"boxstyle": "square,pad=0.12", "facecolor": "none", "edgecolor": "none"},
                annotation_clip=False,
            )


def _length(spans: Sequence[tuple[float, float]]) -> float:
    return float(np.median([end - start for start, end in spans]))


def _name_setting(ax: Axes, strip: AlarmStrip, height: float) -> None:
    """The setting's name and its count of alarms right of its panel."""
    lines = style.wrap(strip.label, SIDE, 9.5, "bold", lines=max(1, int(height / 0.2) - 2))
    look = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "annotation_clip": False}
    for k, line in enumerate(lines):
        ax.annotate(line, (1.0, 1.0), xytext=(8, -13 * k), fontsize=9.5, fontweight="bold", **look)  # type: ignore[arg-type]
    for k, line in enumerate(_tally(strip)):
        at = (8, -13 * (len(lines) + k))
        ax.annotate(line, (1.0, 1.0), xytext=at, fontsize=8.5, color=MUTED, **look)  # type: ignore[arg-type]


def _tally(strip: AlarmStrip) -> tuple[str, str]:
    counts = [(verdict, sum(p.verdict == verdict for p in strip.points)) for verdict in ("alert", "warning")]
    told = ", ".join(f"{k:,} {verdict}{'s' * (k != 1)}" for verdict, k in counts)
    return told, f"in {len(strip.points):,} window{'s' * (len(strip.points) != 1)}"


def _legend(strips: Sequence[AlarmStrip], onsets: bool, quiet: bool) -> list[Artist]:
    found = {p.verdict for strip in strips for p in strip.points}
    handles: list[Artist] = [
        Line2D([], [], linestyle="", marker=VERDICT_MARKERS[v], color=VERDICT_COLORS[v], ms=6.5, label=v)
        for v in ORDER
        if v in found
    ]
    handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (5, 2)), label="tolerance Δ"))
    if onsets:
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="known drift begins"))
    if quiet:
        handles.append(Patch(facecolor=BAND, label="known to be quiet"))
    return handles


def alarm_timeline(
    strips: Sequence[AlarmStrip],
    stem: str | os.PathLike[str],
    *,
    onsets: Sequence[tuple[datetime, str]] = (),
    quiet: Sequence[tuple[datetime, datetime]] = (),
    job: str = "",
    title: str | None = None,
) -> Picture:
    """Verdicts and scores over their tolerance, a panel a setting; known onsets as lines, (moment, name), quiet periods
    shaded, (start, end excluded). ArgumentError: more than ``MOST`` settings."""
    if len(strips) > MOST:
        raise ArgumentError(
            "this many settings do not fit one picture", field="strips", value=len(strips), allowed=f"0 to {MOST}"
        )
    points = [point for strip in strips for point in strip.points]
    period = period_name(points)
    title = title or f"What each {period} would have been called"
    subtitle = f"Score over tolerance; at the foot of each panel the verdict of each {period}, an alert the highest."
    subtitle = (f"job {style.shorten(job, 3, 9.5)}. " if job else "") + subtitle
    spans = [(day(p.window.start), day(p.window.end)) for p in points]
    known = sorted((moment, name) for moment, name in onsets)
    first, last = min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)
    inside = [(moment, name) for moment, name in known if first <= day(moment) <= last]
    outside = [f"{label(name)} ({moment:%Y-%m-%d})" for moment, name in known if not first <= day(moment) <= last]
    notes = [f"Scores under {LOWEST:g}x the tolerance, negative ones too, are drawn at {LOWEST:g}x."] if points else []
    if outside:
        more = f" and {len(outside) - 4:,} more" if len(outside) > 4 else ""
        notes.append(f"Onsets outside the time shown: {style.shorten(', '.join(outside[:4]), 7.5, 8.5)}{more}.")
    height = float(np.clip(5.2 / max(len(strips), 1), 0.8, 1.7))
    told = "; ".join(f"{label(strip.label)}: {' '.join(_tally(strip))}" for strip in strips[:3]) or "no settings"
    alt_text = f"{title}. {told}. {len(inside):,} known onsets."
    with drawing():
        names = _place_names(inside, spans) if spans else []
        nameless = sum(name.level is None for name in names)
        if nameless:
            notes.append(f"{nameless:,} of {len(names):,} onsets stand without their name: there is no room.")
        above = 0.18 * max((name.level + 1 for name in names if name.level is not None), default=0)
        body_height = 1.0 + above + (height + 0.12) * max(len(strips), 1)
        figure, body = sheet(WIDTH, body_height, title, subtitle, tuple(notes))
        if not points:
            style.empty(body.subplots(), "no window has been replayed yet")
            return save(figure, stem, title, alt_text)
        panels = body.subplots(len(strips), 1, sharex=True, squeeze=False)[:, 0]
        high = max(3.0, *(float(np.nanmax(ratios_of(s.points), initial=0.0)) for s in strips))
        for ax, strip in zip(panels, strips, strict=True):
            time_axis(ax, spans, _length(spans))
            draw_strip(ax, strip, high, height)
            ax.tick_params(labelbottom=ax is panels[-1])
            for start, end in quiet:
                a, b = max(day(start), first), min(day(end), last)
                if a < b:
                    ax.axvspan(a, b, facecolor=BAND, linewidth=0, zorder=1)
            for moment, _ in inside:
                ax.axvline(day(moment), color=INK, linewidth=1.1, zorder=2.1)
            _name_setting(ax, strip, height)
        _name_onsets(panels[0], names)
        legend_below(body, _legend(strips, bool(inside), bool(quiet)), 7)
        return save(figure, stem, title, alt_text)
