"""The notebook API: arrays or tensors in, estimates with standard errors out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpudrift import device as devices
from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.kernels.choice import Choice, choose
from gpudrift.metrics import pairs
from gpudrift.metrics.accumulate import mean_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from gpudrift.permutation import PermutationResult
    from gpudrift.records import Metric


@dataclass(frozen=True)
class DriftEstimate:
    """A two-sample statistic.

    value: the U- or V-statistic (the estimator asked for). se: standard error, the root of var_lin. variance: unbiased
    estimate of the U-statistic's variance where the data are; may be negative, NaN below 4 rows or with clusters.
    witness_x (n,), witness_y (m,): influence of each row, mean(witness_x) + mean(witness_y) = U; large witness_y means
    far from x. With several bandwidths value, se and variance are arrays (F,) and the witnesses (F, n), (F, m).
    bandwidths: the RBFs' standard deviations, None for energy. All numpy float64.
    """

    value: Any
    se: Any
    variance: Any
    witness_x: NDArray[np.float64] = field(repr=False)
    witness_y: NDArray[np.float64] = field(repr=False)
    estimator: str
    bandwidths: Any
    device: str
    precision: str
    precision_reason: str


def energy_distance(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    estimator: str = "u",
    *,
    clusters_x: ArrayLike | None = None,
    clusters_y: ArrayLike | None = None,
    device: str | None = None,
    precision: str = "auto",
) -> DriftEstimate:
    """Energy distance, U-statistic by default: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, exact over all pairs.

    Args:
        x: (n, d), y: (m, d): torch tensors or anything numpy takes; n, m >= 2, finite.
        estimator: "u" (self pairs left out, unbiased) or "v" (self pairs kept, never negative); it changes value only.
        clusters_x, clusters_y: (n,), (m,) user or document of each row (any type): same-cluster pairs are left out,
            also across x and y, and se is cluster-robust.
        device: None: where a tensor is, the CPU for arrays; else auto, cpu, cuda, cuda:N.
        precision: "auto" (the fastest whose error bound is a small part of the standard error; on the CPU float64 for
            float64 or integer input, else float32 where that is enough), "float16", "bfloat16", "tf32", "float32",
            "float64". The result's precision_reason says why.

    Raises:
        ArgumentError (a ValueError): wrong shapes, fewer than 2 rows, values not finite, unknown names.

    Source: Szekely and Rizzo 2013, J. Stat. Plan. Inference 143, eq. 1.
    """
    return _estimate(x, y, (), estimator, clusters_x, clusters_y, device, precision)


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
) -> DriftEstimate:
    """Squared maximum mean discrepancy, U-statistic by default, with k = exp(-|x-y|^2 / (2 s^2)), exact over all pairs.

    Args:
        bandwidths: s, one number (scalar results) or up to 8 (arrays). None: 1/4, 1/2, 1 and 2 times the median
            distance between 100,000 random pairs of x; to compare runs, compute it once and pass it.
        seed: of those random pairs. The other arguments and errors are those of ``energy_distance``.

    Source: Gretton et al. 2012, JMLR 13, eq. 3 (U) and eq. 5 (V).
    """
    if bandwidths is None:
        from gpudrift import panel

        tensor, _ = _rows(x, "x", device)
        middle = panel.median_distance(tensor, seed=seed)
        values = tuple(multiple * middle for multiple in panel.PanelSettings.multiples)
        return _estimate(x, y, values, estimator, clusters_x, clusters_y, device, precision)
    found = _estimate(x, y, _widths(bandwidths), estimator, clusters_x, clusters_y, device, precision)
    return found if np.ndim(bandwidths) > 0 else _first(found)


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
    from gpudrift import panel, permutation

    if statistic not in ("energy", "mmd"):
        raise ArgumentError("unknown statistic", field="statistic", value=statistic, allowed=["energy", "mmd"])
    if statistic == "energy" and bandwidths is not None:
        raise ArgumentError("energy has no bandwidth", field="bandwidths", value=bandwidths, allowed="None, or mmd")
    if isinstance(permutations, bool) or not isinstance(permutations, int) or not 1 <= permutations <= 10_000_000:
        raise ArgumentError("unusable number", field="permutations", value=permutations, allowed="1 to 10,000,000")
    tensor_x, tensor_y = _pair(x, y, device)
    codes_x, codes_y = _codes(clusters_x, clusters_y, len(tensor_x), len(tensor_y))
    dtype = torch.promote_types(tensor_x.dtype, tensor_y.dtype)
    pooled = torch.cat([tensor_x.to(dtype), tensor_y.to(dtype)])
    widths: tuple[float, ...] = ()
    if statistic == "mmd" and bandwidths is None:
        middle = panel.median_distance(pooled, seed=seed)
        widths = tuple(multiple * middle for multiple in panel.PanelSettings.multiples)
    elif statistic == "mmd":
        widths = _widths(bandwidths)
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

    x, y = _pair(reference, current, device)
    settings = panel.PanelSettings(pca_components=components, seed=seed)
    middle = panel.median_distance(x, seed=seed)
    bandwidths = tuple(multiple * middle for multiple in settings.multiples)
    arithmetic = choose(precision, x.device.type, x, y, centre=mean_of(x), bandwidths=bandwidths)
    _warn(precision, arithmetic)
    return panel.score(x, y, settings, arithmetic.precision, arithmetic.scale)


def _widths(bandwidths: Any) -> tuple[float, ...]:
    values = tuple(float(s) for s in np.atleast_1d(np.asarray(bandwidths, dtype=np.float64)))
    if not 1 <= len(values) <= 8 or not all(np.isfinite(s) and s > 0 for s in values):
        raise ArgumentError("unusable bandwidths", field="bandwidths", value=values, allowed="1 to 8 positive numbers")
    return values


def _estimate(
    x: Any,
    y: Any,
    bandwidths: tuple[float, ...],
    estimator: str,
    clusters_x: Any,
    clusters_y: Any,
    device: str | None,
    precision: str,
) -> DriftEstimate:
    if estimator not in ("u", "v"):
        raise ArgumentError("unknown estimator", field="estimator", value=estimator, allowed=["u", "v"])
    tensor_x, tensor_y = _pair(x, y, device)
    codes_x, codes_y = _codes(clusters_x, clusters_y, len(tensor_x), len(tensor_y))
    if codes_x is not None and estimator == "v":
        raise ArgumentError(
            "a V-statistic keeps all pairs", field="estimator", value="v", allowed="u where clusters are given"
        )
    centre = mean_of(tensor_x)
    arithmetic = choose(precision, tensor_x.device.type, tensor_x, tensor_y, centre=centre, bandwidths=bandwidths)
    _warn(precision, arithmetic)
    mode, scale = arithmetic.precision, arithmetic.scale
    xp = kernels.prepare(tensor_x, centre=centre, precision=mode, scale=scale, clusters=codes_x)
    yp = kernels.prepare(tensor_y, centre=centre, precision=mode, scale=scale, clusters=codes_y)
    xx = kernels.self_sums(xp, bandwidths=bandwidths)
    yy = kernels.self_sums(yp, bandwidths=bandwidths)
    xy = kernels.cross_sums(xp, yp, bandwidths=bandwidths)
    functions = range(1, 1 + len(bandwidths)) if bandwidths else range(1)
    parts = [pairs.estimate(xx, yy, xy, f, clusters_x=codes_x, clusters_y=codes_y) for f in functions]
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
    )
    return found if bandwidths else _first(found)


def _warn(wish: str, arithmetic: Choice) -> None:
    """A precision asked for by name is kept, not silently."""
    if wish != "auto" and arithmetic.too_coarse:
        warnings.warn(f"gpudrift: {arithmetic.reason}", RuntimeWarning, stacklevel=4)


def _first(found: DriftEstimate) -> DriftEstimate:
    """The estimate of a single function, as scalars and one-dimensional witnesses."""
    return DriftEstimate(
        value=float(found.value[0]),
        se=float(found.se[0]),
        variance=float(found.variance[0]),
        witness_x=found.witness_x[0],
        witness_y=found.witness_y[0],
        estimator=found.estimator,
        bandwidths=None if found.bandwidths is None else float(found.bandwidths[0]),
        device=found.device,
        precision=found.precision,
        precision_reason=found.precision_reason,
    )


def _pair(x: Any, y: Any, device: str | None) -> tuple[Tensor, Tensor]:
    tensor_x, own_x = _rows(x, "x", device)
    tensor_y, own_y = _rows(y, "y", device)
    if tensor_x.shape[1] != tensor_y.shape[1]:
        raise ArgumentError(
            "x and y need the same number of dimensions",
            field="y",
            value=tuple(tensor_y.shape),
            allowed=f"(m, {tensor_x.shape[1]})",
        )
    if tensor_x.device != tensor_y.device:
        if own_x and own_y:
            raise ArgumentError(
                "x and y are on different devices", field="device", value=(str(tensor_x.device), str(tensor_y.device))
            )
        target = tensor_x.device if own_x else tensor_y.device
        tensor_x, tensor_y = tensor_x.to(target), tensor_y.to(target)
    return tensor_x, tensor_y


def _rows(values: Any, name: str, device: str | None) -> tuple[Tensor, bool]:
    """The rows as a floating tensor on their device, and whether the caller chose that device."""
    is_tensor = isinstance(values, Tensor)
    if is_tensor:
        tensor = values.detach()
    else:
        if isinstance(values, np.ma.MaskedArray):
            raise ArgumentError("masked arrays are not read", field=name, allowed="drop or fill the masked rows")
        try:
            array = np.asarray(values)
        except ValueError as error:  # rows of different lengths
            raise ArgumentError(f"rows must have the shape (n, d): {error}", field=name) from error
        if array.dtype.kind not in "fiub":
            raise ArgumentError("rows must be numbers", field=name, value=str(array.dtype), allowed="real numbers")
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(plain if plain.flags.writeable else plain.copy())
    if tensor.is_complex():
        raise ArgumentError("rows must be real numbers", field=name, value=str(tensor.dtype), allowed="real numbers")
    if not tensor.is_floating_point():
        tensor = tensor.double()
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ArgumentError(
            "rows must have the shape (n, d)", field=name, value=tuple(tensor.shape), allowed="n >= 2, d >= 1"
        )
    if tensor.shape[0] < 2:
        raise ArgumentError("too few rows", field=name, value=tuple(tensor.shape), allowed="2 rows or more")
    if device is not None:
        tensor = tensor.to(devices.choose(device).device)
    step = max(1, (1 << 22) // tensor.shape[1])
    for start in range(0, len(tensor), step):
        finite = torch.isfinite(tensor[start : start + step]).all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0])
            raise ArgumentError(
                "values must be finite", field=name, value=f"NaN or infinity in row {row}", allowed="finite"
            )
    return tensor, is_tensor or device is not None


def _codes(clusters_x: Any, clusters_y: Any, n: int, m: int) -> tuple[Tensor | None, Tensor | None]:
    """Cluster labels of any type -> int64 codes shared by x and y."""
    if clusters_x is None and clusters_y is None:
        return None, None
    if clusters_x is None or clusters_y is None:
        raise ArgumentError("clusters are needed for both sides or neither", field="clusters_x, clusters_y")
    labels_x, labels_y = np.asarray(clusters_x), np.asarray(clusters_y)
    for name, labels, rows in (("clusters_x", labels_x, n), ("clusters_y", labels_y, m)):
        if labels.shape != (rows,):
            raise ArgumentError("one cluster label a row", field=name, value=labels.shape, allowed=f"({rows},)")
    _, codes = np.unique(np.concatenate([labels_x, labels_y]), return_inverse=True)
    return torch.from_numpy(codes[:n].astype(np.int64)), torch.from_numpy(codes[n:].astype(np.int64))
