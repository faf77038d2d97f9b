"""Tests here make real file systems: see tests/harness."""

import pytest
from harness.fixtures import grace_periods, rig
from harness.hooks import Hooks
from harness.rig import Rig

__all__ = ["grace_periods", "hooks", "rig"]


@pytest.fixture
def hooks(rig: Rig) -> Hooks:
    """Where a daemon that is started with `module="harness.hooked", env=hooks.env` is told to die or to fail."""
    return Hooks(rig.area)
