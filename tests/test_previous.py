"""Which window counts as the one before, where some had too little data; and what a small window says of itself."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpudrift.history import History
from gpudrift.notes import calibration_notes
from gpudrift.records import HistoryPoint, Verdict
from gpudrift.verdict import PASSED_OVER, before_in_history
from gpudrift.windows import parse_period

PERIOD = parse_period("week")


def write(history: History, day: date, verdict: Verdict) -> None:
    window = PERIOD.window_at(datetime.combine(day, datetime.min.time(), UTC))
    score = None if verdict == "insufficient" else 0.1
    point = HistoryPoint(window, verdict, score, score, score, score, score, score, score, score, rows=5)
    history.write(point, [])


@pytest.mark.parametrize(
    ("verdicts", "found"),
    [
        ([], None),
        (["alert"], "alert"),
        (["insufficient", "alert"], "alert"),
        (["insufficient"] * PASSED_OVER + ["warning"], "warning"),
        (["insufficient"] * (PASSED_OVER + 1) + ["warning"], None),
        (["stable", "alert"], "stable"),
    ],
)
def test_windows_without_data_are_passed_over_a_few_at_most(
    tmp_path: Path, verdicts: list[Any], found: str | None
) -> None:
    """``verdicts``: those of the windows before 2026-W20, the nearest first."""
    history = History(tmp_path, "job", "ref")
    current = window = PERIOD.window_at(date(2026, 5, 11))
    for verdict in verdicts:
        window = PERIOD.previous(window)
        write(history, window.start.date(), verdict)
    ctx: Any = SimpleNamespace(period=PERIOD)
    point = before_in_history(ctx, history, current)
    assert (None if point is None else point.verdict) == found


@pytest.mark.parametrize(("smallest", "said"), [(0.02, True), (0.012, False)])
def test_a_window_too_small_to_alert_says_what_it_can_see(smallest: float, said: bool) -> None:
    calibration = SimpleNamespace(
        aa_recomputed=False,
        in_reference=False,
        autocorrelation=None,
        score=0.006,
        delta=0.01,
        smallest_alerting=smallest,
        smallest_detectable=0.001,
    )
    scored: Any = SimpleNamespace(rows=50, calibration=calibration)
    told = "at 50 rows the energy distance alone alerts from a drift of 0.02 on"
    assert any(told in note for note in calibration_notes(scored)) is said
