"""The verdict in words and numbers, said alike by the terminal and the pictures. Loads neither rich nor matplotlib."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from gpudrift.records import Verdict

SHOWN = 3  # lines of each kind that the terminal and the summary show
DISTANCE = "energy"  # the metric that the score, its ratio and its severity are of
# what the other metrics see that decide on the verdict, in plain words
SEEN = {
    "mmd2_b1": "the local structure",
    "mmd2_b2": "the local structure",
    "log_variance_ratio": "the spread",
    "residual_energy": "the part outside the principal components",
    "classifier_auc": "what a classifier tells apart",
}


@dataclass(frozen=True)
class GateLine:
    """A metric that decides on the verdict. value: as the verdict judges it; p: adjusted for all such metrics; beyond:
    outside the usual movement; sure: clearly so, no closer than its limit by its standard error."""

    metric: str
    value: float
    p: float
    beyond: bool
    sure: bool = False


@dataclass(frozen=True)
class VerdictSummary:
    """One window's verdict as people read it.

    window, reference: labels such as ``2026-W43`` and ``2020-07-01 to 2021-06-30, 46 windows``; window_dates: the
    window's days (``span_text``). score, se, ci, ratio, severity, p_aa, p_close, delta: as in ``records.Calibration``,
    all None when there is none. rows, reference_rows: counts. metrics: (name, value, standard error or None), most
    telling first. outputs: what was written. reason: why the verdict is what it is where the numbers do not say so
    ("62 rows, at least 100 are needed"). encoder: a clause that it looks like another encoder, or empty. notes:
    degradations, windows left out or dropped, one line each. phenomena: what changed, a sentence each. gates: the
    metrics the verdict is made of. clusters, segments: who moved, a line each, the most telling first; the terminal
    shows ``SHOWN`` of either. lagged: the verdicts against other references, outcomes: product metrics, a line each.
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
    phenomena: tuple[str, ...] = ()
    gates: tuple[GateLine, ...] = ()
    clusters: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    lagged: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether there is a verdict on the numbers: ``insufficient`` is none, whatever was measured."""
        return self.verdict != "insufficient"


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


def quantity(value: float, digits: int = 2) -> str:
    """A value in a unit of the user's, such as milliseconds: ``number``, but large ones are written out: ``5,500``."""
    text = number(value, digits)
    return f"{float(text):,.0f}" if "e+" in text and abs(value) < 1e15 else text


def quantities(*values: float) -> tuple[str, ...]:
    """Values of one unit beside each other: three digits of the largest, or as many decimals as it takes to tell those
    apart that differ (``0.9991, 0.9994, 0.9995``); whole numbers are written out (``1,186,224``)."""
    known = [value for value in values if math.isfinite(value)]
    size = max(map(abs, known), default=0.0)
    if not 1e-4 <= size < 1e15:
        return tuple(number(value, digits) for value in values for digits in [_digits_apart(known)])
    gaps = [abs(a - b) for a in known for b in known if a != b]
    closest = min(gaps, default=size)
    decimals = max(2 - math.floor(math.log10(size)), -math.floor(math.log10(closest)), 0)
    return tuple(_plain(value, min(decimals, 15)) if math.isfinite(value) else "-" for value in values)


def _digits_apart(values: list[float]) -> int:
    different = len(set(values))
    return next((digits for digits in range(3, 17) if len({number(v, digits) for v in values}) == different), 17)


def _plain(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if decimals else text
    return "0" if text == "-0" else text


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
    far = _far_in(summary)
    moved = f"{times(summary.ratio).removesuffix('x')} times the usual movement{_p_told(summary)}"
    lies_far, lies_further = "lies far from", "lies further from"
    if far and None not in far:
        lies_far = lies_further = "differs from"
        seen = [words for words in far if words is not None]
        usual = f"{times(summary.ratio).removesuffix('x')} times the usual movement"
        moved = (
            f"{_listed(seen)} {'are' if len(seen) > 1 else 'is'} beyond what is usual, its distance is not ({usual})"
        )
    if summary.verdict == "stable":
        found = f"{window} shows no drift from {reference}: {moved}, within what its own windows do"
    elif summary.verdict == "alert" and far:
        found = f"{window} {lies_far} {reference}, and it is not the first window in a row to do so: {moved}"
    elif far:
        usually = " than its own windows usually do" if None in far else ""
        found = f"{window} {lies_further} {reference}{usually}: {moved}. " + (
            "A second such window in a row makes it an alert"
            if _sure(summary)
            else "It is not clearly beyond the tolerance yet, so it is no alert"
        )
    else:
        found = f"{window} is near the usual movement again, {moved}, but the earlier alarm is not cleared yet"
    return _sentences(found, reason, printable(summary.encoder))


def _far_in(summary: VerdictSummary) -> list[str | None]:
    """In what the window is beyond the usual movement, in words with their p, each once; None: in its distance."""
    if not summary.gates:
        return [None] if summary.p_aa is not None and summary.p_aa < 0.01 else []
    best: dict[str | None, float] = {}
    for gate in summary.gates:
        if gate.beyond:
            words = None if gate.metric == DISTANCE else SEEN.get(gate.metric, printable(gate.metric))
            best[words] = min(gate.p, best.get(words, gate.p))
    return [None if words is None else f"{words}{_chance(p)}" for words, p in best.items()]


def _sure(summary: VerdictSummary) -> bool:
    if summary.gates:
        return any(gate.beyond and gate.sure for gate in summary.gates)
    return summary.p_close is not None and summary.p_close < 0.05


def _p_told(summary: VerdictSummary) -> str:
    """Beside the distance: its own p, or, where nothing is beyond, the smallest of all that decide."""
    if any(gate.beyond for gate in summary.gates):
        return _chance(next((gate.p for gate in summary.gates if gate.metric == DISTANCE), summary.p_aa))
    if len(summary.gates) < 2:
        return _chance(min((gate.p for gate in summary.gates), default=summary.p_aa))
    return f" (smallest p of {len(summary.gates)} metrics: {p_value(min(gate.p for gate in summary.gates))})"


def _chance(value: float | None) -> str:
    p = p_value(value)
    return "" if p == "-" else f" (p={p})" if p[0].isdigit() else f" (p{p})"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def as_sentence(clause: str) -> str:
    """With a capital letter and one full stop."""
    clause = printable(clause).rstrip(".")
    return f"{clause[:1].upper()}{clause[1:]}." if clause else ""


def _sentences(first: str, *others: str) -> str:
    return " ".join([f"{first}.", *(as_sentence(clause) for clause in others if clause)])
