"""Mistakes that drift monitors make. Each has an assertion that gpudrift passes and that fails for the mistake itself,
written here as a small function: a test that passed for both would show nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from make_cloud import MONDAY, PANEL, SETTINGS, weeks
from numpy.typing import NDArray
from scipy.stats import ks_2samp, norm, pearsonr

import gpudrift
from gpudrift import notes, reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.attribution.clustering import assign
from gpudrift.attribution.clustering import fit as k_means
from gpudrift.calibrate import AANull, Limits, calibrate, decide, lag_one
from gpudrift.fingerprint import canonical
from gpudrift.history import ALL
from gpudrift.metrics import divergences, frechet, moments
from gpudrift.outcomes.analysis import analyse
from gpudrift.outcomes.records import OutcomeSeries
from gpudrift.panel import PanelSettings, median_distance
from gpudrift.project import fit, mean_of, project
from gpudrift.records import Cloud, HistoryPoint, Metric, PanelInput, Quality
from gpudrift.sampling import Limit
from gpudrift.scoring import Scored, Scorer
from gpudrift.windows import Period

Rows = NDArray[np.float64]
Statistic = Callable[[Rows, Rows], float]
LIMITS = Limits()


def cloud_of(windows: Sequence[Rows], first: int = 0) -> tuple[Cloud, tuple[str, ...]]:
    sizes = [len(rows) for rows in windows]
    cloud = Cloud(
        embeddings=torch.from_numpy(np.concatenate(windows).astype(np.float32)),
        windows=weeks(first, len(sizes)),
        offsets=tuple(int(b) for b in np.cumsum([0, *sizes])),
        quality=tuple(Quality(size, size, {}, {}) for size in sizes),
    )
    return canonical(cloud, 0)


def scorer_of(windows: Sequence[Rows], first: int = 0, panel: PanelSettings = PANEL) -> Scorer:
    """Everything pinned by reference windows, the first of them week ``first``."""
    cloud, prints = cloud_of(windows, first)
    arithmetic, every = Arithmetic("float64", "", 1.0), Limit(10**9, "all rows")
    screened = reference.screen(cloud, hygiene_sd=40.0, arithmetic=arithmetic)
    assert screened.mean is not None
    pinned, rows = reference.build(
        cloud,
        prints,
        screened.mean,
        dropped=[],
        span=(MONDAY, cloud.windows[-1].end),
        period="week",
        left_out=[],
        panel=panel,
        settings=SETTINGS,
        arithmetic=arithmetic,
        limit=every,
    )
    return Scorer(pinned, rows, panel, LIMITS, every)


def scored(scorer: Scorer, rows: Rows, week: int) -> Scored:
    return scorer.score(cloud_of([rows], week)[0], None)


def warns(found: Scored) -> bool:
    assert found.judgement is not None
    return found.judgement.warn


def fails(check: Callable[[], None]) -> None:
    """The assertion that gpudrift passes does not hold for a mistake."""
    with pytest.raises(AssertionError):
        check()


def beyond(level: float, trials: int) -> float:
    """The most rejections, as a share, that a test of this level makes but once in a thousand times."""
    return level + 3.1 * math.sqrt(level * (1 - level) / trials)


def energy(x: Rows, y: Rows) -> float:
    return float(gpudrift.energy_distance(x, y).value)


def energy_v(x: Rows, y: Rows) -> float:
    return float(gpudrift.energy_distance(x, y, estimator="v").value)


def panel_of(x: Rows, y: Rows, components: int) -> PanelInput:
    """What the metrics of moments get: centred by x, projected on axes of x."""
    rows = torch.from_numpy(x)
    mean = mean_of(rows)
    of_x, of_y = rows - mean, torch.from_numpy(y) - mean
    basis, covariance = fit(of_x, mean, components=components, niter=6, seed=0)
    px, py = project(of_x, basis), project(of_y, basis)
    return PanelInput(of_x, of_y, px, py, basis, covariance, torch.zeros(0, 1), components=0, directions=1, seed=0)


def residual_energy(x: Rows, y: Rows, components: int) -> Metric:
    return next(m for m in moments.compute(panel_of(x, y, components)) if m.name == "residual_energy")


# 1: fixed absolute thresholds ----------------------------------------------------------------------------------------

Alarm = Callable[[list[Rows], Rows], bool]


def assert_the_verdict_follows_the_drift(alarm: Alarm) -> None:
    """Whatever the unit of the encoder and the number of rows: a shift of 1.5 sd is told, a usual window is not."""
    for unit, rows in itertools.product((0.05, 1.0, 30.0), (40, 160)):
        rng = np.random.default_rng(0)
        windows = [unit * (rng.normal(size=(rows, 4)) + 0.15 * rng.normal(size=4)) for _ in range(10)]
        quiet, drifted = (unit * (rng.normal(size=(rows, 4)) + shift) for shift in (0.15, 1.5))
        assert (alarm(windows, quiet), alarm(windows, drifted)) == (False, True), (unit, rows)


def alarm_of_ours(windows: list[Rows], current: Rows) -> bool:
    return warns(scored(scorer_of(windows), current, 20))


@pytest.mark.parametrize(
    ("statistic", "threshold"),
    [
        ("energy", 0.01),
        ("energy", 0.1),
        ("energy", 1.0),
        ("centroid", 0.2),
        ("centroid", 1.0),
        ("PSI", 0.1),
        ("PSI", 0.2),
    ],
)
def test_trap_1_fixed_thresholds(statistic: str, threshold: float) -> None:
    def value(x: Rows, y: Rows) -> float:
        if statistic == "PSI":
            return max(psi_of(x[:, k], y[:, k]).extra["raw"] for k in range(x.shape[1]))
        return energy(x, y) if statistic == "energy" else float(np.linalg.norm(x.mean(0) - y.mean(0)))

    fails(lambda: assert_the_verdict_follows_the_drift(lambda w, y: value(np.concatenate(w), y) > threshold))


def test_trap_1_ours() -> None:
    assert_the_verdict_follows_the_drift(alarm_of_ours)


def assert_usual_movement_is_quiet(alarm: Callable[[Scorer, Rows, int], bool]) -> None:
    """Windows whose mean wanders as the reference's does: at most one of eight is called drift."""
    rng = np.random.default_rng(1)
    windows = [rng.normal(size=(300, 4)) + 0.3 * rng.normal(size=4) for _ in range(20)]
    scorer = scorer_of(windows[:12])
    assert sum(alarm(scorer, rows, 20 + k) for k, rows in enumerate(windows[12:])) <= 1


