"""How often the verdict warns and alerts when nothing, or only the usual, moves; and how often it catches a shift.

    python benchmarks/false_alarms.py [--trials 400] [--seed 0]

Three families, one table a family, a line for each number of reference windows K and size of the current window:

* shuffled: rows of the sample corpus dealt at random into windows: no movement at all.
* wobble:   Gaussian windows whose mean wanders independently from window to window: the usual movement, nothing else.
* shifted:  the same, and the current windows moved by four times the usual wobble.

The current window has as many rows as a reference window (n0) or three times as many (all of them are scored; the A/A
null stays at n0). ``warn``: share of single windows; ``alert``: share of pairs of windows in which both alarm.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gpudrift import kernels, sample
from gpudrift.calibrate import AANull, Limits, calibrate, judge
from gpudrift.metrics.pairs import estimate, leave_out_scores, null_scale, null_sd
from gpudrift.source import open_source
from gpudrift.windows import covering, parse_period

Draw = Callable[[np.random.Generator, list[int]], NDArray[np.float32]]


def sample_rows() -> NDArray[np.float32]:
    """All rows of the sample corpus, (n, 384)."""
    source = open_source(str(sample.path()))
    extent = source.extent()
    cloud = source.read(covering(parse_period("week"), extent.first, extent.last))
    return np.asarray(cloud.embeddings.numpy())


def shuffled(rows: NDArray[np.float32]) -> Draw:
    def draw(rng: np.random.Generator, sizes: list[int]) -> NDArray[np.float32]:
        return rows[rng.choice(len(rows), sum(sizes), replace=False)]

    return draw


def wobbling(dim: int, wobble: float, moved: float, current: int) -> Draw:
    """Windows of N(mean_k, I / dim), mean_k of length about ``wobble``; the last ``current`` moved by one shift."""

    def draw(rng: np.random.Generator, sizes: list[int]) -> NDArray[np.float32]:
        shift = rng.normal(size=dim)
        shift *= moved / np.linalg.norm(shift)
        parts = []
        for k, size in enumerate(sizes):
            mean = rng.normal(size=dim) * wobble / np.sqrt(dim)
            if k >= len(sizes) - current:
                mean = mean + shift
            parts.append(mean + rng.normal(size=(size, dim)) / np.sqrt(dim))
        return np.concatenate(parts).astype(np.float32)

    return draw


def one_trial(rows: NDArray[np.float32], windows: int, n0: int, sizes: list[int]) -> tuple[bool, bool]:
    """(first current window warns, both current windows alarm) for K reference windows and two current ones."""
    tensor = torch.from_numpy(rows)
    cut = windows * n0
    offsets = list(range(0, cut + 1, n0))
    x = kernels.prepare(tensor[:cut], offsets=offsets)
    xx = kernels.self_sums(x)
    groups = range(windows)
    parts = [([k], [g for g in groups if g != k]) for k in groups]
    scores = leave_out_scores(xx.blocks[0], xx.block_pairs, parts)
    scale = null_scale(xx, 0)
    null = AANull(n0, {str(k): s for k, s in enumerate(scores)}, null_sd(scale, n0, cut))
    limits, found = Limits(), []
    for start, end in itertools.pairwise([cut, *(cut + np.cumsum(sizes)).tolist()]):
        y = kernels.prepare(tensor[start:end])
        energy = estimate(xx, kernels.self_sums(y), kernels.cross_sums(x, y), 0)
        now = calibrate(energy.value, energy.se, null, null_sd_now=energy.null_sd, limits=limits)
        found.append(judge(now.score, now.p_aa, now.p_close, now.null_sd, limits))
    return bool(found[0] and found[0].warn), all(bool(j and j.alarm) for j in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    families: list[tuple[str, Draw, int]] = [
        ("shuffled", shuffled(sample_rows()), 200),
        ("wobble", wobbling(32, 0.05, 0.0, 2), 200),
        ("shifted", wobbling(32, 0.05, 0.2, 2), 200),
    ]
    print(f"{'family':<10}{'K':>4}{'n0':>6}{'current':>9}{'warn':>8}{'alert':>8}   ({options.trials} trials)")
    for (name, draw, n0), windows, factor in itertools.product(families, (8, 12, 26), (1, 3)):
        rng = np.random.default_rng(options.seed)
        sizes = [n0 * factor] * 2
        hits = [one_trial(draw(rng, [n0] * windows + sizes), windows, n0, sizes) for _ in range(options.trials)]
        warn, alert = np.mean(hits, axis=0)
        print(f"{name:<10}{windows:>4}{n0:>6}{sizes[0]:>9}{warn:>8.3f}{alert:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
