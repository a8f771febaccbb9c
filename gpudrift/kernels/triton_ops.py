"""Pair sums by the fused Triton kernels: what is launched, in which pieces, and how the partial sums meet.

A call becomes blocks (rectangles of pairs), a block macro-blocks, and a launch covers one macro-block or many small
blocks. Partial sums of a launch are reduced into float64 outputs before the next one overwrites them, all on one
stream, so memory above the clouds is bounded by the launch budget and the order of every addition is fixed.

Out of GPU memory: the budget is halved until it fits. Clouds that stay in host memory (``Prepared.rows`` on the CPU)
are copied to the card a chunk of rows at a time.

The same code runs under Triton's interpreter on CPU tensors, which is how it is checked without a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpudrift.kernels import schedules, tiling, triton_pairs
from gpudrift.kernels.closed_forms import distance_squares, group_moments, squares_between
from gpudrift.kernels.layout import PairCounts, PairSums, Prepared, Wanted, count_pairs, ladder, no_labels
from gpudrift.kernels.precision import MODES, Mode, padded
from gpudrift.kernels.schedules import Pass
from gpudrift.kernels.threads import alone
from gpudrift.kernels.tiling import Block, Strips

_log = logging.getLogger(__name__)

_BUDGET = 1 << 27  # float32 numbers of partial sums a launch may write
_MOST_SHRINK = 256  # of the budget, before running out of memory is an error
_MACRO_TILES = 256  # tiles of a macro-block's side
_QUEUED = 3  # launches ahead of the one that runs
_CHUNK = 1 << 18  # rows of a host-resident cloud on the card at a time
_WHOLE = 1 << 62  # rows: no chunks

Step = Callable[[int], None]


@alone()
def pair_sums(
    x: Prepared,
    y: Prepared | None,
    wanted: Wanted,
    progress: Step | None,
    tile: tuple[int, int] | None,
    counts: PairCounts,
) -> PairSums:
    """See ``gpudrift.kernels``. y None: x against itself, upper tiles only. tile: (rows, columns) in powers of two."""
    other = x if y is None else y
    groups = [
        (g, h) for g in range(len(x.offsets) - 1) for h in range(len(other.offsets) - 1) if y is not None or h >= g
    ]
    blocks = [
        Block(
            x.offsets[g], x.offsets[g + 1], other.offsets[h], other.offsets[h + 1],
            y is None and g == h, place, x.offsets[g], other.offsets[h],
        )
        for place, (g, h) in enumerate(groups)
    ]  # fmt: skip
    job = _Job(x, other, wanted, blocks, len(x), len(other), progress, tile)
    sums = job.run()
    shape = (wanted.functions, len(x.offsets) - 1, len(other.offsets) - 1)
    by_group = torch.zeros(shape, dtype=torch.float64)
    for place, (g, h) in enumerate(groups):
        by_group[:, g, h] = sums.pairs[:, place]
        if y is None:
            by_group[:, h, g] = sums.pairs[:, place] * (2 if g == h else 1)
    rows, columns = sums.rows, sums.columns
    if y is None and wanted.margins:
        rows = rows + columns
        columns = rows
    squares = torch.full((wanted.functions,), math.nan, dtype=torch.float64)
    if wanted.squares:
        squares = sums.squares.sum(1) * (2 if y is None else 1)
        if x.clusters is None:
            squares[0] = distance_squares(x, y) / x.scale**2
    return PairSums(
        bandwidths=wanted.bandwidths,
        total=columns.sum(1) if wanted.margins else by_group.sum((1, 2)),
        rows=rows,
        columns=columns,
        squares=squares,
        blocks=by_group,
        pairs=counts.total,
        block_pairs=counts.blocks,
        labels=_labels(x, wanted, sums, tile),
    )


@alone()
def batch_sums(
    x: Prepared,
    y: Prepared | None,
    pairs: tuple[tuple[int, int], ...],
    wanted: Wanted,
    progress: Step | None,
) -> list[PairSums]:
    """See ``gpudrift.kernels``: all pairs share launches, however small they are."""
    other = x if y is None else y
    blocks, row_at, col_at = [], [0], [0]
    for place, (g, h) in enumerate(pairs):
        a, b, c, d = x.offsets[g], x.offsets[g + 1], other.offsets[h], other.offsets[h + 1]
        blocks.append(Block(a, b, c, d, y is None and g == h, place, row_at[-1], col_at[-1]))
        row_at.append(row_at[-1] + b - a)
        col_at.append(col_at[-1] + d - c)
    sums = _Job(x, other, wanted, blocks, row_at[-1], col_at[-1], progress, None).run()
    moments = None
    if wanted.squares and x.clusters is None:
        of_x = group_moments(x)
        moments = (of_x, of_x if y is None else group_moments(y))
    found = []
    for block in blocks:
        p, symmetric = block.pair, block.symmetric
        left = x.group(pairs[p][0])
        right = None if symmetric else other.group(pairs[p][1])
        counts = count_pairs(left, right)
        kept = slice(None) if wanted.margins else slice(0)
        rows = sums.rows[:, row_at[p] : row_at[p + 1]][:, kept]
        columns = sums.columns[:, col_at[p] : col_at[p + 1]][:, kept]
        total = sums.pairs[:, p] * (2 if symmetric else 1)
        if symmetric:
            rows = rows + columns
            columns = rows
        squares = torch.full((wanted.functions,), math.nan, dtype=torch.float64)
        if wanted.squares:
            squares = sums.squares[:, p] * (2 if symmetric else 1)
            if moments is not None:
                g, h = pairs[p]
                squares[0] = squares_between(moments[0], g, moments[1], h, symmetric) / x.scale**2
        found.append(
            PairSums(
                bandwidths=wanted.bandwidths,
                total=columns.sum(1) if wanted.margins else total,
                rows=rows,
                columns=columns,
                squares=squares,
                blocks=total[:, None, None],
                pairs=counts.total,
                block_pairs=counts.blocks,
                labels=no_labels(wanted.functions),
            )
        )
    return found


def on_host(cloud: Prepared) -> bool:
    """Whether a cloud's rows did not fit on the device that computes."""
    return cloud.rows.device != cloud.device


