"""What the files say about themselves: footers read and checked once, before any embedding is.

Every file must have the columns asked for, with the types of the first file. Where they differ pyarrow would go on,
with null rows, or with 1e300 read as infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from gpudrift.errors import ConfigError, DataError
from gpudrift.source import layouts, times
from gpudrift.source.access import damaged, open_parquet
from gpudrift.source.discovery import FoundFile
from gpudrift.source.layouts import Encoding, Layout
from gpudrift.source.layouts.columns import short_list
from gpudrift.source.times import Grain


@dataclass(frozen=True)
class Columns:
    """Which column is what. ``carried`` go along with the vectors: ids, clusters, segments."""

    embedding: str
    time: str
    id: str | None
    cluster: str | None
    segments: tuple[str, ...]
    filter: tuple[str, ...]

    @property
    def carried(self) -> tuple[str, ...]:
        named = (self.id, self.cluster, *self.segments)
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True)
class TimeBounds:
    """Event times of one row group: smallest and largest in microseconds (of the rows that pass the filter), the number
    of rows that have one, and the number that have none."""

    first: int
    last: int
    rows: int
    no_time: int


@dataclass(frozen=True)
class RowGroup:
    index: int
    first_row: int  # its position in the file
    rows: int
    bytes: int  # compressed size of the embeddings
    bounds: TimeBounds | None  # None where the footer does not tell
    limits: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # of filter columns: least and greatest value


@dataclass(frozen=True)
class DataFile:
    """One file's footer. ``types``: Arrow type by column of the columns asked for beside the vectors, those that lie in
    the file; the others are in ``keys``, the values of its folders. ``moment``: the time of every row, where a folder
    says it."""

    path: str
    keys: Mapping[str, Any]
    types: Mapping[str, Any]
    layout: Layout
    grain: Grain
    moment: int | None
    groups: tuple[RowGroup, ...]
    encoder_id: str | None

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def read_footer(
    filesystem: Any,
    found: FoundFile,
    key_types: Mapping[str, Any],
    columns: Columns,
    encoding: Encoding | None = None,
) -> DataFile:
    """One file's footer, checked on its own.

    Raises:
        ConfigError: a column is missing or of a type that cannot be used; ``check_alike`` tells whose fault it is.
        DataError: the file is damaged or not Parquet.
    """
    with open_parquet(filesystem, found.path) as file:
        with damaged(found.path):
            schema, metadata = file.schema_arrow, file.metadata
        types = _column_types(found, schema, columns)
        layout = layouts.layout_of(schema, columns.embedding, encoding, found.path, found.keys)
        keys = {
            name: int(value) if value is not None and pa.types.is_integer(key_types[name]) else value
            for name, value in found.keys.items()
        }
        moment, grain = _moment(found, columns.time, types)
        with damaged(found.path):
            groups = tuple(_row_groups(metadata, layout, columns, moment, columns.time in types))
            stored = (metadata.metadata or {}).get(b"encoder_id")
    encoder_id = None if stored is None else stored.decode("utf-8", "replace")
    return DataFile(found.path, keys, types, layout, grain, moment, groups, encoder_id)


def check_alike(files: Sequence[DataFile], columns: Columns) -> None:
    """Refuse files that differ from the first in where a column is, its type, or the length of the vectors.

    Raises:
        DataError: names both files.
    """
    first = files[0]
    for file in files[1:]:
        for name in (columns.time, *columns.carried, *columns.filter):
            if _kind(file, name, columns) != _kind(first, name, columns):
                raise _differs(name, file.path, _said(file, name), first.path, _said(first, name))
        if not file.layout.same_kind(first.layout):
            raise _differs(columns.embedding, file.path, file.layout.describe(), first.path, first.layout.describe())
        if file.layout.size != first.layout.size:
            raise DataError(
                f"the vectors have {file.layout.size} dimensions here, {first.layout.size} in {first.path}",
                where=file.path,
                field=columns.embedding,
                hint="vectors of two encoders cannot be compared: read one of them with a narrower source.uri",
            )


def plain_type(arrow_type: Any) -> Any:
    """The type a carried column is kept in: dictionaries decoded, text and bytes with 64-bit offsets, since a column of
    more than 2 GiB cannot be put together with 32-bit ones."""
    if pa.types.is_dictionary(arrow_type):
        return plain_type(arrow_type.value_type)
    if times.is_text(arrow_type):
        return pa.large_string()
    # nor has Arrow a take for views of bytes
    views = pa.types.is_binary(arrow_type) or pa.types.is_binary_view(arrow_type)
    return pa.large_binary() if views else arrow_type


def _column_types(found: FoundFile, schema: Any, columns: Columns) -> dict[str, Any]:
    types = {}
    for name in dict.fromkeys((columns.time, *columns.carried, *columns.filter)):
        places = schema.get_all_field_indices(name)
        if len(places) == 1:
            types[name] = schema.field(places[0]).type
        elif places:
            raise ConfigError("there is more than one column of this name", field=name, where=found.path)
        elif name not in found.keys:
            raise ConfigError(
                f"there is no column {name!r}",
                where=found.path,
                field=_setting(name, columns),
                value=name,
                allowed=short_list([*schema.names, *(key for key in found.keys if key not in schema.names)]),
            )
    return types


def _setting(name: str, columns: Columns) -> str:
    roles = {
        "source.time_column": (columns.time,),
        "source.id_column": (columns.id,),
        "source.cluster_column": (columns.cluster,),
        "source.segment_columns": columns.segments,
        "source.filter": columns.filter,
    }
    return next(setting for setting, names in roles.items() if name in names)


def _moment(found: FoundFile, column: str, types: Mapping[str, Any]) -> tuple[int | None, Grain]:
    """The time a folder gives to all rows (None: a column gives it, or the folder is the Hive null), and its grain."""
    if column in types:
        kind = times.time_kind(types[column])
        if kind is not None:
            return None, "day" if kind == "date" else "instant"
        received = f"{column} ({types[column]})"
    else:
        value = found.keys[column]
        if value is None:
            return None, "day"
        parsed = times.parse_key(value)
        if parsed is not None:
            return parsed
        received = f"{column}={value}"
    raise ConfigError(
        "this cannot be read as event times",
        where=found.path,
        field="source.time_column",
        value=received,
        allowed=times.READABLE,
        hint="write numbers such as seconds since 1970 as a timestamp: pandas.to_datetime(column, unit='s')"
        if column in types
        else None,
    )


def _row_groups(
    metadata: Any, layout: Layout, columns: Columns, moment: int | None, in_file: bool
) -> Iterator[RowGroup]:
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    whole, below = set(layout.columns), tuple(f"{name}." for name in layout.columns)
    vectors = [i for i, leaf in enumerate(leaves) if leaf.path in whole or leaf.path.startswith(below)]
    time_leaf = next((i for i, leaf in enumerate(leaves) if leaf.path == columns.time), None)
    unit = None if time_leaf is None else times.statistics_unit(leaves[time_leaf])
    compared = {leaf.path: i for i, leaf in enumerate(leaves) if leaf.path in columns.filter}
    first_row = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        bounds: TimeBounds | None = None
        if not in_file:
            missing = moment is None
            bounds = TimeBounds(
                moment or 0, moment or 0, 0 if missing else group.num_rows, group.num_rows if missing else 0
            )
        elif time_leaf is not None and unit is not None:
            bounds = _from_statistics(group.column(time_leaf).statistics, group.num_rows, unit)
        size = sum(group.column(i).total_compressed_size for i in vectors)
        limits = {name: _limits(group.column(i).statistics) for name, i in compared.items()}
        told = {name: pair for name, pair in limits.items() if pair is not None}
        yield RowGroup(index, first_row, group.num_rows, size, bounds, told)
        first_row += group.num_rows


def _from_statistics(statistics: Any, rows: int, unit: str) -> TimeBounds | None:
    if statistics is None or not statistics.has_null_count or not statistics.has_min_max:
        return None
    first, last = (times.raw_to_micros(raw, unit) for raw in (statistics.min_raw, statistics.max_raw))
    if first is None or last is None:
        return None
    return TimeBounds(first, last, rows - statistics.null_count, statistics.null_count)


def _limits(statistics: Any) -> tuple[Any, Any] | None:
    """Least and greatest value of a column, nulls and NaN apart, where they are numbers or text."""
    if statistics is None or not statistics.has_min_max:
        return None
    try:
        least, greatest = statistics.min, statistics.max
    except (UnicodeDecodeError, pa.ArrowException):
        return None  # a writer may cut long text inside a character
    return (least, greatest) if isinstance(least, (bool, int, float, str)) else None


def _kind(file: DataFile, name: str, columns: Columns) -> Any:
    """What must agree between files: timestamps of any unit and zone are one kind, text of any width another."""
    if name not in file.types:
        return "folder"
    arrow_type = file.types[name]
    kind = times.time_kind(arrow_type) if name == columns.time and name not in columns.carried else None
    return kind or plain_type(arrow_type)


def _said(file: DataFile, name: str) -> str:
    return str(file.types[name]) if name in file.types else "a folder key"


def _differs(column: str, path: str, found: str, first_path: str, first_found: str) -> DataError:
    return DataError(
        f"the files disagree: the column {column!r} is {found} here, {first_found} in {first_path}",
        where=path,
        field=column,
        hint="write the files with one schema, or read those of one kind with a narrower source.uri",
    )
