"""A segment's own usual movement: A/A scores of its reference windows at any n0, from one pass over its pairs.

The energy of each reference window's first n0 rows of the segment against its rows in all other windows, as
``movement`` has it for the whole. With r_i the row sums of distances over all pairs of the segment's reference rows and
w_i their part within the row's own window, for window k, P its first n0 rows and R the rows of the other windows,

    sum over P x R = sum_P (r_i - w_i)        sum over R x R = sum_i r_i - 2 sum_k (r_i - w_i) - sum_k w_i

so only pairs within windows, 1/K of all, are taken again (w_i once, P x P for each n0): a window with fewer rows of the
segment than n0 costs no second pass.

Windows that stand out of the segment's others (``calibrate.clean``: 4 robust sd) leave both its null and the rows it
is compared with, as for the whole. A segment's burst is often none of the whole, so hygiene of the whole does not find
it; left in, it would widen the null, hide its own return, and make every quiet window look far from the mixture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gpudrift import kernels
from gpudrift.arithmetic import Arithmetic, prepare
from gpudrift.calibrate import MIN_NULL, AANull, clean
from gpudrift.engine.pairs import Pairs, in_process_pairs
from gpudrift.kernels import PairSums, Prepared
from gpudrift.kernels.layout import count_pairs
from gpudrift.metrics.pairs import less, null_scale, null_sd
from gpudrift.segments.columns import Segment


@dataclass(frozen=True)
class ReferenceRows:
    """The whole reference's rows (n, d), centred, window-major in canonical order; clusters (n,) int64 or None; and
    what their pairs are computed in, and where."""

    rows: Tensor
    offsets: Sequence[int]
    labels: Sequence[str]
    codes: Tensor | None
    arithmetic: Arithmetic
    bandwidths: tuple[float, ...]
    where: Pairs = field(default_factory=in_process_pairs)

    def prepared(self, places: Tensor, offsets: Sequence[int] | None = None) -> Prepared:
        """Some of the rows ready for pairs; ``offsets``: of groups among them."""
        rows = self.rows[places.to(self.rows.device)]
        return prepare(rows, self.arithmetic, offsets=offsets, clusters=self.clusters(places))

    def clusters(self, places: Tensor) -> Tensor | None:
        return None if self.codes is None else self.codes[places.to(self.codes.device)]


@dataclass(frozen=True)
class SegmentReference:
    """The reference of one segment. places: its rows in pairs, ascending. windows: those of the reference, by index,
    that hold any, bursts left out; offsets: where their rows lie among ``places``. usable: the windows with an A/A
    score. sums: over all pairs. within: (n,) float64, a row's distances to the rows of its own window. dropped: bursts
    with the score each had."""

    places: Tensor
    windows: tuple[int, ...]
    offsets: tuple[int, ...]
    usable: tuple[int, ...]
    sums: PairSums
    within: Tensor
    dropped: tuple[tuple[int, float], ...] = ()
    nulls: dict[int, AANull] = field(default_factory=dict)

    def span(self, window: int) -> slice:
        """Where a window's rows lie among ``places``."""
        k = self.windows.index(window)
        return slice(self.offsets[k], self.offsets[k + 1])

    def rows_of(self, window: int) -> int:
        k = self.windows.index(window)
        return self.offsets[k + 1] - self.offsets[k]

    @property
    def n0(self) -> int:
        """Rows of the smallest usable window."""
        return min(self.rows_of(k) for k in self.usable)


