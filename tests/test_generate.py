"""What job=generate writes: the planted drifts by closed form, determinism, layout, memory, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from gpudrift import generate as module
from gpudrift.errors import ConfigError
from gpudrift.generate import GenerateSummary, generate

QUIET: dict[str, Any] = {
    "start": date(2025, 12, 22), "weeks": 2, "rows_per_week": 400, "dim": 32, "clusters": 6, "spread": 0.35,
    "rows_per_user": 1.0, "dtype": "float32", "drift_week": 1, "mean_shift": 0.0, "spread_change": 1.0,
    "new_cluster": 0.0, "reweight": 0.0, "seed": 3, "overwrite": False,
}  # fmt: skip


def make(path: Path, **changes: Any) -> GenerateSummary:
    return generate(path, **{**QUIET, **changes})


def rows(file: Path) -> tuple[pa.Table, np.ndarray]:
    """The table, and its vectors as (n, d) float64."""
    table = pq.read_table(file, page_checksum_verification=True, partitioning=None)
    column = table["embedding"].combine_chunks()
    return table, column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float64)


def cluster_means(table: pa.Table, x: np.ndarray) -> dict[str, np.ndarray]:
    names = np.array(table["cluster"].to_pylist())
    return {str(name): x[names == name].mean(0) for name in np.unique(names)}


def shares(table: pa.Table) -> dict[str, float]:
    counts = Counter(table["cluster"].to_pylist())
    return {name: count / len(table) for name, count in counts.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_layout_and_unit_norms(tmp_path: Path, dtype: str) -> None:
    summary = make(tmp_path / "corpus", dtype=dtype)
    assert summary.weeks == ("2025-W52", "2026-W01")  # ISO years, not calendar years
    assert summary.files == tuple(tmp_path / "corpus" / f"week={w}" / "part-0.parquet" for w in summary.weeks)
    assert (summary.rows, summary.drifted, summary.encoder_id) == (800, (), "synthetic-32")
    assert summary.bytes == sum(file.stat().st_size for file in summary.files)
    data = ds.dataset(tmp_path / "corpus", partitioning="hive")
    table = data.to_table()
    assert table.schema.field("embedding").type == pa.list_(getattr(pa, dtype)(), 32)
    assert table.schema.field("event_time").type == pa.timestamp("us", tz="UTC")
    assert {table.schema.field(name).type for name in ("id", "user", "cluster", "language")} == {pa.string()}
    assert table.schema.metadata[b"encoder_id"] == b"synthetic-32"
    assert len(set(table["id"].to_pylist())) == 800
    assert all(column.null_count == 0 for column in table.columns)
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for file in summary.files:
        assert np.abs(np.linalg.norm(rows(file)[1], axis=1) - 1).max() < tolerance
    assert pl.read_parquet(tmp_path / "corpus")["embedding"].dtype == pl.Array(getattr(pl, dtype.title()), 32)


def test_event_times_fill_their_week_in_order(tmp_path: Path) -> None:
    for file, monday in zip(make(tmp_path).files, [datetime(2025, 12, 22), datetime(2025, 12, 29)], strict=True):
        times = rows(file)[0]["event_time"].to_pylist()
        start = monday.replace(tzinfo=UTC)
        assert times == sorted(times)
        assert start <= times[0]
        assert times[-1] < start + timedelta(days=7)
        per_day = Counter((t - start).days for t in times)
        assert sorted(per_day) == list(range(7))
        assert max(per_day.values()) - min(per_day.values()) <= 2  # 400 rows over 7 days


def test_vectors_are_stored_as_they_should_be(tmp_path: Path) -> None:
    chunk = pq.ParquetFile(make(tmp_path).files[0]).metadata.row_group(0)
    by_path = {chunk.column(i).path_in_schema: chunk.column(i) for i in range(chunk.num_columns)}
    vectors = by_path["embedding.list.element"]
    assert vectors.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in vectors.encodings
    assert not vectors.has_dictionary_page
    assert by_path["event_time"].is_stats_set  # row groups can be skipped by time


def test_a_flipped_bit_is_found_by_the_page_checksums(tmp_path: Path) -> None:
    file = make(tmp_path).files[0]
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(5)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        rows(file)


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path: Path) -> None:
    a, b, other = (make(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    for first, second, third in zip(a.files, b.files, other.files, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert not np.array_equal(rows(first)[1], rows(third)[1])
    assert not np.array_equal(rows(a.files[0])[1], rows(a.files[1])[1])


def test_a_week_depends_on_seed_and_date_alone(tmp_path: Path) -> None:
    plan = {"rows_per_user": 3.0, "mean_shift": 0.2, "new_cluster": 0.1}
    whole = make(tmp_path / "whole", weeks=4, drift_week=2, **plan)
    alone = make(tmp_path / "alone", weeks=1, drift_week=0, start=date(2026, 1, 12), **plan)
    assert whole.drifted == ("2026-W02", "2026-W03")
    assert rows(whole.files[3])[0].equals(rows(alone.files[0])[0])  # tables: the files differ in their metadata
    assert not np.array_equal(rows(whole.files[2])[1], rows(whole.files[3])[1])


def test_weeks_before_the_drift_are_those_of_the_quiet_corpus(tmp_path: Path) -> None:
    quiet = make(tmp_path / "quiet")
    drifted = make(tmp_path / "drifted", mean_shift=0.3, spread_change=2.0, new_cluster=0.2, reweight=0.5)
    assert rows(quiet.files[0])[0].equals(rows(drifted.files[0])[0])
    assert not rows(quiet.files[1])[0].equals(rows(drifted.files[1])[0])


def test_cluster_means_and_spread_have_their_closed_form(tmp_path: Path) -> None:
    # As in the tests that follow, d = 256: the closed form is that of large d.
    table, x = rows(make(tmp_path, dim=256, rows_per_week=6000, clusters=4, spread=0.6).files[0])
    names = np.array(table["cluster"].to_pylist())
    for name, mean in cluster_means(table, x).items():
        own = x[names == name]
        residual = ((own - mean) ** 2).sum(1).sum() / (len(own) - 1)
        assert residual == pytest.approx(0.36 / 1.36, rel=0.02)
        length = np.sqrt(mean @ mean - residual / len(own))  # the sampling noise of the mean taken off
        assert length == pytest.approx(1 / np.sqrt(1.36), rel=0.01)


def test_cluster_sizes_are_unequal(tmp_path: Path) -> None:
    found = shares(rows(make(tmp_path, rows_per_week=6000).files[0])[0])
    weights = np.arange(1, 7) ** -0.7
    expected = np.sort(weights / weights.sum())
    assert np.sort(list(found.values())) == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 6000))


def test_mean_shift_is_one_common_vector_of_its_length(tmp_path: Path) -> None:
    shift, spread = 0.5, 0.3
    files = make(tmp_path, dim=256, rows_per_week=6000, clusters=3, spread=spread, mean_shift=shift).files
    before, after = (cluster_means(*rows(file)) for file in files)
    moved = []
    for name in before:
        # Undo the projection: x's mean is close to (c + v) / sqrt(|c + v|^2 + spread^2), and |c| = 1.
        c = before[name] / np.linalg.norm(before[name])
        direction = after[name] / np.linalg.norm(after[name])
        length = np.linalg.norm(after[name]) * spread / np.sqrt(1 - after[name] @ after[name])
        moved.append(length * direction - c)
    for vector in moved:
        assert np.linalg.norm(vector) == pytest.approx(shift, rel=0.04)
        assert vector @ moved[0] / np.linalg.norm(vector) / np.linalg.norm(moved[0]) > 0.97


def test_spread_change_scales_the_noise(tmp_path: Path) -> None:
    files = make(tmp_path, dim=256, rows_per_week=6000, clusters=1, spread=0.4, spread_change=1.5).files
    for file, spread in zip(files, (0.4, 0.6), strict=True):
        residual = rows(file)[1].var(0, ddof=1).sum()
        assert residual / (1 - residual) == pytest.approx(spread**2, rel=0.02)


def test_new_cluster_has_its_share_and_a_centre_of_its_own(tmp_path: Path) -> None:
    files = make(tmp_path, dim=256, rows_per_week=6000, new_cluster=0.3).files
    (before, x), (after, y) = (rows(file) for file in files)
    assert "new" not in shares(before)
    assert shares(after)["new"] == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 6000))
    old, now = cluster_means(before, x), cluster_means(after, y)
    assert set(now) == {*old, "new"}
    for name, mean in old.items():
        assert abs(now["new"] @ mean) < 5 / np.sqrt(256)  # random directions are nearly orthogonal
        assert now[name] @ mean > 0.85  # 1 / (1 + .35^2) = .89: the old ones stay
        assert shares(after)[name] == pytest.approx(0.7 * shares(before)[name], abs=0.035)


@pytest.mark.parametrize(("clusters", "share"), [(3, 0.4), (6, 1.0)])
def test_reweight_moves_mass_from_even_to_odd_clusters(tmp_path: Path, clusters: int, share: float) -> None:
    files = make(tmp_path, rows_per_week=20_000, clusters=clusters, reweight=share, seed=2).files
    before, after = (shares(rows(file)[0]) for file in files)
    noise = 4 * np.sqrt(0.25 / 20_000)
    even = sum(before[f"c{j}"] for j in range(0, clusters, 2))
    for j in range(0, clusters, 2):
        assert after.get(f"c{j}", 0.0) == pytest.approx((1 - share) * before[f"c{j}"], abs=2 * noise)
    for j in range(1, clusters, 2):
        grown = before[f"c{j}"] * (1 + share * even / (1 - even))
        assert after[f"c{j}"] == pytest.approx(grown, abs=4 * noise)
    assert ("c0" in after) == (share < 1)


def test_rows_of_their_own_users_by_default(tmp_path: Path) -> None:
    users = [user for file in make(tmp_path).files for user in rows(file)[0]["user"].to_pylist()]
    assert len(set(users)) == 800


@pytest.mark.parametrize("mean", [1.2, 3.0, 20.0])
def test_users_repeat_within_a_week_and_return(tmp_path: Path, mean: float) -> None:
    files = make(tmp_path, rows_per_week=6000, dim=4, weeks=6, drift_week=0, rows_per_user=mean).files
    weeks = [Counter(rows(file)[0]["user"].to_pylist()) for file in files]
    for counts in weeks:
        assert 6000 / len(counts) == pytest.approx(mean, rel=0.05)
        assert len(set(counts.values())) > 1  # random numbers of rows
    assert set(weeks[0]) & set(weeks[1])
    assert not set(weeks[0]) & set(weeks[5])  # a user leaves in the end


def test_rows_of_a_user_resemble_each_other_in_every_week(tmp_path: Path) -> None:
    spread = 0.5
    files = make(tmp_path, dim=256, rows_per_week=3000, clusters=1, spread=spread, rows_per_user=4.0).files
    tables = [rows(file) for file in files]
    centre = np.concatenate([x for _, x in tables]).mean(0)
    noise = [(np.array(t["user"].to_pylist()), x - centre) for t, x in tables]

    def mean_product(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], own: bool) -> float:
        same = a[0][:, None] == b[0][None, :]
        if a is b:
            np.fill_diagonal(same, False)
        products = a[1] @ b[1].T
        chosen = same if own else ~same & ~np.eye(len(same), dtype=bool)
        return float(products[chosen].mean())

    shared = 0.5 * spread**2 / (1 + spread**2)  # half of the noise belongs to the user
    assert mean_product(noise[0], noise[0], own=True) == pytest.approx(shared, rel=0.05)
    assert mean_product(noise[0], noise[1], own=True) == pytest.approx(shared, rel=0.05)
    assert abs(mean_product(noise[0], noise[1], own=False)) < 0.02 * shared
    total = tables[0][1].var(0, ddof=1).sum()
    assert total == pytest.approx(spread**2 / (1 + spread**2), rel=0.03)  # the rows' spread is not changed by it


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._BLOCK_BYTES <= 64 << 20
    dim, block_rows = 512, 2048
    block = 4 * dim * block_rows
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    usual = pa.default_memory_pool()

    def peak(blocks: int) -> int:
        count, progress, pool = blocks * block_rows + 5, [], pa.proxy_memory_pool(usual)
        tracemalloc.start()
        pa.set_memory_pool(pool)
        try:
            summary = make(
                tmp_path / str(blocks), weeks=1, drift_week=0, rows_per_week=count, dim=dim, dtype="float16",
                rows_per_user=2.0, progress=lambda *done: progress.append(done),
            )  # fmt: skip
            bytes_used = tracemalloc.get_traced_memory()[1] + pool.max_memory()
        finally:
            pa.set_memory_pool(usual)
            tracemalloc.stop()
        metadata = pq.ParquetFile(summary.files[0]).metadata
        assert [metadata.row_group(i).num_rows for i in range(blocks + 1)] == [block_rows] * blocks + [5]
        assert progress == [(min(k * block_rows, count), count) for k in range(1, blocks + 2)]
        return bytes_used

    short, long = peak(2), peak(12)
    assert long < 1.1 * short
    assert long < 9 * block  # the longer corpus is 12 of them


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"generate\.overwrite") as caught:
        make(tmp_path)
    assert caught.value.field == "generate.overwrite"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_overwrite_replaces_the_earlier_corpus_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, weeks=3, drift_week=0)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "week=2026-W01" / "other.parquet").write_text("mine too")
    (tmp_path / "week=2024-W01").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "week=2024-W01" / "part-0.parquet")  # another's, not a target
    fresh = make(tmp_path, weeks=1, drift_week=0, dim=8, overwrite=True)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {
        "notes.txt", "week=2026-W01/other.parquet", "week=2024-W01/part-0.parquet", "week=2025-W52/part-0.parquet",
    }  # fmt: skip
    assert rows(fresh.files[0])[1].shape == (400, 8)


@pytest.mark.parametrize("content", ["parquet", "junk"])
def test_overwrite_never_replaces_a_file_of_others(tmp_path: Path, content: str) -> None:
    target = tmp_path / "week=2026-W01" / "part-0.parquet"
    make(tmp_path, weeks=1, drift_week=0)
    target.parent.mkdir()
    if content == "parquet":
        pq.write_table(pa.table({"a": [1]}), target)
    else:
        target.write_bytes(b"not parquet")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="not written by job=generate") as caught:
        make(tmp_path, overwrite=True)
    assert str(target) in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_killed_run_leaves_whole_weeks_and_is_run_again(tmp_path: Path) -> None:
    code = (
        "import json, os, sys\n"
        "from datetime import date\n"
        "from gpudrift import generate as m\n"
        "m._BLOCK_BYTES = 32 * 4 * 100\n"
        "a = json.loads(sys.argv[2]); a['start'] = date.fromisoformat(a['start'])\n"
        "m.generate(sys.argv[1], **a, progress=lambda done, total: os._exit(9) if done == 600 else None)\n"
    )
    arguments = json.dumps({**QUIET, "start": QUIET["start"].isoformat()})
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), arguments], check=False)
    assert killed.returncode == 9
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files[0].startswith(".")
    assert files[1:] == ["part-0.parquet"]
    data = ds.dataset(tmp_path, partitioning="hive")  # the half file is not seen
    assert data.count_rows() == 400
    summary = make(tmp_path, overwrite=True)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(summary.files)


def test_an_error_on_the_way_leaves_no_half_file(tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=stop)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="this is a file"):
        make(file)
    with pytest.raises(ConfigError, match="cannot be made") as caught:
        make(Path(os.devnull) / "corpus")
    assert caught.value.field == "generate.path"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"start": date(2026, 1, 6)}, "generate.start"),
        ({"dtype": "bfloat16"}, "generate.dtype"),
        ({"reweight": 0.2, "clusters": 1}, "generate.clusters"),
        ({"mean_shift": 0.2, "drift_week": 2}, "generate.drift_week"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "corpus", **changes)
    assert caught.value.field == field
    assert not (tmp_path / "corpus").exists()
