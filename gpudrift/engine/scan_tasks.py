"""What a worker does with a piece of a source: read it, or sketch it. ``scans`` has the other side.

A task's arguments are its piece and a ``Job``, which all tasks of a call share. Credentials of a store are those of the
worker's own environment, but for what its file system was given (``gpudrift.source.steady.Store``).
"""

from __future__ import annotations

import hashlib
import pickle
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift.engine.tasks import Worker
from gpudrift.errors import GpudriftError
from gpudrift.kernels import threads
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.source.pieces import Piece, Reading
from gpudrift.source.reading import PartResult

_MOST_THREADS = 16  # one thread decodes, and cannot keep more than about so many busy
_HALVES = ("halffloat", "float16", "float16_be")  # Arrow's own name, and those of ``source.encoding``
_CHUNK = 1 << 18  # values at a time: they stay in the caches
_Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """What all tasks of one call read by. plan, slots: of sketches; the one that each window's rows go to."""

    reading: Reading
    plan: SketchPlan | None = None
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A ``Job`` on its way to another process, where it is unpacked once: a file system keeps its connections."""

    key: str
    content: bytes


@dataclass(frozen=True)
class Found:
    """What came of a piece. rows: (n, d) float32, or float16 where that holds every bit of them, window after window.
    sketches: their states by slot. result: without the rows kept where they were sketched.

    error: one of ours; ``result`` is empty then. absent: the worker's node does not have a file. marks, shapes: of the
    files, to be held against those of this process; marks only where that is another.
    """

    node: str
    marks: Mapping[str, str | None]
    shapes: Mapping[str, tuple[tuple[int, int], str]]
    result: PartResult = field(default_factory=PartResult)
    rows: NDArray[Any] | None = None
    sketches: Mapping[int, _Arrays] = field(default_factory=dict)
    error: GpudriftError | None = None
    absent: bool = False


def read_piece(worker: Worker, job: Job | Packed, piece: Piece) -> Found:
    """The rows of a piece, for another process."""
    reading = _unpacked(worker, job).reading

    def work() -> dict[str, Any]:
        rows, result = reading.read(piece)
        return {"rows": _narrow(rows, piece), "result": result}

    return _attempted(job, reading, piece, work)


def sketch_piece(
    worker: Worker, job: Job | Packed, piece: Piece, progress: Callable[[int], None] = lambda _: None
) -> Found:
    """The states of sketches of a piece's rows, by slot."""
    known = _unpacked(worker, job)
    plan, result = known.plan, PartResult()
    if plan is None:
        raise TypeError("this job has no plan of a sketch")
    sketches: dict[int, Sketch] = {}

    def batches() -> Iterator[tuple[int, list[Any]]]:
        for batch in known.reading.scan(piece, progress, result.bad):
            # the scan writes on its rows while others sketch them; a list, so that they can be let go at once
            yield known.slots[batch.window], [batch.rows.clone() if count > 1 else batch.rows, batch.ids]

    def one(batch: tuple[int, list[Any]], _: None) -> Sketch:
        made = Sketch.empty(plan)
        ids, rows = batch[1].pop(), batch[1].pop()
        made.update(rows, ids)
        return made

    def work() -> dict[str, Any]:
        with closing(threads.in_order(batches(), one, [None] * count)) as arriving:
            for (slot, _), made in arriving:
                sketches[slot] = sketches[slot].merge(made) if slot in sketches else made
        states = {slot: {name: t.numpy() for name, t in one.state().items()} for slot, one in sketches.items()}
        return {"sketches": states, "result": result}

    with threads.alone() as number:
        count = min(number, _MOST_THREADS)
        return _attempted(job, known.reading, piece, work)


def _attempted(job: Job | Packed, reading: Reading, piece: Piece, work: Callable[[], dict[str, Any]]) -> Found:
    """An error is a result as others are: of several tasks that fail, the first in order tells."""
    elsewhere = isinstance(job, Packed)
    marks = {path: reading.mark(path) for path in piece.files} if elsewhere else {}
    came: dict[str, Any]
    try:
        came = work()
    except GpudriftError as error:
        came = {"error": error, "absent": isinstance(error.__cause__, FileNotFoundError)}
    shapes = {path: file.layout.matrices.met for path, file in piece.files.items() if file.layout.matrices is not None}
    return Found(platform.node(), marks, {path: met for path, met in shapes.items() if met is not None}, **came)


def _narrow(rows: Tensor, piece: Piece) -> NDArray[Any]:
    """In half the bytes where they came from float16 and all are float16 numbers still."""
    whole: NDArray[Any] = rows.numpy()
    if not all(file.layout.element.split(" ")[-1] in _HALVES for file in piece.files.values()):
        return whole
    narrow = torch.empty_like(rows, dtype=torch.float16)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        half = narrow[start : start + step].copy_(part)
        if not torch.equal(half.float().view(torch.int32), part.view(torch.int32)):
            return whole
    halves: NDArray[Any] = narrow.numpy()
    return halves


def pack(job: Job) -> Packed:
    plan = None if job.plan is None else {name: tensor.numpy() for name, tensor in job.plan.state().items()}
    content = pickle.dumps((job.reading, plan, job.slots), protocol=5)
    return Packed(f"scan {hashlib.sha256(content).hexdigest()}", content)


def _unpacked(worker: Worker, job: Job | Packed) -> Job:
    if isinstance(job, Job):
        return job
    found: Job = worker.keep(job.key, len(job.content), lambda: _unpack(job.content))
    return found


def _unpack(content: bytes) -> Job:
    reading, plan, slots = pickle.loads(content)  # made by ``pack`` in the process that runs the job
    if plan is not None:
        plan = SketchPlan.from_state({name: torch.from_numpy(value) for name, value in plan.items()})
    return Job(reading, plan, slots)
