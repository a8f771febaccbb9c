"""What a job's webhook was last told, and whether a verdict is news (docs/notify.md has the rule).

The state is one JSON file a job, ``<history>/<job>/.notified.json``, by reference id; hidden, so that tools that read
the directory as a Parquet data set pass it over. It changes only when a message was delivered.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from gpudrift.files import write_json
from gpudrift.monitoring.message import Event
from gpudrift.records import Verdict, Window

FORMAT_VERSION = 1
STATE_FILE = ".notified.json"


@dataclass(frozen=True)
class Told:
    """A message that was delivered. window, start: of the window it was about; at: when, timezone-aware."""

    verdict: Verdict
    window: str
    start: datetime
    at: datetime


@dataclass(frozen=True)
class State:
    """What was last told about one reference. drift: of warning, alert and stable; data: an insufficient verdict since
    which no other message was sent. Apart, so that a week without data neither ends nor repeats an alarm."""

    drift: Told | None = None
    data: Told | None = None

    @property
    def open(self) -> Told | None:
        """The problem people were told of last and not yet told to be over."""
        drift = None if self.drift is None or self.drift.verdict == "stable" else self.drift
        return max((told for told in (drift, self.data) if told is not None), key=lambda told: told.at, default=None)


@dataclass(frozen=True)
class News:
    """Whether there is anything to tell. event: None where there is not; reason: why not, in words; before: the message
    this one follows; after: the state once it is delivered."""

    event: Event | None
    reason: str
    before: Told | None
    after: State


def decide(
    state: State,
    verdict: Verdict,
    window: Window,
    now: datetime,
    *,
    verdicts: Collection[str],
    cooldown: timedelta,
) -> News:
    """Whether a verdict is news.

    verdicts: those to tell. cooldown: between two messages about one that goes on. A moment of the state that lies
    after ``now`` (a clock set back) does not hold a message up.
    """
    last = max((told.start for told in (state.drift, state.data) if told is not None), default=None)
    if last is not None and window.start < last:
        return News(None, "a later window was told already", None, state)
    this = Told(verdict, window.label, window.start, now)
    if verdict == "stable":
        if state.open is None:
            return News(None, "stable, and nothing was told that this would end", None, state)
        return News("resolved", "", state.open, State(drift=this))
    if verdict not in verdicts:
        return News(None, f"{verdict} is not among the verdicts to tell", None, state)
    before = state.data if verdict == "insufficient" else state.drift
    after = replace(state, data=this) if verdict == "insufficient" else State(drift=this)
    if before is None or before.verdict == "stable":
        return News("new", "", None, after)
    if before.verdict == "warning" and verdict == "alert":
        return News("worse", "", before, after)
    if window.start == before.start:
        return News(None, "told already", None, state)
    if timedelta(0) <= now - before.at < cooldown:
        why = f"it goes on since {before.window}, told less than notify.cooldown_hours ago"
        return News(None, why, None, state)
    return News("continues", "", before, after)


def load(path: Path) -> tuple[dict[str, State], str]:
    """The states by reference id, and a note: empty unless the file is damaged, which counts as nothing told.

    Raises:
        OSError: there is a file that cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}, ""
    try:
        plain = json.loads(text)
        if plain["format_version"] != FORMAT_VERSION:
            raise ValueError("another format")
        states = {name: State(_told(one["drift"]), _told(one["data"])) for name, one in plain["references"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, "what was told before is not known: its file is damaged"
    return states, ""


def save(path: Path, states: Mapping[str, State]) -> None:
    write_json(path, {"format_version": FORMAT_VERSION, "references": {k: asdict(v) for k, v in states.items()}})


def _told(plain: Any) -> Told | None:
    if plain is None:
        return None
    start, at = datetime.fromisoformat(plain["start"]), datetime.fromisoformat(plain["at"])
    if plain["verdict"] not in get_args(Verdict) or start.tzinfo is None or at.tzinfo is None:
        raise ValueError("not what was written")
    return Told(plain["verdict"], str(plain["window"]), start, at)
