"""The witness map: colours are the witness values, the drifted rows lie on top and are named."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from picture_checks import LONG, NASTY, assert_text_fits, shown_texts

from gpudrift.errors import ArgumentError
from gpudrift.report import plots, witness
from gpudrift.report.density import frame_of

Check = Callable[..., tuple[plots.Picture, Figure]]


def rows(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A reference, and a current window of which the last tenth is new and has the largest witness values."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(m, 2))
    new = np.arange(m) >= m - m // 10
    y[new] = rng.normal([3.0, 3.0], 0.2, size=(int(new.sum()), 2))
    return rng.normal(size=(n, 2)), y, np.where(new, 1.0, 0.0) + rng.normal(0, 0.1, m)


def marks(figure: Figure) -> list[PathCollection]:
    """The marks coloured by a value: circles, then triangles."""
    found = [c for ax in figure.axes for c in ax.collections if isinstance(c, PathCollection)]
    return [c for c in found if c.get_array() is not None]


def luminance(color: object) -> float:
    return float(np.dot([0.2126, 0.7152, 0.0722], to_rgb(color)))  # type: ignore[arg-type]


def test_a_map_with_names_and_centres(check_picture: Check) -> None:
    x, y, w = rows(2000, 300)
    top = [(int(row), f"row {row}") for row in np.argsort(-w)[:20]]
    picture, figure = check_picture(
        lambda stem: plots.witness_map(
            x,
            y,
            w,
            stem,
            variance_shares=(0.4, 0.1),
            labels=("2021", "2026-W43"),
            top=top,
            centres=[(3, 3, "new: topic=a"), (3, 3, "new: topic=b")],
        )
    )
    said = [text for text, _ in shown_texts(figure)]
    assert sum(text.startswith("row ") for text in said) == witness.ANNOTATED
    assert f"{top[0][1]}  {w[top[0][0]]:.2g}" in said
    assert {"new: topic=a", "new: topic=b", "the 20 most drifted rows", "2021, 2,000 rows"} <= set(said)
    assert f"The most drifted: {top[0][1]}, {top[1][1]}, {top[2][1]}." in picture.alt_text
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    np.testing.assert_allclose(np.column_stack(rings[0].get_data()), y[[row for row, _ in top]])


def test_every_row_has_its_colour_and_the_largest_witness_lies_on_top(capture: Callable[..., Figure]) -> None:
    x, y, w = rows(100, 80)
    circles, triangles = marks(capture(lambda: plots.witness_map(x, y, w, "p")))
    for drawn, chosen in ((circles, w <= 0), (triangles, w > 0)):
        values = np.asarray(drawn.get_array())
        assert (np.diff(values) >= 0).all()
        np.testing.assert_array_equal(np.sort(values), np.sort(w[chosen]))
        places = np.asarray(drawn.get_offsets())
        np.testing.assert_allclose(places, y[[int(np.flatnonzero(w == value)[0]) for value in values]])
        limit = witness.colour_limit(w)
        assert drawn.get_clim() == (-limit, limit)
    assert triangles.get_zorder() > circles.get_zorder()


def test_colours_meet_in_a_pale_middle_and_differ_in_black_and_white() -> None:
    low, middle, high = (luminance(witness.COLORS(value)) for value in (0.0, 0.5, 1.0))
    assert middle > 0.9
    assert high < 0.15 < 0.4 < low < 0.7
    above = [luminance(witness.COLORS(value)) for value in np.linspace(0.5, 1, 20)]
    assert (np.diff(above) < 0).all()


def test_a_few_outliers_do_not_wash_the_colours_out() -> None:
    w = np.random.default_rng(0).normal(size=1000)
    assert witness.colour_limit(np.append(w, [1e6, -1e6])) < 4
    assert witness.colour_limit(np.array([0.0] * 99 + [2.0])) == 2.0
    assert witness.colour_limit(np.zeros(5)) == 1.0
    assert witness.colour_limit(np.zeros(0)) == 1.0


def test_many_rows_are_pixels_and_the_ringed_are_among_them(tmp_path: Path) -> None:
    x, y, w = rows(3000, witness.SHOWN_ROWS + 500)
    y[7] = [40.0, 0.0]  # far outside the frame
    frame = frame_of(x, y)
    assert not frame.x[0] <= y[7, 0] <= frame.x[1]
    left_out = sorted(set(range(len(w))) - set(witness._shown(w, [])))[:2]
    kept = witness._shown(w, left_out)
    assert set(left_out) <= set(kept)
    assert witness.SHOWN_ROWS <= len(kept) <= witness.SHOWN_ROWS + 2
    assert (np.diff(w[kept]) >= 0).all()
    picture = plots.witness_map(x, y, w, tmp_path / "p", top=[(7, "far out")])
    svg = picture.svg.read_text("utf-8")
    assert "<image" in svg
    assert picture.svg.stat().st_size < 2_000_000
    assert "20,000 of the 20,500 current rows" in svg
    assert "ringed ones stand at its edge" in svg


def test_the_reference_is_shaded_where_it_is_large_and_drawn_where_it_is_small(capture: Callable[..., Figure]) -> None:
    x, y, w = rows(2000, 50)
    shaded = capture(lambda: plots.witness_map(x, y, w, "p"))
    few = capture(lambda: plots.witness_map(x[:100], y, w, "p"))
    dots = [[c for c in f.axes[0].collections if isinstance(c, PathCollection)] for f in (shaded, few)]
    assert 2000 not in [len(c.get_offsets()) for c in dots[0]]
    assert 100 in [len(c.get_offsets()) for c in dots[1]]
    greys = [{tuple(color) for c in f.axes[0].collections for color in c.get_facecolor()} for f in (shaded, few)]
    assert {to_rgba(grey) for grey in witness.GREYS} <= greys[0]
    assert to_rgba(witness.GREYS[0]) not in greys[1]


@pytest.mark.parametrize(
    ("n", "m", "top"), [(0, 0, 0), (50, 0, 0), (0, 5, 5), (50, 1, 1), (2000, 30, 30)], ids=lambda k: str(k)
)
def test_little_input_is_drawn(n: int, m: int, top: int, capture: Callable[..., Figure]) -> None:
    x, y, w = rows(n, m)
    figure = capture(lambda: plots.witness_map(x, y, w, "p", top=[(k, f"r{k}") for k in range(top)]))
    assert_text_fits(figure)
    assert ("no rows to draw" in [text for text, _ in shown_texts(figure)]) == (m == 0)


def test_equal_rows_are_drawn(capture: Callable[..., Figure]) -> None:
    top = [(k, "the same id") for k in range(5)]
    assert_text_fits(capture(lambda: plots.witness_map(np.ones((2000, 2)), np.ones((5, 2)), np.zeros(5), "p", top=top)))


def test_hostile_names_fit(check_picture: Check) -> None:
    x, y, w = rows(200, 100)
    top = [(k, LONG) for k in range(0, 100, 3)]
    centres = [(0.0, 0.0, LONG)] * 6
    picture, figure = check_picture(
        lambda stem: plots.witness_map(x, y, w, stem, labels=(LONG, NASTY), top=top, centres=centres)
    )
    svg = picture.svg.read_text("utf-8")
    assert "a$b_{c}$ &lt;img" in svg
    assert "<img" not in svg
    assert "\x1b" not in svg
    assert sum("…  " in text for text, _ in shown_texts(figure)) == witness.ANNOTATED


def test_what_does_not_agree_is_refused(tmp_path: Path) -> None:
    x, y, w = rows(20, 20)
    with pytest.raises(ArgumentError, match="witness_m"):
        plots.witness_map(x, y, w[:-1], tmp_path / "p")
    with pytest.raises(ArgumentError, match="top"):
        plots.witness_map(x, y, w, tmp_path / "p", top=[(20, "a")])
    with pytest.raises(ArgumentError, match="witness_m"):
        plots.witness_map(x, y, np.full(20, np.nan), tmp_path / "p")
    with pytest.raises(ArgumentError, match="centres"):
        plots.witness_map(x, y, w, tmp_path / "p", centres=[(np.nan, 0.0, "a")])
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_names_are_moved_apart_and_stay_in_order(places: list[float]) -> None:
    places, step = sorted(places), 0.08
    moved = witness.spread(places, step)
    assert len(moved) == len(places)
    assert all(b - a >= step - 1e-12 for a, b in pairwise(moved))
    assert all(-1e-12 <= place <= 1 + 1e-12 for place in moved)
    if all(b - a >= step for a, b in pairwise(places)):
        assert moved == pytest.approx(places)
