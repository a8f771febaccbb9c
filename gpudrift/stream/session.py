"""A run of the streaming job between two checkpoints: applies what comes, closes windows, emits, saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpudrift.files import write_json
from gpudrift.report.wording import number, p_value, times
from gpudrift.stream import checkpoint
from gpudrift.stream.emission import Emitted, Emitter, moment
from gpudrift.stream.state import COUNTERS, State, Taken
from gpudrift.stream.taking import Taker
from gpudrift.stream.waiting import Waiter
from gpudrift.verdict import exit_code

if TYPE_CHECKING:
    from gpudrift.context import Context


@dataclass
class Session:
    """``take`` what comes; ``tick`` whenever time may have passed; ``finish`` at the end.

    codes: the exit code of each window's last verdict in this run. faults: rows could not be used in this run.
    after_checkpoint: called when a checkpoint is on the disk.
    """

    ctx: Context
    waiter: Waiter
    taker: Taker
    emitter: Emitter
    state: State
    codes: dict[str, int] = field(default_factory=dict)
    faults: bool = False
    listening: str | None = None
    after_checkpoint: Callable[[], None] = lambda: None
    _dirty: bool = False

    def __post_init__(self) -> None:
        self._began = self._emitted = self._saved = self.waiter.now()
        self._rows_then = self.state.counts["rows"]

    @property
    def path(self) -> Path:
        return self.ctx.output / checkpoint.NAME

    @property
    def pending(self) -> int:
        """Rows since the last emission, of this run or one before."""
        return self.state.counts["rows"] - self.state.emitted_rows

    def take(self, taken: Taken) -> None:
        """Add what was taken; windows that are too old by now are emitted a last time and dropped."""
        self.state.apply(taken)
        self._dirty = True
        self._close_old()
        if self.pending >= self.ctx.job.stream.emit_rows:
            self.emit()

    def changed(self) -> None:
        """Something to save that is not rows."""
        self._dirty = True

    def tick(self) -> None:
        """Emit and save where it is time."""
        settings, now = self.ctx.job.stream, self.waiter.now()
        if self.pending and now - self._emitted >= settings.emit_seconds:
            self.emit()
        if self._dirty and now - self._saved >= settings.checkpoint_seconds:
            self.save()

    def emit(self) -> None:
        """Emit every open window that has new rows, the oldest first, and save."""
        rate = self._rate()
        for held in self.state.in_order():
            if held.emitted != held.rows:
                self._emit(held.window.label, rate, final=False)
        self._emitted, self.state.emitted_rows = self.waiter.now(), self.state.counts["rows"]
        self.save()

    def _rate(self) -> float:
        """Rows a second since the last emission."""
        since = self.waiter.now() - self._emitted
        return round(self.pending / since, 1) if since > 0 else 0.0

    def save(self) -> None:
        """Checkpoint: from here a later run goes on."""
        with self.taker.stages("checkpoint"):
            self.emitter.sync()
            checkpoint.save(self.state, self.path)
        self._dirty, self._saved = False, self.waiter.now()
        self.write_status(None)
        self.after_checkpoint()

    def finish(self) -> int:
        """Emit what is new, save, and say how it went; the exit code."""
        self.emit()
        code = max([0, *self.codes.values()])
        if self.faults or self.state.ledger.quarantined:
            code = 30
        self.write_status(code)
        counts, rows = self.state.counts, self.state.counts["rows"] - self._rows_then
        seconds = self.waiter.now() - self._began
        rate = f", {rows / seconds:,.0f} rows/s" if seconds > 0 and rows else ""
        so_far = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in COUNTERS if counts[name])
        self.ctx.reporter.note(f"{rows:,} rows in {seconds:.1f} s{rate}; since the first run: {so_far or 'nothing'}")
        for name, error in self.state.ledger.quarantined.items():
            self.ctx.reporter.warn(f"quarantined, not counted: {name}: {error.splitlines()[0]}")
        return code

    def write_status(self, code: int | None) -> None:
        """stream.json: where the job stands, and where a producer goes on from."""
        state, stages = self.state, self.taker.stages
        write_json(
            self.ctx.output / "stream.json",
            {
                "job": self.ctx.job.name,
                "reference": state.identity["reference"],
                "updated": moment(self.waiter.clock()),
                "listening": self.listening,
                "resume_after": dict(state.sequences),
                "counts": {name: state.counts[name] for name in COUNTERS},
                "open_windows": {held.window.label: held.rows for held in state.in_order()},
                "closed_before": state.floor,
                "emission": state.emission,
                "quarantined": state.ledger.quarantined,
                "refused": state.refused,
                "this_run": {
                    "rows": state.counts["rows"] - self._rows_then,
                    "seconds": self.waiter.now() - self._began,
                    "stages_wall": stages.wall,
                    "stages_processor": stages.processor,
                    "exit_code": code,
                },
            },
        )

    def _close_old(self) -> None:
        """Windows that begin before the newest ``keep_windows`` are closed. The newest is the last with enough rows for
        a verdict: a few rows with a time far ahead close nothing."""
        settings = self.ctx.job.stream
        full = [held.window for held in self.state.in_order() if held.rows >= self.ctx.job.windows.min_rows]
        if not full:
            return
        oldest = full[-1]
        for _ in range(settings.keep_windows - 1):
            oldest = self.ctx.period.previous(oldest)
        if self.state.floor is not None and oldest.start <= self.state.floor:
            return
        self.state.floor = oldest.start
        closing = [held.window for held in self.state.in_order() if held.window.start < oldest.start]
        for window in closing:
            self._emit(window.label, self._rate(), final=True)
            del self.state.windows[window.label]
        if closing:
            self.save()

    def _emit(self, label: str, rate: float, *, final: bool) -> None:
        state = self.state
        about: dict[str, Any] = {
            "at": moment(self.waiter.clock()),
            "rows_per_second": rate,
            "counts": {name: state.counts[name] for name in COUNTERS},
            "quarantined": list(state.ledger.quarantined),
        }
        with self.taker.stages("score"):
            found = self.emitter.emit(state, state.windows[label], final=final, about=about)
        code = exit_code(self.ctx.job, found.verdict)
        # a window that is still filling may yet get its rows
        waits = not final and found.scored.measured is None and found.verdict == "insufficient"
        self.codes[label] = 0 if waits else code
        self.ctx.reporter.verdict_line(found.verdict, line_of(found))


def line_of(found: Emitted) -> str:
    """An emission on the terminal."""
    calibration = found.scored.calibration
    parts = [f"{found.held.rows:,} rows"]
    if calibration is not None:
        usual = f"{times(calibration.ratio)} the usual movement, p {p_value(calibration.p_aa)}"
        parts.append(f"score {number(calibration.score)} ({usual})")
    if found.final:
        parts.append("final")
    return f"{found.held.window.label}: {', '.join(parts)}"
