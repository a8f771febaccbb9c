"""The usual movement: every metric that can gate, of each reference window against all the others, at one n0.

Energy and MMD^2 of all windows come from ONE pass over the pooled rows that keeps the sums between windows, each split
into its first n0 rows (a random sample: rows are in canonical order) and the rest; the same sums give the energy
between any two windows. Variance ratio and residual come from the windows' moments, also in one pass; the classifier is
fitted for each window.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.arithmetic import Arithmetic, prepare
from gpudrift.calibrate import AANull, MetricNull
from gpudrift.engine.pairs import Pairs, in_process_pairs
from gpudrift.errors import DataError
from gpudrift.kernels import PairSums, Prepared
from gpudrift.metrics import classifier, moments
from gpudrift.metrics.pairs import leave_out_scores, null_scale, null_sd
from gpudrift.panel import PanelSettings, Pins, classifier_metric
from gpudrift.records import Projection


@dataclass(frozen=True)
class Windowed:
    """All rows of the reference's windows, (n, d), window-major in canonical order, and what they are measured by.
    codes: (n,) their clusters, or None."""

    rows: Tensor
    offsets: Sequence[int]
    projection: Projection
    pins: Pins
    settings: PanelSettings
    codes: Tensor | None = None


def aa_null(
    rows: Tensor,
    offsets: Sequence[int],
    labels: Sequence[str],
    n0: int | None,
    arithmetic: Arithmetic,
    clusters: Tensor | None = None,
    progress: kernels.Progress | None = None,
    pairs: Pairs | None = None,
) -> AANull:
    """Energy alone: what hygiene goes by. n0 None: the smallest window's rows.

    Raises DataError where n0 is None and the rows of a window are of one cluster.
    """
    smallest = min(b - a for a, b in itertools.pairwise(offsets))
    prepared = prepare(rows, arithmetic, clusters=clusters)
    null, sums = pair_null(prepared, offsets, labels, smallest if n0 is None else n0, {}, progress, pairs)
    for k, label in enumerate(labels if n0 is None else ()):
        if not float(sums.block_pairs[2 * k, 2 * k]) > 0:
            raise DataError(
                f"the first {smallest:,} rows of {label} that take part in pairs belong to one cluster",
                field="source.cluster_column",
                allowed="rows of two clusters or more among them",
                hint="raise score.pairs, take longer windows, or a column with more values (a user, a document)",
            )
    return null


def panel_null(
    prepared: Prepared,
    offsets: Sequence[int],
    labels: Sequence[str],
    n0: int,
    windowed: Windowed,
    progress: kernels.Progress | None = None,
    pairs: Pairs | None = None,
) -> tuple[AANull, PairSums]:
    """All metrics that can gate at n0 rows, and the sums over the pairs of ``prepared``.

    Args:
        prepared, offsets: the rows that take part in pairs, and where each window's lie. Windows smaller than n0 keep
            the rows they have.
        windowed: all rows, for the metrics that see them all.
        pairs: where the pairs are computed; None: here.
    """
    null, sums = pair_null(prepared, offsets, labels, n0, mmd_widths(windowed.pins), progress, pairs)
    signed = {name: MetricNull(dict(zip(labels, values, strict=True)), None) for name, values in _signed(windowed, n0)}
    return replace(null, others={**null.others, **signed}), sums


def mmd_widths(pins: Pins) -> dict[str, float]:
    """The MMD metrics' names and bandwidths."""
    return {f"mmd2_b{b}": width for b, width in enumerate(pins.bandwidths, start=1)}


def pair_null(
    prepared: Prepared,
    offsets: Sequence[int],
    labels: Sequence[str],
    n0: int,
    widths: Mapping[str, float],
    progress: kernels.Progress | None = None,
    pairs: Pairs | None = None,
) -> tuple[AANull, PairSums]:
    """Energy, and MMD^2 at the named bandwidths, by window at n0 rows; and the sums, which are also those of the whole
    cloud."""
    bounds = [0]
    for start, end in itertools.pairwise(offsets):
        bounds += [min(start + n0, end), end]
    grouped = replace(prepared, offsets=tuple(bounds))
    where = in_process_pairs() if pairs is None else pairs
    sums = where.self_sums(grouped, bandwidths=tuple(widths.values()), progress=progress, name="usual")
    count, n = len(labels), len(prepared)
    groups = range(2 * count)
    parts = [([2 * k], [g for g in groups if g // 2 != k]) for k in range(count)]

    def scores(f: int) -> tuple[dict[str, float], float]:
        sign = 1.0 if f == 0 else -1.0  # energy is made of distances, MMD^2 of similarities
        values = leave_out_scores(sums.blocks[f], sums.block_pairs, parts)
        c = null_sd(null_scale(sums, f, prepared.clusters), n0, n)
        return dict(zip(labels, (sign * value for value in values), strict=True)), c

    energy, c = scores(0)
    others = {name: MetricNull(*scores(f)) for f, name in enumerate(widths, start=1)}
    return AANull(n0, energy, c, others, _between(sums, count)), sums


def whole(sums: PairSums) -> PairSums:
    """Sums by group as those of one cloud."""
    return replace(
        sums, blocks=sums.total[:, None, None], block_pairs=torch.tensor([[sums.pairs]], dtype=torch.float64)
    )


def _between(sums: PairSums, count: int) -> tuple[tuple[float, ...], ...]:
    """(K, K) energies between the first n0 rows of any two windows; 0 on the diagonal."""
    firsts = torch.arange(0, 2 * count, 2)
    means = sums.blocks[0].cpu()[firsts][:, firsts] / sums.block_pairs.cpu()[firsts][:, firsts]
    own = means.diagonal()
    energies = 2 * means - own[:, None] - own[None, :]
    return tuple(tuple(map(float, row)) for row in energies.fill_diagonal_(0.0))


def _signed(windowed: Windowed, n0: int) -> list[tuple[str, list[float]]]:
    """The signed metrics of each window's first n0 rows against the rows of the others."""
    rows, offsets = windowed.rows, windowed.offsets
    spread, residual = moments.leave_one_out(rows, windowed.projection, offsets, n0)
    auc = []
    for start, end in itertools.pairwise(offsets):
        others, own = _others(start, end, offsets[-1]), slice(start, min(start + n0, end))
        codes = None
        if windowed.codes is not None:
            codes = windowed.codes[others.to(windowed.codes.device)], windowed.codes[own]
        x = rows[others.to(rows.device)]
        auc.append(classifier_metric(x, rows[own], windowed.pins, windowed.settings, codes).value)
    return [("log_variance_ratio", spread), ("residual_energy", residual), ("classifier_auc", auc)]


def _others(start: int, end: int, rows: int) -> Tensor:
    """Positions of the rows outside ``start`` to ``end``, evenly thinned to what the classifier takes, so that no copy
    of the whole reference is made for each window."""
    count = rows - (end - start)
    taken = min(count, classifier.ROWS)
    places = torch.arange(taken) * count // taken
    return torch.where(places < start, places, places + (end - start))
