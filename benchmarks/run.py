"""gpudrift on the CPU against the bare matrix product, other packages, and its own past; each in processes of its own.

    python benchmarks/run.py                        # every case as a share of the floor
    python benchmarks/run.py --save --plot          # ... kept in results/cpu.jsonl, and drawn over commits
    python benchmarks/run.py --base origin/main     # against another commit; exit code 1 where a case is slower
    python benchmarks/run.py --peers                # against torch.cdist, geomloss, KeOps, ... (minutes; installs them)
    python benchmarks/run.py --short                # seconds, tiny: that all works, no figure to quote

The floor is torch.mm of the same pairs (cases.py); seconds are processor time with one thread, wall time with more
(keep the machine quiet then); ratios are medians of the rounds' own. Every contestant is first checked on a corner of
the case against the dense float64 definition. Exit code 1: slower than the base, or a result that does not agree.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import base
import cases
import history
import peers
from cases import Case
from rounds import WORKER, Contestant, Lost, Times, measure, paired

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
_PEER_HEAD = f"{'':<14}{'seconds':>10}{'runs':>6}{'x floor':>9}{'x ours':>8}{'value':>13}{'off by':>9}{'corner':>9}"
AGREE = 1e-3  # relative difference of a result from the definition, or from ours, that is still the same figure


def hashes(selected: Sequence[Case]) -> dict[str, str]:
    """Case name -> hash, over the code that runs it on the CPU."""
    return {case.name: cases.case_hash(case, [WORKER.read_text()]) for case in selected}


def against_floor(selected: Sequence[Case], options: argparse.Namespace) -> int:
    """Time every case beside its floor; save and draw where asked."""
    wrong, records = [], []
    commit, dirty = history.commit_of(ROOT)
    current = hashes(selected)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, root in (("floor", None), ("gpudrift", ROOT)):
            worker = Contestant(name, python=sys.executable, threads=options.threads, root=root)
            workers[name] = stack.enter_context(worker)
        torch_version = workers["floor"].hello["torch"]
        print(f"torch {torch_version}, {options.threads} thread(s), {history.cpu_model()}, {options.rounds} rounds")
        print(f"{'case':<34}{'seconds':>10}{'x floor':>9}{'share':>7}{'GFLOP/s':>9}{'check':>9}")
        for case in selected:
            found = measure(case, workers, options.rounds, options.threads)
            floor, ours = found["floor"], found["gpudrift"]
            if ours.reason is not None or floor.reason is not None:
                print(f"{case.name:<34}  {ours.reason or floor.reason}")
                wrong.append(case.name)
                continue
            ratio = median(paired(ours, floor))
            rate = case.flop / ours.typical / 1e9
            agrees = ours.check < AGREE
            print(
                f"{case.name:<34}{ours.typical:>10.4f}{ratio:>9.2f}{1 / ratio:>7.2f}{rate:>9.1f}{ours.check:>9.0e}"
                + ("" if agrees else "  DOES NOT AGREE with the definition"),
                flush=True,
            )
            if not agrees:
                wrong.append(case.name)
                continue
            records.append(
                history.Record(
                    case=case.name,
                    hash=current[case.name],
                    commit=commit,
                    dirty=dirty,
                    ratio=ratio,
                    seconds=ours.typical,
                    floor_seconds=floor.typical,
                    gflops=rate,
                    rounds=ours.runs,
                    clock="processor" if options.threads == 1 else "wall",
                    threads=options.threads,
                    cpu=history.cpu_model(),
                    torch=torch_version,
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
    if options.save:
        history.append(options.results, records)
        print(f"{len(records)} results appended to {options.results}")
    return 1 if wrong else 0


def against_base(selected: Sequence[Case], options: argparse.Namespace) -> int:
    """Compare with another commit; 1 where a case is slower, its result differs, or nothing could be compared."""
    with base.worktree(ROOT, options.base) as (tree, commit):
        print(f"base {options.base} = {commit[:12]} in {tree}", flush=True)
        blocks = 1 if options.short else 3
        compared = base.compare(selected, tree, ROOT, options.rounds, options.threads, blocks, not options.short)
    bad = 0
    print(f"{'case':<34}{'base s':>9}{'now s':>9}{'now/base':>10}{'99% interval':>16}{'noise':>7}")
    for c in compared:
        if c.judgement is None:
            print(f"{c.case.name:<34}  not there ({c.reason})")
            continue
        j = c.judgement
        verdict = "slower" if j.slower else "faster" if j.faster else ""
        if c.differs > base.AGREE or c.check > AGREE:
            verdict = f"RESULT DIFFERS by {c.differs:.0e} from the base's, {c.check:.0e} from the definition"
        # tiny cases have no timing worth a verdict
        bad += verdict.startswith("RESULT") or (verdict == "slower" and not options.short)
        print(
            f"{c.case.name:<34}{c.base_seconds:>9.4f}{c.now_seconds:>9.4f}{j.change:>10.3f}"
            f"{f'{j.low:.3f} .. {j.high:.3f}':>16}{j.noise:>7.1%}  {verdict}"
        )
    if all(c.judgement is None for c in compared):
        print("nothing to compare")
        return 1
    return 1 if bad else 0


def against_peers(selected: Sequence[Case], options: argparse.Namespace) -> int:
    """Time scores beside the floor and every peer of the same family; their results under the peers' conventions."""
    environment = peers.environment(options.peers_env) if options.short else peers.build(options.peers_env)
    settings = {"KEOPS_CACHE_FOLDER": str(options.peers_env / "keops"), "KEOPS_VERBOSE": "0", "TQDM_DISABLE": "1"}
    workers: dict[str, Contestant] = {}
    wrong = 0
    try:
        for case in selected:
            invited = {name: peer for name, peer in peers.PEERS.items() if peer.family == peers.family(case)}
            found: dict[str, Times] = {}
            for name in ("floor", "gpudrift", *invited):
                package = invited[name].package if name in invited else None
                reason = environment.reason(package) if package is not None else None
                if reason is None and name not in workers:
                    python = environment.python if package is not None and environment.python else sys.executable
                    root = ROOT if name == "gpudrift" else None
                    try:
                        workers[name] = Contestant(
                            name, python=python, threads=options.threads, root=root, settings=settings
                        )
                    except Lost as lost:
                        reason = str(lost)
                found[name] = Times(reason=reason)
            taking_part = {name: workers[name] for name, times in found.items() if times.reason is None}
            found |= measure(case, taking_part, options.rounds, options.threads, options.budget)
            if found["floor"].reason is not None:
                raise SystemExit(f"the floor cannot be measured: {found['floor'].reason}")
            print(f"\n{case.name}: two bare products of that size, {found['floor'].typical:.3f} s\n{_PEER_HEAD}")
            for name in ("gpudrift", *invited):
                wrong += _peer_row(case, name, invited.get(name), found, workers)
            for name, times in found.items():
                if times.reason is not None and name in workers:
                    workers.pop(name).close()  # a fresh one takes part in the next case
    finally:
        for worker in workers.values():
            worker.close()
    return 1 if wrong else 0


