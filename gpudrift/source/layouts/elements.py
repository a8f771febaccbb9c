"""From stored values to floats: floats as they are, quantised integers, packed bits, and the bytes of any of them.

A quantised integer q stands for ``scale * (q - zero_point)``, a bit b for ``scale * (b - zero_point)``: 0 and 1 as it
is, -1 and +1 with scale 2 and zero point 0.5. Bits are taken from the highest of a byte down, as ``numpy.packbits``
puts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpudrift.errors import ConfigError

FLOATS = ("float16", "float32", "float64", "bfloat16", "float16_be", "float32_be", "float64_be")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
BITS = ("bits", "bits_int8")
ENCODINGS = (*FLOATS, *INTEGERS, *BITS)
POOLINGS = ("mean", "flatten")


@dataclass(frozen=True)
class Encoding:
    """What the configuration says about stored values, ``source.encoding`` and its neighbours."""

    name: str | None = None
    scale: float = 1.0
    zero_point: float = 0.0
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in ENCODINGS:
            raise ConfigError(
                "there is no such encoding", field="source.encoding", value=self.name, allowed=["null", *ENCODINGS]
            )
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise ConfigError(
                "this scale cannot be used", field="source.scale", value=self.scale, allowed="a finite number, not 0"
            )
        if not math.isfinite(self.zero_point):
            raise ConfigError(
                "this zero point cannot be used",
                field="source.zero_point",
                value=self.zero_point,
                allowed="a finite number",
            )
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ConfigError(
                "there is no such pooling", field="source.pooling", value=self.pooling, allowed=["null", *POOLINGS]
            )

    @property
    def scaled(self) -> bool:
        return self.scale != 1 or self.zero_point != 0


@dataclass(frozen=True)
class Element:
    """How flat stored values become floats: every ``stored`` of them make ``values`` floats. ``convert`` takes an Arrow
    array without nulls and gives one of floats; None: they are floats already. ``bytes``: memory a value takes."""

    name: str
    stored: int
    values: int
    bytes: float
    convert: Callable[[Any], Any] | None

    def stored_for(self, dim: int) -> int:
        """Stored values that make a vector of ``dim``; -2, the length of no row, where none do."""
        return -2 if dim * self.stored % self.values else dim * self.stored // self.values


def element_of(arrow_type: Any, encoding: Encoding, *, raw: bool, where: Any, column: str) -> Element:
    """The element of a column whose values are of this Arrow type; ``raw``: it is uint8 because they are bytes.

    Raises:
        ConfigError: a type that is not read; ``source.encoding`` is needed, or does not fit.
    """
    name, own = encoding.name, "bytes" if raw else str(arrow_type)
    if pa.types.is_floating(arrow_type):
        if name is not None or encoding.scaled:
            wrong = "encoding" if name is not None else "scale" if encoding.scale != 1 else "zero_point"
            raise ConfigError(
                f"source.{wrong} is for columns of bytes, integers or bits; this one holds {own}, which tells all",
                where=where,
                field=f"source.{wrong}",
                value=getattr(encoding, "name" if wrong == "encoding" else wrong),
                allowed=f"nothing for {column!r}: leave it out",
            )
        return Element(own, 1, 1, arrow_type.bit_width / 8, None)
    if not raw and not pa.types.is_integer(arrow_type):
        raise _unreadable(arrow_type, where, column)
    eight = raw or arrow_type in (pa.int8(), pa.uint8())
    fitting = _fitting(own, raw, eight)
    if name is None:
        raise ConfigError(
            f"the column {column!r} holds {own}, which does not tell what the values are",
            where=where,
            field="source.encoding",
            value=None,
            allowed=fitting,
            hint=_advice(own, raw, eight),
        )
    if name not in fitting:
        raise ConfigError(
            f"this encoding does not fit a column of {own}",
            where=where,
            field="source.encoding",
            value=name,
            allowed=fitting,
            hint=_advice(own, raw, eight),
        )
    if name in FLOATS and encoding.scaled:
        raise ConfigError(
            "source.scale and source.zero_point are for integers and bits, not for the bytes of floats",
            where=where,
            field="source.scale" if encoding.scale != 1 else "source.zero_point",
            value=encoding.scale if encoding.scale != 1 else encoding.zero_point,
            allowed=f"nothing with source.encoding={name}: leave it out",
        )
    label = own if own == name else f"{own} as {name}"
    if name in BITS:
        return Element(label, 1, 8, 4, _bits_converter(encoding, flip=name == "bits_int8"))
    if name in FLOATS:
        dtype = _FLOAT_DTYPES[name]
        return Element(label, dtype.itemsize, 1, 4 + dtype.itemsize, _bytes_converter(dtype, name == "bfloat16"))
    dtype = np.dtype(name).newbyteorder("<")
    return Element(label, dtype.itemsize if raw else 1, 1, 16, _integer_converter(encoding, dtype))


def _unreadable(arrow_type: Any, where: Any, column: str) -> ConfigError:
    return ConfigError(
        f"values of type {arrow_type} cannot be read as the numbers of a vector",
        where=where,
        field="source.embedding_column",
        value=column,
        allowed="floats, integers, bytes",
    )


def _fitting(own: str, raw: bool, eight: bool) -> list[str]:
    if raw:
        return [*FLOATS, *INTEGERS, "bits"]
    if eight:
        return [own, "bits", *(["bits_int8"] if own == "int8" else []), *FLOATS]
    return [own]


def _advice(own: str, raw: bool, eight: bool) -> str:
    if raw:
        return (
            "set source.encoding to the type the bytes were written with, such as source.encoding=float32 "
            "(little-endian; float32_be: big-endian), or source.encoding=bits for packed bits"
        )
    scale = f"set source.encoding={own} for quantised values, with source.scale and source.zero_point"
    if not eight:
        return scale
    packed = "source.encoding=bits for packed bits"
    if own == "int8":
        packed += " (source.encoding=bits_int8 where 128 was taken from each byte)"
    return f"{scale}, {packed}, or source.encoding=float32 and the like for the bytes of floats"


_FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype("<u2"),  # the upper half of a float32
    "float16_be": np.dtype(">f2"),
    "float32_be": np.dtype(">f4"),
    "float64_be": np.dtype(">f8"),
}


def _flat(values: Any) -> NDArray[Any]:
    """Numpy's view of an Arrow array without nulls; the bits of bytes are the same whatever their sign."""
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def _affine(raw: NDArray[Any], encoding: Encoding) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large a scale gives infinities, which are counted as such
        return ((raw.astype(np.float64) - encoding.zero_point) * encoding.scale).astype(np.float32)


