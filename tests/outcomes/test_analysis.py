"""The whole analysis of product metrics: planted links, verdicts, words, gaps, ranks, invariances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from made_history import NULL_SD, autoregressive, calendar, history, metric, unfinished
from scipy import stats

from gpudrift.errors import ArgumentError
from gpudrift.outcomes import sentences
from gpudrift.outcomes.analysis import analyse
from gpudrift.outcomes.records import Finding, LagEffect, Outcomes, OutcomeSeries
from gpudrift.windows import Period

RNG = np.random.default_rng
WEEK = Period("week")
WEAK = "no_answer_rate"


def scores_of(seed: int, count: int, phi: float = 0.5) -> np.ndarray:
    return np.exp(0.8 * autoregressive(RNG(seed), count, phi)) * 1e-3


def linked(seed: int, count: int, lag: int, slope: float, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and a rate that moves by ``slope`` for a doubling, ``lag`` windows later."""
    scores = scores_of(seed, count + lag)
    logs = np.log2(scores + NULL_SD)
    values = 0.5 + slope * (logs - logs.mean())[:count] + noise * autoregressive(RNG(seed + 1), count, 0.5)
    return scores[lag:], values


def run(series: Sequence[OutcomeSeries], made: Any, **settings: Any) -> Outcomes:
    return analyse(series, made, WEEK, **{"permutations": 199, **settings})


def one(series: OutcomeSeries, made: Any, **settings: Any) -> Finding:
    return run([series], made, **settings).findings[0]


def shown(finding: Finding) -> dict[str, Any]:
    """As plain values that can be compared, NaN included."""
    return {field.name: repr(getattr(finding, field.name)) for field in fields(finding)}


# links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_planted_lag_is_found_with_its_size(lag: int) -> None:
    scores, values = linked(1, 80, lag, -0.03)
    found = one(metric(values), history(scores))
    assert (found.lag, found.link, found.windows) == (lag, "worse", 80)
    assert found.ci is not None
    assert found.ci[0] < -0.03 < found.ci[1]
    assert (found.p, found.q) == (1 / 200, 1 / 200)
    assert found.sentence.startswith("success_rate falls by ")
    assert f" points where the score doubles, {sentences.when(lag)} (95% interval -" in found.sentence
    assert found.sentence.endswith(" points; q 0.005): it gets worse as drift rises")
    assert [effect.lag for effect in found.lags] == [0, 1, 2, 3, 4]
    assert [effect.n for effect in found.lags] == [79, 78, 77, 76, 75]  # the first window has no residual


def test_the_effect_is_a_regression_of_whitened_series_done_otherwise() -> None:
    scores, values = linked(2, 36, 1, -0.02)  # short enough for a straight line
    found = one(metric(values), history(scores))

    def white(y: np.ndarray) -> np.ndarray:
        time = np.arange(len(y))
        rest = y - np.polyval(np.polyfit(time, y, 1), time)
        return rest[1:] - np.linalg.lstsq(rest[:-1, None], rest[1:], rcond=None)[0][0] * rest[:-1]

    x, y = white(np.log2(scores + NULL_SD)), white(values)
    line = stats.linregress(x[:-1], y[1:])
    assert found.lag == 1
    assert found.effect == pytest.approx(line.slope, rel=1e-9)
    assert found.r == pytest.approx(line.rvalue, rel=1e-9)


def test_drift_that_follows_the_metric_is_no_link() -> None:
    """Only drift leads: a metric whose own moves come first is not explained by the score."""
    scores, values = linked(3, 80, 2, -0.03)
    early = np.concatenate([values[4:], values[:4]])  # two windows before the score
    assert one(metric(early), history(scores)).link == "none"


def test_flipping_what_is_worse_flips_the_verdict_and_its_words_only() -> None:
    scores, values = linked(4, 60, 1, -0.03)
    lower, higher = (one(metric(values, worse=way), history(scores)) for way in ("lower", "higher"))
    assert (lower.link, higher.link) == ("worse", "better")
    assert higher.sentence == lower.sentence.replace("it gets worse", "it gets better")
    assert lower.level is not None
    assert higher.level is not None
    assert higher.level.usual == lower.level.usual
    same = {"worse", "link", "sentence", "level"}
    assert {k: v for k, v in shown(lower).items() if k not in same} == {
        k: v for k, v in shown(higher).items() if k not in same
    }


