"""An executor that does everything an engine may: attempts end in any order, are lost, and run twice.

With ``remote`` values cross a boundary as they do with an object store: pickled, and read-only on the other side.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpudrift.engine import Attempt, Ended, Engine, Failure, Policy, Shared, Task, Worker


class Restless:
    """Attempts end in an order drawn by ``seed``; a share of them is lost. remote: as if on other machines.

    change: (task, value) -> value, before a value is handed back.
    """

    kind = "restless"

    def __init__(
        self,
        workers: int = 3,
        *,
        seed: int = 0,
        lost: float = 0.0,
        twice: bool = False,
        remote: bool = True,
        change: Callable[[Task, Any], Any] = lambda _, value: value,
    ) -> None:
        self.remote, self.workers = remote, [Worker("cpu") for _ in range(workers)]
        self.random, self.lost, self.twice, self.change = random.Random(seed), lost, twice, change
        self.shared: list[Shared] = []
        self.order: list[str] = []  # names of tasks as they ended
        self._attempts: list[Attempt] = []
        self._time = 0.0

    def now(self) -> float:
        self._time += 1.0  # what waits for its turn after a failure gets it
        return self._time

    def slots(self) -> int:
        return len(self.workers)

    def share(self, key: str, value: Any) -> Shared:
        shared = Shared(key, store(value), value.bytes) if self.remote else Shared(key, value)
        self.shared.append(shared)
        return shared

    def start(self, attempt: Attempt) -> None:
        self._attempts.append(attempt)

    def wait(self, _: float | None) -> Sequence[Ended]:
        if not self._attempts:
            return []
        attempt = self._attempts.pop(self.random.randrange(len(self._attempts)))
        if self.random.random() < self.lost:
            return [Ended(attempt, failure=Failure("lost", ConnectionError("the worker is gone"), "node 7"))]
        try:
            ended = Ended(attempt, self._value(attempt.task), seconds=1.0)
        except Exception as error:  # noqa: BLE001
            return [Ended(attempt, failure=Failure("fatal", error))]
        self.order.append(attempt.task.name)
        return [ended, ended] if self.twice else [ended]

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        self._attempts = [attempt for attempt in self._attempts if attempt not in attempts]

    def describe(self) -> Mapping[str, Any]:
        return {}

    def measures(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._attempts.clear()

    def _value(self, task: Task) -> Any:
        worker, args = self.random.choice(self.workers), list(task.args)
        if self.remote:
            plain = store([arg for arg in args if not isinstance(arg, Shared)])()
            args = [arg.held() if isinstance(arg, Shared) else plain.pop(0) for arg in args]
            return self.change(task, store(task.function(worker, *args))())
        args = [arg.held if isinstance(arg, Shared) else arg for arg in args]
        return self.change(task, task.function(worker, *args))


def store(value: Any) -> Callable[[], Any]:
    """The value as an object store hands it out: arrays in memory aligned to 64 bytes that nobody may write to."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    lying = [_aligned(buffer.raw()) for buffer in buffers]
    return lambda: pickle.loads(text, buffers=lying)


def _aligned(raw: memoryview) -> memoryview:
    room = np.empty(raw.nbytes + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    there = room[start : start + raw.nbytes]
    there[:] = np.frombuffer(raw, dtype=np.uint8)
    there.flags.writeable = False
    return there.data


def restless(*args: Any, **settings: Any) -> Engine:
    """An engine on it that does not give up."""
    return Engine(Restless(*args, **settings), Policy(attempts=50, speculate=settings.get("twice", False)))
