"""Where a job's work runs: a map of idempotent tasks whose results are merged in task order.

Stages hand tasks to an ``Engine`` and do not know which one it is. ``local`` runs them in this process, on one device
or on several; ``ray`` on a Ray cluster. The tasks, what each computes and the order in which results are merged depend
on the data and the settings alone: so do the bits of what comes out, whatever runs where, in which order, how often.

Two families of tasks use it: macro-blocks of pairs (``pairs``) and scans of files (``scans``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

from gpudrift.engine.scheduler import Scheduler, run
from gpudrift.engine.tasks import Account, Attempt, Ended, Executor, Failure, Policy, Shared, Task, Worker
from gpudrift.errors import EngineError

__all__ = [
    "Account",
    "Attempt",
    "Ended",
    "Engine",
    "Executor",
    "Failure",
    "Policy",
    "Shared",
    "Task",
    "Worker",
]


class Engine:
    """An executor, how it meets trouble, and an account of what was done. Close it, or use it as a context."""

    def __init__(self, executor: Executor, policy: Policy | None = None) -> None:
        self.executor, self.policy = executor, policy or Policy()
        self.account = Account()
        self._ids = count()
        self._turn: object = None  # of the map that runs

    @property
    def remote(self) -> bool:
        """Whether values leave this process: what is shared is then packed as arrays."""
        return self.executor.remote

    def share(self, value: Any, *, pack: Callable[[Any], Any] | None = None) -> Shared:
        """Put a value where every task can read it, once. pack: what makes plain arrays of it where it leaves this
        process; the task's function must take both forms."""
        packed = pack(value) if pack is not None and self.remote else value
        shared = self.executor.share(uuid.uuid4().hex, packed)
        self.account.shared_bytes += shared.bytes
        return shared

    def map(
        self, tasks: Iterable[Task], *, on_done: Callable[[Task], None] | None = None, ahead: int | None = None
    ) -> Generator[tuple[Task, Any], None, None]:
        """(task, value) of every task, in the order of their places, which ascend by one. Close it to stop early.

        Nothing begins before the first value is asked for. One map at a time: where another has begun meanwhile, the
        next value of this one is an error, for what its tasks came to may have been told to the other.

        Args:
            tasks: taken as workers get to them, in the calling thread.
            on_done: called as tasks end, in any order, in the calling thread.
            ahead: ``Policy.ahead`` of this map; less than its own where results are large.

        Raises:
            EngineError: a task failed as often as it may, no worker is left, the cluster is gone, another map began.
            the task's own error: one of ours (``GpudriftError``), which another try would repeat.
        """
        turn = self._turn = object()
        policy = self.policy if ahead is None else replace(self.policy, ahead=ahead)
        with closing(run(Scheduler(tasks, policy, self.account, self._ids), self.executor, on_done)) as results:
            for found in results:
                yield found
                if self._turn is not turn:
                    raise EngineError("another map of this engine began before this one had ended")

    def close(self) -> None:
        self.executor.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
