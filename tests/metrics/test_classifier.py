from __future__ import annotations

import json
import math
from dataclasses import replace

import dcor
import numpy as np
import pytest
import torch
from scipy.linalg import solve
from sklearn.metrics import roc_auc_score

from gpudrift.errors import InsufficientDataError
from gpudrift.metrics import accumulate, classifier


def _auc(panel):
    (metric,) = classifier.compute(panel)
    assert metric.name == "classifier_auc"
    return metric


def _bare(panel, x, y):
    """The panel with other rows and their covariance, without the axes that the classifier does not look at."""
    rows, current = torch.from_numpy(x - x.mean(0)), torch.from_numpy(y - x.mean(0))
    return replace(panel, x=rows, y=current, covariance=rows.T @ rows / (len(x) - 1))


def _means(x, y, folds):
    return np.stack([y[k::folds].mean(0) - x[k::folds].mean(0) for k in range(folds)])


def _whitener(x, y):
    """The pooled covariance, from the rows themselves, and the ridge of the module's docstring."""
    rows = np.concatenate([x, y])
    d = rows.shape[1]
    covariance = np.cov(rows.T).reshape(d, d)
    return covariance + np.eye(d) * np.trace(covariance) / d * max(0.1 * d / len(rows), 1e-6)


def _out_of_fold(x, y, folds=5):
    """Scores of each fold's rows by the definition: (reference, current) a fold."""
    between, whitener = _means(x, y, folds), _whitener(x, y)
    scored = []
    for k in range(folds):
        w = solve(whitener, np.delete(between, k, axis=0).mean(0), assume_a="pos")
        scored.append((x[k::folds] @ w, y[k::folds] @ w))
    return scored


@pytest.mark.parametrize(("n", "m", "d"), [(300, 170, 6), (81, 43, 12), (40, 30, 90)])
def test_auc_is_that_of_the_out_of_fold_scores(make_panel, n, m, d):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.1 + 0.15
    found = [roc_auc_score(np.r_[np.zeros(len(a)), np.ones(len(b))], np.r_[a, b]) for a, b in _out_of_fold(x, y)]
    metric = _auc(make_panel(x, y))
    assert metric.value == pytest.approx(np.mean(found) - 0.5, abs=1e-12)
    assert metric.extra["auc"] == metric.value + 0.5
    assert (metric.extra["rows_reference"], metric.extra["rows_current"], metric.extra["folds"]) == (n, m, 5)
    assert metric.extra["ridge"] == pytest.approx(0.1 * d / (n + m))


def test_ties_count_half(make_panel):
    """Whole-number rows of one dimension: scores tie within and between the clouds."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 3, size=(60, 1)), rng.integers(0, 4, size=(45, 1))
    found = [np.mean((b[None] > a[:, None]) + 0.5 * (b[None] == a[:, None])) for a, b in _ranked(x, y)]
    assert _auc(make_panel(x, y)).extra["auc"] == pytest.approx(np.mean(found), abs=1e-12)


def _ranked(x, y):
    signs = [np.sign(np.delete(_means(x, y, 5), k, axis=0).mean()) for k in range(5)]
    return [(x[k::5, 0] * signs[k], y[k::5, 0] * signs[k]) for k in range(5)]


def test_rows_equal_but_for_rounding_tie(make_panel):
    rng = np.random.default_rng(15)
    kinds = rng.normal(size=(6, 10))
    x, y = kinds[rng.integers(0, 6, 100)], kinds[rng.integers(0, 6, 80) // 2]
    exact = _auc(make_panel(x, y))
    moved = _auc(make_panel(x, y + 1e-13 * rng.random(y.shape)))
    assert moved.value == pytest.approx(exact.value, abs=1e-12)
    assert 0 < exact.value < 0.4


def test_standard_error_is_delongs_enlarged_by_the_share_of_noise(make_panel):
    """From the matrices of comparisons; the noise from the folds' whitened products, one by one."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(200, 8)), rng.normal(size=(100, 8)) + 0.25
    variance = 0.0
    for a, b in _out_of_fold(x, y):
        won = (b[None] > a[:, None]) + 0.5 * (b[None] == a[:, None])
        variance += (won.mean(1).var(ddof=1) / len(a) + won.mean(0).var(ddof=1) / len(b)) / 25
    between, inverse = _means(x, y, 5), np.linalg.inv(_whitener(x, y))
    trained = [np.delete(between, k, axis=0).mean(0) for k in range(5)]
    length = np.mean([w @ inverse @ w for w in trained])
    signal = np.mean([between[k] @ inverse @ between[j] for k in range(5) for j in range(5) if j != k])
    noise = 1 - signal / length
    assert 0.2 < noise < 0.8
    metric = _auc(make_panel(x, y))
    assert metric.extra["noise"] == pytest.approx(noise, rel=1e-9)
    enlarged = variance * (1 + noise * (1 + (1 - noise) * (1.3 + 0.2 * noise)))
    assert metric.se == pytest.approx(math.sqrt(enlarged), rel=1e-9)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.48, 0.52), (0.12, 0.6, 0.66), (0.3, 0.78, 0.83)])
