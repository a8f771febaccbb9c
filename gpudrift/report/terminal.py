"""What the job says while it runs and when it ends: the result on standard output, everything else on standard error.

On a terminal: progress bars with rate and time left, and colour. Elsewhere (a log, a pipe, ``TERM=dumb``): single plain
lines, our own words in ASCII, no bars, no control characters, tables at most ``WIDTH`` wide. Text that comes from data
or configuration is never read as markup, and its control characters never reach the terminal.
"""

from __future__ import annotations

import textwrap
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
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report.wording import (
    DISTANCE,
    SHOWN,
    VerdictSummary,
    count,
    number,
    p_value,
    plain_sentence,
    printable,
    times,
)

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


def done_text(done: float, total: float | None, unit: str) -> str:
    """``200,000 of 1,000,000 rows``, or ``200,000 rows`` of an unknown total."""
    if total is None:
        return size_text(done, unit)
    return f"{size_text(done, unit) if unit == 'B' else f'{done:,.0f}'} of {size_text(total, unit)}"


class _AmountColumn(ProgressColumn):
    """Done, total and rate in the task's own unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        rate = "" if not task.speed else f", {size_text(task.speed, unit)}/s"
        return Text(f"{done_text(task.completed, task.total, unit)}{rate}", style="progress.download")


def _numbers(summary: VerdictSummary) -> list[tuple[str, str]]:
    """The window, its reference, and the numbers the verdict rests on; without a verdict the score alone."""
    dates = f" ({summary.window_dates})" if summary.window_dates else ""
    interval = "-" if summary.ci is None else f"{number(summary.ci[0])} to {number(summary.ci[1])}"
    reference_rows = "" if summary.reference_rows is None else f" against {count(summary.reference_rows)}"
    rows = [
        ("window", f"{summary.window}{dates}"),
        ("reference", summary.reference),
        ("rows", f"{count(summary.rows)}{reference_rows}"),
    ]
    if summary.score is None:
        return rows
    rows.append(("score", f"{number(summary.score)} +- {number(summary.se)} (95% interval {interval})"))
    if summary.judged:
        # adjusted where several metrics decide: the p of the sentence above and of the table below
        p = next((gate.p for gate in summary.gates if gate.metric == DISTANCE), summary.p_aa)
        usual = f"{times(summary.ratio)}, severity {summary.severity or '-'}, p {p_value(p)}"
        rows += [
            ("usual movement", usual),
            ("tolerance", f"{number(summary.delta)}, p within it {p_value(summary.p_close)}"),
        ]
    return rows


def _metric_rows(summary: VerdictSummary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of the metrics' table: where metrics decide on the verdict, those with their adjusted p, and in
    words whether they are beyond the usual movement."""
    gates = {gate.metric: gate for gate in summary.gates}
    named = {name for name, _, _ in summary.metrics}
    metrics = [*summary.metrics]
    metrics += [(gate.metric, gate.value, None) for gate in summary.gates if gate.metric not in named]
    lines: list[tuple[str, ...]] = [(printable(name), number(value), number(se)) for name, value, se in metrics]
    if not gates:
        return ("metric", "value", "se"), lines
    told = []
    for (name, _, _), line in zip(metrics, lines, strict=True):
        gate = gates.get(name)
        told.append((*line, "-", "") if gate is None else (*line, p_value(gate.p), "beyond" if gate.beyond else ""))
    return ("metric", "value", "se", "p", ""), told


