"""What an engine costs beside the bare kernels' call: local and Ray on one machine, over sizes of macro-blocks.

    python benchmarks/engine.py [--rows 8192 12288] [--dims 128 384] [--blocks 1024 2048 4096] [--save]
    python benchmarks/engine.py --short           # small, no Ray: that it works

For the same clouds (normal, float32) and F = 5 pair functions with row and column sums: ``kernels.cross_sums`` alone;
``Pairs`` over ``LocalExecutor`` in the calling thread and with two CPU devices; over ``RayExecutor`` on real local
clusters of one node of two CPUs and three nodes of one. Torch has one thread everywhere. In each round the kernels'
call runs and then the contestant; a ratio is of those two, and the median of the rounds counts. What is shared is
shared anew each time, workers are warm. Totals must agree to rounding, and all sums of one block size to the bit.

The cost model (``gpudrift.engine.costs``) is held to it: tasks, bytes shared and bytes of results have to be equal, and
seconds of each size are predicted by a rate of pairs and an overhead a task fitted on all the other sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import history
import numpy as np
import torch

from gpudrift import kernels
from gpudrift.engine import Engine, Executor
from gpudrift.engine import costs as model
from gpudrift.engine.costs import Job
from gpudrift.engine.local import LocalExecutor
from gpudrift.engine.pairs import Pairs
from gpudrift.kernels import PairSums, Prepared

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)  # times the square root of the dimension
STORE = 200_000_000  # bytes, of each node's object store


@contextmanager
def ray_cluster(nodes: int, cpus: int) -> Iterator[Executor]:
    """An executor on a cluster of its own: a head without CPUs where there are several nodes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    from gpudrift.engine.ray import RayExecutor

    with tempfile.TemporaryDirectory(prefix="gpudrift-", ignore_cleanup_errors=True) as home:
        cluster: Any = Cluster()
        try:
            first = cpus if nodes == 1 else 0
            cluster.add_node(num_cpus=first, object_store_memory=STORE, include_dashboard=False, temp_dir=home)
            for _ in range(nodes if nodes > 1 else 0):
                cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
            cluster.wait_for_nodes()
            executor = RayExecutor(device="cpu", address=cluster.address)
            try:
                yield executor
            finally:
                executor.close()
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def local(devices: Sequence[str]) -> Iterator[Executor]:
    executor = LocalExecutor(devices)
    try:
        yield executor
    finally:
        executor.close()


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "local": lambda: local(()),
    "local, 2 devices": lambda: local(("cpu", "cpu")),
    "ray, 1 node of 2 CPUs": lambda: ray_cluster(1, 2),
    "ray, 3 nodes of 1 CPU": lambda: ray_cluster(3, 1),
}


def clouds(n: int, d: int) -> tuple[Prepared, Prepared]:
    draw = torch.Generator().manual_seed(n + d)
    x, y = (torch.randn(n, d, generator=draw) for _ in range(2))
    return kernels.prepare(x), kernels.prepare(y)


