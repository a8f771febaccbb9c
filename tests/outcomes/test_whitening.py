"""Trend, cycle and autocorrelation taken out: against scipy, numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_history import autoregressive
from scipy import stats

from gpudrift.outcomes.whitening import BEND, prewhiten, take_apart

RNG = np.random.default_rng


def test_up_to_a_year_and_a_half_of_bends_the_trend_is_scipys_line() -> None:
    for count in (12, 30, 38):
        values = RNG(count).normal(size=count) + 0.3 * np.arange(count)
        line = stats.linregress(np.arange(count), values)
        found = take_apart(values)
        np.testing.assert_allclose(found.left, values - line.intercept - line.slope * np.arange(count), atol=1e-12)
        assert found.trend == pytest.approx(line.rvalue**2, rel=1e-10)


def test_gaps_stay_gaps_and_time_goes_on_through_them() -> None:
    values = RNG(0).normal(size=30) + 0.2 * np.arange(30)
    values[[0, 7, 8, 20]] = np.nan
    known = np.isfinite(values)
    line = stats.linregress(np.flatnonzero(known), values[known])
    found = take_apart(values).left
    np.testing.assert_allclose(found, values - line.intercept - line.slope * np.arange(30), atol=1e-12)
    assert (np.isfinite(found) == known).all()


def test_a_longer_series_has_a_bend_every_so_many_windows() -> None:
    time = np.arange(4 * BEND)
    bent = 2.0 + 0.1 * time - 0.3 * np.maximum(0, time - 2 * BEND)
    noise = RNG(1).normal(size=len(time))
    exact = take_apart(bent)
    assert np.isnan(exact.left).all()  # nothing is left but rounding
    assert exact.trend == 1
    design = np.column_stack([np.ones(len(time)), time, *[np.maximum(0, time - BEND * j) for j in (1, 2, 3)]])
    wanted = noise - design @ np.linalg.pinv(design) @ noise
    np.testing.assert_allclose(take_apart(bent + noise).left, wanted, atol=1e-10)
    straight = take_apart(bent + noise, bend=10**6).left
    line = stats.linregress(time, bent + noise)
    np.testing.assert_allclose(straight, bent + noise - line.intercept - line.slope * time, atol=1e-10)


def test_bends_follow_the_values_not_the_calendar() -> None:
    """A dozen values far apart are no reason for a dozen bends, which would fit them all."""
    values = np.full(12 * BEND, np.nan)
    values[::BEND] = RNG(2).normal(size=12)
    line = stats.linregress(np.arange(0, 12 * BEND, BEND), values[::BEND])
    wanted = values[::BEND] - line.intercept - line.slope * np.arange(0, 12 * BEND, BEND)
    np.testing.assert_allclose(take_apart(values).left[::BEND], wanted, atol=1e-12)


def test_a_cycle_is_taken_out_where_three_of_it_are_known() -> None:
    day = np.arange(28)
    values = np.array([0.0, 1, 2, 3, 2, -5, -6])[day % 7] + 0.1 * day
    noise = 0.01 * RNG(3).normal(size=28)
    assert np.abs(take_apart(values + noise, 7).left).max() < 0.05
    assert np.abs(take_apart(values + noise).left).max() > 4
    few = take_apart((values + noise)[:20], 7)
    np.testing.assert_array_equal(few.left, take_apart((values + noise)[:20]).left)


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, 2.0], [np.nan] * 5, [0.0] * 9, [0.7] * 9, [1e-300] * 9, list(0.1 * np.arange(30))]
)
def test_nothing_is_left_of_a_constant_or_a_line(values: list[float]) -> None:
    found = prewhiten(np.array(values, dtype=float))
    assert np.isnan(found.values).all()
    assert np.isnan(found.fit.left).all()
    assert found.fit.trend == (1.0 if len(values) == 30 else 0.0)


def test_the_autoregression_is_least_squares_over_neighbours() -> None:
    values = autoregressive(RNG(4), 35, 0.6)
    values[[5, 17]] = np.nan
    left = take_apart(values).left
    now, before = left[1:], left[:-1]
    both = np.isfinite(now) & np.isfinite(before)
    phi = np.linalg.lstsq(before[both, None], now[both], rcond=None)[0][0]
    found = prewhiten(values)
    assert found.autoregression == pytest.approx(phi, rel=1e-10)
    np.testing.assert_allclose(found.values[1:], now - phi * before, atol=1e-12)
    assert np.isnan(found.values[[0, 5, 6, 17, 18]]).all()
    assert np.isfinite(np.delete(found.values, [0, 5, 6, 17, 18])).all()


def test_a_long_autoregression_comes_out_white() -> None:
    found = prewhiten(autoregressive(RNG(5), 3000, 0.8), bend=10**6)
    white = found.values[1:]
    assert found.autoregression == pytest.approx(0.8, abs=0.03)
    assert abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.05


@given(st.integers(0, 2**32), st.floats(-6, 6), st.floats(-1e3, 1e3))
def test_units_and_offsets_change_nothing_else(seed: int, power: float, offset: float) -> None:
    values = RNG(seed).normal(size=60)
    values[RNG(seed).random(60) < 0.1] = np.nan
    scale = 10**power
    plain, scaled = prewhiten(values), prewhiten((values + offset) * scale)
    np.testing.assert_allclose(scaled.values / scale, plain.values, atol=1e-7)
    assert scaled.autoregression == pytest.approx(plain.autoregression, abs=1e-7)


@given(st.lists(st.one_of(st.floats(-1e100, 1e100), st.just(float("nan"))), max_size=40), st.sampled_from([None, 7]))
def test_no_input_warns_or_leaks(values: list[float], cycle: int | None) -> None:
    found = prewhiten(np.array(values, dtype=float), cycle)
    assert len(found.values) == len(values)
    assert not np.isinf(found.values).any()
    assert -1 < found.autoregression < 1
    assert 0 <= found.fit.trend <= 1
