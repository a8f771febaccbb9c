"""The row filter: ``source.filter`` in the form of pyarrow's ``filters``, checked, and evaluated on small columns.

``[[lang, "==", en], [tokens, ">", 3]]`` keeps the rows for which all hold; one list deeper,
``[[[lang, "==", en]], [[lang, "==", de]]]``, the rows for which one of the lists does. Rows where a compared value is
null are left out, as pyarrow leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpudrift.errors import ConfigError

OPERATORS = ("==", "=", "!=", "<", ">", "<=", ">=", "in", "not in")
_POSITION = "__gpudrift_position__"


@dataclass(frozen=True)
class RowFilter:
    """A checked filter; ``columns`` are the columns it looks at, ``expression`` is pyarrow's form of it."""

    raw: Any
    columns: tuple[str, ...]
    expression: Any

    def rows(self, table: Any) -> NDArray[np.int64]:
        """Positions of the rows of an Arrow table that pass, in order.

        Raises:
            ConfigError: the columns' types cannot be compared with the values given.
        """
        try:
            numbered = table.append_column(_POSITION, pa.array(np.arange(len(table))))
            passed = numbered.filter(self.expression)[_POSITION].to_numpy()
        except (pa.ArrowException, TypeError) as error:
            types = ", ".join(f"{name} is {table.schema.field(name).type}" for name in self.columns)
            raise ConfigError(
                f"this filter cannot be applied: {str(error).splitlines()[0]}",
                field="source.filter",
                value=self.raw,
                allowed=f"values of the columns' own types ({types})",
            ) from error
        # Arrow works on pieces of the table in parallel and does not promise their order
        return np.sort(passed)


def parse_filter(raw: Any) -> RowFilter | None:
    """The filter of ``source.filter``, None where there is none.

    Raises:
        ConfigError: it is not a list of [column, operator, value], or a list of such lists.
    """
    if raw is None:
        return None
    disjunction = [raw] if _is_list(raw) and raw and all(_is_predicate(item) for item in raw) else raw
    ok = _is_list(disjunction) and bool(disjunction)
    ok = ok and all(_is_list(group) and bool(group) and all(map(_is_predicate, group)) for group in disjunction)
    if not ok:
        raise _not_a_filter(raw)
    try:
        tuples = [[(column, operator, value) for column, operator, value in group] for group in disjunction]
        expression = pq.filters_to_expression(tuples)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _not_a_filter(raw) from error
    columns = dict.fromkeys(column for group in disjunction for column, _, _ in group)
    return RowFilter(raw, tuple(columns), expression)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_predicate(value: Any) -> bool:
    if not _is_list(value) or len(value) != 3:
        return False
    column, operator, operand = value
    if not (isinstance(column, str) and isinstance(operator, str) and operator in OPERATORS):
        return False
    return _is_list(operand) == (operator in ("in", "not in"))


def _not_a_filter(raw: Any) -> ConfigError:
    return ConfigError(
        "this is not a row filter",
        field="source.filter",
        value=raw,
        allowed=f"[[column, operator, value], ...], all of which must hold, operators {' '.join(OPERATORS)}",
        hint='quote operators and text: \'[[lang, "==", en], [tokens, ">", 3]]\'',
    )
