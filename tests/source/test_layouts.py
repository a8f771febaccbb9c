"""Every layout gives the values that were written; rows without a whole vector are told apart, never mixed up."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forms import FORMS, SPARK, Form
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.config import inputs
from gpudrift.config.inputs import SourceConfig
from gpudrift.errors import ConfigError, DataError, GpudriftError, ReferenceMismatchError
from gpudrift.records import Cloud
from gpudrift.source import open_source
from gpudrift.source.layouts import ENCODINGS, LAYOUTS, POOLINGS, Encoding, layout_of
from gpudrift.windows import covering, parse_period

DIM = 3
ROWS = st.lists(
    st.one_of(
        st.none(),
        st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=DIM, max_size=DIM),
        st.lists(st.integers(1, 9), max_size=5),
    ),
    max_size=12,
)


def read_one(path: Path, dim: int | None = None, **settings: Any) -> Cloud:
    source = open_source(str(path), **({"max_bad_fraction": 1.0} | settings))
    extent = source.extent()
    return source.read(
        covering(parse_period("1000d"), extent.first, extent.last + timedelta(seconds=1)), expect_dim=dim
    )


def sorted_out(rows: list[Any], dim: int) -> tuple[list[int], list[int], list[int]]:
    """Positions of the whole, the null and the ragged rows, by a plain loop."""
    null = [k for k, row in enumerate(rows) if row is None or None in row]
    ragged = [k for k, row in enumerate(rows) if k not in null and len(row) != dim]
    return [k for k in range(len(rows)) if k not in null and k not in ragged], null, ragged


def test_every_layout_of_the_table_is_tried_here() -> None:
    assert {form.layout for form in FORMS.values()} == set(LAYOUTS)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(st.data())
@settings(max_examples=25)
def test_decoders_on_slices_with_nulls_and_ragged_rows(form: Form, data: st.DataObject) -> None:
    """Against a plain loop over the rows, for a slice of every batch."""
    rows = form.fit(data.draw(ROWS), DIM)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    batch = pa.record_batch(form.make(rows, DIM)).slice(start, stop - start)
    told = {key: value for key, value in form.settings.items() if key != "embedding_column"}
    layout = layout_of(
        batch.schema,
        form.settings.get("embedding_column", "embedding"),
        Encoding(**{"name": told.pop("encoding", None)} | told),
    )
    seen = rows[start:stop]
    whole, null, ragged = sorted_out(seen, DIM)
    decoded = layout.decode(batch, DIM, "here")
    assert layout.name == form.layout
    assert decoded.values.null_count == 0
    assert decoded.values.to_pylist() == [value for k in whole for value in seen[k]]
    assert whole == (list(range(len(seen))) if decoded.rows is None else decoded.rows.tolist())
    assert ragged == decoded.ragged.tolist()
    assert [len(seen[k]) for k in ragged] == decoded.ragged_lengths.tolist()
    assert null == decoded.null.tolist()
    lengths = layout.lengths(batch, "here").tolist()
    assert len(lengths) == len(seen)
    for row, length in zip(seen, lengths, strict=True):
        assert length == (-1 if row is None else len(row)) or (row is not None and None in row and length == -1)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(ROWS.filter(lambda rows: any(row and len(row) == DIM and None not in row for row in rows)), st.integers(1, 7))
@settings(max_examples=5)
def test_every_layout_gives_the_same_cloud(form: Form, rows: list[Any], group_rows: int) -> None:
    """Through files of several row groups: values, ids and causes are those of a plain loop over the rows."""
    rows = form.fit(rows, DIM)
    whole, null, ragged = sorted_out(rows, DIM)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        columns = form.make(rows, DIM)
        days = pa.array(range(len(rows)), pa.timestamp("s", "UTC"))
        table = pa.table({"id": [f"r{k}" for k in range(len(rows))], **columns, "event_time": days})
        pq.write_table(table, path, row_group_size=group_rows)
        cloud = read_one(path, DIM, id_column="id", **form.settings)
    assert cloud.embeddings.tolist() == [rows[k] for k in whole]
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [f"r{k}" for k in whole]
    quality = cloud.quality[0]
    assert dict(quality.dropped) == {k: len(v) for k, v in (("null", null), ("ragged", ragged)) if v}
    named = {cause: [f"r{k}" for k in bad][:10] for cause, bad in (("null", null), ("ragged", ragged)) if bad}
    assert {cause: list(names) for cause, names in quality.examples.items()} == named


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_dimension_is_found_and_batches_change_nothing(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = form.fit([None, *rng.integers(1, 10, (150, 5)).tolist(), [1, 2], [], [1, None, 3, 4, 5]], 5)
    columns = form.make(rows, 5)
    table = pa.table(columns | {"event_time": pa.array(range(len(rows)), pa.timestamp("s", "UTC"))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    monkeypatch.setattr("gpudrift.source.reading._BATCH_LEAST", 1)
    monkeypatch.setattr("gpudrift.source.reading._BATCH_MOST", 1)  # 16 rows a batch, the least there is
    cloud = read_one(tmp_path / "a.parquet", **form.settings)
    whole, null, ragged = sorted_out(rows, 5)
    assert cloud.embeddings.tolist() == [rows[k] for k in whole]
    assert len(cloud) >= 150
    assert sum(cloud.quality[0].dropped.values()) == len(null) + len(ragged)


@pytest.mark.parametrize("element", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["list", "fixed_size_list", "list_view", "binary", "text", "wide", "spark_vector"])
def test_rounding_to_float32_is_numpys(layout: str, element: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(50, 33)).astype(element)
    kind = pa.from_numpy_dtype(values.dtype)
    told: dict[str, Any] = {}
    match layout:
        case "binary":
            columns, told = {"embedding": pa.array([row.tobytes() for row in values])}, {"encoding": element}
        case "text":
            columns = {"embedding": pa.array([str(row.astype("f4").astype("f8").tolist()) for row in values])}
        case "wide":
            columns, told = {f"d{k}": pa.array(values[:, k]) for k in range(33)}, {"embedding_column": "d*"}
        case "spark_vector":
            dense = [{"type": 1, "size": None, "indices": None, "values": row.tolist()} for row in values]
            columns = {"embedding": pa.array(dense, SPARK)}
        case _:
            made = {"list": pa.list_(kind), "fixed_size_list": pa.list_(kind, 33), "list_view": pa.list_view(kind)}
            columns = {"embedding": pa.array(list(values), made[layout])}
    table = pa.table(columns | {"event_time": pa.array(range(50), pa.timestamp("s", "UTC"))})
    pq.write_table(table, tmp_path / "a.parquet")
    read = read_one(tmp_path / "a.parquet", **told).embeddings.numpy()
    assert np.array_equal(read, values.astype(np.float32))


def test_plain_lists_of_floats_are_decoded_without_a_copy() -> None:
    values = np.arange(1, 301, dtype=np.float32)
    flat = pa.array(values)
    for column in (
        pa.FixedSizeListArray.from_arrays(flat, 3),
        pa.ListArray.from_arrays(pa.array(range(0, 301, 3), pa.int32()), flat),
        pa.LargeListArray.from_arrays(pa.array(range(0, 301, 3)), flat),
        pa.array([values[k : k + 3].tobytes() for k in range(0, 300, 3)], pa.binary()),
    ):
        told = Encoding("float32" if pa.types.is_binary(column.type) else None)
        batch = pa.record_batch({"embedding": column}).slice(2, 90)
        decoded = layout_of(batch.schema, "embedding", told).decode(batch, 3, "here")
        start, stop = column.buffers()[-1].address, column.buffers()[-1].address + column.buffers()[-1].size
        assert start <= decoded.values.buffers()[1].address < stop
        assert decoded.values.to_pylist() == values[6:276].tolist()


def test_files_without_an_arrow_schema(write: Callable[..., Path], vectors: Any) -> None:
    """Writers outside Arrow leave it out; a fixed-size list then reads as a list."""
    path = write("a.parquet", values := vectors(10, 5), options={"store_schema": False})
    assert np.array_equal(read_one(path).embeddings.numpy(), values)


def test_vectors_in_a_dictionary(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", np.repeat(vectors(3), 40, axis=0), options={"use_dictionary": True})
    assert np.array_equal(read_one(path).embeddings.numpy(), np.repeat(vectors(3), 40, axis=0))


# --- the dimension


def test_lengths_that_add_up_are_still_ragged(write: Callable[..., Path]) -> None:
    """3 + 2 + 4 values would reshape to 3 x 3."""
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0, 9.0], [1.0, 1.0, 1.0]]
    cloud = read_one(write("a.parquet", rows, kind=pa.list_(pa.float32())))
    assert cloud.embeddings.tolist() == [rows[0], rows[3]]
    assert dict(cloud.quality[0].dropped) == {"ragged": 2}


def test_dimension_of_lists_is_the_most_common_length_of_the_first_vectors(write: Callable[..., Path]) -> None:
    rows = [None, [], [1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0, 3.0]]
    assert open_source(str(write("a.parquet", rows, kind=pa.list_(pa.float32())))).dim == 2


def test_dimension_of_lists_skips_files_without_vectors(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a.parquet", [], kind=pa.list_(pa.float32()))
    write("b.parquet", [None, []], kind=pa.list_(pa.float32()))
    write("c.parquet", [[1.0, 2.0, 3.0]], kind=pa.list_(pa.float32()))
    assert open_source(str(tmp_path)).dim == 3


def test_no_vector_anywhere_is_a_data_error(write: Callable[..., Path]) -> None:
    source = open_source(str(write("a.parquet", [None, []], kind=pa.list_(pa.float32()))))
    with pytest.raises(DataError, match="no row has a vector"):
        _ = source.dim


def test_expected_dimension_decides_for_lists(write: Callable[..., Path]) -> None:
    """The oldest rows may come from another encoder than those read now."""
    cloud = read_one(write("a.parquet", [[1.0], [1.0], [2.0, 3.0]], kind=pa.list_(pa.float32())), 2)
    assert cloud.embeddings.tolist() == [[2.0, 3.0]]
    assert cloud.dim == 2


def test_another_fixed_dimension_than_expected_is_refused(write: Callable[..., Path], vectors: Any) -> None:
    source = open_source(str(write("a.parquet", vectors(3, 4))))
    with pytest.raises(ReferenceMismatchError, match=r"(?s)4 dimensions, 384 are expected.*float") as caught:
        source.read([], expect_dim=384)
    assert caught.value.exit_code == 30
    assert source.read([], expect_dim=4).embeddings.shape == (0, 4)


# --- encodings


def test_the_settings_list_the_same_encodings_as_the_reader() -> None:
    assert inputs.ENCODINGS == ENCODINGS
    assert inputs.POOLINGS == POOLINGS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoding", "float8"),
        ("encoding", "binary"),
        ("scale", 0.0),
        ("scale", float("nan")),
        ("zero_point", float("inf")),
        ("pooling", "max"),
    ],
)
def test_settings_that_cannot_be_meant(field: str, value: Any) -> None:
    for make in (
        lambda: SourceConfig(**{field: value}),
        lambda: Encoding(**{"name" if field == "encoding" else field: value}),
    ):
        with pytest.raises(ConfigError, match=rf"(?s)field: source\.{field}.*allowed: "):
            make()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (pa.list_(pa.uint8()), "bits"),
        (pa.list_(pa.uint8(), 3), "bits"),
        (pa.binary(), "bits"),
        (pa.binary(3), "bits"),
        (pa.list_(pa.int8()), "bits_int8"),
        (pa.list_(pa.int8()), "bits"),
    ],
)
@given(rows=st.lists(st.lists(st.booleans(), min_size=24, max_size=24), min_size=1, max_size=5))
@settings(max_examples=20)
def test_packed_bits_are_numpys(kind: pa.DataType, told: str, rows: list[list[bool]]) -> None:
    """bits_int8 is what sentence-transformers calls binary: packed, and 128 taken from each byte."""
    packed = np.packbits(np.array(rows), axis=1)
    if told == "bits_int8":
        stored = (packed.astype(int) - 128).tolist()
    elif pa.types.is_list(kind) and kind.value_type == pa.int8():
        stored = packed.view(np.int8).tolist()
    else:
        stored = [row.tobytes() for row in packed] if "binary" in str(kind) else packed.tolist()
    batch = pa.record_batch({"embedding": pa.array(stored, kind)})
    layout = layout_of(batch.schema, "embedding", told)
    assert layout.common_length(batch, "here") == 24
    assert layout.size in (None, 24)
    assert np.array_equal(np.array(layout.decode(batch, 24, "").values).reshape(-1, 24), np.array(rows, dtype=float))
    signs = layout_of(batch.schema, "embedding", Encoding(told, 2.0, 0.5)).decode(batch, 24, "")
    assert np.array_equal(np.array(signs.values).reshape(-1, 24), np.where(rows, 1.0, -1.0))
    assert layout.decode(batch, 20, "").ragged_lengths.tolist() == [24] * len(rows)


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("blob", [False, True])
def test_quantised_values_over_their_whole_range(name: str, blob: bool) -> None:
    info = np.iinfo(name)
    values = np.unique(
        np.linspace(info.min, info.max, 257).clip(info.min, info.max - 2**11 * (info.bits == 64)).astype(name)
    )
    column = pa.array([values.tobytes()]) if blob else pa.array([values], pa.list_(pa.from_numpy_dtype(values.dtype)))
    batch = pa.record_batch({"embedding": column})
    decoded = layout_of(batch.schema, "embedding", Encoding(name, 0.0123, 7.5)).decode(batch, len(values), "")
    expected = np.array([0.0123 * (int(v) - 7.5) for v in values]).astype(np.float32)
    assert np.array_equal(decoded.values.to_numpy(), expected)


def test_bfloat16_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = torch.randn(7, 16).to(torch.bfloat16)
    rows = [row.numpy().tobytes() for row in values.view(torch.int16)]
    batch = pa.record_batch({"embedding": rows})
    decoded = layout_of(batch.schema, "embedding", "bfloat16").decode(batch, 16, "")
    assert np.array_equal(decoded.values.to_numpy().reshape(7, 16), values.float().numpy())


def test_a_scale_that_overflows_is_counted(tmp_path: Path) -> None:
    table = {
        "embedding": pa.array([[1, 2], [0, 100]], pa.list_(pa.int16())),
        "event_time": pa.array([1, 2], pa.timestamp("s")),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    cloud = read_one(tmp_path / "a.parquet", encoding="int16", scale=1e37)
    assert dict(cloud.quality[0].dropped) == {"non_finite": 1}


@pytest.mark.parametrize(
    ("column", "told", "named"),
    [
        (
            pa.array([[1], [2]], pa.list_(pa.int8())),
            {},
            ["source.encoding=int8", "source.encoding=bits_int8", "source.scale"],
        ),
        (pa.array([[1], [2]], pa.list_(pa.uint8())), {}, ["source.encoding=uint8", "source.encoding=bits "]),
        (pa.array([[1], [2]], pa.list_(pa.int64())), {}, ["source.encoding=int64", "source.scale"]),
        (pa.array([b"abcd", b"efgh"]), {}, ["source.encoding=float32", "float32_be", "source.encoding=bits"]),
        (pa.array([b"abcd", b"efgh"], pa.binary(4)), {}, ["source.encoding=float32"]),
        (pa.array([b"abc", b"def"], pa.binary(3)), {"encoding": "float32"}, ["3 bytes", "source.encoding"]),
        (pa.array([b"abcd", b"efgh"]), {"encoding": "bits_int8"}, ["does not fit", "source.encoding=bits"]),
        (pa.array([b"abcd", b"efgh"]), {"encoding": "float32", "scale": 2.0}, ["source.scale"]),
        (pa.array([[1], [2]], pa.list_(pa.uint8())), {"encoding": "bits_int8"}, ["does not fit", "uint8"]),
        (pa.array([[1], [2]], pa.list_(pa.int16())), {"encoding": "bits"}, ["does not fit", "source.encoding=int16"]),
        (pa.array([[1.0], [2.0]]), {"encoding": "float16"}, ["source.encoding", "leave it out"]),
        (pa.array([[1.0], [2.0]]), {"scale": 0.5}, ["source.scale", "leave it out"]),
        (pa.array([[1.0], [2.0]]), {"zero_point": 1.0}, ["source.zero_point", "leave it out"]),
        (pa.array([[1.0], [2.0]]), {"pooling": "mean"}, ["source.pooling", "lists of lists"]),
        (pa.array(["[1]", "[2]"]), {"encoding": "float32"}, ["source.encoding", "leave it out"]),
    ],
)
def test_what_needs_another_setting_says_which(
    write: Callable[..., Path], vectors: Any, column: pa.Array, told: dict[str, Any], named: list[str]
) -> None:
    path = write("a.parquet", vectors(2), other=column)
    with pytest.raises(ConfigError) as caught:
        open_source(str(path), embedding_column="other", **told)
    for words in (*named, "a.parquet"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([1.0, 2.0]), "double"),
        (pa.array([1, 2]), "int64"),
        (pa.nulls(2), "null"),
        (pa.array([[None], [None]]), "null"),
        (pa.array([[True], [False]]), "bool"),
        (pa.array([["a"], ["b"]]), "string"),
        (pa.array([[[[1.0]]], [[[2.0]]]]), "list<"),
        (pa.array([{"vector": [1.0]}, {"vector": [2.0]}]), "struct"),
        (pa.array([[{"vector": 1.0}], [{"vector": 2.0}]]), "struct"),
        (pa.array([[("k", 1.0)], [("k", 2.0)]], pa.map_(pa.string(), pa.float32())), "map"),
        (pa.array([1, 2], pa.decimal128(5, 1)), "decimal"),
        (pa.array([[], []], pa.list_(pa.float32(), 0)), "fixed_size_list<element: float>[0] have no values"),
        (pa.array([[1], [2]], pa.list_(pa.decimal128(5, 1))), "decimal"),
    ],
)
def test_other_types_are_named_with_those_read(
    write: Callable[..., Path], vectors: Any, column: pa.Array, named: str
) -> None:
    path = write("a.parquet", vectors(2), other=column)
    with pytest.raises(ConfigError, match=rf"(?s){re.escape(named)}.*source\.embedding_column.*allowed: ") as caught:
        open_source(str(path), embedding_column="other")
    assert "a.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "hint"),
    [
        ({"vec": pa.list_(pa.float32()), "tags": pa.list_(pa.string())}, "set source.embedding_column=vec"),
        ({"p": pa.struct([("id", pa.int64()), ("v", pa.list_(pa.int8(), 4))])}, "set source.embedding_column=p.v"),
        ({"m": pa.large_list(pa.list_(pa.float64()))}, "set source.embedding_column=m"),
        (
            {"t": pa.fixed_shape_tensor(pa.float32(), [2]), **{f"dim_{k}": pa.float32() for k in range(4)}},
            "set source.embedding_column=t or 'source.embedding_column=dim_*' (one column a dimension)",
        ),
        ({"a": pa.string(), **{f"day_{k}": pa.string() for k in range(4)}, "dim_0": pa.float32()}, None),
    ],
)
def test_a_missing_column_ends_with_those_that_look_like_vectors(kinds: dict[str, Any], hint: str | None) -> None:
    with pytest.raises(ConfigError, match="there is no column 'embedding'") as caught:
        layout_of(pa.schema(list(kinds.items())), "embedding")
    assert caught.value.hint == hint


def test_a_struct_is_answered_with_its_own_field() -> None:
    schema = pa.schema(
        [("p", pa.struct([("q", pa.struct([("v", pa.list_(pa.float32()))]))])), ("w", pa.list_(pa.int8()))]
    )
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        layout_of(schema, "p")
    assert caught.value.hint == "set source.embedding_column=p.q.v"


def test_a_thousand_columns_are_not_all_listed() -> None:
    schema = wide_schema("id", *(f"dim_{k}" for k in range(1000)), "v1", "v2", "7")
    with pytest.raises(ConfigError) as caught:
        layout_of(schema, "embedding")
    assert caught.value.allowed == ["id", "dim_0 to dim_999", "v1", "v2", "7"]
    with pytest.raises(ConfigError, match="no column fits") as caught:
        layout_of(schema, "emb_*")
    assert caught.value.allowed == ["id", "dim_0 to dim_999", "v1", "v2", "7"]


# --- several vectors in a row

MULTI = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], None, [], [[1.0], [2.0, 3.0]], [[7.0, 8.0], None], [[1.0, None]]]


@pytest.mark.parametrize("outer", [pa.list_, pa.large_list])
def test_several_vectors_in_a_row_need_a_pooling(write: Callable[..., Path], outer: Any) -> None:
    path = write("a.parquet", MULTI, kind=outer(pa.list_(pa.float32())))
    with pytest.raises(
        ConfigError, match=r"(?s)several vectors in one row.*a\.parquet, row group 0.*source\.pooling=mean"
    ):
        read_one(path)
    cloud = read_one(path, pooling="mean")
    assert cloud.embeddings.tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert dict(cloud.quality[0].dropped) == {"null": 3, "ragged": 2}


@given(
    st.lists(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), max_size=4), max_size=6),
    st.data(),
)
def test_the_mean_of_a_rows_vectors(rows: list[Any], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows)))
    batch = pa.record_batch({"embedding": pa.array(rows, pa.list_(pa.list_(pa.float32())))}).slice(start)
    decoded = layout_of(batch.schema, "embedding", Encoding(pooling="mean")).decode(batch, 4, "here")
    expected = [np.array(row, np.float64).mean(axis=0) for row in rows[start:] if row]
    assert np.allclose(
        np.array(decoded.values).reshape(-1, 4), np.array(expected).reshape(-1, 4), rtol=1e-14, atol=1e-12
    )
    assert decoded.ragged.tolist() == [k for k, row in enumerate(rows[start:]) if not row]


def test_no_value_lies_in_two_inner_lists() -> None:
    """One byte in each of two inner lists is no float16."""
    batch = pa.record_batch({"embedding": pa.array([[[0], [1]], [[1, 2], [3, 4]]], pa.list_(pa.list_(pa.int8()), 2))})
    layout = layout_of(batch.schema, "embedding", "float16")
    assert layout.decode(batch, 1, "").ragged.tolist() == [0, 1]
    assert layout.decode(batch, 2, "").ragged.tolist() == [0]


def test_infinities_that_cancel_are_counted(write: Callable[..., Path]) -> None:
    rows = [[[math.inf, 1.0], [-math.inf, 1.0]], [[1.0, 2.0], [3.0, 4.0]]]
    for kind in (pa.list_(pa.list_(pa.float32())), pa.list_(pa.list_(pa.float64(), 2), 2)):
        cloud = read_one(write("a.parquet", rows, kind=kind), pooling="mean")
        assert cloud.embeddings.tolist() == [[2.0, 3.0]]
        assert dict(cloud.quality[0].dropped) == {"non_finite": 1}


@pytest.mark.parametrize("kind", [pa.list_(pa.list_(pa.float32(), 3), 2), pa.list_(pa.list_(pa.float32()), 2)])
def test_matrices_of_a_fixed_number_of_rows_are_flattened(write: Callable[..., Path], kind: pa.DataType) -> None:
    rows = [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], None, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]]
    path = write("a.parquet", rows, kind=kind)
    assert read_one(path).embeddings.tolist() == [[1, 2, 3, 4, 5, 6], [1, 1, 1, 2, 2, 2]]
    assert read_one(path, pooling="mean").embeddings.tolist() == [[2.5, 3.5, 4.5], [1.5, 1.5, 1.5]]


@pytest.mark.parametrize("pooling", [None, "flatten", "mean"])
def test_tensors_of_two_dimensions(tmp_path: Path, pooling: str | None) -> None:
    values = np.arange(1, 25, dtype=np.float32).reshape(4, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    pq.write_table(
        pa.table({"embedding": column, "event_time": pa.array(range(4), pa.timestamp("s"))}), tmp_path / "a.parquet"
    )
    read = read_one(tmp_path / "a.parquet", pooling=pooling).embeddings.numpy()
    assert np.array_equal(read, values.mean(axis=1) if pooling == "mean" else values.reshape(4, 6))


def test_permuted_tensors_are_refused(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    storage = pa.array([[1.0] * 6], pa.list_(pa.float32(), 6))
    table = pa.table(
        {"embedding": pa.ExtensionArray.from_storage(kind, storage), "event_time": pa.array([1], pa.timestamp("s"))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"(?s)permuted dimensions \[1, 0\].*a\.parquet"):
        open_source(str(tmp_path))


def test_matrices_of_two_shapes_are_not_one_kind_of_vector(write: Callable[..., Path]) -> None:
    """2 x 3 and 3 x 2 hold six values each; in two row groups, so that no batch has both."""
    rows = [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]
    path = write("a.parquet", [rows[0], None, [[1.0, 2.0], [1.0]]], kind=pa.list_(pa.list_(pa.float32())))
    cloud = read_one(path, 6, pooling="flatten")
    assert cloud.embeddings.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert dict(cloud.quality[0].dropped) == {"null": 1, "ragged": 1}
    path = write("a.parquet", rows, kind=pa.list_(pa.list_(pa.float32())), group_rows=1)
    with pytest.raises(DataError, match=r"(?s)two shapes, . x . and . x .,.*a\.parquet.*source\.pooling=mean"):
        read_one(path, pooling="flatten")


# --- one column a dimension


def wide_schema(*names: str, kind: Any = None) -> pa.Schema:
    return pa.schema([(name, kind or pa.float32()) for name in names])


def test_columns_are_sorted_by_number() -> None:
    schema = wide_schema("dim_10", *(f"dim_{k}" for k in range(10)), "dim_x", "xdim_3", "dim_1b")
    assert layout_of(schema, "dim_*").columns == tuple(f"dim_{k}" for k in range(11))


@pytest.mark.parametrize(
    ("names", "pattern", "said"),
    [
        (["dim_0", "dim_2"], "dim_*", "number 1 is missing between 'dim_0' and 'dim_2'"),
        (["dim_2", "dim_3"], "dim_*", "begin with 'dim_2'"),
        (["dim_0", "dim_1", "dim_01"], "dim_*", "two columns have the number 1: 'dim_1' and 'dim_01'"),
        (["dim_0", "dim_0"], "dim_*", "two columns have the number 0"),
        (["dim_0"], "e_*", "no column fits"),
        (["dim_0"], "*_*", "more than one star"),
        (["dim_0"], "re:dim_(.*", "no regular expression"),
        (["dim_0"], "re:dim_.*", "0 groups"),
        (["dim_0", "dim_x"], "re:dim_(.)", "'x' in 'dim_x', which is not a number"),
    ],
)
def test_patterns_that_cannot_be_meant(names: list[str], pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){re.escape(said)}.*in: f.*source\.embedding_column"):
        layout_of(wide_schema(*names), pattern, where="f")


def test_wide_columns_of_two_types_are_refused() -> None:
    schema = pa.schema({"d0": pa.float32(), "d1": pa.float64()})
    with pytest.raises(ConfigError, match="'d0' is float, 'd1' is double"):
        layout_of(schema, "d*")


def test_a_column_of_that_very_name_is_no_pattern() -> None:
    schema = pa.schema({"dim_*": pa.list_(pa.float32(), 7), "dim_0": pa.float32()})
    assert layout_of(schema, "dim_*").size == 7


def test_a_dimension_missing_in_a_later_file(tmp_path: Path) -> None:
    for name, dims in (("a", 4), ("b", 3)):
        table = {f"d{k}": [1.0, 2.0] for k in range(dims)} | {"event_time": pa.array([1, 2], pa.timestamp("s"))}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"(?s)3 dimensions here, 4 in .*a\.parquet.*in: .*b\.parquet"):
        open_source(str(tmp_path), embedding_column="d*")


# --- fields of structs


def test_a_column_whose_own_name_has_a_dot_wins(tmp_path: Path) -> None:
    table = pa.table(
        {
            "payload": pa.array([{"vector": [1.0], "x.y": [3.0]}]),
            "payload.vector": pa.array([[2.0]]),
            "event_time": pa.array([1], pa.timestamp("s")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_one(tmp_path / "a.parquet", embedding_column="payload.vector").embeddings.tolist() == [[2.0]]
    assert read_one(tmp_path / "a.parquet", embedding_column="payload.x.y").embeddings.tolist() == [[3.0]]


@pytest.mark.parametrize("column", ["payload.other", "payload", "other.vector", "payload.vector.x", "payload."])
def test_paths_that_lead_nowhere(write: Callable[..., Path], vectors: Any, column: str) -> None:
    path = write("a.parquet", vectors(1), payload=[{"vector": [1.0], "n": 1}])
    with pytest.raises(ConfigError, match=r"(?s)a\.parquet.*source\.embedding_column"):
        open_source(str(path), embedding_column=column)


def test_only_the_field_is_read_from_a_struct(tmp_path: Path, flip: Callable[..., None]) -> None:
    table = pa.table(
        {
            "payload": [{"note": "n" * 50, "vector": [1.0, 2.0]}] * 20,
            "event_time": pa.array([1] * 20, pa.timestamp("s")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    flip(tmp_path / "a.parquet", 0)  # the note
    assert len(read_one(tmp_path / "a.parquet", embedding_column="payload.vector")) == 20


# --- Spark's vectors


@pytest.mark.parametrize(
    ("vector", "cause"),
    [
        ({"type": 0, "size": 3, "indices": [0, 2], "values": [1.0, 2.0]}, None),
        ({"type": 0, "size": 3, "indices": [2, 0], "values": [2.0, 1.0]}, None),
        ({"type": 0, "size": 3, "indices": [], "values": []}, "zero"),
        ({"type": 0, "size": 3, "indices": [0, 3], "values": [1.0, 2.0]}, "null"),
        ({"type": 0, "size": 3, "indices": [-1, 2], "values": [1.0, 2.0]}, "null"),
        ({"type": 0, "size": 3, "indices": [0, 0], "values": [1.0, 2.0]}, "null"),
        ({"type": 0, "size": 3, "indices": [0, None], "values": [1.0, 2.0]}, "null"),
        ({"type": 0, "size": 3, "indices": [0], "values": [1.0, 2.0]}, "null"),
        ({"type": 0, "size": 3, "indices": None, "values": [1.0, 2.0, 3.0]}, "null"),
        ({"type": 0, "size": None, "indices": [0], "values": [1.0]}, "null"),
        ({"type": 0, "size": 4, "indices": [0, 2], "values": [1.0, 2.0]}, "ragged"),
        ({"type": 1, "size": None, "indices": None, "values": [1.0, 2.0]}, "ragged"),
        ({"type": 1, "size": None, "indices": None, "values": [1.0, None, 2.0]}, "null"),
        ({"type": 1, "size": None, "indices": None, "values": [1.0, float("nan"), 2.0]}, "non_finite"),
        ({"type": 2, "size": 3, "indices": None, "values": [1.0, 0.0, 2.0]}, "null"),
        ({"type": None, "size": None, "indices": None, "values": [1.0, 0.0, 2.0]}, "null"),
        (None, "null"),
    ],
)
def test_spark_vectors(write: Callable[..., Path], vector: Any, cause: str | None) -> None:
    good = {"type": 1, "size": None, "indices": None, "values": [1.0, 0.0, 2.0]}
    cloud = read_one(write("a.parquet", [good, vector, good], kind=SPARK), 3)
    assert cloud.embeddings.tolist() == [[1.0, 0.0, 2.0]] * (3 if cause is None else 2)
    assert dict(cloud.quality[0].dropped) == ({} if cause is None else {cause: 1})


# --- text


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("[1,2.5,-3e0]", None),
        (" [ 1 , +2.5 ,\t-.3e1 ] \n", None),
        ("{1,2.5,-3}", None),
        ("[1,2.5]", "ragged"),
        ("[]", "ragged"),
        ("[ ]", "ragged"),
        ("[1,2.5,NaN]", "non_finite"),
        ("[1,2.5,-Infinity]", "non_finite"),
        ("[1,2.5,1e39]", "non_finite"),
        ("[0,-0.0,0e9]", "zero"),
        ("[1,,3]", "null"),
        ("[1,2.5,]", "null"),
        ("[1,2.5,x]", "null"),
        ("[1,2.5,0x3]", "null"),
        ("[1,2.5,1_0]", "null"),
        ("[1,2.5,null]", "null"),
        ("[[1,2.5,-3]]", "null"),
        ("[1,2.5,-3}", "null"),
        ("1,2.5,-3", "null"),
        ("[", "null"),
        ("", "null"),
        (None, "null"),
    ],
)
def test_vectors_as_text(write: Callable[..., Path], entry: Any, cause: str | None) -> None:
    cloud = read_one(write("a.parquet", ["[1,2.5,-3]", entry, "[1,2.5,-3]"], kind=pa.string()), 3)
    assert cloud.embeddings.tolist() == [[1.0, 2.5, -3.0]] * (3 if cause is None else 2)
    assert dict(cloud.quality[0].dropped) == ({} if cause is None else {cause: 1})


@given(
    st.lists(st.text("[]{},0123456789.eE+-nai fx\u00e9", max_size=12), max_size=4),
    st.lists(st.floats(width=32), min_size=1, max_size=4),
)
def test_text_is_parsed_as_python_would(entries: list[str], floats: list[float]) -> None:
    """One bad entry must not change how its neighbours are read."""
    good = "[" + ",".join(map(repr, floats)) + "]"
    batch = pa.record_batch({"embedding": pa.array([*entries, good])})
    layout = layout_of(batch.schema, "embedding")
    decoded = layout.decode(batch, len(floats), "here")
    rows = list(range(len(entries) + 1)) if decoded.rows is None else decoded.rows.tolist()
    assert rows[-1] == len(entries)
    read = decoded.values.to_numpy().reshape(len(rows), len(floats))
    assert np.array_equal(read[-1], np.array(floats, np.float32), equal_nan=True)
    for k, values in zip(rows[:-1], read, strict=False):
        parts = [float(part) for part in entries[k].strip()[1:-1].split(",")]
        with np.errstate(over="ignore"):
            assert np.array_equal(values, np.array(parts).astype(np.float32), equal_nan=True)


def test_every_error_of_a_layout_is_one_of_ours() -> None:
    for column in ("a", "a.b", "*", "re:(", "re:()", "**", ".", "..", "re:", "", " "):
        with pytest.raises(GpudriftError):
            layout_of(pa.schema({"embedding": pa.list_(pa.float32())}), column)
