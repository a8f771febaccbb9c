"""Pair sums by tiled torch: the CPU backend, and the CUDA one where no fused kernel serves the call.

A tile of squared distances is one matrix product with the norms added in place; every pair function and every sum is
taken while the tile is in cache. d2 = |x|^2 + |y|^2 - 2 x.y may come out slightly negative for near-duplicates: it is
floored at 0, so their distance is near 0 and never NaN.

On the CPU tiles are spread over as many threads as torch is set to use. A tile is computed by one thread, and so is the
rest of a call; which tile it is and the order in which tiles are added up depend on the input alone: so do the bits of
the result.

Memory above the clouds: two tiles a thread and O(F (n + m)) float64 sums.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from gpudrift.kernels.closed_forms import distance_squares
from gpudrift.kernels.layout import PairCounts, PairSums, Prepared, Rung, Wanted, count_pairs, ladder
from gpudrift.kernels.threads import Product, Settings, flushed_denormals, in_order, settings

# Sides of a tile (rows, columns) and of the tiles on the diagonal of a cloud against itself, half of which is lost. On
# the CPU a float32 tile of 1024 x 512 is 2 MB: it stays in cache from pass to pass, and is large beside the cost of a
# call. On CUDA a tile has to fill the device, and each elementwise pass is a launch.
_TILES = {"cpu": (1024, 512), "cuda": (8192, 8192)}
_DIAGONAL = {"cpu": 256, "cuda": 2048}
_MANY = 1 << 22  # pairs a shape of clouds, from which preparing for a shape of tile (a millisecond) does not show
_FEW = 6  # a number of the rows costs this many times what one of the tile does, when summed in float64


def pair_sums(
    x: Prepared,
    y: Prepared | None,
    wanted: Wanted,
    progress: Callable[[int], None] | None,
    tile: tuple[int, int] | None,
    counts: PairCounts,
) -> PairSums:
    """See ``gpudrift.kernels``. y None: x against itself, upper tiles only."""
    with torch.no_grad(), _settings(x.device, [(len(x), len(x if y is None else y))]) as given:
        sums = _Sums(x, y, wanted, tile or _TILES[x.device.type])
        _run([sums], given, progress)
        return sums.result(counts)


def batch_sums(
    x: Prepared,
    y: Prepared | None,
    pairs: tuple[tuple[int, int], ...],
    wanted: Wanted,
    progress: Callable[[int], None] | None,
) -> list[PairSums]:
    """See ``gpudrift.kernels``."""
    other = x if y is None else y
    groups_x = {g: x.group(g) for g in {g for g, _ in pairs}}
    groups_y = {h: other.group(h) for h in {h for _, h in pairs}}
    shape = _TILES[x.device.type]
    with torch.no_grad(), _settings(x.device, [(len(groups_x[g]), len(groups_y[h])) for g, h in pairs]) as given:
        jobs = [_Sums(groups_x[g], None if y is None and g == h else groups_y[h], wanted, shape) for g, h in pairs]
        _run(jobs, given, progress)
        return [job.result(_counts(job.x, job.y)) for job in jobs]


class _Tile(NamedTuple):
    """Rows and columns of the clouds, their groups, and the sums they add to. diagonal: rows and columns are the same,
    pairs j > i alone."""

    sums: _Sums
    g: int
    rows: slice
    h: int
    columns: slice
    diagonal: bool = False

    @property
    def pairs(self) -> int:
        height: int = self.rows.stop - self.rows.start
        width: int = self.columns.stop - self.columns.start
        return height * (height - 1) // 2 if self.diagonal else height * width


class _Part(NamedTuple):
    """The sums of one tile, F first: totals and labels in float64, the others as the tile adds them up."""

    totals: Tensor
    rows: Tensor
    columns: Tensor | None
    squares: Tensor | None
    labels: Tensor | None


class _Space:
    """Where one thread computes its tiles, and by which product."""

    def __init__(self, jobs: list[_Sums], product: Product) -> None:
        area = max(job.area for job in jobs)
        like = jobs[0].norms_x
        self.d2 = like.new_empty(area)
        self.rbf = like.new_empty(area if jobs[0].ladder else 0)
        self.product = product


class _Sums:
    """The float64 sums of one call, in the units of the prepared rows, and what a tile adds to them."""

    def __init__(self, x: Prepared, y: Prepared | None, wanted: Wanted, tile: tuple[int, int]) -> None:
        other = x if y is None else y
        self.x, self.y, self.other, self.wanted = x, y, other, wanted
        self.symmetric = y is None
        self.ladder: list[Rung] = ladder(wanted.bandwidths, x.scale)
        height, width = min(tile[0], max(len(x), 1)), min(tile[1], max(len(other), 1))
        self.tile = (height, width)
        self.area = height * (max(height, width) if y is None else width)  # tiles on the diagonal are square
        self.dtype = torch.float64 if x.rows.dtype == torch.float64 else torch.float32
        self.largest = torch.finfo(self.dtype).max
        self.norms_x = x.norms.to(x.device, self.dtype)[:, None]
        self.norms_y = other.norms.to(x.device, self.dtype)
        self.codes_x, self.codes_y = x.clusters, other.clusters
        # the closed form knows no clusters, and reads all rows in float64: between small clouds a pass costs less
        few = len(x) * len(other) < _FEW * x.dim * (len(x) + len(other))
        self.d2_summed = wanted.squares and (few or x.clusters is not None)
        self.z = None if wanted.labels is None else wanted.labels.to(x.device, self.dtype)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(wanted.functions, *shape, dtype=torch.float64, device=x.device)

        self.rows = zeros(len(x) if wanted.margins else 0)
        self.columns = self.rows if y is None else zeros(len(y) if wanted.margins else 0)
        self.squares = zeros()
        self.blocks = zeros(len(x.offsets) - 1, len(other.offsets) - 1)
        self.labels = zeros(0 if self.z is None else self.z.shape[1])

    def tiles(self) -> Iterator[_Tile]:
        height, width = self.tile
        columns = list(_spans(self.other.offsets, width))
        for g, rows in _spans(self.x.offsets, height):
            if self.symmetric:
                yield from self._on_diagonal(g, rows)
                columns = list(_spans(self.other.offsets, width, g, rows.stop))
            for h, others in columns:
                yield _Tile(self, g, rows, h, others)

    def _on_diagonal(self, g: int, rows: slice) -> Iterator[_Tile]:
        """The pairs j > i of these rows: the square above the diagonal, then the two halves on it."""
        count = rows.stop - rows.start
        if count <= _DIAGONAL[self.x.device.type]:
            if count > 1:
                yield _Tile(self, g, rows, g, rows, diagonal=True)
            return
        first, second = slice(rows.start, rows.start + count // 2), slice(rows.start + count // 2, rows.stop)
        yield _Tile(self, g, first, g, second)
        yield from self._on_diagonal(g, first)
        yield from self._on_diagonal(g, second)

    def part(self, tile: _Tile, space: _Space) -> _Part:
        """The sums of one tile of pairs."""
        functions, wanted = len(self.ladder) + 1, self.wanted
        rows, columns, diagonal = tile.rows, tile.columns, tile.diagonal
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        d2 = space.d2[: shape[0] * shape[1]].view(shape)
        space.product(self._block(self.x, rows), self._block(self.other, columns).T, out=d2)
        torch.add(self.norms_y[columns], d2, alpha=-2, out=d2).add_(self.norms_x[rows]).clamp_min_(0)
        same = None
        if self.codes_x is not None and self.codes_y is not None:
            same = self.codes_x[rows, None] == self.codes_y[None, columns]
        sums = _Part(
            totals=d2.new_empty(functions, dtype=torch.float64),
            rows=d2.new_empty(functions, shape[0]),
            columns=d2.new_empty(functions, shape[1]) if wanted.margins else None,
            squares=d2.new_zeros(functions) if wanted.squares else None,
            labels=None if self.z is None else torch.empty_like(self.labels),
        )
        if self.ladder:
            rbf = space.rbf[: shape[0] * shape[1]].view(shape)
            for rung, following in itertools.zip_longest(self.ladder, self.ladder[1:]):
                if rung.chained:  # the fourth power of the rung before; the square between is its squared sum
                    rbf.square_()
                else:  # exp2: torch's exp goes to a library that is slow on some CPUs
                    exponent = -min(rung.gamma / math.log(2), self.largest)  # infinity times a d2 of 0 is NaN
                    _leave_out(torch.mul(d2, exponent, out=rbf).exp2_(), same, diagonal)
                self._sum(rung.f, rbf, tile, sums, space.product)
                if sums.squares is not None or (following is not None and following.chained):
                    rbf.square_()
                if sums.squares is not None:
                    torch.sum(rbf, (0, 1), out=sums.squares[rung.f])
        if sums.squares is not None and self.d2_summed:
            torch.sum(_leave_out(d2, same, diagonal), (0, 1), out=sums.squares[0])
        self._sum(0, _leave_out(d2.sqrt_(), same, diagonal), tile, sums, space.product)
        torch.sum(sums.rows, 1, dtype=torch.float64, out=sums.totals)
        return sums

    def _block(self, cloud: Prepared, rows: slice) -> Tensor:
        block = cloud.rows[rows]
        return (
            block if block.dtype == self.dtype and block.device == cloud.device else block.to(cloud.device, self.dtype)
        )

    def _sum(self, f: int, k: Tensor, tile: _Tile, sums: _Part, product: Product) -> None:
        torch.sum(k, 1, out=sums.rows[f])
        if sums.columns is not None:
            torch.sum(k, 0, out=sums.columns[f])
        if self.z is not None and sums.labels is not None:  # z'Kz over ordered pairs: the tile and its mirror
            values = product(k, self.z[tile.columns]).mul_(self.z[tile.rows])
            torch.mul(values.sum(0), 2, out=sums.labels[f])

    def add(self, tile: _Tile, part: _Part) -> None:
        # add_, not +=, which copies a slice once more into its own place
        self.blocks[:, tile.g, tile.h].add_(part.totals)
        if self.symmetric:
            self.blocks[:, tile.h, tile.g].add_(part.totals)
        if part.columns is not None:
            self.rows[:, tile.rows].add_(part.rows)
            self.columns[:, tile.columns].add_(part.columns)
        if part.squares is not None:
            self.squares.add_(part.squares)
        if part.labels is not None:
            self.labels.add_(part.labels)

    def result(self, counts: PairCounts) -> PairSums:
        if not self.wanted.squares:
            self.squares.fill_(math.nan)
        elif self.symmetric:
            self.squares *= 2
        if self.wanted.squares and not self.d2_summed:
            self.squares[0] = distance_squares(self.x, self.y)
        if self.x.scale != 1:
            for sums in {id(t): t for t in (self.rows, self.columns, self.blocks, self.labels)}.values():
                sums[0] /= self.x.scale  # distances in the caller's units
            self.squares[0] /= self.x.scale**2
        return PairSums(
            bandwidths=self.wanted.bandwidths,
            total=self.blocks.sum((1, 2)).cpu(),
            rows=self.rows.cpu(),
            columns=self.columns.cpu(),
            squares=self.squares.cpu(),
            blocks=self.blocks.cpu(),
            pairs=counts.total,
            block_pairs=counts.blocks,
            labels=self.labels.cpu(),
        )


def _leave_out(k: Tensor, same: Tensor | None, diagonal: bool) -> Tensor:
    if same is not None:
        k.masked_fill_(same, 0)
    return k.triu_(1) if diagonal else k


def _counts(x: Prepared, y: Prepared | None) -> PairCounts:
    """``count_pairs`` of two single groups, without its tables where there are no clusters."""
    if x.clusters is not None:
        return count_pairs(x, y)
    pairs = float(len(x) * (len(x) - 1) if y is None else len(x) * len(y))
    return PairCounts(pairs, torch.full((1, 1), pairs, dtype=torch.float64))


def _spans(offsets: tuple[int, ...], step: int, group: int = 0, start: int = 0) -> Iterator[tuple[int, slice]]:
    """(group, rows) from a group and row on: what is left of each group, cut into equal spans of at most ``step``."""
    for g in range(group, len(offsets) - 1):
        a, b = max(offsets[g], start), offsets[g + 1]
        parts = -(-(b - a) // step)
        for k in range(parts):
            yield g, slice(a + (b - a) * k // parts, a + (b - a) * (k + 1) // parts)


def _settings(device: torch.device, shapes: list[tuple[int, int]]) -> AbstractContextManager[Settings]:
    """For clouds of these sizes."""
    pairs = sum(n * m for n, m in shapes)
    return settings(device, many=pairs >= _MANY * len(set(shapes)))


def _run(jobs: list[_Sums], given: Settings, progress: Callable[[int], None] | None) -> None:
    """Compute all tiles and add them up in their order."""
    tiles = itertools.chain.from_iterable(job.tiles() for job in jobs)
    first = list(itertools.islice(tiles, given.threads))
    if not first:
        return
    parts = in_order(itertools.chain(first, tiles), _part, [_Space(jobs, given.product) for _ in first])
    with contextlib.closing(parts):
        for tile, part in parts:
            tile.sums.add(tile, part)
            if progress is not None:
                progress(tile.pairs)


def _part(tile: _Tile, space: _Space) -> _Part:
    with torch.no_grad(), flushed_denormals(tile.sums.x.device):  # both are settings of a thread
        return tile.sums.part(tile, space)
