"""What every picture is held to: text that fits, files that stand alone; and the text no picture may stumble over."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from gpudrift.report import style
from gpudrift.report.plots import Picture

NASTY = "a$b_{c}$ <img src='x'> & $\\frac$ \x1b[31m 漢字 ]]> -->"
LONG = f"{NASTY} {'x' * 300} and then some more words that go on"


def outside_references(svg: str) -> list[str]:
    """Every attribute and style value that would make a viewer fetch something."""
    found = re.findall(r"url\((?!#)[^)]*\)|@import[^;]*", svg)
    for element in ET.fromstring(svg).iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src") and not value.startswith(("#", "data:")):
                found.append(value)
    return found


def assert_stands_alone(picture: Picture) -> None:
    """The SVG needs nothing but itself, says what it shows, and neither file tells who made it."""
    svg = picture.svg.read_text("utf-8")
    assert outside_references(svg) == []
    assert "<!DOCTYPE" not in svg
    assert matplotlib.__version__ not in svg
    root = ET.fromstring(svg)
    space = {"s": "http://www.w3.org/2000/svg"}
    assert root.get("role") == "img"
    assert root.findtext("s:title", namespaces=space)
    assert root.findtext("s:desc", namespaces=space) == picture.alt_text
    assert len(picture.alt_text) > 40
    assert matplotlib.__version__.encode() not in picture.png.read_bytes()


def assert_same_bytes(first: Picture, second: Picture) -> None:
    assert first.png.read_bytes().startswith(b"\x89PNG")
    assert first.png.read_bytes() == second.png.read_bytes()
    assert first.svg.read_bytes() == second.svg.read_bytes()


def shown_texts(figure: Figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text on the figure with its box (x0, y0, x1, y1) in pixels, without the ticks outside the axes' limits,
    which are not drawn."""
    hidden: set[int] = set()
    for ax in figure.findobj(lambda artist: hasattr(artist, "get_xticklabels")):
        for axis, limits in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):  # type: ignore[attr-defined]
            for tick in axis.get_major_ticks():
                if not limits[0] <= tick.get_loc() <= limits[1]:
                    hidden |= {id(tick.label1), id(tick.label2)}
    return [
        (text.get_text(), Text.get_window_extent(text).extents)  # type: ignore[arg-type, attr-defined]  # without arrows
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden  # type: ignore[attr-defined]
    ]


def assert_text_fits(figure: Figure) -> None:
    width, height = figure.bbox.width, figure.bbox.height
    texts = shown_texts(figure)
    assert len(texts) > 5
    for text, (x0, y0, x1, y1) in texts:
        assert x0 >= -0.5, f"{text!r} is cut at the left"
        assert y0 >= -0.5, f"{text!r} is cut at the bottom"
        assert x1 <= width + 0.5, f"{text!r} is cut at the right"
        assert y1 <= height + 0.5, f"{text!r} is cut at the top"
    for (text_a, a), (text_b, b) in combinations(texts, 2):
        overlap = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        # boxes hold ascenders and descenders that most lines do not use
        assert min(overlap) <= 0.02 * figure.dpi, f"{text_a!r} and {text_b!r} overlap by {overlap}"


def assert_text_fits_as_written(figure: Figure) -> None:
    """At the resolution of the PNG and at that of the SVG."""
    for dpi in (style.DPI, 72):
        figure.dpi = dpi
        with style.drawing():
            figure.draw_without_rendering()
        assert_text_fits(figure)
