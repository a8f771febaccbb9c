"""Which rows of which row groups lie in which window: counted from footers where they suffice, else from the time and
filter columns alone, so that the vectors can be read straight to their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpudrift.errors import ArgumentError
from gpudrift.records import Window
from gpudrift.source import times
from gpudrift.source.access import open_parquet, read_batches
from gpudrift.source.footers import Columns, DataFile, RowGroup, TimeBounds, plain_type
from gpudrift.source.rowfilter import RowFilter

_BATCH = 1 << 17  # rows of the small columns decoded at a time: about 1 MB of times
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class WindowIndex:
    """Finds the window of a time. Windows may come in any order and leave gaps, but must not overlap."""

    def __init__(self, windows: Sequence[Window]) -> None:
        starts = np.array([times.datetime_to_micros(window.start) for window in windows], dtype=np.int64)
        ends = np.array([times.datetime_to_micros(window.end) for window in windows], dtype=np.int64)
        self._order = np.argsort(starts, kind="stable")
        self._starts, self._ends = starts[self._order], ends[self._order]
        if (self._ends[:-1] > self._starts[1:]).any():
            raise ArgumentError("windows overlap", field="windows", value=[window.label for window in windows])

    def codes(self, micros: times.Micros) -> NDArray[np.int64]:
        """The window of each time, -1 for none."""
        if not len(self._starts):
            return np.full(len(micros), -1, dtype=np.int64)
        place = np.searchsorted(self._starts, micros, side="right") - 1
        inside = (place >= 0) & (micros < self._ends[place])
        return np.where(inside, self._order[place], -1)

    def touched(self, bounds: TimeBounds) -> bool:
        """Whether any window holds a time within the bounds."""
        return bounds.rows > 0 and bool(((self._starts <= bounds.last) & (self._ends > bounds.first)).any())

    def sole(self, bounds: TimeBounds) -> int | None:
        """The one window that holds every time within the bounds, if there is one."""
        first, last = self.codes(np.array([bounds.first, bounds.last], dtype=np.int64))
        return int(first) if first == last and first >= 0 else None


@dataclass(frozen=True)
class GroupPlan:
    """A row group's rows by window, windows without rows left out. ``sole``: every row of the group is in this one."""

    group: RowGroup
    counts: Mapping[int, int]
    sole: int | None


@dataclass(frozen=True)
class FilePlan:
    file: DataFile
    groups: tuple[GroupPlan, ...]


