"""Product metrics drawn on axes: a score or a metric over time, correlations by lag, changes around spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from gpudrift.outcomes.records import DriftSeries, EventStudy, Finding, Floats, Level
from gpudrift.report import style
from gpudrift.report.style import BAND, CARD, INK, MUTED, REFERENCE, VERDICT_COLORS, label, minus, shorten
from gpudrift.report.timeline import JOIN, LINEAR_SHARE
from gpudrift.report.wording import number, p_value, quantities, quantity

SPIKE, BAD, GOOD = "#fbd9c8", VERDICT_COLORS["alert"], VERDICT_COLORS["stable"]
DENSE = 120  # windows from which on points are small
_LIMIT = (0, (5, 2))


def draw_score(ax: Axes, drift: DriftSeries, middle: Floats) -> None:
    """The scores on the history's scale: linear up to the null sd, logarithmic beyond. middle: (k,) days."""
    scores = drift.scores
    known = np.isfinite(scores)
    noise = np.exp(drift.log_scores[known]) - np.maximum(scores[known], 0.0)
    noise = noise[np.isfinite(noise) & (noise > 0)]
    highest = float(np.abs(scores[known]).max(initial=0.0)) or 1.0
    linear = float(np.median(noise)) if len(noise) else highest / 10
    ax.set_yscale("symlog", linthresh=linear, linscale=LINEAR_SHARE)
    scale = ax.yaxis.get_transform()
    ends = scale.transform(np.array([min(float(scores[known].min(initial=0.0)), 0.0), max(highest, 3 * linear)]))
    room = float(ends[1] - ends[0])
    low, high = scale.inverted().transform(np.array([ends[0] - 0.08 * room, ends[1] + 0.12 * room]))
    ax.set_ylim(float(low), float(high))
    decades = 10.0 ** np.arange(math.floor(math.log10(linear)), math.ceil(math.log10(float(high))) + 1)
    ticks = decades[(decades > 1.4 * linear) & (decades < high)]
    ticks = ticks[:: -(-len(ticks) // 4)] if len(ticks) > 1 else np.array([2.0, 6.0]) * linear
    ax.yaxis.set_major_locator(FixedLocator([0.0, *(float(f"{tick:.1g}") for tick in ticks)]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(style.plain_tick)
    size = _joined(ax, middle, scores)
    calm = known & ~drift.spikes
    ax.plot(middle[calm], scores[calm], "o", ms=size, color=REFERENCE, mew=0, zorder=3)
    ax.plot(middle[drift.spikes], scores[drift.spikes], "D", ms=1.15 * size, color=BAD, mew=0, zorder=3.1)
    ax.set_title("Drift: energy distance from the reference")
    _last(ax, f"{int(drift.spikes.sum()):,} of {int(known.sum()):,} windows spike", False)


def draw_metric(ax: Axes, finding: Finding, values: Floats, middle: Floats, width: float) -> None:
    """values: (k,) on the windows ``middle``; width: inches of the axes."""
    known = np.isfinite(values)
    level = finding.level
    size = _joined(ax, middle, values)
    ax.plot(middle[known], values[known], "o", ms=size, color=INK, mew=0, zorder=3)
    heights = [*values[known].tolist()]
    if level is not None:
        ax.axhspan(*sorted((level.usual, level.limit)), facecolor=BAND, linewidth=0, zorder=1.0)
        ax.axhline(level.usual, color=REFERENCE, linewidth=1.1, zorder=1.8)
        ax.axhline(level.limit, color=MUTED, linewidth=1.2, linestyle=_LIMIT, zorder=1.9)
        heights += [level.usual, level.limit]
        place = int(np.flatnonzero(known)[-1])
        marker, color = ("D", BAD) if level.degraded else ("o", INK)
        at = (middle[place], values[place])
        ax.plot(*at, marker, ms=size + 2, color=color, mew=0, zorder=4)
        ax.plot(*at, "o", ms=size + 8, mfc="none", mec=color, mew=1.3, zorder=4.5, clip_on=False)
    if heights:
        low, high = min(heights), max(heights)
        room = 0.14 * (high - low) or 0.1 * abs(high) or 1.0
        ax.set_ylim(low - room, high + room)
    ax.yaxis.set_major_locator(style.ticks(3))
    ax.yaxis.set_major_formatter(style.plain_tick)
    told = last_told(level)
    taken = style.text_width(told, 9, "bold") + style.text_width(f"   {direction(finding)}", 9) + 0.3
    name = shorten(finding.metric, max(width - taken, 1.0), 10, "bold")
    ax.set_title(name)
    ax.annotate(
        direction(finding),
        (0, 1),
        xycoords="axes fraction",
        xytext=(72 * style.text_width(name, 10, "bold") + 9, 6),
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
    )
    _last(ax, told, level is not None and level.degraded)


def direction(finding: Finding) -> str:
    return "↓ lower is worse" if finding.worse == "lower" else "↑ higher is worse"


def last_told(level: Level | None) -> str:
    if level is None:
        return "no limit: too few quiet windows, or no value of late"
    value, limit = map(minus, quantities(level.value, level.limit, level.usual)[:2])
    return f"{label(level.window)}: {value}, {'beyond' if level.degraded else 'within'} its limit {limit}"


def timeline_legend(drift: DriftSeries, findings: Sequence[Finding]) -> list[Artist]:
    handles: list[Artist] = [Line2D([], [], linestyle="", marker="o", ms=6, color=REFERENCE, label="score")]
    if drift.spikes.any():
        handles.append(Line2D([], [], linestyle="", marker="D", ms=6, color=BAD, label="a spike"))
        handles.append(Patch(facecolor=SPIKE, label="windows that spike"))
    handles.append(Line2D([], [], linestyle="", marker="o", ms=6, color=INK, label="metric"))
    levels = [finding.level for finding in findings if finding.level is not None]
    if levels:
        handles.append(Line2D([], [], color=REFERENCE, linewidth=1.1, label="its usual: mean of quiet windows"))
        handles.append(
            Line2D([], [], color=MUTED, linewidth=1.2, linestyle=_LIMIT, label="its limit: 99% of quiet windows")
        )
        ring = {"linestyle": "", "marker": "o", "ms": 9, "mfc": "none", "mew": 1.3}
        handles.append(Line2D([], [], color=INK, label="last value", **ring))  # type: ignore[arg-type]
    if any(level.degraded for level in levels):
        handles.append(Line2D([], [], linestyle="", marker="D", ms=7, color=BAD, label="beyond its limit"))
    return handles


def runs(chosen: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last place of each stretch of neighbours that are chosen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(chosen, dtype=np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def draw_lags(ax: Axes, finding: Finding) -> bool:
    """Whether there was something to draw."""
    if not finding.lags:
        return False
    lags = np.array([effect.lag for effect in finding.lags])
    r = np.array([effect.r for effect in finding.lags])
    # r of two unrelated series, Fisher (1921): atanh r is about normal with variance 1 / (n - 3)
    band = np.array([math.tanh(1.96 / math.sqrt(max(effect.n - 3, 1))) for effect in finding.lags])
    for lag, reach in zip(lags, band, strict=True):
        ax.fill_between([lag - 0.5, lag + 0.5], -reach, reach, color=BAND, lw=0, zorder=1)
    ax.axhline(0, color=MUTED, linewidth=0.8, zorder=1.5)
    best = np.array([effect.lag == finding.lag for effect in finding.lags])
    colors = {"worse": BAD, "better": GOOD}
    for chosen, color, size in ((~best, INK, 6), (best, colors.get(finding.link, INK), 9)):
        ax.vlines(lags[chosen], 0, r[chosen], color=color, linewidth=2.2, zorder=2)
        ax.plot(lags[chosen], r[chosen], "D" if chosen is best else "o", ms=size, color=color, mec=CARD, zorder=3)
    reach = min(1.0, 1.2 * float(max(np.abs(r).max(), band.max(), 0.25)))
    ax.set_ylim(-reach, reach)
    ax.set_xlim(lags.min() - 0.5, lags.max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.yaxis.set_major_locator(style.ticks(4))
    ax.yaxis.set_major_formatter(style.plain_tick)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("windows after the drift")
    ax.set_ylabel(f"correlation ({_side(finding)})")
    return True


def lags_told(finding: Finding) -> tuple[str, ...]:
    if not finding.lags or finding.r is None or finding.lag is None:
        return (f"too few windows: {finding.windows:,} with both a score and a value",)
    when = f"{finding.lag} window{'s' * (finding.lag != 1)} later" if finding.lag else "in the same window"
    words = {"worse": "worse as drift rises", "better": "better as drift rises"}.get(finding.link, "no link found")
    verdict = f"{words}, q {p_value(finding.q)}"
    if finding.link == "insufficient":
        verdict = f"insufficient windows: {finding.windows:,}"
    return verdict, f"largest: {minus(number(finding.r, 2))}, {when}"


def lags_legend(findings: Sequence[Finding]) -> list[Artist]:
    handles: list[Artist] = [Patch(facecolor=BAND, label="95% of unrelated series, at one lag")]
    handles.append(Line2D([], [], linestyle="", marker="D", ms=7, color=INK, label="the largest"))
    for link, color, words in (("worse", BAD, "worse as drift rises"), ("better", GOOD, "better as drift rises")):
        if any(finding.link == link for finding in findings):
            handles.append(Line2D([], [], linestyle="", marker="D", ms=7, color=color, label=words))
    return handles


def draw_events(ax: Axes, finding: Finding) -> bool:
    """Whether there was something to draw."""
    events = finding.events
    if events is None or not np.isfinite(events.profile).any():
        return False
    offsets = np.array(events.offsets)
    banded = np.isfinite(events.low) & np.isfinite(events.high)
    ax.fill_between(offsets, events.low, events.high, where=banded.tolist(), color=BAND, lw=0, zorder=1)
    ax.axhline(0, color=MUTED, linewidth=0.8, zorder=1.5)
    ax.axvline(-0.5, color=BAD, linewidth=1.2, linestyle=_LIMIT, zorder=1.6)
    ax.plot(offsets, events.profile, "-", color=JOIN, linewidth=1.4, zorder=2)
    for later, color in ((False, INK), (True, BAD if _worsens(finding, events) else INK)):
        chosen = (offsets >= 0) == later
        ax.plot(offsets[chosen], events.profile[chosen], "o", ms=6.5, color=color, mec=CARD, zorder=3)
    heights = np.concatenate([events.profile, events.low, events.high, [0.0]])
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    room = 0.16 * (high - low) or 1.0
    ax.set_ylim(low - room, high + room)
    ax.set_xlim(offsets.min() - 0.5, offsets.max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    ax.xaxis.set_major_formatter(style.plain_tick)
    ax.yaxis.set_major_locator(style.ticks(4))
    ax.yaxis.set_major_formatter(style.plain_tick)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("windows from the first that spikes")
    ax.set_ylabel(f"change ({_side(finding)})")
    return True


def events_told(finding: Finding) -> tuple[str, ...]:
    events = finding.events
    if events is None or events.change is None:
        return ((events.reason if events is not None else "") or "not studied",)
    interval = "" if events.ci is None else f" (95% {' to '.join(minus(quantity(end)) for end in events.ci)})"
    change = f"{minus(quantity(events.change))}{interval}"
    return change, f"p {p_value(events.p)}, {len(events.onsets):,} spikes begin"


def events_legend(findings: Sequence[Finding]) -> list[Artist]:
    handles: list[Artist] = [
        Patch(facecolor=BAND, label="95% of as many quiet windows"),
        Line2D([], [], color=BAD, linewidth=1.2, linestyle=_LIMIT, label="a spike begins"),
        Line2D([], [], linestyle="", marker="o", ms=6.5, color=INK, label="mean of the metric"),
    ]
    if any(finding.events is not None and _worsens(finding, finding.events) for finding in findings):
        handles.append(
            Line2D([], [], linestyle="", marker="o", ms=6.5, color=BAD, label="worse than before (p < 0.05)")
        )
    return handles


def _worsens(finding: Finding, events: EventStudy) -> bool:
    if events.change is None or events.p is None or not events.p < 0.05:
        return False
    return events.change < 0 if finding.worse == "lower" else events.change > 0


def _side(finding: Finding) -> str:
    """Where a metric that moves with the drift, or after a spike, gets worse."""
    return f"{'below' if finding.worse == 'lower' else 'above'} 0: worse"


def _joined(ax: Axes, middle: Floats, values: Floats) -> float:
    """The line through the values, broken at gaps; returns the size of the points."""
    dense = int(np.isfinite(values).sum()) > DENSE
    ax.plot(middle, values, color=JOIN, linewidth=0.8 if dense else 1.2, zorder=2)
    return 2.6 if dense else 4.6


def _last(ax: Axes, told: str, bad: bool) -> None:
    ax.set_title(told, loc="right", fontsize=9, color=BAD if bad else MUTED, fontweight="bold" if bad else "normal")
