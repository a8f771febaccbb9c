"""What a layout is: which columns to read, how much memory a value of them takes, and how a batch becomes floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
NONE: Positions = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Decoded:
    """The vectors of one batch.

    values: flat Arrow float array without nulls, dim values a vector. rows: the batch row of each vector, None when all
    rows have one. null: rows without a vector that can be read, or with a vector that lacks a value. ragged: rows of
    another length, with those lengths beside them.
    """

    values: Any
    rows: Positions | None
    null: Positions
    ragged: Positions
    ragged_lengths: Positions


class Matrices(Protocol):
    """Keeps the shape that the matrices of one file must have. met: that of the first, and where it stood."""

    @property
    def met(self) -> tuple[tuple[int, int], str] | None: ...

    def meet(self, shape: tuple[int, int], where: str) -> None:
        """Raises DataError where an earlier one had another shape."""


@dataclass(frozen=True)
class Layout:
    """How the embeddings of one file are stored. Pickles as what it was made of.

    name: the layout's, as in docs/layouts.md. element: type of a stored value. size: the vector length where the type
    fixes it. columns: what to read, paths of Parquet columns. value_bytes: memory a value takes while it is decoded.
    decode: ``(batch, dim, where)`` to the vectors of dim values; ``where`` names file and row group in errors.
    lengths: ``(batch, where)`` to the length of each row's vector, -1 where there is none. matrices: of lists of lists
    alone. origin: function and arguments that make an equal layout.
    """

    name: str
    element: str
    size: int | None
    columns: tuple[str, ...]
    value_bytes: float
    decode: Callable[[Any, int, str], Decoded]
    lengths: Callable[[Any, str], Positions]
    matrices: Matrices | None = None
    origin: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.origin

    def describe(self) -> str:
        length = "" if self.size is None else f"[{self.size}]"
        return f"{self.name}<{self.element}>{length}"

    def same_kind(self, other: Layout) -> bool:
        """True when two files can be read together, their vector lengths apart."""
        return self.name == other.name and self.element == other.element

    def common_length(self, batch: Any, where: str) -> int | None:
        """The most common length of the non-empty vectors of a batch, None when there is none."""
        lengths = self.lengths(batch, where)
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return None
        found, counts = np.unique(lengths, return_counts=True)
        return int(found[counts.argmax()])
