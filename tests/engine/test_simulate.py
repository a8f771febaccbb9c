"""The simulated cluster: its clock, links, stores, failures; and a small case of the documentation's simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from benchmark_modules import benchmarks_on_path, module

from gpudrift.engine import Attempt, Ended, Engine, Failure, Policy, Task, Worker
from gpudrift.engine.costs import Job, Machine, compute_seconds, result_bytes
from gpudrift.engine.simulate import Node, SimulatedExecutor, finish
from gpudrift.errors import EngineError

__all__ = ["benchmarks_on_path"]  # a fixture


def nothing(worker: Worker) -> None:
    """What tasks here would do."""


def attempt(place: int, *args: Any, number: int = 1) -> Attempt:
    return Attempt(place, Task(place, f"XY {place}", nothing, args), number)


def cluster(nodes: Sequence[Node], seconds: float = 1.0, **options: Any) -> SimulatedExecutor:
    return SimulatedExecutor(nodes, lambda *_: seconds, **options)


def ends(executor: SimulatedExecutor, *attempts: Attempt) -> list[tuple[int, float]]:
    """(place, time) of each as they end."""
    for one in attempts:
        executor.start(one)
    found: list[tuple[int, float]] = []
    while len(found) < len(attempts):
        told = executor.wait(None)
        assert told != []
        found += [(ended.attempt.task.place, executor.now()) for ended in told]
    return found


def failed(ended: Ended) -> str:
    assert ended.failure is not None
    return ended.failure.where


def test_workers_compute_side_by_side_and_the_rest_waits() -> None:
    executor = cluster([Node(2), Node(slow=2.5)])
    assert executor.slots() == 3
    assert ends(executor, *map(attempt, range(4))) == [(0, 1.0), (1, 1.0), (3, 2.0), (2, 2.5)]


def test_seconds_depend_on_attempt_and_node() -> None:
    executor = SimulatedExecutor([Node(), Node()], lambda one, node: one.number + 10.0 * node)
    assert ends(executor, attempt(0), attempt(1, number=3)) == [(0, 1.0), (1, 13.0)]


def test_a_wait_ends_when_its_time_is_over() -> None:
    executor = cluster([Node()])
    executor.start(attempt(0))
    assert executor.wait(0.25) == []
    assert executor.now() == 0.25
    (ended,) = executor.wait(5.0)
    assert (executor.now(), ended.value, ended.seconds) == (1.0, 0, 1.0)
    assert executor.wait(2.0) == []
    assert executor.now() == 3.0


def test_what_ends_while_the_driver_works_is_told_afterwards() -> None:
    executor = cluster([Node()])
    executor.start(attempt(0))
    executor.work(10.0)
    assert [ended.attempt.id for ended in executor.wait(0.0)] == [0]
    assert executor.now() == 10.0


def test_a_value_is_fetched_once_a_node_and_over_its_link_one_after_another() -> None:
    executor = cluster([Node(2, bandwidth=10.0)])
    a, b = executor.share("a", 20), executor.share("b", 10)
    found = ends(executor, attempt(0, a, "text"), attempt(1, a, b), attempt(2, b))
    assert found == [(0, 3.0), (1, 4.0), (2, 4.0)]  # a is there at 2, b at 3
    assert executor.fetched == [30.0]


def test_a_task_goes_where_its_values_are() -> None:
    executor = cluster([Node(bandwidth=10.0), Node(bandwidth=10.0)])
    a, b = executor.share("a", 20), executor.share("b", 20)
    ends(executor, attempt(0, a), attempt(1, b))
    ends(executor, attempt(2, b), attempt(3, a))
    assert executor.fetched == [20.0, 20.0]


def test_the_first_copy_leaves_the_driver_over_its_link() -> None:
    executor = cluster([Node(bandwidth=10.0)] * 3, driver_bandwidth=5.0)
    a, b = executor.share("a", 20), executor.share("b", 20)
    assert ends(executor, attempt(0, a), attempt(1, b), attempt(2, a)) == [(2, 3.0), (0, 5.0), (1, 9.0)]


def test_values_used_longest_ago_make_room() -> None:
    executor = cluster([Node(bandwidth=10.0, store=45.0)])
    a, b, c = (executor.share(name, 20) for name in "abc")
    for place, value in enumerate([a, b, a, c, a, b]):  # c drives out b, the last b drives out c
        ends(executor, attempt(place, value))
    assert executor.fetched == [80.0]


def test_results_come_in_over_the_driver_s_link() -> None:
    executor = cluster([Node(3)], result_bytes=lambda task: 10 * (task.place + 1), driver_bandwidth=10.0)
    assert ends(executor, *map(attempt, range(3))) == [(0, 2.0), (1, 4.0), (2, 7.0)]


def test_outcomes_are_values_or_failures() -> None:
    broken = Failure("error", RuntimeError("no"))
    executor = cluster([Node(2)], outcome=lambda one: broken if one.task.place else "fine")
    executor.start(attempt(0))
    executor.start(attempt(1))
    told = [*executor.wait(None), *executor.wait(None)]
    assert [(ended.value, ended.failure) for ended in told] == [("fine", None), (None, broken)]


def test_a_lost_node_is_noticed_later_and_takes_tasks_and_values_along() -> None:
    down = Node(bandwidth=10.0, down=((5.0, 100.0),))
    executor = cluster([down, Node(slow=99.0)], seconds=10.0, notice=10.0)
    a = executor.share("a", 10)
    executor.start(attempt(0, a))
    assert executor.wait(14.9) == []
    assert executor.slots() == 2  # nobody knows yet
    executor.start(attempt(1))
    executor.start(attempt(2))  # of two idle workers one is gone: it is swallowed too
    (ended,) = executor.wait(0.5)
    assert (executor.now(), ended.attempt.id, failed(ended), executor.slots()) == (15.0, 0, "node 0", 1)
    executor.cancel([attempt(1), attempt(2)])
    executor.wait(90.0)
    assert executor.slots() == 2
    assert ends(executor, attempt(3, a)) == [(3, 116.0)]
    assert executor.fetched[0] == 20.0


def test_a_node_back_before_it_was_missed_has_lost_its_tasks_all_the_same() -> None:
    executor = cluster([Node(down=((0.5, 2.0),))], notice=10.0)
    executor.start(attempt(0))
    (ended,) = executor.wait(None)
    assert (executor.now(), failed(ended)) == (2.0, "node 0")
    assert ends(executor, attempt(1)) == [(1, 3.0)]
    executor.work(20.0)
    assert executor.slots() == 1  # the notice that came meanwhile was of no use
    executor.start(attempt(3))
    assert [ended.value for ended in executor.wait(None)] == [3]


def test_a_cancelled_attempt_ends_in_no_wait_and_frees_its_worker() -> None:
    executor = cluster([Node()])
    first, second = attempt(0), attempt(1)
    executor.start(first)
    executor.start(second)
    executor.work(0.5)
    executor.cancel([first, attempt(77)])
    assert [ended.attempt for ended in executor.wait(None)] == [second]
    assert executor.now() == 1.5
    assert executor.wait(9.0) == []


def test_no_node_left_is_an_error_after_a_minute() -> None:
    executor = cluster([Node(down=((2.5, math.inf),))])
    with pytest.raises(EngineError, match="no worker"):
        list(Engine(executor).map(Task(k, f"XY {k}", nothing) for k in range(9)))
    assert 72.5 < executor.now() < 75.0


def test_measures_and_description_are_plain_values() -> None:
    executor = cluster([Node(2, 10.0)])
    ends(executor, attempt(0, executor.share("a", 5)))
    assert executor.measures() == {"fetched_bytes": 5.0, "busy_seconds": 1.0}
    assert executor.describe() == {"nodes": 1, "workers": 2}
    executor.close()
    executor.close()
    assert executor.wait(1.0) == []


def test_the_driver_s_adding_up_bounds_the_run() -> None:
    executor = cluster([Node(10)])
    tasks = [Task(k, f"XY {k}", nothing) for k in range(40)]
    assert finish(Engine(executor).map(tasks), executor, lambda _: 0.5) == pytest.approx(1.0 + 40 * 0.5)


# The simulation of docs/scale-out.md


SMALL = Job(20 * 1024, 12 * 1024, 64, side=1024)
MACHINE = Machine(nodes=4, gpus=2, gemm=2 * 64 * 1024**2 / 0.66)  # a second for two whole blocks


@pytest.fixture
def scale_out(benchmarks_on_path: None) -> Any:  # noqa: ARG001 a fixture of a fixture
    return module("scale_out")


def test_a_simulated_job_has_the_cost_model_s_tasks_results_and_least_time(scale_out: Any) -> None:
    found = scale_out.simulate(SMALL, MACHINE, scale_out.Trouble("none"))
    assert found.account.tasks == {"XX": 210, "XY": 240, "YY": 78}
    assert found.account.result_bytes == result_bytes(SMALL)
    assert found.ideal == pytest.approx(compute_seconds(SMALL, MACHINE))
    assert found.ideal < found.seconds < 1.05 * found.ideal
    assert found.account.started == 528


def test_simulated_trouble_costs_time_and_second_attempts_save_some(scale_out: Any) -> None:
    def seconds(**trouble: Any) -> float:
        found: float = scale_out.simulate(SMALL, MACHINE, scale_out.Trouble("", **trouble)).seconds
        return found

    calm = seconds()
    slow = {"share": 0.02, "times": 60.0}
    assert calm < seconds(**slow) < 0.8 * seconds(**slow, speculate=False)
    assert calm < seconds(slow=3.0) < 1.5 * calm
    assert calm < seconds(mean_hours=0.005, away=20.0)


def test_a_simulation_is_the_same_for_a_seed(scale_out: Any) -> None:
    trouble = scale_out.Trouble("", share=0.05, mean_hours=0.01)
    first, again, other = (scale_out.simulate(SMALL, MACHINE, trouble, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_more_results_may_wait_where_the_first_is_late(scale_out: Any) -> None:
    trouble = scale_out.Trouble("", share=0.02, times=30.0)
    few, many = (
        scale_out.simulate(SMALL, MACHINE, trouble, policy=Policy(ahead=ahead, patience=3600.0)) for ahead in (1, 8)
    )
    assert many.seconds < few.seconds


def test_a_cluster_that_is_never_there_is_one_error(scale_out: Any) -> None:
    trouble = scale_out.Trouble("", mean_hours=1e-9, away=1e9)
    with pytest.raises(EngineError, match="no worker"):
        scale_out.simulate(replace(SMALL, n=10**6, m=10**6), replace(MACHINE, gemm=1e9), trouble)