def test_units_scale_the_effect_and_nothing_else() -> None:
    scores, values = linked(5, 60, 1, -0.03)
    plain, scaled = (one(metric(values * unit), history(scores, (20, 30, 40))) for unit in (1, 1024.0))
    assert plain.effect is not None
    assert plain.ci is not None
    assert scaled.effect == plain.effect * 1024
    assert scaled.ci == (plain.ci[0] * 1024, plain.ci[1] * 1024)
    assert (scaled.lag, scaled.p, scaled.q, scaled.link) == (plain.lag, plain.p, plain.q, plain.link)
    assert scaled.r == plain.r
    assert " points" in plain.sentence
    assert " points" not in scaled.sentence


def test_the_order_of_metrics_changes_nothing_and_none_depends_on_the_others_but_by_q() -> None:
    scores, values = linked(6, 60, 1, -0.03)
    series = [metric(values), *(metric(RNG(k).normal(size=60), name=f"other_{k}") for k in range(3))]
    for gappy in series[2:]:
        gappy.values[7] = np.nan
    made = history(scores, (10, 20, 30, 40, 50))
    forth, back = run(series, made), run(series[::-1], made)
    assert [shown(f) for f in forth.findings] == [shown(f) for f in back.findings]
    assert forth.notes == back.notes == ("1 window has a score but no value of other_1, other_2: 2024-W08",)
    alone = shown(one(series[0], made))
    beside = shown(forth.findings[0])
    assert {k: v for k, v in alone.items() if k not in ("q", "sentence")} == {
        k: v for k, v in beside.items() if k not in ("q", "sentence")
    }
    assert shown(one(series[0], list(reversed(made)))) == alone
    assert shown(one(series[0], made, seed=1))["p"] == alone["p"]  # the floor of p, whatever the seed
    assert run(series, made, seed=1).findings[-1].p != forth.findings[-1].p


def test_q_is_of_all_that_are_tested_and_of_no_other() -> None:
    made = history(scores_of(7, 60))
    few = np.full(60, np.nan)
    few[:15] = RNG(1).normal(size=15)
    series = [metric(RNG(k).normal(size=60), name=f"m{k}") for k in range(5)]
    found = run([*series, metric(few, name="few"), metric(np.ones(60), name="flat")], made).findings
    tested = [f for f in found if f.link != "insufficient"]
    assert len(tested) == 5
    assert [f.q for f in tested] == pytest.approx(stats.false_discovery_control([f.p for f in tested]))
    rest = {f.metric: f for f in found if f.link == "insufficient"}
    assert rest["few"].p is not None
    assert (rest["few"].q, rest["flat"].p, rest["flat"].q) == (None, None, None)


def test_findings_are_ranked_links_first_and_insufficient_ones_last() -> None:
    scores, strong = linked(8, 70, 1, -0.05)
    logs = np.log2(scores + NULL_SD)
    weak = 0.5 + 0.006 * np.concatenate([[0], logs[:-1]]) + 0.01 * RNG(3).normal(size=70)
    short = np.where(np.arange(70) < 13, strong, np.nan)
    series = [
        metric(np.full(70, np.nan), name="a_empty"),
        metric(short, name="b_short"),
        metric(RNG(4).normal(size=70), name="c_none"),
        metric(weak, name="d_weak"),
        metric(strong, name="e_strong"),
    ]
    found = run(series, history(scores), permutations=1999).findings
    assert [f.metric for f in found] == ["e_strong", "d_weak", "c_none", "b_short", "a_empty"]
    assert [f.link for f in found] == ["worse", "better", "none", "insufficient", "insufficient"]
    assert found[2].sentence.startswith("no link found: c_none, 70 windows, largest correlation ")


def test_segments_are_held_against_their_own_drift() -> None:
    scores, values = linked(9, 60, 1, -0.03)
    scores[7] = np.nan
    own = history(scores, segment="family=ai")
    whole = history(scores_of(99, 60))
    made = [{**a, **b} for a, b in zip(whole, own, strict=True)]
    found = run([metric(values), metric(values, segment="family=ai"), metric(values, segment="family=x")], made)
    assert [(f.segment, f.link) for f in found.findings] == [("family=ai", "worse"), ("all", "none")]
    assert [f.windows for f in found.findings] == [59, 60]
    assert found.findings[0].sentence.startswith("success_rate of family=ai falls by ")
    assert set(found.drift) == {"all", "family=ai"}
    assert "the history has no scores of family=x: metrics of these segments are left out" in found.notes
    assert set(found.series) == {("success_rate", s) for s in ("all", "family=ai", "family=x")}


