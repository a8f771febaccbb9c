"""Time, waiting, and being told to stop, in one place: tests put a clock of their own here."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Waiter:
    """Waits for descriptors or for time to pass; a signal ends any wait at once.

    As a context: SIGTERM and SIGINT ask to stop (``stopping``); a second SIGINT is a KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._pipe: tuple[int, int] | None = None
        self._before: dict[int, Any] = {}

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def wait(self, seconds: float, *descriptors: int) -> bool:
        """Whether one of the descriptors can be read from (or has ended) within ``seconds``; False when asked to
        stop."""
        if self.stopping:
            return False
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        if self._pipe is not None:
            poll.register(self._pipe[0], select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)}
        return not self.stopping and bool(ready & set(descriptors))

    def __enter__(self) -> Waiter:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signal module's signature
        self.stopping = True
        if self._pipe is not None:
            os.write(self._pipe[1], b"\0")
        signal.signal(signal.SIGINT, signal.default_int_handler)
