"""The one look of all pictures, and how they reach the disk: fixed settings, text that fits, atomic identical files.

Nothing here touches matplotlib's global state for longer than a ``with drawing():`` block, and pyplot is never loaded.
The settings are process-wide inside that block (matplotlib has no others), so pictures are drawn from one thread.
"""

from __future__ import annotations

import io
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

from matplotlib import font_manager, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from gpudrift.files import atomic_path
from gpudrift.records import Verdict
from gpudrift.report.wording import printable

INK, MUTED, GRID, CARD = "#1b2430", "#566170", "#e4e8ed", "#ffffff"
REFERENCE, CURRENT = "#2a68a5", "#d4500f"
REFERENCE_SHADES = ("#e6eef6", "#c9dbec", "#a3c1de", "#7aa5ce")  # outermost first
CURRENT_SHADES = ("#f7b48d",)
BAND = "#e7e9ec"
# Told apart by colour, by lightness (colour-blind and black-and-white readers) and by shape.
VERDICT_COLORS: dict[Verdict, str] = {
    "stable": "#2e8b7d",
    "warning": "#e0a000",
    "alert": "#a8123e",
    "insufficient": "#6f7a86",
}
VERDICT_ON_COLOR: dict[Verdict, str] = {"stable": CARD, "warning": INK, "alert": CARD, "insufficient": CARD}
VERDICT_MARKERS: dict[Verdict, str] = {"stable": "o", "warning": "^", "alert": "D", "insufficient": "X"}
SERIES = (REFERENCE, CURRENT, "#117a65", "#8e5ba6", "#8a6d00", "#4b5563")
DASHES: tuple[Any, ...] = ("-", "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

DPI = 150
_FONT = "DejaVu Sans"  # ships inside matplotlib: the same letters everywhere
_SETTINGS: dict[str, Any] = {
    "font.family": _FONT,
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a label is a dollar sign
    "text.usetex": False,
    "text.hinting": "none",  # as wide in the PNG as in the SVG, and as text_width says
    "axes.edgecolor": "#aab3bd",
    "axes.linewidth": 0.8,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#aab3bd",
    "ytick.color": "#aab3bd",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "figure.facecolor": CARD,  # opaque: readable on a dark page too
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "svg.fonttype": "path",  # the viewer needs no font of ours
    "svg.hashsalt": "gpudrift",  # element ids equal on a rerun
    "svg.image_inline": True,
}


class Picture(NamedTuple):
    """The files of one picture, and what they show in words, for an ``alt`` attribute."""

    png: Path
    svg: Path
    alt_text: str


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's own defaults plus our settings, whatever the user's matplotlibrc says; restored afterwards."""
    with style.context(["default", _SETTINGS]):
        yield


@cache
def _face(weight: str) -> FT2Font:
    found = font_manager.findfont(font_manager.FontProperties(family=_FONT, weight=weight))
    return font_manager.get_font(found)


def label(text: object) -> str:
    """``text`` as the pictures can show it: one line, and ``?`` for letters the font lacks (matplotlib would warn once
    for each)."""
    faces = (_face("normal"), _face("bold"))
    return "".join(c if all(face.get_char_index(ord(c)) for face in faces) else "?" for c in printable(text))


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line in inches."""
    properties = font_manager.FontProperties(family=_FONT, size=size, weight=weight)
    width, _, _ = TextToPath().get_text_width_height_descent(text, properties, ismath=False)
    return float(width) / 72


def _head_width(word: str, size: float, weight: str, letters: int) -> float:
    return text_width(word[:letters], size, weight)


def wrap(text: object, width: float, size: float, weight: str = "normal", lines: int | None = None) -> list[str]:
    """``text`` broken to lines of at most ``width`` inches; a longer word is cut. More than ``lines``: ends in "…"."""
    wrapped: list[str] = []
    line = ""
    for word in label(text).split(" "):
        if lines is not None and len(wrapped) > lines:
            break  # what follows is cut anyway
        joined = f"{line} {word}" if line else word
        if text_width(joined, size, weight) <= width:
            line = joined
            continue
        if line:
            wrapped.append(line)
        while len(word) > 1 and (lines is None or len(wrapped) <= lines) and text_width(word, size, weight) > width:
            fits = partial(_head_width, word, size, weight)
            cut = max(bisect_right(range(1, len(word)), width, key=fits), 1)
            wrapped.append(word[:cut])
            word = word[cut:]
        line = word
    wrapped.append(line)
    if lines is not None and len(wrapped) > lines:
        wrapped = wrapped[:lines]
        while wrapped[-1] and text_width(wrapped[-1] + "…", size, weight) > width:
            wrapped[-1] = wrapped[-1][:-1]
        wrapped[-1] = wrapped[-1].rstrip() + "…"
    return wrapped


def shorten(text: object, width: float, size: float, weight: str = "normal") -> str:
    return wrap(text, width, size, weight, lines=1)[0]


def page(width: float, height: float, padding: float) -> Figure:
    """An empty figure of these inches; ``padding`` inches left and right of every axes."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=padding, h_pad=0.055))
    FigureCanvasAgg(figure)
    return figure


def parts(figure: FigureBase, sizes: Sequence[float], vertical: bool = False) -> list[SubFigure]:
    """The figure cut into parts of these relative sizes, side by side or one below the other."""
    made: Any = (
        figure.subfigures(len(sizes), 1, squeeze=False, height_ratios=list(sizes), hspace=0)
        if vertical
        else figure.subfigures(1, len(sizes), squeeze=False, width_ratios=list(sizes), wspace=0)
    )
    return [part for row in made for part in row]


def sheet(
    width: float, height: float, title: str, subtitle: str = "", footnotes: tuple[str, ...] = ()
) -> tuple[Figure, SubFigure]:
    """A figure with its title and subtitle above and its footnotes below an empty part for the axes.

    width: inches; height: inches of the part for the axes. The figure grows with the lines of text, so neither is ever
    squeezed by the other; a title ends after three lines.
    """
    margin = 0.16
    room = width - 2 * margin
    head = [(line, 13.0, "bold", INK, 0.235) for line in wrap(title, room, 13.0, "bold", lines=3)]
    head += [(line, 9.5, "normal", MUTED, 0.185) for line in wrap(subtitle, room, 9.5)] if subtitle else []
    foot = [line for note in footnotes for line in wrap(note, room, 8.5)]
    above = 0.14 + sum(line[4] for line in head) + 0.06
    below = 0.165 * len(foot) + 0.1 if foot else 0.04
    figure = page(width, above + height + below, padding=0.12)
    top, body, bottom = parts(figure, (above, height, below), vertical=True)
    y = above - 0.14
    for text, size, weight, color, step in head:
        top.text(margin / width, y / above, text, fontsize=size, fontweight=weight, color=color, va="top")
        y -= step
    for k, text in enumerate(foot):
        bottom.text(margin / width, 1 - 0.165 * k / below, text, fontsize=8.5, color=MUTED, va="top")
    return figure, body


def minus(text: str) -> str:
    """A number's text with a typographic minus sign, as on the axes."""
    return text.replace("-", "−", 1) if text.startswith("-") else text


def plain_tick(value: float, _position: float = 0.0) -> str:
    """Tick text without powers of ten in mathtext (which is off): 0.001, 0, −0.02, 1e-06; 1,250,000."""
    return minus(f"{value:,.10g}" if 1e6 <= abs(value) < 1e9 else f"{value:g}")


def legend_below(part: FigureBase, handles: Sequence[Artist], columns: int, **look: Any) -> None:
    """A legend below the axes of ``part``, in line with the text of the page."""
    settings = {"columnspacing": 1.7, "borderaxespad": 0.6, "borderpad": 0.3, **look}
    part.legend(handles=list(handles), loc="outside lower left", ncols=columns, **settings)


def ticks(most: int) -> MaxNLocator:
    """At most ``most`` intervals at round numbers."""
    return MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10])


