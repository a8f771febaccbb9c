"""A table as the templates draw it: caption, heads and cells, each column of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from gpudrift.report.html.texts import tidy

# number: to the right, never broken; data: ids and labels, broken anywhere; prose: sentences, wide; brief: a few words
# of our own, narrow; word: never broken
Kind = Literal["number", "data", "prose", "brief", "word"]
CELL_LETTERS = 300  # of a sentence in a table
Cell = str  # or Markup
Columns = tuple[tuple[str, Kind], ...]  # head and kind


@dataclass(frozen=True)
class Table:
    """caption: what the table holds, different for every table of a page. columns: the first one names its
    row. rows: cells, a plain text or markup. note: a line below it."""

    caption: str
    columns: Columns
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def table(caption: str, columns: Columns, rows: Sequence[Sequence[Cell]], note: str = "") -> Table | None:
    """None without rows: a page has no empty tables."""
    if not rows:
        return None
    return Table(caption, columns, tuple(tuple(map(_cell, row)) for row in rows), note)


def _cell(cell: Cell) -> Cell:
    return cell if isinstance(cell, Markup) else tidy(cell, CELL_LETTERS)


def cut(rows: Sequence[Sequence[Cell]], most: int, where: str) -> tuple[Sequence[Sequence[Cell]], str]:
    """The first ``most`` rows, and what to say about the others."""
    left = len(rows) - most
    return rows[:most], f"{left:,} more in {where}." if left > 0 else ""
