"""The score's history drawn on axes: every window's distance from the reference beside the movement that is usual."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report import style
from gpudrift.report.style import CARD, INK, MUTED, REFERENCE, VERDICT_COLORS, VERDICT_MARKERS, label
from gpudrift.report.timeaxis import LEAST_WINDOWS, day, time_axis
from gpudrift.report.wording import number, times

Floats = NDArray[np.float64]
LINEAR_SHARE = 0.25  # of a decade: height of the linear part of the score's axis, from 0 to the null sd
JOIN = "#9aa5b1"  # what joins the scores, and their intervals
ORDER: tuple[Verdict, ...] = ("stable", "warning", "alert", "insufficient")


def period_name(points: Sequence[HistoryPoint]) -> str:
    """What one window is: ``day``, ``week``, ``month``, else ``window``."""
    days = {round((p.window.end - p.window.start) / timedelta(days=1)) for p in points}
    for name, lengths in (("day", {1}), ("week", {7}), ("month", {28, 29, 30, 31})):
        if days and days <= lengths:
            return name
    return "window"


def _numbers(values: Sequence[float | None]) -> Floats:
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _carried(values: Floats) -> Floats:
    """Every NaN replaced by the last value before it, leading ones by the first value after them."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return values
    return values[known[np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)]]


def null_scale(points: Sequence[HistoryPoint]) -> float:
    """Where the score's axis turns from linear to logarithmic: the windows' median null sd, the resolution of the
    score; without one, the smallest score that is not zero."""
    sds = _numbers([p.null_sd for p in points])
    sds = sds[sds > 0]
    if len(sds):
        return float(np.median(sds))
    scores = np.abs(_numbers([p.score for p in points]))
    scores = scores[scores > 0]
    return float(scores.min()) if len(scores) else 1.0


