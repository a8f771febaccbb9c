"""What a message says, and that text of the data can neither mention, link nor break anything in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhooks import MONDAY, a_message, week

from gpudrift.monitoring.message import (
    ID_LETTERS,
    MOST,
    SCHEMA_VERSION,
    Event,
    ToldOutcome,
    as_json,
    message_of,
    report_link,
)
from gpudrift.monitoring.slack import HEADER_LETTERS, JOINER, SECTION_LETTERS, as_slack
from gpudrift.monitoring.told import Told
from gpudrift.outcomes.records import Finding, Level, Outcomes
from gpudrift.records import Calibration, ClusterShift, SegmentScore, SegmentShift
from gpudrift.report.wording import GateLine, VerdictSummary, plain_sentence

NOW = MONDAY + timedelta(days=8)
BEFORE = Told("warning", "2026-W01", MONDAY - timedelta(days=7), MONDAY)
DOCS = Path(__file__).parents[2] / "docs"
EVENTS: tuple[Event, ...] = ("new", "worse", "continues", "resolved")


def keys_of(value: Any, prefix: str = "") -> set[str]:
    """The keys of a JSON value as the table in docs/notify.md writes them."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= {f"{prefix}{key}"} | keys_of(inner, f"{prefix}{key}.")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found |= keys_of(value[0], f"{prefix.removesuffix('.')}[].")
    return found


