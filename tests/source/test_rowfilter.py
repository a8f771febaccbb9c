"""The row filter keeps what pyarrow's own ``filters`` keep, and says what is wrong with one that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpudrift.errors import ConfigError
from gpudrift.source import open_source
from gpudrift.source.rowfilter import parse_filter
from gpudrift.windows import covering, parse_period

FILTERS = [
    [["lang", "==", "en"]],
    [["lang", "!=", "en"], ["tokens", ">", 3]],
    [[["lang", "==", "en"]], [["tokens", "<=", 2]]],
    [["lang", "in", ["en", "fr"]]],
    [["lang", "not in", ["en"]]],
    [["tokens", ">=", 5]],
    [["year", "=", 2025]],
    [["year", "<", 2026], ["lang", "==", "de"]],
    [[["year", "==", 2026]], [["lang", "==", "fr"]]],
    [["event_time", "<", datetime(2026, 1, 5, 6, tzinfo=UTC)]],
    [("lang", "==", "nothing")],
]


@pytest.fixture
def corpus(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> Path:
    for year in (2025, 2026):
        columns = {
            "id": [f"{year}-{k}" for k in range(40)],
            "lang": [["en", "de", "fr", None][k % 4] for k in range(40)],
            "tokens": [None if k % 7 == 0 else k % 6 for k in range(40)],
        }
        write(f"corpus/year={year}/a.parquet", vectors(40), group_rows=16, **columns)
    return tmp_path / "corpus"


@pytest.mark.parametrize("raw", FILTERS)
def test_filters_keep_what_pyarrow_keeps(corpus: Path, raw: Any) -> None:
    disjunction = raw if isinstance(raw[0][0], list) else [raw]
    expected = pq.read_table(corpus, filters=[[tuple(one) for one in group] for group in disjunction])
    source = open_source(str(corpus), filter=raw, id_column="id")
    windows = covering(parse_period("day"), datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC))
    cloud = source.read(windows)
    assert cloud.ids is not None
    assert sorted(cloud.ids.to_pylist()) == sorted(expected["id"].to_pylist())
    assert source.count(windows) == list(cloud.sizes())
    if len(expected):
        extent = source.extent()
        times = expected["event_time"].to_pylist()
        assert (extent.first, extent.last, extent.rows) == (min(times), max(times), len(times))


def test_no_filter() -> None:
    assert parse_filter(None) is None


@pytest.mark.parametrize(
    "raw",
    [
        [],
        "lang == en",
        ["lang", "==", "en"],
        [["lang", "==", "en"], "x"],
        [["lang", "equals", "en"]],
        [["lang", "=="]],
        [[1, "==", "en"]],
        [["lang", "in", "en"]],
        [["lang", "==", ["en"]]],
        [[[]]],
        {"lang": "en"},
    ],
)
def test_other_forms_are_a_config_error(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)source\.filter.*column, operator, value"):
        parse_filter(raw)


def test_types_that_cannot_be_compared_are_a_config_error_before_anything_is_read(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)source\.filter.*tokens is int64"):
        open_source(str(corpus), filter=[["tokens", "==", "three"]])


def test_a_column_that_is_not_there_is_a_config_error(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no column 'language'.*source\.filter.*lang, tokens, year"):
        open_source(str(corpus), filter=[["language", "==", "en"]])


def test_a_filter_on_folders_leaves_files_unread(corpus: Path, flip: Callable[..., None]) -> None:
    for column in range(5):
        flip(corpus / "year=2025" / "a.parquet", column)
    source = open_source(str(corpus), filter=[["year", ">", 2025]])
    extent = source.extent()
    assert len(source.read(covering(parse_period("week"), extent.first, extent.last))) == 40


def test_positions_keep_their_order_over_many_rows() -> None:
    """Arrow filters in pieces of 32 k rows, in parallel."""
    checked = parse_filter([["x", "!=", 1]])
    assert checked is not None
    rows = checked.rows(pa.table({"x": pa.array([k % 3 for k in range(200_000)])}))
    assert rows.tolist() == [k for k in range(200_000) if k % 3 != 1]
