"""The row filter keeps what pyarrow's own ``filters`` keep, and says what is wrong with one that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from gpudrift.errors import ConfigError
from gpudrift.source import access, cleaning, open_source, planning
from gpudrift.source.rowfilter import OPERATORS, parse_filter
from gpudrift.windows import covering, parse_period

DAYS = covering(parse_period("day"), datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC))
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


def test_a_list_of_floats_is_rounded_to_the_column_as_rows_are(write: Callable[..., Path], vectors: Any) -> None:
    path = write(
        "a.parquet", vectors(6), group_rows=1, x=pa.array([0.1, 3e38, 0.3, None, float("nan"), 1.5], pa.float32())
    )
    source = open_source(str(path), filter=[["x", "in", [0.1, 3e38, 1.5]]])
    assert source.count(DAYS) == [3, 0, 0]


@pytest.mark.parametrize("raw", [[["tokens", "<", 2**63]], [["tokens", "in", [1, 2**64]]]])
def test_numbers_beyond_64_bits_are_a_config_error(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)too large.*source\.filter.*2\^63"):
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


# --- row groups ruled out by their statistics

NUMBERS = [0, 1, -1, 3, 7, 300, 2**53, 2**53 + 1, 0.0, -0.0, 0.1, 0.3, 1e30, float("nan"), float("inf")]
TEXTS = ["", "a", "ab", "b", "\u00e9", "\U0001f600", "a" * 80]
KINDS = {
    "int8": (pa.int8(), [0, 1, -1, 3, 7, 127, -128]),
    "uint64": (pa.uint64(), [0, 1, 3, 2**53 - 1]),
    "int64": (pa.int64(), [0, 1, -1, 3, 2**53 - 1, 2**31]),
    "float32": (pa.float32(), [v for v in NUMBERS if isinstance(v, float)]),
    "float64": (pa.float64(), [v for v in NUMBERS if isinstance(v, float)]),
    "string": (pa.string(), TEXTS),
    "category": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
}


@st.composite
def filtered(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    arrow_type, values = KINDS[kind]
    wanted = st.sampled_from(TEXTS if "str" in kind or kind == "category" else NUMBERS)
    operator = draw(st.sampled_from(OPERATORS))
    several = operator in ("in", "not in")
    return {
        "type": arrow_type,
        "values": draw(st.lists(st.none() | st.sampled_from(values), min_size=1, max_size=12)),
        "predicate": ["x", operator, draw(st.lists(wanted, min_size=1, max_size=3)) if several else draw(wanted)],
        "year": draw(st.none() | st.sampled_from([2025, 2026])),
        "either": draw(st.booleans()),
    }


@given(filtered())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_statistics_never_rule_out_a_row_that_passes(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    """Against Arrow's filter on the table in memory, which knows no statistics."""
    folder = tmp_path_factory.mktemp("corpus") / "year=2026"
    folder.mkdir()
    rows = len(case["values"])
    x = pa.array(case["values"], KINDS["string"][0] if pa.types.is_dictionary(case["type"]) else case["type"])
    table = pa.table(
        {
            "embedding": pa.array([[1.0, k] for k in range(rows)], pa.list_(pa.float32(), 2)),
            "event_time": pa.array([datetime(2026, 1, 5, k, tzinfo=UTC) for k in range(rows)]),
            "x": x.cast(case["type"]),
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    predicates = [case["predicate"]] + ([] if case["year"] is None else [["year", "==", case["year"]]])
    raw = [[one] for one in predicates] if case["either"] else predicates
    try:
        parsed = parse_filter(raw)
        assert parsed is not None
        whole = table.append_column("year", pa.array([2026] * rows, pa.int64()))
        expected = np.sort(whole.append_column("row", pa.array(np.arange(rows))).filter(parsed.expression)["row"])
    except (ConfigError, pa.ArrowException):
        reject()  # values of two kinds in one list, or a float beside integers it cannot hold
    source = open_source(str(folder.parent), filter=raw)
    assert source.read(DAYS[:1]).embeddings[:, 1].tolist() == expected.tolist()
    assert source.count(DAYS[:1]) == [len(expected)]


@pytest.mark.parametrize(
    ("raw", "groups"),
    [
        ([["tokens", "<", 20]], {0, 1}),
        ([["tokens", ">=", 35]], {3}),
        ([["tokens", "==", 20]], {2}),
        ([["tokens", "==", 99]], set()),
        ([["tokens", "in", [5, 25]]], {0, 2}),
        ([[["tokens", "<", 5]], [["tokens", ">", 35]]], {0, 3}),
        ([["tokens", "<", 20], ["lang", "==", "b"]], {1}),
        ([["tokens", "<", 20], ["part", "==", 2]], set()),
        ([[["tokens", "<", 5]], [["part", "==", 1]]], {0, 1, 2, 3}),
        ([["tokens", "!=", 5]], {0, 1, 2, 3}),
        ([["empty", "==", 5]], {0, 1, 2, 3}),  # all null: statistics have no least and greatest
    ],
)
def test_row_groups_ruled_out_are_not_opened(
    write: Callable[..., Path],
    vectors: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raw: Any,
    groups: set[int],
) -> None:
    columns = {
        "tokens": pa.array([None if k % 9 == 0 else k for k in range(40)], pa.int32()),
        "lang": pa.array(["abcd"[k // 10] for k in range(40)], pa.string_view()),
        "empty": pa.nulls(40, pa.int64()),
    }
    write("corpus/part=1/a.parquet", vectors(40), group_rows=10, **columns)
    opened: set[int] = set()
    whole = access.read_batches

    def counted(reader: Any, path: str, row_group: int, *rest: Any) -> Any:
        opened.add(row_group)
        return whole(reader, path, row_group, *rest)

    for module in (planning, cleaning):
        monkeypatch.setattr(module, "read_batches", counted)
    source = open_source(str(tmp_path / "corpus"), filter=raw)
    source.count(DAYS)
    assert opened == groups
    source.read(DAYS)
    assert opened == groups
