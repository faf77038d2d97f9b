"""Shortening the kernel's grace periods while file systems freeze (ADR 0022).

FIFREEZE takes three locks of writers (sb_wait_write in fs/super.c, percpu_down_write), and each waits for an RCU grace
period of some 8 ms (rcu_sync_enter), until every processor was seen outside of certain code. Writers stand still for
two of them. An expedited grace period interrupts the processors instead of waiting, and takes some 50 us. The kernel
expedites them while it boots; root may at any time (/sys/kernel/rcu_expedited, since Linux 4.1, 0 or 1). Where
processors must not be interrupted, as in real-time guests, /sys/kernel/rcu_normal is set, and overrides this.
"""

from __future__ import annotations

import contextlib
import os

EXPEDITED = "/sys/kernel/rcu_expedited"


def why_not() -> str:
    """Return why grace periods cannot be expedited, empty if they can."""
    try:
        os.close(_open())
    except OSError as error:
        return f"{EXPEDITED}: {error.strerror}"
    return ""


class Expediter:
    """A switch that expedites grace periods and puts them back. `able`: they were normal, so it may expedite them."""

    def __init__(self) -> None:
        self._begun = False
        self._fd = -1
        with contextlib.suppress(OSError):  # the supervisor has logged why
            self._fd = _open()
        self.able = self._normal()

    def _normal(self) -> bool:
        return self._fd >= 0 and os.pread(self._fd, 16, 0).strip() == b"0"

    def begin(self) -> None:
        """Expedite grace periods, unless that is done already, or they are not normal: that is somebody else's wish."""
        with contextlib.suppress(OSError):  # the freeze only takes longer then
            if self.able and not self._begun and self._normal():  # ADR 0022: put back only what was normal
                os.pwrite(self._fd, b"1", 0)
                self._begun = True

    def end(self) -> None:
        """Put back what `begin` changed."""
        if self._begun:
            os.pwrite(self._fd, b"0", 0)
            self._begun = False


def put_back() -> None:
    """Make grace periods normal for a process that died between `begin` and `end`; raise OSError."""
    fd = _open()
    try:
        os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)


def _open() -> int:
    return os.open(EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
