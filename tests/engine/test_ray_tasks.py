"""Tasks on a real Ray cluster of three nodes: values, placing, devices, faults of workers and nodes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray_cluster as rc
import torch

from gpudrift.engine import Attempt, Engine, Policy, Task, Worker
from gpudrift.engine.ray import RayExecutor
from gpudrift.engine.wire import pack
from gpudrift.errors import DataError, EngineError
from gpudrift.kernels import prepare

POLICY = Policy(pause=0.01)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with rc.cluster() as found, rc.connected(found):
        yield found


@pytest.fixture
def engine(cluster: Any) -> Iterator[Engine]:  # noqa: ARG001
    with make() as found:
        yield found


def make(policy: Policy = POLICY, **settings: Any) -> Engine:
    return Engine(RayExecutor(**{"device": "cpu", **settings}), policy)


def rows(count: int = 1000) -> Any:
    return np.random.default_rng(7).normal(size=(count, 8))


def expected(count: int, values: Any | None = None) -> list[rc.Sums]:
    return [rc.sums(Worker(), rows() if values is None else values, place) for place in range(count)]


def assert_same(found: list[Any], wanted: list[rc.Sums]) -> None:
    assert [value.total for value in found] == [value.total for value in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.columns, other.columns)


def values(engine: Engine, tasks: list[Task]) -> list[Any]:
    found = list(engine.map(tasks))
    assert [task.place for task, _ in found] == list(range(len(tasks)))
    return [value for _, value in found]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    with make(workers=workers) as engine:
        assert engine.executor.slots() == min(workers, 3)
        assert_same(values(engine, rc.sums_tasks(engine.share(rows()), 11)), expected(11))


def test_results_come_in_order_though_tasks_end_in_another(engine: Engine, tmp_path: Path) -> None:
    marks = [str(tmp_path / str(k)) for k in range(3)]
    tasks = [
        Task(0, "XY 0,0", rc.after, (marks[1], marks[0], 10)),
        Task(1, "XY 0,1", rc.after, (marks[2], marks[1], 11)),
        Task(2, "XY 0,2", rc.after, (None, marks[2], 12)),
    ]
    ended: list[int] = []
    found = [value for _, value in engine.map(tasks, on_done=lambda task: ended.append(task.place))]
    assert found == [10, 11, 12]
    assert sorted(ended) == [0, 1, 2]


@pytest.mark.usefixtures("cluster")
def test_a_task_gets_its_name_threads_and_one_worker_a_process() -> None:
    with make(cpus_per_task=0.5, workers=1) as engine:
        found = values(engine, [Task(k, f"XY 3,{k}", rc.seen) for k in range(6)])
    assert [each["name"] for each in found] == [f"XY 3,{k}" for k in range(6)]
    assert {each["threads"] for each in found} == {1}
    assert {each["device"] for each in found} == {"cpu"}
    assert len({each["pid"] for each in found}) == len({(each["pid"], each["worker"]) for each in found}) < 6


def test_a_pretended_gpu_places_a_task_and_leaves_the_device_alone(cluster: Any) -> None:
    with make(gpus_per_task=1.0) as engine:
        assert engine.executor.slots() == 2
        found = values(engine, [Task(k, f"XX 0,{k}", rc.seen) for k in range(4)])
    assert {each["device"] for each in found} == {"cpu"}
    assert {each["gpus"] for each in found} == {"0"}
    assert cluster.head_node.node_id not in {each["node"] for each in found}
    with make(gpus_per_task=0.5, cpus_per_task=0.25) as engine:
        assert engine.executor.slots() == 4
    with make(cpus_per_task=0.0) as engine:
        assert engine.executor.slots() == 3


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("gpus", [None, 0.0])
def test_a_worker_without_cuda_is_told_of(gpus: float | None) -> None:
    with make(device="cuda", gpus_per_task=gpus) as engine, pytest.raises(EngineError, match="sees no CUDA device"):
        values(engine, [Task(0, "XX 0,0", rc.seen)])


@pytest.mark.usefixtures("cluster")
def test_a_task_that_fits_no_node_is_refused_at_once() -> None:
    with pytest.raises(EngineError, match="no node of the Ray cluster has room for a task of 2 CPUs") as caught:
        make(cpus_per_task=2.0)
    assert caught.value.field == "engine.cpus_per_task"
    assert caught.value.allowed == "nodes with 1 CPUs and 0 GPUs; 1 CPUs and 1 GPUs"
    with pytest.raises(EngineError, match="at most 1, or a whole number"):
        make(gpus_per_task=1.5)
    with pytest.raises(EngineError, match="connected to Ray already"):
        make(ship_code=True)


def test_a_task_starts_where_its_arguments_lie(cluster: Any) -> None:
    with make(workers=1) as engine:
        for _ in range(3):
            shared = engine.share(np.zeros(1_000_000))
            assert values(engine, [Task(0, "XX 0,0", rc.seen, (shared,))])[0]["node"] == cluster.head_node.node_id


def test_results_are_copies_and_arguments_read_only(engine: Engine) -> None:
    shared = engine.share(rows())
    assert values(engine, [Task(0, "XX 0,0", rc.written, (shared,))]) == [False]
    large, small = values(engine, [Task(0, "XX 0,0", rc.makes, (1_000_000,)), Task(1, "XX 0,1", rc.makes, (5,))])
    assert large.flags.writeable
    assert small.flags.writeable
    assert large.flags.owndata
    assert engine.account.result_bytes >= large.nbytes


def test_the_store_lets_go_of_results_and_of_shared_values(engine: Engine) -> None:
    import ray

    def free() -> float:
        return float(ray.available_resources()["object_store_memory"])

    rc.until(lambda: free() == 3 * rc.STORE)
    shared = engine.share(np.zeros(1_000_000))
    assert shared.bytes == 8_000_000
    rc.until(lambda: free() <= 3 * rc.STORE - 8_000_000)
    kept = values(engine, [Task(k, f"XX 0,{k}", rc.makes, (1_000_000,)) for k in range(3)])
    rc.until(lambda: engine.executor.measures()["object_store_peak_bytes"] >= 8_000_000)
    del shared
    rc.until(lambda: free() == 3 * rc.STORE)
    assert len(kept) == 3


def test_what_is_told_is_plain_and_names_no_host(engine: Engine) -> None:
    values(engine, rc.sums_tasks(engine.share(rows()), 2))
    told = engine.executor.describe()
    assert {name: told[name] for name in ("nodes", "cpus", "gpus", "address", "object_store_bytes")} == {
        "nodes": 3,
        "cpus": 3.0,
        "gpus": 2.0,
        "address": "initialised",
        "object_store_bytes": 3 * rc.STORE,
    }
    assert json.loads(json.dumps(told)) == told
    measures = engine.executor.measures()
    assert measures["spilled_bytes"] == 0.0
    assert measures["waiting_seconds"] > 0.0


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_worker_that_dies_is_replaced(engine: Engine, tmp_path: Path, how: str) -> None:
    shared = engine.share(rows())
    tasks = rc.sums_tasks(shared, 4)
    tasks[2] = Task(2, "XY 0,2", rc.dies_once, (str(tmp_path / "mark"), how, shared, 2))
    assert_same(values(engine, tasks), expected(4))
    assert (engine.account.lost, engine.account.errors, engine.account.started) == (1, 0, 5)


def test_a_task_that_raises_once_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    assert values(engine, [Task(0, "scan 0", rc.raises_once, (str(tmp_path / "mark"), 5))]) == [5]
    assert (engine.account.lost, engine.account.errors) == (0, 1)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("function", "said"), [(rc.raises, "ValueError: no such thing"), (rc.dies, "WorkerCrashedError")]
)
def test_a_task_that_always_fails_ends_the_run(function: Any, said: str) -> None:
    with make(Policy(attempts=3, pause=0.01)) as engine:
        with pytest.raises(EngineError, match="the task XX 1,1 failed 3 times; the run is given up") as caught:
            values(engine, [Task(0, "XX 0,0", rc.seen), Task(1, "XX 1,1", function)])
        assert said in str(caught.value)
        assert values(engine, [Task(0, "XX 0,0", rc.seen)])  # what was left running does no harm


def test_an_error_of_ours_ends_the_run_as_it_is(engine: Engine) -> None:
    with pytest.raises(DataError) as caught:
        values(engine, [Task(0, "scan 0", rc.refuses)])
    error = caught.value
    assert type(error) is DataError
    assert (error.message, error.field, error.where) == ("a bad row", "source.uri", "a.parquet")
    assert (error.value, error.allowed, error.exit_code) == ({"row": 3}, ["good rows"], 30)
    assert engine.account.started == 1


@pytest.mark.usefixtures("cluster")
def test_a_slow_node_is_overtaken_and_its_attempt_stopped(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with make(Policy(slow=3.0, grace=0.3, pause=0.01)) as engine:
        shared = engine.share(rows())
        tasks = rc.sums_tasks(shared, 6)
        tasks[1] = Task(1, "XY 0,1", rc.hangs_once, (str(mark), shared, 1))
        assert_same(values(engine, tasks), expected(6))
        assert engine.account.speculated >= 1
        assert engine.account.lost == 0
        _, pid = rc.noted(mark)
        rc.until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_cancelled_attempt_ends_in_no_wait(engine: Engine, tmp_path: Path) -> None:
    executor = engine.executor
    mark = tmp_path / "mark"
    hanging = Attempt(900, Task(0, "XX 0,0", rc.hangs_once, (str(mark), rows(), 0)), 1)
    executor.start(hanging)
    rc.noted(mark)
    executor.cancel([hanging])
    assert list(executor.wait(0.2)) == []
    executor.start(Attempt(901, Task(0, "XX 0,0", rc.seen), 1))
    ended = wait_for(executor)
    assert [each.attempt.id for each in ended] == [901]
    assert ended[0].seconds is not None


def wait_for(executor: Any) -> list[Any]:
    found: list[Any] = []
    rc.until(lambda: found.extend(executor.wait(1.0)) or found)
    return found


def test_a_node_lost_with_a_task_and_its_arguments(cluster: Any, tmp_path: Path) -> None:
    """Arguments of 8 MB lie in the lost node's store too."""
    mark, many = tmp_path / "mark", rows(125_000)
    with make(gpus_per_task=1.0) as engine:
        shared = engine.share(many)
        tasks = rc.sums_tasks(shared, 5)
        tasks[3] = Task(3, "XY 0,3", rc.hangs_once, (str(mark), shared, 3))
        lost: list[Any] = []

        def lose() -> None:
            node, _ = rc.noted(mark)
            lost.extend(each for each in cluster.worker_nodes if each.node_id == node)
            cluster.remove_node(lost[0], allow_graceful=False)

        thread = threading.Thread(target=lose)
        thread.start()
        assert_same(values(engine, tasks), expected(5, many))
        thread.join()
        assert engine.account.lost >= 1
        rc.until(lambda: engine.executor.slots() == 1)
        rc.add_node(cluster)
        rc.until(lambda: engine.executor.slots() == 2)


def test_a_node_lost_with_a_result_nobody_has_fetched(cluster: Any, tmp_path: Path) -> None:
    import ray

    mark = tmp_path / "mark"
    with make(gpus_per_task=1.0) as engine:
        executor = engine.executor
        assert isinstance(executor, RayExecutor)
        executor.start(Attempt(800, Task(0, "XX 0,0", rc.makes, (1_000_000, str(mark))), 1))
        ref = next(iter(executor._running))
        assert ray.wait([ref], fetch_local=False, timeout=60)[0] == [ref]
        node, _ = rc.noted(mark)
        cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == node), allow_graceful=False)
        (ended,) = wait_for(executor)
        assert ended.failure is not None
        assert ended.failure.kind == "lost"
        rc.add_node(cluster)
        assert values(engine, [Task(0, "XX 0,0", rc.makes, (10,))])[0].tolist() == [3.0] * 10


def test_a_packed_cloud_is_read_where_it_lies_without_a_warning(engine: Engine) -> None:
    cloud = prepare(torch.from_numpy(rows(3000)).float())
    shared = engine.share(cloud, pack=pack)
    assert values(engine, [Task(0, "XX 0,0", rc.unpacked, (shared, shared.key))]) == [float(cloud.rows.double().sum())]
