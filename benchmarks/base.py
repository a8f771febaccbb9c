"""This checkout against another commit, in one run: its code from a throw-away worktree, the same benchmark code.

The rule. In every round the base, the base again and this checkout run each case, in alternating order; a ratio is
taken within its round. ``change`` is the median of now / base with a 99% bootstrap interval, ``noise`` the further end
of the same interval of base again / base, at least 1%. A case is slower where the interval's lower end lies above the
noise. Processes differ too (memory layout), so each third of the rounds starts fresh ones, and a case that looks slower
is measured once more and counts only if it does so again.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cases import Case
from rounds import Contestant, Lost, Times, difference, measure, paired

LEAST_NOISE = 0.01
AGREE = 1e-4  # relative: results of two commits differ by the order of float32 sums, not by more
RESAMPLES = 2000


def interval(ratios: Sequence[float], level: float = 0.99) -> tuple[float, float]:
    """Bootstrap interval of the median, from a fixed seed."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = round((1 - level) / 2 * RESAMPLES)
    return medians[tail], medians[-1 - tail]


@dataclass(frozen=True)
class Judgement:
    """change: median of now / base. low, high: its interval. noise: what the same commit twice differs by."""

    change: float
    low: float
    high: float
    noise: float

    @property
    def slower(self) -> bool:
        return self.low > 1 + self.noise

    @property
    def faster(self) -> bool:
        return self.high < 1 / (1 + self.noise)


def judge(changes: Sequence[float], same: Sequence[float]) -> Judgement:
    """changes: now / base, same: base again / base, a ratio a round."""
    low, high = interval(same)
    noise = max(high - 1, 1 / low - 1, LEAST_NOISE)
    return Judgement(median(changes), *interval(changes), noise)


@contextlib.contextmanager
def worktree(repository: Path, ref: str) -> Iterator[tuple[Path, str]]:
    """(folder, commit) of ``ref`` checked out in a temporary folder, gone afterwards, on ctrl-C and SIGTERM too."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)

    found = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"--base {ref}: no such commit in {repository}")
    commit = found.stdout.strip()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="gpudrift-base-") as folder:
        tree = Path(folder) / "tree"
        try:
            made = git("worktree", "add", "--detach", str(tree), commit)
            if made.returncode:
                raise SystemExit(f"--base {ref}: {made.stderr.strip()}")
            yield tree, commit
        finally:
            interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second ctrl-C must not leave it behind
            git("worktree", "remove", "--force", str(tree))
            git("worktree", "prune")
            signal.signal(signal.SIGINT, interrupts)
            signal.signal(signal.SIGTERM, before)


@dataclass
class Compared:
    """A case in both commits. reason: why it was not compared. differs: the results' largest relative difference."""

    case: Case
    base_seconds: float
    now_seconds: float
    judgement: Judgement | None
    differs: float
    check: float
    reason: str | None = None


def compare(
    cases: Sequence[Case], base: Path, now: Path, rounds: int, threads: int, blocks: int = 3, confirm: bool = True
) -> list[Compared]:
    """Measure all cases in ``blocks`` of fresh processes; those that look slower once more, to ``confirm``."""
    first = _times(cases, base, now, rounds, threads, blocks)
    found = [_compared(case, times) for case, times in zip(cases, first, strict=True)]
    again = [k for k, c in enumerate(found) if confirm and c.judgement is not None and c.judgement.slower]
    second = _times([cases[k] for k in again], base, now, rounds, threads, blocks)
    for k, times in zip(again, second, strict=True):
        repeated = _compared(cases[k], times)
        if repeated.judgement is None or not repeated.judgement.slower:
            found[k] = repeated
    return found


def _times(
    cases: Sequence[Case], base: Path, now: Path, rounds: int, threads: int, blocks: int
) -> list[dict[str, Times]]:
    """Times of "base", "base again" and "now" for each case; the rounds in blocks of fresh processes."""
    merged: list[dict[str, Times]] = [{} for _ in cases]
    if not cases:
        return merged
    for block in range(blocks):
        part = rounds // blocks + (block < rounds % blocks)
        with contextlib.ExitStack() as stack:
            workers, reasons = {}, {}
            for name, root in (("base", base), ("base again", base), ("now", now)):
                try:
                    worker = Contestant("gpudrift", python=sys.executable, threads=threads, root=root)
                    workers[name] = stack.enter_context(worker)
                except Lost as lost:
                    reasons[name] = str(lost)
            for k, case in enumerate(cases):
                lost_ones = {name: Times([math.nan] * part, reason=reason) for name, reason in reasons.items()}
                for name, times in {**measure(case, workers, part, threads), **lost_ones}.items():
                    _merge(merged[k], name, times)
    return merged


def _merge(into: dict[str, Times], name: str, times: Times) -> None:
    if name not in into:
        into[name] = times
        return
    kept = into[name]
    kept.seconds += times.seconds
    kept.result = times.result or kept.result
    kept.check = max(kept.check, times.check)
    kept.reason = kept.reason or times.reason


def _compared(case: Case, times: dict[str, Times]) -> Compared:
    base, again, now = times["base"], times["base again"], times["now"]
    reasons = dict.fromkeys(  # the base twice gives one reason
        f"{name.removesuffix(' again')}: {t.reason}" for name, t in times.items() if t.reason is not None
    )
    judgement = None if reasons else judge(paired(now, base), paired(again, base))
    return Compared(
        case=case,
        base_seconds=base.typical,
        now_seconds=now.typical,
        judgement=judgement,
        differs=math.nan if reasons else difference(now.result, base.result),
        check=now.check,
        reason="; ".join(reasons) or None,
    )
