"""The oracle table: every row of this environment anew, within what is allowed; the results and the page hold it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import BENCHMARKS, ROOT

PAGE = (ROOT / "docs" / "oracles.md").read_text(encoding="utf-8")
KEPT = json.loads((BENCHMARKS / "results" / "oracles.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def oracles() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("oracles")


@pytest.fixture(scope="module")
def rows(oracles: ModuleType) -> list[Any]:
    return oracles.table()


def place(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["statistic"], row["input"], row["reference"]


def test_every_difference_is_within_what_is_allowed(rows: list[Any]) -> None:
    computed = [row for row in rows if row.difference is not None]
    assert len(computed) >= 55
    assert [row for row in computed if not row.difference <= row.tolerance] == []


def test_what_is_allowed_is_little(rows: list[Any]) -> None:
    """But for chance (labellings, directions, frequencies) and figures printed with eight digits."""
    loose = {row.statistic for row in rows if row.tolerance > 1e-4}
    assert loose == {"energy, V", "MMD², U, random features", "permutation p"}
    doubles = [row for row in rows if row.difference is not None and "float32" not in row.input]
    exact = [row for row in doubles if row.tolerance <= 1e-9]
    assert len(exact) >= len(doubles) - 6
    singles = [row for row in rows if row.difference is not None and "float32" in row.input]
    assert max(row.tolerance for row in singles) <= 1e-4


def test_every_statistic_has_a_reference_here(rows: list[Any], oracles: ModuleType) -> None:
    elsewhere = {"MMD², U, their bandwidth", "cluster-robust se of energy", "Holm p"}
    assert {row.statistic for row in rows if row.difference is not None} == set(oracles.OURS) - elsewhere


def test_the_results_hold_these_rows(rows: list[Any]) -> None:
    kept = {place(row): row for row in KEPT["rows"]}
    assert [place(row) for row in KEPT["rows"]] == [(row.statistic, row.input, row.reference) for row in rows]
    for row in rows:
        old = kept[(row.statistic, row.input, row.reference)]
        assert old["ours"] == pytest.approx(row.ours, rel=1e-4 if "float32" in row.input else 1e-9), old
        assert old["tolerance"] == pytest.approx(row.tolerance)
        if row.theirs is not None:
            assert old["theirs"] == pytest.approx(row.theirs, rel=1e-6), old


def test_the_results_have_all_peers_with_their_versions() -> None:
    for row in KEPT["rows"]:
        assert row["difference"] is not None, place(row)
        assert row["difference"] <= row["tolerance"], place(row)
        assert row["version"] == "" or re.fullmatch(r"[A-Za-z-]+ \d+(\.\d+)+(\.post\d+)?", row["version"]), place(row)
    packages = {row["version"].partition(" ")[0] for row in KEPT["rows"]}
    assert {"frouros", "alibi-detect", "evidently", "torchdrift", "geomloss", "statsmodels"} <= packages
    assert {"dcor", "scipy", "scikit-learn", "POT", "numpy"} <= packages


def test_the_page_holds_the_results(oracles: ModuleType) -> None:
    table = oracles.markdown([oracles.Row(**row) for row in KEPT["rows"]])
    assert table in PAGE
    assert PAGE.count("| statistic |") == 1
    told = PAGE.partition("## What each reference returns")[2]
    missing = {row["version"].partition(" ")[0] for row in KEPT["rows"]} - {"", "numpy"}
    assert [package for package in missing if package not in told] == []


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        ([1.0], [1.0], 0.0),
        ([1.1, 2.0], [1.0, 2.0], 0.1),
        ([1.0, 1e-9], [1.0, 0.0], 1e-3),  # relative to a millionth of the largest
        ([1.0], [1.0, 2.0], float("inf")),
    ],
)
def test_the_difference(oracles: ModuleType, ours: list[float], theirs: list[float], wanted: float) -> None:
    assert oracles.difference(ours, theirs) == pytest.approx(wanted)


def test_a_statistic_that_is_off_is_noticed(oracles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table looks at what is computed now: the V-statistic in place of U, Frechet less its null mean."""
    wrong = {"energy, U": oracles.OURS["energy, V"], "KL, raw": lambda i: oracles._value(i, "divergences", "kl")}
    monkeypatch.setattr(oracles, "OURS", oracles.OURS | wrong)
    some = [r for r in oracles.REFERENCES if r.statistic in wrong and r.package in ("dcor", "scipy")]
    monkeypatch.setattr(oracles, "REFERENCES", some)
    assert all(row.difference > 100 * row.tolerance for row in oracles.table())


def test_the_command_ends_with_an_error_beyond_what_is_allowed(
    oracles: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = oracles.Row("energy", "here", "there", "", 1, 1.0, 1.1, 0.1, 1e-3)
    monkeypatch.setattr("sys.argv", ["oracles.py"])
    for found, code in ((row, "1 differences are larger than allowed"), (oracles.replace(row, tolerance=1.0), None)):
        monkeypatch.setattr(oracles, "table", lambda _, found=found: [found])
        if code is None:
            oracles.main()
        else:
            with pytest.raises(SystemExit, match=code):
                oracles.main()
        assert "| energy | here | 1 | there | 1.1 | 1e-01 |" in capsys.readouterr().out


def test_peers_answer_by_another_interpreter(oracles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one, for a package it has: what a peers' environment would be asked."""
    monkeypatch.setattr(oracles, "_absent", lambda: {"scikit-learn"})
    found = oracles._ask(Path(sys.executable), oracles.inputs())
    own = [r for r in oracles.REFERENCES if r.package == "scikit-learn"]
    assert found[oracles.key(own[0], "normal")]["theirs"] == [pytest.approx(0.0359058991073049, rel=1e-12)]
    assert found.keys() == {oracles.key(r, name) for r in own for name in r.inputs}
