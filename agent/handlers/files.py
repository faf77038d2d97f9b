"""RPCs on the guest's files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from ..errors import Code, Fault, failed

if TYPE_CHECKING:
    from ..worker import Worker

GETFILE_MAX = 16 << 20


OPTIONS_MAX = 1 << 20


def read_options(_worker: Worker, args: dict[str, Any]) -> str:
    """Return the text of the configuration file `path`, at most 1 MiB; empty if there is none and none is `needed`."""
    try:
        with open(args["path"], encoding="utf-8", errors="surrogateescape") as file:
            return file.read(OPTIONS_MAX)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not args["needed"]:
            return ""
        raise failed(error, args["path"]) from None


def getfile(worker: Worker, args: dict[str, Any]) -> bytes:
    """Return the contents of the regular file `path`, at most 16 MiB.

    Raises Fault PARAMS if the path is not absolute, FAILED if it is no regular file, too long, or the system refuses.
    """
    path = args["path"]
    if not path.startswith("/"):
        raise Fault(Code.PARAMS, f"va.getfile: path {path[:80]!r} is not absolute")
    worker.title(f"reading {path}")
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Fault(Code.FAILED, f"va.getfile: {path} is not a regular file")
            # A file of /proc says size 0: only reading tells how long it is.
            blocks, size = [], 0
            while block := file.read(1 << 20):
                size += len(block)
                if size > GETFILE_MAX:
                    raise Fault(Code.FAILED, f"va.getfile: {path} is over {GETFILE_MAX} bytes (EFBIG)")
                blocks.append(block)
            return b"".join(blocks)
    except OSError as error:
        raise failed(error, f"va.getfile: {path}") from None
