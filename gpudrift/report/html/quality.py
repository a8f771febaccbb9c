"""The rows that were read, in facts and tables: what was dropped and why, what looks odd, another encoder or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from gpudrift.report.html.tables import Cell, Columns, Table, table
from gpudrift.report.html.texts import data, listed, percent
from gpudrift.report.wording import as_sentence, count, number

Json = Mapping[str, Any]
CAUSES = {
    "null": "no vector",
    "ragged": "a vector of another length",
    "non_finite": "a value that is not finite",
    "zero": "a vector of zeros",
}


def facts(result: Json) -> list[tuple[str, str]]:
    """Name and value; empty where the rows were not read."""
    found, usual = result["quality"], result["reference"]["quality"]
    if found is None:
        return []
    read = f"{count(found['rows_read'])} read, {count(found['rows_kept'])} used"
    told = [("Rows", f"{read}, {percent(found['bad_fraction'])} dropped")]
    for name, key in (("Duplicate rows", "duplicates"), ("Repeated ids", "repeated_ids")):
        if found[key] is not None:
            told.append((name, _repeated(found[key], usual[key], usual["rows_kept"])))
    off = found["unnormalised"]
    if off is not None:
        told.append(("Rows not of length 1", f"{count(off['rows'])} (more than {number(off['tolerance'])} off)"))
    norms = found["norms"]
    if norms is not None:
        least, mean, most = (number(norms[name]) for name in ("min", "mean", "max"))
        told.append(("Lengths", f"all {mean}" if least == most else f"{least} to {most}, mean {mean}"))
    return told


def _repeated(found: Json, usual: Json | None, rows: int) -> str:
    if not found["rows"]:
        text = "none"
    else:
        text = f"{count(found['rows'])} beyond the first of each, {count(found['largest'])} alike at most"
    if usual is None or not rows:
        return text
    return f"{text}; in the reference {percent(usual['rows'] / rows) if usual['rows'] else 'none'}"


def dropped_table(result: Json) -> Table | None:
    """Rows that cannot be used and rows that look odd, with examples."""
    found = result["quality"]
    if found is None:
        return None
    rows: list[tuple[Cell, ...]] = [
        (
            Markup("dropped: {}").format(CAUSES.get(cause, data(cause))),
            count(number_of),
            listed(found["examples"].get(cause, ()), 10),
        )
        for cause, number_of in found["dropped"].items()
        if number_of
    ]
    odd = (("duplicate rows", "duplicates"), ("repeated ids", "repeated_ids"), ("not of length 1", "unnormalised"))
    rows += [
        (f"kept: {name}", count(found[key]["rows"]), listed(found[key]["examples"], 10))
        for name, key in odd
        if found[key] is not None and found[key]["rows"]
    ]
    columns: Columns = (("Rows", "word"), ("How many", "number"), ("Examples", "prose"))
    return table("Rows that were dropped or look odd", columns, rows)


def encoder_sentence(result: Json) -> str:
    """Whether the window looks like another encoder; empty where that was not looked at."""
    found = result["encoder"]
    if found is None:
        return ""
    if found["headline"]:
        return f"{as_sentence(found['headline'])[:-1]} ({percent(found['share'])} of the rows)."
    return "Nothing looks like another encoder or another normalisation."


def encoder_table(result: Json) -> Table | None:
    found = result["encoder"]
    rows: list[tuple[Cell, ...]] = [
        (
            data(str(one["name"]).replace("_", " ")),
            "found" if one["found"] else "not found",
            number(one["value"]),
            number(one["threshold"]),
            as_sentence(one["sentence"]),
        )
        for one in ([] if found is None else found["evidence"])
    ]
    columns: Columns = (
        ("Looked at", "word"),
        ("Sign of another encoder", "word"),
        ("Value", "number"),
        ("Threshold", "number"),
        ("What was seen", "prose"),
    )
    return table("Content, or another encoder", columns, rows)
