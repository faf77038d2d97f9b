"""Tests here make real file systems: see tests/harness."""

from harness.fixtures import grace_periods, rig

__all__ = ["grace_periods", "rig"]
