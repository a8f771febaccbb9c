"""Compile what a run is going to launch, in parallel, before it is launched.

A launch that finds no compiled kernel would wait for the compiler: seconds each, one after the other. ``recording``
makes Triton note such a launch and skip it; ``Workers`` compile what was noted in processes of their own, which need
no GPU and fill Triton's cache on disk; the real launches find it there. Whatever fails here is compiled at the launch
instead, where its error is told.

As a script: one worker. A JSON line in, ``{"name", "data", "target"}``; a JSON line out, ``{"seconds", "error"}``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Specs = dict[str, str]  # specialization data -> full name of the kernel


@contextlib.contextmanager
def recording() -> Iterator[Specs]:
    """Launches that would compile are noted and skipped; others run."""
    from triton import knobs

    found: Specs = {}

    def hook(**told: Any) -> bool:
        data = told["compile"]["specialization_data"]
        found[data] = json.loads(data)["name"]
        return True

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = hook
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = before


class Workers:
    """Processes that compile. They start at once and end with ``close``."""

    def __init__(self, count: int, command: tuple[str, ...] | None = None) -> None:
        self.command = command or (sys.executable, str(Path(__file__).resolve()))
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def compile(self, specs: Specs, target: tuple[Any, ...], deadline: float) -> dict[str, str]:
        """The errors of those that failed, or that no time was left for: data -> what happened."""
        todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        for item in specs.items():
            todo.put(item)
        failed: dict[str, str] = {}
        threads = [
            threading.Thread(target=self._work, args=(place, todo, target, deadline, failed), daemon=True)
            for place in range(len(self.processes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.time(), 0) + 1)
        for place, thread in enumerate(threads):
            if thread.is_alive():
                self.processes[place].kill()  # its thread then starts another for the next call
                thread.join()
        while not todo.empty():
            with contextlib.suppress(queue.Empty):
                failed[todo.get_nowait()[0]] = "not compiled ahead: out of time"
        return failed

    def _work(
        self,
        place: int,
        todo: queue.SimpleQueue[tuple[str, str]],
        target: tuple[Any, ...],
        deadline: float,
        failed: dict[str, str],
    ) -> None:
        while time.time() < deadline:
            try:
                data, name = todo.get_nowait()
            except queue.Empty:
                return
            reply = self._ask(place, {"name": name, "data": data, "target": target})
            if reply["error"]:
                failed[data] = reply["error"]

    def _ask(self, place: int, request: dict[str, Any]) -> dict[str, Any]:
        """A worker that died (a compiler can) is replaced, and its request counts as failed."""
        process = self.processes[place]
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            reply: dict[str, Any] = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            _end(process)
            self.processes[place] = self._start()
            return {"error": "the compiler died"}
        return reply

    def close(self) -> None:
        for process in self.processes:
            _end(process)
        self.processes = []


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def current_target() -> tuple[Any, ...]:
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return (target.backend, target.arch, target.warp_size)


def compile_one(name: str, data: str, target: tuple[Any, ...]) -> None:
    """What ``JITFunction.preload`` does, for a target that need not be there."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    module, _, function = name.rpartition(".")
    told = json.loads(data)
    constants = {
        tuple(key): tl.constexpr(value["constexpr"]) if isinstance(value, dict) else value
        for key, value in zip(told["constant_keys"], told["constant_vals"], strict=True)
    }
    attributes = {tuple(key): value for key, value in zip(told["attrs_keys"], told["attrs_vals"], strict=True)}
    signature = {key: _tuples(value) for key, value in told["signature"].items()}
    made = GPUTarget(*target)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in told["options"].items()}
    parsed = make_backend(made).parse_options(options)
    source = ASTSource(getattr(importlib.import_module(module), function), signature, constants, attributes)
    triton.compile(source, target=made, options=parsed.__dict__)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _without_torch() -> None:
    """Packages whose ``__init__`` would import torch are entered by the back door: the kernels need Triton alone."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    for name in ("gpudrift", "gpudrift.kernels"):
        package = ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a compiler prints must not come between the answers
    _without_torch()
    for line in sys.stdin:
        started, error = time.time(), ""
        try:
            compile_one(**json.loads(line))
        except Exception as problem:  # noqa: BLE001 -- whatever stops a compiler is the answer
            error = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:200]}"
        answers.write(json.dumps({"seconds": time.time() - started, "error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
