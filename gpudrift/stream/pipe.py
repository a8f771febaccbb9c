"""Record batches as an Arrow IPC stream, on standard input or a loopback socket; docs/stream.md has the protocol.

A batch may carry ``sequence`` (a whole number that grows) and ``partition`` (text) in its custom metadata. The
checkpoint holds the last sequence of each partition that counts; what is at or below it is skipped, so a producer that
sends again what it is not sure of loses nothing and doubles nothing.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from gpudrift import reference
from gpudrift.errors import ConfigError, DataError, GpudriftError
from gpudrift.source import ArrowBatches, CleanBatch
from gpudrift.source.layouts import Encoding
from gpudrift.source.rowfilter import RowFilter, parse_filter
from gpudrift.stream.session import Session

STDIN = 0
TICK = 0.5  # seconds between two looks at the clock while nothing comes
MOST_BYTES = 1 << 30  # of one message: a length beyond it is a lie or a mistake
MOST_PARTITIONS = 10_000
_BROKEN = (pa.ArrowException, OSError, EOFError, MemoryError)


class Ended(Exception):
    """Told to stop, or nothing came for too long."""


def read_stdin(session: Session) -> None:
    """Standard input, to its end.

    Raises:
        DataError, ConfigError: it is no Arrow IPC stream, or its columns are not those configured.
    """
    batches = _Batches(session, "stdin")
    try:
        batches.read(STDIN)
    except Ended:
        return
    except _BROKEN as error:
        if _own(error):
            raise
        if not batches.opened:
            raise DataError(
                f"standard input is no Arrow IPC stream: {_first_line(error)}",
                field="stream.input",
                value="stdin",
                hint="write with pyarrow.ipc.new_stream (the streaming format, not the file format)",
            ) from error
        _broken(session, "stdin", error)
        session.faults = True  # nobody sends the rest again


def listen(session: Session) -> None:
    """A loopback socket, one client at a time; others wait their turn."""
    settings, waiter = session.ctx.job.stream, session.waiter
    with _server(settings.input) as server:
        host, port = server.getsockname()[:2]
        session.listening = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
        session.write_status(None)
        session.ctx.reporter.note(f"listening on {session.listening}")
        quiet = waiter.now()
        while not waiter.stopping:
            if waiter.wait(TICK, server.fileno()):
                client, _ = server.accept()
                with client:
                    _serve(session, client)
                quiet = waiter.now()
                if settings.until.value == "once":
                    return
            session.tick()
            if settings.until.value == "idle" and waiter.now() - quiet >= settings.idle_seconds:
                return


def _serve(session: Session, client: socket.socket) -> None:
    """One client: tell it where to go on from, take its batches, confirm each checkpoint."""
    replies = _Replies(client)
    session.after_checkpoint = lambda: replies.say({"checkpointed": session.state.sequences})
    try:
        replies.first({"gpudrift": 1, "resume_after": session.state.sequences})
        _Batches(session, "socket").read(client.fileno())
        session.save()
        replies.last({"checkpointed": session.state.sequences, "end": True})
    except Ended:
        session.save()
        replies.last({"checkpointed": session.state.sequences, "end": False})
    except GpudriftError as error:
        session.state.refuse({"error": str(error)})
        session.faults = True
        session.changed()
        session.ctx.reporter.warn(f"refused a stream: {_first_line(error)}")
        replies.last({"error": str(error)})
    except _BROKEN as error:
        if _own(error):
            raise
        _broken(session, "socket", error)
        replies.last({"error": f"the stream broke off: {_first_line(error)}"})
    finally:
        session.after_checkpoint = lambda: None


class _Batches:
    """Takes the batches of one IPC stream in, each as a whole."""

    def __init__(self, session: Session, name: str) -> None:
        self._session, self._name = session, name
        self._filter: RowFilter | None = parse_filter(session.ctx.job.source.filter)
        self._number = 0
        self.opened = False

    def read(self, descriptor: int) -> None:
        """To the end of the stream.

        Raises:
            Ended; GpudriftError for a schema that cannot be used; pyarrow's errors where the stream breaks off.
        """
        session = self._session
        handle = _Bounded(_Descriptor(descriptor, session))
        with contextlib.closing(handle), pa.ipc.open_stream(handle) as stream:
            self.opened = True
            cleaner = self._cleaner(stream.schema)
            while True:
                with session.taker.stages("read"):
                    try:
                        batch, metadata = stream.read_next_batch_with_custom_metadata()
                    except StopIteration:
                        return
                self._number += 1
                self._take(cleaner, batch, metadata or {})
                session.tick()

    def _cleaner(self, schema: Any) -> ArrowBatches:
        source, pinned = self._session.ctx.job.source, self._session.emitter.pinned
        stored = (schema.metadata or {}).get(b"encoder_id")
        encoder = source.encoder_id or (None if stored is None else stored.decode("utf-8", "replace"))
        reference.check_rows(pinned, pinned.dim, encoder, self._name)
        if self._filter is not None:
            self._filter.rows(schema.empty_table())  # a column that is not there is an error now
        return ArrowBatches(
            schema,
            embedding_column=source.embedding_column,
            id_column=source.id_column,
            time_column=source.time_column,
            encoding=Encoding(source.encoding, source.scale, source.zero_point, source.pooling),
            expect_dim=pinned.dim,
        )

    def _take(self, cleaner: ArrowBatches, batch: Any, metadata: Mapping[bytes, bytes]) -> None:
        session = self._session
        state = session.state
        partition, sequence = _place(metadata, self._name)
        if sequence is not None:
            if sequence <= state.sequences.get(partition, -1):
                state.counts["replayed_batches"] += 1
                return
            if partition not in state.sequences and len(state.sequences) >= MOST_PARTITIONS:
                raise DataError("too many partitions", field="partition", value=partition, allowed=MOST_PARTITIONS)
        origin = f"{self._name} {partition}:{self._number if sequence is None else sequence}"
        try:
            with session.taker.stages("read"):
                if self._filter is not None:
                    batch = batch.take(pa.array(self._filter.rows(pa.Table.from_batches([batch]))))
                clean = cleaner.clean(batch, origin)
                self._refuse_bad(clean, origin)
            taken = session.taker.batch(clean, state.floor, state.windows)
        except (GpudriftError, pa.ArrowException) as error:
            state.refuse({"partition": partition, "sequence": sequence, "error": str(error)})
            session.faults = True
            session.ctx.reporter.warn(f"refused, not counted: {origin}: {_first_line(error)}")
            taken = None
        if sequence is not None:
            state.sequences[partition] = sequence
        session.changed()
        if taken is not None:
            state.counts["batches"] += 1
            session.take(taken)

    def _refuse_bad(self, clean: CleanBatch, origin: str) -> None:
        quality = self._session.ctx.job.quality
        limit = 0.0 if quality.on_bad_rows.value == "fail" else quality.max_bad_fraction
        count = clean.bad.total + clean.no_time
        if count <= limit * clean.rows_read:
            return
        causes = [f"{number:,} {cause} ({', '.join(clean.bad.examples[cause][:3])})" for cause, number in
                  clean.bad.counts.items() if number]  # fmt: skip
        if clean.no_time:
            causes.append(f"{clean.no_time:,} without event time")
        raise DataError(
            f"{count:,} of {clean.rows_read:,} rows cannot be used: {'; '.join(causes)}",
            where=origin,
            field=self._session.ctx.job.source.embedding_column,
            allowed=f"{limit:.2%} of a batch (quality.on_bad_rows, quality.max_bad_fraction)",
        )


class _Descriptor(io.RawIOBase):
    """Reads a file descriptor; while nothing comes it lets the job emit and save, and ends when told to."""

    def __init__(self, descriptor: int, session: Session) -> None:
        self._descriptor, self._session = descriptor, session

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        session, waiter = self._session, self._session.waiter
        settings = session.ctx.job.stream
        begun = waiter.now()
        while not waiter.wait(TICK, self._descriptor):
            silent = settings.until.value == "idle" and waiter.now() - begun >= settings.idle_seconds
            if waiter.stopping or silent:
                raise Ended
            session.tick()
        return os.readv(self._descriptor, [buffer])


class _Bounded(io.BufferedReader):
    """Refuses a message too long to be true, before memory for it is asked for."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw, 1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_BYTES:
            raise DataError("a message is too long", value=size, allowed=f"{MOST_BYTES:,} bytes; send smaller batches")
        return super().read(size)


