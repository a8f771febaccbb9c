"""A POST to an address that is a secret, within a bounded time, whatever the other side does.

The address, all parts of it, appears in no reason, exception or repr: reasons are made of our own words and of numbers
here, never of an exception's text or of what the server says. Redirects are not followed and certificates are
verified, so the address goes to no other host.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from urllib.parse import SplitResult, unquote, urlsplit

READ = 256  # bytes of an answer, where it is read at all
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever Retry-After says
FIRST_WAIT = 1.0
RETRIED = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
# what Slack answers in place of ``ok``; any other text of a server is not repeated
SLACK_ERRORS = frozenset(
    (
        *("invalid_payload", "invalid_blocks", "invalid_blocks_format", "no_text", "too_many_attachments"),
        *("no_service", "no_service_id", "no_team", "team_disabled", "no_active_hooks", "invalid_token"),
        *("action_prohibited", "posting_to_general_channel_denied", "user_not_found", "channel_not_found"),
        *("channel_is_archived", "rate_limited", "rollup_error"),
    )
)
_CERTIFICATE_OF_ANOTHER = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


class AddressError(ValueError):
    """The address cannot be used; the text says why without it."""


class Address:
    """Where to post. Never shown."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            AddressError: not an address of http(s), or one that would send the secret unencrypted.
        """
        if not re.fullmatch(r"[!-~]+", text):
            raise AddressError("is empty or holds spaces or letters that addresses do not have")
        parts: SplitResult | None = None
        with contextlib.suppress(ValueError):  # its text holds the address
            parts = urlsplit(text)
            self.port = parts.port
        if parts is None or not hasattr(self, "port") or parts.scheme not in ("http", "https") or not parts.hostname:
            raise AddressError("does not hold an address of the form https://host/path")
        self.host, self.tls = parts.hostname, parts.scheme == "https"
        if not self.tls and not _loopback(self.host):
            raise AddressError("is an http address; https is needed to any host but this one (loopback)")
        self.target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            self.headers["Authorization"] = _basic(parts.username, parts.password)

    def __repr__(self) -> str:
        return "Address(hidden)"

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """Not yet connected; through the proxy that the environment names for https."""
        if not self.tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        context = ssl.create_default_context()
        proxy = None if urllib.request.proxy_bypass(self.host) else urllib.request.getproxies().get("https")
        if not proxy:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if through.scheme != "http" or not through.hostname:
            raise OSError("a proxy that cannot be used")
        connection = http.client.HTTPSConnection(through.hostname, through.port or 80, timeout=timeout, context=context)
        headers: dict[str, str] = {}
        if through.username is not None:
            headers["Proxy-Authorization"] = _basic(through.username, through.password)
        connection.set_tunnel(self.host, self.port or 443, headers)
        return connection


@dataclass(frozen=True)
class Posted:
    """Whether a POST was taken, why not, and after how many attempts."""

    ok: bool
    reason: str
    attempts: int


@dataclass(frozen=True)
class _Answer:
    """What one attempt came to. again: another one may go better, after ``wait`` seconds where the server says so."""

    ok: bool
    reason: str
    again: bool = False
    wait: float = 0.0


def post(
    address: Address,
    body: bytes,
    *,
    headers: Mapping[str, str],
    slack: bool,
    timeout: float,
    attempts: int,
    sleep: Callable[[float], None],
    jitter: Callable[[], float],
    clock: Callable[[], datetime],
) -> Posted:
    """POST ``body``, again after connection errors, timeouts, 408, 429 and 5xx.

    slack: only the answer ``ok`` counts as taken. timeout: seconds an attempt may take, name lookup and reading
    included. jitter: 0 to 1, spreads the waits of jobs that fail together. clock: for a Retry-After that is a date.
    """
    answer = _Answer(False, "not tried")
    for attempt in range(1, attempts + 1):
        answer = _attempt(address, body, headers, slack, timeout, clock)
        if not answer.again or attempt == attempts:
            return Posted(answer.ok, answer.reason, attempt)
        wait = FIRST_WAIT * 2 ** (attempt - 1) * (0.5 + jitter())
        sleep(min(max(wait, answer.wait), LONGEST_WAIT))
    return Posted(answer.ok, answer.reason, attempts)


def _attempt(
    address: Address,
    body: bytes,
    headers: Mapping[str, str],
    slack: bool,
    timeout: float,
    clock: Callable[[], datetime],
) -> _Answer:
    """One POST in a thread of its own: a socket's timeout is for each read, and a server that drips a byte at a time,
    or a name that resolves slowly, would hold the job for as long as it likes."""
    found: list[_Answer] = []
    late = threading.Event()
    opened: list[socket.socket] = []

    def work() -> None:
        try:
            connection = address.connection(timeout)
            with contextlib.closing(connection):
                connection.connect()
                opened.append(connection.sock)
                if late.is_set():  # it was given up, and is tried again
                    return
                connection.request("POST", address.target, body, {**headers, **address.headers})
                response = connection.getresponse()
                text = response.read(READ) if slack else b""
                found.append(_judge(response.status, response.getheader("Retry-After"), text, slack, clock))
        except (OSError, http.client.HTTPException, ValueError) as error:
            found.append(_failure(error, timeout))

    thread = threading.Thread(target=work, daemon=True, name="webhook")
    try:
        thread.start()
    except RuntimeError:  # the system has no more threads
        return _Answer(False, "no thread could be started", again=True)
    thread.join(timeout)
    late.set()
    if found:
        return found[0]
    for sock in opened:  # ends the thread's read; not SSLSocket's own, which takes the TLS state from under it
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
    return _Answer(False, _slow(timeout), again=True)


def _judge(status: int, retry_after: str | None, text: bytes, slack: bool, clock: Callable[[], datetime]) -> _Answer:
    said = text.strip()
    word = said.decode("ascii", "replace") if slack else ""
    known = f" ({word})" if word in SLACK_ERRORS else ""
    if 200 <= status < 300:
        if slack and said != b"ok":
            return _Answer(False, f"the server answers {status}, but not with Slack's ok{known}")
        return _Answer(True, "delivered")
    if 300 <= status < 400:
        return _Answer(False, f"the server answers {status}: redirects are not followed, the address is a secret")
    phrase = next((f" {one.phrase}" for one in HTTPStatus if one == status), "")
    again = status in RETRIED or 500 <= status < 600
    return _Answer(False, f"the server answers {status}{phrase}{known}", again, _wait(retry_after, clock))


def _wait(retry_after: str | None, clock: Callable[[], datetime]) -> float:
    """Seconds, from a number or a date; 0 where it is neither."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        until = email.utils.parsedate_to_datetime(text)
        return max(0.0, (until - clock()) / timedelta(seconds=1))
    return 0.0


