"""What a run found, as tables: from result.json's content, part by part. A part without content is None or empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from gpudrift.calibrate import HEADLINE
from gpudrift.records import HistoryPoint, segment_text
from gpudrift.report.html.tables import Cell, Columns, Table, cut, table
from gpudrift.report.html.texts import data, listed, percent, signed, verdict_mark
from gpudrift.report.lines import AGAINST, part_of_score
from gpudrift.report.wording import SEEN, VerdictSummary, as_sentence, count, number, p_value, times

Json = Mapping[str, Any]
MOST_ROWS = 20  # of the most drifted rows
MOST_SEGMENTS = 30  # in a table that is always seen
MOST_CELLS = 300  # rows of any table
LAST_WINDOWS = 20

MEANING = {
    "stable": "The window lies within the movement that the reference's own windows show from one to the next.",
    "warning": "A warning is no alert yet: that takes two windows in a row clearly beyond the tolerance.",
    "alert": "An alert takes two windows in a row clearly beyond the tolerance, and holds until two in a row are back "
    "within the usual movement.",
    "insufficient": "This is no verdict, and says neither that the data moved nor that they did not.",
}


def p_of(point: HistoryPoint) -> float | None:
    """What the verdict is made of: the smallest adjusted p of the metrics that decide."""
    return min((gate.p_holm for gate in point.gates), default=point.p_aa)


def history_table(points: Sequence[HistoryPoint], caption: str, links: Mapping[str, str] | None = None) -> Table | None:
    """Windows, the newest first. links: addresses by label, of those that have a report."""
    rows = [
        (
            linked(p.window.label, links or {}),
            verdict_mark(p.verdict),
            times(p.ratio),
            number(p.score),
            number(p.delta),
            p_value(p_of(p)),
            count(p.rows),
        )
        for p in sorted(points, key=lambda point: point.window, reverse=True)
    ]
    columns: Columns = (
        ("Window", "word"),
        ("Verdict", "word"),
        ("Times usual", "number"),
        ("Score", "number"),
        ("Tolerance", "number"),
        ("p", "number"),
        ("Rows", "number"),
    )
    return table(caption, columns, rows)


def linked(label: str, reports: Mapping[str, str]) -> Markup:
    """A window's label, and the way to its report where there is one."""
    if label not in reports:
        return data(label)
    return Markup('<a href="{}">{}</a>').format(reports[label], data(label))


def key_numbers(result: Json, summary: VerdictSummary, degraded: tuple[int, int] | None) -> list[tuple[str, str, str]]:
    """Name, value, and what belongs to it. degraded: product metrics beyond their limit, of how many."""
    tiles = []
    if summary.judged and summary.ratio is not None:
        tiles.append(("Usual movement", times(summary.ratio), f"severity {summary.severity or '-'}"))
    if summary.score is not None:
        interval = "" if summary.ci is None else f"95% interval {number(summary.ci[0])} to {number(summary.ci[1])}"
        tiles.append(("Score", number(summary.score), interval or f"± {number(summary.se)}"))
    if summary.judged and summary.delta is not None:
        tiles.append(("Tolerance", number(summary.delta), f"p of lying within it {p_value(summary.p_close)}"))
    if summary.judged and result["p_panel"] is not None:
        decide = len(result["gates"])
        of = f"smallest of {decide} metrics, adjusted" if decide > 1 else "of the usual movement"
        tiles.append(("p-value", p_value(result["p_panel"]), of))
    against = "" if summary.reference_rows is None else f"against {count(summary.reference_rows)} of the reference"
    tiles.append(("Rows", count(summary.rows), against))
    if result["previous"] is not None:
        before = result["previous"]
        tiles.append(("Window before", before["verdict"], f"{before['window']}, score {number(before['score'])}"))
    if degraded is not None:
        tiles.append(("Product metrics", f"{degraded[0]} of {degraded[1]}", "beyond their usual limit"))
    return tiles


