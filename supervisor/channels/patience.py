"""How long a host may keep the daemon waiting: the only place that arms and cancels timers of a connection."""

from __future__ import annotations

from ..core.timing import Deadlines

HALF = "half a message"  # the rest of it has not come
UNREAD = "unread"  # the host has not taken a reply
REFUSED = "refused"  # too many clients: this one must ask soon
DOUBT = "doubt"  # the device is at its end, and its last words may be those of the next host (ADR 0017)


class Patience:
    """What is awaited from one host, and until when (`until`, seconds of the loop's clock)."""

    def __init__(self, timers: Deadlines, connection: int) -> None:
        self.until: dict[str, float] = {}
        self._timers = timers
        self._connection = connection

    def begin(self, what: str, until: float) -> None:
        """Wait for `what` until then; if it is awaited already, its time stays as it is."""
        if what not in self.until:
            self.until[what] = until
            self._timers.arm(("connection", self._connection, what), until)

    def end(self, what: str) -> None:
        """Wait for `what` no more, if it is awaited."""
        if self.until.pop(what, None) is not None:
            self._timers.cancel(("connection", self._connection, what))

    def end_all(self) -> None:
        """Wait for nothing more, since the connection is over."""
        for what in list(self.until):
            self.end(what)