def test_days_have_a_weekday_that_is_no_link() -> None:
    day = Period("day")
    week = np.array([0, 0.1, 0, 0.1, 0, -1.5, -1.4])
    scores = np.exp(week[np.arange(84) % 7] + 0.1 * RNG(0).normal(size=84)) * 1e-3
    values = 0.5 + 0.1 * week[np.arange(84) % 7] + 0.01 * RNG(1).normal(size=84)
    made = history(scores, period=day)
    series = metric(values, windows=calendar(84, day))
    assert analyse([series], made, day, permutations=199).findings[0].link == "none"
    assert one(metric(values), history(scores)).link == "worse" or one(metric(values), history(scores)).link == "better"


# too little --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "numbers", "link"), [(11, False, "insufficient"), (12, True, "insufficient"), (20, True, "none")]
)
def test_few_windows_are_insufficient_and_very_few_have_no_number(count: int, numbers: bool, link: str) -> None:
    found = one(metric(RNG(1).normal(size=count)), history(scores_of(3, count)))
    assert found.link == link
    assert (found.p is not None, bool(found.lags), found.effect is not None) == (numbers, numbers, numbers)
    if link == "insufficient":
        wanted = f"insufficient windows: success_rate, {count} with both a score and a value, 20 are needed"
        assert found.sentence == wanted
        assert found.q is None


def test_min_windows_is_a_setting() -> None:
    scores, values = linked(10, 30, 0, -0.05)
    assert one(metric(values), history(scores), min_windows=31).link == "insufficient"
    assert one(metric(values), history(scores), min_windows=30).link == "worse"


@pytest.mark.parametrize(
    ("values", "scores", "words"),
    [
        (np.full(30, 0.25), None, "the metric is the same in all 30"),
        (np.zeros(30), None, "the metric is the same in all 30"),
        (0.1 * np.arange(30), None, "the metric lies on its trend in all 30, nothing is left to compare"),
        (None, np.full(30, 0.002), "the score is the same in all 30"),
        (np.full(30, np.nan), None, "0 with both a score and a value, 20 are needed"),
    ],
)
def test_what_cannot_be_compared_says_why(values: Any, scores: Any, words: str) -> None:
    values = RNG(0).normal(size=30) if values is None else values
    scores = scores_of(0, 30) if scores is None else scores
    found = one(metric(values), history(scores, (3, 9, 15, 21, 27)))
    assert found.link == "insufficient"
    assert found.sentence == f"insufficient windows: success_rate, {words}"
    assert (found.lag, found.effect, found.ci, found.r, found.p, found.q) == (None,) * 6


def test_scores_without_any_noise_have_no_scale() -> None:
    bare = [{s: replace(p, null_sd=None, se=None) for s, p in points.items()} for points in history(scores_of(1, 30))]
    found = one(metric(RNG(1).normal(size=30)), bare)
    assert found.sentence == "insufficient windows: success_rate, the noise of the score is not known in any of them"
    assert found.p is None


def test_windows_that_do_not_follow_each_other_are_insufficient() -> None:
    values = RNG(1).normal(size=60)
    values[1::2] = np.nan
    found = one(metric(values), history(scores_of(4, 60)))
    assert found.link == "insufficient"
    assert found.sentence.endswith("30 with both a score and a value, but only 0 of them follow one with both")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_window_is_insufficient_and_not_an_error(count: int) -> None:
    found = run([metric(RNG(0).normal(size=max(count, 1)))], history(scores_of(5, count)))
    assert [f.link for f in found.findings] == (["insufficient"] if count else [])


def test_without_metrics_or_a_history_there_is_nothing() -> None:
    assert run([], history(scores_of(5, 9))).findings == ()
    found = run([metric(RNG(0).normal(size=30))], [])
    assert (found.findings, dict(found.drift)) == ((), {})
    assert found.notes == ("the history has no scores of all: metrics of these segments are left out",)


