"""All pairs of two clouds as macro-blocks: what ``gpudrift.kernels`` computes in one call, spread over an engine.

A cloud is cut every ``block_rows`` rows. A task is a block of x against a block of y; of x against itself it is the
blocks (i, j) with j >= i, the upper triangle. It returns float64 sums and its slices of row and column sums, which are
added up in fixed slots in task order:

    rows[i] += rows of (i, j)    columns[j] += columns of (i, j)    blocks[g, h] += the part of (i, j) in g, h

So the bits depend on the data, the settings and the type of device alone. A pass of one block is the kernels' own call.
``batch_sums`` puts many small pairs of groups into a task. Finished tasks are kept on disk (``checkpoint``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gpudrift.engine import Engine, Task
from gpudrift.engine.blocks import Reports, Steps, block_sums, group_sums
from gpudrift.engine.checkpoint import Checkpoints, Kept
from gpudrift.engine.local import in_process
from gpudrift.engine.merging import Many, Whole, cost_of, sizes_of
from gpudrift.engine.sharing import Clouds
from gpudrift.errors import ArgumentError, EngineError
from gpudrift.kernels import PairSums, Prepared, Progress

_SIDES = {"cpu": (1 << 13, 1 << 16), "cuda": (1 << 16, 1 << 20)}  # of a block, in rows: at least, at most
_BLOCKS = 16  # a side, at most, while blocks may grow
_BATCH = {"cpu": 1 << 25, "cuda": 1 << 31}  # pairs of a task of small groups


def block_rows_for(rows: int, device_type: str) -> int:
    """Rows a side of a macro-block of a cloud: the smallest power of two that cuts it into at most 16, within 8,192 to
    65,536 on the CPU and 65,536 to 1,048,576 on CUDA."""
    least, most = _SIDES[_kind(device_type)]
    wanted = -(-rows // _BLOCKS)
    return min(max(1 << (wanted - 1).bit_length() if wanted > 1 else 1, least), most)


def in_process_pairs() -> Pairs:
    """Pairs computed by this process, where clouds are."""
    return Pairs(in_process())


def _kind(device_type: str) -> Literal["cpu", "cuda"]:
    return "cuda" if device_type == "cuda" else "cpu"  # others are refused by the kernels


def _silent(_: str) -> None:
    return


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pair sums over an engine.

    block_rows: rows a side of a macro-block, a multiple of 16; None: ``block_rows_for`` each cloud. checkpoints: where
    finished blocks are kept; None: nowhere. tell: takes ``XY: block 3 of 12`` as blocks end. device: type of device
    workers compute on, ``cpu`` or ``cuda``; None: that of the clouds. note: takes how many blocks were finished before,
    once a pass; None: tell does, for which it is gone with the next block.
    """

    engine: Engine
    block_rows: int | None = None
    checkpoints: Checkpoints | None = None
    tell: Callable[[str], None] = _silent
    device: str | None = None
    note: Callable[[str], None] | None = None
    _clouds: Clouds = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_clouds", Clouds(self.engine))

    def self_sums(
        self,
        x: Prepared,
        *,
        bandwidths: Sequence[float] = (),
        squares: bool = True,
        margins: bool = True,
        progress: Progress | None = None,
        name: str = "XX",
    ) -> PairSums:
        """``kernels.self_sums``: over all ordered pairs (x_i, x_j), i != j. progress: told pairs as blocks end. name:
        for people.

        Raises:
            EngineError: a block could not be computed, or came back wrong.
        """
        return self._whole(x, None, tuple(map(float, bandwidths)), squares, margins, progress, name)

    def cross_sums(
        self,
        x: Prepared,
        y: Prepared,
        *,
        bandwidths: Sequence[float] = (),
        squares: bool = True,
        margins: bool = True,
        progress: Progress | None = None,
        name: str = "XY",
    ) -> PairSums:
        """``kernels.cross_sums``: over all pairs (x_i, y_j). Otherwise as ``self_sums``."""
        return self._whole(x, y, tuple(map(float, bandwidths)), squares, margins, progress, name)

    def batch_sums(
        self,
        x: Prepared,
        y: Prepared | None,
        pairs: Sequence[tuple[int, int]],
        *,
        bandwidths: Sequence[float] = (),
        squares: bool = True,
        margins: bool = True,
        progress: Progress | None = None,
        name: str = "segments",
    ) -> list[PairSums]:
        """``kernels.batch_sums``: (g, h) of ``pairs``: rows of group g of x against those of group h of y (None: of x;
        (g, g) is then the group's self sums). Groups longer than a block are passes of their own, the others go into
        tasks of about equal cost in the order of the list. Otherwise as ``self_sums``."""
        widths = tuple(map(float, bandwidths))
        other = x if y is None else y
        _check_groups(x, other, pairs)
        alone = [p for p, pair in enumerate(pairs) if self._is_long(x, y, pair)]
        together = sorted(set(range(len(pairs))).difference(alone))
        batches = _batches(x, y, [pairs[p] for p in together], _BATCH[_kind(self._device(x))])
        many = Many(x, y, batches, widths, margins)
        found: list[PairSums | None] = [None] * len(pairs)
        if batches:
            task = self._batch_task(x, y, many, squares, name)
            digest = self._clouds.digester(
                self.device, x, y, "batch", x.offsets, other.offsets, batches, widths, squares, margins
            )
            for p, sums in zip(together, self._run(name, many, task, digest, progress), strict=True):
                found[p] = sums
        own = {g: x.group(g) for g in {pairs[p][0] for p in alone}}  # once: what is shared is known by its tensor
        others = own if y is None else {}
        for p in alone:
            g, h = pairs[p]
            if h not in others:
                others[h] = other.group(h)
            right = None if y is None and g == h else others[h]
            found[p] = self._whole(own[g], right, widths, squares, margins, progress, f"{name} {g}-{h}")
        return [sums for sums in found if sums is not None]

    def forget(self) -> None:
        """The run has ended: remove what was kept of finished blocks."""
        if self.checkpoints is not None:
            self.checkpoints.clear()

    def _whole(
        self,
        x: Prepared,
        y: Prepared | None,
        bandwidths: tuple[float, ...],
        squares: bool,
        margins: bool,
        progress: Progress | None,
        name: str,
    ) -> PairSums:
        other = x if y is None else y
        sides = self._side(x), self._side(other)
        whole = Whole(x, y, *sides, bandwidths, margins)
        left, right = self._clouds.of(x), self._clouds.of(other)

        def task(place: int, k: int, step: Steps | None) -> Task:
            i, j = whole.cells[k]
            a, b = whole.left[i], whole.right[j]
            shared = left.span((a.start, a.stop))
            within = y is None and i == j
            beside = None if within else right.span((b.start, b.stop))
            label = f"{name} {whole.place(k)}"
            args = (
                label, shared, shared.key, a.offsets, beside, None if beside is None else beside.key, b.offsets,
                bandwidths, squares, margins, step,
            )  # fmt: skip
            return Task(place, label, block_sums, args, float(whole.cost(k)))

        digest = self._clouds.digester(
            self.device, x, y, "whole", x.offsets, other.offsets, sides, bandwidths, squares, margins
        )
        sums: PairSums = self._run(name, whole, task, digest, progress)
        return sums

    def _batch_task(
        self, x: Prepared, y: Prepared | None, many: Many, squares: bool, name: str
    ) -> Callable[[int, int, Steps | None], Task]:
        def task(place: int, k: int, step: Steps | None) -> Task:
            batch, label = many.batches[k], f"{name} {many.place(k)}"
            used = [g for g, _ in batch] + ([h for _, h in batch] if y is None else [])
            left, offsets, at = self._clouds.groups(x, used)
            beside, beyond, there = (None, offsets, at) if y is None else self._clouds.groups(y, [h for _, h in batch])
            moved = [(at[g], there[h]) for g, h in batch]
            args = (
                label, left, left.key, offsets, beside, None if beside is None else beside.key, beyond,
                moved, many.bandwidths, squares, many.margins, step,
            )  # fmt: skip
            return Task(place, label, group_sums, args, float(many.cost(k)))

        return task

    def _run(
        self,
        name: str,
        sums: Whole | Many,
        task: Callable[[int, int, Steps | None], Task],
        digest: Callable[[], str],
        progress: Progress | None,
    ) -> Any:
        """All tasks of a pass that have not been finished before, added up in their order."""
        count = len(sums)
        kept = Kept(self.checkpoints if count > 1 else None, name, digest)
        done = before = kept.load(sums)
        if before:
            self.engine.account.resumed += before
            (self.note or self.tell)(f"{name}: {before} of {count} blocks were finished before")
        report = Reports(progress)
        report.pairs(sum(sums.cost(k) for k in range(before)))
        inside = not self.engine.remote and self.engine.executor.slots() == 1
        ended = before

        def on_done(ending: Task) -> None:
            nonlocal ended
            ended += 1
            report.end(ending.place, int(ending.cost))
            if count > 1:
                self.tell(f"{name}: block {ended} of {count}")

        tasks = (task(k - before, k, report.step(k - before) if inside else None) for k in range(before, count))
        adding = False
        try:
            with contextlib.closing(self.engine.map(tasks, on_done=on_done)) as results:
                for ending, value in results:
                    adding = True
                    sums.add(done, ending.name, value)
                    done += 1
                    adding = False
                    kept.save(done, sums)
        except BaseException:
            if not adding:  # an interrupt may have left half a block in the sums
                kept.save(done, sums, now=True)
            raise
        try:
            return sums.result(verified=count > 1 or self.engine.remote)
        except EngineError:
            kept.forget()
            raise

    def _side(self, cloud: Prepared) -> int:
        return self.block_rows or block_rows_for(len(cloud), self._device(cloud))

    def _is_long(self, x: Prepared, y: Prepared | None, pair: tuple[int, int]) -> bool:
        return any(size > (self.block_rows or block_rows_for(size, self._device(x))) for size in sizes_of(x, y, pair))

    def _device(self, cloud: Prepared) -> str:
        return self.device or cloud.device.type


def _check_groups(x: Prepared, y: Prepared, pairs: Sequence[tuple[int, int]]) -> None:
    most = len(x.offsets) - 1, len(y.offsets) - 1
    for g, h in pairs:
        if not (0 <= g < most[0] and 0 <= h < most[1]):
            raise ArgumentError(
                "no such pair of groups", field="pairs", value=(g, h), allowed=f"below {most[0]}, {most[1]}"
            )


def _batches(
    x: Prepared, y: Prepared | None, pairs: Sequence[tuple[int, int]], most: int
) -> list[list[tuple[int, int]]]:
    """Consecutive pairs of groups whose costs come to at most ``most``, or a pair that alone costs more."""
    found: list[list[tuple[int, int]]] = []
    room = 0
    for pair in pairs:
        cost = cost_of(x, y, pair)
        if not found or cost > room:
            found.append([])
            room = most
        found[-1].append(pair)
        room -= cost
    return found
