"""Numbers and names inside a sentence: shares that never read as nothing, names from the data as plain short text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LONGEST = 40  # characters of a name
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number(count: int) -> str:
    """``two``, ``13``."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def percent(share: float) -> str:
    return percents(share)[0]


def percents(*shares: float) -> list[str]:
    """``14%``, ``3%``, ``0.4%``: the fewest decimals, at most 4, at which none is a fifth off, none reads as nothing or
    all without being it, and different ones read differently."""
    shares = tuple(1.0 if abs(share - 1.0) < 1e-9 else share for share in shares)  # a sum of shares, rounded
    texts: list[str] = []
    for decimals in range(5):
        texts = [f"{100 * share:.{decimals}f}" for share in shares]
        read = [float(text) / 100 for text in texts]
        close = all(
            share in (0.0, 1.0) or (0 < r < 1 and abs(r - share) <= 0.2 * share)
            for r, share in zip(read, shares, strict=True)
        )
        if close and len(set(texts)) == len(set(shares)):
            break
    pairs = zip(texts, shares, strict=True)
    return ["less than 0.0001%" if share and not float(text) else f"{text}%" for text, share in pairs]


def digits(value: float) -> str:
    """Two significant digits, or more above 100; never in powers of ten: ``0.4``, ``0.13``, ``1.3``, ``1,234``."""
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{float(f'{value:.2g}'):.15f}".rstrip("0").rstrip(".")


def name(text: str) -> str:
    """A name from the data on one line, at most 40 characters, in quotes where it is more than one word."""
    kept = "".join(
        " " if c.isspace() else c if unicodedata.category(c)[0] != "C" else "?" for c in text[: 4 * _LONGEST]
    )
    kept = " ".join(kept.split())
    if len(kept) > _LONGEST or len(text) > 4 * _LONGEST:
        kept = f"{kept[: _LONGEST - 1].rstrip()}…"
    return kept if kept and not set(kept) & set(" ,()'\"") else '"' + kept.replace('"', "'") + '"'