class _Replies:
    """JSON lines to a client that may not be reading: never waits for it, and skips what is out of date."""

    def __init__(self, client: socket.socket) -> None:
        self._client, self._rest = client, b""

    def first(self, reply: Mapping[str, Any]) -> None:
        """The line a client waits for before it sends: all of it, long as it may be. OSError where it is not read."""
        self._client.settimeout(10.0)
        self._client.sendall(json.dumps(reply).encode() + b"\n")
        self._client.settimeout(None)

    def say(self, reply: Mapping[str, Any]) -> None:
        if not self._rest:
            self._rest = json.dumps(reply).encode() + b"\n"
        with contextlib.suppress(OSError):  # it is gone, or its buffer is full
            self._rest = self._rest[self._client.send(self._rest, socket.MSG_DONTWAIT) :]

    def last(self, reply: Mapping[str, Any]) -> None:
        """The last line, for which it is worth waiting a second."""
        with contextlib.suppress(OSError):
            self._client.settimeout(1.0)
            self._client.sendall(self._rest + json.dumps(reply).encode() + b"\n")


@contextlib.contextmanager
def _server(address: str) -> Iterator[socket.socket]:
    parts = urlsplit(address)
    allowed = "tcp://127.0.0.1:PORT or tcp://[::1]:PORT; port 0 takes a free one"
    try:
        host, port = (
            ipaddress.ip_address("127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname)),
            parts.port,
        )
    except ValueError as error:
        raise ConfigError(
            f"this is no address: {error}", field="stream.input", value=address, allowed=allowed
        ) from None
    if not host.is_loopback or port is None:
        raise ConfigError(
            "this socket would be open to other machines",
            field="stream.input",
            value=address,
            allowed=allowed,
            hint="there is no password and no encryption: put a sidecar on this machine in front of it",
        )
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((str(host), port))
            server.listen(8)
        except OSError as error:
            raise ConfigError(
                f"cannot listen here: {error.strerror}", field="stream.input", value=address, allowed=allowed
            ) from error
        yield server


def _place(metadata: Mapping[bytes, bytes], name: str) -> tuple[str, int | None]:
    """Partition and sequence of a batch; the sequence is None where it has none."""
    text = metadata.get(b"sequence")
    partition = metadata.get(b"partition", b"")
    if text is None:
        return partition.decode("utf-8", "replace"), None
    if not text.isdigit() or len(text) > 18 or len(partition) > 256:
        raise DataError(
            "this batch's place in its stream cannot be read",
            where=name,
            field="sequence, partition",
            value=[text[:40].decode("utf-8", "replace"), partition[:40].decode("utf-8", "replace")],
            allowed="sequence: a whole number of 18 digits at most; partition: 256 bytes of text at most",
        )
    return partition.decode("utf-8", "replace"), int(text)


def _own(error: BaseException) -> bool:
    """Whether this is an error of writing what was found, such as a full disk, and not of the stream: pyarrow's have no
    number, those of a connection are of their own class."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def _broken(session: Session, name: str, error: BaseException) -> None:
    session.state.counts["broken_connections"] += 1
    session.changed()
    session.ctx.reporter.warn(f"{name} broke off in the middle: {_first_line(error)}; whole batches before it count")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
