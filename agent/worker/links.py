"""Opening a path in a folder that somebody else may write, where links could lead into the agent itself.

A magic link of procfs (/proc/PID/fd/N, cwd, root, exe) leads to what a process has open, past all permissions of the
way there; in a worker /proc/self is the agent, running as root. openat2(2) refuses such links. Where the kernel (before
5.6) or a filter has no openat2, the path is walked here. ADR 0026 says where such links are refused.
"""

from __future__ import annotations

import errno
import os

from . import kernel

LINKS_MAX = 40  # as the kernel follows (path_resolution(7))
_PLAIN = (b"self", b"thread-self", b"mounts", b"net")  # the links of procfs that are mere texts, all in its root


def open_plain(path: bytes, flags: int, mode: int = 0o666, *, folder: int | None = None, follow: bool = True) -> int:
    """Open a path, below the descriptor `folder` if it is relative, and follow no magic link.

    Unless `follow`, no symbolic link is followed at all. Raises OSError: ELOOP for such a link. O_CLOEXEC is set.
    """
    flags |= os.O_CLOEXEC
    resolve = kernel.Resolve.NO_MAGICLINKS if follow else kernel.Resolve.NO_SYMLINKS
    try:
        return kernel.openat2(path, flags, mode, resolve, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # a filter answers either; the walk tells what is true
            raise
    return _walk(path, flags, mode, folder, follow=follow)


def open_asked(path: bytes, flags: int, mode: int = 0o666) -> int:
    """Open a path that a host asked for, with the rights of root; raise OSError.

    The host may name a magic link itself (/proc/1/root/etc, /dev/fd/0). But a link of a user elsewhere leads to none:
    what the agent has open is no file of the guest.
    """
    if path.startswith((b"/proc/", b"/dev/")):
        return os.open(path, flags | os.O_CLOEXEC, mode)
    return open_plain(path, flags, mode)


def _walk(path: bytes, flags: int, mode: int, folder: int | None, *, follow: bool) -> int:
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    names = path.split(b"/")[::-1]  # what is left to walk, the next one last
    start = b"/" if path.startswith(b"/") else b"."
    here = os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    links = 0
    try:
        while True:
            name = names.pop()
            last = not any(names)
            if name in (b"", b".") and not last:
                continue
            name = name or b"."
            if last and names:  # a slash at the end
                if flags & os.O_CREAT:
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                flags |= os.O_DIRECTORY
            itself = last and not names and flags & (os.O_EXCL | os.O_NOFOLLOW)
            target = b"" if itself else _target(name, here)
            if target:
                if not follow or (kernel.is_procfs(here) and name not in _PLAIN) or (links := links + 1) > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                names = (names if not last else [b""] * bool(names)) + target.split(b"/")[::-1]
                there = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if target.startswith(b"/") else -1
            elif last:
                return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
            else:
                there = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            if there >= 0:
                os.close(here)
                here = there
    finally:
        os.close(here)


def _target(name: bytes, folder: int) -> bytes:
    """Return where a symbolic link leads, b"" if it is none or is missing."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return b""  # whatever it is, opening it tells
