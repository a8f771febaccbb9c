"""``job=backfill``: every window of a range against one pinned reference, oldest first, resumable.

A window already in the history is not scored again, unless windows before it are new and change its verdict (a first
run scores only one window before its own; an alert before that one would have held). Windows are read a batch at a
time, as many as fit in about the size of the reference, so files that several windows share are read once for all of
them, and what metrics find out about the reference alone is kept from window to window (``scoring.KEEP`` bytes). Cut
off, it goes on where it stopped: each window's rows enter the history by a rename of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from gpudrift.calibrate import decide, judge, p_panel
from gpudrift.config import parse_date, to_plain
from gpudrift.context import Context, read
from gpudrift.errors import ConfigError
from gpudrift.examine import segment_scorer, segments_of
from gpudrift.files import write_json
from gpudrift.history import ALL, History, with_reference, with_reference_points
from gpudrift.lagged import Neighbours
from gpudrift.outcomes import output as outcomes_output
from gpudrift.outcomes.records import Outcomes
from gpudrift.outcomes.stage import OutcomeTable, beside_history, read_table
from gpudrift.pinning import obtain_reference
from gpudrift.records import HistoryPoint, Window
from gpudrift.reference import Reference
from gpudrift.report.wording import span_text
from gpudrift.result import write_outcomes
from gpudrift.scoring import KEEP, Scored, Scorer
from gpudrift.verdict import (
    before_in_history,
    lacks_segments,
    metrics_of,
    score_cloud,
    score_window,
    segments_before,
    verdict_of,
)
from gpudrift.windows import data_windows

BATCH_ROWS = 200_000


def backfill(ctx: Context) -> int:
    """Score every complete window of ``backfill.start`` ... ``backfill.end``, and leave behind what they amount to."""
    table = read_table(ctx)
    pinned, rows, _ = obtain_reference(ctx)
    history = History(ctx.history_path, ctx.job.name, pinned.id)
    scorer = Scorer(pinned, rows, ctx.panel, ctx.limits, ctx.limit, ctx.gates, KEEP, ctx.pairs)
    windows = windows_of_range(ctx)
    within, other = replace(ctx, reporter=ctx.reporter.silenced()), list[str]()
    neighbours, by_segment = Neighbours(within, scorer), segment_scorer(within, scorer)
    columns = () if by_segment is None else tuple(by_segment.columns)
    missing = [window for window in windows if not _known(history, window, columns)]
    ctx.reporter.note(f"{len(windows)} windows, {len(windows) - len(missing)} already in the history")
    lead = ctx.period.previous(windows[0])
    for window in windows:
        if window not in missing and neighbours.lacks(window):
            neighbours.compare(window)
    if lead.start >= ctx.source.extent().first and not _known(history, lead, columns):
        missing = [lead, *missing]  # an alert needs two windows: the range's first one has one before it too
    neighbours.expect(missing)

    def enter(scored: Scored) -> None:
        verdict, _ = verdict_of(ctx, pinned, scored, before_in_history(ctx, history, scored.window))
        before = {} if by_segment is None else segments_before(ctx, history, scored.window)
        segments = segments_of(within, by_segment, scored, before)
        history.write(scored.point(verdict), metrics_of(scored), segments)
        if scored.taken is not None:
            neighbours.know(scored.taken)
            neighbours.compare(scored.window)
        ctx.pairs.forget()  # a window that stands in the history is not scored again

    with ctx.reporter.progress("backfill", total=len(missing), unit="windows") as advance:
        for batch in batches(within, missing):
            for scored in score_batch(within, scorer, batch):
                if scored.encoder is not None and scored.encoder.headline:
                    other.append(scored.window.label)
                enter(scored)
                advance(1)
    new = False
    for window in windows:
        if new and _outdated(ctx, history, window):
            enter(score_window(within, scorer, window))
        else:
            new = window in missing
    if other:
        named = ", ".join(other[:10]) + (", ..." if len(other) > 10 else "")
        ctx.reporter.warn(f"{len(other)} windows look like a new encoder or normalisation, not content drift: {named}")
    leave_behind(ctx, pinned, history, windows, table)
    return 0


def leave_behind(
    ctx: Context, pinned: Reference, history: History, windows: Sequence[Window], table: OutcomeTable | None
) -> None:
    """What a range leaves when all of its windows are in the history: pictures, product metrics, the report, and
    backfill.json, which comes last."""
    from gpudrift.report import pictures, plots
    from gpudrift.report.html.backfill import write_backfill

    asked = {window.label for window in windows}
    known = [by_segment for by_segment in history.windows() if by_segment[ALL].window.label in asked]
    points, last = [by_segment[ALL] for by_segment in known], windows[-1]
    outcomes = beside_history(ctx, table, with_reference(pinned, known), last)
    plots_directory = ctx.output / "plots"
    drawn = [
        plots.history(
            with_reference_points(pinned, points),
            plots_directory / "history",
            reference_span=(pinned.start, pinned.end),
            job=ctx.job.name,
        )
    ]
    if any(len(by_segment) > 1 for by_segment in known):
        drawn.append(pictures.segments_over_windows(known, plots_directory, job=ctx.job.name))
    drawn += pictures.outcome_pictures(outcomes, plots_directory, job=ctx.job.name)
    write_outcomes(outcomes, ctx.output, ctx.job.name, pinned.id)
    report = ctx.output / "backfill.html"
    report.unlink(missing_ok=True)
    if ctx.job.report.html:
        told = f"{span_text(pinned.start, pinned.end)}, {len(pinned.kept)} windows"
        write_backfill(
            ctx.output,
            ctx.job.name,
            told,
            points,
            drawn,
            outcomes,
            ctx.notes,
            to_plain(ctx.job),
            ended=datetime.now(UTC),
        )
    write_summary(ctx, points, outcomes)
    ctx.reporter.history_table(points)
    if outcomes is not None:
        ctx.reporter.outcome_lines(outcomes_output.lines(outcomes))
    tally = Counter(point.verdict for point in points)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in tally.most_common())
    ctx.reporter.note(f"all windows in {ctx.output / 'backfill.json'}")
    where = f"report in {report}" if ctx.job.report.html else f"picture in {plots_directory / 'history.png'}"
    ctx.reporter.note(f"{counted}; {where}")


def _known(history: History, window: Window, columns: Sequence[str]) -> bool:
    """Whether the history holds the window as it is now: one scored before its end, without enough data (rows may
    have come since), or without the segments of these columns is looked at again."""
    point = history.get(window)
    if point is None or point.window != window or point.score is None:
        return False
    return not lacks_segments(history, window, columns)


def _outdated(ctx: Context, history: History, window: Window) -> bool:
    """Whether the window's verdict is another one beside the windows before it as the history has them now."""
    point = history.get(window)
    if point is None or point.verdict == "insufficient":
        return False
    verdict, _ = decide(judge(point.gates, ctx.limits), before_in_history(ctx, history, window), ctx.limits)
    return verdict != point.verdict


