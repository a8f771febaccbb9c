"""``classifier_auc``: how well a linear classifier tells the windows apart, cross-fitted; value = AUC - 1/2.

AUC is the chance that a current row has a larger score w . row than a reference row, ties counting half (Mann-Whitney
U over nm), so 1/2 without drift. The value is signed: sampling takes it below 0 as often as above, and rows that occur
in both windows pull it down. It sees a moved mean, and in directions of little variance as well as in any other, where
energy and MMD see none; it sees neither spread nor a small new cluster.

The classifier is Fisher's linear discriminant on whitened rows, cross-fitted over ``FOLDS`` folds (row i in fold
i mod ``FOLDS``). With b_l the difference of the two means within fold l (current less reference), rows of fold k are
scored by

    w_k = (S + a I)^-1 mean of the b_l, l != k,      a = (tr S / d) max(d / (10 N), 1e-6)

N rows are scored. S is the covariance of both windows together, about their common mean: it knows no labels, so
exchanging those of the rows under test changes no w, and the expected AUC without drift is 1/2 exactly though S has
seen these rows. (The reference's own covariance would not do: its rows lie closer in than fresh ones, and 800 rows of
384 dimensions against 100 gave a mean AUC of .526.) It is the pinned covariance and what the current rows add, so the
reference's rows are not squared again. Scores of different folds are on different scales: AUC is taken in each fold and
averaged.

Why not logistic regression: on normal mixtures with a shifted mean, along all axes or along the last quarter alone,
both find as much as cross-fitted ``sklearn.linear_model.LogisticRegression`` on standardised rows, at its best of C =
.01, .1, 1, 10. d = 64, n = m = 500: power at 5% .85 / .97 against .87 / .97 (energy .21 / .11), and 1.00 / 1.00 at a
shift 1.6 times as long (energy .58 / .28). d = 384, n = 400, m = 100: 5.1 / 4.6 null sd against 4.3 / 3.6. It takes one
Cholesky factor instead of five iterations to convergence, 3 ms against 40. Discriminants with a covariance of each
fold's training rows find no more either and cost four times as much.

With clusters (users, documents) all rows of one, of both windows, are in the same fold: w would else know the users it
is tested on, and tell new users from old ones where nothing has drifted (ten rows a user, half of the variance between
users, d = 64, 400 rows a window: a mean AUC of .73).

Standard error: given the w_k, AUC_k is a two-sample U-statistic with structural components V (DeLong, DeLong and
Clarke-Pearson 1988), whose variances are pooled over folds: D = (1/K^2) sum_k (var V_x / n_k + var V_y / m_k), with
clusters from their sums by cluster (Obuchowski 1997). But folds train each other's w, and their AUCs are correlated.
With r the share of noise in the squared length of w (1 without drift, near 0 for a large one), an expansion to second
order in the noise of the b_l, white after whitening, gives for five folds

    var = D (1 + r (1 + (1 - r) (1.3 + .2 r)))

twice D without drift; of simulated 95% intervals 94% to 97% cover the expected value, from AUC .5 to .95. The standard
error is at least 1 / (2 min(n, m)): with clouds completely apart D is 0.

Work space: three (d, d) float64 matrices; time d^3 / 3 + m d^2 + n d multiplications (one core, m = 350: 10 ms at
n = 4000, d = 384; 2.2 s at n = 5000, d = 4096).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpudrift.metrics.accumulate import chunks, mean_of, require_rows
from gpudrift.metrics.kept import of_reference
from gpudrift.records import Metric, PanelInput

Places = slice | Tensor

FOLDS = 5
ROWS = 20_000  # of the reference that take part, evenly spread over it; more would hardly narrow the null
_RIDGE, _LEAST_RIDGE = 0.1, 1e-6  # of d / N, and in any case, times the mean variance
_SAME = 1e-9  # scores this close, as a share of the largest, are equal but for rounding


def compute(panel: PanelInput) -> list[Metric]:
    """``classifier_auc``. InsufficientDataError for n or m < 2.

    extra: ``auc``, ``folds``, rows used of each side, ``ridge`` (a as a share of the mean variance), ``noise`` (r).
    ``se`` is None, with a ``note``, where a side has no more rows than there are folds.
    """
    x_nd, y_md = panel.x, panel.y[: panel.classifier_rows]
    if x_nd.shape[0] > ROWS:
        x_nd = of_reference(panel, "spread out", lambda: _spread_out(panel.x))
    require_rows(x_nd, 2)
    require_rows(y_md, 2)
    codes = None
    if panel.clusters is not None:
        codes = _spread_out(panel.clusters[0]).cpu(), panel.clusters[1][: panel.classifier_rows].cpu()
    parts, least = _folds(x_nd.shape[0], y_md.shape[0], codes, x_nd.device)
    folds = len(parts)
    if folds < 2:
        extra = {"auc": 0.5, "folds": folds, "note": "too few clusters to keep them whole"}
        return [Metric("classifier_auc", 0.0, None, extra)]
    means_y = [mean_of(y_md[of_y]) for _, of_y in parts]

    def fold_means() -> list[Tensor]:
        return [mean_of(x_nd[of_x]) for of_x, _ in parts]

    # clusters are dealt to folds with those of the window
    means_x = fold_means() if codes is not None else of_reference(panel, ("fold means", folds), fold_means)
    between_dk = torch.stack([y - x for x, y in zip(means_x, means_y, strict=True)], dim=1)
    factor_dd, ridge = _whitening(panel, y_md, x_nd.shape[0] + y_md.shape[0])
    along_dk = torch.zeros_like(between_dk)
    if factor_dd is not None:
        along_dk = torch.cholesky_solve(between_dk, factor_dd)
    noise = _noise_share(between_dk.T @ along_dk)
    directions_dk = (along_dk.sum(dim=1, keepdim=True) - along_dk) / (folds - 1)
    scored = [_scores(rows, directions_dk, [pair[side] for pair in parts]) for side, rows in enumerate((x_nd, y_md))]
    components = [_components(x, y) for x, y in zip(*scored, strict=True)]
    auc = sum(float(of_y.mean()) for _, of_y in components) / folds
    extra = {
        "auc": auc,
        "folds": folds,
        "rows_reference": x_nd.shape[0],
        "rows_current": y_md.shape[0],
        "ridge": ridge,
        "noise": noise,
    }
    if least <= folds:
        return [Metric("classifier_auc", auc - 0.5, None, {**extra, "note": "too few rows for a standard error"})]
    if codes is None:
        given = _variance_of_mean([x for x, _ in components]) + _variance_of_mean([y for _, y in components])
    else:
        given = _variance_by_cluster(components, [(codes[0][_on_cpu(x)], codes[1][_on_cpu(y)]) for x, y in parts])
    variance = given * (1.0 + noise * (1.0 + (1.0 - noise) * (1.3 + 0.2 * noise)))
    return [Metric("classifier_auc", auc - 0.5, max(math.sqrt(variance), 0.5 / least), extra)]


def _spread_out(x_nd: Tensor) -> Tensor:
    n = x_nd.shape[0]
    if n <= ROWS:
        return x_nd
    return x_nd[torch.arange(ROWS, device=x_nd.device) * n // ROWS]


def _folds(
    n: int, m: int, codes: tuple[Tensor, Tensor] | None, device: torch.device
) -> tuple[list[tuple[Places, Places]], int]:
    """Places of the rows of x and of y in each fold, and the rows (or clusters) of the smaller side. Folds that whole
    clusters leave without a row of either side are left out."""
    if codes is None:
        folds = min(FOLDS, n, m)
        return [(slice(k, None, folds), slice(k, None, folds)) for k in range(folds)], min(n, m)
    found, places = torch.unique(torch.cat(codes), return_inverse=True)
    of_x, of_y = (torch.bincount(side, minlength=len(found)) for side in (places[:n], places[n:]))
    # in turn: those of x alone, of y alone, of both, the largest first
    order = (of_x + of_y).argsort(descending=True, stable=True)
    order = order[((of_x > 0) + 2 * (of_y > 0))[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % FOLDS
    dealt = fold[places].tensor_split((n,))
    of = [[(side == k).nonzero()[:, 0].to(device) for k in range(FOLDS)] for side in dealt]
    least = min(int((held > 0).sum()) for held in (of_x, of_y))
    return [(x, y) for x, y in zip(*of, strict=True) if len(x) and len(y)], least


def _on_cpu(places: Places) -> Places:
    return places if isinstance(places, slice) else places.cpu()


def _whitening(panel: PanelInput, y_md: Tensor, scored: int) -> tuple[Tensor | None, float]:
    """Cholesky factor of S + a I, None where all rows are equal, and a as a share of S's mean variance."""
    total_dd = panel.covariance  # of x and y together already where y is a part of what was pinned
    if not panel.in_reference:
        n, m = panel.x.shape[0], y_md.shape[0]
        total_dd = total_dd * (n - 1)
        for part in chunks(*y_md.shape):
            block = y_md[part].double()
            total_dd.addmm_(block.T, block)
        mean_d = mean_of(y_md)
        # rows are centred by the reference's mean: moved to the mean of both
        total_dd.addr_(mean_d, mean_d, alpha=-(m * m) / (n + m)).div_(n + m - 1)
    d = total_dd.shape[0]
    ridge = max(_RIDGE * d / scored, _LEAST_RIDGE)
    mean_variance = float(total_dd.diagonal().mean())
    if not mean_variance > 0.0:
        return None, ridge
    scaled_dd = total_dd / mean_variance
    scaled_dd.diagonal().add_(ridge)
    return torch.linalg.cholesky(scaled_dd), ridge