def _p_of(point: HistoryPoint) -> float | None:
    """What the verdict is made of: the smallest adjusted p of the metrics that decide."""
    return min((gate.p_holm for gate in point.gates), default=point.p_aa)


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
        self.console = console or Console(highlight=False)
        self.diagnostics = diagnostics or Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._clock = clock
        self._detail = ""

    @staticmethod
    def _fancy(console: Console) -> bool:
        return console.is_terminal and not console.is_dumb_terminal

    def _write(self, console: Console, line: Text) -> None:
        """One line, never read as markup. A plain console gets it whole: rich would break it at the console's width,
        and a path in a log must stay in one piece; letters its encoding lacks are escaped."""
        if self._fancy(console):
            console.print(line, soft_wrap=True)
        else:
            console.file.write(line.plain.encode(console.encoding, "backslashreplace").decode(console.encoding) + "\n")
            console.file.flush()

    def _say(self, console: Console, text: str, style: str = "", lead: str = "", lead_style: str = "") -> None:
        self._write(console, Text.assemble((lead, lead_style), (printable(text), style)))

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

    def error(self, error: Exception) -> None:
        """What went wrong, a line a detail; said even when quiet."""
        for place, line in enumerate(str(error).splitlines() or [type(error).__name__]):
            self._say(self.diagnostics, line, lead="error: " if place == 0 else "", lead_style="bold red")

    def silenced(self) -> Reporter:
        """The same consoles, warnings and results only: for stages inside one that shows its own progress."""
        return Reporter(self.console, quiet=True, diagnostics=self.diagnostics, clock=self._clock)

    def detail(self, text: str) -> None:
        """Where the stage that shows its progress stands, such as ``XY: block 3 of 12``: said with the next beat."""
        self._detail = printable(text)

    @contextmanager
    def progress(
        self, description: str, total: float | None = None, unit: str = "rows"
    ) -> Iterator[Callable[[float], None]]:
        """Yields ``advance(n)``, which any thread may call. ``total`` None: unknown; ``unit`` ``B``: bytes.

        On a terminal the bar vanishes when the block ends and one line stays; in a log a line every ``HEARTBEAT``
        seconds, with rate and time left, and one at the end. A block that raises leaves no line that looks like
        success.
        """
        description = printable(description)
        started = self._clock()
        done, said = 0.0, started
        lock = threading.Lock()
        bars = None
        self._detail = ""
        if not self.quiet and self._fancy(self.diagnostics):
            bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _AmountColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("left{task.fields[detail]}", markup=False),
                console=self.diagnostics,
                transient=True,
            )
            task = bars.add_task(description, total=total, unit=unit, detail="")

        def advance(amount: float) -> None:
            nonlocal done, said
            with lock:
                done += amount
                if bars is not None:
                    bars.update(task, advance=amount, detail=f"; {self._detail}" if self._detail else "")
                elif not self.quiet and self._clock() - said >= HEARTBEAT:
                    said = self._clock()
                    spent = said - started
                    line = f"{description}: {done_text(done, total, unit)} after {spent:.0f} s"
                    if total is not None and 0 < done < total:
                        rate, left = size_text(done / spent, unit), spent * (total - done) / done
                        line += f", {rate}/s, about {left:.0f} s left"
                    self.note(line + (f"; {self._detail}" if self._detail else ""))

        if bars is None:
            yield advance
        else:
            with bars:
                yield advance
        self.note(f"{description}: {size_text(done, unit)} in {self._clock() - started:.1f} s")

    def verdict_table(self, summary: VerdictSummary) -> None:
        """The result: one sentence, what changed, the numbers it rests on, the metrics, who moved, other references,
        what was written, the exit code."""
        verdict = summary.verdict
        sentence = plain_sentence(summary, name_reference=self.quiet)  # else it stands below
        self._say(self.console, sentence, lead=f"{verdict.upper()}  ", lead_style=STYLES[verdict])
        if self.quiet:
            return
        self._wrapped("what changed", summary.phenomena)
        self._values(_numbers(summary))
        if summary.metrics or summary.gates:
            head, table = _metric_rows(summary)
            self.grid(head, table, right=(1, 2, 3), styles=[""] * len(table))
        self._wrapped("cluster", summary.clusters[:SHOWN])
        self._wrapped("segment", summary.segments[:SHOWN])
        self._wrapped("comparison", summary.lagged)
        self._wrapped("outcome", summary.outcomes)
        self._values([("note", line) for line in summary.notes])
        self._values([("wrote", line) for line in summary.outputs])
        self._values([("exit code", str(summary.exit_code))])

    def table(self, sentence: str, rows: Sequence[tuple[str, str]]) -> None:
        """A sentence and named values."""
        self._say(self.console, sentence)
        if not self.quiet:
            self._values(rows)

    def verdict_line(self, verdict: Verdict, text: str) -> None:
        """One line of a job that gives many verdicts."""
        self._say(self.console, text, lead=f"{verdict.upper():<12}  ", lead_style=STYLES[verdict])

    def outcome_lines(self, lines: Sequence[str]) -> None:
        """Product metrics beside the drift."""
        if not self.quiet:
            self._wrapped("outcome", lines)

    def metrics_table(
        self, sentence: str, metrics: Sequence[tuple[str, float, float | None]], outputs: Sequence[str]
    ) -> None:
        """A panel without a verdict."""
        self._say(self.console, sentence)
        if self.quiet:
            return
        table = [(printable(name), number(value), number(se)) for name, value, se in metrics]
        self.grid(("metric", "value", "se"), table, right=(1, 2), styles=[""] * len(table))
        self._values([("wrote", line) for line in outputs])

    def _wrapped(self, name: str, lines: Sequence[str]) -> None:
        """Sentences, each wrapped at ``WIDTH`` (or the terminal's own width) below where it begins."""
        lead = f"  {name:<14}  "
        width = min(WIDTH, self.console.width) if self._fancy(self.console) else WIDTH
        for line in lines:
            for k, part in enumerate(
                textwrap.wrap(printable(line), max(width - len(lead), 20), break_on_hyphens=False) or [""]
            ):
                self._say(self.console, part, lead=lead if k == 0 else " " * len(lead), lead_style="dim")

    def _values(self, rows: Sequence[tuple[str, str]]) -> None:
        for name, value in rows:
            self._say(self.console, value, lead=f"  {name:<14}  ", lead_style="dim")

    def history_table(self, points: Sequence[HistoryPoint], last: int = 20) -> None:
        """How many windows got which verdict, and the ``last`` of those with rows one a line."""
        tally = [(verdict, sum(p.verdict == verdict for p in points)) for verdict in STYLES]
        counted = ", ".join(f"{k:,} {verdict}" for verdict, k in tally if k) or "none"
        self._say(self.console, f"{len(points):,} windows: {counted}")
        shown = sorted((p for p in points if p.rows), key=lambda p: p.window)[-last:]
        if self.quiet or not shown:
            return
        self.grid(
            ("window", "verdict", "score", "usual", "p", "rows"),
            [
                (p.window.label, p.verdict, number(p.score), times(p.ratio), p_value(_p_of(p)), count(p.rows))
                for p in shown
            ],
            right=(2, 3, 4, 5),
            styles=[STYLES[p.verdict].removeprefix("bold ") for p in shown],
        )

    def grid(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[int],
        styles: Sequence[str],
        whole: bool = False,
    ) -> None:
        """Columns two spaces apart; the first gives way where the whole is wider than ``WIDTH``, unless it is to stay
        ``whole``."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(row[k]) for row in (head, *cells)) for k in range(len(head))]
        if not whole:
            widths[0] = max(8, min(widths[0], WIDTH - 2 - sum(widths[1:]) - 2 * (len(widths) - 1)))
        for position, row in enumerate([list(head), *cells]):
            first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
            line = "  ".join(
                f"{cell:>{w}}" if k in right else f"{cell:<{w}}"
                for k, (cell, w) in enumerate(zip([first, *row[1:]], widths, strict=True))
            )
            self._write(self.console, Text("  " + line.rstrip(), style=styles[position - 1] if position else "dim"))
