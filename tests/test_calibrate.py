"""The A/A rule against its plain re-computation with scipy, hygiene on planted bursts, every branch of the verdict, and
the rate of false alarms where nothing moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpudrift.calibrate import (
    GATES,
    AANull,
    Judgement,
    Limits,
    MetricNull,
    calibrate,
    clean,
    decide,
    gate,
    judge,
    lag_one,
    p_panel,
)
from gpudrift.records import Calibration, GateMetric, HistoryPoint, Metric, Verdict, Window
from gpudrift.student_t import P_FLOOR, student_t_quantile, student_t_upper

LIMITS = Limits()
Z_95, Z_80 = stats.norm.ppf(0.95), stats.norm.ppf(0.8)
MOVEMENT = (0.011, 0.004, 0.019, 0.007, -0.001, 0.013, 0.006, 0.023, 0.009)


def null_of(scores: Sequence[float], c: float = 0.002, n0: int = 500) -> AANull:
    return AANull(n0, {f"w{k}": float(s) for k, s in enumerate(scores)}, c)


def gated(score: float, p_aa: float, p_close: float | None, sd: float | None = 1.0, name: str = "energy") -> GateMetric:
    """A gating metric that is a family of its own."""
    return GateMetric(name, score, 0.1, sd, 0.0, p_aa, p_aa, None, 1.0, p_close)


def calibrated(score: float, se: float = 0.003, null: AANull | None = None, limits: Limits = LIMITS) -> Calibration:
    return calibrate(score, se, null or null_of(MOVEMENT), null_sd_now=0.0015, limits=limits)


@pytest.mark.parametrize("dof", [*range(1, 61), 999])
def test_the_t_distribution_is_that_of_scipy(dof: int) -> None:
    for t in (0.0, 1e-6, 0.3, 1.0, 2.5, 4.0, 7.5):
        wanted = stats.t.sf(t, dof)
        assert student_t_upper(t, dof) == pytest.approx(max(wanted, P_FLOOR), rel=1e-9, abs=1e-15)
        assert student_t_upper(-t, dof) == pytest.approx(1 - wanted, rel=1e-9)
    for p in (0.001, 0.05, 0.4, 0.5, 0.6, 0.95, 0.99, 0.9999):
        assert student_t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-8, abs=1e-12)


def test_a_p_value_has_a_floor_and_bad_arguments_are_refused() -> None:
    assert student_t_upper(1e6, 60) == P_FLOOR
    assert math.isfinite(student_t_quantile(1 - 1e-15, 11))  # beyond the floor: ends, where an endless search would not
    for p in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="p must be"):
            student_t_quantile(p, 5)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t_upper(1.0, 0)


@settings(max_examples=60)
@given(
    scores=st.lists(st.floats(-0.01, 0.5), min_size=3, max_size=30),
    score=st.floats(-0.02, 5.0),
    se=st.floats(1e-6, 0.1),
    c=st.floats(1e-6, 0.1),
    now=st.floats(1e-6, 0.1),
)
def test_the_rule_is_the_documented_one(scores: list[float], score: float, se: float, c: float, now: float) -> None:
    """u = log(max(s, 0) + c) against a t(K - 1) prediction, sd of u at least .5; everything else follows from it."""
    found = calibrate(score, se, null_of(scores, c), null_sd_now=now, limits=LIMITS)
    u, dof = np.log(np.maximum(scores, 0) + c), len(scores) - 1
    width = max(u.std(ddof=1), 0.5) * math.sqrt(1 + 1 / len(scores))
    t = (math.log(max(score, 0) + c) - u.mean()) / width
    assert found.p_aa == pytest.approx(max(stats.t.sf(t, dof), P_FLOOR), rel=1e-6, abs=1e-14)
    assert found.delta == pytest.approx(math.exp(u.mean() + width * stats.t.ppf(0.99, dof)) - c, rel=1e-6, abs=1e-9)
    limit = math.exp(u.mean() + width * stats.t.ppf(0.95, dof)) - c
    assert found.clear_limit == pytest.approx(limit, rel=1e-6, abs=1e-9)
    assert found.p_close == pytest.approx(stats.norm.cdf((found.delta - score) / se), rel=1e-6, abs=1e-12)
    assert found.ci == pytest.approx((score - stats.norm.ppf(0.975) * se, score + stats.norm.ppf(0.975) * se))
    assert found.ratio == pytest.approx(score / max(float(np.median(scores)), c), rel=1e-12)
    assert found.detectable_p == pytest.approx(max(stats.norm.sf(score / now), P_FLOOR), rel=1e-6)
    assert found.smallest_detectable == pytest.approx((Z_95 + Z_80) * now, rel=1e-9)
    assert found.smallest_alerting == pytest.approx(found.delta + (Z_95 + Z_80) * se, rel=1e-9)
    assert (found.null_sd, found.aa_n, dict(found.aa_scores)) == (c, 500, dict(null_of(scores).scores))


def test_the_limits_are_those_of_the_p_values() -> None:
    """delta is where p_AA = warn_p, clear_limit where p_AA = clear_p."""
    limits = Limits(warn_p=0.002, clear_p=0.1)
    found = calibrated(0.02, limits=limits)
    assert calibrated(found.delta, limits=limits).p_aa == pytest.approx(0.002, rel=1e-8)
    assert calibrated(found.clear_limit, limits=limits).p_aa == pytest.approx(0.1, rel=1e-8)


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [(-1, "none"), (1.99, "none"), (2.01, "low"), (3.99, "low"), (4.01, "medium"), (7.99, "medium"), (8.01, "high")],
)
def test_severity_follows_the_ratio(ratio: float, severity: str) -> None:
    found = calibrated(ratio * float(np.median(MOVEMENT)))
    assert (found.ratio, found.severity) == (pytest.approx(ratio), severity)


def test_the_floor_of_the_sd_keeps_ties_from_alarming() -> None:
    """All A/A scores at or below 0: u is log c twelve times and its sd 0. A score of 2 c is then no alarm."""
    ties = null_of([-0.001, 0.0, -0.0005] * 4, c=0.001)
    found = calibrated(0.002, null=ties)
    assert found.p_aa == pytest.approx(stats.t.sf(math.log(3) / (0.5 * math.sqrt(1 + 1 / 12)), 11))
    assert found.p_aa > LIMITS.warn_p


def test_the_floor_of_the_score_keeps_small_scores_from_warning() -> None:
    """60 ties: the prediction is so narrow that 2.9 c has p_AA < .01. It is no warning, since it is below 3 c."""
    ties = null_of([0.0] * 60, c=0.001)
    for score, warns in ((0.0029, False), (0.0031, True)):
        found = calibrated(score, null=ties)
        assert found.p_aa < LIMITS.warn_p
        judged = judge([gated(found.score, found.p_aa, found.p_close, found.null_sd)], LIMITS)
        assert judged is not None
        assert judged.warn is warns


def test_a_reference_without_any_spread_gives_numbers_not_a_crash() -> None:
    """c = 0 and no A/A score above 0, as for a reference of so few rows that the variance estimate is not positive."""
    found = calibrate(0.5, 0.0, null_of([0.0, -0.1, 0.0], c=0.0), null_sd_now=0.0, limits=LIMITS)
    assert found.p_aa < 1e-6
    assert (found.p_close, found.detectable_p, found.severity) == (0.0, P_FLOOR, "high")
    nothing = calibrate(0.0, 0.0, null_of([0.0, -0.1, 0.0], c=0.0), null_sd_now=0.0, limits=LIMITS)
    assert (nothing.p_close, nothing.ratio, nothing.severity) == (1.0, 0.0, "none")


def test_lag_one_autocorrelation() -> None:
    values = np.random.default_rng(0).normal(size=30)
    centred = values - values.mean()
    assert lag_one(list(values)) == pytest.approx(centred[1:] @ centred[:-1] / (centred @ centred))
    assert lag_one([1.0, 2.0, 3.0]) is None
    assert lag_one([2.0] * 8) is None


def clean_of(u: Sequence[float], hygiene_sd: float = 4.0) -> tuple[tuple[int, ...], tuple[tuple[int, float], ...], int]:
    """Hygiene over windows whose log scores are fixed: kept, dropped, and how often they were scored."""
    calls = []

    def score_windows(kept: Sequence[int]) -> AANull:
        calls.append(tuple(kept))
        return AANull(10, {f"w{k}": math.exp(u[k]) for k in kept}, 1e-9)

    found = clean(score_windows, len(u), hygiene_sd)
    assert calls[-1] == found.kept
    assert list(found.null.scores) == [f"w{k}" for k in found.kept]
    return found.kept, found.dropped, len(calls)


def test_hygiene_drops_planted_bursts_with_the_scores_they_had() -> None:
    u = [0.1, -0.2, 0.0, 4.0, 0.2, -0.1, 0.3, 3.5, 0.0]
    kept, dropped, scored = clean_of(u)
    assert kept == (0, 1, 2, 4, 5, 6, 8)
    assert dropped == ((3, pytest.approx(math.exp(4.0))), (7, pytest.approx(math.exp(3.5))))
    assert scored == 2


def test_hygiene_goes_on_until_none_stands_out() -> None:
    """Two bursts at 30 widen the spread so far that the third, at 4.5, shows only once they have left."""
    kept, dropped, scored = clean_of([0, 0, 0, 0, 1, 1, 1, 4.5, 30, 30])
    assert (kept, [k for k, _ in dropped], scored) == (tuple(range(7)), [7, 8, 9], 3)


def test_hygiene_has_a_floor_and_looks_upward_only() -> None:
    assert clean_of([0, 0, 0, 0, 0, 1.9])[1] == ()  # equal windows: the spread is taken as .5, four of it as 2
    assert [k for k, _ in clean_of([0, 0, 0, 0, 0, 2.1])[1]] == [5]
    assert clean_of([0, 0, 0, 0, 0, 1.9], hygiene_sd=3.0)[0] == (0, 1, 2, 3, 4)
    assert clean_of([0, 0, 0, 0, 0, -15])[1] == ()


def test_hygiene_keeps_three_windows_at_least() -> None:
    assert clean_of([0, 0, 0, 30])[0] == (0, 1, 2)
    assert clean_of([0, 0, 30])[:2] == ((0, 1, 2), ())


@settings(max_examples=80)
@given(u=st.lists(st.floats(-5, 5), min_size=3, max_size=25), hygiene_sd=st.floats(0.5, 8))
def test_what_hygiene_leaves_holds_nothing_that_stands_out(u: list[float], hygiene_sd: float) -> None:
    kept, dropped, _ = clean_of(u, hygiene_sd)
    assert sorted([*kept, *(k for k, _ in dropped)]) == list(range(len(u)))
    assert len(kept) >= 3
    left = np.log(np.exp(np.array([u[k] for k in kept])) + 1e-9)
    spread = max(1.4826 * float(np.median(np.abs(left - np.median(left)))), 0.5)
    out = int((left > np.median(left) + hygiene_sd * spread * (1 + 1e-9)).sum())
    assert out == 0 or len(kept) - out < 3


CALM = Judgement(warn=False, alarm=False, calm=True)
UNEASY = Judgement(warn=False, alarm=False, calm=False)  # between the clear limit and a warning
WARN = Judgement(warn=True, alarm=False, calm=False)
ALARM = Judgement(warn=True, alarm=True, calm=False)
# p_AA, p_close and score with which ``judge`` gives each of them again, at a null sd of 1
NUMBERS = {CALM: (0.5, 1.0, 0.0), UNEASY: (0.02, 1.0, 5.0), WARN: (0.001, 0.5, 10.0), ALARM: (1e-6, 1e-6, 50.0)}
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def before(judged: Judgement | None, verdict: Verdict) -> HistoryPoint:
    """The window before, as the history keeps it."""
    p_aa, p_close, score = (None, None, None) if judged is None else NUMBERS[judged]
    window = Window(MONDAY, MONDAY + timedelta(days=7), "2026-W02")
    sd = None if judged is None else 1.0
    gates = () if score is None else (gated(score, p_aa, p_close),)
    return HistoryPoint(window, verdict, score, 0.1, p_aa, p_close, sd, 1.0, 1.0, 1.0, rows=100, gates=gates)


@pytest.mark.parametrize("judged", NUMBERS)
def test_a_judgement_follows_from_the_gating_metrics(judged: Judgement) -> None:
    p_aa, p_close, score = NUMBERS[judged]
    assert judge([gated(score, p_aa, p_close)], LIMITS) == judged
    assert judge([], LIMITS) is None


@pytest.mark.parametrize(
    ("score", "p_aa", "p_close", "wanted"),
    [
        (50.0, 0.01, 0.0, UNEASY),  # p_AA at warn_p is not below it
        (3.0, 0.0, 0.0, replace(UNEASY, calm=False)),  # a score at 3 c is not above it
        (50.0, 0.0, 0.05, WARN),  # p_close at close_p is not below it
        (50.0, 0.05, 0.0, CALM),  # p_AA at clear_p is calm
        (50.0, 0.0, 0.0, ALARM),
    ],
)
def test_a_judgement_at_its_limits(score: float, p_aa: float, p_close: float, wanted: Judgement) -> None:
    assert judge([gated(score, p_aa, p_close)], LIMITS) == wanted
    # among others that are calm, wherever it stands
    calm = gated(0.0, 1.0, 1.0, None, "residual_energy")
    for gates in ([calm, gated(score, p_aa, p_close)], [gated(score, p_aa, p_close), calm]):
        assert judge(gates, LIMITS) == wanted


@pytest.mark.parametrize(
    ("now", "previous", "verdict", "words"),
    [
        (None, None, "insufficient", "too little data"),
        (None, before(ALARM, "alert"), "insufficient", "too little data"),
        (CALM, None, "stable", "no more than"),
        (UNEASY, before(CALM, "stable"), "stable", "no more than"),
        (WARN, None, "warning", "perhaps not by much"),
        (WARN, before(ALARM, "warning"), "warning", "perhaps not by much"),
        (ALARM, None, "warning", "no window before"),
        (ALARM, before(None, "insufficient"), "warning", "no score"),
        (ALARM, before(CALM, "stable"), "warning", "2026-W02"),
        (ALARM, before(WARN, "warning"), "warning", "2026-W02"),
        (ALARM, before(ALARM, "warning"), "alert", "both"),
        (ALARM, before(ALARM, "alert"), "alert", "both"),
        (CALM, before(ALARM, "alert"), "alert", "holds"),
        (UNEASY, before(CALM, "alert"), "alert", "holds"),
        (CALM, before(UNEASY, "alert"), "alert", "holds"),
        (ALARM, before(CALM, "alert"), "alert", "holds"),
        (CALM, before(CALM, "alert"), "stable", "no more than"),
        (CALM, before(ALARM, "warning"), "stable", "no more than"),
    ],
)
def test_every_branch_of_the_verdict(
    now: Judgement | None, previous: HistoryPoint | None, verdict: Verdict, words: str
) -> None:
    found, reason = decide(now, previous, LIMITS)
    assert found == verdict
    assert words in reason


@settings(max_examples=200)
@given(st.lists(st.sampled_from([CALM, UNEASY, WARN, ALARM, None]), min_size=1, max_size=25))
def test_an_alert_begins_with_two_alarms_running_and_ends_with_two_calm_windows(
    judgements: list[Judgement | None],
) -> None:
    previous, last = None, None
    for now in judgements:
        verdict, _ = decide(now, previous, LIMITS)
        held = previous is not None and previous.verdict == "alert"
        both = now == ALARM and last == ALARM
        cleared = now == CALM and last == CALM
        assert (verdict == "alert") == (now is not None and (both or (held and not cleared)))
        assert (verdict == "insufficient") == (now is None)
        if verdict == "stable":
            assert now is not None
            assert not now.warn
        previous, last = before(now, verdict), now


def rates(scores: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    """scores (windows, K + 1): the last is the current one. p_AA of each, and the share of warnings."""
    p_values, warnings = [], 0
    for row in scores:
        found = calibrated(float(row[-1]), null=null_of(row[:-1], c))
        p_values.append(found.p_aa)
        judged = judge([gated(found.score, found.p_aa, found.p_close, c)], LIMITS)
        warnings += judged is not None and judged.warn
    return np.array(p_values), warnings / len(scores)


def test_where_windows_move_alike_p_aa_is_uniform() -> None:
    """13 log-normal scores far above c, sd of the log 1: the prediction is exact, and a hundredth of windows warn.
    Bounds: Kolmogorov-Smirnov p > .001; at 1000 windows the share of p_AA < .01 within .01 +- 3 sd."""
    scores = np.exp(np.random.default_rng(11).normal(-4, 1, size=(1000, 13)))
    p_values, warned = rates(scores, 1e-9)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    assert 0 < np.mean(p_values < LIMITS.warn_p) < 0.0195
    assert 0 < warned < 0.0195


@pytest.mark.parametrize("count", [8, 26])
def test_where_nothing_moves_at_all_few_windows_warn(count: int) -> None:
    """Scores that are sampling noise alone, normal with sd c about 0: at most 1% of 1000 windows warn, where p_AA
    without its floors would in more than 2%."""
    c = 0.001
    scores = np.random.default_rng(count).normal(0, c, size=(1000, count + 1))
    _, warned = rates(scores, c)
    assert warned <= 0.01
    u = np.log(np.maximum(scores, 0) + c)
    width = np.maximum(u[:, :-1].std(1, ddof=1), 1e-9) * math.sqrt(1 + 1 / count)
    bare = stats.t.sf((u[:, -1] - u[:, :-1].mean(1)) / width, count - 1)
    assert np.mean(bare < LIMITS.warn_p) > 0.02


def test_a_score_that_is_not_a_number_is_never_stable() -> None:
    limits = Limits()
    for values in ((math.nan, 0.5, 0.5, 0.1), (0.1, math.nan, 0.5, 0.1), (0.1, 0.5, 0.5, math.nan)):
        assert judge([gated(*values)], limits) is None
    assert judge([gated(0.1, 0.5, 0.5, 0.1)], limits) is not None


def test_an_alarm_needs_a_metric_that_both_warns_and_is_surely_beyond_its_limit() -> None:
    """One metric that warns without certainty and another that is certain of being beyond nothing make no alarm."""
    unsure, sure = gated(50.0, 1e-6, 0.5), gated(50.0, 0.02, 1e-6, name="mmd2_b1")
    assert judge([unsure, sure], LIMITS) == Judgement(warn=True, alarm=False, calm=False)
    without_error = replace(unsure, p_close=None)
    assert judge([without_error], LIMITS) == Judgement(warn=True, alarm=False, calm=False)
    signed = gated(-0.2, 1e-6, 1e-6, None, "log_variance_ratio")  # below 0, and no floor of 3 c
    assert judge([signed], LIMITS) == ALARM


SIGNED_VALUES = (0.01, -0.02, 0.005, 0.013, -0.007, 0.0, -0.011, 0.021)


def family(**others: MetricNull) -> AANull:
    return replace(null_of(MOVEMENT), others=others)


def test_energy_gates_as_it_is_calibrated() -> None:
    for score in (-0.01, 0.0, 0.01, 0.04, 0.3):
        found = calibrated(score)
        (own,) = gate({"energy": Metric("energy", score, 0.003)}, family(), ["energy"], LIMITS)
        assert (own.p_aa, own.p_close, own.high, own.null_sd) == (found.p_aa, found.p_close, found.delta, found.null_sd)
        assert (own.p_holm, own.low, own.usual) == (own.p_aa, None, found.aa_median)


@pytest.mark.parametrize("value", [-0.2, -0.03, 0.0, 0.03, 0.2])
def test_a_signed_metric_is_held_against_a_two_sided_t_prediction(value: float) -> None:
    null = family(residual_energy=MetricNull({f"w{k}": v for k, v in enumerate(SIGNED_VALUES)}, None))
    (own,) = gate({"residual_energy": Metric("residual_energy", value, 0.004)}, null, ["residual_energy"], LIMITS)
    mean, sd, count = np.mean(SIGNED_VALUES), np.std(SIGNED_VALUES, ddof=1), len(SIGNED_VALUES)
    width = sd * math.sqrt(1 + 1 / count)
    assert own.p_aa == pytest.approx(2 * stats.t.sf(abs(value - mean) / width, count - 1), rel=1e-9)
    reach = width * stats.t.ppf(1 - LIMITS.warn_p / 2, count - 1)
    assert (own.low, own.high) == pytest.approx((mean - reach, mean + reach), rel=1e-8)
    beyond = value - own.high if value > mean else own.low - value
    assert own.p_close == pytest.approx(max(stats.norm.sf(beyond / 0.004), P_FLOOR), rel=1e-7)
    assert (own.null_sd, own.usual) == (None, np.median(SIGNED_VALUES))


def test_signed_values_that_lie_closer_than_sampling_lets_them_are_no_yardstick() -> None:
    """Eight equal values: their sd of 0 would make any value an alarm. The window's standard error stands in."""
    null = family(residual_energy=MetricNull(dict.fromkeys("abcdefgh", 0.01), None))
    (own,) = gate({"residual_energy": Metric("residual_energy", 0.02, 0.01)}, null, ["residual_energy"], LIMITS)
    assert own.p_aa == pytest.approx(2 * stats.t.sf(1 / math.sqrt(1 + 1 / 8), 7))
    assert gate({"residual_energy": Metric("residual_energy", 0.02, None)}, null, ["residual_energy"], LIMITS) == ()


