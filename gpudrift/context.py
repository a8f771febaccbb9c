"""What every job shares: the source, the plan of windows, the device, the settings; and rows read for scoring."""

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
from gpudrift.calibrate import Limits
from gpudrift.config import EngineKind, JobConfig, JobKind, parse_date, to_plain
from gpudrift.engine import Engine, Policy, scans
from gpudrift.engine.checkpoint import Checkpoints
from gpudrift.engine.local import LocalExecutor
from gpudrift.engine.pairs import Pairs
from gpudrift.errors import DataError, InsufficientDataError, ReferenceMismatchError
from gpudrift.files import local_path
from gpudrift.fingerprint import canonical, cluster_codes
from gpudrift.panel import PanelSettings
from gpudrift.records import Cloud, Window
from gpudrift.sampling import Limit, limit_of
from gpudrift.source import Extent, ParquetSource, open_source
from gpudrift.source.quality import look_at
from gpudrift.windows import Period, WindowPlan, parse_period, plan_windows

if TYPE_CHECKING:
    from gpudrift.report.terminal import Reporter

# jobs with work for an engine
ON_ENGINES = (JobKind.run, JobKind.reference, JobKind.backfill, JobKind.backtest, JobKind.stream)


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
    extent: Extent  # event times of the first and the last row
    plan: WindowPlan
    device: devices.DeviceChoice
    panel: PanelSettings
    limits: Limits
    gates: tuple[str, ...]  # metrics that decide
    limit: Limit  # rows of the reference in pairs; of a window: limit.against
    engine: Engine  # where files are read and pairs computed
    pairs: Pairs
    settings: dict[str, Any]  # what a reference and its later runs must share
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    moved: dict[str, dict[str, int]] = field(default_factory=dict)  # bytes to and from workers, by stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and count the bytes it moves; both end up in result.json."""
        began, account = time.perf_counter(), self.engine.account
        before = account.shared_bytes, account.result_bytes
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            shared, results = account.shared_bytes - before[0], account.result_bytes - before[1]
            if shared or results:
                moved = self.moved.setdefault(name, {"shared": 0, "results": 0})
                moved["shared"] += shared
                moved["results"] += results

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


def prepare(job: JobConfig, reporter: Reporter, output: Path, history_path: Path) -> Context:
    """Open the source, choose the device, plan the windows."""
    reference_path = reference_of(job)
    workers = devices.named(job.engine.devices, job.device)
    device = devices.choose(job.device) if not workers else workers[0]
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
    pairs_device = device.device if job.engine.device == "auto" else job.engine.device
    engine = open_engine(job, pairs_device, [worker.device for worker in workers])
    ctx = Context(
        job=job,
        reporter=reporter,
        output=output,
        reference_path=reference_path,
        history_path=history_path,
        source=source,
        period=period,
        extent=extent,
        plan=plan,
        device=device,
        panel=panel_settings(job),
        limits=limits_of(job),
        gates=tuple(job.calibrate.gates),
        limit=limit_of(job.score.rows, job.score.pairs, job.windows.min_rows),
        engine=engine,
        pairs=open_pairs(job, engine, pairs_device, output, reporter),
        settings=shared_settings(job),
        notes=notes,
    )
    if engine.executor.slots() > 1 or engine.remote:
        reporter.note(where_it_runs(engine))
    if not plan.current.complete:
        ctx.note(f"window {plan.current.label} is unfinished: the data end at {extent.last:%Y-%m-%d %H:%M} UTC")
    return ctx


def open_engine(job: JobConfig, device: str, workers: Sequence[str]) -> Engine:
    """What runs the tasks of this job. Raises EngineError where a cluster cannot be reached or has no room."""
    e = job.engine
    if e.kind is EngineKind.local or job.job not in ON_ENGINES:
        # a second attempt would take the cores or the device of the first
        return Engine(LocalExecutor(workers), Policy(attempts=e.attempts, speculate=False))
    from gpudrift.engine.ray import RayExecutor

    executor = RayExecutor(
        device=device,
        address=e.address,
        workers=e.workers,
        cpus_per_task=e.cpus_per_task,
        gpus_per_task=e.gpus_per_task,
        connect_seconds=e.connect_seconds,
        ship_code=e.ship_code,
    )
    return Engine(executor, Policy(attempts=e.attempts, task_seconds=e.task_seconds, speculate=e.speculate))


def where_it_runs(engine: Engine) -> str:
    """For the terminal alone: a result does not tell where it came from but in its ``run``."""
    about, slots = engine.executor.describe(), engine.executor.slots()
    if not engine.remote:
        return f"pairs on {', '.join(device['device'] for device in about['devices'])}"
    nodes = "1 node" if about["nodes"] == 1 else f"{about['nodes']} nodes"
    at_a_time = "1 task" if slots == 1 else f"{slots} tasks"
    return f"pairs and reading by Ray {about['ray']}: {nodes}, {at_a_time} at a time, on {about['device']}"


def open_pairs(job: JobConfig, engine: Engine, device: str, output: Path, reporter: Reporter) -> Pairs:
    """Where pairs are computed, with finished blocks kept in ``blocks/`` until the run has ended."""
    checkpoints = Checkpoints(output / "blocks", job.engine.checkpoint_seconds) if job.engine.resume else None
    device_type = device.partition(":")[0]
    return Pairs(engine, job.engine.block_rows, checkpoints, reporter.detail, device_type, reporter.note)


def output_of(job: JobConfig) -> Path:
    return local_path(job.output.dir, "output.dir")


def reference_of(job: JobConfig) -> Path:
    path = job.reference.path
    return local_path(path, "reference.path") if path else output_of(job) / "reference"


def history_of(job: JobConfig) -> Path:
    path = job.history.path
    return local_path(path, "history.path") if path else output_of(job) / "history"


def textfile_of(job: JobConfig) -> Path:
    path = job.prometheus.textfile
    return output_of(job) / "metrics.prom" if path is None else local_path(path, "prometheus.textfile")


def limits_of(job: JobConfig) -> Limits:
    return Limits(job.calibrate.warn_p, job.calibrate.close_p, job.calibrate.clear_p)


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


def read(ctx: Context, windows: Sequence[Window], what: str) -> tuple[Cloud, tuple[str, ...]]:
    """Rows of the windows in canonical order on the device, and the windows' fingerprints."""
    total = sum(ctx.source.count(windows))
    with ctx.stage("read"), ctx.reporter.progress(f"reading {what}", total=total, unit="rows") as advance:
        pinned = ctx.device.device != "cpu"
        if ctx.job.engine.scans:
            cloud = scans.read(ctx.source, windows, ctx.engine, progress=advance, pin_memory=pinned)
        else:
            cloud = ctx.source.read(windows, progress=advance, pin_memory=pinned)
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
