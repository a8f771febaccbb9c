"""Segments scored by themselves: each as its rows give it, one family of p-values, and which values are pooled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_cloud import PANEL, dense_energy, weeks
from scipy.stats import false_discovery_control

from gpudrift import energy_distance, kernels, mmd2
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import AANull, Limits, calibrate
from gpudrift.errors import ArgumentError
from gpudrift.fingerprint import canonical, cluster_codes
from gpudrift.metrics.accumulate import mean_of
from gpudrift.metrics.pairs import null_scale, null_sd
from gpudrift.movement import pair_null
from gpudrift.panel import centre, pin
from gpudrift.records import Cloud, HistoryPoint, Quality, SegmentScore
from gpudrift.sampling import Limit
from gpudrift.segments.columns import SegmentSettings, cap, segment_columns
from gpudrift.segments.scorer import SegmentScorer

EXACT = Arithmetic("float64", "as the tests want it", 1.0)
EVERY = Limit(10**9, "all rows")
D = 4
Plan = Mapping[str | None, Sequence[int]]


def cloud_of(
    plan: Plan,
    *,
    first: int = 0,
    moved: Mapping[str | None, float] | None = None,
    wobble: float = 0.2,
    users: bool = False,
    column: Callable[[pa.Array], pa.Array] = lambda values: values,
    shuffle: int | None = None,
    seed: int = 0,
) -> tuple[Cloud, torch.Tensor | None]:
    """Weekly windows in canonical order, with the rows of each value of the column ``lang`` that ``plan`` lists by
    week. A value's rows are drawn by (seed, week, value); its mean wanders by ``wobble`` a week, and is moved by
    ``moved``. users: about three rows a user, across values. shuffle: seed of the order in which rows are read."""
    values: list[str | None] = sorted(plan, key=lambda v: (v is None, v or ""))
    count = len(next(iter(plan.values())))
    parts, names, languages, sizes = [], [], [], []
    for k in range(count):
        rows, langs, owners = [], [], []
        for value in values:
            rng = np.random.default_rng((seed, first + k, *map(ord, value or "")))
            size = plan[value][k]
            middle = 10 + (len(value or "") % 3) + wobble * rng.normal(size=D) + (moved or {}).get(value, 0.0)
            rows.append(rng.normal(size=(size, D)) * np.linspace(1.5, 0.5, D) + middle)
            langs += [value] * size
            owners += [f"user {u}" for u in rng.integers(0, max(2, size // 3), size)]
        order = np.arange(len(langs))
        if shuffle is not None:
            order = np.random.default_rng(shuffle).permutation(len(langs))
        parts.append(np.concatenate(rows)[order])
        languages += [langs[i] for i in order]
        names += [owners[i] for i in order]
        sizes.append(len(langs))
    cloud = Cloud(
        embeddings=torch.from_numpy(np.concatenate(parts).astype(np.float32)),
        windows=weeks(first, count),
        offsets=tuple(itertools.accumulate(sizes, initial=0)),
        quality=tuple(Quality(size, size, {}, {}) for size in sizes),
        clusters=pa.array(names) if users else None,
        segments={"lang": column(pa.array(languages, pa.string()))},
    )
    ordered, _ = canonical(cloud, 0)
    return ordered, cluster_codes(ordered.clusters, "cloud") if users else None


class Made:
    """A reference of segments, and windows scored against it."""

    def __init__(
        self,
        plan: Plan,
        *,
        settings: SegmentSettings | None = None,
        more: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        self.changes = changes
        self.cloud, self.codes = cloud_of(plan, **changes)
        self.mean = mean_of(self.cloud.embeddings)
        centre(self.cloud.embeddings, self.mean)
        self.pins, projection = pin(self.cloud.embeddings, self.mean, PANEL)
        self.x = self.cloud.embeddings.double().numpy()
        self.labels = [window.label for window in self.cloud.windows]
        self.scorer = SegmentScorer(
            rows=self.cloud.embeddings,
            projection=projection,
            offsets=self.cloud.offsets,
            labels=self.labels,
            columns=self.cloud.segments,
            codes=self.codes,
            arithmetic=EXACT,
            pins=self.pins,
            panel=PANEL,
            limits=Limits(),
            limit=EVERY,
            settings=settings or SegmentSettings(min_rows=10),
        )
        for name, value in (more or {}).items():
            setattr(self.scorer, name, value)
        self.scorer.__post_init__()

    def window(
        self, plan: Mapping[str | None, int], week: int = 30, **changes: Any
    ) -> tuple[Cloud, torch.Tensor | None]:
        cloud, codes = cloud_of({value: [size] for value, size in plan.items()}, first=week, **(self.changes | changes))
        centre(cloud.embeddings, self.mean)
        return cloud, codes

    def score(self, plan: Mapping[str | None, int], **changes: Any) -> dict[str, SegmentScore]:
        return by_name(self.scorer.score(*self.window(plan, **changes)))

    def rows_of(self, *values: str | None, window: int | None = None) -> np.ndarray:
        """Reference rows with these values, (n, D) float64; of one window."""
        own = np.array([text in values for text in self.cloud.segments["lang"].to_pylist()])
        if window is not None:
            inside = np.zeros(len(own), dtype=bool)
            inside[self.cloud.offsets[window] : self.cloud.offsets[window + 1]] = True
            own &= inside
        return self.x[own]


def by_name(found: Sequence[SegmentScore]) -> dict[str, SegmentScore]:
    return {one.name: one for one in found}


def rows_in(cloud: Cloud, *values: str | None) -> np.ndarray:
    own = [text in values for text in cloud.segments["lang"].to_pylist()]
    return cloud.embeddings.double().numpy()[np.array(own)]


PLAN: Plan = {
    "de": [20, 17, 23, 19, 25, 18, 21, 16, 22, 24],
    "en": [40, 44, 38, 41, 39, 50, 36, 42, 45, 47],
    "fi": [9, 3, 12, 0, 8, 2, 4, 1, 6, 5],  # rare
    "sv": [4, 8, 2, 3, 5, 9, 1, 3, 2, 4],  # rare
    None: [15, 14, 18, 13, 12, 17, 19, 11, 16, 15],
}
NOW: dict[str | None, int] = {"de": 21, "en": 43, "fi": 7, "sv": 6, "new": 5, None: 16}
SEGMENTS = {"lang=de": ("de",), "lang=en": ("en",), "lang=(none)": (None,), "lang=(others)": ("fi", "sv", "new")}


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(PLAN)


@pytest.fixture(scope="module")
def found(made: Made) -> dict[str, SegmentScore]:
    return made.score(NOW)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_segment_is_scored_as_exactly_its_rows(made: Made, found: dict[str, SegmentScore], name: str) -> None:
    x, y = made.rows_of(*SEGMENTS[name]), rows_in(made.window(NOW)[0], *SEGMENTS[name])
    one = found[name]
    assert (one.rows, one.reference_rows) == (len(y), len(x))
    wanted = energy_distance(x, y, precision="float64")
    assert one.metrics["energy"].value == pytest.approx(wanted.value, rel=1e-9)
    assert one.metrics["energy"].se == pytest.approx(wanted.se, rel=1e-9)
    ladder = mmd2(x, y, bandwidths=made.pins.bandwidths, precision="float64")
    for b, (value, se) in enumerate(zip(ladder.value, ladder.se, strict=True), start=1):
        assert one.metrics[f"mmd2_b{b}"].value == pytest.approx(value, rel=1e-9)
        assert one.metrics[f"mmd2_b{b}"].se == pytest.approx(se, rel=1e-9)
    spread = math.log(np.trace(np.cov(y.T)) / np.trace(np.cov(x.T)))
    assert one.metrics["log_variance_ratio"].value == pytest.approx(spread, rel=1e-9)
    # axes and mean are the whole reference's
    along = made.pins.basis.axes[0].numpy()
    shift = ((y - x).mean() if len(x) == len(y) else (y @ along).mean() - (x @ along).mean()) / math.sqrt(
        float(made.pins.basis.variances[0])
    )
    assert one.metrics["wasserstein1_pc1"].extra["mean_shift_sd"] == pytest.approx(shift, rel=1e-9)


def test_moments_are_those_of_the_segment_and_not_of_the_reference(made: Made, found: dict[str, SegmentScore]) -> None:
    """Frechet: against a covariance of the segment's own rows; the classifier whitens by them, wherever they lie."""
    from scipy.linalg import sqrtm

    from gpudrift.panel import score

    x, y = made.rows_of("de"), rows_in(made.window(NOW)[0], "de")
    s_x, s_y = np.cov(x.T), np.cov(y.T)
    root = sqrtm(s_x)
    raw = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s_x + s_y - 2 * sqrtm(root @ s_y @ root).real)
    assert found["lang=de"].metrics["frechet"].extra["raw"] == pytest.approx(raw, rel=1e-6)
    n0 = min(PLAN["de"])
    alone = score(torch.from_numpy(x).float(), torch.from_numpy(y[:n0]).float(), PANEL, "float64")
    auc = found["lang=de"].metrics["classifier_auc"]
    assert auc.value == pytest.approx(alone["classifier_auc"].value, abs=1e-9)
    assert (auc.extra["rows_reference"], auc.extra["rows_current"]) == (len(x), n0)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_a_scores_are_those_of_each_window_by_hand(made: Made, found: dict[str, SegmentScore], name: str) -> None:
    """The pool too; windows with fewer than 10 rows of a segment are part of its reference, but not of its null."""
    values = SEGMENTS[name]
    sizes = [len(made.rows_of(*values, window=k)) for k in range(10)]
    usable = [k for k in range(10) if sizes[k] >= 10]
    calibration = found[name].calibration
    assert calibration is not None
    assert found[name].windows == len(usable)
    n0 = min(sizes[k] for k in usable)
    now = found[name].rows
    assert (calibration.aa_n, calibration.aa_recomputed) == (min(n0, now), now < n0)
    for k in usable:
        others = np.concatenate([made.rows_of(*values, window=j) for j in range(10) if j != k])
        wanted = dense_energy(others, made.rows_of(*values, window=k)[: calibration.aa_n])
        assert calibration.aa_scores[made.labels[k]] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert list(calibration.aa_scores) == [made.labels[k] for k in usable]
    own = kernels.self_sums(kernels.prepare(torch.from_numpy(made.rows_of(*values)), precision="float64"))
    assert calibration.null_sd == pytest.approx(null_sd(null_scale(own, 0), sum(sizes), calibration.aa_n), rel=1e-9)


