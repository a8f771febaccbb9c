"""A scan gives the rows of ``read``, batch after batch, in bounded memory; record batches are cleaned alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

from gpudrift.errors import ArgumentError, ConfigError, DataError, ReferenceMismatchError
from gpudrift.records import Cloud, Window
from gpudrift.source import ArrowBatches, ParquetSource, open_source, scanning
from gpudrift.source.planning import WindowIndex
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))
BAD = {"null": None, "ragged": [1.0], "empty": [], "nan": [math.nan, 1.0], "inf": [1.0, math.inf], "zero": [0.0, 0.0]}


def window(first_hour: int, last_hour: int) -> Window:
    return Window(START + timedelta(hours=first_hour), START + timedelta(hours=last_hour), f"{first_hour}-{last_hour}")


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, Any]:
    row = st.tuples(st.none() | st.integers(0, 30), st.none() | st.sampled_from(sorted(BAD)), st.booleans())
    edges = sorted(draw(st.sets(st.integers(-2, 33), min_size=2, max_size=6)))
    return {
        "files": draw(st.lists(st.lists(row, max_size=25), min_size=1, max_size=4)),
        "windows": [pair for pair in draw(st.permutations(list(pairwise(edges)))) if draw(st.booleans())],
        "group_rows": draw(st.integers(1, 30)),
        "buffer_rows": draw(st.integers(1, 40)),
        "statistics": draw(st.booleans()),
        "filtered": draw(st.booleans()),
        "ids": draw(st.sampled_from([pa.string(), pa.int64(), None])),
    }


def write_corpus(folder: Path, corpus: dict[str, Any]) -> None:
    for number, file in enumerate(corpus["files"]):
        own = [100 * number + k for k in range(len(file))]
        ids = [None if unnamed else i for i, (_, _, unnamed) in zip(own, file, strict=True)]
        table = {
            "embedding": pa.array(
                [[i + 1.0, -i - 1.0] if bad is None else BAD[bad] for i, (_, bad, _) in zip(own, file, strict=True)],
                pa.list_(pa.float32()),
            ),
            "event_time": pa.array(
                [None if h is None else START + timedelta(hours=h) for h, _, _ in file], pa.timestamp("us", "UTC")
            ),
            "number": pa.array(own, pa.int64()),
        }
        if corpus["ids"] is not None:
            table["id"] = pa.array(ids, pa.int64()).cast(corpus["ids"])
        options = {"row_group_size": corpus["group_rows"], "write_statistics": corpus["statistics"]}
        pq.write_table(pa.table(table), folder / f"{number}.parquet", **options)


def collect(source: ParquetSource, windows: Sequence[Window], **settings: Any) -> dict[int, dict[str, Any]]:
    """Everything a scan gives, by window."""
    found: dict[int, dict[str, Any]] = {k: {"rows": [], "ids": [], "segments": {}} for k in range(len(windows))}
    scan = source.scan(windows, **settings)
    for batch in scan:
        here = found[batch.window]
        assert len(batch.rows) == len(batch.ids) > 0
        assert batch.ids.null_count == 0
        assert batch.ids.type == pa.large_string()
        here["rows"] += batch.rows.tolist()
        here["ids"] += batch.ids.to_pylist()
        for name, values in batch.segments.items():
            here["segments"].setdefault(name, []).extend(values.to_pylist())
    found[-1] = {"quality": scan.quality}
    return found


@given(corpora())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_scan_gives_what_read_gives(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, corpus: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, corpus)
    windows = [window(*pair) for pair in corpus["windows"]]
    source = open_source(
        str(folder),
        id_column=None if corpus["ids"] is None else "id",
        segment_columns=["number"],
        filter=[["number", "not in", [100 * n + k for n in range(4) for k in range(5)]]]
        if corpus["filtered"]
        else None,
        max_bad_fraction=1.0,
    )
    cloud = source.read(windows, expect_dim=2)
    with monkeypatch.context() as patched:
        patched.setattr(scanning, "_BATCH_BYTES", 8 * corpus["buffer_rows"])
        found = collect(source, windows, expect_dim=2)
    assert found[-1]["quality"] == cloud.quality
    for k in range(len(windows)):
        part = cloud.window(k)
        numbers = part.segments["number"].to_pylist()
        assert found[k]["rows"] == part.embeddings.tolist()
        assert found[k]["segments"].get("number", []) == numbers
        own = [None] * len(part) if part.ids is None else part.ids.to_pylist()
        assert found[k]["ids"] == [
            f"{n // 100}.parquet:{n % 100}" if i is None else str(i) for n, i in zip(numbers, own, strict=True)
        ]


@pytest.fixture
def corpus(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> Path:
    """Three files of 200 hours each, the second of many row groups; every 20th row is zero."""
    for number, group_rows in enumerate((200, 7, 64)):
        values = vectors(200, 6, number)
        values[::20] = 0
        write(
            f"part={number}/a.parquet",
            values,
            times=[START + timedelta(hours=k % 500) for k in range(200 * number, 200 * number + 200)],
            group_rows=group_rows,
            id=[f"row-{200 * number + k}" for k in range(200)],
            family=pa.array([f"f{k % 3}" for k in range(200)]).dictionary_encode(),
        )
    return tmp_path


def test_a_scan_goes_by_file_and_row(corpus: Path) -> None:
    source = open_source(str(corpus), id_column="id", max_bad_fraction=1.0)
    ids = [name for batch in source.scan([window(0, 500)]) for name in batch.ids.to_pylist()]
    assert ids == [f"row-{k}" for k in range(600) if k % 20]
    files = [name.split("/")[0] for batch in open_source(str(corpus), max_bad_fraction=1.0).scan(WEEKS)
             for name in batch.ids.to_pylist()]  # fmt: skip
    assert files == sorted(files)


def test_columns_of_folders_and_dictionaries_come_along(corpus: Path) -> None:
    source = open_source(
        str(corpus), id_column="part", segment_columns=["family", "part"], cluster_column="id", max_bad_fraction=1.0
    )
    cloud = source.read(WEEKS)
    found = collect(source, WEEKS)
    for name, column in cloud.segments.items():
        assert [v for k in range(3) for v in found[k]["segments"][name]] == column.to_pylist()
    assert [v for k in range(3) for v in found[k]["ids"]] == [str(v) for v in cloud.segments["part"].to_pylist()]


def test_too_many_bad_rows_are_refused_at_the_end_as_by_read(corpus: Path) -> None:
    source = open_source(str(corpus), id_column="id", max_bad_fraction=0.04)
    with pytest.raises(DataError) as by_read:
        source.read(WEEKS)
    scan = source.scan(WEEKS)
    rows: list[int] = []
    with pytest.raises(DataError) as by_scan:
        rows.extend(len(batch.rows) for batch in scan)
    assert sum(rows) == 570
    assert str(by_scan.value) == str(by_read.value)
    with pytest.raises(ArgumentError, match="end"):
        _ = scan.quality


def test_quality_is_told_at_the_end_and_a_scan_runs_once(corpus: Path) -> None:
    source = open_source(str(corpus), max_bad_fraction=1.0)
    scan = source.scan(WEEKS)
    with pytest.raises(ArgumentError, match="end"):
        _ = scan.quality
    iterator = iter(scan)
    next(iterator)
    with pytest.raises(ArgumentError, match="end"):
        _ = scan.quality
    assert sum(1 for _ in iterator) > 0
    assert scan.quality == source.read(WEEKS).quality
    with pytest.raises(ArgumentError, match="once"):
        iter(scan)


def test_progress_adds_up_to_the_count(corpus: Path) -> None:
    steps: list[int] = []
    source = open_source(str(corpus), max_bad_fraction=1.0)
    for _ in source.scan(WEEKS[:2], progress=steps.append):
        pass
    assert sum(steps) == sum(source.count(WEEKS[:2])) > 0


def test_a_scan_of_no_windows_and_of_windows_without_rows(corpus: Path) -> None:
    source = open_source(str(corpus))
    for windows in ([], [window(-9, 0)]):
        scan = source.scan(windows)
        assert list(scan) == []
        assert scan.quality == source.read(windows).quality


def test_another_length_is_refused_before_the_first_row(corpus: Path) -> None:
    with pytest.raises(ReferenceMismatchError, match="6 dimensions, 7 are expected"):
        open_source(str(corpus)).scan(WEEKS, expect_dim=7)


def test_a_damaged_file_and_a_changed_one_stop_a_scan(corpus: Path, flip: Callable[..., None]) -> None:
    source = open_source(str(corpus), max_bad_fraction=1.0)
    source.count(WEEKS)
    path = corpus / "part=1" / "a.parquet"
    whole = path.read_bytes()
    flip(path, 0, [3])
    with pytest.raises(DataError, match=r"part=1/a.parquet, row group 3"):
        list(source.scan(WEEKS))
    path.write_bytes(whole)
    table = pq.ParquetFile(path).read()
    swapped = table.set_column(1, "event_time", pa.array([START] * 200, pa.timestamp("us", "UTC")))
    pq.write_table(swapped, path, row_group_size=7)
    with pytest.raises(DataError, match="changed while it was read"):
        list(source.scan(WEEKS))


def test_memory_is_a_few_batches_whatever_the_number_of_rows(write: Callable[..., Path]) -> None:
    """49 MB of vectors: neither a tensor nor Arrow's memory ever comes near it."""
    rows, dim = 32_000, 384
    values = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim)
    path = write("a.parquet", column.to_numpy(zero_copy_only=False)[:0], kind=column.type)
    times = pa.array(np.full(rows, int(START.timestamp() * 1e6)), pa.timestamp("us", "UTC"))
    table = pa.table({"embedding": column, "event_time": times})
    pq.write_table(table, path, row_group_size=8_000, use_dictionary=False, compression="none")
    del values, column, times, table
    before = pa.total_allocated_bytes()
    most = {"tensor": 0, "arrow": 0, "rows": 0}
    for batch in open_source(str(path)).scan(WEEKS):
        most["tensor"] = max(most["tensor"], batch.rows.untyped_storage().nbytes())
        most["arrow"] = max(most["arrow"], pa.total_allocated_bytes() - before)
        most["rows"] += len(batch.rows)
    assert most["rows"] == rows
    assert most["tensor"] <= 8 << 20
    assert most["arrow"] <= 12 << 20


