"""Inputs of the pictures' tests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from picture_checks import assert_same_bytes, assert_stands_alone, assert_text_fits_as_written

from gpudrift.records import HistoryPoint, Verdict, Window
from gpudrift.report import alarms, heatmap, masses, plots, style, summary, witness
from gpudrift.report.plots import Picture
from gpudrift.report.wording import VerdictSummary

DRAWING = (plots, summary, witness, masses, heatmap, alarms)  # every module that writes pictures
START = datetime(2024, 1, 1, tzinfo=UTC)


def _window(week: int) -> Window:
    start = START + timedelta(weeks=week)
    year, number, _ = start.isocalendar()
    return Window(start, start + timedelta(weeks=1), f"{year}-W{number:02d}")


def _point(week: int, score: float | None, verdict: Verdict = "stable", **values: object) -> HistoryPoint:
    scored = score is not None
    known = {
        "se": 4e-4 if scored else None,
        "p_aa": 0.3 if scored else None,
        "p_close": 0.9 if scored else None,
        "null_sd": 3e-4 if scored else None,
        "delta": 6e-3 if scored else None,
        "clear_limit": 3e-3 if scored else None,
        "ratio": score / 6e-4 if score is not None else None,
        "rows": 340,
        **values,
    }
    return HistoryPoint(_window(week), verdict, score, **known)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_point() -> Callable[..., HistoryPoint]:
    """``make_point(week, score, verdict, **fields)``: one week's point of a plausible history."""
    return _point


@pytest.fixture(scope="session")
def long_history() -> list[HistoryPoint]:
    """300 weeks: a reference, negative scores, every verdict, windows without a score and weeks that are missing."""
    rng = np.random.default_rng(0)
    points = []
    for week in range(306):
        if 100 <= week < 106:
            continue
        score = float(np.exp(rng.normal(-7.2, 0.8)) - 3e-4)
        if week in (150, 151):
            points.append(_point(week, None, "insufficient", rows=12))
        elif week > 260:
            points.append(_point(week, 0.02 + score, "alert" if week > 261 else "warning", p_aa=1e-4, p_close=1e-3))
        else:
            points.append(_point(week, score, in_reference=week < 52))
    return points


@pytest.fixture(scope="session")
def alert() -> VerdictSummary:
    return VerdictSummary(
        verdict="alert",
        window="2026-W43",
        reference="2020-07-01 to 2021-06-30, 46 of 53 windows",
        rows=326,
        exit_code=20,
        score=0.0171,
        se=0.002,
        ci=(0.0131, 0.0211),
        ratio=27.9,
        severity="high",
        p_aa=0.00025,
        p_close=1e-8,
        delta=0.00584,
        reference_rows=15420,
        window_dates="2026-10-19 to 2026-10-25",
        metrics=(("energy", 0.0171, 0.002), ("mmd2_x0.5", 0.00312, 0.0002), ("residual_energy", -0.002, None)),
        outputs=("out/weekly/result.json",),
        notes=("No CUDA device: computed on the CPU.", "7 of 53 reference windows left the reference: 2020-W28."),
    )


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Figure]:
    """Runs a drawing and hands back its figure, laid out, instead of writing it."""

    def run(draw: Callable[[], object]) -> Figure:
        kept: list[Figure] = []

        def keep(figure: Figure, *_args: object) -> Picture:
            figure.canvas.draw()
            kept.append(figure)
            return Picture(Path("x.png"), Path("x.svg"), "")

        for module in DRAWING:
            monkeypatch.setattr(module, "save", keep)
        draw()
        return kept[0]

    return run


@pytest.fixture
def check_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Callable[[Path], Picture]], tuple[Picture, Figure]]:
    """Writes a picture twice, holds it to what every picture is held to, and hands it back with its figure."""

    def run(draw: Callable[[Path], Picture]) -> tuple[Picture, Figure]:
        figures: list[Figure] = []

        def save(figure: Figure, *rest: object) -> Picture:
            figures.append(figure)
            return style.save(figure, *rest)  # type: ignore[arg-type]

        for module in DRAWING:
            monkeypatch.setattr(module, "save", save)
        first, second = draw(tmp_path / "one"), draw(tmp_path / "two.w2")
        assert_same_bytes(first, second)
        assert_stands_alone(first)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.w2.png", "two.w2.svg"]
        assert_text_fits_as_written(figures[0])
        return first, figures[0]

    return run
