"""What the score is made of: parts that sum to it, planted clusters, levels without a change, segments by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cloud import weeks
from scipy.stats import false_discovery_control

from gpudrift import kernels
from gpudrift.attribution import clustering, groups
from gpudrift.attribution.attribute import AttributionInput, AttributionSettings, Side, attribute, components, inputs_of
from gpudrift.attribution.shares import count, p_values
from gpudrift.errors import ArgumentError
from gpudrift.metrics import accumulate, moments, wasserstein
from gpudrift.metrics.pairs import PairEstimate, estimate
from gpudrift.panel import Measured
from gpudrift.project import fit, mean_of, project
from gpudrift.records import Attribution, Basis, Cloud, PanelInput, Projection, Quality
from gpudrift.reference import Rows
from gpudrift.sampling import Limit, Sample, draw

DEFAULT = AttributionSettings()


def pairs(x: torch.Tensor, y: torch.Tensor, users: tuple[Any, Any] = (None, None)) -> PairEstimate:
    xp, yp = (kernels.prepare(v, precision="float32", clusters=u) for v, u in zip((x, y), users, strict=True))
    xx, yy = (kernels.self_sums(prepared, bandwidths=()) for prepared in (xp, yp))
    xy = kernels.cross_sums(xp, yp, bandwidths=())
    return estimate(xx, yy, xy, 0, clusters_x=users[0], clusters_y=users[1])


def build(
    x: np.ndarray,
    y: np.ndarray,
    *,
    windows: int = 4,
    ids: bool = True,
    segments: Mapping[str, tuple[Any, Any]] | None = None,
    users: tuple[np.ndarray, np.ndarray] | None = None,
    witness: bool = True,
) -> AttributionInput:
    """The input from bare rows. witness False: as if every row had none, where a test needs no score."""
    a, b = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))
    mean = mean_of(a)
    a, b = (a.double() - mean).float(), (b.double() - mean).float()
    basis, _ = fit(a, mean, components=min(3, x.shape[1]), niter=2, seed=0)
    codes = (None, None) if users is None else tuple(torch.from_numpy(u) for u in users)
    found = pairs(a, b, codes) if witness else None
    sides = []
    for k, rows in enumerate((a, b)):
        values = torch.zeros(len(rows), dtype=torch.float64) if found is None else (found.a, found.b)[k]
        names = pa.array([f"{'xy'[k]}{i}" for i in range(len(rows))]) if ids else None
        columns = {name: both[k] for name, both in (segments or {}).items()}
        sides.append(Side(rows, values, project(rows, basis), names, columns, codes[k]))
    offsets = tuple(len(x) * k // windows for k in range(windows + 1))
    return AttributionInput(sides[0], sides[1], offsets, basis)


def blobs(rng: np.random.Generator, n: int, centres: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    return centres[rng.choice(len(centres), n, p=shares)] + rng.normal(size=(n, centres.shape[1]))


def planted(
    share: float, *, n: int = 4800, m: int = 400, d: int = 24, away: float = 12, seed: int = 0
) -> tuple[AttributionInput, np.ndarray]:
    """One cloud, and in the current rows a second one of this share; which rows it is."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    new = np.sort(rng.choice(m, round(share * m), replace=False))
    y[new, 0] += away
    return build(x, y, windows=12), new


def assert_sums(found: Attribution) -> None:
    assert math.fsum(c.contribution for c in found.clusters) == pytest.approx(found.score, abs=1e-9)
    for name in {s.column for s in found.segments}:
        parts = math.fsum(s.contribution for s in found.segments if s.column == name)
        assert parts == pytest.approx(found.score, abs=1e-9)


# contributions


