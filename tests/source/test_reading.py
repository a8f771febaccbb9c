"""Rows go to their windows, in order, whatever the files look like and however many threads read them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudrift.errors import ArgumentError, ConfigError, DataError
from gpudrift.records import Window
from gpudrift.source import access, cleaning, open_source, planning
from gpudrift.source.planning import WindowIndex
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))


def window(first_hour: int, last_hour: int) -> Window:
    return Window(START + timedelta(hours=first_hour), START + timedelta(hours=last_hour), f"{first_hour}-{last_hour}")


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, Any]:
    files = draw(st.lists(st.lists(st.none() | st.integers(0, 30), max_size=25), min_size=1, max_size=4))
    edges = sorted(draw(st.sets(st.integers(-2, 33), min_size=2, max_size=8)))
    pairs = list(pairwise(edges))
    chosen = draw(st.permutations([pair for pair in pairs if draw(st.booleans())]))
    return {
        "files": files,
        "windows": chosen,
        "threads": draw(st.integers(1, 5)),
        "group_rows": draw(st.integers(1, 9)),
        "statistics": draw(st.booleans()),
        "filtered": draw(st.booleans()),
    }


@given(corpora())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_stand_by_window_file_and_row(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, Any]) -> None:
    """Against a plain loop, for windows in any order, with gaps, and rows in any order of time."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, file in enumerate(corpus["files"]):
        ids = [100 * number + k for k in range(len(file))]
        table = {
            "embedding": pa.array([[i + 1.0, -i - 1.0] for i in ids], pa.list_(pa.float32(), 2)),
            "event_time": pa.array(
                [None if h is None else START + timedelta(hours=h) for h in file], pa.timestamp("us", "UTC")
            ),
            "id": pa.array(ids, pa.int64()),
        }
        options = {"row_group_size": corpus["group_rows"], "write_statistics": corpus["statistics"]}
        pq.write_table(pa.table(table), folder / f"{number}.parquet", **options)
        rows += [(h, i) for h, i in zip(file, ids, strict=True) if not corpus["filtered"] or i % 100 >= 5]
    windows = [window(*pair) for pair in corpus["windows"]]
    expected = [[i for h, i in rows if h is not None and a <= h < b] for a, b in corpus["windows"]]
    row_filter = [["id", "not in", [100 * n + k for n in range(4) for k in range(5)]]] if corpus["filtered"] else None
    source = open_source(
        str(folder), id_column="id", threads=corpus["threads"], filter=row_filter, max_bad_fraction=1.0
    )
    assert source.count(windows) == [len(ids) for ids in expected]
    cloud = source.read(windows)
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [i for ids in expected for i in ids]
    assert cloud.sizes() == tuple(len(ids) for ids in expected)
    assert cloud.embeddings.tolist() == [[i + 1.0, -i - 1.0] for ids in expected for i in ids]
    assert [quality.rows_kept for quality in cloud.quality] == [len(ids) for ids in expected]


