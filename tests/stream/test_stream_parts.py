"""The parts of the streaming job one by one: inbox, ledger, waiting, checkpoint, taking, settings."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import make_job
from streams import plan_of

from gpudrift.errors import ConfigError, DataError
from gpudrift.records import HistoryPoint, Quality, Window
from gpudrift.sketch import SketchPlan
from gpudrift.source import CleanBatch
from gpudrift.source.quality import BadRows
from gpudrift.stream import checkpoint
from gpudrift.stream.inbox import Found, Inbox, digest
from gpudrift.stream.ledger import Content, Ledger
from gpudrift.stream.state import OpenWindow, State, added
from gpudrift.stream.taking import Taker
from gpudrift.stream.waiting import Waiter
from gpudrift.windows import parse_period

DAY = timedelta(days=1)
T0 = datetime(2026, 4, 6, tzinfo=UTC)


def touch(path: Path, at: float, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (at, at))
    return path


def names(found: list[Found]) -> list[str]:
    return [file.name for file in found]


def test_files_come_by_time_and_name(tmp_path: Path) -> None:
    for name, at in (
        ("c.parquet", 5),
        ("b/x.PARQUET", 9),
        ("a.pq", 9),
        ("z.parq", 1),
        ("n.txt", 0),
        ("p.parquet.tmp", 0),
    ):
        touch(tmp_path / name, at)
    for name in (".h.parquet", "_h.parquet", ".d/x.parquet", "_temporary/0/x.parquet"):
        touch(tmp_path / name, 2)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "dangling.parquet").symlink_to(tmp_path / "nowhere")
    assert names(Inbox(str(tmp_path), 1, 1).look(0)) == ["z.parq", "c.parquet", "a.pq", "b/x.PARQUET"]


def test_a_glob_takes_what_it_matches(tmp_path: Path) -> None:
    for name in ("x1/a.parquet", "x1/b.parquet", "y/a.parquet", "x2/deep/a.parquet", "x2/_a.parquet"):
        touch(tmp_path / name, 1)
    assert names(Inbox(f"{tmp_path}/x*/*.parquet", 1, 1).look(0)) == ["x1/a.parquet", "x1/b.parquet"]
    assert names(Inbox(f"{tmp_path}/x*/**/a.parquet", 1, 1).look(0)) == ["x1/a.parquet", "x2/deep/a.parquet"]
    odd = touch(tmp_path / "odd[1]" / "a.parquet", 1).parent  # a directory of that very name
    assert names(Inbox(str(odd), 1, 1).look(0)) == ["a.parquet"]


def test_when_a_file_is_unchanged_and_when_settled(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.parquet", 1000)
    inbox = Inbox(str(tmp_path), settle=10, poll=2)
    (file,) = inbox.look(0)
    assert not inbox.unchanged(file, 0)
    assert [inbox.settled(file, 0, clock) for clock in (1009.9, 1010)] == [False, True]
    inbox.look(1)
    assert not inbox.unchanged(file, 1.9)
    assert inbox.unchanged(file, 2)
    assert [inbox.settled(file, now, 500) for now in (9.9, 10)] == [False, True]  # a clock that runs behind
    touch(path, 1000, b"xy")
    (grown,) = inbox.look(11)
    assert not inbox.unchanged(grown, 11)
    assert not inbox.settled(grown, 11, 500)
    assert not file.unchanged()
    assert grown.unchanged()
    path.unlink()
    assert not grown.unchanged()


def test_a_digest_is_that_of_the_whole_content(tmp_path: Path) -> None:
    a, b = (touch(tmp_path / name, 1, bytes(3_000_000) + end) for name, end in (("a", b"1"), ("b", b"2")))
    assert digest(a) != digest(b)
    assert digest(a) == digest(touch(tmp_path / "c", 9, a.read_bytes()))
    assert len(digest(a)) == 32


def found(name: str, size: int = 1, mtime: int = 1) -> Found:
    return Found(name, Path(name), size, mtime, 7)


def test_the_ledger_forgets_what_can_no_longer_count() -> None:
    ledger = Ledger()
    for k, name in enumerate("abc"):
        ledger.add(f"d{name}", Content(name, 5, T0 + k * DAY))
        ledger.note(found(name), f"d{name}", "consumed")
    ledger.note(found("bad"), "", "quarantined", "why")
    ledger.forget({"a"}, T0 + DAY)
    assert set(ledger.files) == {"a"}
    assert set(ledger.contents) == {"da", "dc"}  # a lies there, c's window is open
    assert ledger.replaced("c", "other")
    assert not ledger.replaced("b", "other")
    ledger.forget(set(), T0 + 2 * DAY)
    assert ledger == Ledger()
    ledger.add("empty", Content("e", 0, None))
    ledger.forget(set(), None)
    assert ledger.contents == {}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=30))
def test_a_content_never_counts_twice_while_its_window_is_open(steps: list[tuple[str, int, int, bool]]) -> None:
    """However files come, go, are copied, and windows close: a model that forgets nothing agrees where it matters."""
    ledger, floor = Ledger(), T0
    applied: dict[str, list[int]] = {}
    lying: dict[str, tuple[int, int]] = {}
    for clock, (name, content, later, remove) in enumerate(steps):
        if remove:
            lying.pop(name, None)
        else:
            lying[name] = (content, clock)
            mark, until = str(content), T0 + (content + 1) * DAY
            if mark not in ledger.contents and not ledger.replaced(name, mark):
                ledger.add(mark, Content(name, 1, until))
                if until > floor:
                    applied.setdefault(mark, []).append(clock)
            ledger.note(found(name, mtime=clock), mark, "consumed")
        floor = max(floor, T0 + (later - 3) * DAY)
        ledger.forget(lying, floor)
        ledger = Ledger.from_json(ledger.to_json())
        assert set(ledger.files) <= set(lying)
    assert all(len(times) == 1 for times in applied.values())


def test_waiting_ends_with_a_signal_a_descriptor_or_time() -> None:
    before = signal.getsignal(signal.SIGINT)
    end, start = os.pipe()
    with Waiter() as waiter:
        assert not waiter.wait(0, end)
        os.write(start, b"1")
        assert waiter.wait(100, end)
        os.read(end, 1)
        os.close(start)
        assert waiter.wait(100, end)  # it has ended
        os.kill(os.getpid(), signal.SIGINT)
        assert waiter.stopping
        assert not waiter.wait(100)
        assert not waiter.wait(100, end)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    os.close(end)


def test_a_signal_ends_a_wait_that_has_begun() -> None:
    with Waiter() as waiter:
        signal.signal(signal.SIGALRM, waiter._stop)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert not waiter.wait(100)
        assert waiter.stopping
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture(scope="module")
def plan(begun: Path) -> SketchPlan:
    found: SketchPlan = plan_of(begun.parent)
    return found


def some_state(plan: SketchPlan) -> State:
    generator = torch.Generator().manual_seed(1)
    state = State({"reference": "r", "period": "week"})
    for k, rows in enumerate((5, 0, 300)):
        window = Window(T0 + 7 * k * DAY, T0 + 7 * (k + 1) * DAY, f"w{k}")
        taken = Taker(plan, parse_period("week"), (), 9)
        sketch = taken.batch(clean(torch.randn(rows, plan.dim, generator=generator), T0 + 7 * k * DAY), None, ())
        for part in sketch.parts.values():
            quality = added(part.quality, Quality(3, 0, {"zero": 2, "null": 1}, {"zero": ("é", "b"), "null": ("c",)}))
            point = HistoryPoint(window, "alert", 0.1, None, float("nan"), 1e-300, 0.3, 0.4, 0.5, 0.6, 7, True)
            state.windows[window.label] = OpenWindow(window, part.sketch, quality, rows, point if k else None)
    state.ledger.add("d", Content("n", 3, T0))
    state.ledger.note(found("n"), "d", "consumed")
    state.counts.update(rows=305, late=2)
    state.floor, state.sequences, state.emission, state.offset = T0, {"p": 3}, 4, 555
    state.refuse({"error": "e", "sequence": 3})
    return state


def clean(rows: torch.Tensor, at: datetime) -> CleanBatch:
    micros = np.full(len(rows), int(at.timestamp() * 1e6), dtype=np.int64)
    ids = pa.array([f"{k}" for k in range(len(rows))], pa.large_string())
    return CleanBatch(rows, micros, ids, {}, BadRows(), 0, len(rows))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, plan: SketchPlan) -> None:
    state = some_state(plan)
    assert list(state.windows) == ["w0", "w2"]
    checkpoint.save(state, tmp_path / "c.safetensors")
    back = checkpoint.load(tmp_path / "c.safetensors", plan, state.identity)
    assert back is not None
    assert back.windows["w2"].point is not None
    assert back.windows["w2"].point.p_aa is None  # NaN has no JSON
    told, again = state.to_json(), back.to_json()
    told["windows"][1]["point"]["p_aa"] = None
    assert repr(again) == repr(told | {"windows": again["windows"]})
    assert repr(again["windows"]).replace("(", "[").replace(")", "]").replace(",]", "]") == repr(
        told["windows"]
    ).replace("(", "[").replace(")", "]").replace(",]", "]")
    tensors = back.tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.tensors().items())
    assert checkpoint.load(tmp_path / "none.safetensors", plan, {}) is None


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, plan: SketchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        happened.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        happened.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    checkpoint.save(some_state(plan), tmp_path / "c.safetensors")
    temporary = f".c.{os.getpid()}.tmp.safetensors"
    assert happened == [f"sync {temporary}", f"rename {temporary}", f"sync {tmp_path.name}"]


def test_every_flipped_byte_of_a_checkpoint_is_seen(tmp_path: Path, plan: SketchPlan) -> None:
    state, path = some_state(plan), tmp_path / "c.safetensors"
    checkpoint.save(state, path)
    content = path.read_bytes()
    for place in [*range(0, 300, 7), *np.random.default_rng(0).integers(0, len(content), 40).tolist()]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DataError, match="checkpoint is damaged"):
            checkpoint.load(path, plan, state.identity)
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="checkpoint is damaged"):
            checkpoint.load(path, plan, state.identity)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        checkpoint.load(path, plan, {"reference": "other"})
    assert (error.value.field, error.value.value, error.value.allowed) == ("reference", "other", "r")


@given(st.lists(st.integers(-200, 200), min_size=1, max_size=60), st.sampled_from(["day", "week", "month", "3d"]))
def test_rows_of_a_batch_fall_into_their_windows(plan: SketchPlan, hours: list[int], text: str) -> None:
    period, floor = parse_period(text), T0 - 20 * DAY
    moments = [T0 + timedelta(hours=7 * hour) for hour in hours]
    wanted: dict[str, int] = {}
    late = own = 0
    for at in moments:
        window = period.window_at(at)
        if window.label == period.window_at(T0).label:
            own += 1
        elif window.start < floor:
            late += 1
        else:
            wanted[window.label] = wanted.get(window.label, 0) + 1
    batch = clean(torch.zeros(len(hours), plan.dim), T0)
    batch.micros[:] = [int(at.timestamp() * 1e6) for at in moments]
    taken = Taker(plan, period, (period.window_at(T0).label,), 1000).batch(batch, floor, ())
    assert {window.label: part.sketch.count for window, part in taken.parts.items()} == wanted
    assert (taken.late, taken.in_reference, taken.first) == (late, own, min(moments))
    assert taken.until == max(period.window_at(at).end for at in moments)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stream.input", "kafka"), ("stream.input", "tcp://x"), ("stream.input", "tcp://:x"),
        ("stream.keep_windows", 0), ("stream.max_windows", 0), ("stream.emit_rows", 0), ("stream.emit_seconds", -1),
        ("stream.poll_seconds", 0), ("stream.settle_seconds", float("nan")), ("stream.idle_seconds", -1),
        ("stream.checkpoint_seconds", -0.1), ("stream.features", 1), ("stream.features", 65), ("stream.bins", 1),
        ("stream.reservoir", 1), ("stream.max_windows", 2),
    ],
)  # fmt: skip
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        make_job({key: value})
    assert error.value.field == key
    assert error.value.allowed
