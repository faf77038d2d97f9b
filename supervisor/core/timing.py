"""Deadlines, which is all that decisions need of a clock. Their heap is in supervisor/io/timers.py."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

OWNER = "core"  # the first item of every key that the core arms; such a key comes back as the event Due
Key = tuple[Hashable, ...]


class Deadlines(Protocol):
    """Keys and the seconds of the loop's clock at which they are due."""

    def arm(self, key: Key, at: float) -> None:
        """Set the second at which `key` is due, replacing an earlier one."""

    def cancel(self, key: Key) -> None:
        """Disarm `key`; nothing if it is not armed."""

    def left(self, key: Key, now: float) -> float:
        """Return the seconds until `key` is due, at least 0, or -1 if it is not armed."""
