"""Who moved: the share of the rows each cluster has in the reference and in the current window."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from gpudrift.records import ClusterShift, ShiftKind
from gpudrift.report import style
from gpudrift.report.lines import cluster_examples, cluster_name, part_of_score
from gpudrift.report.style import BAND, CARD, GRID, INK, MUTED, Picture, drawing, label, legend_below, save, sheet
from gpudrift.report.wording import count

MOST = 14  # clusters drawn one by one
LARGEST = 4  # of them, at least so many by size, told apart or not
Z95 = 1.96
ROOM = 3.0  # inches, for what a cluster is called and for examples of its rows
# Told apart by colour, by lightness and by shape, as the verdicts are.
KIND_COLORS: dict[ShiftKind, str] = {
    "new": "#7d2700",
    "grown": "#d4500f",
    "same": "#6f7a86",
    "shrunk": "#2a68a5",
    "gone": "#0f2f52",
}
KIND_MARKERS: dict[ShiftKind, str] = {"new": "*", "grown": ">", "same": "o", "shrunk": "<", "gone": "X"}
KIND_SIZES: dict[ShiftKind, float] = {"new": 12.0, "grown": 8.0, "same": 6.5, "shrunk": 8.0, "gone": 8.5}


def chosen_clusters(shifts: Sequence[ClusterShift]) -> tuple[list[ClusterShift], list[ClusterShift]]:
    """Those drawn one by one, grown most first, and the rest: all that have changed and the largest few, at most
    ``MOST``, of which those that make up most of the score stay."""
    by_size = sorted(shifts, key=lambda s: (-max(s.share, s.reference_share), s.index))
    wanted = {s.index for s in by_size[:LARGEST]} | {s.index for s in shifts if s.kind != "same"}
    ranked = sorted(shifts, key=lambda s: (s.kind == "same", -abs(s.contribution), s.index))
    kept = {s.index for s in [s for s in ranked if s.index in wanted][:MOST]}
    drawn = sorted((s for s in shifts if s.index in kept), key=lambda s: (s.reference_share - s.share, s.index))
    return drawn, [s for s in shifts if s.index not in kept]


def _part(contribution: float, score: float) -> str:
    return style.minus(part_of_score(contribution, score))


def draw_masses(ax: Axes, drawn: Sequence[ClusterShift], rest: Sequence[ClusterShift], score: float) -> list[Artist]:
    """One line a cluster, the first on top: a ring at the reference's share, a mark at the current one, the usual range
    as a band; the rest together in the last line. Returns the legend's entries."""
    lines = len(drawn) + bool(rest)
    ends = [max(s.share, s.reference_share, s.reference_share + Z95 * s.usual_sd) for s in drawn]
    right = 100 * max(ends) * 1.04 or 1.0
    ax.set_xlim(-0.02 * right, right)
    ax.set_ylim(lines - 0.45, -0.55)
    for y, shift in enumerate(drawn):
        color = KIND_COLORS[shift.kind]
        before, now = 100 * shift.reference_share, 100 * shift.share
        low = max(before - 100 * Z95 * shift.usual_sd, 0.0)
        ax.add_patch(
            Rectangle((low, y - 0.3), before + 100 * Z95 * shift.usual_sd - low, 0.6, color=BAND, lw=0, zorder=1.5)
        )
        ax.plot([before, now], [y, y], color=color, linewidth=2.2, solid_capstyle="butt", zorder=2)
        ax.plot(before, y, "o", ms=7, mfc=CARD, mec=MUTED, mew=1.3, zorder=2.5, clip_on=False)
        ax.plot(
            now,
            y,
            KIND_MARKERS[shift.kind],
            ms=KIND_SIZES[shift.kind],
            color=color,
            mec=CARD,
            mew=0.6,
            zorder=3,
            clip_on=False,
        )
    names = [
        f"{style.shorten(cluster_name(s), ROOM, 9)}\n{style.shorten(cluster_examples(s), ROOM, 9)}".rstrip()
        for s in drawn
    ]
    beside = [(_part(s.contribution, score), count(s.rows)) for s in drawn]
    if rest:
        before, now = 100 * sum(s.reference_share for s in rest), 100 * sum(s.share for s in rest)
        ax.axhline(len(drawn) - 0.5, color=GRID, linewidth=0.8)
        names.append(f"{len(rest):,} other{'s together' if len(rest) > 1 else ''}: {before:.1f}% to {now:.1f}%")
        beside.append((_part(sum(s.contribution for s in rest), score), count(sum(s.rows for s in rest))))
    ax.yaxis.set_major_locator(FixedLocator(list(range(lines))))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels(names, fontsize=9, color=INK, linespacing=1.25)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(style.ticks(7))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    ax.set_xlabel("share of the rows of a side, of those the clusters were not fitted on")
    _columns(ax, ("of score", "rows now"), beside)
    handles: list[Artist] = [
        Line2D([], [], linestyle="", marker="o", ms=7, mfc=CARD, mec=MUTED, mew=1.3, label="reference"),
        Patch(color=BAND, label="usual range (95%)"),
    ]
    for kind in ("new", "grown", "same", "shrunk", "gone"):
        if any(s.kind == kind for s in drawn):
            text = "no certain change" if kind == "same" else kind
            handles.append(
                Line2D([], [], marker=KIND_MARKERS[kind], color=KIND_COLORS[kind], ms=8, lw=2.2, label=f"now: {text}")
            )
    return handles


