"""Runs of the streaming job that die at a chosen point. A script: it imports once, then forks for each line it reads.

A line: {"corpus", "output", "inbox", "settings", "kill"}: die at the kill-th point, or never (0); null: run here,
without a fork, so that the forks after it find all loaded. The answer: {"signal", "points"}: what ended the run (0: it
came to its end), and the points it passed where it did.

A point lies before and after every change of a file (in the middle of every write, too), and before and after every
change of a sketch. What is there at SIGKILL is what the system was told so far: nothing is flushed, no handler runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Points:
    def __init__(self, kill: int) -> None:
        self.kill, self.count = kill, 0

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Points before and after each call."""
        real = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            found = real(*args, **kwargs)
            self.pass_by()
            return found

        setattr(owner, name, called)


class Handle:
    """A file whose writes have a point before, in the middle and after."""

    def __init__(self, real: Any, points: Points) -> None:
        self._real, self._points = real, points

    def write(self, content: Any) -> int:
        self._points.pass_by()
        half = len(content) // 2
        self._real.write(content[:half])
        self._real.flush()
        self._points.pass_by()
        self._real.write(content[half:])
        self._real.flush()
        self._points.pass_by()
        return len(content)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *details: Any) -> None:
        self._real.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def install(points: Points) -> None:
    from gpudrift import history
    from gpudrift.sketch import Sketch

    for owner, name in ((os, "fsync"), (os, "truncate"), (Path, "replace"), (Sketch, "update"), (Sketch, "merge"),
                        (history, "write_table")):  # fmt: skip
        points.around(owner, name)
    real: Callable[..., Any] = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        handle = real(path, mode, *args, **kwargs)
        written = set(mode) & set("wa") and path.suffix in (".json", ".jsonl", ".safetensors")
        return Handle(handle, points) if written else handle

    Path.open = opened  # type: ignore[method-assign]


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    import streams

    for line in sys.stdin:
        task = json.loads(line)

        def run(task: dict[str, Any] = task) -> None:
            streams.stream(Path(task["corpus"]), Path(task["output"]), Path(task["inbox"]), **task["settings"])

        if task["kill"] is None:
            run()
            print(json.dumps({"signal": 0, "points": 0}), flush=True)
            continue
        results, told = os.pipe()
        child = os.fork()
        if child == 0:
            points = Points(task["kill"])
            install(points)
            run()
            os.write(told, str(points.count).encode())
            os._exit(0)
        os.close(told)
        _, ended = os.waitpid(child, 0)
        with os.fdopen(results) as file:
            passed = int(file.read() or 0)
        answer = {"signal": os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended), "points": passed}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
