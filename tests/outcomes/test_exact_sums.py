"""Sums that no order changes, against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpudrift.outcomes.exact_sums import BITS, ExactSums

UNIT = Fraction(1, 2**BITS)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)
ROWS = st.lists(st.tuples(st.integers(0, 3), FINITE, FINITE), max_size=30)


def summed(rows: list[tuple[int, float, float]], pieces: int = 1) -> ExactSums:
    sums = ExactSums()
    for piece in np.array_split(np.arange(len(rows)), pieces):
        part = [rows[k] for k in piece]
        keys = np.array([key for key, _, _ in part], dtype=np.int64)
        values, weights = (np.array([row[k] for row in part], dtype=np.float64) for k in (1, 2))
        sums.add(keys, values, weights)
    return sums


@given(ROWS)
def test_sums_of_products_are_exact(rows: list[tuple[int, float, float]]) -> None:
    sums = summed(rows)
    for key in range(4):
        expected = sum((Fraction(v) * Fraction(w) for k, v, w in rows if k == key), Fraction(0))
        assert sums.get(key) * UNIT == expected


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_no_order_and_no_cut_into_batches_changes_them(rows: list[tuple[int, float, float]], random, pieces) -> None:
    shuffled = random.sample(rows, len(rows))
    assert [summed(rows).get(k) for k in range(4)] == [summed(shuffled, pieces).get(k) for k in range(4)]


def test_the_smallest_and_the_largest_numbers_have_their_place() -> None:
    values = np.array([5e-324, -5e-324, 5e-324, 1.7976931348623157e308, 1.7976931348623157e308, -0.0, 0.0, 1e-310])
    keys = np.zeros(len(values), dtype=np.int64)
    plain, squares = ExactSums(), ExactSums()
    plain.add(keys, values)
    squares.add(keys, values, np.abs(values))
    assert plain.get(0) * UNIT == sum(map(Fraction, values.tolist()), Fraction(0))
    expected = sum((Fraction(v) * abs(Fraction(v)) for v in values.tolist()), Fraction(0))
    assert squares.get(0) * UNIT == expected


def test_many_numbers_of_one_exponent_do_not_overflow() -> None:
    values = np.full(1_000_000, np.nextafter(1.0, 0.0))
    sums = ExactSums()
    sums.add(np.full(len(values), 7, dtype=np.int64), values)
    assert sums.get(7) * UNIT == len(values) * Fraction(values[0])
    assert sums.get(0) == 0


def test_large_keys_stay_apart() -> None:
    keys = np.array([2**49 - 1, 2**49 - 2, 0], dtype=np.int64)
    sums = ExactSums()
    sums.add(keys, np.array([1.0, 1e-300, 1e300]))
    assert [sums.get(int(key)) * UNIT for key in keys] == [1, Fraction(1e-300), Fraction(1e300)]
