"""The webhook against a real server on loopback: delivered once, in bounded time, and its address nowhere told."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from webhooks import (
    CANARY,
    MONDAY,
    Act,
    a_message,
    answer,
    closing,
    dripping,
    dripping_body,
    endless_body,
    endless_headers,
    no_http,
    serving,
    silent,
)

from gpudrift import __version__
from gpudrift.monitoring import notify as notify_module
from gpudrift.monitoring import post as post_module
from gpudrift.monitoring import told
from gpudrift.monitoring.message import Message
from gpudrift.monitoring.notify import Delivery, notify
from gpudrift.monitoring.post import Address, AddressError

NOW = MONDAY + timedelta(days=8, hours=3)
ENV = "MY_WEBHOOK"
OK = answer(200, "ok")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Waits(list[float]):
    """Seconds the job would have slept."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def send(address: str | None, directory: Path, message: Message | None = None, **changes: Any) -> Delivery:
    settings: dict[str, Any] = {
        "form": "json", "url_env": ENV, "verdicts": ["warning", "alert"], "cooldown_hours": 168.0,
        "timeout_seconds": 5.0, "attempts": 1, "directory": directory, "clock": lambda: NOW, "sleep": Waits(),
        "jitter": lambda: 0.5, "environ": {} if address is None else {ENV: address},
    }  # fmt: skip
    return notify(a_message() if message is None else message, **(settings | changes))


def state(directory: Path) -> str:
    path = directory / told.STATE_FILE
    return path.read_text() if path.exists() else ""


def test_a_message_is_posted_as_json(tmp_path: Path) -> None:
    with serving(OK) as hook:
        found = send(hook.address(), tmp_path)
    assert found == Delivery("webhook", True, True, "delivered: new", 1)
    (request,) = hook.requests
    assert (request.method, request.path) == ("POST", f"/services/{CANARY}?key={CANARY}")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == f"gpudrift/{__version__}"
    assert request.headers["Host"] == f"127.0.0.1:{hook.port}"
    assert request.json["event"] == "new"
    assert request.json["clusters"][0]["ids"] == ["doc-1", "doc-2"]
    assert request.json["time"] == NOW.isoformat()


def test_any_2xx_takes_json_and_only_ok_takes_slack(tmp_path: Path) -> None:
    with serving(answer(204)) as hook:
        assert send(hook.address(), tmp_path / "a").sent
        assert not send(hook.address(), tmp_path / "b", form="slack").sent
    for said in ("ok", " ok\n"):
        with serving(answer(200, said)) as hook:
            assert send(hook.address(), tmp_path / repr(said), form="slack").sent
            assert set(hook.requests[0].json) == {"text", "blocks"}


def test_credentials_of_an_address_are_sent_as_a_header(tmp_path: Path) -> None:
    with serving(OK) as hook:
        address = hook.address().replace("127.0.0.1", f"me:{CANARY}%40@127.0.0.1")
        assert send(f"  {address}\n", tmp_path).sent  # as a file of secrets holds it
    assert hook.requests[0].headers["Authorization"].startswith("Basic ")
    assert hook.requests[0].headers["Host"] == f"127.0.0.1:{hook.port}"


def test_an_address_without_a_path_is_posted_to_its_root(tmp_path: Path) -> None:
    with serving(OK) as hook:
        assert send(f"http://127.0.0.1:{hook.port}", tmp_path).sent
        assert hook.requests[0].path == "/"


# what a server does -> what the delivery says, and whether another attempt is made
FAILURES: dict[str, tuple[Act, str, bool]] = {
    "silent": (silent, "no answer within 0.2 s", True),
    "dripping": (dripping, "no answer within 0.2 s", True),
    "closing": (closing, "the server closed the connection without an answer", True),
    "endless headers": (endless_headers, "what the server answers is not HTTP", False),
    "not HTTP": (no_http, "what the server answers is not HTTP", False),
    "redirect": (
        answer(302, Location="/elsewhere"),
        "the server answers 302: redirects are not followed, the address is a secret",
        False,
    ),
    "permanent": (
        answer(308, Location="/elsewhere"),
        "the server answers 308: redirects are not followed, the address is a secret",
        False,
    ),
    "400": (answer(400, CANARY), "the server answers 400 Bad Request", False),
    "401": (answer(401), "the server answers 401 Unauthorized", False),
    "404": (answer(404), "the server answers 404 Not Found", False),
    "408": (answer(408), "the server answers 408 Request Timeout", True),
    "429": (answer(429), "the server answers 429 Too Many Requests", True),
    "500": (answer(500, CANARY), "the server answers 500 Internal Server Error", True),
    "503": (answer(503), "the server answers 503 Service Unavailable", True),
    "799": (answer(799), "the server answers 799", False),
}


