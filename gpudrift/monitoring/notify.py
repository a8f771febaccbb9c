"""The webhook: whether a run's verdict is news, and its delivery (docs/notify.md). It never raises, and changes nothing
but its own state."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from gpudrift import __version__
from gpudrift.errors import GpudriftError
from gpudrift.monitoring import told
from gpudrift.monitoring.message import Message, as_json
from gpudrift.monitoring.post import Address, AddressError, post
from gpudrift.monitoring.slack import as_slack

SINK = "webhook"


@dataclass(frozen=True)
class Delivery:
    """What became of a run's message. ok: nothing failed, a run with nothing to tell included; sent: a message was
    delivered; reason: in words, without the address; attempts: requests made."""

    sink: str
    ok: bool
    sent: bool
    reason: str
    attempts: int = 0


def utc_now() -> datetime:
    return datetime.now(UTC)


def notify(
    message: Message,
    *,
    form: Literal["json", "slack"],
    url_env: str,
    verdicts: Collection[str],
    cooldown_hours: float,
    timeout_seconds: float,
    attempts: int,
    directory: Path,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
    environ: Mapping[str, str] = os.environ,
) -> Delivery:
    """Tell a run's verdict where it is news.

    url_env: the environment variable that holds the address. directory: ``<history>/<job>``, where the state is kept.
    Other arguments: as ``config.NotifyConfig``.
    """
    path = directory / told.STATE_FILE
    try:
        address = Address(environ[url_env].strip())
    except KeyError:
        return Delivery(SINK, False, False, f"the environment variable {url_env} is not set: it holds the address")
    except AddressError as error:
        return Delivery(SINK, False, False, f"the environment variable {url_env} {error}")
    try:
        states, note = told.load(path)
    except OSError as error:
        why = f"what was told before cannot be read, so nothing is sent: {error.strerror}"
        return Delivery(SINK, False, False, why)
    now = clock()
    state = states.get(message.reference, told.State())
    cooldown = timedelta(hours=cooldown_hours)
    news = told.decide(state, message.verdict, message.window, now, verdicts=verdicts, cooldown=cooldown)
    if news.event is None:
        return _noted(Delivery(SINK, True, False, f"nothing sent: {news.reason}"), note)
    content = (
        as_slack(message, news.event, news.before)
        if form == "slack"
        else as_json(message, news.event, news.before, now)
    )
    posted = post(
        address,
        json.dumps(content, allow_nan=False).encode("ascii"),
        headers={"Content-Type": "application/json", "User-Agent": f"gpudrift/{__version__}", "Connection": "close"},
        slack=form == "slack",
        timeout=timeout_seconds,
        attempts=attempts,
        sleep=sleep,
        jitter=jitter,
        clock=clock,
    )
    if not posted.ok:
        return _noted(Delivery(SINK, False, False, posted.reason, posted.attempts), note)
    sent = Delivery(SINK, True, True, f"{posted.reason}: {news.event}", posted.attempts)
    try:
        told.save(path, states | {message.reference: news.after})
    except (OSError, GpudriftError) as error:
        why = str(error.strerror) if isinstance(error, OSError) else error.message
        sent = replace(sent, ok=False, reason=f"{sent.reason}; not noted, so the next run tells it again: {why}")
    return _noted(sent, note)


def _noted(delivery: Delivery, note: str) -> Delivery:
    return replace(delivery, reason=f"{delivery.reason}; {note}") if note else delivery
