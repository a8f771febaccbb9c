"""A history as OpenMetrics: what another parser reads is what the history holds, and what the textfile tells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from histories import backfilled, outcomes_of
from live_prometheus import imported
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as textfile_families

from gpudrift.history import ALL
from gpudrift.monitoring.metrics import samples_of_points
from gpudrift.monitoring.openmetrics import Points, write_openmetrics
from gpudrift.outcomes.records import Outcomes
from gpudrift.records import GateMetric, HistoryPoint, Window

FIRST = datetime(2026, 1, 5, tzinfo=UTC)
Key = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
def history(drifted: Path, tmp_path_factory: pytest.TempPathFactory) -> Points:
    return backfilled(drifted, tmp_path_factory.mktemp("history"))


def week(k: int) -> Window:
    start = FIRST + timedelta(weeks=k)
    return Window(start, start + timedelta(weeks=1), f"2026-W{k + 2:02d}")


def point(k: int, score: float | None = 0.5, rows: int = 100) -> HistoryPoint:
    """A window with a score of its own, or with too few rows for one."""
    if score is None:
        return HistoryPoint.of(week(k), "insufficient", None, rows=rows)
    gate = GateMetric("energy", score, 0.01, 0.1, 0.25, 0.5, 0.5, None, 0.75, 0.5)
    return replace(
        HistoryPoint.of(week(k), "stable", None, rows=rows, gates=(gate,), score=(score, 0.01)),
        p_aa=0.5, delta=0.75, ratio=2.0,
    )  # fmt: skip


def read(path: Path) -> dict[Key, dict[float, float]]:
    """Values by series and moment, by prometheus_client's parser, which refuses what is out of order."""
    found: dict[Key, dict[float, float]] = {}
    for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
        assert (family.type, bool(family.documentation)) == ("gauge", True)
        for sample in family.samples:
            values = found.setdefault((sample.name, frozenset(sample.labels.items())), {})
            assert float(sample.timestamp) not in values
            values[float(sample.timestamp)] = sample.value
    return found


def key(name: str, **labels: str) -> Key:
    return name, frozenset({"drift_job": "weekly", **labels}.items())


def test_every_window_stands_at_its_end(history: Points, tmp_path: Path) -> None:
    write_openmetrics("weekly", history, tmp_path / "h")
    found = read(tmp_path / "h")
    ends = [window[ALL].window.end.timestamp() for window in history]
    scores = [window[ALL].score for window in history]
    assert found[key("gpudrift_score", segment="all")] == dict(zip(ends, scores, strict=True))
    assert list(found[key("gpudrift_verdict_code", segment="all")].values()) == [0.0] * 12 + [1.0, 2.0]
    assert list(found[key("gpudrift_verdict", segment="all", verdict="alert")].values()) == [0.0] * 13 + [1.0]
    for name in ("last_success", "window_end"):
        assert found[key(f"gpudrift_{name}_timestamp_seconds")] == {end: end for end in ends}
    starts = found[key("gpudrift_window_start_timestamp_seconds")]
    assert starts == {end: end - 7 * 86400 for end in ends}


def test_it_tells_what_the_textfile_of_each_window_told(history: Points, tmp_path: Path) -> None:
    write_openmetrics("weekly", history, tmp_path / "h")
    found = read(tmp_path / "h")
    for window in history:
        end = window[ALL].window.end
        told = generate_latest(samples_of_points("weekly", window, ended=end)).decode()
        by_textfile = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in textfile_families(told)
            for sample in family.samples
            if sample.name != "gpudrift_build_info"
        }
        here = {series: values[end.timestamp()] for series, values in found.items() if end.timestamp() in values}
        assert here == by_textfile
        assert len(here) > 40


def test_what_a_window_does_not_have_has_no_sample(tmp_path: Path) -> None:
    write_openmetrics("weekly", [{ALL: point(0)}, {ALL: point(1, None, rows=3)}, {ALL: point(2)}], tmp_path / "h")
    found = read(tmp_path / "h")
    first, second, third = (week(k).end.timestamp() for k in range(3))
    for name in ("score", "score_standard_error", "score_usual", "score_threshold", "score_ratio", "p_value"):
        assert set(found[key(f"gpudrift_{name}", segment="all")]) == {first, third}
    assert set(found[key("gpudrift_metric_value", metric="energy")]) == {first, third}
    assert set(found[key("gpudrift_panel_p_value")]) == {first, third}
    assert found[key("gpudrift_verdict_code", segment="all")] == {first: 0.0, second: 3.0, third: 0.0}
    assert found[key("gpudrift_rows", cloud="current")][second] == 3.0


def test_a_value_that_is_no_number_has_no_sample(tmp_path: Path) -> None:
    write_openmetrics("weekly", [{ALL: replace(point(0), ratio=math.inf, p_aa=math.nan)}], tmp_path / "h")
    found = read(tmp_path / "h")
    assert key("gpudrift_score_ratio", segment="all") not in found
    assert key("gpudrift_p_value", segment="all") not in found
    assert "gpudrift_score_ratio" not in (tmp_path / "h").read_text(encoding="utf-8")


