"""What a run leaves behind: result.json, Parquet tables, the resolved config, pictures, the HTML report.

The schema of result.json is documented in docs/result.md and checked by tests. Everything outside its ``run`` object
is the same bytes for the same input, seed and device type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpudrift import history as history_store
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import Limits, p_panel
from gpudrift.config import to_yaml
from gpudrift.device import DeviceChoice, versions
from gpudrift.engine import Engine
from gpudrift.files import atomic_path, write_json
from gpudrift.kernels import Backend, Prepared, backend_for
from gpudrift.outcomes import output as outcomes_output
from gpudrift.outcomes.records import Outcomes
from gpudrift.records import (
    Attribution,
    Calibration,
    HistoryPoint,
    Lagged,
    Metric,
    Norms,
    Phenomenon,
    Quality,
    Repeats,
    SegmentScore,
    Verdict,
    Window,
)
from gpudrift.reference import Reference, ReferenceWindow, Rows
from gpudrift.sampling import Limit, rule, sampling_error
from gpudrift.scoring import Scored, compared_rows
from gpudrift.source.quality import PER_OCTAVE, UNIT_TOLERANCE, total, unit_length
from gpudrift.windows import WindowPlan

if TYPE_CHECKING:
    from gpudrift.monitoring.notify import Delivery
    from gpudrift.report.wording import VerdictSummary

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """All a run found, ready to be written."""

    job: str
    config: Mapping[str, Any]
    reference: Reference
    reference_path: Path
    reference_made: bool
    reference_rows: Rows
    arithmetic: Arithmetic
    limit: Limit
    limits: Limits
    scored: Scored
    verdict: Verdict
    reason: str
    previous: HistoryPoint | None
    previous_scored: bool
    lagged: tuple[Lagged, ...]
    attribution: Attribution | None
    happened: tuple[Phenomenon, ...]
    segments: tuple[SegmentScore, ...]
    history: tuple[Mapping[str, HistoryPoint], ...]  # windows, oldest first, each by segment
    outcomes: Outcomes | None  # product metrics beside the history
    plan: WindowPlan
    device: DeviceChoice
    notes: tuple[str, ...]
    seconds: dict[str, float]
    engine: Engine
    moved: dict[str, dict[str, int]]
    exit_code: int

    @property
    def reference_count(self) -> int:
        """Rows the window was scored against: without its own where it is part of the reference."""
        return compared_rows(self.reference_rows, self.scored)


def write_outputs(ran: Run, directory: Path) -> VerdictSummary:
    """Write everything but result.json, which comes last (``write_result``); returns the verdict as people read it."""
    from gpudrift.report.html.page import write_run
    from gpudrift.report.pictures import draw, verdict_summary

    write_config(ran.config, directory / "config.yaml")
    point = ran.scored.point(ran.verdict)
    metrics = [] if ran.scored.measured is None else list(ran.scored.measured.metrics.values())
    rows = history_store.table(ran.job, ran.reference.id, point, metrics, ran.segments)
    history_store.write_table(rows, directory / "scores.parquet")
    (directory / "drifted_rows.parquet").unlink(missing_ok=True)  # that of an earlier window
    drifted = None if ran.attribution is None else ran.attribution.rows
    if drifted is not None:
        history_store.write_table(drifted, directory / "drifted_rows.parquet")
    write_outcomes(ran.outcomes, directory, ran.job, ran.reference.id)
    summary = verdict_summary(ran, directory)
    pictures = draw(ran, directory / "plots", summary)
    (directory / "report.html").unlink(missing_ok=True)
    report = ran.config["report"]
    if report["html"]:
        points = [window[history_store.ALL] for window in ran.history]
        write_run(directory, as_json(ran), summary, pictures, drifted, points, ran.outcomes, keep=report["keep"])
    return summary


def write_outcomes(outcomes: Outcomes | None, directory: Path, job: str, reference: str) -> None:
    """outcomes.parquet and outcomes_windows.parquet; those of an earlier run go where there are none now."""
    tables = {
        "outcomes.parquet": outcomes_output.table,
        "outcomes_windows.parquet": outcomes_output.windows_table,
    }
    for name, table in tables.items():
        (directory / name).unlink(missing_ok=True)
        if outcomes is not None:
            history_store.write_table(table(job, reference, outcomes), directory / name)


def write_result(ran: Run, directory: Path, deliveries: Sequence[Delivery]) -> None:
    """result.json: its presence means that the run ended."""
    write_json(directory / "result.json", as_json(ran, deliveries))


def as_json(ran: Run, deliveries: Sequence[Delivery] = ()) -> dict[str, Any]:
    """The content of result.json."""
    scored, pinned = ran.scored, ran.reference
    metrics = {} if scored.measured is None else scored.measured.metrics
    prepared = ran.reference_rows.prepared
    backend = _backend(ran, prepared)
    unit = unit_length(ran.reference_rows.quality)
    return {
        "schema_version": SCHEMA_VERSION,
        "job": ran.job,
        "verdict": ran.verdict,
        "reason": ran.reason,
        "exit_code": ran.exit_code,
        "window": _window(scored.window),
        "rows": {"current": scored.rows, "reference": len(ran.reference_rows.centred)},
        "pair_rows": _pair_rows(ran),
        "metrics": {name: _metric(metric) for name, metric in metrics.items()},
        "calibration": None if scored.calibration is None else asdict(scored.calibration),
        "p_panel": p_panel(scored.gates),
        "gates": [asdict(gate) for gate in scored.gates],
        "phenomena": [asdict(found) for found in ran.happened],
        "attribution": None if ran.attribution is None else _attribution(ran.attribution),
        "segments": [_segment(found) for found in ran.segments],
        "outcomes": None if ran.outcomes is None else outcomes_output.as_json(ran.outcomes),
        "previous": None if ran.previous is None else _point(ran.previous),
        "compared": [_lagged(found) for found in ran.lagged],
        "reference": {
            "id": pinned.id,
            "start": pinned.start,
            "end": pinned.end,
            "period": pinned.period,
            "dim": pinned.dim,
            "encoder_id": pinned.encoder_id,
            "path": str(ran.reference_path),
            "aa_n": pinned.null.n0,
            "null_sd": pinned.null.null_sd,
            "windows": [_reference_window(w) for w in pinned.kept],
            "dropped": [_reference_window(w) for w in pinned.dropped],
            "left_out": [{"window": label, "reason": reason} for label, reason in pinned.left_out],
            "bandwidths": list(pinned.pins.bandwidths),
            "quality": _quality(total(ran.reference_rows.quality), unit, examples=False),
        },
        "left_out": [{"window": item.window.label, "reason": item.reason} for item in ran.plan.left_out],
        "quality": None if scored.quality is None else _quality(scored.quality, unit),
        "encoder": None if scored.encoder is None else asdict(scored.encoder),
        "notes": list(ran.notes),
        "device": ran.device.device,
        "device_reason": ran.device.reason,
        "backend": {"name": backend.name, "reason": backend.reason},
        "precision": ran.arithmetic.precision,
        "precision_reason": ran.arithmetic.reason,
        "threads": torch.get_num_threads(),
        "seed": ran.config["seed"],
        "versions": versions(),
        "config": ran.config,
        "run": {
            "ended": datetime.now(UTC),
            "seconds": {name: round(value, 3) for name, value in ran.seconds.items()},
            "engine": _engine(ran),
            "reference": "made" if ran.reference_made else "loaded",
            "previous": "scored" if ran.previous_scored else "history" if ran.previous else "none",
            "sinks": [asdict(one) for one in deliveries],
        },
    }


def _backend(ran: Run, prepared: Prepared) -> Backend:
    """What computed the pairs, as far as this process knows."""
    workers = str(ran.engine.executor.describe().get("device", prepared.device))
    if torch.device(workers).type != prepared.device.type:
        return Backend("workers", f"chosen by each worker, on {workers}")
    return backend_for(prepared.device, prepared.precision)


def _engine(ran: Run) -> dict[str, Any]:
    """Where the work ran, what it took, and what went wrong on the way."""
    engine = ran.engine
    account = asdict(engine.account)
    return {
        "kind": engine.executor.kind,
        "block_rows": ran.config["engine"]["block_rows"],
        **{name: account[name] for name in ("tasks", "started", "lost", "errors", "speculated", "wasted", "resumed")},
        "worker_seconds": round(account["worker_seconds"], 3),
        "bytes": ran.moved,
        "workers": dict(engine.executor.describe()),
        "measures": dict(engine.executor.measures()),
    }


def _pair_rows(ran: Run) -> dict[str, Any]:
    """How many rows took part in pairs, why, and what that costs in accuracy."""
    scored, rows = ran.scored, ran.reference_rows
    se_all = se_sampling = None
    if scored.measured is not None and rows.prepared.clusters is None:
        se_all, se_sampling = sampling_error(scored.measured.energy, (ran.reference_count, scored.rows))
    taken = len(rows.sample), scored.pair_rows
    method, reason = rule(ran.limit, (len(rows.centred), taken[0]), (scored.rows, taken[1]))
    return {
        "current": taken[1],
        "reference": taken[0],
        "method": method,
        "reason": reason,
        "limit": ran.limit.rows,
        "budget": ran.limit.pairs,
        "se_of_all_rows": se_all,
        "se_of_sampling": se_sampling,
    }


def write_config(config: Mapping[str, Any], path: Path) -> None:
    """The resolved configuration as YAML that can be run again."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")


