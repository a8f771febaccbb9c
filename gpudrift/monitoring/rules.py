"""Recording and alerting rules for Prometheus (2.26 and later), by the names of ``gpudrift.monitoring.metrics``.

What they count on: a textfile changes once a day or week and is scraped every minute, so a value stands until the next
run; a scrape that fails makes every series vanish for that long. So values are looked for in the last hour, and ``for``
only has to outlast a run that is repeated at once. A verdict has its own memory (two windows for an alert).

A job may run on several machines, or have moved to another one, whose old file stands for ever: the newest run of a job
alone counts (``NEWEST``). Its series are found by all labels they share with its last success, so that it does not
matter which ones node_exporter, a Pushgateway or Prometheus added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from gpudrift.errors import ArgumentError
from gpudrift.history import ALL

Rule = dict[str, Any]

LAST_SUCCESS = "drift_job:gpudrift_last_success_timestamp_seconds:max"
NEWEST = "instance_drift_job:gpudrift_last_success_timestamp_seconds:newest"
STALE_AFTER = "drift_job:gpudrift_stale_after_seconds:limit"
WINDOW_END = "drift_job:gpudrift_window_end_timestamp_seconds:newest"
VERDICT = "drift_job_segment:gpudrift_verdict_code:newest"
RATIO = "drift_job_segment:gpudrift_score_ratio:newest"
OVER_THRESHOLD = "drift_job_segment:gpudrift_score_over_threshold:ratio"
BAD_ROWS = "drift_job:gpudrift_bad_rows:ratio"
SINK = "drift_job_sink:gpudrift_sink_success:newest"
DEGRADED = "drift_job_segment_metric:gpudrift_outcome_degraded:newest"
OUTCOME = "drift_job_segment_metric:gpudrift_outcome_{}:newest"

_HELD = "1h"  # how long a value is taken to stand after the last scrape that had it
_SETTLED = "15m"
_HEADER = """\
# Rules for the metrics of gpudrift: docs/metrics.md says what to do about each alert.
# Made by gpudrift (job=dashboard) for: {jobs}. Load with rule_files in prometheus.yml.
"""


def rules(jobs: Sequence[str], stale: Mapping[str, float], *, bad_rows: float = 0.005) -> dict[str, Any]:
    """The content of a rule file: one group, recording rules first.

    Args:
        jobs: names of the jobs (``drift_job``), taken literally.
        stale: seconds without a run after which each of them is stale.
        bad_rows: share of dropped rows from which on they are told; runs that lose more than
            ``quality.max_bad_fraction`` (0.01) are refused.

    Raises:
        ArgumentError: no job, one twice, or one without a time.
    """
    _check(jobs, stale, bad_rows)
    return {"groups": [{"name": "gpudrift", "rules": _records(jobs, stale) + _alerts(bad_rows)}]}


def to_yaml(content: Mapping[str, Any]) -> str:
    """A rule file: equal text for equal rules."""
    jobs = [
        rule["labels"]["drift_job"]
        for group in content["groups"]
        for rule in group["rules"]
        if rule.get("record") == STALE_AFTER
    ]
    body = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=False)
    return _HEADER.format(jobs=", ".join(map(json.dumps, jobs))) + str(body)


def matcher(jobs: Sequence[str]) -> str:
    """``drift_job=~"..."`` that matches these names and no others: PromQL anchors regular expressions at both ends."""
    if len(jobs) == 1:
        return f"drift_job={_quoted(jobs[0])}"
    return f"drift_job=~{_quoted('|'.join(map(_escaped, jobs)))}"


def _check(jobs: Sequence[str], stale: Mapping[str, float], bad_rows: float) -> None:
    if not jobs or len(set(jobs)) != len(jobs) or not all(jobs):
        raise ArgumentError("these are no jobs", field="jobs", value=list(jobs), allowed="one or more different names")
    for job in jobs:
        seconds = stale.get(job, math.nan)
        if not 0 < seconds < math.inf:
            raise ArgumentError(
                "this job has no time after which it is stale", field=f"stale[{job}]", value=seconds, allowed="above 0"
            )
    if not 0 < bad_rows < 1:
        raise ArgumentError("this is not a share", field="bad_rows", value=bad_rows, allowed="above 0 to below 1")


def _escaped(name: str) -> str:
    """A name as a regular expression of RE2."""
    return "".join("\\" + character if character in r"\.+*?()|[]{}^$-" else character for character in name)


def _quoted(text: str) -> str:
    """A string literal of PromQL: its escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _records(jobs: Sequence[str], stale: Mapping[str, float]) -> list[Rule]:
    chosen = matcher(jobs)

    def held(name: str, more: str = "") -> str:
        return f"last_over_time({name}{{{chosen}{more}}}[{_HELD}])"

    def of_newest(name: str, *labels: str) -> str:
        """The metric in the newest run of each job; of runs that ended at the same moment the largest."""
        joined = f"ignoring ({', '.join(labels)}) {NEWEST}" if labels else NEWEST
        return f"max by ({', '.join(('drift_job', *labels))}) ({held(name)} and {joined})"

    bad = f"sum by (drift_job) ({of_newest('gpudrift_bad_rows', 'cause')})"
    current = held("gpudrift_rows", ', cloud="current"')
    kept = f"max by (drift_job) ({current} and ignoring (cloud) {NEWEST})"
    last = held("gpudrift_last_success_timestamp_seconds")
    over = f"{of_newest('gpudrift_score', 'segment')} / {of_newest('gpudrift_score_threshold', 'segment')}"
    return [
        *({"record": STALE_AFTER, "expr": f"vector({stale[job]:.15g})", "labels": {"drift_job": job}} for job in jobs),
        {"record": LAST_SUCCESS, "expr": f"max by (drift_job) ({last})"},
        {"record": NEWEST, "expr": f"{last} == on (drift_job) group_left () {LAST_SUCCESS}"},
        {"record": WINDOW_END, "expr": of_newest("gpudrift_window_end_timestamp_seconds")},
        {"record": VERDICT, "expr": of_newest("gpudrift_verdict_code", "segment")},
        {"record": RATIO, "expr": of_newest("gpudrift_score_ratio", "segment")},
        {"record": OVER_THRESHOLD, "expr": over},
        {"record": BAD_ROWS, "expr": f"{bad} / ({bad} + {kept})"},
        {"record": SINK, "expr": of_newest("gpudrift_sink_success", "sink")},
        *(
            {"record": OUTCOME.format(name), "expr": of_newest(f"gpudrift_outcome_{name}", *_OUTCOME)}
            for name in ("value", "limit", "degraded")
        ),
    ]


