"""Shared by the sketches' tests."""

from __future__ import annotations

import pytest
from make_sketch import cloud, plan_of

from gpudrift.sketch import SketchPlan


@pytest.fixture(scope="session")
def plan() -> SketchPlan:
    return plan_of(cloud(301))