@pytest.fixture
def corpus(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> Path:
    """Three files of 200 hours each, the second of many row groups, with columns of many kinds."""
    for number, group_rows in enumerate((200, 7, 64)):
        rows = range(200 * number, 200 * number + 200)
        columns = {
            "id": [f"row-{k}" for k in rows],
            "user": pa.array([k % 17 for k in rows], pa.int32()),
            "family": pa.array([None if k % 9 == 0 else f"f{k % 5}" for k in rows]).dictionary_encode(),
            "lang": pa.array(["en" if k % 2 else "de" for k in rows], pa.string_view()),
        }
        times = [START + timedelta(hours=k % 500) for k in rows]
        write(f"part={number}/a.parquet", vectors(200, 6, number), times=times, group_rows=group_rows, **columns)
    return tmp_path


def open_corpus(corpus: Path, **settings: Any) -> Any:
    return open_source(
        str(corpus), id_column="id", cluster_column="user", segment_columns=["family", "lang", "part"], **settings
    )


def test_carried_columns_stay_with_their_rows(corpus: Path) -> None:
    cloud = open_corpus(corpus).read(WEEKS)
    table = pa.concat_tables([pq.read_table(corpus / f"part={k}" / "a.parquet", partitioning=None) for k in range(3)])
    by_id = {row["id"]: row for row in table.to_pylist()}
    assert cloud.ids is not None
    assert len(set(cloud.ids.to_pylist())) == len(cloud) == 600
    for k, own in enumerate(cloud.ids.to_pylist()):
        row = by_id[own]
        assert cloud.embeddings[k].tolist() == row["embedding"]
        assert cloud.clusters is not None
        assert cloud.clusters[k].as_py() == row["user"]
        assert cloud.segments["family"][k].as_py() == row["family"]
        assert cloud.segments["lang"][k].as_py() == row["lang"]
        assert cloud.segments["part"][k].as_py() == int(own.removeprefix("row-")) // 200


def test_types_of_carried_columns(corpus: Path) -> None:
    for windows in (WEEKS, []):
        cloud = open_corpus(corpus).read(windows)
        assert cloud.ids.type == pa.large_string()
        assert cloud.clusters.type == pa.int32()
        assert {name: str(column.type) for name, column in cloud.segments.items()} == {
            "family": "large_string", "lang": "large_string", "part": "int64",
        }  # fmt: skip


def test_no_columns_are_carried_unless_asked_for(corpus: Path) -> None:
    cloud = open_source(str(corpus)).read(WEEKS)
    assert (cloud.ids, cloud.clusters, dict(cloud.segments)) == (None, None, {})


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(corpus: Path, threads: int) -> None:
    one, many = (open_corpus(corpus, threads=t).read(WEEKS) for t in (1, threads))
    assert torch.equal(one.embeddings, many.embeddings)
    assert one.ids.equals(many.ids)
    assert one.quality == many.quality
    assert one.offsets == many.offsets


@pytest.mark.parametrize("threads", [1, 4])
def test_progress_adds_up_to_the_count(corpus: Path, threads: int) -> None:
    steps: list[int] = []
    source = open_corpus(corpus, threads=threads)
    source.read(WEEKS[:2], progress=steps.append)
    assert sum(steps) == sum(source.count(WEEKS[:2])) > 0


def test_windows_of_a_cloud_are_views_of_their_rows(corpus: Path) -> None:
    source = open_corpus(corpus)
    cloud = source.read(WEEKS)
    for k, one in enumerate(WEEKS):
        alone = source.read([one])
        assert torch.equal(cloud.window(k).embeddings, alone.embeddings)
        assert cloud.window(k).ids.equals(alone.ids)
        assert cloud.window(k).quality == alone.quality


def test_windows_without_rows(corpus: Path) -> None:
    before, after = window(-20, -10), window(10_000, 10_001)
    source = open_corpus(corpus)
    cloud = source.read([before, WEEKS[0], after])
    assert source.count([before, WEEKS[0], after]) == [0, 168 + 100, 0]
    assert cloud.sizes() == (0, 268, 0)
    assert [quality.files for quality in cloud.quality] == [0, 2, 0]
    assert source.read([before]).embeddings.shape == (0, 6)


def test_overlapping_windows_are_refused(corpus: Path) -> None:
    with pytest.raises(ArgumentError, match="overlap"):
        open_corpus(corpus).read([window(0, 10), window(9, 20)])


@given(st.lists(st.integers(-5, 45), max_size=30), st.permutations([(0, 10), (10, 11), (20, 40)]))
def test_window_index_against_a_plain_loop(hours: list[int], spans: list[tuple[int, int]]) -> None:
    begin = int(START.timestamp() * 1e6)
    codes = WindowIndex([window(*span) for span in spans]).codes(
        np.array([begin + h * 3_600_000_000 for h in hours], np.int64)
    )
    assert codes.tolist() == [next((k for k, (a, b) in enumerate(spans) if a <= h < b), -1) for h in hours]


def test_files_and_bytes_of_a_window(corpus: Path) -> None:
    cloud = open_corpus(corpus).read(WEEKS)
    chunks = [
        metadata.row_group(i).column(0).total_compressed_size
        for metadata in (pq.ParquetFile(corpus / f"part={k}" / "a.parquet").metadata for k in range(3))
        for i in range(metadata.num_row_groups)
    ]
    assert sum(quality.bytes for quality in cloud.quality) == pytest.approx(sum(chunks), abs=len(WEEKS))
    assert [quality.files for quality in cloud.quality] == [2, 2, 2]


def test_a_large_file_is_cut_between_row_groups_for_the_threads(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", values := vectors(100), group_rows=10)
    for threads in (1, 2, 3, 100):
        assert np.array_equal(open_source(str(path), threads=threads).read(WEEKS).embeddings.numpy(), values)


def test_more_rows_than_a_batch_in_several_windows(write: Callable[..., Path], vectors: Any) -> None:
    """Rows of wide vectors: dozens of batches a row group, each holding rows of all windows in turn."""
    values = vectors(1_000, 3_000)
    values[700] = 0
    times = [START + timedelta(weeks=k % 3, minutes=k) for k in range(1_000)]
    path = write("a.parquet", values.astype(np.float16), times=times, kind=pa.list_(pa.float16(), 3_000))
    cloud = open_source(str(path)).read(WEEKS)
    kept = [k for week in range(3) for k in range(week, 1_000, 3) if k != 700]
    assert np.array_equal(cloud.embeddings.numpy(), values[kept])
    assert cloud.quality[700 % 3].examples == {"zero": ("a.parquet:700",)}


def test_memory_of_the_decoder_is_bounded(write: Callable[..., Path]) -> None:
    """Arrow holds a few batches, not the column: 61 MB of vectors in one row group."""
    values = np.random.default_rng(0).normal(size=(40_000, 384)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 384)
    options = {"use_dictionary": False, "compression": "zstd"}
    path = write("a.parquet", column.to_numpy(zero_copy_only=False)[:0], kind=column.type)
    times = pa.array(np.full(40_000, int(START.timestamp() * 1e6)), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"embedding": column, "event_time": times}), path, row_group_size=40_000, **options)
    size = values.nbytes
    del values, column, times
    held: list[int] = []
    before = pa.total_allocated_bytes()
    cloud = open_source(str(path), threads=1).read(
        WEEKS, progress=lambda _: held.append(pa.total_allocated_bytes() - before)
    )
    assert len(cloud) == 40_000
    assert len(held) > 10
    assert max(held) < size / 3


