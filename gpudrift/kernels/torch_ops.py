"""Pair sums by tiled torch: the CPU backend, and the CUDA one until a fused kernel serves the call.

A tile of squared distances is one matrix product with the norms added in place; every pair function and every sum is
taken while the tile is in cache. d2 = |x|^2 + |y|^2 - 2 x.y may come out slightly negative for near-duplicates: it is
floored at 0, so their distance is near 0 and never NaN.

Memory above the clouds: two tiles and O(F (n + m)) float64 sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpudrift.kernels.layout import PairCounts, PairSums, Prepared, Wanted, count_pairs, ladder, spans

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
    wanted: Wanted,
    progress: Callable[[int], None] | None,
    tile: tuple[int, int] | None,
    counts: PairCounts,
) -> PairSums:
    """See ``gpudrift.kernels``. y None: x against itself, upper tiles only."""
    other = x if y is None else y
    device, dtype = x.rows.device, x.rows.dtype
    height, width = tile or _TILES[device.type]
    height, width = min(height, max(len(x), 1)), min(width, max(len(other), 1))
    sums = _Sums(x, y, wanted)
    d2_buffer = torch.empty(height * width, dtype=dtype, device=device)
    rbf_buffer = torch.empty(height * width if wanted.bandwidths else 0, dtype=dtype, device=device)
    norms_x, norms_y = x.norms.to(dtype), other.norms.to(dtype)

    with _flushed_denormals(device), torch.inference_mode():
        for g, i, i_end in spans(x.offsets, height):
            for h, j, j_end in spans(other.offsets, width):
                if y is None and j_end <= i + 1:
                    continue  # the mirrored tile has these pairs
                shape = (i_end - i, j_end - j)
                d2 = d2_buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(x.rows[i:i_end], other.rows[j:j_end].T, out=d2)
                d2.mul_(-2).add_(norms_y[j:j_end]).add_(norms_x[i:i_end, None]).clamp_min_(0)
                rbf = rbf_buffer[: shape[0] * shape[1]].view(shape) if wanted.bandwidths else None
                sums.add_tile(d2, rbf, (i, i_end, g), (j, j_end, h))
                if progress is not None:
                    progress(shape[0] * shape[1])
    return sums.result(counts)


def batch_sums(
    x: Prepared,
    y: Prepared | None,
    pairs: tuple[tuple[int, int], ...],
    wanted: Wanted,
    progress: Callable[[int], None] | None,
) -> list[PairSums]:
    """See ``gpudrift.kernels``."""
    found = []
    for g, h in pairs:
        left = x.group(g)
        right = None if y is None and g == h else (x if y is None else y).group(h)
        found.append(pair_sums(left, right, wanted, progress, None, count_pairs(left, right)))
    return found


class _Sums:
    """The float64 sums of one call, in the units of the prepared rows, and how a tile is added to them."""

    def __init__(self, x: Prepared, y: Prepared | None, wanted: Wanted) -> None:
        other = x if y is None else y
        self.x, self.y, self.wanted = x, y, wanted
        self.symmetric = y is None
        self.ladder = ladder(wanted.bandwidths, x.scale)
        self.codes_x, self.codes_y = x.clusters, other.clusters
        count, device = wanted.functions, x.rows.device
        kept_x, kept_y = (len(x), len(other)) if wanted.margins else (0, 0)
        self.rows = torch.zeros(count, kept_x, dtype=torch.float64, device=device)
        self.columns = self.rows
        if not self.symmetric:
            self.columns = torch.zeros(count, kept_y, dtype=torch.float64, device=device)
        self.squares = torch.zeros(count, dtype=torch.float64, device=device)
        groups = (len(x.offsets) - 1, len(other.offsets) - 1)
        self.blocks = torch.zeros(count, *groups, dtype=torch.float64, device=device)
        self.z = None if wanted.labels is None else wanted.labels.to(x.rows.dtype)
        self.labels = torch.zeros(count, 0 if self.z is None else self.z.shape[1], dtype=torch.float64, device=device)

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
            for place, rung in enumerate(self.ladder):
                if rung.chained:  # half the bandwidth is the fourth power; the square between is the squared sum before
                    rbf.square_()
                else:
                    _leave_out(torch.mul(d2, -rung.gamma, out=rbf).exp_(), same, diagonal)
                self._add(rung.f, rbf, rows, columns)
                chain_follows = place + 1 < len(self.ladder) and self.ladder[place + 1].chained
                if self.wanted.squares or chain_follows:
                    rbf.square_()
                if self.wanted.squares:
                    self.squares[rung.f] += rbf.sum()
        _leave_out(d2, same, diagonal)
        if self.wanted.squares and same is not None:
            self.squares[0] += d2.sum()  # without clusters a closed form does it, see result
        self._add(0, d2.sqrt_(), rows, columns)

    def _add(self, f: int, k: Tensor, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> None:
        row_sums = k.sum(1).double()
        if self.wanted.margins:
            self.rows[f, rows[0] : rows[1]] += row_sums
            self.columns[f, columns[0] : columns[1]] += k.sum(0)
        total = row_sums.sum()
        self.blocks[f, rows[2], columns[2]] += total
        if self.symmetric:
            self.blocks[f, columns[2], rows[2]] += total
        if self.z is not None:  # z'Kz over ordered pairs: the tile and its mirror
            left, right = self.z[rows[0] : rows[1]], self.z[columns[0] : columns[1]]
            self.labels[f] += 2 * (left * (k @ right)).sum(0, dtype=torch.float64)

    def result(self, counts: PairCounts) -> PairSums:
        if self.wanted.squares:
            if self.symmetric:
                self.squares *= 2
            if self.codes_x is None:
                self.squares[0] = _distance_squares(self.x, self.y)
        else:
            self.squares.fill_(math.nan)
        for sums in {id(t): t for t in (self.rows, self.columns, self.blocks, self.labels)}.values():
            sums[0] /= self.x.scale  # distances in the caller's units
        self.squares[0] /= self.x.scale**2
        return PairSums(
            bandwidths=self.wanted.bandwidths,
            total=(self.columns.sum(1) if self.wanted.margins else self.blocks.sum((1, 2))).cpu(),
            rows=self.rows.cpu(),
            columns=self.columns.cpu(),
            squares=self.squares.cpu(),
            blocks=self.blocks.cpu(),
            pairs=counts.total,
            block_pairs=counts.blocks,
            labels=self.labels.cpu(),
        )


def _leave_out(k: Tensor, same: Tensor | None, diagonal: int | None) -> Tensor:
    if same is not None:
        k.masked_fill_(same, 0)
    if diagonal is not None:
        k.triu_(diagonal)
    return k


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
