"""The report of a backfill: how many windows got which verdict, when it was not stable, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpudrift.outcomes.records import Outcomes
from gpudrift.records import HistoryPoint, Verdict
from gpudrift.report.html import index, outcomes, sections
from gpudrift.report.html.figures import figures
from gpudrift.report.html.page import OWN, write_page
from gpudrift.report.html.tables import Columns, Table, cut, table
from gpudrift.report.html.texts import data, environment, settings_text, verdict_mark
from gpudrift.report.wording import count, number, times

if TYPE_CHECKING:
    from gpudrift.report.style import Picture

DRIFTED: tuple[Verdict, ...] = ("warning", "alert")
MOST_EPISODES = 60
MOST_SILENT = 3  # windows in a row without enough data that a spell goes on over, as an alert does (gpudrift.verdict)


@dataclass(frozen=True)
class Episode:
    """Windows in a row none of which is stable, from a warning or alert to a warning or alert. points: all of them,
    those without enough data in between too, ``MOST_SILENT`` in a row at most."""

    points: tuple[HistoryPoint, ...]

    @property
    def verdict(self) -> Verdict:
        return "alert" if any(point.verdict == "alert" for point in self.points) else "warning"

    @property
    def peak(self) -> HistoryPoint:
        """The window of the largest score; of equal ones the first."""
        return max(self.points, key=lambda point: -1.0 if point.score is None else point.score)


def episodes(points: Sequence[HistoryPoint]) -> list[Episode]:
    """Oldest first. A gap between windows ends one, and so do more than ``MOST_SILENT`` windows without enough data."""
    found: list[Episode] = []
    run: list[HistoryPoint] = []
    for point in [*sorted(points, key=lambda p: p.window), None]:
        goes_on = point is not None and point.verdict != "stable"
        if run and (point is None or not goes_on or point.window.start != run[-1].window.end):
            found += _trimmed(run)
            run = []
        if point is not None and goes_on:
            run.append(point)
    return found


def _trimmed(run: Sequence[HistoryPoint]) -> Iterator[Episode]:
    places = [k for k, point in enumerate(run) if point.verdict in DRIFTED]
    ends = [k for k in range(1, len(places)) if places[k] - places[k - 1] > MOST_SILENT + 1]
    for first, end in zip([0, *ends], [*ends, len(places)], strict=True):
        if first < end:
            yield Episode(tuple(run[places[first] : places[end - 1] + 1]))


def render_backfill(
    job: str,
    reference: str,
    points: Sequence[HistoryPoint],
    pictures: Sequence[Picture],
    found: Outcomes | None,
    notes: Sequence[str],
    config: Mapping[str, Any],
    *,
    reports: Mapping[str, str] | None = None,
    home: str | None = None,
    ended: datetime | None = None,
) -> str:
    """One self-contained HTML file.

    reference: the range in words. points: of the windows of the range. pictures: history, segments, and those of the
    product metrics. reports: addresses of windows' reports by label. home: address of the index. ended: when the
    backfill ended, in UTC: told in one line.
    """
    ordered = sorted(points, key=lambda point: point.window)
    drawn, spells, tally = figures(pictures), episodes(points), Counter(point.verdict for point in points)
    page = {
        "job": job,
        "home": home,
        "range": f"{ordered[0].window.label} to {ordered[-1].window.label}" if ordered else "no window",
        "lead": _lead(reference, ordered, spells),
        "tiles": [
            (
                verdict_mark(verdict),
                f"{tally[verdict]:,}",
                f"{100 * tally[verdict] / len(ordered):.0f}% of {len(ordered):,} windows",
            )
            for verdict in ("stable", "warning", "alert", "insufficient")
            if tally[verdict]
        ],
        "figures": drawn,
        "episodes": episode_table(spells, reports or {}),
        "metrics": outcomes.metrics_part(found, {name: one for name, one in drawn.items() if name not in OWN}),
        "windows": sections.history_table(ordered, f"All {len(ordered):,} windows", reports),
        "notes": list(notes),
        "reference": reference,
        "settings": settings_text(config),
        "ended": f"Backfill of {ended:%Y-%m-%d %H:%M} UTC" if ended is not None else "",
    }
    return environment().get_template("backfill.html.j2").render(page)


def write_backfill(
    directory: Path,
    job: str,
    reference: str,
    points: Sequence[HistoryPoint],
    pictures: Sequence[Picture],
    found: Outcomes | None,
    notes: Sequence[str],
    config: Mapping[str, Any],
    *,
    ended: datetime | None = None,
) -> tuple[Path, ...]:
    """Write backfill.html, and index.html, which links to it, again. Returns both."""
    known, _ = index.entries(directory / index.REPORTS, job)
    reports = {entry.window: index.address(entry.window) for entry in known}
    path = directory / index.BACKFILL
    text = render_backfill(
        job, reference, points, pictures, found, notes, config, reports=reports, home=index.INDEX, ended=ended
    )
    write_page(path, text)
    return path, index.write_index(directory, job)


def _lead(reference: str, points: Sequence[HistoryPoint], spells: Sequence[Episode]) -> str:
    judged = [point for point in points if point.score is not None and point.ratio is not None]
    if not judged:
        windows = "The window has not" if len(points) == 1 else f"None of {len(points):,} windows has"
        return f"{windows} enough data for a comparison with the reference ({reference})."
    windows = "1 window was" if len(judged) == 1 else f"{len(judged):,} windows were"
    left = len(points) - len(judged)
    others = f"; {left:,} more {'has' if left == 1 else 'have'} too little data" if left else ""
    text = f"{windows} compared with the reference ({reference}){others}."
    alerts = sum(spell.verdict == "alert" for spell in spells)
    if not spells:
        text += " None of them drifted."
    else:
        if len(spells) == 1:
            told = f"once, {'with' if alerts else 'without'} an alert"
        elif alerts in (0, len(spells)):
            told = f"{len(spells):,} times, {'always with' if alerts else 'never with'} an alert"
        else:
            told = f"{len(spells):,} times, {alerts:,} of them with an alert"
        text += f" The data drifted {told}."
    top = max(judged, key=lambda point: point.ratio or 0.0)
    return (
        f"{text} {top.window.label} lies furthest away, {times(top.ratio).removesuffix('x')} times the usual movement."
    )


def episode_table(spells: Sequence[Episode], reports: Mapping[str, str]) -> Table | None:
    """The newest first."""
    rows = []
    for spell in reversed(spells):
        first, last, peak = spell.points[0], spell.points[-1], spell.peak
        silent = sum(point.verdict == "insufficient" for point in spell.points)
        rows.append(
            (
                sections.linked(first.window.label, reports),
                sections.linked(last.window.label, reports),
                verdict_mark(spell.verdict),
                count(len(spell.points)) + (f" ({silent} without enough data)" if silent else ""),
                number(peak.score),
                times(peak.ratio),
                data(peak.window.label),
            )
        )
    columns: Columns = (
        ("From", "word"),
        ("To", "word"),
        ("Verdict", "word"),
        ("Windows", "number"),
        ("Highest score", "number"),
        ("Times usual", "number"),
        ("In", "word"),
    )
    shown, note = cut(rows, MOST_EPISODES, "backfill.json")
    said = "Windows in a row that were not stable, of all rows together. The verdict is the gravest of them."
    return table("Spells of drift", columns, shown, f"{said} {note}".rstrip())
