"""The job, a call a stage: read this file first.

source -> windows -> reference (pinned) -> score -> calibrate -> verdict -> history -> report. One way; no stage calls
back. ``run`` is the nightly and weekly job; ``make_reference`` pins a reference alone; ``gpudrift.backfill`` and
``gpudrift.compare`` share the stages below.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gpudrift import device as devices
from gpudrift import reference, sample
from gpudrift.calibrate import AUTOCORRELATION_LIMIT, Limits, decide
from gpudrift.config import JobConfig, JobKind, parse_date, to_plain
from gpudrift.encoder import explain
from gpudrift.errors import ConfigError, DataError, InsufficientDataError, ReferenceMismatchError
from gpudrift.files import exclusive, make_directory, sweep
from gpudrift.fingerprint import canonical, cluster_codes
from gpudrift.history import History
from gpudrift.kernels.choice import choose
from gpudrift.metrics.accumulate import mean_of
from gpudrift.panel import PanelSettings, centre, median_distance
from gpudrift.records import Cloud, HistoryPoint, Quality, Verdict, Window
from gpudrift.reference import Arithmetic, Reference, ReferenceWindow, Rows
from gpudrift.result import Outcome, write_outputs
from gpudrift.sampling import Limit, draw, limit_for, sampling_error
from gpudrift.scoring import Scored, Scorer
from gpudrift.source import ParquetSource, open_source
from gpudrift.source.quality import look_at, total, unit_length
from gpudrift.windows import Period, WindowPlan, parse_period, plan_windows

if TYPE_CHECKING:
    from gpudrift.report.terminal import Reporter

ODD_DUPLICATES = 0.05  # share of duplicate rows that is said
PASSED_OVER = 3  # windows without enough data between a window and the one that counts as before it
EXIT = {"stable": 0, "warning": 10, "alert": 20, "insufficient": 30}


@dataclass
class Context:
    """What every job shares: the source, the plan of windows, the device, and where things are written."""

    job: JobConfig
    reporter: Reporter
    output: Path
    reference_path: Path
    history_path: Path
    source: ParquetSource
    period: Period
    plan: WindowPlan
    device: devices.DeviceChoice
    panel: PanelSettings
    limits: Limits
    limit: Limit  # rows a side in pairs
    settings: dict[str, Any]  # what a reference and its later runs must share
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; the times end up in result.json."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def span(self) -> tuple[datetime, datetime]:
        """The reference range: the configured dates, else the first and last moment of the reference's windows."""
        configured = self.job.windows.reference
        start = parse_date("windows.reference.start", configured.start)
        end = parse_date("windows.reference.end", configured.end)
        if start is not None and end is not None:
            return datetime.combine(start, datetime.min.time(), UTC), datetime.combine(end, datetime.min.time(), UTC)
        return self.plan.reference[0].start, self.plan.reference[-1].end

    def note(self, text: str) -> None:
        """A line for the terminal, the result and the report."""
        self.notes.append(text)
        self.reporter.note(text)


def run_job(job: JobConfig, reporter: Reporter) -> int:
    """Run what ``job.job`` names and return the process's exit code."""
    if job.job is JobKind.generate:
        return generate_corpus(job, reporter)
    if job.job is JobKind.compare:
        from gpudrift.compare import compare

        return compare(job, reporter)
    output = make_directory(Path(job.output.dir).expanduser())
    history_path = Path(job.history.path or output / "history").expanduser()
    with exclusive(history_path / f".{job.name}.lock"):
        ctx = prepare(job, reporter, output, history_path)
        sweep(output, output / "plots", ctx.reference_path, *history_path.glob(f"{job.name}/*"))
        if job.job is JobKind.reference:
            return make_reference(ctx)
        if job.job is JobKind.backfill:
            from gpudrift.backfill import backfill

            return backfill(ctx)
        if job.job is JobKind.stream:
            from gpudrift.stream.job import stream

            return stream(ctx)
        if job.job is JobKind.plan:
            from gpudrift.plan import make_plan

            return make_plan(ctx)
        return run(ctx)


