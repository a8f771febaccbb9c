"""Where rows lie, as numbers: common limits of two clouds, and one smoothed 2-D histogram from which the smallest
regions that hold given shares of the rows are read. One pass over the rows, whatever their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpudrift.errors import ArgumentError

Floats = NDArray[np.float64]
GRID = (180, 140)
FINER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)  # of the smoothing for one normal cloud, the widest first
NEAR_BEST = 0.95  # of the best cross-validation score: what is not clearly better is not taken


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


def bin_counts(points: Floats, frame: Frame) -> Floats:
    """Rows a bin, (GRID x, GRID y); rows outside the frame are in none."""
    places = np.zeros(len(points), dtype=np.int64)
    inside = np.ones(len(points), dtype=bool)
    for axis, (low, high) in enumerate((frame.x, frame.y)):
        column = np.floor((points[:, axis] - low) * (GRID[axis] / (high - low)))
        inside &= (column >= 0) & (column < GRID[axis])
        places = places * GRID[axis] + np.where(inside, column, 0).astype(np.int64)
    return np.bincount(places[inside], minlength=GRID[0] * GRID[1]).reshape(GRID).astype(np.float64)


def smoothing_widths(points: Floats, frame: Frame, factor: float) -> tuple[float, float]:
    """Smoothing in bins a axis: ``factor`` n^(-1/6) sd (Scott 1992, eq. 6.42), the sd from the quartiles, since far
    outliers must not blur the rest; 0.8 bins at least.

    That is the width for one normal cloud. Clusters that lie apart need a finer one: the widest of ``FINER`` times it
    whose least-squares cross-validation score (Scott 1992, eq. 6.67) is near the best one's.
    """
    normal = []
    for axis, (low, high) in enumerate((frame.x, frame.y)):
        q1, q3 = np.quantile(points[:, axis], [0.25, 0.75])
        spread = (q3 - q1) / 1.349 or min(float(points[:, axis].std()), (high - low) / 4)
        normal.append(len(points) ** (-1 / 6) * spread * GRID[axis] / (high - low))
    counts = bin_counts(points, frame)
    tried = [_bounded(normal, scale) for scale in FINER]
    scores = [_cross_validation(counts, widths) for widths in tried]
    enough = NEAR_BEST * min(scores) if min(scores) < 0 else math.inf
    scale = next(scale for scale, score in zip(FINER, scores, strict=True) if score <= enough)
    return _bounded(normal, scale * factor)


def _bounded(widths: Sequence[float], factor: float) -> tuple[float, float]:
    first, second = (min(max(factor * width, 0.8), 20.0) for width in widths)
    return first, second


def _cross_validation(counts: Floats, widths: tuple[float, float]) -> float:
    """Estimate, from the rows themselves, of the integrated squared error of the density but for a constant: less is
    better. A row must not vouch for itself, so its own weight is taken out."""
    held, rows = smoothed(counts, widths), float(counts.sum())
    if rows < 2:
        return 0.0
    others = held - 1 / (2 * math.pi * widths[0] * widths[1])
    return float((held**2).sum() / rows**2 - 2 * (counts.T * others).sum() / (rows * (rows - 1)))


def smoothed(counts: Floats, widths: tuple[float, float]) -> Floats:
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


def bin_centres(frame: Frame) -> tuple[Floats, Floats]:
    edges = [np.linspace(*limits, k + 1) for limits, k in zip((frame.x, frame.y), GRID, strict=True)]
    return (edges[0][1:] + edges[0][:-1]) / 2, (edges[1][1:] + edges[1][:-1]) / 2


def mass_levels(held: Floats, shares: Sequence[float], total: int) -> list[float]:
    """Levels whose regions {held >= level} hold the given shares of ``total`` rows: ascending, positive, distinct."""
    ordered = np.sort(held, axis=None)[::-1]
    summed = np.cumsum(ordered)
    places = [min(int(np.searchsorted(summed, share * total)), ordered.size - 1) for share in shares]
    return sorted({float(ordered[place]) for place in places if ordered[place] > 0})
