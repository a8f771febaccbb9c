"""From a ``source.uri`` and the names of columns to a ``ParquetSource`` whose files are known to fit together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from gpudrift.errors import ArgumentError, ConfigError, DataError
from gpudrift.source.discovery import FoundFile, find_files, key_types
from gpudrift.source.footers import Columns, DataFile, check_alike, read_footer
from gpudrift.source.layouts import Encoding
from gpudrift.source.parquet import OnBadRows, ParquetSource
from gpudrift.source.planning import in_order
from gpudrift.source.rowfilter import parse_filter
from gpudrift.source.steady import Store


def open_source(
    uri: str,
    *,
    embedding_column: str = "embedding",
    id_column: str | None = None,
    time_column: str = "event_time",
    cluster_column: str | None = None,
    segment_columns: Sequence[str] = (),
    encoding: str | None = None,
    scale: float = 1.0,
    zero_point: float = 0.0,
    pooling: str | None = None,
    encoder_id: str | None = None,
    filter: Any = None,
    threads: int = 0,
    on_bad_rows: OnBadRows = "drop",
    max_bad_fraction: float = 0.01,
) -> ParquetSource:
    """Find the files and check every footer; no embedding is read.

    Args:
        uri: a Parquet file, a directory, a glob, or a data set in ``key=value`` folders, whose keys may serve as id,
            time, cluster, segment and filter columns.
        embedding_column: a column, the dotted path of a struct's field, or a pattern for one column a dimension
            (``dim_*``; ``re:`` and an expression with one group for the number).
        encoding, scale, zero_point: what bytes, integers and bits stand for, see ``layouts/elements.py``.
        pooling: "mean" or "flatten" for rows of several vectors, see ``layouts/lists.py``.
        encoder_id: name of the model; None: the key ``encoder_id`` of the files' own metadata, where every file has it.
        filter: rows to keep, see ``rowfilter.py``.
        threads: parts of files read at a time; 0: one a core, at most 8; 8 for an object store.
        on_bad_rows: "fail" allows no bad row, "drop" at most ``max_bad_fraction`` of a window's rows (and of all rows,
            for rows without an event time).

    Raises:
        ConfigError: nothing there; a column that does not exist or is of a type not read; a filter that cannot work.
        DataError: a file is damaged, or does not fit the first one.
    """
    if on_bad_rows not in ("drop", "fail"):
        raise ArgumentError("there is no such policy", field="on_bad_rows", value=on_bad_rows, allowed=["drop", "fail"])
    row_filter = parse_filter(filter)
    stored = Encoding(encoding, scale, zero_point, pooling)
    columns = Columns(
        embedding_column,
        time_column,
        id_column,
        cluster_column,
        tuple(segment_columns),
        () if row_filter is None else row_filter.columns,
    )
    filesystem, found = find_files(uri)
    # threads that read from an object store wait more than they compute
    workers = threads or (8 if isinstance(filesystem, Store) else min(8, os.cpu_count() or 1))
    types = key_types(found)
    numbered = list(enumerate(found))

    def footer(item: tuple[int, FoundFile]) -> DataFile:
        try:
            return read_footer(filesystem, item[1], types, columns, stored)
        except ConfigError as error:
            if item[0] == 0:
                raise
            # what the first file has, the settings got right
            received = "" if error.value is None else f" ({error.value})"
            raise DataError(
                f"this file does not fit the first one, {found[0].path}: {error.message}{received}",
                where=item[1].path,
                field=error.field,
                allowed=error.allowed,
                hint="write the files with one schema, or read those of one kind with a narrower source.uri",
            ) from error

    files = tuple(in_order(footer, numbered, workers))
    check_alike(files, columns)
    if row_filter is not None:
        row_filter.rows(
            pa.table({name: pa.nulls(0, files[0].types.get(name, types.get(name))) for name in row_filter.columns})
        )
    return ParquetSource(
        filesystem,
        files,
        types,
        columns,
        row_filter,
        encoder_id=encoder_id or _stored_encoder(files),
        threads=workers,
        on_bad_rows=on_bad_rows,
        max_bad_fraction=max_bad_fraction,
    )


def _stored_encoder(files: Sequence[DataFile]) -> str | None:
    """The encoder the files name, None where any does not; two names are an error."""
    first = next((file for file in files if file.encoder_id is not None), None)
    for file in files:
        if first is not None and file.encoder_id not in (None, first.encoder_id):
            raise DataError(
                f"the files name different encoders: {file.encoder_id!r} here, {first.encoder_id!r} in {first.path}",
                where=file.path,
                field="encoder_id (Parquet metadata)",
                hint="narrow source.uri to one encoder's files, or set source.encoder_id if both names mean one",
            )
    return files[0].encoder_id if all(file.encoder_id is not None for file in files) else None
