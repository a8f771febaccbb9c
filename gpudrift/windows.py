"""Windows of event time, and the plan of a run: which window is current, which precede it, which are the reference.

A window is half open, ``start <= t < end``, in UTC. Windows of one period tile time: every moment lies in exactly one.
Weeks are ISO weeks (Monday to Sunday); windows of N days are counted from an anchor, the first day of the configured
reference range, so that the range is cut at its end only, or Monday 1970-01-05 where there is no such range.

A window at the edge of the data counts as complete when the gap between its edge and the first (or last) row is at most
``min(length / 7, 1 day)``. Some gap must be allowed: the last row of a full week is not written at midnight, and a
quiet night is not a missing day. More than a day may not be missing: a week that lacks its Sunday scores as drift for
no other reason than the weekday. Windows inside the data are complete whether they hold rows or not; an empty one is
reported where its rows are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from gpudrift.errors import ArgumentError, ConfigError, DataError, InsufficientDataError
from gpudrift.records import Window

EPOCH_MONDAY = date(1970, 1, 5)
_TICK = timedelta(microseconds=1)
ALSO = ("previous", "year_ago")  # windows a window is compared with beside the pinned reference


@dataclass(frozen=True)
class Period:
    """How time is cut: ISO weeks, days, calendar months, or spans of ``days`` days counted from ``anchor``."""

    kind: Literal["week", "day", "month", "days"]
    days: int = 0  # of kind "days" alone
    anchor: date = EPOCH_MONDAY

    def window_at(self, moment: datetime | date) -> Window:
        """The window that holds ``moment`` (a naive moment is UTC, a date its first instant).

        Raises:
            DataError: the window would leave the years 1 to 9999.
        """
        day = _utc(moment).date()
        try:
            if self.kind == "month":
                first = day.replace(day=1)
                last = (first + timedelta(days=31)).replace(day=1)
                return Window(_midnight(first), _midnight(last), first.isoformat()[:7])
            if self.kind == "day":
                return Window(_midnight(day), _midnight(day + timedelta(days=1)), day.isoformat())
            length = 7 if self.kind == "week" else self.days
            origin = EPOCH_MONDAY if self.kind == "week" else self.anchor
            first = day - timedelta(days=(day - origin).days % length)
            if self.kind == "week":
                year, week, _ = first.isocalendar()
                label = f"{year:04d}-W{week:02d}"
            else:
                label = f"{first.isoformat()}+{self.days}d"
            return Window(_midnight(first), _midnight(first + timedelta(days=length)), label)
        except OverflowError:
            raise _beyond_time(moment) from None

    def next(self, window: Window) -> Window:
        """The window that begins where ``window`` ends."""
        return self.window_at(window.end)

    def previous(self, window: Window) -> Window:
        """The window that ends where ``window`` begins."""
        try:
            return self.window_at(window.start - _TICK)
        except OverflowError:
            raise _beyond_time(window.start) from None

    def year_before(self, window: Window) -> Window:
        """The same window a year ago: 52 weeks, 364 days (the same weekday), the same month, or as many spans of N days
        as come closest to 364 days."""
        length = {"week": 7, "day": 1}.get(self.kind, self.days)
        try:
            if self.kind == "month":
                return self.window_at(window.start.date().replace(year=window.start.year - 1))
            return self.window_at(window.start - timedelta(days=max(1, round(364 / length)) * length))
        except (OverflowError, ValueError):  # ValueError: there is no year 0
            raise _beyond_time(window.start) from None


@dataclass(frozen=True)
class LeftOut:
    """A partial window that takes no part, and why."""

    window: Window
    reason: str


@dataclass(frozen=True)
class WindowPlan:
    """``current`` is judged against ``reference``; ``previous`` is the window before it (an alert needs two in a row).
    ``previous.complete`` is False when the data begin inside or after it. All but these are in time order."""

    current: Window
    previous: Window
    reference: tuple[Window, ...]
    reference_is_default: bool
    left_out: tuple[LeftOut, ...]


def parse_period(text: str, anchor: date | None = None) -> Period:
    """``week``, ``day``, ``month`` or ``Nd`` (N days, 1 to 9999, counted from ``anchor``).

    Raises:
        ConfigError: any other text.
    """
    if text in ("week", "day", "month"):
        return Period(text)  # type: ignore[arg-type]  # narrowed by the line above
    if re.fullmatch(r"[1-9]\d{0,3}d", text):
        return Period("days", int(text[:-1]), EPOCH_MONDAY if anchor is None else anchor)
    raise ConfigError(
        "this is not a window length",
        field="windows.period",
        value=text,
        allowed="week, day, month, or Nd (N days) such as 10d",
    )


def covering(period: Period, start: datetime, end: datetime) -> tuple[Window, ...]:
    """Every window that touches ``[start, end)``, in time order; those the range cuts have ``complete=False``."""
    start, end = _utc(start), _utc(end)
    windows = []
    if start < end:
        window = period.window_at(start)
        while window.start < end:
            windows.append(replace(window, complete=start <= window.start and window.end <= end))
            window = period.next(window)
    return tuple(windows)


def data_windows(period: Period, first: datetime, last: datetime) -> tuple[Window, ...]:
    """Every window from that of the first row to that of the last, ``complete`` where the data cover it."""
    first, last = _utc(first), _utc(last)
    return tuple(at_edges(window, first, last) for window in covering(period, first, last + _TICK))


def plan_windows(
    period: Period,
    first: datetime,
    last: datetime,
    *,
    reference_start: date | None = None,
    reference_end: date | None = None,
    run_date: date | None = None,
    default_windows: int = 12,
) -> WindowPlan:
    """The windows of one run.

    The current window holds ``run_date``; without one it is the last complete window of the data. A current window the
    data do not cover has ``complete=False``.

    The reference is every whole window of ``[reference_start, reference_end)``. Without a range it is the first
    ``default_windows`` complete windows of the data, whatever the run date, so that every run of a series is compared
    with the same rows. Data with no more complete windows than that give those before the current window.

    Args:
        first, last: event times of the first and the last row of the data.

    Raises:
        ArgumentError: only one end of the reference range, or ``last`` before ``first``.
        InsufficientDataError: no complete window; no data at ``run_date``; a reference window beyond the data; no
            window left for the reference.
    """
    first, last = _utc(first), _utc(last)
    if last < first:
        raise ArgumentError("the last row lies before the first", field="last", value=last.isoformat())
    if (reference_start is None) != (reference_end is None):
        raise ArgumentError("a reference range needs both ends", field="reference_start, reference_end")
    data = data_windows(period, first, last)
    complete = [window for window in data if window.complete]
    current = _current(period, data, complete, first, last, run_date)
    previous = at_edges(period.previous(current), first, last)
    left_out = [
        LeftOut(window, _edge_reason(window, first, last))
        for window in (data[:1] if len(data) == 1 else [data[0], data[-1]])
        if not window.complete and window != current
    ]
    if reference_start is None or reference_end is None:
        reference = _default_reference(complete, current, first, last, default_windows)
    else:
        reference, cut = _fixed_reference(period, reference_start, reference_end, first, last)
        listed = {item.window.start for item in left_out}
        left_out += [item for item in cut if item.window.start not in listed]
    return WindowPlan(
        current=current,
        previous=previous,
        reference=tuple(reference),
        reference_is_default=reference_start is None,
        left_out=tuple(sorted(left_out, key=lambda item: item.window.start)),
    )


def _current(
    period: Period,
    data: Sequence[Window],
    complete: Sequence[Window],
    first: datetime,
    last: datetime,
    run_date: date | None,
) -> Window:
    if run_date is None:
        if complete:
            return complete[-1]
        raise InsufficientDataError(
            f"the data hold no complete {_in_words(period)}",
            field="windows.period",
            value=_span(first, last),
            hint="a shorter windows.period, or run_date to judge an unfinished window",
        )
    wanted = period.window_at(run_date)
    for window in data:
        if window.start == wanted.start:
            return window
    raise InsufficientDataError(
        f"there is no data in the window of the run date, {wanted.label}",
        field="run_date",
        value=run_date.isoformat(),
        allowed=f"a date inside the data, {_span(first, last)}",
        hint="leave run_date empty for the last complete window, or check that the data of that day have arrived",
    )


def _default_reference(
    complete: Sequence[Window], current: Window, first: datetime, last: datetime, count: int
) -> list[Window]:
    if len(complete) > count:
        return list(complete[:count])
    earlier = [window for window in complete if window.start < current.start]
    if earlier:
        return earlier[:count]
    raise InsufficientDataError(
        f"no complete window lies before the current one, {current.label}, so there is nothing to compare it with",
        field="windows.reference",
        value=_span(first, last),
        hint="more data, a shorter windows.period, or windows.reference.start and .end",
    )


def _fixed_reference(
    period: Period, start: date, end: date, first: datetime, last: datetime
) -> tuple[list[Window], list[LeftOut]]:
    begin, stop = _midnight(start), _midnight(end)
    kept, cut = [], []
    for window in covering(period, begin, stop):
        if not window.complete:
            side = f"begins {start}" if window.start < begin else f"ends {end}"
            cut.append(LeftOut(window, f"the reference range {side}, inside this window"))
        elif window.end <= first or window.start > last:
            raise InsufficientDataError(
                f"the reference range goes beyond the data: there is none in {window.label}",
                field="windows.reference",
                value=f"{start} to {end}",
                allowed=f"dates inside the data, {_span(first, last)}",
            )
        elif (window := at_edges(window, first, last)).complete:
            kept.append(window)
        else:
            cut.append(LeftOut(window, _edge_reason(window, first, last)))
    if not kept:
        raise InsufficientDataError(
            f"the reference range holds no whole {_in_words(period)}",
            field="windows.reference",
            value=f"{start} to {end}",
            allowed=f"a longer range, inside the data ({_span(first, last)})",
        )
    return kept, cut


def _allowed_gap(window: Window) -> timedelta:
    return min((window.end - window.start) / 7, timedelta(days=1))


def at_edges(window: Window, first: datetime, last: datetime) -> Window:
    """The window with ``complete`` told by the data's first and last row."""
    gap = _allowed_gap(window)
    return replace(window, complete=first - window.start <= gap and window.end - last <= gap)


def _edge_reason(window: Window, first: datetime, last: datetime) -> str:
    if first - window.start > _allowed_gap(window):
        return f"the data begin {first:%Y-%m-%d %H:%M}, inside this window"
    return f"the data end {last:%Y-%m-%d %H:%M}, inside this window"


def _in_words(period: Period) -> str:
    return f"window of {period.days} days" if period.kind == "days" else period.kind


def _span(first: datetime, last: datetime) -> str:
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _beyond_time(moment: datetime | date) -> DataError:
    return DataError(
        "no window of this period can hold this moment, or the one before it",
        value=_utc(moment).isoformat(),
        allowed="event times well inside the years 1 to 9999",
        hint="placeholder times can be left out with source.filter",
    )


def _utc(moment: datetime | date) -> datetime:
    if not isinstance(moment, datetime):
        return _midnight(moment)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
