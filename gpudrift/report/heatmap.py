"""Segments over time: how far each lies from its own usual movement, window by window."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from gpudrift.errors import ArgumentError
from gpudrift.records import Verdict, Window
from gpudrift.report import style
from gpudrift.report.density import Floats
from gpudrift.report.style import (
    CARD,
    GRID,
    INK,
    MUTED,
    VERDICT_MARKERS,
    Picture,
    drawing,
    label,
    legend_below,
    save,
    sheet,
)
from gpudrift.report.wording import times

ROWS, WINDOWS = 30, 60  # most segments and windows shown
EDGES = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the score over its tolerance, between two colours
# Darker is further, in black and white too; beyond the tolerance (from the third on) blue turns to orange.
COLORS = ("#eef3f8", "#cfdeeb", "#f9b98a", "#ee7f35", "#b63c04", "#5e1200")
LIGHT_MARK = 2.0  # from this ratio on a cell is dark enough for a light mark
WIDTH, ROOM = 11.0, 2.5  # inches, of the page and for the names of the segments
RANK: dict[Verdict, int] = {"alert": 3, "warning": 2, "stable": 1, "insufficient": 0}


@dataclass(frozen=True)
class HeatCell:
    """A segment in a window. segment: ``column=value``; ratio: its score over its tolerance delta, None where it has no
    score."""

    segment: str
    window: Window
    ratio: float | None
    verdict: Verdict


def _known(cell: HeatCell) -> bool:
    return cell.ratio is not None and np.isfinite(cell.ratio) and cell.verdict != "insufficient"


def chosen_segments(cells: Sequence[HeatCell]) -> list[str]:
    """At most ``ROWS`` segments: by their last window's verdict, then by their largest ratio, then by name."""
    rows: dict[str, list[HeatCell]] = {}
    for cell in cells:
        rows.setdefault(cell.segment, []).append(cell)
    last = max((cell.window for cell in cells), default=None)

    def key(segment: str) -> tuple[int, float, str]:
        now = next((RANK[c.verdict] for c in rows[segment] if c.window == last), -1)
        largest = max((c.ratio for c in rows[segment] if c.ratio is not None and _known(c)), default=-np.inf)
        return -now, -largest, segment

    return sorted(rows, key=key)[:ROWS]


def _window_ticks(windows: Sequence[Window], width: float) -> list[int]:
    """Columns whose labels fit side by side on an axis of ``width`` inches; the last one among them."""
    widest = max(style.text_width(label(window.label), 9) for window in windows) + 0.2
    step = max(1, int(np.ceil(widest * len(windows) / width)))
    return list(range(len(windows) - 1, -1, -step))[::-1]


