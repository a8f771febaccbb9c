"""The benchmark cases as data: what is summed over which pairs, what it costs, and the floor it is held against.

Pure Python, so that every suite can share it, whatever its device and environment. A floor is the bare matrix product
of the same pairs, which any exact method must pay: X against Y counts n m pairs, a cloud against itself half of n^2.
Costs are [derived]: ``flop`` and ``label_flop`` are multiplications and additions, ``least_bytes`` what has to be read
and written at least once.

The clouds every suite draws are N(0, I/d), so that distances stay near sqrt(2) whatever d, and y is moved by ``SHIFT``.
Bandwidths are multiples of that distance.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

TYPICAL_DISTANCE = math.sqrt(2)
SHIFT = 0.2  # how far the mean of y lies from that of x
LADDER = (0.25, 0.5, 1.0, 2.0)  # gpudrift's default bandwidths
KINDS = ("cross", "self", "batch", "score")


@dataclass(frozen=True)
class Case:
    """One thing to time.

    kind: ``cross``: all pairs of prepared X (n, d) and Y (m, d); ``self``: of prepared X with itself, upper tiles;
    ``batch``: group g of X against group g of Y, for all groups in one call; ``score``: the whole call a user makes,
    X X, X Y and Y Y from raw rows: energy distance, or MMD^2 where there is a bandwidth.
    margins, squares: row and column sums, squared sums (standard errors need both). bandwidths: multiples of
    ``TYPICAL_DISTANCE``. permutations: relabellings of the pooled rows, with a score alone. groups: rows of the groups
    of X; those of Y are the same in reverse, so that a pair is ragged.
    """

    name: str
    kind: str
    n: int
    m: int
    d: int
    margins: bool = True
    squares: bool = True
    bandwidths: tuple[float, ...] = ()
    permutations: int = 0
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidths", tuple(self.bandwidths))  # JSON brings lists
        object.__setattr__(self, "groups", tuple(self.groups))
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {KINDS}")
        if self.kind == "batch" and not sum(self.groups) == self.n == self.m:
            raise ValueError(f"groups: {self.groups} must add up to n = m, not {self.n}, {self.m}")
        if self.permutations and self.kind != "score":
            raise ValueError(f"permutations: only a score has them, not {self.kind}")

    @property
    def functions(self) -> int:
        """Pair functions summed in one pass: the distance and one RBF a bandwidth."""
        return 1 + len(self.bandwidths)

    def sigmas(self) -> tuple[float, ...]:
        """Bandwidths in the units of the rows."""
        return tuple(multiple * TYPICAL_DISTANCE for multiple in self.bandwidths)

    def products(self) -> list[tuple[int, int]]:
        """(rows, columns) of the bare products with as many pairs as the case. A batch's is ONE product: many small
        pairs shall run at the rate of a big one. The relabellings need the pooled rows against themselves: as many."""
        if self.kind == "cross":
            return [(self.n, self.m)]
        if self.kind == "self":
            return [(-(-self.n // 2), self.n)]
        if self.kind == "batch":
            pairs = sum(a * b for a, b in zip(self.groups, reversed(self.groups), strict=True))
            return [(self.n, -(-pairs // self.n))]
        return [(self.n, self.m), (-(-self.n // 2), self.n), (-(-self.m // 2), self.m)]

    @property
    def pairs(self) -> int:
        """Pairs that have to be computed."""
        return sum(rows * columns for rows, columns in self.products())

    @property
    def flop(self) -> int:
        """Of the floor."""
        return 2 * self.d * self.pairs

    @property
    def label_flop(self) -> int:
        """Of z'Kz for the observed labels and each relabelling, above the floor."""
        return 2 * (1 + self.permutations) * self.functions * self.pairs if self.permutations else 0

    def least_bytes(self, element: int) -> int:
        """Rows (``element`` bytes an entry) and norms read once, float64 margins and labels written or read once."""
        rows = self.n if self.kind == "self" else self.n + self.m
        margins = 8 * self.functions * rows if self.margins else 0
        return rows * (self.d * element + 8 + self.permutations) + margins

    def corner(self, n: int = 300, m: int = 200) -> Case:
        """The same on so few rows that the dense float64 definition can be computed: to check, and to warm up."""
        fewer = min(self.permutations, 8)
        if self.kind == "batch":
            groups = tuple(min(size, 20 + 7 * g) for g, size in enumerate(self.groups[:6]))
            return replace(self, n=sum(groups), m=sum(groups), groups=groups)
        return replace(self, n=min(self.n, n), m=min(self.m, m), permutations=fewer)


def case_hash(case: Case, sources: Iterable[str]) -> str:
    """16 hex digits of the SHA-256 of the definition, the products of the floor and the texts of the code that runs it.
    Results are compared only under one hash."""
    definition = json.dumps({"case": asdict(case), "products": case.products()}, sort_keys=True)
    digest = hashlib.sha256(definition.encode())
    for source in sources:
        digest.update(b"\0" + source.encode())
    return digest.hexdigest()[:16]


def _ragged(count: int, total: int) -> tuple[int, ...]:
    """Group sizes that grow evenly from about 1/4 to 7/4 of the mean and add up to ``total``."""
    edges = [round(total * (0.25 * g + 0.75 * g * g / count) / count) for g in range(count + 1)]
    if total < 8 * count:
        raise ValueError(f"total: {total} rows are too few for {count} groups")
    return tuple(b - a for a, b in itertools.pairwise(edges))


def sums(n: int, dims: Iterable[int]) -> Iterator[Case]:
    """The statistics of the goals table, at each dimension."""
    for d in dims:
        yield Case(f"energy d={d}", "cross", n, n, d, margins=False, squares=False)
        yield Case(f"energy+se d={d}", "cross", n, n, d)
        yield Case(f"energy+se+4rbf d={d}", "cross", n, n, d, bandwidths=LADDER)


def tracked(n: int = 4096, dims: tuple[int, ...] = (128, 384, 768), d: int = 384, groups: int = 24) -> list[Case]:
    """What is timed from commit to commit."""
    return [
        *sums(n, dims),
        Case(f"self+se+4rbf d={d}", "self", n, n, d, bandwidths=LADDER),
        Case(f"batch+se d={d}", "batch", n, n, d, groups=_ragged(groups, n)),
        *scores(n, d),
    ]


def scores(n: int, d: int = 384, permutations: int = 100) -> list[Case]:
    """Whole calls, comparable with what peers offer. The RBF's bandwidth is the usual one: sqrt(median d^2 / 2)."""
    usual = (math.sqrt(0.5),)
    return [
        Case(f"score energy n={n} d={d}", "score", n, n, d),
        Case(f"score mmd n={n} d={d}", "score", n, n, d, bandwidths=usual),
        Case(
            f"score mmd permuted n={n} d={d}",
            "score",
            n,
            n,
            d,
            squares=False,
            bandwidths=usual,
            permutations=permutations,
        ),
    ]


def short() -> list[Case]:
    """Every kind, tiny: to see that all works."""
    return [replace(case, permutations=min(case.permutations, 5)) for case in tracked(192, (16,), 16, groups=6)]
