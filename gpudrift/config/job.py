"""The whole configuration of a job."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gpudrift.calibrate import GATES
from gpudrift.config.checks import parse_date, require
from gpudrift.config.engine import EngineConfig
from gpudrift.config.inputs import QualityConfig, ReferenceConfig, SourceConfig, WindowsConfig
from gpudrift.config.jobs import BackfillConfig, BacktestConfig, CompareConfig, GenerateConfig, JobKind, StreamConfig
from gpudrift.config.outputs import (
    AlertConfig,
    DashboardConfig,
    HistoryConfig,
    NotifyConfig,
    OutputConfig,
    PrometheusConfig,
    ReportConfig,
)
from gpudrift.config.statistics import (
    AttributeConfig,
    CalibrateConfig,
    MetricsConfig,
    OutcomesConfig,
    ProjectConfig,
    ScoreConfig,
    SegmentsConfig,
)


@dataclass
class JobConfig:
    job: JobKind = JobKind.run
    name: str = "job"  # the job's name in the history: its rows are replaced by a rerun of the same name and window
    run_date: str | None = None  # the current window is the one that holds this date; null: the last complete one
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    precision: str = "auto"  # auto, float16, bfloat16, tf32, float32, float64
    engine: EngineConfig = field(default_factory=EngineConfig)
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
    outcomes: OutcomesConfig = field(default_factory=OutcomesConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    prometheus: PrometheusConfig = field(default_factory=PrometheusConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)
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
        require(
            not lacking or self.calibrate.gates == list(GATES),  # of the default those that there are
            "calibrate.gates",
            lacking,
            f"of the MMD metrics mmd2_b1 to mmd2_b{widths}: metrics.bandwidths has {widths}",
            "a metric that is to gate is not measured",
        )
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) is not None,
            "name",
            self.name,
            "letters, digits, '.', '_' and '-', 64 at most",
        )
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "device",
            self.device,
            "auto, cpu, cuda, cuda:N",
        )
        allowed = ("auto", "float16", "bfloat16", "tf32", "float32", "float64")
        require(self.precision in allowed, "precision", self.precision, allowed)
