"""Sums over all pairs that need no pass over pairs. No bit of them depends on how many threads torch is set to."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from gpudrift.kernels.layout import Prepared
from gpudrift.kernels.precision import steps
from gpudrift.kernels.threads import alone

_SPLIT = 1 << 15  # numbers from which torch adds up a single row in as many parts as it has threads


def squared_norms(rows: Tensor, device: torch.device) -> Tensor:
    """(n,) float64 squared norms of (n, d) rows, on the device, in chunks: no float64 copy of the cloud is made."""
    norms = torch.empty(len(rows), dtype=torch.float64, device=device)
    with alone() if rows.shape[1] >= _SPLIT else nullcontext():
        for start, end in steps(rows, device):
            norms[start:end] = rows[start:end].to(device).double().square().sum(1)
    return norms


@alone()
def distance_squares(x: Prepared, y: Prepared | None) -> Tensor:
    """Sum of |x_i - y_j|^2 = m sum|x|^2 + n sum|y|^2 - 2 sum x . sum y, float64, in the units of the prepared rows.
    y None: over the ordered pairs within x."""
    sum_x = _column_sum(x)
    if y is None:
        return 2 * (len(x) * x.norms.sum().cpu() - sum_x @ sum_x)
    cross = sum_x @ _column_sum(y)
    return len(y) * x.norms.sum().cpu() + len(x) * y.norms.sum().cpu() - 2 * cross


@alone()
def group_moments(cloud: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes (G,), column sums (G, d) and sums of squared norms (G,) of a cloud's groups, float64, on the CPU: what
    ``distance_squares`` of any two groups follows from, in one transfer."""
    sums, norms = [], []
    for a, b in itertools.pairwise(cloud.offsets):
        sums.append(_on_device_sum(replace(cloud, rows=cloud.rows[a:b])))
        norms.append(cloud.norms[a:b].sum())
    sizes = torch.tensor(cloud.offsets, dtype=torch.float64).diff()
    return sizes, torch.stack(sums).cpu(), torch.stack(norms).cpu()


@alone()
def squares_between(
    x: tuple[Tensor, Tensor, Tensor], g: int, y: tuple[Tensor, Tensor, Tensor], h: int, within: bool
) -> Tensor:
    """``distance_squares`` of group g of x and group h of y by their moments; within: pairs i != j of group g."""
    cross = x[1][g] @ y[1][h]
    if within:
        return 2 * (x[0][g] * x[2][g] - cross)
    return y[0][h] * x[2][g] + x[0][g] * y[2][h] - 2 * cross


def _column_sum(cloud: Prepared) -> Tensor:
    return _on_device_sum(cloud).cpu()


def _on_device_sum(cloud: Prepared) -> Tensor:
    total = torch.zeros(cloud.dim, dtype=torch.float64, device=cloud.device)
    for start, end in steps(cloud.rows, cloud.device):
        total += cloud.rows[start:end].to(cloud.device).double().sum(0)
    return total
