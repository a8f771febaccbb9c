"""The study of outcomes: its page shows the committed results, its truths are right, and it runs."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_modules import ROOT, benchmarks_on_path, module
from made_history import autoregressive, calendar, history
from scipy import stats

from gpudrift.config import JobConfig
from gpudrift.history import ALL, History

__all__ = ["benchmarks_on_path"]  # a fixture
pytestmark = pytest.mark.usefixtures("benchmarks_on_path")

DOCS = ROOT / "docs" / "outcomes.md"
RESULTS = ROOT / "benchmarks" / "results" / "outcomes.json"
RNG = np.random.default_rng


# the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_committed_results() -> None:
    tables = module("outcome_tables")
    results, page = json.loads(RESULTS.read_text()), DOCS.read_text()
    shown = re.findall(r"<!-- table (\w+) -->", page)
    assert sorted(shown) == sorted(results["parts"]) == sorted(tables.TABLES)
    assert tables.renewed(page, results) == page
    assert all(found["command"] in page for found in results["parts"].values())


def test_the_results_name_no_place() -> None:
    text = RESULTS.read_text()
    assert not re.findall(r'[" ]/[\w.]+', text)
    for found in json.loads(text)["parts"].values():
        assert set(found) == {"command", "minutes", "date", "versions", "rows"}


def test_what_the_page_says_of_the_results_is_in_them() -> None:
    parts = json.loads(RESULTS.read_text())["parts"]
    assert all(row["ours"] < 0.08 for row in parts["links"]["rows"])
    assert all(row["ours"] < 0.1 for row in parts["shapes"]["rows"] if "step" not in row["shape"])
    assert all(row["one line"] > 0.3 for row in parts["shapes"]["rows"] if "ramp" in row["shape"])
    assert all(row["rejected"] < 0.06 for row in parts["events"]["rows"] if row["effect"] == 0)
    found = {row["windows"]: row["found"] for row in parts["power"]["rows"] if row["autocorrelation"] == 0}
    assert found[12] < 0.4 < 0.8 < found[26] < found[52]
    for row in parts["real"]["rows"]:
        assert row["effect again"] == pytest.approx(row["effect"], rel=1e-4)
        assert row["p again"] == pytest.approx(row["p"], abs=0.02)


def test_every_setting_is_on_the_page() -> None:
    rows = dict(re.findall(r"^\| `outcomes\.(\w+)` \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE))
    settings = JobConfig().outcomes
    assert set(rows) == {field.name for field in fields(settings)}
    for name, shown in rows.items():
        default = getattr(settings, name)
        if isinstance(default, int | float):
            assert float(shown) == default, name


# truths ------------------------------------------------------------------------------------------------------------


def test_series_are_what_they_are_called() -> None:
    worlds = module("outcome_series")
    values = worlds.autoregressive(RNG(0), 20_000, 0.8)
    assert values.std() == pytest.approx(1, abs=0.06)
    assert np.corrcoef(values[1:], values[:-1])[0, 1] == pytest.approx(0.8, abs=0.02)
    x, y, slope = worlds.following(RNG(1), 20_000, 0.0, 0.7)
    assert np.corrcoef(x[:-1], y[1:])[0, 1] == pytest.approx(0.7, abs=0.02)
    assert stats.linregress(x[:-1] / np.log(2), y[1:]).slope == pytest.approx(slope, abs=0.02)
    drift, values = worlds.spiking(RNG(2), 5000, 0.0, 0.0, 3.0)
    assert drift.spikes.mean() == pytest.approx(worlds.SPIKING, abs=0.001)
    alone = drift.spikes & ~np.roll(drift.spikes, 1) & ~np.roll(drift.spikes, 2)
    assert values[alone].mean() == pytest.approx(-3, abs=0.2)
    for size, draw in worlds.SHAPES.values():
        assert len(draw(RNG(3))) == size


def test_the_naive_test_is_scipys() -> None:
    worlds = module("outcome_series")
    x, y = RNG(4).normal(size=(2, 30))
    wanted = min(stats.pearsonr(x[: 30 - lag], y[lag:]).pvalue for lag in range(5))
    assert worlds.naive(x, y, 4, 0, RNG(0)) == pytest.approx(wanted, rel=1e-8)


def test_blocks_move_whole() -> None:
    """A metric that is the drift has the largest correlation in the order observed alone."""
    worlds = module("outcome_series")
    x = autoregressive(RNG(5), 40, 0.8)
    assert worlds.blocks(x, x, 4, 99, RNG(0)) == 0.01


# the whole study ---------------------------------------------------------------------------------------------------


def test_the_study_runs_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, tables = module("outcomes"), module("outcome_tables")
    monkeypatch.setattr(study, "SIZES", (26,))
    monkeypatch.setattr(study, "PHIS", (0.5,))
    monkeypatch.setattr(study, "DRAWS", 19)
    monkeypatch.setattr(study.events, "BAND_DRAWS", 20)
    file = tmp_path / "results.json"
    kept = study.study(list(study.STUDY), 0, 0.001, file, None, None)
    assert json.loads(file.read_text()) == study.rounded(kept)
    for part in study.STUDY:
        lines = tables.table(part, kept).split("\n\n")[0].splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1
    again = study.study(["links"], 0, 0.001, file, None, None)
    assert again["parts"]["links"]["rows"] == kept["parts"]["links"]["rows"]
    assert again["parts"].keys() == kept["parts"].keys()


def test_real_series_are_recomputed_by_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, real = module("outcomes"), module("outcome_real")
    monkeypatch.setattr(real, "AGAIN", 99)
    monkeypatch.setattr(real, "SHIFTS", range(15, 60, 20))
    kept = History(tmp_path / "history", "job", "reference")
    for points in history(np.exp(autoregressive(RNG(6), 80, 0.6)) * 1e-3):
        kept.write(points[ALL], ())
    scores = np.log2(np.array([point.score or 0 for point in kept.points()]) + 1e-4)
    table = pd.DataFrame({"week_start": [w.start.date().isoformat() for w in calendar(80)], "queries": 300})
    for k, name in enumerate(real.WORSE):
        table[name] = 0.1 * RNG(k).normal(size=80) + 0.05 * k * scores
    table.iloc[5:75].to_csv(tmp_path / "table.csv", index=False)
    found = study.study(["real"], 0, 1, tmp_path / "r.json", tmp_path / "table.csv", kept.directory)
    rows = found["parts"]["real"]["rows"]
    assert len(rows) == 3
    for row in rows:
        assert row["windows"] == 70
        assert row["effect again"] == pytest.approx(row["effect"], rel=1e-8)
        assert row["p again"] == pytest.approx(row["p"], abs=0.15)
    assert "FOLDER" in found["parts"]["real"]["command"]
    with pytest.raises(SystemExit, match="--history"):
        study.study(["real"], 0, 1, tmp_path / "r.json", None, None)
