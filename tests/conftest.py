"""Shared by all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Small matrices on many threads cost more than they save, and the machine has other work."""
    torch.set_num_threads(2)
