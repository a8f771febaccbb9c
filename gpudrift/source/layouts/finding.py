"""Which layout a file's embeddings have: told by its schema, and by the configuration where the schema cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from gpudrift.errors import ConfigError
from gpudrift.source.layouts.columns import (
    decode_spark,
    decode_wide,
    is_spark_vector,
    numbered_columns,
    numbered_families,
    short_list,
    spark_lengths,
    wide_lengths,
)
from gpudrift.source.layouts.elements import Encoding, element_of
from gpudrift.source.layouts.lists import NestedLists, decode_lists, lengths_of, values_in
from gpudrift.source.layouts.records import Layout
from gpudrift.source.layouts.text import parse_vectors

# every layout by its name; docs/layouts.md has who writes them
LAYOUTS = {
    "fixed_size_list": "lists of one length",
    "list": "lists",
    "large_list": "lists with 64-bit offsets",
    "list_view": "list views",
    "large_list_view": "list views with 64-bit offsets",
    "fixed_shape_tensor": "tensors, Arrow's canonical extension",
    "list_of_lists": "lists of lists",
    "binary": "bytes",
    "large_binary": "bytes with 64-bit offsets",
    "binary_view": "views of bytes",
    "fixed_size_binary": "bytes of one length",
    "text": "text such as [1,2,3]",
    "wide": "one column a dimension",
    "spark_vector": "Spark's VectorUDT",
}
READABLE = (
    "lists (fixed-size, variable, large, views; of floats, or with source.encoding of integers or packed bits), "
    "tensors, lists of lists, binary columns with source.encoding, text such as [1,2,3], one column a dimension "
    "(source.embedding_column='dim_*'), a struct's field (payload.vector), Spark vectors"
)
_Array = Callable[[Any], Any]


def layout_of(
    schema: Any, column: str, encoding: Encoding | str | None = None, where: Any = None, keys: Iterable[str] = ()
) -> Layout:
    """The layout of the embeddings in a file, or in record batches, of this schema.

    Args:
        encoding: all of the settings, or ``source.encoding`` alone.
        column: a column, or the dotted path of a struct's field; or a pattern, see ``numbered_columns``. A column whose
            own name has dots or a star wins.
        keys: other columns to name where this one is missing.

    Raises:
        ConfigError: no such column, a type that is not read, or one that needs ``source.encoding`` or
            ``source.pooling``; the message says which value.
    """
    encoding = encoding if isinstance(encoding, Encoding) else Encoding(encoding)
    if column not in schema.names:
        wide = numbered_columns(schema.names, column, where)
        if wide is not None:
            return _wide(schema, column, wide, encoding, where)
    path = _path(schema, column)
    if path is None:
        raise ConfigError(
            f"there is no column {column!r}",
            where=where,
            field="source.embedding_column",
            value=column,
            allowed=short_list([*schema.names, *(key for key in keys if key not in schema.names)]),
            hint=_suggestion(schema),
        )
    kind = _once(schema, path[0], where).type
    for name in path[1:]:
        kind = kind.field(name).type
    return _made(_single, kind, path, encoding, column, where)


def _made(function: Callable[..., Layout], *arguments: Any) -> Layout:
    """The layout a function gives, which pickles as the function and its arguments: decoders are no data."""
    return replace(function(*arguments), origin=(_made, (function, *arguments)))


def _suggestion(schema: Any) -> str | None:
    """The columns that look like vectors: numbers in lists and tensors, also in structs, and in numbered columns."""
    found = []
    fields = [(field.name, field.type) for field in schema]
    while fields:
        name, kind = fields.pop(0)
        if pa.types.is_struct(kind) and not is_spark_vector(kind):
            fields += [(f"{name}.{inner.name}", inner.type) for inner in kind]
        elif is_spark_vector(kind) or _holds_numbers(kind):
            found.append(f"source.embedding_column={name}")
    for pattern, names in numbered_families(schema.names).items():
        kind = schema.field(schema.names.index(names[0])).type
        if _is_number(kind):
            found.append(f"'source.embedding_column={pattern}' (one column a dimension)")
    return f"set {' or '.join(found[:3])}" if found else None


def _path(fields: Any, column: str) -> list[str] | None:
    """The steps from the schema to a column: fields may have dots in their names, the longest name wins."""
    names = fields.names if isinstance(fields, pa.Schema) else [field.name for field in fields]
    if column in names:
        return [column]
    for cut in range(len(column) - 1, 0, -1):
        head = column[:cut]
        if column[cut] != "." or names.count(head) != 1:
            continue
        inner = fields.field(head).type
        rest = _path(inner, column[cut + 1 :]) if pa.types.is_struct(inner) else None
        if rest is not None and inner.get_field_index(rest[0]) >= 0:
            return [head, *rest]
    return None


def _once(schema: Any, name: str, where: Any) -> Any:
    if len(schema.get_all_field_indices(name)) > 1:
        raise ConfigError("there is more than one column of this name", field=name, where=where)
    return schema.field(name)


def _picker(path: Sequence[str]) -> _Array:
    def pick(batch: Any) -> Any:
        array = batch.column(path[0])
        for name in path[1:]:
            array = array.flatten()[array.type.get_field_index(name)]  # with the nulls of the struct
        return array

    return pick


def _single(kind: Any, path: Sequence[str], encoding: Encoding, column: str, where: Any) -> Layout:
    """A layout of one array a batch. Whatever it is becomes lists first, without a copy where that can be."""
    pick, columns = _picker(path), (".".join(path),)
    prepare: _Array = _same
    if pa.types.is_dictionary(kind):
        kind, prepare = kind.value_type, _then(prepare, _decode_dictionary)
    if is_spark_vector(kind):
        _no_pooling(encoding, column, where)
        element = element_of(kind.field("values").type.value_type, encoding, raw=False, where=where, column=column)
        return Layout(
            "spark_vector",
            element.name,
            None,
            columns,
            32,
            lambda batch, dim, _: decode_spark(prepare(pick(batch)), dim),
            lambda batch, _: spark_lengths(prepare(pick(batch))),
        )
    shape: tuple[int, ...] | None = None
    name = ""
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType):
            name, shape = "fixed_shape_tensor", _shape_of(kind, column, where)
        kind, prepare = kind.storage_type, _then(prepare, _storage)
    found = _as_lists(kind)
    if found is None:
        raise _not_read(kind, column, where)
    own, lists, prepare_lists, memory = found
    name, prepare = name or own, _then(prepare, prepare_lists)
    size = lists.list_size if pa.types.is_fixed_size_list(lists) else None
    raw = own.endswith("binary") or own == "binary_view"
    if _is_list(lists.value_type):
        inner = lists.value_type
        element = element_of(inner.value_type, encoding, raw=False, where=where, column=column)
        inner_size = inner.list_size if pa.types.is_fixed_size_list(inner) else None
        if encoding.pooling == "mean":
            size = inner_size
        else:
            size = None if size is None or inner_size is None else size * inner_size
        nested = NestedLists(element, encoding.pooling, pa.types.is_fixed_size_list(lists), column)
        return Layout(
            "list_of_lists",
            element.name,
            _dimension(None if size is None else int(values_in(size, element)), kind, column, where),
            columns,
            element.bytes + (8 if encoding.pooling == "mean" else 0),
            lambda batch, dim, at: nested.decode(prepare(pick(batch)), dim, at),
            lambda batch, at: nested.lengths(prepare(pick(batch)), at),
            nested,
        )
    vectors = 1
    if encoding.pooling == "mean" and shape is not None and len(shape) == 2:
        vectors = shape[0]
    elif shape is None or len(shape) < 2:
        _no_pooling(encoding, column, where)
    elif encoding.pooling == "mean":
        raise _pooling_refused(f"of {len(shape)}-dimensional tensors, only of 2-dimensional ones", column, where)
    element = element_of(lists.value_type, encoding, raw=raw, where=where, column=column)
    if size is not None and size * element.values % element.stored:
        raise ConfigError(
            f"{size} bytes do not make whole values of {encoding.name}",
            where=where,
            field="source.encoding",
            value=encoding.name,
            allowed="an encoding whose size divides that",
        )
    return Layout(
        name,
        element.name,
        _dimension(None if size is None else int(values_in(size, element, vectors)), kind, column, where),
        columns,
        max(memory, element.bytes * vectors),
        lambda batch, dim, _: decode_lists(prepare(pick(batch)), dim, element, vectors),
        lambda batch, _: values_in(lengths_of(prepare(pick(batch))), element, vectors),
    )


def _wide(schema: Any, pattern: str, names: list[str], encoding: Encoding, where: Any) -> Layout:
    _no_pooling(encoding, pattern, where)
    types = [_once(schema, name, where).type for name in names]
    for name, kind in zip(names, types, strict=True):
        if kind != types[0]:
            raise ConfigError(
                f"the columns of {pattern!r} are of two types: {names[0]!r} is {types[0]}, {name!r} is {kind}",
                where=where,
                field="source.embedding_column",
                value=pattern,
                allowed="columns of one type",
            )
    element = element_of(types[0], encoding, raw=False, where=where, column=pattern)
    if (element.stored, element.values) != (1, 1):
        raise ConfigError(
            "one column a dimension cannot hold packed bits or the bytes of floats",
            where=where,
            field="source.encoding",
            value=encoding.name,
            allowed=[str(types[0])],
        )
    return _made(_numbered, types[0], names, encoding, pattern, where)


def _numbered(kind: Any, names: list[str], encoding: Encoding, pattern: str, where: Any) -> Layout:
    element = element_of(kind, encoding, raw=False, where=where, column=pattern)

    def arrays(batch: Any) -> list[Any]:
        return [batch.column(name) for name in names]

    return Layout(
        "wide",
        element.name,
        len(names),
        tuple(names),
        2 * element.bytes,
        lambda batch, _dim, _where: decode_wide(arrays(batch), batch.num_rows, element),
        lambda batch, _: wide_lengths(arrays(batch), batch.num_rows),
    )


def _as_lists(kind: Any) -> tuple[str, Any, _Array, float] | None:
    """Name, the list type it is decoded as, the function that makes it one, and memory a value takes on the way."""
    t = pa.types
    if t.is_fixed_size_list(kind):
        return "fixed_size_list", kind, _same, 0
    if t.is_list(kind):
        return "list", kind, _same, 0
    if t.is_large_list(kind):
        return "large_list", kind, _same, 0
    if t.is_list_view(kind) or t.is_large_list_view(kind):
        name = "list_view" if t.is_list_view(kind) else "large_list_view"
        return name, pa.large_list(kind.value_type), _views_as_lists, 8
    if t.is_fixed_size_binary(kind) and not t.is_decimal(kind):
        return "fixed_size_binary", pa.list_(pa.uint8(), kind.byte_width), _bytes_as_lists, 0
    if t.is_binary(kind):
        return "binary", pa.list_(pa.uint8()), _bytes_as_lists, 0
    if t.is_large_binary(kind):
        return "large_binary", pa.large_list(pa.uint8()), _bytes_as_lists, 0
    if t.is_binary_view(kind):
        return "binary_view", pa.large_list(pa.uint8()), _then(_cast_to(pa.large_binary()), _bytes_as_lists), 8
    if t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "text", pa.large_list(pa.float32()), parse_vectors, 64
    return None


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _holds_numbers(kind: Any) -> bool:
    """Lists or tensors of numbers, or lists of such."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return _is_list(kind) and (_is_number(kind.value_type) or _holds_numbers(kind.value_type))


