"""Which rows take part in pairs: shares, strata, order, and that a sampled score is that of the rows sampled."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import LAST, ROWS, run, table_of
from make_cloud import MONDAY, PANEL, SETTINGS, dense_energy, make_cloud

from gpudrift import kernels, reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import Limits
from gpudrift.errors import ConfigError, DataError, InsufficientDataError
from gpudrift.fingerprint import canonical
from gpudrift.metrics.pairs import estimate
from gpudrift.records import Cloud
from gpudrift.reference import Reference, Rows
from gpudrift.sampling import (
    Limit,
    Sample,
    apportion,
    draw,
    limit_of,
    rows_within,
    rule,
    sampling_error,
)
from gpudrift.scoring import Scorer

SIZES = (60, 48, 82, 52)
EXACT = Arithmetic("float64", "as the tests want it", 1.0)
LIMIT = Limit(100, "as the tests want it")


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30).filter(any), st.integers(0, 10**12))
def test_shares_are_whole_within_one_of_proportion_and_add_up(sizes: list[int], total: int) -> None:
    shares = apportion(sizes, total)
    everything = sum(sizes)
    assert sum(shares) == min(total, everything)
    for size, share in zip(sizes, shares, strict=True):
        exact = Fraction(size * min(total, everything), everything)
        assert math.floor(exact) <= share <= min(math.ceil(exact), size)


def test_the_largest_remainders_get_the_rest() -> None:
    assert apportion([53, 24, 23], 10) == [5, 3, 2]  # 5.3, 2.4, 2.3
    assert apportion([1, 1, 1], 2) == [1, 1, 0]


def test_a_cloud_within_the_limit_is_taken_whole() -> None:
    cloud, _, _ = make_cloud(SIZES)
    sample = draw(cloud, Limit(sum(SIZES), "exactly all"))
    assert sample.positions is None
    assert sample.part(cloud) is cloud
    assert sample.of(cloud.embeddings) is cloud.embeddings
    assert (len(sample), sample.offsets) == (sum(SIZES), cloud.offsets)


def test_a_window_gives_the_first_of_its_canonical_order_in_proportion() -> None:
    cloud, _, _ = make_cloud(SIZES)
    sample = draw(cloud, LIMIT)
    shares = apportion(SIZES, 100)
    wanted = np.concatenate([start + np.arange(share) for start, share in zip(cloud.offsets, shares, strict=False)])
    assert sample.positions is not None
    np.testing.assert_array_equal(sample.positions, wanted)
    part = sample.part(cloud)
    assert part.sizes() == tuple(shares)
    np.testing.assert_array_equal(part.embeddings, cloud.embeddings[wanted])


def test_a_small_window_keeps_its_floor() -> None:
    cloud, _, _ = make_cloud((2000, 30, 3))
    assert draw(cloud, Limit(100, "", floor=20)).part(cloud).sizes() == (98, 20, 3)  # an equal share is 33


def with_segments(seed: int) -> Cloud:
    """Two windows; language and device of very different frequency, some null."""
    cloud, _, _ = make_cloud((400, 300), seed=seed)
    rng = np.random.default_rng(seed)
    languages = rng.choice(np.array(["de", "en", "fr", None], dtype=object), 700, p=[0.1, 0.6, 0.05, 0.25])
    return replace(
        cloud, segments={"lang": pa.array(list(languages)), "app": pa.array(rng.choice([1, 2], 700, p=[0.9, 0.1]))}
    )


def test_segments_keep_their_shares_within_each_window() -> None:
    cloud = with_segments(1)
    sample = draw(cloud, Limit(140, ""))
    assert sample.positions is not None
    for k in (0, 1):
        start, end = cloud.offsets[k : k + 2]
        pairs = list(zip(cloud.segments["lang"].to_pylist(), cloud.segments["app"].to_pylist(), strict=True))
        positions = sample.positions[sample.offsets[k] : sample.offsets[k + 1]].tolist()
        assert all(start <= position < end for position in positions)
        whole, taken = Counter(pairs[start:end]), Counter(pairs[position] for position in positions)
        for stratum, size in whole.items():
            assert abs(taken[stratum] - size / 5) < 1, stratum
            # the first of each stratum in canonical order
            own = [position for position in range(start, end) if pairs[position] == stratum]
            assert [p for p in positions if pairs[p] == stratum] == own[: taken[stratum]]


@pytest.mark.parametrize("kind", ["list", "struct", "uuid", "null", "bytes"])
def test_segments_of_any_type_are_strata(kind: str) -> None:
    cloud, _, _ = make_cloud((200,))
    which = np.random.default_rng(3).integers(0, 2, 200)
    values = {
        "list": pa.array([[int(k), 7] for k in which]),
        "struct": pa.array([{"a": int(k)} for k in which]),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes([k]) * 16 for k in which], pa.binary(16))),
        "null": pa.nulls(200),
        "bytes": pa.array([bytes([200 + k]) for k in which], pa.large_binary()),
    }[kind]
    sample = draw(replace(cloud, segments={"x": values}), Limit(100, ""))
    assert sample.positions is not None
    if kind == "null":
        assert sample.positions.tolist() == list(range(100))
    else:
        assert abs(which[sample.positions].sum() - which.sum() / 2) < 1


def test_fewer_than_four_rows_a_window_are_refused() -> None:
    cloud, _, _ = make_cloud((50,) * 30)
    assert draw(cloud, Limit(120, "", floor=1)).part(cloud).sizes() == (4,) * 30
    assert draw(make_cloud((400, 9))[0], Limit(100, "", floor=1)).offsets == (0, 98, 102)  # its share is 2
    with pytest.raises(ConfigError, match="each of 30 windows") as caught:
        draw(cloud, Limit(119, "score.rows"))
    assert (caught.value.field, caught.value.allowed) == ("score.rows", "120 rows or more")


def test_the_sample_does_not_depend_on_the_order_rows_come_in() -> None:
    cloud = with_segments(2)
    order = np.concatenate([np.random.default_rng(5).permutation(400), 400 + np.random.default_rng(6).permutation(300)])
    shuffled = replace(
        cloud,
        embeddings=cloud.embeddings[order].clone(),
        segments={name: column.take(pa.array(order)) for name, column in cloud.segments.items()},
    )
    again, _ = canonical(shuffled, 0)
    one, other = (draw(c, Limit(99, "")).part(c) for c in (cloud, again))
    np.testing.assert_array_equal(one.embeddings, other.embeddings)


def test_which_of_equal_rows_is_taken_does_not_depend_on_files() -> None:
    """Equal rows may be of different clusters and segments."""
    cloud, _, _ = make_cloud((300,), users=True)
    cloud.embeddings[:] = cloud.embeddings[torch.arange(300) // 3].clone()
    segments = pa.array(np.random.default_rng(4).choice(["a", "b", None], 300).tolist())
    taken = []
    for seed in range(3):
        places = np.random.default_rng(seed).permutation(300)
        order = pa.array(places)
        shuffled = replace(
            cloud,
            embeddings=cloud.embeddings[places].clone(),
            clusters=None if cloud.clusters is None else cloud.clusters.take(order),
            segments={"x": segments.take(order)},
        )
        again, _ = canonical(shuffled, 0)
        sample = draw(again, Limit(100, ""))
        assert sample.positions is not None
        chosen = pa.array(sample.positions.numpy())
        assert again.clusters is not None
        taken.append((again.clusters.take(chosen).to_pylist(), again.segments["x"].take(chosen).to_pylist()))
    assert taken[0] == taken[1] == taken[2]


def test_a_reference_window_of_one_cluster_in_the_sample_is_named() -> None:
    cloud, _, codes = make_cloud((60, 50, 55), users=True)
    assert codes is not None
    codes[60:110] = 7
    with pytest.raises(DataError, match=r"first 50 rows of week 01-12 .* one cluster"):
        reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT, clusters=codes)


def test_a_smaller_sample_lies_within_a_larger_one_of_one_window() -> None:
    cloud, _, _ = make_cloud((500,))
    small, large = (draw(cloud, Limit(rows, "")).positions for rows in (50, 200))
    assert small is not None
    assert large is not None
    assert set(small.tolist()) < set(large.tolist())


@given(st.integers(1, 10**18), st.integers(0, 10**9))
def test_as_many_rows_as_the_budget_holds_and_not_one_more(pairs: int, against: int) -> None:
    rows = rows_within(pairs, against)
    assert rows * (rows - 1) // 2 + rows * against <= pairs
    assert (rows + 1) * rows // 2 + (rows + 1) * against > pairs


def test_a_budget_limits_the_reference_and_then_the_window() -> None:
    """The numbers README states: a change of them changes what takes part on every machine."""
    limit = limit_of(None, 1e10, 5)
    assert limit == Limit(141_421, "score.pairs", 5, 10**10)
    assert limit.against(141_421).rows == 58_578
    assert limit.against(1000).rows == 140_425
    assert (limit.against(10**10).rows, limit.setting) == (5, "score.pairs")
    assert limit_of(None, 1e13, 5).rows == 4_472_136
    given_rows = limit_of(123, 1e10, 5)
    assert given_rows == Limit(123, "score.rows", 5) == given_rows.against(10**9)
    assert given_rows.setting == "score.rows"


def test_the_rule_says_what_takes_part() -> None:
    limit = limit_of(None, 1e10, 5)
    assert rule(limit, (50, 50), (9, 9)) == ("exact", "all rows take part within score.pairs=10,000,000,000")
    method, reason = rule(limit, (200_000, 141_421), (5000, 5000))
    assert method == "sample"
    assert reason.startswith("all 5,000 rows of the window and 141,421 of 200,000 rows of the reference take part")
    assert rule(limit_of(70, 1e10, 5), (50, 50), (90, 70))[1].endswith("within score.rows=70")


def test_too_small_a_budget_names_the_setting() -> None:
    cloud, _, _ = make_cloud((50,) * 30)
    with pytest.raises(ConfigError) as caught:
        draw(cloud, limit_of(None, 5000, 4))  # 100 rows
    assert (caught.value.field, caught.value.value) == ("score.pairs", "100 rows (score.pairs)")


def pinned(limit: Limit) -> tuple[Reference, Rows]:
    cloud, prints, _ = make_cloud(SIZES)
    mean = cloud.embeddings.double().mean(0)
    cloud.embeddings.copy_(cloud.embeddings.double() - mean)
    return reference.build(
        cloud,
        prints,
        mean,
        dropped=[],
        span=(MONDAY, cloud.windows[-1].end),
        period="week",
        left_out=[],
        panel=PANEL,
        settings=SETTINGS,
        arithmetic=EXACT,
        limit=limit,
    )


def test_pairs_are_of_the_samples_and_everything_else_of_all_rows() -> None:
    whole, rows = pinned(LIMIT)
    every, all_rows = pinned(Limit(10**6, ""))
    found = Scorer(whole, rows, PANEL, Limits(), Limit(40, "")).score(make_cloud((90,), first=7)[0], None)
    wanted = Scorer(every, all_rows, PANEL, Limits(), Limit(10**6, "")).score(make_cloud((90,), first=7)[0], None)
    assert found.measured is not None
    assert wanted.measured is not None
    assert (found.rows, found.pair_rows, wanted.pair_rows) == (90, 40, 90)
    y = make_cloud((90,), first=7)[0].embeddings.double() - whole.pins.basis.mean
    x = rows.sample.of(rows.centred).double().numpy()
    assert found.measured.energy.value == pytest.approx(dense_energy(x, y[:40].float().double().numpy()), rel=1e-9)
    # the classifier sees no more rows than a window of the null, which is of pairs
    of_pairs = {"energy", "mmd2_b1", "mmd2_b2", "mmd2_b3", "mmd2_b4", "mmd_max", "classifier_auc"}
    for name, metric in wanted.measured.metrics.items():
        if name not in of_pairs:
            assert found.measured.metrics[name].value == pytest.approx(metric.value, rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("place", range(4))
def test_a_window_of_a_sampled_reference_is_scored_by_its_part_of_the_sample(place: int) -> None:
    whole, rows = pinned(LIMIT)
    scorer = Scorer(whole, rows, PANEL, Limits(), Limit(7, "for other windows"))
    found = scorer.score(make_cloud((SIZES[place],), first=place)[0], None)
    start, end = rows.sample.offsets[place : place + 2]
    sampled = rows.sample.of(rows.centred).double().numpy()
    x, y = np.delete(sampled, np.arange(start, end), axis=0), sampled[start:end]
    assert found.measured is not None
    assert found.measured.energy.value == pytest.approx(dense_energy(x, y), rel=1e-9)
    assert (found.rows, found.pair_rows) == (SIZES[place], end - start)


def test_a_smaller_window_recomputes_the_null_on_the_sample() -> None:
    whole, rows = pinned(LIMIT)
    found = Scorer(whole, rows, PANEL, Limits(), Limit(10, "")).score(make_cloud((90,), first=7)[0], None).calibration
    assert found is not None
    assert (found.aa_n, found.aa_recomputed) == (10, True)
    sampled = rows.sample.of(rows.centred).double().numpy()
    offsets = rows.sample.offsets
    own, others = sampled[offsets[1] : offsets[1] + 10], np.delete(sampled, np.arange(offsets[1], offsets[2]), axis=0)
    assert found.aa_scores[whole.kept[1].window.label] == pytest.approx(dense_energy(others, own), rel=1e-9)


def test_what_sampling_costs_is_the_difference_of_the_variances() -> None:
    """With rows drawn from far more, the scores of samples spread about the score of all as ``sampling_error`` says."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1200, 3)), rng.normal(size=(900, 3)) + 0.8

    def score(i: np.ndarray, j: np.ndarray) -> tuple[float, float]:
        xp, yp = (kernels.prepare(torch.from_numpy(r), precision="float64") for r in (x[i], y[j]))
        found = estimate(kernels.self_sums(xp), kernels.self_sums(yp), kernels.cross_sums(xp, yp), 0)
        return found.value, sampling_error(found, (len(x), len(y)))[1]

    whole, nothing = score(np.arange(1200), np.arange(900))
    assert nothing == pytest.approx(0, abs=1e-9)
    draws = [score(rng.permutation(1200)[:150], rng.permutation(900)[:100]) for _ in range(300)]
    values, errors = map(np.array, zip(*draws, strict=True))
    assert abs(values.mean() - whole) < 4 * values.std() / math.sqrt(300)
    assert values.std() == pytest.approx(errors.mean(), rel=0.12)  # sd of an sd from 300 draws: .04


