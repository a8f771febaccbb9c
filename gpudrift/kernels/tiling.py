"""Which strips a launch of the fused kernel runs, and how their partial sums add up: tables made on the host.

A block is a rectangle of pairs (rows of x, rows of y). Its rows are cut into tiles of BM from its first row on, its
columns into tiles of BN; a strip is up to STRIP row tiles of one column tile. Strips that are whole and off the
diagonal run without masks.
``Adding`` lists, for each target range of an output, the slots that add up to it, in slot order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpudrift.kernels.schedules import Schedule

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Rows [row, row_end) of x against rows [col, col_end) of y; symmetric: the same rows, pairs j > i alone. pair: its
    place in a batch; row_out, col_out: where the sums of its first row and column go."""

    row: int
    row_end: int
    col: int
    col_end: int
    symmetric: bool
    pair: int
    row_out: int
    col_out: int

    @property
    def pairs(self) -> int:
        if self.symmetric:
            n = self.row_end - self.row
            return n * (n - 1) // 2
        return (self.row_end - self.row) * (self.col_end - self.col)


@dataclass(frozen=True)
class Adding:
    """Targets [dest, dest + length) of an output, and for target t the slots order[starts[t] : starts[t + 1]]."""

    order: Ints
    starts: Ints
    dest: Ints
    length: Ints


@dataclass(frozen=True)
class Strips:
    """A launch. plain, masked: (strips, 5) tables of strips without and with masks, in launch order, plain first.
    slots: row tiles in all. rows: slots -> row sums. columns: slots, or strips, -> column sums. pairs: slots -> pairs;
    strip_pairs: strips -> pairs."""

    plain: Ints
    masked: Ints
    slots: int
    rows: Adding
    columns: Adding
    pairs: Adding
    strip_pairs: Adding

    @property
    def count(self) -> int:
        return len(self.plain) + len(self.masked)


def cut(block: Block, rows: int, columns: int, chunk: int) -> list[Block]:
    """Macro-blocks of at most rows x columns that do not cross multiples of ``chunk`` (rows resident at a time)."""
    found = []
    row_edges = _edges(block.row, block.row_end, rows, chunk)
    col_edges = row_edges if block.symmetric else _edges(block.col, block.col_end, columns, chunk)
    for i, (a, b) in enumerate(itertools.pairwise(row_edges)):
        for j, (c, d) in enumerate(itertools.pairwise(col_edges)):
            if block.symmetric and j < i:
                continue
            out = (block.row_out + a - block.row, block.col_out + c - block.col)
            found.append(Block(a, b, c, d, block.symmetric and i == j, block.pair, *out))
    return found


def _edges(start: int, end: int, step: int, chunk: int) -> list[int]:
    edges = [start]
    while edges[-1] < end:
        edges.append(min(edges[-1] + step, end, (edges[-1] // chunk + 1) * chunk))
    return edges


def strips(blocks: Sequence[Block], schedule: Schedule, always_masked: bool, per_strip_columns: bool) -> Strips:
    """The launch that covers these blocks.

    Args:
        always_masked: cluster codes are compared in every tile.
        per_strip_columns: column sums come one a strip (PARTIALS), else one a row tile.
    """
    parts = [_strips_of(block, schedule, always_masked) for block in blocks]
    table = np.concatenate([part[0] for part in parts])
    masked = np.concatenate([part[1] for part in parts])
    extra = np.concatenate([part[2] for part in parts])  # (strips, 3): pair, row_out, col_out of its first row, column
    order = np.argsort(masked, kind="stable")
    table, masked, extra = table[order], masked[order], extra[order]
    height = schedule.BM
    tiles = -(-(table[:, 1] - table[:, 0]) // height)
    first = np.concatenate([[0], np.cumsum(tiles)])
    table[:, 4] = first[:-1]
    slots = int(first[-1])
    owner = np.repeat(np.arange(len(table)), tiles)
    within = np.arange(slots) - first[owner]
    row_start = table[owner, 0] + within * height
    row_length = np.minimum(height, table[owner, 1] - row_start)
    rows = _adding(extra[owner, 1] + within * height, row_length)
    per = np.arange(len(table)) if per_strip_columns else owner
    columns = _adding(extra[per, 2], table[per, 3] - table[per, 2])
    ones = np.ones(1, dtype=np.int64)
    pairs = _adding(extra[owner, 0], np.repeat(ones, slots))
    strip_pairs = _adding(extra[:, 0], np.repeat(ones, len(table)))
    split = int((~masked).sum())
    return Strips(table[:split], table[split:], slots, rows, columns, pairs, strip_pairs)


def _strips_of(block: Block, schedule: Schedule, always_masked: bool) -> tuple[Ints, NDArray[np.bool_], Ints]:
    """(strips, 5) table with slot 0, masked, (strips, 3) pair and outputs; GROUP column tiles side by side."""
    height, width, run = schedule.BM, schedule.BN, schedule.BM * schedule.STRIP
    found: list[tuple[int, int, int, int, bool]] = []
    for group in range(block.col, block.col_end, width * schedule.GROUP):
        group_end = min(group + width * schedule.GROUP, block.col_end)
        last = min(block.row_end, group_end - 1) if block.symmetric else block.row_end
        for start in range(block.row, last, run):
            for col in range(group, group_end, width):
                col_end = min(col + width, block.col_end)
                end = min(start + run, block.row_end, col_end - 1 if block.symmetric else block.row_end)
                if end <= start:
                    continue
                ragged = col_end - col < width or always_masked
                whole = start + (min(end, col) - start if block.symmetric else end - start) // height * height
                whole = max(whole, start)
                if ragged or whole == start:
                    found.append((start, end, col, col_end, True))
                    continue
                found.append((start, whole, col, col_end, False))
                if whole < end:
                    found.append((whole, end, col, col_end, True))
    array = np.array(found, dtype=np.int64).reshape(-1, 5)
    table = np.zeros((len(array), 5), dtype=np.int64)
    table[:, :4] = array[:, :4]
    pair = np.full(len(array), block.pair)
    outs = (block.row_out + table[:, 0] - block.row, block.col_out + table[:, 2] - block.col)
    return table, array[:, 4] == 1, np.stack([pair, *outs], axis=1).astype(np.int64)


def _adding(dest: Ints, length: Ints) -> Adding:
    """Slots with the same first target add up; the longest of them tells how far (an edge mask shortens none)."""
    order = np.argsort(dest, kind="stable")
    sorted_dest = dest[order]
    new = (
        np.flatnonzero(np.concatenate([[True], sorted_dest[1:] != sorted_dest[:-1]])) if len(dest) else np.zeros(0, int)
    )
    starts = np.concatenate([new, [len(dest)]]).astype(np.int64)
    longest = np.maximum.reduceat(length[order], new) if len(new) else length
    return Adding(order.astype(np.int64), starts, sorted_dest[new], longest.astype(np.int64))
