"""Principal axes pinned by the reference, and rows projected on them.

The axes come from ``torch.pca_lowrank`` (randomised subspace iteration, Halko, Martinsson and Tropp 2011, algorithms
4.4 and 5.1) with q = 2 * components directions, kept to the first ``components``. It runs on the accumulated d x d
covariance, whose singular vectors are the principal axes: n rows never enter it, so no (n, q) matrix is made, the
covariance merges over shards, and an iteration on it does the work of two on the rows. It always runs on the CPU in
float64, so the axes do not depend on the device's random numbers.

Traps it avoids: ``pca_lowrank`` refuses float16 on the CPU, ends with a LinAlgError on NaN, and its default niter = 2
leaves the last axes nearly unrelated to the true ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, DataError
from gpudrift.metrics.accumulate import chunks, covariance_of, mean_of
from gpudrift.records import Basis, Projection

__all__ = ["fit", "mean_of", "project"]

_TIE = 1e-3  # loadings within this share of an axis's largest count as tied with it


def fit(x_nd: Tensor, mean_d: Tensor, *, components: int, niter: int, seed: int) -> tuple[Basis, Tensor]:
    """Principal axes and covariance of the reference.

    x_nd: (n, d) rows of any float dtype, centred by ``mean_d``. mean_d: (d,) float64, kept in the basis.
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
    covariance = covariance_of(x_nd, mean_of(x_nd))
    if not bool(torch.isfinite(covariance).all()):
        raise DataError(
            "the reference embeddings hold values that are not finite",
            field="embeddings",
            allowed="finite numbers",
            hint="drop such rows before the principal axes are fitted",
        )
    on_cpu = covariance.cpu()
    k = min(components, n - 1, d)
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would reseed every CUDA device too, outside the fork
        torch.default_generator.manual_seed(seed)
        _, _, axes_dq = torch.pca_lowrank(on_cpu, q=min(2 * k, d), center=False, niter=niter)
    axes_kd = _fix_signs(axes_dq.T[:k])
    variances = ((axes_kd @ on_cpu) * axes_kd).sum(dim=1).clamp(min=0.0)
    basis = Basis(
        mean=mean_d.to(device=x_nd.device, dtype=torch.float64),
        axes=axes_kd.to(x_nd.device),
        variances=variances.to(x_nd.device),
        total_variance=float(on_cpu.trace()),
    )
    return basis, covariance


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


def _fix_signs(axes_kd: Tensor) -> Tensor:
    size = axes_kd.abs()
    tied = size >= (1.0 - _TIE) * size.amax(dim=1, keepdim=True)
    # the first True of each row; argmax of equal values has no promised order, of distinct weights it has
    first = (tied * torch.arange(tied.shape[1], 0, -1)).argmax(dim=1)
    sign = torch.where(axes_kd.gather(1, first[:, None]) < 0, -1.0, 1.0).to(axes_kd.dtype)
    return (axes_kd * sign).contiguous()
