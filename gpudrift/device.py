"""Which device serves a job, WITH the reason, and what hardware and versions that is."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpudrift.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")
# limit and use of this process's control group: version 2, then 1
_CGROUP = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class DeviceChoice:
    """device: a torch device string. reason: one clause for people. degraded: something better was wished for."""

    device: str
    reason: str
    degraded: bool = False


def choose(wish: str = "auto") -> DeviceChoice:
    """The device for a job.

    Args:
        wish: ``auto`` (CUDA when usable, else CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: CUDA is asked for by name and cannot be used.
    """
    if wish == "cpu":
        return DeviceChoice("cpu", "device=cpu")
    usable = torch.cuda.is_available()
    if wish == "auto":
        if usable:
            return DeviceChoice("cuda:0", f"CUDA device found: {torch.cuda.get_device_name(0)}")
        return DeviceChoice("cpu", "no CUDA device is usable here", degraded=True)
    index = int(wish.partition(":")[2] or 0)
    count = torch.cuda.device_count() if usable else 0
    if index >= count:
        raise ConfigError(
            "this CUDA device cannot be used",
            field="device",
            value=wish,
            allowed=["auto", "cpu", *(f"cuda:{i}" for i in range(count))],
            hint="install a CUDA build of torch, or run with device=cpu",
        )
    return DeviceChoice(f"cuda:{index}", f"device={wish}: {torch.cuda.get_device_name(index)}")


def named(names: Sequence[str], wish: str = "auto") -> list[DeviceChoice]:
    """Each of several devices for one job.

    Args:
        names: ``0``, ``cuda:0`` or ``cpu``, all of one type.
        wish: what the job's ``device`` says: one of them comes first; ``auto`` leaves the order.

    Raises:
        ConfigError: a device that cannot be used, or is of another type than the wish.
    """
    full = [name if name == "cpu" or name.startswith("cuda:") else f"cuda:{name}" for name in names]
    if full and wish != "auto" and wish.partition(":")[0] != full[0].partition(":")[0]:
        raise ConfigError(
            "the devices of the engine are of another type than the job's",
            field="engine.devices",
            value=list(names),
            allowed=f"devices of the type of device={wish}, or device=auto",
        )
    if wish in full:
        full.remove(wish)
        full.insert(0, wish)
    return [choose(name) for name in full]


def free_memory() -> int | None:
    """Bytes of host memory that can still be taken: what the system has available, or what is left under the limit of
    this process's control group (a container's limit) where that is less. None where neither can be read."""
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        known.append(1024 * _named(_MEMINFO, "MemAvailable:"))
    for folder, limit, usage in _CGROUP:
        with contextlib.suppress(OSError, ValueError, IndexError):
            most, used = (int((folder / name).read_text()) for name in (limit, usage))  # "max", no limit, is no number
            # the cached files counted in it make room when memory is asked for
            cached = sum(_named(folder / "memory.stat", key) for key in ("inactive_file", "active_file"))
            known.append(max(0, most - used + cached))
    return min(known, default=None)


def _named(path: Path, key: str) -> int:
    """The number behind a key at the start of a line; ValueError where there is none."""
    for line in path.read_text().splitlines():
        if line.split()[:1] == [key]:
            return int(line.split()[1])
    raise ValueError(f"{path} has no {key}")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    from gpudrift import __version__

    return {
        "gpudrift": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "pyarrow": version("pyarrow"),
    }
