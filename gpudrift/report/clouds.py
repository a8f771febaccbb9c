"""The clouds drawn on axes: where the rows of reference and current window lie on the first principal components.

Many rows are shown by the smallest regions that hold given shares of them, from one smoothed 2-D histogram: the cost is
one pass over the rows, whatever their number, and the SVG does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from gpudrift.errors import ArgumentError
from gpudrift.report import style
from gpudrift.report.style import CARD, CURRENT, REFERENCE

Floats = NDArray[np.float64]
SHARES = (0.9, 0.7, 0.5, 0.25)  # of the rows, held by the shaded regions of the reference
OUTLINES = (0.9, 0.5)  # of the rows, held by the outlined regions of either cloud
DENSITY_ROWS = 1500  # fewer rows are drawn one by one: a density of few rows shows the smoothing, not the data
OUTLINE_ROWS = 150
SHOWN_ROWS = 2500  # most rows of the current window drawn one by one
GRID = (180, 140)
CHANGES = (1.25, 2.0)  # factors between the clouds' shares of rows, either way
FALSE_SPOTS = 0.05


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
            tails = np.quantile(values, 0.002, method="higher"), np.quantile(values, 0.998, method="lower")
            lows.append(float(min(tails[0], max(values.min(), q1 - 2 * (q3 - q1)))))
            highs.append(float(max(tails[1], min(values.max(), q3 + 2 * (q3 - q1)))))
    low, high = (min(lows), max(highs)) if lows else (-1.0, 1.0)
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


def _smooth(counts: Floats, widths: tuple[float, float]) -> Floats:
    """Gaussian smoothing along both axes, weights of sum 1; returned as (GRID y, GRID x), what contour wants."""
    for axis, width in enumerate(widths):
        steps = np.arange(GRID[axis])
        weights = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
        weights /= weights.sum(axis=0).max()
        counts = np.moveaxis(np.tensordot(weights, counts, axes=(1, axis)), 0, axis)
    return np.asarray(counts.T, dtype=np.float64)


def bins_held(widths: tuple[float, float]) -> float:
    """How many bins a smoothed value stands for: 1 / sum of its squared weights, 4 pi w_x w_y for Gaussian ones."""
    return 4 * math.pi * widths[0] * widths[1]


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
    """Where the current window holds a larger or smaller share of its rows than the reference; returns the legend's
    entries.

    Both clouds, (n, 2) and (m, 2), are smoothed alike and compared as Poisson counts k_y, k_x on the root scale
    (Huffman 1984): z = 2 (sqrt(k_y + 3/8) - sqrt((k_x + 3/8) m/n)) / sqrt(1 + m/n) is about N(0, 1). Coloured is where
    the ratio of the shares lies beyond ``CHANGES`` and |z| beyond the limit that noise passes anywhere on the map in
    about one picture of ``1 / FALSE_SPOTS``.
    """
    n, m = len(reference), len(current)
    widths = _widths(reference if n < m else current, frame, 1.2)
    x, y = (_smooth(_counts(points, frame), widths) for points in (reference, current))
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
        ax.contourf(*_grid(frame), beyond, levels=[-reach, -1.0, 1.0, reach], colors=[fewer, "none", more], zorder=1.5)
    if outer:
        ax.contour(*_grid(frame), x + y, levels=outer, colors=[style.MUTED], linewidths=0.9, zorder=2)
    if not found:
        ax.text(
            0.5, 0.95, "no certain change anywhere", transform=ax.transAxes, ha="center", va="top", color=style.MUTED
        )
    _axes_of_map(ax, frame, variance_shares, False)
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
