"""What is computed: axes, pairs, metrics, the verdict, what moved, and product metrics beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from gpudrift.calibrate import GATES, SIGNED
from gpudrift.config.checks import require
from gpudrift.windows import ALSO


@dataclass
class ProjectConfig:
    # principal components kept in the reference; where rows have no more dimensions than that, half of those
    components: int = 32
    niter: int = 6  # subspace iterations of torch.pca_lowrank

    def __post_init__(self) -> None:
        require(1 <= self.components <= 1024, "project.components", self.components, "1 to 1024")
        require(2 <= self.niter <= 50, "project.niter", self.niter, "2 to 50")


@dataclass
class ScoreConfig:
    """Which rows take part in all-pairs statistics (docs/estimators.md); the same on every machine."""

    # most row pairs of a pass: those within the reference; those of a window with the reference and within itself.
    # Beyond it a sample takes part; 1e10 are minutes on a CPU and a second on a GPU
    pairs: float = 1e10
    rows: int | None = None  # most rows a side, in place of score.pairs

    def __post_init__(self) -> None:
        require(1e4 <= self.pairs <= 1e18, "score.pairs", self.pairs, "1e4 to 1e18")
        require(self.rows is None or self.rows >= 100, "score.rows", self.rows, "100 or more, or null")


@dataclass
class MetricsConfig:
    components: int = 8  # principal components that get metrics of their own
    bins: int = 10  # reference-quantile bins of JS, PSI and KL
    directions: int = 100  # random directions of the sliced Wasserstein distance
    bandwidths: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0])  # times the reference's median

    def __post_init__(self) -> None:
        require(1 <= self.components <= 1024, "metrics.components", self.components, "1 to 1024")
        require(2 <= self.bins <= 1000, "metrics.bins", self.bins, "2 to 1000")
        require(1 <= self.directions <= 100_000, "metrics.directions", self.directions, "1 to 100000")
        ok = 1 <= len(self.bandwidths) <= 8 and all(0 < b < math.inf for b in self.bandwidths)
        require(
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
            require(1e-9 <= getattr(self, name) < 0.5, f"calibrate.{name}", getattr(self, name), "1e-9 to below 0.5")
        known = all(re.fullmatch(r"energy|mmd2_b[1-8]|" + "|".join(SIGNED), str(name)) for name in self.gates)
        require(
            known and 1 <= len(self.gates) == len(set(self.gates)),
            "calibrate.gates",
            list(self.gates),
            ["energy", "mmd2_b1 ... (of metrics.bandwidths)", *SIGNED],
        )
        require(self.clear_p >= self.warn_p, "calibrate.clear_p", self.clear_p, "at least calibrate.warn_p")
        require(self.min_windows >= 3, "calibrate.min_windows", self.min_windows, "3 or more")
        require(
            set(self.also) <= set(ALSO) and len(self.also) == len(set(self.also)), "calibrate.also", self.also, ALSO
        )
        require(0 <= self.max_dropped < 1, "calibrate.max_dropped", self.max_dropped, "0 to below 1")
        require(self.hygiene_sd > 0, "calibrate.hygiene_sd", self.hygiene_sd, "above 0")


@dataclass
class AttributeConfig:
    """What a score is made of: docs/attribution.md."""

    clusters: int = 20  # of the pooled rows, at most
    rows: int = 100  # most drifted rows written to drifted_rows.parquet
    min_rows: int = 20  # of a segment value, on both sides together; rarer ones are pooled
    fdr: float = 0.05  # false discovery rate of clusters and segments that are called changed

    def __post_init__(self) -> None:
        require(1 <= self.clusters <= 1000, "attribute.clusters", self.clusters, "1 to 1000")
        require(1 <= self.rows <= 1_000_000, "attribute.rows", self.rows, "1 to 1000000")
        require(self.min_rows >= 1, "attribute.min_rows", self.min_rows, "1 or more")
        require(0 < self.fdr < 0.5, "attribute.fdr", self.fdr, "above 0 to below 0.5")


@dataclass
class SegmentsConfig:
    """Each value of source.segment_columns scored by itself: docs/segments.md."""

    min_rows: int = 50  # of a value in a window; rarer values are pooled into one segment a column
    fdr: float = 0.05  # false discovery rate over all segments of a run
    most: int = 200  # values scored alone in a run, the most frequent; the others are pooled
    panel: bool = True  # all metrics of each segment; false: energy and MMD alone, a thirtieth of the time

    def __post_init__(self) -> None:
        require(self.min_rows >= 8, "segments.min_rows", self.min_rows, "8 or more")
        require(0 < self.fdr < 0.5, "segments.fdr", self.fdr, "above 0 to below 0.5")
        require(1 <= self.most <= 10_000, "segments.most", self.most, "1 to 10000")


@dataclass
class OutcomesConfig:
    """Product metrics to look at beside the drift: docs/outcomes.md."""

    # Parquet or CSV: a file, directory or glob, local or in a store; "corpus": columns of source.uri itself; null: none
    uri: str | None = None
    time_column: str | None = None  # a moment inside each row's window; null: that of the source
    lower_is_worse: list[str] = field(default_factory=list)  # columns of metrics that are better high: success rates
    higher_is_worse: list[str] = field(default_factory=list)  # of those better low: no-answer and escalation rates
    count_column: str | None = None  # observations behind a row's values (queries); null: each row is one
    lags: int = 4  # windows after the drift, at most
    spike_p: float = 0.01  # p below which a window spikes
    fdr: float = 0.05  # false discovery rate over all metrics and segments
    min_windows: int = 20  # with both a score and a value: fewer are insufficient
    permutations: int = 9999

    def __post_init__(self) -> None:
        for side in ("lower_is_worse", "higher_is_worse"):
            names = list(getattr(self, side))
            named = all(isinstance(name, str) and name for name in names)  # OmegaConf lets lists in lists through
            require(named, f"outcomes.{side}", names, "names of columns")
        both = [name for name in self.lower_is_worse if name in self.higher_is_worse]
        require(not both, "outcomes.higher_is_worse", both, "columns that are not in outcomes.lower_is_worse too")
        require(
            self.uri is None or bool(self.lower_is_worse or self.higher_is_worse),
            "outcomes.lower_is_worse, outcomes.higher_is_worse",
            [],
            "the metrics' columns, by which way is worse: [success_rate] and [no_answer_rate]",
            "outcomes.uri is given, and no metric is named",
        )
        require(0 <= self.lags <= 52, "outcomes.lags", self.lags, "0 to 52")
        require(1e-9 <= self.spike_p < 0.5, "outcomes.spike_p", self.spike_p, "1e-9 to below 0.5")
        require(0 < self.fdr < 0.5, "outcomes.fdr", self.fdr, "above 0 to below 0.5")
        require(12 <= self.min_windows <= 10_000, "outcomes.min_windows", self.min_windows, "12 to 10000")
        require(99 <= self.permutations <= 999_999, "outcomes.permutations", self.permutations, "99 to 999999")
