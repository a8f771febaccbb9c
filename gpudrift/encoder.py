"""A new encoder or normalisation, or drift of content? Every score jumps for both; what to do differs.

What tells them apart (docs/quality.md has the thresholds and what was measured with them):

- lengths: unit in the reference and not now, or longer by one factor;
- dimensions that had values and now hold a constant: truncated vectors, padded;
- the mean: reversed. Content turns it, never about;
- familiarity: the Mahalanobis distance D of a row from the reference, on a scale where 1 is the mean of fresh rows of
  the reference and 0 what the same rows have after a random rotation: E D = tr(S^-1) E|x|^2 / d + m' S^-1 m. New
  topics still use the encoder's own directions and stay near 1; rows of another encoder fall to 0;
- ids that the reference has too: the same document, encoded twice (``gpudrift.matching``).

The Gaussian (mean m, covariance S plus a tenth of its mean variance) is fitted on every second window of the reference
and its usual values come from the others: fresh rows, as a window's are. At most ``CAP`` rows a side are looked at, the
first in canonical order, which are a random sample; the cost does not grow with the corpus.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpudrift.matching import cka, procrustes, residuals
from gpudrift.metrics.accumulate import ZERO, chunks, covariance_of, mean_of
from gpudrift.records import EncoderCheck, EncoderKind, Evidence

CAP = 20_000  # rows a side
LENGTH_TOLERANCE = 2.0**-8  # as gpudrift.source.quality.UNIT_TOLERANCE
OFF_SHARE = 0.05  # of rows not of unit length
RIDGE = 0.1  # of the mean variance, added to every direction
FAMILIAR = 0.5  # a row, or a window, below it is nearer to a rotated one than to the reference
DEEP, SPREAD, PART = 0.35, 0.6, 0.05  # of a part of the rows: median familiarity, variance, share (see _part)
REVERSED = -0.5  # cosine of the means
CONSTANT = 0.05  # of the dimensions
MATCHED, MATCHED_CAP, MATCHED_CAP_WIDE, WIDE = 50, 5_000, 2_000, 512  # ids; fewer where d is above WIDE
SAME, MOVED, UNRELATED, GAIN, ALIGNED = 0.1, 0.01, 0.8, 0.25, 0.3  # relative residuals; residual of the map; CKA

ADVICE = "If it is meant, pin a new reference (job=reference reference.replace=true); else mend what writes the rows"
_NAMES: dict[EncoderKind, str] = {
    "normalisation": "a change of normalisation",
    "scale": "a change of scale",
    "linear_map": "a new encoder (the old vectors, mapped linearly)",
    "encoder": "a new encoder",
}


@dataclass(frozen=True)
class _Gaussian:
    """Of every second window: mean (d,), lower Cholesky factor (d, d); usual and rotated distances from it."""

    mean: Tensor
    factor: Tensor
    usual: float
    rotated: float

    def distances(self, rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        for part in chunks(*rows.shape):
            away = (rows[part] - self.mean).T
            found[part] = torch.linalg.solve_triangular(self.factor, away, upper=False).square().sum(0)
        return found

    def familiarity(self, rows: Tensor) -> Tensor:
        return (self.rotated - self.distances(rows)) / (self.rotated - self.usual)


@dataclass(frozen=True)
class Baseline:
    """What the reference's own windows show. All lengths are logarithms; variance: of its rows, the trace.

    gaussian: None where rotated rows could not be told from the reference's own. own_share: unfamiliar rows among
    fresh ones. constant: largest share of dimensions constant in a window.
    """

    mean: Tensor
    unit: bool
    length: float
    length_spread: float
    length_movement: float
    variance: float
    square: float
    varied: Tensor
    constant: float
    gaussian: _Gaussian | None
    own_share: float


def baseline(centred: Tensor, mean: Tensor, offsets: Sequence[int], *, unit: bool) -> Baseline:
    """The reference as later windows are held against it.

    Args:
        centred: (n, d) rows of two windows or more, in canonical order, less ``mean`` (d,) float64.
        offsets: where the windows begin, and n. unit: the corpus is of unit length.
    """
    each = max(2, CAP // (len(offsets) - 1))
    parts = [centred[a : min(a + each, b)] for a, b in itertools.pairwise(offsets)]
    rows = torch.cat([part.double().add_(mean) for part in parts])  # once: 20,000 rows of 4,096 are 650 MB
    lengths = rows.norm(dim=1, keepdim=True)
    sizes = [len(part) for part in parts]
    windows = torch.split(rows, sizes)
    together = lengths.flatten().log()
    logs = torch.split(together, sizes)
    middle = float(together.median())
    spreads = rows.var(0)
    varied = spreads > ZERO * float(spreads.mean())
    if unit:
        rows /= lengths
    gaussian, own_share = _fit(windows)
    return Baseline(
        mean=mean_of(rows),
        unit=unit,
        length=middle,
        length_spread=float(together.std()),
        length_movement=max(abs(float(log.median()) - middle) for log in logs),
        variance=float(rows.var(0).sum()),
        square=float(rows.square().sum(1).mean()),
        varied=varied,
        constant=max(_constant(part, varied) for part in parts),
        gaussian=gaussian,
        own_share=own_share,
    )


def _fit(windows: Sequence[Tensor]) -> tuple[_Gaussian | None, float]:
    fitted, fresh = torch.cat(list(windows[::2])), list(windows[1::2])
    d = fitted.shape[1]
    mean = mean_of(fitted)
    covariance = covariance_of(fitted, mean)
    trace = float(covariance.trace())
    if not trace > 0:
        return None, 0.0
    covariance.diagonal().add_(RIDGE * trace / d)
    factor = torch.linalg.cholesky(covariance)
    inverse = torch.cholesky_inverse(factor)
    others = torch.cat(fresh)
    rotated = float(inverse.trace() * others.square().sum(1).mean() / d + mean @ inverse @ mean)
    usual = float(_Gaussian(mean, factor, 0.0, 1.0).distances(others).mean())
    if not rotated > usual:
        return None, 0.0
    gaussian = _Gaussian(mean, factor, usual, rotated)
    found = [gaussian.familiarity(rows) for rows in fresh]
    own_share = float((torch.cat(found) < FAMILIAR).double().mean())
    lowest = min(float(part.mean()) for part in found)
    # a reference whose rows have no directions of their own (a round cloud about 0) has nothing to lose by a rotation
    return (gaussian, own_share) if lowest > (1 + FAMILIAR) / 2 and own_share < PART / 2 else (None, 0.0)


def diagnose(
    base: Baseline,
    centred: Tensor,
    mean: Tensor,
    *,
    ids: Any = None,
    reference: Tensor | None = None,
    reference_ids: Any = None,
) -> EncoderCheck:
    """Hold a window against the reference's baseline.

    Args:
        centred: (m, d) rows of the window, m >= 2, in canonical order, less ``mean`` (d,) float64 (the pinned one).
        ids, reference, reference_ids: ids of the window (Arrow text), the reference's rows less ``mean``, and their
            ids, where there is an id column.
    """
    raw = centred[:CAP].double().add_(mean)
    rows, kind, share, lengths = _lengths(base, raw)
    evidence = [lengths]
    matches = _matches(ids, reference_ids)
    unmoved = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    calls: list[tuple[EncoderKind, float]] = []
    if matches is not None and reference is not None:
        call, found, unmoved = _matched(base, centred, mean, matches, reference, unmoved)
        evidence += found
        calls += call
    constant = _constant(centred[:CAP], base.varied)
    limit = max(CONSTANT, 2 * base.constant)
    sentence = f"{constant:.0%} of the dimensions hold one and the same value in every row"
    evidence.append(Evidence("constant_dimensions", constant, limit, limit < constant < 1, sentence))
    calls += [("encoder", 1.0)] if evidence[-1].found else []
    cosine, told = _cosine(base, rows)
    sentence = f"the mean points {'the other way' if told else 'the same way'} (cosine {cosine:.2f})"
    sentence = "the reference's mean is too near 0 to have a direction" if math.isnan(cosine) else sentence
    evidence.append(Evidence("mean_direction", _number(cosine), REVERSED, told, sentence))
    calls += [("encoder", 1.0)] if told else []
    call, found_here = _familiarity(base, rows, unmoved)
    evidence += found_here
    calls += call
    if calls:
        kind, share = calls[0][0], max(part for _, part in calls)
    return EncoderCheck(kind, share, 0 if matches is None else len(matches[0]), tuple(evidence), _headline(kind, share))


def _lengths(base: Baseline, raw: Tensor) -> tuple[Tensor, EncoderKind, float, Evidence]:
    """The rows brought to the reference's length, and what their lengths say."""
    lengths = raw.norm(dim=1, keepdim=True)
    off = (lengths - 1).abs() > LENGTH_TOLERANCE
    share, middle = float(off.double().mean()), float(lengths.median())
    alike = float(lengths.std() / lengths.mean()) <= LENGTH_TOLERANCE
    spread = f"{float(lengths.min()):.3g} to {float(lengths.max()):.3g}"
    if base.unit:
        found = share >= OFF_SHARE
        kind: EncoderKind = "none" if not found else "scale" if alike else "normalisation"
        sentence = f"{share:.0%} of the rows are not of length 1, as the reference's are"
        if found:
            sentence += f": all are {middle:.4g} long" if alike else f": lengths from {spread}"
        return raw / lengths, kind, share if found else 0.0, Evidence("unit_length", share, OFF_SHARE, found, sentence)
    factor = math.exp(math.log(middle) - base.length)
    rows = raw / factor
    if share <= 0.01 and base.length_spread > LENGTH_TOLERANCE:
        sentence = f"the rows are of length 1; the reference's are not (median {math.exp(base.length):.3g})"
        return rows, "normalisation", 1.0, Evidence("unit_length", share, 0.01, True, sentence)
    limit = max(0.01, 6 * base.length_movement, 2 * base.length_spread)
    found = abs(math.log(factor)) > limit
    sentence = f"the rows are {factor:.3g} times as long as the reference's (median {middle:.3g}, {spread})"
    kind = "scale" if found else "none"
    return rows, kind, float(found), Evidence("length_ratio", factor, math.exp(limit), found, sentence)


