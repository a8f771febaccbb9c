"""What other libraries and plain definitions give for oracles.py, turned into gpudrift's conventions.

Every function takes an input by its parts and computes in float64. No line of gpudrift is imported: oracles.py runs
this file with the interpreter of a peers' environment, which answers for the packages it has.
"""
# mypy: disable-error-code="import-not-found,import-untyped"
# references live in several environments, most without type information

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPONENTS, BINS, FOLDS = 8, 10, 5
ATOMS = ((0.0, 1.0), (0.5, -0.3)), ((0.3, 0.7), (0.6, 0.4))  # values of X and Y in the second coordinate; chances

Array = NDArray[Any]
Input = Mapping[str, Array]


def _wide(i: Input) -> tuple[Array, Array]:
    return i["x"].astype(np.float64), i["y"].astype(np.float64)


def differences(a: Array, b: Array) -> Array:
    """(n, m) distances, float64, by differences."""
    return np.stack([np.sqrt(((row - b) ** 2).sum(1)) for row in a.astype(np.float64)])


def _dense_u(x: Array, y: Array, s: float | None) -> float:
    """The definition: from the n x m matrices, by differences."""
    means = []
    for a, b in ((x, x), (y, y), (x, y)):
        distances = differences(a, b)
        k = -distances if s is None else np.exp(-(distances**2) / (2 * s * s))
        if a is b:
            means.append(float(k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)))
        else:
            means.append(float(k.mean()))
    return means[0] + means[1] - 2 * means[2]


def outcomes(n: int, m: int) -> list[tuple[float, Array, Array]]:
    """All samples of n and m rows of two atoms each, up to order, with their chances."""
    (atoms_x, atoms_y), (p_x, p_y) = ATOMS

    def sides(count: int, p: tuple[float, float], atoms: tuple[float, float], at: float) -> list[tuple[float, Array]]:
        rows = [
            np.array([[at * k, atoms[k]] for k in range(2)]).repeat([count - k, k], axis=0) for k in range(count + 1)
        ]
        chances = [math.comb(count, k) * p[0] ** (count - k) * p[1] ** k for k in range(count + 1)]
        return list(zip(chances, rows, strict=True))

    pairs = itertools.product(sides(n, p_x, atoms_x, 1.0), sides(m, p_y, atoms_y, 2.0))
    return [(a * b, x, y) for (a, x), (b, y) in pairs]


def _true_variance(i: Input, s: float | None) -> float:
    found = [(weight, _dense_u(x, y, s)) for weight, x, y in outcomes(int(i["n"]), int(i["m"]))]
    mean = math.fsum(weight * u for weight, u in found)
    return math.fsum(weight * (u - mean) ** 2 for weight, u in found)


def _dcor(i: Input, estimator: Any = "v_statistic") -> float:
    import dcor

    return float(dcor.energy_distance(*_wide(i), estimation_stat=estimator))


def _dcor_by_component(i: Input) -> list[float]:
    return [_dcor({"x": a, "y": b}, "u_statistic") for a, b in _pca(i)]


def _scipy_line(i: Input) -> float:
    from scipy.stats import energy_distance

    return float(energy_distance(i["x"], i["y"]) ** 2)


def _scipy_directions(i: Input) -> float:
    """E in d dimensions from E on lines: sqrt(pi) G((d+1)/2) / G(d/2) times the mean over directions."""
    x, y = _wide(i)
    d = x.shape[1]
    axes = np.random.default_rng(0).normal(size=(1000, d))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    constant = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    return constant * float(np.mean([_scipy_line({"x": x @ axis, "y": y @ axis}) for axis in axes]))


def _geomloss(i: Input, loss: str) -> float:
    import torch
    from geomloss import SamplesLoss

    x, y = (torch.from_numpy(rows) for rows in _wide(i))
    return 2 * float(SamplesLoss(loss, blur=float(i["s"]), backend="tensorized")(x, y))


def _sklearn_rbf(i: Input, less: int) -> float:
    from sklearn.metrics.pairwise import rbf_kernel

    (x, y), gamma = _wide(i), 1 / (2 * float(i["s"]) ** 2)
    means = [(rbf_kernel(a, gamma=gamma).sum() - less * len(a)) / (len(a) * (len(a) - less)) for a in (x, y)]
    return float(sum(means) - 2 * rbf_kernel(x, y, gamma=gamma).mean())


