"""``job=stream``: consume what comes, score it against the pinned reference, lose nothing, count nothing twice.

Files land in ``stream.inbox``, or record batches come over stdin or a loopback socket. Each is taken apart by window
into sketches of its own, added to the state as a whole, and written down with the next checkpoint. A run that is killed
goes on from its last checkpoint and reads again what came after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from gpudrift import reference
from gpudrift.config import StreamUntil, to_plain
from gpudrift.context import open_job_source
from gpudrift.engine import scans
from gpudrift.engine.local import in_process
from gpudrift.errors import ConfigError, DataError, GpudriftError
from gpudrift.files import exclusive, make_directory, sweep
from gpudrift.history import History
from gpudrift.pinning import obtain_reference
from gpudrift.reference import Reference, Rows
from gpudrift.scoring import Scorer
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.stream import checkpoint
from gpudrift.stream.emission import Emitter
from gpudrift.stream.inbox import Found, Inbox, digest, readable_name
from gpudrift.stream.ledger import Content
from gpudrift.stream.session import Session
from gpudrift.stream.state import State
from gpudrift.stream.taking import Interrupted, Taker
from gpudrift.stream.waiting import Waiter

if TYPE_CHECKING:
    from gpudrift.context import Context


def stream(ctx: Context, waiter: Waiter | None = None) -> int:
    """Run the streaming job; the exit code."""
    from gpudrift.stream.pipe import listen, read_stdin

    settings = ctx.job.stream
    if ctx.job.source.cluster_column is not None:
        raise ConfigError(
            "the streaming job keeps a sample of rows, not whole clusters",
            field="source.cluster_column",
            value=ctx.job.source.cluster_column,
            allowed="null, with a reference made so",
        )
    feed: Callable[[Session], None] = files
    if settings.input == "stdin":
        feed = read_stdin
    elif settings.input != "files":
        feed = listen
    elif settings.inbox is None:
        raise ConfigError(
            "there is no place to take files from", field="stream.inbox", value=None, allowed="a directory"
        )
    else:
        _inbox(ctx)  # a place that cannot work is refused before the reference is read
    with exclusive(ctx.output / ".stream.lock"), waiter or Waiter() as waiting:
        sweep(make_directory(ctx.output / "windows"))
        session = open_session(ctx, waiting)
        feed(session)
        return session.finish()


def open_session(ctx: Context, waiter: Waiter) -> Session:
    """The reference, its sketch, and the state of the last checkpoint."""
    pinned, rows, _ = obtain_reference(ctx)
    sketch = reference_sketch(ctx, pinned, rows)
    scorer = Scorer(pinned, rows, ctx.panel, ctx.limits, ctx.limit, ctx.gates, pairs=ctx.pairs)
    identity = identity_of(ctx, pinned, sketch.plan)
    state = checkpoint.load(ctx.output / checkpoint.NAME, sketch.plan, identity)
    if state is None:
        state = State(identity)
    else:
        ctx.reporter.note(f"going on from a checkpoint: {state.counts['rows']:,} rows so far")
    if state.conditions != (now := conditions_of(ctx)):  # what did not fit the settings then may fit them now
        state.ledger.retry()
        state.conditions = now
    state.ledger.retry(unread=True)
    emitter = Emitter(ctx, scorer, sketch, History(ctx.history_path, ctx.job.name, pinned.id))
    emitter.begin(state)
    own = frozenset(window.label for window in pinned.windows)
    taker = Taker(sketch.plan, ctx.period, own, ctx.job.stream.max_windows)
    return Session(ctx, waiter, taker, emitter, state)


def identity_of(ctx: Context, pinned: Reference, plan: SketchPlan) -> dict[str, Any]:
    """What a checkpoint and the runs that go on from it must share."""
    source = to_plain(ctx.job)["source"]
    columns = ("embedding_column", "id_column", "time_column", "encoding", "scale", "zero_point", "pooling", "filter")
    return {
        "reference": pinned.id,
        "sketch plan (of stream.features, bins, reservoir)": plan.id,
        "windows.period": f"{ctx.job.windows.period} from {ctx.period.anchor}",
        **{f"source.{name}": source[name] for name in columns},
    }


def conditions_of(ctx: Context) -> str:
    """The settings that decide whether a file can be used."""
    plain = to_plain(ctx.job)
    return json.dumps([plain["source"], plain["quality"], plain["stream"]["max_windows"]], sort_keys=True)


def reference_sketch(ctx: Context, pinned: Reference, rows: Rows) -> Sketch:
    """The sketch of the reference's rows: from beside the artifact, made in one more pass where it is not there."""
    settings = ctx.job.stream
    path = ctx.reference_path / f"reference-sketch-{pinned.id}.safetensors"
    if path.exists():
        try:
            found = Sketch.load(path)
        except DataError as error:
            ctx.note(f"the reference's sketch is made again: {error.message}")
        else:
            made = found.plan
            sizes = made.features, made.grid.shape[1] - made.edges.shape[1] - 1, made.reservoir
            if sizes == (settings.features, settings.bins, settings.reservoir):
                return found
            ctx.note("the reference's sketch is made again: it was made with other stream.features, bins or reservoir")
    plan = SketchPlan.from_pins(
        pinned.pins,
        rows.projection.scores,
        features=settings.features,
        bins=settings.bins,
        reservoir=settings.reservoir,
        seed=ctx.job.seed,
    )
    windows = pinned.windows
    engine = ctx.engine if ctx.job.engine.scans else in_process()
    total = sum(ctx.source.count(windows))
    with ctx.stage("reference"), ctx.reporter.progress("sketching the reference", total=total, unit="rows") as advance:
        (sketch,), _ = scans.sketch(
            ctx.source, windows, plan, engine, expect_dim=pinned.dim, progress=advance, together=True
        )
    sketch.save(path)
    return sketch


