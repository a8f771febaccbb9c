"""Whether a Ray cluster is still there, asked in a thread: a head that is gone blocks who asks for a minute, and then
Ray ends the process. Ray's module is handed in.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from gpudrift.engine.reach import listens
from gpudrift.errors import EngineError

LOOK_SECONDS = 1.0  # between two looks
_STOP_SECONDS = 3.0  # for a look that has begun, and the last one
_AGAIN = "start the cluster again and rerun: finished blocks are taken from disk"


class Watch:
    """Asks the cluster for its nodes and its store once a second.

    nodes: alive, as ``ray.nodes`` tells them. peak: most bytes used of all stores. gone: why the cluster is taken for
    gone. seconds: the head may be silent.
    """

    def __init__(self, ray: Any, seconds: float) -> None:
        self._ray, self._seconds = ray, seconds
        self.gone: str | None = None
        self.peak = 0.0
        self.nodes: list[dict[str, Any]] = []
        self._here = ray.get_runtime_context().get_node_id()
        self._stop = threading.Event()
        self._look()
        here = next((node for node in self.nodes if node["NodeID"] == self._here), None)
        self._port = None if here is None else (here["NodeManagerAddress"], int(here["NodeManagerPort"]))
        self._thread = threading.Thread(target=self._run, name="gpudrift-ray", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            EngineError: the head has been silent for too long, or the Ray node of this machine is gone.
        """
        if self.gone is None and self._port is not None and not listens(*self._port):
            self.gone = "the Ray node of this machine is gone"
        if self.gone is None and time.monotonic() - self._seen > self._seconds:
            self.gone = f"the head of the Ray cluster has not answered for {self._seconds:.0f} s"
        if self.gone is not None:
            raise EngineError(f"{self.gone}; the run is given up and no score is written", field="engine", hint=_AGAIN)

    def store(self) -> float:
        """Bytes of this node's store."""
        here = (node["Resources"] for node in self.nodes if node["NodeID"] == self._here)
        return float(sum(found.get("object_store_memory", 0.0) for found in here))

    def sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def stop(self) -> bool:
        """Look a last time and no more; whether the head answered in good time."""
        asked = time.monotonic()
        self._stop.set()
        self._thread.join(timeout=_STOP_SECONDS)
        return not self._thread.is_alive() and self._seen >= asked

    def _run(self) -> None:
        errors = self._ray.exceptions.RayError, RuntimeError, OSError
        stopped = False
        while not stopped:
            stopped = self._stop.wait(LOOK_SECONDS)
            with suppress(*errors):  # a head that does not answer is told by the time since it last did
                self._look()

    def _look(self) -> None:
        self.nodes = [node for node in self._ray.nodes() if node["Alive"]]
        free = self._ray.available_resources().get("object_store_memory", 0.0)
        total = sum(node["Resources"].get("object_store_memory", 0.0) for node in self.nodes)
        self.peak = max(self.peak, total - free)
        self._seen = time.monotonic()
