"""MMD^2 by random Fourier features: one pass over the rows, no pairs; features and errors as in sketches."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from gpudrift.metrics.accumulate import mean_of
from gpudrift.records import Metric
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.sketch.compare import from_features
from gpudrift.sketch.plan import BLOCKS

DOF = BLOCKS - 1  # of the sampling error
_BATCH = 1 << 16  # rows a sketch takes at a time


def estimates(x: Tensor, y: Tensor, bandwidths: Sequence[float], *, features: int, seed: int) -> list[Metric]:
    """The U-statistic of MMD^2 at each bandwidth, as two sketches of the rows give it.

    Args:
        x: (n, d), y: (m, d) float rows on the CPU; n, m >= 2.
        features: D, sines and cosines a bandwidth, even. seed: of the D / 2 frequencies.

    Each ``Metric`` has the value, se (of rows and features) and, in ``extra``, ``sampling_se`` and
    ``approximation_sd``. ArgumentError: unusable features. Source: Rahimi and Recht 2007, NeurIPS; the formulas are in
    ``gpudrift.sketch.compare``.
    """
    none = torch.zeros(0, x.shape[1], dtype=torch.float64)
    plan = SketchPlan(  # features alone: no axes, no histograms, next to no sample
        mean=mean_of(x),
        axes=none,
        variances=none[:, 0],
        total_variance=0.0,
        residual_optimism=None,
        variance_optimism=None,
        edges=none[:, :1],
        grid=none[:, :1],
        bandwidths=tuple(bandwidths),
        features=features,
        reservoir=2,
        seed=seed,
    )
    return from_features(_sketch(plan, x, 0), _sketch(plan, y, len(x)))


def _sketch(plan: SketchPlan, rows: Tensor, first: int) -> Sketch:
    """The rows under ids of their own: equal rows are different ones."""
    sketch = Sketch.empty(plan)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        sketch.update(batch, pa.array(range(first + start, first + start + len(batch))))
    return sketch
