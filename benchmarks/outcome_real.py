"""Real metrics beside a real history: analysed, recomputed by other code, and shifted against each other.

The recomputation shares nothing with gpudrift.outcomes: history and table are joined by pandas, the trend is fitted on
hinge functions by a pseudo-inverse, each lag is a regression, and the shuffles are another generator's. A metric
shifted by many windows against the drift keeps both series as rough as they are and breaks every link between them; how
often that is "found" is the false-positive rate on real data (shifts of one pair of series are no independent trials).
"""
# mypy: disable-error-code="import-untyped"
# pandas brings no types here

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import outcome_series as worlds
import pandas as pd
from calibration_families import stream
from numpy.typing import NDArray

from gpudrift.history import History
from gpudrift.outcomes.analysis import analyse
from gpudrift.outcomes.records import Direction, OutcomeSeries
from gpudrift.windows import Period

LAGS = 4
AGAIN = 1999  # shuffles of the recomputation
SHIFTS = range(15, 1000, 2)
WORSE: dict[str, Direction] = {
    "no_answer_rate": "higher",
    "retrieval_success_rate": "lower",
    "mean_top1_similarity": "lower",
}


def study(data: Path, history: Path, seed: int) -> list[dict[str, Any]]:
    table = pd.read_csv(data)
    period = Period("week")
    windows = tuple(period.window_at(pd.Timestamp(day).to_pydatetime()) for day in table["week_start"])
    counts = table["queries"].to_numpy(float)
    series = [OutcomeSeries(m, way, "all", windows, table[m].to_numpy(float), counts) for m, way in WORSE.items()]
    found = analyse(series, History(history.parents[1], history.parent.name, history.name).windows(), period, seed=seed)
    logs = found.drift["all"].log_scores
    starts = [window.start for window in found.drift["all"].windows]
    scores = pd.DataFrame({"start": starts, "log_score": logs})
    rows = []
    for finding in found.findings:
        assert finding.lag is not None
        assert finding.ci is not None
        metric = table[["week_start", finding.metric]].assign(start=pd.to_datetime(table["week_start"], utc=True))
        joined = scores.merge(metric, on="start", how="left").sort_values("start")
        values = joined[finding.metric].to_numpy(float)
        effect, p = again(joined["log_score"].to_numpy(float) / math.log(2), values, finding.lag, seed)
        shifted = _shifted(logs, values, stream(seed, "real", finding.metric))
        rows.append(
            {
                "metric": finding.metric,
                "windows": finding.windows,
                "lag": finding.lag,
                "effect": finding.effect,
                "low": finding.ci[0],
                "high": finding.ci[1],
                "p": finding.p,
                "q": finding.q,
                "effect again": effect,
                "p again": p,
                "shifts": len(shifted),
                "shifted": float(np.mean([p <= 0.05 for p in shifted])),
            }
        )
    return rows


def again(x: NDArray[np.float64], y: NDArray[np.float64], lag: int, seed: int) -> tuple[float, float]:
    """Slope at the lag and p of the largest lagged correlation, by regressions written anew; no gap inside a series."""
    a, b = _left(pd.Series(x)), _left(pd.Series(y))
    frame = pd.DataFrame({"x": a, **{f"y{k}": b.shift(-k) for k in range(LAGS + 1)}})
    pairs = frame[["x", f"y{lag}"]].dropna()
    slope = float(np.polyfit(pairs["x"], pairs[f"y{lag}"], 1)[0])
    rng = np.random.RandomState(seed)
    used = frame.dropna(subset=[f"y{k}" for k in range(LAGS + 1)], how="all")["x"].dropna().index.to_numpy()
    rows = [frame[["x", f"y{k}"]].dropna().index.to_numpy() for k in range(LAGS + 1)]
    later = [frame.loc[at, f"y{k}"].to_numpy() for k, at in enumerate(rows)]

    def largest(values: NDArray[np.float64], terms: int) -> float:
        found = [np.corrcoef(values[at], metric)[0, 1] for at, metric in zip(rows, later, strict=True)]
        return max(abs(math.atanh(r)) * math.sqrt(len(at) - 3 - terms) for r, at in zip(found, rows, strict=True))

    values = frame["x"].to_numpy(copy=True)
    observed, count = largest(values, min(_pieces(x), _pieces(y))), 0
    original = values[used]
    for _ in range(AGAIN):
        values[used] = rng.permutation(original)
        count += largest(values, 0) >= observed
    return slope, (1 + count) / (1 + AGAIN)


def _pieces(values: NDArray[np.float64]) -> int:
    """Straight pieces of the trend, each a term of the fit."""
    return max(1, round(int(np.isfinite(values).sum()) / 26))


def _left(values: pd.Series[float]) -> pd.Series[float]:
    """Residuals of a bent line (every 26 values), then of a regression on the value before."""
    known = values.dropna()
    place = known.index.to_numpy(float)
    pieces = _pieces(known.to_numpy())
    knots = [place[len(place) * j // pieces] for j in range(1, pieces)]
    design = np.column_stack([np.ones_like(place), place, *[np.clip(place - knot, 0, None) for knot in knots]])
    rest = pd.Series(known.to_numpy() - design @ np.linalg.pinv(design) @ known.to_numpy(), known.index)
    rest = rest.reindex(values.index)
    before = rest.shift(1)
    return rest - (rest * before).sum() / (before[rest.notna()] ** 2).sum() * before


def _shifted(x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator) -> list[float]:
    held = np.flatnonzero(np.isfinite(y))
    found = []
    for shift in SHIFTS:
        if shift > len(held) - SHIFTS.start:
            break
        moved = y.copy()
        moved[held] = np.roll(y[held], shift)
        found.append(worlds.ours(x, moved, LAGS, 199, rng))
    return found