def _columns(ax: Axes, head: tuple[str, str], lines: Sequence[tuple[str, str]]) -> None:
    """Two columns of numbers right of the axes, as wide as what they hold."""
    at = 0.0
    for column, color in ((0, INK), (1, MUTED)):
        texts = [head[column], *(line[column] for line in lines)]
        at += 0.15 + max(style.text_width(text, 9, "bold") for text in texts)
        for y, text in enumerate(texts):
            ax.annotate(
                text,
                (1.0, 1.0 if y == 0 else y - 1),
                xycoords="axes fraction" if y == 0 else ax.get_yaxis_transform(),
                xytext=(72 * at, 4 if y == 0 else 0),
                textcoords="offset points",
                ha="right",
                va="bottom" if y == 0 else "center",
                fontsize=9,
                fontweight="bold" if y == 0 else "normal",
                color=MUTED if y == 0 else color,
                annotation_clip=False,
            )


def cluster_masses(
    shifts: Sequence[ClusterShift],
    stem: str | os.PathLike[str],
    *,
    labels: tuple[str, str] = ("Reference", "Current"),
    title: str | None = None,
) -> Picture:
    """Share of the rows in the reference against now, cluster by cluster; those without a change and small are summed
    in one line. The parts of the score are those of its whole, which all clusters sum to."""
    names = label(labels[0]), label(labels[1])
    title = title or f"Which clusters grew and which shrank: {names[1]} against {names[0]}"
    drawn, rest = chosen_clusters(shifts)
    changed = sum(s.kind != "same" for s in shifts)
    subtitle = (
        f"{changed:,} of {len(shifts):,} clusters changed beyond chance. Beside each: what its current rows have in "
        "common, and rows near its middle."
    )
    score = sum(s.contribution for s in shifts)
    with drawing():
        figure, body = sheet(10.5, 1.2 + 0.46 * max(len(drawn) + bool(rest), 3), title, subtitle)
        ax = body.subplots()
        if shifts:
            legend_below(body, draw_masses(ax, drawn, rest, score), 4)
        else:
            style.empty(ax, "no clusters were compared")
        told = [
            f"{label(cluster_name(s))} {s.kind}, {100 * s.reference_share:.1f}% to {100 * s.share:.1f}%"
            for s in sorted(drawn, key=lambda s: (-abs(s.contribution), s.index))
            if s.kind != "same"
        ][:3]
        return save(figure, stem, title, f"{title}. {len(shifts):,} clusters: {'; '.join(told) or 'none changed'}.")
