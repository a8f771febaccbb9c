"""What a ``source.uri`` names: Parquet files, sorted by path, and the ``key=value`` folders they lie in.

A file system is one object handed on: ``pyarrow.fs.LocalFileSystem``, or a ``steady.Store`` (see ``stores.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from gpudrift.errors import ConfigError, DataError
from gpudrift.source.steady import Store, StoreError
from gpudrift.source.stores import is_address, open_store

SUFFIXES = (".parquet", ".parq", ".pq")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WILD = re.compile(r"[*?\[]")
_HINT = "give a Parquet file, a directory that holds some, or a glob such as 'data/**/*.parquet'"


@dataclass(frozen=True)
class FoundFile:
    """One Parquet file; ``keys`` are the ``key=value`` folders of its path, None for the Hive null."""

    path: str
    keys: Mapping[str, str | None]


def find_files(uri: str) -> tuple[Any, tuple[FoundFile, ...]]:
    """The file system (local, or a ``Store``) and the files ``uri`` names, sorted by path.

    A directory is searched through; in it, and behind a wildcard, files and folders whose names begin with ``_`` or
    ``.`` and files that are not named like Parquet are left alone. A glob may match folders; they are searched too.

    Raises:
        ConfigError: there is nothing there, or nothing that is named like Parquet; a store that gives no answer.
    """
    filesystem, spellings = _locate(uri)
    try:
        path, paths = _matches(filesystem, spellings, uri)
    except StoreError as error:
        raise ConfigError(
            f"this place cannot be listed: {error}", field="source.uri", value=uri, hint=error.hint
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"this place cannot be listed: {error}", field="source.uri", value=uri) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        paths = _each_once(paths)
        _refuse_dangling(path)
    if not paths:
        raise ConfigError(
            "there are no Parquet files",
            field="source.uri",
            value=uri,
            allowed=f"names in {', '.join(SUFFIXES)}",
            hint=_HINT,
        )
    return filesystem, tuple(FoundFile(p, partition_keys(p)) for p in sorted(set(paths)))


def partition_keys(path: str) -> dict[str, str | None]:
    """The ``key=value`` folders of a path: ``a/month=2020-07/part-0.parquet`` gives ``{"month": "2020-07"}``."""
    keys: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if name and equals:
            keys[unquote(name)] = None if value == HIVE_NULL else unquote(value)
    return keys


def key_types(files: Iterable[FoundFile]) -> dict[str, Any]:
    """The Arrow type of each partition key, as pyarrow infers it: int64 where every value is an integer, else text."""
    values: dict[str, list[str]] = {}
    for file in files:
        for name, value in file.keys.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    whole = re.compile(r"[-+]?\d{1,18}")
    return {
        name: pa.int64() if found and all(whole.fullmatch(value) for value in found) else pa.large_string()
        for name, found in values.items()
    }


def _locate(uri: str) -> tuple[Any, list[str]]:
    """The file system, and the paths ``uri`` may mean there."""
    if not is_address(uri):
        # not resolve(): a symbolic link's own name may hold the key=value folders
        try:
            return fs.LocalFileSystem(), [Path(uri).expanduser().absolute().as_posix()]
        except RuntimeError:
            raise ConfigError(
                "the home directory that '~' stands for is not known", field="source.uri", value=uri
            ) from None
    return open_store(uri)


def _matches(filesystem: Any, spellings: Sequence[str], uri: str) -> tuple[str, list[str]]:
    """The first of the paths that names something, and the files there."""
    for path in spellings:
        here = filesystem.get_file_info(path)
        if here.type == fs.FileType.File:
            return path, [path]
        if here.type == fs.FileType.Directory:
            return path, _search(filesystem, path)
        if _WILD.search(path) and (paths := _expand(filesystem, path)):
            return path, paths
    if _WILD.search(spellings[0]):
        return spellings[0], []
    raise ConfigError(
        "there is no such file or directory", field="source.uri", value=uri, hint=_no_bucket(filesystem, spellings[0])
    )


def _no_bucket(filesystem: Any, path: str) -> str:
    bucket = path.partition("/")[0]
    if not isinstance(filesystem, Store) or not filesystem.has_buckets:
        return _HINT
    if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
        return f"there is no bucket {bucket!r}, or not for these credentials: look at its name, region and endpoint"
    return f"the bucket {bucket!r} is there; {_HINT}"


def _each_once(paths: Sequence[str]) -> list[str]:
    """A file reached by several names (symbolic links, loops of them) is read once, by its shortest."""
    real: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (path.count("/"), path)):
        real.setdefault(str(Path(path).resolve()), path)
    return list(real.values())


def _refuse_dangling(folder: str) -> None:
    """A link to a file that is gone is rows that are gone: never silently."""
    for path in Path(folder).rglob("*") if Path(folder).is_dir() else ():
        if path.is_symlink() and _named_like_data(path.name) and not path.exists():
            raise DataError(
                "this link points at a file that is not there",
                where=path,
                field="source.uri",
                value=str(path.readlink()),
                hint="mend or remove the link",
            )


def _named_like_data(name: str) -> bool:
    return not name.startswith(("_", ".")) and name.lower().endswith(SUFFIXES)


def _search(filesystem: Any, folder: str) -> list[str]:
    """Every data file under a folder, hidden folders left out."""
    base = len(folder.rstrip("/")) + 1 if folder else 0
    found = []
    for info in filesystem.get_file_info(fs.FileSelector(folder, recursive=True)):
        parts = info.path[base:].split("/")
        hidden = any(part.startswith(("_", ".")) for part in parts[:-1])
        if info.type == fs.FileType.File and not hidden and _named_like_data(parts[-1]):
            found.append(info.path)
    return found


def _expand(filesystem: Any, pattern: str) -> list[str]:
    """The data files a glob matches, folder by folder: only folders that can match are listed."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if _WILD.search(part))
    # a suffix spelt out (*.bin) is the user's word that these are Parquet; "*" alone is not
    spelt_out = bool(Path(parts[-1]).suffix) and not _WILD.search(Path(parts[-1]).suffix)
    found: list[str] = []

    def descend(folder: str, rest: Sequence[str]) -> None:
        if list(rest) == ["**"]:
            found.extend(_search(filesystem, folder or "/"))
            return
        for info in filesystem.get_file_info(fs.FileSelector(folder or "/", allow_not_found=True)):
            name = info.path.rsplit("/", 1)[-1]
            if name.startswith(("_", ".")):
                continue
            is_folder = info.type == fs.FileType.Directory
            remaining = rest
            if rest[0] == "**":  # stands for any number of folders, none included
                remaining = rest[1:]
                if is_folder:
                    descend(info.path, rest)
            if not fnmatchcase(name, remaining[0]):
                continue
            if is_folder and len(remaining) > 1:
                descend(info.path, remaining[1:])
            elif is_folder:
                found.extend(_search(filesystem, info.path))
            elif len(remaining) == 1 and (spelt_out or _named_like_data(name)):
                found.append(info.path)

    descend("/".join(parts[:first]), parts[first:])
    return found