def windows_of_range(ctx: Context) -> list[Window]:
    """The complete windows of the range; the default range is that of the data."""
    extent = ctx.source.extent()
    start = parse_date("backfill.start", ctx.job.backfill.start)
    end = parse_date("backfill.end", ctx.job.backfill.end)
    found = [
        window
        for window in data_windows(ctx.period, extent.first, extent.last)
        if window.complete
        and (start is None or window.start.date() >= start)
        and (end is None or window.end.date() <= end)
    ]
    if not found:
        raise ConfigError(
            "the range holds no complete window of the data",
            field="backfill.start, backfill.end",
            value=[ctx.job.backfill.start, ctx.job.backfill.end],
            allowed=f"dates inside the data, {extent.first:%Y-%m-%d} to {extent.last:%Y-%m-%d}",
        )
    return found


def batches(ctx: Context, windows: list[Window]) -> Iterator[list[tuple[Window, int]]]:
    """Windows with their row counts, in batches of about ``BATCH_ROWS`` rows."""
    batch: list[tuple[Window, int]] = []
    held = 0
    for window, rows in zip(windows, ctx.source.count(windows), strict=True):
        if batch and held + rows > BATCH_ROWS:
            yield batch
            batch, held = [], 0
        batch.append((window, rows))
        held += rows
    if batch:
        yield batch


def score_batch(ctx: Context, scorer: Scorer, batch: list[tuple[Window, int]]) -> Iterator[Scored]:
    """Read a batch in one pass and score its windows in time order."""
    least = ctx.job.windows.min_rows
    full = [window for window, rows in batch if rows >= least]
    clouds = {}
    if full:
        cloud, _ = read(ctx, full, f"{full[0].label} to {full[-1].label}")
        clouds = {window.label: cloud.window(k) for k, window in enumerate(full)}
    for window, rows in batch:
        if window.label in clouds:
            yield score_cloud(ctx, scorer, clouds.pop(window.label))
        else:
            yield Scored(window, rows, None)


def write_summary(ctx: Context, points: Sequence[HistoryPoint], outcomes: Outcomes | None) -> None:
    """backfill.json: window, verdict, score and p_AA of each window, and the product metrics."""
    write_json(
        ctx.output / "backfill.json",
        {
            "job": ctx.job.name,
            "verdicts": dict(sorted(Counter(p.verdict for p in points).items())),
            "windows": [
                {
                    "window": p.window.label,
                    "verdict": p.verdict,
                    "score": p.score,
                    "se": p.se,
                    "p_panel": p_panel(p.gates),
                    "p_aa": p.p_aa,
                    "p_close": p.p_close,
                    "ratio": p.ratio,
                    "rows": p.rows,
                    "in_reference": p.in_reference,
                }
                for p in points
            ],
            "outcomes": None if outcomes is None else outcomes_output.as_json(outcomes),
        },
    )
