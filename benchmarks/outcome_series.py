"""Series for benchmarks/outcomes.py whose truth is known, and the tests they are given to."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpudrift.outcomes.lags import lag_effect, paired, shuffled_p
from gpudrift.outcomes.records import DriftSeries, LagEffect
from gpudrift.outcomes.whitening import BEND, prewhiten
from gpudrift.records import Window
from gpudrift.student_t import student_t_upper
from gpudrift.windows import Period

Floats = NDArray[np.float64]
Generator = np.random.Generator

_WARM_UP = 50  # windows before the first, so that it has the series' own variance
BLOCK = 4  # windows a block of the block permutation holds
SPIKING = 0.08  # share of windows that spike


# series ------------------------------------------------------------------------------------------------------------


def autoregressive(rng: Generator, n: int, phi: float, steps: Floats | None = None) -> Floats:
    """AR(1) with variance 1 (of normal steps)."""
    steps = rng.normal(size=n + _WARM_UP) if steps is None else steps
    values = np.zeros(len(steps))
    for t in range(1, len(steps)):
        values[t] = phi * values[t - 1] + steps[t]
    return values[-n:] * math.sqrt(1 - phi**2)


def wandering(rng: Generator, n: int, phi: float, trend: bool) -> Floats:
    """AR(1), and a line that rises by four of its standard deviations."""
    return autoregressive(rng, n, phi) + (np.linspace(0, 4, n) if trend else 0.0)


def _ramp(rng: Generator, n: int, phi: float, begin: int | None) -> Floats:
    """Still until a window, given or one of its own, then a rise by five standard deviations in a third of n."""
    start = int(rng.integers(n // 5, n - n // 7)) if begin is None else begin
    return autoregressive(rng, n, phi) + 15 / n * np.maximum(0, np.arange(n) - start)


def _step(rng: Generator, n: int, phi: float) -> Floats:
    return autoregressive(rng, n, phi) + 4.0 * (np.arange(n) >= rng.integers(n // 10, n - n // 10))


def _slow(rng: Generator, n: int) -> Floats:
    return autoregressive(rng, n, 0.0) + np.cumsum(0.2 * rng.normal(size=n))


def _holes(rng: Generator, n: int, phi: float) -> Floats:
    return np.where(rng.random(n) < 0.15, np.nan, autoregressive(rng, n, phi))


def _bursts(rng: Generator, n: int, phi: float) -> Floats:
    return autoregressive(rng, n, phi, rng.standard_t(2, size=n + _WARM_UP))


SHAPES: dict[str, tuple[int, Callable[[Generator], Floats]]] = {
    "15% of windows missing, autocorrelation 0": (104, lambda rng: _holes(rng, 104, 0.0)),
    "15% of windows missing, autocorrelation .8": (104, lambda rng: _holes(rng, 104, 0.8)),
    "bursts (t with 2 degrees of freedom)": (104, lambda rng: _bursts(rng, 104, 0.5)),
    "a ramp, each begins when it likes": (104, lambda rng: _ramp(rng, 104, 0.0, None)),
    "a ramp, both begin together": (104, lambda rng: _ramp(rng, 104, 0.0, 70)),
    "a ramp, each begins when it likes, six years": (312, lambda rng: _ramp(rng, 312, 0.0, None)),
    "a ramp, both begin together, six years": (312, lambda rng: _ramp(rng, 312, 0.0, 208)),
    "a step, each when it likes": (104, lambda rng: _step(rng, 104, 0.0)),
    "a step, each when it likes, six years": (312, lambda rng: _step(rng, 312, 0.0)),
    "noise on a slow random walk": (104, lambda rng: _slow(rng, 104)),
    "noise on a slow random walk, six years": (312, lambda rng: _slow(rng, 312)),
}


def following(rng: Generator, n: int, phi: float, r: float) -> tuple[Floats, Floats, float]:
    """Drift on a log scale, a metric that follows it by a window with correlation r, and its slope for a doubling."""
    x = autoregressive(rng, n + 1, phi)
    noise = autoregressive(rng, n, phi)
    return x[1:], r * x[:-1] + math.sqrt(1 - r * r) * noise, r * math.log(2)


# tests -------------------------------------------------------------------------------------------------------------


def without_trend(values: Floats) -> Floats:
    return prewhiten(values).fit.left


def ours(x: Floats, y: Floats, lags: int, draws: int, rng: Generator, bend: int = BEND) -> float:
    """The analysis's own p."""
    drift, metric = prewhiten(x, bend=bend), prewhiten(y, bend=bend)
    effects, spent = effects_of(x, y, lags, bend)
    return shuffled_p(drift.values, metric.values, [e.lag for e in effects], draws, rng, spent)


