"""The panel of a current window against the reference, from two sketches.

From moments and histograms, of every row: ``mean_shift``, ``log_variance_ratio``, ``residual_energy``, ``psi``, ``js``,
``kl`` and the raw value of ``frechet`` as the exact panel has them; ``wasserstein1_pc<k>`` within a stated bound. From
the reservoirs: ``energy``, ``mmd2_b<k>``, ``mmd_max``, ``energy_pc<k>``, U-statistics of as many rows as the samples
hold, with the standard error of that many. From random features, of every row: ``rff_mmd2_b<k>``.

``rff_mmd2_b<k>``: with S, R the sums of exp(i w . x) over n and m rows, the mean over the pinned frequencies w of

    (|S|^2 - n) / (n (n - 1)) + (|R|^2 - m) / (m (m - 1)) - 2 Re(S conj R) / (n m)

a U-statistic of MMD^2: unbiased, may be negative. Over the draw of the frequencies it is unbiased for the exact
U-statistic of the same rows, and ``approximation_sd`` is the standard error of that, the terms' sd over the root of
their number. ``sampling_se`` is the linear part's, 2 sum of (a_i - mean a) / n over blocks of rows drawn by key (31
degrees of freedom: uncertain by an eighth; about 2x too large where the windows agree). ``se`` holds both.

A row with the same id and bits in both windows has one key, so it would be in both samples or in none, and pairs of
such rows with themselves would be far too many. Where the samples share a key, each is thinned by a bit of the keys:
the reference keeps the one half, the current window the other, uniform samples still, and disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import divergences, energy_1d, frechet, moments, wasserstein
from gpudrift.metrics.accumulate import covariance_of, log_ratio, mean_of
from gpudrift.panel import centre, pair_metrics
from gpudrift.project import project
from gpudrift.records import Metric, PanelInput, Projection
from gpudrift.sketch.histograms import pinned_counts, wasserstein1
from gpudrift.sketch.plan import BLOCKS
from gpudrift.sketch.state import Sketch


@dataclass(frozen=True)
class _Sample:
    """A reservoir: rows (k', d) float32 centred by the plan's mean, their projection, their PSI bins (q', k')."""

    rows: Tensor
    projection: Projection
    bins: Tensor


def compare(reference: Sketch, current: Sketch) -> dict[str, Metric]:
    """All metrics of ``current`` against ``reference``, by name.

    Raises ReferenceMismatchError for sketches of two plans, InsufficientDataError where one of them holds fewer than 2
    rows, or fewer than 2 distinct ones.
    """
    reference._same_plan(current)
    for name, side in (("reference", reference), ("current", current)):
        for what, rows in (("rows", side.count), ("distinct rows", len(side.sample))):
            if rows < 2:
                raise InsufficientDataError(
                    f"the {name} sketch holds too few {what} for a comparison", field=what, value=rows, allowed=">= 2"
                )
    x, y = _sample(reference), _sample(current)
    metrics = [
        *_from_samples(reference, current, *_apart(reference, current, x, y)),
        *from_features(reference, current),
        *_from_moments(reference, current),
        *(_component(reference, current, k) for k in range(reference.plan.components)),
        *divergences.from_bins(pinned_counts(reference), pinned_counts(current), x.bins, y.bins),
        _frechet(reference, current, x),
    ]
    return {metric.name: metric for metric in metrics}


def _sample(side: Sketch) -> _Sample:
    plan = side.plan
    rows = side.sample.rows.clone()
    centre(rows, plan.mean)
    projection = project(rows, plan.basis)
    heights = projection.scores[:, : plan.components].T.contiguous()
    bins = plan.pinned_bins.gather(1, torch.searchsorted(plan.cuts, heights, right=True))
    return _Sample(rows, projection, bins)


def _apart(reference: Sketch, current: Sketch, x: _Sample, y: _Sample) -> tuple[_Sample, _Sample]:
    """The samples, thinned where they share rows."""
    keys = reference.sample.keys, current.sample.keys
    if not np.isin(keys[0], keys[1]).any():
        return x, y
    halves = []
    for sample, own, bit in zip((x, y), keys, (0, 1), strict=True):
        # the first bit above those that name a row's block
        kept = torch.from_numpy(np.flatnonzero((own // np.uint64(BLOCKS)) % np.uint64(2) == bit))
        if len(kept) < 2:
            raise InsufficientDataError(
                "the two sketches hold the same rows, and too few of them to be told apart",
                field="distinct rows",
                value=len(own),
                allowed="windows that share no rows, or many rows",
            )
        projection = Projection(sample.projection.scores[kept], sample.projection.residual[kept])
        halves.append(_Sample(sample.rows[kept], projection, sample.bins[:, kept]))
    return halves[0], halves[1]


def _from_samples(reference: Sketch, current: Sketch, x: _Sample, y: _Sample) -> list[Metric]:
    plan = reference.plan
    px, py = (kernels.prepare(side.rows, precision="float32") for side in (x, y))
    sums = [
        kernels.self_sums(px, bandwidths=plan.bandwidths),
        kernels.self_sums(py, bandwidths=plan.bandwidths),
        kernels.cross_sums(px, py, bandwidths=plan.bandwidths),
    ]
    found, _ = pair_metrics(sums[0], sums[1], sums[2], [math.nan] * len(plan.bandwidths), None, None)
    panel = PanelInput(
        x=x.rows,
        y=y.rows,
        px=x.projection,
        py=y.projection,
        basis=plan.basis,
        covariance=_covariance(reference),
        edges=plan.edges,
        components=plan.components,
        directions=0,
        seed=plan.seed,
    )
    found += energy_1d.compute(panel)
    about = {"sampled": [len(x.rows), len(y.rows)], "rows": [reference.count, current.count]}
    return [
        replace(metric, extra={**{k: v for k, v in metric.extra.items() if k != "multiple"}, **about})
        for metric in found
    ]


def from_features(reference: Sketch, current: Sketch) -> list[Metric]:
    """``rff_mmd2_b<k>`` at each bandwidth, by the sketches' random features alone."""
    n, m = reference.count, current.count
    metrics = []
    for b, width in enumerate(reference.plan.bandwidths):
        # (blocks, 2, frequencies)
        of_x, of_y = (side.sums["features"][:, b] for side in (reference, current))
        s, r = of_x.sum(dim=0), of_y.sum(dim=0)
        within_x = (s.square().sum(dim=0) - n) / (n * (n - 1.0))
        within_y = (r.square().sum(dim=0) - m) / (m * (m - 1.0))
        terms = within_x + within_y - 2.0 * (s * r).sum(dim=0) / (float(n) * m)
        # rows that both windows hold are of one block in both: added up first, they count as one row that moved along
        psi = _linear(reference, (of_x * s).sum(dim=1), (of_x * r).sum(dim=1) / m)
        psi += _linear(current, (of_y * r).sum(dim=1), (of_y * s).sum(dim=1) / n)
        filled = int((reference.sums["features.counts"] + current.sums["features.counts"]).count_nonzero())
        variance = filled / (filled - 1) * float(psi @ psi) if filled > 1 else math.nan
        count = terms.shape[0]
        spread = float(terms.std()) / math.sqrt(count) if count > 1 else math.nan
        extra = {
            "bandwidth": width,
            "sampling_se": math.sqrt(variance),
            "approximation_sd": spread,
            "frequencies": count,
            "exact": f"mmd2_b{b + 1}",
        }
        metrics.append(
            Metric(f"rff_mmd2_b{b + 1}", float(terms.mean()), math.hypot(math.sqrt(variance), spread), extra)
        )
    return metrics


def _linear(side: Sketch, own: Tensor, other: Tensor) -> Tensor:
    """(blocks,) summed influence of one side's rows on the statistic, from (blocks, frequencies) sums over a block's
    rows of the products with the sum of all own rows and with the mean of the other side's."""
    counts = side.sums["features.counts"].double()
    # a row's product with itself is 1 at every frequency
    sums = (own.mean(dim=1) - counts) / (side.count - 1) - other.mean(dim=1)
    return 2.0 / side.count * (sums - counts * (float(sums.sum()) / side.count))


def _covariance(side: Sketch) -> Tensor:
    d = side.plan.dim
    return side.moments.scatter[:d, :d] / (side.count - 1)


def _from_moments(reference: Sketch, current: Sketch) -> list[Metric]:
    d = reference.plan.dim
    shift = current.moments.mean[:d] - reference.moments.mean[:d]
    sides = [_side(sketch, shift) for sketch in (reference, current)]
    return moments.of_moments(shift, sides[0], sides[1], reference.plan.basis)


def _side(sketch: Sketch, shift: Tensor) -> moments.Side:
    plan, d = sketch.plan, sketch.plan.dim
    mean, joint = sketch.moments.mean, sketch.moments.covariance()
    own, covariance, with_square = mean[:d], joint[:d, :d], joint[d, :d]
    # the squared distance to the own mean is |u|^2 - 2 u . mean + constant
    square = joint[d, d] - 4.0 * (with_square @ own) + 4.0 * (own @ covariance @ own)
    along_axes = plan.axes @ covariance
    captured = (along_axes * plan.axes).sum() * ((sketch.count - 1) / sketch.count) + (plan.axes @ own).square().sum()
    trace = float(covariance.trace())
    return moments.Side(
        rows=sketch.count,
        trace=trace,
        mean_square=trace + float(own @ own),
        square=max(float(square), 0.0),
        along=max(float(shift @ covariance @ shift), 0.0),
        joint=float(with_square @ shift - 2.0 * (own @ covariance @ shift)),
        residual=max(float(mean[d + 1]) + plan.residual, 0.0),
        residual_variance=float(joint[d + 1, d + 1]),
        captured=float(captured),
    )


def _component(reference: Sketch, current: Sketch, k: int) -> Metric:
    plan = reference.plan
    axis = plan.axes[k]
    found = wasserstein1(reference, current, k)
    means = [float(axis @ side.moments.mean[: plan.dim]) for side in (reference, current)]
    spreads = [max(float(axis @ _covariance(side) @ axis), 0.0) for side in (reference, current)]
    squares = [
        spread * (1.0 - 1.0 / side.count) + mean * mean
        for spread, mean, side in zip(spreads, means, (reference, current), strict=True)
    ]
    ratio = log_ratio(spreads[1], spreads[0], max(*squares, plan.total_variance))
    metric = wasserstein.component_metric(plan.basis, k, found.value, found.variance, means[1] - means[0], ratio)
    return replace(metric, extra={**metric.extra, "discretisation": found.bound})


def _frechet(reference: Sketch, current: Sketch, x: _Sample) -> Metric:
    """The null mean is simulated from the reference's sample, and scaled to the rows that the sketches hold."""
    d = reference.plan.dim
    shift = current.moments.mean[:d] - reference.moments.mean[:d]
    factors = [frechet.factor(_covariance(side)) for side in (reference, current)]
    raw = float(shift @ shift) + frechet.bures(factors[0], factors[1])
    extra: Mapping[str, object] = {"raw": raw, "null_mean": 0.0, "null_sd": None}
    sampled, n, m = len(x.rows), reference.count, current.count
    if sampled < 4:
        return Metric("frechet", raw, None, {**extra, "note": "too few reference rows for a null mean"})
    mean = mean_of(x.rows)
    expected, spread = frechet.null_moments(x.rows, mean, covariance_of(x.rows, mean), m, reference.plan.seed)
    scale = (1.0 / n + 1.0 / m) / (1.0 / sampled + 1.0 / m)
    extra = {"raw": raw, "null_mean": expected * scale, "null_sd": spread * scale, "sampled": sampled}
    return Metric("frechet", raw - expected * scale, None, extra)
