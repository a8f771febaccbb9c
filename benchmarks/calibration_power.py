"""The calibration study of power: five things that happen to a corpus, at equal data, by gpudrift and by the peers.

Every trial pins one reference and scores three windows without drift and one with each phenomenon. Each method says
what it says at its customary threshold, and gives a statistic, of which the study takes the 95% quantile over all
windows without drift of that world: a threshold that gives every method the same 5% of false alarms.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from calibration_estimates import binomial_error
from calibration_families import Generator, Rows, near, quiet_rows, stream
from calibration_peers import RULES, Reference
from calibration_weeks import CLUSTERS, DIM, TRUE_ROWS, WOBBLE, mixture, pin, scored, topics, wander

WINDOWS = 12  # of the reference, as by default
REAL_ROWS = 150
NULLS = 3  # windows without drift a reference
PHENOMENA = ("mean shift", "low-variance shift", "spread", "new cluster", "reweighted")
WORLDS = ("no movement", "wobbling", "real rows")
SIGNED = ("log_variance_ratio", "residual_energy", "classifier_auc", "mean_shift")
METRICS = ("energy", "mmd2_b1", "mmd2_b2", "log_variance_ratio", "residual_energy", "classifier_auc")
GATE = "gpudrift gate (warning)"

Windows = tuple[list[Rows], list[Rows], dict[str, Rows]]
Said = tuple[float, bool | None]


# worlds ------------------------------------------------------------------------------------------------------------


def synthetic(rng: Generator, wobble: float, size: float) -> Windows:
    """Ten topics (``calibration_weeks.mixture``); ``size`` multiplies every drift."""
    centres, axes = mixture()

    def window(weights: Rows | None = None) -> Rows:
        moved = wander(rng) * (wobble / WOBBLE) if wobble else 0.0
        return topics(rng, TRUE_ROWS, weights)[0] + moved

    quiet = [window() for _ in range(WINDOWS)]
    still = [window() for _ in range(NULLS)]
    strong, weak = (axes[part].T @ rng.normal(size=len(axes[part])) for part in (slice(0, 8), slice(48, DIM)))
    rows, of = topics(rng, TRUE_ROWS)
    base = wander(rng) * (wobble / WOBBLE) if wobble else np.zeros(DIM)
    new = rows.copy()
    share = rng.random(TRUE_ROWS) < 0.08 * size
    new[share] += centres[CLUSTERS] - centres[of[share]]
    weights = np.where(np.arange(CLUSTERS) % 2, 1.0, 1 - 0.45 * size)
    return (
        quiet,
        still,
        {
            "mean shift": window() + 0.1 * size * strong / np.linalg.norm(strong),
            "low-variance shift": window() + 0.06 * size * weak / np.linalg.norm(weak),
            "spread": base + centres[of] + (1 + 0.06 * size) * (rows - centres[of]),
            "new cluster": base + new,
            "reweighted": window(weights / weights.sum()),
        },
    )


@lru_cache(maxsize=1)
def _axes(data: str | None) -> tuple[Rows, Rows]:
    """(mean, principal axes) of the quiet real rows."""
    rows = quiet_rows(data).astype(np.float64)
    mean = rows.mean(0)
    return mean, np.linalg.eigh(np.cov(rows.T))[1].T[::-1]


def real(rng: Generator, data: str | None) -> Windows:
    """Rows of the quiet real weeks, dealt at random. A topic (the 3% of rows around a random one) is kept out of the
    reference and of the windows without drift: it is the new cluster."""
    pool = quiet_rows(data)
    mean, axes = _axes(data)
    distance = np.linalg.norm(pool - pool[rng.integers(len(pool))], axis=1)
    order = np.argsort(distance, kind="stable")
    topic, usual = pool[order[: len(pool) * 3 // 100]], pool[order[len(pool) * 3 // 100 :]]
    dealt = rng.permutation(len(usual))
    cut = WINDOWS * REAL_ROWS
    quiet = [usual[part] for part in np.split(dealt[:cut], WINDOWS)]
    rest = usual[dealt[cut:]].astype(np.float64)

    def window() -> Rows:
        return np.asarray(rest[rng.choice(len(rest), REAL_ROWS, replace=False)])

    def unit(rows: Rows) -> Rows:
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def along(part: slice) -> Rows:
        direction = rng.normal(size=len(axes[part])) @ axes[part]
        return np.asarray(direction / np.linalg.norm(direction))

    spread, new = window(), window()
    new[: round(0.1 * REAL_ROWS)] = topic[rng.choice(len(topic), round(0.1 * REAL_ROWS), replace=False)]
    centre = rest[rng.integers(len(rest))]
    close = near(rest, centre, len(rest) // 3)
    weighted = window()
    count = round(0.35 * REAL_ROWS)
    weighted[:count] = close[rng.choice(len(close), count, replace=False)]
    return (
        quiet,
        [window() for _ in range(NULLS)],
        {
            "mean shift": unit(window() + 0.1 * along(slice(0, 8))),
            "low-variance shift": unit(window() + 0.05 * along(slice(200, 300))),
            "spread": mean + 1.03 * (spread - mean),
            "new cluster": new,
            "reweighted": weighted,
        },
    )


def windows_of(world: str, rng: Generator, data: str | None) -> Windows:
    if world == "real rows":
        return real(rng, data)
    return synthetic(rng, WOBBLE if world == "wobbling" else 0.0, 2.0 if world == "wobbling" else 1.0)


# trials ------------------------------------------------------------------------------------------------------------


def power_trial(world: str, seed: int, trial: int, data: str | None) -> dict[str, list[dict[str, Said]]] | None:
    """What each method says of each window, by what happened in it; None for an unstable reference."""
    quiet, still, drifted = windows_of(world, stream(seed, "power", world, trial), data)
    scorer = pin(quiet)
    if scorer is None:
        return None
    peers = Reference(quiet)
    found: dict[str, list[dict[str, Said]]] = {"none": []}
    week = WINDOWS + 1
    for name, rows in [*(("none", rows) for rows in still), *drifted.items()]:
        said = _ours(scored(scorer, rows, week))
        for rule, judge in RULES.items():
            one = judge(peers, np.asarray(rows, dtype=np.float64))
            said[rule] = (one.statistic, one.drift)
        found.setdefault(name, []).append(said)
        week += 1
    return found


def _ours(one: Any) -> dict[str, Said]:
    """Each gating metric at p_AA < .01 by itself, and the gate over all of them."""
    if one.judgement is None or one.measured is None:
        raise ValueError("a window of the study has no verdict")
    said: dict[str, Said] = {
        GATE: (-math.log(max(min((g.p_holm for g in one.gates), default=1.0), 1e-300)), one.judgement.warn)
    }
    by_name = {g.metric: g for g in one.gates}
    for name in METRICS:
        if name in one.measured.metrics:
            gate = by_name.get(name)
            value = one.measured.metrics[name].value
            said[f"gpudrift {name}"] = (float(value), None if gate is None else bool(gate.p_aa < 0.01))
    return said


def power_table(world: str, found: list[Any]) -> list[dict[str, Any]]:
    """A row a method: shares of windows at its own threshold, and at the one with 5% of false alarms."""
    usable = [trial for trial in found if trial is not None]
    rows = []
    for method in usable[0]["none"][0]:
        by_name = {name: [said[method] for trial in usable for said in trial[name]] for name in ("none", *PHENOMENA)}
        statistics = {name: np.array([value for value, _ in said]) for name, said in by_name.items()}
        if method.removeprefix("gpudrift ") in SIGNED:
            middle = np.median(statistics["none"])
            statistics = {name: np.abs(values - middle) for name, values in statistics.items()}
        threshold = np.quantile(statistics["none"], 0.95)
        row: dict[str, Any] = {
            "world": world,
            "method": method,
            "references": len(usable),
            "windows without drift": len(by_name["none"]),
            "false alarms": _share(by_name["none"]),
            "false alarms error": _nested_error([[said[method] for said in trial["none"]] for trial in usable]),
        }
        for name in PHENOMENA:
            row[name] = _share(by_name[name])
            row[f"{name} at 5%"] = float((statistics[name] > threshold).mean())
        row["largest error"] = binomial_error(0.5, len(usable))
        rows.append(row)
    return rows


def _share(said: list[Said]) -> float | None:
    decisions = [drift for _, drift in said if drift is not None]
    return float(np.mean(decisions)) if decisions else None


def _nested_error(trials: list[list[Said]]) -> float | None:
    """Of a share over windows that share a reference, by reference."""
    means = [np.mean([drift for _, drift in trial if drift is not None]) for trial in trials if trial[0][1] is not None]
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
