"""The streaming job over a folder of Parquet files: rows a second, time by stage, and memory that rows do not grow.

    python benchmarks/stream.py [--rows 1000000 250000] [--dim 384] [--files 20] [--threads 1] [--features 1024]
    python benchmarks/stream.py --inbox FOLDER [--inbox FOLDER ...]

Writes float16 vectors over eight weeks (as ``stream_corpus.py`` does; zstd, byte stream split, page checksums) and a
small reference before them, then runs ``job=stream`` on each folder in a fresh process. ``--inbox``: folders that are
there already (columns id, event_time, embedding; dates from 2026 on). Peak memory is VmHWM, the reference's rows and
all libraries included. The page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from stream_corpus import write

REFERENCE_WEEKS, REFERENCE_ROWS = 10, 1000  # a week

_CHILD = """
import json, os, resource, sys
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000
import torch
torch.set_num_threads(int(sys.argv.pop(1)))
import pyarrow.parquet, pyarrow.compute
imported = peak()
from gpudrift.__main__ import main
try:
    main()
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"code": end.code, "imported": imported, "peak": peak(), "processor": used.ru_utime + used.ru_stime}
    print("\\n" + json.dumps(found))
"""


def reference(folder: Path, dim: int) -> Path:
    """Ten weeks before 2026-01-05."""
    from gpudrift.generate import generate

    generate(
        folder, start=date(2025, 10, 20), weeks=REFERENCE_WEEKS, rows_per_week=REFERENCE_ROWS, dim=dim, clusters=10,
        spread=0.35, rows_per_user=1.0, dtype="float16", drift_week=0, mean_shift=0.0, spread_change=1.0,
        new_cluster=0.0, reweight=0.0, seed=0, overwrite=False,
    )  # fmt: skip
    return folder


def measure(source: Path, inbox: Path, output: Path, threads: int, features: int) -> dict[str, Any]:
    """Run the job in a process of its own."""
    arguments = [
        "+experiment=stream", f"source.uri='{source}'", f"stream.inbox='{inbox}'", f"output.dir='{output}'",
        f"windows.reference.count={REFERENCE_WEEKS - 1}", "source.id_column=id", "device=cpu", "precision=float32",
        "source.encoder_id=any", "stream.settle_seconds=0", f"stream.features={features}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(threads), *arguments], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    status = json.loads((output / "stream.json").read_text(encoding="utf-8"))
    run: dict[str, Any] = status["this_run"]
    return {**found, **run, "counts": status["counts"]}


def show(inbox: Path, found: dict[str, Any]) -> None:
    rows, seconds = found["rows"], found["seconds"]
    size = sum(path.stat().st_size for path in inbox.rglob("*.parquet"))
    print(f"{rows:,} rows in {found['counts']['files']} files, {size / 1e6:,.0f} MB: {seconds:.1f} s wall, "
          f"{found['processor']:.1f} s processor, {rows / seconds:,.0f} rows/s; peak {found['peak']:,.0f} MB "
          f"({found['imported']:,.0f} MB of it after the imports)")  # fmt: skip
    for name, wall in sorted(found["stages_wall"].items(), key=lambda item: -item[1]):
        print(
            f"  {name:<12}{wall:9.1f} s wall {found['stages_processor'][name]:9.1f} s processor {wall / seconds:7.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 250_000])
    parser.add_argument("--inbox", type=Path, action="append", default=[])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        source = reference(Path(base) / "reference", options.dim)
        for rows in [] if options.inbox else options.rows:
            folder = Path(base) / f"inbox-{rows}"
            folder.mkdir()
            write(folder, rows, options.dim, options.files, 8, 0.0, "zstd", 0)
            options.inbox.append(folder)
        for k, inbox in enumerate(options.inbox):
            show(inbox, measure(source, inbox, Path(base) / f"out-{k}", options.threads, options.features))


if __name__ == "__main__":
    main()