def _frouros(i: Input) -> float:
    from frouros.detectors.data_drift import MMD
    from frouros.utils.kernels import rbf_kernel

    x, y = _wide(i)
    detector = MMD(kernel=partial(rbf_kernel, sigma=float(i["s"])))
    detector.fit(X=x)
    return float(detector.compare(X=y)[0].distance)


def _alibi(i: Input) -> float:
    from alibi_detect.cd import MMDDrift

    x, y = (rows.astype(np.float32) for rows in _wide(i))
    sigma = np.array([float(i["s"])], dtype=np.float32)
    detector = MMDDrift(x, backend="pytorch", sigma=sigma, n_permutations=1, device="cpu")
    return float(detector.predict(y)["data"]["distance"])


def _torchdrift(i: Input) -> float:
    import torch
    from torchdrift.detectors.mmd import GaussianKernel, kernel_mmd

    x, y = (torch.from_numpy(rows) for rows in _wide(i))
    found = float(kernel_mmd(x, y, n_perm=None, kernel=GaussianKernel(lengthscale=float(i["s"]))))
    return found - 1 / (len(x) - 1) - 1 / (len(y) - 1)


def _evidently(i: Input) -> float:
    import pandas as pd
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import mmd

    reference, current = (pd.DataFrame(rows) for rows in _wide(i))
    return float(mmd()(current, reference)[0])


def _pot_frechet(i: Input) -> float:
    import ot

    return float(ot.gaussian.bures_wasserstein_distance(*_gaussians(i)) ** 2)


def _gaussians(i: Input) -> tuple[Array, Array, Array, Array]:
    x, y = _wide(i)
    return x.mean(0), y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)


def _scipy_frechet(i: Input) -> float:
    from scipy.linalg import sqrtm

    mean_x, mean_y, of_x, of_y = _gaussians(i)
    cross = np.real(np.trace(sqrtm(of_x @ of_y)))
    return float(((mean_y - mean_x) ** 2).sum() + np.trace(of_x) + np.trace(of_y) - 2 * cross)


def _numpy_frechet(i: Input) -> float:
    """With fewer rows than dimensions, where matrix roots fail: roots of eigenvalues, rounding below 0 cut off."""
    mean_x, mean_y, of_x, of_y = _gaussians(i)
    values, axes = np.linalg.eigh(of_x)
    root = axes * np.sqrt(values.clip(min=0))
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ of_y @ root).clip(min=0)).sum()
    return float(((mean_y - mean_x) ** 2).sum() + np.trace(of_x) + np.trace(of_y) - 2 * cross)


def _scipy_w1(i: Input) -> float:
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(i["x"], i["y"]))


def _pot_w1(i: Input) -> float:
    import ot

    return float(ot.wasserstein_1d(i["x"], i["y"], p=1))


def _pot_sliced(i: Input) -> float:
    import ot

    return float(ot.sliced_wasserstein_distance(*_wide(i), projections=i["directions"].T, p=2))


def _pca(i: Input) -> list[tuple[Array, Array]]:
    """Scores of both clouds on each of the first axes of x."""
    from sklearn.decomposition import PCA

    x, y = _wide(i)
    axes = PCA(COMPONENTS, svd_solver="full").fit(x)
    return list(zip(axes.transform(x).T, axes.transform(y).T, strict=True))


def _scipy_w1_by_component(i: Input) -> list[float]:
    return [_scipy_w1({"x": a, "y": b}) for a, b in _pca(i)]


def _scipy_divergence(i: Input, kind: str) -> float:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import entropy

    found = []
    for a, b in _pca(i):
        edges = np.quantile(a, np.arange(1, BINS) / BINS)
        q, p = (np.bincount(np.digitize(rows, edges), minlength=BINS) + 0.5 for rows in (a, b))
        if kind == "js":
            found.append(jensenshannon(p, q, base=2) ** 2)
        else:
            found.append(entropy(p, q) + (entropy(q, p) if kind == "psi" else 0.0))
    return float(np.mean(found))


def _sklearn_residual(i: Input) -> float:
    from sklearn.decomposition import PCA

    x, y = _wide(i)
    axes = PCA(COMPONENTS, svd_solver="full").fit(x)
    of_x, of_y = (((rows - axes.inverse_transform(axes.transform(rows))) ** 2).sum() / len(rows) for rows in (x, y))
    return math.log(of_y / of_x)