def effects_of(x: Floats, y: Floats, lags: int, bend: int = BEND) -> tuple[list[LagEffect], int]:
    """At every lag, and the degrees of freedom that the trend took."""
    drift, metric = prewhiten(x, bend=bend), prewhiten(y, bend=bend)
    spent = min(drift.fit.terms, metric.fit.terms)
    found = [lag_effect(drift.values, metric.values, lag, spent) for lag in range(lags + 1)]
    return [effect for effect in found if effect is not None], spent


def naive(x: Floats, y: Floats, lags: int, draws: int, rng: Generator) -> float:  # noqa: ARG001 tests share a signature
    """Pearson's p of the series as they are, the smallest over the lags."""
    least = 1.0
    for lag in range(lags + 1):
        a, b = paired(x, y, lag)
        r = float(np.corrcoef(a, b)[0, 1])
        t = abs(r) * math.sqrt((len(a) - 2) / max(1 - r * r, 1e-12))
        least = min(least, 2 * student_t_upper(t, len(a) - 2))
    return least


def blocks(x: Floats, y: Floats, lags: int, draws: int, rng: Generator) -> float:
    """The largest |r| over the lags against that of the drift's blocks in random order."""
    order = np.arange(len(x))
    parts = [order[k : k + BLOCK] for k in range(0, len(x), BLOCK)]
    dealt = [np.concatenate([parts[k] for k in rng.permutation(len(parts))]) for _ in range(draws)]
    rows = x[np.stack([order, *dealt])]
    most = np.zeros(len(rows))
    for lag in range(lags + 1):
        a, b = rows[:, : len(x) - lag], y[lag:] - y[lag:].mean()
        a = a - a.mean(axis=1, keepdims=True)
        most = np.maximum(most, np.abs(a @ b) / np.sqrt((a * a).sum(axis=1) * (b @ b)))
    return (1 + int((most[1:] >= most[0] * (1 - 1e-9)).sum())) / (1 + draws)


TESTS: dict[str, Callable[[Floats, Floats, int, int, Generator], float]] = {
    "naive": naive,
    "blocks": blocks,
    "ours": ours,
}


# drift with spikes, and calm ---------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def weeks(n: int) -> tuple[Window, ...]:
    period = Period("week")
    found = [period.window_at(date(2020, 1, 6))]
    while len(found) < n:
        found.append(period.next(found[-1]))
    return tuple(found)


def spiking(rng: Generator, n: int, phi: float, metric: float, effect: float) -> tuple[DriftSeries, Floats]:
    """The highest windows of an AR(1) spike; the metric falls by ``effect`` sd in a spike, .8 and .6 of it after."""
    x, y = autoregressive(rng, n, phi), autoregressive(rng, n, metric)
    spikes = x > np.quantile(x, 1 - SPIKING)
    y = y - effect * np.convolve(spikes, [1.0, 0.8, 0.6])[:n]
    return DriftSeries("all", weeks(n), np.exp(x), x, spikes, ~spikes), y


def calm(n: int) -> DriftSeries:
    nothing = np.zeros(n)
    return DriftSeries("all", weeks(n), nothing, nothing, nothing.astype(bool), np.ones(n, dtype=bool))


def _rate(rng: Generator, n: int, chance: float, last: int = 350) -> tuple[Floats, Floats]:
    counts = rng.integers(300, 400, size=n).astype(float)
    counts[-1] = last
    return rng.binomial(counts.astype(int), chance) / counts, counts


def _unknown(values: Floats) -> tuple[Floats, Floats]:
    return values, np.full(len(values), np.nan)


LEVELS: dict[str, Callable[[Generator, int], tuple[Floats, Floats]]] = {
    "normal": lambda rng, n: _unknown(rng.normal(size=n)),
    "autocorrelation .5": lambda rng, n: _unknown(autoregressive(rng, n, 0.5)),
    "autocorrelation .8": lambda rng, n: _unknown(autoregressive(rng, n, 0.8)),
    "getting worse by .02 sd a window": lambda rng, n: _unknown(rng.normal(size=n) + 0.02 * np.arange(n)),
    "rate of .1, 350 observations": lambda rng, n: _rate(rng, n, 0.1),
    "rate of .1, the last of 60 observations": lambda rng, n: _rate(rng, n, 0.1, 60),
    "rate of .002, 350 observations": lambda rng, n: _rate(rng, n, 0.002),
}
