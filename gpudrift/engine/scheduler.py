"""Which task runs when, what happens after a failure, and results in task order. Knows neither threads nor Ray.

``Scheduler`` decides, ``run`` keeps an executor busy by its decisions. The same two run under a simulated executor
(``simulate``), whose times stand in docs/scale-out.md.
"""

from __future__ import annotations

import heapq
import logging
import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import count
from typing import Any

from gpudrift.engine.tasks import Account, Attempt, Ended, Executor, Failure, Policy, Task
from gpudrift.errors import EngineError

_log = logging.getLogger(__name__)
_REMEMBERED = 101  # tasks whose times tell what the next will take
_LEAST_KNOWN = 3  # times known before a task can be called slow


class Scheduler:
    """The state of one run of tasks whose places are 0, 1, 2, ...: all decisions, no waiting."""

    def __init__(self, tasks: Iterable[Task], policy: Policy, account: Account, ids: count[int]) -> None:
        self.policy, self.account, self._ids = policy, account, ids
        self._tasks = iter(tasks)
        self._next: Task | None = None
        self._again: list[tuple[float, int, Task]] = []  # not before, place, task
        self._running: dict[int, tuple[Attempt, float]] = {}
        self._tries: dict[int, int] = {}  # attempts begun, of tasks not handed out
        self._failed: dict[int, int] = {}
        self._values: dict[int, Any] = {}
        self._out = 0  # tasks handed out
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)  # seconds a unit of cost
        self._stop: list[Attempt] = []
        self._peek()

    @property
    def finished(self) -> bool:
        """Whether every task has been handed out."""
        return self._next is None and not self._again and not self._running and not self._values

    @property
    def running(self) -> list[Attempt]:
        """Attempts that have not ended."""
        return [attempt for attempt, _ in self._running.values()]

    def begin(self, now: float, slots: int) -> list[Attempt]:
        """Attempts to start: lost tasks first, then new ones, then second attempts at slow ones. Counted as running."""
        begun = []
        while len(self._running) < slots:
            task = self._choose(now, slots)
            if task is None:
                break
            begun.append(self._begin(task, now))
        return begun

    def end(self, now: float, ended: Ended) -> bool:
        """Take note of an attempt that ended; whether its task is done by it.

        Raises:
            EngineError: the task failed as often as it may.
            the task's own error: where its failure is fatal.
        """
        _, began = self._running.pop(ended.attempt.id, (None, None))
        if began is None:
            return False  # cancelled since
        task = ended.attempt.task
        if self._is_done(task):
            self.account.wasted += 1
            return False
        if ended.failure is not None:
            self._fail(now, ended.attempt, ended.failure)
            return False
        seconds = now - began if ended.seconds is None else ended.seconds
        self.account.worker_seconds += seconds
        self.account.result_bytes += ended.bytes
        self._rates.append(seconds / max(task.cost, 1e-9))
        self._values[task.place] = (task, ended.value)
        twins = [attempt for attempt, _ in self._running.values() if attempt.task.place == task.place]
        for twin in twins:
            del self._running[twin.id]
            self.account.wasted += 1
        self._stop += twins
        return True

    def overdue(self, now: float) -> list[Attempt]:
        """Attempts that ran out of ``task_seconds``: they are lost from here on, and to be cancelled."""
        limit = self.policy.task_seconds
        if limit is None:
            return []
        late = [attempt for attempt, began in self._running.values() if now - began > limit]
        for attempt in late:
            del self._running[attempt.id]
            if not self._is_done(attempt.task):
                self._fail(now, attempt, Failure("lost", TimeoutError(f"no result after {limit:g} s")))
        return late

    def to_cancel(self) -> list[Attempt]:
        """Attempts whose results are not needed any more; each is told once."""
        found, self._stop = self._stop, []
        return found

    def ready(self) -> Generator[tuple[Task, Any], None, None]:
        """(task, value) of all tasks whose turn has come, in their order."""
        while self._out in self._values:
            found = self._values.pop(self._out)
            self._tries.pop(self._out, None)
            self._failed.pop(self._out, None)
            self._out += 1
            yield found

    def wake(self, now: float) -> float | None:
        """Seconds until something is due without any attempt ending; None: never."""
        times = [at for at, _, _ in self._again[:1]]
        limit = self.policy.task_seconds
        for attempt, began in self._running.values():
            if limit is not None:
                times.append(began + limit)
            slow = self._slow_at(attempt, began)
            if slow is not None:
                times.append(slow)
        return max(0.0, min(times) - now) + 1e-3 if times else None

    def _peek(self) -> None:
        self._next = next(self._tasks, None)

    def _is_done(self, task: Task) -> bool:
        return task.place < self._out or task.place in self._values

    def _choose(self, now: float, slots: int) -> Task | None:
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        if self._next is not None and self._next.place < self._out + max(1, self.policy.ahead) * max(slots, 1):
            task = self._next
            self._peek()
            return task
        return self._slowest(now)

    def _begin(self, task: Task, now: float) -> Attempt:
        number = self._tries[task.place] = self._tries.get(task.place, 0) + 1
        attempt = Attempt(next(self._ids), task, number)
        self._running[attempt.id] = attempt, now
        self.account.started += 1
        if number == 1:
            kind = task.name.split(" ")[0]
            self.account.tasks[kind] = self.account.tasks.get(kind, 0) + 1
        return attempt

    def _slow_at(self, attempt: Attempt, began: float) -> float | None:
        """When a task becomes slow enough for a second attempt; None where it has one, or nothing is known."""
        if not self.policy.speculate or len(self._rates) < _LEAST_KNOWN:
            return None
        if sum(other.task.place == attempt.task.place for other, _ in self._running.values()) > 1:
            return None
        expected = statistics.median(self._rates) * attempt.task.cost
        return began + self.policy.slow * expected + self.policy.grace

    def _slowest(self, now: float) -> Task | None:
        due = [
            (at, attempt.task)
            for attempt, began in self._running.values()
            if (at := self._slow_at(attempt, began)) is not None and at <= now
        ]
        if not due:
            return None
        _, task = min(due, key=lambda found: (found[0], found[1].place))
        self.account.speculated += 1
        _log.warning("%s is slow: a second worker tries it too", task.name)
        return task

    def _fail(self, now: float, attempt: Attempt, failure: Failure) -> None:
        task = attempt.task
        if failure.kind == "fatal":
            raise failure.error
        if failure.kind == "lost":
            self.account.lost += 1
        else:
            self.account.errors += 1
        failed = self._failed[task.place] = self._failed.get(task.place, 0) + 1
        said = f"{type(failure.error).__name__}: {str(failure.error).strip() or 'no message'}"
        if failed >= self.policy.attempts:
            raise EngineError(
                f"the task {task.name} failed {failed} times; the run is given up and no score is written",
                field="engine.attempts",
                value=self.policy.attempts,
                where=failure.where or None,
                hint=f"the last failure was {_short(said)}",
            ) from failure.error
        if any(other.task.place == task.place for other, _ in self._running.values()):
            return  # its twin goes on
        place = f" on {failure.where}" if failure.where else ""
        _log.warning("%s failed%s and is tried again (%d of %d): %s", task.name, place, failed + 1,
                     self.policy.attempts, _short(said))  # fmt: skip
        heapq.heappush(self._again, (now + self.policy.pause * 2 ** (failed - 1), task.place, task))