def _numpy_mean_shift(i: Input) -> float:
    """The U-statistic of the products x . y as a share of the reference's variance."""
    x, y = _wide(i)
    y, x = y - x.mean(0), x - x.mean(0)
    xx, yy = ((np.sum(rows @ rows.T) - np.sum(rows**2)) / (len(rows) * (len(rows) - 1)) for rows in (x, y))
    return float((xx + yy - 2 * np.mean(x @ y.T)) / np.trace(np.cov(x, rowvar=False)))


def _numpy_variance_ratio(i: Input) -> float:
    x, y = _wide(i)
    return float(np.log(y.var(0, ddof=1).sum() / x.var(0, ddof=1).sum()))


def _sklearn_auc(i: Input) -> float:
    """Fisher's discriminant, cross-fitted, by numpy; each fold's AUC by scikit-learn."""
    from sklearn.metrics import roc_auc_score

    x, y = _wide(i)
    rows, d = len(x) + len(y), x.shape[1]
    covariance = np.atleast_2d(np.cov(np.concatenate([x, y]), rowvar=False))
    covariance += np.eye(d) * (np.trace(covariance) / d * max(d / (10 * rows), 1e-6))
    between = [y[k::FOLDS].mean(0) - x[k::FOLDS].mean(0) for k in range(FOLDS)]
    found = []
    for k in range(FOLDS):
        axis = np.linalg.solve(covariance, sum(b for fold, b in enumerate(between) if fold != k))
        of_x, of_y = x[k::FOLDS] @ axis, y[k::FOLDS] @ axis
        found.append(roc_auc_score(np.repeat([0, 1], [len(of_x), len(of_y)]), np.r_[of_x, of_y]))
    return float(np.mean(found)) - 0.5


def _labellings(i: Input) -> tuple[float, list[float]]:
    """The statistic as observed and of every labelling."""
    x, y = _wide(i)
    pooled, places = np.concatenate([x, y]), set(range(len(x) + len(y)))
    chosen = itertools.combinations(places, len(x))
    return _dense_u(x, y, None), [_dense_u(pooled[list(a)], pooled[sorted(places - set(a))], None) for a in chosen]


def _enumerated_null(i: Input) -> list[float]:
    return sorted(_labellings(i)[1])


def _enumerated_p(i: Input) -> float:
    observed, values = _labellings(i)
    return float(np.mean(np.array(values) >= observed - 1e-12))


def _scipy_permutation(i: Input) -> float:
    from scipy.stats import permutation_test

    x, y = _wide(i)
    pooled = np.concatenate([x, y])

    def statistic(a: Array, b: Array) -> float:
        return _dense_u(pooled[a], pooled[b], None)

    places = np.arange(len(x)), np.arange(len(x), len(pooled))
    return float(permutation_test(places, statistic, n_resamples=10**6, alternative="greater").pvalue)


def _statsmodels_cluster_se(i: Input) -> float:
    """Liang and Zeger's sandwich for the sum of the means of 2 a and 2 b, which its OLS gives as two coefficients. Each
    mean distance is a ratio, sum over number of pairs, so what counts of a pair is its distance less that mean."""
    import statsmodels.api as sm

    x, y = _wide(i)
    of_x, of_y = i["users_x"], i["users_y"]
    influence = []
    for own, other, users, others in ((x, y, of_x, of_y), (y, x, of_y, of_x)):
        parts = []
        for distances, kept in (
            (differences(own, other), users[:, None] != others[None]),
            (differences(own, own), users[:, None] != users[None]),
        ):
            parts.append(((distances - distances[kept].mean()) * kept).sum(1) / kept.sum())
        influence.append(len(own) * (parts[0] - parts[1]))
    sides = np.repeat(np.eye(2), [len(x), len(y)], axis=0)
    users = np.r_[of_x, of_y]
    fitted = sm.OLS(2 * np.concatenate(influence), sides).fit(
        cov_type="cluster", cov_kwds={"groups": users, "use_correction": False}
    )
    groups = len(np.unique(users))
    return math.sqrt(groups / (groups - 1) * float(fitted.cov_params().sum()))


def _scipy_bh(i: Input) -> list[float]:
    from scipy.stats import false_discovery_control

    return [float(q) for q in false_discovery_control(i["p"], method="bh")]


def _statsmodels_adjusted(i: Input, method: str) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(i["p"], method=method)[1]]


def _scipy_t_upper(i: Input) -> list[float]:
    from scipy.stats import t

    return [float(p) for p in t.sf(i["t"], i["dof"])]


