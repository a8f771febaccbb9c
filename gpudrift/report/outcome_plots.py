"""Pictures of product metrics beside the drift: on one time axis, lag by lag, and around spikes.

Each takes ``Outcomes``, draws one segment's findings in their order, ``MOST`` at the most, writes ``<stem>.png`` and
``<stem>.svg``, and returns them as a ``Picture``. They show what goes with what; nothing here says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from gpudrift.history import ALL
from gpudrift.outcomes.records import DriftSeries, Finding, Floats, Outcomes
from gpudrift.report import outcome_panels as panels
from gpudrift.report import style
from gpudrift.report.style import MUTED, Picture, drawing, label, legend_below, save, sheet, shorten
from gpudrift.report.timeaxis import day, time_axis
from gpudrift.report.wording import quantities

Stem = str | os.PathLike[str]
MOST = 6  # metrics of a picture
WIDTH, SIDES = 11.0, 1.1  # inches: of the page, and of what stands beside the axes
PAGES = {1: 7.4, 2: 9.6, 3: WIDTH}  # inches, by columns of panels
NOTHING = "There is no product metric to show beside this drift"


def timeline(outcomes: Outcomes, stem: Stem, *, segment: str = ALL, job: str = "", title: str | None = None) -> Picture:
    """The score above, each metric below, on the windows of the history; the lines break where there is no value.

    Windows that spike are shaded through all panels. Of each metric the mean of its quiet windows, the limit that 99%
    of new ones stay within on the worse side, and whether the last value lies beyond it.
    """
    findings, more = _chosen(outcomes, segment)
    title = title or "Drift and product metrics, window by window"
    drift = outcomes.drift.get(segment)
    values = [] if drift is None else [_on_calendar(outcomes, finding, drift) for finding in findings]
    if drift is None or not any(np.isfinite(own).any() for own in values):
        return _panels([], stem, title, _named(segment, job, more), panels.draw_lags, panels.lags_told, [])
    shown = np.isfinite(drift.scores) | np.isfinite(np.array(values)).any(axis=0)
    starts = np.array([day(window.start) for window in drift.windows])
    ends = np.array([day(window.end) for window in drift.windows])
    spans = [(float(a), float(b)) for a, b, known in zip(starts, ends, shown, strict=True) if known]
    breaks = "Lines break where a window has no value; the axis, where there is long none."
    subtitle = f"{_named(segment, job, more)}{breaks}"
    with drawing():
        figure, body = sheet(WIDTH, 2.3 + 1.32 * len(findings), title, subtitle)
        sizes = [1.4] + [1.0] * len(findings)
        axes = body.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
        for ax in axes:
            time_axis(ax, spans, float(np.median(ends - starts)), low=True)
            for first, last in panels.runs(drift.spikes.tolist()):
                ax.axvspan(starts[first], ends[last], facecolor=panels.SPIKE, alpha=0.8, linewidth=0, zorder=1.1)
            ax.tick_params(labelbottom=ax is axes[-1])
        middle = (starts + ends) / 2
        panels.draw_score(axes[0], drift, middle)
        for ax, finding, own in zip(axes[1:], findings, values, strict=True):
            panels.draw_metric(ax, finding, own, middle, WIDTH - SIDES)
        body.align_ylabels(axes.tolist())
        legend_below(body, panels.timeline_legend(drift, findings), 4)
        scored = int(np.isfinite(drift.scores).sum())
        told = f"{scored:,} windows with a score, {int(drift.spikes.sum()):,} of them spikes"
        return save(figure, stem, title, f"{title}: {told}. {' '.join(map(_level_told, findings))}")


def lag_profile(
    outcomes: Outcomes, stem: Stem, *, segment: str = ALL, job: str = "", title: str | None = None
) -> Picture:
    """Correlation of each metric with the score so many windows before it, both without trend and autocorrelation.

    The band holds 95% of the correlations of two unrelated series at one lag; the verdict on a metric is its q, of the
    largest over all lags.
    """
    findings, more = _chosen(outcomes, segment)
    title = title or "Which metrics move with the drift, and how many windows later"
    subtitle = (
        f"{_named(segment, job, more)}Correlation of a metric with the drift that many windows before; trend and "
        "autocorrelation are removed from both."
    )
    return _panels(findings, stem, title, subtitle, panels.draw_lags, panels.lags_told, panels.lags_legend(findings))


def event_study(
    outcomes: Outcomes, stem: Stem, *, segment: str = ALL, job: str = "", title: str | None = None
) -> Picture:
    """The mean of each metric around the windows in which a spike begins, less its mean before them, beside what as
    many quiet windows have around them."""
    findings, more = _chosen(outcomes, segment)
    title = title or "What the metrics do around spikes of the drift"
    subtitle = (
        f"{_named(segment, job, more)}Mean of the metric around the first windows of spikes, less its mean before "
        "them; the number is the change from before to after, with its 95% interval."
    )
    return _panels(
        findings, stem, title, subtitle, panels.draw_events, panels.events_told, panels.events_legend(findings)
    )


def events_to_draw(outcomes: Outcomes, *, segment: str = ALL) -> bool:
    """Whether any metric has been studied around spikes; else ``event_study`` has nothing but the reasons."""
    findings, _ = _chosen(outcomes, segment)
    return any(one.events is not None and bool(np.isfinite(one.events.profile).any()) for one in findings)


def _chosen(outcomes: Outcomes, segment: str) -> tuple[list[Finding], int]:
    """The segment's findings that are drawn, and how many are not."""
    own = [finding for finding in outcomes.findings if finding.segment == segment]
    return own[:MOST], max(len(own) - MOST, 0)


