"""Windows a minute of job=backfill: this checkout beside another commit and the least there is to do, in one run.

    python benchmarks/backfill.py --data FOLDER [--base HEAD] [--rounds 3] [--save]
    python benchmarks/backfill.py --short          # the shipped sample, a few windows: that it works

Each run backfills the same windows against one pinned reference into an empty folder, in a process of its own with one
thread; runs alternate, and the least time of each side counts. Counted is what windows take, from the reference loaded
to the last history written: reading, all metrics, comparisons with the window before and a year before. Processor time
is compared, for wall time is that of a machine others use too. Both sides' histories have to be the same to the byte.

The floor: a bare float32 matrix product for each set of pairs (window and reference, window and itself, window and
earlier ones) and one bare read of the vectors' column of every file that holds rows of the windows.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import base
import history

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "backfill.json"

_RUN = """
import contextlib, json, sys, time
import gpudrift.backfill as job
from gpudrift.__main__ import main
from gpudrift.report.terminal import Reporter

marks, seen = [], {}
def mark():
    marks.append((time.perf_counter(), time.process_time()))
obtain, progress = job.obtain_reference, Reporter.progress
def obtained(ctx):
    found = obtain(ctx)
    seen["ctx"], seen["rows"], seen["kept"] = ctx, found[1], len(found[0].kept)
    mark()
    return found
@contextlib.contextmanager
def watched(self, what, **named):
    with progress(self, what, **named) as advance:
        yield advance
    if what == "backfill":
        mark()
job.obtain_reference, Reporter.progress = obtained, watched
try:
    main()
except SystemExit as end:
    code = end.code
