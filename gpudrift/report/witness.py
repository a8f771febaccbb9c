"""The witness map: which rows of the current window make up its distance from the reference, and where they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from gpudrift.errors import ArgumentError
from gpudrift.report import clouds, style
from gpudrift.report.density import (
    Floats,
    Frame,
    bin_counts,
    finite_plane,
    finite_values,
    frame_of,
    smoothed,
    smoothing_widths,
)
from gpudrift.report.style import CARD, INK, MUTED, Picture, drawing, label, legend_below, save, sheet
from gpudrift.report.wording import number

# Light blue over pale to dark red: the two ends differ in lightness too, not only in colour.
COLORS = LinearSegmentedColormap.from_list(
    "witness",
    [(0, "#6fa8d6"), (0.3, "#cfe0ee"), (0.5, "#f6f3ee"), (0.68, "#f0a35e"), (0.84, "#b63c04"), (1, "#5e1200")],
)
GREYS = ("#ececec", "#dedede", "#cccccc", "#b8b8b8")  # of the reference, outermost first
SHOWN_ROWS = 20_000  # most rows drawn one by one
LIMIT = 0.98  # of the rows have a witness within the colours' ends
ANNOTATED = 8  # most rows named beside the map
CENTRES = 4  # most centres named beside the map
ROOM = 2.1  # inches, of the names beside the map


class _Name(NamedTuple):
    """A name beside the map, joined to its place (x, y) on it."""

    x: float
    y: float
    text: str
    bold: bool


def colour_limit(witness: Floats) -> float:
    """Both ends of the colours, around 0: most rows lie within, whatever a few outliers do; 1 where all are 0."""
    if not len(witness):
        return 1.0
    size = np.abs(witness)
    return float(np.quantile(size, LIMIT)) or float(size.max()) or 1.0


def _shown(witness: Floats, kept: Sequence[int]) -> list[int]:
    """Rows to draw, smallest witness first: all, or as many as ``SHOWN_ROWS`` always alike chosen ones and ``kept``."""
    chosen = np.arange(len(witness))
    if len(witness) > SHOWN_ROWS:
        chosen = np.random.default_rng(0).choice(len(witness), SHOWN_ROWS, replace=False)
        chosen = np.union1d(chosen, np.asarray(kept, dtype=np.int64))
    order = np.lexsort((chosen, witness[chosen]))
    return [int(row) for row in chosen[order]]


def _inside(points: Floats, frame: Frame) -> Floats:
    """The points, those outside the frame moved to its edge."""
    return np.column_stack([np.clip(points[:, 0], *frame.x), np.clip(points[:, 1], *frame.y)])


def spread(places: Sequence[float], step: float) -> list[float]:
    """Ascending places in 0 to 1 moved apart to at least ``step`` (at most 1 / their number), groups about their
    middle."""
    up, down = list(places), list(places)
    for k in range(1, len(places)):
        up[k] = max(up[k], up[k - 1] + step)
        down[-k - 1] = min(down[-k - 1], down[-k] - step)
    moved = [(a + b) / 2 for a, b in zip(up, down, strict=True)]  # both are apart, and so is what lies between
    for k in range(len(moved)):
        moved[k] = max(moved[k], k * step)
    return [min(place, 1 - (len(moved) - 1 - k) * step) for k, place in enumerate(moved)]


def _names_beside(ax: Axes, names: Sequence[_Name], height: float) -> None:
    """The names in a column right of the axes (``height`` inches), in the order of their places: no two overlap."""
    low, high = ax.get_ylim()
    ordered = sorted(names, key=lambda name: (name.y, name.x, name.text))
    places = spread([(name.y - low) / (high - low) for name in ordered], min(0.21 / height, 1 / max(len(names), 1)))
    for name, place in zip(ordered, places, strict=True):
        ax.annotate(
            name.text,
            (name.x, name.y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=8.5,
            fontweight="bold" if name.bold else "normal",
            va="center",
            ha="left",
            arrowprops={
                "arrowstyle": "-",
                "color": INK if name.bold else MUTED,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 5,
            },
            zorder=5,
            annotation_clip=False,
        )


def _draw_rows(ax: Axes, points: Floats, witness: Floats, limit: float) -> None:
    """Rows in this order, the later on top; those above 0 as triangles, so that the sign needs no colour."""
    size = 30.0 if len(points) < 400 else 16.0 if len(points) < 3000 else 9.0
    strength = np.minimum(np.abs(witness) / limit, 1.0)
    for chosen, marker, zorder in ((witness <= 0, "o", 2.0), (witness > 0, "^", 2.1)):
        ax.scatter(
            points[chosen, 0],
            points[chosen, 1],
            c=witness[chosen],
            s=size * (0.45 + 0.75 * strength[chosen]),
            marker=marker,
            edgecolors=MUTED,
            linewidths=0.25,
            zorder=zorder,
            cmap=COLORS,
            norm=Normalize(-limit, limit),
            rasterized=len(points) > 200,
        )


def draw_witness_map(
    ax: Axes,
    reference: Floats,
    current: Floats,
    witness: Floats,
    frame: Frame,
    *,
    top: Sequence[tuple[int, str]] = (),
    centres: Sequence[tuple[float, float, str]] = (),
    height: float = 5.0,
) -> None:
    """The reference (n, 2) in grey, the current rows (m, 2) by their witness (m,), the larger on top; ``top`` rows
    ringed. height: of the axes in inches."""
    if len(reference) >= clouds.DENSITY_ROWS:
        held = smoothed(bin_counts(reference, frame), smoothing_widths(reference, frame, 0.7))
        clouds.shade(ax, held, frame, len(reference), GREYS)
    elif len(reference):
        clouds.scatter(ax, reference, GREYS[-1], "s", 12, 0.9, 1.5)
    marked = [row for row, _ in top]
    rows = _shown(witness, marked)
    if rows:
        _draw_rows(ax, current[rows], witness[rows], colour_limit(witness))
    else:
        ax.text(0.5, 0.5, "no rows to draw", transform=ax.transAxes, ha="center", va="center", color=MUTED)
    names = []
    if marked:
        places = _inside(current[marked], frame)
        mew, ms = (0.9, 7.0) if len(marked) <= 40 else (0.6, 5.5)  # many must not hide what they mark
        ax.plot(places[:, 0], places[:, 1], "o", mfc="none", mec=INK, mew=mew, ms=ms, zorder=4, clip_on=False)
        strongest = sorted(range(len(marked)), key=lambda k: (-witness[marked[k]], k))[:ANNOTATED]
        for k in strongest:
            value = style.minus(number(witness[marked[k]], 2))
            text = f"{style.shorten(top[k][1], ROOM - style.text_width(f'  {value}', 8.5), 8.5)}  {value}"
            names.append(_Name(float(places[k, 0]), float(places[k, 1]), text, False))
    if centres:
        places = _inside(np.array([[x, y] for x, y, _ in centres], dtype=np.float64), frame)
        for color, ms in ((CARD, 14), (INK, 10)):
            ax.plot(places[:, 0], places[:, 1], "P", color=color, ms=ms, mew=0, zorder=4.2, clip_on=False)
        for (x, y), (_, _, text) in list(zip(places, centres, strict=True))[:CENTRES]:
            names.append(_Name(float(x), float(y), style.shorten(text, ROOM, 8.5, "bold"), True))
    clouds.axes_of_map(ax, frame, (), False)
    _names_beside(ax, names, height)


def _scale(figure: Figure | SubFigure, ax: Axes, limit: float) -> None:
    """The colours' key below the axes, with the marks of the sign."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), COLORS), ax=ax, location="bottom", shrink=0.62, aspect=38, pad=0.02
    )
    bar.set_ticks([-limit, 0.0, limit])
    low, high = style.minus(f"−{number(limit, 2)}"), number(limit, 2)
    bar.set_ticklabels([f"{low} or less", "0", f"{high} or more"])
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    bar.set_label("witness of a row: what it adds to the score")


