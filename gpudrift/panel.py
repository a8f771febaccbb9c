"""The panel: every metric of a current window against the reference, on coordinates the reference has pinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.errors import DataError
from gpudrift.kernels import PairSums
from gpudrift.metrics import classifier, divergences, energy_1d, frechet, moments, wasserstein
from gpudrift.metrics.accumulate import chunks
from gpudrift.metrics.kept import Kept
from gpudrift.metrics.pairs import PairEstimate, estimate
from gpudrift.project import fit, mean_of, project
from gpudrift.records import Basis, Metric, PanelInput, Projection

Progress = Callable[[int], None]
LINEAR = (moments, wasserstein, energy_1d, divergences)


@dataclass(frozen=True)
class PanelSettings:
    """What the panel measures; part of a reference's identity."""

    pca_components: int = 32
    pca_niter: int = 6
    components: int = 8
    bins: int = 10
    directions: int = 100
    multiples: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    seed: int = 0


@dataclass(frozen=True)
class Pins:
    """What a reference pins, float64: axes and mean, covariance (d, d), bin edges (q', bins - 1), RBF bandwidths."""

    basis: Basis
    covariance: Tensor
    edges: Tensor
    bandwidths: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """The panel of one window: metrics by name, the energy estimate behind them, and the projections for pictures."""

    metrics: dict[str, Metric]
    energy: PairEstimate
    px: Projection
    py: Projection


