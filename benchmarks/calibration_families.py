"""Data for the calibration study: families without drift, families whose true drift is known, and worlds of windows.

Real rows are those of a corpus in the layout of the sample (by default the sample itself). Synthetic ones on the sphere
come from ``gpudrift.generate``; a user has the share ``ICC`` of its rows' variance.
"""
# mypy: disable-error-code="import-untyped"
# SciPy brings no types

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import gammaln, hyp1f1

from gpudrift import sample
from gpudrift.generate import generate
from gpudrift.source import open_source
from gpudrift.windows import covering, parse_period

Rows = NDArray[Any]  # (n, d), float32 or float64
Codes = NDArray[np.int64]
Generator = np.random.Generator

DIM = 32  # of the synthetic families
ICC = 0.2  # share of a row's variance that belongs to its user
QUIET_BEFORE = date(2024, 1, 1)  # real weeks before it count as quiet: docs/sample.md
LEAST_ROWS = 150  # of a week that takes part


def stream(seed: int, *names: str | int) -> Generator:
    """A generator of its own for each (seed, names): results do not depend on the order or the processes."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


# real rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Week:
    label: str
    monday: date
    rows: Rows


@lru_cache(maxsize=2)
def real_weeks(data: str | None) -> tuple[Week, ...]:
    """Whole weeks of a corpus (None: the sample) with enough rows, in order of time; rows float32."""
    source = open_source(data or str(sample.path()))
    extent = source.extent()
    cloud = source.read(covering(parse_period("week"), extent.first, extent.last))
    found = []
    for k, (window, size) in enumerate(zip(cloud.windows, cloud.sizes(), strict=True)):
        if size >= LEAST_ROWS and window.end <= extent.last:
            found.append(Week(window.label, window.start.date(), cloud.window(k).embeddings.numpy()))
    return tuple(found)


def quiet_weeks(data: str | None) -> tuple[Week, ...]:
    return tuple(week for week in real_weeks(data) if week.monday < QUIET_BEFORE)


@lru_cache(maxsize=2)
def quiet_rows(data: str | None) -> Rows:
    return np.concatenate([week.rows for week in quiet_weeks(data)])


# without drift -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def sphere_pools(rows: int = 6000) -> tuple[Rows, Rows]:
    """Two weeks of ``gpudrift.generate``, 10 clusters on the sphere, the second drifted."""
    with tempfile.TemporaryDirectory() as folder:
        made = generate(
            Path(folder) / "corpus", start=date(2026, 1, 5), weeks=2, rows_per_week=rows, dim=DIM, clusters=10,
            spread=0.5, rows_per_user=1, dtype="float32", drift_week=1, mean_shift=0.5, spread_change=1.2,
            new_cluster=0.1, reweight=0.3, seed=0, overwrite=False,
        )  # fmt: skip
        read = [pq.read_table(file, columns=["embedding"]) for file in made.files]
    first, second = (np.stack(table["embedding"].to_numpy()).astype(np.float64) for table in read)
    return first, second


def heavy(rng: Generator, n: int, degrees: float) -> Rows:
    """Multivariate t: no variance at 2 degrees of freedom, no fourth moment at 3."""
    return rng.normal(size=(n, DIM)) / np.sqrt(rng.chisquare(degrees, n) / degrees)[:, None]


def halves(name: str, rng: Generator, n: int, data: str | None) -> tuple[Rows, Rows]:
    """Two sets of n rows of one distribution."""
    if name == "gaussian":
        rows = rng.normal(size=(2 * n, DIM))
    elif name == "sphere mixture":
        pool = sphere_pools()[0]
        rows = pool[rng.choice(len(pool), 2 * n, replace=False)]
    elif name == "heavy-tailed":
        rows = heavy(rng, 2 * n, 2)
    elif name == "real weeks":
        weeks = real_weeks(data)
        pool = weeks[rng.integers(len(weeks))].rows
        n = min(n, len(pool) // 2)
        rows = pool[rng.choice(len(pool), 2 * n, replace=False)].astype(np.float64)
    else:
        raise ValueError(name)
    return rows[:n], rows[n:]


# with a drift that is known ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """codes: users, None where rows are independent."""

    x: Rows
    y: Rows
    codes_x: Codes | None = None
    codes_y: Codes | None = None


@dataclass(frozen=True)
class Drifting:
    """A family with a drift of any size. draw: (rng, size) -> rows; energy, mmd2: size -> true value; largest: size."""

    draw: Callable[[Generator, float], Draw]
    energy: Callable[[float], float]
    mmd2: Callable[[float], float]
    bandwidth: float
    largest: float


def gaussian_energy(shift: float, dim: int) -> float:
    """Energy distance of N(0, I) and N(shift e, I): X - Y is N(shift e, 2 I), whose mean norm is
    2 G((d+1)/2)/G(d/2) 1F1(-1/2; d/2; -shift^2/4)."""
    scale = 2 * np.exp(gammaln((dim + 1) / 2) - gammaln(dim / 2))
    return float(2 * scale * (hyp1f1(-0.5, dim / 2, -(shift**2) / 4) - 1))


def gaussian_mmd2(shift: float, dim: int, bandwidth: float) -> float:
    """MMD^2 of the same two: for Z ~ N(shift e, 2 I), E exp(-|Z|^2/(2 s^2)) is
    (s^2/(s^2+2))^(d/2) exp(-shift^2/(2(s^2+2)))."""
    square = bandwidth**2
    return float(2 * (square / (square + 2)) ** (dim / 2) * -np.expm1(-(shift**2) / (2 * (square + 2))))


def _gaussian(draw: Callable[[Generator], Draw]) -> Drifting:
    width = np.sqrt(2 * DIM) / 2  # half of about the median distance

    def moved(rng: Generator, shift: float) -> Draw:
        found = draw(rng)
        found.y[:, 0] += shift
        return found

    return Drifting(
        moved, lambda s: gaussian_energy(s, DIM), lambda s: gaussian_mmd2(s, DIM, width), float(width), 50.0
    )


def users(name: str, rng: Generator, count: int, dim: int = DIM) -> Draw:
    """Rows of ``count`` users a side, no drift. "users": 5 rows a user; "users, uneven": 1 to 20, about 5 in the mean;
    "users, both sides": 5, and half of a side's users also on the other side. N(0, I), of which a user has the share
    ``ICC``."""
    sizes = [np.minimum(rng.geometric(0.2, count), 20) if name == "users, uneven" else np.full(count, 5) for _ in "xy"]
    first = count // 2 if name == "users, both sides" else count
    codes_x, codes_y = np.repeat(np.arange(count), sizes[0]), np.repeat(np.arange(first, first + count), sizes[1])
    own = rng.normal(size=(2 * count, dim))
    x, y = (
        np.sqrt(ICC) * own[codes] + np.sqrt(1 - ICC) * rng.normal(size=(len(codes), dim))
        for codes in (codes_x, codes_y)
    )
    return Draw(x, y, codes_x, codes_y)


def _pools(p: Rows, q: Rows, n: int) -> Drifting:
    """Rows drawn with replacement from P = the rows p, and from (1 - w) P + w Q. The rows are then the whole truth: the
    energy distance and MMD^2 of the two are w^2 times the V-statistic of p and q."""
    distances = [cdist(a, b) for a, b in ((p, q), (p, p), (q, q))]
    width = float(np.median(distances[1])) / 2
    energy = 2 * distances[0].mean() - distances[1].mean() - distances[2].mean()
    rbf = [float(np.exp(-(d**2) / (2 * width**2)).mean()) for d in distances]
    mmd2 = rbf[1] + rbf[2] - 2 * rbf[0]

    def draw(rng: Generator, share: float) -> Draw:
        x = p[rng.integers(len(p), size=n)]
        y = np.where((rng.random(n) < share)[:, None], q[rng.integers(len(q), size=n)], p[rng.integers(len(p), size=n)])
        return Draw(x, y)

    return Drifting(draw, lambda w: w * w * float(energy), lambda w: w * w * mmd2, width, 1.0)


DRIFTING = ("gaussian", "heavy-tailed", "sphere mixture", "real", "users", "users, uneven", "users, both sides")


@lru_cache(maxsize=len(DRIFTING))
def drifting(name: str, n: int, data: str | None) -> Drifting:
    """n rows a side (about n with users)."""
    rng = stream(0, "pool", name)
    if name == "gaussian":
        return _gaussian(lambda rng: Draw(rng.normal(size=(n, DIM)), rng.normal(size=(n, DIM))))
    if name.startswith("users"):
        return _gaussian(lambda rng: users(name, rng, n // 5))
    if name == "heavy-tailed":
        p = heavy(rng, 2000, 3)
        return _pools(p, p + 8 / np.sqrt(DIM), n)
    if name == "sphere mixture":
        pool = sphere_pools()[0][:2000]
        return _pools(pool, near(pool, pool[0], 300), n)
    if name == "real":
        pool = quiet_rows(data)
        pool = pool[rng.choice(len(pool), min(2000, len(pool)), replace=False)].astype(np.float64)
        return _pools(pool, near(pool, pool[0], 150), n)
    raise ValueError(name)


def near(pool: Rows, anchor: Rows, count: int) -> Rows:
    """The rows of a pool nearest to one of them: what a topic looks like."""
    return np.asarray(pool[np.argsort(np.linalg.norm(pool - anchor, axis=1), kind="stable")[:count]])
