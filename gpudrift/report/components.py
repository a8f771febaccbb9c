"""The principal components drawn on axes: how much each varies, how far each has moved, how its spread has changed."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from gpudrift.errors import ArgumentError
from gpudrift.report import style
from gpudrift.report.style import CURRENT, MUTED, REFERENCE

Floats = NDArray[np.float64]
QUIET = "#9aa5b1"  # a component whose interval holds "no change"
Z95 = 1.96


def component_values(name: str, values: ArrayLike, q: int) -> Floats:
    """(q,) as float64, infinities as NaN: a component without spread has no shift in sd, and is left blank."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (q,):
        raise ArgumentError(
            "there is not one value a component", field=name, value=array.shape, allowed=f"({q},), as the spectrum"
        )
    return np.where(np.isfinite(array), array, np.nan)


def _component_axis(ax: Axes, q: int, labelled: bool = True) -> Floats:
    ax.set_xlim(0.4 if q > 1 else 0.0, q + 0.6 if q > 1 else 2.0)
    step = next(k for k in (1, 2, 5, 10, 20, 50, 100, 200) if q / k <= 16 or k == 200)
    ax.xaxis.set_major_locator(
        FixedLocator([1, *range(step, q + 1, step)] if step > 2 else list(range(1, q + 1, step)))
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="x", visible=False)
    if labelled:
        ax.set_xlabel("Principal component (1: the direction the reference varies most in)")
    return np.arange(1, q + 1, dtype=np.float64)


def _log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high] for a log axis: the coarsest grid that has three, thinned to ``most``."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(k / 10 for k in range(10, 100))):
        found = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            break
    return found[:: math.ceil(len(found) / most)] if found else [low, high]


def _factor_ticks(low: float, high: float) -> list[float]:
    """One and round factors on either side of it, a few, none crowded."""
    found = [1.0]
    for nice in (
        (1.1, 1.25, 1.5, 2, 3, 5, 10, 100, 1e4, 1e8, 1e16),
        (0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.01, 1e-4, 1e-8, 1e-16),
    ):
        last = 1.0
        for tick in nice:
            if low <= tick <= high and abs(math.log(tick / last)) > 0.16 * math.log(high / low):
                found.append(float(tick))
                last = float(tick)
    return sorted(found)


def draw_spectrum(ax: Axes, variances: Floats, current_variances: Floats) -> list[Artist]:
    """Variance along each component, both (q,), on a log axis; values that are not positive are left out."""
    q = len(variances)
    x = _component_axis(ax, q, labelled=False)
    size = 6.0 if q <= 40 else 3.0
    known = [np.where(values > 0, values, np.nan) for values in (variances, current_variances)]
    positive = np.concatenate(known)
    positive = positive[np.isfinite(positive)]
    if len(positive):
        # limits first: matplotlib's own would overflow on a very wide range
        low, high = float(positive.min()) / 1.25, float(positive.max()) * 1.25
        ax.set_ylim(low, high)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(style.plain_tick)
    else:
        style.empty(ax, "no component varies")
    for values, color, marker in zip(known, (REFERENCE, CURRENT), ("o", "D"), strict=True):
        ax.plot(x, values, color=color, marker=marker, markersize=size, mec="white", mew=0.6, linewidth=1.3, zorder=2.5)
    ax.set_ylabel("Variance,\nsquared units")
    return [
        Line2D([], [], color=color, marker=marker, markersize=6, mec="white", mew=0.6, label=text)
        for color, marker, text in ((REFERENCE, "o", "reference variance"), (CURRENT, "D", "current variance"))
    ]


def draw_shift(ax: Axes, shift: Floats, se: Floats, *, labelled: bool = True, compact: bool = False) -> list[Artist]:
    """Shift of the mean along each component in the reference's sd, (q,), with 95% intervals; orange where they
    exclude zero."""
    q = len(shift)
    x = _component_axis(ax, q, labelled=labelled and not compact)
    half = Z95 * np.nan_to_num(se)
    moved = np.abs(shift) > half
    for chosen, color, marker in ((~moved, QUIET, "o"), (moved, CURRENT, "D")):
        chosen = chosen & np.isfinite(shift)
        ax.vlines(x[chosen], 0, shift[chosen], color=color, linewidth=1.0, alpha=0.5, zorder=2)
        ax.errorbar(
            x[chosen],
            shift[chosen],
            yerr=half[chosen],
            fmt=marker,
            color=color,
            markersize=(4.5 if compact else 6.0) if q <= 40 else 2.5,
            elinewidth=1.4 if q <= 40 else 0.7,
            capsize=2.5 if q <= 40 else 0,
            zorder=2.5,
        )
    ax.axhline(0, color=MUTED, linewidth=0.9, zorder=1.8)
    reach = float(np.nanmax(np.abs(shift) + half, initial=0.0))
    ax.set_ylim(-1.15 * reach or -1.0, 1.15 * reach or 1.0)
    ax.set_ylabel("Shift, sd" if compact else "Shift of the\nmean, sd")
    if compact:
        ax.set_xlabel("Principal component")
    ax.yaxis.set_major_locator(style.ticks(5))
    ax.yaxis.set_major_formatter(style.plain_tick)
    return [
        Line2D([], [], color=CURRENT, linestyle="", marker="D", markersize=6, label="95% interval leaves out 0"),
        Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=6, label="within noise"),
    ]


def draw_variance_ratio(ax: Axes, log_ratio: Floats) -> None:
    """exp of the natural log variance ratio (q,), current over reference, on a log axis around one."""
    q = len(log_ratio)
    x = _component_axis(ax, q)
    factor = np.exp(np.clip(log_ratio, -50, 50))
    known = np.isfinite(factor)
    colors = [CURRENT if value > 1 else REFERENCE for value in factor[known]]
    ax.vlines(x[known], 1.0, factor[known], color=colors, linewidth=2.0 if q <= 40 else 1.0, zorder=2)
    ax.scatter(x[known], factor[known], c=colors, s=26 if q <= 40 else 6, zorder=2.5)
    ax.axhline(1.0, color=MUTED, linewidth=0.9, zorder=1.8)
    room = 0.12 * max(float(np.nanmax(np.abs(log_ratio), initial=0.0)), 0.1)
    low = math.exp(max(float(np.nanmin(log_ratio, initial=-0.1)) - room, -50))
    high = math.exp(min(float(np.nanmax(log_ratio, initial=0.1)) + room, 50))
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(_factor_ticks(low, high)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    ax.set_ylabel("Variance,\ncurrent / ref.")
