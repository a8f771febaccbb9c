"""Attribution: which rows, clusters, segments and components the score is made of.

The witness values of ``metrics.pairs`` split the score exactly: mean a + mean b is the energy U-statistic. So the rows
of any group contribute sum a_i / n + sum b_j / m, and the contributions of groups that cover all rows sum to the score.
A current row with a large b_j lies far from the reference and close to its own window.

Clusters are fitted on one half of the rows and tested on the other, and both sides weigh the same in the fit: of a
reference twelve times the size of a window, centroids would otherwise follow the reference alone. With users or
documents, all rows of one are in the same half, of both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpudrift.attribution import clustering
from gpudrift.attribution.groups import Floats, Ints, cluster_shifts, coded, flat, segment_shifts
from gpudrift.attribution.inputs import AttributionInput, AttributionSettings, Side, inputs_of
from gpudrift.metrics.accumulate import chunks, log_ratio, reference_sd
from gpudrift.records import Attribution, ClusterShift, ComponentShift
from gpudrift.source.names import as_text

if TYPE_CHECKING:
    import pyarrow as pa

NEAREST = 1_000  # most rows of the table whose nearest reference row is looked up: each costs a pass over the reference

__all__ = ["AttributionInput", "AttributionSettings", "Side", "attribute", "components", "inputs_of"]


def attribute(inputs: AttributionInput, settings: AttributionSettings) -> Attribution:
    """What the score is made of (docs/attribution.md). Deterministic for rows in canonical order and a seed."""
    x, y = inputs.reference, inputs.current
    windows = np.repeat(np.arange(len(inputs.offsets) - 1), np.diff(np.asarray(inputs.offsets)))
    users = None if x.users is None or y.users is None else (x.users.cpu().numpy(), y.users.cpu().numpy())
    columns = {name: coded(x.segments[name], y.segments[name]) for name in sorted(x.segments) if name in y.segments}
    clusters, codes = cluster_shifts(inputs, settings, windows, users, columns)
    return Attribution(
        score=inputs.score,
        clusters=clusters,
        segments=segment_shifts(inputs, settings, windows, users, columns),
        components=components(inputs),
        rows=_drifted_rows(inputs, settings, clusters, codes),
        plane=y.projection.scores[:, :2].cpu().numpy(),
        witness=y.witness.numpy(),
    )


def components(inputs: AttributionInput) -> tuple[ComponentShift, ...]:
    """Every pinned component, then the rest: shift of the mean and W1 in the reference's sd, and the log ratio of
    variances (of the rest: of the mean squares), less what fresh rows show without drift (``Basis``). With users the
    standard error of a shift adds up rows by user."""
    x, y, basis = inputs.reference, inputs.current, inputs.basis
    scale = basis.total_variance
    px, py = x.projection, y.projection
    mean_x, mean_y = px.scores.mean(0), py.scores.mean(0)
    variance_x, variance_y = px.scores.var(0), py.scores.var(0)
    squares_x, squares_y = px.scores.square().mean(0), py.scores.square().mean(0)
    errors = _mean_error(px.scores - mean_x, x.users) + _mean_error(py.scores - mean_y, y.users)
    found = []
    for k in range(px.scores.shape[1]):
        sd = reference_sd(basis, k)
        spread, _ = log_ratio(
            float(variance_y[k]), float(variance_x[k]), max(float(squares_x[k]), float(squares_y[k]), scale)
        )
        pinned = basis.variance_optimism
        w1 = inputs.metrics.get(f"wasserstein1_pc{k + 1}")
        found.append(
            ComponentShift(
                component=k + 1,
                shift=float(mean_y[k] - mean_x[k]) / sd if sd > 0 else None,
                shift_se=math.sqrt(float(errors[k])) / sd if sd > 0 else None,
                log_variance_ratio=spread - (0.0 if inputs.in_reference or pinned is None else float(pinned[k])),
                wasserstein=None if w1 is None else w1.extra.get("scaled"),
            )
        )
    rest_x, rest_y = float(px.residual.mean()), float(py.residual.mean())
    spread, _ = log_ratio(rest_y, rest_x, max(rest_x + float(squares_x.sum()), rest_y + float(squares_y.sum())))
    optimism = 0.0 if inputs.in_reference else basis.residual_optimism or 0.0
    return (*found, ComponentShift(None, None, None, spread - optimism, None))


def _mean_error(centred_nq: Tensor, users: Tensor | None) -> Tensor:
    """(q,) squared standard error of the means of independent rows, or of independent users."""
    n = len(centred_nq)
    if users is None:
        return centred_nq.square().sum(0).cpu() / (n * max(n - 1, 1))
    # sums by user on the CPU: CUDA adds them in any order
    codes, places = torch.unique(users.cpu(), return_inverse=True)
    sums = torch.zeros(len(codes), centred_nq.shape[1], dtype=torch.float64)
    sums.index_add_(0, places, centred_nq.cpu())
    groups = len(codes)
    return sums.square().sum(0) / n**2 * (groups / (groups - 1) if groups > 1 else math.nan)


def _drifted_rows(
    inputs: AttributionInput, settings: AttributionSettings, clusters: Sequence[ClusterShift], of_y: Ints
) -> pa.Table:
    import pyarrow as pa

    x, y = inputs.reference, inputs.current
    witness = y.witness.numpy()
    order = np.argsort(-witness, kind="stable")[: settings.rows]
    nearest, distance = _nearest_rows(y.rows[torch.from_numpy(order[:NEAREST]).to(y.rows.device)], x.rows)
    beyond = [None] * (len(order) - len(nearest))
    like = pa.array([*nearest.tolist(), *beyond], pa.int64())
    own = [clusters[g] for g in of_y[order]]
    text = pa.large_string()
    nothing = pa.nulls(len(order), text)
    table = {
        "rank": pa.array(np.arange(1, len(order) + 1)),
        "id": nothing if y.ids is None else as_text(flat(y.ids).take(order)),
        "witness": pa.array(witness[order]),
        "rank_share": pa.array(np.arange(1, len(order) + 1) / len(y)),
        "nearest_reference_id": nothing if x.ids is None else as_text(flat(x.ids).take(like)),
        "nearest_reference_distance": pa.array([*distance.tolist(), *beyond], pa.float64()),
        "cluster": pa.array(of_y[order]),
        "cluster_kind": pa.array([cluster.kind for cluster in own], text),
        "cluster_label": pa.array([", ".join(label for label, _ in cluster.labels) or None for cluster in own], text),
    }
    for name in sorted(y.segments):
        table[f"segment_{name}"] = as_text(flat(y.segments[name]).take(order))
    return pa.table(table)


def _nearest_rows(some: Tensor, rows: Tensor) -> tuple[Ints, Floats]:
    """For each of a few rows the place of the nearest of many, and the distance."""
    best = torch.full((len(some),), math.inf, dtype=torch.float64, device=rows.device)
    place = torch.zeros(len(some), dtype=torch.int64, device=rows.device)
    for part in chunks(len(rows), max(rows.shape[1], len(some))):
        least, here = clustering.squared_distances(some, rows[part]).min(dim=1)
        place = torch.where(least < best, here + part.start, place)
        best = torch.minimum(best, least)
    return place.cpu().numpy(), best.sqrt().cpu().numpy()
