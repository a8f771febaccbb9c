"""Scores from two sketches: against the exact panel, and the stated errors of what is not exact."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_sketch import SETTINGS, Pair, cloud, ids_of, pair_of, plan_of, sketch_of
from scipy.stats import wasserstein_distance

import gpudrift
from gpudrift import panel
from gpudrift.errors import InsufficientDataError, ReferenceMismatchError
from gpudrift.panel import PanelSettings
from gpudrift.records import Metric
from gpudrift.sketch import Sketch, compare

LARGE = {"features": 64, "bins": 2048, "reservoir": 4096}


@pytest.fixture(scope="module")
def held() -> tuple[Pair, dict[str, Metric], dict[str, Metric]]:
    """Reservoirs that hold every row: the sketches' panel and the exact one."""
    pair = pair_of(cloud(601, 12), cloud(350, 12, seed=1, shift=0.3, spread=1.2), **LARGE)
    exact = panel.score(torch.from_numpy(pair.x), torch.from_numpy(pair.y), SETTINGS, "float32")
    return pair, compare(pair.reference, pair.current), exact


FROM_ALL_ROWS = ("mean_shift", "log_variance_ratio", "residual_energy", "psi", "js", "kl")
FROM_SAMPLES = ("energy", "mmd2_b1", "mmd2_b2", "mmd2_b3", "mmd2_b4", "energy_pc1", "energy_pc2", "energy_pc3")


def test_every_metric_of_the_panel_but_two(held: tuple[Pair, dict[str, Metric], dict[str, Metric]]) -> None:
    _, found, exact = held
    assert set(exact) - set(found) == {"sliced_wasserstein", "classifier_auc"}
    assert set(found) - set(exact) == {f"rff_mmd2_b{b}" for b in range(1, 5)}
    assert all(metric.name == name for name, metric in found.items())


@pytest.mark.parametrize("name", FROM_ALL_ROWS)
def test_what_moments_and_counts_give_is_the_exact_panel(
    held: tuple[Pair, dict[str, Metric], dict[str, Metric]], name: str
) -> None:
    _, found, exact = held
    assert found[name].value == pytest.approx(exact[name].value, rel=1e-9)
    assert found[name].se == pytest.approx(exact[name].se, rel=1e-9)
    assert found[name].extra.keys() == exact[name].extra.keys()
    for key, value in exact[name].extra.items():
        assert found[name].extra[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9))


@pytest.mark.parametrize("name", FROM_SAMPLES)
def test_samples_that_hold_every_row_give_the_exact_panel(
    held: tuple[Pair, dict[str, Metric], dict[str, Metric]], name: str
) -> None:
    """To the float32 of the distances: rows come in another order."""
    _, found, exact = held
    assert found[name].value == pytest.approx(exact[name].value, rel=1e-5)
    assert found[name].se == pytest.approx(exact[name].se, rel=1e-5)
    assert found[name].extra["sampled"] == [601, 350] == found[name].extra["rows"]


def test_frechet_is_the_exact_one_but_for_the_draws_of_its_null(
    held: tuple[Pair, dict[str, Metric], dict[str, Metric]],
) -> None:
    _, found, exact = (part if isinstance(part, Pair) else part["frechet"] for part in held)
    assert found.extra["raw"] == pytest.approx(exact.extra["raw"], rel=1e-9)
    # each from 8 draws, whose mean has a standard error of null_sd / sqrt(8)
    assert abs(found.value - exact.value) < 4 * math.hypot(found.extra["null_sd"], exact.extra["null_sd"]) / 8**0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_wasserstein_is_the_exact_one_within_its_bound(
    held: tuple[Pair, dict[str, Metric], dict[str, Metric]], k: int
) -> None:
    _, found, exact = (part if isinstance(part, Pair) else part[f"wasserstein1_pc{k}"] for part in held)
    assert abs(found.value - exact.value) <= found.extra["discretisation"] + 1e-9
    assert found.extra["discretisation"] < 0.01 * exact.value
    assert found.se == pytest.approx(exact.se, rel=0.02)
    for key, value in exact.extra.items():
        tolerance = 0.01 if key == "scaled" else 1e-9
        assert found.extra[key] == pytest.approx(value, rel=tolerance)


def draw(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(n, 3))
    if kind == "heavy":
        rows = rng.standard_t(1.2, size=(n, 3))
    elif kind == "ties":
        rows = rows.round(0)
    elif kind == "two":
        rows = rng.integers(0, 2, size=(n, 1)) * np.ones(3) + 1e-3 * rows
    return rows.astype(np.float32)


