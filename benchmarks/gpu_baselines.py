"""What the fused kernels are measured against: bare products, tiled torch, ``torch.cdist``, and peers where importable.

Every baseline is a function without arguments that does its work on the device and returns a value to compare (the mean
distance), or None. None of them allocates in a timed call what could be allocated before.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], float | None]
SIDE = 16384  # rows and columns of a product's tile: C of 16 bit is half a GB
PEERS = ("pykeops", "geomloss", "alibi_detect")


def tiles(n: int, m: int, side: int = SIDE) -> Iterator[tuple[slice, slice]]:
    for start in range(0, n, side):
        for col in range(0, m, side):
            yield slice(start, min(start + side, n)), slice(col, min(col + side, m))


def product(x: Tensor, y: Tensor, side: int = SIDE) -> Call:
    """x y^T, all pairs, into one preallocated tile in the dtype of x."""
    out = torch.empty(min(side, len(x)) * min(side, len(y)), dtype=x.dtype, device=x.device)

    def call() -> None:
        for rows, columns in tiles(len(x), len(y), side):
            a, b = x[rows], y[columns]
            torch.mm(a, b.T, out=out[: len(a) * len(b)].view(len(a), len(b)))

    return call


def epilogue(acc: Tensor, norms_x: Tensor, norms_y: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column sums of the distances of a tile of products, in float32."""
    k = (norms_x[:, None] + norms_y[None, :] - 2 * acc.float()).clamp_min(0).sqrt()
    return k.sum(1), k.sum(0)


def tiled(x: Tensor, y: Tensor, finish: Callable[..., tuple[Tensor, Tensor]], side: int = 8192) -> Call:
    """Tiles of 16-bit products, then the epilogue in torch: energy's sums and margins. The product is rounded to the
    dtype of x on its way through memory, as ``torch.mm`` does it."""
    norms_x, norms_y = (rows.float().square().sum(1) for rows in (x, y))
    out = torch.empty(min(side, len(x)), min(side, len(y)), dtype=x.dtype, device=x.device)
    row_sums, col_sums = (torch.zeros(len(rows), dtype=torch.float64, device=x.device) for rows in (x, y))

    def call() -> float:
        row_sums.zero_()
        col_sums.zero_()
        for rows, columns in tiles(len(x), len(y), side):
            a, b = x[rows], y[columns]
            acc = torch.mm(a, b.T, out=out[: len(a), : len(b)]) if len(a) == len(out) else a @ b.T
            by_row, by_column = finish(acc, norms_x[rows], norms_y[columns])
            row_sums[rows] += by_row
            col_sums[columns] += by_column
        return float(row_sums.sum()) / (len(x) * len(y))

    return call


def cdist(x: Tensor, y: Tensor) -> Call:
    """``torch.cdist`` in float32, the whole matrix, and its sum."""
    x, y = x.float(), y.float()

    def call() -> float:
        return float(torch.cdist(x, y).sum(dtype=torch.float64)) / (len(x) * len(y))

    return call


def compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    """The epilogue through ``torch.compile``, for one shape."""
    made: Callable[..., tuple[Tensor, Tensor]] = torch.compile(epilogue, dynamic=False)
    return made


def warm_compiled(seconds: float, side: int = 8192) -> str:
    """Compile the epilogue in a process of its own, which leaves it in the cache on disk; why not, or empty."""
    command = [sys.executable, str(Path(__file__).resolve()), str(side)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"torch.compile took more than {seconds:.0f} s"
    return "" if done.returncode == 0 else f"torch.compile failed: {(done.stderr.strip().splitlines() or [''])[-1]}"


def absent() -> dict[str, str]:
    """Peers that are not there: name -> why."""
    return {name: "not installed" for name in PEERS if importlib.util.find_spec(name) is None}


def peer(name: str, x: Tensor, y: Tensor) -> Call:
    """The mean distance (KeOps), the energy distance (GeomLoss) or MMD^2 (alibi-detect) of float32 rows."""
    x, y = x.float().contiguous(), y.float().contiguous()
    if name == "pykeops":
        from pykeops.torch import LazyTensor  # type: ignore[import-not-found, unused-ignore]

        left, right = LazyTensor(x[:, None, :]), LazyTensor(y[None, :, :])

        def keops() -> float:
            sums: Tensor = ((left - right) ** 2).sum(-1).sqrt().sum(1)
            return float(sums.sum(dtype=torch.float64)) / (len(x) * len(y))

        return keops
    if name == "geomloss":
        from geomloss import SamplesLoss  # type: ignore[import-not-found, unused-ignore]

        loss: Any = SamplesLoss("energy", backend="auto")
        return lambda: (float(loss(x, y)), None)[1]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from alibi_detect.cd import MMDDrift  # type: ignore[import-not-found, unused-ignore]

    detector: Any = MMDDrift(x.cpu().numpy(), backend="pytorch", n_permutations=1, device="cuda")
    array = y.cpu().numpy()
    return lambda: (detector.score(array), None)[1]


def main() -> None:
    """Compile the epilogue for a tile of this side."""
    side = int(sys.argv[1])
    acc = torch.randn(side, side, device="cuda").bfloat16()
    norms = torch.rand(side, device="cuda")
    total = compiled()(acc, norms, norms)[0].sum()
    if not math.isfinite(float(total)):
        raise SystemExit("the compiled epilogue gave no number")


if __name__ == "__main__":
    main()
