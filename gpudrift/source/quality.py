"""Bad rows: counted by cause, with examples, and held against the largest share a window may lose.

null: no vector, or a value of it is missing. ragged: a vector of another length. non_finite: NaN, an infinity, or a
float64 beyond float32. zero: every value is 0, a vector without a direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gpudrift.errors import DataError
from gpudrift.records import Quality, Window
from gpudrift.source.layouts import Positions

CAUSES = ("null", "ragged", "non_finite", "zero")
EXAMPLES = 10


@dataclass
class BadRows:
    """The bad rows of one window, or of one part of it; parts are added in the order of the rows."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)  # of ragged vectors

    def add(self, cause: str, positions: Positions, name: Callable[[int], str]) -> None:
        """``name`` gives the id of a row of the batch at hand; it is asked for examples alone."""
        if not len(positions):
            return
        self.counts[cause] += len(positions)
        shown = self.examples.setdefault(cause, [])
        shown.extend(name(int(position)) for position in positions[: EXAMPLES - len(shown)])

    def merge(self, later: BadRows) -> None:
        self.counts.update(later.counts)
        self.lengths.update(later.lengths)
        for cause, names in later.examples.items():
            shown = self.examples.setdefault(cause, [])
            shown.extend(names[: EXAMPLES - len(shown)])

    @property
    def total(self) -> int:
        return self.counts.total()


def find_bad_values(rows: Tensor) -> tuple[Positions, Positions]:
    """Positions of the non-finite and of the zero rows of (n, d) float32 values.

    One pass for the sums of squares, which miss nothing: NaN and infinities survive in them, and a zero row gives 0.
    Only the rows they point at (squares overflow or vanish for sound values near 1e19 and 1e-23) are looked at again.
    """
    values = rows.numpy()
    squares = np.einsum("ij,ij->i", values, values)
    suspects = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    if not len(suspects):
        return suspects, suspects
    looked_at = rows[torch.from_numpy(suspects)]
    finite = torch.isfinite(looked_at).all(dim=1).numpy()
    zero = (looked_at == 0).all(dim=1).numpy()
    return suspects[~finite], suspects[zero]


def summarise(rows: int, bad: BadRows, files: int, size: int) -> Quality:
    return Quality(
        rows_read=rows,
        rows_kept=rows - bad.total,
        dropped={cause: bad.counts[cause] for cause in CAUSES if bad.counts[cause]},
        examples={cause: tuple(bad.examples[cause]) for cause in CAUSES if bad.counts[cause]},
        files=files,
        bytes=size,
    )


def enforce(
    windows: Sequence[Window],
    qualities: Iterable[Quality],
    bad: Sequence[BadRows],
    *,
    on_bad_rows: Literal["drop", "fail"],
    max_bad_fraction: float,
    column: str,
    dim: int,
) -> None:
    """Refuse windows with more bad rows than the settings allow.

    Raises:
        DataError: counts by cause and examples of the worst window, and how many others there are.
    """
    limit = 0.0 if on_bad_rows == "fail" else max_bad_fraction
    over = [(q.bad_fraction, k, q) for k, q in enumerate(qualities) if q.bad_fraction > limit]
    if not over:
        return
    fraction, k, quality = max(over, key=lambda item: (item[0], -item[1]))
    count = quality.rows_read - quality.rows_kept
    causes = "; ".join(
        f"{number:,} {cause} ({', '.join(quality.examples[cause][:3])}{', ...' if number > 3 else ''})"
        for cause, number in quality.dropped.items()
    )
    message = f"{count:,} of {quality.rows_read:,} rows of {windows[k].label} cannot be used ({fraction:.2%}): {causes}"
    if len(over) > 1:
        message += f"; {len(over) - 1} more windows are over the limit"
    if bad[k].lengths:
        length, times = max(bad[k].lengths.items(), key=lambda item: (item[1], -item[0]))
        message += f"; vectors of length {length} instead of {dim}: {times:,}, perhaps of another encoder"
    raise DataError(
        message,
        field=column,
        allowed="none (quality.on_bad_rows=fail)"
        if on_bad_rows == "fail"
        else f"{max_bad_fraction:.2%} (quality.max_bad_fraction)",
        hint="mend these rows where they are written, leave them out with source.filter, or allow more with "
        + ("quality.on_bad_rows=drop" if on_bad_rows == "fail" else "quality.max_bad_fraction"),
    )
