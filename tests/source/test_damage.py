"""Every way a file can be wrong ends in one DataError that names the file, and the column and row group where known."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudrift.errors import DataError
from gpudrift.source import open_source
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "0 bytes": lambda _: b"",
    "7 bytes": lambda content: content[:7],
    "truncated": lambda content: content[: len(content) // 2],
    "tail cut off": lambda content: content[:-1],
    "not Parquet": lambda _: b"id,embedding\n1,[0.5]\n" * 100,
    "footer length": lambda content: content[:-8] + (2**31 - 1).to_bytes(4, "little") + content[-4:],
    "footer bytes": lambda content: content[:-200] + bytes(150) + content[-50:],
}


def read(path: Path, **settings: Any) -> Any:
    return open_source(str(path), **settings).read(WEEKS)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("beside", ["alone", "before a good file", "after a good file"])
def test_damaged_files(write: Callable[..., Path], vectors: Any, tmp_path: Path, damage: str, beside: str) -> None:
    path = write("m.parquet", vectors(50))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if beside != "alone":
        write("z.parquet" if beside.startswith("before") else "a.parquet", vectors(50))
    with pytest.raises(DataError, match=r"(?s)cannot be read.*m\.parquet.*what to do") as caught:
        open_source(str(tmp_path))
    assert caught.value.exit_code == 30


def test_of_several_damaged_files_the_first_is_named(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(f"{name}.parquet", vectors(5))
    for name in ("b", "c"):
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    for _ in range(5):
        with pytest.raises(DataError, match=r"b\.parquet"):
            open_source(str(tmp_path), threads=3)


@pytest.mark.parametrize(("column", "name"), [(0, "embedding"), (1, "event_time"), (2, "id")])
def test_a_flipped_bit_is_found_by_the_page_checksum(
    write: Callable[..., Path], vectors: Any, flip: Callable[..., None], column: int, name: str
) -> None:
    """Without the check pyarrow reads it without a word."""
    options = {"compression": "none", "use_dictionary": False}
    path = write("a.parquet", vectors(60), group_rows=20, options=options, id=[f"r{k}" for k in range(60)])
    flip(path, column, [1])
    assert len(pq.read_table(path)) == 60
    window = covering(parse_period("1d"), START, START + timedelta(days=3))  # cuts row groups: their times are read
    with pytest.raises(DataError) as caught:
        open_source(str(path), id_column="id", threads=1).read(window)
    assert f"{path}, row group 1" in str(caught.value)
    assert f"field: {name}" in str(caught.value)


def test_a_damaged_compressed_page(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", vectors(500, 16), options={"compression": "zstd"})
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"(?s)a\.parquet, row group 0.*field: embedding"):
        read(path)


def test_an_encrypted_file(vectors: Any, tmp_path: Path) -> None:
    class PlainKeys(pe.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return key

    factory = pe.CryptoFactory(lambda _: PlainKeys())
    properties = factory.file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(footer_key="k", uniform_encryption=True)
    )
    table = pa.table({"embedding": pa.array(vectors(3).tolist(), pa.list_(pa.float32(), 4)), "event_time": [START] * 3})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"(?s)cannot be read.*a\.parquet"):
        open_source(str(tmp_path))


@given(st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_ends_in_another_error(write: Callable[..., Path], vectors: Any, data: st.DataObject) -> None:
    """Bytes overwritten anywhere before the footer: the rows are read (a header may change and mean the same), or there
    is a DataError. Some damaged footers end pyarrow itself (std::terminate in RowGroupMetaData.column)."""
    path = write(
        "a.parquet", vectors(40, 3), group_rows=20, id=[f"r{k}" for k in range(40)], metadata={"encoder_id": "m"}
    )
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, footer - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        source = open_source(str(path), id_column="id", filter=[["id", "!=", "r3"]], threads=1, max_bad_fraction=0.5)
        source.extent()
        cloud = source.read(WEEKS)
        outcome = f"{len(cloud)} rows"
    except DataError as error:
        outcome = str(error)
    assert re.search(r"^\d+ rows$|a\.parquet|event time|field: embedding", outcome)


# --- files that do not fit together


def test_mixed_fixed_sizes_name_both_files_and_sizes(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(2, 4))
    write("b.parquet", vectors(2, 5))
    with pytest.raises(DataError, match=r"(?s)5 dimensions here, 4 in .*a\.parquet.*in: .*b\.parquet.*embedding"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64(), 4), pa.list_(pa.float16(), 4), pa.list_(pa.float32()), pa.large_list(pa.float32())]
)
def test_a_later_file_with_another_layout(write: Callable[..., Path], vectors: Any, tmp_path: Path, kind: Any) -> None:
    """pyarrow casts to the first file's type: 1e300 as float32 becomes inf."""
    write("a.parquet", vectors(2))
    write("b.parquet", vectors(2).astype(np.float16) if "half" in str(kind) else vectors(2), kind=kind)
    with pytest.raises(DataError, match=r"(?s)disagree.*fixed_size_list<float>\[4\] in .*a\.parquet.*b\.parquet"):
        open_source(str(tmp_path))


