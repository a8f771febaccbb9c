"""What the pairs of a job cost on a cluster: tasks, pairs, FLOP, seconds, bytes, and what the driver has to hold.

Arithmetic, not measurements. The GPU's rate is an assumption (``Machine.share`` of the bare 16-bit GEMM: a goal of the
kernels, which nobody has measured on these devices); tasks, bytes of blocks and bytes of results are exact, and
``benchmarks/engine.py`` holds them to what an engine counted. Sizes are bytes, times seconds, rates bytes a second.

Layouts say which blocks a node ends up with (n, m rows; p x q nodes; N nodes):

    replicate   all of X and Y                                    (n + m)            what the scheduler comes to
    grid        of XX, XY and YY those of its rows and columns    (n + m)(1/p + 1/q)
    ring        its own N-th of X and Y stays; Y goes all the way round, X half of it: received m (N - 1)/N + n/2,
                held at a time (n + m)/N and two more N-ths of the larger
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Layout = Literal["replicate", "grid", "ring"]
LAYOUTS: tuple[Layout, ...] = ("replicate", "grid", "ring")
_SUM = 8  # bytes of a float64 sum
_NORM = 8  # bytes of a row's squared norm, which travels with it


@dataclass(frozen=True)
class Job:
    """XX, XY and YY of n reference rows and m current rows of d dimensions.

    functions: pair functions F, the distance and the RBFs. side: rows a side of a macro-block. item: bytes of a
    coordinate as blocks travel. pinned: XX is kept with the reference and not computed.
    """

    n: int
    m: int
    d: int
    side: int = 1 << 20
    functions: int = 5
    item: int = 2
    pinned: bool = False


@dataclass(frozen=True)
class Machine:
    """A cluster of equal nodes and a driver.

    gpus: a node. gemm: FLOP a second of a bare 16-bit GEMM, a GPU. share: of that, what the pair sums reach. network:
    into a node. store: bytes of an object store, a node. driver_network: into and out of the driver, each. merge: bytes
    of results the driver adds up a second. storage: bytes a second the files are read at, by all nodes together.
    """

    nodes: int = 1
    gpus: int = 1
    gemm: float = 790e12
    share: float = 0.66
    network: float = 12.5e9
    store: float = 600e9
    driver_network: float = 12.5e9
    merge: float = 2e9
    storage: float = 10e9

    @property
    def workers(self) -> int:
        return self.nodes * self.gpus

    @property
    def rate(self) -> float:
        """FLOP a second of pair sums, all GPUs."""
        return self.workers * self.gemm * self.share


def blocks(rows: int, side: int) -> int:
    """Macro-blocks of a cloud."""
    return -(-rows // side)


def tasks(job: Job) -> dict[str, int]:
    """Tasks of each pass: all blocks of XY, the upper triangle of XX and YY."""
    a, b = blocks(job.n, job.side), blocks(job.m, job.side)
    found = {} if job.pinned else {"XX": a * (a + 1) // 2}
    return found | {"XY": a * b, "YY": b * (b + 1) // 2}


def pairs(job: Job) -> int:
    """Pairs computed: of XX and YY each pair once."""
    own = 0 if job.pinned else job.n * (job.n - 1) // 2
    return own + job.n * job.m + job.m * (job.m - 1) // 2


def flop(job: Job) -> float:
    """2 d a pair."""
    return 2.0 * job.d * pairs(job)


def compute_seconds(job: Job, machine: Machine) -> float:
    """Of all GPUs, kept busy to the end."""
    return flop(job) / machine.rate


def gpu_hours(job: Job, machine: Machine) -> float:
    """Times the price of a GPU hour: what the pairs cost."""
    return compute_seconds(job, machine) * machine.workers / 3600


def row_bytes(job: Job) -> int:
    """Of a row as it travels: its coordinates and its norm."""
    return job.item * job.d + _NORM


def block_bytes(job: Job) -> int:
    """Of all blocks of X and Y."""
    return (job.n + job.m) * row_bytes(job)


def grid(nodes: int) -> tuple[int, int]:
    """p x q = nodes, as square as it goes, p <= q."""
    p = next(p for p in range(math.isqrt(nodes), 0, -1) if nodes % p == 0)
    return p, nodes // p


def fetched_bytes(job: Job, nodes: int, layout: Layout) -> float:
    """Of blocks into each node, where its store holds what it needs again."""
    every = block_bytes(job)
    if layout == "replicate":
        return every
    if layout == "grid":
        p, q = grid(nodes)
        return every * min(1.0, 1 / p + 1 / q)
    half = 0.0 if job.pinned else job.n / 2
    return every / nodes + row_bytes(job) * (job.m + half) * (nodes - 1) / nodes


def held_bytes(job: Job, nodes: int, layout: Layout) -> float:
    """Of blocks a node's store holds at its fullest."""
    if layout == "ring":
        part = row_bytes(job) / nodes
        return min(block_bytes(job), part * (job.n + job.m + 2 * max(job.n, job.m)))
    return fetched_bytes(job, nodes, layout)


