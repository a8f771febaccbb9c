"""The arithmetic of a call: what was wished for, or the fastest whose error is far below the standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.kernels.error_bounds import ErrorBound, Sample, error_bound, sample, score_sd
from gpudrift.kernels.precision import MODES

WISHES = ("auto", *MODES)
SHARE = 20  # auto wants a bound of at most this part of the standard error
# Rows of each cloud behind a choice. On the CPU a choice must cost little beside 5,000 x 5,000 pairs.
_COUNT = {"cpu": 256, "cuda": 1024}
# Fastest first, float64 after all. tf32 rounds as float16 does, bfloat16 eight times as coarsely; their wider range
# never decides: float16 rows are scaled, and data that still fall below its range are too wide for sums in float32.
_ORDER = {"cpu": ("float32",), "cuda": ("float16", "float32")}
_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """What a call is computed in, and why.

    precision: a key of ``MODES``. reason: one clause for people. bound, se: of the statistic where they are closest,
    energy or one of the MMD^2: its error bound and its standard error by ``score_sd`` (NaN below 4 rows of x). scale:
    the power of two both clouds are to be prepared with.
    """

    precision: str
    reason: str
    bound: ErrorBound
    se: float
    scale: float

    @property
    def too_coarse(self) -> bool:
        """Whether the error may pass the standard error. A mode that refuses the rows anyway is not counted."""
        return 0 < self.se < self.bound.typical < math.inf


def choose(
    wish: str,
    device_type: str,
    x: Tensor,
    y: Tensor | None = None,
    *,
    centre: Tensor | None = None,
    m: int | None = None,
    bandwidths: Sequence[float] = (),
    inputs: Sequence[torch.dtype] | None = None,
    seed: int = 0,
) -> Choice:
    """The arithmetic for pair sums of x (n, d) and y (m, d), both less the centre.

    ``auto`` takes the first mode whose bound, of energy and of MMD^2 at each bandwidth, is at most a ``SHARE``-th of
    the standard error: on CUDA float16, then float32; on the CPU float32, unless an input is float64 or whole numbers;
    float64 where none does. Any other wish is kept.

    Args:
        wish: "auto" or a key of ``MODES``.
        device_type: "cpu" or "cuda".
        x, y, centre, m, seed: as for ``gpudrift.kernels.error_bounds.sample``; the same rows give the same choice.
        bandwidths: of the RBFs.
        inputs: the dtypes in which the caller's rows came; None: those of x and y.

    Raises:
        ArgumentError: an unknown wish or device type, fewer than 2 rows (4 where y is None).
    """
    if wish not in WISHES:
        raise ArgumentError("unknown precision", field="precision", value=wish, allowed=WISHES)
    if device_type not in _ORDER:
        raise ArgumentError("no backend for this device", field="device", value=device_type, allowed=list(_ORDER))
    rows = sample(x, y, centre=centre, m=m, count=_COUNT[device_type], seed=seed)
    if wish != "auto":
        kept = _choice(wish, f"precision={wish}", rows, device_type, bandwidths)
        return replace(kept, reason=f"NOT ENOUGH HERE, {kept.reason}") if kept.too_coarse else kept
    given = tuple(inputs) if inputs is not None else (x.dtype,) if y is None else (x.dtype, y.dtype)
    if device_type == "cpu" and not all(dtype in _IN_FLOAT32 for dtype in given):
        return _choice("float64", "float64 or whole-number input on the CPU", rows, device_type, bandwidths)
    if len(rows.x) < 4:
        return _choice("float64", "too few rows to know the standard error", rows, device_type, bandwidths)
    for mode in _ORDER[device_type]:
        found = _choice(mode, f"error far below the standard error in {mode}", rows, device_type, bandwidths)
        if found.bound.typical <= found.se / SHARE:
            return found
    why = f"no faster mode stays below 1/{SHARE} of the standard error"
    return _choice("float64", why, rows, device_type, bandwidths)


def _choice(mode: str, why: str, rows: Sample, device_type: str, bandwidths: Sequence[float]) -> Choice:
    parts = []
    for f, s in enumerate((None, *bandwidths)):
        bound = error_bound(mode, rows, device_type=device_type, bandwidths=bandwidths, f=f)
        parts.append((bound, score_sd(rows, s), "energy" if s is None else f"MMD^2 at bandwidth {s:.3g}"))
    bound, se, name = max(parts, key=lambda part: _ratio(part[0].typical, part[1]))
    off = f"{name} is off by at most about {bound.typical:.1e}"
    known = "" if math.isnan(se) else f", against a standard error of about {se:.1e}"
    return Choice(mode, f"{why}: {off}{known}", bound, se, rows.scale(MODES[mode]))


def _ratio(error: float, se: float) -> float:
    if se > 0:
        return error / se
    return 0.0 if error == 0 else math.inf
