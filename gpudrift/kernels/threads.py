"""Work on the CPU by a few threads: handed back in order, with the settings of torch it needs and no others after it.

torch splits each operation over its own threads, which costs a barrier an operation. Here each thread computes whole
tiles with torch at one thread, and the results do not depend on how many threads there are.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import cache
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Space = TypeVar("Space")
Found = TypeVar("Found")

_AHEAD = 4  # results a thread may be ahead of who takes them: memory stays bounded where that is slow


@contextlib.contextmanager
def settings(device: torch.device, *, many: bool) -> Iterator[int]:
    """Settings of the process for work on ``device``; yields the number of threads to use.

    On the CPU torch computes each operation by one thread, and float32 products in float32. many: so many products of
    one shape that a library which prepares itself for each shape is worth its while.
    """
    if device.type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    with _products.computed_by("bf16" if many and _onednn_keeps_float32() else "ieee"):
        if threads > 1:
            torch.set_num_threads(1)
        try:
            yield threads
        finally:
            if threads > 1:
                torch.set_num_threads(threads)


class _Products:
    """Torch's choice of the CPU library for float32 products, a setting of the process: the first who asks sets it, the
    last who leaves restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: list[str] = []
        self._before = ""

    @contextlib.contextmanager
    def computed_by(self, precision: str) -> Iterator[None]:
        mkldnn: Any = torch.backends.mkldnn  # its attributes are made at run time
        with self._lock:
            if not self._inside:
                self._before = mkldnn.matmul.fp32_precision
            self._inside.append(precision)
            mkldnn.matmul.fp32_precision = precision
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(precision)
                mkldnn.matmul.fp32_precision = self._inside[-1] if self._inside else self._before


_products = _Products()


@cache
def _onednn_keeps_float32() -> bool:
    """Whether oneDNN serves float32 products on this CPU, and in float32.

    torch calls it only where products may be rounded to bfloat16 ("medium" precision). CPUs without bfloat16 matrix
    units do not round: there it is as exact as the default library, and up to a tenth faster on AMD's. A product that
    bfloat16 or TF32 would get wrong tells.
    """
    fine = 1 + 2.0**-23
    a, b = torch.zeros(1024, 384), torch.zeros(512, 384)
    a[:, 0], b[:, 0] = fine, 1.0
    a[:, 1], b[:, 1] = 1.0, 2.0**-23
    with _products.computed_by("bf16"):
        return bool((torch.mm(a, b.T) == 1 + 2.0**-22).all() and (torch.mm(b, a.T) == 1 + 2.0**-22).all())


@contextlib.contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """Denormals are 0 in this thread. Repeated squaring of an RBF runs into them, and they cost the CPU up to ten times
    the time."""
    if device.type != "cpu":
        yield
        return
    was_flushed = sys.float_info.min / 2 == 0.0  # torch offers no getter: a number that would be denormal tells
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)


def in_order(
    tasks: Iterator[Task], compute: Callable[[Task, Space], Found], spaces: list[Space]
) -> Generator[tuple[Task, Found], None, None]:
    """(task, compute(task, space)) of all tasks in their order, one thread a space; one space: the calling thread.

    Close it (``contextlib.closing``) to stop early: threads end with the task they are in, before close returns. An
    exception of ``compute`` or of ``tasks`` ends the others likewise and is raised here.
    """
    if len(spaces) == 1:
        for task in tasks:
            yield task, compute(task, spaces[0])
        return
    numbered, taking = enumerate(tasks), threading.Lock()
    room, stop = threading.Semaphore(_AHEAD * len(spaces)), threading.Event()
    done: queue.SimpleQueue[tuple[int, Task, Found] | BaseException | None] = queue.SimpleQueue()

    def work(space: Space) -> None:
        try:
            while True:
                room.acquire()
                if stop.is_set():
                    return
                with taking:
                    number, task = next(numbered)
                done.put((number, task, compute(task, space)))
        except StopIteration:
            done.put(None)
        except BaseException as error:  # noqa: BLE001 raised again in the calling thread
            done.put(error)

    workers = [threading.Thread(target=work, args=(space,), name=f"tiles-{k}") for k, space in enumerate(spaces)]
    try:
        for worker in workers:
            worker.start()
        early: dict[int, tuple[Task, Found]] = {}
        wanted, running = 0, len(workers)
        while running:
            found = done.get()
            if found is None:
                running -= 1
                room.release()  # for those that have yet to see that no task is left
                continue
            if isinstance(found, BaseException):
                raise found
            early[found[0]] = found[1:]
            while wanted in early:
                yield early.pop(wanted)
                room.release()
                wanted += 1
    finally:
        stop.set()
        for _ in workers:
            room.release()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
