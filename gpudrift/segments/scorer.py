"""Every segment scored by itself: its current rows against its own reference rows, and its own usual movement.

``columns`` says which segments there are, ``null`` what each one's usual movement is. All are measured on
the coordinates the whole reference pinned: mean, axes, bandwidths, bins. The energy's p-values of all segments of all
columns in a run are one family: Benjamini and Hochberg (1995), q against ``SegmentSettings.fdr``. From q the verdict
follows as it does for the whole from its p-value (``calibrate.judge``, ``calibrate.decide``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.arithmetic import Arithmetic, prepare
from gpudrift.calibrate import MIN_NULL, Limits, calibrate, decide, judge
from gpudrift.engine.pairs import Pairs, in_process_pairs
from gpudrift.errors import ArgumentError, RangeError
from gpudrift.fdr import benjamini_hochberg
from gpudrift.kernels import PairSums
from gpudrift.metrics.accumulate import covariance_of, mean_of
from gpudrift.metrics.pairs import PairEstimate, less
from gpudrift.panel import PanelSettings, Pins, classifier_metric, measure, pair_metrics
from gpudrift.records import Cloud, HistoryPoint, Metric, Projection, SegmentScore
from gpudrift.sampling import Limit
from gpudrift.segments.columns import Places, Segment, SegmentColumn, SegmentSettings, cap, key_of, segment_columns
from gpudrift.segments.null import ReferenceRows, SegmentReference, null_at, pin_segment
from gpudrift.source.names import as_text

_Key = tuple[str, bool, bool, str]
_Found = tuple[dict[str, Metric], PairEstimate]


@dataclass(frozen=True)
class _Compared:
    """A segment of a window that can be scored. x, y: places of the rows in pairs; all_x, all_y: of all of its rows.
    kept: places of x among the segment's reference rows in pairs, where the window is one of them; None: all."""

    segment: Segment
    pinned: SegmentReference
    x: Tensor
    y: Tensor
    all_x: Tensor
    all_y: Tensor
    kept: Tensor | None

    @property
    def n0(self) -> int | None:
        """Rows at which the usual movement is looked at; None without enough windows for one."""
        return min(self.pinned.n0, len(self.y)) if len(self.pinned.usable) >= MIN_NULL else None


