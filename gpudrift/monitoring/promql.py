"""What the dashboard asks of Prometheus: values held between windows, of the newest run of each job.

The metrics reach Prometheus in two ways. A textfile is scraped all the time and tells of the last run; a history taken
in (``openmetrics``) has one sample a window. Prometheus forgets a sample after five minutes, so every query holds the
last one for the length of a window (``$hold``), but only where the job is not being scraped: a value that the present
window does not have (insufficient data, a cluster that is no more) would else be drawn from the one before. A job that
has moved leaves its old textfile behind: of several the one whose run ended last counts.
"""

from __future__ import annotations

from gpudrift.monitoring.metrics import FAMILIES

JOB = 'drift_job=~"$job"'
WHOLE = f'{JOB},segment="all"'
SEGMENT = f'{JOB},segment=~"$segment"'
METRIC = f'{JOB},metric=~"$metric"'
OUTCOME = f'{SEGMENT},metric=~"$outcome"'
SUCCESS = f"gpudrift_last_success_timestamp_seconds{{{JOB}}}"
WINDOW_END = f"gpudrift_window_end_timestamp_seconds{{{JOB}}}"
OWN_LABELS = {family.name: family.labels for family in FAMILIES}  # besides drift_job and what a scrape adds
SMALLEST = 1e-12  # p-value that a log axis still shows: one of 0 has no place there


def held(name: str, selector: str, *labels: str) -> str:
    """PromQL: a metric by job and these labels, each value held until the next window's."""
    series = f"{name}{{{selector}}}"
    newest = f"{SUCCESS} == on (drift_job) group_left () max by (drift_job) ({SUCCESS})"
    scraped = f"{series} and ignoring ({', '.join(OWN_LABELS[name])}) ({newest})"
    kept = ", ".join(("drift_job", *labels))
    return f"max by ({kept}) (({scraped}) or (last_over_time({series}[$hold]) unless on (drift_job) {SUCCESS}))"


def latest(series: str) -> str:
    """PromQL: the last value of a job in the time range, however old."""
    return f"max by (drift_job) (last_over_time({series}[$__range]))"


def floored(expr: str) -> str:
    """PromQL: p-values fit for a log axis."""
    return f"clamp_min({expr}, {SMALLEST:g})"
