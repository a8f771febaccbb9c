"""Values as text: what rows are called, and what values of types are compared by that Arrow has no hash of."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gpudrift.source.layouts import Positions


def row_ids(values: Any, label: str, numbers: Positions) -> Any:
    """Names of rows as large_string without nulls: an id column's values (None: there is none) as text, and
    ``label:number`` where they are null. Text always: what a row is called must not depend on its neighbours."""
    if values is not None and not values.null_count:
        return as_text(values)
    named = pc.binary_join_element_wise(
        pa.scalar(label, pa.large_string()),
        pa.array(numbers).cast(pa.large_string()),
        pa.scalar(":", pa.large_string()),
    )
    return named if values is None else pc.coalesce(as_text(values), named)


def as_text(values: Any) -> Any:
    """Values of any Arrow type as large_string, nulls as nulls, bytes in hexadecimal."""
    kind = values.type
    if pa.types.is_large_string(kind):
        return values
    # bytes need not be text, and an extension's storage (a UUID's bytes) is not what it is called
    if not isinstance(kind, pa.BaseExtensionType) and not _holds_bytes(kind):
        try:
            return values.cast(pa.large_string())
        except pa.ArrowNotImplementedError:
            pass  # nested values
    texts = (value.hex() if isinstance(value, bytes) else value for value in values.to_pylist())
    return pa.array([None if text is None else str(text) for text in texts], pa.large_string())


def _holds_bytes(kind: Any) -> bool:
    raw = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(fits(kind) for fits in raw)
