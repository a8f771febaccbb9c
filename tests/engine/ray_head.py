"""A cluster whose head is lost in mid-run, in a process of its own: ``python ray_head.py gcs|node|silent SECONDS``.

Prints what came of the run as JSON. gcs: the head's process dies; node: all of its machine's; silent: it hangs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray_cluster as rc

from gpudrift.engine import Engine, Policy, Task
from gpudrift.engine.ray import RayExecutor
from gpudrift.errors import EngineError


def main(how: str, seconds: float) -> None:
    mark = Path(tempfile.mkdtemp()) / "mark"
    told: dict[str, float | str] = {}
    with rc.cluster(nodes=1) as found:
        processes = [each.process.pid for kind in found.head_node.all_processes.values() for each in kind]
        (head,) = (each.process.pid for each in found.head_node.all_processes["gcs_server"])

        def lose() -> None:
            rc.noted(mark)
            told["lost"] = time.monotonic()
            if how == "node":
                for each in processes:
                    os.kill(each, signal.SIGKILL)
            else:
                os.kill(head, signal.SIGSTOP if how == "silent" else signal.SIGKILL)

        threading.Thread(target=lose, daemon=True).start()
        executor = RayExecutor(device="cpu", address=found.address, gpus_per_task=1.0, connect_seconds=seconds)
        try:
            with Engine(executor, Policy()) as engine:
                list(engine.map([Task(0, "XY 0,0", rc.hangs_once, (str(mark), None, 0))]))
        except EngineError as error:
            told["error"] = str(error)
            told["seconds"] = time.monotonic() - float(told["lost"])
        if how == "silent":
            os.kill(head, signal.SIGKILL)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
