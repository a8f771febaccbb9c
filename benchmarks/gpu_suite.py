"""The fused kernels on a CUDA machine, one command: are they right, how fast are they, what is still open.

    python benchmarks/gpu_suite.py                  checks, rates, open questions, a million rows: 8 minutes
    python benchmarks/gpu_suite.py --tune           measure schedules and rewrite gpudrift/kernels/schedules.json
    python benchmarks/gpu_suite.py --dry            on any machine: everything that can run without a GPU, tiny

It needs torch, Triton and numpy alone. Exit code 1 where a check fails or a part does not come through. Every part runs
in a process of its own (``gpu_part``), and under a clock: what does not fit is left out, and said first and last.
Results: gpu-<device>-<date>.jsonl, .md and .png in ``--out`` (default benchmarks/results; never there from a dry run).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "benchmarks")) if path not in sys.path]

import gpu_report as report  # noqa: E402 -- the path comes first: nothing needs to be installed
from gpu_child import Child  # noqa: E402
from gpu_goals import Clock, sources_digest  # noqa: E402

Record = dict[str, Any]
PARTS = ("checks", "rates", "probes", "million")
PRECISIONS = ("float16", "bfloat16", "tf32", "float32")
RESULTS = ROOT / "benchmarks" / "results"
# Parts of the time: until then the checks must be through, and the rates measured
_CHECKS, _RATES, _PROBES = 0.45, 0.80, 0.90
_RESTARTS = 3  # of the tuner, after a candidate that took the device down


class Suite:
    """Starts the parts, tells them when to run, and keeps what they find."""

    def __init__(self, options: argparse.Namespace, where: Record, clock: Clock) -> None:
        self.options, self.where, self.clock = options, where, clock
        self.digest = sources_digest()
        self.records: list[Record] = []
        self.unchecked: list[str] = []
        self.failing: set[str] = set()
        self.found: queue.Queue[Any] = queue.Queue()
        self.children: list[Child] = []
        options.out.mkdir(parents=True, exist_ok=True)
        self.path = options.out / f"{report.stem(where)}.jsonl"

    def keep(self, record: Record) -> None:
        """One finding: into the file at once, so that nothing is lost whatever comes."""
        if "skipped" in record:
            self.unchecked.append(f"{record['part']}: {record['skipped']}")
            print(f"not checked: {self.unchecked[-1]}", flush=True)
            return
        if report.failed(record):
            self.failing.add(str(record.get("variant", "")))
            print(f"FAILED {record['name']}: {record.get('wrong') or record.get('error')}"[:400], flush=True)
        record = report.stamped(report.withheld(record, self.failing), self.where, self.digest)
        self.records.append(record)
        report.lines(self.path, [record])

    def start(self, name: str, deadline: float) -> Child:
        child = Child(name, self.options, deadline, self.found)
        self.children.append(child)
        return child

    def until(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Take in what the parts say until something holds; False where the time is over first."""
        while not reached():
            try:
                child, record = self.found.get(timeout=max(deadline - self.clock.now(), 0.05))
            except queue.Empty:
                if self.clock.now() >= deadline:
                    return False
                continue
            if record is None:
                self._ended(child)
            elif "ready" in record:
                child.ready = True
                self.keep({"part": "time", "name": f"{child.name} ready", "seconds": round(self.clock.spent, 1)})
            elif "done" in record:
                child.done.add(record["done"])
                said = {"part": "time", "name": f"{child.name} {record['done']}", "seconds": record["seconds"]}
                self.keep(said)
            else:
                self.keep(record)
        return True

    def _ended(self, child: Child) -> None:
        child.dead = True
        code = child.process.wait()
        if code != 0 and not child.stopped and child.name != "tune":
            # A crash of a part is a failure; the open questions may crash, that is an answer
            part = "probes" if child.name == "probes" else "suite"
            self.keep({"part": part, "name": child.name, "error": f"its process ended with exit code {code}"})
            if child.name.startswith("checks"):
                self.failing.update(_variants(child.name.partition(" ")[2]))

    def turn(self, child: Child, do: str, deadline: float) -> bool:
        """Let one part do one thing, alone; what is not done by then (and a grace) is left out and the part ended."""
        if child.dead or not self.until(lambda: child.ready or child.dead, deadline) or child.dead:
            self.unchecked.append(f"{do}: the part {'ended' if child.dead else 'was not ready in time'}")
            return False
        child.tell(do, deadline)
        if not self.until(lambda: do in child.done or child.dead, deadline + 10):
            child.kill()
            self.unchecked.append(f"{do}: stopped, it did not end in time")
            return False
        return do in child.done

    def run(self, parts: Sequence[str]) -> None:
        """All parts get ready at the same time, which is compiling; then each has the device to itself."""
        clock, whole = self.clock, self.clock.deadline - self.clock.start
        at = {name: clock.start + share * whole for name, share in (("c", _CHECKS), ("r", _RATES), ("p", _PROBES))}
        checks = [self.start(f"checks {p}", at["c"]) for p in self.options.precisions] if "checks" in parts else []
        rates = self.start("rates", at["c"]) if {"rates", "million"} & set(parts) else None
        probes = self.start("probes", at["c"]) if "probes" in parts else None
        for child in checks:
            child.tell("checks", at["c"])
        if not self.until(lambda: all(child.dead or "checks" in child.done for child in checks), at["c"] + 15):
            for child in checks:
                if not child.dead and "checks" not in child.done:
                    child.kill()
                    self.unchecked.append(f"{child.name}: stopped, it did not end in time")
        for child in checks:
            child.close()
        if rates is not None and "rates" in parts:
            self.turn(rates, "rates", at["r"])
        if probes is not None:
            self.turn(probes, "probes", max(at["p"], min(clock.now() + 30, clock.deadline)))
            probes.close()
        if rates is not None and "million" in parts:
            self.turn(rates, "million", clock.deadline)

    def tune(self) -> None:
        (self.options.out / "tune.jsonl").unlink(missing_ok=True)
        for _ in range(1 + _RESTARTS):
            child = self.start("tune", self.clock.deadline)
            if self.turn(child, "tune", self.clock.deadline - 5):
                (self.options.out / "tune.jsonl").unlink(missing_ok=True)
                return
            if self.clock.left < 20:
                break
            print("the tuner's process ended; once more without the candidate that ended it", flush=True)
        self.keep({"part": "suite", "name": "tune", "error": "no table was written"})

    def finish(self) -> int:
        for child in self.children:
            child.close()
        left = self.options.out / self.path.stem
        title = f"{self.where['device']}, {self.where['date'][:10]}"
        if any("share" in record for record in self.records):
            why = report.picture(left.with_name(left.name + ".png"), self.records, title)
            self.unchecked += [why] if why else []
        text = report.markdown(self.where, self.records, self.unchecked, self.options.dry)
        self.path.with_name(left.name + ".md").write_text(text, encoding="utf-8")
        print(f"written: {self.path.parent / left.name}.jsonl, .md, .png")
        print(report.short(self.where, self.records, self.unchecked, self.clock.spent), flush=True)
        return 1 if any(report.failed(record) for record in self.records) else 0


