"""Sketches: what a row costs by part, beside the bare matrix products it must do; and what the sketch's numbers miss.

    python -m benchmarks.sketches [speed] [errors] [--rows 32768] [--dim 384] [--repeats 5]

``speed`` runs on one thread and takes the least processor time of the repeats, so a shared machine does little harm.
``errors`` compares, over several windows, random features with the exact U-statistic of the same rows, and W1 from
histograms with W1 of the sorted scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

import gpudrift
from gpudrift.metrics.wasserstein import wasserstein1
from gpudrift.panel import centre
from gpudrift.project import project
from gpudrift.sketch import Sketch, SketchPlan, compare
from gpudrift.sketch.features import block_sums
from gpudrift.sketch.moments import Moments
from gpudrift.sketch.reservoir import keys_of
from gpudrift.sketch.state import add_histograms, add_norms, coordinates

SIZES = (512, 1024, 2048, 4096)  # D


def cloud(n: int, d: int, seed: int, shift: float = 0.0, cluster: float = 0.0) -> Tensor:
    """Unit vectors about topics, as sentence embeddings lie; ``shift`` moves all, ``cluster`` is the share of rows of a
    topic of their own."""
    topics = np.random.default_rng(0).normal(size=(21, d)) * np.linspace(1.5, 0.5, 21)[:, None] / d**0.5
    rng = np.random.default_rng(seed + 1)
    of = rng.integers(0, 20, n)
    of[: round(cluster * n)] = 20
    rows = topics[of] + (rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.25 + shift) / d**0.5
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def least(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of the repeats, after one that warms up."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def speed(rows: int, dim: int, repeats: int, sizes: Sequence[int] = SIZES) -> None:
    torch.set_num_threads(1)
    reference = cloud(8192, dim, 0)
    print(f"{rows} x {dim} float32 rows, one thread, torch {torch.__version__}; microseconds a row")
    print(f"{'D':>6} {'update':>8} {'products':>9} {'ratio':>6} {'rows/s':>8} {'MB':>6}  by part")
    for features in sizes:
        _speed_of(SketchPlan.from_rows(reference, features=features), rows, repeats)


def _speed_of(plan: SketchPlan, rows: int, repeats: int) -> None:
    x, other = cloud(rows, plan.dim, 1), cloud(rows, plan.dim, 2)
    ids = pa.array([f"document-{i:09d}" for i in range(rows)])
    state = Sketch.empty(plan)
    state.update(x, ids)  # a full reservoir, as a stream has nearly always
    chunk = x[:2048]
    centred, scores, values = coordinates(plan, chunk)
    bounds = [len(chunk) * b // 32 for b in range(33)]
    keys = keys_of(other, ids, plan.seed)

    def products() -> None:
        _ = centred @ plan.frequencies.T
        _ = centred.T @ centred
        _ = centred @ plan.axes.T @ plan.axes

    of_chunk: dict[str, Callable[[], object]] = {
        "coordinates": lambda: coordinates(plan, chunk),
        "moments": lambda: Moments.of(values.clone()),
        "features": lambda: block_sums(centred, bounds, plan),
        "histograms": lambda: add_histograms(plan, scores, dict(state.sums)),
        "norms": lambda: add_norms(chunk, dict(state.sums)),
    }
    of_all: dict[str, Callable[[], object]] = {
        "keys": lambda: keys_of(x, ids, plan.seed),
        "reservoir": lambda: state.sample.add(keys, other, ids, plan.reservoir),
    }
    parts = {name: least(work, repeats) * 1e6 / len(chunk) for name, work in of_chunk.items()}
    parts |= {name: least(work, repeats) * 1e6 / rows for name, work in of_all.items()}
    whole = least(lambda: state.update(x, ids), repeats) * 1e6 / rows
    bare = least(products, repeats) * 1e6 / len(chunk)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.state().values()) / 1e6
    split = ", ".join(f"{name} {cost:.1f}" for name, cost in parts.items())
    print(f"{plan.features:>6} {whole:8.1f} {bare:9.1f} {whole / bare:6.2f} {1e6 / whole:8.0f} {size:6.1f}  {split}")


def errors(
    rows: int, dim: int, seeds: int = 6, sizes: Sequence[int] = SIZES, grids: Sequence[int] = (64, 256, 2048)
) -> None:
    reference = cloud(rows, dim, 0)
    windows = {
        "no drift": cloud(rows, dim, 1),
        "shift": cloud(rows, dim, 2, shift=0.1),
        "2% new topic": cloud(rows, dim, 3, cluster=0.02),
    }
    ids = pa.array(np.arange(rows))
    print(f"{rows} rows a side, {dim} dims. MMD^2 by random features less the exact one: root mean square of {seeds}")
    print("seeds, at each bandwidth, in standard errors of the exact one (stated: that of approximation_sd)")
    widths = SketchPlan.from_rows(reference).bandwidths
    for name, window in windows.items():
        exact = gpudrift.mmd2(reference, window, list(widths))
        for features in sizes:
            found, stated = [], []
            for seed in range(seeds):
                plan = SketchPlan.from_rows(reference, features=features, seed=seed, reservoir=256)
                sides = []
                for first, side in ((0, reference), (rows, window)):
                    sides.append(Sketch.empty(plan))
                    sides[-1].update(side, pa.array(np.arange(first, first + rows)))
                metrics = compare(*sides)
                found.append([metrics[f"rff_mmd2_b{b}"].value for b in range(1, 5)])
                stated.append([metrics[f"rff_mmd2_b{b}"].extra["approximation_sd"] for b in range(1, 5)])
            value, se = np.array(exact.value), np.array(exact.se)
            off = np.sqrt(((np.array(found) - value) ** 2).mean(0))
            said = np.sqrt((np.array(stated) ** 2).mean(0))
            cells = "  ".join(
                f"{o / s:5.2f} ({t / s:5.2f}), se = {s / abs(v):5.1%} of it;"
                for o, s, v, t in zip(off, se, value, said, strict=True)
            )
            print(f"{name:>13} D = {features:4d}: {cells}")
    print("\nW1 by histogram: largest share off over 8 components, and the largest bound as a share")
    for name, window in windows.items():
        for bins in grids:
            plan = SketchPlan.from_rows(reference, features=2, bins=bins, reservoir=256)
            sides = [Sketch.empty(plan), Sketch.empty(plan)]
            for sketch, side in zip(sides, (reference, window), strict=True):
                sketch.update(side, ids)
            metrics = compare(*sides)
            scores = []
            for side in (reference, window):
                rows_centred = side.clone()
                centre(rows_centred, plan.mean)
                scores.append(project(rows_centred, plan.basis).scores)
            off_by, bounds = [], []
            for k in range(8):
                exact_w1, _ = wasserstein1(scores[0][:, k].contiguous(), scores[1][:, k].contiguous())
                metric = metrics[f"wasserstein1_pc{k + 1}"]
                off_by.append(abs(metric.value - exact_w1) / exact_w1)
                bounds.append(metric.extra["discretisation"] / exact_w1)
            print(f"{name:>13} {bins:5d} bins: {max(off_by):.1e} off, bound {max(bounds):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["speed", "errors"], default=["speed", "errors"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if "speed" in args.what:
        speed(args.rows or 32768, args.dim, args.repeats)
    if "errors" in args.what:
        errors(args.rows or 10_000, args.dim)


if __name__ == "__main__":
    main()
