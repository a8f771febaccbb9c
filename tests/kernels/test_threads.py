"""No bit depends on torch's threads, on what other threads compute at the same time, nor on where a cloud lies.

Oracle: the same call, alone, with torch at one thread.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import aot
import pytest
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels import PairSums, Prepared, closed_forms, threads

CPU = torch.device("cpu")
LONG = 60  # seconds until a wait that should not be is an error
SUMS = ("total", "rows", "columns", "squares", "blocks", "labels")


def cloud(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_same_bits(found: PairSums, wanted: PairSums) -> None:
    for name in SUMS:
        assert torch.equal(getattr(found, name).nan_to_num(-1), getattr(wanted, name).nan_to_num(-1)), name


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many products of one shape go to oneDNN, whatever the CPU."""
    monkeypatch.setattr(threads, "_onednn_keeps_float32", lambda: True)


def in_new_thread(call: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(LONG)


def library() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


# torch's number of threads


def test_it_is_what_changes_bits_of_a_large_sum(torch_threads: Callable[[int], None]) -> None:
    """Or else the tests below would show nothing."""
    rows = cloud(70_000, 1, 0, torch.float64)[:, 0]
    found = set()
    for count in (1, 2, 3):
        torch_threads(count)
        found.add(float(rows.square().sum()))
    assert len(found) > 1


@pytest.mark.parametrize("margins", [True, False])
def test_it_changes_no_bit_of_long_clouds(margins: bool, torch_threads: Callable[[int], None]) -> None:
    x, y = kernels.prepare(cloud(70_000, 3, 1), offsets=[0, 33_000, 70_000]), kernels.prepare(cloud(40, 3, 2))

    def sums() -> list[PairSums]:
        whole = kernels.cross_sums(x, y, bandwidths=(1.0,), margins=margins)
        return [
            whole,
            kernels.cross_sums(y, x, margins=margins),
            *kernels.batch_sums(x, y, [(0, 0), (1, 0)], margins=margins),
        ]

    torch_threads(1)
    wanted = sums()
    for count in (2, 3):
        torch_threads(count)
        for found, one in zip(sums(), wanted, strict=True):
            assert_same_bits(found, one)


@pytest.mark.parametrize(("n", "d"), [(70_000, 2), (40, 12_000), (5_000, 385)])
def test_it_changes_no_bit_of_closed_forms(n: int, d: int, torch_threads: Callable[[int], None]) -> None:
    x = kernels.prepare(cloud(n, d, 3), offsets=[0, n - 1, n])
    y = kernels.prepare(cloud(n - 3, d, 4), offsets=[0, n - 9, n - 3])
    found = []
    for count in (1, 2, 3):
        torch_threads(count)
        of_x, of_y = closed_forms.group_moments(x), closed_forms.group_moments(y)
        numbers = [
            closed_forms.distance_squares(x, None),
            closed_forms.distance_squares(x, y),
            closed_forms.squares_between(of_x, 0, of_y, 0, within=False),
            closed_forms.squares_between(of_x, 0, of_x, 0, within=True),
        ]
        found.append([*(float(number) for number in numbers), *of_x[2].tolist(), *of_x[1].flatten().tolist()])
        assert torch.get_num_threads() == count
    assert found[1:] == found[:1] * 2


@pytest.mark.parametrize("precision", kernels.MODES)
@pytest.mark.parametrize(("n", "d"), [(70_000, 1), (9_001, 33), (1_100, 384), (300, 4_097), (3, 270_001)])
def test_it_changes_no_bit_of_a_prepared_cloud(
    precision: str, n: int, d: int, torch_threads: Callable[[int], None]
) -> None:
    rows, centre = cloud(n, d, 5), cloud(1, d, 6, torch.float64)[0]
    torch_threads(1)
    wanted = kernels.prepare(rows, centre=centre, precision=precision)
    for count in (2, 3):
        torch_threads(count)
        found = kernels.prepare(rows, centre=centre, precision=precision)
        assert torch.equal(found.rows, wanted.rows)
        assert torch.equal(found.norms, wanted.norms)
        assert found.scale == wanted.scale


FUSED = """
import torch
from gpudrift.kernels import prepare, triton_ops
from gpudrift.kernels.layout import PairCounts, Wanted

def job(*_):
    print(torch.get_num_threads())
    raise InterruptedError

triton_ops._Job = job
torch.set_num_threads(3)
x, counts = prepare(torch.ones(4, 2)), PairCounts(12.0, torch.ones(1, 1))
for call, arguments in (
    (triton_ops.pair_sums, (x, None, Wanted(), None, None, counts)),
    (triton_ops.batch_sums, (x, None, ((0, 0),), Wanted(), None)),
):
    try:
        call(*arguments)
    except InterruptedError:
        print(torch.get_num_threads())
"""


def test_the_fused_backend_sums_on_the_host_by_one_thread(tmp_path: Path) -> None:
    script = tmp_path / "fused.py"
    script.write_text(FUSED, encoding="utf-8")
    assert aot.finish(aot.start("newest", script, TRITON_INTERPRET="1")).split() == ["1", "3"] * 2


def test_leaving_settings_changes_no_other_threads_number(torch_threads: Callable[[int], None]) -> None:
    inside, left = threading.Event(), threading.Event()

    def other() -> list[int]:
        found = [torch.get_num_threads()]
        with threads.settings(CPU, many=False) as given:
            found += [given.threads, torch.get_num_threads()]
            inside.set()
            assert left.wait(LONG)
            found.append(torch.get_num_threads())
        return [*found, torch.get_num_threads()]

    torch_threads(3)
    with ThreadPoolExecutor(1) as pool:
        with threads.settings(CPU, many=False):
            torch_threads(2)  # what a thread takes that has not computed yet
            running = pool.submit(other)
            assert inside.wait(LONG)
        assert torch.get_num_threads() == 3
        left.set()
        assert running.result(LONG) == [2, 2, 1, 1, 2]


@pytest.mark.parametrize("count", [2, 5])
def test_tiles_are_computed_by_one_thread_whatever_others_set(count: int, torch_threads: Callable[[int], None]) -> None:
    """Without ``settings`` around it: another call may have restored the process's number when the threads begin."""
    torch_threads(3)
    found = [seen for _, seen in threads.in_order(iter(range(20)), lambda *_: torch.get_num_threads(), [None] * count)]
    assert found == [1] * 20
    assert torch.get_num_threads() == 3
    assert in_new_thread(torch.get_num_threads) == 3


# calls side by side


def wishes() -> tuple[Prepared, Prepared]:
    """Clouds whose self sums take either library."""
    return kernels.prepare(cloud(2_100, 48, 8)), kernels.prepare(cloud(600, 48, 9))


@pytest.mark.usefixtures("both_libraries")
@pytest.mark.parametrize("count", [1, 2])
def test_concurrent_calls_of_different_size_give_what_each_gives_alone(
    count: int, torch_threads: Callable[[int], None]
) -> None:
    large, small = wishes()
    torch_threads(1)
    wanted = [kernels.self_sums(cloud, bandwidths=(5.0,)) for cloud in (large, small)]
    start, done = threading.Barrier(3, timeout=LONG), threading.Event()

    def again_and_again() -> list[PairSums]:
        torch_threads(count)
        start.wait()
        found = []
        while not (found and done.is_set()):
            found.append(kernels.self_sums(small, bandwidths=(5.0,)))
        return found

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(again_and_again) for _ in range(2)]
        torch_threads(count)
        start.wait()
        try:
            found = [kernels.self_sums(large, bandwidths=(5.0,)) for _ in range(2)]
        finally:
            done.set()
        for sums in found:
            assert_same_bits(sums, wanted[0])
        for other in others:
            for sums in other.result(LONG):
                assert_same_bits(sums, wanted[1])


