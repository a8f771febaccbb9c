from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.errors import ArgumentError, InsufficientDataError
from gpudrift.metrics import divergences
from gpudrift.metrics.divergences import fit_edges


def _by_name(panel):
    return {metric.name: metric for metric in divergences.compute(panel)}


def _shares(panel, k):
    """Smoothed shares on the pinned bins, by numpy."""
    cuts = [-np.inf, *panel.edges[k].numpy(), np.inf]
    out = []
    for scores in (panel.py.scores, panel.px.scores):
        counts = np.histogram(scores[:, k].numpy(), cuts)[0] + 0.5
        out.append(counts / counts.sum())
    return out


def test_raw_values_are_scipys(make_panel, shifted):
    panel = make_panel(*shifted, components=3)
    metrics = _by_name(panel)
    shares = [_shares(panel, k) for k in range(3)]
    kl = [scipy.stats.entropy(p, q) for p, q in shares]
    psi = [scipy.stats.entropy(p, q) + scipy.stats.entropy(q, p) for p, q in shares]
    js = [scipy.spatial.distance.jensenshannon(p, q) ** 2 / math.log(2) for p, q in shares]
    h = 1 / 300 + 1 / 170
    for name, raw, null in (("kl", kl, 4.5 * h), ("psi", psi, 9 * h), ("js", js, 9 * h / (8 * math.log(2)))):
        metric = metrics[name]
        assert metric.extra["raw"] == pytest.approx(np.mean(raw), rel=1e-12)
        assert metric.extra["null_mean"] == pytest.approx(null, rel=1e-12)
        assert metric.value == pytest.approx(np.mean(raw) - null, rel=1e-10)
        np.testing.assert_allclose(metric.extra["per_component"], np.array(raw) - null, rtol=1e-10)
        assert metric.extra["bins"] == 10
    assert metrics["kl"].extra["direction"] == "KL(current || reference)"


def test_edges_are_the_references_quantiles():
    scores = np.random.default_rng(0).normal(size=(501, 3))
    edges = fit_edges(torch.from_numpy(scores), 2, 10)
    expected = np.quantile(scores[:, :2], np.arange(1, 10) / 10, axis=0).T
    np.testing.assert_allclose(edges.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_null_means_are_removed():
    """No drift, edges pinned by a large reference: the mean over 300 windows is 0 within four standard errors, and what
    was removed is most of the raw value."""
    rng = np.random.default_rng(1)
    totals = {"psi": [], "js": [], "kl": []}
    removed = {}
    for _ in range(300):
        x, y = rng.normal(size=(2000, 1)), rng.normal(size=(400, 1))
        for metric in divergences.compute(_scores_panel(x, y)):
            totals[metric.name].append(metric.value)
            removed[metric.name] = metric.extra["null_mean"]
    for name, values in totals.items():
        assert abs(np.mean(values)) <= 4 * np.std(values) / math.sqrt(300) + 0.03 * removed[name]
        assert min(values) < 0


def _scores_panel(x, y, bins=10):
    """A panel with the columns as scores: what the divergences read, without a fit."""
    from gpudrift.records import Basis, PanelInput, Projection

    px, py = (Projection(torch.from_numpy(s), torch.zeros(len(s), dtype=torch.float64)) for s in (x, y))
    q = x.shape[1]
    basis = Basis(torch.zeros(q), torch.eye(q), px.scores.var(dim=0), 1.0)
    edges = fit_edges(px.scores, q, bins)
    return PanelInput(px.scores, py.scores, px, py, basis, torch.eye(q), edges, q, 1, 0)


def test_standard_errors_match_the_spread_of_many_runs():
    """Two components of one row that depend on each other; sd over 400 runs against the mean standard error."""
    rng = np.random.default_rng(2)
    edges = None
    values, errors = {"psi": [], "js": [], "kl": []}, {"psi": [], "js": [], "kl": []}
    for _ in range(400):
        x, y = rng.normal(size=(1000, 1)), rng.normal(size=(600, 1)) * 1.1 + 0.6
        panel = _scores_panel(np.hstack([x, 2 * x]), np.hstack([y, 2 * y]))
        if edges is None:
            edges = panel.edges
        object.__setattr__(panel, "edges", edges)  # pinned once, as in the job
        for metric in divergences.compute(panel):
            values[metric.name].append(metric.value)
            errors[metric.name].append(metric.se)
    for name in values:
        assert np.mean(errors[name]) == pytest.approx(np.std(values[name]), rel=0.12)


def test_a_repeated_component_changes_neither_value_nor_error():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(300, 1)), rng.normal(size=(200, 1)) + 0.5
    once, twice = _scores_panel(x, y), _scores_panel(np.hstack([x, x]), np.hstack([y, y]))
    for a, b in zip(divergences.compute(once), divergences.compute(twice), strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-12)
        assert b.se == pytest.approx(a.se, rel=1e-12)


