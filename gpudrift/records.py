"""The records handed from stage to stage. Frozen; no torch at import time.

Shape letters used throughout: n, m rows; d dimensions; q components; K windows; F pair functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from gpudrift.metrics.kept import Kept

Verdict = Literal["stable", "warning", "alert", "insufficient"]


@dataclass(frozen=True, order=True)
class Window:
    """A half-open span of event time, ``start <= t < end``, both timezone-aware UTC.

    ``label`` is what people and the history see: ``2026-W43`` (ISO week), ``2026-10-31`` (day), ``2026-10`` (month),
    ``2026-10-05+10d`` (N days). ``complete`` is False when the data do not (yet) cover the window, or when a reference
    range cuts it.
    """

    start: datetime
    end: datetime
    label: str
    complete: bool = True


@dataclass(frozen=True)
class Repeats:
    """Rows (or ids) that occur more than once in a window. rows: those beyond the first of each group; largest: rows of
    the largest group, 0 without any; examples: an id of each of the ten largest groups, none without an id column."""

    rows: int
    largest: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Norms:
    """Euclidean lengths of a window's rows. bins: (k, rows) of those that hold any, ascending; bin k is centred on
    2^(k/8), so that windows add up whatever they hold. off_unit: rows further from length 1 than storage in a half
    precision explains; examples: ids of at most ten, the furthest first."""

    rows: int
    least: float
    mean: float
    most: float
    bins: tuple[tuple[int, int], ...]
    off_unit: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowFindings:
    """What a window's kept rows show; nothing of it is dropped. repeated_ids: None without an id column."""

    duplicates: Repeats
    repeated_ids: Repeats | None = None
    norms: Norms | None = None


@dataclass(frozen=True)
class Quality:
    """What was read and what was dropped, and why. ``dropped`` maps a cause (null, ragged, non_finite, zero) to a
    count; ``examples`` maps the same causes to at most ten row ids (or ``file:row`` where there is no id column).
    ``found``: what the rows kept show, once they have been looked at as a whole."""

    rows_read: int
    rows_kept: int
    dropped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    files: int = 0
    bytes: int = 0
    found: RowFindings | None = None

    @property
    def bad_fraction(self) -> float:
        return (self.rows_read - self.rows_kept) / self.rows_read if self.rows_read else 0.0


@dataclass(frozen=True)
class Cloud:
    """Rows of one or more windows, window-major: window k is ``embeddings[offsets[k]:offsets[k + 1]]``.

    embeddings: (n, d) float32, contiguous. ids, clusters and the segment columns are Arrow arrays of length n in the
    same order, or None / absent where no such column is configured.
    """

    embeddings: Tensor
    windows: tuple[Window, ...]
    offsets: tuple[int, ...]
    quality: tuple[Quality, ...]  # one a window
    ids: pa.Array | None = None
    clusters: pa.Array | None = None
    segments: Mapping[str, pa.Array] = field(default_factory=dict)
    encoder_id: str | None = None

    def __len__(self) -> int:
        return int(self.embeddings.shape[0])

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    def sizes(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False))

    def window(self, k: int) -> Cloud:
        """The rows of window k alone, as views."""
        a, b = self.offsets[k], self.offsets[k + 1]
        return Cloud(
            embeddings=self.embeddings[a:b],
            windows=(self.windows[k],),
            offsets=(0, b - a),
            quality=(self.quality[k],),
            ids=None if self.ids is None else self.ids.slice(a, b - a),
            clusters=None if self.clusters is None else self.clusters.slice(a, b - a),
            segments={name: column.slice(a, b - a) for name, column in self.segments.items()},
            encoder_id=self.encoder_id,
        )


EncoderKind = Literal["none", "normalisation", "scale", "linear_map", "encoder"]


@dataclass(frozen=True)
class Evidence:
    """One thing looked at to tell an encoder from content. threshold: the value it was held against, None where it is
    told but decides nothing; found: beyond it; sentence: what was seen, in words."""

    name: str
    value: float | None
    threshold: float | None
    found: bool
    sentence: str


@dataclass(frozen=True)
class EncoderCheck:
    """Whether a window looks like another encoder or normalisation. share: of its rows, 0 where kind is none;
    matched_ids: ids it has in common with the reference; headline: empty where kind is none."""

    kind: EncoderKind
    share: float
    matched_ids: int
    evidence: tuple[Evidence, ...]
    headline: str = ""


@dataclass(frozen=True)
class Metric:
    """One number of the panel. ``se`` is its standard error, None where none is known; ``extra`` holds what belongs to
    it (bandwidth, component, null mean that was removed) as plain JSON values."""

    name: str
    value: float
    se: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """The current score against the reference's own week-to-week movement (A/A null, leave one window out).

    score, se: energy U-statistic and the root of var_lin. null_sd: c. delta: the 99% limit of the A/A prediction.
    """

    score: float
    se: float
    ci: tuple[float, float]
    null_sd: float
    aa_n: int
    aa_scores: Mapping[str, float]
    aa_median: float
    aa_recomputed: bool
    p_aa: float
    p_close: float
    delta: float
    clear_limit: float  # the p_AA = .05 limit of the score
    ratio: float
    severity: Literal["none", "low", "medium", "high"]
    detectable_p: float  # p-value against zero: detectable, never the alarm
    smallest_detectable: float
    smallest_alerting: float
    autocorrelation: float | None
    in_reference: bool  # the window lies inside the reference range and was scored leave-one-out


