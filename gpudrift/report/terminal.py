"""What the job says while it runs and when it ends: the result on standard output, everything else on standard error.

On a terminal: progress bars with rate and time left, and colour. Elsewhere (a log, a pipe, ``TERM=dumb``): single plain
lines in ASCII, no bars, no control characters, nothing wider than ``WIDTH`` in the tables. Text that comes from data or
configuration is never read as markup, and its control characters never reach the terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report.wording import VerdictSummary, count, number, p_value, plain_sentence, printable, times

WIDTH = 100
HEARTBEAT = 60.0  # seconds between two lines of a long stage in a log
STYLES: dict[Verdict, str] = {
    "stable": "bold green",
    "warning": "bold yellow",
    "alert": "bold red",
    "insufficient": "bold magenta",
}


def size_text(amount: float, unit: str) -> str:
    """``12,345 rows``; bytes (unit ``B``) as ``1.2 GB``."""
    if unit != "B":
        return f"{amount:,.0f} {unit}"
    for name in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {name}"
        amount /= 1000
    return f"{amount:,.1f} TB"


class _AmountColumn(ProgressColumn):
    """Done, total and rate in the task's own unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        of = "" if task.total is None else f" of {size_text(task.total, unit)}"
        rate = "" if not task.speed else f", {size_text(task.speed, unit)}/s"
        return Text(f"{size_text(task.completed, unit)}{of}{rate}", style="progress.download")