def _variants(precision: str) -> set[str]:
    """Every variant of a precision whose checks did not come through."""
    return {f"{precision} {k} {s}" for k in ("cross", "self", "batch") for s in ("distance", "ladder", "labels")}


def expected_gaps(options: argparse.Namespace, parts: Sequence[str]) -> list[str]:
    """What this run will not check, as far as that is known before it starts."""
    gaps = [f"{part}: not asked for" for part in PARTS if part not in parts]
    gaps += [f"checks in {p}: not asked for" for p in PRECISIONS if p not in options.precisions]
    if options.dry:
        gaps.append("anything of a GPU: this is a dry run on the CPU")
    elif options.minutes < 6:
        gaps.append(
            f"{options.minutes:g} minutes are short for all of it: what does not fit is named as it is left out"
        )
    return gaps


def part(options: argparse.Namespace) -> int:
    """This process is one part."""
    import gpu_part

    if options.part == "specialisation":
        import gpu_probes

        gpu_probes.specialised()
        return 0
    where = gpu_part.setting(options.dry, gpu_part.answers(), options.workers)
    serve_part(options, where, Clock.until(options.deadline))
    return 0


def serve_part(options: argparse.Namespace, where: Any, clock: Clock) -> None:
    import gpu_part

    name, _, precision = options.part.partition(" ")

    def prepare() -> dict[str, Callable[[Clock], None]]:
        if name == "checks":
            import gpu_checks

            return {"checks": lambda clock: gpu_checks.run(precision, where, clock)}
        if name == "rates":
            import gpu_rates

            rates = gpu_rates.Rates(where, clock, (16,), 96) if where.dry else gpu_rates.Rates(where, clock)
            return {"rates": rates.run, "million": rates.million}
        if name == "probes":
            import gpu_probes

            return {"probes": gpu_probes.Probes(where, clock).run}
        import gpu_tune

        return {"tune": gpu_tune.Tuner(where, clock, options.out).run}

    gpu_part.serve(options.part, prepare, where)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; default 8")
    parser.add_argument(
        "--out", type=Path, help="where results go; default benchmarks/results, of a dry run a new folder"
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny: to see that all works")
    parser.add_argument("--tune", action="store_true", help="measure schedules and rewrite their table")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="to check")
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 4) // 2), help="compilers of a part")
    parser.add_argument("--commit", default="", help="what to call the code where the checkout has no git")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="gpu-suite-dry-")) if options.dry else RESULTS
    if options.dry and options.out.resolve() == RESULTS:
        parser.error("--out: a dry run does not write into benchmarks/results")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    if options.part:
        return part(options)
    clock = Clock(60 * options.minutes)
    if options.dry:
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401 -- the interpreter, where it is there

            os.environ["TRITON_INTERPRET"] = "1"
    else:
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device: nothing is checked. --dry shows that the suite itself works.", file=sys.stderr)
            return 2
    parts = ["tune"] if options.tune else options.parts
    where = report.environment(options.dry, options.commit)
    for gap in expected_gaps(options, parts) if not options.tune else []:
        print(f"WILL NOT BE CHECKED: {gap}", flush=True)
    print(json.dumps(where), flush=True)
    suite = Suite(options, where, clock)
    if not options.tune:
        suite.unchecked += expected_gaps(options, parts)
    try:
        suite.tune() if options.tune else suite.run(parts)
    except KeyboardInterrupt:
        suite.keep({"part": "suite", "name": "run", "error": "interrupted"})
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
