"""The pictures as files: bytes, structure, size, text that stays inside, and input of every awkward kind."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from picture_checks import (
    LONG,
    NASTY,
    assert_same_bytes,
    assert_stands_alone,
    assert_text_fits,
    assert_text_fits_as_written,
    outside_references,
    shown_texts,
)

from gpudrift.errors import ArgumentError
from gpudrift.records import HistoryPoint
from gpudrift.report import plots, style, summary
from gpudrift.report.plots import Picture, SummaryInput
from gpudrift.report.wording import GateLine, VerdictSummary

SPAN = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 12, 30, tzinfo=UTC))


def clouds(n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.3


def components(q: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    return (
        np.sort(rng.uniform(0.1, 2, q))[::-1],
        rng.uniform(0.1, 2, q),
        rng.normal(0, 0.2, q),
        rng.uniform(0.01, 0.1, q),
        rng.normal(0, 0.3, q),
    )


def page_of(verdict: VerdictSummary, history: list[HistoryPoint], n: int = 3000, m: int = 300) -> SummaryInput:
    x, y = clouds(n, m)
    _, _, shift, se, _ = components(8)
    return SummaryInput(verdict, "weekly", x, y, (0.3, 0.2), shift, se, tuple(history), SPAN)


Draw = Callable[[Path], Picture]


@pytest.fixture(scope="module")
def drawings(alert: VerdictSummary, long_history: list[HistoryPoint]) -> dict[str, Draw]:
    """Each picture once, with input of ordinary size."""
    x, y = clouds(3000, 400)
    shown = {"current_label": long_history[-1].window.label, "reference_span": SPAN, "job": "weekly"}
    return {
        "pca_map": lambda stem: plots.pca_map(x, y, stem, variance_shares=(0.4, 0.1), labels=("2021", "2026-W43")),
        "few": lambda stem: plots.pca_map(x[:40], y[:20], stem),
        "pc1_histogram": lambda stem: plots.pc1_histogram([("week 0", x[:, 0]), ("week 4", y[:, 0])], stem),
        "spectrum": lambda stem: plots.spectrum_and_shift(*components(32), stem),
        "history": lambda stem: plots.history(long_history, stem, **shown),
        "history_few": lambda stem: plots.history(long_history[-5:], stem, **shown),
        "history_broken": lambda stem: plots.history([*long_history[:13], *long_history[-2:]], stem, **shown),
        "summary": lambda stem: plots.summary(page_of(alert, long_history), stem),
    }


NAMES = ("pca_map", "few", "pc1_histogram", "spectrum", "history", "history_few", "history_broken", "summary")


@pytest.fixture(scope="module")
def made(
    drawings: dict[str, Draw], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Picture], dict[str, Figure]]:
    """Each picture written once, and the figures they were written from."""
    folder, figures = tmp_path_factory.mktemp("written"), []

    def save(figure: Figure, *rest: object) -> Picture:
        figures.append(figure)
        return style.save(figure, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        patch.setattr(summary, "save", save)
        written = {name: drawings[name](folder / name) for name in NAMES}
    return written, dict(zip(NAMES, figures, strict=True))


@pytest.fixture
def written(made: tuple[dict[str, Picture], dict[str, Figure]]) -> dict[str, Picture]:
    return made[0]


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_write_the_same_bytes(
    name: str, drawings: dict[str, Draw], written: dict[str, Picture], tmp_path: Path
) -> None:
    first, second = written[name], drawings[name](tmp_path / "two.w2")
    assert second.png == tmp_path / "two.w2.png"
    assert second.svg == tmp_path / "two.w2.svg"
    assert_same_bytes(first, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.w2.png", "two.w2.svg"]


@pytest.mark.parametrize("name", NAMES)
def test_svg_stands_alone_and_says_what_it_shows(name: str, written: dict[str, Picture]) -> None:
    assert_stands_alone(written[name])


def test_outside_references_are_seen() -> None:
    assert outside_references('<svg xmlns:x="u"><image x:href="http://a/b"/><a style="fill:url(http://c)"/></svg>')
    assert not outside_references('<svg xmlns:x="u"><image x:href="data:,"/><a style="fill:url(#c)"/></svg>')


def test_a_million_rows_stay_small_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1_000_000, 2)), rng.normal(size=(600_000, 2))
    picture = plots.pca_map(x, y, tmp_path / "map")
    assert picture.svg.stat().st_size < 1_000_000
    assert picture.png.stat().st_size < 1_000_000
    assert "<image" in picture.svg.read_text("utf-8")  # the rows drawn as dots are pixels, not elements
    picture = plots.pc1_histogram([("a", x[:, 0]), ("b", y[:, 0])], tmp_path / "pc1")
    assert picture.svg.stat().st_size < 200_000


def test_global_state_is_untouched_and_the_users_settings_do_not_leak_in(tmp_path: Path) -> None:
    x, y = clouds(60, 30)
    plain = plots.pca_map(x, y, tmp_path / "plain")
    with matplotlib.rc_context(
        {"xtick.major.size": 20, "axes.facecolor": "black", "font.size": 30, "text.parse_math": True, "savefig.dpi": 10}
    ):
        before = dict(matplotlib.rcParams)
        backend = matplotlib.rcParams._get("backend")  # plain access would resolve, and so change, it
        changed = plots.pca_map(x, y, tmp_path / "changed")
        assert dict(matplotlib.rcParams) == before
        assert matplotlib.rcParams._get("backend") == backend
    assert changed.png.read_bytes() == plain.png.read_bytes()
    assert changed.svg.read_bytes() == plain.svg.read_bytes()


def test_a_failed_drawing_restores_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("drawing failed")

    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(plots.clouds, "draw_pca_map", fail)
    with pytest.raises(RuntimeError, match="drawing failed"):
        plots.pca_map(*clouds(60, 30), tmp_path / "p")
    assert dict(matplotlib.rcParams) == before
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys, gpudrift.report; assert 'matplotlib' not in sys.modules and 'rich' not in sys.modules\n"
        "from gpudrift.report import plots\n"
        f"plots.pc1_histogram([('a', [1.0, 2.0])], {str(tmp_path / 'p')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_write_that_fails_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clouds(60, 30)
    picture = plots.pca_map(x, y, tmp_path / "p")
    old = picture.png.read_bytes()

    def full(_self: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        plots.pca_map(x, y + 1, tmp_path / "p")
    assert picture.png.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "p.svg"]


# --- text that fits


@pytest.mark.parametrize("name", NAMES)
def test_text_is_neither_cut_nor_overlapping(name: str, made: tuple[dict[str, Picture], dict[str, Figure]]) -> None:
    assert_text_fits_as_written(made[1][name])


def test_long_and_hostile_labels_fit_too(
    capture: Callable[..., Figure], alert: VerdictSummary, long_history: list[HistoryPoint]
) -> None:
    long = LONG
    x, y = clouds(3000, 400)
    assert_text_fits(capture(lambda: plots.pca_map(x, y, "p", labels=(long, long))))
    assert_text_fits(capture(lambda: plots.pc1_histogram([(long, x[:, 0]), (long, y[:, 0])], "p")))
    assert_text_fits(capture(lambda: plots.spectrum_and_shift(*components(3), "p", labels=(long, long))))
    assert_text_fits(capture(lambda: plots.history(long_history, "p", job=long, title=long)))
    worst = dataclasses.replace(
        alert, window=long[:90], reference=long, reason=long, notes=(long,) * 8, window_dates=long, score=-1.23456e-9
    )
    assert_text_fits(capture(lambda: plots.summary(page_of(worst, long_history[:3]), "p")))
    worst = dataclasses.replace(worst, phenomena=(long,) * 9)
    assert_text_fits(capture(lambda: plots.summary(page_of(worst, long_history), "p")))


def test_the_text_check_sees_cut_and_overlapping_text() -> None:
    with style.drawing():
        figure, body = style.sheet(4, 3, "a title")
        ax = body.subplots()
        ax.text(0.5, 0.5, "over")
        ax.text(0.5, 0.52, "lapping")
        figure.canvas.draw()
        with pytest.raises(AssertionError, match="overlap"):
            assert_text_fits(figure)
        figure, body = style.sheet(4, 3, "a title")
        body.text(0.9, 0.5, "far too long to fit here")
        body.subplots()
        figure.canvas.draw()
        with pytest.raises(AssertionError, match="cut at the right"):
            assert_text_fits(figure)


def test_labels_are_shown_as_they_are_never_as_mathematics(tmp_path: Path) -> None:
    x, y = clouds(30, 20)
    picture = plots.pca_map(x, y, tmp_path / "p", labels=("cost_$5$ <b>", NASTY), title=f"{NASTY} title")
    svg = picture.svg.read_text("utf-8")
    ET.fromstring(svg)
    assert "cost_$5$ &lt;b&gt;" in svg  # matplotlib writes each text as a comment beside its outlines
    assert "\x1b" not in svg
    assert "<img" not in svg
    assert picture.alt_text.startswith("a$b_{c}$ <img src='x'> & $\\frac$ ?[31m ??")


# --- awkward input


CLOUDS = {
    "one component": (np.arange(10.0)[:, None], np.arange(5.0)[:, None] + 1),
    "two points each": (np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[0.0, 1.0], [2.0, 3.5]])),
    "one point each": (np.zeros((1, 2)), np.zeros((1, 2))),
    "nothing current": (np.random.default_rng(0).normal(size=(50, 2)), np.zeros((0, 2))),
    "nothing at all": (np.zeros((0, 2)), np.zeros((0, 2))),
    "constant, many": (np.full((2000, 2), 7.0), np.full((400, 2), 7.0)),
    "flat second axis": (np.random.default_rng(0).normal(size=(2000, 2)) * [1, 0], np.ones((400, 2))),
    "identical clouds": (np.random.default_rng(0).normal(size=(2000, 2)),) * 2,
    "tiny and huge": (np.random.default_rng(0).normal(size=(2000, 2)) * [1e-12, 1e12], np.ones((400, 2)) * 1e-12),
    "one far outlier": (np.vstack([np.random.default_rng(0).normal(size=(2000, 2)), [[1e9, 0]]]), np.zeros((300, 2))),
    "float16": (np.ones((4, 2), np.float16), np.zeros((4, 2), np.float16)),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_awkward_clouds_are_drawn(name: str, capture: Callable[..., Figure]) -> None:
    x, y = CLOUDS[name]
    for draw in (
        lambda: plots.pca_map(x, y, "unused"),
        lambda: plots.pc1_histogram([("a", x[:, 0]), ("b", y[:, 0])], "unused"),
    ):
        figure = capture(draw)
        assert_text_fits(figure)
        assert not any("nan" in text for text, _ in shown_texts(figure))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    x, y = clouds(50, 50)
    y[3, 1] = value
    with pytest.raises(ArgumentError, match="current_m2"):
        plots.pca_map(x, y, tmp_path / "p")
    with pytest.raises(ArgumentError, match=r"groups\[1\]"):
        plots.pc1_histogram([("a", x[:, 0]), ("b", y[:, 1])], tmp_path / "p")


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="reference_n2"):
        plots.pca_map(np.zeros(5), np.zeros((5, 2)), tmp_path / "p")
    with pytest.raises(ArgumentError, match="1 to 6"):
        plots.pc1_histogram([("a", [1.0])] * 7, tmp_path / "p")
    with pytest.raises(ArgumentError, match="shift_sd_q"):
        plots.spectrum_and_shift([1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0], [0.0, 0.0], tmp_path / "p")
    with pytest.raises(ArgumentError, match="variances_q"):
        plots.spectrum_and_shift([], [], [], [], [], tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        ([1.0], [2.0], [0.3], [0.1], [0.7]),
        ([0.0, 0.0], [0.0, 0.0], [None, None], [None, None], [None, None]),
        ([1.0, 0.0], [1.0, 0.0], [0.0, np.nan], [0.0, np.nan], [0.0, -np.inf]),
        ([1e-300, 1e300], [1e300, 1e-300], [1e6, -1e-6], [0.0, 0.0], [1381.0, -1381.0]),
        tuple(components(400)),
    ],
    ids=["one", "constant", "identical, one flat", "extreme", "many"],
)
def test_awkward_components_are_drawn(values: tuple[object, ...], capture: Callable[..., Figure]) -> None:
    assert_text_fits(capture(lambda: plots.spectrum_and_shift(*values, "unused")))  # type: ignore[arg-type]


def test_components_without_a_value_are_said_to_be_left_blank(tmp_path: Path) -> None:
    blank = plots.spectrum_and_shift([1.0, 0.0], [1.0, 0.0], [0.1, None], [0.1, None], [0.1, None], tmp_path / "p")
    assert "1 of 2 components have no spread" in blank.svg.read_text("utf-8")


def test_awkward_histories_are_drawn(make_point: Callable[..., HistoryPoint], capture: Callable[..., Figure]) -> None:
    bare = {"se": None, "null_sd": None, "delta": None, "clear_limit": None, "ratio": None, "p_aa": None}
    cases: list[list[HistoryPoint]] = [
        [],
        [make_point(0, 0.01)],
        [make_point(0, None, "insufficient")],
        [make_point(0, 0.0), make_point(1, 0.0)],
        [make_point(0, -0.5), make_point(9, -1e-9), make_point(200, 40.0, "alert")],
        [make_point(0, 0.01, **bare), make_point(1, 0.0, **bare)],
        [make_point(0, float("nan")), make_point(1, 0.01, null_sd=0.0)],
        [make_point(0, 0.01), make_point(0, 0.02)],
    ]
    for points in cases:
        label = points[-1].window.label if points else None
        figure = capture(functools.partial(plots.history, points, "p", current_label=label, reference_span=SPAN))
        if points:
            assert_text_fits(figure)
        else:
            assert "no window has been scored yet" in [text for text, _ in shown_texts(figure)]


def test_a_page_without_rows_or_history_is_drawn(tmp_path: Path) -> None:
    nothing = VerdictSummary("insufficient", "2026-W45", "none", 3, 30, reason="3 rows, at least 100 are needed")
    picture = plots.summary(SummaryInput(nothing), tmp_path / "p")
    assert "3 rows, at least 100 are needed" in picture.alt_text


def test_notes_that_do_not_fit_are_counted(alert: VerdictSummary, tmp_path: Path) -> None:
    many = dataclasses.replace(alert, notes=tuple(f"note {k}" for k in range(12)))
    svg = plots.summary(SummaryInput(many), tmp_path / "p").svg.read_text("utf-8")
    assert "<!-- note 3 -->" in svg
    assert "<!-- note 4 -->" not in svg
    assert "<!-- and 8 more: see result.json -->" in svg


def test_the_page_says_what_changed(alert: VerdictSummary, long_history: list[HistoryPoint], tmp_path: Path) -> None:
    sentences = tuple(f"{word} of the rows are new, more than ever before." for word in ("A tenth", "A fifth", "Half"))
    told = dataclasses.replace(alert, phenomena=(*sentences, "A fourth that finds no room."))
    picture = plots.summary(page_of(told, long_history[:30]), tmp_path / "p")
    svg = picture.svg.read_text("utf-8")
    for sentence in sentences:
        assert f"<!-- •  {sentence} -->" in svg
        assert sentence in picture.alt_text
    assert "fourth" not in svg


def test_without_a_verdict_the_page_judges_nothing(alert: VerdictSummary, tmp_path: Path) -> None:
    none = dataclasses.replace(alert, verdict="insufficient", reason="9% of the rows are unusable")
    svg = plots.summary(SummaryInput(none), tmp_path / "p").svg.read_text("utf-8")
    assert "<!-- 0.0171 -->" in svg  # what was measured stays
    assert "<!-- exit code 20 -->" in svg
    assert "<!-- no verdict -->" in svg
    for judged in ("28x", "usual movement -->\n", "severity", "0.00025", "&lt;0.0001"):
        assert f"<!-- {judged}" not in svg


def test_the_page_has_the_smallest_p_of_the_metrics_that_decide(alert: VerdictSummary, tmp_path: Path) -> None:
    gates = (GateLine("energy", 0.01, 0.0333, False), GateLine("classifier_auc", 0.1, 0.0012, True))
    svg = plots.summary(SummaryInput(dataclasses.replace(alert, gates=gates)), tmp_path / "p").svg.read_text("utf-8")
    assert "<!-- 0.0012 -->" in svg
    assert "<!-- smallest of 2, adjusted -->" in svg


def test_history_alt_text_tells_the_verdicts(long_history: list[HistoryPoint], written: dict[str, Picture]) -> None:
    last, picture = long_history[-1], written["history"]
    assert "Verdicts: 253 stable, 1 warning, 44 alert, 2 insufficient." in picture.alt_text
    assert f"{last.window.label}: alert, score 0.02" in picture.alt_text


def test_months_and_days_are_named(make_point: Callable[..., HistoryPoint]) -> None:
    week = make_point(0, 0.01)
    day = dataclasses.replace(week, window=dataclasses.replace(week.window, end=week.window.start + timedelta(days=1)))
    odd = dataclasses.replace(week, window=dataclasses.replace(week.window, end=week.window.start + timedelta(days=10)))
    name = plots.timeline.period_name
    assert [name([week]), name([day]), name([odd]), name([week, day]), name([])] == [
        "week",
        "day",
        "window",
        "window",
        "window",
    ]
