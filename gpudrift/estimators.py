"""Which estimator a budget of row pairs allows, and block averages: all rows, fewer pairs.

A block average deals the rows of x and y to L blocks, takes the U-statistic of each block (x rows of the block against
its y rows) and averages: (n + m)^2 / (2 L) pairs instead of (n + m)^2 / 2, no bias, and blocks that are independent, so
that the sd over blocks / sqrt(L) is a standard error and the interval one of Student's t with L - 1 degrees of freedom
(Zaremba, Gretton and Blaschko 2013, NeurIPS, the B-test; theirs has a fixed block size). With s^2 the null scale
(``metrics.pairs.null_scale``) and v the variances of the influence values, its variance is

    s^2 / L^2  sum over blocks of (2 / (n_b (n_b - 1)) + 2 / (m_b (m_b - 1)) + 4 / (n_b m_b))  +  4 v_x / n + 4 v_y / m

The first part, all there is where nothing drifts, is L times that of all pairs: as large as from a sample of so many
pairs. The second, which rules where something drifts, is that of all rows. docs/estimators.md has measured values.

Every block counts alike, whatever its rows: weights by pairs would differ between the sums within x, within y and
between them, and leave a term of order v / n at the null, where the U-statistic of each block has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.kernels import PairSums, Prepared
from gpudrift.kernels.layout import no_labels
from gpudrift.metrics.pairs import PairEstimate, estimate, null_scale
from gpudrift.student_t import student_t_quantile

# Blocks that a budget is spread over at least. At the null the width of the interval grows as t(L - 1) sqrt(L), least
# at 5 blocks and 8% above that at 8; where something drifts, as t(L - 1): 21% above the normal one at 8, 42% at 5.
FEWEST = 8
NORMAL_FROM = 1000  # degrees of freedom from which Student's t is the normal distribution to 0.1%


@dataclass(frozen=True)
class EstimatorChoice:
    """What ``choose_estimator`` found. method: "exact" or "block". blocks: L, 1 for exact. pairs: row pairs that are
    computed, each counted once. reason: one clause for people."""

    method: str
    blocks: int
    pairs: int
    reason: str


@dataclass(frozen=True)
class BlockSums:
    """Pair sums within blocks.

    sums: a ``PairSums`` in the order of the rows given, of which ``metrics.pairs.estimate`` makes the block average and
    its influence values. rows, columns: each row's sum over its own block, times P / (L P_b), so that blocks count
    alike (1 for blocks of one size), P_b the pairs of its block and P = ``pairs`` their sum; total: sums of these.
    squares: of all pairs summed. blocks (F, L, 1), block_pairs (L, 1): plain sums and pairs of each block.
    scales: (F,) mean over blocks of x's null scale; NaN for cross sums.
    """

    sums: PairSums
    scales: Tensor


@dataclass(frozen=True)
class BlockEstimate:
    """A block average. pair: value, influence values a (n,), b (m,), se by blocks, and null_sd, c of the average; its
    v_value and variance are NaN. values: (L,) float64, the U-statistic of each block."""

    pair: PairEstimate
    values: Tensor

    @property
    def dof(self) -> int:
        return len(self.values) - 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Value plus and minus the t(L - 1) quantile times se."""
        width = t_quantile((1 + level) / 2, self.dof) * self.pair.se
        return self.pair.value - width, self.pair.value + width


def choose_estimator(n: int, m: int, budget: float, *, least_block: int = 1000) -> EstimatorChoice:
    """All pairs where they fit the budget, else the fewest blocks that do, ``FEWEST`` at least.

    A pure function of the rows and the budget: the same on every machine, whatever its device and free memory.

    Args:
        n, m: rows of x and y, 2 or more.
        budget: row pairs, each counted once: all pairs of n and m rows are (n + m)(n + m - 1) / 2.
        least_block: rows a block holds at least on either side: below about 1,000 pairs cost less than starting on a
            block does.

    Raises:
        ArgumentError: blocks of ``least_block`` rows exceed the budget too, or the smaller side has too few rows for
            ``FEWEST`` of them.
    """
    for name, value, least in (("n", n, 2), ("m", m, 2), ("least_block", least_block, 2)):
        if value < least:
            raise ArgumentError("too few rows", field=name, value=value, allowed=f"{least} or more")
    everything = pairs_of(n, m)
    if everything <= _usable(budget):
        return EstimatorChoice("exact", 1, everything, f"all {everything:,} pairs fit the budget of {budget:.4g}")
    found = choose_blocks(n, m, budget, least_block=least_block)
    return replace(found, reason=f"{found.reason}: all {everything:,} pairs exceed the budget of {budget:.4g}")


