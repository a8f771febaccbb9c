"""One window against the pinned reference: a window inside it is scored without itself, a small window against a null
of its own size, and the calibration is that of the numbers scored."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from make_cloud import MONDAY, PANEL, SETTINGS, dense_energy, make_cloud

from gpudrift import kernels, reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import GATES, AANull, Limits, calibrate, gate, judge
from gpudrift.kernels import PairSums
from gpudrift.metrics.pairs import null_scale, null_sd
from gpudrift.movement import panel_null
from gpudrift.project import project
from gpudrift.records import Cloud
from gpudrift.reference import Reference, Rows
from gpudrift.sampling import Limit, Sample
from gpudrift.scoring import KEEP, Scored, Scorer

SIZES = (30, 24, 41, 26, 33)
LIMITS = Limits()
# what a window of the reference is told apart by beyond the rows it is compared with: see records.PanelInput
FITTED = {"frechet", "residual_energy", "classifier_auc"}

EXACT = Arithmetic("float64", "as the tests want it", 1.0)
EVERY = Limit(10**9, "all rows")


def pinned(*, users: bool = False, limit: Limit = EVERY) -> tuple[Reference, Rows]:
    cloud, prints, codes = make_cloud(SIZES, users=users)
    screened = reference.screen(cloud, hygiene_sd=40.0, arithmetic=EXACT, clusters=codes)
    assert screened.mean is not None
    return reference.build(
        cloud,
        prints,
        screened.mean,
        dropped=[],
        span=(MONDAY, cloud.windows[-1].end),
        period="week",
        left_out=[],
        panel=PANEL,
        settings=SETTINGS,
        arithmetic=EXACT,
        limit=limit,
        clusters=codes,
    )


def window_of(k: int, size: int, *, users: bool = False) -> tuple[Cloud, torch.Tensor | None]:
    """Week k by itself, as the source would read it."""
    cloud, _, codes = make_cloud([size], first=k, users=users)
    return cloud, codes


def without(whole: Reference, rows: Rows, place: int) -> tuple[Reference, Rows]:
    """The reference's pins, and a cloud and self sums built anew without the rows of one window."""
    start = sum(w.rows for w in whole.kept[:place])
    others = np.delete(np.arange(len(rows.prepared)), np.arange(start, start + whole.kept[place].rows))
    left, codes = rows.prepared.rows[others], rows.prepared.clusters
    prepared = kernels.prepare(left, precision="float64", clusters=None if codes is None else codes[others])
    own = whole.kept[place]
    smaller = replace(
        whole,
        kept=tuple(w for w in whole.kept if w is not own),
        self_sums=kernels.self_sums(prepared, bandwidths=whole.pins.bandwidths),
        null=replace(whole.null, scores={k: s for k, s in whole.null.scores.items() if k != own.window.label}),
    )
    projection, sample = project(left, whole.pins.basis), Sample(None, (0, len(left)))
    return smaller, Rows(left, prepared, projection, sample, codes=None if codes is None else codes[others])


def assert_same(found: Scored, wanted: Scored) -> None:
    assert found.measured is not None
    assert wanted.measured is not None
    assert found.measured.metrics.keys() == wanted.measured.metrics.keys()
    for name in found.measured.metrics.keys() - FITTED:
        a, b = found.measured.metrics[name], wanted.measured.metrics[name]
        assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-11), name
        assert a.se == (None if b.se is None else pytest.approx(b.se, rel=1e-9)), name
    for name in ("variance", "null_sd"):
        for metric in ("energy", "mmd2_b1", "mmd2_b4"):
            a, b = (s.measured.metrics[metric].extra[name] for s in (found, wanted))
            assert a == pytest.approx(b, rel=1e-7, nan_ok=True), (metric, name)


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_window_of_the_reference_is_scored_as_if_it_were_not_in_it(place: int, users: bool) -> None:
    whole, rows = pinned(users=users)
    found = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(place, SIZES[place], users=users))
    smaller, others = without(whole, rows, place)
    wanted = Scorer(smaller, others, PANEL, LIMITS, EVERY).score(*window_of(place, SIZES[place], users=users))
    assert_same(found, wanted)
    assert found.calibration is not None
    assert wanted.calibration is not None
    assert (found.calibration.in_reference, wanted.calibration.in_reference) == (True, False)
    a, b = asdict(found.calibration), asdict(wanted.calibration)
    assert found.window.label not in a["aa_scores"]
    assert a.pop("aa_scores") == b.pop("aa_scores")
    assert (a.pop("severity"), a.pop("ci")) == (b.pop("severity"), pytest.approx(b.pop("ci"), rel=1e-9))
    del a["in_reference"], b["in_reference"]
    assert a == pytest.approx(b, rel=1e-7)
    assert found.judgement == wanted.judgement


