"""Product metrics beside the drift, as sentences, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from gpudrift.history import ALL
from gpudrift.outcomes.output import first_lines
from gpudrift.outcomes.records import Finding, Link, Outcomes
from gpudrift.report.html.figures import Figure
from gpudrift.report.html.tables import Cell, Columns, Table, cut, table
from gpudrift.report.html.texts import data, signed
from gpudrift.report.wording import as_sentence, count, p_value, printable, quantities, quantity

MOST_FINDINGS = 60
WORDS: dict[Link, str] = {
    "worse": "worse with drift",
    "better": "better with drift",
    "none": "no link found",
    "insufficient": "insufficient windows",
}


@dataclass(frozen=True)
class Metrics:
    """A page's part about product metrics. sentences: the most telling first."""

    sentences: tuple[str, ...]
    ranked: Table | None
    events: Table | None
    notes: tuple[str, ...]
    pictures: tuple[Figure, ...]


def metrics_part(found: Outcomes | None, pictures: Mapping[str, Figure]) -> Metrics | None:
    """None without product metrics."""
    if found is None or not (found.findings or found.notes):
        return None
    metrics = tuple({printable(finding.metric) for finding in found.findings})

    def sentence(text: str) -> str:
        """A metric keeps its name's first letter."""
        told = as_sentence(text)
        return text[:1] + told[1:] if text.startswith(metrics) else told

    told, notes = (tuple(map(sentence, texts)) for texts in (first_lines(found), found.notes))
    return Metrics(told, _ranked(found), _events(found), notes, tuple(pictures.values()))


def degraded(found: Outcomes | None) -> tuple[int, int] | None:
    """How many metrics are beyond their usual limit now, of how many with one; None where none has."""
    levels = [] if found is None else [one.level for one in found.findings if one.level is not None]
    return (sum(level.degraded for level in levels), len(levels)) if levels else None


def _named(finding: Finding) -> Markup:
    metric = data(finding.metric)
    return metric if finding.segment == ALL else Markup("{} in {}").format(metric, data(finding.segment))


def _ranked(found: Outcomes) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    for finding in found.findings:
        level, told = finding.level, finding.link != "insufficient"  # what too few windows say is no effect
        now: Cell = "-"
        if level is not None:
            beyond = "beyond its limit" if level.degraded else "within its limit"
            value, usual, limit = quantities(level.value, level.usual, level.limit)
            now = Markup("{} in {}, usual {}, limit {}: {}").format(value, data(level.window), usual, limit, beyond)
        rows.append(
            (
                Markup("{}, {} is worse").format(_named(finding), finding.worse),
                WORDS[finding.link],
                f"{finding.lag}" if told and finding.lag is not None else "-",
                _effect(finding.effect if told else None, finding.ci),
                p_value(finding.q),
                count(finding.windows),
                now,
            )
        )
    columns: Columns = (
        ("Metric", "data"),
        ("Beside the drift", "word"),
        ("Windows later", "number"),
        ("Change where the score doubles", "number"),
        ("q", "number"),
        ("Windows", "number"),
        ("Now", "prose"),
    )
    note = (
        "The change is in the metric's own units, with its 95% interval, at the delay with the closest link; trends "
        "and persistence are taken out of both. q: false discovery rate over all metrics."
    )
    first, rest = cut(rows, MOST_FINDINGS, "outcomes.parquet")
    return table("Product metrics beside the drift", columns, first, f"{note} {rest}".rstrip())


def _effect(value: float | None, ci: tuple[float, float] | None) -> Cell:
    if value is None or not math.isfinite(value):
        return "-"
    if ci is None:
        return _signed(value)
    return Markup("{} <br>({} to {})").format(_signed(value), _signed(ci[0]), _signed(ci[1]))  # on one line it is wide


def _signed(value: float) -> str:
    """Two significant digits, with the sign."""
    if not 1e-4 <= abs(value) < 100:
        return ("+" if value > 0 else "") + quantity(value).replace("-", "−")
    return signed(value, max(0, 1 - math.floor(math.log10(abs(value)))))


def _events(found: Outcomes) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    for finding in found.findings:
        study = finding.events
        if study is None:
            continue
        named = Markup(", ").join(data(label) for label in study.onsets[:5])
        more = f" and {len(study.onsets) - 5} more" if len(study.onsets) > 5 else ""
        rows.append(
            (
                _named(finding),
                Markup("{}{}").format(named, more) if study.onsets else "none",
                _effect(study.change, study.ci),
                p_value(study.p),
                as_sentence(study.reason) or "-",
            )
        )
    columns: Columns = (
        ("Metric", "data"),
        ("Spikes of the drift", "prose"),
        ("Change after them", "number"),
        ("p", "number"),
        ("Why not", "prose"),
    )
    first, note = cut(rows, MOST_FINDINGS, "outcomes.parquet")
    return table("Product metrics around spikes of the drift", columns, first, note)
