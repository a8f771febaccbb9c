"""The heat map: every cell where it belongs, darker further out, and nothing where nothing is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from picture_checks import LONG, assert_text_fits, shown_texts

from gpudrift.errors import ArgumentError
from gpudrift.records import HistoryPoint, Verdict, Window
from gpudrift.report import heatmap, plots, style
from gpudrift.report.heatmap import HeatCell

Make = Callable[..., HistoryPoint]


@pytest.fixture
def week(make_point: Make) -> Callable[[int], Window]:
    return lambda k: make_point(k, 0.001).window


@pytest.fixture
def cells(week: Callable[[int], Window]) -> list[HeatCell]:
    """Four segments over ten weeks, one of them missing: one calm, one that drifts, one short, one rare."""
    found = []
    for k in (0, 1, 2, 3, 4, 6, 7, 8, 9):
        drifted: Verdict = "stable" if k < 7 else "warning" if k == 7 else "alert"
        found.append(HeatCell("topic=calm", week(k), 0.1 * k - 0.2, "stable"))
        found.append(HeatCell("topic=moves", week(k), 0.3 if k < 7 else 1.5 * (k - 6), drifted))
        found.append(HeatCell("topic=rare", week(k), None, "insufficient"))
        if k > 7:
            found.append(HeatCell("topic=late", week(k), 20.0, "warning"))
    return found


def drawn(cells: list[HeatCell]) -> tuple[Axes, list[str], list[Window]]:
    ax = Figure().subplots()
    segments, windows = heatmap.chosen_segments(cells), sorted({cell.window for cell in cells})
    heatmap.draw_heatmap(ax, cells, segments, windows, 8.0)
    return ax, segments, windows


def marked(ax: Axes, verdict: Verdict) -> dict[tuple[int, int], str]:
    """Cells (column, row) with the verdict's mark, and the mark's colour."""
    lines = [line for line in ax.lines if line.get_marker() == style.VERDICT_MARKERS[verdict]]
    return {(x, y): line.get_color() for line in lines for x, y in zip(*line.get_data(), strict=True)}


def test_a_map_of_segments(check_picture: Callable[..., tuple[plots.Picture, Figure]], cells: list[HeatCell]) -> None:
    picture, figure = check_picture(lambda stem: plots.segment_heatmap(cells, stem, job="weekly"))
    said = [text for text, _ in shown_texts(figure)]
    assert said.index("topic=moves") < said.index("topic=late") < said.index("topic=calm") < said.index("topic=rare")
    assert {"warning", "alert", "insufficient", "8x or more", cells[-1].window.label} <= set(said)
    assert "segments: 4" in picture.alt_text
    assert "topic=moves alert, 4.5x its tolerance; topic=late warning, 20x its tolerance." in picture.alt_text


def test_cells_hold_their_ratio_and_marks_their_verdict(cells: list[HeatCell]) -> None:
    ax, segments, windows = drawn(cells)
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    held = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(len(segments), len(windows))
    expected = np.full(held.shape, np.nan)
    for cell in cells:
        if cell.ratio is not None:
            expected[segments.index(cell.segment), windows.index(cell.window)] = cell.ratio
    np.testing.assert_array_equal(held, expected)
    assert ax.get_ylim() == (len(segments) - 0.5, -0.5)  # the first on top
    places = {(windows.index(c.window), segments.index(c.segment)): c for c in cells}
    for verdict in ("warning", "alert"):
        found = marked(ax, verdict)
        assert set(found) == {place for place, c in places.items() if c.verdict == verdict}
        for place, color in found.items():
            ratio = places[place].ratio
            assert ratio is not None
            assert color == (style.CARD if ratio >= 2 else style.INK)
    (hatched,) = [c for c in ax.collections if isinstance(c, PatchCollection)]
    assert len(hatched.get_paths()) == 9
    assert hatched.get_hatch()


def test_a_gap_in_time_is_shown(cells: list[HeatCell]) -> None:
    ax, _, windows = drawn(cells)
    gaps = [float(line.get_xdata()[0]) for line in ax.lines if line.get_linestyle() == "--"]
    assert gaps == [4.5]
    assert windows[5].start > windows[4].end


def test_darker_is_further_out_and_every_ratio_has_its_colour() -> None:
    light = [float(np.dot([0.2126, 0.7152, 0.0722], to_rgb(color))) for color in heatmap.COLORS]
    assert all(a - b > 0.03 for a, b in pairwise(light))
    assert [to_rgb(color)[0] > to_rgb(color)[2] for color in heatmap.COLORS] == [False, False, True, True, True, True]
    assert heatmap.EDGES[1] == 1.0  # the first two are within the tolerance


def test_the_worst_thirty_and_the_last_windows_are_shown(
    week: Callable[[int], Window], capture: Callable[..., Figure]
) -> None:
    many = [HeatCell(f"s={k}", week(w), k / 10, "stable") for k in range(40) for w in range(70)]
    many[3] = dataclasses.replace(many[3], ratio=99.0)  # of a window too old to be shown
    recent = [cell for cell in many if cell.window >= week(10)]
    assert heatmap.chosen_segments(recent) == [f"s={k}" for k in range(39, 9, -1)]
    assert heatmap.chosen_segments(recent[::-1]) == heatmap.chosen_segments(recent)
    worst = [*recent, HeatCell("s=new", week(69), 0.0, "alert"), HeatCell("s=old", week(20), 0.0, "alert")]
    assert heatmap.chosen_segments(worst)[0] == "s=new"
    assert "s=old" not in heatmap.chosen_segments(worst)
    figure = capture(lambda: plots.segment_heatmap(many, "p"))
    said = " ".join(text for text, _ in shown_texts(figure))
    assert "30 of 40 segments, the last 60 of 70 windows" in said
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)]
    assert mesh.get_array().max() == 3.9
    assert_text_fits(figure)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_cells_are_drawn(count: int, cells: list[HeatCell], capture: Callable[..., Figure]) -> None:
    figure = capture(lambda: plots.segment_heatmap(cells[:count], "p"))
    said = [text for text, _ in shown_texts(figure)]
    assert ("no segments were scored" in said) == (count == 0)
    if count:
        assert_text_fits(figure)


def test_ratios_of_every_size_are_drawn(week: Callable[[int], Window], capture: Callable[..., Figure]) -> None:
    values = [None, float("nan"), float("inf"), -5.0, 0.0, 1e-300, 1e300]
    odd = [HeatCell("a=b", week(k), value, "alert") for k, value in enumerate(values)]
    assert_text_fits(capture(lambda: plots.segment_heatmap(odd, "p")))


def test_hostile_segments_fit(
    check_picture: Callable[..., tuple[plots.Picture, Figure]], cells: list[HeatCell]
) -> None:
    windows = {cell.window: dataclasses.replace(cell.window, label=f"{cell.window.label} $x$") for cell in cells}
    long = [HeatCell(f"{c.segment}={LONG}", windows[c.window], c.ratio, c.verdict) for c in cells]
    picture, _ = check_picture(lambda stem: plots.segment_heatmap(long, stem, job=LONG))
    svg = picture.svg.read_text("utf-8")
    assert "topic=moves=a$b_{c}$" in svg
    assert "<img" not in svg


def test_two_cells_of_one_place_are_refused(cells: list[HeatCell]) -> None:
    with pytest.raises(ArgumentError, match="twice"):
        plots.segment_heatmap([*cells, cells[0]], "p")
