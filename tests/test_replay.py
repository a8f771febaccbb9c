"""Verdicts against what is known: alarms, rates with their intervals, delays, and the setting to take."""

from __future__ import annotations

import json
import math
import re
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from gpudrift import replay as replayed
from gpudrift.calibrate import AANull, Limits, MetricNull
from gpudrift.records import HistoryPoint, Metric, Verdict
from gpudrift.replay import (
    Alarm,
    Assessment,
    Detection,
    Kept,
    Onset,
    Setting,
    find_alarms,
    from_plain,
    recommend,
    replay,
    share,
    to_plain,
)
from gpudrift.windows import Period

WEEK = Period("week")
MONDAY = date(2026, 1, 5)  # of 2026-W02
VERDICTS: dict[str, Verdict] = {"s": "stable", "w": "warning", "a": "alert", "i": "insufficient"}


def points(letters: str) -> list[HistoryPoint]:
    """Consecutive weeks from 2026-W02 on with these verdicts."""
    return [
        HistoryPoint(WEEK.window_at(MONDAY + timedelta(weeks=k)), VERDICTS[letter], *[None] * 8, rows=100)  # type: ignore[arg-type]
        for k, letter in enumerate(letters)
    ]


def assess(points: list[HistoryPoint], quiet: Any, onsets: list[Onset], passed_over: int = 2) -> Assessment:
    return replayed.assess(points, quiet, onsets, passed_over=passed_over)


def labels(first: int, last: int) -> set[str]:
    return {f"2026-W{k:02d}" for k in range(first + 2, last + 2)}


def monday(k: int) -> date:
    return MONDAY + timedelta(weeks=k)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_rate_is_wilsons(counts: tuple[int, int]) -> None:
    found, wanted = share(*counts), binomtest(*counts).proportion_ci(method="wilson")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-12, abs=1e-15)


def test_without_windows_there_is_no_rate_and_at_the_ends_the_interval_is_exact() -> None:
    assert share(0, 0) is None
    none, all_ = share(0, 7), share(7, 7)
    assert none is not None
    assert all_ is not None
    assert (none.low, all_.high) == (0.0, 1.0)


@given(st.text("swai", max_size=30))
def test_an_alarm_is_a_run_of_alerts_that_a_few_windows_without_a_verdict_do_not_end(letters: str) -> None:
    found = find_alarms(points(letters), 2)
    runs = [m.span() for m in re.finditer(r"a(?:i{0,2}a)*", letters)]
    assert [(a.first, a.last, a.windows) for a in found] == [
        (f"2026-W{start + 2:02d}", f"2026-W{end + 1:02d}", letters[start:end].count("a")) for start, end in runs
    ]


def test_alarms_in_quiet_windows_are_counted_where_they_begin() -> None:
    #                 quiet: --------   ------
    found = assess(points("sswaasisaaaiasssaa"), labels(0, 8) | labels(10, 16), [])
    assert (found.windows, found.verdicts) == (18, {"stable": 7, "warning": 1, "alert": 8, "insufficient": 2})
    assert found.alarms == (
        Alarm("2026-W05", "2026-W06", 2), Alarm("2026-W10", "2026-W14", 4), Alarm("2026-W18", "2026-W19", 2),
    )  # fmt: skip
    assert found.false_alarms is not None
    assert found.quiet_warned is not None
    assert (found.false_alarms.count, found.false_alarms.of) == (1, 12)  # two of the 14 have no verdict
    assert (found.quiet_warned.count, found.quiet_warned.of) == (5, 12)
    weeks = 365.25 / 7
    assert found.per_year == pytest.approx(
        (weeks / 12, weeks * found.false_alarms.low, weeks * found.false_alarms.high), rel=1e-12
    )
    none = assess(points("aai"), labels(2, 3), [])
    assert (none.false_alarms, none.per_year, none.quiet_warned) == (None, None, None)


