"""docs/history.md: its table of columns is the schema, and its queries answer as the history itself does."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from jobs import run

from gpudrift.history import ALL, SCHEMA, History
from gpudrift.history_job import pinned_id
from gpudrift.records import HistoryPoint

TEXT = (Path(__file__).parents[1] / "docs" / "history.md").read_text(encoding="utf-8")
ENGINES = ("duckdb", "pandas", "polars")
SAMPLE_ID = "2f68837adda0"


def test_the_documented_columns_are_the_schema() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", TEXT.partition("## Columns")[2], re.MULTILINE)
    assert rows == [(field.name, str(field.type)) for field in SCHEMA]


def test_the_documented_rows_have_numbers_where_it_says(small: tuple[Path, str]) -> None:
    """Which columns are null on which rows."""
    where, reference = small
    found = pl.read_parquet(f"{where}/out/weekly/history/weekly/{reference}/*.parquet")
    energy, others = found.filter(metric="energy"), found.filter(pl.col("metric") != "energy")
    for name in ("verdict", "clear_limit", "ratio", "in_reference", "q"):
        assert others[name].null_count() == len(others), name
    assert energy["verdict"].null_count() == 0
    assert energy.filter(segment=ALL)["q"].null_count() == len(energy.filter(segment=ALL))
    assert energy.filter(pl.col("segment") != ALL)["q"].drop_nulls().len() > 0
    gating = found.filter(pl.col("p_holm").is_not_null())
    assert gating["p_aa"].null_count() == gating["delta"].null_count() == gating["usual"].null_count() == 0
    assert (gating["low"].is_null() == gating["null_sd"].is_not_null()).all()


@pytest.fixture(scope="module")
def small(drifted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with a history of seven weeks in two languages, two of them drifted, where the documentation has it,
    and the id of its reference."""
    where = tmp_path_factory.mktemp("history")
    settings: dict[str, Any] = {
        "job": "backfill", "name": "weekly", "windows.reference.count": 8, "calibrate.min_windows": 8,
        "backfill.start": "2026-03-02", "backfill.end": "2026-04-13", "source.segment_columns": ["language"],
        "segments.min_rows": 20, "segments.panel": False, "metrics.directions": 4, "report.html": False,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # pictures take seconds
        patch.setattr("gpudrift.report.plots.history", lambda *_, **__: [])
        patch.setattr("gpudrift.report.pictures.segments_over_windows", lambda *_, **__: [])
        assert run(drifted, where / "out" / "weekly", settings).code == 0
    weeks = ["2026-03-09", "2026-03-16", "2026-04-06", "2026-06-01"]  # the last one is not in the history
    lines = [f"{week},100,{0.25 + k / 16}" for k, week in enumerate(weeks)]
    (where / "outcomes.csv").write_text("\n".join(["week_start,queries,no_answer_rate", *lines]) + "\n")
    reference = pinned_id(where / "out" / "weekly" / "reference")
    assert reference is not None
    return where, reference


def blocks(heading: str) -> str:
    """The Python below a heading."""
    found = re.search(r"```python\n(.*?)```", TEXT.partition(f"\n{heading}\n")[2], re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def answers(small: tuple[Path, str]) -> dict[str, list[list[tuple[Any, ...]]]]:
    """What the queries below each heading answer, an engine each, as rows of plain values."""
    where, reference = small
    found: dict[str, list[list[tuple[Any, ...]]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        names: dict[str, Any] = {}
        exec(blocks("## Queries").replace(SAMPLE_ID, reference), names)
        for heading in re.findall(r"^### .+$", TEXT, re.MULTILINE):
            lines = blocks(heading).splitlines()
            assert [line.split("(")[0].split("[")[0] for line in lines] == ["duckdb.sql", "h", "p.filter"]
            for line in lines:
                ast.parse(line, mode="eval")
            found[heading.removeprefix("### ")] = [rows(eval(line, names)) for line in lines]
    return found


def rows(answer: Any) -> list[tuple[Any, ...]]:
    if isinstance(answer, pd.DataFrame):
        plain = answer.astype(object).where(answer.notna(), None)
        return list(plain.itertuples(index=False, name=None))
    return answer.rows() if isinstance(answer, pl.DataFrame) else answer.fetchall()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def kept(small: tuple[Path, str]) -> list[dict[str, HistoryPoint]]:
    where, reference = small
    return History(where / "out" / "weekly" / "history", "weekly", reference).windows()


def test_every_query_is_in_all_three_and_answers_alike(answers: dict[str, list[list[tuple[Any, ...]]]]) -> None:
    assert len(answers) == 4
    for heading, found in answers.items():
        assert len(found) == len(ENGINES)
        assert found[0] == found[1] == found[2], heading
        assert found[0], heading


def test_the_last_verdicts(
    answers: dict[str, list[list[tuple[Any, ...]]]], kept: list[dict[str, HistoryPoint]]
) -> None:
    points = [window[ALL] for window in reversed(kept)]
    assert len(points) == 7
    assert {"stable", "alert"} <= {p.verdict for p in points}
    assert answers["The last verdicts"][0] == [(p.window.label, p.verdict, p.score, p.ratio) for p in points]


def test_windows_beyond_tolerance(
    answers: dict[str, list[list[tuple[Any, ...]]]], kept: list[dict[str, HistoryPoint]]
) -> None:
    expected = [
        (window[ALL].window.label, gate.metric, gate.value, gate.high)
        for window in kept
        for gate in sorted(window[ALL].gates, key=lambda gate: gate.metric)
        if gate.value > gate.high or (gate.low is not None and gate.value < gate.low)
    ]
    assert answers["Windows beyond tolerance, and in which metrics"][0] == expected


def test_segments_worst_first(
    answers: dict[str, list[list[tuple[Any, ...]]]], kept: list[dict[str, HistoryPoint]]
) -> None:
    last = {name: point for name, point in kept[-1].items() if name != ALL}
    assert len(last) >= 2
    ordered = sorted(last.items(), key=lambda item: (item[1].ratio is None, -(item[1].ratio or 0.0), item[0]))
    expected = [
        (name, p.verdict, p.ratio, min((gate.p_holm for gate in p.gates), default=None), p.rows) for name, p in ordered
    ]
    assert answers["Segments of the last window, worst first"][0] == expected


def test_beside_product_metrics(
    answers: dict[str, list[list[tuple[Any, ...]]]], kept: list[dict[str, HistoryPoint]]
) -> None:
    rates = {"2026-W11": 0.25, "2026-W12": 0.3125, "2026-W15": 0.375}
    points = {window[ALL].window.label: window[ALL] for window in kept}
    expected = [(label, points[label].score, points[label].verdict, rate) for label, rate in rates.items()]
    assert answers["Beside product metrics"][0] == expected
