"""The row filter: ``source.filter`` in the form of pyarrow's ``filters``, checked, and evaluated on small columns.

``[[lang, "==", en], [tokens, ">", 3]]`` keeps the rows for which all hold; one list deeper,
``[[[lang, "==", en]], [[lang, "==", de]]]``, the rows for which one of the lists does. Rows where a compared value is
null are left out, as pyarrow leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpudrift.errors import ConfigError
from gpudrift.source.times import is_text

OPERATORS = ("==", "=", "!=", "<", ">", "<=", ">=", "in", "not in")
_LONG_LIST = 100  # values of an "in" that are held against statistics one by one
_POSITION = "__gpudrift_position__"


@dataclass(frozen=True)
class RowFilter:
    """A checked filter; ``columns`` are the columns it looks at, ``expression`` is pyarrow's form of it."""

    raw: Any
    columns: tuple[str, ...]
    expression: Any
    groups: tuple[tuple[tuple[str, str, Any], ...], ...]  # of predicates: all of one group must hold

    def rows(self, table: Any) -> NDArray[np.int64]:
        """Positions of the rows of an Arrow table that pass, in order.

        Raises:
            ConfigError: the columns' types cannot be compared with the values given.
        """
        try:
            # Arrow has no comparisons of string views
            for place, field in enumerate(table.schema):
                if pa.types.is_string_view(field.type):
                    table = table.set_column(place, field.name, table.column(place).cast(pa.large_string()))
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

    def may_pass(self, limits: Sequence[Mapping[str, tuple[Any, Any]]], types: Mapping[str, Any]) -> list[bool]:
        """For each row group whether a row of it may pass, by the least and greatest values of its columns.

        limits: (least, greatest) by column, those left out that are not known; types: Arrow types of the columns.
        Arrow compares them, so that a value is rounded here as it is where rows are filtered.
        """
        alternatives = [
            np.logical_or.reduce([self._impossible(*predicate, limits, types) for predicate in group])
            for group in self.groups
        ]
        return [bool(possible) for possible in ~np.logical_and.reduce(alternatives)]

    def _impossible(
        self,
        column: str,
        operator: str,
        operand: Any,
        limits: Sequence[Mapping[str, tuple[Any, Any]]],
        types: Mapping[str, Any],
    ) -> NDArray[np.bool_]:
        """Row groups in which no value of the column can satisfy a predicate. Those that nulls or NaN satisfy rule
        nothing out: statistics do not tell of either."""
        unknown = np.zeros(len(limits), dtype=bool)
        pairs = [group.get(column, (None, None)) for group in limits]
        if column not in types or not _comparable(types[column]) or operator in ("!=", "not in"):
            return unknown
        if operator == "in" and pa.types.is_floating(types[column]):
            return unknown  # Arrow rounds the values of a list to the column's type, but not those it compares with
        try:
            table = pa.table(
                {
                    "least": pa.array([least for least, _ in pairs], types[column]),
                    "most": pa.array([most for _, most in pairs], types[column]),
                }
            )
            values = operand if operator == "in" else [operand]
            if len(values) > _LONG_LIST:
                return unknown
            ruled_out = [_satisfied(table, _beyond(operator, value)) for value in values]
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return unknown
        return np.logical_and.reduce(ruled_out) if ruled_out else unknown


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
    except OverflowError as error:
        raise ConfigError(
            "a number of this filter is too large",
            field="source.filter",
            value=raw,
            allowed="whole numbers from -2^63 to 2^63 - 1",
        ) from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _not_a_filter(raw) from error
    columns = dict.fromkeys(column for group in disjunction for column, _, _ in group)
    return RowFilter(raw, tuple(columns), expression, tuple(map(tuple, tuples)))


def _comparable(arrow_type: Any) -> bool:
    """Types whose statistics are the values themselves, in an order all writers agree on."""
    t = pa.types
    return bool(t.is_integer(arrow_type) or t.is_float32(arrow_type) or t.is_float64(arrow_type) or is_text(arrow_type))


def _beyond(operator: str, value: Any) -> Any:
    """True where no value from ``least`` to ``most`` satisfies the predicate."""
    least, most = pc.field("least"), pc.field("most")
    if operator in ("<", "<="):
        return least >= value if operator == "<" else least > value
    if operator in (">", ">="):
        return most <= value if operator == ">" else most < value
    return (least > value) | (most < value)


def _satisfied(table: Any, expression: Any) -> NDArray[np.bool_]:
    """Which rows of a table an expression is true for; null is not true."""
    numbered = table.append_column(_POSITION, pa.array(np.arange(len(table))))
    found = np.zeros(len(table), dtype=bool)
    found[numbered.filter(expression)[_POSITION].to_numpy()] = True
    return found


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
