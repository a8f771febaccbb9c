"""What is refused before Ray is asked, and what Ray's errors mean. No cluster is started here."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray.exceptions as rx
import torch
from ray_cluster import Sums

from gpudrift.engine.ray import RayExecutor, _bytes, _fits
from gpudrift.engine.ray_failures import failure_of, refusal
from gpudrift.engine.reach import choose, listens, require_head
from gpudrift.errors import DataError, EngineError

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextmanager
def server(answer: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """A port that accepts one connection at a time; answer None: and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    assert answer is not None
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        if answer is not None:
            thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_head_that_speaks_is_found() -> None:
    with server(lambda connection: connection.sendall(SETTINGS)) as address:
        require_head(address, 1.0)
        host, port = address.split(":")
        assert listens(host, int(port))


def refused(address: str, said: str) -> EngineError:
    with pytest.raises(EngineError, match=said) as caught:
        require_head(address, 0.6, "RAY_ADDRESS")
    assert (caught.value.field, caught.value.value) == ("RAY_ADDRESS", address)
    assert "ray start --head" in str(caught.value)
    return caught.value


def test_what_is_no_head_is_refused() -> None:
    address = closed_port()
    refused(address, "no Ray head answers: no connection")
    host, port = address.split(":")
    assert not listens(host, int(port))
    with server(None) as address:
        refused(address, "accepts connections, but says nothing")
    with server(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as address:
        refused(address, "speaks another protocol than Ray's")
    with server(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as address:
        refused(address, "closed|broke")


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    refused("head.example:6379", "the host 'head.example' is not known")


def test_the_executor_tells_of_a_head_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(EngineError, match="no Ray head answers"):
        RayExecutor(device="cpu", address=closed_port(), connect_seconds=0.3)


@pytest.mark.parametrize(
    ("address", "given", "running", "wanted"),
    [
        (None, None, "10.0.0.1:6379", ("local", "local", "engine.address")),
        ("local", "10.0.0.2:1", None, ("local", "local", "engine.address")),
        (None, "10.0.0.2:6379", None, ("10.0.0.2:6379", "RAY_ADDRESS", "RAY_ADDRESS")),
        (None, "local", None, ("local", "RAY_ADDRESS", "RAY_ADDRESS")),
        ("auto", "10.0.0.2:6379", "10.0.0.1:6379", ("10.0.0.2:6379", "RAY_ADDRESS", "RAY_ADDRESS")),
        ("auto", None, "10.0.0.1:6379", ("10.0.0.1:6379", "auto", "engine.address")),
        (None, "auto", "10.0.0.1:6379", ("10.0.0.1:6379", "auto", "engine.address")),
        ("head:6379", "10.0.0.2:6379", None, ("head:6379", "HOST:PORT", "engine.address")),
        ("[::1]:6379", None, None, ("[::1]:6379", "HOST:PORT", "engine.address")),
    ],
)
def test_which_head_is_meant(
    monkeypatch: pytest.MonkeyPatch, address: str | None, given: str | None, running: str | None, wanted: Any
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert choose(address, running) == wanted


def test_ray_is_told_auto_where_it_is_to_find_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the user's token to no head that is named to it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("gpudrift.engine.ray._running_here", lambda: "10.0.0.1:6379")
    monkeypatch.setattr("gpudrift.engine.ray.require_head", lambda *_: None)
    told = []

    def init(**settings: Any) -> None:
        told.append(settings["address"])
        raise RuntimeError("no more than this")

    monkeypatch.setattr("ray.init", init)
    for address in ("auto", "10.0.0.1:6379"):
        with pytest.raises(EngineError, match="no more than this"):
            RayExecutor(device="cpu", address=address)
    assert told == ["auto", "10.0.0.1:6379"]


def test_a_token_that_is_missing_or_wrong_is_told_of() -> None:
    try:
        raise ConnectionError("Failed to connect to Ray cluster at h:1") from RuntimeError(
            "Failed to connect to GCS. Last connection error: ... Unauthenticated: RPC error: InvalidAuthToken"
        )
    except ConnectionError as error:
        shown = refusal(error, "h:1", "engine.address")
    missing = refusal(rx.AuthenticationError("... no authentication token was found."), "h:1", "RAY_ADDRESS")
    for found, field in ((shown, "engine.address"), (missing, "RAY_ADDRESS")):
        assert "asks for a token" in found.message
        assert "RAY_AUTH_MODE=token" in str(found.hint)
        assert (found.field, found.value) == (field, "h:1")


def test_addresses_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(EngineError, match="the address of a Ray Client server") as caught:
        choose(None, None)
    assert caught.value.field == "RAY_ADDRESS"
    assert "ray job submit" in str(caught.value)
    monkeypatch.delenv("RAY_ADDRESS")
    for address in ("head", "head:port", "head:70000", ":6379"):
        with pytest.raises(EngineError, match="no address of a Ray head"):
            choose(address, None)
    with pytest.raises(EngineError, match="no Ray runs on this machine"):
        choose("auto", None)


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match="not installed") as caught:
        RayExecutor(device="cpu")
    assert caught.value.hint == "pip install 'gpudrift[ray]'"


def raised(cause: BaseException) -> rx.RayTaskError:
    return rx.RayTaskError("task", f"Traceback\n{cause}", cause, ip="10.0.0.3", pid=1)


@pytest.mark.parametrize(
    "error",
    [
        rx.WorkerCrashedError(),
        rx.NodeDiedError("Node IP: 10.0.0.3, node ID: ab"),
        rx.ObjectLostError("ab", None, ""),
        rx.ObjectFetchTimedOutError("ab", None, ""),
        rx.ObjectFreedError("ab", None, ""),
        rx.OwnerDiedError("ab", None, ""),
        rx.OutOfMemoryError("memory"),
        rx.RaySystemError("worker"),
        rx.LocalRayletDiedError(),
        raised(rx.ObjectLostError("ab", None, "")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_try_may_mend(error: BaseException) -> None:
    assert failure_of(rx, error).kind == "lost"


def test_the_node_is_named_where_ray_tells() -> None:
    assert failure_of(rx, rx.NodeDiedError("Node IP: 10.0.0.3, node ID: ab")).where == "node 10.0.0.3"
    assert failure_of(rx, rx.WorkerCrashedError()).where == ""


def test_what_a_task_raises() -> None:
    ours, other = DataError("bad", field="f"), ValueError("no")
    fatal, failed = failure_of(rx, raised(ours)), failure_of(rx, raised(other))
    assert (fatal.kind, fatal.error, fatal.where) == ("fatal", ours, "node 10.0.0.3")
    assert (failed.kind, failed.error, failed.where) == ("error", other, "node 10.0.0.3")


@pytest.mark.parametrize(
    ("error", "said", "what"),
    [
        (raised(rx.OutOfDiskError("Local disk is full")), "Local disk is full", "object-spilling-directory"),
        (rx.ObjectStoreFullError("The object store is full"), "no room in Ray's object store", "engine.block_rows"),
        (rx.RaySystemError("No module named 'gpudrift'"), "have no module 'gpudrift'", "engine.ship_code=true"),
        (raised(RuntimeError("failed to import: No module named 'torch'")), "no module 'torch'", "on every node"),
        (rx.RuntimeEnvSetupError("pip failed"), "(?s)workers cannot be set up: .*pip failed", "engine.ship_code"),
    ],
)
def test_what_no_try_mends(error: BaseException, said: str, what: str) -> None:
    failure = failure_of(rx, error)
    assert failure.kind == "fatal"
    assert isinstance(failure.error, EngineError)
    with pytest.raises(EngineError, match=said):
        raise failure.error
    assert what in str(failure.error)


def test_why_ray_refuses() -> None:
    machine = refusal(RuntimeError("No node info found matching attributes: ''"), "head:6379", "engine.address")
    assert "this machine is no node of the Ray cluster" in str(machine)
    assert "ray start --address=head:6379" in str(machine)
    assert "Ray cannot be used: odd" in str(refusal(ValueError("odd"), "local", "engine.address"))


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted"),
    [(1, 0, 4), (3, 0, 1), (0.3, 0, 13), (0.1, 0, 40), (1, 1, 2), (0, 0.5, 4), (0, 3, 0), (5, 0, 0), (0, 0, 4)],
)
def test_how_many_tasks_a_node_has_room_for(cpus: float, gpus: float, wanted: int) -> None:
    assert _fits({"CPU": 4.0, "GPU": 2.0}, cpus, gpus) == wanted


def test_a_node_without_cpus_has_no_room() -> None:
    assert _fits({}, 1, 0) == 0
    assert _fits({}, 0, 0) == 0


def test_bytes_of_a_value() -> None:
    array = np.zeros(10)
    value = {"a": (array, [Sums(1.0, array)]), "b": torch.zeros(3), "c": b"1234", "d": "text"}
    assert _bytes(value) == 80 + 80 + 12 + 4
