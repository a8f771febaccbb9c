"""Atomic writes survive a kill, JSON has equal bytes for equal values, and a job's lock ends with its holder."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpudrift
from gpudrift.errors import ConfigError, LockedError
from gpudrift.files import atomic_path, exclusive, jsonable, local_path, make_directory, sweep, write_json

PACKAGE = str(Path(gpudrift.__file__).parents[1])


def python(code: str, *arguments: object) -> list[str]:
    """A command line that runs code with this package importable."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {PACKAGE!r})\n{code}", *map(str, arguments)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_block_that_ends_well_puts_the_file_in_place(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.parquet"
    with atomic_path(target) as temporary:
        assert (temporary.parent, temporary.suffix, temporary.name[0]) == (target.parent, ".parquet", ".")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["table.parquet"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "result.json"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"ha")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["result.json"]


def test_a_block_that_writes_nothing_is_an_error_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_process_killed_while_writing_leaves_no_half_file(tmp_path: Path, old: bytes | None) -> None:
    target = tmp_path / "result.json"
    if old is not None:
        target.write_bytes(old)
    code = """
import os, pathlib
from gpudrift.files import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"ha")
    os._exit(9)
"""
    assert subprocess.run(python(code, target), check=False).returncode == 9
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ([] if old is None else ["result.json"])
    assert len(names(tmp_path)) == (1 if old is None else 2)  # the half file was there, under its hidden name
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError) as caught:
        make_directory(tmp_path / "file" / "below", "history.path")
    assert (caught.value.field, caught.value.value) == ("history.path", str(tmp_path / "file" / "below"))
    assert make_directory(tmp_path / "a" / "b") == make_directory(tmp_path / "a" / "b")


def test_json_values(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "infinite": [math.inf, -math.inf, 1.5],
        "moment": datetime(2026, 1, 5, 12, tzinfo=UTC),
        "day": date(2026, 1, 5),
        "path": Path("a") / "b",
        "pair": (1, None, True),
        3: {"deep": {"nan": math.nan}},
        "text": "café 漢",
    }
    target = tmp_path / "v.json"
    write_json(target, value)
    text = target.read_bytes()
    assert json.loads(text) == {
        "nan": None,
        "infinite": [None, None, 1.5],
        "moment": "2026-01-05T12:00:00+00:00",
        "day": "2026-01-05",
        "path": "a/b",
        "pair": [1, None, True],
        "3": {"deep": {"nan": None}},
        "text": "café 漢",
    }
    assert "café 漢".encode() in text
    assert text.endswith(b"}\n")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )
)
def test_json_has_equal_bytes_for_equal_values_and_reads_back(tmp_path: Path, value: object) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_json(first, value)
    back = json.loads(first.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert back == jsonable(value)
    write_json(second, back)
    assert first.read_bytes() == second.read_bytes()


HOLD = """
import pathlib
from gpudrift.files import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
TRY = """
import pathlib
from gpudrift.errors import LockedError
from gpudrift.files import exclusive
try:
    with exclusive(pathlib.Path(sys.argv[1])):
        print("got it")
except LockedError as error:
    print(error.value)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path/job/.lock until its standard input closes."""
    with subprocess.Popen(
        python(HOLD, tmp_path / "job" / ".lock"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def attempt(path: Path) -> str:
    return subprocess.run(python(TRY, path), check=True, capture_output=True, text=True).stdout.strip()


def test_a_second_process_is_refused_while_the_first_holds_the_lock(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """The holder waits for its input, so an attempt that waited for the lock would never return."""
    lock = tmp_path / "job" / ".lock"
    assert attempt(lock) == f"held by process {holder.pid}"
    with pytest.raises(LockedError) as caught, exclusive(lock):
        pass
    assert (caught.value.where, caught.value.value) == (lock, f"held by process {holder.pid}")
    assert attempt(tmp_path / "job" / ".other") == "got it"
    assert holder.poll() is None


def test_the_lock_is_free_when_its_holder_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.communicate("")
    assert holder.returncode == 0
    assert attempt(tmp_path / "job" / ".lock") == "got it"


def test_the_lock_is_free_when_its_holder_is_killed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert attempt(tmp_path / "job" / ".lock") == "got it"


def test_the_lock_is_free_after_an_error_and_its_file_stays(tmp_path: Path) -> None:
    """Removing the file would let two runs hold locks on two files of one name."""
    lock = tmp_path / ".lock"
    with pytest.raises(ValueError, match="inside"), exclusive(lock):
        raise ValueError("inside")
    assert lock.exists()
    with exclusive(lock), pytest.raises(LockedError, match=f"process {os.getpid()}"), exclusive(lock):
        pass


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / ".lock", tmp_path):
        with pytest.raises(ConfigError) as caught, exclusive(path):
            pass
        assert caught.value.field == "history.path"


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".result.{dead.pid}.tmp.json"
    kept = [
        tmp_path / f".result.{os.getpid()}.tmp.json",
        tmp_path / "result.json",
        tmp_path / ".weekly.lock",
        tmp_path / ".notes.tmp",
    ]
    for path in (left, *kept):
        path.write_text("x")
    sweep(tmp_path, tmp_path / "missing")
    assert not left.exists()
    assert all(path.exists() for path in kept)


def test_sweep_of_one_name_leaves_the_others(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("a[1].prom", "a1.prom", "b.prom"):
        (tmp_path / f".{name}.{dead.pid}.tmp").write_text("x")
    sweep(tmp_path, name="a[1].prom")
    assert names(tmp_path) == [f".a1.prom.{dead.pid}.tmp", f".b.prom.{dead.pid}.tmp"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "result.json"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*result\.json'"):
        write()


def test_what_goes_wrong_with_the_temporary_file_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that turned read-only refuses its removal too."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)

    def write() -> None:
        with atomic_path(tmp_path / "result.json"):
            raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        write()


def test_a_home_directory_that_nobody_knows_is_one_error() -> None:
    assert local_path("~", "output.dir") == Path.home()
    with pytest.raises(ConfigError, match="home directory") as caught:
        local_path("~nosuchuser/out", "output.dir")
    assert (caught.value.field, caught.value.value) == ("output.dir", "~nosuchuser/out")
