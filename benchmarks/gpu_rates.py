"""How fast: the fused kernels against the bare product of the same pairs and against other ways, in interleaved rounds.

A round calls every contestant once; a time is between CUDA events around the whole call, host work, copies and the
final synchronization included. Shares are medians of the ratios within a round: what slows the chip down slows both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import gpu_baselines as baselines
import torch
from gpu_goals import SHARES, Clock, ratio_verdict, share_verdict
from gpu_part import Setting, ahead, attempt
from gpu_timing import Call, Contestant, Inputs, draw, job, paired, rounds, timed

from gpudrift import kernels
from gpudrift.kernels.layout import PairSums, Prepared, Wanted

ROWS = {128: 131072, 384: 98304, 768: 65536, 1536: 65536, 3072: 49152}
LADDER4 = tuple(math.sqrt(2) * s for s in (0.25, 0.5, 1.0, 2.0))
LADDER5 = (*LADDER4, math.sqrt(2) * 4)
BATCHES = (128, 768)  # dimensions of the ragged pairs: much of their time is the host's
_ORDER = (768, 128, 384, 1536, 3072)  # the most asked for first, should time run out


def mean_distance(found: Any) -> float:
    return float(found.total[0]) / float(found.pairs)


def ours(data: Inputs, where: Setting) -> list[Contestant]:
    x, y, n = data.x, data.y, data.n
    pairs = n * n
    f16 = "float16"
    groups = 40 if n >= 4096 else 4
    edges = [n * g * (g + 4) // (groups * (groups + 4)) for g in range(groups + 1)]
    xs, ys = (replace(cloud, offsets=tuple(edges)) for cloud in (x, y))
    some = [(g, h) for g in range(groups) for h in range(groups)]
    generator = torch.Generator(device=where.device).manual_seed(1)
    z = torch.randint(0, 2, (n, 128), generator=generator, device=where.device)
    cross, alone, batch = kernels.cross_sums, kernels.self_sums, kernels.batch_sums

    def energy(**wanted: Any) -> Call:
        return lambda: mean_distance(cross(x, y, **wanted))

    found = [
        Contestant("energy", energy(), pairs, (f"{f16} cross distance",)),
        Contestant("energy totals", energy(squares=False, margins=False), pairs, (f"{f16} cross distance",)),
        Contestant("energy+4", energy(bandwidths=LADDER4), pairs, (f"{f16} cross ladder",)),
        Contestant("energy+5", energy(bandwidths=LADDER5), pairs, (f"{f16} cross ladder",)),
        Contestant("self", lambda: mean_distance(alone(x)), pairs // 2, (f"{f16} self distance",)),
        Contestant("self as cross", lambda: mean_distance(cross(x, x)), pairs, (f"{f16} cross distance",)),
        Contestant("128 labels", lambda: mean_distance(alone(x, labels=z)), pairs // 2, (f"{f16} self labels",)),
    ]
    if data.d in BATCHES or not where.cuda:
        told = (f"{f16} batch distance",)
        totals = partial(batch, xs, ys, some, squares=False, margins=False)
        found += [
            Contestant("batch", partial(batch, xs, ys, some), pairs, told),
            Contestant("batch totals", totals, pairs, told),
        ]
    if where.cuda:
        bare = Wanted(squares=False, margins=False)
        found.insert(0, Contestant("twin", lambda: (job(x, y, bare, TRIVIAL=True).run(), None)[1], pairs))
    return found


def others(data: Inputs, where: Setting, compiled: Callable[..., Any] | None) -> list[Contestant]:
    n, pairs = data.n, data.n**2
    b16x, b16y = data.x32.bfloat16(), data.y32.bfloat16()
    few = min(n, 32768)
    found = [
        Contestant("mm+eager", baselines.tiled(b16x, b16y, baselines.epilogue), pairs, ours=False),
        Contestant("cdist", baselines.cdist(data.x32[:few], data.y32[:few]), few * few, ours=False),
    ]
    if compiled is not None:
        found.append(Contestant("mm+compiled", baselines.tiled(b16x, b16y, compiled), pairs, ours=False))
    absent = baselines.absent()
    for name in baselines.PEERS:
        if name not in absent and data.d == 768 and where.cuda:
            some = 16384 if name != "alibi_detect" else 8192
            shown = {"pykeops": "keops"}.get(name, name)
            with attempt(where, "rates", shown):
                call = baselines.peer(name, data.x32[:some], data.y32[:some])
                found.append(Contestant(shown, call, some * some, ours=False))
    return found


def three(x: Prepared, y: Prepared) -> tuple[PairSums, PairSums, PairSums]:
    """X X, Y Y and X Y with five bandwidths and what their standard errors need."""
    alone, cross = kernels.self_sums, kernels.cross_sums
    return alone(x, bandwidths=LADDER5), alone(y, bandwidths=LADDER5), cross(x, y, bandwidths=LADDER5)


def other_products(data: Inputs) -> list[Contestant]:
    """The bare product in bfloat16 and tf32."""
    wide = baselines.product(data.x32, data.y32)

    def tf32() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            wide()
        finally:
            torch.set_float32_matmul_precision(before)

    half = baselines.product(data.x32.bfloat16(), data.y32.bfloat16())
    pairs = data.n**2
    return [Contestant("gemm bf16", half, pairs, ours=False), Contestant("gemm tf32", tf32, pairs, ours=False)]


def gemm(data: Inputs) -> Contestant:
    x, y = (cloud.rows for cloud in (data.x, data.y))
    return Contestant("gemm", baselines.product(x, y), data.n**2, ours=False)


class Rates:
    """The part: ready when everything it will launch is compiled."""

    def __init__(self, where: Setting, clock: Clock, dims: Sequence[int] = _ORDER, rows: int = 0) -> None:
        self.where, self.rows = where, rows
        self.dims = dims
        self.compiled: Callable[..., Any] | None = None
        self.best: dict[tuple[str, int], float] = {}  # (name, d) -> pairs a second
        if where.cuda:
            kernels.backend_for(where.device, "float16")  # the probe compiles: before anything is recorded
        calls: list[tuple[str, Call]] = []
        for d in self.dims if where.cuda else ():
            data = draw(8192, d, where)  # a multiple of every tile, like the real one; the batch has edges
            calls += [(f"{one.name} d={d}", one.call) for one in ours(data, where)]
        if where.cuda:
            calls.append(("million", lambda: three(*self._clouds(1_000_000, 768))))
        ahead(where, "rates", calls, Clock.until(clock.now() + 0.7 * clock.left))
        if where.cuda:
            reason = baselines.warm_compiled(max(min(90.0, clock.left), 1.0))
            self.compiled = None if reason else baselines.compiled()
            if reason:
                where.say({"part": "rates", "skipped": f"mm+compiled: {reason}"})
        for name, reason in baselines.absent().items():
            where.say({"part": "rates", "skipped": f"{name}: {reason}"})

    def ceilings(self, clock: Clock) -> None:
        """Copy bandwidth (bytes read and written) and square products in 16 bit and tf32, on random data."""
        where = self.where
        size = 1 << (31 if where.cuda else 20)
        a = torch.randint(0, 255, (size,), dtype=torch.uint8, device=where.device)
        b = torch.empty_like(a)
        copy = Contestant("copy", partial(b.copy_, a), 1, ours=False)
        rounds([copy], where, clock, 7, "")
        where.say({"part": "ceilings", "name": "copy", "gb_per_s": 2 * size / copy.seconds / 1e9})
        del a, b, copy
        side = 8192 if where.cuda else 128
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("tf32", torch.float32)):
                x, y = (torch.randn(side, side, device=where.device).to(dtype) for _ in range(2))
                one = Contestant(name, baselines.product(x, y), side * side, ours=False)
                rounds([one], where, clock, 7, "")
                rate = 2 * side**3 / one.seconds / 1e12
                where.say({"part": "ceilings", "name": f"mm {name}", "side": side, "tflop_per_s": rate})
        finally:
            torch.set_float32_matmul_precision(before)
        where.free()

    def run(self, clock: Clock) -> None:
        with attempt(self.where, "rates", "ceilings"):
            self.ceilings(clock)
        for place, d in enumerate(self.dims):
            share = Clock.until(clock.now() + clock.left / (len(self.dims) - place), clock.now)
            if clock.fits(f"rates at d={d}", 6.0 if self.where.cuda else 0.1):
                with attempt(self.where, "rates", f"d={d}"):
                    self.at(d, share)
            self.where.free()

    def at(self, d: int, clock: Clock) -> None:
        where = self.where
        data = draw(self.rows or ROWS[d], d, where)
        floor = gemm(data)
        contestants = [floor, *other_products(data), *ours(data, where), *others(data, where, self.compiled)]
        rounds(contestants, where, clock, 15 if where.cuda else 2)
        by_name = {one.name: one for one in contestants if one.times}
        for one in by_name.values():
            share = paired(one, floor) if floor.times else math.nan
            self.best[one.name, d] = one.pairs / one.seconds
            where.say(
                {
                    "part": "rates",
                    "name": one.name,
                    "d": d,
                    "n": data.n,
                    "pairs": one.pairs,
                    "ms": one.seconds * 1e3,
                    "spread": one.spread,
                    "rounds": len(one.times),
                    "pairs_per_s": one.pairs / one.seconds,
                    "share": share,
                    "goal": SHARES.get(one.name, {}).get(d),
                    "verdict": share_verdict(one.name, d, share) if where.cuda else "",
                    "value": one.value,
                    "variants": one.variants,
                }
            )
        self._compare(by_name, d)
        mine = by_name.get("energy")
        for name in ("mm+eager", "mm+compiled", "cdist", "energy totals", "energy+5"):
            theirs = by_name.get(name)
            if mine and theirs and not math.isclose(mine.value, theirs.value, rel_tol=5e-3):
                wrong = f"mean distance {theirs.value:.6g}, energy's is {mine.value:.6g}"
                where.say({"part": "rates", "name": f"{name} agrees d={d}", "error": wrong})

    def _compare(self, by_name: dict[str, Contestant], d: int) -> None:
        wanted = [("energy", peer, f"energy over {peer}") for peer in ("mm+eager", "mm+compiled", "cdist", "keops")]
        wanted += [("batch", "energy", "batch over energy"), ("batch totals", "energy totals", "batch totals over")]
        for one, other, what in wanted:
            if one in by_name and other in by_name:
                self._told(what, d, paired(by_name[one], by_name[other]), by_name[one].variants)
        for one, other, what in (
            ("self as cross", "self", "self against full"),
            ("128 labels", "self", "128 labels against none"),
        ):
            if one in by_name and other in by_name:
                a, b = dict(by_name[one].times), dict(by_name[other].times)
                ratio = median(a[r] / b[r] for r in a.keys() & b.keys())
                self._told(what, d, ratio, by_name[one].variants + by_name[other].variants)

    def _told(self, what: str, d: int, ratio: float, variants: tuple[str, ...]) -> None:
        verdict = ratio_verdict(what, ratio, d) if self.where.cuda else ""
        said = {"part": "ratios", "name": what, "d": d, "ratio": ratio, "verdict": verdict, "variants": variants}
        self.where.say(said)

    def million(self, clock: Clock) -> None:
        """X X, X Y and Y Y of a million rows each: energy, five MMDs and their standard errors; fewer rows where time
        or memory are short, said so."""
        where, d = self.where, 768 if self.where.cuda else 8
        for n in (1_000_000, 500_000) if where.cuda else (300,):
            pairs = 2 * n * n
            expected = pairs / self.best.get(("energy+5", d), 2e11) * 1.3 + 3 if where.cuda else 0.1
            if not clock.fits(f"{n} against {n} rows", expected):
                continue
            with attempt(where, "million", f"{n} rows"):
                self._million(n, d)
                return
            where.free()

    def _clouds(self, n: int, d: int) -> tuple[Prepared, Prepared]:
        where = self.where
        generator = torch.Generator(device=where.device).manual_seed(7)
        half = torch.float16 if where.cuda else torch.float32
        clouds = []
        for shift in (0.0, 0.1):
            rows = torch.empty(n, d, dtype=half, device=where.device)
            for part in torch.split(rows, 1 << 17):
                part.copy_(torch.randn(part.shape, generator=generator, device=where.device) / d**0.5 + shift / d**0.5)
            clouds.append(rows)
        x = kernels.prepare(clouds[0], precision="float16")
        return x, kernels.prepare(clouds[1], precision="float16", scale=x.scale)

    def _million(self, n: int, d: int) -> None:
        where = self.where
        prepared, (x, y) = timed(partial(self._clouds, n, d), where)
        spent, (xx, yy, xy) = timed(partial(three, x, y), where)
        statistics = []
        for f in range(1 + len(LADDER5)):
            sign = -1.0 if f == 0 else 1.0
            a = sign * (xx.rows[f] / (n - 1) - xy.rows[f] / n)
            b = sign * (yy.rows[f] / (n - 1) - xy.columns[f] / n)
            se = float((4 * a.var() / n + 4 * b.var() / n).sqrt())
            statistics.append({"value": float(a.mean() + b.mean()), "se": se})
        where.say(
            {
                "part": "million",
                "name": "million" if n == 1_000_000 else f"{n} rows",
                "n": n,
                "d": d,
                "seconds": spent,
                "draw_and_prepare_seconds": prepared,
                "pairs_per_s": 2 * n * n / spent,
                "statistics": statistics,
                "verdict": ratio_verdict("million", spent) if n == 1_000_000 else "",
                "variants": ["float16 self ladder", "float16 cross ladder"],
            }
        )
