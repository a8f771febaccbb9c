"""The results of benchmarks/outcomes.py as the tables of docs/outcomes.md, which stand between two comments each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from calibration_tables import END, _lines

Rows = list[dict[str, Any]]

_MARKED = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(" + re.escape(END) + ")", re.DOTALL)


def renewed(text: str, results: dict[str, Any]) -> str:
    """The page with each marked table as the results have it; a table whose part is not there stays."""

    def fill(match: re.Match[str]) -> str:
        known = match[2] in results["parts"]
        return f"{match[1]}{table(match[2], results)}\n{match[4]}" if known else match[0]

    return _MARKED.sub(fill, text)


def table(part: str, results: dict[str, Any]) -> str:
    """A part's table and, below it, how it was made."""
    found = results["parts"][part]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    made = f"`{found['command']}`: {found['minutes']:g} minutes on one core, {found['date']}, {versions}."
    return f"{TABLES[part](found['rows'])}\n\n{made}"


def _links(rows: Rows) -> str:
    """Of each number of windows and autocorrelation: without / with a trend."""
    cells: dict[tuple[int, float], dict[bool, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["windows"], row["autocorrelation"]), {})[row["trend"]] = row

    def pair(cell: dict[bool, dict[str, Any]], test: str) -> str:
        return f"{cell[False][test]:.3f} / {cell[True][test]:.3f}"

    return _lines(
        ("windows", "autocorrelation", "largest of five Pearson", "block permutation", "gpudrift"),
        [
            (str(n), f"{order:g}", pair(cell, "naive"), pair(cell, "blocks"), pair(cell, "ours"))
            for (n, order), cell in cells.items()
        ],
    )


def _shapes(rows: Rows) -> str:
    return _lines(
        ("two independent series", "windows", "one straight line", "gpudrift: with bends"),
        [(row["shape"], str(row["windows"]), f"{row['one line']:.3f}", f"{row['ours']:.3f}") for row in rows],
    )


def _power(rows: Rows) -> str:
    return _lines(
        ("windows", "autocorrelation", "found", "lag is right", "interval at lag 1 holds the slope"),
        [
            (
                str(row["windows"]),
                f"{row['autocorrelation']:g}",
                f"{row['found']:.2f}",
                f"{row['right lag']:.2f}",
                f"{row['coverage']:.3f}",
            )
            for row in rows
        ],
    )


def _events(rows: Rows) -> str:
    cells: dict[tuple[int, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["windows"], row["spikes"], row["autocorrelation"]), []).append(row)
    lines = []
    for (n, kind, order), (none, some) in cells.items():
        told = (f"{none['rejected']:.3f}", f"{none['interval holds 0']:.3f}", f"{some['rejected']:.2f}")
        lines.append((str(n), kind, f"{order:g}", *told))
    head = ("windows", "spikes", "autocorrelation", "no effect: p <= .05", "interval holds 0", "effect: p <= .05")
    return _lines(head, lines)


def _levels(rows: Rows) -> str:
    sizes = list(dict.fromkeys(row["quiet windows"] for row in rows))
    cells: dict[str, dict[int, float]] = {}
    for row in rows:
        cells.setdefault(row["metric"], {})[row["quiet windows"]] = row["degraded"]
    return _lines(
        ("metric", *(f"{n} quiet windows" for n in sizes)),
        [(name, *(f"{of[n]:.4f}" for n in sizes)) for name, of in cells.items()],
    )


def _real(rows: Rows) -> str:
    return _lines(
        ("metric", "windows", "lag", "effect", "95% interval", "p", "recomputed effect, p", "shifts with p <= .05"),
        [
            (
                row["metric"],
                str(row["windows"]),
                str(row["lag"]),
                f"{row['effect']:.2g}",
                f"{row['low']:.2g} to {row['high']:.2g}",
                f"{row['p']:.2g}",
                f"{row['effect again']:.2g}, {row['p again']:.2g}",
                f"{row['shifted']:.3f} of {row['shifts']}",
            )
            for row in rows
        ],
    )


TABLES: dict[str, Callable[[Rows], str]] = {
    "links": _links,
    "shapes": _shapes,
    "power": _power,
    "events": _events,
    "levels": _levels,
    "real": _real,
}
