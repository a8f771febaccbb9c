"""Which task runs when, what happens after a failure, and results in task order. Knows neither threads nor Ray.

``Scheduler`` decides, ``run`` keeps an executor busy by its decisions. The same two run under a simulated executor
(``simulate``), whose times stand in docs/scale-out.md.

A step costs O(1) and a heap's O(log) while all workers are busy, O(attempts running) where one is idle, whatever the
number of tasks: they are taken from an iterator, at most ``Policy.ahead`` results a slot before the first missing one.
"""

from __future__ import annotations

import heapq
import logging
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from gpudrift.engine.tasks import Account, Attempt, Ended, Executor, Failure, Policy, Task
from gpudrift.errors import ArgumentError, EngineError

_log = logging.getLogger(__name__)
_REMEMBERED = 101  # tasks whose times tell what the next will take
_LEAST_KNOWN = 3  # times known before a task can be called slow
_LONGEST_PAUSE = 30.0
_LONGEST_WAIT = 5.0  # workers may join meanwhile


class Scheduler:
    """The state of one run of tasks: all decisions, no waiting. Places ascend by one, from that of the first task."""

    def __init__(self, tasks: Iterable[Task], policy: Policy, account: Account, ids: Iterator[int]) -> None:
        self.policy, self.account, self._ids = policy, account, ids
        self._tasks = iter(tasks)
        self._next = next(self._tasks, None)
        self._out = 0 if self._next is None else self._next.place  # of the next task to be handed out
        self._again: list[tuple[float, int, Task]] = []  # not before, place, task
        self._running: dict[int, tuple[Attempt, float]] = {}  # in the order they began
        self._live: dict[int, list[int]] = {}  # ids of attempts running, a place
        self._tries: dict[int, int] = {}  # attempts begun, of tasks not handed out
        self._failed: dict[int, int] = {}
        self._values: dict[int, tuple[Task, Any]] = {}
        self._rates = _Median()  # seconds a unit of cost
        self._stop: list[Attempt] = []

    @property
    def finished(self) -> bool:
        """Whether every task has been handed out."""
        return self._next is None and not self._again and not self._running and not self._values

    @property
    def running(self) -> list[Attempt]:
        """Attempts that have not ended."""
        return [attempt for attempt, _ in self._running.values()]

    def begin(self, now: float, slots: int) -> Generator[Attempt, None, None]:
        """Attempts to start, counted as running: lost tasks first, then new ones, then second attempts at slow ones.

        Raises:
            ArgumentError: the place of a task does not follow the one before.
        """
        while len(self._running) < slots:
            task = self._choose(now, slots)
            if task is None:
                break
            yield self._begin(task, now)

    def end(self, now: float, ended: Ended) -> bool:
        """Take note of an attempt that ended; whether its task is done by it.

        Raises:
            EngineError: the task failed as often as it may.
            the task's own error: where its failure is fatal.
        """
        attempt, began = self._running.get(ended.attempt.id, (None, now))
        if attempt is None:
            return False  # stopped since, told twice, or of another run
        self._leave(attempt)
        if ended.failure is not None:
            self._fail(now, attempt, ended.failure)
            return False
        task = attempt.task
        seconds = now - began if ended.seconds is None else ended.seconds
        self.account.worker_seconds += seconds
        self.account.result_bytes += ended.bytes
        self._rates.add((now - began) / max(task.cost, 1e-9))  # with all waiting: so are those compared with it
        self._values[task.place] = task, ended.value
        for twin in [self._running[other][0] for other in self._live.get(task.place, [])]:
            self._leave(twin)
            self._stop.append(twin)
            self.account.wasted += 1
        return True

    def overdue(self, now: float) -> None:
        """Take attempts that ran out of ``task_seconds`` for lost; they are to be cancelled.

        Raises:
            EngineError: a task failed as often as it may.
        """
        limit = self.policy.task_seconds
        if limit is None:
            return
        late = []
        for attempt, began in self._running.values():
            if now - began <= limit:
                break  # those after it began later
            late.append(attempt)
        self._stop += late
        for attempt in late:
            self._leave(attempt)
            error = TimeoutError(f"no result within engine.task_seconds ({limit:g} s)")
            self._fail(now, attempt, Failure("lost", error))

    def to_cancel(self) -> list[Attempt]:
        """Attempts whose results are not needed any more; each is told once."""
        found, self._stop = self._stop, []
        return found

    def abandon(self) -> list[Attempt]:
        """All that is still to be cancelled when a run ends early; nothing runs afterwards."""
        left = self.running
        self._running.clear()
        self._live.clear()
        self.account.wasted += len(left)
        return [*self.to_cancel(), *left]

    @property
    def ready(self) -> bool:
        """Whether the next result in order is there."""
        return self._out in self._values

    def take(self) -> tuple[Task, Any] | None:
        """(task, value) of the next task in order, handed out once; None where it is not done."""
        if not self.ready:
            return None
        place = self._out
        self._out += 1
        self._tries.pop(place)
        self._failed.pop(place, None)
        return self._values.pop(place)

    def wake(self, now: float, slots: int) -> float | None:
        """Seconds until something is due without any attempt ending; None: never."""
        due = []
        if self.policy.task_seconds is not None and self._running:
            _, began = next(iter(self._running.values()))
            due.append(began + self.policy.task_seconds)
        if len(self._running) < slots:
            due += [at for at, _, _ in self._again[:1]]
            due += [at for at, _ in self._slow(self._running)]
        return max(0.0, min(due) - now) + 1e-3 if due else None

    def _choose(self, now: float, slots: int) -> Task | None:
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        blocking = self._slowest(now, self._live.get(self._out, ()))
        if blocking is not None:
            return blocking
        task = self._next
        if task is not None and task.place < self._out + max(1, self.policy.ahead) * slots:
            self._next = next(self._tasks, None)
            if self._next is not None and self._next.place != task.place + 1:
                raise ArgumentError(
                    "tasks come in the order of their places",
                    field=self._next.name,
                    value=self._next.place,
                    allowed=task.place + 1,
                )
            return task
        return self._slowest(now, self._running)

    def _begin(self, task: Task, now: float) -> Attempt:
        number = self._tries[task.place] = self._tries.get(task.place, 0) + 1
        attempt = Attempt(next(self._ids), task, number)
        self._running[attempt.id] = attempt, now
        self._live.setdefault(task.place, []).append(attempt.id)
        self.account.started += 1
        if number == 1:
            kind = task.name.split(" ")[0]
            self.account.tasks[kind] = self.account.tasks.get(kind, 0) + 1
        return attempt

    def _leave(self, attempt: Attempt) -> None:
        del self._running[attempt.id]
        place = attempt.task.place
        self._live[place].remove(attempt.id)
        if not self._live[place]:
            del self._live[place]

    def _slow(self, ids: Iterable[int]) -> Iterator[tuple[float, Task]]:
        """(when it becomes slow enough for a second attempt, task) of those that run once and may fail again."""
        if not self.policy.speculate or len(self._rates) < _LEAST_KNOWN:
            return
        usual = self._rates.value
        for attempt, began in map(self._running.__getitem__, ids):
            task = attempt.task
            if len(self._live[task.place]) == 1 and self._failed.get(task.place, 0) < self.policy.attempts:
                yield began + self.policy.slow * usual * task.cost + self.policy.grace, task

    def _slowest(self, now: float, ids: Iterable[int]) -> Task | None:
        """The first task in order of these that is due a second attempt."""
        due = [task for at, task in self._slow(ids) if at <= now]
        if not due:
            return None
        task = min(due, key=lambda found: found.place)
        self.account.speculated += 1
        _log.warning("%s is slow: a second worker tries it too", task.name)
        return task

    def _fail(self, now: float, attempt: Attempt, failure: Failure) -> None:
        """Have the task of an attempt that failed tried again, or give up."""
        task, most = attempt.task, self.policy.attempts
        if failure.kind == "lost":
            self.account.lost += 1
        else:
            self.account.errors += 1
        if failure.kind == "fatal":
            raise failure.error
        failed = self._failed[task.place] = self._failed.get(task.place, 0) + 1
        said = _short(f"{type(failure.error).__name__}: {str(failure.error).strip() or 'no message'}")
        place = f" on {failure.where}" if failure.where else ""
        if task.place in self._live:
            _log.warning("%s failed%s, its other attempt goes on: %s", task.name, place, said)
            return
        if failed >= most:
            often = "once" if failed == 1 else f"{failed} times"
            raise EngineError(
                f"the task {task.name} failed {often}; the run is given up and no score is written",
                field="engine.attempts",
                value=most,
                where=failure.where or None,
                hint=f"the last failure was {said}",
            ) from failure.error
        _log.warning("%s failed%s and is tried again (%d of %d): %s", task.name, place, failed + 1, most, said)
        pause = min(self.policy.pause * 2 ** (failed - 1), _LONGEST_PAUSE)
        heapq.heappush(self._again, (now + pause, task.place, task))