def _scipy_t_quantile(i: Input) -> list[float]:
    from scipy.stats import t

    return [float(t.ppf(p, 11)) for p in i["p"] if p != 0.5]


def _scipy_normal_quantile(i: Input) -> list[float]:
    from scipy.stats import norm

    return [float(norm.ppf(p)) for p in i["p"] if p != 0.5]


@dataclass(frozen=True)
class Reference:
    """package: whose version is told, None for a definition written here or figures from a paper. tolerance: largest
    relative difference allowed in float64; single: the same for float32 inputs."""

    statistic: str
    inputs: tuple[str, ...]
    name: str
    package: str | None
    tolerance: float
    theirs: Callable[[Input], float | list[float]]
    single: float = math.nan


_NORMALS = ("normal", "normal, float32")
_CLOUDS = (*_NORMALS, "sample, float32")
_TINY, _ATOMS, _LINE = "5 and 4 rows", "two atoms, 6 and 5 rows", "first column"
_WHOLE = "whole numbers, ties"
_MONTE_CARLO = 0.06  # five standard deviations of a p-value of .3 from 10,000 labellings

REFERENCES = (
    Reference("energy, U", _CLOUDS, "dcor, u_statistic", "dcor", 1e-10, partial(_dcor, estimator="u_statistic"), 1e-5),
    Reference("energy, V", _CLOUDS, "dcor", "dcor", 1e-10, _dcor, 1e-5),
    Reference("energy, V", _CLOUDS, "geomloss energy", "geomloss", 1e-4, partial(_geomloss, loss="energy"), 1e-4),
    Reference("energy, V", ("normal",), "scipy energy_distance, 1000 directions", "scipy", 0.05, _scipy_directions),
    Reference(
        "energy, V nm/(n+m)", ("iris",), "R energy, published", None, 5e-7, lambda _: [123.55381, 195.30396, 38.85415]
    ),
    Reference(
        "MMD², U", _CLOUDS, "scikit-learn rbf_kernel", "scikit-learn", 1e-10, partial(_sklearn_rbf, less=1), 2e-5
    ),
    Reference(
        "MMD², V", _CLOUDS, "scikit-learn rbf_kernel", "scikit-learn", 1e-10, partial(_sklearn_rbf, less=0), 2e-5
    ),
    Reference(
        "MMD², U", _CLOUDS, "definition, numpy", "numpy", 1e-10, lambda i: _dense_u(*_wide(i), float(i["s"])), 2e-5
    ),
    Reference("MMD², U", _CLOUDS, "frouros MMD", "frouros", 1e-10, _frouros, 2e-5),
    Reference("MMD², U", _CLOUDS, "alibi-detect MMDDrift", "alibi-detect", 1e-4, _alibi, 1e-4),
    Reference("MMD², U", _CLOUDS, "torchdrift kernel_mmd", "torchdrift", 1e-6, _torchdrift, 2e-5),
    Reference("MMD², V", _CLOUDS, "geomloss gaussian", "geomloss", 1e-10, partial(_geomloss, loss="gaussian"), 2e-5),
    Reference("MMD², U, their bandwidth", _CLOUDS, "evidently mmd", "evidently", 1e-10, _evidently, 2e-5),
    Reference(
        "MMD², U, random features",
        ("normal",),
        "scikit-learn rbf_kernel",
        "scikit-learn",
        0.05,
        partial(_sklearn_rbf, less=1),
    ),
    Reference(
        "variance of energy, U", (_ATOMS,), "enumeration, all outcomes", None, 1e-10, lambda i: _true_variance(i, None)
    ),
    Reference(
        "variance of MMD², U",
        (_ATOMS,),
        "enumeration, all outcomes",
        None,
        1e-10,
        lambda i: _true_variance(i, float(i["s"])),
    ),
    Reference(
        "cluster-robust se of energy",
        ("users of 4 rows",),
        "statsmodels OLS, cluster",
        "statsmodels",
        1e-10,
        _statsmodels_cluster_se,
    ),
    Reference("Frechet, raw", _NORMALS, "POT bures_wasserstein_distance", "POT", 1e-9, _pot_frechet, 1e-6),
    Reference("Frechet, raw", _CLOUDS, "definition, numpy eigh", "numpy", 1e-9, _numpy_frechet, 1e-5),
    Reference("Frechet, raw", _NORMALS, "scipy sqrtm", "scipy", 1e-9, _scipy_frechet, 1e-6),
    Reference("W1", (_LINE,), "scipy wasserstein_distance", "scipy", 1e-10, _scipy_w1),
    Reference("W1", (_LINE,), "POT wasserstein_1d", "POT", 1e-10, _pot_w1),
    Reference("W1 by component", _NORMALS, "scikit-learn PCA, scipy", "scipy", 1e-9, _scipy_w1_by_component, 1e-5),
    Reference("energy by component, U", _NORMALS, "scikit-learn PCA, dcor", "dcor", 1e-9, _dcor_by_component, 1e-4),
    Reference("sliced W2", _CLOUDS, "POT, same directions", "POT", 1e-10, _pot_sliced, 1e-5),
    Reference("JS, raw", _NORMALS, "scipy jensenshannon", "scipy", 1e-10, partial(_scipy_divergence, kind="js"), 1e-10),
    Reference("PSI, raw", _NORMALS, "scipy entropy", "scipy", 1e-10, partial(_scipy_divergence, kind="psi"), 1e-10),
    Reference("KL, raw", _NORMALS, "scipy entropy", "scipy", 1e-10, partial(_scipy_divergence, kind="kl"), 1e-10),
    Reference("mean_shift", _CLOUDS, "definition, numpy", "numpy", 1e-10, _numpy_mean_shift, 1e-5),
    Reference("log_variance_ratio", _CLOUDS, "numpy var", "numpy", 1e-10, _numpy_variance_ratio, 1e-5),
    Reference("residual log ratio", _NORMALS, "scikit-learn PCA", "scikit-learn", 1e-9, _sklearn_residual, 1e-5),
    Reference(
        "classifier_auc",
        (*_CLOUDS, _WHOLE),
        "numpy, scikit-learn roc_auc_score",
        "scikit-learn",
        1e-9,
        _sklearn_auc,
        1e-4,
    ),
    Reference("permutation null", (_TINY,), "enumeration, 126 labellings", None, 1e-9, _enumerated_null),
    Reference("permutation p", (_TINY,), "enumeration, 126 labellings", None, _MONTE_CARLO, _enumerated_p),
    Reference("permutation p", (_TINY,), "scipy permutation_test, exact", "scipy", _MONTE_CARLO, _scipy_permutation),
    Reference("Benjamini-Hochberg q", ("40 p-values",), "scipy false_discovery_control", "scipy", 1e-12, _scipy_bh),
    Reference(
        "Benjamini-Hochberg q",
        ("40 p-values",),
        "statsmodels fdr_bh",
        "statsmodels",
        1e-12,
        partial(_statsmodels_adjusted, method="fdr_bh"),
    ),
    Reference(
        "Holm p",
        ("40 p-values",),
        "statsmodels holm",
        "statsmodels",
        1e-12,
        partial(_statsmodels_adjusted, method="holm"),
    ),
    Reference("Student t, upper tail", ("t, K - 1",), "scipy t.sf", "scipy", 1e-9, _scipy_t_upper),
    Reference("Student t, quantile", ("probabilities",), "scipy t.ppf", "scipy", 1e-9, _scipy_t_quantile),
    Reference("normal quantile", ("probabilities",), "scipy norm.ppf", "scipy", 1e-12, _scipy_normal_quantile),
)


def answer(reference: Reference, data: Input) -> dict[str, Any] | None:
    """Their numbers and version; None where the package is not installed here."""
    try:
        told = "" if reference.package is None else f"{reference.package} {version(reference.package)}"
    except PackageNotFoundError:
        return None
    return {"version": told, "theirs": listed(reference.theirs(data))}


def listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def key(reference: Reference, name: str) -> str:
    return f"{reference.statistic} | {name} | {reference.name}"


def main(file: Path, packages: list[str]) -> None:
    """Answer for these packages, from the inputs oracles.py wrote: one line of JSON."""
    data: dict[str, dict[str, Array]] = {}
    with np.load(file) as arrays:
        for place in arrays.files:
            name, _, part = place.partition("|")
            data.setdefault(name, {})[part] = arrays[place]
    wanted = [
        (reference, name) for reference in REFERENCES if reference.package in packages for name in reference.inputs
    ]
    found = {key(reference, name): answer(reference, data[name]) for reference, name in wanted}
    print(json.dumps({place: told for place, told in found.items() if told is not None}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
