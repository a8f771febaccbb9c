"""Where a metric stands: the prediction limit against scipy, sampling errors, what counts as usual."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_history import drift_of
from scipy import stats

from gpudrift.outcomes.levels import LATE, level
from gpudrift.outcomes.records import Level
from gpudrift.student_t import P_FLOOR

RNG = np.random.default_rng
UNKNOWN = np.full(200, np.nan)


def of(values: np.ndarray, worse: str = "higher", counts: np.ndarray = UNKNOWN, quiet: object = None) -> Level | None:
    drift = drift_of(len(values))
    if quiet is not None:
        drift = replace(drift, quiet=np.isin(np.arange(len(values)), quiet))
    return level(drift, values, counts[: len(values)], worse)  # type: ignore[arg-type]


@pytest.mark.parametrize("worse", ["higher", "lower"])
@pytest.mark.parametrize("k", [8, 9, 20, 52])
def test_the_limit_is_students_prediction_limit(worse: str, k: int) -> None:
    values = 50 + 3 * RNG(k).normal(size=k + 1)
    found = of(values, worse)
    assert found is not None
    quiet = values[:k]
    sign = 1 if worse == "higher" else -1
    reach = stats.t.ppf(0.99, k - 1) * quiet.std(ddof=1) * math.sqrt(1 + 1 / k)
    assert found.usual == pytest.approx(quiet.mean(), rel=1e-12)
    assert found.limit == pytest.approx(quiet.mean() + sign * reach, rel=1e-9)
    t = sign * (values[k] - quiet.mean()) / (quiet.std(ddof=1) * math.sqrt(1 + 1 / k))
    assert found.p == pytest.approx(stats.t.sf(t, k - 1), rel=1e-8)
    assert found.windows == k
    assert found.degraded == (found.p < 0.01)


def test_degraded_is_beyond_the_limit_on_the_worse_side_alone() -> None:
    quiet = list(RNG(0).normal(size=20))
    far = np.array([*quiet, 10.0])
    worse, better = of(far, "higher"), of(far, "lower")
    assert worse is not None
    assert better is not None
    assert (worse.degraded, better.degraded) == (True, False)
    assert worse.p < 1e-6
    assert better.p > 0.99


def test_the_usual_is_of_the_last_52_quiet_windows_before_the_value() -> None:
    values = np.concatenate([np.full(30, 1e3), RNG(1).normal(size=52), [0.0]])
    found = of(values)
    assert found is not None
    assert found.windows == 52
    assert found.usual == pytest.approx(values[30:82].mean())
    spiky = of(values, quiet=[*range(30, 60), 82])  # nor windows that are not quiet, nor the value's own
    assert spiky is not None
    assert (spiky.windows, spiky.usual) == (30, pytest.approx(values[30:60].mean()))


def test_the_last_window_with_a_value_is_judged() -> None:
    values = RNG(2).normal(size=20)
    values[[17, 19]] = np.nan
    values[[3, 4]] = np.nan
    found = of(values)
    assert found is not None
    assert found.window == drift_of(20).windows[18].label
    assert (found.value, found.windows) == (values[18], 15)


def test_a_value_of_long_ago_says_nothing_of_now() -> None:
    values = RNG(2).normal(size=20)
    values[-LATE:] = np.nan
    assert of(values) is not None
    values[-LATE - 1 :] = np.nan
    assert of(values) is None


@pytest.mark.parametrize("values", [np.full(30, np.nan), np.array([]), RNG(0).normal(size=8), np.array([1.0])])
def test_fewer_than_eight_quiet_windows_are_no_usual(values: np.ndarray) -> None:
    assert of(values) is None
    assert of(RNG(0).normal(size=30), quiet=range(7)) is None
    assert of(RNG(0).normal(size=30), quiet=range(8)) is not None


def test_a_rate_of_fewer_observations_has_a_wider_limit() -> None:
    rng = RNG(3)
    values = np.append(rng.binomial(400, 0.1, size=20) / 400, 0.2)
    counts = np.append(np.full(20, 400.0), 50)
    quiet, k = values[:20], 20
    found = of(values, counts=counts)
    each = min(quiet.mean() * (1 - quiet.mean()), 400 * quiet.var(ddof=1))
    sd = math.sqrt(quiet.var(ddof=1) * (1 + 1 / k) + each * (1 / 50 - 1 / 400))
    assert found is not None
    assert found.limit == pytest.approx(quiet.mean() + stats.t.ppf(0.99, k - 1) * sd, rel=1e-9)
    assert found.count == 50
    plain = of(values)
    assert plain is not None
    assert plain.limit < found.limit
    assert plain.count is None
    more = of(values, counts=np.append(np.full(20, 400.0), 4000))
    assert more is not None
    assert more.limit == plain.limit  # more observations than usual narrow nothing


def test_counts_widen_nothing_where_values_are_no_rate() -> None:
    values = np.append(RNG(4).normal(size=20) * 0.1 + 0.9, 0.8)
    values[0] = 1.2
    counts = np.append(np.full(20, 400.0), 5)
    assert of(values, counts=counts) == replace(of(values), count=5)  # type: ignore[type-var]


def test_one_unknown_count_leaves_the_sampling_error_out() -> None:
    values = np.append(RNG(5).binomial(400, 0.1, size=20) / 400, 0.2)
    counts = np.append(np.full(20, 400.0), 50)
    counts[4] = np.nan
    found, plain = of(values, counts=counts), of(values)
    assert found is not None
    assert plain is not None
    assert found.limit == plain.limit


def test_a_rare_event_that_never_happened_may_happen_once() -> None:
    values, counts = np.zeros(13), np.full(13, 300.0)
    values[-1] = 1 / 300
    found = of(values, counts=counts)
    assert found is not None
    assert not found.degraded
    values[-1] = 20 / 300
    many = of(values, counts=counts)
    assert many is not None
    assert many.degraded


def test_a_constant_metric_has_a_limit_and_a_p() -> None:
    same, worse, better = (of(np.append(np.full(12, 0.7), v), "lower") for v in (0.7, 0.6, 0.8))
    assert same is not None
    assert worse is not None
    assert better is not None
    assert (same.p, worse.p, better.p) == (0.5, P_FLOOR, 1.0)
    assert (same.degraded, worse.degraded, better.degraded) == (False, True, False)
    assert same.limit == pytest.approx(0.7)
    rounding = of(np.append(np.full(12, 0.1 + 0.2), 0.3), "lower")
    assert rounding is not None
    assert not rounding.degraded


@given(st.integers(0, 2**32), st.floats(-6, 6), st.floats(-100, 100))
def test_units_move_value_usual_and_limit_and_nothing_else(seed: int, power: float, offset: float) -> None:
    values, scale = RNG(seed).normal(size=15), 10**power
    plain, scaled = of(values + offset), of((values + offset) * scale)
    assert plain is not None
    assert scaled is not None
    assert (scaled.value, scaled.usual, scaled.limit) == pytest.approx(
        (plain.value * scale, plain.usual * scale, plain.limit * scale), rel=1e-8, abs=1e-8 * scale
    )
    assert (scaled.p, scaled.degraded, scaled.windows) == (pytest.approx(plain.p, rel=1e-5), plain.degraded, 14)


def test_one_in_a_hundred_quiet_windows_is_beyond() -> None:
    rng = RNG(6)
    found = [of(rng.normal(size=21)) for _ in range(3000)]
    degraded = sum(one.degraded for one in found if one is not None)
    assert stats.binomtest(degraded, 3000, 0.01).pvalue > 0.001


def test_a_rate_too_small_to_be_squared_has_a_level() -> None:
    found = of(np.arange(1, 41) * 5e-324, counts=np.full(40, 3.0) - np.eye(40)[39])
    assert found is not None
    assert found.value == 40 * 5e-324
