"""From what a run found to its pictures and its words: the only place that knows both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpudrift.calibrate import GATES
from gpudrift.history import ALL, with_reference_points
from gpudrift.outcomes import output as outcomes_output
from gpudrift.outcomes.records import Outcomes
from gpudrift.records import HistoryPoint, Metric, Projection
from gpudrift.report import lines, norms, outcome_plots, plots
from gpudrift.report.wording import VerdictSummary, span_text
from gpudrift.source.quality import total

if TYPE_CHECKING:
    from gpudrift.panel import Measured, Pins
    from gpudrift.result import Run

Floats = NDArray[np.float64]

# those that gate first; the terminal shows these, result.json has all
TELLING = (
    *GATES,
    "mmd_max",
    "frechet",
    "sliced_wasserstein",
    "mean_shift",
    "psi",
)


OUTCOME_PICTURES = ("outcomes", "outcome_lags", "outcome_events")
PICTURES = (
    *("pca", "pc1", "components", "quality", "witness", "clusters", "segments", "history", "summary"),
    *OUTCOME_PICTURES,
)
RINGED = 30  # most drifted rows marked on their map


@dataclass(frozen=True)
class Components:
    """Per component: variances of both clouds, shift of the mean in reference sd with standard error, log ratio."""

    reference: Floats
    current: Floats
    shift: Floats
    shift_se: Floats
    log_ratio: Floats


def components_of(px: Projection, py: Projection) -> Components:
    """Component by component, from the projections (n, q) and (m, q); NaN where the reference has no spread."""
    x, y = px.scores, py.scores
    variance_x, variance_y = x.var(0).cpu().numpy(), y.var(0).cpu().numpy()
    difference = (y.mean(0) - x.mean(0)).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt(variance_x)
        shift = np.where(sd > 0, difference / sd, np.nan)
        error = np.where(sd > 0, np.sqrt(variance_x / len(x) + variance_y / len(y)) / sd, np.nan)
        ratio = np.log(variance_y / variance_x)
    return Components(variance_x, variance_y, shift, error, np.where(np.isfinite(ratio), ratio, np.nan))


def draw(ran: Run, directory: Path, summary: VerdictSummary) -> list[plots.Picture]:
    """Write all pictures of a run. Without a score only the history and the summary are drawn, and
    pictures of an earlier run of this window are removed, so that nothing stale stands beside the verdict."""
    for name in PICTURES:
        for suffix in (".png", ".svg"):
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    pinned, scored = ran.reference, ran.scored
    known = [window[ALL] for window in ran.history]
    history = with_reference_points(pinned, known)
    span = (pinned.start, pinned.end)
    made = []
    page: dict[str, Any] = {}
    if scored.measured is not None:
        labels = ("reference", scored.window.label)
        made += panel_pictures(scored.measured, pinned.pins, labels, directory)
        made += length_pictures(ran, labels, directory)
        made += attribution_pictures(ran, labels, directory)
        parts = components_of(scored.measured.px, scored.measured.py)
        page = {
            "reference_n2": plane(scored.measured.px),
            "current_m2": plane(scored.measured.py),
            "variance_shares": shares(pinned.pins),
            "shift_sd_q": parts.shift,
            "shift_se_q": parts.shift_se,
        }
    made.append(
        plots.history(
            history,
            directory / "history",
            current_label=scored.window.label,
            reference_span=span,
            job=ran.job,
        )
    )
    made += outcome_pictures(ran.outcomes, directory, job=ran.job)
    made.append(
        plots.summary(
            plots.SummaryInput(verdict=summary, job=ran.job, history=tuple(history), reference_span=span, **page),
            directory / "summary",
        )
    )
    return made


def attribution_pictures(ran: Run, labels: tuple[str, str], directory: Path) -> list[plots.Picture]:
    """Which rows and clusters moved, and, where segments are scored, how far each lies from its own reference."""
    found, measured = ran.attribution, ran.scored.measured
    made = []
    if found is not None and measured is not None:
        ids = found.rows["id"].to_pylist()[:RINGED]
        order = np.argsort(-found.witness, kind="stable")[: len(ids)]
        names = [f"row {row}" if name is None else name for row, name in zip(order, ids, strict=True)]
        share, top = shares(ran.reference.pins), list(zip(order.tolist(), names, strict=True))
        stem = directory / "witness"
        made.append(
            plots.witness_map(
                plane(measured.px), found.plane, found.witness, stem, variance_shares=share, labels=labels, top=top
            )
        )
        made.append(plots.cluster_masses(found.clusters, directory / "clusters", labels=labels))
    if ran.segments:
        made.append(segments_over_windows(ran.history, directory, job=ran.job))
    return made


def segments_over_windows(windows: Iterable[Mapping[str, HistoryPoint]], directory: Path, *, job: str) -> plots.Picture:
    """How far each segment of the history's windows lies from its own reference."""
    cells = [
        plots.HeatCell(name, point.window, _over_tolerance(point), point.verdict)
        for window in windows
        for name, point in window.items()
        if name != ALL
    ]
    return plots.segment_heatmap(cells, directory / "segments", job=job)