def _constant(rows: Tensor, varied: Tensor) -> float:
    """Share of the dimensions that vary in the reference and have one value in all rows, as these are stored."""
    constant = (rows == rows[0]).all(0) & varied
    return float(constant.sum()) / max(1, int(varied.sum()))


def _cosine(base: Baseline, rows: Tensor) -> tuple[float, bool]:
    here = mean_of(rows)
    size = float(base.mean.norm() * here.norm())
    if float(base.mean.square().sum()) < PART * base.square or size == 0:
        return math.nan, False
    cosine = float(base.mean @ here) / size
    return cosine, cosine < REVERSED


def _familiarity(
    base: Baseline, rows: Tensor, unmoved: Tensor
) -> tuple[list[tuple[EncoderKind, float]], list[Evidence]]:
    if base.gaussian is None:
        sentence = "the reference has too little structure to tell its rows from rotated ones"
        return [], [Evidence("familiarity", None, FAMILIAR, False, sentence)]
    found = torch.where(unmoved, 1.0, base.gaussian.familiarity(rows))
    window, away = float(found.mean()), found < FAMILIAR
    share = float(away.double().mean())
    whole = window < FAMILIAR
    sentence = f"on a scale from 0 (rotated at random) to 1 (like the reference) the rows lie at {window:.2f}"
    evidence = [Evidence("familiarity", window, FAMILIAR, whole, sentence)]
    part, sentence = _part(base, rows[away], found[away], share)
    evidence.append(Evidence("unfamiliar_rows", share, PART, part and not whole, sentence))
    return ([("encoder", 1.0 if share > 0.9 else share)] if whole or part else []), evidence


