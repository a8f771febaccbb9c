"""The notebook API: arrays or tensors in, estimates with standard errors out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpudrift import arguments, kernels
from gpudrift.errors import ArgumentError
from gpudrift.estimators import (
    EstimatorChoice,
    block_estimate,
    block_sums,
    choose_blocks,
    choose_estimator,
    deal,
    pairs_of,
    t_quantile,
)
from gpudrift.kernels.choice import Choice, choose
from gpudrift.metrics.accumulate import mean_of
from gpudrift.metrics.pairs import estimate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from gpudrift.cross import CrossResult
    from gpudrift.permutation import PermutationResult
    from gpudrift.records import Metric


@dataclass(frozen=True)
class DriftEstimate:
    """A two-sample statistic.

    value: the U- or V-statistic (the estimator asked for). se: standard error: the root of var_lin; of a block average
    by its blocks; of "rff" with the error of the features. variance: unbiased estimate of the exact U-statistic's
    variance where the data are; may be negative, NaN below 4 rows, with clusters and for the other methods.
    witness_x (n,), witness_y (m,): influence of each row, mean(witness_x) + mean(witness_y) = U; large witness_y means
    far from x; None for "rff". With several bandwidths value, se and variance are arrays (F,) and the witnesses (F, n),
    (F, m). bandwidths: the RBFs' standard deviations, None for energy. All numpy float64.
    method: "exact", "block" or "rff"; method_reason says why. pairs: row pairs computed, each once. dof: degrees of
    freedom of se where it comes from blocks of rows, else None.
    """

    value: Any
    se: Any
    variance: Any
    witness_x: NDArray[np.float64] | None = field(repr=False)
    witness_y: NDArray[np.float64] | None = field(repr=False)
    estimator: str
    bandwidths: Any
    device: str
    precision: str
    precision_reason: str
    method: str = "exact"
    method_reason: str = ""
    pairs: int = 0
    dof: int | None = None

    @property
    def ci(self) -> tuple[Any, Any]:
        """95% interval of the statistic: value plus and minus se times the normal quantile, or Student's t of ``dof``.
        It is about the drift: where nothing drifts se is about 2x too large (but for blocks), and a test is better."""
        width = (1.959963984540054 if self.dof is None else t_quantile(0.975, self.dof)) * self.se
        return self.value - width, self.value + width


def energy_distance(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    estimator: str = "u",
    *,
    clusters_x: ArrayLike | None = None,
    clusters_y: ArrayLike | None = None,
    device: str | None = None,
    precision: str = "auto",
    method: str = "auto",
    pairs: float | None = None,
    seed: int = 0,
) -> DriftEstimate:
    """Energy distance, U-statistic by default: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, exact over all pairs without a budget.

    Args:
        x: (n, d), y: (m, d): torch tensors or anything numpy takes; n, m >= 2, finite.
        estimator: "u" (self pairs left out, unbiased) or "v" (self pairs kept, never negative); it changes value only.
        clusters_x, clusters_y: (n,), (m,) user or document of each row (any type): same-cluster pairs are left out,
            also across x and y, and se is cluster-robust.
        device: None: where a tensor is, the CPU for arrays; else auto, cpu, cuda, cuda:N.
        precision: "auto" (the fastest whose error bound is a small part of the standard error; on the CPU float64 for
            float64 or integer input, else float32 where that is enough), "float16", "bfloat16", "tf32", "float32",
            "float64". The result's precision_reason says why.
        method: "auto": all pairs without a budget; with one what ``gpudrift.estimators.choose_estimator`` says, a
            function of n, m and the budget alone. "exact": all pairs. "block": a block average within the budget, of 8
            blocks at least; a U-statistic. The result's method_reason says why.
        pairs: the budget of row pairs, each counted once: all are (n + m)(n + m - 1) / 2. None: no budget.
        seed: by which rows (or clusters) are dealt to blocks.

    Raises:
        ArgumentError (a ValueError): wrong shapes, fewer than 2 rows, values not finite, unknown names, a budget that
            no method fits.

    Source: Szekely and Rizzo 2013, J. Stat. Plan. Inference 143, eq. 1.
    """
    return _estimate(x, y, (), estimator, clusters_x, clusters_y, device, precision, method, pairs, seed)


def mmd2(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    bandwidths: float | Sequence[float] | None = None,
    estimator: str = "u",
    *,
    clusters_x: ArrayLike | None = None,
    clusters_y: ArrayLike | None = None,
    device: str | None = None,
    precision: str = "auto",
    seed: int = 0,
    method: str = "auto",
    pairs: float | None = None,
    features: int = 1024,
) -> DriftEstimate:
    """Squared maximum mean discrepancy, U-statistic by default, with k = exp(-|x-y|^2 / (2 s^2)), exact over all pairs
    without a budget.

    Args:
        bandwidths: s, one number (scalar results) or up to 8 (arrays). None: 1/4, 1/2, 1 and 2 times the median
            distance between 100,000 random pairs of x; to compare runs, compute it once and pass it.
        seed: of those random pairs, of the blocks' rows and of random frequencies.
        method: as for ``energy_distance``, or "rff": random Fourier features, one pass over the rows on the CPU, no
            pairs, no witness values, no clusters; se holds the error of the features (docs/sketches.md). "auto" never
            takes it.
        features: sines and cosines a bandwidth for "rff", an even number.
        The other arguments and errors are those of ``energy_distance``.

    Source: Gretton et al. 2012, JMLR 13, eq. 3 (U) and eq. 5 (V).
    """
    widths = arguments.ladder(x, device, seed) if bandwidths is None else arguments.widths_of(bandwidths)
    if method == "rff":
        found = _by_features(x, y, widths, estimator, clusters_x, clusters_y, pairs, features, seed)
    else:
        found = _estimate(x, y, widths, estimator, clusters_x, clusters_y, device, precision, method, pairs, seed)
    return found if bandwidths is None or np.ndim(bandwidths) > 0 else _first(found)


def permutation_test(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    statistic: str = "energy",
    clusters_x: ArrayLike | None = None,
    clusters_y: ArrayLike | None = None,
    permutations: int = 999,
    seed: int = 0,
    *,
    bandwidths: float | Sequence[float] | None = None,
    device: str | None = None,
    precision: str = "auto",
) -> PermutationResult:
    """Whether x and y come from one distribution: a permutation test of the U-statistic, p = (1 + b) / (1 + B).

    It asks "different at all?"; "more than usual?" needs the reference's own movement, which the job knows.

    Args:
        x: (n, d), y: (m, d): as for ``energy_distance``.
        statistic: "energy", or "mmd": the largest MMD^2 over the bandwidths, each in units of its own standard
            deviation over the labellings, with one p-value for all of them.
        clusters_x, clusters_y: (n,), (m,) user or document of each row: labels move by cluster, clusters on both sides
            swap their parts, and pairs of one cluster are left out.
        permutations: B random labellings; the smallest p-value is 1 / (1 + B).
        bandwidths: of "mmd"; None: 1/4, 1/2, 1 and 2 times the median distance of random pairs of the pooled rows.
        seed: of labellings and random pairs. device, precision: as for ``energy_distance``.

    Raises:
        ArgumentError (a ValueError): wrong arguments; clusters that allow no other labelling.

    Source: Gretton et al. 2012, JMLR 13, section 5; Phipson and Smyth 2010 (p-value).
    """
    from gpudrift import permutation

    if isinstance(permutations, bool) or not isinstance(permutations, int) or not 1 <= permutations <= 10_000_000:
        raise ArgumentError("unusable number", field="permutations", value=permutations, allowed="1 to 10,000,000")
    tensor_x, tensor_y = arguments.pair(x, y, device)
    codes_x, codes_y = arguments.codes_of(clusters_x, clusters_y, len(tensor_x), len(tensor_y))
    widths = arguments.test_widths(statistic, bandwidths, tensor_x, tensor_y, seed)
    pooled = arguments.pool(tensor_x, tensor_y)
    centre = mean_of(pooled)
    arithmetic = choose(precision, pooled.device.type, tensor_x, tensor_y, centre=centre, bandwidths=widths)
    _warn(precision, arithmetic)
    found = permutation.test(
        pooled,
        len(tensor_x),
        None if codes_x is None or codes_y is None else torch.cat([codes_x, codes_y]),
        bandwidths=widths,
        permutations=permutations,
        seed=seed,
        centre=centre,
        precision=arithmetic.precision,
        scale=arithmetic.scale,
    )
    return permutation.PermutationResult(
        statistic=statistic,
        value=float(found.statistics[0]),
        p_value=found.p_value,
        permutations=permutations,
        null=found.statistics[1:],
        bandwidths=widths or None,
        values=found.values,
        largest=found.largest,
        seed=seed,
        device=str(pooled.device),
        precision=arithmetic.precision,
        precision_reason=arithmetic.reason,
    )


def cross_test(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    statistic: str = "mmd",
    *,
    bandwidths: float | Sequence[float] | None = None,
    clusters_x: ArrayLike | None = None,
    clusters_y: ArrayLike | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
) -> CrossResult:
    """Whether x and y come from one distribution: the cross statistic, standard normal where they do; no permutations.

    For rows too many to permute: half of all pairs once, against B labellings of all of them. It sees a drift about
    sqrt(2) times as large as ``permutation_test`` does, and its level is asymptotic: 100 rows (clusters) a side do.

    Args:
        x: (n, d), y: (m, d): as for ``energy_distance``; n, m >= 4.
        statistic: "mmd": MMD^2 at each bandwidth, with one p-value for the largest z. "energy".
        bandwidths: of "mmd"; None: 1/4, 1/2, 1 and 2 times the median distance of random pairs of the pooled rows.
        clusters_x, clusters_y: (n,), (m,) user or document of each row: halves and standard errors by cluster.
        seed: of the halves and the random pairs. device, precision: as for ``energy_distance``.

    Raises:
        ArgumentError (a ValueError): wrong arguments; rows that do not differ; too few clusters for two halves.

    Source: Shekhar, Kim and Ramdas 2022, NeurIPS, eq. 2 and 4.
    """
    from gpudrift import cross

    tensor_x, tensor_y = arguments.pair(x, y, device)
    n, m = len(tensor_x), len(tensor_y)
    codes_x, codes_y = arguments.codes_of(clusters_x, clusters_y, n, m)
    widths = arguments.test_widths(statistic, bandwidths, tensor_x, tensor_y, seed)
    centre = (n * mean_of(tensor_x) + m * mean_of(tensor_y)) / (n + m)
    arithmetic = choose(precision, tensor_x.device.type, tensor_x, tensor_y, centre=centre, bandwidths=widths)
    _warn(precision, arithmetic)
    found = cross.test(
        tensor_x,
        tensor_y,
        None if codes_x is None or codes_y is None else (codes_x, codes_y),
        bandwidths=widths,
        seed=seed,
        centre=centre,
        precision=arithmetic.precision,
        scale=arithmetic.scale,
    )
    largest = int(found.zs.argmax())
    return cross.CrossResult(
        statistic=statistic,
        value=float(found.values[largest]),
        se=float(found.ses[largest]),
        z=float(found.zs[largest]),
        p_value=found.p_value,
        bandwidths=widths or None,
        values=tuple(found.values.tolist()),
        ses=tuple(found.ses.tolist()),
        zs=tuple(found.zs.tolist()),
        largest=largest,
        rows=found.rows,
        seed=seed,
        device=str(tensor_x.device),
        precision=arithmetic.precision,
        precision_reason=arithmetic.reason,
    )


def score(
    reference: ArrayLike | Tensor,
    current: ArrayLike | Tensor,
    *,
    components: int = 32,
    device: str | None = None,
    precision: str = "auto",
    seed: int = 0,
) -> dict[str, Metric]:
    """The whole panel of ``current`` (m, d) against ``reference`` (n, d): metric name -> ``Metric`` with value and se.

    Axes, bandwidths and bins come from the reference, as in the nightly job; a verdict needs the job, which knows the
    reference's usual movement from window to window. Arguments and errors are those of ``energy_distance``.
    """
    from gpudrift import panel

    x, y = arguments.pair(reference, current, device)
    settings = panel.PanelSettings(pca_components=components, seed=seed)
    middle = panel.median_distance(x, seed=seed)
    bandwidths = tuple(multiple * middle for multiple in settings.multiples)
    arithmetic = choose(precision, x.device.type, x, y, centre=mean_of(x), bandwidths=bandwidths)
    _warn(precision, arithmetic)
    return panel.score(x, y, settings, arithmetic.precision, arithmetic.scale)


def _estimate(
    x: Any,
    y: Any,
    bandwidths: tuple[float, ...],
    estimator: str,
    clusters_x: Any,
    clusters_y: Any,
    device: str | None,
    precision: str,
    method: str,
    budget: float | None,
    seed: int,
) -> DriftEstimate:
    if estimator not in ("u", "v"):
        raise ArgumentError("unknown estimator", field="estimator", value=estimator, allowed=["u", "v"])
    tensor_x, tensor_y = arguments.pair(x, y, device)
    n, m = len(tensor_x), len(tensor_y)
    codes_x, codes_y = arguments.codes_of(clusters_x, clusters_y, n, m)
    if codes_x is not None and estimator == "v":
        raise ArgumentError(
            "a V-statistic keeps all pairs", field="estimator", value="v", allowed="u where clusters are given"
        )
    chosen = _choose_method(method, budget, n, m)
    if chosen.method == "block" and estimator == "v":
        raise ArgumentError(
            "a block average is a U-statistic", field="estimator", value="v", allowed="u, or method=exact"
        )
    centre = mean_of(tensor_x)
    arithmetic = choose(precision, tensor_x.device.type, tensor_x, tensor_y, centre=centre, bandwidths=bandwidths)
    _warn(precision, arithmetic)
    mode, scale = arithmetic.precision, arithmetic.scale
    xp = kernels.prepare(tensor_x, centre=centre, precision=mode, scale=scale, clusters=codes_x)
    yp = kernels.prepare(tensor_y, centre=centre, precision=mode, scale=scale, clusters=codes_y)
    functions = range(1, 1 + len(bandwidths)) if bandwidths else range(1)
    if chosen.method == "block":
        places = deal(n, m, chosen.blocks, seed=seed, clusters_x=codes_x, clusters_y=codes_y)
        within = [
            block_sums(a, b, chosen.blocks, places=p, bandwidths=bandwidths)
            for a, b, p in ((xp, None, places), (yp, None, places[::-1]), (xp, yp, places))
        ]
        parts = [block_estimate(within[0], within[1], within[2], f).pair for f in functions]
    else:
        xx = kernels.self_sums(xp, bandwidths=bandwidths)
        yy = kernels.self_sums(yp, bandwidths=bandwidths)
        xy = kernels.cross_sums(xp, yp, bandwidths=bandwidths)
        parts = [estimate(xx, yy, xy, f, clusters_x=codes_x, clusters_y=codes_y) for f in functions]
    found = DriftEstimate(
        value=np.array([p.value if estimator == "u" else p.v_value for p in parts]),
        se=np.array([p.se for p in parts]),
        variance=np.array([p.variance for p in parts]),
        witness_x=np.stack([p.a.numpy() for p in parts]),
        witness_y=np.stack([p.b.numpy() for p in parts]),
        estimator=estimator,
        bandwidths=np.array(bandwidths) if bandwidths else None,
        device=str(tensor_x.device),
        precision=mode,
        precision_reason=arithmetic.reason,
        method=chosen.method,
        method_reason=chosen.reason,
        pairs=chosen.pairs,
        dof=chosen.blocks - 1 if chosen.method == "block" else None,
    )
    return found if bandwidths else _first(found)


def _choose_method(method: str, budget: float | None, n: int, m: int) -> EstimatorChoice:
    if method not in ("auto", "exact", "block"):
        allowed = ["auto", "exact", "block", "rff (mmd2 alone)"]
        raise ArgumentError("unknown method", field="method", value=method, allowed=allowed)
    if method == "exact" or (method == "auto" and budget is None):
        if budget is not None:
            raise ArgumentError("exact takes all pairs", field="pairs", value=budget, allowed="None, or method=auto")
        return EstimatorChoice("exact", 1, pairs_of(n, m), "no budget of pairs: all of them")
    if budget is None:
        raise ArgumentError("a block average needs a budget", field="pairs", value=None, allowed="a number of pairs")
    if method == "auto":
        return choose_estimator(n, m, budget)
    # asked for by name: small blocks are slow, not wrong, but a null scale takes four rows
    found = choose_blocks(n, m, budget, least_block=4)
    return replace(found, reason=f"method=block: {found.reason}")


def _by_features(
    x: Any,
    y: Any,
    bandwidths: tuple[float, ...],
    estimator: str,
    clusters_x: Any,
    clusters_y: Any,
    budget: float | None,
    features: int,
    seed: int,
) -> DriftEstimate:
    """MMD^2 by random Fourier features, those of the sketches."""
    from gpudrift import rff

    if estimator != "u":
        raise ArgumentError("random features give a U-statistic", field="estimator", value=estimator, allowed="u")
    for name, given in (("clusters_x", clusters_x), ("clusters_y", clusters_y), ("pairs", budget)):
        if given is not None:
            raise ArgumentError("random features do not take this", field=name, allowed="None, or another method")
    tensor_x, tensor_y = arguments.pair(x, y, "cpu")
    found = rff.estimates(tensor_x, tensor_y, bandwidths, features=features, seed=seed)
    count = len(bandwidths)
    return DriftEstimate(
        value=np.array([metric.value for metric in found]),
        se=np.array([metric.se for metric in found]),
        variance=np.full(count, np.nan),
        witness_x=None,
        witness_y=None,
        estimator="u",
        bandwidths=np.array(bandwidths),
        device="cpu",
        precision="float64",
        precision_reason="sums of features are kept in float64",
        method="rff",
        method_reason=f"method=rff: {features:,} random Fourier features",
        pairs=0,
        dof=rff.DOF,
    )


def _warn(wish: str, arithmetic: Choice) -> None:
    """A precision asked for by name is kept, not silently."""
    if wish != "auto" and arithmetic.too_coarse:
        warnings.warn(f"gpudrift: {arithmetic.reason}", RuntimeWarning, stacklevel=4)


def _first(found: DriftEstimate) -> DriftEstimate:
    """The estimate of a single function, as scalars and one-dimensional witnesses."""
    return replace(
        found,
        value=float(found.value[0]),
        se=float(found.se[0]),
        variance=float(found.variance[0]),
        witness_x=None if found.witness_x is None else found.witness_x[0],
        witness_y=None if found.witness_y is None else found.witness_y[0],
        bandwidths=None if found.bandwidths is None else float(found.bandwidths[0]),
    )