def test_calibration_is_the_rule_of_the_whole(found: dict[str, SegmentScore]) -> None:
    for one in found.values():
        of = one.calibration
        assert of is not None
        null = AANull(of.aa_n, of.aa_scores, of.null_sd)
        energy = one.metrics["energy"]
        now = one.metrics["energy"].extra["null_sd"]
        assert energy.se is not None
        assert of == calibrate(
            energy.value, energy.se, null, null_sd_now=now, limits=Limits(), recomputed=of.aa_recomputed
        )


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("n0", [20, 11, 5])
def test_a_null_at_fewer_rows_costs_no_second_pass(users: bool, n0: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any n0 the scores are those of a pass made for it."""
    made = Made({"de": [20, 25, 31, 28, 22, 24, 30, 27, 21]}, settings=SegmentSettings(min_rows=4), users=users)
    made.score({"de": 26})
    passes = []
    monkeypatch.setattr(kernels, "self_sums", lambda *_, **__: passes.append(1))
    calibration = made.score({"de": n0})["lang=de"].calibration
    monkeypatch.undo()
    assert passes == []
    assert calibration is not None
    assert (calibration.aa_n, calibration.aa_recomputed) == (n0, n0 < 20)
    rows = kernels.prepare(made.cloud.embeddings, precision="float64", clusters=made.codes)
    wanted, _ = pair_null(rows, made.cloud.offsets, made.labels, n0, {})
    assert calibration.aa_scores == pytest.approx(dict(wanted.scores), rel=1e-9)
    assert calibration.null_sd == pytest.approx(wanted.null_sd, rel=1e-9)


def test_drift_in_one_segment_is_told_of_it_and_of_no_other() -> None:
    plan = {value: [40] * 10 for value in ("da", "de", "en", "es", "fi", "sv")}
    made = Made(plan)
    found = made.score(dict.fromkeys(plan, 40), moved={"es": 2.0})
    assert {one.value for one in found.values() if one.verdict != "stable"} == {"es"}
    assert found["lang=es"].verdict == "warning"
    assert (found["lang=es"].q or 1) < 0.001
    assert made.score(dict.fromkeys(plan, 40), week=31)["lang=es"].verdict == "stable"


def test_a_warning_is_a_q_below_the_rate_and_a_score_above_three_null_sd() -> None:
    """At every size of drift; the alert's tolerance stays at calibrate.warn_p."""
    made = Made({"de": [30] * 10, "en": [30] * 10}, more={"whole_panel": False})
    q = []
    for step in range(40):
        one = made.score({"de": 30, "en": 30}, moved={"de": 0.02 * step})["lang=de"]
        of = one.calibration
        assert of is not None
        assert one.q is not None
        q.append(one.q)
        assert (one.verdict == "warning") == (one.q < 0.05 and of.score > 3 * of.null_sd)
    assert any(0.01 < value < 0.05 for value in q)
    assert any(value > 0.05 for value in q)


def test_q_is_benjamini_and_hochbergs_over_all_segments_of_all_columns() -> None:
    plan = {value: [20] * 9 for value in ("da", "de", "en")}
    made = Made(plan)
    cloud, _ = made.window({"da": 20, "de": 20, "en": 20}, moved={"de": 0.7, "en": 0.4})
    halves = pa.array(["left", "right"] * (len(made.x) // 2))
    made.scorer.columns = {**made.cloud.segments, "half": halves}
    made.scorer.__post_init__()
    now = pa.array((["left", "right"] * len(cloud))[: len(cloud)])
    found = made.scorer.score(replace(cloud, segments={**cloud.segments, "half": now}))
    assert [one.name for one in found] == ["half=left", "half=right", "lang=da", "lang=de", "lang=en"]
    p = [one.calibration.p_aa for one in found if one.calibration is not None]
    assert [one.q for one in found] == pytest.approx(list(false_discovery_control(p)), rel=1e-12)


def test_without_drift_a_run_seldom_warns_of_any_of_forty_segments() -> None:
    """Windows of all segments wander as they do in the reference. By p alone nearly every run would name a segment; the
    family's share of runs with a warning stays at its nominal .05 or below."""
    names = [f"s{k:02}" for k in range(40)]
    runs = warned = named = 0
    for seed in range(2):
        made = Made(
            {name: [8] * 9 for name in names},
            settings=SegmentSettings(min_rows=8),
            seed=seed,
            wobble=0.4,
            more={"whole_panel": False},
        )
        for week in range(20, 40):
            found = made.score(dict.fromkeys(names, 8), week=week)
            assert len(found) == 40
            p = [one.calibration.p_aa for one in found.values() if one.calibration is not None]
            assert len(p) == 40
            runs += 1
            named += min(p) < 0.05
            warned += any(one.verdict != "stable" for one in found.values())
    assert runs == 40
    assert named > 20
    assert warned <= 2


def test_pairs_alone_give_the_same_verdicts(found: dict[str, SegmentScore]) -> None:
    lean = Made(PLAN, more={"whole_panel": False}).score(NOW)
    assert list(lean) == list(found)
    for name, one in lean.items():
        assert set(one.metrics) == {"energy", "mmd2_b1", "mmd2_b2", "mmd2_b3", "mmd2_b4", "mmd_max"}
        assert one == replace(found[name], metrics={key: found[name].metrics[key] for key in one.metrics})


# which segments there are


def test_the_reference_alone_decides_what_is_pooled(made: Made, found: dict[str, SegmentScore]) -> None:
    """A rare value that has become common stays in the pool, a new one joins it, and the pool keeps its name."""
    assert list(found) == ["lang=de", "lang=en", "lang=(none)", "lang=(others)"]
    assert [one.pooled for one in found.values()] == [0, 0, 0, 2]
    assert found["lang=(others)"].value is None
    common = made.score({"de": 20, "en": 40, "fi": 90, "x": 60, "y": 60, None: 15})
    assert list(common) == list(found)
    assert common["lang=(others)"].rows == 210


def test_a_gone_value_is_reported(made: Made) -> None:
    found = made.score({"en": 40, "fi": 9, None: 15})
    assert list(found) == ["lang=de", "lang=en", "lang=(none)", "lang=(others)"]
    gone, few = found["lang=de"], found["lang=(others)"]
    assert (gone.rows, gone.verdict, gone.reason) == (0, "insufficient", "no row of it in this window")
    assert (few.rows, few.verdict, few.reason) == (9, "insufficient", "9 rows; segments.min_rows is 10")
    assert gone.reference_rows == sum(PLAN["de"])
    assert (gone.metrics, gone.calibration, gone.q) == ({}, None, None)
    assert found["lang=en"].verdict != "insufficient"


def test_new_values_are_a_pool_of_their_own_where_the_reference_has_none() -> None:
    made = Made({"de": [20] * 8, "en": [20] * 8})
    assert list(made.score({"de": 20, "en": 20})) == ["lang=de", "lang=en"]
    found = made.score({"de": 20, "en": 20, "no": 30, "sv": 15, None: 12})
    assert list(found) == ["lang=de", "lang=en", "lang=(others)"]
    new = found["lang=(others)"]
    assert (new.rows, new.reference_rows, new.pooled, new.verdict) == (57, 0, 3, "insufficient")
    assert new.reason == "the reference has no row of it"
    assert {one.pooled for one in made.scorer.segments} == {0}


def test_a_pool_of_all_rows_is_not_scored_over_again() -> None:
    made = Made({"de": [9] * 8, "en": [9] * 8})
    (one,) = made.score({"de": 9, "en": 9}).values()
    assert (one.name, one.rows, one.verdict) == ("lang=(others)", 18, "insufficient")
    assert one.reason.startswith("no value has that many rows in 8 reference windows")
    assert made.scorer.pairs() == made.scorer.pairs_of(made.window({"de": 9, "en": 9})[0]) == 0


def test_rows_without_a_value_do_not_pass_for_new_ones() -> None:
    """The value None beside a pool that has no reference rows."""
    made = Made({"de": [20] * 8, None: [20] * 8})
    found = made.score({"de": 20, None: 20, "x": 11})
    assert list(found) == ["lang=de", "lang=(none)", "lang=(others)"]
    assert found["lang=(none)"].calibration is not None
    assert found["lang=(others)"].reason == "the reference has no row of it"


def test_a_segment_of_one_user_has_no_score_and_leaves_the_others_theirs() -> None:
    """A tenant with a single user: no pair of its rows is left."""
    made = Made({"de": [20] * 8, "en": [20] * 8}, users=True)
    cloud, codes = made.window({"de": 20, "en": 20})
    assert made.codes is not None
    assert codes is not None
    for values, owners in ((made.cloud.segments["lang"], made.codes), (cloud.segments["lang"], codes)):
        owners[torch.tensor([text == "de" for text in values.to_pylist()])] = 7
    found = by_name(made.scorer.score(cloud, codes))
    assert (found["lang=de"].verdict, found["lang=de"].reason) == ("insufficient", "its rows are of one cluster")
    assert found["lang=en"].calibration is not None


def test_values_that_read_like_the_missing_one_and_the_pool_have_names_of_their_own() -> None:
    plan: Plan = {"(none)": [20] * 8, "(others)": [20] * 8, None: [20] * 8, "x": [3] * 8}
    names = list(Made(plan).score(dict.fromkeys(plan, 20)))
    assert names == ["lang='(none)'", "lang='(others)'", "lang=(none)", "lang=(others)"]


COLUMNS: dict[str, tuple[Callable[[pa.Array], pa.Array], list[str]]] = {
    "large": (lambda values: values.cast(pa.large_string()), ["de", "en"]),
    "dictionary": (lambda values: values.dictionary_encode(), ["de", "en"]),
    "null in the dictionary": (lambda values: values.dictionary_encode(null_encoding="encode"), ["de", "en"]),
    "int": (lambda values: pa.array([number(v, {"de": 7, "en": -2}) for v in values.to_pylist()]), ["-2", "7"]),
    "bool": (
        lambda values: pa.array([number(v, {"de": True, "en": False}) for v in values.to_pylist()]),
        ["false", "true"],
    ),
    "bytes": (lambda values: values.cast(pa.large_binary()), ["6465", "656e"]),
}


def number(value: str | None, numbers: Mapping[str, Any]) -> Any:
    return None if value is None else numbers[value]


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_other_types_have_the_same_segments(kind: str) -> None:
    column, texts = COLUMNS[kind]
    plan = {"de": [20] * 8, "en": [16] * 8, None: [12] * 8}
    now = {"de": 18, "en": 17, None: 13}
    plain = Made(plan).score(now)
    found = Made(plan, column=column).score(now)
    assert list(found) == [*(f"lang={text}" for text in texts), "lang=(none)"]
    assert sorted(one.calibration.p_aa for one in found.values() if one.calibration) == sorted(
        one.calibration.p_aa for one in plain.values() if one.calibration
    )
    assert found["lang=(none)"].metrics == plain["lang=(none)"].metrics


def test_a_column_of_nulls_and_an_empty_one() -> None:
    made = Made({None: [15] * 8}, column=lambda values: pa.nulls(len(values)))
    assert list(made.score({None: 15})) == ["lang=(none)"]
    made.scorer.columns = {}
    made.scorer.__post_init__()
    assert made.scorer.score(*made.window({None: 15})) == ()


def test_at_most_so_many_values_are_scored_alone_those_with_the_most_rows() -> None:
    plan = {f"v{k}": [10 + k] * 8 for k in range(6)}
    made = Made(plan, settings=SegmentSettings(min_rows=10, most=2))
    found = made.score(dict.fromkeys(plan, 12))
    assert list(found) == ["lang=v4", "lang=v5", "lang=(others)"]
    tied = Made(dict.fromkeys(plan, [12] * 8), settings=SegmentSettings(min_rows=10, most=2))
    assert list(tied.score(dict.fromkeys(plan, 12))) == ["lang=v0", "lang=v1", "lang=(others)"]


def test_most_counts_the_values_of_all_columns() -> None:
    columns = {"a": pa.array(["x", "y"] * 30), "b": pa.array(["p", "p", "q"] * 20)}
    found = segment_columns(columns, [0, 15, 30, 45, 60], SegmentSettings(min_rows=4, most=2), 100)
    alone = {name: [s.value for s in column.segments if not s.pooled and len(s.rows)] for name, column in found.items()}
    assert alone == {"a": ["x"], "b": ["p"]}


# the window before, and reasons


@pytest.fixture(scope="module")
def pair() -> Made:
    return Made({"de": [40] * 10, "en": [40] * 10})


def scored(made: Made, shift: float, previous: Mapping[str, HistoryPoint], week: int = 30) -> SegmentScore:
    cloud, codes = made.window({"de": 40, "en": 40}, week=week, moved={"de": shift})
    return by_name(made.scorer.score(cloud, codes, previous))["lang=de"]


def test_an_alert_needs_the_same_segment_twice_and_holds_until_two_quiet_windows(pair: Made) -> None:
    def points(one: SegmentScore, week: int) -> dict[str, HistoryPoint]:
        return {one.name: one.point(weeks(week, 1)[0])}

    first = scored(pair, 2.0, {})
    assert first.verdict == "warning"
    assert "there is no window before it" in first.reason
    second = scored(pair, 2.0, points(first, 30), 31)
    assert second.verdict == "alert"
    assert weeks(30, 1)[0].label in second.reason
    quiet = scored(pair, 0.0, points(second, 31), 32)
    assert quiet.verdict == "alert"
    assert "holds" in quiet.reason
    assert scored(pair, 0.0, points(quiet, 32), 33).verdict == "stable"
    assert scored(pair, 2.0, points(quiet, 32), 33).verdict == "alert"
    assert scored(pair, 2.0, points(scored(pair, 0.0, {}), 29)).verdict == "warning"
    other = first.point(weeks(29, 1)[0])
    assert scored(pair, 2.0, {"lang=en": other}).verdict == "warning"


def test_the_window_before_counts_by_its_own_familys_q(pair: Made) -> None:
    """p < fdr is not enough: among many segments such a p is nothing."""
    first = scored(pair, 2.0, {})
    weak = replace(first, q=0.2)
    assert scored(pair, 2.0, {first.name: weak.point(weeks(29, 1)[0])}).verdict == "warning"
    assert scored(pair, 2.0, {first.name: first.point(weeks(29, 1)[0])}).verdict == "alert"


def test_the_point_of_a_segment_holds_what_was_scored(found: dict[str, SegmentScore], made: Made) -> None:
    one = found["lang=de"]
    point = one.point(weeks(30, 1)[0])
    assert one.calibration is not None
    for name in ("score", "se", "p_aa", "p_close", "null_sd", "delta", "clear_limit", "ratio", "in_reference"):
        assert getattr(point, name) == getattr(one.calibration, name), name
    assert (point.rows, point.verdict, point.window) == (one.rows, one.verdict, weeks(30, 1)[0])
    (gate,) = point.gates
    assert (gate.metric, gate.p_aa, gate.p_holm) == ("energy", one.calibration.p_aa, one.q)
    gone = made.score({"en": 40})["lang=de"].point(weeks(30, 1)[0])
    assert (gone.verdict, gone.score, gone.p_aa, gone.rows, gone.gates) == ("insufficient", None, None, 0, ())


def test_a_value_of_too_few_windows_for_a_verdict_is_pooled_and_fewer_still_give_a_p() -> None:
    made = Made({"de": [20] * 7 + [0], "en": [20] * 8, "fi": [20, 20, 0, 9, 9, 0, 3, 1]})
    found = made.score({"de": 20, "en": 20, "fi": 25}, moved={"de": 3.0})
    assert list(found) == ["lang=en", "lang=(others)"]
    pool = found["lang=(others)"]
    assert pool.calibration is not None
    assert (pool.q or 1) < 0.01
    assert (pool.pooled, pool.rows, pool.windows, pool.verdict) == (2, 45, 7, "insufficient")
    assert pool.reason == "7 usable reference windows, of 10 rows of it or more; calibrate.min_windows is 8"
    assert found["lang=en"].verdict == "stable"
    # q counts those with a p alone
    p = [one.calibration.p_aa for one in found.values() if one.calibration is not None]
    assert [one.q for one in found.values() if one.q is not None] == pytest.approx(list(false_discovery_control(p)))


def test_rows_too_alike_for_a_noise_level() -> None:
    made = Made({"de": [20] * 8, "en": [20] * 8})
    own = torch.tensor([text == "de" for text in made.cloud.segments["lang"].to_pylist()])
    made.cloud.embeddings[own] = made.cloud.embeddings[own][:1].clone()
    found = made.score({"de": 20, "en": 20})
    assert found["lang=de"].verdict == "insufficient"
    assert found["lang=de"].reason.startswith("no noise level can be had")
    assert found["lang=en"].q is not None


# windows of the reference, and bursts


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_window_of_the_reference_is_scored_against_the_others(place: int, users: bool) -> None:
    made = Made(PLAN, users=users)
    cloud, codes = made.window({value: sizes[place] for value, sizes in PLAN.items()}, week=place)
    found = by_name(made.scorer.score(cloud, codes))
    for name, values in {"lang=de": ("de",), "lang=(none)": (None,)}.items():
        one = found[name]
        others = [k for k in range(10) if k != place]
        x = np.concatenate([made.rows_of(*values, window=k) for k in others])
        y = rows_in(cloud, *values)
        assert (one.rows, one.reference_rows) == (len(y), len(x))
        groups: dict[str, Any] = {}
        if users:
            assert made.codes is not None
            assert codes is not None
            own = np.array([text in values for text in made.cloud.segments["lang"].to_pylist()])
            own[made.cloud.offsets[place] : made.cloud.offsets[place + 1]] = False
            now = np.array([text in values for text in cloud.segments["lang"].to_pylist()])
            groups = {"clusters_x": made.codes.numpy()[own], "clusters_y": codes.numpy()[now]}
        wanted = energy_distance(x, y, precision="float64", **groups)
        assert one.metrics["energy"].value == pytest.approx(wanted.value, rel=1e-9)
        assert one.metrics["energy"].se == pytest.approx(wanted.se, rel=1e-9)
        variance = one.metrics["energy"].extra["variance"]
        assert variance == pytest.approx(math.nan if users else wanted.variance, rel=1e-7, nan_ok=True)
        of = one.calibration
        assert of is not None
        assert of.in_reference
        assert list(of.aa_scores) == [made.labels[k] for k in others]


def test_a_burst_of_a_segment_leaves_its_null_and_its_rows() -> None:
    plan = {"de": [20, 24, 21, 22, 20, 23, 25, 20, 22, 21], "en": [20] * 10}
    made = Made(plan)
    inside = made.cloud.offsets
    own = torch.tensor([text == "de" for text in made.cloud.segments["lang"].to_pylist()])
    for burst in (4, 7):
        own_here = own.clone()
        own_here[: inside[burst]] = False
        own_here[inside[burst + 1] :] = False
        made.cloud.embeddings[own_here] += 8.0
    now = {"de": 22, "en": 20}
    found = made.score(now)
    de = found["lang=de"]
    left = [k for k in range(10) if k not in (4, 7)]
    made.x = made.cloud.embeddings.double().numpy()
    x = np.concatenate([made.rows_of("de", window=k) for k in left])
    wanted = energy_distance(x, rows_in(made.window(now)[0], "de"), precision="float64")
    assert de.metrics["energy"].value == pytest.approx(wanted.value, rel=1e-9)
    assert de.metrics["energy"].se == pytest.approx(wanted.se, rel=1e-9)
    assert (de.reference_rows, de.windows) == (len(x), 10)
    assert de.calibration is not None
    assert list(de.calibration.aa_scores) == [made.labels[k] for k in left]
    for k in left:
        others = np.concatenate([made.rows_of("de", window=j) for j in left if j != k])
        score = dense_energy(others, made.rows_of("de", window=k)[:20])
        assert de.calibration.aa_scores[made.labels[k]] == pytest.approx(score, rel=1e-9)
    own_sums = kernels.self_sums(kernels.prepare(torch.from_numpy(x), precision="float64"))
    assert de.calibration.null_sd == pytest.approx(null_sd(null_scale(own_sums, 0), len(x), 20), rel=1e-9)
    assert f"left out of its reference as bursts: {made.labels[4]} (" in de.reason
    assert de.verdict == "stable"
    assert "bursts" not in found["lang=en"].reason
    made.scorer.max_dropped = 0.1
    assert made.score(now)["lang=de"].verdict == "insufficient"
    made.scorer.max_dropped, made.scorer.min_windows = 0.25, 9
    assert "8 usable reference windows" in made.score(now)["lang=de"].reason


def test_a_burst_returning_is_told() -> None:
    """The window that hygiene left out, scored itself: its rows are not among those compared with."""
    plan = {"de": [20] * 10}
    made = Made(plan)
    a, b = made.cloud.offsets[4:6]
    made.cloud.embeddings[a:b] += 8.0
    cloud, _ = made.window({"de": 20}, week=4)
    cloud.embeddings.add_(8.0)
    (one,) = made.scorer.score(cloud)
    made.x = made.cloud.embeddings.double().numpy()
    others = np.concatenate([made.x[:a], made.x[b:]])
    assert one.metrics["energy"].value == pytest.approx(dense_energy(others, rows_in(cloud, "de")), rel=1e-9)
    assert one.verdict == "warning"


# users


def test_same_cluster_pairs_are_left_out_and_se_is_by_cluster() -> None:
    made = Made(PLAN, users=True)
    cloud, codes = made.window(NOW)
    assert made.codes is not None
    assert codes is not None
    found = by_name(made.scorer.score(cloud, codes))
    for name, values in SEGMENTS.items():
        own = np.array([text in values for text in made.cloud.segments["lang"].to_pylist()])
        now = np.array([text in values for text in cloud.segments["lang"].to_pylist()])
        wanted = energy_distance(
            made.x[own],
            rows_in(cloud, *values),
            clusters_x=made.codes.numpy()[own],
            clusters_y=codes.numpy()[now],
            precision="float64",
        )
        energy = found[name].metrics["energy"]
        assert energy.value == pytest.approx(wanted.value, rel=1e-9)
        assert energy.se == pytest.approx(wanted.se, rel=1e-9)


def test_a_segment_of_one_cluster_cannot_be_scored() -> None:
    made = Made({"de": [20] * 8, "en": [20] * 8}, users=True)
    cloud, codes = made.window({"de": 20, "en": 20})
    assert codes is not None
    now = torch.tensor([text == "de" for text in cloud.segments["lang"].to_pylist()])
    found = by_name(made.scorer.score(cloud, torch.where(now, 5, codes)))
    assert (found["lang=de"].verdict, found["lang=de"].reason) == ("insufficient", "its rows are of one cluster")
    assert found["lang=en"].q is not None


def test_reference_windows_of_one_cluster_are_left_out_of_the_null() -> None:
    made = Made({"de": [20] * 9}, users=True)
    assert made.scorer.codes is not None
    made.scorer.codes[made.cloud.offsets[2] : made.cloud.offsets[3]] = 5
    one = made.score({"de": 20})["lang=de"]
    assert one.calibration is not None
    assert made.labels[2] not in one.calibration.aa_scores
    assert len(one.calibration.aa_scores) == 8
    assert one.reference_rows == 180


# what it costs, and what it does not depend on


@pytest.mark.parametrize("users", [False, True])
def test_the_order_in_which_rows_are_read_changes_nothing(users: bool) -> None:
    first, second = (Made(PLAN, users=users, shuffle=s) for s in (1, 2))
    for one, other in zip(
        first.scorer.score(*first.window(NOW)), second.scorer.score(*second.window(NOW)), strict=True
    ):
        assert one == other


def test_a_segment_is_the_same_whatever_was_scored_before(made: Made, found: dict[str, SegmentScore]) -> None:
    fresh = Made(PLAN)
    fresh.score({"en": 12, None: 11, "de": 10}, week=40)
    assert fresh.score(NOW) == found
    assert made.score(NOW) == found


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(4, 900))
def test_the_cap_spends_the_pairs_and_no_more(sizes: list[int], limit: int) -> None:
    most = cap(sizes, limit)

    def spent(rows: int) -> int:
        return sum(min(size, rows) ** 2 for size in sizes)

    assert spent(most) <= limit**2
    assert most >= max(sizes, default=0) or spent(most + 1) > limit**2


def test_a_limit_of_rows_cuts_the_largest_segments_in_pairs_alone() -> None:
    plan = {"de": [12] * 9, "en": [60] * 9}
    now = {"de": 15, "en": 70}
    every, made = Made(plan), Made(plan, more={"limit": Limit(300, "a test")})
    found, whole = made.score(now), every.score(now)
    assert found["lang=de"].metrics == whole["lang=de"].metrics
    rows = math.isqrt(300**2 - 108**2)
    sampled = [rows // 9 + (k < rows % 9) for k in range(9)]
    x = np.concatenate([made.rows_of("en", window=k)[:count] for k, count in enumerate(sampled)])
    y = rows_in(made.window(now)[0], "en")
    en = found["lang=en"]
    assert en.metrics["energy"].value == pytest.approx(dense_energy(x, y), rel=1e-9)
    assert (en.rows, en.reference_rows) == (70, 540)
    assert en.metrics["frechet"].value == pytest.approx(whole["lang=en"].metrics["frechet"].value, rel=1e-12)
    assert en.calibration is not None
    assert en.calibration.aa_n == min(sampled)
    cloud, _ = made.window(now)
    assert every.scorer.pairs() == math.comb(108, 2) + math.comb(540, 2)
    assert made.scorer.pairs() == math.comb(108, 2) + math.comb(sum(sampled), 2) <= math.comb(300, 2)
    assert every.scorer.pairs_of(cloud) == 108 * 15 + math.comb(15, 2) + 540 * 70 + math.comb(70, 2)


def test_progress_sums_to_the_pairs_announced() -> None:
    made = Made(PLAN)
    cloud, codes = made.window(NOW)
    done: list[int] = []
    made.scorer.score(cloud, codes, None, done.append)
    assert sum(done) == made.scorer.pairs() + made.scorer.pairs_of(cloud)
    done.clear()
    made.scorer.score(cloud, codes, None, done.append)
    assert sum(done) == made.scorer.pairs_of(cloud)


def test_rows_beyond_float16_redo_all_sums_in_float32() -> None:
    made = Made({"de": [20] * 8, "en": [20] * 8}, more={"arithmetic": Arithmetic("float16", "a test", 1.0)})
    made.score({"de": 20, "en": 20})
    assert made.scorer.arithmetic.precision == "float16"
    cloud, codes = made.window({"de": 20, "en": 20}, moved={"de": 3e5})
    found = by_name(made.scorer.score(cloud, codes))
    assert made.scorer.arithmetic.precision == "float32"
    wanted = dense_energy(made.rows_of("de"), rows_in(cloud, "de"))
    assert found["lang=de"].metrics["energy"].value == pytest.approx(wanted, rel=1e-3)
    again = made.score({"de": 20, "en": 20})["lang=en"].metrics["energy"].value
    assert again == pytest.approx(
        dense_energy(made.rows_of("en"), rows_in(made.window({"de": 20, "en": 20})[0], "en")), abs=5e-6
    )


# bad input


@pytest.mark.parametrize(("name", "value"), [("min_rows", 3), ("fdr", 0.0), ("fdr", 1.0), ("most", 0)])
def test_settings_that_cannot_be_used(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=rf"segments\.{name}"):
        SegmentSettings(**{name: value})


def test_columns_that_do_not_fit_the_rows(made: Made) -> None:
    cloud, _ = made.window(NOW)
    with pytest.raises(ArgumentError, match="lacks a segment column"):
        made.scorer.score(replace(cloud, segments={"other": cloud.segments["lang"]}))
    with pytest.raises(ArgumentError, match="one value a row"):
        made.scorer.score(replace(cloud, segments={"lang": cloud.segments["lang"].slice(1)}))
    with pytest.raises(ArgumentError, match="one value a row"):
        replace_scorer(made, columns={"lang": made.cloud.segments["lang"].slice(1)})
    with pytest.raises(ArgumentError, match="windows do not cover"):
        replace_scorer(made, labels=made.labels[1:])


def replace_scorer(made: Made, **changes: Any) -> SegmentScorer:
    return replace(made.scorer, **changes)