def test_a_later_file_with_a_layout_not_read(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(2))
    write("b.parquet", [[1, 2, 3, 4]], kind=pa.list_(pa.int8(), 4))
    with pytest.raises(DataError, match=r"(?s)does not fit the first one.*int8.*b\.parquet"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("missing", ["embedding", "event_time", "id", "user", "lang", "tokens"])
def test_a_column_missing_in_a_later_file(
    write: Callable[..., Path], vectors: Any, tmp_path: Path, missing: str
) -> None:
    """pyarrow fills it with nulls."""
    columns = {"id": ["x", "y"], "user": [1, 2], "lang": ["en", "de"], "tokens": [5, 6]}
    write("a.parquet", vectors(2), **columns)
    path = write("b.parquet", vectors(2), **columns)
    pq.write_table(pq.read_table(path).drop_columns([missing]), path)
    with pytest.raises(DataError, match=rf"(?s)does not fit the first one.*no column '{missing}'.*b\.parquet"):
        open_source(
            str(tmp_path), id_column="id", cluster_column="user", segment_columns=["lang"], filter=[["tokens", ">", 1]]
        )


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("event_time", pa.array(["2026-01-05", "2026-01-06"])),
        ("event_time", pa.array([0, 1], pa.date32())),
        ("event_time", pa.array([1, 2])),
        ("id", pa.array([1, 2])),
        ("lang", pa.nulls(2)),
        ("tokens", pa.array(["5", "6"])),
        ("tokens", pa.array([5.0, 6.0])),
    ],
)
def test_a_column_of_another_type_in_a_later_file(
    write: Callable[..., Path], vectors: Any, tmp_path: Path, name: str, column: pa.Array
) -> None:
    columns = {"id": ["x", "y"], "lang": ["en", "de"], "tokens": [5, 6]}
    write("a.parquet", vectors(2), **columns)
    path = write("b.parquet", vectors(2), **columns)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)
    with pytest.raises(
        DataError, match=rf"(?s)(disagree|does not fit).*{re.escape(str(column.type))}.*b\.parquet"
    ) as caught:
        open_source(str(tmp_path), id_column="id", segment_columns=["lang"], filter=[["tokens", ">", 1]])
    assert "a.parquet" in str(caught.value)


def test_text_of_any_width_is_one_type(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(1), id=pa.array(["x"]))
    write("b.parquet", vectors(1), id=pa.array(["y"], pa.large_string()))
    write("c.parquet", vectors(1), id=pa.array(["z"]).dictionary_encode())
    cloud = open_source(str(tmp_path), id_column="id").read(WEEKS)
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == ["x", "y", "z"]


def test_a_folder_key_in_one_file_and_a_column_in_another(
    write: Callable[..., Path], vectors: Any, tmp_path: Path
) -> None:
    write("a.parquet", vectors(1), lang=["en"])
    write("lang=de/b.parquet", vectors(1))
    with pytest.raises(DataError, match=r"(?s)'lang' is a folder key here, string in .*a\.parquet.*b\.parquet"):
        open_source(str(tmp_path), segment_columns=["lang"])


def test_a_column_name_used_twice(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> None:
    write("a.parquet", vectors(1), id=["x"])
    path = write("b.parquet", vectors(1), id=["y"])
    table = pq.read_table(path)
    pq.write_table(table.append_column("id", table["id"]), path)
    with pytest.raises(DataError, match=r"(?s)more than one column.*b\.parquet"):
        open_source(str(tmp_path), id_column="id")


# --- files that change while the job runs


def test_a_file_that_is_gone_before_it_is_read(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", vectors(5))
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet"):
        source.read(WEEKS)


@pytest.mark.parametrize("rows", [30, 31, 29, 60, 20])
@pytest.mark.parametrize("hour", [0, 90])
def test_a_file_rewritten_between_counting_and_reading(
    write: Callable[..., Path], vectors: Any, rows: int, hour: int
) -> None:
    path = write("a.parquet", vectors(30), group_rows=10)
    days = covering(parse_period("day"), START, START + timedelta(days=9))
    source = open_source(str(path))
    source.count(days)
    if (rows, hour) == (30, 0):
        write("a.parquet", expected := vectors(30, seed=1), group_rows=10)
        assert np.array_equal(source.read(days).embeddings.numpy(), expected)
        return
    times = [START + timedelta(hours=hour + k) for k in range(rows)]
    write("a.parquet", vectors(rows), times=times, group_rows=rows)
    with pytest.raises(DataError, match=r"(?s)(has changed|cannot be read).*a\.parquet"):
        source.read(days)


def test_a_file_rewritten_with_fewer_rows_in_as_many_row_groups(write: Callable[..., Path], vectors: Any) -> None:
    days = covering(parse_period("day"), START, START + timedelta(days=9))
    source = open_source(str(write("a.parquet", vectors(30), group_rows=10)))
    source.count(days)
    write("a.parquet", vectors(29), group_rows=10)
    with pytest.raises(DataError, match=r"(?s)has changed.*a\.parquet"):
        source.read(days)
