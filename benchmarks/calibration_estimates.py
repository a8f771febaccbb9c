"""The calibration study of tests and estimates: type-I error, coverage of intervals, bias of values and variances."""
# mypy: disable-error-code="import-untyped"
# SciPy brings no types

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from calibration_families import Draw, Drifting, Rows, drifting, halves, stream, users
from scipy.spatial.distance import pdist

import gpudrift
from gpudrift.panel import PanelSettings

Result = dict[str, Any]

FAMILIES = ("gaussian", "sphere mixture", "heavy-tailed", "real weeks")
USERS = ("users", "users, uneven", "users, both sides")
LEVELS = (0.05, 0.01)
PERMUTATIONS = 199
ROWS = {"type_one": 100, "coverage": 150}  # a side
RATIOS = (0, 2, 5, 10, 20)  # true value in standard errors
Z = 1.959963984540054


# type-I error ------------------------------------------------------------------------------------------------------


def type_one_trial(family: str, seed: int, trial: int, data: str | None) -> dict[str, float]:
    """p-values by test on two sets of rows of one distribution."""
    rng = stream(seed, "type one", family, trial)
    if family in USERS:
        found = users(family, rng, 30, 16)
        codes = {"clusters_x": found.codes_x, "clusters_y": found.codes_y}
        rows = (found.x, found.y)
        return {
            "energy, users permuted": _permuted(rows, "energy", trial, **codes),
            "mmd, users permuted": _permuted(rows, "mmd", trial, **codes),
            "energy, cross statistic of users": _crossed(rows, "energy", trial, **codes),
            "energy, rows permuted (wrong)": _permuted(rows, "energy", trial),
        }
    rows = halves(family, rng, ROWS["type_one"], data)
    return {
        "energy, permutation": _permuted(rows, "energy", trial),
        "mmd, permutation": _permuted(rows, "mmd", trial),
        "energy, cross statistic": _crossed(rows, "energy", trial),
        "mmd, cross statistic": _crossed(rows, "mmd", trial),
    }


def _permuted(rows: tuple[Rows, Rows], statistic: str, seed: int, **clusters: Any) -> float:
    found = gpudrift.permutation_test(
        *rows, statistic, permutations=PERMUTATIONS, seed=seed, bandwidths=_widths(rows, statistic), **clusters
    )
    return float(found.p_value)


def _crossed(rows: tuple[Rows, Rows], statistic: str, seed: int, **clusters: Any) -> float:
    found = gpudrift.cross_test(*rows, statistic, seed=seed, bandwidths=_widths(rows, statistic), **clusters)
    return float(found.p_value)


def _widths(rows: tuple[Rows, Rows], statistic: str) -> list[float] | None:
    """Of all pooled pairs, not of random ones, which take longer: a labelling does not change them either."""
    if statistic == "energy":
        return None
    middle = float(np.median(pdist(np.concatenate(rows))))
    return [multiple * middle for multiple in PanelSettings.multiples]


def type_one_table(found: Iterable[tuple[str, dict[str, float]]]) -> list[Result]:
    """Trials as (family, p-values by test) -> a row a family and test."""
    by_test: dict[tuple[str, str], list[float]] = {}
    for family, tests in found:
        for test, p in tests.items():
            by_test.setdefault((family, test), []).append(p)
    rows = []
    for (family, test), values in by_test.items():
        row: Result = {"family": family, "test": test, "trials": len(values)}
        for level in LEVELS:
            rate = float(np.mean(np.array(values) <= level + 1e-12))
            row |= {f"at {level}": rate, f"error {level}": binomial_error(level, len(values))}
        rows.append(row)
    return rows


def binomial_error(share: float, trials: int) -> float:
    return float(np.sqrt(share * (1 - share) / trials))


# coverage and bias -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def drift_size(family: str, statistic: str, ratio: float, data: str | None) -> float:
    """The size of drift at which the true value is about ``ratio`` standard errors, by bisection; NaN where the family
    does not reach it."""
    if ratio == 0:
        return 0.0
    setting = drifting(family, ROWS["coverage"], data)
    low, high = 0.0, setting.largest
    for step in range(12):
        middle = high if step == 0 else (low + high) / 2
        draws = [setting.draw(stream(0, "size", family, statistic, k), middle) for k in range(6)]
        se = float(np.mean([_estimate(draw, statistic, setting, True)[1] for draw in draws]))
        if truth(setting, statistic, middle) / se >= ratio:
            high = middle
        elif step == 0:
            return float("nan")
        else:
            low = middle
    return (low + high) / 2


def truth(setting: Drifting, statistic: str, size: float) -> float:
    return setting.energy(size) if statistic == "energy" else setting.mmd2(size)


def coverage_trial(
    family: str, statistic: str, size: float, seed: int, trial: int, data: str | None
) -> dict[str, tuple[float, float, float]]:
    """(value, se, variance) as it should be done, and, where rows are users', ``ignored``: without telling users."""
    setting = drifting(family, ROWS["coverage"], data)
    draw = setting.draw(stream(seed, "coverage", family, statistic, f"{size:.9g}", trial), size)
    found = {"as is": _estimate(draw, statistic, setting, True)}
    if draw.codes_x is not None:
        found["ignored"] = _estimate(draw, statistic, setting, False)
    return found


def _estimate(draw: Draw, statistic: str, setting: Drifting, users: bool) -> tuple[float, float, float]:
    clusters: dict[str, Any] = {"clusters_x": draw.codes_x, "clusters_y": draw.codes_y} if users else {}
    if statistic == "energy":
        found = gpudrift.energy_distance(draw.x, draw.y, **clusters)
    else:
        found = gpudrift.mmd2(draw.x, draw.y, setting.bandwidth, **clusters)
    return float(found.value), float(found.se), float(found.variance)


def coverage_table(cell: tuple[str, str, float, float], found: list[Any], data: str | None) -> list[Result]:
    """The trials of a (family, statistic, ratio, size): one row for the estimate as it should be, one more where users
    were ignored."""
    family, statistic, ratio, size = cell
    true = truth(drifting(family, ROWS["coverage"], data), statistic, size)
    rows = []
    for how in found[0]:
        value, se, variance = np.array([trial[how] for trial in found]).T
        spread = float(value.std(ddof=1))
        count = len(value)
        rows.append(
            {
                "family": family if how == "as is" else f"{family} (ignored: wrong)",
                "statistic": statistic,
                "drift": ratio,
                "true": true,
                "true in sd": true / spread,
                "trials": count,
                "coverage": float(np.mean(np.abs(value - true) <= Z * se)),
                "coverage error": binomial_error(0.95, count),
                "bias in se": float((value.mean() - true) / (spread / np.sqrt(count))),
                "variance ratio": float(variance.mean() / spread**2) if not np.isnan(variance).any() else None,
                "variance ratio error": _ratio_error(value),
                "se2 ratio": float(np.mean(se**2) / spread**2),
            }
        )
    return rows


def _ratio_error(value: Rows) -> float:
    """Standard error of an estimate over the empirical variance: that variance's own, relative."""
    centred = value - value.mean()
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
    return float(np.sqrt(max(kurtosis - 1, 0) / len(value)))
