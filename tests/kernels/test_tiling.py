"""The tables of a launch cover every pair once, need no mask where they say so, and add up to the right places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.kernels import schedules, tiling
from gpudrift.kernels.schedules import Pass, Row, Schedule
from gpudrift.kernels.tiling import Block

SMALL = Schedule(BM=4, BN=2, STRIP=3, GROUP=2)


def covered(blocks: list[Block], schedule: Schedule, rows: int, columns: int) -> np.ndarray:
    """How often each pair is computed, masks applied as the kernel applies them."""
    found = tiling.strips(blocks, schedule, False, True)
    seen = np.zeros((rows, columns), dtype=int)
    symmetric = any(block.symmetric for block in blocks)
    for table, masked in ((found.plain, False), (found.masked, True)):
        for row, row_end, col, col_end, _ in table:
            for start in range(row, row_end, schedule.BM):
                i, j = np.arange(start, start + schedule.BM), np.arange(col, col + schedule.BN)
                if not masked:
                    seen[np.ix_(i, j)] += 1
                    continue
                keep = (i < row_end)[:, None] & (j < col_end)[None, :]
                if symmetric:
                    keep &= j[None, :] > i[:, None]
                for a, b in np.argwhere(keep):
                    seen[i[a], j[b]] += 1
    return seen


@settings(max_examples=80)
@given(n=st.integers(1, 40), m=st.integers(1, 20), start=st.integers(0, 5))
def test_a_rectangle_is_covered_once(n: int, m: int, start: int) -> None:
    block = Block(start, start + n, 2, 2 + m, False, 0, 0, 0)
    wanted = np.zeros((start + n, 2 + m), dtype=int)
    wanted[start:, 2:] = 1
    np.testing.assert_array_equal(covered([block], SMALL, start + n, 2 + m), wanted)


@settings(max_examples=60)
@given(n=st.integers(1, 50), height=st.sampled_from([2, 4, 8]), width=st.sampled_from([2, 4, 8]))
def test_a_symmetric_block_is_covered_above_the_diagonal_once(n: int, height: int, width: int) -> None:
    block = Block(0, n, 0, n, True, 0, 0, 0)
    found = covered([block], replace(SMALL, BM=height, BN=width), n, n)
    np.testing.assert_array_equal(found, np.triu(np.ones((n, n), dtype=int), 1))


@settings(max_examples=60)
@given(
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    step=st.sampled_from([4, 8, 16]),
    chunk=st.sampled_from([5, 16, 1 << 62]),
    symmetric=st.booleans(),
)
def test_macro_blocks_are_a_partition_and_keep_to_their_chunks(
    n: int, m: int, step: int, chunk: int, symmetric: bool
) -> None:
    m = n if symmetric else m
    seen = np.zeros((n, m), dtype=int)
    for part in tiling.cut(Block(0, n, 0, m, symmetric, 0, 100, 200), step, step, chunk):
        inside = np.ones((part.row_end - part.row, part.col_end - part.col), dtype=int)
        seen[part.row : part.row_end, part.col : part.col_end] += np.triu(inside, 1) if part.symmetric else inside
        assert (part.row_out, part.col_out) == (100 + part.row, 200 + part.col)
        assert part.row // chunk == (part.row_end - 1) // chunk
        assert part.col // chunk == (part.col_end - 1) // chunk
        assert max(part.row_end - part.row, part.col_end - part.col) <= step
    wanted = np.triu(np.ones((n, n), dtype=int), 1) if symmetric else np.ones((n, m), dtype=int)
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("per_strip", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_slots_add_up_to_their_rows_columns_and_pairs(per_strip: bool, symmetric: bool) -> None:
    """A launch of ones: what the kernel would write, reduced as told, counts the pairs of each row and column."""
    sizes = [(0, 9, 0, 9), (9, 30, 9, 30)] if symmetric else [(0, 9, 0, 5), (0, 9, 5, 6), (9, 30, 0, 5)]
    blocks = [Block(a, b, c, d, symmetric, p, a, c) for p, (a, b, c, d) in enumerate(sizes)]
    found = tiling.strips(blocks, SMALL, False, per_strip)
    table = np.concatenate([found.plain, found.masked])
    pair_of = found.strip_pairs
    row_parts = np.zeros((found.slots, SMALL.BM))
    col_parts = np.zeros((found.count if per_strip else found.slots, SMALL.BN))
    for strip, (row, row_end, col, col_end, slot) in enumerate(table):
        for k, start in enumerate(range(row, row_end, SMALL.BM)):
            i, j = start + np.arange(SMALL.BM), col + np.arange(SMALL.BN)
            keep = (i < row_end)[:, None] & (j < col_end)[None, :]
            if symmetric:
                keep &= j[None, :] > i[:, None]
            row_parts[slot + k] = keep.sum(1)
            col_parts[strip if per_strip else slot + k] += keep.sum(0)
    wanted = np.zeros((30, 30))
    for a, b, c, d in sizes:
        wanted[a:b, c:d] = np.triu(np.ones((b - a, d - c)), 1) if symmetric else 1

    def reduced(adding: tiling.Adding, parts: np.ndarray, length: int) -> np.ndarray:
        out = np.zeros(length)
        for t, (dest, size) in enumerate(zip(adding.dest, adding.length, strict=True)):
            for slot in adding.order[adding.starts[t] : adding.starts[t + 1]]:
                out[dest : dest + size] += parts[slot, :size]
        return out

    np.testing.assert_array_equal(reduced(found.rows, row_parts, 30), wanted.sum(1))
    np.testing.assert_array_equal(reduced(found.columns, col_parts, 30), wanted.sum(0))
    by_pair = reduced(found.pairs, row_parts.sum(1, keepdims=True), len(blocks))
    np.testing.assert_array_equal(by_pair, [block.pairs for block in blocks])
    assert sorted(pair_of.order.tolist()) == list(range(found.count))
    targets = np.concatenate([np.arange(d, d + n) for d, n in zip(found.rows.dest, found.rows.length, strict=True)])
    assert len(set(targets.tolist())) == len(targets)  # targets never overlap: two programs would race


def test_every_strip_is_masked_where_clusters_are_compared() -> None:
    found = tiling.strips([Block(0, 64, 0, 64, False, 0, 0, 0)], SMALL, True, False)
    assert (len(found.plain), len(found.masked) > 0) == (0, True)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("precision", list(schedules.ELEMENTS))
@pytest.mark.parametrize("statistics", schedules.STATISTICS)
@pytest.mark.parametrize("d", [1, 384, 8192])
def test_the_table_serves_every_case(capability: tuple[int, int], precision: str, statistics: str, d: int) -> None:
    found = schedules.choose(schedules.architecture(capability), precision, statistics, d)
    assert found.BM % (16 * found.WARPS) == 0 or not (found.PARTIALS or statistics.endswith("labels"))
    assert 64 % found.BK == 0  # rows are padded to 64
    assert found.SUBTILES == 1 or not (found.PARTIALS or statistics.endswith("labels"))


def test_the_narrowest_bucket_that_holds_d_serves() -> None:
    wide, narrow = Schedule(BN=128), Schedule(BN=64)
    rows = tuple(Row(90, ("float16",), ("distance",), d, s, "") for d, s in ((0, wide), (384, narrow)))
    assert [schedules.choose(90, "float16", "distance", d, rows) for d in (1, 384, 385)] == [narrow, narrow, wide]
    with pytest.raises(LookupError, match="sm_80"):
        schedules.choose(80, "float16", "distance", 1, rows)


def test_the_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(schedules.dump(schedules.table()), encoding="utf-8")
    assert schedules.table(path) == schedules.table()


def test_squared_sums_of_a_pass() -> None:
    assert Pass(SQUARES=True).squared == 0  # the distance's have a closed form
    assert Pass(SQUARES=True, CLUSTERS=True, RUNGS=3).squared == 4
    assert Pass(RUNGS=3).squared == 0
    assert Pass(SQUARES=True, DISTANCE=False, RUNGS=1, CLUSTERS=True).squared == 1