class Reporter:
    """Says what happens. ``quiet``: warnings and the one sentence of the result, nothing else.

    console: where results go (standard output); diagnostics: where progress, notes and warnings go (standard error).
    clock: seconds, for the lines of a log.
    """

    def __init__(
        self,
        console: Console | None = None,
        quiet: bool = False,
        *,
        diagnostics: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.diagnostics = diagnostics or Console(file=sys.stderr, highlight=False)
        self.quiet = quiet
        self._clock = clock

    @staticmethod
    def _fancy(console: Console) -> bool:
        return console.is_terminal and not console.is_dumb_terminal

    def _say(self, console: Console, text: str, style: str = "", lead: str = "", lead_style: str = "") -> None:
        """One line. Plain consoles get it as it is, whole: rich would break it at the width of the console, and a path
        in a log must stay in one piece."""
        text = printable(text) if not text.startswith(" ") else " " * (len(text) - len(text.lstrip())) + printable(text)
        if self._fancy(console):
            console.print(Text.assemble((lead, lead_style), (text, style)), soft_wrap=True)
        else:
            line = (lead + text).encode("ascii", "backslashreplace").decode("ascii")
            console.file.write(line + "\n")
            console.file.flush()

    def stage(self, name: str) -> None:
        """A stage of the job begins."""
        if not self.quiet:
            self._say(self.diagnostics, name, "bold", "> ", "cyan")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._say(self.diagnostics, text, lead="  ")

    def warn(self, text: str) -> None:
        """Said even when quiet: a degraded run is never silent."""
        self._say(self.diagnostics, text, lead="warning: ", lead_style="bold yellow")

    @contextmanager
    def progress(self, description: str, total: float | None = None, unit: str = "rows") -> Iterator[Callable[[float], None]]:
        """Yields ``advance(n)``, which any thread may call. ``total`` None: unknown; ``unit`` ``B``: bytes.

        On a terminal the bar vanishes when the block ends and one line stays; in a log a line every ``HEARTBEAT``
        seconds and one at the end. A block that raises leaves no line that looks like success.
        """
        description = printable(description)
        started = self._clock()
        done, said = 0.0, started
        lock = threading.Lock()
        bars = None
        if not self.quiet and self._fancy(self.diagnostics):
            bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _AmountColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TimeElapsedColumn(),
                console=self.diagnostics,
                transient=True,
            )
            task = bars.add_task(description, total=total, unit=unit)

        def advance(amount: float) -> None:
            nonlocal done, said
            with lock:
                done += amount
                if bars is not None:
                    bars.advance(task, amount)
                elif not self.quiet and self._clock() - said >= HEARTBEAT:
                    said = self._clock()
                    of = f" of {size_text(total, unit)}" if total is not None else ""
                    self.note(f"{description}: {size_text(done, unit)}{of} after {said - started:.0f} s")

        if bars is None:
            yield advance
        else:
            with bars:
                yield advance
        self.note(f"{description}: {size_text(done, unit)} in {self._clock() - started:.1f} s")

    def verdict_table(self, summary: VerdictSummary) -> None:
        """The result: one sentence, the numbers it rests on, the metrics, what was written, the exit code."""
        verdict = summary.verdict
        self._say(self.console, plain_sentence(summary), lead=f"{verdict.upper()}  ", lead_style=STYLES[verdict])
        if self.quiet:
            return
        dates = f" ({summary.window_dates})" if summary.window_dates else ""
        interval = "-" if summary.ci is None else f"{number(summary.ci[0])} to {number(summary.ci[1])}"
        reference_rows = "" if summary.reference_rows is None else f" against {count(summary.reference_rows)}"
        rows: list[tuple[str, str]] = [
            ("window", f"{summary.window}{dates}"),
            ("reference", summary.reference),
            ("rows", f"{count(summary.rows)}{reference_rows}"),
        ]
        if summary.score is not None:
            rows += [
                ("score", f"{number(summary.score)} +- {number(summary.se)} (95% interval {interval})"),
                ("usual movement", f"{times(summary.ratio)}, severity {summary.severity or '-'}, p {p_value(summary.p_aa)}"),
                ("tolerance", f"{number(summary.delta)}, p within it {p_value(summary.p_close)}"),
            ]
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self._say(self.console, value, lead=f"  {name:<{width}}  ", lead_style="dim")
        if summary.metrics:
            table = [(printable(name), number(value), number(se)) for name, value, se in summary.metrics]
            self._table(("metric", "value", "se"), table, right=(1, 2))
        for name, lines in (("note", summary.notes), ("wrote", summary.outputs)):
            for line in lines:
                self._say(self.console, line, lead=f"  {name:<5}  ", lead_style="dim")
        self._say(self.console, str(summary.exit_code), lead="  exit   ", lead_style="dim")

    def history_table(self, points: Sequence[HistoryPoint], last: int = 20) -> None:
        """How many windows got which verdict, and the ``last`` of them one a line."""
        tally = [(verdict, sum(p.verdict == verdict for p in points)) for verdict in STYLES]
        counted = ", ".join(f"{k:,} {verdict}" for verdict, k in tally if k) or "none"
        self._say(self.console, f"{len(points):,} windows: {counted}")
        shown = sorted(points, key=lambda p: p.window)[-last:]
        if self.quiet or not shown:
            return
        self._table(
            ("window", "verdict", "score", "usual", "p", "rows"),
            [
                (p.window.label, p.verdict, number(p.score), times(p.ratio), p_value(p.p_aa), count(p.rows))
                for p in shown
            ],
            right=(2, 3, 4, 5),
        )

    def _table(self, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
        """Columns two spaces apart; the first gives way where the whole is wider than ``WIDTH``."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(row[k]) for row in (head, *cells)) for k in range(len(head))]
        widths[0] = max(8, min(widths[0], WIDTH - 2 - sum(widths[1:]) - 2 * (len(widths) - 1)))
        for position, row in enumerate([list(head), *cells]):
            first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
            line = "  ".join(
                f"{cell:>{w}}" if k in right else f"{cell:<{w}}"
                for k, (cell, w) in enumerate(zip([first, *row[1:]], widths, strict=True))
            )
            style = "dim" if position == 0 else STYLES.get(row[1], "").removeprefix("bold ") if len(row) > 1 else ""  # type: ignore[call-overload]
            self._line(line.rstrip(), style)

    def _line(self, line: str, style: str) -> None:
        if self._fancy(self.console):
            self.console.print(Text("  " + line, style=style), soft_wrap=True)
        else:
            self.console.file.write(f"  {line}\n".encode("ascii", "backslashreplace").decode("ascii"))
            self.console.file.flush()
