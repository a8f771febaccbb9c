"""The open questions about the kernels, as far as they are cheap to settle on a GPU. Each answer is a record.

epilogue         time over the depth of the product, a straight line: its start is what a tile costs beside it
schedule         the shipped schedule with one thing changed at a time
int8             integer products against float16's, same kernel
specialisation   automatic warp specialisation: is it right, is it faster; in a process of its own, for it may hang
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_goals import Clock
from gpu_part import Setting, ahead, attempt, one_line
from gpu_rates import LADDER5, gemm
from gpu_timing import Contestant, Inputs, draw, job, paired, rounds
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels import schedules
from gpudrift.kernels.layout import Wanted
from gpudrift.kernels.schedules import Schedule

ROWS = 32768
DIMS = (128, 768)
ENERGY, LADDER = Wanted(), Wanted(LADDER5)


@contextlib.contextmanager
def forced(schedule: Schedule) -> Iterator[None]:
    """Jobs made within use this schedule."""
    choose = schedules.choose

    def always(*_: Any, **__: Any) -> Schedule:
        return schedule

    schedules.choose = always
    try:
        yield
    finally:
        schedules.choose = choose


def with_schedule(schedule: Schedule, call: Callable[[], Any]) -> Callable[[], Any]:
    def forced_call() -> Any:
        with forced(schedule):
            return call()

    return forced_call


def changes(shipped: Schedule) -> dict[str, Schedule]:
    """The shipped schedule with one thing changed."""
    wide = replace(shipped, BM=128, BN=128, SUBTILES=1, PARTIALS=False)
    found = {
        "shipped": shipped,
        f"DESCRIPTORS={not shipped.DESCRIPTORS}": replace(shipped, DESCRIPTORS=not shipped.DESCRIPTORS),
        f"FLATTEN={not shipped.FLATTEN}": replace(shipped, FLATTEN=not shipped.FLATTEN),
        f"PARTIALS={not shipped.PARTIALS}": replace(shipped, PARTIALS=not shipped.PARTIALS, SUBTILES=1),
        "128x128 4 warps": replace(wide, WARPS=4),
        "128x128 8 warps": replace(wide, WARPS=8),
        "128x128 8 warps MAXNREG=128": replace(wide, WARPS=8, MAXNREG=128),
    }
    unique: dict[Schedule, str] = {}
    for name, schedule in found.items():
        unique.setdefault(schedule, name)
    return {name: schedule for schedule, name in unique.items()}


class Probes:
    """The part: inputs drawn and kernels compiled when it is ready."""

    def __init__(self, where: Setting, clock: Clock) -> None:
        self.where = where
        if not where.cuda:
            where.say({"part": "probes", "skipped": "the open questions: they need a GPU"})
            return
        kernels.backend_for(where.device, "float16")
        calls: list[tuple[str, Callable[[], Any]]] = []
        for d in DIMS:
            data = draw(4096, d, where)
            calls += [(name, one.call) for name, one in self._toggled(data).items()]
            calls += [(one.name, one.call) for _, one in self._depths(data)]
        calls.append(("int8", lambda: self._int8_pair(4096)[1].call()))
        calls.append(("float16", lambda: self._int8_pair(4096)[0].call()))
        ahead(where, "probes", calls, Clock.until(clock.now() + 0.9 * clock.left))

    def run(self, clock: Clock) -> None:
        if not self.where.cuda:
            return
        for d in DIMS:
            if clock.fits(f"schedules at d={d}", 4.0):
                with attempt(self.where, "probes", f"schedules d={d}"):
                    self.schedules(d, Clock.until(clock.now() + clock.left / 4))
        for d in (DIMS[1], 1536):
            if clock.fits(f"epilogue at d={d}", 2.0):
                with attempt(self.where, "probes", f"epilogue d={d}"):
                    self.epilogue(d, Clock.until(clock.now() + clock.left / 4))
        if clock.fits("int8", 2.0):
            with attempt(self.where, "probes", "int8"):
                self.int8(clock)
        if clock.fits("warp specialisation", 15.0):
            self.specialisation(min(clock.left, 60.0))

    def _toggled(self, data: Inputs) -> dict[str, Contestant]:
        found = {}
        arch = schedules.architecture(torch.cuda.get_device_capability(self.where.device))
        for what, wanted in (("energy", ENERGY), ("energy+5", LADDER)):
            shipped = schedules.choose(arch, "float16", "ladder" if wanted.bandwidths else "distance", data.d)
            for name, schedule in changes(shipped).items():
                call = with_schedule(schedule, partial(_energy, data, wanted))
                found[f"{what}: {name}"] = Contestant(f"{what}: {name}", call, data.n**2)
        return found

    def schedules(self, d: int, clock: Clock) -> None:
        data = draw(ROWS, d, self.where)
        floor, runners = gemm(data), self._toggled(data)
        rounds([floor, *runners.values()], self.where, clock, 9, part="probes")
        for name, one in runners.items():
            if not one.times:
                continue
            shipped = runners[name.partition(":")[0] + ": shipped"]
            right = abs(one.value - shipped.value) <= 1e-4 * abs(shipped.value)
            self._say(name, d=d, share=paired(one, floor), over_shipped=paired(one, shipped), right=right)

    def _depths(self, data: Inputs) -> list[tuple[int, Contestant]]:
        full = job(data.x, data.y, ENERGY).depth
        found = []
        for what, wanted in (("energy", ENERGY), ("energy+5", LADDER)):
            for depth in sorted({2, max(2, full // 2), full}):
                call = _at_depth(data, wanted, depth)
                found.append((depth, Contestant(f"{what} depth {depth}", call, data.n**2)))
        return found

    def epilogue(self, d: int, clock: Clock) -> None:
        """Least squares of seconds a pair over the depth: start (the tile's own cost) and slope (a step of BK)."""
        data = draw(ROWS, d, self.where)
        runners = self._depths(data)
        floor = gemm(data)
        rounds([floor, *(one for _, one in runners)], self.where, clock, 9, part="probes")
        for what in ("energy", "energy+5"):
            points = [
                (depth, one.seconds / one.pairs) for depth, one in runners if one.name.startswith(what + " depth")
            ]
            if len(points) < 2:
                continue
            start, slope = line(points)
            full = max(depth for depth, _ in points)
            product = floor.seconds / floor.pairs
            self._say(
                f"epilogue of {what}",
                d=d,
                own_part=start / (start + slope * full),
                main_loop_of_gemm=product / (slope * full) if slope > 0 else None,
                seconds_a_pair=start,
            )

    def _int8_pair(self, n: int) -> list[Contestant]:
        from gpu_probe_kernels import row_sums

        return [
            Contestant(str(dtype), _product(row_sums, dtype, n, 1024, self.where), n * n)
            for dtype in (torch.float16, torch.int8)
        ]

    def int8(self, clock: Clock) -> None:
        half, whole = self._int8_pair(16384)
        rounds([half, whole], self.where, Clock.until(clock.now() + min(clock.left, 5)), 9, "", "probes")
        right = abs(whole.value) <= 1e-5  # each call gives its relative error
        self._say("int8 over float16", d=1024, ratio=paired(whole, half), right=right, error=whole.value)

    def specialisation(self, seconds: float) -> None:
        """In a process of its own."""
        command = [sys.executable, str(Path(__file__).with_name("gpu_suite.py")), "--part", "specialisation"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            answer = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
        except subprocess.TimeoutExpired:
            self._say("warp specialisation", works=False, why=f"nothing after {seconds:.0f} s")
            return
        except (ValueError, IndexError) as error:
            self._say("warp specialisation", works=False, why=one_line(error))
            return
        if answer is None:
            why = (done.stderr.strip().splitlines() or [""])[-1][:300]
            self._say("warp specialisation", works=False, why=f"exit code {done.returncode}: {why}")
        else:
            self._say("warp specialisation", **answer)

    def _say(self, name: str, **answers: Any) -> None:
        self.where.say({"part": "probes", "name": name, **answers})


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Start and slope of the straight line through (x, y) by least squares."""
    mx, my = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)
    return my - slope * mx, slope


def _energy(data: Inputs, wanted: Wanted) -> float:
    made = job(data.x, data.y, wanted)
    sums = made.run()
    return float(sums.columns.sum()) / (len(made.x) * len(made.y))


def _at_depth(data: Inputs, wanted: Wanted, depth: int) -> Callable[[], None]:
    def call() -> None:
        made = job(data.x, data.y, wanted)
        made.depth = depth
        made.run()

    return call


def _product(kernel: Any, dtype: torch.dtype, n: int, d: int, where: Setting, **changed: Any) -> Callable[[], float]:
    """Launch ``row_sums`` on random rows; a call gives the relative error of a few of its sums once, NaN later."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    whole = dtype == torch.int8
    constants = {"BM": 128, "BN": 128, "BK": 128 if whole else 64, "STAGES": 3, "GROUP": 16}
    constants |= {"WHOLE": whole, "SPECIALISED": False, "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
    constants |= changed
    generator = torch.Generator(device=where.device).manual_seed(3)
    drawn = [torch.randn(n, d, generator=generator, device=where.device) for _ in range(2)]
    x, y = ((rows * 20).clamp(-127, 127).to(dtype) if whole else rows.to(dtype) for rows in drawn)
    side = [TensorDescriptor.from_tensor(rows, [128, constants["BK"]]) for rows in (x, y)]
    out = torch.full((n // 128, n), float("nan"), dtype=torch.float32, device=where.device)
    wanted = (x[:256].double() @ y.double().T).abs().sqrt().sum(1)
    told: list[float] = []

    def call() -> float:
        kernel[((n // 128) ** 2,)](*side, out, d // constants["BK"], n // 128, **constants)
        if not told:
            found: Tensor = out.double().sum(0)[:256]
            told.append(float((found - wanted).abs().max() / wanted.abs().max()))
            return told[0]
        return float("nan")

    return call


def specialised() -> None:
    """Warp specialisation against the same kernel without, one JSON line."""
    from gpu_probe_kernels import row_sums

    told: list[dict[str, Any]] = []
    where = Setting(torch.device("cuda"), dry=False, say=told.append)
    runners = [
        Contestant(
            name,
            _product(row_sums, torch.float16, 16384, 768, where, SPECIALISED=special, num_warps=warps),
            16384**2,
        )
        for name, special, warps in (("plain", False, 8), ("plain 4", False, 4), ("specialised", True, 4))
    ]
    rounds(runners, where, Clock(5.0), 9, "")
    plain, four, special = runners
    if not special.times:
        print(json.dumps({"works": False, "why": str(told)}))
        return
    answer = {"works": True, "d": 768, "error": special.value, "right": abs(special.value) < 1e-4}
    answer |= {"ratio": paired(special, plain), "over_4_warps": paired(special, four)}
    print(json.dumps(answer))
