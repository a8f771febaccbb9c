"""The clouds drawn on axes: where the rows of reference and current window lie on the first principal components.

Many rows are shown by the smallest regions that hold given shares of them: the SVG does not grow with the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gpudrift.report import style
from gpudrift.report.density import (
    Floats,
    Frame,
    bin_centres,
    bin_counts,
    bins_held,
    mass_levels,
    smoothed,
    smoothing_widths,
)
from gpudrift.report.style import CARD, CURRENT, REFERENCE

SHARES = (0.9, 0.7, 0.5, 0.25)  # of the rows, held by the shaded regions of the reference
OUTLINES = (0.9, 0.5)  # of the rows, held by the outlined regions of either cloud
DENSITY_ROWS = 1500  # fewer rows are drawn one by one: a density of few rows shows the smoothing, not the data
OUTLINE_ROWS = 150
SHOWN_ROWS = 2500  # most rows of the current window drawn one by one
CHANGES = (1.25, 2.0)  # factors between the clouds' shares of rows, either way
FALSE_SPOTS = 0.05


def some_rows(points: Floats, most: int) -> Floats:
    """At most ``most`` of the rows, always the same ones."""
    if len(points) <= most:
        return points
    return points[np.sort(np.random.default_rng(0).choice(len(points), most, replace=False))]


def scatter(ax: Axes, points: Floats, color: str, marker: str, size: float, alpha: float, zorder: float) -> None:
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        c=[to_rgba(color, alpha)],
        marker=marker,
        linewidths=0,
        zorder=zorder,
        rasterized=len(points) > 200,
    )


def shade(ax: Axes, held: Floats, frame: Frame, total: int, shades: Sequence[str]) -> bool:
    """The regions that hold ``SHARES`` of ``total`` rows, outermost first; whether there is any."""
    levels = mass_levels(held, SHARES, total)
    if levels:
        top = max(float(held.max()), levels[-1]) * 1.01
        ax.contourf(*bin_centres(frame), held, levels=[*levels, top], colors=list(shades)[-len(levels) :], zorder=1.5)
    return bool(levels)


def _outlines(ax: Axes, held: Floats, frame: Frame, total: int, color: str, scale: float, zorder: float) -> bool:
    levels = mass_levels(held, OUTLINES, total)
    widths = [1.0 * scale, 2.2 * scale][-len(levels) :]
    if levels:
        # a light line below each outline keeps it visible over shades and rows
        halo = [width + 1.4 * scale for width in widths]
        ax.contour(*bin_centres(frame), held, levels=levels, colors=[CARD], linewidths=halo, zorder=zorder, alpha=0.8)
        ax.contour(*bin_centres(frame), held, levels=levels, colors=[color], linewidths=widths, zorder=zorder + 0.01)
    return bool(levels)


def axes_of_map(ax: Axes, frame: Frame, variance_shares: Sequence[float], compact: bool) -> None:
    for axis, limits, k in ((ax.xaxis, frame.x, 0), (ax.yaxis, frame.y, 1)):
        share = f" ({100 * variance_shares[k]:.1f}% of variance)" if k < len(variance_shares) else ""
        axis.set_label_text(f"PC{k + 1}" if compact else f"PC{k + 1}, embedding units{share}")
        axis.set_major_formatter(style.plain_tick)
        axis.set_major_locator(style.ticks(5 if compact else 6))
        (ax.set_xlim if k == 0 else ax.set_ylim)(*limits)


def draw_pca_map(
    ax: Axes,
    reference: Floats,
    current: Floats,
    frame: Frame,
    *,
    variance_shares: Sequence[float] = (),
    labels: tuple[str, str] = ("Reference", "Current"),
    compact: bool = False,
) -> list[Artist]:
    """Both clouds, (n, 2) and (m, 2) float64, on the frame's limits; returns the legend's entries.

    From ``DENSITY_ROWS`` rows on the reference is shaded by the regions that hold ``SHARES`` of its rows, else its rows
    are drawn. Of the current window's rows at most ``SHOWN_ROWS`` are drawn. Lines are the regions that hold
    ``OUTLINES`` of a cloud's rows, the inner one heavy; large marks are the means.
    """
    scale = 0.6 if compact else 1.0
    room = 1.5 if compact else 1.7
    names = [
        f"{style.shorten(name, room, 9)}, {len(p):,} rows" for name, p in zip(labels, (reference, current), strict=True)
    ]
    handles: list[Artist] = []
    shaded = False
    if len(reference) >= DENSITY_ROWS:
        held = smoothed(bin_counts(reference, frame), smoothing_widths(reference, frame, 0.7))
        if shade(ax, held, frame, len(reference), style.REFERENCE_SHADES):
            shaded = _outlines(ax, held, frame, len(reference), REFERENCE, scale, 2.3)
            handles.append(Patch(facecolor=style.REFERENCE_SHADES[2], edgecolor=REFERENCE, label=names[0]))
    few = len(reference) + len(current) < 600
    if len(reference) and not shaded:
        scatter(ax, some_rows(reference, SHOWN_ROWS), REFERENCE, "o", (22 if few else 12) * scale, 0.6, 1.5)
        handles.append(Line2D([], [], linestyle="", marker="o", color=REFERENCE, markersize=6, label=names[0]))
    if len(current):
        shown = some_rows(current, SHOWN_ROWS)
        marker = "." if len(shown) > 800 else "^"
        size = 22 if len(shown) > 800 else 26 if few else 14
        scatter(ax, shown, CURRENT, marker, size * scale, 0.4 if len(shown) > 800 else 0.75, 2.0)
        outlined = False
        if shaded and len(current) >= OUTLINE_ROWS:
            factor = 0.7 if len(current) >= DENSITY_ROWS else 1.0
            held = smoothed(bin_counts(current, frame), smoothing_widths(current, frame, factor))
            outlined = _outlines(ax, held, frame, len(current), CURRENT, scale, 2.5)
        handles.append(
            Line2D([], [], linestyle="-" if outlined else "", lw=2, marker=marker, color=CURRENT, ms=6, label=names[1])
        )
    # the current mean is the smaller mark, so that both are seen where they coincide
    for points, color, mark, size in ((reference, REFERENCE, "o", 14), (current, CURRENT, "D", 8)):
        if len(points):
            mean = points.mean(axis=0)
            ax.plot(*mean, mark, color=color, markersize=size * scale, mec=CARD, mew=1.6 * scale, zorder=4)
    axes_of_map(ax, frame, variance_shares, compact)
    return handles


def draw_change(
    ax: Axes, reference: Floats, current: Floats, frame: Frame, *, variance_shares: Sequence[float] = ()
) -> list[Artist]:
    """Where the current window holds a larger or smaller share of its rows than the reference; returns the legend's
    entries.

    Both clouds, (n, 2) and (m, 2), are smoothed alike and compared as Poisson counts k_y, k_x on the root scale
    (Huffman 1984): z = 2 (sqrt(k_y + 3/8) - sqrt((k_x + 3/8) m/n)) / sqrt(1 + m/n) is about N(0, 1). Coloured is where
    the ratio of the shares lies beyond ``CHANGES`` and |z| beyond the limit that noise passes anywhere on the map in
    about one picture of ``1 / FALSE_SPOTS``.
    """
    n, m = len(reference), len(current)
    widths = smoothing_widths(reference if n < m else current, frame, 1.2)
    x, y = (smoothed(bin_counts(points, frame), widths) for points in (reference, current))
    held = bins_held(widths)
    root_x, root_y = np.sqrt((held * x + 3 / 8) * m / n), np.sqrt(held * y + 3 / 8)
    outer = mass_levels(x + y, (0.95,), n + m)
    cells = 1.0 if not outer else max(float((x + y >= outer[0]).sum()) / held, 1.0)
    # Bonferroni over the cells that are independent of each other, three maxima of a smooth field to each
    limit = NormalDist().inv_cdf(1 - FALSE_SPOTS / (2 * 3 * cells))
    z = 2 * (root_y - root_x) / math.sqrt(1 + m / n) / limit
    ratio = 2 * np.log(root_y / root_x)
    shades = ((style.REFERENCE_SHADES[2], style.CURRENT_SHADES[0]), (REFERENCE, CURRENT))
    found = False
    for change, (fewer, more) in zip(CHANGES, shades, strict=True):
        # above 1 where both hold; the smaller of the two keeps the edges smooth
        beyond = np.sign(ratio) * np.minimum(np.abs(ratio) / math.log(change), np.abs(z))
        reach = max(float(np.abs(beyond).max()), 1.0) + 1.0
        found = found or reach > 2.0
        ax.contourf(
            *bin_centres(frame), beyond, levels=[-reach, -1.0, 1.0, reach], colors=[fewer, "none", more], zorder=1.5
        )
    if outer:
        ax.contour(*bin_centres(frame), x + y, levels=outer, colors=[style.MUTED], linewidths=0.9, zorder=2)
    if not found:
        ax.text(
            0.5, 0.95, "no certain change anywhere", transform=ax.transAxes, ha="center", va="top", color=style.MUTED
        )
    axes_of_map(ax, frame, variance_shares, False)
    legend = (
        (shades[1][0], "under half"),
        (shades[0][0], "fewer"),
        ("none", "no certain change"),
        (shades[0][1], "more"),
        (shades[1][1], "over twice"),
    )
    return [Patch(facecolor=shade, edgecolor=style.MUTED, linewidth=0.5, label=text) for shade, text in legend]


def histogram_bins(groups: Sequence[Floats], limits: tuple[float, float]) -> Floats:
    """Common edges: 0.7 of the Freedman-Diaconis width, for the pooled values at the smallest group's size (several
    groups guide the eye where one would look ragged); 12 to 80 bins."""
    filled = [values for values in groups if len(values)]
    if not filled:
        return np.linspace(*limits, 13)
    q1, q3 = np.quantile(np.concatenate(filled), [0.25, 0.75])
    width = 1.4 * (q3 - q1) / min(map(len, filled)) ** (1 / 3)
    bins = int(np.clip((limits[1] - limits[0]) / width, 12, 80)) if width > 0 else 31
    return np.asarray(np.linspace(*limits, bins + 1), dtype=np.float64)


def draw_pc1_histogram(
    ax: Axes,
    groups: Sequence[tuple[str, Floats]],
    limits: tuple[float, float],
    *,
    variance_share: float | None = None,
    compact: bool = False,
) -> list[Artist]:
    """Histograms of (rows,) float64 values on common bins, each of area 1 over all its rows; the first group is filled
    (the reference), with two groups the second too. Vertical lines are the means. Returns the legend's entries."""
    edges = histogram_bins([values for _, values in groups], limits)
    places = max(0, 3 - math.floor(math.log10(limits[1] - limits[0])))
    handles: list[Artist] = []
    for k, (name, values) in enumerate(groups):
        if not len(values):
            continue
        color, dashes = style.SERIES[k % len(style.SERIES)], style.DASHES[k % len(style.DASHES)]
        face = to_rgba(color, 0.28 if k == 0 else 0.16 if len(groups) == 2 else 0.0)
        counts, _ = np.histogram(values, bins=edges)
        heights = counts / (len(values) * np.diff(edges))
        ax.stairs(heights, edges, fill=True, color=face, zorder=1.5 + 0.01 * k)
        width = 1.2 if compact else 1.8
        ax.stairs(heights, edges, color=color, linewidth=width, linestyle=dashes, zorder=2 + 0.01 * k)
        mean = float(values.mean())
        ax.axvline(mean, color=color, linewidth=0.7 * width, linestyle=dashes, zorder=3)
        text = f"{style.shorten(name, 1.5 if compact else 2.2, 9)}, {len(values):,} rows" + (
            "" if compact else f", mean {style.minus(f'{mean:.{places}f}')}"
        )
        handles.append(Patch(facecolor=face, edgecolor=color, linestyle=dashes, linewidth=1.6, label=text))
    ax.set_xlim(*limits)
    ax.margins(y=0.08)
    ax.set_ylim(bottom=0)
    share = "" if variance_share is None else f" ({100 * variance_share:.1f}% of the reference's variance)"
    ax.set_xlabel("PC1" if compact else f"PC1, embedding units{share}")
    ax.set_ylabel("Density" if compact else "Density, rows per unit (area 1)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(style.plain_tick)
        axis.set_major_locator(style.ticks(5 if compact else 7))
    ax.grid(axis="x", visible=False)
    return handles
