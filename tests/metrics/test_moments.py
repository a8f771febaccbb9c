from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpudrift import project
from gpudrift.metrics import accumulate, moments


def _by_name(panel):
    return {metric.name: metric for metric in moments.compute(panel)}


def test_mean_shift_is_the_u_statistic_of_the_linear_kernel(make_panel, shifted):
    """Dense oracle, from the matrices of all products: value, and standard error with the total variance's share."""
    x, y = shifted
    n, m = len(x), len(y)
    centre = x.mean(0)
    xc, yc = x - centre, y - centre
    xx, yy, xy = xc @ xc.T, yc @ yc.T, xc @ yc.T
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    a = xx.sum(1) / (n - 1) - xy.sum(1) / m
    b = yy.sum(1) / (m - 1) - xy.sum(0) / n
    total = np.trace(np.cov(x.T))
    expected = (a.mean() + b.mean()) / total
    metric = _by_name(make_panel(x, y))["mean_shift"]
    assert metric.value == pytest.approx(expected, rel=1e-10)
    part_x = 2 * a / total - expected * (xc**2).sum(1) / total
    se = math.sqrt(part_x.var(ddof=1) / n + 4 * b.var(ddof=1) / total**2 / m)
    assert metric.se == pytest.approx(se, rel=1e-10)
    assert metric.extra["raw"] == pytest.approx(np.linalg.norm(y.mean(0) - x.mean(0)), rel=1e-12)


def test_mean_shift_is_unbiased(make_panel):
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        x, y = rng.normal(size=(40, 5)), rng.normal(size=(12, 5)) * 2 + 0.3
        metric = _by_name(make_panel(x, y))["mean_shift"]
        values.append(metric.value * np.trace(np.cov(x.T)))  # in squared units: the share divides by an estimate
    assert abs(np.mean(values) - 5 * 0.3**2) <= 4 * np.std(values) / math.sqrt(300)
    assert min(values) < 0


def test_log_variance_ratio_and_its_error(make_panel, shifted):
    x, y = shifted
    metric = _by_name(make_panel(x, y))["log_variance_ratio"]
    traces = [np.trace(np.cov(c.T)) for c in (x, y)]
    assert metric.value == pytest.approx(math.log(traces[1] / traces[0]), rel=1e-10)
    parts = [((c - c.mean(0)) ** 2).sum(1).var(ddof=1) / t**2 / len(c) for c, t in zip((x, y), traces, strict=True)]
    assert metric.se == pytest.approx(math.sqrt(sum(parts)), rel=1e-10)


def test_residual_energy_is_the_log_ratio_outside_the_axes(make_panel, shifted):
    panel = make_panel(*shifted, components=2)
    metric = _by_name(panel)["residual_energy"]
    outside = []
    for cloud in (panel.x, panel.y):
        rows = cloud.numpy()
        outside.append(((rows - rows @ panel.basis.axes.numpy().T @ panel.basis.axes.numpy()) ** 2).sum(1))
    optimism = panel.basis.residual_optimism
    assert metric.value + optimism == pytest.approx(math.log(outside[1].mean() / outside[0].mean()), rel=1e-10)
    assert metric.extra["optimism"] == optimism > 0
    parts = [part.var(ddof=1) / part.mean() ** 2 / len(part) for part in outside]
    assert metric.se == pytest.approx(math.sqrt(sum(parts)), rel=1e-10)
    for key, part, cloud in (("share_reference", outside[0], panel.x), ("share_current", outside[1], panel.y)):
        assert metric.extra[key] == pytest.approx(part.mean() / cloud.square().sum(1).mean().item(), rel=1e-10)


@pytest.mark.parametrize(("spectrum", "n"), [("white", 400), ("white", 100), ("falling", 400), ("low rank", 400)])
def test_residual_energy_of_fresh_rows_is_zero(make_panel, draw_spectrum, spectrum, n):
    """40 pairs of reference and fresh rows, 48 dimensions, 8 axes: the mean is within 3 standard errors of 0, and
    without the correction more than 10 above."""
    rng = np.random.default_rng(11)
    values, plain = [], []
    for _ in range(40):
        metric = _by_name(make_panel(draw_spectrum(spectrum, n, rng), draw_spectrum(spectrum, 400, rng), components=8))
        values.append(metric["residual_energy"].value)
        plain.append(values[-1] + metric["residual_energy"].extra["optimism"])
    assert abs(np.mean(values)) <= 3 * np.std(values, ddof=1) / math.sqrt(40)
    assert np.mean(plain) > 10 * np.std(plain, ddof=1) / math.sqrt(40)


def test_rows_of_the_reference_itself_are_not_corrected(make_panel, draw_spectrum):
    """40 parts of references against their rest, on axes fitted on both: both are fitted alike."""
    rng = np.random.default_rng(12)
    values = []
    for _ in range(40):
        rows = draw_spectrum("white", 400, rng)
        whole = make_panel(rows, rows, components=8)
        x, y = whole.x[:300], whole.x[300:]
        px, py = project.project(x, whole.basis), project.project(y, whole.basis)
        metric = _by_name(replace(whole, x=x, y=y, px=px, py=py, in_reference=True))["residual_energy"]
        assert metric.extra["optimism"] == 0.0
        values.append(metric.value)
    assert abs(np.mean(values)) <= 3 * np.std(values, ddof=1) / math.sqrt(40)


