"""Which rows take part in the all-pairs statistics, where there are more than ``score.rows``.

Linear-time metrics see every row; pairs grow with the square of the rows. A sample is proportional by window and, where
segment columns are configured, by segment within each window (largest remainders, Hamilton's method), so that it has
the corpus's own make-up. In a stratum it takes the first rows in canonical order, which is a seeded pseudo-random one
(``gpudrift.fingerprint``): the same rows whatever files they came in, and those of a smaller limit are among those of
a larger one wherever the shares round alike.

The score of a sample is unbiased for that of all rows; proportional strata can only lower its variance (Cochran 1977,
section 5.6), so the standard error from the sample's own row sums is on the safe side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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

ROWS_CUDA, ROWS_CPU = 2_000_000, 50_000  # a side, where score.rows does not say
LEAST = 4  # rows of a window, below which pairs have no variance


@dataclass(frozen=True)
class Limit:
    """Most rows a side in pairs, with the reason; ``floor``: rows a window keeps however small its share is (never more
    than an equal share)."""

    rows: int
    reason: str
    floor: int = 4


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


def limit_for(rows: int | None, device_type: str, floor: int) -> Limit:
    """``score.rows``, or the default for the device."""
    if rows is not None:
        return Limit(rows, "score.rows", floor)
    if device_type == "cuda":
        return Limit(ROWS_CUDA, "the default on a CUDA device", floor)
    return Limit(ROWS_CPU, "the default on a CPU", floor)


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
            field="score.rows",
            value=f"{limit.rows:,} ({limit.reason})",
            allowed=f"{LEAST * len(sizes):,} or more",
            hint="raise score.rows, or take fewer reference windows or longer ones (windows.period)",
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
