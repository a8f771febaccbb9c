"""The state of one window: what ``update`` adds rows to, ``merge`` adds up, and ``compare`` reads.

Counts, histogram counts and the reservoir do not depend on how the rows were cut into batches and shards, to the bit.
Float sums are the same to 1e-10: they are float64, and another order of adding changes their last bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gpudrift.errors import ArgumentError, DataError, RangeError, ReferenceMismatchError
from gpudrift.sketch.features import block_sums
from gpudrift.sketch.moments import Moments
from gpudrift.sketch.plan import BLOCKS, SketchPlan
from gpudrift.sketch.reservoir import Reservoir, keys_of

_CHUNK = 2048  # rows at a time: 6 MB of float64 at d = 384
_OCTAVE = 8  # bins of the norms in a factor of two
_OCTAVES = 20  # up and down from 1


class Sketch:
    """A mergeable summary of rows on a plan's coordinates. Build with ``empty``, ``load``, ``merge``."""

    def __init__(
        self, plan: SketchPlan, moments: Moments, sums: dict[str, Tensor], extent: Tensor, sample: Reservoir
    ) -> None:
        self.plan = plan
        self.moments = moments
        self.sums = sums  # what merges by adding, see ``_zeros``
        self.extent = extent  # (2, q'): least and largest score, infinite without rows
        self.sample = sample

    @classmethod
    def empty(cls, plan: SketchPlan) -> Sketch:
        extent = torch.full((2, plan.components), torch.inf, dtype=torch.float64)
        extent[1] = -torch.inf
        return cls(plan, Moments.empty(plan.dim + 2), _zeros(plan), extent, Reservoir.empty(plan.dim))

    @property
    def count(self) -> int:
        return self.moments.count

    def update(self, rows: Tensor, ids: pa.Array) -> None:
        """Add rows (n, d) of float16, bfloat16, float32 or float64, as they come, with their ids (n,).

        float32 rows are centred as the panel centres them: the difference to the mean in float64, rounded once. The
        reservoir keeps rows as float32.

        Raises ArgumentError (no float matrix, other length of ids), ReferenceMismatchError (another dimension),
        DataError (values that are not finite, ids null or of an unusable type), RangeError (beyond float32). After an
        error the sketch is as it was.
        """
        rows = rows.detach()
        plain = self._checked(rows, ids)
        if not len(rows):
            return
        keys = keys_of(plain, ids, self.plan.seed)
        moments, sums, extent = self.moments, {k: v.clone() for k, v in self.sums.items()}, self.extent
        wide = rows if rows.dtype == torch.float64 else plain
        # the low bits: the reservoir goes by the high ones
        blocks = torch.from_numpy((keys & np.uint64(BLOCKS - 1)).astype(np.int64))
        for start in range(0, len(rows), _CHUNK):
            block = blocks[start : start + _CHUNK]
            order = block.argsort(stable=True)
            bounds = [0, *torch.bincount(block, minlength=BLOCKS).cumsum(0).tolist()]
            chunk = wide[start : start + _CHUNK][order]
            moments = moments.merge(_add(self.plan, chunk, bounds, sums))
            extent = _wider(extent, sums.pop("extent"))
        sample = self.sample.add(keys, plain, ids, self.plan.reservoir)
        self.moments, self.sums, self.extent, self.sample = moments, sums, extent, sample

    def merge(self, other: Sketch) -> Sketch:
        """Of the rows of both, as if seen in one pass. ReferenceMismatchError for another plan."""
        self._same_plan(other)
        return Sketch(
            self.plan,
            self.moments.merge(other.moments),
            {name: value + other.sums[name] for name, value in self.sums.items()},
            _wider(self.extent, other.extent),
            self.sample.merge(other.sample, self.plan.reservoir),
        )

    def reservoir(self) -> tuple[Tensor, pa.Array]:
        """The sample: rows (k', d) float32 in key order, and their ids, as text or (not UTF-8) bytes."""
        return self.sample.rows, self.sample.labels()

    def state(self) -> dict[str, Tensor]:
        """Flat tensors, for safetensors; ``from_state`` takes them back."""
        return {
            "count": torch.tensor(self.count, dtype=torch.int64),
            "mean": self.moments.mean,
            "scatter": self.moments.scatter,
            "extent": self.extent,
            **self.sums,
            **self.sample.state(),
        }

    @classmethod
    def from_state(cls, plan: SketchPlan, tensors: Mapping[str, Tensor]) -> Sketch:
        """The sketch of ``state()``. DataError for tensors that are not a sketch of this plan."""
        like = cls.empty(plan)
        for name, wanted in like.state().items():
            if name not in tensors:
                raise DataError("a part of this sketch is missing", field=name)
            found = tensors[name]
            if not name.startswith("reservoir.") and (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
                raise DataError(
                    "a part of this sketch is not as the plan has it",
                    field=name,
                    value=(str(found.dtype), tuple(found.shape)),
                    allowed=str((str(wanted.dtype), tuple(wanted.shape))),
                )
        count = int(tensors["count"])
        sums = {name: tensors[name].clone() for name in like.sums}
        sample = Reservoir.from_state(tensors, plan.dim, plan.reservoir, plan.seed)
        counted = [int(sums[f"{of}.counts"].sum()) for of in ("norms", "features")]
        counted += sums["histograms.counts"].sum(dim=1).tolist()
        if any(number != count for number in counted) or bool(count) != bool(len(sample)) or len(sample) > count:
            raise DataError("the parts of this sketch hold different numbers of rows", field="count", value=count)
        moments = Moments(count, tensors["mean"].clone(), tensors["scatter"].clone())
        extent = tensors["extent"].clone()
        values = [moments.mean, moments.scatter, *sums.values(), *([extent] if count else [])]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in values):
            raise DataError("this sketch holds values that are not finite")
        return cls(plan, moments, sums, extent, sample)

    def save(self, path: Path) -> None:
        """Write one file, plan inside, at once or not at all."""
        from gpudrift.sketch.storage import save

        save(self, path)

    @classmethod
    def load(cls, path: Path, plan: SketchPlan | None = None) -> Sketch:
        """Read a file of ``save``. DataError where it is damaged, ReferenceMismatchError where it was written in
        another format or, with ``plan``, on another plan; both name the file."""
        from gpudrift.sketch.storage import load

        return load(path, plan)

    def _same_plan(self, other: Sketch) -> None:
        if other.plan.id != self.plan.id:
            raise ReferenceMismatchError(
                "these sketches were made on different plans",
                field="plan",
                value=other.plan.id,
                allowed=self.plan.id,
                hint="rebuild one of them on the other's reference",
            )

    def _checked(self, rows: Tensor, ids: pa.Array) -> Tensor:
        """The rows in float32."""
        if rows.ndim != 2 or not rows.is_floating_point() or rows.device.type != "cpu":
            raise ArgumentError(
                "a sketch takes a matrix of rows",
                field="rows",
                value=f"{rows.dtype} {tuple(rows.shape)} on {rows.device}",
                allowed="(n, d) of a float type, on the CPU",
            )
        if rows.shape[1] != self.plan.dim:
            raise ReferenceMismatchError(
                "these rows do not have the plan's dimension", field="d", value=rows.shape[1], allowed=self.plan.dim
            )
        if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
            raise ArgumentError(
                "ids come as an Arrow array", field="ids", value=type(ids).__name__, allowed="pa.array(ids)"
            )
        if len(ids) != len(rows):
            raise ArgumentError("each row needs an id", field="ids", value=len(ids), allowed=len(rows))
        plain = rows.float().contiguous()
        bad = ~torch.isfinite(plain).all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            about = {"field": "rows", "value": f"row {first}, id {ids[first]}", "hint": "drop such rows before"}
            if bool(torch.isfinite(rows[first]).all()):
                raise RangeError("a row leaves the range of float32", **about)
            raise DataError("a row holds values that are not finite", allowed="finite numbers", **about)
        return plain


