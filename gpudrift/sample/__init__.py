"""The corpus that ships with gpudrift: where it is. What it holds is told in README.md beside it and docs/sample.md."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def path() -> Path:
    """The directory of the Parquet files (hive: year=YYYY), for ``source.uri``."""
    return _HERE / "corpus"


def outcomes_path() -> Path:
    """CSV: one row a week of the corpus (``week_start``, a Monday, UTC) with what was measured on it that week."""
    return _HERE / "outcomes.csv"
