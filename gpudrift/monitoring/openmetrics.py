"""A job's history as OpenMetrics text with timestamps, for Prometheus to take in as if it had been there.

``promtool tsdb create-blocks-from openmetrics FILE DIRECTORY`` makes blocks of it. A window's values stand at its end.
Names and labels are those of the textfile (docs/metrics.md), as far as a history can tell: no clusters, bad rows,
durations and sinks, and the reference's rows are unknown. What a window does not have (insufficient data) has no
sample.

OpenMetrics wants the samples of a series together, in order of time, and the series of a name together: the windows
are gone through once for each series, and nothing but them is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from gpudrift.calibrate import HEADLINE, p_panel
from gpudrift.files import atomic_path
from gpudrift.history import ALL
from gpudrift.monitoring.metrics import FAMILIES, VERDICT_CODES, distinct_labels, label, largest
from gpudrift.outcomes.records import Finding, Outcomes
from gpudrift.records import GateMetric, HistoryPoint, Verdict

TEXTS = {family.name: family.text for family in FAMILIES}

Points = Sequence[Mapping[str, HistoryPoint]]  # windows, oldest first, each by segment
Value = float | None
Samples = Iterator[tuple[datetime, Value]]
Labels = Mapping[str, str]
Series = Iterator[tuple[dict[str, str], Samples]]


def write_openmetrics(job: str, windows: Points, path: Path, outcomes: Outcomes | None = None) -> None:
    """Write the history of ``job`` to ``path``, whole or not at all.

    Args:
        windows: oldest first, each by segment, as ``History.windows`` gives them.
        outcomes: values of every window; usual, limit, q and links at the window of their level alone, where they were
            found.
    """
    of_job = {"drift_job": label(job)}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, series in _families(windows, outcomes):
            named = False
            for labels, samples in series:
                for moment, value in samples:
                    if value is None or not math.isfinite(value):
                        continue
                    if not named:
                        file.write(f"# HELP {name} {_escaped(TEXTS[name])}\n# TYPE {name} gauge\n")
                        named = True
                    file.write(f"{name}{_braces(of_job | labels)} {float(value)!r} {_seconds(moment)}\n")
        file.write("# EOF\n")


def _families(windows: Points, outcomes: Outcomes | None) -> Iterator[tuple[str, Series]]:
    """Every name with its series."""
    kept = {segment for window in windows for segment in largest(window)}
    of_outcomes = set() if outcomes is None else {segment for _, segment in outcomes.series}
    names = distinct_labels(kept | of_outcomes)
    segments = sorted(kept)
    metrics = sorted({gate.metric for window in windows for gate in window[ALL].gates})

    def of_segments(read: Callable[[HistoryPoint], Value]) -> Series:
        for segment in segments:
            yield {"segment": names[segment]}, _samples(windows, segment, read)

    def of_gates(read: Callable[[GateMetric], Value]) -> Series:
        for metric in metrics:
            yield {"metric": metric}, _samples(windows, ALL, partial(_of_gate, metric, read))

    def of_all(read: Callable[[HistoryPoint], Value], **labels: str) -> Series:
        yield labels, _samples(windows, ALL, read)

    def verdicts() -> Series:
        for segment in segments:
            for verdict in VERDICT_CODES:
                labels = {"segment": names[segment], "verdict": verdict}
                yield labels, _samples(windows, segment, partial(_is, verdict))

    yield "gpudrift_score", of_segments(lambda point: point.score)
    yield "gpudrift_score_standard_error", of_segments(lambda point: point.se)
    yield "gpudrift_score_usual", of_segments(partial(_of_gate, HEADLINE, lambda gate: gate.usual))
    yield "gpudrift_score_threshold", of_segments(lambda point: point.delta)
    yield "gpudrift_score_ratio", of_segments(lambda point: point.ratio)
    yield "gpudrift_p_value", of_segments(lambda point: point.p_aa)
    yield "gpudrift_panel_p_value", of_all(lambda point: p_panel(point.gates))
    yield "gpudrift_metric_value", of_gates(lambda gate: gate.value)
    yield "gpudrift_metric_p_value", of_gates(lambda gate: gate.p_holm)
    yield "gpudrift_verdict", verdicts()
    yield "gpudrift_verdict_code", of_segments(lambda point: VERDICT_CODES[point.verdict])
    yield "gpudrift_rows", of_all(lambda point: point.rows, cloud="current")
    yield "gpudrift_segment_rows", of_segments(lambda point: point.rows)
    yield "gpudrift_last_success_timestamp_seconds", of_all(lambda point: point.window.end.timestamp())
    yield "gpudrift_window_start_timestamp_seconds", of_all(lambda point: point.window.start.timestamp())
    yield "gpudrift_window_end_timestamp_seconds", of_all(lambda point: point.window.end.timestamp())
    if outcomes is not None:
        yield from _outcome_families(outcomes, names)


def _outcome_families(outcomes: Outcomes, segments: Labels) -> Iterator[tuple[str, Series]]:
    metrics = distinct_labels(metric for metric, _ in outcomes.series)
    findings = {(finding.metric, finding.segment): finding for finding in outcomes.findings}

    def labels_of(metric: str, segment: str) -> dict[str, str]:
        return {"segment": segments[segment], "metric": metrics[metric]}

    def values() -> Series:
        for metric, segment in sorted(outcomes.series):
            series = outcomes.series[metric, segment]
            ends = (window.end for window in series.windows)
            yield labels_of(metric, segment), zip(ends, map(float, series.values), strict=True)

    def found(read: Callable[[Finding], Value]) -> Series:
        for (metric, segment), finding in sorted(findings.items()):
            moment = _found_at(outcomes, finding)
            if moment is not None:
                yield labels_of(metric, segment), iter([(moment, read(finding))])

    yield "gpudrift_outcome_value", values()
    yield "gpudrift_outcome_usual", found(lambda f: None if f.level is None else f.level.usual)
    yield "gpudrift_outcome_limit", found(lambda f: None if f.level is None else f.level.limit)
    yield "gpudrift_outcome_degraded", found(lambda f: None if f.level is None else f.level.degraded)
    yield "gpudrift_outcome_q_value", found(lambda f: f.q)
    yield "gpudrift_outcome_worse_with_drift", found(lambda f: None if f.link == "insufficient" else f.link == "worse")


def _found_at(outcomes: Outcomes, finding: Finding) -> datetime | None:
    """The end of the window of its level; without one, of the last window with a value."""
    series = outcomes.series.get((finding.metric, finding.segment))
    if series is None:
        return None
    window = None if finding.level is None else finding.level.window
    valued = [w for w, value in zip(series.windows, series.values, strict=True) if math.isfinite(value)]
    return next((w.end for w in reversed(valued) if window in (None, w.label)), None)


def _samples(windows: Points, segment: str, read: Callable[[HistoryPoint], Value]) -> Samples:
    for window in windows:
        if segment in window:
            yield window[segment].window.end, read(window[segment])


def _is(verdict: Verdict, point: HistoryPoint) -> Value:
    return float(point.verdict == verdict)


def _of_gate(metric: str, read: Callable[[GateMetric], Value], point: HistoryPoint) -> Value:
    return next((read(gate) for gate in point.gates if gate.metric == metric), None)


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _seconds(moment: datetime) -> str:
    return f"{moment.timestamp():.0f}" if moment.microsecond == 0 else f"{moment.timestamp():.6f}"