def _window(window: Window) -> dict[str, Any]:
    return {"label": window.label, "start": window.start, "end": window.end, "complete": window.complete}


def _metric(metric: Metric) -> dict[str, Any]:
    return {"value": metric.value, "se": metric.se, **metric.extra}


def _point(point: HistoryPoint) -> dict[str, Any]:
    return {
        "window": point.window.label,
        "verdict": point.verdict,
        "score": point.score,
        "se": point.se,
        "p_aa": point.p_aa,
        "p_close": point.p_close,
        "rows": point.rows,
    }


def _attribution(found: Attribution) -> dict[str, Any]:
    return {
        "score": found.score,
        "rows": len(found.rows),
        "clusters": [asdict(part) for part in found.clusters],
        "segments": [asdict(part) for part in found.segments],
        "components": [asdict(part) for part in found.components],
    }


def _segment(found: SegmentScore) -> dict[str, Any]:
    return {
        "name": found.name,
        "column": found.column,
        "value": found.value,
        "pooled": found.pooled,
        "rows": found.rows,
        "reference_rows": found.reference_rows,
        "windows": found.windows,
        "verdict": found.verdict,
        "reason": found.reason,
        "q": found.q,
        "metrics": {name: _metric(metric) for name, metric in found.metrics.items()},
        "calibration": None if found.calibration is None else _brief(found.calibration),
    }


