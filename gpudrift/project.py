"""Principal axes pinned by the reference, and rows projected on them.

The axes come from ``torch.pca_lowrank`` (randomised subspace iteration, Halko, Martinsson and Tropp 2011, algorithms
4.4 and 5.1) with q = 2 * components directions, kept to the first ``components``. It runs on the accumulated d x d
covariance, whose singular vectors are the principal axes: n rows never enter it, so no (n, q) matrix is made, the
covariance merges over shards, and an iteration on it does the work of two on the rows. It always runs on the CPU in
float64, so the axes do not depend on the device's random numbers.

Axes fitted on rows hold more of these rows than of fresh ones of the same distribution. White data of n = 5000, d = 384
and 32 axes: the residual of fresh rows is 5% larger, their variance along the first axis 39% smaller (sentence
embeddings: residual 2% larger, at n = 1000 10%). The expected log ratios are pinned with the axes, as
``residual_optimism`` and ``variance_optimism``: logs of a cross-validated mean over the in-sample one. Rows are dealt
into four groups by their place (row i to group i mod 4, so that reference windows, stored one after the other, share
out evenly; near copies of a row four places apart would hide the optimism), axes are fitted without one group, and
without two, and what they leave of the rows they did not see is averaged. For the residual out(n') of axes fitted on n'
rows, log out is extrapolated from n' = 3n/4 and n/2 to n as linear in 1/n', which is 4/3, 2 and 1 times 1/n:

    residual_optimism = log out(3n/4) + (log out(3n/4) - log out(n/2)) / 2 - log in(n)

Only the fresh side needs the extrapolation, in(n) is known. That matters: on white data the optimism is all on the
in-sample side and falls as n^-1/2, and half the optimism of fits on half the rows, right for 1/n, left a fifth of the
bias. Along single axes the extrapolation would add more noise than it takes bias away: there it is out(3n/4) / in(n),
axes matched by rank. No fit reads the rows again: sums of four (d, d) matrices hold all that is needed.

Rows of one user lie alike, and axes fitted on some of them hold the others too: with clusters whole clusters are dealt
to the groups, or the rows of users who come later would lie further out than the optimism says.

Traps it avoids: ``pca_lowrank`` refuses float16 on the CPU, ends with a LinAlgError on NaN, and its default niter = 2
leaves the last axes nearly unrelated to the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, DataError
from gpudrift.metrics.accumulate import ZERO, chunks, mean_of, require_rows
from gpudrift.records import Basis, Projection

__all__ = ["fit", "mean_of", "project"]

_GROUPS = 4  # of rows, for the optimism of the axes: the folds and the extrapolation are written for four
_TIE = 1e-3  # loadings within this share of an axis's largest count as tied with it


def fit(
    x_nd: Tensor, mean_d: Tensor, *, components: int, niter: int, seed: int, clusters: Tensor | None = None
) -> tuple[Basis, Tensor]:
    """Principal axes and covariance of the reference.

    x_nd: (n, d) rows of any float dtype, centred by ``mean_d``. mean_d: (d,) float64, kept in the basis. clusters: (n,)
    codes of users or documents, whole in the groups of the optimism; None: rows are independent.
    Returns the basis with k = min(components, n - 1, d) axes, largest variance first, and the unbiased covariance
    (d, d) float64, both on x's device.

    Signs: of an axis's loadings within 0.1% of the largest in size, the first is positive. Exact ties, and ties but
    for rounding, thus fall the same way on every machine.

    Axes beyond the reference's rank have variance 0 and are arbitrary, yet orthonormal and fixed by ``seed``.
    The caller's random state is left as it was.

    Raises ArgumentError for components or niter < 1, InsufficientDataError for n < 2, DataError for values that are
    not finite.
    """
    n, d = x_nd.shape
    for name, value in (("components", components), ("niter", niter)):
        if value < 1:
            raise ArgumentError("this cannot be used for the principal axes", field=name, value=value, allowed=">= 1")
    require_rows(x_nd, 2)
    groups = _group_moments(x_nd, mean_of(x_nd), clusters)
    scatter = _sum(groups).square
    if not bool(torch.isfinite(scatter).all()):
        raise DataError(
            "the reference embeddings hold values that are not finite",
            field="embeddings",
            allowed="finite numbers",
            hint="drop such rows before the principal axes are fitted",
        )
    covariance = scatter / (n - 1)
    k = min(components, n - 1, d)
    axes_kd = _fix_signs(_axes(covariance, k, niter, seed))
    variances = _along(covariance, axes_kd).clamp(min=0.0)
    total_variance = float(covariance.trace())
    independent = n if clusters is None else len(torch.unique(clusters))
    residual_optimism, variance_optimism = _optimism(groups, independent, variances, total_variance, niter, seed)
    on_device = x_nd.device
    basis = Basis(
        mean=mean_d.to(device=on_device, dtype=torch.float64),
        # laid out as a loaded reference's are: a product's last bit depends on the strides of its factors
        axes=axes_kd.to(on_device).contiguous(),
        variances=variances.to(on_device),
        total_variance=total_variance,
        residual_optimism=residual_optimism,
        variance_optimism=None if variance_optimism is None else variance_optimism.to(on_device),
    )
    return basis, covariance.to(on_device).contiguous()


def project(x_nd: Tensor, basis: Basis) -> Projection:
    """Scores (n, q) and residual (n,), float64, of (n, d) rows already centred by ``basis.mean``.

    The residual is |x - A'A x|^2, not |x|^2 - |A x|^2: that difference cancels where the axes hold nearly all of a row,
    and can come out negative.
    """
    n, d = x_nd.shape
    if d != basis.axes.shape[1]:
        raise ArgumentError(
            "the rows do not have the basis's dimension", field="d", value=d, allowed=int(basis.axes.shape[1])
        )
    scores = torch.empty(n, basis.axes.shape[0], dtype=torch.float64, device=x_nd.device)
    residual = torch.empty(n, dtype=torch.float64, device=x_nd.device)
    for rows in chunks(n, d):
        chunk = x_nd[rows].double()
        scores[rows] = chunk @ basis.axes.T
        # a copy first: .double() of float64 input is the caller's own memory
        outside = torch.addmm(chunk, scores[rows], basis.axes, alpha=-1.0)
        residual[rows] = outside.square_().sum(dim=1)
    return Projection(scores=scores, residual=residual)


@dataclass(frozen=True)
class _Moments:
    """Of a group of rows, about the mean of all rows: number, sum (d,), sum of products (d, d); float64, on the CPU."""

    count: int
    total: Tensor
    square: Tensor


def _group_moments(x_nd: Tensor, mean_d: Tensor, clusters: Tensor | None) -> list[_Moments]:
    places = None if clusters is None else _dealt(clusters)
    groups = []
    for start in range(min(_GROUPS, x_nd.shape[0])):
        rows_nd = x_nd[start::_GROUPS] if places is None else x_nd[(places == start).to(x_nd.device)]
        total = torch.zeros_like(mean_d)
        square = torch.zeros(len(mean_d), len(mean_d), dtype=torch.float64, device=x_nd.device)
        for rows in chunks(*rows_nd.shape):
            centred = rows_nd[rows].double() - mean_d
            total += centred.sum(dim=0)
            square.addmm_(centred.T, centred)
        groups.append(_Moments(rows_nd.shape[0], total.cpu(), square.cpu()))
    return groups


def _dealt(clusters: Tensor) -> Tensor:
    """(n,) the group of each row: whole clusters in turn, the largest first, equal ones in order of their codes."""
    _, places, sizes = torch.unique(clusters.cpu(), return_inverse=True, return_counts=True)
    turn = torch.empty_like(sizes)
    turn[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes)) % _GROUPS
    return turn[places]


def _sum(groups: Sequence[_Moments]) -> _Moments:
    total, square = groups[0].total.clone(), groups[0].square.clone()
    for group in groups[1:]:
        total += group.total
        square += group.square
    return _Moments(sum(group.count for group in groups), total, square)


def _axes(covariance_dd: Tensor, k: int, niter: int, seed: int) -> Tensor:
    """(k, d) orthonormal, largest variance first, signs as they come."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would reseed every CUDA device too, outside the fork
        torch.default_generator.manual_seed(seed)
        _, _, axes_dq = torch.pca_lowrank(
            covariance_dd, q=min(2 * k, covariance_dd.shape[0]), center=False, niter=niter
        )
    return axes_dq.T[:k]


