"""What attribution needs: both sides' rows, witness values and columns, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.records import Basis, Cloud, Metric, Projection

if TYPE_CHECKING:
    from gpudrift.panel import Measured
    from gpudrift.reference import Rows
    from gpudrift.sampling import Sample


@dataclass(frozen=True)
class AttributionSettings:
    """clusters: at most. rows: most in the table of drifted rows. min_rows: of a segment, both sides together, to be
    tested by itself; and of a cluster, on the average of the smaller side. fdr: of clusters and segments named."""

    clusters: int = 20
    rows: int = 100
    min_rows: int = 20
    fdr: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """The rows of one side that take part in pairs. rows: (n, d) float32, centred by the pinned mean. witness: (n,)
    float64 on the CPU. projection: of the same rows. ids, segments: Arrow arrays of length n. users: (n,) int64 codes
    of users or documents, the same on both sides."""

    rows: Tensor
    witness: Tensor
    projection: Projection
    ids: Any = None
    segments: Mapping[str, Any] = field(default_factory=dict)
    users: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {
            "witness": len(self.witness),
            "projection": len(self.projection.scores),
            "ids": len(self.rows) if self.ids is None else len(self.ids),
            "users": len(self.rows) if self.users is None else len(self.users),
            **{f"segments[{name}]": len(column) for name, column in self.segments.items()},
        }
        for name, length in lengths.items():
            if length != len(self.rows):
                raise ArgumentError(
                    "one value a row that takes part in pairs is needed",
                    field=name,
                    value=length,
                    allowed=len(self.rows),
                )

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class AttributionInput:
    """Both sides, each of two rows at least. offsets: (K + 1,) of the reference's windows in its rows. metrics: the
    panel's, for W1 by component. in_reference: the current rows are among those that the basis was fitted on."""

    reference: Side
    current: Side
    offsets: Sequence[int]
    basis: Basis
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    in_reference: bool = False

    def __post_init__(self) -> None:
        steps = np.diff(np.asarray(self.offsets))
        if not len(steps) or self.offsets[0] != 0 or self.offsets[-1] != len(self.reference) or steps.min() < 0:
            raise ArgumentError(
                "these are not the windows of the reference's rows",
                field="offsets",
                value=list(self.offsets),
                allowed=f"ascending from 0 to {len(self.reference)}",
            )
        if min(len(self.reference), len(self.current)) < 2:
            raise ArgumentError(
                "a score has two rows on each side at least",
                field="rows",
                value=(len(self.reference), len(self.current)),
                allowed=">= 2",
            )
        if (self.reference.users is None) != (self.current.users is None):
            raise ArgumentError("users of one side only", field="users", allowed="both sides', or none")

    @property
    def score(self) -> float:
        return float(self.reference.witness.mean() + self.current.witness.mean())


def inputs_of(
    rows: Rows,
    windows: Sequence[int],
    cloud: Cloud,
    sample: Sample,
    measured: Measured,
    basis: Basis,
    *,
    place: int | None = None,
    users: Tensor | None = None,
) -> AttributionInput:
    """The input from what scoring holds.

    Args:
        rows: the reference's. windows: offsets of its windows among all its rows.
        cloud: the current window, already centred. sample: which of its rows take part in pairs.
        place: of the current window among the reference's, where it is one of them: the others are x then.
        users: (m,) codes of all rows of the cloud, where the reference's sums leave out same-cluster pairs.
    """
    positions = rows.sample.positions
    drawn = torch.arange(len(rows.centred)) if positions is None else positions.cpu()
    bounds = list(rows.sample.offsets if positions is not None else windows)
    kept = torch.ones(len(drawn), dtype=torch.bool)
    if place is not None:
        kept[bounds[place] : bounds[place + 1]] = False
        size = bounds[place + 1] - bounds[place]
        bounds = bounds[: place + 1] + [b - size for b in bounds[place + 2 :]]
    drawn = drawn[kept]
    own = rows.prepared.clusters
    reference = _side(
        rows.centred,
        rows.projection,
        measured.energy.a,
        None if len(drawn) == len(rows.centred) else drawn,
        rows.ids,
        rows.segments,
        None if own is None else own.cpu()[kept],
    )
    current = _side(
        cloud.embeddings,
        measured.py,
        measured.energy.b,
        sample.positions,
        cloud.ids,
        cloud.segments,
        None if users is None else sample.of(users),
    )
    return AttributionInput(reference, current, tuple(bounds), basis, measured.metrics, place is not None)


def _side(
    rows: Tensor,
    projection: Projection,
    witness: Tensor,
    positions: Tensor | None,
    ids: Any,
    segments: Mapping[str, Any],
    users: Tensor | None,
) -> Side:
    """Of all rows of a cloud those in pairs; witness and users are of these alone already."""
    witness, users = witness.cpu(), None if users is None else users.cpu()
    if positions is None:
        return Side(rows, witness, projection, ids, segments, users)
    import pyarrow as pa

    here, take = positions.to(rows.device), pa.array(positions.cpu().numpy())
    part = Projection(projection.scores[here], projection.residual[here])
    names = None if ids is None else ids.take(take)
    return Side(rows[here], witness, part, names, {k: v.take(take) for k, v in segments.items()}, users)
