"""Write a large corpus quickly and in bounded memory, for measuring what goes through one: 10,000,000 x 384 by default.

    python benchmarks/stream_corpus.py --keep FOLDER [--rows 10000000] [--weeks 8] [--drift 0.0]

float16 unit vectors (zstd, byte stream split, page checksums) with an ``id`` and an ``event_time`` that runs on from
file to file over some weeks. A pool of random vectors is repeated, and in every repetition a few random dimensions of
all its rows are drawn anew: no two rows are equal, and drawing them costs next to nothing. ``--drift`` moves the mean
of the last week by so much along one axis. The folder must be empty or not be there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

START = datetime(2026, 1, 5, tzinfo=UTC)
POOL = 16_384  # rows; a row group is one repetition of the pool
ANEW = 16  # dimensions drawn anew in each repetition


def repetitions(dim: int, seed: int) -> Iterator[NDArray[np.float16]]:
    """(POOL, dim) float16 vectors of length about 1, again and again, no two rows alike."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((POOL, dim), dtype=np.float32)
    pool = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)
    while True:
        for k in rng.choice(dim, min(ANEW, dim), replace=False):
            pool[:, k] = rng.standard_normal(POOL, dtype=np.float32) / np.sqrt(dim)
        yield pool


def write(folder: Path, rows: int, dim: int, files: int, weeks: int, drift: float, compression: str, seed: int) -> None:
    """The files; a row group of one of them is in memory at a time."""
    vectors = pa.list_(pa.float16(), dim)
    schema = pa.schema([("id", pa.string()), ("event_time", pa.timestamp("us", "UTC")), ("embedding", vectors)])
    step = timedelta(weeks=weeks) / rows // timedelta(microseconds=1)
    begin = int(START.timestamp()) * 1_000_000
    last_week = begin + (weeks - 1) * 7 * 86_400_000_000
    pool = repetitions(dim, seed)
    for k in range(files):
        options = {"use_dictionary": False, "use_byte_stream_split": ["embedding.list.element"]}
        path = folder / f"part-{k:03d}.parquet"
        with pq.ParquetWriter(path, schema, compression=compression, write_page_checksum=True, **options) as writer:
            first, end = rows * k // files, rows * (k + 1) // files
            for i in range(first, end, POOL):
                numbers = np.arange(i, min(i + POOL, end))
                block = next(pool)[: len(numbers)]
                micros = begin + numbers * step
                if drift and micros[-1] >= last_week:
                    block = block.copy()
                    block[micros >= last_week, 0] += np.float16(drift)
                columns = [
                    pc.binary_join_element_wise("row", pa.array(numbers).cast(pa.string()), "-"),
                    pa.array(micros, schema.field("event_time").type),
                    pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim),
                ]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=POOL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="folder to write to")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--weeks", type=int, default=8)
    parser.add_argument("--drift", type=float, default=0.0, help="of the last week's mean, in lengths of a vector")
    parser.add_argument("--compression", choices=("zstd", "snappy", "none"), default="zstd")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    if any(args.keep.iterdir()):
        parser.error(f"{args.keep} is not empty")
    begin = time.perf_counter()
    write(args.keep, args.rows, args.dim, args.files, args.weeks, args.drift, args.compression, args.seed)
    size = sum(path.stat().st_size for path in args.keep.glob("*.parquet"))
    print(f"{args.rows:,} rows x {args.dim} float16, {size / 1e9:.1f} GB, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
