"""The errors a user can meet: each names the place, the field, the value received, and what is allowed.

Exit codes: 1 a crash or a configuration that cannot work, 2 usage (argparse, Hydra's own flags), 30 data that is
missing, damaged, too little, or does not fit the pinned reference. Verdicts use 0, 10, 20 and 30 (docs/verdict.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

_MISSING = object()


class GpudriftError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: one sentence, what is wrong.
        field: the config key or column concerned, e.g. ``source.embedding_column``.
        value: what was received.
        allowed: what would be accepted, in words or as a list.
        where: the file (and row group or row) concerned.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: Any = _MISSING,
        allowed: Any = None,
        where: Any = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.field, self.allowed, self.where, self.hint = message, field, allowed, where, hint
        self.value = None if value is _MISSING else value
        parts = [message]
        if where is not None:
            parts.append(f"in: {where}")
        if field is not None:
            parts.append(f"field: {field}")
        if value is not _MISSING:
            parts.append(f"received: {value!r}")
        if allowed is not None:
            listed = ", ".join(map(str, allowed)) if isinstance(allowed, (list, tuple, set, frozenset)) else allowed
            parts.append(f"allowed: {listed}")
        if hint is not None:
            parts.append(f"what to do: {hint}")
        super().__init__("\n  ".join(parts))


class ConfigError(GpudriftError):
    """A configuration value that cannot work (exit code 1)."""


class ArgumentError(GpudriftError, ValueError):
    """A Python API argument that cannot work."""


class LockedError(GpudriftError):
    """Another run of the same job is active (exit code 1)."""


class EngineError(GpudriftError):
    """Work that could not be finished where it ran: a cluster that is gone, a task that always fails (exit code 1)."""


class DataError(GpudriftError):
    """Input data that is missing, damaged or not what the config says (exit code 30)."""

    exit_code: ClassVar[int] = 30


class RangeError(DataError, ArgumentError):
    """Finite values too large or too small for the arithmetic they are computed in (exit code 30)."""


class InsufficientDataError(DataError):
    """Too little data for an answer (exit code 30)."""


class ReferenceMismatchError(DataError):
    """The pinned reference does not fit this run: dimension, encoder, range, fingerprint or format (exit code 30)."""