def test_a_metric_given_twice_is_refused() -> None:
    twice = [metric(RNG(0).normal(size=30)), metric(RNG(1).normal(size=30))]
    with pytest.raises(ArgumentError, match="given twice"):
        run(twice, history(scores_of(5, 30)))


# windows -----------------------------------------------------------------------------------------------------------


def test_gaps_are_told_once_for_all_metrics_that_share_them() -> None:
    values = RNG(2).normal(size=(2, 40))
    values[:, [9, 12, 13, 14]] = np.nan
    made = history(scores_of(6, 40), gaps=(20,))
    found = run([metric(values[0], name="a"), metric(values[1], name="b")], made)
    labels = [window.label for window in calendar(40)]
    assert found.notes == (
        "4 windows have a score but no value of a, b: 2024-W10, 2024-W13 to 2024-W15",
        "1 window has no score but a value of a, b: 2024-W21 (job=backfill scores those with enough rows)",
    )
    assert found.findings[0].missing == tuple(labels[k] for k in (9, 12, 13, 14))
    assert found.findings[0].windows == 35


def test_a_table_wider_than_the_history_is_told() -> None:
    windows = calendar(40)
    values = RNG(3).normal(size=40)
    made = history(scores_of(7, 40))[5:30]
    found = run([metric(values)], made)
    assert found.notes[0] == (
        "15 windows have no score but a value of success_rate: 2024-W01 to 2024-W05, 2024-W31 to 2024-W40 "
        "(job=backfill scores those with enough rows)"
    )
    assert found.findings[0].windows == 25
    assert found.drift["all"].windows == windows[5:30]


def test_nothing_after_the_window_of_the_run_counts() -> None:
    values, scores = RNG(4).normal(size=40), scores_of(8, 40)
    until = calendar(40)[29]
    early = run([metric(values[:30])], history(scores[:30]), until=until)
    late = run([metric(values)], history(scores), until=until)
    assert shown(late.findings[0]) == shown(early.findings[0])
    told = "10 windows lie after the window of this run and do not count: success_rate: 2024-W31 to 2024-W40"
    assert [*late.notes] == [*early.notes, told]


def test_no_later_value_changes_the_words() -> None:
    """Up to the window of the run all values lie between 0 and 1: sizes are in points, whatever comes after."""
    scores, values = linked(11, 80, 1, -0.03)
    until = calendar(80)[59]
    early = run([metric(values[:60])], history(scores[:60]), until=until).findings[0]
    late = run([metric([*values[:60], *(values[60:] + 3)])], history(scores), until=until).findings[0]
    assert "points" in early.sentence
    assert late.sentence == early.sentence


def test_the_windows_own_value_is_judged_though_the_history_does_not_have_it_yet() -> None:
    values, scores = RNG(5).normal(size=40), scores_of(9, 39)
    until = calendar(40)[39]
    found = one(metric(values, counts=np.full(40, 300)), history(scores), until=until).level
    assert found is not None
    assert (found.window, found.value, found.count) == ("2024-W40", values[39], 300)
    started = one(metric(values), history(scores), until=unfinished(until)).level
    assert started is not None
    assert started.window == "2024-W39"  # a window that is not over has no value yet


def test_values_of_another_cut_of_time_meet_no_window() -> None:
    day = Period("day")
    found = run([metric(RNG(6).normal(size=40), windows=calendar(40, day))], history(scores_of(1, 30)))
    assert found.findings[0].windows == 0
    assert found.findings[0].link == "insufficient"


def test_a_short_series_that_trends_is_told() -> None:
    values = 0.5 + 0.01 * np.arange(30) + 0.02 * RNG(7).normal(size=30)
    notes = run([metric(values)], history(scores_of(2, 30))).notes
    assert any("success_rate: a trend makes up 9" in note and "of the metric over 30 windows" in note for note in notes)


def test_a_trend_of_the_score_is_told_once_for_all_metrics() -> None:
    scores = 0.01 * np.arange(30) + 0.001 * RNG(1).random(30)
    values = RNG(8).normal(size=(2, 30))
    notes = run([metric(values[0], name="a"), metric(values[1], name="b")], history(scores)).notes
    assert [note.split(":")[0] for note in notes] == ["a, b"]