# --- what is read, and what is not


def test_row_groups_outside_the_windows_are_not_read(
    write: Callable[..., Path], vectors: Any, flip: Callable[..., None]
) -> None:
    path = write("a.parquet", values := vectors(100), group_rows=10)
    for column in (0, 1):
        flip(path, column, [0, 1, 2, 5, 6, 7, 8, 9])
    source = open_source(str(path))
    assert source.count([window(32, 47)]) == [15]
    assert np.array_equal(source.read([window(32, 47)]).embeddings.numpy(), values[32:47])
    with pytest.raises(DataError, match="row group 2"):
        source.read([window(29, 47)])


@pytest.mark.parametrize("by_folder", [False, True])
def test_each_row_group_of_the_windows_is_opened_once_and_no_other(
    write: Callable[..., Path], vectors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_folder: bool
) -> None:
    """Whole row groups in one window cost no look at their times; folder dates rule out whole files."""
    opened: list[tuple[str, int]] = []
    whole = access.read_batches

    def counted(reader: Any, path: str, row_group: int, *rest: Any) -> Any:
        opened.append((Path(path).parent.name, row_group))
        return whole(reader, path, row_group, *rest)

    for module in (planning, cleaning):
        monkeypatch.setattr(module, "read_batches", counted)
    for day in range(4):
        date = START + timedelta(days=day)
        times = None if by_folder else [date + timedelta(hours=k) for k in range(24)]
        write(f"day={date:%Y-%m-%d}/a.parquet", vectors(24), times=times, group_rows=6)
    source = open_source(str(tmp_path), time_column="day" if by_folder else "event_time")
    source.extent()
    assert opened == []
    assert source.read([window(24, 48)]).sizes() == (24,)
    assert sorted(opened) == [("day=2026-01-06", k) for k in range(4)]
    opened.clear()
    rows = sum(len(batch.rows) for batch in source.scan([window(60, 66)]))
    assert (rows, opened) == ((0, []) if by_folder else (6, [("day=2026-01-07", 2)]))