def test_attach_refuses_another_sample(tmp_path: Path) -> None:
    whole, rows = pinned(LIMIT)
    reference.save(whole, tmp_path)
    cloud, prints, _ = make_cloud(SIZES)
    again = reference.attach(reference.load(tmp_path, "cpu"), cloud, prints, None)
    assert again.sample.offsets == rows.sample.offsets
    assert torch.equal(again.prepared.rows, rows.prepared.rows)
    other = replace(whole, limit=Limit(90, ""))
    with pytest.raises(reference.ReferenceMismatchError, match="another sample"):
        reference.attach(other, make_cloud(SIZES)[0], prints, None)


def test_other_segments_or_clusters_than_when_it_was_pinned_are_refused() -> None:
    """As many rows take part, but others: the pinned sums are not theirs."""
    cloud, prints, codes = make_cloud(SIZES, users=True)
    assert codes is not None
    segmented = replace(cloud, segments={"x": pa.array(["ab"[k % 3 == 0] for k in range(sum(SIZES))])})
    one, other = (draw(c, LIMIT) for c in (cloud, segmented))
    assert one.offsets == other.offsets
    changed = codes.clone()
    changed[:10] = codes[20]
    digests = {one.digest(None), other.digest(None), one.digest(codes), one.digest(changed)}
    assert len(digests) == 4
    assert one.digest(codes.clone()) == draw(make_cloud(SIZES, users=True)[0], LIMIT).digest(codes)
    whole, _ = pinned(LIMIT)
    for bad, its_codes in ((segmented, None), (cloud, codes)):
        with pytest.raises(reference.ReferenceMismatchError, match="another sample"):
            reference.attach(whole, replace(bad, embeddings=bad.embeddings.clone()), prints, its_codes)


