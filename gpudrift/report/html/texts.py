"""Texts from data nobody vouches for (ids, labels, segment values, paths, settings) as a page can show them, and the
templates' environment, which does this to every text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gpudrift.report.wording import printable

LONGEST = 1000  # letters of any text
ID_LETTERS = 64  # of an id or a label beside others
VALUE_LETTERS = 300  # of a setting
MARKS = 4  # combining marks on one letter: more of them reach into the lines above and below
ENTRIES = 60  # of a list or mapping in the settings


def tidy(text: object, limit: int = LONGEST) -> str:
    """``text`` on one line without control and bidirectional characters, at most ``limit`` letters long."""
    kept, marks = [], 0
    for letter in printable(str(text)[: 8 * limit]):
        marks = marks + 1 if unicodedata.category(letter)[0] == "M" else 0
        if marks <= MARKS:
            kept.append(letter)
    return "".join(kept) if len(kept) <= limit else "".join(kept[: limit - 1]).rstrip() + "…"


def short(text: object) -> str:
    """An id or a label where there is no room for markup."""
    return tidy(text, ID_LETTERS)


def data(text: object, limit: int = ID_LETTERS) -> Markup:
    """A text from data: cut, escaped, and kept from turning the direction of what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(tidy(text, limit))


def listed(names: Iterable[object], most: int = 3) -> Markup:
    """The first ``most`` of some ids."""
    shown = list(names)[:most]
    return Markup(", ").join(data(name) for name in shown)


def verdict_mark(verdict: str) -> Markup:
    """A verdict as a word with its shape and colour."""
    return Markup('<span class="mark {0}">{0}</span>').format(verdict)


def signed(value: float | None, digits: int = 2) -> str:
    """``+0.16``, ``−0.31``, ``-`` where there is no finite value."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def settings_text(settings: Mapping[str, Any]) -> Markup:
    """Settings as YAML, a line each: long values and lists cut, passwords and keys in addresses hidden."""
    import yaml

    from gpudrift.source.stores import without_secrets

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            shown = {tidy(key, ID_LETTERS): plain(own) for key, own in list(value.items())[:ENTRIES]}
            return shown | ({"…": f"{len(value) - ENTRIES} more"} if len(value) > ENTRIES else {})
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [plain(own) for own in value[:ENTRIES]] + ["…"] * (len(value) > ENTRIES)
        return (
            value
            if value is None or isinstance(value, (bool, int, float))
            else tidy(without_secrets(str(value)), VALUE_LETTERS)
        )

    text = yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True, width=10 * VALUE_LETTERS)
    return Markup("\n").join(escape(line) for line in text.splitlines())


@cache
def environment() -> Environment:
    """Autoescaping, strict about names; every text that is no markup of ours is tidied where it enters a page."""
    made = Environment(
        loader=PackageLoader("gpudrift.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"data": data, "short": short}
    return made


def _finalize(value: Any) -> Any:
    return tidy(value) if isinstance(value, str) and not isinstance(value, Markup) else value