def _part(base: Baseline, rows: Tensor, found: Tensor, share: float) -> tuple[bool, str]:
    """Whether the unfamiliar rows of a window are those of another encoder. A new topic is unlike the reference too
    where topics lie anywhere, yet it is one place: its rows have far less variance than a corpus. And the far end of
    one widened cloud is only just unfamiliar."""
    if share < PART or len(rows) < 10:
        return False, f"{share:.1%} of the rows are unlike the reference's"
    spread = float(rows.var(0).sum()) / base.variance
    if float(found.median()) > DEEP:
        return False, f"{share:.0%} of the rows are unlike the reference's, most of them barely: a wider cloud"
    if spread < SPREAD:
        return False, f"{share:.0%} of the rows are unlike the reference's and close together: new content"
    return True, f"{share:.0%} of the rows are unlike the reference's and spread as widely as a corpus of their own"


Matches = tuple[Tensor, Tensor]  # positions in the window and in the reference, (k,) int64


def _matches(ids: Any, reference_ids: Any) -> Matches | None:
    """Rows of the window whose id the reference has too, with their first rows there; None without id columns."""
    if ids is None or reference_ids is None:
        return None
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.large_string()
    places = pc.index_in(ids.cast(text), value_set=reference_ids.cast(text), skip_nulls=True)
    here = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    there = places.drop_null().to_numpy().astype(np.int64)
    return torch.from_numpy(here), torch.from_numpy(there)