def pin_segment(
    reference: ReferenceRows,
    segment: Segment,
    min_rows: int,
    hygiene_sd: float,
    progress: kernels.Progress | None = None,
) -> SegmentReference:
    """One pass over the pairs of a segment's reference rows, then hygiene over its windows."""
    bounds = np.cumsum([0, *segment.sizes])
    windows = tuple(k for k, count in enumerate(segment.pairs) if count)
    places = torch.from_numpy(np.concatenate([segment.rows[bounds[k] :][: segment.pairs[k]] for k in windows]))
    offsets = tuple(itertools.accumulate((segment.pairs[k] for k in windows), initial=0))
    cloud = reference.prepared(places, offsets)
    sums = reference.where.self_sums(
        replace(cloud, offsets=(0, len(cloud))), bandwidths=reference.bandwidths, progress=progress, name="segments"
    )
    own = reference.where.batch_sums(cloud, None, [(k, k) for k in range(len(windows))], squares=False)
    within = torch.cat([part.rows[0] for part in own])
    usable = tuple(k for k in windows if segment.sizes[k] >= min_rows)
    pinned = SegmentReference(places, windows, offsets, usable, sums, within)
    if usable:
        # rows of one cluster make no pair
        scores = null_at(reference, pinned, pinned.n0).scores
        usable = tuple(k for k in usable if math.isfinite(scores[reference.labels[k]]))
        pinned = replace(pinned, usable=usable, nulls={})
    if len(usable) < MIN_NULL:
        return pinned

    def score_windows(kept: Sequence[int]) -> AANull:
        nonlocal pinned
        out = [k for k in pinned.usable if k not in {usable[i] for i in kept}]
        if out:
            pinned = _without(reference, pinned, out)
        return null_at(reference, pinned, pinned.n0)

    hygiene = clean(score_windows, len(usable), hygiene_sd)
    return replace(pinned, dropped=tuple((usable[i], score) for i, score in hygiene.dropped))


def null_at(reference: ReferenceRows, pinned: SegmentReference, n0: int) -> AANull:
    """The A/A scores of a segment's usable windows at n0 rows; NaN where no pair of different clusters is left. Kept
    for the next time."""
    if n0 in pinned.nulls:
        return pinned.nulls[n0]
    bounds = [0]
    for start, end in itertools.pairwise(pinned.offsets):
        bounds += [min(start + n0, end), end]
    cloud = reference.prepared(pinned.places, bounds)
    groups = [2 * pinned.windows.index(k) for k in pinned.usable]
    firsts = reference.where.batch_sums(cloud, None, [(g, g) for g in groups], squares=False, margins=False)
    counts = count_pairs(cloud, None).blocks
    outside, total = pinned.sums.rows[0] - pinned.within, float(pinned.sums.total[0])
    scores = {}
    for k, g, first in zip(pinned.usable, groups, firsts, strict=True):
        rows, own = pinned.span(k), slice(g, g + 2)
        inner = float(counts[own, own].sum())
        sums = (
            float(outside[rows][:n0].sum()),
            float(first.total[0]),
            total - 2 * float(outside[rows].sum()) - float(pinned.within[rows].sum()),
        )
        pairs = (
            float(counts[g].sum() - counts[g, own].sum()),
            first.pairs,
            pinned.sums.pairs - 2 * (float(counts[own].sum()) - inner) - inner,
        )
        across, first_mean, rest = (of / n if n > 0 else math.nan for of, n in zip(sums, pairs, strict=True))
        scores[reference.labels[k]] = 2 * across - first_mean - rest
    c = null_sd(null_scale(pinned.sums, 0, cloud.clusters), n0, len(cloud))
    pinned.nulls[n0] = AANull(n0, scores, c)
    return pinned.nulls[n0]


def _without(reference: ReferenceRows, pinned: SegmentReference, bursts: Sequence[int]) -> SegmentReference:
    """A segment's reference without some of its windows."""
    out = torch.cat([torch.arange(pinned.span(k).start, pinned.span(k).stop) for k in bursts])
    mask = torch.ones(len(pinned.places), dtype=torch.bool)
    mask[out] = False
    kept = mask.nonzero()[:, 0]
    x, y = reference.prepared(pinned.places[kept]), reference.prepared(pinned.places[out])
    xy = reference.where.cross_sums(x, y, bandwidths=reference.bandwidths)
    yy = reference.where.self_sums(y, bandwidths=reference.bandwidths)
    windows = tuple(k for k in pinned.windows if k not in bursts)
    return SegmentReference(
        places=pinned.places[kept],
        windows=windows,
        offsets=tuple(itertools.accumulate(map(pinned.rows_of, windows), initial=0)),
        usable=tuple(k for k in pinned.usable if k not in bursts),
        sums=less(pinned.sums, kept, xy, yy),
        within=pinned.within[kept],
    )
