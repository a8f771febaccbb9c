"""Pair sums by tiled torch: the CPU backend, and the CUDA one until a fused kernel serves the call.

A tile of squared distances is one matrix product with the norms added in place; every pair function and every sum is
taken while the tile is in cache. d2 = |x|^2 + |y|^2 - 2 x.y may come out slightly negative for near-duplicates: it is
floored at 0, so their distance is near 0 and never NaN.

Memory above the clouds: two tiles and O(F (n + m)) float64 sums.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpudrift.kernels.layout import PairCounts, PairSums, Prepared

# Tile (rows, columns). On the CPU two float32 tiles of 512 x 1024 fit in cache beside the operands; on CUDA a tile has
# to fill the device, and each elementwise pass is a launch.
_TILES = {"cpu": (512, 1024), "cuda": (8192, 8192)}


def squared_norms(rows: Tensor) -> Tensor:
    """(n,) float64 squared norms, in chunks so that no float64 copy of the cloud is made."""
    n, d = rows.shape
    norms = torch.empty(n, dtype=torch.float64, device=rows.device)
    step = max(1, (1 << 21) // d)
    for start in range(0, n, step):
        norms[start : start + step] = rows[start : start + step].double().square().sum(1)
    return norms


def pair_sums(
    x: Prepared,
    y: Prepared | None,
    bandwidths: tuple[float, ...],
    squares: bool,
    progress: Callable[[int], None] | None,
    tile: tuple[int, int] | None,
    counts: PairCounts,
) -> PairSums:
    """See ``gpudrift.kernels``. y None: x against itself, upper tiles only."""
    other = x if y is None else y
    device, dtype = x.rows.device, x.rows.dtype
    height, width = tile or _TILES[device.type]
    height, width = min(height, max(len(x), 1)), min(width, max(len(other), 1))
    sums = _Sums(x, y, bandwidths, squares)
    d2_buffer = torch.empty(height * width, dtype=dtype, device=device)
    rbf_buffer = torch.empty(height * width if bandwidths else 0, dtype=dtype, device=device)
    norms_x, norms_y = x.norms.to(dtype), other.norms.to(dtype)

    with _flushed_denormals(device), torch.inference_mode():
        for g, i, i_end in _spans(x.offsets, height):
            for h, j, j_end in _spans(other.offsets, width):
                if y is None and j_end <= i + 1:
                    continue  # the mirrored tile has these pairs
                shape = (i_end - i, j_end - j)
                d2 = d2_buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(x.rows[i:i_end], other.rows[j:j_end].T, out=d2)
                d2.mul_(-2).add_(norms_y[j:j_end]).add_(norms_x[i:i_end, None]).clamp_min_(0)
                rbf = rbf_buffer[: shape[0] * shape[1]].view(shape) if bandwidths else None
                sums.add_tile(d2, rbf, (i, i_end, g), (j, j_end, h))
                if progress is not None:
                    progress(shape[0] * shape[1])
    return sums.result(counts)


class _Sums:
    """The float64 sums of one call, and how a tile is added to them."""

    def __init__(self, x: Prepared, y: Prepared | None, bandwidths: tuple[float, ...], squares: bool) -> None:
        other = x if y is None else y
        self.x, self.y, self.bandwidths, self.with_squares = x, y, bandwidths, squares
        self.symmetric = y is None
        self.ladder = _ladder(bandwidths)
        self.codes_x, self.codes_y = x.clusters, other.clusters
        count, device = 1 + len(bandwidths), x.rows.device
        self.rows = torch.zeros(count, len(x), dtype=torch.float64, device=device)
        self.columns = self.rows
        if not self.symmetric:
            self.columns = torch.zeros(count, len(other), dtype=torch.float64, device=device)
        self.squares = torch.zeros(count, dtype=torch.float64, device=device)
        groups = (len(x.offsets) - 1, len(other.offsets) - 1)
        self.blocks = torch.zeros(count, *groups, dtype=torch.float64, device=device)

    def add_tile(
        self, d2: Tensor, rbf: Tensor | None, rows: tuple[int, int, int], columns: tuple[int, int, int]
    ) -> None:
        """Add all functions of a tile of squared distances (overwritten). rows, columns: (start, end, group)."""
        same = None
        if self.codes_x is not None and self.codes_y is not None:
            same = self.codes_x[rows[0] : rows[1], None] == self.codes_y[None, columns[0] : columns[1]]
        # keeps j > i: self pairs and mirrored pairs leave by index. None where the tile holds no such pair.
        diagonal = rows[0] - columns[0] + 1 if self.symmetric and columns[0] < rows[1] else None
        if rbf is not None:
            for place, (f, gamma, chained) in enumerate(self.ladder):
                if chained:  # half the bandwidth is the fourth power; the square between is the squared sum before
                    rbf.square_()
                else:
                    _leave_out(torch.mul(d2, -gamma, out=rbf).exp_(), same, diagonal)
                self._add(f, rbf, rows, columns)
                chain_follows = place + 1 < len(self.ladder) and self.ladder[place + 1][2]
                if self.with_squares or chain_follows:
                    rbf.square_()
                if self.with_squares:
                    self.squares[f] += rbf.sum()
        _leave_out(d2, same, diagonal)
        if self.with_squares and same is not None:
            self.squares[0] += d2.sum()  # without clusters a closed form does it, see result
        self._add(0, d2.sqrt_(), rows, columns)

    def _add(self, f: int, k: Tensor, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> None:
        row_sums = k.sum(1).double()
        self.rows[f, rows[0] : rows[1]] += row_sums
        self.columns[f, columns[0] : columns[1]] += k.sum(0)
        total = row_sums.sum()
        self.blocks[f, rows[2], columns[2]] += total
        if self.symmetric:
            self.blocks[f, columns[2], rows[2]] += total

    def result(self, counts: PairCounts) -> PairSums:
        if self.with_squares:
            if self.symmetric:
                self.squares *= 2
            if self.codes_x is None:
                self.squares[0] = _distance_squares(self.x, self.y)
        else:
            self.squares.fill_(math.nan)
        return PairSums(
            bandwidths=self.bandwidths,
            total=self.columns.sum(1).cpu(),
            rows=self.rows.cpu(),
            columns=self.columns.cpu(),
            squares=self.squares.cpu(),
            blocks=self.blocks.cpu(),
            pairs=counts.total,
            block_pairs=counts.blocks,
        )


def _leave_out(k: Tensor, same: Tensor | None, diagonal: int | None) -> Tensor:
    if same is not None:
        k.masked_fill_(same, 0)
    if diagonal is not None:
        k.triu_(diagonal)
    return k


def _spans(offsets: tuple[int, ...], step: int) -> Iterator[tuple[int, int, int]]:
    """(group, start, end) spans of at most ``step`` rows that never cross a group boundary."""
    for g, (a, b) in enumerate(itertools.pairwise(offsets)):
        for start in range(a, b, step):
            yield g, start, min(start + step, b)


def _ladder(bandwidths: tuple[float, ...]) -> list[tuple[int, float, bool]]:
    """(function index, gamma, chained) from the widest bandwidth down. A function is chained when its bandwidth is half
    the one before: gamma is then 4 times as large and k is the fourth power, two squarings instead of an exp."""
    order = sorted(range(len(bandwidths)), key=lambda b: -bandwidths[b])
    ladder: list[tuple[int, float, bool]] = []
    for place, b in enumerate(order):
        chained = place > 0 and math.isclose(bandwidths[order[place - 1]], 2 * bandwidths[b], rel_tol=1e-12)
        ladder.append((b + 1, 1 / (2 * bandwidths[b] ** 2), chained))
    return ladder


def _distance_squares(x: Prepared, y: Prepared | None) -> Tensor:
    """Sum of |x_i - y_j|^2 in closed form: m sum|x|^2 + n sum|y|^2 - 2 sum x . sum y."""
    sum_x = _column_sum(x.rows)
    if y is None:
        return 2 * (len(x) * x.norms.sum() - sum_x @ sum_x)
    return len(y) * x.norms.sum() + len(x) * y.norms.sum() - 2 * (sum_x @ _column_sum(y.rows))


def _column_sum(rows: Tensor) -> Tensor:
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    step = max(1, (1 << 21) // rows.shape[1])
    for start in range(0, len(rows), step):
        total += rows[start : start + step].double().sum(0)
    return total


@contextlib.contextmanager
def _flushed_denormals(device: torch.device) -> Iterator[None]:
    """Repeated squaring of an RBF runs into denormals, which cost the CPU up to ten times the time: flush them here and
    nowhere else."""
    if device.type != "cpu":
        yield
        return
    # torch offers no getter: an operation that makes a denormal tells
    was_flushed = float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)
