"""Metrics sent to a Pushgateway, for jobs on machines that Prometheus does not scrape.

A push replaces everything that was pushed for the job before (PUT to ``/metrics/job/gpudrift/drift_job/<job>``), so
that what no longer exists goes. Credentials (HTTP basic authentication) come from the environment alone, and no error
shows them: of what the other side answers only the status is told, since the rest may repeat what it was sent.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from prometheus_client import CollectorRegistry, push_to_gateway

from gpudrift.errors import ConfigError, GpudriftError
from gpudrift.report.wording import printable

USER, PASSWORD = "GPUDRIFT_PUSH_USER", "GPUDRIFT_PUSH_PASSWORD"
GROUP = "gpudrift"  # the label ``job`` of all that is pushed
_FIELD = "prometheus.push"


class PushError(GpudriftError):
    """A Pushgateway that did not take what it was sent; never ends a run."""


class _NoPushgateway(OSError):
    """An answer that no Pushgateway gives."""


def push(registry: CollectorRegistry, address: str, *, job: str, timeout: float, environ: Mapping[str, str]) -> None:
    """Replace what the Pushgateway at ``address`` (``http(s)://host:port``) has of ``job``.

    Args:
        timeout: seconds for all of it: finding the host, connecting, and the answer, however slowly it comes.
        environ: holds ``GPUDRIFT_PUSH_USER`` and ``GPUDRIFT_PUSH_PASSWORD``, or neither.

    Raises:
        PushError: it cannot be reached, does not answer in time, refuses, or is no Pushgateway.
        ConfigError: an address or credentials that cannot work.
    """
    place, credentials = _place(address), _credentials(environ)
    ended: list[str] = []

    def send() -> None:
        try:
            push_to_gateway(
                address,
                GROUP,
                registry,
                grouping_key={"drift_job": job},
                timeout=timeout,
                handler=_handler(credentials),
            )
        except (OSError, HTTPException, ValueError) as error:
            ended.append(_problem(error))
        else:
            ended.append("")

    # a thread: a socket's timeout bounds neither the look-up of a name nor an answer that comes byte by byte
    sender = threading.Thread(target=send, name="gpudrift push", daemon=True)
    sender.start()
    sender.join(timeout)
    problem = ended[0] if ended else f"no answer within {timeout:g} s"
    if problem:
        raise PushError(
            f"the Pushgateway did not take the metrics: {problem}",
            where=place,
            field=_FIELD,
            hint=f"look whether a Pushgateway listens there, and whether {USER} and {PASSWORD} are right",
        )


def _place(address: str) -> str:
    """The address as errors show it. Raises ConfigError for one that cannot be pushed to, without showing it."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises ValueError for what is no port
    except ValueError:
        parts = urlsplit("")
    plain = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not plain or "@" in address:
        raise ConfigError(
            "this is not the address of a Pushgateway",
            field=_FIELD,
            value="(hidden)",
            allowed=f"http(s)://host:port, without credentials: these come from {USER} and {PASSWORD}",
        )
    return printable(address)


def _credentials(environ: Mapping[str, str]) -> str | None:
    """The value of the Authorization header (RFC 7617), None without credentials."""
    user, password = environ.get(USER), environ.get(PASSWORD)
    if not user and not password:
        return None
    if not user or not password or ":" in user:
        lacking = USER if not user else PASSWORD
        message = f"{USER} holds a colon, which no user's name may" if user and password else f"{lacking} is not set"
        raise ConfigError(message, field=_FIELD, value="(hidden)", allowed=f"both {USER} and {PASSWORD}, or neither")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")


def _handler(credentials: str | None) -> Callable[..., Callable[[], None]]:
    """What ``push_to_gateway`` sends its request by. urllib follows no redirect of a PUT, which would take credentials
    along."""

    def made(
        url: str, method: str, timeout: float | None, headers: Sequence[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        def send() -> None:
            request = Request(url, data=data, headers=dict(headers), method=method)
            if credentials is not None:
                request.add_header("Authorization", credentials)
            with build_opener().open(request, timeout=timeout) as answer:
                if answer.headers.get_content_type() == "text/html":
                    raise _NoPushgateway("it answered with a web page, which no Pushgateway does")

        return send

    return made


def _problem(error: OSError | HTTPException | ValueError) -> str:
    """What went wrong, in words that hold nothing of the request or the answer."""
    if isinstance(error, HTTPError):
        error.close()
        phrase = next((f" {status.phrase}" for status in HTTPStatus if status == error.code), "")
        return f"it answered {error.code}{phrase}"
    if isinstance(error, _NoPushgateway):
        return str(error)
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError):
        return reason.strerror or f"the connection failed ({type(reason).__name__})"
    if isinstance(reason, str):
        return "the address cannot be asked"
    return f"its answer is not HTTP ({type(reason).__name__})"
