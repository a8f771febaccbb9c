"""What other packages would have said: their published rules, with their own defaults, on plain NumPy arrays.

Each rule is a few lines on scikit-learn and SciPy, so that the study runs without the packages themselves, and returns
its statistic (larger: more drift) and its decision. Run by the python of an environment that holds evidently and
alibi-detect (``run.py --peers`` makes one), this file compares the rules with the packages and prints a JSON line:

    .venv-peers/bin/python benchmarks/calibration_peers.py

NannyML and alibi-detect's classifier are not compared: their rules are written after the packages' sources.
"""
# mypy: disable-error-code="import-not-found,import-untyped"
# scikit-learn and SciPy bring no types; the packages live in an environment of their own

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cosine
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Floats = NDArray[Any]  # (n, d)


@dataclass(frozen=True)
class Said:
    """statistic: larger means more drift. drift: the rule's own decision."""

    statistic: float
    drift: bool


@dataclass
class Reference:
    """Reference rows by window, and what several rules make of them once."""

    windows: Sequence[Floats]
    rows: Floats = field(init=False)
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = np.concatenate(self.windows).astype(np.float64)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


# alibi-detect 0.13 -------------------------------------------------------------------------------------------------


def mmd_median(reference: Reference, y: Floats, seed: int = 0) -> Said:
    """MMDDrift: RBF with sigma^2 half the median squared distance between the clouds, 100 permutations, p < .05."""
    x = reference.rows
    n = len(x)
    pooled = np.concatenate([x, y])
    squares = (pooled**2).sum(1)
    between = np.maximum(squares[:, None] + squares[None, :] - 2 * pooled @ pooled.T, 0)
    cross = between[:n, n:].ravel()
    sigma2 = 0.5 * np.partition(cross, cross.size // 2 - 1)[cross.size // 2 - 1]
    between *= -1 / (2 * sigma2)
    similar = np.exp(between, out=between)
    np.fill_diagonal(similar, 0)
    rng = np.random.default_rng(seed)
    z = np.zeros((len(pooled), 101))
    z[:n, 0] = 1
    for k in range(1, 101):
        z[rng.permutation(len(pooled))[:n], k] = 1
    right = similar @ z
    xx = (z * right).sum(0)
    xy = right.sum(0) - xx
    m = len(y)
    mmd2 = xx / (n * (n - 1)) + (similar.sum() - xx - 2 * xy) / (m * (m - 1)) - 2 * xy / (n * m)
    return Said(float(mmd2[0]), bool((mmd2[1:] >= mmd2[0]).mean() <= 0.05))


def ks_bonferroni(reference: Reference, y: Floats) -> Said:
    """KSDrift: a two-sample Kolmogorov-Smirnov test a dimension, the smallest p below .05 / d."""
    x = reference.rows
    widest = int(_ks_distances(x, y).argmax())  # p falls with the distance: the smallest p is here
    p = float(ks_2samp(x[:, widest], y[:, widest], alternative="two-sided", method="asymp").pvalue)
    return Said(-float(np.log(max(p, 1e-300))), p <= 0.05 / y.shape[1])


def _ks_distances(x: Floats, y: Floats) -> Floats:
    """Largest difference of the two empirical distribution functions, per dimension."""
    pooled = np.concatenate([x, y])
    order = pooled.argsort(axis=0, kind="stable")
    ordered = np.take_along_axis(pooled, order, axis=0)
    difference = np.where(order < len(x), 1 / len(x), -1 / len(y)).cumsum(axis=0)
    last = np.concatenate([ordered[1:] > ordered[:-1], np.ones((1, x.shape[1]), bool)])  # of equal values
    return np.asarray(np.where(last, np.abs(difference), 0).max(axis=0))


def classifier_ks(reference: Reference, y: Floats, seed: int = 0) -> Said:
    """ClassifierDrift with a logistic regression: three quarters train it, the predicted probabilities of the rest are
    compared by a Kolmogorov-Smirnov test, p < .05."""
    x = reference.rows
    rows = np.concatenate([x, y])
    label = np.r_[np.zeros(len(x)), np.ones(len(y))]
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = int(0.75 * len(rows))
    train, held = order[:cut], order[cut:]
    model = LogisticRegression(max_iter=1000).fit(rows[train], label[train])
    shares = model.predict_proba(rows[held])[:, 1]
    found = ks_2samp(shares[label[held] == 0], shares[label[held] == 1], alternative="greater")
    return Said(-float(np.log(max(found.pvalue, 1e-300))), bool(found.pvalue <= 0.05))


# evidently 0.7 -----------------------------------------------------------------------------------------------------


def domain_auc(reference: Reference, y: Floats) -> Said:
    """``model``: AUC of a linear classifier (SGD, logistic loss) on the half it was not trained on, above .55."""
    rows = np.concatenate([reference.rows, y])
    label = np.r_[np.ones(len(reference.rows)), np.zeros(len(y))]
    train, held, of_train, of_held = train_test_split(rows, label, test_size=0.5, random_state=42, shuffle=True)
    model = SGDClassifier(loss="log_loss", random_state=42).fit(train, of_train)
    auc = roc_auc_score(of_held, model.predict_proba(held)[:, 1])
    return Said(float(auc), bool(auc > 0.55))


def drifted_share(reference: Reference, y: Floats) -> Said:
    """``ratio``: share of dimensions whose Wasserstein distance over the reference's sd is at least .1, above .2."""
    x = reference.rows
    spread = reference.once("sd", lambda: x.std(0, ddof=1))
    distances = np.array([wasserstein_distance(x[:, j], y[:, j]) for j in range(y.shape[1])])
    share = (distances / np.maximum(spread, 1e-3) >= 0.1).mean()
    return Said(float(share), bool(share > 0.2))


def drifted_share_half(reference: Reference, y: Floats) -> Said:
    """The data drift preset: the same share, above .5."""
    share = drifted_share(reference, y).statistic
    return Said(share, share > 0.5)


def centroid_distance(reference: Reference, y: Floats) -> Said:
    """``distance``: Euclidean distance of the two means, above .2."""
    distance = float(np.linalg.norm(reference.rows.mean(0) - y.mean(0)))
    return Said(distance, distance > 0.2)


def centroid_cosine(reference: Reference, y: Floats) -> Said:
    """``distance`` with dist="cosine": 1 less the cosine of the two means, above .2."""
    distance = float(cosine(reference.rows.mean(0), y.mean(0)))
    return Said(distance, distance > 0.2)


def mmd_fixed(reference: Reference, y: Floats) -> Said:
    """``mmd``: U-statistic with exp(-d^2 / median^2), above .015."""
    x = reference.rows
    draw_x, draw_y = (rows[np.random.default_rng(0).permutation(len(rows))[:1000]] for rows in (x, y))
    median2 = float(np.median(np.sqrt(_squared(draw_x, draw_y)))) ** 2

    def total(a: Floats, b: Floats) -> float:
        return float(np.exp(-_squared(a, b) / median2).sum())

    n, m = len(x), len(y)
    mmd2 = (total(x, x) - n) / (n * (n - 1)) + (total(y, y) - m) / (m * (m - 1)) - 2 * total(x, y) / (n * m)
    return Said(mmd2, mmd2 > 0.015)


def _squared(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0))


