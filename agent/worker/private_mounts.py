"""A copy of the mount namespace for a moment: to uncover a file system, or to mount one that is mounted nowhere.

The copy belongs to one thread and ends with it; descriptors belong to the process. So what is opened in it stays open,
and no path of this process changes its meaning (ADR 0025). While it lives it has a reference to everything that is
mounted, so nothing may be asked in it that could hang: no FUSE, no network.
"""

from __future__ import annotations

import _thread
import errno
import os
import queue
import threading
from collections.abc import Callable

from . import kernel
from .mountinfo import parse_mountinfo
from .proof import is_folder_or_file, mount_id, open_path, read_text
from .view import View

PATIENCE = 2.0  # seconds
PLACE = "/sys"  # a folder that is always there
COVERS_MAX = 256


def uncover(device: str) -> int:
    """Open a file system (major:minor) of which all mount points are covered; return the descriptor (O_PATH).

    Raises OSError: ENODEV if it is not mounted here or cannot be uncovered, EPERM if that is forbidden.
    """

    def look() -> int:
        refused = OSError(errno.ENODEV, "all its mount points are covered")
        for number in range(len(_view().of(device))):
            try:
                return _uncovered(device, number)
            except OSError as error:
                refused = error
        raise refused

    return _apart(look)


def mounted_by(source: str, fstype: str, device: str) -> int:
    """Mount the block device of a file system that lives, but is mounted nowhere; return a descriptor (O_PATH) of it.

    Raises OSError: EBUSY if something else has the device.
    """

    def look() -> int:
        kernel.mount(source, PLACE, fstype)
        handle = open_path(PLACE)
        if _is(handle, device, _view):
            return handle
        raise OSError(errno.ENODEV, "another file system is on its device")

    return _apart(look)


def _uncovered(device: str, number: int) -> int:
    """Detach what covers the mount of that number, then open it."""
    for _ in range(COVERS_MAX):
        view = _view()
        mounts = view.of(device)
        if number >= len(mounts) or not view.is_safe(mounts[number]):
            break
        mount = mounts[number]
        if cover := view.cover(mount):
            kernel.detach(cover)
            continue
        handle = open_path(mount.mountpoint)
        if _is(handle, device, lambda: view):  # noqa: B023 - called here and now
            return handle
        break
    raise OSError(errno.ENODEV, "all its mount points are covered")


def _is(handle: int, device: str, view: Callable[[], View]) -> bool:
    """Return whether that is what the handle is open on; if not, or if it cannot be known, close it."""
    found = False
    try:
        found = view().device(mount_id(handle)) == device and is_folder_or_file(handle)
    finally:
        if not found:
            os.close(handle)
    return found


def _view() -> View:
    return View(parse_mountinfo(read_text("/proc/thread-self/mountinfo")))


def _apart(look: Callable[[], int]) -> int:
    """Return what `look` returns in a thread with mounts of its own; raise OSError, ETIMEDOUT if that takes long."""
    answers: queue.SimpleQueue[int | OSError] = queue.SimpleQueue()
    lock, given_up = threading.Lock(), threading.Event()

    def run() -> None:
        try:
            kernel.unshare_mounts()
            handle = look()
            with lock:
                if given_up.is_set():
                    os.close(handle)
                else:
                    answers.put(handle)
        except OSError as error:
            answers.put(error)
        except BaseException as error:
            answers.put(OSError(errno.EIO, f"{type(error).__name__}: {error}"))
            raise

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no more threads or processes") from None
    try:
        answer = answers.get(timeout=PATIENCE)
    except queue.Empty:
        with lock:
            given_up.set()
        if answers.empty():  # else it came just now
            raise OSError(errno.ETIMEDOUT, "looking for it in a mount namespace of its own took too long") from None
        answer = answers.get()
    if isinstance(answer, OSError):
        raise answer
    return answer
