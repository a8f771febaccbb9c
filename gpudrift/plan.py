"""``job=plan``: what the configured run would read, hold and compute, before anything runs; and the check that it fits.

Rows, bytes and pairs come from footers and are exact. Memory is the rows in float32, the copies that take part in
pairs, ``ROW_BYTES`` a row for what the linear-time metrics keep, and what grows with the dimension: the encoder check's
rows in float64 and covariances. Time is those amounts over rates that are measured here and now: a second of reading
the current window, a block of pairs and a few thousand rows of linear-time metrics at the run's own dimension. It is an
estimate for this machine as busy as it is; what does not grow with the rows (axes, Frechet, pictures) is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from gpudrift import device as devices
from gpudrift import kernels, reference
from gpudrift.encoder import CAP
from gpudrift.errors import ConfigError
from gpudrift.files import write_json
from gpudrift.kernels.precision import MODES
from gpudrift.panel import PanelSettings, linear_metrics, pin
from gpudrift.records import Window
from gpudrift.sampling import PAIRS, Limit, rule
from gpudrift.scoring import KEEP

if TYPE_CHECKING:
    from gpudrift.context import Context

ROW_BYTES = 1200  # a row beyond its vector: projections, influence values, hashes, the sliced distance's couplings
BASE_BYTES = 450_000_000  # the process with torch, pyarrow and matplotlib, and buffers that do not grow
KEPT_ROW_BYTES = 400  # a reference row, beside its sorted directions, in what a range of windows keeps (metrics/kept)
ENCODER_COPIES, COVARIANCES = 3, 6  # of the encoder check's rows, of (d, d), float64, at a time; measured
_SECOND = 1.0  # of measuring, for each rate


@dataclass(frozen=True)
class Side:
    """Reference or current window: rows, rows in pairs, files, and their vectors' compressed bytes there."""

    windows: int
    rows: int
    pair_rows: int
    files: frozenset[str]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """One run. pairs: of a run with the reference pinned; pinning: what making the reference adds, 0 where there is
    one. method: "exact" or "sample", reason: why (``gpudrift.sampling``). flop: 2 d a pair, the least any exact method
    does. memory: host bytes at the peak; device_memory: of the CUDA
    device (0 without)."""

    window: str
    reference: Side
    current: Side
    dim: int
    precision: str
    bandwidths: int
    files: int
    pairs: int
    pinning: int
    method: str
    reason: str
    flop: float
    memory: int
    device_memory: int

    @property
    def rows(self) -> int:
        return self.reference.rows + self.current.rows


@dataclass(frozen=True)
class Rates:
    """Measured here: rows read a second by one thread, pairs a second, rows of linear-time metrics a second."""

    read: float
    pairs: float
    metrics: float


def plan_of(ctx: Context) -> Plan:
    """The plan of the configured run; footers, times and filter columns are read, no vector is."""
    known = reference.exists(ctx.reference_path) and ctx.job.job.value != "reference"  # that one makes it anew
    pinned = reference.load(ctx.reference_path, "cpu") if known else None
    # a pinned reference keeps the rows it was pinned with
    x = _side(ctx, *((ctx.plan.reference, ctx.limit) if pinned is None else (pinned.windows, pinned.limit)))
    limit = ctx.limit.against(x.pair_rows)
    y = _side(ctx, (ctx.plan.current,), limit)
    method, reason = rule(limit, (x.rows, x.pair_rows), (y.rows, y.pair_rows))
    dim, bandwidths = ctx.source.dim, len(ctx.panel.multiples)
    n, m = x.pair_rows, y.pair_rows
    pairs, pinning = n * m + m * m // 2, n * n if pinned is None else 0
    # what auto takes is known once rows were seen
    wish = "float32" if ctx.job.precision == "auto" else ctx.job.precision
    precision = wish if pinned is None else pinned.arithmetic.precision
    item = MODES[precision].held.itemsize
    cuda = ctx.device.device != "cpu"
    # the window before, of about as many rows, is scored beside it where the history lacks it
    vectors, copies = (x.rows + 2 * y.rows) * dim * 4, (n + m) * dim * item
    # a sampled side is gathered in float32 before it is rounded
    copies += max(side.pair_rows for side in (x, y) if side.pair_rows < side.rows or side is y) * dim * 4
    others = (x.rows + y.rows) * ROW_BYTES
    others += 8 * dim * (ENCODER_COPIES * min(CAP, max(x.rows, y.rows)) + COVARIANCES * dim)
    if ctx.job.job.value in ("backfill", "backtest"):
        others += min(KEEP, x.rows * (12 * ctx.panel.directions + KEPT_ROW_BYTES))
    return Plan(
        window=ctx.plan.current.label,
        reference=x,
        current=y,
        dim=dim,
        precision=precision,
        bandwidths=bandwidths,
        files=len(x.files | y.files),
        pairs=pairs,
        pinning=pinning,
        method=method,
        reason=reason,
        flop=2.0 * dim * (pairs + pinning),
        memory=BASE_BYTES + vectors + (0 if cuda else copies + others),
        device_memory=vectors + copies + others if cuda else 0,
    )


def sentence(plan: Plan) -> str:
    """One line for the start of a run."""
    x, y = plan.reference, plan.current
    pairs = "" if (x.pair_rows, y.pair_rows) == (x.rows, y.rows) else f" of {y.pair_rows:,} x {x.pair_rows:,} rows"
    return (
        f"{plan.window}: {y.rows:,} rows against a reference of {x.rows:,}, {plan.dim} dimensions: about "
        f"{plan.memory / 1e9:,.1f} GB, {plan.pairs + plan.pinning:,} pairs{pairs} ({plan.flop / 1e12:.2g} TFLOP)"
    )


