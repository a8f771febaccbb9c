"""Pages for the tests of the HTML reports: what real runs found, made-up product metrics, and what every page is held
to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ROWS, make_corpus, run, table_of

from gpudrift.history import ALL
from gpudrift.outcomes.records import DriftSeries, EventStudy, Finding, LagEffect, Level, Outcomes, OutcomeSeries
from gpudrift.records import HistoryPoint, Window
from gpudrift.report.html.page import render_run, write_run
from gpudrift.report.style import Picture
from gpudrift.report.wording import VerdictSummary

APART = {"td", "th", "dt", "dd", "li", "p", "h1", "h2", "h3", "caption", "summary", "figcaption"}  # words do not join
VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = (
    "</bdi></td></table><script>alert(1)</script><img src=x onerror=alert(1)> \"quotes' & {{ 7*7 }} "
    "\u202egnp.exe \u2066 \u200f \n\r\t\0 \x1b[31m \ud800 😀🏳️‍🌈 Ж\u0301"
    + "\u0301" * 50
    + " -->]]><style>*{display:none}"
    + "W" * 10_000
)


@dataclass(frozen=True)
class Found:
    """What a run found, as ``render_run`` takes it."""

    result: dict[str, Any]
    summary: VerdictSummary
    pictures: tuple[Picture, ...]
    rows: pa.Table | None
    history: tuple[HistoryPoint, ...]
    outcomes: Outcomes | None = None

    def page(self, **changes: Any) -> str:
        return render_run(
            self.result,
            self.summary,
            self.pictures,
            self.rows,
            self.history,
            self.outcomes,
            home="../index.html",
            **changes,
        )


@cache
def drifted(directory: Path) -> Found:
    """A corpus that has drifted, with segments and product metrics, in all its pictures. Once in a directory."""
    corpus = make_corpus(directory / "html-drifted", mean_shift=0.4, new_cluster=0.2)
    found = found_by(corpus, directory / "html-drifted-out", {"source.segment_columns": ["language"]})
    result = found.result | {"notes": ["left out: 2026-W16: the data end inside this window"]}
    return replace(found, result=result, outcomes=outcomes(found.history))


@cache
def short(directory: Path) -> Found:
    """A last window of 20 rows: insufficient data."""
    table = table_of(make_corpus(directory / "html-whole"))
    path = directory / "html-short.parquet"
    pq.write_table(pa.concat_tables([table.slice(0, 13 * ROWS), table.slice(13 * ROWS, 20)]), path)
    return found_by(path, directory / "html-short-out", {"run_date": "2026-04-08"})


def found_by(corpus: Path, output: Path, settings: dict[str, Any]) -> Found:
    """What a run hands to its report, and the report itself in ``output``."""
    kept: list[Found] = []

    def keep(
        directory: Path,
        result: dict[str, Any],
        summary: VerdictSummary,
        pictures: Sequence[Picture],
        *rest: Any,
        keep: int,
    ) -> tuple[Path, ...]:
        rows, history, told = rest
        kept.append(Found(result, summary, tuple(pictures), rows, tuple(history), told))
        return write_run(directory, result, summary, pictures, rows, history, told, keep=keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpudrift.report.html.page.write_run", keep)
        run(corpus, output, settings)
    return kept[0]


def outcomes(
    history: tuple[HistoryPoint, ...], metric: str = "success_rate", note: str = "3 windows lack it"
) -> Outcomes:
    """One metric that gets worse with the drift and is degraded, one of a segment without enough windows."""
    windows = tuple(point.window for point in history)
    label, k = windows[-1].label, len(windows)
    profile = np.array([0.0, -0.01, -0.03])
    events = EventStudy((label,), -0.02, (-0.03, -0.01), 0.004, (-1, 0, 1), profile, profile - 0.1, profile + 0.1)
    level = Level(label, 0.81, 900.0, 0.86, 0.83, 0.001, 40, True)
    effect = LagEffect(1, 60, -0.5, -0.012, (-0.02, -0.004))
    worse = Finding(
        metric, "lower", ALL, 60, (label,), 1, -0.012, (-0.02, -0.004), -0.5, 0.0004, 0.0008, (effect,), events, level,
        "worse", f"{metric} falls by 1.2 points where the score doubles, one window later: it gets worse",
    )  # fmt: skip
    few = replace(
        worse, segment="language=de", windows=7, effect=-0.77, p=None, q=None, lags=(),
        events=EventStudy((), None, None, None, (), profile[:0], profile[:0], profile[:0], "no spike"), level=None,
        link="insufficient", sentence=f"insufficient windows: {metric} of language=de, 7 of the 20 that are needed",
    )  # fmt: skip
    values = np.full(k, 0.8)
    series = OutcomeSeries(metric, "lower", ALL, windows, values, values)
    none = np.zeros(k, dtype=bool)
    drift = DriftSeries(ALL, windows, values, values, none, ~none)
    return Outcomes((worse, few), {(metric, ALL): series}, {ALL: drift}, (note,))


def points(verdicts: str, first: datetime = datetime(2026, 1, 5, tzinfo=UTC)) -> list[HistoryPoint]:
    """Weeks by the first letters of their verdicts; a space is a week that is missing."""
    names = {"s": "stable", "w": "warning", "a": "alert", "i": "insufficient"}
    score = {"s": 0.001, "w": 0.004, "a": 0.02, "i": None}
    found = []
    for k, letter in enumerate(verdicts):
        start = first + timedelta(weeks=k)
        if letter != " ":
            year, week, _ = start.isocalendar()
            value = score[letter]
            window = Window(start, start + timedelta(weeks=1), f"{year}-W{week:02d}")
            ratio = None if value is None else 1000 * value + k / 100
            found.append(
                HistoryPoint(window, names[letter], value, value, 0.01, 0.5, 1e-4, 0.003, 0.002, ratio, 100 + k)  # type: ignore[arg-type]
            )
    return found


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: tuple[str, ...] = ()


@dataclass
class Page(HTMLParser):
    """A page's elements in their order. Every tag must be closed, in the order of HTML."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {tag} {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs}, inside=tuple(e.tag for e in self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().tag == tag
        if tag in APART:
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def text(self) -> str:
        """What is read, without spaces in a row."""
        return " ".join(self.all("body")[0].text.split())

    @property
    def shape(self) -> list[tuple[Any, ...]]:
        """Tags with the names of their attributes: what data must not change."""
        return [(element.tag, *element.attributes) for element in self.elements]


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def checked(text: str) -> Page:
    """Holds a page to what every page is held to."""
    page = parsed(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert [element.tag for element in page.all("html") + page.all("main") + page.all("h1")] == ["html", "main", "h1"]
    assert page.all("title")[0].text.strip()
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not {"script", "iframe", "object", "embed", "form", "base", "audio", "video"} & {
        e.tag for e in page.elements
    }
    for element in page.elements:
        names = element.attributes
        assert not any(name.startswith("on") or name == "style" for name in names), element
        for name in ("src", "href"):
            if name in names and element.tag != "a":
                assert names[name].startswith("data:"), element
        if element.tag == "a":
            assert names["href"].startswith("#") or "://" not in names["href"], element
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    ids = Counter(element.attributes["id"] for element in page.elements if "id" in element.attributes)
    assert max(ids.values()) == 1
    assert {e.attributes["href"][1:] for e in page.all("a") if e.attributes["href"].startswith("#")} <= ids.keys()
    assert {e.attributes["aria-labelledby"] for e in page.elements if "aria-labelledby" in e.attributes} <= ids.keys()
    assert all(image.attributes["alt"].strip() for image in page.all("img"))
    levels = [int(e.tag[1]) for e in page.elements if e.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in head.attributes for head in page.all("th"))
    captions = [caption.text for caption in page.all("caption")]
    assert len(set(captions)) == len(captions)
    boxes = [e for e in page.all("div") if e.attributes.get("class") == "scroll"]
    assert all(box.attributes["tabindex"] == "0" and box.attributes["aria-label"] for box in boxes)
    assert len(boxes) == len(page.all("table")) + len(page.all("img")) + len(page.all("pre"))
    assert all(row.text.strip() for row in page.all("section")), "an empty section"
    return page


def without_time(text: str, said: str) -> str:
    """A page without its one line with the time."""
    lines = text.splitlines()
    assert sum(said in line for line in lines) == 1
    return "\n".join(line for line in lines if said not in line)


KEPT = {"verdict", "kind", "start", "end", "ended", "window", "label", "job", "with", "metric", "column"}


def spoiled(value: Any, text: str, key: str = "") -> Any:
    """Content with every text from data replaced by ``text``."""
    if isinstance(value, Mapping):
        return {k: spoiled(v, text, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [spoiled(v, text, key) for v in value]
    return text if isinstance(value, str) and key not in KEPT else value


def spoiled_found(found: Found, text: str) -> Found:
    """The run with ``text`` wherever data, labels and settings can bring one."""
    result = spoiled(found.result, text)
    result["window"] = dict(found.result["window"]) | {"label": text}
    result["job"] = text
    for one in (*result["compared"], *result["reference"]["windows"], *result["reference"]["left_out"]):
        one.update({name: text for name in ("window", "label") if name in one})
    for gate in result["gates"]:
        gate["metric"] = text
    if result["quality"] is not None:
        result["quality"]["dropped"] = {text: 3, "null": 2}
        result["quality"]["examples"] = {text: [text] * 3, "null": [text]}
    summary = replace(
        found.summary, window=text, reference=text, window_dates=text, reason=text, encoder=text,
        phenomena=(text, text), notes=(text,), metrics=((text, 1.0, None),), outputs=(text,),
    )  # fmt: skip
    rows = found.rows
    if rows is not None:
        texts = {f.name for f in rows.schema if pa.types.is_large_string(f.type) or pa.types.is_string(f.type)}
        safe = text.encode("utf-8", "replace").decode()
        columns = {
            n: pa.array([safe] * len(rows), pa.large_string()) if n in texts else rows[n] for n in rows.column_names
        }
        rows = pa.table(columns)
    history = tuple(replace(p, window=replace(p.window, label=f"{text}{k}")) for k, p in enumerate(found.history))
    pictures = tuple(picture._replace(alt_text=text) for picture in found.pictures)
    told = None if found.outcomes is None else outcomes(history, metric=text, note=text)
    return Found(result, summary, pictures, rows, history, told)
