"""The history's picture: where the points stand, what breaks, what the axis does below zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from gpudrift.records import HistoryPoint
from gpudrift.report import style, timeaxis, timeline

Make = Callable[..., HistoryPoint]


def drawn(points: list[HistoryPoint], **keywords: object) -> Axes:
    ax = Figure().subplots()
    timeline.draw_history(ax, points, **keywords)  # type: ignore[arg-type]
    return ax


def joined(ax: Axes) -> np.ndarray:
    """The y values of the line that joins the scores, NaN at its breaks."""
    (line,) = [line for line in ax.lines if line.get_color() == timeline.JOIN]
    return np.asarray(line.get_ydata(), float)


def test_the_axis_copes_with_scores_at_and_below_zero(make_point: Make) -> None:
    points = [make_point(0, -5e-4), make_point(1, 0.0), make_point(2, 3e-4), make_point(3, 0.05, "alert")]
    ax = drawn(points)
    low, high = ax.get_ylim()
    assert low < -5e-4
    assert high > 0.05
    ticks = ax.get_yticks()
    assert 0.0 in ticks
    places = ax.transData.transform([(0, p.score) for p in points])[:, 1]
    assert (np.diff(places) > 0).all()  # still in order
    # linear up to the null sd: equal steps of the score are equal steps on the axis
    steps = np.diff(ax.transData.transform([(0, value) for value in (-3e-4, 0.0, 1.5e-4, 3e-4)])[:, 1])
    assert steps[0] == pytest.approx(2 * steps[1])
    assert steps[1] == pytest.approx(steps[2])
    decades = np.diff(ax.transData.transform([(0, value) for value in (5e-4, 5e-3, 5e-2)])[:, 1])
    assert decades[0] == pytest.approx(decades[1])


def test_intervals_stay_on_the_axis(make_point: Make) -> None:
    points = [make_point(0, 1e-4, se=8e-4), make_point(1, 2e-3), make_point(2, 0.02, "alert", se=0.03)]
    ax = drawn(points)
    low, high = ax.get_ylim()
    assert low < 1e-4 - 1.96 * 8e-4
    assert low < 0.02 - 1.96 * 0.03
    assert high > 0.02 + 1.96 * 0.03


@pytest.mark.parametrize("compact", [False, True])
def test_ticks_of_the_score_stand_apart(compact: bool, make_point: Make) -> None:
    ax = drawn([make_point(k, 10.0**-k, null_sd=1e-5) for k in range(8)], compact=compact)
    heights = ax.transAxes.inverted().transform(ax.transData.transform([(0, tick) for tick in ax.get_yticks()]))[:, 1]
    assert len(heights) >= 3
    assert 0.0 in ax.get_yticks()
    assert (np.diff(heights) >= (0.18 if compact else 0.06)).all()


def test_missing_windows_and_missing_scores_break_the_line(make_point: Make) -> None:
    points = [make_point(0, 0.001), make_point(1, 0.002), make_point(4, 0.003), make_point(5, 0.001)]
    values = joined(drawn(points))
    np.testing.assert_array_equal(values, [0.001, 0.002, np.nan, 0.003, 0.001])
    points[1] = make_point(1, None, "insufficient")
    ax = drawn(points)
    np.testing.assert_array_equal(joined(ax), [0.001, np.nan, np.nan, 0.003, 0.001])
    at_the_foot = [line for line in ax.lines if line.get_marker() == style.VERDICT_MARKERS["insufficient"]]
    shown = [line for line in at_the_foot if len(line.get_xdata())]
    assert len(shown) == 1
    assert 0 < float(np.asarray(shown[0].get_ydata())[0]) < 0.1  # a share of the axes' height


def test_order_of_the_points_does_not_matter(make_point: Make) -> None:
    points = [make_point(week, 0.001 * (week + 1)) for week in range(6)]
    np.testing.assert_array_equal(joined(drawn(points[::-1])), joined(drawn(points)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_points_are_not_stretched(count: int, make_point: Make) -> None:
    left, right = drawn([make_point(week, 0.001) for week in range(count)]).get_xlim()
    assert right - left >= 7 * timeaxis.LEAST_WINDOWS


def test_a_near_reference_is_shaded_and_a_far_one_does_not_squeeze_the_points(make_point: Make) -> None:
    points = [make_point(week, 0.001) for week in range(100, 120)]
    near = (datetime(2025, 6, 2, tzinfo=UTC), datetime(2025, 11, 1, tzinfo=UTC))
    far = (datetime(2015, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
    ax = drawn(points, reference_span=near)
    assert ax.get_xlim()[0] < date2num(near[0])
    assert "reference" in [text.get_text() for text in ax.texts]
    ax = drawn(points, reference_span=far)
    assert ax.get_xlim() == drawn(points).get_xlim()
    assert "reference" not in [text.get_text() for text in ax.texts]


def test_the_band_is_each_windows_own_limit(make_point: Make) -> None:
    limits = [0.003, 0.004, None, 0.005]
    points = [make_point(week, 0.001, clear_limit=limit) for week, limit in enumerate(limits)]
    ax = drawn(points)
    band = ax.collections[0].get_paths()[0].vertices
    middles = [float(date2num(p.window.start)) + 3.5 for p in points]
    tops = [max(y for x, y in band if x_left <= x <= x_left + 7.01) for x_left in (m - 3.5 for m in middles)]
    assert tops[0] == pytest.approx(0.004)  # the step to the next window stands on the shared edge
    assert tops[3] == pytest.approx(0.005)
    assert {round(float(y), 6) for _, y in band if y > 0} == {0.003, 0.004, 0.005}


def test_verdicts_differ_by_colour_and_shape(make_point: Make) -> None:
    assert len(set(style.VERDICT_COLORS.values())) == len(set(style.VERDICT_MARKERS.values())) == 4
    points = [make_point(0, 0.001), make_point(1, 0.01, "warning"), make_point(2, 0.02, "alert")]
    ax = drawn(points, current_label=points[2].window.label)
    for point in points:
        marks = [
            line
            for line in ax.lines
            if line.get_marker() == style.VERDICT_MARKERS[point.verdict]
            and len(line.get_xdata()) == 1
            and line.get_markerfacecolor() != "none"  # the ring around the current window
        ]
        assert [float(np.asarray(line.get_ydata())[0]) for line in marks] == [point.score]
        assert marks[0].get_color() == style.VERDICT_COLORS[point.verdict]
    words = [text.get_text() for text in ax.texts]
    assert words == [f"{points[2].window.label}: 0.02, 33x usual"]


def test_windows_inside_the_reference_are_hollow(make_point: Make) -> None:
    ax = drawn([make_point(0, 0.001, in_reference=True), make_point(1, 0.001)])
    faces = {line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1}
    assert faces == {style.CARD, style.VERDICT_COLORS["stable"]}


def test_scale_without_a_null_sd(make_point: Make) -> None:
    point = make_point(0, 0.02, null_sd=None)
    assert timeline.null_scale([point]) == 0.02
    assert timeline.null_scale([dataclasses.replace(point, score=None)]) == 1.0
    assert timeline.null_scale([point, make_point(1, 0.5, null_sd=1e-3)]) == 1e-3


def axes_share(ax: Axes, point: HistoryPoint) -> float:
    """Where the point's middle stands on the time axis, from 0 to 1."""
    place = ax.get_xaxis_transform().transform((float(date2num(point.window.start)) + 3.5, 0.0))
    return float(ax.transAxes.inverted().transform(place)[0])


