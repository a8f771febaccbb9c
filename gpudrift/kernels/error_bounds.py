"""How far each precision may move a score.

Let h = f(computed distance) - f(exact distance), f the distance itself or an RBF. The error of a U-statistic is then
the same U-statistic of h, and its standard deviation that of a two-sample U-statistic (Hoeffding 1948, Ann. Math.
Stat. 19, eq. 5.13; two samples: Lee 1990, U-Statistics, section 2.2):

    sd^2 = 2 v_xx / (n(n-1)) + 2 v_yy / (m(m-1)) + 4 v_xy / (nm) + 4 var(psi_x) / n + 4 var(psi_y) / m

v: variances of h less its row and column means. psi_x(i) = mean_j h(x_i, x_j) - mean_j h(x_i, y_j), psi_y alike: 0
where nothing drifts. What the three sums share, such as the common bias |e|^2 / d, drops out. h has two parts:

* Rounding of the rows, at most u |x - centre| an entry. MEASURED: up to ``SAMPLE`` rows of each cloud are rounded as
  the mode does and their distances compared in float64. Heavy tails, entries below float16's range, near-duplicates,
  loud dimensions and coarse data need no model of their own.
* Accumulation, in float32 (float64 in float64 mode). MODELLED: d2 = |x|^2 + |y|^2 - 2 x.y is off by plus or minus
  c 2^-24 (|x|^2 + |y|^2), c = ``_SPREAD``: little for ordinary pairs, much for near-duplicates and for clouds far
  from the common centre. Sums inside a tile and repeated squaring of the RBFs add their own.

``typical`` is 4 sd and what bias the sample shows; the tests and docs/precision.md say how often it was exceeded. A
bias that the sample cannot tell from its own noise is not in it: of coarse or repeated rows in a million, say.
``worst`` holds for any data and is far from reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.kernels.layout import ladder
from gpudrift.kernels.precision import MODES, Mode, place, scale_of, steps

SAMPLE = 512  # rows of each cloud behind a bound

_SIGMAS = 4.0
# Rms error of d2 in units of 2^-24 (|x|^2 + |y|^2). Float32 products on a CPU against float64: 0.6 to 1 on embeddings,
# 2.6 with an outlier or far apart, 3.9 where one dimension rules. A tensor core may cut off, not round, when it aligns
# addends (Fasi, Higham, Mikaitis, Pranesh 2021, PeerJ Comput. Sci. 7:e330): a unit more for each step of 16 columns.
_SPREAD = 4.0
_ALIKE = 2.25  # times that where many rows are all but the same: their products err alike, by 6 units at times
_ROW_SHARE = 0.125  # of it that all pairs of a row share: their norm's rounding (0.15 to 0.5 units were seen)
_TILE = {"cpu": 1 << 10, "cuda": 1 << 15}  # numbers added in float32 before float64 takes over


@dataclass(frozen=True)
class ErrorBound:
    """Bounds of |score - exact score|, in the score's units. rounding, accumulation: the two parts of ``typical``."""

    mode: str
    typical: float
    worst: float
    rounding: float
    accumulation: float


@dataclass(frozen=True)
class Sample:
    """Sampled rows of two clouds and what is known of all rows, float64.

    x (s, d), y (t, d): sampled rows less the centre. n, m: rows in all. distances: (s, s), (s, t), (t, t). Of all rows:
    lengths: their mean distance from the centre, x and y; rms: the root mean square; longest: the largest; largest: the
    largest entry.
    """

    x: Tensor
    y: Tensor
    n: int
    m: int
    distances: tuple[Tensor, Tensor, Tensor]
    lengths: tuple[float, float]
    rms: tuple[float, float]
    longest: float
    largest: float

    def scale(self, mode: Mode) -> float:
        return scale_of(self.largest) if mode.name == "float16" else 1.0


