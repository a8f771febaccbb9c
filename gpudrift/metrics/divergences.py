"""``psi``, ``js`` and ``kl`` on bins pinned by the reference: the mean over the first components, null mean removed.

Per component, p = current and q = reference are bin shares on the reference's quantiles with open ends, 0.5 added to
each bin and renormalised:

    KL  = KL(current || reference) = sum p log(p / q)            nats      null mean (B - 1)/2 h
    PSI = KL(p || q) + KL(q || p)  = sum (p - q) log(p / q)      nats      null mean (B - 1) h
    JS  = (KL(p || mid) + KL(q || mid)) / 2, mid = (p + q) / 2   bits      null mean (B - 1) / (8 ln 2) h

with h = 1/n + 1/m and B the bins that hold reference rows (KL: Kullback and Leibler 1951; JS: Lin 1991, base 2, at
most 1; PSI: the credit-scoring index). The null means are the chi-square limit of each: without their removal a small
window always looks drifted (at n = 200, m = 150, 10 bins, half of all stable windows exceed PSI .1). Removed, the value
is near 0 without drift, may be negative, and is not clamped.

Standard errors by the delta method, influence values summed over the components per row first, because the components
of one row depend on each other. First-order, so for distributions that differ.
extra: ``raw`` and ``null_mean`` (means over the components), ``per_component`` (null mean removed), ``bins``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpudrift.errors import ArgumentError
from gpudrift.metrics.accumulate import require, require_rows, variance_of_mean
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Metric, PanelInput

_NOISE = 1e-6  # a component whose sd is below this share of the largest holds rounding only


def fit_edges(scores_nq: Tensor, components: int, bins: int) -> Tensor:
    """Inner bin edges, (components, bins - 1) float64: the reference's quantiles 1/bins .. (bins - 1)/bins.

    scores_nq: (n, q) reference scores, q >= components. Quantiles interpolate linearly. Heavy ties repeat an edge;
    the bins of zero width between repeated edges stay empty and are left out of every sum. A component that is
    numerically constant gets a band about its mean, much wider than rounding and much narrower than any real spread,
    else its bins would cut the rounding noise. InsufficientDataError without rows, ArgumentError for components > q or
    bins < 2.
    """
    require_rows(scores_nq, 1)
    for name, value, low, high in (("components", components, 1, scores_nq.shape[1]), ("bins", bins, 2, 10**6)):
        if not low <= value <= high:
            raise ArgumentError("unusable bins", field=name, value=value, allowed=f"{low} to {high}")
    scores = scores_nq[:, :components].double()
    sd = scores.std(dim=0, unbiased=False)
    largest = float(sd.max())
    edges = torch.empty(components, bins - 1, dtype=torch.float64, device=scores.device)
    for k in range(components):
        if float(sd[k]) > _NOISE * largest:
            edges[k] = _quantiles(scores[:, k], bins)
        else:
            band = 10.0 * _NOISE * largest
            edges[k] = float(scores[:, k].mean()) + band
            edges[k, : bins // 2] -= 2.0 * band
    return edges


def compute(panel: PanelInput) -> list[Metric]:
    """``psi``, ``js``, ``kl``. InsufficientDataError for n or m < 2."""
    bins_x, counts_x = of_reference(panel, "bins", lambda: _binned(panel.px.scores, panel.edges))
    bins_y, counts_y = _binned(panel.py.scores, panel.edges)
    return from_bins(counts_x, counts_y, bins_x, bins_y)


def from_bins(counts_x: Tensor, counts_y: Tensor, bins_x: Tensor, bins_y: Tensor) -> list[Metric]:
    """``psi``, ``js``, ``kl`` from counts, and standard errors from the bins of rows.

    Args:
        counts_x, counts_y: (C, B) int64 of n and m rows, reference and current.
        bins_x, bins_y: (C, n') and (C, m') int64, each row's bins: of all rows, or of a uniform sample of them.
    InsufficientDataError for n, m, n' or m' < 2.
    """
    n, m = (int(counts[0].sum()) for counts in (counts_x, counts_y))
    for rows in (bins_x.shape[1], bins_y.shape[1], n, m):
        require(rows, 2)
    tables = [_table(*parts) for parts in zip(counts_x, counts_y, strict=True)]
    h = 1.0 / n + 1.0 / m
    metrics = []
    for name, formula, null_factor, about in _KINDS:
        raw, null = [], []
        influence_x = torch.zeros(bins_x.shape[1], dtype=torch.float64, device=bins_x.device)
        influence_y = torch.zeros(bins_y.shape[1], dtype=torch.float64, device=bins_y.device)
        for (p, q, renumber, filled), of_x, of_y in zip(tables, bins_x, bins_y, strict=True):
            value, by_p, by_q = formula(p, q)
            raw.append(value)
            null.append((filled - 1) * null_factor * h)
            influence_y += by_p[renumber[of_y]]
            influence_x += by_q[renumber[of_x]]
        count = len(tables)
        # variances of means of n and m rows, estimated from n' and m'
        variance_x = variance_of_mean(influence_x / count) * (bins_x.shape[1] / n)
        variance_y = variance_of_mean(influence_y / count) * (bins_y.shape[1] / m)
        extra = {
            "raw": math.fsum(raw) / count,
            "null_mean": math.fsum(null) / count,
            "per_component": [value - expected for value, expected in zip(raw, null, strict=True)],
            "bins": int(counts_x.shape[1]),
            **about,
        }
        value = (math.fsum(raw) - math.fsum(null)) / count
        metrics.append(Metric(name, value, math.sqrt(variance_x + variance_y), extra))
    return metrics


_Table = tuple[Tensor, Tensor, Tensor, int]
_Formula = Callable[[Tensor, Tensor], tuple[float, Tensor, Tensor]]


def _binned(scores_nq: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's bins, (C, n) int64, and rows a bin, (C, B) int64."""
    # right=True: bin k is [edge k-1, edge k), so what lies on a repeated edge falls in one bin, those between are empty
    bins = torch.searchsorted(edges, scores_nq[:, : edges.shape[0]].T.contiguous(), right=True)
    return bins, torch.stack([torch.bincount(of, minlength=edges.shape[1] + 1) for of in bins])