@dataclass
class SegmentScorer:
    """Scores the segments of windows against those of one reference; keeps what it summed over the reference's pairs.

    rows: (n, d) float32, the reference's, window-major in canonical order, centred by the pinned mean, on the device;
    projection: of them. offsets, labels: of its windows. columns: Arrow arrays aligned with the rows, by name. codes:
    (n,) int64 clusters, or None. limit: the segments of a column together take part in no more pairs than so many rows
    a side have; the largest are cut first. min_windows, max_dropped, hygiene_sd: as for the whole
    (``config.CalibrateConfig``), by segment. whole_panel: False measures energy and MMD alone: all that a
    verdict needs, in a small part of the time where segments are small. where: who computes pairs.
    """

    rows: Tensor
    projection: Projection
    offsets: Sequence[int]
    labels: Sequence[str]
    columns: Mapping[str, Any]
    codes: Tensor | None
    arithmetic: Arithmetic
    pins: Pins
    panel: PanelSettings
    limits: Limits
    limit: Limit
    settings: SegmentSettings = field(default_factory=SegmentSettings)
    min_windows: int = 8
    max_dropped: float = 0.25
    hygiene_sd: float = 4.0
    whole_panel: bool = True
    where: Pairs = field(default_factory=in_process_pairs)
    _columns: dict[str, SegmentColumn] = field(init=False)
    _pinned: dict[_Key, SegmentReference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.rows)
        if len(self.labels) != len(self.offsets) - 1 or self.offsets[-1] != n:
            raise ArgumentError(
                "the windows do not cover the rows", field="offsets", value=tuple(self.offsets), allowed=f"0 ... {n}"
            )
        for name, column in self.columns.items():
            _require_length(name, column, n)
        self._columns = segment_columns(self.columns, self.offsets, self.settings, self.limit.rows, self.min_windows)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Those of the reference, by column, then value; rows without one and the pool last."""
        return tuple(segment for column in self._columns.values() for segment in column.segments if len(segment.rows))

    def pairs(self) -> int:
        """Pairs that the reference's own segments take, once, of either order counted once. Those of a column are at
        most those of all rows, or of ``limit.rows``."""
        return sum(math.comb(sum(segment.pairs), 2) for segment in self.segments if self._has_reference(segment))

    def pairs_of(self, cloud: Cloud) -> int:
        """Pairs that scoring a window takes, besides ``pairs``."""
        total = 0
        for name, column in self._columns.items():
            parts = column.split(cloud.segments[name])
            most = self._most(column, parts)
            for segment, rows in zip(column.segments, parts, strict=True):
                if self._scorable(segment, rows):
                    m = min(len(rows), most)
                    total += sum(segment.pairs) * m + math.comb(m, 2)
        return total

    def score(
        self,
        cloud: Cloud,
        codes: Tensor | None = None,
        previous: Mapping[str, HistoryPoint] | None = None,
        progress: kernels.Progress | None = None,
    ) -> tuple[SegmentScore, ...]:
        """Score every segment of one window, by column, then value; rows without one and the pool last.

        Args:
            cloud: one window in canonical order on the reference's device, centred by the pinned mean.
            codes: (m,) int64 cluster codes when the reference has them.
            previous: the window before by segment (``SegmentScore.name``), where there is one.

        A window of the reference, told by its label, is scored against the segment's other windows. ArgumentError for a
        segment column that the window lacks.
        """
        for name in self._columns:
            if name not in cloud.segments:
                raise ArgumentError(
                    "the window lacks a segment column", field="segments", value=name, allowed=list(self._columns)
                )
            _require_length(name, cloud.segments[name], len(cloud))
        try:
            found = self._measured(cloud, codes, progress)
        except RangeError:
            if self.arithmetic.precision != "float16":
                raise
            reason = f"rows of {cloud.windows[0].label} leave float16's range: all sums redone"
            self.arithmetic = Arithmetic("float32", reason, 1.0)
            self._pinned.clear()
            found = self._measured(cloud, codes, progress)
        q = benjamini_hochberg([math.nan if one.calibration is None else one.calibration.p_aa for one in found])
        family = (one if math.isnan(value) else replace(one, q=value) for one, value in zip(found, q, strict=True))
        return tuple(self._with_verdict(one, (previous or {}).get(one.name)) for one in family)

    def _measured(self, cloud: Cloud, codes: Tensor | None, progress: kernels.Progress | None) -> list[SegmentScore]:
        """All segments, without q and verdict. ``reason`` says why there can be no verdict, where there can be none."""
        label = cloud.windows[0].label
        place = list(self.labels).index(label) if label in self.labels else None
        found = []
        for name, column in self._columns.items():
            parts = column.split(cloud.segments[name])
            most = self._most(column, parts)
            compared = [
                self._compare(segment, rows, most, place, progress)
                for segment, rows in zip(column.segments, parts, strict=True)
                if self._scorable(segment, rows)
            ]
            panels = self._panels(compared, cloud, codes, place is not None, progress)
            scored = {one.segment.key: (one, panel) for one, panel in zip(compared, panels, strict=True)}
            for segment, rows in zip(column.segments, parts, strict=True):
                shown = segment
                if not len(segment.rows):  # the reference has no rare values: a pool of new ones alone
                    if not len(rows):
                        continue
                    new = as_text(cloud.segments[name]).take(pa.array(rows)).unique()
                    shown = replace(segment, pooled=len(new))
                bare = self._bare(shown, rows)
                found.append(bare if bare.reason else self._calibrated(bare, *scored[segment.key], place))
        return found

    def _has_reference(self, segment: Segment) -> bool:
        return len(segment.rows) >= self.settings.min_rows and not self._is_whole(segment)

    def _is_whole(self, segment: Segment) -> bool:
        """A pool of everything: what is said of it is said of the whole, at the same cost."""
        return segment.pooled > 0 and len(segment.rows) == len(self.rows)

    def _scorable(self, segment: Segment, rows: Places) -> bool:
        return self._has_reference(segment) and len(rows) >= self.settings.min_rows

    def _most(self, column: SegmentColumn, parts: Sequence[Places]) -> int:
        """Most current rows of a segment in pairs."""
        sizes = [
            len(rows) for segment, rows in zip(column.segments, parts, strict=True) if self._scorable(segment, rows)
        ]
        return cap(sizes, self.limit.rows)

    def _bare(self, segment: Segment, rows: Places) -> SegmentScore:
        """A segment before it is scored, with the reason where it has too few rows for that."""
        reason, least = "", f"segments.min_rows is {self.settings.min_rows}"
        if self._is_whole(segment):
            reason = (
                f"no value has that many rows in {self.min_windows} reference windows: all rows are one pool; {least}"
            )
        elif not len(rows):
            reason = "no row of it in this window"
        elif len(rows) < self.settings.min_rows:
            reason = f"{len(rows)} rows; {least}"
        elif not len(segment.rows):
            reason = "the reference has no row of it"
        elif not self._has_reference(segment):
            reason = f"{len(segment.rows)} reference rows; {least}"
        return SegmentScore(
            column=segment.column,
            value=segment.value,
            pooled=segment.pooled,
            rows=len(rows),
            reference_rows=len(segment.rows),
            windows=sum(size >= self.settings.min_rows for size in segment.sizes),
            metrics={},
            calibration=None,
            q=None,
            verdict="insufficient",
            reason=reason,
        )

    def _compare(
        self, segment: Segment, rows: Places, most: int, place: int | None, progress: kernels.Progress | None
    ) -> _Compared:
        """What is compared with what. place: of the window in the reference; rows: of the segment in the window."""
        if segment.key not in self._pinned:
            self._pinned[segment.key] = pin_segment(
                self._reference(), segment, self.settings.min_rows, self.hygiene_sd, progress
            )
        pinned = self._pinned[segment.key]
        bounds = np.cumsum([0, *segment.sizes])
        every = [segment.rows[bounds[k] : bounds[k + 1]] for k in pinned.windows if k != place]
        all_x, all_y = torch.from_numpy(np.concatenate(every)), torch.from_numpy(rows)
        if place is None or place not in pinned.windows:
            return _Compared(segment, pinned, pinned.places, all_y[:most], all_x, all_y, None)
        own = pinned.span(place)
        kept = torch.cat([torch.arange(own.start), torch.arange(own.stop, len(pinned.places))])
        y = pinned.places[own] - self.offsets[place]  # the rows whose pairs are in the reference's sums
        return _Compared(segment, pinned, pinned.places[kept], y, all_x, all_y, kept)

    def _panels(
        self,
        compared: Sequence[_Compared],
        cloud: Cloud,
        codes: Tensor | None,
        inside: bool,
        progress: kernels.Progress | None,
    ) -> list[_Found | None]:
        """The panel of each; None where no pair of different clusters is left. All pairs of a column in two calls."""
        if not compared:
            return []
        reference = self._reference()
        xs = reference.prepared(torch.cat([one.x for one in compared]), _bounds([one.x for one in compared]))
        y = torch.cat([one.y for one in compared])
        ys = prepare(
            _at(cloud.embeddings, y),
            self.arithmetic,
            offsets=_bounds([one.y for one in compared]),
            clusters=None if codes is None else _at(codes, y),
        )
        groups, widths = [(k, k) for k in range(len(compared))], self.pins.bandwidths
        yys = self.where.batch_sums(ys, None, groups, bandwidths=widths, progress=progress)
        xys = self.where.batch_sums(xs, ys, groups, bandwidths=widths, progress=progress)
        found: list[_Found | None] = []
        for k, (one, xy, yy) in enumerate(zip(compared, xys, yys, strict=True)):
            xx = one.pinned.sums if one.kept is None else less(one.pinned.sums, one.kept, xy, yy)
            clusters = xs.group(k).clusters, ys.group(k).clusters
            usable = min(xx.pairs, xy.pairs, yy.pairs) > 0
            found.append(self._metrics(one, cloud, codes, clusters, (xx, xy, yy), inside) if usable else None)
        return found

    def _metrics(
        self,
        one: _Compared,
        cloud: Cloud,
        codes: Tensor | None,
        clusters: tuple[Tensor | None, Tensor | None],
        sums: tuple[PairSums, PairSums, PairSums],
        inside: bool,
    ) -> _Found:
        """The metrics of a segment by name, and its energy; sums: of its reference, of both, of its current rows."""
        xx, xy, yy = sums
        if not self.whole_panel:
            pairs, energy = pair_metrics(xx, yy, xy, self.panel.multiples, *clusters)
            return {metric.name: metric for metric in pairs}, energy
        x, y = _at(self.rows, one.all_x), _at(cloud.embeddings, one.all_y)
        whole = None if codes is None or self.codes is None else (_at(self.codes, one.all_x), _at(codes, one.all_y))
        px = Projection(_at(self.projection.scores, one.all_x), _at(self.projection.residual, one.all_x))
        # moments are compared with the segment's own; the reference's are those of all segments together
        pins = self.pins if inside else replace(self.pins, covariance=covariance_of(x, mean_of(x)))
        found = measure(
            x, y, clusters, px, pins, self.panel, xx, xy, yy, in_reference=inside, classifier_rows=one.n0, codes=whole
        )
        # the panel's classifier takes x for centred by its own mean, which a segment's rows are not
        seen = y[: one.n0]
        both = torch.cat([x, seen])
        pooled = replace(self.pins, covariance=covariance_of(both, mean_of(both)))
        told = classifier_metric(x, seen, pooled, self.panel, None if whole is None else (whole[0], whole[1][: one.n0]))
        return {**found.metrics, told.name: told}, found.energy

    def _calibrated(
        self, bare: SegmentScore, one: _Compared, measured: _Found | None, place: int | None
    ) -> SegmentScore:
        """A segment with its panel, and its energy against its usual movement; ``reason`` where that gives no
        verdict."""
        if measured is None:
            return replace(bare, reason="its rows are of one cluster")
        pinned, (metrics, energy) = one.pinned, measured
        found = replace(bare, reference_rows=len(one.all_x), metrics=metrics)
        if one.n0 is None:
            return replace(found, reason=self._too_few(len(pinned.usable)))
        null = null_at(self._reference(), pinned, one.n0)
        own = None if place is None else self.labels[place]
        scores = {label: score for label, score in null.scores.items() if label != own and math.isfinite(score)}
        if len(scores) < MIN_NULL:
            return replace(found, reason=self._too_few(len(scores)))
        if not null.null_sd > 0 or not math.isfinite(energy.value) or not math.isfinite(energy.se):
            reason = "no noise level can be had from its rows (too alike, too few clusters, or far outliers)"
            return replace(found, reason=reason)
        calibration = calibrate(
            energy.value,
            energy.se,
            replace(null, scores=scores),
            null_sd_now=energy.null_sd,
            limits=self.limits,
            recomputed=one.n0 < pinned.n0,
            in_reference=place is not None,
        )
        kept, dropped, reason = len(pinned.usable), len(pinned.dropped), ""
        if dropped > self.max_dropped * (kept + dropped):
            reason = f"{dropped} of its {kept + dropped} reference windows stand far out of the others and were dropped"
        elif kept < self.min_windows:
            reason = self._too_few(kept)
        return replace(found, calibration=calibration, reason=reason)

    def _too_few(self, windows: int) -> str:
        return (
            f"{windows} usable reference windows, of {self.settings.min_rows} rows of it or more; "
            f"calibrate.min_windows is {self.min_windows}"
        )

    def _with_verdict(self, found: SegmentScore, previous: HistoryPoint | None) -> SegmentScore:
        pinned = self._pinned.get(key_of(found))
        bursts = [] if pinned is None else [f"{self.labels[k]} ({score:.3g})" for k, score in pinned.dropped]
        left_out = f"; left out of its reference as bursts: {', '.join(bursts)}" if bursts else ""
        if found.reason:
            return replace(found, reason=found.reason + left_out)
        fdr = self.settings.fdr
        limits = replace(self.limits, warn_p=fdr, clear_p=max(self.limits.clear_p, fdr))
        verdict, reason = decide(judge(found.gates, limits), previous, limits)
        return replace(found, verdict=verdict, reason=reason + left_out)

    def _reference(self) -> ReferenceRows:
        return ReferenceRows(
            self.rows, self.offsets, self.labels, self.codes, self.arithmetic, self.pins.bandwidths, self.where
        )


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values[places.to(values.device)]


def _bounds(parts: Sequence[Tensor]) -> list[int]:
    return list(itertools.accumulate(map(len, parts), initial=0))


def _require_length(name: str, column: Any, rows: int) -> None:
    if len(column) != rows:
        raise ArgumentError("one value a row", field=f"segments[{name}]", value=len(column), allowed=rows)
