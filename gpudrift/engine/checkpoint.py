"""Finished macro-blocks on disk: a run that was cut off goes on from them.

One safetensors file a pass holds the sums of its tasks 0 ... k - 1, added up in their order, and k. The tasks from k on
are added to them: the bits are those of a pass that was never cut off. A digest of all that decides the sums names the
file and stands in it; another checksum guards its contents.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gpudrift.errors import ConfigError
from gpudrift.files import atomic_path

_log = logging.getLogger(__name__)
_FORMAT = "gpudrift finished blocks 1"
_SHARE = 0.05  # of a run's time, at most, goes into writing

Arrays = Mapping[str, npt.NDArray[Any]]


class Checkpoints:
    """Where a run keeps the sums of finished tasks.

    Args:
        directory: made with the first file. One run at a time uses it.
        seconds: between two writes of a pass, and before its first; more where writing takes long. 0: every task.
        clock: seconds.
    """

    def __init__(self, directory: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory, self.seconds, self._clock = directory, seconds, clock
        self._since, self._took = clock(), 0.0
        self._failed = False

    def begin(self) -> None:
        """A pass begins: its first write is due in so many seconds."""
        self._since = self._clock()

    def due(self) -> bool:
        """Whether sums should be written now."""
        wait = max(self.seconds, self._took / _SHARE) if self.seconds > 0 else 0.0
        return self._clock() - self._since >= wait

    def has(self, name: str) -> bool:
        """Whether anything is kept of passes of this name."""
        return any(self.directory.glob(f"{_slug(name)}-*.safetensors"))

    def load(self, name: str, digest: str) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
        """(k, sums) of a pass of this digest; None where there are none that can be used. A file that cannot be used is
        removed."""
        path = self._path(name, digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("finished blocks of %s cannot be read (%s): they are computed again", name, error)
            return None
        try:
            return _open(content, digest)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            _log.warning("finished blocks of %s in %s cannot be used (%s): they are computed again", name, path, error)
            self._remove(path)
            return None

    def save(self, name: str, digest: str, done: int, sums: Arrays) -> None:
        """Write the sums of the first ``done`` tasks in place of those written before. A disk that takes no more is
        told of once, and nothing is written from then on."""
        if self._failed:
            return
        began = self._clock()
        arrays = {key: np.ascontiguousarray(value) for key, value in sums.items()}
        meta = {"format": _FORMAT, "digest": digest, "done": str(done)}
        try:
            with atomic_path(self._path(name, digest)) as temporary:
                temporary.write_bytes(save(arrays, {**meta, "sha256": _checksum(meta, arrays)}))
        except (OSError, ConfigError) as error:
            self._failed = True
            _log.warning("finished blocks cannot be kept in %s (%s): this run goes on without", self.directory, error)
        self._since = self._clock()
        self._took = self._since - began

    def forget(self, name: str, digest: str) -> None:
        """Remove what is kept of a pass."""
        self._remove(self._path(name, digest))

    def clear(self) -> None:
        """The run has ended: nothing of it is needed any more."""
        if not self.directory.is_dir():
            return
        for path in self.directory.glob("*.safetensors"):  # what killed runs left half written too
            self._remove(path)
        try:
            self.directory.rmdir()
        except OSError as error:  # it holds what is not ours, or is gone
            _log.debug("%s stays: %s", self.directory, error)

    def _path(self, name: str, digest: str) -> Path:
        return self.directory / f"{_slug(name)}-{digest[:20]}.safetensors"

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", path, error)


class Sums(Protocol):
    """What is added up of a pass's tasks in their order."""

    def arrays(self) -> Arrays:
        """So far."""

    def restore(self, k: int, arrays: Arrays) -> None:
        """Go on from the first k tasks."""


class Kept:
    """A pass's place among the checkpoints; without these nothing is kept."""

    def __init__(self, checkpoints: Checkpoints | None, name: str, digest: Callable[[], str]) -> None:
        self._checkpoints, self._name = checkpoints, name
        self._make_digest, self._saved = digest, 0

    def load(self, sums: Sums) -> int:
        """Tasks finished before; their sums are restored."""
        if self._checkpoints is None:
            return 0
        self._checkpoints.begin()
        found = self._checkpoints.load(self._name, self._digest) if self._checkpoints.has(self._name) else None
        if found is None:
            return 0
        self._saved, arrays = found
        sums.restore(self._saved, arrays)
        return self._saved

    def save(self, done: int, sums: Sums, *, now: bool = False) -> None:
        """Write where it is time, or now where there is something new."""
        if self._checkpoints is not None and done > self._saved and (now or self._checkpoints.due()):
            self._checkpoints.save(self._name, self._digest, done, sums.arrays())
            self._saved = done

    @cached_property
    def _digest(self) -> str:
        """Made when it is needed: it reads all rows, and a short pass is over before anything is written."""
        return self._make_digest()

    def forget(self) -> None:
        """What was kept cannot be right."""
        if self._checkpoints is not None:
            self._checkpoints.forget(self._name, self._digest)


def _open(content: bytes, digest: str) -> tuple[int, dict[str, npt.NDArray[Any]]]:
    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    meta = header.get("__metadata__", {})
    noted = meta.pop("sha256", None)
    if meta.get("format") != _FORMAT or meta.get("digest") != digest:
        raise ValueError("they are of another run")
    if noted != _checksum(meta, arrays):
        raise ValueError("the file does not have the checksum it notes")
    return int(meta["done"]), arrays


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _checksum(meta: Mapping[str, str], arrays: Arrays) -> str:
    found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).data)
    return found.hexdigest()
