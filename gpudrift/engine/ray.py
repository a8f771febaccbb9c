"""Tasks on a Ray cluster (Ray Core alone): an executor of ``gpudrift.engine``. Nothing else in the package imports Ray.

Retries are the scheduler's, so Ray's own are off. Shared values are objects of Ray's store: read once a node, mapped
into its workers without a copy, spilled to disk where the store is full. Ray starts a task by preference where its
arguments lie. A slot is a task that runs: none is queued behind it, because waiting would count as the task's own time
in ``task_seconds`` and in the search for slow tasks (docs/faults.md has what a queue would gain).

Once the head or this machine's Ray node is gone, most of Ray's calls block for a minute and then end the process. So a
thread of its own asks the cluster, and the others are made only while it answers.
"""

from __future__ import annotations

import atexit
import copy
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

import gpudrift
from gpudrift.engine.ray_failures import failure_of, full, refusal
from gpudrift.engine.ray_watch import LOOK_SECONDS, Watch
from gpudrift.engine.reach import LEAVING, choose, require_head
from gpudrift.engine.tasks import Attempt, Ended, Shared, Worker
from gpudrift.errors import EngineError, GpudriftError

_SLICE_SECONDS = 0.5  # of waiting, between two checks that it is there
_LEAVE_SECONDS = 10.0  # to leave a cluster that is gone
_FETCH_SECONDS = 30.0  # for a result that is here already
_SILENT_SECONDS = 45.0  # at most, from a head that is gone: after 60 Ray ends the process
_TOKENS = "RAY_AUTH_MODE"
_EPSILON = 1e-6  # of a CPU: Ray counts in 1/10,000


