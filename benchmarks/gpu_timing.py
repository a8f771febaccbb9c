"""Times in interleaved rounds, and the inputs they are taken on.

A round calls every contestant once; a time is between CUDA events around the whole call, host work, copies and the
final synchronization included. Ratios are medians of the ratios within a round: what slows the chip slows both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from gpu_goals import Clock
from gpu_part import Setting, one_line
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels.layout import Prepared, Wanted
from gpudrift.kernels.tiling import Block

SLOW = 5.0  # times the bare product: such a contestant sits out after two rounds, one of ours after three
Call = Callable[[], Any]


@dataclass
class Contestant:
    """pairs: of one call. variants: the checks it depends on."""

    name: str
    call: Call
    pairs: int
    variants: tuple[str, ...] = ()
    ours: bool = True
    times: list[tuple[int, float]] = field(default_factory=list)  # (round, seconds)
    value: float = math.nan

    @property
    def seconds(self) -> float:
        return median(t for _, t in self.times) if self.times else math.nan

    @property
    def spread(self) -> float:
        """Half the range of the middle half, as a part of the median."""
        ordered = sorted(t for _, t in self.times)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / 2 / self.seconds if ordered else math.nan


def timed(call: Call, where: Setting) -> tuple[float, Any]:
    """Seconds of one call, by the device's clock."""
    if not where.cuda:
        started = time.perf_counter()
        value = call()
        return time.perf_counter() - started, value
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    value = call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, value


def rounds(
    contestants: Sequence[Contestant], where: Setting, clock: Clock, most: int, base: str = "gemm", part: str = "rates"
) -> None:
    """Warm each up once, then interleave; who fails is dropped and told. At least three rounds where time allows."""
    running: list[Contestant] = []
    for one in contestants:
        try:
            _, value = timed(one.call, where)
            one.value = float(value) if isinstance(value, float) else math.nan
            running.append(one)
        except Exception as error:  # noqa: BLE001 -- told; the others go on
            where.say({"part": part, "name": one.name, "error": one_line(error)})
            where.free()
            where.synchronize()
    floor = next((one for one in running if one.name == base), None)
    started, spent = clock.now(), 0.0
    for number in range(most):
        if number >= 1 and clock.left < spent / number:
            break
        for one in running:
            if floor is not None and number >= 2 + one.ours and one.seconds > SLOW * floor.seconds:
                continue
            seconds, _ = timed(one.call, where)
            one.times.append((number, seconds))
        spent = clock.now() - started


def paired(one: Contestant, other: Contestant) -> float:
    """Median over common rounds of (time a pair of ``other``) / (time a pair of ``one``): one's speed over other's."""
    of_round = dict(other.times)
    ratios = [of_round[r] / other.pairs / (t / one.pairs) for r, t in one.times if r in of_round]
    return median(ratios) if ratios else math.nan


@dataclass
class Inputs:
    """Clouds of one dimension, float32 rows on the device and prepared in 16 bit."""

    n: int
    d: int
    x32: Tensor
    y32: Tensor
    x: Prepared
    y: Prepared


def draw(n: int, d: int, where: Setting, precision: str = "float16") -> Inputs:
    generator = torch.Generator(device=where.device).manual_seed(d)
    x32, y32 = (torch.randn(n, d, generator=generator, device=where.device) / d**0.5 for _ in range(2))
    y32 += 0.2 / d**0.5
    x = kernels.prepare(x32, centre=x32.double().mean(0), precision=precision)
    y = kernels.prepare(y32, centre=x32.double().mean(0), precision=precision, scale=x.scale)
    return Inputs(n, d, x32, y32, x, y)


def job(x: Prepared, y: Prepared, wanted: Wanted, **changed: Any) -> Any:
    """A job of the fused kernels with constants of its pass changed: what the suite's own experiments launch."""
    from gpudrift.kernels import triton_ops

    made = triton_ops._Job(x, y, wanted, [Block(0, len(x), 0, len(y), False, 0, 0, 0)], len(x), len(y), None, None)
    made.what = replace(made.what, **changed)
    return made