def cluster_tables(result: Json) -> tuple[Table | None, Table | None]:
    """The clusters that changed, and all the others; those first that make up most of the score."""
    found = result["attribution"]
    if found is None:
        return None, None
    ranked = sorted(found["clusters"], key=lambda c: (-abs(c["contribution"]), c["index"]))
    changed = [_cluster(c, found["score"]) for c in ranked if c["kind"] != "same"]
    others = [_cluster(c, found["score"]) for c in ranked if c["kind"] == "same"]
    columns: Columns = (
        ("Cluster", "word"),
        ("Change", "word"),
        ("Share before", "number"),
        ("Share now", "number"),
        ("Part of the score", "number"),
        ("Rows now", "number"),
        ("q", "number"),
        ("Rows near its centre", "prose"),
    )
    note = "Share before: of the reference's rows. Rows near the centre: of the reference for a cluster that has gone."
    return (
        table("Clusters that changed", columns, changed, note),
        table("Clusters as usual", columns, others[:MOST_CELLS]),
    )


def _cluster(found: Json, score: float) -> tuple[Cell, ...]:
    ids = found["reference_ids"] if found["kind"] == "gone" or not found["ids"] else found["ids"]
    named = listed(ids, 5)
    if found["labels"]:
        stands_out = Markup(", ").join(
            Markup("{} ({}%)").format(data(text), round(100 * share)) for text, share in found["labels"]
        )
        named = Markup("{}; mostly {}").format(named, stands_out)
    return (
        f"cluster {found['index']}",
        found["kind"],
        percent(found["reference_share"]),
        percent(found["share"]),
        part_of_score(found["contribution"], score),
        count(found["rows"]),
        p_value(found["q"]),
        named,
    )


def segment_tables(result: Json) -> tuple[Table | None, Table | None, Table | None]:
    """The segments that drifted by themselves, the others, and those whose share of the rows changed."""
    rank = {"alert": 0, "warning": 1, "stable": 2, "insufficient": 3}
    scored = sorted(result["segments"], key=lambda s: (rank[s["verdict"]], -_ratio(s), s["name"]))
    drifted = [_segment(s) for s in scored if rank[s["verdict"]] < 2]
    others = [_segment(s) for s in scored if rank[s["verdict"]] >= 2]
    columns: Columns = (
        ("Segment", "data"),
        ("Verdict", "word"),
        ("Times usual", "number"),
        ("q", "number"),
        ("Rows", "number"),
        ("Why", "prose"),
    )
    found = result["attribution"]
    moved = [] if found is None else [s for s in found["segments"] if s["kind"] != "same"]
    moved.sort(key=lambda s: (-abs(s["contribution"]), s["column"], s["value"] or ""))
    shares = [_moved(s, found["score"]) for s in moved]
    share_columns: Columns = (
        ("Segment", "data"),
        ("Change", "word"),
        ("Share before", "number"),
        ("Share now", "number"),
        ("Part of the score", "number"),
        ("Rows now", "number"),
        ("q", "number"),
    )
    first, note = cut(drifted, MOST_SEGMENTS, "result.json")
    rest, rest_note = cut(others, MOST_CELLS, "result.json")
    share, share_note = cut(shares, MOST_SEGMENTS, "result.json")
    return (
        table("Segments that drifted by themselves", columns, first, note),
        table("Segments that did not, or could not be scored", columns, rest, rest_note),
        table("Segments whose share of the rows changed", share_columns, share, share_note),
    )


def _ratio(found: Json) -> float:
    ratio = None if found["calibration"] is None else found["calibration"]["ratio"]
    return -1.0 if ratio is None else float(ratio)


def _segment(found: Json) -> tuple[Cell, ...]:
    ratio = None if found["calibration"] is None else found["calibration"]["ratio"]
    why = as_sentence(found["reason"])
    return (
        data(found["name"]),
        verdict_mark(found["verdict"]),
        times(ratio),
        p_value(found["q"]),
        count(found["rows"]),
        why,
    )