@pytest.mark.parametrize("form", ["json", "slack"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_told_and_tried_again_where_that_may_help(tmp_path: Path, name: str, form: str) -> None:
    act, reason, again = FAILURES[name]
    waits = Waits()
    with serving(act) as hook:
        found = send(hook.address(), tmp_path, form=form, timeout_seconds=0.2, attempts=2, sleep=waits)
        assert found == Delivery("webhook", False, False, reason, 2 if again else 1)
        assert [request.method for request in hook.requests] == ["POST"] * found.attempts
    assert len(waits) == found.attempts - 1
    assert state(tmp_path) == ""


SLACK_FAILURES: dict[str, tuple[Act, str]] = {
    "no_service": (answer(200, "no_service"), "the server answers 200, but not with Slack's ok (no_service)"),
    "a word of its own": (answer(200, CANARY), "the server answers 200, but not with Slack's ok"),
    "okay": (answer(200, "okay"), "the server answers 200, but not with Slack's ok"),
    "nothing": (answer(200), "the server answers 200, but not with Slack's ok"),
    "other letters": (answer(200, "ök"), "the server answers 200, but not with Slack's ok"),
    "endless": (endless_body, "the server answers 200, but not with Slack's ok"),
    "dripping body": (dripping_body, "no answer within 0.2 s"),
    "400": (answer(400, "invalid_payload"), "the server answers 400 Bad Request (invalid_payload)"),
    "404": (answer(404, "no_service"), "the server answers 404 Not Found (no_service)"),
    "410": (answer(410, "channel_is_archived\n"), "the server answers 410 Gone (channel_is_archived)"),
}


@pytest.mark.parametrize("name", SLACK_FAILURES)
def test_what_slack_says_is_not_trusted(tmp_path: Path, name: str) -> None:
    act, reason = SLACK_FAILURES[name]
    with serving(act) as hook:
        found = send(hook.address(), tmp_path, form="slack", timeout_seconds=0.2)
    assert found == Delivery("webhook", False, False, reason, 1)
    assert state(tmp_path) == ""


@pytest.mark.parametrize("act", [endless_body, dripping_body])
def test_the_body_of_a_good_answer_is_not_waited_for(tmp_path: Path, act: Act) -> None:
    with serving(act) as hook:
        assert send(hook.address(), tmp_path).sent


def test_a_closed_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/{CANARY}"
        found = send(address, tmp_path, attempts=3)
    assert found == Delivery("webhook", False, False, "the connection was refused", 3)


def test_a_host_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = send(f"https://{CANARY}.example/{CANARY}", tmp_path)
    assert found == Delivery("webhook", False, False, "the host is not known: its name cannot be resolved", 1)


def test_a_name_that_resolves_too_slowly_is_given_up_and_never_posted_to_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, resolved = socket.getaddrinfo, threading.Event()

    def slowly(*args: Any, **options: Any) -> Any:
        resolved.wait()
        return before(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with serving(OK) as hook:
        found = send(hook.address(), tmp_path, timeout_seconds=0.1)
        assert found.reason == "no answer within 0.1 s"
        late = [thread for thread in threading.enumerate() if thread.name == "webhook"]
        resolved.set()
        for thread in late:
            thread.join()
        assert hook.requests == []


def test_a_failure_and_then_success(tmp_path: Path) -> None:
    waits = Waits()
    with serving(answer(500), closing, answer(429, Retry_After="7"), OK) as hook:
        found = send(hook.address(), tmp_path, attempts=10, sleep=waits)
    assert found == Delivery("webhook", True, True, "delivered: new", 4)
    assert waits == [1.0, 2.0, 7.0]  # doubling, or what the server asks for where that is longer
    assert len({request.body for request in hook.requests}) == 1
    assert len(hook.requests) == 4


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        ("0", 1.0),
        ("30", 30.0),
        ("86400", 60.0),
        ("9" * 40, 1.0),
        ("soon", 1.0),
        ("-5", 1.0),
        ("Tue, 13 Jan 2026 03:00:40 GMT", 40.0),
        ("Tue, 13 Jan 2026 02:00:00 GMT", 1.0),
        ("Tue, 13 Jan 2099 03:00:40 GMT", 60.0),
        ("Tue, 99 Jan 2026 03:00:40 GMT", 1.0),
    ],
)
def test_a_server_may_ask_for_a_longer_wait_within_bounds(tmp_path: Path, retry_after: str, waited: float) -> None:
    waits = Waits()
    with serving(answer(503, Retry_After=retry_after), OK) as hook:
        assert send(hook.address(), tmp_path, attempts=2, sleep=waits).sent
    assert waits == [waited]


def test_waits_of_jobs_that_fail_together_spread(tmp_path: Path) -> None:
    for share in (0.0, 0.99):
        waits = Waits()
        with serving(answer(500)) as hook:
            send(hook.address(), tmp_path, attempts=9, sleep=waits, jitter=lambda share=share: share)
        assert waits == [min(2**k * (0.5 + share), 60.0) for k in range(8)]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (None, "is not set: it holds the address"),
        ("", "is empty or holds spaces or letters that addresses do not have"),
        (f"https://host/{CANARY} x", "is empty or holds spaces or letters that addresses do not have"),
        (f"https://host/{CANARY}\r\nX-More: 1", "is empty or holds spaces or letters that addresses do not have"),
        (f"https://höst/{CANARY}", "is empty or holds spaces or letters that addresses do not have"),
        (CANARY, "does not hold an address of the form https://host/path"),
        (f"ftp://host/{CANARY}", "does not hold an address of the form https://host/path"),
        (f"file:///{CANARY}", "does not hold an address of the form https://host/path"),
        (f"https:///{CANARY}", "does not hold an address of the form https://host/path"),
        (f"https://host:port/{CANARY}", "does not hold an address of the form https://host/path"),
        (f"https://host:99999/{CANARY}", "does not hold an address of the form https://host/path"),
        (f"https://[::1/{CANARY}", "does not hold an address of the form https://host/path"),
        (f"http://hooks.example/{CANARY}", "is an http address; https is needed to any host but this one (loopback)"),
        (f"http://10.0.0.1/{CANARY}", "is an http address; https is needed to any host but this one (loopback)"),
        (f"http://127.0.0.1.example/{CANARY}", "is an http address; https is needed to any host but this one"),
        (f"http://localhost@evil.example/{CANARY}", "is an http address; https is needed to any host but this one"),
    ],
)
def test_an_address_that_cannot_be_used_is_said_without_it(
    tmp_path: Path, address: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "create_connection", reached)
    found = send(address, tmp_path)
    assert (found.ok, found.sent, found.attempts) == (False, False, 0)
    assert found.reason.startswith(f"the environment variable {ENV} {reason}")
    assert CANARY not in repr(found)
    quiet = send(address, tmp_path, a_message("stable"))  # said at once, not when the first alarm comes
    assert not quiet.ok


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert not Address(f"http://{host}/{CANARY}").tls


