"""Whole jobs on every engine of one machine: the result is the same to the byte, whatever runs where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jobs import Ran, make_corpus, run

from gpudrift.errors import ConfigError
from gpudrift.history import History

BLOCKS = {"engine.block_rows": 256}  # of 1,800 reference rows: 8 blocks, 36 tasks


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("moved"), mean_shift=0.3, rows_per_user=3.0)


def lasting(ran: Ran) -> dict[str, Any]:
    """result.json without what may differ: times, places, the engine's own settings."""
    kept = {key: value for key, value in ran.result.items() if key not in ("run", "config", "device_reason")}
    return kept | {"reference": {k: v for k, v in kept["reference"].items() if k != "path"}}


@pytest.fixture(scope="module")
def alone(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(moved, tmp_path_factory.mktemp("alone"), BLOCKS)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_devices_of_one_machine_give_the_same_bytes(workers: int, moved: Path, alone: Ran, tmp_path: Path) -> None:
    ran = run(moved, tmp_path, BLOCKS | {"engine.devices": ["cpu"] * workers, "device": "auto"})
    assert lasting(ran) == lasting(alone)
    account = ran.result["run"]["engine"]
    assert account["kind"] == "local"
    assert account["workers"]["workers"] == workers
    assert account["tasks"] == alone.result["run"]["engine"]["tasks"]
    assert account["tasks"]["usual"] >= 36  # the reference's own pairs, of hygiene and of the null
    assert account["started"] == sum(account["tasks"].values())
    assert account["bytes"] == {}


@pytest.mark.usefixtures("no_pictures")
def test_one_block_is_the_run_without_blocks(moved: Path, alone: Ran, tmp_path: Path) -> None:
    whole = run(moved, tmp_path, {"engine.block_rows": 4096})
    usual = run(moved, tmp_path / "usual")
    assert lasting(whole) == lasting(usual)
    assert whole.result["run"]["engine"]["tasks"] == usual.result["run"]["engine"]["tasks"]
    energies = [ran.result["metrics"]["energy"]["value"] for ran in (whole, alone)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)


class Stopped(RuntimeError):
    """In place of a kill: nothing of ours catches it."""


@pytest.mark.usefixtures("no_pictures")
def test_a_run_cut_off_goes_on_from_its_blocks(
    moved: Path, alone: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BLOCKS | {"engine.checkpoint_seconds": 0.0}
    said = 0

    def stop_at(*_: object) -> None:
        nonlocal said
        said += 1
        if said == 30:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("gpudrift.report.terminal.Reporter.detail", stop_at)
        with pytest.raises(Stopped):
            run(moved, tmp_path, settings)
    assert list((tmp_path / "blocks").iterdir())
    assert not (tmp_path / "result.json").exists()
    noted: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("gpudrift.report.terminal.Reporter.note", lambda _, line: noted.append(line))
        ran = run(moved, tmp_path, settings)
    assert ran.result["run"]["engine"]["resumed"] > 20
    assert any("blocks were finished before" in line for line in noted)
    assert lasting(ran) == lasting(alone)
    assert not (tmp_path / "blocks").exists()  # nothing is left once the run has ended
    assert run(moved, tmp_path, settings).result["run"]["engine"]["resumed"] == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_backfill_keeps_the_blocks_of_one_window(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, held = History.write, list[int]()

    def write(history: History, *args: Any, **also: Any) -> None:
        held.append(len(list((tmp_path / "blocks").glob("YY-*"))))
        written(history, *args, **also)

    monkeypatch.setattr(History, "write", write)
    run(moved, tmp_path, {"job": "backfill", "engine.block_rows": 64, "engine.checkpoint_seconds": 0.0})
    assert len(held) >= 14
    assert max(held) <= 2  # its own, and as it is compared with the windows before


@pytest.mark.usefixtures("no_pictures")
def test_nothing_is_kept_where_resume_is_off(moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr("gpudrift.pipeline.write_result", stop)
    with pytest.raises(Stopped):
        run(moved, tmp_path, BLOCKS | {"engine.checkpoint_seconds": 0.0, "engine.resume": False})
    assert not (tmp_path / "blocks").exists()


def test_devices_of_another_type_than_the_jobs_are_refused(moved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run(moved, tmp_path, {"engine.devices": ["0"], "device": "cpu"})
    assert refused.value.field == "engine.devices"


def test_a_device_that_is_not_there_is_refused(moved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run(moved, tmp_path, {"engine.devices": ["0", "1"], "device": "auto"})
    assert refused.value.value == "cuda:0"
