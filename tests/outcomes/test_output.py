"""What is written of product metrics: tables, JSON and lines."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_outcomes import METRICS, make_drift, make_finding, make_outcomes, weeks

from gpudrift.files import jsonable
from gpudrift.outcomes import output
from gpudrift.outcomes.records import EventStudy, Finding, LagEffect, Level, Outcomes, OutcomeSeries

NONE = Outcomes((), {}, {})
BARE = make_finding(lags=0, events=False, degraded=None, link="insufficient")


def round_trip(table: pa.Table, folder: Path) -> list[dict[str, Any]]:
    pq.write_table(table, folder / "t.parquet")
    read: list[dict[str, Any]] = pq.read_table(folder / "t.parquet").to_pylist()
    return read


# --- outcomes.parquet


def test_a_row_holds_all_of_a_finding(tmp_path: Path) -> None:
    finding = make_finding()
    (row,) = round_trip(output.table("weekly", "abc", make_outcomes(findings=[finding])), tmp_path)
    events, level = finding.events, finding.level
    assert events is not None
    assert level is not None
    assert events.ci is not None
    assert row == {
        "job": "weekly",
        "reference": "abc",
        "rank": 1,
        "metric": "no_answer_rate",
        "worse": "higher",
        "segment": "all",
        "windows": 58,
        "missing": 2,
        "lag": 1,
        "effect": 0.012,
        "ci_low": -0.001,
        "ci_high": 0.02,
        "r": 0.6,
        "p": 0.0004,
        "q": 0.003,
        "link": "worse",
        "sentence": finding.sentence,
        "events_onsets": 5,
        "events_change": 0.028,
        "events_ci_low": 0.01,
        "events_ci_high": 0.04,
        "events_p": 0.004,
        "events_reason": None,
        "level_window": "2025-W08",
        "level_value": level.value,
        "level_count": 512.0,
        "level_usual": 0.4,
        "level_limit": level.limit,
        "level_p": 0.0004,
        "level_windows": 40,
        "level_degraded": True,
    }


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    (row,) = round_trip(
        output.table("weekly", "abc", make_outcomes(findings=[replace(BARE, q=float("nan"))])), tmp_path
    )
    for name in ("lag", "effect", "ci_low", "ci_high", "r", "p", "q", "events_change", "events_p", "level_value"):
        assert row[name] is None
    assert (row["events_onsets"], row["events_reason"]) == (1, "1 onset of a spike, at least 5 are needed")
    (row,) = output.table("weekly", "abc", make_outcomes(findings=[replace(BARE, events=None)])).to_pylist()
    assert (row["events_onsets"], row["events_reason"]) == (None, None)


def test_findings_keep_their_order_and_none_is_a_table_too() -> None:
    made = output.table("weekly", "abc", make_outcomes(metrics=5))
    assert (made["rank"].to_pylist(), made["metric"].to_pylist()) == ([1, 2, 3, 4, 5], list(METRICS[:5]))
    empty = output.table("weekly", "abc", NONE)
    assert (empty.num_rows, empty.schema) == (0, made.schema)
    assert output.windows_table("weekly", "abc", NONE).schema == output.WINDOWS_SCHEMA


# --- outcomes_windows.parquet


def test_every_window_has_a_row_with_what_is_known_of_it(tmp_path: Path) -> None:
    """A metric that begins before the history, has a gap, and goes on after it."""
    windows, drift = weeks(8), make_drift(8, spikes=[4], gaps=[3])
    cut = {name: getattr(drift, name)[2:7] for name in ("scores", "log_scores", "spikes", "quiet")}
    drift = replace(drift, windows=tuple(replace(w, complete=False) for w in windows[2:7]), **cut)
    values = np.array([0.1, 0.2, np.nan, 0.4, 0.5, np.nan, 0.7, 0.8])
    counts = np.array([10, 20, 0, np.nan, 50, 0, 70, 80])
    series = OutcomeSeries("rate", "lower", "all", windows, values, counts)
    rows = round_trip(
        output.windows_table("weekly", "abc", Outcomes((), {("rate", "all"): series}, {"all": drift})), tmp_path
    )
    assert [row["window"] for row in rows] == [w.label for w in windows[:7]]
    assert [row["window_start"] for row in rows] == [w.start for w in windows[:7]]
    assert [row["window_end"] for row in rows] == [w.end for w in windows[:7]]
    assert [row["value"] for row in rows] == [0.1, 0.2, None, 0.4, 0.5, None, 0.7]
    assert [row["count"] for row in rows] == [10, 20, 0, None, 50, 0, 70]
    assert [row["spike"] for row in rows] == [False, False, False, False, True, False, False]
    scores = [None, None, *(None if np.isnan(s) else s for s in drift.scores.tolist())]
    assert [row["score"] for row in rows] == scores
    assert scores[3] is None
    assert {(row["job"], row["reference"], row["segment"], row["metric"]) for row in rows} == {
        ("weekly", "abc", "all", "rate")
    }


def test_windows_of_the_history_without_a_value_have_a_row() -> None:
    drift, windows = make_drift(6), weeks(6)
    series = OutcomeSeries("rate", "lower", "all", windows[2:4], np.array([0.1, 0.2]), np.array([1.0, 2.0]))
    other = replace(series, segment="lang=en")
    found = Outcomes((), {("rate", "lang=en"): other, ("rate", "all"): series}, {"all": drift})
    rows = output.windows_table("weekly", "abc", found).to_pylist()
    assert [row["value"] for row in rows] == [None, None, 0.1, 0.2, None, None, 0.1, 0.2]
    assert [row["segment"] for row in rows] == ["all"] * 6 + ["lang=en"] * 2
    assert [row["score"] for row in rows[6:]] == [None, None]  # a segment the history does not have


# --- result.json


def test_json_is_plain_and_complete() -> None:
    finding = make_finding(missing=tuple(f"2024-W{k:02d}" for k in range(1, 31)), q=np.float64(0.003))
    found = output.as_json(make_outcomes(findings=[finding, BARE]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found  # no NumPy, no NaN, no tuples
    first, bare = found["findings"]
    assert first["missing"] == {"windows": 30, "labels": [f"2024-W{k:02d}" for k in range(1, 21)]}
    assert first["lags"][1] == {"lag": 1, "n": 54, "r": 0.6, "slope": 0.012, "ci": [-0.001, 0.02]}
    assert first["events"]["profile"] == [0.002] * 5 + [0.03] * 5
    assert (bare["lags"], bare["level"], bare["ci"], bare["events"]["change"]) == ([], None, None, None)
    assert bare["events"]["low"] == [None] * 10
    assert found["notes"] == ["2 windows have no value"]
    assert output.as_json(NONE) == {"findings": [], "notes": []}
    assert jsonable(found) == found


@pytest.mark.parametrize(
    ("record", "key"), [(Finding, None), (EventStudy, "events"), (Level, "level"), (LagEffect, "lags")]
)
def test_json_has_every_field_of_the_records(record: Any, key: str | None) -> None:
    (finding,) = output.as_json(make_outcomes(findings=[make_finding()]))["findings"]
    part = finding if key is None else finding[key]
    part = part[0] if isinstance(part, list) else part
    assert set(part) == {field.name for field in fields(record)}


# --- lines


def test_large_values_and_shares_near_one_are_written_out() -> None:
    def line(worse: str, value: float, usual: float, limit: float) -> str:
        level = Level("2025-W08", value, None, usual, limit, 0.001, 20, True)
        finding = replace(make_finding("b", worse=worse, sentence="x"), level=level)
        return output.lines(make_outcomes(findings=[finding]))[0]

    assert line("lower", 0.99913, 0.99952, 0.99938) == (
        "b is 0.9991 in 2025-W08, below 0.9994, the limit of its quiet windows (usual 0.9995); x"
    )
    assert line("lower", 1186224, 1234857.8, 1220414.9) == (
        "b is 1,186,224 in 2025-W08, below 1,220,415, the limit of its quiet windows (usual 1,234,858); x"
    )
    assert line("higher", 1296.25, 1248.75, 1269.17) == (
        "b is 1,296 in 2025-W08, above 1,269, the limit of its quiet windows (usual 1,249); x"
    )


def test_lines_tell_links_and_metrics_beyond_their_limit_first() -> None:
    findings = [
        make_finding("a", link="none", degraded=False, sentence="no link found: a"),
        make_finding("b", link="none", worse="lower", sentence="no link found: b"),
        make_finding("c", link="better", degraded=None, sentence="c gets better."),
        make_finding("d", link="worse", degraded=False, sentence="d gets worse"),
        make_finding("e", link="insufficient", degraded=True, sentence="insufficient windows: e"),
        make_finding("f", link="worse", degraded=False, sentence="f gets worse"),
    ]
    assert output.lines(make_outcomes(findings=findings)) == (
        "b is 0.31 in 2025-W08, below 0.34, the limit of its quiet windows (usual 0.4); no link found: b",
        "c gets better",
        "d gets worse",
        "and 3 more in outcomes.parquet: 1 worse as drift rises, 1 without a link, 1 with insufficient windows, "
        "1 of them beyond the limit of quiet windows",
    )
    assert output.lines(make_outcomes(findings=findings[:1])) == ("no link found: a",)
    assert output.lines(NONE) == ()


def test_a_value_just_beyond_its_limit_is_told_apart_from_it() -> None:
    level = Level("2025-W08", 0.0398771, None, 0.1, 0.0398779, 0.001, 20, True)
    finding = replace(make_finding("b", worse="lower", sentence="x"), level=level)
    (line,) = output.lines(make_outcomes(findings=[finding]))
    assert line.startswith("b is 0.0398771 in 2025-W08, below 0.0398779, the limit of its quiet windows (usual 0.1)")


def test_lines_hold_no_control_characters() -> None:
    finding = make_finding(sentence="a\x1b[31m metric\nof two lines", degraded=None)
    assert output.lines(make_outcomes(findings=[finding])) == ("a?[31m metric of two lines",)


def test_no_text_names_a_cause() -> None:
    made = make_outcomes(metrics=6)
    texts = " ".join(output.lines(made)) + json.dumps(output.as_json(made))
    assert not any(word in texts.lower() for word in ("cause", "because", "due to", "leads to"))
