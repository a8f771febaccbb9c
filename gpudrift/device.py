"""Which device serves a job, WITH the reason, and what hardware and versions that is."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from gpudrift.errors import ConfigError


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
