"""What a run tells people through a webhook: the facts, and the generic JSON they are sent as (docs/notify.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from gpudrift.files import jsonable
from gpudrift.records import ClusterShift, SegmentScore, SegmentShift, Verdict, Window, segment_text
from gpudrift.report.lines import cluster_name
from gpudrift.report.wording import VerdictSummary, plain_sentence, printable

if TYPE_CHECKING:
    from gpudrift.monitoring.told import Told
    from gpudrift.outcomes.records import Outcomes
    from gpudrift.result import Run

SCHEMA_VERSION = 1
MOST = 5  # clusters, segments and outcomes in a message
ID_LETTERS = 500  # of an id; a longer one is cut

# new: told for the first time; worse: a warning that was told is an alert now; continues: it goes on, and the cooldown
# has passed; resolved: stable again
Event = Literal["new", "worse", "continues", "resolved"]


@dataclass(frozen=True)
class ToldCluster:
    """A cluster that changed. share, reference_share: of the rows; contribution: part of the score; ids: rows near its
    centroid."""

    name: str
    kind: str
    share: float
    reference_share: float
    contribution: float
    ids: tuple[str, ...]


@dataclass(frozen=True)
class ToldSegment:
    """A segment that drifted by itself. ratio: times its usual movement."""

    name: str
    verdict: str
    ratio: float | None
    q: float | None
    rows: int


@dataclass(frozen=True)
class ToldShare:
    """A segment whose share of the rows changed."""

    name: str
    kind: str
    share: float
    reference_share: float
    contribution: float


@dataclass(frozen=True)
class ToldOutcome:
    """A product metric beyond its limit. window: of the value, the run's or the last one before it that has one."""

    metric: str
    segment: str
    worse: str
    window: str
    value: float
    usual: float
    limit: float
    p: float
    link: str
    sentence: str


@dataclass(frozen=True)
class Message:
    """A run's facts, as messages tell them; which message they make is decided by what was told before
    (``told.decide``). Text that comes from data is as it was, for ids, and without control characters elsewhere."""

    job: str
    reference: str
    window: Window
    verdict: Verdict
    sentence: str
    score: float | None
    ratio: float | None
    p: float | None
    rows: int
    phenomena: tuple[str, ...] = ()
    clusters: tuple[ToldCluster, ...] = ()
    segments: tuple[ToldSegment, ...] = ()
    shares: tuple[ToldShare, ...] = ()
    outcomes: tuple[ToldOutcome, ...] = ()
    report_url: str | None = None


def message_of(
    ran: Run, summary: VerdictSummary, *, outcomes: Outcomes | None = None, report_url: str | None = None
) -> Message:
    """The facts of a run. report_url: where readers find the output directory."""
    scored, parts = ran.scored, ran.attribution
    return Message(
        job=ran.job,
        reference=ran.reference.id,
        window=scored.window,
        verdict=ran.verdict,
        sentence=plain_sentence(summary),
        score=summary.score,
        ratio=summary.ratio,
        p=min((gate.p for gate in summary.gates), default=summary.p_aa),
        rows=scored.rows,
        phenomena=tuple(printable(line) for line in summary.phenomena),
        clusters=() if parts is None else _clusters(parts.clusters),
        segments=_segments(ran.segments),
        shares=() if parts is None else _shares(parts.segments),
        outcomes=() if outcomes is None else _outcomes(outcomes),
        report_url=report_link(report_url, scored.window.label),
    )


def report_link(base: str | None, label: str) -> str | None:
    """Where the report of a window is, below ``base``."""
    return None if base is None else f"{base.rstrip('/')}/reports/{quote(label, safe='')}.html"


def as_json(message: Message, event: Event, before: Told | None, now: datetime) -> dict[str, Any]:
    """The generic message; every key is in docs/notify.md. ``id`` is the same for every attempt at one message."""
    window = message.window
    named = (message.job, message.reference, window.label, message.verdict, event)
    since = "" if before is None else before.at.isoformat()
    plain: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "id": hashlib.sha256("\n".join((*named, since)).encode()).hexdigest()[:32],
        "event": event,
        "time": now,
        "job": message.job,
        "reference": message.reference,
        "verdict": message.verdict,
        "before": None if before is None else {"verdict": before.verdict, "window": before.window, "time": before.at},
        "window": {"label": window.label, "start": window.start, "end": window.end},
        "sentence": message.sentence,
        "score": message.score,
        "ratio": message.ratio,
        "p": message.p,
        "rows": message.rows,
        "phenomena": message.phenomena,
        "clusters": [asdict(one) for one in message.clusters],
        "segments": [asdict(one) for one in message.segments],
        "segment_shares": [asdict(one) for one in message.shares],
        "outcomes": [asdict(one) for one in message.outcomes],
        "report_url": message.report_url,
    }
    return dict(jsonable(plain))


def _clusters(shifts: Sequence[ClusterShift]) -> tuple[ToldCluster, ...]:
    changed = sorted((s for s in shifts if s.kind != "same"), key=lambda s: (-abs(s.contribution), s.index))
    return tuple(
        ToldCluster(
            name=printable(cluster_name(s)),
            kind=s.kind,
            share=s.share,
            reference_share=s.reference_share,
            contribution=s.contribution,
            ids=tuple(_cut(name) for name in _ids(s)[:MOST]),
        )
        for s in changed[:MOST]
    )


def _ids(shift: ClusterShift) -> tuple[str, ...]:
    """Of its current rows; of the reference's where it has gone."""
    return (shift.reference_ids or shift.ids) if shift.kind == "gone" else (shift.ids or shift.reference_ids)


def _segments(scores: Sequence[SegmentScore]) -> tuple[ToldSegment, ...]:
    rank = {"alert": 0, "warning": 1}
    found = [(s, None if s.calibration is None else s.calibration.ratio) for s in scores if s.verdict in rank]
    found.sort(key=lambda item: (rank[item[0].verdict], -(item[1] or 0.0), item[0].name))
    return tuple(ToldSegment(_cut(printable(s.name)), s.verdict, ratio, s.q, s.rows) for s, ratio in found[:MOST])


def _shares(shifts: Sequence[SegmentShift]) -> tuple[ToldShare, ...]:
    changed = sorted(
        (s for s in shifts if s.kind != "same"), key=lambda s: (-abs(s.contribution), s.column, s.value or "")
    )
    return tuple(
        ToldShare(
            _cut(printable(f"{s.column}={segment_text(s.value, s.pooled)}")),
            s.kind,
            s.share,
            s.reference_share,
            s.contribution,
        )
        for s in changed[:MOST]
    )


def _outcomes(outcomes: Outcomes) -> tuple[ToldOutcome, ...]:
    """Those beyond their limit, in the order of the findings."""
    return tuple(
        ToldOutcome(
            metric=_cut(printable(found.metric)),
            segment=_cut(printable(found.segment)),
            worse=found.worse,
            window=found.level.window,
            value=found.level.value,
            usual=found.level.usual,
            limit=found.level.limit,
            p=found.level.p,
            link=found.link,
            sentence=printable(found.sentence),
        )
        for found in outcomes.findings
        if found.level is not None and found.level.degraded
    )[:MOST]


def _cut(text: str, letters: int = ID_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