def _over_tolerance(point: HistoryPoint) -> float | None:
    if point.score is None or point.delta is None or not point.delta > 0:
        return None
    return max(point.score, 0.0) / point.delta


def outcome_pictures(outcomes: Outcomes | None, directory: Path, *, job: str) -> list[plots.Picture]:
    """Product metrics beside the drift, by lag, and around spikes; those of an earlier run go."""
    for name in OUTCOME_PICTURES:
        for suffix in (".png", ".svg"):
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    if outcomes is None or not outcomes.findings:
        return []
    draw_one = (outcome_plots.timeline, outcome_plots.lag_profile, outcome_plots.event_study)
    return [
        one(outcomes, directory / name, job=job)
        for name, one in zip(OUTCOME_PICTURES, draw_one, strict=True)
        if name != "outcome_events" or outcome_plots.events_to_draw(outcomes)  # why not stands in the report's table
    ]


def length_pictures(ran: Run, labels: tuple[str, str], directory: Path) -> list[plots.Picture]:
    """Lengths of the rows, where there is anything to see: not of vectors that are all of length 1."""
    pinned, here = total(ran.reference_rows.quality).found, ran.scored.quality
    current = None if here is None or here.found is None else here.found.norms
    usual = None if pinned is None else pinned.norms
    if usual is None or current is None or not norms.worth_drawing(usual, current):
        return []
    return [norms.norm_histogram(usual, current, directory / "quality", labels=labels)]


def panel_pictures(measured: Measured, pins: Pins, labels: tuple[str, str], directory: Path) -> list[plots.Picture]:
    """The pictures of two clouds: map, histogram of PC1, spectrum with the shift per component."""
    share = shares(pins)
    parts = components_of(measured.px, measured.py)
    groups = [
        (label, p.scores[:, 0].cpu().numpy()) for label, p in zip(labels, (measured.px, measured.py), strict=True)
    ]
    return [
        plots.pca_map(plane(measured.px), plane(measured.py), directory / "pca", variance_shares=share, labels=labels),
        plots.pc1_histogram(groups, directory / "pc1", variance_share=share[0]),
        plots.spectrum_and_shift(
            parts.reference,
            parts.current,
            parts.shift,
            parts.shift_se,
            parts.log_ratio,
            directory / "components",
            labels=labels,
        ),
    ]


def plane(projection: Projection) -> Floats:
    """The first two components, or the only one."""
    return np.asarray(projection.scores[:, :2].cpu().numpy(), dtype=np.float64)


def shares(pins: Pins) -> tuple[float, ...]:
    """The first two components' shares of the reference's variance."""
    basis = pins.basis
    return tuple(float(v) / basis.total_variance for v in basis.variances[:2])


def verdict_summary(ran: Run, directory: Path) -> VerdictSummary:
    """The verdict as people read it."""
    scored, pinned, found = ran.scored, ran.reference, ran.scored.calibration
    metrics = {} if scored.measured is None else scored.measured.metrics
    energy = None if scored.measured is None else scored.measured.energy
    count, parts = f"{len(pinned.kept)} windows", ran.attribution
    return VerdictSummary(
        verdict=ran.verdict,
        window=scored.window.label,
        window_dates=span_text(scored.window.start, scored.window.end),
        reference=f"{span_text(pinned.start, pinned.end)}, {count}",
        rows=scored.rows,
        reference_rows=len(ran.reference_rows.centred),
        exit_code=ran.exit_code,
        score=None if energy is None else energy.value,
        se=None if energy is None else energy.se,
        ci=None if found is None else found.ci,
        ratio=None if found is None else found.ratio,
        severity=None if found is None else found.severity,
        p_aa=None if found is None else found.p_aa,
        p_close=None if found is None else found.p_close,
        delta=None if found is None else found.delta,
        metrics=telling(metrics),
        outputs=tuple(str(directory / name) for name in written(ran)),
        reason=ran.reason if ran.verdict == "insufficient" else "",  # the numbers say the rest
        encoder="" if scored.encoder is None else scored.encoder.headline,
        notes=ran.notes,
        phenomena=lines.changed_lines(ran.happened),
        gates=lines.gate_lines(scored.gates, ran.limits),
        clusters=() if parts is None else lines.cluster_lines(parts.clusters, parts.score),
        segments=lines.segment_lines(
            ran.segments, () if parts is None else parts.segments, 0.0 if parts is None else parts.score
        ),
        lagged=tuple(lines.lagged_line(one) for one in ran.lagged),
        outcomes=() if ran.outcomes is None else outcomes_output.lines(ran.outcomes),
    )


def written(ran: Run) -> list[str]:
    """The files a reader looks at first."""
    rows = [] if ran.attribution is None else ["drifted_rows.parquet"]
    metrics = [] if ran.outcomes is None else ["outcomes.parquet"]
    report = ["report.html"] if ran.config["report"]["html"] else []
    return ["result.json", "scores.parquet", *rows, *metrics, *report, "plots/summary.png"]


def telling(metrics: Mapping[str, Metric]) -> tuple[tuple[str, float, float | None], ...]:
    return tuple((name, metrics[name].value, metrics[name].se) for name in TELLING if name in metrics)
