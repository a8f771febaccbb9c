"""The same vectors in every layout of docs/layouts.md, for the tests that read them back.

The values are the integers 1 to 9: float16, int8 with a scale, text and bytes hold them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

Row = list[int | None] | None
Rows = Sequence[Row]
SCALE, ZERO_POINT = 0.5, -3.0  # 1 to 9 are stored as -1 to 15


@dataclass(frozen=True)
class Form:
    """``make(rows, dim)``: the columns that hold the rows. ``ragged``, ``holes``: whether a row of another length, or a
    vector that lacks a value, can be written at all. ``settings``: what open_source must be told."""

    layout: str
    make: Callable[[Rows, int], dict[str, pa.Array]]
    ragged: bool = True
    holes: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def fit(self, rows: Rows, dim: int) -> list[Row]:
        """The rows with null in place of what this form cannot hold."""
        return [
            None
            if row is None or (len(row) != dim and not self.ragged) or (None in row and not self.holes)
            else list(row)
            for row in rows
        ]


def of_type(kind: Callable[[int], pa.DataType], dtype: str = "float32") -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        typed = [None if row is None else [v if v is None else np.dtype(dtype).type(v) for v in row] for row in rows]
        return {"embedding": pa.array(typed, kind(dim))}

    return make


def quantised(kind: Callable[[int], pa.DataType]) -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        return {"embedding": pa.array([_stored(row) for row in rows], kind(dim))}

    return make


def _stored(row: Row) -> Row:
    return None if row is None else [v if v is None else int(v / SCALE + ZERO_POINT) for v in row]


def as_bytes(dtype: str, kind: Callable[[int], pa.DataType]) -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        packed = [None if row is None else np.array(row, dtype).tobytes() for row in rows]
        return {"embedding": pa.array(packed, kind(dim * np.dtype(dtype).itemsize))}

    return make


def _bfloat16(rows: Rows, _: int) -> dict[str, pa.Array]:
    halves = [None if row is None else (np.array(row, "<f4").view("<u4") >> 16).astype("<u2").tobytes() for row in rows]
    return {"embedding": pa.array(halves, pa.binary())}


def _quantised_bytes(rows: Rows, _: int) -> dict[str, pa.Array]:
    packed = [None if row is None else np.array(_stored(row), "i1").tobytes() for row in rows]
    return {"embedding": pa.array(packed, pa.binary())}


def _bytes_in_list(rows: Rows, _: int) -> dict[str, pa.Array]:
    """As Spark's array<byte>: float32 bytes, one signed byte an item."""
    signed = [None if row is None else np.array(row, "<f4").view("i1").tolist() for row in rows]
    return {"embedding": pa.array(signed, pa.list_(pa.int8()))}


def _tensor(shape: Callable[[int], tuple[int, ...]]) -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        kind = pa.fixed_shape_tensor(pa.float32(), shape(dim))
        return {"embedding": pa.ExtensionArray.from_storage(kind, pa.array(rows, pa.list_(pa.float32(), dim)))}

    return make


def nested(kind: Callable[[int], pa.DataType]) -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        return {"embedding": pa.array([None if row is None else [row] for row in rows], kind(dim))}

    return make


def text(kind: pa.DataType, style: str = "[{}]") -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, _: int) -> dict[str, pa.Array]:
        lines = [
            None if row is None else style.format(",".join("null" if v is None else f"{v}" for v in row))
            for row in rows
        ]
        return {"embedding": pa.array(lines, kind)}

    return make


def wide(kind: pa.DataType, name: str = "dim_{}", first: int = 0) -> Callable[[Rows, int], dict[str, pa.Array]]:
    """A null row has a null in one of its columns. The columns are written last to first."""

    def make(rows: Rows, dim: int) -> dict[str, pa.Array]:
        whole = [[None] + [5] * (dim - 1) if row is None else row for row in rows]
        if pa.types.is_integer(kind):
            whole = [_stored(row) or [] for row in whole]
        if pa.types.is_float16(kind):
            whole = [[v if v is None else np.float16(v) for v in row] for row in whole]
        return {name.format(first + k): pa.array([row[k] for row in whole], kind) for k in reversed(range(dim))}

    return make


def _leaf(rows: Rows, _: int) -> dict[str, pa.Array]:
    """Null rows by turns: no struct, no inner struct, no vector."""
    absent: list[Any] = [None, {"lang": "en", "inner": None}, {"lang": "en", "inner": {"vector": None}}]
    items = [absent[k % 3] if row is None else {"lang": "en", "inner": {"vector": row}} for k, row in enumerate(rows)]
    inner = pa.struct({"rank": pa.int32(), "vector": pa.list_(pa.float32())})
    return {"payload": pa.array(items, pa.struct({"lang": pa.string(), "inner": inner}))}