def run(ctx: Context) -> int:
    """The nightly and weekly job: one window against the pinned reference."""
    (ctx.output / "result.json").unlink(missing_ok=True)  # its presence means that this run ended
    announce_size(ctx)
    pinned, rows, made = obtain_reference(ctx)
    history = History(ctx.history_path, ctx.job.name, pinned.id)
    scorer = Scorer(pinned, rows, ctx.panel, ctx.limits, ctx.limit)
    scored = score_window(ctx, scorer, ctx.plan.current)
    for line in dropped_rows(scored.window.label, [] if scored.quality is None else [scored.quality]):
        ctx.note(line)
    for line in (*odd_rows(scored, rows.quality), *encoder_notes(scored)):
        ctx.note(line)
    previous, previous_scored = score_previous(ctx, scorer, history, scored)
    verdict, reason = verdict_of(ctx, pinned, scored, previous)
    if scored.encoder is not None and scored.encoder.headline:
        reason = f"{reason}; {scored.encoder.headline}"
    history.write(scored.point(verdict), metrics_of(scored))
    outcome = Outcome(
        job=ctx.job.name,
        config=to_plain(ctx.job),
        reference=pinned,
        reference_path=ctx.reference_path,
        reference_made=made,
        reference_rows=scorer.rows,
        arithmetic=scorer.arithmetic,
        limit=ctx.limit,
        scored=scored,
        verdict=verdict,
        reason=reason,
        previous=previous,
        previous_scored=previous_scored,
        history=tuple(p for p in history.points() if p.window.start <= scored.window.start),
        plan=ctx.plan,
        device=ctx.device,
        notes=tuple(ctx.notes + sampling_notes(scorer, scored) + calibration_notes(scored)),
        seconds=ctx.seconds,
        exit_code=exit_code(ctx.job, verdict),
    )
    with ctx.stage("report"):
        write_outputs(outcome, ctx.output, ctx.reporter)
    return outcome.exit_code


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
    pinned, _ = pin_reference(ctx)
    reliable = unstable_reason(ctx.job, pinned)
    ctx.reporter.note(f"reference {pinned.id} pinned in {path}: {describe(pinned)}")
    if reliable is not None:
        ctx.reporter.warn(f"every verdict against it will be insufficient: {reliable}")
        return EXIT["insufficient"]
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


def prepare(job: JobConfig, reporter: Reporter, output: Path, history_path: Path) -> Context:
    """Open the source, choose the device, plan the windows."""
    reference_path = Path(job.reference.path or output / "reference").expanduser()
    device = devices.choose(job.device)
    notes = [f"computed on the CPU: {device.reason}"] if device.degraded else []
    source = open_job_source(job, reporter)
    period, span = reference_range(job, reference_path)
    extent = source.extent()
    try:
        plan = plan_windows(
            period,
            extent.first,
            extent.last,
            reference_start=None if span is None else span[0],
            reference_end=None if span is None else span[1],
            run_date=parse_date("run_date", job.run_date),
            default_windows=job.windows.reference.count,
        )
    except InsufficientDataError as error:
        if span is None or job.windows.reference.start is not None or error.field != "windows.reference":
            raise
        raise ReferenceMismatchError(
            "the pinned reference was made from other data: its range is not in these",
            where=reference_path / "reference.json",
            field="source.uri",
            value=job.source.uri,
            allowed=f"data that hold {span[0]} to {span[1]}",
            hint="give this job another output.dir (or reference.path), or make a new reference with job=reference "
            "reference.replace=true",
        ) from error
    ctx = Context(
        job=job,
        reporter=reporter,
        output=output,
        reference_path=reference_path,
        history_path=history_path,
        source=source,
        period=period,
        plan=plan,
        device=device,
        panel=panel_settings(job),
        limits=Limits(job.calibrate.warn_p, job.calibrate.close_p, job.calibrate.clear_p),
        limit=limit_for(job.score.rows, device.device.partition(":")[0], job.windows.min_rows),
        settings=shared_settings(job),
        notes=notes,
    )
    if not plan.current.complete:
        ctx.note(f"window {plan.current.label} is unfinished: the data end at {extent.last:%Y-%m-%d %H:%M} UTC")
    return ctx


