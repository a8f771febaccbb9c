"""The tiled torch backend: labels, margins and batches against the definition; threads, settings and interruption."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels import PairSums, Prepared, threads, torch_ops
from gpudrift.kernels import reference as dense
from gpudrift.kernels.layout import count_pairs

BANDWIDTHS = (0.6, 1.2, 2.5, 5.0)  # 0.6 follows 1.2 and 2.5 follows 5 by squaring
SUMS = ("total", "rows", "columns", "squares", "blocks", "labels")


def cloud(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zeros_and_ones(n: int, count: int, high: int = 2) -> Tensor:
    return torch.randint(0, high, (n, count), generator=torch.Generator().manual_seed(n + count))


def assert_sums_equal(found: PairSums, wanted: PairSums, rtol: float, atol: float = 0.0) -> None:
    for name in SUMS:
        torch.testing.assert_close(
            getattr(found, name),
            getattr(wanted, name),
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    assert found.pairs == wanted.pairs
    assert torch.equal(found.block_pairs, wanted.block_pairs)


def assert_same_bits(found: PairSums, wanted: PairSums) -> None:
    for name in SUMS:
        assert torch.equal(getattr(found, name).nan_to_num(-1), getattr(wanted, name).nan_to_num(-1)), name


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def user_precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def denormals_are_flushed() -> bool:
    return sys.float_info.min / 2 == 0.0


def tile_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tiles-")]


def test_the_helpers_see_a_difference_in_each_sum() -> None:
    x = kernels.prepare(cloud(6, 3, 0))
    sums = kernels.self_sums(x, bandwidths=BANDWIDTHS, labels=zeros_and_ones(6, 2))
    for name in SUMS:
        changed = getattr(sums, name).clone()
        changed.view(-1)[-1] += 1e-3
        other = PairSums(**{**vars(sums), name: changed})
        with pytest.raises(AssertionError, match=name):
            assert_sums_equal(other, sums, rtol=1e-9)
        with pytest.raises(AssertionError, match=name):
            assert_same_bits(other, sums)


# labels and margins


@pytest.mark.parametrize("count", [1, 3, 128, 130])
@pytest.mark.parametrize("margins", [True, False])
@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("tile", [None, (7, 16), (16, 7)])
def test_labels_give_the_quadratic_form(
    count: int, margins: bool, clustered: bool, tile: tuple[int, int] | None
) -> None:
    codes = torch.arange(41) // 3 if clustered else None
    x = kernels.prepare(cloud(41, 5, 1), precision="float64", clusters=codes, offsets=[0, 10, 10, 41])
    z = zeros_and_ones(41, count)
    wanted = dense.pair_sums(x, None, BANDWIDTHS, z)
    found = kernels.self_sums(x, bandwidths=BANDWIDTHS, labels=z, margins=margins, tile=tile)
    torch.testing.assert_close(found.labels, wanted.labels, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-11, atol=0)


def test_labels_in_float32_stay_within_its_rounding() -> None:
    x = kernels.prepare(cloud(700, 9, 2), precision="float32", scale=4.0)
    z = zeros_and_ones(700, 5).bool()
    found = kernels.self_sums(x, bandwidths=BANDWIDTHS, labels=z)
    torch.testing.assert_close(found.labels, dense.pair_sums(x, None, BANDWIDTHS, z).labels, rtol=1e-6, atol=0)


def test_labels_split_a_cloud_as_separate_sums_would() -> None:
    x, y = cloud(30, 4, 3), cloud(50, 4, 4)
    pooled = kernels.prepare(torch.cat([x, y]), precision="float64")
    z = (torch.arange(80) < 30)[:, None]
    found = kernels.self_sums(pooled, bandwidths=BANDWIDTHS, labels=torch.cat([z, ~z], dim=1)).labels
    for column, rows in enumerate((x, y)):
        alone = kernels.self_sums(kernels.prepare(rows, precision="float64"), bandwidths=BANDWIDTHS)
        torch.testing.assert_close(found[:, column], alone.total, rtol=1e-11, atol=0)


@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_without_margins_the_other_sums_keep_their_bits(squares: bool, symmetric: bool) -> None:
    x, y = kernels.prepare(cloud(150, 6, 5), precision="float32"), kernels.prepare(cloud(90, 6, 6), precision="float32")

    def sums(margins: bool) -> PairSums:
        if symmetric:
            return kernels.self_sums(x, bandwidths=BANDWIDTHS, squares=squares, margins=margins, tile=(32, 48))
        return kernels.cross_sums(x, y, bandwidths=BANDWIDTHS, squares=squares, margins=margins, tile=(32, 48))

    found, wanted = sums(False), sums(True)
    assert found.rows.shape == found.columns.shape == (5, 0)
    assert wanted.rows.shape == (5, 150)
    for name in ("total", "blocks", "squares"):
        assert torch.equal(getattr(found, name).nan_to_num(-1), getattr(wanted, name).nan_to_num(-1)), name


# shapes


@pytest.mark.parametrize("n", [2, 255, 256, 257, 511, 513, 1025, 1300])
def test_the_halved_diagonal_covers_every_pair_once(n: int) -> None:
    x = kernels.prepare(cloud(n, 2, 7), precision="float64")
    assert_sums_equal(kernels.self_sums(x, bandwidths=(1.0,)), dense.pair_sums(x, None, (1.0,)), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("tile", [(1, 1), (1, 30), (30, 1), (300, 2), (2, 300), (1000, 1000)])
def test_tiles_of_any_shape_fit_their_buffer(tile: tuple[int, int]) -> None:
    x = kernels.prepare(cloud(37, 3, 8), precision="float64", offsets=[0, 0, 5, 36, 37, 37])
    found = kernels.self_sums(x, bandwidths=(1.0,), tile=tile)
    assert_sums_equal(found, dense.pair_sums(x, None, (1.0,)), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty_clouds_have_empty_sums(n: int, m: int) -> None:
    x, y = (kernels.prepare(torch.zeros(size, 4), precision="float32") for size in (n, m))
    sums = kernels.cross_sums(x, y, bandwidths=(1.0,))
    assert sums.rows.shape == (2, n)
    assert sums.columns.shape == (2, m)
    assert float(sums.total.abs().sum() + sums.squares.abs().sum()) == sums.pairs == 0


def test_a_tiny_bandwidth_keeps_duplicates_alone() -> None:
    x = kernels.prepare(torch.ones(3, 4).cumsum(0).repeat(2, 1), precision="float32")
    sums = kernels.self_sums(x, bandwidths=(1e-30, 1e-25))
    assert torch.isfinite(sums.rows).all()
    assert sums.total[1:].tolist() == [6.0, 6.0]  # three pairs of duplicates, each twice


@pytest.mark.parametrize("d", [1, 40])  # 60 rows are many beside 1 dimension, and few beside 40
@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_squared_distances_add_up_with_and_without_a_closed_form(d: int, clustered: bool, offset: float) -> None:
    x, y = (
        kernels.prepare(
            cloud(60, d, seed) + offset,
            precision="float64",
            scale=0.5,
            clusters=torch.arange(60) // 5 if clustered else None,
        )
        for seed in (19, 20)
    )
    for found, wanted in (
        (kernels.cross_sums(x, y, tile=(16, 32)), dense.pair_sums(x, y, ())),
        (kernels.self_sums(x, tile=(16, 32)), dense.pair_sums(x, None, ())),
    ):
        torch.testing.assert_close(found.squares, wanted.squares, rtol=1e-13 * (1 + offset**2), atol=0)


# arithmetic


@pytest.mark.parametrize(
    ("precision", "rounded"),
    [
        ("float16", lambda rows: rows.to(torch.float16)),
        ("bfloat16", lambda rows: rows.to(torch.bfloat16)),
        ("tf32", lambda rows: torch.round(rows.double() * 2.0**8) / 2.0**8),  # of entries in [4, 8)
        ("float32", lambda rows: rows.to(torch.float32)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25, 64.0])
def test_sums_are_those_of_the_rounded_rows(precision: str, rounded: Callable[[Tensor], Tensor], scale: float) -> None:
    x, y = (
        4.5 + 3 * torch.rand(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (60, 80)
    )
    prepared = [kernels.prepare(rows / scale, precision=precision, scale=scale) for rows in (x, y)]
    assert prepared[0].rows.dtype == torch.float32
    exact = [kernels.prepare(rounded(rows).double() / scale, precision="float64") for rows in (x, y)]
    bandwidths = tuple(s / scale for s in (1.5, 3.0, 8.0))
    found = kernels.cross_sums(*prepared, bandwidths=bandwidths)
    assert_sums_equal(found, dense.pair_sums(*exact, bandwidths), rtol=3e-5, atol=1e-6)
    found = kernels.self_sums(prepared[0], bandwidths=bandwidths)
    assert_sums_equal(found, dense.pair_sums(exact[0], None, bandwidths), rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("n", [300, 2100])  # below and above the size from which another library serves
def test_the_users_matmul_precision_changes_no_bit_and_is_kept(
    n: int, user_precision: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = kernels.prepare(cloud(n, 8, 9), precision="float32")
    keeps = threads._onednn_keeps_float32()  # which multiplies, once a process
    inside: set[str] = set()
    product = torch.mm

    def mm(*given: Tensor, **out: Tensor) -> Tensor:
        inside.add(torch.backends.mkldnn.matmul.fp32_precision)
        return product(*given, **out)

    monkeypatch.setattr(torch, "mm", mm)
    found = {}
    for precision in ("highest", "medium"):
        user_precision(precision)
        before = torch.backends.mkldnn.matmul.fp32_precision
        found[precision] = kernels.self_sums(x)
        assert torch.backends.mkldnn.matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == precision
    assert_same_bits(found["medium"], found["highest"])
    assert inside == {"bf16" if n > 2048 and keeps else "ieee"}


@pytest.mark.parametrize(
    ("rounded", "keeps"),
    [
        (lambda rows: rows, True),
        (lambda rows: rows.bfloat16().float(), False),
        (lambda rows: (rows * 2.0**10).round() / 2.0**10, False),  # TF32, near 1
    ],
)
def test_a_library_that_rounds_products_is_not_used(
    rounded: Callable[[Tensor], Tensor], keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = torch.mm
    with monkeypatch.context() as patched:
        patched.setattr(torch, "mm", lambda a, b: product(rounded(a).double(), rounded(b).double()).float())
        assert threads._onednn_keeps_float32.__wrapped__() is keeps
    monkeypatch.setattr(threads, "_onednn_keeps_float32", lambda: keeps)
    inside: list[str] = []
    monkeypatch.setattr(torch, "mm", lambda *_: inside.append(torch.backends.mkldnn.matmul.fp32_precision))
    with threads.settings(torch.device("cpu"), many=True) as given:
        given.product(torch.ones(2, 2), torch.ones(2, 2))
    assert inside == ["bf16" if keeps else "ieee"]


# batches


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("margins", [True, False])
def test_a_batch_gives_what_each_pair_alone_gives(clustered: bool, margins: bool) -> None:
    edges_x, edges_y = [0, 7, 7, 40, 41, 90], [0, 25, 30, 30, 60]

    def prepared(n: int, seed: int, edges: list[int]) -> Prepared:
        codes = torch.arange(n) % 11 if clustered else None
        return kernels.prepare(cloud(n, 5, seed), precision="float64", scale=2.0, offsets=edges, clusters=codes)

    x, y = prepared(90, 10, edges_x), prepared(60, 11, edges_y)
    pairs = [*itertools.product(range(5), range(4)), (4, 0)]
    found = kernels.batch_sums(x, y, pairs, bandwidths=BANDWIDTHS, margins=margins)
    assert len(found) == len(pairs)
    for sums, (g, h) in zip(found, pairs, strict=True):
        alone = kernels.cross_sums(x.group(g), y.group(h), bandwidths=BANDWIDTHS, margins=margins)
        assert_same_bits(sums, alone)
        assert sums.pairs == count_pairs(x.group(g), y.group(h)).total
        assert torch.equal(sums.block_pairs, alone.block_pairs)
    for sums, (g, h) in zip(kernels.batch_sums(x, None, pairs[:20], margins=margins), pairs[:20], strict=True):
        other = None if g == h else x.group(h)
        wanted = dense.pair_sums(x.group(g), other, ())
        torch.testing.assert_close(sums.total, wanted.total, rtol=1e-11, atol=1e-9)
        torch.testing.assert_close(sums.squares, wanted.squares, rtol=1e-11, atol=1e-9)
        if margins:
            torch.testing.assert_close(sums.columns, wanted.columns, rtol=1e-11, atol=1e-9)
        assert sums.pairs == wanted.pairs


def test_a_batch_of_nothing_is_nothing() -> None:
    x = kernels.prepare(cloud(4, 2, 12), precision="float64")
    assert kernels.batch_sums(x, None, []) == []


# threads


def calls(x: Prepared, y: Prepared, z: Tensor) -> dict[str, Callable[[], list[PairSums]]]:
    tile = (40, 24)
    return {
        "cross": lambda: [kernels.cross_sums(x, y, bandwidths=BANDWIDTHS, tile=tile)],
        "self, labels": lambda: [kernels.self_sums(x, bandwidths=BANDWIDTHS, labels=z, tile=tile)],
        "whole tiles": lambda: [kernels.self_sums(x, bandwidths=BANDWIDTHS), kernels.cross_sums(x, y)],
        "batch": lambda: kernels.batch_sums(x, y, [(0, 1), (1, 0), (1, 1)], bandwidths=BANDWIDTHS),
    }


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("name", ["cross", "self, labels", "whole tiles", "batch"])
def test_the_number_of_threads_changes_no_bit(name: str, clustered: bool, torch_threads: Callable[[int], None]) -> None:
    x, y = (
        kernels.prepare(
            cloud(n, 33, n),
            precision="float32",
            offsets=[0, n // 3, n],
            clusters=torch.arange(n) // 2 if clustered else None,
        )
        for n in (700, 530)
    )
    call = calls(x, y, zeros_and_ones(700, 6))[name]
    torch_threads(1)
    wanted = call()
    for count in (2, 3, 8):
        torch_threads(count)
        for found, one in zip(call(), wanted, strict=True):
            assert_same_bits(found, one)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("flushed", [False, True])
def test_every_thread_flushes_denormals_and_all_settings_are_restored(
    count: int, flushed: bool, torch_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = torch_ops._Sums.part
    seen: dict[str, set[tuple[bool, int]]] = {}

    def part(*given: object) -> object:
        state = (denormals_are_flushed(), torch.get_num_threads())
        seen.setdefault(threading.current_thread().name, set()).add(state)
        barrier.wait()  # so that every thread takes part
        return compute(*given)  # type: ignore[arg-type]

    x = kernels.prepare(cloud(64, 3, 13), precision="float32")
    y = kernels.prepare(cloud(48, 3, 14), precision="float32")
    monkeypatch.setattr(torch_ops._Sums, "part", part)
    barrier = threading.Barrier(count, timeout=60)
    torch_threads(count)
    torch.set_flush_denormal(flushed)
    try:
        kernels.cross_sums(x, y, tile=(16, 16))
        assert denormals_are_flushed() is flushed
    finally:
        torch.set_flush_denormal(False)
    assert len(seen) == count
    assert set.union(*seen.values()) == {(True, 1)}
    assert torch.get_num_threads() == count


def test_squares_of_tiny_values_are_flushed_to_zero() -> None:
    x = kernels.prepare(torch.tensor([[0.0], [9.7]]), precision="float32")  # exp(-47) squared is denormal in float32
    assert float(kernels.self_sums(x, bandwidths=(1.0,)).squares[1]) == 0.0


# progress and interruption


@pytest.mark.parametrize("count", [1, 3])
def test_progress_is_told_in_the_calling_thread_and_adds_up(count: int, torch_threads: Callable[[int], None]) -> None:
    torch_threads(count)
    told: list[int] = []

    def progress(pairs: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert not denormals_are_flushed()
        told.append(pairs)

    x = kernels.prepare(cloud(90, 3, 15), precision="float64", offsets=[0, 40, 41, 90])
    y = kernels.prepare(cloud(70, 3, 16), precision="float64", offsets=[0, 30, 70])
    for call, pairs in (
        (lambda: kernels.cross_sums(x, y, progress=progress, tile=(16, 16)), 90 * 70),
        (lambda: kernels.self_sums(x, progress=progress, tile=(16, 16)), 90 * 89 // 2),
        (lambda: kernels.batch_sums(x, y, [(0, 0), (2, 1)], progress=progress), 40 * 30 + 49 * 40),
        (lambda: kernels.batch_sums(x, None, [(0, 0), (1, 1), (0, 2)], progress=progress), 40 * 39 // 2 + 40 * 49),
    ):
        told.clear()
        call()
        assert sum(told) == pairs
        assert len(told) > 1
        assert min(told) > 0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_progress_stops_the_work(
    count: int, error: type[BaseException], torch_threads: Callable[[int], None]
) -> None:
    torch_threads(count)
    told: list[int] = []

    def progress(pairs: int) -> None:
        told.append(pairs)
        if len(told) == 3:
            raise error("enough")

    x = kernels.prepare(cloud(400, 3, 17), precision="float32")
    precision = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(error, match="enough"):
        kernels.self_sums(x, progress=progress, tile=(8, 8))
    assert len(told) == 3
    assert tile_threads() == []
    assert torch.get_num_threads() == count
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    assert not denormals_are_flushed()


@pytest.mark.parametrize("count", [1, 3])
def test_a_tile_that_fails_stops_the_others_and_is_raised(
    count: int, torch_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, done = torch_ops._Sums.part, itertools.count()

    def part(*given: object) -> object:
        if next(done) == 5:
            raise MemoryError("no room for a tile")
        return compute(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(torch_ops._Sums, "part", part)
    torch_threads(count)
    x = kernels.prepare(cloud(400, 3, 18), precision="float32")
    with pytest.raises(MemoryError, match="no room"):
        kernels.self_sums(x, tile=(8, 8))
    assert next(done) <= 6 + 2 * threads._AHEAD * count
    assert tile_threads() == []
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks_and_few_are_kept(count: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    found = []
    for place, (task, result) in enumerate(threads.in_order(tasks(), lambda task, space: task * space, [2] * count)):
        assert len(taken) <= place + 1 + threads._AHEAD * count
        found.append((task, result))
    assert found == [(number, 2 * number) for number in range(200)]
    assert tile_threads() == []