def _alerts(bad_rows: float) -> list[Rule]:
    late = f"time() - {LAST_SUCCESS} > on (drift_job) {STALE_AFTER}"
    return [
        _alert(
            "GpudriftAlert",
            f'{VERDICT}{{segment="{ALL}"}} == 2',
            "warning",
            summary="{{ $labels.drift_job }}: the embeddings have drifted",
            description=f"Job {{{{ $labels.drift_job }}}} gives the verdict alert{_WINDOW}. Two windows in a row lay "
            f"further from the reference than usual; the alert ends after two in a row that do not.{_DISTANCE}",
            runbook="Open report.html in the output directory of the job: what changed, how much, and example ids.",
        ),
        _alert(
            "GpudriftSegmentAlert",
            f'{VERDICT}{{segment!="{ALL}"}} == 2 unless on (drift_job) {VERDICT}{{segment="{ALL}"}} == 2',
            "warning",
            summary="{{ $labels.drift_job }}: {{ $labels.segment }} has drifted",
            description=f"In job {{{{ $labels.drift_job }}}} the segment {{{{ $labels.segment }}}} has the verdict "
            f"alert{_WINDOW}; all rows together have not. Two windows in a row lay further from the segment's own "
            f"reference than usual.{_DISTANCE}",
            runbook="Open report.html in the output directory of the job, and there the segment.",
        ),
        _alert(
            "GpudriftWarning",
            f'{VERDICT}{{segment="{ALL}"}} == 1',
            "info",
            summary="{{ $labels.drift_job }}: the embeddings may have drifted",
            description=f"Job {{{{ $labels.drift_job }}}} gives the verdict warning{_WINDOW}. It lies further from "
            f"the reference than usual; a second one in a row that clearly does makes it an alert.{_DISTANCE}",
            runbook="Nothing has to be done yet. report.html in the output directory of the job says what moved.",
        ),
        _alert(
            "GpudriftInsufficientData",
            f'{VERDICT}{{segment="{ALL}"}} == 3',
            "warning",
            summary="{{ $labels.drift_job }}: too little data for a verdict",
            description=f"Job {{{{ $labels.drift_job }}}} ran and has no verdict{_WINDOW}. It has too few rows, or the "
            "reference is not steady enough to compare with. Until there is a verdict nobody would see drift.",
            runbook="The reason is in report.html and, as `reason`, in result.json. Look whether rows arrive as usual.",
        ),
        _alert(
            "GpudriftJobStale",
            f"({late}) or ({STALE_AFTER} unless on (drift_job) {LAST_SUCCESS})",
            "warning",
            settled="1h",
            summary="{{ $labels.drift_job }}: the job has not run",
            description="{{ with printf "
            f'"time() - {LAST_SUCCESS}{{drift_job=%q}}" $labels.drift_job | query }}}}'
            "The last run of job {{ $labels.drift_job }} that ended with a verdict was "
            "{{ . | first | value | humanizeDuration }} ago.{{ else }}"
            "There are no metrics of job {{ $labels.drift_job }}.{{ end }} Until it runs nobody would see drift.",
            runbook="Look into the log of the scheduler: a run that is refused (exit code 1 or 30) leaves the metrics "
            "as they were. If it runs, look whether node_exporter reads the textfile, or whether the push fails.",
        ),
        _alert(
            "GpudriftDataStale",
            f"time() - {WINDOW_END} > on (drift_job) 2 * {STALE_AFTER} unless on (drift_job) ({late})",
            "warning",
            settled="1h",
            summary="{{ $labels.drift_job }}: the job runs on old data",
            description="Job {{ $labels.drift_job }} runs, but its last window ended "
            "{{ $value | humanizeDuration }} ago: nothing new arrives where it reads, or run_date is fixed.",
            runbook="Look at what writes source.uri, and at run_date in the settings of the job.",
        ),
        _alert(
            "GpudriftOutcomeDegraded",
            f"{DEGRADED} == 1",
            "warning",
            summary="{{ $labels.drift_job }}: {{ $labels.metric }} is worse than usual",
            description=f"{_LEVEL} There is no drift alert in this by itself.",
            runbook="Look at the product first; report.html sets the metric beside the drift.",
        ),
        _alert(
            "GpudriftDriftAndOutcomeDegraded",
            f"{DEGRADED} == 1 and on (drift_job, segment) ({VERDICT} == 1 or {VERDICT} == 2)",
            "critical",
            summary="{{ $labels.drift_job }}: drift, and {{ $labels.metric }} is worse than usual",
            description=f"{_LEVEL} The embeddings of the same rows have drifted{_WINDOW}.{_DISTANCE} "
            "That both happen together does not say that one comes from the other.",
            runbook="Open report.html in the output directory of the job: what changed, with ids, and the product "
            "metric on the same time axis. Start with the clusters that are new or grew.",
        ),
        _alert(
            "GpudriftSinkFailing",
            f"{SINK} == 0",
            "warning",
            summary="{{ $labels.drift_job }}: {{ $labels.sink }} could not be told",
            description="The last run of job {{ $labels.drift_job }} could not tell {{ $labels.sink }} what it found. "
            "The verdict is not touched by that, but whoever waits for the message did not get it.",
            runbook="The error is among the notes of result.json. Look at the address and at the credentials in the "
            "environment of the job.",
        ),
        _alert(
            "GpudriftBadRows",
            f"{BAD_ROWS} > {bad_rows:.15g}",
            "warning",
            summary="{{ $labels.drift_job }}: rows cannot be used",
            description="Job {{ $labels.drift_job }} dropped {{ $value | humanizePercentage }} of the rows of its last "
            f"window (limit of this alert: {bad_rows:.2%}). Beyond quality.max_bad_fraction it refuses to run.",
            runbook="`quality` in result.json has the causes with ids. Mend the rows where they are written.",
        ),
    ]