# --- record batches


def stream(cloud_path: Path, rows: int) -> list[pa.RecordBatch]:
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(cloud_path.glob("*.parquet"))])
    return table.combine_chunks().to_batches(max_chunksize=rows)


def clean_all(batches: Sequence[pa.RecordBatch], **columns: Any) -> Any:
    cleaner = ArrowBatches(batches[0].schema, **columns)
    return [cleaner.clean(batch, f"batch {k}") for k, batch in enumerate(batches)]


@given(corpora(), st.integers(1, 30))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_record_batches_are_cleaned_as_files_are(
    tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, Any], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, corpus)
    batches = stream(folder, rows)
    if not batches:
        return
    windows = [window(-2, 40)]
    ids = None if corpus["ids"] is None else "id"
    source = open_source(str(folder), id_column=ids, segment_columns=["number"], max_bad_fraction=1.0)
    try:
        cloud: Cloud = source.read(windows, expect_dim=2)
        no_time = source.extent().no_time
    except DataError:  # no row has a time
        cloud, no_time = open_source(str(folder), max_bad_fraction=1.0).read([], expect_dim=2), -1
    cleaned = clean_all(batches, id_column=ids, segment_columns=["number"], expect_dim=2)
    assert torch.equal(torch.cat([one.rows for one in cleaned]), cloud.embeddings)
    assert sum(one.rows_read for one in cleaned) == sum(map(len, corpus["files"]))
    assert all(one.rows_read == len(one.rows) + one.bad.total + one.no_time for one in cleaned)
    if no_time >= 0:
        (quality,) = cloud.quality
        numbers = [n for one in cleaned for n in one.segments["number"].to_pylist()]
        assert numbers == cloud.segments["number"].to_pylist()
        assert sum(one.no_time for one in cleaned) == no_time
        assert {c: sum(one.bad.counts[c] for one in cleaned) for c in quality.dropped} == quality.dropped
        micros = np.concatenate([one.micros for one in cleaned])
        hours = {100 * f + k: h for f, file in enumerate(corpus["files"]) for k, (h, _, _) in enumerate(file)}
        assert micros.tolist() == [int(START.timestamp() * 1e6) + hours[n] * 3_600_000_000 for n in numbers]
        assert (WindowIndex(windows).codes(micros) == 0).all()
        names = [name for one in cleaned for name in one.ids.to_pylist()]
        if cloud.ids is not None:
            own = cloud.ids.to_pylist()
            assert [n for n in names if not n.startswith("batch")] == [str(i) for i in own if i is not None]
        assert len(names) == len(set(names)) == len(numbers)


