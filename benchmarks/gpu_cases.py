"""The cases of the GPU checks: which call, of which clouds, with which demands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.kernels.layout import Prepared

CHAINED = (0.25, 0.5, 1.0, 2.0, 4.0)  # fourth powers, five of them: the bandwidths of the goals
DEFAULT = (0.35, 0.7, 1.4, 2.8)
OWN = (0.7, 1.9)  # an exp2 each
EIGHT = (2.5, 0.3, 1.2, 0.6, 5.0, 0.9, 3.3, 1.8)  # both, out of order


@dataclass(frozen=True)
class Check:
    """kind: cross, self or batch. data: plain, duplicates, near, offset, tails. macro: tiles of a macro-block's side
    (0: the shipped number)."""

    precision: str
    kind: str
    n: int
    m: int
    d: int
    ladder: tuple[float, ...] = ()
    squares: bool = True
    margins: bool = True
    labels: int = 0
    clusters: bool = False
    groups: bool = False
    data: str = "plain"
    macro: int = 0
    extra: str = ""

    @property
    def name(self) -> str:
        plain = asdict(Check("", "", 0, 0, 0))
        parts = [self.precision, self.kind, f"n={self.n}", f"m={self.m}", f"d={self.d}"]
        told = {k: v for k, v in asdict(self).items() if k not in ("precision", "kind", "n", "m", "d")}
        return " ".join(parts + [f"{k}={v}" for k, v in told.items() if v != plain[k]])

    @property
    def variant(self) -> str:
        """What a rate depends on: rates of a variant that fails anywhere are not told."""
        statistics = "labels" if self.labels else "ladder" if self.ladder else "distance"
        clustered = "clustered" if self.clusters else ""
        return " ".join(part for part in (self.precision, self.kind, clustered, statistics, self.extra) if part)


def cases(precision: str, dry: bool = False) -> Iterator[Check]:
    """Every switch, shape and kind of data at least once; few combinations, for each is a kernel to compile."""
    if dry:
        yield from _dry(precision)
        return
    sizes = (1, 2, 63, 127, 128, 129, 200)
    dims = (65, 32, 64, 100, 768, 1, 3)
    turns = itertools.cycle(itertools.product(((), CHAINED), (False, True)))
    for (n, m), d in zip(itertools.pairwise((*sizes, 300)), dims, strict=True):
        for kind in ("cross", "self", "batch"):
            ladder, clusters = next(turns)
            yield Check(precision, kind, n, m, d, ladder, clusters=clusters, groups=kind == "batch")
    for ladder in ((), DEFAULT, OWN, EIGHT):
        yield Check(precision, "cross", 700, 1500, 130, ladder)
        yield Check(precision, "self", 1100, 1, 130, ladder)
    for ladder in ((), CHAINED):
        yield Check(precision, "cross", 700, 1500, 130, ladder, squares=False, margins=False)
        yield Check(precision, "self", 1100, 1, 130, ladder, squares=False, margins=False)
        yield Check(precision, "cross", 129, 200, 8192, ladder)
        for data in ("duplicates", "near", "offset", "tails"):
            yield Check(precision, "cross", 700, 1500, 130, ladder, data=data)
            yield Check(precision, "self", 1100, 1, 130, ladder, data=data)
        yield Check(precision, "cross", 500, 900, 96, ladder, groups=True)
        yield Check(precision, "batch", 5000, 4000, 96, ladder, groups=True)
    for count in (5, 128, 150):
        yield Check(precision, "self", 700, 1, 100, labels=count)
    yield Check(precision, "self", 700, 1, 100, OWN, labels=128)
    yield Check(precision, "self", 700, 1, 768, labels=128, clusters=True)
    for ladder in ((), CHAINED):
        yield Check(precision, "cross", 20_000, 30_000, 96, ladder, macro=24)
        yield Check(precision, "self", 20_000, 1, 96, ladder, macro=24)
        for extra in ("streams", "host", "memory"):
            yield Check(precision, "cross", 9_000, 7_001, 96, ladder, macro=8, extra=extra)
    yield Check(precision, "self", 9_000, 1, 96, macro=8, extra="host")


def _dry(precision: str) -> Iterator[Check]:
    yield Check(precision, "cross", 63, 129, 65, squares=False, margins=False)
    yield Check(precision, "cross", 65, 33, 3, EIGHT, clusters=True, data="near")
    yield Check(precision, "self", 63, 1, 64, DEFAULT, labels=5)
    yield Check(precision, "batch", 40, 31, 5, groups=True, data="offset")
    yield Check(precision, "cross", 70, 40, 8, OWN, data="tails", macro=1, extra="memory")
    yield Check(precision, "self", 66, 1, 8, data="duplicates", groups=True)


def clouds(case: Check, device: torch.device) -> tuple[Prepared, Prepared, Tensor | None]:
    """Prepared X, Y and labels; the same for the same case and device."""
    generator = torch.Generator(device=device).manual_seed(case.n * 1000 + case.m)
    x, y = (_rows(case, rows, generator, device) for rows in (case.n, case.m))
    y = y + 0.2 / math.sqrt(case.d)
    centre = x.double().mean(0) if case.data == "offset" else None
    prepared: list[Prepared] = []
    for rows in (x, y):
        codes = torch.randint(0, 5, (len(rows),), generator=generator, device=device) if case.clusters else None
        n = len(rows)
        offsets = sorted({n * g * g // 64 for g in range(9)}) if n > 64 else [0, n // 3, n // 3, n]
        scale = prepared[0].scale if prepared else None
        prepared.append(
            kernels.prepare(
                rows,
                centre=centre,
                precision=case.precision,
                scale=scale,
                offsets=offsets if case.groups else None,
                clusters=codes,
            )
        )
    labels = None
    if case.labels:
        labels = torch.randint(0, 2, (case.n, case.labels), generator=generator, device=device)
    return prepared[0], prepared[1], labels


def _rows(case: Check, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    few = n if case.data in ("plain", "offset", "tails") else -(-n // 16)
    rows = normal(few, case.d) / math.sqrt(case.d)
    if few < n:
        rows = rows.repeat(16, 1)[:n]
    if case.data == "near":
        rows = rows + 1e-3 * normal(n, case.d) / math.sqrt(case.d)
    if case.data == "offset":
        rows = rows.double() + 1e3
    if case.data == "tails":
        rows = rows * torch.exp(1.5 * normal(n, 1))
    return rows
