"""Bad rows: counted by cause, with examples, and held against the largest share a window may lose.

null: no vector, or a value of it is missing. ragged: a vector of another length. non_finite: NaN, an infinity, or a
float64 beyond float32. zero: every value is 0, a vector without a direction.

Rows that are odd but usable are counted and kept (``look_at``): ids that occur more than once, lengths of the vectors,
and which of them are not 1. Duplicate rows are counted where rows are hashed anyhow (``gpudrift.fingerprint``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpudrift.errors import DataError
from gpudrift.records import Cloud, Norms, Quality, Repeats, RowFindings, Window
from gpudrift.source.layouts import Positions
from gpudrift.source.names import as_text

CAUSES = ("null", "ragged", "non_finite", "zero")
EXAMPLES = 10
UNIT_TOLERANCE = 2.0**-8  # bfloat16 moves a length by 2^-9 at most, float16 by 2^-11, int8 with a scale a row by .001
UNIT_SHARE = 0.99  # of the rows of a corpus of unit length
PER_OCTAVE = 8  # bins of the norm histogram
_CHUNK = 1 << 21  # elements at a time


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


def look_at(cloud: Cloud) -> Cloud:
    """The cloud with lengths and repeated ids counted into the quality of each window; no row changes.

    The cloud's rows are as they were read, not centred. One pass over them in float64, a few MB at a time.
    """
    looked = []
    for k, quality in enumerate(cloud.quality):
        window = cloud.window(k)
        found = quality.found or RowFindings(Repeats(0, 0))
        repeated = None if window.ids is None else repeated_ids(window.ids)
        norms = norms_of(window.embeddings, window.ids)
        looked.append(replace(quality, found=replace(found, repeated_ids=repeated, norms=norms)))
    return replace(cloud, quality=tuple(looked))


def lengths(rows: Tensor) -> Tensor:
    """(n,) float64 Euclidean lengths, on the CPU, of rows (n, d)."""
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = [rows[i : i + step].double().norm(dim=1).cpu() for i in range(0, len(rows), step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def norms_of(rows: Tensor, ids: Any = None) -> Norms | None:
    """Lengths of rows (n, d), none of them zero, with ids (an Arrow array) of those furthest from 1; None of none."""
    found = lengths(rows).numpy()
    if not len(found):
        return None
    bins, counts = np.unique(np.rint(PER_OCTAVE * np.log2(found)).astype(np.int64), return_counts=True)
    away = np.abs(found - 1)
    off = np.flatnonzero(away > UNIT_TOLERANCE)
    names: tuple[str, ...] = ()
    if ids is not None and len(off):
        # all that are as far as the tenth: which of them come first must not depend on the order of rows
        least = np.partition(away[off], -min(EXAMPLES, len(off)))[-min(EXAMPLES, len(off))]
        places = off[away[off] >= least]
        named = [
            (-away[place], str(name))
            for place, name in zip(places.tolist(), ids.take(places).to_pylist(), strict=True)
            if name is not None
        ]
        names = tuple(name for _, name in sorted(named)[:EXAMPLES])
    return Norms(
        rows=len(found),
        least=float(found.min()),
        mean=float(found.mean()),
        most=float(found.max()),
        bins=tuple(zip(bins.tolist(), counts.tolist(), strict=True)),
        off_unit=len(off),
        examples=names,
    )


def repeated_ids(ids: Any) -> Repeats:
    """Ids, an Arrow array, that more than one row has; nulls name nothing and do not count."""
    import pyarrow.compute as pc

    try:
        counted = pc.value_counts(ids.drop_null())
    except NotImplementedError:  # nested values and extensions
        counted = pc.value_counts(as_text(ids.drop_null()))
    counts = counted.field("counts").to_numpy()
    often = np.flatnonzero(counts > 1)
    if not len(often):
        return Repeats(0, 0)
    names = counted.field("values").take(often).to_pylist()
    first = sorted(zip((-counts[often]).tolist(), map(str, names), strict=True))[:EXAMPLES]
    return Repeats(int((counts[often] - 1).sum()), int(counts.max()), tuple(name for _, name in first))


def combined(norms: Iterable[Norms | None]) -> Norms | None:
    """The lengths of several windows together, without examples; None of none."""
    known = [one for one in norms if one is not None]
    if not known:
        return None
    bins: Counter[int] = Counter()
    for one in known:
        bins.update(dict(one.bins))
    rows = sum(one.rows for one in known)
    return Norms(
        rows=rows,
        least=min(one.least for one in known),
        mean=sum(one.mean * one.rows for one in known) / rows,
        most=max(one.most for one in known),
        bins=tuple(sorted(bins.items())),
        off_unit=sum(one.off_unit for one in known),
    )


def total(quality: Iterable[Quality]) -> Quality:
    """Several windows together, without examples: repeats are counted within each window."""
    parts = list(quality)
    found = [part.found for part in parts if part.found is not None]
    ids = [one.repeated_ids for one in found if one.repeated_ids is not None]
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    return Quality(
        rows_read=sum(part.rows_read for part in parts),
        rows_kept=sum(part.rows_kept for part in parts),
        dropped={cause: dropped[cause] for cause in CAUSES if dropped[cause]},
        examples={},
        files=sum(part.files for part in parts),
        bytes=sum(part.bytes for part in parts),
        found=RowFindings(
            duplicates=_added([one.duplicates for one in found]),
            repeated_ids=_added(ids) if ids else None,
            norms=combined(one.norms for one in found),
        )
        if found
        else None,
    )


def _added(repeats: Sequence[Repeats]) -> Repeats:
    return Repeats(sum(one.rows for one in repeats), max(one.largest for one in repeats))


def unit_length(quality: Iterable[Quality]) -> bool:
    """Whether these windows are of unit length: at least 99% of their rows, within the tolerance."""
    norms = combined(q.found.norms for q in quality if q.found is not None)
    return norms is not None and norms.off_unit <= (1 - UNIT_SHARE) * norms.rows
