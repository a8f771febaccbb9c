"""Files read and sketched as tasks: a run of row groups each, cut by the data alone.

``read`` gives the cloud of ``ParquetSource.read`` to the bit. Where workers share this process that method is it: its
threads read into one tensor. Where they do not, a worker reads about 64 MB of float32 rows a task, cleans them and
sends back what is good, the columns carried along, and the bad rows by cause; this process puts blocks in their places
as their turn comes.

``sketch`` merges the states of sketches. Counts and samples are the same however rows are grouped; float64 sums are so
to rounding alone. So a window's sketch is always put together in one way: batches of at most 8 MB of rows, which begin
anew with every piece of about 256 MB, are sketched by one thread each, and added up in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from gpudrift.engine import Engine, Task, Worker
from gpudrift.engine.scan_tasks import Found, Job, pack, read_piece, sketch_piece
from gpudrift.errors import EngineError, GpudriftError
from gpudrift.records import Cloud, Quality, Window
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.source import ParquetSource
from gpudrift.source.pieces import Cut, Piece
from gpudrift.source.reading import changed

_READ_BYTES = 64 << 20  # of float32 rows a task
_AHEAD = 2  # tasks begun or waiting from the first missing one on, a worker: what waits lies in this process
_SKETCH_BYTES = 256 << 20  # a sketch's state is some MB itself
_HINT = (
    "put the files where every node finds them under this name: on a shared disk, or in an object store that every "
    "node has credentials for; or set engine.scans=false, and this process does all reading"
)


def read(
    source: ParquetSource,
    windows: Sequence[Window],
    engine: Engine,
    *,
    pin_memory: bool = False,
    progress: Callable[[int], None] | None = None,
    expect_dim: int | None = None,
) -> Cloud:
    """``source.read(windows, ...)`` by an engine's workers: the same cloud, to the bit, and the same errors.

    Memory of this process: that of the cloud, and blocks of 64 MB (more where a row group holds more) that wait for
    an earlier one.

    Args:
        progress: called with numbers of rows as tasks end.

    Raises:
        as ``ParquetSource.read``.
        EngineError: a worker cannot read a file that this process can, or finds another one under its name.
    """
    if not engine.remote:
        return source.read(windows, pin_memory=pin_memory, progress=progress, expect_dim=expect_dim)
    cut = source.cut(windows, _READ_BYTES, expect_dim=expect_dim)
    job = Job(cut.reading)
    out = torch.empty((cut.offsets[-1], cut.reading.dim), dtype=torch.float32, pin_memory=pin_memory)
    results = []
    with closing(_Run(cut, engine, job, progress).found("read", read_piece)) as arriving:
        for piece, found in arriving:
            if found.rows is not None and len(found.rows):
                _place(_tensor(found.rows), piece, found.result.kept, out)
            results.append(found.result)
    return source.cloud_of(cut, windows, out, results)


def sketch(
    source: ParquetSource,
    windows: Sequence[Window],
    plan: SketchPlan,
    engine: Engine,
    *,
    expect_dim: int | None = None,
    progress: Callable[[int], None] | None = None,
    together: bool = False,
) -> tuple[list[Sketch], tuple[Quality, ...]]:
    """A sketch of each window's good rows, and what was read of each window.

    The bits do not depend on the engine, its workers or threads. Memory: the sketches; in each worker a few batches of
    8 MB and their sketches a thread.

    Args:
        expect_dim: the length the vectors must have; that of the plan by default.
        progress: called with numbers of rows; they add up to ``sum(source.count(windows))``.
        together: one sketch of the rows of all windows instead.

    Raises:
        as ``ParquetSource.scan``; EngineError as ``read``.
    """
    cut = source.cut(windows, _SKETCH_BYTES, expect_dim=plan.dim if expect_dim is None else expect_dim, clusters=False)
    slots = (0,) * len(windows) if together else tuple(range(len(windows)))
    job = Job(cut.reading, plan, slots)
    made = [Sketch.empty(plan) for _ in range(1 if together else len(windows))]
    results = []
    with closing(_Run(cut, engine, job, progress).found("sketch", sketch_piece)) as arriving:
        for _, found in arriving:
            for slot, state in found.sketches.items():
                # copies: what comes from an object store is not to be written on, which torch has no word for
                tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
                made[slot] = made[slot].merge(Sketch.from_state(plan, tensors))
            results.append(found.result)
    return made, source.quality_of(cut, windows, results)


def _place(rows: Tensor, piece: Piece, kept: Mapping[int, int], out: Tensor) -> None:
    """A piece's rows, window after window, to the beginnings of their places; what bad rows leave is closed later."""
    start = 0
    for k, number in kept.items():
        first = piece.places[k][0]
        out[first : first + number].copy_(rows[start : start + number])
        start += number