def batch_of(vectors: Any, kind: Any = None, **columns: Any) -> pa.RecordBatch:
    embedding = pa.array(vectors, kind or pa.list_(pa.float32()))
    times = pa.array([START] * len(vectors), pa.timestamp("us", "UTC"))
    return pa.RecordBatch.from_pydict({"embedding": embedding, "event_time": times} | columns)


def test_rows_without_ids_are_named_by_their_place_in_the_batch() -> None:
    batch = batch_of([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [5.0, 6.0]], id=pa.array(["a", None, None, "d"]))
    (with_ids,) = clean_all([batch], id_column="id")
    assert with_ids.ids.to_pylist() == ["a", "batch 0:2", "d"]
    assert with_ids.bad.examples == {"zero": ["batch 0:1"]}
    (without,) = clean_all([batch])
    assert without.ids.to_pylist() == ["batch 0:0", "batch 0:2", "batch 0:3"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([7, None], pa.uint8()), ["7", "b:1"]),
        (pa.array([b"\xff\x00", b"ab"]), ["ff00", "6162"]),
        (pa.array([b"ab", None], pa.binary(2)), ["6162", "b:1"]),
        (pa.array([b"0123456789abcdef", None], pa.uuid()), ["30313233-3435-3637-3839-616263646566", "b:1"]),
        (pa.array(["x", None]).dictionary_encode(), ["x", "b:1"]),
        (pa.array([START, None], pa.timestamp("us")), ["2026-01-05 00:00:00.000000", "b:1"]),
        (pa.array([True, None]), ["true", "b:1"]),
    ],
)
def test_ids_of_any_type_become_text(values: pa.Array, names: list[str]) -> None:
    batch = batch_of([[1.0, 2.0], [3.0, 4.0]], id=values)
    assert ArrowBatches(batch.schema, id_column="id").clean(batch, "b").ids.to_pylist() == names


