"""Tests here speak with other people's agents and clients, on real file systems: see tests/harness."""

from harness.fixtures import rig

__all__ = ["rig"]
