"""Clouds of weekly windows, made without files: what the tests of reference and scoring share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch

from gpudrift.fingerprint import canonical, cluster_codes
from gpudrift.panel import PanelSettings
from gpudrift.records import Cloud, Quality, Window

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
PANEL = PanelSettings(pca_components=3, components=2, bins=4, directions=8)
SETTINGS = {"seed": 0, "metrics.bandwidths": [0.25, 0.5, 1.0, 2.0], "source.filter": None}


def weeks(first: int, count: int) -> tuple[Window, ...]:
    starts = [MONDAY + timedelta(weeks=k) for k in range(first, first + count)]
    return tuple(Window(start, start + timedelta(weeks=1), f"week {start:%m-%d}") for start in starts)


def make_cloud(
    sizes: Sequence[int], *, first: int = 0, seed: int = 0, d: int = 5, wobble: float = 0.3, users: bool = False
) -> tuple[Cloud, tuple[str, ...], torch.Tensor | None]:
    """A cloud in canonical order with its fingerprints and cluster codes. Window k starts ``first + k`` weeks on; its
    rows are drawn by (seed, first + k), so that a window is the same alone and among others. wobble: movement of the
    windows' means. users: about three rows a user."""
    parts, names = [], []
    for k, size in enumerate(sizes, start=first):
        rng = np.random.default_rng((seed, k))
        parts.append(rng.normal(size=(size, d)) * np.linspace(2, 0.5, d) + wobble * rng.normal(size=d) + 10)
        names += [f"user {u}" for u in rng.integers(0, max(2, size // 3), size)]
    cloud = Cloud(
        embeddings=torch.from_numpy(np.concatenate(parts).astype(np.float32)),
        windows=weeks(first, len(sizes)),
        offsets=tuple(int(b) for b in np.cumsum([0, *sizes])),
        quality=tuple(Quality(size, size, {}, {}) for size in sizes),
        clusters=pa.array(names) if users else None,
        encoder_id="e5",
    )
    ordered, prints = canonical(cloud, 0)
    codes = cluster_codes(ordered.clusters, "cloud") if users else None
    return ordered, prints, codes


def dense_energy(x: np.ndarray, y: np.ndarray) -> float:
    """The energy U-statistic from the distance matrices themselves."""

    def total(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a[:, None].astype(np.float64) - b[None].astype(np.float64), axis=-1).sum())

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))
