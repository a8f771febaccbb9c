"""``--tune``: find the fastest schedule by statistics and dimension, and rewrite the table of schedules.

Candidates differ in tile, warps, stages and the ways of the epilogue; they are compiled in parallel first. Successive
halving: every candidate is timed on a small problem, the better part again and interleaved, then the winner's launch
order (STRIP, GROUP: nothing to compile). A winner that does not pass the checks is passed over. Timings are kept in a
file as they come: a candidate that takes the device down is skipped by the next process.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CHAINED, Check
from gpu_checks import check
from gpu_goals import DIMS, Clock
from gpu_part import Setting, ahead, attempt, one_line
from gpu_probes import forced, with_schedule
from gpu_rates import LADDER5
from gpu_timing import Contestant, Inputs, draw, job, rounds

from gpudrift import kernels
from gpudrift.kernels import schedules
from gpudrift.kernels.layout import Wanted
from gpudrift.kernels.schedules import Row, Schedule

STATISTICS = ("distance", "ladder", "labels")  # those of clusters keep what compile reports chose
CLASS = ("float16", "bfloat16")  # timed in float16: both run the same instructions
BUCKETS = {128: 256, 384: 512, 768: 1024, 1536: 2048, 3072: 0}  # timed at -> serves up to (0: all above)
ROWS = {128: 49152, 384: 32768, 768: 32768, 1536: 24576, 3072: 16384}
KEPT = 6  # of a round
ORDERS = ((4, 8), (8, 8), (8, 16), (16, 8), (16, 32), (32, 4), (32, 16))  # (STRIP, GROUP) beside the shipped one

Time = Callable[[Schedule], float]


def candidates(statistics: str, arch: int) -> list[Schedule]:
    """What is worth compiling; on sm_80 without descriptors. Shipped first."""
    base = schedules.choose(arch, "float16", statistics, 768)
    descriptors = arch >= 90
    found = [base]

    def add(height: int, width: int, warps: int, **more: Any) -> None:
        found.append(Schedule(BM=height, BN=width, WARPS=warps, DESCRIPTORS=descriptors, **more))

    if statistics == "labels":
        for stages in (2, 3, 4):
            for height, width, warps in ((128, 64, 8), (128, 64, 4), (128, 128, 8), (64, 64, 4), (256, 64, 8)):
                add(height, width, warps, STAGES=stages)
        return _unique(found)
    for stages in (3, 4):
        for partials in (True, False):
            for height, width, warps in ((128, 128, 4), (128, 128, 8), (256, 64, 8), (128, 64, 4), (256, 128, 8)):
                add(height, width, warps, STAGES=stages, PARTIALS=partials)
        add(128, 256, 8, STAGES=stages)
        add(128, 256, 8, STAGES=stages, SUBTILES=4)
    add(128, 128, 8, PARTIALS=True, STAGES=2)
    add(128, 128, 4, PARTIALS=True, STAGES=2)
    for warps, partials in ((4, True), (8, True), (8, False)):
        add(128, 128, warps, PARTIALS=partials, FLATTEN=True)
    add(128, 64, 4, PARTIALS=True, FLATTEN=True)
    add(128, 128, 8, PARTIALS=True, MAXNREG=128)
    add(128, 128, 8, MAXNREG=128)
    for subtiles in (2, 4):
        for flatten in (False, True):
            add(128, 128, 8, SUBTILES=subtiles, FLATTEN=flatten)
        add(128, 64, 4, SUBTILES=subtiles)
        add(256, 128, 8, SUBTILES=subtiles)
        add(256, 64, 8, SUBTILES=subtiles)
    add(128, 64, 8)
    add(128, 64, 8, SUBTILES=2)
    add(128, 64, 8, PARTIALS=True)
    if not descriptors:
        found += [replace(one, STAGES=4) for one in found]
    return _unique(found)


def _unique(found: Iterable[Schedule]) -> list[Schedule]:
    return list(dict.fromkeys(found))


def key(schedule: Schedule) -> str:
    """What differs from the default: how a schedule is told."""
    default = asdict(Schedule())
    return json.dumps({k: v for k, v in asdict(schedule).items() if v != default[k]}, sort_keys=True)


def halve(times: dict[Schedule, float], keep: int) -> list[Schedule]:
    """The fastest ``keep`` that gave a time, fastest first."""
    valid = [s for s in times if math.isfinite(times[s])]
    return sorted(valid, key=lambda s: times[s])[:keep]


def select(
    known: Sequence[Schedule],
    rough: Time,
    fine: Callable[[Sequence[Schedule]], dict[Schedule, float]],
    right: Callable[[Schedule], bool],
    orders: Sequence[tuple[int, int]] = ORDERS,
) -> tuple[Schedule, float] | None:
    """The fastest that is right, and its time; None where none is.

    rough: the time of one (infinite where it does not run); fine: interleaved times of a few.
    """
    for best in halve(fine(halve({one: rough(one) for one in known}, KEPT)), KEPT):
        if not right(best):
            continue
        ordered = _unique([best, *(replace(best, STRIP=strip, GROUP=group) for strip, group in orders)])
        times = fine(ordered)
        winner = next(iter(halve(times, 1)), best)
        if winner is not best and not right(winner):
            winner = best
        return winner, times.get(winner, math.nan)
    return None


def merged(
    rows: Sequence[Row], arch: int, precisions: tuple[str, ...], found: dict[str, dict[int, Schedule]], timed: str
) -> tuple[Row, ...]:
    """The table with the rows of this architecture, these precisions and these statistics replaced.

    found: statistics -> upper end of the bucket (0: all above) -> schedule. Neighbouring buckets of one schedule become
    one. A statistic whose last bucket was not found keeps its old row for what lies above.
    """
    kept: list[Row] = []
    for row in rows:
        affected = row.arch == arch and set(row.precisions) & set(precisions)
        replaced = tuple(s for s in row.statistics if affected and s in found and (0 in found[s] or row.d))
        left = tuple(s for s in row.statistics if s not in replaced)
        others = tuple(p for p in row.precisions if p not in precisions)
        if affected and replaced and others:
            kept.append(replace(row, precisions=others))
            row = replace(row, precisions=tuple(p for p in row.precisions if p in precisions))
        if left:
            kept.append(replace(row, statistics=left))
    made = []
    for statistics, by_d in found.items():
        ends = sorted(by_d, key=lambda d: d or 1 << 30)
        for place, d in enumerate(ends):
            last = place + 1 == len(ends)
            if not last and by_d[ends[place + 1]] == by_d[d]:
                continue
            made.append(Row(arch, precisions, (statistics,), d, by_d[d], timed))
    return tuple(sorted([*kept, *made], key=lambda row: row.arch))


@dataclass
class Log:
    """Timings on disk, a JSON line each; ``start`` marks what is about to run."""

    path: Path

    def __post_init__(self) -> None:
        self.times: dict[str, float] = {}
        begun = None
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                told = json.loads(line)
                begun = told["case"] if told["seconds"] is None else None
                if told["seconds"] is not None:
                    self.times[told["case"]] = told["seconds"]
        if begun is not None:  # the process before this one died of it
            self.times[begun] = math.inf

    def timed(self, case: str, measure: Callable[[], float]) -> float:
        if case not in self.times:
            self._write(case, None)
            self.times[case] = measure()
            self._write(case, self.times[case])
        return self.times[case]

    def _write(self, case: str, seconds: float | None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, "seconds": seconds}) + "\n")


class Tuner:
    """The part. Ready when the candidates are compiled."""

    def __init__(self, where: Setting, clock: Clock, out: Path, statistics: Sequence[str] = STATISTICS) -> None:
        self.where, self.out, self.statistics = where, out, statistics
        self.log = Log(out / "tune.jsonl")
        self.arch = schedules.architecture(torch.cuda.get_device_capability(where.device)) if where.cuda else 90
        self.inputs: dict[int, Inputs] = {}
        if not where.cuda:
            return
        kernels.backend_for(where.device, "float16")
        data = draw(2048, 384, where)  # any depth but 1 and the multiples of 16 is the same kernel
        calls = [
            (f"{name} {key(one)}", with_schedule(one, self._run(name, data)))
            for name in statistics
            for one in candidates(name, self.arch)
        ]
        ahead(where, "tune", calls, Clock.until(clock.now() + 0.6 * clock.left))

    def _run(self, statistics: str, data: Inputs) -> Callable[[], Any]:
        wanted = {"distance": Wanted(), "ladder": Wanted(LADDER5)}.get(statistics)
        if wanted is not None:
            return lambda: job(data.x, data.y, wanted).run()
        z = torch.zeros(data.n, 128, device=self.where.device)
        z[::3] = 1
        return lambda: job(data.x, data.x, Wanted((), False, True, z)).run()

    def run(self, clock: Clock) -> None:
        found: dict[str, dict[int, Schedule]] = {name: {} for name in self.statistics}
        order = [(name, d) for d in (768, 128, 384, 1536, 3072) for name in self.statistics]
        for place, (name, d) in enumerate(order):
            share = clock.left / (len(order) - place)
            if not clock.fits(f"tuning {name} at d={d}", 2.0 if self.where.cuda else 0.0):
                continue
            with attempt(self.where, "tune", f"{name} d={d}"):
                best = self.best(name, d, Clock.until(clock.now() + share, clock.now))
                if best is not None:
                    found[name][BUCKETS[d]] = best
        self.write({name: by_d for name, by_d in found.items() if by_d})

    def best(self, statistics: str, d: int, clock: Clock) -> Schedule | None:
        where = self.where
        data = draw(ROWS[d] if where.cuda else 96, d if where.cuda else 8, where)
        known = candidates(statistics, self.arch)
        if not where.cuda:
            known = known[:4]
        call = self._run(statistics, data) if where.cuda else lambda: None
        runner = {
            one: Contestant(key(one), with_schedule(one, call) if where.cuda else call, data.n**2) for one in known
        }

        def rough(one: Schedule) -> float:
            def measure() -> float:
                rounds([runner[one]], where, clock, 3, "", "tune")
                return min((t for _, t in runner[one].times), default=math.inf)

            if clock.left <= 0:
                return math.inf
            return self.log.timed(f"{statistics} d={d} {key(one)}", measure)

        def fine(some: Sequence[Schedule]) -> dict[Schedule, float]:
            made = {one: Contestant(key(one), with_schedule(one, call) if where.cuda else call, 1) for one in some}
            rounds(list(made.values()), where, clock, 9, "", "tune")
            return {one: contestant.seconds for one, contestant in made.items()}

        chosen = select(known, rough, fine, lambda one: self.right(one, statistics, d))
        shipped = self.log.times.get(f"{statistics} d={d} {key(known[0])}", math.nan)
        if chosen is None:
            where.say({"part": "tune", "name": f"{statistics} d={d}", "error": "no candidate ran and was right"})
            return None
        said = {"part": "tune", "name": f"{statistics} d={d}", "schedule": key(chosen[0]), "ms": chosen[1] * 1e3}
        where.say(said | {"shipped_ms": shipped * 1e3})
        return chosen[0]

    def right(self, schedule: Schedule, statistics: str, d: int) -> bool:
        """Edges, the diagonal and both precisions of the class, at a dimension of the bucket."""
        ladder = CHAINED if statistics == "ladder" else ()
        labels = 128 if statistics == "labels" else 0
        for precision in CLASS if self.where.cuda else CLASS[:1]:
            some = [Check(precision, "self", 1100, 1, d, ladder, labels=labels)]
            if not labels:
                some.append(Check(precision, "cross", 700, 1500, d, ladder))
            for case in some if self.where.cuda else some[:1]:
                try:
                    with forced(schedule) if self.where.cuda else contextlib.nullcontext():
                        record = check(case if self.where.cuda else replace(case, n=40, d=8), self.where)
                except Exception as error:  # noqa: BLE001 -- a schedule that cannot run is not right
                    record = {"ok": False, "wrong": one_line(error)}
                if not record["ok"]:
                    said = {"part": "tune", "name": f"{statistics} d={d} {key(schedule)}", "dropped": record["wrong"]}
                    self.where.say(said)
                    return False
        return True

    def write(self, found: dict[str, dict[int, Schedule]]) -> None:
        """The new table: in place of the shipped one on a GPU, and into ``out``."""
        device = torch.cuda.get_device_name(self.where.device) if self.where.cuda else "cpu (dry)"
        timed = f"{device}, {datetime.now(UTC).date().isoformat()}"
        text = schedules.dump(merged(schedules.table(), self.arch, CLASS, found, timed))
        copy = self.out / "schedules.json"
        copy.write_text(text, encoding="utf-8")
        schedules.table.cache_clear()
        for name in found:  # every dimension must still find a schedule
            for d in (1, *DIMS, 8192):
                schedules.choose(self.arch, "float16", name, d, schedules.table(copy))
        if self.where.cuda:
            shutil.copyfile(copy, schedules.TABLE)
        self.where.say({"part": "tune", "name": "table", "written": str(copy), "statistics": sorted(found)})
