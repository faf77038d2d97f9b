"""Lines: the host's end of a pseudo-terminal, whose other end the daemon has as a serial line or a port."""

from __future__ import annotations

import errno
import os
import select
import time
from pathlib import Path
from types import TracebackType

from .hosts import request


class Line:
    """A pseudo-terminal whose slave `path` leads to, as a link of udev does; `close` hangs it up, the link stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.master, slave = os.openpty()  # as a login terminal: it echoes and changes bytes
        os.set_blocking(self.master, False)
        self.terminal = os.ttyname(slave)
        self._slave = slave
        fresh = path.with_name(path.name + ".new")
        fresh.symlink_to(self.terminal)
        fresh.rename(path)

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for fd in (self._slave, self.master):
            if fd >= 0:
                os.close(fd)
        self._slave = self.master = -1

    def send(self, data: bytes, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while data:
            ready = select.select([], [self.master], [], max(0.0, deadline - time.monotonic()))[1]
            if not ready:
                raise TimeoutError(f"{len(data)} bytes are not taken")
            data = data[os.write(self.master, data) :]

    def read(self, size: int, timeout: float = 10) -> bytes:
        """Return exactly `size` bytes; raise TimeoutError with what came."""
        found = b""
        deadline = time.monotonic() + timeout
        while len(found) < size:
            ready = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise TimeoutError(f"{size} bytes were expected, only {found!r} came")
            found += os.read(self.master, size - len(found))
        return found

    def rest(self) -> bytes:
        """Return what has come and was not read."""
        try:
            return os.read(self.master, 1 << 20)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EIO):
                return b""
            raise

    def call(self, method: str, *params: object, timeout: float = 10) -> bytes:
        """Call by XML-RPC; return the reply with its headers."""
        self.send(request(method, *params))
        return self.reply(timeout)

    def reply(self, timeout: float = 10) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.read(1, timeout)
        length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
        return head + self.read(length, timeout)
