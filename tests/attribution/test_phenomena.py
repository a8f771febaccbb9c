"""What happened, in words: each phenomenon from constructed records, what is not told twice, and from clouds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_cloud import MONDAY, SETTINGS, weeks

from gpudrift import reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.attribution.attribute import AttributionSettings, attribute, inputs_of
from gpudrift.attribution.phenomena import explain
from gpudrift.attribution.phrases import digits, name, percents
from gpudrift.calibrate import Limits
from gpudrift.fingerprint import canonical
from gpudrift.panel import PanelSettings
from gpudrift.records import Cloud, ClusterShift, ComponentShift, GateMetric, Metric, Phenomenon, Quality
from gpudrift.sampling import Limit
from gpudrift.scoring import Scorer

QUIET = 0.4


def gate(metric: str, value: float = 0.02, p: float = QUIET, *, usual: float = 0.0, high: float = 0.01) -> GateMetric:
    """A U-statistic, with c = .001, or a signed metric; p is the adjusted one."""
    if metric.startswith(("energy", "mmd2")):
        return GateMetric(metric, value, 0.001, 0.001, usual, p / 6, p, None, high, 0.001)
    return GateMetric(metric, value, 0.01, None, usual, p / 6, p, usual - 0.03, usual + 0.03, 0.001)


def gates(**fired: float | tuple[float, float]) -> list[GateMetric]:
    """All six; those named fired at that value, or (value, usual value)."""
    names = ("energy", "mmd2_b1", "mmd2_b2", "log_variance_ratio", "residual_energy", "classifier_auc")
    made = []
    for metric in names:
        value = fired.get(metric)
        value, usual = value if isinstance(value, tuple) else (value, 0.0)
        made.append(gate(metric, 0.0) if value is None else gate(metric, value, 0.001, usual=usual))
    return made


def cluster(
    kind: str,
    before: float,
    share: float,
    *,
    index: int = 0,
    contribution: float = 0.0,
    witness: float = 0.0,
    sd: float = 0.002,
    p_usual: float = 1e-4,
    q: float = 1e-4,
    ids: tuple[str, ...] = (),
    reference_ids: tuple[str, ...] = (),
    labels: tuple[tuple[str, float], ...] = (),
) -> ClusterShift:
    """Shares of 1000 current rows and 10,000 of the reference."""
    rows, reference_rows = round(1000 * share), round(10_000 * before)
    return ClusterShift(
        index, kind, rows, reference_rows, share, before, sd, q, q, p_usual, contribution, witness,
        ids, reference_ids, labels,
    )  # fmt: skip


def same(before: float, share: float | None = None, **more: float) -> ClusterShift:
    return cluster("same", before, before if share is None else share, p_usual=QUIET, q=QUIET, **more)


def mean(value: float = 0.16, se: float = 0.01) -> dict[str, Metric]:
    return {"mean_shift": Metric("mean_shift", value, se), "residual_energy": residual()}


def residual(share: float = 0.5) -> Metric:
    return Metric("residual_energy", 0.0, 0.01, {"share_reference": share})


def components(*shifts: float, se: float = 0.05) -> tuple[ComponentShift, ...]:
    numbered = [ComponentShift(k, shift, se, 0.0, None) for k, shift in enumerate(shifts, start=1)]
    return (*numbered, ComponentShift(None, None, None, 0.0, None))


def only(found: tuple[Phenomenon, ...], kind: str) -> Phenomenon:
    assert [phenomenon.kind for phenomenon in found] == [kind]
    return found[0]


def kinds(found: tuple[Phenomenon, ...]) -> list[str]:
    return [phenomenon.kind for phenomenon in found]


def test_a_usual_window_has_nothing_to_tell() -> None:
    assert explain(gates(), mean(), [same(0.5), same(0.5)], components(0.3, 0.1)) == ()
    assert explain([], {}, [], ()) == ()


@pytest.mark.parametrize(("p", "count"), [(0.0099, 1), (0.01, 0)])
def test_a_metric_counts_below_p_alone(p: float, count: int) -> None:
    assert len(explain([gate("log_variance_ratio", 0.2, p)], {}, [], ())) == count
    assert len(explain([gate("log_variance_ratio", 0.2, p * 5)], {}, [], (), p=0.05)) == count


def test_a_distance_within_its_noise_has_not_fired() -> None:
    """Three null sd, as a warning has it."""
    assert explain([gate("energy", 0.003, 0.001)], mean(), [], ()) == ()
    assert len(explain([gate("energy", 0.0031, 0.001)], mean(), [], ())) == 1


def test_a_new_cluster() -> None:
    new = cluster("new", 0.0, 0.031, index=4, contribution=0.02, ids=("a", "b", "c", "d"))
    found = only(explain(gates(energy=0.02), {}, [same(1.0, 0.969), new], ()), "new_cluster")
    assert found.sentence == "a new cluster of about 3% of the rows (ids a, b, c)"
    assert found.size == pytest.approx(0.031)
    assert found.evidence == ("cluster 4",)


def test_a_new_cluster_without_ids_or_with_one_and_a_label() -> None:
    new = cluster("new", 0.0, 0.004)
    assert explain(gates(), {}, [new], ())[0].sentence == "a new cluster of about 0.4% of the rows"
    new = replace(new, ids=("only one",), labels=(("language=de", 0.8), ("tier=free", 0.7)))
    expected = 'a new cluster of about 0.4% of the rows, mostly language=de (id "only one")'
    assert explain(gates(), {}, [new], ())[0].sentence == expected
    # too few of its rows have it for the cluster to be named after it
    assert "mostly" not in explain(gates(), {}, [replace(new, labels=(("language=de", 0.4),))], ())[0].sentence


def test_several_new_clusters_the_largest_first() -> None:
    new = [
        cluster("new", 0.0, 0.03, index=1, ids=("c",), labels=(("topic=b", 0.9),)),
        cluster("new", 0.0, 0.04, index=2, ids=("a", "b"), labels=(("topic=a", 0.9),)),
    ]
    found = only(explain(gates(energy=0.02), {}, new, ()), "new_cluster")
    assert found.sentence == (
        "two new clusters, together about 7% of the rows: about 4%, mostly topic=a (ids a, b) and about 3%, mostly "
        "topic=b (id c)"
    )
    assert found.evidence == ("cluster 2", "cluster 1")
    alike = [replace(c, labels=(("topic=a", 0.9),)) for c in new]
    assert explain(gates(energy=0.02), {}, alike, ())[0].sentence == (
        "two new clusters, together about 7% of the rows, mostly topic=a: about 4% (ids a, b) and about 3% (id c)"
    )


def test_of_many_new_clusters_three_are_named() -> None:
    new = [cluster("new", 0.0, share, index=k) for k, share in enumerate((0.05, 0.04, 0.03, 0.02, 0.01))]
    found = only(explain(gates(energy=0.02), {}, new, ()), "new_cluster")
    expected = "five new clusters, together about 15% of the rows: about 5%, about 4%, about 3% and two smaller"
    assert found.sentence == expected
    many = [cluster("new", 0.0, 0.01, index=k) for k in range(13)]
    assert explain(gates(energy=0.02), {}, many, ())[0].sentence.startswith("13 new clusters, together about 13%")


@pytest.mark.parametrize(
    "change",
    [{"p_usual": 0.01}, {"q": 0.05}, {"p_usual": math.nan}, {"q": math.nan}, {"kind": "same"}],
)
def test_a_cluster_within_its_usual_movement_is_not_told(change: dict[str, float]) -> None:
    new = cluster("new", 0.0, 0.05, contribution=0.02)
    assert kinds(explain(gates(mmd2_b1=0.02), {}, [new], ())) == ["new_cluster"]
    assert kinds(explain(gates(mmd2_b1=0.02), {}, [replace(new, **change)], ())) == ["other"]


def test_where_no_metric_fired_one_of_many_clusters_has_to_stand_out_of_them_all() -> None:
    others = [same(0.05, index=k) for k in range(1, 20)]
    new = cluster("new", 0.0, 0.02, p_usual=0.0006)
    assert explain(gates(), {}, [new, *others], ()) == ()
    assert kinds(explain(gates(), {}, [replace(new, p_usual=0.0004), *others], ())) == ["new_cluster"]
    assert kinds(explain(gates(mmd2_b1=0.02), {}, [new, *others], ())) == ["new_cluster"]


def test_clusters_gone() -> None:
    gone = cluster("gone", 0.06, 0.0, index=3, reference_ids=("x", "y"), labels=(("topic=old", 1.0),))
    found = only(explain(gates(energy=0.02), {}, [gone], ()), "gone_cluster")
    expected = "a cluster that was about 6% of the reference is gone, mostly topic=old (ids x, y)"
    assert found.sentence == expected
    assert (found.size, found.evidence) == (0.06, ("cluster 3",))
    # labels are of the few rows left: they say nothing about those that went
    almost = replace(gone, share=0.004, rows=4)
    expected = "a cluster that was about 6% of the reference is almost gone (ids x, y)"
    assert explain(gates(energy=0.02), {}, [almost], ())[0].sentence == expected
    two = [gone, cluster("gone", 0.02, 0.0, index=4)]
    assert explain(gates(energy=0.02), {}, two, ())[0].sentence == (
        "two clusters that were together about 8% of the reference are gone: about 6%, mostly topic=old (ids x, y) and "
        "about 2%"
    )


def test_reweighted_clusters() -> None:
    clusters = [
        cluster("grown", 0.05, 0.08, index=1, contribution=0.01, ids=("a",), labels=(("topic=t", 0.6),)),
        cluster("grown", 0.03, 0.06, index=2, contribution=0.01),
        cluster("shrunk", 0.20, 0.14, index=3, contribution=0.02),
        same(0.72),
    ]
    found = only(explain(gates(energy=0.04), {}, clusters, ()), "reweighted_clusters")
    assert found.sentence == (
        "two clusters grew, from 8% to 14% of the rows together, most of all the one mostly topic=t (id a), and one "
        "shrank, from 20% to 14% of the rows"
    )
    assert found.size == pytest.approx(0.06)
    assert found.evidence == ("cluster 1", "cluster 2", "cluster 3")


def test_one_cluster_that_grew_or_shrank() -> None:
    grown = cluster("grown", 0.081, 0.0842, ids=("a", "b"), sd=1e-4)
    found = only(explain(gates(energy=0.04), {}, [grown], ()), "reweighted_clusters")
    assert found.sentence == "one cluster grew, from 8.1% to 8.4% of the rows (ids a, b)"
    shrunk = cluster("shrunk", 0.2, 0.11, reference_ids=("c",))
    found = only(explain(gates(energy=0.04), {}, [shrunk], ()), "reweighted_clusters")
    assert found.sentence == "one cluster shrank, from 20% to 11% of the rows (id c)"
    assert found.size == pytest.approx(0.09)


def test_clusters_thinned_out_by_a_new_one_have_not_shrunk() -> None:
    """The others keep 70% of what they had, one of them half of it."""
    new = cluster("new", 0.0, 0.3, contribution=0.1)
    others = [cluster("shrunk", 0.5, 0.351, index=1, contribution=0.01), cluster("shrunk", 0.3, 0.209, index=2)]
    assert kinds(explain(gates(energy=0.1), {}, [new, *others, same(0.2, 0.14)], ())) == ["new_cluster"]
    more = [*others, cluster("shrunk", 0.2, 0.1, index=3)]
    found = explain(gates(energy=0.1), {}, [new, *more], ())
    assert kinds(found) == ["new_cluster", "reweighted_clusters"]
    assert found[1].evidence == ("cluster 3",)


def test_clusters_that_take_over_from_one_gone_have_not_grown() -> None:
    clusters = [cluster("gone", 0.2, 0.0), cluster("grown", 0.4, 0.499, index=1), cluster("grown", 0.4, 0.501, index=2)]
    assert kinds(explain(gates(energy=0.1), {}, clusters, ())) == ["gone_cluster"]


@pytest.mark.parametrize(
    ("fired", "sentence", "size"),
    [
        ({"log_variance_ratio": math.log(0.94)}, "the spread shrank by 6% in total variance", -0.06),
        ({"log_variance_ratio": math.log(1.06)}, "the spread grew by 6% in total variance", 0.06),
        ({"log_variance_ratio": math.log(3.2)}, "the spread grew 3.2-fold in total variance", 2.2),
        ({"log_variance_ratio": 27.0}, "the spread grew more than 99-fold in total variance", math.expm1(27)),
        ({"log_variance_ratio": math.log(1e-5)}, "the spread shrank by 99.999% in total variance", 1e-5 - 1),
        ({"residual_energy": math.log(1.002)}, "the spread grew by 0.2% outside the principal components", 0.002),
        (
            {"log_variance_ratio": math.log(1.06), "residual_energy": math.log(1.09)},
            "the spread grew by 6% in total variance and by 9% outside the principal components",
            0.06,
        ),
        (
            {"log_variance_ratio": math.log(1.06), "residual_energy": math.log(0.9)},
            "the spread grew by 6% in total variance but shrank by 10% outside the principal components",
            0.06,
        ),
        # a week has less variance than many together: what counts is against its usual
        ({"log_variance_ratio": (-0.01, -0.1)}, "the spread grew by 9% in total variance", math.expm1(0.09)),
    ],
)
def test_spread(fired: dict[str, float], sentence: str, size: float) -> None:
    found = only(explain(gates(**fired), mean(0.0), [], components(0.0)), "spread")
    assert found.sentence == sentence
    assert found.size == pytest.approx(size, rel=1e-3)
    assert found.evidence == tuple(fired)


def test_a_spread_that_moved_the_energy_is_no_shift_of_the_mean() -> None:
    """Every mean moves a little, and is known to where rows are many."""
    assert kinds(explain(gates(energy=0.02, log_variance_ratio=0.1), mean(), [], components(0.4))) == ["spread"]
    both = explain(gates(energy=0.02, log_variance_ratio=0.1, classifier_auc=0.2), mean(), [], components(0.4))
    assert set(kinds(both)) == {"spread", "mean_shift"}


def test_a_mean_shift() -> None:
    found = only(explain(gates(energy=0.02, classifier_auc=0.2), mean(0.16), [], components(0.1, -0.5)), "mean_shift")
    assert found.sentence == "the mean moved by 0.4 of a reference standard deviation, most along component 2"
    assert found.size == pytest.approx(0.4)
    assert found.evidence == ("mean_shift", "classifier_auc")
    far = only(explain(gates(energy=0.02), mean(1.69), [], ()), "mean_shift")
    assert far.sentence == "the mean moved by 1.3 reference standard deviations"
    assert far.evidence == ("mean_shift",)


def test_a_mean_shift_that_the_components_do_not_show() -> None:
    """AUC .86 is 1.5 sd along the best direction."""
    found = only(explain(gates(energy=0.02, classifier_auc=0.36), mean(), [], components(0.3, -0.2)), "mean_shift")
    assert found.sentence.endswith(", most of it outside the leading components")
    found = only(explain(gates(energy=0.02), mean(), [], components(0.09, -0.09)), "mean_shift")
    assert found.sentence.endswith(", most of it outside the leading components")


def test_a_mean_within_its_error_has_not_moved() -> None:
    assert kinds(explain(gates(energy=0.02), mean(0.019, 0.01), [], components(0.1))) == ["other"]
    assert kinds(explain(gates(energy=0.02), mean(-0.01, None), [], ())) == ["other"]
    assert kinds(explain(gates(energy=0.02), {}, [], ())) == ["other"]


def test_low_variance_shift() -> None:
    found = only(
        explain(gates(classifier_auc=(0.21, 0.04)), mean(0.001), [], components(0.1, 0.1)), "low_variance_shift"
    )
    assert found.sentence == (
        "rows moved along directions of little variance, which the distances hardly see (a classifier tells the "
        "windows apart with AUC 0.71, usually 0.54)"
    )
    assert found.size == pytest.approx(0.71)
    close = explain(gates(classifier_auc=(0.014, 0.006)), {}, [], ())[0]
    assert close.sentence.endswith("with AUC 0.514, usually 0.506)")


def test_a_shift_along_leading_components_is_one_of_the_mean_though_no_distance_fired() -> None:
    assert kinds(explain(gates(classifier_auc=0.21), mean(), [], components(0.7, 0.1))) == ["mean_shift"]


def test_told_apart_less_than_usual_is_no_shift() -> None:
    found = only(explain(gates(classifier_auc=(-0.1, 0.04)), mean(), [], components(0.7)), "other")
    assert found.sentence == "classifier_auc is below its usual movement, but no cluster, mean or spread stands out"


NEW = cluster("new", 0.0, 0.05, contribution=0.018)
OLD = same(1.0, 0.95, contribution=0.002)


def test_a_mean_that_a_new_cluster_moved_is_not_told_twice() -> None:
    """Energy .02, of which the new cluster makes .018; the limit of the usual movement is .01."""
    found = explain(gates(energy=0.02, mmd2_b1=0.02, classifier_auc=0.04), mean(), [NEW, OLD], components(0.5))
    assert kinds(found) == ["new_cluster"]


def test_a_mean_that_moved_further_than_the_new_cluster_says_so() -> None:
    """.012 of .03 is left, within the clusters that were there."""
    clusters = [NEW, replace(OLD, contribution=0.012, witness=0.0126)]
    found = explain(gates(energy=0.03, classifier_auc=0.04), mean(), clusters, components(0.5))
    assert kinds(found) == ["new_cluster", "mean_shift"]
    assert found[1].sentence == (
        "the mean moved by 0.4 of a reference standard deviation, most along component 1, more than the change of "
        "clusters accounts for"
    )


def test_an_auc_that_a_new_cluster_cannot_reach_is_told() -> None:
    """5% of new rows raise the AUC by .049 at most."""
    found = explain(gates(energy=0.02, classifier_auc=0.068), mean(), [NEW, OLD], components(0.5))
    assert kinds(found) == ["new_cluster"]  # .048 above, less two standard errors
    found = explain(gates(energy=0.02, classifier_auc=0.07), mean(), [NEW, OLD], components(0.5))
    assert kinds(found) == ["new_cluster", "mean_shift"]
    found = explain(gates(mmd2_b1=0.02, classifier_auc=0.07), mean(0.0), [NEW, OLD], components(0.0))
    assert kinds(found) == ["new_cluster", "low_variance_shift"]


def test_a_change_of_shares_and_a_movement_within_them_by_their_part_of_the_score() -> None:
    """A grown cluster: .05 more rows at (B - A) / 2 = .2 are .01 of its part."""
    grown = cluster("grown", 0.1, 0.15, contribution=0.01, witness=0.2)
    fired = gates(energy=0.05, classifier_auc=0.2)
    found = explain(fired, mean(), [grown, same(0.9, 0.85, contribution=0.04)], components(0.5))
    assert kinds(found) == ["mean_shift", "reweighted_clusters"]
    grown = replace(grown, contribution=0.03, witness=0.6)
    found = explain(fired, mean(), [grown, same(0.9, 0.85, contribution=0.02)], components(0.5))
    assert kinds(found) == ["reweighted_clusters", "mean_shift"]


def test_a_mean_that_the_classifier_did_not_notice_is_what_the_reweighted_clusters_made() -> None:
    grown = cluster("grown", 0.1, 0.15, contribution=0.01, witness=0.2)
    rest = same(0.9, 0.85, contribution=0.04)
    assert kinds(explain(gates(energy=0.05), mean(), [grown, rest], components(0.5))) == ["reweighted_clusters"]


def test_a_spread_beside_clusters_says_that_they_may_make_it() -> None:
    found = explain(gates(energy=0.02, log_variance_ratio=math.log(1.5)), {}, [NEW, OLD], ())
    assert kinds(found) == ["new_cluster", "spread"]
    assert found[1].sentence == "the spread grew by 50% in total variance, which the change of clusters may account for"


def test_a_residual_that_the_shift_of_the_mean_makes_is_not_told() -> None:
    """It is taken about the pinned mean: a shift of .16 of the variance adds .32 to a residual that is half of it."""
    fired = {"energy": 0.02, "classifier_auc": 0.2}
    for change, told in ((1.31, ["mean_shift"]), (1.33, ["mean_shift", "spread"]), (0.8, ["mean_shift", "spread"])):
        assert kinds(explain(gates(**fired, residual_energy=math.log(change)), mean(0.16), [], components(0.5))) == told
    both = gates(**fired, log_variance_ratio=0.2, residual_energy=math.log(1.31))
    found = explain(both, mean(0.16), [], components(0.5))
    assert kinds(found) == ["mean_shift", "spread"]
    assert found[1].evidence == ("log_variance_ratio", "residual_energy")


def test_a_cloud_that_moved_as_a_whole_is_one_shift() -> None:
    clusters = [
        cluster("new", 0.0, 0.6, index=0, contribution=2.0),
        cluster("new", 0.0, 0.25, index=1, contribution=1.0),
        cluster("gone", 0.5, 0.0, index=2, contribution=1.0),
        cluster("gone", 0.4, 0.0, index=3, contribution=1.0),
        same(0.1, 0.15),
    ]
    found = only(explain(gates(energy=5.0, classifier_auc=0.5), mean(9.0), clusters, components(5.0)), "mean_shift")
    assert found.sentence == (
        "the mean moved by 3 reference standard deviations, most along component 1, and about 85% of the rows lie "
        "where the reference had hardly any"
    )
    assert found.evidence == ("mean_shift", "classifier_auc", "cluster 0", "cluster 1", "cluster 2", "cluster 3")
    # half the rows new, and nothing gone: that is a new cluster
    assert kinds(explain(gates(energy=5.0), mean(9.0), [*clusters[:2], same(1.0, 0.15)], components(4.0))) == [
        "new_cluster"
    ]


def test_what_nothing_explains_names_the_metrics() -> None:
    found = only(explain(gates(mmd2_b1=0.02), mean(0.0), [same(1.0)], components(0.0)), "other")
    assert found.sentence == "mmd2_b1 is beyond its usual movement, but no cluster, mean or spread stands out"
    assert (found.size, found.evidence) == (0.02, ("mmd2_b1",))
    found = only(explain(gates(energy=0.02, mmd2_b1=0.02, mmd2_b2=0.03), {}, [], ()), "other")
    assert found.sentence.startswith("energy, mmd2_b1 and mmd2_b2 are beyond their usual movement, but ")
    found = only(explain(gates(energy=0.02, classifier_auc=(-0.2, 0.0)), {}, [], ()), "other")
    assert found.sentence.startswith("energy is beyond its usual movement and classifier_auc is below its usual ")


def test_the_order_of_records_changes_nothing() -> None:
    grown = cluster("grown", 0.1, 0.15, index=2, contribution=0.01, witness=0.2)
    clusters = [NEW, grown, replace(NEW, index=5), same(0.9, 0.75, contribution=0.04)]
    fired = gates(energy=0.05, classifier_auc=0.2, log_variance_ratio=0.1)
    found = explain(fired, mean(), clusters, components(0.5, 0.2))
    assert len(found) == 4
    assert explain(fired[::-1], mean(), clusters[::-1], components(0.5, 0.2)) == found


HOSTILE = "<b>[red]caused by\n\x1b[31m\u202e" + "x" * 90 + "</b>"


def test_names_from_the_data_stay_short_plain_text() -> None:
    new = cluster("new", 0.0, 0.05, ids=(HOSTILE, 'a "b", c', "", "d"), labels=((f"k={HOSTILE}", 1.0),))
    sentence = explain(gates(energy=0.02), {}, [new], ())[0].sentence
    assert sentence.isprintable()
    assert "\n" not in sentence
    assert len(sentence) < 200
    assert sentence.endswith('…", "a \'b\', c", "")')
    assert name("plain-id_1:2/3") == "plain-id_1:2/3"
    assert name("n" * 40) == "n" * 40
    assert name("n" * 41) == "n" * 39 + "…"
    assert name("\x07" * 10_000) == "?" * 39 + "…"


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=2))
def test_no_share_reads_as_nothing_or_as_all(shares: list[float]) -> None:
    for text, share in zip(percents(*shares), shares, strict=True):
        assert not text.startswith(("0%", "0.0%", "0.00%", "0.000%", "0.0000%"))
        if share < 1 - 1e-6:
            assert not text.startswith("100")
        if share > 5e-6:
            assert float(text.rstrip("%")) == pytest.approx(100 * share, rel=0.2)


@pytest.mark.parametrize(
    ("shares", "texts"),
    [
        ((0.08, 0.14), ["8%", "14%"]),
        ((0.0812, 0.0849), ["8.1%", "8.5%"]),
        ((0.004, 0.2), ["0.4%", "20.0%"]),
        ((0.006,), ["0.6%"]),
        ((0.014,), ["1.4%"]),
        ((0.024,), ["2%"]),
        ((0.9996,), ["99.96%"]),
        ((0.1 + 0.2 + 0.7,), ["100%"]),
        ((0.0,), ["0%"]),
        ((1e-7,), ["less than 0.0001%"]),
    ],
)
def test_shares_in_words(shares: tuple[float, ...], texts: list[str]) -> None:
    assert percents(*shares) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4, "0.4"),
        (0.0123, "0.012"),
        (0.996, "1"),
        (1.34, "1.3"),
        (9.96, "10"),
        (1234.5, "1,234"),
        (1e-7, "0.0000001"),
    ],
)
def test_sizes_in_words(value: float, text: str) -> None:
    assert digits(value) == text


# From clouds: eight topics of unequal size in 32 dimensions, standard deviations from 1.4 down to 0.2, a small wobble
# from window to window; ten windows of 600 rows are the reference.

DIMS, ROWS, WINDOWS = 32, 600, 10
PANEL = PanelSettings(pca_components=8, components=4, bins=4, directions=8)
EVERY = Limit(10**9, "all rows")
_RNG = np.random.default_rng(0)
CENTRES = _RNG.normal(size=(9, DIMS))
SD = np.linspace(1.4, 0.2, DIMS)
TURN = np.linalg.qr(_RNG.normal(size=(DIMS, DIMS)))[0]
TOPICS = np.array([0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.05, 0.05])
MEAN = 0.25 * _RNG.choice([-1.0, 1.0], DIMS)
LOW = np.where(np.arange(DIMS) < DIMS - 8, 0.0, 0.1 * (-1.0) ** np.arange(DIMS))


def _rows(rng: np.random.Generator, shift: np.ndarray | float, spread: float, new: float, topics: np.ndarray):
    weights = topics * np.exp(0.09 * rng.normal(size=8))
    topic = rng.choice(8, size=ROWS, p=weights / weights.sum())
    topic[rng.random(ROWS) < new] = 8
    wobble = 0.03 * rng.normal(size=DIMS) * SD
    rows = CENTRES[topic] + spread * SD * rng.normal(size=(ROWS, DIMS)) + shift + wobble
    return (rows @ TURN).astype(np.float32), topic


def _cloud(
    first: int,
    count: int,
    *,
    shift: np.ndarray | float = 0.0,
    spread: float = 1.0,
    new: float = 0.0,
    topics: np.ndarray = TOPICS,
) -> tuple[Cloud, tuple[str, ...]]:
    made = [_rows(np.random.default_rng((2, first + k)), shift, spread, new, topics) for k in range(count)]
    return canonical(
        Cloud(
            embeddings=torch.from_numpy(np.concatenate([rows for rows, _ in made])),
            windows=weeks(first, count),
            offsets=tuple(range(0, ROWS * count + 1, ROWS)),
            quality=tuple(Quality(ROWS, ROWS, {}, {}) for _ in range(count)),
            ids=pa.array([f"w{first + k}-{i}" for k in range(count) for i in range(ROWS)]),
            segments={"topic": pa.array([f"t{t}" for _, topic in made for t in topic])},
            encoder_id="e5",
        ),
        0,
    )


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    cloud, prints = _cloud(0, WINDOWS)
    arithmetic = Arithmetic("float32", "as the tests want it", 1.0)
    screened = reference.screen(cloud, hygiene_sd=40.0, arithmetic=arithmetic)
    assert screened.mean is not None
    whole, rows = reference.build(
        cloud,
        prints,
        screened.mean,
        dropped=[],
        span=(MONDAY, cloud.windows[-1].end),
        period="week",
        left_out=[],
        panel=PANEL,
        settings=SETTINGS,
        arithmetic=arithmetic,
        limit=EVERY,
    )
    return Scorer(whole, rows, PANEL, Limits(), EVERY)


def _moved(topic: int, mass: float) -> np.ndarray:
    """Topic weights with one changed; the others share the difference."""
    others = TOPICS * (1 - mass) / (1 - TOPICS[topic])
    return np.where(np.arange(8) == topic, mass, others)


@pytest.mark.parametrize(
    ("drift", "expected", "besides"),
    [
        ({}, [], set()),
        ({"shift": MEAN}, ["mean_shift"], {"reweighted_clusters"}),
        ({"shift": LOW}, ["low_variance_shift"], set()),
        ({"spread": 1.1}, ["spread"], set()),
        ({"spread": 0.9}, ["spread"], set()),
        ({"new": 0.1}, ["new_cluster"], {"spread"}),
        ({"new": 0.1, "shift": MEAN}, ["new_cluster", "mean_shift"], {"spread", "reweighted_clusters"}),
        ({"topics": _moved(0, 0.0)}, ["gone_cluster"], {"reweighted_clusters"}),
        ({"topics": _moved(4, 0.4)}, ["reweighted_clusters"], set()),
        ({"shift": 6.0}, ["mean_shift"], set()),
    ],
    ids=["none", "mean", "low variance", "wider", "narrower", "new", "new and mean", "gone", "reweighted", "far away"],
)
def test_planted_drift_is_told_as_what_it_is(
    scorer: Scorer, drift: dict[str, object], expected: list[str], besides: set[str]
) -> None:
    """besides: what may be told after it. A shift of the mean takes rows across the borders of clusters, and a new
    cluster has a spread of its own."""
    cloud, _ = _cloud(WINDOWS + 3, 1, **drift)
    scored = scorer.score(cloud, None)
    assert scored.taken is not None
    assert scored.measured is not None
    inputs = inputs_of(
        scorer.rows,
        scorer.offsets,
        scored.taken.cloud,
        scored.taken.sample,
        scored.measured,
        scorer.reference.pins.basis,
    )
    attributed = attribute(inputs, AttributionSettings())
    found = explain(scored.gates, scored.measured.metrics, attributed.clusters, attributed.components)
    assert kinds(found)[: len(expected)] == expected
    assert set(kinds(found)[len(expected) :]) <= besides
    for phenomenon in found:
        assert "cause" not in phenomenon.sentence
        if phenomenon.kind == "new_cluster":
            assert "mostly topic=t8" in phenomenon.sentence
            assert 0.03 < phenomenon.size < 0.2
        if phenomenon.kind == "spread":
            assert math.copysign(1.0, phenomenon.size) == math.copysign(1.0, drift.get("spread", 2.0) - 1.0)
