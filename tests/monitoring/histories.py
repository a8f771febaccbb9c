"""A real history with segments, the metrics of its last run, and hand-made outcomes beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import run
from prometheus_client import generate_latest

from gpudrift.history import History
from gpudrift.monitoring.metrics import samples_of
from gpudrift.monitoring.openmetrics import Points
from gpudrift.outcomes.records import Finding, Level, Outcomes, OutcomeSeries
from gpudrift.records import Window
from gpudrift.result import Run

SETTINGS = {
    "name": "weekly", "source.segment_columns": ["language"], "segments.min_rows": 12, "segments.panel": False,
    "report.html": False,
}  # fmt: skip


def backfilled(corpus: Path, output: Path) -> Points:
    """Every window of a corpus, as the history has them."""
    with _without_pictures():
        assert run(corpus, output, SETTINGS | {"job": "backfill"}).code == 0
    reference = next(path.name for path in (output / "history" / "weekly").iterdir() if "-" not in path.name)
    return History(output / "history", "weekly", reference).windows()


def last_run(corpus: Path, output: Path) -> Run:
    """The record of a run of the last window."""
    caught: list[Run] = []
    with _without_pictures() as patch:
        from gpudrift import result

        as_json = result.as_json

        def seen(ran: Run, *rest: Any, **more: Any) -> Any:
            caught.append(ran)
            return as_json(ran, *rest, **more)

        patch.setattr(result, "as_json", seen)
        assert run(corpus, output, SETTINGS).code == 0
    return caught[0]


def textfile(ran: Run, outcomes: Outcomes | None, ended: datetime) -> str:
    """What that run tells node_exporter."""
    return generate_latest(samples_of(ran, outcomes, {"push": True, "webhook": False}, ended=ended)).decode()


def outcomes_of(windows: Points, metrics: Sequence[str] = ("success_rate", "no_answer_rate")) -> Outcomes:
    """Each metric for all rows and for every segment, by a pattern that is told again in the tests; the second window
    has no value."""
    segments = sorted({segment for window in windows for segment in window})
    spans: list[Window] = [window["all"].window for window in windows]
    series, findings = {}, []
    for k, metric in enumerate(metrics):
        for j, segment in enumerate(segments):
            values = 0.5 + 0.1 * k + 0.01 * j + 0.001 * np.arange(len(spans), dtype=np.float64)
            values[1] = np.nan
            counts = np.where(np.isnan(values), 0.0, 100.0)
            series[metric, segment] = OutcomeSeries(metric, "lower", segment, tuple(spans), values, counts)
            level = Level(spans[-1].label, float(values[-1]), 100.0, 0.6, 0.55, 0.2, 12, k == 1)
            findings.append(
                Finding(
                    metric=metric, worse="lower", segment=segment, windows=len(spans) - 1, missing=(spans[1].label,),
                    lag=0, effect=-0.01, ci=(-0.02, 0.0), r=-0.2, p=0.1, q=0.2 + 0.1 * k, lags=(), events=None,
                    level=level, link="worse" if k == 0 else "none", sentence="",
                )
            )  # fmt: skip
    return Outcomes(tuple(findings), series, {})


@contextmanager
def _without_pictures() -> Iterator[pytest.MonkeyPatch]:
    def drawn(*_: Any, **__: Any) -> list[Path]:
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpudrift.report.pictures.draw", drawn)
        patch.setattr("gpudrift.report.plots.history", drawn)
        yield patch
