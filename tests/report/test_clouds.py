"""What the maps and histograms show is what the rows hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from gpudrift.report import clouds, density


def axes() -> Axes:
    return Figure().subplots()


def no_change_said(ax: Axes) -> bool:
    return any("no certain change" in text.get_text() for text in ax.texts)


def coloured_at(ax: Axes, point: tuple[float, float]) -> str | None:
    """The colour of the last filled region over ``point``, None where the map is blank."""
    found = None
    for collection in ax.collections:
        faces = collection.get_facecolor()
        for path, face in zip(collection.get_paths(), faces, strict=False):
            if face[3] > 0 and path.codes is not None and path.contains_point(point):
                found = clouds.style.CURRENT if face[0] > face[2] else clouds.style.REFERENCE
    return found


@pytest.mark.parametrize(("n", "m"), [(400_000, 400_000), (20_000, 300)])
def test_regions_hold_the_shares_they_promise(n: int, m: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])
    frame = density.frame_of(x, x[:m])
    held = density.smoothed(density.bin_counts(x, frame), density.smoothing_widths(x, frame, 0.7))
    levels = density.mass_levels(held, clouds.SHARES, n)
    assert levels == sorted(levels)
    for share, level in zip(clouds.SHARES, levels, strict=True):
        # which bin each row is in, and whether that bin is in the region
        column = np.floor((x[:, 0] - frame.x[0]) / (frame.x[1] - frame.x[0]) * density.GRID[0]).astype(int)
        row = np.floor((x[:, 1] - frame.y[0]) / (frame.y[1] - frame.y[0]) * density.GRID[1]).astype(int)
        inside = (column >= 0) & (column < density.GRID[0]) & (row >= 0) & (row < density.GRID[1])
        covered = held[row[inside], column[inside]] >= level
        assert covered.sum() / n == pytest.approx(share, abs=0.02)


def test_counts_are_those_of_numpy() -> None:
    x = np.random.default_rng(3).normal(size=(5000, 2))
    frame = density.Frame((-1.5, 2.0), (-1.0, 1.0), 0, 0)
    edges = [np.linspace(*limits, k + 1) for limits, k in zip((frame.x, frame.y), density.GRID, strict=True)]
    expected, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=edges)
    np.testing.assert_array_equal(density.bin_counts(x, frame), expected)


def test_smoothing_keeps_the_rows_and_the_place() -> None:
    counts = np.zeros(density.GRID)
    counts[60, 30] = 100.0
    held = density.smoothed(counts, (4.0, 3.0))
    assert held.shape == density.GRID[::-1]
    assert held.sum() == pytest.approx(100.0)
    assert np.unravel_index(held.argmax(), held.shape) == (30, 60)
    assert density.bins_held((4.0, 3.0)) == pytest.approx(1 / ((held / 100.0) ** 2).sum(), rel=1e-6)


def test_clusters_that_lie_apart_are_smoothed_finer_and_one_cloud_is_not() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 2))
    apart = centres[rng.integers(0, 8, 4000)] + 0.08 * rng.normal(size=(4000, 2))
    frame = density.frame_of(apart, apart)
    step = (frame.x[1] - frame.x[0]) / density.GRID[0]
    assert density.smoothing_widths(apart, frame, 1.0)[0] * step < 0.08  # else neighbours run into each other
    held = density.smoothed(density.bin_counts(apart, frame), density.smoothing_widths(apart, frame, 0.7))
    (level,) = density.mass_levels(held, (0.9,), 4000)
    area = float((held >= level).sum()) * step * (frame.y[1] - frame.y[0]) / density.GRID[1]
    exact = 8 * np.pi * 2 * np.log(10) * 0.08**2  # 90% of a normal cluster: a circle of radius 2.15 sd
    assert 0.7 * exact < area < 1.3 * exact
    for rows in (150, 1500):
        one = rng.normal(size=(rows, 2))
        frame = density.frame_of(one, one)
        q1, q3 = np.quantile(one[:, 1], [0.25, 0.75])
        scott = rows ** (-1 / 6) * (q3 - q1) / 1.349 * density.GRID[1] / (frame.y[1] - frame.y[0])
        assert density.smoothing_widths(one, frame, 1.0)[1] == pytest.approx(min(scott, 20.0))


def test_no_drift_shows_no_spot_and_a_new_cluster_one_in_its_place() -> None:
    rng = np.random.default_rng(0)
    spots = 0
    for _ in range(40):
        x, y = rng.normal(size=(2000, 2)), rng.normal(size=(500, 2))
        ax = axes()
        clouds.draw_change(ax, x, y, density.frame_of(x, y))
        spots += not no_change_said(ax)
    assert spots <= 6  # 5% of pictures: P(more than 6 of 40) < .003
    x = rng.normal(size=(2000, 2))
    y = np.vstack([rng.normal(size=(480, 2)), rng.normal([2.5, 2.5], 0.2, size=(20, 2))])
    ax = axes()
    clouds.draw_change(ax, x, y, density.frame_of(x, y))
    assert coloured_at(ax, (2.5, 2.5)) == clouds.style.CURRENT
    assert coloured_at(ax, (-1.0, 0.0)) is None
    ax = axes()
    clouds.draw_change(ax, np.vstack([y] * 4), x, density.frame_of(x, y))  # the cluster has gone
    assert coloured_at(ax, (2.5, 2.5)) == clouds.style.REFERENCE


def test_limits_keep_a_small_far_cluster_but_not_a_few_outliers() -> None:
    rng = np.random.default_rng(0)
    body, cluster = rng.normal(size=10_000), rng.normal(60, 0.5, 50)
    low, high = density.robust_limits(np.concatenate([body, cluster]), body)
    assert low > -8  # 5% of the interval is margin
    assert 59 < high < 66
    low, high = density.robust_limits(np.concatenate([body, [1e9, -1e9]]), body)
    assert -6 < low < -2.5
    assert 2.5 < high < 6
    assert density.robust_limits(np.array([1.0, 2.0, 3.0, 4.0, 1e6]))[1] < 10


def test_outside_rows_are_counted() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5000, 2)), rng.normal(size=(900, 2))
    x[:2] = [[1e6, 0.0], [0.0, -1e6]]
    y[0] = [1e6, 1e6]
    frame = density.frame_of(x, y)
    outside = [int(((p < [frame.x[0], frame.y[0]]) | (p > [frame.x[1], frame.y[1]])).any(axis=1).sum()) for p in (x, y)]
    assert [frame.outside_reference, frame.outside_current] == outside
    assert frame.outside_reference >= 2
    assert frame.outside_current >= 1


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e100, 1e100), max_size=30),
    st.lists(st.floats(-1e100, 1e100), max_size=30),
)
def test_limits_are_always_a_finite_interval(a: list[float], b: list[float]) -> None:
    low, high = density.robust_limits(np.array(a), np.array(b))
    assert np.isfinite([low, high]).all()
    assert low < high


def test_histograms_have_area_one_and_show_the_shares() -> None:
    rng = np.random.default_rng(0)
    groups = [("a", rng.normal(size=4000)), ("b", rng.normal(1, 1, 500)), ("c", rng.uniform(-1, 1, 900))]
    limits = density.robust_limits(*(values for _, values in groups))
    ax = axes()
    clouds.draw_pc1_histogram(ax, groups, limits)
    outlines = [patch for patch in ax.patches if isinstance(patch, StepPatch) and not patch.get_fill()]
    assert len(outlines) == 3
    for (_, values), patch in zip(groups, outlines, strict=True):
        heights, edges, _ = patch.get_data()
        expected, _ = np.histogram(values, bins=edges)
        np.testing.assert_allclose(heights * np.diff(edges) * len(values), expected)
        assert (heights * np.diff(edges)).sum() == pytest.approx(1.0, abs=0.01)
    means = sorted(line.get_xdata()[0] for line in ax.lines)
    assert means == pytest.approx(sorted(values.mean() for _, values in groups))


def test_both_clouds_share_their_axes_and_few_rows_are_all_drawn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2)), rng.normal(3, 1, size=(40, 2))
    frame = density.frame_of(x, y)
    ax = axes()
    handles = clouds.draw_pca_map(ax, x, y, frame, labels=("ref", "now"))
    assert (ax.get_xlim(), ax.get_ylim()) == (frame.x, frame.y)
    drawn = [np.asarray(c.get_offsets()) for c in ax.collections]
    np.testing.assert_allclose(drawn[0], x)
    np.testing.assert_allclose(drawn[1], y)
    assert [handle.get_label() for handle in handles] == ["ref, 100 rows", "now, 40 rows"]


def test_the_colour_check_sees_regions() -> None:
    ax = axes()
    ax.contourf([0, 1], [0, 1], [[1, 1], [1, 1]], levels=[0, 2], colors=[clouds.style.CURRENT])
    assert coloured_at(ax, (0.5, 0.5)) == clouds.style.CURRENT
    assert coloured_at(ax, (1.5, 0.5)) is None
