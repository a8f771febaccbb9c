"""Parquet files for the tests of the source, written with the layouts, times and faults a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(name, vectors, ...)``: a Parquet file in the test's folder, page checksums on.

    vectors: (n, d) array, or a list of lists and Nones. times: datetimes or an Arrow array; by default one an hour from
    START; None: no such column. kind: the Arrow type of the embeddings, by default a fixed-size list of float32.
    """

    def write_file(
        name: str,
        vectors: Any,
        *,
        times: Any = "hourly",
        kind: Any = None,
        group_rows: int | None = None,
        metadata: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
        **columns: Any,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = len(vectors)
        if kind is None:
            kind = pa.list_(pa.float32(), len(vectors[0]))
        values = list(vectors) if isinstance(vectors, np.ndarray) else vectors
        table: dict[str, Any] = {"embedding": pa.array(values, kind)}
        if isinstance(times, str):
            times = hours(rows)
        if times is not None:
            table["event_time"] = times if isinstance(times, pa.Array) else pa.array(times, pa.timestamp("us", "UTC"))
        made = pa.table(table | columns).replace_schema_metadata(metadata)
        pq.write_table(
            made, path, row_group_size=group_rows or max(1, rows), write_page_checksum=True, **(options or {})
        )
        return path

    return write_file


def hours(rows: int, start: datetime = START) -> list[datetime]:
    return [start + timedelta(hours=k) for k in range(rows)]


@pytest.fixture
def vectors() -> Callable[..., np.ndarray]:
    """``vectors(n, d)``: float32 values that float16 holds exactly, different in every row, none of them zero."""

    def make(rows: int, dim: int = 4, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(1, 2000, (rows, dim)).astype(np.float32) / 8

    return make


@pytest.fixture
def flip() -> Callable[..., None]:
    """``flip(path, column=0)``: one bit of the last page of a column, in every row group or in those given."""

    def flip_bit(path: Path, column: int = 0, groups: Sequence[int] | None = None) -> None:
        metadata = pq.ParquetFile(path).metadata
        content = bytearray(path.read_bytes())
        for index in range(metadata.num_row_groups) if groups is None else groups:
            chunk = metadata.row_group(index).column(column)
            begin = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
            content[begin + chunk.total_compressed_size - 3] ^= 1
        path.write_bytes(bytes(content))

    return flip_bit
