"""Pushing to a Pushgateway: against real HTTP servers on loopback that take, refuse, hang and lie."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from gpudrift.errors import ConfigError
from gpudrift.monitoring.push import PASSWORD, USER, PushError, push

SECRET = "correct horse/battery:staple"
SENT = base64.b64encode(f"nightly:{SECRET}".encode()).decode()
BOTH = {USER: "nightly", PASSWORD: SECRET}


@dataclass
class Gateway:
    """A server and what it was asked. status, reason, kind, body: of its answer; {auth} in them is what it was sent."""

    status: int = 200
    reason: str = "OK"
    kind: str = "text/plain"
    body: str = ""
    location: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(server: ThreadingTCPServer) -> Iterator[str]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def gateway(**answer: object) -> Iterator[Gateway]:
    told = Gateway(**answer)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.requests.append((self.command, self.path, dict(self.headers), body))
            auth = self.headers.get("Authorization", "")
            text = told.body.format(auth=auth).encode()
            self.send_response(told.status, told.reason.format(auth=auth))
            self.send_header("Content-Type", told.kind)
            self.send_header("Content-Length", str(len(text)))
            if told.location:
                self.send_header("Location", told.location)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        told.address = address
        yield told


@contextmanager
def talking(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what ``speak`` sends, HTTP or not."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            speak(self.request)

    with serving(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("gpudrift_score", "Score.", ["drift_job"], registry=made).labels("weekly").set(0.25)
    return made


def pushed(registry: CollectorRegistry, address: str, environ: dict[str, str] | None = None, **more: object) -> None:
    arguments: dict[str, object] = {"job": "weekly", "timeout": 20.0} | more
    push(registry, address, environ=environ or {}, **arguments)  # type: ignore[arg-type]


def refusal(registry: CollectorRegistry, address: str, **more: object) -> str:
    """The whole text of the error, which never holds a secret."""
    with pytest.raises(PushError) as raised:
        pushed(registry, address, BOTH, **more)
    text, chain = str(raised.value), (raised.value.__cause__, raised.value.__context__)
    assert chain == (None, None)  # whose messages would be printed with it
    for secret in (SECRET, SENT, "staple"):
        assert secret not in text
    assert raised.value.field == "prometheus.push"
    return text


@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_push_puts_everything_under_the_job(registry: CollectorRegistry, status: int) -> None:
    with gateway(status=status) as told:
        pushed(registry, told.address, job="week.ly-1")
    [(method, path, headers, body)] = told.requests
    assert (method, path) == ("PUT", "/metrics/job/gpudrift/drift_job/week.ly-1")
    assert body == generate_latest(registry)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Authorization" not in headers


def test_a_path_before_the_api_is_kept(registry: CollectorRegistry) -> None:
    with gateway() as told:
        pushed(registry, told.address + "/push/")
    assert told.requests[0][1] == "/push/metrics/job/gpudrift/drift_job/weekly"


def test_credentials_come_from_the_environment_given(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(USER, "somebody")
    monkeypatch.setenv(PASSWORD, "else")
    with gateway() as told:
        pushed(registry, told.address, BOTH)
        pushed(registry, told.address, {USER: "", PASSWORD: ""})
    assert told.requests[0][2]["Authorization"] == f"Basic {SENT}"
    assert "Authorization" not in told.requests[1][2]


@pytest.mark.parametrize(
    ("environ", "named"),
    [({USER: "nightly"}, PASSWORD), ({PASSWORD: SECRET}, USER), ({USER: "a:b", PASSWORD: SECRET}, USER)],
)
def test_half_a_pair_of_credentials_is_refused_before_anything_is_sent(
    registry: CollectorRegistry, environ: dict[str, str], named: str
) -> None:
    with gateway() as told, pytest.raises(ConfigError, match=named) as raised:
        pushed(registry, told.address, environ)
    assert told.requests == []
    assert SECRET not in str(raised.value)
    assert "a:b" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        f"http://nightly:{SECRET}@127.0.0.1:9091",
        "http://nightly:staple@127.0.0.1:9091",
        "http://127.0.0.1:staple",
        "ftp://127.0.0.1/staple",
        "127.0.0.1:9091/staple",
        "http://127.0.0.1:9091/?token=staple",
        "http://127.0.0.1:9091/#staple",
        "http://[staple",
        "http:///staple",
    ],
)
def test_an_address_that_cannot_be_pushed_to_is_not_shown(registry: CollectorRegistry, address: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pushed(registry, address)
    assert raised.value.__cause__ is None
    assert "staple" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "told"),
    [(400, "400 Bad Request"), (401, "401 Unauthorized"), (404, "404 Not Found"), (500, "500 "), (599, "599")],
)
def test_a_refusal_is_told_by_its_status_alone(registry: CollectorRegistry, status: int, told: str) -> None:
    """A server that repeats what it was sent, in its reason and in its body."""
    with gateway(status=status, reason="No {auth}", body="you sent {auth}") as server:
        assert f"it answered {told}" in refusal(registry, server.address)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(registry: CollectorRegistry, status: int) -> None:
    """Credentials would go along."""
    with gateway() as elsewhere, gateway(status=status, location=elsewhere.address) as server:
        assert f"it answered {status}" in refusal(registry, server.address)
    assert elsewhere.requests == []


def test_a_web_page_is_no_pushgateway(registry: CollectorRegistry) -> None:
    with gateway(kind="text/html; charset=utf-8", body="<p>Welcome, {auth}</p>") as server:
        assert "web page" in refusal(registry, server.address)


def test_nobody_listens(registry: CollectorRegistry) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        text = refusal(registry, address)
    assert "Connection refused" in text
    assert address in text


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"220 mail.example ESMTP\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA" + b"a" * 70000,
    ],
)
def test_an_answer_that_is_not_http(registry: CollectorRegistry, said: bytes) -> None:
    def speak(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(said)

    with talking(speak) as address:
        assert "did not take the metrics" in refusal(registry, address)


def test_a_server_that_never_answers_is_left_in_time(registry: CollectorRegistry) -> None:
    done = threading.Event()
    with talking(lambda _: bool(done.wait()) and None) as address:
        assert "no answer" in refusal(registry, address, timeout=0.2)
        done.set()


def test_an_answer_that_drips_is_left_in_time(registry: CollectorRegistry) -> None:
    """Each byte comes well within the timeout of a socket; the answer never ends."""
    done, bytes_sent = threading.Event(), 0

    def speak(peer: socket.socket) -> None:
        nonlocal bytes_sent
        peer.sendall(b"HTTP/1.1 200 OK\r\n")
        while not done.wait(0.01):
            try:
                peer.sendall(b"X")
            except OSError:
                return
            bytes_sent += 1

    with talking(speak) as address:
        assert "no answer within 0.3 s" in refusal(registry, address, timeout=0.3)
        done.set()
    assert bytes_sent > 1


def test_a_host_whose_name_is_never_found_is_left_in_time(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        done.wait()
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "no answer within 0.2 s" in refusal(registry, "http://gateway.invalid:9091", timeout=0.2)
    done.set()
    for thread in threading.enumerate():
        if thread.name == "gpudrift push":
            thread.join()


def test_an_unknown_host(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "Name or service not known" in refusal(registry, "http://gateway.invalid:9091")
