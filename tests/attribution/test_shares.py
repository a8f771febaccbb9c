"""Changes of shares: exact tails against scipy, the design effect from its definition, levels by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom
from scipy.stats import t as student_t

from gpudrift.attribution.shares import Counts, count, p_values, usual


def pair(k_x: int, n: int, k_y: int, m: int, design: float = 1.0) -> Counts:
    """Group 0 of two; one reference window."""
    held = np.array([k_x, n - k_x]), np.array([k_y, m - k_y])
    return Counts(held[0], held[1], n, m, held[0][None], np.full(2, design))


@given(st.data(), st.integers(1, 300), st.integers(1, 80))
def test_p_is_the_mid_p_of_the_hypergeometric_distribution(data: st.DataObject, n: int, m: int) -> None:
    k_x, k_y = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    found = p_values(pair(k_x, n, k_y, m))[0]
    if k_x + k_y == 0:
        assert math.isnan(found)
        return
    exact = hypergeom(n + m, k_x + k_y, m)
    half = exact.pmf(k_y) / 2
    tail = min(exact.cdf(k_y) - half, exact.sf(k_y - 1) - half)
    assert found == pytest.approx(min(1.0, 2 * tail), rel=1e-7, abs=1e-12)


def test_p_of_many_rows_is_that_of_the_normal_distribution() -> None:
    n, m, share = 1_500_000, 800_000, 0.3
    k_x, k_y = round(share * n), round((share + 0.0015) * m)
    pooled = (k_x + k_y) / (n + m)
    z = (k_y / m - k_x / n) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    assert p_values(pair(k_x, n, k_y, m))[0] == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0)])
def test_a_side_without_rows_is_not_tested(n: int, m: int) -> None:
    assert math.isnan(p_values(pair(n, n, m, m))[0])


def grouped(rng: np.random.Generator, users: int, each: int, icc: float, shares: np.ndarray) -> np.ndarray:
    """Groups of rows, ``each`` a user: by chance ``icc`` the user's own, else drawn anew."""
    own = np.repeat(rng.choice(len(shares), users, p=shares), each)
    return np.where(rng.random(len(own)) < math.sqrt(icc), own, rng.choice(len(shares), len(own), p=shares))


def levels(icc: float, each: int, trials: int = 150) -> tuple[float, float]:
    """Share of p < .05 without a change: by user, and by row."""
    rng = np.random.default_rng(5)
    by_user, by_row = [], []
    for _ in range(trials):
        shares = rng.dirichlet(np.full(12, 2.0))
        x, y = grouped(rng, 300, each, icc, shares), grouped(rng, 60, each, icc, shares)
        users = np.repeat(np.arange(300), each), 1000 + np.repeat(np.arange(60), each)
        by_user += p_values(count(x, y, 12, np.zeros_like(x), 1, users))
        by_row += p_values(count(x, y, 12, np.zeros_like(x), 1))
    return float(np.mean(np.array(by_user) < 0.05)), float(np.mean(np.array(by_row) < 0.05))


def test_independent_rows_are_called_changed_as_often_as_said() -> None:
    """Of 1,800 tests; .05 +- .005."""
    by_user, by_row = levels(icc=0.0, each=1)
    assert 0.035 < by_row < 0.06
    assert by_user == by_row  # users of one row each are rows


def test_rows_of_one_user_are_no_independent_rows() -> None:
    by_user, by_row = levels(icc=0.5, each=5)
    assert by_row > 0.2
    assert 0.02 < by_user < 0.07


def test_the_design_effect_is_its_definition() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(4, size=90), rng.integers(4, size=40)
    users_x, users_y = rng.integers(20, size=90) * 7, rng.integers(10, 28, size=40) * 7  # some on both sides
    found = count(x, y, 4, np.zeros_like(x), 1, (users_x, users_y)).design
    fewest = min(len(set(users_x)), len(set(users_y)))
    for g in range(4):
        in_x, in_y = (x == g) * 1.0, (y == g) * 1.0
        psi = [
            (in_y - in_y.mean())[users_y == u].sum() / 40 - (in_x - in_x.mean())[users_x == u].sum() / 90
            for u in set(users_x) | set(users_y)
        ]
        by_row = in_x.mean() * (1 - in_x.mean()) / 90 + in_y.mean() * (1 - in_y.mean()) / 40
        assert found[g] == pytest.approx(max(1.0, np.square(psi).sum() * fewest / (fewest - 1) / (by_row * 40 / 39)))


