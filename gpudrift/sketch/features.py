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

_TILE = 1 << 17  # angles at a time: 1 MB, so that the four arrays of a tile stay in the caches


def block_sums(centred: Tensor, bounds: list[int], plan: SketchPlan) -> Tensor:
    """(BLOCKS, bandwidths, 2, D / 2) float64 sums of sines [0] and cosines [1].

    centred: (n, d) float64 rows about the plan's mean, sorted by block; block b is ``bounds[b]:bounds[b + 1]``.
    """
    frequencies = plan.frequencies
    half = frequencies.shape[0]
    total = torch.zeros(BLOCKS, len(plan.bandwidths), 2, half, dtype=torch.float64)
    step = max(1, _TILE // half)
    for start in range(0, centred.shape[0], step):
        end = min(start + step, centred.shape[0])
        angles = centred[start:end] @ frequencies.T
        spans = [
            (block, max(low, start) - start, min(high, end) - start)
            for block, (low, high) in enumerate(itertools.pairwise(bounds))
            if max(low, start) < min(high, end)
        ]
        _add(total, angles, spans, plan.bandwidths)
    return total


def _add(total: Tensor, angles: Tensor, spans: list[tuple[int, int, int]], bandwidths: tuple[float, ...]) -> None:
    before, sine, cosine = 0.0, angles, angles
    for place in sorted(range(len(bandwidths)), key=lambda b: -bandwidths[b]):  # widest first
        width = bandwidths[place]
        if before == 2.0 * width:
            twice = sine * cosine
            sine.square_().mul_(-2.0).add_(1.0)
            sine, cosine = twice.mul_(2.0), sine
        elif before != width:
            scaled = angles / width
            sine, cosine = scaled.sin(), scaled.cos()
        before = width
        for block, low, high in spans:
            total[block, place, 0] += sine[low:high].sum(dim=0)
            total[block, place, 1] += cosine[low:high].sum(dim=0)
