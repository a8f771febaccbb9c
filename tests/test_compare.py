"""job=compare: two windows side by side, without a verdict."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from jobs import ROWS, run, table_of, vectors, week
from scipy.spatial.distance import cdist

from gpudrift.compare import SHOWN, spread_out
from gpudrift.errors import ConfigError, InsufficientDataError
from gpudrift.records import Window
from gpudrift.source import ParquetSource


@pytest.fixture
def no_panel(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """No pictures; the labels of the histogram that would have been drawn."""
    drawn: dict[str, list[str]] = {}

    def histogram(groups: Any, path: Path, **_: Any) -> None:
        drawn[path.name] = [label for label, _ in groups]

    monkeypatch.setattr("gpudrift.report.pictures.panel_pictures", lambda *_: [])
    monkeypatch.setattr("gpudrift.report.plots.pc1_histogram", histogram)
    return drawn


def compared(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    return found


def test_the_synthetic_experiment_makes_corpus_and_pictures(tmp_path: Path) -> None:
    settings = {
        "job": "compare", "name": "synthetic", "generate.path": str(tmp_path / "corpus"), "generate.weeks": 5,
        "generate.rows_per_week": 300, "generate.dim": 16, "generate.drift_week": 4, "generate.mean_shift": 0.3,
        "generate.new_cluster": 0.05, "compare.reference": "2026-01-05", "compare.current": "2026-02-02",
    }  # fmt: skip
    ran = run(tmp_path / "corpus", tmp_path / "out", settings)
    assert ran.code == 0
    assert len(list((tmp_path / "corpus").rglob("*.parquet"))) == 5
    found = compared(tmp_path / "out")
    assert (found["reference"], found["current"]) == ("2026-W02", "2026-W06")
    assert found["metrics"]["energy"]["value"] > 10 * found["metrics"]["energy"]["null_sd"]
    plots = tmp_path / "out" / "plots"
    texts = {}
    for name in ("pca", "pc1", "pc1_by_window", "components"):
        assert (plots / f"{name}.png").stat().st_size > 1000
        texts[name] = " ".join(ElementTree.parse(plots / f"{name}.svg").getroot().itertext())
    assert all("2026-W02" in texts[name] and "2026-W06" in texts[name] for name in ("pca", "pc1"))
    assert all(f"2026-W0{k}" in texts["pc1_by_window"] for k in range(2, 7))

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*.parquet")}
    again = tmp_path / "again"
    run(tmp_path / "corpus", again, settings)  # the corpus is there: it is not written again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*.parquet")} == files
    assert compared(again)["metrics"] == found["metrics"]


@pytest.mark.usefixtures("no_panel")
def test_named_dates_choose_the_windows(drifted: Path, tmp_path: Path) -> None:
    dates = {"job": "compare", "compare.reference": "2026-02-01", "compare.current": "2026-04-08"}
    ran = run(drifted, tmp_path, dates | {"precision": "float64"})
    found = compared(tmp_path)
    assert (found["reference"], found["current"]) == ("2026-W05", "2026-W15")
    assert found["rows"] == {"reference": ROWS, "current": ROWS}
    values = vectors(table_of(drifted)).astype(np.float64)
    x, y = values[week(3)], values[week(13)]
    n = ROWS
    expected = 2 * cdist(x, y).mean() - (cdist(x, x).sum() + cdist(y, y).sum()) / (n * (n - 1))
    assert found["metrics"]["energy"]["value"] == pytest.approx(expected, rel=1e-5)
    assert "2026-W15 (150 rows) against 2026-W05 (150 rows), without a verdict" in ran.out

    change = found["metrics"]["log_variance_ratio"]["value"]
    run(drifted, tmp_path, dates | {"compare.reference": "2026-04-08", "compare.current": "2026-02-01"})
    assert (compared(tmp_path)["reference"], compared(tmp_path)["current"]) == ("2026-W15", "2026-W05")
    assert compared(tmp_path)["metrics"]["energy"]["value"] == pytest.approx(expected, rel=1e-4)
    assert compared(tmp_path)["metrics"]["log_variance_ratio"]["value"] == pytest.approx(-change, rel=1e-4)


@pytest.mark.usefixtures("no_panel")
def test_by_default_the_first_and_last_complete_windows(quiet: Path, tmp_path: Path) -> None:
    pq.write_table(table_of(quiet).slice(60, ROWS * 13), tmp_path / "c.parquet")  # partial at both ends
    run(tmp_path / "c.parquet", tmp_path / "out", {"job": "compare"})
    found = compared(tmp_path / "out")
    assert (found["reference"], found["current"]) == ("2026-W03", "2026-W14")


def test_windows_that_cannot_be_compared(quiet: Path, tmp_path: Path) -> None:
    for dates in (
        {"compare.reference": "2025-01-01"},
        {"compare.current": "2026-05-01"},
    ):
        with pytest.raises(InsufficientDataError, match="outside the data"):
            run(quiet, tmp_path / "out", {"job": "compare"} | dates)
    same = {"compare.reference": "2026-01-05", "compare.current": "2026-01-11"}
    with pytest.raises(ConfigError, match="the same window, 2026-W02"):
        run(quiet, tmp_path / "out", {"job": "compare"} | same)
    with pytest.raises(InsufficientDataError, match="too few rows") as error:
        run(quiet, tmp_path / "out", {"job": "compare", "windows.min_rows": ROWS + 1})
    assert (error.value.field, error.value.value) == ("windows.min_rows", ROWS)
    pq.write_table(table_of(quiet).slice(40, 60), tmp_path / "part.parquet")
    with pytest.raises(InsufficientDataError, match="no complete window"):
        run(tmp_path / "part.parquet", tmp_path / "out", {"job": "compare"})
    assert not (tmp_path / "out" / "compare.json").exists()


def test_only_the_windows_shown_are_read(
    quiet: Path, tmp_path: Path, no_panel: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reads = ParquetSource.read, []

    def read(self: ParquetSource, windows: Any, **options: Any) -> Any:
        reads.append([window.label for window in windows])
        return real(self, windows, **options)

    monkeypatch.setattr(ParquetSource, "read", read)
    run(quiet, tmp_path, {"job": "compare"})
    assert no_panel["pc1_by_window"] == reads[0]
    assert (len(reads[0]), reads[0][0], reads[0][-1]) == (SHOWN, "2026-W02", "2026-W15")


@pytest.mark.parametrize("filled", [2, 3, 6, 7, 50])
def test_windows_shown_are_spread_over_those_with_rows(filled: int) -> None:
    start = datetime(2026, 1, 5, tzinfo=UTC)
    windows = [Window(start + timedelta(days=k), start + timedelta(days=k + 1), str(k)) for k in range(2 * filled - 1)]
    counts = [5 if k % 2 == 0 else 0 for k in range(len(windows))]
    places = [int(window.label) // 2 for window in spread_out(windows, counts)]
    assert all(int(window.label) % 2 == 0 for window in spread_out(windows, counts))
    assert len(places) == min(filled, SHOWN)
    steps = np.diff(places)
    assert places[0] == 0
    assert places[-1] == filled - 1
    assert steps.min() >= 1
    assert steps.max() <= np.ceil(filled / (SHOWN - 1)) + 1