def test_segments_come_and_go(tmp_path: Path) -> None:
    windows = [{ALL: point(0)}, {ALL: point(1), "lang=de": point(1, 0.1)}, {ALL: point(2), "lang=fr": point(2, 0.2)}]
    write_openmetrics("weekly", windows, tmp_path / "h")
    found = read(tmp_path / "h")
    assert found[key("gpudrift_score", segment="lang=de")] == {week(1).end.timestamp(): 0.1}
    assert found[key("gpudrift_score", segment="lang=fr")] == {week(2).end.timestamp(): 0.2}


@pytest.mark.parametrize("value", ['say "no"', "back\\slash", "a{b}=c,d", "größe", "#x", ""])
def test_no_segment_breaks_the_text(tmp_path: Path, value: str) -> None:
    segment = f"tenant={value}"
    write_openmetrics("weekly", [{ALL: point(0), segment: point(0, 0.125)}], tmp_path / "h")
    assert read(tmp_path / "h")[key("gpudrift_score", segment=segment)] == {week(0).end.timestamp(): 0.125}


def test_a_segment_on_two_lines_has_the_label_of_the_textfile(tmp_path: Path) -> None:
    windows = [{ALL: point(0), "tenant=a\nb": point(0, 0.125), "tenant=a b": point(0, 0.25)}]
    write_openmetrics("weekly", windows, tmp_path / "h")
    told = generate_latest(samples_of_points("weekly", windows[0], ended=FIRST)).decode()
    labels = {s.labels["segment"] for f in textfile_families(told) for s in f.samples if s.name == "gpudrift_score"}
    found = {dict(labels)["segment"] for name, labels in read(tmp_path / "h") if name == "gpudrift_score"}
    assert found == labels
    assert len(labels) == 3


def test_outcomes_of_every_window_and_what_was_found_at_the_last(history: Points, tmp_path: Path) -> None:
    outcomes = outcomes_of(history)
    write_openmetrics("weekly", history, tmp_path / "h", outcomes)
    found = read(tmp_path / "h")
    ends = [window[ALL].window.end.timestamp() for window in history]
    for (metric, segment), series in outcomes.series.items():
        labels = {"metric": metric, "segment": segment}
        expected = dict(zip(ends, series.values, strict=True))
        del expected[ends[1]]  # which has no value
        assert found[key("gpudrift_outcome_value", **labels)] == expected
        assert found[key("gpudrift_outcome_usual", **labels)] == {ends[-1]: 0.6}
        assert found[key("gpudrift_outcome_limit", **labels)] == {ends[-1]: 0.55}
        degraded = float(metric == "no_answer_rate")
        assert found[key("gpudrift_outcome_degraded", **labels)] == {ends[-1]: degraded}
        assert found[key("gpudrift_outcome_worse_with_drift", **labels)] == {ends[-1]: 1 - degraded}
        assert found[key("gpudrift_outcome_q_value", **labels)] == {ends[-1]: 0.2 + 0.1 * degraded}


def test_what_was_found_earlier_stands_where_it_was_found(history: Points, tmp_path: Path) -> None:
    made = outcomes_of(history)
    assert made.findings[0].level is not None
    level = replace(made.findings[0].level, window=history[5][ALL].window.label)
    finding = replace(made.findings[0], level=level)
    write_openmetrics("weekly", history, tmp_path / "h", Outcomes((finding,), made.series, {}))
    labels = {"metric": finding.metric, "segment": finding.segment}
    assert read(tmp_path / "h")[key("gpudrift_outcome_usual", **labels)] == {
        history[5][ALL].window.end.timestamp(): 0.6
    }


def test_a_finding_without_a_level_stands_at_the_last_value(history: Points, tmp_path: Path) -> None:
    made = outcomes_of(history)
    series = {name: replace(one, values=one.values.copy()) for name, one in made.series.items()}
    findings = [replace(one, level=None, link="insufficient") for one in made.findings]
    series["success_rate", ALL].values[-1] = math.nan
    write_openmetrics("weekly", history, tmp_path / "h", Outcomes(tuple(findings), series, {}))
    found = read(tmp_path / "h")
    labels = {"metric": "success_rate", "segment": "all"}
    assert list(found[key("gpudrift_outcome_q_value", **labels)]) == [history[-2][ALL].window.end.timestamp()]
    assert {name for name, _ in found if "outcome" in name} == {"gpudrift_outcome_value", "gpudrift_outcome_q_value"}


def test_promtool_takes_it_in_whole(history: Points, tmp_path: Path) -> None:
    write_openmetrics("weekly", history, tmp_path / "h", outcomes_of(history))
    imported(tmp_path / "h", tmp_path / "data")
    blocks = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    told = [json.loads((block / "meta.json").read_text(encoding="utf-8"))["stats"] for block in blocks]
    lines = (tmp_path / "h").read_text(encoding="utf-8").splitlines()
    assert sum(one["numSamples"] for one in told) == sum(not line.startswith("#") for line in lines)


def test_an_empty_history_is_an_empty_text(tmp_path: Path) -> None:
    write_openmetrics("weekly", [], tmp_path / "h")
    assert (tmp_path / "h").read_text(encoding="utf-8") == "# EOF\n"


def test_it_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    write_openmetrics("weekly", [{ALL: point(0)}], tmp_path / "h")
    before = (tmp_path / "h").read_bytes()
    with pytest.raises(AttributeError):
        write_openmetrics("weekly", [{ALL: point(0)}, {ALL: replace(point(1), window=None)}], tmp_path / "h")  # type: ignore[arg-type]
    assert (tmp_path / "h").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["h"]
