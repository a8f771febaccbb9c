"""What a case must give, dense and in float64, from the n x m matrices themselves: for corners of the cases alone."""

from __future__ import annotations

import torch
from cases import Case
from torch import Tensor


def definition(x: Tensor, y: Tensor, sigma: float | None) -> Tensor:
    """(n, m) float64, by differences: the distance, or the RBF at ``sigma``."""
    distance = (x.double()[:, None] - y.double()[None]).square().sum(-1).sqrt()
    return distance if sigma is None else torch.exp(-(distance**2) / (2 * sigma * sigma))


def expected(case: Case, x: Tensor, y: Tensor, z: Tensor) -> list[float]:
    """What gpudrift must find for a case. z (n + m, 1 + P): the labels of a permuted score."""
    functions = [None, *case.sigmas()]
    if case.kind == "batch":
        x_parts, y_parts = torch.split(x, list(case.groups)), torch.split(y, list(case.groups[::-1]))
        return [float(definition(a, b, None).mean()) for a, b in zip(x_parts, y_parts, strict=True)]
    if case.kind == "score":
        return _score(case, x, y, z, functions[-1])
    other = x if case.kind == "self" else y
    ks = [definition(x, other, sigma) for sigma in functions]
    if case.kind == "self":
        ks = [k.fill_diagonal_(0) for k in ks]
    pairs = case.n * (case.n - 1) if case.kind == "self" else case.n * case.m
    result = [float(k.sum()) / pairs for k in ks]
    if case.squares:
        result += [float(k.square().sum()) / pairs for k in ks]
    if case.margins:
        result += [float(k[0].mean()) for k in ks] + [float(k[:, -1].mean()) for k in ks]
    return result


def _score(case: Case, x: Tensor, y: Tensor, z: Tensor, sigma: float | None) -> list[float]:
    sign = -1.0 if sigma is None else 1.0
    pooled = torch.cat([x, y])
    k = sign * definition(pooled, pooled, sigma).fill_diagonal_(0)
    n, m = case.n, case.m
    if case.permutations:
        statistics = []
        for one in z.bool().T:
            xx, yy, xy = k[one][:, one].sum(), k[~one][:, ~one].sum(), k[one][:, ~one].sum()
            statistics.append(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))
        return p_value(torch.stack(statistics))
    a = k[:n, :n].sum(1) / (n - 1) - k[:n, n:].mean(1)
    b = k[n:, n:].sum(1) / (m - 1) - k[:n, n:].mean(0)
    return [float(a.mean() + b.mean()), float((4 * a.var() / n + 4 * b.var() / m).sqrt())]


def expected_value(x: Tensor, y: Tensor, convention: str, sigma: float | None) -> float:
    """The energy distance (E_U, E_V) or the squared MMD at ``sigma`` (MMD2_U, MMD2_V)."""
    statistic, _, estimator = convention.partition("_")
    sigma, sign = (None, -1.0) if statistic == "E" else (sigma, 1.0)
    less = 1 if estimator == "U" else 0
    means = []
    for cloud in (x, y):
        k = definition(cloud, cloud, sigma)
        if less:
            k.fill_diagonal_(0)
        means.append(float(k.sum()) / (len(cloud) * (len(cloud) - less)))
    return sign * (means[0] + means[1] - 2 * float(definition(x, y, sigma).mean()))


def p_value(statistics: Tensor) -> list[float]:
    """The observed statistic (the first) and (1 + b) / (1 + B)."""
    observed, others = statistics[0], statistics[1:]
    return [float(observed), (1 + int((others >= observed).sum())) / (1 + len(others))]
