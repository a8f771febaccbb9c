"""The clouds drawn on axes: where the rows of reference and current window lie on the first principal components.

Many rows are shown by the smallest regions that hold given shares of them, from one smoothed 2-D histogram: the cost is
one pass over the rows, whatever their number, and the SVG does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from gpudrift.errors import ArgumentError
from gpudrift.report import style
from gpudrift.report.style import CARD, CURRENT, REFERENCE, label

Floats = NDArray[np.float64]
SHARES = (0.9, 0.7, 0.5, 0.25)  # of the rows, held by the shaded regions of the reference
OUTLINES = (0.9, 0.5)  # of the rows, held by the outlined regions of either cloud
DENSITY_ROWS = 1500  # fewer rows are drawn one by one: a density of few rows shows the smoothing, not the data
OUTLINE_ROWS = 150
SHOWN_ROWS = 2500  # most rows of the current window drawn one by one
GRID = (180, 140)
CHANGE_LEVELS = (0.5, 0.8, 1.25, 2.0)  # the current share of rows over the reference's
CERTAIN_SD = 2.5


@dataclass(frozen=True)
class Frame:
    """Common limits of both clouds, and how many rows lie outside of them."""

    x: tuple[float, float]
    y: tuple[float, float]
    outside_reference: int
    outside_current: int


def finite_values(name: str, values: ArrayLike) -> Floats:
    """(rows,) as float64; ArgumentError for another shape or a value that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ArgumentError("a picture cannot show this shape", field=name, value=array.shape, allowed="(rows,)")
    if not np.isfinite(array).all():
        raise ArgumentError("a picture cannot show NaN or infinite values", field=name, allowed="finite values")
    return array


