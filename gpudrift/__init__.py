"""gpudrift: exact, calibrated drift detection for embedding corpora.

Importing this package loads neither torch nor matplotlib; the functions load them when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpudrift.api import DriftEstimate, cross_test, energy_distance, mmd2, permutation_test, score

__all__ = ["DriftEstimate", "__version__", "cross_test", "energy_distance", "mmd2", "permutation_test", "score"]


def __getattr__(name: str) -> Any:
    if name in {"energy_distance", "mmd2", "permutation_test", "cross_test", "score", "DriftEstimate"}:
        from gpudrift import api

        return getattr(api, name)
    raise AttributeError(f"module 'gpudrift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