def _asked(record: str, template: str, *labels: str) -> str:
    """Part of an annotation: a recorded value of the alert's own labels; nothing where there is none."""
    matched, values = ",".join(f"{name}=%q" for name in labels), " ".join(f"$labels.{name}" for name in labels)
    return f'{{{{ with printf "{record}{{{matched}}}" {values} | query }}}}{template}{{{{ end }}}}'


_OUTCOME = "segment", "metric"
_WINDOW = _asked(WINDOW_END, " for the window that ended {{ . | first | value | humanizeTimestamp }}", "drift_job")
_DISTANCE = _asked(
    RATIO, ' Its distance is {{ . | first | value | printf "%.3g" }} times the usual movement.', "drift_job", "segment"
)
_LEVEL = (
    "In job {{ $labels.drift_job }} the product metric {{ $labels.metric }} (rows: {{ $labels.segment }}) is worse "
    "than all but 1% of windows without drift"
    + _asked(OUTCOME.format("value"), ': {{ . | first | value | printf "%.4g" }}', "drift_job", *_OUTCOME)
    + _asked(OUTCOME.format("limit"), ', limit {{ . | first | value | printf "%.4g" }}', "drift_job", *_OUTCOME)
    + "."
)


def _alert(name: str, expr: str, severity: str, *, settled: str = _SETTLED, **annotations: str) -> Rule:
    return {
        "alert": name,
        "expr": expr,
        "for": settled,
        "labels": {"severity": severity},
        "annotations": annotations,
    }
