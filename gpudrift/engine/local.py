"""Tasks in this process: in the calling thread, or by a thread a device.

Threads, not processes: what tasks share is not copied, and torch and CUDA let go of the interpreter while they compute.
In a thread of its own a task has torch at one thread, so that two tasks do not fight over the cores; in the calling
thread it has what the process is set to. No result depends on which (``gpudrift.kernels.threads``).
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from gpudrift.engine import Engine
from gpudrift.engine.tasks import KEPT_BYTES, Attempt, Ended, Failure, Shared, Worker
from gpudrift.errors import EngineError
from gpudrift.kernels.threads import for_others, one_thread


def in_process() -> Engine:
    """An engine that runs tasks in the calling thread, on the device their values are on."""
    return Engine(LocalExecutor())


class LocalExecutor:
    """An ``Executor`` of this process's devices.

    Args:
        devices: torch's names, such as ``cuda:0`` or ``cpu``, a worker each. One or none: tasks run in the calling
            thread, inside ``wait``; none: their values stay where they are. Several: a thread each, begun with the
            first task.
        kept_bytes: of values each worker keeps from task to task.

    Every failure is final: another try in this process would meet the same.
    """

    kind = "local"
    remote = False

    def __init__(self, devices: Sequence[str] = (), *, kept_bytes: int = KEPT_BYTES) -> None:
        self._workers = [Worker(device, kept_bytes) for device in devices] or [Worker(None, kept_bytes)]
        self._board = _Board()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _end, self._board, self._threads)  # where nobody closes it

    def now(self) -> float:
        return time.monotonic()

    def slots(self) -> int:
        return len(self._workers)

    def share(self, key: str, value: Any) -> Shared:
        return Shared(key, value)

    def start(self, attempt: Attempt) -> None:
        if self._closed:
            raise EngineError("this engine is closed and takes no more tasks", field="engine")
        if len(self._workers) > 1 and not self._board.served:
            self._begin()
        self._board.put(attempt)

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        if len(self._workers) == 1:
            attempt = self._board.take(block=False)
            if attempt is not None:
                with _on(self._workers[0].device):
                    self._board.end(_attempt(attempt, self._workers[0]))
            return self._board.ended(0)
        try:
            return self._board.ended(seconds)
        except BaseException:  # an interrupt, most of all: no thread goes on behind the caller's back
            _end(self._board, self._threads)
            raise

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        self._board.drop({attempt.id for attempt in attempts})

    def describe(self) -> Mapping[str, Any]:
        devices = [worker.device for worker in self._workers if worker.device is not None]
        return {
            "devices": [{"device": str(device), **_name(device)} for device in devices],
            "workers": len(self._workers),
            "threads": 1 if len(self._workers) > 1 else torch.get_num_threads(),  # of torch, in each worker
        }

    def measures(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        """Drop tasks not begun; return when those that run have ended. Twice does no harm."""
        self._closed = True
        _end(self._board, self._threads)
        for worker in self._workers:
            worker.clear()

    def _begin(self) -> None:
        _end(self._board, self._threads)  # those of an interrupt that was itself interrupted
        ready = threading.Semaphore(0)
        self._board.served = True
        try:
            for k, worker in enumerate(self._workers):
                name = f"engine-{k}-{worker.device}"
                # daemons: others are waited for at exit before the finalizer tells these to end, and joins them
                thread = threading.Thread(target=_work, args=(self._board, worker, ready), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            for _ in self._workers:
                ready.acquire()
            for_others()
        except BaseException:
            _end(self._board, self._threads)
            raise


class _Board:
    """Where attempts wait for a thread, and their ends for the caller. served: threads take from it; they end when they
    see it False."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Attempt] = deque()
        self._running: set[int] = set()
        self._ended: list[Ended] = []
        self.served = False

    def put(self, attempt: Attempt) -> None:
        with self._changed:
            self._waiting.append(attempt)
            self._changed.notify_all()

    def take(self, *, block: bool = True) -> Attempt | None:
        """The next attempt; None where there is none, with ``block`` once it is served no more."""
        with self._changed:
            if block:
                self._changed.wait_for(lambda: self._waiting or not self.served)
            if not self._waiting:
                return None
            attempt = self._waiting.popleft()
            self._running.add(attempt.id)
            return attempt

    def end(self, ended: Ended) -> None:
        with self._changed:
            if ended.attempt.id in self._running:  # not cancelled since
                self._running.remove(ended.attempt.id)
                self._ended.append(ended)
                self._changed.notify_all()

    def ended(self, seconds: float | None) -> list[Ended]:
        """What has ended since the last call, once there is something, nothing can come, or time has run out."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not (self._waiting or self._running), seconds)
            found, self._ended = self._ended, []
            return found

    def drop(self, ids: set[int]) -> None:
        with self._changed:
            self._waiting = deque(attempt for attempt in self._waiting if attempt.id not in ids)
            self._running -= ids
            self._ended = [ended for ended in self._ended if ended.attempt.id not in ids]

    def clear(self) -> None:
        """Forget everything, and let the threads end."""
        with self._changed:
            self.served = False
            self._waiting.clear()
            self._running.clear()
            self._ended.clear()
            self._changed.notify_all()


def _end(board: _Board, threads: list[threading.Thread]) -> None:
    """Returns when the tasks that run have ended; their results are forgotten."""
    board.clear()
    while threads:
        thread = threads[-1]
        if thread.ident is not None and thread is not threading.current_thread():  # which may collect garbage
            thread.join()
        threads.pop()


def _work(board: _Board, worker: Worker, ready: threading.Semaphore) -> None:
    one_thread()
    ready.release()
    with _on(worker.device):
        while (attempt := board.take()) is not None:
            try:
                ended = _attempt(attempt, worker)
            except BaseException as error:  # noqa: BLE001 raised again in the calling thread
                ended = Ended(attempt, failure=Failure("fatal", error, str(worker.device)))
            board.end(ended)
            del attempt, ended  # a thread at rest keeps no value alive


def _attempt(attempt: Attempt, worker: Worker) -> Ended:
    """Run it here. What is no ``Exception`` (KeyboardInterrupt) passes through."""
    task, began = attempt.task, time.perf_counter()
    args = [arg.held if isinstance(arg, Shared) else arg for arg in task.args]
    try:
        value = task.function(worker, *args)
    except Exception as error:  # noqa: BLE001 a task may raise anything; the scheduler raises it in the caller
        where = "" if worker.device is None else str(worker.device)
        return Ended(attempt, failure=Failure("fatal", error, where), seconds=time.perf_counter() - began)
    return Ended(attempt, value, seconds=time.perf_counter() - began)


@contextlib.contextmanager
def _on(device: torch.device | None) -> Iterator[None]:
    """CUDA's current device is one of a thread."""
    if device is None or device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def _name(device: torch.device) -> dict[str, str]:
    return {"name": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