def require_memory(plan: Plan, device: str) -> None:
    """Refuse a run that cannot fit before it reads anything.

    Raises:
        ConfigError: it needs more than is free on the host or the CUDA device.
    """
    free = devices.free_memory()
    _refuse("this machine", plan.memory, free, plan)
    if plan.device_memory:
        _refuse(device, plan.device_memory, torch.cuda.mem_get_info(device)[0], plan)


def make_plan(ctx: Context) -> int:
    """``job=plan``: print and keep (plan.json) what a run would take. Exit code 0; 1 where it would not fit."""
    from gpudrift.report.terminal import size_text

    plan = plan_of(ctx)
    rates = measure_rates(ctx, plan)
    threads = min(ctx.source.threads, max(1, plan.files))
    seconds = {
        "read": plan.rows / (rates.read * threads) if rates.read else None,
        "pairs": (plan.pairs + plan.pinning) / rates.pairs,
        "metrics": plan.rows / rates.metrics,
    }
    total = sum(value or 0.0 for value in seconds.values())
    free = devices.free_memory()
    x, y = plan.reference, plan.current
    missing = "" if plan.pinning == 0 else f", {plan.pinning:,} of them to pin the reference, once"
    size = size_text(x.bytes + y.bytes, "B")
    ctx.reporter.table(
        f"{plan.window}: {y.rows:,} rows against {x.rows:,} of {x.windows} reference windows, {plan.dim} dimensions",
        [
            ("to read", f"{plan.rows:,} rows, {size} of vectors on disk, {plan.files} file{'s' * (plan.files != 1)}"),
            ("rows in pairs", f"{y.pair_rows:,} against {x.pair_rows:,} ({plan.method}: {plan.reason})"),
            ("pairs", f"{plan.pairs + plan.pinning:,}{missing}; {plan.flop / 1e12:.3g} TFLOP in {plan.precision}"),
            ("memory", f"about {plan.memory / 1e9:.1f} GB" + ("" if free is None else f" of {free / 1e9:.1f} GB free")),
            *([("on the GPU", f"about {plan.device_memory / 1e9:.1f} GB")] if plan.device_memory else []),
            (
                "time",
                f"{_duration(total)}: reading {_duration(seconds['read'])}, pairs {_duration(seconds['pairs'])}, "
                f"other metrics {_duration(seconds['metrics'])}; not counted: pictures, what does not grow with rows, "
                "and the window before, which a first run scores too",
            ),
            (
                "measured here",
                f"{rates.read:,.0f} rows/s read a thread ({threads} threads), {rates.pairs:.3g} pairs/s, "
                f"{rates.metrics:,.0f} rows/s in other metrics",
            ),
        ],
    )
    sides = {name: {**asdict(side), "files": len(side.files)} for name, side in (("reference", x), ("current", y))}
    amounts = {**asdict(plan), **sides}
    write_json(ctx.output / "plan.json", {**amounts, "seconds": seconds, "rates": asdict(rates), "free": free})
    require_memory(plan, ctx.device.device)
    return 0


def measure_rates(ctx: Context, plan: Plan) -> Rates:
    """A second of each kind of work, at the run's dimension, precision and threads."""
    generator = torch.Generator().manual_seed(ctx.job.seed)
    device = torch.device(ctx.device.device)
    rows = torch.randn(4096, plan.dim, generator=generator)
    cloud = kernels.prepare(rows, precision=plan.precision, device=device)
    widths = [multiple * (2 * plan.dim) ** 0.5 for multiple in ctx.panel.multiples]
    settings = PanelSettings(pca_components=min(32, plan.dim), directions=ctx.panel.directions, bins=ctx.panel.bins)
    on_device = rows.to(device)
    pins, projection = pin(on_device, on_device.double().mean(0), settings)

    def pairs() -> int:
        kernels.self_sums(cloud, bandwidths=widths)
        return len(cloud) * (len(cloud) - 1) // 2

    def metrics() -> int:
        linear_metrics(on_device, on_device, projection, projection, pins, settings)
        return 2 * len(on_device)

    return Rates(_read_rate(ctx), _rate(pairs, device), _rate(metrics, device))


def _side(ctx: Context, windows: Sequence[Window], limit: Limit) -> Side:
    rows = sum(ctx.source.count(windows))
    files, size = ctx.source.size(windows)
    return Side(len(windows), rows, min(rows, limit.rows), files, size)


def _read_rate(ctx: Context) -> float:
    """Rows a second of one thread, from a second of reading the current window; 0 where it holds none."""
    rows, began, taken = 0, time.perf_counter(), 0.0
    for batch in ctx.source.scan([ctx.plan.current]):
        rows += len(batch.rows)
        taken = time.perf_counter() - began
        if taken > _SECOND:
            break
    return rows / taken if rows else 0.0


def _rate(work: Callable[[], int], device: torch.device) -> float:
    """Amount a second of ``work``, which returns the amount it did; once to warm up, then for about a second."""
    work()
    done, began = 0, time.perf_counter()
    while True:
        done += work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - began
        if taken > _SECOND:
            return done / taken


def _refuse(place: str, needed: int, free: int | None, plan: Plan) -> None:
    if free is None or needed <= free:
        return
    raise ConfigError(
        f"this run needs about {needed / 1e9:.1f} GB, more than is free on {place}",
        field="source.uri",
        value=f"{plan.rows:,} rows of {plan.dim} dimensions in memory at a time",
        allowed=f"{free / 1e9:.1f} GB",
        hint="shorter windows or fewer reference windows (windows.period, windows.reference), a source.filter, "
        + (f"score.pairs={PAIRS:.0e}, " if max(plan.pairs, plan.pinning) > 2 * PAIRS else "")
        + "or job=stream, whose memory does not grow with the rows",
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
