"""CSV files in passing: RFC 4180, UTF-8, a header line, commas; plain or compressed by gzip or zstd.

Every column is read as text: types guessed from the first rows would fail, or change values, where later rows differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import csv

from gpudrift.errors import InsufficientDataError
from gpudrift.source.access import damaged

CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.zst")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BLOCK = 8 << 20  # bytes parsed at a time; also the longest row


def is_csv(path: str) -> bool:
    return path.lower().endswith(CSV_SUFFIXES)


def csv_schema(filesystem: Any, path: str) -> Any:
    """The columns by name; their types mean nothing.

    Raises:
        DataError: the file is damaged, or has rows of different lengths. InsufficientDataError: it is empty.
    """
    with _opened(filesystem, path, csv.ConvertOptions()) as reader:
        with damaged(path):
            _ = reader.schema.names  # decodes them: a header need not be UTF-8, nor text at all
        return reader.schema


def csv_batches(filesystem: Any, path: str, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of these columns as large_string; a field with nothing in it is null, one that is '""' is empty.

    Raises:
        as ``csv_schema``.
    """
    text = dict.fromkeys(columns, pa.large_string())
    convert = csv.ConvertOptions(
        column_types=text,
        include_columns=list(columns),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    with _opened(filesystem, path, convert) as reader:
        while True:
            with damaged(path):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch


@contextmanager
def _opened(filesystem: Any, path: str, convert: Any) -> Iterator[Any]:
    with damaged(path):
        handle = filesystem.open_input_file(path)
    with handle:
        with damaged(path):
            if not handle.size():
                raise InsufficientDataError("the file is empty", where=path)
            codec = next((name for end, name in _CODECS.items() if path.lower().endswith(end)), None)
            reader = csv.open_csv(
                handle if codec is None else pa.CompressedInputStream(handle, codec),
                read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
        yield reader
