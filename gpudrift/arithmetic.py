"""What the pairs of a reference and its windows are computed in, and clouds made ready for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels import Prepared


@dataclass(frozen=True)
class Arithmetic:
    """What pairs are computed in: a key of ``kernels.MODES``, why, and the power of two rows are scaled by."""

    precision: str
    reason: str
    scale: float

    def __post_init__(self) -> None:
        if self.precision not in kernels.MODES or not isinstance(self.scale, float) or math.frexp(self.scale)[0] != 0.5:
            raise ValueError(f"no such arithmetic: precision {self.precision!r}, scale {self.scale!r}")


def prepare(
    rows: Tensor, arithmetic: Arithmetic, *, offsets: Sequence[int] | None = None, clusters: Tensor | None = None
) -> Prepared:
    """Rows that are already centred, rounded as all clouds of this reference are."""
    return kernels.prepare(
        rows, precision=arithmetic.precision, scale=arithmetic.scale, offsets=offsets, clusters=clusters
    )
