"""The job, a call a stage: read this file first.

source -> windows -> reference (pinned) -> score -> calibrate -> verdict -> history -> outcomes -> report -> sinks. One
way; no stage calls back. ``run`` is the nightly and weekly job. What other jobs share with it: ``context`` (source,
plan of windows, device), ``pinning`` (the reference), ``verdict`` (scores and verdicts), ``notes`` (lines for readers).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpudrift import reference
from gpudrift.config import JobConfig, JobKind, parse_date, to_plain
from gpudrift.context import Context, history_of, limits_of, output_of, prepare, reference_of, textfile_of
from gpudrift.errors import ConfigError
from gpudrift.examine import attribution_of, segment_scorer, segments_of
from gpudrift.files import exclusive, make_directory, sweep
from gpudrift.history import ALL, History, with_reference
from gpudrift.lagged import Neighbours
from gpudrift.notes import calibration_notes, dropped_rows, encoder_notes, odd_rows, sampling_notes, segment_notes
from gpudrift.outcomes.stage import beside_history, read_table
from gpudrift.pinning import describe, obtain_reference, pin_reference, unstable_reason
from gpudrift.records import HistoryPoint
from gpudrift.result import Run, write_outputs, write_result
from gpudrift.scoring import Scored, Scorer
from gpudrift.sinks import tell
from gpudrift.verdict import (
    EXIT,
    before_in_history,
    exit_code,
    lacks_segments,
    metrics_of,
    score_window,
    segments_before,
    verdict_of,
)

if TYPE_CHECKING:
    from gpudrift.report.terminal import Reporter
    from gpudrift.segments.scorer import SegmentScorer


LAST_WRITTEN = {JobKind.run: "result.json", JobKind.backfill: "backfill.json", JobKind.backtest: "backtest.json"}


def run_job(job: JobConfig, reporter: Reporter) -> int:
    """Run what ``job.job`` names and return the process's exit code."""
    if job.job is JobKind.generate:
        return generate_corpus(job, reporter)
    if job.job is JobKind.history:
        from gpudrift.history_job import show_history

        return show_history(
            history_of(job),
            job.name,
            reporter,
            reference_path=reference_of(job),
            reference=job.history.reference,
            segment=job.history.segment,
            last=job.history.last,
            limits=limits_of(job),
            fdr=job.segments.fdr,
        )
    if job.job is JobKind.dashboard:
        return make_dashboard(job, reporter)
    if job.job is JobKind.compare:
        from gpudrift.compare import compare, lacks_corpus

        if lacks_corpus(job):
            generate_corpus(job, reporter)
        return compare(job, reporter)
    output = make_directory(output_of(job))
    history_path = history_of(job)
    with exclusive(history_path / f".{job.name}.lock"):
        if job.job in LAST_WRITTEN:  # its presence means that this run ended, so one that is refused removes it
            (output / LAST_WRITTEN[job.job]).unlink(missing_ok=True)
        ctx = prepare(job, reporter, output, history_path)
        kept = (output / "plots", output / "reports", history_path / job.name, *history_path.glob(f"{job.name}/*"))
        with ctx.engine:
            sweep(output, ctx.reference_path, *kept)
            code = run_with(ctx)
            ctx.pairs.forget()
            return code


def run_with(ctx: Context) -> int:
    """The jobs that read a source."""
    kind = ctx.job.job
    if kind is JobKind.reference:
        return make_reference(ctx)
    if kind is JobKind.backfill:
        from gpudrift.backfill import backfill

        announce_size(ctx)
        return backfill(ctx)
    if kind is JobKind.backtest:
        from gpudrift.backtest import backtest

        return backtest(ctx)
    if kind is JobKind.stream:
        from gpudrift.stream.job import stream

        return stream(ctx)
    if kind is JobKind.plan:
        from gpudrift.plan import make_plan

        return make_plan(ctx)
    return run(ctx)


def run(ctx: Context) -> int:
    """The nightly and weekly job: one window against the pinned reference."""
    announce_size(ctx)
    table = read_table(ctx)
    pinned, rows, made = obtain_reference(ctx)
    history = History(ctx.history_path, ctx.job.name, pinned.id)
    scorer = Scorer(pinned, rows, ctx.panel, ctx.limits, ctx.limit, ctx.gates, pairs=ctx.pairs)
    scored = score_window(ctx, scorer, ctx.plan.current)
    for line in dropped_rows(scored.window.label, [] if scored.quality is None else [scored.quality]):
        ctx.note(line)
    for line in (*odd_rows(scored, rows.quality), *encoder_notes(scored)):
        ctx.note(line)
    attribution, happened = attribution_of(ctx, scorer, scored)
    neighbours, by_segment = Neighbours(ctx, scorer), segment_scorer(ctx, scorer)
    with history.together(), neighbours.together():  # a run that cannot read on leaves no trace
        previous, previous_scored = score_previous(ctx, scorer, history, scored, neighbours, by_segment)
        segments = segments_of(ctx, by_segment, scored, segments_before(ctx, history, scored.window))
        scored = let_go(scored, neighbours)
        verdict, reason = verdict_of(ctx, pinned, scored, previous)
        if scored.encoder is not None and scored.encoder.headline:
            reason = f"{reason}; {scored.encoder.headline}"
        history.write(scored.point(verdict), metrics_of(scored), segments)
        lagged = neighbours.compare(scored.window) if scored.measured is not None else ()
    windows = tuple(w for w in history.windows() if w[ALL].window.start <= scored.window.start)
    outcomes = beside_history(ctx, table, with_reference(pinned, windows), scored.window)
    ran = Run(
        job=ctx.job.name,
        config=to_plain(ctx.job),
        reference=pinned,
        reference_path=ctx.reference_path,
        reference_made=made,
        reference_rows=scorer.rows,
        arithmetic=scorer.arithmetic,
        limit=scorer.limit,
        limits=ctx.limits,
        scored=scored,
        verdict=verdict,
        reason=reason,
        previous=previous,
        previous_scored=previous_scored,
        lagged=lagged,
        attribution=attribution,
        happened=happened,
        segments=segments,
        history=windows,
        outcomes=outcomes,
        plan=ctx.plan,
        device=ctx.device,
        notes=tuple(
            ctx.notes + sampling_notes(scorer, scored) + calibration_notes(scored, ctx.gates) + segment_notes(segments)
        ),
        seconds=ctx.seconds,
        engine=ctx.engine,
        moved=ctx.moved,
        exit_code=exit_code(ctx.job, verdict),
    )
    with ctx.stage("report"):
        summary = write_outputs(ran, ctx.output)
    with ctx.stage("sinks"):
        deliveries = tell(ctx, ran, summary)
    write_result(ran, ctx.output, deliveries)
    ctx.reporter.verdict_table(summary)
    return ran.exit_code


