"""What an engine and those who use it hand to each other: tasks, attempts at them, how they end, and who runs them.

A task is idempotent: its function reads nothing but its arguments, and run again it gives the same bits. That is what
lets an engine run it anywhere, again after a failure, and twice at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

KEPT_BYTES = 4 << 30  # of values a worker keeps from task to task


@dataclass(frozen=True)
class Shared:
    """A value that many tasks read; made by ``Engine.share``. An argument of a task by itself, never inside another.

    key: unlike that of any other value. held: what the executor needs to hand it to a task. bytes: its size as it
    leaves this process; 0 where it does not. It is let go when nobody holds the ``Shared`` any more.
    """

    key: str
    held: Any
    bytes: int = 0


@dataclass(frozen=True)
class Task:
    """place: from 0, among the results. name: for people, such as ``XY 3,4``. function: of a module, called as
    function(worker, *args) with each ``Shared`` replaced by its value. cost: relative (pairs, rows), for estimates."""

    place: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Attempt:
    """One try at a task. id: unlike that of any other in an engine. number: from 1 for each task."""

    id: int
    task: Task
    number: int


@dataclass(frozen=True)
class Failure:
    """kind: ``lost``: worker, node or object went away, another try may do; ``error``: the task raised, and may raise
    again; ``fatal``: it would raise again, or there is nobody left to try. where: node or device, for people."""

    kind: Literal["lost", "error", "fatal"]
    error: BaseException
    where: str = ""


@dataclass(frozen=True)
class Ended:
    """The end of an attempt. seconds: on its worker, without waiting; None where not known."""

    attempt: Attempt
    value: Any = None
    failure: Failure | None = None
    seconds: float | None = None
    bytes: int = 0  # of the value, as it came into this process


class Worker:
    """What a task knows of where it runs: the device (None: where its values are), and values kept there from task to
    task."""

    def __init__(self, device: str | torch.device | None = None, most: int = KEPT_BYTES) -> None:
        self.device = None if device is None else torch.device(device)
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def keep(self, key: str, size: int, make: Callable[[], Any]) -> Any:
        """``make()``, kept by ``key`` until values used since need its ``size`` bytes."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        while self._kept and self._bytes + size > self._most:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
        value = make()
        if size <= self._most:
            self._kept[key] = value, size
            self._bytes += size
        return value

    def clear(self) -> None:
        """Let everything go."""
        self._kept.clear()
        self._bytes = 0


class Executor(Protocol):
    """Runs attempts: threads of this process, Ray, or a simulation. Called by one thread.

    kind: its name in results. remote: whether values leave this process.
    """

    kind: str
    remote: bool

    def now(self) -> float:
        """Seconds on its clock."""

    def slots(self) -> int:
        """How many attempts it can run at a time as things are, without workers that are busy with a cancelled one; 0
        where no worker is left."""

    def share(self, key: str, value: Any) -> Shared:
        """Put a value where every worker can read it."""

    def start(self, attempt: Attempt) -> None:
        """Take an attempt; it ends in some ``wait``. Raises EngineError where nothing can be taken any more."""

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        """What has ended, at least one attempt, or nothing after so many seconds (None: no limit). An executor without
        workers of its own runs an attempt here. Raises EngineError where the cluster is gone."""

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Stop these where possible; they end in no ``wait``. Some may have ended, or were never taken."""

    def describe(self) -> Mapping[str, Any]:
        """Workers, devices, nodes: plain values for result.json."""

    def measures(self) -> Mapping[str, float]:
        """What it measured so far, such as the peak of its object store: plain numbers for result.json."""

    def close(self) -> None:
        """Let go of everything; twice does no harm."""


@dataclass(frozen=True)
class Policy:
    """How a scheduler meets trouble.

    attempts: tries of a task that is lost or raises. task_seconds: after which an attempt is taken for lost. speculate:
    start a second attempt at a task that takes ``slow`` times what its cost lets expect, and ``grace`` seconds more,
    where a worker is idle; the first to end counts. ahead: tasks that may be begun or done from the first missing one
    on, a slot. patience: seconds without any worker before giving up. pause: seconds before a lost task is tried again,
    doubled each time up to half a minute.
    """

    attempts: int = 4
    task_seconds: float | None = None
    speculate: bool = True
    slow: float = 3.0
    grace: float = 5.0
    ahead: int = 8
    patience: float = 60.0
    pause: float = 0.25


@dataclass
class Account:
    """What an engine did, for result.json. tasks: begun, by the first word of their names. started: attempts; once all
    tasks are done, these and those lost, in error and wasted. Bytes of values shared and of results that left or
    entered this process. worker_seconds: of attempts whose results counted."""

    tasks: dict[str, int] = field(default_factory=dict)
    started: int = 0
    lost: int = 0
    errors: int = 0
    speculated: int = 0
    wasted: int = 0  # attempts whose results were not needed any more
    resumed: int = 0  # tasks whose results were found on disk
    shared_bytes: int = 0
    result_bytes: int = 0
    worker_seconds: float = 0.0
