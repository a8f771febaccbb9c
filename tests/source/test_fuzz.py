"""Any column type and any damage: the vectors that were written, or one error of ours that names the file.

``make fuzz`` searches for new examples. Checksums cover the pages, not their headers and not the footer: a flipped bit
in a header may end in other numbers, one in the footer in the end of the process by pyarrow, so it is not tried.
"""

from __future__ import annotations

import math
import tempfile
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forms import FORMS, Form
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpudrift.errors import GpudriftError
from gpudrift.records import Cloud
from gpudrift.source import open_source
from gpudrift.source.layouts import ENCODINGS, POOLINGS
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5)


def read(path: Path, dim: int | None = None, **told: Any) -> Cloud:
    source = open_source(str(path), id_column="id", threads=1, max_bad_fraction=1.0, **told)
    extent = source.extent()
    return source.read(covering(parse_period("1000d"), extent.first, extent.last + timedelta(hours=1)), expect_dim=dim)


def save(path: Path, columns: dict[str, pa.Array], rows: int, **options: Any) -> None:
    times = [START + timedelta(hours=k) for k in range(rows)]
    table = pa.table({**columns, "id": [f"r{k}" for k in range(rows)], "event_time": times})
    pq.write_table(table, path, write_page_checksum=True, **options)


def refused(error: GpudriftError, codes: tuple[int, ...]) -> None:
    assert error.exit_code in codes, error
    assert "a.parquet" in str(error)


# --- any type

FLOATS = [pa.float16(), pa.float32(), pa.float64()]
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4), pa.binary(6)]  # pyarrow aborts on binary(0)
OTHERS = [
    *(pa.bool_(), pa.null(), pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.time64("us")),
    *(pa.decimal128(5, 1), pa.uuid(), pa.fixed_shape_tensor(pa.float32(), (2, 2)), pa.map_(pa.string(), pa.float32())),
]
LEAVES = st.sampled_from([*FLOATS, *FLOATS, *INTEGERS, *TEXTS, *BYTES, *OTHERS])


