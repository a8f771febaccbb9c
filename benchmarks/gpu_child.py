"""A part of the GPU suite as the suite sees it: a process that is told what to do and says what it finds."""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_SUITE = Path(__file__).with_name("gpu_suite.py")


class Child:
    """A part in a process of its own. Lines it writes go into a queue as (child, record); at its end, None."""

    def __init__(self, name: str, options: argparse.Namespace, deadline: float, found: queue.Queue[Any]) -> None:
        self.name = name
        self.ready = self.dead = self.stopped = False
        self.done: set[str] = set()
        share = {"tune": 2.0, "rates": 1.0}.get(name, 0.5)  # several parts compile at a time, the tuner alone
        workers = max(1, round(options.workers * share))
        words = ["--part", name, "--deadline", str(deadline), "--workers", str(workers), "--out", str(options.out)]
        words += ["--dry"] if options.dry else []
        command = [sys.executable, str(_SUITE), *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.reader = threading.Thread(target=self._read, args=(found,), daemon=True)
        self.reader.start()

    def _read(self, found: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                found.put((self, json.loads(line)))
        found.put((self, None))

    def tell(self, do: str, deadline: float = 0.0) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps({"do": do, "deadline": deadline}) + "\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """Out of time: its end is no crash."""
        self.stopped = True
        self.process.kill()

    def close(self) -> None:
        self.tell("stop")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
