"""A status record and whose it is: what the callers of `progress` are given."""

from __future__ import annotations

from collections.abc import Callable

from ..agent.api.records import Status


class GuestStatus(Status):
    """The status record of one agent, and the agent's `url`."""

    url: str = ""

    @classmethod
    def of(cls, url: str, record: Status) -> GuestStatus:
        """Return the record as that of the agent at `url`."""
        return cls(**{name: getattr(record, name) for name in Status.__match_args__}, url=url)

    def newer_than(self, before: Status | None) -> bool:
        """Return whether it says something that `before` does not: `seq` is higher, or the agent was started again."""
        if before is None or self.seq > before.seq:
            return True
        return self.seq != before.seq and self.uptime < before.uptime


Tell = Callable[[GuestStatus], object]
