"""What a sketch holds, against numpy; merged in any grouping, cut into any batches; what is refused changes nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_sketch import SETTINGS, assert_same, cloud, ids_of, plan_of, sketch_of

from gpudrift.errors import ArgumentError, DataError, RangeError, ReferenceMismatchError
from gpudrift.sketch import Sketch, SketchPlan


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_moments_are_those_of_the_rows(offset: float) -> None:
    x = cloud(400, offset=offset)
    plan = plan_of(x)
    sketch = sketch_of(plan, x)
    exact = x.astype(np.float64)
    d = plan.dim
    np.testing.assert_allclose(sketch.moments.mean[:d].numpy() + plan.mean.numpy(), exact.mean(0), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(
        sketch.moments.covariance()[:d, :d].numpy(), np.cov(exact.T), rtol=1e-6, atol=1e-7 * np.cov(exact.T).max()
    )


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_double_rows_keep_their_bits_far_from_the_reference(shift: float) -> None:
    """Sums of squares about the pinned mean alone would lose eight digits at a shift of 10,000 sd."""
    plan = plan_of(cloud(301))
    y = cloud(500, seed=3).astype(np.float64) + shift
    sketch = Sketch.empty(plan)
    for start in range(0, 500, 70):
        sketch.update(torch.from_numpy(y[start : start + 70]), ids_of(start, len(y[start : start + 70])))
    covariance = sketch.moments.covariance()[: plan.dim, : plan.dim].numpy()
    np.testing.assert_allclose(covariance, np.cov(y.T), rtol=1e-9, atol=1e-10 * covariance.max())


def test_the_two_further_columns_hold_square_and_residual(plan: SketchPlan) -> None:
    y = cloud(200, seed=1, shift=0.3)
    sketch = sketch_of(plan, y)
    u = (y - plan.mean.numpy()).astype(np.float32).astype(np.float64)
    square = (u**2).sum(1)
    residual = square - ((u @ plan.axes.T.numpy()) ** 2).sum(1)
    columns = np.column_stack([u, square - plan.total_variance, residual - plan.residual])
    np.testing.assert_allclose(sketch.moments.covariance().numpy(), np.cov(columns.T), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sketch.moments.mean.numpy(), columns.mean(0), rtol=1e-9, atol=1e-12)


def test_histograms_count_and_sum_the_scores(plan: SketchPlan) -> None:
    y = cloud(500, seed=1, spread=3.0)
    sketch = sketch_of(plan, y)
    scores = (y - plan.mean.numpy()).astype(np.float32).astype(np.float64) @ plan.axes[:3].T.numpy()
    for k in range(3):
        edges = np.r_[-np.inf, plan.cuts[k].numpy(), np.inf]
        np.testing.assert_array_equal(sketch.sums["histograms.counts"][k].numpy(), np.histogram(scores[:, k], edges)[0])
        sums = np.histogram(scores[:, k], edges, weights=scores[:, k])[0]
        np.testing.assert_allclose(sketch.sums["histograms.sums"][k].numpy(), sums, rtol=1e-9, atol=1e-9)
        assert sketch.sums["histograms.counts"][k][[0, -1]].min() > 0  # both open ends are in use
        np.testing.assert_allclose(sketch.extent[:, k].numpy(), [scores[:, k].min(), scores[:, k].max()], rtol=1e-12)


def test_norms_are_those_of_the_rows_as_they_came(plan: SketchPlan) -> None:
    y = cloud(300, seed=2)
    y[:100] /= np.linalg.norm(y[:100], axis=1, keepdims=True)
    y[100] = 0.0
    sketch = sketch_of(plan, y)
    norms = np.linalg.norm(y.astype(np.float64), axis=1)
    np.testing.assert_allclose(sketch.sums["norms.sums"].numpy(), [norms.sum(), (norms**2).sum()], rtol=1e-12)
    counts = sketch.sums["norms.counts"]
    assert (int(counts[0]), int(counts[161]), int(counts.sum())) == (1, 100, 300)  # zero, one, all


def test_features_are_sines_and_cosines_by_block_of_rows(plan: SketchPlan) -> None:
    from gpudrift.sketch.reservoir import keys_of

    y = cloud(150, seed=4)
    sketch = sketch_of(plan, y)
    u = (y - plan.mean.numpy()).astype(np.float32).astype(np.float64)
    blocks = keys_of(torch.from_numpy(y), ids_of(0, 150), plan.seed) % np.uint64(32)
    assert np.array_equal(np.bincount(blocks.astype(int), minlength=32), sketch.sums["features.counts"].numpy())
    for b, width in enumerate(plan.bandwidths):
        angles = u @ plan.frequencies.T.numpy() / width
        for block in range(32):
            rows = angles[blocks == block]
            found = sketch.sums["features"][block, b].numpy()
            np.testing.assert_allclose(found, [np.sin(rows).sum(0), np.cos(rows).sum(0)], atol=1e-10)


def test_bandwidths_of_any_ratio_and_order_are_served() -> None:
    from dataclasses import replace

    x = cloud(120)
    doubled = plan_of(x)
    between = 0.7 * doubled.bandwidths[3]
    widths = (doubled.bandwidths[2], between, doubled.bandwidths[3], doubled.bandwidths[2], doubled.bandwidths[1])
    mixed = replace(doubled, bandwidths=widths)
    plain, other = sketch_of(doubled, x).sums["features"], sketch_of(mixed, x).sums["features"]
    for place, same in ((0, 2), (2, 3), (3, 2), (4, 1)):
        torch.testing.assert_close(other[:, place], plain[:, same], rtol=0, atol=1e-10)
    angles = (torch.from_numpy(x) - doubled.mean).float().double() @ doubled.frequencies.T / between
    torch.testing.assert_close(other[:, 1].sum(0), torch.stack([angles.sin().sum(0), angles.cos().sum(0)]))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_rows_of_other_float_types(plan: SketchPlan, kind: type) -> None:
    y = cloud(90, seed=5).astype(np.float16)
    wanted = sketch_of(plan, y.astype(np.float32))
    found = Sketch.empty(plan)
    found.update(torch.from_numpy(y.astype(kind)), ids_of(0, 90))
    # float64 is not rounded after centring
    assert_same(wanted, found, rel=1e-10 if kind is np.float16 else 1e-6)


# -- grouping ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_any_batches_and_any_tree_of_merges_equal_one_pass(plan: SketchPlan, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 160))
    x = cloud(n, seed=data.draw(st.integers(0, 5)), shift=data.draw(st.sampled_from([0.0, 3.0, 1e3])))
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(n)
    ids = ids_of(0, n)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    shards = []
    for places in np.split(order, cuts):
        shard = Sketch.empty(plan)
        step = data.draw(st.integers(1, 50))
        for start in range(0, len(places), step):
            taken = places[start : start + step]
            shard.update(torch.from_numpy(x[taken]), ids.take(pa.array(taken)))
        shards.append(shard)
    while len(shards) > 1:
        a = shards.pop(data.draw(st.integers(0, len(shards) - 1)))
        b = shards.pop(data.draw(st.integers(0, len(shards) - 1)))
        shards.append(a.merge(b))
    assert_same(sketch_of(plan, x), shards[0])


def test_batches_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch, plan: SketchPlan) -> None:
    x = cloud(500, seed=6)
    whole = sketch_of(plan, x)
    monkeypatch.setattr("gpudrift.sketch.state._CHUNK", 64)
    monkeypatch.setattr("gpudrift.sketch.features._TILE", 32 * 17)
    assert_same(whole, sketch_of(plan, x))


def test_a_row_on_its_own_edge_falls_on_one_side_in_every_batch() -> None:
    """2001 rows, deciles: each PSI edge is one row's own score, and products of other shapes differ in the last bit."""
    x = cloud(2001, 96, offset=0.0)
    plan = plan_of(x, features=2, bins=16)
    assert torch.isin(plan.edges[0], (torch.from_numpy(x) - plan.mean).float().double() @ plan.axes[0]).sum() > 0
    whole = sketch_of(plan, x)
    for step in (3, 40):
        parts = Sketch.empty(plan)
        for start in range(0, len(x), step):
            parts.update(torch.from_numpy(x[start : start + step]), ids_of(start, len(x[start : start + step])))
        assert torch.equal(parts.sums["histograms.counts"], whole.sums["histograms.counts"])


