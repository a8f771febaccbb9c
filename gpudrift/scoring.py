"""One window against the pinned reference: the panel, its calibration, and what the window says by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.arithmetic import Arithmetic, prepare
from gpudrift.calibrate import GATES, MIN_NULL, AANull, Judgement, Limits, calibrate, gate, judge
from gpudrift.encoder import Baseline, baseline, diagnose
from gpudrift.engine.pairs import Pairs, in_process_pairs
from gpudrift.errors import DataError, RangeError
from gpudrift.kernels import PairSums, Prepared
from gpudrift.metrics.kept import Kept
from gpudrift.metrics.pairs import less
from gpudrift.movement import Windowed, panel_null
from gpudrift.panel import Measured, PanelSettings, centre, measure
from gpudrift.records import (
    Calibration,
    Cloud,
    EncoderCheck,
    GateMetric,
    HistoryPoint,
    Projection,
    Quality,
    Verdict,
    Window,
)
from gpudrift.reference import Reference, Rows
from gpudrift.sampling import Limit, Sample, draw
from gpudrift.source.names import as_text
from gpudrift.source.quality import unit_length

KEEP = 512 << 20  # bytes, for jobs that score many windows: about 300,000 rows of 384 dimensions


@dataclass(frozen=True)
class Taken:
    """Rows of a window, centred by the pinned mean: all of them, their cluster codes, and which take part in pairs."""

    cloud: Cloud
    codes: Tensor | None
    sample: Sample

    def paired(self) -> Tensor:
        """(m, d) rows that take part in pairs."""
        return self.sample.of(self.cloud.embeddings)

    def paired_codes(self) -> Tensor | None:
        return None if self.codes is None else self.sample.of(self.codes)


@dataclass(frozen=True)
class Scored:
    """A window as scored. measured, calibration, judgement are None where it has too little data or no null.
    pair_rows: rows of it in pairs. encoder: whether its rows look like those of another one. taken: its rows and what
    goes with them, for the stages after; None once they are let go."""

    window: Window
    rows: int
    quality: Quality | None
    measured: Measured | None = None
    calibration: Calibration | None = None
    judgement: Judgement | None = None
    gates: tuple[GateMetric, ...] = ()  # what the judgement is made of
    pair_rows: int = 0
    encoder: EncoderCheck | None = None  # None too for a window of the reference
    taken: Taken | None = None

    def point(self, verdict: Verdict) -> HistoryPoint:
        energy = None if self.measured is None else self.measured.energy
        score = None if energy is None else (energy.value, energy.se)
        return HistoryPoint.of(self.window, verdict, self.calibration, rows=self.rows, gates=self.gates, score=score)


def compared_rows(rows: Rows, scored: Scored) -> int:
    """Reference rows a window was compared with: without its own where it is part of the reference."""
    inside = scored.calibration is not None and scored.calibration.in_reference
    return len(rows.centred) - (scored.rows if inside else 0)


@dataclass
class Scorer:
    """Scores windows against one reference; keeps the A/A nulls it had to recompute for smaller windows.

    limit: most rows of a window in pairs beside the reference's (``Limit.against``, done here); a window of the
    reference takes part with its rows in the reference's sample.
    gates: names of the metrics that gate.
    pairs: where they are computed.
    keep: most bytes of what metrics find out about the reference that are kept from window to window; 0 keeps nothing
    and is right for one window. Not for windows of the reference, each of which meets other rows.
    """

    reference: Reference
    rows: Rows
    panel: PanelSettings
    limits: Limits
    limit: Limit
    gates: tuple[str, ...] = GATES
    keep: int = 0
    pairs: Pairs = field(default_factory=in_process_pairs)
    arithmetic: Arithmetic = field(init=False)
    self_sums: PairSums = field(init=False)
    kept: Kept = field(init=False)
    _nulls: dict[int, AANull] = field(default_factory=dict)
    _baseline: Baseline | None = None
    _ids: Any = None  # of the reference's rows, as text: bytes need not be

    def __post_init__(self) -> None:
        self.arithmetic, self.self_sums = self.reference.arithmetic, self.reference.self_sums
        self.limit = self.limit.against(len(self.rows.sample))
        self.kept = Kept(self.rows.centred, self.keep)

    def score(self, cloud: Cloud, codes: Tensor | None, progress: kernels.Progress | None = None) -> Scored:
        """Score the rows of one window.

        Args:
            cloud: one window in canonical order on the reference's device; its rows are centred in place.
            codes: (m,) int64 cluster codes when the reference has them.
        """
        window = cloud.windows[0]
        place = self.reference.index_of(window)
        taken = self.take(cloud, codes)
        sample = taken.sample
        y = self.ready(taken)
        null = self.null_for(len(sample), window if place is not None else None)
        bandwidths = self.reference.pins.bandwidths
        yy = self.pairs.self_sums(y, bandwidths=bandwidths, progress=progress, name="YY")
        if place is None:
            x, centred, px, xx = self.rows.prepared, self.rows.centred, self.rows.projection, self.self_sums
            codes_x = self.rows.codes
            xy = self.pairs.cross_sums(x, y, bandwidths=bandwidths, progress=progress)
        else:  # the window is part of the reference: against the others
            x, centred, px, kept = self._without(place)
            codes_x = self.rows.codes
            if codes_x is not None:
                codes_x = codes_x[_without(self.offsets, place).to(codes_x.device)]
            xy = self.pairs.cross_sums(x, y, bandwidths=bandwidths, progress=progress)
            xx = less(self.self_sums, kept, xy, yy)
        measured = measure(
            centred,
            cloud.embeddings,
            (x.clusters, y.clusters),
            px,
            self.reference.pins,
            self.panel,
            xx,
            xy,
            yy,
            in_reference=place is not None,
            classifier_rows=null.n0,
            codes=None if codes is None or codes_x is None else (codes_x, codes),
            kept=self.kept,
        )
        if not math.isfinite(measured.energy.value) or not math.isfinite(measured.energy.se):
            raise DataError(
                f"the score of {window.label} is not a number: its rows, or the reference's, span too wide a range",
                field="source.embedding_column",
                value=measured.energy.value,
                allowed="values that can be squared and summed; precision=float64 widens the range",
            )
        calibration = self._calibrate(measured, null, len(sample), place is not None)
        gates = () if calibration is None else gate(measured.metrics, null, self.gates, self.limits)
        judgement = None if calibration is None else judge(gates, self.limits)
        encoder = self._check_encoder(cloud) if place is None else None
        return Scored(
            window, len(cloud), cloud.quality[0], measured, calibration, judgement, gates, len(sample), encoder, taken
        )

    def take(self, cloud: Cloud, codes: Tensor | None) -> Taken:
        """Centre a window's rows, in place, and choose those that take part in pairs."""
        centre(cloud.embeddings, self.reference.pins.basis.mean)
        place = self.reference.index_of(cloud.windows[0])
        sample = draw(cloud, self.limit) if place is None else self._own_sample(place)
        return Taken(cloud, codes, sample)

    def ready(self, taken: Taken) -> Prepared:
        """Its rows in pairs, in the reference's arithmetic."""
        return self._prepare(taken.cloud.windows[0], taken.paired(), taken.paired_codes())

    def _check_encoder(self, cloud: Cloud) -> EncoderCheck:
        """Whether a window, centred, looks like another encoder rather than other content."""
        mean = self.reference.pins.basis.mean
        if self._baseline is None:
            unit = unit_length(self.rows.quality)
            self._baseline = baseline(self.rows.centred, mean, self.offsets, unit=unit)
            self._ids = None if self.rows.ids is None else as_text(self.rows.ids)
        return diagnose(
            self._baseline,
            cloud.embeddings,
            mean,
            ids=None if cloud.ids is None else as_text(cloud.ids),
            reference=self.rows.centred,
            reference_ids=self._ids,
        )

    def pairs_of(self, window: Window, rows: int) -> int:
        """Pairs that scoring a window of so many rows takes, of either order counted once."""
        place = self.reference.index_of(window)
        m = min(rows, self.limit.rows) if place is None else len(self._own_sample(place))
        return len(self.rows.sample) * m + m * m

    def _own_sample(self, place: int) -> Sample:
        """The rows of a window of the reference that are in the reference's sample."""
        sample, first = self.rows.sample, self.offsets[place]
        start, end = sample.offsets[place : place + 2]
        positions = None if sample.positions is None else sample.positions[start:end] - first
        return Sample(positions, (0, end - start))

    def _prepare(self, window: Window, rows: Tensor, codes: Tensor | None) -> Prepared:
        """The window's centred rows in the reference's arithmetic. Where they leave float16's range, both clouds and
        the reference's own sums are redone in float32, once."""
        try:
            return prepare(rows, self.arithmetic, clusters=codes)
        except RangeError:
            if self.arithmetic.precision != "float16":
                raise
        reason = f"rows of {window.label} leave float16's range: all sums redone"
        self.arithmetic = Arithmetic("float32", reason, 1.0)
        whole = prepare(self.rows.sample.of(self.rows.centred), self.arithmetic, clusters=self.rows.prepared.clusters)
        self.rows = replace(self.rows, prepared=whole)
        self.self_sums = self.pairs.self_sums(whole, bandwidths=self.reference.pins.bandwidths)
        return prepare(rows, self.arithmetic, clusters=codes)

    def _calibrate(self, measured: Measured, null: AANull, rows: int, inside: bool) -> Calibration | None:
        if len(null.scores) < MIN_NULL or not null.null_sd > 0:
            return None
        return calibrate(
            measured.energy.value,
            measured.energy.se,
            null,
            null_sd_now=measured.energy.null_sd,
            limits=self.limits,
            recomputed=rows < self.reference.null.n0,
            in_reference=inside,
        )

    def null_for(self, rows: int, own: Window | None) -> AANull:
        """The usual movement a window of so many rows in pairs is held against: the reference's, recomputed where it
        has fewer, and without the window itself where it is part of the reference."""
        null = self.null_at(rows)
        return null if own is None else null.without(own.label)

    def null_at(self, n0: int) -> AANull:
        """The usual movement at n0 rows, at most those it was pinned at."""
        if n0 >= self.reference.null.n0:
            return self.reference.null
        if n0 not in self._nulls:
            labels = [w.window.label for w in self.reference.kept]
            sample = self.rows.sample
            windowed = Windowed(
                self.rows.centred,
                self.offsets,
                self.rows.projection,
                self.reference.pins,
                self.panel,
                self.rows.codes,
            )
            self._nulls[n0], _ = panel_null(self.rows.prepared, sample.offsets, labels, n0, windowed, pairs=self.pairs)
        return self._nulls[n0]

    @property
    def offsets(self) -> list[int]:
        """Bounds of the reference's windows among all its rows."""
        bounds = [0]
        for window in self.reference.kept:
            bounds.append(bounds[-1] + window.rows)
        return bounds

    def _without(self, place: int) -> tuple[Prepared, Tensor, Projection, Tensor]:
        """The reference without one window: its sample ready for pairs; all its rows centred, and projected; and the
        places kept in the sample."""
        whole = self.rows.prepared
        kept = _without(self.rows.sample.offsets, place)
        in_sample, in_rows = (k.to(whole.rows.device) for k in (kept, _without(self.offsets, place)))
        rest = replace(
            whole,
            rows=whole.rows[in_sample],
            norms=whole.norms[in_sample],
            offsets=(0, len(kept)),
            clusters=None if whole.clusters is None else whole.clusters[in_sample],
        )
        projection = self.rows.projection
        rows = self.rows.centred[in_rows]
        return rest, rows, Projection(projection.scores[in_rows], projection.residual[in_rows]), kept


def _without(offsets: Sequence[int], place: int) -> Tensor:
    return torch.cat([torch.arange(offsets[place]), torch.arange(offsets[place + 1], offsets[-1])])
