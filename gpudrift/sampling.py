"""Which rows take part in the all-pairs statistics, where the budget of pairs does not hold all of them.

Linear-time metrics see every row; pairs grow with the square of the rows. ``score.pairs`` is what one pass may take:
the pairs within the reference, and those of a window with it and within itself. Where they fit, all rows take part;
else as many of the reference as fit, and as many of the window as fit beside these. Rows and configuration alone decide
that, not the device or its memory: another machine takes the same rows.

A sample is proportional by window and, where segment columns are configured, by segment within each window (largest
remainders, Hamilton's method), so that it has the corpus's own make-up. In a stratum it takes the first rows in
canonical order, which is a seeded pseudo-random one (``gpudrift.fingerprint``): the same rows whatever files they came
in, and those of a smaller limit are among those of a larger one wherever the shares round alike.

Why a sample and not block averages (``gpudrift.estimators``), which see all rows: a reference has many times the rows
of a window, and a window's rows carry nearly all of the score's variance. A sample leaves out rows of the reference,
which costs next to nothing; a block holds few rows of the window, which costs a factor of the root of the number of
blocks, in the score and in the usual movement it is held against (docs/estimators.md).

The score of a sample is unbiased for that of all rows; proportional strata can only lower its variance (Cochran 1977,
section 5.6), so the standard error from the sample's own row sums is on the safe side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift.errors import ConfigError
from gpudrift.records import Cloud
from gpudrift.source.names import as_text

if TYPE_CHECKING:
    from gpudrift.metrics.pairs import PairEstimate

PAIRS = 10**10  # score.pairs where it is not given
LEAST = 4  # rows of a window, below which pairs have no variance


@dataclass(frozen=True)
class Limit:
    """Most rows of a cloud in pairs, with the reason; ``floor``: rows a window keeps however small its share is (never
    more than an equal share). pairs: the budget ``rows`` comes from; None where rows were given."""

    rows: int
    reason: str
    floor: int = 4
    pairs: int | None = None

    @property
    def setting(self) -> str:
        """What to change for another limit."""
        return "score.rows" if self.pairs is None else "score.pairs"

    def against(self, rows: int) -> Limit:
        """Of a window that is compared with so many rows: its pairs with them and within itself fit the budget."""
        if self.pairs is None:
            return self
        return replace(self, rows=max(rows_within(self.pairs, rows), self.floor))


@dataclass(frozen=True)
class Sample:
    """Rows of a cloud. positions: (k,) int64, ascending; None: all of them. offsets: the windows among them."""

    positions: Tensor | None
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return self.offsets[-1]

    def of(self, values: Tensor) -> Tensor:
        """The sample's part of one value or row for each row of the cloud: a copy, or the tensor itself for all."""
        return values if self.positions is None else values[self.positions.to(values.device)]

    def digest(self, clusters: Tensor | None) -> str:
        """What identifies the rows drawn and, (n,) int64 of all rows, their clusters: with others, pair sums differ."""
        content = hashlib.sha256(repr(self.offsets).encode())
        for values in (self.positions, None if clusters is None else self.of(clusters)):
            content.update(b"-" if values is None else values.cpu().numpy().astype("<i8").tobytes())
        return content.hexdigest()[:16]

    def part(self, cloud: Cloud) -> Cloud:
        """The cloud of the sampled rows, without ids and segments."""
        if self.positions is None:
            return cloud
        return Cloud(
            embeddings=self.of(cloud.embeddings),
            windows=cloud.windows,
            offsets=self.offsets,
            quality=cloud.quality,
            encoder_id=cloud.encoder_id,
        )


def limit_of(rows: int | None, pairs: float, floor: int) -> Limit:
    """The limit of a reference by ``score.rows``, or by ``score.pairs``; ``Limit.against`` has that of a window."""
    if rows is not None:
        return Limit(rows, "score.rows", floor)
    return Limit(rows_within(int(pairs)), "score.pairs", floor, int(pairs))


def rows_within(pairs: int, against: int = 0) -> int:
    """The most rows m whose pairs fit: m (m - 1) / 2 among themselves and m times ``against`` with others. In whole
    numbers, so that no machine rounds it otherwise."""
    b = 2 * against - 1
    return (math.isqrt(b * b + 8 * pairs) - b) // 2


