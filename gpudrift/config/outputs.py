"""What is left behind and told: the history, the report, Prometheus, messages, the exit code."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from gpudrift.config.checks import require, require_local


def _is_plain_address(text: str) -> bool:
    """http(s)://host:port/path without credentials, and a port that can be one."""
    if re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", text) is None:
        return False
    try:
        parts = urlsplit(text)
        return parts.hostname is not None and parts.port != 0
    except ValueError:
        return False


class Webhook(Enum):
    """What a webhook is sent."""

    none = "none"
    json = "json"
    slack = "slack"


class FailOn(Enum):
    """Which verdicts end with their own exit code (10 warning, 20 alert)."""

    never = "never"
    warn = "warn"
    alert = "alert"


@dataclass
class OutputConfig:
    dir: str = "out"

    def __post_init__(self) -> None:
        require(bool(self.dir.strip()), "output.dir", self.dir, "a directory")
        require_local("output.dir", self.dir)


@dataclass
class HistoryConfig:
    path: str | None = None  # default: <output.dir>/history
    last: int = 20  # windows that job=history prints
    segment: str = "all"  # whose: all rows, or a segment as column=value
    reference: str | None = None  # id of the reference; null: the pinned one, else that with the newest window

    def __post_init__(self) -> None:
        require_local("history.path", self.path)
        require(1 <= self.last <= 1_000_000, "history.last", self.last, "1 to 1000000")


@dataclass
class ReportConfig:
    html: bool = True  # report.html, reports/<window>.html and index.html
    keep: int = 400  # newest windows whose reports are kept

    def __post_init__(self) -> None:
        require(1 <= self.keep <= 100_000, "report.keep", self.keep, "1 to 100000")


@dataclass
class PrometheusConfig:
    textfile: str | None = None  # default: <output.dir>/metrics.prom; point node_exporter's collector at it
    push: str | None = None  # address of a Pushgateway; credentials from GPUDRIFT_PUSH_USER and GPUDRIFT_PUSH_PASSWORD
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        require_local("prometheus.textfile", self.textfile)
        named = self.textfile is None or self.textfile.endswith(".prom")
        require(named, "prometheus.textfile", self.textfile, "a file that ends in .prom: node_exporter reads no others")
        require(
            self.push is None or _is_plain_address(self.push),
            "prometheus.push",
            "(hidden)",
            "http(s)://host:port, without credentials",
        )
        require(0.1 <= self.timeout_seconds <= 600, "prometheus.timeout_seconds", self.timeout_seconds, "0.1 to 600")


@dataclass
class NotifyConfig:
    """A message where people look: docs/notify.md. The address is a secret and comes from the environment alone."""

    webhook: Webhook = Webhook.none
    url_env: str = "GPUDRIFT_WEBHOOK_URL"  # name of the environment variable that holds the address
    verdicts: list[str] = field(default_factory=lambda: ["warning", "alert"])  # those that are told; a return is too
    cooldown_hours: float = 168.0  # between two messages about a verdict that goes on
    timeout_seconds: float = 10.0  # of an attempt, all of it
    attempts: int = 3
    report_url: str | None = None  # where readers find output.dir; put into the message

    def __post_init__(self) -> None:
        known = ["warning", "alert", "insufficient"]
        require(
            all(verdict in known for verdict in self.verdicts) and len(set(self.verdicts)) == len(self.verdicts),
            "notify.verdicts",
            list(self.verdicts),
            known,
        )
        ok = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.url_env) is not None
        require(ok, "notify.url_env", "(hidden)", "the NAME of an environment variable, not the address itself")
        require(0 <= self.cooldown_hours <= 1e5, "notify.cooldown_hours", self.cooldown_hours, "0 to 1e5")
        require(0.1 <= self.timeout_seconds <= 600, "notify.timeout_seconds", self.timeout_seconds, "0.1 to 600")
        require(1 <= self.attempts <= 10, "notify.attempts", self.attempts, "1 to 10")
        shown = self.report_url is None or re.fullmatch(r"[a-z]+://[^\s/@]*(/\S*)?", self.report_url) is not None
        require(shown, "notify.report_url", "(hidden)", "an address such as https://host/path, without credentials")


@dataclass
class DashboardConfig:
    """Rules for Prometheus and a dashboard for Grafana (job=dashboard): docs/dashboard.md."""

    jobs: list[str] = field(default_factory=list)  # names of the jobs; empty: name
    stale_hours: float | None = None  # without a run, after which a job is stale; null: 1.5 windows and 12 h

    def __post_init__(self) -> None:
        ok = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", str(name)) for name in self.jobs)
        ok = ok and len(set(self.jobs)) == len(self.jobs)
        require(ok, "dashboard.jobs", list(self.jobs), "names of jobs, each once: letters, digits, '.', '_' and '-'")
        hours = self.stale_hours
        require(hours is None or 0 < hours <= 1e5, "dashboard.stale_hours", hours, "above 0 to 1e5, or null")


@dataclass
class AlertConfig:
    fail_on: FailOn = FailOn.never