def test_intervals_cover(make_panel, shift, low, high):
    """250 runs: the standard error is the spread of the values, and 1.96 of them cover their mean in about 95%."""
    rng = np.random.default_rng(5)
    panel = make_panel(np.eye(4), np.eye(4))
    values, errors = [], []
    for _ in range(250):
        metric = _auc(_bare(panel, rng.normal(size=(300, 20)), rng.normal(size=(150, 20)) + shift))
        values.append(metric.extra["auc"])
        errors.append(metric.se)
    assert low < np.mean(values) < high
    assert 0.85 < math.sqrt(np.mean(np.square(errors))) / np.std(values, ddof=1) < 1.15
    assert 0.92 <= np.mean(np.abs(values - np.mean(values)) <= 1.96 * np.array(errors)) <= 0.985


def test_without_drift_the_mean_is_half_where_scores_of_the_rows_fitted_are_far_above(make_panel):
    """200 reference rows, 40 current, 80 dimensions."""
    rng = np.random.default_rng(6)
    panel = make_panel(np.eye(4), np.eye(4))
    values, fitted = [], []
    for _ in range(120):
        x, y = rng.normal(size=(200, 80)), rng.normal(size=(40, 80))
        values.append(_auc(_bare(panel, x, y)).value)
        w = solve(_whitener(x, y), y.mean(0) - x.mean(0), assume_a="pos")
        fitted.append(roc_auc_score(np.r_[np.zeros(200), np.ones(40)], np.r_[x @ w, y @ w]) - 0.5)
    error = np.std(values, ddof=1) / math.sqrt(120)
    assert abs(np.mean(values)) <= 3 * error
    assert min(values) < -0.03
    assert np.mean(fitted) > 0.3


def test_it_finds_a_shift_of_the_mean_where_variance_is_small_and_energy_does_not(make_panel):
    """Variances falling as 1/k^2; the last four of 16 axes move by half their sd. Against the largest of 20 nulls."""
    rng = np.random.default_rng(7)
    panel = make_panel(np.eye(4), np.eye(4))
    sd = 1.0 / np.arange(1, 17)
    shift = np.where(np.arange(16) >= 12, 0.5 * sd, 0.0)

    def both(moved):
        x, y = rng.normal(size=(250, 16)) * sd, rng.normal(size=(250, 16)) * sd + moved
        return _auc(_bare(panel, x, y)).value, dcor.energy_distance(x, y, estimation_stat="u_statistic")

    null = np.array([both(0.0) for _ in range(20)])
    found = np.array([both(shift) for _ in range(20)])
    assert found[:, 0].min() > null[:, 0].max()
    assert (found[:, 1] > null[:, 1].max()).mean() < 0.3
    assert found[:, 0].mean() == pytest.approx(0.24, abs=0.02)  # Phi(1 / sqrt 2) = .76, the best there is


def test_spread_alone_is_not_its_business(make_panel):
    rng = np.random.default_rng(8)
    metrics = [_auc(make_panel(rng.normal(size=(300, 8)), rng.normal(size=(300, 8)) * 1.5)) for _ in range(20)]
    assert abs(np.mean([metric.value / metric.se for metric in metrics])) < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offset_scale_and_rotation_change_nothing(make_panel, shifted, dtype):
    x, y = (cloud.astype(np.float32).astype(np.float64) for cloud in shifted)
    plain = _auc(make_panel(x, y, dtype=dtype))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    for change in (lambda c: c + 1e3, lambda c: c * 1e-6, lambda c: c * 1e6, lambda c: c @ rotation):
        other = _auc(make_panel(change(x), change(y), dtype=dtype))
        # a rank may change hands where float32 rounds anew: one of 60 * 34 pairs of a fold is .0005 / 5
        assert other.value == pytest.approx(plain.value, abs=3e-4 if dtype == torch.float32 else 1e-9)
        assert other.se == pytest.approx(plain.se, rel=1e-3 if dtype == torch.float32 else 1e-9)


