"""The scheduler on an executor whose every step the test decides, and under random trouble on a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift.engine import Account, Attempt, Ended, Engine, Failure, Policy, Task, Worker
from gpudrift.engine.scheduler import Scheduler, run
from gpudrift.engine.simulate import Node, SimulatedExecutor, finish
from gpudrift.errors import ArgumentError, EngineError

LOST = Failure("lost", ConnectionError("gone"), "node 1")
BROKEN = Failure("error", RuntimeError("no\n  File x\nbut why"), "node 2")


def nothing(worker: Worker) -> None:
    """What tasks here would do."""


def tasks(number: int, first: int = 0, costs: Sequence[float] = ()) -> Iterator[Task]:
    for k in range(first, first + number):
        yield Task(k, f"XY {k}", nothing, cost=costs[k] if costs else 1.0)


def scheduler(number: int, first: int = 0, **policy: Any) -> Scheduler:
    return Scheduler(tasks(number, first), Policy(**policy), Account(), count())


def adds_up(account: Account) -> bool:
    return account.started == sum(account.tasks.values()) + account.lost + account.errors + account.wasted


def places(attempts: Iterator[Attempt] | Sequence[Attempt]) -> list[int]:
    return [attempt.task.place for attempt in attempts]


def handed_out(plan: Scheduler) -> list[tuple[Task, Any]]:
    """All results whose turn has come."""
    return list(iter(plan.take, None))


# Decisions, step by step


def test_results_come_in_order_and_a_result_waits_for_those_before_it() -> None:
    plan = scheduler(3)
    first, second, third = plan.begin(0.0, 3)
    assert plan.end(1.0, Ended(third, "c"))
    assert handed_out(plan) == []
    assert plan.end(2.0, Ended(first, "a"))
    assert [(task.place, value) for task, value in handed_out(plan)] == [(0, "a")]
    assert plan.end(3.0, Ended(second, "b"))
    assert [value for _, value in handed_out(plan)] == ["b", "c"]
    assert plan.finished


def test_places_may_begin_anywhere_and_must_ascend_by_one() -> None:
    plan = scheduler(2, first=7)
    found = list(plan.begin(0.0, 2))
    assert places(found) == [7, 8]
    for attempt in found:
        plan.end(1.0, Ended(attempt, attempt.task.name))
    assert [value for _, value in handed_out(plan)] == ["XY 7", "XY 8"]

    gap = Scheduler(iter([*tasks(1), *tasks(1, first=2)]), Policy(), Account(), count())
    with pytest.raises(ArgumentError, match="in the order of their places"):
        list(gap.begin(0.0, 4))


def test_tasks_are_taken_as_workers_get_to_them_and_not_far_ahead_of_the_first_missing_one() -> None:
    taken: list[int] = []

    def watched() -> Iterator[Task]:
        for task in tasks(100):
            taken.append(task.place)
            yield task

    plan = Scheduler(watched(), Policy(ahead=3, speculate=False), Account(), count())
    head, *others = plan.begin(0.0, 2)
    for _ in range(4):  # the first one takes its time
        plan.end(1.0, Ended(others.pop(), None))
        others += plan.begin(1.0, 2)
    assert places(others) == [5]
    plan.end(1.0, Ended(others.pop(), None))
    assert list(plan.begin(1.0, 2)) == []  # six of them: three a slot
    assert taken == list(range(7))  # the next one is known, to know whether there is one
    plan.end(2.0, Ended(head, None))
    assert len(handed_out(plan)) == 6
    assert places(plan.begin(2.0, 2)) == [6, 7]


@pytest.mark.parametrize(("ahead", "most"), [(None, 8), (2, 2)])
def test_a_map_whose_results_are_large_goes_less_far_ahead(ahead: int | None, most: int) -> None:
    """The first task takes long, the others nothing; the values that wait lie in this process."""
    executor = SimulatedExecutor([Node(2)], lambda attempt, _: 100.0 if attempt.task.place == 0 else 1.0)
    taken: list[int] = []

    def watched() -> Iterator[Task]:
        for task in tasks(100):
            taken.append(task.place)
            yield task

    with closing(Engine(executor, Policy(speculate=False)).map(watched(), ahead=ahead)) as found:
        next(found)
    assert len(taken) == most * 2 + 1  # the next one is known, to know whether there is one


def test_a_lost_task_waits_a_pause_that_doubles_and_goes_before_new_ones() -> None:
    plan = scheduler(9, pause=1.0, attempts=9)
    (attempt,) = plan.begin(0.0, 1)
    now = 0.0
    for tried in range(1, 8):
        assert not plan.end(now, Ended(attempt, failure=LOST))
        pause = min(2.0 ** (tried - 1), 30.0)
        assert plan.wake(now, 1) == pytest.approx(pause + 1e-3)
        early = list(plan.begin(now + pause * 0.99, 1))
        assert 0 not in places(early)
        for other in early:
            plan.end(now, Ended(other, None))
        now += pause
        (attempt,) = plan.begin(now, 1)
        assert (attempt.task.place, attempt.number) == (0, tried + 1)


def test_a_task_is_given_up_after_so_many_failures_and_the_error_says_why() -> None:
    plan = scheduler(2, attempts=2, pause=0.0)
    (attempt,) = plan.begin(0.0, 1)
    plan.end(0.0, Ended(attempt, failure=LOST))
    (attempt,) = plan.begin(0.0, 1)
    with pytest.raises(EngineError, match="XY 0 failed 2 times") as caught:
        plan.end(0.0, Ended(attempt, failure=BROKEN))
    assert caught.value.__cause__ is BROKEN.error
    assert (caught.value.field, caught.value.value, caught.value.where) == ("engine.attempts", 2, "node 2")
    assert caught.value.hint == "the last failure was RuntimeError: no ... but why"
    assert (plan.account.lost, plan.account.errors) == (1, 1)


def test_a_fatal_failure_is_raised_as_it_is() -> None:
    plan = scheduler(1)
    (attempt,) = plan.begin(0.0, 1)
    error = ArgumentError("would be raised again")
    with pytest.raises(ArgumentError) as caught:
        plan.end(0.0, Ended(attempt, failure=Failure("fatal", error)))
    assert caught.value is error
    assert plan.account.errors == 1


def test_what_is_told_twice_or_after_the_end_or_of_another_run_changes_nothing() -> None:
    plan = scheduler(2)
    first, second = plan.begin(0.0, 2)
    assert plan.end(1.0, Ended(first, "a", bytes=5))
    assert not plan.end(1.0, Ended(first, "other", bytes=5))
    assert not plan.end(1.0, Ended(Attempt(99, first.task, 1), "other"))
    assert handed_out(plan) == [(first.task, "a")]
    assert not plan.end(1.0, Ended(first, failure=LOST))
    assert plan.end(1.0, Ended(second, "b"))
    assert (plan.account.result_bytes, plan.account.lost, plan.account.started) == (5, 0, 2)


def with_a_slow_task(**policy: Any) -> tuple[Scheduler, Attempt]:
    """Tasks 1 to 3 took 1 s, task 0 still runs."""
    plan = scheduler(4, grace=2.0, **policy)
    slow, *others = plan.begin(0.0, 4)
    for other in others:
        plan.end(1.0, Ended(other, None))
    return plan, slow


def test_a_slow_task_is_tried_a_second_time_where_a_worker_is_idle() -> None:
    plan, slow = with_a_slow_task(slow=3.0)
    assert list(plan.begin(4.9, 4)) == []
    assert plan.wake(1.0, 4) == pytest.approx(4.0 + 1e-3)  # 3 times 1 s and 2 s more
    assert plan.wake(1.0, 1) is None
    assert list(plan.begin(5.0, 1)) == []
    (twin,) = plan.begin(5.0, 4)
    assert (twin.task, twin.number) == (slow.task, 2)
    assert list(plan.begin(50.0, 4)) == []  # no third one
    assert plan.end(60.0, Ended(twin, "twin's"))
    assert plan.to_cancel() == [slow]
    assert plan.to_cancel() == []
    assert not plan.end(61.0, Ended(slow, "its own"))
    assert [value for _, value in handed_out(plan)] == ["twin's", None, None, None]
    assert plan.finished
    assert (plan.account.speculated, plan.account.wasted) == (1, 1)
    assert adds_up(plan.account)


def test_no_second_attempt_where_it_is_switched_off_or_too_little_is_known() -> None:
    plan, _ = with_a_slow_task(speculate=False)
    assert list(plan.begin(1e6, 4)) == []
    assert plan.wake(1e6, 4) is None
    plan = scheduler(3)
    _, *others = plan.begin(0.0, 3)
    for other in others:
        plan.end(1.0, Ended(other, None))
    assert list(plan.begin(1e6, 3)) == []


def test_slow_is_what_takes_long_for_its_cost_with_all_waiting_counted() -> None:
    """Seconds of the worker alone would call every task slow where they wait for their data."""
    plan = Scheduler(tasks(5, costs=[1, 1, 1, 10, 1]), Policy(grace=0.0, slow=2.0), Account(), count())
    attempts = list(plan.begin(0.0, 5))
    for attempt in attempts[:3]:
        plan.end(10.0, Ended(attempt, None, seconds=0.1))
    assert list(plan.begin(19.9, 5)) == []
    assert places(plan.begin(20.0, 5)) == [4]
    assert list(plan.begin(199.0, 5)) == []
    assert places(plan.begin(200.0, 5)) == [3]


def test_of_several_slow_tasks_the_first_in_order_comes_first() -> None:
    plan = scheduler(6, grace=0.0)
    attempts = list(plan.begin(0.0, 6))
    for attempt in attempts[3:]:
        plan.end(1.0, Ended(attempt, None))
    assert places(plan.begin(100.0, 5)) == [0, 1]


def test_a_slow_task_that_others_wait_for_comes_before_new_ones() -> None:
    plan = scheduler(20, grace=0.0, slow=2.0)
    slow, *others = plan.begin(0.0, 4)
    for other in others:
        plan.end(1.0, Ended(other, None))
    assert places(plan.begin(1.9, 4)) == [4, 5, 6]  # no worker is idle at 2.0
    plan.end(2.5, Ended(others[0], None))
    running = plan.running
    plan.end(2.5, Ended(running[-1], None))
    (twin,) = plan.begin(2.5, 4)
    assert (twin.task, twin.number) == (slow.task, 2)
    plan.end(2.6, Ended(running[-2], None))
    assert places(plan.begin(2.6, 4)) == [7]


def test_a_lost_attempt_leaves_the_task_to_its_twin() -> None:
    plan, slow = with_a_slow_task(attempts=1)
    (twin,) = plan.begin(10.0, 4)
    assert not plan.end(11.0, Ended(slow, failure=LOST))  # once is as often as it may fail, but the twin runs on
    assert list(plan.begin(99.0, 4)) == []  # and gets no twin of its own: that would make it three
    assert plan.end(100.0, Ended(twin, "twin's"))
    assert [value for _, value in handed_out(plan)] == ["twin's", None, None, None]
    assert adds_up(plan.account)


def test_a_task_is_tried_again_once_when_both_attempts_are_lost() -> None:
    plan, slow = with_a_slow_task(pause=0.0, attempts=3)
    (twin,) = plan.begin(10.0, 4)
    plan.end(11.0, Ended(twin, failure=LOST))
    plan.end(11.0, Ended(slow, failure=LOST))
    (again,) = plan.begin(11.0, 4)
    assert (again.task.place, again.number) == (0, 3)
    with pytest.raises(EngineError, match="failed 3 times"):
        plan.end(12.0, Ended(again, failure=LOST))


def test_an_attempt_out_of_time_is_lost_cancelled_and_its_late_result_not_taken() -> None:
    plan = scheduler(2, task_seconds=10.0, pause=0.0)
    (first,) = plan.begin(0.0, 1)
    (second,) = plan.begin(5.0, 2)
    assert plan.wake(5.0, 2) == pytest.approx(5.0 + 1e-3)
    plan.overdue(10.0)
    assert plan.to_cancel() == []
    plan.overdue(10.1)
    assert plan.to_cancel() == [first]
    assert not plan.end(10.2, Ended(first, "late"))
    (again,) = plan.begin(10.2, 2)
    assert plan.end(11.0, Ended(again, "a"))
    assert plan.end(11.0, Ended(second, "b"))
    assert [value for _, value in handed_out(plan)] == ["a", "b"]
    assert (plan.account.lost, plan.account.started) == (1, 3)


def test_attempts_out_of_time_are_cancelled_also_where_that_ends_the_run() -> None:
    plan = scheduler(2, task_seconds=10.0, attempts=1)
    begun = list(plan.begin(0.0, 2))
    with pytest.raises(EngineError, match=r"no result within engine.task_seconds \(10 s\)"):
        plan.overdue(11.0)
    assert {attempt.id for attempt in plan.abandon()} == {attempt.id for attempt in begun}


def test_attempts_that_run_are_left_alone_when_slots_shrink() -> None:
    plan = scheduler(9, ahead=1)
    begun = list(plan.begin(0.0, 4))
    assert list(plan.begin(0.0, 0)) == list(plan.begin(0.0, 2)) == []
    for attempt in reversed(begun):
        assert plan.end(1.0, Ended(attempt, None))
        assert list(plan.begin(1.0, 0)) == []
    assert len(handed_out(plan)) == 4
    assert places(plan.begin(2.0, 3)) == [4, 5, 6]


def test_a_long_run_keeps_nothing_of_tasks_handed_out() -> None:
    plan = scheduler(2000, ahead=1)
    now = 0.0
    while not plan.finished:
        now += 1.0
        for attempt in list(plan.begin(now, 5)):
            plan.end(now, Ended(attempt, None))
        handed_out(plan)
    kept = [vars(plan)[name] for name in ("_running", "_live", "_tries", "_failed", "_values", "_again", "_stop")]
    assert kept == [{}, {}, {}, {}, {}, [], []]
    assert len(plan._rates) == 101


# Kept going on an executor


class Scripted:
    """An executor that ends the oldest attempt a second after it was asked, and what a test puts in its way."""

    kind, remote = "scripted", False

    def __init__(self, slots: int = 2) -> None:
        self.room, self.clock = slots, 0.0
        self.started: list[Attempt] = []
        self.waiting: list[Attempt] = []
        self.cancelled: list[Attempt] = []
        self.waits: list[float] = []
        self.answer: Callable[[Attempt], list[Ended]] = lambda attempt: [Ended(attempt, attempt.task.place)]

    def now(self) -> float:
        return self.clock

    def slots(self) -> int:
        return self.room

    def start(self, attempt: Attempt) -> None:
        self.started.append(attempt)
        self.waiting.append(attempt)

    def wait(self, seconds: float) -> list[Ended]:
        self.waits.append(seconds)
        self.clock += 1.0 if self.waiting else seconds
        return self.answer(self.waiting.pop(0)) if self.waiting else []

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        self.cancelled += attempts

    def close(self) -> None:
        self.room = 0


def mapped(executor: Any, number: int = 6, **policy: Any) -> Generator[tuple[Task, Any], None, None]:
    return Engine(executor, Policy(**policy)).map(tasks(number))


def test_workers_are_busy_while_the_caller_merges() -> None:
    executor = Scripted()
    results = mapped(executor)
    next(results)
    assert len(executor.started) == 3  # the third began before the first result was handed out


def test_workers_are_given_work_between_results_that_had_to_wait() -> None:
    """The first result comes last: while those behind it are handed out, workers go on."""
    executor = Scripted(slots=2)

    def answer(attempt: Attempt) -> list[Ended]:
        if attempt.task.place == 0 and len(executor.started) < 9:
            executor.waiting.append(attempt)
            return []
        return [Ended(attempt, attempt.task.place)]

    executor.answer = answer
    begun = []
    for _, value in mapped(executor, 30, speculate=False):
        begun.append(len(executor.started) - value)
    assert begun[:21] == [10] * 21  # one more begins as each is handed out
    assert begun[21:] == list(range(9, 0, -1))  # none is left to begin
    assert executor.waits.count(0.0) >= 20  # without waiting


def test_a_generator_closed_early_cancels_what_runs() -> None:
    executor = Scripted()
    engine = Engine(executor, Policy())
    results = engine.map(tasks(6))
    next(results)
    results.close()
    assert executor.cancelled == executor.waiting
    assert engine.account.wasted == 2


def test_nothing_begins_before_the_first_value_is_asked_for() -> None:
    executor = Scripted()
    mapped(executor)
    assert executor.started == []


def test_no_tasks_no_results() -> None:
    assert list(mapped(Scripted(slots=0), 0)) == []


@pytest.mark.parametrize("place", [0, 3])
def test_an_error_of_on_done_ends_the_run_and_cancels(place: int) -> None:
    executor = Scripted()

    def stop(task: Task) -> None:
        if task.place == place:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Engine(executor).map(tasks(6), on_done=stop))
    assert executor.cancelled == executor.waiting != []


def test_an_error_of_the_tasks_iterator_ends_the_run_and_cancels() -> None:
    executor = Scripted()

    def broken() -> Iterator[Task]:
        yield from tasks(3)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(Engine(executor).map(broken()))
    assert executor.cancelled != []


def test_an_error_while_starting_ends_the_run_and_cancels() -> None:
    executor = Scripted()

    def refuse(_: Attempt) -> None:
        raise EngineError("closed")

    executor.start = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="closed"):
        list(mapped(executor))
    assert places(executor.cancelled) == [0]


def test_a_twin_is_cancelled_also_where_the_next_result_ends_the_run() -> None:
    """Both are told in one wait: the twin is out of what runs by then."""
    executor = Scripted(slots=5)
    began: dict[int, Attempt] = {}

    def answer(attempt: Attempt) -> list[Ended]:
        began.setdefault(attempt.id, attempt)
        if attempt.task.place in (1, 2, 3):
            return [Ended(attempt, None)]
        if attempt.number == 1:
            executor.waiting.append(attempt)  # 0 and 4 go on and on
            return []
        other = next(one for one in executor.waiting if one.task.place != attempt.task.place)
        return [Ended(attempt, None), Ended(other, failure=Failure("fatal", ArgumentError("never")))]

    executor.answer = answer
    with pytest.raises(ArgumentError, match="never"):
        list(mapped(executor, 5, grace=1.0))
    cancelled = {(attempt.task.place, attempt.number) for attempt in executor.cancelled}
    assert (0, 1) in cancelled


def test_no_worker_for_longer_than_patience_is_an_error() -> None:
    executor = Scripted(slots=0)
    with pytest.raises(EngineError, match="no worker has been left for 60 s"):
        list(mapped(executor))
    assert executor.clock == pytest.approx(61.0)
    assert set(executor.waits) == {1.0}


def test_workers_that_come_back_within_patience_go_on() -> None:
    executor = Scripted(slots=0)
    slots = iter([0] * 50)
    executor.slots = lambda: next(slots, 2)  # type: ignore[method-assign]
    assert [value for _, value in mapped(executor)] == list(range(6))


def test_results_that_still_come_are_a_sign_of_life() -> None:
    """No place for new tasks, but those that run end one by one, over more than ``patience``."""
    executor = Scripted(slots=4)
    results = mapped(executor, 8, patience=2.0, speculate=False)
    assert next(results)[1] == 0
    executor.room = 0
    assert [next(results)[1] for _ in range(4)] == [1, 2, 3, 4]
    executor.room = 4
    assert [value for _, value in results] == [5, 6, 7]


def test_new_workers_are_seen_while_tasks_run() -> None:
    executor = Scripted()
    list(mapped(executor, speculate=False))
    assert set(executor.waits) == {5.0}


def test_another_map_meanwhile_is_an_error_and_never_a_part_of_the_results() -> None:
    engine = Engine(Scripted(), Policy())
    first, second = engine.map(tasks(6)), engine.map(tasks(6))
    assert next(first)[1] == next(second)[1] == 0
    with pytest.raises(EngineError, match="another map"):
        next(first)
    assert [value for _, value in engine.map(tasks(6))] == list(range(6))


def test_one_map_after_another_shares_account_and_ids() -> None:
    executor = Scripted()
    engine = Engine(executor, Policy())
    for _ in range(2):
        list(engine.map(tasks(6)))
    assert (engine.account.tasks, engine.account.started) == ({"XY": 12}, 12)
    assert len({attempt.id for attempt in executor.started}) == 12


# Any trouble


class Stuttering(SimulatedExecutor):
    """Tells some ends twice, in the same wait or the next one, cancelled or not."""

    def __init__(self, *args: Any, repeat: Callable[[int], int], **named: Any) -> None:
        super().__init__(*args, **named)
        self._repeat, self._later, self.most = repeat, list[Ended](), 0

    def start(self, attempt: Attempt) -> None:
        super().start(attempt)
        self.most = max(self.most, len(self._alive))

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        again, self._later = self._later, []
        found = list(super().wait(0.0 if again else seconds))
        for ended in list(found):
            kind = self._repeat(ended.attempt.id)
            found += [ended] * (kind == 1)
            self._later += [ended] * (kind == 2)
        return [*again, *found]


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    """Nodes that go down, also all at a time, and come back or not."""
    nodes = []
    for _ in range(draw(st.integers(1, 4))):
        at, down = 0.0, []
        for _ in range(draw(st.integers(0, 2))):
            start = at + draw(st.floats(11, 60))
            at = start + draw(st.one_of(st.floats(1, 80), st.just(float("inf"))))
            down.append((start, at))
        slow, store = draw(st.sampled_from([1.0, 1.0, 5.0])), draw(st.sampled_from([float("inf"), 250.0]))
        nodes.append(Node(draw(st.integers(1, 3)), 50.0, store, slow, tuple(down)))
    return nodes


@given(
    nodes=clusters(),
    number=st.integers(0, 40),
    seed=st.integers(0, 999),
    trouble=st.sampled_from([0, 5, 20, 50]),
    stutter=st.booleans(),
    policy=st.builds(
        Policy,
        attempts=st.integers(1, 5),
        task_seconds=st.sampled_from([None, 8.0, 40.0]),
        speculate=st.booleans(),
        grace=st.sampled_from([0.0, 5.0]),
        ahead=st.integers(1, 3),
        pause=st.sampled_from([0.0, 0.25]),
    ),
)
@settings(max_examples=300)
def test_any_trouble_all_results_once_and_in_order_or_one_error(
    nodes: list[Node], number: int, seed: int, trouble: int, stutter: bool, policy: Policy
) -> None:
    def chance(*of: int) -> int:
        return hash((seed, *of)) % 100

    def outcome(attempt: Attempt) -> Any:
        drawn = chance(attempt.task.place, attempt.number)
        if drawn < trouble:
            return BROKEN if drawn % 2 else LOST
        return attempt.task.place

    executor = Stuttering(
        nodes,
        lambda attempt, node: 0.5 + chance(attempt.id, node) / 20 * (10 if chance(attempt.id) < 10 else 1),
        outcome=outcome,
        result_bytes=lambda _: 100,
        driver_bandwidth=1000.0,
        repeat=lambda one: chance(one, 7) % 3 * stutter,
    )
    account, slots = Account(), sum(node.workers for node in nodes)
    shared = [executor.share(str(k), 100) for k in range(4)]
    taken: list[int] = []

    def made() -> Iterator[Task]:
        for k in range(number):
            taken.append(k)
            yield Task(k, f"XY {k}", nothing, (shared[k % 4], k, shared[(k + 1) % 4]))

    done: list[int] = []
    plan = Scheduler(made(), policy, account, count())
    got: list[int] = []
    error: EngineError | None = None
    try:
        for task, value in run(plan, executor, lambda task: done.append(task.place)):
            assert value == task.place
            got.append(value)
            assert len(taken) <= len(got) + max(1, policy.ahead) * slots + 1  # running and waiting together
            assert len(plan._values) <= max(1, policy.ahead) * slots
            executor.work(0.05)
    except EngineError as caught:
        error = caught
    assert got == list(range(len(got)))
    if error is None:
        assert sorted(done) == got == list(range(number))
        assert adds_up(account)
        assert account.result_bytes == 100 * number
    else:
        assert "given up" in str(error)
        assert trouble or policy.task_seconds or any(node.down for node in nodes)
    assert executor.most <= slots
    assert not executor._alive
    assert account.started <= (policy.attempts + 1) * len(taken)
    assert account.tasks.get("XY", 0) <= len(taken)


def test_a_result_does_not_depend_on_who_computes_it() -> None:
    """The same values in the same order from 1, 2 and 5 workers, of any speed."""
    found = []
    for workers in (1, 2, 5):
        executor = SimulatedExecutor(
            [Node(slow=k + 1.0) for k in range(workers)], lambda attempt, _: attempt.id % 3 + 1
        )
        engine = Engine(executor)
        found.append([value for _, value in engine.map(tasks(50))])
        assert finish(engine.map(tasks(50)), executor, lambda _: 1.0) >= 50.0
    assert found[0] == found[1] == found[2] == list(range(50))
