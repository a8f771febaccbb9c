"""Workers that share nothing with this process but its disk: what goes to them and comes back is pickled."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from gpudrift.engine import Attempt, Ended, Failure, Shared, Worker


@dataclass(frozen=True)
class Parcel:
    """A pickled value, buffers apart, as a cluster moves it; unpacked, its arrays cannot be written on."""

    content: bytes
    buffers: tuple[bytes, ...]

    @classmethod
    def of(cls, value: Any) -> Parcel:
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return cls(content, tuple(bytes(buffer.raw()) for buffer in buffers))

    def open(self) -> Any:
        return pickle.loads(self.content, buffers=self.buffers)

    @property
    def size(self) -> int:
        return len(self.content) + sum(map(len, self.buffers))


class Elsewhere:
    """An ``Executor`` whose attempts run in this thread, in an order drawn at random, each as if on another node.

    lose: whether an attempt is lost on its way back. at: the place where an attempt runs, entered around it.
    """

    kind = "elsewhere"
    remote = True

    def __init__(
        self,
        workers: int = 2,
        *,
        seed: int = 0,
        lose: Callable[[Attempt], bool] = lambda _: False,
        at: Callable[[Attempt], AbstractContextManager[Any]] = lambda _: nullcontext(),
    ) -> None:
        self._workers = [Worker() for _ in range(workers)]
        self._random = random.Random(seed)
        self._lose, self._at = lose, at
        self._waiting: list[tuple[Attempt, Parcel]] = []
        self._clock = 0.0
        self.sent: dict[str, int] = {}  # bytes of the arguments of tasks, by name
        self.ran: list[str] = []

    def now(self) -> float:
        return self._clock

    def slots(self) -> int:
        return len(self._workers)

    def share(self, key: str, value: Any) -> Shared:
        parcel = Parcel.of(value)
        return Shared(key, parcel, parcel.size)

    def start(self, attempt: Attempt) -> None:
        task = attempt.task
        args = [arg.held if isinstance(arg, Shared) else arg for arg in task.args]
        parcel = Parcel.of((task.function, args))
        self.sent[task.name] = parcel.size
        self._waiting.append((attempt, parcel))

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        if not self._waiting:
            self._clock += seconds or 0.0
            return []
        self._clock += 1.0
        attempt, parcel = self._waiting.pop(self._random.randrange(len(self._waiting)))
        self.ran.append(attempt.task.name)
        function, args = parcel.open()
        with self._at(attempt):
            value = function(
                self._random.choice(self._workers),
                *(arg.open() if isinstance(arg, Parcel) else arg for arg in args),
            )
        if self._lose(attempt):
            return [Ended(attempt, failure=Failure("lost", ConnectionError("the node is gone"), "node 7"))]
        back = Parcel.of(value)
        return [Ended(attempt, back.open(), seconds=1.0, bytes=back.size)]

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        gone = {attempt.id for attempt in attempts}
        self._waiting = [(attempt, parcel) for attempt, parcel in self._waiting if attempt.id not in gone]

    def describe(self) -> Mapping[str, Any]:
        return {}

    def measures(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._waiting.clear()
