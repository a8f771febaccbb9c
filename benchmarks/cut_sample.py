"""Cut the corpus that ships in gpudrift/sample out of the data set it comes from, and measure what is in it.

    python benchmarks/cut_sample.py SOURCE OUTCOMES.csv   # write gpudrift/sample/corpus and outcomes.csv
    python benchmarks/cut_sample.py --measure             # the table of docs/sample.md, from what is in the package

SOURCE: a directory of Parquet files with package, event_time, family and embedding (fixed_size_list<float16>[384]).
Every row of a chosen week is taken, so the same input gives the same files. ``--measure`` follows the definitions with
dense float64 NumPy and none of gpudrift's own numerics, as an independent account of what the shipped verdicts should
be: energy distance (U-statistic) of each week against the reference, A/A null by leaving one reference week out.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpudrift import sample

ENCODER_ID = "all-MiniLM-L6-v2"
COLUMNS = ("package", "event_time", "family", "embedding")

# Twelve quiet weeks in a row (the tool's default reference), the three that follow, the same two weeks of July in the
# years after, and the end of the data: two whole weeks of October 2026 and the six days of a third.
REFERENCE = [f"2021-W{week}" for week in range(20, 32)]
LATER = [
    *(f"2021-W{week}" for week in range(32, 35)),
    *(f"{year}-W{week}" for year in (2022, 2023, 2024, 2025) for week in (28, 29)),
    *(f"2026-W{week}" for week in (42, 43, 44)),
]

Array = NDArray[np.float64]


def monday(label: str) -> date:
    """The first day of an ISO week such as ``2021-W20``."""
    return datetime.strptime(f"{label}-1", "%G-W%V-%u").replace(tzinfo=UTC).date()


def cut(source: Path, outcomes: Path, output: Path) -> None:
    data = ds.dataset(source, partitioning="hive")
    weeks = []
    for label in REFERENCE + LATER:
        start = datetime.combine(monday(label), datetime.min.time(), UTC)
        inside = (ds.field("event_time") >= start) & (ds.field("event_time") < start + timedelta(days=7))
        weeks.append(data.to_table(columns=list(COLUMNS), filter=inside))
    table = pa.concat_tables(weeks).sort_by([("event_time", "ascending"), ("package", "ascending")])
    table = table.replace_schema_metadata({"encoder_id": ENCODER_ID})
    years = pc.year(table["event_time"])
    for year in sorted(pc.unique(years).to_pylist()):
        file = output / "corpus" / f"year={year}" / "part-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.filter(pc.equal(years, year)).combine_chunks(),
            file,
            compression="zstd",
            compression_level=19,
            use_dictionary=["family"],
            column_encoding={
                "package": "DELTA_BYTE_ARRAY",
                "event_time": "DELTA_BINARY_PACKED",
                "embedding.list.element": "BYTE_STREAM_SPLIT",
            },
            data_page_size=8 << 20,  # one page a column: 2% smaller
            write_statistics=["event_time"],
            write_page_checksum=True,
        )
    wanted = {monday(label).isoformat() for label in REFERENCE + LATER}
    with outcomes.open(newline="", encoding="utf-8") as lines:
        kept = [row for i, row in enumerate(csv.reader(lines)) if i == 0 or row[0] in wanted]
    with (output / "outcomes.csv").open("w", newline="", encoding="utf-8") as target:
        csv.writer(target, lineterminator="\n").writerows(kept)


def distances(x: Array, y: Array) -> Array:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * x @ y.T
    result: Array = np.sqrt(np.maximum(squared, 0))
    if x is y:
        np.fill_diagonal(result, 0.0)  # rounding leaves 1e-8 there
    return result


@dataclass(frozen=True)
class Null:
    """The A/A null of the weeks kept: leave-one-week-out scores, u = log(max(score, 0) + c), and c."""

    kept: list[int]
    scores: Array
    u: Array
    c: float


def energy_null_sd(rows: Array, n: int, m: int) -> float:
    """c: null standard deviation of the energy U-statistic at n and m rows, from the (N, N) distances of the reference
    (unbiased moments of the doubly centred kernel)."""
    count = len(rows)
    r = rows.sum(1)
    total, f, rr = r.sum(), (rows * rows).sum(), r @ r
    a2 = f / (count * (count - 1))
    a1 = (rr - f) / (count * (count - 1) * (count - 2))
    a0 = (total**2 - 4 * rr + 2 * f) / (count * (count - 1) * (count - 2) * (count - 3))
    return float(np.sqrt((2 / (n * (n - 1)) + 2 / (m * (m - 1)) + 4 / (n * m)) * (a2 - 2 * a1 + a0)))


def null_of(kept: list[int], sums: Array, sizes: NDArray[np.int64], blocks: Array, of_row: NDArray[np.int64]) -> Null:
    """sums: (K, K) sums of distances between the reference weeks; blocks: (N, N) all distances; of_row: (N,) weeks."""
    scores = np.array([score(sums, sizes, [j for j in kept if j != k], k) for k in kept])
    inside = np.isin(of_row, kept)
    smallest = int(sizes[kept].min())
    c = energy_null_sd(blocks[np.ix_(inside, inside)], int(sizes[kept].sum()) - smallest, smallest)
    return Null(kept, scores, np.log(np.maximum(scores, 0) + c), c)


def score(sums: Array, sizes: NDArray[np.int64], reference: list[int], k: int) -> float:
    """Energy distance, U-statistic, of week k against the pooled weeks ``reference``."""
    n, m = int(sizes[reference].sum()), int(sizes[k])
    between, within = sums[reference, k].sum(), sums[np.ix_(reference, reference)].sum()
    return float(2 * between / (n * m) - within / (n * (n - 1)) - sums[k, k] / (m * (m - 1)))


def measure(corpus: Path) -> None:
    from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types

    weeks = REFERENCE + LATER
    x, of_row = read(corpus, weeks)
    count = len(REFERENCE)
    sizes = np.bincount(of_row, minlength=len(weeks))
    parts = [x[of_row == k] for k in range(len(weeks))]
    reference = np.concatenate(parts[:count])
    rows = np.repeat(np.arange(count), sizes[:count])
    blocks = distances(reference, reference)
    starts = np.append(0, np.cumsum(sizes[:count])[:-1])
    sums = np.zeros((len(weeks), len(weeks)))
    sums[:count, :count] = np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1)

    null, dropped = null_of(list(range(count)), sums, sizes, blocks, rows), []
    while True:  # reference hygiene
        middle = np.median(null.u)
        out = null.u > middle + 4 * max(1.4826 * float(np.median(np.abs(null.u - middle))), 0.5)
        if not out.any():
            break
        dropped += [weeks[k] for k, leaves in zip(null.kept, out, strict=True) if leaves]
        null = null_of([k for k, leaves in zip(null.kept, out, strict=True) if not leaves], sums, sizes, blocks, rows)
    width = max(float(null.u.std(ddof=1)), 0.5) * np.sqrt(1 + 1 / len(null.kept))
    dof, middle = len(null.kept) - 1, null.u.mean()
    delta = float(np.exp(middle + width * stats.t.isf(0.01, dof)) - null.c)
    lag = float(((null.u[1:] - middle) * (null.u[:-1] - middle)).sum() / ((null.u - middle) ** 2).sum())
    print(
        f"reference {weeks[0]} to {weeks[count - 1]}, dropped by hygiene: {', '.join(dropped) or 'none'}; "
        f"c {null.c:.5f}, Delta {delta:.5f}, lag-1 autocorrelation {lag:.2f}\n"
    )
    print("| week | rows | score | SE | p_AA | p_close |\n| --- | --- | --- | --- | --- | --- |")
    cloud, n = reference[np.isin(rows, null.kept)], int(sizes[null.kept].sum())
    mean_xx = blocks[np.ix_(np.isin(rows, null.kept), np.isin(rows, null.kept))].sum(1) / (n - 1)
    for k, label in enumerate(weeks):
        if k < count:
            found = null.scores[null.kept.index(k)] if k in null.kept else float("nan")
            print(f"| {label} (reference) | {sizes[k]} | {found:.5f} | | | |")
            continue
        xy, yy, m = distances(cloud, parts[k]), distances(parts[k], parts[k]), int(sizes[k])
        # Influence values with k = -distance: mean a + mean b is the score, their variances give its error.
        a, b = xy.mean(1) - mean_xx, xy.mean(0) - yy.sum(1) / (m - 1)
        found = float(a.mean() + b.mean())
        error = float(np.sqrt(4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m))
        p_aa = stats.t.sf((np.log(max(found, 0) + null.c) - middle) / width, dof)
        p_close = stats.norm.sf((found - delta) / error)
        print(f"| {label} | {m} | {found:.5f} | {error:.5f} | {p_aa:.4f} | {p_close:.3f} |")


def read(corpus: Path, weeks: list[str]) -> tuple[Array, NDArray[np.int64]]:
    """Rows as (n, d) float64 and the week each belongs to, in the order of ``weeks``."""
    table = ds.dataset(corpus, partitioning="hive").to_table(columns=["event_time", "embedding"])
    column = table["embedding"].combine_chunks()
    x = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float64)
    days = table["event_time"].to_numpy().astype("datetime64[D]").astype(np.int64)
    firsts = {(monday(label) - date(1970, 1, 1)).days: k for k, label in enumerate(weeks)}
    of_row = np.array([firsts[int(day - (day + 3) % 7)] for day in days])  # 1970-01-01 was a Thursday
    order = np.argsort(of_row, kind="stable")
    return x[order], of_row[order]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="directory of Parquet files")
    parser.add_argument("outcomes", type=Path, nargs="?", help="outcomes by week, CSV")
    parser.add_argument("--output", type=Path, default=sample.path().parent, help="directory to write to")
    parser.add_argument("--measure", action="store_true", help="print the table of what is in --output")
    chosen: Any = parser.parse_args(arguments)
    if not chosen.measure and (chosen.source is None or chosen.outcomes is None):
        parser.error("give SOURCE and OUTCOMES.csv, or --measure")
    if chosen.source is not None:
        cut(chosen.source, chosen.outcomes, chosen.output)
    if chosen.measure:
        measure(chosen.output / "corpus")


if __name__ == "__main__":
    main()