def test_a_window_of_the_reference_at_n0_rows_has_its_own_a_a_score() -> None:
    """The smallest window: all its rows against those of the others, as the A/A null has it."""
    whole, rows = pinned()
    found = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(1, SIZES[1]))
    assert found.calibration is not None
    assert found.calibration.score == pytest.approx(whole.kept[1].score, rel=1e-9)


def test_a_new_window_is_scored_against_the_whole_reference() -> None:
    whole, rows = pinned()
    cloud, _ = window_of(7, 37)
    y = cloud.embeddings.double().numpy()
    x = (make_cloud(SIZES)[0]).embeddings.double().numpy()
    found = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(cloud, None)
    assert found.measured is not None
    assert found.measured.energy.value == pytest.approx(dense_energy(x, y), rel=1e-5)  # rows are rounded once
    mean = whole.pins.basis.mean
    np.testing.assert_array_equal(cloud.embeddings, (torch.from_numpy(y) - mean).float())
    exact = dense_energy(rows.prepared.rows.numpy(), cloud.embeddings.double().numpy())
    assert found.measured.energy.value == pytest.approx(exact, rel=1e-9)
    assert (found.window, found.rows, found.quality) == (cloud.windows[0], 37, cloud.quality[0])


@pytest.mark.parametrize("size", [24, 37])
def test_the_calibration_is_that_of_the_score_and_the_pinned_null(size: int) -> None:
    whole, rows = pinned()
    found = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(7, size))
    assert found.measured is not None
    energy = found.measured.energy
    sd_now = null_sd(null_scale(whole.self_sums, 0), sum(SIZES), size)
    wanted = calibrate(energy.value, energy.se, whole.null, null_sd_now=sd_now, limits=LIMITS)
    assert found.calibration == wanted
    assert (wanted.aa_n, wanted.aa_recomputed, wanted.in_reference) == (24, False, False)
    assert found.gates == gate(found.measured.metrics, whole.null, GATES, LIMITS)
    assert [g.metric for g in found.gates] == list(GATES)
    assert found.judgement == judge(found.gates, LIMITS)
    assert found.judgement is not None
    alone = Scorer(whole, rows, PANEL, LIMITS, EVERY, gates=("energy",)).score(*window_of(7, size))
    assert [(g.metric, g.p_holm) for g in alone.gates] == [("energy", wanted.p_aa)]