def _noise_share(products_kk: Tensor) -> float:
    """r, from the whitened products b_k' (S + a I)^-1 b_l: those of different folds hold no noise on average."""
    folds = products_kk.shape[0]
    others = (torch.ones_like(products_kk) - torch.eye(folds).to(products_kk)) / (folds - 1)
    length = float((others @ products_kk @ others).trace()) / folds
    signal = float((products_kk.sum() - products_kk.trace()) / (folds * (folds - 1)))
    return 1.0 - min(max(signal / length, 0.0), 1.0) if length > 0.0 else 1.0


def _scores(rows_nd: Tensor, directions_dk: Tensor, places: list[Places]) -> list[Tensor]:
    """Per fold k, w_k . row of its rows, float64."""
    found = []
    for k, own in enumerate(places):
        fold = rows_nd[own]
        found.append(torch.cat([fold[part].double() @ directions_dk[:, k] for part in chunks(*fold.shape)]))
    return found


def _components(x_n: Tensor, y_m: Tensor) -> tuple[Tensor, Tensor]:
    """Structural components of the AUC of scores x (n,) and y (m,): the share of y above each x, and of x below each y,
    ties counting half. The mean of either is the AUC."""
    unit = _SAME * float(torch.maximum(x_n.abs().max(), y_m.abs().max()))
    if unit > 0.0:  # equal rows have scores equal but for rounding, and their order would be an accident
        x_n, y_m = (x_n / unit).round(), (y_m / unit).round()
    ordered_x, ordered_y = x_n.sort().values, y_m.sort().values
    return 1.0 - _share_below(ordered_y, x_n), _share_below(ordered_x, y_m)