def test_extent_and_counts_of_whole_row_groups_come_from_footers(
    write: Callable[..., Path], vectors: Any, flip: Callable[..., None]
) -> None:
    path = write("a.parquet", vectors(100), group_rows=10)
    for column in (0, 1):
        flip(path, column)
    source = open_source(str(path))
    assert source.extent().rows == 100
    assert source.count([window(0, 20), window(50, 100)]) == [20, 50]


def test_counting_reads_no_vectors(write: Callable[..., Path], vectors: Any, flip: Callable[..., None]) -> None:
    path = write("a.parquet", vectors(100), options={"write_statistics": False})
    flip(path, 0)
    source = open_source(str(path))
    assert source.extent().rows == 100
    assert source.count([window(3, 20)]) == [17]


def test_reading_after_counting_does_not_count_again(
    write: Callable[..., Path], vectors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(write("a.parquet", vectors(100))))
    source.count([window(3, 20)])

    def refuse(*_: Any) -> None:
        raise AssertionError("counted twice")

    monkeypatch.setattr("gpudrift.source.planning.SmallColumns.plan", refuse)
    assert len(source.read([window(3, 20)])) == 17
    with pytest.raises(AssertionError, match="counted twice"):
        source.count([window(3, 21)])


# --- settings that cannot work


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"embedding_column": "vector"}, "source.embedding_column"),
        ({"time_column": "when"}, "source.time_column"),
        ({"id_column": "key"}, "source.id_column"),
        ({"cluster_column": "customer"}, "source.cluster_column"),
        ({"segment_columns": ["lang", "country"]}, "source.segment_columns"),
        ({"embedding_column": "part"}, "source.embedding_column"),  # a folder key holds no vectors
    ],
)
def test_a_missing_column_is_a_config_error_that_lists_those_there(
    corpus: Path, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(str(corpus), **settings)
    assert f"field: {field}" in str(caught.value)
    assert "allowed: embedding, event_time, id, user, family, lang, part" in str(caught.value)
    assert "part=0/a.parquet" in str(caught.value)


def test_an_unknown_policy_is_an_argument_error(corpus: Path) -> None:
    with pytest.raises(ArgumentError, match="on_bad_rows"):
        open_source(str(corpus), on_bad_rows="ignore")  # type: ignore[arg-type]


# --- the encoder


def test_encoder_of_the_files_metadata(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(2), metadata={"encoder_id": "mini"})
    write("b.parquet", vectors(2), metadata={"encoder_id": "mini"})
    assert open_source(str(tmp_path)).encoder_id == "mini"
    assert open_source(str(tmp_path), encoder_id="other").encoder_id == "other"
    assert open_source(str(tmp_path)).read(WEEKS).encoder_id == "mini"


def test_encoder_is_unknown_where_a_file_does_not_name_it(
    write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    write("a.parquet", vectors(2), metadata={"encoder_id": "mini"})
    write("b.parquet", vectors(2))
    assert open_source(str(tmp_path)).encoder_id is None


def test_files_of_two_encoders_are_a_data_error(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(2))
    write("b.parquet", vectors(2), metadata={"encoder_id": "mini"})
    write("c.parquet", vectors(2), metadata={"encoder_id": "large"})
    with pytest.raises(DataError, match=r"(?s)'large' here, 'mini' in .*b\.parquet.*c\.parquet"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), encoder_id="mini").encoder_id == "mini"