def test_a_smaller_window_has_a_null_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = pinned()
    made: list[int | None] = []

    def counted(*arguments: object, **named: object) -> tuple[AANull, PairSums]:
        made.append(arguments[3])  # type: ignore[arg-type]
        return panel_null(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("gpudrift.scoring.panel_null", counted)
    scorer = Scorer(whole, rows, PANEL, LIMITS, EVERY)
    found = scorer.score(*window_of(7, 11)).calibration
    assert found is not None
    assert (found.aa_n, found.aa_recomputed) == (11, True)
    x, bounds = rows.prepared.rows.numpy(), np.cumsum([0, *SIZES])
    for k, label in enumerate(w.label for w in whole.windows):
        inside = np.arange(bounds[k], bounds[k + 1])
        wanted = dense_energy(np.delete(x, inside, 0), x[inside[:11]])
        assert found.aa_scores[label] == pytest.approx(wanted, rel=1e-9)
    assert found.null_sd == pytest.approx(null_sd(null_scale(whole.self_sums, 0), sum(SIZES), 11), rel=1e-9)
    scorer.score(*window_of(8, 11))
    scorer.score(*window_of(8, 12))
    scorer.score(*window_of(9, 24))
    assert made == [11, 12]  # once a size, and not at n0 itself


def test_a_null_of_two_scores_calibrates_nothing() -> None:
    """Three reference windows: one of them, scored against the others, has two A/A scores left."""
    whole, rows = pinned()
    few = {w.window.label: w.score for w in whole.kept[:3]}
    scorer = Scorer(replace(whole, null=replace(whole.null, scores=few)), rows, PANEL, LIMITS, EVERY)
    inside = scorer.score(*window_of(0, SIZES[0]))
    assert inside.measured is not None
    assert (inside.calibration, inside.judgement) == (None, None)
    assert scorer.score(*window_of(7, 30)).calibration is not None


def test_the_point_of_a_window_holds_what_was_scored() -> None:
    whole, rows = pinned()
    found = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(3, SIZES[3]))
    assert found.measured is not None
    assert found.calibration is not None
    point = found.point("warning")
    for name in ("score", "se", "p_aa", "p_close", "null_sd", "delta", "clear_limit", "ratio", "in_reference"):
        assert getattr(point, name) == getattr(found.calibration, name), name
    assert point.gates == found.gates
    assert (point.window, point.verdict, point.rows) == (found.window, "warning", SIZES[3])
    assert point.in_reference
    bare = Scored(found.window, 3, None).point("insufficient")
    assert (bare.rows, bare.in_reference) == (3, False)
    assert {bare.score, bare.se, bare.p_aa, bare.p_close, bare.null_sd, bare.delta, bare.ratio} == {None}
    uncalibrated = replace(found, calibration=None).point("insufficient")
    assert (uncalibrated.score, uncalibrated.p_aa) == (found.measured.energy.value, None)


def test_float32_pairs_agree_with_float64_ones() -> None:
    """The in-reference difference of sums loses no more than the sums themselves."""
    whole, rows = pinned()
    exact = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(2, SIZES[2]))
    single = kernels.prepare(rows.centred, precision="float32")
    sums = kernels.self_sums(single, bandwidths=whole.pins.bandwidths)
    coarse = replace(whole, self_sums=sums, arithmetic=Arithmetic("float32", "", 1.0))
    found = Scorer(coarse, replace(rows, prepared=single), PANEL, LIMITS, EVERY).score(*window_of(2, SIZES[2]))
    assert exact.measured is not None
    assert found.measured is not None
    for name, metric in exact.measured.metrics.items():
        if name in ("energy", "mmd_max") or name.startswith("mmd2"):
            assert found.measured.metrics[name].value == pytest.approx(metric.value, rel=1e-4, abs=1e-6), name
    assert math.isfinite(found.measured.energy.variance)


@pytest.mark.parametrize("users", [False, True])
def test_what_is_kept_of_the_reference_changes_no_bit_in_any_order_of_windows(users: bool) -> None:
    """New windows, smaller ones with a null of their own, and windows of the reference."""
    whole, rows = pinned(users=users)
    which = [(7, 37), (2, SIZES[2]), (8, 24), (9, 11), (10, 37), (0, SIZES[0]), (11, 11)]
    wanted = {
        k: everything(Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(k, size, users=users)))
        for k, size in which
    }
    for order in (which, which[::-1]):
        scorer = Scorer(whole, rows, PANEL, LIMITS, EVERY, keep=KEEP)
        found = {k: everything(scorer.score(*window_of(k, size, users=users))) for k, size in order}
        assert found == wanted
        assert 0 < scorer.kept.bytes <= KEEP


def test_one_window_keeps_nothing() -> None:
    scorer = Scorer(*pinned(), PANEL, LIMITS, EVERY)
    scorer.score(*window_of(7, 37))
    assert scorer.kept.bytes == 0


def everything(scored: Scored) -> str:
    """All figures of a window to the last bit."""
    assert scored.measured is not None
    estimate = scored.measured.energy
    witness = estimate.a.tolist(), estimate.b.tolist()
    return repr((scored.measured.metrics, witness, scored.calibration, scored.gates, scored.judgement, scored.encoder))
