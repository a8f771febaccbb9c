"""What the tests of object stores run against: an S3-speaking server, and a proxy before it that counts and fails."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Faulty = Callable[["Request"], str | None]
DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
GONE = b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>"
BUSY = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    number: int  # from 1, of all requests since the faults were set
    size: int = 0  # bytes of the answer's body


class Proxy:
    """``faults(request)`` names what becomes of a request: None (passed on), 503, 429, 500, 403, 404, reset (before the
    answer), truncate (half the body, then the connection ends), short (half the body under its own length), stall (no
    byte comes). ``requests``: those since the faults were set."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.fail(lambda _: None)
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.proxy = self
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def fail(self, faults: Faulty) -> None:
        self.faults, self.requests, self.faulted = faults, [], 0

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(*proxy.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        with proxy.lock:
            request = Request(self.command, self.path, self.headers["Range"], len(proxy.requests) + 1, len(content))
            fault = proxy.faults(request)
            proxy.requests.append(request)
            proxy.faulted += fault is not None
        status, headers = response.status, dict(response.getheaders())
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault == "stall":
            self.close_connection = True
            proxy.released.wait(20)
            return
        if fault is not None and fault.isdigit():
            status, content = int(fault), {"403": DENIED, "404": GONE}.get(fault, BUSY)
            headers = {"Content-Type": "application/xml", "Content-Length": str(len(content))}
        sent = content
        if fault in ("truncate", "short"):
            sent = content[: len(content) // 2]
            self.close_connection = fault == "truncate"
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)) if fault == "short" else length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """moto's server on a free port of this machine."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()  # returns when the socket is bound
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def refused_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