def sample(
    x: Tensor,
    y: Tensor | None = None,
    *,
    centre: Tensor | None = None,
    m: int | None = None,
    count: int = SAMPLE,
    seed: int = 0,
) -> Sample:
    """Rows to judge precisions by, the same for the same seed, and one pass over all rows for their lengths.

    Args:
        x (n, d), y (m, d): floating tensors, n, m >= 2. y None: the current window is not known yet; it is taken for m
            further rows (None: n) from where x comes from, and x is split for it (n >= 4).
        centre: (d,) what ``prepare`` subtracts; None: nothing.
        count: rows of each cloud to take.
    """
    if len(x) < (4 if y is None else 2) or (y is not None and len(y) < 2):
        sizes = (len(x), None if y is None else len(y))
        raise ArgumentError(
            "too few rows to judge a precision by", field="x, y", value=sizes, allowed=">= 2, x alone 4"
        )
    generator = torch.Generator().manual_seed(seed)
    if y is None:
        first, second = _some(len(x), 2 * count, generator).chunk(2)
        parts, clouds = ((x, first), (x, second)), [x]
    else:
        parts = ((x, _some(len(x), count, generator)), (y, _some(len(y), count, generator)))
        clouds = [x, y]
    middle = torch.zeros(x.shape[1], dtype=torch.float64) if centre is None else centre.double()
    xs, ys = (rows[index.to(rows.device)].to(x.device).double() - middle.to(x.device) for rows, index in parts)
    lengths, rms, longest, largest = zip(*(_extent(rows, middle) for rows in clouds), strict=True)
    return Sample(
        x=xs,
        y=ys,
        n=len(x),
        m=len(y) if y is not None else (len(x) if m is None else m),
        distances=_all_distances(xs, ys),
        lengths=(lengths[0], lengths[-1]),
        rms=(rms[0], rms[-1]),
        longest=max(longest),
        largest=max(largest),
    )


def error_bound(
    mode: str, rows: Sample, *, device_type: str = "cpu", bandwidths: Sequence[float] = (), f: int = 0
) -> ErrorBound:
    """Bounds for pair function f (0: energy; 1, 2, ...: MMD^2 at ``bandwidths[f - 1]``), U-statistic, in that mode.

    The module docstring has the formula of ``typical``; it covers the error of the standard error too, which is that
    of the psi. ``worst``: |h| is at most (for an RBF e^(-1/2) / s times) |e_i| + |e_j| + sqrt(gamma) (|x| + |y|),
    gamma = (d + 4) 2^-24 (Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. 3.5; twice that where
    addends are cut off), and the three means of the score weigh it 2, 1 and 1. Infinite where the mode refuses the
    rows' range.
    """
    arithmetic, s = MODES[mode], None if f == 0 else bandwidths[f - 1]
    if not _in_range(arithmetic, rows):
        return ErrorBound(mode, math.inf, math.inf, math.inf, math.inf)
    squarings = 0 if f == 0 else _squarings(tuple(bandwidths))[f]
    rounding = 0.0 if mode in ("float32", "float64") else _rounding(arithmetic, rows, s)
    last = [_mean(_function(d, s), same) for d, same in zip(rows.distances, (True, False, True), strict=True)]
    accumulation = _accumulation(arithmetic, rows, s, squarings, device_type)
    accumulation += 4 * 2.0**-52 * (last[0] + 2 * last[1] + last[2])  # the means themselves, and their difference
    worst = _worst(arithmetic, rows, s, squarings, device_type)
    return ErrorBound(mode, min(rounding + accumulation, worst), worst, rounding, accumulation)


def score_sd(rows: Sample, s: float | None = None) -> float:
    """Standard deviation of the score of n against m rows. s: bandwidth; None: energy. NaN below 4 sampled rows of x.

    Where nothing drifts it is c, ``gpudrift.metrics.pairs.null_sd``. Drift adds the psi of the module docstring, with f
    for h, where their variance is above eleven times the sample's noise: chance goes so far once in a thousand, even
    where all rows vary along one line.
    """
    if len(rows.x) < 4:
        return math.nan
    variances, psi = _components([_function(d, s) for d in rows.distances], margin=-10.0)
    return _spread(rows.n, rows.m, (variances[0],) * 3, psi)