def witness_map(
    reference_n2: ArrayLike,
    current_m2: ArrayLike,
    witness_m: ArrayLike,
    stem: str | os.PathLike[str],
    *,
    variance_shares: Sequence[float] = (),
    labels: tuple[str, str] = ("Reference", "Current"),
    top: Sequence[tuple[int, str]] = (),
    centres: Sequence[tuple[float, float, str]] = (),
    title: str | None = None,
) -> Picture:
    """Current rows (m, 2) on PC1-PC2 by their witness (m,), over the reference (n, 2) in grey.

    top: the most drifted rows, (row of current_m2, id): all are ringed, the ``ANNOTATED`` with the largest witness
    named. centres: (PC1, PC2, name) of clusters worth naming, the first ``CENTRES`` are. ArgumentError: values that are
    not finite, shapes that do not agree, a row that is not there.
    """
    x, y = finite_plane("reference_n2", reference_n2), finite_plane("current_m2", current_m2)
    witness = finite_values("witness_m", witness_m)
    if len(witness) != len(y):
        raise ArgumentError(
            "there is not one value a row", field="witness_m", value=witness.shape, allowed=f"({len(y)},)"
        )
    missing = next((row for row, _ in top if not 0 <= row < len(y)), None)
    if missing is not None:
        raise ArgumentError("there is no such row", field="top", value=missing, allowed=f"0 to {len(y) - 1}")
    finite_plane("centres", [centre[:2] for centre in centres] or np.zeros((0, 2)))
    names = label(labels[0]), label(labels[1])
    frame = frame_of(x, y)
    title = title or f"Which rows make up the distance: {names[1]} against {names[0]}"
    notes = []
    if len(y) > SHOWN_ROWS:
        notes.append(f"Drawn: {SHOWN_ROWS:,} of the {len(y):,} current rows, chosen at random, and the ringed ones.")
    if frame.outside_reference or frame.outside_current:
        notes.append(
            f"Outside the frame: {frame.outside_reference:,} of {len(x):,} reference rows and "
            f"{frame.outside_current:,} of {len(y):,} current rows; ringed ones stand at its edge."
        )
    subtitle = "Each mark is a current row: dark triangles are what is new, pale and blue circles what is usual."
    with drawing():
        figure, body = sheet(10.0, 6.0, title, subtitle, tuple(notes))
        ax = body.subplots()
        draw_witness_map(ax, x, y, witness, frame, top=top, centres=centres)
        clouds.axes_of_map(ax, frame, [float(share) for share in variance_shares], False)
        if len(witness):
            _scale(body, ax, colour_limit(witness))
        usual = f"{style.shorten(names[0], 1.7, 9)}, {len(x):,} rows"
        handles: list[Artist] = [
            Patch(facecolor=GREYS[1], edgecolor=GREYS[-1], label=usual)
            if len(x) >= clouds.DENSITY_ROWS
            else Line2D([], [], linestyle="", marker="s", color=GREYS[-1], markersize=5, label=usual),
            Line2D(
                [],
                [],
                linestyle="",
                marker="^",
                color=COLORS(0.85),
                markersize=6,
                label=f"{style.shorten(names[1], 1.7, 9)}, {len(y):,} rows",
            ),
        ]
        if top:
            text = f"the {len(top):,} most drifted rows" if len(top) > 1 else "the most drifted row"
            handles.append(Line2D([], [], linestyle="", marker="o", mfc="none", mec=INK, ms=7, label=text))
        if centres:
            handles.append(Line2D([], [], linestyle="", marker="P", color=INK, markersize=8, label="cluster centre"))
        legend_below(body, handles, 4)
        strongest = sorted(top, key=lambda item: -witness[item[0]])[:3]
        most = f" The most drifted: {', '.join(label(name) for _, name in strongest)}." if top else ""
        return save(
            figure,
            stem,
            title,
            f"{title}. Map of {len(y):,} current rows on the first two principal components, coloured by their witness "
            f"value, over {len(x):,} reference rows.{most}",
        )