def test_trap_1_different_from_zero_is_not_an_alarm() -> None:
    def against_zero(scorer: Scorer, rows: Rows, week: int) -> bool:
        found = scored(scorer, rows, week).calibration
        assert found is not None
        return found.detectable_p < 0.01

    assert_usual_movement_is_quiet(lambda scorer, rows, week: warns(scored(scorer, rows, week)))
    fails(lambda: assert_usual_movement_is_quiet(against_zero))


Rule = Callable[[Rows, float], bool]


def assert_a_quiet_week_hardly_ever_alarms(rule: Rule) -> None:
    """Eight A/A scores and a ninth of the same distribution, 500 times: at most a hundredth alarm, but for chance."""
    u = np.random.default_rng(2).normal(size=(500, 9)) * 0.8
    alarms = [rule(np.exp(row[:8]), float(np.exp(row[8]))) for row in u]
    assert np.mean(alarms) <= beyond(0.01, 500)


def test_trap_1_thresholds_from_eight_windows() -> None:
    def ours(scores: Rows, score: float) -> bool:
        null = AANull(100, {str(k): float(s) for k, s in enumerate(scores)}, 0.01)
        found = calibrate(score, 0.01, null, null_sd_now=0.01, limits=LIMITS)
        return found.p_aa < LIMITS.warn_p and score > 0.03

    assert_a_quiet_week_hardly_ever_alarms(ours)
    fails(lambda: assert_a_quiet_week_hardly_ever_alarms(lambda scores, score: score > scores.max()))
    fails(lambda: assert_a_quiet_week_hardly_ever_alarms(lambda s, score: score > s.mean() + 3 * s.std(ddof=1)))
    mad = 1.4826 * 3
    fails(
        lambda: assert_a_quiet_week_hardly_ever_alarms(
            lambda s, score: score > np.median(s) + mad * np.median(np.abs(s - np.median(s)))
        )
    )


