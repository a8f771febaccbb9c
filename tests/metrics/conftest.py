"""A panel of any two clouds, made the way the job makes it: centred and projected on axes pinned by the first one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpudrift import project
from gpudrift.metrics.divergences import fit_edges
from gpudrift.records import PanelInput

Array = npt.NDArray[np.float64]


def _make_panel(
    x: Array,
    y: Array,
    *,
    components: int = 2,
    kept: int | None = None,
    bins: int = 10,
    directions: int = 20,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> PanelInput:
    """x (n, d) is the reference, y (m, d) the current window; ``kept`` axes (default: ``components``)."""
    cloud_x, cloud_y = torch.from_numpy(np.asarray(x, np.float64)), torch.from_numpy(np.asarray(y, np.float64))
    mean = project.mean_of(cloud_x)
    cloud_x, cloud_y = (cloud_x - mean).to(dtype), (cloud_y - mean).to(dtype)
    basis, covariance = project.fit(cloud_x, mean, components=kept or components, niter=6, seed=0)
    components = min(components, basis.axes.shape[0])
    px, py = project.project(cloud_x, basis), project.project(cloud_y, basis)
    return PanelInput(
        x=cloud_x,
        y=cloud_y,
        px=px,
        py=py,
        basis=basis,
        covariance=covariance,
        edges=fit_edges(px.scores, components, bins),
        components=components,
        directions=directions,
        seed=seed,
    )


@pytest.fixture
def make_panel() -> Callable[..., PanelInput]:
    return _make_panel


@pytest.fixture
def shifted() -> tuple[Array, Array]:
    """Two clouds that differ in mean and spread, with unequal variances along the axes; 300 and 170 rows of 6."""
    rng = np.random.default_rng(7)
    sd = np.linspace(3.0, 0.5, 6)
    return rng.normal(size=(300, 6)) * sd, rng.normal(size=(170, 6)) * sd * 1.2 + 0.6


def _draw_spectrum(spectrum: str, n: int, rng: np.random.Generator) -> Array:
    """(n, 48) rows: white; variances falling as 1/k; or six directions, of unequal length, in noise and mixed scales,
    as embeddings have."""
    noise = rng.normal(size=(n, 48))
    if spectrum == "white":
        return noise
    if spectrum == "falling":
        return noise * np.arange(1, 49) ** -0.5
    directions = np.random.default_rng(0).normal(size=(6, 48)) * np.linspace(0.5, 0.1, 6)[:, None]
    return (rng.normal(size=(n, 6)) @ directions + 0.3 * noise) * (1 + 0.5 * rng.random((n, 1)))


@pytest.fixture
def draw_spectrum() -> Callable[[str, int, np.random.Generator], Array]:
    return _draw_spectrum
