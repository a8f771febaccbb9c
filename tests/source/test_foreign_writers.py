"""Files of other writers read back equal: float32 exact, ids beside their rows, rows without a vector counted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from foreign import CASES, NULL, WRITERS, Case, by_case, by_writer, corpus

from gpudrift.errors import DataError
from gpudrift.source import open_source
from gpudrift.windows import covering, parse_period

DOCS = Path(__file__).parents[2] / "docs" / "layouts.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.writer} {case.name}")
def test_another_writers_file_reads_back_equal(case: Case, tmp_path: Path) -> None:
    data = corpus(case.nulls)
    case.write(data, tmp_path / "a.parquet")
    source = open_source(str(tmp_path), id_column="id", threads=2, **case.settings)
    extent = source.extent()
    windows = covering(parse_period("1000d"), extent.first, extent.last + timedelta(seconds=1))
    cloud = source.read(windows)
    whole = [k for k, row in enumerate(data.rows) if row is not None]
    assert np.array_equal(cloud.embeddings.numpy(), data.values[whole])
    assert cloud.ids is not None
    assert cloud.ids.to_pylist() == [data.ids[k] for k in whole]
    assert dict(cloud.quality[0].dropped) == ({"null": len(NULL)} if case.nulls else {})
    assert cloud.quality[0].bytes > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.writer} {case.name}")
def test_its_layout_is_the_one_in_the_table(case: Case, tmp_path: Path) -> None:
    case.write(corpus(case.nulls), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), **case.settings)
    assert {file.layout.name for file in source._files} == {case.layout}
    assert source.dim == corpus().values.shape[1]


def test_null_arrays_of_duckdb_are_refused(tmp_path: Path) -> None:
    """DuckDB 2.0 writes broken levels for a null ARRAY (duckdb issue 24731); read on, rows would shift."""
    (array,) = (case for case in CASES if (case.writer, case.name) == ("duckdb", "FLOAT[d]"))
    array.write(corpus(), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"(?s)cannot be read.*a\.parquet, row group 0.*field: embedding"):
        open_source(str(tmp_path)).dim  # noqa: B018


def test_the_documented_tables_are_those_of_the_tests() -> None:
    """Both are printed by: python tests/source/foreign.py"""
    text = DOCS.read_text(encoding="utf-8")
    assert by_writer() in text
    assert by_case() in text
    assert {case.writer for case in CASES} == set(WRITERS[1:])
