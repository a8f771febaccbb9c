"""Blocks of a cloud leave the process and come back with the same bits."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from restless import store

from gpudrift import kernels
from gpudrift.engine import Worker, wire
from gpudrift.engine.wire import PackedBlock, pack, take, unpack
from gpudrift.kernels import Prepared

CPU = torch.device("cpu")
TRAVEL = {"float16": "float16", "bfloat16": "int16", "tf32": "float32", "float32": "float32", "float64": "float64"}


def cloud(precision: str = "float32", n: int = 37, d: int = 9, scale: float | None = None) -> Prepared:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    codes = torch.arange(n) // 3
    return kernels.prepare(rows, precision=precision, scale=scale, offsets=(0, 5, 5, n), clusters=codes)


def assert_equal(found: Prepared, wanted: Prepared) -> None:
    assert found.rows.dtype == wanted.rows.dtype
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.norms, wanted.norms)
    assert (found.clusters is None) == (wanted.clusters is None)
    if found.clusters is not None:
        assert torch.equal(found.clusters, wanted.clusters)
    for name in ("offsets", "precision", "scale", "device"):
        assert getattr(found, name) == getattr(wanted, name)


@pytest.mark.parametrize("precision", kernels.MODES)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_block_comes_back_with_its_bits(precision: str, device: str | None) -> None:
    x = cloud(precision, scale=4.0)
    packed = pack(x)
    assert packed.rows.dtype == TRAVEL[precision]
    assert packed.norms.dtype == np.float64
    assert packed.bytes == packed.rows.nbytes + 16 * len(x)
    assert_equal(unpack(Worker(device), packed, "a"), x)
    assert_equal(unpack(Worker(device), store(packed)(), "a"), x)


def test_16_bits_keep_their_smallest_and_largest_numbers() -> None:
    rows = torch.tensor([[2.0**-24, -0.0, 65504.0, 2.0**-14 - 2.0**-24]])
    x = kernels.prepare(rows, precision="float16", scale=1.0)
    assert torch.equal(x.rows, rows)
    assert unpack(Worker(), pack(x), "a").rows.numpy().tobytes() == rows.numpy().tobytes()


def test_clusters_and_rows_may_be_missing() -> None:
    x = replace(cloud(), clusters=None)
    assert_equal(unpack(Worker("cpu"), pack(x), "a"), x)
    none = kernels.prepare(torch.empty(0, 3))
    assert_equal(unpack(Worker("cpu"), store(pack(none))(), "a"), none)


def test_rows_held_in_16_bits_and_padded_as_on_cuda_travel_alike() -> None:
    on_cpu = cloud("bfloat16")
    padded = torch.full((len(on_cpu), 64), 7.0, dtype=torch.bfloat16)[:, : on_cpu.dim]
    padded.copy_(on_cpu.rows)
    packed = pack(replace(on_cpu, rows=padded))
    assert packed.rows.shape == (len(on_cpu), on_cpu.dim)
    assert_equal(unpack(Worker("cpu"), packed, "a"), on_cpu)


def test_what_can_be_used_as_it_lies_is_neither_copied_nor_kept() -> None:
    packed: PackedBlock = store(pack(cloud(n=64)))()
    assert not packed.rows.flags.writeable
    worker = Worker("cpu")
    assert unpack(worker, packed, "a").rows.data_ptr() == packed.rows.ctypes.data
    assert worker.keep("a", 1, lambda: "made now") == "made now"


def test_memory_lives_as_long_as_the_tensor_on_it() -> None:
    x = cloud(n=64)
    found = unpack(Worker("cpu"), store(pack(x))(), "a")  # nobody else holds the arrays
    _ = [np.full((64, 9), np.nan) for _ in range(50)]
    assert_equal(found, x)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_is_converted_is_kept_by_its_key(precision: str) -> None:
    packed, worker = store(pack(cloud(precision)))(), Worker("cpu")
    first = unpack(worker, packed, "a")
    assert unpack(worker, packed, "a") is first
    assert unpack(worker, packed, "b") is not first
    assert first.norms.data_ptr() != packed.norms.ctypes.data  # it holds nothing of the store's


def test_memory_off_its_alignment_is_copied_to_aligned_memory() -> None:
    x = cloud(n=16)
    packed = pack(x)
    room = np.empty(packed.rows.nbytes + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + 4
    rows = np.frombuffer(room[start : start + packed.rows.nbytes].data, dtype=np.float32).reshape(packed.rows.shape)
    rows[:] = packed.rows
    found = unpack(Worker("cpu"), replace(packed, rows=rows), "a")
    assert found.rows.data_ptr() % 64 == 0
    assert_equal(found, x)


def test_a_cloud_off_its_alignment_is_copied_too() -> None:
    """As its copy elsewhere is aligned, so that both have the same bits."""
    x = replace(cloud(n=17), offsets=(0, 1, 17)).group(1)
    worker = Worker()
    found = unpack(worker, x, "a")
    assert x.rows.data_ptr() % 64 != 0
    assert found.rows.data_ptr() % 64 == 0
    assert_equal(found, x)
    assert unpack(worker, x, "a") is found


def test_a_cloud_where_it_is_computed_is_handed_back_itself() -> None:
    x = cloud()
    assert unpack(Worker(), x, "a") is x
    assert unpack(Worker("cpu"), x, "a") is x


@pytest.mark.parametrize("precision", kernels.MODES)
def test_what_cuda_would_hold_is_what_place_makes_there(precision: str) -> None:
    """Shape and type of what is laid out for it: whole K blocks of 64 columns, in 16 bits, but for float64."""
    mode, cuda = kernels.MODES[precision], torch.device("cuda", 0)
    like = torch.empty(0, dtype=mode.storage)
    room = wire._empty(5, 70, mode, cuda, like)
    assert room.shape == (5, 70)
    assert room.dtype == wire._dtype(mode, cuda) == mode.storage
    assert room.stride() == ((70 if precision == "float64" else 128), 1)
    if precision != "float64":
        assert not room._base.any()


def test_without_memory_on_the_device_what_is_kept_goes_first() -> None:
    packed, worker = pack(cloud("float16")), Full("cpu")
    worker.keep("other", 1, lambda: "kept")
    worker.full = 1
    assert_equal(unpack(worker, packed, "a"), cloud("float16"))
    assert worker.keep("other", 1, lambda: "made again") == "made again"
    worker.full = 2
    with pytest.raises(torch.OutOfMemoryError):
        unpack(worker, packed, "b")


def test_a_cloud_that_stays_on_the_host_is_streamed_where_its_block_does_not_fit() -> None:
    x = replace(cloud(), device=torch.device("cuda", 0))
    worker = Full("cuda:0")
    worker.full = 1
    assert unpack(worker, x, "a") is x


class Full(Worker):
    """Its device has no room for the next ``full`` values."""

    full = 0

    def keep(self, key, size, make):  # type: ignore[no-untyped-def]
        if self.full:
            self.full -= 1
            raise torch.OutOfMemoryError("no room")
        return super().keep(key, size, make)


def test_some_rows_as_a_cloud_of_their_own() -> None:
    x = cloud("tf32")
    places = torch.tensor([30, 2, 2, 9])
    found = take(x, places)
    assert found.offsets == (0, 4)
    assert torch.equal(found.rows, x.rows[places])
    assert torch.equal(found.norms, x.norms[places])
    assert torch.equal(found.clusters, x.clusters[places])
    whole = take(replace(x, clusters=None), torch.arange(len(x)))
    assert whole.clusters is None
    assert torch.equal(whole.rows, x.rows)


@given(
    precision=st.sampled_from(list(kernels.MODES)),
    n=st.integers(0, 40),
    d=st.integers(1, 70),
    exponent=st.integers(-3, 3),
    seed=st.integers(0, 9),
)
def test_any_cloud_comes_back(precision: str, n: int, d: int, exponent: int, seed: int) -> None:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    x = kernels.prepare(rows, precision=precision, scale=2.0**exponent)
    packed = pickle.loads(pickle.dumps(pack(x)))
    assert_equal(unpack(Worker("cpu"), packed, "a"), x)
