"""A window scored, and the verdict on it with what the history says of the windows before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gpudrift import reference
from gpudrift.calibrate import decide
from gpudrift.config import JobConfig
from gpudrift.context import Context, codes_of, read
from gpudrift.history import History
from gpudrift.pinning import unstable_reason
from gpudrift.records import Cloud, HistoryPoint, Verdict, Window
from gpudrift.reference import Reference
from gpudrift.scoring import Scored, Scorer

PASSED_OVER = 3  # windows without enough data between a window and the one that counts as before it
EXIT = {"stable": 0, "warning": 10, "alert": 20, "insufficient": 30}


def score_window(ctx: Context, scorer: Scorer, window: Window) -> Scored:
    """Read and score one window; too few rows give a ``Scored`` without numbers."""
    least = ctx.job.windows.min_rows
    (rows,) = ctx.source.count([window])
    if rows < least:
        return Scored(window, rows, None)
    cloud, _ = read(ctx, [window], window.label)
    return score_cloud(ctx, scorer, cloud)


def score_cloud(ctx: Context, scorer: Scorer, cloud: Cloud) -> Scored:
    """Score the rows of one window, in canonical order."""
    window = cloud.windows[0]
    pinned = scorer.reference
    reference.check_rows(pinned, cloud.dim, cloud.encoder_id, ctx.job.source.uri)
    if len(cloud) < ctx.job.windows.min_rows:
        return Scored(window, len(cloud), cloud.quality[0])
    pairs, codes = scorer.pairs_of(window, len(cloud)), codes_of(ctx, cloud, window.label)
    with ctx.stage("pairs and metrics"), ctx.reporter.progress(window.label, total=pairs, unit="pairs") as step:
        return scorer.score(cloud, codes, step)


def before_in_history(ctx: Context, history: History, window: Window) -> HistoryPoint | None:
    """The window before as the history has it. Windows without enough data are passed over, a few at most, so that one
    empty day neither ends an alert nor starts the count of two again."""
    for _ in range(PASSED_OVER + 1):
        window = ctx.period.previous(window)
        found = history.get(window)
        if found is None or not found.window.complete:
            return None  # one scored before its end is scored again
        if found.verdict != "insufficient":
            return found
    return None


def segments_before(ctx: Context, history: History, window: Window) -> dict[str, HistoryPoint]:
    """Each segment's window before, by name, as ``before_in_history`` finds that of the whole."""
    found: dict[str, HistoryPoint] = {}
    for _ in range(PASSED_OVER + 1):
        window = ctx.period.previous(window)
        whole = history.get(window)
        if whole is None or not whole.window.complete:
            break
        for name, point in history.segments(window).items():
            if point.verdict != "insufficient":
                found.setdefault(name, point)
    return found


def lacks_segments(history: History, window: Window, columns: Collection[str]) -> bool:
    """Whether the history has no segment of one of these columns: the window was scored before they were configured."""
    names = tuple(history.segments(window)) if columns else ()
    return any(not any(name.startswith(f"{column}=") for name in names) for column in columns)


def verdict_of(ctx: Context, pinned: Reference, scored: Scored, previous: HistoryPoint | None) -> tuple[Verdict, str]:
    """The verdict and its reason."""
    if scored.measured is None:
        return (
            "insufficient",
            f"{scored.rows} rows in {scored.window.label}; windows.min_rows is {ctx.job.windows.min_rows}",
        )
    unstable = unstable_reason(ctx.job, pinned)
    if unstable is not None:
        return "insufficient", f"unstable reference: {unstable}"
    if scored.judgement is None and scored.calibration is not None:
        return "insufficient", f"none of the metrics that gate can be judged: {', '.join(ctx.gates)}"
    return decide(scored.judgement, previous, ctx.limits)


def exit_code(job: JobConfig, verdict: Verdict) -> int:
    """The exit code of a verdict under ``alert.fail_on``; insufficient data always has its own."""
    fails = {"never": (), "warn": ("warning", "alert"), "alert": ("alert",)}[job.alert.fail_on.value]
    return EXIT[verdict] if verdict in (*fails, "insufficient") else 0


def metrics_of(scored: Scored) -> list[Any]:
    return [] if scored.measured is None else list(scored.measured.metrics.values())
