"""How the sums of blocks become those of a pass: in float64, in fixed slots, in task order."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpudrift.engine.blocks import Floats, Part
from gpudrift.errors import EngineError
from gpudrift.kernels import PairSums, Prepared
from gpudrift.kernels.layout import count_pairs


@dataclass(frozen=True)
class Clip:
    """Rows start ... stop of a cloud, and the groups that meet them: from ``first`` on, with offsets from the start."""

    start: int
    stop: int
    first: int
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def groups(self) -> slice:
        return slice(self.first, self.first + len(self.offsets) - 1)


def clips(offsets: tuple[int, ...], side: int) -> list[Clip]:
    """A cloud of groups cut every ``side`` rows; whole, with all its groups, where it is no longer than that."""
    n = offsets[-1]
    if n <= side:
        return [Clip(0, n, 0, offsets)]
    found = []
    for start in range(0, n, side):
        stop = min(start + side, n)
        first, last = bisect_right(offsets, start) - 1, bisect_left(offsets, stop)
        inside = tuple(min(max(offset, start), stop) - start for offset in offsets[first : last + 1])
        found.append(Clip(start, stop, first, inside))
    return found


class Whole:
    """The sums of a pass from those of its macro-blocks (i, j): all of them, or with y None those with j >= i."""

    def __init__(
        self, x: Prepared, y: Prepared | None, side_x: int, side_y: int, bandwidths: tuple[float, ...], margins: bool
    ) -> None:
        other = x if y is None else y
        self.x, self.y, self.bandwidths, self.margins = x, y, bandwidths, margins
        self.left = clips(x.offsets, side_x)
        self.right = self.left if y is None else clips(other.offsets, side_y)
        self.cells = [(i, j) for i in range(len(self.left)) for j in range(i if y is None else 0, len(self.right))]
        functions, groups = 1 + len(bandwidths), (len(x.offsets) - 1, len(other.offsets) - 1)
        self._only: Part | None = None
        # NaN until the first block writes: what none wrote shows
        self._rows = _unwritten(functions, len(x) if margins else 0)
        self._columns = self._rows if y is None else _unwritten(functions, len(other) if margins else 0)
        self._squares = np.zeros(functions)
        self._blocks = np.zeros((functions, *groups))
        self._block_pairs = np.zeros(groups)

    def __len__(self) -> int:
        return len(self.cells)

    def place(self, k: int) -> str:
        return f"{self.cells[k][0]},{self.cells[k][1]}"

    def cost(self, k: int) -> int:
        """Pairs, unordered, before those of one cluster are left out."""
        i, j = self.cells[k]
        n = len(self.left[i])
        return n * (n - 1) // 2 if self.y is None and i == j else n * len(self.right[j])

    def add(self, k: int, name: str, part: Part) -> None:
        """The block of task k. Raises EngineError where it is not what was asked for; nothing is added then."""
        i, j = self.cells[k]
        left, right, symmetric = self.left[i], self.right[j], self.y is None
        within = symmetric and i == j
        _check(
            part, name, (len(left), len(right)), (len(left.offsets) - 1, len(right.offsets) - 1),
            within, self.bandwidths, self.margins, self.x.clusters is not None,
        )  # fmt: skip
        if len(self.cells) == 1:
            self._only = part
            return
        if self.margins:
            rows = slice(left.start, left.stop), part.rows
            columns = slice(right.start, right.stop), part.rows if part.columns is None else part.columns
            _put(self._rows, *rows, first=j == 0)
            if not within:
                _put(self._columns, *columns, first=i == 0)
        self._squares += part.squares if within or not symmetric else 2 * part.squares
        for target, value in ((self._blocks, part.blocks), (self._block_pairs, part.block_pairs)):
            target[..., left.groups, right.groups] += value
            if symmetric and not within:
                target[..., right.groups, left.groups] += value.swapaxes(-1, -2)

    def result(self, verified: bool) -> PairSums:
        """The whole. verified: its pairs are counted again. Raises EngineError where they are not those of the parts.

        Sums over groups are added up to the total."""
        if self._only is not None:
            whole = self._only
        else:
            whole = Part(
                name="",
                bandwidths=self.bandwidths,
                total=self._blocks.reshape(len(self._blocks), -1).sum(1),
                rows=self._rows,
                columns=None if self.y is None else self._columns,
                squares=self._squares,
                blocks=self._blocks,
                pairs=float(self._block_pairs.sum()),
                block_pairs=self._block_pairs,
            )
        if verified:
            counts = count_pairs(self.x, self.y)
            if not np.array_equal(whole.block_pairs, counts.blocks.numpy()):  # whose sum is whole.pairs
                raise _wrong("the blocks of a pass hold other pairs than it has", whole.pairs, counts.total)
        return whole.sums()

    def arrays(self) -> dict[str, Floats]:
        """What has been added up so far."""
        found = {"squares": self._squares, "blocks": self._blocks, "block_pairs": self._block_pairs}
        found["rows"] = self._rows
        return found if self.y is None else {**found, "columns": self._columns}

    def restore(self, k: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from the sums of the first k tasks."""
        if not 0 < k <= len(self):
            raise ValueError(f"{k} of {len(self)} blocks")
        for name, mine in self.arrays().items():
            mine[...] = arrays[name]


