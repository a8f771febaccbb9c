"""The usual movement of every gating metric is that metric of each reference window scored against the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_cloud import PANEL, dense_energy
from test_scoring import EVERY, EXACT, LIMITS, SIZES, pinned, window_of

from gpudrift.arithmetic import prepare
from gpudrift.calibrate import GATES, SIGNED
from gpudrift.metrics import classifier
from gpudrift.movement import Windowed, aa_null, mmd_widths, panel_null
from gpudrift.reference import Reference, Rows
from gpudrift.scoring import Scorer

N0 = min(SIZES)


def windowed(whole: Reference, rows: Rows) -> Windowed:
    bounds = np.cumsum([0, *SIZES]).tolist()
    return Windowed(rows.centred, bounds, rows.projection, whole.pins, PANEL)


@pytest.mark.parametrize("users", [False, True])
def test_each_value_is_that_of_the_window_scored_alone(users: bool) -> None:
    """The smallest window takes part with all its rows, so its A/A values are the metrics it is scored with."""
    whole, rows = pinned(users=users)
    place = SIZES.index(N0)
    scored = Scorer(whole, rows, PANEL, LIMITS, EVERY).score(*window_of(place, N0, users=users))
    assert scored.measured is not None
    label = whole.kept[place].window.label
    for name in (*GATES, "mmd2_b3", "mmd2_b4"):
        null = whole.null.of(name)
        assert null is not None, name
        wanted = scored.measured.metrics[name].value
        assert null.scores[label] == pytest.approx(wanted, rel=1e-9, abs=1e-12), name
        assert list(null.scores) == [w.window.label for w in whole.kept]
        assert (null.null_sd is None) == (name in SIGNED)


def test_larger_windows_take_part_with_their_first_rows() -> None:
    whole, rows = pinned()
    for place, size in enumerate(SIZES):
        if size == N0:
            continue
        bounds = np.cumsum([0, *SIZES])
        label = whole.kept[place].window.label
        x = rows.centred.double().numpy()
        own, rest = x[bounds[place] : bounds[place] + N0], np.delete(x, np.r_[bounds[place] : bounds[place + 1]], 0)
        assert whole.null.scores[label] == pytest.approx(dense_energy(rest, own), rel=1e-9)
        spread = np.log(np.cov(own.T).trace() / np.cov(rest.T).trace())
        assert whole.null.others["log_variance_ratio"].scores[label] == pytest.approx(spread, rel=1e-9)
        axes = whole.pins.basis.axes.numpy()
        outside = [(np.square(r).sum(1) - np.square(r @ axes.T).sum(1)).mean() for r in (own, rest)]
        wanted = np.log(outside[0] / outside[1])
        assert whole.null.others["residual_energy"].scores[label] == pytest.approx(wanted, rel=1e-9)


def test_the_energy_between_two_windows_is_that_of_their_first_rows() -> None:
    whole, rows = pinned()
    x, bounds = rows.centred.double().numpy(), np.cumsum([0, *SIZES])
    firsts = [x[a : a + N0] for a in bounds[:-1]]
    for i, one in enumerate(firsts):
        for j, other in enumerate(firsts):
            wanted = 0.0 if i == j else dense_energy(one, other)
            assert whole.null.between[i][j] == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_pairs_alone_give_the_same_energy() -> None:
    whole, rows = pinned()
    bounds = windowed(whole, rows).offsets
    labels = [w.window.label for w in whole.kept]
    found = aa_null(rows.centred, bounds, labels, N0, EXACT)
    assert found.scores == pytest.approx(whole.null.scores, rel=1e-12)
    assert found.null_sd == pytest.approx(whole.null.null_sd, rel=1e-12)
    assert found.others == {}


def test_fewer_rows_give_another_null(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = pinned()
    prepared = prepare(rows.centred, EXACT)
    given = windowed(whole, rows)
    labels = [w.window.label for w in whole.kept]
    few, sums = panel_null(prepared, given.offsets, labels, 9, given)
    assert few.n0 == 9
    assert few.null_sd > whole.null.null_sd
    np.testing.assert_allclose(sums.rows, whole.self_sums.rows, rtol=1e-12)
    assert set(few.others) == {*mmd_widths(whole.pins), *SIGNED}
    # the classifier's share of the other windows is thinned evenly
    monkeypatch.setattr(classifier, "ROWS", 60)
    thinned, _ = panel_null(prepared, given.offsets, labels, 9, given)
    assert thinned.others["classifier_auc"].scores != few.others["classifier_auc"].scores
    assert thinned.scores == few.scores


def test_the_rows_of_a_window_never_train_against_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    compute = classifier.compute

    def noted(panel: object) -> object:
        seen.append((panel.x, panel.y))  # type: ignore[attr-defined]
        return compute(panel)  # type: ignore[arg-type]

    whole, rows = pinned()
    given = windowed(whole, rows)
    monkeypatch.setattr(classifier, "compute", noted)
    panel_null(prepare(rows.centred, EXACT), given.offsets, [w.window.label for w in whole.kept], N0, given)
    assert len(seen) == len(SIZES)
    for (x, y), start, end in zip(seen, given.offsets, given.offsets[1:], strict=False):
        others = np.r_[0:start, end : len(rows.centred)]
        assert torch.equal(x, rows.centred[others])
        assert torch.equal(y, rows.centred[start : start + N0])


def test_a_window_is_held_against_the_null_at_its_own_rows() -> None:
    """AUC grows with the rows a classifier is trained on: a larger window is cut to those of the null."""
    whole, rows = pinned()
    scorer = Scorer(whole, rows, PANEL, LIMITS, EVERY)
    for size, n0 in ((11, 11), (200, N0)):
        found = scorer.score(*window_of(7, size))
        assert found.measured is not None
        assert found.measured.metrics["classifier_auc"].extra["rows_current"] == n0
        assert found.calibration is not None
        assert found.calibration.aa_n == n0