def test_the_family_is_adjusted_by_holm_over_the_metrics_that_can_be_judged() -> None:
    values = {f"w{k}": v for k, v in enumerate(SIGNED_VALUES)}
    null = family(
        mmd2_b1=MetricNull({f"w{k}": v for k, v in enumerate(MOVEMENT)}, 0.002),
        mmd2_b2=MetricNull({f"w{k}": v for k, v in enumerate(MOVEMENT)}, math.nan),  # no noise level
        log_variance_ratio=MetricNull(values, None),
        residual_energy=MetricNull({**values, "w0": math.nan}, None),  # a value is missing
    )
    panel = {
        name: Metric(name, value, 0.003)
        for name, value in {
            "energy": 0.05, "mmd2_b1": 0.02, "mmd2_b2": 0.1, "log_variance_ratio": 0.05, "residual_energy": 0.1
        }.items()
    }  # fmt: skip
    found = {g.metric: g for g in gate(panel, null, GATES, LIMITS)}
    assert set(found) == {"energy", "mmd2_b1", "log_variance_ratio"}
    ranked = sorted(found.values(), key=lambda g: g.p_aa)
    assert ranked[0].p_holm == pytest.approx(3 * ranked[0].p_aa)
    assert ranked[1].p_holm == pytest.approx(max(ranked[0].p_holm, 2 * ranked[1].p_aa))
    assert p_panel(list(found.values())) == ranked[0].p_holm
    assert p_panel([]) is None
    with_nan = {**panel, "energy": Metric("energy", math.nan, 0.003)}
    assert {g.metric for g in gate(with_nan, null, GATES, LIMITS)} == {"mmd2_b1", "log_variance_ratio"}


def test_a_window_of_the_reference_leaves_its_own_values_out_of_every_null() -> None:
    values = {f"w{k}": v for k, v in enumerate(SIGNED_VALUES)}
    null = family(log_variance_ratio=MetricNull(values, None)).without("w3")
    assert "w3" not in null.scores
    assert "w3" not in null.others["log_variance_ratio"].scores
    assert len(null.scores) == len(MOVEMENT) - 1
    assert null.of("energy") == MetricNull(null.scores, null.null_sd)
    assert null.of("frechet") is None


def test_a_reference_without_null_spread_drops_no_window() -> None:
    null = AANull(10, {"a": 0.0, "b": 0.0, "c": 5.0, "d": 0.0}, 0.0)
    assert clean(lambda _kept: null, 4, 4.0).dropped == ()