def _peer_row(
    case: Case, name: str, peer: peers.Peer | None, found: dict[str, Times], workers: dict[str, Contestant]
) -> bool:
    """Print a contestant's row; whether its result disagrees with ours."""
    times = found[name]
    if times.reason is not None:
        print(f"{name:<14}  not run: {times.reason}")
        return peer is None
    sigmas = case.sigmas()
    convention = peer.convention if peer is not None else ("MMD2_U" if sigmas else "E_U")
    sigma = times.sigma if peer is not None else (sigmas[0] if sigmas else None)
    exact = workers["gpudrift"].ask("value", case, convention=convention, sigma=sigma)["value"]
    off = abs(times.result[0] - exact) / abs(exact)
    by_floor = median(paired(times, found["floor"]))
    against_ours = paired(times, found["gpudrift"]) if found["gpudrift"].reason is None else []
    by_ours = median(against_ours) if against_ours else math.nan
    note = peer.note if peer is not None else _ours(case)
    agrees = off < AGREE and times.check < AGREE
    print(
        f"{name:<14}{times.typical:>10.3f}{times.runs:>6}{by_floor:>9.2f}{by_ours:>8.2f}{times.result[0]:>13.6g}"
        f"{off:>9.0e}{times.check:>9.0e}  {convention}, {note}{'' if agrees else '  DOES NOT AGREE'}",
        flush=True,
    )
    return not agrees


def _ours(case: Case) -> str:
    if case.permutations:
        return f"float32, {case.permutations} permutations"
    return "float32, with standard error and witness values"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--base", metavar="REF", help="compare with this commit")
    what.add_argument("--peers", action="store_true", help="compare with other packages")
    parser.add_argument("--short", action="store_true", help="tiny cases; nothing is installed and no timing fails")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds TEXT")
    parser.add_argument("--rounds", type=int, help="default 15, with --peers 5, with --short 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 5000], help="of the scores, with --peers")
    parser.add_argument("--dim", type=int, default=384, help="of the scores, with --peers")
    parser.add_argument("--budget", type=float, default=20, help="seconds for a peer's further runs of a case")
    parser.add_argument("--peers-env", type=Path, default=ROOT / ".venv-peers", metavar="FOLDER")
    parser.add_argument("--save", action="store_true", help="append to the results file")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--plot", type=Path, nargs="?", const=RESULTS.with_suffix(".png"), metavar="PNG")
    options = parser.parse_args(words)
    if options.rounds is None:
        options.rounds = 2 if options.short else 5 if options.peers else 15
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} is below 1")
    if options.save and (options.base or options.peers):
        parser.error("--save keeps ratios to the floor: leave --base and --peers out")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not eat the others' processor time
    if options.peers:
        rows, dim = ([150], 8) if options.short else (options.rows, options.dim)
        known = [case for n in rows for case in cases.scores(n, dim, 5 if options.short else 100)]
    else:
        known = cases.short() if options.short else cases.tracked()
    selected = [case for case in known if options.only in case.name]
    if not selected:
        raise SystemExit(f"--only {options.only}: none of {[case.name for case in known]}")
    run = against_peers if options.peers else against_base if options.base else against_floor
    code = run(selected, options)
    if options.plot is not None:
        records = history.comparable(history.read(options.results), hashes(known))
        history.plot(records, options.plot)
        print(f"drawn: {options.plot}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
