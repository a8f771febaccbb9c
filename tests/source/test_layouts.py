"""Every layout gives the values that were written; rows without a whole vector are told apart, never mixed up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudrift.errors import ConfigError, DataError, ReferenceMismatchError
from gpudrift.records import Cloud
from gpudrift.source import open_source
from gpudrift.source.layouts import LAYOUTS, layout_of
from gpudrift.windows import covering, parse_period

FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
KINDS: dict[str, Callable[[Any, int], Any]] = {
    "fixed_size_list": pa.list_,
    "list": lambda element, _: pa.list_(element),
    "large_list": lambda element, _: pa.large_list(element),
}


def read_all(path: Path, **settings: Any) -> Cloud:
    source = open_source(str(path), **({"max_bad_fraction": 1.0} | settings))
    extent = source.extent()
    return source.read(covering(parse_period("1000d"), extent.first, extent.last))


def test_every_layout_of_the_table_is_tried_here() -> None:
    assert set(KINDS) == {family.name for family in LAYOUTS}


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("layout", KINDS)
def test_layouts_give_back_what_was_written(
    write: Callable[..., Path], vectors: Any, layout: str, element: str
) -> None:
    values = vectors(300, 7)
    path = write("a.parquet", values.astype(element), kind=KINDS[layout](FLOATS[element], 7), group_rows=128)
    cloud = read_all(path)
    assert np.array_equal(cloud.embeddings.numpy(), values)
    assert cloud.embeddings.is_contiguous()
    assert str(cloud.embeddings.dtype) == "torch.float32"


@pytest.mark.parametrize("element", FLOATS)
def test_rounding_to_float32_is_numpys(write: Callable[..., Path], element: str) -> None:
    values = np.random.default_rng(1).normal(size=(50, 33)).astype(element)
    cloud = read_all(write("a.parquet", values, kind=pa.list_(FLOATS[element], 33)))
    assert np.array_equal(cloud.embeddings.numpy(), values.astype(np.float32))


@pytest.mark.parametrize("kind", [pl.Array(pl.Float32, 5), pl.List(pl.Float32), pl.List(pl.Float64)])
def test_files_of_another_writer(vectors: Any, tmp_path: Path, kind: Any) -> None:
    values = vectors(40, 5)
    times = pl.datetime_range(pl.datetime(2026, 1, 1), pl.datetime(2026, 2, 9), "1d", eager=True, time_unit="ms")
    frame = pl.DataFrame({"event_time": times, "embedding": pl.Series(values.tolist(), dtype=kind)})
    frame.write_parquet(tmp_path / "polars.parquet")
    assert np.array_equal(read_all(tmp_path / "polars.parquet").embeddings.numpy(), values)


def test_files_without_an_arrow_schema(write: Callable[..., Path], vectors: Any) -> None:
    """Writers outside Arrow leave it out; a fixed-size list then reads as a list."""
    path = write("a.parquet", values := vectors(10, 5), options={"store_schema": False})
    assert np.array_equal(read_all(path).embeddings.numpy(), values)


def test_vectors_in_a_dictionary(write: Callable[..., Path], vectors: Any) -> None:
    path = write("a.parquet", np.repeat(vectors(3), 40, axis=0), options={"use_dictionary": True})
    assert np.array_equal(read_all(path).embeddings.numpy(), np.repeat(vectors(3), 40, axis=0))


ROWS = st.lists(
    st.one_of(
        st.none(),
        st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=3, max_size=3),
        st.lists(st.integers(1, 9), max_size=5),
    ),
    max_size=12,
)


@given(ROWS, st.data(), st.sampled_from(["list", "large_list", "fixed_size_list"]))
def test_decoders_on_slices_with_nulls_and_ragged_rows(rows: list[Any], data: Any, layout: str) -> None:
    """Against a plain loop over the rows, for every slice of every column."""
    if layout == "fixed_size_list":
        rows = [row if row is None or len(row) == 3 else None for row in rows]
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    column = pa.array(rows, KINDS[layout](pa.float32(), 3)).slice(start, stop - start)
    found = layout_of(column.type)
    assert found is not None
    decoded = found.decode(column, 3)
    seen = rows[start:stop]
    whole = [k for k, row in enumerate(seen) if row is not None and len(row) == 3 and None not in row]
    ragged = [k for k, row in enumerate(seen) if row is not None and len(row) != 3]
    assert decoded.values.null_count == 0
    assert decoded.values.to_pylist() == [value for k in whole for value in seen[k]]
    assert whole == (list(range(len(seen))) if decoded.rows is None else decoded.rows.tolist())
    assert ragged == decoded.ragged.tolist()
    assert [len(seen[k]) for k in ragged] == decoded.ragged_lengths.tolist()
    assert sorted(set(range(len(seen))) - set(whole) - set(ragged)) == decoded.null.tolist()


@pytest.mark.parametrize("layout", KINDS)
def test_null_rows_and_missing_values_leave_the_others_in_place(write: Callable[..., Path], layout: str) -> None:
    rows = [[1.0, 2.0], None, [3.0, None], [4.0, 5.0]]
    cloud = read_all(write("a.parquet", rows, kind=KINDS[layout](pa.float32(), 2)))
    assert cloud.embeddings.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert dict(cloud.quality[0].dropped) == {"null": 2}


def test_lengths_that_add_up_are_still_ragged(write: Callable[..., Path]) -> None:
    """3 + 2 + 4 values would reshape to 3 x 3."""
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0, 9.0], [1.0, 1.0, 1.0]]
    cloud = read_all(write("a.parquet", rows, kind=pa.list_(pa.float32())))
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
    path = write("a.parquet", [[1.0], [1.0], [2.0, 3.0]], kind=pa.list_(pa.float32()))
    source = open_source(str(path), max_bad_fraction=1.0)
    extent = source.extent()
    cloud = source.read(covering(parse_period("week"), extent.first, extent.last), expect_dim=2)
    assert cloud.embeddings.tolist() == [[2.0, 3.0]]
    assert cloud.dim == 2


def test_another_fixed_dimension_than_expected_is_refused(write: Callable[..., Path], vectors: Any) -> None:
    source = open_source(str(write("a.parquet", vectors(3, 4))))
    with pytest.raises(ReferenceMismatchError, match=r"(?s)4 dimensions, 384 are expected.*float") as caught:
        source.read([], expect_dim=384)
    assert caught.value.exit_code == 30
    assert source.read([], expect_dim=4).embeddings.shape == (0, 4)


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([[[1.0]], [[2.0]]], pa.list_(pa.list_(pa.float32()))), "list<"),
        (pa.array([[1], [2]], pa.list_(pa.int8())), "int8"),
        (pa.array([b"ab", b"cd"]), "binary"),
        (pa.array([b"ab", b"cd"], pa.binary(2)), "fixed_size_binary"),
        (pa.array(["[1,2]", "[3,4]"]), "string"),
        (pa.array([{"vector": [1.0]}, {"vector": [2.0]}]), "struct"),
        (pa.array([1.0, 2.0]), "double"),
        (pa.nulls(2), "null"),
    ],
)
def test_other_layouts_are_named_with_those_read(
    write: Callable[..., Path], vectors: Any, column: pa.Array, named: str
) -> None:
    path = write("a.parquet", vectors(2), other=column)
    with pytest.raises(ConfigError, match=named) as caught:
        open_source(str(path), embedding_column="other")
    assert "fixed_size_list, list or large_list of float16, float32 or float64" in str(caught.value)


def test_an_encoding_is_for_bytes_alone(write: Callable[..., Path], vectors: Any) -> None:
    with pytest.raises(ConfigError, match=r"source\.encoding"):
        open_source(str(write("a.parquet", vectors(2))), encoding="float16")
