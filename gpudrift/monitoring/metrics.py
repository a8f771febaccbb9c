"""What a run found as Prometheus metrics: a registry, and the textfile that node_exporter's collector reads.

All are gauges without timestamps (node_exporter skips a whole file that has one), every sample carries ``drift_job``,
and help texts are the same in every job: node_exporter refuses one metric with two of them. A value that does not exist
has no sample. ``gpudrift_last_success_timestamp_seconds`` is when a run last ended with a verdict, ``insufficient``
among them; a run that was refused writes nothing, so that its job goes stale. docs/metrics.md has the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gpudrift import __version__
from gpudrift.errors import ConfigError
from gpudrift.files import make_directory, sweep
from gpudrift.history import ALL
from gpudrift.outcomes.records import Finding, Outcomes
from gpudrift.records import Attribution, GateMetric, HistoryPoint, Verdict
from gpudrift.report.wording import DISTANCE, printable

if TYPE_CHECKING:
    from gpudrift.result import Run

VERDICT_CODES: Mapping[Verdict, int] = {"stable": 0, "warning": 1, "alert": 2, "insufficient": 3}
CAUSES = ("null", "ragged", "non_finite", "zero")  # of rows that are dropped: each has a sample, 0 where there are none
MOST_SEGMENTS = 200  # the largest, by rows of the window, besides ``all``
MOST_CLUSTERS = 5
MOST_BEHIND = 4  # windows; a product metric whose last value is older says nothing of now
LABEL_LENGTH = 100  # characters


@dataclass(frozen=True)
class Family:
    """A metric: its name, its labels besides ``drift_job``, and its help text."""

    name: str
    labels: tuple[str, ...]
    text: str


_SEGMENT, _CLUSTER, _OUTCOME = ("segment",), ("rank", "kind"), ("segment", "metric")
FAMILIES = (
    Family("gpudrift_score", _SEGMENT, "Energy distance of the window from the reference, in units of the vectors."),
    Family("gpudrift_score_standard_error", _SEGMENT, "Standard error of the score."),
    Family("gpudrift_score_usual", _SEGMENT, "Usual movement: the median score of the reference's own windows."),
    Family("gpudrift_score_threshold", _SEGMENT, "Score that 99% of windows with the usual movement stay below."),
    Family("gpudrift_score_ratio", _SEGMENT, "Score over the usual movement, or over its noise where that is larger."),
    Family("gpudrift_p_value", _SEGMENT, "Chance of a score this far out from the usual movement alone."),
    Family("gpudrift_panel_p_value", (), "Smallest p-value of the metrics that decide, Holm-adjusted over them."),
    Family("gpudrift_metric_value", ("metric",), "Value of a metric that decides on the verdict, in its own unit."),
    Family("gpudrift_metric_p_value", ("metric",), "Its p-value, Holm-adjusted over the metrics that decide."),
    Family("gpudrift_verdict", ("segment", "verdict"), "1 for the verdict of the window, 0 for the other three."),
    Family("gpudrift_verdict_code", _SEGMENT, "Verdict: 0 stable, 1 warning, 2 alert, 3 insufficient data."),
    Family("gpudrift_rows", ("cloud",), "Rows scored, of the current window and of the reference."),
    Family("gpudrift_segment_rows", _SEGMENT, "Rows of the current window by segment."),
    Family("gpudrift_bad_rows", ("cause",), "Rows of the current window that were dropped, by cause."),
    Family("gpudrift_cluster_contribution_ratio", _CLUSTER, "Part of the score that a cluster makes up, 1 for all."),
    Family("gpudrift_cluster_share_ratio", _CLUSTER, "Share of the current rows in a cluster."),
    Family("gpudrift_cluster_reference_share_ratio", _CLUSTER, "Share of the reference's rows in a cluster."),
    Family("gpudrift_outcome_value", _OUTCOME, "Product metric in the last window that has one, in its own unit."),
    Family("gpudrift_outcome_usual", _OUTCOME, "Its mean over windows without drift."),
    Family("gpudrift_outcome_limit", _OUTCOME, "What 99% of windows without drift stay within, on the worse side."),
    Family("gpudrift_outcome_degraded", _OUTCOME, "1 where it is beyond that limit, else 0."),
    Family("gpudrift_outcome_q_value", _OUTCOME, "False discovery rate of its link with drift, over all metrics."),
    Family("gpudrift_outcome_worse_with_drift", _OUTCOME, "1 where it gets worse as drift rises, else 0."),
    Family("gpudrift_duration_seconds", ("stage",), "Duration of a stage of the run."),
    Family("gpudrift_last_success_timestamp_seconds", (), "When a run last ended with a verdict, Unix time."),
    Family("gpudrift_window_start_timestamp_seconds", (), "First moment of the current window, Unix time."),
    Family("gpudrift_window_end_timestamp_seconds", (), "First moment after the current window, Unix time."),
    Family("gpudrift_sink_success", ("sink",), "0 where the run failed to tell a sink (webhook, pushgateway), else 1."),
    Family("gpudrift_build_info", ("version",), "1; the version of gpudrift that ran."),
)


def samples_of(
    ran: Run, outcomes: Outcomes | None, deliveries: Mapping[str, bool], *, ended: datetime
) -> CollectorRegistry:
    """Everything a run found.

    Args:
        ran: with any of calibration, measured numbers, attribution and quality missing.
        outcomes: product metrics beside the drift, None without any.
        deliveries: sinks that were told of the run, and whether each took it.
        ended: timezone-aware; the last success.
    """
    scored = ran.scored
    points = {ALL: scored.point(ran.verdict)} | {one.name: one.point(scored.window) for one in ran.segments}
    calibrations = {ALL: scored.calibration} | {one.name: one.calibration for one in ran.segments}
    found = _Samples(ran.job)
    _put_points(found, points, {name: one.aa_median for name, one in calibrations.items() if one is not None}, outcomes)
    found.put("gpudrift_rows", len(ran.reference_rows.centred), "reference")
    if scored.quality is not None:
        for cause in dict.fromkeys((*CAUSES, *scored.quality.dropped)):
            found.put("gpudrift_bad_rows", scored.quality.dropped.get(cause, 0), cause)
    if ran.attribution is not None:
        _put_clusters(found, ran.attribution)
    _put_run(found, ran.seconds, deliveries, ended)
    return found.registry()


def samples_of_points(
    job: str,
    points: Mapping[str, HistoryPoint],
    outcomes: Outcomes | None = None,
    deliveries: Mapping[str, bool] | None = None,
    *,
    ended: datetime,
    seconds: Mapping[str, float] | None = None,
) -> CollectorRegistry:
    """What the history knows of one window: ``History.windows()[k]``, by segment, the whole as ``ALL``. It lacks the
    rows of the reference, bad rows and clusters."""
    found = _Samples(job)
    usual = {name: gate.usual for name, point in points.items() for gate in point.gates if gate.metric == DISTANCE}
    _put_points(found, points, usual, outcomes)
    _put_run(found, seconds or {}, deliveries or {}, ended)
    return found.registry()


def write_textfile(registry: CollectorRegistry, path: Path) -> None:
    """Write the metrics where node_exporter's textfile collector finds them; ``path`` ends in ``.prom``.

    Whole or not at all, and readable by every user. The temporary name does not end in ``.prom``: the collector reads
    hidden files too. A ``path`` that is a symbolic link stays one. Raises ConfigError where it cannot be written.
    """
    target = Path(os.path.realpath(path))  # Path.resolve raises where links form a loop
    sweep(make_directory(target.parent, "prometheus.textfile"), name=target.name)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(generate_latest(registry))
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(
            f"this file cannot be written: {error.strerror}",
            field="prometheus.textfile",
            value=str(path),
            allowed="a file in a directory this user may write",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def label(text: str, attempt: int = 0) -> str:
    """A label's value from data: printable, of ``LABEL_LENGTH`` characters at most. One that had to be changed ends in
    ``~`` and a hash of the original, so that two that look alike stay apart, in every run alike. attempt: another
    hash."""
    shown = printable(text)
    if attempt == 0 and shown == text and 0 < len(shown) <= LABEL_LENGTH:
        return shown
    mark = hashlib.sha256(f"{attempt} {text}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{shown[: LABEL_LENGTH - 9]}~{mark}"


def distinct_labels(texts: Iterable[str]) -> dict[str, str]:
    """``label`` of each text, no two the same whatever the texts are: one series twice would make node_exporter's whole
    page an error."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in sorted(set(texts), key=lambda text: (label(text) != text, text)):
        attempt = 0
        while (name := label(text, attempt)) in taken:
            attempt += 1
        found[text] = name
        taken.add(name)
    return found