# 2, 3: p-values ------------------------------------------------------------------------------------------------------

Test = Callable[[Rows, Rows, int], float]


def assert_the_level_holds(p_value: Test, level: float = 0.1, trials: int = 60) -> None:
    """A large reference, a small window of the same distribution: no more rejections than the level says."""
    rng = np.random.default_rng(3)
    found = [p_value(rng.normal(size=(120, 3)), rng.normal(size=(20, 3)), k) for k in range(trials)]
    assert np.mean([p <= level for p in found]) <= beyond(level, trials)


def permutation_p(x: Rows, y: Rows, seed: int, permutations: int = 39) -> float:
    return gpudrift.permutation_test(x, y, permutations=permutations, seed=seed).p_value


def test_trap_2_a_null_of_the_reference_alone_at_another_size() -> None:
    def halves(x: Rows, y: Rows, seed: int) -> float:
        pooled, rng = np.concatenate([x, y]), np.random.default_rng(seed)
        distances = np.linalg.norm(pooled[:, None] - pooled[None], axis=-1)

        def v(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
            means = [distances[np.ix_(*sides)].mean() for sides in ((a, b), (a, a), (b, b))]
            return float(2 * means[0] - means[1] - means[2])

        observed = v(np.arange(len(x)), np.arange(len(x), len(pooled)))
        null = [v(*np.split(rng.permutation(len(x)), 2)) for _ in range(9)]
        return (1 + sum(value >= observed for value in null)) / 10

    assert_the_level_holds(permutation_p)
    fails(lambda: assert_the_level_holds(halves))


def test_trap_2_the_usual_movement_is_that_of_the_windows_own_size() -> None:
    """A window of fewer rows than n0 has a wider null; ours is made again at its size, and that is told."""
    rng = np.random.default_rng(4)
    scorer = scorer_of([rng.normal(size=(120, 4)) for _ in range(10)])
    small = scored(scorer, rng.normal(size=(15, 4)), 20).calibration
    large = scored(scorer, rng.normal(size=(120, 4)), 21).calibration
    assert small is not None
    assert large is not None
    assert (small.aa_n, small.aa_recomputed, large.aa_n, large.aa_recomputed) == (15, True, 120, False)

    def assert_wide_enough(limit: float) -> None:
        found = [energy(scorer.rows.centred.double().numpy(), rng.normal(size=(15, 4))) for _ in range(50)]
        assert np.mean(np.array(found) > limit) <= beyond(0.01, 50)

    assert_wide_enough(small.delta)
    fails(lambda: assert_wide_enough(large.delta))


def test_trap_3_p_values_of_zero() -> None:
    def k_over_b(x: Rows, y: Rows, seed: int) -> float:
        found = gpudrift.permutation_test(x, y, permutations=19, seed=seed)
        return float(np.mean(found.null >= found.value))

    def ours(x: Rows, y: Rows, seed: int) -> float:
        return permutation_p(x, y, seed, 19)

    def assert_never_zero(p_value: Test) -> None:
        rng = np.random.default_rng(5)
        assert p_value(rng.normal(size=(20, 2)), rng.normal(size=(20, 2)) + 50, 0) >= 1 / 20

    assert_never_zero(ours)
    fails(lambda: assert_never_zero(k_over_b))
    assert_the_level_holds(ours, 0.01, 120)
    fails(lambda: assert_the_level_holds(k_over_b, 0.01, 120))


# 4: the diagonal, and clamping ---------------------------------------------------------------------------------------


def assert_zero_on_average(statistic: Statistic) -> None:
    """Both clouds from one distribution on three points: the mean over ALL outcomes of 3 and 2 rows is exactly 0."""
    points, chances = np.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 2.0]]), (0.5, 0.3, 0.2)

    def sides(count: int) -> list[tuple[float, Rows]]:
        draws = itertools.combinations_with_replacement(range(3), count)
        found = []
        for draw in draws:
            times = [draw.count(k) for k in range(3)]
            orders = math.factorial(count) // math.prod(map(math.factorial, times))
            found.append((orders * math.prod(c**t for c, t in zip(chances, times, strict=True)), points[list(draw)]))
        return found

    mean = math.fsum(p * q * statistic(x, y) for (p, x), (q, y) in itertools.product(sides(3), sides(2)))
    assert abs(mean) < 1e-12


