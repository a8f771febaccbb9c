"""Which Ray head is meant and whether it answers, asked before Ray is: ``ray.init`` tries for minutes, or ends the
process, where none does.

Head and nodes speak gRPC, so HTTP/2 (RFC 9113): a server says SETTINGS as soon as a client has sent its preface.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from gpudrift.errors import EngineError

LEAVING = "gpudrift-ray-shutdown"  # name of the thread that leaves a cluster that may be gone
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and SETTINGS without any
_HEADER, _SETTINGS = 9, 4
_TRY_SECONDS = 5.0  # a connection may need
_PAUSE = 0.25  # between tries, while a head is starting


def choose(address: str | None, running: str | None) -> tuple[str, str, str]:
    """What to connect to (HOST:PORT or ``local``), how that was said, and where.

    Args:
        address: a setting: HOST:PORT, ``auto``, ``local`` or None.
        running: the head that was last started on this machine.
    """
    given = os.environ.get("RAY_ADDRESS")
    if address in (None, "auto") and given:
        if given != "auto":
            if given != "local":
                split(given, "RAY_ADDRESS")
            return given, "RAY_ADDRESS", "RAY_ADDRESS"
        address = "auto"
    if address in (None, "local"):
        return "local", "local", "engine.address"
    if address == "auto":
        if running is None:
            raise EngineError(
                "no Ray runs on this machine",
                field="engine.address",
                value="auto",
                hint="start it (ray start --head), name its head as HOST:PORT, or leave the address out",
            )
        return running, "auto", "engine.address"
    named = str(address)
    split(named, "engine.address")
    return named, "HOST:PORT", "engine.address"


def require_head(address: str, seconds: float, field: str = "engine.address") -> None:
    """Return as soon as something at HOST:PORT speaks gRPC.

    Args:
        seconds: to try for.
        field: where the address came from, for the message.

    Raises:
        EngineError: nothing does; the message tells what was met.
    """
    host, port = split(address, field)
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        why, again = _ask(host, port, max(0.1, min(left, _TRY_SECONDS)))
        if why is None:
            return
        if not again or time.monotonic() + _PAUSE >= end:
            raise EngineError(
                f"no Ray head answers: {why}",
                field=field,
                value=address,
                hint="start it (ray start --head --port=6379), check host, port and firewall, or leave the address "
                "out to run on this machine",
            )
        time.sleep(_PAUSE)


def hangs() -> bool:
    """Whether Ray still tries to leave a cluster that does not answer: its threads then crash the process where the
    interpreter ends before them."""
    return any(thread.name == LEAVING for thread in threading.enumerate())


def split(address: str, field: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or int(port) > 65535:
        client = address.startswith("ray://")
        raise EngineError(
            "this is the address of a Ray Client server" if client else "this is no address of a Ray head",
            field=field,
            value=address,
            allowed="HOST:PORT of the head's GCS (6379 by default), auto, local",
            hint="run the job on a machine of the cluster (ray job submit ...), and without RAY_ADDRESS=ray://..."
            if client
            else None,
        )
    return host.strip("[]"), int(port)


def listens(host: str, port: int, seconds: float = _TRY_SECONDS) -> bool:
    """Whether a connection is accepted. False only where it is refused: who is slow to answer is not dead."""
    try:
        socket.create_connection((host, port), seconds).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _ask(host: str, port: int, seconds: float) -> tuple[str | None, bool]:
    """What is wrong (None: nothing), and whether it may get better."""
    try:
        connection = socket.create_connection((host, port), seconds)
    except socket.gaierror as error:
        return f"the host {host!r} is not known ({error.strerror})", False
    except TimeoutError:
        return f"no connection within {seconds:.3g} s", True
    except OSError as error:
        return f"no connection ({error.strerror or error})", True
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
            return None, False
        connection.settimeout(seconds)
        said = b""
        try:
            connection.sendall(_PREFACE)
            while len(said) < _HEADER:
                more = connection.recv(_HEADER - len(said))
                if not more:
                    return "the connection was closed: this port is not Ray's", True
                said += more
        except TimeoutError:
            return f"the port accepts connections, but says nothing within {seconds:.3g} s", True
        except OSError as error:
            return f"the connection broke ({error.strerror or error})", True
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
    return (None, False) if said[3] == _SETTINGS else ("this port speaks another protocol than Ray's", False)
