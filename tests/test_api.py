"""The notebook API at its edges: shapes, types, precision, devices, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gpudrift
from gpudrift.errors import ArgumentError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 5)), RNG.normal(size=(20, 5)) + 0.5


def test_importing_the_package_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, gpudrift, gpudrift.config, gpudrift.records, gpudrift.errors;"
        "print(sorted(m for m in ('torch', 'matplotlib', 'pyarrow', 'numpy') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda a: a.tolist()])
def test_arrays_tensors_and_lists_give_one_answer(convert: object) -> None:
    found = gpudrift.energy_distance(convert(X), convert(Y))  # type: ignore[operator]
    assert found.value == gpudrift.energy_distance(X, Y).value
    assert isinstance(found.value, float)
    assert found.witness_x.shape == (30,)
    assert found.witness_y.shape == (20,)
    assert found.precision == "float64"


@pytest.mark.parametrize(
    ("dtype", "precision", "used"),
    [
        (np.float64, "auto", "float64"),
        (np.float32, "auto", "float32"),
        (np.float16, "auto", "float32"),
        (np.int64, "auto", "float64"),
        (np.float64, "float32", "float32"),
        (np.float16, "float64", "float64"),
    ],
)
def test_precision_follows_the_input_unless_named(dtype: type, precision: str, used: str) -> None:
    x, y = (10 * X).astype(dtype), (10 * Y).astype(dtype)
    found = gpudrift.energy_distance(x, y, precision=precision)
    assert found.precision == used
    exact = gpudrift.energy_distance(x.astype(np.float64), y.astype(np.float64)).value
    assert found.value == pytest.approx(exact, rel=1e-5)


def test_several_bandwidths_give_arrays_and_one_gives_scalars() -> None:
    one, several = gpudrift.mmd2(X, Y, 2.0), gpudrift.mmd2(X, Y, [2.0, 3.0, 0.7])
    assert isinstance(one.value, float)
    assert one.bandwidths == 2.0
    assert several.value.shape == several.se.shape == several.variance.shape == (3,)
    assert several.witness_x.shape == (3, 30)
    assert several.witness_y.shape == (3, 20)
    assert several.value[0] == pytest.approx(one.value, rel=1e-12)
    assert gpudrift.mmd2(X, Y).value.shape == (4,)


def test_default_bandwidths_are_multiples_of_the_median_distance_of_x() -> None:
    from scipy.spatial.distance import pdist

    found = gpudrift.mmd2(X, Y).bandwidths
    assert found[2] == pytest.approx(np.median(pdist(X)), rel=0.01)
    np.testing.assert_allclose(found / found[2], [0.25, 0.5, 1, 2])


def test_the_estimator_changes_the_value_only() -> None:
    u, v = gpudrift.energy_distance(X, Y), gpudrift.energy_distance(X, Y, estimator="v")
    assert v.value > u.value
    assert (u.se, u.variance) == (v.se, v.variance)
    np.testing.assert_array_equal(u.witness_x, v.witness_x)


def test_a_cloud_against_itself_shows_no_drift() -> None:
    for estimator, low in (("v", -1e-12), ("u", -1.0)):
        found = gpudrift.energy_distance(X, X, estimator=estimator)
        assert low <= found.value < 1e-9
        assert math.isfinite(found.se)
    assert gpudrift.energy_distance(X, X).value < 0


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_the_variance_needs_four_rows(rows: int) -> None:
    found = gpudrift.energy_distance(X[:rows], Y[:10])
    assert math.isfinite(found.value)
    assert math.isfinite(found.se)
    assert math.isnan(found.variance) is (rows < 4)


# whole millionths: a cloud whose every row is shorter than 1e-100, but not zero, is refused (tests/kernels)
coordinates = st.integers(-(10**8), 10**8).map(lambda millionths: millionths / 1e6)


@settings(max_examples=40)
@given(
    x=arrays(np.float64, (6, 2), elements=coordinates),
    y=arrays(np.float64, (5, 2), elements=coordinates),
    shift=coordinates.map(lambda value: 10 * value),
)
def test_energy_is_symmetric_shift_invariant_and_not_negative_as_v(x: np.ndarray, y: np.ndarray, shift: float) -> None:
    value = gpudrift.energy_distance(x, y, estimator="v").value
    assert value >= -1e-6
    assert gpudrift.energy_distance(y, x, estimator="v").value == pytest.approx(value, abs=1e-6)
    assert gpudrift.energy_distance(x + shift, y + shift, estimator="v").value == pytest.approx(value, abs=1e-5)


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = gpudrift.energy_distance(X[::-1].copy(), np.roll(Y, 3, axis=0)).value
    assert shuffled == pytest.approx(gpudrift.energy_distance(X, Y).value, rel=1e-12)


def test_score_returns_the_panel_and_sees_what_was_planted() -> None:
    rng = np.random.default_rng(1)
    reference, same = rng.normal(size=(400, 12)).astype("f4"), rng.normal(size=(300, 12)).astype("f4")
    moved = same + np.float32(0.5)
    quiet, loud = gpudrift.score(reference, same), gpudrift.score(reference, moved)
    assert {"energy", "mmd2_b1", "mmd_max", "frechet", "psi", "mean_shift", "sliced_wasserstein"} <= set(loud)
    for name in ("energy", "mmd_max", "frechet", "psi", "mean_shift", "sliced_wasserstein"):
        assert loud[name].value > 3 * abs(quiet[name].value), name
    wanted = gpudrift.energy_distance(reference, moved)
    assert loud["energy"].value == pytest.approx(wanted.value, rel=1e-5)
    assert loud["energy"].se == pytest.approx(wanted.se, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"x": X[0]}, "x"),
        ({"x": X[:1]}, "x"),
        ({"y": Y[:, :3]}, "y"),
        ({"y": np.zeros((5, 0))}, "y"),
        ({"x": np.full((4, 5), np.nan)}, "x"),
        ({"x": np.where(np.arange(30)[:, None] == 7, np.inf, X)}, "x"),
        ({"x": X.astype(complex)}, "x"),
        ({"x": X.astype(str)}, "x"),
        ({"estimator": "w"}, "estimator"),
        ({"precision": "float8"}, "precision"),
        ({"clusters_x": np.arange(30)}, "clusters_x, clusters_y"),
        ({"clusters_x": np.arange(3), "clusters_y": np.arange(20)}, "clusters_x"),
        ({"clusters_x": np.zeros(30), "clusters_y": np.zeros(20)}, "clusters"),
        ({"clusters_x": np.arange(30), "clusters_y": np.arange(20), "estimator": "v"}, "estimator"),
        ({"clusters_x": [None, *"ab" * 14, "c"], "clusters_y": ["a"] * 20}, "clusters_x, clusters_y"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        gpudrift.energy_distance(**{"x": X, "y": Y, **arguments})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("bandwidths", [0.0, -1.0, [], [1.0] * 9, [1.0, math.nan], math.inf])
def test_unusable_bandwidths_are_refused(bandwidths: object) -> None:
    with pytest.raises(ArgumentError, match="bandwidths"):
        gpudrift.mmd2(X, Y, bandwidths)  # type: ignore[arg-type]


def test_a_cuda_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(gpudrift.errors.ConfigError, match="cuda:7"):
        gpudrift.energy_distance(X, Y, device="cuda:7")


@pytest.mark.parametrize("scale", [1e19, 1e-20])
def test_values_beyond_float32_are_refused_not_called_the_same(scale: float) -> None:
    x, y = (X * scale).astype(np.float32), (Y * scale).astype(np.float32)
    with pytest.raises(gpudrift.errors.RangeError, match="float32"):
        gpudrift.energy_distance(x, y, precision="float32")
    exact = gpudrift.energy_distance(x.astype(np.float64), y.astype(np.float64)).value
    for precision in ("auto", "float64"):
        found = gpudrift.energy_distance(x, y, precision=precision)
        assert (found.precision, found.value) == ("float64", pytest.approx(exact, rel=1e-12))


def test_clouds_far_apart_for_their_spread_are_computed_in_float64() -> None:
    x, y = X.astype(np.float32), (Y + 1e4).astype(np.float32)
    found = gpudrift.energy_distance(x, y)
    exact = gpudrift.energy_distance(x.astype(np.float64), y.astype(np.float64))
    assert found.precision == "float64"
    assert found.se == pytest.approx(exact.se, rel=1e-12)
    assert gpudrift.energy_distance(x, x + 1).precision == "float32"


def test_read_only_arrays_are_read_and_masked_and_ragged_ones_refused() -> None:
    frozen = X.copy()
    frozen.flags.writeable = False
    assert gpudrift.energy_distance(frozen, Y).value == gpudrift.energy_distance(X, Y).value
    for bad in (np.ma.masked_array(X, X > 1), [[1.0, 2.0], [1.0]]):
        with pytest.raises(ArgumentError, match="x"):
            gpudrift.energy_distance(bad, Y)  # type: ignore[arg-type]


def test_score_chooses_for_its_mmds_too() -> None:
    """A few wild rows raise the standard error of energy, not of a narrow RBF: float32 would do for energy alone."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((600, 32)).astype(np.float32) for _ in range(2))
    x[:3] *= 1e7
    found, exact = gpudrift.score(x, y), gpudrift.score(x, y, precision="float64")
    for name in ("mmd2_b1", "mmd2_b2", "mmd_max"):
        assert found[name].value == pytest.approx(exact[name].value, rel=1e-6)


