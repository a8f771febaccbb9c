"""How often do two series that know nothing of each other get a link, and how often is a real one found?

    python benchmarks/outcomes.py [links shapes power events levels] [--seed 0] [--effort 1]
    python benchmarks/outcomes.py real --data TABLE.csv --history FOLDER    # shifted real metrics, and a recomputation

Results go to benchmarks/results/outcomes.json, part by part (a part that is not asked for keeps what it has), and the
tables of docs/outcomes.md are written anew from it. What each shows is told there. ``--effort`` multiplies the trials.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import outcome_real as real
import outcome_series as worlds
from calibration import rounded, versions
from calibration_families import stream
from outcome_tables import renewed, table

from gpudrift.outcomes import events, levels
from gpudrift.outcomes.lags import strongest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "outcomes.json"
DOCS = ROOT / "docs" / "outcomes.md"
SCHEMA = 1
LAGS = 4
LEVEL = 0.05
DRAWS = 199  # shuffles a test: p is exact for any number of them
TRIALS = {"links": 1000, "shapes": 600, "power": 500, "events": 500, "levels": 4000}
SIZES = (12, 26, 52, 104)
PHIS = (0.0, 0.5, 0.8)

Row = dict[str, Any]


def links(seed: int, effort: float) -> list[Row]:
    """Independent series: n windows, their autocorrelation, with a straight trend or none."""
    rows = []
    for n in SIZES:
        for phi in PHIS:
            for trend in (False, True):
                rng = stream(seed, "links", n, str(phi), str(trend))
                trials = _trials("links", effort)
                hits = dict.fromkeys(worlds.TESTS, 0)
                for _ in range(trials):
                    x, y = (worlds.wandering(rng, n, phi, trend) for _ in "xy")
                    for name, test in worlds.TESTS.items():
                        hits[name] += test(x, y, LAGS, DRAWS, rng) <= LEVEL
                rates = {name: count / trials for name, count in hits.items()}
                rows.append({"windows": n, "autocorrelation": phi, "trend": trend, "trials": trials, **rates})
    return rows


def shapes(seed: int, effort: float) -> list[Row]:
    """Independent series of shapes that real ones have, with bends in the trend and with one straight line."""
    rows = []
    for name, (n, draw) in worlds.SHAPES.items():
        rng, trials = stream(seed, "shapes", name), _trials("shapes", effort)
        bent = straight = 0
        for _ in range(trials):
            x, y = draw(rng), draw(rng)
            bent += worlds.ours(x, y, LAGS, DRAWS, rng) <= LEVEL
            straight += worlds.ours(x, y, LAGS, DRAWS, rng, bend=10**9) <= LEVEL
        rows.append(
            {"shape": name, "windows": n, "trials": trials, "ours": bent / trials, "one line": straight / trials}
        )
    return rows


def power(seed: int, effort: float) -> list[Row]:
    """A metric that follows the drift by one window: how often it is found, at the right lag, with the slope inside its
    interval."""
    rows = []
    for n in SIZES:
        for phi in PHIS:
            rng, trials = stream(seed, "power", n, str(phi)), _trials("power", effort)
            found = right = inside = 0
            for _ in range(trials):
                x, y, slope = worlds.following(rng, n, phi, 0.7)
                effects, spent = worlds.effects_of(x, y, LAGS)
                found += worlds.ours(x, y, LAGS, DRAWS, rng) <= LEVEL
                right += strongest(effects, spent).lag == 1
                low, high = effects[1].ci
                inside += low <= slope <= high
            rates = {"found": found / trials, "right lag": right / trials, "coverage": inside / trials}
            rows.append({"windows": n, "autocorrelation": phi, "trials": trials, **rates})
    return rows


def of_events(seed: int, effort: float) -> list[Row]:
    """Spikes that come singly or in clusters; a metric that knows nothing of them, or falls for some windows."""
    rows = []
    for n in (104, 208):
        for kind, drift_phi in (("single", 0.0), ("clustered", 0.6)):
            for metric in (0.0, 0.5, 0.8):
                for effect in (0.0, 1.5):
                    rng = stream(seed, "events", n, kind, str(metric), str(effect))
                    trials, done, hits, covered = _trials("events", effort), 0, 0, 0
                    for _ in range(trials):
                        drift, values = worlds.spiking(rng, n, drift_phi, metric, effect)
                        found = events.event_study(drift, worlds.without_trend(values), LAGS, DRAWS, rng)
                        if found.p is None or found.ci is None:
                            continue
                        done += 1
                        hits += found.p <= LEVEL
                        covered += found.ci[0] <= 0 <= found.ci[1]
                    rates: Row = {"rejected": hits / max(done, 1), "interval holds 0": covered / max(done, 1)}
                    rows.append(
                        {"windows": n, "spikes": kind, "autocorrelation": metric, "effect": effect, "trials": done}
                        | rates
                    )
    return rows


def of_levels(seed: int, effort: float) -> list[Row]:
    """Quiet windows only: how often the last one is called degraded (.01 is right)."""
    rows = []
    for name, draw in worlds.LEVELS.items():
        for n in (8, 12, 26, 52):
            rng, trials = stream(seed, "levels", name, n), _trials("levels", effort)
            hits = 0
            for _ in range(trials):
                values, counts = draw(rng, n + 1)
                found = levels.level(worlds.calm(n + 1), values, counts, "higher")
                hits += found is not None and found.degraded
            rows.append({"metric": name, "quiet windows": n, "trials": trials, "degraded": hits / trials})
    return rows


STUDY: dict[str, Callable[[int, float], list[Row]]] = {
    "links": links,
    "shapes": shapes,
    "power": power,
    "events": of_events,
    "levels": of_levels,
}


def _trials(part: str, effort: float) -> int:
    return max(3, round(TRIALS[part] * effort))


def study(parts: list[str], seed: int, effort: float, results: Path, data: Path | None, history: Path | None) -> Row:
    """Run the parts and write each into the results file as it ends; returns all the file holds."""
    kept: Row = json.loads(results.read_text()) if results.is_file() else {"schema": SCHEMA, "parts": {}}
    for part in parts:
        begin = time.monotonic()
        if part == "real":
            if data is None or history is None:
                raise SystemExit("the part real needs --data and --history")
            rows = real.study(data, history, seed)
        else:
            rows = STUDY[part](seed, effort)
        minutes = round((time.monotonic() - begin) / 60, 1)
        kept["parts"][part] = {
            "command": command(part, seed, effort),
            "minutes": minutes,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": {
                name: number for name, number in versions().items() if name in ("python", "gpudrift", "numpy")
            },
            "rows": rows,
        }
        results.write_text(json.dumps(rounded(kept), indent=1) + "\n")
        print(f"{part}: {minutes:g} minutes", flush=True)
    return kept


def command(part: str, seed: int, effort: float) -> str:
    words = ["python benchmarks/outcomes.py", part, f"--seed {seed}"]
    if part == "real":
        words.append("--data TABLE.csv --history FOLDER")
    elif effort != 1:
        words.append(f"--effort {effort:g}")
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(STUDY)}, real; default: all but real")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument(
        "--data", type=Path, help="real: a CSV with a week_start column, counts in queries, and metrics"
    )
    parser.add_argument("--history", type=Path, help="real: the folder of a weekly job and reference in a history")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="whose tables are written anew")
    options = parser.parse_args()
    if not options.effort > 0:
        parser.error("--effort must be above 0")
    if unknown := set(options.parts) - {*STUDY, "real"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    kept = study(
        options.parts or list(STUDY), options.seed, options.effort, options.results, options.data, options.history
    )
    if options.docs.is_file():
        options.docs.write_text(renewed(options.docs.read_text(), rounded(kept)))
    for name in kept["parts"]:
        print(f"\n{name}\n{table(name, rounded(kept))}")


if __name__ == "__main__":
    main()
