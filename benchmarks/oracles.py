"""Every number beside an independent one: the oracle table of docs/oracles.md.

    python benchmarks/oracles.py [--peers PYTHON] [--write]

Each row holds a statistic of gpudrift, what another library (or a plain definition) gives for the same input once its
convention is turned into ours, and their relative difference. References that are not installed are named as such;
--peers is the interpreter of an environment that has more of them (peers.txt, and torchdrift, statsmodels), in which
their side runs as a subprocess. --write keeps the table as results/oracles.json and renews the one in docs/oracles.md.

Their side is computed in float64 in every row, from the same values; ours in float64, or in float32 where the input
says so, as the job does on the CPU.
"""
# mypy: disable-error-code="import-not-found,import-untyped"
# references live in several environments, most without type information

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import oracle_references
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from oracle_references import BINS, COMPONENTS, REFERENCES, Array, Input, answer, differences, key, listed, outcomes

import gpudrift
from gpudrift import project, sample
from gpudrift.fdr import benjamini_hochberg, holm
from gpudrift.metrics.divergences import fit_edges
from gpudrift.metrics.wasserstein import directions, wasserstein1
from gpudrift.records import Metric, PanelInput
from gpudrift.sketch import Sketch, SketchPlan, compare
from gpudrift.student_t import student_t_quantile, student_t_upper

RESULTS = Path(__file__).with_name("results") / "oracles.json"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "oracles.md"
HEAD = "| statistic | input | ours | reference | theirs | difference | allowed |"
DIRECTIONS = 50
PERMUTATIONS = 10_000


# what is compared on ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def inputs() -> dict[str, dict[str, Array]]:
    """Everything the statistics are computed from, by name."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16))
    y = rng.normal(size=(150, 16)) + 0.3
    s = np.array(5.613401082909)  # the median distance of x
    axes = directions(DIRECTIONS, 16, 0).numpy()
    rng = np.random.default_rng(1)
    users = np.arange(40) // 4
    return {
        "normal": {"x": x, "y": y, "s": s, "directions": axes},
        "normal, float32": {"x": x.astype(np.float32), "y": y.astype(np.float32), "s": s, "directions": axes},
        "sample, float32": _sample(),
        "first column": {"x": x[:, 0].copy(), "y": y[:, 0].copy()},
        "whole numbers, ties": {"x": np.floor(3 * x[:, :1]), "y": np.floor(3 * y[:, :1])},
        "iris": _iris(),
        "5 and 4 rows": {"x": rng.normal(size=(5, 2)), "y": rng.normal(size=(4, 2)) + 0.7},
        "two atoms, 6 and 5 rows": {"n": np.array(6), "m": np.array(5), "s": np.array(0.8)},
        "users of 4 rows": {
            "x": np.repeat(rng.normal(size=(10, 3)), 4, axis=0) + 0.5 * rng.normal(size=(40, 3)),
            "y": np.repeat(rng.normal(size=(10, 3)), 4, axis=0) + 0.5 * rng.normal(size=(40, 3)) + 0.5,
            "users_x": users,
            "users_y": users + 5,  # half of them are in both
        },
        "40 p-values": {"p": np.r_[rng.uniform(size=30), rng.uniform(size=8) ** 4, 0.01, 0.01]},
        "t, K - 1": {
            "t": np.tile([-3.0, -0.5, 0.0, 0.7, 2.5, 6.0], 4),
            "dof": np.repeat([7, 11, 25, 51], 6),
        },
        "probabilities": {"p": np.array([1e-6, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])},
    }


def _sample() -> dict[str, Array]:
    """Two weeks of the corpus that ships with gpudrift, about the first one's mean."""
    table = ds.dataset(sample.path(), partitioning="hive").to_table(columns=["embedding", "event_time"])
    times = table["event_time"].to_numpy().astype("datetime64[D]")
    rows = table["embedding"].combine_chunks()
    vectors = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32)
    weeks = [
        vectors[(times >= np.datetime64(monday)) & (times < np.datetime64(monday) + np.timedelta64(7, "D"))]
        for monday in ("2021-05-17", "2026-10-19")
    ]
    mean = weeks[0].mean(0, dtype=np.float64)
    x, y = (np.ascontiguousarray(week[np.lexsort(week.T)] - mean).astype(np.float32) for week in weeks)
    return {"x": x, "y": y, "s": np.array(1.3), "directions": directions(DIRECTIONS, x.shape[1], 0).numpy()}


def _iris() -> dict[str, Array]:
    from sklearn.datasets import load_iris

    rows, species = load_iris(return_X_y=True)
    return {str(k): rows[species == k] for k in range(3)}


# ours ---------------------------------------------------------------------------------------------------------------


def _energy(i: Input, estimator: str) -> float:
    return float(gpudrift.energy_distance(i["x"], i["y"], estimator).value)


def _mmd2(i: Input, estimator: str) -> float:
    return float(gpudrift.mmd2(i["x"], i["y"], float(i["s"]), estimator).value)