def test_unequal_scales_of_the_columns_are_whitened_away(make_panel):
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(3000, 4)), rng.normal(size=(3000, 4)) + 0.1
    plain = _auc(make_panel(x, y)).value
    assert _auc(make_panel(x * [1, 0.1, 5, 0.2], y * [1, 0.1, 5, 0.2])).value == pytest.approx(plain, abs=0.003)


def test_a_part_of_the_reference_is_whitened_as_a_fresh_window_is(make_panel):
    """Pins fitted on both, x the rest: the covariance of both is there already."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(200, 30)), rng.normal(size=(60, 30)) + 0.1
    fresh, whole = make_panel(x, y), make_panel(np.concatenate([x, y]), y)
    inside = replace(whole, x=whole.x[:200], y=whole.x[200:], in_reference=True)
    assert _auc(inside).value == pytest.approx(_auc(fresh).value, abs=1e-12)
    assert _auc(inside).se == pytest.approx(_auc(fresh).se, rel=1e-9)
    assert _auc(replace(inside, in_reference=False)).value != _auc(fresh).value


def test_the_current_window_is_cut_to_its_first_rows(make_panel, shifted):
    x, y = shifted
    cut = _auc(replace(make_panel(x, y), classifier_rows=90))
    assert cut == _auc(make_panel(x, y[:90]))
    assert cut.extra["rows_current"] == 90
    assert _auc(replace(make_panel(x, y), classifier_rows=1000)) == _auc(make_panel(x, y))


def test_a_large_reference_is_thinned_evenly(make_panel, monkeypatch):
    """Windows one after the other, the last ones moved: they keep their share."""
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(600, 3)), rng.normal(size=(100, 3))
    x[400:, 0] += 50.0
    whole = _auc(make_panel(x, y))
    monkeypatch.setattr(classifier, "ROWS", 150)
    thinned = _auc(make_panel(x, y))
    assert thinned.extra["rows_reference"] == 150
    assert whole.extra["rows_reference"] == 600
    assert thinned.value == pytest.approx(whole.value, abs=0.05)
    # a third of the reference lies apart from all current rows
    assert 0.1 < thinned.value < 0.4


def test_few_current_rows_against_many_weigh_alike(make_panel):
    """The same drift at 30 rows against 3000 and at 3000 against 30 is found with the same sign and size."""
    rng = np.random.default_rng(12)
    values = []
    for _ in range(20):
        few, many = rng.normal(size=(30, 5)) + 0.5, rng.normal(size=(3000, 5))
        values.append([_auc(make_panel(many, few)).value, _auc(make_panel(few, many)).value])
    assert np.mean(values, axis=0) == pytest.approx([0.28, 0.28], abs=0.03)


def test_complete_separation_is_no_certainty(make_panel):
    rng = np.random.default_rng(13)
    metric = _auc(make_panel(rng.normal(size=(80, 3)), rng.normal(size=(40, 3)) + 1e4))
    assert metric.value == 0.5
    assert metric.se == 0.5 / 40


DEGENERATE = {
    "both constant": (np.full((9, 3), 4.0), np.full((8, 3), 4.0), 0.0),
    "all zero": (np.zeros((40, 2)), np.zeros((30, 2)), 0.0),
    "constant, elsewhere": (np.full((9, 3), 4.0), np.full((8, 3), 7.0), 0.5),
    "one dimension, apart": (np.arange(20.0)[:, None], np.arange(30.0, 40.0)[:, None], 0.5),
    "collinear": (np.outer(np.arange(20.0), [1, 2, 2]), np.outer(np.arange(30.0, 41.0), [1, 2, 2]), 0.5),
    "a column of zeros": (np.arange(20.0)[:, None] * [1, 0], np.arange(30.0, 40.0)[:, None] * [1, 0], 0.5),
    "two rows each": (np.eye(4)[:2], np.eye(4)[2:], None),
    "fewer rows than folds": (np.arange(40.0).reshape(20, 2) ** 2, np.arange(6.0).reshape(3, 2), None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_clouds_give_finite_values(make_panel, case, dtype):
    x, y, expected = DEGENERATE[case]
    metric = _auc(make_panel(x, y, dtype=dtype))
    assert type(metric.value) is float
    assert -0.5 <= metric.value <= 0.5
    assert expected is None or metric.value == expected
    assert (metric.se is None) == (min(len(x), len(y)) <= 5) == ("note" in metric.extra)
    assert metric.se is None or 0 < metric.se < 1
    json.dumps(dict(metric.extra), allow_nan=False)


@pytest.mark.parametrize(("n", "m"), [(1, 20), (20, 1), (20, 0)])
def test_a_single_row_is_refused(make_panel, n, m):
    panel = make_panel(np.eye(20), np.eye(20))
    with pytest.raises(InsufficientDataError):
        classifier.compute(replace(panel, x=panel.x[:n], y=panel.y[:m]))


def test_the_same_cloud_twice_is_no_drift(make_panel):
    rows = np.random.default_rng(14).normal(size=(60, 5))
    metric = _auc(make_panel(rows, rows))
    assert metric.value == 0.0
    assert metric.extra["noise"] == 1.0


def test_it_repeats_to_the_bit_leaves_its_input_and_the_random_state(make_panel, shifted):
    panel = make_panel(*shifted, dtype=torch.float32)
    kept, state = [t.clone() for t in (panel.x, panel.y, panel.covariance)], torch.random.get_rng_state()
    assert _auc(panel) == _auc(panel)
    assert all(torch.equal(a, b) for a, b in zip(kept, (panel.x, panel.y, panel.covariance), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_chunks_do_not_change_the_result(make_panel, shifted, monkeypatch):
    panel = make_panel(*shifted)
    whole = _auc(panel)
    monkeypatch.setattr(accumulate, "CHUNK", 6 * 7)
    assert _auc(panel).value == pytest.approx(whole.value, abs=1e-12)
    assert _auc(panel).se == pytest.approx(whole.se, rel=1e-9)


def _users(rng, users, rows, d, first=0):
    """Rows of users who have half of their variance, in random order, and their codes."""
    own, codes = rng.normal(size=(users, d)), rng.permutation(np.repeat(np.arange(users), rows))
    return own[codes] + rng.normal(size=(users * rows, d)), torch.from_numpy(codes + first)


def test_new_users_are_no_drift(make_panel):
    """Each fold's users are unknown to its direction; rows dealt one by one tell the users apart instead."""
    rng = np.random.default_rng(3)
    whole, by_row, ses = [], [], []
    base = make_panel(np.eye(4), np.eye(4), components=1)
    for _ in range(40):
        (x, of_x), (y, of_y) = _users(rng, 60, 8, 24), _users(rng, 20, 8, 24, first=60)
        panel = _bare(base, x, y)
        metric = _auc(replace(panel, clusters=(of_x, of_y)))
        whole.append(metric.value)
        ses.append(metric.se)
        by_row.append(_auc(panel).value)
    assert abs(np.mean(whole)) < 3 * np.std(whole) / np.sqrt(len(whole))
    assert np.mean(by_row) > 0.1
    assert np.mean(ses) == pytest.approx(np.std(whole), rel=0.35)  # that of rows is less than half of it


def test_users_of_both_windows_stay_whole_and_clusters_of_one_row_are_rows(make_panel):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(90, 5)), rng.normal(size=(60, 5))
    panel = _bare(make_panel(x, y, components=1), x, y)
    shared = torch.arange(90) % 15, torch.arange(60) % 15
    parts, least = classifier._folds(90, 60, shared, torch.device("cpu"))
    assert (len(parts), least) == (5, 15)
    of_fold = [set(shared[0][a].tolist()) | set(shared[1][b].tolist()) for a, b in parts]
    assert sorted(user for users in of_fold for user in users) == list(range(15))
    rows = replace(panel, clusters=(torch.arange(90), torch.arange(90, 150)))
    assert _auc(rows).se == pytest.approx(_auc(panel).se, rel=0.1)


def test_too_few_clusters_tell_nothing(make_panel):
    panel = make_panel(np.random.default_rng(5).normal(size=(30, 3)), np.zeros((20, 3)))
    metric = _auc(replace(panel, clusters=(torch.zeros(30, dtype=torch.int64), torch.ones(20, dtype=torch.int64))))
    assert (metric.value, metric.se) == (0.0, None)
    assert "clusters" in metric.extra["note"]