# NannyML, and common practice --------------------------------------------------------------------------------------


def reconstruction(reference: Reference, y: Floats) -> Said:
    """NannyML's data reconstruction drift: mean error of standardised rows rebuilt from the components that hold 65% of
    the variance, outside the mean +- 3 sd of the reference's chunks (its windows)."""

    def fit() -> tuple[Any, Any, float, float]:
        scaler = StandardScaler().fit(reference.rows)
        axes = PCA(n_components=0.65, random_state=16).fit(scaler.transform(reference.rows))
        errors = [_rebuilt(scaler, axes, rows) for rows in reference.windows]
        return scaler, axes, float(np.mean(errors)), float(np.std(errors, ddof=1))

    scaler, axes, middle, spread = reference.once("reconstruction", fit)
    off = abs(_rebuilt(scaler, axes, y) - middle)
    return Said(off, off > 3 * spread)


def _rebuilt(scaler: Any, axes: Any, rows: Floats) -> float:
    scaled = scaler.transform(np.asarray(rows, dtype=np.float64))
    return float(np.linalg.norm(scaled - axes.inverse_transform(axes.transform(scaled)), axis=1).mean())


def psi_components(reference: Reference, y: Floats) -> Said:
    """PSI of ten deciles above .2 for one of the first eight principal components: common practice."""
    axes = reference.once("psi", lambda: PCA(n_components=8, random_state=0).fit(reference.rows))
    x, z = axes.transform(reference.rows), axes.transform(y)
    worst = 0.0
    for j in range(8):
        edges = np.quantile(x[:, j], np.arange(1, 10) / 10)
        p, q = (np.bincount(np.searchsorted(edges, rows[:, j]), minlength=10) + 0.5 for rows in (x, z))
        p, q = p / p.sum(), q / q.sum()
        worst = max(worst, float(((p - q) * np.log(p / q)).sum()))
    return Said(worst, worst > 0.2)


