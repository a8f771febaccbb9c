"""What a budget of pairs buys: the spread of each estimator where nothing drifts and where something does.

    python benchmarks/estimators.py [--trials 200] [--seed 0] [--rows 1600]

Rows of N(0, I) in 16 dimensions, drifted ones shifted by 0.1 in each. Two shapes: both sides of the same size, and a
reference of 12 windows against one window. A budget of an eighth of all pairs is spent

* on 8 blocks of all rows (``gpudrift.estimators``),
* on a sample: of both sides alike, and (reference against window) of the reference alone, as the job does,

and beside them stand all pairs, the cross statistic (half of the pairs) and random Fourier features (none; MMD alone).
``pairs``: each counted once. ``sd``: over the trials; ``theory``: root of s^2 (sum of 2 / (n (n - 1)) + 2 / (m (m - 1))
+ 4 / (n m)) + 4 v_x / n + 4 v_y / m, with s^2, v_x, v_y as all pairs give them. ``z``: drift in units of the null sd.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpudrift import cross, kernels, rff
from gpudrift.estimators import block_estimate, block_sums, pairs_of
from gpudrift.metrics.pairs import PairEstimate, estimate, null_scale

DIM, SHIFT, WIDTH, FEATURES, BLOCKS = 16, 0.1, 5.6, 512, 8


@dataclass(frozen=True)
class Estimator:
    """value: (x, y, seed) -> the statistic. pairs: computed. rows: of each of ``parts`` independent parts of the
    estimate; NaN where the theory does not reach."""

    name: str
    value: Callable[[Tensor, Tensor, int], float]
    pairs: int
    rows: tuple[float, float]
    parts: int


def prepared(rows: Tensor) -> kernels.Prepared:
    return kernels.prepare(rows, precision="float32")


def exact(f: int) -> Callable[[Tensor, Tensor], PairEstimate]:
    def of(x: Tensor, y: Tensor) -> PairEstimate:
        a, b, widths = prepared(x), prepared(y), [WIDTH] * f
        sums = [kernels.self_sums(a, bandwidths=widths), kernels.self_sums(b, bandwidths=widths)]
        return estimate(sums[0], sums[1], kernels.cross_sums(a, b, bandwidths=widths), f)

    return of


def blocks(f: int) -> Callable[[Tensor, Tensor, int], float]:
    def of(x: Tensor, y: Tensor, _: int) -> float:
        a, b, widths = prepared(x), prepared(y), [WIDTH] * f
        sums = [block_sums(u, v, BLOCKS, bandwidths=widths) for u, v in ((a, None), (b, None), (a, b))]
        return block_estimate(sums[0], sums[1], sums[2], f).pair.value

    return of


def crossed(f: int) -> Callable[[Tensor, Tensor, int], float]:
    def of(x: Tensor, y: Tensor, seed: int) -> float:
        zero = torch.zeros(DIM, dtype=torch.float64)
        widths = [WIDTH] * f
        found = cross.test(x, y, None, bandwidths=widths, seed=seed, centre=zero, precision="float32", scale=1.0)
        return float(found.values[0])

    return of


def estimators(n: int, m: int, f: int) -> list[Estimator]:
    budget = pairs_of(n, m) / BLOCKS
    score = exact(f)
    found = [Estimator("all pairs", lambda x, y, _: score(x, y).value, pairs_of(n, m), (n, m), 1)]
    size = (n / BLOCKS, m / BLOCKS)
    found.append(Estimator(f"{BLOCKS} blocks", blocks(f), round(budget), size, BLOCKS))
    k = round(min(math.sqrt(budget / 2), m))  # of each side
    found.append(Estimator("sample, both sides", lambda x, y, _: score(x[:k], y[:k]).value, pairs_of(k, k), (k, k), 1))
    if n > m:
        rest = round(math.sqrt(2 * budget)) - m  # of the reference, beside all of the window
        whole = pairs_of(rest, m)
        found.append(Estimator("sample, reference", lambda x, y, _: score(x[:rest], y).value, whole, (rest, m), 1))
    found.append(Estimator("cross", crossed(f), pairs_of(n, m) // 2, (math.nan, math.nan), 1))
    if f:
        found.append(
            Estimator(
                f"{FEATURES} features",
                lambda x, y, seed: rff.estimates(x, y, [WIDTH], features=FEATURES, seed=seed)[0].value,
                0,
                (math.nan, math.nan),
                1,
            )
        )
    return found


def theory(kind: Estimator, scale: float, v_x: float, v_y: float) -> float:
    n, m = kind.rows
    at_null = scale * (2 / (n * (n - 1)) + 2 / (m * (m - 1)) + 4 / (n * m)) / kind.parts
    return math.sqrt(at_null + (4 * v_x / n + 4 * v_y / m) / kind.parts)


def table(n: int, m: int, f: int, trials: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds, score = estimators(n, m, f), exact(f)
    values = np.empty((len(kinds), 2, trials))
    moments = np.empty((3, trials))
    for t in range(trials):
        rows = torch.from_numpy(rng.normal(size=(n + m, DIM)).astype(np.float32))
        x, same = rows[:n], rows[n:]
        for k, kind in enumerate(kinds):
            for drifted, y in enumerate((same, same + SHIFT)):
                values[k, drifted, t] = kind.value(x, y, seed + t)
        if t < 20:
            drift = score(x, same + SHIFT)
            scale = null_scale(kernels.self_sums(prepared(x), bandwidths=[WIDTH] * f), f)
            noise = scale * (1 / n + 1 / m)  # of an influence value, from as many partners as it has
            moments[:, t] = scale, float(drift.a.var()) - noise, float(drift.b.var()) - noise
    scale, v_x, v_y = moments[:, : min(trials, 20)].mean(axis=1)
    name = f"MMD^2 at {WIDTH}" if f else "energy"
    print(f"\n{name}, {n:,} against {m:,} rows, {trials} trials")
    print(f"{'':<20}{'pairs':>12}{'null sd':>11}{'theory':>11}{'drift':>10}{'drift sd':>11}{'theory':>11}{'z':>7}")
    for kind, (null, drifted_values) in zip(kinds, values, strict=True):
        sd, mean = null.std(ddof=1), drifted_values.mean()
        print(
            f"{kind.name:<20}{kind.pairs:>12,}{sd:>11.3g}{theory(kind, scale, 0, 0):>11.3g}{mean:>10.4g}"
            f"{drifted_values.std(ddof=1):>11.3g}{theory(kind, scale, v_x, v_y):>11.3g}{mean / sd:>7.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1600, help="rows of both sides together are twice as many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    m = 2 * options.rows // 13
    for n, of_y in ((options.rows, options.rows), (12 * m, m)):
        for f in (0, 1):
            table(n, of_y, f, options.trials, options.seed)


if __name__ == "__main__":
    main()