@dataclass(frozen=True)
class GateMetric:
    """One gating metric of a window against its own usual movement: the same metric of each reference window.

    null_sd: c of a U-statistic, judged on a log scale and one-sided; None for signed metrics, judged two-sided as they
    are. p_aa: chance that a window like the reference's lies this far out. p_holm: Holm-adjusted over all gating
    metrics. low, high: limits of the usual movement at ``calibrate.warn_p`` (low None for U-statistics). p_close: of
    "no further out than the limit", given ``se``; None where there is no standard error.
    """

    metric: str
    value: float
    se: float | None
    null_sd: float | None
    usual: float  # median of the reference windows' values
    p_aa: float
    p_holm: float
    low: float | None
    high: float
    p_close: float | None


ShiftKind = Literal["new", "grown", "same", "shrunk", "gone"]


@dataclass(frozen=True)
class ClusterShift:
    """A cluster of the pooled rows: k-means on one half of them, tested on the other. rows, reference_rows,
    contribution, witness and ids are of all rows that take part in pairs; the shares, p, q, usual_sd and p_usual of the
    half that was not fitted. usual_sd: of the share, over the reference's windows, with the sampling of the current
    window's rows in it. p: of no change, by sampling alone; q: BH over the clusters. p_usual: of a change no larger
    than the usual movement. contribution: part of the score; those of all clusters sum to it. witness: mean influence
    of its current rows, NaN without any. ids: of the rows nearest to its centroid. labels: segment values that stand
    out among its current rows, as ``column=value`` with their share."""

    index: int
    kind: ShiftKind
    rows: int  # current, of all that take part in pairs
    reference_rows: int
    share: float
    reference_share: float
    usual_sd: float
    p: float
    q: float
    p_usual: float
    contribution: float
    witness: float
    ids: tuple[str, ...] = ()
    reference_ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class SegmentShift:
    """A value of a segment column: its share of the rows and its part of the score. value None: rows without one;
    ``pooled`` above 0: so many rare values together. p, q: of an unchanged share, BH over all segments of the run; NaN
    where there are too few rows to test. p_usual: of a change no larger than the usual movement."""

    column: str
    value: str | None
    pooled: int
    kind: ShiftKind
    rows: int
    reference_rows: int
    share: float
    reference_share: float
    p: float
    q: float
    p_usual: float
    contribution: float
    witness: float


@dataclass(frozen=True)
class ComponentShift:
    """A principal component, or all that lies outside them (component None, "the rest"). shift: of the mean in the
    reference's sd, signed (None for the rest); shift_se; log_variance_ratio; wasserstein: W1 in the reference's sd
    (None where it is not measured)."""

    component: int | None
    shift: float | None
    shift_se: float | None
    log_variance_ratio: float
    wasserstein: float | None


@dataclass(frozen=True)
class Attribution:
    """What the score is made of. score: of the rows in pairs; the contributions of ``clusters`` sum to it, and so do
    those of the segments of each column. rows: the most drifted rows, an Arrow table (drifted_rows.parquet), the
    largest witness first. plane: (m, 2) float64, first two components of the current rows; witness: (m,) float64 of the
    same rows, in that order."""

    score: float
    clusters: tuple[ClusterShift, ...]
    segments: tuple[SegmentShift, ...]
    components: tuple[ComponentShift, ...]
    rows: pa.Table
    plane: Any
    witness: Any


@dataclass(frozen=True)
class Phenomenon:
    """What happened, in words. size: in the unit the sentence uses (a share, a relative change, reference sd)."""

    kind: Literal[
        "new_cluster", "gone_cluster", "reweighted_clusters", "mean_shift", "low_variance_shift", "spread", "other"
    ]
    size: float
    sentence: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentScore:
    """A segment scored by itself: its current rows against its reference rows. value None: rows without one; pooled:
    how many rare values it puts together, 0 for a single one. calibration: energy against the segment's own usual
    movement, None where too few rows or windows are left (``reason`` says so). q: BH over all segments of the run."""

    column: str
    value: str | None
    pooled: int
    rows: int
    reference_rows: int
    windows: int  # reference windows with enough rows of it
    metrics: Mapping[str, Metric]
    calibration: Calibration | None
    q: float | None
    verdict: Verdict
    reason: str

    @property
    def name(self) -> str:
        """As the history has it: ``column=value``."""
        return f"{self.column}={segment_text(self.value, self.pooled)}"

    @property
    def gates(self) -> tuple[GateMetric, ...]:
        """Its energy as ``calibrate.judge`` takes it, q for the p-value adjusted over the family."""
        of = self.calibration
        if of is None or self.q is None:
            return ()
        usual, limit = of.aa_median, of.delta
        return (GateMetric("energy", of.score, of.se, of.null_sd, usual, of.p_aa, self.q, None, limit, of.p_close),)

    def point(self, window: Window) -> HistoryPoint:
        """As the history keeps it, under its name."""
        energy = self.metrics.get("energy")
        score = None if energy is None or energy.se is None else (energy.value, energy.se)
        return HistoryPoint.of(window, self.verdict, self.calibration, rows=self.rows, gates=self.gates, score=score)


