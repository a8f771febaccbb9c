"""The event study: which windows count, what is averaged, p by enumeration, bands, reasons."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_history import drift_of
from scipy import stats

from gpudrift.outcomes import events
from gpudrift.outcomes.events import around, event_study, onsets, undisturbed

RNG = np.random.default_rng
SPIKES = (15, 30, 45, 60, 75, 90)


def test_an_onset_follows_a_scored_window_that_is_no_spike() -> None:
    drift = drift_of(12, (0, 1, 4, 5, 6, 9))
    assert onsets(drift).tolist() == [4, 9]
    scores = drift.scores.copy()
    scores[[3, 8]] = np.nan  # the scored windows before 4 and 9 are 2, which does not spike, and 7
    assert onsets(replace(drift, scores=scores)).tolist() == [4, 9]
    scores[7] = np.nan  # now it is 6, which does
    assert onsets(replace(drift, scores=scores)).tolist() == [4]


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)), st.integers(0, 5))
def test_undisturbed_windows_are_quiet_and_have_no_spike_near(spikes: set[int], quiet: set[int], lags: int) -> None:
    drift = drift_of(30, sorted(spikes), sorted(quiet))
    wanted = [t for t in range(30) if t in quiet and not spikes & set(range(t - lags - 1, t + lags + 1))]
    assert undisturbed(drift, lags).tolist() == wanted


def test_the_change_is_the_mean_from_the_onset_on_less_the_mean_before() -> None:
    values = RNG(0).normal(size=40)
    found = around(values, np.array([10, 20]), 2)
    for row, t in enumerate((10, 20)):
        base = values[t - 3 : t].mean()
        assert found.changes[row] == pytest.approx(values[t : t + 3].mean() - base)
        np.testing.assert_allclose(found.profiles[row], values[t - 3 : t + 3] - base, atol=1e-12)


def test_half_of_either_side_must_be_there() -> None:
    values = RNG(1).normal(size=40)
    values[[17, 18, 21]] = np.nan  # of t = 20: 1 of 3 before
    values[[31, 32]] = np.nan  # of t = 30: 1 of 3 from it on
    values[12] = np.nan  # of t = 10: 2 of 3
    found = around(values, np.array([1, 10, 20, 30, 39]), 2)
    assert found.places.tolist() == [10]
    assert found.changes[0] == pytest.approx(values[[10, 11]].mean() - values[7:10].mean())
    assert np.isnan(found.profiles[0]).tolist() == [False] * 5 + [True]


def test_a_study_tells_change_interval_profile_and_band() -> None:
    rng = RNG(2)
    values = 0.1 * rng.normal(size=110)
    values[[t + k for t in SPIKES for k in (0, 1, 2)]] -= 1
    drift = drift_of(110, SPIKES)
    found = event_study(drift, values, 2, 999, RNG(0))
    assert found.onsets == tuple(drift.windows[t].label for t in SPIKES)
    changes = [values[t : t + 3].mean() - values[t - 3 : t].mean() for t in SPIKES]
    assert found.change == pytest.approx(np.mean(changes))
    interval = stats.t.interval(0.95, 5, np.mean(changes), stats.sem(changes))
    assert found.ci == pytest.approx(interval)
    assert found.p == 0.001
    assert found.offsets == (-3, -2, -1, 0, 1, 2)
    profile = np.mean([values[t - 3 : t + 3] - values[t - 3 : t].mean() for t in SPIKES], axis=0)
    np.testing.assert_allclose(found.profile, profile, atol=1e-12)
    assert (found.low < found.high).all()
    assert (found.profile[3:] < found.low[3:]).all()
    assert found.reason == ""


def test_p_is_that_of_all_choices_of_quiet_windows() -> None:
    rng = RNG(3)
    of_events, quiet = rng.normal(size=4) + 0.8, rng.normal(size=9)

    def t(values: np.ndarray) -> float:
        return abs(float(stats.ttest_1samp(values, 0).statistic))

    chosen = [t(quiet[list(some)]) for some in itertools.combinations(range(9), 4)]
    wanted = np.mean(np.array(chosen) >= t(of_events))
    assert events._against_quiet(of_events, quiet, 20_000, RNG(0)) == pytest.approx(wanted, abs=0.012)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    of_events, quiet = RNG(4).normal(size=5), RNG(5).normal(size=30)
    whole = events._against_quiet(of_events, quiet, 300, RNG(0))
    monkeypatch.setattr(events, "_CHUNK", 100)
    assert events._against_quiet(of_events, quiet, 300, RNG(0)) == whole


def test_a_metric_that_only_varies_more_is_no_finding() -> None:
    """Changes around spikes ten times as large, in either direction: the mean is not told to have moved."""
    rejected = 0
    for seed in range(200):
        rng = RNG(seed)
        rejected += events._against_quiet(10 * rng.normal(size=8), rng.normal(size=60), 99, rng) <= 0.05
    assert rejected < 200 * 0.1


def test_quiet_windows_stay_inside_the_band() -> None:
    """The band is of mean profiles of as many windows: a single quiet window leaves it more often than not."""
    values = RNG(6).normal(size=300)
    drift = drift_of(300, tuple(range(20, 280, 20)))
    found = event_study(drift, values, 1, 99, RNG(0))
    quiet = around(values, undisturbed(drift, 1), 1)
    rng, inside = RNG(1), []
    for _ in range(500):
        rows = quiet.profiles[rng.integers(0, len(quiet.places), len(found.onsets))]
        mean = np.nanmean(rows, axis=0)
        inside.append((found.low <= mean) & (mean <= found.high))
    assert np.mean(inside, axis=0) == pytest.approx(np.full(4, 0.95), abs=0.03)


@pytest.mark.parametrize(
    ("drift", "values", "reason"),
    [
        (drift_of(60, (10, 20)), np.zeros(60), "2 onsets of a spike, at least 5 are needed"),
        (drift_of(60, (10,)), np.zeros(60), "1 onset of a spike, at least 5 are needed"),
        (drift_of(60), np.full(60, np.nan), "0 onsets of a spike, at least 5 are needed"),
        (
            drift_of(60, (1, 10, 20, 30, 40, 58)),
            np.where(np.arange(60) > 45, np.nan, np.sin(np.arange(60))),
            "4 onsets of a spike, 2 more without enough values around, at least 5 are needed",
        ),
        (
            drift_of(50, (8, 16, 24, 32, 40)),
            np.sin(np.arange(50)),
            "quiet windows with no spike near and with values around, at least 8 are needed",
        ),
    ],
)
def test_a_study_that_cannot_be_made_says_why(drift: object, values: np.ndarray, reason: str) -> None:
    found = event_study(drift, values, 4, 99, RNG(0))  # type: ignore[arg-type]
    assert reason in found.reason
    assert (found.change, found.ci, found.p) == (None, None, None)
    assert len(found.profile) == len(found.low) == len(found.high) == len(found.offsets) == 10


def test_as_many_quiet_windows_as_onsets_are_needed() -> None:
    spikes = tuple(range(6, 6 + 12 * 13, 13))
    drift = drift_of(170, spikes, quiet=(0, *range(1, 12)))
    few = replace(drift, quiet=np.isin(np.arange(170), range(152, 160)))
    found = event_study(few, RNG(0).normal(size=170), 0, 99, RNG(0))
    assert len(onsets(drift)) == 12
    assert found.reason.startswith("8 quiet windows")
    assert "at least 12" in found.reason


def test_flat_metrics_have_no_p_below_one() -> None:
    drift = drift_of(110, SPIKES)
    found = event_study(drift, np.full(110, 3.0), 2, 99, RNG(0))
    assert (found.change, found.ci, found.p) == (0, (0, 0), 1)
    assert not np.isnan(found.profile).any()
