"""The permutation test: each labelling's statistic is that of the relabelled rows, the p-value that of an enumeration,
and the level holds, with clusters too, where permuting rows does not hold it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gpudrift
from gpudrift import permutation
from gpudrift.errors import ArgumentError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), RNG.normal(size=(22, 4)) + 0.4


def dense_u(pooled: np.ndarray, z: np.ndarray, s: float | None, groups: np.ndarray | None = None) -> float:
    """The U-statistic of a labelling from the matrix itself, pairs of one group left out."""
    distances = np.linalg.norm(pooled[:, None] - pooled[None], axis=-1)
    k = -distances if s is None else np.exp(-(distances**2) / (2 * s * s))
    keep = ~np.eye(len(z), dtype=bool) if groups is None else groups[:, None] != groups[None]
    one, two = z == 1, z == 0

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        part = np.ix_(a, b)
        return float((k[part] * keep[part]).sum() / keep[part].sum())

    return mean(one, one) + mean(two, two) - 2 * mean(one, two)


def labellings(n: int, rows: int, codes: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    parts = permutation._labellings(n, rows, None if codes is None else torch.from_numpy(codes), count, seed)
    return np.concatenate([part.numpy() for part in parts], axis=1)


def test_every_labelling_has_the_statistic_of_the_relabelled_rows() -> None:
    found = gpudrift.permutation_test(X, Y, permutations=300)
    z = labellings(30, 52, None, 300, 0)
    pooled = np.concatenate([X, Y])
    wanted = [dense_u(pooled, z[:, k], None) for k in range(301)]
    np.testing.assert_allclose([found.value, *found.null], wanted, rtol=0, atol=1e-12)
    assert found.value == pytest.approx(gpudrift.energy_distance(X, Y).value, rel=1e-12)
    assert found.p_value == (1 + sum(w >= wanted[0] - 1e-12 for w in wanted[1:])) / 301
    assert found.values == (found.value,)
    assert (found.bandwidths, found.statistic, found.permutations) == (None, "energy", 300)


def test_the_ladder_counts_by_its_largest_studentised_member() -> None:
    widths = (0.5, 1.0, 4.0)
    found = gpudrift.permutation_test(X, Y, "mmd", permutations=200, bandwidths=widths, seed=3)
    z = labellings(30, 52, None, 200, 3)
    pooled = np.concatenate([X, Y])
    values = np.array([[dense_u(pooled, z[:, k], s) for k in range(201)] for s in widths])
    scaled = values / values.std(axis=1, keepdims=True)
    np.testing.assert_allclose([found.value, *found.null], scaled.max(axis=0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.values, values[:, 0], rtol=0, atol=1e-12)
    assert found.largest == scaled[:, 0].argmax()
    assert found.bandwidths == widths


def test_default_bandwidths_are_the_same_for_either_labelling() -> None:
    one, other = (gpudrift.permutation_test(a, b, "mmd", permutations=9) for a, b in ((X, Y), (Y[::-1], X[::-1])))
    assert one.bandwidths == pytest.approx(other.bandwidths, rel=0.02)  # the same pool, other random pairs
    assert len(one.bandwidths or ()) == 4


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 5))
def test_many_random_labellings_find_the_enumerated_p_value(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 1
    pooled = np.concatenate([x, y])
    observed = dense_u(pooled, np.r_[np.ones(n), np.zeros(m)], None)
    above = total = 0
    for chosen in itertools.combinations(range(n + m), n):
        z = np.zeros(n + m)
        z[list(chosen)] = 1
        total += 1
        above += dense_u(pooled, z, None) >= observed - 1e-12
    exact = above / total
    found = gpudrift.permutation_test(x, y, permutations=1999, seed=seed).p_value
    assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / 1999) + 1 / 2000


def test_scipy_finds_the_same_p_value_by_enumeration() -> None:
    x, y = RNG.normal(size=5), RNG.normal(size=4) + 1.2

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        def mean(u: np.ndarray, v: np.ndarray, same: bool) -> float:
            total = float(np.abs(u[:, None] - v[None]).sum())
            return total / (len(u) * (len(u) - 1)) if same else total / (len(u) * len(v))

        return 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)

    exact = stats.permutation_test((x, y), statistic, n_resamples=10**6, alternative="greater").pvalue
    found = gpudrift.permutation_test(x[:, None], y[:, None], permutations=20_000).p_value
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000))


def test_the_observed_labelling_met_again_counts_as_high() -> None:
    """Two rows a side: a third of the labellings are the observed one or its mirror image."""
    x, y = np.array([[0.0], [0.1]]), np.array([[5.0], [5.1]])
    for precision in ("float64", "float32", "float16"):
        found = gpudrift.permutation_test(x, y, permutations=3000, precision=precision)
        assert found.p_value == pytest.approx(1 / 3, abs=0.04), precision


def test_the_level_holds_and_power_is_there() -> None:
    rng = np.random.default_rng(1)
    null, drift = [], []
    for k in range(100):
        x, y = rng.normal(size=(25, 3)), rng.normal(size=(35, 3))
        null.append(gpudrift.permutation_test(x, y, permutations=99, seed=k).p_value)
        drift.append(gpudrift.permutation_test(x, y + 0.8, "mmd", permutations=99, seed=k).p_value)
    rejected = np.mean(np.array(null) <= 0.05)
    assert rejected < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert stats.kstest(null, "uniform").pvalue > 1e-3  # not only small where it should be: uniform
    assert np.mean(np.array(drift) <= 0.05) > 0.8


def users(rng: np.random.Generator, count: int, rows: int, icc: float) -> tuple[np.ndarray, np.ndarray]:
    """``count`` users of so many rows, correlated within a user."""
    own = rng.normal(size=(count, 1, 4)) * math.sqrt(icc)
    noise = rng.normal(size=(count, rows, 4)) * math.sqrt(1 - icc)
    return (own + noise).reshape(-1, 4), np.repeat(np.arange(count), rows)


def test_rows_of_a_user_move_together_or_the_level_is_lost() -> None:
    rng = np.random.default_rng(2)
    by_user, by_row = [], []
    for k in range(100):
        x, of_x = users(rng, 15, 5, 0.5)
        y, of_y = users(rng, 15, 5, 0.5)
        by_user.append(gpudrift.permutation_test(x, y, "energy", of_x, of_y + 100, 99, seed=k).p_value)
        by_row.append(gpudrift.permutation_test(x, y, permutations=99, seed=k).p_value)
    assert np.mean(np.array(by_user) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert np.mean(np.array(by_row) <= 0.05) > 0.3


def test_users_in_both_windows_swap_their_parts() -> None:
    """Between users there is nothing to compare: only the swap within a user is a fair comparison."""
    rng = np.random.default_rng(3)
    null, moved = [], []
    for k in range(100):
        rows, of = users(rng, 14, 6, 0.7)
        first = np.tile([True, True, True, False, False, False], 14)
        arguments = (of[first], of[~first], 99, k)
        null.append(gpudrift.permutation_test(rows[first], rows[~first], "energy", *arguments).p_value)
        moved.append(gpudrift.permutation_test(rows[first], rows[~first] + 0.6, "energy", *arguments).p_value)
    assert np.mean(np.array(null) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert np.mean(np.array(moved) <= 0.05) > 0.8


def mixed() -> np.ndarray:
    """Codes of 52 rows: clusters of x, of y, and three of both."""
    return np.concatenate([np.arange(24) // 3, [90, 90, 91, 91, 92, 92], [90, 91, 91, 92], 100 + np.arange(18) // 3])


def test_clusters_keep_their_rows_and_pairs_within_them_are_left_out() -> None:
    codes = mixed()
    found = gpudrift.permutation_test(X, Y, "energy", codes[:30], codes[30:], 150, seed=4)
    z = labellings(30, 52, np.unique(codes, return_inverse=True)[1], 150, 4)
    pooled = np.concatenate([X, Y])
    wanted = [dense_u(pooled, z[:, k], None, codes) for k in range(151)]
    np.testing.assert_allclose([found.value, *found.null], wanted, rtol=0, atol=1e-12)
    wide = gpudrift.energy_distance(X, Y, clusters_x=codes[:30], clusters_y=codes[30:])
    assert found.value == pytest.approx(wide.value, rel=1e-12)
    observed = z[:, 0]
    for k in range(151):
        for code in np.unique(codes):
            own = codes == code
            if code in (90, 91, 92):  # as observed, or all swapped
                assert (z[own, k] == observed[own]).all() or (z[own, k] != observed[own]).all()
            else:
                assert len(set(z[own, k])) == 1
        alone = [z[codes == code, k][0] for code in np.unique(codes) if code not in (90, 91, 92)]
        assert sum(alone) == 8  # as many clusters on either side as observed


def test_the_same_seed_gives_the_same_numbers_however_many_passes_it_takes() -> None:
    few, many = (gpudrift.permutation_test(X, Y, permutations=b, seed=9) for b in (50, 400))
    np.testing.assert_allclose(few.null, many.null[:50], rtol=0, atol=1e-12)
    again = gpudrift.permutation_test(X, Y, permutations=50, seed=9)
    np.testing.assert_array_equal(few.null, again.null)
    assert few.p_value == again.p_value
    assert not np.array_equal(few.null, gpudrift.permutation_test(X, Y, permutations=50, seed=8).null)


def test_rows_all_alike_are_no_drift() -> None:
    same = np.ones((12, 3))
    assert gpudrift.permutation_test(same, same, permutations=19).p_value == 1
    assert gpudrift.permutation_test(same, same, "mmd", permutations=19, bandwidths=[1.0]).p_value == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"statistic": "t"}, "statistic"),
        ({"bandwidths": [1.0]}, "bandwidths"),
        ({"statistic": "mmd", "bandwidths": [-1.0]}, "bandwidths"),
        ({"permutations": 0}, "permutations"),
        ({"permutations": 9.5}, "permutations"),
        ({"permutations": True}, "permutations"),
        ({"clusters_x": np.zeros(30), "clusters_y": np.ones(22)}, "clusters_x, clusters_y"),
        ({"clusters_x": np.zeros(30), "clusters_y": np.zeros(22)}, "clusters_x, clusters_y"),
        ({"clusters_x": np.arange(30)}, "clusters_x, clusters_y"),
        ({"x": X[:1]}, "x"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        gpudrift.permutation_test(**({"x": X, "y": Y} | arguments))
    assert caught.value.field == field