@pytest.mark.parametrize(
    ("letters", "wanted"),
    [
        ("sssssss", ("missed", None, None, None, None)),
        ("sswwsss", ("missed", 0, 5.0, None, None)),
        ("sswaass", ("found", 0, 5.0, 1, 12.0)),
        ("wwsiaas", ("found", 2, 19.0, 2, 19.0)),
        ("asssaas", ("found", 2, 19.0, 2, 19.0)),
        ("aaaaass", ("already", None, None, None, None)),
        ("saiaass", ("already", None, None, None, None)),
        ("asiaass", ("found", 1, 12.0, 1, 12.0)),
        ("aswaass", ("found", 0, 5.0, 1, 12.0)),
    ],
)
def test_the_delay_after_an_onset(letters: str, wanted: tuple[Any, ...]) -> None:
    """The onset lies on the Wednesday of the third week; a week is judged when it is over."""
    onset = Onset(monday(2) + timedelta(days=2), "new catalogue")
    (found,) = assess(points(letters), (), [onset]).onsets
    assert found == Detection(onset, "2026-W04", *wanted)


def test_an_alert_too_many_windows_ago_no_longer_holds() -> None:
    onset = Onset(monday(4), "drift")
    found = {k: assess(points("aiiisaas"), (), [onset], passed_over=k).onsets[0].state for k in (2, 3)}
    assert found == {2: "found", 3: "already"}


def test_what_comes_after_the_next_onset_belongs_to_that() -> None:
    first, second, third = Onset(monday(1), "a"), Onset(monday(4), "b"), Onset(monday(4) + timedelta(days=1), "c")
    found = assess(points("ssswaas"), (), [first, second, third]).onsets
    assert [(d.state, d.warning, d.alert) for d in found] == [("missed", 2, None), ("found", 0, 0), ("found", 0, 0)]
    assert [d.alert_days for d in found] == [None, 7.0, 6.0]


@pytest.mark.parametrize(
    ("letters", "states"),
    [
        ("sswaaaas", ["found", "held"]),  # the alarm began after the first onset
        ("swaaaaas", ["found", "held"]),
        ("saaaaaas", ["already", "already"]),  # before it: nothing explains it
        ("ssssssss", ["missed", "missed"]),
    ],
)
def test_an_alarm_that_holds_since_an_earlier_onset(letters: str, states: list[str]) -> None:
    onsets = [Onset(monday(2) + timedelta(days=2), "a"), Onset(monday(5), "b")]
    assert [d.state for d in assess(points(letters), (), onsets).onsets] == states


def setting(letters: str, windows: int = 12, warn_p: float = 0.01, unusable: str | None = None) -> Setting:
    """The onset is in the seventh window, quiet are the six before it."""
    onsets = [Onset(monday(6), "drift")]
    return Setting(windows, warn_p, assess(points(letters), labels(0, 6), onsets), unusable)


def test_the_setting_to_take_has_no_false_alarm_and_finds_the_onset_soonest() -> None:
    loud, late, soon = setting("saasssaaaa", 8), setting("sssssssswa", 26), setting("ssssswwaaa", 12)
    best, sentence = recommend([loud, late, soon, setting("sssssswsss", 51)])
    assert best is soon
    assert sentence == (
        "a reference of 12 windows at warn_p 0.01: no false alarm in 6 quiet windows (95% interval: up to 0.39 a "
        "window, 20 a year); 1 of 1 onsets found, the alert 14 days after the onset on average. Chosen on these data: "
        "expect it to do a little worse on new data"
    )


def test_an_onset_at_which_the_alarm_of_an_earlier_one_holds_is_not_missed() -> None:
    onsets = [Onset(monday(2), "a"), Onset(monday(5), "b")]
    both = Setting(12, 0.01, assess(points("sswaaaas"), labels(0, 2), onsets))
    later = Setting(26, 0.01, assess(points("ssssswaa"), labels(0, 2), onsets))
    best, sentence = recommend([later, both])
    assert best is both
    assert "1 of 2 onsets found" in sentence
    assert "; at 1 of them the alarm of an earlier one still held. Chosen" in sentence


