"""What a backtest says: backtest.parquet, backtest.json (docs/backtest.md has the keys) and tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gpudrift.records import HistoryPoint, Window
from gpudrift.replay import Detection, Onset, Setting

if TYPE_CHECKING:
    from gpudrift.reference import Reference
    from gpudrift.report.terminal import Reporter

LISTED = 8  # alarms of a setting on the terminal


@dataclass(frozen=True)
class Asked:
    """What is replayed and against what it is held. quiet: labels."""

    windows: tuple[Window, ...]
    onsets: tuple[Onset, ...]
    quiet: frozenset[str]
    quiet_given: bool


@dataclass(frozen=True)
class Tried:
    """A setting with the reference it used and its verdicts, one a window."""

    setting: Setting
    reference: Reference
    points: tuple[HistoryPoint, ...]


def table_of(asked: Asked, tried: Sequence[Tried]) -> pa.Table:
    """backtest.parquet: a row a setting and window."""
    rows = [
        {
            "reference_windows": item.setting.windows,
            "warn_p": item.setting.warn_p,
            "reference": item.reference.id,
            "window_start": point.window.start,
            "window_end": point.window.end,
            "quiet": point.window.label in asked.quiet,
        }
        | _verdict_row(point)
        for item in tried
        for point in item.points
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _verdict_row(point: HistoryPoint) -> dict[str, Any]:
    gates = point.gates
    least = min(gates, key=lambda g: g.p_holm) if gates else None
    return {
        "window": point.window.label,
        "verdict": point.verdict,
        "score": point.score,
        "se": point.se,
        "p_aa": point.p_aa,
        "delta": point.delta,
        "ratio": point.ratio,
        "p": None if least is None else least.p_holm,
        "metric": None if least is None else least.metric,
        "rows": point.rows,
    }


_F = pa.float64()
SCHEMA = pa.schema(
    [
        *(("reference_windows", pa.int64()), ("warn_p", _F), ("reference", pa.string()), ("window", pa.string())),
        *(("window_start", pa.timestamp("us", tz="UTC")), ("window_end", pa.timestamp("us", tz="UTC"))),
        *(("quiet", pa.bool_()), ("verdict", pa.string()), ("score", _F), ("se", _F), ("p_aa", _F), ("delta", _F)),
        *(("ratio", _F), ("p", _F), ("metric", pa.string()), ("rows", pa.int64())),
    ]
)


def summary_of(
    named: Mapping[str, Any], asked: Asked, tried: Sequence[Tried], best: Setting | None, sentence: str
) -> dict[str, Any]:
    """backtest.json. named: the job's name and period."""
    return {
        "schema_version": 1,
        **named,
        "start": asked.windows[0].start,
        "end": asked.windows[-1].end,
        "windows": len(asked.windows),
        "quiet": [w.label for w in asked.windows if w.label in asked.quiet],
        "quiet_given": asked.quiet_given,
        "recommended": None if best is None else {"reference_windows": best.windows, "warn_p": best.warn_p},
        "recommendation": sentence,
        "settings": [_setting_json(item) for item in tried],
    }


def _setting_json(item: Tried) -> dict[str, Any]:
    setting, pinned, found = item.setting, item.reference, item.setting.assessment
    rate = found.per_year
    return {
        "reference_windows": setting.windows,
        "warn_p": setting.warn_p,
        "reference": {
            "id": pinned.id,
            "first": pinned.kept[0].window.label,
            "last": pinned.kept[-1].window.label,
            "kept": len(pinned.kept),
            "dropped": [w.window.label for w in pinned.dropped],
            "rows": sum(w.rows for w in pinned.kept),
            "unusable": setting.unusable,
        },
        "verdicts": dict(found.verdicts),
        "alarms": [asdict(alarm) for alarm in found.alarms],
        "false_alarms": None if found.false_alarms is None else asdict(found.false_alarms),
        "false_alarms_per_year": None if rate is None else {"value": rate[0], "low": rate[1], "high": rate[2]},
        "quiet_warned": None if found.quiet_warned is None else asdict(found.quiet_warned),
        "onsets": [asdict(d.onset) | {k: v for k, v in asdict(d).items() if k != "onset"} for d in found.onsets],
        "windows": [_verdict_row(point) for point in item.points],
    }


def say(reporter: Reporter, asked: Asked, settings: Sequence[Setting], sentence: str) -> None:
    """The tables on the terminal."""
    if not reporter.quiet:
        span = f"{asked.windows[0].label} to {asked.windows[-1].label}"
        quiet = f"{len(asked.quiet)} of them known to be quiet" if asked.quiet else "none known to be quiet"
        reporter.table(f"{len(asked.windows)} windows replayed, {span}; {quiet}", [])
        head = ("windows", "warn_p", "warnings", "alerts", "alarms", "false", "95% a window", "a year", "95% a year")
        _grid(reporter, head, [_counts(setting) for setting in settings])
        held = [(" at ".join(_named(s)), _alarms(s)) for s in settings if s.assessment.alarms]
        reporter.table("alarms" if held else "no alarm at any setting", held)
        for k, onset in enumerate(asked.onsets):
            named = "" if onset.name == onset.day.isoformat() else f", {onset.name}"
            detections = [setting.assessment.onsets[k] for setting in settings]
            reporter.table(f"onset {onset.day}{named}, in {detections[0].window}", [])
            rows = [(*_named(s), *_delays(d)) for s, d in zip(settings, detections, strict=True)]
            _grid(reporter, ("windows", "warn_p", "first warning", "first alert"), rows)
        for setting in settings:
            if setting.unusable is not None:
                reporter.warn(f"{' at '.join(_named(setting))}: every verdict is insufficient: {setting.unusable}")
    reporter.table(sentence, [])


def _grid(reporter: Reporter, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    reporter.grid(head, rows, right=range(len(head)), styles=[""] * len(rows))


def _named(setting: Setting) -> tuple[str, str]:
    return str(setting.windows), f"{setting.warn_p:g}"


def _counts(setting: Setting) -> tuple[str, ...]:
    found = setting.assessment
    false, rate = found.false_alarms, found.per_year
    cells = (*_named(setting), *(str(found.verdicts[v]) for v in ("warning", "alert")), str(len(found.alarms)))
    if false is None or rate is None:
        return (*cells, "-", "-", "-", "-")
    of = f"{false.count} of {false.of}"
    return (*cells, of, f"{false.low:.2g} to {false.high:.2g}", f"{rate[0]:.2g}", f"{rate[1]:.2g} to {rate[2]:.2g}")


def _alarms(setting: Setting) -> str:
    alarms = setting.assessment.alarms
    told = [a.first if a.first == a.last else f"{a.first} to {a.last}" for a in alarms[:LISTED]]
    return ", ".join(told) + (f" and {len(alarms) - LISTED} more" if len(alarms) > LISTED else "")


def _delays(found: Detection) -> tuple[str, str]:
    if found.state in ("held", "already"):
        return "-", "held already"
    warned = "-" if found.warning is None else f"after {found.warning} ({found.warning_days:.0f} days)"
    return warned, "missed" if found.alert is None else f"after {found.alert} ({found.alert_days:.0f} days)"
