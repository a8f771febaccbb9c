"""Sums of product metrics by segment and window, and the series they make.

A key of the sums is a segment's number times ``_DAYS`` plus the day its window begins, counted from the year 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpudrift.errors import DataError
from gpudrift.history import ALL
from gpudrift.outcomes.exact_sums import BITS, ExactSums
from gpudrift.outcomes.records import Direction, OutcomeSeries
from gpudrift.records import Window, segment_text
from gpudrift.source.columns import Rows
from gpudrift.source.times import DAY
from gpudrift.windows import Period

MOST_WINDOWS = 20_000  # from the first time to the last
_EPOCH = date(1970, 1, 1).toordinal()
_DAYS = 1 << 22  # more than there are in 9999 years
_NAMED = 3  # windows named in a note

Places = NDArray[np.int64]


class Tally:
    """Metrics go in row by row, and come out by window. values: texts of each segment column that are looked at."""

    def __init__(self, metrics: Sequence[str], count: str | None, values: Mapping[str, Any], period: Period) -> None:
        self._metrics, self._count, self._values, self._period = metrics, count, values, period
        self._starts: dict[int, int] = {}  # day since 1970 -> first day of its window, as in keys
        self._sums = {name: ExactSums() for name in metrics}
        self._weights = {name: ExactSums() for name in metrics}
        self._rows: dict[str, dict[int, int]] = {name: {} for name in metrics}
        self._nulls = dict.fromkeys(metrics, 0)
        self._no_count = 0
        self._binary = dict.fromkeys(metrics, True)
        self._names = [ALL]  # of segments, by number
        for column, texts in values.items():
            self._names += [f"{column}={segment_text(text, 0)}" for text in texts.to_pylist()]

    def add(self, rows: Rows) -> None:
        days = self._window_days(rows)
        counts = None if self._count is None else rows.numbers[self._count]
        observed = np.ones(len(days), dtype=bool)
        if counts is not None:
            self._no_count += int(np.isnan(counts).sum())
            observed = np.nan_to_num(counts) > 0  # in a row of count 0 no value is missing
        keys, first = [days], 1
        for column, texts in self._values.items():
            places = pc.index_in(rows.texts[column], value_set=texts, skip_nulls=False).fill_null(-1)
            codes = places.to_numpy(zero_copy_only=False).astype(np.int64)
            keys.append(np.where(codes < 0, -1, (codes + first) * _DAYS + days))
            first += len(texts)
        for metric in self._metrics:
            values = rows.numbers[metric]
            known = observed & ~np.isnan(values)
            self._nulls[metric] += int((observed & np.isnan(values)).sum())
            self._binary[metric] &= bool(np.isin(values[known], (0.0, 1.0)).all())
            for own in keys:
                used = known & (own >= 0)
                weights = None if counts is None else counts[used]
                self._sums[metric].add(own[used], values[used], weights)
                if weights is not None:
                    self._weights[metric].add(own[used], weights)
                tally = self._rows[metric]
                for key, number in zip(*(a.tolist() for a in np.unique(own[used], return_counts=True)), strict=True):
                    tally[key] = tally.get(key, 0) + number

    def span(self, uri: str) -> tuple[Window, ...]:
        """Every window from the first with a value to the last, of whatever metric and segment."""
        days = [key % _DAYS for tally in self._rows.values() for key in tally]
        if not days:
            return ()
        windows = [self._window(min(days))]
        last = self._window(max(days))
        while windows[-1].start < last.start:
            if len(windows) == MOST_WINDOWS:
                raise DataError(
                    f"the times of this table span more than {MOST_WINDOWS:,} windows",
                    where=uri,
                    field="outcomes.time_column",
                    value=f"{windows[0].label} to {last.label}",
                    hint="leave placeholder times such as 1970-01-01 out of the table, or write null",
                )
            windows.append(self._period.next(windows[-1]))
        return tuple(windows)

    def counts_known(self, metric: str, records: bool) -> bool:
        """Whether the summed weights are observations. records: the rows are."""
        if self._count is not None or records:
            return True
        return self._binary[metric] and any(number > 1 for number in self._rows[metric].values())

    def segments(self, metric: str) -> list[int]:
        """Segments with a value, by number: ``all``, then by column and text."""
        found = sorted({key // _DAYS for key in self._rows[metric]})
        return sorted(found, key=lambda number: (number > 0, self._names[number]))

    def series(
        self, metric: str, worse: Direction, segment: int, known: bool, windows: Sequence[Window]
    ) -> OutcomeSeries:
        keys = [segment * _DAYS + self._day(window) for window in windows]
        weights = [self._weight(metric, key) for key in keys]
        held = [place for place, weight in enumerate(weights) if weight]
        span = slice(held[0], held[-1] + 1)
        means = [
            self._sums[metric].get(key) / weight if weight else np.nan
            for key, weight in zip(keys[span], weights[span], strict=True)
        ]
        counts = np.array([weight / (1 << BITS) for weight in weights[span]], dtype=np.float64)
        return OutcomeSeries(
            metric=metric,
            worse=worse,
            segment=self._names[segment],
            windows=tuple(windows[span]),
            values=np.array(means, dtype=np.float64),
            counts=counts if known else np.where(counts > 0, np.nan, 0.0),
        )

    def notes(self, metric: str, known: bool, windows: Sequence[Window]) -> list[str]:
        notes = []
        if self._no_count and metric == self._metrics[0]:
            notes.append(f"{self._count} is null in {_rows_left_out(self._no_count)}")
        if self._nulls[metric]:
            notes.append(f"{metric} is null or NaN in {_rows_left_out(self._nulls[metric])}")
        rows = {window: self._rows[metric].get(self._day(window), 0) for window in windows}
        several = [window.label for window in windows if rows[window] > 1]
        filled = sum(number > 0 for number in rows.values())
        if not filled:
            notes.append(f"{metric} has no value in any window")
        elif several and (not known or 2 * len(several) < filled):
            labels = ", ".join(several[:_NAMED]) + (", ..." if len(several) > _NAMED else "")
            how = "averaged by their counts" if known else "averaged as equals, since outcomes.count_column is not set"
            which = f"{len(several):,} of {filled:,} windows ({labels}) have several rows, up to {max(rows.values()):,}"
            notes.append(f"{metric}: {which}: {how}")
        return notes

    def _weight(self, metric: str, key: int) -> int:
        """The summed weights, in units of 2^-BITS."""
        if self._count is None:
            return self._rows[metric].get(key, 0) << BITS
        return self._weights[metric].get(key)

    def _window_days(self, rows: Rows) -> Places:
        """Of each row the day its window begins, counted from the year 1."""
        days, places = np.unique(rows.micros // DAY, return_inverse=True)
        for place, day in enumerate(days.tolist()):
            if day not in self._starts:
                try:
                    moment = date.fromordinal(day + _EPOCH)
                    self._starts[day] = self._day(self._period.window_at(moment))
                except (ValueError, OverflowError, DataError) as error:
                    raise DataError(
                        "this time lies at the end of the calendar, or beyond it",
                        where=rows.where(int(np.flatnonzero(places == place)[0])),
                        field="outcomes.time_column",
                        value=f"{day:,} days after 1970-01-01",
                        allowed="times well inside the years 1 to 9999; null where it is not known",
                    ) from error
        return np.array([self._starts[day] for day in days.tolist()], dtype=np.int64)[places]

    def _window(self, day: int) -> Window:
        return self._period.window_at(date.fromordinal(day))

    @staticmethod
    def _day(window: Window) -> int:
        return window.start.date().toordinal()


def _rows_left_out(rows: int) -> str:
    return "1 row, which is left out" if rows == 1 else f"{rows:,} rows, which are left out"
