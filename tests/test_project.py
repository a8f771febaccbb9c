"""Principal axes against the exact eigenvectors, and what must hold for any input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift import project
from gpudrift.errors import ArgumentError, DataError, InsufficientDataError
from gpudrift.metrics import accumulate


def _fit(rows: np.ndarray, components: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    x = torch.from_numpy(rows)
    mean = project.mean_of(x)
    x = (x - mean).to(dtype)
    return x, *project.fit(x, mean, components=components, niter=6, seed=seed)


def _slow_spectrum(n: int = 2000, d: int = 256) -> np.ndarray:
    """Eigenvalues that fall off as k^-1/2, hard for a randomised method, in a random orientation."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.25 @ rotation


def test_axes_span_the_exact_principal_subspace():
    rows = _slow_spectrum()
    _, basis, _ = _fit(rows, 32)
    exact = np.linalg.eigh(np.cov(rows.T))[1][:, ::-1][:, :32]
    cosines = np.linalg.svd(basis.axes.numpy() @ exact, compute_uv=False)
    assert cosines.min() >= 0.97


def test_first_axes_and_variances_are_the_exact_ones():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 5)) * [5.0, 4.0, 3.0, 2.0, 1.0] + 10.0
    _, basis, covariance = _fit(rows, 3)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    np.testing.assert_allclose(np.abs(basis.axes.numpy() @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(basis.variances.numpy(), values[::-1][:3], rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows.T), rtol=1e-12, atol=1e-12)
    assert basis.total_variance == pytest.approx(values.sum(), rel=1e-12)
    np.testing.assert_allclose(basis.mean.numpy(), rows.mean(0), rtol=1e-13)


def test_fit_is_deterministic_and_leaves_the_callers_random_state_alone():
    rows = _slow_spectrum(300, 64)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    _, first, _ = _fit(rows, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)  # another state of the caller must not change the axes
    _, again, _ = _fit(rows, 8)
    assert torch.equal(first.axes, again.axes)
    _, other, _ = _fit(rows, 8, seed=1)
    assert not torch.equal(first.axes, other.axes)


def test_signs_do_not_depend_on_seed_rounding_or_row_order():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(500, 12)) * np.arange(12, 0, -1)
    _, basis, _ = _fit(rows, 4)
    for other in (
        _fit(rows, 4, seed=9)[1],
        _fit(rows[::-1].copy(), 4)[1],
        _fit(rows, 4, dtype=torch.float32)[1],
    ):
        torch.testing.assert_close(other.axes, basis.axes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("noise", [-1e-9, 1e-9])
def test_the_sign_of_tied_loadings_is_that_of_the_first(noise):
    # the first axis is (1, -1) / sqrt 2 but for noise that makes the one or the other loading the larger
    along = np.array([1.0 + noise, -1.0])
    rows = np.outer(np.linspace(-1.0, 1.0, 50), along)
    _, basis, _ = _fit(rows, 1)
    assert basis.axes[0, 0] > 0 > basis.axes[0, 1]


@pytest.mark.parametrize(
    ("n", "d", "rank", "components", "kept"), [(50, 8, 3, 6, 6), (5, 30, 4, 10, 4), (40, 4, 4, 9, 4)]
)
def test_components_beyond_rank_rows_or_dimension(n, d, rank, components, kept):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    x, basis, _ = _fit(rows, components)
    assert basis.axes.shape == (kept, d)
    torch.testing.assert_close(basis.axes @ basis.axes.T, torch.eye(kept, dtype=torch.float64), atol=1e-12, rtol=0)
    assert bool((basis.variances[rank:] <= 1e-12 * basis.total_variance).all())
    assert float(project.project(x, basis).residual.max()) <= 1e-20 * basis.total_variance


def test_a_constant_reference_has_axes_without_variance():
    x, basis, covariance = _fit(np.full((6, 3), 2.5), 2)
    assert basis.variances.tolist() == [0.0, 0.0]
    assert basis.total_variance == 0.0
    assert not covariance.any()
    torch.testing.assert_close(basis.axes @ basis.axes.T, torch.eye(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not project.project(x, basis).residual.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_input_of_any_float_type_gives_float64(dtype):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    mean = project.mean_of(x)
    basis, covariance = project.fit(x, mean, components=2, niter=6, seed=0)
    projection = project.project(x, basis)
    for tensor in (mean, basis.axes, basis.variances, covariance, projection.scores, projection.residual):
        assert tensor.dtype == torch.float64


@given(
    seed=st.integers(0, 2**16),
    n=st.integers(2, 12),
    d=st.integers(1, 9),
    components=st.integers(1, 10),
    offset=st.sampled_from([0.0, 1e3]),
)
@settings(max_examples=40)
def test_energy_is_preserved(seed, n, d, components, offset):
    """|x|^2 = sum of squared scores + residual, for rows that the axes were not fitted on too."""
    rng = np.random.default_rng(seed)
    _, basis, _ = _fit(rng.normal(size=(n, d)), components)
    other = torch.from_numpy(rng.normal(size=(7, d)) + offset)
    projection = project.project(other, basis)
    total = projection.scores.square().sum(1) + projection.residual
    torch.testing.assert_close(total, other.square().sum(1), rtol=1e-12, atol=1e-12)
    assert bool((projection.residual >= 0).all())


def test_a_small_residual_beside_a_large_score_is_not_lost():
    # 1e8 along the axis, 1e-3 beside it: |x|^2 - |score|^2 would be off by more than the residual
    _, basis, _ = _fit(np.outer(np.linspace(-1, 1, 20), [1.0, 0.0, 0.0]), 1)
    row = torch.tensor([[1e8, 1e-3, 0.0]], dtype=torch.float64)
    assert float(project.project(row, basis).residual) == pytest.approx(1e-6, rel=1e-6)


def test_chunks_do_not_change_the_result(monkeypatch):
    rows = _slow_spectrum(300, 16) + 3.0
    x, basis, covariance = _fit(rows, 4)
    whole = project.project(x, basis)
    monkeypatch.setattr(accumulate, "CHUNK", 16 * 7)  # 7 rows a chunk, the last one short
    x_chunked, basis_chunked, covariance_chunked = _fit(rows, 4)
    chunked = project.project(x, basis)
    torch.testing.assert_close(x_chunked, x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(covariance_chunked, covariance, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(basis_chunked.axes, basis.axes, rtol=0, atol=1e-9)
    torch.testing.assert_close(chunked.scores, whole.scores, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(chunked.residual, whole.residual, rtol=1e-12, atol=1e-13)


def test_bad_input_is_named():
    good = torch.randn(5, 3)
    mean = project.mean_of(good)
    bad = good.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        project.fit(bad, mean, components=1, niter=6, seed=0)
    with pytest.raises(InsufficientDataError, match="received: 1"):
        project.fit(good[:1], mean, components=1, niter=6, seed=0)
    with pytest.raises(InsufficientDataError, match="received: 0"):
        project.mean_of(good[:0])
    with pytest.raises(ArgumentError, match="components"):
        project.fit(good, mean, components=0, niter=6, seed=0)
    basis, _ = project.fit(good, mean, components=1, niter=6, seed=0)
    with pytest.raises(ArgumentError, match="dimension"):
        project.project(torch.zeros(2, 4), basis)


def _crossed(rows, components):
    """The optimism from its definition: axes and means fitted on rows, read on the others, with exact eigenvectors."""
    places = np.arange(len(rows)) % 4

    def out(parts):
        residual, variances = [], []
        for part in parts:
            held = np.isin(places, part)
            mean = rows[~held].mean(0)
            axes = np.linalg.eigh(np.cov(rows[~held].T))[1][:, ::-1][:, :components]
            scores = (rows[held] - mean) @ axes
            residual.append((((rows[held] - mean) - scores @ axes.T) ** 2).sum(1).mean())
            variances.append(scores.var(0, ddof=1))
        return np.mean(residual), np.mean(variances, 0)

    axes = np.linalg.eigh(np.cov(rows.T))[1][:, ::-1][:, :components]
    scores = (rows - rows.mean(0)) @ axes
    inside = (((rows - rows.mean(0)) - scores @ axes.T) ** 2).sum(1).mean()
    (most, along), (half, _) = out([[0], [1], [2], [3]]), out([[0, 2], [1, 3]])
    return np.log(most) + (np.log(most) - np.log(half)) / 2 - np.log(inside), np.log(along / scores.var(0, ddof=1))


@pytest.mark.parametrize("n", [60, 61, 63])
def test_optimism_is_what_fits_on_parts_of_the_rows_show(n):
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(n, 7)) * [27.0, 9.0, 3.0, 1.0, 1.0, 1.0, 1.0] + 5.0
    _, basis, _ = _fit(rows, 3)
    residual, variances = _crossed(rows, 3)
    assert basis.residual_optimism == pytest.approx(residual, rel=1e-8)
    np.testing.assert_allclose(basis.variance_optimism.numpy(), variances, rtol=1e-8)


def test_optimism_needs_half_of_the_rows_to_determine_the_axes():
    rows = np.random.default_rng(5).normal(size=(17, 12))
    for components, known in ((7, True), (8, False)):
        _, basis, _ = _fit(rows, components)
        assert (basis.residual_optimism is not None, basis.variance_optimism is not None) == (known, known)
    assert _fit(rows[:7], 1)[1].residual_optimism is None
    assert _fit(rows[:8], 1)[1].residual_optimism is not None


def test_nothing_beyond_the_rank_is_no_optimism():
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 9))
    _, basis, _ = _fit(rows, 6)
    assert basis.residual_optimism == 0.0
    assert basis.variance_optimism[3:].tolist() == [0.0, 0.0, 0.0]
    assert bool((basis.variance_optimism[:3] != 0).all())
    _, constant, _ = _fit(np.full((12, 3), 2.5), 2)
    assert constant.residual_optimism == 0.0
    assert constant.variance_optimism.tolist() == [0.0, 0.0]


def _users(rng: np.random.Generator, users: int, spectrum: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Ten rows of each user, who has half of their variance; in random order."""
    own, rows = rng.normal(size=(users, len(spectrum))), rng.normal(size=(10 * users, len(spectrum)))
    codes = rng.permutation(np.repeat(np.arange(users), 10))
    return (own[codes] + rows) * np.sqrt(spectrum / 2), torch.from_numpy(codes)


def test_the_optimism_is_that_of_fresh_users():
    rng, spectrum = np.random.default_rng(8), np.arange(1, 49) ** -0.5
    found, plain, wanted = [], [], []
    for _ in range(6):
        rows, codes = _users(rng, 80, spectrum)
        x = torch.from_numpy(rows)
        mean = project.mean_of(x)
        basis, _ = project.fit(x - mean, mean, components=24, niter=6, seed=0, clusters=codes)
        found.append(basis.residual_optimism)
        plain.append(project.fit(x - mean, mean, components=24, niter=6, seed=0)[0].residual_optimism)
        inside = float(project.project(x - mean, basis).residual.mean())
        fresh = torch.from_numpy(_users(rng, 400, spectrum)[0]) - mean
        wanted.append(np.log(float(project.project(fresh, basis).residual.mean()) / inside))
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.2)
    assert np.mean(plain) < 0.5 * np.mean(wanted)  # rows of one user in all groups hide it


def test_clusters_of_one_row_each_are_rows_and_too_few_give_no_optimism():
    rows = np.random.default_rng(9).normal(size=(64, 6))
    x, mean = torch.from_numpy(rows), torch.zeros(6, dtype=torch.float64)
    dealt, plain = (
        project.fit(x, mean, components=2, niter=6, seed=0, clusters=codes)[0] for codes in (torch.arange(64), None)
    )
    assert dealt.residual_optimism == pytest.approx(plain.residual_optimism, rel=1e-9)
    for users, known in ((7, False), (8, True)):
        basis, _ = project.fit(x, mean, components=2, niter=6, seed=0, clusters=torch.arange(64) % users)
        assert (basis.residual_optimism is not None) == known
