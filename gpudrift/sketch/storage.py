"""One safetensors file holds a sketch and its plan; a SHA-256 over both, and over what the header says, guards it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpudrift.errors import DataError, ReferenceMismatchError
from gpudrift.files import atomic_path
from gpudrift.sketch.plan import FORMAT_VERSION, SketchPlan
from gpudrift.sketch.state import Sketch

_ENTRY = "sketch"  # of the header's metadata: JSON
_FORMAT = "gpudrift sketch"
_REPLACE = "rebuild the sketch from its rows, or restore the file from a copy"


def save(sketch: Sketch, path: Path) -> None:
    tensors = {f"plan/{name}": tensor for name, tensor in sketch.plan.state().items()}
    tensors |= {f"state/{name}": tensor for name, tensor in sketch.state().items()}
    # copies: safetensors refuses tensors that share memory
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    meta = {"format": _FORMAT, "version": FORMAT_VERSION, "plan": sketch.plan.id, "rows": sketch.count}
    with atomic_path(path) as temporary:
        # one entry: the order of several is not fixed, and equal sketches should be equal files
        noted = json.dumps({**meta, "sha256": _digest(meta, tensors)}, sort_keys=True)
        save_file(tensors, temporary, metadata={_ENTRY: noted})


def load(path: Path, plan: SketchPlan | None) -> Sketch:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            _check_format(meta, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        noted = meta.pop("sha256", None)
        if noted != _digest(meta, tensors):
            raise ValueError("its contents do not have the checksum noted in it")
        pinned = SketchPlan.from_state(_part(tensors, "plan/"))
        if plan is not None and plan.id != pinned.id:
            raise ReferenceMismatchError(
                "this sketch was made on another plan",
                where=path,
                field="plan",
                value=pinned.id,
                allowed=plan.id,
                hint="use the reference it was made on, or rebuild it on this one",
            )
        return Sketch.from_state(pinned if plan is None else plan, _part(tensors, "state/"))
    except ReferenceMismatchError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, DataError) as error:
        raise DataError(
            f"this sketch file is damaged or unreadable: {type(error).__name__}: {error}", where=path, hint=_REPLACE
        ) from error


def _check_format(meta: Mapping[str, object], path: Path) -> None:
    if meta.get("format") != _FORMAT:
        raise DataError("this file is no gpudrift sketch", field="format", value=meta.get("format"), allowed=_FORMAT)
    if meta.get("version") != FORMAT_VERSION:
        raise ReferenceMismatchError(
            "this sketch was written in another format",
            where=path,
            field="version",
            value=meta.get("version"),
            allowed=[FORMAT_VERSION],
            hint="rebuild the sketch from its rows",
        )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(meta: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
