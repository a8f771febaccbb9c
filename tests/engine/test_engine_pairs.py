"""Macro-blocks of pairs: the sums of the kernels' own calls, with the same bits whoever computes which block when."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restless import restless

from gpudrift import kernels
from gpudrift.engine import Engine
from gpudrift.engine import pairs as module
from gpudrift.engine.blocks import Part, Steps
from gpudrift.engine.checkpoint import Checkpoints
from gpudrift.engine.local import LocalExecutor, in_process
from gpudrift.engine.merging import Whole, clips
from gpudrift.engine.pairs import Pairs, block_rows_for, in_process_pairs
from gpudrift.errors import ArgumentError, EngineError
from gpudrift.kernels import PairSums, Prepared
from gpudrift.kernels import reference as dense
from gpudrift.metrics.pairs import null_scale

WIDTHS = (0.7, 1.4, 2.9, 5.0, 0.2)
SUMS = ("total", "rows", "columns", "squares", "blocks", "block_pairs", "labels")
OFFSETS = (0, 0, 10, 64, 64, 150, 193, 193)  # of 193 rows: empty groups, one that crosses two blocks


def cloud(
    n: int,
    *,
    d: int = 7,
    seed: int = 0,
    precision: str = "float64",
    offsets: tuple[int, ...] | None = None,
    clusters: bool = False,
    scale: float | None = None,
) -> Prepared:
    generator = torch.Generator().manual_seed(100 * n + seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    codes = torch.randint(0, max(2, n // 4), (n,), generator=generator) if clusters else None
    centre = torch.zeros(d, dtype=torch.float64)
    return kernels.prepare(rows, centre=centre, precision=precision, offsets=offsets, clusters=codes, scale=scale)


def local(side: int | None = 64, workers: int = 1, **settings: Any) -> Pairs:
    engine = in_process() if workers == 1 else Engine(LocalExecutor(["cpu"] * workers))
    return Pairs(engine, side, **settings)


def assert_same(found: PairSums, wanted: PairSums) -> None:
    """To the bit."""
    for name in SUMS:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype == torch.float64, name
        assert one.shape == other.shape, name
        assert torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0)), name
    assert (found.pairs, found.bandwidths) == (wanted.pairs, wanted.bandwidths)


def assert_close(found: PairSums, wanted: PairSums, rtol: float = 1e-12) -> None:
    """To rounding, relative to the largest sum of each function."""
    for name in SUMS[:5]:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.shape == other.shape, name
        for f, (a, b) in enumerate(zip(one, other, strict=True)):
            atol = rtol * float(b.abs().nan_to_num().max()) if b.numel() else 0.0
            torch.testing.assert_close(
                a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, name=name, f=f: f"{name} of {f}: {m}"
            )
    assert (found.pairs, found.bandwidths) == (wanted.pairs, wanted.bandwidths)
    assert torch.equal(found.block_pairs, wanted.block_pairs)


def test_the_helpers_see_a_difference_in_each_sum() -> None:
    sums = kernels.self_sums(cloud(5), bandwidths=WIDTHS)
    for name in SUMS[:6]:
        changed = getattr(sums, name).clone()
        changed[-1] *= 1 + 1e-9
        for check in (assert_same, assert_close):
            with pytest.raises(AssertionError, match=name):
                check(replace(sums, **{name: changed}), sums)


# ---- what a block is


@pytest.mark.parametrize(
    ("rows", "device", "side"),
    [
        (0, "cpu", 8192), (1, "cpu", 8192), (131_072, "cpu", 8192), (131_073, "cpu", 16_384), (300_000, "cpu", 32_768),
        (2_000_000, "cpu", 65_536), (1, "cuda", 65_536), (1_048_577, "cuda", 131_072), (10**8, "cuda", 1_048_576),
    ],
)  # fmt: skip
def test_sides_of_blocks(rows: int, device: str, side: int) -> None:
    assert block_rows_for(rows, device) == side


@given(rows=st.integers(0, 1 << 24), device=st.sampled_from(["cpu", "cuda"]))
def test_a_side_is_the_smallest_power_of_two_that_makes_at_most_16_blocks(rows: int, device: str) -> None:
    side, (least, most) = block_rows_for(rows, device), {"cpu": (8192, 65_536), "cuda": (65_536, 1 << 20)}[device]
    assert least <= side <= most
    assert side & (side - 1) == 0
    assert side == least or side // 2 * 16 < rows
    assert side == most or side * 16 >= rows


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.sampled_from([16, 32, 48]))
def test_clips_hold_every_row_of_every_group_once(sizes: list[int], side: int) -> None:
    offsets = tuple(int(o) for o in np.cumsum([0, *sizes]))
    of = [-1] * offsets[-1]
    parts = clips(offsets, side)
    for part in parts:
        assert part.start % 16 == 0
        assert 0 < len(part) <= side or offsets[-1] == 0
        assert part.offsets[0] == 0
        assert part.offsets[-1] == len(part)
        for k, g in enumerate(range(part.groups.start, part.groups.stop)):
            for row in range(part.start + part.offsets[k], part.start + part.offsets[k + 1]):
                assert of[row] == -1
                of[row] = g
    assert of == [g for g, size in enumerate(sizes) for _ in range(size)]
    if offsets[-1] <= side:
        assert parts[0].offsets == offsets


# ---- the same sums


@pytest.mark.parametrize("precision", kernels.MODES)
@pytest.mark.parametrize("clusters", [False, True])
def test_one_block_is_the_kernels_own_call(precision: str, clusters: bool) -> None:
    settings: dict[str, Any] = {"precision": precision, "clusters": clusters, "scale": 2.0}
    x, y = cloud(193, offsets=OFFSETS, **settings), cloud(50, **settings)
    for wanted in ({}, {"bandwidths": WIDTHS}, {"squares": False}, {"margins": False, "bandwidths": (1.0,)}):
        assert_same(in_process_pairs().self_sums(x, **wanted), kernels.self_sums(x, **wanted))
        assert_same(in_process_pairs().cross_sums(x, y, **wanted), kernels.cross_sums(x, y, **wanted))
        assert_same(Pairs(restless()).self_sums(x, **wanted), kernels.self_sums(x, **wanted))
        assert_same(Pairs(restless()).cross_sums(x, y, **wanted), kernels.cross_sums(x, y, **wanted))


@pytest.mark.parametrize("offset", [8, 16, 32, 48])
def test_sums_lie_as_torchs_own_tensors_wherever_they_came_from(offset: int) -> None:
    """A product of vectors has other last bits where they begin elsewhere (8: here; 16 to 48: on other processors)."""
    sums = kernels.self_sums(cloud(193), bandwidths=WIDTHS)
    room = np.empty(sums.rows.nbytes + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + offset
    part = Part.of("XX 0,0", sums, within=True)
    moved = room[start : start + part.rows.nbytes].view(np.float64).reshape(part.rows.shape)
    moved[:] = part.rows
    found = replace(part, rows=moved).sums()
    assert found.rows.data_ptr() % 64 == 0
    assert_same(found, sums)
    for f in range(1 + len(WIDTHS)):
        assert null_scale(found, f) == null_scale(sums, f)


def test_sums_of_blocks_lie_as_torchs_own_tensors() -> None:
    held = [local().self_sums(cloud(n)) for n in (65, 129, 150, 193)]
    assert [sums.rows.data_ptr() % 64 for sums in held] == [0] * 4


def test_rows_and_columns_of_self_sums_are_one_tensor() -> None:
    x = cloud(193)
    for side in (64, None):
        found = local(side).self_sums(x)
        assert found.rows is found.columns


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 129, 193])
@pytest.mark.parametrize("m", [1, 64, 130])
@pytest.mark.parametrize("clusters", [False, True])
def test_blocks_add_up_to_the_kernels_sums(n: int, m: int, clusters: bool) -> None:
    x, y = cloud(n, clusters=clusters), cloud(m, seed=1, clusters=clusters, offsets=(0, m // 2, m))
    found = local().self_sums(x, bandwidths=WIDTHS)
    assert_close(found, kernels.self_sums(x, bandwidths=WIDTHS))
    assert_close(found, dense.pair_sums(x, None, WIDTHS), 1e-11)
    found = local().cross_sums(x, y, bandwidths=WIDTHS)
    assert_close(found, kernels.cross_sums(x, y, bandwidths=WIDTHS))
    assert_close(found, dense.pair_sums(x, y, WIDTHS), 1e-11)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("widths", [WIDTHS[:count] for count in range(6)])
def test_groups_may_be_empty_and_cross_blocks(clusters: bool, widths: tuple[float, ...]) -> None:
    x = cloud(193, offsets=OFFSETS, clusters=clusters, scale=8.0)
    y = cloud(150, offsets=(0, 100, 150), clusters=clusters, scale=8.0, seed=1)
    found = local().self_sums(x, bandwidths=widths)
    assert_close(found, kernels.self_sums(x, bandwidths=widths))
    assert torch.equal(found.blocks, found.blocks.mT)
    torch.testing.assert_close(found.total, found.blocks.sum((1, 2)), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(found.total, found.rows.sum(1), rtol=1e-13, atol=0.0)
    assert_close(local().cross_sums(x, y, bandwidths=widths), kernels.cross_sums(x, y, bandwidths=widths))
    assert_close(local().cross_sums(y, x, bandwidths=widths), kernels.cross_sums(y, x, bandwidths=widths))


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("margins", [False, True])
def test_what_is_not_asked_for_is_not_there(squares: bool, margins: bool) -> None:
    x, y = cloud(193, offsets=OFFSETS), cloud(70, seed=1)
    for side in (64, None):
        for pairs in (local(side), Pairs(restless(), side)):
            own = pairs.self_sums(x, bandwidths=WIDTHS, squares=squares, margins=margins)
            cross = pairs.cross_sums(x, y, bandwidths=WIDTHS, squares=squares, margins=margins)
            assert own.rows.shape == own.columns.shape == (6, 193 if margins else 0)
            assert (cross.rows.shape[1], cross.columns.shape[1]) == ((193, 70) if margins else (0, 0))
            assert bool(own.squares.isnan().all()) is bool(cross.squares.isnan().all()) is not squares
            assert_close(own, kernels.self_sums(x, bandwidths=WIDTHS, squares=squares, margins=margins))
            assert_close(cross, kernels.cross_sums(x, y, bandwidths=WIDTHS, squares=squares, margins=margins))


@pytest.mark.parametrize("precision", kernels.MODES)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_every_precision(precision: str, scale: float) -> None:
    """Within what float32 accumulation loses, of the sums of the same rounded rows."""
    x = cloud(150, d=33, precision=precision, scale=scale, offsets=(0, 70, 150))
    y = cloud(129, d=33, precision=precision, scale=scale, seed=1)
    rtol, widths = 1e-11 if precision == "float64" else 2e-6, (4.0, 8.0, 16.0)
    assert_close(local().self_sums(x, bandwidths=widths), dense.pair_sums(x, None, widths), rtol)
    assert_close(local().cross_sums(x, y, bandwidths=widths), dense.pair_sums(x, y, widths), rtol)


def test_clouds_without_rows() -> None:
    x, none = cloud(130), cloud(0)
    for side in (64, None):
        assert_same(local(side).self_sums(none), kernels.self_sums(none))
        assert_close(local(side).cross_sums(x, none), kernels.cross_sums(x, none))
        assert_close(local(side).cross_sums(none, x), kernels.cross_sums(none, x))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), side=st.sampled_from([16, 48, 64]), clusters=st.booleans(), seed=st.integers(0, 9))
def test_any_shape(data: st.DataObject, side: int, clusters: bool, seed: int) -> None:
    sizes = [data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=5)) for _ in range(2)]
    x, y = (
        cloud(sum(each), d=3, seed=seed + k, clusters=clusters, offsets=(0, *np.cumsum(each).tolist()))
        for k, each in enumerate(sizes)
    )
    widths = WIDTHS[: data.draw(st.integers(0, 3))]
    mixed = Pairs(restless(data.draw(st.integers(1, 4)), seed=seed, lost=0.2), side)
    own, cross = local(side).self_sums(x, bandwidths=widths), local(side).cross_sums(x, y, bandwidths=widths)
    assert_close(own, dense.pair_sums(x, None, widths), 1e-10)
    assert_close(cross, dense.pair_sums(x, y, widths), 1e-10)
    assert_same(mixed.self_sums(x, bandwidths=widths), own)
    assert_same(mixed.cross_sums(x, y, bandwidths=widths), cross)


# ---- the same bits


PRECISE = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("clusters", [False, True])
def test_bits_do_not_depend_on_who_computes_when(precision: str, clusters: bool) -> None:
    x = cloud(193, d=33, precision=precision, offsets=OFFSETS, clusters=clusters, scale=4.0)
    y = cloud(130, d=33, precision=precision, clusters=clusters, seed=1, scale=4.0)
    own, cross = local().self_sums(x, bandwidths=WIDTHS), local().cross_sums(x, y, bandwidths=WIDTHS)
    orders = set()
    for workers in (1, 2, 5):
        with Engine(LocalExecutor(["cpu"] * workers)) as engine:
            assert_same(Pairs(engine, 64).self_sums(x, bandwidths=WIDTHS), own)
            assert_same(Pairs(engine, 64).cross_sums(x, y, bandwidths=WIDTHS), cross)
        for trouble in ({}, {"lost": 0.4}, {"twice": True}, {"remote": False, "lost": 0.2}):
            engine = restless(workers, seed=workers, **trouble)
            assert_same(Pairs(engine, 64).self_sums(x, bandwidths=WIDTHS), own)
            assert_same(Pairs(engine, 64).cross_sums(x, y, bandwidths=WIDTHS), cross)
            orders.add(tuple(engine.executor.order))
            assert (engine.account.lost > 0) is ("lost" in trouble)
    assert len(orders) > 6  # they did end in many orders


def test_the_order_of_tasks_keeps_a_block_of_x_in_use() -> None:
    engine = restless(1)
    Pairs(engine, 64).self_sums(cloud(193))
    assert engine.executor.order == [f"XX {i},{j}" for i in range(4) for j in range(i, 4)]
    engine = restless(1)
    Pairs(engine, 64).cross_sums(cloud(193), cloud(100), name="near")
    assert engine.executor.order == [f"near {i},{j}" for i in range(4) for j in range(2)]
    assert engine.account.tasks == {"near": 8}


# ---- pairs of groups


def groups(clusters: bool = False) -> tuple[Prepared, Prepared]:
    sizes = [5, 0, 17, 30, 1, 64, 9, 22]
    offsets = (0, *np.cumsum(sizes).tolist())
    x = cloud(offsets[-1], offsets=offsets, clusters=clusters)
    return x, cloud(offsets[-1], offsets=offsets, clusters=clusters, seed=1)


def assert_all(check: Callable[[PairSums, PairSums], None], found: list[PairSums], wanted: list[PairSums]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        check(one, other)


ANY_PAIRS = [(2, 2), (0, 3), (3, 3), (5, 2), (1, 0), (7, 7), (4, 4), (6, 5), (5, 6), (1, 1), (2, 2), (5, 5)]


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_a_list_that_fits_one_task_is_the_kernels_own_call(clusters: bool, within: bool) -> None:
    x, y = groups(clusters)
    other = None if within else y
    for wanted in ({}, {"bandwidths": WIDTHS}, {"squares": False, "margins": False}):
        own = kernels.batch_sums(x, other, ANY_PAIRS, **wanted)
        assert_all(assert_same, in_process_pairs().batch_sums(x, other, ANY_PAIRS, **wanted), own)
        assert_all(assert_same, Pairs(restless()).batch_sums(x, other, ANY_PAIRS, **wanted), own)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_small_groups_share_tasks_and_long_ones_are_cut(clusters: bool, within: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(module._BATCH, "cpu", 1000)
    x, y = groups(clusters)
    other = None if within else y
    own = kernels.batch_sums(x, other, ANY_PAIRS, bandwidths=WIDTHS)
    found = local(32).batch_sums(x, other, ANY_PAIRS, bandwidths=WIDTHS)
    assert_all(assert_close, found, own)
    for workers in (1, 2, 5):
        engine = restless(workers, lost=0.3, twice=True, seed=workers)
        assert_all(assert_same, Pairs(engine, 32).batch_sums(x, other, ANY_PAIRS, bandwidths=WIDTHS), found)
        names = set(engine.executor.order)
        assert {"segments 0", "segments 1"} <= names  # more tasks than one
        assert {"segments 5-2 0,0", "segments 5-2 1,0"} <= names  # group 5 has 64 rows
    lean = local(32).batch_sums(x, other, ANY_PAIRS, margins=False, squares=False)
    assert_all(assert_close, lean, kernels.batch_sums(x, other, ANY_PAIRS, margins=False, squares=False))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_task_gets_the_rows_it_needs(precision: str) -> None:
    """Those of its groups, in whole sixteens of rows; those between too, where they are few."""
    offsets = (*range(0, 451, 9), 450, *range(450, 901, 9))
    x = cloud(900, offsets=offsets, precision=precision)
    row = 7 * (4 if precision == "float32" else 8) + 8
    for wanted, rows in (
        ([(20, 20), (60, 60), (0, 0), (80, 80), (40, 40)], 16 + 32 + 16 + 32 + 32),
        ([(k, k + 1) for k in range(10, 19)], 192 - 80),
        ([(k, k) for k in range(10, 20, 2)], 176 - 80),
        ([(50, 50)], 16),  # an empty group at 450
        ([(101, 101), (50, 0)], 900 - 880 + 16 + 16),
    ):
        engine = restless()
        found = Pairs(engine).batch_sums(x, None, wanted, bandwidths=WIDTHS)
        assert_all(assert_same, found, kernels.batch_sums(x, None, wanted, bandwidths=WIDTHS))
        assert engine.account.shared_bytes == rows * row, wanted


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 9), within=st.booleans())
def test_any_list_of_groups(data: st.DataObject, seed: int, within: bool) -> None:
    sizes = [data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=12)) for _ in range(2)]
    x, y = (
        cloud(sum(each), d=3, seed=seed + k, offsets=(0, *np.cumsum(each).tolist())) for k, each in enumerate(sizes)
    )
    other = None if within else y
    some = st.tuples(st.integers(0, len(sizes[0]) - 1), st.integers(0, len(sizes[0 if within else 1]) - 1))
    wanted = data.draw(st.lists(some, max_size=6))
    found = Pairs(restless()).batch_sums(x, other, wanted, bandwidths=WIDTHS[:1])
    assert_all(assert_same, found, kernels.batch_sums(x, other, wanted, bandwidths=WIDTHS[:1]))


def test_a_batch_of_nothing() -> None:
    x, y = groups()
    assert in_process_pairs().batch_sums(x, y, []) == []


@pytest.mark.parametrize("pair", [(8, 0), (0, 8), (-1, 0)])
def test_groups_that_are_not_there(pair: tuple[int, int]) -> None:
    x, y = groups()
    with pytest.raises(ArgumentError, match="no such pair of groups"):
        in_process_pairs().batch_sums(x, y, [(0, 0), pair])


# ---- what is shared


def test_blocks_are_shared_once_for_all_passes() -> None:
    x, y = cloud(193, clusters=True), cloud(130, seed=1, clusters=True)
    engine = restless()
    pairs = Pairs(engine, 64)
    pairs.self_sums(x)
    pairs.cross_sums(x, y)
    pairs.self_sums(y)
    pairs.self_sums(replace(x, offsets=(0, 100, 193)))  # the same rows, grouped
    assert len(engine.executor.shared) == 4 + 3
    assert engine.account.shared_bytes == (193 + 130) * (7 * 8 + 8 + 8)


def test_rows_that_changed_are_shared_anew() -> None:
    x = cloud(100)
    pairs = Pairs(restless(), 64)
    before = pairs.self_sums(x)
    x.rows.mul_(2.0)
    x.norms.mul_(4.0)
    assert_same(pairs.self_sums(x), local().self_sums(x))
    assert not torch.equal(pairs.self_sums(x).total, before.total)
    bare = replace(x, clusters=torch.arange(100) // 2)
    assert_same(pairs.self_sums(bare), local().self_sums(bare))


@pytest.mark.parametrize("remote", [False, True])
def test_what_was_shared_goes_with_the_rows(remote: bool) -> None:
    x = cloud(193)
    engine = restless(remote=remote)
    pairs = Pairs(engine, 64)
    pairs.self_sums(x)
    shared = [weakref.ref(one) for one in engine.executor.shared]
    engine.executor.shared.clear()
    gc.collect()
    assert all(ref() is not None for ref in shared)
    del x
    gc.collect()
    assert all(ref() is None for ref in shared)


def test_pairs_that_are_gone_are_no_trouble_for_rows_that_stay() -> None:
    x = cloud(193)
    pairs = local()
    pairs.self_sums(x)
    engine = weakref.ref(pairs.engine)
    del pairs
    gc.collect()
    assert engine() is None
    del x
    gc.collect()


def test_in_this_process_nothing_is_copied() -> None:
    x = cloud(193)
    engine = restless(remote=False)
    Pairs(engine, 64).self_sums(x)
    start, size = x.rows.data_ptr(), x.rows.numel() * 8
    assert all(start <= one.held.rows.data_ptr() < start + size for one in engine.executor.shared)


# ---- what is told


@pytest.mark.parametrize("side", [64, None])
@pytest.mark.parametrize("make", [in_process, restless, lambda: restless(lost=0.3, twice=True)])
def test_progress_comes_to_the_pairs_there_are(side: int | None, make: Callable[[], Engine]) -> None:
    x, y = groups(clusters=True)
    pairs = Pairs(make(), side)
    for call, count in (
        (lambda step: pairs.self_sums(x, progress=step), 148 * 147 // 2),
        (lambda step: pairs.cross_sums(x, y, progress=step), 148 * 148),
        (lambda step: pairs.batch_sums(x, y, [(5, 5), (2, 3)], progress=step), 64 * 64 + 17 * 30),
        (lambda step: pairs.batch_sums(x, None, [(5, 5), (2, 3)], progress=step), 32 * 63 + 17 * 30),
    ):
        told: list[int] = []
        call(told.append)
        assert sum(told) == count
        assert min(told) > 0


def test_a_long_block_in_this_process_tells_as_it_goes() -> None:
    told: list[int] = []
    x, y = cloud(3000, d=2), cloud(1500, d=2)
    in_process_pairs().cross_sums(x, y, margins=False, squares=False, progress=told.append)
    assert len(told) > 3
    assert sum(told) == 3000 * 1500
    told.clear()
    Pairs(restless()).cross_sums(x, y, margins=False, squares=False, progress=told.append)
    assert told == [3000 * 1500]


def test_another_attempt_tells_what_goes_beyond_the_first() -> None:
    told: list[int] = []
    steps = Steps(told.append)
    for attempt in ((5, 4), (3, 3), (8, 2)):
        steps.begin()
        for pairs in attempt:
            steps(pairs)
    assert told == [5, 4, 1]
    assert steps.told == 10


def test_blocks_are_counted_for_people() -> None:
    told: list[str] = []
    pairs = Pairs(restless(2), 64, tell=told.append)
    pairs.self_sums(cloud(50))
    assert told == []
    pairs.cross_sums(cloud(100), cloud(70), name="XY")
    assert told == [f"XY: block {k} of 4" for k in (1, 2, 3, 4)]


# ---- wrong parts


def _fewer_pairs(part: Part) -> Part:
    return replace(part, pairs=part.pairs - 1)


def _other_pairs_by_group(part: Part) -> Part:
    return replace(part, block_pairs=part.block_pairs + 1, pairs=part.pairs + part.block_pairs.size)


def _short_rows(part: Part) -> Part:
    return replace(part, rows=part.rows[:, :-1])


def _of_another_task(part: Part) -> Part:
    return replace(part, name="XY 0,1")


def _other_bandwidths(part: Part) -> Part:
    return replace(part, bandwidths=(9.0,))


def _no_columns(part: Part) -> Part:
    return replace(part, columns=None)


@pytest.mark.parametrize(
    "wrong", [_fewer_pairs, _other_pairs_by_group, _short_rows, _of_another_task, _other_bandwidths, _no_columns]
)
@pytest.mark.parametrize("clusters", [False, True])
def test_a_part_that_is_not_what_was_asked_for_ends_the_run(wrong: Callable[[Part], Part], clusters: bool) -> None:
    x, y = cloud(100, clusters=clusters), cloud(70, clusters=clusters, seed=1)

    def change(task: Any, value: Any) -> Any:
        if task.name == "segments 0":
            return [wrong(part) for part in value]
        return wrong(value) if task.name == "XY 1,0" else value

    with pytest.raises(EngineError, match="no score is written"):
        Pairs(restless(change=change), 64).cross_sums(x, y, bandwidths=(1.0,))
    with pytest.raises(EngineError, match="no score is written"):
        Pairs(restless(change=change)).batch_sums(x, y, [(0, 0)], bandwidths=(1.0,))


def test_a_wrong_block_is_named_and_not_added(tmp_path: Path) -> None:
    """What was finished before it is kept, without it."""
    run = RUNS["XX lean"]
    engine = restless(1, change=lambda task, part: _one_less(part) if task.name == "XX 0,3" else part)
    with pytest.raises(EngineError, match="XX 0,3 came back with a wrong number of pairs"):
        run(Pairs(engine, 32, Checkpoints(tmp_path, 0.0)))
    found, engine, _ = resume(tmp_path, run)
    assert engine.account.resumed == 3
    assert_same(found, run(local(32)))


@pytest.mark.parametrize("side", [64, None])
def test_pairs_left_out_by_clusters_are_counted_again(side: int | None, tmp_path: Path) -> None:
    """A count that could be right for one block shows in the whole; what was kept of it is not used again."""
    x = cloud(100, clusters=True)

    def fewer(task: Any, value: Any) -> Any:
        if isinstance(value, list):
            return [_one_less(part) for part in value]
        return _one_less(value) if task.name == "XX 0,0" else value

    kept = Checkpoints(tmp_path / "blocks", 0.0)
    with pytest.raises(EngineError, match="other pairs"):
        Pairs(restless(change=fewer), side, kept).self_sums(x)
    assert not kept.has("XX")
    with pytest.raises(EngineError, match="other pairs"):
        Pairs(restless(change=fewer), None).batch_sums(x, None, [(0, 0)])


def _one_less(part: Part) -> Part:
    return replace(part, pairs=part.pairs - 2, block_pairs=part.block_pairs - 2)


def test_a_batch_with_a_part_missing_ends_the_run() -> None:
    x, y = groups()
    engine = restless(change=lambda _, parts: parts[:-1])
    with pytest.raises(EngineError, match="another number"):
        Pairs(engine).batch_sums(x, y, ANY_PAIRS)


@pytest.mark.parametrize("within", [False, True])
def test_a_slot_that_no_block_wrote_shows(within: bool) -> None:
    """Row and column sums are NaN until the first block that has them writes."""
    x, y = cloud(150), None if within else cloud(100, seed=1)
    whole = Whole(x, y, 64, 64, (), True)
    rows, columns = set(range(150)), set(range(150 if within else 100))
    for k, (i, j) in enumerate(whole.cells):
        left, right = whole.left[i], whole.right[j]
        one, other = _rows(x, left), _rows(x if y is None else y, right)
        own = within and i == j
        whole.add(k, "a", Part.of("a", kernels.self_sums(one) if own else kernels.cross_sums(one, other), own))
        rows -= set(range(left.start, left.stop))
        columns -= set(range(right.start, right.stop))
        if within:
            rows = columns = rows & columns
        found = whole.arrays()
        assert set(np.isnan(found["rows"][0]).nonzero()[0].tolist()) == rows
        assert within or set(np.isnan(found["columns"][0]).nonzero()[0].tolist()) == columns
    assert not rows
    assert not columns


def _rows(cloud: Prepared, part: Any) -> Prepared:
    return replace(cloud, offsets=(0, part.start, part.stop, len(cloud))).group(1)


def test_an_error_of_ours_in_a_task_is_raised_as_it_is() -> None:
    for make in (in_process, restless):
        with pytest.raises(ArgumentError, match="same dimension"):
            Pairs(make(), 64).cross_sums(cloud(100), cloud(100, d=3))
        with pytest.raises(ArgumentError, match="unusable bandwidths"):
            Pairs(make(), 64).self_sums(cloud(100), bandwidths=(-1.0,))


# ---- cut off and resumed


class Cut(Exception):
    pass


def cut_after(count: int, directory: Path, run: Callable[[Pairs], Any], *, seconds: float = 0.0) -> Pairs:
    """A run that is cut off after so many blocks."""
    told: list[str] = []

    def tell(text: str) -> None:
        if len(told) == count:
            raise Cut
        told.append(text)

    pairs = local(32, checkpoints=Checkpoints(directory, seconds), tell=tell)
    with pytest.raises(Cut):
        run(pairs)
    return pairs


def resume(directory: Path, run: Callable[[Pairs], Any], engine: Engine | None = None) -> tuple[Any, Engine, list[str]]:
    told: list[str] = []
    pairs = Pairs(engine or restless(3, lost=0.2), 32, Checkpoints(directory, 0.0), told.append)
    found = run(pairs)
    return found, pairs.engine, told


RUNS: dict[str, Callable[[Pairs], Any]] = {
    "XX": lambda pairs: pairs.self_sums(cloud(130, offsets=(0, 50, 130)), bandwidths=WIDTHS),
    "XX lean": lambda pairs: pairs.self_sums(cloud(130), margins=False, squares=False),
    "XY": lambda pairs: pairs.cross_sums(cloud(130, clusters=True), cloud(65, seed=1, clusters=True)),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("count", [1, 4, 11])
def test_a_run_cut_off_goes_on_from_finished_blocks(name: str, count: int, tmp_path: Path) -> None:
    run = RUNS[name]
    whole = run(local(32))
    cut_after(count, tmp_path, run)
    found, engine, told = resume(tmp_path, run)
    assert_same(found, whole)
    assert engine.account.resumed == count
    assert engine.account.tasks == {name[:2]: 15 - count}
    assert told[0] == f"{name[:2]}: {count} of 15 blocks were finished before"
    assert told[-1] == f"{name[:2]}: block 15 of 15"
    again, engine, told = resume(tmp_path, run)  # all of it, as where the next pass was cut off
    assert_same(again, whole)
    assert (engine.account.resumed, engine.account.started) == (15, 0)


def test_progress_holds_what_was_finished_before(tmp_path: Path) -> None:
    x = cloud(130)
    cut_after(4, tmp_path, lambda pairs: pairs.self_sums(x))
    told: list[int] = []
    resume(tmp_path, lambda pairs: pairs.self_sums(x, progress=told.append))
    assert sum(told) == 130 * 129 // 2
    assert told[0] == 32 * 31 // 2 + 3 * 32 * 32


def test_an_error_keeps_what_was_finished_though_no_write_was_due(tmp_path: Path) -> None:
    run = RUNS["XY"]
    cut_after(6, tmp_path, run, seconds=1e6)
    found, engine, _ = resume(tmp_path, run)
    assert engine.account.resumed == 6
    assert_same(found, run(local(32)))


def test_pairs_of_groups_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._BATCH, "cpu", 400)
    for k, other in enumerate((None, groups()[1])):
        for margins in (True, False):

            def run(pairs: Pairs, other: Prepared | None = other, margins: bool = margins) -> list[PairSums]:
                return pairs.batch_sums(groups()[0], other, ANY_PAIRS, bandwidths=WIDTHS, margins=margins)

            directory = tmp_path / f"{k}{margins}"
            cut_after(3, directory, run)
            found, engine, told = resume(directory, run)
            assert_all(assert_same, found, run(local(32)))
            assert engine.account.resumed == 3
            assert told[0].startswith("segments: 3 of ")


def test_a_killed_process_leaves_what_another_goes_on_from(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_engine_pairs import RUNS, local
from gpudrift.engine.checkpoint import Checkpoints
def tell(text):
    if "block 9 of" in text:
        os.kill(os.getpid(), signal.SIGKILL)
RUNS["XX"](local(32, checkpoints=Checkpoints(Path({str(tmp_path)!r}), 0.0), tell=tell))
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -9
    found, engine, _ = resume(tmp_path, RUNS["XX"])
    assert engine.account.resumed == 8
    assert_same(found, RUNS["XX"](local(32)))


def _changed_data(pairs: Pairs) -> Any:
    x = cloud(130)
    x.rows[77, 3] += 1e-9
    return pairs.self_sums(x)


def _pass(**settings: Any) -> Callable[[Pairs], Any]:
    wanted = {key: settings.pop(key) for key in ("bandwidths", "squares", "margins") if key in settings}
    return lambda pairs: pairs.self_sums(cloud(130, **settings), **wanted)


@pytest.mark.parametrize(
    "other",
    [
        _changed_data, _pass(precision="float32"), _pass(scale=2.0), _pass(clusters=True), _pass(offsets=(0, 60, 130)),
        _pass(bandwidths=(1.0,)), _pass(squares=False), _pass(margins=False),
        lambda pairs: pairs.cross_sums(cloud(130), cloud(130), name="XX"),
        lambda pairs: replace(pairs, block_rows=48).self_sums(cloud(130)),
        lambda pairs: replace(pairs, device="cuda").self_sums(cloud(130)),
    ],
)  # fmt: skip
def test_another_pass_is_not_taken_for_this_one(other: Callable[[Pairs], Any], tmp_path: Path) -> None:
    cut_after(5, tmp_path, _pass())
    found, engine, _ = resume(tmp_path, other)
    assert engine.account.resumed == 0
    assert_same(found, other(local(32)))
    _, engine, _ = resume(tmp_path, _pass())  # the other's file has not taken its place
    assert engine.account.resumed == 5


def test_another_version_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_after(5, tmp_path, RUNS["XX"])
    monkeypatch.setattr("gpudrift.__version__", "0.0.1")
    assert resume(tmp_path, RUNS["XX"])[1].account.resumed == 0


def test_a_damaged_file_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_after(5, tmp_path, RUNS["XX"])
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found, engine, _ = resume(tmp_path, RUNS["XX"])
    assert "cannot be used" in caplog.text
    assert engine.account.resumed == 0
    assert_same(found, RUNS["XX"](local(32)))


def test_a_run_that_has_ended_starts_anew(tmp_path: Path) -> None:
    pairs = local(32, checkpoints=Checkpoints(tmp_path / "blocks", 0.0))
    whole = RUNS["XX"](pairs)
    assert pairs.checkpoints is not None
    assert pairs.checkpoints.has("XX")
    pairs.forget()
    assert not (tmp_path / "blocks").exists()
    found, engine, _ = resume(tmp_path / "blocks", RUNS["XX"])
    assert engine.account.resumed == 0
    assert_same(found, whole)
    local().forget()  # nothing was kept


def test_a_pass_of_one_block_keeps_nothing(tmp_path: Path) -> None:
    local(None, checkpoints=Checkpoints(tmp_path / "blocks", 0.0)).self_sums(cloud(130))
    assert not (tmp_path / "blocks").exists()


def test_rows_are_not_read_for_a_digest_nobody_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that is over before its first write, with nothing on disk."""
    monkeypatch.setattr("gpudrift.engine.sharing.Cloud.digests", lambda _: pytest.fail("rows were hashed"))
    local(32, checkpoints=Checkpoints(tmp_path, 1e6)).self_sums(cloud(130))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_a_block_is_added_keeps_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Whole.add

    def interrupted(whole: Whole, k: int, name: str, part: Part) -> None:
        add(whole, k, name, part)
        if k == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Whole, "add", interrupted)
    kept = Checkpoints(tmp_path, 1e6)
    with pytest.raises(KeyboardInterrupt):
        RUNS["XX"](local(32, checkpoints=kept))
    assert not kept.has("XX")


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "blocks").write_text("no directory")
    pairs = local(32, checkpoints=Checkpoints(tmp_path / "blocks", 0.0))
    assert_same(RUNS["XX"](pairs), RUNS["XX"](local(32)))
    assert caplog.text.count("cannot be kept") == 1