class SmallColumns:
    """Reads the time and filter columns and tells each row's window; the vectors are not touched."""

    def __init__(
        self, filesystem: Any, columns: Columns, row_filter: RowFilter | None, key_types: Mapping[str, Any]
    ) -> None:
        self._filesystem, self._columns = filesystem, columns
        self._filter, self._key_types = row_filter, key_types

    def names(self, file: DataFile) -> list[str]:
        """The time and filter columns that lie in the file itself."""
        return [name for name in dict.fromkeys((self._columns.time, *self._columns.filter)) if name in file.types]

    def filters_by_row(self, file: DataFile) -> bool:
        return any(name in file.types for name in self._columns.filter)

    def keeps_file(self, file: DataFile) -> bool:
        """False where the filter looks at folder keys alone and refuses the whole file."""
        if self._filter is None or self.filters_by_row(file):
            return True
        return len(self._filter.rows(self._filter_table(file, None, 1))) == 1

    def _may_pass(self, file: DataFile) -> set[int]:
        """Row groups that the filter does not rule out by their footer's statistics and the file's folder keys."""
        if self._filter is None:
            return {group.index for group in file.groups}
        keys = {name: (value, value) for name, value in file.keys.items() if name not in file.types}
        types = {
            name: plain_type(file.types[name]) if name in file.types else self._key_types[name]
            for name in self._columns.filter
        }
        possible = self._filter.may_pass([{**keys, **group.limits} for group in file.groups], types)
        return {group.index for group, may in zip(file.groups, possible, strict=True) if may}

    def passing(self, file: DataFile, batch: Any) -> NDArray[np.int64] | None:
        """Positions of the batch's rows that pass the filter, None: all of them."""
        if self._filter is None or not self.filters_by_row(file):
            return None
        return self._filter.rows(self._filter_table(file, batch, batch.num_rows))

    def micros(self, file: DataFile, batch: Any, where: str) -> tuple[times.Micros, NDArray[np.bool_] | None]:
        """Event time of each row of a batch, and which rows have one (None: all)."""
        if self._columns.time in file.types:
            return times.to_micros(batch.column(self._columns.time), field=self._columns.time, where=where)
        if file.moment is None:
            return np.zeros(batch.num_rows, dtype=np.int64), np.zeros(batch.num_rows, dtype=bool)
        return np.full(batch.num_rows, file.moment, dtype=np.int64), None

    def codes(self, file: DataFile, batch: Any, index: WindowIndex, where: str) -> Any:
        """The window of each row of a batch, -1 for rows in none and rows the filter refuses."""
        micros, present = self.micros(file, batch, where)
        codes = index.codes(micros)
        if present is not None:
            codes[~present] = -1
        passing = self.passing(file, batch)
        if passing is not None:
            refused = np.ones(len(codes), dtype=bool)
            refused[passing] = False
            codes[refused] = -1
        return codes

    def batches(self, file: DataFile, groups: Iterable[RowGroup]) -> Iterator[tuple[RowGroup, Any, str]]:
        """The small columns of some row groups, batch by batch, with the place to name in errors."""
        names = self.names(file)
        with open_parquet(self._filesystem, file.path) as reader:
            for group in groups:
                where = f"{file.path}, row group {group.index}"
                for batch in read_batches(reader, file.path, group.index, names, _BATCH):
                    yield group, batch, where

    def bounds(self, file: DataFile) -> DataFile:
        """The file with the bounds of every row group filled in, read where the footer or a filter demands it."""
        if not self.keeps_file(file):
            return replace(file, groups=())
        by_row = self.filters_by_row(file)
        possible = self._may_pass(file) if by_row else set(range(len(file.groups)))
        unknown = [group for group in file.groups if group.index in possible and (by_row or group.bounds is None)]
        found = {group.index: TimeBounds(0, 0, 0, 0) for group in file.groups if group.index not in possible}
        if not unknown and not found:
            return file
        found |= {group.index: TimeBounds(0, 0, 0, 0) for group in unknown}
        for group, batch, where in self.batches(file, unknown) if unknown else ():
            micros, present = self.micros(file, batch, where)
            passing = self.passing(file, batch)
            if passing is not None:
                micros, present = micros[passing], None if present is None else present[passing]
            timed = micros if present is None else micros[present]
            found[group.index] = _widen(found[group.index], timed, len(micros) - len(timed))
        groups = (replace(group, bounds=found.get(group.index, group.bounds)) for group in file.groups)
        return replace(file, groups=tuple(groups))

    def plan(self, file: DataFile, index: WindowIndex) -> FilePlan:
        """The row groups of a file (bounds filled in) that hold rows of the windows, with their counts."""
        plans: dict[int, GroupPlan] = {}
        unclear = []
        for group in file.groups:
            if group.bounds is None or not index.touched(group.bounds):
                continue
            sole = index.sole(group.bounds)
            if sole is None:
                unclear.append(group)
            else:
                whole = group.bounds.rows == group.rows
                plans[group.index] = GroupPlan(group, {sole: group.bounds.rows}, sole if whole else None)
        counts: dict[int, dict[int, int]] = {group.index: {} for group in unclear}
        if unclear:
            for group, batch, where in self.batches(file, unclear):
                codes = self.codes(file, batch, index, where)
                for code, count in zip(*np.unique(codes[codes >= 0], return_counts=True), strict=True):
                    here = counts[group.index]
                    here[int(code)] = here.get(int(code), 0) + int(count)
        plans |= {group.index: GroupPlan(group, counts[group.index], None) for group in unclear if counts[group.index]}
        return FilePlan(file, tuple(plans[i] for i in sorted(plans)))

    def _filter_table(self, file: DataFile, batch: Any, rows: int) -> Any:
        columns = {
            name: batch.column(name) if name in file.types else constant(file.keys[name], self._key_types[name], rows)
            for name in self._columns.filter
        }
        return pa.table(columns)


def constant(value: Any, arrow_type: Any, rows: int) -> Any:
    """A column that repeats one folder key."""
    return pa.nulls(rows, arrow_type) if value is None else pa.repeat(pa.scalar(value, arrow_type), rows)


def in_order(
    work: Callable[[_Item], _Result], items: Sequence[_Item], threads: int, stop: Event | None = None
) -> list[_Result]:
    """``work`` on every item, in threads. Of several failures the one of the earliest item is raised, whichever came
    first in time, so that a run over the same bad files ends with the same message. ``stop`` is set when the results
    are in, or will not be wanted."""
    if len(items) <= 1:  # a pool costs more than a small file
        try:
            return [work(item) for item in items]
        finally:
            if stop is not None:
                stop.set()
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(items)))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            if stop is not None:
                stop.set()
            for future in futures:
                future.cancel()


def _widen(bounds: TimeBounds, micros: times.Micros, no_time: int) -> TimeBounds:
    if not len(micros):
        return replace(bounds, no_time=bounds.no_time + no_time)
    first, last = int(micros.min()), int(micros.max())
    if bounds.rows:
        first, last = min(first, bounds.first), max(last, bounds.last)
    return TimeBounds(first, last, bounds.rows + len(micros), bounds.no_time + no_time)