def rule(limit: Limit, reference: tuple[int, int], current: tuple[int, int]) -> tuple[str, str]:
    """The method, "exact" or "sample", and one clause that says why.

    Args:
        limit: of the current window. reference, current: rows of each, and those that take part in pairs.
    """
    given = f"{limit.setting}={limit.rows if limit.pairs is None else limit.pairs:,}"
    if reference[0] == reference[1] and current[0] == current[1]:
        return "exact", f"all rows take part within {given}"
    parts = [
        f"{'all' if rows == taken else f'{taken:,} of'} {rows:,} rows of the {side}"
        for side, (rows, taken) in (("window", current), ("reference", reference))
    ]
    return "sample", f"{' and '.join(parts)} take part within {given}"


def draw(cloud: Cloud, limit: Limit) -> Sample:
    """The rows of a cloud in canonical order that take part in pairs: all, or ``limit.rows`` (a few more where
    windows' floors add up).

    Raises:
        ConfigError: fewer than four rows a window.
    """
    if len(cloud) <= limit.rows:
        return Sample(None, tuple(cloud.offsets))
    sizes = cloud.sizes()
    if limit.rows < LEAST * len(sizes):
        raise ConfigError(
            f"too few rows to take some of each of {len(sizes):,} windows",
            field=limit.setting,
            value=f"{limit.rows:,} rows ({limit.reason})",
            allowed=f"{LEAST * len(sizes):,} rows or more",
            hint=f"raise {limit.setting}, or take fewer reference windows or longer ones (windows.period)",
        )
    shares = apportion(sizes, limit.rows)
    floor = min(max(limit.floor, LEAST), limit.rows // len(sizes))
    chosen, offsets = [], [0]
    for k, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        count = max(share, min(size, floor))
        chosen.append(cloud.offsets[k] + _within(_strata(cloud, k), count))
        offsets.append(offsets[-1] + count)
    return Sample(torch.from_numpy(np.concatenate(chosen)), tuple(offsets))


def apportion(sizes: Sequence[int], total: int) -> list[int]:
    """``total`` divided in proportion to ``sizes``, none above its size: whole parts, then largest remainders."""
    everything = sum(sizes)
    if total >= everything:
        return list(sizes)
    whole = [size * total // everything for size in sizes]
    # the remainders in whole numbers, equal ones by place
    order = sorted(range(len(sizes)), key=lambda k: (-(sizes[k] * total % everything), k))
    for k in order[: total - sum(whole)]:
        whole[k] += 1
    return whole


def sampling_error(energy: PairEstimate, rows: tuple[int, int]) -> tuple[float, float]:
    """What drawing rows costs: the standard error that all ``rows`` (of x, of y) would give, and the part of the
    sample's own that comes from drawing, whose squares add up to the square of ``energy.se``.

    var_lin is 4 var(a)/n + 4 var(b)/m (``metrics.pairs``): with all rows the variances of the influence values stay
    and n, m grow. For independent rows: not with clusters.
    """
    n, m = len(energy.a), len(energy.b)
    of_x, of_y = float(4 * energy.a.var() / n), float(4 * energy.b.var() / m)
    everything = of_x * n / rows[0] + of_y * m / rows[1]
    return everything**0.5, max(of_x + of_y - everything, 0.0) ** 0.5


def _strata(cloud: Cloud, k: int) -> NDArray[np.int64]:
    """The stratum of each row of window k: one number for each combination of segment values, by first appearance in
    order of the values' text, so that it does not depend on files."""
    start, size = cloud.offsets[k], cloud.sizes()[k]
    codes = np.zeros(size, dtype=np.int64)
    for name in sorted(cloud.segments):
        values = cloud.segments[name].slice(start, size)
        try:
            encoded = values.dictionary_encode(null_encoding="encode")
        except NotImplementedError:  # nested values and extensions
            encoded = as_text(values).dictionary_encode(null_encoding="encode")
        # as objects: one long text would widen all of them
        texts = np.array([str(value) for value in encoded.dictionary.to_pylist()], dtype=object)
        _, rank = np.unique(texts, return_inverse=True)
        places = rank[encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
        _, codes = np.unique(codes * (int(rank.max(initial=0)) + 1) + places, return_inverse=True)
    return codes


def _within(strata: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of ``count`` rows, ascending: of each stratum its share, the first rows of it."""
    if not strata.any():
        return np.arange(count)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    firsts = np.cumsum(sizes) - sizes
    shares = apportion(sizes.tolist(), count)
    return np.sort(np.concatenate([order[a : a + share] for a, share in zip(firsts, shares, strict=True)]))
