"""The only place that issues FIFREEZE, FITHAW, FITRIM, LOOP_GET_STATUS64, syncfs and what else Python lacks.

The first five and mount(2) may block in state D for as long as a disk is stuck, so the supervisor calls none of them.
inotify only looks up a path; the supervisor uses it for paths of devices. fcntl.ioctl and ctypes release the
interpreter lock, so the threads of one worker freeze in parallel.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from enum import IntFlag

# linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int) and _IOWR('X', 121, struct fstrim_range)
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FITRIM = 0xC0185879
_FSTRIM_RANGE = struct.Struct("=QQQ")  # start, len, minlen
_U64_MAX = (1 << 64) - 1
# linux/loop.h: the number, and the first three members of struct loop_info64: lo_device, lo_inode, lo_rdevice
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64 = struct.Struct("=QQQ208x")
# linux/prctl.h, sys/mman.h
_PR_SET_PDEATHSIG = 1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
# linux/sched.h, linux/mount.h
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_MNT_DETACH = 2
_INOTIFY_EVENT = struct.Struct("iIII")  # linux/inotify.h: wd, mask, cookie, length of the name that follows

# asm-generic/unistd.h: a call as new as this has one number on all architectures that Debian has
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_OPENAT2 = 430, 431, 432, 437
_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 6  # linux/mount.h: FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC and the command
_OPEN_HOW = struct.Struct("=QQQ")  # linux/openat2.h: flags, mode, resolve
_AT_FDCWD = -100
_PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h
_FSWORD = ctypes.c_int if os.uname().machine == "s390x" else ctypes.c_long  # bits/typesizes.h: the type of f_type

_libc = ctypes.CDLL(None, use_errno=True)


def freeze(fd: int) -> None:
    """Freeze the file system that `fd` is open on.

    Raises OSError: EBUSY if it is frozen already, EOPNOTSUPP if its type cannot freeze, EIO if the disk refused.
    """
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> None:
    """Thaw the file system that `fd` is open on; raise OSError, EINVAL if it is not frozen."""
    fcntl.ioctl(fd, _FITHAW, 0)


def trim(fd: int, minimum: int) -> tuple[int, int]:
    """Discard the unused blocks of the file system that `fd` is open on, leaving out extents below `minimum` bytes.

    Returns the bytes discarded, and the minimum that the file system used. Raises OSError: ENOTTY or EOPNOTSUPP if the
    file system or its disk cannot discard.
    """
    wanted = bytearray(_FSTRIM_RANGE.pack(0, _U64_MAX, minimum & _U64_MAX))
    fcntl.ioctl(fd, _FITRIM, wanted)
    _, trimmed, gone_by = _FSTRIM_RANGE.unpack(wanted)
    return trimmed, gone_by


def loop_backing(fd: int) -> tuple[int, int]:
    """Return the device numbers of what the loop device that `fd` is open on lies on.

    The first is the st_dev of the backing file, the second its st_rdev, 0 unless it is a device itself. Whoever serves
    the file is asked: a FUSE server that hangs blocks this. Raises OSError: ENXIO if nothing is set up.
    """
    told = bytearray(_LOOP_INFO64.size)
    fcntl.ioctl(fd, _LOOP_GET_STATUS64, told)
    device, _inode, rdevice = _LOOP_INFO64.unpack(told)
    return device, rdevice


def syncfs(fd: int) -> None:
    """Write what is dirty on the file system that `fd` is open on (syncfs(2)); raise OSError."""
    _check(_libc.syncfs(fd))


def die_with_parent(signal: int) -> None:
    """Make the kernel send `signal` to this process when the thread that forked it ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0))


