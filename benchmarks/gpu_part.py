"""One part of the GPU suite in a process of its own, so that a crash on the device ends a part and not the suite.

``gpu_suite.py`` starts it with ``--part`` and sends a JSON line for each thing to do; what it finds comes back as JSON
lines. A part first gets ready (draws inputs, compiles ahead) and says so, then waits to be told to run: only one
part measures at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_compile import Workers, current_target, recording
from gpu_goals import Clock

Say = Callable[[dict[str, Any]], None]


@dataclass
class Setting:
    """Where and how a part runs. dry: on the CPU, tiny, to see that all works; interpreted: through Triton's
    interpreter. workers: compiler processes. rows: what a dimension's rows are divided by (dry runs)."""

    device: torch.device
    dry: bool
    say: Say
    workers: int = 0
    pool: Workers | None = field(default=None, repr=False)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def interpreted(self) -> bool:
        return not self.cuda and os.environ.get("TRITON_INTERPRET") == "1"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None


def setting(dry: bool, say: Say, workers: int) -> Setting:
    device = torch.device("cpu" if dry else "cuda")
    made = Setting(device, dry, say, workers)
    if made.cuda and workers:
        made.pool = Workers(workers)  # they import Triton while this process meets the device
    return made


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


@contextlib.contextmanager
def attempt(where: Setting, part: str, name: str) -> Iterator[None]:
    """What goes wrong within is told as a failure of ``name``, and the rest goes on. A device in error goes nowhere:
    that ends the part."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 -- recorded, and it fails the suite
        traceback.print_exc(file=sys.stderr)
        where.say({"part": part, "name": name, "error": one_line(error)})
        if where.cuda:
            torch.cuda.synchronize()  # raises again where the context is lost


def ahead(where: Setting, part: str, calls: Sequence[tuple[str, Callable[[], Any]]], clock: Clock) -> dict[str, str]:
    """Compile what these calls launch, in parallel. Returns the errors by kernel variant; nothing here is fatal."""
    if not where.cuda or where.pool is None:
        return {}
    failed: dict[str, str] = {}
    started = clock.now()
    count = 0
    try:
        with recording() as specs:
            for name, call in calls:
                try:
                    call()
                except Exception as error:  # noqa: BLE001 -- the launch itself will tell
                    failed[name] = one_line(error)
        count = len(specs)
        failed |= where.pool.compile(specs, current_target(), clock.deadline)
    except Exception as error:  # noqa: BLE001 -- without it every launch compiles for itself, one by one
        failed["ahead"] = one_line(error)
    where.free()
    where.say(
        {
            "part": "compile",
            "name": part,
            "kernels": count,
            "failed": sorted(set(failed.values()))[:5],
            "seconds": round(clock.now() - started, 2),
        }
    )
    return failed


def serve(name: str, prepare: Callable[[], dict[str, Callable[[Clock], None]]], where: Setting) -> None:
    """Get ready, then do what each line of stdin asks for: ``{"do": what, "deadline": epoch seconds}``."""
    try:
        doings = prepare()
        where.say({"part": name, "ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "stop":
                break
            started = time.time()
            clock = Clock.until(request["deadline"])
            doings[request["do"]](clock)
            for what in clock.left_out:
                where.say({"part": request["do"], "skipped": what})
            where.say({"part": name, "done": request["do"], "seconds": round(time.time() - started, 2)})
    finally:
        where.close()


def answers() -> Say:
    """A writer of JSON lines to what was stdout; anything else printed goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(record: dict[str, Any]) -> None:
        stream.write(json.dumps(record) + "\n")
        stream.flush()

    return say