def timed(work: Callable[[], PairSums]) -> tuple[float, PairSums]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line a contestant, size and block side."""
    found: list[dict[str, Any]] = []
    bits: dict[tuple[int, int, int], torch.Tensor] = {}
    for name in options.contestants:
        with CONTESTANTS[name]() as executor:
            warm = clouds(4 * 1024, 16)
            Pairs(Engine(executor), block_rows=1024).cross_sums(*warm)
            for d in options.dims:
                widths = [float(np.sqrt(d)) * width for width in BANDWIDTHS]
                for n in options.rows:
                    x, y = clouds(n, d)
                    for side in options.blocks:
                        line = one(executor, x, y, widths, side, options.rounds, bits)
                        found.append({"contestant": name, "rows": n, "dim": d, "block_rows": side, **line})
                        print(describe(found[-1]), flush=True)
            measures = dict(executor.measures())
        for line in found:
            if line["contestant"] == name:
                line["object_store_peak_bytes"] = measures.get("object_store_peak_bytes")
    return found


def one(
    executor: Executor,
    x: Prepared,
    y: Prepared,
    widths: Sequence[float],
    side: int,
    rounds: int,
    bits: dict[tuple[int, int, int], torch.Tensor],
) -> dict[str, Any]:
    bare, seconds, ratios = [], [], []
    for _ in range(rounds):
        alone, expected = timed(lambda: kernels.cross_sums(x, y, bandwidths=widths))
        engine = Engine(executor)
        pairs = Pairs(engine, block_rows=side)
        taken, got = timed(lambda pairs=pairs: pairs.cross_sums(x, y, bandwidths=widths))  # type: ignore[misc]
        assert torch.allclose(got.total, expected.total, rtol=1e-6, atol=0)
        assert torch.allclose(got.rows, expected.rows, rtol=1e-5, atol=0)
        sums = torch.cat([got.total, got.squares, got.rows.flatten(), got.columns.flatten()])
        assert torch.equal(bits.setdefault((len(x), x.dim, side), sums), sums), "another engine, other bits"
        bare.append(alone)
        seconds.append(taken)
        ratios.append(taken / alone)
        account = engine.account
    job = Job(len(x), len(y), x.dim, side, functions=1 + len(widths), item=4)
    shared, results = model.block_bytes(job), model.pass_result_bytes(job, "XY")
    assert account.tasks == {"XY": model.tasks(job)["XY"]}, "the cost model counts other tasks"
    if executor.remote:
        assert (account.shared_bytes, account.result_bytes) == (shared, results), "the cost model counts other bytes"
    return {
        "kernels_seconds": statistics.median(bare),
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "tasks": account.started,
        "workers": executor.slots(),
        "shared_bytes": account.shared_bytes,
        "result_bytes": account.result_bytes,
        "worker_seconds": account.worker_seconds,
        "pairs": len(x) * len(y),
    }


def describe(line: dict[str, Any]) -> str:
    return (
        f"{line['contestant']:<22} d={line['dim']:<4} {line['rows']:>6} rows, blocks of {line['block_rows']:>5}: "
        f"{line['tasks']:>3} tasks, {line['seconds']:.2f} s, {line['ratio']:.2f} of the kernels' call"
    )


def fitted(lines: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(seconds a pair, seconds a task) of one contestant and dimension, by least squares of relative errors."""
    seconds = np.array([line["seconds"] for line in lines])
    design = np.array([[line["pairs"], line["tasks"]] for line in lines], dtype=float)
    answer, *_ = np.linalg.lstsq(design / seconds[:, None], np.ones(len(lines)), rcond=None)
    return float(answer[0]), float(answer[1])


def predict(lines: list[dict[str, Any]]) -> None:
    """Add the seconds predicted from all other sizes of the same contestant and dimension, and the overhead a task of
    all of them."""
    for key in {(line["contestant"], line["dim"]) for line in lines}:
        same = [line for line in lines if (line["contestant"], line["dim"]) == key]
        for line in same:
            others = [other for other in same if other is not line]
            if len(others) >= 2:
                a_pair, a_task = fitted(others)
                line["predicted_seconds"] = a_pair * line["pairs"] + a_task * line["tasks"]
                line["task_overhead_seconds"] = fitted(same)[1]


def merge_rate(rows: int) -> float:
    """Bytes of results added up a second, as ``gpudrift.engine.merging`` does: float64 slices into a larger array."""
    target, part = np.ones((5, 4 * rows)), np.ones((5, rows))
    times = []
    for k in range(8):
        began = time.perf_counter()
        target[:, (k % 4) * rows : (k % 4 + 1) * rows] += part
        times.append(time.perf_counter() - began)
    return part.nbytes / statistics.median(times)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[8192, 12288], help="a side")
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 384])
    parser.add_argument("--blocks", nargs="+", type=int, default=[1024, 2048, 4096], help="rows a side of a block")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="small clouds, one round, no Ray")
    parser.add_argument("--save", action="store_true", help="keep the result")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(words)
    if options.short:
        options.rows, options.dims, options.blocks, options.rounds = [512, 1024], [16], [256, 512], 1
        options.contestants = [name for name in options.contestants if not name.startswith("ray")]
    if options.rounds < 1:
        parser.error("at least one round is needed")
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    torch.set_num_threads(1)
    found = measure(options)
    predict(found)
    errors = [abs(line["predicted_seconds"] / line["seconds"] - 1) for line in found if "predicted_seconds" in line]
    rate = merge_rate(1 << 20)
    if errors:
        print(f"seconds predicted from other sizes: off by {100 * statistics.median(errors):.0f}% in the median, "
              f"{100 * max(errors):.0f}% at most")  # fmt: skip
    print(f"results are added up at {rate / 1e9:.1f} GB/s")
    if options.save:
        commit, dirty = history.commit_of(ROOT)
        said: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": history.cpu_model(),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "numpy", "ray")},
            "commit": commit,
            "dirty": dirty,
            "rounds": options.rounds,
            "merge_bytes_a_second": rate,
        }
        options.results.write_text(json.dumps({"run": said, "found": found}, indent=1) + "\n", encoding="utf-8")
        print(f"kept in {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