def _table(count_x: Tensor, count_y: Tensor) -> _Table:
    """Shares p (current) and q (reference) of the bins in use, a bin's place among these, and the number of bins with
    reference rows."""
    # a bin empty in both clouds says nothing, yet its two halves of a row would differ by n and m alone
    used = (count_x + count_y) > 0
    p, q = count_y[used].double() + 0.5, count_x[used].double() + 0.5
    return p / p.sum(), q / q.sum(), used.cumsum(dim=0) - 1, int((count_x > 0).sum())


def _kl(p: Tensor, q: Tensor) -> tuple[float, Tensor, Tensor]:
    log = (p / q).log()
    return float((p * log).sum()), log, -p / q


def _psi(p: Tensor, q: Tensor) -> tuple[float, Tensor, Tensor]:
    log = (p / q).log()
    return float(((p - q) * log).sum()), log - q / p, -log - p / q


def _js(p: Tensor, q: Tensor) -> tuple[float, Tensor, Tensor]:
    middle = (p + q) / 2.0
    by_p, by_q = (p / middle).log2() / 2.0, (q / middle).log2() / 2.0
    return float((p * by_p + q * by_q).sum()), by_p, by_q


# name, formula -> (value, its derivative by p, by q, each up to a constant), null mean over (B - 1) h, what to say
_KINDS: tuple[tuple[str, _Formula, float, dict[str, str]], ...] = (
    ("psi", _psi, 1.0, {"unit": "nats"}),
    ("js", _js, 1.0 / (8.0 * math.log(2.0)), {"unit": "bits"}),
    ("kl", _kl, 0.5, {"unit": "nats", "direction": "KL(current || reference)"}),
)


def _quantiles(values: Tensor, bins: int) -> Tensor:
    # not torch.quantile: it refuses more than 16 million values
    ordered = values.sort().values
    at = torch.arange(1, bins, dtype=torch.float64, device=values.device) * ((values.shape[0] - 1) / bins)
    low = at.floor().long()
    high = (low + 1).clamp(max=values.shape[0] - 1)
    return torch.lerp(ordered[low], ordered[high], at - low)
