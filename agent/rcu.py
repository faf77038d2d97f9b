"""The kernel's grace periods, made short while file systems freeze.

FIFREEZE takes three locks of writers (sb_wait_write in fs/super.c, percpu_down_write), and each waits for an RCU grace
period of some 8 ms (rcu_sync_enter), in which all processors must be seen outside of certain code. Writers stand still
for two of them. Expedited grace periods ask the processors instead, by interrupts, and take some 50 us. The kernel
expedites them itself while it boots; root may at any time (/sys/kernel/rcu_expedited, since Linux 4.1, 0 or 1). Where
processors must not be interrupted, as in real-time guests, /sys/kernel/rcu_normal is set, and wins.
"""

from __future__ import annotations

import os

EXPEDITED = "/sys/kernel/rcu_expedited"


def why_not() -> str:
    """Return why grace periods cannot be expedited, empty if they can."""
    try:
        os.close(os.open(EXPEDITED, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return f"{EXPEDITED}: {error.strerror}"
    return ""


def is_normal() -> bool:
    """Return whether grace periods are not expedited now, and can be."""
    try:
        with open(EXPEDITED, encoding="ascii") as file:
            return file.read().strip() == "0" and not why_not()
    except OSError:
        return False


def expedite(yes: bool) -> None:
    """Have grace periods expedited, or not any more; raises OSError."""
    with open(EXPEDITED, "w", encoding="ascii") as file:
        file.write(str(int(yes)))
