"""A history reads a file once for as long as it is the same file; what it says is never older than the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_history import METRICS, insufficient, point, window

from gpudrift import history
from gpudrift.errors import DataError
from gpudrift.history import History


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as they are."""
    real, seen = pq.read_table, list[str]()

    def read_table(path: Path, **named: Any) -> Any:
        seen.append(path.stem)
        return real(path, **named)

    monkeypatch.setattr(pq, "read_table", read_table)
    return seen


def opened(root: Path) -> History:
    return History(root, "nightly", "abc")


def test_a_file_is_read_once(tmp_path: Path, parsed: list[str]) -> None:
    for k in range(3):
        opened(tmp_path).write(point(k), METRICS)
    store = opened(tmp_path)
    for _ in range(2):
        assert [found["all"] for found in store.windows()] == [point(0), point(1), point(2)]
        assert store.get(window(1)) == point(1)
        assert store.segments(window(2)) == {}
        assert store.get(window(3)) is None
    assert sorted(parsed) == [window(k).label for k in range(3)]


@pytest.mark.parametrize("together", [False, True])
def test_what_was_written_is_known_as_it_would_be_read(tmp_path: Path, parsed: list[str], together: bool) -> None:
    store = opened(tmp_path)
    if together:
        with store.together():
            store.write(point(0), METRICS)
            store.write(insufficient(1), [])
    else:
        store.write(point(0), METRICS)
        store.write(insufficient(1), [])
    known = store.windows()
    assert parsed == []
    assert opened(tmp_path).windows() == known
    assert len(parsed) == 2


def test_a_file_that_another_process_replaced_is_read_again(tmp_path: Path, parsed: list[str]) -> None:
    store = opened(tmp_path)
    store.write(point(0), METRICS)
    assert store.get(window(0)) == point(0)
    opened(tmp_path).write(insufficient(0), [])
    assert store.get(window(0)) == insufficient(0)
    assert len(parsed) == 1
    (store.directory / f"{window(0).label}.parquet").unlink()
    assert store.get(window(0)) is None
    assert store.windows() == []


def test_a_known_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(point(0), METRICS)
    file = store.directory / f"{window(0).label}.parquet"
    assert store.get(window(0)) is not None
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read") as error:
        store.get(window(0))
    assert error.value.where == file


def test_no_more_points_are_remembered_than_allowed(
    tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "REMEMBERED", 2)
    store = opened(tmp_path)
    for k in (0, 1, 0):  # the one written again counts once
        store.write(point(k), METRICS)
    assert (store.get(window(0)), store.get(window(1)), parsed) == (point(0), point(1), [])
    store.write(point(2), METRICS)
    assert (store.get(window(0)), store.get(window(2)), parsed) == (point(0), point(2), [])
    assert store.get(window(1)) == point(1)
    assert parsed == [window(1).label]
    assert [found["all"] for found in store.windows()] == [point(0), point(1), point(2)]
