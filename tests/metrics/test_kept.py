"""What is kept of the reference changes no bit of any metric, stays within its budget, and saves its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import classifier, divergences, energy_1d, frechet, moments, wasserstein
from gpudrift.metrics.kept import Kept, of_reference, size_of
from gpudrift.project import project
from gpudrift.records import Metric, PanelInput

MODULES = (moments, wasserstein, energy_1d, divergences, frechet, classifier)
AMPLE = 1 << 30
SIZES = (40, 90, 40, 300)  # of the windows; 300 exceeds the rows of a draw of frechet


@pytest.fixture(params=["rows", "users", "thinned"])
def windows(
    request: pytest.FixtureRequest, make_panel: Callable[..., PanelInput], monkeypatch: pytest.MonkeyPatch
) -> list[PanelInput]:
    """Panels of windows of several sizes against one reference of 400 rows in 9 dimensions."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 9)) * np.linspace(2.0, 0.3, 9)
    x[7] = x[300]  # ties
    first = make_panel(x, x[:40] + 0.1, components=3, kept=4, directions=12)
    # directions in several blocks, which differ from window to window
    monkeypatch.setattr(wasserstein, "CHUNK", 2400)
    if request.param == "thinned":
        monkeypatch.setattr(classifier, "ROWS", 150)
    users = torch.from_numpy(rng.integers(0, 90, size=400))
    panels = []
    for k, size in enumerate(SIZES):
        y = torch.from_numpy(rng.normal(size=(size, 9)) * (1 + 0.1 * k) + 0.05 * k)
        y[3] = first.x[10]
        codes = (users, torch.from_numpy(rng.integers(0, 110, size=size))) if request.param == "users" else None
        panels.append(replace(first, y=y, py=project(y, first.basis), clusters=codes, classifier_rows=200))
    return panels


def measured(panel: PanelInput) -> list[Metric]:
    return [metric for module in MODULES for metric in module.compute(panel)]


def exact(metrics: list[Metric]) -> list[tuple[Any, ...]]:
    """Floats by their bits: repr tells -0.0 from 0.0 and equals itself for NaN."""
    return [(m.name, repr(m.value), repr(m.se), repr(dict(m.extra))) for m in metrics]


@pytest.mark.parametrize(
    ("budget", "order"),
    [(0, (0, 1)), (6_000, (0, 3, 0)), (40_000, (3, 0, 3)), (AMPLE, (0, 1, 2, 3, 0)), (AMPLE, (3, 2, 1, 0, 3))],
)
def test_no_figure_changes_whatever_is_kept_and_in_whatever_order_windows_come(
    windows: list[PanelInput], budget: int, order: tuple[int, ...]
) -> None:
    wanted = {k: exact(measured(windows[k])) for k in set(order)}
    kept = Kept(windows[0].x, budget)
    for k in order:
        assert exact(measured(replace(windows[k], kept=kept))) == wanted[k]
        assert kept.bytes <= budget
    assert (kept.bytes > 0) == (budget > 0)
    assert kept.bytes == sum(map(size_of, kept.found.values()))


def test_a_window_of_the_reference_meets_other_rows_for_which_nothing_is_kept(windows: list[PanelInput]) -> None:
    kept = Kept(windows[0].x, AMPLE)
    measured(replace(windows[0], kept=kept))
    before = kept.bytes
    rest, places = windows[0].x[40:], windows[0].clusters
    inside = replace(
        windows[0],
        x=rest,
        y=windows[0].x[:40],
        px=project(rest, windows[0].basis),
        py=project(windows[0].x[:40], windows[0].basis),
        clusters=None if places is None else (places[0][40:], places[0][:40]),
        in_reference=True,
    )
    assert exact(measured(replace(inside, kept=kept))) == exact(measured(inside))
    assert kept.bytes == before


def test_the_reference_is_gone_through_once(windows: list[PanelInput], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at all rows of the reference does so for the first window alone."""
    seen: list[tuple[str, int]] = []
    for module, name, size in (
        (moments, "_own", lambda x, *_: len(x)),
        (wasserstein, "_along", lambda x, *_: len(x)),
        (energy_1d, "_padded_sums", len),
        (divergences, "_binned", lambda scores, *_: len(scores)),
        (frechet, "factor", len),
        (frechet, "_draws", lambda _x, _mean, _covariance, s, _seed: s),
    ):
        real = getattr(module, name)

        def watched(*given: Any, real: Any = real, name: str = name, size: Any = size) -> Any:
            seen.append((name, size(*given)))
            return real(*given)

        monkeypatch.setattr(module, name, watched)
    kept = Kept(windows[0].x, AMPLE)
    for panel in (windows[0], windows[2]):  # both of 40 rows
        measured(replace(panel, kept=kept))
    n, blocks = 400, 3  # of 12 directions, 2400 // 440 = 5 at a time
    assert seen.count(("_own", n)) == seen.count(("_binned", n)) == 1
    assert seen.count(("_along", n)) == blocks
    assert seen.count(("_along", 40)) == 2 * blocks
    assert seen.count(("_padded_sums", n)) == windows[0].components
    assert seen.count(("factor", 9)) == 1 + 2  # the reference's covariance, and that of each window of more rows than d
    assert seen.count(("_draws", 40)) == 1


def test_nobody_writes_into_what_is_kept(windows: list[PanelInput]) -> None:
    kept = Kept(windows[0].x, AMPLE)
    measured(replace(windows[0], kept=kept))
    before = [tensor.clone() for tensor in tensors(list(kept.found.values()))]
    assert len(before) > 20
    measured(replace(windows[2], kept=kept))
    after = list(tensors(list(kept.found.values())))[: len(before)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            yield from tensors(getattr(found, field.name))
    elif isinstance(found, tuple | list):
        for part in found:
            yield from tensors(part)


@dataclass(frozen=True)
class _Part:
    values: torch.Tensor
    count: int


def test_the_size_of_a_result_is_that_of_the_memory_behind_its_tensors() -> None:
    ten = torch.zeros(10, dtype=torch.float64)
    assert size_of(ten) == size_of(ten[:2]) == 80
    assert size_of((ten, [_Part(ten[3:].float(), 5), None], 1.5)) == 80 + 28


def test_what_does_not_fit_is_made_each_time_and_evicts_nothing() -> None:
    made: list[str] = []

    def make(name: str, rows: int) -> Callable[[], torch.Tensor]:
        def found() -> torch.Tensor:
            made.append(name)
            return torch.zeros(rows, dtype=torch.float64)

        return found

    kept = Kept(torch.zeros(3, 2), 100)
    for _ in range(2):
        for name, rows in (("first", 10), ("large", 11), ("last", 2)):
            assert len(kept.get(name, make(name, rows))) == rows
    assert made == ["first", "large", "last", "large"]
    assert kept.bytes == 96


def test_an_error_is_not_kept(windows: list[PanelInput]) -> None:
    kept = Kept(windows[0].x, AMPLE)

    def fail() -> int:
        raise InsufficientDataError("no", field="rows", value=0, allowed="1")

    panel = replace(windows[0], kept=kept)
    with pytest.raises(InsufficientDataError):
        of_reference(panel, "key", fail)
    assert of_reference(panel, "key", lambda: 3) == of_reference(panel, "key", fail) == 3
