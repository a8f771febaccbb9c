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
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

Task = TypeVar("Task")
Space = TypeVar("Space")
Found = TypeVar("Found")

Product = Callable[..., Tensor]  # torch.mm

_AHEAD = 4  # results a thread may be ahead of who takes them: memory stays bounded where that is slow


@dataclass(frozen=True)
class Settings:
    """threads: how many to use. product: of matrices, float32 ones in float32."""

    threads: int
    product: Product


@contextlib.contextmanager
def settings(device: torch.device, *, many: bool) -> Iterator[Settings]:
    """What work on ``device`` shall be done with, and at one thread an operation. No bit of it depends on how many
    threads torch is set to, nor on what other threads of the process compute, under settings of their own.

    many: so many products of one shape that a library which prepares itself for each shape is worth its while.
    """
    if device.type != "cpu":
        yield Settings(1, torch.mm)
        return
    library = "bf16" if many and _onednn_keeps_float32() else "ieee"
    with _products.kept(), alone() as threads:
        yield Settings(threads, partial(_products.product, library))


@contextlib.contextmanager
def alone() -> Iterator[int]:
    """Torch computes each operation of the calling thread by that thread alone: torch adds up a large tensor in as many
    parts as it has threads, and its last bits depend on how many. Yields how many they were."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def one_thread() -> None:
    """``alone`` for the rest of a thread's life.

    Torch's number of threads is one of the calling thread; it is also what threads that have yet to compute will take,
    over what they have set before they asked. ``for_others`` in the thread that began this one mends the second.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


def for_others() -> None:
    """Threads yet to come get the calling thread's number of torch's threads, whichever thread set its own last."""
    torch.set_num_threads(torch.get_num_threads())


class _Products:
    """Products by a chosen CPU library. Torch's choice is a setting of the process: products of one choice run side by
    side, those of the other wait for them to end, and whoever comes later waits behind those.

    It is held for one product, never while other code runs: callers of different choices cannot wait for each other,
    and a call may come from within another.
    """

    def __init__(self) -> None:
        self._turn, self._changed = threading.Lock(), threading.Condition(threading.Lock())
        self._running: set[int] = set()  # threads
        self._callers = 0
        self._before = ""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """The process's choice is restored by the last who leaves."""
        mkldnn: Any = torch.backends.mkldnn  # its attributes are made at run time
        with self._changed:
            if not self._callers:
                self._before = mkldnn.matmul.fp32_precision
            self._callers += 1
        try:
            yield
        finally:
            with self._changed:
                self._callers -= 1
                if not self._callers:
                    mkldnn.matmul.fp32_precision = self._before

    def product(self, library: str, a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``torch.mm`` within ``kept``. library: ``ieee``, the default one, or ``bf16``, oneDNN."""
        thread = threading.get_ident()
        try:
            with self._turn, self._changed:
                matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
                if matmul.fp32_precision != library:
                    self._changed.wait_for(lambda: not self._running)
                    matmul.fp32_precision = library
                self._running.add(thread)
            return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
        finally:
            with self._changed:
                self._running.discard(thread)
                if not self._running:
                    self._changed.notify()


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
    with _products.kept():
        return all(bool((_products.product("bf16", *sides) == 1 + 2.0**-22).all()) for sides in ((a, b.T), (b, a.T)))


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
        one_thread()
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
        for_others()