def refetched_bytes(job: Job, machine: Machine) -> float:
    """Into each node under ``replicate`` where its store holds far less than all: tasks come row by row, so a block of
    a row stays, and every task brings the other one."""
    count = sum(tasks(job).values())
    rows = 2 if not job.pinned else 1  # passes over the rows of X; YY has those of Y
    return ((rows * job.n + job.m) + count * job.side / machine.nodes) * row_bytes(job)


def replicate_bytes(job: Job, machine: Machine) -> float:
    """Into each node as the scheduler works today: all blocks once where they fit, else one a task."""
    every = block_bytes(job)
    return every if every <= machine.store else max(every, refetched_bytes(job, machine))


def largest_replicated(store: float, d: int, item: int = 2) -> int:
    """Rows a side of two equal clouds whose blocks all fit a node's store."""
    return int(store // (2 * (item * d + _NORM)))


def smallest_computing(machine: Machine, item: int = 2) -> float:
    """Rows a side of two equal clouds from which a node computes longer than it fetches all blocks.

    Fetching takes 2 n d item / network, computing 4 d n^2 / rate (2 n^2 pairs of 2 d FLOP)."""
    return machine.rate * item / (2 * machine.network)


def pass_result_bytes(job: Job, name: str) -> int:
    """Into the driver from all tasks of XX, XY or YY: 8 F (rows + columns) each, the rows once where a block meets
    itself; and totals, squares, the sums of one group and its number of pairs."""
    a, b = blocks(job.n, job.side), blocks(job.m, job.side)
    slices = {"XX": a * job.n, "XY": b * job.n + a * job.m, "YY": b * job.m}[name]
    return _SUM * (job.functions * slices + (3 * job.functions + 1) * tasks(job)[name])


def result_bytes(job: Job) -> int:
    """Into the driver from all tasks."""
    return sum(pass_result_bytes(job, name) for name in tasks(job))


def merge_seconds(job: Job, machine: Machine) -> float:
    """Of the driver, adding up what tasks came to."""
    return result_bytes(job) / machine.merge


def task_merge_seconds(job: Job, machine: Machine) -> float:
    """Of the driver for a task of two whole blocks."""
    return 2 * _SUM * job.functions * job.side / machine.merge


def most_workers(job: Job, machine: Machine) -> float:
    """GPUs from which on the driver adds up for longer than they compute."""
    return machine.workers * compute_seconds(job, machine) / merge_seconds(job, machine)


DRIVER_COPIES = {"rows, float32": 4, "prepared for pairs, held in float32 where the driver has no GPU": 4,
                 "blocks in its object store, 16 bits": 2}  # bytes a coordinate  # fmt: skip
DRIVER_ROW = 1200  # bytes a row beyond its vectors (gpudrift.plan)


def driver_bytes(job: Job) -> int:
    """What the driver holds as the job works today: the rows of both clouds three times, and per-row values."""
    each = sum(DRIVER_COPIES.values()) * job.d + DRIVER_ROW + 2 * _SUM * job.functions
    return (job.n + job.m) * each


def largest_driven(memory: float, d: int, functions: int = 5) -> int:
    """Rows a side of two equal clouds that a driver of so many bytes carries."""
    return int(memory // driver_bytes(Job(1, 1, d, functions=functions)))


def read_seconds(job: Job, machine: Machine) -> float:
    """Files in 16 bits from storage, and rows in float32 into the driver: the slower of the two."""
    coordinates = (job.n + job.m) * job.d
    return max(2 * coordinates / machine.storage, 4 * coordinates / machine.driver_network)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run: read (rows in the driver), publish (its blocks leave it once), fetch (into a node), compute (of
    all GPUs), results (into the driver), merge."""

    read: float
    publish: float
    fetch: float
    compute: float
    results: float
    merge: float

    @property
    def pairs(self) -> float:
        """Reading done: a worker computes or waits for blocks; the driver's link and its adding up run beside that."""
        return max(self.compute + self.fetch, self.publish + self.results, self.merge)

    @property
    def total(self) -> float:
        return self.read + self.pairs


def estimate(job: Job, machine: Machine) -> Estimate:
    """The job as it works today: replicate, the driver reads all and merges all."""
    return Estimate(
        read=read_seconds(job, machine),
        publish=block_bytes(job) / machine.driver_network,
        fetch=replicate_bytes(job, machine) / machine.network,
        compute=compute_seconds(job, machine),
        results=result_bytes(job) / machine.driver_network,
        merge=merge_seconds(job, machine),
    )
