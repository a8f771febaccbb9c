"""What an engine shares of clouds: blocks of rows, once however many passes use them, and digests of rows."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

import gpudrift
from gpudrift import kernels
from gpudrift.engine import Engine, Shared
from gpudrift.engine.wire import pack, take
from gpudrift.kernels import Prepared

Span = tuple[int, int]
_HASHING = 4  # threads
_STEP = 16  # rows: 64 bytes, whatever their dimension and type


class Clouds:
    """What has been shared of clouds whose rows are alive."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[int, dict[tuple[Any, ...], Cloud]] = {}

    def of(self, prepared: Prepared) -> Cloud:
        """What is shared of a cloud, however many passes use it, as long as its rows live. Its offsets go with each
        task: the same rows are grouped by windows in one pass and whole in another."""
        rows = prepared.rows
        number = id(rows)
        mark = (
            0 if rows.is_inference() else rows._version,
            id(prepared.norms), id(prepared.clusters), prepared.precision, prepared.scale, prepared.device,
        )  # fmt: skip
        if number not in self._held:
            weakref.finalize(rows, _drop, weakref.ref(self), number).atexit = False
        held = self._held.setdefault(number, {})
        if mark not in held:
            held[mark] = Cloud(self._engine, prepared)
        return held[mark]

    def drop(self, number: int) -> None:
        """Rows of this id are gone."""
        self._held.pop(number, None)

    def groups(self, cloud: Prepared, used: Sequence[int]) -> tuple[Shared, tuple[int, ...], dict[int, int]]:
        """The rows of some groups, offsets in these, and each group's place among them.

        The range of rows the groups lie in where they fill most of it, else a copy without what lies between. Both
        begin and end at multiples of 16 rows of the cloud, so a group's rows lie on the same alignment as there: the
        libraries' products depend on it in their last bits.
        """
        groups = sorted(set(used))
        ranges: list[Span] = []
        for g in groups:
            start, stop = cloud.offsets[g] // _STEP * _STEP, min(-(-cloud.offsets[g + 1] // _STEP) * _STEP, len(cloud))
            if ranges and start <= ranges[-1][1]:
                start, stop = ranges[-1][0], max(stop, ranges.pop()[1])
            ranges.append((start, stop))
        whole = ranges[0][0], ranges[-1][1]
        if 2 * sum(stop - start for start, stop in ranges) >= whole[1] - whole[0]:
            ranges = [whole]
        offsets, at = _places(cloud.offsets, groups, ranges)
        if len(ranges) == 1:
            return self.of(cloud).span(whole), offsets, at
        part = take(cloud, torch.cat([torch.arange(start, stop) for start, stop in ranges]))
        return self._engine.share(part, pack=pack), offsets, at

    def digester(self, device: str | None, x: Prepared, y: Prepared | None, *what: Any) -> Callable[[], str]:
        """A digest of all that decides a pass's sums."""

        def digest() -> str:
            clouds = [self.of(cloud).digests() for cloud in (x, *([] if y is None else [y]))]
            where = _arithmetic_of(device, x)
            told = [gpudrift.__version__, torch.__version__, where, x.precision, float(x.scale).hex(), clouds, what]
            return hashlib.sha256(json.dumps(told).encode()).hexdigest()

        return digest


class Cloud:
    """A cloud's spans of rows as they are shared, and the digests of its rows."""

    def __init__(self, engine: Engine, prepared: Prepared) -> None:
        self._engine = engine
        # detached: a tensor of its own on the same memory, so that the caller's can go, and this with it
        self._whole = replace(prepared, rows=prepared.rows.detach())
        self._spans: dict[Span, Shared] = {}
        self._digests: list[str] = []

    def span(self, span: Span) -> Shared:
        if span not in self._spans:
            self._spans[span] = self._engine.share(_cut(self._whole, span), pack=pack)
        return self._spans[span]

    def digests(self) -> list[str]:
        """SHA-256 of its rows, norms and clusters as they travel, a few thousand rows at a time."""
        if not self._digests:
            n = len(self._whole)
            step = max(1, (1 << 24) // self._whole.dim)
            spans = [(start, min(start + step, n)) for start in range(0, n, step)]
            with ThreadPoolExecutor(min(_HASHING, os.cpu_count() or 1)) as threads:
                self._digests = list(threads.map(lambda span: _digest(_cut(self._whole, span)), spans))
        return self._digests


def _drop(clouds: weakref.ref[Clouds], number: int) -> None:
    held = clouds()
    if held is not None:
        held.drop(number)


def _places(
    offsets: tuple[int, ...], groups: Sequence[int], ranges: Sequence[Span]
) -> tuple[tuple[int, ...], dict[int, int]]:
    """Offsets in ranges of rows laid end to end, and each group's place among them. Rows between groups are groups
    that nobody asks for."""
    bounds, at, base, waiting = [0], {}, 0, list(groups)
    for start, stop in ranges:
        while waiting and offsets[waiting[0] + 1] <= stop:
            g = waiting.pop(0)
            first, last = (base + offset - start for offset in offsets[g : g + 2])
            if first > bounds[-1]:
                bounds.append(first)
            at[g] = len(bounds) - 1
            bounds.append(last)
        base += stop - start
    if bounds[-1] < base:
        bounds.append(base)
    return tuple(bounds), at


def _cut(cloud: Prepared, span: Span) -> Prepared:
    start, stop = span
    if (start, stop) == (0, len(cloud)):
        return replace(cloud, offsets=(0, len(cloud)))
    return replace(cloud, offsets=(0, start, stop, len(cloud))).group(1)


def _digest(cloud: Prepared) -> str:
    packed = pack(cloud)
    found = hashlib.sha256()
    for array in (packed.rows, packed.norms, packed.clusters):
        if array is None:
            found.update(b"none")
        else:
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(array.reshape(-1).data)
    return found.hexdigest()


def _arithmetic_of(device: str | None, cloud: Prepared) -> list[str]:
    """What the last digits depend on: backend and hardware, as far as they are known here."""
    kind = device or cloud.device.type
    if kind == "cpu":
        return ["torch-cpu", torch.backends.cpu.get_cpu_capability()]
    if not torch.cuda.is_available():
        return [kind]
    own = cloud.device if cloud.device.type == kind else torch.device(kind)
    return [kernels.backend_for(own, cloud.precision).name, torch.cuda.get_device_name(own)]
