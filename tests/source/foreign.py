"""The layouts as writers other than pyarrow make them, and the tables of docs/layouts.md: ``python foreign.py`` prints
them.

Every entry of ``CASES`` writes the vectors, ids and times of ``Corpus`` with the named library, and names the layout
the file then has for the reader: what a writer calls an array may arrive as a list.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fastparquet
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from forms import FORMS

from gpudrift.source.layouts import LAYOUTS

ROWS, DIM, GROUP = 2500, 6, 2048  # rows, vector length, rows a row group (the least DuckDB makes)
NULL = (7, 2300)  # rows without a vector
WRITERS = ("pyarrow", "polars", "pandas", "duckdb", "fastparquet")


@dataclass(frozen=True)
class Corpus:
    """values: (ROWS, DIM) float32 integers from 1 to 9. rows: the same as lists, with None in the NULL rows."""

    values: Any
    rows: list[list[float] | None]
    ids: list[str]
    times: list[Any]


def corpus(nulls: bool = True) -> Corpus:
    values = np.random.default_rng(5).integers(1, 10, (ROWS, DIM)).astype(np.float32)
    rows = [None if nulls and k in NULL else row.tolist() for k, row in enumerate(values)]
    times = pd.date_range("2026-01-05", periods=ROWS, freq="h").to_pydatetime().tolist()
    return Corpus(values, rows, [f"r{k}" for k in range(ROWS)], times)


@dataclass(frozen=True)
class Case:
    writer: str
    layout: str  # as the reader finds it
    name: str  # what the writer calls it
    write: Callable[[Corpus, Path], None]
    settings: dict[str, Any]
    nulls: bool  # whether rows without a vector can be written


CASES: list[Case] = []
_Write = Callable[[Corpus, Path], None]


def case(writer: str, layout: str, name: str, nulls: bool = True, **settings: Any) -> Callable[[_Write], _Write]:
    def add(write: _Write) -> _Write:
        CASES.append(Case(writer, layout, name, write, settings, nulls))
        return write

    return add


def _bytes(data: Corpus, dtype: str) -> list[bytes | None]:
    return [None if row is None else np.array(row, dtype).tobytes() for row in data.rows]


def _texts(data: Corpus) -> list[str | None]:
    return [None if row is None else str(row) for row in data.rows]


def _payload(data: Corpus) -> list[dict[str, Any]]:
    return [{"lang": "en", "vector": row} for row in data.rows]


def _wide(data: Corpus) -> dict[str, list[float | None]]:
    return {f"dim_{k}": [None if row is None else row[k] for row in data.rows] for k in range(DIM)}


# --- polars


def _polars(data: Corpus, path: Path, columns: dict[str, Any]) -> None:
    frame = pl.DataFrame({"id": data.ids, "event_time": data.times, **columns})
    frame.write_parquet(path, row_group_size=GROUP)


for _kind, _layout, _name, _settings in (
    (pl.Array(pl.Float32, DIM), "fixed_size_list", "Array(Float32)", {}),
    (pl.Array(pl.Float64, DIM), "fixed_size_list", "Array(Float64)", {}),
    (pl.List(pl.Float32), "large_list", "List(Float32)", {}),
    (pl.List(pl.Float64), "large_list", "List(Float64)", {}),
    (pl.List(pl.Int8), "large_list", "List(Int8)", {"encoding": "int8"}),
    (pl.Array(pl.UInt8, DIM), "fixed_size_list", "Array(UInt8)", {"encoding": "uint8"}),
):

    @case("polars", _layout, _name, **_settings)
    def _polars_list(data: Corpus, path: Path, kind: Any = _kind) -> None:
        integers = "Int" in str(kind)
        rows = [None if row is None else [int(v) for v in row] if integers else row for row in data.rows]
        _polars(data, path, {"embedding": pl.Series(rows, dtype=kind)})


@case("polars", "list_of_lists", "List(List(Float32))")
def _polars_nested(data: Corpus, path: Path) -> None:
    rows = [None if row is None else [row] for row in data.rows]
    _polars(data, path, {"embedding": pl.Series(rows, dtype=pl.List(pl.List(pl.Float32)))})


@case("polars", "list_of_lists", "Array(Float32, (2, d))", pooling="flatten")
def _polars_matrix(data: Corpus, path: Path) -> None:
    half = DIM // 2
    rows = [None if row is None else [row[:half], row[half:]] for row in data.rows]
    _polars(data, path, {"embedding": pl.Series(rows, dtype=pl.Array(pl.Float32, (2, half)))})


@case("polars", "large_binary", "Binary", encoding="float32")
def _polars_bytes(data: Corpus, path: Path) -> None:
    _polars(data, path, {"embedding": pl.Series(_bytes(data, "<f4"), dtype=pl.Binary)})


@case("polars", "text", "String")
def _polars_text(data: Corpus, path: Path) -> None:
    _polars(data, path, {"embedding": pl.Series(_texts(data))})


@case("polars", "text", "Categorical")
def _polars_categories(data: Corpus, path: Path) -> None:
    _polars(data, path, {"embedding": pl.Series(_texts(data), dtype=pl.Categorical)})


@case("polars", "wide", "a column a dimension", embedding_column="dim_*")
def _polars_wide(data: Corpus, path: Path) -> None:
    _polars(data, path, {name: pl.Series(column, dtype=pl.Float32) for name, column in _wide(data).items()})


@case("polars", "large_list", "a struct's field", embedding_column="payload.vector")
def _polars_struct(data: Corpus, path: Path) -> None:
    kind = pl.Struct({"lang": pl.String, "vector": pl.List(pl.Float32)})
    _polars(data, path, {"payload": pl.Series(_payload(data), dtype=kind)})


# --- pandas, with its pyarrow engine


def _pandas(data: Corpus, path: Path, columns: dict[str, Any], **options: Any) -> None:
    frame = pd.DataFrame({"id": data.ids, "event_time": data.times, **columns})
    frame.to_parquet(path, engine="pyarrow", index=False, row_group_size=GROUP, **options)


@case("pandas", "list", "object column of lists")
def _pandas_lists(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": data.rows})


@case("pandas", "list", "object column of float32 arrays")
def _pandas_arrays(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": [None if row is None else np.array(row, "f4") for row in data.rows]})


@case("pandas", "list", "object column of int8 arrays", encoding="int8")
def _pandas_integers(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": [None if row is None else np.array(row, "i1") for row in data.rows]})


@case("pandas", "fixed_size_list", "ArrowDtype(list_(float32, d))")
def _pandas_fixed(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": pd.Series(data.rows, dtype=pd.ArrowDtype(pa.list_(pa.float32(), DIM)))})


@case("pandas", "list_of_lists", "object column of lists of lists")
def _pandas_nested(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": [None if row is None else [row] for row in data.rows]})


@case("pandas", "binary", "object column of bytes", encoding="float64_be")
def _pandas_bytes(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": _bytes(data, ">f8")})


@case("pandas", "text", "str")
def _pandas_text(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"embedding": _texts(data)})


@case("pandas", "wide", "a column a dimension", embedding_column="dim_*")
def _pandas_wide(data: Corpus, path: Path) -> None:
    _pandas(data, path, {name: pd.Series(column, dtype="float32") for name, column in _wide(data).items()})


@case("pandas", "list", "a struct's field (object column of dicts)", embedding_column="payload.vector")
def _pandas_struct(data: Corpus, path: Path) -> None:
    _pandas(data, path, {"payload": _payload(data)})


@case("pandas", "spark_vector", "object column of dicts, as Spark's toPandas")
def _pandas_spark(data: Corpus, path: Path) -> None:
    vectors: list[Any] = []
    for k, row in enumerate(data.rows):
        if row is None:
            vectors.append(None)
        elif k % 2:
            vectors.append({"type": 0, "size": DIM, "indices": list(range(DIM)), "values": row})
        else:
            vectors.append({"type": 1, "size": None, "indices": None, "values": row})
    _pandas(data, path, {"embedding": vectors})


# --- DuckDB


def _duckdb(data: Corpus, path: Path, expression: str, vectors: pl.Series | None = None) -> None:
    if vectors is None:
        vectors = pl.Series(data.rows, dtype=pl.List(pl.Float64))
    source = pl.DataFrame({"id": data.ids, "event_time": data.times, "v": vectors}).to_arrow()
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.register("source", source)
        query = f"SELECT id, event_time, {expression} FROM source"
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {GROUP})")


for _expression, _layout, _name, _settings in (
    ("v::FLOAT[] AS embedding", "list", "FLOAT[]", {}),
    ("v::DOUBLE[] AS embedding", "list", "DOUBLE[]", {}),
    (f"v::FLOAT[{DIM}] AS embedding", "list", "FLOAT[d]", {}),
    ("v::TINYINT[] AS embedding", "list", "TINYINT[]", {"encoding": "int8"}),
    ("v::UTINYINT[] AS embedding", "list", "UTINYINT[]", {"encoding": "uint8"}),
    ("CASE WHEN v IS NOT NULL THEN [v::FLOAT[]] END AS embedding", "list_of_lists", "FLOAT[][]", {}),
    ("v::FLOAT[]::VARCHAR AS embedding", "text", "VARCHAR", {}),
    (
        "{'lang': 'en', 'vector': v::FLOAT[]} AS payload",
        "list",
        "a STRUCT's field",
        {"embedding_column": "payload.vector"},
    ),
    (
        ", ".join(f"v[{k + 1}]::FLOAT AS dim_{k}" for k in range(DIM)),
        "wide",
        "a column a dimension",
        {"embedding_column": "dim_*"},
    ),
):

    @case("duckdb", _layout, _name, _name != "FLOAT[d]", **_settings)
    def _duckdb_select(data: Corpus, path: Path, expression: str = _expression) -> None:
        _duckdb(data, path, expression)


@case("duckdb", "binary", "BLOB", encoding="float16")
def _duckdb_blob(data: Corpus, path: Path) -> None:
    _duckdb(data, path, "v AS embedding", pl.Series(_bytes(data, "<f2"), dtype=pl.Binary))


# --- fastparquet: no lists of numbers, only their text or bytes, and wide columns


def _fastparquet(data: Corpus, path: Path, columns: dict[str, Any], encoding: Any = "infer") -> None:
    frame = pd.DataFrame({"id": np.array(data.ids, object), "event_time": data.times, **columns})
    with warnings.catch_warnings():  # its own use of pandas and numpy
        warnings.simplefilter("ignore")
        fastparquet.write(str(path), frame, row_group_offsets=GROUP, object_encoding=encoding, write_index=False)


@case("fastparquet", "binary", "bytes", encoding="float32")
def _fastparquet_bytes(data: Corpus, path: Path) -> None:
    column = pd.Series(_bytes(data, "<f4"), dtype=object)
    _fastparquet(data, path, {"embedding": column}, {"id": "utf8", "embedding": "bytes"})


@case("fastparquet", "text", "JSON")
def _fastparquet_json(data: Corpus, path: Path) -> None:
    column = pd.Series(data.rows, dtype=object)
    _fastparquet(data, path, {"embedding": column}, {"id": "utf8", "embedding": "json"})


@case("fastparquet", "wide", "a column a dimension", embedding_column="dim_*")
def _fastparquet_wide(data: Corpus, path: Path) -> None:
    columns = {name: pd.Series(column, dtype="float32") for name, column in _wide(data).items()}
    _fastparquet(data, path, columns, {"id": "utf8"})


# --- the tables of docs/layouts.md


def by_writer() -> str:
    """Layout by writer: how many ways to write it are tried."""
    lines = [f"| layout | {' | '.join(WRITERS)} |", "| --- |" + " --- |" * len(WRITERS)]
    for layout in LAYOUTS:
        counts = [sum(form.layout == layout for form in FORMS.values())]
        counts += [sum((one.writer, one.layout) == (writer, layout) for one in CASES) for writer in WRITERS[1:]]
        lines.append(f"| {layout} | {' | '.join(str(count) if count else '' for count in counts)} |")
    return "\n".join(lines)


def by_case() -> str:
    """What each writer's own type arrives as, and the settings it needs."""
    lines = ["| writer | its type | read as | settings |", "| --- | --- | --- | --- |"]
    for one in CASES:
        told = " ".join(f"`source.{key}={value}`" for key, value in one.settings.items())
        lines.append(f"| {one.writer} | {one.name} | {one.layout} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(by_writer(), by_case(), sep="\n\n")