@pytest.mark.usefixtures("no_pictures")
def test_a_pinned_reference_is_refused_with_other_segments(quiet: Path, tmp_path: Path) -> None:
    table = table_of(quiet)
    lang = pa.array(np.random.default_rng(0).choice(["a", "b"], len(table), p=[0.7, 0.3]))
    (tmp_path / "corpus").mkdir()
    pq.write_table(table.append_column("lang", lang), tmp_path / "corpus" / "a.parquet")
    run(tmp_path / "corpus", tmp_path / "out", {"score.rows": 600})
    with pytest.raises(reference.ReferenceMismatchError, match="another sample"):
        run(tmp_path / "corpus", tmp_path / "out", {"score.rows": 600, "source.segment_columns": ["lang"]})


def test_a_reference_window_without_usable_rows_is_named() -> None:
    cloud, _, _ = make_cloud((60, 3, 50))
    with pytest.raises(InsufficientDataError, match="too few usable rows are left of reference window"):
        reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT)


def test_a_sample_of_one_value_a_row() -> None:
    sample = Sample(torch.tensor([1, 3]), (0, 1, 2))
    assert sample.of(torch.tensor([5, 6, 7, 8])).tolist() == [6, 8]


@pytest.mark.usefixtures("no_pictures")
def test_the_job_says_how_many_rows_took_part_and_what_it_cost(drifted: Path, tmp_path: Path) -> None:
    ran = run(drifted, tmp_path / "some", {"score.rows": 600})
    assert ran.result["pair_rows"]["current"] == ROWS
    assert ran.result["pair_rows"]["reference"] == 600
    assert ran.result["rows"] == {"current": ROWS, "reference": 12 * ROWS}
    assert any("150 of 150 rows against 600 of 1,800" in note for note in ran.result["notes"])
    fewer = run(drifted, tmp_path / "fewer", {"score.rows": 100})
    assert fewer.result["pair_rows"]["current"] == 100
    assert fewer.result["pair_rows"]["se_of_sampling"] > 0
    total = fewer.result["pair_rows"]["se_of_sampling"] ** 2 + fewer.result["pair_rows"]["se_of_all_rows"] ** 2
    assert total == pytest.approx(fewer.result["metrics"]["energy"]["se"] ** 2, rel=1e-9)
    everything = run(drifted, tmp_path / "all")
    found = everything.result["pair_rows"]
    assert (found["method"], found["budget"]) == ("exact", 10**10)
    assert found["reason"] == "all rows take part within score.pairs=10,000,000,000"
    assert fewer.result["pair_rows"]["method"] == "sample"
    assert fewer.result["pair_rows"]["reason"] == (
        "100 of 150 rows of the window and 100 of 1,800 rows of the reference take part within score.rows=100"
    )
    assert not any("score.rows" in note for note in everything.result["notes"])
    for name in ("frechet", "psi", "mean_shift", "sliced_wasserstein", "log_variance_ratio"):
        assert fewer.result["metrics"][name] == everything.result["metrics"][name], name
    assert (ran.result["verdict"], everything.result["verdict"]) == ("alert", "alert")
    assert ran.result["window"]["label"] == LAST


