"""Opening a file system by one of its mount points, with proof that it is the right one."""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time

from ..api import records
from . import sysfs
from .mountinfo import MountInfo
from .probe import mount_id


class Mounted:
    """Which mount belongs to which superblock (mountinfo). All threads use it; it is read only as often as needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._mounts: dict[int, MountInfo] = {}

    def now(self, opened_at: float) -> dict[int, MountInfo]:
        """Return the mounts by id, read after that CLOCK_MONOTONIC second: what was open then keeps its id."""
        with self._lock:
            if self._read_at <= opened_at:
                begun = time.monotonic()
                self._mounts = {info.mount_id: info for info in sysfs.read_mountinfo()}
                self._read_at = begun
            return self._mounts


def open_file_system(mount: records.Mount, mounted: Mounted) -> int:
    """Open a mount point of the file system and return the descriptor.

    The path could lead to something that was mounted over it since. So the mount id of what was opened
    (/proc/self/fdinfo, proc(5)) must be one that mountinfo gives for the superblock. It is opened with O_PATH first,
    since opening a FIFO or a device that is bind-mounted could block. Raises OSError, ENODEV if no mount point leads
    there.
    """
    refused = OSError(errno.ENODEV, "not mounted any more")
    tried = set()
    begun = time.monotonic()
    paths = [mount.mountpoint, *mount.aliases]
    while paths:
        tried.add(path := paths.pop(0))
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            refused = error
        else:
            try:
                mode = os.fstat(handle).st_mode
                found = mounted.now(time.monotonic()).get(mount_id(handle))
                if found and found.device == mount.device and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                refused = error
            finally:
                os.close(handle)
        if not paths:  # it may be mounted at another place by now
            there = {info.mountpoint for info in mounted.now(begun).values() if info.device == mount.device}
            paths = sorted(there - tried)
            refused = refused if there else OSError(errno.ENODEV, "not mounted any more")
    raise refused


def is_gone(mount: records.Mount, sys: str = "/sys") -> bool:
    """Return whether the kernel has no such block device: nothing can be frozen on it any more.

    An anonymous number (0:N, as of btrfs) is in no list, so of such a file system that is not known.
    """
    return not mount.device.startswith("0:") and not os.path.lexists(f"{sys}/dev/block/{mount.device}")
