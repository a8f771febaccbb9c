"""The picture of the lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gpudrift.records import Norms
from gpudrift.report.norms import norm_histogram, worth_drawing
from gpudrift.source.quality import norms_of


def lengths(values: object) -> Norms:
    found = norms_of(torch.as_tensor(np.asarray(values, dtype=np.float32))[:, None])
    assert found is not None
    return found


def test_unit_vectors_give_nothing_to_see() -> None:
    ones = lengths(np.ones(50))
    assert not worth_drawing(ones, ones)
    assert not worth_drawing(None, None)
    assert worth_drawing(ones, lengths([1.0, 2.0]))
    assert worth_drawing(ones, lengths([2.0, 2.0]))


def test_same_bytes_and_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference, current = lengths(np.ones(500)), lengths(rng.lognormal(0.5, 0.3, 300))
    made = [norm_histogram(reference, current, tmp_path / name, labels=("reference", "2026-W02")) for name in "ab"]
    assert made[0].png.read_bytes() == made[1].png.read_bytes()
    assert made[0].svg.read_bytes() == made[1].svg.read_bytes()
    assert "reference: 500 rows, 1 to 1, mean 1" in made[0].alt_text
    assert "2026-W02: 300 rows" in made[0].alt_text
    norm_histogram(lengths([1e-20, 1e20]), lengths([3.0]), tmp_path / "far")