def test_of_equals_the_calmer_one_then_the_larger_reference_then_the_smaller_threshold() -> None:
    calm = [setting("sssssswaaa", k, p) for k in (8, 12) for p in (0.01, 0.001, 0.05)]
    best, sentence = recommend([setting("swsssswaaa", 51), *calm])
    assert best is not None
    assert (best.windows, best.warn_p) == (12, 0.001)
    assert "5 other settings did as well" in sentence


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([setting("sssssswaaa", unusable="few windows")], "no setting has a reference that can carry a verdict"),
        ([Setting(8, 0.01, assess(points("saas"), labels(0, 4), []))], r"no onset is given \(backtest.onsets\)"),
        ([Setting(8, 0.01, assess(points("saas"), (), [Onset(MONDAY, "x")]))], "no quiet window has a verdict"),
        ([setting("ssssssssss"), setting("aaaaaaaaaa")], "no setting alerted after an onset"),
        ([setting("aasaassaaa", 8), setting("saassswaaa", 26)], "fewest: 1, with a reference of 26 windows"),
    ],
)
def test_where_none_can_be_recommended_it_says_why(settings: list[Setting], said: str) -> None:
    best, sentence = recommend(settings)
    assert best is None
    assert re.search(said, sentence)


def kept(k: int, score: float | None) -> Kept:
    """A week with an energy score far below, or above, scores of about 1."""
    window = WEEK.window_at(monday(k))
    if score is None:
        return Kept(window, 3, 3)
    null = AANull(50, {f"w{i}": 1.0 + 0.01 * i for i in range(12)}, 0.1)
    return Kept(window, 100, 101, {"energy": Metric("energy", score, 0.01)}, null)


LIMITS = Limits()


def verdicts(scores: list[float | None], unstable: bool = False) -> str:
    found = replay(
        [kept(k, s) for k, s in enumerate(scores)], LIMITS, ("energy",), passed_over=2, unstable=unstable
    )  # fmt: skip
    return "".join(point.verdict[0] for point in found)


def test_verdicts_follow_from_those_before() -> None:
    assert verdicts([1.0, 99.0, 1.0, 99.0, 99.0, 1.0, 1.0]) == "swswaas"
    assert verdicts([99.0, None, None, 99.0]) == "wiia"  # two are passed over, three are not
    assert verdicts([99.0, None, None, None, 99.0]) == "wiiiw"
    assert verdicts([99.0, 99.0], unstable=True) == "ii"


@given(
    st.dictionaries(st.sampled_from(["energy", "mmd2_b1"]), st.tuples(st.floats(), st.none() | st.floats())),
    st.none() | st.floats(),
)
def test_what_a_window_measured_survives_a_file(values: dict[str, Any], scale: float | None) -> None:
    metrics = {name: Metric(name, value, se) for name, (value, se) in values.items()}
    others = {"mmd2_b1": MetricNull({"a": 0.1, "b": 0.3}, scale)}
    null = AANull(20, {"b": math.pi, "a": -0.0}, 1 / 3, others)
    for whole in (
        Kept(WEEK.window_at(MONDAY), 5, 7, metrics, null, in_reference=True, headline="other encoder"),
        Kept(WEEK.window_at(MONDAY), 5, 7),
    ):
        again = from_plain(json.loads(json.dumps(to_plain(whole))))
        assert repr(again) == repr(whole)  # NaN and -0.0 too, and the order of the scores


def test_a_file_of_something_else_is_refused() -> None:
    plain = to_plain(kept(0, 1.0))
    for changed in ({**plain, "window": None}, {**plain, "null": {}}, {**plain, "more": 1}, {**plain, "metrics": 3}):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            from_plain(changed)
