"""The history of a job: one row a job, reference, window, segment and metric, in a Parquet data set.

Layout: ``<root>/<job>/<reference id>/<window>.parquet``, a file a window, written to a temporary name and renamed. A
rerun of a window replaces its own file and touches no other; a killed run leaves the history as it was. Read it whole
with ``pyarrow.dataset.dataset(root)``, pandas, polars or DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpudrift.errors import DataError
from gpudrift.files import atomic_path
from gpudrift.records import HistoryPoint, Metric, Window

ALL = "all"  # the segment that holds every row

SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("reference", pa.string()),
        ("segment", pa.string()),
        ("window", pa.string()),
        ("window_start", pa.timestamp("us", tz="UTC")),
        ("window_end", pa.timestamp("us", tz="UTC")),
        ("complete", pa.bool_()),
        ("rows", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("se", pa.float64()),
        # of the headline metric's row; null on the others
        ("verdict", pa.string()),
        ("p_aa", pa.float64()),
        ("p_close", pa.float64()),
        ("null_sd", pa.float64()),
        ("delta", pa.float64()),
        ("clear_limit", pa.float64()),
        ("ratio", pa.float64()),
        ("in_reference", pa.bool_()),
    ]
)
HEADLINE = "energy"


def table(job: str, reference: str, point: HistoryPoint, metrics: Sequence[Metric]) -> pa.Table:
    """The rows of one window; without metrics (insufficient data) the headline's row alone, its value null."""
    window = point.window
    common = {
        "job": job,
        "reference": reference,
        "segment": ALL,
        "window": window.label,
        "window_start": window.start,
        "window_end": window.end,
        "complete": window.complete,
        "rows": point.rows,
    }
    headline = {
        "metric": HEADLINE,
        "value": point.score,
        "se": point.se,
        "verdict": point.verdict,
        "p_aa": point.p_aa,
        "p_close": point.p_close,
        "null_sd": point.null_sd,
        "delta": point.delta,
        "clear_limit": point.clear_limit,
        "ratio": point.ratio,
        "in_reference": point.in_reference,
    }
    rows: list[dict[str, Any]] = [common | headline]
    rows += [common | {"metric": m.name, "value": m.value, "se": m.se} for m in metrics if m.name != HEADLINE]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(rows: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd", write_page_checksum=True)


class History:
    """The history of one job against one reference."""

    def __init__(self, root: Path, job: str, reference: str) -> None:
        self.root, self.job, self.reference = root, job, reference
        self.directory = root / job / reference

    def write(self, point: HistoryPoint, metrics: Sequence[Metric]) -> None:
        """Put a window's rows, replacing those of an earlier run."""
        write_table(table(self.job, self.reference, point, metrics), self._file(point.window))

    def get(self, window: Window) -> HistoryPoint | None:
        path = self._file(window)
        return _point(path) if path.exists() else None

    def points(self) -> list[HistoryPoint]:
        """All windows, oldest first."""
        found = [_point(path) for path in self.directory.glob("[!.]*.parquet")]
        return sorted(found, key=lambda point: point.window.start)

    def _file(self, window: Window) -> Path:
        return self.directory / f"{window.label}.parquet"


def _point(path: Path) -> HistoryPoint:
    try:
        rows = pq.read_table(path, page_checksum_verification=True, partitioning=None).to_pylist()
        row = next(row for row in rows if row["metric"] == HEADLINE)
        return HistoryPoint(
            window=Window(_utc(row["window_start"]), _utc(row["window_end"]), row["window"], row["complete"]),
            verdict=row["verdict"],
            score=row["value"],
            se=row["se"],
            p_aa=row["p_aa"],
            p_close=row["p_close"],
            null_sd=row["null_sd"],
            delta=row["delta"],
            clear_limit=row["clear_limit"],
            ratio=row["ratio"],
            rows=row["rows"],
            in_reference=row["in_reference"],
        )
    except (pa.ArrowException, OSError, KeyError, StopIteration, AttributeError) as error:
        raise DataError(
            f"this file of the history cannot be read: {error}",
            where=path,
            field="history.path",
            hint="delete the file and backfill its window",
        ) from error


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