def _some(n: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct row numbers below n in random order, all n where there are fewer."""
    if n <= 8 * count:
        return torch.randperm(n, generator=generator)[:count]
    drawn: Tensor = torch.unique(torch.randint(n, (2 * count,), generator=generator))  # no list of n numbers
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]]


def _extent(rows: Tensor, middle: Tensor) -> tuple[float, float, float, float]:
    """Mean, root mean square and largest distance from the middle, and the largest entry of the difference."""
    lengths, squares, longest, largest = 0.0, 0.0, 0.0, 0.0
    middle = middle.to(rows.device)
    for start, end in steps(rows, rows.device):
        part = rows[start:end].double() - middle
        norms = part.square().sum(1)
        lengths, squares = lengths + float(norms.sqrt().sum()), squares + float(norms.sum())
        longest, largest = max(longest, math.sqrt(float(norms.max()))), max(largest, float(part.abs().max()))
    return lengths / len(rows), math.sqrt(squares / len(rows)), longest, largest


def _all_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _distances(x, x), _distances(x, y), _distances(y, y)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squared: Tensor = torch.addmm(norms, a, b.T, alpha=-2)
    return squared.clamp_min_(0).sqrt_()


def _function(distance: Tensor, s: float | None) -> Tensor:
    return distance if s is None else distance.square().div_(-2 * s * s).exp_()


def _mean(k: Tensor, same: bool) -> float:
    """Mean over pairs; same: of a cloud with itself, self pairs left out."""
    pairs = k.numel() - (len(k) if same else 0)
    return float((k.clone().fill_diagonal_(0) if same else k).sum()) / pairs


def _row_means(k: Tensor, same: bool) -> Tensor:
    return k.clone().fill_diagonal_(0).sum(1) / (len(k) - 1) if same else k.mean(1)


def _variance(k: Tensor, same: bool) -> float:
    """Variance of k less its row and column means, without bias (A2 - 2 A1 + A0 of a cloud with itself)."""
    s, t = k.shape
    if not same:
        rest = k - k.mean(1, keepdim=True) - k.mean(0) + k.mean()
        return float(rest.square().sum()) / ((s - 1) * (t - 1))
    k = k.clone().fill_diagonal_(0)
    if s < 4:
        return _mean(k.square(), same)  # no unbiased estimate: from above
    r, squares = k.sum(1), float(k.square().sum())
    total, r_r = float(r.sum()), float(r @ r)
    a2, a1 = squares / (s * (s - 1)), (r_r - squares) / (s * (s - 1) * (s - 2))
    a0 = (total * total - 4 * r_r + 2 * squares) / (s * (s - 1) * (s - 2) * (s - 3))
    return max(a2 - 2 * a1 + a0, 0.0)


def _components(k: Sequence[Tensor], margin: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The variances (x with itself, x with y, y with itself) and those of psi_x and psi_y, without what finitely many
    partners put there, plus ``margin`` times that noise."""
    xx, xy, yy = k
    variances = (_variance(xx, True), _variance(xy, False), _variance(yy, True))
    psi = []
    for own, own_variance, cross in ((xx, variances[0], xy), (yy, variances[2], xy.T)):
        means = _row_means(own, True) - _row_means(cross, False)
        noise = own_variance / (len(own) - 1) + variances[1] / cross.shape[1]
        psi.append(max(max(float(means.var()) - noise, 0.0) + margin * noise, 0.0))
    return variances, tuple(psi)


def _spread(n: int, m: int, variances: Sequence[float], psi: Sequence[float]) -> float:
    """sd of the module docstring."""
    xx, xy, yy = variances
    centred = 2 * xx / (n * (n - 1)) + 4 * xy / (n * m) + 2 * yy / (m * (m - 1))
    return math.sqrt(centred + 4 * psi[0] / n + 4 * psi[1] / m)


def _score(k: Sequence[Tensor]) -> float:
    return 2 * _mean(k[1], False) - _mean(k[0], True) - _mean(k[2], True)


def _rounding(mode: Mode, rows: Sample, s: float | None) -> float:
    """4 sd, and the bias where the sample shows one beyond 3 of its own sd."""
    scale = rows.scale(mode)
    rounded = [place(part, None, mode, scale, part.device).double() / scale for part in (rows.x, rows.y)]
    h = [_function(b, s) - _function(a, s) for a, b in zip(rows.distances, _all_distances(*rounded), strict=True)]
    moved = [(after - before).square().sum(1) for after, before in zip(rounded, (rows.x, rows.y), strict=True)]
    sides = (moved[0], moved[0]), (moved[0], moved[1]), (moved[1], moved[1])
    smooth = [
        _function((d.square() + a[:, None] + b).sqrt(), s) - _function(d, s)
        for d, (a, b) in zip(rows.distances, sides, strict=True)
    ]
    variances, psi = _components(h, margin=math.sqrt(2 / min(len(rows.x), len(rows.y))))
    noise = _spread(len(rows.x), len(rows.y), variances, psi)
    seen = abs(_score(h))
    bias = abs(_score(smooth)) + (seen + 3 * noise if seen > 3 * noise else 0.0)
    return _SIGMAS * _spread(rows.n, rows.m, variances, psi) + bias


def _accumulation(mode: Mode, rows: Sample, s: float | None, squarings: int, device_type: str) -> float:
    """4 sd and the bias, for d2 off by plus or minus q2: two equally likely values stand for its distribution."""
    unit = _unit(mode)
    spread = unit * (_SPREAD + (rows.x.shape[1] / 16 if device_type == "cuda" else 0.0))
    norms = rows.x.square().sum(1), rows.y.square().sum(1)
    sides = (norms[0], norms[0]), (norms[0], norms[1]), (norms[1], norms[1])
    squared: list[float] = []
    drawn: list[Tensor] = []
    shared: list[Tensor] = []
    sums: list[float] = []
    for distance, (a, b), same in zip(rows.distances, sides, (True, False, True), strict=True):
        d2, q2 = distance.square(), spread * (a[:, None] + b)
        k = _function(distance, s)
        up = _function((d2 + q2).sqrt(), s) - k
        down = _function((d2 - q2).clamp_min(0).sqrt(), s) - k
        alike = _function((d2 + _ALIKE * q2).sqrt(), s) - k
        square, middle = (up.square() + down.square()) / 2, (up + down) / 2
        # d2 is floored at 0: an RBF there becomes 1, however small it is
        near = alike if s is None else torch.where(alike.abs() > middle.abs(), alike, middle)
        bias = torch.where(d2 < q2, near, middle)
        if s is not None:  # exp and squarings: 4 units a squaring pair; alike, so a bias, where k is all but 1
            relative = k * (unit * 4.0 ** (1 + squarings))
            square += relative.square()
            bias += torch.where(k > 1 - 2.0**-10, relative, 0.0)
        squared.append(_mean(square, same))
        drawn.append(bias)
        shared.append(_ROW_SHARE * square.sqrt())
        sums.append(_mean(k.square(), same))
    if s is None:  # long rows that the sample missed count in the sums of a tile
        x2, y2 = rows.rms[0] ** 2, rows.rms[1] ** 2
        sums = [max(a, b) for a, b in zip(sums, (2 * x2, x2 + y2, 2 * y2), strict=True)]
    psi = (
        float((_row_means(shared[0], True) - _row_means(shared[1], False)).square().mean()),
        float((_row_means(shared[2], True) - _row_means(shared[1].T, False)).square().mean()),
    )
    pairs = (rows.n * rows.n, rows.n * rows.m, rows.m * rows.m)
    tile = 1 if mode.name == "float64" else _TILE[device_type]
    weights = (1.0, 4.0, 1.0)
    summing = sum(w * k2 * min(1.0, tile / p) for w, k2, p in zip(weights, sums, pairs, strict=True))
    sd = math.hypot(_spread(rows.n, rows.m, squared, psi), unit * math.sqrt(summing))
    return _SIGMAS * sd + abs(_score(drawn))


def _worst(mode: Mode, rows: Sample, s: float | None, squarings: int, device_type: str) -> float:
    unit, d, scale = _unit(mode), rows.x.shape[1], rows.scale(mode)
    lengths = sum(rows.lengths)
    smallest = {"float16": 2.0**-25, "float64": 2.0**-1075}.get(mode.name, 2.0**-150)  # half the step below the range
    moved = (
        1.001 * mode.roundoff * lengths + 2 * math.sqrt(d) * smallest / scale
    )  # 1.001: float64 -> float32 -> 16 bits
    cut = 2 if device_type == "cuda" else 1
    moved += math.sqrt(cut * (d + 4) * unit) * lengths
    tile = unit * _TILE[device_type] * cut
    if s is None:
        return 4 * (moved + tile * lengths)
    return min(4 * (math.exp(-0.5) / s * moved + unit * 4.0 ** (1 + squarings) + tile), 4.0)


def _unit(mode: Mode) -> float:
    return 2.0**-53 if mode.name == "float64" else 2.0**-24


def _squarings(bandwidths: tuple[float, ...]) -> dict[int, int]:
    """By function: pairs of squarings between its RBF and the exponential it comes from."""
    found, count = {}, 0
    for rung in ladder(bandwidths, 1.0):
        count = count + 1 if rung.chained else 0
        found[rung.f] = count
    return found


def _in_range(mode: Mode, rows: Sample) -> bool:
    """Whether ``prepare`` takes the rows: their squared norms in the range of the mode."""
    longest = rows.longest * rows.scale(mode)
    return longest == 0 or (longest <= mode.longest and longest * longest >= mode.low)