def _matched(
    base: Baseline, centred: Tensor, mean: Tensor, matches: Matches, reference: Tensor, unmoved: Tensor
) -> tuple[list[tuple[EncoderKind, float]], list[Evidence], Tensor]:
    """What ids in common say: the calls, the evidence, and which of the sampled rows lie where they did. The map is
    fitted on half of the ids that moved and judged on the other half."""
    cap = MATCHED_CAP_WIDE if centred.shape[1] > WIDE else MATCHED_CAP
    here, there = (places[:cap] for places in matches)
    if len(here) < MATCHED:
        sentence = f"{len(here)} ids are in the reference too; {MATCHED} are needed to compare them"
        return [], [Evidence("matched_map", None, GAIN, False, sentence)], unmoved
    y, _, _, _ = _lengths(base, centred[here.to(centred.device)].double() + mean)
    x = reference[there.to(reference.device)].double() + mean
    if base.unit:
        x = x / x.norm(dim=1, keepdim=True)
    old = residuals(x, y, base.variance)
    first = here.to(unmoved.device)
    inside = first < len(unmoved)
    unmoved = unmoved.clone()
    unmoved[first[inside]] = old[inside] <= SAME
    moved = (old > MOVED).nonzero().flatten()
    share = len(moved) / len(old)
    known = f"of {len(old):,} ids that the reference has too"
    if len(moved) < max(MATCHED, PART * len(old)):
        sentence = f"{known}, {1 - share:.0%} lie where they did"
        return [], [Evidence("matched_map", 1.0, GAIN, False, sentence)], unmoved
    fit, held = moved[::2], moved[1::2]
    mapped = residuals(procrustes(x[fit], y[fit])(x[held]), y[held], base.variance)
    identity, best = float(old[held].median()), float(mapped.median())
    gain = best / identity
    if gain < GAIN and best < GAIN:
        sentence = (
            f"{known}, {share:.0%} moved, and a rotation, scale and shift fitted on half of them explains the others "
            f"(residual {best:.2g}, {identity:.2g} without)"
        )
        return [("linear_map", share)], [Evidence("matched_map", gain, GAIN, True, sentence)], unmoved
    sentence = f"{known}, {share:.0%} moved, and no rotation, scale and shift explains it"
    evidence = [Evidence("matched_map", gain, GAIN, False, sentence)]
    aligned = cka(x[moved], y[moved])
    if identity >= UNRELATED and aligned > ALIGNED:
        sentence = "those that moved lie as far away as unrelated rows, yet keep who is near whom"
        evidence.append(Evidence("matched_neighbours", aligned, ALIGNED, True, f"{sentence} (CKA {aligned:.2f})"))
        return [("encoder", share)], evidence, unmoved
    what = "as if the ids named other content" if identity >= UNRELATED else "as edited content does"
    sentence = f"those that moved did so {what} (CKA {aligned:.2f})"
    return [], [*evidence, Evidence("matched_neighbours", _number(aligned), ALIGNED, False, sentence)], unmoved


def explain(check: EncoderCheck) -> str:
    """The headline with what it rests on and what to do; empty where there is none."""
    if not check.headline:
        return ""
    seen = "; ".join(one.sentence for one in check.evidence if one.found)
    return f"{check.headline}: {seen}. {ADVICE}"


def _headline(kind: EncoderKind, share: float) -> str:
    if kind == "none":
        return ""
    where = "" if share > 0.9 else f" in {share:.0%} of the rows"
    return f"this looks like {_NAMES[kind]}{where}, not content drift"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
