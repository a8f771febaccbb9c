"""job=backfill: every window of a range, resumable, and the same as single runs."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import FIRST_DRIFTED, LAST, ROWS, make_corpus, run, table_of

from gpudrift import backfill
from gpudrift.errors import ConfigError
from gpudrift.lagged import Neighbours
from gpudrift.records import Window
from gpudrift.scoring import Scorer
from gpudrift.source import ParquetSource

pytestmark = pytest.mark.usefixtures("no_pictures")
WEEKS = [f"2026-W{k:02d}" for k in range(2, 16)]


def history_of(output: Path) -> dict[str, bytes]:
    """The history's files by path below the output directory."""
    return {str(file.relative_to(output)): file.read_bytes() for file in output.glob("history/**/*.parquet")}


def summary_of(output: Path) -> dict[str, dict[str, Any]]:
    """backfill.json's windows by label, in order."""
    windows = json.loads((output / "backfill.json").read_text(encoding="utf-8"))["windows"]
    return {w["window"]: w for w in windows}


def test_every_window_of_the_data(drifted: Path, tmp_path: Path) -> None:
    ran = run(drifted, tmp_path, {"job": "backfill"})
    found = summary_of(tmp_path)
    assert (ran.code, list(found)) == (0, WEEKS)
    assert [w["in_reference"] for w in found.values()] == [True] * 12 + [False] * 2
    assert [w["verdict"] for w in found.values()] == ["stable"] * 12 + ["warning", "alert"]
    assert {Path(name).stem for name in history_of(tmp_path)} == set(WEEKS)
    assert "14 windows: 12 stable, 1 warning, 1 alert" in ran.out
    assert not (tmp_path / "result.json").exists()


def test_a_range(drifted: Path, tmp_path: Path) -> None:
    span = {"job": "backfill", "backfill.start": "2026-02-04", "backfill.end": "2026-03-04"}
    run(drifted, tmp_path, span)
    assert list(summary_of(tmp_path)) == ["2026-W07", "2026-W08", "2026-W09"]  # those the range does not cut
    run(drifted, tmp_path, span | {"backfill.end": None})
    assert list(summary_of(tmp_path)) == WEEKS[5:]
    with pytest.raises(ConfigError, match="no complete window") as error:
        run(drifted, tmp_path, span | {"backfill.start": "2026-05-04", "backfill.end": "2026-06-01"})
    assert (error.value.field, error.value.exit_code) == ("backfill.start, backfill.end", 1)


def test_it_equals_single_runs_window_by_window(drifted: Path, tmp_path: Path) -> None:
    run(drifted, tmp_path / "backfill", {"job": "backfill"})
    for k in range(14):
        monday = date(2026, 1, 5) + timedelta(weeks=k)
        ran = run(drifted, tmp_path / "single", {"run_date": monday.isoformat()})
        assert ran.result["window"]["label"] == WEEKS[k]
    assert history_of(tmp_path / "single") == history_of(tmp_path / "backfill")


