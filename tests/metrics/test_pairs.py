"""Energy and MMD against independent libraries; the variance against all outcomes of small discrete distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

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


Law = list[tuple[float, tuple[float, float]]]  # chance and value
X_OF_2, Y_OF_2 = [(0.3, (0.0, 0.0)), (0.7, (1.0, 0.5))], [(0.6, (0.2, 1.0)), (0.4, (2.0, -0.3))]
X_OF_3 = [(0.5, (0.0, 0.0)), (0.3, (1.0, 0.5)), (0.2, (-0.4, 2.0))]
BANDWIDTH = {"energy": None, "rbf": 0.8}


def outcomes(count: int, law: Law) -> list[tuple[float, np.ndarray]]:
    """All samples of so many rows up to order, which no statistic here knows, with their chances."""
    found = []
    for draw in itertools.combinations_with_replacement(range(len(law)), count):
        times = [draw.count(k) for k in range(len(law))]
        orders = math.factorial(count) // math.prod(map(math.factorial, times))
        chance = orders * math.prod(p**t for (p, _), t in zip(law, times, strict=True))
        found.append((chance, np.array([law[i][1] for i in draw])))
    return found


def estimate_of(x: np.ndarray, y: np.ndarray, s: float | None) -> gpudrift.DriftEstimate:
    return gpudrift.energy_distance(x, y) if s is None else gpudrift.mmd2(x, y, s)


def assert_unbiased(variance_of: Callable[..., float], n: int, m: int, function: str, laws: tuple[Law, Law]) -> None:
    """The mean of a variance estimate over all outcomes is the variance of the U-statistic over all outcomes.

    variance_of: from x, y, the bandwidth and the estimate.
    """
    s, first, second, estimates = BANDWIDTH[function], [], [], []
    for (p, x), (q, y) in itertools.product(outcomes(n, laws[0]), outcomes(m, laws[1])):
        found = estimate_of(x, y, s)
        first.append(p * q * found.value)
        second.append(p * q * found.value**2)
        estimates.append(p * q * variance_of(x, y, s, found))
    assert math.fsum(estimates) == pytest.approx(math.fsum(second) - math.fsum(first) ** 2, rel=1e-9)


def unbiased(_x: np.ndarray, _y: np.ndarray, _s: float | None, found: gpudrift.DriftEstimate) -> float:
    return float(found.variance)


@pytest.mark.parametrize("function", ["energy", "rbf"])
@pytest.mark.parametrize(
    ("n", "m", "laws"),
    [(4, 7, (X_OF_2, Y_OF_2)), (9, 5, (X_OF_2, X_OF_2)), (5, 4, (X_OF_3, Y_OF_2)), (4, 6, (X_OF_3, X_OF_2))],
)
def test_the_variance_is_unbiased_for_unequal_numbers_of_rows(
    n: int, m: int, laws: tuple[Law, Law], function: str
) -> None:
    assert_unbiased(unbiased, n, m, function, laws)


def published(x: np.ndarray, y: np.ndarray, s: float | None, _: object) -> float:
    """The estimator that the code of Sutherland et al. (2017, "optimized MMD") has for n = m."""
    m = len(x)

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
        return -distances if s is None else np.exp(-(distances**2) / (2 * s * s))

    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    r_x, r_y, c_x, c_y = xx.sum(1), yy.sum(1), xy.sum(1), xy.sum(0)
    within = 2 * (r_x @ r_x + r_y @ r_y) - (xx**2).sum() - (yy**2).sum()
    between = (m - 2) * (c_x @ c_x + c_y @ c_y) - (m - 3) * (xy**2).sum()
    joint = (r_x.sum() + r_y.sum()) * xy.sum() / m - r_x @ c_x - r_y @ c_y
    squares = (4 * m - 6) * (r_x.sum() ** 2 + r_y.sum() ** 2) / (m * (m - 1)) ** 3
    squares += (8 * m - 12) * xy.sum() ** 2 / (m**5 * (m - 1))
    within, between = 2 * within / (m * (m - 1)) ** 2, 4 * between / (m**3 * (m - 1) ** 2)
    return float(within + between + 8 * joint / (m**3 * (m - 1)) - squares)


@pytest.mark.parametrize("laws", [(X_OF_2, X_OF_2), (X_OF_2, Y_OF_2)])
@pytest.mark.parametrize("function", ["energy", "rbf"])
def test_other_variances_fail_the_enumeration(function: str, laws: tuple[Law, Law]) -> None:
    """The published formula, less than half of the truth here, and the linear part alone, which is above it."""

    def linear(_x: np.ndarray, _y: np.ndarray, _s: float | None, found: gpudrift.DriftEstimate) -> float:
        return float(found.se) ** 2

    assert_unbiased(unbiased, 4, 4, function, laws)
    for wrong in (published, linear):
        with pytest.raises(AssertionError):
            assert_unbiased(wrong, 4, 4, function, laws)


def test_the_published_variance_is_far_off_where_nothing_drifts() -> None:
    rng = np.random.default_rng(6)
    runs = []
    for _ in range(150):
        x, y = rng.normal(size=(40, 8)), rng.normal(size=(40, 8))
        found = gpudrift.mmd2(x, y, 4.0)
        runs.append((found.value, found.variance, published(x, y, 4.0, None)))
    values, own, theirs = np.array(runs).T
    assert own.mean() == pytest.approx(values.var(), rel=0.35)
    assert theirs.mean() < 0.2 * values.var()


def test_a_row_repeated_within_its_cluster_adds_nothing() -> None:
    """Pairs of one cluster are left out, so three copies of every row have the score of the rows themselves and, up to
    the corrections for few clusters, their standard error; as independent rows they would seem far more certain."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(25, 3)), rng.normal(size=(20, 3)) + 0.5
    once = gpudrift.energy_distance(x, y)
    copies = gpudrift.energy_distance(
        np.repeat(x, 3, axis=0),
        np.repeat(y, 3, axis=0),
        clusters_x=np.repeat(np.arange(25), 3),
        clusters_y=np.repeat(np.arange(100, 120), 3),
    )
    assert copies.value == pytest.approx(once.value, rel=1e-12)
    squares = 4 * once.witness_x.var() / 25 + 4 * once.witness_y.var() / 20
    assert copies.se == pytest.approx(math.sqrt(45 / 44 * squares), rel=1e-12)
    alone = gpudrift.energy_distance(np.repeat(x, 3, axis=0), np.repeat(y, 3, axis=0))
    assert alone.se < 0.65 * copies.se


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


