"""The pairwise core on the CPU against the bare matrix product of the same pairs, in one run, interleaved.

    python benchmarks/pairs.py                      # d = 128, 384, 768
    python benchmarks/pairs.py --rows 50000 --dims 384 --repeats 1   # the headline case
    python benchmarks/pairs.py --memory 50000       # peak memory of the API call above the clouds

Rates are shares of the floor: time of torch.mm of the same pairs (tiles of 4096 x 4096 into one preallocated result)
over the time of the whole pass. Every case is first checked against the dense float64 definition on a corner of the
clouds. Absolute times say little on a shared machine; the ratios do. With --threads 1 processor time is measured, which
other programs disturb least; with more threads, wall time: keep the machine quiet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from gpudrift import kernels
from gpudrift.kernels import reference as dense

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)  # times the median distance, which is near sqrt(2) for these clouds


def clouds(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator) / d**0.5 for _ in range(2))
    return x, y + 0.01


def bare_product(x: torch.Tensor, y: torch.Tensor, side: int = 4096) -> None:
    out = torch.empty(min(side, len(x)) * min(side, len(y)))
    for i in range(0, len(x), side):
        for j in range(0, len(y), side):
            a, b = x[i : i + side], y[j : j + side]
            torch.mm(a, b.T, out=out[: len(a) * len(b)].view(len(a), len(b)))


def check(x: torch.Tensor, y: torch.Tensor) -> None:
    a, b = kernels.prepare(x[:300]), kernels.prepare(y[:200])
    found = kernels.cross_sums(a, b, bandwidths=BANDWIDTHS)
    wanted = dense.pair_sums(a, b, BANDWIDTHS)
    torch.testing.assert_close(found.rows, wanted.rows, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(found.squares, wanted.squares, rtol=2e-5, atol=1e-5)


def seconds(call: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    call()
    return clock() - began


def rates(n: int, d: int, repeats: int) -> dict[str, float]:
    x, y = clouds(n, d)
    check(x, y)
    a, b = kernels.prepare(x), kernels.prepare(y)
    middle = float((x[:500] - y[:500]).norm(dim=1).median())
    ladder = tuple(s * middle for s in BANDWIDTHS)
    cases: dict[str, Callable[[], object]] = {
        "product": lambda: bare_product(x, y),
        "energy, row sums": lambda: kernels.cross_sums(a, b, squares=False),
        "energy, row sums, squares": lambda: kernels.cross_sums(a, b),
        "and 4 bandwidths": lambda: kernels.cross_sums(a, b, bandwidths=ladder),
        "self, and 4 bandwidths": lambda: kernels.self_sums(a, bandwidths=ladder),
    }
    bare_product(x[:4096], y[:4096])  # the library sets itself up on its first call
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            times[name].append(seconds(call))
    typical = {name: median(values) for name, values in times.items()}
    found = {f"{name} / product": typical["product"] / t for name, t in typical.items() if name != "product"}
    found["product GFLOP/s"] = 2 * n * n * d / typical["product"] / 1e9
    return found


def peak_memory(n: int, d: int) -> None:
    """Print VmHWM above the state after import, less the clouds and their centred copies, in MB."""
    import gpudrift

    small_x, small_y = clouds(50, d)
    gpudrift.mmd2(small_x, small_y, [1.0, 2.0])  # code and libraries are loaded on the first call
    before = _status("VmRSS")
    x, y = clouds(n, d)
    gpudrift.mmd2(x, y, [0.35, 0.7, 1.4, 2.8])
    above = (_status("VmHWM") - before) / 1e3
    held = 2 * 2 * n * d * 4 / 1e6
    print(
        json.dumps({"n": n, "d": d, "peak_mb": round(above), "clouds_mb": round(held), "above_mb": round(above - held)})
    )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 384, 768])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=int, metavar="ROWS", help="only the peak memory of mmd2 at d = 384")
    parser.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_child:
        peak_memory(options.memory_child, 384)
        return
    if options.memory:
        subprocess.run([sys.executable, __file__, "--memory-child", str(options.memory)], check=True)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rows:,} x {options.rows:,} rows")
    for d in options.dims:
        found = rates(options.rows, d, options.repeats)
        print(f"d = {d}: bare product {found.pop('product GFLOP/s'):.0f} GFLOP/s")
        for name, ratio in found.items():
            print(f"  {name:<38} {ratio:.2f}")


if __name__ == "__main__":
    main()
