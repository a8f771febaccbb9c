"""Lines for the terminal, the result and the report: what a reader must know beside the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from gpudrift.calibrate import AUTOCORRELATION_LIMIT
from gpudrift.encoder import explain
from gpudrift.records import Quality, SegmentScore
from gpudrift.sampling import sampling_error
from gpudrift.scoring import Scored, Scorer, compared_rows
from gpudrift.source.quality import total, unit_length

ODD_DUPLICATES = 0.05  # share of duplicate rows that is said


def dropped_rows(what: str, quality: Sequence[Quality]) -> list[str]:
    """A note that says which rows were dropped, and why; none when there were none."""
    causes = sorted({cause for q in quality for cause in q.dropped})
    if not causes:
        return []
    counted = ", ".join(f"{sum(q.dropped.get(cause, 0) for q in quality):,} {cause}" for cause in causes)
    read = sum(q.rows_read for q in quality)
    return [f"{read - sum(q.rows_kept for q in quality):,} of {read:,} rows of {what} dropped: {counted}"]


def odd_rows(scored: Scored, reference_quality: Sequence[Quality]) -> list[str]:
    """One line about rows that were kept and look wrong: many duplicates, ids twice, lengths that are not 1."""
    found = None if scored.quality is None else scored.quality.found
    if found is None or found.norms is None:
        return []
    usual, rows, said = total(reference_quality), found.norms.rows, []
    share = 0.0
    if usual.found is not None:
        share = usual.found.duplicates.rows / max(1, usual.rows_kept)
    if found.duplicates.rows > max(ODD_DUPLICATES, 2 * share) * rows:
        said.append(
            f"{found.duplicates.rows:,} duplicate rows (largest group {found.duplicates.largest:,}; "
            f"{share:.1%} of the reference's rows are)"
        )
    if found.repeated_ids is not None and found.repeated_ids.rows:
        said.append(
            f"{found.repeated_ids.rows:,} rows with an id that another has{_named(found.repeated_ids.examples)}"
        )
    if unit_length(reference_quality) and found.norms.off_unit:
        said.append(f"{found.norms.off_unit:,} rows not of length 1{_named(found.norms.examples)}")
    return [f"of {rows:,} rows of {scored.window.label}: " + "; ".join(said)] if said else []


def encoder_notes(scored: Scored) -> list[str]:
    """What looks like another encoder, why, and what to do about it."""
    if scored.encoder is None or not scored.encoder.headline:
        return []
    return [f"{scored.window.label}: {explain(scored.encoder)}"]


def sampling_notes(scorer: Scorer, scored: Scored) -> list[str]:
    """That pairs are of some rows only, and what it costs; nothing where all take part."""
    rows, reference_rows = scored.rows, compared_rows(scorer.rows, scored)
    if scored.measured is None:
        return []
    sampled = len(scored.measured.energy.a)
    if (scored.pair_rows, sampled) == (rows, reference_rows):
        return []
    note = (
        f"pairs are of {scored.pair_rows:,} of {rows:,} rows against {sampled:,} of {reference_rows:,} "
        f"({scorer.limit.setting}); all other metrics see every row"
    )
    if scorer.rows.prepared.clusters is None:
        everything, _ = sampling_error(scored.measured.energy, (reference_rows, rows))
        note += f"; standard error {scored.measured.energy.se:.2g}, of all pairs about {everything:.2g}"
    return [note]


def calibration_notes(scored: Scored, gates: Sequence[str] = ()) -> list[str]:
    """What a reader must know about this window's calibration. gates: names of the metrics that are to gate."""
    found = scored.calibration
    notes: list[str] = []
    if found is None:
        return notes
    if left_out := [name for name in gates if name not in {gate.metric for gate in scored.gates}]:
        notes.append(f"without a usual movement to be judged by, and so without a say: {', '.join(left_out)}")
    if found.aa_recomputed:
        notes.append(f"the usual movement was recomputed at {found.aa_n} rows, this window's size")
    if found.in_reference:
        notes.append("this window is part of the reference: it was scored against the other reference windows")
    if found.autocorrelation is not None and found.autocorrelation > AUTOCORRELATION_LIMIT:
        notes.append(
            f"the reference's own movement is autocorrelated ({found.autocorrelation:.2f} from window to window): "
            "expect more false alarms than the nominal rate"
        )
    if found.score < found.delta and found.smallest_alerting > 1.5 * found.delta:
        notes.append(
            f"at {scored.rows:,} rows the energy distance alone alerts from a drift of {found.smallest_alerting:.2g} "
            "on (4 times in 5); longer windows see smaller ones"
        )
    if found.smallest_detectable > found.delta:
        notes.append("at this many rows a drift as large as the usual movement is below what is detectable")
    return notes


def segment_notes(segments: Sequence[SegmentScore]) -> list[str]:
    """Columns of which no segment can be scored, and why; nothing of it would be seen otherwise."""
    columns: dict[str, list[SegmentScore]] = {}
    for score in segments:
        columns.setdefault(score.column, []).append(score)
    return [
        f"no segment of {column} is scored: {scores[0].reason}"
        for column, scores in columns.items()
        if all(score.calibration is None for score in scores)
    ]


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
