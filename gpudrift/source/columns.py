"""Plain columns of a table, batch after batch: times, numbers and texts of Parquet and CSV files, or of the corpus.

For what stands beside the embeddings, such as product metrics (``gpudrift.outcomes.table``). The corpus is read without
its vectors, with the source's filter and time column. Memory: one batch.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpudrift.errors import ConfigError, DataError, GpudriftError
from gpudrift.source import times
from gpudrift.source.access import open_parquet, read_batches
from gpudrift.source.csv_files import CSV_SUFFIXES, csv_batches, csv_schema, is_csv
from gpudrift.source.discovery import SUFFIXES, FoundFile, find_files, key_types
from gpudrift.source.layouts.columns import short_list
from gpudrift.source.names import as_text
from gpudrift.source.parquet import ParquetSource
from gpudrift.source.plain_values import Floats, Where, to_numbers, to_times
from gpudrift.source.planning import constant
from gpudrift.source.stores import is_address

_NOTHING = "there are no Parquet files"  # as find_files says it
_BATCH = 1 << 17  # rows
_QUERY = re.compile(r"\?(?:[A-Za-z_][\w.-]*=[^&?]*)(?:&[A-Za-z_][\w.-]*=[^&?]*)*$")


@dataclass(frozen=True)
class Rows:
    """Rows of one batch that have a time. micros: (n,) int64, UTC microseconds of 1970. numbers: (n,) float64 by
    column, NaN for null. texts: (n,) large_string by column, nulls kept. no_time: rows left out for want of one. where:
    the place of a row, for messages, by its position here."""

    micros: times.Micros
    numbers: Mapping[str, Floats]
    texts: Mapping[str, Any]
    no_time: int
    where: Where


@dataclass(frozen=True)
class _Batch:
    """Columns as they are stored. ``time`` None: the column ``time`` of ``columns``."""

    columns: Mapping[str, Any]
    where: Where
    time: tuple[times.Micros, NDArray[np.bool_] | None] | None = None


@dataclass(frozen=True)
class Table:
    """names: columns there are, folder keys among them, of the first file. time_column: that of the corpus; None: the
    user's to name."""

    names: tuple[str, ...]
    time_column: str | None
    _batches: Callable[[Mapping[str, str]], Iterator[_Batch]]

    def rows(self, time: tuple[str, str], numbers: Mapping[str, str], texts: Sequence[str]) -> Iterator[Rows]:
        """The rows, in the order of files and rows.

        Args:
            time: the column of times and the setting that names it, for messages. numbers: columns of numbers or truth
                values, each with its setting. texts: columns read as text, of any type.

        Raises:
            ConfigError: a column that the first file lacks or has in a type that cannot be read so.
            DataError: a later file that does not fit; a damaged file; text or infinite values among the numbers; times
                that cannot be read.
        """
        wanted = {time[0]: time[1], **dict.fromkeys(texts, "source.segment_columns"), **numbers}
        for batch in self._batches(wanted):
            micros, present = batch.time or to_times(batch.columns[time[0]], *time, batch.where)
            found = {name: to_numbers(batch.columns[name], name, told, batch.where) for name, told in numbers.items()}
            named = {name: as_text(batch.columns[name]) for name in texts}
            where, no_time = batch.where, 0
            if present is not None and not present.all():
                kept = np.flatnonzero(present)
                no_time = len(micros) - len(kept)
                micros = micros[kept]
                found = {name: values[kept] for name, values in found.items()}
                named = {name: values.take(pa.array(kept)) for name, values in named.items()}
                where = _at(batch.where, kept)
            yield Rows(micros, found, named, no_time, where)


def open_table(uri: str, setting: str) -> Table:
    """Parquet or CSV files: a file, a directory (its Parquet files, else its CSV files) or a glob, local or in a store.

    Args:
        setting: the setting that names the table, such as ``outcomes.uri``: for messages.

    Raises:
        ConfigError: there is nothing there. DataError: the first file is damaged.
    """
    with _told_as(setting):
        filesystem, files = _find(uri)
        types = key_types(files)
        names = (*_schema(filesystem, files[0].path).names, *files[0].keys)

    def batches(wanted: Mapping[str, str]) -> Iterator[_Batch]:
        for number, file in enumerate(files):
            with _told_as(setting), _first_decides(number, files[0].path):
                yield from _file_batches(filesystem, file, types, wanted)

    return Table(tuple(dict.fromkeys(names)), None, batches)


def open_corpus(source: ParquetSource) -> Table:
    """The rows of the corpus that pass its filter, with its event times; the vectors are not read."""
    filesystem, small, types, files, time = source.plain()
    with open_parquet(filesystem, source.files[0]) as reader:
        own = tuple(reader.schema_arrow.names)

    def batches(wanted: Mapping[str, str]) -> Iterator[_Batch]:
        for number, file in enumerate(files):
            with open_parquet(filesystem, file.path) as reader, _first_decides(number, source.files[0]):
                held = _held(reader.schema_arrow, file.path, file.keys, wanted)
                names = list(dict.fromkeys([*small.names(file), *held]))
                for group in file.groups:
                    if group.bounds is None or not group.bounds.rows + group.bounds.no_time:
                        continue  # the filter lets none of it pass
                    where = f"{file.path}, row group {group.index}"
                    for batch in read_batches(reader, file.path, group.index, names, _BATCH):
                        passing = small.passing(file, batch)
                        if passing is not None:
                            batch = batch.take(pa.array(passing))
                        columns = _columns(batch, file.keys, types, wanted)
                        yield _Batch(columns, _fixed(where), small.micros(file, batch, where))

    return Table(tuple(dict.fromkeys((*own, *types))), time, batches)


