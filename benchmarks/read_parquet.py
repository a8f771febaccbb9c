"""Reading a corpus, against every way pyarrow has of reading the same column of the same files.

    python -m benchmarks.read_parquet [--rows 1000000] [--repeats 5] [--threads 0]
    python -m benchmarks.read_parquet --element float32 --layout list --compression snappy --written-as pandas

Writes unit vectors to a temporary folder, then runs each reader in turn in fresh processes, round after round, on files
the system has just written (its page cache is warm for all). The readers of pyarrow alone convert and check nothing,
and most only drain their batches; those in ``KEEPING`` have the rows at the end. ``read`` and ``scan`` are gpudrift's:
they check page checksums, convert to float32 and look for bad rows, and ``read`` puts every row in its place in
one tensor. ``read, ids`` also carries an id column of text. ``read, unchecked`` is ``read`` without checksums, to tell
their price; no setting of gpudrift switches them off.

The machine may be shared: beside the median of the wall seconds stands the least of the processor seconds (of all
threads), which others on the machine move least. Memory is the peak (VmHWM) of the process less what it held after the
imports and less the result.
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
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = 8


def write_corpus(folder: Path, args: argparse.Namespace) -> None:
    """Unit vectors over eight weeks, the time running on from file to file."""
    rng = np.random.default_rng(0)
    step = timedelta(weeks=WEEKS) / args.rows // timedelta(microseconds=1)
    begin = int(START.timestamp()) * 1_000_000
    element = pa.float16() if args.element == "float16" else pa.float32()
    vectors = pa.list_(element, args.dim) if args.layout == "fixed_size_list" else pa.list_(element)
    schema = pa.schema([("id", pa.string()), ("event_time", pa.timestamp("us", "UTC")), ("embedding", vectors)])
    options: dict[str, Any] = {"compression": args.compression}
    if args.written_as == "tuned":
        options |= {"use_dictionary": False, "use_byte_stream_split": ["embedding.list.element"]}
        options |= {"write_page_checksum": True}
    for k, span in enumerate(np.array_split(np.arange(args.rows), args.files)):
        with pq.ParquetWriter(folder / f"part-{k}.parquet", schema, **options) as writer:
            for i in range(0, len(span), args.group_rows):
                part = span[i : i + args.group_rows]
                columns = [
                    pa.array([f"row-{n:09d}" for n in part]),
                    pa.array(begin + part * step, schema.field("event_time").type),
                    _unit_vectors(rng, len(part), args.dim, vectors),
                ]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=args.group_rows)


def _unit_vectors(rng: np.random.Generator, rows: int, dim: int, kind: Any) -> pa.Array:
    flat = np.empty((rows, dim), dtype=kind.value_type.to_pandas_dtype())
    for i in range(0, rows, 8192):
        part = rng.standard_normal((min(8192, rows - i), dim), dtype=np.float32)
        flat[i : i + 8192] = part / np.linalg.norm(part, axis=1, keepdims=True)
    values = pa.array(flat.reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, dim)
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * dim), values)


# --- readers: paths and threads to the number of rows and the bytes of what is kept


def read_table(paths: list[str], threads: int, **options: Any) -> tuple[int, int]:
    pa.set_cpu_count(threads)
    table = pq.read_table(paths, columns=["embedding"], **options)
    return len(table), table.nbytes


def iter_batches(paths: list[str], threads: int, *, batch: int, keep: bool = False, **options: Any) -> tuple[int, int]:
    """A thread a file, and where there are fewer files than threads, a thread a run of row groups."""
    pieces = []
    for path in paths:
        groups = range(pq.read_metadata(path).num_row_groups)
        cuts = -(-threads // len(paths))
        pieces += [(path, [int(g) for g in part]) for part in np.array_split(groups, cuts) if len(part)]

    kept: list[Any] = []

    def drain(piece: tuple[str, list[int]]) -> int:
        with pq.ParquetFile(piece[0], **options) as file:
            batches = file.iter_batches(batch, row_groups=piece[1], columns=["embedding"], use_threads=False)
            rows = 0
            for one in batches:
                rows += one.num_rows
                if keep:
                    kept.append(one)
            return rows

    with ThreadPoolExecutor(threads) as pool:
        rows = sum(pool.map(drain, pieces))
    return rows, sum(one.nbytes for one in kept)


def dataset(paths: list[str], threads: int, **options: Any) -> tuple[int, int]:
    pa.set_cpu_count(threads)
    batches: Iterable[Any] = ds.dataset(paths, format="parquet").to_batches(columns=["embedding"], **options)
    return sum(one.num_rows for one in batches), 0


def gpudrift(paths: list[str], threads: int, *, how: str) -> tuple[int, int]:
    from gpudrift.source import open_source
    from gpudrift.windows import covering, parse_period

    if how == "read, unchecked":
        _without_checksums()
    source = open_source(str(Path(paths[0]).parent), id_column="id" if how == "read, ids" else None, threads=threads)
    windows = covering(parse_period("week"), START, START + timedelta(weeks=WEEKS))
    if how == "scan":
        return sum(len(batch.rows) for batch in source.scan(windows)), 0
    cloud = source.read(windows)
    return len(cloud), cloud.embeddings.untyped_storage().nbytes()


def _without_checksums() -> None:
    whole = pq.ParquetFile

    def unchecked(*args: Any, **options: Any) -> Any:
        return whole(*args, **(options | {"page_checksum_verification": False}))

    pq.ParquetFile = unchecked


OURS: dict[str, Callable[..., tuple[int, int]]] = {
    how: partial(gpudrift, how=how) for how in ("read", "read, ids", "read, unchecked", "scan")
}
RAW: dict[str, Callable[..., tuple[int, int]]] = {
    "read_table": read_table,
    "read_table, mapped": partial(read_table, memory_map=True),
    "iter_batches": partial(iter_batches, batch=65_536),
    "iter_batches, pre-buffered": partial(iter_batches, batch=65_536, pre_buffer=True),
    "iter_batches, mapped": partial(iter_batches, batch=65_536, memory_map=True),
    "iter_batches, small": partial(iter_batches, batch=2_048, buffer_size=1 << 20),
    "iter_batches, small, kept": partial(iter_batches, batch=2_048, buffer_size=1 << 20, keep=True),
    "iter_batches, small, pre-buffered": partial(iter_batches, batch=2_048, pre_buffer=True),
    "dataset": dataset,
    "dataset, small": partial(dataset, batch_size=2_048),
    "dataset, no pre-buffer": partial(
        dataset, fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    ),
}


KEEPING = ("read_table", "read_table, mapped", "iter_batches, small, kept")  # of those, who have the rows at the end


def measure(reader: str, folder: Path, threads: int) -> None:
    """One reading in this process; prints seconds, rows, bytes of the result, and megabytes beyond it."""
    import torch  # noqa: F401  # all processes start from the same imports

    import gpudrift.source  # noqa: F401

    paths = sorted(map(str, folder.glob("*.parquet")))
    before = _status("VmRSS")
    begin, processor = time.perf_counter(), time.process_time()
    rows, size = (OURS | RAW)[reader](paths, threads)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    extra = (_status("VmHWM") - before) / 1e6 - size / 1e6
    print(json.dumps({"seconds": seconds, "processor": processor, "rows": rows, "bytes": size, "extra_mb": extra}))


def _status(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def run(folder: Path, readers: list[str], repeats: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """``repeats`` rounds of all readers, each in a process of its own."""
    results: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    for _ in range(repeats):
        for reader, taken in results.items():
            command = [sys.executable, "-m", "benchmarks.read_parquet", "--measure", reader, "--keep", str(folder)]
            done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
            taken.append(json.loads(done.stdout))
            if taken[-1]["rows"] != results[readers[0]][0]["rows"]:
                raise RuntimeError(f"{reader} read another number of rows")
    return results


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """A line a reader, then ours against the fastest of pyarrow's own, by wall and by processor time."""
    taken = {
        reader: {
            "seconds": statistics.median(one["seconds"] for one in runs),
            "processor": min(one["processor"] for one in runs),
        }
        for reader, runs in results.items()
    }
    print(f"{'':>34}  wall s [least, most]   processor s     rows/s  MB beyond the result")
    for reader, runs in results.items():
        wall = [one["seconds"] for one in runs]
        line = f"{reader:>34}: {taken[reader]['seconds']:6.2f} [{min(wall):5.2f}, {max(wall):5.2f}]"
        line += f"  {taken[reader]['processor']:11.2f}  {runs[0]['rows'] / taken[reader]['seconds']:9,.0f}"
        print(line + f"  {max(one['extra_mb'] for one in runs):9,.0f}")
    for what, readers in {"": list(RAW), " that keeps what it reads": list(KEEPING)}.items():
        raw = [reader for reader in readers if reader in results]
        for key in ("seconds", "processor") if raw else ():
            fastest = min(raw, key=lambda reader: taken[reader][key])
            shares = [f"{one} {taken[fastest][key] / taken[one][key]:.2f}" for one in OURS if one in results]
            unit = "wall" if key == "seconds" else "processor"
            print(f"rate by {unit} time to pyarrow's fastest{what} ({fastest}): {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--group-rows", type=int, default=65_536, help="rows of a row group")
    parser.add_argument("--element", choices=("float16", "float32"), default="float16")
    parser.add_argument("--layout", choices=("fixed_size_list", "list"), default="fixed_size_list")
    parser.add_argument("--compression", choices=("zstd", "snappy", "none"), default="zstd")
    parser.add_argument(
        "--written-as",
        choices=("tuned", "pandas"),
        default="tuned",
        help="tuned: byte stream split, no dictionary, page checksums; pandas: what pyarrow writes unless told",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of every reader; 0: one a core, at most 8")
    parser.add_argument("--readers", nargs="+", choices=[*OURS, *RAW], default=[*OURS, *RAW], metavar="READER")
    parser.add_argument("--keep", type=Path, help="write the files here, or use those already here")
    parser.add_argument("--measure", choices=[*OURS, *RAW], help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = args.threads or min(8, os.cpu_count() or 1)
    if args.measure:
        measure(args.measure, args.keep, threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("*.parquet")):
            write_corpus(folder, args)
        paths = sorted(folder.glob("*.parquet"))
        kind = pq.read_schema(paths[0]).field("embedding").type
        chunk = pq.read_metadata(paths[0]).row_group(0).column(2)
        size = sum(path.stat().st_size for path in paths)
        results = run(folder, args.readers, args.repeats, threads)
    rows = int(results[args.readers[0]][0]["rows"])
    print(f"{rows:,} rows of {kind}, {chunk.compression}, {', '.join(chunk.encodings)}: {size / 1e6:,.0f} MB on disk")
    print(f"pyarrow {pa.__version__}, {os.cpu_count()} cores, {threads} threads, {args.repeats} rounds:")
    print("median of the wall seconds, least of the processor seconds, most memory")
    report(results)


if __name__ == "__main__":
    main()
