"""Opening Parquet files and reading batches of them: where pyarrow's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpudrift.errors import DataError
from gpudrift.source.steady import Store, StoreError

_LOCAL_BUFFER, _REMOTE_BUFFER, _TOGETHER = 1 << 20, 8 << 20, 16 << 20
# what pyarrow raises on damaged files; the last for names and text that are no longer UTF-8
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


@contextmanager
def damaged(path: str, column: str | None = None, row_group: int | None = None) -> Iterator[None]:
    """pyarrow's errors, several of which do not name the file, as one DataError that does."""
    try:
        yield
    except StoreError as error:
        raise DataError(
            str(error),
            where=path if row_group is None else f"{path}, row group {row_group}",
            field=column,
            hint=error.hint or "run again: nothing was written",
        ) from error
    except _DAMAGE as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the file cannot be read: {first_line[:300]}",
            where=path if row_group is None else f"{path}, row group {row_group}",
            field=column,
            hint="write this file again from its source, or leave it out with a narrower source.uri (a glob)",
        ) from error


@contextmanager
def open_parquet(filesystem: Any, path: str) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile`` that holds about 1 MB of a column at a time and checks page checksums.

    Of an object store it holds more, for fewer requests: a row group's columns of at most 16 MB in all, read ahead and
    together, or else 8 MB of each column.
    """
    with damaged(path):
        handle = filesystem.open_input_file(path)
    with handle:
        with damaged(path):
            file = _parquet(handle, buffer_size=_REMOTE_BUFFER if isinstance(filesystem, Store) else _LOCAL_BUFFER)
            if isinstance(filesystem, Store) and _largest_group(file.metadata) <= _TOGETHER:
                file = _parquet(handle, pre_buffer=True, metadata=file.metadata)
        yield file
        if isinstance(filesystem, Store):
            with damaged(path):
                filesystem.verify(path)


def _parquet(handle: Any, **options: Any) -> Any:
    return pq.ParquetFile(
        handle,
        **{"pre_buffer": False} | options,
        page_checksum_verification=True,
        # Spark's 96-bit times overflow nanoseconds from 2262 on, silently
        coerce_int96_timestamp_unit="us",
    )


def _largest_group(metadata: Any) -> int:
    """Compressed bytes of the largest row group's columns."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return max((sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups), default=0)


def read_batches(reader: Any, path: str, row_group: int, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """Record batches of at most ``rows`` rows of one row group, on this thread.

    Raises:
        DataError: names the file, the row group and the column that cannot be read.
    """
    try:
        for batch in reader.iter_batches(rows, row_groups=[row_group], columns=columns, use_threads=False):
            batch.validate()  # a damaged footer can make columns of different lengths
            yield batch
    except StoreError as error:
        with damaged(path, _column_at(reader, row_group, columns, error.offset), row_group):
            raise
    except _DAMAGE:
        with damaged(path, _damaged_column(reader, row_group, columns), row_group):
            raise


def _column_at(reader: Any, row_group: int, columns: Sequence[str], offset: int | None) -> str | None:
    """The column whose bytes lie there: asking a store that fails for each in turn would take as long again."""
    group = reader.metadata.row_group(row_group)
    for chunk in map(group.column, range(group.num_columns)):
        begin = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
        if offset is not None and begin <= offset < begin + chunk.total_compressed_size:
            return next((name for name in columns if chunk.path_in_schema.split(".")[0] == name.split(".")[0]), None)
    return None


def _damaged_column(reader: Any, row_group: int, columns: Sequence[str]) -> str | None:
    """The first of the columns that cannot be read on its own; pyarrow does not say which it was."""
    for name in columns:
        try:
            for batch in reader.iter_batches(row_groups=[row_group], columns=[name], use_threads=False):
                batch.validate()
        except _DAMAGE:
            return name
    return None
