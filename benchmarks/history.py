"""Results kept from commit to commit: one JSON line a case, appended, and the picture drawn from them.

A line's ``hash`` covers the case's definition and the code that ran it: lines of another hash are never compared. Nor
are lines of another machine (processor, threads, torch): the picture shows that of the last line.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """ratio: seconds over those of the floor, median of the rounds' own ratios. clock: processor or wall. date: UTC."""

    case: str
    hash: str
    commit: str | None
    dirty: bool
    ratio: float
    seconds: float
    floor_seconds: float
    gflops: float
    rounds: int
    clock: str
    threads: int
    cpu: str
    torch: str
    date: str

    @property
    def machine(self) -> tuple[str, int, str]:
        return self.cpu, self.threads, self.torch


def append(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)


def read(path: Path) -> list[Record]:
    return [Record(**_fields(path, k, line)) for k, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]


def _fields(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return found


def comparable(records: Sequence[Record], hashes: Mapping[str, str]) -> list[Record]:
    """Those of the cases as they are now (name -> hash), of the machine that the last of them ran on."""
    current = [record for record in records if hashes.get(record.case) == record.hash]
    return [record for record in current if record.machine == current[-1].machine]


def plot(records: Sequence[Record], path: Path) -> None:
    """Share of the floor over commits, a line a case, in the order of the file; commits with local edits are hollow."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    if not records:
        raise SystemExit("no results of these cases yet: run with --save first")
    places: dict[tuple[str | None, bool], int] = {}
    for record in records:
        places.setdefault((record.commit, record.dirty), len(places))
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    styles = ("-", "--", ":", "-.")
    for k, case in enumerate(dict.fromkeys(record.case for record in records)):
        mine = [record for record in records if record.case == case]
        at = [places[record.commit, record.dirty] for record in mine]
        shares = [1 / record.ratio for record in mine]
        (line,) = axes.plot(at, shares, styles[k // 10 % len(styles)], label=case, linewidth=1.2)
        for x, y, record in zip(at, shares, mine, strict=True):
            axes.plot(x, y, "o", color=line.get_color(), markersize=5, fillstyle="none" if record.dirty else "full")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_xticks(
        range(len(places)),
        [f"{(commit or 'no commit')[:8]}{' + edits' if dirty else ''}" for commit, dirty in places],
        rotation=30,
        ha="right",
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of the bare matrix product")
    last = records[-1]
    axes.set_title(f"{last.cpu}, {last.threads} thread(s), torch {last.torch}", fontsize=9)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def commit_of(repository: Path) -> tuple[str | None, bool]:
    """(commit, whether gpudrift or the benchmarks have local edits); None where git knows of no commit."""
    try:
        head = _git(repository, "rev-parse", "HEAD")
        edits = _git(repository, "status", "--porcelain", "--", "gpudrift", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return None, False
    return head.strip(), bool(edits.strip())


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True).stdout


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