def _integer_converter(encoding: Encoding, dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    table = None
    if dtype.itemsize == 1:
        table = _affine(np.arange(256, dtype=np.uint8).view(dtype), encoding)

    def convert(values: Any) -> Any:
        array = _flat(values)
        if table is not None:
            return pa.array(table.take(array.view(np.uint8)))
        return pa.array(_affine(array.view(dtype), encoding))

    return convert


def _bits_converter(encoding: Encoding, flip: bool) -> Callable[[Any], Any]:
    stored = np.arange(256, dtype=np.uint8)
    if flip:
        stored = stored ^ np.uint8(0x80)
    table = _affine(np.unpackbits(stored[:, None], axis=1), encoding)

    def convert(values: Any) -> Any:
        return pa.array(table.take(_flat(values).view(np.uint8), axis=0).reshape(-1))

    return convert


def _bytes_converter(dtype: np.dtype[Any], upper_half: bool) -> Callable[[Any], Any]:
    native = dtype.newbyteorder("=")

    def convert(values: Any) -> Any:
        array = _flat(values).view(np.uint8).view(dtype)
        if upper_half:
            return pa.array((array.astype(np.uint32) << 16).view(np.float32))
        if not array.flags.aligned or dtype != native:
            array = array.astype(native)
        return pa.array(array)

    return convert
