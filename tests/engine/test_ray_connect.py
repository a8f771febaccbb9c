"""Connections of the executor's own, a full store, and a head that is lost: clusters of one or two nodes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray_cluster as rc

from gpudrift.engine import Engine, Policy, Task, Worker
from gpudrift.engine.ray import RayExecutor
from gpudrift.errors import EngineError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


@pytest.fixture(scope="module")
def spilling() -> Iterator[Any]:
    """One node, whose store holds 80 MB; Ray takes a disk for full above a share, 95% without this."""
    with rc.cluster(nodes=0, head={"_system_config": {"local_fs_capacity_threshold": 1.0}}) as found:
        yield found


def run(executor: RayExecutor, tasks: list[Task]) -> list[Any]:
    with Engine(executor, Policy(pause=0.01)) as engine:
        return [value for _, value in engine.map(tasks)]


def test_a_connection_is_made_quietly_and_ended(
    spilling: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", spilling.address)
    before, level = signal.getsignal(signal.SIGTERM), logging.getLogger("ray").level
    executor = RayExecutor(device="cpu")
    assert executor.describe()["address"] == "RAY_ADDRESS"
    assert signal.getsignal(signal.SIGTERM) is before
    assert ray.get_runtime_context().namespace == "gpudrift"
    assert run(executor, [Task(0, "XX 0,0", rc.seen)])[0]["name"] == "XX 0,0"
    assert not ray.is_initialized()
    executor.close()
    assert logging.getLogger("ray").level == level
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_other_versions_in_the_cluster_are_told_of(spilling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("1.0.0", "3.9.0"))
    with pytest.raises(EngineError, match="Ray or Python has another version here than in the cluster") as caught:
        RayExecutor(device="cpu", address=spilling.address)
    assert "1.0.0" in str(caught.value)
    assert not ray.is_initialized()


def test_shared_values_several_times_the_store_are_spilled(spilling: Any) -> None:
    blocks = [np.random.default_rng(k).normal(size=(250_000, 8)) for k in range(20)]  # 16 MB each, 320 MB
    with Engine(RayExecutor(device="cpu", address=spilling.address), Policy()) as engine:
        shared = [engine.share(block) for block in blocks]
        assert engine.account.shared_bytes == 320_000_000
        found = [value for _, value in engine.map(Task(k, f"XX {k}", rc.sums, (s, k)) for k, s in enumerate(shared))]
        rc.until(lambda: (engine.executor.wait(0.0), engine.executor.measures()["spilled_bytes"])[1] > 160_000_000)
    for place, value in enumerate(found):
        wanted = rc.sums(Worker(), blocks[place], place)
        assert value.total == wanted.total
        np.testing.assert_array_equal(value.columns, wanted.columns)


def test_code_is_sent_to_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Ray's workers look for modules where the driver was started
    with rc.cluster(nodes=0, code=False) as found:
        executor = RayExecutor(device="cpu", address=found.address, ship_code=True)
        (where,) = run(executor, [Task(0, "XX 0", rc.code)])
    assert "py_modules" in where


def test_a_disk_without_room_is_told_of() -> None:
    full = {"_system_config": {"local_fs_capacity_threshold": 1e-6}}
    with (
        rc.cluster(nodes=0, head=full) as found,
        Engine(RayExecutor(device="cpu", address=found.address), Policy()) as engine,
    ):
        with pytest.raises(EngineError, match="no room for 16,000,000 bytes in Ray's object store") as caught:
            [engine.share(value) for value in [np.zeros(2_000_000)] * 20]
        assert "this node's has 80,000,000" in str(caught.value)
        assert "--object-spilling-directory" in str(caught.value)
        with pytest.raises(EngineError, match="no room in Ray's object store"):
            list(engine.map([Task(0, "XX 0", rc.makes, (15_000_000,))]))
        assert engine.account.started == 1


def test_a_ray_of_its_own_on_this_machine() -> None:
    executor = RayExecutor(device="cpu", cpus_per_task=float(os.cpu_count() or 1))
    assert executor.describe()["address"] == "local"
    assert executor.slots() == 1
    executor.close()
    assert not ray.is_initialized()
    assert "RAY_AUTH_MODE" not in os.environ
    with rc.cluster(nodes=1) as found:  # one without tokens, whose nodes ask this process for its objects
        executor = RayExecutor(device="cpu", address=found.address, gpus_per_task=1.0)
        with Engine(executor, Policy()) as engine:
            shared = engine.share(np.ones((125_000, 8)))
            assert [value.total for _, value in engine.map([Task(0, "XX 0,0", rc.sums, (shared, 0))])] == [1e6]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gcs", "the head of the Ray cluster has not answered for 3 s; the run is given up and no score is written"),
        ("silent", "the head of the Ray cluster has not answered for 3 s"),
        ("node", "the Ray node of this machine is gone; the run is given up and no score is written"),
    ],
)
def test_a_head_lost_in_mid_run(how: str, said: str) -> None:
    root = str(HERE.parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "ray_head.py"), how, "3"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert said in told["error"]
    assert "finished blocks are taken from disk" in told["error"]


def test_ray_does_not_take_sigterm_while_it_starts(spilling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = signal.getsignal(signal.SIGTERM), []
    connect = ray._private.worker.connect

    def noted(*args: Any, **kwargs: Any) -> Any:
        found.append(signal.getsignal(signal.SIGTERM))
        return connect(*args, **kwargs)

    monkeypatch.setattr("ray._private.worker.connect", noted)
    RayExecutor(device="cpu", address=spilling.address).close()
    assert found == [before]


def test_an_interrupt_while_ray_starts_leaves_no_connection(spilling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    level, handler = logging.getLogger("ray").level, signal.getsignal(signal.SIGTERM)
    init = ray.init

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        init(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RayExecutor(device="cpu", address=spilling.address)
    assert not ray.is_initialized()
    assert logging.getLogger("ray").level == level
    assert signal.getsignal(signal.SIGTERM) is handler