def _named(segment: str, job: str, more: int) -> str:
    parts = [f"job {shorten(job, 3, 9.5)}"] if job else []
    parts += [shorten(segment, 3, 9.5)] if segment != ALL else []
    parts += [f"the first {MOST} of {MOST + more:,} metrics"] if more else []
    return f"{', '.join(parts)}. " if parts else ""


def _on_calendar(outcomes: Outcomes, finding: Finding, drift: DriftSeries) -> Floats:
    """The metric on the windows of the drift, NaN where it has no value."""
    series = outcomes.series[finding.metric, finding.segment]
    known = {window.start: value for window, value in zip(series.windows, series.values.tolist(), strict=True)}
    return np.array([known.get(window.start, np.nan) for window in drift.windows], dtype=np.float64)


def _level_told(finding: Finding) -> str:
    level = finding.level
    told = f"{label(finding.metric)}, {panels.direction(finding)[2:]}: {panels.last_told(level)}"
    return told + (f" (usual {quantities(level.value, level.limit, level.usual)[2]})." if level is not None else ".")


def _panels(
    findings: Sequence[Finding],
    stem: Stem,
    title: str,
    subtitle: str,
    draw: Callable[[Axes, Finding], bool],
    told: Callable[[Finding], tuple[str, ...]],
    handles: Sequence[Artist],
) -> Picture:
    """A panel a metric, its finding in words above it; the words alone where there is nothing to draw."""
    columns, rows = min(max(len(findings), 1), 3), max(-(-len(findings) // 3), 1)
    words = [f"{label(finding.metric)}: {label('; '.join(told(finding)))}." for finding in findings]
    alt_text = f"{title}. {' '.join(words) or NOTHING + '.'}"
    with drawing():
        figure, body = sheet(PAGES[columns], 0.6 + 2.75 * rows, title, subtitle)
        axes = body.subplots(rows, columns, squeeze=False).ravel()
        room = PAGES[columns] / columns - SIDES
        drawn = [_panel(ax, finding, draw, told(finding), room) for ax, finding in zip(axes, findings, strict=False)]
        if not any(drawn):
            return _words(words or [NOTHING + "."], stem, title, subtitle, alt_text)
        for ax in axes[len(findings) :]:
            style.empty(ax, "")
        legend_below(body, handles, columns + 1)
        return save(figure, stem, title, alt_text)


def _panel(ax: Axes, finding: Finding, draw: Callable[[Axes, Finding], bool], told: Sequence[str], room: float) -> bool:
    name = shorten(finding.metric, room, 10, "bold")
    if not draw(ax, finding):
        style.empty(ax, "")
        ax.set_title(name)
        whole = "\n".join(style.wrap("; ".join(told), room, 9.5))
        ax.text(0.5, 0.5, whole, transform=ax.transAxes, ha="center", va="center", color=MUTED)
        return False
    ax.set_title(name, pad=6 + 12 * len(told))
    ax.annotate(
        "\n".join(shorten(line, room, 8.5) for line in told),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        va="bottom",
        fontsize=8.5,
        color=MUTED,
    )
    return True


def _words(words: Sequence[str], stem: Stem, title: str, subtitle: str, alt_text: str) -> Picture:
    """A page on which nothing can be drawn: why, in a sentence a metric."""
    lines = [line for sentence in words for line in style.wrap(sentence, WIDTH - 0.6, 9.5)]
    figure, body = sheet(WIDTH, 0.5 + 0.22 * len(lines), title, subtitle)
    ax = body.subplots()
    style.empty(ax, "")
    ax.text(0.004, 0.5, "\n".join(lines), transform=ax.transAxes, ha="left", va="center", linespacing=1.5)
    return save(figure, stem, title, alt_text)
