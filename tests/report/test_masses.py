"""The picture of the clusters' shares: what is drawn where, what is summed, what is said beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from picture_checks import LONG, assert_text_fits, shown_texts

from gpudrift.records import ClusterShift, ShiftKind
from gpudrift.report import masses, plots

KINDS: tuple[ShiftKind, ...] = ("new", "grown", "same", "shrunk", "gone")


def shift(index: int, kind: ShiftKind, reference: float, current: float, **values: object) -> ClusterShift:
    known = {"usual_sd": 0.005, "contribution": 0.001, "ids": (f"id{index}",), "reference_ids": (f"old{index}",)}
    fields = {"rows": round(1000 * current), "reference_rows": round(4000 * reference), "p": 0.01, "q": 0.02}
    return ClusterShift(
        index=index,
        kind=kind,
        share=current,
        reference_share=reference,
        p_usual=0.03,
        witness=0.01,
        **{**fields, **known, **values},  # type: ignore[arg-type]
    )


def some() -> list[ClusterShift]:
    """Twenty clusters: one of each kind of change, the others the same, most of them small."""
    changed = [
        shift(0, "new", 0.0, 0.12, contribution=0.006, labels=(("topic=a", 0.8), ("topic=b", 0.1))),
        shift(1, "grown", 0.05, 0.10, contribution=0.003),
        shift(2, "shrunk", 0.10, 0.05, contribution=-0.001, labels=(("topic=c", 0.04),)),
        shift(3, "gone", 0.04, 0.0, contribution=0.0005),
    ]
    return changed + [shift(k, "same", 0.01 + 0.005 * k, 0.011 + 0.005 * k, contribution=0.0001) for k in range(4, 20)]


def drawn(shifts: list[ClusterShift]) -> Axes:
    ax = Figure().subplots()
    chosen, rest = masses.chosen_clusters(shifts)
    masses.draw_masses(ax, chosen, rest, sum(s.contribution for s in shifts))
    return ax


def test_a_picture_of_every_kind(check_picture: Callable[..., tuple[plots.Picture, Figure]]) -> None:
    picture, figure = check_picture(lambda stem: plots.cluster_masses(some(), stem, labels=("2021", "2026-W43")))
    said = [text for text, _ in shown_texts(figure)]
    assert "topic=a (80%)\nid0" in said
    assert "cluster 1\nid1" in said
    assert "cluster 2\nid2" in said  # 4% of its rows name nothing
    assert "cluster 3\nold3" in said  # it has no rows now
    assert "4 of 20 clusters changed beyond chance." in " ".join(said)
    before, now = (sum(0.01 + 0.005 * k + more for k in range(4, 18)) for more in (0.0, 0.001))
    assert f"14 others together: {100 * before:.1f}% to {100 * now:.1f}%" in said
    total = sum(s.contribution for s in some())
    assert f"{100 * 0.006 / total:.0f}%" in said
    assert f"−{100 * 0.001 / total:.0f}%" in said
    assert {"now: new", "now: grown", "now: shrunk", "now: gone", "now: no certain change"} <= set(said)
    told = "topic=a (80%) new, 0.0% to 12.0%; cluster 1 grown, 5.0% to 10.0%; cluster 2 shrunk, 10.0% to 5.0%."
    assert picture.alt_text.endswith(f"20 clusters: {told}")


def test_marks_stand_at_the_shares_and_the_band_is_the_usual_range() -> None:
    shifts = some()
    chosen, rest = masses.chosen_clusters(shifts)
    ax = drawn(shifts)
    bands = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert len(bands) == len(chosen)
    for y, s in enumerate(chosen):
        here = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_ydata()[0] == y]
        ring, mark = here
        assert ring.get_xdata()[0] == pytest.approx(100 * s.reference_share)
        assert mark.get_xdata()[0] == pytest.approx(100 * s.share)
        assert (mark.get_marker(), mark.get_color()) == (masses.KIND_MARKERS[s.kind], masses.KIND_COLORS[s.kind])
        low, high = bands[y].get_x(), bands[y].get_x() + bands[y].get_width()
        assert low == pytest.approx(max(100 * (s.reference_share - 1.96 * s.usual_sd), 0))
        assert high == pytest.approx(100 * (s.reference_share + 1.96 * s.usual_sd))
    assert len(rest) == len(shifts) - len(chosen)
    moves = [s.share - s.reference_share for s in chosen]
    assert moves == sorted(moves, reverse=True)


def test_changes_and_the_largest_are_drawn_and_the_rest_is_summed() -> None:
    chosen, rest = masses.chosen_clusters(some())
    assert {s.index for s in chosen} == {0, 1, 2, 3, 18, 19}  # 0 and 2 are among the four largest too
    assert all(s.kind == "same" for s in rest)
    many = [dataclasses.replace(s, kind="grown", contribution=0.01 * s.index) for s in some()]
    chosen, rest = masses.chosen_clusters(many)
    assert len(chosen) == masses.MOST
    assert min(s.contribution for s in chosen) >= max(s.contribution for s in rest)
    assert masses.chosen_clusters(some()[::-1])[0] == masses.chosen_clusters(some())[0]


def test_kinds_differ_by_colour_lightness_and_mark() -> None:
    assert len({masses.KIND_MARKERS[kind] for kind in KINDS}) == len({masses.KIND_COLORS[kind] for kind in KINDS}) == 5
    light = sorted(float(np.dot([0.2126, 0.7152, 0.0722], to_rgb(masses.KIND_COLORS[kind]))) for kind in KINDS)
    assert light[-1] - light[0] > 0.25


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_few_clusters_are_drawn(count: int, capture: Callable[..., Figure]) -> None:
    figure = capture(lambda: plots.cluster_masses(some()[:count], "p"))
    said = [text for text, _ in shown_texts(figure)]
    assert ("no clusters were compared" in said) == (count == 0)
    assert not any("other" in text for text in said)
    if count:
        assert_text_fits(figure)


def test_a_score_that_is_no_positive_number_is_not_divided_by(capture: Callable[..., Figure]) -> None:
    shifts = [shift(0, "grown", 0.1, 0.2, contribution=-0.02), shift(1, "same", 0.9, 0.8, contribution=0.01)]
    said = [text for text, _ in shown_texts(capture(lambda: plots.cluster_masses(shifts, "p")))]
    assert {"−0.02", "0.01"} <= set(said)
    nothing = [shift(0, "same", 0.0, 0.0, usual_sd=0.0, contribution=0.0)]
    assert_text_fits(capture(lambda: plots.cluster_masses(nothing, "p")))


def test_hostile_labels_and_wide_numbers_fit(check_picture: Callable[..., tuple[plots.Picture, Figure]]) -> None:
    shifts = [
        dataclasses.replace(s, index=k, labels=((LONG, 0.5),), ids=(LONG, LONG), rows=123_456_789, kind=KINDS[k % 5])
        for k, s in enumerate(some() * 3)
    ]
    shifts[0] = dataclasses.replace(shifts[0], contribution=-1.23456e-9)
    picture, _ = check_picture(lambda stem: plots.cluster_masses(shifts, stem, labels=(LONG, LONG)))
    svg = picture.svg.read_text("utf-8")
    assert "a$b_{c}$" in svg
    assert "<img" not in svg
