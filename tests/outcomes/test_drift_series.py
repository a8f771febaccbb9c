"""The drift of a history as a time series: calendar, gaps, scale, spikes."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from made_history import NULL_SD, calendar, history, point, unfinished

from gpudrift.errors import ArgumentError
from gpudrift.history import ALL
from gpudrift.outcomes import drift
from gpudrift.outcomes.drift import drift_series, is_spike
from gpudrift.windows import Period

WEEK = Period("week")


@pytest.mark.parametrize("period", [WEEK, Period("day"), Period("month"), Period("days", 10, date(2024, 1, 1))])
def test_windows_without_a_run_are_gaps_on_the_calendar(period: Period) -> None:
    found = drift_series(history([0.001, 0.002, 0.003, np.nan, 0.005], period=period, gaps=(1,)), period)[ALL]
    assert found.windows == calendar(5, period)
    np.testing.assert_array_equal(found.scores, [0.001, np.nan, 0.003, np.nan, 0.005])
    assert found.quiet.tolist() == [True, False, True, False, True]
    assert not found.spikes.any()


def test_the_scale_is_that_of_the_verdict_and_the_median_stands_in_for_a_missing_null_sd() -> None:
    windows = calendar(4)
    points = [
        point(windows[0], 0.003, null_sd=1e-4),
        point(windows[1], -0.002, null_sd=2e-4),
        point(windows[2], 0.001, null_sd=5e-4),
        point(windows[3], 0.004, null_sd=None, p_aa=None, verdict="insufficient"),
    ]
    found = drift_series([{ALL: p} for p in points], WEEK)[ALL]
    np.testing.assert_allclose(np.exp(found.log_scores), [0.0031, 2e-4, 0.0015, 0.0042], rtol=1e-12)
    assert found.scores[1] == -0.002
    assert found.quiet.tolist() == [True, True, True, False]


def test_without_any_null_sd_the_standard_errors_stand_in_and_without_these_nothing() -> None:
    windows = calendar(2)
    by_error = [{ALL: point(w, 0.001, null_sd=None, se=se)} for w, se in zip(windows, (1e-4, 3e-4), strict=True)]
    np.testing.assert_allclose(np.exp(drift_series(by_error, WEEK)[ALL].log_scores), 0.0012)
    bare = [{ALL: point(w, 0.001, null_sd=None, se=None)} for w in windows]
    assert np.isnan(drift_series(bare, WEEK)[ALL].log_scores).all()


def test_unfinished_windows_and_windows_after_the_run_are_left_out() -> None:
    windows = calendar(5)
    made = history([0.001] * 5)
    made[4] = {ALL: replace(made[4][ALL], window=unfinished(windows[4]))}
    assert drift_series(made, WEEK)[ALL].windows == windows[:4]
    assert drift_series(made, WEEK, until=windows[2])[ALL].windows == windows[:3]
    made[1] = {ALL: replace(made[1][ALL], window=unfinished(windows[1]))}
    np.testing.assert_array_equal(drift_series(made, WEEK)[ALL].scores, [0.001, np.nan, 0.001, 0.001])
    made[1] = history([0.001] * 2)[1]
    ahead = drift_series(made[:2], WEEK, until=windows[3])[ALL]
    assert ahead.windows == windows[:4]  # on to a finished window that the history does not have yet
    assert drift_series(made[:2], WEEK, until=unfinished(windows[3]))[ALL].windows == windows[:2]
    assert drift_series([], WEEK) == {}
    assert drift_series(made[4:], WEEK) == {}


def test_a_window_of_another_period_is_left_out() -> None:
    made = history([0.001] * 3)
    day = Period("day").window_at(date(2024, 1, 8))
    found = drift_series([*made[:1], {ALL: point(day, 9.0)}, *made[2:]], WEEK)[ALL]
    np.testing.assert_array_equal(found.scores, [0.001, np.nan, 0.001])


def test_segments_share_the_calendar() -> None:
    whole, own = history([0.001, 0.002, 0.003]), history([np.nan, 0.5, 0.6], segment="family=ai")
    found = drift_series([{**a, **b} for a, b in zip(whole, [*own[:2], {}], strict=True)], WEEK)
    assert found["family=ai"].windows == found[ALL].windows
    np.testing.assert_array_equal(found["family=ai"].scores, [np.nan, 0.5, np.nan])


def test_a_spike_is_far_out_by_its_own_p_and_above_the_floor_of_a_warning() -> None:
    window = calendar(1)[0]
    spike = point(window, 0.02, p_aa=0.005)
    assert is_spike(spike, 0.01)
    assert not is_spike(spike, 0.005)
    assert not is_spike(replace(spike, score=3 * NULL_SD), 0.01)
    assert is_spike(replace(spike, score=3.01 * NULL_SD), 0.01)
    assert is_spike(replace(spike, null_sd=None), 0.01)
    assert not is_spike(replace(spike, p_aa=None), 0.01)
    assert not is_spike(replace(spike, score=None), 0.01)


def test_a_reference_window_spikes_only_beyond_the_limit_of_the_others() -> None:
    inside = replace(point(calendar(1)[0], 0.02, p_aa=0.03), in_reference=True)
    assert is_spike(inside, 0.05)
    assert not is_spike(replace(inside, delta=0.03), 0.05)
    assert is_spike(replace(inside, delta=0.03, in_reference=False), 0.05)


def test_a_spike_is_not_quiet_whatever_its_verdict() -> None:
    made = history([0.001, 0.02])
    made[1] = {ALL: replace(made[1][ALL], p_aa=1e-4)}
    found = drift_series(made, WEEK)[ALL]
    assert (found.spikes.tolist(), found.quiet.tolist()) == ([False, True], [True, False])


def test_a_history_of_too_many_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MOST_WINDOWS", 3)
    with pytest.raises(ArgumentError, match="too many windows"):
        drift_series(history([0.001] * 4), WEEK)
