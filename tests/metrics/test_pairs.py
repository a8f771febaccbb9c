"""Energy and MMD against independent libraries; the variance against all outcomes of small discrete distributions."""

from __future__ import annotations

import itertools
import math

import dcor
import numpy as np
import pytest
import torch

import gpudrift
from gpudrift import kernels
from gpudrift.metrics import pairs

S = 5.613401082909  # median distance of X, so that published values can be compared


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16))
    return x, rng.normal(size=(150, 16)) + 0.3


def test_energy_equals_the_published_values_and_dcor(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = clouds
    u, v = gpudrift.energy_distance(x, y), gpudrift.energy_distance(x, y, estimator="v")
    assert u.value == pytest.approx(0.342913231740305, rel=1e-12)
    assert v.value == pytest.approx(0.407532140809746, rel=1e-12)
    assert u.value == pytest.approx(dcor.energy_distance(x, y, estimation_stat="u_statistic"), rel=1e-10)
    assert v.value == pytest.approx(dcor.energy_distance(x, y), rel=1e-10)


def test_mmd_equals_the_published_values_and_a_dense_computation(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = clouds
    assert gpudrift.mmd2(x, y, S).value == pytest.approx(0.0359058991073049, rel=1e-12)
    assert gpudrift.mmd2(x, y, S, estimator="v").value == pytest.approx(0.040405133176149, rel=1e-12)
    several = gpudrift.mmd2(x, y, [S, S / 2, S / 3])
    for b, s in enumerate((S, S / 2, S / 3)):
        xx, yy, xy = (np.exp(-((a[:, None] - c[None]) ** 2).sum(-1) / (2 * s * s)) for a, c in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        wanted = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()
        assert several.value[b] == pytest.approx(wanted, rel=1e-10)


def test_float32_agrees_to_1e_5(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (c.astype(np.float32) for c in clouds)
    exact_x, exact_y = x.astype(np.float64), y.astype(np.float64)
    exact, exact_mmd = gpudrift.energy_distance(exact_x, exact_y), gpudrift.mmd2(exact_x, exact_y, [S, S / 2])
    found, found_mmd = gpudrift.energy_distance(x, y), gpudrift.mmd2(x, y, [S, S / 2])
    assert found.precision == "float32"
    assert found.value == pytest.approx(exact.value, rel=1e-5)
    assert found.se == pytest.approx(exact.se, rel=1e-4)
    np.testing.assert_allclose(found_mmd.value, exact_mmd.value, rtol=1e-5)


def test_energy_equals_the_published_table_of_the_iris_data() -> None:
    from sklearn.datasets import load_iris

    rows, species = load_iris(return_X_y=True)
    groups = [rows[species == k] for k in range(3)]
    for (a, b), wanted in zip(((0, 1), (0, 2), (1, 2)), (123.55381, 195.30396, 38.85415), strict=True):
        x, y = groups[a], groups[b]
        value = gpudrift.energy_distance(x, y, estimator="v").value
        assert value * len(x) * len(y) / (len(x) + len(y)) == pytest.approx(wanted, abs=5e-6)


def test_witness_values_average_to_the_score_and_are_the_leave_one_out_means(
    clouds: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = clouds
    found = gpudrift.energy_distance(x, y)
    assert found.witness_x.mean() + found.witness_y.mean() == pytest.approx(found.value, rel=1e-12)
    j = 7
    to_x = np.linalg.norm(x - y[j], axis=1).mean()
    to_own = np.linalg.norm(np.delete(y, j, 0) - y[j], axis=1).mean()
    assert found.witness_y[j] == pytest.approx(to_x - to_own, rel=1e-12)
    wanted = 4 * found.witness_x.var(ddof=1) / 200 + 4 * found.witness_y.var(ddof=1) / 150
    assert found.se == pytest.approx(math.sqrt(wanted), rel=1e-12)


@pytest.mark.parametrize("function", ["energy", "mmd"])
def test_the_variance_is_unbiased_over_all_outcomes(function: str) -> None:
    """X takes 2 values, Y 2 values, n = m = 4: all 2^8 samples with their probabilities. The mean of the variance
    estimate must be the variance of the U-statistic."""
    atoms_x, p_x = [(0.0, 0.0), (1.0, 0.5)], [0.3, 0.7]
    atoms_y, p_y = [(0.2, 1.0), (2.0, -0.3)], [0.6, 0.4]
    first = second = mean_variance = 0.0
    for draw in itertools.product(range(2), repeat=8):
        weight = math.prod(p_x[i] for i in draw[:4]) * math.prod(p_y[i] for i in draw[4:])
        x, y = np.array([atoms_x[i] for i in draw[:4]]), np.array([atoms_y[i] for i in draw[4:]])
        found = gpudrift.energy_distance(x, y) if function == "energy" else gpudrift.mmd2(x, y, 0.8)
        first += weight * found.value
        second += weight * found.value**2
        mean_variance += weight * found.variance
    assert mean_variance == pytest.approx(second - first**2, rel=1e-6, abs=1e-9)


def test_the_null_sd_is_that_of_simulated_nulls() -> None:
    rng = np.random.default_rng(1)
    n, m, d = 40, 30, 4
    scores = [gpudrift.energy_distance(rng.normal(size=(n, d)), rng.normal(size=(m, d))).value for _ in range(400)]
    reference = torch.from_numpy(rng.normal(size=(3000, d)))
    scale = pairs.null_scale(kernels.self_sums(kernels.prepare(reference, precision="float64")), 0)
    assert pairs.null_sd(scale, n, m) == pytest.approx(np.std(scores), rel=0.1)
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 20


def test_clusters_leave_out_their_own_pairs_and_keep_the_score_the_mean_of_the_witnesses() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(10, 3))
    users_x, users_y = np.array(list("aabbccddeeff")), np.array(list("aagghhiijj"))
    found = gpudrift.energy_distance(x, y, clusters_x=users_x, clusters_y=users_y)

    def mean(a: np.ndarray, b: np.ndarray, ua: np.ndarray, ub: np.ndarray) -> float:
        distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
        return float(distances[ua[:, None] != ub[None]].mean())

    wanted = 2 * mean(x, y, users_x, users_y) - mean(x, x, users_x, users_x) - mean(y, y, users_y, users_y)
    assert found.value == pytest.approx(wanted, rel=1e-12)
    assert found.witness_x.mean() + found.witness_y.mean() == pytest.approx(wanted, rel=1e-12)
    assert math.isnan(found.variance)


def test_cluster_standard_errors_cover_where_row_ones_do_not() -> None:
    """40 users x 5 rows whose rows resemble each other: the spread over samples is the cluster-robust se."""
    rng = np.random.default_rng(3)

    def sample(shift: float) -> np.ndarray:
        return np.repeat(rng.normal(size=(40, 4)), 5, axis=0) + 0.5 * rng.normal(size=(200, 4)) + shift

    users = np.repeat(np.arange(40), 5)
    values, robust, naive = [], [], []
    for _ in range(60):
        x, y = sample(0.0), sample(0.5)
        found = gpudrift.energy_distance(x, y, clusters_x=users, clusters_y=users + 100)
        values.append(found.value)
        robust.append(found.se)
        naive.append(gpudrift.energy_distance(x, y).se)
    assert np.mean(robust) == pytest.approx(np.std(values), rel=0.35)
    assert np.mean(naive) < 0.65 * np.std(values)


def test_without_repeated_clusters_the_cluster_se_is_the_plain_one(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = clouds
    plain = gpudrift.energy_distance(x, y)
    found = gpudrift.energy_distance(x, y, clusters_x=np.arange(200), clusters_y=np.arange(200, 350))
    assert found.value == pytest.approx(plain.value, rel=1e-12)
    assert found.se == pytest.approx(plain.se, rel=0.01)


def test_leave_out_scores_equal_direct_computation() -> None:
    rng = np.random.default_rng(4)
    rows, sizes = rng.normal(size=(60, 3)), [10, 20, 30]
    bounds = [0, *np.cumsum(sizes)]
    prepared = kernels.prepare(torch.from_numpy(rows), precision="float64", offsets=bounds)
    sums = kernels.self_sums(prepared)
    parts = [([k], [g for g in range(3) if g != k]) for k in range(3)]
    found = pairs.leave_out_scores(sums.blocks[0], sums.block_pairs, parts)
    for k in range(3):
        inside = np.arange(bounds[k], bounds[k + 1])
        wanted = gpudrift.energy_distance(np.delete(rows, inside, 0), rows[inside]).value
        assert found[k] == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_one_frequent_cluster_label_leaves_the_null_scale_right(share: float) -> None:
    """Rows are independent, so leaving out the pairs of one label must not change what the scale estimates."""
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(1500, 6)))
    clusters = torch.arange(1500)
    clusters[: int(share * 1500)] = -1
    plain = pairs.null_scale(kernels.self_sums(kernels.prepare(rows, precision="float64")), 0)
    sums = kernels.self_sums(kernels.prepare(rows, precision="float64", clusters=clusters))
    assert pairs.null_scale(sums, 0, clusters) == pytest.approx(plain, rel=0.1)
