"""Opening Parquet files and reading batches of them: where pyarrow's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpudrift.errors import DataError

# what pyarrow raises on damaged files; the last for names and text that are no longer UTF-8
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


@contextmanager
def damaged(path: str, column: str | None = None, row_group: int | None = None) -> Iterator[None]:
    """pyarrow's errors, several of which do not name the file, as one DataError that does."""
    try:
        yield
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
    """A ``pyarrow.parquet.ParquetFile`` that holds about 1 MB of a column at a time and checks page checksums."""
    with damaged(path):
        handle = filesystem.open_input_file(path)
    with handle:
        with damaged(path):
            file = pq.ParquetFile(
                handle,
                pre_buffer=False,
                buffer_size=1 << 20,
                page_checksum_verification=True,
                # Spark's 96-bit times overflow nanoseconds from 2262 on, silently
                coerce_int96_timestamp_unit="us",
            )
        yield file


def read_batches(reader: Any, path: str, row_group: int, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """Record batches of at most ``rows`` rows of one row group, on this thread.

    Raises:
        DataError: names the file, the row group and the column that cannot be read.
    """
    try:
        for batch in reader.iter_batches(rows, row_groups=[row_group], columns=columns, use_threads=False):
            batch.validate()  # a damaged footer can make columns of different lengths
            yield batch
    except _DAMAGE:
        with damaged(path, _damaged_column(reader, row_group, columns), row_group):
            raise


def _damaged_column(reader: Any, row_group: int, columns: Sequence[str]) -> str | None:
    """The first of the columns that cannot be read on its own; pyarrow does not say which it was."""
    for name in columns:
        try:
            for batch in reader.iter_batches(row_groups=[row_group], columns=[name], use_threads=False):
                batch.validate()
        except _DAMAGE:
            return name
    return None
