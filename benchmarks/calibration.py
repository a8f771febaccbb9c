"""The calibration study: are the p-values, intervals and verdicts what they say, and what do others' methods say?

    python benchmarks/calibration.py [type_one coverage weeks power peers] [--processes 2] [--seed 0] [--effort 1]
    python benchmarks/calibration.py weeks --data FOLDER     # real weeks of a larger corpus in the sample's layout

Results go to benchmarks/results/calibration.json, part by part (a part that is not asked for keeps what it has), and
the tables of docs/calibration.md are written anew from it. What each table shows is told there. ``--effort`` multiplies
the trials. Results are those of the seed, however many processes work.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import isnan
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import calibration_estimates as estimates
import calibration_families as families
import calibration_power as power
import calibration_tables as tables
import calibration_weeks as weeks
import peers
import torch
from history import commit_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "calibration.json"
DOCS = ROOT / "docs" / "calibration.md"
PEERS_ENVIRONMENT = ROOT / ".venv-peers"
SCHEMA = 1
PARTS = ("type_one", "coverage", "weeks", "power", "peers")
OF_DATA = ("type_one", "coverage", "weeks", "power")  # parts that real rows take part in
TRIALS = {"type_one": 1500, "coverage": 600, "weeks": 60, "power": 100}
WINDOWS = (8, 12, 26)
CHUNK = 5  # trials a task


@dataclass(frozen=True)
class Run:
    """How a study is run. effort: multiplies the trials."""

    processes: int = 2
    seed: int = 0
    effort: float = 1.0
    data: str | None = None

    def trials(self, part: str, share: float = 1.0) -> int:
        return max(2, round(TRIALS[part] * self.effort * share))


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def _quiet() -> None:
    torch.set_num_threads(1)


def _work(jobs: list[Job]) -> list[Any]:
    return [function(*arguments) for function, arguments in jobs]


def carry_out(jobs: list[Job], processes: int) -> list[Any]:
    """The results of all jobs, in their order."""
    chunks = [jobs[k : k + CHUNK] for k in range(0, len(jobs), CHUNK)]
    if processes <= 1:
        return [result for chunk in chunks for result in _work(chunk)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        return [result for done in pool.map(_work, chunks) for result in done]


def grouped(cells: Sequence[Any], jobs: Callable[[Any], list[Job]], processes: int) -> Iterator[tuple[Any, list[Any]]]:
    """Each cell with the results of its jobs; all cells share the processes."""
    of_cell = [jobs(cell) for cell in cells]
    results = iter(carry_out([job for own in of_cell for job in own], processes))
    for cell, own in zip(cells, of_cell, strict=True):
        yield cell, [next(results) for _ in own]


# parts -------------------------------------------------------------------------------------------------------------


def type_one(run: Run) -> list[dict[str, Any]]:
    def jobs(family: str) -> list[Job]:
        count = run.trials("type_one")
        return [(estimates.type_one_trial, (family, run.seed, trial, run.data)) for trial in range(count)]

    cells = (*estimates.FAMILIES, *estimates.USERS)
    found = grouped(cells, jobs, run.processes)
    return estimates.type_one_table((family, trial) for family, trials in found for trial in trials)


def coverage(run: Run) -> list[dict[str, Any]]:
    kinds = [(family, statistic) for family in families.DRIFTING for statistic in ("energy", "mmd2")]
    asked = [(*kind, ratio) for kind in kinds for ratio in estimates.RATIOS]
    sizes = carry_out([(estimates.drift_size, (*cell, run.data)) for cell in asked], run.processes)
    cells = [(*cell, size) for cell, size in zip(asked, sizes, strict=True) if not isnan(size)]

    def jobs(cell: tuple[str, str, float, float]) -> list[Job]:
        family, statistic, _, size = cell
        count = run.trials("coverage")
        return [(estimates.coverage_trial, (family, statistic, size, run.seed, t, run.data)) for t in range(count)]

    found = grouped(cells, jobs, run.processes)
    return [row for cell, trials in found for row in estimates.coverage_table(cell, trials, run.data)]


def of_weeks(run: Run) -> list[dict[str, Any]]:
    worlds = weeks.worlds(run.data)
    cells = [
        (name, count)
        for name in worlds
        for count in WINDOWS
        if weeks.available(name, count, run.data) and (run.data is None or "real" in name)
    ]

    def jobs(cell: tuple[str, int]) -> list[Job]:
        name, count = cell
        trials = int(min(run.trials("weeks", worlds[name][1]), weeks.available(name, count, run.data)))
        return [(weeks.weeks_trial, (name, count, run.seed, trial, run.data)) for trial in range(trials)]

    return [weeks.weeks_table(cell, trials) for cell, trials in grouped(cells, jobs, run.processes)]


def of_power(run: Run) -> list[dict[str, Any]]:
    def jobs(world: str) -> list[Job]:
        count = run.trials("power", 0.5 if world == "real rows" else 1.0)
        return [(power.power_trial, (world, run.seed, trial, run.data)) for trial in range(count)]

    found = grouped(power.WORLDS, jobs, run.processes)
    return [row for world, trials in found for row in power.power_table(world, trials)]


def of_peers(run: Run) -> list[dict[str, Any]]:  # noqa: ARG001 the parts share one signature
    """The peers' rules against their packages, where an environment with them has been made."""
    python = peers.environment(PEERS_ENVIRONMENT).python
    if python is None:
        raise SystemExit("no environment with the peers: run.py --peers builds it; or leave out the part peers")
    script = Path(__file__).with_name("calibration_peers.py")
    ran = subprocess.run([str(python), str(script)], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return [{**row, "trials": found["trials"], "packages": packages} for row in found["rules"]]


STUDY: dict[str, Callable[[Run], list[dict[str, Any]]]] = {
    "type_one": type_one,
    "coverage": coverage,
    "weeks": of_weeks,
    "power": of_power,
    "peers": of_peers,
}


# results -----------------------------------------------------------------------------------------------------------


def study(parts: Iterable[str], run: Run, results: Path) -> dict[str, Any]:
    """Run the parts and write each into the results file as it ends; returns all the file holds."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {"schema": SCHEMA, "parts": {}}
    for part in parts:
        begin = time.monotonic()
        rows = STUDY[part](run)
        kept["parts"][part if run.data is None else f"{part}_data"] = {
            "command": command(part, run),
            "seed": run.seed,
            "effort": run.effort,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "minutes": round((time.monotonic() - begin) / 60, 1),
            "processes": run.processes,
            "commit": _commit(),
            "versions": versions(),
            "real": real_rows(run.data) if part in OF_DATA else None,
            "rows": rows,
        }
        results.write_text(json.dumps(rounded(kept), indent=1) + "\n")
        print(f"{part}: {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return kept


def command(part: str, run: Run) -> str:
    words = ["python benchmarks/calibration.py", part, f"--seed {run.seed}"]
    if run.effort != 1:
        words.append(f"--effort {run.effort:g}")
    if run.data is not None:
        words.append("--data FOLDER")
    return " ".join(words)


def versions() -> dict[str, str]:
    named = ("gpudrift", "torch", "numpy", "scipy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in named:
        try:
            found[name] = version(name)
        except ImportError:  # gpudrift run from a checkout
            from gpudrift import __version__

            found[name] = __version__
    return found


def real_rows(data: str | None) -> str:
    """The corpus real rows come from: never where it lies."""
    found = families.real_weeks(data)
    quiet = len(families.quiet_weeks(data))
    rows = sum(len(week.rows) for week in found)
    name = "the sample" if data is None else "a larger corpus"
    return f"{name}: {rows:,} rows in {len(found)} weeks, {found[0].label} to {found[-1].label}, {quiet} of them quiet"


def _commit() -> str | None:
    commit, edited = commit_of(ROOT)
    return None if commit is None else commit[:12] + (" and edits" if edited else "")


def rounded(value: Any) -> Any:
    """Six digits are enough, and a file that can be read."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all but peers")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--data", help="real rows from this folder in place of the sample")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="whose tables are written anew")
    options = parser.parse_args()
    if not options.processes >= 1 or not options.effort > 0:
        parser.error("--processes and --effort must be above 0")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    _quiet()
    run = Run(options.processes, options.seed, options.effort, options.data)
    kept = study(options.parts or PARTS[:-1], run, options.results)
    if options.docs.is_file():
        options.docs.write_text(tables.renewed(options.docs.read_text(), rounded(kept)))
    for name in kept["parts"]:
        print(f"\n{name}\n{tables.table(name, rounded(kept))}")


if __name__ == "__main__":
    main()
