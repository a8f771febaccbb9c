"""The history of a job: one row a job, reference, window, segment and metric, in a Parquet data set.

Layout: ``<root>/<job>/<reference id>/<window>.parquet``, a file a window, written to a temporary name and renamed. A
rerun of a window replaces its own file and touches no other; a killed run leaves the history as it was. Read it whole
with ``pyarrow.dataset.dataset(root)`` or pandas, or ``<root>/*/*/*.parquet`` with polars or DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from gpudrift.calibrate import HEADLINE
from gpudrift.errors import DataError
from gpudrift.files import atomic_path
from gpudrift.records import GateMetric, HistoryPoint, Metric, SegmentScore, Verdict, Window

if TYPE_CHECKING:
    from gpudrift.reference import Reference

ALL = "all"  # the segment that holds every row
REMEMBERED = 20_000  # points (windows and their segments) of files already read: some 50 MB

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
        # of metrics that gate; null on the others. delta: upper limit of the usual movement, low: lower one of a signed
        # metric
        ("p_aa", pa.float64()),
        ("p_holm", pa.float64()),
        ("p_close", pa.float64()),
        ("null_sd", pa.float64()),
        ("usual", pa.float64()),
        ("low", pa.float64()),
        ("delta", pa.float64()),
        # of the headline metric's row; null on the others
        ("verdict", pa.string()),
        ("clear_limit", pa.float64()),
        ("ratio", pa.float64()),
        ("in_reference", pa.bool_()),
        # of a segment's headline row: over all segments of the run
        ("q", pa.float64()),
    ]
)


def table(
    job: str, reference: str, point: HistoryPoint, metrics: Sequence[Metric], segments: Sequence[SegmentScore] = ()
) -> pa.Table:
    """The rows of one window and its segments; without metrics (insufficient data) the headline's row alone, its value
    null."""
    window = point.window
    common = {
        "job": job,
        "reference": reference,
        "window": window.label,
        "window_start": window.start,
        "window_end": window.end,
        "complete": window.complete,
    }
    rows = _rows(common | {"segment": ALL}, point, metrics)
    for score in segments:
        own = common | {"segment": score.name}
        rows += _rows(own, score.point(window), tuple(score.metrics.values()), q=score.q)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(
    common: dict[str, Any], point: HistoryPoint, metrics: Sequence[Metric], q: float | None = None
) -> list[dict[str, Any]]:
    common = common | {"rows": point.rows}
    gates = {g.metric: _gate_columns(g) for g in point.gates}
    headline = {
        "metric": HEADLINE,
        "value": point.score,
        "se": point.se,
        "p_aa": point.p_aa,
        "p_close": point.p_close,
        "null_sd": point.null_sd,
        "delta": point.delta,
        "verdict": point.verdict,
        "clear_limit": point.clear_limit,
        "ratio": point.ratio,
        "in_reference": point.in_reference,
        "q": q,
    }
    others = [
        common | {"metric": m.name, "value": m.value, "se": m.se} | gates.get(m.name, {})
        for m in metrics
        if m.name != HEADLINE
    ]
    return [common | headline | gates.get(HEADLINE, {}), *others]


def _gate_columns(gate: GateMetric) -> dict[str, Any]:
    return {
        "p_aa": gate.p_aa,
        "p_holm": gate.p_holm,
        "p_close": gate.p_close,
        "null_sd": gate.null_sd,
        "usual": gate.usual,
        "low": gate.low,
        "delta": gate.high,
    }


def write_table(rows: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd", write_page_checksum=True)


class History:
    """The history of one job against one reference."""

    def __init__(self, root: Path, job: str, reference: str) -> None:
        self.root, self.job, self.reference = root, job, reference
        self.directory = root / job / reference
        self._held: dict[Path, pa.Table] | None = None
        self._known = _Known()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside enters the history at the end, and not at all where the inside fails."""
        self._held = {}
        try:
            yield
            for path, rows in self._held.items():
                self._known.write(path, rows)
        finally:
            self._held = None

    def write(self, point: HistoryPoint, metrics: Sequence[Metric], segments: Sequence[SegmentScore] = ()) -> None:
        """Put a window's rows, replacing those of an earlier run."""
        rows, path = table(self.job, self.reference, point, metrics, segments), self._file(point.window)
        if self._held is None:
            self._known.write(path, rows)
        else:
            self._held[path] = rows

    def get(self, window: Window) -> HistoryPoint | None:
        return self._of(window).get(ALL)

    def segments(self, window: Window) -> dict[str, HistoryPoint]:
        """The window's segments by name (``column=value``); empty where it is not known."""
        return {name: point for name, point in self._of(window).items() if name != ALL}

    def points(self) -> list[HistoryPoint]:
        """All windows, oldest first."""
        return [window[ALL] for window in self.windows()]

    def windows(self) -> list[dict[str, HistoryPoint]]:
        """All windows, oldest first, each with its segments by name; the whole is ``ALL``."""
        found = [self._known.points(path) for path in self.directory.glob("[!.]*.parquet")]
        return sorted(found, key=lambda points: points[ALL].window.start)

    def _of(self, window: Window) -> dict[str, HistoryPoint]:
        """The window by segment; empty where it is not known."""
        path = self._file(window)
        if self._held is not None and path in self._held:
            return _by_segment(self._held[path])
        return self._known.points(path) if path.exists() else {}

    def _file(self, window: Window) -> Path:
        return self.directory / f"{window.label}.parquet"


