"""What callers of the notebook API hand in, as tensors, cluster codes and bandwidths, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpudrift import device as devices
from gpudrift.errors import ArgumentError


def pair(x: Any, y: Any, device: str | None) -> tuple[Tensor, Tensor]:
    tensor_x, own_x = rows_of(x, "x", device)
    tensor_y, own_y = rows_of(y, "y", device)
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


def rows_of(values: Any, name: str, device: str | None) -> tuple[Tensor, bool]:
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


def codes_of(clusters_x: Any, clusters_y: Any, n: int, m: int) -> tuple[Tensor | None, Tensor | None]:
    """Cluster labels of any type -> int64 codes shared by x and y."""
    if clusters_x is None and clusters_y is None:
        return None, None
    if clusters_x is None or clusters_y is None:
        raise ArgumentError("clusters are needed for both sides or neither", field="clusters_x, clusters_y")
    labels_x, labels_y = np.asarray(clusters_x), np.asarray(clusters_y)
    for name, labels, rows in (("clusters_x", labels_x, n), ("clusters_y", labels_y, m)):
        if labels.shape != (rows,):
            raise ArgumentError("one cluster label a row", field=name, value=labels.shape, allowed=f"({rows},)")
    try:
        _, codes = np.unique(np.concatenate([labels_x, labels_y]), return_inverse=True)
    except TypeError as error:
        raise ArgumentError(
            "these cluster labels cannot be compared with each other",
            field="clusters_x, clusters_y",
            value=str(error),
            allowed="labels of one type, none missing",
        ) from error
    return torch.from_numpy(codes[:n].astype(np.int64)), torch.from_numpy(codes[n:].astype(np.int64))


def ladder(rows: Any, device: str | None, seed: int) -> tuple[float, ...]:
    """1/4, 1/2, 1 and 2 times the median distance of random pairs."""
    from gpudrift import panel

    tensor, _ = rows_of(rows, "x", device)
    middle = panel.median_distance(tensor, seed=seed)
    return tuple(multiple * middle for multiple in panel.PanelSettings.multiples)


def pool(x: Tensor, y: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.cat([x.to(dtype), y.to(dtype)])


def test_widths(statistic: str, bandwidths: Any, x: Tensor, y: Tensor, seed: int) -> tuple[float, ...]:
    """The bandwidths of a test: none for energy, by default those of the pooled rows."""
    if statistic not in ("energy", "mmd"):
        raise ArgumentError("unknown statistic", field="statistic", value=statistic, allowed=["energy", "mmd"])
    if statistic == "mmd":
        return ladder(pool(x, y), None, seed) if bandwidths is None else widths_of(bandwidths)
    if bandwidths is not None:
        raise ArgumentError("energy has no bandwidth", field="bandwidths", value=bandwidths, allowed="None, or mmd")
    return ()


def widths_of(bandwidths: Any) -> tuple[float, ...]:
    values = tuple(float(s) for s in np.atleast_1d(np.asarray(bandwidths, dtype=np.float64)))
    if not 1 <= len(values) <= 8 or not all(np.isfinite(s) and s > 0 for s in values):
        raise ArgumentError("unusable bandwidths", field="bandwidths", value=values, allowed="1 to 8 positive numbers")
    return values
