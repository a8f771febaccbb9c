"""``job=backtest``: history replayed window by window as if run then, for several reference sizes and thresholds.

Each reference is pinned from windows that end where the configured one ends, in a folder of its own: the job's pinned
reference and its history are neither read nor written. All windows are scored once a reference size, and what they
measured is kept, a file a window, so that a run that was cut off goes on; thresholds are then replayed without pairs
(``replay``). docs/backtest.md has the definitions, and the keys of backtest.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from gpudrift import plan
from gpudrift.backfill import batches, score_batch
from gpudrift.config import parse_date, parse_onset, parse_quiet, to_plain
from gpudrift.context import Context
from gpudrift.errors import ConfigError
from gpudrift.files import atomic_path, make_directory, sweep, write_json
from gpudrift.history import write_table
from gpudrift.pinning import describe, pin_reference, unstable_reason
from gpudrift.records import Window
from gpudrift.reference import Reference
from gpudrift.replay import Kept, Onset, Setting, assess, from_plain, recommend, replay
from gpudrift.replay import to_plain as kept_plain
from gpudrift.report.replayed import Asked, Tried, say, summary_of, table_of
from gpudrift.scoring import KEEP, Scored, Scorer
from gpudrift.verdict import PASSED_OVER
from gpudrift.windows import data_windows, plan_windows

FORMAT = 1  # of the files that keep what a window measured
# what changes a window's numbers beside the reference, whose id stands for the rest
_OWN = ("source", "quality", "score", "device", "precision")


def backtest(ctx: Context) -> int:
    """Replay ``backtest.start`` ... ``backtest.end`` for each of ``backtest.windows`` and ``backtest.warn_p``."""
    asked, thresholds = what_is_asked(ctx), thresholds_of(ctx)
    contexts = [at_size(ctx, count) for count in ctx.job.backtest.windows or [len(ctx.plan.reference)]]
    tried: list[Tried] = []
    for within in contexts:
        pinned, kept = measured(within, asked.windows)
        unusable = unstable_reason(ctx.job, pinned)
        for warn_p in thresholds:
            limits = replace(ctx.limits, warn_p=warn_p)
            points = replay(kept, limits, ctx.gates, passed_over=PASSED_OVER, unstable=unusable is not None)[1:]
            found = assess(points, asked.quiet, asked.onsets, passed_over=PASSED_OVER)
            setting = Setting(len(within.plan.reference), warn_p, found, unusable)
            tried.append(Tried(setting, pinned, tuple(points)))
    best, sentence = recommend([item.setting for item in tried])
    with ctx.stage("report"):
        write_table(table_of(asked, tried), ctx.output / "backtest.parquet")
        named = {"job": ctx.job.name, "period": ctx.job.windows.period}
        write_json(ctx.output / "backtest.json", summary_of(named, asked, tried, best, sentence))
        say(ctx.reporter, asked, [item.setting for item in tried], sentence)
        draw(ctx, asked, tried)
        ctx.reporter.note(f"all windows and settings in {ctx.output / 'backtest.json'} and backtest.parquet")
    return 0


def draw(ctx: Context, asked: Asked, tried: Sequence[Tried]) -> None:
    """plots/alarms: the verdicts of every setting over time, as many as fit."""
    from gpudrift.report.alarms import MOST, AlarmStrip, alarm_timeline

    if len(tried) > MOST:
        ctx.reporter.warn(f"the picture shows the first {MOST} of {len(tried)} settings")
    strips = [AlarmStrip(f"{t.setting.windows} windows at {t.setting.warn_p:g}", t.points) for t in tried[:MOST]]
    onsets = [(_midnight(onset.day), onset.name) for onset in asked.onsets]
    quiet: list[tuple[datetime, datetime]] = []
    for window in asked.windows:
        if window.label in asked.quiet:
            begun = quiet.pop()[0] if quiet and quiet[-1][1] == window.start else window.start
            quiet.append((begun, window.end))
    stem = ctx.output / "plots" / "alarms"
    alarm_timeline(strips, stem, onsets=onsets, quiet=quiet, job=ctx.job.name)
    ctx.reporter.note(f"picture in {stem}.png")


def what_is_asked(ctx: Context) -> Asked:
    """The windows to replay, and what is known of them; everything checked before anything is read."""
    b, extent = ctx.job.backtest, ctx.source.extent()
    reference_end = ctx.plan.reference[-1].end
    start, end = parse_date("backtest.start", b.start), parse_date("backtest.end", b.end)
    if start is not None and _midnight(start) < reference_end:
        raise ConfigError(
            "the range begins inside the reference: its windows were not judged then, they were what it is made of",
            field="backtest.start",
            value=b.start,
            allowed=f"{reference_end:%Y-%m-%d} (the end of the reference) or later",
        )
    windows = tuple(
        window
        for window in data_windows(ctx.period, extent.first, extent.last)
        if window.complete
        and window.start >= (reference_end if start is None else _midnight(start))
        and (end is None or window.end <= _midnight(end))
    )
    if not windows:
        raise ConfigError(
            "the range holds no complete window of the data after the reference",
            field="backtest.start, backtest.end",
            value=[b.start, b.end],
            allowed=f"dates from {reference_end:%Y-%m-%d} (the end of the reference) to {extent.last:%Y-%m-%d}",
        )
    onsets = tuple(sorted((Onset(*parse_onset(text)) for text in b.onsets), key=lambda onset: onset.day))
    first, last = windows[0].start, windows[-1].end
    replayed = f"{first:%Y-%m-%d} to {last:%Y-%m-%d} (excluded), which is replayed"
    for onset in onsets:
        if not first <= _midnight(onset.day) < last:
            raise ConfigError(
                "this onset lies outside the windows that are replayed",
                field="backtest.onsets",
                value=onset.day.isoformat(),
                allowed=f"dates inside {replayed}",
            )
    ranges = [(_midnight(a), _midnight(b)) for a, b in map(parse_quiet, b.quiet)]
    if not ranges and onsets:
        ranges = [(first, _midnight(onsets[0].day))]
    quiet: set[str] = set()
    for begin, stop in ranges:
        inside = {window.label for window in windows if begin <= window.start and window.end <= stop}
        if not inside and b.quiet:
            raise ConfigError(
                "this quiet range holds no whole window that is replayed",
                field="backtest.quiet",
                value=f"{begin:%Y-%m-%d}..{stop:%Y-%m-%d}",
                allowed=f"ranges inside {replayed}",
            )
        quiet |= inside
    return Asked(windows, onsets, frozenset(quiet), bool(b.quiet))


def thresholds_of(ctx: Context) -> list[float]:
    """The thresholds to try; none above ``calibrate.clear_p``, or an alert could clear while it warns."""
    clear_p = ctx.limits.clear_p
    high = [p for p in ctx.job.backtest.warn_p if p > clear_p]
    if high:
        raise ConfigError(
            "a threshold lies above the level at which alerts clear",
            field="backtest.warn_p",
            value=high,
            allowed=f"at most calibrate.clear_p ({clear_p:g})",
        )
    return list(ctx.job.backtest.warn_p) or [ctx.limits.warn_p]


def at_size(ctx: Context, count: int) -> Context:
    """The job with a reference of the ``count`` windows that end where the configured one ends."""
    extent, configured = ctx.source.extent(), ctx.plan.reference
    complete = [w for w in data_windows(ctx.period, extent.first, extent.last) if w.complete]
    before = [w for w in complete if w.start <= configured[-1].start]
    least = ctx.job.calibrate.min_windows
    if not least <= count <= len(before):
        raise ConfigError(
            "no verdict can be had from a reference of so many windows",
            field="backtest.windows",
            value=count,
            allowed=f"{least} (calibrate.min_windows) to {len(before)}, the complete windows up to "
            f"{configured[-1].label}, where the reference ends",
        )
    # the configured range itself where the size is its own, so that it gives the job's own reference
    start = ctx.span[0] if count == len(configured) else before[-count].start
    span = (start.date(), ctx.span[1].date())
    wanted = replace(ctx.job.windows.reference, start=span[0].isoformat(), end=span[1].isoformat())
    return replace(
        ctx,
        job=replace(ctx.job, windows=replace(ctx.job.windows, reference=wanted)),
        plan=plan_windows(ctx.period, extent.first, extent.last, reference_start=span[0], reference_end=span[1]),
        reference_path=ctx.output / "backtest" / f"reference-{count}",
        notes=[],
    )


def measured(ctx: Context, windows: Sequence[Window]) -> tuple[Reference, list[Kept]]:
    """Pin the context's reference and measure the windows against it, each once: the reference, and what was measured.
    The first of them is the window before the range, which an alert in the range's first one needs."""
    (ctx.reference_path / "reference.json").unlink(missing_ok=True)  # made anew: the rows may be others by now
    planned = plan.plan_of(ctx)
    plan.require_memory(planned, ctx.device.device)
    within = replace(ctx, reporter=ctx.reporter.silenced())
    pinned, rows = pin_reference(within)
    scorer = Scorer(pinned, rows, ctx.panel, ctx.limits, ctx.limit, ctx.gates, KEEP, ctx.pairs)
    folder = make_directory(ctx.output / "backtest" / f"{pinned.id}-{_digest(ctx)}")
    sweep(ctx.reference_path, folder)
    wanted = [ctx.period.previous(windows[0]), *windows]
    counts = ctx.source.count(wanted)
    found = [_load(folder, w, counted) for w, counted in zip(wanted, counts, strict=True)]
    known = {kept.window.label: kept for kept in found if kept is not None}
    missing = [w for w in wanted if w.label not in known]
    for line in (describe(pinned), *within.notes):
        ctx.reporter.note(f"reference of {len(ctx.plan.reference)}: {line}")
    done = len(wanted) - len(missing)
    ctx.reporter.note(f"{len(wanted)} windows with the one before the range, {done} already scored")
    with ctx.reporter.progress("backtest", total=len(missing), unit="windows") as advance:
        for batch in batches(within, missing):
            for (window, counted), scored in zip(batch, score_batch(within, scorer, batch), strict=True):
                known[window.label] = kept = keep(scorer, scored, counted)
                if kept.metrics:
                    write_json_exactly(folder / f"{window.label}.json", {"format": FORMAT} | kept_plain(kept))
                advance(1)
    kept_all = [_enforced(ctx, known[w.label]) for w in wanted]
    other = [kept.window.label for kept in kept_all if kept.headline]
    if other:
        named = ", ".join(other[:10]) + (", ..." if len(other) > 10 else "")
        ctx.reporter.warn(f"{len(other)} windows look like a new encoder or normalisation, not content drift: {named}")
    return pinned, kept_all


