"""Mergeable sketches of a window: all of the panel that needs no second pass over the rows."""

from __future__ import annotations

from gpudrift.sketch.compare import compare
from gpudrift.sketch.plan import SketchPlan
from gpudrift.sketch.state import Sketch

__all__ = ["Sketch", "SketchPlan", "compare"]
