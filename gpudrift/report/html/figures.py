"""Pictures inside a page: as data: addresses, each with what it shows in words and how to read it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from gpudrift.report.style import Picture

LARGER = 1.25  # times the PNG's bytes that the SVG, sharp at every size, may take
MOST_SVG = 600_000  # bytes

# how to read the pictures of a run, by the name of their file; those not named here are told by their alt text
CAPTIONS = {
    "history": "Each point is a window, its height the distance from the reference with a 95% interval. In the grey "
    "band movement is usual; beyond the dashed line it is more than the tolerance.",
    "clusters": "Shares of the rows that each cluster of alike rows has in the reference and in this window.",
    "witness": "Rows of this window on the first two principal components, the two directions in which the reference "
    "varies most. Coloured rows lie far from the reference and close to each other; rings mark those that moved most.",
    "segments": "Each segment over the windows, by its own score over its own tolerance.",
    "pca": "Both sets of rows on the first two principal components, the two directions in which the reference varies "
    "most.",
    "pc1": "The same rows along the first principal component alone.",
    "components": "Spread of the reference and of this window along each principal component, and by how much the mean "
    "moved along it.",
    "quality": "Lengths of the vectors.",
    "outcomes": "The score of the drift above, each product metric below, window by window; windows in which the drift "
    "spikes are shaded.",
    "outcome_lags": "How closely each metric goes with the drift, in the same window and in those after it.",
    "outcome_events": "Each metric before and after spikes of the drift, beside what it does anyway.",
}


@dataclass(frozen=True)
class Figure:
    """name: of the picture's file. source: a data: address. alt: what it shows. caption: how to read it."""

    name: str
    source: Markup
    alt: str
    caption: str


def figures(pictures: Sequence[Picture]) -> dict[str, Figure]:
    """By name, in their order."""
    return {picture.png.stem: _figure(picture) for picture in pictures}


def _figure(picture: Picture) -> Figure:
    name = picture.png.stem
    alt = picture.alt_text.strip() or f"Picture {name}"
    return Figure(name, source(picture), alt, CAPTIONS.get(name, alt))


def source(picture: Picture) -> Markup:
    """The SVG where it is about as small as the PNG, else the PNG."""
    svg, png = picture.svg.stat().st_size, picture.png.stat().st_size
    if svg <= LARGER * png and svg <= MOST_SVG:
        return _address("image/svg+xml", picture.svg)
    return _address("image/png", picture.png)


def _address(kind: str, path: Path) -> Markup:
    return Markup("data:{};base64,{}").format(kind, base64.b64encode(path.read_bytes()).decode("ascii"))
