"""Slow disks: block devices that take writes only at a rate."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import Unmet

LIMITS = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
"""Of the root group of the first version of control groups: the second cannot slow down what the kernel writes back."""
_UNTIL_TOLD = 'trap "" INT TERM HUP; echo "$1 $2" >"$3"; echo; read -r _; echo "$1 0" >"$3"'


@contextlib.contextmanager
def slow(device: str, rate: int) -> Iterator[None]:
    """Let a device (/dev/NAME) write so many bytes a second; a shell takes the limit away, however this process ends.

    Raises Unmet where that cannot be had.
    """
    if not LIMITS.exists():
        raise Unmet(f"needs {LIMITS}")
    number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
    shell = subprocess.Popen(
        ["sh", "-c", _UNTIL_TOLD, "sh", number, str(rate), str(LIMITS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert shell.stdout is not None
        if not shell.stdout.readline():
            raise Unmet(f"needs a limit for {device} in {LIMITS}")
        yield
    finally:
        shell.communicate()
