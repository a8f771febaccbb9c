"""What a worker does for a pass over pairs, one macro-block or many small pairs of groups, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.engine.tasks import Worker
from gpudrift.engine.wire import ALIGNED, PackedBlock, unpack
from gpudrift.kernels import PairSums, Prepared, Progress
from gpudrift.kernels.layout import no_labels

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A ``PairSums`` as arrays that can leave the process, and the name of the task it is of. columns None: the rows
    again."""

    name: str
    bandwidths: tuple[float, ...]
    total: Floats
    rows: Floats
    columns: Floats | None
    squares: Floats
    blocks: Floats
    pairs: float
    block_pairs: Floats

    @classmethod
    def of(cls, name: str, sums: PairSums, within: bool) -> Part:
        """within: of a cloud against itself."""
        return cls(
            name=name,
            bandwidths=sums.bandwidths,
            total=sums.total.numpy(),
            rows=sums.rows.numpy(),
            columns=None if within else sums.columns.numpy(),
            squares=sums.squares.numpy(),
            blocks=sums.blocks.numpy(),
            pairs=sums.pairs,
            block_pairs=sums.block_pairs.numpy(),
        )

    def sums(self) -> PairSums:
        rows = _tensor(self.rows)
        return PairSums(
            bandwidths=self.bandwidths,
            total=_tensor(self.total),
            rows=rows,
            columns=rows if self.columns is None else _tensor(self.columns),
            squares=_tensor(self.squares),
            blocks=_tensor(self.blocks),
            pairs=self.pairs,
            block_pairs=_tensor(self.block_pairs),
            labels=no_labels(1 + len(self.bandwidths)),
        )


def block_sums(
    worker: Worker,
    name: str,
    x: PackedBlock | Prepared,
    x_key: str,
    x_offsets: tuple[int, ...],
    y: PackedBlock | Prepared | None,
    y_key: str | None,
    y_offsets: tuple[int, ...],
    bandwidths: tuple[float, ...],
    squares: bool,
    margins: bool,
    step: Steps | None,
) -> Part:
    """One macro-block; y None: of x against itself."""
    if step is not None:
        step.begin()
    left = replace(unpack(worker, x, x_key), offsets=x_offsets)
    if y is None or y_key is None:
        sums = kernels.self_sums(left, bandwidths=bandwidths, squares=squares, margins=margins, progress=step)
    else:
        right = replace(unpack(worker, y, y_key), offsets=y_offsets)
        sums = kernels.cross_sums(left, right, bandwidths=bandwidths, squares=squares, margins=margins, progress=step)
    return Part.of(name, sums, y is None)


def group_sums(
    worker: Worker,
    name: str,
    x: PackedBlock | Prepared,
    x_key: str,
    x_offsets: tuple[int, ...],
    y: PackedBlock | Prepared | None,
    y_key: str | None,
    y_offsets: tuple[int, ...],
    pairs: Sequence[tuple[int, int]],
    bandwidths: tuple[float, ...],
    squares: bool,
    margins: bool,
    step: Steps | None,
) -> list[Part]:
    """Pairs of groups; y None: all of x."""
    if step is not None:
        step.begin()
    left = replace(unpack(worker, x, x_key), offsets=x_offsets)
    right = None if y is None or y_key is None else replace(unpack(worker, y, y_key), offsets=y_offsets)
    found = kernels.batch_sums(
        left, right, pairs, bandwidths=bandwidths, squares=squares, margins=margins, progress=step
    )
    return [Part.of(name, sums, y is None and g == h) for (g, h), sums in zip(pairs, found, strict=True)]


class Reports:
    """Tells how many pairs are done: as tasks end, and as tiles do where a task runs in the calling thread."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._steps: dict[int, Steps] = {}

    def pairs(self, count: int) -> None:
        if self._progress is not None and count > 0:
            self._progress(count)

    def step(self, place: int) -> Steps | None:
        if self._progress is None:
            return None
        found = self._steps[place] = Steps(self.pairs)
        return found

    def end(self, place: int, cost: int) -> None:
        step = self._steps.pop(place, None)
        self.pairs(cost if step is None else cost - step.told)


class Steps:
    """Pairs told of one task. Another attempt at it tells only what goes beyond the first."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self.told = self._done = 0

    def begin(self) -> None:
        self._done = 0

    def __call__(self, pairs: int) -> None:
        self._done += pairs
        if self._done > self.told:
            more, self.told = self._done - self.told, self._done
            self._tell(more)


def _tensor(array: Floats) -> Tensor:
    """A copy where the array belongs to an object store, which lets nobody write, or begins elsewhere than torch's own
    tensors do: last bits of the libraries' products of vectors (``null_scale``) depend on it."""
    lies = array.flags.writeable and array.ctypes.data % ALIGNED == 0
    return torch.from_numpy(array) if lies else torch.tensor(array)
