"""One contestant in a process of its own: a JSON line in, a JSON line out. Started by run.py, not by hand.

Requests: {"do": "check" | "run" | "value", "case": {...}} and for "run" "calls", how many calls one timing covers; for
"value" "convention" and "sigma". Answers:

    {"absent": reason}                              this code has no such function
    check  {"found": [...], "expected": [...]}      on a corner of the case, against the dense float64 definition
    run    {"cpu_s", "wall_s", "result", "sigma"}   seconds a call
    value  {"value"}                                gpudrift's own in float64, under a peer's convention

The inputs are drawn here from a fixed seed, and every answer carries their digest: all contestants must see the same.
This file is part of each case's hash: editing it starts a new history.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import torch
from cases import SHIFT, Case
from expected import expected, expected_value, p_value
from torch import Tensor

Call = Callable[[], list[float]]
_SIDE = 4096  # a bare product larger than this is done in equal parts, into one preallocated result


@lru_cache(maxsize=4)
def clouds(n: int, m: int, d: int) -> tuple[Tensor, Tensor, str]:
    """x (n, d) and y (m, d) float32, and the digest of their bytes."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, d, generator=generator) / d**0.5 for rows in (n, m))
    y += SHIFT / d**0.5
    return x, y, hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:16]


def labels(case: Case) -> Tensor:
    """(n + m, 1 + P) 0/1: the observed labels, then P relabellings with n ones each."""
    generator = torch.Generator().manual_seed(1)
    z = torch.zeros(case.n + case.m, 1 + case.permutations)
    z[: case.n, 0] = 1
    for p in range(case.permutations):
        z[torch.randperm(len(z), generator=generator)[: case.n], 1 + p] = 1
    return z