def empty(ax: Axes, message: str) -> None:
    """The message in place of a drawing that has nothing to show."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.text(0.5, 0.5, label(message), transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _settle(figure: Figure) -> None:
    """Lay the figure out once, and round: the solver's last bits differ between runs, and would reach the SVG's ids."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    nested: list[SubFigure] = list(figure.subfigs)
    while nested:
        part = nested.pop()
        nested += part.subfigs
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
    for ax in figure.axes:
        ax.set_position(Bbox(ax.get_position().get_points().round(6)))


def _bytes(figure: Figure, kind: Literal["png", "svg"], metadata: dict[str, str | None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, stem: str | os.PathLike[str], title: str, alt_text: str) -> Picture:
    """Write ``<stem>.png`` and ``<stem>.svg``; the SVG carries ``alt_text`` as its ``<desc>``. Call inside
    ``drawing()``. The same figure gives the same bytes: no dates and no versions are written."""
    png, svg = Path(f"{os.fspath(stem)}.png"), Path(f"{os.fspath(stem)}.svg")
    _settle(figure)
    pixels = _bytes(figure, "png", {"Software": None})
    drawn = _bytes(figure, "svg", {"Date": None, "Creator": None}).decode()
    # No doctype: it names a DTD on the web, the file's only reference to anything outside it.
    drawn = re.sub(r"<!DOCTYPE[^>]*>\s*", "", drawn, count=1)
    words = f' role="img">\n <title>{escape(label(title))}</title>\n <desc>{escape(label(alt_text))}</desc>'
    drawn = re.sub(r"(<svg [^>]*?)>", lambda found: found.group(1) + words, drawn, count=1)
    for path, data in ((png, pixels), (svg, drawn.encode())):
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return Picture(png, svg, label(alt_text))