def test_empty_sketches_and_batches_change_nothing(plan: SketchPlan) -> None:
    sketch = sketch_of(plan, cloud(50))
    before = sketch_of(plan, cloud(50))
    sketch.update(torch.zeros(0, plan.dim), pa.array([], type=pa.string()))
    assert_same(sketch, before, rel=0.0)
    assert_same(sketch.merge(Sketch.empty(plan)), before, rel=0.0)
    assert_same(Sketch.empty(plan).merge(sketch), before, rel=0.0)
    both = Sketch.empty(plan).merge(Sketch.empty(plan))
    assert both.count == 0
    assert both.reservoir()[0].shape == (0, plan.dim)


def test_a_merge_leaves_both_sides_as_they_were(plan: SketchPlan) -> None:
    a, b = sketch_of(plan, cloud(50)), sketch_of(plan, cloud(70, seed=1), 50)
    merged = a.merge(b)
    merged.update(torch.from_numpy(cloud(20, seed=2)), ids_of(120, 20))
    assert_same(a, sketch_of(plan, cloud(50)), rel=0.0)
    assert_same(b, sketch_of(plan, cloud(70, seed=1), 50), rel=0.0)
    assert (a.count, b.count, merged.count) == (50, 70, 140)


def test_rows_of_a_model_in_training(plan: SketchPlan) -> None:
    rows = torch.from_numpy(cloud(20)).double()
    plain, tracked = Sketch.empty(plan), Sketch.empty(plan)
    plain.update(rows, ids_of(0, 20))
    tracked.update(rows.clone().requires_grad_(), ids_of(0, 20))
    assert_same(plain, tracked, rel=0.0)


