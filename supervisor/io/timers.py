"""All deadlines of the supervisor in one heap: it sleeps until the nearest, and wakes for nothing else. Reads no clock.

A key is a tuple whose first item names its owner: ("core", ...), ("watchers",), ("connection", number),
("listener", spec), ("device", spec), ("orphan", number), ("standby",), ("watchdog",), ("log-writer",).
"""

from __future__ import annotations

import heapq

from ..core.timing import Key

STALE_MAX = 64  # out-of-date entries that the heap may have in addition to as many as are valid


class Timers:
    """Keys, and the seconds at which they are due, on the clock of the times that are passed in.

    A key that is armed anew or cancelled leaves its old entry in the heap; that is skipped when it comes to the top.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._armed: dict[Key, tuple[float, int, Key]] = {}
        self._count = 0  # so that keys that are due at the same moment stay in the order in which they were armed

    def arm(self, key: Key, at: float) -> None:
        """Set the second at which `key` is due, replacing an earlier one."""
        self._count += 1
        entry = self._armed[key] = (at, self._count, key)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._armed) + STALE_MAX:
            self._heap = sorted(self._armed.values())

    def cancel(self, key: Key) -> None:
        """Disarm `key`; nothing if it is not armed."""
        self._armed.pop(key, None)

    def left(self, key: Key, now: float) -> float:
        """Return the seconds until `key` is due, at least 0, or -1 if it is not armed."""
        entry = self._armed.get(key)
        return -1.0 if entry is None else max(0.0, entry[0] - now)

    def nearest(self) -> float | None:
        """Return when the next key is due, None if no key is armed."""
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float, owner: str = "") -> Key | None:
        """Disarm and return the earliest key that is due, or None; with `owner`, only one of that owner."""
        others, found = [], None
        while found is None and self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            key = entry[2]
            if self._armed.get(key) is not entry:
                continue
            if owner and key[0] != owner:
                others.append(entry)
                continue
            del self._armed[key]
            found = key
        for entry in others:
            heapq.heappush(self._heap, entry)
        return found
