"""A Grafana dashboard of drift and outcomes, for one's own job names: variables, sections, what is shown at first.

``panels`` has what each panel asks and says, ``grafana`` the forms. Nothing here has been drawn by a Grafana: tests run
every query against a real Prometheus, and check the forms.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpudrift.monitoring.grafana import Json, assemble, choice, constants, row, source
from gpudrift.monitoring.panels import drift, job, now, outcomes, who
from gpudrift.monitoring.promql import JOB


def dashboard(
    jobs: Sequence[str] = (),
    *,
    title: str = "Embedding drift",
    window_days: int = 7,
    stale_hours: float = 264.0,
    warn_p: float = 0.01,
) -> Json:
    """The dashboard as Grafana imports it, the same for the same arguments.

    Args:
        jobs: names of those to choose from; empty: all that Prometheus knows.
        window_days: longest length of a window; what a value is held for, and 60 of which are shown at first.
        stale_hours: age of the last run from which a job is shown as stale.
        warn_p: the level below which a p-value warns, drawn as a line.
    """
    panels = [
        *now(stale_hours),
        row("Drift"),
        *drift(warn_p),
        row("Who moved"),
        *who(),
        row("Outcomes"),
        *outcomes(),
        row("The job"),
        *job(stale_hours),
    ]
    return assemble(
        title, panels, _variables(jobs, window_days), days=60 * window_days, tags=("gpudrift", "embedding drift")
    )


def _variables(jobs: Sequence[str], window_days: int) -> list[Json]:
    names = "|".join(name.replace(".", r"\.") for name in jobs)
    lengths = sorted({1, 7, 31, window_days})
    # All as ".+" and not as a list of the values: a segment's may hold quotes, and there may be hundreds
    return [
        source("Prometheus"),
        choice("job", "Job", "label_values(gpudrift_verdict_code, drift_job)", regex=f"/^({names})$/" if jobs else ""),
        choice("segment", "Segment", f"label_values(gpudrift_verdict_code{{{JOB}}}, segment)", every=".+", first="all"),
        choice("metric", "Deciding metric", f"label_values(gpudrift_metric_p_value{{{JOB}}}, metric)", every=".+"),
        choice("outcome", "Outcome", f"label_values(gpudrift_outcome_value{{{JOB}}}, metric)"),
        constants("hold", "Window length", [f"{days}d" for days in lengths], f"{window_days}d"),
    ]