# -- refusals ----------------------------------------------------------------------------------------------------------


def spoiled(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = torch.from_numpy(cloud(9)).to(dtype)
    rows[4, 2] = value
    return rows


REFUSED = {
    "nan": (spoiled(float("nan")), ids_of(0, 9), DataError, "not finite"),
    "infinity": (spoiled(float("inf")), ids_of(0, 9), DataError, "not finite"),
    "beyond float32": (spoiled(1e39, torch.float64), ids_of(0, 9), RangeError, "float32"),
    "dimension": (torch.zeros(9, 7), ids_of(0, 9), ReferenceMismatchError, "dimension"),
    "vector": (torch.zeros(8), ids_of(0, 8), ArgumentError, "matrix"),
    "whole numbers": (torch.zeros(9, 8, dtype=torch.int32), ids_of(0, 9), ArgumentError, "float type"),
    "ids that are no Arrow array": (torch.zeros(2, 8), ["a", "b"], ArgumentError, "Arrow array"),
    "other length": (torch.zeros(9, 8), ids_of(0, 8), ArgumentError, "needs an id"),
    "null id": (torch.zeros(2, 8), pa.array(["a", None]), DataError, "missing"),
    "float ids": (torch.zeros(2, 8), pa.array([1.0, 2.0]), DataError, "identify"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_state_as_it_was(plan: SketchPlan, case: str) -> None:
    rows, ids, kind, words = REFUSED[case]
    sketch = sketch_of(plan, cloud(50))
    with pytest.raises(kind, match=words):
        sketch.update(rows, ids)
    assert_same(sketch, sketch_of(plan, cloud(50)), rel=0.0)


def test_a_bad_row_is_named(plan: SketchPlan) -> None:
    with pytest.raises(DataError, match="row 4, id row 4"):
        sketch_of(plan, spoiled(float("nan")).numpy())


def test_an_update_cut_short_leaves_the_state_as_it_was(monkeypatch: pytest.MonkeyPatch, plan: SketchPlan) -> None:
    sketch, before = sketch_of(plan, cloud(50)), sketch_of(plan, cloud(50))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gpudrift.sketch.reservoir.Reservoir.add", fail)
    with pytest.raises(MemoryError):
        sketch.update(torch.from_numpy(cloud(30, seed=1)), ids_of(50, 30))
    assert_same(sketch, before, rel=0.0)


def test_sketches_of_two_plans_do_not_merge(plan: SketchPlan) -> None:
    other = plan_of(cloud(301), seed=1)
    with pytest.raises(ReferenceMismatchError, match="different plans") as caught:
        Sketch.empty(plan).merge(Sketch.empty(other))
    assert (caught.value.value, caught.value.allowed) == (other.id, plan.id)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_known_by_everything_in_it() -> None:
    from dataclasses import replace

    plan = plan_of(cloud(301))
    assert plan_of(cloud(301)).id == plan.id
    changed = [
        replace(plan, **{name: getattr(plan, name) + 1e-9})
        for name in ("mean", "axes", "variances", "total_variance", "edges", "grid", "variance_optimism")
    ]
    changed += [replace(plan, seed=1), replace(plan, features=66), replace(plan, reservoir=41)]
    changed += [replace(plan, residual_optimism=None), replace(plan, bandwidths=plan.bandwidths[:3])]
    assert len({plan.id, *(other.id for other in changed)}) == len(changed) + 1
    assert SketchPlan.from_state(plan.state()).id == plan.id
    assert SketchPlan.from_state(changed[-2].state()).id == changed[-2].id


@pytest.mark.parametrize(
    ("name", "value"), [("features", 3), ("features", 0), ("reservoir", 1), ("seed", -1), ("bins", 1)]
)
def test_sizes_that_cannot_work(name: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=r"unusable|pairs"):
        plan_of(cloud(50), **{name: value})


def test_frequencies_are_standard_normal_and_pinned_by_the_seed(plan: SketchPlan) -> None:
    from scipy.stats import kstest

    drawn = plan_of(cloud(301, 64), features=400).frequencies
    assert drawn.shape == (200, 64)
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 0.001
    assert not torch.equal(plan.frequencies, plan_of(cloud(301), seed=1).frequencies)
    # the stream of numpy's PCG64 is promised, so these may be written down
    assert plan.frequencies[0, :3].tolist() == [0.35034942626953125, -0.6134586334228516, -1.7394990921020508]
    assert torch.equal(plan.frequencies * 2**20, (plan.frequencies * 2**20).round())


def test_the_grid_holds_the_pinned_edges_and_the_reference(plan: SketchPlan) -> None:
    assert plan.grid.shape == (3, 128 + 1 + 9)
    assert bool((plan.grid.diff(dim=1) >= 0).all())
    for k in range(3):
        assert bool(torch.isin(plan.edges[k], plan.grid[k]).all())
    sketch = sketch_of(plan, cloud(301))
    assert int(sketch.sums["histograms.counts"][:, [0, -1]].sum()) == 0


def test_one_far_row_does_not_make_the_grid_coarse() -> None:
    x = cloud(2000)
    x[0] *= 1e4
    for grid in plan_of(x).grid:
        assert float(grid[-1] - grid[0]) < 24.1 * 2.3  # 12 sd on each side, the largest is 2


def test_a_plan_from_rows_is_that_of_the_pins_a_job_makes() -> None:
    from gpudrift.panel import centre, pin
    from gpudrift.project import mean_of

    x = torch.from_numpy(cloud(301))
    before = x.clone()
    plan = SketchPlan.from_rows(x, settings=SETTINGS, features=64)
    assert torch.equal(x, before)
    mean = mean_of(x)
    centre(x, mean)
    pins, projection = pin(x, mean, SETTINGS)
    assert SketchPlan.from_pins(pins, projection.scores, features=64).id == plan.id