def _moved(found: Json, score: float) -> tuple[Cell, ...]:
    return (
        data(f"{found['column']}={segment_text(found['value'], found['pooled'])}"),
        found["kind"],
        percent(found["reference_share"]),
        percent(found["share"]),
        part_of_score(found["contribution"], score),
        count(found["rows"]),
        p_value(found["q"]),
    )


def component_table(result: Json) -> Table | None:
    found = result["attribution"]
    rows = [
        (
            "all others" if c["component"] is None else f"component {c['component']}",
            "-" if c["shift"] is None else f"{signed(c['shift'])} ± {number(c['shift_se'], 2)}",
            "-" if c["log_variance_ratio"] is None else f"{math.exp(c['log_variance_ratio']):.2f}",
            number(c["wasserstein"]),
        )
        for c in ([] if found is None else found["components"])
    ]
    columns: Columns = (
        ("Component", "word"),
        ("Shift of the mean, sd", "number"),
        ("Variance now over before", "number"),
        ("Wasserstein distance, sd", "number"),
    )
    first, note = cut(rows, MOST_CELLS, "result.json")
    return table("Principal components: where the mean and the spread moved", columns, first, note)


def rows_table(rows: pa.Table | None) -> Table | None:
    """The most drifted rows (drifted_rows.parquet)."""
    if rows is None:
        return None
    extra = [name for name in rows.column_names if name.startswith("segment_")][:3]
    columns: Columns = (
        ("Row", "data"),
        ("Witness", "number"),
        ("Cluster", "data"),
        ("Nearest row of the reference", "data"),
        ("Its distance", "number"),
        *((name.removeprefix("segment_"), "data") for name in extra),
    )
    cells = [
        (
            data(f"row of rank {row['rank']}" if row["id"] is None else row["id"]),
            number(row["witness"]),
            _cluster_of(row),
            "-" if row["nearest_reference_id"] is None else data(row["nearest_reference_id"]),
            number(row["nearest_reference_distance"]),
            *("-" if row[name] is None else data(row[name]) for name in extra),
        )
        for row in rows.slice(0, MOST_ROWS).to_pylist()
    ]
    note = "Witness: how far the row lies from the reference and how close to its own window."
    more = f" All {len(rows):,} are in drifted_rows.parquet." if len(rows) > MOST_ROWS else ""
    return table("Rows that moved the score most", columns, cells, note + more)


def _cluster_of(row: Json) -> Cell:
    if row["cluster"] is None:
        return "-"
    named = Markup("{} ({})").format(row["cluster"], data(row["cluster_kind"] or "-"))
    return named if row["cluster_label"] is None else Markup("{}: {}").format(named, data(row["cluster_label"]))


def gate_table(result: Json, summary: VerdictSummary) -> Table | None:
    """The metrics the verdict is made of, each against its own usual movement."""
    beyond = {gate.metric: gate.beyond for gate in summary.gates}
    rows = [
        (
            data(g["metric"]),
            "beyond" if beyond.get(g["metric"]) else "within",
            "the distance" if g["metric"] == HEADLINE else SEEN.get(g["metric"], "-"),
            f"{number(g['value'])}" + ("" if g["se"] is None else f" ± {number(g['se'], 2)}"),
            number(g["usual"]),
            f"up to {number(g['high'])}" if g["low"] is None else f"{number(g['low'])} to {number(g['high'])}",
            p_value(g["p_aa"]),
            p_value(g["p_holm"]),
            p_value(g["p_close"]),
        )
        for g in result["gates"]
    ]
    columns: Columns = (
        ("Metric", "word"),
        ("Usual movement", "word"),
        ("Sees", "brief"),
        ("Value", "number"),
        ("Usual", "number"),
        ("Usual range", "number"),
        ("p", "number"),
        ("p, adjusted", "number"),
        ("p of lying within", "number"),
    )
    note = (
        "p: chance that a window like the reference's lies this far out; adjusted (Holm) because several metrics "
        "decide. p of lying within: small where the value is clearly beyond its range, given its standard error."
    )
    return table("Metrics that decide on the verdict", columns, rows, note)


