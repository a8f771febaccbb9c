"""Sums over all pairs that need no pass over pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from gpudrift.kernels.layout import Prepared
from gpudrift.kernels.precision import steps


def squared_norms(rows: Tensor, device: torch.device) -> Tensor:
    """(n,) float64 squared norms of (n, d) rows, on the device, in chunks: no float64 copy of the cloud is made."""
    norms = torch.empty(len(rows), dtype=torch.float64, device=device)
    for start, end in steps(*rows.shape):
        norms[start:end] = rows[start:end].to(device).double().square().sum(1)
    return norms


def distance_squares(x: Prepared, y: Prepared | None) -> Tensor:
    """Sum of |x_i - y_j|^2 = m sum|x|^2 + n sum|y|^2 - 2 sum x . sum y, float64, in the units of the prepared rows.
    y None: over the ordered pairs within x."""
    sum_x = _column_sum(x)
    if y is None:
        return 2 * (len(x) * x.norms.sum().cpu() - sum_x @ sum_x)
    cross = sum_x @ _column_sum(y)
    return len(y) * x.norms.sum().cpu() + len(x) * y.norms.sum().cpu() - 2 * cross


def _column_sum(cloud: Prepared) -> Tensor:
    total = torch.zeros(cloud.dim, dtype=torch.float64, device=cloud.device)
    for start, end in steps(*cloud.rows.shape):
        total += cloud.rows[start:end].to(cloud.device).double().sum(0)
    return total.cpu()
