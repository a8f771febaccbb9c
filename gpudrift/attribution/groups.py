"""Clusters and segments: whose share of the rows has changed, and how much of the score each is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift.attribution import clustering
from gpudrift.attribution.inputs import AttributionInput, AttributionSettings
from gpudrift.attribution.shares import Counts, count, p_values, usual
from gpudrift.fdr import benjamini_hochberg
from gpudrift.fingerprint import mix
from gpudrift.records import ClusterShift, SegmentShift, ShiftKind, segment_text
from gpudrift.source.names import as_text

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FIT_ROWS = 5_000  # most rows of a side that clusters are fitted on
USUAL_P = 0.05  # a change is called one where p_usual is below
NEW = 0.1  # a share below this part of the other side's counts as none
EXAMPLES = 5  # rows named by cluster
LABELS, LABEL_SHARE, LABEL_LIFT, LABEL_ROWS = 2, 0.1, 2.0, 3


@dataclass(frozen=True)
class Column:
    """A segment column of both sides as codes of its values, in order of their text, None last."""

    x: Ints
    y: Ints
    values: tuple[str | None, ...]


def flat(column: Any) -> Any:
    """An Arrow array of what may come in chunks."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def coded(x: Any, y: Any) -> Column:
    """A column of any Arrow type, of the reference and of the current rows."""
    import pyarrow as pa

    both = pa.concat_arrays([as_text(flat(column)) for column in (x, y)]).dictionary_encode(null_encoding="encode")
    values = both.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda k: (values[k] is None, values[k] or ""))
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    codes = rank[both.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
    return Column(codes[: len(x)], codes[len(x) :], tuple(values[k] for k in order))


def cluster_shifts(
    inputs: AttributionInput,
    settings: AttributionSettings,
    windows: Ints,
    users: tuple[Ints, Ints] | None,
    columns: Mapping[str, Column],
) -> tuple[tuple[ClusterShift, ...], Ints]:
    """Clusters, the largest contribution first, and the cluster of each current row."""
    x, y = inputs.reference, inputs.current
    fit_x, fit_y = _halves(len(x), len(y), users, settings.seed)
    centroids = _fit(x.rows, y.rows, fit_x, fit_y, settings)
    of_x, square_x = clustering.assign(x.rows, centroids)
    of_y, square_y = clustering.assign(y.rows, centroids)
    # numbered by their part of the score
    size = len(centroids)
    order = np.argsort(-_contributions(inputs, of_x, of_y, size), kind="stable")
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    of_x, of_y = rank[of_x], rank[of_y]
    parts = _contributions(inputs, of_x, of_y, size)
    held = None if users is None else (users[0][~fit_x], users[1][~fit_y])
    counts = count(of_x[~fit_x], of_y[~fit_y], size, windows[~fit_x], len(inputs.offsets) - 1, held)
    p = p_values(counts)
    q = benjamini_hochberg(p)
    sd, p_usual = usual(counts, p)
    rows_x, rows_y = np.bincount(of_x, minlength=size), np.bincount(of_y, minlength=size)
    witness = np.bincount(of_y, weights=y.witness.numpy(), minlength=size)
    found = []
    for g in range(size):
        inside = (of_x == g, of_y == g)
        found.append(
            ClusterShift(
                index=g,
                kind=_kind(counts, g, q[g], p_usual[g], settings.fdr),
                rows=int(rows_y[g]),
                reference_rows=int(rows_x[g]),
                share=float(counts.shares[g]),
                reference_share=float(counts.reference_shares[g]),
                usual_sd=sd[g],
                p=p[g],
                q=q[g],
                p_usual=p_usual[g],
                contribution=float(parts[g]),
                witness=float(witness[g] / rows_y[g]) if rows_y[g] else math.nan,
                ids=_nearest_ids(y.ids, inside[1], square_y),
                reference_ids=_nearest_ids(x.ids, inside[0], square_x),
                labels=_labels(columns, inside, 1 if rows_y[g] else 0),
            )
        )
    return tuple(found), of_y


def _halves(n: int, m: int, users: tuple[Ints, Ints] | None, seed: int) -> tuple[Mask, Mask]:
    """Rows to fit on, True, and to test on: every other row of the canonical order, which is a random one; or every
    other user in order of a hash, those of the current window and those of the reference alone each by themselves."""
    if users is None:
        return np.arange(n) % 2 == 0, np.arange(m) % 2 == 0
    here = np.unique(users[1])
    fitted = []
    for codes in (here, np.setdiff1d(users[0], here)):
        order = np.argsort(mix(codes.view(np.uint64) + mix(np.array([seed], dtype=np.uint64))), kind="stable")
        fitted.append(codes[order][::2])
    chosen = np.concatenate(fitted)
    return np.isin(users[0], chosen), np.isin(users[1], chosen)


def _fit(x: Tensor, y: Tensor, fit_x: Mask, fit_y: Mask, settings: AttributionSettings) -> Tensor:
    parts, weights = [], []
    for rows, fitted in ((x, fit_x), (y, fit_y)):
        places = np.flatnonzero(fitted)
        if len(places) > FIT_ROWS:  # evenly, so that all windows take part
            places = places[np.arange(FIT_ROWS) * len(places) // FIT_ROWS]
        parts.append(rows[torch.from_numpy(places).to(rows.device)])
        weights.append(np.full(len(places), 1 / max(len(places), 1)))
    k = max(1, min(settings.clusters, min(len(x), len(y)) // settings.min_rows))
    return clustering.fit(torch.cat(parts), np.concatenate(weights), k, seed=settings.seed).centroids


def _contributions(inputs: AttributionInput, of_x: Ints, of_y: Ints, groups: int) -> Floats:
    """(groups,) parts of the score."""
    total = np.zeros(groups)
    for side, codes in ((inputs.reference, of_x), (inputs.current, of_y)):
        total += np.bincount(codes, weights=side.witness.numpy(), minlength=groups) / len(side)
    return total


def _kind(counts: Counts, g: int, q: float, p_usual: float, fdr: float) -> ShiftKind:
    share, before = counts.shares[g], counts.reference_shares[g]
    # of one reference window there is no usual movement: sampling alone decides
    if not q < fdr or p_usual >= USUAL_P:
        return "same"
    if share > before:
        return "new" if before < NEW * share else "grown"
    return "gone" if share < NEW * before else "shrunk"


def _nearest_ids(ids: Any, inside: Mask, squares: Floats) -> tuple[str, ...]:
    if ids is None:
        return ()
    places = np.flatnonzero(inside)
    nearest = places[np.argsort(squares[places], kind="stable")[:EXAMPLES]]
    return tuple(map(str, as_text(flat(ids).take(nearest)).to_pylist()))


def _labels(columns: Mapping[str, Column], inside: tuple[Mask, Mask], side: int) -> tuple[tuple[str, float], ...]:
    """The values that stand out in a cluster's rows: a share of .1 and of twice that among all rows of the side."""
    found = []
    for name, column in columns.items():
        codes, chosen = (column.x, column.y)[side], inside[side]
        counts = np.bincount(codes[chosen], minlength=len(column.values))
        shares = counts / max(int(chosen.sum()), 1)
        everywhere = np.bincount(codes, minlength=len(column.values)) / len(codes)
        telling = (shares >= LABEL_SHARE) & (shares >= LABEL_LIFT * everywhere) & (counts >= LABEL_ROWS)
        found += [(f"{name}={segment_text(column.values[v], 0)}", float(shares[v])) for v in np.flatnonzero(telling)]
    return tuple(sorted(found, key=lambda label: (-label[1], label[0]))[:LABELS])


def segment_shifts(
    inputs: AttributionInput,
    settings: AttributionSettings,
    windows: Ints,
    users: tuple[Ints, Ints] | None,
    columns: Mapping[str, Column],
) -> tuple[SegmentShift, ...]:
    """Column by column, the largest contribution first. One BH family over all columns."""
    grouped = {name: _pooled(column, settings.min_rows) for name, column in columns.items()}
    counted = {
        name: count(of_x, of_y, len(named), windows, len(inputs.offsets) - 1, users)
        for name, (of_x, of_y, named) in grouped.items()
    }
    tested = {
        name: [
            p if rows >= settings.min_rows else math.nan
            for p, rows in zip(p_values(counts), counts.reference + counts.current, strict=True)
        ]
        for name, counts in counted.items()
    }
    adjusted = iter(benjamini_hochberg([p for found in tested.values() for p in found]))
    segments = []
    for name, (of_x, of_y, named) in grouped.items():
        counts, p = counted[name], tested[name]
        _, p_usual = usual(counts, p)
        parts = _contributions(inputs, of_x, of_y, len(named))
        witness = np.bincount(of_y, weights=inputs.current.witness.numpy(), minlength=len(named))
        own = []
        for g, (value, pooled) in enumerate(named):
            q = next(adjusted)
            rows = int(counts.current[g])
            own.append(
                SegmentShift(
                    column=name,
                    value=value,
                    pooled=pooled,
                    kind=_kind(counts, g, q, p_usual[g], settings.fdr),
                    rows=rows,
                    reference_rows=int(counts.reference[g]),
                    share=float(counts.shares[g]),
                    reference_share=float(counts.reference_shares[g]),
                    p=p[g],
                    q=q,
                    p_usual=p_usual[g],
                    contribution=float(parts[g]),
                    witness=float(witness[g]) / rows if rows else math.nan,
                )
            )
        segments += sorted(own, key=lambda segment: -segment.contribution)
    return tuple(segments)


def _pooled(column: Column, min_rows: int) -> tuple[Ints, Ints, list[tuple[str | None, int]]]:
    """Groups of the rows and (value, pooled) of each: values of fewer than ``min_rows`` rows in all are one group, if
    there are several. Rows without a value are a group of their own, however few."""
    size = len(column.values)
    rows = np.bincount(column.x, minlength=size) + np.bincount(column.y, minlength=size)
    rare = (rows < min_rows) & np.array([value is not None for value in column.values], dtype=bool)
    if rare.sum() < 2:
        return column.x, column.y, [(value, 0) for value in column.values]
    groups = np.cumsum(~rare) - 1
    named: list[tuple[str | None, int]] = [(column.values[v], 0) for v in np.flatnonzero(~rare)]
    groups[rare] = len(named)
    return groups[column.x], groups[column.y], [*named, (None, int(rare.sum()))]
