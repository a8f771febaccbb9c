"""Every backend against the dense float64 definition, on the shapes and inputs that break tiled kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.kernels import PairSums
from gpudrift.kernels import reference as dense

BANDWIDTHS = (0.3, 0.6, 1.2, 2.5)  # 0.3, 0.6, 1.2 are powers of two apart (squared), 2.5 is not (its own exp)


def cloud(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_sums_equal(found: PairSums, wanted: PairSums, rtol: float, atol: float = 0.0) -> None:
    for name in ("total", "rows", "columns", "squares", "blocks"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert found.pairs == wanted.pairs
    assert torch.equal(found.block_pairs, wanted.block_pairs)


def test_the_helper_sees_a_difference_in_each_sum() -> None:
    x = kernels.prepare(cloud(5, 3, 0))
    sums = kernels.self_sums(x, bandwidths=BANDWIDTHS)
    for name in ("total", "rows", "columns", "squares", "blocks"):
        changed = getattr(sums, name).clone()
        changed.view(-1)[-1] += 1e-3
        with pytest.raises(AssertionError, match=name):
            assert_sums_equal(PairSums(**{**vars(sums), name: changed}), sums, rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 2), (63, 130), (127, 129), (128, 128), (129, 127)])
@pytest.mark.parametrize("d", [1, 3, 17])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_cross_sums_equal_the_definition(n: int, m: int, d: int, precision: str) -> None:
    x, y = kernels.prepare(cloud(n, d, 1), precision=precision), kernels.prepare(cloud(m, d, 2), precision=precision)
    found = kernels.cross_sums(x, y, bandwidths=BANDWIDTHS, tile=(32, 48))
    assert_sums_equal(found, dense.pair_sums(x, y, BANDWIDTHS), 1e-11 if precision == "float64" else 2e-5, 1e-6)


@pytest.mark.parametrize("n", [1, 2, 63, 127, 128, 129])
@pytest.mark.parametrize("d", [1, 17])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_self_sums_equal_the_definition(n: int, d: int, precision: str) -> None:
    x = kernels.prepare(cloud(n, d, 3), precision=precision)
    found = kernels.self_sums(x, bandwidths=BANDWIDTHS, tile=(32, 48))
    assert_sums_equal(found, dense.pair_sums(x, None, BANDWIDTHS), 1e-11 if precision == "float64" else 2e-5, 1e-6)


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 40), m=st.integers(1, 40), symmetric=st.booleans(), clustered=st.booleans())
def test_tiles_groups_and_clusters_never_change_a_sum(
    data: st.DataObject, n: int, m: int, symmetric: bool, clustered: bool
) -> None:
    def bounds(size: int) -> list[int]:
        return [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=4))), size]

    def codes(size: int) -> torch.Tensor | None:
        if not clustered:
            return None
        return torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), dtype=torch.int64)

    tile = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    x = kernels.prepare(cloud(n, 3, 4), precision="float64", offsets=bounds(n), clusters=codes(n))
    if symmetric:
        found, wanted = kernels.self_sums(x, bandwidths=(0.5, 1.0), tile=tile), dense.pair_sums(x, None, (0.5, 1.0))
    else:
        y = kernels.prepare(cloud(m, 3, 5), precision="float64", offsets=bounds(m), clusters=codes(m))
        found, wanted = kernels.cross_sums(x, y, bandwidths=(0.5, 1.0), tile=tile), dense.pair_sums(x, y, (0.5, 1.0))
    assert_sums_equal(found, wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("order", list(itertools.permutations((0.5, 1.0, 2.0))))
def test_bandwidths_keep_their_order(order: tuple[float, ...]) -> None:
    x = kernels.prepare(cloud(20, 4, 6), precision="float64")
    assert_sums_equal(kernels.self_sums(x, bandwidths=order), dense.pair_sums(x, None, order), rtol=1e-11)


@pytest.mark.parametrize("squares", [True, False])
def test_squares_are_given_only_when_asked_for(squares: bool) -> None:
    x = kernels.prepare(cloud(20, 4, 6), precision="float64")
    sums = kernels.self_sums(x, bandwidths=(0.5, 1.0), squares=squares)
    wanted = dense.pair_sums(x, None, (0.5, 1.0))
    torch.testing.assert_close(sums.rows, wanted.rows, rtol=1e-11, atol=0)
    assert bool(torch.isnan(sums.squares).all()) is not squares


def test_a_common_offset_of_a_thousand_is_lost_by_centring_not_by_rounding() -> None:
    rows = cloud(300, 16, 7)
    shifted = rows + 1000.0
    centre = shifted.mean(0)
    found = kernels.self_sums(kernels.prepare(shifted, centre=centre, precision="float32"))
    wanted = dense.pair_sums(kernels.prepare(rows, precision="float64"), None, ())
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-7, atol=0)


def test_duplicate_rows_are_near_zero_apart_and_never_nan() -> None:
    row = cloud(1, 64, 8, torch.float32) * 3
    x = kernels.prepare(row.repeat(200, 1))
    sums = kernels.self_sums(x, bandwidths=(1.0,))
    assert torch.isfinite(sums.rows).all()
    assert float(sums.total[0]) / sums.pairs < 0.02
    assert float(sums.total[1]) / sums.pairs > 0.999


def test_results_are_the_same_bits_from_run_to_run() -> None:
    x, y = kernels.prepare(cloud(700, 24, 9, torch.float32)), kernels.prepare(cloud(900, 24, 10, torch.float32))
    first, second = (kernels.cross_sums(x, y, bandwidths=BANDWIDTHS) for _ in range(2))
    for name in ("total", "rows", "columns", "squares"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_block_size_changes_float32_results_by_rounding_only() -> None:
    x, y = kernels.prepare(cloud(700, 24, 9, torch.float32)), kernels.prepare(cloud(900, 24, 10, torch.float32))
    sums = [kernels.cross_sums(x, y, bandwidths=BANDWIDTHS, tile=tile) for tile in ((64, 64), (512, 1024), (1, 900))]
    for other in sums[1:]:
        assert_sums_equal(other, sums[0], rtol=3e-6, atol=1e-6)


def test_denormal_flushing_is_left_as_it_was() -> None:
    tiny = torch.tensor(1e-30)
    before = float(tiny * torch.tensor(1e-10))
    kernels.self_sums(kernels.prepare(cloud(50, 8, 11)), bandwidths=(0.01,))
    assert float(tiny * torch.tensor(1e-10)) == before != 0.0


def test_preparing_leaves_the_callers_rows_alone() -> None:
    rows = cloud(20, 4, 12, torch.float32)
    copy = rows.clone()
    kernels.self_sums(kernels.prepare(rows, centre=rows.mean(0)), bandwidths=(1.0,))
    assert torch.equal(rows, copy)


def test_progress_counts_every_pair_once() -> None:
    x, y = kernels.prepare(cloud(50, 4, 13)), kernels.prepare(cloud(70, 4, 14))
    done: list[int] = []
    kernels.cross_sums(x, y, progress=done.append, tile=(16, 16))
    assert sum(done) == 50 * 70
    assert len(done) > 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: kernels.prepare(torch.zeros(3)), "rows"),
        (lambda: kernels.prepare(torch.zeros(3, 0)), "rows"),
        (lambda: kernels.prepare(torch.zeros(3, 2), precision="int8"), "precision"),
        (lambda: kernels.prepare(torch.zeros(3, 2), scale=3.0), "scale"),
        (lambda: kernels.self_sums(kernels.prepare(torch.zeros(3, 2)), labels=torch.zeros(2, 1)), "labels"),
        (lambda: kernels.batch_sums(kernels.prepare(torch.zeros(3, 2)), None, [(0, 1)]), "pairs"),
        (lambda: kernels.prepare(torch.zeros(3, 2), offsets=[0, 2]), "offsets"),
        (lambda: kernels.prepare(torch.zeros(3, 2), offsets=[0, 2, 1, 3]), "offsets"),
        (lambda: kernels.prepare(torch.zeros(3, 2), clusters=torch.zeros(2)), "clusters"),
        (lambda: kernels.cross_sums(kernels.prepare(torch.zeros(3, 2)), kernels.prepare(torch.zeros(3, 4))), "d"),
        (
            lambda: kernels.cross_sums(
                kernels.prepare(torch.zeros(3, 2)), kernels.prepare(torch.zeros(3, 2), precision="float64")
            ),
            "y",
        ),
        (
            lambda: kernels.cross_sums(
                kernels.prepare(torch.zeros(3, 2), clusters=torch.arange(3)), kernels.prepare(torch.zeros(3, 2))
            ),
            "clusters",
        ),
        (lambda: kernels.backend_for(torch.device("meta"), "float32"), "device"),
    ],
)
def test_unusable_input_is_refused_by_name(call: object, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.field == field
