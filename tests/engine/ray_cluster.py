"""A Ray cluster of several nodes on this machine, and tasks to run on it. No fixed ports, a directory of its own."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import gpudrift
from gpudrift.engine import Task, Worker
from gpudrift.errors import DataError

STORE = 80_000_000  # bytes, of each node


@contextmanager
def cluster(*, nodes: int = 2, head: dict[str, Any] | None = None, code: bool = True, **each: Any) -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster``: a head of one CPU, and nodes of one CPU and one pretended GPU.

    code: its workers find gpudrift where this process did.
    """
    import ray
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    home = tempfile.mkdtemp(prefix="gpudrift-")  # short: sockets lie in it
    common = {"num_cpus": 1, "object_store_memory": STORE}
    found = Cluster()
    before = dict(os.environ)
    paths = [Path(__file__).parent, *([Path(gpudrift.__file__).parents[1]] if code else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))  # of workers, which do not get this process's path
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        found.add_node(**common, include_dashboard=False, temp_dir=home, **(head or {}))
        for _ in range(nodes):
            add_node(found, **each)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        shutil.rmtree(home, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def add_node(found: Any, **each: Any) -> Any:
    return found.add_node(**{"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE, **each})


@contextmanager
def connected(found: Any) -> Iterator[None]:
    """This process connected to it, as a driver that is there before gpudrift is."""
    import ray

    gc.collect()  # as the executor does
    ray.init(address=found.address, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for something that must come; the limit is for a broken test alone."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@dataclass(frozen=True)
class Sums:
    """A small result, as the real tasks have."""

    total: float
    columns: npt.NDArray[np.float64]


def sums(_: Worker, rows: npt.NDArray[np.float64], place: int) -> Sums:
    return Sums(float((rows * (place + 1)).sum()), rows.sum(axis=0) / (place + 1))


def sums_tasks(rows: Any, count: int) -> list[Task]:
    return [Task(place, f"XY 0,{place}", sums, (rows, place)) for place in range(count)]


def seen(worker: Worker, *_: Any) -> dict[str, Any]:
    """What a task sees."""
    import ray

    context = ray.get_runtime_context()
    return {
        "device": str(worker.device),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
        "node": context.get_node_id(),
        "name": context.get_task_name(),
        "pid": os.getpid(),
        "worker": id(worker),
    }


def after(_: Worker, before: str | None, own: str, value: int) -> int:
    """Ends only when another has."""
    if before is not None:
        until(Path(before).exists)
    Path(own).touch()
    return value


def note(path: str) -> bool:
    """Whether this is the first attempt; leaves a note of where and who it was."""
    import ray

    if Path(path).exists():
        return False
    text = f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"
    Path(path + ".part").write_text(text, encoding="utf-8")
    Path(path + ".part").replace(path)
    return True


def noted(path: Path) -> tuple[str, int]:
    until(path.exists)
    node, pid = path.read_text(encoding="utf-8").split()
    return node, int(pid)


def dies_once(worker: Worker, path: str, how: str, rows: npt.NDArray[np.float64], place: int) -> Sums:
    if note(path):
        die(how)
    return sums(worker, rows, place)


def die(how: str) -> None:
    if how == "exit":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def dies(_: Worker) -> None:
    die("kill")


def raises(_: Worker) -> None:
    raise ValueError("no such thing")


def raises_once(_: Worker, path: str, value: int) -> int:
    if note(path):
        raise OSError("a file server is busy")
    return value


def refuses(_: Worker) -> None:
    raise DataError("a bad row", field="source.uri", value={"row": 3}, allowed=["good rows"], where="a.parquet")


def hangs_once(worker: Worker, path: str, rows: npt.NDArray[np.float64], place: int) -> Sums:
    """Blocks for ever on its first attempt."""
    if note(path):
        signal.pause()
    return sums(worker, rows, place)


def makes(_: Worker, count: int, path: str | None = None) -> npt.NDArray[np.float64]:
    """A large result."""
    if path is not None:
        note(path)
    return np.full(count, 3.0)


def written(_: Worker, rows: npt.NDArray[np.float64]) -> bool:
    return rows.flags.writeable


def unpacked(worker: Worker, block: Any, key: str) -> float:
    """The sum of a packed cloud's rows, warnings being errors."""
    import warnings

    from gpudrift.engine.wire import unpack

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return float(unpack(worker, block, key).rows.double().sum())


def code(_: Worker) -> str:
    return str(gpudrift.__file__)


def lasts(_: Worker, seconds: float, value: int) -> int:
    """Keeps a worker busy for so long."""
    time.sleep(seconds)
    return value


def dies_then(_: Worker, path: str, how: str, value: int) -> int:
    if note(path):
        die(how)
    return value


def hangs_then(_: Worker, path: str, value: int) -> int:
    if note(path):
        signal.pause()
    return value
