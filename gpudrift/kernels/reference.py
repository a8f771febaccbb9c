"""The definition, dense and in float64: what every backend is checked against. Called by tests and benchmarks alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gpudrift.kernels.layout import PairSums, Prepared, count_pairs, no_labels


def pair_functions(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """(1 + B, n, m) float64: |x_i - y_j|, then exp(-|x_i - y_j|^2 / (2 s^2)) for each bandwidth s, by differences."""
    difference = x.double()[:, None, :] - y.double()[None, :, :]
    squared = difference.square().sum(-1)
    return torch.stack([squared.sqrt(), *(torch.exp(-squared / (2 * s * s)) for s in bandwidths)])


def pair_sums(x: Prepared, y: Prepared | None, bandwidths: Sequence[float], labels: Tensor | None = None) -> PairSums:
    """The sums of ``gpudrift.kernels`` from the n x m matrices themselves. labels (n, P): for z'Kz."""
    other = x if y is None else y
    k_fnm = pair_functions(x.rows.double() / x.scale, other.rows.double() / x.scale, bandwidths)
    keep = torch.ones(k_fnm.shape[1:], dtype=torch.bool)
    if y is None:
        keep.fill_diagonal_(False)
    if x.clusters is not None and other.clusters is not None:
        keep &= x.clusters[:, None] != other.clusters[None, :]
    k_fnm = k_fnm * keep
    counts = count_pairs(x, y)
    blocks = torch.stack(
        [
            torch.stack([k_fnm[:, a:b, c:d].sum((1, 2)) for c, d in itertools.pairwise(other.offsets)])
            for a, b in itertools.pairwise(x.offsets)
        ]
    ).permute(2, 0, 1)
    return PairSums(
        bandwidths=tuple(bandwidths),
        total=k_fnm.sum((1, 2)),
        rows=k_fnm.sum(2),
        columns=k_fnm.sum(1),
        squares=k_fnm.square().sum((1, 2)),
        blocks=blocks,
        pairs=counts.total,
        block_pairs=counts.blocks,
        labels=no_labels(len(k_fnm)) if labels is None else _quadratic(k_fnm, labels.double()),
    )


def _quadratic(k_fnm: Tensor, z_np: Tensor) -> Tensor:
    return torch.einsum("np,fnm,mp->fp", z_np, k_fnm, z_np)
