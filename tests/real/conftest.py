"""Tests here make real file systems: see tests/harness."""

from harness.fixtures import rig

__all__ = ["rig"]
