"""Clusters whose share of the rows has changed by more than it usually does, and what of the score that makes.

New clusters thin all others out: a grown or shrunk cluster counts only where its share is further from the one that
new and gone clusters leave it, r (1 - new) / (1 - gone), than its usual movement at level p.

With A and B the mean influence of a cluster's reference and current rows and r, s its shares, its part of the score is
r A + s B = (s - r)(B - A)/2 + (s + r)(A + B)/2: the first term is the change of the share, the second what moved within
the cluster (A = -B where nothing did).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from gpudrift.records import ClusterShift


@dataclass(frozen=True)
class Changed:
    """Clusters by what happened to them, the largest change first. Where there are any: moved, the total variation of
    all shares that have changed by sampling alone (q < fdr), and explained, the part of the score that the changes of
    all shares make; else both 0. score: of all clusters; rest: what is left of it."""

    new: tuple[ClusterShift, ...]
    gone: tuple[ClusterShift, ...]
    grown: tuple[ClusterShift, ...]
    shrunk: tuple[ClusterShift, ...]
    moved: float
    explained: float
    score: float

    @property
    def told(self) -> tuple[ClusterShift, ...]:
        return self.new + self.gone + self.grown + self.shrunk

    @property
    def rest(self) -> float:
        return self.score - self.explained


def changed(clusters: Sequence[ClusterShift], fdr: float, limit: float, p: float) -> Changed:
    """Those with q < fdr and p_usual < limit; grown or shrunk ones beyond what is left them at level p as well."""
    moved = [c for c in clusters if c.q < fdr and c.p_usual < limit]
    new = tuple(c for c in moved if c.kind == "new")
    gone = tuple(c for c in moved if c.kind == "gone")
    # all others share what these leave them
    had, left = 1.0 - sum(c.reference_share for c in new + gone), 1.0 - sum(c.share for c in new + gone)
    scale = left / had if left > 0 < had else 1.0
    reach = NormalDist().inv_cdf(1 - p / 2)

    def beyond(c: ClusterShift, sign: int) -> bool:
        away = sign * (c.share - scale * c.reference_share)
        return away > 0 and not away <= reach * c.usual_sd

    grown = tuple(c for c in moved if c.kind == "grown" and beyond(c, 1))
    shrunk = tuple(c for c in moved if c.kind == "shrunk" and beyond(c, -1))
    told = bool(new or gone or grown or shrunk)
    # a topic is often cut into several clusters, of which only some stand out by themselves
    changes = [c.share - c.reference_share for c in clusters if c.q < fdr] if told else []
    rows, reference_rows = sum(c.rows for c in clusters), sum(c.reference_rows for c in clusters)
    return Changed(
        new=_by_size(new),
        gone=_by_size(gone),
        grown=_by_size(grown),
        shrunk=_by_size(shrunk),
        moved=min(1.0, max(sum(d for d in changes if d > 0), -sum(d for d in changes if d < 0))),
        explained=sum(_of_share(c, rows, reference_rows) for c in clusters) if told else 0.0,
        score=sum(c.contribution for c in clusters),
    )


def _by_size(clusters: Sequence[ClusterShift]) -> tuple[ClusterShift, ...]:
    return tuple(sorted(clusters, key=lambda c: (-abs(c.share - c.reference_share), c.index)))


def _of_share(c: ClusterShift, rows: int, reference_rows: int) -> float:
    """The part of a cluster's contribution that the change of its share makes."""
    if not c.rows or not c.reference_rows:
        return c.contribution
    share, before = c.rows / rows, c.reference_rows / reference_rows
    of_reference = (c.contribution - share * c.witness) / before
    return (share - before) * (c.witness - of_reference) / 2
