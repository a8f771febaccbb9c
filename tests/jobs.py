"""Small corpora, and runs of the job in this process: what the end-to-end tests share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from omegaconf import OmegaConf
from rich.console import Console

from gpudrift.config import JobConfig, to_job
from gpudrift.generate import generate
from gpudrift.pipeline import run_job
from gpudrift.report.terminal import Reporter

ROWS = 150  # a week
WEEKS = 14  # 2026-W02 to 2026-W15; drift, where there is any, begins in W14
FIRST_DRIFTED, LAST = "2026-W14", "2026-W15"


def make_corpus(path: Path, **changes: Any) -> Path:
    """14 weeks of 150 rows in 16 dimensions; by default nothing drifts."""
    plan: dict[str, Any] = {
        "start": date(2026, 1, 5), "weeks": WEEKS, "rows_per_week": ROWS, "dim": 16, "clusters": 4, "spread": 0.5,
        "rows_per_user": 1.0, "dtype": "float32", "drift_week": 12, "mean_shift": 0.0, "spread_change": 1.0,
        "new_cluster": 0.0, "reweight": 0.0, "seed": 3, "overwrite": False,
    }  # fmt: skip
    generate(path, **(plan | changes))
    return path


def table_of(corpus: Path) -> pa.Table:
    """All rows of a corpus, in order of time."""
    return pq.read_table(corpus, partitioning=None).sort_by("event_time")


def vectors(table: pa.Table) -> NDArray[np.float32]:
    values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.array(values, dtype=np.float32).reshape(len(table), -1)


def with_vectors(table: pa.Table, values: NDArray[np.float32]) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)


def week(k: int) -> slice:
    """The rows of week k in ``table_of``."""
    return slice(ROWS * k, ROWS * (k + 1))


def make_job(settings: dict[str, Any]) -> JobConfig:
    """A job from dotted settings, validated as those of the command line are."""
    node = OmegaConf.structured(JobConfig)
    for key, value in settings.items():
        OmegaConf.update(node, key, value)
    return to_job(node)


@dataclass(frozen=True)
class Ran:
    """A run: exit code, result.json (empty where there is none), standard output, standard error."""

    code: int
    result: dict[str, Any]
    out: str
    err: str
    lasting: bytes  # of result.json, without its ``run`` object: what a rerun must not change


def run(corpus: Path | str, output: Path, settings: dict[str, Any] | None = None) -> Ran:
    """Run a job on a corpus into ``output``."""
    out, err = StringIO(), StringIO()
    reporter = Reporter(Console(file=out), diagnostics=Console(file=err))
    basis = {"source.uri": str(corpus), "source.id_column": "id", "device": "cpu", "output.dir": str(output)}
    code = run_job(make_job(basis | (settings or {})), reporter)
    file = output / "result.json"
    text = file.read_text(encoding="utf-8") if file.exists() else "{}"
    lasting = text.partition('\n  "run": {')[0]  # the last key
    return Ran(code, json.loads(text), out.getvalue(), err.getvalue(), lasting.encode())
