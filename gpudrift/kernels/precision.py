"""The arithmetic a pass may use: what each mode rounds, to what range, and how rows get there.

Every mode rounds a cloud ONCE, after centring in float64 and scaling by a power of two, and takes the norms from the
rounded rows: distances are those of the rounded cloud, up to the accumulation of the dot product (float32; float64 in
float64 mode). The same mode serves X against X, X against Y and Y against Y, so what is common to them cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mode:
    """name; storage: dtype of the rows on CUDA; held: dtype on the CPU (the same values); roundoff: largest relative
    error of a rounded entry; low, high: squared norms outside are refused (they underflow or overflow)."""

    name: str
    storage: torch.dtype
    held: torch.dtype
    roundoff: float
    low: float
    high: float

    @property
    def longest(self) -> float:
        """The longest scaled row that is always accepted."""
        return min(math.sqrt(self.high), torch.finfo(self.storage).max)


MODES = {
    mode.name: mode
    for mode in (
        Mode("float16", torch.float16, torch.float32, 2.0**-11, 1e-30, 1e36),
        Mode("bfloat16", torch.bfloat16, torch.float32, 2.0**-8, 1e-30, 1e36),
        Mode("tf32", torch.float32, torch.float32, 2.0**-11, 1e-30, 1e36),
        Mode("float32", torch.float32, torch.float32, 2.0**-24, 1e-30, 1e36),
        Mode("float64", torch.float64, torch.float64, 2.0**-53, 1e-200, 1e200),
    )
}

_LARGEST_EXPONENT = 6  # float16 entries stay below 2^6: a thousandfold headroom to 65504, twenty binades in full below


def scale_for(rows: Tensor, centre: Tensor | None, mode: Mode) -> float:
    """The power of two that brings the largest entry of the centred rows into [32, 64) in float16; else 1."""
    return scale_of(largest_entry(rows, centre)) if mode.name == "float16" else 1.0


def largest_entry(rows: Tensor, centre: Tensor | None) -> float:
    """Largest |entry| of rows (n, d) less their centre (d,), taken in float64; 0 without rows."""
    middle = None if centre is None else centre.to(rows.device, torch.float64)
    largest = 0.0
    for start, end in steps(rows, rows.device):
        part = rows[start:end].double()
        largest = max(largest, float((part if middle is None else part - middle).abs().max()))
    return largest


def scale_of(largest: float) -> float:
    """The power of two that brings a number of that size into [32, 64); 1 for 0 and what is not finite. Within
    2^-500 and 2^500, whose squares are float64 numbers too; what lies further out is refused for its range."""
    if not 0 < largest < math.inf:
        return 1.0
    _, exponent = math.frexp(largest)  # largest lies in [2^(exponent - 1), 2^exponent)
    return math.ldexp(1.0, max(-500, min(_LARGEST_EXPONENT - exponent, 500)))


def place(
    rows: Tensor, centre: Tensor | None, mode: Mode, scale: float, device: torch.device, resident: bool = True
) -> Tensor:
    """(rows - centre) * scale, rounded to nearest even, on the device, in the dtype the backend holds it in.

    Shift and scale are taken in float64. torch rounds float64 to 16 bits by way of float32: an entry within 2^-25 of
    halfway between two neighbours may go to the farther one.

    The rows themselves where there is nothing to do. On CUDA each row is padded with zeros to whole K blocks (the fused
    kernels' steps along d); what is returned is the view of the first d columns. resident False: rounded on the device,
    a part at a time, and held in pinned host memory.
    """
    dtype = mode.storage if device.type == "cuda" else mode.held
    exact = mode.name in ("float32", "float64")
    n, d = int(rows.shape[0]), int(rows.shape[1])
    width = padded(d) if device.type == "cuda" and mode.name != "float64" else d
    if centre is None and scale == 1 and exact and rows.dtype == dtype and rows.device == device and width == d:
        return rows.contiguous()
    held = torch.zeros if width > d else torch.empty
    home = device if resident else torch.device("cpu")
    placed = held((n, width), dtype=dtype, device=home, pin_memory=home != device)[:, :d]
    middle = None if centre is None else centre.to(device, torch.float64)
    for start, end in steps(rows, device):
        part = rows[start:end].to(device)
        if middle is not None:
            part = part.double() - middle
        if scale != 1:
            part = part.double() * scale  # a scale may lie outside float32
        placed[start:end] = _rounded(part, mode)
    return placed


def padded(d: int) -> int:
    """Columns a row is stored with on CUDA: whole K blocks of 64."""
    return -(-d // 64) * 64


def steps(rows: Tensor, device: torch.device) -> list[tuple[int, int]]:
    """Row ranges of (n, d), what is copied in float64 at a time: on the CPU about 260,000 entries, which stay in
    cache; on CUDA 16 million, which fill the device."""
    n, d = rows.shape
    step = max(1, (1 << (24 if device.type == "cuda" else 18)) // d)
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _rounded(rows: Tensor, mode: Mode) -> Tensor:
    if mode.name != "tf32":
        return rows.to(mode.storage)
    bits = rows.to(torch.float32).contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