SPARK = pa.struct(
    {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
)


def _spark(sparse: Callable[[int], bool]) -> Callable[[Rows, int], dict[str, pa.Array]]:
    def make(rows: Rows, _: int) -> dict[str, pa.Array]:
        vectors = []
        for k, row in enumerate(rows):
            if row is None:
                vectors.append(None)
            elif sparse(k):
                vectors.append({"type": 0, "size": len(row), "indices": list(range(len(row))), "values": row})
            else:
                vectors.append({"type": 1, "size": None, "indices": None, "values": row})
        return {"embedding": pa.array(vectors, SPARK)}

    return make


_AFFINE = {"scale": SCALE, "zero_point": ZERO_POINT}
_FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
_INTEGERS = {str(kind): kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())}
_VIEWS = {"list_view": pa.list_view, "large_list_view": pa.large_list_view}
_BYTES: dict[str, Callable[[int], pa.DataType]] = {
    "binary": lambda _: pa.binary(),
    "large_binary": lambda _: pa.large_binary(),
    "binary_view": lambda _: pa.binary_view(),
    "fixed_size_binary": pa.binary,
}
_DTYPES = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "float16_be": ">f2",
    "float32_be": ">f4",
    "float64_be": ">f8",
}

FORMS: dict[str, Form] = {
    **{
        f"fixed_size_list of {name}": Form(
            "fixed_size_list", of_type(lambda d, e=element: pa.list_(e, d), name), ragged=False
        )
        for name, element in _FLOATS.items()
    },
    **{
        f"list of {name}": Form("list", of_type(lambda _, e=element: pa.list_(e), name))
        for name, element in _FLOATS.items()
    },
    **{
        f"large_list of {name}": Form("large_list", of_type(lambda _, e=element: pa.large_list(e), name))
        for name, element in _FLOATS.items()
    },
    **{name: Form(name, of_type(lambda _, view=view: view(pa.float32()))) for name, view in _VIEWS.items()},
    "fixed_shape_tensor": Form("fixed_shape_tensor", _tensor(lambda d: (d,)), ragged=False),
    "fixed_shape_tensor of one row": Form("fixed_shape_tensor", _tensor(lambda d: (1, d)), ragged=False),
    "list_of_lists": Form("list_of_lists", nested(lambda _: pa.list_(pa.list_(pa.float32())))),
    "list_of_lists, large": Form("list_of_lists", nested(lambda _: pa.large_list(pa.large_list(pa.float64())))),
    "list_of_lists, one inner list": Form("list_of_lists", nested(lambda _: pa.list_(pa.list_(pa.float32()), 1))),
    "list_of_lists, fixed": Form(
        "list_of_lists", nested(lambda d: pa.list_(pa.list_(pa.float32(), d), 1)), ragged=False
    ),
    **{
        f"list of {name}": Form(
            "list", quantised(lambda _, e=element: pa.list_(e)), settings={"encoding": name, **_AFFINE}
        )
        for name, element in _INTEGERS.items()
    },
    "fixed_size_list of int8": Form(
        "fixed_size_list",
        quantised(lambda d: pa.list_(pa.int8(), d)),
        ragged=False,
        settings={"encoding": "int8", **_AFFINE},
    ),
    "list_view of int8": Form(
        "list_view", quantised(lambda _: pa.list_view(pa.int8())), settings={"encoding": "int8", **_AFFINE}
    ),
    "list of the bytes of float32": Form("list", _bytes_in_list, holes=False, settings={"encoding": "float32"}),
    **{
        f"{name} of float32": Form(
            name, as_bytes("<f4", kind), ragged="fixed" not in name, holes=False, settings={"encoding": "float32"}
        )
        for name, kind in _BYTES.items()
    },
    **{
        f"binary of {name}": Form("binary", as_bytes(dtype, _BYTES["binary"]), holes=False, settings={"encoding": name})
        for name, dtype in _DTYPES.items()
        if name != "float32"
    },
    "fixed_size_binary of float16_be": Form(
        "fixed_size_binary", as_bytes(">f2", pa.binary), ragged=False, holes=False, settings={"encoding": "float16_be"}
    ),
    "binary of bfloat16": Form("binary", _bfloat16, holes=False, settings={"encoding": "bfloat16"}),
    "binary of int8": Form("binary", _quantised_bytes, holes=False, settings={"encoding": "int8", **_AFFINE}),
    "text": Form("text", text(pa.string())),
    "text, large, in braces": Form("text", text(pa.large_string(), " {{{}}}\n")),
    "text, views, spaced": Form("text", text(pa.string_view(), "[ {} ]")),
    "text in a dictionary": Form("text", text(pa.dictionary(pa.int32(), pa.string()))),
    "wide": Form("wide", wide(pa.float32()), ragged=False, settings={"embedding_column": "dim_*"}),
    "wide of float16": Form("wide", wide(pa.float16()), ragged=False, settings={"embedding_column": "dim_*"}),
    "wide of int16": Form(
        "wide",
        wide(pa.int16()),
        ragged=False,
        settings={"embedding_column": "dim_*", "encoding": "int16", **_AFFINE},
    ),
    "wide by expression, from 1": Form(
        "wide", wide(pa.float64(), "e{:03d}.v2", 1), ragged=False, settings={"embedding_column": r"re:e0*(\d+)\.v2"}
    ),
    "list in a struct": Form("list", _leaf, settings={"embedding_column": "payload.inner.vector"}),
    "spark_vector, dense": Form("spark_vector", _spark(lambda _: False)),
    "spark_vector, sparse": Form("spark_vector", _spark(lambda _: True)),
    "spark_vector, mixed": Form("spark_vector", _spark(lambda k: k % 2 == 0)),
}
