"""How long a connection may keep the daemon waiting: the only place that arms and cancels a connection's timers."""

from __future__ import annotations

from ..core.timing import Deadlines

HALF = "half a message"  # has come, and the rest of it has not
UNREAD = "unread"  # a reply is not taken
REFUSED = "refused"  # too many clients: this one has not long to ask
DOUBT = "doubt"  # the device is at its end, and what was said just now may be the next host's (ADR 0017)


class Patience:
    """What one connection is waited for, and until when (`until`, seconds of the loop's clock)."""

    def __init__(self, timers: Deadlines, connection: int) -> None:
        self.until: dict[str, float] = {}
        self._timers = timers
        self._connection = connection

    def begin(self, what: str, until: float) -> None:
        """Wait until then, or as long as before if that is waited for already."""
        if what not in self.until:
            self.until[what] = until
            self._timers.arm(("connection", self._connection, what), until)

    def end(self, what: str) -> None:
        """Wait no more, since it came or was given up; nothing if it is not waited for."""
        if self.until.pop(what, None) is not None:
            self._timers.cancel(("connection", self._connection, what))

    def end_all(self) -> None:
        """Wait for nothing more: the connection is over."""
        for what in list(self.until):
            self.end(what)