def finite_plane(name: str, values: ArrayLike) -> Floats:
    """The first two columns of (rows, components) as (rows, 2) float64; a missing second component is flat."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 1:
        raise ArgumentError(
            "a picture cannot show this shape", field=name, value=array.shape, allowed="(rows, components)"
        )
    second = array[:, 1] if array.shape[1] > 1 else np.zeros(len(array))
    return np.column_stack([finite_values(name, array[:, 0]), finite_values(name, second)])


def robust_limits(*groups: Floats, margin: float = 0.05) -> tuple[float, float]:
    """Limits that hold the body of every group, and every mode of at least 0.2% of one, but not a few far outliers.
    Flat groups get limits around their value."""
    lows, highs = [], []
    for values in groups:
        if len(values):
            q1, q3 = np.quantile(values, [0.25, 0.75])
            # "higher" and "lower" leave even the single farthest row of a small group out; the fence takes it back
            # in where it is no outlier.
            low, high = np.quantile(values, 0.002, method="higher"), np.quantile(values, 0.998, method="lower")
            lows.append(min(low, max(values.min(), q1 - 2 * (q3 - q1))))
            highs.append(max(high, min(values.max(), q3 + 2 * (q3 - q1))))
    low, high = (float(min(lows)), float(max(highs))) if lows else (-1.0, 1.0)
    room = margin * (high - low)
    if not room > 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * abs(low) or 1.0
    return low - room, high + room


def frame_of(reference: Floats, current: Floats) -> Frame:
    """Common limits of two (rows, 2) clouds."""
    x = robust_limits(reference[:, 0], current[:, 0])
    y = robust_limits(reference[:, 1], current[:, 1])

    def outside(points: Floats) -> int:
        inside = (points[:, 0] >= x[0]) & (points[:, 0] <= x[1]) & (points[:, 1] >= y[0]) & (points[:, 1] <= y[1])
        return len(points) - int(inside.sum())

    return Frame(x, y, outside(reference), outside(current))


def _counts(points: Floats, frame: Frame) -> Floats:
    """Rows a bin, (GRID x, GRID y); rows outside the frame are in none."""
    places = np.zeros(len(points), dtype=np.int64)
    inside = np.ones(len(points), dtype=bool)
    for axis, (low, high) in enumerate((frame.x, frame.y)):
        column = np.floor((points[:, axis] - low) * (GRID[axis] / (high - low)))
        inside &= (column >= 0) & (column < GRID[axis])
        places = places * GRID[axis] + np.where(inside, column, 0).astype(np.int64)
    return np.bincount(places[inside], minlength=GRID[0] * GRID[1]).reshape(GRID).astype(np.float64)


def _widths(points: Floats, frame: Frame, factor: float) -> tuple[float, float]:
    """Smoothing in bins a axis: ``factor`` n^(-1/6) sd (Scott 1992, eq. 6.42), the sd from the quartiles, since far
    outliers must not blur the rest; 0.8 bins at least."""
    widths = []
    for axis, (low, high) in enumerate((frame.x, frame.y)):
        q1, q3 = np.quantile(points[:, axis], [0.25, 0.75])
        spread = (q3 - q1) / 1.349 or min(float(points[:, axis].std()), (high - low) / 4)
        widths.append(min(max(factor * len(points) ** (-1 / 6) * spread * GRID[axis] / (high - low), 0.8), 20.0))
    return widths[0], widths[1]


def _smooth(counts: Floats, widths: tuple[float, float], power: int = 1) -> Floats:
    """Gaussian smoothing along both axes with the weights raised to ``power``: 2 gives the variance of power 1's
    result where the counts are Poisson. Returned as (GRID y, GRID x), what contour wants."""
    for axis, width in enumerate(widths):
        steps = np.arange(GRID[axis])
        weights = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
        weights = (weights / weights.sum(axis=0)) ** power
        counts = np.moveaxis(np.tensordot(weights, counts, axes=(1, axis)), 0, axis)
    return np.asarray(counts.T, dtype=np.float64)


def _grid(frame: Frame) -> tuple[Floats, Floats]:
    edges = [np.linspace(*limits, k + 1) for limits, k in zip((frame.x, frame.y), GRID, strict=True)]
    return (edges[0][1:] + edges[0][:-1]) / 2, (edges[1][1:] + edges[1][:-1]) / 2


def mass_levels(held: Floats, shares: Sequence[float], total: int) -> list[float]:
    """Levels whose regions {held >= level} hold the given shares of ``total`` rows: ascending, positive, distinct."""
    ordered = np.sort(held, axis=None)[::-1]
    summed = np.cumsum(ordered)
    places = [min(int(np.searchsorted(summed, share * total)), ordered.size - 1) for share in shares]
    return sorted({float(ordered[place]) for place in places if ordered[place] > 0})


def _shown(points: Floats, most: int) -> Floats:
    if len(points) <= most:
        return points
    return points[np.sort(np.random.default_rng(0).choice(len(points), most, replace=False))]


def _scatter(ax: Axes, points: Floats, color: str, marker: str, size: float, alpha: float, zorder: float) -> None:
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


def _outlines(ax: Axes, held: Floats, frame: Frame, total: int, color: str, scale: float, zorder: float) -> bool:
    levels = mass_levels(held, OUTLINES, total)
    widths = [1.0 * scale, 2.2 * scale][-len(levels) :]
    if levels:
        # a light line below each outline keeps it visible over shades and rows
        halo = [width + 1.4 * scale for width in widths]
        ax.contour(*_grid(frame), held, levels=levels, colors=[CARD], linewidths=halo, zorder=zorder, alpha=0.8)
        ax.contour(*_grid(frame), held, levels=levels, colors=[color], linewidths=widths, zorder=zorder + 0.01)
    return bool(levels)


def _axes_of_map(ax: Axes, frame: Frame, variance_shares: Sequence[float], compact: bool) -> None:
    for axis, limits, k in ((ax.xaxis, frame.x, 0), (ax.yaxis, frame.y, 1)):
        share = f" ({100 * variance_shares[k]:.1f}% of variance)" if k < len(variance_shares) else ""
        axis.set_label_text(f"PC{k + 1}" if compact else f"PC{k + 1}, embedding units{share}")
        axis.set_major_formatter(style.plain_tick)
        axis.set_major_locator(style.ticks(4 if compact else 6))
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
    names = [f"{label(name)}, {len(p):,} rows" for name, p in zip(labels, (reference, current), strict=True)]
    handles: list[Artist] = []
    shaded = False
    if len(reference) >= DENSITY_ROWS:
        held = _smooth(_counts(reference, frame), _widths(reference, frame, 0.7))
        levels = mass_levels(held, SHARES, len(reference))
        if levels:
            shades = style.REFERENCE_SHADES[-len(levels) :]
            top = max(float(held.max()), levels[-1]) * 1.01
            ax.contourf(*_grid(frame), held, levels=[*levels, top], colors=shades, zorder=1.5)
            shaded = _outlines(ax, held, frame, len(reference), REFERENCE, scale, 2.3)
            handles.append(Patch(facecolor=style.REFERENCE_SHADES[2], edgecolor=REFERENCE, label=names[0]))
    few = len(reference) + len(current) < 600
    if len(reference) and not shaded:
        _scatter(ax, _shown(reference, SHOWN_ROWS), REFERENCE, "o", (22 if few else 12) * scale, 0.6, 1.5)
        handles.append(Line2D([], [], linestyle="", marker="o", color=REFERENCE, markersize=6, label=names[0]))
    if len(current):
        shown = _shown(current, SHOWN_ROWS)
        marker = "." if len(shown) > 800 else "^"
        size = 22 if len(shown) > 800 else 26 if few else 14
        _scatter(ax, shown, CURRENT, marker, size * scale, 0.4 if len(shown) > 800 else 0.75, 2.0)
        outlined = False
        if shaded and len(current) >= OUTLINE_ROWS:
            factor = 0.7 if len(current) >= DENSITY_ROWS else 1.0
            held = _smooth(_counts(current, frame), _widths(current, frame, factor))
            outlined = _outlines(ax, held, frame, len(current), CURRENT, scale, 2.5)
        handles.append(
            Line2D([], [], linestyle="-" if outlined else "", lw=2, marker=marker, color=CURRENT, ms=6, label=names[1])
        )
    # the current mean is the smaller mark, so that both are seen where they coincide
    for points, color, mark, size in ((reference, REFERENCE, "o", 14), (current, CURRENT, "D", 8)):
        if len(points):
            mean = points.mean(axis=0)
            ax.plot(*mean, mark, color=color, markersize=size * scale, mec=CARD, mew=1.6 * scale, zorder=4)
    _axes_of_map(ax, frame, variance_shares, compact)
    return handles


def draw_change(
    ax: Axes, reference: Floats, current: Floats, frame: Frame, *, variance_shares: Sequence[float] = ()
) -> list[Artist]:
    """Where the current window certainly holds a larger or smaller share of its rows than the reference; returns the
    legend's entries.

    Both clouds, (n, 2) and (m, 2), are smoothed alike and compared as Poisson counts k_y, k_x on the root scale
    (Huffman 1984: 2 (sqrt(k_y + 3/8) - sqrt((k_x + 3/8) m/n)) / sqrt(1 + m/n) is about normal). Shown is the ratio of
    shares at the end nearest to one of its ``CERTAIN_SD`` interval, so that what noise can do stays blank.
    """
    n, m = len(reference), len(current)
    widths = _widths(reference if n < m else current, frame, 0.9)
    counts = _counts(reference, frame), _counts(current, frame)
    pooled = _smooth(counts[0] + counts[1], widths)
    # S1 / S2: how many bins a smoothed value stands for
    bins_held = pooled / np.maximum(_smooth(counts[0] + counts[1], widths, power=2), 1e-300)
    root_x = np.sqrt((bins_held * _smooth(counts[0], widths) + 3 / 8) * m / n)
    root_y = np.sqrt(bins_held * _smooth(counts[1], widths) + 3 / 8)
    sure = CERTAIN_SD / 2 * math.sqrt(1 + m / n)
    nearest = root_x + np.sign(root_y - root_x) * np.maximum(np.abs(root_y - root_x) - sure, 0.0)
    # log: contours are interpolated, and half is as far from one as double
    ratio = np.clip(2 * np.log(nearest / root_x), -9.9, 9.9)
    levels = [-10.0, *map(math.log, CHANGE_LEVELS), 10.0]
    shades = (REFERENCE, style.REFERENCE_SHADES[2], "none", style.CURRENT_SHADES[0], CURRENT)
    ax.contourf(*_grid(frame), ratio, levels=levels, colors=shades, zorder=1.5)
    outer = mass_levels(pooled, (0.95,), n + m)
    if outer:
        ax.contour(*_grid(frame), pooled, levels=outer, colors=[style.MUTED], linewidths=0.9, zorder=2)
    _axes_of_map(ax, frame, variance_shares, False)
    words = ("under half", "fewer", "no certain change", "more", "over twice")
    return [
        Patch(facecolor=shade, edgecolor=style.MUTED, linewidth=0.5, label=text)
        for shade, text in zip(shades, words, strict=True)
    ]


def histogram_bins(groups: Sequence[Floats], limits: tuple[float, float]) -> Floats:
    """Common edges: the Freedman-Diaconis width of the pooled values at the smallest group's size, 12 to 80 bins."""
    filled = [values for values in groups if len(values)]
    if not filled:
        return np.linspace(*limits, 13)
    q1, q3 = np.quantile(np.concatenate(filled), [0.25, 0.75])
    width = 2 * (q3 - q1) / min(map(len, filled)) ** (1 / 3)
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
    places = max(0, 2 - math.floor(math.log10(limits[1] - limits[0])))
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
        text = f"{label(name)}, {len(values):,} rows" + ("" if compact else f", mean {mean:.{places}f}")
        handles.append(Patch(facecolor=face, edgecolor=color, linestyle=dashes, linewidth=1.6, label=text))
    ax.set_xlim(*limits)
    ax.margins(y=0.08)
    ax.set_ylim(bottom=0)
    share = "" if variance_share is None else f" ({100 * variance_share:.1f}% of the reference's variance)"
    ax.set_xlabel("PC1" if compact else f"PC1, embedding units{share}")
    ax.set_ylabel("Density" if compact else "Density, rows per unit (area 1)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(style.plain_tick)
        axis.set_major_locator(style.ticks(4 if compact else 7))
    ax.grid(axis="x", visible=False)
    return handles
