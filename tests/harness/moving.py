"""Moves a mount where a daemon sees it: `python -m harness.moving PID FROM TO`, in the mount namespace of PID.

A mount below a shared one cannot be moved (mount_namespaces(7)), so the area is made private there first: what the
harness mounts and unmounts afterwards does not reach that daemon any more.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from harness import HarnessError, linux
from harness.processes import python

MS_MOVE = 8192


def move(pid: int, area: Path, where: Path, to: Path) -> None:
    """Move the mount at `where` to `to`, for the daemon with that pid."""
    command = python("harness.moving", str(pid), str(area), str(where), str(to))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=20)
    if done.returncode:
        raise HarnessError(f"moving {where} to {to}: {done.stderr.strip()}")


def main() -> None:
    pid, area, where, to = sys.argv[1:]
    with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), linux.CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    linux.mount("", area, flags=linux.MS_PRIVATE)
    os.mkdir(to)
    linux.mount(where, to, flags=MS_MOVE)


if __name__ == "__main__":
    main()
