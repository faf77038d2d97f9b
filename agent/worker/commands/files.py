"""guest-file-*: a host opens a file, and reads or writes it piece by piece.

A worker holds one open file. It reads and writes the descriptor without a buffer, so that a write reports its own
errors and nothing is left to flush. Nothing waits: a FIFO or a terminal that is empty answers immediately, as in
qemu-ga.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from ...api.errors import Code, Fault
from ..base64_codec import from_base64, octets, to_base64
from ..links import open_asked
from ..resource import Resource

if TYPE_CHECKING:
    from ..context import Args, Worker

READ_MAX = 48 << 20
READ_DEFAULT = 4 << 10
_PIECE = 1 << 20
_NEW = os.O_CREAT | os.O_EXCL
_BASES = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}
_WHENCE = {"set": os.SEEK_SET, "cur": os.SEEK_CUR, "end": os.SEEK_END}


class OpenFile(Resource):
    """An open file; `key` is its handle."""

    def __init__(self, handle: int, fd: int) -> None:
        self.key = self.value = handle
        self.fd = fd

    def close(self) -> None:
        """Close the file if guest-file-close has not; an error is ignored, since there is nobody to answer."""
        if not self.ended:
            self.ended = True
            os.close(self.fd)


def flags_of(mode: str) -> int:
    """Return the open(2) flags of a mode of fopen(3), one of `FILE_MODES` of agent/api/commands.py."""
    base = _BASES[mode[0]]
    if "+" in mode:
        base = base & ~os.O_WRONLY | os.O_RDWR
    return base


def file_open(worker: Worker, args: Args) -> OpenFile:
    """Open `path` in `mode` (default "r"); return the file for the worker to hold as `handle`.

    Raises Fault FAILED if the system refuses.
    """
    path, mode = args["path"], "r" if args["mode"] is None else args["mode"]
    flags = flags_of(mode) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    worker.title(f"opening {path}")
    name = octets(path)
    try:
        try:
            # In a sticky folder O_CREAT on someone else's file is refused (fs.protected_regular), and a dangling link
            # would be followed. So a new file is made with O_EXCL, and an existing one is opened without O_CREAT.
            fd = open_asked(name, flags | _NEW if flags & os.O_CREAT else flags)
        except FileExistsError:
            fd = open_asked(name, flags & ~os.O_CREAT)
    except OSError as error:
        raise Fault(Code.FAILED, f"failed to open file '{path}' (mode: '{mode}'): {error.strerror}") from None
    worker.title(f"handle {args['handle']}, {path}")
    return OpenFile(args["handle"], fd)


def file_close(file: OpenFile, _args: Args) -> dict[str, Any]:
    """Close the file, in any case; raise Fault FAILED if the system lost what was written (close(2))."""
    file.ended = True
    try:
        os.close(file.fd)
    except OSError as error:
        raise _refused("failed to close handle", error) from None
    return {}


def file_read(file: OpenFile, args: Args) -> dict[str, Any]:
    """Read up to `count` bytes (default 4 KiB, at most 48 MiB); `eof` says that the end was reached.

    Raises Fault: PARAMS for a count out of bounds; FAILED if the system refuses, with EAGAIN if there is nothing now.
    """
    count = READ_DEFAULT if args["count"] is None else args["count"]
    if not 0 <= count <= READ_MAX:
        raise Fault(Code.PARAMS, f"value '{count}' is invalid for argument count")
    pieces: list[bytes] = []
    size, eof = 0, False
    while size < count and not eof:
        try:
            piece = os.read(file.fd, min(count - size, _PIECE))
        except OSError as error:
            if error.errno == errno.EAGAIN and pieces:
                break
            raise _refused("failed to read file", error) from None
        eof = not piece
        size += len(piece)
        pieces.append(piece)
    return {"count": size, "buf-b64": to_base64(b"".join(pieces)), "eof": eof}


def file_write(file: OpenFile, args: Args) -> dict[str, Any]:
    """Write the first `count` bytes (default: all) of `buf-b64`, all of them or a fault.

    Raises Fault: PARAMS for a count over the size of the data, or bad base64; FAILED if the system refuses, also after
    a part was written, as when the disk is full.
    """
    data = from_base64(args["buf-b64"])
    count = len(data) if args["count"] is None else args["count"]
    if not 0 <= count <= len(data):
        raise Fault(Code.PARAMS, f"value '{count}' is invalid for argument count")
    left = memoryview(data)[:count]
    try:
        while left:
            left = left[os.write(file.fd, left) :]
    except OSError as error:
        raise _refused("failed to write to file", error) from None
    return {"count": count, "eof": False}


def file_seek(file: OpenFile, args: Args) -> dict[str, Any]:
    """Move to `offset` from the start, the position or the end (`whence` 0, 1, 2 or set, cur, end).

    Raises Fault: PARAMS for another whence, FAILED if the system refuses.
    """
    whence = args["whence"]
    if isinstance(whence, str):
        if whence not in _WHENCE:
            raise Fault(Code.PARAMS, f"Parameter 'whence' does not accept value '{whence}'")
        whence = _WHENCE[whence]
    elif whence not in _WHENCE.values():
        raise Fault(Code.PARAMS, f"invalid whence code {whence}")
    try:
        position = os.lseek(file.fd, args["offset"], whence)
    except OSError as error:
        raise _refused("failed to seek file", error) from None
    return {"position": position, "eof": False}


def file_flush(_file: OpenFile, _args: Args) -> dict[str, Any]:
    """Do nothing: the kernel has all that was written. As in qemu-ga, this is not an fsync."""
    return {}


def _refused(doing: str, error: OSError) -> Fault:
    return Fault(Code.FAILED, f"{doing}: {error.strerror}")
