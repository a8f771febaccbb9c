"""Is every variant of the fused kernels right? Against the dense float64 definition of the rounded rows.

A case is one call of the front door, compared number by number with ``gpu_truth.truth`` and its bounds, and told beside
what tiled torch achieves with the same rounded rows. Memory the call allocates is filled with NaN first, so that a sum
nobody wrote shows; the call is made twice and must give the same bits. ``extra`` names a further demand:

    streams   two threads with a stream each, at the same time: the bits of one alone
    host      rows that stay in pinned host memory, a few at a time on the card: the sums of resident rows
    memory    a buffer cannot be allocated once: the sums of a call that was never short of memory
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from gpu_cases import Check, cases, clouds
from gpu_goals import Clock
from gpu_part import Setting, ahead, attempt, one_line
from gpu_truth import truth, worst
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels import torch_ops
from gpudrift.kernels.layout import PairSums, Prepared, Wanted, count_pairs

_BIG = 1 << 26  # pairs from which a case is timed against the clock

Result = list[tuple[Prepared, Prepared | None, PairSums]]


def sums(case: Check, x: Prepared, y: Prepared, labels: Tensor | None, where: Setting) -> Result:
    """What the fused kernels give; in a dry run the interpreter where it is on, else tiled torch on the CPU."""
    wanted: dict[str, Any] = {"bandwidths": case.ladder, "squares": case.squares, "margins": case.margins}
    cross, alone, batch = kernels.cross_sums, kernels.self_sums, kernels.batch_sums
    if where.interpreted:
        return _interpreted(case, x, y, labels)
    if case.kind == "cross":
        return [(x, y, cross(x, y, **wanted))]
    if case.kind == "self":
        return [(x, None, alone(x, labels=labels, **wanted))]
    pairs = _pairs(x, y)
    found = [(x.group(g), y.group(h), one) for (g, h), one in zip(pairs, batch(x, y, pairs, **wanted), strict=True)]
    pairs = _pairs(x, x)
    for (g, h), one in zip(pairs, batch(x, None, pairs, **wanted), strict=True):
        found.append((x.group(g), None if g == h else x.group(h), one))  # type: ignore[arg-type]
    return found  # type: ignore[return-value]


def _pairs(x: Prepared, y: Prepared) -> tuple[tuple[int, int], ...]:
    return tuple(itertools.product(range(len(x.offsets) - 1), range(len(y.offsets) - 1)))


def _interpreted(case: Check, x: Prepared, y: Prepared, labels: Tensor | None) -> Result:
    from gpudrift.kernels import triton_ops

    wanted = Wanted(case.ladder, case.squares, case.margins, labels)
    if case.kind == "batch":
        pairs = _pairs(x, y)
        found = triton_ops.batch_sums(x, y, pairs, wanted, None)
        return [(x.group(g), y.group(h), one) for (g, h), one in zip(pairs, found, strict=True)]
    other = y if case.kind == "cross" else None
    return [(x, other, triton_ops.pair_sums(x, other, wanted, None, (64, 32), count_pairs(x, other)))]


def by_torch(case: Check, x: Prepared, y: Prepared | None, labels: Tensor | None) -> PairSums:
    """Tiled torch on the same rounded rows: the products in float32, or in tf32 where that is the precision."""
    wanted = Wanted(case.ladder, case.squares, case.margins, labels)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    try:
        return torch_ops.pair_sums(x, y, wanted, None, None, count_pairs(x, y))
    finally:
        torch.set_float32_matmul_precision(before)


def check(case: Check, where: Setting, *, clock: Clock | None = None) -> dict[str, Any]:
    """The record of a case: ``ok``, what was wrong, the worst error as a multiple of its bound, ours and torch's."""
    started = time.time()
    x, y, labels = clouds(case, where.device)
    with _macro(case, where):
        found = sums(case, x, y, labels, where) if case.extra == "" else _extra(case, x, y, labels, where)
        again = sums(case, x, y, labels, where)
    wrong = [] if case.extra else _unequal(found, again, "the second call")
    multiple, torchs = 0.0, 0.0
    for left, right, one in found:
        value, bound = truth(left, right, case.ladder, labels)
        most, said = worst(one, value, bound, squares=case.squares, margins=case.margins)
        multiple = max(multiple, most)
        wrong += [said] if said else []
        if len(found) == 1:
            theirs = by_torch(case, left, right, labels)
            torchs, _ = worst(theirs, value, bound, squares=case.squares, margins=case.margins)
    if case.extra in ("host", "memory"):
        wrong += _unequal(found, again, f"a call without {case.extra}", 1e-9)
    elif case.extra:
        wrong += _unequal(found, again, "one call alone")
    return {
        "part": "checks",
        "name": case.name,
        "variant": case.variant,
        "case": asdict(case),
        "ok": not wrong,
        "wrong": "; ".join(wrong[:3]),
        "of_bound": multiple,
        "torch_of_bound": torchs,
        "left": None if clock is None else round(clock.left, 1),
        "seconds": round(time.time() - started, 3),
    }