def _zeros(plan: SketchPlan) -> dict[str, Tensor]:
    bins = plan.grid.shape[1] + 1
    return {
        "features": torch.zeros(BLOCKS, len(plan.bandwidths), 2, plan.features // 2, dtype=torch.float64),
        "features.counts": torch.zeros(BLOCKS, dtype=torch.int64),
        "histograms.counts": torch.zeros(plan.components, bins, dtype=torch.int64),
        "histograms.sums": torch.zeros(plan.components, bins, dtype=torch.float64),
        "norms.counts": torch.zeros(2 * _OCTAVE * _OCTAVES + 2, dtype=torch.int64),
        "norms.sums": torch.zeros(2, dtype=torch.float64),
    }


def _add(plan: SketchPlan, rows: Tensor, bounds: list[int], sums: dict[str, Tensor]) -> Moments:
    """Adds (n, d) float32 or float64 rows, sorted by block, to ``sums``; also puts their ``extent`` there."""
    centred, scores, values = coordinates(plan, rows)
    sums["features"] += block_sums(centred, bounds, plan)
    sums["features.counts"] += torch.tensor(bounds).diff()
    add_histograms(plan, scores, sums)
    add_norms(rows, sums)
    return Moments.of(values)


def coordinates(plan: SketchPlan, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float64: rows about the plan's mean (n, d), their scores (n, q), and the columns of ``Moments`` (n, d + 2)."""
    centred = rows.double().sub_(plan.mean) if rows.dtype != torch.float64 else rows - plan.mean
    if rows.dtype != torch.float64:
        centred = centred.to(rows.dtype).double()
    scores = centred @ plan.axes.T
    values = torch.empty(len(rows), plan.dim + 2, dtype=torch.float64)
    values[:, :-2] = centred
    torch.linalg.vector_norm(centred, dim=1, out=values[:, -2]).square_().sub_(plan.total_variance)
    outside = torch.addmm(centred, scores, plan.axes, alpha=-1.0)
    torch.linalg.vector_norm(outside, dim=1, out=values[:, -1]).square_().sub_(plan.residual)
    return centred, scores, values


def add_histograms(plan: SketchPlan, scores: Tensor, sums: dict[str, Tensor]) -> None:
    heights = scores[:, : plan.components].T.contiguous()
    shape = sums["histograms.counts"].shape
    places = torch.searchsorted(plan.cuts, heights, right=True)
    places += torch.arange(shape[0])[:, None] * shape[1]
    flat, size = places.reshape(-1), shape[0] * shape[1]
    sums["histograms.counts"] += torch.bincount(flat, minlength=size).reshape(shape)
    sums["histograms.sums"] += torch.bincount(flat, weights=heights.reshape(-1), minlength=size).reshape(shape)
    sums["extent"] = torch.stack([heights.amin(dim=1), heights.amax(dim=1)])


def add_norms(rows: Tensor, sums: dict[str, Tensor]) -> None:
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    sums["norms.counts"] += torch.bincount(_norm_bins(norms), minlength=len(sums["norms.counts"]))
    sums["norms.sums"] += torch.stack([norms.sum(), norms.square().sum()])


def _norm_bins(norms: Tensor) -> Tensor:
    """Bin k + 1 is a factor 2^(1/8) wide about 2^(k/8 - 20): a norm of 1 lies in the middle of one."""
    places = (norms.log2() * _OCTAVE).round() + (_OCTAVE * _OCTAVES + 1)
    return places.clamp(min=0, max=2 * _OCTAVE * _OCTAVES + 1).long()


def _wider(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])])
