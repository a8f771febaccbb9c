"""What the GPU suite is held to, and the clock it is held by. Pure Python.

Shares are of the bare matrix product of the same pairs in 16 bit (``torch.mm`` into preallocated memory), from one run
with interleaved rounds. ``must`` is the bar, ``stretch`` what the arithmetic of the chip allows.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DIMS = (128, 384, 768, 1536, 3072)

# statistic -> d -> (must, stretch), shares of the bare product
SHARES: dict[str, dict[int, tuple[float, float]]] = {
    "energy": {128: (0.90, 1.4), 384: (0.70, 0.90), 768: (0.75, 0.90), 1536: (0.80, 0.92), 3072: (0.82, 0.93)},
    "energy+5": {128: (0.60, 0.90), 384: (0.55, 0.80), 768: (0.66, 0.85), 1536: (0.75, 0.88), 3072: (0.80, 0.90)},
}
# what -> (at least or at most, factor); speeds over a peer's in pairs a second, at d = 768
RATIOS: dict[str, tuple[str, float]] = {
    "energy over keops": (">=", 20.0),
    "energy over cdist": (">=", 10.0),
    "energy over mm+eager": (">=", 4.0),
    "energy over mm+compiled": (">=", 1.3),
    "self against full": (">=", 1.85),
    "128 labels against none": ("<=", 1.3),
    "million": ("<=", 10.0),  # seconds
}


def share_verdict(statistic: str, d: int, share: float) -> str:
    """``stretch``, ``must`` or ``below``; empty where no goal is set."""
    goal = SHARES.get(statistic, {}).get(d)
    if goal is None:
        return ""
    if math.isnan(share):
        return "below"
    return "stretch" if share >= goal[1] else "must" if share >= goal[0] else "below"


def ratio_verdict(what: str, value: float, d: int = 768) -> str:
    """``met`` or ``below``; empty where no goal is set. Peers are held to theirs at d = 768 alone."""
    goal = RATIOS.get(what)
    if goal is None or (" over " in what and d != 768):
        return ""
    return "met" if (value >= goal[1] if goal[0] == ">=" else value <= goal[1]) else "below"


class Clock:
    """Time left of a budget in seconds, and what was left out for want of it."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.start = now()
        self.deadline = self.start + seconds
        self.left_out: list[str] = []

    @classmethod
    def until(cls, deadline: float, now: Callable[[], float] = time.time) -> Clock:
        """The clock of a part: ``deadline`` as ``time.time()`` counts."""
        return cls(deadline - now(), now)

    @property
    def spent(self) -> float:
        return self.now() - self.start

    @property
    def left(self) -> float:
        return self.deadline - self.now()

    def fits(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, ``what`` is noted as left out."""
        if seconds <= self.left:
            return True
        self.left_out.append(f"{what}: needs about {seconds:.0f} s, {max(self.left, 0):.0f} s are left")
        return False


def sources() -> list[Path]:
    """The code a result depends on: the kernels, their schedules, and the suite itself."""
    kernels = ROOT / "gpudrift" / "kernels"
    return sorted([*kernels.glob("*.py"), *kernels.glob("*.json"), *(ROOT / "benchmarks").glob("gpu_*.py")])


def sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def case_hash(definition: Mapping[str, Any], digest: str) -> str:
    """16 hex digits of the SHA-256 of a case's definition and of the code behind it (``sources_digest``)."""
    text = json.dumps(definition, sort_keys=True, default=str) + "\0" + digest
    return hashlib.sha256(text.encode()).hexdigest()[:16]
