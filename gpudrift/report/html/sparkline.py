"""The history of the score as a small SVG inside a page: no picture file, no library, colours of the page itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from gpudrift.records import Verdict
from gpudrift.report.html.texts import tidy
from gpudrift.report.wording import number

WIDTH, HEIGHT, EDGE = 1000.0, 110.0, 8.0
SIZE = {"stable": 2.6, "warning": 4.4, "alert": 4.6, "insufficient": 3.0}
FLOOR = 0.1  # of the median limit: below it the axis is about linear


@dataclass(frozen=True)
class Mark:
    """A window. joined: it follows the one before it, against the same reference."""

    label: str
    verdict: Verdict
    score: float | None
    limit: float | None
    joined: bool


def sparkline(marks: Sequence[Mark]) -> Markup | None:
    """The windows from left to right, evenly, on a logarithmic axis; None with fewer than two scores."""
    scored = [mark.score for mark in marks if mark.score is not None]
    if len(scored) < 2:
        return None
    limits = [mark.limit for mark in marks if mark.limit is not None and mark.limit > 0]
    floor = FLOOR * median(limits) if limits else max(max(scored) / 100, 1e-300)
    heights = [math.log(max(value, 0.0) + floor) for value in (*scored, *limits)]
    low, high = min(heights), max(heights)
    span = max(high - low, 1e-9)  # 0 where all are alike

    def x(place: int) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * place / (len(marks) - 1)

    def y(value: float) -> float:
        share = (math.log(max(value, 0.0) + floor) - low) / span
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * share

    parts = [_path("limit", [(x(k), y(m.limit)) if m.limit is not None else None for k, m in enumerate(marks)], marks)]
    parts.append(
        _path("score", [(x(k), y(m.score)) if m.score is not None else None for k, m in enumerate(marks)], marks)
    )
    parts += [_shape(mark, x(k), y(mark.score)) for k, mark in enumerate(marks) if mark.score is not None]
    said = f"Scores of {len(marks)} windows, {tidy(marks[0].label, 40)} to {tidy(marks[-1].label, 40)}"
    return Markup('<svg class="spark" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, said, Markup("").join(parts)
    )


def _path(name: str, points: Sequence[tuple[float, float] | None], marks: Sequence[Mark]) -> Markup:
    """A line through the points, broken where one is missing or not joined to the one before."""
    steps, drawn = [], False
    for point, mark in zip(points, marks, strict=True):
        if point is not None:
            steps.append(f"{'L' if drawn and mark.joined else 'M'}{point[0]:.1f} {point[1]:.1f}")
            if not mark.joined:
                steps.append("h0.01")  # a window alone is a dot
        drawn = point is not None
    return Markup('<path class="{}" d="{}"/>').format(name, "".join(steps))


def _shape(mark: Mark, x: float, y: float) -> Markup:
    """Told apart by shape too: stable a dot, warning a triangle, alert a diamond, insufficient a cross."""
    size = SIZE[mark.verdict]
    told = Markup("<title>{}: {}, score {}</title>").format(tidy(mark.label, 40), mark.verdict, number(mark.score))
    if mark.verdict == "stable":
        return Markup('<circle class="stable" cx="{:.1f}" cy="{:.1f}" r="{}">{}</circle>').format(x, y, size, told)
    paths = {
        "warning": f"M{x:.1f} {y - size:.1f}l{size} {1.8 * size:.1f}h{-2 * size}z",
        "alert": f"M{x:.1f} {y - size:.1f}l{size} {size}l{-size} {size}l{-size} {-size}z",
        "insufficient": f"M{x - size:.1f} {y - size:.1f}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}",
    }
    return Markup('<path class="{}" d="{}">{}</path>').format(mark.verdict, paths[mark.verdict], told)
