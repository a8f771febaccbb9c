"""Contestants in processes of their own, timed in turns: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from cases import Case

WORKER = Path(__file__).with_name("worker.py")
SHORTEST = 0.05  # seconds: a shorter call is timed several at a time


class Lost(Exception):
    """A contestant's process ended; the message is the last line of what it said."""


class Contestant:
    """A worker process, kept alive."""

    def __init__(
        self,
        name: str,
        *,
        python: Path | str,
        threads: int,
        root: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """name: what the worker runs. root: where its gpudrift has to come from. settings: more environment."""
        counts = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
        surroundings = {**os.environ, **{f"{c}_NUM_THREADS": str(threads) for c in counts}, **(settings or {})}
        surroundings.pop("PYTHONPATH", None)
        command = [str(python), "-W", "ignore", str(WORKER), name, "--threads", str(threads)]
        if root is not None:
            surroundings["PYTHONPATH"] = str(root)
            command += ["--root", str(root)]
        self.name = name
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process, in close
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=surroundings,
            start_new_session=True,  # ctrl-C is for the runner, which then ends its workers
        )
        try:
            self.hello = self._hear()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, case: Case, **more: Any) -> dict[str, Any]:
        """Raises Lost where the process ended."""
        if self._process.stdin is None:
            raise Lost("has no input")
        try:
            self._process.stdin.write(json.dumps({"do": do, "case": asdict(case), **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Lost(self._last_words()) from error
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            raise Lost(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        if self._process.returncode is not None and self._process.returncode < 0:
            return f"ended by signal {-self._process.returncode}"
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        return lines[-1] if lines else f"ended with code {self._process.returncode}"

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # it has nothing to lose, and may be in the middle of a call
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Times:
    """What a contestant did in one case. seconds: a figure a round it took part in, NaN where it did not; result of
    the last; sigma: the RBF's bandwidth; reason: why there is nothing."""

    seconds: list[float] = field(default_factory=list)
    result: list[float] = field(default_factory=list)
    sigma: float | None = None
    check: float = math.nan  # largest relative difference from the definition, on the corner
    reason: str | None = None

    @property
    def typical(self) -> float:
        taken = [s for s in self.seconds if not math.isnan(s)]
        return median(taken) if taken else math.nan

    @property
    def runs(self) -> int:
        return sum(not math.isnan(s) for s in self.seconds)


def difference(found: list[float], expected: list[float]) -> float:
    """Largest difference of two results relative to the expected one; NaN without any."""
    if not expected:
        return math.nan
    apart = [abs(a - b) / (abs(b) + 1e-9) for a, b in zip(found, expected, strict=True)]
    return math.inf if any(math.isnan(value) for value in apart) else max(apart)


def order(count: int, turn: int) -> list[int]:
    """Who follows whom in a round: back to front in every other, and rotated after every second."""
    places = [(k + turn // 2) % count for k in range(count)]
    return places if turn % 2 == 0 else places[::-1]


def measure(
    case: Case, contestants: Mapping[str, Contestant], rounds: int, threads: int, budget: float = math.inf
) -> dict[str, Times]:
    """Check each contestant on the corner of the case, then time them in turns.

    With one thread processor time is taken, which other programs disturb least; with more, wall time. A contestant
    takes part in rounds until it has used up ``budget`` seconds, and in one at least. One whose process ends is out,
    with the reason.
    """
    clock = "cpu_s" if threads == 1 else "wall_s"
    found = {name: Times() for name in contestants}
    calls = dict.fromkeys(contestants, 1)
    inputs: set[str] = set()

    def ask(name: str, do: str) -> dict[str, Any] | None:
        times = found[name]
        try:
            reply = contestants[name].ask(do, case, calls=calls[name])
        except Lost as lost:
            times.reason = str(lost)
            return None
        if do == "run":
            inputs.add(reply["inputs"])
            if len(inputs) > 1:
                raise RuntimeError(f"{name} drew other rows than the contestants before it in {case.name}")
        return reply

    for name, times in found.items():
        reply = ask(name, "check")
        if reply is None:
            continue
        if "absent" in reply:
            times.reason = reply["absent"]
            continue
        times.check = difference(reply["found"], reply["expected"])
        if budget == math.inf:  # many rounds: one more call settles caches, and tells how many calls make a timing
            first = ask(name, "run")
            if first is not None:
                calls[name] = max(1, min(200, math.ceil(SHORTEST / max(first[clock], 1e-6))))
    names = list(contestants)
    for turn in range(rounds):
        for place in order(len(names), turn):
            times = found[names[place]]
            used = sum(s for s in times.seconds if not math.isnan(s))
            if times.reason is not None or (times.runs and used + times.typical > budget):
                times.seconds.append(math.nan)
                continue
            reply = ask(names[place], "run")
            times.seconds.append(math.nan if reply is None else reply[clock])
            if reply is not None:
                times.result, times.sigma = reply["result"], reply.get("sigma")
    return found


def paired(times: Times, of: Times) -> list[float]:
    """Ratios round by round, where both took part."""
    pairs = zip(times.seconds, of.seconds, strict=True)
    return [a / b for a, b in pairs if not math.isnan(a) and not math.isnan(b)]