def test_a_reference_too_small_to_correct_says_so(make_panel):
    rng = np.random.default_rng(13)
    x, y = rng.normal(size=(12, 9)), rng.normal(size=(30, 9))
    metric = _by_name(make_panel(x, y, components=6))["residual_energy"]
    assert metric.extra["optimism"] is None
    assert metric.extra["note"] == "too few reference rows to correct for the axes' fit"
    assert math.isfinite(metric.value)
    assert _by_name(make_panel(x, y, components=5))["residual_energy"].extra["optimism"] > 0


@pytest.mark.parametrize("heavy", [False, True])
def test_intervals_cover(make_panel, heavy):
    """Normal and heavy-tailed rows: 1.96 standard errors cover the truth in about 95% of 300 runs."""
    rng = np.random.default_rng(1)
    covered = {"mean_shift": 0, "log_variance_ratio": 0, "residual_energy": 0}
    truth = {"log_variance_ratio": math.log(1.3**2), "residual_energy": math.log(1.3**2 + 0.5**2)}
    sd = np.array([10.0, 1.0, 1.0, 1.0])

    def draw(n):
        return rng.laplace(size=(n, 4)) / math.sqrt(2) if heavy else rng.normal(size=(n, 4))

    # along the wide axis as well, so that the shift is well above the noise of the means
    shift = np.array([5.0, 0.5, 0.5, 0.5])
    truth["mean_shift"] = (shift**2).sum() / (sd**2).sum()
    for _ in range(300):
        # one wide axis found for certain; the other three are the residual
        panel = make_panel(draw(500) * sd, draw(400) * sd * 1.3 + shift, components=1)
        for name, metric in _by_name(panel).items():
            covered[name] += abs(metric.value - truth[name]) <= 1.96 * metric.se
    for name, count in covered.items():
        assert 0.915 <= count / 300 <= 0.985, name


def test_axes_that_span_everything_leave_no_residual_and_say_so(make_panel):
    rng = np.random.default_rng(2)
    panel = make_panel(rng.normal(size=(50, 3)), rng.normal(size=(30, 3)) + 1, components=3, dtype=torch.float32)
    metric = _by_name(panel)["residual_energy"]
    assert metric.value == 0.0
    assert metric.se is None
    assert metric.extra["note"] == "current and reference numerically zero"


def test_a_current_window_that_leaves_the_references_plane_is_large_and_finite(make_panel):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 4)) * [1, 1, 0, 0]
    metric = _by_name(make_panel(x, rng.normal(size=(30, 4)), components=2))["residual_energy"]
    assert 20 < metric.value < 40
    assert metric.extra["note"] == "reference numerically zero"
    assert metric.extra["share_reference"] < 1e-12 < metric.extra["share_current"]


def test_chunks_do_not_change_the_result(make_panel, shifted, monkeypatch):
    panel = make_panel(*shifted)
    whole = _by_name(panel)
    monkeypatch.setattr(accumulate, "CHUNK", 6 * 7)
    for name, metric in _by_name(panel).items():
        assert metric.value == pytest.approx(whole[name].value, rel=1e-11)
        assert metric.se == pytest.approx(whole[name].se, rel=1e-11)


def test_standard_errors_add_up_rows_by_user(make_panel):
    """Rows that occur five times are as one: the error of copies is that of the originals."""
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(60, 6)), 1.3 * rng.normal(size=(40, 6)) + 0.2
    once = make_panel(x, y)
    copies = make_panel(np.tile(x, (5, 1)), np.tile(y, (5, 1)))
    copies = replace(copies, clusters=(torch.arange(300) % 60, torch.arange(200) % 40 + 60))
    names = ("log_variance_ratio", "residual_energy")
    plain, whole = ({m.name: m for m in moments.compute(panel)} for panel in (once, copies))
    for name in names:
        assert whole[name].se == pytest.approx(plain[name].se, rel=0.02), name
    by_row = {m.name: m for m in moments.compute(replace(copies, clusters=None))}
    for name in names:
        assert by_row[name].se == pytest.approx(plain[name].se / np.sqrt(5), rel=0.05), name


def test_mean_shift_of_users_is_unbiased(make_panel):
    """No drift, 40 and 20 users of ten rows, half of the variance between them."""
    rng = np.random.default_rng(10)
    found, by_row = [], []
    for _ in range(40):
        sides = []
        for users, first in ((40, 0), (20, 40)):
            codes = np.repeat(np.arange(users), 10)
            rows = rng.normal(size=(users, 12))[codes] + rng.normal(size=(10 * users, 12))
            sides.append((rows, torch.from_numpy(codes + first)))
        panel = make_panel(sides[0][0], sides[1][0])
        clustered = replace(panel, clusters=(sides[0][1], sides[1][1]))
        found.append(moments.compute(clustered)[0].value)
        by_row.append(moments.compute(panel)[0].value)
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert np.mean(by_row) > 5 * np.std(by_row) / np.sqrt(len(by_row))
    once = make_panel(sides[0][0], sides[1][0])
    each = replace(once, clusters=(torch.arange(400), torch.arange(400, 600)))
    assert moments.compute(each)[0].value == pytest.approx(moments.compute(once)[0].value, rel=1e-9)
