"""A FUSE file system with one folder, `in`: `python -m harness.fuse PLACE` mounts it, says `ready`, and serves it.

It speaks the kernel's protocol itself (linux/fuse.h), since no package can be relied on. Everybody may use it, each
walk asks it again, and while it is stopped (SIGSTOP) whoever walks through it waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import linux
from harness.processes import Child, python

LOOKUP, FORGET, GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, FLUSH, BATCH_FORGET = (
    1,
    2,
    3,
    17,
    26,
    27,
    28,
    29,
    25,
    42,
)
ROOT, FOLDER = 1, 2
_IN, _OUT = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")


def attributes(node: int) -> bytes:
    return struct.pack("=6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)


def answer(opcode: int, node: int, body: bytes) -> bytes | int | None:
    """Return the answer, an errno, or None if there is none."""
    match opcode:
        case _ if opcode == INIT:
            return struct.pack("=4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, *[0] * 8)
        case _ if opcode == LOOKUP:
            if node != ROOT or body.rstrip(b"\0") != b"in":
                return errno.ENOENT
            return struct.pack("=4Q2I", FOLDER, 0, 0, 0, 0, 0) + attributes(FOLDER)
        case _ if opcode == GETATTR:
            return struct.pack("=Q2I", 0, 0, 0) + attributes(node)
        case _ if opcode == STATFS:
            return struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        case _ if opcode in (OPENDIR, READDIR, RELEASEDIR, FLUSH):
            return struct.pack("=Q2I", 0, 0, 0) if opcode == OPENDIR else b""
        case _ if opcode in (FORGET, BATCH_FORGET):
            return None
    return errno.ENOSYS


def main() -> None:
    place = sys.argv[1]
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other"
    linux.mount("fuse", place, "fuse.test", data=data)
    print("ready", flush=True)
    while True:
        try:
            request = os.read(fd, 1 << 17)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.ENOENT, errno.EINTR):  # the request was given up
                continue
            raise
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        said = answer(opcode, node, request[_IN.size :])
        if said is None:
            continue
        number, body = (-said, b"") if isinstance(said, int) else (0, said)
        with contextlib.suppress(FileNotFoundError):  # the request was given up
            os.write(fd, _OUT.pack(_OUT.size + len(body), number, unique) + body)


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Child]:
    """Serve such a file system at a folder; yield the process, which may be stopped."""
    child = Child(python("harness.fuse", str(place)), f"the FUSE server of {place}")
    try:
        assert child.line(20) == "ready"
        yield child
    finally:
        child.process.send_signal(signal.SIGCONT)
        linux.umount(str(place), linux.MNT_DETACH)
        child.close()


if __name__ == "__main__":
    main()
