"""What two sketches must share to be merged or compared, pinned by a reference.

The frequencies of the random features are drawn by the seed: the raw 64-bit stream of numpy's PCG64 (whose bits numpy
promises to keep), turned normal by the inverse distribution function and rounded to 2^-20, so that machines agree on
every bit although their erfinv may differ in the last one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, DataError
from gpudrift.panel import PanelSettings, Pins, centre, pin
from gpudrift.project import mean_of
from gpudrift.records import Basis

FORMAT_VERSION = 1
BLOCKS = 32  # of rows, by key: the standard errors of what cannot be had from moments have 31 degrees of freedom

_REACH = 12.0  # reference sds from the median that the grid covers at most: a far outlier must not make it coarse
_ROOM = 1.25  # of the reference's own reach: a window that moved a little stays on the grid
_BAND = 1e-4  # of the largest sd: the least half-width of a grid, far above rounding
_NUDGE = 1e-11  # of the root of the total variance: see ``SketchPlan.cuts``
_GRAIN = float(1 << 20)


@dataclass(frozen=True, eq=False)
class SketchPlan:
    """Pinned coordinates and sizes of a sketch; equal ``id``, equal plan. Tensors are float64, on the CPU.

    mean: (d,), all is measured about it. axes: (q, d), variances: (q,), total_variance, residual_optimism and
    variance_optimism: the reference's basis. edges: (q', bins' - 1), the inner bin edges of PSI. grid: (q', g), inner
    edges of the histograms, increasing, each row of ``edges`` among them. bandwidths: of the RBF. features: D, even
    (D / 2 frequencies). reservoir: rows kept. seed: of the frequencies and the reservoir.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total_variance: float
    residual_optimism: float | None
    variance_optimism: Tensor | None
    edges: Tensor
    grid: Tensor
    bandwidths: tuple[float, ...]
    features: int
    reservoir: int
    seed: int

    def __post_init__(self) -> None:
        for name, value, low in (("features", self.features, 2), ("reservoir", self.reservoir, 2)):
            if value < low:
                raise ArgumentError("unusable size of a sketch", field=name, value=value, allowed=f"{low} or more")
        if self.features % 2:
            raise ArgumentError(
                "a feature is a sine or a cosine, in pairs", field="features", value=self.features, allowed="even"
            )
        if not 0 <= self.seed < 2**63:
            raise ArgumentError("unusable seed", field="seed", value=self.seed, allowed="0 to 2^63 - 1")

    @classmethod
    def from_pins(
        cls, pins: Pins, scores: Tensor, *, features: int = 1024, bins: int = 2048, reservoir: int = 4096, seed: int = 0
    ) -> SketchPlan:
        """The plan of a reference.

        Args:
            pins: what the reference pinned.
            scores: (n, q) its rows projected on the pinned axes, n >= 1: the grid's range comes from them. It covers
                1.25 times the reference's reach about its median, 12 sd (by its deciles) at most, in equal steps.
            features: D, sines and cosines a bandwidth. bins: equal steps of a histogram. reservoir: rows kept.
        """
        if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < pins.edges.shape[0]:
            raise ArgumentError(
                "these are not the reference's scores",
                field="scores",
                value=tuple(scores.shape),
                allowed=f"(n, q), n >= 1, q >= {pins.edges.shape[0]}",
            )
        if bins < 2:
            raise ArgumentError("unusable number of bins", field="bins", value=bins, allowed=">= 2")
        basis, edges = pins.basis, _plain(pins.edges)
        components = edges.shape[0]
        return cls(
            mean=_plain(basis.mean),
            axes=_plain(basis.axes),
            variances=_plain(basis.variances),
            total_variance=float(basis.total_variance),
            residual_optimism=basis.residual_optimism,
            variance_optimism=None if basis.variance_optimism is None else _plain(basis.variance_optimism),
            edges=edges,
            grid=_grid(_plain(scores[:, :components]), edges, bins),
            bandwidths=tuple(float(width) for width in pins.bandwidths),
            features=features,
            reservoir=reservoir,
            seed=seed,
        )

    @classmethod
    def from_rows(
        cls,
        rows: Tensor,
        *,
        settings: PanelSettings | None = None,
        features: int = 1024,
        bins: int = 2048,
        reservoir: int = 4096,
        seed: int = 0,
    ) -> SketchPlan:
        """The plan of reference rows (n, d), n >= 2, of any float type, pinned as ``gpudrift.score`` pins them."""
        kept = rows.dtype if rows.dtype == torch.float64 else torch.float32
        rows = rows.detach().to(device="cpu", dtype=kept, copy=True)
        mean = mean_of(rows)
        centre(rows, mean)
        pins, projection = pin(rows, mean, settings or PanelSettings())
        return cls.from_pins(pins, projection.scores, features=features, bins=bins, reservoir=reservoir, seed=seed)

    @property
    def dim(self) -> int:
        return int(self.mean.shape[0])

    @property
    def components(self) -> int:
        """q': the components with a histogram."""
        return int(self.grid.shape[0])

    @property
    def basis(self) -> Basis:
        return Basis(
            mean=self.mean,
            axes=self.axes,
            variances=self.variances,
            total_variance=self.total_variance,
            residual_optimism=self.residual_optimism,
            variance_optimism=self.variance_optimism,
        )

    @property
    def residual(self) -> float:
        """The reference's mean squared norm outside the axes, by its pinned variances."""
        return max(self.total_variance - float(self.variances.sum()), 0.0)

    @cached_property
    def id(self) -> str:
        """16 hex digits of a SHA-256 over everything in the plan and the format's version."""
        digest = hashlib.sha256(f"sketch {FORMAT_VERSION} {BLOCKS}".encode())
        for name, tensor in sorted(self.state().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def frequencies(self) -> Tensor:
        """(D / 2, d) float64 standard normal draws; over a bandwidth, the frequencies of its RBF."""
        count = self.features // 2 * self.dim
        raw = np.random.PCG64(self.seed).random_raw(count) >> np.uint64(11)
        uniform = torch.from_numpy((raw.astype(np.float64) + 0.5) / 2.0**53)
        normal = torch.special.ndtri(uniform)
        frequencies: Tensor = (normal * _GRAIN).round() / _GRAIN
        return frequencies.reshape(self.features // 2, self.dim)

    @cached_property
    def cuts(self) -> Tensor:
        """(q', g): the grid, lowered by 1e-11 of the cloud's sd.

        A quantile of the reference is often one row's own score, and a product's last bit depends on the shape of the
        batch: without the nudge that row would fall on either side of its own edge.
        """
        return self.grid - _NUDGE * math.sqrt(max(self.total_variance, 0.0))

    @cached_property
    def pinned_bins(self) -> Tensor:
        """(q', g + 1) int64: the PSI bin that each histogram bin is a part of."""
        inside = torch.cat([self.grid.new_full((self.components, 1), -torch.inf), self.grid], dim=1)
        return torch.searchsorted(self.edges.contiguous(), inside.contiguous(), right=True)

    def state(self) -> dict[str, Tensor]:
        """The plan as flat tensors, for safetensors. What is None is left out."""
        found = {
            "mean": self.mean,
            "axes": self.axes,
            "variances": self.variances,
            "total_variance": torch.tensor(self.total_variance, dtype=torch.float64),
            "edges": self.edges,
            "grid": self.grid,
            "bandwidths": torch.tensor(self.bandwidths, dtype=torch.float64),
            "sizes": torch.tensor([self.features, self.reservoir, self.seed], dtype=torch.int64),
        }
        if self.residual_optimism is not None:
            found["residual_optimism"] = torch.tensor(self.residual_optimism, dtype=torch.float64)
        if self.variance_optimism is not None:
            found["variance_optimism"] = self.variance_optimism
        return found

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> SketchPlan:
        """The plan of ``state()``. DataError for tensors that are no plan."""
        try:
            features, reservoir, seed = (int(v) for v in tensors["sizes"].tolist())
            optimism = tensors.get("residual_optimism")
            return cls(
                mean=tensors["mean"].clone(),
                axes=tensors["axes"].clone(),
                variances=tensors["variances"].clone(),
                total_variance=float(tensors["total_variance"]),
                residual_optimism=None if optimism is None else float(optimism),
                variance_optimism=tensors.get("variance_optimism"),
                edges=tensors["edges"].clone(),
                grid=tensors["grid"].clone(),
                bandwidths=tuple(tensors["bandwidths"].tolist()),
                features=features,
                reservoir=reservoir,
                seed=seed,
            )
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"these tensors are no sketch plan: {type(error).__name__}: {error}") from error


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float64).contiguous().clone()


def _grid(scores: Tensor, edges: Tensor, bins: int) -> Tensor:
    """(q', g) inner edges: bins + 1 equal steps over the reference's range and, among them, the edges of PSI."""
    sd = scores.std(dim=0, unbiased=False)
    least = _BAND * float(sd.max()) or 1.0
    ordered = scores.sort(dim=0).values
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
    # of a normal distribution, the sd; a far outlier does not move it, heavy ties can make it 0
    spread = torch.where(high > low, (high - low) / 2.563, sd)
    half = torch.minimum(_ROOM * (scores - middle).abs().amax(dim=0), _REACH * spread).clamp(min=least)
    steps = torch.linspace(-1.0, 1.0, bins + 1, dtype=torch.float64)
    return torch.cat([middle[:, None] + half[:, None] * steps, edges], dim=1).sort(dim=1).values.contiguous()