def test_an_address_is_never_shown() -> None:
    shown = Address(f"https://me:{CANARY}@{CANARY}.example/{CANARY}?{CANARY}")
    assert CANARY not in f"{shown} {shown!r} {[shown]}"
    with pytest.raises(AddressError) as caught:
        Address(f"https://host:{CANARY}/")
    assert CANARY not in "".join(map(str, (caught.value, caught.value.__cause__, caught.value.__context__)))


@pytest.mark.parametrize("name", [*FAILURES, *SLACK_FAILURES])
def test_no_failure_tells_the_address(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    act = FAILURES[name][0] if name in FAILURES else SLACK_FAILURES[name][0]
    with serving(act) as hook:
        address = hook.address().replace("//", f"//me:{CANARY}@")
        found = send(address, tmp_path, form="slack", timeout_seconds=0.2)
    told_anywhere = f"{found!r}{caplog.text}{capfd.readouterr()}{state(tmp_path)}"
    assert CANARY not in told_anywhere
    assert "127.0.0.1" not in told_anywhere
    assert "Authorization" not in told_anywhere


def test_no_exception_tells_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library puts into its texts."""
    kinds: list[Callable[[str], Exception]] = [
        OSError,
        lambda text: OSError(113, text),
        ConnectionResetError,
        ConnectionAbortedError,
        TimeoutError,
        ssl.SSLError,
        ssl.SSLEOFError,
        ValueError,
        lambda text: UnicodeError(text),
        post_module.http.client.InvalidURL,
        post_module.http.client.IncompleteRead,  # type: ignore[list-item]
        post_module.http.client.RemoteDisconnected,
        lambda text: socket.gaierror(-2, text),
        socket.herror,
    ]
    for kind in kinds:

        def failing(*_: Any, kind: Callable[[str], Exception] = kind, **__: Any) -> Any:
            raise kind(f"cannot reach {CANARY}")

        monkeypatch.setattr(socket, "create_connection", failing)
        found = send(f"https://host.example/{CANARY}", tmp_path)
        assert (found.ok, found.sent) == (False, False)
        assert CANARY not in repr(found)
        assert found.reason


def test_no_thread_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(OK) as hook, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        assert send(hook.address(), tmp_path).reason == "no thread could be started"


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A self-signed certificate of a host, with its key, as a file."""
    directory = tmp_path_factory.mktemp("tls")

    def make(host: str) -> Path:
        path = directory / f"{host}.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        alternative: x509.GeneralName = x509.DNSName(host)
        if host[0].isdigit():
            alternative = x509.IPAddress(ipaddress.ip_address(host))
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
        return path

    return make


def speaking(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_nobody_trusts_ends_it(tmp_path: Path, certificate: Callable[[str], Path]) -> None:
    with serving(OK, tls=speaking(certificate("localhost"))) as hook:
        found = send(hook.address("localhost", "https"), tmp_path, attempts=3)
        assert found.reason == "the server's certificate is not trusted: self-signed certificate"
        assert found.attempts == 1
        assert hook.requests == []


def test_a_certificate_of_another_host_ends_it(
    tmp_path: Path, certificate: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for made_out_to, host in (("other.example", "localhost"), ("127.0.0.9", "127.0.0.1")):
        trusted = certificate(made_out_to)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with serving(OK, tls=speaking(trusted)) as hook:
            found = send(hook.address(host, "https"), tmp_path, attempts=3)
            assert found.reason == "the server's certificate is not trusted: it is made out to another host"
            assert hook.requests == []


def test_a_trusted_certificate_of_the_host_is_fine(
    tmp_path: Path, certificate: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = certificate("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with serving(OK, tls=speaking(trusted)) as hook:
        assert send(hook.address("localhost", "https"), tmp_path).sent
        assert len(hook.requests) == 1


def test_tls_to_a_server_without_it(tmp_path: Path) -> None:
    with serving(OK) as hook:
        found = send(hook.address(scheme="https"), tmp_path)
    assert found.reason == "no secure connection: the server does not speak TLS as expected"


def test_a_proxy_of_the_environment_is_used_and_sees_no_path(
    tmp_path: Path, certificate: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = certificate("hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with serving(OK, proxy_for=speaking(trusted)) as hook:
        monkeypatch.setenv("https_proxy", f"http://me:{CANARY}@127.0.0.1:{hook.port}")
        found = send(f"https://hooks.example/{CANARY}", tmp_path, form="slack")
        assert found.sent
    asked, posted = hook.requests
    assert (asked.method, asked.path) == ("CONNECT", "hooks.example:443")
    assert asked.headers["Proxy-Authorization"].startswith("Basic ")
    assert (posted.method, posted.path) == ("POST", f"/{CANARY}")
    assert "Proxy-Authorization" not in posted.headers


@pytest.mark.parametrize("proxy", ["refusing", "socks5://127.0.0.1:1", "http://:x", "http://127.0.0.1:port"])
def test_a_proxy_that_does_not_work(tmp_path: Path, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(OK) as hook:
        address = f"127.0.0.1:{hook.port}" if proxy == "refusing" else proxy
        monkeypatch.setenv("https_proxy", address)
        found = send(f"https://hooks.example/{CANARY}", tmp_path)
    assert not found.ok
    assert CANARY not in repr(found)
    assert found.reason in (
        "the connection failed: the proxy refused it, or cannot be used",
        "the request cannot be made of this address",
    )


# what is remembered


def test_a_message_is_remembered_when_it_was_delivered_and_not_before(tmp_path: Path) -> None:
    with serving(answer(500), OK) as hook:
        assert not send(hook.address(), tmp_path).sent
        assert state(tmp_path) == ""
        assert send(hook.address(), tmp_path).sent  # the next run
        kept = json.loads(state(tmp_path))
        assert kept["references"]["0123456789ab"]["drift"] == {
            "verdict": "alert",
            "window": "2026-W02",
            "start": MONDAY.isoformat(),
            "at": NOW.isoformat(),
        }
        assert send(hook.address(), tmp_path) == Delivery("webhook", True, False, "nothing sent: told already")
        assert len(hook.requests) == 2
    assert CANARY not in state(tmp_path)


def test_a_failed_resolve_is_sent_by_the_next_run(tmp_path: Path) -> None:
    with serving(OK, answer(503), OK) as hook:
        events = [
            send(hook.address(), tmp_path, a_message(verdict, k)).sent
            for verdict, k in (("alert", 0), ("stable", 1), ("stable", 2), ("stable", 3))
        ]
    assert events == [True, False, True, False]
    resolved = hook.requests[2].json
    assert (resolved["event"], resolved["window"]["label"]) == ("resolved", "2026-W04")
    assert resolved["before"] == {"verdict": "alert", "window": "2026-W02", "time": NOW.isoformat()}


def test_each_reference_and_each_job_is_remembered_by_itself(tmp_path: Path) -> None:
    with serving(OK) as hook:
        one, other = a_message(), replace(a_message(), reference="ba9876543210")
        assert [send(hook.address(), tmp_path, m).sent for m in (one, other, one, other)] == [True, True, False, False]
        assert send(hook.address(), tmp_path / "another job", one).sent


def test_the_cooldown_counts_in_hours(tmp_path: Path) -> None:
    with serving(OK) as hook:
        sent = [
            send(hook.address(), tmp_path, a_message("alert", k), cooldown_hours=24.0, clock=lambda h=h: NOW + h).sent
            for k, h in enumerate(timedelta(hours=hours) for hours in (0, 23.9, 24, 47.9, 48))
        ]
    assert sent == [True, False, True, False, True]


DAMAGE = [
    b"", b"{", b"[]", b"null", b"7", b'{"format_version": 2, "references": {}}', b'{"format_version": 1}', b"\xff\xfe",
    b'{"format_version": 1, "references": []}', b'{"format_version": 1, "references": {"0123456789ab": null}}',
    b'{"format_version": 1, "references": {"0123456789ab": {"drift": {}, "data": null}}}',
    b'{"format_version": 1, "references": {"0123456789ab": {"drift": {"verdict": "calm", "window": "2026-W02",'
    b' "start": "2026-01-05T00:00:00+00:00", "at": "2026-01-05T00:00:00+00:00"}, "data": null}}}',
    b'{"format_version": 1, "references": {"0123456789ab": {"drift": {"verdict": "alert", "window": "2026-W02",'
    b' "start": "2026-01-05T00:00:00", "at": "2026-01-05T00:00:00+00:00"}, "data": null}}}',
    b'{"format_version": 1, "references": {"0123456789ab": {"drift": {"verdict": "alert", "window": "2026-W02",'
    b' "start": 5, "at": "2026-01-05T00:00:00+00:00"}, "data": null}}}',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_state_counts_as_nothing_told_and_is_said(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / told.STATE_FILE
    path.write_bytes(damage)
    with serving(OK) as hook:
        silent_one = send(hook.address(), tmp_path, a_message("stable"))
        assert (silent_one.ok, silent_one.sent) == (True, False)
        assert path.read_bytes() == damage
        found = send(hook.address(), tmp_path)
        assert found.sent
        note = "what was told before is not known: its file is damaged"
        assert silent_one.reason.endswith(note)
        assert found.reason.endswith(note)
        assert send(hook.address(), tmp_path).reason == "nothing sent: told already"


def test_a_state_that_cannot_be_read_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / told.STATE_FILE).mkdir()
    with serving(OK) as hook:
        found = send(hook.address(), tmp_path)
        assert (found.ok, found.sent) == (False, False)
        assert found.reason == "what was told before cannot be read, so nothing is sent: Is a directory"
        assert hook.requests == []


def test_a_state_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notify_module.told, "save", full)
    with serving(OK) as hook:
        found = send(hook.address(), tmp_path)
    assert (found.ok, found.sent) == (False, True)
    assert found.reason == "delivered: new; not noted, so the next run tells it again: No space left on device"


def test_the_state_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with serving(OK) as hook:
        send(hook.address(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [told.STATE_FILE]
    assert told.STATE_FILE.startswith(".")  # readers of the history as a data set pass it over


def test_a_message_is_the_same_bytes_at_every_attempt_and_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids: list[str] = []
    with serving(OK) as hook:
        for hours, (verdict, k) in enumerate([("warning", 0), ("alert", 1), ("alert", 2), ("stable", 3), ("alert", 3)]):
            now = NOW + timedelta(hours=hours)
            assert send(hook.address(), tmp_path, a_message(verdict, k), cooldown_hours=0, clock=lambda n=now: n).sent
        ids = [request.json["id"] for request in hook.requests]
    assert len(set(ids)) == len(ids) == 5
