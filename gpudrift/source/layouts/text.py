"""Vectors as text, ``[0.1,-2e-3,4]``, as pgvector and CSV dumps write them. Slow: hundreds of times slower than lists.

Arrow's kernels split and parse; no Python loop sees a row. Each number is rounded to float32 once, correctly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# what Arrow's own parser takes, spelled out to find the entries it does not
_NUMBER = r"^[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))$"


def parse_vectors(column: Any) -> Any:
    """A text array as large_list<float>: null where the text is not a list of numbers in [] or {}, a null value where
    an entry is none."""
    text = pc.ascii_trim_whitespace(column.cast(pa.large_string()))
    listed = pc.or_(
        pc.and_(pc.starts_with(text, "["), pc.ends_with(text, "]")),
        pc.and_(pc.starts_with(text, "{"), pc.ends_with(text, "}")),
    )
    inside = pc.ascii_trim_whitespace(pc.utf8_slice_codeunits(pc.if_else(listed, text, None), 1, -1))
    parts = pc.split_pattern(inside, ",")
    empty = pc.fill_null(pc.equal(inside, ""), False).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    entries = parts.flatten()
    if empty.any():  # "[]" splits into one empty entry
        entries = entries.filter(pa.array(~np.repeat(empty, lengths)))
        lengths[empty] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    missing = pc.invert(pc.fill_null(listed, False))
    return pa.LargeListArray.from_arrays(pa.array(offsets), _numbers(pc.ascii_trim_whitespace(entries)), mask=missing)


def _numbers(entries: Any) -> Any:
    try:
        return entries.cast(pa.float32())
    except pa.ArrowInvalid:
        return pc.if_else(pc.match_substring_regex(entries, _NUMBER), entries, None).cast(pa.float32())
