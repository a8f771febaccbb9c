"""Which files have been consumed, by content: what makes a file count once, and only once.

``files`` remembers each file that lies in the inbox by name, size and time, so that it is not read again at every look;
``contents`` remembers what was consumed. A content may be forgotten when no file of the inbox has it and every window
it touched is closed: should it come again, all its rows are late and change nothing. Both are therefore bounded by the
files that lie there and those of the open windows, however long the job runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from gpudrift.stream.inbox import Found

Status = Literal["consumed", "duplicate", "quarantined"]


@dataclass(frozen=True)
class Seen:
    """A file of the inbox that has been dealt with. error: why it is quarantined."""

    size: int
    mtime_ns: int
    inode: int
    digest: str
    status: Status
    error: str = ""


@dataclass(frozen=True)
class Content:
    """A content consumed: the name it first came under, its rows, and the end of its last window."""

    name: str
    rows: int
    until: datetime | None


@dataclass
class Ledger:
    files: dict[str, Seen] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    _digests: dict[str, str] = field(init=False)  # of contents, by name

    def __post_init__(self) -> None:
        self._digests = {content.name: digest for digest, content in self.contents.items()}

    def add(self, digest: str, content: Content) -> None:
        self.contents[digest] = content
        self._digests[content.name] = digest

    def knows(self, file: Found) -> bool:
        """Whether the file has been dealt with as it lies there."""
        seen = self.files.get(file.name)
        return seen is not None and (seen.size, seen.mtime_ns, seen.inode) == (file.size, file.mtime_ns, file.inode)

    def replaced(self, name: str, digest: str) -> bool:
        """Whether this name was consumed with another content, which still counts."""
        return self._digests.get(name, digest) != digest

    def note(self, file: Found, digest: str, status: Status, error: str = "") -> None:
        self.files[file.name] = Seen(file.size, file.mtime_ns, file.inode, digest, status, error)

    @property
    def quarantined(self) -> dict[str, str]:
        """Name and error of each file of the inbox that could not be used."""
        return {name: seen.error for name, seen in sorted(self.files.items()) if seen.status == "quarantined"}

    def retry(self, *, unread: bool = False) -> None:
        """Forget what was quarantined, so that it is tried again. unread: only what could not be read at all, such as
        for want of permission: that may be mended without a change of the file."""
        for name in self.quarantined:
            if not (unread and self.files[name].digest):
                del self.files[name]

    def forget(self, present: Collection[str], floor: datetime | None) -> None:
        """Drop files that are gone, and contents that can no longer change anything. ``floor``: no window before it
        takes rows."""
        for name in self.files.keys() - set(present):
            del self.files[name]
        held = {seen.digest for seen in self.files.values()}
        for digest, content in list(self.contents.items()):
            closed = content.until is None or (floor is not None and content.until <= floor)
            if closed and digest not in held:
                del self.contents[digest]
                self._digests.pop(content.name, None)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": {name: asdict(seen) for name, seen in self.files.items()},
            "contents": {
                digest: [c.name, c.rows, None if c.until is None else c.until.isoformat()]
                for digest, c in self.contents.items()
            },
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Ledger:
        return cls(
            {name: Seen(**seen) for name, seen in plain["files"].items()},
            {
                digest: Content(name, rows, None if until is None else datetime.fromisoformat(until))
                for digest, (name, rows, until) in plain["contents"].items()
            },
        )