def mmd2(x: Rows, y: Rows) -> float:
    return float(gpudrift.mmd2(x, y, 0.8).value)


def test_trap_4_the_diagonal_kept_and_mmd_clamped() -> None:
    def diagonal_kept(x: Rows, y: Rows) -> float:
        xx, yy, xy = (np.exp(-((a[:, None] - b) ** 2).sum(-1) / 1.28) for a, b in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        return float(xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.mean())

    assert_zero_on_average(mmd2)
    assert_zero_on_average(energy)
    fails(lambda: assert_zero_on_average(diagonal_kept))
    fails(lambda: assert_zero_on_average(lambda x, y: max(0.0, mmd2(x, y))))
    fails(lambda: assert_zero_on_average(lambda x, y: max(0.0, energy(x, y))))
    fails(lambda: assert_zero_on_average(energy_v))


# 5: thresholds from the rows that were fitted ------------------------------------------------------------------------


def assert_fresh_rows_are_no_drift(alarm: Callable[[Rows, Rows], bool]) -> None:
    """Fresh rows of the reference's distribution, 50 dimensions: 30 windows at a level of a twentieth."""
    rng = np.random.default_rng(6)
    assert np.mean([alarm(rng.normal(size=(120, 50)), rng.normal(size=(200, 50))) for _ in range(30)]) <= beyond(
        0.05, 30
    )


def above_resampled(fitted: Rows, fresh: Rows) -> bool:
    """The threshold: the 95% quantile of the mean of as many of the fitted rows, drawn again and again."""
    rng = np.random.default_rng(0)
    null = [rng.choice(fitted, len(fresh)).mean() for _ in range(200)]
    return bool(fresh.mean() > np.quantile(null, 0.95))


def test_trap_5_thresholds_from_the_rows_that_were_fitted() -> None:
    def ours(x: Rows, y: Rows) -> bool:
        metric = residual_energy(x, y, 8)
        assert metric.se is not None
        return metric.value > 1.645 * metric.se

    def by_clusters(x: Rows, y: Rows) -> bool:
        centroids = k_means(torch.from_numpy(x), np.ones(len(x)), 10, seed=0, restarts=1).centroids
        of_x, of_y = (assign(torch.from_numpy(side), centroids)[1] for side in (x, y))
        return above_resampled(of_x, of_y)

    def by_residuals(x: Rows, y: Rows) -> bool:
        panel = panel_of(x, y, 8)
        return above_resampled(panel.px.residual.numpy(), panel.py.residual.numpy())

    assert_fresh_rows_are_no_drift(ours)
    fails(lambda: assert_fresh_rows_are_no_drift(by_residuals))
    fails(lambda: assert_fresh_rows_are_no_drift(by_clusters))


# 6: bandwidths -------------------------------------------------------------------------------------------------------


def assert_one_yardstick(mmd2_of: Callable[[Scorer, Rows, int], float]) -> None:
    """Every night's MMD^2 is that at the reference's median distance, whatever the night's own rows are like."""
    rng = np.random.default_rng(7)
    windows = [rng.normal(size=(60, 4)) for _ in range(8)]
    scorer = scorer_of(windows)
    for week, spread in enumerate((1.0, 1.5, 5.0), start=20):
        rows = spread * rng.normal(size=(60, 4))
        wanted = gpudrift.mmd2(np.concatenate(windows), rows, scorer.reference.pins.bandwidths[2]).value
        assert mmd2_of(scorer, rows, week) == pytest.approx(wanted, rel=1e-4)


def test_trap_6_a_bandwidth_of_its_own_every_night() -> None:
    def ours(scorer: Scorer, rows: Rows, week: int) -> float:
        found = scored(scorer, rows, week).measured
        assert found is not None
        assert found.metrics["mmd2_b3"].extra["bandwidth"] == scorer.reference.pins.bandwidths[2]
        return found.metrics["mmd2_b3"].value

    def every_night(scorer: Scorer, rows: Rows, _: int) -> float:
        x = scorer.rows.centred.double() + scorer.reference.pins.basis.mean
        pooled = torch.cat([x, torch.from_numpy(rows)])
        return float(gpudrift.mmd2(x, rows, median_distance(pooled, seed=0)).value)

    assert_one_yardstick(ours)
    fails(lambda: assert_one_yardstick(every_night))


def assert_sees_a_shift_at_768_dimensions(p_value: Test) -> None:
    """Eight times out of eight. At bandwidth 1 all values are below 1e-200, and the closest pair of all decides."""
    rng = np.random.default_rng(8)
    for k in range(8):
        assert p_value(rng.normal(size=(40, 768)), rng.normal(size=(40, 768)) + 0.2, k) <= 0.05


def test_trap_6_a_bandwidth_of_one() -> None:
    def mmd_p(x: Rows, y: Rows, seed: int, bandwidths: Sequence[float] | None = None) -> float:
        return gpudrift.permutation_test(x, y, "mmd", permutations=19, bandwidths=bandwidths, seed=seed).p_value

    assert_sees_a_shift_at_768_dimensions(mmd_p)
    fails(lambda: assert_sees_a_shift_at_768_dimensions(lambda x, y, seed: mmd_p(x, y, seed, [1.0])))


# 7, 8: what a metric cannot see --------------------------------------------------------------------------------------


def assert_seen(statistic: Statistic, x: Rows, y: Rows, relabellings: int = 29) -> None:
    """Larger than under any of these random relabellings."""
    rng, pooled = np.random.default_rng(0), np.concatenate([x, y])
    null = []
    for _ in range(relabellings):
        order = rng.permutation(len(pooled))
        null.append(statistic(pooled[order[: len(x)]], pooled[order[len(x) :]]))
    assert statistic(x, y) > max(null)


def drifts() -> dict[str, tuple[Rows, Rows]]:
    """Pairs of clouds of 4 dimensions; but for the shift, both have the same mean, exactly."""
    rng = np.random.default_rng(9)

    def centred(rows: Rows) -> Rows:
        return rows - rows.mean(0)

    noise = [centred(rng.normal(size=(100, 4))) for _ in range(2)]
    corners = np.array([[2.0, 2, 0, 0], [-2, -2, 0, 0], [2, -2, 0, 0], [-2, 2, 0, 0]])
    before, after = np.repeat(corners, [40, 40, 10, 10], axis=0), np.repeat(corners, [10, 10, 40, 40], axis=0)
    modes = np.repeat([[1.5, 0, 0, 0], [-1.5, 0, 0, 0]], 50, axis=0)
    return {
        "shift": (noise[0] + 3, noise[1] + 4.5),
        "spread": (noise[0], 1.8 * noise[1]),
        "mode split": (0.5 * noise[0], 0.5 * noise[1] + modes),
        "swapped clusters": (0.5 * noise[0] + before, 0.5 * noise[1] + after),
    }


def centroid_distance(x: Rows, y: Rows) -> float:
    return float(np.linalg.norm(x.mean(0) - y.mean(0)))


@pytest.mark.parametrize("kind", ["spread", "mode split", "swapped clusters"])
def test_trap_7_centroids_alone(kind: str) -> None:
    x, y = drifts()[kind]
    assert_seen(energy, x, y)
    fails(lambda: assert_seen(centroid_distance, x, y))


def test_trap_7_each_set_scaled_by_its_own_mean() -> None:
    def scaled(x: Rows, y: Rows) -> float:
        return energy(x - x.mean(0), y - y.mean(0))

    x, y = drifts()["shift"]
    assert_seen(energy, x, y)
    fails(lambda: assert_seen(scaled, x, y))


def test_trap_8_directions_that_the_axes_of_the_reference_drop() -> None:
    def on_the_axes(x: Rows, y: Rows) -> float:
        panel = panel_of(x, y, 2)
        return energy(panel.px.scores.numpy(), panel.py.scores.numpy())

    rng = np.random.default_rng(10)
    sd = np.array([5.0, 4, 0.3, 0.3, 0.3, 0.3])
    x, y = rng.normal(size=(80, 6)) * sd, rng.normal(size=(80, 6)) * sd * [1, 1, 1, 1, 1, 4]
    assert_seen(lambda a, b: residual_energy(a, b, 2).value, x, y)
    fails(lambda: assert_seen(on_the_axes, x, y))


# 9: any of d features ------------------------------------------------------------------------------------------------


def assert_the_level_does_not_grow_with_dimensions(alarm: Callable[[Rows, Rows, int], bool]) -> None:
    for d in (1, 8, 40):
        rng = np.random.default_rng(11)
        alarms = [alarm(rng.normal(size=(40, d)), rng.normal(size=(30, d)), k) for k in range(60)]
        assert np.mean(alarms) <= beyond(0.05, 60), d


def test_trap_9_any_of_d_features() -> None:
    def any_feature(x: Rows, y: Rows, _: int) -> bool:
        return any(ks_2samp(x[:, k], y[:, k]).pvalue < 0.05 for k in range(x.shape[1]))

    assert_the_level_does_not_grow_with_dimensions(lambda x, y, k: permutation_p(x, y, k, 39) <= 0.05)
    fails(lambda: assert_the_level_does_not_grow_with_dimensions(any_feature))


# 10: rows of one user ------------------------------------------------------------------------------------------------


def users(rng: np.random.Generator, count: int) -> tuple[Rows, NDArray[np.int64]]:
    """``count`` users of five rows that resemble each other."""
    rows = np.repeat(rng.normal(size=(count, 3)), 5, axis=0) + rng.normal(size=(5 * count, 3))
    return rows, np.repeat(np.arange(count), 5)


def assert_the_level_holds_for_users(p_value: Callable[..., float]) -> None:
    rng, found = np.random.default_rng(12), []
    for k in range(80):
        (x, of_x), (y, of_y) = users(rng, 15), users(rng, 15)
        found.append(p_value(x, y, of_x, of_y + 100, k))
    assert np.mean(np.array(found) <= 0.05) <= beyond(0.05, 80)


def test_trap_10_rows_of_one_user_as_if_independent() -> None:
    def by_user(x: Rows, y: Rows, of_x: NDArray[np.int64], of_y: NDArray[np.int64], seed: int) -> float:
        return gpudrift.permutation_test(x, y, "energy", of_x, of_y, 39, seed=seed).p_value

    assert_the_level_holds_for_users(by_user)
    fails(lambda: assert_the_level_holds_for_users(lambda x, y, _x, _y, seed: permutation_p(x, y, seed, 39)))


def test_trap_10_standard_errors_of_users() -> None:
    """Two clouds a fixed distance apart, 80 times: 95% intervals about the score cover the true one."""

    def assert_covers(se_of: Callable[..., tuple[float, float]]) -> None:
        rng, found = np.random.default_rng(13), []
        for _ in range(80):
            (x, of_x), (y, of_y) = users(rng, 30), users(rng, 30)
            found.append(se_of(x, y + 0.8, of_x, of_y + 100))
        values, errors = np.array(found).T
        assert np.mean(np.abs(values - values.mean()) <= 1.96 * errors) >= 0.95 - 3.1 * math.sqrt(0.05 * 0.95 / 80)

    def by_user(x: Rows, y: Rows, of_x: NDArray[np.int64], of_y: NDArray[np.int64]) -> tuple[float, float]:
        found = gpudrift.energy_distance(x, y, clusters_x=of_x, clusters_y=of_y)
        return float(found.value), float(found.se)

    def by_row(x: Rows, y: Rows, *_: object) -> tuple[float, float]:
        found = gpudrift.energy_distance(x, y)
        return float(found.value), float(found.se)

    assert_covers(by_user)
    fails(lambda: assert_covers(by_row))


# 11: two series that trend -------------------------------------------------------------------------------------------


def trending(rng: np.random.Generator, windows: int = 26) -> Rows:
    """Noise with a memory of 0.8 on a trend: two of them know nothing of each other."""
    noise = rng.normal(size=windows)
    for k in range(1, windows):
        noise[k] += 0.8 * noise[k - 1]
    return 5 * rng.choice((-1.0, 1.0)) * np.linspace(0, 1, windows) + noise


def largest_of_five_correlations(score: Rows, metric: Rows) -> bool:
    """The mistake: whether Pearson's correlation is significant at any of the lags 0 to 4."""
    return any(pearsonr(score[: len(score) - lag], metric[lag:]).pvalue < 0.05 for lag in range(5))


def linked(score: Rows, metric: Rows) -> bool:
    """Ours, at the same level."""
    period = Period("week")
    windows = [period.window_at(MONDAY)]
    while len(windows) < len(score):
        windows.append(period.next(windows[-1]))
    points = [
        HistoryPoint(w, "stable", float(s), 1e-4, 0.5, 0.5, 1e-6, 1.0, None, None, 300)
        for w, s in zip(windows, np.exp(score - 9), strict=True)
    ]
    series = OutcomeSeries("rate", "lower", ALL, tuple(windows), metric, np.full(len(metric), np.nan))
    (finding,) = analyse([series], [{ALL: point} for point in points], period, permutations=499).findings
    return finding.link != "insufficient" and finding.p is not None and finding.p <= 0.05


def test_trap_11_correlations_of_two_trending_series() -> None:
    rng = np.random.default_rng(11)
    pairs = [(trending(rng), trending(rng)) for _ in range(60)]

    def false_findings(method: Callable[[Rows, Rows], bool]) -> int:
        return sum(method(score, metric) for score, metric in pairs)

    assert false_findings(linked) <= 8  # 3 expected at 5%
    assert false_findings(largest_of_five_correlations) > 40


# 12: references that follow ------------------------------------------------------------------------------------------


def assert_slow_drift_alerts(reference_of: Callable[[list[Rows], int], Scorer]) -> None:
    """After ten quiet weeks the mean moves by a tenth of an sd a week, for twenty weeks."""
    rng, shift = np.random.default_rng(14), np.array([1.0, 0, 0, 0])
    weekly = [rng.normal(size=(80, 4)) + max(0, k - 10) * 0.1 * shift for k in range(30)]
    before: HistoryPoint | None = None
    for week in range(24, 30):
        found = scored(reference_of(weekly, week), weekly[week], week)
        verdict, _ = decide(found.judgement, before, LIMITS)
        before = found.point(verdict)
    assert before is not None
    assert before.verdict == "alert"


def test_trap_12_a_reference_that_follows() -> None:
    pinned: list[Scorer] = []

    def ours(weekly: list[Rows], _: int) -> Scorer:
        pinned[:] = pinned or [scorer_of(weekly[:10])]
        return pinned[0]

    assert_slow_drift_alerts(ours)
    fails(lambda: assert_slow_drift_alerts(lambda weekly, week: scorer_of(weekly[week - 10 : week], week - 10)))


# more that is easily got wrong ---------------------------------------------------------------------------------------


def psi_of(x: Rows, y: Rows, name: str = "psi") -> Metric:
    """A divergence of two samples of one dimension, on the deciles of the first."""
    edges = np.quantile(x, np.arange(1, 10) / 10)
    bins = [torch.from_numpy(np.digitize(side, edges))[None] for side in (x, y)]
    counts = [torch.bincount(of[0], minlength=10)[None] for of in bins]
    return next(m for m in divergences.from_bins(counts[0], counts[1], bins[0], bins[1]) if m.name == name)


def assert_centred(values: Sequence[float], raw: Sequence[float]) -> None:
    """Without drift the mean is 0, but for a tenth of what it is before the null mean is removed."""
    assert abs(np.mean(values)) < 0.1 * np.mean(raw)


@pytest.mark.parametrize("name", ["psi", "kl", "js"])
def test_null_means_of_divergences(name: str) -> None:
    rng = np.random.default_rng(15)
    found = [psi_of(rng.normal(size=200), rng.normal(size=150), name) for _ in range(300)]
    raw = [float(metric.extra["raw"]) for metric in found]
    assert_centred([metric.value for metric in found], raw)
    fails(lambda: assert_centred(raw, raw))


def test_the_customary_limit_of_psi() -> None:
    def assert_rarely_above(values_of: Callable[[Metric], float]) -> None:
        rng = np.random.default_rng(15)
        found = [values_of(psi_of(rng.normal(size=200), rng.normal(size=150))) for _ in range(300)]
        assert np.mean(np.array(found) > 0.1) < 0.1

    assert_rarely_above(lambda metric: metric.value)
    fails(lambda: assert_rarely_above(lambda metric: metric.extra["raw"]))  # about half of them


def test_null_mean_of_frechet() -> None:
    rng = np.random.default_rng(16)
    panels = [panel_of(rng.normal(size=(300, 12)), rng.normal(size=(60, 12)), 2) for _ in range(20)]
    found = [frechet.compute(panel)[0] for panel in panels]
    raw = [float(metric.extra["raw"]) for metric in found]
    assert_centred([metric.value for metric in found], raw)
    fails(lambda: assert_centred(raw, raw))


def test_a_cloud_against_itself() -> None:
    """E_V is 0, E_U slightly below, and its calibration has a p-value: no root, no bare logarithm."""
    rows = np.random.default_rng(17).normal(size=(100, 4))
    assert energy_v(rows, rows) == pytest.approx(0, abs=1e-8)
    value = energy(rows, rows)
    assert -0.2 < value < 0

    def assert_has_a_place(p_of: Callable[[float, Rows, float], float]) -> None:
        assert p_of(value, np.array([0.01, -0.02, 0.005, 0.0, 0.02, -0.01, 0.0, 0.01]), 0.01) > 0.05

    def ours(score: float, scores: Rows, c: float) -> float:
        null = AANull(100, {str(k): float(s) for k, s in enumerate(scores)}, c)
        return calibrate(score, 0.01, null, null_sd_now=c, limits=LIMITS).p_aa

    def unfloored(score: float, scores: Rows, c: float) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            u, now = np.log(scores + c), np.log(np.float64(score) + c)
        return float(norm.sf((now - u.mean()) / u.std()))

    assert_has_a_place(ours)
    fails(lambda: assert_has_a_place(unfloored))


def assert_told(tell: Callable[[Scored], str]) -> None:
    """A/A scores that follow each other, week after week, and scores that do not."""
    rng = np.random.default_rng(9)
    walk = np.cumsum(rng.normal(size=(14, 4)) * 0.2, axis=0)
    for moves, wanted in ((walk, True), (rng.normal(size=(14, 4)) * 0.3, False)):
        windows = [rng.normal(size=(100, 4)) + move for move in moves]
        assert ("autocorrelated" in tell(scored(scorer_of(windows), rng.normal(size=(100, 4)), 20))) is wanted


def test_autocorrelated_movement_is_told() -> None:
    def unordered(found: Scored) -> str:
        """Lag one of the scores by size: high whatever happened."""
        assert found.calibration is not None
        return "autocorrelated" if (lag_one(sorted(found.calibration.aa_scores.values())) or 0) > 0.3 else ""

    assert_told(lambda found: " ".join(notes.calibration_notes(found)))
    fails(lambda: assert_told(lambda _: ""))
    fails(lambda: assert_told(unordered))


def test_a_far_origin_does_not_drown_the_score() -> None:
    """Rows at 1000 in float32: distances from products lose their digits unless the rows are centred first."""

    def assert_same(statistic: Statistic) -> None:
        rng = np.random.default_rng(19)
        x, y = (1000 + rng.normal(size=(150, 8)) + shift for shift in (0.0, 0.15))
        single = [side.astype(np.float32) for side in (x, y)]
        exact = energy(*(side.astype(np.float64) for side in single))
        assert statistic(*single) == pytest.approx(exact, rel=1e-5)

    def from_products(x: Rows, y: Rows) -> float:
        means = []
        for a, b in ((x, x), (y, y), (x, y)):
            squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
            distances = np.sqrt(np.maximum(squares, 0), dtype=np.float32)
            if a is b:
                np.fill_diagonal(distances, 0)
            means.append(distances.sum(dtype=np.float64) / (len(a) * (len(b) - (a is b))))
        return float(2 * means[2] - means[0] - means[1])

    assert_same(lambda x, y: float(gpudrift.energy_distance(x, y, precision="float32").value))
    fails(lambda: assert_same(from_products))