def test_copies_of_rows_by_the_same_user_add_nothing() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(3, size=200), rng.integers(3, size=80)
    tripled = count(
        np.repeat(x, 3), np.repeat(y, 3), 3, np.zeros(600, dtype=int), 1,
        (np.repeat(np.arange(200), 3), np.repeat(np.arange(200, 280), 3)),
    )  # fmt: skip
    assert tripled.design == pytest.approx(3.0, rel=0.02)
    assert p_values(tripled) == pytest.approx(p_values(count(x, y, 3, np.zeros(200, dtype=int), 1)), rel=0.15)


def test_thirty_rows_of_one_user_are_no_news() -> None:
    x = np.zeros(2000, dtype=int)
    y = np.r_[np.zeros(200, dtype=int), np.ones(30, dtype=int)]
    users = np.arange(2000), 5000 + np.r_[np.arange(200), np.full(30, 999)]
    assert p_values(count(x, y, 2, x, 1))[1] < 1e-20
    assert p_values(count(x, y, 2, x, 1, users))[1] > 0.05


@pytest.mark.parametrize("side", [0, 1])
def test_a_single_user_on_a_side_cannot_be_tested(side: int) -> None:
    users = [np.arange(20), np.arange(20, 40)]
    users[side] = np.full(20, 99)
    labels = np.arange(20) % 2
    assert np.isnan(p_values(count(labels, labels, 2, np.zeros(20, dtype=int), 1, (users[0], users[1])))).all()


def test_a_side_of_one_group_counts_its_users() -> None:
    """No variance between rows tells nothing of users; their number does."""
    x, y = np.zeros(40, dtype=int), np.ones(40, dtype=int)
    users = np.repeat(np.arange(10), 4)
    found = count(x, y, 2, x, 1, (users, 100 + users))
    assert found.design == pytest.approx([4.0, 4.0])
    assert p_values(found) == pytest.approx(p_values(pair(0, 10, 10, 10)))


def windows(shares: list[float], size: int, k_y: int, m: int) -> Counts:
    held = np.array([round(share * size) for share in shares])
    by_window = np.stack([held, size - held], axis=1)
    total = by_window.sum(0)
    return Counts(total, np.array([k_y, m - k_y]), size * len(shares), m, by_window, np.ones(2))


def test_the_usual_movement_is_a_t_prediction_from_the_windows() -> None:
    shares = [0.1, 0.3, 0.15, 0.25, 0.2, 0.32, 0.08, 0.21]
    counts = windows(shares, 10_000, 800, 2000)
    sd, p = usual(counts, [0.0, 0.0])
    pooled = (counts.reference[0] + 0.5) / 80_001
    variance = np.var(shares, ddof=1) - pooled * (1 - pooled) / 10_000 + pooled * (1 - pooled) / 2000
    assert sd[0] == pytest.approx(math.sqrt(variance), rel=1e-9)
    t = (0.4 - np.mean(shares)) / math.sqrt(variance * (1 + 1 / 8))
    assert p[0] == pytest.approx(2 * student_t.sf(t, 7), rel=1e-9)


def test_windows_that_all_agree_leave_the_sampling_of_the_current_rows() -> None:
    sd, _ = usual(windows([0.2] * 6, 500, 20, 100), [0.0, 0.0])
    assert sd[0] == pytest.approx(math.sqrt(0.2 * 0.8 / 100), rel=1e-3)


def test_no_change_at_all_is_a_usual_change() -> None:
    sd, p = usual(windows([0.0] * 12, 500, 1, 100), [0.4, math.nan])
    assert p[0] == 0.4  # one row where there was none: t alone would say news
    assert sd[0] > 0
    assert not math.isnan(p[1])


@pytest.mark.parametrize("shares", [[0.2], []])
def test_one_window_knows_no_usual_movement(shares: list[float]) -> None:
    counts = windows(shares, 100, 5, 50) if shares else pair(3, 10, 4, 10)
    assert np.isnan(usual(counts, [0.5, 0.5])).all()


def test_windows_without_rows_are_left_out() -> None:
    filled = windows([0.1, 0.2, 0.3], 100, 5, 50)
    gaps = Counts(
        filled.reference, filled.current, 300, 50, np.r_[filled.windows, np.zeros((2, 2), dtype=int)], np.ones(2)
    )
    assert usual(gaps, [0.0, 0.0]) == usual(filled, [0.0, 0.0])


def test_counts_are_by_group_and_window() -> None:
    found = count(np.array([0, 1, 1, 2]), np.array([1, 1]), 3, np.array([0, 0, 1, 1]), 2)
    assert found.windows.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert found.shares.tolist() == [0, 1, 0]
    assert found.reference_shares.tolist() == [0.25, 0.5, 0.25]