def test_the_length_of_vectors_is_fixed_by_the_first_batch_that_has_any() -> None:
    batches = [batch_of([None, None]), batch_of([[1.0, 2.0], [3.0, 4.0], [1.0]]), batch_of([[1.0], [2.0], [3.0, 4.0]])]
    cleaner = ArrowBatches(batches[0].schema)
    assert cleaner.dim is None
    counts = [cleaner.clean(batch, "b").bad.counts for batch in batches]
    assert cleaner.dim == 2
    assert counts == [{"null": 2}, {"ragged": 1}, {"ragged": 2}]


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"embedding_column": "vector"}, "source.embedding_column"),
        ({"embedding_column": "text"}, "source.embedding_column"),
        ({"time_column": "when"}, "source.time_column"),
        ({"time_column": "number"}, "source.time_column"),
        ({"id_column": "key"}, "source.id_column"),
        ({"segment_columns": ["lang"]}, "source.segment_columns"),
        ({"id_column": "twice"}, "source.id_column"),
    ],
)
def test_a_schema_that_does_not_fit_is_a_config_error(columns: dict[str, Any], field: str) -> None:
    schema = batch_of([], number=pa.array([], pa.int64()), text=pa.array([], pa.list_(pa.string()))).schema
    schema = schema.append(pa.field("twice", pa.string())).append(pa.field("twice", pa.string()))
    with pytest.raises(ConfigError) as caught:
        ArrowBatches(schema, **columns)
    assert f"field: {field}" in str(caught.value)


def test_expect_dim_is_held_against_the_type() -> None:
    batch = batch_of([[1.0, 2.0]], pa.list_(pa.float16(), 2))
    assert ArrowBatches(batch.schema, expect_dim=2).dim == 2
    with pytest.raises(ReferenceMismatchError, match="2 dimensions, 3 are expected"):
        ArrowBatches(batch.schema, expect_dim=3)


def test_a_batch_that_cannot_be_read_is_a_data_error_that_names_its_origin() -> None:
    sound = batch_of([[1.0, 2.0], [3.0, 4.0]])
    cleaner = ArrowBatches(sound.schema)
    other = batch_of([[1.0, 2.0]], pa.list_(pa.float64()))
    with pytest.raises(DataError, match=r"another schema(.|\n)*batch 7"):
        cleaner.clean(other, "batch 7")
    offsets = np.array([0, 2, 4], np.int32)
    broken = pa.Array.from_buffers(
        pa.list_(pa.float32()), 2, [None, pa.py_buffer(offsets)], children=[pa.array([1, 2, 3, 4], pa.float32())]
    )
    wild = pa.RecordBatch.from_arrays([broken, sound.column(1)], schema=sound.schema)
    offsets[1] = 4_000_000  # as a damaged message has it
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*batch 8"):
        cleaner.clean(wild, "batch 8")
    late = pa.RecordBatch.from_pydict({"embedding": sound.column(0), "event_time": ["2026-01-05", "yesterday"]})
    with pytest.raises(DataError, match=r"not ISO-8601(.|\n)*batch 9"):
        ArrowBatches(late.schema).clean(late, "batch 9")
