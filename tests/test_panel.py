"""What a reference pins, and the panel's pairwise metrics under the names and in the units promised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cloud import PANEL, dense_energy
from scipy.spatial.distance import pdist

import gpudrift
from gpudrift import kernels, panel
from gpudrift.errors import DataError
from gpudrift.kernels import PairSums
from gpudrift.kernels.reference import pair_sums
from gpudrift.panel import PanelSettings, centre, median_distance, pair_metrics, pin

MULTIPLES = (0.25, 0.5, 1.0)
WIDTHS = (0.8, 1.6, 3.2)


def sums_of(x: np.ndarray, y: np.ndarray) -> tuple[PairSums, PairSums, PairSums]:
    """xx, yy, xy by the dense float64 definition."""
    px, py = (kernels.prepare(torch.from_numpy(a), precision="float64") for a in (x, y))
    return pair_sums(px, None, WIDTHS), pair_sums(py, None, WIDTHS), pair_sums(px, py, WIDTHS)


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)), rng.normal(size=(45, 4)) + 0.4


def test_pair_metrics_have_the_promised_names_and_values(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = clouds
    metrics, energy = pair_metrics(*sums_of(x, y), MULTIPLES, None, None)
    assert [m.name for m in metrics] == ["energy", "mmd2_b1", "mmd2_b2", "mmd2_b3", "mmd_max"]
    assert metrics[0].value == energy.value == pytest.approx(dense_energy(x, y), rel=1e-12)
    direct = gpudrift.mmd2(x, y, list(WIDTHS))
    for b, metric in enumerate(metrics[1:4]):
        assert metric.value == pytest.approx(direct.value[b], rel=1e-9)
        assert metric.se == pytest.approx(direct.se[b], rel=1e-9)
        assert metric.extra["variance"] == pytest.approx(direct.variance[b], rel=1e-6)
        assert (metric.extra["bandwidth"], metric.extra["multiple"]) == (WIDTHS[b], MULTIPLES[b])


@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_mmd_max_is_the_largest_in_units_of_its_null_sd(shift: float) -> None:
    rng = np.random.default_rng(5)
    metrics, _ = pair_metrics(
        *sums_of(rng.normal(size=(50, 3)), rng.normal(size=(40, 3)) + shift), MULTIPLES, None, None
    )
    studentised = {m.name: m.value / m.extra["null_sd"] for m in metrics if m.name.startswith("mmd2")}
    largest = metrics[-1]
    assert (largest.name, largest.se) == ("mmd_max", None)
    assert largest.value == max(studentised.values())
    assert studentised[largest.extra["metric"]] == largest.value


def test_mmd_max_is_left_out_where_there_is_no_null_sd() -> None:
    """Three reference rows have no unbiased null variance."""
    rng = np.random.default_rng(6)
    metrics, energy = pair_metrics(*sums_of(rng.normal(size=(3, 2)), rng.normal(size=(9, 2))), MULTIPLES, None, None)
    assert [m.name for m in metrics] == ["energy", "mmd2_b1", "mmd2_b2", "mmd2_b3"]
    assert math.isnan(energy.null_sd)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_median_distance_is_that_of_all_pairs(offset: float) -> None:
    """100,000 random pairs: the sample median's own sd is about half a percent of the distances' spread."""
    rows = np.random.default_rng(1).normal(size=(700, 6)) * [3, 2, 1, 1, 0.5, 0.1] + offset
    wanted = float(np.median(pdist(rows)))
    found = median_distance(torch.from_numpy(rows), seed=0)
    assert found == pytest.approx(wanted, rel=0.01)
    assert found == median_distance(torch.from_numpy(rows), seed=0)
    assert found != median_distance(torch.from_numpy(rows), seed=1)


@pytest.mark.parametrize("n", [2, 3])
def test_a_row_is_never_paired_with_itself(n: int) -> None:
    """Corners of a simplex: every pair of different rows is at the distance sqrt(2), a row and itself at 0."""
    assert median_distance(torch.eye(n, dtype=torch.float64), seed=0, pairs=n) == pytest.approx(math.sqrt(2))
    assert median_distance(torch.eye(n, dtype=torch.float64), seed=0, pairs=999) == pytest.approx(math.sqrt(2))


def test_pairs_are_the_same_however_many_are_taken_at_a_time() -> None:
    """At 300,000 dimensions seven pairs go at a time; distances depend on the first column alone."""
    rows = torch.zeros(30, 300_000)
    rows[:, 0] = torch.from_numpy(np.random.default_rng(2).normal(size=30)).float()
    assert median_distance(rows, seed=4, pairs=50) == median_distance(rows[:, :1], seed=4, pairs=50)


@pytest.mark.parametrize("copies", [50, 40])
def test_rows_that_are_nearly_all_the_same_give_no_bandwidth(copies: int) -> None:
    rows = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)
    rows[:copies] = rows[0]
    with pytest.raises(DataError, match="median distance") as caught:
        median_distance(torch.from_numpy(rows), seed=0)
    assert (caught.value.value, caught.value.exit_code) == (0.0, 30)
    rows[:30] += np.arange(30)[:, None]
    assert median_distance(torch.from_numpy(rows), seed=0) > 0  # fewer than half of the pairs coincide


@settings(max_examples=30)
@given(n=st.integers(1, 40), d=st.integers(1, 6), offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]), seed=st.integers(0, 99))
def test_centring_is_in_place_and_rounded_once(n: int, d: int, offset: float, seed: int) -> None:
    rows = (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)
    mean = rows.astype(np.float64).mean(0) + 1e-4  # no float32 number
    centred = torch.from_numpy(rows.copy())
    place = centred.data_ptr()
    centre(centred, torch.from_numpy(mean))
    assert (centred.data_ptr(), centred.dtype) == (place, torch.float32)
    np.testing.assert_array_equal(centred.numpy(), (rows.astype(np.float64) - mean).astype(np.float32))


def test_centring_goes_over_all_rows_a_few_at_a_time() -> None:
    rows = torch.ones(7, 1 << 20)  # two rows at a time
    centre(rows, torch.full((1 << 20,), 0.25, dtype=torch.float64))
    assert bool((rows == 0.75).all())


def test_pins_are_made_of_the_settings() -> None:
    rows = torch.from_numpy(np.random.default_rng(7).normal(size=(90, 5)))
    mean = rows.mean(0)
    centre(rows, mean)
    pins, px = pin(rows, mean, PanelSettings(pca_components=3, components=2, bins=4, multiples=MULTIPLES, seed=3))
    middle = median_distance(rows, seed=3)
    assert pins.bandwidths == tuple(m * middle for m in MULTIPLES)
    assert (pins.basis.axes.shape, pins.edges.shape, px.scores.shape) == ((3, 5), (2, 3), (90, 3))
    more, _ = pin(rows, mean, PanelSettings(pca_components=2, components=8, bins=4))
    assert more.edges.shape == (2, 3)  # no more components than axes


def test_the_panel_holds_every_metric_once(
    clouds: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are kept by name: two of one name would lose one."""
    made: list[str] = []
    for module in (
        panel.moments,
        panel.wasserstein,
        panel.energy_1d,
        panel.divergences,
        panel.frechet,
        panel.classifier,
    ):
        compute = module.compute

        def counted(given: object, compute: object = compute) -> object:
            metrics = compute(given)  # type: ignore[operator]
            made.extend(m.name for m in metrics)
            return metrics

        monkeypatch.setattr(module, "compute", counted)
    found = panel.score(*(torch.from_numpy(c) for c in clouds), PANEL, "float64")
    assert len(set(made)) == len(made)
    pairs = {"energy", "mmd_max", *(f"mmd2_b{b}" for b in range(1, 5))}
    assert set(found) == pairs | set(made)
    assert all(metric.name == name for name, metric in found.items())
    assert {"frechet", "residual_energy", "sliced_wasserstein", "wasserstein1_pc2", "energy_pc1"} <= set(found)


def test_the_panel_does_not_know_the_origin_and_scales_with_the_unit(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (torch.from_numpy(c) for c in clouds)
    plain = panel.score(x, y, PANEL, "float64")
    moved = panel.score(x + 100, y + 100, PANEL, "float64")
    doubled = panel.score(2 * x, 2 * y, PANEL, "float64")
    assert {n: m.value for n, m in moved.items()} == pytest.approx({n: m.value for n, m in plain.items()}, rel=1e-6)
    for name, factor in itertools.chain([("energy", 2), ("frechet", 4), ("mmd_max", 1), ("mmd2_b1", 1)]):
        assert doubled[name].value == pytest.approx(factor * plain[name].value, rel=1e-9)


@pytest.mark.parametrize(("wanted", "kept"), [(3, 3), (5, 5), (6, 3), (32, 3)])
def test_the_axes_never_span_everything(wanted: int, kept: int) -> None:
    """Nothing would be left of a row outside them, and on the unit sphere nothing else sees a change of spread."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 6)))
    pins, _ = pin(rows, torch.zeros(6, dtype=torch.float64), PanelSettings(pca_components=wanted))
    assert pins.basis.axes.shape == (kept, 6)
