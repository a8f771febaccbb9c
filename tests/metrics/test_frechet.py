from __future__ import annotations

import math
from dataclasses import replace

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


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize(("n", "m"), [(1500, 10), (1500, 48), (1500, 200), (1500, 600), (600, 600), (300, 900)])
def test_without_drift_the_value_is_zero_and_its_spread_null_sd(make_panel, tails, n, m):
    """24 pairs of samples of 48 dimensions, variances falling as k^-1/2: the mean value is within 3 of its standard
    errors, and 1.5% of the raw mean for the first-order scaling, of 0 (the closed expansion is 4% to 40% off), and the
    null sd within 40% of the spread of the raw values."""
    rng = np.random.default_rng([n, m])
    sd = np.arange(1, 49) ** -0.25

    def draw(rows):
        return (rng.standard_t(6, size=(rows, 48)) if tails == "heavy" else rng.normal(size=(rows, 48))) * sd

    found = [_one(make_panel(draw(n), draw(m), seed=k)) for k in range(24)]
    values, raw = (np.array(part) for part in ([f.value for f in found], [f.extra["raw"] for f in found]))
    assert abs(values.mean()) <= 3 * values.std(ddof=1) / math.sqrt(24) + 0.015 * raw.mean()
    null_sd = math.sqrt(np.mean([f.extra["null_sd"] ** 2 for f in found]))
    assert 0.6 <= null_sd / raw.std(ddof=1) <= 1.67


@pytest.mark.parametrize(("n", "s", "d"), [(60, 5, 12), (60, 12, 12), (60, 30, 12), (16, 8, 12), (18, 4, 12)])
def test_a_part_against_the_rest_needs_only_the_part(n, s, d):
    """Both moments of the rest follow from those of all rows, below, at and above as many rows as dimensions."""
    rng = np.random.default_rng(s)
    rows = rng.normal(size=(n, d)) * np.linspace(3, 1, d) + 0.7
    mean, covariance = torch.from_numpy(rows.mean(0)), torch.from_numpy(np.cov(rows.T))
    found = frechet._part_against_rest(torch.from_numpy(rows[:s]), mean, covariance, n)
    part, rest = rows[:s], rows[s:]
    eigenvalues = np.linalg.eigvals(np.cov(part.T) @ np.cov(rest.T)).real.clip(0)
    traces = part.var(0, ddof=1).sum() + rest.var(0, ddof=1).sum()
    expected = ((part.mean(0) - rest.mean(0)) ** 2).sum() + traces - 2 * np.sqrt(eigenvalues).sum()
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_part_without_variance_along_some_dimensions():
    """No Cholesky factor exists there: what the other dimensions give."""
    rows = np.random.default_rng(8).normal(size=(80, 6)) * [3, 0, 2, 0, 1, 1]
    full, reduced = (
        frechet._part_against_rest(
            torch.from_numpy(x[:40]), torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T)), 80
        )
        for x in (rows, rows[:, [0, 2, 4, 5]])
    )
    assert full == pytest.approx(reduced, rel=1e-9)


def _moments(rows, m, seed=0):
    x = torch.from_numpy(rows)
    return frechet.null_moments(x, x.mean(0), torch.from_numpy(np.cov(rows.T)), m, seed)


def test_null_moments_are_pinned_by_the_seed_alone():
    rows = np.random.default_rng(4).normal(size=(200, 5))
    state = torch.random.get_rng_state()
    first = _moments(rows, 20)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert _moments(rows, 20) == first
    assert _moments(rows, 20, seed=1)[0] != first[0]


def test_windows_too_large_to_draw_follow_the_first_order_law():
    """Beyond half of the reference, and beyond 8 rows a dimension, the draws stay and 1/n + 1/m scales them."""
    rows = np.random.default_rng(5).normal(size=(100, 20))
    for n, d, largest in ((100, 20, 50), (100, 3, 24)):
        at = _moments(rows[:n, :d], largest)
        beyond = _moments(rows[:n, :d], 4000)
        ratio = (1 / n + 1 / 4000) / (1 / n + 1 / largest)
        assert beyond == pytest.approx((at[0] * ratio, at[1] * ratio), rel=1e-12)
        assert _moments(rows[:n, :d], largest - 1)[0] != pytest.approx(at[0], rel=1e-3)


def test_a_part_of_the_reference_is_compared_with_the_rest_alone(make_panel):
    """The pinned covariance holds the window's own rows: the rest's is taken instead."""
    rows = np.random.default_rng(6).normal(size=(90, 4)) * [4, 3, 2, 1]
    x, y = rows[:60], rows[60:]
    panel = replace(make_panel(x, y), in_reference=True, covariance=torch.from_numpy(np.cov(rows.T)))
    metric = _one(panel)
    assert metric.extra["raw"] == pytest.approx(_by_sqrtm(x, y), rel=1e-9)
    assert metric.extra["null_mean"] == pytest.approx(_moments(panel.x.numpy(), 30)[0], rel=1e-9)


def test_a_reference_that_cannot_be_split_removes_nothing_and_says_so(make_panel):
    x = np.random.default_rng(7).normal(size=(5, 3))
    metric = _one(make_panel(x[:3], x[1:]))
    assert metric.value == metric.extra["raw"]
    assert (metric.extra["null_mean"], metric.extra["null_sd"]) == (0.0, None)
    assert metric.extra["note"] == "too few reference rows for a null mean"
    metric = _one(make_panel(x[:4], x[1:]))
    assert metric.value < metric.extra["raw"]
    assert "note" not in metric.extra


def test_a_single_row_is_too_few(make_panel, shifted):
    with pytest.raises(InsufficientDataError):
        frechet.compute(make_panel(shifted[0], shifted[1][:1]))