def _mmd2_median(i: Input) -> float:
    """At the bandwidth evidently takes: the median distance between x and y over the root of 2."""
    return _mmd2({**i, "s": np.median(differences(i["x"], i["y"])) / math.sqrt(2)}, "u")


def _edist(i: Input) -> list[float]:
    found = []
    for a, b in ((i["0"], i["1"]), (i["0"], i["2"]), (i["1"], i["2"])):
        found.append(_energy({"x": a, "y": b}, "v") * len(a) * len(b) / (len(a) + len(b)))
    return found


def _panel(x: Array, y: Array) -> PanelInput:
    """Centred and projected as the job does; the components are few, so that the axes are exact."""
    clouds = [torch.from_numpy(np.array(rows)) for rows in (x, y)]
    mean = project.mean_of(clouds[0])
    of_x, of_y = ((rows.double() - mean).to(rows.dtype) for rows in clouds)
    components = min(COMPONENTS, x.shape[1])
    basis, covariance = project.fit(of_x, mean, components=components, niter=6, seed=0)
    px, py = project.project(of_x, basis), project.project(of_y, basis)
    return PanelInput(
        x=of_x,
        y=of_y,
        px=px,
        py=py,
        basis=basis,
        covariance=covariance,
        edges=fit_edges(px.scores, components, BINS),
        components=components,
        directions=DIRECTIONS,
        seed=0,
    )


@lru_cache(maxsize=4)
def _panel_of(x: bytes, y: bytes, d: int, dtype: str) -> PanelInput:
    return _panel(*(np.frombuffer(rows, dtype=dtype).reshape(-1, d) for rows in (x, y)))


def _metrics(i: Input, module: str) -> dict[str, Metric]:
    x, y = i["x"], i["y"]
    panel = _panel_of(x.tobytes(), y.tobytes(), x.shape[1], str(x.dtype))
    return {metric.name: metric for metric in importlib.import_module(f"gpudrift.metrics.{module}").compute(panel)}


def _value(i: Input, module: str, name: str) -> float:
    return _metrics(i, module)[name].value


def _raw(i: Input, module: str, name: str) -> float:
    """Before the null mean is removed."""
    return float(_metrics(i, module)[name].extra["raw"])


def _by_component(i: Input, module: str, name: str) -> list[float]:
    found = _metrics(i, module)
    return [found[f"{name}_pc{k}"].value for k in range(1, COMPONENTS + 1)]


def _residual(i: Input) -> float:
    """Before the optimism of the axes is removed."""
    metric = _metrics(i, "moments")["residual_energy"]
    return metric.value + float(metric.extra["optimism"])


def _w1(i: Input) -> float:
    return wasserstein1(torch.from_numpy(i["x"]), torch.from_numpy(i["y"]))[0]


def _random_features(i: Input) -> float:
    x, y = torch.from_numpy(i["x"]), torch.from_numpy(i["y"])
    plan = replace(SketchPlan.from_rows(x, features=16384, bins=16), bandwidths=(float(i["s"]),))
    sides = []
    for first, rows in ((0, x), (len(x), y)):
        sides.append(Sketch.empty(plan))
        sides[-1].update(rows, pa.array(np.arange(first, first + len(rows))))
    return compare(*sides)["rff_mmd2_b1"].value


def _permutation_p(i: Input) -> float:
    return gpudrift.permutation_test(i["x"], i["y"], permutations=PERMUTATIONS).p_value


def _permutation_null(i: Input) -> list[float]:
    """The statistic of every labelling met, the smallest first."""
    null = np.sort(gpudrift.permutation_test(i["x"], i["y"], permutations=PERMUTATIONS).null)
    return [float(value) for value in null[np.r_[True, np.diff(null) > 1e-9]]]


def _mean_variance(i: Input, function: str) -> float:
    """The variance estimate averaged over all outcomes."""
    total = 0.0
    for weight, x, y in outcomes(int(i["n"]), int(i["m"])):
        if function == "energy":
            total += weight * float(gpudrift.energy_distance(x, y).variance)
        else:
            total += weight * float(gpudrift.mmd2(x, y, float(i["s"])).variance)
    return total


def _cluster_se(i: Input) -> float:
    found = gpudrift.energy_distance(i["x"], i["y"], clusters_x=i["users_x"], clusters_y=i["users_y"])
    return float(found.se)


def _bh(i: Input) -> list[float]:
    return benjamini_hochberg(i["p"].tolist())


def _holm(i: Input) -> list[float]:
    return holm(i["p"].tolist())


def _t_upper(i: Input) -> list[float]:
    return [student_t_upper(t, dof) for t, dof in zip(i["t"].tolist(), i["dof"].tolist(), strict=True)]


def _t_quantile(i: Input) -> list[float]:
    return [student_t_quantile(p, 11) for p in i["p"].tolist() if p != 0.5]


def _normal_quantile(i: Input) -> list[float]:
    """As the calibration takes it, from Python itself."""
    return [NormalDist().inv_cdf(p) for p in i["p"].tolist() if p != 0.5]