def choose_blocks(n: int, m: int, budget: float, *, least_block: int) -> EstimatorChoice:
    """The fewest blocks whose pairs fit the budget, ``FEWEST`` at least. As ``choose_estimator``."""
    everything = pairs_of(n, m)
    # pairs fall faster than 1 / L, by more than sizes that differ by 1 add: so many blocks fit
    blocks = max(FEWEST, math.ceil(everything / _usable(budget)))
    most = min(n, m) // least_block
    if blocks > most:
        fitting = -(-everything // most) if most >= FEWEST else everything
        raise ArgumentError(
            f"no estimate from all of {n:,} and {m:,} rows fits the budget",
            field="pairs",
            value=budget,
            allowed=f"{fitting:,} or more",
            hint=f"a block average needs {FEWEST} blocks or more of {least_block:,} rows or more of each side; "
            "or pass a sample of the rows: of the larger side first",
        )
    reason = f"{blocks:,} blocks of about {n // blocks:,} and {m // blocks:,} rows"
    return EstimatorChoice("block", blocks, _block_pairs(n, m, blocks), reason)


def pairs_of(n: int, m: int) -> int:
    """All row pairs of a comparison, each counted once: within x, within y and between them."""
    return _pairs(n + m)


def deal(
    n: int,
    m: int,
    blocks: int,
    *,
    seed: int | None = None,
    clusters_x: Tensor | None = None,
    clusters_y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The block of each row of x (n,) and of y (m,), int64, 0 to blocks - 1.

    Without clusters rows are dealt in turn, in their order (canonical order is pseudo-random already) or, with a seed,
    in a random one: sizes differ by 1 at most. With clusters (n,) and (m,) codes, a cluster's rows of both sides go to
    one block: clusters of one side and of both, and large and small ones, are spread evenly, by chance among equals.
    """
    if not 1 <= blocks <= min(n, m):
        raise ArgumentError("unusable number of blocks", field="blocks", value=blocks, allowed=f"1 to {min(n, m):,}")
    rng = np.random.default_rng(0 if seed is None else seed)
    if clusters_x is not None and clusters_y is not None:
        return _deal_clusters(clusters_x, clusters_y, blocks, rng)
    found = []
    for rows in (n, m):
        places = np.arange(rows, dtype=np.int64) % blocks
        if seed is not None:
            places = rng.permutation(places)
        found.append(torch.from_numpy(places))
    return found[0], found[1]


def block_sums(
    x: Prepared,
    y: Prepared | None,
    blocks: int,
    *,
    places: tuple[Tensor, Tensor] | None = None,
    bandwidths: Sequence[float] = (),
    progress: kernels.Progress | None = None,
    tile: tuple[int, int] | None = None,
) -> BlockSums:
    """Sums over the pairs within blocks: of x and y, or (y None) of x with itself. One block is copied at a time.

    Args:
        x, y: prepared clouds as for ``kernels.cross_sums``; their groups are not looked at.
        blocks: L. places: of ``deal``, (n,) and (m,), the same for the three sums of one estimate; only the first is
            used where y is None. None: by position; with clusters it must be given.
        bandwidths, progress, tile: as for ``kernels.cross_sums``.

    Raises:
        ArgumentError: a block without a pair (of different clusters).
    """
    if places is None:
        if x.clusters is not None:
            raise ArgumentError("rows of one cluster belong in one block", field="places", allowed="those of deal()")
        places = deal(len(x), len(x if y is None else y), blocks)
    functions, n = 1 + len(bandwidths), len(x)
    rows = torch.empty(functions, n, dtype=torch.float64)
    columns = rows if y is None else torch.empty(functions, len(y), dtype=torch.float64)
    totals = torch.empty(functions, blocks, dtype=torch.float64)
    scales = torch.full((functions, blocks), math.nan, dtype=torch.float64)
    pairs = torch.empty(blocks, dtype=torch.float64)
    squares = torch.zeros(functions, dtype=torch.float64)
    of_x = _members(places[0], blocks)
    of_y = of_x if y is None else _members(places[1], blocks)
    for b, (own, other) in enumerate(zip(of_x, of_y, strict=True)):
        part = _part(x, own)
        if y is None:
            found = kernels.self_sums(part, bandwidths=bandwidths, progress=progress, tile=tile)
        else:
            found = kernels.cross_sums(part, _part(y, other), bandwidths=bandwidths, progress=progress, tile=tile)
            columns[:, other] = found.columns
        if not found.pairs > 0:
            raise ArgumentError(
                f"block {b} of {blocks} holds no pair of rows" + " of different clusters" * (x.clusters is not None),
                field="blocks",
                value=blocks,
                allowed="fewer blocks, so that each has two rows of each side or more",
            )
        if y is None:
            of_block = [null_scale(found, f, part.clusters) for f in range(functions)]
            scales[:, b] = torch.tensor(of_block, dtype=torch.float64)
        rows[:, own] = found.rows
        totals[:, b], pairs[b] = found.total, found.pairs
        squares += found.squares
    whole = float(pairs.sum())
    if not bool((pairs == pairs[0]).all()):
        weights = whole / (blocks * pairs)
        rows *= weights[places[0].cpu()]
        if y is not None:
            columns *= weights[places[1].cpu()]
    sums = PairSums(
        bandwidths=tuple(bandwidths),
        total=rows.sum(1),
        rows=rows,
        columns=columns,
        squares=squares,
        blocks=totals[:, :, None],
        pairs=whole,
        block_pairs=pairs[:, None],
        labels=no_labels(functions),
    )
    return BlockSums(sums, scales.mean(1))


def block_estimate(xx: BlockSums, yy: BlockSums, xy: BlockSums, f: int) -> BlockEstimate:
    """The block average of pair function f (0: energy; 1, 2, ...: MMD^2 at that bandwidth); L >= 2.

    mean a + mean b is the average of the blocks' U-statistics: contributions by row, segment or cluster add up as those
    of the exact statistic do.
    """
    sign = -1.0 if f == 0 else 1.0
    values = sign * (_means(xx, f) + _means(yy, f) - 2 * _means(xy, f))
    blocks = len(values)
    if blocks < 2:
        raise ArgumentError("a standard error needs two blocks", field="blocks", value=blocks, allowed="2 or more")
    scale = max(float(xx.scales[f]), 0.0)  # NaN, below 4 rows a block, stays NaN
    shares = [part.sums.block_pairs[:, 0].reciprocal().sum() for part in (xx, yy, xy)]
    at_null = math.sqrt(scale * float(2 * shares[0] + 2 * shares[1] + 4 * shares[2])) / blocks
    pair = replace(
        estimate(xx.sums, yy.sums, xy.sums, f),
        v_value=math.nan,
        variance=math.nan,
        se=float(values.std()) / math.sqrt(blocks),
        null_sd=at_null,
    )
    return BlockEstimate(pair, values)


def t_quantile(p: float, dof: int) -> float:
    """The quantile of Student's t, for many degrees of freedom the normal one."""
    return NormalDist().inv_cdf(p) if dof >= NORMAL_FROM else student_t_quantile(p, dof)


def _means(part: BlockSums, f: int) -> Tensor:
    """(L,) mean of the pair function in each block."""
    return part.sums.blocks[f, :, 0] / part.sums.block_pairs[:, 0]


def _members(places: Tensor, blocks: int) -> list[Tensor]:
    """The positions of each block's rows, ascending."""
    places = places.cpu()
    sizes = torch.bincount(places, minlength=blocks)
    return list(torch.split(places.argsort(stable=True), sizes.tolist()))


def _part(cloud: Prepared, positions: Tensor) -> Prepared:
    """A copy of some rows, as one group."""
    return replace(
        cloud,
        rows=cloud.rows[positions.to(cloud.rows.device)],
        norms=cloud.norms[positions.to(cloud.norms.device)],
        offsets=(0, len(positions)),
        clusters=None if cloud.clusters is None else cloud.clusters[positions.to(cloud.clusters.device)],
    )


def _deal_clusters(
    clusters_x: Tensor, clusters_y: Tensor, blocks: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    n = len(clusters_x)
    _, places = np.unique(torch.cat([clusters_x.cpu(), clusters_y.cpu()]).numpy(), return_inverse=True)
    sizes = np.bincount(places)
    count = len(sizes)
    sides = (np.bincount(places[:n], minlength=count) > 0) + 2 * (np.bincount(places[n:], minlength=count) > 0)
    drawn = rng.permutation(count)
    order = drawn[np.lexsort((-sizes[drawn], sides[drawn]))]
    # in hands of one cluster a block; within a hand any block may get any of them, or the first would get the largest
    hands = rng.random((-(-count // blocks), blocks)).argsort(axis=1)
    block = np.empty(count, dtype=np.int64)
    block[order] = hands.ravel()[:count]
    found = torch.from_numpy(block[places])
    return found[:n], found[n:]


def _usable(budget: float) -> float:
    if not (math.isfinite(budget) and budget > 0):
        raise ArgumentError("unusable budget of row pairs", field="pairs", value=budget, allowed="a positive number")
    return budget


def _pairs(rows: int) -> int:
    return rows * (rows - 1) // 2


def _block_pairs(n: int, m: int, blocks: int) -> int:
    """Pairs within the blocks of rows dealt in turn: the first n mod L of them have one more row of x, y alike."""
    size, more = (n // blocks + m // blocks), sorted((n % blocks, m % blocks))
    both, one = more[0], more[1] - more[0]
    return both * _pairs(size + 2) + one * _pairs(size + 1) + (blocks - both - one) * _pairs(size)
