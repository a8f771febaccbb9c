"""The sample: which rows it holds, that every row of every shard is equally likely, and how ids are told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_sketch import assert_same, cloud, ids_of, plan_of, sketch_of
from scipy.stats import chisquare

from gpudrift.errors import DataError
from gpudrift.fingerprint import id_hashes
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.sketch.reservoir import Reservoir, keys_of


def test_it_holds_the_rows_of_the_smallest_keys(plan: SketchPlan) -> None:
    x = cloud(300, seed=1)
    keys = keys_of(torch.from_numpy(x), ids_of(0, 300), plan.seed)
    order = np.argsort(keys)[: plan.reservoir]
    rows, ids = sketch_of(plan, x).reservoir()
    np.testing.assert_array_equal(rows.numpy(), x[order])
    assert ids.to_pylist() == [f"row {i}" for i in order]


def test_rows_one_at_a_time_leave_the_same_sample() -> None:
    rows, ids = torch.from_numpy(cloud(60, seed=2)), ids_of(0, 60)
    for seed in range(40):
        keys = keys_of(rows, ids, seed)
        kept = Reservoir.empty(8)
        for i in range(60):
            kept = kept.add(keys[i : i + 1], rows[i : i + 1], ids[i : i + 1], 5)
        assert kept.keys.tolist() == np.sort(keys)[:5].tolist()


def test_fewer_rows_than_it_can_hold_are_all_held(plan: SketchPlan) -> None:
    rows, ids = sketch_of(plan, cloud(12)).reservoir()
    assert len(rows) == 12
    assert sorted(ids.to_pylist()) == sorted(f"row {i}" for i in range(12))


def test_every_row_of_shards_of_very_different_sizes_is_equally_likely() -> None:
    """27 and 3 rows, 6 kept, over 1500 seeds: single rows and pairs of rows, by chi-square. Inclusions without
    replacement vary less than multinomial counts, hence the factor."""
    rows, ids, n, k, draws = torch.from_numpy(cloud(30)), ids_of(0, 30), 30, 6, 1500
    single, pairs = np.zeros(n), np.zeros((n, n))
    for seed in range(draws):
        keys = keys_of(rows, ids, seed)
        large = Reservoir.empty(8).add(keys[:27], rows[:27], ids[:27], k)
        small = Reservoir.empty(8).add(keys[27:], rows[27:], ids[27:], k)
        held = np.searchsorted(np.sort(keys), small.merge(large, k).keys)
        places = np.argsort(keys)[held]
        single[places] += 1
        pairs[np.ix_(places, places)] += 1
    assert single.sum() == draws * k
    assert chisquare(single / (1 - k / n)).pvalue > 0.001
    expected = draws * k * (k - 1) / (n * (n - 1))
    among = np.array([pairs[i, j] for i, j in itertools.combinations(range(n), 2)])
    z = (among - expected) / np.sqrt(expected * (1 - expected / draws))
    assert np.abs(z).max() < 4.5  # of 435
    # shares of the shards
    assert abs(single[27:].sum() / single.sum() - 0.1) < 0.015


@given(st.data())
def test_a_row_delivered_again_collapses(plan: SketchPlan, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 120))
    x = cloud(n, seed=7)
    once = sketch_of(plan, x)
    again = sketch_of(plan, x)
    start = data.draw(st.integers(0, n - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        again.update(torch.from_numpy(x[start:]), ids_of(start, n - start))
    for got, wanted in zip(again.sample.state().values(), once.sample.state().values(), strict=True):
        assert torch.equal(got, wanted)
    assert again.count > once.count  # what was counted twice is: telling deliveries apart is the caller's


def test_the_same_row_under_two_ids_and_two_rows_under_one_id_are_two(plan: SketchPlan) -> None:
    x = cloud(2)
    two = Sketch.empty(plan)
    two.update(torch.from_numpy(np.stack([x[0], x[0], x[1]])), pa.array(["a", "b", "a"]))
    assert len(two.reservoir()[0]) == 3


def test_minus_zero_is_zero(plan: SketchPlan) -> None:
    signed = Sketch.empty(plan)
    signed.update(torch.full((1, 8), -0.0), pa.array(["a"]))
    plain = Sketch.empty(plan)
    plain.update(torch.zeros(1, 8), pa.array(["a"]))
    assert_same(signed.merge(plain), plain.merge(signed), rel=0.0)
    rows, _ = signed.merge(plain).reservoir()
    assert len(rows) == 1
    assert not bool(rows.signbit().any())


def test_copies_of_one_row_are_held_in_their_share() -> None:
    """A fifth of 4000 rows is one row under as many ids; 400 are kept: 80 +- 8 copies."""
    x = cloud(4000, seed=9)
    x[::5] = x[0]
    rows, _ = sketch_of(plan_of(x, features=2, bins=4, reservoir=400), x).reservoir()
    copies = int((rows == torch.from_numpy(x[0])).all(dim=1).sum())
    assert abs(copies - 80) < 4 * (400 * 0.2 * 0.8 * 0.9) ** 0.5


# -- ids ---------------------------------------------------------------------------------------------------------------

TEXT = ["", "a", "b", "ab", "ba", "id 5", "\u00e4\U0001f600", "x" * 300]
NUMBERS = [0, 1, 5, 100]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXT, type=pa.large_string()),
        pa.array(TEXT, type=pa.string_view()),
        pa.array(TEXT).dictionary_encode(),
        pa.chunked_array([TEXT[:3], [], TEXT[3:]], type=pa.string()),
        pa.chunked_array([pa.array(TEXT).dictionary_encode()]),
        pa.array(["left out", *TEXT, "too"])[1:-1],
        pa.array([text.encode() for text in TEXT]),
        pa.array([text.encode() for text in TEXT], type=pa.binary_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_equal_ids_hash_alike_in_any_type(column: pa.Array) -> None:
    assert id_hashes(column).tolist() == id_hashes(pa.array(TEXT)).tolist()
    assert len(set(id_hashes(column).tolist())) == len(TEXT)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64()], ids=str)
def test_numbers_hash_as_their_digits(kind: pa.DataType) -> None:
    """A reader may hand a column of numbers over as text where some are missing."""
    assert id_hashes(pa.array(NUMBERS, type=kind)).tolist() == id_hashes(pa.array([str(i) for i in NUMBERS])).tolist()


def test_fixed_size_bytes_hash_as_bytes() -> None:
    uuids = [bytes([i]) * 16 for i in range(5)]
    assert id_hashes(pa.array(uuids, type=pa.binary(16))).tolist() == id_hashes(pa.array(uuids)).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 21])
def test_hashes_do_not_depend_on_how_many_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    wanted = id_hashes(pa.array(TEXT * 3)).tolist()
    monkeypatch.setattr("gpudrift.fingerprint._CHUNK", chunk)
    assert id_hashes(pa.array(TEXT * 3)).tolist() == wanted == id_hashes(pa.array(TEXT)).tolist() * 3


def test_many_similar_ids_do_not_collide_and_fill_all_bits() -> None:
    hashes = id_hashes(pa.array([f"2026-11-{day:02}/{i:06}" for day in range(1, 11) for i in range(20_000)]))
    assert len(np.unique(hashes)) == len(hashes)
    for low in (0, 32, 59):
        counts = np.bincount(((hashes >> np.uint64(low)) & np.uint64(31)).astype(int), minlength=32)
        assert chisquare(counts).pvalue > 0.001


def test_no_ids_no_hashes() -> None:
    for kind in (pa.string(), pa.int64(), pa.large_binary()):
        assert id_hashes(pa.array([], type=kind)).shape == (0,)
        assert id_hashes(pa.chunked_array([], type=kind)).shape == (0,)


@pytest.mark.parametrize("column", [pa.array([1.5]), pa.array([True]), pa.array([["a"]]), pa.nulls(2)], ids=str)
def test_other_types_are_refused(column: pa.Array) -> None:
    with pytest.raises(DataError, match="identify rows"):
        id_hashes(column)


@pytest.mark.parametrize(
    "column", [pa.array(["a", None]), pa.array([1, None]), pa.array(["a", None]).dictionary_encode()]
)
def test_missing_ids_are_refused(column: pa.Array) -> None:
    with pytest.raises(DataError, match="1 nulls"):
        id_hashes(column)


def test_ids_come_back_as_text_or_as_bytes(plan: SketchPlan) -> None:
    for given_ids, wanted in (
        (pa.array([7, 8]), {"7", "8"}),
        (pa.array([b"\xff", b"a"]), {b"\xff", b"a"}),
        (pa.array(["\u00e4", "b"]), {"\u00e4", "b"}),
    ):
        sketch = Sketch.empty(plan)
        sketch.update(torch.from_numpy(cloud(2)), given_ids)
        assert set(sketch.reservoir()[1].to_pylist()) == wanted