def _bytes_as_lists(column: Any) -> Any:
    """The same buffers, read as lists of uint8."""
    buffers, rows, start = column.buffers(), len(column), column.offset
    if pa.types.is_fixed_size_binary(column.type):
        data, width = buffers[1], column.type.byte_width
        values = pa.Array.from_buffers(pa.uint8(), (start + rows) * width, [None, data])
        return pa.Array.from_buffers(pa.list_(pa.uint8(), width), rows, buffers[:1], offset=start, children=[values])
    kind = pa.large_list(pa.uint8()) if pa.types.is_large_binary(column.type) else pa.list_(pa.uint8())
    data = buffers[2]
    values = pa.Array.from_buffers(pa.uint8(), 0 if data is None else data.size, [None, data])
    return pa.Array.from_buffers(kind, rows, buffers[:2], offset=start, children=[values])


def _views_as_lists(column: Any) -> Any:
    """Not by a cast: pyarrow 26 makes [[1, 2], []] of [[1, 2], [3]]."""
    lengths = lengths_of(column)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))])
    return pa.LargeListArray.from_arrays(pa.array(offsets), column.flatten(), mask=pa.array(lengths < 0))


def _same(column: Any) -> Any:
    return column


def _storage(column: Any) -> Any:
    return column.storage


def _decode_dictionary(column: Any) -> Any:
    return column.dictionary_decode()