@dataclass(frozen=True)
class _Sums:
    """float64 on the CPU, in the caller's units and function order: rows (F, rows out), columns (F, columns out) (empty
    without margins), pairs (F, pairs), squares (F, pairs), labels (P,) (z'Kz over i < j of the one
    function, less ``constant`` a pair)."""

    rows: Tensor
    columns: Tensor
    pairs: Tensor
    squares: Tensor
    labels: Tensor
    constant: float


class _Job:
    """One call: constants, outputs on the device, and the launches that fill them."""

    def __init__(
        self,
        x: Prepared,
        y: Prepared,
        wanted: Wanted,
        blocks: list[Block],
        rows_out: int,
        columns_out: int,
        progress: Step | None,
        tile: tuple[int, int] | None,
        only: int | None = None,
    ) -> None:
        """only: the one function computed (label passes of an RBF); None: all. wanted.labels join a pass of one."""
        self.x, self.y, self.wanted, self.blocks, self.progress = x, y, wanted, blocks, progress
        self.rungs = [r for r in ladder(wanted.bandwidths, x.scale) if only in (None, r.f)]
        if only is not None:
            self.rungs = [replace(rung, chained=False) for rung in self.rungs]
        distance = only in (None, 0)
        self.functions = [0] * distance + [rung.f for rung in self.rungs]
        z = wanted.labels if len(self.functions) == 1 else None
        self.what = Pass(
            DISTANCE=distance,
            RUNGS=len(self.rungs),
            CHAINED=sum(1 << place for place, rung in enumerate(self.rungs) if rung.chained),
            SQUARES=wanted.squares,
            COLUMNS=wanted.margins,
            LABELS=0 if z is None else max(16, 1 << (z.shape[1] - 1).bit_length()),
            CLUSTERS=x.clusters is not None,
        )
        self.precision = x.precision
        arch = _arch(x.device)
        self.schedule = schedules.choose(arch, self.precision, self.what.statistics, x.dim)
        if x.device.type == "cpu":  # the interpreter: no descriptors, nothing to pipeline
            self.schedule = replace(self.schedule, DESCRIPTORS=False, FLATTEN=False)
        if tile is not None:
            warps = max(1, min(self.schedule.WARPS, tile[0] // 16))
            self.schedule = replace(self.schedule, BM=tile[0], BN=tile[1], WARPS=warps)
        device = x.device
        self.device = device
        self.mode = MODES[self.precision]
        self.depth = padded(x.dim) // self.schedule.BK
        self.codes = _codes(x, y)
        self.norms = [cloud.norms.to(device, torch.float32) for cloud in (x, y)]
        self.constant, self.factor = self._label_units()
        most = torch.finfo(torch.float32).max  # infinity times a d2 of 0 is NaN
        gammas = [-min(rung.gamma * math.log2(math.e), most) for rung in self.rungs]
        self.gammas = torch.tensor([*gammas, self.constant, self.factor], dtype=torch.float32, device=device)
        self.z = self._padded_labels(z)
        vectors = len(self.functions) + (0 if self.schedule.PARTIALS else self.what.squared)
        pairs = 1 + max((block.pair for block in blocks), default=0)
        f64 = torch.float64
        self.many = pairs > 1
        self.row_out = torch.zeros(vectors, rows_out, dtype=f64, device=device)
        self.col_out = torch.zeros(len(self.functions), columns_out if wanted.margins else 0, dtype=f64, device=device)
        height = self.schedule.BM
        self.lanes = self.schedule.WARPS * 32 if self.schedule.PARTIALS else 0
        self.pair_out = torch.zeros(vectors, pairs * height if self.many else 0, dtype=f64, device=device)
        self.square_out = torch.zeros(self.what.squared, pairs * self.lanes, dtype=f64, device=device)
        self.label_out = torch.zeros(self.what.LABELS, dtype=f64, device=device)
        self.launches: dict[tuple[int, int, bool], _Launch] = {}
        self.views: dict[tuple[str, int], _View] = {}
        self.buffers: dict[str, Tensor] = {}
        self.chunk = _WHOLE
        self.done = self.reported = 0

    def run(self) -> _Sums:
        """All launches; with a quarter of the budget and of the chunk after running out of GPU memory."""
        resident = not (on_host(self.x) or on_host(self.y))
        shrink = 1
        # Triton launches on the current device, whichever holds the rows
        current = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        while True:
            try:
                with current:
                    self._run(_BUDGET // shrink, _WHOLE if resident else max(_CHUNK // shrink, self.schedule.BM))
                    return self._finish()
            except torch.OutOfMemoryError:
                shrink *= 4
                if shrink > _MOST_SHRINK:
                    raise
                _log.warning("out of GPU memory: launches of 1/%d of their size", shrink)
                self._restart()

    def _restart(self) -> None:
        for out in (self.row_out, self.col_out, self.pair_out, self.square_out, self.label_out):
            out.zero_()
        for kept in (self.launches, self.views, self.buffers):
            kept.clear()
        self.done = 0
        torch.cuda.empty_cache()

    def _run(self, budget: int, chunk: int) -> None:
        self.chunk = chunk
        schedule = self.schedule
        per_tile = self.row_out.shape[0] * schedule.BM + len(self.functions) * schedule.BN
        side = max(1, min(_MACRO_TILES, math.isqrt(budget // per_tile)))
        rows, columns = side * schedule.BM, side * schedule.BN
        queue: deque[torch.cuda.Event] = deque()
        small: dict[bool, list[Block]] = {False: [], True: []}  # symmetric blocks are masked in another way
        tiles = {False: 0, True: 0}
        for block in self.blocks:
            for part in tiling.cut(block, rows, max(rows, columns) if block.symmetric else columns, chunk):
                size = -(-(part.row_end - part.row) // schedule.BM) * -(-(part.col_end - part.col) // schedule.BN)
                if chunk < _WHOLE or size > side * side // 4:
                    self._launch([part], queue)
                    continue
                kind = part.symmetric
                small[kind].append(part)
                tiles[kind] += size
                if tiles[kind] >= side * side:
                    self._launch(small[kind], queue)
                    small[kind], tiles[kind] = [], 0
        for left in small.values():
            if left:
                self._launch(left, queue)

    def _launch(self, blocks: list[Block], queue: deque[torch.cuda.Event]) -> None:
        """One launch and the sums of what it wrote. A single block runs relative to its corner: its tables are kept."""
        if len(blocks) == 1:
            corner = blocks[0]
            key = (corner.row_end - corner.row, corner.col_end - corner.col, corner.symmetric)
            if key not in self.launches:
                self.launches[key] = self._prepare([Block(0, key[0], 0, key[1], key[2], 0, 0, 0)])
            launch = self.launches[key]
        else:
            corner = Block(0, 0, 0, 0, any(block.symmetric for block in blocks), 0, 0, 0)
            launch = self._prepare(blocks)
        x = self._view("x", corner.row)
        y = x if self.x is self.y and corner.row == corner.col else self._view("y", corner.col)
        strips, vectors, functions = launch.strips, self.row_out.shape[0], len(self.functions)
        per_strip = strips.count if self.schedule.PARTIALS else strips.slots
        parts = _Parts(
            rows=self._buffer("rows", strips.slots, vectors, self.schedule.BM),
            columns=self._buffer("columns", per_strip if self.what.COLUMNS else 0, functions, self.schedule.BN),
            squares=self._buffer("squares", strips.count, len(self.square_out), self.lanes),
            labels=self._buffer("labels", strips.count, 1, self.what.LABELS),
        )
        plain = len(strips.plain)
        bases = (corner.row - x.start, corner.col - y.start)
        for start, count, masked in ((0, plain, False), (plain, strips.count - plain, True)):
            if count:
                self._tiles(launch, parts, x, y, bases, start, count, masked, masked and corner.symmetric)
        _add(launch.rows, parts.rows, self.row_out[:, corner.row_out :])
        if self.what.COLUMNS:
            _add(launch.columns, parts.columns, self.col_out[:, corner.col_out :])
        if self.many:
            _add(launch.pairs, parts.rows, self.pair_out[:, corner.pair * self.schedule.BM :])
        if self.square_out.numel():
            if self.many:
                _add(launch.strip_pairs, parts.squares, self.square_out[:, corner.pair * self.lanes :])
            else:
                self.square_out += parts.squares.sum(0, dtype=torch.float64)
        if self.what.LABELS:
            self.label_out += parts.labels.sum((0, 1), dtype=torch.float64)
        self._wait(queue)
        self.done += sum(block.pairs for block in blocks)
        if self.progress is not None and self.done > self.reported:
            self.progress(self.done - self.reported)
            self.reported = self.done

    def _prepare(self, blocks: list[Block]) -> _Launch:
        strips = tiling.strips(blocks, self.schedule, self.what.CLUSTERS, self.schedule.PARTIALS)
        table = np.concatenate([strips.plain, strips.masked])
        addings = [
            _Adding(
                order=self._int32(a.order),
                starts=self._int32(a.starts),
                length=self._int32(a.length * unit),
                dest=torch.from_numpy(a.dest * unit).to(self.device),
            )
            for a, unit in (
                (strips.rows, 1),
                (strips.columns, 1),
                (strips.pairs, self.schedule.BM),
                (strips.strip_pairs, self.lanes),
            )
        ]
        return _Launch(strips, self._int32(table), *addings)

    def _int32(self, values: tiling.Ints) -> Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(self.device)

    def _tiles(
        self,
        launch: _Launch,
        parts: _Parts,
        x: _View,
        y: _View,
        bases: tuple[int, int],
        start: int,
        count: int,
        masked: bool,
        symmetric: bool,
    ) -> None:
        what = replace(self.what, MASKED=masked, SYMMETRIC=symmetric, CLUSTERS=self.what.CLUSTERS and masked)
        s = self.schedule
        rows = (x.rows, y.rows)
        if s.DESCRIPTORS:
            from triton.tools.tensor_descriptor import TensorDescriptor

            rows = (
                TensorDescriptor.from_tensor(x.rows, [s.BM, s.BK]),
                TensorDescriptor.from_tensor(y.rows, [s.BN, s.BK]),
            )
        per_strip = start if s.PARTIALS else 0  # the strip is the program: its outputs start where the program does
        triton_pairs.pair_tiles[(count,)](
            *rows,
            x.norms,
            y.norms,
            x.codes,
            y.codes,
            x.labels,
            y.labels,
            launch.table[start:],
            self.gammas,
            parts.rows,
            parts.columns[per_strip:],
            parts.squares[start:],
            parts.labels[start:],
            *bases,
            x.rows.stride(0),
            y.rows.stride(0),
            self.depth,
            **schedules.constants(s, what, self.precision),
            **schedules.options(s),
        )

    def _view(self, side: str, row: int) -> _View:
        """A cloud's rows on the device: all of them, or the chunk that holds ``row`` where they stay on the host."""
        cloud = self.x if side == "x" else self.y
        if self.chunk == _WHOLE or not on_host(cloud):
            start, end = 0, len(cloud)
        else:
            start = row // self.chunk * self.chunk
            end = min(start + self.chunk, len(cloud))
        key = (side, start)
        if key not in self.views:
            for old in [k for k in self.views if k[0] == side]:
                del self.views[old]
            which = 0 if side == "x" else 1
            self.views[key] = _View(
                start=start,
                rows=_storage(cloud.rows[start:end], self.mode, self.device),
                norms=self.norms[which][start:end],
                codes=self.codes[which][start:end],
                labels=self.z[start:end],
            )
        return self.views[key]

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """Uninitialised float32 of this shape, in memory that launches share; it is empty where a size is 0."""
        size = math.prod(shape)
        held = self.buffers.get(name)
        if held is None or held.numel() < size:
            self.buffers.pop(name, None)
            held = self.buffers[name] = torch.empty(max(size, 1), dtype=torch.float32, device=self.device)
        return held[:size].view(shape)

    def _wait(self, queue: deque[torch.cuda.Event]) -> None:
        """Keep a few launches ahead of the device, no more: progress stays true and an interrupt is heard."""
        if self.device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        queue.append(event)
        if len(queue) > _QUEUED:
            queue.popleft().synchronize()

    def _label_units(self) -> tuple[float, float]:
        """The constant taken from k before it is rounded for z'Kz, and a power of two that brings the rest near 1."""
        if not self.what.LABELS or not self.what.DISTANCE:
            return 0.0, 1.0
        typical = math.sqrt(2 * float(self.x.norms.mean()))
        return (typical, 2.0 ** -round(math.log2(typical))) if typical > 0 else (0.0, 1.0)

    def _padded_labels(self, z: Tensor | None) -> Tensor:
        """(n, LABELS) in the dtype k is rounded to: float16 for 16-bit rows, else float32 (multiplied as tf32)."""
        dtype = torch.float32 if self.mode.storage == torch.float32 else torch.float16
        if z is None:
            return torch.zeros(len(self.x), 0, dtype=dtype, device=self.device)
        padded_z = torch.zeros(len(self.x), self.what.LABELS, dtype=dtype, device=self.device)
        padded_z[:, : z.shape[1]] = z.to(self.device)
        return padded_z

    def _finish(self) -> _Sums:
        order = torch.tensor(sorted(range(len(self.functions)), key=lambda place: self.functions[place]))
        count = len(self.functions)
        scale = torch.ones(count, dtype=torch.float64)
        if self.what.DISTANCE:
            scale[0] = self.x.scale
        rows = self.row_out.cpu()
        pairs = rows.sum(1, keepdim=True)
        if self.many:
            pairs = self.pair_out.view(len(self.pair_out), -1, self.schedule.BM).sum(2).cpu()
        squares = torch.full_like(pairs[:count], math.nan)
        if self.what.squared:
            found = pairs[count:]
            if self.schedule.PARTIALS:
                found = self.square_out.view(len(self.square_out), -1, self.lanes).sum(2).cpu()
            squares[count - self.what.squared :] = found
            squares /= scale[:, None] ** 2
        columns = self.col_out.cpu() / scale[:, None]
        return _Sums(
            rows=(rows[:count] / scale[:, None])[order] if self.what.COLUMNS else columns[order],
            columns=columns[order],
            pairs=(pairs[:count] / scale[:, None])[order],
            squares=squares[order],
            labels=self.label_out.cpu() / self.factor,
            constant=self.constant,
        )


@dataclass(frozen=True)
class _Adding:
    order: Tensor
    starts: Tensor
    length: Tensor
    dest: Tensor


@dataclass(frozen=True)
class _Launch:
    strips: Strips
    table: Tensor
    rows: _Adding
    columns: _Adding
    pairs: _Adding
    strip_pairs: _Adding


@dataclass(frozen=True)
class _Parts:
    """Where a launch writes; shapes as in ``pair_tiles``."""

    rows: Tensor
    columns: Tensor
    squares: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _View:
    """Rows [start, ...) of a cloud on the device, padded, and what goes with them."""

    start: int
    rows: Tensor
    norms: Tensor
    codes: Tensor
    labels: Tensor


def probe(device: torch.device) -> None:
    """Compile and run the smallest pass there is; raises whatever stands in its way."""
    rows = torch.eye(2, 64, dtype=torch.float16, device=device)
    norms = torch.ones(2, dtype=torch.float64, device=device)
    cloud = Prepared(rows, norms, (0, 2), None, "float16", 1.0, device)
    blocks = [Block(0, 2, 0, 2, True, 0, 0, 0)]
    sums = _Job(cloud, cloud, Wanted(squares=False, margins=False), blocks, 2, 2, None, None).run()
    if not math.isclose(float(sums.pairs[0, 0]), math.sqrt(2), rel_tol=1e-3):
        raise RuntimeError(f"a pass over two rows gave {float(sums.pairs[0, 0])}, not sqrt(2)")


def _add(adding: _Adding, parts: Tensor, out: Tensor) -> None:
    """Add the slots of a launch to their targets in out (vectors, length), in float64 and in order."""
    targets = len(adding.dest)
    if not targets or not parts.numel():
        return
    triton_pairs.reduce_slots[(targets, parts.shape[1])](
        parts,
        adding.order,
        adding.starts,
        adding.dest,
        adding.length,
        out,
        out.stride(0),
        VECTORS=parts.shape[1],
        BLOCK=parts.shape[2],
    )


def _storage(rows: Tensor, mode: Mode, device: torch.device) -> Tensor:
    """(n, whole K blocks) as the kernel reads them: the view behind rows made by ``prepare``, else a padded copy."""
    n, d = rows.shape
    width = padded(d)
    fits = rows.device == device and rows.dtype == mode.storage and rows.stride() == (width, 1)
    if fits and rows.data_ptr() % 16 == 0:
        return rows.as_strided((n, width), (width, 1))
    made = torch.zeros((n, width), dtype=mode.storage, device=device)
    made[:, :d] = rows.to(device)
    return made


def _codes(x: Prepared, y: Prepared) -> tuple[Tensor, Tensor]:
    """int32 cluster codes of both clouds, equal where the int64 ones are; empty without clusters."""
    if x.clusters is None or y.clusters is None:
        none = torch.zeros(0, dtype=torch.int32, device=x.device)
        return none, none
    _, places = torch.unique(torch.cat([x.clusters, y.clusters]), return_inverse=True)
    places = places.to(x.device, torch.int32)
    return places[: len(x)], places[len(x) :]


def _arch(device: torch.device) -> int:
    return schedules.architecture(torch.cuda.get_device_capability(device)) if device.type == "cuda" else 90


def _labels(x: Prepared, wanted: Wanted, sums: _Sums, tile: tuple[int, int] | None) -> Tensor:
    """(F, P) z'Kz over ordered pairs; with bandwidths a pass of its own for each function."""
    if wanted.labels is None:
        return no_labels(wanted.functions)
    z = wanted.labels.to(x.device, torch.float64)
    pairs = z.sum(0).square() - z.sum(0)
    if x.clusters is not None:
        _, places = torch.unique(x.clusters, return_inverse=True)
        table = torch.zeros(int(places.max()) + 1, z.shape[1], dtype=torch.float64, device=z.device)
        pairs = z.sum(0).square() - table.index_put_((places,), z, accumulate=True).square().sum(0)
    found = []
    for f in range(wanted.functions):
        blocks = [Block(0, len(x), 0, len(x), True, 0, 0, 0)]
        lone = replace(wanted, squares=False, margins=False)
        met = sums
        if wanted.functions > 1:
            met = _Job(x, x, lone, blocks, len(x), len(x), None, tile, only=f).run()
        scale = x.scale if f == 0 else 1.0
        found.append((2 * met.labels[: z.shape[1]] + met.constant * pairs.cpu()) / scale)
    return torch.stack(found)
