"""A webhook's server on loopback that answers as a test says, and messages to send: what these tests share."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpudrift.monitoring.message import (
    Message,
    ToldCluster,
    ToldOutcome,
    ToldSegment,
    ToldShare,
)
from gpudrift.records import Verdict, Window

CANARY = "kQ7canaryT00B00x9"  # stands for the secret part of an address
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def week(k: int) -> Window:
    start = MONDAY + timedelta(weeks=k)
    return Window(start, start + timedelta(days=7), f"2026-W{k + 2:02d}")


def a_message(verdict: Verdict = "alert", k: int = 0, *, ids: tuple[str, ...] = ("doc-1", "doc-2")) -> Message:
    """With one of everything; ``ids`` wherever a text of the data can stand."""
    first = ids[0] if ids else ""
    return Message(
        job="weekly",
        reference="0123456789ab",
        window=week(k),
        verdict=verdict,
        sentence=f"{week(k).label} lies far from the reference",
        score=0.02,
        ratio=57.0,
        p=1e-5,
        rows=326,
        phenomena=tuple(f"A new cluster of about 12% of the rows (ids {name})." for name in ids),
        clusters=(ToldCluster(first, "new", 0.12, 0.006, 0.005, ids),),
        segments=tuple(ToldSegment(f"lang={name}", "alert", 12.0, 1e-6, 80) for name in ids),
        shares=(ToldShare(f"lang={first}", "grown", 0.5, 0.25, 0.004),),
        outcomes=(ToldOutcome("success", first, "lower", week(k).label, 0.05, 0.09, 0.07, 1e-4, "worse", "It fell."),),
        report_url=f"https://reports.example/out/reports/{week(k).label}.html",
    )


Act = Callable[["Handler"], None]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Hook:
    """The server. requests: those that came; acts: what to do at each, the last one from then on; over: set when the
    test ends, so that no act waits longer."""

    acts: list[Act]
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    tls: ssl.SSLContext | None = None

    def address(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/services/{CANARY}?key={CANARY}"


class Handler(BaseHTTPRequestHandler):
    hook: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hook.requests.append(Request(self.command, self.path, dict(self.headers.items()), body))
        place = min(len(self.hook.requests), len(self.hook.acts)) - 1
        with suppress(OSError):  # the client may be gone
            self.hook.acts[place](self)

    def do_GET(self) -> None:  # what a client that follows a redirect sends
        self.hook.requests.append(Request(self.command, self.path, dict(self.headers.items()), b""))
        answer(200, "ok")(self)

    def do_CONNECT(self) -> None:
        """As a proxy, and as the server behind it."""
        self.hook.requests.append(Request(self.command, self.path, dict(self.headers.items()), b""))
        if self.hook.tls is None:
            answer(407)(self)
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.hook.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # joined when the server closes
    tls: ssl.SSLContext | None = None

    def get_request(self) -> Any:
        sock, where = super().get_request()
        if self.tls is not None:
            try:
                sock = self.tls.wrap_socket(sock, server_side=True)
            except OSError:  # the client does not trust the certificate
                sock.close()
                raise
        return sock, where

    def handle_error(self, request: Any, client_address: Any) -> None:  # of a client that went away
        pass


@contextmanager
def serving(*acts: Act, tls: ssl.SSLContext | None = None, proxy_for: ssl.SSLContext | None = None) -> Iterator[Hook]:
    """Serve on a free port of loopback. tls: speak TLS; proxy_for: answer CONNECT, and speak TLS after it."""
    hook = Hook(list(acts), tls=proxy_for)
    server = Server(("127.0.0.1", 0), type("OfThisTest", (Handler,), {"hook": hook}))
    server.tls, hook.port = tls, server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hook
    finally:
        hook.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answer(status: int, body: str = "", **headers: str) -> Act:
    def act(handler: Handler) -> None:
        handler.send_response(status, "a phrase of the server's")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return act


def silent(handler: Handler) -> None:
    """Never answers."""
    handler.hook.over.wait()


def closing(handler: Handler) -> None:
    """Hangs up."""
    handler.connection.shutdown(2)


def dripping(handler: Handler) -> None:
    """A good answer, a byte at a time: about four seconds of it."""
    text = b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 400 + b"\r\nContent-Length: 2\r\n\r\nok"
    for place in range(len(text)):
        handler.wfile.write(text[place : place + 1])
        if handler.hook.over.wait(0.01):
            return


def dripping_body(handler: Handler) -> None:
    """The headers at once, then a body that does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nok")
    for _ in range(398):
        handler.wfile.write(b" ")
        if handler.hook.over.wait(0.01):
            return


def endless_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not handler.hook.over.is_set():
        handler.wfile.write(b"ok ok ok " * 10_000)


def endless_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.hook.over.is_set():
        handler.wfile.write(b"X-Header: " + b"a" * 1000 + b"\r\n")


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n\r\n")