def _cast_to(kind: Any) -> _Array:
    return lambda column: column.cast(kind)


def _then(first: _Array, second: _Array) -> _Array:
    return second if first is _same else lambda column: second(first(column))


def _dimension(size: int | None, kind: Any, column: str, where: Any) -> int | None:
    if size == 0:
        raise ConfigError(
            f"vectors of type {kind} have no values",
            where=where,
            field="source.embedding_column",
            value=column,
            allowed="vectors of one value or more",
        )
    return size


def _shape_of(kind: Any, column: str, where: Any) -> tuple[int, ...]:
    permutation = kind.permutation
    if permutation is not None and list(permutation) != sorted(permutation):
        raise ConfigError(
            f"tensors with permuted dimensions {list(permutation)} cannot be read",
            where=where,
            field="source.embedding_column",
            value=column,
            allowed="tensors stored in the order of their dimensions",
            hint="write them without a permutation",
        )
    shape = tuple(kind.shape)
    if math.prod(shape) == 0:
        raise ConfigError("these tensors have no values", where=where, field="source.embedding_column", value=column)
    return shape


def _not_read(kind: Any, column: str, where: Any) -> ConfigError:
    return ConfigError(
        f"embeddings of type {kind} cannot be read",
        where=where,
        field="source.embedding_column",
        value=column,
        allowed=READABLE,
        hint=_suggestion(pa.schema([(column, kind)])),
    )


def _no_pooling(encoding: Encoding, column: str, where: Any) -> None:
    if encoding.pooling is not None:
        raise _pooling_refused("of a column with one vector a row", column, where)


def _pooling_refused(what: str, column: str, where: Any) -> ConfigError:
    return ConfigError(
        f"there is no pooling {what}",
        where=where,
        field="source.pooling",
        value=column,
        allowed="null; mean and flatten are for lists of lists and 2-dimensional tensors",
    )
