"""Which qemu-ga the agent is to hosts: its version, and what versions tell apart. Pure.

Measured at 7.2.22, 10.0.13 and 11.1.3 (Debian 12, 13 and unstable). What changed between the first two is taken to have
come with 10.0, unless QEMU's schema says with which version.
"""

from __future__ import annotations

import re

Version = tuple[int, int]
NEWEST = "10.2.0"
LATEST: Version = (10, 2)
BOTH_LISTS: Version = (10, 0)
"""-D prints allow-rpcs, too."""
NOT_ALLOWED: Version = (10, 0)
"""What is blocked, and what may not run while frozen, is "not allowed"; before, only the latter had a reason."""
EXEC_SAYS_WHY: Version = (10, 0)
"""A program that cannot be executed: the reason alone, which stood in "Guest agent command failed" before."""
PRIVILEGED_BYTES: Version = (9, 1)
"""guest-get-fsinfo has total-bytes-privileged (qga/qapi-schema.json)."""


def version(text: str) -> Version:
    """Return the first two numbers of a version such as 10.2.0; raise ValueError for any other text."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3}){0,2}", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r:.60}, expected a version of QEMU, such as 7.2.22 or {NEWEST}")
    return int(found[1]), int(found[2])