def _unequal(found: Result, others: Result, what: str, relative: float = 0.0) -> list[str]:
    """Sums that differ, by bits or by more than ``relative`` of the largest."""
    wrong = []
    for (_, _, one), (_, _, other) in zip(found, others, strict=True):
        for name in ("total", "rows", "columns", "squares", "blocks", "labels"):
            a, b = (getattr(part, name).nan_to_num(-1.0) for part in (one, other))
            off = float((a - b).abs().max()) if a.numel() else 0.0
            if off > relative * (float(b.abs().max()) if b.numel() else 0.0):
                wrong.append(f"{name} differ from {what} by {off:.3g}")
    return wrong


@contextlib.contextmanager
def _macro(case: Check, where: Setting) -> Iterator[None]:
    """Small macro-blocks where a case asks for them, and NaN in memory that nobody wrote."""
    if not (where.cuda or where.interpreted):
        yield
        return
    from gpudrift.kernels import triton_ops

    tiles, empty = triton_ops._MACRO_TILES, torch.empty

    def poisoned(*arguments: Any, **keywords: Any) -> Tensor:
        made = empty(*arguments, **keywords)
        return made.fill_(math.nan) if made.is_floating_point() else made

    triton_ops._MACRO_TILES = case.macro or tiles
    torch.empty = poisoned
    try:
        yield
    finally:
        triton_ops._MACRO_TILES, torch.empty = tiles, empty


def _extra(case: Check, x: Prepared, y: Prepared, labels: Tensor | None, where: Setting) -> Result:
    if not (where.cuda or where.interpreted):
        return sums(case, x, y, labels, where)  # the CPU backend has no streams, and its memory is the host's
    from gpudrift.kernels import triton_ops

    if case.extra == "memory":
        buffer, failures = triton_ops._Job._buffer, [1]

        def short(self: Any, name: str, *shape: int) -> Tensor:
            if name == "columns" and failures:
                failures.pop()
                raise torch.OutOfMemoryError("planted by the suite")
            return buffer(self, name, *shape)

        triton_ops._Job._buffer = short  # type: ignore[method-assign]
        try:
            return sums(case, x, y, labels, where)
        finally:
            triton_ops._Job._buffer = buffer  # type: ignore[method-assign]
    if case.extra == "host":
        chunk = triton_ops._CHUNK
        triton_ops._CHUNK = 4096
        x_host, y_host = (replace(cloud, rows=cloud.rows.cpu().pin_memory()) for cloud in (x, y))
        try:
            return sums(case, x_host, y_host, labels, where)
        finally:
            triton_ops._CHUNK = chunk
    return _two_streams(lambda: sums(case, x, y, labels, where))


def _two_streams(call: Callable[[], Result]) -> Result:
    found: list[Result | BaseException] = [[], []]
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()

    def run(place: int) -> None:
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                found[place] = call()
            stream.synchronize()
        except BaseException as error:  # noqa: BLE001 -- told by the thread that waits
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results: list[Result] = []
    for one in found:
        if isinstance(one, BaseException):
            raise one
        results.append(one)
    differing = _unequal(results[0], results[1], "the other stream")
    if differing:
        raise AssertionError("; ".join(differing))
    return results[0]


def run(precision: str, where: Setting, clock: Clock) -> None:
    """All cases of a precision, told one by one; what no time is left for is told as skipped."""
    if where.cuda:
        backend = kernels.backend_for(where.device, precision)
        if backend.name != "triton":
            name = f"{precision} backend"
            said = {"part": "checks", "name": name, "variant": name, "ok": False}
            where.say(said | {"wrong": f"not served by the fused kernels: {backend.reason}"})
            return
    if where.interpreted and precision == "bfloat16":
        clock.left_out.append("bfloat16: Triton's interpreter multiplies it wrongly")
        return
    known = list(cases(precision, where.dry))
    calls = [(case.name, partial(_launched, case, where)) for case in known]
    ahead(where, f"checks {precision}", calls, Clock.until(clock.now() + 0.6 * clock.left))
    done = 0
    for case in known:
        if not clock.fits(f"check {case.name}", 8.0 if case.n * case.m > _BIG else 1.5):
            continue
        try:
            record = check(case, where, clock=clock)
        except Exception as error:  # noqa: BLE001 -- the text is the finding
            record = {"part": "checks", "name": case.name, "variant": case.variant, "case": asdict(case)}
            record |= {"ok": False, "wrong": f"raises {one_line(error)}"}
        where.say(record)
        done += 1
        if not record["ok"]:
            with attempt(where, "checks", f"{precision} device"):
                where.synchronize()  # a device in error answers nothing any more: the part ends here
    where.free()


def _launched(case: Check, where: Setting) -> None:
    x, y, labels = clouds(case, where.device)
    with _macro(case, where):
        sums(case, x, y, labels, where)
