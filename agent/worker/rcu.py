"""The kernel's grace periods, made short while file systems freeze.

FIFREEZE takes three locks of writers (sb_wait_write in fs/super.c, percpu_down_write), and each waits for an RCU grace
period of some 8 ms (rcu_sync_enter), in which all processors must be seen outside of certain code. Writers stand still
for two of them. Expedited grace periods ask the processors instead, by interrupts, and take some 50 us. The kernel
expedites them itself while it boots; root may at any time (/sys/kernel/rcu_expedited, since Linux 4.1, 0 or 1). Where
processors must not be interrupted, as in real-time guests, /sys/kernel/rcu_normal is set, and wins.
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
    """Expedites grace periods if they are not expedited already, and puts that back. `able`: they were normal."""

    def __init__(self) -> None:
        self._yes = False
        self._fd = -1
        with contextlib.suppress(OSError):  # the supervisor has logged why
            self._fd = _open()
        self.able = self._normal()

    def _normal(self) -> bool:
        return self._fd >= 0 and os.pread(self._fd, 16, 0).strip() == b"0"

    def begin(self) -> None:
        """Expedite; nothing if that is done, or if they are not normal: whoever has set that wants it to stay."""
        with contextlib.suppress(OSError):  # a freeze is longer then, and no worse
            if self.able and not self._yes and self._normal():
                os.pwrite(self._fd, b"1", 0)
                self._yes = True

    def end(self) -> None:
        """Put back what `begin` changed."""
        if self._yes:
            os.pwrite(self._fd, b"0", 0)
            self._yes = False


def put_back() -> None:
    """Make grace periods normal, for a process that died between `begin` and `end`; raises OSError."""
    fd = _open()
    try:
        os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)


def _open() -> int:
    return os.open(EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