def median_distance(rows: Tensor, *, seed: int, pairs: int = 100_000) -> float:
    """Median Euclidean distance of ``pairs`` random pairs of different rows of (n, d), n >= 2, in float64.

    Raises DataError when more than half of the pairs coincide: no bandwidth follows from them.
    """
    n = len(rows)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    distances = torch.empty(pairs, dtype=torch.float64)
    step = max(1, (1 << 21) // rows.shape[1])
    for start in range(0, pairs, step):
        a, b = (index[start : start + step].to(rows.device) for index in (first, second))
        distances[start : start + step] = (rows[a].double() - rows[b].double()).norm(dim=1).cpu()
    middle = float(distances.median())
    if middle <= 0 or not math.isfinite(middle):
        raise DataError(
            "the reference rows are (nearly) all the same: their median distance gives no bandwidth",
            field="embedding",
            value=middle,
            allowed="a median distance above 0",
        )
    return middle


def centre(rows: Tensor, mean: Tensor) -> None:
    """rows -= mean in place, the difference taken in float64 and rounded once."""
    for part in chunks(*rows.shape):
        rows[part] = rows[part].double() - mean


def pin(x: Tensor, mean: Tensor, settings: PanelSettings, codes: Tensor | None = None) -> tuple[Pins, Projection]:
    """Axes, covariance, edges and bandwidths of reference rows x (n, d) that are already centred by ``mean``.
    codes: (n,) of their clusters, where there are any."""
    d = int(x.shape[1])
    # axes that span everything leave no residual, and on the unit sphere nothing else sees a change of spread
    axes = settings.pca_components if settings.pca_components < d else max(1, d // 2)
    basis, covariance = fit(x, mean, components=axes, niter=settings.pca_niter, seed=settings.seed, clusters=codes)
    px = project(x, basis)
    components = min(settings.components, int(basis.axes.shape[0]))
    edges = divergences.fit_edges(px.scores, components, settings.bins)
    middle = median_distance(x, seed=settings.seed)
    return Pins(basis, covariance, edges, tuple(m * middle for m in settings.multiples)), px


def measure(
    x: Tensor,
    y: Tensor,
    clusters: tuple[Tensor | None, Tensor | None],
    px: Projection,
    pins: Pins,
    settings: PanelSettings,
    xx: PairSums,
    xy: PairSums,
    yy: PairSums,
    *,
    in_reference: bool = False,
    classifier_rows: int | None = None,
    codes: tuple[Tensor, Tensor] | None = None,
    kept: Kept | None = None,
) -> Measured:
    """All metrics of y (m, d) against x (n, d), both centred by the pinned mean; sums at the pinned bandwidths.

    clusters: (n,) and (m,) codes where the sums leave out same-cluster pairs.
    in_reference: y is a part of the rows the pins were fitted on, x the other rows.
    classifier_rows: most rows of y that the classifier sees; None: all.
    codes: (n,) and (m,) clusters of all rows, where there are any: metrics beside those of pairs keep clusters whole.
    kept: what earlier windows found out about x, with the same ``px``, pins, settings and codes of x.
    """
    py = project(y, pins.basis)
    metrics, energy = pair_metrics(xx, yy, xy, settings.multiples, *clusters)
    panel = _input(x, y, px, py, pins, settings, in_reference)
    panel = replace(panel, classifier_rows=classifier_rows, clusters=codes, kept=kept)
    for module in (*LINEAR, frechet, classifier):
        metrics += module.compute(panel)
    return Measured({metric.name: metric for metric in metrics}, energy, px, py)


def linear_metrics(
    x: Tensor, y: Tensor, px: Projection, py: Projection, pins: Pins, settings: PanelSettings
) -> list[Metric]:
    """The metrics whose work grows with the rows alone, as ``measure`` has them; for estimates of time."""
    panel = _input(x, y, px, py, pins, settings)
    return [metric for module in LINEAR for metric in module.compute(panel)]


def classifier_metric(
    x: Tensor, y: Tensor, pins: Pins, settings: PanelSettings, codes: tuple[Tensor, Tensor] | None = None
) -> Metric:
    """``classifier_auc`` of rows y (m, d) of the reference against others x (n, d) of it, centred by its mean.
    codes: (n,) and (m,) of their clusters."""
    nothing = Projection(x.new_zeros(0, 0), x.new_zeros(0))
    panel = _input(x, y, nothing, nothing, pins, settings, in_reference=True)
    (metric,) = classifier.compute(replace(panel, clusters=codes))
    return metric


def _input(
    x: Tensor,
    y: Tensor,
    px: Projection,
    py: Projection,
    pins: Pins,
    settings: PanelSettings,
    in_reference: bool = False,
) -> PanelInput:
    return PanelInput(
        x=x,
        y=y,
        px=px,
        py=py,
        basis=pins.basis,
        covariance=pins.covariance,
        edges=pins.edges,
        components=int(pins.edges.shape[0]),
        directions=settings.directions,
        seed=settings.seed,
        in_reference=in_reference,
    )


def pair_metrics(
    xx: PairSums,
    yy: PairSums,
    xy: PairSums,
    multiples: Sequence[float],
    clusters_x: Tensor | None,
    clusters_y: Tensor | None,
) -> tuple[list[Metric], PairEstimate]:
    """``energy``, ``mmd2_b1`` ... at each bandwidth, and ``mmd_max``: the largest MMD^2 in units of its null sd."""
    parts = [
        estimate(xx, yy, xy, f, clusters_x=clusters_x, clusters_y=clusters_y) for f in range(1 + len(xx.bandwidths))
    ]
    energy = parts[0]
    metrics = [Metric("energy", energy.value, energy.se, {"variance": energy.variance, "null_sd": energy.null_sd})]
    for b, (part, width, multiple) in enumerate(zip(parts[1:], xx.bandwidths, multiples, strict=True), start=1):
        extra = {"bandwidth": width, "multiple": multiple, "variance": part.variance, "null_sd": part.null_sd}
        metrics.append(Metric(f"mmd2_b{b}", part.value, part.se, extra))
    studentised = [(p.value / p.null_sd if p.null_sd > 0 else math.nan, b) for b, p in enumerate(parts[1:], start=1)]
    usable = [pair for pair in studentised if not math.isnan(pair[0])]
    if usable:
        largest, b = max(usable)
        metrics.append(Metric("mmd_max", largest, None, {"metric": f"mmd2_b{b}", "unit": "null standard deviations"}))
    return metrics, energy


def score(x: Tensor, y: Tensor, settings: PanelSettings, precision: str, scale: float = 1.0) -> dict[str, Metric]:
    """The panel of y against x from the rows alone (``gpudrift.score``); x pins axes, bandwidths and bins.

    precision, scale: of the pairs; the other metrics are in float32, or float64 with the pairs.
    """
    mean = mean_of(x)
    plain = "float64" if precision == "float64" else "float32"
    xp, yp = (kernels.prepare(rows, centre=mean, precision=plain) for rows in (x, y))
    x, y = xp.rows, yp.rows
    pins, px = pin(x, mean, settings)
    if precision != plain:
        xp, yp = (kernels.prepare(rows, precision=precision, scale=scale) for rows in (x, y))
    sums = [
        kernels.self_sums(xp, bandwidths=pins.bandwidths),
        kernels.cross_sums(xp, yp, bandwidths=pins.bandwidths),
        kernels.self_sums(yp, bandwidths=pins.bandwidths),
    ]
    return measure(x, y, (None, None), px, pins, settings, *sums).metrics
