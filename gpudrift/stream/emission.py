"""Emissions: a window as it stands, its scores and its verdict, into stream.jsonl, windows/<label>.json and history."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpudrift.errors import GpudriftError
from gpudrift.files import jsonable, write_json
from gpudrift.fingerprint import canonical
from gpudrift.history import History
from gpudrift.records import Cloud, HistoryPoint, Metric, Verdict, Window
from gpudrift.reference import Reference
from gpudrift.scoring import Scored, Scorer
from gpudrift.sketch import Sketch, compare
from gpudrift.stream.state import OpenWindow, State
from gpudrift.verdict import before_in_history, score_cloud, verdict_of
from gpudrift.windows import data_windows

if TYPE_CHECKING:
    from gpudrift.context import Context

# Reference rows in pairs up to which a null of its own for every number of rows is cheap; beyond, the rows of an
# unfinished window are cut to a power of two, so that few nulls are ever computed
CHEAP_NULL = 20_000


@dataclass(frozen=True)
class Emitted:
    """What an emission found. scored: of the reservoir; metrics: of the sketch, all rows."""

    held: OpenWindow
    final: bool
    scored: Scored
    verdict: Verdict
    reason: str
    metrics: dict[str, Metric]
    point: HistoryPoint


class Emitter:
    """Scores windows and writes what was found; the same state gives the same numbers."""

    def __init__(self, ctx: Context, scorer: Scorer, reference: Sketch, history: History) -> None:
        self._ctx = replace(ctx, reporter=ctx.reporter.silenced())
        self._scorer, self._reference, self._history = scorer, reference, history
        self._lines = ctx.output / "stream.jsonl"
        self._windows = ctx.output / "windows"

    @property
    def pinned(self) -> Reference:
        return self._scorer.reference

    def begin(self, state: State) -> None:
        """Cut what a killed run wrote after its last checkpoint off stream.jsonl; it will be written again. A file that
        is shorter (moved away by log rotation) is taken as it is."""
        size = self._lines.stat().st_size if self._lines.exists() else 0
        if size > state.offset:
            os.truncate(self._lines, state.offset)
        state.offset = min(size, state.offset)

    def emit(self, state: State, held: OpenWindow, *, final: bool, about: dict[str, Any]) -> Emitted:
        """Score a window as it stands and write it. ``about``: what else the line says."""
        found = self.score(state, held, final=final)
        held.emitted, held.point = held.rows, found.point
        state.emission += 1
        record = {"emission": state.emission, **record_of(found), **about}
        text = json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lines.open("ab") as handle:
            handle.write(text.encode())
            state.offset = handle.tell()
        panel = [] if found.scored.measured is None else list(found.scored.measured.metrics.values())
        write_json(
            self._windows / f"{held.window.label}.json",
            {**record, "metrics_of_verdict_rows": {m.name: {"value": m.value, "se": m.se} for m in panel}},
        )
        if final:
            of_sketch = [replace(metric, name=f"sketch_{name}") for name, metric in found.metrics.items()]
            self._history.write(found.point, [*panel, *of_sketch])
        return found

    def score(self, state: State, held: OpenWindow, *, final: bool) -> Emitted:
        window, ctx = held.window, self._ctx
        metrics: dict[str, Metric] = {}
        scored, failed = Scored(window, held.rows, held.quality), None
        try:
            if held.rows:
                metrics = compare(self._reference, held.sketch)
                scored = score_cloud(ctx, self._scorer, self._cloud(held, final=final))
        except GpudriftError as error:  # such as values too far apart to be squared: of this window, not of the job
            failed = str(error)
        verdict, reason = verdict_of(ctx, self._scorer.reference, scored, self._before(state, window))
        if failed is not None:
            verdict, reason = "insufficient", failed
        elif scored.measured is None:
            reason = f"{held.rows} rows in {window.label}; windows.min_rows is {ctx.job.windows.min_rows}"
        complete = final and self._complete(state, window)
        point = scored.point(verdict)
        point = replace(point, rows=held.rows, window=replace(window, complete=complete))
        return Emitted(held, final, scored, verdict, reason, metrics, point)

    def sync(self) -> None:
        """Flush stream.jsonl to the disk, before a checkpoint that counts on it."""
        if self._lines.exists():
            with self._lines.open("ab") as handle:
                os.fsync(handle.fileno())

    def _cloud(self, held: OpenWindow, *, final: bool) -> Cloud:
        """The reservoir's rows, which are all rows of a window that fits in it."""
        rows, ids = held.sketch.reservoir()
        pinned, limit = self._scorer.reference, self._scorer.limit
        count = min(len(rows), limit.rows)
        if not final and count < pinned.null.n0 and len(self._scorer.rows.prepared) > CHEAP_NULL:
            least = self._ctx.job.windows.min_rows
            count = min(count, max(least, 1 << (count.bit_length() - 1)))
        cloud = Cloud(
            embeddings=rows[:count].clone(),  # in the order of their keys: any first part is a sample
            windows=(held.window,),
            offsets=(0, count),
            quality=(held.quality,),
            ids=ids.slice(0, count),
            encoder_id=pinned.encoder_id,
        )
        cloud, _ = canonical(cloud, self._ctx.panel.seed)
        return replace(cloud, embeddings=cloud.embeddings.to(self._ctx.device.device))

    def _before(self, state: State, window: Window) -> HistoryPoint | None:
        """The window before: as last emitted where it is still open, else from the history. An open one without enough
        data is passed over."""
        before = window
        for held in reversed(state.in_order()):
            if held.window.start < before.start and held.window.end == before.start:
                if held.point is not None and held.point.verdict != "insufficient":
                    return held.point
                before = held.window
        return before_in_history(self._ctx, self._history, before)

    def _complete(self, state: State, window: Window) -> bool:
        """Whether the stream has covered the window: its very first one may have begun before the stream did."""
        if state.first is None or not window.start <= state.first < window.end:
            return True
        return data_windows(self._ctx.period, state.first, window.end)[0].complete


def record_of(found: Emitted) -> dict[str, Any]:
    """An emission as a line of stream.jsonl, without what concerns the whole job."""
    held, scored = found.held, found.scored
    calibration = scored.calibration
    energy = None if scored.measured is None else scored.measured.energy
    return {
        "window": held.window.label,
        "start": held.window.start,
        "end": held.window.end,
        "final": found.final,
        "rows": held.rows,
        "verdict": found.verdict,
        "reason": found.reason,
        "verdict_rows": scored.pair_rows,
        "score": None if energy is None else energy.value,
        "se": None if energy is None else energy.se,
        "p_aa": None if calibration is None else calibration.p_aa,
        "p_close": None if calibration is None else calibration.p_close,
        "ratio": None if calibration is None else calibration.ratio,
        "severity": None if calibration is None else calibration.severity,
        "sketch": {name: {"value": m.value, "se": m.se} for name, m in found.metrics.items()},
        "quality": {
            "rows_read": held.quality.rows_read,
            "dropped": held.quality.dropped,
            "examples": held.quality.examples,
        },
    }


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
