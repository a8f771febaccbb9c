"""A file system that does not give up at the first failure, and notices files that are written again under a reader.

``Store`` stands before any ``pyarrow.fs`` file system that is not local and has the two methods the source uses of it.
Every request (list, look up, open, read a range) is tried again where that can help: the wait doubles and is cut by up
to half at random, so that many readers do not come back at once (exponential backoff with jitter). An answer that
another try cannot change (no access, not there, a bad request) is an error at once.
"""

from __future__ import annotations

import io
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeVar

import pyarrow as pa
from pyarrow import fs

Kind = Literal["denied", "missing", "elsewhere", "refused", "changed", "failed"]
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # Hydra sets the root logger to ERROR, and nobody would know why a run takes long

_DENIED = re.compile(
    r"ACCESS_DENIED|HTTP status 40[13]\b|INVALID_ACCESS_KEY_ID|SIGNATURE|CLIENT_TOKEN_ID|EXPIRED_TOKEN"
    r"|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2 access token|forbidden"
    r"|AuthenticationException|AuthenticationFail|AuthorizationFail|AuthorizationPermission"
    r"|NoAuthenticationInformation|PublicAccessNotPermitted|unauthori[sz]ed",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"NO_SUCH_(BUCKET|KEY|UPLOAD)|RESOURCE_NOT_FOUND|HTTP status 404\b|Status\(NOT_FOUND"
    r"|ContainerNotFound|BlobNotFound|PathNotFound"
)
_ELSEWHERE = re.compile(r"HTTP status 30[1278]\b|PERMANENT_?REDIRECT|AuthorizationHeaderMalformed", re.IGNORECASE)
# 408 and 429 pass with time. 416 (the range lies behind the end) asks for a look at whether the file has changed.
_REFUSED = re.compile(r"HTTP status 4(?!08|16|25|29)\d\d\b|INVALID_ARGUMENT|INVALID_PARAMETER|VALIDATION")
_REQUEST_ID = re.compile(r"\s*\(Request ID:[^)]*\)")
_SECRET_NAME = re.compile(r"secret|password|passwd|token|sas|(storage|account|access|api)_?key", re.IGNORECASE)
_SIGNED = re.compile(
    r"((?:sig|signature|token|secret|password|x-amz-[\w-]+|x-goog-[\w-]+|awsaccesskeyid)=)[^&\s\"')]+", re.IGNORECASE
)
# what tells two versions of an object apart, by the names stores give it; in lower case
_MARKS = ("etag", "generation", "versionid", "content-md5", "md5hash", "crc", "last-modified", "lastmodified", "mtime",
          "modified", "updated", "created")  # fmt: skip


_MARK = 16  # bytes