class RayExecutor:
    """Runs attempts as tasks of Ray.

    Args:
        device: of the workers: ``cpu``, or ``cuda`` (each sees the GPUs that Ray gives it, and takes the first).
        address: HOST:PORT of the head, ``auto``, ``local``; None: RAY_ADDRESS, else a Ray is started on this machine
            and ended with the executor. Where this process is connected to Ray already, that connection is used and
            left as it is.
        workers: most tasks at a time; None: as many as the cluster has room for.
        gpus_per_task: None: 1 where the device is CUDA, else 0.
        connect_seconds: to reach the head; also how long it may be silent later, 45 s at most.
        ship_code: send this package to the workers.

    Raises:
        EngineError: Ray is not installed, the head cannot be reached or fits not this process, no node has room for a
            task.
    """

    kind = "ray"
    remote = True

    def __init__(
        self,
        *,
        device: str,
        address: str | None = None,
        workers: int | None = None,
        cpus_per_task: float = 1.0,
        gpus_per_task: float | None = None,
        connect_seconds: float = 30.0,
        ship_code: bool = False,
    ) -> None:
        cuda = device.startswith("cuda")
        self._cpus = cpus_per_task
        self._gpus = float(cuda) if gpus_per_task is None else gpus_per_task
        if self._gpus > 1 and self._gpus != int(self._gpus):
            raise EngineError(
                "a part of a GPU is for one task on one GPU",
                field="engine.gpus_per_task",
                value=self._gpus,
                allowed="at most 1, or a whole number",
            )
        self._device = "cuda:0" if cuda and self._gpus else device
        self._workers = workers
        self._running: dict[Any, Attempt] = {}
        self._held: WeakSet[_Held] = WeakSet()
        self._waited = 0.0
        self._spilled = 0
        self._sampled = -LOOK_SECONDS
        self._ray = _import()
        self._own, self._address = not self._ray.is_initialized(), "initialised"
        self._before: Any = None
        self._tokens = os.environ.get(_TOKENS)
        if self._own:
            self._connect(address, connect_seconds, ship_code)
        elif ship_code:
            raise EngineError("this process is connected to Ray already, without the code", field="engine.ship_code")
        try:
            self._watch = Watch(self._ray, min(connect_seconds, _SILENT_SECONDS))
            self._function = self._ray.remote(_run)
            self._require_room()
        except BaseException:
            self.close()
            raise

    def now(self) -> float:
        return time.monotonic()

    def slots(self) -> int:
        self._watch.check()
        fits = sum(_fits(node["Resources"], self._cpus, self._gpus) for node in self._watch.nodes)
        return fits if self._workers is None else min(fits, self._workers)

    def share(self, key: str, value: Any) -> Shared:
        self._watch.check()
        size = _bytes(value)
        with self._room(size):
            held = _Held(self._ray.put(value), size)
        self._held.add(held)
        return Shared(key, held, size)

    def start(self, attempt: Attempt) -> None:
        self._watch.check()
        task = attempt.task
        options: dict[str, Any] = {"name": task.name, "num_cpus": self._cpus, "num_gpus": self._gpus}
        options |= {"max_retries": 0, "retry_exceptions": False}
        if attempt.number > 1:
            options["scheduling_strategy"] = "SPREAD"  # rather not where the last one failed, or is slow
        args = [arg.held.ref if isinstance(arg, Shared) else arg for arg in task.args]
        with self._room(sum(_bytes(arg) for arg in args)):
            ref = self._function.options(**options).remote(task.function, self._device, max(1, int(self._cpus)), *args)
        self._running[ref] = attempt

    def wait(self, seconds: float | None) -> Sequence[Ended]:
        begun = time.monotonic()
        try:
            while True:
                self._watch.check()
                left = _SLICE_SECONDS if seconds is None else max(0.0, begun + seconds - time.monotonic())
                ended = self._collect(min(left, _SLICE_SECONDS))
                self._sample()
                if ended or left == 0.0 or (seconds is None and not self._running):
                    return ended
        finally:
            self._waited += time.monotonic() - begun

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        stopped = {attempt.id for attempt in attempts}
        for ref in [ref for ref, attempt in self._running.items() if attempt.id in stopped]:
            del self._running[ref]
            if self._watch.gone is None:
                with suppress(self._ray.exceptions.RayError, ValueError):
                    self._ray.cancel(ref, force=True)

    def describe(self) -> Mapping[str, Any]:
        """address: where it came from: initialised, local, auto, RAY_ADDRESS or HOST:PORT, without naming a host."""
        total: dict[str, float] = {}
        for node in self._watch.nodes:
            for name in ("CPU", "GPU", "object_store_memory"):
                total[name] = total.get(name, 0.0) + node["Resources"].get(name, 0.0)
        return {
            "ray": self._ray.__version__,
            "address": self._address,
            "device": self._device,
            "nodes": len(self._watch.nodes),
            "cpus": total.get("CPU", 0.0),
            "gpus": total.get("GPU", 0.0),
            "object_store_bytes": int(total.get("object_store_memory", 0)),
            "cpus_per_task": self._cpus,
            "gpus_per_task": self._gpus,
        }

    def measures(self) -> Mapping[str, float]:
        """object_store_peak_bytes: of all nodes and users of the cluster, looked at once a second. spilled_bytes: of
        shared values. waiting_seconds: of this process, for tasks to end."""
        return {
            "object_store_peak_bytes": self._watch.peak,
            "spilled_bytes": float(self._spilled),
            "waiting_seconds": self._waited,
        }

    def close(self) -> None:
        watch, answers = getattr(self, "_watch", None), True
        if watch is not None:
            self.cancel(list(self._running.values()))
            answers = watch.stop() and watch.gone is None
        self._running.clear()
        for held in list(self._held):
            held.ref = None  # one that outlives the connection would take its namesake from the next: Ray counts anew
        if self._own:
            self._own = False
            _shut_down(self._ray, None if answers else _LEAVE_SECONDS)
            _calm(self._ray, self._before)
            _set_tokens(self._ray, self._tokens)

    def _connect(self, address: str | None, seconds: float, ship_code: bool) -> None:
        target, self._address, field = choose(address, _running_here())
        if target != "local":
            require_head(target, seconds, field)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray shows this user's token only to a head that it finds itself (``auto``), or with RAY_AUTH_MODE=token
        asked = "auto" if self._address == "auto" else target
        settings: dict[str, Any] = {"address": asked, "namespace": "gpudrift", "log_to_driver": False}
        settings["job_config"] = self._ray.job_config.JobConfig(metadata={"job_name": "gpudrift"})
        if ship_code:
            package = str(Path(gpudrift.__file__).parent)
            settings["runtime_env"] = {"py_modules": [package], "excludes": ["__pycache__"]}
        if target == "local":
            settings["include_dashboard"] = False
        self._before = _calm(self._ray)
        gc.collect()  # what is left of an earlier connection, in cycles, would be let go of in the name of this one
        try:
            with _terminable(self._ray), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._ray.init(configure_logging=False, **settings)
        except (RuntimeError, OSError, ValueError, self._ray.exceptions.RayError) as error:
            self.close()
            raise refusal(error, target, field) from error
        except BaseException:  # an interrupt: a Ray that has half started would stay, and be in the way of the next
            self._own = False
            _shut_down(self._ray, _LEAVE_SECONDS)
            _calm(self._ray, self._before)
            _set_tokens(self._ray, self._tokens)
            raise

    def _require_room(self) -> None:
        """Refuse a cluster none of whose nodes has room for a task: it would wait for ever."""
        if self.slots():
            return
        have = [f"{n['Resources'].get('CPU', 0):g} CPUs and {n['Resources'].get('GPU', 0):g} GPUs"
                for n in self._watch.nodes]  # fmt: skip
        short = "gpus_per_task" if self._gpus and not any("GPU" in n["Resources"] for n in self._watch.nodes) else None
        raise EngineError(
            f"no node of the Ray cluster has room for a task of {self._cpus:g} CPUs and {self._gpus:g} GPUs",
            field=f"engine.{short or 'cpus_per_task'}",
            value=self._gpus if short else self._cpus,
            allowed="nodes with " + "; ".join(sorted(set(have))) if have else "there is no node",
            hint="add nodes, or ask for less: device=cpu, engine.cpus_per_task, engine.gpus_per_task",
        )

    def _collect(self, seconds: float) -> list[Ended]:
        """All attempts that have ended, after waiting for the first."""
        if not self._running:
            self._watch.sleep(seconds)
            return []
        refs = list(self._running)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ready and len(refs) > 1:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        found = (self._fetch(ref) for ref in ready)
        return [ended for ended in found if ended is not None]

    def _fetch(self, ref: Any) -> Ended | None:
        """The end of one attempt, its value copied out of the store, which lets go of it; None: it is not here yet."""
        self._watch.check()
        attempt = self._running[ref]
        try:
            seconds, value = self._ray.get(ref, timeout=_FETCH_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except (self._ray.exceptions.RayError, GpudriftError) as error:
            del self._running[ref]
            return Ended(attempt, failure=failure_of(self._ray.exceptions, error))
        del self._running[ref]
        return Ended(attempt, copy.deepcopy(value), seconds=seconds, bytes=_bytes(value))

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        causes = self._ray.exceptions.ObjectStoreFullError, self._ray.exceptions.OutOfDiskError
        try:
            yield
        except causes as error:
            raise full(error, size, self._watch.store()) from error

    def _sample(self) -> None:
        """Note which shared values have been spilled, once a second."""
        if time.monotonic() - self._sampled < LOOK_SECONDS:
            return
        self._sampled = time.monotonic()
        waiting = {held.ref: held for held in self._held if not held.spilled}
        if not waiting:
            return
        from ray.experimental import get_local_object_locations

        for ref, found in get_local_object_locations(list(waiting)).items():
            if found.get("did_spill"):
                waiting[ref].spilled = True
                self._spilled += waiting[ref].size


class _Held:
    """A shared value's reference; the store lets go of the value when this is gone."""

    def __init__(self, ref: Any, size: int) -> None:
        self.ref, self.size, self.spilled = ref, size, False


def _run(function: Any, device: str, threads: int, *args: Any) -> tuple[float, Any]:
    """What a worker process does: (seconds, value)."""
    begun = time.perf_counter()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    value = function(_worker(device), *args)
    return time.perf_counter() - begun, value


@cache
def _worker(device: str) -> Worker:
    """One a process, for the values that it keeps."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(
            "a worker of the Ray cluster sees no CUDA device",
            field="device",
            value=device,
            hint="install the driver and a CUDA build of torch on every node whose GPUs Ray counts, or set device=cpu",
        )
    return Worker(device)


def _import() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
            import ray.job_config
    except ImportError as error:
        raise EngineError(
            "engine=ray needs Ray, which is not installed", field="engine", hint="pip install 'gpudrift[ray]'"
        ) from error
    return ray


def _running_here() -> str | None:
    """The head last started on this machine, as ``ray.init`` looks it up for ``auto`` before it waits for minutes."""
    from ray._private.services import find_bootstrap_address

    found = find_bootstrap_address(None)
    return None if found is None else str(found)


def _shut_down(ray: Any, seconds: float | None) -> None:
    """Leave the cluster. seconds: from a cluster that is gone, after which it is left as it is: a head that hangs would
    keep this process from ending too."""
    if seconds is None:
        ray.shutdown()
        return
    leaving = threading.Thread(target=ray.shutdown, name=LEAVING, daemon=True)
    leaving.start()
    leaving.join(seconds)
    if leaving.is_alive():
        atexit.unregister(ray.shutdown)


def _set_tokens(ray: Any, mode: str | None) -> None:
    """Put back how this process stood to tokens. ``ray.init`` turns them on for good where it starts a Ray or finds one
    with ``auto``; workers of a cluster without them are then refused by this process, as if it had died."""
    if os.environ.get(_TOKENS) == mode:
        return
    if mode is None:
        del os.environ[_TOKENS]
    else:
        os.environ[_TOKENS] = mode
    with suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _calm(ray: Any, before: Any = None) -> Any:
    """Keep Ray's remarks off the terminal, or put back what was ``before``; what to put back."""
    logger, worker = logging.getLogger("ray"), ray._private.worker
    now = logger.level, getattr(worker, "_worker_logs_enabled", True)
    level, told = (logging.ERROR, False) if before is None else before
    logger.setLevel(level)
    worker._worker_logs_enabled = told  # what raylets say of dead workers; ours is said by the scheduler
    return now


@contextmanager
def _terminable(ray: Any) -> Iterator[None]:
    """Keep ``ray.init`` from handling SIGTERM: its SystemExit may come up where Python drops it, such as in a
    callback of a fork, and the run goes on as if nobody had asked it to end."""
    utils = ray._private.utils
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def _fits(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Tasks at a time on one node. One that asks for nothing takes a CPU here: there must be some end."""
    asked = {"CPU": cpus, "GPU": gpus} if cpus or gpus else {"CPU": 1.0}
    return min(int(resources.get(name, 0.0) / each + _EPSILON) for name, each in asked.items() if each)


def _bytes(value: Any) -> int:
    """Of the arrays in a value of dataclasses, tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, each.name)) for each in fields(value))
    return 0
