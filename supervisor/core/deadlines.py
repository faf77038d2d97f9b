"""The supervisor's deadlines: it sleeps to the nearest and wakes for nothing else."""

from __future__ import annotations

from collections.abc import Hashable


class Deadlines:
    """Keys and the seconds (of the clock that is passed in) at which they are due."""

    def __init__(self) -> None:
        self._at: dict[Hashable, float] = {}

    def arm(self, key: Hashable, at: float) -> None:
        """Have `key` come due at `at`, instead of when it would have."""
        self._at[key] = at

    def cancel(self, key: Hashable) -> None:
        """Have `key` not come due; nothing if it is not armed."""
        self._at.pop(key, None)

    def left(self, key: Hashable, now: float) -> float:
        """Return the seconds until `key` is due, at least 0, or -1 if it is not armed."""
        return max(0.0, self._at[key] - now) if key in self._at else -1.0

    def nearest(self) -> float | None:
        """Return when the next key is due, or None."""
        return min(self._at.values(), default=None)

    def take_due(self, now: float) -> Hashable | None:
        """Disarm and return the earliest key that is due, or None."""
        key = min(self._at, key=self._at.__getitem__, default=None)
        if key is None or self._at[key] > now:
            return None
        del self._at[key]
        return key