@settings(max_examples=25)
@given(st.integers(4, 60), st.integers(4, 40), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_parts_sum_to_the_score(n: int, m: int, d: int, clusters: int, by_user: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = {
        name: tuple(pa.array(rng.choice(["a", "b", None, "c"], size)) for size in (n, m)) for name in ("kind", "team")
    }
    users = (np.arange(n) // 2, np.arange(m) // 2 + n // 3) if by_user else None
    inputs = build(rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5, segments=segments, users=users)
    found = attribute(inputs, AttributionSettings(clusters=clusters, min_rows=3))
    estimate_ = pairs(inputs.reference.rows, inputs.current.rows, (inputs.reference.users, inputs.current.users))
    assert found.score == pytest.approx(estimate_.value, abs=1e-12)
    assert_sums(found)
    assert sum(c.rows for c in found.clusters) == m
    assert sum(c.reference_rows for c in found.clusters) == n
    assert sum(c.share for c in found.clusters) == pytest.approx(1)


def test_a_cluster_is_charged_for_its_own_rows() -> None:
    inputs, new = planted(0.05)
    found = attribute(inputs, AttributionSettings(clusters=5))
    (own,) = [c for c in found.clusters if c.kind == "new"]
    assert own.contribution == pytest.approx(float(inputs.current.witness[new].sum()) / len(inputs.current), rel=1e-9)
    assert own.witness == pytest.approx(float(inputs.current.witness[new].mean()), rel=1e-9)


# planted clusters


@pytest.mark.parametrize(("share", "m", "away"), [(0.02, 400, 12), (0.005, 2000, 25)])
def test_the_most_drifted_rows_are_the_planted_ones(share: float, m: int, away: float) -> None:
    inputs, new = planted(share, n=2 * m, m=m, away=away)
    table = attribute(inputs, AttributionSettings(rows=len(new))).rows
    assert sorted(table["id"].to_pylist()) == sorted(f"y{i}" for i in new)


@pytest.mark.parametrize("seed", range(3))
def test_a_new_cluster_of_two_per_cent_is_one_cluster_by_itself(seed: int) -> None:
    """The reference has twelve times the rows: without weights its own clusters would take all centroids."""
    inputs, new = planted(0.025, seed=seed)
    found = attribute(inputs, DEFAULT)
    assert len(found.clusters) == 20
    (own,) = [c for c in found.clusters if c.kind != "same"]
    assert own.kind == "new"
    assert (own.rows, own.reference_rows) == (len(new), 0)
    assert set(own.ids) < {f"y{i}" for i in new}
    assert own.reference_ids == ()
    assert own.q < 0.01
    assert own.p_usual < 0.01


def test_a_cluster_that_is_no_longer_there_is_gone() -> None:
    inputs, _ = planted(0.05, n=1000, m=1000)
    back = replace(inputs, reference=inputs.current, current=inputs.reference, offsets=tuple(range(0, 1001, 100)))
    found = attribute(back, DEFAULT)
    (own,) = [c for c in found.clusters if c.kind != "same"]
    assert (own.kind, own.rows, own.reference_rows) == ("gone", 0, 50)
    assert own.ids == ()
    assert len(own.reference_ids) == 5
    assert math.isnan(own.witness)


def test_reweighted_clusters_grow_and_shrink() -> None:
    rng = np.random.default_rng(1)
    centres = 12 * np.eye(3, 8)
    x = blobs(rng, 2400, centres, np.array([0.5, 0.3, 0.2]))
    y = blobs(rng, 800, centres, np.array([0.3, 0.3, 0.4]))
    found = attribute(build(x, y, windows=8), AttributionSettings(clusters=3))
    kinds = {c.kind: c for c in found.clusters}
    assert set(kinds) == {"grown", "same", "shrunk"}
    assert kinds["grown"].share == pytest.approx(0.4, abs=0.06)
    assert kinds["grown"].reference_share == pytest.approx(0.2, abs=0.04)


def test_a_cluster_that_comes_and_goes_every_week_is_no_news() -> None:
    rng = np.random.default_rng(2)
    centres = 12 * np.eye(2, 8)
    shares = [0.02, 0.35, 0.1, 0.3, 0.05, 0.25, 0.15, 0.4]
    x = np.concatenate([blobs(rng, 200, centres, np.array([1 - s, s])) for s in shares])
    y = blobs(rng, 400, centres, np.array([0.65, 0.35]))
    found = attribute(build(x, y, windows=8), AttributionSettings(clusters=2))
    assert all(c.q < 1e-3 for c in found.clusters)  # by sampling alone it would be
    assert [c.kind for c in found.clusters] == ["same", "same"]
    assert all(c.usual_sd > 0.1 for c in found.clusters)


# levels


def cluster_p(inputs: AttributionInput, tested: AttributionSettings) -> list[float]:
    """The clusters' p alone."""
    windows = np.repeat(np.arange(len(inputs.offsets) - 1), np.diff(inputs.offsets))
    users = None
    if inputs.reference.users is not None and inputs.current.users is not None:
        users = (inputs.reference.users.numpy(), inputs.current.users.numpy())
    return [c.p for c in groups.cluster_shifts(inputs, tested, windows, users, {})[0]]


def bare(x: np.ndarray, y: np.ndarray, users: tuple[np.ndarray, np.ndarray] | None = None) -> AttributionInput:
    """Rows without a score and without components."""
    sides = []
    for k, rows in enumerate((x, y)):
        n, codes = len(rows), None if users is None else torch.from_numpy(users[k])
        nothing = Projection(torch.zeros(n, 0), torch.zeros(n))
        sides.append(Side(torch.from_numpy(rows.astype(np.float32)), torch.zeros(n), nothing, users=codes))
    basis = Basis(torch.zeros(x.shape[1]), torch.zeros(0, x.shape[1]), torch.zeros(0), 1.0)
    return AttributionInput(sides[0], sides[1], (0, len(x) // 2, len(x)), basis)


def test_without_a_change_few_clusters_seem_changed() -> None:
    """Of 480 tests; .05 +- .01."""
    tested, p = AttributionSettings(clusters=8), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p += cluster_p(bare(rng.normal(size=(600, 4)), rng.normal(size=(200, 4))), tested)
    assert len(p) == 480
    assert 0.025 < np.mean(np.array(p) < 0.05) < 0.075


def test_clusters_tested_on_the_rows_they_were_fitted_on_would_seem_changed() -> None:
    """Why there are halves: the few rows of a window weigh as much as the reference, so centroids sit on them."""
    wrong, right = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        inputs = bare(rng.normal(size=(1200, 50)), rng.normal(size=(50, 50)))
        x, y = inputs.reference.rows, inputs.current.rows
        weights = np.r_[np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))]
        centroids = clustering.fit(torch.cat([x, y]), weights, 10, seed=0).centroids
        of_x, of_y = clustering.assign(x, centroids)[0], clustering.assign(y, centroids)[0]
        wrong += p_values(count(of_x, of_y, len(centroids), np.zeros_like(of_x), 1))
        right += cluster_p(inputs, AttributionSettings(clusters=10, min_rows=5))
    assert len(right) == 100
    assert np.mean(np.array(wrong) < 0.05) > 0.2
    assert np.mean(np.array(right) < 0.05) < 0.07


def by_users(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Users of six rows that stay near a point of their own; no change between the windows."""
    rng = np.random.default_rng(seed)
    parts, codes = [], []
    for first, users in ((0, 120), (1000, 40)):
        parts.append(np.repeat(2 * rng.normal(size=(users, 4)), 6, axis=0) + 0.4 * rng.normal(size=(6 * users, 4)))
        codes.append(first + np.repeat(np.arange(users), 6))
    return parts[0], parts[1], (codes[0], codes[1])


def test_rows_of_users_seem_changed_no_more_often_than_rows() -> None:
    tested, by_user, by_row = AttributionSettings(clusters=6), [], []
    for seed in range(30):
        x, y, users = by_users(seed)
        by_user += cluster_p(bare(x, y, users), tested)
        by_row += cluster_p(bare(x, y), tested)
    assert np.mean(np.array(by_row) < 0.05) > 0.18
    assert np.mean(np.array(by_user) < 0.05) < 0.075


def test_no_user_is_in_both_halves() -> None:
    rng = np.random.default_rng(3)
    users = rng.integers(60, size=300), rng.integers(40, 90, size=120)
    fit_x, fit_y = groups._halves(300, 120, users, seed=0)
    fitted = set(users[0][fit_x]) | set(users[1][fit_y])
    assert fitted.isdisjoint(set(users[0][~fit_x]) | set(users[1][~fit_y]))
    assert len(fitted & set(users[1])) == (len(set(users[1])) + 1) // 2  # as many of the window's on either side


# segments


def column(*counts: tuple[Any, int]) -> pa.Array:
    return pa.array([value for value, size in counts for _ in range(size)])


def by_value(found: Attribution, name: str = "kind") -> dict[str, Any]:
    named = {"others" if s.pooled else s.value: s for s in found.segments if s.column == name}
    assert len(named) == sum(s.column == name for s in found.segments)
    return named


def test_segments_by_hand() -> None:
    rng = np.random.default_rng(0)
    old = column(("a", 300), ("b", 200), ("left", 80), ("r1", 5), ("r2", 9), (None, 6))
    now = column(("a", 150), ("b", 40), ("fresh", 60), ("r2", 1), ("r3", 4), (None, 45))
    order = rng.permutation(600)  # or one window would have all of a value
    x = rng.normal(size=(600, 3))
    inputs = build(x, rng.normal(size=(300, 3)) + 0.3, segments={"kind": (old.take(pa.array(order)), now)})
    found = by_value(attribute(inputs, DEFAULT))
    assert {value: s.kind for value, s in found.items()} == {
        "a": "same",
        "b": "shrunk",
        "fresh": "new",
        "left": "gone",
        None: "new",  # 1% before, 15% now
        "others": "same",
    }
    assert (found["others"].pooled, found["others"].rows, found["others"].reference_rows) == (3, 5, 14)
    assert math.isnan(found["others"].p)  # 19 rows
    assert math.isnan(found["others"].q)
    assert (found["a"].share, found["a"].reference_share) == (0.5, 0.5)
    assert found["a"].p == pytest.approx(1.0, abs=1e-9)
    tested = [s for s in found.values() if not math.isnan(s.p)]
    assert [s.q for s in tested] == pytest.approx(list(false_discovery_control([s.p for s in tested])))
    held = [value == "b" for value in now.to_pylist()]
    assert found["b"].witness == pytest.approx(float(inputs.current.witness[torch.tensor(held)].mean()))
    assert math.isnan(found["left"].witness)


def test_the_false_discovery_rate_is_over_all_columns() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "kind": (column(("a", 100), ("b", 100)), column(("a", 30), ("b", 70))),
        "team": (column(("t", 100), ("u", 100)), column(("t", 50), ("u", 50))),
    }
    found = attribute(build(rng.normal(size=(200, 2)), rng.normal(size=(100, 2)), segments=columns), DEFAULT).segments
    assert [s.q for s in found] == pytest.approx(list(false_discovery_control([s.p for s in found])))
    assert_sums(attribute(build(rng.normal(size=(200, 2)), rng.normal(size=(100, 2)), segments=columns), DEFAULT))


def test_a_single_rare_value_keeps_its_name() -> None:
    rng = np.random.default_rng(0)
    columns = {"kind": (column(("a", 96), ("rare", 4)), column(("a", 50)))}
    found = by_value(attribute(build(rng.normal(size=(100, 2)), rng.normal(size=(50, 2)), segments=columns), DEFAULT))
    assert set(found) == {"a", "rare"}
    assert math.isnan(found["rare"].p)
    assert found["rare"].kind == "same"


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 1, None]),
        pa.array([True, False, True, None]),
        pa.array(["a", "b", "a", None]).dictionary_encode(),
        pa.array([b"\x00", b"\xff", b"\x00", None], pa.large_binary()),
        pa.array([["a"], ["b", "c"], ["a"], None]),
        pa.array([0, 86_400, 0, None], pa.timestamp("s")),
        pa.chunked_array([["a", "b"], ["a", None]]),
    ],
    ids=lambda values: str(values.type),
)
def test_columns_of_any_type(values: Any) -> None:
    rng = np.random.default_rng(0)
    inputs = build(rng.normal(size=(4, 2)), rng.normal(size=(4, 2)), windows=2, segments={"kind": (values, values)})
    found = attribute(inputs, AttributionSettings(min_rows=1))
    assert sorted(s.rows for s in found.segments) == [1, 1, 2]
    assert sum(s.value is None for s in found.segments) == 1
    assert found.rows["segment_kind"].null_count == 1
    assert_sums(found)


def test_a_column_of_one_side_is_left_out() -> None:
    inputs = build(np.eye(4), np.eye(4)[::-1], windows=1, segments={"kind": (column(("a", 4)), column(("a", 4)))})
    alone = replace(inputs, reference=replace(inputs.reference, segments={}))
    found = attribute(alone, DEFAULT)
    assert found.segments == ()
    assert "segment_kind" in found.rows.column_names


def test_what_sets_a_cluster_apart_is_its_label() -> None:
    inputs, new = planted(0.05, n=1200)
    own = np.isin(np.arange(400), new)
    kinds = pa.array(np.where(own, "fresh", "common"))
    both = pa.array(["common"] * 1200)
    named = replace(
        inputs,
        reference=replace(inputs.reference, segments={"kind": both}),
        current=replace(inputs.current, segments={"kind": kinds}),
    )
    found = attribute(named, DEFAULT)
    labels = {c.index: c.labels for c in found.clusters}
    assert labels[0] == (("kind=fresh", 1.0),)
    assert all(c.labels == () for c in found.clusters[1:])  # nearly all rows are common: that tells nothing
    assert found.rows["cluster_label"][0].as_py() == "kind=fresh"


# components


def test_components_are_those_of_the_panel() -> None:
    rng = np.random.default_rng(5)
    inputs = build(rng.normal(size=(300, 6)) * [3, 2, 1, 1, 1, 1], rng.normal(size=(80, 6)) * 1.5 + 0.4)
    x, y, basis = inputs.reference, inputs.current, inputs.basis
    panel = PanelInput(
        x.rows, y.rows, x.projection, y.projection, basis, torch.eye(6), torch.zeros(2, 3), 2, 4, 0
    )  # fmt: skip
    panel_metrics = {m.name: m for m in [*wasserstein.compute(panel), *moments.compute(panel)]}
    found = components(replace(inputs, metrics=panel_metrics))
    assert [c.component for c in found] == [1, 2, 3, None]
    for k in (1, 2):
        extra = panel_metrics[f"wasserstein1_pc{k}"].extra
        assert found[k - 1].shift == pytest.approx(extra["mean_shift_sd"], rel=1e-12)
        assert found[k - 1].log_variance_ratio == pytest.approx(extra["log_variance_ratio"], rel=1e-12)
        assert found[k - 1].wasserstein == extra["scaled"]
    assert found[2].wasserstein is None
    assert found[3].log_variance_ratio == pytest.approx(panel_metrics["residual_energy"].value, rel=1e-12)
    assert (found[3].shift, found[3].shift_se, found[3].wasserstein) == (None, None, None)
    sx, sy = x.projection.scores[:, 0].numpy(), y.projection.scores[:, 0].numpy()
    se = math.sqrt(sx.var(ddof=1) / 300 + sy.var(ddof=1) / 80) / math.sqrt(float(basis.variances[0]))
    assert found[0].shift_se == pytest.approx(se, rel=1e-9)
    inside = replace(panel, in_reference=True)
    fitted = {m.name: m for m in [*wasserstein.compute(inside), *moments.compute(inside)]}
    own = components(replace(inputs, metrics=fitted, in_reference=True))
    assert own[0].log_variance_ratio == pytest.approx(fitted["wasserstein1_pc1"].extra["log_variance_ratio"])
    assert own[3].log_variance_ratio == pytest.approx(fitted["residual_energy"].value)


def test_the_error_of_a_shift_adds_up_rows_by_user() -> None:
    x, y, users = by_users(0)
    grouped = components(build(x, y, users=users))[0]
    alone = components(build(x, y))[0]
    one_each = components(build(x, y, users=(np.arange(len(x)), 5000 + np.arange(len(y)))))[0]
    assert grouped.shift == alone.shift
    assert one_each.shift_se == pytest.approx(alone.shift_se, rel=1e-9)
    assert grouped.shift_se > 2 * alone.shift_se  # six rows that agree: nearly sqrt(6)


# the table of rows


def test_the_table_of_rows() -> None:
    rng = np.random.default_rng(7)
    columns = {"id": (column(("p", 60)), column(("p", 12), ("q", 18)))}  # named like a column of the table
    inputs = build(rng.normal(size=(60, 4)), rng.normal(size=(30, 4)) + 1, segments=columns)
    found = attribute(inputs, AttributionSettings(rows=10, min_rows=10))
    table = found.rows.to_pydict()
    witness = inputs.current.witness.numpy()
    order = np.argsort(-witness, kind="stable")[:10]
    assert table["rank"] == list(range(1, 11))
    assert table["id"] == [f"y{i}" for i in order]
    assert table["witness"] == list(witness[order])
    assert table["rank_share"] == pytest.approx([k / 30 for k in range(1, 11)])
    distances = np.linalg.norm(
        inputs.current.rows.numpy()[order][:, None].astype(float) - inputs.reference.rows.numpy()[None], axis=-1
    )
    assert table["nearest_reference_id"] == [f"x{i}" for i in distances.argmin(1)]
    assert table["nearest_reference_distance"] == pytest.approx(list(distances.min(1)), rel=1e-6)
    assert table["segment_id"] == [("p" if i < 12 else "q") for i in order]
    assert table["cluster_kind"] == [found.clusters[g].kind for g in table["cluster"]]
    assert found.plane.shape == (30, 2)
    np.testing.assert_array_equal(found.witness, witness)
    np.testing.assert_array_equal(found.plane, inputs.current.projection.scores[:, :2])


def test_the_nearest_reference_row_is_looked_up_for_the_first_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    inputs = build(rng.normal(size=(50, 3)), rng.normal(size=(30, 3)))
    whole = attribute(inputs, DEFAULT).rows
    monkeypatch.setattr("gpudrift.attribution.attribute.NEAREST", 4)
    part = attribute(inputs, DEFAULT).rows
    for name in ("nearest_reference_id", "nearest_reference_distance"):
        assert part[name].to_pylist() == whole[name].to_pylist()[:4] + [None] * 26
    assert part["id"] == whole["id"]


def test_the_rows_nearest_to_its_centroid_are_named() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(200, 3)), rng.normal(size=(60, 3))
    inputs = build(x, y)
    (found,) = attribute(inputs, AttributionSettings(clusters=1)).clusters
    fitted = inputs.reference.rows[::2].double().mean(0) / 2 + inputs.current.rows[::2].double().mean(0) / 2
    order = (inputs.current.rows.double() - fitted).norm(dim=1).argsort()[:5]
    assert found.ids == tuple(f"y{i}" for i in order.tolist())


def test_without_ids_rows_have_no_names_and_all_rows_are_few() -> None:
    rng = np.random.default_rng(7)
    found = attribute(build(rng.normal(size=(40, 3)), rng.normal(size=(8, 3)), ids=False), DEFAULT)
    assert found.rows.num_rows == 8
    assert found.rows["id"].null_count == found.rows["nearest_reference_id"].null_count == 8
    assert all(c.ids == c.reference_ids == () for c in found.clusters)


def test_equal_rows_come_in_the_order_of_the_window() -> None:
    y = np.concatenate([np.zeros((5, 2)), np.ones((5, 2))])
    found = attribute(build(np.random.default_rng(0).normal(size=(30, 2)), y, witness=False), DEFAULT)
    assert found.rows["id"].to_pylist() == [f"y{i}" for i in range(10)]


# what leaves little choice


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 2), (2, 40), (50, 7), (400, 39)])
def test_a_handful_of_rows_still_has_an_answer(n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    found = attribute(build(rng.normal(size=(n, 3)), rng.normal(size=(m, 3)), windows=2), DEFAULT)
    assert len(found.clusters) == max(1, min(n, m) // DEFAULT.min_rows)
    assert_sums(found)
    assert all(c.kind == "same" for c in found.clusters)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_that_are_all_the_same(value: float) -> None:
    found = attribute(build(np.zeros((60, 3)), np.full((60, 3), value), windows=3), DEFAULT)
    assert len(found.clusters) == (1 if value == 0 else 2)
    assert_sums(found)
    kinds = sorted(c.kind for c in found.clusters)
    assert kinds == (["same"] if value == 0 else ["gone", "new"])


def test_copies_of_a_few_rows() -> None:
    rng = np.random.default_rng(1)
    few = rng.normal(size=(4, 3))
    found = attribute(build(few[rng.integers(4, size=400)], few[rng.integers(4, size=200)]), DEFAULT)
    assert len(found.clusters) == 4
    assert_sums(found)


def test_one_window_knows_no_usual_movement_and_sampling_decides() -> None:
    inputs, _ = planted(0.05, n=1200)
    found = attribute(replace(inputs, offsets=(0, 1200)), DEFAULT)
    assert all(math.isnan(c.p_usual) and math.isnan(c.usual_sd) for c in found.clusters)
    assert found.clusters[0].kind == "new"


def test_a_window_of_one_user_is_not_tested() -> None:
    rng = np.random.default_rng(1)
    users = np.arange(200) // 2, np.full(100, 999)
    found = attribute(
        build(rng.normal(size=(200, 3)), rng.normal(size=(100, 3)) + 3, users=users, witness=False), DEFAULT
    )
    assert all(math.isnan(c.p) and c.kind == "same" for c in found.clusters)


def test_the_same_again_and_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = planted(0.05, n=1200)
    first, again = attribute(inputs, DEFAULT), attribute(inputs, DEFAULT)
    assert first.clusters == again.clusters
    assert first.rows == again.rows
    monkeypatch.setattr(accumulate, "CHUNK", 24 * 37)
    blocks = attribute(inputs, DEFAULT)
    assert [(c.rows, c.reference_rows, c.p, c.ids) for c in blocks.clusters] == [
        (c.rows, c.reference_rows, c.p, c.ids) for c in first.clusters
    ]
    assert blocks.rows.drop_columns("nearest_reference_distance") == first.rows.drop_columns(
        "nearest_reference_distance"
    )


def test_fitting_on_a_sample_takes_rows_of_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, new = planted(0.05, n=1200, m=1200)
    monkeypatch.setattr(groups, "FIT_ROWS", 200)
    found = attribute(inputs, DEFAULT)
    assert (found.clusters[0].kind, found.clusters[0].rows) == ("new", len(new))
    assert_sums(found)


# input


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"witness": torch.zeros(3)}, "witness"),
        ({"ids": pa.array(["a"])}, "ids"),
        ({"users": torch.zeros(2, dtype=torch.int64)}, "users"),
        ({"segments": {"kind": pa.array(["a"])}}, "segments[kind]"),
    ],
)
def test_columns_of_another_length_are_refused(change: dict[str, Any], field: str) -> None:
    side = build(np.eye(4), np.eye(4), windows=1).current
    with pytest.raises(ArgumentError) as caught:
        replace(side, **change)
    assert field in str(caught.value)


@pytest.mark.parametrize("offsets", [(), (0,), (0, 3), (1, 4), (0, 3, 2, 4)])
def test_offsets_of_other_rows_are_refused(offsets: tuple[int, ...]) -> None:
    inputs = build(np.eye(4), np.eye(4), windows=1)
    with pytest.raises(ArgumentError, match="windows"):
        replace(inputs, offsets=offsets)


def test_one_row_and_users_of_one_side_are_refused() -> None:
    inputs = build(np.eye(4), np.eye(4), windows=1)
    one = Side(torch.zeros(1, 4), torch.zeros(1), project(torch.zeros(1, 4), inputs.basis))
    with pytest.raises(ArgumentError, match="two rows"):
        replace(inputs, current=one)
    with pytest.raises(ArgumentError, match="one side"):
        replace(inputs, current=replace(inputs.current, users=torch.arange(4)))


# from what scoring holds


def reference_rows(sample: Sample, users: bool) -> tuple[Rows, torch.Tensor]:
    rng = np.random.default_rng(9)
    rows = torch.from_numpy(rng.normal(size=(90, 4)).astype(np.float32))
    codes = torch.arange(90) // 2
    basis, _ = fit(rows, torch.zeros(4, dtype=torch.float64), components=2, niter=2, seed=0)
    prepared = kernels.prepare(sample.of(rows), precision="float32", clusters=sample.of(codes) if users else None)
    columns = {"kind": pa.array(rng.choice(["a", "b"], 90))}
    ids = pa.array([f"x{i}" for i in range(90)])
    return Rows(rows, prepared, project(rows, basis), sample, ids, (), columns), codes


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("place", [None, 1])
@pytest.mark.parametrize("part", [False, True])
def test_the_input_is_of_the_rows_in_pairs(users: bool, place: int | None, part: bool) -> None:
    windows = (0, 30, 60, 90)
    taken = torch.tensor([*range(0, 30, 2), *range(30, 60, 3), *range(60, 90, 2)])
    sample = Sample(taken, (0, 15, 25, 40)) if part else Sample(None, windows)
    rows, codes = reference_rows(sample, users)
    basis, _ = fit(rows.centred, torch.zeros(4, dtype=torch.float64), components=2, niter=2, seed=0)
    places = taken if part else torch.arange(90)
    kept = places[(places < 30) | (places >= 60)] if place == 1 else places
    rng = np.random.default_rng(10)
    here = torch.from_numpy(rng.normal(size=(24, 4)).astype(np.float32))
    own = 500 + torch.arange(24) // 2
    cloud = Cloud(
        here,
        weeks(0, 1),
        (0, 24),
        (Quality(24, 24, {}, {}),),
        ids=pa.array([f"y{i}" for i in range(24)]),
        segments={"kind": pa.array(rng.choice(["a", "b"], 24))},
    )
    drawn = draw(cloud, Limit(12, "a test")) if part else Sample(None, (0, 24))
    in_pairs = drawn.of(here)
    both = (codes[kept], drawn.of(own)) if users else (None, None)
    energy = pairs(rows.centred[kept], in_pairs, both)
    measured = Measured({}, energy, project(rows.centred[kept], basis), project(here, basis))
    found = inputs_of(rows, windows, cloud, drawn, measured, basis, place=place, users=own if users else None)
    assert found.score == pytest.approx(energy.value, abs=1e-12)
    assert torch.equal(found.reference.rows, rows.centred[kept])
    assert torch.equal(found.current.rows, in_pairs)
    assert found.reference.ids.to_pylist() == [f"x{i}" for i in kept.tolist()]
    assert found.current.segments["kind"].to_pylist() == cloud.segments["kind"].take(
        pa.array(drawn.of(torch.arange(24)).numpy())
    ).to_pylist()  # fmt: skip
    assert torch.equal(found.reference.projection.scores, project(rows.centred, basis).scores[kept])
    held = [0, 15, 25, 40] if part else [0, 30, 60, 90]
    if place == 1:
        held = [0, held[1], held[1] + held[3] - held[2]]
    assert list(found.offsets) == held
    assert found.in_reference == (place is not None)
    assert (found.reference.users is not None) == users
    if users:
        assert torch.equal(found.reference.users, codes[kept])
        assert torch.equal(found.current.users, drawn.of(own))
    assert_sums(attribute(found, AttributionSettings(min_rows=4)))
