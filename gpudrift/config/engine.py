"""Where the work runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from gpudrift.config.checks import require

_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 1 << 22


class EngineKind(Enum):
    """Who runs tasks."""

    local = "local"  # this process
    ray = "ray"  # a Ray cluster, or Ray on this machine


@dataclass
class EngineConfig:
    """Where macro-blocks of pairs and scans of files run (docs/engines.md). No choice here changes a score, but for
    block_rows, which changes last digits."""

    kind: EngineKind = EngineKind.local
    devices: list[str] = field(default_factory=list)  # local: 0, 1, cuda:1, cpu; a worker each; empty: ``device``
    block_rows: int | None = None  # rows a side of a macro-block, a multiple of 16; null: by rows and device type
    resume: bool = True  # keep finished macro-blocks on disk until the run ends, and take those of one that was cut off
    checkpoint_seconds: float = 30.0  # between two writes of them; 0: after every block
    attempts: int = 4  # tries of a task that is lost or fails, before the run is given up
    task_seconds: float | None = None  # after which a task counts as lost; null: never
    speculate: bool = True  # try a task that takes far longer than others on a second worker too
    address: str | None = None  # ray: HOST:PORT of the head, or auto; null: RAY_ADDRESS, else one is started here
    device: str = "auto"  # ray: of the workers: cpu, cuda; auto: that of the job. A head needs no GPU of its own
    workers: int | None = None  # ray: most tasks at a time; null: as many as the cluster has room for
    cpus_per_task: float = 1.0  # ray
    gpus_per_task: float | None = None  # ray; null: 1 where the workers' device is CUDA, else 0
    connect_seconds: float = 30.0  # ray: to reach the head
    scans: bool = True  # ray: workers read the files; false: this process does, where workers cannot reach them
    ship_code: bool = False  # ray: send gpudrift's own code to workers that have its dependencies but not gpudrift

    def __post_init__(self) -> None:
        for device in self.devices:
            require(
                re.fullmatch(r"cpu|(cuda:)?\d+", device) is not None,
                "engine.devices",
                list(self.devices),
                "numbers of CUDA devices, cuda:N, cpu",
            )
        on_cpu = sum(device == "cpu" for device in self.devices)
        require(
            on_cpu in (0, len(self.devices)),
            "engine.devices",
            list(self.devices),
            "CUDA devices alone, or CPUs alone",
            "results of two types of device differ in their last digits",
        )
        rows = self.block_rows
        require(
            rows is None or (_SMALLEST_BLOCK <= rows <= _LARGEST_BLOCK and rows % 16 == 0),
            "engine.block_rows",
            rows,
            f"null, or a multiple of 16 from {_SMALLEST_BLOCK} to {_LARGEST_BLOCK}",
        )
        for name, low, high in (
            ("attempts", 1, 100),
            ("workers", 1, 1_000_000),
        ):
            count = getattr(self, name)
            require(count is None or low <= count <= high, f"engine.{name}", count, f"{low} to {high}")
        for name, least, most in (
            ("checkpoint_seconds", 0.0, 1e6),
            ("task_seconds", 0.1, 1e6),
            ("cpus_per_task", 0.0, 1e4),
            ("gpus_per_task", 0.0, 1e3),
            ("connect_seconds", 1.0, 3600.0),
        ):
            number = getattr(self, name)
            require(number is None or least <= number <= most, f"engine.{name}", number, f"{least:g} to {most:g}")
        remote = self.kind is EngineKind.ray
        require(self.device in ("auto", "cpu", "cuda"), "engine.device", self.device, ("auto", "cpu", "cuda"))
        require(
            remote or self.device == "auto",
            "engine.device",
            self.device,
            "auto with engine=local, where device or engine.devices say it",
        )
        require(
            remote or self.address is None,
            "engine.address",
            self.address,
            "null with engine=local",
            "the cluster would not be used: engine=ray is missing",
        )
        require(
            not (remote and self.devices),
            "engine.devices",
            list(self.devices),
            "empty with engine=ray, where engine.gpus_per_task says what a task gets",
            "devices are those of this machine",
        )
        known = r"auto|local|([^\s:/]+|\[[^\s\]/]+\]):\d{1,5}"
        require(
            self.address is None or re.fullmatch(known, self.address) is not None,
            "engine.address",
            self.address,
            "HOST:PORT of the head's GCS (6379 by default), auto, local, or null",
        )