Outcome = Literal["done", "waiting"]


def _inbox(ctx: Context) -> Inbox:
    settings = ctx.job.stream
    return Inbox(str(settings.inbox), settings.settle_seconds, settings.poll_seconds)


def files(session: Session) -> None:
    """Consume the inbox until ``stream.until`` says so."""
    settings, waiter, state = session.ctx.job.stream, session.waiter, session.state
    inbox = _inbox(session.ctx)
    known = len(state.ledger.files)
    session.ctx.reporter.note(f"taking files from {inbox.root}" + (f", {known:,} known already" if known else ""))
    first: frozenset[str] | None = None
    quiet = waiter.now()
    while not waiter.stopping:
        found = inbox.look(waiter.now())
        if first is None:
            first = frozenset(file.name for file in found)
        waiting = worked = 0
        for file in found:
            if waiter.stopping:
                break
            if state.ledger.knows(file) or (settings.until is StreamUntil.once and file.name not in first):
                continue
            outcome = consume(session, file, inbox)
            waiting += outcome == "waiting"
            worked += outcome == "done"
            session.tick()
        state.ledger.forget({file.name for file in found}, state.floor)
        session.tick()
        if worked:
            quiet = waiter.now()
            continue
        if settings.until is StreamUntil.once and not waiting:
            return
        if settings.until is StreamUntil.idle and not waiting and waiter.now() - quiet >= settings.idle_seconds:
            return
        waiter.wait(settings.poll_seconds)


def consume(session: Session, file: Found, inbox: Inbox) -> Outcome:
    """Take a file in, refuse it, or leave it for a later look; all of its rows count or none."""
    state, taker, waiter = session.state, session.taker, session.waiter
    settled = inbox.settled(file, waiter.now(), waiter.clock())
    if not settled and not inbox.unchanged(file, waiter.now()):
        return "waiting"
    mark = ""
    try:
        if readable_name(str(file.path)) != str(file.path):
            raise DataError(
                "this name is not UTF-8, and cannot be read under it", where=file.name, hint="rename the file"
            )
        with taker.stages("hash"):
            mark = digest(file.path)
        if mark in state.ledger.contents:
            return _duplicate(session, file, mark)
        if state.ledger.replaced(file.name, mark):
            raise DataError(
                "this file was consumed before with other content, which still counts",
                where=file.path,
                hint="write every batch of rows under a name of its own",
            )
        with taker.stages("read"):
            source = _open(session, file)
        prefix = file.name.rpartition("/")[0] if session.ctx.job.source.id_column is None else ""
        taken = taker.file(source, prefix, state.floor, state.windows, lambda: waiter.stopping)
    except Interrupted:
        return "waiting"
    except (GpudriftError, pa.ArrowException, OSError) as error:
        if not settled or not file.unchanged():
            return "waiting"
        _quarantine(session, file, mark, error)
        return "done"
    if not file.unchanged():
        return "waiting"
    state.ledger.add(mark, Content(file.name, taken.rows, taken.until))
    state.ledger.note(file, mark, "consumed")
    state.counts["files"] += 1
    session.take(taken)
    return "done"


def _open(session: Session, file: Found) -> Any:
    job, pinned = session.ctx.job, session.emitter.pinned
    job = replace(job, source=replace(job.source, uri=str(file.path)))
    source = open_job_source(job, session.ctx.reporter)
    reference.check_rows(pinned, pinned.dim, source.encoder_id, str(file.path))
    return source


def _duplicate(session: Session, file: Found, mark: str) -> Outcome:
    """The same content again: under the same name (touched, or written again alike) or another."""
    ledger = session.state.ledger
    same = ledger.contents[mark].name == file.name
    ledger.note(file, mark, "consumed" if same else "duplicate")
    if not same:
        session.state.counts["duplicate_files"] += 1
        session.ctx.reporter.note(f"{file.name}: the same content as {ledger.contents[mark].name}, counted once")
    session.changed()
    return "done"


def _quarantine(session: Session, file: Found, mark: str, error: Exception) -> None:
    text = str(error) or type(error).__name__
    session.state.ledger.note(file, mark, "quarantined", text)
    session.state.counts["quarantined_files"] += 1
    session.faults = True
    session.changed()
    session.ctx.reporter.warn(f"quarantined, not counted: {file.name}: {text.splitlines()[0]}")
