from __future__ import annotations

import math

import dcor
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import energy_1d

samples = st.lists(st.floats(-1e3, 1e3, allow_nan=False, width=32), min_size=2, max_size=25)


def _energy(x, y):
    return energy_1d.energy_1d(torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64))


def _dense(x, y):
    """The definition: every pair in a matrix; value and var_lin."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    xx, yy, xy = (np.abs(u[:, None] - v) for u, v in ((x, x), (y, y), (x, y)))
    value = 2 * xy.mean() - xx.sum() / (n * (n - 1)) - yy.sum() / (m * (m - 1))
    a = xy.sum(1) / m - xx.sum(1) / (n - 1)
    b = xy.sum(0) / n - yy.sum(1) / (m - 1)
    return value, 4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m


@given(samples, samples)
@settings(max_examples=60)
def test_value_and_error_are_the_dense_ones(x, y):
    value, variance = _energy(x, y)
    expected, expected_variance = _dense(x, y)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-9)
    assert variance == pytest.approx(expected_variance, rel=1e-9, abs=1e-8)


def test_value_is_dcors_u_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), rng.normal(size=150) + 0.3
    expected = dcor.energy_distance(x, y, estimation_stat="u_statistic")
    assert _energy(x, y)[0] == pytest.approx(expected, rel=1e-12)


def test_an_offset_costs_no_accuracy():
    rng = np.random.default_rng(1)
    # multiples of 2**-10, so that adding 2**36 rounds nothing away, while sums of such numbers round
    x, y = (np.round(sample * 1024) / 1024 for sample in (rng.normal(size=3000), rng.normal(size=700) * 1.1))
    value, variance = _energy(x + 2.0**36, y + 2.0**36)
    expected, expected_variance = _dense(x, y)
    assert value == pytest.approx(expected, abs=1e-11)
    assert variance == pytest.approx(expected_variance, rel=1e-8)


def test_it_is_unbiased_and_may_be_negative():
    rng = np.random.default_rng(2)
    values = [_energy(rng.normal(size=20), rng.normal(size=15))[0] for _ in range(400)]
    assert abs(np.mean(values)) <= 4 * np.std(values) / math.sqrt(400)
    assert min(values) < 0


def test_intervals_cover_where_the_distributions_differ():
    # E of N(0, 1) and N(d, 1): 2 E|N(d, 2)| - 2 E|N(0, 2)|, with E|N(d, s^2)| of the folded normal
    d, s = 0.8, math.sqrt(2)
    folded = s * math.sqrt(2 / math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
    truth = 2 * folded - 2 * s * math.sqrt(2 / math.pi)
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        value, variance = _energy(rng.normal(size=300), rng.normal(size=200) + d)
        covered += abs(value - truth) <= 1.96 * math.sqrt(variance)
    assert 0.92 <= covered / 400 <= 0.98


def test_each_component_has_its_metric(make_panel, shifted):
    panel = make_panel(*shifted, components=3, kept=5)
    metrics = energy_1d.compute(panel)
    assert [metric.name for metric in metrics] == ["energy_pc1", "energy_pc2", "energy_pc3"]
    for k, metric in enumerate(metrics):
        value, variance = _dense(panel.px.scores[:, k], panel.py.scores[:, k])
        assert metric.value == pytest.approx(value, rel=1e-10)
        assert metric.se == pytest.approx(math.sqrt(variance), rel=1e-9)
        sd = panel.px.scores[:, k].std().item()
        assert metric.extra == {"component": k + 1, "scaled": pytest.approx(value / sd, rel=1e-9)}


def test_a_single_row_is_too_few():
    with pytest.raises(InsufficientDataError):
        _energy([1.0], [1.0, 2.0])
    with pytest.raises(InsufficientDataError):
        _energy([1.0, 2.0], [1.0])
