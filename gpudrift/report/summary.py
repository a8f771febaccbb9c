"""One page for whoever is woken by the job: the verdict, what it rests on, four small pictures, and what to know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from matplotlib.figure import SubFigure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import ArrayLike

from gpudrift.records import HistoryPoint
from gpudrift.report import clouds, components, density, style, timeline
from gpudrift.report.style import INK, MUTED, Picture, drawing, label, legend_below, parts, save, shorten, wrap
from gpudrift.report.wording import SHOWN, VerdictSummary, count, number, p_value, plain_sentence, times

WIDTH, HEIGHT = 11.69, 8.27  # A4, landscape
MARGIN = 0.3
BANNER, TILES, NOTE_LINE = 1.42, 0.86, 0.165  # the banner's least height
CHANGED_LINES = 5  # at most, of what changed
BESIDE = MARGIN + 2.75 + 0.25  # where the words beside the verdict begin


@dataclass(frozen=True, eq=False)
class SummaryInput:
    """What the page shows. reference_n2 (n, q) and current_m2 (m, q), q >= 1: scores on the principal components, of
    which the first two are drawn; shift_sd_q, shift_se_q (q',): shift of the mean in reference sd and its standard
    error. None where there is none. history: oldest first or not, any length."""

    verdict: VerdictSummary
    job: str = ""
    reference_n2: ArrayLike | None = None
    current_m2: ArrayLike | None = None
    variance_shares: tuple[float, ...] = ()
    shift_sd_q: ArrayLike | None = None
    shift_se_q: ArrayLike | None = None
    history: tuple[HistoryPoint, ...] = ()
    reference_span: tuple[datetime, datetime] | None = None


def _text(part: SubFigure, size: tuple[float, float], x: float, y: float, text: str, **look: object) -> None:
    """Text at x, y inches from the upper left corner of a part of ``size`` inches."""
    part.text(x / size[0], 1 - y / size[1], text, **{"va": "top", **look})  # type: ignore[arg-type]


def _head(page: SummaryInput) -> list[tuple[str, float, dict[str, object]]]:
    """Lines beside the verdict, each with its place in inches below the page's edge: what was found, what changed, of
    what."""
    verdict, room = page.verdict, WIDTH - MARGIN - BESIDE
    lines: list[tuple[str, float, dict[str, object]]] = []
    y = 0.26
    for line in wrap(plain_sentence(verdict, name_reference=False), room, 12.5, "bold", lines=3):
        lines.append((line, y, {"fontsize": 12.5, "weight": "bold", "color": INK}))
        y += 0.235
    y += 0.03 if verdict.phenomena else 0.0
    left = CHANGED_LINES
    for sentence in verdict.phenomena[:SHOWN]:
        for k, line in enumerate(wrap(sentence, room - 0.15, 10, lines=min(2, left))):
            lines.append((f"•  {line}" if k == 0 else f"    {line}", y, {"fontsize": 10, "color": INK}))
            y += 0.185
            left -= 1
    dates = f" ({verdict.window_dates})" if verdict.window_dates else ""
    facts = [f"job {page.job}"] * bool(page.job) + [f"window {verdict.window}{dates}", f"reference {verdict.reference}"]
    for line in wrap("  ·  ".join(facts), room, 9.5, lines=2 if left > 1 else 1):
        lines.append((line, y + 0.05, {"fontsize": 9.5, "color": MUTED}))
        y += 0.18
    return lines


def _banner(part: SubFigure, page: SummaryInput, height: float) -> None:
    verdict, size = page.verdict, (WIDTH, height)
    color, on_color = style.VERDICT_COLORS[verdict.verdict], style.VERDICT_ON_COLOR[verdict.verdict]
    box = BESIDE - MARGIN - 0.25
    part.add_artist(
        FancyBboxPatch(
            (MARGIN / WIDTH, 1 - (BANNER - 0.1) / height),
            box / WIDTH,
            (BANNER - 0.35) / height,
            boxstyle="square,pad=0",
            facecolor=color,
            edgecolor="none",
            transform=part.transSubfigure,
        )
    )
    word = verdict.verdict.upper()
    word_size = 30.0
    while style.text_width(word, word_size, "bold") > box - 0.4:
        word_size -= 1
    _text(
        part,
        size,
        MARGIN + box / 2,
        0.62,
        word,
        fontsize=word_size,
        weight="bold",
        color=on_color,
        ha="center",
        va="center",
    )
    judged = verdict.judged and verdict.ratio is not None
    below = f"{times(verdict.ratio)} usual movement" if judged else f"exit code {verdict.exit_code}"
    _text(part, size, MARGIN + box / 2, 1.05, below, fontsize=11, color=on_color, ha="center", va="center")
    for line, y, look in _head(page):
        _text(part, size, BESIDE, y, line, **look)


def _tiles(part: SubFigure, page: SummaryInput) -> None:
    verdict, size = page.verdict, (WIDTH, TILES)
    interval = "-" if verdict.ci is None else f"{number(verdict.ci[0], 2)} to {number(verdict.ci[1], 2)}"
    versus = f"against {count(verdict.reference_rows)}" if verdict.reference_rows is not None else "in the window"
    judged = (verdict.ratio, verdict.p_aa, verdict.p_close) if verdict.judged else (None, None, None)
    ratio, p_aa, p_close = judged
    chance = "chance to lie so far"
    if verdict.judged and verdict.gates:
        p_aa = min(gate.p for gate in verdict.gates)
        chance = f"smallest of {len(verdict.gates)}, adjusted"
    severity = f"severity {verdict.severity or '-'}" if verdict.judged else "no verdict"
    tiles = [
        ("Score (energy distance)", number(verdict.score), f"95% interval {interval}"),
        ("Against the usual movement", times(ratio), severity),
        ("p, usual movement", p_value(p_aa), chance),
        ("p, within the tolerance", p_value(p_close), f"tolerance Δ {number(verdict.delta)}"),
        ("Rows", count(verdict.rows), versus),
    ]
    widths = [2.75, 2.25, 1.9, 2.15, 1.9]
    x = MARGIN
    for (name, value, note), room in zip(tiles, widths, strict=True):
        if x > MARGIN:
            at = (x - 0.14) / WIDTH
            part.add_artist(
                FancyBboxPatch(
                    (at, 0.12),
                    0.0001,
                    0.78,
                    boxstyle="square,pad=0",
                    facecolor=style.GRID,
                    edgecolor=style.GRID,
                    transform=part.transSubfigure,
                )
            )
        _text(part, size, x, 0.08, shorten(name, room - 0.2, 9), fontsize=9, color=MUTED)
        _text(part, size, x, 0.26, shorten(value, room - 0.2, 17, "bold"), fontsize=17, weight="bold", color=INK)
        _text(part, size, x, 0.58, shorten(note, room - 0.2, 9), fontsize=9, color=MUTED)
        x += room


def _pictures(part: SubFigure, page: SummaryInput) -> None:
    edge = MARGIN - 0.1  # what the layout's padding and the legends leave
    middle = parts(part, (edge, WIDTH - 2 * edge, edge))[1]
    upper, lower = parts(middle, (1.2, 1.0), vertical=True)
    first, second = parts(upper, (1.0, 1.0))
    third, fourth = parts(lower, (1.75, 1.0))
    none = np.zeros((0, 2))
    x = none if page.reference_n2 is None else density.finite_plane("reference_n2", page.reference_n2)
    y = none if page.current_m2 is None else density.finite_plane("current_m2", page.current_m2)
    names = ("reference", label(page.verdict.window))
    map_axes, histogram_axes = first.subplots(), second.subplots()
    map_axes.set_title("Where the rows lie: first two principal components")
    histogram_axes.set_title("Spread along the first principal component")
    if len(x) or len(y):
        frame = density.frame_of(x, y)
        handles = clouds.draw_pca_map(map_axes, x, y, frame, labels=names, compact=True)
        legend_below(first, handles, 2, fontsize=8)
        groups = [(names[0], x[:, 0]), (names[1], y[:, 0])]
        handles = clouds.draw_pc1_histogram(histogram_axes, groups, frame.x, compact=True)
        legend_below(second, handles, 2, fontsize=8)
    else:
        style.empty(map_axes, "no rows to draw")
        style.empty(histogram_axes, "no rows to draw")
    ax = third.subplots()
    period = timeline.period_name(page.history)
    ax.set_title(f"Distance from the reference, {period} by {period}", pad=17)  # room for "reference" above the axes
    handles = timeline.draw_history(
        ax, page.history, current_label=page.verdict.window, reference_span=page.reference_span, compact=True
    )
    if handles:
        legend_below(third, handles, 3, fontsize=8)
    ax = fourth.subplots()
    ax.set_title("Shift of the mean, each component")
    shift = np.zeros(0) if page.shift_sd_q is None else np.asarray(page.shift_sd_q, dtype=np.float64)
    if len(shift):
        se = np.zeros(len(shift)) if page.shift_se_q is None else page.shift_se_q
        handles = components.draw_shift(
            ax,
            components.component_values("shift_sd_q", shift, len(shift)),
            components.component_values("shift_se_q", se, len(shift)),
            compact=True,
        )
        legend_below(fourth, handles, 2, fontsize=8)
    else:
        style.empty(ax, "no components measured")


def _notes(page: SummaryInput, most: int) -> list[tuple[str, bool]]:
    """Lines of the foot, each with whether it starts a note; the last says how many notes did not fit."""
    lines: list[tuple[str, bool]] = []
    for k, note in enumerate(page.verdict.notes):
        wrapped = wrap(note, WIDTH - 2 * MARGIN - 0.15, 8.5, lines=2)
        left = len(page.verdict.notes) - k
        if len(lines) + len(wrapped) > most - (left > 1):
            lines.append((f"and {left} more: see result.json", True))
            break
        lines += [(line, j == 0) for j, line in enumerate(wrapped)]
    return lines


def summary(page: SummaryInput, stem: str | os.PathLike[str]) -> Picture:
    """The one-page summary, A4 landscape, as ``<stem>.png`` and ``<stem>.svg``."""
    title = f"Drift summary of {label(page.verdict.window)}: {page.verdict.verdict}"
    with drawing():
        head = max(BANNER, _head(page)[-1][1] + 0.3)
        lines = _notes(page, 5 if head == BANNER else 3)  # the pictures need their room
        foot = 0.16 + NOTE_LINE * len(lines) if lines else 0.08
        figure = style.page(WIDTH, HEIGHT, padding=0.06)
        heights = (head, TILES, HEIGHT - head - TILES - foot, foot)
        banner, tiles, pictures, notes = parts(figure, heights, vertical=True)
        _banner(banner, page, head)
        _tiles(tiles, page)
        _pictures(pictures, page)
        for k, (line, starts) in enumerate(lines):
            y = 0.04 + NOTE_LINE * k
            if starts:
                _text(notes, (WIDTH, foot), MARGIN, y, "•", fontsize=8.5, color=MUTED)
            _text(notes, (WIDTH, foot), MARGIN + 0.13, y, line, fontsize=8.5, color=MUTED)
        changed = "".join(f" {sentence}" for sentence in page.verdict.phenomena[:SHOWN])
        return save(figure, stem, title, f"{title}. {plain_sentence(page.verdict)}{changed}")
