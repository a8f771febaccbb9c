"""Records in one line each, as ``VerdictSummary`` takes them: what changed, which metrics decide, who moved, and the
verdicts against other references. Loads neither rich nor matplotlib nor torch."""

from __future__ import annotations

from collections.abc import Sequence

from gpudrift.calibrate import Limits, beyond, surely_beyond
from gpudrift.records import ClusterShift, GateMetric, Lagged, Phenomenon, SegmentScore, SegmentShift, segment_text
from gpudrift.report.wording import GateLine, as_sentence, count, number, p_value, times

AGAINST = {"previous": "the window before", "year_ago": "a year ago"}
COMMON = 0.1  # of its rows, that a segment value has at least when a cluster is called by it


def changed_lines(happened: Sequence[Phenomenon]) -> tuple[str, ...]:
    return tuple(as_sentence(phenomenon.sentence) for phenomenon in happened)


def gate_lines(gates: Sequence[GateMetric], limits: Limits) -> tuple[GateLine, ...]:
    """As the verdict judges them."""
    return tuple(GateLine(g.metric, g.value, g.p_holm, beyond(g, limits), surely_beyond(g, limits)) for g in gates)


def cluster_name(shift: ClusterShift) -> str:
    """What most of its current rows have in common, else its number."""
    if shift.labels and shift.labels[0][1] >= COMMON:
        text, share = shift.labels[0]
        return f"{text} ({100 * share:.0f}%)"
    return f"cluster {shift.index}"


def cluster_examples(shift: ClusterShift) -> str:
    """Ids of rows near its centroid; of the reference's where it has gone."""
    ids = (shift.reference_ids or shift.ids) if shift.kind == "gone" else (shift.ids or shift.reference_ids)
    return ", ".join(ids[:3])


def part_of_score(part: float, score: float) -> str:
    """A part of the score in percent; its value where the score is no positive number."""
    return f"{round(100 * part / score)}%" if score > 0 else number(part, 2)  # round: -0.3 is 0, not -0


def cluster_lines(shifts: Sequence[ClusterShift], score: float) -> tuple[str, ...]:
    """The clusters that changed, those first that make up most of the score."""
    changed = sorted((s for s in shifts if s.kind != "same"), key=lambda s: (-abs(s.contribution), s.index))
    return tuple(
        f"{cluster_name(s)} {s.kind}, {_shares(s)}, {part_of_score(s.contribution, score)} of the score"
        + (f": {cluster_examples(s)}" if s.ids or s.reference_ids else "")
        for s in changed
    )


def segment_lines(scores: Sequence[SegmentScore], shifts: Sequence[SegmentShift], score: float) -> tuple[str, ...]:
    """The segments that drifted by themselves, worst first, then those whose share of the rows changed."""
    rank = {"alert": 0, "warning": 1}
    drifted = [(s, None if s.calibration is None else s.calibration.ratio) for s in scores if s.verdict in rank]
    drifted.sort(key=lambda item: (rank[item[0].verdict], -(item[1] or 0.0), item[0].name))
    found = [
        f"{s.name} {s.verdict}, {times(ratio)} its usual movement{_chance('q', s.q)}, {count(s.rows)} rows"
        for s, ratio in drifted
    ]
    moved = [s for s in shifts if s.kind != "same"]
    moved.sort(key=lambda s: (-abs(s.contribution), s.column, s.value or ""))
    found += [
        f"{s.column}={segment_text(s.value, s.pooled)} {s.kind}, {_shares(s)}, "
        f"{part_of_score(s.contribution, score)} of the score"
        for s in moved
    ]
    return tuple(found)


def lagged_line(lagged: Lagged) -> str:
    against = f"against {lagged.window.label}, {AGAINST.get(lagged.name, lagged.name)}: {lagged.verdict}"
    if lagged.calibration is None:
        return f"{against}, {lagged.reason}"
    p = min((gate.p_holm for gate in lagged.gates), default=lagged.calibration.p_aa)
    return f"{against}, {times(lagged.calibration.ratio)} the usual movement{_chance('p', p)}"


def _shares(shift: ClusterShift | SegmentShift) -> str:
    return f"{100 * shift.reference_share:.1f}% to {100 * shift.share:.1f}% of the rows"


def _chance(name: str, value: float | None) -> str:
    p = p_value(value)
    return "" if p == "-" else f" ({name}={p})" if p[0].isdigit() else f" ({name}{p})"
