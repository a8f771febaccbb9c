"""The verdict in words and numbers, said alike by the terminal and the pictures. Loads neither rich nor matplotlib."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from gpudrift.records import Verdict


@dataclass(frozen=True)
class VerdictSummary:
    """One window's verdict as people read it.

    window, reference: labels such as ``2026-W43`` and ``2020-07-01 to 2021-06-30, 46 windows``; window_dates: the
    window's days (``span_text``). score, se, ci, ratio, severity, p_aa, p_close, delta: as in ``records.Calibration``,
    all None when there is none. rows, reference_rows: counts. metrics: (name, value, standard error or None), most
    telling first. outputs: what was written. reason: why the verdict is what it is where the numbers do not say so
    ("62 rows, at least 100 are needed"). encoder: a clause that it looks like another encoder, or empty. notes:
    degradations, windows left out or dropped, one line each.
    """

    verdict: Verdict
    window: str
    reference: str
    rows: int
    exit_code: int
    score: float | None = None
    se: float | None = None
    ci: tuple[float, float] | None = None
    ratio: float | None = None
    severity: Literal["none", "low", "medium", "high"] | None = None
    p_aa: float | None = None
    p_close: float | None = None
    delta: float | None = None
    reference_rows: int | None = None
    window_dates: str = ""
    metrics: tuple[tuple[str, float, float | None], ...] = ()
    outputs: tuple[str, ...] = ()
    reason: str = ""
    encoder: str = ""
    notes: tuple[str, ...] = ()


def printable(text: object) -> str:
    """``text`` on one line without control, bidirectional or surrogate characters: labels and paths come from data,
    and an escape sequence in one would otherwise reach the terminal or break the XML of a picture."""
    kept = (
        " " if character.isspace() else character if unicodedata.category(character)[0] != "C" else "?"
        for character in str(text)
    )
    return " ".join("".join(kept).split())


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, plain down to 0.0001; ``-`` where there is no finite value."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def p_value(value: float | None) -> str:
    """``0.034``, ``<0.0001``, ``>0.99``."""
    if value is None or not math.isfinite(value):
        return "-"
    if value < 1e-4:
        return "<0.0001"
    if value > 0.99:
        return ">0.99"
    return f"{value:.2g}"


def times(ratio: float | None) -> str:
    """A ratio to the usual movement: ``1.2x``, ``21x``, and ``-0.3x`` as ``0x``: a negative score is no distance."""
    if ratio is None or not math.isfinite(ratio):
        return "-"
    ratio = max(ratio, 0.0)
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def span_text(start: datetime, end: datetime) -> str:
    """The days of a half-open span: ``2026-10-19 to 2026-10-25`` (the last day included)."""
    last = end - timedelta(microseconds=1)
    return f"{start:%Y-%m-%d}" if last.date() == start.date() else f"{start:%Y-%m-%d} to {last:%Y-%m-%d}"


def plain_sentence(summary: VerdictSummary, name_reference: bool = True) -> str:
    """What was found, compared with what, and how sure that is: one or two sentences without jargon.

    name_reference: say which reference; needless where it stands beside the sentence.
    """
    window, reason = printable(summary.window), printable(summary.reason).rstrip(".")
    if summary.verdict == "insufficient":
        why = reason or "there is too little data to compare it with the reference"
        return _sentences(f"No verdict for {window}: {why}", printable(summary.encoder))
    reference = "the reference" + (f" ({printable(summary.reference)})" if name_reference else "")
    p = p_value(summary.p_aa)
    chance = "" if p == "-" else f" (p={p})" if p[0].isdigit() else f" (p{p})"
    moved = f"{times(summary.ratio).removesuffix('x')} times the usual movement{chance}"
    unusual = summary.p_aa is not None and summary.p_aa < 0.01
    if summary.verdict == "stable":
        found = f"{window} shows no drift from {reference}: {moved}, within what its own windows do"
    elif summary.verdict == "alert" and unusual:
        found = f"{window} lies far from {reference}, and it is not the first window in a row to do so: {moved}"
    elif unusual:
        sure = summary.p_close is not None and summary.p_close < 0.05
        found = f"{window} lies further from {reference} than its own windows usually do: {moved}. " + (
            "A second such window in a row makes it an alert"
            if sure
            else "It is not clearly beyond the tolerance yet, so it is no alert"
        )
    else:
        found = f"{window} is near the usual movement again, {moved}, but the earlier alarm is not cleared yet"
    return _sentences(found, reason, printable(summary.encoder))


def _sentences(first: str, *others: str) -> str:
    return " ".join([f"{first}.", *(f"{clause[:1].upper()}{clause[1:]}." for clause in others if clause)])