def test_a_precision_that_is_too_coarse_is_kept_with_a_warning() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 8)), rng.standard_normal((200, 8)) + 2e3
    with pytest.warns(RuntimeWarning, match="NOT ENOUGH HERE, precision=bfloat16"):
        found = gpudrift.energy_distance(x, y, precision="bfloat16")
    assert found.precision == "bfloat16"
    assert "witness" not in repr(found)


# methods and budgets -----------------------------------------------------------------------------------------------


def big(n: int = 400, m: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(n, 6)), rng.normal(size=(m, 6)) + 0.2


def test_without_a_budget_all_pairs_are_taken_and_the_result_says_so() -> None:
    found = gpudrift.energy_distance(X, Y)
    assert (found.method, found.method_reason) == ("exact", "no budget of pairs: all of them")
    assert (found.pairs, found.dof) == (50 * 49 // 2, None)
    within = gpudrift.energy_distance(X, Y, pairs=2000)
    assert (within.value, within.method) == (found.value, "exact")
    assert "1,225 pairs fit the budget of 2000" in within.method_reason
    assert gpudrift.energy_distance(X, Y, method="exact").value == found.value
    assert found.ci == pytest.approx((found.value - 1.959964 * found.se, found.value + 1.959964 * found.se), rel=1e-6)


def test_a_budget_is_kept_by_blocks_which_any_machine_chooses() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(9000, 2)), rng.normal(size=(9000, 2)) + 0.1
    found = gpudrift.energy_distance(x, y, pairs=2.1e7)
    assert (found.method, found.dof) == ("block", 7)
    assert found.pairs == 8 * (2250 * 2249 // 2) <= 2.1e7
    assert "8 blocks of about 1,125 and 1,125 rows: all 161,991,000 pairs exceed" in found.method_reason
    assert found.value == gpudrift.energy_distance(x, y, method="block", pairs=2.1e7).value
    assert found.value != gpudrift.energy_distance(x, y, pairs=2.1e7, seed=1).value


@pytest.mark.parametrize("clusters", [False, True])
def test_a_block_average_is_the_mean_of_the_statistic_of_its_blocks(clusters: bool) -> None:
    from gpudrift.estimators import choose_blocks, deal

    x, y = big()
    of_x, of_y = (np.random.default_rng(7).integers(0, 200, n) for n in (400, 300))
    labels = {"clusters_x": of_x, "clusters_y": of_y} if clusters else {}
    codes = {name: torch.from_numpy(side) for name, side in labels.items()}
    chosen = choose_blocks(400, 300, 25_000, least_block=4)
    in_x, in_y = (side.numpy() for side in deal(400, 300, chosen.blocks, seed=3, **codes))
    found = gpudrift.energy_distance(x, y, method="block", pairs=25_000, seed=3, **labels)
    values = []
    for b in range(chosen.blocks):
        own = {"clusters_x": of_x[in_x == b], "clusters_y": of_y[in_y == b]} if clusters else {}
        values.append(gpudrift.energy_distance(x[in_x == b], y[in_y == b], **own).value)
    assert chosen.blocks == 10
    assert found.value == pytest.approx(np.mean(values), rel=1e-9)
    assert found.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(10), rel=1e-9)
    assert found.witness_x.mean() + found.witness_y.mean() == pytest.approx(found.value, rel=1e-9)
    assert math.isnan(found.variance)
    assert found.ci[1] - found.value == pytest.approx(2.262157 * found.se, rel=1e-6)  # t with 9 degrees of freedom
    assert gpudrift.mmd2(x, y, [1.0, 2.0], method="block", pairs=25_000, **labels).ci[0].shape == (2,)