def test_heavy_ties_make_neither_nan_nor_a_bin_without_width():
    rng = np.random.default_rng(4)
    x = rng.choice([0.0, 0.0, 0.0, 1.0, 5.0], size=(500, 1))
    y = rng.choice([0.0, 0.0, 0.0, 1.0, 5.0], size=(300, 1))
    metrics = _by_name(_scores_panel(x, y))
    h = 1 / 500 + 1 / 300
    # three atoms, three bins
    assert metrics["psi"].extra["null_mean"] == pytest.approx(2 * h, rel=1e-12)
    p, q = ((np.unique(c, return_counts=True)[1] + 0.5) / (len(c) + 1.5) for c in (y, x))
    assert metrics["kl"].extra["raw"] == pytest.approx(scipy.stats.entropy(p, q), rel=1e-12)
    # mass where the reference had none is drift
    moved = _by_name(_scores_panel(x, np.full((300, 1), -1.0)))
    assert moved["psi"].value > 5
    assert 0.9 < moved["js"].value <= 1.0


def test_a_component_without_variance_neither_hides_drift_nor_invents_it():
    rng = np.random.default_rng(5)
    x = np.hstack([rng.normal(size=(300, 1)), rng.normal(size=(300, 1)) * 1e-15])
    same = np.hstack([rng.normal(size=(200, 1)), rng.normal(size=(200, 1)) * 3e-15])
    metric = _by_name(_scores_panel(x, same))["psi"]
    assert metric.extra["per_component"][1] == 0.0
    left = np.hstack([same[:, :1], np.full((200, 1), 0.5)])
    assert _by_name(_scores_panel(x, left))["psi"].extra["per_component"][1] > 5


@given(st.integers(0, 2**16), st.integers(2, 40), st.integers(2, 40), st.integers(2, 12), st.integers(1, 5))
@settings(max_examples=50)
def test_bounds_and_symmetry(seed, n, m, bins, levels):
    """Few levels, so ties abound: raw PSI, KL >= 0, raw JS in [0, 1], PSI = KL both ways, everything finite."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, levels, size=(n, 1)) * 1.0, rng.integers(0, levels + 1, size=(m, 1)) * 1.0
    panel = _scores_panel(x, y, bins)
    metrics = _by_name(panel)
    tiny = 1e-12
    assert -tiny <= metrics["js"].extra["raw"] <= 1 + tiny
    assert metrics["kl"].extra["raw"] >= -tiny
    assert metrics["psi"].extra["raw"] >= metrics["kl"].extra["raw"] - tiny
    for metric in metrics.values():
        assert math.isfinite(metric.value)
        assert math.isfinite(metric.se)
    # the same bins with the clouds' roles exchanged: PSI and JS are symmetric, KL gives the other summand of PSI
    other = _by_name(type(panel)(**{**vars(panel), "px": panel.py, "py": panel.px}))
    assert other["psi"].extra["raw"] == pytest.approx(metrics["psi"].extra["raw"], abs=1e-12)
    assert other["js"].extra["raw"] == pytest.approx(metrics["js"].extra["raw"], abs=1e-12)
    both = metrics["kl"].extra["raw"] + other["kl"].extra["raw"]
    assert both == pytest.approx(metrics["psi"].extra["raw"], abs=1e-12)


def test_bad_bins_are_named():
    scores = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match="components"):
        fit_edges(scores, 3, 10)
    with pytest.raises(ArgumentError, match="bins"):
        fit_edges(scores, 2, 1)
    with pytest.raises(InsufficientDataError):
        fit_edges(scores[:0], 2, 10)
