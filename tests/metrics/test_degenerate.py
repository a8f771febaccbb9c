"""Input at the edge, through every metric that is not a sum over pairs: always finite, plain, and reproducible."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from gpudrift.metrics import classifier, divergences, energy_1d, frechet, moments, wasserstein

MODULES = (classifier, wasserstein, energy_1d, divergences, moments, frechet)
SIGNED_LOGS = ("log_variance_ratio", "residual_energy")


def _all(panel):
    return {metric.name: metric for module in MODULES for metric in module.compute(panel)}


def _normal(n, d, seed, offset=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + offset


CASES = {
    "identical": (_normal(60, 5, 0), _normal(60, 5, 0)),
    "both constant": (np.full((9, 3), 4.0), np.full((5, 3), 4.0)),
    "constant, elsewhere": (np.full((9, 3), 4.0), np.full((5, 3), 7.0)),
    "constant reference": (np.full((9, 3), 4.0), _normal(12, 3, 1)),
    "constant current": (_normal(30, 3, 1), np.full((5, 3), 7.0)),
    "all zero": (np.zeros((4, 2)), np.zeros((3, 2))),
    "duplicates": (np.repeat(_normal(4, 3, 2), 10, axis=0), np.repeat(_normal(3, 3, 3), 7, axis=0)),
    "two rows each": (_normal(2, 4, 4), _normal(2, 4, 5)),
    "one dimension": (_normal(40, 1, 6), _normal(25, 1, 7)),
    "rank one": (np.outer(np.arange(20.0), [1.0, 2.0, 2.0]), np.outer(np.arange(10.0), [1.0, 2.0, 2.0])),
    "huge offset": (_normal(50, 4, 8, 1e6), _normal(40, 4, 9, 1e6)),
    "tiny scale": (_normal(50, 4, 8) * 1e-8, _normal(40, 4, 9) * 1e-8),
    "far away": (_normal(50, 4, 8), _normal(40, 4, 9, 1e4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_everything_is_finite_and_plain(make_panel, case, dtype):
    x, y = CASES[case]
    metrics = _all(make_panel(x, y, components=3, directions=5, dtype=dtype))
    for metric in metrics.values():
        assert type(metric.value) is float
        assert math.isfinite(metric.value), metric
        assert metric.se is None or (type(metric.se) is float and metric.se >= 0 and math.isfinite(metric.se)), metric
        json.dumps(dict(metric.extra), allow_nan=False)


@pytest.mark.parametrize("case", ["identical", "both constant", "all zero"])
def test_the_same_cloud_twice_is_no_drift(make_panel, case):
    x, y = CASES[case]
    scale = max(1.0, float(np.abs(x).max()))
    for name, metric in _all(make_panel(x, y, components=2)).items():
        assert metric.value <= 1e-12 * scale, name
        if name.startswith(("wasserstein1", "sliced")) or name in SIGNED_LOGS:
            # rows the axes were fitted on, taken for fresh ones, have that much less outside the axes
            assert abs(metric.value + (metric.extra.get("optimism") or 0.0) * (name in SIGNED_LOGS)) <= 1e-12 * scale


def test_every_distance_sees_a_constant_cloud_that_moved(make_panel):
    metrics = _all(make_panel(*CASES["constant, elsewhere"], components=1))
    moved = 3.0 * math.sqrt(3.0)
    assert metrics["mean_shift"].extra["raw"] == pytest.approx(moved)
    assert metrics["mean_shift"].extra["note"] == "reference numerically zero"
    assert metrics["frechet"].value == pytest.approx(moved**2)
    assert metrics["sliced_wasserstein"].value > 1.0
    assert metrics["log_variance_ratio"].value == 0.0
    assert metrics["wasserstein1_pc1"].extra["scaled"] is None


def test_noise_on_an_axis_beyond_the_rank_is_not_scaled_up(make_panel):
    metrics = _all(make_panel(*CASES["rank one"], components=3, dtype=torch.float32))
    for k in (2, 3):
        for name in (f"wasserstein1_pc{k}", f"energy_pc{k}"):
            assert abs(metrics[name].extra["scaled"]) < 1e-3
        assert abs(metrics[f"wasserstein1_pc{k}"].extra["log_variance_ratio"]) < 1e-9


def test_float32_is_float64_to_its_own_accuracy(make_panel):
    x, y = _normal(300, 8, 1) * np.arange(8, 0, -1) + 1e3, _normal(200, 8, 2) * np.arange(8, 0, -1) * 1.1 + 1e3 + 0.5
    exact, single = (_all(make_panel(x, y, components=3, dtype=dtype)) for dtype in (torch.float64, torch.float32))
    for name, metric in exact.items():
        assert single[name].value == pytest.approx(metric.value, rel=1e-5, abs=1e-5), name
        if metric.se is not None:
            assert single[name].se == pytest.approx(metric.se, rel=1e-4), name


def test_results_repeat_to_the_bit_and_do_not_touch_the_input(make_panel, shifted):
    panel = make_panel(*shifted, components=3, dtype=torch.float32)
    kept = [tensor.clone() for tensor in (panel.x, panel.y, panel.px.scores, panel.py.residual, panel.covariance)]
    state = torch.random.get_rng_state()
    assert _all(panel) == _all(panel)
    assert torch.equal(torch.random.get_rng_state(), state)
    for before, after in zip(
        kept, (panel.x, panel.y, panel.px.scores, panel.py.residual, panel.covariance), strict=True
    ):
        assert torch.equal(before, after)


def test_rotation_and_translation_change_nothing_that_has_no_axes(make_panel, shifted):
    x, y = shifted
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    plain, turned = _all(make_panel(x, y)), _all(make_panel(x @ rotation + 5, y @ rotation + 5))
    for name, metric in plain.items():
        if name != "sliced_wasserstein":  # its directions are pinned in the embedding's own axes
            assert turned[name].value == pytest.approx(metric.value, rel=1e-7), name


def test_row_order_changes_nothing_measured(make_panel, shifted):
    x, y = shifted
    plain, shuffled = _all(make_panel(x, y)), _all(make_panel(x[::-1].copy(), y[::-1].copy()))
    for name, metric in plain.items():
        if name == "frechet":  # its null mean is drawn from rows by their place
            assert shuffled[name].extra["raw"] == pytest.approx(metric.extra["raw"], rel=1e-9)
            continue
        assert shuffled[name].value == pytest.approx(metric.value, rel=1e-9), name
        if metric.se is not None:
            assert shuffled[name].se == pytest.approx(metric.se, rel=1e-8), name


def test_scaling_the_embedding_scales_what_has_units(make_panel, shifted):
    x, y = shifted
    plain, scaled = _all(make_panel(x, y)), _all(make_panel(10 * x, 10 * y))
    power = {"frechet": 2, "sliced_wasserstein": 1}
    for name, metric in plain.items():
        factor = 10.0 ** power.get(name, 1 if name.startswith(("wasserstein1", "energy")) else 0)
        assert scaled[name].value == pytest.approx(factor * metric.value, rel=1e-8), name
