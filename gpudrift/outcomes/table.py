"""Product metrics from a table to one value a window: the mean over the window's rows, weighted by their counts.

A table may hold a row a window, a row a day of a weekly job, or a row a request; a row's time decides its window. Sums
are exact (``exact_sums``) and rounded once: the order of rows, files and batches changes no bit, and a window of a
single row has that row's value to the last bit. Memory: one batch, and a number a metric, segment and window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gpudrift.errors import ArgumentError, ConfigError, DataError, InsufficientDataError
from gpudrift.history import ALL
from gpudrift.outcomes.exact_sums import ExactSums
from gpudrift.outcomes.records import Direction, OutcomeSeries
from gpudrift.outcomes.tally import Tally
from gpudrift.source.columns import Rows, Table, open_corpus, open_table
from gpudrift.source.parquet import ParquetSource
from gpudrift.windows import Period

CORPUS = "corpus"  # in place of an address: columns of the corpus itself
MOST_VALUES = 200  # of a segment column
MOST_DISTINCT = 10_000  # values of a segment column; with more it is none
MOST_COUNT = 1e15  # of a row
_SETTINGS: dict[Direction, str] = {"lower": "outcomes.lower_is_worse", "higher": "outcomes.higher_is_worse"}


def read_outcomes(
    uri: str,
    *,
    time_column: str,
    worse: Mapping[str, Direction],
    count_column: str | None = None,
    segment_columns: Sequence[str] = (),
    period: Period,
    source: ParquetSource | None = None,
) -> tuple[tuple[OutcomeSeries, ...], tuple[str, ...]]:
    """The metrics by window and segment, and notes on what was left out.

    Args:
        uri: Parquet or CSV: a file, directory or glob, local or in a store; ``corpus``: columns of ``source``, with its
            filter and time column.
        time_column: a timestamp, date or ISO-8601 text, in a column or the files' folders.
        worse: which way is worse, by metric. A metric is a column of numbers, or of truth values, whose mean is a rate;
            null and NaN are left out.
        count_column: observations behind a row's values; None: every row weighs the same.
        segment_columns: those the table has give a series a value, beside ``all``, which is of all rows. A column's
            ``MOST_VALUES`` values with the largest counts are kept.

    Returns:
        Series by metric (in the order of ``worse``) and segment (``all`` first); a metric without any value has none.
        Counts are the sums of ``count_column``. Without one they are the numbers of rows where rows are observations:
        in the corpus, and where a metric is 0 or 1 throughout and some window has several rows; else they are NaN.

    Raises:
        ArgumentError: a direction that is none; ``corpus`` without a source.
        ConfigError: nothing there; a column that does not exist or holds no numbers (or times).
        DataError: a damaged file; text or infinite values among numbers; negative counts; times that cannot be read.
        InsufficientDataError: no rows, or none with a time.
    """
    if not worse:
        raise ConfigError("no metric is named", field=", ".join(_SETTINGS.values()), allowed="columns of the table")
    for name, way in worse.items():
        if way not in _SETTINGS:
            raise ArgumentError("this is no direction", field=f"worse[{name!r}]", value=way, allowed=list(_SETTINGS))
    table = _opened(uri, time_column, source)
    numbers = {name: _SETTINGS[way] for name, way in worse.items()}
    if count_column is not None:
        numbers[count_column] = "outcomes.count_column"
    reading = _Reading(table, time_column, numbers, count_column)
    named = [name for name in dict.fromkeys(segment_columns) if name in table.names]
    values, notes = _segment_values(reading, named)
    tally = Tally(tuple(worse), count_column, values, period)
    no_time = seen = 0
    for rows in reading.rows(numbers, list(values)):
        no_time += rows.no_time
        seen += len(rows.micros)
        tally.add(rows)
    if not seen:
        raise InsufficientDataError(
            "no row of this table has a time" if no_time else "this table has no rows",
            field="outcomes.time_column" if no_time else "outcomes.uri",
            where=uri,
            value=time_column if no_time else uri,
        )
    if no_time:
        notes.append(f"{no_time:,} of {no_time + seen:,} rows have no {time_column} and are left out")
    windows = tally.span(uri)
    series = []
    for metric, way in worse.items():
        known = tally.counts_known(metric, table.time_column is not None)
        notes += tally.notes(metric, known, windows)
        series += [tally.series(metric, way, segment, known, windows) for segment in tally.segments(metric)]
    return tuple(series), tuple(notes)


def _opened(uri: str, time_column: str, source: ParquetSource | None) -> Table:
    if uri != CORPUS:
        return open_table(uri, "outcomes.uri")
    if source is None:
        raise ArgumentError("columns of the corpus need the source they are columns of", field="source", value=None)
    table = open_corpus(source)
    if time_column != table.time_column:
        raise ConfigError(
            "the corpus has its own time column",
            field="outcomes.time_column",
            value=time_column,
            allowed=f"{table.time_column} (source.time_column), or nothing",
        )
    return table


class _Reading:
    """Goes through the table, as often as it is asked to, with counts checked."""

    def __init__(self, table: Table, time: str, numbers: Mapping[str, str], count: str | None) -> None:
        self._table, self._time, self.count = table, (time, "outcomes.time_column"), count
        self._numbers = numbers

    def rows(self, numbers: Mapping[str, str], texts: Sequence[str]) -> Iterator[Rows]:
        for rows in self._table.rows(self._time, numbers, texts):
            if self.count is not None and self.count in rows.numbers:
                counts = rows.numbers[self.count]
                wrong = np.flatnonzero((counts < 0) | (counts > MOST_COUNT))
                if len(wrong):
                    raise DataError(
                        "a count is negative or too large",
                        where=rows.where(int(wrong[0])),
                        field="outcomes.count_column",
                        value=float(counts[wrong[0]]),
                        allowed=f"0 to {MOST_COUNT:g}; null where it is not known",
                    )
            yield rows

    def sizes(self, columns: Sequence[str]) -> Iterator[Rows]:
        """The rows with counts and segments alone (without counts: the first metric, since something must be read)."""
        name = next(iter(self._numbers)) if self.count is None else self.count
        return self.rows({name: self._numbers[name]}, columns)


def _segment_values(reading: _Reading, columns: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of each segment column that are looked at, those with the largest counts first, and notes."""
    numbers: dict[str, dict[str | None, int]] = {name: {} for name in columns}
    sums = {name: ExactSums() for name in columns}
    for rows in reading.sizes(columns) if columns else ():
        weights = np.ones(len(rows.micros)) if reading.count is None else np.nan_to_num(rows.numbers[reading.count])
        for name, known in numbers.items():
            if len(known) > MOST_DISTINCT:
                continue
            encoded = rows.texts[name].dictionary_encode(null_encoding="encode")
            own = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
            places = encoded.indices.to_numpy(zero_copy_only=False)
            sums[name].add(np.array(own, dtype=np.int64)[places], weights)
    kept, notes = {}, []
    for name, known in numbers.items():
        if len(known) > MOST_DISTINCT:
            notes.append(f"{name} has more than {MOST_DISTINCT:,} values and gives no segments")
            continue
        ranked = sorted(known, key=lambda text: (-sums[name].get(known[text]), text is None, text or ""))
        kept[name] = pa.array(ranked[:MOST_VALUES], pa.large_string())
        if len(ranked) > MOST_VALUES:
            told = f"the {MOST_VALUES} with the largest counts are looked at, the others within {ALL} alone"
            notes.append(f"{name} has {len(ranked):,} values: {told}")
    return kept, notes
