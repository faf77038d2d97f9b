"""Opening a file system by whatever way leads to it, with proof that it is the right one.

The ways, in this order: a mount point that shows it, and asks only the kernel; such a one in another mount namespace;
a mount namespace of our own in which what covers it is detached; a mount point behind FUSE or a network. Behind the
last there may be a server that does not answer, so each such call has a thread of its own, and a second. To thaw, its
block device is mounted, too: what is frozen lives on when it is unmounted.

Whatever way was taken, the mount id of what was opened (/proc/self/fdinfo, proc(5)) must be, in the mountinfo of a
namespace, one of the superblock.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..api import records
from . import held, namespaces, private_mounts
from .mountinfo import MountInfo, parse_filesystems
from .namespaces import Namespace
from .probe import ask
from .proof import is_folder_or_file, mount_id, open_path, read_text
from .view import View

NOT_MOUNTED = "not mounted any more"
WAYS_MAX = 64  # behind servers in other namespaces; each has a thread if the others hang
PATIENCE = 2.5  # seconds for all ways that are tried after the first
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)  # no other way would do better
T = TypeVar("T")


class Opened(NamedTuple):
    """A descriptor of a file system, and the mount point in this namespace that led to it, "" if none did."""

    fd: int
    point: str = ""


class SuperblockGone(Exception):
    """The superblock does not exist any more, so it is not frozen."""


class FileSystemOpener:
    """Opens file systems. All threads use it; what is mounted is read only as often as needed."""

    def __init__(self, elsewhere: Sequence[Namespace] | None = None, view: View | None = None) -> None:
        """`elsewhere` are the other namespaces of interest, and `view` is what is mounted, if they were just read."""
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._here = View(())
        self._elsewhere = elsewhere
        self._view = view

    def open_all(self, devices: Iterable[str], until: float = math.inf) -> tuple[dict[str, Opened], set[str]]:
        """Return what could be opened of these superblocks (major:minor), and those to which no way leads.

        What is in neither may be opened later: its disk is slow, or the system refused. What hangs is waited for until
        that CLOCK_MONOTONIC second at the longest.
        """
        devices = list(devices)
        view = self._view or self._view_since(time.monotonic())  # whatever is opened by it is proved by a later one
        first = {device: way.mountpoint for device in devices if (way := view.way(device))}
        asked = {d: functools.partial(_or_error, functools.partial(open_path, p)) for d, p in first.items()}
        found = self._proved_all(ask(asked, _drop, until=until), time.monotonic(), until)
        hang = first.keys() - found.keys()
        opened = {device: Opened(fd, first[device]) for device, fd in found.items() if isinstance(fd, int)}
        left = [device for device in devices if device not in opened and device not in hang]
        ways = {d: functools.partial(_or_error, functools.partial(self.open, d)) for d in left}
        others = ask(ways, _drop, PATIENCE, until)
        opened |= {device: found for device, found in others.items() if isinstance(found, Opened)}
        refused = {device: found for device, found in others.items() if isinstance(found, OSError)}
        return opened, {device for device, error in refused.items() if error.errno == errno.ENODEV}

    def open(self, device: str) -> Opened:
        """Open the superblock (major:minor); raise OSError, ENODEV if no way leads to it."""
        refused: OSError | None = None
        view = self._view_since(time.monotonic())
        for way in (self._by_path, self._elsewhere_by_path, self._uncovered, self._behind_servers):
            try:
                return way(device, view)
            except OSError as error:
                if error.errno in _SCARCE:
                    raise
                refused = refused or error
        assert refused is not None
        # A path that does not exist any more is a way that leads nowhere.
        why = refused.strerror if refused.errno == errno.ENODEV else f"no way leads to it ({refused.strerror})"
        raise OSError(errno.ENODEV, why)

    def open_to_thaw(self, mount: records.Mount) -> int:
        """As `open`, but by its block device if it is mounted nowhere; raise SuperblockGone if it lives no more."""
        try:
            return self.open(mount.device).fd
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        device = held.device_in_use(mount)
        if not device:
            raise SuperblockGone
        return _to_read(private_mounts.mounted_by(device, mount.fstype, mount.device))

    # -- the ways

    def _by_path(self, device: str, view: View) -> Opened:
        return self._first(device, view.ways(device, safe=True))

    def _elsewhere_by_path(self, device: str, _view: View) -> Opened:
        refused = OSError(errno.ENODEV, NOT_MOUNTED)
        for namespace in self._others():
            for mount in namespace.view.ways(device, safe=True):
                try:
                    return _open_there(device, namespace, mount)
                except OSError as error:
                    refused = error
        raise refused

    def _uncovered(self, device: str, view: View) -> Opened:
        if not view.covered(device):
            raise OSError(errno.ENODEV, NOT_MOUNTED)
        return Opened(_to_read(private_mounts.uncover(device)))

    def _behind_servers(self, device: str, view: View) -> Opened:
        ways: dict[str, Callable[[], Opened | OSError]] = {}
        for mount in view.ways(device, safe=False):
            ways[mount.mountpoint] = functools.partial(_or_error, functools.partial(self._first, device, [mount]))
        there = [[(one, mount) for mount in one.view.ways(device, safe=False)] for one in self._others()]
        in_turn = (way for tier in itertools.zip_longest(*there) for way in tier if way)  # the first of each first
        for namespace, mount in itertools.islice(in_turn, WAYS_MAX):
            asked = functools.partial(_or_error, functools.partial(_open_there, device, namespace, mount))
            ways[f"{namespace.pid}{mount.mountpoint}"] = asked
        answers = ask(ways, _drop)
        found = [one for path in ways if isinstance(one := answers.get(path), Opened)]
        for one in found[1:]:
            os.close(one.fd)
        if not found:
            raise OSError(
                errno.ENODEV, NOT_MOUNTED if len(answers) == len(ways) else "who serves its way does not answer"
            )
        return found[0]

    def _first(self, device: str, mounts: Sequence[MountInfo]) -> Opened:
        refused = OSError(errno.ENODEV, NOT_MOUNTED)
        for mount in mounts:
            try:
                handle = open_path(mount.mountpoint)
                return Opened(self._proved(handle, device, time.monotonic()), mount.mountpoint)
            except OSError as error:
                refused = error
        raise refused

    # -- what is mounted

    def _proved(self, handle: int, device: str, opened_at: float) -> int:
        return _if_proved(handle, device, lambda: self._view_since(opened_at))

    def _proved_all(
        self, handles: Mapping[str, int | OSError], opened_at: float, until: float
    ) -> dict[str, int | OSError]:
        """Return what `_proved` does for each; absent are those that hang.

        To open a folder of XFS for reading takes its lock, which whoever makes a file in it has while he waits for the
        disk (xfs_dir_open in fs/xfs/xfs_file.c); and nothing can end a wait for that.
        """
        waiting = {device: handle for device, handle in handles.items() if isinstance(handle, int)}

        def prove(device: str) -> int | OSError:
            handle = waiting.pop(device, None)
            if handle is None:  # it was closed below, just now
                return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            return _or_error(functools.partial(self._proved, handle, device, opened_at))

        found = ask({device: functools.partial(prove, device) for device in waiting}, _drop, until=until)
        for device in [*waiting]:
            handle = waiting.pop(device, None)
            if handle is not None:
                os.close(handle)
        return found | {device: error for device, error in handles.items() if isinstance(error, OSError)}

    def _view_since(self, at: float) -> View:
        """Return what is mounted, read after that CLOCK_MONOTONIC second: what was open then keeps its mount id."""
        with self._lock:
            if self._read_at <= at:
                begun = time.monotonic()
                self._here, self._read_at = _read_view("self"), begun
            return self._here

    def _others(self) -> Sequence[Namespace]:
        with self._lock:
            if self._elsewhere is None:
                self._elsewhere, _ = namespaces.others((), parse_filesystems(read_text("/proc/filesystems")))
            return self._elsewhere


def _open_there(device: str, namespace: Namespace, mount: MountInfo) -> Opened:
    """Open a superblock by its mount in another namespace; raise OSError, ENODEV if it is another one."""
    handle = open_path(namespace.path(mount))
    return Opened(_if_proved(handle, device, functools.partial(_read_view, namespace.pid)))


def _read_view(process: str | int) -> View:
    return View(text=read_text(f"/proc/{process}/mountinfo"))


def _if_proved(handle: int, device: str, view: Callable[[], View]) -> int:
    """Close the handle and return a descriptor for reading of what it is; raise OSError, ENODEV if it is not that."""
    try:
        if is_folder_or_file(handle) and view().device(mount_id(handle)) == device:
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)
    raise OSError(errno.ENODEV, NOT_MOUNTED)


def _to_read(handle: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _or_error(call: Callable[[], T]) -> T | OSError:
    try:
        return call()
    except OSError as error:
        return error


def _drop(late: Opened | int | OSError) -> None:
    """Close what came too late."""
    if not isinstance(late, OSError):
        os.close(late.fd if isinstance(late, Opened) else late)
