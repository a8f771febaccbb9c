"""Bad rows are counted by cause, named, dropped without moving the others, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudrift.errors import DataError
from gpudrift.fingerprint import canonical
from gpudrift.records import Cloud, Norms, Quality, Repeats, RowFindings
from gpudrift.source import open_source
from gpudrift.source.quality import UNIT_TOLERANCE, combined, find_bad_values, look_at, norms_of, total, unit_length
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))
NAN, INF = float("nan"), float("inf")

BAD: list[tuple[str, list[float | None] | None]] = [
    ("null", None),
    ("null", [1.0, None, 2.0]),
    ("ragged", [1.0, 2.0]),
    ("ragged", []),
    ("non_finite", [NAN, 1.0, 2.0]),
    ("non_finite", [1.0, -INF, 2.0]),
    ("non_finite", [1.0, 2.0, 1e300]),
    ("zero", [0.0, 0.0, 0.0]),
    ("zero", [0.0, -0.0, 0.0]),
    ("zero", [1e-300, 0.0, 0.0]),  # nothing is left of it in float32
]
GOOD: list[list[float]] = [
    [1.0, 2.0, 3.0],
    [1e30, 1e30, -1e30],  # its square is beyond float32
    [1e-30, 0.0, 0.0],  # its square vanishes
    [-1.0, 0.0, 0.0],
    [3.4e38, 3.4e38, 3.4e38],
    [1e-45, 0.0, 0.0],
]


@pytest.mark.parametrize(("cause", "row"), BAD)
def test_each_cause(write: Callable[..., Path], cause: str, row: Any) -> None:
    path = write("a.parquet", [GOOD[0], row, GOOD[3]], kind=pa.list_(pa.float64()), id=["x", "y", "z"])
    cloud = open_source(str(path), id_column="id", max_bad_fraction=0.5).read(WEEKS)
    (quality, *_) = cloud.quality
    assert (quality.rows_read, quality.rows_kept) == (3, 2)
    assert (dict(quality.dropped), dict(quality.examples)) == ({cause: 1}, {cause: ("y",)})
    assert quality.bad_fraction == pytest.approx(1 / 3)
    assert cloud.embeddings.tolist() == [GOOD[0], GOOD[3]]
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == ["x", "z"]


def test_sound_rows_of_extreme_size_are_kept(write: Callable[..., Path]) -> None:
    cloud = open_source(str(write("a.parquet", GOOD, kind=pa.list_(pa.float64())))).read(WEEKS)
    assert np.array_equal(cloud.embeddings.numpy(), np.array(GOOD).astype(np.float32))
    assert dict(cloud.quality[0].dropped) == {}


VALUES = st.sampled_from([0.0, -0.0, 1.0, -2.5, NAN, INF, -INF, 1e30, 1e-30, 3e38, 1e-45])


@given(st.lists(st.tuples(VALUES, VALUES), max_size=20))
def test_screen_against_numpy(rows: list[tuple[float, float]]) -> None:
    values = np.array(rows, dtype=np.float32).reshape(-1, 2)
    non_finite, zero = find_bad_values(torch.from_numpy(values))
    assert non_finite.tolist() == np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
    assert zero.tolist() == np.flatnonzero((values == 0).all(axis=1)).tolist()


@given(
    st.lists(st.lists(st.integers(0, len(BAD) + 8), max_size=30), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 11),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gaps_are_closed_in_place(
    write: Callable[..., Path], tmp_path: Path, files: list[list[int]], threads: int, group_rows: int
) -> None:
    """Against a plain loop: any mixture of good and bad rows, over three windows, files, row groups and threads."""
    for old in tmp_path.glob("*.parquet"):
        old.unlink()
    rows = []
    for number, picks in enumerate(files):
        made = [BAD[p] if p < len(BAD) else ("good", [p + 1.0, number, k]) for k, p in enumerate(picks)]
        weeks = [(k * 7 + number) % 3 for k in range(len(picks))]
        times = [START + timedelta(weeks=week) for week in weeks]
        names = [f"{number}:{k}" for k in range(len(picks))]
        kind = pa.list_(pa.float64())
        write(
            f"{number}.parquet",
            [row for _, row in made],
            times=times,
            kind=kind,
            group_rows=group_rows,
            id=pa.array(names, pa.string()),
        )
        rows += [(w, name, *one) for w, name, one in zip(weeks, names, made, strict=True)]
    source = open_source(str(tmp_path), id_column="id", threads=threads, max_bad_fraction=1.0)
    if all(not row for *_, row in rows):
        return
    cloud = source.read(WEEKS, expect_dim=3)
    kept = [[(name, row) for w, name, cause, row in rows if w == week and cause == "good"] for week in range(3)]
    assert cloud.sizes() == tuple(map(len, kept))
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [name for week in kept for name, _ in week]
    assert cloud.embeddings.tolist() == [row for week in kept for _, row in week]
    for week, quality in enumerate(cloud.quality):
        for cause in ("null", "ragged", "non_finite", "zero"):
            names = [name for w, name, found, _ in rows if w == week and found == cause]
            assert quality.dropped.get(cause, 0) == len(names)
            assert quality.examples.get(cause, ()) == tuple(names[:10])


def test_gaps_larger_than_a_piece_are_closed(write: Callable[..., Path], vectors: Any) -> None:
    """Rows move up by less than a piece at a time, so source and target overlap."""
    values = vectors(3_000, 2_000)
    values[5:40] = np.nan
    path = write("a.parquet", values, group_rows=500)
    cloud = open_source(str(path), threads=6, max_bad_fraction=0.5).read(
        covering(parse_period("300d"), START, START + timedelta(days=300))
    )
    assert np.array_equal(cloud.embeddings.numpy(), np.delete(values, np.s_[5:40], axis=0))


def test_examples_without_an_id_name_file_and_row(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [[1.0, 1.0]] * 5
    write("month=2026-01/a.parquet", rows, group_rows=2)
    write("month=2026-02/a.parquet", [*rows[:3], None, [0.0, 0.0]], group_rows=2, kind=pa.list_(pa.float32(), 2))
    (quality, *_) = open_source(str(tmp_path), max_bad_fraction=1.0).read(WEEKS).quality
    assert quality.examples == {"null": ("month=2026-02/a.parquet:3",), "zero": ("month=2026-02/a.parquet:4",)}


def test_a_row_whose_id_is_null_is_named_by_file_and_row(write: Callable[..., Path]) -> None:
    path = write("a.parquet", [[1.0], [0.0], [0.0]], id=["x", None, "z"])
    (quality, *_) = open_source(str(path), id_column="id", max_bad_fraction=1.0).read(WEEKS).quality
    assert quality.examples == {"zero": ("a.parquet:1", "z")}


def test_at_most_ten_examples_a_cause(write: Callable[..., Path], tmp_path: Path) -> None:
    for name in "abc":
        write(f"{name}.parquet", np.zeros((7, 2), dtype=np.float32))
    for threads in (1, 3):
        source = open_source(str(tmp_path), threads=threads, max_bad_fraction=1.0)
        (quality, *_) = source.read(WEEKS).quality
        assert dict(quality.dropped) == {"zero": 21}
        assert quality.examples["zero"] == (
            *(f"a.parquet:{k}" for k in range(7)),
            *(f"b.parquet:{k}" for k in range(3)),
        )


# --- the limit


def with_bad_rows(write: Callable[..., Path], bad: int, good: int, week: int = 0, name: str = "a") -> Path:
    rows = [[NAN, 1.0]] * bad + [[1.0, 1.0]] * good
    times = [START + timedelta(weeks=week, minutes=k) for k in range(bad + good)]
    return write(f"{name}.parquet", rows, times=times, id=[f"{name}{k}" for k in range(bad + good)])


def test_the_limit_is_the_largest_share_allowed(write: Callable[..., Path]) -> None:
    path = str(with_bad_rows(write, 2, 98))
    assert open_source(path, max_bad_fraction=0.02).read(WEEKS).quality[0].rows_kept == 98
    with pytest.raises(DataError) as caught:
        open_source(path, max_bad_fraction=0.0199, id_column="id").read(WEEKS)
    assert caught.value.exit_code == 30
    text = str(caught.value)
    assert "2 of 100 rows of 2026-W02 cannot be used (2.00%): 2 non_finite (a0, a1)" in text
    assert "quality.max_bad_fraction" in text
    assert "field: embedding" in text


def test_fail_allows_no_bad_row(write: Callable[..., Path]) -> None:
    path = str(with_bad_rows(write, 1, 999))
    with pytest.raises(DataError, match=r"(?s)1 of 1,000 rows.*on_bad_rows=fail"):
        open_source(path, on_bad_rows="fail", max_bad_fraction=1.0).read(WEEKS)
    clean = str(with_bad_rows(write, 0, 10, name="b"))
    assert len(open_source(clean, on_bad_rows="fail").read(WEEKS)) == 10


def test_the_limit_holds_in_every_window_and_the_worst_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    with_bad_rows(write, 5, 95, 0, "a")
    with_bad_rows(write, 10, 90, 1, "b")
    with_bad_rows(write, 0, 100, 2, "c")
    source = open_source(str(tmp_path), max_bad_fraction=0.05)  # 5% of all rows
    with pytest.raises(DataError, match="10 of 100 rows of 2026-W03"):
        source.read(WEEKS)
    assert len(source.read([WEEKS[0], WEEKS[2]])) == 195
    with pytest.raises(DataError, match=r"10 of 100 rows of 2026-W03.*1 more windows are over the limit"):
        open_source(str(tmp_path), max_bad_fraction=0.01).read(WEEKS)


def test_vectors_of_another_encoder_are_told_by_their_length(write: Callable[..., Path]) -> None:
    rows = [[1.0, 2.0]] * 3 + [[1.0, 2.0, 3.0]] * 9 + [[1.0]]
    path = write("a.parquet", rows, kind=pa.list_(pa.float32()))
    with pytest.raises(DataError, match="vectors of length 3 instead of 2: 9, perhaps of another encoder"):
        open_source(str(path)).read(WEEKS, expect_dim=2)


def test_rows_outside_the_windows_do_not_count(write: Callable[..., Path]) -> None:
    rows = [[NAN, 1.0]] * 10 + [[1.0, 1.0]] * 10
    times = [START + timedelta(weeks=1)] * 10 + [START] * 10
    path = write("a.parquet", rows, times=times)
    assert open_source(str(path), on_bad_rows="fail").read(WEEKS[:1]).quality[0].rows_read == 10


# --- rows that are odd and kept


def looked_at(rows: Any, ids: list[Any] | None = None, sizes: tuple[int, ...] | None = None) -> tuple[Quality, ...]:
    """The quality of rows in windows of these sizes, as the job counts it."""
    values = torch.tensor(np.asarray(rows), dtype=torch.float32)
    sizes = (len(values),) if sizes is None else sizes
    cloud = Cloud(
        embeddings=values,
        windows=WEEKS[: len(sizes)],
        offsets=(0, *np.cumsum(sizes).tolist()),
        quality=tuple(Quality(size, size, {}, {}) for size in sizes),
        ids=None if ids is None else pa.array(ids),
    )
    before = cloud.embeddings.clone()
    seen = look_at(canonical(cloud, 0)[0])
    assert sorted(map(tuple, seen.embeddings.tolist())) == sorted(map(tuple, before.tolist()))
    return seen.quality


def found_in(rows: Any, ids: list[Any] | None = None) -> RowFindings:
    (quality,) = looked_at(rows, ids)
    assert quality.found is not None
    return quality.found


def test_duplicate_rows_are_counted_within_a_window() -> None:
    rows = [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2 + [[0.6, 0.8], [0.0, -1.0], [-0.0, 1.0]]
    found = found_in(rows, list("cabedfgh"))
    assert found.duplicates.rows == 4
    assert found.duplicates.largest == 3
    assert sorted(found.duplicates.examples) == ["a", "d"]  # the least id of each group
    first, second = looked_at(rows[:4], list("abcd"), (2, 2))
    assert (first.found.duplicates.rows, second.found.duplicates.rows) == (1, 0)  # type: ignore[union-attr]
    assert found_in(rows).duplicates == Repeats(4, 3)
    assert found_in(rows[4:7], list("xyz")).duplicates == Repeats(0, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([*"abcd", None])), min_size=1, max_size=25), st.randoms())
def test_counts_against_plain_loops_in_any_order(made: list[tuple[int, str | None]], random: Any) -> None:
    def counted() -> RowFindings:
        return found_in([[k + 1.0, 1.0] for k, _ in made], [name for _, name in made])

    found = counted()
    numbers = [k for k, _ in made]
    names = [name for _, name in made if name is not None]
    groups = {k: numbers.count(k) for k in numbers}
    assert found.duplicates.rows == len(made) - len(groups)
    assert found.duplicates.largest == (max(groups.values()) if max(groups.values()) > 1 else 0)
    least = {min((n for j, n in made if j == k and n is not None), default=None) for k in groups if groups[k] > 1}
    assert set(found.duplicates.examples) == least - {None}
    often = sorted({name for name in names if names.count(name) > 1}, key=lambda name: (-names.count(name), name))
    assert found.repeated_ids is not None
    assert found.repeated_ids.rows == len(names) - len(set(names))
    assert found.repeated_ids.examples == tuple(often)
    random.shuffle(made)
    assert counted() == found


def test_at_most_ten_groups_are_named_the_largest_first() -> None:
    rows = [[k + 1.0, 0.5] for k in range(15) for _ in range(2 + (k == 7))]
    found = found_in(rows, [f"{k:02}" for k in range(len(rows))])
    assert (found.duplicates.rows, found.duplicates.largest, len(found.duplicates.examples)) == (16, 3, 10)
    assert found.duplicates.examples[0] == "14"


def test_rows_not_of_length_one_are_counted_and_the_furthest_named() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 24))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:12] *= 1 + 0.01 * np.arange(1, 13)[:, None]
    ids = [f"r{k}" for k in range(200)]
    found = found_in(rows, ids).norms
    assert found is not None
    assert found.off_unit == 12
    assert found.examples == tuple(f"r{k}" for k in range(11, 1, -1))
    lengths = np.linalg.norm(rows.astype(np.float32).astype(np.float64), axis=1)
    assert (found.least, found.most) == (lengths.min(), lengths.max())
    assert found.mean == pytest.approx(lengths.mean(), rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_storage_in_half_precision_keeps_rows_at_length_one(kind: torch.dtype) -> None:
    rows = torch.nn.functional.normalize(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    found = norms_of(rows.to(kind).float())
    assert found is not None
    assert found.off_unit == 0
    assert max(abs(found.least - 1), abs(found.most - 1)) > 1e-5  # they do move


def test_norm_bins_hold_every_row_once_and_add_up() -> None:
    lengths = np.array([1e-30, 0.957, 0.958, 1.0, 1.0001, 1.044, 1.045, 2.0, 1e30])
    found = norms_of(torch.tensor(lengths[:, None] * [0.6, 0.8], dtype=torch.float32))
    assert found is not None
    assert [(k, rows) for k, rows in found.bins if -4 < k < 9] == [(-1, 1), (0, 4), (1, 1), (8, 1)]
    assert sum(rows for _, rows in found.bins) == len(lengths)
    halves = [norms_of(torch.tensor(part[:, None], dtype=torch.float32)) for part in (lengths[:4], lengths[4:])]
    both, whole = combined(halves), norms_of(torch.tensor(lengths[:, None], dtype=torch.float32))
    assert both is not None
    assert whole is not None
    assert (both.rows, both.least, both.most, both.bins, both.off_unit) == (
        whole.rows, whole.least, whole.most, whole.bins, whole.off_unit,
    )  # fmt: skip
    assert both.mean == pytest.approx(whole.mean, rel=1e-12)
    assert combined([None]) is None
    assert norms_of(torch.zeros(0, 3)) is None


def test_a_corpus_is_of_unit_length_when_99_percent_of_its_rows_are() -> None:
    def corpus(off: int) -> list[Quality]:
        lengths = np.ones(1000)
        lengths[:off] += 1.01 * UNIT_TOLERANCE
        return list(looked_at(lengths[:, None], None, (400, 600)))

    assert unit_length(corpus(10))
    assert not unit_length(corpus(11))
    assert not unit_length([Quality(5, 5, {}, {})])


def test_windows_together() -> None:
    one = Quality(5, 4, {"null": 1}, {"null": ("a",)}, 1, 10, RowFindings(Repeats(1, 2, ("a",)), Repeats(0, 0), None))
    two = Quality(6, 6, {}, {}, 2, 20, RowFindings(Repeats(3, 4), Repeats(2, 3), Norms(6, 1, 1, 1, ((0, 6),), 0)))
    assert total([one, two]) == Quality(
        11, 10, {"null": 1}, {}, 3, 30, RowFindings(Repeats(4, 4), Repeats(2, 3), Norms(6, 1, 1, 1, ((0, 6),), 0))
    )
    assert total([Quality(1, 1, {}, {})]).found is None
