"""The pinned reference: what later windows are compared with, made once and kept in an artifact.

An artifact is a directory with ``reference.json`` (range, windows, A/A scores, fingerprints, settings, versions) and
``reference-<id>-<checksum>.safetensors`` (mean, axes and their optimism, covariance, bin edges, the reference's own
pair sums). The JSON is written last, by rename: a killed run leaves either the old artifact or the new one. The rows
themselves stay in the source; each run reads them again and compares fingerprints, so a reference whose rows changed is
refused, never silently used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from gpudrift import __version__, kernels
from gpudrift.arithmetic import Arithmetic, prepare
from gpudrift.calibrate import AANull, Hygiene, MetricNull, clean
from gpudrift.engine.pairs import Pairs
from gpudrift.errors import InsufficientDataError, ReferenceMismatchError
from gpudrift.files import atomic_path, jsonable, write_json
from gpudrift.kernels import PairSums, Prepared
from gpudrift.kernels.layout import no_labels
from gpudrift.metrics.accumulate import mean_of
from gpudrift.movement import Windowed, aa_null, panel_null, whole
from gpudrift.panel import PanelSettings, Pins, centre, pin
from gpudrift.project import project
from gpudrift.records import Basis, Cloud, Projection, Quality, Window
from gpudrift.sampling import LEAST, Limit, Sample, draw

Span = tuple[datetime, datetime] | None
FORMAT_VERSION = 5


@dataclass(frozen=True)
class ReferenceWindow:
    """A window of the reference: rows, fingerprint, and its A/A score (leave-one-window-out energy at n0)."""

    window: Window
    rows: int
    fingerprint: str
    score: float


@dataclass(frozen=True)
class Reference:
    """Everything pinned. kept: the windows of the reference cloud; dropped: those hygiene left out, with the scores
    they had; left_out: (label, reason) of windows that never entered. limit: rows in pairs, of its own cloud;
    sample: digest of those, and of their clusters. settings: what a later run must share."""

    id: str
    start: datetime
    end: datetime
    period: str
    kept: tuple[ReferenceWindow, ...]
    dropped: tuple[ReferenceWindow, ...]
    left_out: tuple[tuple[str, str], ...]
    arithmetic: Arithmetic
    limit: Limit
    sample: str
    dim: int
    encoder_id: str | None
    settings: dict[str, Any]
    pins: Pins
    self_sums: PairSums
    null: AANull
    written_by: str

    @property
    def windows(self) -> tuple[Window, ...]:
        return tuple(w.window for w in self.kept)

    def index_of(self, window: Window) -> int | None:
        """Place of a window among the kept ones, None where it is not one of them."""
        labels = [w.window.label for w in self.kept]
        return labels.index(window.label) if window.label in labels else None


@dataclass(frozen=True)
class Rows:
    """The reference's rows on the device: centred by the pinned mean, and their projection; those of the sample ready
    for pairs."""

    centred: Tensor
    prepared: Prepared
    projection: Projection
    sample: Sample
    ids: Any = None  # an Arrow array, where there is an id column
    quality: tuple[Quality, ...] = ()
    segments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Arrow arrays
    codes: Tensor | None = None  # clusters of all rows


@dataclass(frozen=True)
class Screened:
    """What hygiene found, by index of the windows screened, and the mean their rows are now centred by (None once
    windows were dropped: the rows left have another mean and are read again)."""

    hygiene: Hygiene
    mean: Tensor | None


def screen(
    cloud: Cloud,
    *,
    hygiene_sd: float,
    arithmetic: Arithmetic,
    clusters: Tensor | None = None,
    progress: kernels.Progress | None = None,
    pairs: Pairs | None = None,
) -> Screened:
    """Hygiene over the windows of a reference range: which of them form the reference.

    Args:
        cloud: canonical order, windows in time order, on the device. Its rows are centred in place by their mean, and
            overwritten once a window is dropped.
        clusters: (n,) int64 codes of the rows, or None.
        pairs: where the pairs are computed; None: here.
    """
    if len(cloud.windows) < 3:
        raise InsufficientDataError(
            "a reference needs at least three windows with enough rows",
            field="windows.reference",
            value=[w.label for w in cloud.windows],
            allowed="3 windows or more; 8 for a verdict",
            hint="widen windows.reference.start/.end, choose a shorter windows.period, or lower windows.min_rows",
        )
    for window, size in zip(cloud.windows, cloud.sizes(), strict=True):
        if size < LEAST:
            raise InsufficientDataError(
                f"too few usable rows are left of reference window {window.label}",
                field="windows.reference",
                value=size,
                allowed=f"{LEAST} or more",
                hint="mend its rows, lower quality.max_bad_fraction, or leave the window out of the range",
            )
    mean = mean_of(cloud.embeddings)
    centre(cloud.embeddings, mean)
    rows, offsets, codes = cloud.embeddings, cloud.offsets, clusters
    held = list(range(len(cloud.windows)))

    def score_windows(kept: Sequence[int]) -> AANull:
        nonlocal rows, offsets, codes, held
        if len(kept) < len(held):
            places = [held.index(k) for k in kept]
            rows, offsets, codes = _compact(rows, offsets, codes, places)
            held = list(kept)
        labels = [cloud.windows[k].label for k in kept]
        return aa_null(rows, offsets, labels, None, arithmetic, codes, progress, pairs)

    hygiene = clean(score_windows, len(cloud.windows), hygiene_sd)
    return Screened(hygiene, None if hygiene.dropped else mean)


def build(
    cloud: Cloud,
    prints: Sequence[str],
    mean: Tensor,
    *,
    dropped: Sequence[ReferenceWindow],
    span: tuple[datetime, datetime],
    period: str,
    left_out: Sequence[tuple[str, str]],
    panel: PanelSettings,
    settings: dict[str, Any],
    arithmetic: Arithmetic,
    limit: Limit,
    clusters: Tensor | None = None,
    progress: kernels.Progress | None = None,
    pairs: Pairs | None = None,
) -> tuple[Reference, Rows]:
    """Pin everything of a screened reference.

    Args:
        cloud, prints: the kept windows, in canonical order, centred by ``mean``, and their fingerprints.
        dropped, left_out: what is not in the cloud, for the record.
        panel, settings: what is measured, and all settings that a later run must share.
        limit: rows that take part in pairs; everything else sees all.
        pairs: where the pairs are computed; None: here.
    """
    pins, projection = pin(cloud.embeddings, mean, panel, clusters)
    sample = draw(cloud, limit)
    prepared = _sampled(sample, cloud.embeddings, arithmetic, clusters)
    null, sums = panel_null(
        prepared,
        sample.offsets,
        [window.label for window in cloud.windows],
        min(b - a for a, b in itertools.pairwise(sample.offsets)),
        Windowed(cloud.embeddings, cloud.offsets, projection, pins, panel, clusters),
        progress,
        pairs,
    )
    kept = tuple(
        ReferenceWindow(window, size, print_, null.scores[window.label])
        for window, size, print_ in zip(cloud.windows, cloud.sizes(), prints, strict=True)
    )
    identity = {
        "format": FORMAT_VERSION,
        "span": [t.isoformat() for t in span],
        "period": period,
        "windows": [[w.window.label, w.rows, w.fingerprint] for w in kept],
        "precision": arithmetic.precision,
        "pair_rows": len(sample),
        "dropped": [w.window.label for w in dropped],
        "settings": settings,
        "encoder_id": cloud.encoder_id,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    reference = Reference(
        id=digest[:12],
        start=span[0],
        end=span[1],
        period=period,
        kept=kept,
        dropped=tuple(dropped),
        left_out=tuple(left_out),
        arithmetic=arithmetic,
        limit=limit,
        sample=sample.digest(clusters),
        dim=cloud.dim,
        encoder_id=cloud.encoder_id,
        settings=settings,
        pins=pins,
        self_sums=whole(sums),
        null=null,
        written_by=__version__,
    )
    return reference, Rows(
        cloud.embeddings, prepared, projection, sample, cloud.ids, cloud.quality, cloud.segments, clusters
    )


def attach(reference: Reference, cloud: Cloud, prints: Sequence[str], clusters: Tensor | None) -> Rows:
    """The rows of a pinned reference, read again: checked against the fingerprints, centred in place.

    Raises ReferenceMismatchError when the rows are not those the reference was made of.
    """
    for window, print_ in zip(reference.kept, prints, strict=True):
        if window.fingerprint != print_:
            raise ReferenceMismatchError(
                f"the rows of reference window {window.window.label} are not those the reference was made of",
                field="reference.path",
                value=f"{print_.split('-')[0]} rows, fingerprint {print_}",
                allowed=f"{window.rows} rows, fingerprint {window.fingerprint}",
                hint=_REPLACE,
            )
    centre(cloud.embeddings, reference.pins.basis.mean)
    sample = draw(cloud, reference.limit)
    if (digest := sample.digest(clusters)) != reference.sample:
        raise ReferenceMismatchError(
            "another sample of the reference's rows takes part in pairs, or other clusters, than when it was pinned",
            field="source.segment_columns, source.cluster_column",
            value=digest,
            allowed=f"{reference.sample}: the columns, and the values in them, of that time",
            hint=_REPLACE,
        )
    prepared = _sampled(sample, cloud.embeddings, reference.arithmetic, clusters)
    projection = project(cloud.embeddings, reference.pins.basis)
    return Rows(cloud.embeddings, prepared, projection, sample, cloud.ids, cloud.quality, cloud.segments, clusters)


def _sampled(sample: Sample, rows: Tensor, arithmetic: Arithmetic, clusters: Tensor | None) -> Prepared:
    return prepare(sample.of(rows), arithmetic, clusters=None if clusters is None else sample.of(clusters))


_REPLACE = "make a new reference with job=reference reference.replace=true, or point reference.path elsewhere"


def save(reference: Reference, directory: Path) -> None:
    """Write the artifact; the JSON last."""
    pins, sums = reference.pins, reference.self_sums
    tensors = {
        "mean": pins.basis.mean,
        "axes": pins.basis.axes,
        "variances": pins.basis.variances,
        "covariance": pins.covariance,
        "edges": pins.edges,
        "self_rows": sums.rows,
        "self_total": sums.total,
        "self_squares": sums.squares,
        "between": torch.tensor(reference.null.between, dtype=torch.float64),
    }
    if pins.basis.variance_optimism is not None:
        tensors["variance_optimism"] = pins.basis.variance_optimism
    content = serialize({k: v.cpu().contiguous() for k, v in tensors.items()})
    checksum = hashlib.sha256(content).hexdigest()
    # named by content: another device's numbers under the same id must not overwrite what the old JSON points at
    name = f"reference-{reference.id}-{checksum[:8]}.safetensors"
    with atomic_path(directory / name) as temporary:
        temporary.write_bytes(content)
    meta = jsonable(
        {
            "format_version": FORMAT_VERSION,
            "id": reference.id,
            "written_by": f"gpudrift {reference.written_by}",
            "start": reference.start,
            "end": reference.end,
            "period": reference.period,
            "dim": reference.dim,
            "encoder_id": reference.encoder_id,
            "rows": sum(w.rows for w in reference.kept),
            "windows": [_window_json(w) for w in reference.kept],
            "dropped": [_window_json(w) for w in reference.dropped],
            "left_out": [list(pair) for pair in reference.left_out],
            "aa": {
                "n0": reference.null.n0,
                "null_sd": reference.null.null_sd,
                "others": {
                    name: {"null_sd": null.null_sd, "scores": list(null.scores.values())}
                    for name, null in reference.null.others.items()
                },
            },
            "bandwidths": list(pins.bandwidths),
            "total_variance": pins.basis.total_variance,
            "residual_optimism": pins.basis.residual_optimism,
            "self_pairs": sums.pairs,
            "settings": reference.settings,
            "arithmetic": asdict(reference.arithmetic),
            "limit": asdict(reference.limit),
            "sample": reference.sample,
            "tensors": {"file": name, "sha256": checksum},
        }
    )
    write_json(directory / "reference.json", {**meta, "sha256": _checksum(meta)})
    for stale in directory.glob("reference-*.safetensors"):
        if stale.name != name:
            stale.unlink(missing_ok=True)


def exists(directory: Path) -> bool:
    return (directory / "reference.json").exists()


def load(directory: Path, device: str) -> Reference:
    """Read an artifact. ReferenceMismatchError: damaged, or written in another format."""
    meta = _meta(directory)
    try:
        file = directory / Path(meta["tensors"]["file"]).name
        if hashlib.sha256(file.read_bytes()).hexdigest() != meta["tensors"]["sha256"]:
            raise ValueError(f"{file.name} does not have the checksum noted in reference.json")
        # copies: a product's last bit depends on how its factors are aligned, and those of the file lie anyhow
        tensors = {name: tensor.clone() for name, tensor in load_file(file, device=device).items()}
        return _from_parts(meta, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(directory, error) from error


def span_of(directory: Path) -> tuple[datetime, datetime]:
    """The range of an artifact, without reading its tensors. Errors as ``load``."""
    meta = _meta(directory)
    try:
        return datetime.fromisoformat(meta["start"]), datetime.fromisoformat(meta["end"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, error) from error


def _meta(directory: Path) -> dict[str, Any]:
    path = directory / "reference.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, error) from error
    if version != FORMAT_VERSION:
        raise ReferenceMismatchError(
            "this reference was written in another format",
            where=path,
            field="format_version",
            value=version,
            allowed=[FORMAT_VERSION],
            hint=_REPLACE,
        )
    checksum = meta.pop("sha256", None)
    if checksum != _checksum(meta):
        raise _damaged(directory, ValueError("reference.json does not have the checksum it notes"))
    return dict(meta)


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _damaged(directory: Path, error: Exception) -> ReferenceMismatchError:
    return ReferenceMismatchError(
        f"this reference artifact is damaged: {type(error).__name__}: {error}",
        where=directory / "reference.json",
        hint=_REPLACE,
    )


def check(
    reference: Reference,
    directory: Path,
    *,
    period: str,
    span: Span,
    precision: str,
    limit: Limit,
    settings: dict[str, Any],
) -> None:
    """Refuse a reference of another range, period, precision or settings.

    Args:
        span: the configured range, None where it has none.
        precision: the configured one; ``auto`` keeps the reference's.
        limit: the configured one. A reference made with ``score.rows`` keeps its sample where only ``score.pairs`` is
            configured; another ``score.pairs`` is refused where it would draw other rows.
    """
    rows = sum(w.rows for w in (*reference.kept, *reference.dropped))
    pairs = reference.limit.pairs
    if pairs is not None and limit.pairs is not None and rows > min(reference.limit.rows, limit.rows):
        pairs = limit.pairs
    found = {
        "windows.reference": [f"{t:%Y-%m-%d}" for t in (reference.start, reference.end)],
        "windows.period": reference.period,
        "precision": reference.arithmetic.precision,
        "score.rows": reference.limit.rows,
        "score.pairs": reference.limit.pairs,
        **reference.settings,
    }
    wanted = {
        "windows.reference": found["windows.reference"] if span is None else [f"{t:%Y-%m-%d}" for t in span],
        "windows.period": period,
        "precision": found["precision"] if precision == "auto" else precision,
        "score.rows": limit.rows if limit.pairs is None else found["score.rows"],
        "score.pairs": pairs,
        **settings,
    }
    for field in wanted:
        if found.get(field) != wanted[field]:
            raise ReferenceMismatchError(
                "the pinned reference was made with another setting",
                where=directory / "reference.json",
                field=field,
                value=wanted[field],
                allowed=found.get(field),
                hint=_REPLACE,
            )


def check_rows(reference: Reference, dim: int, encoder_id: str | None, where: str) -> None:
    """Refuse embeddings of another dimension or encoder."""
    for field, found, wanted in (
        ("source.embedding_column (dimension)", dim, reference.dim),
        ("source.encoder_id", encoder_id, reference.encoder_id),
    ):
        if found != wanted:
            raise ReferenceMismatchError(
                "these embeddings look like those of a new encoder, not like drift: "
                "they are not of the kind the pinned reference was made of",
                where=where,
                field=field,
                value=found,
                allowed=wanted,
                hint=_REPLACE,
            )


def _window_json(w: ReferenceWindow) -> dict[str, Any]:
    return {
        "label": w.window.label,
        "start": w.window.start,
        "end": w.window.end,
        "rows": w.rows,
        "fingerprint": w.fingerprint,
        "aa_score": w.score,
    }


def _from_parts(meta: dict[str, Any], tensors: dict[str, Tensor]) -> Reference:
    def windows(key: str) -> tuple[ReferenceWindow, ...]:
        return tuple(
            ReferenceWindow(
                Window(datetime.fromisoformat(w["start"]), datetime.fromisoformat(w["end"]), w["label"]),
                w["rows"],
                w["fingerprint"],
                w["aa_score"],
            )
            for w in meta[key]
        )

    kept = windows("windows")
    rows = tensors["self_rows"].cpu()
    total = tensors["self_total"].cpu()
    pairs = float(meta["self_pairs"])
    basis = Basis(
        mean=tensors["mean"],
        axes=tensors["axes"],
        variances=tensors["variances"],
        total_variance=meta["total_variance"],
        residual_optimism=meta["residual_optimism"],
        variance_optimism=tensors.get("variance_optimism"),
    )
    return Reference(
        id=meta["id"],
        start=datetime.fromisoformat(meta["start"]),
        end=datetime.fromisoformat(meta["end"]),
        period=meta["period"],
        kept=kept,
        dropped=windows("dropped"),
        left_out=tuple((label, reason) for label, reason in meta["left_out"]),
        arithmetic=Arithmetic(**meta["arithmetic"]),
        limit=Limit(**meta["limit"]),
        sample=meta["sample"],
        dim=meta["dim"],
        encoder_id=meta["encoder_id"],
        settings=meta["settings"],
        pins=Pins(basis, tensors["covariance"], tensors["edges"], tuple(meta["bandwidths"])),
        self_sums=PairSums(
            bandwidths=tuple(meta["bandwidths"]),
            total=total,
            rows=rows,
            columns=rows,
            squares=tensors["self_squares"].cpu(),
            blocks=total[:, None, None],
            pairs=pairs,
            block_pairs=torch.tensor([[pairs]], dtype=torch.float64),
            labels=no_labels(len(total)),
        ),
        null=AANull(
            meta["aa"]["n0"],
            {w.window.label: w.score for w in kept},
            meta["aa"]["null_sd"],
            {
                name: MetricNull(dict(zip((w.window.label for w in kept), own["scores"], strict=True)), own["null_sd"])
                for name, own in meta["aa"]["others"].items()
            },
            tuple(tuple(row) for row in tensors["between"].tolist()),
        ),
        written_by=str(meta["written_by"]).removeprefix("gpudrift "),
    )


def _compact(
    rows: Tensor, offsets: Sequence[int], clusters: Tensor | None, places: Sequence[int]
) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    """Move the windows at ``places`` to the front, in place."""
    end, bounds, picks = 0, [0], []
    for k in places:
        start, stop = offsets[k], offsets[k + 1]
        step = start - end or stop - start  # a block never overlaps where it goes; one that stays is not moved
        for a in range(start, stop, max(step, 1)):
            size = min(step, stop - a)
            if a != end:
                rows[end : end + size] = rows[a : a + size]
            end += size
        bounds.append(end)
        picks.append(torch.arange(start, stop))
    return rows[:end], tuple(bounds), None if clusters is None else clusters[torch.cat(picks).to(clusters.device)]
