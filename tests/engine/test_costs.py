"""The cost model against counts of what is done, and docs/scale-out.md against the commands its tables come from."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from benchmark_modules import ROOT, benchmarks_on_path, module
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudrift import kernels
from gpudrift.engine import Engine, costs
from gpudrift.engine.blocks import Part
from gpudrift.engine.costs import Job, Machine
from gpudrift.engine.local import LocalExecutor
from gpudrift.engine.pairs import Pairs

__all__ = ["benchmarks_on_path"]  # a fixture

PAGE = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
JOB = Job(10**8, 10**8, 1024)


# Counted


class Counting(LocalExecutor):
    """Counts bytes of results as an executor does that takes them from elsewhere."""

    remote = True

    def wait(self, seconds: float | None) -> Any:
        return [replace(ended, bytes=bytes_of(ended.value)) for ended in super().wait(seconds)]

    def share(self, key: str, value: Any) -> Any:
        return replace(super().share(key, value), bytes=value.bytes)


def bytes_of(part: Part) -> int:
    columns = 0 if part.columns is None else part.columns.nbytes
    arrays = (part.total, part.rows, part.squares, part.blocks, part.block_pairs)
    return columns + sum(array.nbytes for array in arrays)


@pytest.mark.parametrize(("n", "m", "side"), [(200, 150, 64), (128, 64, 64), (65, 1, 64), (50, 60, 64)])
def test_tasks_pairs_and_bytes_are_those_of_real_passes(n: int, m: int, side: int) -> None:
    job = Job(n, m, 3, side, functions=2, item=4)
    draw = torch.Generator().manual_seed(0)
    x, y = (kernels.prepare(torch.randn(rows, 3, generator=draw)) for rows in (n, m))
    engine, told = Engine(Counting()), list[int]()
    pairs = Pairs(engine, block_rows=side)
    before = 0
    for name, work in (
        ("XX", lambda: pairs.self_sums(x, bandwidths=[1.0], progress=told.append)),
        ("XY", lambda: pairs.cross_sums(x, y, bandwidths=[1.0], progress=told.append)),
        ("YY", lambda: pairs.self_sums(y, bandwidths=[1.0], progress=told.append, name="YY")),
    ):
        work()
        assert engine.account.result_bytes - before == costs.pass_result_bytes(job, name)
        before = engine.account.result_bytes
    assert engine.account.tasks == costs.tasks(job)
    assert sum(told) == costs.pairs(job)
    assert engine.account.shared_bytes == costs.block_bytes(job)
    assert engine.account.result_bytes == costs.result_bytes(job)


def test_a_pinned_reference_needs_no_pairs_of_its_own() -> None:
    pinned = replace(JOB, pinned=True)
    assert costs.tasks(pinned) == {"XY": 9216, "YY": 4656}
    assert costs.pairs(JOB) - costs.pairs(pinned) == 10**8 * (10**8 - 1) // 2
    assert costs.result_bytes(JOB) - costs.result_bytes(pinned) == costs.pass_result_bytes(JOB, "XX")


# Layouts


def owners(a: int, b: int, nodes: int, layout: costs.Layout) -> list[set[tuple[str, int]]]:
    """Blocks each node needs for XX, XY, YY of a and b blocks, counted task by task."""
    p, q = costs.grid(nodes)
    needed: list[set[tuple[str, int]]] = [set() for _ in range(nodes)]
    cells = [("X", i, "X", j) for i in range(a) for j in range(i, a)]
    cells += [("X", i, "Y", j) for i in range(a) for j in range(b)]
    cells += [("Y", i, "Y", j) for i in range(b) for j in range(i, b)]
    for k, (left, i, right, j) in enumerate(cells):
        node = (i % p) * q + j % q if layout == "grid" else k % nodes
        needed[node] |= {(left, i), (right, j)}
    return needed


@pytest.mark.parametrize("nodes", [1, 4, 6, 12])
def test_a_grid_s_nodes_need_the_blocks_of_their_rows_and_columns(nodes: int) -> None:
    """Counted with 48 and 24 blocks dealt out in turn, of 1,000 rows each."""
    job = Job(48_000, 24_000, 16, side=1000)
    block = 1000 * costs.row_bytes(job)
    p, q = costs.grid(nodes)
    most = max(len(needed) for needed in owners(48, 24, nodes, "grid")) * block
    # where p and q share no divisor every node has blocks that are both of its rows and of its columns
    both = 1 / (p * q) if math.gcd(p, q) == 1 else 0
    assert most <= costs.fetched_bytes(job, nodes, "grid")
    exact = costs.block_bytes(job) * (1 / p + 1 / q - both)
    assert most == pytest.approx(exact)
    assert max(len(needed) for needed in owners(48, 24, nodes, "replicate")) == 72 or nodes == 1


@pytest.mark.parametrize("nodes", [1, 3, 4, 8])
def test_a_ring_s_nodes_receive_all_of_y_and_half_of_x(nodes: int) -> None:
    """1,000 rows of each a node: it has its own two parts, and gets nodes - 1 of Y and half as many of X."""
    job = Job(1000 * nodes, 1000 * nodes, 16, side=1000)
    hops = (nodes - 1) + (nodes - 1) / 2
    own = 2
    assert costs.fetched_bytes(job, nodes, "ring") == pytest.approx((own + hops) * 1000 * costs.row_bytes(job))
    assert costs.held_bytes(job, nodes, "ring") == min(4, 2 * nodes) * 1000 * costs.row_bytes(job)


@given(st.integers(1, 10**4))
def test_a_grid_is_as_square_as_it_goes(nodes: int) -> None:
    p, q = costs.grid(nodes)
    assert p * q == nodes
    assert p <= q
    assert not any(nodes % k == 0 and k <= nodes // k for k in range(p + 1, math.isqrt(nodes) + 1))


@given(
    n=st.integers(1, 10**9), m=st.integers(1, 10**9), d=st.integers(1, 4096), nodes=st.integers(1, 100),
    side=st.sampled_from([1 << 13, 1 << 16, 1 << 20]), pinned=st.booleans(),
)  # fmt: skip
@settings(max_examples=200)
def test_layouts_need_no_more_than_all_blocks_and_fetch_what_they_hold(
    n: int, m: int, d: int, nodes: int, side: int, pinned: bool
) -> None:
    job = Job(n, m, d, side, pinned=pinned)
    every = costs.block_bytes(job)
    for layout in costs.LAYOUTS:
        assert 0 < costs.held_bytes(job, nodes, layout) <= every * (1 + 1e-12)
    assert costs.fetched_bytes(job, nodes, "grid") <= every
    assert costs.fetched_bytes(job, 1, "ring") == pytest.approx(every)
    told = costs.estimate(job, Machine(nodes))
    assert told.total >= max(told.compute, told.merge, told.read)


# Crossings: where two costs are equal


def test_rows_at_which_fetching_takes_as_long_as_computing() -> None:
    machine = Machine(8, 8)
    n = round(costs.smallest_computing(machine))
    job = Job(n, n, 1024)
    fetch = costs.fetched_bytes(job, 8, "replicate") / machine.network
    assert fetch == pytest.approx(costs.compute_seconds(job, machine), rel=0.01)


def test_rows_that_fit_a_store_and_a_driver() -> None:
    n = costs.largest_replicated(600e9, 1024)
    assert costs.block_bytes(Job(n, n, 1024)) <= 600e9 < costs.block_bytes(Job(n + 1, n + 1, 1024))
    n = costs.largest_driven(1e12, 1024)
    assert costs.driver_bytes(Job(n, n, 1024)) <= 1e12 < costs.driver_bytes(Job(n + 1, n + 1, 1024))


def test_gpus_that_one_driver_keeps_up_with() -> None:
    most = costs.most_workers(JOB, Machine(8, 8))
    assert most == pytest.approx(costs.most_workers(JOB, Machine(1, 1)))
    at = Machine(round(most))
    assert costs.merge_seconds(JOB, at) == pytest.approx(costs.compute_seconds(JOB, at), rel=0.02)


def test_a_store_too_small_brings_a_block_a_task() -> None:
    machine = Machine(8, 8, store=100e9)
    again = costs.replicate_bytes(JOB, machine)
    assert again == costs.refetched_bytes(JOB, machine) > costs.block_bytes(JOB)
    assert costs.replicate_bytes(JOB, replace(machine, store=1e12)) == costs.block_bytes(JOB)


# The page and the file beside it


@pytest.fixture
def scale_out(benchmarks_on_path: None) -> Any:  # noqa: ARG001 a fixture of a fixture
    return module("scale_out")


def on_page(lines: list[str]) -> list[str]:
    """The page's table of the same header."""
    there = PAGE.split("\n")
    assert there.count(lines[0]) == 1, f"the page has no table of {lines[0]}"
    first = there.index(lines[0])
    return there[first : next(k for k in range(first, len(there)) if not there[k].startswith("|"))]


