"""Attribution, words and segments as the job wires them: planted changes are named, what cannot be scored is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from jobs import make_corpus, make_job, run

from gpudrift.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_planted_cluster_is_named_with_its_share_and_its_rows_lead_the_table(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", new_cluster=0.2, rows_per_week=300, dim=32)
    ran = run(corpus, tmp_path / "out")
    first = ran.result["phenomena"][0]
    assert first["kind"] == "new_cluster"
    assert first["size"] == pytest.approx(0.2, abs=0.06)
    assert "new cluster" in first["sentence"]
    assert "2026-W15" in first["sentence"]  # ids
    parts = ran.result["attribution"]
    assert sum(cluster["contribution"] for cluster in parts["clusters"]) == pytest.approx(parts["score"], rel=1e-9)
    assert parts["score"] == pytest.approx(ran.result["calibration"]["score"], rel=1e-9)
    rows = pq.read_table(tmp_path / "out" / "drifted_rows.parquet").to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, 101))
    planted = {cluster["index"] for cluster in parts["clusters"] if cluster["kind"] == "new"}
    assert sum(row["cluster"] in planted for row in rows[:40]) >= 36
    assert "what changed" in ran.out


def test_nothing_is_said_of_a_quiet_window(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path)
    assert ran.result["phenomena"] == []
    assert "what changed" not in ran.out


def test_segments_configured_later_are_scored_in_the_window_before_too(drifted: Path, tmp_path: Path) -> None:
    """Two windows make an alert: those of the window before are scored now where the history lacks them."""
    run(drifted, tmp_path)
    pinned = {"reference.replace": True, "job": "reference"}
    wanted: dict[str, Any] = {"source.segment_columns": ["cluster"], "segments.min_rows": 20}
    run(drifted, tmp_path, wanted | pinned)
    ran = run(drifted, tmp_path, wanted)
    verdicts = {segment["name"]: segment["verdict"] for segment in ran.result["segments"]}
    assert set(verdicts.values()) <= {"warning", "alert", "insufficient"}
    assert "alert" in verdicts.values()


def test_a_column_without_any_segment_to_score_says_so(quiet: Path, tmp_path: Path) -> None:
    ran = run(quiet, tmp_path, {"source.segment_columns": ["id"], "source.id_column": None})
    (note,) = [note for note in ran.result["notes"] if "no segment of id" in note]
    assert "segments.min_rows is 50" in note


def test_gates_that_are_not_measured_are_refused_and_the_default_takes_those_there_are() -> None:
    assert make_job({"metrics.bandwidths": [1.0]}).calibrate.gates
    with pytest.raises(ConfigError, match="not measured") as caught:
        make_job({"metrics.bandwidths": [1.0], "calibrate.gates": ["energy", "mmd2_b2"]})
    assert caught.value.field == "calibrate.gates"
