"""The programs that tests run beside gpudrift: promtool and Prometheus, and Chromium.

``python tests/tools.py`` (``make unit`` does it) fetches those that are not there, as Debian packages: prometheus into
``.tools`` of the checkout, without installing it (no service starts, no root needed); chromium by ``apt-get install``,
where this is root. What cannot be had is one line and no error: the tests that need it fail, naming it, unless
``GPUDRIFT_WITHOUT`` (of ``prometheus,chromium``) leaves them out. In a test: ``tools.program("promtool")``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

GROUPS = {"prometheus": ("promtool", "prometheus"), "chromium": ("chromium",)}
TOOLS = Path(__file__).resolve().parents[1] / ".tools"
LIMIT = 300.0  # seconds for each call of apt-get or dpkg: a mirror may hang
OPTIONS = ("-qq", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=60")


class ToolError(Exception):
    """A program that cannot be had, or a wrong ``GPUDRIFT_WITHOUT``: the sentence to tell."""


class HangError(ToolError):
    """A call that did not end in time: not tried again."""


def program(name: str) -> Path:
    """Where a program is, for a test: which fails without it, and is skipped where ``GPUDRIFT_WITHOUT`` names it."""
    import pytest

    group = next(group for group, programs in GROUPS.items() if name in programs)
    try:
        without = left_out()
    except ToolError as error:
        pytest.fail(str(error), pytrace=False)
    if group in without:
        pytest.skip(f"left out: {name} (GPUDRIFT_WITHOUT={group})")
    path = find(name)
    if path is None:
        pytest.fail(
            f"{name} is missing: `python tests/tools.py` fetches it where there is apt; else put it on PATH, or leave "
            f"its tests out with GPUDRIFT_WITHOUT={group}",
            pytrace=False,
        )
    return path


def find(name: str) -> Path | None:
    """In ``.tools``, else on PATH."""
    own = TOOLS / "usr" / "bin" / name
    if os.access(own, os.X_OK) and own.is_file():
        return own
    found = shutil.which(name)
    return None if found is None else Path(found)


def left_out() -> set[str]:
    """The groups that ``GPUDRIFT_WITHOUT`` names."""
    named = {part.strip() for part in os.environ.get("GPUDRIFT_WITHOUT", "").split(",")} - {""}
    if named - GROUPS.keys():
        unknown, known = ", ".join(sorted(named - GROUPS.keys())), ", ".join(GROUPS)
        raise ToolError(f"GPUDRIFT_WITHOUT names what is none of its groups: {unknown} (there are {known})")
    return named


def lacking(group: str) -> list[str]:
    return [name for name in GROUPS[group] if find(name) is None]


def fetch(group: str) -> None:
    """Fetch what a group lacks. Raises ToolError where that cannot be done."""
    if shutil.which("apt-get") is None:
        raise ToolError("there is no apt-get here")
    if group == "prometheus":
        unpack("prometheus")
    elif os.geteuid() != 0:
        raise ToolError("only root can install it")
    else:
        with_lists("install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core")
    if lacking(group):
        raise ToolError("the package came without it")


def unpack(package: str) -> None:
    """A Debian package's files into ``.tools``, without installing it."""
    if shutil.which("dpkg") is None:
        raise ToolError("there is no dpkg here")
    with tempfile.TemporaryDirectory(prefix=".fetching.", dir=TOOLS) as name:
        directory = Path(name)
        with_lists("download", package, cwd=directory)
        archive = next(directory.glob("*.deb"), None)
        if archive is None:
            raise ToolError("apt-get download left no package")
        called("dpkg", "-x", str(archive), str(directory / "root"))
        for path in (directory / "root" / "usr" / "bin").glob("*"):
            (TOOLS / "usr" / "bin").mkdir(parents=True, exist_ok=True)
            path.replace(TOOLS / "usr" / "bin" / path.name)  # whole or not at all


def with_lists(*arguments: str, cwd: Path | None = None) -> None:
    """``apt-get``, and once more after an update of its lists where that may help and is allowed."""
    command, *names = arguments
    try:
        called("apt-get", command, *OPTIONS, *names, cwd=cwd)
    except ToolError as error:
        if os.geteuid() != 0 or isinstance(error, HangError):
            raise
        called("apt-get", "update", *OPTIONS)
        called("apt-get", command, *OPTIONS, *names, cwd=cwd)


def called(*command: str, cwd: Path | None = None) -> None:
    """Run a program without a terminal, for ``LIMIT`` at most, with all it starts. Raises ToolError."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    told = " ".join(command[:2])
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise HangError(f"{told} did not end within {LIMIT:g} s") from None
    if process.returncode != 0:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no message")
        raise ToolError(f"{told} ended with {process.returncode}: {last}")


def main() -> int:
    try:
        wanted = [group for group in GROUPS if group not in left_out()]
    except ToolError as error:
        print(error, file=sys.stderr)
        return 2
    if not any(lacking(group) for group in wanted):
        return 0
    for group in wanted:
        try:
            TOOLS.mkdir(exist_ok=True)
            with (TOOLS / ".lock").open("a", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a second one waits, and finds all there
                if lacking(group):
                    fetch(group)
        except (ToolError, OSError) as error:
            for name in lacking(group):
                print(f"{name} is missing and cannot be fetched: {error}; its tests will fail")
    return 0


if __name__ == "__main__":
    sys.exit(main())