def _lists(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    makers = st.sampled_from([pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
    return st.builds(lambda make, kind: make(kind), makers, inner) | st.builds(pa.list_, inner, st.integers(1, 3))


def _structs(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.builds(lambda kind: pa.struct({"vector": kind, "n": pa.int8()}), inner)


NUMBERS = _lists(st.sampled_from([*FLOATS, *INTEGERS]))
TYPES = st.one_of(
    NUMBERS,
    NUMBERS,
    _lists(NUMBERS),
    _structs(NUMBERS),
    st.sampled_from([*TEXTS, *BYTES]),
    st.recursive(LEAVES, lambda inner: _lists(inner) | _structs(inner), max_leaves=3),
)


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    t = pa.types
    if t.is_dictionary(kind):
        return values_of(kind.value_type)
    if isinstance(kind, pa.FixedShapeTensorType):
        return values_of(kind.storage_type)
    if t.is_map(kind):
        return st.lists(st.tuples(st.sampled_from("ab"), st.floats(width=16)), max_size=2)
    if t.is_fixed_size_list(kind):
        item = values_of(kind.value_type)
        return st.none() | st.lists(item, min_size=kind.list_size, max_size=kind.list_size)
    if any(is_it(kind) for is_it in (t.is_list, t.is_large_list, t.is_list_view, t.is_large_list_view)):
        item = values_of(kind.value_type)
        return st.one_of(
            st.none(), st.lists(item, max_size=4), *[st.lists(item, min_size=n, max_size=n) for n in (1, 2, 2)]
        )
    if t.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    return _scalars(kind)


def _scalars(kind: pa.DataType) -> st.SearchStrategy[Any]:
    t = pa.types
    if t.is_floating(kind):
        numbers = st.floats(width=16).map(np.float16) if t.is_float16(kind) else st.floats(width=32)
        return st.none() | numbers | numbers
    if t.is_integer(kind):
        low = 0 if t.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
        return st.none() | st.integers(low, low + 2**kind.bit_width - 1)
    if t.is_fixed_size_binary(kind):
        return st.none() | st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if str(kind).endswith("binary") or t.is_binary_view(kind):
        return st.none() | st.binary(max_size=9)
    if "string" in str(kind):
        return st.none() | st.text("[],1.e-n ", max_size=6) | st.lists(st.floats(width=32), max_size=4).map(str)
    simple: dict[Any, Any] = {
        pa.bool_(): True,
        pa.date32(): date(2026, 1, 1),
        pa.timestamp("us"): START,
        pa.duration("s"): timedelta(seconds=5),
        pa.time64("us"): START.time(),
        pa.decimal128(5, 1): Decimal("1.5"),
        pa.uuid(): bytes(range(16)),
    }
    return st.sampled_from([None, simple.get(kind)])


def likely_encodings(kind: pa.DataType) -> st.SearchStrategy[str | None]:
    leaf = kind
    while getattr(leaf, "value_type", None) is not None and not isinstance(leaf, pa.MapType):
        leaf = leaf.value_type
    if leaf in INTEGERS:
        return st.sampled_from([None, *[str(leaf)] * 6, "bits", "bits_int8", "float16"])
    return st.sampled_from([None, *ENCODINGS] if leaf in BYTES else [*[None] * 10, "float32", "bits"])


@np.errstate(invalid="ignore")
def vector_of(value: Any, kind: pa.DataType, encoding: str | None, pooling: str | None) -> list[float] | None:
    """What a row means, by a plain reading of the rules; None: no vector."""
    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(value, str):
        text = value.strip()
        try:
            return (
                None if text[:1] + text[-1:] != "[]" else [float(part) for part in text[1:-1].split(",") if text[1:-1]]
            )
        except ValueError:
            return None
    if isinstance(value, bytes):
        return _from_bytes(value, encoding)
    flat = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    if any(isinstance(item, list) or item is None for item in flat):
        if None in flat or any(None in item for item in flat):
            return None
        means = [vector_of(item, kind.value_type, encoding, None) or [] for item in flat]
        if len({len(item) for item in means}) > 1:
            return []
        return np.mean(means, axis=0).tolist() if pooling == "mean" else [v for item in means for v in item]
    inner = getattr(kind, "value_type", None)
    if encoding is not None and inner is not None and encoding != str(inner):
        return _from_bytes(bytes(v % 256 for v in flat), encoding, offset=encoding == "bits_int8")
    return [float(v) for v in flat]


@np.errstate(invalid="ignore")  # signalling NaN
def _from_bytes(value: bytes, encoding: str | None, offset: bool = False) -> list[float]:
    stored = np.frombuffer(value, np.uint8)
    if encoding in ("bits", "bits_int8"):
        return np.unpackbits(stored ^ 128 if offset else stored).astype(float).tolist()
    if encoding == "bfloat16":
        if len(value) % 2:
            return []
        return (np.frombuffer(value, "<u2").astype("<u4") << 16).view("<f4").astype(float).tolist()
    name = str(encoding)
    dtype = np.dtype(name.removesuffix("_be")).newbyteorder(">" if name.endswith("_be") else "<")
    return [] if len(value) % dtype.itemsize else np.frombuffer(value, dtype).astype(float).tolist()


def usable(vectors: list[list[float] | None], dim: int) -> dict[int, list[float]]:
    """The rows that must be read, as float32."""
    found = {}
    for k, vector in enumerate(vectors):
        if vector is not None and len(vector) == dim:
            with np.errstate(over="ignore", invalid="ignore"):
                single = np.array(vector, np.float64).astype(np.float32)
            if np.isfinite(single).all() and (single != 0).any():
                found[k] = single.tolist()
    return found


@given(st.data())
@settings(max_examples=120)
def test_any_type_is_read_right_or_refused_with_the_file_named(data: st.DataObject) -> None:
    kind = data.draw(TYPES)
    values = data.draw(st.lists(values_of(kind), min_size=1, max_size=6))
    path = "embedding.vector" if pa.types.is_struct(kind) else "embedding"
    told = {
        "encoding": data.draw(likely_encodings(kind)),
        "pooling": data.draw(st.sampled_from([*[None] * 10, *POOLINGS])),
    }
    try:
        column = pa.array(values, kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)
    except pa.ArrowNotImplementedError:
        assume(False)  # extensions in lists
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.ExtensionArray.from_storage(kind, column)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.parquet"
        try:
            save(file, {"embedding": column}, len(values), row_group_size=data.draw(st.integers(1, 6)))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            assume(False)  # no Parquet for it
        try:
            cloud = read(file, embedding_column=path, **told)
        except GpudriftError as error:
            refused(error, (1, 30))
            if "cannot be read:" in error.message:  # a damaged file, it says
                with pytest.raises(pa.ArrowException):
                    pq.read_table(file).validate(full=True)
            return
    rows = column.to_pylist()
    if path != "embedding":
        kind, rows = kind.field("vector").type, [None if row is None else row["vector"] for row in rows]
    if pa.types.is_struct(kind):
        raise AssertionError("a struct is no vector")
    found = usable([vector_of(row, kind, told["encoding"], told["pooling"]) for row in rows], cloud.dim)
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [f"r{k}" for k in found]
    exact = told["pooling"] != "mean"
    assert np.allclose(cloud.embeddings.numpy(), list(found.values()) or np.zeros((0, cloud.dim)),
                       rtol=0 if exact else 1e-6, atol=0)  # fmt: skip


# --- any damage

GOOD = [[1, 2, 3], None, [4, 5, 6], [7, 8, 9], [1, 1, 2], [3, 3, 5]] * 4


def damaged_file(path: Path, form: Form, options: dict[str, Any]) -> bytearray:
    save(path, form.make(GOOD, 3), len(GOOD), row_group_size=8, **options)
    return bytearray(path.read_bytes())


def outcome(path: Path, form: Form) -> bool:
    """Whether the rows that were written are read; False: an error that names the file."""
    try:
        cloud = read(path, **form.settings)
    except GpudriftError as error:
        refused(error, (30,))
        return False
    whole = [k for k, row in enumerate(GOOD) if row is not None]
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [f"r{k}" for k in whole]
    assert cloud.embeddings.tolist() == [GOOD[k] for k in whole]
    return True


def page_bytes(path: Path) -> tuple[list[int], list[int]]:
    """Positions of the bytes of page headers and of pages."""
    content, metadata = path.read_bytes(), pq.ParquetFile(path).metadata
    headers: list[int] = []
    pages: list[int] = []
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            stop = start + chunk.total_compressed_size
            while start < stop:
                end, size = _page_header(content, start)
                headers += range(start, end)
                pages += range(end, end + size)
                start = end + size
    return headers, pages


def _page_header(content: bytes, at: int) -> tuple[int, int]:
    """Where a page header (Thrift's compact protocol) ends, and the size of its page: field 3 of the outer struct."""
    sizes: list[int] = []

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (content[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if content[at - 1] < 128:
                return value, at

    def struct(at: int, depth: int) -> int:
        number = 0
        while content[at]:
            kind, step = content[at] & 15, content[at] >> 4
            number, at = number + step, at + 1
            if kind in (4, 5, 6):
                value, at = varint(at)
                if depth == 0 and number == 3:
                    sizes.append(value >> 1)
            elif kind == 8:
                length, at = varint(at)
                at += length
            elif kind == 12:
                at = struct(at, depth + 1)
        return at + 1

    return struct(at, 0), sizes[0]


OPTIONS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([16, 1 << 20]),
        "store_schema": st.booleans(),
    }
)


def _without_schema(form: Form) -> bool:
    """Whether the layout survives the loss of the Arrow schema as far as being read goes."""
    return form.layout in ("list", "fixed_size_list", "wide", "spark_vector", "text", "list_view")


@given(st.sampled_from(sorted(FORMS)), OPTIONS, st.data())
@settings(max_examples=120)
def test_flipped_bits_in_pages_are_found(name: str, options: dict[str, Any], data: st.DataObject) -> None:
    """Or did no harm: pages of columns that need not be read, such as times that the footer tells."""
    form = FORMS[name]
    options["store_schema"] |= not _without_schema(form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        content = damaged_file(path, form, options)
        _, pages = page_bytes(path)
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.sampled_from(pages))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content))
        outcome(path, form)


@given(st.sampled_from(sorted(FORMS)), OPTIONS, st.data())
@settings(max_examples=80)
def test_flipped_bits_in_page_headers_end_in_no_other_error(
    name: str, options: dict[str, Any], data: st.DataObject
) -> None:
    form = FORMS[name]
    options["store_schema"] |= not _without_schema(form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        content = damaged_file(path, form, options)
        headers, _ = page_bytes(path)
        content[data.draw(st.sampled_from(headers))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content))
        try:
            cloud = read(path, **form.settings)
        except GpudriftError as error:
            refused(error, (30,))
            return
        assert len(cloud) <= len(GOOD)


@given(st.sampled_from(sorted(FORMS)), OPTIONS, st.data())
@settings(max_examples=60)
def test_truncated_and_overgrown_files(name: str, options: dict[str, Any], data: st.DataObject) -> None:
    form = FORMS[name]
    options["store_schema"] |= not _without_schema(form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        content = bytes(damaged_file(path, form, options))
        start = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["cut the end", "cut the start", "cut the middle", "append", "repeat"]))
        length = data.draw(st.integers(1, 48))
        made = {
            "cut the end": content[:start],
            "cut the start": content[start + 1 :],
            "cut the middle": content[:start] + content[start + length :],
            "append": content + data.draw(st.binary(min_size=1, max_size=20)),
            "repeat": content[:start] + content[start : start + length] + content[start:],
        }
        path.write_bytes(made[change])
        outcome(path, form)


def test_the_oracle_knows_text_bytes_and_lists() -> None:
    assert vector_of("[1, -2e1]", pa.string(), None, None) == [1.0, -20.0]
    assert vector_of("[]", pa.string(), None, None) == []
    assert vector_of("1,2", pa.string(), None, None) is None
    assert vector_of(b"\x00\x00\x80\x3f", pa.binary(), "float32", None) == [1.0]
    assert vector_of([0, -128], pa.list_(pa.int8()), "bits_int8", None)[:9] == [1.0] + [0.0] * 8  # type: ignore[index]
    assert vector_of([[1.0, 2.0], [3.0, 5.0]], pa.list_(pa.list_(pa.float32())), None, "mean") == [2.0, 3.5]
    assert usable([[math.nan, 1.0], [1.0, 2.0], None, [0.0, 0.0], [1e39, 1.0]], 2) == {1: [1.0, 2.0]}
