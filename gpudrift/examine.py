"""A scored window looked into: what its score is made of, what happened in words, and each segment by itself."""

from __future__ import annotations

from collections.abc import Mapping

from gpudrift.attribution.attribute import AttributionSettings, attribute, inputs_of
from gpudrift.attribution.phenomena import explain
from gpudrift.context import Context
from gpudrift.records import Attribution, HistoryPoint, Phenomenon, SegmentScore
from gpudrift.scoring import Scored, Scorer
from gpudrift.segments.columns import SegmentSettings
from gpudrift.segments.scorer import SegmentScorer


def attribution_of(ctx: Context, scorer: Scorer, scored: Scored) -> tuple[Attribution | None, tuple[Phenomenon, ...]]:
    """Rows, clusters, segments and components the score is made of, and what that amounts to; nothing without a
    score."""
    if scored.taken is None or scored.measured is None:
        return None, ()
    wanted, pinned = ctx.job.attribute, scorer.reference
    settings = AttributionSettings(wanted.clusters, wanted.rows, wanted.min_rows, wanted.fdr, ctx.panel.seed)
    with ctx.stage("attribution"):
        inputs = inputs_of(
            scorer.rows,
            scorer.offsets,
            scored.taken.cloud,
            scored.taken.sample,
            scored.measured,
            pinned.pins.basis,
            place=pinned.index_of(scored.window),
            users=scored.taken.codes,
        )
        found = attribute(inputs, settings)
        happened = explain(
            scored.gates,
            scored.measured.metrics,
            found.clusters,
            found.components,
            fdr=wanted.fdr,
            p=ctx.limits.warn_p,
        )
    return found, happened


def segment_scorer(ctx: Context, scorer: Scorer) -> SegmentScorer | None:
    """What scores the segments of windows; None where no segment column is configured."""
    pinned, rows = scorer.reference, scorer.rows
    if not rows.segments:
        return None
    wanted, rule = ctx.job.segments, ctx.job.calibrate
    return SegmentScorer(
        rows=rows.centred,
        projection=rows.projection,
        offsets=scorer.offsets,
        labels=[w.window.label for w in pinned.kept],
        columns=rows.segments,
        codes=rows.codes,
        arithmetic=scorer.arithmetic,
        pins=pinned.pins,
        panel=ctx.panel,
        limits=ctx.limits,
        limit=scorer.limit,
        settings=SegmentSettings(wanted.min_rows, wanted.fdr, wanted.most),
        min_windows=rule.min_windows,
        max_dropped=rule.max_dropped,
        hygiene_sd=rule.hygiene_sd,
        whole_panel=wanted.panel,
        where=scorer.pairs,
    )


def segments_of(
    ctx: Context, scorer: SegmentScorer | None, scored: Scored, previous: Mapping[str, HistoryPoint]
) -> tuple[SegmentScore, ...]:
    """The segments of a scored window, with verdicts; ``previous``: those of the window before, by name."""
    if scorer is None or scored.taken is None:
        return ()
    cloud = scored.taken.cloud
    with (
        ctx.stage("segments"),
        ctx.reporter.progress("segments", total=scorer.pairs_of(cloud), unit="pairs") as advance,
    ):
        return scorer.score(cloud, scored.taken.codes, previous, advance)
