"""k-means: against scikit-learn, by its own fixed point, with weights, and on rows that leave no choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from gpudrift.attribution import clustering
from gpudrift.errors import ArgumentError
from gpudrift.metrics import accumulate


def blobs(n: int, d: int, groups: int, seed: int = 0, spread: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    of = rng.integers(groups, size=n)
    return (spread * rng.normal(size=(groups, d))[of] + rng.normal(size=(n, d))).astype(np.float32), of


def fit(rows: np.ndarray, k: int, weights: np.ndarray | None = None, **kw) -> clustering.KMeans:
    return clustering.fit(torch.from_numpy(rows), np.ones(len(rows)) if weights is None else weights, k, seed=0, **kw)


def inertia(rows: np.ndarray, centroids: np.ndarray, weights: np.ndarray | None = None) -> float:
    squares = np.square(rows[:, None].astype(np.float64) - centroids).sum(-1).min(1)
    return float(np.average(squares, weights=weights))


@pytest.mark.parametrize(("spread", "groups"), [(6.0, 8), (1.0, 8), (0.0, 1)])
def test_inertia_is_that_of_scikit_learn(spread: float, groups: int) -> None:
    rows, _ = blobs(1500, 12, groups, spread=spread)
    theirs = KMeans(8, n_init=10, random_state=0).fit(rows).inertia_ / len(rows)
    found = fit(rows, 8)
    assert found.inertia == pytest.approx(inertia(rows, found.centroids.numpy()), rel=1e-12)
    assert found.inertia <= 1.02 * theirs


def test_weights_are_those_of_scikit_learn() -> None:
    rows, _ = blobs(900, 6, 5, spread=1.5)
    weights = np.random.default_rng(1).uniform(0, 3, len(rows))
    theirs = KMeans(5, n_init=10, random_state=0).fit(rows, sample_weight=weights).inertia_ / weights.sum()
    found = fit(rows, 5, weights)
    assert found.inertia == pytest.approx(inertia(rows, found.centroids.numpy(), weights), rel=1e-12)
    assert found.inertia <= 1.02 * theirs


def test_clear_clusters_are_found_and_their_means_are_the_centroids() -> None:
    rows, of = blobs(600, 10, 6, spread=20.0)
    found = fit(rows, 6)
    codes, squares = clustering.assign(torch.from_numpy(rows), found.centroids)
    assert {len(set(codes[of == g])) for g in range(6)} == {1}
    assert sorted(set(codes)) == list(range(6))
    means = np.stack([rows[codes == g].astype(np.float64).mean(0) for g in range(6)])
    np.testing.assert_allclose(found.centroids, means, rtol=1e-9)
    np.testing.assert_allclose(squares, np.square(rows - means[codes]).sum(1), rtol=1e-6)


def test_a_small_cluster_of_heavy_rows_gets_a_centroid() -> None:
    """One of a hundred rows, and the rest weigh a twelfth: what a new cluster in a small window is."""
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.normal(size=(1200, 32)), rng.normal(size=(88, 32)), rng.normal(size=(12, 32)) + 3])
    weights = np.r_[np.full(1200, 1 / 12), np.ones(100)]
    found = fit(rows.astype(np.float32), 4, weights)
    codes, _ = clustering.assign(torch.from_numpy(rows.astype(np.float32)), found.centroids)
    planted = codes[-1]
    assert (codes[-12:] == planted).all()
    assert (codes[:-12] != planted).all()


def test_rows_without_weight_do_not_count() -> None:
    rows, _ = blobs(200, 4, 3)
    far = np.concatenate([rows, np.full((20, 4), 1e3, dtype=np.float32)])
    weights = np.r_[np.ones(200), np.zeros(20)]
    found = fit(far, 3, weights)
    assert float(found.centroids.abs().max()) < 100
    assert len(fit(far, 3, weights, restarts=1).centroids) == 3  # nor is one of them a seed
    assert found.inertia == pytest.approx(inertia(rows, found.centroids.numpy()), rel=1e-12)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_never_more_clusters_than_distinct_rows(distinct: int, k: int, copies: int) -> None:
    rows = np.repeat(np.random.default_rng(distinct).normal(size=(distinct, 3)).astype(np.float32), copies, axis=0)
    found = fit(rows, k)
    assert len(found.centroids) == min(distinct, k)
    codes, _ = clustering.assign(torch.from_numpy(rows), found.centroids)
    assert set(codes) == set(range(len(found.centroids)))
    if k >= distinct:
        assert found.inertia == pytest.approx(0, abs=1e-12)


def test_far_from_the_origin_equal_rows_are_still_at_distance_0() -> None:
    rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) + 1e4
    assert (clustering.squared_distances(rows, rows).diagonal() == 0).all()


def test_the_same_again_and_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = blobs(500, 7, 4, spread=1.0)
    first, second = fit(rows, 6), fit(rows, 6)
    assert torch.equal(first.centroids, second.centroids)
    whole = clustering.assign(torch.from_numpy(rows), first.centroids)
    monkeypatch.setattr(accumulate, "CHUNK", 7 * 13)
    for a, b in zip(whole, clustering.assign(torch.from_numpy(rows), first.centroids), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_the_precision_of_the_rows_does_not_matter() -> None:
    rows, _ = blobs(300, 5, 4)
    wide = clustering.fit(torch.from_numpy(rows).double(), np.ones(300), 4, seed=0)
    assert torch.equal(fit(rows, 4).centroids, wide.centroids)


@pytest.mark.parametrize(
    ("rows", "k", "weights"),
    [
        (0, 2, np.ones(0)),
        (3, 0, np.ones(3)),
        (3, 2, np.ones(2)),
        (3, 2, np.zeros(3)),
        (3, 2, np.array([1.0, -1.0, 1.0])),
        (3, 2, np.array([1.0, np.nan, 1.0])),
    ],
)
def test_what_cannot_be_clustered_is_refused(rows: int, k: int, weights: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="k-means"):
        clustering.fit(torch.zeros(rows, 2), weights, k, seed=0)