def test_of_windows_too_few_for_any_number_no_trend_is_told() -> None:
    values = 0.5 + 0.01 * np.arange(30)
    notes = run([metric(values)], history(scores_of(2, 30))[:11]).notes
    assert not any("trend" in note for note in notes)
    notes = run([metric(values)], history(scores_of(2, 30))[:12]).notes
    assert any("over 12 windows" in note for note in notes)
    assert run([metric(RNG(7).normal(size=30))], history(scores_of(2, 30))).notes == ()
    rising = scores_of(2, 30) * np.exp(0.3 * np.arange(30))
    notes = run([metric(RNG(7).normal(size=30))], history(rising)).notes
    assert any("of the score over 30 windows" in note for note in notes)
    values[:] = np.nan
    values[:12] = RNG(7).normal(size=12)  # the score's own trend is over more than a year of windows: not told
    long = np.exp(0.1 * np.arange(60) + 0.1 * RNG(8).normal(size=60)) * 1e-3
    assert not any("trend" in note for note in run([metric(values, windows=calendar(30))], history(long)).notes)


def test_spikes_reach_the_event_study() -> None:
    spikes = (10, 25, 40, 55, 70, 85)
    values = 0.5 + 0.01 * RNG(8).normal(size=100)
    for t in spikes:
        values[t : t + 3] -= 0.2
    found = one(metric(values), history(scores_of(3, 100) + 0.001, spikes), lags=2).events
    assert found is not None
    assert found.onsets == tuple(calendar(100)[t].label for t in spikes)
    assert found.change == pytest.approx(-0.2, abs=0.02)
    assert found.p == 1 / 200


def test_independent_series_are_rarely_linked() -> None:
    linked_by_chance = 0
    for seed in range(150):
        values = autoregressive(RNG(1000 + seed), 40, 0.7) + 0.05 * np.arange(40)
        scores = scores_of(5000 + seed, 40, 0.7) * np.exp(0.05 * np.arange(40))
        linked_by_chance += one(metric(values), history(scores), permutations=99).link != "none"
    assert stats.binomtest(linked_by_chance, 150, 0.05).pvalue > 0.001


# words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "slope", "ci", "told"),
    [
        ([0.1, 0.9], -0.0123, (-0.0211, -0.0031), "falls by 1.2 points where the score doubles"),
        ([0.1, 1.1], -0.0123, (-0.0211, -0.0031), "falls by 0.012 where the score doubles"),
        ([-0.1, 0.9], 12.3, (1, 25), "rises by 12 where the score doubles"),
    ],
)
def test_sizes_are_in_points_where_all_values_lie_between_0_and_1(
    values: list[float], slope: float, ci: tuple[float, float], told: str
) -> None:
    found = sentences.linked(metric(values), LagEffect(1, 30, -0.5, slope, ci), 0.0031)
    assert told in found
    assert "one window later" in found
    assert "q 0.0031" in found


def test_windows_are_named_as_spans_and_the_rest_counted() -> None:
    labels = [f"w{k}" for k in range(40)]
    assert sentences.spans([3], labels) == "w3"
    assert sentences.spans([3, 4, 5, 9], labels) == "w3 to w5, w9"
    assert sentences.spans(range(0, 40, 2), labels) == "w0, w2, w4, w6, w8, w10 and 14 more"


def test_lags_are_words() -> None:
    assert [sentences.when(lag) for lag in (0, 1, 2, 12, 13)] == [
        "in the same window",
        "one window later",
        "two windows later",
        "twelve windows later",
        "13 windows later",
    ]


def test_names_from_a_table_cannot_break_a_line() -> None:
    found = one(metric(RNG(0).normal(size=5), name="rate\n\x1b[31m"), history(scores_of(0, 5)))
    assert found.sentence.startswith("insufficient windows: rate ?[31m, 5 with both")
    assert found.metric == "rate\n\x1b[31m"


def test_no_sentence_says_why() -> None:
    scores, values = linked(11, 60, 0, 0.05)
    made = history(scores, (10, 20, 30, 40, 50))
    series = [
        metric(values, worse="higher"),
        metric(RNG(0).normal(size=60), name=WEAK),
        replace(metric(values), metric="x"),
    ]
    for finding in run(series, made).findings:
        assert not any(word in finding.sentence for word in ("caus", "because", "due to", "lead", "effect", "impact"))