def _tensor(rows: NDArray[Any]) -> Tensor:
    """Of an array that is not to be written on, as those of an object store are: torch has no such tensors, and warns
    of numpy's arrays but not of Arrow's."""
    kind = pa.float16() if rows.dtype == np.float16 else pa.float32()
    return from_dlpack(pa.Array.from_buffers(kind, rows.size, [None, pa.py_buffer(rows)])).view(rows.shape)


class _Run:
    """The pieces of one call as tasks; ``progress`` gets the rows of each once, one call at a time, whichever attempt
    tells of them."""

    def __init__(self, cut: Cut, engine: Engine, job: Job, progress: Callable[[int], None] | None) -> None:
        self._cut, self._engine, self._job, self._progress = cut, engine, job, progress
        self._marks: dict[str, str | None] = {}
        self._told: dict[int, int] = {}
        self._lock = Lock()

    def found(self, name: str, function: Callable[..., Found]) -> Generator[tuple[Piece, Found], None, None]:
        """What comes of each piece, in their order. Raises the first error."""
        pieces, shared = self._cut.pieces, self._engine.share(self._job, pack=pack)

        def tasks() -> Generator[Task, None, None]:
            for place, piece in enumerate(pieces):
                args: tuple[Any, ...] = (shared, piece)
                if self._engine.remote:  # a file is looked at when its turn comes
                    for path in piece.files:
                        self._marks.setdefault(path, self._cut.reading.mark(path))
                else:
                    args += (self._during(place),)
                yield Task(place, f"{name} {place + 1} of {len(pieces)}", function, args, float(piece.decoded))

        with closing(self._engine.map(tasks(), on_done=self._done, ahead=_AHEAD)) as arriving:
            for task, found in arriving:
                piece = pieces[task.place]
                if self._engine.remote:
                    self._compare(piece, found)
                if found.error is not None:
                    raise self._explained(function, piece, found, found.error)
                yield piece, found

    def _during(self, place: int) -> Callable[[int], None]:
        """What an attempt at a task tells rows to, where it shares this process."""
        rows = 0

        def tell(more: int) -> None:
            nonlocal rows
            rows += more
            self._reached(place, rows)

        return tell

    def _done(self, task: Task) -> None:
        self._reached(task.place, self._cut.pieces[task.place].rows)

    def _reached(self, place: int, rows: int) -> None:
        with self._lock:
            more = rows - self._told.get(place, 0)
            if more > 0:
                self._told[place] = rows
                if self._progress is not None:
                    self._progress(more)

    def _compare(self, piece: Piece, found: Found) -> None:
        """Raise where a worker's files are not this process's, or do not fit those read before."""
        for path, mark in found.marks.items():
            planned = self._marks[path]
            if planned is None or mark is None or mark == planned:
                continue
            if self._cut.reading.mark(path) != planned:
                raise changed(piece.files[path])
            raise EngineError(
                f"node {found.node} has another file under this name than this process",
                where=path,
                field="engine.scans",
                value=True,
                hint=_HINT,
            )
        for path, (shape, where) in found.shapes.items():
            matrices = piece.files[path].layout.matrices
            if matrices is not None:
                matrices.meet(shape, where)

    def _explained(
        self, function: Callable[..., Found], piece: Piece, found: Found, error: GpudriftError
    ) -> GpudriftError:
        """A worker's error as this process meets it, so that it is told as ``source.read`` tells it; another where this
        process meets none."""
        if not self._engine.remote:
            return error
        own = function(Worker(), self._job, piece).error
        if own is not None:
            return own
        problem = f"cannot read this file, which this process can read: {error.message}"
        if found.absent:
            problem = "does not have this file, which this process can read"
        return EngineError(
            f"node {found.node} {problem}", where=error.where, field="engine.scans", value=True, hint=_HINT
        )
