"""The cross statistic is the published one, standard normal where nothing drifts, by cluster too; and it sees drift."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gpudrift
from gpudrift import cross, kernels
from gpudrift.errors import ArgumentError
from gpudrift.estimators import deal

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 3)), RNG.normal(size=(36, 3)) + 0.4


def matrix(a: np.ndarray, b: np.ndarray, width: float | None) -> np.ndarray:
    """An RBF, or the distance-induced k = |a - o| + |b - o| - |a - b| about o = (1, 2, ...)."""
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    if width is not None:
        return np.exp(-(distances**2) / (2 * width**2))
    o = np.arange(1, a.shape[1] + 1)
    return np.linalg.norm(a - o, axis=1)[:, None] + np.linalg.norm(b - o, axis=1)[None] - distances


def published(
    x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray, width: float | None
) -> tuple[float, float]:
    """T and z of Shekhar, Kim and Ramdas 2022, eq. 2 and 4, from the four matrices; z with variances over n1, m1."""
    x1, x2, y1, y2 = x[in_x == 0], x[in_x == 1], y[in_y == 0], y[in_y == 1]
    u = matrix(x1, x2, width).mean(1) - matrix(x1, y2, width).mean(1)
    v = matrix(y1, x2, width).mean(1) - matrix(y1, y2, width).mean(1)
    value = u.mean() - v.mean()
    return float(value), float(value / math.sqrt(u.var() / len(u) + v.var() / len(v)))


def halves(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    in_x, in_y = deal(n, m, 2, seed=seed)
    return in_x.numpy(), in_y.numpy()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(1, 3))
def test_it_is_the_published_statistic(seed: int, n: int, d: int) -> None:
    """Whose variances divide by n1 where the unbiased ones divide by n1 - 1: one factor where n1 = m1."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 0.3
    in_x, in_y = halves(n, n, seed)
    n1 = int((in_x == 0).sum())
    assert n1 == (n + 1) // 2
    for statistic, widths in (("energy", [None]), ("mmd", [0.7, 2.0])):
        found = gpudrift.cross_test(x, y, statistic, bandwidths=None if statistic == "energy" else widths, seed=seed)
        for k, width in enumerate(widths):
            value, z = published(x, y, in_x, in_y, width)
            assert found.values[k] == pytest.approx(value, abs=1e-12)
            assert found.zs[k] * math.sqrt(n1 / (n1 - 1)) == pytest.approx(z, rel=1e-7, abs=1e-7)
            assert found.ses[k] * found.zs[k] == pytest.approx(found.values[k], rel=1e-12)
        assert found.rows == (n1, n - n1, n1, n - n1)


def test_sides_of_different_size_and_the_fields_of_the_result() -> None:
    found = gpudrift.cross_test(X, Y, bandwidths=[0.5, 1.5, 4.0], seed=4)
    in_x, in_y = halves(40, 36, 4)
    np.testing.assert_allclose(found.values, [published(X, Y, in_x, in_y, s)[0] for s in (0.5, 1.5, 4.0)], atol=1e-13)
    assert found.largest == int(np.argmax(found.zs))
    assert (found.value, found.se, found.z) == tuple(
        part[found.largest] for part in (found.values, found.ses, found.zs)
    )
    assert (found.statistic, found.bandwidths, found.seed) == ("mmd", (0.5, 1.5, 4.0), 4)
    assert (found.device, found.precision) == ("cpu", "float64")
    energy = gpudrift.cross_test(X, Y, "energy", seed=4)
    assert (energy.bandwidths, energy.values, energy.largest) == (None, (energy.value,), 0)
    assert stats.t.sf(energy.z, 36) <= energy.p_value <= stats.t.sf(energy.z, 17)  # of 20 and 18 rows, after Welch
    assert gpudrift.cross_test(X, Y, "energy", seed=5).z != energy.z
    default = gpudrift.cross_test(X, Y)
    assert default.bandwidths == gpudrift.permutation_test(X, Y, "mmd", permutations=9).bandwidths


