"""Random Fourier features of the RBF at the pinned bandwidths, summed by blocks of rows.

For w ~ N(0, I / s^2), E cos(w . (x - y)) = exp(-|x - y|^2 / (2 s^2)) (Rahimi and Recht 2007). Each of the D / 2
frequencies gives a sine and a cosine, not a cosine with a random phase: for the RBF that has the lower variance, and a
row's own product is exactly 1, so a U-statistic needs no self pairs (Sutherland and Schneider 2015). One set of
standard normal frequencies serves all bandwidths, divided by each: one matrix product. Where a bandwidth is half the
one before, its sines and cosines follow from the double angle.

Float64 throughout. In float32 a BLAS gives a row other last bits in a batch of another shape, and sums would agree to
1e-7 only, not to the 1e-10 that makes "merged in any grouping" mean something.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gpudrift.sketch.plan import BLOCKS, SketchPlan

_TILE = 1 << 17  # angles at a time: 1 MB, so that the arrays of a tile stay in the caches
_SHORT = 16  # rows a block up to which one product with the blocks' indicator beats a sum for each block


def block_sums(centred: Tensor, bounds: list[int], plan: SketchPlan) -> Tensor:
    """(BLOCKS, bandwidths, 2, D / 2) float64 sums of sines [0] and cosines [1].

    centred: (n, d) float64 rows about the plan's mean, sorted by block; block b is ``bounds[b]:bounds[b + 1]``.
    """
    frequencies = plan.frequencies
    half = frequencies.shape[0]
    total = torch.zeros(BLOCKS, len(plan.bandwidths), 2, half, dtype=torch.float64)
    step = min(max(1, _TILE // half), centred.shape[0])
    # memory asked for once: a tile's worth of fresh pages costs as much as its sines
    angles = torch.empty(step, half, dtype=torch.float64)
    held = torch.empty(2, 2, step, half, dtype=torch.float64)
    for start in range(0, centred.shape[0], step):
        end = min(start + step, centred.shape[0])
        torch.mm(centred[start:end], frequencies.T, out=angles[: end - start])
        spans = [
            (block, max(low, start) - start, min(high, end) - start)
            for block, (low, high) in enumerate(itertools.pairwise(bounds))
            if max(low, start) < min(high, end)
        ]
        _add(total, angles[: end - start], held[:, :, : end - start], spans, plan.bandwidths)
    return total


def _add(
    total: Tensor, angles: Tensor, held: Tensor, spans: list[tuple[int, int, int]], bandwidths: tuple[float, ...]
) -> None:
    """held: (2, 2, rows, D / 2) to work in, sines and cosines at one bandwidth and at the next."""
    now, free = held
    before = 0.0
    one = torch.ones((), dtype=torch.float64)
    first, last = spans[0][0], spans[-1][0] + 1
    members = None
    if len(angles) <= _SHORT * len(spans):
        members = torch.zeros(last - first, len(angles), dtype=torch.float64)
        for block, low, high in spans:
            members[block - first, low:high] = 1.0
    for place in sorted(range(len(bandwidths)), key=lambda b: -bandwidths[b]):  # widest first
        width = bandwidths[place]
        if before == 2.0 * width:
            torch.mul(now[0], now[1], out=free[0]).mul_(2.0)
            torch.addcmul(one, now[0], now[0], value=-2.0, out=free[1])
            now, free = free, now
        elif before != width:
            scaled = torch.div(angles, width, out=free[0])
            torch.sin(scaled, out=now[0])
            torch.cos(scaled, out=now[1])
        before = width
        if members is not None:
            total[first:last, place] += torch.matmul(members, now).transpose(0, 1)
            continue
        for block, low, high in spans:
            total[block, place] += now[:, low:high].sum(dim=1)