def metric_table(summary: VerdictSummary) -> Table | None:
    deciding = {gate.metric for gate in summary.gates}
    rows = [(data(name), number(value), number(se)) for name, value, se in summary.metrics if name not in deciding]
    columns: Columns = (("Metric", "word"), ("Value", "number"), ("Standard error", "number"))
    return table("Metrics that are measured and do not decide", columns, rows, "result.json has all of them.")


def calibration_facts(result: Json) -> list[tuple[str, str]]:
    """How sure the numbers are: name and value."""
    found, pairs = result["calibration"], result["pair_rows"]
    facts: list[tuple[str, str]] = []
    if found is not None:
        again = ", computed again at this window's rows" if found["aa_recomputed"] else ""
        part = "; this window is one of them, and was scored against the others" if found["in_reference"] else ""
        facts += [
            (
                "Usual movement",
                f"median {number(found['aa_median'])} over {len(found['aa_scores'])} windows of the reference, "
                f"each against the others, {count(found['aa_n'])} rows each{again}{part}",
            ),
            ("Tolerance", f"{number(found['delta'])}: 99% of windows like the reference's stay below it"),
            ("An alert clears below", number(found["clear_limit"])),
            ("Smallest score that would alert", f"{number(found['smallest_alerting'])}, with power 80%"),
            ("Smallest score told from 0", f"{number(found['smallest_detectable'])}, with power 80%"),
            ("p against no difference at all", f"{p_value(found['detectable_p'])}; never the alarm"),
        ]
        if found["autocorrelation"] is not None:
            facts.append(("Autocorrelation of the usual movement", signed(found["autocorrelation"])))
    if result["metrics"]:
        taken = f"{count(pairs['current'])} of this window and {count(pairs['reference'])} of the reference"
        facts.append(("Rows compared in pairs", f"{taken}: {pairs['reason']}"))
        if pairs["se_of_sampling"]:
            facts.append(("Standard error that drawing rows adds", number(pairs["se_of_sampling"])))
    return facts


def comparison_table(result: Json) -> Table | None:
    rows = []
    for found in result["compared"]:
        calibration = found["calibration"]
        rows.append(
            (
                Markup("{}, {}").format(data(found["window"]), AGAINST.get(found["with"], found["with"])),
                verdict_mark(found["verdict"]),
                times(None if calibration is None else calibration["ratio"]),
                number(None if calibration is None else calibration["score"]),
                p_value(None if calibration is None else calibration["p_aa"]),
                count(found["rows"]),
                as_sentence(found["reason"]),
            )
        )
    columns: Columns = (
        ("Compared with", "word"),
        ("Verdict", "word"),
        ("Times usual", "number"),
        ("Score", "number"),
        ("p", "number"),
        ("Rows", "number"),
        ("Why", "prose"),
    )
    note = "Each has a usual movement of its own: that of the reference's windows at the same distance in time."
    return table("The same window against earlier ones", columns, rows, note)


def reference_table(result: Json) -> Table | None:
    """The windows that form the reference, and those that do not."""
    found = result["reference"]
    rows: list[tuple[Cell, ...]] = [
        (data(w["label"]), "part of it", count(w["rows"]), number(w["aa_score"])) for w in found["windows"]
    ]
    rows += [(data(w["label"]), "dropped: far out", count(w["rows"]), number(w["aa_score"])) for w in found["dropped"]]
    rows += [(data(w["window"]), w["reason"], "-", "-") for w in found["left_out"]]
    columns: Columns = (
        ("Window", "word"),
        ("Role", "prose"),
        ("Rows", "number"),
        ("Score against the others", "number"),
    )
    first, note = cut(rows, MOST_CELLS, "result.json")
    return table("Windows of the reference", columns, first, note)
