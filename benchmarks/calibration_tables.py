"""The calibration study's results as the tables of docs/calibration.md, which stand between two comments each:

<!-- table type_one -->  ...  <!-- end of table -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Rows = list[dict[str, Any]]

END = "<!-- end of table -->"
_MARKED = re.compile(r"(<!-- table ([\w ,-]+) -->\n)(.*?)(" + re.escape(END) + ")", re.DOTALL)
PHENOMENA = ("mean shift", "low-variance shift", "spread", "new cluster", "reweighted")


def renewed(text: str, results: dict[str, Any]) -> str:
    """The page with each marked table as the results have it; a table whose part is not there stays."""

    def fill(match: re.Match[str]) -> str:
        if match[2].split(",")[0].strip() not in results["parts"]:
            return match[0]
        return f"{match[1]}{table(match[2], results)}\n{match[4]}"

    return _MARKED.sub(fill, text)


def marked(text: str) -> dict[str, str]:
    """Name -> text of every marked table of a page."""
    return {match[2]: match[3].rstrip("\n") for match in _MARKED.finditer(text)}


def table(name: str, results: dict[str, Any]) -> str:
    """A part's table and, below it, how it was made. ``power, WORLD``: one world's rows."""
    part, _, choice = (word.strip() for word in name.partition(","))
    found = results["parts"][part]
    rows = found["rows"]
    if choice:
        rows = [row for row in rows if row["world"] == choice]
    return f"{TABLES[part.removesuffix('_data')](rows)}\n\n{made(found)}"


def made(found: dict[str, Any]) -> str:
    """Command, versions and data of a part."""
    named = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    about = f"`{found['command']}`: {found['minutes']:g} minutes on {found['processes']} processes, "
    about += f"{found['date']}, {named}."
    if found["real"] is not None:
        about += f" Real rows: {found['real']}."
    return about


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _share(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _rate(value: float | None, error: float | None, windows: int) -> str:
    """A share with its error; where none or all were counted, the 95% bound for so many independent windows."""
    if value not in (0.0, 1.0) or not windows:
        return _share(value, error)
    bound = 1 - 0.05 ** (1 / windows)
    return f"0.000 (< {bound:.3f})" if value == 0 else f"1.000 (> {1 - bound:.3f})"


def _type_one(rows: Rows) -> str:
    return _lines(
        ("family", "test", "trials", "rejected at .05", "rejected at .01"),
        [
            (
                row["family"],
                row["test"],
                f"{row['trials']:,}",
                _share(row["at 0.05"], row["error 0.05"]),
                _share(row["at 0.01"], row["error 0.01"]),
            )
            for row in rows
        ],
    )


def _coverage(rows: Rows) -> str:
    return _lines(
        ("family", "statistic", "true value / sd", "coverage", "bias / its error", "variance / true", "SE² / true"),
        [
            (
                row["family"],
                row["statistic"],
                f"{row['true in sd']:.1f}",
                _share(row["coverage"], row["coverage error"]),
                f"{row['bias in se']:.1f}",
                ""
                if row["variance ratio"] is None
                else f"{row['variance ratio']:.2f} ± {row['variance ratio error']:.2f}",
                f"{row['se2 ratio']:.2f}",
            )
            for row in rows
        ],
    )


def _weeks(rows: Rows) -> str:
    return _lines(
        ("windows", "K", "references", "unstable", "weeks", "warn or alert", "alert", "detectable_p < .05"),
        [
            (
                row["world"],
                str(row["windows"]),
                str(row["references"]),
                str(row["unstable"]),
                str(row["weeks"]),
                _rate(row["warn"], row["warn error"], row["weeks"]),
                _rate(row["alert"], row["alert error"], row["weeks"]),
                _share(row["detectable"]),
            )
            for row in rows
        ],
    )


def _power(rows: Rows) -> str:
    def cell(row: dict[str, Any], name: str) -> str:
        own = row[name]
        return f"{'-' if own is None else f'{own:.2f}'} / {row[f'{name} at 5%']:.2f}"

    return _lines(
        ("method", "false alarms", *PHENOMENA),
        [
            (
                row["method"],
                _rate(row["false alarms"], row["false alarms error"], row["windows without drift"]),
                *(cell(row, name) for name in PHENOMENA),
            )
            for row in rows
        ],
    )


def _peers(rows: Rows) -> str:
    return _lines(
        ("rule", "trials", "largest difference of the statistic", "decisions that differ"),
        [(row["rule"], str(row["trials"]), f"{row['difference']:.1g}", str(row["decisions differ"])) for row in rows],
    )


TABLES: dict[str, Callable[[Rows], str]] = {
    "type_one": _type_one,
    "coverage": _coverage,
    "weeks": _weeks,
    "power": _power,
    "peers": _peers,
}
