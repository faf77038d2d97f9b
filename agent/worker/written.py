"""Counters of the sectors written to the own block devices of file systems, from sysfs: evidence that nothing was.

They are opened while nothing is frozen, and then only read: that asks no disk. A device gives no evidence if its
counters cannot be read or are off, or if its file system has an active swap file, to which the kernel writes although
the file system is frozen.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Iterable, Mapping

from ..api.records import Mount
from .mountinfo import unescape
from .probe import ask, mount_at
from .proof import read_text
from .sysfs import read_mountinfo
from .view import View

_SECTORS_WRITTEN = 6  # the seventh field of `stat` (Documentation/block/stat.rst); discards have fields of their own
_SHARE = 4  # of the files that may be open, one in so many may be a counter: without the others there is no freeze


class WriteCounters:
    """The counters of the own devices of these file systems, as far as they are evidence."""

    def __init__(self, mounts: Iterable[Mount], sysfs: str = "/sys", procfs: str = "/proc") -> None:
        self._procfs = procfs
        self._swaps = _swap_files(procfs)
        swapped = _superblocks_of(self._swaps) if self._swaps else self._swaps
        names = {
            name: None
            for mount in mounts
            if swapped is not None and mount.device not in swapped
            for name in mount.devices
        }
        if len(names) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE:
            names.clear()
        self._opened = {
            name: fd for name in names if (fd := _open(f"{sysfs}/class/block/{name.replace('/', '!')}")) >= 0
        }

    def read(self) -> Mapping[str, int]:
        """Return the sectors written so far by the names of the devices; absent are those that give no evidence."""
        if not self._opened or _swap_files(self._procfs) != self._swaps:
            return {}  # a swap file more or less since: of which file system, only asking its path would tell
        found = {}
        for name, fd in self._opened.items():
            try:
                found[name] = int(os.pread(fd, 512, 0).split(maxsplit=_SECTORS_WRITTEN + 1)[_SECTORS_WRITTEN])
            except (OSError, IndexError, ValueError):
                continue  # it vanished
        return found


def flush_others(mount: Mount) -> None:
    """Write what programs have written to the other devices of a file system, past it; this blocks on their disks.

    syncfs and FIFREEZE do that for the first device only. On an external journal it would be written while frozen.
    """
    for name in mount.devices if len(mount.devices) > 1 else ():
        # What is refused here is no error of the file system, and only the evidence may suffer.
        with contextlib.suppress(OSError):
            fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _open(folder: str) -> int:
    """Open the counters of the device with that folder in sysfs; return -1 if there are none, or they are off."""
    try:
        for queue in (f"{folder}/queue", f"{folder}/../queue"):  # the second is a partition's
            try:
                counts = read_text(f"{queue}/iostats").strip() != "0"
                break
            except FileNotFoundError:
                counts = False
        return os.open(f"{folder}/stat", os.O_RDONLY | os.O_CLOEXEC) if counts else -1
    except OSError:
        return -1  # vanished, forbidden, or no more descriptors: no evidence, and that is told


def _swap_files(procfs: str) -> frozenset[str] | None:
    """Return the paths of the active swap files, as /proc/swaps (proc(5)) has them; a swap partition is no file.

    None if that cannot be known.
    """
    try:
        lines = read_text(f"{procfs}/swaps").splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return frozenset()
    except OSError:
        return None  # forbidden, or no more descriptors: no evidence, but no reason to refuse or break a freeze
    return frozenset(line.split()[0] for line in lines if line.split()[1:2] == ["file"])


def _superblocks_of(swaps: Iterable[str]) -> frozenset[str] | None:
    """Return the superblocks (major:minor) that hold these swap files; None if that cannot be known of each."""
    view = View(read_mountinfo())
    paths = {path: unescape(path) for path in swaps}
    if not all(map(view.is_safe_path, paths.values())):
        return None
    found = ask({path: functools.partial(mount_at, real) for path, real in paths.items()})
    holders = frozenset(view.device(mount) for mount, _ in found.values())
    return holders if len(found) == len(paths) and "" not in holders else None