class StoreError(OSError):
    """What a store did not do, in a sentence. ``offset``: where in the file a read failed; None: it was no read."""

    def __init__(self, message: str, kind: Kind, *, hint: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.hint, self.offset = kind, hint, offset


def _chance() -> float:
    # by its name, so that a process this is sent to draws numbers of its own: random.random pickles with its state
    return random.random()


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for. ``attempts`` includes the first; times in seconds.

    ``wait`` is that before the second attempt; it doubles up to ``longest_wait``. ``connect`` and ``stall`` bound one
    attempt where the store's client lets us: until there is a connection, and without a byte arriving.
    """

    attempts: int = 5
    wait: float = 0.5
    longest_wait: float = 20.0
    connect: float = 5.0
    stall: float = 10.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = _chance  # in [0, 1)

    def run(
        self,
        work: Callable[[], _Result],
        what: str,
        *,
        hints: Mapping[str, str] | None = None,
        offset: int | None = None,
        again: Callable[[], None] = lambda: None,
    ) -> _Result:
        """``work()``, tried again where that can help; ``again`` runs before each further attempt.

        Raises:
            StoreError: the last failure, or the first that no further attempt can change.
        """
        attempt = 1
        while True:
            try:
                return work()
            except StoreError:
                raise
            except Exception as error:  # fsspec's stores raise classes of their own
                kind, reason, hint = kind_of(error), redact(error), hints or {}
                if kind != "failed":
                    raise StoreError(f"{_SAID[kind]}: {reason}", kind, hint=hint.get(kind), offset=offset) from error
                if attempt >= self.attempts:
                    tries = f"tried {attempt} times, at last" if attempt > 1 else "tried"
                    raise StoreError(
                        f"the store does not answer ({tries}): {reason}", kind, hint=hint.get(kind), offset=offset
                    ) from error
                delay = min(self.wait * 2 ** (attempt - 1), self.longest_wait) * (1 - self.jitter() / 2)
                _log.warning("%s failed (attempt %d of %d), again in %.1f s: %s",
                             what, attempt, self.attempts, delay, reason)  # fmt: skip
            self.sleep(delay)
            again()
            attempt += 1


_SAID: dict[str, str] = {
    "denied": "the store refuses access",
    "missing": "this is not there",
    "elsewhere": "the bucket is in another region or at another address",
    "refused": "the store refuses the request",
}


def kind_of(error: BaseException) -> Kind:
    """What a failure means, from its class, HTTP status or text: pyarrow has one class for most of them."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return kind_of(error.__cause__)  # fsspec's HTTP says so of a server that is busy too
    status = getattr(error, "status", None) or getattr(error, "code", None)
    text = str(error) + (f" (HTTP status {status})" if isinstance(status, int) else "")
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return "denied"
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return "missing"
    if _ELSEWHERE.search(text):
        return "elsewhere"
    lasting = isinstance(error, (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError))
    return "refused" if _REFUSED.search(text) or lasting else "failed"


def redact(error: object) -> str:
    """The first line of an error, without what must not be shown: signatures, and secrets of the environment."""
    text = _REQUEST_ID.sub("", (str(error).splitlines() or [""])[0]).strip() or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _SIGNED.sub(r"\1***", text)[:300]


class Store:
    """A remote file system for reading: listing and opening with patience, and every file in one version.

    The version (size and etag, or whatever the store gives) of a file's first opening is what all later ones must find.
    It pickles without the versions it knows; ``expect`` tells another process those it needs. Credentials go along
    where the file system itself was given them: Azure's key or SAS token, what fsspec's configuration files hold. S3
    and Google's look for them anew, in the environment of the process that unpickles.
    ``info``: ``fsspec``'s way to a version; pyarrow's own file systems tell it of an open file.
    """

    def __init__(
        self,
        filesystem: Any,
        patience: Patience,
        hints: Mapping[str, str] | None = None,
        info: Callable[[str], Mapping[str, Any]] | None = None,
    ) -> None:
        self._filesystem, self._patience, self._info = filesystem, patience, info
        self.has_buckets = info is None
        self._hints = {"changed": CHANGED_HINT, **(hints or {})}
        self._sizes: dict[str, int] = {}
        self._versions: dict[str, tuple[str, ...]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self._filesystem, self._patience, self._hints, self._info)

    def version(self, path: str) -> tuple[str, ...] | None:
        """The version of a file that was opened; None: it was not."""
        return self._versions.get(path)

    def expect(self, path: str, version: tuple[str, ...]) -> None:
        """Take this version for that of the file's first opening."""
        with self._lock:
            self._versions.setdefault(path, version)

    def get_file_info(self, wanted: Any) -> Any:
        """As ``pyarrow.fs.FileSystem.get_file_info``, of one path or one selector."""
        name = wanted.base_dir if isinstance(wanted, fs.FileSelector) else wanted
        found = self._patience.run(lambda: self._filesystem.get_file_info(wanted), f"listing {name}", hints=self._hints)
        for info in found if isinstance(found, list) else [found]:
            if info.type == fs.FileType.File and info.size is not None:
                self._sizes[info.path] = info.size
        return found

    def open_input_file(self, path: str) -> Any:
        """The file as a ``pyarrow.NativeFile``.

        Raises:
            StoreError: it cannot be opened, or is not what it was.
        """
        return pa.PythonFile(_SteadyFile(self, path), mode="r")

    def verify(self, path: str) -> None:
        """Look whether the file is still the one that was opened first.

        Raises:
            StoreError: it has changed or is gone.
        """
        self.ask(lambda: self.open_version(path), f"checking {path}").close()

    def ask(
        self,
        work: Callable[[], _Result],
        what: str,
        *,
        offset: int | None = None,
        again: Callable[[], None] = lambda: None,
    ) -> _Result:
        return self._patience.run(work, what, hints=self._hints, offset=offset, again=again)

    def open_version(self, path: str) -> Any:
        """One attempt to open the file in its first version."""
        try:
            handle = self._filesystem.open_input_file(path)
        except (OSError, pa.ArrowException) as error:
            if kind_of(error) == "missing":
                raise _gone() from error
            raise
        size = handle.size()
        marks = handle.metadata() if self._info is None else self._info(path)
        version = (str(size), *_marks(marks))
        with self._lock:
            known = self._versions.setdefault(path, version)
            listed = self._sizes.get(path, size)
        if known != version or listed != size:
            handle.close()
            raise StoreError("the file has changed while it was read", "changed", hint=CHANGED_HINT)
        return handle


CHANGED_HINT = "run again when its writer is done; writers should put finished files in place, under new names"


def _gone() -> StoreError:
    return StoreError("the file is gone: it was there when the files were listed", "changed", hint=CHANGED_HINT)


def _marks(info: Mapping[Any, Any] | None) -> list[str]:
    plain = {_text(name).lower(): _text(value) for name, value in (info or {}).items() if value is not None}
    return [f"{name}={plain[name]}" for name in _MARKS if name in plain]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _SteadyFile(io.RawIOBase):
    """A file whose reads are tried again, each on a fresh handle, and come whole or not at all."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path, self._position = store, path, 0
        self._handle: Any = store.ask(lambda: store.open_version(path), f"opening {path}")
        self._size = self._handle.size()

    def read(self, size: int | None = -1) -> bytearray:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return bytearray()
        offset = self._position

        def once() -> bytearray:
            if self._handle is None:
                self._handle = self._store.open_version(self._path)
            # pyarrow's S3 client takes an answer that is too short for whole and leaves the rest of the memory as it
            # was: whatever stood there would be read as vectors. So the end is marked, and must not stay so.
            data, mark = bytearray(wanted), os.urandom(min(wanted, _MARK))
            data[-len(mark) :] = mark
            try:
                self._handle.seek(offset)
                came = self._handle.readinto(data)
            except OSError as error:
                if kind_of(error) == "missing":
                    raise _gone() from error
                raise
            if came != wanted or data.endswith(mark):
                raise OSError(f"fewer bytes came than the {wanted:,} from byte {offset:,} on")
            return data

        data = self._store.ask(once, f"reading {self._path}", offset=offset, again=self._drop)
        self._position += wanted
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            handle.close()