def lock_memory() -> None:
    """Lock in memory the pages that this process touches, so that it never waits for a swap file or a frozen disk.

    Raises OSError: EPERM or ENOMEM where RLIMIT_MEMLOCK forbids it.
    """
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def be_killed_like_others() -> None:
    """Give up the supervisor's protection from being killed when memory runs out (proc(5), oom_score_adj)."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")


def mount_tmpfs(folder: str) -> None:
    """Mount a small tmpfs that only this user can enter at `folder`; raise OSError, EPERM without CAP_SYS_ADMIN."""
    flags = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # the numbers of MS_NOSUID and so on
    _check(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, b"size=4m,mode=0700"))


def unshare_mounts() -> None:
    """Give the calling thread, and no other, a copy of its mount namespace from which nothing reaches another one.

    The copy ends with the thread. Raises OSError: EPERM where that is forbidden.
    """
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def mount(source: str, target: str, fstype: str) -> None:
    """Mount a device; raise OSError, EBUSY if something else uses it."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(0), None))


def instance(fstype: str) -> int:
    """Return a descriptor of the root of a file system of the kernel's own (debugfs), mounted nowhere.

    Raises OSError: ENODEV if the kernel has no such type, EPERM if that is forbidden.
    """
    context: int = _libc.syscall(_SYS_FSOPEN, fstype.encode(), _CLOEXEC)
    _check(min(context, 0))
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        fd: int = _libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0)
        _check(min(fd, 0))
    finally:
        os.close(context)
    return fd


def detach(path: str) -> None:
    """Unmount the topmost of what is mounted at a path, and all that is mounted on it, without asking who serves it.

    Raises OSError.
    """
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH))


class Inotify(IntFlag):
    """What to watch for, and what happened (inotify(7))."""

    ATTRIB = 0x4
    CLOSE = 0x8 | 0x10
    MOVED = 0x40 | 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    ONLYDIR = 0x01000000


def inotify_open() -> int:
    """Return a descriptor that does not block; raise OSError, EMFILE if the user has too many."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    _check(min(fd, 0))
    return fd


def inotify_watch(fd: int, path: str, what: Inotify) -> int:
    """Watch a path, and follow a link at its end; return the number of the watch. Raises OSError."""
    number: int = _libc.inotify_add_watch(fd, os.fsencode(path), int(what))
    _check(min(number, 0))
    return number


def inotify_unwatch(fd: int, number: int) -> None:
    """End a watch; raise OSError, EINVAL if it has ended by itself."""
    _check(_libc.inotify_rm_watch(fd, number))


def inotify_events(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield watch and name of each event ("": the watched path itself); watch -1 means that events were lost."""
    at = 0
    while at < len(data):
        watch, _mask, _cookie, length = _INOTIFY_EVENT.unpack_from(data, at)
        at += _INOTIFY_EVENT.size
        yield watch, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length


class Resolve(IntFlag):
    """How openat2(2) resolves a path (linux/openat2.h)."""

    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04


def openat2(path: bytes, flags: int, mode: int, resolve: Resolve, folder: int | None = None) -> int:
    """Open a path, below the descriptor `folder` if it is relative, resolving it as restricted (openat2(2)).

    Raises OSError: ELOOP for what `resolve` forbids, ENOSYS before Linux 5.6; ValueError for a path with a NUL.
    """
    if b"\0" in path:
        raise ValueError("embedded null byte")
    how = _OPEN_HOW.pack(flags, mode if flags & os.O_CREAT else 0, resolve)
    at = _AT_FDCWD if folder is None else folder
    fd: int = _libc.syscall(_SYS_OPENAT2, at, path, how, ctypes.c_size_t(len(how)))
    _check(min(fd, 0))
    return fd


def is_procfs(fd: int) -> bool:
    """Return whether what `fd` is open on is a file of procfs (fstatfs(2)); raise OSError."""
    told = ctypes.create_string_buffer(256)  # more than struct statfs has on any architecture
    _check(_libc.fstatfs(fd, told))
    kind = _FSWORD.from_buffer(told).value
    return kind == _PROC_SUPER_MAGIC


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
