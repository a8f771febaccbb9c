"""The pinned reference of a job: loaded with its rows and checked, or made and kept."""

from __future__ import annotations

from collections.abc import Sequence

from gpudrift import reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.config import JobConfig
from gpudrift.context import Context, codes_of, read
from gpudrift.errors import InsufficientDataError
from gpudrift.kernels.choice import choose
from gpudrift.metrics.accumulate import mean_of
from gpudrift.notes import dropped_rows
from gpudrift.panel import centre, median_distance
from gpudrift.records import Cloud, Quality, Window
from gpudrift.reference import Reference, ReferenceWindow, Rows
from gpudrift.sampling import draw


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
    reference.check(pinned, path, period=period, span=span, precision=precision, limit=ctx.limit, settings=ctx.settings)
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
            pairs=ctx.pairs,
        )
    hygiene, mean = screened.hygiene, screened.mean
    dropped = [ReferenceWindow(windows[k], cloud.sizes()[k], prints[k], score) for k, score in hygiene.dropped]
    whole = part is cloud
    del part
    if mean is None:  # the rows left have another mean: read them again, so that they are centred and rounded once
        del cloud  # or there would be two of it
        cloud, prints = read(ctx, [windows[k] for k in hygiene.kept], "reference")
        codes = codes_of(ctx, cloud, "reference")
    if mean is None or not whole:  # the rows that were centred are not those of the cloud
        mean = mean_of(cloud.embeddings)
        centre(cloud.embeddings, mean)
    n = min(len(cloud), ctx.limit.rows)
    with ctx.stage("reference"), ctx.reporter.progress("pinning", total=n * n // 2, unit="pairs") as advance:
        pinned, rows = reference.build(
            cloud,
            prints,
            mean,
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
            pairs=ctx.pairs,
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
        ctx.pairs.device or rows.device.type,
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


def note_reference(ctx: Context, pinned: Reference, quality: Sequence[Quality]) -> None:
    for line in dropped_rows("the reference", quality):
        ctx.note(line)
    if pinned.dropped:
        named = ", ".join(f"{w.window.label} ({w.score:.4g})" for w in pinned.dropped)
        told = "1 window that stands" if len(pinned.dropped) == 1 else f"{len(pinned.dropped)} windows that stand"
        ctx.note(f"reference hygiene dropped {told} far out of the others: {named}")
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
