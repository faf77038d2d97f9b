"""Tests here make real file systems: see tests/harness."""

from harness.fixtures import grace_periods, rig
from harness.serving import servers

__all__ = ["grace_periods", "rig", "servers"]