def _failure(error: Exception, timeout: float) -> _Answer:
    """In our own words: texts of exceptions hold hosts and paths."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = "it is made out to another host" if error.verify_code in _CERTIFICATE_OF_ANOTHER else error.verify_message
        return _Answer(False, f"the server's certificate is not trusted: {why}")
    if isinstance(error, ssl.SSLError):
        return _Answer(False, "no secure connection: the server does not speak TLS as expected", again=True)
    if isinstance(error, TimeoutError):
        return _Answer(False, _slow(timeout), again=True)
    if isinstance(error, socket.gaierror):
        return _Answer(False, "the host is not known: its name cannot be resolved", again=True)
    if isinstance(error, ConnectionRefusedError):
        return _Answer(False, "the connection was refused", again=True)
    if isinstance(error, ConnectionError):
        return _Answer(False, "the server closed the connection without an answer", again=True)
    if isinstance(error, http.client.HTTPException):
        return _Answer(False, "what the server answers is not HTTP")
    if isinstance(error, OSError):
        why = os.strerror(error.errno) if error.errno else "the proxy refused it, or cannot be used"
        return _Answer(False, f"the connection failed: {why}", again=True)
    return _Answer(False, "the request cannot be made of this address")


def _slow(timeout: float) -> str:
    return f"no answer within {timeout:g} s"


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _basic(user: str, password: str | None) -> str:
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode("ascii")
