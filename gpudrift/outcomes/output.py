"""What is written of product metrics: outcomes.parquet, outcomes_windows.parquet, result.json, lines for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

import pyarrow as pa

from gpudrift.history import ALL
from gpudrift.outcomes.records import EventStudy, Finding, Floats, LagEffect, Level, Outcomes
from gpudrift.records import Window
from gpudrift.report.wording import SHOWN, printable, quantities

MISSING = 20  # labels of windows without a value in result.json
_Value = TypeVar("_Value")
_F, _I, _S = pa.float64(), pa.int64(), pa.string()

SCHEMA = pa.schema(
    [
        *(("job", _S), ("reference", _S), ("rank", _I), ("metric", _S), ("worse", _S), ("segment", _S)),
        *(("windows", _I), ("missing", _I), ("lag", _I), ("effect", _F), ("ci_low", _F), ("ci_high", _F)),
        *(("r", _F), ("p", _F), ("q", _F), ("link", _S), ("sentence", _S)),
        *(("events_onsets", _I), ("events_change", _F), ("events_ci_low", _F), ("events_ci_high", _F)),
        *(("events_p", _F), ("events_reason", _S)),
        *(("level_window", _S), ("level_value", _F), ("level_count", _F), ("level_usual", _F), ("level_limit", _F)),
        *(("level_p", _F), ("level_windows", _I), ("level_degraded", pa.bool_())),
    ]
)
WINDOWS_SCHEMA = pa.schema(
    [
        *(("job", _S), ("reference", _S), ("window", _S), ("window_start", pa.timestamp("us", tz="UTC"))),
        *(("window_end", pa.timestamp("us", tz="UTC")), ("segment", _S), ("metric", _S)),
        *(("value", _F), ("count", _F), ("score", _F), ("spike", pa.bool_())),
    ]
)


def table(job: str, reference: str, outcomes: Outcomes) -> pa.Table:
    """outcomes.parquet: a row a finding, in their order; reference: its id."""
    rows = [
        {"job": job, "reference": reference, "rank": rank, **_finding_row(finding)}
        for rank, finding in enumerate(outcomes.findings, 1)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def windows_table(job: str, reference: str, outcomes: Outcomes) -> pa.Table:
    """outcomes_windows.parquet: a row a metric, segment and window, oldest first: every window of the history's span
    and those before it that the metric has. value is null in gaps, score where the history has none."""
    rows: list[dict[str, Any]] = []
    last = max((drift.windows[-1].start for drift in outcomes.drift.values() if drift.windows), default=None)
    for metric, segment in sorted(outcomes.series):
        series, drift = outcomes.series[metric, segment], outcomes.drift.get(segment)
        values = _by_start(series.windows, _plain(series.values))
        counts = _by_start(series.windows, _plain(series.counts))
        scores = {} if drift is None else _by_start(drift.windows, _plain(drift.scores))
        spikes = {} if drift is None else _by_start(drift.windows, drift.spikes.tolist())
        windows = {window.start: window for window in (*series.windows, *(() if drift is None else drift.windows))}
        rows += [
            {
                "job": job,
                "reference": reference,
                "window": windows[start].label,
                "window_start": start,
                "window_end": windows[start].end,
                "segment": segment,
                "metric": metric,
                "value": values.get(start),
                "count": counts.get(start),
                "score": scores.get(start),
                "spike": spikes.get(start, False),
            }
            for start in sorted(windows)
            if last is None or start <= last
        ]
    return pa.Table.from_pylist(rows, schema=WINDOWS_SCHEMA)


def as_json(outcomes: Outcomes) -> dict[str, Any]:
    """The key ``outcomes`` of result.json: plain values, null where there is none."""
    return {"findings": [_finding_json(finding) for finding in outcomes.findings], "notes": list(outcomes.notes)}


def lines(outcomes: Outcomes) -> tuple[str, ...]:
    """For the terminal and the summary: ``first_lines``, and a line that says what else there is."""
    shown, rest = list(first_lines(outcomes)), _ordered(outcomes)[SHOWN:]
    if rest:
        links = Counter(finding.link for finding in rest)
        told = [
            (links["worse"], "worse as drift rises"),
            (links["better"], "better as drift rises"),
            (links["none"], "without a link"),
            (links["insufficient"], "with insufficient windows"),
            (sum(map(_degraded, rest)), "of them beyond the limit of quiet windows"),
        ]
        listed = ", ".join(f"{k:,} {words}" for k, words in told if k)
        shown.append(f"and {len(rest):,} more in outcomes.parquet: {listed}")
    return tuple(shown)


def first_lines(outcomes: Outcomes) -> tuple[str, ...]:
    """At most ``SHOWN`` findings in words, links and metrics beyond their limit first."""
    return tuple(_line(finding) for finding in _ordered(outcomes)[:SHOWN])


def _ordered(outcomes: Outcomes) -> list[Finding]:
    return sorted(outcomes.findings, key=lambda f: not (_linked(f) or _degraded(f)))


def _line(finding: Finding) -> str:
    told = printable(finding.sentence).rstrip(".")
    level = finding.level
    if level is None or not level.degraded:
        return told
    side = "below" if finding.worse == "lower" else "above"
    value, limit, usual = quantities(level.value, level.limit, level.usual)
    named = finding.metric if finding.segment == ALL else f"{finding.metric} of {finding.segment}"
    return (
        f"{printable(named)} is {value} in {printable(level.window)}, {side} {limit}, the limit of its quiet windows "
        f"(usual {usual}); {told}"
    )


def _linked(finding: Finding) -> bool:
    return finding.link in ("worse", "better")


def _degraded(finding: Finding) -> bool:
    return finding.level is not None and finding.level.degraded


def _finding_row(finding: Finding) -> dict[str, Any]:
    low, high = finding.ci or (None, None)
    row = {
        "metric": finding.metric,
        "worse": finding.worse,
        "segment": finding.segment,
        "windows": finding.windows,
        "missing": len(finding.missing),
        "lag": finding.lag,
        "effect": _number(finding.effect),
        "ci_low": _number(low),
        "ci_high": _number(high),
        "r": _number(finding.r),
        "p": _number(finding.p),
        "q": _number(finding.q),
        "link": finding.link,
        "sentence": finding.sentence,
    }
    events, level = finding.events, finding.level
    if events is not None:
        low, high = events.ci or (None, None)
        row |= {
            "events_onsets": len(events.onsets),
            "events_change": _number(events.change),
            "events_ci_low": _number(low),
            "events_ci_high": _number(high),
            "events_p": _number(events.p),
            "events_reason": events.reason or None,
        }
    if level is not None:
        row |= {f"level_{name}": value for name, value in _level_json(level).items()}
    return row


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "metric": finding.metric,
        "worse": finding.worse,
        "segment": finding.segment,
        "windows": finding.windows,
        "missing": {"windows": len(finding.missing), "labels": list(finding.missing[:MISSING])},
        "lag": finding.lag,
        "effect": _number(finding.effect),
        "ci": None if finding.ci is None else [_number(end) for end in finding.ci],
        "r": _number(finding.r),
        "p": _number(finding.p),
        "q": _number(finding.q),
        "lags": [_lag_json(lag) for lag in finding.lags],
        "events": None if finding.events is None else _events_json(finding.events),
        "level": None if finding.level is None else _level_json(finding.level),
        "link": finding.link,
        "sentence": finding.sentence,
    }


def _lag_json(lag: LagEffect) -> dict[str, Any]:
    ci = [_number(end) for end in lag.ci]
    return {"lag": int(lag.lag), "n": int(lag.n), "r": _number(lag.r), "slope": _number(lag.slope), "ci": ci}


def _events_json(events: EventStudy) -> dict[str, Any]:
    return {
        "onsets": list(events.onsets),
        "change": _number(events.change),
        "ci": None if events.ci is None else [_number(end) for end in events.ci],
        "p": _number(events.p),
        "offsets": [int(offset) for offset in events.offsets],
        "profile": _plain(events.profile),
        "low": _plain(events.low),
        "high": _plain(events.high),
        "reason": events.reason,
    }


def _level_json(level: Level) -> dict[str, Any]:
    return {
        "window": level.window,
        "value": _number(level.value),
        "count": _number(level.count),
        "usual": _number(level.usual),
        "limit": _number(level.limit),
        "p": _number(level.p),
        "windows": int(level.windows),
        "degraded": bool(level.degraded),
    }


def _number(value: float | None) -> float | None:
    """A plain number; None where there is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def _plain(values: Floats) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _by_start(windows: Sequence[Window], values: Sequence[_Value]) -> dict[datetime, _Value]:
    """By first moment: ``complete`` may differ between the table's windows and the history's."""
    return {window.start: value for window, value in zip(windows, values, strict=True)}
