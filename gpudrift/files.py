"""Writing so that a killed run leaves no half file; JSON with equal bytes for equal values; the job's lock."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from gpudrift.errors import ConfigError, LockedError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` (hidden, same suffix); renamed to it if the block ends well, else removed."""
    make_directory(target.parent)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.errno is not None:  # else its text is all there is
            error.filename = error.filename or str(target)  # a full disk is not told by name
        raise
    finally:
        with contextlib.suppress(OSError):  # it would stand in place of the error above
            temporary.unlink(missing_ok=True)


def sweep(*directories: Path, name: str = "") -> None:
    """Remove the temporary files that killed runs left in these directories; those of living processes stay. name: of
    files whose names begin so alone."""
    for directory in directories:
        for path in directory.glob(f".{glob.escape(name)}*.tmp*"):
            owner = re.fullmatch(r"\..*\.(\d+)\.tmp(\..*)?", path.name)
            if owner is not None and not _alive(int(owner[1])):
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, so it lives
        return True
    return True


def local_path(text: str | Path, field: str) -> Path:
    """The path, ``~`` expanded. Raises ConfigError where nobody knows the home directory it stands for."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            "the home directory that '~' stands for is not known",
            field=field,
            value=str(text),
            allowed="a path without '~', or with the home directory of a user there is",
        ) from None


def make_directory(path: Path, field: str = "output.dir") -> Path:
    """Create a directory and its parents; a ConfigError where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"this directory cannot be made: {error.strerror}",
            field=field,
            value=str(path),
            allowed="a directory this user may write",
        ) from error
    return path


def jsonable(value: Any) -> Any:
    """Plain JSON values: NaN and infinities become null, times ISO 8601, mappings dicts, tuples lists."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(target: Path, value: Any) -> None:
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the block. The system frees it when the process ends, however it ends.

    Raises LockedError when another process holds it, ConfigError where it cannot be made.
    """
    make_directory(path.parent, "history.path")
    try:
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"this file cannot be opened: {error.strerror}",
            where=path,
            field="history.path",
            allowed="a directory this user may write",
        ) from error
    with opened as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise LockedError(
                "another run of this job is active; this one ends without touching anything",
                where=path,
                value=f"held by {holder}",
                hint="wait for it, or give this run another name= or history.path=",
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield
