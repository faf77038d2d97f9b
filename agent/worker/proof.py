"""What proves that an opened path is the one that was meant, and reading what procfs tells."""

from __future__ import annotations

import errno
import os
import stat

from .mountinfo import is_long

_CHUNK = 16 << 10  # bytes; a read of mountinfo gives a page at the most, and each read makes room for all of it
_STEP = 4000  # bytes of a path that are walked in one system call


def open_path(path: str) -> int:
    """Open a path with O_PATH, however long it is; raise OSError.

    With O_PATH, since opening a FIFO or a device that is bind-mounted could block.
    """
    if not is_long(path):
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    raw = path.encode("utf-8", "surrogateescape")
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    while raw := raw.lstrip(b"/"):
        end = len(raw) if len(raw) <= _STEP else raw.rindex(b"/", 0, _STEP)
        try:
            there = os.open(raw[:end], os.O_PATH | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here, raw = there, raw[end:]
    return here


def mount_id(fd: int) -> int:
    """Return the id of the mount that a descriptor was opened through (proc(5), fdinfo); raises OSError.

    No two mounts have the same id at the same time, in whatever namespaces.
    """
    _, found, number = read_text(f"/proc/self/fdinfo/{fd}").partition("\nmnt_id:")
    if not found:
        raise OSError(errno.ENODEV, "no mnt_id in fdinfo")
    return int(number.split(None, 1)[0])


def is_folder_or_file(fd: int) -> bool:
    """Return whether opening it for reading does not block, and FIFREEZE takes it."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)


def read_text(path: str) -> str:
    """Return the text of a file of procfs or sysfs; raise OSError that names the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = bytearray()
            while more := os.read(fd, _CHUNK):
                data += more
        finally:
            os.close(fd)
        # Not as a text file, which would treat a lone \r in a path as the end of a line.
        return data.decode("utf-8", "surrogateescape")
    except OSError as error:
        error.filename = path  # the error of a failed read does not name the file
        raise