def let_go(scored: Scored, neighbours: Neighbours) -> Scored:
    """A window without its rows, once no stage but the comparison with its neighbours needs them."""
    if scored.taken is not None:
        neighbours.know(scored.taken)
    return replace(scored, taken=None)


def score_previous(
    ctx: Context,
    scorer: Scorer,
    history: History,
    scored: Scored,
    neighbours: Neighbours,
    by_segment: SegmentScorer | None,
) -> tuple[HistoryPoint | None, bool]:
    """The window before: from the history, else, or where that lacks its segments, scored now, so that a first run can
    alert too."""
    window = ctx.plan.previous
    known = before_in_history(ctx, history, scored.window)
    columns = () if by_segment is None else by_segment.columns
    if known is not None and not lacks_segments(history, known.window, columns):
        return known, False
    if not window.complete or scored.judgement is None:
        return known, False
    before = score_window(ctx, scorer, window)
    earlier = before_in_history(ctx, history, window)
    verdict, _ = verdict_of(ctx, scorer.reference, before, earlier)
    segments = segments_of(ctx, by_segment, before, segments_before(ctx, history, window))
    point = let_go(before, neighbours).point(verdict)
    history.write(point, metrics_of(before), segments)
    return (point, True) if before.judgement is not None else (before_in_history(ctx, history, scored.window), False)


def announce_size(ctx: Context) -> None:
    """Rows, memory and pairs before anything is read, so that nobody waits for a run that cannot fit."""
    from gpudrift import plan

    planned = plan.plan_of(ctx)
    ctx.reporter.note(plan.sentence(planned))
    plan.require_memory(planned, ctx.device.device)


def make_reference(ctx: Context) -> int:
    """``job=reference``: pin a reference; never over an existing one without ``reference.replace=true``."""
    path = ctx.reference_path
    if reference.exists(path) and not ctx.job.reference.replace:
        raise ConfigError(
            "there is a pinned reference already; it is not overwritten",
            where=path,
            field="reference.replace",
            value=False,
            allowed="true, to replace it: scores before and after are then not comparable",
        )
    announce_size(ctx)
    pinned, _ = pin_reference(ctx)
    reliable = unstable_reason(ctx.job, pinned)
    ctx.reporter.note(f"reference {pinned.id} pinned in {path}: {describe(pinned)}")
    if reliable is not None:
        ctx.reporter.warn(f"every verdict against it will be insufficient: {reliable}")
        return EXIT["insufficient"]
    return 0


def make_dashboard(job: JobConfig, reporter: Reporter) -> int:
    """``job=dashboard``: rules for Prometheus, a dashboard for Grafana, how to wire them, and the jobs' histories."""
    from gpudrift.history_job import shown_histories
    from gpudrift.monitoring.job import write_monitoring

    jobs = tuple(job.dashboard.jobs) or (job.name,)
    files = write_monitoring(
        output_of(job),
        jobs,
        period=job.windows.period,
        stale_hours=job.dashboard.stale_hours,
        warn_p=job.calibrate.warn_p,
        textfile=textfile_of(job),
        histories=shown_histories(history_of(job), jobs, reference_of(job)),
    )
    for path in files:
        reporter.note(f"wrote {path}")
    return 0


def generate_corpus(job: JobConfig, reporter: Reporter) -> int:
    """``job=generate``: write a synthetic corpus."""
    from gpudrift.generate import generate

    g = job.generate
    start = parse_date("generate.start", g.start)
    if start is None:
        raise ConfigError("a first day is needed", field="generate.start", value=None, allowed="YYYY-MM-DD, a Monday")
    options = {k: v for k, v in vars(g).items() if k != "start"}
    with reporter.progress("writing corpus", total=g.weeks * g.rows_per_week, unit="rows") as advance:
        done = 0

        def progress(rows: int, _total: int) -> None:
            nonlocal done
            advance(rows - done)
            done = rows

        written = generate(start=start, seed=job.seed, progress=progress, **options)
    drift = f"planted drift from {written.drifted[0]} on" if written.drifted else "no drift planted"
    reporter.note(
        f"{written.rows:,} rows x {written.dim} {written.dtype} in {len(written.files)} files under {written.path} "
        f"({written.bytes / 1e6:.1f} MB); {drift}"
    )
    return 0