class Many:
    """The sums of many pairs of groups, computed in batches."""

    def __init__(
        self,
        x: Prepared,
        y: Prepared | None,
        batches: Sequence[Sequence[tuple[int, int]]],
        bandwidths: tuple[float, ...],
        margins: bool,
    ) -> None:
        self.x, self.y, self.batches = x, y, batches
        self.bandwidths, self.margins = bandwidths, margins
        self._parts: list[Part] = []

    def __len__(self) -> int:
        return len(self.batches)

    def place(self, k: int) -> str:
        return str(k)

    def cost(self, k: int) -> int:
        return sum(cost_of(self.x, self.y, pair) for pair in self.batches[k])

    def add(self, k: int, name: str, parts: Sequence[Part]) -> None:
        """The sums of batch k. Raises EngineError where they are not what was asked for."""
        if len(parts) != len(self.batches[k]):
            raise _wrong(f"{name} came back with another number of pairs of groups", len(parts), len(self.batches[k]))
        for pair, part in zip(self.batches[k], parts, strict=True):
            sizes, within = sizes_of(self.x, self.y, pair), self.y is None and pair[0] == pair[1]
            _check(part, name, sizes, (1, 1), within, self.bandwidths, self.margins, self.x.clusters is not None)
        self._parts += parts

    def result(self, verified: bool) -> list[PairSums]:
        """In the order of the batches. verified: pairs are counted again where clusters leave out some."""
        if verified and self.x.clusters is not None:
            other = self.x if self.y is None else self.y
            for (g, h), part in zip(itertools.chain.from_iterable(self.batches), self._parts, strict=True):
                within = self.y is None and g == h
                counted = count_pairs(self.x.group(g), None if within else other.group(h)).total
                if part.pairs != counted:
                    raise _wrong("groups came back with other pairs than they have", part.pairs, counted)
        return [part.sums() for part in self._parts]

    def arrays(self) -> dict[str, Floats]:
        """What has come back so far, side by side."""
        functions = 1 + len(self.bandwidths)
        columns = [part.columns for part in self._parts if part.columns is not None]
        return {
            "total": np.stack([part.total for part in self._parts], 1),
            "squares": np.stack([part.squares for part in self._parts], 1),
            "blocks": np.stack([part.blocks[:, 0, 0] for part in self._parts], 1),
            "pairs": np.array([part.pairs for part in self._parts]),
            "rows": np.concatenate([part.rows for part in self._parts], 1),
            "columns": np.concatenate([np.empty((functions, 0)), *columns], 1),
        }

    def restore(self, k: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from the first k batches."""
        row = column = 0
        for p, pair in enumerate(itertools.chain.from_iterable(self.batches[:k])):
            a, b = sizes_of(self.x, self.y, pair) if self.margins else (0, 0)
            within = self.y is None and pair[0] == pair[1]
            pairs = float(arrays["pairs"][p])
            self._parts.append(
                Part(
                    name="",
                    bandwidths=self.bandwidths,
                    total=arrays["total"][:, p],
                    rows=arrays["rows"][:, row : row + a],
                    columns=None if within else arrays["columns"][:, column : column + b],
                    squares=arrays["squares"][:, p],
                    blocks=arrays["blocks"][:, p, None, None],
                    pairs=pairs,
                    block_pairs=np.full((1, 1), pairs),
                )
            )
            row, column = row + a, column + (0 if within else b)


def sizes_of(x: Prepared, y: Prepared | None, pair: tuple[int, int]) -> tuple[int, int]:
    """Rows of group g of x, and of group h of y (None: of x)."""
    (g, h), other = pair, x if y is None else y
    return x.offsets[g + 1] - x.offsets[g], other.offsets[h + 1] - other.offsets[h]


def cost_of(x: Prepared, y: Prepared | None, pair: tuple[int, int]) -> int:
    """Pairs, unordered, of two groups."""
    n, m = sizes_of(x, y, pair)
    return n * (n - 1) // 2 if y is None and pair[0] == pair[1] else n * m


def _unwritten(*shape: int) -> Floats:
    """In torch's memory: a result is not copied once more for its alignment."""
    found: Floats = torch.full(shape, math.nan, dtype=torch.float64).numpy()
    return found


def _put(target: Floats, place: slice, value: Floats, *, first: bool) -> None:
    if first:
        target[:, place] = value
    else:
        target[:, place] += value


def _check(
    part: Part,
    name: str,
    sizes: tuple[int, int],
    groups: tuple[int, int],
    within: bool,
    bandwidths: tuple[float, ...],
    margins: bool,
    clusters: bool,
) -> None:
    """Refuse what is not the task's: another name, other shapes, other pairs."""
    n, m = sizes
    functions = 1 + len(bandwidths)
    wanted = (
        name, bandwidths, (functions,), (functions,), (functions, *groups), groups,
        (functions, n if margins else 0), None if within else (functions, m if margins else 0),
    )  # fmt: skip
    found = (
        part.name, part.bandwidths, part.total.shape, part.squares.shape, part.blocks.shape, part.block_pairs.shape,
        part.rows.shape, None if part.columns is None else part.columns.shape,
    )  # fmt: skip
    if found != wanted:
        raise _wrong(f"{name} came back with sums of another shape", found, wanted)
    most = float(n * (n - 1) if within else n * m)
    if part.pairs != float(part.block_pairs.sum()) or not (part.pairs <= most if clusters else part.pairs == most):
        raise _wrong(f"{name} came back with a wrong number of pairs", part.pairs, most)


def _wrong(message: str, found: object, wanted: object) -> EngineError:
    return EngineError(
        f"{message}; no score is written",
        field="engine",
        value=found,
        allowed=wanted,
        hint="look for workers that run another version of gpudrift, then rerun",
    )