def _find(uri: str) -> tuple[Any, tuple[FoundFile, ...]]:
    """The files ``find_files`` finds; of a directory without Parquet files its CSV files."""
    try:
        return find_files(uri)
    except ConfigError as error:
        if error.message != _NOTHING:
            raise
        nothing = error
    query = _QUERY.search(uri) if is_address(uri) else None
    place, options = (uri, "") if query is None else (uri[: query.start()], query.group())
    if not is_address(uri) and Path(uri).is_dir():
        place = glob.escape(uri)
    filesystem, found = None, list[FoundFile]()
    for suffix in CSV_SUFFIXES:
        try:
            filesystem, files = find_files(f"{place.rstrip('/')}/**/*{suffix}{options}")
        except ConfigError as error:
            if error.message != _NOTHING:
                raise
        else:
            found += files
    if not found:
        raise ConfigError(
            "there are no Parquet or CSV files",
            field="source.uri",
            value=uri,
            allowed=f"names in {', '.join((*SUFFIXES, *CSV_SUFFIXES))}",
            hint="give a file, a directory that holds some, or a glob such as 'metrics/*.csv'",
        ) from nothing
    return filesystem, tuple(sorted(found, key=lambda file: file.path))


def _schema(filesystem: Any, path: str) -> Any:
    if is_csv(path):
        return csv_schema(filesystem, path)
    with open_parquet(filesystem, path) as reader:
        return reader.schema_arrow


def _file_batches(
    filesystem: Any, file: FoundFile, types: Mapping[str, Any], wanted: Mapping[str, str]
) -> Iterator[_Batch]:
    path = file.path
    keys = {
        name: int(value) if value is not None and pa.types.is_integer(types[name]) else value
        for name, value in file.keys.items()
    }
    held = _held(_schema(filesystem, path), path, keys, wanted)
    if is_csv(path):
        first = 1
        for batch in csv_batches(filesystem, path, held):
            yield _Batch(_columns(batch, keys, types, wanted), _numbered(path, first))
            first += batch.num_rows
        return
    with open_parquet(filesystem, path) as reader:
        for group in range(reader.metadata.num_row_groups):
            for batch in read_batches(reader, path, group, held, _BATCH):
                yield _Batch(_columns(batch, keys, types, wanted), _fixed(f"{path}, row group {group}"))


def _held(schema: Any, path: str, keys: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Those of the wanted columns that lie in the file; the others are keys of its folders."""
    held = []
    for name, setting in wanted.items():
        places = schema.get_all_field_indices(name)
        if len(places) > 1:
            raise ConfigError("there is more than one column of this name", where=path, field=setting, value=name)
        if places:
            held.append(name)
        elif name not in keys:
            raise ConfigError(
                f"there is no column {name!r}",
                where=path,
                field=setting,
                value=name,
                allowed=short_list([*schema.names, *(key for key in keys if key not in schema.names)]),
            )
    return held


def _columns(
    batch: Any, keys: Mapping[str, Any], types: Mapping[str, Any], wanted: Mapping[str, str]
) -> dict[str, Any]:
    there = set(batch.schema.names)
    return {
        name: batch.column(name) if name in there else constant(keys[name], types[name], batch.num_rows)
        for name in wanted
    }


def _fixed(where: str) -> Where:
    return lambda _: where


def _numbered(path: str, first: int) -> Where:
    return lambda place: f"{path}, row {first + place:,}"


def _at(where: Where, places: NDArray[np.int64]) -> Where:
    return lambda place: where(int(places[place]))


@contextmanager
def _first_decides(number: int, first: str) -> Iterator[None]:
    """What the first file has, the settings got right: a later file that lacks it does not fit."""
    try:
        yield
    except ConfigError as error:
        if number == 0:
            raise
        raise DataError(
            f"this file does not fit the first one, {first}: {error.message}",
            where=error.where,
            field=error.field,
            value=error.value,
            allowed=error.allowed,
            hint=error.hint,
        ) from error


@contextmanager
def _told_as(setting: str) -> Iterator[None]:
    """Errors of the source's own functions, told of this setting."""
    try:
        yield
    except GpudriftError as error:
        told: dict[str, Any] = {"field": setting if error.field in (None, "source.uri") else error.field}
        told |= {} if error.value is None else {"value": error.value}
        hint = None if error.hint is None else error.hint.replace("source.uri", setting)
        hint = None if hint is None else hint.replace("give a Parquet file", "give a Parquet or CSV file")
        raise type(error)(error.message, where=error.where, allowed=error.allowed, hint=hint, **told) from error
