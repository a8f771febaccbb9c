"""The index over all runs of a job, and the small files beside the reports that it is made of."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpudrift.files import atomic_path, jsonable, write_json
from gpudrift.records import Verdict
from gpudrift.report.html.sparkline import Mark, sparkline
from gpudrift.report.html.texts import LONGEST, data, environment, tidy, verdict_mark
from gpudrift.report.wording import VerdictSummary, count, number, p_value, plain_sentence, times

REPORTS, INDEX, BACKFILL = "reports", "index.html", "backfill.html"
WORST_FIRST: tuple[Verdict, ...] = ("alert", "warning", "stable", "insufficient")


@dataclass(frozen=True)
class Entry:
    """A run as the index tells it. start, end: of the window, ISO 8601. p: the smallest adjusted p of the metrics that
    decide. limit: the tolerance. reference: id. ended: when the run ended, ISO 8601."""

    job: str
    window: str
    start: str
    end: str
    verdict: Verdict
    score: float | None
    ratio: float | None
    p: float | None
    limit: float | None
    rows: int
    sentence: str
    reference: str
    ended: str


def entry_of(result: Mapping[str, Any], summary: VerdictSummary) -> Entry:
    told = jsonable(result)
    judged = summary.judged
    return Entry(
        job=told["job"],
        window=told["window"]["label"],
        start=told["window"]["start"],
        end=told["window"]["end"],
        verdict=summary.verdict,
        score=summary.score,
        ratio=summary.ratio if judged else None,
        p=told["p_panel"] if judged else None,
        limit=summary.delta,
        rows=summary.rows,
        sentence=tidy(plain_sentence(summary, name_reference=False), LONGEST),
        reference=told["reference"]["id"],
        ended=told["run"]["ended"],
    )


def write_entry(reports: Path, entry: Entry) -> None:
    write_json(reports / f"{entry.window}.json", asdict(entry))


def entries(reports: Path, job: str) -> tuple[list[Entry], list[str]]:
    """Those of the job whose report is there, the newest window first; and the names of files that cannot be read."""
    found, unread = [], []
    for path in sorted(reports.glob("[!.]*.json")):
        entry = _read(path)
        if entry is None:
            unread.append(path.name)
        elif entry.job == job and path.with_suffix(".html").exists():
            found.append(entry)
    return sorted(found, key=lambda entry: (_moment(entry.start), entry.window), reverse=True), unread


def _read(path: Path) -> Entry | None:
    """None where the file is no entry: it may have been damaged, and the index is not worth failing a run for."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entry = Entry(**{field.name: values[field.name] for field in fields(Entry)})
        texts = (entry.job, entry.window, entry.sentence, entry.reference)
        numbers = [value for value in (entry.score, entry.ratio, entry.p, entry.limit, entry.rows) if value is not None]
        sound = (
            all(isinstance(text, str) for text in texts)
            and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
            and type(entry.rows) is int
            and entry.verdict in WORST_FIRST
            and entry.window == path.stem
            and all(_moment(text).tzinfo is not None for text in (entry.start, entry.end, entry.ended))
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return entry if sound else None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def prune(reports: Path, job: str, keep: int) -> None:
    """Remove the reports of all but the ``keep`` newest windows of the job."""
    found, _ = entries(reports, job)
    for entry in found[keep:]:
        for suffix in (".html", ".json"):
            (reports / f"{entry.window}{suffix}").unlink(missing_ok=True)


def write_index(directory: Path, job: str) -> Path:
    """Write index.html over the runs there are."""
    found, unread = entries(directory / REPORTS, job)
    backfill = BACKFILL if (directory / BACKFILL).exists() else None
    path = directory / INDEX
    with atomic_path(path) as temporary:
        temporary.write_text(render_index(job, found, unread, backfill=backfill), encoding="utf-8")
    return path


def address(window: str) -> str:
    """Of a window's report, from the index."""
    return f"{REPORTS}/{quote(window)}.html"


def render_index(job: str, found: Sequence[Entry], unread: Sequence[str] = (), *, backfill: str | None = None) -> str:
    """The page over these runs, the newest window first. unread: files that could not be read. backfill: address of the
    report of a backfill. The same entries give the same bytes; the time of the last run stands in one line."""
    tally = Counter(entry.verdict for entry in found)
    marks = [
        Mark(
            label=entry.window,
            verdict=entry.verdict,
            score=entry.score,
            limit=entry.limit,
            joined=older is not None and (older.end, older.reference) == (entry.start, entry.reference),
        )
        for entry, older in zip(reversed(found), [None, *reversed(found)], strict=False)
    ]
    page = {
        "job": job,
        "runs": [_row(entry, older) for entry, older in zip(found, [*found[1:], None], strict=False)],
        "latest": found[0] if found else None,
        "tally": [(verdict, tally[verdict]) for verdict in WORST_FIRST if tally[verdict]],
        "history": sparkline(marks),
        "oldest_label": found[-1].window if found else "",
        "newest_label": found[0].window if found else "",
        "unread": list(unread)[:20],
        "backfill": backfill,
        "ended": f"Last run {max(_moment(e.ended) for e in found):%Y-%m-%d %H:%M} UTC" if found else "",
    }
    return environment().get_template("index.html.j2").render(page)


def _row(entry: Entry, older: Entry | None) -> dict[str, Any]:
    """changed: the run before it was against another reference, so that scores cannot be compared."""
    return {
        "address": address(entry.window),
        "window": data(entry.window),
        "verdict": entry.verdict,
        "mark": verdict_mark(entry.verdict),
        "times": times(entry.ratio),
        "score": number(entry.score),
        "p": p_value(entry.p),
        "rows": count(entry.rows),
        "sentence": entry.sentence,
        "changed": None if older is None or older.reference == entry.reference else data(entry.reference),
    }
