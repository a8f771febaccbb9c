"""``job=history``: the last windows of a history as a table. It reads the history alone: no source, no device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gpudrift.calibrate import Limits, beyond
from gpudrift.errors import ConfigError, DataError
from gpudrift.history import ALL, History
from gpudrift.records import HistoryPoint, Window
from gpudrift.report.lines import AGAINST
from gpudrift.report.terminal import STYLES, Reporter
from gpudrift.report.wording import count, number, p_value, span_text, times
from gpudrift.windows import ALSO

NAMED = 40  # segments that an error lists


@dataclass(frozen=True)
class Known:
    """A reference of the job that has windows. first, last: labels of the oldest and the newest."""

    id: str
    windows: int
    first: str
    last: str
    newest: HistoryPoint

    @property
    def compared(self) -> str:
        """``previous`` or ``year_ago`` where it is a history of comparisons, else empty."""
        return next((name for name in ALSO if self.id.endswith(f"-{name}")), "")


def show_history(
    root: Path,
    job: str,
    reporter: Reporter,
    *,
    reference_path: Path,
    reference: str | None = None,
    segment: str = ALL,
    last: int = 20,
    limits: Limits | None = None,
    fdr: float = 0.05,
) -> int:
    """Print the ``last`` windows of a job's history; the exit code is 0.

    reference_path: directory of the pinned reference, read for its id alone. reference: an id; ``previous`` or
    ``year_ago``: that comparison of the pinned one; None: the pinned one, else that with the newest window. segment:
    ``all`` or ``column=value``. limits: which metrics count as beyond the usual movement; of a segment ``fdr``
    (``segments.fdr``) stands in for ``warn_p``, as in its verdict.

    Raises:
        ConfigError: there is no such reference or segment; the error lists those there are.
        DataError: there is no history, or a file of it cannot be read.
    """
    known = references_of(root, job)
    if not known:
        raise _no_history(root, job)
    pinned = pinned_id(reference_path)
    shown = _choose(known, reference, pinned)
    windows = History(root, job, shown.id).windows()
    points = [found[segment] for found in windows if segment in found]
    if not points:
        names = sorted({name for found in windows for name in found})
        raise ConfigError(
            "this reference's history has no such segment",
            field="history.segment",
            value=segment,
            allowed=[*names[:NAMED], *([f"and {len(names) - NAMED} more"] if len(names) > NAMED else [])],
        )
    of = "" if segment == ALL else f", {segment}"
    tally = [(verdict, sum(p.verdict == verdict for p in points)) for verdict in STYLES]
    counted = ", ".join(f"{k:,} {verdict}" for verdict, k in tally if k)
    span = span_text(points[0].window.start, points[-1].window.end)
    reporter.table(f"{job}{of}, {_against(shown)}: {_windows(len(points))}, {span}: {counted}", [])
    if not reporter.quiet:
        asked = limits or Limits()
        whole = segment == ALL
        _table(points[-last:], reporter, whole=whole, limits=asked if whole else replace(asked, warn_p=fdr))
        if len(known) > 1:
            _references(known, reporter, pinned, shown.id)
    return 0


def references_of(root: Path, job: str) -> list[Known]:
    """References with windows, those of one pinned reference together."""
    found = []
    for directory in sorted(path for path in (root / job).glob("[!.]*") if path.is_dir()):
        labels = sorted(path.stem for path in directory.glob("[!.]*.parquet"))  # labels sort as time does
        newest = _labelled(History(root, job, directory.name), labels[-1]) if labels else None
        if newest is not None:
            found.append(Known(directory.name, len(labels), labels[0], labels[-1], newest))
    return found


def _labelled(history: History, label: str) -> HistoryPoint | None:
    """A window by its label, by which a history looks windows up."""
    never = datetime.min.replace(tzinfo=UTC)
    return history.get(Window(never, never, label))


def pinned_id(path: Path) -> str | None:
    """The id of the pinned reference; None where there is none that can be read, which a run would say."""
    try:
        found = json.loads((path / "reference.json").read_bytes())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def _choose(known: Sequence[Known], asked: str | None, pinned: str | None) -> Known:
    by_id = {one.id: one for one in known}
    own = [one for one in known if not one.compared] or list(known)
    default = by_id.get(pinned or "") or max(own, key=lambda one: one.newest.window.start)
    if asked is None:
        return default
    chosen = by_id.get(f"{default.id}-{asked}" if asked in ALSO else asked)
    if chosen is None:
        raise ConfigError(
            "this job's history has no such reference",
            field="history.reference",
            value=asked,
            allowed=list(by_id),
        )
    return chosen


def _against(one: Known) -> str:
    return f"against {AGAINST[one.compared]} ({one.id})" if one.compared else f"against reference {one.id}"


def _windows(number_of: int) -> str:
    return f"{number_of:,} window" + ("" if number_of == 1 else "s")


def _references(known: Sequence[Known], reporter: Reporter, pinned: str | None, shown: str) -> None:
    """Which others there are to ask for."""
    rows = []
    for one in known:
        marks = [name for name, holds in (("pinned", one.id == pinned), ("shown", one.id == shown)) if holds]
        marks += [f"against {AGAINST[one.compared]}"] if one.compared else []
        rows.append((one.id, count(one.windows), one.first, one.last, one.newest.verdict, ", ".join(marks)))
    reporter.table("references (history.reference):", [])
    head = ("reference", "windows", "first", "last", "verdict", "")
    reporter.grid(head, rows, right=(1,), styles=[""] * len(rows), whole=True)  # ids are there to be asked for


def _table(points: Sequence[HistoryPoint], reporter: Reporter, *, whole: bool, limits: Limits) -> None:
    head = ("window", "from", "verdict", "score +- se", "usual", "p" if whole else "q", "tolerance", "rows")
    rows = [
        (
            p.window.label,
            f"{p.window.start:%Y-%m-%d}",
            p.verdict if p.window.complete else f"{p.verdict} *",
            "-" if p.score is None else f"{number(p.score)} +- {number(p.se)}",
            times(p.ratio),
            p_value(min((gate.p_holm for gate in p.gates), default=p.p_aa)),
            number(p.delta),
            count(p.rows),
        )
        for p in points
    ]
    reporter.grid(head, rows, right=(3, 4, 5, 6, 7), styles=[STYLES[p.verdict].removeprefix("bold ") for p in points])
    far = [(p.window.label, ", ".join(g.metric for g in p.gates if beyond(g, limits))) for p in points]
    far = [(label, metrics) for label, metrics in far if metrics]
    if far:
        reporter.table("metrics beyond the usual movement:", far)
    if any(not p.window.complete for p in points):
        reporter.table("* the data did not cover the whole window", [])


def _no_history(root: Path, job: str) -> DataError:
    others = sorted(path.name for path in root.glob("[!.]*") if path.is_dir()) if root.is_dir() else []
    return DataError(
        "there is no history of this job",
        where=root,
        field="name",
        value=job,
        allowed=others or None,
        hint="run or backfill the job first, or set name and history.path (or output.dir) to those of one that ran",
    )


def shown_histories(root: Path, jobs: Sequence[str], reference_path: Path) -> dict[str, list[dict[str, HistoryPoint]]]:
    """The windows of those jobs that have any, against the pinned reference, or else that with the newest window."""
    pinned, found = pinned_id(reference_path), {}
    for job in jobs:
        known = references_of(root, job)
        if known:
            found[job] = History(root, job, _choose(known, None, pinned).id).windows()
    return found