def draw_heatmap(
    ax: Axes, cells: Sequence[HeatCell], segments: Sequence[str], windows: Sequence[Window], width: float
) -> list[Artist]:
    """A cell each segment and window that ``cells`` has, the first segment on top; ``width`` of the axes in inches.
    Returns the legend's entries."""
    row_of, column_of = ({item: k for k, item in enumerate(items)} for items in (segments, windows))
    shown = [
        (column_of[c.window], row_of[c.segment], c) for c in cells if c.segment in row_of and c.window in column_of
    ]
    ratios: Floats = np.full((len(segments), len(windows)), np.nan)
    for x, y, cell in shown:
        if cell.ratio is not None and _known(cell):
            ratios[y, x] = cell.ratio
    ax.pcolormesh(
        np.arange(len(windows) + 1) - 0.5,
        np.arange(len(segments) + 1) - 0.5,
        np.ma.masked_invalid(ratios),
        cmap=ListedColormap(list(COLORS)),
        norm=BoundaryNorm([-1e300, *EDGES, 1e300], len(COLORS)),
        edgecolors=CARD,
        linewidth=0.8 if len(windows) <= 40 else 0.4,
        zorder=1.5,
    )
    blank = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y, cell in shown if not _known(cell)]
    hatch = {"facecolor": CARD, "edgecolor": "#c3cad2", "hatch": "/////", "linewidth": 0.0}
    if blank:
        ax.add_collection(PatchCollection(blank, zorder=1.6, **hatch))  # type: ignore[arg-type]
    size = float(np.clip(38 * width / max(len(windows), 1) / 1.6, 2.5, 6.5))
    marks: tuple[Verdict, ...] = ("warning", "alert")
    for verdict in marks:
        for light in (False, True):
            found = [(x, y) for x, y, c in shown if c.verdict == verdict and ((c.ratio or 0.0) >= LIGHT_MARK) == light]
            ax.plot(
                [x for x, _ in found],
                [y for _, y in found],
                VERDICT_MARKERS[verdict],
                color=CARD if light else INK,
                ms=size,
                mew=0,
                zorder=2.5,
            )
    for k, (before, after) in enumerate(pairwise(windows)):
        if after.start > before.end:  # windows are missing in between
            ax.axvline(k + 0.5, color=MUTED, linewidth=1.1, linestyle=(0, (3, 2)), zorder=2)
    ax.set_xlim(-0.5, len(windows) - 0.5)
    ax.set_ylim(len(segments) - 0.5, -0.5)
    ticks = _window_ticks(windows, width)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_xticklabels([label(windows[k].label) for k in ticks])
    ax.yaxis.set_major_locator(FixedLocator(list(range(len(segments)))))
    ax.set_yticklabels([style.shorten(segment, ROOM, 9) for segment in segments], fontsize=9, color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    handles: list[Artist] = [
        Patch(facecolor=color, edgecolor=GRID, label=text)
        for color, text in zip(
            COLORS,
            (
                f"under {EDGES[0]:g}x its tolerance",
                f"{EDGES[0]:g}x to {EDGES[1]:g}x",
                *(f"{a:g}x to {b:g}x" for a, b in pairwise(EDGES[1:])),
                f"{EDGES[-1]:g}x or more",
            ),
            strict=True,
        )
    ]
    handles += [
        Line2D([], [], linestyle="", marker=VERDICT_MARKERS[verdict], color=INK, ms=6, label=verdict)
        for verdict in marks
        if any(c.verdict == verdict for _, _, c in shown)
    ]
    if blank:
        handles.append(Patch(**hatch, label="insufficient"))  # type: ignore[arg-type]
    return handles


def segment_heatmap(
    cells: Sequence[HeatCell], stem: str | os.PathLike[str], *, job: str = "", title: str | None = None
) -> Picture:
    """Segments (rows) over windows (columns) by their score against their tolerance; at most ``ROWS`` segments and the
    last ``WINDOWS`` windows. ArgumentError: two cells of one segment and window."""
    seen: set[tuple[str, Window]] = set()
    for cell in cells:
        if (cell.segment, cell.window) in seen:
            raise ArgumentError(
                "a segment is there twice in one window",
                field="cells",
                value=(cell.segment, cell.window.label),
                allowed="one cell a segment and window",
            )
        seen.add((cell.segment, cell.window))
    windows = sorted({cell.window for cell in cells})
    recent = windows[-WINDOWS:]
    within = [cell for cell in cells if cell.window in set(recent)]
    every = len({cell.segment for cell in cells})
    segments = chosen_segments(within)
    title = title or "How far each segment lies from its own reference"
    counted = f"{len(segments):,} of {every:,} segments" if every > len(segments) else f"segments: {every:,}"
    counted += f", the last {len(recent):,} of {len(windows):,} windows" if len(windows) > len(recent) else ""
    subtitle = (f"job {style.shorten(job, 3, 9.5)}, " if job else "") + counted
    subtitle += ". Colour: score over tolerance Δ; the worst of the last window on top. Dashed: windows are missing."
    with drawing():
        figure, body = sheet(WIDTH, 1.15 + 0.235 * max(len(segments), 3), title, subtitle)
        ax = body.subplots()
        if segments:
            names = max(style.text_width(style.shorten(segment, ROOM, 9), 9) for segment in segments)
            handles = draw_heatmap(ax, within, segments, recent, WIDTH - 0.6 - names)
            legend_below(body, handles, 5, handlelength=1.4)
        else:
            style.empty(ax, "no segments were scored")
        worst = [
            f"{label(c.segment)} {c.verdict}, {times(c.ratio)} its tolerance"
            for segment in segments[:3]
            for c in within
            if c.segment == segment and c.window == recent[-1] and c.verdict in ("warning", "alert")
        ]
        told = f" In {label(recent[-1].label)}: {'; '.join(worst) or 'no segment beyond'}." if recent else ""
        return save(figure, stem, title, f"{title}: {counted}.{told}")
