"""The job's configuration: dataclass schemas, validation, and their registration with Hydra.

Beside ``__main__`` this is the only file that knows Hydra and OmegaConf. The schemas are mutable because OmegaConf
composes YAML into them; what leaves this file is a validated ``JobConfig`` of plain Python values. ``__post_init__``
runs in ``OmegaConf.to_object`` only, so ``to_job`` is the first line of main.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import date
from enum import Enum
from typing import Any

from gpudrift.calibrate import GATES, SIGNED
from gpudrift.errors import ConfigError
from gpudrift.windows import ALSO


class JobKind(Enum):
    """What ``job=`` runs."""

    run = "run"
    reference = "reference"
    backfill = "backfill"
    backtest = "backtest"
    compare = "compare"
    plan = "plan"
    generate = "generate"
    stream = "stream"


class StreamUntil(Enum):
    """When a streaming job ends."""

    once = "once"  # what is there is consumed
    idle = "idle"  # nothing new for stream.idle_seconds
    forever = "forever"  # SIGTERM or SIGINT


class OnBadRows(Enum):
    drop = "drop"
    fail = "fail"


class FailOn(Enum):
    """Which verdicts end with their own exit code (10 warning, 20 alert)."""

    never = "never"
    warn = "warn"
    alert = "alert"


def _require(ok: bool, field_name: str, value: Any, allowed: Any, message: str = "this value cannot be used") -> None:
    if not ok:
        raise ConfigError(message, field=field_name, value=value, allowed=allowed)


def parse_date(field_name: str, value: str | None) -> date | None:
    """An ISO date (YYYY-MM-DD) or None."""
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(
            "this is not a date", field=field_name, value=value, allowed="YYYY-MM-DD, such as 2026-10-31"
        ) from None


# those of gpudrift.source.layouts, which a module without torch cannot import
ENCODINGS = (
    *("float16", "float32", "float64", "bfloat16", "float16_be", "float32_be", "float64_be"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("bits", "bits_int8"),
)
POOLINGS = ("mean", "flatten")


@dataclass
class SourceConfig:
    """Where the embeddings are and which columns mean what."""

    uri: str = "sample"  # file, directory, glob or hive data set; "sample": the corpus that ships with gpudrift
    embedding_column: str = "embedding"  # or a path (payload.vector), or a pattern for one column a dimension (dim_*)
    id_column: str | None = None
    time_column: str = "event_time"
    cluster_column: str | None = None  # rows of one user or document: standard errors by cluster
    segment_columns: list[str] = field(default_factory=list)
    encoding: str | None = None  # what bytes, integers and packed bits stand for: float32, int8, bits, ... (ENCODINGS)
    scale: float = 1.0  # a stored integer or bit q stands for scale * (q - zero_point)
    zero_point: float = 0.0
    pooling: str | None = None  # several vectors a row: mean of them, or flatten matrices of one shape
    encoder_id: str | None = None  # name of the model that made the embeddings; pinned with the reference
    filter: Any = None  # rows to keep, in pyarrow's form: [[lang, "==", en], [tokens, ">", 3]]
    threads: int = 0  # files read at a time; 0: one a core, at most 8

    def __post_init__(self) -> None:
        _require(bool(self.uri.strip()), "source.uri", self.uri, "a file, directory, glob, or 'sample'")
        _require(bool(self.embedding_column), "source.embedding_column", self.embedding_column, "a column name")
        _require(bool(self.time_column), "source.time_column", self.time_column, "a column name")
        _require(self.encoding in (None, *ENCODINGS), "source.encoding", self.encoding, ["null", *ENCODINGS])
        _require(
            math.isfinite(self.scale) and self.scale != 0, "source.scale", self.scale, "a finite number other than 0"
        )
        _require(math.isfinite(self.zero_point), "source.zero_point", self.zero_point, "a finite number")
        _require(self.pooling in (None, *POOLINGS), "source.pooling", self.pooling, ["null", *POOLINGS])
        _require(0 <= self.threads <= 256, "source.threads", self.threads, "0 to 256")


@dataclass
class QualityConfig:
    on_bad_rows: OnBadRows = OnBadRows.drop
    max_bad_fraction: float = 0.01  # of a window's rows, all causes together

    def __post_init__(self) -> None:
        _require(0 <= self.max_bad_fraction <= 1, "quality.max_bad_fraction", self.max_bad_fraction, "0 to 1")


@dataclass
class ReferenceRange:
    start: str | None = None  # first date of the reference range
    end: str | None = None  # excluded; both null: the first ``count`` complete windows of the data, announced
    count: int = 12

    def __post_init__(self) -> None:
        _require(3 <= self.count <= 10_000, "windows.reference.count", self.count, "3 to 10000")


@dataclass
class WindowsConfig:
    period: str = "week"  # week (ISO), day, month, or Nd such as 10d
    reference: ReferenceRange = field(default_factory=ReferenceRange)
    min_rows: int = 100  # fewer rows in a window: insufficient data, not a score

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"week|day|month|[1-9]\d{0,3}d", str(self.period)) is not None,
            "windows.period",
            self.period,
            "week, day, month, or Nd (N days) such as 10d",
        )
        _require(self.min_rows >= 4, "windows.min_rows", self.min_rows, "4 or more")
        start = parse_date("windows.reference.start", self.reference.start)
        end = parse_date("windows.reference.end", self.reference.end)
        _require(
            (start is None) == (end is None),
            "windows.reference",
            [self.reference.start, self.reference.end],
            "both start and end, or neither",
        )
        _require(
            start is None or end is None or start < end,
            "windows.reference.end",
            self.reference.end,
            f"a date after windows.reference.start ({self.reference.start})",
        )


@dataclass
class ReferenceConfig:
    path: str | None = None  # default: <output.dir>/reference
    replace: bool = False  # job=reference overwrites an existing artifact only with true


@dataclass
class ProjectConfig:
    # principal components kept in the reference; where rows have no more dimensions than that, half of those
    components: int = 32
    niter: int = 6  # subspace iterations of torch.pca_lowrank

    def __post_init__(self) -> None:
        _require(1 <= self.components <= 1024, "project.components", self.components, "1 to 1024")
        _require(2 <= self.niter <= 50, "project.niter", self.niter, "2 to 50")


@dataclass
class ScoreConfig:
    """Which rows take part in all-pairs statistics (docs/estimators.md); the same on every machine."""

    # most row pairs of a pass: those within the reference; those of a window with the reference and within itself.
    # Beyond it a sample takes part; 1e10 are minutes on a CPU and a second on a GPU
    pairs: float = 1e10
    rows: int | None = None  # most rows a side, in place of score.pairs

    def __post_init__(self) -> None:
        _require(1e4 <= self.pairs <= 1e18, "score.pairs", self.pairs, "1e4 to 1e18")
        _require(self.rows is None or self.rows >= 100, "score.rows", self.rows, "100 or more, or null")


@dataclass
class MetricsConfig:
    components: int = 8  # principal components that get metrics of their own
    bins: int = 10  # reference-quantile bins of JS, PSI and KL
    directions: int = 100  # random directions of the sliced Wasserstein distance
    bandwidths: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0])  # times the reference's median

    def __post_init__(self) -> None:
        _require(1 <= self.components <= 1024, "metrics.components", self.components, "1 to 1024")
        _require(2 <= self.bins <= 1000, "metrics.bins", self.bins, "2 to 1000")
        _require(1 <= self.directions <= 100_000, "metrics.directions", self.directions, "1 to 100000")
        ok = 1 <= len(self.bandwidths) <= 8 and all(0 < b < math.inf for b in self.bandwidths)
        _require(
            ok and len(set(self.bandwidths)) == len(self.bandwidths),
            "metrics.bandwidths",
            list(self.bandwidths),
            "1 to 8 distinct positive multiples of the reference's median distance",
        )


@dataclass
class CalibrateConfig:
    """When a window is called drift: docs/verdict.md has the rule and what it was measured to do."""

    # metrics whose usual movement decides, one family (Holm); energy alone is the rule of a single headline
    gates: list[str] = field(default_factory=lambda: list(GATES))
    warn_p: float = 0.01
    close_p: float = 0.05
    clear_p: float = 0.05
    min_windows: int = 8  # reference windows that must be left after hygiene
    max_dropped: float = 0.25  # largest share of reference windows hygiene may drop
    hygiene_sd: float = 4.0  # robust sd above the median at which a reference window leaves
    # windows compared with beside the pinned reference, each with a verdict of its own: previous, year_ago
    also: list[str] = field(default_factory=lambda: list(ALSO))

    def __post_init__(self) -> None:
        for name in ("warn_p", "close_p", "clear_p"):
            _require(1e-9 <= getattr(self, name) < 0.5, f"calibrate.{name}", getattr(self, name), "1e-9 to below 0.5")
        known = all(re.fullmatch(r"energy|mmd2_b[1-8]|" + "|".join(SIGNED), str(name)) for name in self.gates)
        _require(
            known and 1 <= len(self.gates) == len(set(self.gates)),
            "calibrate.gates",
            list(self.gates),
            ["energy", "mmd2_b1 ... (of metrics.bandwidths)", *SIGNED],
        )
        _require(self.clear_p >= self.warn_p, "calibrate.clear_p", self.clear_p, "at least calibrate.warn_p")
        _require(self.min_windows >= 3, "calibrate.min_windows", self.min_windows, "3 or more")
        _require(
            set(self.also) <= set(ALSO) and len(self.also) == len(set(self.also)), "calibrate.also", self.also, ALSO
        )
        _require(0 <= self.max_dropped < 1, "calibrate.max_dropped", self.max_dropped, "0 to below 1")
        _require(self.hygiene_sd > 0, "calibrate.hygiene_sd", self.hygiene_sd, "above 0")


@dataclass
class AttributeConfig:
    """What a score is made of: docs/attribution.md."""

    clusters: int = 20  # of the pooled rows, at most
    rows: int = 100  # most drifted rows written to drifted_rows.parquet
    min_rows: int = 20  # of a segment value, on both sides together; rarer ones are pooled
    fdr: float = 0.05  # false discovery rate of clusters and segments that are called changed

    def __post_init__(self) -> None:
        _require(1 <= self.clusters <= 1000, "attribute.clusters", self.clusters, "1 to 1000")
        _require(1 <= self.rows <= 1_000_000, "attribute.rows", self.rows, "1 to 1000000")
        _require(self.min_rows >= 1, "attribute.min_rows", self.min_rows, "1 or more")
        _require(0 < self.fdr < 0.5, "attribute.fdr", self.fdr, "above 0 to below 0.5")


@dataclass
class SegmentsConfig:
    """Each value of source.segment_columns scored by itself: docs/segments.md."""

    min_rows: int = 50  # of a value in a window; rarer values are pooled into one segment a column
    fdr: float = 0.05  # false discovery rate over all segments of a run
    most: int = 200  # values scored alone in a run, the most frequent; the others are pooled
    panel: bool = True  # all metrics of each segment; false: energy and MMD alone, a thirtieth of the time

    def __post_init__(self) -> None:
        _require(self.min_rows >= 8, "segments.min_rows", self.min_rows, "8 or more")
        _require(0 < self.fdr < 0.5, "segments.fdr", self.fdr, "above 0 to below 0.5")
        _require(1 <= self.most <= 10_000, "segments.most", self.most, "1 to 10000")


@dataclass
class HistoryConfig:
    path: str | None = None  # default: <output.dir>/history


@dataclass
class AlertConfig:
    fail_on: FailOn = FailOn.never


@dataclass
class OutputConfig:
    dir: str = "out"

    def __post_init__(self) -> None:
        _require(bool(self.dir.strip()), "output.dir", self.dir, "a directory")


@dataclass
class BackfillConfig:
    start: str | None = None  # first date
    end: str | None = None  # excluded

    def __post_init__(self) -> None:
        start, end = parse_date("backfill.start", self.start), parse_date("backfill.end", self.end)
        _require(
            start is None or end is None or start < end,
            "backfill.end",
            self.end,
            f"a date after backfill.start ({self.start})",
        )


def parse_onset(text: str) -> tuple[date, str]:
    """``2025-06-01`` or ``2025-06-01 new catalogue`` -> the date, and the name (the date where there is none)."""
    first, _, name = str(text).strip().partition(" ")
    day = parse_date("backtest.onsets", first)
    if day is None:  # for mypy: text is not None
        raise ConfigError("this is not a date", field="backtest.onsets", value=text, allowed="YYYY-MM-DD and a name")
    return day, name.strip() or first


def parse_quiet(text: str) -> tuple[date, date]:
    """``2024-01-01..2024-07-01`` -> both dates, the second excluded."""
    edges = [parse_date("backtest.quiet", part.strip()) for part in str(text).split("..") if ".." in str(text)]
    if len(edges) != 2 or edges[0] is None or edges[1] is None or edges[0] >= edges[1]:
        raise ConfigError(
            "this is not a range of dates", field="backtest.quiet", value=text, allowed="start..end, start before end"
        )
    return edges[0], edges[1]


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
        _require(
            start is None or end is None or start < end,
            "backtest.end",
            self.end,
            f"a date after backtest.start ({self.start})",
        )
        ok = all(3 <= k <= 10_000 for k in self.windows) and len(set(self.windows)) == len(self.windows)
        _require(ok, "backtest.windows", list(self.windows), "different numbers of windows, each 3 to 10000")
        ok = all(1e-9 <= p < 0.5 for p in self.warn_p) and len(set(self.warn_p)) == len(self.warn_p)
        _require(ok, "backtest.warn_p", list(self.warn_p), "different thresholds, each 1e-9 to below 0.5")
        onsets = [parse_onset(text)[0] for text in self.onsets]
        _require(len(set(onsets)) == len(onsets), "backtest.onsets", list(self.onsets), "different dates")
        for first, last in map(parse_quiet, self.quiet):
            inside = [day for day in onsets if first <= day < last]
            _require(
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
            _require(low <= getattr(self, name) <= high, f"generate.{name}", getattr(self, name), f"{low} to {high}")
        for name, low_f, high_f in (
            ("spread", 0.0, 100.0),
            ("rows_per_user", 1.0, 1e6),
            ("mean_shift", 0.0, 100.0),
            ("spread_change", 1e-3, 1e3),
            ("new_cluster", 0.0, 1.0),
            ("reweight", 0.0, 1.0),
        ):
            value = getattr(self, name)
            _require(low_f <= value <= high_f, f"generate.{name}", value, f"{low_f} to {high_f}")
        allowed = ("float16", "float32", "float64")
        _require(self.dtype in allowed, "generate.dtype", self.dtype, allowed)


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
        _require(
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
            _require(low <= value <= high, f"stream.{name}", value, f"{low} to {high}")
        _require(self.features % 2 == 0, "stream.features", self.features, "an even number: sines and cosines")
        for name in ("idle_seconds", "poll_seconds", "settle_seconds", "emit_seconds", "checkpoint_seconds"):
            value, least = getattr(self, name), 0.01 if name == "poll_seconds" else 0.0
            _require(least <= value <= 1e9, f"stream.{name}", value, f"{least:g} to 1e9")
        _require(
            self.keep_windows <= self.max_windows,
            "stream.max_windows",
            self.max_windows,
            "at least stream.keep_windows",
        )


@dataclass
class JobConfig:
    job: JobKind = JobKind.run
    name: str = "job"  # the job's name in the history: its rows are replaced by a rerun of the same name and window
    run_date: str | None = None  # the current window is the one that holds this date; null: the last complete one
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    precision: str = "auto"  # auto, float16, bfloat16, tf32, float32, float64
    source: SourceConfig = field(default_factory=SourceConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    project: ProjectConfig = field(default_factory=ProjectConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    attribute: AttributeConfig = field(default_factory=AttributeConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    alert: AlertConfig = field(default_factory=AlertConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    backfill: BackfillConfig = field(default_factory=BackfillConfig)
    backtest: BacktestConfig = field(default_factory=BacktestConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)

    def __post_init__(self) -> None:
        parse_date("run_date", self.run_date)
        widths = len(self.metrics.bandwidths)
        named = [re.fullmatch(r"mmd2_b(\d)", name) for name in self.calibrate.gates]
        lacking = [found[0] for found in named if found is not None and int(found[1]) > widths]
        _require(
            not lacking or self.calibrate.gates == list(GATES),  # of the default those that there are
            "calibrate.gates",
            lacking,
            f"of the MMD metrics mmd2_b1 to mmd2_b{widths}: metrics.bandwidths has {widths}",
            "a metric that is to gate is not measured",
        )
        _require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) is not None,
            "name",
            self.name,
            "letters, digits, '.', '_' and '-', 64 at most",
        )
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        _require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "device",
            self.device,
            "auto, cpu, cuda, cuda:N",
        )
        allowed = ("auto", "float16", "bfloat16", "tf32", "float32", "float64")
        _require(self.precision in allowed, "precision", self.precision, allowed)


def register() -> None:
    """Put the schemas into Hydra's store under the names the YAML files' defaults lists use."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="job_schema", node=JobConfig)


