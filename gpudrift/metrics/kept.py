"""What metrics find out about the reference alone, kept for the windows after: sorted projections, factors, moments.

A backfill holds hundreds of windows against one reference, and in most metrics the work on the reference's many rows
does not know the window. What is kept is what the metric would compute, under a key that names all it depends on beside
the rows, so that the figures are the same to the bit with or without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpudrift.records import PanelInput

Found = TypeVar("Found")


class Kept:
    """Intermediate results about one cloud of rows, up to ``budget`` bytes.

    What comes first stays: a result that no longer fits is computed anew each time. All windows ask for the same in the
    same order, and whatever an order of use would evict is what is asked for next.

    rows: (n, d), the reference's; results about any other tensor are not kept.
    """

    def __init__(self, rows: Tensor, budget: int) -> None:
        self.rows, self.budget = rows, budget
        self.bytes = 0
        self.found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """The result under ``key``, made where there is none. It is shared: nobody may write into it."""
        if key in self.found:
            found: Found = self.found[key]
            return found
        found = make()
        size = size_of(found)
        if self.bytes + size <= self.budget:
            self.found[key] = found
            self.bytes += size
        return found


def of_reference(panel: PanelInput, key: Hashable, make: Callable[[], Found]) -> Found:
    """``make()``, or what it found for an earlier window against the same reference.

    Args:
        key: the metric's own, with all that the result depends on beside the reference's rows, their projection and
            clusters, and what the reference pins.
        make: computes the result from ``panel`` without its current window.
    """
    kept = panel.kept
    return make() if kept is None or kept.rows is not panel.x else kept.get(key, make)


def size_of(found: Any) -> int:
    """Bytes of the tensors in a result (a tensor with all the memory behind it, tuple, list or dataclass)."""
    if isinstance(found, torch.Tensor):
        return found.untyped_storage().nbytes()
    if dataclasses.is_dataclass(found):
        return sum(size_of(getattr(found, field.name)) for field in dataclasses.fields(found))
    if isinstance(found, tuple | list):
        return sum(map(size_of, found))
    return 0
