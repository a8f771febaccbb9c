"""Run the fused kernels, host code and all, under Triton's interpreter, and compare with the float64 definition.

A script: ``test_interpreter.py`` starts it with TRITON_INTERPRET=1 and a Triton release in front. One JSON line a case:
its name and what was wrong, if anything. Memory the host code allocates is filled with NaN first, so that a sum
nobody wrote, or one that runs over its slot, shows.

bfloat16 is left out: the interpreter's products of it are silently wrong. So are tensor descriptors, which it cannot
load on Triton 3.6 with numpy 2.4; the host code does without them on the CPU.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from gpudrift import kernels
from gpudrift.kernels import reference, triton_ops
from gpudrift.kernels.layout import PairSums, Prepared, Wanted, count_pairs

# None; one; a chain of fourth powers; two with an exp2 each; both kinds, out of order
LADDERS = ((), (1.0,), (0.5, 1.0, 2.0, 4.0), (0.7, 1.9), (2.5, 0.3, 1.2, 0.6))
SIZES = (1, 2, 63, 127, 128, 129, 200)
DIMS = (1, 3, 64, 65, 100)


@dataclass(frozen=True)
class Case:
    """kind: cross, self or batch. arch: whose schedule. groups: ragged offsets. copies: how often each row occurs.
    macro: tiles of a macro-block's side (None: the shipped number). chunk: rows on the device at a time, the clouds
    staying on the host (0: all are there). failures: allocations that fail before one succeeds."""

    kind: str
    precision: str
    n: int
    m: int
    d: int
    ladder: tuple[float, ...] = ()
    arch: int = 90
    clusters: bool = False
    squares: bool = True
    margins: bool = True
    labels: int = 0
    groups: bool = False
    tile: tuple[int, int] | None = (64, 32)
    macro: int | None = None
    copies: int = 1
    chunk: int = 0
    failures: int = 0

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in asdict(self).items())


def cases() -> Iterator[Case]:
    """Every size against others, odd dimensions, and each switch in turn; the shipped tiles on a few."""
    for precision in ("float16", "float32"):
        turn = itertools.count()
        for (n, m), kind in itertools.product(itertools.pairwise((*SIZES, 1)), ("cross", "self", "batch")):
            at = next(turn)
            yield Case(
                kind,
                precision,
                n,
                m,
                DIMS[at % 5],
                LADDERS[(at // 2) % 5],
                arch=(90, 80, 100)[at % 4 % 3],
                clusters=at % 3 == 1,
                squares=at % 7 != 3,
                margins=at % 5 != 2,
                labels=(0, 1, 5, 17)[at % 4] if kind == "self" else 0,
                groups=at % 2 == 0,
                macro=2 if at % 4 == 1 else None,
            )
        for arch, kind in itertools.product((80, 90, 100), ("cross", "self")):
            yield Case(kind, precision, 129, 200, 65, LADDERS[4], arch, tile=None, labels=17 if kind == "self" else 0)
        for kind, chunk, failures in itertools.product(("cross", "self", "batch"), (0, 64), (0, 2)):
            if chunk or failures:
                yield Case(kind, precision, 150, 131, 65, LADDERS[2], groups=True, chunk=chunk, failures=failures)
        yield Case("self", precision, 150, 1, 65, labels=3, clusters=True, chunk=64, failures=1)
        yield Case("self", precision, 128, 128, 64, LADDERS[1], copies=16)
        yield Case("cross", precision, 128, 128, 64, LADDERS[2], copies=16, clusters=True)


def short() -> Iterator[Case]:
    """The cases that show a planted fault."""
    yield Case("self", "float32", 63, 1, 65, (1.0,), arch=100)
    yield Case("self", "float32", 63, 1, 65, (1.0,), arch=100, clusters=True)
    yield Case("cross", "float32", 63, 65, 3, (1.0,), arch=100)


def check(case: Case) -> str:
    """What is wrong with the sums of a case, in words; empty if nothing is."""
    generator = torch.Generator().manual_seed(case.n * 1000 + case.m)
    x = _cloud(case, case.n, None, generator)
    y = _cloud(case, case.m, x.scale, generator)
    labels = None
    if case.labels:
        labels = torch.randint(0, 2, (case.n, case.labels), generator=generator)
    wanted = Wanted(case.ladder, case.squares, case.margins, labels)
    wrong = []
    for left, right, found in _sums(case, x, y, wanted):
        truth = reference.pair_sums(left, right, case.ladder, labels)
        wrong += _differences(case, left, found, truth)
    return "; ".join(wrong)


def _cloud(case: Case, n: int, scale: float | None, generator: torch.Generator) -> Prepared:
    rows = torch.randn(-(-n // case.copies), case.d, generator=generator) / math.sqrt(case.d)
    rows = rows.repeat(case.copies, 1)[:n]
    clusters = torch.randint(0, 5, (n,), generator=generator) if case.clusters else None
    offsets = [0, n // 3, n // 3, n] if case.groups else None  # the group in the middle is empty
    return kernels.prepare(rows, precision=case.precision, scale=scale, offsets=offsets, clusters=clusters)


def _sums(case: Case, x: Prepared, y: Prepared, wanted: Wanted) -> Iterator[tuple[Prepared, Prepared | None, PairSums]]:
    """Each result of a case and the clouds it is of."""
    done: list[int] = []
    if case.kind == "cross":
        yield x, y, triton_ops.pair_sums(x, y, wanted, done.append, case.tile, count_pairs(x, y))
        if sum(done) != case.n * case.m:
            raise ValueError(f"progress tells of {sum(done)} pairs")
    elif case.kind == "self":
        yield x, None, triton_ops.pair_sums(x, None, wanted, done.append, case.tile, count_pairs(x, None))
        if sum(done) != case.n * (case.n - 1) // 2:
            raise ValueError(f"progress tells of {sum(done)} pairs")
    else:
        groups = range(len(x.offsets) - 1)
        pairs = tuple(itertools.product(groups, groups))
        for (g, h), found in zip(pairs, triton_ops.batch_sums(x, y, pairs, wanted, None), strict=True):
            yield x.group(g), y.group(h), found
        for (g, h), found in zip(pairs, triton_ops.batch_sums(x, None, pairs, wanted, None), strict=True):
            yield x.group(g), None if g == h else x.group(h), found


def _differences(case: Case, x: Prepared, found: PairSums, truth: PairSums) -> list[str]:
    names = ["total", "blocks", "labels"]
    names += ["rows", "columns"] if case.margins else []
    names += ["squares"] if case.squares else []
    wrong = []
    # duplicates: a distance of 0 comes out as the root of a rounding error of the norms
    length = float(x.norms.max()) ** 0.5 / x.scale if len(x) else 0.0
    for name in names:
        got, wanted = getattr(found, name), getattr(truth, name)
        if got.shape != wanted.shape:
            wrong.append(f"{name}: shape {tuple(got.shape)}, {tuple(wanted.shape)} wanted")
            continue
        if not wanted.numel():
            continue
        # labels: k is rounded to 16 bits before it meets them, a relative error of 2^-11 at most
        relative = 5e-4 if name == "labels" and case.precision == "float16" else 2e-5
        terms = {"total": case.n * case.m, "blocks": case.n * case.m, "labels": case.n**2, "squares": case.n * case.m}
        near = 1e-3 * length * terms.get(name, max(case.n, case.m)) if case.copies > 1 else 1e-6
        off = (got - wanted).abs() - relative * wanted.abs().amax()
        if not bool((off <= near).all()):  # NaN is off too
            wrong.append(f"{name}: off by up to {float((got - wanted).abs().max()):.3g}")
    kept = 0 if case.margins else found.rows.numel() + found.columns.numel()
    return wrong + ([f"margins: {kept} numbers nobody asked for"] if kept else [])


def _poison() -> None:
    """Fill what torch.empty gives with NaN."""
    empty = torch.empty

    def poisoned(*arguments: Any, **keywords: Any) -> Tensor:
        made = empty(*arguments, **keywords)
        return made.fill_(math.nan) if made.is_floating_point() else made

    torch.empty = poisoned


def _failing(allocate: Any, failures: int) -> Any:
    """An allocation of partial sums that runs out of memory ``failures`` times."""
    left = [failures]

    def fails(*arguments: Any) -> Tensor:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("planted")
        return allocate(*arguments)

    return fails


def _mend_scalars() -> None:
    """Triton 3.6 takes int() of an array of one element for the bounds of a loop: an error from numpy 2.4 on."""
    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


def main() -> None:
    torch.set_num_threads(1)
    _mend_scalars()
    _poison()
    macro, allocate = triton_ops._MACRO_TILES, triton_ops._Job._buffer
    for case in short() if "--short" in sys.argv else cases():
        triton_ops._arch = lambda _, arch=case.arch: arch
        triton_ops._MACRO_TILES = case.macro or macro
        triton_ops._CHUNK = case.chunk
        triton_ops.on_host = lambda _, streamed=case.chunk > 0: streamed
        triton_ops._Job._buffer = _failing(allocate, case.failures)
        try:
            wrong = check(case)
        except Exception as error:  # noqa: BLE001 -- whatever the interpreter raises is the finding
            wrong = f"raises {error!r}"
        print(json.dumps({"name": case.name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