def to_job(node: Any) -> JobConfig:
    """A composed Hydra node -> a validated ``JobConfig``. Undeclared keys are refused: ``+typo=3`` passes Hydra's
    struct check and would vanish in the conversion."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _refuse_undeclared(OmegaConf.to_container(node, resolve=False), JobConfig, "")
    try:
        job = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        # omegaconf wraps what __post_init__ raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise ConfigError(f"the configuration cannot be read: {error}") from error
    if not isinstance(job, JobConfig):
        raise ConfigError("the configuration lacks the job schema", allowed="configs/job.yaml as the primary config")
    return job


def _refuse_undeclared(values: Any, schema: type, prefix: str) -> None:
    declared = {f.name: f for f in fields(schema)}
    for key in values:
        if key not in declared:
            raise ConfigError(
                "there is no such setting", field=f"{prefix}{key}", value=values[key], allowed=sorted(declared)
            )
        factory = declared[key].default_factory
        if isinstance(factory, type) and is_dataclass(factory) and isinstance(values[key], dict):
            _refuse_undeclared(values[key], factory, f"{prefix}{key}.")


def to_plain(job: Any) -> dict[str, Any]:
    """A ``JobConfig`` as plain JSON/YAML values, in the order of declaration."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return {k: plain(v) for k, v in asdict(job).items()}


def to_yaml(plain: Mapping[str, Any]) -> str:
    """A job's plain values as a primary configuration: it composes with the schema alone, to the same job."""
    from omegaconf import OmegaConf

    return _PRIMARY + OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


_PRIMARY = """\
# Run again: python -m gpudrift --config-dir <this directory> --config-name config
defaults:
  - job_schema
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
  - _self_
hydra:
  job: {name: gpudrift}
  output_subdir: null
  run: {dir: .}
"""
