"""Two descriptors in reserve: where no more can be had, a host that comes to thaw is still let in (ADR 0029)."""

from __future__ import annotations

import contextlib
import fcntl
import os

COUNT = 2


class Descriptors:
    """Descriptors that are open on nothing in particular, and closed when they are needed."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._nothing = os.eventfd(0, os.EFD_CLOEXEC)
        self.restock()

    def restock(self) -> None:
        """Take as many as are missing, if they can be had."""
        with contextlib.suppress(OSError):
            while len(self._kept) < COUNT:
                self._kept.append(fcntl.fcntl(self._nothing, fcntl.F_DUPFD_CLOEXEC, 0))

    def lend(self) -> bool:
        """Give one back to the kernel, so that the next call gets it; return whether there was one."""
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def close(self) -> None:
        """Close them all."""
        while self.lend():
            pass
        os.close(self._nothing)