KINDS = st.sampled_from(["normal", "heavy", "ties", "two"])


@settings(max_examples=120)
@given(
    kinds=st.tuples(KINDS, KINDS),
    rows=st.tuples(st.integers(30, 300), st.integers(2, 300)),
    shift=st.sampled_from([0.0, 0.1, 1.0, 100.0]),
    bins=st.sampled_from([2, 16, 256]),
    seed=st.integers(0, 99),
)
def test_the_stated_bound_of_wasserstein_holds(
    kinds: tuple[str, str], rows: tuple[int, int], shift: float, bins: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = draw(kinds[0], rows[0], rng), draw(kinds[1], rows[1], rng) + np.float32(shift)
    pair = pair_of(x, y, PanelSettings(pca_components=2, components=2), bins=bins, features=2)
    found = compare(pair.reference, pair.current)
    for k in range(2):
        centred = [(r - pair.plan.mean.numpy()).astype(np.float32).astype(np.float64) for r in (x, y)]
        exact = wasserstein_distance(*(c @ pair.plan.axes[k].numpy() for c in centred))
        metric = found[f"wasserstein1_pc{k + 1}"]
        assert abs(metric.value - exact) <= metric.extra["discretisation"] + 1e-9 * max(1.0, exact)


def test_small_samples_agree_within_their_error() -> None:
    x, y = cloud(5000), cloud(4000, seed=1, shift=0.15, spread=1.1)
    pair = pair_of(x, y, reservoir=500)
    found = compare(pair.reference, pair.current)
    exact = panel.score(torch.from_numpy(x), torch.from_numpy(y), SETTINGS, "float32")
    for name in FROM_SAMPLES:
        assert abs(found[name].value - exact[name].value) < 3.5 * found[name].se
        assert found[name].se > 1.5 * exact[name].se  # it is that of the sample
        assert found[name].extra["sampled"] == [500, 500]
    for name in FROM_ALL_ROWS:
        assert found[name].value == pytest.approx(exact[name].value, rel=1e-9)
        assert found[name].se == pytest.approx(exact[name].se, rel=0.15)  # of psi: from the sample
    for name in ("mean_shift", "log_variance_ratio", "residual_energy"):
        assert found[name].se == pytest.approx(exact[name].se, rel=1e-9)
    null = [metrics["frechet"].extra["null_mean"] for metrics in (found, exact)]
    assert null[0] == pytest.approx(null[1], rel=0.15)


def test_sketches_from_merged_shards_score_as_those_of_one_pass() -> None:
    x, y = cloud(900), cloud(700, seed=1, shift=0.2)
    pair = pair_of(x, y, reservoir=100)
    shards = [sketch_of(pair.plan, y[a:b], 10**6 + a) for a, b in ((0, 10), (10, 500), (500, 700))]
    merged = shards[1].merge(shards[2].merge(shards[0]))
    whole, parts = compare(pair.reference, pair.current), compare(pair.reference, merged)
    assert {n: m.value for n, m in parts.items()} == pytest.approx({n: m.value for n, m in whole.items()}, rel=1e-7)


def test_a_window_against_itself_shows_nothing() -> None:
    x = cloud(400)
    pair = pair_of(x, x)
    found = compare(pair.reference, pair.reference)
    assert all(math.isfinite(metric.value) for metric in found.values())
    for name in ("log_variance_ratio", "wasserstein1_pc1", "wasserstein1_pc2"):
        assert found[name].value == pytest.approx(0.0, abs=1e-12)
    assert found["psi"].extra["raw"] == found["js"].extra["raw"] == 0.0
    assert found["frechet"].extra["raw"] == pytest.approx(0.0, abs=1e-9)


def test_windows_that_share_rows_are_sampled_apart() -> None:
    """The same 600 rows on both sides, 200 kept: in one sample drawn twice, a pair in 200 would be a row with itself,
    and energy -2 / 200 of the mean distance, 20 standard errors below 0."""
    x = cloud(600)
    values = []
    for seed in range(30):
        plan = plan_of(x, reservoir=200, seed=seed, features=2)
        found = compare(sketch_of(plan, x), sketch_of(plan, x))
        assert 60 < min(found["energy"].extra["sampled"]) < max(found["energy"].extra["sampled"]) < 140
        values.append([found["energy"].value, found["energy_pc1"].value, found["mmd2_b3"].value])
    z = np.mean(values, axis=0) / (np.std(values, axis=0, ddof=1) / 30**0.5)
    assert (np.abs(z) < 3.5).all(), z
    half = compare(sketch_of(plan, x[:400]), sketch_of(plan, x[200:], 200))
    assert half["energy"].extra["sampled"][0] < 140  # ids and rows 200 to 399 are in both


def test_few_rows_that_are_the_same_are_too_little() -> None:
    plan = plan_of(cloud(301))
    with pytest.raises(InsufficientDataError, match="same rows"):
        compare(sketch_of(plan, cloud(2)), sketch_of(plan, cloud(2)))


# -- random features ---------------------------------------------------------------------------------------------------


def rff(metrics: dict[str, Metric], key: str) -> np.ndarray:
    names = [f"rff_mmd2_b{b}" for b in range(1, 5)]
    return np.array([metrics[name].value if key == "value" else metrics[name].extra[key] for name in names])


def test_random_features_are_unbiased_with_the_stated_spread() -> None:
    """Over 150 draws of the frequencies: their mean is the exact U-statistic, their sd what each says of itself."""
    x, y = cloud(120, 6), cloud(90, 6, seed=1, shift=0.3, spread=1.3)
    plan = plan_of(x, features=48)
    exact = np.array(gpudrift.mmd2(x, y, list(plan.bandwidths)).value)
    values, stated = [], []
    for seed in range(150):
        drawn = replace(plan, seed=seed)
        found = compare(sketch_of(drawn, x), sketch_of(drawn, y, 500))
        values.append(rff(found, "value"))
        stated.append(rff(found, "approximation_sd"))
    spread = np.std(values, axis=0, ddof=1)
    assert (np.abs(np.mean(values, axis=0) - exact) < 3.5 * spread / 150**0.5).all()
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(stated), axis=0)), spread, rtol=0.25)