def _score_ticks(low: float, high: float, linear: float, most: int) -> list[float]:
    decades = np.arange(np.floor(np.log10(linear)) - 1, np.ceil(np.log10(max(high, linear * 10))) + 1)
    found: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [float(digit * 10.0**decade) for decade in decades for digit in digits]
        found = [tick for tick in found if 1.4 * linear <= tick <= high]
        if len(found) <= most:
            break
    found = found[:: -(-len(found) // most) if found else 1]
    below = [-tick for tick in found if -tick >= low]
    return [*below[::-1], 0.0, *found]


def _apart(ticks: Sequence[float], heights: Floats, least: float) -> list[float]:
    """Those of the ascending ticks, 0 first, that stand at least ``least`` of the axis apart."""
    kept: list[int] = []
    for k in sorted(range(len(ticks)), key=lambda k: (abs(ticks[k]), k)):
        if all(abs(heights[k] - heights[other]) >= least for other in kept):
            kept.append(k)
    return [ticks[k] for k in sorted(kept)]


def draw_history(
    ax: Axes,
    points: Sequence[HistoryPoint],
    *,
    current_label: str | None = None,
    reference_span: tuple[datetime, datetime] | None = None,
    compact: bool = False,
) -> list[Artist]:
    """Scores with 95% intervals against time; returns the legend's entries.

    The score's axis is linear from 0 to the null sd (what n rows cannot resolve) and logarithmic beyond, negative
    scores included. The band is the usual movement, up to each window's p_AA = .05 limit; the dashed line is Delta, its
    99% limit. Windows without a score stand at the foot. The line breaks where windows are missing.
    """
    points = sorted(points, key=lambda p: p.window)
    if not points:
        style.empty(ax, "no window has been scored yet")
        return []
    starts = np.array([day(p.window.start) for p in points])
    ends = np.array([day(p.window.end) for p in points])
    middle, length = (starts + ends) / 2, float(np.median(ends - starts))
    scores, half = _numbers([p.score for p in points]), 1.96 * np.nan_to_num(_numbers([p.se for p in points]))
    clear, delta = (_numbers([getattr(p, name) for p in points]) for name in ("clear_limit", "delta"))
    scored = np.isfinite(scores)

    linear = null_scale(points)
    high = float(np.nanmax(np.concatenate([scores + half, clear, delta, [2 * linear]])))
    low = float(np.nanmin(np.concatenate([scores - half, [0.0]])))  # half: 0 where there is no interval
    ax.set_yscale("symlog", linthresh=linear, linscale=LINEAR_SHARE)
    scale = ax.yaxis.get_transform()
    bottom, top = (float(v) for v in scale.transform(np.array([low, high])))
    room = top - bottom
    foot = 0.14 if not scored.all() else 0.05
    limits = scale.inverted().transform(np.array([bottom - foot * room, top + (0.22 if compact else 0.16) * room]))
    ax.set_ylim(float(limits[0]), float(limits[1]))
    ticks = _score_ticks(low, high, linear, 4 if compact else 7)
    heights = scale.transform(np.array(ticks)) / (float(np.ptp(scale.transform(limits))) or 1.0)
    ax.yaxis.set_major_locator(FixedLocator(_apart(ticks, heights, 0.19 if compact else 0.07)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(style.plain_tick)
    ax.set_ylabel("Score" if compact else "Energy distance, embedding units\n(linear below the null sd)")

    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    inside = None
    if reference_span is not None:
        a, b = (day(moment) for moment in reference_span)
        shown = max(float(ends.max()) - float(starts.min()), LEAST_WINDOWS * length)
        # A reference far from the points would only squeeze them: then the words tell where it is.
        if a <= float(ends.max()) and b >= float(starts.min()) - 2 * shown:
            spans.append((a, b))
            inside = (a, b)
    left, right = time_axis(ax, spans, length, compact)
    handles: list[Artist] = []

    # The limits belong to the reference: drawn over the whole axis, the nearest window's beyond the first and last.
    steps = np.concatenate([[left], starts[1:], [right]])
    if np.isfinite(clear).any():
        upper = np.append(_carried(clear), _carried(clear)[-1])
        ax.fill_between(steps, float(limits[0]), upper, step="post", color=style.BAND, lw=0, zorder=1)
        handles.append(Patch(facecolor=style.BAND, label="usual movement (to its 95% limit)"))
    if np.isfinite(delta).any():
        dashes = (0, (5, 2))
        upper = np.append(_carried(delta), _carried(delta)[-1])
        ax.step(steps, upper, where="post", color=MUTED, linewidth=1.2, linestyle=dashes, zorder=1.9)
        handles.append(
            Line2D([], [], color=MUTED, linewidth=1.2, linestyle=dashes, label="tolerance Δ (its 99% limit)")
        )
    if inside is not None:
        ax.axvspan(*inside, facecolor=REFERENCE, alpha=0.1, linewidth=0, zorder=1.2)
        for edge in inside:
            ax.axvline(edge, color=REFERENCE, linewidth=0.8, alpha=0.5, zorder=1.3)
        ax.annotate(
            "reference",
            (max(inside[0], left), 1),
            xycoords=("data", "axes fraction"),
            xytext=(1, 2),
            textcoords="offset points",
            color=REFERENCE,
            fontsize=8 if compact else 9,
            va="bottom",
        )

    dense = len(points) > 120
    broken_x, broken_y = [], []
    for k in range(len(points)):
        if k and (starts[k] - ends[k - 1] > 0.01 * length):
            broken_x.append(starts[k])
            broken_y.append(np.nan)
        broken_x.append(middle[k])
        broken_y.append(scores[k])
    ax.plot(broken_x, broken_y, color=JOIN, linewidth=0.8 if dense else 1.2, zorder=2)
    size = (3.2 if dense else 6.0) * (0.8 if compact else 1.0)
    ax.errorbar(
        middle[scored],
        scores[scored],
        yerr=half[scored],
        fmt="none",
        ecolor=JOIN,
        elinewidth=0.5 if dense else 1.1,
        capsize=0 if dense or compact else 2.5,
        alpha=0.55 if dense else 1.0,
        zorder=2.1,
    )
    hollow = np.array([p.in_reference for p in points])
    present: list[Verdict] = [verdict for verdict in ORDER if any(p.verdict == verdict for p in points)]
    for rank, verdict in enumerate(present):
        color, marker = VERDICT_COLORS[verdict], VERDICT_MARKERS[verdict]
        chosen = np.array([p.verdict == verdict for p in points])
        factor = 1.25 if verdict in ("warning", "alert") else 1.0
        for pick, face in ((chosen & scored & ~hollow, color), (chosen & scored & hollow, CARD)):
            ax.plot(
                middle[pick],
                scores[pick],
                linestyle="",
                marker=marker,
                markersize=size * factor,
                color=color,
                markerfacecolor=face,
                markeredgewidth=0.9 if dense else 1.2,
                zorder=3 + 0.1 * rank,
                rasterized=False,
            )
        missing = chosen & ~scored
        ax.plot(
            middle[missing],
            np.full(int(missing.sum()), 0.045),
            linestyle="",
            marker=marker,
            markersize=size * 1.2,
            color=color,
            transform=ax.get_xaxis_transform(),
            zorder=3,
        )
        text = f"{verdict} ({int(chosen.sum())})" + (", at the foot: no score" if missing.any() else "")
        handles.append(Line2D([], [], linestyle="", marker=marker, markersize=6.5, color=color, label=text))
    if (hollow & scored).any():
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=6.5,
                color=MUTED,
                markerfacecolor=CARD,
                label="hollow: inside the reference, scored without itself",
            )
        )
    _emphasise(ax, points, current_label, middle, scores, size, compact)
    return handles


def _emphasise(
    ax: Axes,
    points: Sequence[HistoryPoint],
    current: str | None,
    middle: Floats,
    scores: Floats,
    size: float,
    compact: bool,
) -> None:
    """A ring around the current window and its score in words, on the side that has room."""
    places = [k for k, p in enumerate(points) if p.window.label == current]
    if not places:
        return
    k = places[-1]
    known = bool(np.isfinite(scores[k]))
    at = (float(middle[k]), float(scores[k]) if known else 0.045)
    frame = ax.transData if known else ax.get_xaxis_transform()
    ax.plot(*at, "o", markersize=size + 8, mfc="none", mec=INK, mew=1.4, transform=frame, zorder=4.5, clip_on=False)
    # by the place on the axis, which may be broken, not by the date
    leftwards = ax.transAxes.inverted().transform(ax.get_xaxis_transform().transform((at[0], 0.0)))[0] > 0.5
    words = label(points[k].window.label)
    words += f": {style.minus(number(scores[k]))}" if known else ": no score"
    if known and points[k].ratio is not None and not compact:
        words += f", {times(points[k].ratio)} usual"
    # In the room kept free at the top, joined to its point: over the points it would hide some.
    ax.annotate(
        words,
        at,
        xycoords=frame,
        xytext=(at[0], 0.985),
        textcoords=("data", "axes fraction"),
        ha="right" if leftwards else "left",
        va="top",
        fontsize=8 if compact else 9.5,
        fontweight="bold",
        arrowprops={
            "arrowstyle": "-",
            "color": INK,
            "linewidth": 0.8,
            "relpos": (1.0 if leftwards else 0.0, 0.0),
            "shrinkA": 1,
            "shrinkB": (size + 8) / 2,
        },
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "none", "edgecolor": "none"},  # where the arrow starts
        path_effects=[withStroke(linewidth=2.5, foreground=CARD)],  # readable across the lines behind
        zorder=5,
    )
