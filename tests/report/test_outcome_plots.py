"""The pictures of product metrics: what is on them, that it can be read, and what they say in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_outcomes import METRICS, make_finding, make_outcomes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from picture_checks import LONG, NASTY, assert_same_bytes, assert_stands_alone, assert_text_fits_as_written, shown_texts

from gpudrift.outcomes.records import Level, Outcomes
from gpudrift.report import outcome_plots, style
from gpudrift.report.outcome_plots import event_study, lag_profile, timeline
from gpudrift.report.pictures import outcome_pictures
from gpudrift.report.style import Picture

Draw = Callable[..., Picture]
ALL_THREE = (timeline, lag_profile, event_study)
Drawn = Written = Callable[..., tuple[Picture, Figure]]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Writes a picture twice, holds it to what every picture is held to, and hands it back with its figure."""

    def run(draw: Draw, outcomes: Outcomes, **named: Any) -> tuple[Picture, Figure]:
        figures: list[Figure] = []

        def save(figure: Figure, *rest: Any) -> Picture:
            figures.append(figure)
            return style.save(figure, *rest)

        monkeypatch.setattr(outcome_plots, "save", save)
        first, second = draw(outcomes, tmp_path / "one", **named), draw(outcomes, tmp_path / "two", **named)
        assert_same_bytes(first, second)
        assert_stands_alone(first)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
        return first, figures[0]

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draws a picture without writing it: its text, and its figure, laid out."""

    def run(draw: Draw, outcomes: Outcomes, **named: Any) -> tuple[Picture, Figure]:
        figures: list[Figure] = []

        def save(figure: Figure, _stem: Any, _title: str, alt_text: str) -> Picture:
            figure.draw_without_rendering()
            figures.append(figure)
            return Picture(Path("x.png"), Path("x.svg"), alt_text)

        monkeypatch.setattr(outcome_plots, "save", save)
        return draw(outcomes, "x", **named), figures[0]

    return run


def axes_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_visible()]


def words(figure: Figure) -> str:
    return " ".join(text for text, _ in shown_texts(figure))


def long_one() -> Outcomes:
    """Seven metrics over 355 windows; the last year spikes."""
    return make_outcomes(355, 7, spikes=(9, 10, 22, 31, *range(300, 355)))


@pytest.mark.parametrize("draw", ALL_THREE)
def test_pictures_are_whole_and_the_same_each_time(written: Written, draw: Draw) -> None:
    written(draw, make_outcomes(20, 2), job="weekly")


@pytest.mark.parametrize("draw", ALL_THREE)
@pytest.mark.parametrize("made", [make_outcomes(20, 1), make_outcomes(60, 3), long_one()], ids=["20", "60", "355"])
def test_pictures_of_any_length_can_be_read(drawn: Drawn, draw: Draw, made: Outcomes) -> None:
    picture, figure = drawn(draw, made, job="weekly")
    assert_text_fits_as_written(figure)
    shown = [finding.metric for finding in made.findings][:6]
    for metric in METRICS:
        assert (metric in words(figure)) == (metric in shown)
        assert (metric in picture.alt_text) == (metric in shown)
    assert ("the first 6 of 7 metrics" in words(figure)) == (len(made.findings) == 7)
    assert "job weekly" in words(figure)
    assert "caus" not in (picture.alt_text + words(figure)).lower()


@pytest.mark.parametrize("draw", ALL_THREE)
def test_nasty_and_long_names_do_no_harm(written: Written, draw: Draw) -> None:
    findings = [
        make_finding(name, worse=worse, segment=f"tenant={NASTY}", label="2025-W08")
        for name, worse in ((NASTY, "lower"), (LONG, "higher"))
    ]
    made = make_outcomes(60, findings=findings, segment=f"tenant={NASTY}")
    _, figure = written(draw, made, segment=f"tenant={NASTY}", job=LONG)
    assert_text_fits_as_written(figure)
    assert "…" in words(figure)


@pytest.mark.parametrize("draw", ALL_THREE)
@pytest.mark.parametrize("made", [Outcomes((), {}, {}), make_outcomes(30, 0), make_outcomes(30, 2, segment="lang=en")])
def test_nothing_to_show_is_said(drawn: Drawn, draw: Draw, made: Outcomes) -> None:
    picture, figure = drawn(draw, made)
    assert outcome_plots.NOTHING in words(figure)
    assert outcome_plots.NOTHING in picture.alt_text


# --- on one time axis


def test_spikes_are_marked_through_all_panels_and_gaps_show(drawn: Drawn) -> None:
    made = make_outcomes(60, 3, spikes=(9, 10, 22), gaps=(15, 16))
    picture, figure = drawn(timeline, made)
    panels = axes_of(figure)
    assert len(panels) == 4
    spans = [
        sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches if p.get_facecolor()[:3] == (
            pytest.approx(251 / 255), pytest.approx(217 / 255), pytest.approx(200 / 255)))
        for ax in panels
    ]  # fmt: skip
    assert [len(found) for found in spans] == [2, 2, 2, 2]  # two weeks in a row are one
    assert spans[0][0][1] - spans[0][0][0] == pytest.approx(14)
    assert spans[1] == spans[0]
    score = panels[0].lines[0].get_ydata()
    assert np.flatnonzero(np.isnan(np.asarray(score))).tolist() == [15, 16]
    metric = np.asarray(panels[1].lines[0].get_ydata())
    assert np.flatnonzero(np.isnan(metric)).tolist() == [3, 20, 37, 54]
    assert "3 of 58 windows spike" in words(figure)
    assert "58 windows with a score, 3 of them spikes" in picture.alt_text


def test_the_score_has_the_historys_scale(drawn: Drawn) -> None:
    _, figure = drawn(timeline, make_outcomes(60))
    axis = axes_of(figure)[0].yaxis
    assert axis.get_scale() == "symlog"
    assert axis.get_transform().linthresh == pytest.approx(3e-4, rel=0.01)  # type: ignore[attr-defined]


@pytest.mark.parametrize("worse", ["lower", "higher"])
@pytest.mark.parametrize("degraded", [True, False])
def test_the_last_value_is_marked_and_told(drawn: Drawn, worse: str, degraded: bool) -> None:
    made = make_outcomes(60, findings=[make_finding(worse=worse, degraded=degraded)])
    finding = made.findings[0]
    assert finding.level is not None
    picture, figure = drawn(timeline, made)
    told = (
        f"2025-W08: {finding.level.value:.3g}, {'beyond' if degraded else 'within'} its limit {finding.level.limit:.3g}"
    )
    assert told in words(figure)
    assert told in picture.alt_text
    assert f"{worse} is worse" in words(figure)
    panel = axes_of(figure)[1]
    marked = [line for line in panel.lines if line.get_marker() == "D"]
    assert bool(marked) == degraded
    assert all(np.asarray(line.get_ydata()).tolist() == [finding.level.value] for line in marked)
    low, high = panel.get_ylim()
    assert low < min(finding.level.limit, finding.level.value)
    assert high > max(finding.level.limit, finding.level.value)


def test_a_metric_without_a_level_is_drawn(drawn: Drawn) -> None:
    picture, figure = drawn(timeline, make_outcomes(12, findings=[make_finding(degraded=None)]))
    assert "no limit: too few quiet windows, or no value of late" in words(figure)
    assert "no limit: too few quiet windows, or no value of late" in picture.alt_text
    assert "its limit" not in words(figure)


def test_windows_of_the_table_that_the_history_lacks_are_not_drawn(drawn: Drawn) -> None:
    made = make_outcomes(60, 1)
    drift = made.drift["all"]
    short = replace(drift, windows=drift.windows[:40],
                    **{n: getattr(drift, n)[:40] for n in ("scores", "log_scores", "spikes", "quiet")})  # fmt: skip
    _, figure = drawn(timeline, replace(made, drift={"all": short}))
    assert len(np.asarray(axes_of(figure)[1].lines[0].get_ydata())) == 40


def test_a_long_pause_breaks_the_axis(drawn: Drawn) -> None:
    made = make_outcomes(300, 1, spikes=(), gaps=range(20, 280))
    series = {key: replace(one, values=np.where((np.arange(300) < 20) | (np.arange(300) >= 280), one.values, np.nan))
              for key, one in made.series.items()}  # fmt: skip
    _, figure = drawn(timeline, replace(made, series=series))
    assert "5.0 years" in words(figure)
    assert "without a window" not in words(figure)  # no room


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e300, -3.0])
def test_metrics_of_any_size_are_drawn(drawn: Drawn, value: float) -> None:
    made = make_outcomes(30, findings=[make_finding(degraded=None)])
    series = {key: replace(one, values=np.full(30, value)) for key, one in made.series.items()}
    _, figure = drawn(timeline, replace(made, series=series))
    low, high = axes_of(figure)[1].get_ylim()
    assert low <= value <= high


# --- by lag


def test_bars_are_the_correlations_and_the_band_holds_95_percent(drawn: Drawn) -> None:
    finding = make_finding(worse="lower")
    picture, figure = drawn(lag_profile, make_outcomes(findings=[finding]))
    (ax,) = axes_of(figure)
    drawn_r = {
        (x, y)
        for line in ax.lines
        if line.get_marker() in ("o", "D")
        for x, y in zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True)
    }
    assert drawn_r == {(effect.lag, effect.r) for effect in finding.lags}
    heights = [np.abs(band.get_paths()[0].vertices[:, 1]).max() for band in ax.collections[:5]]
    simulated = np.random.default_rng(0)
    for effect, height in zip(finding.lags, heights, strict=True):
        x, y = simulated.normal(size=(2, 4000, effect.n))
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        r = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
        assert (np.abs(r) < height).mean() == pytest.approx(0.95, abs=0.012)
    assert "worse as drift rises, q 0.003" in words(figure)
    assert "largest: −0.6, 1 window later" in words(figure)
    assert "below 0: worse" in words(figure)
    assert "worse as drift rises, q 0.003; largest: −0.6, 1 window later." in picture.alt_text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"link": "none", "q": 0.5}, "no link found, q 0.5"),
        ({"link": "better"}, "better as drift rises, q 0.003"),
        ({"link": "insufficient"}, "insufficient windows: 58"),
        ({"lag": 0}, "in the same window"),
        ({"lags": 0}, "too few windows: 58 with both a score and a value"),
    ],
)
def test_every_verdict_is_said_above_its_panel(drawn: Drawn, changes: dict[str, Any], told: str) -> None:
    made = make_outcomes(findings=[make_finding(**changes), make_finding("other")])
    picture, figure = drawn(lag_profile, made)
    assert told in words(figure)
    assert told in picture.alt_text


def test_perfect_correlations_stay_inside_the_axes(drawn: Drawn) -> None:
    finding = make_finding()
    lags = tuple(replace(effect, r=float((-1) ** effect.lag), n=4) for effect in finding.lags)
    _, figure = drawn(lag_profile, make_outcomes(findings=[replace(finding, lags=lags)]))
    low, high = axes_of(figure)[0].get_ylim()
    assert (low, high) == (-1.0, 1.0)


# --- around spikes


def test_the_profile_and_the_quiet_band_are_drawn(drawn: Drawn) -> None:
    finding = make_finding()
    events = finding.events
    assert events is not None
    picture, figure = drawn(event_study, make_outcomes(findings=[finding]))
    (ax,) = axes_of(figure)
    line = next(line for line in ax.lines if len(np.atleast_1d(line.get_xdata())) == 10)
    assert np.asarray(line.get_xdata()).tolist() == list(events.offsets)
    assert np.asarray(line.get_ydata()).tolist() == events.profile.tolist()
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (events.low[0], events.high[0])
    told = "0.028 (95% 0.01 to 0.04)"
    assert told in words(figure)
    assert f"{told}; p 0.004, 5 spikes begin." in picture.alt_text
    assert "worse than before" in words(figure)


@pytest.mark.parametrize(
    ("worse", "change", "p", "marked"),
    [("higher", 0.03, 0.01, True), ("higher", -0.03, 0.01, False), ("lower", -0.03, 0.01, True),
     ("lower", -0.03, 0.06, False)],
)  # fmt: skip
def test_only_what_got_worse_beyond_chance_is_marked(
    drawn: Drawn, worse: str, change: float, p: float, marked: bool
) -> None:
    finding = make_finding(worse=worse)
    assert finding.events is not None
    finding = replace(finding, events=replace(finding.events, change=change, p=p))
    _, figure = drawn(event_study, make_outcomes(findings=[finding]))
    assert ("worse than before" in words(figure)) == marked


def test_too_few_spikes_are_a_sentence_in_place_of_the_picture(drawn: Drawn) -> None:
    few = make_finding("a", events=False)
    picture, figure = drawn(event_study, make_outcomes(findings=[few, make_finding("b", events=False)]))
    for metric in ("a", "b"):
        assert f"{metric}: 1 onset of a spike, at least 5 are needed." in words(figure)
    assert figure.get_size_inches()[1] < 2
    assert "at least 5 are needed" in picture.alt_text
    _, figure = drawn(event_study, make_outcomes(findings=[few, make_finding("b")]))
    assert len([ax for ax in axes_of(figure) if ax.axison and ax.lines]) == 1
    assert "at least 5 are needed" in words(figure)


def test_gaps_in_the_profile_do_not_end_it(drawn: Drawn) -> None:
    finding = make_finding()
    events = finding.events
    assert events is not None
    profile, low, high = events.profile.copy(), events.low.copy(), events.high.copy()
    profile[2] = low[5] = high[5] = np.nan
    events = replace(events, profile=profile, low=low, high=high)
    _, figure = drawn(event_study, make_outcomes(findings=[replace(finding, events=events)]))
    assert_text_fits_as_written(figure)
    (ax,) = axes_of(figure)
    assert all(np.isfinite(ax.get_ylim()))
    assert ax.get_ylim()[1] > np.nanmax(profile)


def test_spikes_have_no_picture_where_none_could_be_studied(tmp_path: Path) -> None:
    few = make_finding("b", events=False)
    for findings, names in (
        ([make_finding("a"), few], ["outcomes", "outcome_lags", "outcome_events"]),
        ([few], ["outcomes", "outcome_lags"]),
    ):
        made = outcome_pictures(make_outcomes(findings=findings), tmp_path, job="j")
        assert [picture.png.stem for picture in made] == names
        assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(names)


def test_large_numbers_are_written_out(drawn: Drawn) -> None:
    level = Level("2025-W08", 1186224.0, None, 1234857.8, 1220414.9, 0.001, 20, True)
    finding = replace(make_finding("revenue", worse="lower"), level=level)
    picture, figure = drawn(timeline, make_outcomes(12, findings=[finding]))
    assert "2025-W08: 1,186,224, beyond its limit 1,220,415" in words(figure)
    assert "(usual 1,234,858)" in picture.alt_text
    assert "e+0" not in words(figure)
