"""What each mode rounds, that no error exceeds its bound, and what precision=auto picks."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import ArgumentError, RangeError
from gpudrift.kernels import choice, error_bounds
from gpudrift.kernels import reference as dense
from gpudrift.kernels.choice import choose
from gpudrift.kernels.error_bounds import error_bound, sample, score_sd
from gpudrift.kernels.precision import MODES, place, scale_for, scale_of
from gpudrift.metrics.pairs import PairEstimate, estimate

CPU = torch.device("cpu")
ROUNDED = ("float16", "bfloat16", "tf32")
ORDINARY = ("sphere", "sphere with drift", "normal", "offset 1e3")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    middles = torch.nn.functional.normalize(normal(10, d, 999))
    of = torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))
    rows = middles[of] + 0.35 / math.sqrt(d) * normal(n, d, seed)
    rows[:, 0] += shift
    return torch.nn.functional.normalize(rows)


def student(n: int, d: int, df: int, seed: int) -> Tensor:
    return normal(n, d, seed) / (normal(n, df, seed + 500).square().mean(1, keepdim=True)).sqrt()


def paired(rows: Tensor, gap: float, seed: int) -> Tensor:
    """Every other row is the row before, moved by that share."""
    half = len(rows) // 2
    near = rows[:half] * (1 + gap * normal(half, rows.shape[1], seed))
    return torch.cat([rows[:half], near, rows[2 * half :]])


def burst(rows: Tensor, seed: int) -> Tensor:
    count = len(rows) // 3
    return torch.cat([rows[0] * (1 + 1e-6 * normal(count, rows.shape[1], seed)), rows[count:]])


def outlier(rows: Tensor, factor: float) -> Tensor:
    return torch.cat([rows[:1] * factor, rows[1:]])


def loud(rows: Tensor) -> Tensor:
    return torch.cat([rows[:, :1] * 100, rows[:, 1:]], dim=1)


FAMILIES = {
    "sphere": lambda n, m, d, s: (sphere(n, d, s), sphere(m, d, s + 1)),
    "sphere with drift": lambda n, m, d, s: (sphere(n, d, s), sphere(m, d, s + 1, 0.1)),
    "normal": lambda n, m, d, s: (normal(n, d, s), normal(m, d, s + 1)),
    "offset 1e3": lambda n, m, d, s: (normal(n, d, s) + 1e3, normal(m, d, s + 1) * 1.05 + 1e3),
    "pairs 1e-4 apart": lambda n, m, d, s: (paired(sphere(n, d, s), 1e-4, s), paired(sphere(m, d, s + 1), 1e-4, s)),
    "pairs 1e-7 apart": lambda n, m, d, s: (paired(sphere(n, d, s), 1e-7, s), paired(sphere(m, d, s + 1), 1e-7, s)),
    "a third near copies": lambda n, m, d, s: (sphere(n, d, s), burst(sphere(m, d, s + 1), s)),
    "a near copy": lambda n, m, d, s: (x := sphere(n, d, s), x[torch.arange(m) % n] * (1 + 1e-6 * normal(m, d, s + 1))),
    "identical": lambda n, _, d, s: (x := sphere(n, d, s), x.clone()),
    "t, 3 df": lambda n, m, d, s: (student(n, d, 3, s), student(m, d, 3, s + 1)),
    "t, 2 df, spread apart": lambda n, m, d, s: (student(n, d, 2, s), student(m, d, 2, s + 1) * 1.1),
    "outlier rows": lambda n, m, d, s: (outlier(normal(n, d, s), 1e4), outlier(normal(m, d, s + 1), 3e3)),
    "a loud dimension": lambda n, m, d, s: (loud(normal(n, d, s)), loud(normal(m, d, s + 1))),
    "half steps": lambda n, m, d, s: ((normal(n, d, s) * 2).round() / 2, (normal(m, d, s + 1) * 2.2).round() / 2),
    "far apart": lambda n, m, d, s: (normal(n, d, s), normal(m, d, s + 1) + 10),
    "very far apart": lambda n, m, d, s: (normal(n, d, s), normal(m, d, s + 1) + 1e3),
    "scales apart": lambda n, m, d, s: (normal(n, d, s), normal(m, d, s + 1) * 1e-3),
}


def widths(x: Tensor) -> tuple[float, ...]:
    distances = torch.pdist(x[:500])
    return tuple(k * float(distances.median()) for k in (0.25, 0.5, 1.0, 2.0))


def scores(x: Tensor, y: Tensor, mode: str, bandwidths: tuple[float, ...]) -> list[PairEstimate]:
    """Energy, then MMD^2, as the API computes them."""
    centre = x.mean(0)
    scale = scale_for(torch.cat([x, y]), centre, MODES[mode])
    xp, yp = (kernels.prepare(rows, centre=centre, precision=mode, scale=scale) for rows in (x, y))
    xx, yy = (kernels.self_sums(cloud, bandwidths=bandwidths) for cloud in (xp, yp))
    xy = kernels.cross_sums(xp, yp, bandwidths=bandwidths)
    return [estimate(xx, yy, xy, f) for f in range(1 + len(bandwidths))]


def exact_scores(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> list[PairEstimate]:
    """By differences in float64, from the rows as they came."""
    xp, yp = (kernels.prepare(rows, centre=x.mean(0), precision="float64") for rows in (x, y))
    sums = [dense.pair_sums(*pair, bandwidths) for pair in ((xp, None), (yp, None), (xp, yp))]
    return [estimate(*sums, f) for f in range(1 + len(bandwidths))]


@cache
def case(family: str, n: int, m: int, d: int, seed: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    x, y = FAMILIES[family](n, m, d, 2 * seed)
    return x, y, widths(x)


def assert_within(
    family: str, n: int, m: int, d: int, seed: int, modes: tuple[str, ...], times: float = 1.0, count: int = 512
) -> None:
    x, y, bandwidths = case(family, n, m, d, seed)
    exact = exact_scores(x, y, bandwidths) if n * m * d < 2e6 else scores(x, y, "float64", bandwidths)
    rows = sample(x, y, centre=x.mean(0), seed=seed, count=count)
    for mode in modes:
        for f, (found, wanted) in enumerate(zip(scores(x, y, mode, bandwidths), exact, strict=True)):
            bound = error_bound(mode, rows, bandwidths=bandwidths, f=f)
            assert abs(found.value - wanted.value) <= times * bound.typical <= times * bound.worst, (mode, f)
            assert abs(found.se - wanted.se) <= times * bound.typical, (mode, f)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_of_each_mode_stays_below_its_bound(family: str, seed: int) -> None:
    assert_within(family, 160, 120, 48, seed, (*ROUNDED, "float32"))


@pytest.mark.parametrize("family", ["sphere", "sphere with drift", "pairs 1e-7 apart", "t, 3 df"])
def test_the_bound_holds_in_many_dimensions(family: str) -> None:
    assert_within(family, 50, 40, 768, 0, (*ROUNDED, "float32"))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"a third near copies"}))
def test_the_bound_holds_for_more_rows_than_it_samples(family: str) -> None:
    assert_within(family, 1400, 1100, 24, 1, ("float16", "bfloat16", "float32"))


@pytest.mark.parametrize("seed", range(2))
def test_a_bias_too_small_for_a_small_sample_to_show_is_in_the_bound(seed: int) -> None:
    assert_within("far apart", 600, 500, 200, seed, ("bfloat16",), count=128)


def test_a_burst_of_near_copies_rounds_alike_and_stays_within_twice_the_bound() -> None:
    assert_within("a third near copies", 1400, 1100, 24, 1, ("float16", "float32"), times=2)


@settings(max_examples=80)
@given(
    n=st.integers(2, 50),
    m=st.integers(2, 50),
    d=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    family=st.sampled_from(sorted(FAMILIES)),
    mode=st.sampled_from([*ROUNDED, "float32"]),
)
def test_the_bound_holds_for_very_few_rows(n: int, m: int, d: int, seed: int, family: str, mode: str) -> None:
    x, y = FAMILIES[family](n, n if family == "identical" else m, d, seed)
    found, wanted = scores(x, y, mode, ())[0], exact_scores(x, y, ())[0]
    bound = error_bound(mode, sample(x, y, centre=x.mean(0)))
    assert abs(found.value - wanted.value) <= bound.typical <= bound.worst


@pytest.mark.parametrize("mode", [*ROUNDED, "float32"])
@pytest.mark.parametrize("family", ORDINARY)
def test_the_bound_is_not_far_above_the_error_of_ordinary_data(family: str, mode: str) -> None:
    errors, bounds = [], []
    for seed in range(8):
        x, y, bandwidths = case(family, 160, 120, 48, seed)
        found, wanted = scores(x, y, mode, bandwidths[2:3]), exact_scores(x, y, bandwidths[2:3])
        rows = sample(x, y, centre=x.mean(0))
        errors.append([abs(a.value - b.value) for a, b in zip(found, wanted, strict=True)])
        bounds.append([error_bound(mode, rows, bandwidths=bandwidths[2:3], f=f).typical for f in (0, 1)])
    ratio = np.sqrt(np.mean(np.square(bounds), 0) / np.mean(np.square(errors), 0))
    assert (ratio > 2).all()
    assert (ratio < 50).all()


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ORDINARY)
def test_bounds_are_ordered_as_the_modes_are(family: str, device_type: str) -> None:
    x, y, bandwidths = case(family, 160, 120, 48, 0)
    rows = sample(x, y, centre=x.mean(0))
    for f in range(5):
        found = {mode: error_bound(mode, rows, device_type=device_type, bandwidths=bandwidths, f=f) for mode in MODES}
        for finer, coarser in (("float64", "float32"), ("float32", "float16"), ("float16", "bfloat16")):
            assert found[finer].typical < found[coarser].typical
            assert found[finer].worst <= found[coarser].worst
        assert found["tf32"].typical == pytest.approx(found["float16"].typical, rel=0.5)


@pytest.mark.parametrize("mode", MODES)
def test_cuda_is_given_a_margin_for_how_its_tensor_cores_add(mode: str) -> None:
    x, y, _ = case("pairs 1e-7 apart", 160, 120, 48, 0)
    rows = sample(x, y, centre=x.mean(0))
    on_cpu, on_cuda = (error_bound(mode, rows, device_type=device_type) for device_type in ("cpu", "cuda"))
    assert on_cuda.accumulation > 1.2 * on_cpu.accumulation
    assert on_cuda.worst > on_cpu.worst
    assert on_cuda.rounding == on_cpu.rounding


def test_squaring_an_rbf_many_times_widens_its_bound() -> None:
    x, y, _ = case("scales apart", 160, 120, 48, 0)
    rows = sample(x, y, centre=x.mean(0))
    alone = error_bound("float32", rows, bandwidths=(1.0,), f=1)
    chained = error_bound("float32", rows, bandwidths=(1.0, 2.0, 4.0, 8.0, 16.0), f=1)
    assert chained.typical > 4**4 / 2 * alone.typical


def test_rows_the_mode_refuses_have_no_bound() -> None:
    x = normal(20, 4, 0) * 1e25
    rows = sample(x, x + 1)
    assert error_bound("float32", rows).typical == math.inf
    assert error_bound("float16", rows).typical < 1e25  # it scales
    with pytest.raises(RangeError):
        kernels.prepare(x, precision="float32")


@pytest.mark.parametrize("s", [None, 1.0])
def test_the_standard_error_without_drift_is_that_of_the_metric(s: float | None) -> None:
    x = normal(60, 5, 0)
    rows = sample(x, normal(40, 5, 1))
    wanted = exact_scores(x, normal(40, 5, 1), () if s is None else (s,))[-1]
    assert score_sd(rows, s) == pytest.approx(wanted.null_sd, rel=1e-9)


def test_drift_widens_the_standard_error_to_that_of_the_drifted_score() -> None:
    x, y = normal(200, 5, 0), normal(150, 5, 1) + 2
    assert score_sd(sample(x, y)) == pytest.approx(exact_scores(x, y, ())[0].se, rel=0.1)


def test_the_standard_error_of_a_sample_is_that_of_all_rows() -> None:
    x, y = sphere(3000, 16, 0), sphere(2000, 16, 1)
    assert score_sd(sample(x, y, centre=x.mean(0))) == pytest.approx(scores(x, y, "float64", ())[0].null_sd, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_chance_differences_between_two_samples_are_no_drift(seed: int) -> None:
    rows = sample(normal(300, 1, seed), normal(300, 1, 100 + seed))
    many = dataclasses.replace(rows, n=300_000, m=300_000)
    assert score_sd(many) == pytest.approx(score_sd(rows) / 1000, rel=0.01)


def test_a_sample_knows_all_rows_and_leaves_the_random_state_alone() -> None:
    x, y = normal(3000, 4, 0), normal(10, 4, 1) - 5
    x[1234, 2] = 99.0
    state = torch.get_rng_state()
    rows = sample(x, y, centre=torch.full((4,), 1.0), count=16)
    assert torch.equal(torch.get_rng_state(), state)
    lengths_x, lengths_y = (x - 1).norm(dim=1), (y - 1).norm(dim=1)
    assert rows.largest == 98.0
    assert rows.longest == pytest.approx(float(lengths_x.max()), rel=1e-12)
    assert rows.lengths == pytest.approx((float(lengths_x.mean()), float(lengths_y.mean())), rel=1e-12)
    assert rows.rms == pytest.approx([float(v.square().mean().sqrt()) for v in (lengths_x, lengths_y)], rel=1e-12)
    assert (len(rows.x), len(rows.y), rows.n, rows.m) == (16, 10, 3000, 10)
    assert len(torch.unique(torch.cdist(rows.x + 1, x).argmin(1))) == 16  # distinct rows
    again = sample(x, y, centre=torch.full((4,), 1.0), count=16)
    assert torch.equal(again.x, rows.x)
    assert not torch.equal(sample(x, y, count=16, seed=1).x + 1, rows.x)


def test_a_reference_alone_is_split_and_taken_for_both_clouds() -> None:
    x = normal(900, 4, 0)
    rows = sample(x, m=5000, count=100)
    assert (len(rows.x), len(rows.y), rows.n, rows.m) == (100, 100, 900, 5000)
    assert float(torch.cdist(rows.x, rows.y).min()) > 0  # no row on both sides
    assert rows.lengths[0] == rows.lengths[1]
    assert sample(x[:7]).m == 7


# ---- the choice


@pytest.mark.parametrize("family", ORDINARY)
@pytest.mark.parametrize(("device_type", "wanted"), [("cpu", "float32"), ("cuda", "float16")])
def test_auto_takes_the_fast_mode_on_ordinary_data(family: str, device_type: str, wanted: str) -> None:
    x, y, bandwidths = case(family, 160, 120, 48, 0)
    found = choose("auto", device_type, x.float(), y.float(), centre=x.mean(0), bandwidths=bandwidths)
    assert found.precision == wanted
    assert found.bound.typical <= found.se / choice.SHARE
    assert f"{found.bound.typical:.1e}" in found.reason
    assert f"{found.se:.1e}" in found.reason


@pytest.mark.parametrize(
    ("inputs", "device_type", "wanted"),
    [
        ((torch.float64, torch.float32), "cpu", "float64"),
        ((torch.int64,), "cpu", "float64"),
        ((torch.float16, torch.bfloat16), "cpu", "float32"),
        ((torch.float64, torch.float64), "cuda", "float16"),
        ((torch.int32,), "cuda", "float16"),
    ],
)
def test_on_the_cpu_float64_and_whole_numbers_stay_in_float64(
    inputs: tuple[torch.dtype, ...], device_type: str, wanted: str
) -> None:
    x, y, _ = case("sphere", 160, 120, 48, 0)
    assert choose("auto", device_type, x, y, centre=x.mean(0), inputs=inputs).precision == wanted


def test_the_dtypes_are_those_of_the_rows_unless_told() -> None:
    x, y, _ = case("sphere", 160, 120, 48, 0)
    assert choose("auto", "cpu", x, y.float()).precision == "float64"
    assert choose("auto", "cpu", x.float(), y.float()).precision == "float32"


@pytest.mark.parametrize(
    ("offset", "device_type", "wanted"),
    [
        (10, "cuda", "float16"),
        (100, "cuda", "float32"),
        (1e4, "cuda", "float64"),
        (10, "cpu", "float32"),
        (1e4, "cpu", "float64"),
    ],
)
def test_auto_turns_to_finer_modes_as_clouds_move_apart(offset: float, device_type: str, wanted: str) -> None:
    x, y = normal(1000, 16, 0).float(), (normal(800, 16, 1) + offset).float()
    found = choose("auto", device_type, x, y, centre=x.mean(0))
    assert found.precision == wanted
    assert found.bound.typical <= found.se / choice.SHARE


def test_a_bandwidth_alone_can_decide() -> None:
    x, y, _ = case("scales apart", 160, 120, 48, 0)
    x, y = x.float(), y.float()
    assert choose("auto", "cpu", x, y, centre=x.mean(0)).precision == "float32"
    found = choose("auto", "cpu", x, y, centre=x.mean(0), bandwidths=(1.0,))
    assert found.precision == "float64"
    forced = choose("float32", "cpu", x, y, centre=x.mean(0), bandwidths=(1.0,))
    assert "MMD^2 at bandwidth 1 is off" in forced.reason


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_without_a_standard_error_to_compare_with_auto_is_exact(device_type: str) -> None:
    few = choose("auto", device_type, normal(3, 4, 0).float(), normal(50, 4, 1).float())
    assert few.precision == "float64"
    assert few.reason.startswith("too few rows")
    assert math.isnan(few.se)
    equal = choose("auto", device_type, torch.ones(50, 3), torch.ones(40, 3))
    assert equal.precision == "float64"
    assert equal.se == 0


@pytest.mark.parametrize("wish", MODES)
def test_a_wish_is_kept_with_its_bound(wish: str) -> None:
    x, y, _ = case("very far apart", 160, 120, 48, 0)
    found = choose(wish, "cpu", x, y, centre=x.mean(0))
    assert found.precision == found.bound.mode == wish
    warning = "NOT ENOUGH HERE, " if found.too_coarse else ""
    assert found.reason.startswith(f"{warning}precision={wish}: energy is off by at most about")
    assert found.too_coarse == (wish in ("float16", "bfloat16", "tf32"))


@pytest.mark.parametrize("rows", [300, 1200])
def test_a_wide_cloud_far_away_stays_under_its_bound(rows: int) -> None:
    """Nearly equal rows next to wide ones, both far from the centre: d2 floored at 0 makes a narrow RBF 1, not 0."""
    x, y = normal(rows, 8, 0), normal(rows, 8, 1) * 3 + 2e4
    x[::2] *= 0.002
    middle = x.mean(0)
    bound = choose("float32", "cpu", x, y, centre=middle, bandwidths=(0.1,)).bound.typical
    values = []
    for mode in ("float32", "float64"):
        a, b = (kernels.prepare(c, centre=middle, precision=mode) for c in (x, y))
        sums = [kernels.self_sums(a, bandwidths=(0.1,)), kernels.self_sums(b, bandwidths=(0.1,))]
        values.append(estimate(*sums, kernels.cross_sums(a, b, bandwidths=(0.1,)), 1).value)
    assert abs(values[0] - values[1]) <= bound


def test_float64_claims_no_less_than_its_own_rounding() -> None:
    x, y = normal(300, 24, 0), normal(250, 24, 1)
    found = choose("float64", "cpu", x, y, centre=x.mean(0)).bound.typical
    assert 1e-15 < found < 1e-13


def test_more_rows_lower_bound_and_standard_error_alike() -> None:
    x, y, _ = case("sphere", 160, 120, 48, 0)
    rows = sample(x, y, centre=x.mean(0))
    many = dataclasses.replace(rows, n=160_000, m=120_000)
    assert error_bound("float16", many).typical < error_bound("float16", rows).typical / 20
    assert score_sd(many) < score_sd(rows) / 900


def test_a_reference_can_be_judged_before_the_current_window_is_known() -> None:
    x = sphere(900, 48, 0).float()
    assert choose("auto", "cuda", x, centre=x.mean(0), m=10**6).precision == "float16"
    assert choose("auto", "cpu", x.double(), centre=x.mean(0)).precision == "float64"


def test_the_same_rows_give_the_same_choice_with_a_scale_for_both_clouds() -> None:
    x, y, bandwidths = case("t, 2 df, spread apart", 1400, 1100, 24, 0)
    first, second = (choose("float16", "cuda", x, y, centre=x.mean(0), bandwidths=bandwidths[:1]) for _ in range(2))
    assert first == second
    assert first.scale == scale_for(torch.cat([x, y]), x.mean(0), MODES["float16"])
    assert choose("float32", "cuda", x, y).scale == 1.0


@pytest.mark.parametrize(
    ("wish", "device_type", "x", "field"),
    [
        ("float8", "cpu", torch.zeros(5, 2), "precision"),
        ("auto", "mps", torch.zeros(5, 2), "device"),
        ("auto", "cpu", torch.zeros(3, 2), "x, y"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(wish: str, device_type: str, x: Tensor, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        choose(wish, device_type, x)
    assert caught.value.field == field


# ---- rounding


def tf32_by_arithmetic(values: np.ndarray) -> np.ndarray:
    """Eleven significant bits, ties to even, by frexp."""
    mantissa, exponent = np.frexp(values.astype(np.float32).astype(np.float64))
    return np.ldexp(np.rint(mantissa * 2**11), exponent - 11)


def test_float16_rows_are_numpys() -> None:
    step = 2.0**-10
    values = [
        1 + step / 2,
        1 + 3 * step / 2,
        1 + step / 2 * 1.001,
        -(1 + step / 2),
        2.0**-24,
        2.0**-25,
        2.0**-25 * 1.01,
    ]
    values += [3 * 2.0**-26, 2.0**-14 - 2.0**-26, 65504.0, 65519.9, 65520.0, 0.0, 1e-9]
    rows = torch.tensor([values, list(reversed(values))], dtype=torch.float64)
    found = place(rows, None, MODES["float16"], 1.0, CPU)
    assert found.dtype == torch.float32
    with np.errstate(over="ignore"):
        wanted = rows.numpy().astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float32))
    assert found[0, :6].tolist() == [1.0, 1 + 2 * step, 1 + step, -1.0, 2.0**-24, 0.0]  # ties to even


@settings(max_examples=200)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_bfloat16_and_tf32_round_to_the_nearest_even(values: list[float]) -> None:
    rows = torch.tensor([values], dtype=torch.float32)
    bits = rows.numpy().view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(place(rows, None, MODES["bfloat16"], 1.0, CPU).numpy(), rounded)
    normal_range = np.where(np.abs(rows.numpy()) < 2.0**-126, 0, rows.numpy())
    found = place(torch.from_numpy(normal_range), None, MODES["tf32"], 1.0, CPU)
    np.testing.assert_array_equal(found.double().numpy(), tf32_by_arithmetic(normal_range))


def test_tf32_ties_go_to_the_even_neighbour() -> None:
    step = 2.0**-10
    rows = torch.tensor([[1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 2 - step / 2]])
    assert place(rows, None, MODES["tf32"], 1.0, CPU).tolist() == [[1.0, 1 + 2 * step, -1.0, 2.0]]


@pytest.mark.parametrize("mode", MODES)
def test_no_entry_moves_further_than_the_mode_says(mode: str) -> None:
    rows = normal(200, 20, 3)
    moved = (place(rows, None, MODES[mode], 1.0, CPU).double() - rows).abs() / rows.abs()
    assert float(moved.max()) <= MODES[mode].roundoff * (1 + 2.0**-12)
    if mode != "float64":
        assert float(moved.max()) > 0.8 * MODES[mode].roundoff


@pytest.mark.parametrize("largest", [1e-140, 1e-40, 0.7, 1.0, 31.999, 32.0, 63.9, 64.0, 1e5, 1e150])
def test_the_scale_is_the_power_of_two_that_uses_float16s_range(largest: float) -> None:
    scale = scale_of(largest)
    assert math.frexp(scale)[0] == 0.5
    assert 32 <= largest * scale < 64


def test_there_is_always_a_scale() -> None:
    assert scale_of(0.0) == scale_of(math.inf) == scale_of(math.nan) == 1.0
    assert (scale_of(1e-290), scale_of(1e290)) == (2.0**500, 2.0**-500)  # their squares are numbers too
    assert 0 < scale_of(5e-324) < math.inf
    rows = torch.tensor([[1.0, -3.0], [5.0, 2.0]], dtype=torch.float64)
    assert scale_for(rows, torch.tensor([1.0, 2.0]), MODES["float16"]) == 8.0  # the largest difference is 5
    assert scale_for(rows, None, MODES["bfloat16"]) == 1.0


@pytest.mark.parametrize("largest", [1e-37, 1e-20, 1e20, 3e38])
def test_float16_scales_rows_far_outside_its_own_range(largest: float) -> None:
    rows = (normal(50, 3, 4) * largest / 4).clamp(-3.4e38, 3.4e38).float()
    scale = scale_for(rows, None, MODES["float16"])
    found = place(rows, None, MODES["float16"], scale, CPU).double() / scale
    torch.testing.assert_close(found, rows.double(), rtol=2.0**-11, atol=largest * 2.0**-30)


def test_float16_overflow_is_refused_not_computed_with() -> None:
    with pytest.raises(RangeError, match="too long for float16"):
        kernels.prepare(torch.tensor([[1.0, 20.0]]), precision="float16", scale=4096.0)


def test_a_sample_of_few_rows_takes_them_all() -> None:
    x = normal(error_bounds.SAMPLE, 2, 0)
    taken = sample(x, x).x
    assert torch.equal(taken[taken[:, 0].argsort()], x[x[:, 0].argsort()])
