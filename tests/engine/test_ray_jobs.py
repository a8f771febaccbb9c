"""Whole jobs on a Ray cluster of three nodes: the result is that of one machine, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import Ran, make_corpus, run
from ray_cluster import cluster, connected

from gpudrift.errors import EngineError

BLOCKS = {"engine.block_rows": 256}  # of 1,800 reference rows: 8 blocks, 36 tasks a pass


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("moved"), mean_shift=0.3, rows_per_user=3.0)


@pytest.fixture(scope="module")
def alone(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(moved, tmp_path_factory.mktemp("alone"), BLOCKS)


@pytest.fixture(scope="module")
def three() -> Iterator[Any]:
    with cluster(num_cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def joined(three: Any) -> Iterator[Any]:
    with connected(three):
        yield three


def lasting(ran: Ran) -> dict[str, Any]:
    """result.json without what may differ: times, places, the engine's own settings."""
    kept = {key: value for key, value in ran.result.items() if key not in ("run", "config")}
    return kept | {"reference": {k: v for k, v in kept["reference"].items() if k != "path"}}


@pytest.mark.usefixtures("no_pictures", "joined")
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_bytes_of_one_machine(
    workers: int, moved: Path, alone: Ran, tmp_path: Path
) -> None:
    ran = run(moved, tmp_path, BLOCKS | {"engine.kind": "ray", "engine.workers": workers})
    assert lasting(ran) == lasting(alone)
    account, local = ran.result["run"]["engine"], alone.result["run"]["engine"]
    assert account["kind"] == "ray"
    assert {name: n for name, n in account["tasks"].items() if name != "read"} == local["tasks"]
    assert account["tasks"]["read"] >= 3
    assert set(account["bytes"]) >= {"read", "reference", "pairs and metrics"}
    assert all(moved["shared"] > 0 and moved["results"] > 0 for moved in account["bytes"].values())
    assert account["lost"] == account["errors"] == 0


@pytest.mark.usefixtures("no_pictures", "joined")
def test_segments_clusters_and_the_windows_before_are_the_same_too(moved: Path, tmp_path: Path) -> None:
    settings = BLOCKS | {
        "source.segment_columns": ["cluster"], "segments.min_rows": 20, "source.cluster_column": "user",
        "score.rows": 1111,
    }  # fmt: skip
    here = run(moved, tmp_path / "here", settings)
    there = run(moved, tmp_path / "there", settings | {"engine.kind": "ray", "engine.workers": 3})
    assert here.result["segments"]
    assert [found["verdict"] for found in here.result["compared"]]
    assert lasting(there) == lasting(here)
    assert "segments" in there.result["run"]["engine"]["tasks"]


@pytest.mark.usefixtures("no_pictures", "joined")
def test_workers_without_the_gpu_that_is_asked_of_them_are_one_error(moved: Path, tmp_path: Path) -> None:
    # the cluster's GPUs are pretended; the process that starts the run needs none
    with pytest.raises(EngineError, match="sees no CUDA device") as refused:
        run(moved, tmp_path, BLOCKS | {"engine.kind": "ray", "engine.device": "cuda"})
    assert refused.value.value == "cuda:0"
    assert not (tmp_path / "result.json").exists()


def test_the_command_line_on_a_cluster_of_three_nodes_prints_and_leaves_what_one_machine_does(
    three: Any, tmp_path: Path
) -> None:
    def weekly(output: Path, *settings: str) -> tuple[Ran, str]:
        """The weekly job of the sample, by its own process."""
        arguments = ["+experiment=weekly", f"output.dir={output}", "report.html=false", *settings]
        ended = subprocess.run(
            [sys.executable, "-m", "gpudrift", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return Ran(0, json.loads((output / "result.json").read_text()), ended.stdout, ended.stderr, b"")

    settings = ("engine.block_rows=1024",)
    here = weekly(tmp_path / "here", *settings)
    there = weekly(tmp_path / "there", "engine=ray", f"engine.address={three.address}", *settings)
    assert lasting(there) == lasting(here)
    assert there.out.replace("/there/", "/here/") == here.out
    assert there.result["run"]["engine"]["workers"]["nodes"] == 3
    assert "pairs and reading by Ray" in there.err
    assert ": 3 nodes, 5 tasks at a time, on cpu" in there.err
    assert "Traceback" not in there.err
