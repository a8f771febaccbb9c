"""Which verdicts are news: the rule as a table of sequences, and what holds for any sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhooks import MONDAY, week

from gpudrift.monitoring import told
from gpudrift.monitoring.message import Event
from gpudrift.monitoring.told import News, State, Told, decide
from gpudrift.records import Verdict

BOTH = ("warning", "alert")
ALL_OF_THEM = (*BOTH, "insufficient")
WEEK = timedelta(hours=168)
VERDICTS: tuple[Verdict, ...] = ("stable", "warning", "alert", "insufficient")
LETTERS: dict[str, Verdict] = {"s": "stable", "w": "warning", "a": "alert", "i": "insufficient"}
EVENTS: dict[str, Event | None] = {"-": None, "N": "new", "W": "worse", "C": "continues", "R": "resolved"}


@dataclass(frozen=True)
class Step:
    """A run: its verdict, its window, when it ran, and whether a message would reach the server."""

    verdict: Verdict
    window: int
    at: datetime
    delivered: bool = True


def play(steps: Sequence[Step], verdicts: Sequence[str] = BOTH, cooldown: timedelta = WEEK) -> list[News]:
    """What is decided at each step; the state moves on where a message is delivered."""
    state, found = State(), list[News]()
    for step in steps:
        news = decide(state, step.verdict, week(step.window), step.at, verdicts=verdicts, cooldown=cooldown)
        found.append(news)
        if news.event is not None and step.delivered:
            state = news.after
    return found


def weekly(runs: str) -> list[Step]:
    """``"a0 a1 s1"``: a verdict and its window, a run a day."""
    return [Step(LETTERS[r[0]], int(r[1:]), MONDAY + timedelta(days=k)) for k, r in enumerate(runs.split())]


# verdicts by window, a run a day -> events: N new, W worse, C continues, R resolved, - nothing. Cooldown: 3 days
TABLE = [
    ("s0 s1 s2", BOTH, "---", "nothing to tell"),
    ("i0 i1 s2", BOTH, "---", "insufficient is not told unless asked for"),
    ("w0 w1 s2", BOTH, "N-R", "told, not repeated, resolved"),
    ("w0 w0 w0 w0 w0", BOTH, "N----", "a rerun of the same window and verdict, cooldown or not"),
    ("a0 a1 a2 a3 a4 a5 a6", BOTH, "N--C--C", "repeated after the cooldown"),
    ("w0 a1 a2", BOTH, "NW-", "worse is told at once"),
    ("w0 a0", BOTH, "NW", "also of the same window"),
    ("a0 w1 w2", BOTH, "N--", "better, but not stable, is no news"),
    ("a0 w1 w2 w3 a4", BOTH, "N--CW", "repeated as it is now; worse than what was told last is told at once"),
    ("a0 w1 a2 w3", BOTH, "N--C", "an alarm that flickers goes on"),
    ("a0 w0", BOTH, "N-", "a rerun that finds less is no news"),
    ("a0 s0", BOTH, "NR", "a rerun that finds nothing any more resolves"),
    ("a0 s0 a0", BOTH, "NRN", "and told again if it comes back"),
    ("a0 s1 s2 a3 s4", BOTH, "NR-NR", "one resolve an alarm"),
    ("a0 i1 i2 s3", BOTH, "N--R", "insufficient does not resolve"),
    ("a0 i1 i2 i3 i4", BOTH, "N----", "nor repeat"),
    ("a0 i1 i2 i3 a4", BOTH, "N---C", "the alarm behind it goes on"),
    ("a3 a2 a1 s0", BOTH, "N---", "older windows run again are no news"),
    ("a0 s3 a2 w1 s0", BOTH, "NR---", "nor after the resolve"),
    ("s0 a1 a0", BOTH, "-N-", "an older alarm neither"),
    ("w0 w1 a2 w3 s4", ("alert",), "--N-R", "only alerts"),
    ("w0 w1 s2", ("alert",), "---", "a warning that was not told is not resolved"),
    ("a0 w1 w2 w3 w4", ("alert",), "N----", "a warning is not repeated where only alerts are told"),
    ("a0 s1", (), "--", "none"),
    ("i0 i1 s2", ALL_OF_THEM, "N-R", "insufficient told and resolved"),
    ("i0 i1 i2 i3", ALL_OF_THEM, "N--C", "and repeated after the cooldown"),
    ("a0 i1 a2 s3", ALL_OF_THEM, "NN-R", "it does not end the alarm, which goes on; one resolve"),
    ("i0 a1 s2", ALL_OF_THEM, "NNR", "an alarm after it is new"),
    ("i0 a1 i2", ALL_OF_THEM, "NNN", "and data that end after that are new again"),
    ("w0 i1 a2", ALL_OF_THEM, "NNW", "worse across a window without data"),
    ("i0 i0", ALL_OF_THEM, "N-", "a rerun"),
    ("i0 w1 s2", ("insufficient",), "N-R", "a verdict that is not told leaves what was told open"),
]


@pytest.mark.parametrize(("runs", "verdicts", "events", "why"), TABLE, ids=[row[3] for row in TABLE])
def test_the_rule(runs: str, verdicts: Sequence[str], events: str, why: str) -> None:
    found = play(weekly(runs), verdicts, timedelta(days=3))
    assert [news.event for news in found] == [EVENTS[letter] for letter in events], why
    assert all(bool(news.reason) == (news.event is None) for news in found)


def test_what_a_message_follows() -> None:
    found = play(weekly("w0 a1 i2 s3"), ALL_OF_THEM)
    before = [None if news.before is None else (news.before.verdict, news.before.window) for news in found]
    assert before == [None, ("warning", "2026-W02"), None, ("insufficient", "2026-W04")]


def test_a_clock_that_was_set_back_holds_no_message_up() -> None:
    steps = [Step("alert", 0, MONDAY + timedelta(days=4000)), Step("alert", 1, MONDAY)]
    assert [news.event for news in play(steps)] == ["new", "continues"]


def test_a_cooldown_of_nothing_tells_every_window() -> None:
    assert [news.event for news in play(weekly("a0 a1 a1 a2"), cooldown=timedelta(0))] == [
        "new",
        "continues",
        None,
        "continues",
    ]


STEPS = st.lists(
    st.tuples(st.sampled_from(VERDICTS), st.integers(-2, 3), st.integers(0, 100), st.booleans()), max_size=25
)
SETTINGS = st.tuples(
    st.lists(st.sampled_from(ALL_OF_THEM), unique=True), st.sampled_from([timedelta(0), timedelta(hours=48), WEEK])
)


def steps_of(drawn: list[tuple[Verdict, int, int, bool]]) -> list[Step]:
    """Windows that mostly go on, sometimes back; a clock that only goes on."""
    window, at, steps = 5, MONDAY, []
    for verdict, move, hours, delivered in drawn:
        window, at = max(0, window + move), at + timedelta(hours=hours)
        steps.append(Step(verdict, window, at, delivered))
    return steps


@given(STEPS, SETTINGS)
def test_what_holds_for_any_sequence(
    drawn: list[tuple[Verdict, int, int, bool]], settings: tuple[list[str], timedelta]
) -> None:
    verdicts, cooldown = settings
    steps = steps_of(drawn)
    sent: list[tuple[Step, Event]] = []
    unresolved = False
    for step, news in zip(steps, play(steps, verdicts, cooldown), strict=True):
        drift = [e for s, e in sent if s.verdict != "insufficient"]
        if news.event is None:
            # no alarm is missed: one that is to be told is open already, or a later window was told
            if step.verdict in verdicts and step.verdict != "insufficient":
                later = any(s.window > step.window for s, _ in sent)
                assert later or (drift and drift[-1] != "resolved")
            continue
        assert (news.event == "resolved") == (step.verdict == "stable")
        assert step.verdict == "stable" or step.verdict in verdicts
        assert news.event != "resolved" or unresolved  # only after a problem that was told
        assert all(s.window <= step.window for s, _ in sent)
        if news.event == "continues":
            last = next(
                s for s, _ in reversed(sent) if (s.verdict == "insufficient") == (step.verdict == "insufficient")
            )
            assert step.at - last.at >= cooldown
            assert step.window > last.window
        if news.event in ("worse", "continues", "resolved"):
            assert news.before is not None
        if step.delivered:
            sent.append((step, news.event))
            unresolved = news.event != "resolved"
    said = [(step.verdict, step.window) for step, _ in sent]
    assert all(a != b for a, b in pairwise(said))


@given(STEPS, st.lists(st.sampled_from(ALL_OF_THEM), unique=True))
def test_at_most_one_message_a_change_where_nothing_is_repeated(
    drawn: list[tuple[Verdict, int, int, bool]], verdicts: list[str]
) -> None:
    steps = steps_of([(verdict, abs(move), hours, True) for verdict, move, hours, _ in drawn])
    sent = [news.event for news in play(steps, verdicts, timedelta(days=10**6)) if news.event is not None]
    changes = sum(a.verdict != b.verdict for a, b in pairwise(steps))
    assert len(sent) <= changes + 1
    assert "continues" not in sent


@given(STEPS, SETTINGS)
def test_a_run_again_sends_nothing(
    drawn: list[tuple[Verdict, int, int, bool]], settings: tuple[list[str], timedelta]
) -> None:
    """Each run twice, both delivered: the second is silent."""
    steps = [step for one in steps_of([(*step[:3], True) for step in drawn]) for step in (one, one)]
    assert all(news.event is None for news in play(steps, *settings)[1::2])


@given(STEPS, SETTINGS)
def test_a_message_that_is_not_delivered_is_decided_again_alike(
    drawn: list[tuple[Verdict, int, int, bool]], settings: tuple[list[str], timedelta]
) -> None:
    steps = [s for one in steps_of([(*step[:3], True) for step in drawn])
             for s in (Step(one.verdict, one.window, one.at, delivered=False), one)]  # fmt: skip
    found = play(steps, *settings)
    assert found[0::2] == found[1::2]


MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
TOLD = st.none() | st.builds(Told, st.sampled_from(VERDICTS), st.text(), MOMENTS, MOMENTS)


@given(st.dictionaries(st.text(min_size=1), st.builds(State, TOLD, TOLD), max_size=3))
def test_every_state_comes_back(tmp_path_factory: pytest.TempPathFactory, states: dict[str, State]) -> None:
    path: Path = tmp_path_factory.mktemp("state") / told.STATE_FILE
    told.save(path, states)
    assert told.load(path) == (states, "")


def test_no_state_is_nothing_told(tmp_path: Path) -> None:
    assert told.load(tmp_path / "none" / told.STATE_FILE) == ({}, "")
