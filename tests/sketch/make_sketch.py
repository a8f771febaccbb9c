"""References, plans and sketches of small clouds, made the way a job makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from gpudrift.panel import PanelSettings
from gpudrift.sketch import Sketch, SketchPlan

SETTINGS = PanelSettings(pca_components=4, components=3, bins=10)
Array = npt.NDArray[np.float32]


def cloud(n: int, d: int = 8, *, seed: int = 0, shift: float = 0.0, spread: float = 1.0, offset: float = 10.0) -> Array:
    rows = np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(2.0, 0.5, d) * spread
    return (rows + shift + offset).astype(np.float32)


def ids_of(start: int, count: int) -> pa.Array:
    return pa.array([f"row {i}" for i in range(start, start + count)])


def plan_of(reference: Array, settings: PanelSettings = SETTINGS, **sizes: int) -> SketchPlan:
    sizes = {"features": 64, "bins": 128, "reservoir": 40, **sizes}
    return SketchPlan.from_rows(torch.from_numpy(reference), settings=settings, **sizes)


def sketch_of(plan: SketchPlan, rows: Array, first_id: int = 0) -> Sketch:
    made = Sketch.empty(plan)
    made.update(torch.from_numpy(rows), ids_of(first_id, len(rows)))
    return made


@dataclass(frozen=True)
class Pair:
    x: Array
    y: Array
    plan: SketchPlan
    reference: Sketch
    current: Sketch


def pair_of(x: Array, y: Array, settings: PanelSettings = SETTINGS, **sizes: int) -> Pair:
    plan = plan_of(x, settings, **sizes)
    return Pair(x, y, plan, sketch_of(plan, x), sketch_of(plan, y, 10**6))


def assert_same(a: Sketch, b: Sketch, rel: float = 1e-10) -> None:
    """Counts and samples to the bit, float sums to ``rel`` of the largest of their kind."""
    first, second = a.state(), b.state()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        exact = not tensor.is_floating_point() or name.startswith("reservoir.")
        if exact:
            assert torch.equal(tensor, second[name]), name
        else:
            finite = torch.isfinite(tensor)
            assert torch.equal(finite, torch.isfinite(second[name])), name
            size = float(tensor[finite].abs().max()) if bool(finite.any()) else 0.0
            assert float((tensor - second[name])[finite].abs().max() if size else 0.0) <= rel * size, name
