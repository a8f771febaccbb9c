"""Checks that the schemas share: what a value may be, and the text forms of dates."""

from __future__ import annotations

from datetime import date
from typing import Any

from gpudrift.errors import ConfigError


def require(ok: bool, field_name: str, value: Any, allowed: Any, message: str = "this value cannot be used") -> None:
    if not ok:
        raise ConfigError(message, field=field_name, value=value, allowed=allowed)


def require_local(field_name: str, value: str | None) -> None:
    """Refuse the address of a store for files that are written: it would become a folder of this machine, named so."""
    ok = value is None or "://" not in value
    require(ok, field_name, "(an address)", "a path of this machine", "files can be written to local paths alone")


def parse_date(field_name: str, value: str | None) -> date | None:
    """An ISO date (YYYY-MM-DD) or None."""
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(
            "this is not a date", field=field_name, value=value, allowed="YYYY-MM-DD, such as 2026-10-31"
        ) from None


def parse_onset(text: str) -> tuple[date, str]:
    """``2025-06-01`` or ``2025-06-01 new catalogue`` -> the date, and the name (the date where there is none)."""
    first, _, name = str(text).strip().partition(" ")
    day = parse_date("backtest.onsets", first)
    if day is None:  # for mypy: text is not None
        raise ConfigError("this is not a date", field="backtest.onsets", value=text, allowed="YYYY-MM-DD and a name")
    return day, name.strip() or first


def parse_quiet(text: str) -> tuple[date, date]:
    """``2024-01-01..2024-07-01`` -> both dates, the second excluded."""
    edges = [parse_date("backtest.quiet", part.strip()) for part in str(text).split("..") if ".." in str(text)]
    if len(edges) != 2 or edges[0] is None or edges[1] is None or edges[0] >= edges[1]:
        raise ConfigError(
            "this is not a range of dates", field="backtest.quiet", value=text, allowed="start..end, start before end"
        )
    return edges[0], edges[1]