@pytest.mark.parametrize("shared", [False, True])
def test_the_standard_error_by_cluster_holds_for_clusters_of_uneven_size(shared: bool) -> None:
    """Users of 1 to 20 rows, of one side or both, no drift: var_lin is about twice the variance, as for equal clusters.
    With the influence values as they are, a large cluster's missing partners counted as movement: 24 to 51 times."""
    rng = np.random.default_rng(4)
    values, squares = [], []
    for _ in range(150):
        sizes = rng.permutation(np.r_[np.full(20, 1), np.full(8, 4), np.full(3, 20)])
        sides = []
        for side in range(2):
            codes = np.repeat(np.arange(len(sizes)) + (0 if shared else 100 * side), sizes)
            sides.append((rng.normal(size=(len(codes), 3)), codes))
        (x, own), (y, other) = sides
        found = gpudrift.energy_distance(x, y, clusters_x=own, clusters_y=other)
        values.append(found.value)
        squares.append(found.se**2)
    assert 1.0 < np.mean(squares) / np.var(values, ddof=1) < 4.0


def test_rows_of_one_cluster_have_no_null_scale() -> None:
    rows, clusters = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(9, dtype=torch.int64)
    sums = kernels.self_sums(kernels.prepare(rows, precision="float64", clusters=clusters))
    assert sums.pairs == 0
    assert math.isnan(pairs.null_sd(pairs.null_scale(sums, 0, clusters), 5, 9))
