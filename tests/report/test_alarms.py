"""The backtest's picture: scores over tolerance, verdicts at the foot, onsets named without covering each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from picture_checks import LONG, assert_text_fits, shown_texts

from gpudrift.errors import ArgumentError
from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report import alarms, plots, style
from gpudrift.report.alarms import AlarmStrip

Make = Callable[..., HistoryPoint]


@pytest.fixture
def strips(long_history: list[HistoryPoint]) -> list[AlarmStrip]:
    return [AlarmStrip(f"{k} windows", long_history[200 + k :]) for k in (8, 12, 26)]


def onset(week: int, name: str) -> tuple[datetime, str]:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(weeks=week), name


def strip_heights(ax: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """(left, right, height) of the boxes at the foot, by verdict."""
    of_color = {to_rgba(color): verdict for verdict, color in style.VERDICT_COLORS.items()}
    found: dict[str, list[tuple[float, float, float]]] = {}
    for collection in ax.collections:
        if isinstance(collection, PatchCollection):
            boxes = [path.get_extents() for path in collection.get_paths()]
            verdict = of_color[tuple(collection.get_facecolor()[0])]
            found[verdict] = [(box.x0, box.x1, box.y1) for box in boxes]
    return found


def test_a_picture_of_three_settings(
    check_picture: Callable[..., tuple[plots.Picture, Figure]], strips: list[AlarmStrip]
) -> None:
    onsets = [onset(240, "a burst"), onset(260, "new catalogue"), onset(262, "encoder changed"), onset(900, "later")]
    quiet = [(onset(225, "")[0], onset(255, "")[0])]
    picture, figure = check_picture(
        lambda stem: plots.alarm_timeline(strips, stem, onsets=onsets, quiet=quiet, job="weekly")
    )
    said = [text for text, _ in shown_texts(figure)]
    assert {"8 windows", "26 windows", "a burst", "new catalogue", "encoder changed", "known to be quiet"} <= set(said)
    assert {"44 alerts, 1 warning", "in 92 windows", "in 74 windows"} <= set(said)
    assert any(text.startswith("Onsets outside the time shown: later (2041-") for text in said)
    assert picture.alt_text.endswith("3 known onsets.")
    assert "8 windows: 44 alerts, 1 warning in 92 windows" in picture.alt_text
    assert len(figure.axes) == 3
    for ax in figure.axes:
        drawn = [float(line.get_xdata()[0]) for line in ax.lines if line.get_color() == style.INK]
        assert drawn == [float(date2num(moment)) for moment, _ in onsets[:3]]


def test_scores_are_drawn_over_their_own_tolerance(make_point: Make) -> None:
    verdicts: list[Verdict] = ["stable", "warning", "alert", "insufficient", "stable"]
    scores = [0.003, 0.012, 0.06, None, -0.01]
    points = [
        make_point(week, score, verdict, delta=0.006 * (1 + (week == 2)))
        for week, (score, verdict) in enumerate(zip(scores, verdicts, strict=True))
    ]
    ratios = alarms.ratios_of(points)
    np.testing.assert_allclose(ratios, [0.5, 2.0, 5.0, np.nan, alarms.LOWEST])
    ax = Figure().subplots()
    alarms.draw_strip(ax, AlarmStrip("a", points[::-1]), 5.0, 1.5)
    (joined,) = [line for line in ax.lines if line.get_color() == alarms.JOIN]
    np.testing.assert_allclose(joined.get_ydata(), ratios)
    for verdict in ("stable", "warning", "alert"):
        marks = [line for line in ax.lines if line.get_marker() == style.VERDICT_MARKERS[verdict]]
        shown = sorted(float(value) for line in marks for value in line.get_ydata())
        assert shown == sorted(r for r, v in zip(ratios, verdicts, strict=True) if v == verdict)
    found = strip_heights(ax)
    assert {verdict: len(boxes) for verdict, boxes in found.items()} == {
        "stable": 2,
        "warning": 1,
        "alert": 1,
        "insufficient": 1,
    }
    (left, right, _) = found["alert"][0]
    assert (left, right) == (float(date2num(points[2].window.start)), float(date2num(points[2].window.end)))
    heights = [found[verdict][0][2] for verdict in ("insufficient", "stable", "warning", "alert")]
    assert heights == sorted(set(heights))  # told apart without colour
    # the lowest score stands above the strip
    lowest = ax.transAxes.inverted().transform(ax.transData.transform((left, alarms.LOWEST)))[1]
    assert lowest > heights[-1] + 0.02


def test_a_missing_window_breaks_the_line(make_point: Make) -> None:
    points = [make_point(0, 0.006), make_point(1, 0.012), make_point(5, 0.006)]
    ax = Figure().subplots()
    alarms.draw_strip(ax, AlarmStrip("a", points), 5.0, 1.5)
    (joined,) = [line for line in ax.lines if line.get_color() == alarms.JOIN]
    np.testing.assert_allclose(joined.get_ydata(), [1.0, 2.0, np.nan, 1.0])


@given(st.lists(st.tuples(st.floats(0, 8.3), st.floats(0.1, 1.6)), max_size=25))
def test_names_of_onsets_neither_overlap_nor_cross_lines(places: list[tuple[float, float]]) -> None:
    spans = sorted((left, left + width) for left, width in places)
    levels = alarms.onset_levels(spans)
    assert len(levels) == len(spans)
    named = [(span, level) for span, level in zip(spans, levels, strict=True) if level is not None]
    assert bool(named) == bool(spans)
    assert all(0 <= level < alarms.LEVELS for _, level in named)
    for (a, level_a), (b, level_b) in combinations(named, 2):
        if a[0] <= b[0] < a[1]:  # the line of b goes down from b[0], under a's name
            assert level_b < level_a


def test_many_onsets_at_once_are_counted_where_there_is_no_room(
    strips: list[AlarmStrip], capture: Callable[..., Figure]
) -> None:
    onsets = [onset(250 + k, f"onset number {k}") for k in range(9)]
    figure = capture(lambda: plots.alarm_timeline(strips[:1], "p", onsets=onsets))
    said = [text for text, _ in shown_texts(figure)]
    assert sum(text.startswith("onset number") for text in said) == alarms.LEVELS
    assert "4 of 9 onsets stand without their name: there is no room." in said
    assert_text_fits(figure)


def test_little_input_is_drawn(make_point: Make, capture: Callable[..., Figure]) -> None:
    one = AlarmStrip("one", [make_point(0, 0.01, "alert")])
    bare = AlarmStrip("bare", [make_point(0, None, "insufficient"), make_point(1, 0.01, delta=None)])
    huge = AlarmStrip("huge", [make_point(0, 1e9, "alert"), make_point(300, float("inf"))])
    for strips in ([one], [one, AlarmStrip("none", [])], [bare], [huge], [one] * alarms.MOST):
        assert_text_fits(capture(lambda strips=strips: plots.alarm_timeline(strips, "p", onsets=[onset(0, "o")])))
    for strips in ([], [AlarmStrip("none", [])]):
        figure = capture(lambda strips=strips: plots.alarm_timeline(strips, "p", onsets=[onset(0, "o")]))
        assert "no window has been replayed yet" in [text for text, _ in shown_texts(figure)]


def test_years_without_a_window_are_a_break_in_every_panel(make_point: Make, capture: Callable[..., Figure]) -> None:
    points = [make_point(week, 0.001) for week in [*range(30), *range(400, 420)]]
    figure = capture(lambda: plots.alarm_timeline([AlarmStrip("a", points)] * 2, "p", onsets=[onset(405, "late")]))
    for ax in figure.axes:
        assert any("without a window" in text.get_text() for text in ax.texts)
    assert_text_fits(figure)


def test_hostile_names_fit(
    check_picture: Callable[..., tuple[plots.Picture, Figure]], long_history: list[HistoryPoint]
) -> None:
    strips = [AlarmStrip(LONG, long_history[:40]), AlarmStrip("$x_1$", long_history[20:60])]
    onsets = [onset(k, LONG) for k in range(0, 50, 4)] + [onset(900 + k, LONG) for k in range(9)]
    picture, _ = check_picture(lambda stem: plots.alarm_timeline(strips, stem, onsets=onsets, job=LONG, title=LONG))
    svg = picture.svg.read_text("utf-8")
    assert "$x_1$" in svg
    assert "<img" not in svg


def test_too_many_settings_are_refused(strips: list[AlarmStrip]) -> None:
    with pytest.raises(ArgumentError, match="settings"):
        plots.alarm_timeline([dataclasses.replace(strips[0])] * (alarms.MOST + 1), "p")
