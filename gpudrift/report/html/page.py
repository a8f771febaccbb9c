"""The report of one run: ``render_run`` makes the page, ``write_run`` puts it where readers find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gpudrift.files import atomic_path, jsonable
from gpudrift.outcomes.records import Outcomes
from gpudrift.records import HistoryPoint
from gpudrift.report.html import index, outcomes, quality, sections
from gpudrift.report.html.figures import Figure, figures
from gpudrift.report.html.texts import environment, settings_text
from gpudrift.report.wording import VerdictSummary, plain_sentence

if TYPE_CHECKING:
    from gpudrift.report.style import Picture

# where the pictures of a run stand; those with other names are about product metrics
MOVED = ("clusters", "witness", "segments")
MAPS = ("pca", "pc1", "components")
OWN = ("history", "summary", "quality", *MOVED, *MAPS)


def render_run(
    result: Mapping[str, Any],
    summary: VerdictSummary,
    pictures: Sequence[Picture],
    rows: pa.Table | None,
    history: Sequence[HistoryPoint],
    found: Outcomes | None,
    *,
    home: str | None = None,
) -> str:
    """One self-contained HTML file.

    result: result.json's content. pictures: as drawn (``summary`` is left out: the page says the same). rows: the most
    drifted rows (drifted_rows.parquet). history: windows up to this one, the whole's points. found: product metrics.
    home: address of the index, relative to where the page will lie; None: no link. The same input gives the same bytes;
    the time of the run stands in one line.
    """
    return _rendered(_content(result, summary, pictures, rows, history, found), home)


def _rendered(content: Mapping[str, Any], home: str | None) -> str:
    return environment().get_template("run.html.j2").render(content, home=home)


def _content(
    result: Mapping[str, Any],
    summary: VerdictSummary,
    pictures: Sequence[Picture],
    rows: pa.Table | None,
    history: Sequence[HistoryPoint],
    found: Outcomes | None,
) -> dict[str, Any]:
    """What the template needs, wherever the page will lie."""
    told, drawn = jsonable(result), figures(pictures)
    changed, usual = sections.cluster_tables(told)
    drifted, others, moved = sections.segment_tables(told)
    return {
        "job": told["job"],
        "summary": summary,
        "verdict": summary.verdict,
        "sentence": plain_sentence(summary),
        "reason": told["reason"],
        "meaning": sections.MEANING[summary.verdict],
        "window": told["window"]["label"],
        "dates": "" if summary.window_dates == told["window"]["label"] else summary.window_dates,
        "tiles": sections.key_numbers(told, summary, outcomes.degraded(found)),
        "history": sections.history_table(
            history[-sections.LAST_WINDOWS :], f"The last {min(len(history), sections.LAST_WINDOWS)} windows"
        ),
        "figures": drawn,
        "moved_figures": _of(drawn, MOVED),
        "map_figures": _of(drawn, MAPS),
        "clusters": changed,
        "other_clusters": usual,
        "segments": drifted,
        "other_segments": others,
        "segment_shares": moved,
        "components": sections.component_table(told),
        "drifted_rows": sections.rows_table(rows),
        "metrics": outcomes.metrics_part(found, {name: one for name, one in drawn.items() if name not in OWN}),
        "gates": sections.gate_table(told, summary),
        "other_metrics": sections.metric_table(summary),
        "calibration": sections.calibration_facts(told),
        "compared": sections.comparison_table(told),
        "quality": quality.facts(told),
        "dropped": quality.dropped_table(told),
        "encoder": quality.encoder_sentence(told),
        "evidence": quality.encoder_table(told),
        "notes": told["notes"],
        "reference": _reference(told, summary),
        "reference_windows": sections.reference_table(told),
        "machine": _machine(told),
        "version": told["versions"]["gpudrift"],
        "settings": settings_text(told["config"]),
        "ended": _ended(told),
    }


def write_run(
    directory: Path,
    result: Mapping[str, Any],
    summary: VerdictSummary,
    pictures: Sequence[Picture],
    rows: pa.Table | None,
    history: Sequence[HistoryPoint],
    found: Outcomes | None,
    *,
    keep: int,
) -> tuple[Path, ...]:
    """Write report.html, reports/<window>.html and its .json, prune all but the ``keep`` newest windows' reports, and
    write index.html again. Returns the pages, report.html first. Each file appears whole or not at all."""
    entry = index.entry_of(result, summary)
    reports = directory / index.REPORTS
    own, latest = reports / f"{entry.window}.html", directory / "report.html"
    content = _content(result, summary, pictures, rows, history, found)
    for path, home in ((own, f"../{index.INDEX}"), (latest, index.INDEX)):
        write_page(path, _rendered(content, home))
    index.write_entry(reports, entry)
    index.prune(reports, entry.job, keep)
    return latest, own, index.write_index(directory, entry.job)


def write_page(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _of(drawn: Mapping[str, Figure], names: Sequence[str]) -> list[Figure]:
    return [drawn[name] for name in names if name in drawn]


def _reference(told: Mapping[str, Any], summary: VerdictSummary) -> list[tuple[str, str]]:
    found = told["reference"]
    facts = [
        ("Range", summary.reference),
        ("Id", found["id"]),
        ("Period", found["period"]),
        ("Dimensions", f"{found['dim']:,}"),
        ("Kept at", found["path"]),
    ]
    if found["encoder_id"] is not None:
        facts.insert(3, ("Encoder", found["encoder_id"]))
    return facts


def _machine(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Device", f"{told['device']}: {told['device_reason']}"),
        ("Pairs computed by", f"{told['backend']['name']}: {told['backend']['reason']}"),
        ("Precision", f"{told['precision']}: {told['precision_reason']}"),
        ("Threads", f"{told['threads']:,}"),
        ("Seed", f"{told['seed']}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in told["versions"].items())),
    ]


def _ended(told: Mapping[str, Any]) -> str:
    """When the run ended: the one line that a rerun changes."""
    return f"Run of {datetime.fromisoformat(told['run']['ended']):%Y-%m-%d %H:%M} UTC"
