"""Lagged correlations of prewhitened series: scipy, enumeration of all shuffles, planted lags."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpudrift.outcomes import lags
from gpudrift.outcomes.lags import LEAST_PAIRS, lag_effect, paired, shuffled_p, strongest, studentised
from gpudrift.outcomes.records import LagEffect

RNG = np.random.default_rng


def with_holes(seed: int, count: int, share: float = 0.15) -> np.ndarray:
    rng = RNG(seed)
    return np.where(rng.random(count) < share, np.nan, rng.normal(size=count))


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_an_effect_is_scipys_regression_of_the_later_metric(lag: int, share: float) -> None:
    x, y = with_holes(1, 40, share), with_holes(2, 40, share)
    a, b = x[: 40 - lag], y[lag:]
    both = np.isfinite(a) & np.isfinite(b)
    line = stats.linregress(a[both] / math.log(2), b[both])  # log2 of the score: its slope is that of a doubling
    found = lag_effect(x, y, lag)
    assert found is not None
    assert (found.lag, found.n) == (lag, both.sum())
    assert found.r == pytest.approx(stats.pearsonr(a[both], b[both]).statistic, rel=1e-10)
    assert found.slope == pytest.approx(line.slope, rel=1e-10)
    reach = stats.t.ppf(0.975, both.sum() - 2) * line.stderr
    assert found.ci == pytest.approx((line.slope - reach, line.slope + reach), rel=1e-9)


def test_what_the_trend_took_is_taken_from_the_degrees_of_freedom() -> None:
    x, y = RNG(1).normal(size=(2, 30))
    plain, spent = lag_effect(x, y, 0), lag_effect(x, y, 0, 4)
    assert plain is not None
    assert spent is not None
    assert (spent.r, spent.slope) == (plain.r, plain.slope)
    wider = stats.t.ppf(0.975, 24) / stats.t.ppf(0.975, 28) * math.sqrt(28 / 24)
    assert np.ptp(spent.ci) == pytest.approx(wider * np.ptp(plain.ci), rel=1e-9)
    assert studentised(np.array([0.5]), 28, 9)[0] == pytest.approx(math.atanh(0.5) * 4)
    assert lag_effect(x[:9], y[:9], 0, 4) is None
    assert shuffled_p(x, y, [0, 1], 500, RNG(0), 4) > shuffled_p(x, y, [0, 1], 500, RNG(0))


def test_too_few_pairs_or_no_variance_have_no_effect() -> None:
    x = RNG(0).normal(size=LEAST_PAIRS + 1)
    assert lag_effect(x, x, 1) is not None
    assert lag_effect(x, x, 2) is None
    assert lag_effect(x, np.ones(len(x)), 0) is None
    assert lag_effect(np.ones(len(x)), x, 0) is None
    assert lag_effect(x, x, 100) is None
    assert len(paired(x, x, 100)[0]) == 0


def test_a_perfect_line_has_an_interval_of_no_width() -> None:
    x = RNG(0).normal(size=20)
    found = lag_effect(x, -2 * x, 0)
    assert found is not None
    assert (found.r, found.slope) == pytest.approx((-1, -2 * math.log(2)))
    assert found.ci == pytest.approx((found.slope, found.slope), rel=1e-6)


def test_short_lags_do_not_rule_the_maximum() -> None:
    """Of independent series with few pairs at one lag, each lag is the strongest about equally often."""
    rng = RNG(3)
    most = np.zeros(2, dtype=int)
    for _ in range(1500):
        small, large = (np.corrcoef(rng.normal(size=(2, n)))[0, 1] for n in (8, 40))
        effects = [LagEffect(0, 40, large, 0, (0, 0)), LagEffect(1, 8, small, 0, (0, 0))]
        most[strongest(effects).lag] += 1
    assert 0.45 < most[1] / 1500 < 0.58
    assert studentised(np.array([0.5]), 28)[0] == pytest.approx(math.atanh(0.5) * 5)


def test_of_equal_correlations_the_earliest_lag_is_taken() -> None:
    effects = [LagEffect(k, 20, 0.5 * (-1) ** k, 0, (0, 0)) for k in (2, 0, 1)]
    assert strongest(effects).lag == 0


def by_enumeration(x: np.ndarray, y: np.ndarray, over: list[int]) -> float:
    """The share of all orders of x whose largest |atanh r| sqrt(n - 3) is at least that of the order given."""
    held = np.flatnonzero(np.isfinite(x))

    def largest(values: tuple[float, ...]) -> float:
        z = np.full(len(x), np.nan)
        z[held] = values
        found = []
        for lag in over:
            a, b = z[: len(z) - lag], y[lag:]
            both = np.isfinite(a) & np.isfinite(b)
            found.append(abs(math.atanh(np.corrcoef(a[both], b[both])[0, 1])) * math.sqrt(both.sum() - 3))
        return max(found)

    observed = largest(tuple(x[held]))
    return float(np.mean([largest(order) >= observed * (1 - 1e-9) for order in itertools.permutations(x[held])]))


@pytest.mark.parametrize(("seed", "over"), [(0, [0]), (1, [0, 1]), (2, [0, 1])])
def test_p_is_that_of_all_shuffles(seed: int, over: list[int]) -> None:
    x, y = RNG(seed).normal(size=7), RNG(seed + 50).normal(size=9)
    x = np.append(x, [np.nan, np.nan])
    y[3] = np.nan
    y += 0.8 * np.nan_to_num(x)
    wanted = by_enumeration(x, y, over)
    found = shuffled_p(x, y, over, 20_000, RNG(9))
    assert found == pytest.approx(wanted, abs=5 * math.sqrt(wanted * (1 - wanted) / 20_000) + 1e-4)


def test_p_counts_the_order_that_was_observed() -> None:
    x = RNG(0).normal(size=40)
    assert shuffled_p(x, x, [0, 1, 2], 99, RNG(0)) == 0.01
    assert shuffled_p(x, -x, [0, 1, 2], 99, RNG(0)) == 0.01  # both signs count


def test_ties_count_as_as_large() -> None:
    """One window that differs: every shuffle that puts it there again is a tie."""
    x, y = np.zeros(10), np.zeros(10)
    x[4] = y[4] = 1.0
    p = shuffled_p(x, y, [0], 5000, RNG(1))
    assert p == pytest.approx(0.1, abs=0.02)


def test_blocks_of_shuffles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = with_holes(5, 50), with_holes(6, 50)
    whole = shuffled_p(x, y, [0, 1, 2], 500, RNG(2))
    monkeypatch.setattr(lags, "_CHUNK", 700)
    assert shuffled_p(x, y, [0, 1, 2], 500, RNG(2)) == whole


def test_drift_that_meets_no_metric_does_not_count() -> None:
    """A burst years before the first value of the metric must not be dealt into its windows."""
    x, y = RNG(7).normal(size=80), np.full(80, np.nan)
    y[40:] = RNG(8).normal(size=40)
    burst = x.copy()
    burst[3] = 1e6
    assert shuffled_p(burst, y, [0, 1], 400, RNG(0)) == pytest.approx(shuffled_p(x, y, [0, 1], 400, RNG(0)), abs=1e-12)


@given(st.integers(0, 2**32), st.floats(-8, 8), st.floats(-8, 8))
@settings(max_examples=25)
def test_units_change_the_slope_and_nothing_else(seed: int, of_x: float, of_y: float) -> None:
    x, y = with_holes(seed, 40), with_holes(seed + 1, 40)
    plain, scaled = lag_effect(x, y, 1), lag_effect(x * 10**of_x, y * 10**of_y, 1)
    assert plain is not None
    assert scaled is not None
    assert scaled.r == pytest.approx(plain.r, rel=1e-9)
    assert scaled.slope == pytest.approx(plain.slope * 10 ** (of_y - of_x), rel=1e-9)
    drawn = [shuffled_p(a, b, [0, 1], 50, RNG(0)) for a, b in ((x, y), (x * 10**of_x, y * 10**of_y))]
    assert drawn[0] == drawn[1]


def test_p_is_right_for_independent_residuals_with_holes() -> None:
    rejected = sum(
        shuffled_p(with_holes(2 * seed, 30), with_holes(2 * seed + 1, 30), [0, 1, 2, 3, 4], 39, RNG(seed)) <= 0.05
        for seed in range(400)
    )
    assert stats.binomtest(int(rejected), 400, 0.05).pvalue > 0.001
