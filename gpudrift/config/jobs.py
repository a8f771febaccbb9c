"""The jobs beside the nightly one: what each needs to know."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from gpudrift.config.checks import parse_date, parse_onset, parse_quiet, require


class JobKind(Enum):
    """What ``job=`` runs."""

    run = "run"
    reference = "reference"
    backfill = "backfill"
    backtest = "backtest"
    compare = "compare"
    plan = "plan"
    history = "history"
    dashboard = "dashboard"
    generate = "generate"
    stream = "stream"


class StreamUntil(Enum):
    """When a streaming job ends."""

    once = "once"  # what is there is consumed
    idle = "idle"  # nothing new for stream.idle_seconds
    forever = "forever"  # SIGTERM or SIGINT


@dataclass
class BackfillConfig:
    start: str | None = None  # first date
    end: str | None = None  # excluded

    def __post_init__(self) -> None:
        start, end = parse_date("backfill.start", self.start), parse_date("backfill.end", self.end)
        require(
            start is None or end is None or start < end,
            "backfill.end",
            self.end,
            f"a date after backfill.start ({self.start})",
        )


@dataclass
class BacktestConfig:
    """History replayed window by window as if run then (job=backtest): docs/backtest.md."""

    start: str | None = None  # first date replayed; null: where the reference ends
    end: str | None = None  # excluded; null: the end of the data
    # sizes of the reference to try: the windows that end where the configured one ends; empty: the configured one alone
    windows: list[int] = field(default_factory=list)
    warn_p: list[float] = field(default_factory=list)  # thresholds to try; empty: calibrate.warn_p alone
    onsets: list[str] = field(default_factory=list)  # dates of known drift, each with a name if wanted
    quiet: list[str] = field(default_factory=list)  # start..end, known to be quiet; empty: all before the first onset

    def __post_init__(self) -> None:
        start, end = parse_date("backtest.start", self.start), parse_date("backtest.end", self.end)
        require(
            start is None or end is None or start < end,
            "backtest.end",
            self.end,
            f"a date after backtest.start ({self.start})",
        )
        ok = all(3 <= k <= 10_000 for k in self.windows) and len(set(self.windows)) == len(self.windows)
        require(ok, "backtest.windows", list(self.windows), "different numbers of windows, each 3 to 10000")
        ok = all(1e-9 <= p < 0.5 for p in self.warn_p) and len(set(self.warn_p)) == len(self.warn_p)
        require(ok, "backtest.warn_p", list(self.warn_p), "different thresholds, each 1e-9 to below 0.5")
        onsets = [parse_onset(text)[0] for text in self.onsets]
        require(len(set(onsets)) == len(onsets), "backtest.onsets", list(self.onsets), "different dates")
        for first, last in map(parse_quiet, self.quiet):
            inside = [day for day in onsets if first <= day < last]
            require(
                not inside,
                "backtest.quiet",
                f"{first}..{last}",
                f"ranges without an onset; {inside[0] if inside else ''} is one",
                "a range known to be quiet holds a known onset",
            )


@dataclass
class CompareConfig:
    """Two windows of a corpus side by side, without calibration or verdict (job=compare)."""

    reference: str | None = None  # a date inside the one window; null: the data's first complete one
    current: str | None = None  # a date inside the other; null: the data's last complete one

    def __post_init__(self) -> None:
        parse_date("compare.reference", self.reference)
        parse_date("compare.current", self.current)


@dataclass
class GenerateConfig:
    """A synthetic corpus: a mixture on the unit sphere, drift planted from one date on."""

    path: str = "corpus"  # directory to write, one file a window (hive: week=...)
    start: str = "2026-01-05"
    weeks: int = 16
    rows_per_week: int = 1000
    dim: int = 64
    clusters: int = 10
    spread: float = 0.35  # size of a cluster: norm of the noise before projection to the sphere
    rows_per_user: float = 1.0  # mean rows of one user; above 1 rows of a user resemble each other
    dtype: str = "float16"
    drift_week: int = 12  # first week (from 0) with the planted drift
    mean_shift: float = 0.0  # length of a common shift added before projection
    spread_change: float = 1.0  # factor on spread
    new_cluster: float = 0.0  # share of rows in a cluster not seen before
    reweight: float = 0.0  # share of the mass moved from the even to the odd clusters
    overwrite: bool = False

    def __post_init__(self) -> None:
        parse_date("generate.start", self.start)
        for name, low, high in (
            ("weeks", 1, 5000),
            ("rows_per_week", 1, 10**9),
            ("dim", 2, 65536),
            ("clusters", 1, 100_000),
            ("drift_week", 0, 10**6),
        ):
            require(low <= getattr(self, name) <= high, f"generate.{name}", getattr(self, name), f"{low} to {high}")
        for name, low_f, high_f in (
            ("spread", 0.0, 100.0),
            ("rows_per_user", 1.0, 1e6),
            ("mean_shift", 0.0, 100.0),
            ("spread_change", 1e-3, 1e3),
            ("new_cluster", 0.0, 1.0),
            ("reweight", 0.0, 1.0),
        ):
            value = getattr(self, name)
            require(low_f <= value <= high_f, f"generate.{name}", value, f"{low_f} to {high_f}")
        allowed = ("float16", "float32", "float64")
        require(self.dtype in allowed, "generate.dtype", self.dtype, allowed)


@dataclass
class StreamConfig:
    """Rows taken as they come, into a sketch a window (job=stream). The reference is that of source.uri."""

    input: str = "files"  # files (of stream.inbox), stdin, or tcp://127.0.0.1:PORT: Arrow IPC record batches
    inbox: str | None = None  # directory or glob that Parquet files land in
    until: StreamUntil = StreamUntil.once
    idle_seconds: float = 60.0  # without anything new, after which until=idle ends
    poll_seconds: float = 1.0  # between two looks at the inbox
    settle_seconds: float = 10.0  # age from which a file counts as finished: one that cannot be read is quarantined
    keep_windows: int = 3  # windows that take rows: the newest with windows.min_rows rows and those just before it
    max_windows: int = 64  # windows open at a time; a file or batch that would make more is quarantined
    emit_rows: int = 1_000_000  # new rows between two emissions
    emit_seconds: float = 300.0  # and time between two, where there are new rows
    checkpoint_seconds: float = 10.0  # time between two checkpoints; 0: one after every file or batch
    features: int = 1024  # random Fourier features of a sketch
    bins: int = 2048  # histogram bins of a component
    reservoir: int = 4096  # rows of a window kept for exact scores and the verdict

    def __post_init__(self) -> None:
        require(
            self.input in ("files", "stdin") or re.fullmatch(r"tcp://.+:\d{1,5}", self.input) is not None,
            "stream.input",
            self.input,
            "files, stdin, tcp://127.0.0.1:PORT",
        )
        for name, low, high in (
            ("keep_windows", 1, 1000),
            ("max_windows", 1, 10_000),
            ("emit_rows", 1, 10**15),
            ("features", 16, 2**20),
            ("bins", 16, 2**20),
            ("reservoir", 16, 2**24),
        ):
            value = getattr(self, name)
            require(low <= value <= high, f"stream.{name}", value, f"{low} to {high}")
        require(self.features % 2 == 0, "stream.features", self.features, "an even number: sines and cosines")
        for name in ("idle_seconds", "poll_seconds", "settle_seconds", "emit_seconds", "checkpoint_seconds"):
            value, least = getattr(self, name), 0.01 if name == "poll_seconds" else 0.0
            require(least <= value <= 1e9, f"stream.{name}", value, f"{least:g} to 1e9")
        require(
            self.keep_windows <= self.max_windows,
            "stream.max_windows",
            self.max_windows,
            "at least stream.keep_windows",
        )
