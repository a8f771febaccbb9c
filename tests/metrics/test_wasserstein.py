from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import accumulate, wasserstein

finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)
samples = st.lists(finite, min_size=2, max_size=30)


def _w1(x, y):
    return wasserstein.wasserstein1(torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64))


def _by_name(panel):
    return {metric.name: metric for metric in wasserstein.compute(panel)}


@given(samples, samples)
@settings(max_examples=60)
def test_w1_is_scipys(x, y):
    value, variance = _w1(x, y)
    assert value == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-10, abs=1e-10)
    assert variance >= 0


@given(samples, samples, st.floats(-100, 100), st.floats(0.1, 10))
@settings(max_examples=40)
def test_w1_and_its_error_move_and_scale_with_the_data(x, y, offset, factor):
    value, variance = _w1(x, y)
    moved = _w1(np.array(x) * factor + offset, np.array(y) * factor + offset)
    assert moved[0] == pytest.approx(factor * value, rel=1e-9, abs=1e-9)
    swapped = _w1(y, x)
    assert swapped[0] == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert swapped[1] == pytest.approx(variance, rel=1e-9, abs=1e-9)


def test_w1_of_a_pure_shift_has_the_error_of_the_means():
    # far apart, W1 is the difference of the means and the potential is the identity
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(size=25) + 50.0
    value, variance = _w1(x, y)
    assert value == pytest.approx(y.mean() - x.mean(), rel=1e-12)
    assert variance == pytest.approx(x.var(ddof=1) / 40 + y.var(ddof=1) / 25, rel=1e-10)


def test_w1_intervals_cover_where_the_distributions_differ():
    """1.96 standard errors cover the true W1 of N(0, 1) and N(0.2, 2) in about 95% of 500 runs; the two distribution
    functions cross, so the potential turns round."""
    t = np.linspace(-20, 20, 40_001)
    truth = np.trapezoid(np.abs(scipy.stats.norm.cdf(t) - scipy.stats.norm.cdf(t, 0.2, 2.0)), t)
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(500):
        value, variance = _w1(rng.normal(size=400), rng.normal(0.2, 2.0, size=250))
        covered += abs(value - truth) <= 1.96 * math.sqrt(variance)
    assert 0.92 <= covered / 500 <= 0.975


def test_components_report_their_own_shift_and_spread(make_panel, shifted):
    panel = make_panel(*shifted, components=3)
    metrics = _by_name(panel)
    for k in range(3):
        metric = metrics[f"wasserstein1_pc{k + 1}"]
        x, y = panel.px.scores[:, k].numpy(), panel.py.scores[:, k].numpy()
        sd = x.std(ddof=1)
        assert metric.value == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-12)
        assert metric.extra["component"] == k + 1
        assert metric.extra["scaled"] == pytest.approx(metric.value / sd, rel=1e-9)
        assert metric.extra["mean_shift_sd"] == pytest.approx((y.mean() - x.mean()) / sd, rel=1e-9)
        optimism = float(panel.basis.variance_optimism[k])
        assert metric.extra["optimism"] == optimism
        spread = metric.extra["log_variance_ratio"] + optimism
        assert spread == pytest.approx(math.log(y.var(ddof=1) / x.var(ddof=1)), rel=1e-9)
    assert len(metrics) == 4


@pytest.mark.parametrize("spectrum", ["white", "falling", "low rank"])
def test_spread_along_the_components_of_fresh_rows_is_that_of_the_reference(make_panel, draw_spectrum, spectrum):
    """60 pairs, 8 axes of 48 dimensions: no component's mean log variance ratio is 4 standard errors from 0, nor the
    mean of them all 3; without the correction white data are at -.4."""
    rng = np.random.default_rng(14)
    values = np.empty((60, 8))
    plain = np.empty((60, 8))
    for i in range(60):
        x, y = draw_spectrum(spectrum, 400, rng), draw_spectrum(spectrum, 400, rng)
        metrics = _by_name(make_panel(x, y, components=8, directions=1))
        for k in range(8):
            extra = metrics[f"wasserstein1_pc{k + 1}"].extra
            values[i, k] = extra["log_variance_ratio"]
            plain[i, k] = extra["log_variance_ratio"] + extra["optimism"]
    z = values.mean(0) / (values.std(0, ddof=1) / math.sqrt(60))
    assert np.abs(z).max() <= 4
    overall = values.mean(1)
    assert abs(overall.mean()) <= 3 * overall.std(ddof=1) / math.sqrt(60)
    uncorrected = plain.mean(1)
    assert uncorrected.mean() < -4 * uncorrected.std(ddof=1) / math.sqrt(60)


def test_spread_is_left_alone_within_the_reference_and_below_enough_rows(make_panel, shifted):
    panel = make_panel(*shifted)
    x, y = (p.scores[:, 0].numpy() for p in (panel.px, panel.py))
    expected = math.log(y.var(ddof=1) / x.var(ddof=1))
    small = replace(panel, basis=replace(panel.basis, variance_optimism=None))
    for changed, optimism in ((replace(panel, in_reference=True), 0.0), (small, None)):
        extra = _by_name(changed)["wasserstein1_pc1"].extra
        assert extra["optimism"] == optimism
        assert extra["log_variance_ratio"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (90, 60), (50, 33), (2, 31)])