def test_every_key_is_documented_and_every_documented_key_is_there() -> None:
    text = (DOCS / "notify.md").read_text(encoding="utf-8")
    table = text.partition("| key |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    assert keys_of(as_json(a_message(), "worse", BEFORE, NOW)) == documented


def test_the_generic_message_holds_what_was_found() -> None:
    found = as_json(a_message(), "worse", BEFORE, NOW)
    assert found["schema_version"] == SCHEMA_VERSION == 1
    assert (found["event"], found["verdict"], found["job"]) == ("worse", "alert", "weekly")
    assert found["before"] == {"verdict": "warning", "window": "2026-W01", "time": MONDAY.isoformat()}
    assert found["window"] == {
        "label": "2026-W02", "start": MONDAY.isoformat(), "end": (MONDAY + timedelta(days=7)).isoformat()
    }  # fmt: skip
    assert found["clusters"][0]["contribution"] == 0.005
    assert found["outcomes"][0]["worse"] == "lower"
    assert found["report_url"] == "https://reports.example/out/reports/2026-W02.html"


def test_the_id_is_of_the_message_and_not_of_the_attempt() -> None:
    one = as_json(a_message(), "new", None, NOW)["id"]
    assert as_json(a_message(), "new", None, NOW + timedelta(hours=5))["id"] == one
    others = [
        as_json(a_message(k=1), "new", None, NOW),
        as_json(a_message("warning"), "new", None, NOW),
        as_json(a_message(), "continues", BEFORE, NOW),
        as_json(a_message(), "continues", replace(BEFORE, at=NOW), NOW),
        as_json(replace(a_message(), job="x"), "new", None, NOW),
        as_json(replace(a_message(), reference="x"), "new", None, NOW),
    ]
    assert len({one, *(other["id"] for other in others)}) == 7


@given(st.lists(st.text(), max_size=4).map(tuple))
def test_ids_come_through_generic_json_as_they_are(ids: tuple[str, ...]) -> None:
    message = replace(a_message(), clusters=(replace(a_message().clusters[0], ids=ids),))
    sent = json.dumps(as_json(message, "new", None, NOW), allow_nan=False)
    assert sent.isascii()
    assert json.loads(sent)["clusters"][0]["ids"] == list(ids)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_null(value: float) -> None:
    message = replace(a_message(), score=value, outcomes=(replace(a_message().outcomes[0], limit=value),))
    found = as_json(message, "new", None, NOW)
    assert found["score"] is found["outcomes"][0]["limit"] is None


# Slack


def texts(value: Any) -> list[str]:
    """Every string that Slack shows."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() if key not in ("type",) for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def objects(value: Any) -> list[dict[str, Any]]:
    """Every object of a text."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, dict) and value.get("type") in ("mrkdwn", "plain_text") else []
    return own + [found for one in inner for found in objects(one)]


def check_slack(sent: dict[str, Any]) -> None:
    """What holds for every message, whatever is in it."""
    assert set(sent) == {"text", "blocks"}
    assert 1 <= len(sent["blocks"]) <= 50
    assert len(sent["text"]) <= 4000
    for block in sent["blocks"]:
        assert block["type"] in ("header", "section", "context")
    for text in objects(sent["blocks"]):
        limit = HEADER_LETTERS if text["type"] == "plain_text" else SECTION_LETTERS
        assert 1 <= len(text["text"]) <= limit
        assert text["type"] == "plain_text" or text["verbatim"] is True
    for text in texts(sent):
        own_link = re.fullmatch(r"<https?://[^<>|\s]+\|Report>", text)
        assert own_link or not re.search(r"[<>]", text)
        assert re.search(r"&(?!amp;|lt;|gt;)", text) is None
        assert re.search(rf"@(?!{JOINER})", text) is None
        assert own_link or "://" not in text
        assert "](" not in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


HOSTILE = [
    "@channel", "@here @everyone", "<!here>", "<!channel|hi>", "<@U012AB3CD>", "<#C024BE7LR>", "<!subteam^S1>",
    "<https://evil.example|log in>", "https://evil.example/", "[click](https://evil.example)", "`@here`", "*bold*",
    "a&b", "&lt;!here&gt;", "a|b", "\n> quoted", "```", "\u202egnp.exe", "\x1b[31m", "", " ", "x" * 100_000,
    "&" * 5000, "<" * 5000, "@" * 5000, "\ud800", "http:\u2060//evil",
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("event", EVENTS)
def test_text_of_the_data_mentions_nobody_and_links_nowhere(hostile: str, event: Event) -> None:
    message = a_message(ids=(hostile,) * MOST)
    sent = as_slack(message, event, BEFORE)
    check_slack(sent)
    assert json.dumps(sent).isascii()


@given(st.lists(st.text(), max_size=6).map(tuple), st.sampled_from(EVENTS))
def test_any_text(ids: tuple[str, ...], event: Event) -> None:
    message = replace(a_message(ids=ids), sentence=" ".join(ids), report_url=ids[0] if ids else None)
    check_slack(as_slack(message, event, BEFORE))


def test_slack_reads_what_was_meant() -> None:
    sent = as_slack(a_message(ids=("R&D <x>", "a`b")), "new", None)
    header, sentence, changed, clusters, segments, outcomes, link = sent["blocks"]
    assert header["text"]["text"] == "Alert: weekly, 2026-W02"
    assert sentence["text"]["text"] == "2026-W02 lies far from the reference"
    assert sent["text"] == "Alert: weekly, 2026-W02. 2026-W02 lies far from the reference"
    assert changed["text"]["text"].startswith(
        "*What changed*\n• A new cluster of about 12% of the rows (ids R&amp;D &lt;x"
    )
    assert clusters["text"]["text"] == (
        "*Clusters*\n• `R&amp;D &lt;x&gt;` new, 0.6% to 12.0% of the rows, 25% of the score: `R&amp;D &lt;x&gt;`, `a'b`"
    )
    assert segments["text"]["text"].splitlines() == [
        "*Segments*",
        "• `lang=R&amp;D &lt;x&gt;` alert, 12x its usual movement, q &lt;0.0001, 80 rows",
        "• `lang=a'b` alert, 12x its usual movement, q &lt;0.0001, 80 rows",
        "• `lang=R&amp;D &lt;x&gt;` grown, 25.0% to 50.0% of the rows, 20% of the score",
    ]
    assert outcomes["text"]["text"] == (
        "*Product metrics beyond their limit*\n• `success` of `R&amp;D &lt;x&gt;` is 0.05 in 2026-W02, below its limit "
        "0.07 (usual 0.09)"
    )
    assert link["elements"][0]["text"] == "<https://reports.example/out/reports/2026-W02.html|Report>"


def test_metrics_near_one_and_large_ones_are_told_apart_from_their_limits() -> None:
    one = ToldOutcome("uptime", "all", "lower", "2026-W02", 0.99913, 0.99952, 0.99938, 0.001, "none", "")
    more = replace(one, metric="revenue", value=1186224.0, usual=1234857.8, limit=1220414.9)
    sent = as_slack(replace(a_message(), outcomes=(one, more)), "new", None)
    told = [block["text"]["text"] for block in sent["blocks"] if "Product metrics" in json.dumps(block)]
    assert told == [
        "*Product metrics beyond their limit*\n"
        "• `uptime` is 0.9991 in 2026-W02, below its limit 0.9994 (usual 0.9995)\n"
        "• `revenue` is 1,186,224 in 2026-W02, below its limit 1,220,415 (usual 1,234,858)"
    ]


def test_titles_say_what_is_new() -> None:
    titles = [as_slack(a_message(), event, BEFORE)["blocks"][0]["text"]["text"] for event in EVENTS]
    assert titles == [
        "Alert: weekly, 2026-W02",
        "Alert (warning told for 2026-W01): weekly, 2026-W02",
        "Still alert (warning told for 2026-W01): weekly, 2026-W02",
        "Stable again (warning told for 2026-W01): weekly, 2026-W02",
    ]


def test_a_resolve_does_not_list_what_moved() -> None:
    sent = as_slack(a_message("stable"), "resolved", BEFORE)
    assert [block["type"] for block in sent["blocks"]] == ["header", "section", "section", "context"]
    assert "Clusters" not in json.dumps(sent)


def test_what_does_not_fit_is_counted() -> None:
    long = tuple(f"{k}{'&' * 600}" for k in range(40))
    sent = as_slack(replace(a_message(), phenomena=long), "new", None)
    check_slack(sent)
    assert sent["blocks"][2]["text"]["text"].endswith("\nand 39 more")


def test_without_anything_to_list_there_are_no_empty_blocks() -> None:
    bare = replace(
        a_message(), phenomena=(), clusters=(), segments=(), shares=(), outcomes=(), report_url=None, score=None
    )
    sent = as_slack(bare, "new", None)
    check_slack(sent)
    assert len(sent["blocks"]) == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://r.example/a?b=1&c=2", "<https://r.example/a?b=1&amp;c=2|Report>"),
        ("https://r.example/a|b> c", "<https://r.example/a%7Cb%3E%20c|Report>"),
        ("s3://bucket/out", f"Report: s3:{JOINER}//bucket/out"),
        ("javascript:alert(1)", "Report: javascript:alert(1)"),
        ("/srv/out", "Report: /srv/out"),
        ("https://r.example/" + "a" * 5000, None),
    ],
)
def test_the_one_link_is_that_of_the_report(url: str, shown: str | None) -> None:
    sent = as_slack(replace(a_message(), report_url=url), "new", None)
    check_slack(sent)
    text = sent["blocks"][-1]["elements"][0]["text"]
    assert text == shown if shown is not None else text.startswith("Report: https:")


