"""The thread that asks a cluster whether it is there, without Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gpudrift.__main__ import leave
from gpudrift.engine import ray_watch
from gpudrift.engine.reach import LEAVING


class Head:
    """As much of Ray's module as a watch asks; ``silent``: it does not answer until ``again``."""

    exceptions = SimpleNamespace(RayError=LookupError)

    def __init__(self) -> None:
        self.silent, self.again = False, threading.Event()

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def nodes(self) -> list[dict[str, Any]]:
        if self.silent:
            self.again.wait()
        return []

    def available_resources(self) -> dict[str, float]:
        return {}


def test_a_watch_that_stops_looks_a_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "_STOP_SECONDS", 0.05)
    head = Head()
    watch = ray_watch.Watch(head, 30.0)
    head.silent = True  # since just now: nobody has noticed
    assert not watch.stop()
    head.again.set()
    monkeypatch.setattr(ray_watch, "_STOP_SECONDS", 60.0)
    assert ray_watch.Watch(Head(), 30.0).stop()


def test_the_process_ends_with_its_code_where_ray_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(SystemExit) as caught:
        leave(3)
    assert (caught.value.code, ended) == (3, [])
    again = threading.Event()
    thread = threading.Thread(target=again.wait, name=LEAVING, daemon=True)
    thread.start()
    with pytest.raises(SystemExit):
        leave(130)
    again.set()
    thread.join()
    assert ended == [130]
