"""Record batches that come by another way than Parquet files (a pipe, a socket), cleaned as those are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gpudrift.errors import ConfigError, DataError, ReferenceMismatchError
from gpudrift.source import layouts, times
from gpudrift.source.cleaning import OpenBatch, plain
from gpudrift.source.layouts import Encoding
from gpudrift.source.layouts.columns import short_list
from gpudrift.source.names import row_ids
from gpudrift.source.quality import BadRows

_BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class CleanBatch:
    """The good rows of one record batch, in order.

    rows: (n, d) float32 on the CPU, fresh memory. micros: (n,) int64 event times, UTC microseconds of 1970. ids: (n,)
    text without nulls, ``origin:row`` where a row has none. segments: (n,) each. bad: what was left out for its vector;
    no_time: for want of an event time. rows_read = n + bad.total + no_time.
    """

    rows: Tensor
    micros: times.Micros
    ids: pa.Array
    segments: Mapping[str, pa.Array]
    bad: BadRows
    no_time: int
    rows_read: int


class ArrowBatches:
    """Cleans record batches of one schema; which column is what is told as to ``open_source``.

    Args:
        expect_dim: the length the vectors must have; None: that of the type, or the most common of the first batch that
            has any vectors.

    Raises:
        ConfigError: a column that is missing, there twice, or of a type not read.
        ReferenceMismatchError: vectors of another length than ``expect_dim``.
    """

    def __init__(
        self,
        schema: pa.Schema,
        *,
        embedding_column: str = "embedding",
        id_column: str | None = None,
        time_column: str = "event_time",
        segment_columns: Sequence[str] = (),
        encoding: Encoding | str | None = None,
        expect_dim: int | None = None,
    ) -> None:
        self._schema = schema
        self._embedding, self._id, self._time = embedding_column, id_column, time_column
        self._segments = tuple(segment_columns)
        if times.time_kind(self._type_of(time_column, "source.time_column")) is None:
            raise ConfigError(
                "this cannot be read as event times",
                field="source.time_column",
                value=f"{time_column} ({self._type_of(time_column, 'source.time_column')})",
                allowed=times.READABLE,
            )
        if id_column is not None:
            self._type_of(id_column, "source.id_column")
        for name in self._segments:
            self._type_of(name, "source.segment_columns")
        self._layout = layouts.layout_of(schema, embedding_column, encoding, "the batches' schema")
        self._dim = expect_dim if expect_dim is not None else self._layout.size
        if self._layout.size not in (None, self._dim):
            raise ReferenceMismatchError(
                f"the vectors have {self._layout.size} dimensions, {expect_dim} are expected",
                field=embedding_column,
                value=self._layout.describe(),
                allowed=f"vectors of {expect_dim} dimensions, from the encoder the reference was made with",
            )

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None until a batch has told it."""
        return self._dim

    def clean(self, batch: pa.RecordBatch, origin: str) -> CleanBatch:
        """The good rows of a batch. ``origin`` names it in errors, examples and the names of rows without ids.

        Raises:
            DataError: the batch is damaged, of another schema, or holds times that cannot be read.
        """
        if not batch.schema.equals(self._schema):
            raise DataError(
                "this batch has another schema than the first",
                where=origin,
                value=str(batch.schema)[:300],
                allowed=str(self._schema)[:300],
                hint="send batches of one schema through one stream",
            )
        with _named(origin):
            batch.validate(full=True)  # what comes over a pipe may point outside its buffers
        dim = self._dim_of(batch, origin)
        bad = BadRows()
        with _named(origin, self._time):
            micros, present = times.to_micros(batch.column(self._time), field=self._time, where=origin)
        codes = np.zeros(batch.num_rows, dtype=np.int64)
        if present is not None:
            codes[~present] = -1
        timed = np.flatnonzero(codes == 0)
        columns = {}
        for name in dict.fromkeys((*([] if self._id is None else [self._id]), *self._segments)):
            with _named(origin, name):
                columns[name] = plain(batch.column(name))
        with _named(origin, self._embedding):
            decoded = self._layout.decode(batch, dim, origin)

        def name_of(position: int) -> str:
            own = None if self._id is None else columns[self._id][position].as_py()
            return f"{origin}:{position}" if own is None else str(own)

        rows = torch.empty((len(timed), dim), dtype=torch.float32)
        opened = OpenBatch(decoded, dim, codes, columns, name_of)
        kept = opened.write(0, timed, rows, bad)
        return CleanBatch(
            rows=rows[: len(kept)],
            micros=micros[kept],
            ids=row_ids(None if self._id is None else opened.carried(self._id, kept), origin, kept),
            segments={name: opened.carried(name, kept) for name in self._segments},
            bad=bad,
            no_time=batch.num_rows - len(timed),
            rows_read=batch.num_rows,
        )

    def _dim_of(self, batch: pa.RecordBatch, origin: str) -> int:
        if self._dim is None:
            with _named(origin, self._embedding):
                self._dim = self._layout.common_length(batch, origin)
        return 1 if self._dim is None else self._dim  # no vector at all so far: every row is null, whatever the length

    def _type_of(self, name: str, setting: str) -> Any:
        places = self._schema.get_all_field_indices(name)
        if len(places) == 1:
            return self._schema.field(places[0]).type
        raise ConfigError(
            "there is more than one column of this name" if places else f"there is no column {name!r}",
            where="the batches' schema",
            field=setting,
            value=name,
            allowed=short_list(self._schema.names),
        )


@contextmanager
def _named(origin: str, column: str | None = None) -> Iterator[None]:
    """pyarrow's errors as one DataError that names the batch."""
    try:
        yield
    except _BROKEN as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the record batch cannot be read: {first_line[:300]}",
            where=origin,
            field=column,
            hint="send it again from its source",
        ) from error