def test_the_page_s_tables_are_the_command_s(scale_out: Any) -> None:
    for name, make in scale_out.TABLES.items():
        lines = make()
        assert on_page(lines) == lines, f"{name}: python benchmarks/scale_out.py --write"
    assert PAGE.count("\n| --- |") == len(scale_out.TABLES)


def test_the_command_writes_its_tables_in_place(
    scale_out: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale_out, "TABLES", {"one": lambda: ["| a |", "| --- |", "| 2 |"]})
    monkeypatch.setattr(scale_out, "PAGE", tmp_path / "page.md")
    scale_out.PAGE.write_text("before\n\n| a |\n| --- |\n| 1 |\n| 1 |\n\nafter\n")
    assert scale_out.main([]) == 0
    assert capsys.readouterr().out == "| a |\n| --- |\n| 2 |\n\n"
    assert "| 1 |" in scale_out.PAGE.read_text()
    assert scale_out.main(["--write"]) == 0
    assert scale_out.PAGE.read_text() == "before\n\n| a |\n| --- |\n| 2 |\n\nafter\n"


def cluster_of_the_page() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ray-cluster.yaml").read_text(encoding="utf-8"))
    return found


def test_the_cluster_file_is_one_by_ray_s_own_schema() -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations is not None
    schema = json.loads((Path(ray.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster_of_the_page(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster_of_the_page(), "workers": 8}, schema)


def test_the_cluster_file_s_store_holds_the_blocks_of_its_job() -> None:
    text = " ".join(cluster_of_the_page()["worker_start_ray_commands"])
    found = re.search(r"--object-store-memory=(\d+)", text)
    assert found is not None
    store = float(found[1])
    assert store == Machine().store > costs.block_bytes(JOB)


def test_the_cluster_file_starts_no_task_on_the_head_and_asks_for_what_exists() -> None:
    cluster = cluster_of_the_page()
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert cluster["available_node_types"]["worker"]["resources"]["GPU"] == 8
    options = set(re.findall(r"(--[a-z-]+)", " ".join(cluster["head_start_ray_commands"])))
    ray = Path(str(find_spec("ray").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    known = (ray / "scripts" / "scripts.py").read_text(encoding="utf-8")
    assert options
    assert {option for option in options if f'"{option}"' not in known} == set()


# The benchmark


def test_the_benchmark_s_short_form_holds_the_cost_model_to_local(
    benchmarks_on_path: None,  # noqa: ARG001
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark = module("engine")
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--short", "--save", "--results", str(tmp_path / "engine.json")]) == 0
    finally:
        torch.set_num_threads(threads)
        del sys.modules["engine"]
    found = json.loads((tmp_path / "engine.json").read_text())["found"]
    assert [(line["contestant"], line["tasks"]) for line in found[:4]] == [
        ("local", 4), ("local", 1), ("local", 16), ("local", 4)
    ]  # fmt: skip
    assert "predicted from other sizes" in capsys.readouterr().out


def test_the_benchmark_s_fit_finds_rates_it_was_given(benchmarks_on_path: None) -> None:  # noqa: ARG001
    benchmark = module("engine")
    lines = [
        {"contestant": "a", "dim": 8, "pairs": pairs, "tasks": tasks, "seconds": 1e-6 * pairs + 0.01 * tasks}
        for pairs, tasks in ((10**6, 4), (10**6, 16), (4 * 10**6, 16), (4 * 10**6, 64))
    ]
    benchmark.predict(lines)
    for line in lines:
        assert line["predicted_seconds"] == pytest.approx(line["seconds"])
        assert line["task_overhead_seconds"] == pytest.approx(0.01)


def test_the_kept_result_is_of_all_contestants_and_equal_counts() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    found = kept["found"]
    assert {line["contestant"] for line in found} >= {"local", "local, 2 devices", "ray, 1 node of 2 CPUs"}
    for line in found:
        job = Job(line["rows"], line["rows"], line["dim"], line["block_rows"], item=4)
        assert line["tasks"] >= costs.tasks(job)["XY"]
        if line["contestant"].startswith("ray"):
            assert line["shared_bytes"] == costs.block_bytes(job)
            assert line["result_bytes"] == costs.pass_result_bytes(job, "XY")
