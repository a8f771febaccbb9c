"""Tasks in the calling thread and in threads of their own: the same results, one clear end of trouble, nothing left.

Interleavings are forced by events and barriers. Oracle of kernels' bits: the same calls, alone, in the calling thread.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.engine import Attempt, Engine, Executor, Policy, Shared, Task, Worker
from gpudrift.engine.local import LocalExecutor, in_process
from gpudrift.engine.tasks import Ended
from gpudrift.errors import DataError, EngineError
from gpudrift.kernels import PairSums

LONG = 60  # seconds until a wait that should not be is an error
DEVICES = [(), ("cpu",), ("cpu",) * 2, ("cpu",) * 5]
SEVERAL = [devices for devices in DEVICES if len(devices) > 1]
ONE = [devices for devices in DEVICES if len(devices) < 2]


def engine_of(devices: tuple[str, ...], **policy: Any) -> Engine:
    return Engine(LocalExecutor(devices), Policy(speculate=False, **policy))


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert engine_threads() == []


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def square(_: Worker, number: int) -> int:
    return number * number


def where(_: Worker) -> str:
    return threading.current_thread().name


def meet(_: Worker, barrier: threading.Barrier) -> int:
    return barrier.wait()


def after(_: Worker, waits: threading.Event | None, tells: threading.Event | None, value: Any = None) -> Any:
    """Waits for one event, and tells the other."""
    if tells is not None:
        tells.set()
    if waits is not None:
        assert waits.wait(LONG)
    return value


def fail(_: Worker, error: BaseException) -> None:
    raise error


def call(worker: Worker, function: Callable[..., Any], *args: Any) -> Any:
    return function(worker, *args)


def tasks(function: Callable[..., Any], *args: tuple[Any, ...]) -> list[Task]:
    return [Task(place, f"task {place}", function, given) for place, given in enumerate(args)]


def attempts(*made: Task) -> list[Attempt]:
    return [Attempt(number, task, 1) for number, task in enumerate(made)]


def ends(executor: Executor, count: int) -> dict[int, Ended]:
    """So many ends, by attempt."""
    found: dict[int, Ended] = {}
    while len(found) < count:
        ended = executor.wait(LONG)
        assert ended
        found |= {end.attempt.id: end for end in ended}
    return found


def tell_when_ending(executor: Executor) -> threading.Event:
    """What is set once the threads are told to end, and before they are waited for."""
    assert isinstance(executor, LocalExecutor)
    told, clear = threading.Event(), executor._board.clear

    def cleared() -> None:
        clear()
        told.set()

    executor._board.clear = cleared  # type: ignore[method-assign]
    return told


# results


@pytest.mark.parametrize("devices", DEVICES)
def test_every_result_comes_in_its_place(devices: tuple[str, ...]) -> None:
    with engine_of(devices) as engine:
        made = tasks(square, *((number,) for number in range(40)))
        done: list[int] = []
        found = list(engine.map(made, on_done=lambda task: done.append(task.place)))
        assert found == [(task, task.place**2) for task in made]
        assert sorted(done) == list(range(40))
        assert list(engine.map([])) == []
        assert list(engine.map(tasks(square, (3,)))) == [(tasks(square, (3,))[0], 9)]  # an engine serves many maps
        assert engine.account.tasks == {"task": 41}
        assert engine.account.started == 41


@pytest.mark.parametrize("devices", SEVERAL)
def test_results_keep_their_places_when_the_first_task_ends_last(devices: tuple[str, ...]) -> None:
    last = threading.Event()
    made = [(last, None, 0), *((None, None, place) for place in range(1, 7)), (None, last, 7)]
    done: list[int] = []
    with engine_of(devices) as engine:
        found = engine.map(tasks(after, *made), on_done=lambda task: done.append(task.place))
        assert [value for _, value in found] == list(range(8))
    assert done.index(7) < done.index(0) or sorted(done[-2:]) == [0, 7]  # both may be seen at once
    assert done[0] != 0


@pytest.mark.parametrize("devices", SEVERAL)
def test_as_many_tasks_run_at_a_time_as_there_are_devices(devices: tuple[str, ...]) -> None:
    count = len(devices)
    with engine_of(devices) as engine:
        assert engine.executor.slots() == count
        barrier = threading.Barrier(count, timeout=LONG)
        assert sorted(value for _, value in engine.map(tasks(meet, *[(barrier,)] * count))) == list(range(count))
        names = {value for _, value in engine.map(tasks(where, *[()] * 20))}
        assert names <= {f"engine-{k}-cpu" for k in range(count)}


@pytest.mark.parametrize("devices", ONE)
def test_one_device_or_none_begins_no_thread(devices: tuple[str, ...]) -> None:
    with engine_of(devices) as engine:
        assert engine.executor.slots() == 1
        name = threading.current_thread().name
        assert [value for _, value in engine.map(tasks(where, *[()] * 3))] == [name] * 3
        assert engine_threads() == []


@pytest.mark.parametrize("devices", DEVICES)
def test_a_task_is_told_its_device_and_its_worker_keeps_values(devices: tuple[str, ...]) -> None:
    made: list[int] = []

    def keeps(worker: Worker) -> tuple[torch.device | None, int]:
        def make() -> int:
            made.append(len(made))
            return made[-1]

        return worker.device, worker.keep("key", 8, make)

    with engine_of(devices) as engine:
        found = [value for _, value in engine.map(tasks(call, *[(keeps,)] * 30))]
        assert {device for device, _ in found} == {torch.device("cpu") if devices else None}
        assert len(made) <= max(len(devices), 1)
        engine.close()
        assert [worker._bytes for worker in engine.executor._workers] == [0] * max(len(devices), 1)  # type: ignore[attr-defined]


def test_a_worker_keeps_no_more_than_it_may() -> None:
    with Engine(LocalExecutor(("cpu",), kept_bytes=10)) as engine:
        made: list[str] = []

        def keeps(worker: Worker, key: str) -> None:
            worker.keep(key, 6, lambda: made.append(key))

        list(engine.map(tasks(call, *((keeps, key) for key in "aabaa"))))
        assert made == ["a", "b", "a"]


@pytest.mark.parametrize("devices", DEVICES)
def test_a_shared_value_is_the_value_itself(devices: tuple[str, ...]) -> None:
    def pack(_: object) -> object:
        raise AssertionError("nothing leaves this process")

    with engine_of(devices) as engine:
        value = torch.ones(1000)
        shared = engine.share(value, pack=pack)
        assert shared.bytes == engine.account.shared_bytes == 0
        found = engine.map(tasks(call, *[(lambda _, *given: given, shared, 7)] * 4))
        for _, given in found:
            assert given[0] is value
            assert given[1] == 7
        kept = weakref.ref(value)
        del value, shared, given, found, _
        gc.collect()
        assert kept() is None  # neither the executor nor a thread at rest holds it


# kernels


def cloud(n: int, seed: int) -> Tensor:
    return torch.randn(n, 48, generator=torch.Generator().manual_seed(seed))


def block(worker: Worker, x: kernels.Prepared, y: kernels.Prepared | None) -> PairSums:
    assert worker.device in (None, torch.device("cpu"))
    if y is None:
        return kernels.self_sums(x, bandwidths=(5.0, 10.0))
    return kernels.cross_sums(x, y, bandwidths=(5.0, 10.0))


def bits(sums: PairSums) -> tuple[bytes, ...]:
    return tuple(
        tensor.contiguous().numpy().tobytes()
        for tensor in (sums.total, sums.rows, sums.columns, sums.squares, sums.blocks)
    )


@pytest.fixture(scope="module")
def blocks() -> list[tuple[kernels.Prepared, kernels.Prepared | None]]:
    """Of unequal size: some take one CPU library, some the other, one has sums that torch would split by threads."""
    clouds = [kernels.prepare(cloud(n, n)) for n in (2_064, 500, 1_300, 17, 640)]
    pairs: list[tuple[kernels.Prepared, kernels.Prepared | None]] = [(x, None) for x in clouds]
    pairs += [(x, y) for k, x in enumerate(clouds) for y in clouds[k + 1 :]]
    long = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(1))
    return [*pairs, (kernels.prepare(long), kernels.prepare(long[:30].clone()))]


@pytest.fixture(scope="module")
def alone(blocks: list[tuple[kernels.Prepared, kernels.Prepared | None]]) -> list[tuple[bytes, ...]]:
    return [bits(block(Worker(), x, y)) for x, y in blocks]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("devices", DEVICES)
def test_kernels_give_the_same_bits_on_any_number_of_devices(
    devices: tuple[str, ...],
    count: int,
    blocks: list[tuple[kernels.Prepared, kernels.Prepared | None]],
    alone: list[tuple[bytes, ...]],
    torch_threads: Callable[[int], None],
) -> None:
    torch_threads(count)
    with engine_of(devices) as engine:
        assert [bits(sums) for _, sums in engine.map(tasks(block, *blocks))] == alone
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("devices", SEVERAL)
def test_threads_compute_alone_and_change_nobody_elses_number(
    devices: tuple[str, ...], torch_threads: Callable[[int], None]
) -> None:
    torch_threads(3)
    begun, changed = threading.Event(), threading.Event()

    def before_and_after(_: Worker) -> tuple[int, int]:
        before = torch.get_num_threads()
        begun.set()
        assert changed.wait(LONG)
        return before, torch.get_num_threads()

    with engine_of(devices) as engine, ThreadPoolExecutor(1) as pool:
        executor = engine.executor
        assert executor.describe()["threads"] == 1
        made = attempts(*tasks(call, (before_and_after,), (lambda _: kernels.self_sums(kernels.prepare(cloud(9, 0))),)))
        executor.start(made[0])
        assert torch.get_num_threads() == 3
        assert pool.submit(torch.get_num_threads).result(LONG) == 3  # of a thread that begins now
        assert begun.wait(LONG)
        executor.start(made[1])
        ends(executor, 1)
        torch_threads(2)
        changed.set()
        assert ends(executor, 1)[0].value == (1, 1)
    assert torch.get_num_threads() == 2


# trouble


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("error", [ValueError("wrong"), DataError("no rows", where="a.parquet"), MemoryError()])
def test_an_error_is_raised_as_it_is_after_one_try(devices: tuple[str, ...], error: Exception) -> None:
    with engine_of(devices, attempts=4) as engine:
        made = [*tasks(square, (1,), (2,)), Task(2, "task 2", fail, (error,)), Task(3, "task 3", square, (3,))]
        with pytest.raises(type(error)) as caught:
            list(engine.map(made))
        assert caught.value is error
        assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert engine.account.started <= 4
        assert [value for _, value in engine.map(tasks(square, (5,), (6,)))] == [25, 36]


@pytest.mark.parametrize("devices", DEVICES)
def test_a_failure_names_the_device(devices: tuple[str, ...]) -> None:
    executor = LocalExecutor(devices)
    error = ValueError("wrong")
    executor.start(attempts(Task(0, "task", fail, (error,)))[0])
    failure = ends(executor, 1)[0].failure
    assert failure is not None
    assert (failure.kind, failure.error, failure.where) == ("fatal", error, "cpu" if devices else "")
    executor.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("devices", DEVICES)
def test_what_ends_a_program_passes_through(devices: tuple[str, ...], error: type[BaseException]) -> None:
    ran: list[int] = []

    def note(_: Worker, place: int) -> None:
        ran.append(place)

    with engine_of(devices) as engine:
        made = [Task(0, "task 0", fail, (error("stop"),)), *tasks(call, *((note, k) for k in range(20)))[1:]]
        with pytest.raises(error, match="stop"):
            list(engine.map(made))
        assert len(ran) < 19
        assert [value for _, value in engine.map(tasks(square, (5,)))] == [25]
    assert engine_threads() == []


@pytest.mark.parametrize("devices", SEVERAL)
def test_an_interrupt_while_waiting_ends_the_threads_and_what_they_would_still_do(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, ran = threading.Event(), threading.Event(), []

    def note(_: Worker) -> None:
        ran.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(LONG)

    def interrupted(_: float | None) -> None:
        assert begun.wait(LONG)
        go_on.set()
        raise KeyboardInterrupt

    engine = engine_of(devices)
    with monkeypatch.context() as patched:
        patched.setattr(engine.executor._board, "ended", interrupted)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            list(engine.map(tasks(call, *[(note,)] * 50)))
        assert engine_threads() == []
    assert 1 <= len(ran) <= len(devices)
    assert [value for _, value in engine.map(tasks(square, (5,), (6,)))] == [25, 36]  # it can go on
    engine.close()


@pytest.mark.parametrize("devices", SEVERAL)
def test_a_signal_to_the_caller_is_raised_there(devices: tuple[str, ...]) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(_: Worker) -> None:
        signal.pthread_kill(main, signal.SIGINT)

    def work(engine: Engine) -> None:
        with engine:
            assert len(list(engine.map(tasks(square, (1,))))) == 1  # the threads have begun
            ending = tell_when_ending(engine.executor)
            list(engine.map(tasks(after, (ending, None)) + tasks(call, (interrupt,), (interrupt,))[1:]))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work(engine_of(devices))
    finally:
        signal.signal(signal.SIGINT, before)


# stopping


@pytest.mark.parametrize("devices", DEVICES)
def test_a_map_closed_early_drops_what_has_not_begun(devices: tuple[str, ...]) -> None:
    ran: list[int] = []

    def note(_: Worker, place: int) -> int:
        ran.append(place)
        return place

    with engine_of(devices, ahead=2) as engine:
        found = engine.map(tasks(call, *((note, place) for place in range(1000))))
        assert next(found)[1] == 0
        found.close()
        assert [value for _, value in engine.map(tasks(square, (5,)))] == [25]
    assert len(ran) <= 4 * max(len(devices), 1)
    assert len(set(ran)) == len(ran)


def test_cancelled_attempts_end_in_no_wait() -> None:
    begun, go_on = [threading.Event(), threading.Event()], threading.Event()
    ran: list[int] = []

    def note(_: Worker, place: int) -> int:
        ran.append(place)
        return place

    executor = LocalExecutor(("cpu", "cpu"))
    running = [Task(place, f"task {place}", after, (go_on, begun[place], place)) for place in range(2)]
    waiting = [Task(place, f"task {place}", call, (note, place)) for place in range(2, 5)]
    made = attempts(*running, *waiting)
    for attempt in made:
        executor.start(attempt)
    for event in begun:
        assert event.wait(LONG)
    executor.cancel([made[0], made[3]])  # one that runs, one that waits
    executor.cancel([made[0]])
    go_on.set()
    assert {end.value for end in ends(executor, 3).values()} == {1, 2, 4}
    assert ran == [2, 4]
    assert executor.wait(None) == []  # nothing is left that could end
    executor.close()


def test_an_end_nobody_has_seen_can_be_cancelled() -> None:
    executor, noted = LocalExecutor(("cpu", "cpu")), threading.Semaphore(0)
    end = executor._board.end
    executor._board.end = lambda ended: (end(ended), noted.release())[0]  # type: ignore[method-assign, func-returns-value]
    made = attempts(*tasks(square, (1,), (2,)))
    for attempt in made:
        executor.start(attempt)
    for _ in made:
        assert noted.acquire(timeout=LONG)
    executor.cancel(made[:1])
    assert [found.value for found in executor.wait(0)] == [4]
    assert executor.wait(0) == []
    executor.close()


@pytest.mark.parametrize("devices", DEVICES)
def test_waiting_for_nothing_returns_at_once(devices: tuple[str, ...]) -> None:
    executor = LocalExecutor(devices)
    assert executor.wait(None) == []
    executor.close()
    assert executor.wait(None) == []


def test_waiting_has_an_end() -> None:
    executor, go_on = LocalExecutor(("cpu", "cpu")), threading.Event()
    executor.start(attempts(Task(0, "task", after, (go_on, None)))[0])
    assert executor.wait(1e-3) == []
    go_on.set()
    assert len(ends(executor, 1)) == 1
    executor.close()


@pytest.mark.parametrize("devices", DEVICES)
def test_a_closed_engine_takes_no_task(devices: tuple[str, ...]) -> None:
    engine = engine_of(devices)
    assert [value for _, value in engine.map(tasks(square, (3,)))] == [9]
    engine.close()
    engine.close()
    assert engine_threads() == []
    with pytest.raises(EngineError, match="closed"):
        list(engine.map(tasks(square, (3,))))
    engine.close()


@pytest.mark.parametrize("devices", DEVICES)
def test_an_engine_that_did_nothing_can_be_closed(devices: tuple[str, ...]) -> None:
    engine_of(devices).close()


def test_close_waits_for_tasks_that_run_and_drops_the_others() -> None:
    begun, ready, ran = threading.Event(), threading.Event(), []

    def slow(_: Worker) -> None:
        begun.set()
        assert ready.wait(LONG)
        assert ending.wait(LONG)
        ran.append("slow")

    executor = LocalExecutor(("cpu", "cpu"))
    for attempt in attempts(*tasks(call, *[(slow,)] * 9)):
        executor.start(attempt)
    assert begun.wait(LONG)
    ending = tell_when_ending(executor)
    ready.set()
    executor.close()
    assert 1 <= len(ran) <= 2
    assert executor.wait(None) == []


@pytest.mark.parametrize("devices", SEVERAL)
def test_an_engine_nobody_holds_ends_its_threads(devices: tuple[str, ...]) -> None:
    engine = engine_of(devices)
    assert len(list(engine.map(tasks(square, (3,), (4,))))) == 2
    assert len(engine_threads()) == len(devices)
    del engine
    gc.collect()
    assert engine_threads() == []


def test_a_program_that_closes_nothing_ends() -> None:
    program = (
        "from gpudrift.engine import Engine, Task\n"
        "from gpudrift.engine.local import LocalExecutor\n"
        "def one(worker): return 1\n"
        "engine = Engine(LocalExecutor(['cpu', 'cpu']))\n"
        "print(sum(value for _, value in engine.map(Task(k, 'task', one) for k in range(9))))\n"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "9\n", "")


# what it says of itself


def test_in_process_is_one_worker_without_a_device() -> None:
    engine = in_process()
    assert (engine.executor.kind, engine.remote, engine.executor.slots()) == ("local", False, 1)
    assert engine.executor.share("key", 5) == Shared("key", 5)
    assert engine.executor.measures() == {}


@pytest.mark.parametrize("devices", DEVICES)
def test_it_describes_its_devices(devices: tuple[str, ...], torch_threads: Callable[[int], None]) -> None:
    torch_threads(3)
    executor = LocalExecutor(devices)
    assert executor.describe() == {
        "devices": [{"device": "cpu"}] * len(devices),
        "workers": max(len(devices), 1),
        "threads": 1 if len(devices) > 1 else 3,
    }
    assert executor.now() <= executor.now()
