"""The calibration study: its truths and tables are right, it runs, and its page shows the committed results."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_modules import ROOT, benchmarks_on_path, module
from scipy import integrate, special, stats
from scipy.spatial.distance import cdist

import gpudrift

__all__ = ["benchmarks_on_path"]  # a fixture
pytestmark = pytest.mark.usefixtures("benchmarks_on_path")

DOCS = ROOT / "docs" / "calibration.md"
RESULTS = ROOT / "benchmarks" / "results" / "calibration.json"


# the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_committed_results() -> None:
    tables = module("calibration_tables")
    results, shown = json.loads(RESULTS.read_text()), tables.marked(DOCS.read_text())
    assert shown
    for name, text in shown.items():
        assert text == tables.table(name, results), name
    assert {name.split(",")[0] for name in shown} == set(results["parts"])
    worlds = {row["world"] for row in results["parts"]["power"]["rows"]}
    assert {name.partition(", ")[2] for name in shown if name.startswith("power,")} == worlds
    assert all(found["command"] in DOCS.read_text() for found in results["parts"].values())


def test_the_results_name_no_place() -> None:
    text = RESULTS.read_text()
    assert not re.findall(r'[" ]/[\w.]+', text)
    for found in json.loads(text)["parts"].values():
        keys = {"command", "seed", "effort", "date", "minutes", "processes", "commit", "versions", "real", "rows"}
        assert set(found) == keys


def test_only_marked_tables_are_written_anew() -> None:
    tables = module("calibration_tables")
    part = {"command": "c", "minutes": 1.5, "processes": 2, "date": "d", "versions": {"a": "1"}, "real": None}
    rows = [{"rule": "r", "trials": 3, "difference": 0.00123, "decisions differ": 1}]
    results = {"parts": {"peers": {**part, "rows": rows}}}
    page = "before\n<!-- table peers -->\nold\n<!-- end of table -->\n| kept |\n<!-- table weeks -->\nx\n"
    page += "<!-- end of table -->\n"
    found = tables.renewed(page, results)
    assert found == page.replace("old", tables.table("peers", results))
    assert "| r | 3 | 0.001 | 1 |" in found
    assert "`c`: 1.5 minutes on 2 processes, d, a 1." in found
    assert tables.renewed(found, results) == found


# truths ------------------------------------------------------------------------------------------------------------


def test_the_gaussian_truths_are_those_of_one_dimension() -> None:
    families = module("calibration_families")
    shift, width = 0.7, 1.3
    folded = 2 / np.sqrt(np.pi) * np.exp(-(shift**2) / 4) + shift * special.erf(shift / 2)
    assert families.gaussian_energy(shift, 1) == pytest.approx(2 * folded - 4 / np.sqrt(np.pi), rel=1e-12)

    def mean_rbf(mean: float) -> float:
        found = integrate.quad(
            lambda z: np.exp(-(z**2) / (2 * width**2)) * stats.norm.pdf(z, mean, np.sqrt(2)), -30, 30
        )
        return float(found[0])

    wanted = 2 * mean_rbf(0) - 2 * mean_rbf(shift)
    assert families.gaussian_mmd2(shift, 1, width) == pytest.approx(wanted, rel=1e-9)


def test_the_truth_of_pools_is_that_of_the_mixture() -> None:
    """Half and half of two pools of one size is their concatenation; V-statistics are the whole truth."""
    families = module("calibration_families")
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 1
    found = families._pools(p, q, 10)
    mixed = np.concatenate([p, q])
    wanted = gpudrift.energy_distance(p, mixed, "v").value
    assert found.energy(0.5) == pytest.approx(wanted, rel=1e-9)
    assert found.mmd2(0.5) == pytest.approx(gpudrift.mmd2(p, mixed, found.bandwidth, "v").value, rel=1e-9)
    assert (found.energy(0), found.mmd2(0)) == (0, 0)
    drawn = found.draw(rng, 1.0)
    assert cdist(drawn.y, q).min(axis=1).max() == 0
    assert cdist(drawn.x, p).min(axis=1).max() == 0


@pytest.mark.parametrize("name", ["users", "users, uneven", "users, both sides"])
def test_rows_of_a_user_resemble_each_other_by_icc(name: str) -> None:
    families = module("calibration_families")
    found = families.users(name, np.random.default_rng(0), 4000, 2)
    sizes = np.bincount(found.codes_x)[np.unique(found.codes_x)]
    assert (sizes.min(), sizes.max() > 5) == ((1, True) if "uneven" in name else (5, False))
    both = len(np.intersect1d(found.codes_x, found.codes_y))
    assert both == (2000 if "both" in name else 0)
    assert found.x.var() == pytest.approx(1, abs=0.04)
    first = np.unique(found.codes_x, return_index=True)[1]
    pairs = first[np.diff([*first, len(found.x)]) > 1]
    assert (found.x[pairs] * found.x[pairs + 1]).mean() == pytest.approx(families.ICC, abs=0.04)


def test_streams_differ_and_repeat() -> None:
    stream = module("calibration_families").stream
    draws = {stream(*key).integers(2**60) for key in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1))}
    assert len(draws) == 4
    assert stream(0, "a", 1).integers(2**60) in draws


# the peers' rules --------------------------------------------------------------------------------------------------


def test_the_widest_dimension_is_scipys() -> None:
    peers = module("calibration_peers")
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, (50, 4)).astype(float), rng.integers(0, 6, (20, 4)) + np.array([0, 0, 1, 0.5])
    wanted = [stats.ks_2samp(x[:, j], y[:, j]).statistic for j in range(4)]
    assert peers._ks_distances(x, y) == pytest.approx(wanted, rel=1e-12)
    p = min(stats.ks_2samp(x[:, j], y[:, j], method="asymp").pvalue for j in range(4))
    found = peers.ks_bonferroni(peers.Reference([x]), y)
    assert found.statistic == pytest.approx(-np.log(p), rel=1e-9)
    assert found.drift == (p <= 0.05 / 4)


def test_the_peers_mmd_is_the_u_statistic_at_their_bandwidth() -> None:
    peers = module("calibration_peers")
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(41, 3)) + 1
    reference = peers.Reference([x[:20], x[20:]])
    squares = np.sort(cdist(x, y).ravel() ** 2)
    sigma = float(np.sqrt(squares[squares.size // 2 - 1] / 2))
    found = peers.mmd_median(reference, y)
    assert found.statistic == pytest.approx(gpudrift.mmd2(x, y, sigma).value, rel=1e-9)
    assert found.drift
    same = peers.mmd_median(reference, rng.normal(size=(41, 3)))
    assert not same.drift
    median = float(np.median(cdist(x, y)))
    fixed = peers.mmd_fixed(reference, y)
    assert fixed.statistic == pytest.approx(gpudrift.mmd2(x, y, median / np.sqrt(2)).value, rel=1e-9)


def test_every_rule_sees_what_it_is_for_and_nothing_in_itself() -> None:
    peers = module("calibration_peers")
    rng = np.random.default_rng(3)
    scale = np.array([3, *[1.0] * 8, 0.1])
    windows = [rng.normal(size=(80, 10)) * scale + 1 for _ in range(6)]
    reference = peers.Reference(windows)
    far = rng.normal(size=(80, 10)) * (scale + 1) + 4 * np.array([-2, *[1, 0] * 4, 1])
    for name, rule in peers.RULES.items():
        assert rule(reference, far).drift, name
        assert rule(reference, far).statistic > rule(reference, windows[0]).statistic, name


# tables ------------------------------------------------------------------------------------------------------------


def test_a_share_of_nothing_has_a_bound() -> None:
    """No alarm in n independent windows: shares up to the bound would have shown one in 95 of 100."""
    rate = module("calibration_tables")._rate
    bound = stats.binomtest(0, 40).proportion_ci(0.90, method="exact").high
    assert rate(0.0, 0.0, 40) == f"0.000 (< {bound:.3f})"
    assert rate(1.0, 0.0, 40) == f"1.000 (> {1 - bound:.3f})"
    assert rate(0.25, 0.1, 40) == "0.250 ± 0.100"
    assert rate(None, None, 0) == ""


def test_rejections_are_counted_at_both_levels() -> None:
    estimates = module("calibration_estimates")
    trials = [("f", {"t": p}) for p in (0.01, 0.05, 0.050001, 0.9)] + [("g", {"t": 1.0})]
    first, second = estimates.type_one_table(trials)
    assert (first["at 0.05"], first["at 0.01"], first["trials"]) == (0.5, 0.25, 4)
    assert first["error 0.05"] == pytest.approx(np.sqrt(0.05 * 0.95 / 4))
    assert (second["family"], second["at 0.05"]) == ("g", 0)


def test_coverage_bias_and_variance_are_those_of_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = module("calibration_estimates")
    monkeypatch.setattr(estimates, "truth", lambda *_: 1.0)
    values = [(0.0, 0.4, 0.5), (0.0, 0.6, 0.7), (2.0, 0.6, 0.6), (2.0, 0.4, 0.2)]
    trials = [{"as is": one, "ignored": (one[0] + 1, 0.1, float("nan"))} for one in values]
    right, wrong = estimates.coverage_table(("gaussian", "energy", 5, 1.0), trials, None)
    spread = np.std([0, 0, 2, 2], ddof=1)
    assert (right["coverage"], right["bias in se"], right["drift"]) == (0.5, 0, 5)
    assert right["variance ratio"] == pytest.approx(0.5 / spread**2)
    assert right["se2 ratio"] == pytest.approx(np.mean([0.16, 0.36, 0.36, 0.16]) / spread**2)
    assert right["true in sd"] == pytest.approx(1 / spread)
    assert "wrong" in wrong["family"]
    assert (wrong["coverage"], wrong["variance ratio"]) == (0.5, None)
    assert wrong["bias in se"] == pytest.approx(1 / (spread / 2))


def test_shares_of_weeks_have_errors_over_references() -> None:
    weeks = module("calibration_weeks")

    def week(warn: float) -> dict[str, float]:
        return {"warn": warn, "alarm": 0.0, "alert": 0.0, "detectable": 1.0}

    row = weeks.weeks_table(("w", 8), [[week(1), week(0)], [week(0), week(0)], None])
    assert (row["references"], row["unstable"], row["weeks"]) == (3, 1, 4)
    assert (row["warn"], row["alert"], row["detectable"]) == (0.25, 0, 1)
    assert row["warn error"] == pytest.approx(np.std([0.5, 0], ddof=1) / np.sqrt(2))


def test_power_is_told_at_the_own_threshold_and_at_five_per_cent() -> None:
    power = module("calibration_power")

    def said(plain: float, signed: float, drift: bool) -> dict[str, tuple[float, bool]]:
        return {"rule": (plain, drift), "gpudrift classifier_auc": (signed, drift)}

    trials = []
    for k in range(40):
        none = [said(k / 40, (k - 19.5) / 40, k == 0)]
        drifted = {name: [said(2.0 if k % 2 else 0.1, -1.0, k < 10)] for name in power.PHENOMENA}
        trials.append({"none": none, **drifted})
    rule, signed = power.power_table("w", [*trials, None])
    assert (rule["method"], rule["references"], rule["false alarms"]) == ("rule", 40, 1 / 40)
    assert rule["windows without drift"] == 40
    assert (rule["spread"], rule["spread at 5%"]) == (0.25, 0.5)
    assert signed["spread at 5%"] == 1  # below the middle, beyond what is usual on either side


# verdicts ----------------------------------------------------------------------------------------------------------


def windows(rng: np.random.Generator, count: int, *, burst: tuple[int, ...] = ()) -> list[Any]:
    """Each burst in another direction, as bursts are."""
    return [rng.normal(size=(40, 6)) + (10 * np.eye(6)[k % 6] if k in burst else 0.0) for k in range(count)]


def test_a_burst_leaves_the_reference_and_too_many_make_it_unstable() -> None:
    weeks = module("calibration_weeks")
    rng = np.random.default_rng(0)
    scorer = weeks.pin(windows(rng, 10, burst=(4,)))
    assert [w.window.start for w in scorer.reference.kept] == [
        w.start for k, w in enumerate(weeks._cloud(windows(rng, 10), 0)[0].windows) if k != 4
    ]
    assert abs(float(scorer.rows.centred.mean())) < 1e-6
    assert weeks.pin(windows(rng, 8, burst=(4,))) is None  # seven are left
    assert weeks.pin(windows(rng, 16, burst=(1, 3, 5, 8, 10))) is None  # more than a quarter dropped
    assert weeks.verdicts(windows(rng, 8, burst=(4,)), windows(rng, 1)) is None


def test_a_planted_drift_warns_at_once_and_alerts_in_its_second_week() -> None:
    weeks = module("calibration_weeks")
    rng = np.random.default_rng(1)
    quiet = windows(rng, 10)
    found = weeks.verdicts(quiet[:8], [quiet[8], *windows(rng, 2, burst=(0, 1)), quiet[9]])
    assert [week["warn"] for week in found] == [0, 1, 1, 0]
    assert [week["alert"] for week in found] == [0, 0, 1, 1]  # it holds for one more
    assert [week["detectable"] for week in found[1:3]] == [1, 1]


def test_weeks_in_a_row_have_no_gap() -> None:
    weeks = module("calibration_weeks")
    quiet = weeks.quiet_weeks(None)
    assert weeks.runs(None, 9) == [(start, 15 - start) for start in range(7)]
    assert [week.label for week in quiet[:15]] == [f"2021-W{k}" for k in range(20, 35)]
    starts = set()
    for trial in range(7):
        first, later = weeks.consecutive(None, 8, trial)
        chosen = [id(rows) for rows in (*first, *later)]
        places = [k for k, week in enumerate(quiet) if id(week.rows) in chosen]
        assert places == list(range(places[0], places[0] + len(chosen)))
        assert len(later) == min(6, 15 - 8 - places[0])
        starts.add(places[0])
    assert starts == set(range(7))
    assert [weeks.available("real weeks in a row", count, None) for count in (8, 12, 26)] == [7, 3, 0]
    assert [weeks.available("real weeks in random order", count, None) for count in (8, 26)] == [math.inf, 0]


# the whole study ---------------------------------------------------------------------------------------------------


def test_the_study_runs_and_its_tables_are_well_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, tables = module("calibration"), module("calibration_tables")
    families, estimates = module("calibration_families"), module("calibration_estimates")
    few = {name: world for name, world in module("calibration_weeks").worlds(None).items() if name == "no movement"}
    monkeypatch.setattr(study.weeks, "worlds", lambda _: few)
    monkeypatch.setattr(study, "WINDOWS", (8,))
    monkeypatch.setattr(estimates, "RATIOS", (0, 5))
    monkeypatch.setattr(estimates, "FAMILIES", ("gaussian", "real weeks"))
    monkeypatch.setattr(estimates, "USERS", ("users",))
    monkeypatch.setattr(families, "DRIFTING", ("users",))
    monkeypatch.setattr(study.power, "WORLDS", ("no movement",))
    monkeypatch.setattr(study.power, "NULLS", 1)
    file = tmp_path / "results.json"
    run = study.Run(processes=1, effort=0.001)
    kept = study.study(["type_one", "coverage", "weeks", "power"], run, file)
    assert json.loads(file.read_text()) == study.rounded(kept)
    for part in kept["parts"]:
        lines = tables.table(part, kept).split("\n\n")[0].splitlines()
        assert len(lines) == 2 + len(kept["parts"][part]["rows"])
        assert len({line.count("|") for line in lines}) == 1
    again = study.study(["type_one"], run, file)
    assert again["parts"]["type_one"]["rows"] == kept["parts"]["type_one"]["rows"]
    assert again["parts"].keys() == kept["parts"].keys()
    page = f"<!-- table type_one -->\n{tables.END}\n"
    assert tables.marked(tables.renewed(page, kept)) == {"type_one": tables.table("type_one", kept)}


def test_processes_change_nothing() -> None:
    study, estimates = module("calibration"), module("calibration_estimates")
    jobs = [(estimates.type_one_trial, ("gaussian", 0, trial, None)) for trial in range(study.CHUNK)]
    assert study.carry_out(jobs, 2) == study.carry_out(jobs, 1)


def test_the_command_tells_how_to_rerun_it_and_not_where_data_lie() -> None:
    study = module("calibration")
    assert study.command("weeks", study.Run(data="a folder")) == (
        "python benchmarks/calibration.py weeks --seed 0 --data FOLDER"
    )
    assert study.command("power", study.Run(seed=3, effort=0.5)).endswith("power --seed 3 --effort 0.5")
    assert study.real_rows(None).startswith("the sample: 8,")
