"""Windows tile time, carry the calendar's own labels, and a plan leaves partial windows out and says so."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudrift.errors import ArgumentError, ConfigError, DataError, InsufficientDataError
from gpudrift.windows import EPOCH_MONDAY, Period, covering, data_windows, parse_period, plan_windows

WEEK, DAY, MONTH = parse_period("week"), parse_period("day"), parse_period("month")
# 9999 days before or after these are still in the calendar
moments = st.datetimes(min_value=datetime(100, 1, 1), max_value=datetime(9900, 1, 1), timezones=st.just(UTC))
dates = st.dates(min_value=date(1900, 1, 1), max_value=date(2100, 1, 1))
periods = st.one_of(
    st.sampled_from([WEEK, DAY, MONTH]),
    st.builds(lambda n, anchor: parse_period(f"{n}d", anchor), st.integers(1, 9999), st.none() | dates),
)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@given(periods, moments)
def test_the_window_of_a_moment_holds_it(period: Period, moment: datetime) -> None:
    window = period.window_at(moment)
    assert window.start <= moment < window.end
    assert window.complete
    assert window == period.window_at(window.start) == period.window_at(window.end - timedelta(microseconds=1))


@given(periods, moments)
def test_windows_tile_time(period: Period, moment: datetime) -> None:
    window = period.window_at(moment)
    assert period.next(window).start == window.end
    assert period.previous(window).end == window.start
    assert period.previous(period.next(window)) == window == period.next(period.previous(window))


@given(periods, dates)
def test_labels_are_unique_and_sort_in_time_order(period: Period, day: date) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    windows = covering(period, start, period.window_at(start).start + 12 * (period.window_at(start).end - start) + DAYS)
    labels = [window.label for window in windows]
    assert labels == sorted(set(labels))


DAYS = timedelta(days=100)


@given(st.integers(1950, 2100), st.integers(-10, 10))
def test_weeks_are_iso_weeks_around_new_year(year: int, offset: int) -> None:
    day = date(year, 1, 1) + timedelta(days=offset)
    iso = day.isocalendar()
    window = WEEK.window_at(day)
    assert window.label == f"{iso.year}-W{iso.week:02d}"
    assert window.start.date() == date.fromisocalendar(iso.year, iso.week, 1)
    assert window.end - window.start == timedelta(days=7)


@given(st.integers(1, 400), dates, dates)
def test_windows_of_n_days_are_counted_from_the_anchor(days: int, anchor: date, day: date) -> None:
    window = parse_period(f"{days}d", anchor).window_at(day)
    assert (window.start.date() - anchor).days % days == 0
    assert window.end - window.start == timedelta(days=days)


def test_without_an_anchor_seven_days_are_calendar_weeks() -> None:
    assert EPOCH_MONDAY.isoweekday() == 1
    window = parse_period("7d").window_at(date(2026, 10, 31))
    assert (window.start, window.end) == (utc(2026, 10, 26), utc(2026, 11, 2))


@pytest.mark.parametrize(
    ("period", "day", "label", "start", "end"),
    [
        ("week", date(2026, 10, 25), "2026-W43", utc(2026, 10, 19), utc(2026, 10, 26)),
        ("week", date(2021, 1, 3), "2020-W53", utc(2020, 12, 28), utc(2021, 1, 4)),
        ("day", date(2026, 10, 31), "2026-10-31", utc(2026, 10, 31), utc(2026, 11, 1)),
        ("month", date(2024, 2, 29), "2024-02", utc(2024, 2, 1), utc(2024, 3, 1)),
        ("month", date(2026, 12, 31), "2026-12", utc(2026, 12, 1), utc(2027, 1, 1)),
        ("10d", date(2026, 10, 14), "2026-10-05+10d", utc(2026, 10, 5), utc(2026, 10, 15)),
    ],
)
def test_examples(period: str, day: date, label: str, start: datetime, end: datetime) -> None:
    window = parse_period(period, date(2026, 10, 5)).window_at(day)
    assert (window.label, window.start, window.end) == (label, start, end)


def test_moments_are_taken_in_utc() -> None:
    berlin = timezone(timedelta(hours=2))
    assert DAY.window_at(datetime(2026, 7, 1, 1, tzinfo=berlin)).label == "2026-06-30"
    assert DAY.window_at(datetime(2026, 7, 1, 1)).label == "2026-07-01"


@pytest.mark.parametrize("text", ["", "weeks", "0d", "-1d", "10", "1.5d", "10000d", "Week", "2w", "1d "])
def test_other_periods_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"windows\.period"):
        parse_period(text)


def test_a_moment_at_the_end_of_the_calendar_is_refused() -> None:
    with pytest.raises(DataError, match="9999-12-31"):
        WEEK.window_at(date(9999, 12, 31))


@pytest.mark.parametrize(
    ("text", "day"), [("week", date(1, 1, 8)), ("day", date(1, 12, 30)), ("month", date(1, 12, 1))]
)
def test_a_year_before_the_calendar_begins_is_refused(text: str, day: date) -> None:
    period = parse_period(text)
    with pytest.raises(DataError, match="0001"):
        period.year_before(period.window_at(day))


def test_the_window_before_the_first_of_the_calendar_is_refused() -> None:
    with pytest.raises(DataError, match="0001-01-01"):
        DAY.previous(DAY.window_at(date(1, 1, 1)))


@given(periods, dates, st.integers(0, 400 * 24))
def test_covering_touches_the_whole_range_and_marks_what_it_cuts(period: Period, day: date, hours: int) -> None:
    start = datetime(day.year, day.month, day.day, 5, tzinfo=UTC)
    end = start + timedelta(hours=hours)
    windows = covering(period, start, end)
    assert bool(windows) == (hours > 0)
    for window in windows:
        assert window.start < end
        assert window.end > start
        assert window.complete == (start <= window.start and window.end <= end)
    for one, following in pairwise(windows):
        assert one.end == following.start
    if windows:
        assert windows[0].start <= start
        assert windows[-1].end >= end


# Twenty full weeks, 2026-W02 to 2026-W21, and pieces of the weeks before and after.
FIRST, LAST = utc(2026, 1, 2, 8), utc(2026, 5, 27, 12)


def labels(windows: object) -> list[str]:
    return [window.label for window in windows]  # type: ignore[attr-defined]


def test_default_plan() -> None:
    plan = plan_windows(WEEK, FIRST, LAST)
    assert (plan.current.label, plan.previous.label) == ("2026-W21", "2026-W20")
    assert labels(plan.reference) == [f"2026-W{k:02d}" for k in range(2, 14)]
    assert plan.reference_is_default
    assert labels(item.window for item in plan.left_out) == ["2026-W01", "2026-W22"]
    assert "begin 2026-01-02 08:00" in plan.left_out[0].reason
    assert "end 2026-05-27 12:00" in plan.left_out[1].reason
    assert not any(item.window.complete for item in plan.left_out)
    assert plan.current.complete
    assert plan.previous.complete
    assert all(window.complete for window in plan.reference)


def test_the_default_reference_does_not_move_with_the_run_date() -> None:
    plans = [plan_windows(WEEK, FIRST, LAST, run_date=date(2026, 1, 7) + timedelta(weeks=k)) for k in range(20)]
    assert len({plan.reference for plan in plans}) == 1
    assert labels(plan.current for plan in plans) == [f"2026-W{k:02d}" for k in range(2, 22)]


def test_few_windows_give_those_before_the_current_one() -> None:
    last = utc(2026, 3, 1, 20)  # Sunday of W09: eight complete weeks
    assert labels(plan_windows(WEEK, FIRST, last).reference) == [f"2026-W{k:02d}" for k in range(2, 9)]
    early = plan_windows(WEEK, FIRST, last, run_date=date(2026, 1, 21))
    assert labels(early.reference) == ["2026-W02", "2026-W03"]


def test_twelve_complete_windows_leave_the_current_one_out_of_its_own_reference() -> None:
    last = utc(2026, 3, 29, 20)  # Sunday of W13
    plan = plan_windows(WEEK, FIRST, last)
    assert plan.current.label == "2026-W13"
    assert labels(plan.reference) == [f"2026-W{k:02d}" for k in range(2, 13)]


def test_no_window_before_the_current_one_is_insufficient() -> None:
    with pytest.raises(InsufficientDataError, match="2026-W02"):
        plan_windows(WEEK, FIRST, utc(2026, 1, 11, 20))


def test_no_complete_window_is_insufficient() -> None:
    with pytest.raises(InsufficientDataError, match="2026-01-02 08:00 to 2026-01-09 20:00"):
        plan_windows(WEEK, FIRST, utc(2026, 1, 9, 20))


def test_run_date_in_an_unfinished_window_is_flagged() -> None:
    plan = plan_windows(WEEK, FIRST, LAST, run_date=date(2026, 5, 26))
    assert plan.current.label == "2026-W22"
    assert not plan.current.complete
    assert plan.previous.complete
    assert labels(item.window for item in plan.left_out) == ["2026-W01"]  # the current window is not left out


def test_run_date_in_the_first_window_has_an_incomplete_previous_one() -> None:
    plan = plan_windows(WEEK, FIRST, LAST, run_date=date(2026, 1, 8))
    assert plan.previous.label == "2026-W01"
    assert not plan.previous.complete


@pytest.mark.parametrize("day", [date(2025, 12, 25), date(2026, 6, 1), date(2030, 1, 1)])
def test_run_date_beyond_the_data_is_insufficient(day: date) -> None:
    with pytest.raises(InsufficientDataError, match="run_date"):
        plan_windows(WEEK, FIRST, LAST, run_date=day)


def test_fixed_reference_leaves_out_the_windows_it_cuts() -> None:
    plan = plan_windows(WEEK, FIRST, LAST, reference_start=date(2026, 2, 1), reference_end=date(2026, 4, 1))
    assert labels(plan.reference) == [f"2026-W{k:02d}" for k in range(6, 14)]
    assert not plan.reference_is_default
    assert [(item.window.label, item.reason.split(",")[0]) for item in plan.left_out] == [
        ("2026-W01", "the data begin 2026-01-02 08:00"),
        ("2026-W05", "the reference range begins 2026-02-01"),
        ("2026-W14", "the reference range ends 2026-04-01"),
        ("2026-W22", "the data end 2026-05-27 12:00"),
    ]


def test_fixed_reference_leaves_out_the_partial_window_at_the_edge_of_the_data_once() -> None:
    plan = plan_windows(WEEK, FIRST, LAST, reference_start=date(2025, 12, 29), reference_end=date(2026, 3, 2))
    assert labels(plan.reference) == [f"2026-W{k:02d}" for k in range(2, 10)]
    assert labels(item.window for item in plan.left_out) == ["2026-W01", "2026-W22"]


def test_windows_of_n_days_begin_with_the_reference_range() -> None:
    period = parse_period("10d", date(2026, 1, 10))
    plan = plan_windows(period, FIRST, LAST, reference_start=date(2026, 1, 10), reference_end=date(2026, 4, 20))
    assert len(plan.reference) == 10
    assert plan.reference[0].label == "2026-01-10+10d"


@pytest.mark.parametrize(
    ("start", "end"),
    [(date(2025, 12, 1), date(2026, 3, 1)), (date(2026, 3, 1), date(2026, 7, 1)), (date(2020, 1, 1), date(2021, 1, 1))],
)
def test_reference_beyond_the_data_is_insufficient(start: date, end: date) -> None:
    with pytest.raises(InsufficientDataError) as caught:
        plan_windows(WEEK, FIRST, LAST, reference_start=start, reference_end=end)
    assert f"{start} to {end}" in str(caught.value)
    assert "2026-01-02 08:00 to 2026-05-27 12:00" in str(caught.value)


def test_reference_shorter_than_a_window_is_insufficient() -> None:
    with pytest.raises(InsufficientDataError, match="no whole week"):
        plan_windows(WEEK, FIRST, LAST, reference_start=date(2026, 2, 3), reference_end=date(2026, 2, 9))


def test_empty_windows_inside_the_data_are_planned_all_the_same() -> None:
    plan = plan_windows(
        DAY, utc(2026, 1, 1), utc(2026, 12, 31, 23), reference_start=date(2026, 3, 1), reference_end=date(2026, 4, 1)
    )
    assert len(plan.reference) == 31


def test_half_a_range_and_reversed_rows_are_refused() -> None:
    with pytest.raises(ArgumentError, match="both ends"):
        plan_windows(WEEK, FIRST, LAST, reference_start=date(2026, 2, 1))
    with pytest.raises(ArgumentError, match="last"):
        plan_windows(WEEK, LAST, FIRST)


@pytest.mark.parametrize(
    ("period", "allowed"),
    [
        ("week", timedelta(days=1)),
        ("month", timedelta(days=1)),
        ("day", timedelta(days=1) / 7),
        ("3d", timedelta(days=3) / 7),
    ],
)
def test_gap_allowed_at_the_edges(period: str, allowed: timedelta) -> None:
    """min(length / 7, 1 day), at both ends, to the microsecond."""
    cut = parse_period(period, date(2026, 1, 1))
    middle = cut.window_at(date(2026, 6, 15))
    before, after = cut.previous(middle), cut.next(middle)
    tick = timedelta(microseconds=1)
    just = plan_windows(cut, before.start + allowed, after.end - allowed)
    assert just.left_out == ()
    assert just.current == after
    late = plan_windows(cut, before.start + allowed + tick, after.end - allowed)
    assert [item.window.start for item in late.left_out] == [before.start]
    early = plan_windows(cut, before.start + allowed, after.end - allowed - tick)
    assert [item.window.start for item in early.left_out] == [after.start]
    assert early.current == middle


def test_data_windows_run_from_the_first_row_to_the_last() -> None:
    windows = data_windows(WEEK, FIRST, LAST)
    assert labels(windows) == [f"2026-W{k:02d}" for k in range(1, 23)]
    assert [window.label for window in windows if not window.complete] == ["2026-W01", "2026-W22"]


def test_a_last_row_at_the_edge_of_two_windows_lies_in_the_later_one() -> None:
    assert labels(data_windows(DAY, utc(2026, 1, 1), utc(2026, 1, 2))) == ["2026-01-01", "2026-01-02"]