def test_a_second_backfill_changes_nothing(drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(drifted, tmp_path, {"job": "backfill"})
    before, summary = history_of(tmp_path), (tmp_path / "backfill.json").read_bytes()

    def never(*_: Any) -> None:
        raise AssertionError("a window was scored again")

    monkeypatch.setattr(Scorer, "score", never)
    ran = run(drifted, tmp_path, {"job": "backfill"})
    assert "14 windows, 14 already in the history" in ran.err
    assert (history_of(tmp_path), (tmp_path / "backfill.json").read_bytes()) == (before, summary)


def test_cut_off_it_goes_on_where_it_stopped(drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(drifted, tmp_path / "whole", {"job": "backfill"})
    real = Scorer.score
    scored: list[Any] = []

    def score(self: Scorer, *args: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(args)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", score)
        with pytest.raises(KeyboardInterrupt):
            run(drifted, tmp_path / "cut", {"job": "backfill"})
    assert {Path(name).stem for name in history_of(tmp_path / "cut")} == set(WEEKS[:3])
    assert not (tmp_path / "cut" / "backfill.json").exists()
    ran = run(drifted, tmp_path / "cut", {"job": "backfill"})
    assert "14 windows, 3 already in the history" in ran.err
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")
    assert summary_of(tmp_path / "cut") == summary_of(tmp_path / "whole")


def test_a_kill_between_a_window_and_its_comparisons_loses_none(
    drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(drifted, tmp_path / "whole", {"job": "backfill"})
    real = Neighbours.compare
    killed: list[str] = []

    def compare(self: Neighbours, window: Window) -> Any:
        if window.label == WEEKS[-1]:
            killed.append(window.label)
            raise KeyboardInterrupt
        return real(self, window)

    with monkeypatch.context() as patch:
        patch.setattr(Neighbours, "compare", compare)
        with pytest.raises(KeyboardInterrupt):
            run(drifted, tmp_path / "cut", {"job": "backfill"})
    assert killed == WEEKS[-1:]
    ran = run(drifted, tmp_path / "cut", {"job": "backfill"})
    assert "14 windows, 14 already in the history" in ran.err
    assert history_of(tmp_path / "cut") == history_of(tmp_path / "whole")


def test_comparisons_and_segments_asked_for_later_are_filled_in(quiet: Path, tmp_path: Path) -> None:
    more = {"source.segment_columns": ["language"], "segments.min_rows": 8, "segments.panel": False}
    run(quiet, tmp_path / "whole", {"job": "backfill"} | more)
    run(quiet, tmp_path / "later", {"job": "backfill", "calibrate.also": []})
    run(quiet, tmp_path / "later", {"job": "backfill"} | more)
    assert history_of(tmp_path / "later") == history_of(tmp_path / "whole")


def test_windows_are_read_together_and_batches_do_not_change_the_numbers(
    drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reads = ParquetSource.read, []

    def read(self: ParquetSource, windows: Any, **options: Any) -> Any:
        reads.append(len(windows))
        return real(self, windows, **options)

    monkeypatch.setattr(ParquetSource, "read", read)
    run(drifted, tmp_path / "one", {"job": "backfill"})
    assert reads == [12, 14]  # the reference; all windows in one pass
    reads.clear()
    monkeypatch.setattr(backfill, "BATCH_ROWS", 4 * ROWS)
    run(drifted, tmp_path / "four", {"job": "backfill"})
    assert reads == [12, 4, 4, 4, 2]
    assert history_of(tmp_path / "four") == history_of(tmp_path / "one")


def test_empty_and_short_weeks_are_insufficient(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    rest = pa.concat_tables([table.slice(0, ROWS * 12 + 40), table.slice(ROWS * 13)])  # W14 is short ...
    later = table_of(make_corpus(tmp_path / "more", weeks=17)).slice(ROWS * 16)  # ... W16 and W17 are empty
    pq.write_table(pa.concat_tables([rest, later.cast(rest.schema)]), tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out", {"job": "backfill", "backfill.start": "2026-03-30"})
    found = {label: (w["verdict"], w["rows"], w["score"] is None) for label, w in summary_of(tmp_path / "out").items()}
    assert found == {
        "2026-W14": ("insufficient", 40, True),
        "2026-W15": ("stable", 150, False),
        "2026-W16": ("insufficient", 0, True),
        "2026-W17": ("insufficient", 0, True),
        "2026-W18": ("stable", 150, False),
    }
    assert ran.code == 0


def test_an_alert_clears_after_two_calm_weeks_in_a_row(tmp_path: Path) -> None:
    drift = table_of(make_corpus(tmp_path / "drift", weeks=20, mean_shift=0.4))
    calm = table_of(make_corpus(tmp_path / "calm", weeks=20))
    weeks = [drift if k in (12, 14, 15, 17) else calm for k in range(20)]
    table = pa.concat_tables([t.slice(k * ROWS, ROWS).replace_schema_metadata() for k, t in enumerate(weeks)])
    pq.write_table(table, tmp_path / "c.parquet")
    run(tmp_path / "c.parquet", tmp_path / "out", {"job": "backfill", "backfill.start": "2026-03-23"})
    verdicts = [w["verdict"] for w in summary_of(tmp_path / "out").values()]
    # weeks 11 to 19: one week out of line never alerts; after two, two calm weeks in a row are needed
    assert verdicts == ["stable", "warning", "stable", "warning", "alert", "alert", "alert", "alert", "stable"]


def test_a_partial_week_is_left_out_and_one_scored_unfinished_is_scored_again(quiet: Path, tmp_path: Path) -> None:
    corpus, table = tmp_path / "c.parquet", table_of(quiet)
    pq.write_table(table.slice(0, ROWS * 13 + 110), corpus)
    run(corpus, tmp_path / "out", {"job": "backfill", "run_date": "2026-04-08"})
    assert list(summary_of(tmp_path / "out")) == WEEKS[:-1]
    assert run(corpus, tmp_path / "out", {"run_date": "2026-04-08"}).result["window"]["complete"] is False
    pq.write_table(table, corpus)
    run(corpus, tmp_path / "out", {"job": "backfill"})
    assert summary_of(tmp_path / "out")[LAST]["rows"] == ROWS


def test_windows_found_later_change_the_verdicts_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run scores one window before its own, which has none before it: it warns, though after the weeks that a
    backfill adds the alert already held."""
    corpus = make_corpus(tmp_path / "corpus", weeks=17, mean_shift=0.4)
    first = run(corpus, tmp_path / "out", {"run_date": "2026-04-27"})
    assert (first.result["verdict"], first.result["previous"]["verdict"]) == ("alert", "warning")
    run(corpus, tmp_path / "out", {"job": "backfill"})
    run(corpus, tmp_path / "whole", {"job": "backfill"})
    verdicts = [w["verdict"] for w in summary_of(tmp_path / "out").values()]
    assert verdicts == ["stable"] * 12 + ["warning"] + ["alert"] * 4
    assert history_of(tmp_path / "out") == history_of(tmp_path / "whole")
    monkeypatch.setattr(Scorer, "score", None)  # nothing is scored again
    run(corpus, tmp_path / "out", {"job": "backfill"})


def test_it_draws_the_segments_over_the_windows(drifted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("gpudrift.report.plots.segment_heatmap", lambda cells, *_, **__: drawn.append(list(cells)))
    settings = {"source.segment_columns": ["language"], "segments.min_rows": 20, "report.html": False}
    run(drifted, tmp_path, {"job": "backfill"} | settings)
    (cells,) = drawn
    assert {cell.window.label for cell in cells} == set(WEEKS)
    assert all(cell.segment.startswith("language=") for cell in cells)


def test_an_unstable_reference_gives_scores_without_verdicts(drifted: Path, pinned: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(pinned, tmp_path / "out"))
    run(drifted, output, {"job": "backfill", "backfill.start": "2026-03-23", "calibrate.min_windows": 13})
    found = summary_of(output)
    assert list(found) == ["2026-W13", FIRST_DRIFTED, LAST]
    assert {w["verdict"] for w in found.values()} == {"insufficient"}
    assert found[LAST]["score"] > 10 * found["2026-W13"]["score"]


def test_product_metrics_stand_beside_the_windows_and_go_when_they_are_asked_for_no_more(
    drifted: Path, tmp_path: Path
) -> None:
    """14 weeks: numbers, but too few for an answer; the last two are beyond what the quiet ones do."""
    rates = [0.1, 0.12, 0.11, 0.09, 0.1, 0.13, 0.1, 0.11, 0.12, 0.1, 0.09, 0.11, 0.4, 0.45]
    days = [date(2026, 1, 5) + timedelta(weeks=k) for k in range(14)]
    lines = [f"{day},{rate},500" for day, rate in zip(days, rates, strict=True)]
    (tmp_path / "rates.csv").write_text("\n".join(["week,no_answer,asked", *lines]), encoding="utf-8")
    asked = {
        "outcomes.uri": str(tmp_path / "rates.csv"),
        "outcomes.time_column": "week",
        "outcomes.count_column": "asked",
        "outcomes.higher_is_worse": ["no_answer"],
    }
    out = tmp_path / "out"
    ran = run(drifted, out, {"job": "backfill"} | asked)
    (found,) = json.loads((out / "backfill.json").read_text(encoding="utf-8"))["outcomes"]["findings"]
    assert (found["metric"], found["windows"], found["link"]) == ("no_answer", 14, "insufficient")
    level = found["level"]
    assert (level["window"], level["value"], level["degraded"], level["windows"]) == (LAST, 0.45, True, 12)
    assert level["usual"] == pytest.approx(sum(rates[:12]) / 12, rel=1e-12)
    values = pq.read_table(out / "outcomes_windows.parquet").to_pylist()
    assert [(row["window"], row["value"]) for row in values] == list(zip(WEEKS, rates, strict=True))
    assert pq.read_table(out / "outcomes.parquet")["metric"].to_pylist() == ["no_answer"]
    assert "no_answer" in (out / "backfill.html").read_text(encoding="utf-8")
    assert "no_answer is 0.45 in 2026-W15" in " ".join(ran.out.split())

    run(drifted, out, {"job": "backfill"})
    assert json.loads((out / "backfill.json").read_text(encoding="utf-8"))["outcomes"] is None
    assert not list(out.glob("outcomes*.parquet"))
    assert "no_answer" not in (out / "backfill.html").read_text(encoding="utf-8")