def many(
    count: int, n: int, shift: float, *, widths: tuple[float, ...] = (), users: int = 0, seed: int = 1
) -> list[cross.Outcome]:
    """Outcomes on N(0, I) of 4 dimensions; with ``users``, so many of each side, whose rows lie about a place of their
    own, half of them on both sides."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        x, y = rng.normal(size=(n, 4)), rng.normal(size=(n, 4)) + shift
        codes = None
        if users:
            of_x, of_y = rng.integers(0, users, n), rng.integers(users // 2, users + users // 2, n)
            places = rng.normal(size=(2 * users, 4))
            x, y = x + places[of_x], y + places[of_y]
            codes = torch.from_numpy(of_x), torch.from_numpy(of_y)
        tensors = torch.from_numpy(x), torch.from_numpy(y)
        about = {"centre": torch.zeros(4, dtype=torch.float64), "precision": "float64", "scale": 1.0}
        found.append(cross.test(*tensors, codes, bandwidths=widths, seed=k, **about))  # type: ignore[arg-type]
    return found


def level(outcomes: list[cross.Outcome], at: float = 0.05) -> float:
    return float(np.mean([one.p_value < at for one in outcomes]))


def within_binomial_error(count: int, at: float = 0.05) -> float:
    return 4 * math.sqrt(at * (1 - at) / count)


def test_at_the_null_z_is_standard_normal() -> None:
    outcomes = many(500, 120, 0.0)
    z = [float(one.zs[0]) for one in outcomes]
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert level(outcomes) == pytest.approx(0.05, abs=within_binomial_error(500))


def test_a_ladder_of_bandwidths_keeps_the_level_with_one_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross, "DRAWS", 10_000)
    outcomes = many(300, 80, 0.0, widths=(0.6, 1.2, 2.4, 4.8))
    assert level(outcomes) == pytest.approx(0.05, abs=within_binomial_error(300))
    # the members are alike: Bonferroni's bound would be twice too large
    bonferroni = np.mean([4 * stats.norm.sf(float(one.zs.max())) < 0.05 for one in outcomes])
    assert bonferroni < level(outcomes)


def test_users_rows_stay_together_and_the_level_holds() -> None:
    with_users = many(300, 120, 0.0, users=30, seed=2)
    assert level(with_users) == pytest.approx(0.05, abs=within_binomial_error(300))


def test_without_their_users_rows_break_the_level() -> None:
    """What the clusters are for: the same rows taken one by one reject far too often."""
    rng = np.random.default_rng(3)
    hits = 0
    for k in range(150):
        of_x, of_y = np.arange(120) // 6, np.arange(120) // 6
        x, y = (rng.normal(size=(120, 4)) + rng.normal(size=(20, 4))[of] for of in (of_x, of_y))
        outcome = cross.test(
            torch.from_numpy(x),
            torch.from_numpy(y),
            None,
            bandwidths=(),
            seed=k,
            centre=torch.zeros(4, dtype=torch.float64),
            precision="float64",
            scale=1.0,
        )
        hits += outcome.p_value < 0.05
    assert hits / 150 > 0.3


def test_it_costs_a_factor_of_root_two_against_the_permutation_test() -> None:
    """The drift that a permutation test finds four times in five, the cross test finds at sqrt(2) times the score."""
    rng = np.random.default_rng(4)
    shift, trials = 0.26, 120
    permuted = crossed = 0
    for k in range(trials):
        x, y = rng.normal(size=(80, 4)), rng.normal(size=(80, 4)) + shift
        permuted += gpudrift.permutation_test(x, y, permutations=99, seed=k).p_value <= 0.05
        crossed += gpudrift.cross_test(x, y, "energy", seed=k).p_value < 0.05
    power = [permuted / trials, crossed / trials]
    # eq. 9 of the paper, by which the power of MMD follows from that of cross-MMD
    normal = NormalDist()
    z = normal.inv_cdf(0.05)
    wanted = normal.cdf(z + (normal.inv_cdf(power[0]) - z) / math.sqrt(2))
    assert 0.6 < power[0] < 0.95
    assert power[1] == pytest.approx(wanted, abs=0.15)


def test_clusters_of_both_sides_lie_in_one_half_and_variances_are_by_cluster() -> None:
    rng = np.random.default_rng(5)
    of_x, of_y = rng.integers(0, 12, 40), rng.integers(6, 18, 36)
    found = gpudrift.cross_test(X, Y, "energy", clusters_x=of_x, clusters_y=of_y, seed=6)
    codes = np.unique(np.r_[of_x, of_y], return_inverse=True)[1]
    in_x, in_y = (
        side.numpy()
        for side in deal(
            40, 36, 2, clusters_x=torch.from_numpy(codes[:40]), clusters_y=torch.from_numpy(codes[40:]), seed=6
        )
    )
    assert not set(of_x[in_x == 0]) & set(of_y[in_y == 1])
    assert found.value == pytest.approx(published(X, Y, in_x, in_y, None)[0], abs=1e-12)
    x1, x2, y1, y2 = X[in_x == 0], X[in_x == 1], Y[in_y == 0], Y[in_y == 1]
    u = matrix(x1, x2, None).mean(1) - matrix(x1, y2, None).mean(1)
    v = matrix(y1, x2, None).mean(1) - matrix(y1, y2, None).mean(1)
    groups = sorted({*of_x[in_x == 0], *of_y[in_y == 0]})
    psi = [
        ((u - u.mean())[of_x[in_x == 0] == g]).sum() / len(u) - ((v - v.mean())[of_y[in_y == 0] == g]).sum() / len(v)
        for g in groups
    ]
    assert found.se == pytest.approx(math.sqrt(len(groups) / (len(groups) - 1) * np.square(psi).sum()), rel=1e-12)


def test_clusters_of_one_row_change_nothing_but_the_halves() -> None:
    rows = torch.from_numpy(X)
    one = cross._by_cluster(rows.T, torch.arange(40))
    centred = rows - rows.mean(0)
    assert cross._by_cluster(centred.T, torch.arange(40))[0, 0] == pytest.approx(
        40 * float(rows[:, 0].var()), rel=1e-12
    )
    assert one.shape == (3, 3)


def test_no_more_than_half_of_the_pairs_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    really = kernels.cross_sums

    def counted(a: kernels.Prepared, b: kernels.Prepared, **kept: object) -> kernels.PairSums:
        shapes.append((len(a), len(b)))
        return really(a, b, **kept)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "cross_sums", counted)
    monkeypatch.setattr(kernels, "self_sums", None)
    gpudrift.cross_test(X, Y)
    assert sorted(shapes) == [(18, 18), (18, 20), (20, 18), (20, 20)]


def test_float32_agrees_with_float64() -> None:
    exact = gpudrift.cross_test(X, Y, "energy")
    found = gpudrift.cross_test(X.astype(np.float32), Y.astype(np.float32), "energy")
    assert found.precision == "float32"
    assert found.z == pytest.approx(exact.z, rel=1e-4)


def test_the_p_value_of_a_ladder_is_that_of_the_largest_of_correlated_normals() -> None:
    z = torch.tensor([1.5, 1.0], dtype=torch.float64)
    alike = torch.tensor([[4.0, 6.0], [6.0, 9.0]], dtype=torch.float64)  # correlation 1
    apart = torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64))
    opposed = torch.tensor([[4.0, -6.0], [-6.0, 9.0]], dtype=torch.float64)
    one = float(stats.norm.sf(1.5))
    error = 5 * math.sqrt(one / cross.DRAWS)
    assert cross._p_value(z, alike, 0, 10**6) == pytest.approx(one, abs=error)
    assert cross._p_value(z, alike, 0, 3) == pytest.approx(stats.t.sf(1.5, 3), abs=2 * error)
    assert cross._p_value(z[:1], apart[:1, :1], 0, 3) == pytest.approx(stats.t.sf(1.5, 3), rel=1e-9)
    assert cross._p_value(z, apart, 0, 10**6) == pytest.approx(1 - (1 - one) ** 2, abs=2 * error)
    assert cross._p_value(z, opposed, 0, 10**6) == pytest.approx(2 * one, abs=2 * error)
    far = torch.tensor([12.0, 1.0], dtype=torch.float64)
    assert cross._p_value(far, apart, 0, 10**6) == pytest.approx(2 * stats.norm.sf(12.0), rel=1e-9)
    assert cross._p_value(-far, apart, 0, 10**6) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"statistic": "frechet"}, "statistic"),
        ({"statistic": "energy", "bandwidths": 1.0}, "bandwidths"),
        ({"bandwidths": -1.0}, "bandwidths"),
        ({"x": X[:3]}, "x, y"),
        ({"clusters_x": np.zeros(40), "clusters_y": np.ones(36)}, "clusters_x, clusters_y"),
        ({"clusters_x": np.zeros(40)}, "clusters_x, clusters_y"),
        ({"x": np.zeros((40, 3)), "y": np.zeros((36, 3)), "statistic": "energy"}, "x, y"),
        ({"bandwidths": 1e-9}, "bandwidths"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        gpudrift.cross_test(**{"x": X, "y": Y, **arguments})  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_few_independent_rows_or_users_do_not_reject_too_often(statistic: str) -> None:
    """z of a handful is a Student t: as a standard normal it rejects four to six times as often as it says at .01."""
    rng = np.random.default_rng(11)
    users = np.repeat(np.arange(16), 4)
    found = []
    for seed in range(150):
        own = rng.normal(size=(16, 3))[users] + rng.normal(size=(64, 3))
        few = gpudrift.cross_test(
            own[:32], own[32:], statistic, clusters_x=users[:32], clusters_y=users[32:], seed=seed
        )
        rows = gpudrift.cross_test(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), statistic, seed=seed)
        found.append((few.p_value, rows.p_value))
    rejected = (np.array(found) <= 0.01).sum(0)
    assert (rejected <= 5).all()  # of 150: 1.5 expected