def _along(square_dd: Tensor, axes_kd: Tensor) -> Tensor:
    return ((axes_kd @ square_dd) * axes_kd).sum(dim=1)


def _optimism(
    groups: list[_Moments], independent: int, variances_k: Tensor, total_variance: float, niter: int, seed: int
) -> tuple[float | None, Tensor | None]:
    """Expected log ratios of fresh rows to the rows of all groups: of mean residuals, and (k,) of variances.
    independent: rows, or clusters."""
    k = len(variances_k)
    everything = sum(group.count for group in groups)
    if independent < 2 * _GROUPS:
        return None, None
    if min(sum(group.count for group in groups[half::2]) for half in (0, 1)) <= k:
        return None, None  # half of the rows do not even determine the axes
    residual, variances = _held_out(groups, [[0], [1], [2], [3]], k, niter, seed)
    residual_half, _ = _held_out(groups, [[0, 2], [1, 3]], k, niter, seed)
    inside = (total_variance - float(variances_k.sum())) * (everything - 1) / everything
    # what is numerically zero has no optimism: axes that span everything, axes beyond the rank
    floor = ZERO * total_variance
    optimism = 0.0
    if min(inside, residual, residual_half) > floor:
        optimism = 1.5 * math.log(residual) - 0.5 * math.log(residual_half) - math.log(inside)
    usable = (variances > floor) & (variances_k > floor)
    return optimism, torch.where(usable, variances.log() - variances_k.log(), 0.0)


def _held_out(groups: list[_Moments], parts: list[list[int]], k: int, niter: int, seed: int) -> tuple[float, Tensor]:
    """Means over ``parts`` of what axes fitted on the other groups leave of a part: residual about the fit's mean,
    and (k,) variances about the part's own mean."""
    residual, variances = 0.0, torch.zeros(k, dtype=torch.float64)
    for part in parts:
        rest = _sum([group for place, group in enumerate(groups) if place not in part])
        held = _sum([groups[place] for place in part])
        centre, mean = rest.total / rest.count, held.total / held.count
        axes_kd = _axes(rest.square / rest.count - torch.outer(centre, centre), k, niter, seed)
        covariance = held.square / held.count - torch.outer(mean, mean)
        away = mean - centre
        variances += _along(covariance, axes_kd) * (held.count / (held.count - 1))
        outside = covariance + torch.outer(away, away)
        residual += float(outside.trace() - _along(outside, axes_kd).sum())
    return residual / len(parts), variances / len(parts)


def _fix_signs(axes_kd: Tensor) -> Tensor:
    size = axes_kd.abs()
    tied = size >= (1.0 - _TIE) * size.amax(dim=1, keepdim=True)
    # the first True of each row; argmax of equal values has no promised order, of distinct weights it has
    first = (tied * torch.arange(tied.shape[1], 0, -1)).argmax(dim=1)
    sign = torch.where(axes_kd.gather(1, first[:, None]) < 0, -1.0, 1.0).to(axes_kd.dtype)
    return (axes_kd * sign).contiguous()
