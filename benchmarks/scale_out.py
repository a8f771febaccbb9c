"""The tables of docs/scale-out.md: the cost model's numbers, the real scheduler on a simulated cluster, and what
``benchmarks/engine.py`` measured.

    python benchmarks/scale_out.py            # prints them
    python benchmarks/scale_out.py --write    # and puts them into the page

Rates are ``gpudrift.engine.costs.Machine``'s, and the GPU's is an assumption.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

from gpudrift.engine import Account, Attempt, Policy, Shared, Task, Worker
from gpudrift.engine import costs as model
from gpudrift.engine.costs import Job, Machine
from gpudrift.engine.pairs import block_rows_for
from gpudrift.engine.scheduler import Scheduler, run
from gpudrift.engine.simulate import Node, SimulatedExecutor, finish

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale-out.md"
MEASURED = Path(__file__).resolve().parent / "results" / "engine.json"
DIM = 1024
CLUSTERS = {"1 H100": Machine(1, 1), "8 H100s, one machine": Machine(1, 8), "64 H100s, 8 machines": Machine(8, 8)}
SEED = 2026


def job_of(rows: int) -> Job:
    """rows against rows, blocks as ``gpudrift.engine.pairs`` cuts them for CUDA."""
    return Job(rows, rows, DIM, block_rows_for(rows, "cuda"))


# Simulated runs


@dataclass(frozen=True)
class Trouble:
    """share: of attempts that take ``times`` as long. slow: of the first node. mean_hours: between two failures of a
    node; away: seconds until it is back."""

    name: str
    share: float = 0.0
    times: float = 10.0
    slow: float = 1.0
    mean_hours: float = math.inf
    away: float = 300.0
    speculate: bool = True


TROUBLES = [
    Trouble("none"),
    Trouble("1% of attempts 10x slower, no second attempts", 0.01, speculate=False),
    Trouble("1% of attempts 10x slower", 0.01),
    Trouble("5% of attempts 10x slower, no second attempts", 0.05, speculate=False),
    Trouble("5% of attempts 10x slower", 0.05),
    Trouble("one of 8 nodes 3x slower, no second attempts", slow=3.0, speculate=False),
    Trouble("one of 8 nodes 3x slower", slow=3.0),
    Trouble("each node fails once an hour, back after 5 min", mean_hours=1.0),
]


@dataclass(frozen=True)
class Run:
    """seconds: from the first task to the last result added up. ideal: of all workers computing without a pause."""

    seconds: float
    ideal: float
    account: Account
    fetched: float  # bytes, the node that fetched most


def _nothing(worker: Worker) -> None:
    """What a simulated task would do."""


def passes(job: Job, executor: SimulatedExecutor) -> Iterator[Iterator[Task]]:
    """The tasks of XX, XY and YY, in the order and with the blocks and costs of ``gpudrift.engine.pairs``."""

    def shared(name: str, rows: int) -> list[tuple[Shared, int]]:
        sizes = [min(job.side, rows - start) for start in range(0, rows, job.side)]
        return [(executor.share(f"{name}{k}", size * model.row_bytes(job)), size) for k, size in enumerate(sizes)]

    x, y = shared("X", job.n), shared("Y", job.m)
    for name, left, right in (("XX", x, x), ("XY", x, y), ("YY", y, y)):
        cells = [(i, j) for i in range(len(left)) for j in range(i if left is right else 0, len(right))]
        yield (_task(place, name, i, j, left[i], right[j]) for place, (i, j) in enumerate(cells))


def _task(place: int, name: str, i: int, j: int, left: tuple[Shared, int], right: tuple[Shared, int]) -> Task:
    (a, n), (b, m) = left, right
    if a is b:
        return Task(place, f"{name} {i},{j}", _nothing, (a,), n * (n - 1) / 2)
    return Task(place, f"{name} {i},{j}", _nothing, (a, b), float(n) * m)


def simulate(job: Job, machine: Machine, trouble: Trouble, seed: int = SEED, policy: Policy | None = None) -> Run:
    """The three passes, one after another, by the real scheduler on a virtual clock."""
    draw = random.Random(seed)
    nodes = []
    for k in range(machine.nodes):
        slow = trouble.slow if k == 0 else 1.0
        nodes.append(Node(machine.gpus, machine.network, machine.store, slow, _failures(trouble, draw)))
    rate = machine.rate / machine.workers

    def seconds_of(attempt: Attempt, _: int) -> float:
        task = attempt.task
        unlucky = random.Random(f"{seed} {task.name} {attempt.number}").random() < trouble.share
        return 2 * job.d * task.cost / rate * (trouble.times if unlucky else 1.0)

    def result_bytes(task: Task) -> int:
        rows: int = sum(arg.bytes // model.row_bytes(job) for arg in task.args)
        return 8 * (job.functions * rows + 3 * job.functions + 1)

    executor = SimulatedExecutor(nodes, seconds_of, result_bytes=result_bytes, driver_bandwidth=machine.driver_network)
    account, ids = Account(), count()
    policy = replace(policy or Policy(patience=3600.0), speculate=trouble.speculate)
    for tasks in passes(job, executor):
        results = run(Scheduler(tasks, policy, account, ids), executor)
        finish(results, executor, lambda task: result_bytes(task) / machine.merge)
    return Run(executor.now(), model.compute_seconds(job, machine), account, max(executor.fetched))


def _failures(trouble: Trouble, draw: random.Random) -> tuple[tuple[float, float], ...]:
    """Times a node is away, over ten days."""
    found, at = [], 0.0
    while trouble.mean_hours < math.inf and at < 864_000:
        at += 10 + draw.expovariate(1 / (3600 * trouble.mean_hours))
        found.append((at, at + trouble.away))
        at += trouble.away
    return tuple(found)


# Tables


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(value: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"


def rows_of(value: float) -> str:
    return f"{value / 1e6:.2g}M" if value < 1e8 else f"{value / 1e6:.0f}M"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def work() -> list[str]:
    found = []
    for rows in (10**6, 10**7, 10**8):
        job = job_of(rows)
        split = " + ".join(f"{number:,}" for number in model.tasks(job).values())
        found.append(
            [
                f"{rows_of(rows)} x {rows_of(rows)}", f"{job.side:,}", split, f"{model.pairs(job):.2g}",
                f"{model.flop(job):.2g}", size(model.block_bytes(job)), size(model.result_bytes(job)),
                size(model.driver_bytes(job)),
            ]
        )  # fmt: skip
    header = ["rows", "block rows", "tasks XX + XY + YY", "pairs", "FLOP", "blocks, 16 bits", "results", "driver holds"]
    return table(header, found)


def price() -> list[str]:
    job, found = job_of(10**8), []
    for name, machine in CLUSTERS.items():
        told = model.estimate(job, machine)
        found.append(
            [
                name, duration(told.compute), f"{model.gpu_hours(job, machine):.1f} P", duration(told.fetch),
                duration(told.results), duration(told.merge), duration(told.read), duration(told.total),
            ]
        )  # fmt: skip
    header = ["100M x 100M", "pairs", "money", "a node's blocks", "results in", "added up", "read", "in all"]
    return table(header, found)


def layouts() -> list[str]:
    job, found = job_of(10**8), []
    for nodes, gpus in ((8, 8), (16, 4), (64, 1)):
        machine = Machine(nodes, gpus)
        for layout in model.LAYOUTS:
            fetched = model.fetched_bytes(job, nodes, layout)
            share = fetched / machine.network / model.compute_seconds(job, machine)
            held = model.held_bytes(job, nodes, layout)
            p, q = model.grid(nodes)
            name = f"{layout}, {p} x {q}" if layout == "grid" else layout
            found.append([f"{nodes} x {gpus}", name, size(fetched), size(held), f"{100 * share:.1f}%"])
        again = model.refetched_bytes(job, machine)
        share = again / machine.network / model.compute_seconds(job, machine)
        found.append(
            [f"{nodes} x {gpus}", "replicate, store too small", size(again), "its store", f"{100 * share:.0f}%"]
        )
    header = ["nodes x GPUs", "layout", "into a node", "held by a node", "of the computing time"]
    return table(header, found)


def limits() -> list[str]:
    found = [
        [
            size(memory),
            rows_of(model.largest_driven(memory, DIM)),
            rows_of(model.largest_replicated(0.3 * memory, DIM)),
        ]
        for memory in (64e9, 256e9, 1e12, 2e12, 4e12)
    ]
    return table(["memory", "as the driver: rows a side", "as a node, 30% of it: all blocks of rows a side"], found)


def crossings() -> list[str]:
    networks = (1.25e9, 12.5e9, 50e9)
    found = [
        [name, *(rows_of(model.smallest_computing(replace(machine, network=network))) for network in networks)]
        for name, machine in CLUSTERS.items()
    ]
    return table(["computing takes longer from rows a side", "10 Gb/s", "100 Gb/s", "400 Gb/s"], found)


def troubles(rows: int, nodes: Sequence[Machine] = (Machine(8, 1), Machine(8, 8))) -> list[str]:
    found = []
    usual = job_of(rows)
    smaller = replace(usual, side=usual.side // 4)
    kinds = [(trouble.name, trouble, usual) for trouble in TROUBLES]
    if rows <= 10**7:  # beyond it is a question of the driver's adding up, which needs no simulation
        kinds.append((f"none, blocks of {smaller.side:,} rows", TROUBLES[0], smaller))
    for name, trouble, job in kinds:
        line = [name]
        for machine in nodes:
            done = simulate(job, machine, trouble)
            account = done.account
            again = account.started - sum(account.tasks.values())
            line += [duration(done.seconds), f"{done.seconds / done.ideal:.2f}", f"{again:,}"]
        found.append(line)
    header = [f"{rows_of(rows)} x {rows_of(rows)}"]
    for machine in nodes:
        header += [f"{machine.workers} GPUs", "x least", "attempts more"]
    return table(header, found)


def measured() -> list[str]:
    """Of the largest clouds, a line a contestant and dimension."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))["found"]
    rows, sides = max(line["rows"] for line in found), sorted({line["block_rows"] for line in found})
    lines = []
    for name, d in dict.fromkeys((line["contestant"], line["dim"]) for line in found):
        same = [line for line in found if (line["contestant"], line["dim"]) == (name, d)]
        ratios = {line["block_rows"]: line["ratio"] for line in same if line["rows"] == rows}
        off = median(abs(line["predicted_seconds"] / line["seconds"] - 1) for line in same)
        peak = same[0]["object_store_peak_bytes"]
        lines.append(
            [
                f"{name}, d = {d}", *(f"{ratios[side]:.2f}" for side in sides),
                f"{1000 * same[0]['task_overhead_seconds']:.0f} ms", f"{100 * off:.0f}%", size(peak) if peak else "-",
            ]
        )  # fmt: skip
    header = [f"{rows:,} x {rows:,} rows", *(f"blocks of {side:,}" for side in sides), "a task", "prediction off by"]
    return table([*header, "store, peak"], lines)


TABLES: dict[str, Callable[[], list[str]]] = {
    "work": work,
    "price": price,
    "layouts": layouts,
    "limits": limits,
    "crossings": crossings,
    "measured": measured,
    "troubles, 10M": lambda: troubles(10**7),
    "troubles, 100M": lambda: troubles(10**8),
}


def put(page: str, lines: Sequence[str]) -> str:
    """The page with the table of this header in place of the one it has."""
    there = page.split("\n")
    first = there.index(lines[0])
    last = next((k for k in range(first, len(there)) if not there[k].startswith("|")), len(there))
    return "\n".join([*there[:first], *lines, *there[last:]])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale-out.md")
    options = parser.parse_args(words)
    page = PAGE.read_text(encoding="utf-8") if options.write else ""
    for make in TABLES.values():
        lines = make()
        print("\n".join(lines), end="\n\n")
        if options.write:
            page = put(page, lines)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    logging.getLogger("gpudrift.engine").setLevel(logging.ERROR)  # thousands of simulated retries
    sys.exit(main())
