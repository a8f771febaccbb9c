"""docs/sketches.md: its code runs, its numbers of parts and its list of metrics are those of the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from make_sketch import SETTINGS, cloud, sketch_of

from gpudrift.panel import PanelSettings
from gpudrift.sketch import SketchPlan, compare

TEXT = (Path(__file__).parents[2] / "docs" / "sketches.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 1
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec(blocks[0], scope)
    assert float(capsys.readouterr().out.split()[0]) > 0


def test_every_metric_is_in_the_table() -> None:
    plan = SketchPlan.from_rows(torch.from_numpy(cloud(301)), settings=SETTINGS, features=8, bins=8)
    found = compare(sketch_of(plan, cloud(301)), sketch_of(plan, cloud(100, seed=1), 999))
    named = set(re.findall(r"`(\w+(?:<k>)?)`", TEXT.partition("## What can be read from two of them")[2]))
    families = {re.sub(r"\d+$", "<k>", name) if re.search(r"_(b|pc)\d+$", name) else name for name in found}
    assert families <= named


def test_sizes_are_as_stated() -> None:
    """d = 384 at the defaults."""
    rows = torch.randn(500, 384, generator=torch.Generator().manual_seed(0))
    plan = SketchPlan.from_rows(rows, settings=PanelSettings())
    empty = sketch_of(plan, rows[:1].numpy()).state()
    of = {name: tensor.numel() * tensor.element_size() / 1e6 for name, tensor in empty.items()}
    stated = {name: float(size) for name, size in re.findall(r"^\| (\w[\w ]*) \|.*\| ([\d.]+) \|$", TEXT, re.MULTILINE)}
    assert of["mean"] + of["scatter"] == pytest.approx(stated["moments"], abs=0.05)
    assert of["features"] == pytest.approx(stated["random features"], abs=0.05)
    assert of["histograms.counts"] + of["histograms.sums"] == pytest.approx(stated["histograms"], abs=0.05)
    assert plan.reservoir * 384 * 4 / 1e6 == pytest.approx(stated["reservoir"], abs=0.15)


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.sketches")
    benchmark.speed(64, 16, 1, sizes=(8, 16))
    benchmark.errors(40, 16, seeds=1, sizes=(8,), grids=(8,))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[0] in {"8", "16"} for line in lines if line) == 2
    assert sum("D = " in line for line in lines) == 3
    assert sum(" bins: " in line for line in lines) == 3