class Floor:
    """The bare matrix products of the same pairs, into preallocated memory."""

    def absent(self, case: Case) -> str | None:  # noqa: ARG002 the contestants share one signature
        return None

    def ready(self, case: Case) -> Call:
        x, y, _ = clouds(case.n, case.m, case.d)
        longest = x if len(x) >= len(y) else y
        jobs = [
            (left, right)
            for rows, columns in case.products()
            for left in longest[:rows].chunk(-(-rows // _SIDE))
            for right in longest[:columns].chunk(-(-columns // _SIDE))
        ]
        out = torch.empty(max(len(left) * len(right) for left, right in jobs))

        def call() -> list[float]:
            for left, right in jobs:
                torch.mm(left, right.T, out=out[: len(left) * len(right)].view(len(left), len(right)))
            return []

        return call


class Ours:
    """gpudrift, whichever commit PYTHONPATH leads to."""

    def absent(self, case: Case) -> str | None:
        """Why this commit cannot serve the case: a function or keyword it does not have yet."""
        from gpudrift import kernels

        needed: list[tuple[str, str]] = {
            "cross": [("cross_sums", "squares")],
            "self": [("self_sums", "squares")],
            "batch": [("batch_sums", "pairs")],
            "score": [("self_sums", "labels")] if case.permutations else [],
        }[case.kind]
        if not case.margins:
            needed.append((needed[0][0], "margins"))
        for function, keyword in needed:
            found = getattr(kernels, function, None)
            if found is None:
                return f"kernels.{function} is not there"
            if keyword not in inspect.signature(found).parameters:
                return f"kernels.{function} has no {keyword}"
        return None

    def ready(self, case: Case) -> Call:
        import gpudrift
        from gpudrift import kernels

        x, y, _ = clouds(case.n, case.m, case.d)
        sigmas = case.sigmas()
        wanted: dict[str, Any] = {"bandwidths": sigmas, "squares": case.squares}
        if not case.margins:
            wanted["margins"] = False
        if case.kind == "cross":
            a, b = kernels.prepare(x), kernels.prepare(y)
            return lambda: _told(kernels.cross_sums(a, b, **wanted), case)
        if case.kind == "self":
            a = kernels.prepare(x)
            return lambda: _told(kernels.self_sums(a, **wanted), case)
        if case.kind == "batch":
            a, b = (
                kernels.prepare(x, offsets=bounds(case.groups)),
                kernels.prepare(y, offsets=bounds(case.groups[::-1])),
            )
            pairs = [(g, g) for g in range(len(case.groups))]
            return lambda: [float(found.total[0]) / found.pairs for found in kernels.batch_sums(a, b, pairs, **wanted)]
        if case.permutations:
            return lambda: _permuted(case, x, y)
        if sigmas:
            return lambda: _estimated(gpudrift.mmd2(x, y, sigmas[0]))
        return lambda: _estimated(gpudrift.energy_distance(x, y))

    def value(self, case: Case, convention: str, sigma: float | None) -> float:
        """E or MMD2, _U or _V, in float64."""
        import gpudrift

        x, y, _ = clouds(case.n, case.m, case.d)
        statistic, _, estimator = convention.partition("_")
        rows = (x.double(), y.double())
        if statistic == "E":
            return float(gpudrift.energy_distance(*rows, estimator=estimator.lower()).value)
        return float(gpudrift.mmd2(*rows, sigma, estimator=estimator.lower()).value)


def bounds(sizes: Sequence[int]) -> list[int]:
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    return edges


def _estimated(found: Any) -> list[float]:
    return [float(found.value), float(found.se)]


def _told(found: Any, case: Case) -> list[float]:
    """Means of every sum that was asked for, and a row and a column sum."""
    result = [float(total) / found.pairs for total in found.total]
    if case.squares:
        result += [float(squares) / found.pairs for squares in found.squares]
    if case.margins:
        result += [float(k[0]) / len(found.columns[0]) for k in found.rows]
        result += [float(k[-1]) / len(found.rows[0]) for k in found.columns]
    return result


def _permuted(case: Case, x: Tensor, y: Tensor) -> list[float]:
    """The statistic and its permutation p-value, from one pass over the pooled rows."""
    from gpudrift import kernels

    pooled = kernels.prepare(torch.cat([x, y]), centre=x.mean(0))
    z = labels(case)
    found = kernels.self_sums(pooled, bandwidths=case.sigmas(), squares=False, labels=z)
    f = case.functions - 1
    sign = 1.0 if case.bandwidths else -1.0
    xx = found.labels[f]
    xy = z.double().T @ found.rows[f] - xx
    yy = found.total[f] - xx - 2 * xy
    return p_value(sign * (xx / (case.n * (case.n - 1)) + yy / (case.m * (case.m - 1)) - 2 * xy / (case.n * case.m)))


def timed(call: Call, calls: int) -> dict[str, Any]:
    result: list[float] = []
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        result = call()
    return {
        "cpu_s": (time.process_time() - cpu) / calls,
        "wall_s": (time.perf_counter() - wall) / calls,
        "result": result,
    }


def answer(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request for the contestant ``name``."""
    case = Case(**request["case"])
    if name in ("floor", "gpudrift"):
        contestant: Floor | Ours = Floor() if name == "floor" else Ours()
        reason = contestant.absent(case)
        if reason is not None:
            return {"absent": reason}
        if request["do"] == "value":
            return {"value": Ours().value(case, request["convention"], request["sigma"])}
        if request["do"] == "check":
            case = case.corner()
            found = contestant.ready(case)()
            x, y, _ = clouds(case.n, case.m, case.d)
            return {"found": found, "expected": expected(case, x, y, labels(case)) if name == "gpudrift" else []}
        return timed(contestant.ready(case), request["calls"])
    import peers  # late: not part of the tracked cases

    peer = peers.PEERS[name]
    checking = request["do"] == "check"
    case = case.corner() if checking else case
    x, y, _ = clouds(case.n, case.m, case.d)
    attempt = peer.ready(case, x, y)
    if checking:
        return {"found": attempt.call(), "expected": [expected_value(x, y, peer.convention, attempt.sigma)]}
    return {**timed(attempt.call, request["calls"]), "sigma": attempt.sigma}


def serve(name: str, requests: TextIO, answers: TextIO, hello: dict[str, Any]) -> None:
    answers.write(json.dumps(hello) + "\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        reply = answer(name, request)
        case = Case(**request["case"])
        reply["inputs"] = clouds(case.n, case.m, case.d)[2]
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Started by run.py.")
    parser.add_argument("contestant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, help="where gpudrift must come from")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    torch.set_num_threads(options.threads)
    hello: dict[str, Any] = {"torch": str(torch.__version__)}
    if options.root is not None:
        import gpudrift

        found = Path(gpudrift.__file__).resolve()
        if not found.is_relative_to(options.root.resolve()):
            raise SystemExit(f"gpudrift comes from {found}, not from {options.root}")
    serve(options.contestant, sys.stdin, answers, hello)


if __name__ == "__main__":
    main()
