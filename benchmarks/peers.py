"""Other packages' ways to the same score, as a user of theirs would write it, and the environment they live in.

Each says which of its ``family`` it computes, and under which convention its figure compares with gpudrift's: E is the
energy distance, MMD2 the squared MMD; _U leaves self pairs out, _V keeps them. A peer's packages are imported when it
runs, in its worker.
"""
# mypy: disable-error-code="import-not-found,import-untyped"
# the peers live in an environment of their own

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Case

REQUIREMENTS = Path(__file__).with_name("peers.txt")


@dataclass(frozen=True)
class Attempt:
    """A peer ready to be timed. sigma: bandwidth of the RBF it uses, None for the energy distance."""

    call: Callable[[], list[float]]
    sigma: float | None = None


@dataclass(frozen=True)
class Peer:
    """package: what pip installs, None where torch alone serves. family: ``energy``, ``mmd`` or ``permuted``. note:
    what of it runs."""

    package: str | None
    family: str
    convention: str
    note: str
    ready: Callable[[Case, Any, Any], Attempt]


def family(case: Case) -> str:
    if case.permutations:
        return "permuted"
    return "mmd" if case.bandwidths else "energy"


def _cdist(case: Case, x: Any, y: Any) -> Attempt:
    import torch

    n, m = case.n, case.m

    def call() -> list[float]:
        xx, yy, xy = torch.cdist(x, x).sum(), torch.cdist(y, y).sum(), torch.cdist(x, y).mean()
        return [2 * float(xy) - float(xx) / (n * (n - 1)) - float(yy) / (m * (m - 1))]

    return Attempt(call)


def _geomloss(case: Case, x: Any, y: Any) -> Attempt:  # noqa: ARG001 peers share one signature
    from geomloss import SamplesLoss

    loss = SamplesLoss("energy", backend="tensorized")
    return Attempt(lambda: [2 * float(loss(x, y))])  # its energy distance is half of the usual one


def _keops(case: Case, x: Any, y: Any) -> Attempt:
    from pykeops.torch import LazyTensor

    def total(a: Any, b: Any) -> float:
        difference = LazyTensor(a[:, None, :]) - LazyTensor(b[None, :, :])
        return float((difference**2).sum(-1).sqrt().sum(1).double().sum())

    n, m = case.n, case.m
    return Attempt(lambda: [2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))])


def _dcor(case: Case, x: Any, y: Any) -> Attempt:  # noqa: ARG001
    import dcor

    a, b = x.numpy(), y.numpy()
    return Attempt(lambda: [float(dcor.energy_distance(a, b, estimation_stat="u_statistic"))])


def _sklearn(case: Case, x: Any, y: Any) -> Attempt:
    from sklearn.metrics import euclidean_distances

    a, b, n, m = x.numpy(), y.numpy(), case.n, case.m

    def call() -> list[float]:
        xx, yy = euclidean_distances(a).sum(dtype=float), euclidean_distances(b).sum(dtype=float)
        xy = euclidean_distances(a, b).mean(dtype=float)
        return [float(2 * xy - xx / (n * (n - 1)) - yy / (m * (m - 1)))]

    return Attempt(call)


def _evidently(case: Case, x: Any, y: Any) -> Attempt:  # noqa: ARG001
    import numpy as np
    import pandas as pd
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import mmd
    from sklearn.metrics import pairwise_distances

    reference, current = pd.DataFrame(x.numpy()), pd.DataFrame(y.numpy())
    method = mmd()
    # it takes no bandwidth; its own is exp(-d2 / median^2) over a sample that these lines draw again
    some = [rows.sample(min(len(rows), 1000), random_state=0) for rows in (reference, current)]
    median = float(np.median(pairwise_distances(*some)))
    return Attempt(lambda: [float(method(current, reference)[0])], median / 2**0.5)


def _frouros(case: Case, x: Any, y: Any) -> Attempt:
    from functools import partial

    from frouros.detectors.data_drift import MMD
    from frouros.utils.kernels import rbf_kernel

    a, b, sigma = x.numpy(), y.numpy(), case.sigmas()[0]

    def call() -> list[float]:
        detector = MMD(kernel=partial(rbf_kernel, sigma=sigma))
        detector.fit(X=a)
        return [float(detector.compare(X=b)[0].distance)]

    return Attempt(call, sigma)


def _alibi(case: Case, x: Any, y: Any) -> Attempt:
    import numpy as np
    from alibi_detect.cd import MMDDrift

    a, b, sigma = x.numpy(), y.numpy(), case.sigmas()[0]

    def call() -> list[float]:
        detector = MMDDrift(
            a, backend="pytorch", sigma=np.array([sigma]), n_permutations=case.permutations, device="cpu"
        )
        return [float(detector.predict(b)["data"]["distance"])]

    return Attempt(call, sigma)


PEERS = {
    "torch.cdist": Peer(None, "energy", "E_U", "three n x m matrices, float32", _cdist),
    "geomloss": Peer("geomloss", "energy", "E_V", "tensorized, float32", _geomloss),
    "keops": Peer("pykeops", "energy", "E_U", "LazyTensor, float32", _keops),
    "dcor": Peer("dcor", "energy", "E_U", "float64", _dcor),
    "scikit-learn": Peer("scikit-learn", "energy", "E_U", "euclidean_distances, float32", _sklearn),
    "evidently": Peer("evidently", "mmd", "MMD2_U", "clipped at 0, its own bandwidth", _evidently),
    "frouros": Peer("frouros", "mmd", "MMD2_U", "float64", _frouros),
    "alibi-detect": Peer("alibi-detect", "permuted", "MMD2_U", "float32, permutations", _alibi),
}


@dataclass(frozen=True)
class Environment:
    """python: the interpreter with the peers, None where there is none. failed: package -> why pip could not."""

    python: Path | None
    failed: dict[str, str]

    def reason(self, package: str) -> str | None:
        """Why a package cannot be run, None if it was installed."""
        if self.python is None:
            return "not installed: run.py --peers builds the environment"
        return self.failed.get(package)


def environment(folder: Path) -> Environment:
    """The environment as it is; one that was built from another peers.txt does not count."""
    record = folder / "peers.json"
    if not record.is_file():
        return Environment(None, {})
    found = json.loads(record.read_text())
    if found["of"] != _digest():
        return Environment(None, {})
    return Environment(folder / "bin" / "python", found["failed"])


def build(folder: Path) -> Environment:
    """Make the environment unless it is there. A package pip refuses is recorded with the reason; delete the folder to
    try again."""
    found = environment(folder)
    if found.python is not None:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    print(f"building {folder} from {REQUIREMENTS.name}: minutes, once", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (folder / ".gitignore").write_text("*\n")
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    packages = {peer.package for peer in PEERS.values()}
    failed: dict[str, str] = {}
    shared = [pin for pin in pins if pin.partition("==")[0] not in packages]
    for step in (shared, *([pin] for pin in pins if pin not in shared)):
        ran = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(REQUIREMENTS), *step],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")] or ran.stderr.splitlines()
            names = [pin.partition("==")[0] for pin in (pins if step is shared else step)]
            failed.update(dict.fromkeys(names, f"pip: {errors[-1] if errors else 'failed'}"))
            if step is shared:
                break  # nothing can be compared without them
    (folder / "peers.json").write_text(json.dumps({"of": _digest(), "failed": failed}, indent=1))
    return environment(folder)


def _digest() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