def _share_below(ordered: Tensor, values: Tensor) -> Tensor:
    below = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
    return below.double() / (2 * ordered.shape[0])


def _variance_of_mean(folds: list[Tensor]) -> float:
    """Sampling variance of the mean over folds of the folds' means, with one variance for all, about the folds' own."""
    rows = sum(fold.shape[0] for fold in folds)
    squares = sum(float((fold - fold.mean()).square().sum()) for fold in folds)
    return squares / (rows - len(folds)) * sum(1.0 / fold.shape[0] for fold in folds) / len(folds) ** 2


def _variance_by_cluster(components: list[tuple[Tensor, Tensor]], codes: list[tuple[Tensor, Tensor]]) -> float:
    """Sampling variance of the mean AUC over folds from the components' sums by cluster. A cluster lies in one fold."""
    total, clusters = 0.0, 0
    for parts, names in zip(components, codes, strict=True):
        found, places = torch.unique(torch.cat(names), return_inverse=True)
        psi = torch.zeros(len(found), dtype=torch.float64)
        psi.index_add_(0, places, torch.cat([((part - part.mean()) / len(part)).cpu() for part in parts]))
        total, clusters = total + float(psi @ psi), clusters + len(found)
    return total / len(components) ** 2 * clusters / max(clusters - len(components), 1)