class Told(threading.Condition):
    """A condition that tells that somebody has to wait for it."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.waited = threading.Event()

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        if not predicate():
            self.waited.set()
        return bool(super().wait_for(predicate, timeout))


class Turn:
    """A lock that tells that somebody has to wait for it."""

    def __init__(self) -> None:
        self.lock, self.waited = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.waited.set()
            assert self.lock.acquire(timeout=LONG)

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> threads._Products:
    made = threads._Products()
    made._changed, made._turn = Told(), Turn()
    monkeypatch.setattr(threads, "_products", made)
    return made


@pytest.mark.usefixtures("both_libraries")
def test_a_product_waits_for_those_of_the_other_library_and_later_ones_behind_it(
    products: threads._Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    inside, go_on = threading.Event(), threading.Event()
    product = torch.mm

    def mm(a: Tensor, b: Tensor) -> Tensor:
        begun.append(f"{threading.current_thread().name} {library()}")
        if len(begun) == 1:
            inside.set()
            assert go_on.wait(LONG)
            begun.append(f"first ends {library()}")
        return product(a, b)

    def one(name: str, many: bool) -> threading.Thread:
        def work() -> None:
            with threads.settings(CPU, many=many) as given:
                given.product(torch.ones(2, 2), torch.ones(2, 2))

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    monkeypatch.setattr(torch, "mm", mm)
    before = library()
    first = one("first", many=True)
    assert inside.wait(LONG)
    second = one("second", many=False)
    assert products._changed.waited.wait(LONG)  # type: ignore[attr-defined]
    third = one("third", many=True)  # would keep the second waiting if it went ahead
    assert products._turn.waited.wait(LONG)  # type: ignore[attr-defined]
    go_on.set()
    for thread in (first, second, third):
        thread.join(LONG)
    assert begun == ["first bf16", "first ends bf16", "second ieee", "third bf16"]
    assert library() == before


@pytest.mark.usefixtures("both_libraries")
def test_products_of_one_library_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    met = threading.Barrier(3, timeout=LONG)
    monkeypatch.setattr(torch, "mm", lambda *_: met.wait())

    def work(_: int) -> None:
        with threads.settings(CPU, many=True) as given:
            given.product(torch.ones(2, 2), torch.ones(2, 2))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))


@pytest.mark.usefixtures("both_libraries")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("outer", [0, 1])
def test_a_call_within_a_call_gives_what_it_gives_alone(
    outer: int, count: int, torch_threads: Callable[[int], None]
) -> None:
    """In two threads at a time, both inside their outer calls: neither waits for the other."""
    clouds = wishes()
    torch_threads(1)
    wanted = [kernels.self_sums(cloud) for cloud in clouds]
    met = threading.Barrier(2, timeout=LONG)

    def nested(_: int) -> tuple[PairSums, PairSums]:
        torch_threads(count)
        inner = []

        def progress(_: int) -> None:
            if not inner:
                met.wait()
                inner.append(kernels.self_sums(clouds[1 - outer]))
                met.wait()

        return kernels.self_sums(clouds[outer], progress=progress), inner[0]

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(nested, range(2)):
            assert_same_bits(found[0], wanted[outer])
            assert_same_bits(found[1], wanted[1 - outer])


@pytest.mark.usefixtures("both_libraries")
def test_the_last_of_concurrent_scopes_restores_the_users_choice() -> None:
    before = library()
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    try:
        for order in itertools.permutations(range(3)):
            scopes: list[AbstractContextManager[threads.Settings]] = [
                threads.settings(CPU, many=many) for many in (True, False, True)
            ]
            for scope in scopes:
                scope.__enter__().product(torch.ones(2, 2), torch.ones(2, 2))
            for k in order[:2]:
                scopes[k].__exit__(None, None, None)
                assert library() in ("bf16", "ieee")
            scopes[order[2]].__exit__(None, None, None)
            assert library() == "tf32"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.usefixtures("both_libraries")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_product_that_fails_keeps_nobody_waiting(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def mm(*_: object) -> None:
        raise error("no room")

    def work(many: bool) -> Tensor:
        with threads.settings(CPU, many=many) as given:
            return given.product(torch.ones(2, 3), torch.ones(3, 2))

    before = library()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "mm", mm)
        with pytest.raises(error, match="no room"):
            work(True)
    assert library() == before
    assert in_new_thread(lambda: work(False).tolist()) == [[3.0, 3.0], [3.0, 3.0]]


# where a cloud lies


@pytest.mark.parametrize("precision", ["float32", "float64", "float16"])
@pytest.mark.parametrize("d", [1, 33, 384])
@pytest.mark.parametrize("start", [0, 16, 48, 1_008])
def test_a_slice_of_a_larger_cloud_gives_the_bits_of_a_copy(precision: str, d: int, start: int) -> None:
    n, m = (2_100, 2_064) if d == 33 else (333, 270)  # one is large enough for the other library
    scale = 8.0
    held = [kernels.prepare(cloud(3_200, d, seed), precision=precision, scale=scale) for seed in (10, 11)]
    slices = [
        Prepared(c.rows[start : start + k], c.norms[start : start + k], (0, k), None, precision, scale, CPU)
        for c, k in zip(held, (n, m), strict=True)
    ]
    copies = [Prepared(c.rows.clone(), c.norms.clone(), c.offsets, None, precision, scale, CPU) for c in slices]
    for copy in copies:
        assert copy.rows.data_ptr() % 64 == 0

    def sums(x: Prepared, y: Prepared) -> list[PairSums]:
        return [kernels.cross_sums(x, y, bandwidths=(3.0,)), kernels.self_sums(x), kernels.cross_sums(y, x)]

    for found, wanted in zip(sums(*slices), sums(*copies), strict=True):
        assert_same_bits(found, wanted)
    batch = kernels.batch_sums(*slices, [(0, 0)])[0]
    assert_same_bits(batch, kernels.cross_sums(*copies))