def _short(text: str, most: int = 600) -> str:
    """The beginning of a message, or its end where that is a traceback's."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    joined = lines[0] if lines else ""
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
            now, slots = executor.now(), executor.slots()
            for attempt in scheduler.begin(now, slots):
                executor.start(attempt)
            idle_since = None if slots else (now if idle_since is None else idle_since)
            _refuse_endless_wait(now, idle_since, scheduler.policy)
            for ended in executor.wait(_patience(scheduler, now, slots)):
                if scheduler.end(executor.now(), ended) and on_done is not None:
                    on_done(ended.attempt.task)
            stopped: Sequence[Attempt] = [*scheduler.overdue(executor.now()), *scheduler.to_cancel()]
            if stopped:
                executor.cancel(stopped)
            yield from scheduler.ready()
    finally:
        left = scheduler.running
        if left:
            executor.cancel(left)


def _patience(scheduler: Scheduler, now: float, slots: int) -> float | None:
    """How long to wait for an attempt to end: shorter where something else is due, or workers may come back."""
    wake = scheduler.wake(now)
    if slots and wake is None and scheduler.running:
        return None
    return min(1.0 if not slots else 5.0, wake if wake is not None else 5.0)


def _refuse_endless_wait(now: float, since: float | None, policy: Policy) -> None:
    if since is not None and now - since > policy.patience:
        raise EngineError(
            f"no worker has been left for {policy.patience:.0f} s; the run is given up and no score is written",
            field="engine",
            hint="start workers again and rerun: finished blocks are taken from disk",
        )