RULES: dict[str, Callable[[Reference, Floats], Said]] = {
    "alibi-detect MMD, median bandwidth, permutation p < .05": mmd_median,
    "alibi-detect KS a dimension, Bonferroni p < .05": ks_bonferroni,
    "alibi-detect classifier, KS p < .05": classifier_ks,
    "evidently classifier AUC > .55": domain_auc,
    "evidently share of drifted dimensions > .2": drifted_share,
    "evidently share of drifted dimensions > .5": drifted_share_half,
    "evidently centroid distance > .2": centroid_distance,
    "evidently centroid cosine > .2": centroid_cosine,
    "evidently MMD > .015": mmd_fixed,
    "NannyML reconstruction error, 3 sd": reconstruction,
    "PSI of a component > .2": psi_components,
}


# the packages themselves -------------------------------------------------------------------------------------------


def compare(trials: int = 20) -> dict[str, Any]:
    """Largest difference of statistics, and decisions that differ, between each rule and its package."""
    import pandas as pd
    from alibi_detect.cd import KSDrift, MMDDrift
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import distance, mmd, model, ratio

    def evidently(method: Any) -> Callable[[Floats, Floats], Said]:
        def call(x: Floats, y: Floats) -> Said:
            value, drift, _ = method(pd.DataFrame(y), pd.DataFrame(x))
            return Said(float(value), bool(drift))

        return call

    def of_alibi(make: Callable[[Floats], Any], key: str) -> Callable[[Floats, Floats], Said]:
        def call(x: Floats, y: Floats) -> Said:
            data = make(x).predict(y)["data"]
            value = data["distance"] if key == "distance" else -np.log(max(float(np.min(data["p_val"])), 1e-300))
            return Said(float(value), bool(data["is_drift"]))

        return call

    packages = {
        "alibi-detect MMD, median bandwidth, permutation p < .05": of_alibi(
            lambda x: MMDDrift(x, backend="pytorch", device="cpu"), "distance"
        ),
        "alibi-detect KS a dimension, Bonferroni p < .05": of_alibi(KSDrift, "p_val"),
        "evidently classifier AUC > .55": evidently(model()),
        "evidently share of drifted dimensions > .2": evidently(ratio()),
        "evidently centroid distance > .2": evidently(distance()),
        "evidently centroid cosine > .2": evidently(distance(dist="cosine")),
        "evidently MMD > .015": evidently(mmd()),
    }
    rng = np.random.default_rng(0)
    off = dict.fromkeys(packages, 0.0)
    differing = dict.fromkeys(packages, 0)
    for trial in range(trials):
        x = rng.normal(size=(400, 16)) + 0.1
        y = rng.normal(size=(100, 16)) + 0.1 + (0.3 * trial / trials)
        for name, call in packages.items():
            ours, theirs = RULES[name](Reference([x]), y), call(x.copy(), y.copy())
            clipped = max(ours.statistic, 0.0) if name == "evidently MMD > .015" else ours.statistic
            off[name] = max(off[name], abs(clipped - theirs.statistic))
            differing[name] += ours.drift != theirs.drift
    return {
        "packages": {name: version(name) for name in ("evidently", "alibi-detect")},
        "trials": trials,
        "rules": [{"rule": name, "difference": off[name], "decisions differ": differing[name]} for name in packages],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(compare()))