def test_random_features_are_those_of_the_sketches() -> None:
    import pyarrow as pa

    from gpudrift.sketch import Sketch, SketchPlan, compare

    x, y = big()
    plan = SketchPlan.from_rows(torch.from_numpy(x), features=256, seed=9)
    sketches = [Sketch.empty(plan), Sketch.empty(plan)]
    sketches[0].update(torch.from_numpy(x), pa.array(range(400)))
    sketches[1].update(torch.from_numpy(y), pa.array(range(400, 700)))
    wanted = compare(*sketches)
    found = gpudrift.mmd2(x, y, plan.bandwidths, method="rff", features=256, seed=9)
    for b in range(4):
        metric = wanted[f"rff_mmd2_b{b + 1}"]
        assert found.value[b] == pytest.approx(metric.value, rel=1e-9)
        assert found.se[b] == pytest.approx(metric.se, rel=1e-9)
    assert (found.method, found.pairs, found.dof, found.witness_x) == ("rff", 0, 31, None)
    one = gpudrift.mmd2(x, y, plan.bandwidths[1], method="rff", features=256, seed=9)
    assert one.value == pytest.approx(found.value[1], rel=1e-12)


def test_random_features_come_near_mmd_by_the_error_they_state() -> None:
    x, y = big()
    exact = gpudrift.mmd2(x, y, [2.0, 4.0])
    found = [gpudrift.mmd2(x, y, [2.0, 4.0], method="rff", features=512, seed=seed) for seed in range(30)]
    values = np.array([one.value for one in found])
    # se**2 = sampling_se**2 + approximation_sd**2: the second is the spread over seeds
    assert np.all(np.abs(values.mean(0) - exact.value) < 4 * values.std(0) / math.sqrt(30))
    assert np.all(values.std(0) < np.array([one.se for one in found]).mean(0))
    assert np.allclose(np.array([one.se for one in found]).mean(0), np.hypot(exact.se, values.std(0)), rtol=0.35)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"method": "cross"}, "method"),
        ({"method": "rff"}, "method"),
        ({"method": "exact", "pairs": 1e3}, "pairs"),
        ({"method": "block"}, "pairs"),
        ({"method": "block", "pairs": 10}, "pairs"),
        ({"pairs": 100}, "pairs"),
        ({"pairs": -1}, "pairs"),
        ({"method": "block", "pairs": 1e5, "estimator": "v", "x": X.repeat(9, 0), "y": Y.repeat(9, 0)}, "estimator"),
        (
            {"method": "block", "pairs": 1e6, "x": X.repeat(9, 0), "y": Y.repeat(9, 0)}
            | {"clusters_x": np.arange(270) // 30, "clusters_y": 9 + np.arange(180) // 60},
            "blocks",
        ),
    ],
)
def test_methods_that_cannot_work_are_refused(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        gpudrift.energy_distance(**{"x": X, "y": Y, **arguments})  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"features": 7}, "features"),
        ({"estimator": "v"}, "estimator"),
        ({"pairs": 1e6}, "pairs"),
        ({"clusters_x": np.arange(30), "clusters_y": np.arange(20)}, "clusters_x"),
    ],
)
def test_random_features_refuse_what_they_cannot_do(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        gpudrift.mmd2(X, Y, 1.0, method="rff", **arguments)  # type: ignore[arg-type]
    assert caught.value.field == field
