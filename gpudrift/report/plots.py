"""The pictures: each function draws one, writes ``<stem>.png`` and ``<stem>.svg``, and returns them as a ``Picture``.

Input is plain numbers (anything NumPy can read; torch tensors on the CPU too). Rows of embeddings must be finite
(ArgumentError otherwise); a component without a value is left blank and said so. Both files appear whole or not at all,
and equal input gives equal bytes with the same matplotlib. ``Picture.alt_text`` says in words what a picture shows; the
SVG carries it as its ``<desc>``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import ArrayLike

from gpudrift.errors import ArgumentError
from gpudrift.records import HistoryPoint
from gpudrift.report import clouds, components, density, timeline
from gpudrift.report.alarms import AlarmStrip, alarm_timeline
from gpudrift.report.heatmap import HeatCell, segment_heatmap
from gpudrift.report.masses import cluster_masses
from gpudrift.report.style import Picture, drawing, label, legend_below, parts, save, sheet
from gpudrift.report.summary import SummaryInput, summary
from gpudrift.report.witness import witness_map
from gpudrift.report.wording import number, span_text, times

__all__ = [
    "AlarmStrip",
    "HeatCell",
    "Picture",
    "SummaryInput",
    "alarm_timeline",
    "cluster_masses",
    "history",
    "pc1_histogram",
    "pca_map",
    "segment_heatmap",
    "spectrum_and_shift",
    "summary",
    "witness_map",
]

Stem = str | os.PathLike[str]


def _percent(shares: Sequence[float]) -> str:
    numbers = sorted(round(100 * share) for share in shares)
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}%"


def pca_map(
    reference_n2: ArrayLike,
    current_m2: ArrayLike,
    stem: Stem,
    *,
    variance_shares: Sequence[float] = (),
    labels: tuple[str, str] = ("Reference", "Current"),
    title: str | None = None,
) -> Picture:
    """Reference (n, 2) against current window (m, 2) on PC1-PC2; one component alone is drawn on a line.

    variance_shares: of the reference's variance along the two, 0 to 1. With at least ``clouds.DENSITY_ROWS`` reference
    rows and ``clouds.OUTLINE_ROWS`` current ones a second panel shows where the window gained and lost rows. Both
    clouds share their limits, which leave out a few far outliers; how many is said below the picture.
    """
    x, y = density.finite_plane("reference_n2", reference_n2), density.finite_plane("current_m2", current_m2)
    shares = [float(share) for share in variance_shares]
    names = label(labels[0]), label(labels[1])
    frame = density.frame_of(x, y)
    many = len(x) >= clouds.DENSITY_ROWS and len(y) >= clouds.OUTLINE_ROWS
    title = title or f"Where the embeddings lie{' and where they moved' if many else ''}: {names[1]} against {names[0]}"
    subtitle = "A dot is a row; the large marks are the means."
    if len(x) >= clouds.DENSITY_ROWS:
        subtitle = (
            f"Shades hold {_percent(clouds.SHARES)} of the reference's rows; lines hold half (heavy) and 90% (fine) of "
            "the rows; large marks are the means."
        )
    notes = []
    if len(y) > clouds.SHOWN_ROWS:
        notes.append(f"Drawn as dots: {clouds.SHOWN_ROWS:,} of the {len(y):,} current rows, chosen at random.")
    if frame.outside_reference or frame.outside_current:
        notes.append(
            f"Outside the frame: {frame.outside_reference:,} of {len(x):,} reference rows and "
            f"{frame.outside_current:,} of {len(y):,} current rows."
        )
    if many:
        notes.append(
            f"Right: where the current window has over {clouds.CHANGES[0]} times or under 1/{clouds.CHANGES[0]} of the "
            f"reference's share of rows, beyond noise (a false spot in {100 * clouds.FALSE_SPOTS:g}% of pictures); "
            "the grey line holds 95% of all rows."
        )
    with drawing():
        figure, body = sheet(11.5 if many else 8.0, 5.1, title, subtitle, tuple(notes))
        left, right = parts(body, (1.0, 1.0)) if many else (body, None)
        handles = clouds.draw_pca_map(left.subplots(), x, y, frame, variance_shares=shares, labels=names)
        legend_below(left, handles, 2)
        if right is not None:
            handles = clouds.draw_change(right.subplots(), x, y, frame, variance_shares=shares)
            legend_below(right, handles, 5, columnspacing=1.2, handlelength=1.4)
        means = [f"({number(p[:, 0].mean())}, {number(p[:, 1].mean())})" if len(p) else "none" for p in (x, y)]
        alt_text = (
            f"{title}. Map of {len(x):,} reference rows and {len(y):,} current rows on the first two principal "
            f"components; mean of the reference {means[0]}, of the current window {means[1]}."
        )
        return save(figure, stem, title, alt_text)


def pc1_histogram(
    groups: Sequence[tuple[str, ArrayLike]],
    stem: Stem,
    *,
    variance_share: float | None = None,
    title: str | None = None,
) -> Picture:
    """Histograms of PC1 of one to six groups of rows, (label, (rows,) values), on common bins of one axis; the first
    group is the reference."""
    if not 1 <= len(groups) <= 6:
        raise ArgumentError(
            "this many histograms cannot be told apart", field="groups", value=len(groups), allowed="1 to 6"
        )
    known = [(label(name), density.finite_values(f"groups[{k}]", values)) for k, (name, values) in enumerate(groups)]
    limits = density.robust_limits(*(values for _, values in known))
    names = [name for name, _ in known]
    if title is None:
        which = (
            f"{names[-1]} against {names[0]}" if len(names) == 2 else " to ".join([names[0], names[-1]][: len(names)])
        )
        title = f"How the rows spread along the first principal component: {which}"
    outside = [(name, int(((v < limits[0]) | (v > limits[1])).sum()), len(v)) for name, v in known]
    notes = [f"Outside the frame: {', '.join(f'{k:,} of {n:,} ({name})' for name, k, n in outside if k)}."]
    notes = notes if any(k for _, k, _ in outside) else []
    empty = [name for name, values in known if not len(values)]
    if empty:
        notes.append(f"No rows: {', '.join(empty)}.")
    with drawing():
        figure, body = sheet(9.0, 4.2, title, "Each histogram has area 1; vertical lines are the means.", tuple(notes))
        handles = clouds.draw_pc1_histogram(body.subplots(), known, limits, variance_share=variance_share)
        legend_below(body, handles, 2)
        means = ", ".join(
            f"{name} {number(values.mean())} ({len(values):,} rows)" for name, values in known if len(values)
        )
        return save(figure, stem, title, f"{title}. Means along PC1: {means or 'none'}.")


def spectrum_and_shift(
    variances_q: ArrayLike,
    current_variances_q: ArrayLike,
    shift_sd_q: ArrayLike,
    shift_se_q: ArrayLike,
    log_variance_ratio_q: ArrayLike,
    stem: Stem,
    *,
    labels: tuple[str, str] = ("reference", "current window"),
    title: str | None = None,
) -> Picture:
    """Per component, each argument (q,): variances of both clouds, shift of the mean in reference sd with its standard
    error, and the natural logarithm of current over reference variance. None or NaN: no value, left blank."""
    variances = np.asarray(variances_q, dtype=np.float64)
    q = len(variances) if variances.ndim == 1 else 0
    if q < 1:
        raise ArgumentError(
            "there is no component to draw", field="variances_q", value=variances.shape, allowed="(q,), q >= 1"
        )
    spectrum = components.component_values("variances_q", variances, q)
    current = components.component_values("current_variances_q", current_variances_q, q)
    shift = components.component_values("shift_sd_q", shift_sd_q, q)
    se = components.component_values("shift_se_q", shift_se_q, q)
    log_ratio = components.component_values("log_variance_ratio_q", log_variance_ratio_q, q)
    title = title or f"What changed along each principal component: {label(labels[1])} against {label(labels[0])}"
    blank = int((~np.isfinite(shift) | ~np.isfinite(log_ratio)).sum())
    notes = (f"{blank} of {q} components have no spread to measure a change by: left blank.",) if blank else ()
    with drawing():
        figure, body = sheet(
            9.0, 6.0, title, "Variance on a log axis, shift of the mean with 95% intervals, ratio of variances.", notes
        )
        top, middle, bottom = body.subplots(3, 1, sharex=True, height_ratios=[1.1, 1.2, 1.0])
        handles = components.draw_spectrum(top, spectrum, current)
        handles += components.draw_shift(middle, shift, se, labelled=False)
        components.draw_variance_ratio(bottom, log_ratio)
        for ax in (top, middle):
            ax.tick_params(labelbottom=False)
        body.align_ylabels([top, middle, bottom])
        legend_below(body, handles, 4)
        largest = ""
        if np.isfinite(shift).any():
            k = int(np.nanargmax(np.abs(shift)))
            largest = f" The largest shift of the mean is {shift[k]:+.2g} sd along PC{k + 1}."
        return save(figure, stem, title, f"{title}. {q} components.{largest}")


def history(
    points: Sequence[HistoryPoint],
    stem: Stem,
    *,
    current_label: str | None = None,
    reference_span: tuple[datetime, datetime] | None = None,
    job: str = "",
    title: str | None = None,
) -> Picture:
    """The score of every window with its 95% interval, the movement that is usual, and the verdicts.

    reference_span: start and (excluded) end of the reference; shaded where near enough to the windows to be shown.
    """
    period = timeline.period_name(points)
    title = title or f"How far each {period} lies from the reference"
    subtitle = ", ".join([f"job {label(job)}"] * bool(job) + [f"{len(points):,} {period}{'s' * (len(points) != 1)}"])
    subtitle += f", reference {span_text(*reference_span)}" if reference_span else ""
    with drawing():
        figure, body = sheet(
            11.0,
            4.9,
            title,
            f"{subtitle}. Bars are 95% intervals; the line breaks where a {period} is missing.",
        )
        ax = body.subplots()
        handles = timeline.draw_history(ax, points, current_label=current_label, reference_span=reference_span)
        if handles:
            legend_below(body, handles, 4)
        tally = [(verdict, sum(p.verdict == verdict for p in points)) for verdict in timeline.ORDER]
        counted = ", ".join(f"{k} {verdict}" for verdict, k in tally if k) or "no windows yet"
        now = next((p for p in reversed(points) if p.window.label == current_label), None)
        latest = ""
        if now is not None:
            latest = (
                f" {now.window.label}: {now.verdict}, score {number(now.score)}, {times(now.ratio)} the usual movement."
            )
        return save(figure, stem, title, f"{title}; {subtitle}. Verdicts: {counted}.{latest}")