def test_years_without_a_window_are_a_break_not_an_empty_picture(make_point: Make) -> None:
    points = [make_point(week, 0.001) for week in [*range(24), 300]]
    ax = drawn(points)
    shares = [axes_share(ax, point) for point in points]
    assert shares == sorted(shares)
    assert shares[23] > 0.6  # the half year has most of the axis
    assert 1 - shares[24] >= 0.49 * timeaxis.LEAST_SHARE / (1 + timeaxis.LEAST_SHARE)  # and the last has room
    assert shares[24] - shares[23] < 0.2
    assert np.ptp(np.diff(shares[:24])) < 1e-9  # time is even within a stretch
    assert "5.3 years without a window" in [text.get_text() for text in ax.texts]
    np.testing.assert_array_equal(np.isnan(joined(ax)), [k == 24 for k in range(26)])
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels[-1].endswith("2029")
    assert labels[0].endswith("2024")


@pytest.mark.parametrize("weeks", [range(60), [*range(30), *range(45, 80)], [0, 5, 9, 12], [0]])
def test_ordinary_gaps_are_no_break(weeks: list[int], make_point: Make) -> None:
    points = [make_point(week, 0.001) for week in weeks]
    ax = drawn(points)
    assert not any("without" in text.get_text() for text in ax.texts)
    shares = [axes_share(ax, point) for point in points]
    slope = (shares[-1] - shares[0]) / max(weeks[-1] - weeks[0], 1)
    np.testing.assert_allclose(shares, [shares[0] + slope * (week - weeks[0]) for week in weeks])


@given(
    st.lists(st.tuples(st.integers(0, 30) | st.integers(0, 20_000), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(1, 8),
)
def test_stretches_hold_every_span_and_their_ticks_fit(spans: list[tuple[int, int]], most: int) -> None:
    known = [(float(start), float(start + days)) for start, days in spans]
    found = timeaxis.stretches(known, 7.0)
    assert all(any(a <= start and end <= b for a, b in found) for start, end in known)
    assert all(after[0] - before[1] > 7 * timeaxis.LEAST_WINDOWS for before, after in pairwise(found))
    for part in found:
        ticks = timeaxis._dates(part, most)
        assert 1 <= len(ticks) <= most
        assert all(part[0] <= tick <= part[1] for tick, _ in ticks)
        assert len({name for _, name in ticks}) == len(ticks) or part[1] - part[0] < most
