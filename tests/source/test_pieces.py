"""A source in pieces: the cut depends on the data alone, and what a piece needs to be read goes to another process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forms import FORMS
from pyarrow import fs

from gpudrift.errors import DataError, GpudriftError
from gpudrift.records import Window
from gpudrift.source import open_source, stores
from gpudrift.source.steady import Patience, Store

START = datetime(2026, 1, 5, tzinfo=UTC)
YEAR = [Window(START, START + timedelta(days=365), "all")]
ROWS: list[Any] = [[1, 2, 3], None, [4, 5, 6], [7, 8], [1, None, 3], [9, 9, 9], [0, 0, 0], [1, 1, 2]]


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol=5))


@pytest.mark.parametrize("name", FORMS)
def test_every_layout_reads_alike_in_another_process(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    columns = form.make(form.fit(ROWS, 3), 3)
    columns["event_time"] = pa.array([START] * len(ROWS), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    source = open_source(str(tmp_path / "a.parquet"), max_bad_fraction=1.0, **form.settings)
    cut = sent(sent(source.cut(YEAR, 1, expect_dim=3)))
    assert len(cut.pieces) == 3
    out = torch.empty(cut.offsets[-1], 3)
    results = []
    for piece in cut.pieces:
        rows, result = cut.reading.read(piece)
        first = piece.places[0][0]
        out[first : first + len(rows)] = rows
        results.append(result)
        assert piece.parts[0].file.layout.describe() == source.cut(YEAR, 1).pieces[0].parts[0].file.layout.describe()
    cloud, wanted = source.cloud_of(cut, YEAR, out, results), source.read(YEAR)
    assert torch.equal(cloud.embeddings, wanted.embeddings)
    assert (cloud.quality, cloud.offsets) == (wanted.quality, wanted.offsets)


@pytest.mark.parametrize("most", [1, 40, 100, 10_000])
def test_pieces_follow_row_groups_and_hold_what_they_may(
    write: Callable[..., Path], vectors: Any, tmp_path: Path, most: int
) -> None:
    for number, group_rows in enumerate((25, 4, 9)):
        write(f"{number}.parquet", vectors(25, 4, number), group_rows=group_rows)
    cuts = [open_source(str(tmp_path), threads=threads).cut(YEAR, 16 * most) for threads in (1, 5)]
    groups = [
        [[(part.file.path, item.group.index, item.group.rows) for part in piece.parts for item in part.groups]
         for piece in cut.pieces]
        for cut in cuts
    ]  # fmt: skip
    assert groups[0] == groups[1]
    sizes = [sum(rows for *_, rows in piece) for piece in groups[0]]
    assert all(size <= most or len(piece) == 1 for size, piece in zip(sizes, groups[0], strict=True))
    # greedy: the first row group of the next piece would have been too many
    assert all(size + after[0][2] > most for size, (_, after) in zip(sizes, pairwise(groups[0]), strict=False))
    flat = [item for piece in groups[0] for item in piece]
    assert [(path.rpartition("/")[2], index) for path, index, _ in flat] == [
        ("0.parquet", 0), *(("1.parquet", k) for k in range(7)), *(("2.parquet", k) for k in range(3))
    ]  # fmt: skip
    assert sum(piece.rows for piece in cuts[0].pieces) == sum(piece.decoded for piece in cuts[0].pieces) == 75


def test_a_mark_tells_files_of_one_size_apart(write: Callable[..., Path], vectors: Any) -> None:
    values = vectors(50, 4)
    path = write("a.parquet", values, options={"compression": "none", "use_dictionary": False})
    reading = open_source(str(path)).cut(YEAR, 1).reading
    size, mark = path.stat().st_size, reading.mark(str(path))
    assert reading.mark(str(path)) == mark
    write("a.parquet", values + 1, options={"compression": "none", "use_dictionary": False})
    assert path.stat().st_size == size
    assert reading.mark(str(path)) != mark
    path.write_bytes(b"short")
    assert reading.mark(str(path)) is not None
    path.unlink()
    assert reading.mark(str(path)) is None


def test_a_store_knows_the_planned_version_in_another_process(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    """An object that was replaced since it was planned is not read there either, although its rows are as many."""
    inner = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = Store(inner, Patience(attempts=1))
    monkeypatch.setattr("gpudrift.source.opening.find_files", finder(store))
    write("a.parquet", vectors(50, 4))
    cut = sent(open_source("any").cut(YEAR, 1))
    assert cut.reading.filesystem is not store
    (piece,) = cut.pieces
    assert list(piece.versions) == ["a.parquet"]
    rows, _ = cut.reading.read(piece)
    assert rows.tolist() == vectors(50, 4).tolist()
    write("a.parquet", vectors(50, 4, 1), options={"compression": "zstd"})
    with pytest.raises(DataError, match="the file has changed while it was read"):
        sent(cut).reading.read(piece)


def finder(store: Store) -> Any:
    from gpudrift.source.discovery import FoundFile

    return lambda _: (store, (FoundFile("a.parquet", {}),))


def test_no_secret_of_the_environment_travels_with_an_s3_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHISNODE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETOFTHISNODE")
    store, _ = stores.open_store("s3://bucket/path?region=eu-west-1&endpoint_override=localhost:1&scheme=http")
    content = pickle.dumps(store, protocol=5)
    assert b"OFTHISNODE" not in content
    assert b"eu-west-1" in content
    again = pickle.loads(content)
    assert again.version("bucket/path") is None
    again.expect("bucket/path", ("1", "etag=2"))
    assert again.version("bucket/path") == ("1", "etag=2")
    assert store.version("bucket/path") is None


def test_errors_arrive_whole() -> None:
    error = DataError("said", where="a.parquet", field="column", value=[1], allowed=["a", "b"], hint="do that")
    back = sent(error)
    assert (type(back), str(back), back.__dict__) == (DataError, str(error), error.__dict__)
    assert isinstance(back, GpudriftError)