class _Median:
    """The median of the last values told."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def value(self) -> float:
        half = len(self._sorted) // 2
        return (self._sorted[half] + self._sorted[-1 - half]) / 2

    def add(self, value: float) -> None:
        if len(self._last) == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(value)
        insort(self._sorted, value)


def _short(text: str, most: int = 600) -> str:
    """The beginning of a message, and its end where that is a traceback's."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    joined = lines[0]
    if len(lines) > 1:
        joined += " ... " + lines[-1].strip()
    return joined if len(joined) <= most else joined[:most] + " ..."


def run(
    scheduler: Scheduler, executor: Executor, on_done: Callable[[Task], None] | None = None
) -> Generator[tuple[Task, Any], None, None]:
    """(task, value) of every task in order, kept going on an executor. Close it to stop early.

    Raises:
        EngineError: a task failed as often as it may, no worker is left, the cluster is gone.
        the task's own error: a fatal one.
    """
    idle_since: float | None = None
    try:
        while not scheduler.finished:
            slots, now = executor.slots(), executor.now()
            for attempt in scheduler.begin(now, slots):
                executor.start(attempt)
            found = scheduler.take()
            if found is not None:
                yield found  # workers are busy while the caller merges
                del found
            idle_since = None if slots else (now if idle_since is None else idle_since)
            _refuse_endless_wait(now, idle_since, scheduler.policy)
            if _collect(scheduler, executor, slots, on_done):
                idle_since = None
    finally:
        left = scheduler.abandon()
        if left:
            executor.cancel(left)


def _collect(scheduler: Scheduler, executor: Executor, slots: int, on_done: Callable[[Task], None] | None) -> bool:
    """Wait for attempts to end, or for something to be due, or not at all where a result can be handed out; whether a
    task is done."""
    if scheduler.finished:
        return False
    done, seconds = False, 0.0
    if not scheduler.ready:
        wake, seconds = scheduler.wake(executor.now(), slots), _LONGEST_WAIT if slots else 1.0
        seconds = seconds if wake is None else min(seconds, wake)
    for ended in executor.wait(seconds):
        if scheduler.end(executor.now(), ended):
            done = True
            if on_done is not None:
                on_done(ended.attempt.task)
    scheduler.overdue(executor.now())
    stopped = scheduler.to_cancel()
    if stopped:
        executor.cancel(stopped)
    return done


def _refuse_endless_wait(now: float, since: float | None, policy: Policy) -> None:
    if since is not None and now - since > policy.patience:
        raise EngineError(
            f"no worker has been left for {policy.patience:.0f} s; the run is given up and no score is written",
            field="engine",
            hint="start workers again and rerun: finished blocks are taken from disk",
        )
