"""The dense float64 definition on any device, and how far float32 accumulation may move each sum.

``truth`` gives what ``gpudrift.kernels.reference`` gives (a test compares the two), in chunks of rows, and beside every
sum a bound. With u = 2^-24, norms and distances of the ROUNDED rows:

* d2 = |x|^2 + |y|^2 - 2 x.y is off by at most q = c u (|x|^2 + |y|^2), c = 4 + d / 16: a tensor core may cut off, not
  round, when it aligns addends, a unit for each step of 16 columns (Fasi, Higham, Mikaitis, Pranesh 2021, PeerJ Comput.
  Sci. 7:e330).
* The distance is then off by at most min(sqrt(q), q / d), and 2 u of itself for an approximate root.
* An RBF with exponent g d2 is off by k (e^(g q) - 1) + k u (4 + 4^(c + 1) + 2 g d2), c being the times it was raised
  to the fourth power, and 2^-126 where it underflows.
* A sum of k in float32, before float64 takes over, is off by 64 u of itself (sums of 2048 numbers by a tree of partial
  sums: about 16 u is seen).
* z'Kz: k, less a constant near the typical distance, is rounded to 11 bits first: 2^-10 of it where that is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpudrift.kernels.layout import PairSums, Prepared, ladder

U = 2.0**-24
_SUMMING = 64 * U
_LABEL = 2.0**-10
_AT_ONCE = 1 << 24  # pairs of a chunk
_BY_DIFFERENCES = 1 << 31  # n m d up to which distances are taken by differences, not by a float64 product


@dataclass(frozen=True)
class Sums:
    """float64, on the clouds' device, as in ``PairSums``: total (F,), rows (F, n), columns (F, m), squares (F,), blocks
    (F, G, H), labels (F, P)."""

    total: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor
    blocks: Tensor
    labels: Tensor


def truth(x: Prepared, y: Prepared | None, bandwidths: Sequence[float], labels: Tensor | None) -> tuple[Sums, Sums]:
    """The sums of ``gpudrift.kernels`` by definition, and the bound of each; y None: of x with itself, i != j."""
    other = x if y is None else y
    device = x.norms.device
    rows_x = x.rows.to(device).double() / x.scale
    rows_y = rows_x if y is None else other.rows.to(device).double() / x.scale
    z = torch.zeros(len(x), 0, device=device) if labels is None else labels.to(device)
    z = z.double()
    at, into = _membership(x, device), _membership(other, device)
    functions = 1 + len(bandwidths)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(functions, *shape, dtype=torch.float64, device=device)

    def empty() -> Sums:
        groups = (at.shape[1], into.shape[1])
        return Sums(zeros(), zeros(len(x)), zeros(len(other)), zeros(), zeros(*groups), zeros(z.shape[1]))

    value, bound = empty(), empty()
    chains = _chains(tuple(bandwidths))
    typical = math.sqrt(2 * float(x.norms.mean())) / x.scale if len(x) else 0.0
    exact = len(x) * len(other) * x.dim <= _BY_DIFFERENCES
    norms_x, norms_y = rows_x.square().sum(1), rows_y.square().sum(1)
    step = max(1, _AT_ONCE // max(1, len(other)))
    for start in range(0, len(x), step):
        end = min(start + step, len(x))
        d2 = _squared(rows_x[start:end], rows_y, norms_x[start:end], norms_y, exact)
        q = (4 + x.dim / 16) * U * (norms_x[start:end, None] + norms_y)
        keep = torch.ones_like(d2, dtype=torch.bool)
        if y is None:
            keep[torch.arange(end - start), torch.arange(start, end)] = False
        if x.clusters is not None and other.clusters is not None:
            keep &= x.clusters[start:end, None] != other.clusters[None, :]
        for f in range(functions):
            k, off = _distance(d2, q) if f == 0 else _rbf(d2, q, bandwidths[f - 1], chains[f])
            k, off = k * keep, off * keep
            _add(value, f, start, end, k, at, into, z, y is None)
            _add(bound, f, start, end, off, at, into, z, y is None)
            value.squares[f] += k.square().sum()
            bound.squares[f] += ((q * keep) if f == 0 else 2 * k * off + off.square()).sum()
            if z.shape[1]:
                rounded = (k - typical * keep if f == 0 else k).abs() * _LABEL
                bound.labels[f] += ((rounded @ z) * z[start:end]).sum(0)
    for name in ("total", "rows", "columns", "blocks", "labels", "squares"):
        getattr(bound, name).add_(getattr(value, name).abs(), alpha=_SUMMING).add_(1e-30)
    return value, bound


def worst(found: PairSums, value: Sums, bound: Sums, *, squares: bool, margins: bool) -> tuple[float, str]:
    """The largest error as a multiple of its bound, and a sentence on what is wrong (empty if nothing is)."""
    largest, wrong = 0.0, []
    for name in ("total", "blocks", "labels", "rows", "columns", "squares"):
        got, wanted, allowed = (getattr(part, name).cpu() for part in (found, value, bound))
        if (name == "squares" and not squares) or (name in ("rows", "columns") and not margins):
            kept = 0 if name == "squares" else got.numel()
            if kept:
                wrong.append(f"{name}: {kept} numbers nobody asked for")
            continue
        if got.shape != wanted.shape:
            wrong.append(f"{name}: shape {tuple(got.shape)}, {tuple(wanted.shape)} wanted")
            continue
        if not got.numel():
            continue
        multiple = (got - wanted).abs() / allowed
        multiple = torch.where(multiple.isnan(), math.inf, multiple)
        most = float(multiple.max())
        largest = max(largest, most)
        if most > 1:
            at = int(multiple.argmax())
            got_one, wanted_one = float(got.flatten()[at]), float(wanted.flatten()[at])
            wrong.append(f"{name}[{at}] is {got_one:.9g}, not {wanted_one:.9g}: {most:.3g} times the bound")
    return largest, "; ".join(wrong)


def _membership(cloud: Prepared, device: torch.device) -> Tensor:
    """(n, G) float64, 1 where a row is of a group."""
    sizes = torch.tensor(cloud.offsets, device=device).diff()
    group = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    member: Tensor = torch.nn.functional.one_hot(group, len(sizes)) if len(group) else group.new_zeros(0, len(sizes))
    return member.double()


def _chains(bandwidths: tuple[float, ...]) -> dict[int, int]:
    """By function: how many times its RBF was raised to the fourth power."""
    found, count = {}, 0
    for rung in ladder(bandwidths, 1.0):
        count = count + 1 if rung.chained else 0
        found[rung.f] = count
    return found


def _squared(x: Tensor, y: Tensor, norms_x: Tensor, norms_y: Tensor, exact: bool) -> Tensor:
    if exact:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.addmm(norms_x[:, None] + norms_y, x, y.T, alpha=-2).clamp_min_(0)


def _distance(d2: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    k = d2.sqrt()
    return k, torch.minimum(q.sqrt(), q / k.clamp_min(1e-300)) + 2 * U * k


def _rbf(d2: Tensor, q: Tensor, s: float, chained: int) -> tuple[Tensor, Tensor]:
    g = 1 / (2 * s * s)
    k = torch.exp(-g * d2)
    return k, k * torch.expm1((g * q).clamp_max(40)) + k * (U * (4 + 4.0 ** (chained + 1) + 2 * g * d2)) + 2.0**-126


def _add(sums: Sums, f: int, start: int, end: int, k: Tensor, at: Tensor, into: Tensor, z: Tensor, same: bool) -> None:
    rows = k.sum(1)
    sums.total[f] += rows.sum()
    sums.rows[f, start:end] = rows
    sums.columns[f] += k.sum(0)
    sums.blocks[f] += at[start:end].T @ (k @ into)
    if z.shape[1] and same:
        sums.labels[f] += ((k @ z) * z[start:end]).sum(0)
