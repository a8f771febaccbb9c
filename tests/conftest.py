"""Shared by all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jobs import make_corpus, run

from gpudrift.report.style import Picture

# The same examples every time, so that a commit passes or fails; `make fuzz` searches for new ones
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fuzz", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Small matrices on many threads cost more than they save, and threads that wait for a busy core cost most."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which nothing drifts."""
    return make_corpus(tmp_path_factory.mktemp("quiet") / "corpus")


@pytest.fixture(scope="session")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quiet corpus, but its last two weeks have drifted."""
    return make_corpus(tmp_path_factory.mktemp("drifted") / "corpus", mean_shift=0.4)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pictures take seconds; those of a run have tests of their own."""
    png, svg = (tmp_path_factory.mktemp("pictures") / f"history.{kind}" for kind in ("png", "svg"))
    png.write_bytes(b"")
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")

    def none(*_: Any, **__: Any) -> list[Picture]:
        return []

    def drawn(*_: Any, **__: Any) -> Picture:
        return Picture(png, svg, "nothing was drawn")

    monkeypatch.setattr("gpudrift.report.pictures.draw", none)
    monkeypatch.setattr("gpudrift.report.pictures.outcome_pictures", none)
    monkeypatch.setattr("gpudrift.report.plots.history", drawn)


@pytest.fixture(scope="session")
def pinned(quiet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of ``job=reference`` on the quiet corpus. Copy it, do not write into it."""
    output = tmp_path_factory.mktemp("pinned") / "out"
    assert run(quiet, output, {"job": "reference"}).code == 0
    return output
