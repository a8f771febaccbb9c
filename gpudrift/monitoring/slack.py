"""A message as Slack's incoming webhooks take it: ``text`` for the notification, ``blocks`` for the channel.

Ids, names and values come from data, so none of it can mention anybody or become a link: ``&``, ``<`` and ``>`` are
escaped, which disarms ``<!here>`` and ``<http://...>``; ``verbatim`` keeps Slack from linking addresses and names it
recognises; and an invisible word joiner after every ``@``, and inside ``://`` and ``](``, does so for other readers of
this format. https://docs.slack.dev/reference/block-kit/composition-objects/text-object
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gpudrift.monitoring.message import Event, Message, ToldCluster, ToldOutcome, ToldSegment, ToldShare
from gpudrift.report.lines import part_of_score
from gpudrift.report.wording import count, p_value, printable, quantities, times

if TYPE_CHECKING:
    from gpudrift.monitoring.told import Told

SECTION_LETTERS = 3000  # of a section's text, escapes included
HEADER_LETTERS = 150
LINE_LETTERS = 500  # of a line, before escaping, which makes five of an ampersand
NAME_LETTERS = 80
LINK_LETTERS = 2000
JOINER = "\u2060"  # word joiner: no width, no break


def as_slack(message: Message, event: Event, before: Told | None) -> dict[str, Any]:
    """``{"text": ..., "blocks": [...]}``."""
    title = title_of(message, event, before)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(title, HEADER_LETTERS), "emoji": False}},
        _section([_safe(message.sentence)]),
    ]
    if event != "resolved":
        score = message.score or 0.0
        parts = (
            ("What changed", [_safe(line) for line in message.phenomena]),
            ("Clusters", [_cluster(one, score) for one in message.clusters]),
            ("Segments", [_segment(one) for one in message.segments] + [_share(one, score) for one in message.shares]),
        )
        blocks += [_section(lines, name) for name, lines in parts if lines]
    if message.outcomes:
        blocks.append(_section([_outcome(one) for one in message.outcomes], "Product metrics beyond their limit"))
    link = _link(message.report_url)
    if link:
        blocks.append({"type": "context", "elements": [_text(link)]})
    return {"text": f"{_safe(title)}. {_safe(message.sentence)}", "blocks": blocks}


def title_of(message: Message, event: Event, before: Told | None) -> str:
    """``Alert: weekly, 2026-W43``."""
    verdict = message.verdict.capitalize()
    told = "" if before is None else f" ({before.verdict} told for {before.window})"
    lead = {
        "new": verdict,
        "worse": f"{verdict}{told}",
        "continues": f"Still {message.verdict}{told}",
        "resolved": f"Stable again{told}",
    }[event]
    return printable(f"{lead}: {message.job}, {message.window.label}")


def _cluster(one: ToldCluster, score: float) -> str:
    ids = ", ".join(_code(name) for name in one.ids)
    part = part_of_score(one.contribution, score)
    return f"{_code(one.name)} {one.kind}, {_moved(one)}, {part} of the score" + (f": {ids}" if ids else "")


def _segment(one: ToldSegment) -> str:
    chance = "" if one.q is None else _escaped(f", q {p_value(one.q)}")  # <0.0001
    return f"{_code(one.name)} {one.verdict}, {times(one.ratio)} its usual movement{chance}, {count(one.rows)} rows"


def _share(one: ToldShare, score: float) -> str:
    return f"{_code(one.name)} {one.kind}, {_moved(one)}, {part_of_score(one.contribution, score)} of the score"


def _moved(one: ToldCluster | ToldShare) -> str:
    return f"{100 * one.reference_share:.1f}% to {100 * one.share:.1f}% of the rows"


def _outcome(one: ToldOutcome) -> str:
    where = "" if one.segment == "all" else f" of {_code(one.segment)}"
    way = "below" if one.worse == "lower" else "above"
    value, limit, usual = quantities(one.value, one.limit, one.usual)
    return f"{_code(one.metric)}{where} is {value} in {_safe(one.window)}, {way} its limit {limit} (usual {usual})"


def _section(lines: Sequence[str], name: str = "") -> dict[str, Any]:
    """Lines, those at the end left out where they do not fit."""
    kept = [f"*{name}*"] if name else []
    for place, line in enumerate(lines):
        text = f"• {line}" if name else line
        left = len(lines) - place
        more = f"and {left} more"
        if sum(map(len, kept)) + len(kept) + len(text) + len(more) + 1 > SECTION_LETTERS:
            kept.append(more)
            break
        kept.append(text)
    return {"type": "section", "text": _text("\n".join(kept) or "-")}


def _text(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _link(url: str | None) -> str:
    """The one link of a message, from the configuration; as text where it is not one a browser opens."""
    if not url:
        return ""
    quoted = quote(printable(url), safe=":/?#[]!$&'*+,;=%~")  # no <, >, |, @ or space
    if not quoted.lower().startswith(("http://", "https://")) or len(quoted) > LINK_LETTERS:
        return f"Report: {_safe(url)}"
    return f"<{quoted.replace('&', '&amp;')}|Report>"


def _code(text: str) -> str:
    """In code letters, which keep ``*`` and ``_`` as they are."""
    return f"`{_safe(text, NAME_LETTERS).replace('`', chr(39)) or '(empty)'}`"


def _safe(text: str, letters: int = LINE_LETTERS) -> str:
    """Text of the data on one line: nobody mentioned, nothing linked."""
    cut = _cut(printable(text), letters)
    for found, apart in (("@", f"@{JOINER}"), ("://", f":{JOINER}//"), ("](", f"]{JOINER}(")):
        cut = cut.replace(found, apart)
    return _escaped(cut)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