def open_job_source(job: JobConfig, reporter: Reporter) -> ParquetSource:
    """The configured source; ``sample`` is the corpus that ships with gpudrift, announced plainly."""
    s = job.source
    uri, id_column = s.uri, s.id_column
    if uri == "sample":
        uri, id_column = str(sample.path()), id_column or "package"
        reporter.warn(
            "this run reads the SAMPLE corpus that ships with gpudrift (package summaries, 2021 to 2026). "
            "For your own data: source.uri=/path/to/embeddings source.embedding_column=... source.time_column=..."
        )
    return open_source(
        uri,
        embedding_column=s.embedding_column,
        id_column=id_column,
        time_column=s.time_column,
        cluster_column=s.cluster_column,
        segment_columns=tuple(s.segment_columns),
        encoding=s.encoding,
        scale=s.scale,
        zero_point=s.zero_point,
        pooling=s.pooling,
        encoder_id=s.encoder_id,
        filter=s.filter,
        threads=s.threads,
        on_bad_rows=job.quality.on_bad_rows.value,
        max_bad_fraction=job.quality.max_bad_fraction,
    )


def reference_range(job: JobConfig, reference_path: Path) -> tuple[Period, Any]:
    """The period and the reference's dates: the configured ones, else those of the pinned artifact, else None."""
    start = parse_date("windows.reference.start", job.windows.reference.start)
    end = parse_date("windows.reference.end", job.windows.reference.end)
    period = parse_period(job.windows.period, anchor=start)
    if start is not None and end is not None:
        return period, (start, end)
    if reference.exists(reference_path) and not (job.job is JobKind.reference and job.reference.replace):
        start_of, end_of = reference.span_of(reference_path)
        return period, (start_of.date(), end_of.date())
    return period, None


def obtain_reference(ctx: Context) -> tuple[Reference, Rows, bool]:
    """The pinned reference with its rows read again and checked; made, and said so, where there is none yet."""
    path = ctx.reference_path
    if not reference.exists(path):
        ctx.reporter.note(f"no pinned reference in {path} yet: making it now; later runs load it")
        return *pin_reference(ctx), True
    pinned = reference.load(path, ctx.device.device)
    configured = ctx.job.windows.reference
    span = ctx.span if configured.start is not None else None
    period, precision = ctx.job.windows.period, ctx.job.precision
    rows_in_pairs = ctx.job.score.rows
    reference.check(
        pinned, path, period=period, span=span, precision=precision, rows=rows_in_pairs, settings=ctx.settings
    )
    cloud, prints = read(ctx, pinned.windows, "reference")
    reference.check_rows(pinned, cloud.dim, cloud.encoder_id, ctx.job.source.uri)
    codes = codes_of(ctx, cloud, "reference")
    with ctx.stage("reference"):
        rows = reference.attach(pinned, cloud, prints, codes)
    note_reference(ctx, pinned, cloud.quality)
    return pinned, rows, False


