"""Pair sums by tiled torch: the CPU backend, and the CUDA one where no fused kernel serves the call.

A tile of squared distances is one matrix product with the norms added in place; every pair function and every sum is
taken while the tile is in cache. d2 = |x|^2 + |y|^2 - 2 x.y may come out slightly negative for near-duplicates: it is
floored at the smallest normal number, so their distance is near 0 and never NaN.

On the CPU tiles are spread over as many threads as torch is set to use. A tile is computed by one thread, which tile it
is and the order in which tiles are added up depend on the input alone: so do the bits of the result.

Memory above the clouds: two tiles a thread and O(F (n + m)) float64 sums.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.kernels.layout import PairCounts, PairSums, Prepared, Rung, Wanted, count_pairs, ladder
from gpudrift.kernels.threads import flushed_denormals, in_order, settings

# Sides of a tile (rows, columns) and of the tiles on the diagonal of a cloud against itself, half of which is lost. On
# the CPU a float32 tile of 512 x 512 is 1 MB, a core's second-level cache; on CUDA a tile has to fill the device, and
# each elementwise pass is a launch.
_TILES = {"cpu": (512, 512), "cuda": (8192, 8192)}
_DIAGONAL = {"cpu": 128, "cuda": 2048}
_CHUNK = 1 << 19  # entries copied in float64 at a time: they stay in cache


def squared_norms(rows: Tensor) -> Tensor:
    """(n,) float64 squared norms, in chunks so that no float64 copy of the cloud is made."""
    norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        norms[start : start + step] = rows[start : start + step].double().square().sum(1)
    return norms


def pair_sums(
    x: Prepared,
    y: Prepared | None,
    wanted: Wanted,
    progress: Callable[[int], None] | None,
    tile: tuple[int, int] | None,
    counts: PairCounts,
) -> PairSums:
    """See ``gpudrift.kernels``. y None: x against itself, upper tiles only."""
    with torch.no_grad():
        sums = _Sums(x, y, wanted, tile or _TILES[x.device.type])
        _run([sums], progress)
        return sums.result(counts, _Moments(x), None if y is None else _Moments(y))


def batch_sums(
    x: Prepared,
    y: Prepared | None,
    pairs: tuple[tuple[int, int], ...],
    wanted: Wanted,
    progress: Callable[[int], None] | None,
) -> list[PairSums]:
    """See ``gpudrift.kernels``."""
    other = x if y is None else y
    with torch.no_grad():
        lefts = {g: _Moments(x.group(g)) for g in {g for g, _ in pairs}}
        rights = (
            {h: _Moments(other.group(h)) for h in {h for _, h in pairs}}
            if y is not None
            else lefts | {h: _Moments(x.group(h)) for h in {h for _, h in pairs} - lefts.keys()}
        )
        sides = [(lefts[g], None if y is None and g == h else rights[h]) for g, h in pairs]
        shape = _TILES[x.device.type]
        jobs = [_Sums(a.cloud, None if b is None else b.cloud, wanted, shape) for a, b in sides]
        _run(jobs, progress)
        return [job.result(_counts(job.x, job.y), a, b) for job, (a, b) in zip(jobs, sides, strict=True)]


@dataclass(frozen=True)
class _Tile:
    """Pairs of rows [rows.start, rows.stop) and columns: their groups, and the sums they belong to. diagonal: rows and
    columns are the same, pairs j > i alone."""

    sums: _Sums
    g: int
    rows: slice
    h: int
    columns: slice
    diagonal: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def pairs(self) -> int:
        height, width = self.shape
        return height * (height - 1) // 2 if self.diagonal else height * width


@dataclass(frozen=True)
class _Part:
    """The sums of one tile, F first: rows, columns and squares as the tile adds them up, totals and labels float64."""

    totals: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor
    labels: Tensor


class _Space:
    """Where one thread computes its tiles."""

    def __init__(self, jobs: list[_Sums]) -> None:
        area = max(job.area for job in jobs)
        like = jobs[0].norms_x
        self.d2 = like.new_empty(area)
        self.rbf = like.new_empty(area if jobs[0].ladder else 0)


class _Sums:
    """The float64 sums of one call, in the units of the prepared rows, and what a tile adds to them."""

    def __init__(self, x: Prepared, y: Prepared | None, wanted: Wanted, tile: tuple[int, int]) -> None:
        other = x if y is None else y
        self.x, self.y, self.other, self.wanted = x, y, other, wanted
        self.symmetric = y is None
        self.ladder: list[Rung] = ladder(wanted.bandwidths, x.scale)
        # rows and columns of a cloud against itself are cut alike
        height, width = (min(tile), min(tile)) if y is None else tile
        self.tile = (min(height, max(len(x), 1)), min(width, max(len(other), 1)))
        self.area = self.tile[0] * self.tile[1]
        self.dtype = torch.float64 if x.rows.dtype == torch.float64 else torch.float32
        self.norms_x = x.norms.to(x.device, self.dtype)
        self.norms_y = self.norms_x if y is None else y.norms.to(x.device, self.dtype)
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
        columns = _spans(self.other.offsets, width)
        for at, (g, rows) in enumerate(_spans(self.x.offsets, height)):
            if self.symmetric:
                yield from self._on_diagonal(g, rows)
            for h, others in itertools.islice(columns, at + 1 if self.symmetric else 0, None):
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
        height, width = tile.shape
        d2 = space.d2[: height * width].view(height, width)
        torch.mm(self._block(self.x, tile.rows), self._block(self.other, tile.columns).T, out=d2)
        torch.add(self.norms_y[tile.columns], d2, alpha=-2, out=d2).add_(self.norms_x[tile.rows, None])
        limits = torch.finfo(self.dtype)
        d2.clamp_min_(limits.tiny)
        codes_x, codes_y = self.x.clusters, self.other.clusters
        same = None
        if codes_x is not None and codes_y is not None:
            same = codes_x[tile.rows, None] == codes_y[None, tile.columns]
        kept = (height, width) if self.wanted.margins else (height, 0)
        found = _Part(
            totals=self.blocks.new_empty(self.wanted.functions),
            rows=d2.new_empty(self.wanted.functions, kept[0]),
            columns=d2.new_empty(self.wanted.functions, kept[1]),
            squares=d2.new_zeros(self.wanted.functions),
            labels=self.labels.new_empty(self.labels.shape),
        )
        if self.ladder:
            rbf = space.rbf[: height * width].view(height, width)
            for rung, following in itertools.zip_longest(self.ladder, self.ladder[1:]):
                if rung.chained:  # the fourth power of the rung before; the square between is its squared sum
                    rbf.square_()
                else:  # exp2: torch's exp goes to a library that is slow on some CPUs
                    exponent = -min(rung.gamma / math.log(2), limits.max)
                    _leave_out(torch.mul(d2, exponent, out=rbf).exp2_(), same, tile.diagonal)
                self._sum(rung.f, rbf, tile, found)
                if self.wanted.squares or (following is not None and following.chained):
                    rbf.square_()
                if self.wanted.squares:
                    torch.sum(rbf, (0, 1), out=found.squares[rung.f])
        if self.wanted.squares and same is not None:  # without clusters a closed form does it, see result
            torch.sum(_leave_out(d2, same, tile.diagonal), (0, 1), out=found.squares[0])
        self._sum(0, _leave_out(d2.sqrt_(), same, tile.diagonal), tile, found)
        torch.sum(found.rows, 1, dtype=torch.float64, out=found.totals)
        return found

    def _block(self, cloud: Prepared, rows: slice) -> Tensor:
        return cloud.rows[rows].to(cloud.device, self.dtype)

    def _sum(self, f: int, k: Tensor, tile: _Tile, found: _Part) -> None:
        torch.sum(k, 1, out=found.rows[f])
        if self.wanted.margins:
            torch.sum(k, 0, out=found.columns[f])
        if self.z is not None:  # z'Kz over ordered pairs: the tile and its mirror
            values = torch.mm(k, self.z[tile.columns]).mul_(self.z[tile.rows])
            found.labels[f] = values.sum(0).double().mul_(2)

    def add(self, tile: _Tile, part: _Part) -> None:
        if self.wanted.margins:
            self.rows[:, tile.rows] += part.rows
            self.columns[:, tile.columns] += part.columns
        self.blocks[:, tile.g, tile.h] += part.totals
        if self.symmetric:
            self.blocks[:, tile.h, tile.g] += part.totals
        if self.wanted.squares:
            self.squares += part.squares
        if self.z is not None:
            self.labels += part.labels

    def result(self, counts: PairCounts, moments_x: _Moments, moments_y: _Moments | None) -> PairSums:
        if not self.wanted.squares:
            self.squares.fill_(math.nan)
        elif self.symmetric:
            self.squares *= 2
        if self.wanted.squares and self.x.clusters is None:
            self.squares[0] = moments_x.distance_squares(moments_y)
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


class _Moments:
    """Count, sum and sum of squares of the rows of a cloud: taken once, however many clouds it meets."""

    def __init__(self, cloud: Prepared) -> None:
        self.cloud = cloud
        self._sums: tuple[Tensor, Tensor] | None = None

    def _of_rows(self) -> tuple[Tensor, Tensor]:
        if self._sums is None:
            rows = self.cloud.rows
            total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
            step = max(1, _CHUNK // rows.shape[1])
            for start in range(0, len(rows), step):
                total += rows[start : start + step].double().sum(0)
            self._sums = (self.cloud.norms.sum().cpu(), total.cpu())
        return self._sums

    def distance_squares(self, other: _Moments | None) -> Tensor:
        """Sum of |x_i - y_j|^2 in closed form: m sum|x|^2 + n sum|y|^2 - 2 sum x . sum y. None: ordered pairs of x."""
        norms_x, sum_x = self._of_rows()
        n = len(self.cloud)
        if other is None:
            return 2 * (n * norms_x - sum_x @ sum_x)
        norms_y, sum_y = other._of_rows()
        return len(other.cloud) * norms_x + n * norms_y - 2 * (sum_x @ sum_y)


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


def _spans(offsets: tuple[int, ...], step: int) -> list[tuple[int, slice]]:
    """(group, rows): each group cut into equal spans of at most ``step`` rows."""
    found = []
    for g, (a, b) in enumerate(itertools.pairwise(offsets)):
        parts = -(-(b - a) // step)
        found += [(g, slice(a + (b - a) * k // parts, a + (b - a) * (k + 1) // parts)) for k in range(parts)]
    return found


def _run(jobs: list[_Sums], progress: Callable[[int], None] | None) -> None:
    """Compute all tiles and add them up in their order."""
    tiles = itertools.chain.from_iterable(job.tiles() for job in jobs)
    device = jobs[0].x.device if jobs else torch.device("cpu")
    with settings(device) as threads:
        first = list(itertools.islice(tiles, threads))
        if not first:
            return
        parts = in_order(itertools.chain(first, tiles), _part, [_Space(jobs) for _ in first])
        with contextlib.closing(parts):
            for tile, part in parts:
                tile.sums.add(tile, part)
                if progress is not None:
                    progress(tile.pairs)


def _part(tile: _Tile, space: _Space) -> _Part:
    with torch.no_grad(), flushed_denormals(tile.sums.x.device):  # both are settings of a thread
        return tile.sums.part(tile, space)