@pytest.mark.parametrize(
    ("base", "label", "link"),
    [
        (None, "2026-W02", None),
        ("https://r.example/out/", "2026-W02", "https://r.example/out/reports/2026-W02.html"),
        ("https://r.example/out", "2026-10-05+10d", "https://r.example/out/reports/2026-10-05%2B10d.html"),
    ],
)
def test_a_report_is_found_below_its_base(base: str | None, label: str, link: str | None) -> None:
    assert report_link(base, label) == link


# from what a run found


def cluster(index: int, contribution: float, **changes: Any) -> ClusterShift:
    named: dict[str, Any] = {
        "kind": "grown", "rows": 10, "reference_rows": 10, "share": 0.2, "reference_share": 0.1, "usual_sd": 0.01,
        "p": 1e-6, "q": 1e-5, "p_usual": 1e-4, "witness": 0.0, "ids": (f"c{index}",), "reference_ids": (f"r{index}",),
    }  # fmt: skip
    return ClusterShift(index=index, contribution=contribution, **(named | changes))


def calibration(ratio: float) -> Calibration:
    numbers: dict[str, Any] = dict.fromkeys(Calibration.__dataclass_fields__, 0.0)
    return Calibration(**(numbers | {"ratio": ratio, "in_reference": False}))


def segment(value: str, verdict: Any, ratio: float | None) -> SegmentScore:
    found = None if ratio is None else calibration(ratio)
    return SegmentScore("lang", value, 0, 80, 400, 12, {}, found, 0.001, verdict, "")


def share(value: str, kind: Any, contribution: float) -> SegmentShift:
    return SegmentShift("lang", value, 0, kind, 10, 10, 0.2, 0.1, 1e-6, 1e-5, 1e-4, contribution, 0.0)


