"""The checkpoint: one safetensors file with everything a streaming job knows, replaced as a whole.

Ledger, sketches, counters and the length of stream.jsonl can therefore never disagree: after a crash the files that
came after the checkpoint are simply read again. The file is written to a temporary name, flushed to the disk and
renamed, and the directory is flushed: what is there after a power cut is the old state or the new one. A checksum over
all of it guards against a disk that lies; a damaged checkpoint is an error, never a fresh start.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gpudrift.errors import ConfigError, DataError
from gpudrift.files import atomic_path, jsonable
from gpudrift.sketch import SketchPlan
from gpudrift.stream.state import State

FORMAT_VERSION = 1
NAME = "checkpoint.safetensors"


def save(state: State, path: Path) -> None:
    """Replace the checkpoint. Raises OSError with the old one in place."""
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
    text = json.dumps(jsonable({"format_version": FORMAT_VERSION, **state.to_json()}), allow_nan=False)
    content = serialize(tensors, {"state": text, "sha256": _checksum(text, tensors)})
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    sync_directory(path.parent)


def load(path: Path, plan: SketchPlan, identity: dict[str, Any]) -> State | None:
    """The state to go on from, None where there is none yet.

    Raises:
        DataError: the file is damaged.
        ConfigError: it belongs to another reference, plan or configuration.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            meta = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118  not a dict
        text = meta["state"]
        if _checksum(text, tensors) != meta["sha256"]:
            raise ValueError("it does not have the checksum it notes")
        plain = json.loads(text)
        _check(plain, identity, path)
        return State.from_parts(plain, tensors, plan)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DataError) as error:
        raise DataError(
            f"this checkpoint is damaged: {type(error).__name__}: {error}",
            where=path,
            hint="restore it from a backup, or delete it to start from nothing: every file in the inbox is then "
            "consumed again, and windows whose files are gone come up short",
        ) from error


def sync_directory(directory: Path) -> None:
    """Make renames in a directory last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(plain: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    found = {"format_version": plain["format_version"], **plain["identity"]}
    wanted = {"format_version": FORMAT_VERSION, **jsonable(identity)}
    for field, value in wanted.items():
        if found.get(field) != value:
            raise ConfigError(
                "the checkpoint of this streaming job was written with another setting",
                where=path,
                field=field,
                value=value,
                allowed=found.get(field),
                hint="go back to that setting, give this run another output.dir, or delete the checkpoint to start "
                "from nothing",
            )


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.contiguous().view(-1).numpy().data if tensor.numel() else b"")
    return found.hexdigest()
