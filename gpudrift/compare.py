"""``job=compare``: two windows of a corpus side by side: the panel, and pictures, without calibration or verdict.

Axes, bandwidths and bins come from the first window. With ``source.uri`` pointing at ``generate.path``, a corpus that
is not there yet is generated first; that is the ``synthetic`` experiment. Of the windows between the two at most
``SHOWN`` are read, for the histograms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gpudrift import device as devices
from gpudrift import kernels
from gpudrift.config import JobConfig, parse_date, to_plain
from gpudrift.context import open_job_source, output_of, panel_settings
from gpudrift.errors import ConfigError, InsufficientDataError
from gpudrift.files import make_directory, write_json
from gpudrift.fingerprint import canonical
from gpudrift.kernels import choice
from gpudrift.metrics.accumulate import mean_of
from gpudrift.panel import centre, measure, pin
from gpudrift.project import project
from gpudrift.records import Window
from gpudrift.sampling import draw, limit_of, rule
from gpudrift.windows import covering, data_windows, parse_period

if TYPE_CHECKING:
    from gpudrift.report.terminal import Reporter

SHOWN = 6  # histograms of weeks on one axis


@dataclass(frozen=True)
class Pair:
    """The windows compared, and all from the earlier to the later of them."""

    first: Window
    second: Window
    between: tuple[Window, ...]


def lacks_corpus(job: JobConfig) -> bool:
    """Whether the source is the corpus that ``generate`` writes, and it is not there yet."""
    return job.source.uri == job.generate.path and not any(Path(job.generate.path).rglob("*.parquet"))


def compare(job: JobConfig, reporter: Reporter) -> int:
    """Run ``job=compare``; the exit code is 0."""
    from gpudrift.report import pictures, plots

    output = make_directory(output_of(job))
    device = devices.choose(job.device)
    source = open_job_source(job, reporter)
    extent = source.extent()
    pair = choose(job, extent.first, extent.last)
    shown = spread_out(pair.between, source.count(pair.between))
    with reporter.progress("reading", total=sum(source.count(shown)), unit="rows") as advance:
        cloud, _ = canonical(source.read(shown, progress=advance), job.seed)
    places = [shown.index(window) for window in (pair.first, pair.second)]
    x, y = (cloud.window(k).embeddings.to(device.device) for k in places)
    for window, rows in zip((pair.first, pair.second), (x, y), strict=True):
        if len(rows) < job.windows.min_rows:
            raise InsufficientDataError(
                f"window {window.label} holds too few rows to compare",
                field="windows.min_rows",
                value=len(rows),
                allowed=f"{job.windows.min_rows} or more",
            )
    mean = mean_of(x)
    centre(cloud.embeddings, mean.cpu())
    x, y = (cloud.window(k).embeddings.to(device.device) for k in places)
    panel = panel_settings(job)
    pins, px = pin(x, mean, panel)
    arithmetic = choice.choose(job.precision, x.device.type, x, y, bandwidths=pins.bandwidths, seed=job.seed)
    limit = limit_of(job.score.rows, job.score.pairs, job.windows.min_rows)
    first = draw(cloud.window(places[0]), limit)
    limit = limit.against(len(first))
    samples = [first, draw(cloud.window(places[1]), limit)]
    xp, yp = (
        kernels.prepare(sample.of(r), precision=arithmetic.precision, scale=arithmetic.scale)
        for sample, r in zip(samples, (x, y), strict=True)
    )
    n, m = map(len, samples)
    method, reason = rule(limit, (len(x), n), (len(y), m))
    with reporter.progress("pairs", total=n * n // 2 + n * m + m * m // 2, unit="pairs") as step:
        sums = [
            kernels.self_sums(xp, bandwidths=pins.bandwidths, progress=step),
            kernels.cross_sums(xp, yp, bandwidths=pins.bandwidths, progress=step),
            kernels.self_sums(yp, bandwidths=pins.bandwidths, progress=step),
        ]
    measured = measure(x, y, (None, None), px, pins, panel, *sums)
    plots_directory = output / "plots"
    pictures.panel_pictures(measured, pins, (pair.first.label, pair.second.label), plots_directory)
    groups = [
        (window.label, project(cloud.window(k).embeddings.to(device.device), pins.basis).scores[:, 0].cpu().numpy())
        for k, window in enumerate(shown)
        if cloud.sizes()[k]
    ]
    plots.pc1_histogram(groups, plots_directory / "pc1_by_window", variance_share=pictures.shares(pins)[0])
    write_json(
        output / "compare.json",
        {
            "reference": pair.first.label,
            "current": pair.second.label,
            "rows": {"reference": len(x), "current": len(y)},
            "pair_rows": {"reference": n, "current": m, "method": method, "reason": reason},
            "metrics": {name: {"value": m.value, "se": m.se, **m.extra} for name, m in measured.metrics.items()},
            "device": device.device,
            "precision": arithmetic.precision,
            "precision_reason": arithmetic.reason,
            "versions": devices.versions(),
            "config": to_plain(job),
        },
    )
    reporter.metrics_table(
        f"{pair.second.label} ({len(y):,} rows) against {pair.first.label} ({len(x):,} rows), without a verdict: "
        "a verdict needs a reference of several windows",
        pictures.telling(measured.metrics),
        [str(output / "compare.json"), str(plots_directory)],
    )
    return 0


def choose(job: JobConfig, first: datetime, last: datetime) -> Pair:
    """The two windows that hold the configured dates; by default the first and last complete ones of the data."""
    period = parse_period(job.windows.period)
    start = parse_date("compare.reference", job.compare.reference)
    end = parse_date("compare.current", job.compare.current)
    complete = [window for window in data_windows(period, first, last) if window.complete]
    if not complete and (start is None or end is None):
        raise InsufficientDataError(
            "the data hold no complete window",
            field="windows.period",
            value=job.windows.period,
            hint="a shorter windows.period, or name both dates: compare.reference and compare.current",
        )
    one = complete[0] if start is None else period.window_at(start)
    other = complete[-1] if end is None else period.window_at(end)
    if one.start == other.start:
        raise ConfigError(
            f"both sides of the comparison are the same window, {one.label}",
            field="compare.reference, compare.current",
            value=[job.compare.reference, job.compare.current],
            allowed=f"dates in two windows of the data, {first:%Y-%m-%d} to {last:%Y-%m-%d}",
        )
    low, high = min(one, other), max(one, other)
    if high.start > last or low.end <= first:
        raise InsufficientDataError(
            "one of the windows to compare lies outside the data",
            field="compare.reference, compare.current",
            value=[one.label, other.label],
            allowed=f"dates inside the data, {first:%Y-%m-%d} to {last:%Y-%m-%d}",
        )
    return Pair(one, other, covering(period, low.start, high.end))


def spread_out(windows: Sequence[Window], counts: Sequence[int]) -> tuple[Window, ...]:
    """At most ``SHOWN`` windows: the ends, and evenly between them of those that hold rows."""
    last = len(windows) - 1
    filled = [window for k, window in enumerate(windows) if k in (0, last) or counts[k]]
    if len(filled) <= SHOWN:
        return tuple(filled)
    return tuple(filled[round(k * (len(filled) - 1) / (SHOWN - 1))] for k in range(SHOWN))
