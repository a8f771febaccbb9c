"""Record batches over standard input and a loopback socket: nothing lost, nothing doubled, whatever the client does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch
from jobs import ROWS, Ran, vectors, week, with_vectors
from streams import Script, counts, ipc, land_weeks, lines, saved, sketches, status, stream

from gpudrift.errors import ConfigError, DataError
from gpudrift.stream import pipe

Use = Callable[[Script], Script]
TCP = "tcp://127.0.0.1:0"


@pytest.fixture
def rows(table: pa.Table) -> pa.Table:
    """A week that is not the reference's."""
    return table.slice(week(13).start, ROWS).combine_chunks()


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Puts bytes where the job finds its standard input."""
    opened = []

    def put(content: bytes) -> None:
        end, start = os.pipe()
        opened.append(end)
        monkeypatch.setattr(pipe, "STDIN", end)
        writer = threading.Thread(target=lambda: _write(start, content))  # a pipe holds 64 kB
        writer.start()
        opened.append(writer)

    yield put
    for item in opened:
        if isinstance(item, int):
            os.close(item)
        else:
            item.join()


def _write(descriptor: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(descriptor)


class Client:
    """Sends to the listening job before it accepts: what it sends fits in the system's buffers. ``say(...)`` is an act
    of a ``Script``."""

    def __init__(self, content: bytes, *, reset: bool = False) -> None:
        self.content, self.reset = content, reset
        self.socket: socket.socket | None = None

    def __call__(self, script: Script) -> None:
        self.socket = socket.create_connection(("127.0.0.1", script.port()))
        self.socket.sendall(self.content)
        if self.reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.socket.close()
        else:
            self.socket.shutdown(socket.SHUT_WR)

    def replies(self) -> list[dict[str, Any]]:
        assert self.socket is not None
        with self.socket, self.socket.makefile("rb") as file:
            return [json.loads(line) for line in file]


def listen(corpus: Path, out: Path, use: Use, *clients: Client, **settings: Any) -> Ran:
    """Serve the clients one after the other, then stop."""
    acts = [*clients, *([] if len(clients) == 1 else [Script.stop])]
    # a connection is waited for by one act and read by further waits; only waits for the server are scripted
    script = use(Server(*acts))
    until = "once" if len(clients) == 1 else "forever"
    ran = stream(corpus, out, None, **({"stream.input": TCP, "stream.until": until} | settings))
    assert not script.acts
    return ran


class Server(Script):
    """Acts before waits for the listening socket alone."""

    def wait(self, seconds: float, *descriptors: int) -> bool:
        listening = False
        for descriptor in descriptors:
            with socket.socket(fileno=os.dup(descriptor)) as found:
                listening = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        acts, self.acts = self.acts, self.acts if listening else []
        try:
            return super().wait(seconds, *descriptors)
        finally:
            if not listening:
                self.acts = acts


def test_stdin_to_its_end(corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]) -> None:
    feed(ipc(rows, size=40))
    assert stream(corpus, out, None, stream__input="stdin").code == 0
    assert counts(out) == {"batches": 4, "rows": ROWS}
    assert status(out)["resume_after"] == {"": 3}
    assert [(line["window"], line["rows"]) for line in lines(out)] == [("2026-W15", ROWS)]


def test_the_pipe_gives_the_sketch_that_files_give(
    corpus: Path, rows: pa.Table, out: Path, inbox: Path, tmp_path: Path, table: pa.Table,
    feed: Callable[[bytes], None],
) -> None:  # fmt: skip
    import shutil

    other = tmp_path / "other"
    shutil.copytree(out, other)
    land_weeks(inbox, table, [13], parts=3)
    stream(corpus, out, inbox)
    feed(ipc(rows, size=50))  # the files' very parts
    stream(corpus, other, None, stream__input="stdin")
    by_file, by_pipe = sketches(out)["2026-W15"].state(), sketches(other)["2026-W15"].state()
    for name, tensor in by_file.items():
        assert torch.equal(by_pipe[name], tensor), name
    assert [x["score"] for x in lines(out)] == [x["score"] for x in lines(other)]


def test_replays_are_skipped_and_new_batches_taken(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]
) -> None:
    feed(ipc(rows.slice(0, 100), size=50, first=7))
    stream(corpus, out, None, stream__input="stdin")
    feed(ipc(rows, size=50, first=7))
    stream(corpus, out, None, stream__input="stdin")
    assert counts(out) == {"batches": 3, "rows": ROWS, "replayed_batches": 2}
    assert status(out)["resume_after"] == {"": 9}


def test_partitions_have_sequences_of_their_own(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]
) -> None:
    for name, start in (("topic-0", 0), ("topic-1", 75), ("topic-0", 0)):
        feed(ipc(rows.slice(start, 75), size=25, first=100, partition=name))
        stream(corpus, out, None, stream__input="stdin")
    assert counts(out) == {"batches": 6, "rows": ROWS, "replayed_batches": 3}
    assert status(out)["resume_after"] == {"topic-0": 102, "topic-1": 102}


def test_without_sequences_everything_counts(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]
) -> None:
    for _ in range(2):
        feed(ipc(rows, first=None))
        stream(corpus, out, None, stream__input="stdin")
    assert counts(out) == {"batches": 6, "rows": 2 * ROWS}


def test_rows_of_many_windows_in_one_batch(
    corpus: Path, table: pa.Table, out: Path, feed: Callable[[bytes], None]
) -> None:
    mixed = table.take(np.random.default_rng(0).permutation(len(table)))
    feed(ipc(mixed, size=len(table)))
    stream(corpus, out, None, stream__input="stdin")
    assert counts(out) == {"batches": 1, "rows": 6 * ROWS, "in_reference": 8 * ROWS}
    feed(ipc(mixed, size=500, first=1))
    stream(corpus, out, None, stream__input="stdin")
    assert counts(out)["late"] == 3 * ROWS
    assert counts(out)["rows"] == 9 * ROWS
    assert {name: sketch.count for name, sketch in sketches(out).items()} == {
        "2026-W13": 2 * ROWS, "2026-W14": 2 * ROWS, "2026-W15": 2 * ROWS,
    }  # fmt: skip


def test_a_producer_that_dies_midway(corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]) -> None:
    content = ipc(rows, size=50)
    feed(content[: len(content) * 3 // 4])
    ran = stream(corpus, out, None, stream__input="stdin")
    assert ran.code == 30
    assert "stdin broke off in the middle" in ran.err
    assert counts(out) == {"batches": 2, "rows": 100, "broken_connections": 1}
    feed(content)
    assert stream(corpus, out, None, stream__input="stdin").code == 0
    assert counts(out)["rows"] == ROWS


@pytest.mark.parametrize("content", [b"", b"not arrow at all" * 10, b"\xff" * 64], ids=["nothing", "text", "bytes"])
def test_stdin_that_is_no_stream(corpus: Path, out: Path, feed: Callable[[bytes], None], content: bytes) -> None:
    feed(content)
    with pytest.raises(DataError, match="no Arrow IPC stream"):
        stream(corpus, out, None, stream__input="stdin")


def test_a_message_too_long_to_be_true(corpus: Path, out: Path, feed: Callable[[bytes], None]) -> None:
    feed(b"\xff\xff\xff\xff" + (0x7FFFFFF0).to_bytes(4, "little") + b"x" * 100)
    with pytest.raises(DataError, match="too long"):
        stream(corpus, out, None, stream__input="stdin")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.drop_columns(["event_time"]), ConfigError),
        (lambda t: t.drop_columns(["embedding"]), ConfigError),
        (lambda t: t.drop_columns(["id"]), ConfigError),
        (lambda t: with_vectors(t, vectors(t)[:, :3].copy()), DataError),
        (lambda t: t.replace_schema_metadata({"encoder_id": "another"}), DataError),
    ],
    ids=["no times", "no vectors", "no ids", "other dimension", "other encoder"],
)
def test_a_schema_that_does_not_fit(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None], use: Use,
    change: Callable[[pa.Table], pa.Table], error: type[Exception],
) -> None:  # fmt: skip
    feed(ipc(change(rows)))
    with pytest.raises(error):
        stream(corpus, out, None, stream__input="stdin")
    liar, honest = Client(ipc(change(rows))), Client(ipc(rows))
    ran = listen(corpus, out, use, liar, honest)
    assert ran.code == 30
    assert "error" in liar.replies()[-1]
    assert honest.replies()[-1] == {"checkpointed": {"": 2}, "end": True}
    assert counts(out) == {"batches": 3, "rows": ROWS, "refused_batches": 1}


def test_bad_rows(corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]) -> None:
    """A few are dropped; a batch with many is refused as a whole, and not asked for again."""
    values = vectors(rows)
    values[[0, 50, 51, 52]] = np.nan
    feed(ipc(with_vectors(rows, values), size=50))
    ran = stream(corpus, out, None, stream__input="stdin", quality__max_bad_fraction=0.02)
    assert ran.code == 30
    assert "refused, not counted: stdin :1: 3 of 50 rows cannot be used: 3 non_finite" in ran.err
    assert counts(out) == {"batches": 2, "rows": 99, "bad": 1, "refused_batches": 1}
    assert status(out)["resume_after"] == {"": 2}
    assert status(out)["refused"][0]["sequence"] == 1
    assert lines(out)[-1]["quality"]["dropped"] == {"non_finite": 1}


def test_a_filter_holds_for_batches_too(
    corpus: Path, rows: pa.Table, tmp_path: Path, feed: Callable[[bytes], None]
) -> None:
    keep = rows["cluster"][0].as_py()
    feed(ipc(rows))
    settings = {"stream.input": "stdin", "source.filter": [["cluster", "==", keep]], "windows.min_rows": 4}
    stream(corpus, tmp_path / "new", None, **settings)
    assert counts(tmp_path / "new")["rows"] == rows["cluster"].to_pylist().count(keep) < ROWS


@pytest.mark.parametrize("metadata", [{"sequence": "-1"}, {"sequence": "x"}, {"sequence": "9" * 30}])
def test_a_sequence_that_is_none(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None], metadata: dict[str, str]
) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows.to_batches()[0], custom_metadata=metadata)
    feed(sink.getvalue().to_pybytes())
    with pytest.raises(DataError, match="place in its stream"):
        stream(corpus, out, None, stream__input="stdin")
    assert not (out / "stream.jsonl").exists()


def test_a_client_is_told_where_to_go_on_and_what_is_safe(corpus: Path, rows: pa.Table, out: Path, use: Use) -> None:
    first, second = Client(ipc(rows.slice(0, 100), size=50)), Client(ipc(rows, size=50))
    assert listen(corpus, out, use, first, second).code == 0
    assert first.replies() == [
        {"gpudrift": 1, "resume_after": {}},
        {"checkpointed": {"": 0}},
        {"checkpointed": {"": 1}},
        {"checkpointed": {"": 1}},
        {"checkpointed": {"": 1}, "end": True},
    ]
    assert second.replies()[0] == {"gpudrift": 1, "resume_after": {"": 1}}
    assert counts(out) == {"batches": 3, "rows": ROWS, "replayed_batches": 2}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_dies_midway_and_comes_back(
    corpus: Path, rows: pa.Table, out: Path, use: Use, reset: bool
) -> None:
    content = ipc(rows, size=50)
    dying, back = Client(content[: len(content) * 3 // 4], reset=reset), Client(content)
    ran = listen(corpus, out, use, dying, back)
    assert reset or "error" in dying.replies()[-1]
    assert ran.code == 0  # it came back
    assert counts(out)["rows"] == ROWS
    assert counts(out)["broken_connections"] == 1
    assert back.replies()[-1] == {"checkpointed": {"": 2}, "end": True}


def test_a_client_that_says_nothing_is_given_up(corpus: Path, out: Path, use: Use) -> None:
    held: list[socket.socket] = []
    use(Script(lambda script: held.append(socket.create_connection(("127.0.0.1", script.port())))))
    settings = {"stream.until": "idle", "stream.idle_seconds": 20}
    assert stream(corpus, out, None, stream__input=TCP, **settings).code == 0
    with held[0]:
        assert b'"end": false' in held[0].recv(10_000)


def test_nobody_comes(corpus: Path, out: Path, use: Use) -> None:
    script = use(Script())
    assert stream(corpus, out, None, stream__input=TCP, stream__until="idle", stream__idle_seconds=20).code == 0
    assert script.seconds == pytest.approx(20, abs=1)
    assert status(out)["listening"].startswith("tcp://127.0.0.1:")


def test_a_port_that_is_taken(corpus: Path, out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen here"):
            stream(corpus, out, None, stream__input=address)


def test_the_producer_of_the_docs(corpus: Path, rows: pa.Table, out: Path, use: Use) -> None:
    """The ten lines of docs/stream.md, as they stand there but for the port."""
    docs = (Path(__file__).resolve().parents[2] / "docs" / "stream.md").read_text(encoding="utf-8")
    code = docs.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"schema": rows.schema, "batches": rows.to_batches(max_chunksize=50)}

    def produce(script: Script) -> None:
        text = code.replace("9092", str(script.port()))
        assert text != code
        thread.append(threading.Thread(target=lambda: exec(compile(text, "docs/stream.md", "exec"), names)))
        thread[0].start()

    thread: list[threading.Thread] = []
    use(Waiting(produce))
    assert stream(corpus, out, None, stream__input=TCP).code == 0
    thread[0].join()
    assert counts(out) == {"batches": 3, "rows": ROWS}
    assert names["confirmed"] == {"checkpointed": {"": 2}, "end": True}
    assert saved(out)[0]["sequences"] == {"": 2}


class Waiting(Script):
    """Waits in earnest once its acts are done: for a producer that runs beside the job."""

    def wait(self, seconds: float, *descriptors: int) -> bool:
        self.waits += 1
        assert self.waits < 100, "the producer has died"
        for act in self.acts:
            self.descriptors = descriptors
            act(self)
        self.acts = []
        return super(Script, self).wait(seconds, *descriptors)


def test_stored_numbers_are_read_from_batches_as_from_files(
    table: pa.Table, tmp_path: Path, feed: Callable[[bytes], None]
) -> None:
    """source.scale and its neighbours hold for record batches too."""
    stored = np.clip(np.round(vectors(table) / 0.02) + 3, -128, 127).astype(np.int8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), stored.shape[1])
    whole = table.set_column(table.schema.get_field_index("embedding"), "embedding", column)
    corpus, inbox = tmp_path / "corpus", tmp_path / "inbox"
    corpus.mkdir()
    pq.write_table(whole, corpus / "all.parquet")
    land_weeks(inbox, whole, [13])
    settings = {"source.encoding": "int8", "source.scale": 0.02, "source.zero_point": 3.0}
    stream(corpus, tmp_path / "files", inbox, **settings)
    shutil.copytree(tmp_path / "files" / "reference", tmp_path / "pipe" / "reference")
    feed(ipc(whole.slice(week(13).start, ROWS)))
    stream(corpus, tmp_path / "pipe", None, **settings, stream__input="stdin")
    assert lines(tmp_path / "pipe")[-1]["score"] == lines(tmp_path / "files")[-1]["score"]


def test_a_full_disk_is_not_the_client_breaking_off(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None], use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpudrift.stream.checkpoint.save", full)
    feed(ipc(rows))
    with pytest.raises(OSError, match="No space left"):
        stream(corpus, out, None, stream__input="stdin")
    client = Client(ipc(rows))
    with pytest.raises(OSError, match="No space left"):
        listen(corpus, out, use, client, Client(ipc(rows)))
    assert "error" not in client.replies()[-1]


def test_a_client_gets_all_of_a_long_first_line() -> None:
    """It may wait for that line before it sends anything."""
    ours, theirs = socket.socketpair()
    reply = {"resume_after": {f"{k:05d}" + "p" * 250: 1 for k in range(10_000)}}
    with ours, theirs, theirs.makefile("rb") as file:
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(file.readline()))
        reader.start()
        pipe._Replies(ours).first(reply)
        reader.join()
        assert json.loads(read[0]) == reply
        assert ours.gettimeout() is None


def test_times_all_over_the_calendar_are_refused_at_once(
    corpus: Path, rows: pa.Table, out: Path, feed: Callable[[bytes], None]
) -> None:
    """Tens of thousands of windows in one batch: looking each one up among all the others took hours."""
    many = pa.concat_tables([rows] * 400).combine_chunks()
    place = many.schema.get_field_index("event_time")
    seconds = np.random.default_rng(0).integers(-60_000_000_000, 200_000_000_000, len(many))
    times = pa.array(seconds * 1_000_000, pa.timestamp("us", "UTC")).cast(many.schema.field(place).type)
    feed(ipc(many.set_column(place, "event_time", times), size=len(many)))
    ran = stream(corpus, out, None, stream__input="stdin")
    assert (ran.code, counts(out)) == (30, {"refused_batches": 1})
    assert "more windows than are held" in ran.err
