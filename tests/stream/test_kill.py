"""SIGKILL at random points: what a streaming job ends up with is, to the bit, what it would have without."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from jobs import ROWS, week
from streams import OLD, land, land_weeks, lines, saved

HERE = Path(__file__).resolve().parent
SETTINGS = {"stream.emit_rows": 170, "stream.keep_windows": 2, "stream.reservoir": 64}
Run = Callable[[Path, int | None, dict[str, Any]], dict[str, int]]


@pytest.fixture(scope="module")
def arena(begun: Path, table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inbox with everything in it: four weeks in parts, out of order in one place, late rows, a file of three
    windows, a copy, a damaged file."""
    base = tmp_path_factory.mktemp("kill")
    inbox = base / "inbox"
    weeks = land_weeks(inbox, table, [9, 10, 11, 12], parts=2)
    mixed = pa.concat_tables([table.slice(week(k).start, 30) for k in (11, 12, 13)])
    land(inbox, "mixed.parquet", mixed, at=121.5)
    shutil.copy(weeks[1], inbox / "copy.parquet")
    os.utime(inbox / "copy.parquet", (OLD + 101, OLD + 101))
    land(inbox, "late.parquet", table.slice(week(9).start + 5, 12), at=200)
    damaged = land(inbox, "damaged.parquet", table.slice(week(12).start, 20))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    os.utime(damaged, (OLD + 105, OLD + 105))
    shutil.copytree(begun, base / "reference")
    for sketch in (base / "reference").glob("reference-sketch-*"):
        sketch.unlink()
    return base


@pytest.fixture(scope="module")
def run(corpus: Path, arena: Path) -> Iterator[Run]:
    """A run into a directory; made in a process that has imported everything already."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    quiet = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # forks of a process with threads
    with subprocess.Popen(
        [sys.executable, HERE / "killing.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | quiet,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def call(output: Path, kill: int | None, settings: dict[str, Any]) -> dict[str, int]:
            task = {"corpus": str(corpus), "output": str(output), "inbox": str(arena / "inbox"), "kill": kill}
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(task | {"settings": SETTINGS | settings}) + "\n")
            process.stdin.flush()
            found: dict[str, int] = json.loads(process.stdout.readline())
            return found

        yield call
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(run: Run, arena: Path) -> tuple[Path, int]:
    """The output of a run that nobody killed, and the points of such a run."""
    output = fresh(arena, "undisturbed")
    assert run(output, None, {})["signal"] == 0
    shutil.copytree(output / "reference", arena / "with-sketch")
    again = fresh(arena, "counted")
    done = run(again, 0, {})
    assert done["signal"] == 0
    assert everything(again) == everything(output)
    return output, done["points"]


def fresh(arena: Path, name: str) -> Path:
    made = arena / "with-sketch"
    shutil.copytree(made if made.exists() else arena / "reference", arena / name / "reference")
    return arena / name


def everything(output: Path) -> dict[str, Any]:
    """All that a job leaves behind, without times and rates; and without its length, which depends on those."""
    told, tensors = saved(output)
    del told["offset"]
    passing = ("at", "rows_per_second")
    emitted = [{k: v for k, v in line.items() if k not in passing} for line in lines(output)]
    windows = {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in (output / "windows").glob("[!.]*.json")
    }
    history = {
        str(path.relative_to(output)): pq.read_table(path, partitioning=None).to_pylist()
        for path in (output / "history").rglob("*.parquet")
    }
    for window in windows.values():
        for key in passing:
            del window[key]
    bits = {name: (str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for name, t in tensors.items()}
    return {"told": told, "bits": bits, "emitted": emitted, "windows": windows, "history": history}


def test_what_the_undisturbed_run_counted(undisturbed: tuple[Path, int], arena: Path) -> None:
    """Against counts made from the files alone."""
    output, points = undisturbed
    told, _ = saved(output)
    files = [p for p in (arena / "inbox").iterdir() if p.name not in ("copy.parquet", "damaged.parquet")]
    rows = ds.dataset(files).count_rows()
    counts = told["counts"]
    assert counts["rows"] + counts["late"] == rows == 4 * ROWS + 90 + 12
    assert (counts["files"], counts["duplicate_files"], counts["quarantined_files"]) == (len(files), 1, 1)
    assert counts["late"] >= 12
    assert [line["emission"] for line in lines(output)] == list(range(1, len(lines(output)) + 1))
    assert len({(line["window"], line["rows"], line["final"]) for line in lines(output)}) == len(lines(output))
    assert points > 200


@pytest.mark.parametrize(
    "settings",
    [{"stream.checkpoint_seconds": 0}, {"stream.checkpoint_seconds": 1e6}],
    ids=["a checkpoint a file", "few checkpoints"],
)
def test_killed_again_and_again(
    run: Run, arena: Path, undisturbed: tuple[Path, int], settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Each run is killed, and the next goes on in its remains, until one comes to its end."""
    expected, points = everything(undisturbed[0]), undisturbed[1]
    chance = random.Random(request.node.name)
    kills, trial = 0, 0
    while kills < 10:
        output = fresh(arena, f"{request.node.name.partition('[')[2][:-1].replace(' ', '-')}-{trial}")
        while True:
            ended = run(output, chance.randint(1, points // 5), settings)
            assert ended["signal"] in (0, 9)
            if ended["signal"] == 0:
                break
            kills += 1
            leftover_is_sound(output, expected)
        assert everything(output) == expected
        assert not [path for path in output.rglob(".*") if ".tmp" in path.name]
        trial += 1
    print(kills, trial)


def leftover_is_sound(output: Path, expected: dict[str, Any]) -> None:
    """What lies there at any moment: a whole checkpoint or none, and nothing counted that is not in the end."""
    if (output / "checkpoint.safetensors").exists():
        told, _ = saved(output)
        assert all(number <= expected["told"]["counts"][name] for name, number in told["counts"].items())
        assert (output / "stream.jsonl").stat().st_size >= told["offset"] if told["offset"] else True
    for path in (output / "windows").glob("[!.]*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_the_points_hit_what_matters(run: Run, arena: Path, undisturbed: tuple[Path, int]) -> None:
    """Every kind of moment is killed at once: the first points of a run, one by one."""
    expected = everything(undisturbed[0])
    output = fresh(arena, "first-points")
    for kill in (3, 6, 7, 9, 10, 12):  # in the first file's sketch, its checkpoint, the rename, the status
        assert run(output, kill, {"stream.checkpoint_seconds": 0})["signal"] == 9
    assert run(output, 0, {"stream.checkpoint_seconds": 0})["signal"] == 0
    assert everything(output) == expected
