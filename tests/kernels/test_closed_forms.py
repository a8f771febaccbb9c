"""Closed forms against the sums over pairs they stand for."""

from __future__ import annotations

import itertools

import pytest
import torch

from gpudrift import kernels
from gpudrift.kernels import closed_forms
from gpudrift.kernels import reference as dense


@pytest.mark.parametrize("precision", ["float16", "float64"])
def test_squared_distances_of_all_pairs_of_groups(precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64) + 3
    x = kernels.prepare(rows, precision=precision, offsets=[0, 7, 7, 40])
    y = kernels.prepare(rows[:25] * 0.5, precision=precision, scale=x.scale, offsets=[0, 1, 25])
    of_x, of_y = closed_forms.group_moments(x), closed_forms.group_moments(y)
    for g, h in itertools.product(range(3), range(2)):
        wanted = dense.pair_sums(x.group(g), y.group(h), ()).squares[0] * x.scale**2
        assert float(closed_forms.squares_between(of_x, g, of_y, h, False)) == pytest.approx(float(wanted), rel=1e-10)
        assert float(closed_forms.distance_squares(x.group(g), y.group(h))) == pytest.approx(float(wanted), rel=1e-10)
    for g in range(3):
        wanted = dense.pair_sums(x.group(g), None, ()).squares[0] * x.scale**2
        assert float(closed_forms.squares_between(of_x, g, of_x, g, True)) == pytest.approx(float(wanted), rel=1e-10)
