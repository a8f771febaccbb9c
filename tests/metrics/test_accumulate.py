from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics.accumulate import log_ratio, prefix_sums, variance_of_mean


@pytest.mark.parametrize("n", [0, 1, 2, 511, 512, 513, 1024, 1025, 300_000])
def test_prefix_sums_are_cumulative_sums(n):
    values = np.random.default_rng(n).normal(size=n)
    np.testing.assert_allclose(prefix_sums(torch.from_numpy(values)).numpy(), np.cumsum(values), rtol=0, atol=1e-10)


def test_prefix_sums_are_exact_for_integers():
    values = torch.arange(10_000, dtype=torch.float64)
    assert torch.equal(prefix_sums(values), values.cumsum(0))


def test_variance_of_a_mean():
    assert variance_of_mean(torch.tensor([1.0, 2.0, 6.0])) == pytest.approx(np.var([1, 2, 6], ddof=1) / 3)
    with pytest.raises(InsufficientDataError):
        variance_of_mean(torch.tensor([1.0]))


def test_log_ratio_is_finite_whatever_is_zero():
    assert log_ratio(2.0, 4.0, 1.0) == (pytest.approx(math.log(0.5)), None)
    assert log_ratio(0.0, 0.0, 0.0) == (0.0, "current and reference numerically zero")
    assert log_ratio(1e-30, 1e-14, 1.0)[0] == 0.0
    value, note = log_ratio(3.0, 0.0, 3.0)
    assert value == pytest.approx(math.log(1e12))
    assert note == "reference numerically zero"
    value, note = log_ratio(0.0, 3.0, 3.0)
    assert value == pytest.approx(-math.log(1e12))
    assert note == "current numerically zero"