@pytest.mark.usefixtures("no_pictures")
def test_a_rerun_keeps_the_reference_sample_and_another_limit_is_refused(quiet: Path, tmp_path: Path) -> None:
    first = run(quiet, tmp_path / "out", {"score.rows": 600})
    again = run(quiet, tmp_path / "out", {"score.rows": 600})
    assert first.lasting == again.lasting
    with pytest.raises(reference.ReferenceMismatchError) as caught:
        run(quiet, tmp_path / "out", {"score.rows": 700})
    assert caught.value.field == "score.rows"
    assert run(quiet, tmp_path / "out").result["pair_rows"]["reference"] == 600  # null keeps the reference's


@pytest.mark.usefixtures("no_pictures")
def test_a_budget_of_pairs_samples_the_reference_first(quiet: Path, tmp_path: Path) -> None:
    """125,000 pairs: 500 rows of the reference are 124,750, and 150 of the window beside them 86,175."""
    first = run(quiet, tmp_path / "out", {"score.pairs": 125_000})
    found = first.result["pair_rows"]
    assert (found["reference"], found["current"], found["method"], found["budget"]) == (500, ROWS, "sample", 125_000)
    assert "all 150 rows of the window and 500 of 1,800 rows of the reference" in found["reason"]
    assert any("against 500 of 1,800 (score.pairs)" in note for note in first.result["notes"])
    assert run(quiet, tmp_path / "out", {"score.pairs": 125_000}).lasting == first.lasting
    with pytest.raises(reference.ReferenceMismatchError) as caught:
        run(quiet, tmp_path / "out")
    assert caught.value.field == "score.pairs"
    few = run(quiet, tmp_path / "few", {"score.pairs": 20_000}).result["pair_rows"]
    assert (few["reference"], few["current"], few["limit"]) == (200, 100, 100)  # 82 fit, windows.min_rows stay
    run(quiet, tmp_path / "few", {"score.pairs": 20_000, "job": "plan"})
    planned = json.loads((tmp_path / "few" / "plan.json").read_text(encoding="utf-8"))
    assert (planned["method"], planned["reference"]["pair_rows"], planned["current"]["pair_rows"]) == (
        "sample",
        few["reference"],
        few["current"],
    )


@pytest.mark.usefixtures("no_pictures")
def test_a_window_of_the_reference_is_counted_without_itself(quiet: Path, tmp_path: Path) -> None:
    inside = {"run_date": "2026-01-14"}  # the second week of the reference
    whole = run(quiet, tmp_path / "all", inside)
    assert whole.result["calibration"]["in_reference"]
    assert not any("score.rows" in note for note in whole.result["notes"])
    assert whole.result["pair_rows"]["se_of_sampling"] == pytest.approx(0, abs=1e-9)
    some = run(quiet, tmp_path / "some", {"score.rows": 600, **inside})
    assert any("50 of 150 rows against 550 of 1,650 (score.rows)" in note for note in some.result["notes"])
