"""Parquet files landing in a directory: which are there, which are finished, and what identifies their content."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpudrift.errors import ConfigError

SUFFIXES = (".parquet", ".parq", ".pq")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file as one look saw it. ``name``: its path below the inbox, bytes that are no UTF-8 as ``\\xff``."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    inode: int

    def unchanged(self) -> bool:
        """Whether the file is still the one that was seen."""
        now = _found(self.name, self.path)
        return now == self


class Inbox:
    """A directory with all below it, or a glob. Names that begin with ``.`` or ``_``, and names that do not end like
    Parquet (``part.parquet.tmp``), are left alone.

    A file counts as unchanged when two looks ``poll`` seconds apart saw the same, and as settled once it is, or has
    been seen unchanged for, ``settle`` seconds: clocks of file servers may run ahead of ours.
    """

    def __init__(self, uri: str, settle: float, poll: float) -> None:
        if "://" in uri:
            raise ConfigError(
                "files are taken from a local directory",
                field="stream.inbox",
                value=uri,
                allowed="a directory or glob of this machine",
                hint="copy from the object store into a directory, or send record batches (stream.input)",
            )
        path = Path(uri).expanduser().absolute()
        self._pattern = str(path) if _WILD.search(uri) and not path.is_dir() else None
        fixed = path.parts[: self._first_wild(path)] if self._pattern else path.parts
        self.root = Path(*fixed)
        self._settle, self._poll = settle, poll
        self._seen: dict[Found, float] = {}  # when it was first seen as it is, in monotonic seconds
        if not self.root.is_dir():
            raise ConfigError(
                "there is no such directory",
                field="stream.inbox",
                value=uri,
                allowed="a directory that files land in, or a glob such as 'landing/*/part-*.parquet'",
            )

    @staticmethod
    def _first_wild(path: Path) -> int:
        return next(i for i, part in enumerate(path.parts) if _WILD.search(part))

    def look(self, now: float) -> list[Found]:
        """The files there, by time of modification and name. ``now``: monotonic seconds."""
        found = sorted(self._files(), key=lambda file: (file.mtime_ns, file.name))
        before = self._seen
        self._seen = {file: before.get(file, now) for file in found}
        return found

    def unchanged(self, file: Found, now: float) -> bool:
        """Whether the file has been as it is for a while."""
        return now - self._seen.get(file, now) >= self._poll

    def settled(self, file: Found, now: float, clock: float) -> bool:
        """Whether the file is finished, readable or not. ``clock``: seconds since 1970."""
        watched = now - self._seen.get(file, now)
        return max(watched, clock - file.mtime_ns / 1e9) >= self._settle

    def _files(self) -> Iterator[Found]:
        for path in self._paths():
            name = readable_name(path.relative_to(self.root).as_posix())
            hidden = any(part.startswith((".", "_")) for part in name.split("/"))
            if hidden or not name.lower().endswith(SUFFIXES):
                continue
            file = _found(name, path)
            if file is not None:
                yield file

    def _paths(self) -> Iterator[Path]:
        if self._pattern is not None:
            yield from map(Path, glob.glob(self._pattern, recursive=True))  # noqa: PTH207  an absolute pattern
            return
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]
            yield from (Path(folder, name) for name in files)


def digest(path: Path) -> str:
    """What identifies a file's content: the first 128 bits of its SHA-256."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:32]


def readable_name(text: str) -> str:
    """A name that JSON can hold: Python keeps bytes that are no UTF-8 as lone surrogates."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _found(name: str, path: Path) -> Found | None:
    """None: not there (any more), or not a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    if not os.path.isfile(path):  # noqa: PTH113  Path.is_file would stat again as well
        return None
    return Found(name, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
