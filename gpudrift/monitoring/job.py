"""``job=dashboard``: rules for Prometheus, a dashboard for Grafana and how to wire them, for one's own job names.

It reads no data and needs no lock. A second run replaces the files of the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpudrift.files import atomic_path, make_directory
from gpudrift.monitoring.dashboard import dashboard
from gpudrift.monitoring.openmetrics import Points, write_openmetrics
from gpudrift.monitoring.rules import rules, to_yaml
from gpudrift.windows import parse_period

HOUR = 3600.0
DAYS = {"day": 1, "week": 7, "month": 31}  # of the longest window


def write_monitoring(
    output: Path,
    jobs: Sequence[str],
    *,
    period: str,
    stale_hours: float | None = None,
    warn_p: float = 0.01,
    textfile: Path | None = None,
    histories: Mapping[str, Points] | None = None,
) -> list[Path]:
    """Write ``<output>/monitoring``: rules.yml, dashboard.json, README.md, and ``<job>.openmetrics`` for each history.

    Args:
        jobs: names of the jobs, at least one; all with windows of this length.
        period: ``windows.period``: week, day, month or Nd.
        stale_hours: without a run, after which a job is stale; None: ``default_stale_hours``.
        warn_p: ``calibrate.warn_p``, drawn as a line.
        textfile: where the runs put their metrics; None: metrics.prom in ``output``.
        histories: windows of jobs, oldest first, as ``History.windows`` gives them, for Prometheus to take in.

    Returns the files, in the order written. Raises ConfigError where the period is none or the directory cannot be
    made, ArgumentError where the jobs are none or one is named twice.
    """
    days = window_days(period)
    hours = default_stale_hours(period) if stale_hours is None else float(stale_hours)
    told = to_yaml(rules(jobs, dict.fromkeys(jobs, HOUR * hours)))
    board = dashboard(jobs, title=_title(jobs), window_days=days, stale_hours=hours, warn_p=warn_p)
    directory = make_directory(output / "monitoring").resolve()
    written = {
        "rules.yml": told,
        "dashboard.json": json.dumps(board, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "README.md": wiring(directory, textfile or output / "metrics.prom", sorted(histories or {})),
    }
    for name, text in written.items():
        with atomic_path(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name, windows in sorted((histories or {}).items()):
        write_openmetrics(name, windows, directory / f"{name}.openmetrics")
        written[f"{name}.openmetrics"] = ""
    return [directory / name for name in written]


def _title(jobs: Sequence[str]) -> str:
    """Dashboards of different jobs have different titles, and so do not replace each other."""
    return "Embedding drift: " + ", ".join(jobs)


def window_days(period: str) -> int:
    """Days of the longest window of a period. Raises ConfigError where it is none."""
    cut = parse_period(period)
    return cut.days if cut.kind == "days" else DAYS[cut.kind]


def default_stale_hours(period: str) -> float:
    """One and a half windows and half a day: one run that failed and was not repeated."""
    return 1.5 * 24 * window_days(period) + 12


def wiring(directory: Path, textfile: Path, histories: Sequence[str]) -> str:
    """What to put where, as Markdown. directory: of the files written; histories: jobs whose history lies there."""
    file = textfile.expanduser().resolve()
    # a block a window is what promtool makes by itself, minutes for a history of years
    few = "--max-block-duration=2400h"
    past = [
        f"promtool tsdb create-blocks-from {few} openmetrics {name}.openmetrics /var/lib/prometheus"
        for name in histories
    ]
    lines = [
        "# Prometheus and Grafana for gpudrift",
        "",
        "Five lines, each once:",
        "",
        "```",
        f"node_exporter     --collector.textfile.directory={file.parent}",
        'prometheus.yml    scrape_configs: [{job_name: node, static_configs: [{targets: ["localhost:9100"]}]}]',
        f"prometheus.yml    rule_files: [{json.dumps(str(directory / 'rules.yml'), ensure_ascii=False)}]",
        "Grafana           Connections, Data sources, Prometheus: http://localhost:9090",
        f"Grafana           Dashboards, New, Import: {directory / 'dashboard.json'}",
        "```",
        "",
        f"Every run writes its metrics to `{file}` (`prometheus.textfile`): one file a job, all in the directory that "
        "node_exporter reads.",
        "",
        "Prometheus keeps 15 days unless it is started with more: `--storage.tsdb.retention.time=2y`.",
        "",
        "Instead of the import, Grafana can load the dashboard by itself; a file in its `provisioning/dashboards`:",
        "",
        "```yaml",
        "apiVersion: 1",
        "providers:",
        "  - name: gpudrift",
        "    type: file",
        "    options:",
        f"      path: {json.dumps(str(directory), ensure_ascii=False)}",
        "```",
    ]
    if past:
        lines += [
            "",
            "The past, once, from the directory of this file, as the user of Prometheus, into where it keeps its data "
            "(`--storage.tsdb.path`):",
            "",
            "```",
            *past,
            "```",
        ]
    return "\n".join(lines) + "\n"
