"""Reading a corpus into one float32 tensor, against ``pyarrow.parquet.read_table`` of the same column and files.

    python -m benchmarks.read_parquet [--rows 1000000] [--repeats 5] [--threads 0]

Writes float16 vectors (zstd, byte stream split, page checksums) to a temporary folder, then times both in fresh
processes, one after the other in turn, from files the system has just written (its page cache is warm for both). What
the two do is not the same: ``read_table`` leaves float16 in Arrow's memory; ours checks page checksums, converts to
float32, puts every row in its window's place, looks for bad rows, and carries the ids.

Memory is the peak (VmHWM) of the process less what it held after the imports and less the tensor (the table's own bytes
for ``read_table``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = 8


def write_corpus(folder: Path, rows: int, dim: int, files: int, group_rows: int) -> None:
    """``rows`` unit vectors of float16 over eight weeks, the time running on from file to file."""
    rng = np.random.default_rng(0)
    step = timedelta(weeks=WEEKS) / rows // timedelta(microseconds=1)
    begin = int(START.timestamp()) * 1_000_000
    vectors = pa.list_(pa.float16(), dim)
    schema = pa.schema([("id", pa.string()), ("event_time", pa.timestamp("us", "UTC")), ("embedding", vectors)])
    for k, span in enumerate(np.array_split(np.arange(rows), files)):
        options = {"use_dictionary": False, "use_byte_stream_split": ["embedding.list.element"]}
        path = folder / f"part-{k}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, **options) as writer:
            for i in range(0, len(span), group_rows):
                part = span[i : i + group_rows]
                columns = [
                    pa.array([f"row-{n:09d}" for n in part]),
                    pa.array(begin + part * step, schema.field("event_time").type),
                    _unit_vectors(rng, len(part), dim),
                ]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)


def _unit_vectors(rng: np.random.Generator, rows: int, dim: int) -> pa.Array:
    flat = np.empty((rows, dim), dtype=np.float16)
    for i in range(0, rows, 8192):
        part = rng.standard_normal((min(8192, rows - i), dim), dtype=np.float32)
        flat[i : i + 8192] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), dim)


def measure(reader: str, folder: Path, threads: int) -> None:
    """One reading in this process; prints seconds, bytes of the result, and megabytes beyond it."""
    import torch  # noqa: F401  # both processes start from the same imports

    from gpudrift.source import open_source
    from gpudrift.windows import covering, parse_period

    before = _status("VmRSS")
    begin = time.perf_counter()
    if reader == "gpudrift":
        source = open_source(str(folder), id_column="id", threads=threads)
        cloud = source.read(covering(parse_period("week"), START, START + timedelta(weeks=WEEKS)))
        rows, size = len(cloud), cloud.embeddings.untyped_storage().nbytes()
    else:
        table = pq.read_table(sorted(folder.glob("*.parquet")), columns=["embedding"])
        rows, size = len(table), table.nbytes
    seconds = time.perf_counter() - begin
    extra = (_status("VmHWM") - before) / 1e6 - size / 1e6
    print(json.dumps({"seconds": seconds, "rows": rows, "bytes": size, "extra_mb": extra}))


def _status(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--group-rows", type=int, default=65_536, help="rows of a row group")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="source.threads")
    parser.add_argument("--keep", type=Path, help="write the files here, or use those already here")
    parser.add_argument("--measure", choices=("gpudrift", "read_table"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.keep, args.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("*.parquet")):
            write_corpus(folder, args.rows, args.dim, args.files, args.group_rows)
        size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
        results: dict[str, list[dict[str, float]]] = {"gpudrift": [], "read_table": []}
        for _ in range(args.repeats):
            for reader, taken in results.items():
                command = [sys.executable, "-m", "benchmarks.read_parquet", "--measure", reader, "--keep", str(folder)]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                taken.append(json.loads(done.stdout))
                assert taken[-1]["rows"] == results["gpudrift"][0]["rows"], "the readers disagree on the rows"
    rows = int(results["gpudrift"][0]["rows"])
    print(f"{rows:,} rows x {args.dim} float16, {size / 1e6:,.0f} MB on disk, {os.cpu_count()} cores")
    print(f"pyarrow {pa.__version__}, median of {args.repeats} [least, most]")
    for reader, taken in results.items():
        seconds = sorted(one["seconds"] for one in taken)
        median, extra = statistics.median(seconds), max(one["extra_mb"] for one in taken)
        print(
            f"{reader:>11}: {median:6.2f} s [{seconds[0]:.2f}, {seconds[-1]:.2f}]  {rows / median:>12,.0f} rows/s  "
            f"result {taken[0]['bytes'] / 1e6:,.0f} MB, at most {extra:,.0f} MB beyond it"
        )
    ours, raw = (statistics.median(one["seconds"] for one in taken) for taken in results.values())
    print(f"rate of gpudrift to read_table: {raw / ours:.2f}")


if __name__ == "__main__":
    main()