class _Samples:
    """Samples of one job by metric."""

    def __init__(self, job: str) -> None:
        self._job = label(job)
        self._values: dict[str, dict[tuple[str, ...], float]] = {family.name: {} for family in FAMILIES}

    def put(self, name: str, value: float | None, *labels: str) -> None:
        """One sample; none for a value that does not exist. Of the same labels the first one counts."""
        if value is not None and math.isfinite(value):
            self._values[name].setdefault((self._job, *labels), float(value))

    def registry(self) -> CollectorRegistry:
        families = []
        for family in FAMILIES:
            made = GaugeMetricFamily(family.name, family.text, labels=("drift_job", *family.labels))
            for labels, value in self._values[family.name].items():
                made.add_metric(labels, value)
            if made.samples:
                families.append(made)
        registry = CollectorRegistry()
        registry.register(_Fixed(families))
        return registry


class _Fixed(Collector):
    """Numbers that stand. ``prometheus_client.Gauge`` would put them in files where PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families)


def _put_points(
    found: _Samples, points: Mapping[str, HistoryPoint], usual: Mapping[str, float], outcomes: Outcomes | None
) -> None:
    """The window by segment, and the product metrics of the segments that are kept."""
    kept = largest(points)
    if outcomes is not None:
        of_outcomes = dict.fromkeys(one.segment for one in outcomes.findings if one.segment not in kept)
        kept += list(of_outcomes)[: MOST_SEGMENTS + 1 - len(kept)]
    names = distinct_labels(kept)
    for segment in kept:
        if segment in points:
            _put_segment(found, names[segment], points[segment], usual.get(segment))
    whole = points[ALL]
    _put_gates(found, whole.gates)
    found.put("gpudrift_rows", whole.rows, "current")
    found.put("gpudrift_window_start_timestamp_seconds", whole.window.start.timestamp())
    found.put("gpudrift_window_end_timestamp_seconds", whole.window.end.timestamp())
    if outcomes is not None:
        _put_outcomes(found, outcomes, names)


def largest(points: Mapping[str, HistoryPoint]) -> list[str]:
    """``ALL`` and the ``MOST_SEGMENTS`` segments with the most rows, in the order given."""
    segments = sorted((name for name in points if name != ALL), key=lambda name: (-points[name].rows, name))
    kept = {ALL, *segments[:MOST_SEGMENTS]}
    return [ALL, *(name for name in points if name in kept and name != ALL)]


def _put_segment(found: _Samples, segment: str, point: HistoryPoint, usual: float | None) -> None:
    found.put("gpudrift_score", point.score, segment)
    found.put("gpudrift_score_standard_error", point.se, segment)
    found.put("gpudrift_score_usual", usual, segment)
    found.put("gpudrift_score_threshold", point.delta, segment)
    found.put("gpudrift_score_ratio", point.ratio, segment)
    found.put("gpudrift_p_value", point.p_aa, segment)
    for verdict in VERDICT_CODES:
        found.put("gpudrift_verdict", verdict == point.verdict, segment, verdict)
    found.put("gpudrift_verdict_code", VERDICT_CODES[point.verdict], segment)
    found.put("gpudrift_segment_rows", point.rows, segment)


def _put_gates(found: _Samples, gates: Iterable[GateMetric]) -> None:
    gates = list(gates)
    found.put("gpudrift_panel_p_value", min((gate.p_holm for gate in gates), default=None))
    for gate in gates:
        found.put("gpudrift_metric_value", gate.value, gate.metric)
        found.put("gpudrift_metric_p_value", gate.p_holm, gate.metric)


def _put_clusters(found: _Samples, parts: Attribution) -> None:
    """Those that changed first, as the report names them, then the others; the largest part of the score first."""
    ranked = sorted(parts.clusters, key=lambda one: (one.kind == "same", -abs(one.contribution), one.index))
    for place, one in enumerate(ranked[:MOST_CLUSTERS], start=1):
        labels = str(place), one.kind
        # of a score that is no positive number nothing is a part
        part = one.contribution / parts.score if parts.score > 0 else None
        found.put("gpudrift_cluster_contribution_ratio", part, *labels)
        found.put("gpudrift_cluster_share_ratio", one.share, *labels)
        found.put("gpudrift_cluster_reference_share_ratio", one.reference_share, *labels)


def _put_outcomes(found: _Samples, outcomes: Outcomes, segments: Mapping[str, str]) -> None:
    """segments: label values of those that are kept."""
    metrics = distinct_labels(one.metric for one in outcomes.findings)
    for one in outcomes.findings:
        if one.segment not in segments:
            continue
        labels = segments[one.segment], metrics[one.metric]
        found.put("gpudrift_outcome_value", _last_value(outcomes, one), *labels)
        if one.level is not None:
            found.put("gpudrift_outcome_usual", one.level.usual, *labels)
            found.put("gpudrift_outcome_limit", one.level.limit, *labels)
            found.put("gpudrift_outcome_degraded", one.level.degraded if _is_recent(outcomes, one) else None, *labels)
        found.put("gpudrift_outcome_q_value", one.q, *labels)
        worse = None if one.link == "insufficient" else one.link == "worse"
        found.put("gpudrift_outcome_worse_with_drift", worse, *labels)


def _last_value(outcomes: Outcomes, finding: Finding) -> float | None:
    """That of the level; without one (few quiet windows) the last in the table that is no later than the drift's."""
    if finding.level is not None:
        return finding.level.value
    series, drift = outcomes.series.get((finding.metric, finding.segment)), outcomes.drift.get(finding.segment)
    if series is None or drift is None or not drift.windows:
        return None
    last = drift.windows[-1].start
    pairs = zip(series.windows, series.values.tolist(), strict=True)
    known = [value for window, value in pairs if window.start <= last and math.isfinite(value)]
    return known[-1] if known else None


def _is_recent(outcomes: Outcomes, finding: Finding) -> bool:
    """Whether the level is of one of the last windows: else an alert would join this drift with a value of long ago."""
    drift = outcomes.drift.get(finding.segment)
    if drift is None or finding.level is None:
        return True
    return finding.level.window in {window.label for window in drift.windows[-MOST_BEHIND - 1 :]}


def _put_run(found: _Samples, seconds: Mapping[str, float], deliveries: Mapping[str, bool], ended: datetime) -> None:
    for stage, value in seconds.items():
        found.put("gpudrift_duration_seconds", round(value, 3), stage)  # as result.json has it
    found.put("gpudrift_last_success_timestamp_seconds", ended.timestamp())
    for sink, took in deliveries.items():
        found.put("gpudrift_sink_success", took, sink)
    found.put("gpudrift_build_info", 1, __version__)