def finding(metric: str, degraded: bool | None) -> Finding:
    level = None
    if degraded is not None:
        level = Level("2026-W02", 0.05, 300.0, 0.09, 0.07, 1e-4, 52, degraded)
    return Finding(
        metric, "lower", "all", 30, (), None, None, None, None, None, None, (), None, level, "none", f"{metric} is so."
    )


def a_run(**changes: Any) -> Any:
    """As much of a run as a message is made of."""
    named: dict[str, Any] = {
        "job": "weekly",
        "verdict": "alert",
        "reference": SimpleNamespace(id="0123456789ab"),
        "scored": SimpleNamespace(window=week(0), rows=326),
        "attribution": None,
        "segments": (),
    }
    return SimpleNamespace(**(named | changes))


SUMMARY = VerdictSummary(
    "alert", "2026-W02", "2025", 326, 0, score=0.02, se=0.002, ratio=57.0, p_aa=0.5,
    gates=(GateLine("energy", 0.02, 0.001, True, True), GateLine("mmd2_b1", 0.02, 1e-5, True, True)),
    phenomena=("A new\x1b cluster.",),
)  # fmt: skip


def test_a_message_of_a_run() -> None:
    found = message_of(a_run(), SUMMARY, report_url="https://r.example")
    assert (found.job, found.reference, found.window, found.verdict) == ("weekly", "0123456789ab", week(0), "alert")
    assert found.sentence == plain_sentence(SUMMARY)
    assert (found.score, found.ratio, found.p, found.rows) == (0.02, 57.0, 1e-5, 326)
    assert found.phenomena == ("A new? cluster.",)
    assert found.report_url == "https://r.example/reports/2026-W02.html"
    assert (found.clusters, found.segments, found.shares, found.outcomes) == ((), (), (), ())
    assert message_of(a_run(), replace(SUMMARY, gates=())).p == 0.5


def test_the_clusters_that_changed_most_come_first() -> None:
    same = cluster(9, 100.0, kind="same")
    gone = cluster(8, -50.0, kind="gone")
    parts = SimpleNamespace(
        clusters=(cluster(0, 1.0), same, gone, *(cluster(k, 2.0 + k) for k in range(1, 7))), segments=()
    )
    found = message_of(a_run(attribution=parts), SUMMARY).clusters
    assert [one.name for one in found] == ["cluster 8", "cluster 6", "cluster 5", "cluster 4", "cluster 3"]
    assert [one.ids for one in found[:2]] == [("r8",), ("c6",)]
    assert len(found) == MOST


def test_ids_are_few_and_of_a_bounded_length() -> None:
    parts = SimpleNamespace(clusters=(cluster(0, 1.0, ids=tuple("x" * 10_000 for _ in range(30))),), segments=())
    (found,) = message_of(a_run(attribution=parts), SUMMARY).clusters
    assert [len(name) for name in found.ids] == [ID_LETTERS] * MOST


def test_segments_that_drifted_come_worst_first_and_shares_apart() -> None:
    scores = (
        segment("a", "stable", 90.0), segment("b", "warning", 80.0), segment("c", "alert", 3.0),
        segment("d", "alert", 7.0), segment("e", "insufficient", None),
    )  # fmt: skip
    parts = SimpleNamespace(
        clusters=(), segments=(share("x", "same", 9.0), share("y", "grown", -2.0), share("z", "new", 1.0))
    )
    found = message_of(a_run(segments=scores, attribution=parts), SUMMARY)
    assert [(s.name, s.verdict, s.ratio) for s in found.segments] == [
        ("lang=d", "alert", 7.0), ("lang=c", "alert", 3.0), ("lang=b", "warning", 80.0)
    ]  # fmt: skip
    assert [s.name for s in found.shares] == ["lang=y", "lang=z"]


def test_product_metrics_beyond_their_limit_are_told() -> None:
    outcomes = Outcomes((finding("bad", True), finding("good", False), finding("unknown", None)), {}, {})
    (found,) = message_of(a_run(), SUMMARY, outcomes=outcomes).outcomes
    assert (found.metric, found.value, found.usual, found.limit, found.window) == ("bad", 0.05, 0.09, 0.07, "2026-W02")
    assert found.sentence == "bad is so."
    assert np.isfinite(found.p)