OURS: dict[str, Callable[[Input], float | list[float]]] = {
    "energy, U": partial(_energy, estimator="u"),
    "energy, V": partial(_energy, estimator="v"),
    "energy, V nm/(n+m)": _edist,
    "MMD², U": partial(_mmd2, estimator="u"),
    "MMD², V": partial(_mmd2, estimator="v"),
    "MMD², U, their bandwidth": _mmd2_median,
    "MMD², U, random features": _random_features,
    "variance of energy, U": partial(_mean_variance, function="energy"),
    "variance of MMD², U": partial(_mean_variance, function="rbf"),
    "cluster-robust se of energy": _cluster_se,
    "Frechet, raw": partial(_raw, module="frechet", name="frechet"),
    "W1": _w1,
    "W1 by component": partial(_by_component, module="wasserstein", name="wasserstein1"),
    "sliced W2": partial(_value, module="wasserstein", name="sliced_wasserstein"),
    "energy by component, U": partial(_by_component, module="energy_1d", name="energy"),
    "JS, raw": partial(_raw, module="divergences", name="js"),
    "PSI, raw": partial(_raw, module="divergences", name="psi"),
    "KL, raw": partial(_raw, module="divergences", name="kl"),
    "mean_shift": partial(_value, module="moments", name="mean_shift"),
    "log_variance_ratio": partial(_value, module="moments", name="log_variance_ratio"),
    "residual log ratio": _residual,
    "classifier_auc": partial(_value, module="classifier", name="classifier_auc"),
    "permutation null": _permutation_null,
    "permutation p": _permutation_p,
    "Benjamini-Hochberg q": _bh,
    "Holm p": _holm,
    "Student t, upper tail": _t_upper,
    "Student t, quantile": _t_quantile,
    "normal quantile": _normal_quantile,
}


# the table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """ours, theirs: first of ``values`` numbers. difference: the largest relative one; None, with theirs, where the
    reference is not installed. version: of the package, empty for definitions."""

    statistic: str
    input: str
    reference: str
    version: str
    values: int
    ours: float
    theirs: float | None
    difference: float | None
    tolerance: float


def table(peers: Path | None = None) -> list[Row]:
    """Every row, in the order of ``REFERENCES``."""
    data = inputs()
    elsewhere = {} if peers is None else _ask(peers, data)
    ours: dict[tuple[str, str], list[float]] = {}
    rows = []
    for reference in REFERENCES:
        for name in reference.inputs:
            place = (reference.statistic, name)
            if place not in ours:
                ours[place] = listed(OURS[reference.statistic](data[name]))
            found = answer(reference, data[name]) or elsewhere.get(key(reference, name))
            theirs = None if found is None else found["theirs"]
            rows.append(
                Row(
                    reference.statistic,
                    name,
                    reference.name,
                    "not installed" if found is None else found["version"],
                    len(ours[place]),
                    ours[place][0],
                    None if theirs is None else theirs[0],
                    None if theirs is None else difference(ours[place], theirs),
                    reference.single if name.endswith("float32") else reference.tolerance,
                )
            )
    return rows


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference; of numbers below a millionth of the largest, relative to that."""
    if len(ours) != len(theirs):
        return math.inf
    a, b = np.array(ours), np.array(theirs)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-6 * np.abs(b).max())))


def _ask(python: Path, data: Mapping[str, Input]) -> dict[str, dict[str, Any]]:
    """Their side, of what this environment lacks, by another interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = {f"{name}|{part}": a for name, own in data.items() for part, a in own.items()}
        np.savez(file, **arrays)
        command = [str(python), oracle_references.__file__, str(file), *sorted(_absent())]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _absent() -> set[str]:
    """Packages of references that this environment lacks."""
    found = set()
    for package in {reference.package for reference in REFERENCES} - {None}:
        try:
            version(str(package))
        except PackageNotFoundError:
            found.add(str(package))
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/oracles.md has it."""
    lines = [HEAD, "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        more = f" (and {row.values - 1} more)" if row.values > 1 else ""
        known = f"{row.reference} ({row.version})" if row.version else row.reference
        theirs = "" if row.theirs is None else f"{row.theirs:.9g}"
        apart = "" if row.difference is None else f"{row.difference:.0e}"
        ours = f"{row.ours:.9g}{more}"
        cells = (row.statistic, row.input, ours, known, theirs, apart, f"{row.tolerance:.0e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(rows: Sequence[Row]) -> None:
    """results/oracles.json, and the table of docs/oracles.md in place of the one there."""
    made_with = {name: version(name) for name in ("torch", "numpy")} | {"python": sys.version.split()[0]}
    RESULTS.write_text(json.dumps({"with": made_with, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(HEAD)
    DOCS.write_text(before + markdown(rows) + "\n\n" + rest.partition("\n\n")[2], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, help="the python of an environment with more references")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results and docs")
    options = parser.parse_args()
    rows = table(options.peers)
    print(markdown(rows))
    if options.write:
        write(rows)
    wrong = [row for row in rows if row.difference is not None and not row.difference <= row.tolerance]
    if wrong:
        raise SystemExit(f"{len(wrong)} differences are larger than allowed")


if __name__ == "__main__":
    main()
