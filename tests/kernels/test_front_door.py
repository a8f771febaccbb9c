"""What the front door refuses, and which backend it names: CUDA is played by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from gpudrift import kernels
from gpudrift.errors import ArgumentError, RangeError
from gpudrift.kernels import reference as dense

CARD = torch.device("cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    kernels._obstacle.cache_clear()
    yield monkeypatch
    kernels._obstacle.cache_clear()


def _stand_in(monkeypatch: pytest.MonkeyPatch, probe: object) -> None:
    module = ModuleType("gpudrift.kernels.triton_ops")
    module.probe = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "gpudrift.kernels.triton_ops", module)
    monkeypatch.setattr(kernels, "triton_ops", module, raising=False)


def test_a_card_that_passes_the_probe_gets_the_fused_kernels_and_is_probed_once(card: pytest.MonkeyPatch) -> None:
    probed: list[torch.device] = []
    _stand_in(card, probed.append)
    for _ in range(2):
        found = kernels.backend_for(CARD, "float16")
        assert (found.name, found.reason) == ("triton", "fused Triton kernels on a card, float16")
    assert probed == [CARD]
    assert kernels.backend_for(CARD, "float64").name == "torch-cuda"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no C compiler\n  at all"), "Triton cannot compile and run here (RuntimeError: no C compiler)"),
        (RuntimeError(""), "Triton cannot compile and run here (RuntimeError)"),
        (OSError("\nbad library"), "(OSError: bad library)"),
    ],
)
def test_whatever_stops_triton_is_a_reason(card: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def fail(_: torch.device) -> None:
        raise error

    _stand_in(card, fail)
    found = kernels.backend_for(CARD, "float16")
    assert found.name == "torch-cuda"
    assert words in found.reason
    assert "\n" not in found.reason


def test_an_old_card_is_served_by_torch(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    found = kernels.backend_for(CARD, "float16")
    assert (found.name, "7.5 is below 8.0" in found.reason) == ("torch-cuda", True)


@pytest.mark.parametrize("bandwidths", [(0.0,), (-1.0,), (float("nan"),), (float("inf"),), (1.0,) * 9])
def test_unusable_bandwidths_are_refused(bandwidths: tuple[float, ...]) -> None:
    x = kernels.prepare(torch.eye(3))
    for call in (
        lambda: kernels.self_sums(x, bandwidths=bandwidths),
        lambda: kernels.cross_sums(x, x, bandwidths=bandwidths),
        lambda: kernels.batch_sums(x, x, [(0, 0)], bandwidths=bandwidths),
    ):
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.field == "bandwidths"


@pytest.mark.parametrize("bandwidth", [1e-320, 1e-200, 1e-22, 1e155, 1e300])
@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
def test_extreme_bandwidths_give_zero_or_one(bandwidth: float, precision: str) -> None:
    x = kernels.prepare(torch.tensor([[1.0], [1.0], [3.0]]), precision=precision)
    found = kernels.self_sums(x, bandwidths=(bandwidth,))
    assert float(found.total[1]) == (6.0 if bandwidth > 1 else 2.0)  # ordered pairs; the equal rows are alike anyway


@pytest.mark.parametrize("scale", [1e-170, 1e-310])
@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
def test_rows_whose_squares_vanish_are_refused_not_called_equal(scale: float, precision: str) -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64) * scale
    with pytest.raises(RangeError, match="too short"):
        kernels.prepare(rows, precision=precision)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1e6])
@pytest.mark.parametrize("n", [2, 50, 700])
def test_a_constant_cloud_is_served_in_any_precision(value: float, n: int) -> None:
    rows = torch.full((n, 3), value, dtype=torch.float64)
    for precision in kernels.MODES:
        x = kernels.prepare(rows, centre=rows.mean(0), precision=precision)
        assert float(kernels.self_sums(x).total[0]) == pytest.approx(0, abs=1e-6)


def test_nan_is_named() -> None:
    rows = torch.ones(3, 2)
    rows[1, 0] = torch.nan
    with pytest.raises(ArgumentError, match="row 1 holds NaN"):
        kernels.prepare(rows)


def test_progress_counts_pairs_once_however_many_labels_there_are() -> None:
    x = kernels.prepare(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))
    z = torch.randint(0, 2, (60, 300), generator=torch.Generator().manual_seed(1))
    done: list[int] = []
    found = kernels.self_sums(x, labels=z, progress=done.append)
    assert sum(done) == 60 * 59 // 2
    torch.testing.assert_close(found.labels, dense.pair_sums(x, None, (), z).labels, rtol=1e-5, atol=1e-4)


def test_rows_that_carry_a_gradient_do_not_hand_it_on() -> None:
    rows = torch.randn(4, 3, requires_grad=True)
    assert not kernels.prepare(rows).rows.requires_grad
