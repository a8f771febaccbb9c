"""An executor with a virtual clock: what the real scheduler makes of nodes, networks and trouble, in seconds of ours.

``scheduler.run`` drives a ``SimulatedExecutor`` as it drives Ray. An attempt goes to an idle worker of the node that
lacks the fewest bytes of what the task shares; the node fetches those over its own link, one value after another; the
worker computes for as long as ``seconds_of`` says, times the node's slowness; the result comes in over the driver's
link, one after another. The first copy of a value leaves the driver over the driver's link; later ones come from nodes
that have it, and only the receiver's link counts. A node that fails takes its attempts and its values along; that is
noticed a while later, and until then tasks go there.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from gpudrift.engine.tasks import Attempt, Ended, Failure, Shared, Task


@dataclass(frozen=True)
class Node:
    """workers: tasks at a time. bandwidth: bytes a second in. store: bytes of shared values it holds; the ones used
    longest ago make room. slow: times the seconds of a good node. down: (from, until) in seconds, in order, apart by
    more than it takes to notice; until is infinite where it does not come back."""

    workers: int = 1
    bandwidth: float = math.inf
    store: float = math.inf
    slow: float = 1.0
    down: tuple[tuple[float, float], ...] = ()


@dataclass
class _State:
    """A node as it is. free: idle workers. link: when its link is next idle. held: key -> (bytes, there from)."""

    node: Node
    free: int = 0
    up: bool = True
    known: bool = True  # the driver counts on it
    link: float = 0.0
    held: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    running: dict[int, Attempt] = field(default_factory=dict)


_Kind = Literal["down", "noticed", "up", "computed", "arrived"]


class SimulatedExecutor:
    """An ``Executor`` that computes nothing.

    Args:
        nodes: the cluster, without the driver.
        seconds_of: (attempt, number of the node) -> seconds on a good node; seeded by the caller.
        outcome: what an attempt comes to: a value, or a ``Failure``. Default: the task's place.
        result_bytes: of a task's value.
        driver_bandwidth: bytes a second, in and out each.
        notice: seconds until the driver knows that a node is gone.
    """

    kind = "simulated"
    remote = True

    def __init__(
        self,
        nodes: Sequence[Node],
        seconds_of: Callable[[Attempt, int], float],
        *,
        outcome: Callable[[Attempt], Any] | None = None,
        result_bytes: Callable[[Task], int] = lambda _: 0,
        driver_bandwidth: float = math.inf,
        notice: float = 10.0,
    ) -> None:
        self._seconds_of, self._outcome, self._result_bytes = seconds_of, outcome, result_bytes
        self._driver_bandwidth, self._notice = driver_bandwidth, notice
        self._nodes = [_State(node, node.workers) for node in nodes]
        self._now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, _Kind, int, Ended | None]] = []
        self._queue: dict[int, Attempt] = {}  # taken, without a worker
        self._alive: set[int] = set()  # attempts that are to end in a wait
        self._out_link = self._in_link = 0.0
        self._copied: set[str] = set()  # values that have left the driver
        self._ended: list[Ended] = []
        self.fetched = [0.0] * len(self._nodes)  # bytes, a node
        self.busy = 0.0  # seconds of workers that computed
        for k, node in enumerate(nodes):
            for start, until in node.down:
                self._push(start, "down", k)
                if until < math.inf:
                    self._push(until, "up", k)

    def now(self) -> float:
        return self._now

    def slots(self) -> int:
        return sum(state.node.workers for state in self._nodes if state.known)

    def share(self, key: str, value: Any) -> Shared:
        """``value``: its bytes."""
        return Shared(key, None, int(value))

    def start(self, attempt: Attempt) -> None:
        self._queue[attempt.id] = attempt
        self._alive.add(attempt.id)
        self._place()

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        until = math.inf if seconds is None else self._now + seconds
        while not self._ended and self._events and self._events[0][0] <= until:
            self._step()
        if not self._ended and until < math.inf:
            self._now = max(self._now, until)
        found, self._ended = self._ended, []
        return found

    def work(self, seconds: float) -> None:
        """The driver is busy: it merges a result."""
        until = self._now + seconds
        while self._events and self._events[0][0] <= until:
            self._step()
        self._now = until

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        ids = {attempt.id for attempt in attempts}
        self._alive -= ids
        self._ended = [ended for ended in self._ended if ended.attempt.id not in ids]
        for one in ids:
            self._queue.pop(one, None)
            for state in self._nodes:
                if state.running.pop(one, None) is not None:
                    state.free += state.up
        self._place()

    def describe(self) -> Mapping[str, Any]:
        return {"nodes": len(self._nodes), "workers": self.slots()}

    def measures(self) -> Mapping[str, float]:
        return {"fetched_bytes": sum(self.fetched), "busy_seconds": self.busy}

    def close(self) -> None:
        self._events.clear()
        self._queue.clear()

    def _push(self, at: float, kind: _Kind, node: int, ended: Ended | None = None) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, node, ended))

    def _step(self) -> None:
        at, _, kind, k, ended = heapq.heappop(self._events)
        self._now = max(self._now, at)
        state = self._nodes[k]
        if kind == "down":
            state.up, state.free = False, 0
            state.held.clear()
            self._push(self._now + self._notice, "noticed", k)
        elif kind == "noticed" and not state.up:
            state.known = False
            self._lose(state, k)
        elif kind == "up":
            self._lose(state, k)
            state.up = state.known = True
            state.free, state.link = state.node.workers, self._now
        elif kind == "computed" and ended is not None:
            if state.up and state.running.pop(ended.attempt.id, None) is not None:
                state.free += 1
                self.busy += ended.seconds or 0.0
                self._in_link = max(self._in_link, self._now) + ended.bytes / self._driver_bandwidth
                self._push(self._in_link, "arrived", k, ended)
        elif ended is not None and ended.attempt.id in self._alive:
            self._tell(ended)
        self._place()

    def _lose(self, state: _State, k: int) -> None:
        """The driver learns that what ran on a node that went down is gone."""
        for attempt in state.running.values():
            if attempt.id in self._alive:
                self._tell(Ended(attempt, failure=Failure("lost", ConnectionError("the node is gone"), f"node {k}")))
        state.running.clear()

    def _tell(self, ended: Ended) -> None:
        self._alive.discard(ended.attempt.id)
        self._ended.append(ended)

    def _place(self) -> None:
        """Give attempts in the queue to idle workers; a node that is down but not known to be swallows them."""
        while self._queue:
            attempt = next(iter(self._queue.values()))
            shared = [arg for arg in attempt.task.args if isinstance(arg, Shared)]
            found = self._best(shared)
            if found is None:
                return
            del self._queue[attempt.id]
            state = self._nodes[found]
            state.running[attempt.id] = attempt
            if not state.up:
                continue
            state.free -= 1
            begins = self._fetch(state, found, shared)
            seconds = self._seconds_of(attempt, found) * state.node.slow
            self._push(begins + seconds, "computed", found, self._result(attempt, seconds))

    def _best(self, shared: Sequence[Shared]) -> int | None:
        """The node with an idle worker that lacks the fewest bytes; among equals the one with most idle workers."""
        best: tuple[float, int, int] | None = None
        for k, state in enumerate(self._nodes):
            idle = state.free if state.up else (state.node.workers - len(state.running)) * state.known
            if idle > 0:
                lacking = sum(one.bytes for one in shared if one.key not in state.held)
                best = min(best or (math.inf, 0, 0), (lacking, -idle, k))
        return None if best is None else best[2]

    def _fetch(self, state: _State, k: int, shared: Sequence[Shared]) -> float:
        """When a node has all of these."""
        there = self._now
        for one in shared:
            if one.key not in state.held:
                begins = max(self._now, state.link)
                ends = begins + one.bytes / state.node.bandwidth
                if one.key not in self._copied:
                    self._copied.add(one.key)
                    self._out_link = max(self._out_link, begins) + one.bytes / self._driver_bandwidth
                    ends = max(ends, self._out_link)
                state.link = ends
                state.held[one.key] = float(one.bytes), ends
                self.fetched[k] += one.bytes
            state.held.move_to_end(one.key)
            there = max(there, state.held[one.key][1])
        size = sum(held for held, _ in state.held.values()) if state.node.store < math.inf else 0.0
        while size > state.node.store and len(state.held) > len(shared):
            size -= state.held.popitem(last=False)[1][0]
        return there

    def _result(self, attempt: Attempt, seconds: float) -> Ended:
        value = attempt.task.place if self._outcome is None else self._outcome(attempt)
        if isinstance(value, Failure):
            return Ended(attempt, failure=value, seconds=seconds)
        return Ended(attempt, value, seconds=seconds, bytes=self._result_bytes(attempt.task))


def finish(
    results: Generator[tuple[Task, Any], None, None], executor: SimulatedExecutor, merge: Callable[[Task], float]
) -> float:
    """Take all results as a driver does that needs ``merge`` seconds for each; the seconds on the clock at the end."""
    for task, _ in results:
        executor.work(merge(task))
    return executor.now()
