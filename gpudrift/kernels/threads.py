"""Work on the CPU by a few threads: handed back in order, with the settings of torch it needs and no others after it.

torch splits each operation over its own threads, which costs a barrier an operation. Here each thread computes whole
tiles with torch at one thread, and the results do not depend on how many threads there are.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Space = TypeVar("Space")
Found = TypeVar("Found")

_AHEAD = 4  # results a thread may be ahead of who takes them: memory stays bounded where that is slow

_settings_lock = threading.RLock()  # held by who changes settings of the whole process, until they are restored


@contextlib.contextmanager
def settings(device: torch.device) -> Iterator[int]:
    """Settings of the process for work on ``device``; yields the number of threads to use.

    On the CPU torch computes each operation by one thread, and float32 products in float32: "medium" precision may
    round them to bfloat16.
    """
    if device.type != "cpu":
        yield 1
        return
    with _settings_lock:
        threads = torch.get_num_threads()
        mkldnn: Any = torch.backends.mkldnn  # its attributes are made at run time
        products = mkldnn.matmul
        precision = products.fp32_precision
        if threads > 1:
            torch.set_num_threads(1)
        if precision not in ("none", "ieee"):
            products.fp32_precision = "ieee"
        try:
            yield threads
        finally:
            if precision not in ("none", "ieee"):
                products.fp32_precision = precision
            if threads > 1:
                torch.set_num_threads(threads)


@contextlib.contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """Denormals are 0 in this thread. Repeated squaring of an RBF runs into them, and they cost the CPU up to ten times
    the time."""
    if device.type != "cpu":
        yield
        return
    # torch offers no getter: an operation that makes a denormal tells
    was_flushed = float(torch.tensor(1e-30).mul_(1e-10)) == 0.0
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