ctx, rows = seen["ctx"], seen["rows"]
windows = job.windows_of_range(ctx)
scored = [ctx.period.previous(windows[0]), *windows]
earlier = [[step(window) for step in (ctx.period.previous, ctx.period.year_before)] for window in scored]
every = list({window.label: window for part in [scored, *earlier] for window in part}.values())
count = dict(zip([window.label for window in every], ctx.source.count(every)))
products = []
for window, before in zip(scored, earlier):
    m = count[window.label]
    products += [(len(rows.sample), m), (m, m // 2), *((m, count[one.label]) for one in before)]
lines = open("/proc/self/status").read().splitlines()
print()
print(json.dumps({
    "code": code,
    "wall": marks[1][0] - marks[0][0],
    "processor": marks[1][1] - marks[0][1],
    "peak_mb": round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000),
    "windows": len(scored),
    "rows": [min(count[w.label] for w in scored), max(count[w.label] for w in scored)],
    "reference": {"rows": len(rows.centred), "windows": seen["kept"]},
    "work": {
        "products": [pair for pair in products if min(pair)],
        "dim": rows.centred.shape[1],
        "files": sorted(ctx.source.size(every)[0]),
        "column": ctx.job.source.embedding_column,
    },
}))
"""

_PIN = """
import json, sys
from gpudrift.__main__ import main
try:
    main()
except SystemExit as end:
    if end.code:
        sys.exit(f"job=reference ended with exit code {end.code}")
print(json.dumps({}))
"""

_FLOOR = """
import json, sys, time
import pyarrow.parquet as pq
import torch
work = json.loads(sys.argv[1])
largest = [max(pair[side] for pair in work["products"]) for side in (0, 1)]
x, y = (torch.randn(rows, work["dim"]) for rows in largest)
out = torch.empty(1024, largest[1])
def products():
    for n, m in work["products"]:
        for start in range(0, n, 1024):
            stop = min(start + 1024, n)
            torch.mm(x[start:stop], y[:m].T, out=out[: stop - start, :m])
def read():
    for file in work["files"]:
        pq.ParquetFile(file).read(columns=[work["column"]], use_threads=False)
def timed(do):
    began = time.process_time()
    do()
    return time.process_time() - began
torch.mm(x[:1024], y.T)
print(json.dumps({"products": timed(products), "read": timed(read)}))
"""


def child(code: str, words: list[str], tree: Path) -> dict[str, Any]:
    """Run code in a process of its own with one thread; what its last line says."""
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tree, env=os.environ | settings, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"in {tree}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def digest(output: Path) -> str:
    """Of all files of the history."""
    content = hashlib.sha256()
    for file in sorted(output.glob("history/**/*.parquet")):
        content.update(str(file.relative_to(output)).encode() + file.read_bytes())
    return content.hexdigest()


def settings_of(options: argparse.Namespace, folder: Path) -> list[str]:
    """The job's settings, but for its output."""
    quoted = f"source.uri='{options.data}'"
    id_column = [] if options.id_column is None else [f"source.id_column={options.id_column}"]
    first, last = options.reference
    return [
        "+experiment=weekly", quoted, *id_column, "device=cpu", f"reference.path='{folder}/pinned'",
        f"windows.reference.start={first}", f"windows.reference.end={last}", *options.set,
    ]  # fmt: skip


def measure(sides: dict[str, Path], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds of all sides: the least times, and whether the histories agree."""
    shared = settings_of(options, folder)
    child(_PIN, [*shared, "job=reference", f"output.dir='{folder}/reference'"], ROOT)
    first, last = options.range
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*sides, "floor")}
    histories = set()
    for turn in range(options.rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            output = folder / f"{name}-{turn}"
            words = [*shared, "job=backfill", f"backfill.start={first}", f"backfill.end={last}"]
            found[name].append(child(_RUN, [*words, f"output.dir='{output}'"], sides[name]))
            histories.add(digest(output))
        found["floor"].append(child(_FLOOR, [json.dumps(found["now"][-1]["work"])], ROOT))
    floor = {part: min(one[part] for one in found["floor"]) for part in ("products", "read")}
    some = found["now"][0]
    least = sum(floor.values())
    result: dict[str, Any] = {key: some[key] for key in ("windows", "rows", "reference")}
    result |= {"dim": some["work"]["dim"], "floor": floor, "identical": len(histories) == 1}
    for name in sides:
        processor, wall = (min(one[clock] for one in found[name]) for clock in ("processor", "wall"))
        result[name] = {
            "processor_seconds": processor,
            "wall_seconds": wall,
            "windows_a_minute": 60 * some["windows"] / processor,
            "x_floor": processor / least,
            "peak_mb": max(one["peak_mb"] for one in found[name]),
        }
    if "before" in sides:
        pairs = zip(found["before"], found["now"], strict=True)
        result["speedup"] = result["before"]["processor_seconds"] / result["now"]["processor_seconds"]
        result["speedup_by_round"] = [old["processor"] / new["processor"] for old, new in pairs]
    return result


def show(result: dict[str, Any]) -> None:
    rows, reference = result["rows"], result["reference"]
    print(
        f"{result['windows']} windows of {rows[0]} to {rows[1]} rows against {reference['rows']:,} of "
        f"{reference['windows']}, {result['dim']} dimensions\n"
        f"floor: products {result['floor']['products']:.2f} s, read {result['floor']['read']:.2f} s\n"
        f"{'':<8}{'processor s':>12}{'wall s':>8}{'windows/min':>13}{'x floor':>9}{'peak MB':>9}"
    )
    for name in ("before", "now"):
        if name in result:
            side = result[name]
            print(
                f"{name:<8}{side['processor_seconds']:>12.2f}{side['wall_seconds']:>8.2f}"
                f"{side['windows_a_minute']:>13.0f}{side['x_floor']:>9.2f}{side['peak_mb']:>9}"
            )
    if "speedup" in result:
        spread = ", ".join(f"{ratio:.2f}" for ratio in result["speedup_by_round"])
        print(f"{result['speedup']:.2f} times as fast as before (rounds: {spread})")
    print("histories are the same to the byte" if result["identical"] else "HISTORIES DIFFER")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="a Parquet data set, columns embedding and event_time")
    parser.add_argument("--id-column", help="of the data set")
    parser.add_argument("--reference", nargs=2, metavar="DAY", default=["2020-06-29", "2021-07-05"])
    parser.add_argument("--range", nargs=2, metavar="DAY", default=["2023-01-02", "2023-07-03"])
    parser.add_argument("--set", nargs="*", metavar="KEY=VALUE", default=[], help="further settings of the job")
    parser.add_argument("--base", metavar="REF", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a few windows of the shipped sample, one round")
    parser.add_argument("--save", action="store_true", help="keep the result")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(words)
    if options.short:
        options.data, options.id_column, options.rounds = str(ROOT / "gpudrift" / "sample" / "corpus"), "package", 1
        options.reference, options.range = ["2021-05-17", "2021-07-26"], ["2021-08-09", "2021-08-23"]
        options.set = ["metrics.directions=4", *options.set]
    if options.data is None or options.rounds < 1:
        parser.error("--data and at least one round are needed")
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    commit, dirty = history.commit_of(ROOT)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpudrift-backfill-")))
        sides, against = {"now": ROOT}, None
        if options.base is not None:
            tree, against = stack.enter_context(base.worktree(ROOT, options.base))
            sides = {"before": tree, **sides}
        result = measure(sides, options, folder)
    show(result)
    if options.save:
        said: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": history.cpu_model(),
            "commit": commit,
            "dirty": dirty,
            "base": against,
            "rounds": options.rounds,
            "threads": 1,
            "reference": options.reference,
            "range": options.range,
            "settings": options.set,
        }
        options.results.write_text(json.dumps({"run": said, "found": result}, indent=1) + "\n", encoding="utf-8")
        print(f"kept in {options.results}")
    return 0 if result["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