def segment_text(value: str | None, pooled: int) -> str:
    """The value of a segment as people see it, and as the history tells segments of a column apart."""
    if pooled or value is None:
        return "(others)" if pooled else "(none)"
    return f"'{value}'" if value in ("(others)", "(none)") else value


@dataclass(frozen=True)
class HistoryPoint:
    """One window of one job as the history keeps it: what the verdict and the history plot need."""

    window: Window
    verdict: Verdict
    score: float | None  # None when insufficient
    se: float | None
    p_aa: float | None
    p_close: float | None
    null_sd: float | None
    delta: float | None
    clear_limit: float | None
    ratio: float | None
    rows: int
    in_reference: bool = False
    gates: tuple[GateMetric, ...] = ()  # what the verdict is made of; empty without one

    @classmethod
    def of(
        cls,
        window: Window,
        verdict: Verdict,
        calibration: Calibration | None,
        *,
        rows: int,
        gates: tuple[GateMetric, ...] = (),
        score: tuple[float, float] | None = None,
    ) -> HistoryPoint:
        """From a calibration, None where there is none; score: value and standard error that are known all the same."""
        found = calibration
        if found is not None:
            score = (found.score, found.se)
        return cls(
            window=window,
            verdict=verdict,
            score=None if score is None else score[0],
            se=None if score is None else score[1],
            p_aa=None if found is None else found.p_aa,
            p_close=None if found is None else found.p_close,
            null_sd=None if found is None else found.null_sd,
            delta=None if found is None else found.delta,
            clear_limit=None if found is None else found.clear_limit,
            ratio=None if found is None else found.ratio,
            rows=rows,
            in_reference=found is not None and found.in_reference,
            gates=gates,
        )


@dataclass(frozen=True)
class Lagged:
    """A window against an earlier one. name: previous or year_ago. window, rows: of the earlier one. calibration is
    None, and ``reason`` says why, where there is too little data. movement: what counts as usual, in words."""

    name: str
    window: Window
    rows: int
    calibration: Calibration | None
    gates: tuple[GateMetric, ...]
    verdict: Verdict
    reason: str
    movement: str = ""

    def point(self, window: Window, rows: int) -> HistoryPoint:
        """As the history keeps it: under the later window, of so many rows."""
        return HistoryPoint.of(window, self.verdict, self.calibration, rows=rows, gates=self.gates)


@dataclass(frozen=True)
class Basis:
    """Principal axes pinned by the reference.

    mean: (d,) float64, the reference's mean (everything is centred by it). axes: (q, d) float64, orthonormal rows,
    signs fixed. variances: (q,) float64 of the reference along them. total_variance: the trace of its covariance.

    The axes fit the rows they were fitted on better than fresh rows of the same distribution. What that makes of log
    ratios of fresh rows to these rows, without drift: residual_optimism (>= 0 but for noise) of the mean residual,
    variance_optimism, (q,) float64, of the variance along each axis. None where there are too few rows to tell.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total_variance: float
    residual_optimism: float | None = None
    variance_optimism: Tensor | None = None


@dataclass(frozen=True)
class Projection:
    """Rows on the pinned axes. scores: (n, q) float64. residual: (n,) float64, the squared norm outside the axes."""

    scores: Tensor
    residual: Tensor


@dataclass(frozen=True)
class PanelInput:
    """What every metric gets. x is the reference, y the current window (n, m rows), both float32 and already centred by
    ``basis.mean``; px and py are their projections. ``edges``: (q', bins - 1) float64 inner bin edges per component,
    ``covariance``: (d, d) float64 of the reference, both pinned. ``components`` = q' <= q get metrics of their own.
    ``in_reference``: the rows of y are among those that basis, edges and covariance were fitted on, and x is the rest
    of them. ``classifier_rows``: rows of y the classifier sees at most, so that windows of different sizes compare;
    None: all. clusters: (n,) and (m,) codes of the users or documents of x and y, the same on both sides; None: rows
    are independent. kept: what earlier windows found out about x alone; None: nothing is kept."""

    x: Tensor
    y: Tensor
    px: Projection
    py: Projection
    basis: Basis
    covariance: Tensor
    edges: Tensor
    components: int
    directions: int
    seed: int
    in_reference: bool = False
    classifier_rows: int | None = None
    clusters: tuple[Tensor, Tensor] | None = None
    kept: Kept | None = None