def test_sliced_is_pots_at_the_same_directions(make_panel, n, m):
    rng = np.random.default_rng(n)
    panel = make_panel(rng.normal(size=(n, 5)), rng.normal(size=(m, 5)) * 1.3 + 0.2, components=1, seed=11)
    axes = wasserstein.directions(20, 5, 11).numpy()
    expected = ot.sliced_wasserstein_distance(panel.x.numpy(), panel.y.numpy(), projections=axes.T, p=2)
    metric = _by_name(panel)["sliced_wasserstein"]
    assert metric.value == pytest.approx(expected, rel=1e-10)
    squares = [
        ot.wasserstein_1d(panel.x.numpy() @ axis, panel.y.numpy() @ axis, p=2) for axis in axes
    ]  # POT returns the square
    assert metric.value**2 == pytest.approx(np.mean(squares), rel=1e-10)
    spread = np.std(squares, ddof=1) / math.sqrt(20) / (2 * expected)
    assert metric.extra["direction_se"] == pytest.approx(spread, rel=1e-8)


def test_directions_are_unit_vectors_pinned_by_the_seed_alone():
    state = torch.random.get_rng_state()
    axes = wasserstein.directions(50, 7, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(axes.norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(axes, wasserstein.directions(50, 7, 3))
    assert not torch.equal(axes, wasserstein.directions(50, 7, 4))


def test_sliced_error_of_a_shift_is_that_of_the_mean(make_panel):
    """One dimension, far apart: W2 is close to the difference of the means, and so is its standard error."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 1)), rng.normal(size=(150, 1)) + 100.0
    metric = _by_name(make_panel(x, y, components=1, directions=1))["sliced_wasserstein"]
    assert metric.se == pytest.approx(math.sqrt(x.var(ddof=1) / 200 + y.var(ddof=1) / 150), rel=0.02)
    assert "direction_se" not in metric.extra


def test_sliced_error_sums_the_directions_row_by_row(make_panel):
    """In one dimension every direction is the line, one way or the other: more of them change nothing."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(80, 1)), rng.normal(size=(60, 1)) * 2 + 1
    one, many = (_by_name(make_panel(x, y, components=1, directions=k))["sliced_wasserstein"] for k in (1, 7))
    assert {float(axis) for axis in wasserstein.directions(7, 1, 0)} == {-1.0, 1.0}
    assert many.value == pytest.approx(one.value, rel=1e-12)
    assert many.se == pytest.approx(one.se, rel=1e-12)
    assert many.extra["direction_se"] == pytest.approx(0.0, abs=1e-12)


def test_sliced_potentials_are_dual_optimal():
    """Feasible (f + g <= cost everywhere) and tight (their integrals sum to W2^2), n and m with a common divisor."""
    rng = np.random.default_rng(4)
    x, y = (torch.from_numpy(np.sort(rng.normal(size=size) * sd)) for size, sd in ((12, 1.0), (18, 2.0)))
    value, f, g = wasserstein._Grid(12, 18, x.device).squared(x, y)
    slack = (x[:, None] - y).square() - f[:, None] - g
    # both start at 0, the pair's cost is the constant that is missing
    slack -= (x[0] - y[0]).square()
    assert float(slack.min()) >= -1e-12
    assert float(f.mean() + g.mean() + (x[0] - y[0]).square()) == pytest.approx(float(value), rel=1e-12)


def test_sliced_intervals_cover_where_the_distributions_differ(make_panel):
    """At pinned directions of N(0, I) and N(0.8, 1.5^2 I), 3 dimensions: mean over 300 runs as truth."""
    rng = np.random.default_rng(6)
    axes = wasserstein.directions(10, 3, 0).numpy()
    # per direction, W2^2 of N(0, 1) and N(mu, 1.5^2) is mu^2 + 0.5^2
    truth = math.sqrt(np.mean((axes.sum(1) * 0.8) ** 2) + 0.25)
    covered = 0
    for _ in range(200):
        x, y = rng.normal(size=(600, 3)), rng.normal(size=(500, 3)) * 1.5 + 0.8
        metric = _by_name(make_panel(x, y, components=1, directions=10))["sliced_wasserstein"]
        covered += abs(metric.value - truth) <= 1.96 * metric.se
    assert 0.9 <= covered / 200 <= 0.985


def test_blocks_and_chunks_do_not_change_the_result(make_panel, shifted, monkeypatch):
    panel = make_panel(*shifted)
    whole = _by_name(panel)["sliced_wasserstein"]
    monkeypatch.setattr(accumulate, "CHUNK", 6 * 11)
    monkeypatch.setattr(wasserstein, "CHUNK", 470 * 3)
    chunked = _by_name(panel)["sliced_wasserstein"]
    assert chunked.value == pytest.approx(whole.value, rel=1e-13)
    assert chunked.se == pytest.approx(whole.se, rel=1e-12)


def test_a_single_row_is_too_few(make_panel, shifted):
    with pytest.raises(InsufficientDataError):
        wasserstein.compute(make_panel(shifted[0], shifted[1][:1]))
