"""Real file systems, disks that stall and a real daemon for tests; `rig.Rig` puts them together and takes them down.

Only `fixtures.py` and `conftest.py` know pytest, so scripts use the rest as it is.
"""

from __future__ import annotations


class Unmet(Exception):
    """This machine lacks what the harness needs: root, a program, a kernel feature. One sentence."""


class HarnessError(Exception):
    """The harness refuses something dangerous, or could not do what it was asked."""
