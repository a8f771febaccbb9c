"""How long the rows are: the norm histograms of reference and current window on one logarithmic axis."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gpudrift.records import Norms
from gpudrift.report.style import (
    CURRENT,
    REFERENCE,
    Picture,
    drawing,
    label,
    legend_below,
    minus,
    plain_tick,
    save,
    sheet,
)
from gpudrift.report.wording import count, number

PER_OCTAVE = 8  # bins, as gpudrift.source.quality counts them


def worth_drawing(reference: Norms | None, current: Norms | None) -> bool:
    """Whether the lengths are not all in one and the same bin, as those of unit vectors are."""
    known = [norms for norms in (reference, current) if norms is not None]
    return len({k for norms in known for k, _ in norms.bins}) > 1


def norm_histogram(
    reference: Norms,
    current: Norms,
    stem: str | os.PathLike[str],
    *,
    labels: tuple[str, str] = ("Reference", "Current"),
) -> Picture:
    """Shares of the rows by length, bins of an eighth of an octave, as ``<stem>.png`` and ``<stem>.svg``."""
    names = label(labels[0]), label(labels[1])
    title = f"How long the vectors are: {names[1]} against {names[0]}"
    told = [
        f"{name}: {count(norms.rows)} rows, {number(norms.least)} to {number(norms.most)}, mean {number(norms.mean)}"
        for name, norms in zip(names, (reference, current), strict=True)
    ]
    with drawing():
        figure, body = sheet(9.0, 3.4, title, "Shares of the rows by Euclidean length.", tuple(told))
        ax = body.subplots()
        sides = zip((reference, current), (REFERENCE, CURRENT), (-1, 0), strict=True)
        for norms, color, side in sides:  # side by side within a bin, so that neither hides the other
            places = np.array([k for k, _ in norms.bins], dtype=np.float64)
            shares = np.array([rows for _, rows in norms.bins]) / norms.rows
            ax.bar(places + 0.45 * side, 100 * shares, width=0.45, align="edge", color=color, linewidth=0)
        low = min(norms.bins[0][0] for norms in (reference, current)) - 1.5
        high = max(norms.bins[-1][0] for norms in (reference, current)) + 1.5
        ax.set_xlim(low, high)
        # powers of two at round places, at most about ten
        step = PER_OCTAVE * max(1, int(np.ceil((high - low) / PER_OCTAVE / 10)))
        if high - low < PER_OCTAVE:
            step = 2
        ax.xaxis.set_major_locator(FixedLocator(np.arange(np.ceil(low / step) * step, high, step).tolist()))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: minus(f"{2 ** (k / PER_OCTAVE):.3g}")))
        ax.yaxis.set_major_formatter(FuncFormatter(plain_tick))
        ax.set_xlabel("length (logarithmic)")
        ax.set_ylabel("% of the rows")
        handles = [Patch(color=color, label=name) for color, name in zip((REFERENCE, CURRENT), names, strict=True)]
        legend_below(body, handles, 2)
        return save(figure, stem, title, f"{title}. {'; '.join(told)}.")