def keep(scorer: Scorer, scored: Scored, counted: int) -> Kept:
    """What a verdict on the window needs at any threshold."""
    if scored.measured is None:
        return Kept(scored.window, scored.rows, counted)
    inside = scorer.reference.index_of(scored.window) is not None
    return Kept(
        scored.window,
        scored.rows,
        counted,
        scored.measured.metrics,
        None if scored.calibration is None else scorer.null_for(scored.pair_rows, scored.window if inside else None),
        inside and scored.calibration is not None,
        "" if scored.encoder is None else scored.encoder.headline,
    )


def _enforced(ctx: Context, kept: Kept) -> Kept:
    """``windows.min_rows`` may have been raised since the window was scored."""
    return kept if kept.rows >= ctx.job.windows.min_rows else Kept(kept.window, kept.rows, kept.counted)


def _digest(ctx: Context) -> str:
    plain = to_plain(ctx.job)
    own = {key: plain[key] for key in _OWN} | {"limit": ctx.limit.rows}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]


def _load(folder: Path, window: Window, counted: int) -> Kept | None:
    """What an earlier run kept; None where there is nothing, or of another format, or the window has other rows now."""
    try:
        plain = json.loads((folder / f"{window.label}.json").read_text(encoding="utf-8"))
        if plain.pop("format") != FORMAT:
            return None
        kept = from_plain(plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # scored again and overwritten
    return kept if kept.window == window and kept.counted == counted else None


def write_json_exactly(target: Path, value: Mapping[str, Any]) -> None:
    """JSON that keeps NaN apart from null: what is read again must be the same numbers."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
