"""Block averages are averages of blocks' U-statistics, and the rule of a budget is a pure function that keeps to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpudrift import kernels
from gpudrift.errors import ArgumentError
from gpudrift.estimators import (
    FEWEST,
    BlockEstimate,
    BlockSums,
    block_estimate,
    block_sums,
    choose_blocks,
    choose_estimator,
    deal,
    pairs_of,
    t_quantile,
)
from gpudrift.kernels import Prepared
from gpudrift.metrics.pairs import estimate, null_scale, null_sd

WIDTHS = (0.8, 2.0)
Places = tuple[torch.Tensor, torch.Tensor]


def prepared(rows: np.ndarray, codes: np.ndarray | None = None) -> Prepared:
    clusters = None if codes is None else torch.from_numpy(codes)
    return kernels.prepare(torch.from_numpy(rows), precision="float64", clusters=clusters)


def all_sums(
    x: Prepared,
    y: Prepared,
    blocks: int,
    places: Places | None = None,
    tile: tuple[int, int] | None = None,
    widths: tuple[float, ...] = WIDTHS,
) -> tuple[BlockSums, BlockSums, BlockSums]:
    mirrored = None if places is None else places[::-1]
    kept = {"bandwidths": widths, "tile": tile}
    return (
        block_sums(x, None, blocks, places=places, **kept),  # type: ignore[arg-type]
        block_sums(y, None, blocks, places=mirrored, **kept),  # type: ignore[arg-type]
        block_sums(x, y, blocks, places=places, **kept),  # type: ignore[arg-type]
    )


def matrix(x: np.ndarray, y: np.ndarray, f: int) -> np.ndarray:
    """The pair function: minus the distance, or an RBF."""
    distances = np.linalg.norm(x[:, None] - y[None], axis=-1)
    return -distances if f == 0 else np.exp(-(distances**2) / (2 * WIDTHS[f - 1] ** 2))


def dense_block(
    x: np.ndarray, y: np.ndarray, f: int, of_x: np.ndarray | None = None, of_y: np.ndarray | None = None
) -> float:
    """The U-statistic of one block from the matrices themselves, pairs of one cluster left out."""
    of_x = np.arange(len(x)) if of_x is None else of_x
    of_y = len(x) + np.arange(len(y)) if of_y is None else of_y

    def mean(a: np.ndarray, b: np.ndarray, codes: tuple[np.ndarray, np.ndarray]) -> float:
        keep = codes[0][:, None] != codes[1][None]
        return float((matrix(a, b, f) * keep).sum() / keep.sum())

    return mean(x, x, (of_x, of_x)) + mean(y, y, (of_y, of_y)) - 2 * mean(x, y, (of_x, of_y))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_block_average_is_the_mean_of_the_blocks(seed: int, blocks: int, more: int, also: int, mixed: bool) -> None:
    """Of any sizes, dealt in turn or at random, both kinds of pair function; its influence values average to it."""
    rng = np.random.default_rng(seed)
    n, m = 2 * blocks + more, 3 * blocks + also
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.5
    places = deal(n, m, blocks, seed=seed) if mixed else None
    in_x, in_y = deal(n, m, blocks) if places is None else places
    sums = all_sums(prepared(x), prepared(y), blocks, places)
    for f in range(3):
        wanted = [dense_block(x[in_x == b], y[in_y == b], f) for b in range(blocks)]
        found = block_estimate(*sums, f)
        np.testing.assert_allclose(found.values, wanted, atol=1e-12)
        assert found.pair.value == pytest.approx(np.mean(wanted), abs=1e-12)
        assert found.pair.se == pytest.approx(np.std(wanted, ddof=1) / math.sqrt(blocks), abs=1e-12)
        assert float(found.pair.a.mean() + found.pair.b.mean()) == pytest.approx(np.mean(wanted), abs=1e-12)
        assert math.isnan(found.pair.variance)
        assert math.isnan(found.pair.v_value)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_clusters_stay_together_and_their_pairs_are_left_out(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(36, 2)) + 0.3
    # some clusters on both sides, some on one, of unlike sizes
    of_x, of_y = rng.integers(0, 20, 40), 10 + rng.integers(0, 20, 36) ** 2 // 19
    in_x, in_y = deal(40, 36, blocks, clusters_x=torch.from_numpy(of_x), clusters_y=torch.from_numpy(of_y), seed=seed)
    for code in np.union1d(of_x, of_y):
        assert len({*in_x[of_x == code].tolist(), *in_y[of_y == code].tolist()}) == 1
    sums = all_sums(prepared(x, of_x), prepared(y, of_y), blocks, (in_x, in_y))
    for f in range(3):
        wanted = [dense_block(x[in_x == b], y[in_y == b], f, of_x[in_x == b], of_y[in_y == b]) for b in range(blocks)]
        found = block_estimate(*sums, f)
        np.testing.assert_allclose(found.values, wanted, atol=1e-12)
        assert float(found.pair.a.mean() + found.pair.b.mean()) == pytest.approx(np.mean(wanted), abs=1e-12)


def test_sums_of_blocks_of_one_size_are_plain_row_sums_in_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(45, 2))
    xx, _, xy = all_sums(prepared(x), prepared(y), 3)
    for f in range(3):
        sign = -1 if f == 0 else 1
        same = np.arange(30)[:, None] % 3 == np.arange(30)[None] % 3
        k = sign * matrix(x, x, f) * (same & ~np.eye(30, dtype=bool))
        np.testing.assert_allclose(xx.sums.rows[f], k.sum(1), atol=1e-12)
        np.testing.assert_allclose(xx.sums.squares[f], (k**2).sum(), rtol=1e-12)
        between = sign * matrix(x, y, f) * (np.arange(30)[:, None] % 3 == np.arange(45)[None] % 3)
        np.testing.assert_allclose(xy.sums.rows[f], between.sum(1), atol=1e-12)
        np.testing.assert_allclose(xy.sums.columns[f], between.sum(0), atol=1e-12)
        assert float(xy.sums.total[f]) == pytest.approx(between.sum(), rel=1e-12)
    assert (xx.sums.pairs, xy.sums.pairs) == (3 * 10 * 9, 3 * 10 * 15)
    assert xx.sums.columns is xx.sums.rows
    assert bool(xy.scales.isnan().all())


def test_one_block_is_the_exact_statistic() -> None:
    rng = np.random.default_rng(2)
    x, y = prepared(rng.normal(size=(31, 3))), prepared(rng.normal(size=(27, 3)))
    sums = all_sums(x, y, 1)
    exact = [kernels.self_sums(c, bandwidths=WIDTHS) for c in (x, y)]
    across = kernels.cross_sums(x, y, bandwidths=WIDTHS)
    for f in range(3):
        found = estimate(*(part.sums for part in sums), f)
        wanted = estimate(exact[0], exact[1], across, f)
        assert (found.value, found.variance, found.null_sd) == (wanted.value, wanted.variance, wanted.null_sd)
    with pytest.raises(ArgumentError, match="two blocks"):
        block_estimate(*sums, 0)


def test_the_size_of_a_tile_changes_nothing_but_rounding() -> None:
    rng = np.random.default_rng(3)
    x, y = prepared(rng.normal(size=(50, 4))), prepared(rng.normal(size=(41, 4)))
    one, other = (block_estimate(*all_sums(x, y, 4, tile=tile), 1) for tile in ((3, 5), (64, 64)))
    assert one.pair.value == pytest.approx(other.pair.value, rel=1e-12)
    np.testing.assert_allclose(one.pair.b, other.pair.b, atol=1e-13)


def test_progress_counts_every_pair_that_the_rule_counted() -> None:
    rng = np.random.default_rng(4)
    x, y = prepared(rng.normal(size=(70, 2))), prepared(rng.normal(size=(53, 2)))
    chosen = choose_blocks(70, 53, 600, least_block=4)
    done = {"self": 0, "cross": 0}
    for part in (x, y):
        done["self"] += int(block_sums(part, None, chosen.blocks).sums.pairs)
    done["cross"] += int(block_sums(x, y, chosen.blocks).sums.pairs)
    assert chosen.pairs == done["self"] // 2 + done["cross"] <= 600


def test_the_null_sd_is_c_of_a_block_over_the_root_of_their_number() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(90, 3))
    sums = all_sums(prepared(x), prepared(y), 6)
    for f in range(3):
        blocks = [kernels.self_sums(prepared(x[b::6]), bandwidths=WIDTHS) for b in range(6)]
        scale = np.mean([null_scale(block, f) for block in blocks])
        assert block_estimate(*sums, f).pair.null_sd == pytest.approx(null_sd(scale, 10, 15) / math.sqrt(6), rel=1e-12)


def draws(count: int, blocks: int, shift: float, users: bool = False) -> list[BlockEstimate]:
    rng = np.random.default_rng(6)
    found = []
    for _ in range(count):
        x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + shift
        codes, places = None, None
        if users:  # of 1 to 9 rows; nothing but their number in common
            codes = np.repeat(np.arange(24), rng.permutation(np.repeat([1, 1, 3, 5], 6)))[:60]
            clusters = torch.from_numpy(codes)
            places = deal(60, 60, blocks, clusters_x=clusters, clusters_y=clusters + 100, seed=0)
        cx, cy = prepared(x, codes), prepared(y, None if codes is None else codes + 100)
        found.append(block_estimate(*all_sums(cx, cy, blocks, places, widths=()), 0))
    return found


@pytest.mark.parametrize("users", [False, True])
def test_at_the_null_it_is_centred_with_the_spread_it_says(users: bool) -> None:
    """With users blocks are of unlike sizes."""
    found = draws(200, 4, 0.0, users)
    values = np.array([one.pair.value for one in found])
    said = np.array([one.pair.null_sd for one in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(200)
    assert values.std() == pytest.approx(said.mean(), rel=0.2)  # sd of an sd from 200 draws: .05
    inside = np.mean([low <= 0 <= high for low, high in (one.interval() for one in found)])
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 200))


def test_under_drift_the_interval_covers_the_energy_distance() -> None:
    found = draws(200, 6, 0.5)
    # of two normal clouds a distance of 1 apart in 4 dimensions, by a million draws of other rows
    rng = np.random.default_rng(7)
    z, w = rng.normal(size=(10**6, 4)), rng.normal(size=(10**6, 4))
    truth = 2 * np.mean(np.linalg.norm(z - w + 0.5, axis=1) - np.linalg.norm(z - w, axis=1))
    inside = np.mean([low <= truth <= high for low, high in (one.interval() for one in found)])
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 200))


def test_the_interval_is_student_s() -> None:
    found = draws(1, 5, 0.2)[0]
    low, high = found.interval(0.9)
    wanted = stats.t.interval(0.9, 4, loc=float(found.values.mean()), scale=stats.sem(found.values.numpy()))
    assert (low, high) == pytest.approx(wanted, rel=1e-9)
    for dof in (1, 7, 999, 1000, 10**6):
        assert t_quantile(0.975, dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=2e-3 if dof >= 1000 else 1e-9)


# dealing -----------------------------------------------------------------------------------------------------------


def test_rows_are_dealt_in_turn_or_by_seed() -> None:
    in_x, in_y = deal(7, 5, 3)
    assert (in_x.tolist(), in_y.tolist()) == ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 0, 1])
    one, again, other = (deal(1000, 10, 3, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.bincount(one).tolist() == [334, 333, 333]
    with pytest.raises(ArgumentError, match="number of blocks"):
        deal(7, 5, 6)


def test_clusters_are_spread_evenly_by_side_and_size() -> None:
    rng = np.random.default_rng(8)
    sizes = rng.zipf(1.7, 300).clip(max=60)
    first, both, last = np.split(np.repeat(np.arange(300), sizes), np.cumsum(sizes)[[99, 199]])
    of_x, of_y = np.r_[first, both[::2]], np.r_[both[1::2], last]
    blocks = 5
    codes = [torch.from_numpy(side) for side in (of_x, of_y)]
    in_x, in_y = deal(len(of_x), len(of_y), blocks, clusters_x=codes[0], clusters_y=codes[1], seed=3)
    for where, labels, others in ((in_x, of_x, of_y), (in_y, of_y, of_x)):
        rows = np.bincount(where, minlength=blocks)
        assert rows.max() < 1.25 * rows.mean()  # the largest cluster has 60 rows
        of_one_side = [len(set(labels[where == b]) - set(others)) for b in range(blocks)]
        assert max(of_one_side) - min(of_one_side) <= 2
    again = deal(len(of_x), len(of_y), blocks, clusters_x=codes[0], clusters_y=codes[1], seed=3)
    assert torch.equal(again[0], in_x)
    # the largest cluster may land anywhere
    largest = {int(deal(60, 60, 4, clusters_x=c, clusters_y=c, seed=s)[0][0]) for s in range(40) for c in [LARGE]}
    assert largest == {0, 1, 2, 3}


LARGE = torch.tensor([0] * 20 + list(range(1, 41)))


def test_blocks_without_pairs_and_clusters_without_places_are_refused() -> None:
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(12, 2))
    with pytest.raises(ArgumentError, match="no pair of rows\n"):
        block_sums(prepared(rows), None, 9)
    codes = np.arange(12) // 4
    with pytest.raises(ArgumentError, match="belong in one block"):
        block_sums(prepared(rows, codes), None, 3)
    clusters = torch.from_numpy(codes)
    with pytest.raises(ArgumentError, match="of different clusters"):
        block_sums(prepared(rows, codes), None, 3, places=deal(12, 12, 3, clusters_x=clusters, clusters_y=clusters))


# the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "budget", "wanted"),
    [
        (100, 100, 1e10, ("exact", 1, 19_900)),
        (70_000, 71_421, 1e10, ("exact", 1, 9_999_878_910)),
        (100_000, 100_000, 1e10, ("block", 8, 2_499_900_000)),
        (1_000_000, 1_000_000, 1e10, ("block", 200, 9_999_000_000)),
        (1_000_000, 1_000_000, 1e13, ("exact", 1, 1_999_999_000_000)),
        (2_000_001, 1_000_000, 1e10, ("block", 451, 9_976_333_858)),
    ],
)
def test_the_rule_in_numbers(n: int, m: int, budget: float, wanted: tuple[str, int, int]) -> None:
    """A change of these is a change of what a configuration means on every machine."""
    found = choose_estimator(n, m, budget)
    assert (found.method, found.blocks, found.pairs) == wanted
    assert f"budget of {budget:.4g}" in found.reason


@settings(max_examples=300)
@given(st.integers(2, 10**7), st.integers(2, 10**7), st.floats(1, 1e15), st.integers(2, 5000))
def test_the_rule_keeps_to_the_budget_with_as_few_blocks_as_it_can(n: int, m: int, budget: float, least: int) -> None:
    most = min(n, m) // least
    if pairs_of(n, m) > budget and (most < FEWEST or pairs_of(n, m) / most > budget):
        with pytest.raises(ArgumentError, match="field: pairs"):
            choose_estimator(n, m, budget, least_block=least)
        return
    found = choose_estimator(n, m, budget, least_block=least)
    assert found.pairs <= budget
    assert (found.method == "exact") == (pairs_of(n, m) <= budget)
    assert found.pairs == _cost(n, m, found.blocks)
    if found.method == "block":
        assert FEWEST <= found.blocks <= most
        assert found.blocks == FEWEST or pairs_of(n, m) / (found.blocks - 1) > budget


def _cost(n: int, m: int, blocks: int) -> int:
    """Pairs of blocks dealt in turn, by the sizes that occur."""
    total = 0
    bounds = sorted({0, n % blocks, m % blocks, blocks})
    for start, end in itertools.pairwise(bounds):
        rows = n // blocks + (start < n % blocks) + m // blocks + (start < m % blocks)
        total += (end - start) * (rows * (rows - 1) // 2)
    return total


def test_a_budget_that_nothing_fits_is_refused_with_one_that_fits() -> None:
    for n, m, budget in ((50_000, 9000, 1e6), (10**6, 3000, 1e9)):
        with pytest.raises(ArgumentError, match="fits the budget") as caught:
            choose_estimator(n, m, budget)
        allowed = float(str(caught.value.allowed).removesuffix(" or more").replace(",", ""))
        found = choose_estimator(n, m, allowed)
        assert found.pairs <= allowed
        with pytest.raises(ArgumentError):
            choose_estimator(n, m, 0.99 * allowed)


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(ArgumentError) as caught:
        choose_estimator(100, 100, budget)
    assert caught.value.field == "pairs"


def test_the_rule_needs_two_rows_a_side() -> None:
    with pytest.raises(ArgumentError) as caught:
        choose_estimator(1, 100, 1e6)
    assert (caught.value.field, caught.value.value) == ("n", 1)
