"""A corpus, its pinned reference with a sketch, and an inbox."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from jobs import make_corpus, table_of
from streams import stream, use

__all__ = ["use"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 weeks; the last two have drifted."""
    return make_corpus(tmp_path_factory.mktemp("streamed") / "corpus", mean_shift=0.4)


@pytest.fixture(scope="session")
def table(corpus: Path) -> pa.Table:
    return table_of(corpus)


@pytest.fixture(scope="session")
def begun(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that found nothing: reference and its sketch. Copy it, do not write into it."""
    base = tmp_path_factory.mktemp("begun")
    (base / "inbox").mkdir()
    assert stream(corpus, base / "out", base / "inbox").code == 0
    return base / "out" / "reference"


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    """An output directory with the reference."""
    shutil.copytree(begun, tmp_path / "out" / "reference")
    return tmp_path / "out"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"
