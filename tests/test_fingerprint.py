"""Fingerprints and the canonical order depend on the rows alone: not on how they arrived, and on every bit of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift import fingerprint as module
from gpudrift.fingerprint import canonical, cluster_codes, fingerprint, row_hashes
from gpudrift.records import Cloud, Quality, Window
from gpudrift.source import open_source

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
WINDOWS = tuple(
    Window(MONDAY + timedelta(weeks=k), MONDAY + timedelta(weeks=k + 1), f"2026-W{k + 2:02d}") for k in range(3)
)
SIZES = (40, 0, 25)
Rows = npt.NDArray[np.float32]


def cloud_of(rows: Rows, sizes: tuple[int, ...] = SIZES) -> Cloud:
    """The id of a row is its number in ``rows``, so that a test sees where it went."""
    n = len(rows)
    return Cloud(
        embeddings=torch.from_numpy(rows.copy()),
        windows=WINDOWS[: len(sizes)],
        offsets=tuple(int(b) for b in np.cumsum([0, *sizes])),
        quality=tuple(Quality(size, size, {}, {}) for size in sizes),
        ids=pa.array([f"r{i}" for i in range(n)]),
        clusters=pa.array([f"u{i % 7}" for i in range(n)]),
        segments={"language": pa.array(["en", "de", None][i % 3] for i in range(n))},
        encoder_id="e5",
    )


@pytest.fixture
def rows() -> Rows:
    return np.random.default_rng(0).normal(size=(sum(SIZES), 5)).astype(np.float32)


def test_the_order_of_rows_within_a_window_does_not_matter(rows: Rows) -> None:
    first, prints = canonical(cloud_of(rows), seed=3)
    rng = np.random.default_rng(1)
    mixed = np.concatenate([rng.permutation(rows[:40]), rng.permutation(rows[40:])])
    second, again = canonical(cloud_of(mixed), seed=3)
    assert torch.equal(first.embeddings, second.embeddings)
    assert prints == again
    assert prints[1] == "0-0000000000000000"
    assert [p.split("-")[0] for p in prints] == ["40", "0", "25"]


def test_ids_clusters_and_segments_follow_their_rows(rows: Rows) -> None:
    found, _ = canonical(cloud_of(rows), seed=0)
    places = [int(name[1:]) for name in found.ids.to_pylist()]
    assert sorted(places[:40]) == list(range(40))
    assert sorted(places[40:]) == list(range(40, 65))
    assert places != list(range(65))
    np.testing.assert_array_equal(found.embeddings.numpy(), rows[places])
    assert found.clusters.to_pylist() == [f"u{i % 7}" for i in places]
    assert found.segments["language"].to_pylist() == [["en", "de", None][i % 3] for i in places]
    assert (found.windows, found.offsets, found.encoder_id) == (WINDOWS, (0, 40, 40, 65), "e5")


def test_the_order_is_done_in_place_and_knows_the_seed(rows: Rows) -> None:
    cloud = cloud_of(rows)
    found, prints = canonical(cloud, seed=0)
    assert found.embeddings.data_ptr() == cloud.embeddings.data_ptr()
    other, same_prints = canonical(cloud_of(rows), seed=1)
    assert prints == same_prints
    assert not torch.equal(found.embeddings, other.embeddings)
    canonical(cloud_of(rows), seed=2**63 - 1)


def test_the_first_rows_are_a_random_sample() -> None:
    """Sorted input: without the shuffle the first half would be the small values."""
    values = np.sort(np.random.default_rng(2).normal(size=(2000, 1)).astype(np.float32), axis=0)
    found, _ = canonical(cloud_of(values, (2000,)), seed=0)
    half = found.embeddings[:1000].mean()
    assert abs(float(half)) < 4 / np.sqrt(2000)  # the mean of a random half has sd 1/sqrt(2000)


def test_a_cloud_without_columns_or_rows() -> None:
    bare = replace(cloud_of(np.zeros((0, 4), np.float32), (0, 0)), ids=None, clusters=None, segments={})
    found, prints = canonical(bare, seed=0)
    assert (found.ids, found.clusters, found.segments, len(prints)) == (None, None, {}, 2)


@pytest.mark.parametrize(
    "layout",
    [
        [(0, 65, 65)],  # first row, last row, rows a row group
        [(0, 65, 9)],
        [(33, 65, 8), (0, 20, 20), (20, 33, 4)],
    ],
)
def test_the_layout_of_files_does_not_matter(tmp_path: Path, rows: Rows, layout: list[tuple[int, int, int]]) -> None:
    wanted, prints = canonical(cloud_of(rows), seed=0)
    moments = [MONDAY + timedelta(weeks=0 if i < 40 else 2, hours=i) for i in range(65)]
    for number, (start, end, group) in enumerate(layout):
        flat = pa.array(rows[start:end].ravel())
        table = pa.table(
            {
                "embedding": pa.FixedSizeListArray.from_arrays(flat, 5),
                "event_time": pa.array(moments[start:end], pa.timestamp("us", tz="UTC")),
                "id": [f"r{i}" for i in range(start, end)],
            }
        )
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=group)
    found, found_prints = canonical(open_source(str(tmp_path), id_column="id").read(WINDOWS), seed=0)
    assert found_prints == prints
    assert torch.equal(found.embeddings, wanted.embeddings)
    assert found.ids.to_pylist() == wanted.ids.to_pylist()


def test_hashes_do_not_depend_on_how_many_rows_are_hashed_at_a_time(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = row_hashes(torch.from_numpy(rows))
    for chunk in (1, 11, 35):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        np.testing.assert_array_equal(row_hashes(torch.from_numpy(rows)), whole)


def test_minus_zero_is_zero() -> None:
    minus = torch.tensor([[1.0, -0.0], [-0.0, 2.0]])
    plus = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(row_hashes(minus), row_hashes(plus))


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), row=st.integers(0, 19), column=st.integers(0, 7), bit=st.integers(0, 31))
def test_one_flipped_bit_changes_the_fingerprint(seed: int, row: int, column: int, bit: int) -> None:
    values = np.random.default_rng(seed).normal(size=(20, 8)).astype(np.float32)
    before = row_hashes(torch.from_numpy(values))
    values.view(np.uint32)[row, column] ^= np.uint32(1 << bit)
    after = row_hashes(torch.from_numpy(values))
    assert fingerprint(before) != fingerprint(after)
    assert list(np.flatnonzero(before != after)) == [row]


def test_other_changes_that_a_sum_might_miss(rows: Rows) -> None:
    def prints(changed: Rows) -> tuple[str, ...]:
        return canonical(cloud_of(changed), seed=0)[1]

    swapped_columns, swapped_rows, exchanged, doubled = rows.copy(), rows.copy(), rows.copy(), rows.copy()
    swapped_columns[3, [0, 1]] = rows[3, [1, 0]]
    swapped_rows[[0, 50]] = rows[[50, 0]]  # between windows
    exchanged[[4, 5], 2] = rows[[5, 4], 2]  # one value between two rows: the columns' sums stay
    doubled[7] = rows[8]
    for changed in (swapped_columns, swapped_rows, exchanged, doubled):
        assert prints(changed) != prints(rows)
    assert fingerprint(row_hashes(torch.from_numpy(rows[:0]))) != fingerprint(row_hashes(torch.zeros(1, 5)))


def test_hashes_of_different_rows_differ() -> None:
    """100,000 rows on a small grid; by chance two of them share a hash with probability 3e-10."""
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 5), axis=-1).reshape(-1, 5).astype(np.float32)
    assert len(np.unique(row_hashes(torch.from_numpy(grid)))) == 100_000


def test_copies_of_a_row_are_spread_over_the_window() -> None:
    """20 different rows, 100 copies each: the first half of the order holds about half of each row's copies."""
    values = np.repeat(np.random.default_rng(4).normal(size=(20, 3)).astype(np.float32), 100, axis=0)
    found, _ = canonical(cloud_of(values, (2000,)), seed=0)
    places = np.array([int(name[1:]) for name in found.ids.to_pylist()])
    assert sorted(places) == list(range(2000))
    counts = np.bincount(places[:1000] // 100, minlength=20)
    assert counts.min() >= 28  # hypergeometric, mean 50, sd 4.9
    assert counts.max() <= 72


@settings(max_examples=40)
@given(n=st.integers(1, 60), d=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_permutation_in_place_equals_fancy_indexing(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, order = rng.normal(size=(n, d)).astype(np.float32), rng.permutation(n)
    found = torch.from_numpy(values.copy())
    module._permute(found, torch.from_numpy(order))
    np.testing.assert_array_equal(found.numpy(), values[order])


def test_a_large_permutation_goes_a_few_columns_at_a_time() -> None:
    n, d = 3_000_000, 6  # 5 columns fit into one step
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    found = torch.arange(n, dtype=torch.float32)[:, None] + torch.arange(d) * 0.125
    module._permute(found, order)
    assert torch.equal(found[:, 0], order.float())
    assert torch.equal(found[:, d - 1], order.float() + 0.125 * (d - 1))


def test_equal_labels_have_equal_codes_in_every_cloud() -> None:
    first = cluster_codes(pa.array(["a", "b", "a", "c"]), "x")
    second = cluster_codes(pa.chunked_array([["c"], ["a", "z"]]), "y")
    third = cluster_codes(pa.array(["z", "c"]).dictionary_encode(), "z")
    assert (first.dtype, second.dtype) == (torch.int64, torch.int64)
    a, b, again, c = first.tolist()
    assert again == a
    assert len({a, b, c}) == 3
    assert second.tolist()[:2] == [c, a]
    assert third.tolist() == [second.tolist()[2], c]
    assert len(set(cluster_codes(pa.array([f"user {i}" for i in range(5000)]), "x").tolist())) == 5000


@pytest.mark.parametrize("type_", [pa.int64(), pa.int32(), pa.large_string(), pa.date32()])
def test_labels_of_any_type_have_codes(type_: pa.DataType) -> None:
    column = pa.array([3, 1, None, 3]).cast(pa.int32()).cast(type_)
    codes = cluster_codes(column, "x").tolist()
    assert codes[0] == codes[3]
    assert len(set(codes)) == 3
    assert cluster_codes(column.slice(1), "x").tolist()[::2] == codes[1::2]


def test_nulls_are_clusters_of_their_own_in_every_cloud() -> None:
    column = pa.array([None, "a", *[None] * 40, ""], pa.string())
    codes = [cluster_codes(column, name).tolist() for name in ("w", "w1", "w11", "reference")]
    nulls = [code for cloud in codes for place, code in enumerate(cloud) if column[place].as_py() is None]
    labels = {cloud[1] for cloud in codes} | {cloud[-1] for cloud in codes}
    assert len(set(nulls)) == len(nulls) == 4 * 41
    assert len(labels) == 2
    assert not labels & set(nulls)