def test_the_sampling_error_is_that_of_fresh_rows() -> None:
    """Over 120 pairs of windows that differ, at pinned frequencies."""
    plan = plan_of(cloud(400, 6), features=64)
    values, stated = [], []
    for seed in range(120):
        x, y = cloud(260, 6, seed=2 * seed), cloud(200, 6, seed=2 * seed + 1, shift=0.5, spread=1.2)
        found = compare(sketch_of(plan, x), sketch_of(plan, y, 500))
        values.append(rff(found, "value"))
        stated.append(rff(found, "sampling_se"))
    spread = np.std(values, axis=0, ddof=1)
    ratio = np.sqrt(np.mean(np.square(stated), axis=0)) / spread
    # the sd of 120 draws is uncertain by 6.5%; the linear part is somewhat large where noise is most of the value
    assert ((ratio > 0.8) & (ratio < 1.6)).all(), ratio


def test_the_error_bar_holds_both_errors() -> None:
    pair = pair_of(cloud(200), cloud(150, seed=1, shift=0.2))
    for b in range(1, 5):
        metric = compare(pair.reference, pair.current)[f"rff_mmd2_b{b}"]
        parts = metric.extra["sampling_se"], metric.extra["approximation_sd"]
        assert metric.se == pytest.approx(math.hypot(*parts), rel=1e-12)
        assert min(parts) > 0
        assert (metric.extra["exact"], metric.extra["bandwidth"]) == (f"mmd2_b{b}", pair.plan.bandwidths[b - 1])


# -- too little --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "side"), [((0, 9), "reference"), ((1, 9), "reference"), ((9, 1), "current")])
def test_too_few_rows(rows: tuple[int, int], side: str) -> None:
    plan = plan_of(cloud(301))
    with pytest.raises(InsufficientDataError, match=f"the {side} sketch holds too few rows"):
        compare(*(sketch_of(plan, cloud(n)) for n in rows))


def test_two_rows_a_side_are_enough() -> None:
    plan = plan_of(cloud(301))
    found = compare(sketch_of(plan, cloud(2)), sketch_of(plan, cloud(2, seed=1), 5))
    assert {"energy", "frechet", "psi", "rff_mmd2_b1"} <= set(found)
    assert math.isfinite(found["rff_mmd2_b1"].value)


def test_one_row_delivered_many_times_is_too_little() -> None:
    plan = plan_of(cloud(301))
    again = Sketch.empty(plan)
    for _ in range(3):
        again.update(torch.from_numpy(cloud(1)), ids_of(0, 1))
    with pytest.raises(InsufficientDataError, match="distinct"):
        compare(sketch_of(plan, cloud(9)), again)


def test_sketches_of_two_plans_are_not_compared() -> None:
    plan = plan_of(cloud(301))
    other = sketch_of(replace(plan, seed=9), cloud(9))
    with pytest.raises(ReferenceMismatchError, match="different plans"):
        compare(sketch_of(plan, cloud(9)), other)