class _Known:
    """What files of a history hold, read once for as long as they are the same: a backfill asks for the windows before
    each window, and a pass over all of them is thousands of small files."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[tuple[int, ...], dict[str, HistoryPoint]]] = {}  # the latest read last
        self._held = 0

    def points(self, path: Path) -> dict[str, HistoryPoint]:
        """As ``_points``. Others may have replaced the file since."""
        mark = _mark(path)
        known = self._found.get(path)
        if known is not None and known[0] == mark:
            return dict(known[1])
        found = _points(path)
        self._keep(path, mark, found)
        return dict(found)

    def write(self, path: Path, rows: pa.Table) -> None:
        write_table(rows, path)
        self._keep(path, _mark(path), _by_segment(rows))

    def _keep(self, path: Path, mark: tuple[int, ...], found: dict[str, HistoryPoint]) -> None:
        self._held += len(found) - len(self._found.pop(path, (mark, {}))[1])
        self._found[path] = mark, found
        while self._held > REMEMBERED:
            self._held -= len(self._found.pop(next(iter(self._found)))[1])


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    try:
        found = path.stat()
    except OSError:
        return ()  # reading it says what is wrong
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _points(path: Path) -> dict[str, HistoryPoint]:
    """What a file holds, by segment."""
    try:
        return _by_segment(pq.read_table(path, page_checksum_verification=True, partitioning=None))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"this file of the history cannot be read: {why}",
            where=path,
            field="history.path",
            hint="delete the file and backfill its window",
        ) from error


def _by_segment(rows: pa.Table) -> dict[str, HistoryPoint]:
    by_segment: dict[str, list[dict[str, Any]]] = {ALL: []}
    for row in rows.to_pylist():
        by_segment.setdefault(row["segment"], []).append(row)
    return {segment: _point(own) for segment, own in by_segment.items()}


def _point(rows: Sequence[dict[str, Any]]) -> HistoryPoint:
    row = next((row for row in rows if row["metric"] == HEADLINE), None)
    if row is None:
        raise ValueError(f"it has no row of {HEADLINE}")
    if row["verdict"] not in get_args(Verdict):
        raise ValueError(f"{row['verdict']!r} is no verdict")
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
        gates=tuple(_gate(row) for row in rows if row["p_holm"] is not None),
    )


def _gate(row: dict[str, Any]) -> GateMetric:
    return GateMetric(
        metric=row["metric"],
        value=float(row["value"]),
        se=row["se"],
        null_sd=row["null_sd"],
        usual=row["usual"],
        p_aa=row["p_aa"],
        p_holm=row["p_holm"],
        low=row["low"],
        high=row["delta"],
        p_close=row["p_close"],
    )


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def reference_points(pinned: Reference) -> list[HistoryPoint]:
    """The reference's own windows as points of a history: their leave-one-window-out scores."""
    return [
        HistoryPoint(
            window=w.window,
            verdict="stable",
            score=w.score,
            se=None,
            p_aa=None,
            p_close=None,
            null_sd=pinned.null.null_sd,
            delta=None,
            clear_limit=None,
            ratio=None,
            rows=w.rows,
            in_reference=True,
        )
        for w in pinned.kept
    ]


def with_reference_points(pinned: Reference, points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """The points, and before them the reference's own windows that they lack."""
    known = {point.window.label for point in points}
    return [point for point in reference_points(pinned) if point.window.label not in known] + list(points)


def with_reference(
    pinned: Reference, windows: Sequence[Mapping[str, HistoryPoint]]
) -> list[Mapping[str, HistoryPoint]]:
    """``windows`` by segment, oldest first, among them the reference's own windows that they lack."""
    known = {window[ALL].window.label for window in windows}
    own = [{ALL: point} for point in reference_points(pinned) if point.window.label not in known]
    return sorted([*own, *windows], key=lambda window: window[ALL].window.start)
