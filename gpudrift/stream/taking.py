"""Files and record batches to parts of windows, a sketch and a quality each, made aside: nothing is half done."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from gpudrift.errors import DataError, InsufficientDataError
from gpudrift.records import Window
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.source import CleanBatch, ParquetSource
from gpudrift.source.quality import BadRows, summarise
from gpudrift.source.times import DAY, to_datetime
from gpudrift.stream.stages import Stages
from gpudrift.stream.state import Part, Taken
from gpudrift.windows import Period, covering

_TICK = timedelta(microseconds=1)
MOST_SPANNED = 100_000  # windows between a file's first and last event time: placeholder times make many


class Interrupted(Exception):
    """The job was told to stop in the middle of a file; nothing of the file counts."""


@dataclass(frozen=True)
class Taker:
    """Takes rows apart by window.

    Args:
        own: labels of the windows the reference is made of; their rows are counted, not sketched.
        most: windows that may be open at a time.
    """

    plan: SketchPlan
    period: Period
    own: Collection[str]
    most: int
    stages: Stages = field(default_factory=Stages)

    def file(
        self,
        source: ParquetSource,
        prefix: str,
        floor: datetime | None,
        open_labels: Collection[str],
        stopping: Callable[[], bool] = lambda: False,
    ) -> Taken:
        """The rows of one file.

        Args:
            prefix: put before the names of rows without ids, so that files of one name in two folders stay apart.
            floor: windows that begin before it take no rows.
            open_labels: windows open now.

        Raises:
            DataError: the file is damaged, holds too many bad rows or too many windows.
            Interrupted: ``stopping`` said so.
        """
        taken = Taken()
        with self.stages("read"):
            try:
                extent = source.extent()
            except InsufficientDataError:
                return taken  # no rows, or none that pass the filter
            taken.first = extent.first
            if (extent.last - extent.first).days / self._days() > MOST_SPANNED:
                raise self._too_many(f"{extent.first:%Y-%m-%d} to {extent.last:%Y-%m-%d}")
            spanned = covering(self.period, extent.first, extent.last + _TICK)
            counts = source.count(spanned)
        wanted = []
        for window, count in zip(spanned, counts, strict=True):
            if not count:
                continue
            taken.until = window.end
            if window.label in self.own:
                taken.in_reference += count
            elif floor is not None and window.start < floor:
                taken.late += count
            else:
                wanted.append(replace(window, complete=True))
        self._refuse_many(wanted, open_labels)
        scan = source.scan(wanted, expect_dim=self.plan.dim)
        sketches = [Sketch.empty(self.plan) for _ in wanted]
        batches = iter(scan)
        while True:
            with self.stages("read"):
                batch = next(batches, None)
            if batch is None:
                break
            if stopping():
                raise Interrupted
            ids = batch.ids
            if prefix:
                ids = pc.binary_join_element_wise(_text(prefix), ids.cast(pa.large_string()), _text("/"))
            with self.stages("sketch"):
                sketches[batch.window].update(batch.rows, ids)
        taken.parts = {
            window: Part(sketch, quality)
            for window, sketch, quality in zip(wanted, sketches, scan.quality, strict=True)
        }
        taken.bad = sum(quality.rows_read - quality.rows_kept for quality in scan.quality) + extent.no_time
        return taken

    def batch(self, clean: CleanBatch, floor: datetime | None, open_labels: Collection[str]) -> Taken:
        """The rows of one record batch. Its bad rows are noted with the earliest window that takes rows of it.

        Raises:
            DataError: too many windows, or times outside the calendar.
        """
        taken = Taken(bad=clean.bad.total + clean.no_time)
        if not len(clean.micros):
            return taken
        days, of_row = np.unique(clean.micros // DAY, return_inverse=True)
        windows: list[Window] = []
        of_day = []
        for day in days:  # in order of time; there may be as many as rows
            moment = to_datetime(int(day) * DAY)
            if not windows or moment >= windows[-1].end:
                windows.append(self.period.window_at(moment))
            of_day.append(len(windows) - 1)
        codes = np.array(of_day)[of_row]
        taken.first, taken.until = to_datetime(int(clean.micros.min())), windows[-1].end
        wanted: dict[int, Window] = {}
        for k, (window, count) in enumerate(zip(windows, np.bincount(codes).tolist(), strict=True)):
            if window.label in self.own:
                taken.in_reference += count
            elif floor is not None and window.start < floor:
                taken.late += count
            else:
                wanted[k] = window
        self._refuse_many(list(wanted.values()), open_labels)
        for k, window in wanted.items():
            rows = np.flatnonzero(codes == k)
            sketch = Sketch.empty(self.plan)
            with self.stages("sketch"):
                if len(rows) == len(clean.rows):
                    sketch.update(clean.rows, clean.ids)
                else:
                    sketch.update(clean.rows[torch.from_numpy(rows)], clean.ids.take(pa.array(rows)))
            bad = BadRows() if taken.parts else clean.bad
            taken.parts[window] = Part(sketch, summarise(len(rows) + bad.total, bad, 0, 0))
        return taken

    def _days(self) -> float:
        window = self.period.window_at(datetime(2026, 1, 1, tzinfo=UTC))
        return (window.end - window.start).days

    def _refuse_many(self, wanted: list[Window], open_labels: Collection[str]) -> None:
        labels = {window.label for window in wanted} | set(open_labels)
        if len(labels) > self.most:
            raise self._too_many(f"{len(wanted)} windows, {wanted[0].label} to {wanted[-1].label}")

    def _too_many(self, value: str) -> DataError:
        return DataError(
            "its event times would open more windows than are held at a time",
            field="stream.max_windows",
            value=value,
            allowed=f"{self.most} windows with those open now",
            hint="mend placeholder times or leave them out with source.filter; score old data with job=backfill",
        )


def _text(value: str) -> Any:
    return pa.scalar(value, pa.large_string())