def _lagged(found: Lagged) -> dict[str, Any]:
    return {
        "with": found.name,
        "window": found.window.label,
        "rows": found.rows,
        "verdict": found.verdict,
        "reason": found.reason,
        "movement": found.movement,
        "calibration": None if found.calibration is None else _brief(found.calibration),
    }


def _brief(found: Calibration) -> dict[str, Any]:
    """A calibration beside the headline's."""
    names = ("score", "se", "null_sd", "aa_n", "aa_median", "p_aa", "p_close", "delta", "ratio", "severity")
    return {name: getattr(found, name) for name in names} | {"usual": len(found.aa_scores)}


def _reference_window(window: ReferenceWindow) -> dict[str, Any]:
    return {"label": window.window.label, "rows": window.rows, "aa_score": window.score}


def _quality(quality: Quality, unit: bool, examples: bool = True) -> dict[str, Any]:
    """``unit``: the reference is of unit length, so that rows that are not are worth counting."""
    found = quality.found
    ids = None if found is None else found.repeated_ids
    norms = None if found is None else found.norms
    off_unit = None
    if unit and norms is not None:
        off_unit = {"rows": norms.off_unit, "tolerance": UNIT_TOLERANCE, "examples": list(norms.examples)}
    plain: dict[str, Any] = {
        "rows_read": quality.rows_read,
        "rows_kept": quality.rows_kept,
        "bad_fraction": quality.bad_fraction,
        "dropped": dict(quality.dropped),
        "examples": {cause: list(named) for cause, named in quality.examples.items()},
        "duplicates": None if found is None else _repeats(found.duplicates),
        "repeated_ids": None if ids is None else _repeats(ids),
        "unnormalised": off_unit,
        "norms": None if norms is None else _norms(norms),
    }
    if not examples:
        for part in (plain, plain["duplicates"], plain["repeated_ids"], plain["unnormalised"]):
            if part is not None:
                part.pop("examples")
    return plain


def _repeats(repeats: Repeats) -> dict[str, Any]:
    return {"rows": repeats.rows, "largest": repeats.largest, "examples": list(repeats.examples)}


def _norms(norms: Norms) -> dict[str, Any]:
    half = 0.5 / PER_OCTAVE
    return {
        "rows": norms.rows,
        "min": norms.least,
        "mean": norms.mean,
        "max": norms.most,
        "histogram": [
            {"from": 2.0 ** (k / PER_OCTAVE - half), "to": 2.0 ** (k / PER_OCTAVE + half), "rows": rows}
            for k, rows in norms.bins
        ],
    }
