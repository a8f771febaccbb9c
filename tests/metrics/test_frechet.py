from __future__ import annotations

import numpy as np
import ot
import pytest
import scipy.linalg
import torch

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import frechet


def _one(panel):
    (metric,) = frechet.compute(panel)
    return metric


def _by_sqrtm(x, y):
    """The textbook formula with matrix roots."""
    sx, sy = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(sx)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * scipy.linalg.sqrtm(root @ sy @ root).real)


def test_raw_value_is_the_textbook_one(make_panel, shifted):
    x, y = shifted
    metric = _one(make_panel(x, y))
    assert metric.extra["raw"] == pytest.approx(_by_sqrtm(x, y), rel=1e-9)
    distance = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), np.cov(x.T), np.cov(y.T))
    assert metric.extra["raw"] == pytest.approx(distance**2, rel=1e-8)
    assert metric.value == metric.extra["raw"] - metric.extra["null_mean"]
    assert metric.se is None


@pytest.mark.parametrize("m", [2, 11, 12, 13])
def test_fewer_current_rows_than_dimensions(make_panel, m):
    """The rows as factor, below and at m = d, give what the full d x d covariance gives."""
    rng = np.random.default_rng(m)
    x, y = rng.normal(size=(400, 12)) * np.linspace(3, 1, 12), rng.normal(size=(m, 12)) + 0.5
    sx, sy = np.cov(x.T), np.cov(y.T)
    eigenvalues = np.linalg.eigvals(sx @ sy).real.clip(0)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy) - 2 * np.sqrt(eigenvalues).sum()
    assert _one(make_panel(x, y)).extra["raw"] == pytest.approx(expected, rel=1e-6)


def test_commuting_covariances_have_a_closed_form(make_panel):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    y = 1.0 + 3.0 * x  # the same axes, three times the spread, the mean moved
    moved = ((y.mean(0) - x.mean(0)) ** 2).sum()
    expected = moved + (3.0 - 1.0) ** 2 * np.trace(np.cov(x.T))
    assert _one(make_panel(x, y)).extra["raw"] == pytest.approx(expected, rel=1e-12)


def test_a_rank_deficient_reference(make_panel):
    """Fewer reference rows than dimensions, against itself: 0 to rounding, not to the root of rounding."""
    x = np.random.default_rng(1).normal(size=(10, 40))
    metric = _one(make_panel(x, x))
    assert abs(metric.extra["raw"]) <= 1e-10 * np.trace(np.cov(x.T))


def test_clouds_in_complementary_subspaces_share_nothing(make_panel):
    """The cross term is 0, and must not be the root of the eigenvalues' rounding noise."""
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    x, y = rng.normal(size=(200, 10)) @ rotation[:10], rng.normal(size=(100, 30)) @ rotation[10:]
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
    assert _one(make_panel(x, y)).extra["raw"] == pytest.approx(expected, rel=1e-11)


def test_null_mean_is_what_stable_windows_show(make_panel):
    rng = np.random.default_rng(2)
    sd = np.linspace(2.0, 0.3, 8)
    raw = [
        _one(make_panel(rng.normal(size=(900, 8)) * sd, rng.normal(size=(300, 8)) * sd)).extra["raw"]
        for _ in range(300)
    ]
    expected = frechet.null_mean(torch.from_numpy(sd**2), 900, 300)
    assert np.mean(raw) == pytest.approx(expected, rel=0.05)


def test_null_mean_formula():
    l1, l2, h = 3.0, 0.5, 1 / 20 + 1 / 30
    half = (2 * l1 * l1 / (2 * l1) + 2 * l2 * l2 / (2 * l2) + 2 * l1 * l2 / (l1 + l2)) / 2
    values = torch.tensor([l1, l2, 0.0], dtype=torch.float64)
    assert frechet.null_mean(values, 20, 30) == pytest.approx(h * (l1 + l2 + half), rel=1e-14)
    assert frechet.null_mean(torch.zeros(3, dtype=torch.float64), 5, 5) == 0.0


def test_a_single_row_is_too_few(make_panel, shifted):
    with pytest.raises(InsufficientDataError):
        frechet.compute(make_panel(shifted[0], shifted[1][:1]))
