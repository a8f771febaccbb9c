"""Benjamini-Hochberg against scipy, Holm against its definition (all subsets of the family, by closed testing)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from gpudrift.errors import ArgumentError
from gpudrift.fdr import benjamini_hochberg, holm

P = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def by_closed_testing(p: list[float]) -> list[float]:
    """Holm as closed testing with Bonferroni on every intersection (Marcus, Peritz and Gabriel 1976)."""
    k = len(p)
    subsets = [s for size in range(1, k + 1) for s in itertools.combinations(range(k), size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(k)]


@given(P)
def test_q_values_are_those_of_scipy(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(list(false_discovery_control(p)), rel=1e-12, abs=1e-300)


def test_q_values_of_a_worked_example() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_closed_testing_with_bonferroni(p: list[float]) -> None:
    assert holm(p) == pytest.approx(by_closed_testing(p), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
def test_what_was_not_tested_stays_nan_and_does_not_count(adjust) -> None:
    with_gaps = adjust([math.nan, 0.02, math.nan, 0.3, 0.001])
    assert [value for value in with_gaps if not math.isnan(value)] == adjust([0.02, 0.3, 0.001])
    assert [math.isnan(value) for value in with_gaps] == [True, False, True, False, False]
    assert adjust([]) == []
    assert np.isnan(adjust([math.nan])).all()


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
@given(p=P)
def test_order_and_bounds(adjust, p: list[float]) -> None:
    adjusted = adjust(p)
    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    assert adjust(p[::-1]) == adjusted[::-1]  # ties share a value, wherever they stand
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_value_that_is_no_probability_is_refused(adjust, value: float) -> None:
    with pytest.raises(ArgumentError, match="not a p-value"):
        adjust([0.5, value])
