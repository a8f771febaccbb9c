"""What several metrics and the projection share: float64 accumulation by row chunks, and how degenerate input is met.

All of it is deterministic to the byte on one device type: chunk boundaries depend on the shape alone, and no float is
ever added by an atomic (``torch.cumsum`` of one long CUDA vector is not reproducible, ``prefix_sums`` is).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gpudrift.errors import InsufficientDataError
from gpudrift.records import Basis

CHUNK = 1 << 21  # elements of a row chunk: 16 MB as float64, so three temporaries stay under 64 MB
ZERO = 1e-12  # a variance below this share of the clouds' mean square is rounding of float32 input, not variance


def chunks(n: int, d: int) -> Iterator[slice]:
    """Slices of the rows of an (n, d) tensor, at most ``CHUNK`` elements each (one row at least)."""
    rows = max(1, CHUNK // max(1, d))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def mean_of(x_nd: Tensor) -> Tensor:
    """Mean of the rows, (d,) float64, of an (n, d) tensor of any float dtype. InsufficientDataError without rows."""
    require_rows(x_nd, 1)
    total = torch.zeros(x_nd.shape[1], dtype=torch.float64, device=x_nd.device)
    for rows in chunks(*x_nd.shape):
        total += x_nd[rows].double().sum(dim=0)
    return total / x_nd.shape[0]


def covariance_of(x_nd: Tensor, mean_d: Tensor) -> Tensor:
    """Unbiased covariance, (d, d) float64, of (n, d) rows of any float dtype about ``mean_d`` (their own mean).

    Two passes (mean first), so an offset of the rows costs no accuracy. InsufficientDataError for n < 2.
    """
    require_rows(x_nd, 2)
    d = x_nd.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64, device=x_nd.device)
    for rows in chunks(*x_nd.shape):
        centred = x_nd[rows].double() - mean_d
        total.addmm_(centred.T, centred)
    return total.div_(x_nd.shape[0] - 1)


def require_rows(x: Tensor, least: int) -> None:
    require(int(x.shape[0]), least)


def require(rows: int, least: int) -> None:
    if rows < least:
        raise InsufficientDataError(
            "too few rows for this statistic", field="rows", value=rows, allowed=f"{least} or more"
        )


def variance_of_mean(influence_n: Tensor) -> float:
    """Sampling variance of the mean of n independent influence values: their unbiased variance over n. n >= 2."""
    require_rows(influence_n, 2)
    return float(influence_n.var(unbiased=True)) / influence_n.shape[0]


def prefix_sums(values: Tensor) -> Tensor:
    """Inclusive prefix sums of an (n,) float64 vector in a fixed order on every device.

    Sums run within blocks of 512, then over the blocks' totals, recursively; the error grows like log n, not n.
    """
    block = 512
    n = values.shape[0]
    if n <= block:
        # the triangular product is the one scan of a single vector that CUDA does in a fixed order
        return torch.ones(n, n, dtype=values.dtype, device=values.device).tril() @ values
    width = -(-n // block)
    padded = torch.zeros(width * block, dtype=values.dtype, device=values.device)
    padded[:n] = values
    within = padded.view(width, block).cumsum(dim=1)
    within[1:] += prefix_sums(within[:-1, -1].contiguous())[:, None]
    return within.reshape(-1)[:n]


def reference_sd(basis: Basis, k: int) -> float:
    """The reference's sd along axis k (from 0), the unit of scaled figures.

    An axis beyond the reference's rank holds rounding only, and a figure in its own sd would be noise over noise: the
    sd is at least 1e-6 of the total. 0 only for a constant reference.
    """
    return math.sqrt(max(float(basis.variances[k]), ZERO * basis.total_variance))


def log_ratio(current: float, reference: float, scale: float) -> tuple[float, str | None]:
    """log(current / reference) of two variances, always finite, with a note where one was numerically zero.

    scale: the mean square of the clouds, in the same units. What is below ``ZERO * scale`` is taken as that, so two
    zeros give 0 and a single one gives a large finite number.
    """
    floor = ZERO * scale
    low = [name for name, value in (("current", current), ("reference", reference)) if not value > floor]
    if not low:
        return math.log(current) - math.log(reference), None
    note = " and ".join(low) + " numerically zero"
    if len(low) == 2:
        return 0.0, note
    return math.log(max(current, floor)) - math.log(max(reference, floor)), note
