"""Sums that no order of adding changes: every float64 is an integer times a power of two, and integers add exactly.

A running sum is a Python integer in units of 2^-``BITS``, far below the smallest product of two float64 (Kulisch's long
accumulator). It is rounded once, when it is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
BITS = 2_400  # a product's last bit may be worth 2^-2254
_EXPONENTS = 1 << 13
_HALF = 27  # a mantissa's 53 bits are added in two parts: 2^26 numbers below 2^27 have an exact float64 sum
_SPLIT = 134_217_729.0  # 2^27 + 1


class ExactSums:
    """Sums by key, keys being whole numbers from 0 to 2^49."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}

    def add(self, keys: Places, values: Floats, weights: Floats | None = None) -> None:
        """Add values (times weights) to the sums of their keys. keys, values, weights: (n,), n at most 2^26, finite."""
        mantissas, exponents = np.frexp(values)
        if weights is None:
            self._add(keys, mantissas, exponents)
            return
        others, more = np.frexp(weights)
        high, low = _product(mantissas, others)
        self._add(keys, high, exponents + more)
        self._add(keys, low, exponents + more)

    def get(self, key: int) -> int:
        """A sum in units of 2^-BITS; 0 where nothing was added."""
        return self._sums.get(key, 0)

    def keys(self) -> set[int]:
        return set(self._sums)

    def _add(self, keys: Places, values: Floats, exponents: NDArray[np.int32]) -> None:
        """Add values * 2^exponents."""
        used = np.flatnonzero(values)
        mantissas, own = np.frexp(values[used])
        whole = np.ldexp(mantissas, 53).astype(np.int64)
        shifts = own.astype(np.int64) + exponents[used] - 53 + BITS
        cells, places = np.unique(keys[used] * _EXPONENTS + shifts, return_inverse=True)
        high = np.bincount(places, whole >> _HALF, minlength=len(cells))
        low = np.bincount(places, whole & ((1 << _HALF) - 1), minlength=len(cells))
        for cell, upper, lower in zip(cells.tolist(), high.tolist(), low.tolist(), strict=True):
            key, shift = divmod(cell, _EXPONENTS)
            self._sums[key] = self._sums.get(key, 0) + (((int(upper) << _HALF) + int(lower)) << shift)


def _product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The product of numbers near 1 and what its rounding left over, both exact (Dekker 1971, Veltkamp's splitting)."""
    product = a * b
    a_high, b_high = _SPLIT * a - (_SPLIT * a - a), _SPLIT * b - (_SPLIT * b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
