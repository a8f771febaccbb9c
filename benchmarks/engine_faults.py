"""Faults of a Ray cluster, one after the other, and what each costs: ``python benchmarks/engine_faults.py``.

Prints the table of docs/faults.md. A run is 8 tasks of half a second on a head and two nodes of this machine; the time
lost is that of the run with the fault, less that of the run without.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpudrift.engine import Engine, Policy, Task, Worker
from gpudrift.engine.ray import RayExecutor
from gpudrift.errors import GpudriftError

TESTS = Path(__file__).resolve().parents[1] / "tests" / "engine"
sys.path.insert(0, str(TESTS))
rc = import_module("ray_cluster")  # the tests' cluster and faults

SECONDS, COUNT = 0.5, 8
POLICY = Policy(grace=1.0)


def tasks(fault: Task | None = None) -> list[Task]:
    found = [Task(place, f"XY 0,{place}", rc.lasts, (SECONDS, place)) for place in range(COUNT)]
    return found if fault is None else [fault if task.place == fault.place else task for task in found]


def timed(engine: Engine, work: list[Task]) -> tuple[float, str]:
    """Seconds, and what came of it: ``the same result`` or the message."""
    begun = time.perf_counter()
    try:
        found = [value for _, value in engine.map(work)]
    except GpudriftError as error:
        return time.perf_counter() - begun, str(error)
    assert found == [rc.lasts(Worker(), 0.0, place) for place in range(COUNT)]
    return time.perf_counter() - begun, "the same result"


@contextmanager
def engine_on(cluster: Any, **settings: Any) -> Iterator[Engine]:
    with Engine(RayExecutor(device="cpu", address=cluster.address, **settings), POLICY) as engine:
        timed(engine, tasks())  # workers have started
        yield engine


def row(fault: str, how: str, lost: float | None, outcome: str, counts: str = "") -> None:
    said = outcome.replace("\n  ", "; ").replace("|", "/")
    print(f"| {fault} | {how} | {said}{counts} | {'' if lost is None else f'{lost:.1f} s'} |", flush=True)


def in_one_cluster(mark: Callable[[], str]) -> None:
    with rc.cluster() as cluster, engine_on(cluster, gpus_per_task=1.0) as engine:
        plain, _ = timed(engine, tasks())
        row("none", "", plain, "the same result (seconds of the whole run)")

        def tell(fault: str, how: str, task: Task) -> None:
            before = engine.account.lost, engine.account.errors, engine.account.speculated
            seconds, outcome = timed(engine, tasks(task))
            account = engine.account
            after = account.lost, account.errors, account.speculated
            names = ("lost", "raised", "speculated")
            counts = ", ".join(f"{b - a} {n}" for a, b, n in zip(before, after, names, strict=True) if b > a)
            row(fault, how, seconds - plain, outcome, f" ({counts})")

        for how, said in (("exit", "`os._exit(1)`"), ("kill", "SIGKILL")):
            tell("worker killed in a task", said, Task(3, "XY 0,3", rc.dies_then, (mark(), how, 3)))
        tell("task raises once", "`OSError`", Task(3, "XY 0,3", rc.raises_once, (mark(), 3)))
        tell("task always raises", "`ValueError`", Task(3, "XY 0,3", rc.raises))
        tell("task always kills its worker", "SIGKILL", Task(3, "XY 0,3", rc.dies))
        tell("task refuses its data", "`DataError`", Task(3, "XY 0,3", rc.refuses))
        tell("slow node", "the first attempt never ends", Task(3, "XY 0,3", rc.hangs_then, (mark(), 3)))
        lost = mark()

        def lose() -> None:
            node, _ = rc.noted(Path(lost))
            found = next(each for each in cluster.worker_nodes if each.node_id == node)
            cluster.remove_node(found, allow_graceful=False)

        thread = threading.Thread(target=lose)
        thread.start()
        how = "`remove_node(allow_graceful=False)`, one of two left"
        tell("node lost in a task", how, Task(3, "XY 0,3", rc.hangs_then, (lost, 3)))
        thread.join()


def at_the_start() -> None:
    for how, listens in (("nobody listens", False), ("a port that says nothing", True)):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            if listens:
                silent.listen()
            address, begun = f"127.0.0.1:{silent.getsockname()[1]}", time.perf_counter()
            try:
                RayExecutor(device="cpu", address=address, connect_seconds=3.0)
            except GpudriftError as error:
                said = str(error).replace(address, "HOST:PORT")
                row("head unreachable at the start", f"{how}, connect_seconds=3", time.perf_counter() - begun, said)


def head_lost() -> None:
    kinds = (
        ("gcs", "the head's process killed, connect_seconds=3"),
        ("silent", "the head's process stopped, connect_seconds=3"),
        ("node", "all processes of the head's machine killed, the driver's among its nodes"),
    )
    for how, said in kinds:
        command = [sys.executable, str(TESTS / "ray_head.py"), how, "3"]
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": root}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told = json.loads(ended.stdout.splitlines()[-1])
        row("head lost in mid-run", said, told["seconds"], told["error"])


def store_full() -> None:
    blocks = [np.full((250_000, 8), float(k)) for k in range(20)]
    work = [("80 MB store, 320 MB of shared values", None), ("the same, disk taken for full", 1e-6)]
    for how, threshold in work:
        head = {} if threshold is None else {"_system_config": {"local_fs_capacity_threshold": threshold}}
        with rc.cluster(nodes=0, head=head) as cluster, engine_on(cluster) as engine:
            begun = time.perf_counter()
            try:
                shared = [engine.share(block) for block in blocks]
                made = (Task(k, f"XX {k}", rc.sums, (each, k)) for k, each in enumerate(shared))
                found = [value.total for _, value in engine.map(made)]
                assert found == [rc.sums(Worker(), block, k).total for k, block in enumerate(blocks)]
                outcome = "spilled; the same result"
            except GpudriftError as error:
                outcome = str(error)
            row("store full", how, time.perf_counter() - begun, outcome)


def main() -> None:
    print("| fault | how | what comes of it | time lost |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        marks = iter(range(100))
        in_one_cluster(lambda: str(Path(directory) / str(next(marks))))
    at_the_start()
    store_full()
    head_lost()


if __name__ == "__main__":
    main()
