"""Records in one line each."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from gpudrift.calibrate import Limits, judge
from gpudrift.records import (
    Calibration,
    ClusterShift,
    GateMetric,
    HistoryPoint,
    Lagged,
    Phenomenon,
    SegmentScore,
    SegmentShift,
    segment_text,
)
from gpudrift.report import lines


def calibration(ratio: float, p_aa: float = 0.3) -> Calibration:
    known = {field.name: 0.0 for field in dataclasses.fields(Calibration)}
    fields = {**known, "ratio": ratio, "p_aa": p_aa, "severity": "low", "aa_scores": {}, "ci": (0.0, 1.0)}
    return Calibration(**fields)  # type: ignore[arg-type]


def gate(metric: str, value: float, p_holm: float, null_sd: float | None, p_close: float | None) -> GateMetric:
    return GateMetric(metric, value, None, null_sd, 0.0, p_holm / 6, p_holm, None, 1.0, p_close)


CLUSTERS = (
    ClusterShift(3, "grown", 40, 90, 0.12, 0.02, 0.005, 0.0, 0.0, 0.0, 0.001, 0.02, ("a", "b", "c", "d")),
    ClusterShift(
        1, "new", 30, 0, 0.09, 0.0, 0.0, 0.0, 0.0, 0.0, 0.006, 0.05, ("x",), (), (("t=new", 0.41), ("u=v", 0.2))
    ),
    ClusterShift(2, "same", 200, 2000, 0.6, 0.6, 0.02, 0.9, 0.9, 0.9, 0.004, 0.0),
    ClusterShift(0, "gone", 0, 400, 0.0, 0.1, 0.02, 0.0, 0.0, 0.0, -0.001, 0.0, (), ("old",), (("t=old", 0.05),)),
)


def test_clusters_are_told_by_their_part_of_the_score() -> None:
    assert lines.cluster_lines(CLUSTERS, 0.01) == (
        "t=new (41%) new, 0.0% to 9.0% of the rows, 60% of the score: x",
        "cluster 0 gone, 10.0% to 0.0% of the rows, -10% of the score: old",
        "cluster 3 grown, 2.0% to 12.0% of the rows, 10% of the score: a, b, c",
    )
    assert "0.006 of the score" in lines.cluster_lines(CLUSTERS, -0.01)[0]
    assert lines.cluster_lines((), 0.0) == ()


def test_segments_that_drifted_come_before_those_that_grew() -> None:
    def score(value: str | None, verdict: str, ratio: float | None, q: float | None = 0.002) -> SegmentScore:
        found = None if ratio is None else calibration(ratio)
        return SegmentScore("t", value, 0, 50, 400, 12, {}, found, q, verdict, "")  # type: ignore[arg-type]

    scores = [
        score("a", "warning", 30.0),
        score("b", "stable", 1.0),
        score(None, "alert", 3.0),
        score("d", "alert", 9.0),
    ]
    scores.append(score("e", "alert", None, None))

    def shift(value: str | None, pooled: int, kind: str, share: float, part: float) -> SegmentShift:
        known = {"rows": 40, "reference_rows": 90, "reference_share": 0.02, "p": 0.0, "q": 0.0, "p_usual": 0.0}
        fields = {"kind": kind, "share": share, "contribution": part, "witness": 0.0}
        return SegmentShift(column="t", value=value, pooled=pooled, **known, **fields)  # type: ignore[arg-type]

    shifts = [
        shift("g", 0, "grown", 0.12, 0.005),
        shift(None, 7, "shrunk", 0.01, 0.007),
        shift("s", 0, "same", 0.01, 0.007),
    ]
    assert lines.segment_lines(scores, shifts, 0.01) == (
        "t=d alert, 9.0x its usual movement (q=0.002), 50 rows",
        "t=(none) alert, 3.0x its usual movement (q=0.002), 50 rows",
        "t=e alert, - its usual movement, 50 rows",
        "t=a warning, 30x its usual movement (q=0.002), 50 rows",
        f"t={segment_text(None, 7)} shrunk, 2.0% to 1.0% of the rows, 70% of the score",
        "t=g grown, 2.0% to 12.0% of the rows, 50% of the score",
    )


def test_other_references_in_a_line(make_point: Callable[..., HistoryPoint]) -> None:
    window = make_point(41, 0.001).window
    gates = (gate("energy", 0.001, 0.21, 1e-4, 0.5),)
    found = Lagged("previous", window, 340, calibration(1.13), gates, "stable", "")
    label = window.label
    assert lines.lagged_line(found) == f"against {label}, the window before: stable, 1.1x the usual movement (p=0.21)"
    found = dataclasses.replace(
        found, name="year_ago", calibration=None, gates=(), verdict="insufficient", reason="no rows"
    )
    assert lines.lagged_line(found) == f"against {label}, a year ago: insufficient, no rows"
    found = dataclasses.replace(found, name="other", calibration=calibration(2.0, 1e-9), verdict="warning")
    assert lines.part_of_score(-0.001, 1.0) == "0%"  # not -0%
    assert lines.lagged_line(found) == f"against {label}, other: warning, 2.0x the usual movement (p<0.0001)"


@pytest.mark.parametrize("p_holm", [0.009, 0.011])
@pytest.mark.parametrize("value", [0.0, 2.9, 3.1])
@pytest.mark.parametrize("null_sd", [None, 1.0])
@pytest.mark.parametrize("p_close", [None, 0.04, 0.06])
def test_gates_are_marked_as_the_verdict_judges_them(
    p_holm: float, value: float, null_sd: float | None, p_close: float | None
) -> None:
    gates, limits = (gate("m", value, p_holm, null_sd, p_close),), Limits()
    (line,) = lines.gate_lines(gates, limits)
    judged = judge(gates, limits)
    assert judged is not None
    assert (line.beyond, line.sure) == (judged.warn, judged.alarm)
    assert (line.metric, line.value, line.p) == ("m", value, p_holm)


def test_what_changed_is_a_sentence() -> None:
    happened = (Phenomenon("spread", 0.1, "the rows spread 10% wider"), Phenomenon("other", 0.1, "Something. "))
    assert lines.changed_lines(happened) == ("The rows spread 10% wider.", "Something.")


def test_lines_load_neither_rich_nor_matplotlib_nor_torch() -> None:
    code = "import sys, json, gpudrift.report.lines; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"rich", "matplotlib", "torch", "numpy"} & set(loaded)