def pin_reference(ctx: Context) -> tuple[Reference, Rows]:
    """Make the reference: read its range, drop windows that stand out (hygiene), pin everything, write the artifact."""
    windows, left_out = reference_windows(ctx)
    cloud, prints = read(ctx, windows, "reference")
    codes = codes_of(ctx, cloud, "reference")
    sample = draw(cloud, ctx.limit)
    part, n = sample.part(cloud), len(sample)
    arithmetic = choose_arithmetic(ctx, part)
    with ctx.stage("reference"), ctx.reporter.progress("usual movement", total=n * n // 2, unit="pairs") as advance:
        screened = reference.screen(
            part,
            hygiene_sd=ctx.job.calibrate.hygiene_sd,
            arithmetic=arithmetic,
            clusters=None if codes is None else sample.of(codes),
            progress=advance,
        )
    hygiene, mean = screened.hygiene, screened.mean
    dropped = [ReferenceWindow(windows[k], cloud.sizes()[k], prints[k], score) for k, score in hygiene.dropped]
    if mean is None:  # the rows left have another mean: read them again, so that they are centred and rounded once
        cloud, prints = read(ctx, [windows[k] for k in hygiene.kept], "reference")
        codes = codes_of(ctx, cloud, "reference")
    if mean is None or part is not cloud:  # the rows that were centred are not those of the cloud
        mean = mean_of(cloud.embeddings)
        centre(cloud.embeddings, mean)
    n = min(len(cloud), ctx.limit.rows)
    with ctx.stage("reference"), ctx.reporter.progress("pinning", total=n * n // 2, unit="pairs") as advance:
        pinned, rows = reference.build(
            cloud,
            prints,
            mean,
            null=hygiene.null,
            dropped=dropped,
            span=ctx.span,
            period=ctx.job.windows.period,
            left_out=left_out,
            panel=ctx.panel,
            settings=ctx.settings,
            arithmetic=arithmetic,
            limit=ctx.limit,
            clusters=codes,
            progress=advance,
        )
        reference.save(pinned, ctx.reference_path)
    if ctx.plan.reference_is_default:
        ctx.reporter.note(
            f"no windows.reference given: the first {len(ctx.plan.reference)} complete windows of the data serve, "
            f"{ctx.plan.reference[0].label} to {ctx.plan.reference[-1].label}"
        )
    note_reference(ctx, pinned, cloud.quality)
    return pinned, rows


def choose_arithmetic(ctx: Context, cloud: Cloud) -> Arithmetic:
    """The configured precision, or the fastest whose error stays far below the standard error of a window as large as
    the reference."""
    rows = cloud.embeddings
    middle = median_distance(rows, seed=ctx.job.seed)
    found = choose(
        ctx.job.precision,
        rows.device.type,
        rows,
        centre=mean_of(rows),
        m=len(rows),
        bandwidths=[multiple * middle for multiple in ctx.panel.multiples],
        seed=ctx.job.seed,
    )
    return Arithmetic(found.precision, f"fixed when the reference was pinned: {found.reason}", found.scale)


def reference_windows(ctx: Context) -> tuple[list[Window], list[tuple[str, str]]]:
    """The windows of the reference range with enough rows, and those left out with the reason."""
    start, end = ctx.span
    left_out = [
        (item.window.label, item.reason)
        for item in ctx.plan.left_out
        if item.window.start < end and item.window.end > start
    ]
    counts = ctx.source.count(ctx.plan.reference)
    least = ctx.job.windows.min_rows
    windows = []
    for window, rows in zip(ctx.plan.reference, counts, strict=True):
        if rows >= least:
            windows.append(window)
        else:
            left_out.append((window.label, f"{rows} rows; windows.min_rows is {least}"))
    if len(windows) < 3:
        raise InsufficientDataError(
            "fewer than three windows of the reference range hold enough rows",
            field="windows.reference",
            value=f"{ctx.plan.reference[0].label} to {ctx.plan.reference[-1].label}",
            allowed=f"3 windows or more (8 for a verdict) of {least} rows or more",
            hint="widen windows.reference.start/.end, lower windows.min_rows, or choose another windows.period",
        )
    return windows, left_out


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


def score_previous(ctx: Context, scorer: Scorer, history: History, scored: Scored) -> tuple[HistoryPoint | None, bool]:
    """The window before: from the history, else scored now, so that a first run can alert too."""
    window = ctx.plan.previous
    known = before_in_history(ctx, history, scored.window)
    if known is not None:
        return known, False
    if not window.complete or scored.judgement is None:
        return None, False
    before = score_window(ctx, scorer, window)
    verdict, _ = verdict_of(ctx, scorer.reference, before, before_in_history(ctx, history, window))
    point = before.point(verdict)
    history.write(point, metrics_of(before))
    return (point, True) if before.judgement is not None else (before_in_history(ctx, history, scored.window), False)


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
    return decide(scored.judgement, previous, ctx.limits)


def unstable_reason(job: JobConfig, pinned: Reference) -> str | None:
    """Why a reference cannot carry a verdict; None when it can."""
    kept, dropped = len(pinned.kept), len(pinned.dropped)
    if dropped > job.calibrate.max_dropped * (kept + dropped):
        return f"{dropped} of {kept + dropped} reference windows stand far out of the others and were dropped"
    if kept < job.calibrate.min_windows:
        return f"{kept} usable reference windows; calibrate.min_windows is {job.calibrate.min_windows}"
    if pinned.null.null_sd <= 0:
        return "no noise level can be had from its rows (too alike, too few clusters, or far outliers: null sd 0)"
    return None


def exit_code(job: JobConfig, verdict: Verdict) -> int:
    """The exit code of a verdict under ``alert.fail_on``; insufficient data always has its own."""
    fails = {"never": (), "warn": ("warning", "alert"), "alert": ("alert",)}[job.alert.fail_on.value]
    return EXIT[verdict] if verdict in (*fails, "insufficient") else 0


def metrics_of(scored: Scored) -> list[Any]:
    return [] if scored.measured is None else list(scored.measured.metrics.values())


def sampling_notes(scorer: Scorer, scored: Scored) -> list[str]:
    """That pairs are of some rows only, and what it costs; nothing where all take part."""
    rows, reference_rows = scored.rows, len(scorer.rows.centred)
    if scored.measured is None or (scored.pair_rows == rows and len(scorer.rows.sample) == reference_rows):
        return []
    note = (
        f"pairs are of {scored.pair_rows:,} of {rows:,} rows against {len(scorer.rows.sample):,} of "
        f"{reference_rows:,} (score.rows); all other metrics see every row"
    )
    if scorer.rows.prepared.clusters is None:
        everything, _ = sampling_error(scored.measured.energy, (reference_rows, rows))
        note += f"; standard error {scored.measured.energy.se:.2g}, of all pairs about {everything:.2g}"
    return [note]


def calibration_notes(scored: Scored) -> list[str]:
    """What a reader must know about this window's calibration."""
    found = scored.calibration
    notes: list[str] = []
    if found is None:
        return notes
    if found.aa_recomputed:
        notes.append(f"the usual movement was recomputed at {found.aa_n} rows, this window's size")
    if found.in_reference:
        notes.append("this window is part of the reference: it was scored against the other reference windows")
    if found.autocorrelation is not None and found.autocorrelation > AUTOCORRELATION_LIMIT:
        notes.append(
            f"the reference's own movement is autocorrelated ({found.autocorrelation:.2f} from window to window): "
            "expect more false alarms than the nominal rate"
        )
    if found.score < found.delta and found.smallest_alerting > 1.5 * found.delta:
        notes.append(
            f"at {scored.rows:,} rows only a drift of {found.smallest_alerting:.2g} would alert (4 times in 5); "
            "longer windows see smaller ones"
        )
    if found.smallest_detectable > found.delta:
        notes.append("at this many rows a drift as large as the usual movement is below what is detectable")
    return notes


def note_reference(ctx: Context, pinned: Reference, quality: Sequence[Quality]) -> None:
    for line in dropped_rows("the reference", quality):
        ctx.note(line)
    if pinned.dropped:
        named = ", ".join(f"{w.window.label} ({w.score:.4g})" for w in pinned.dropped)
        ctx.note(f"reference hygiene dropped {len(pinned.dropped)} windows that stand far out of the others: {named}")
    known = {label for label, _ in pinned.left_out}
    edges = [(item.window.label, item.reason) for item in ctx.plan.left_out if item.window.label not in known]
    by_reason: dict[str, list[str]] = {}
    for label, reason in (*pinned.left_out, *edges):
        by_reason.setdefault(reason, []).append(label)
    if by_reason:
        ctx.note("left out: " + "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items()))


def describe(pinned: Reference) -> str:
    rows = sum(w.rows for w in pinned.kept)
    return f"{len(pinned.kept)} windows, {rows:,} rows, {pinned.start:%Y-%m-%d} to {pinned.end:%Y-%m-%d}"


def read(ctx: Context, windows: Sequence[Window], what: str) -> tuple[Cloud, tuple[str, ...]]:
    """Rows of the windows in canonical order on the device, and the windows' fingerprints."""
    total = sum(ctx.source.count(windows))
    with ctx.stage("read"), ctx.reporter.progress(f"reading {what}", total=total, unit="rows") as advance:
        cloud = ctx.source.read(windows, progress=advance, pin_memory=ctx.device.device != "cpu")
        cloud, prints = canonical(cloud, ctx.panel.seed)
        cloud = look_at(cloud)
    if ctx.device.device != "cpu":
        cloud = replace(cloud, embeddings=cloud.embeddings.to(ctx.device.device))
    return cloud, prints


def codes_of(ctx: Context, cloud: Cloud, name: str) -> Tensor | None:
    if cloud.clusters is None:
        return None
    codes = cluster_codes(cloud.clusters, name)
    for window, start, end in zip(cloud.windows, cloud.offsets, cloud.offsets[1:], strict=False):
        if end > start and bool((codes[start:end] == codes[start]).all()):
            raise DataError(
                f"all rows of {window.label} belong to one cluster, so no pair of different clusters is left",
                field="source.cluster_column",
                value=ctx.job.source.cluster_column,
                allowed="a column with at least two values in every window, such as a user or document id",
            )
    return codes.to(ctx.device.device)


def dropped_rows(what: str, quality: Sequence[Quality]) -> list[str]:
    """A note that says which rows were dropped, and why; none when there were none."""
    causes = sorted({cause for q in quality for cause in q.dropped})
    if not causes:
        return []
    counted = ", ".join(f"{sum(q.dropped.get(cause, 0) for q in quality):,} {cause}" for cause in causes)
    read = sum(q.rows_read for q in quality)
    return [f"{read - sum(q.rows_kept for q in quality):,} of {read:,} rows of {what} dropped: {counted}"]


def odd_rows(scored: Scored, reference_quality: Sequence[Quality]) -> list[str]:
    """One line about rows that were kept and look wrong: many duplicates, ids twice, lengths that are not 1."""
    found = None if scored.quality is None else scored.quality.found
    if found is None or found.norms is None:
        return []
    usual, rows, said = total(reference_quality), found.norms.rows, []
    share = 0.0
    if usual.found is not None:
        share = usual.found.duplicates.rows / max(1, usual.rows_kept)
    if found.duplicates.rows > max(ODD_DUPLICATES, 2 * share) * rows:
        said.append(
            f"{found.duplicates.rows:,} duplicate rows (largest group {found.duplicates.largest:,}; "
            f"{share:.1%} of the reference's rows are)"
        )
    if found.repeated_ids is not None and found.repeated_ids.rows:
        said.append(
            f"{found.repeated_ids.rows:,} rows with an id that another has{_named(found.repeated_ids.examples)}"
        )
    if unit_length(reference_quality) and found.norms.off_unit:
        said.append(f"{found.norms.off_unit:,} rows not of length 1{_named(found.norms.examples)}")
    return [f"of {rows:,} rows of {scored.window.label}: " + "; ".join(said)] if said else []


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def encoder_notes(scored: Scored) -> list[str]:
    """What looks like another encoder, why, and what to do about it."""
    if scored.encoder is None or not scored.encoder.headline:
        return []
    return [f"{scored.window.label}: {explain(scored.encoder)}"]


def panel_settings(job: JobConfig) -> PanelSettings:
    return PanelSettings(
        pca_components=job.project.components,
        pca_niter=job.project.niter,
        components=job.metrics.components,
        bins=job.metrics.bins,
        directions=job.metrics.directions,
        multiples=tuple(job.metrics.bandwidths),
        seed=job.seed,
    )


def shared_settings(job: JobConfig) -> dict[str, Any]:
    """Settings that change what a score means: a pinned reference is refused where they differ."""
    plain = to_plain(job)
    picked = {
        "seed": plain["seed"],
        "calibrate.hygiene_sd": plain["calibrate"]["hygiene_sd"],
    }
    columns = ("embedding_column", "time_column", "cluster_column", "filter")
    for key in (*columns, "encoding", "scale", "zero_point", "pooling"):
        picked[f"source.{key}"] = plain["source"][key]
    for group in ("project", "metrics"):
        picked |= {f"{group}.{key}": value for key, value in plain[group].items()}
    return picked
