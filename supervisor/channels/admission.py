"""Who is served where a channel is full: everybody, whoever asks for something essential, or whoever asks who is there.

A thaw must get through, whoever keeps the other connections busy; and whoever is turned away must be told so after the
words with which a client finds out who is there.
"""

from __future__ import annotations

from enum import Enum

from ...agent.api.methods import RPCS

RESERVE_MAX = 2  # clients over max_clients for whom essential methods are served
REFUSED_MAX = 16  # clients over these that are told BUSY; others wait in the backlog
STATUS = "va.fsstatus"
PROBES = frozenset({"guest-sync", "guest-sync-delimited", "guest-info", "guest-ping", "va.ping", "va.capabilities"})


class Admits(Enum):
    """What a connection may ask."""

    ALL = "whatever the core admits"
    ESSENTIAL = "essential methods: the channel is full"
    PROBES = "who is there: the channel is full, and so is its reserve"

    def take(self, method: str) -> bool:
        """Return whether a call of that method goes to the core; any other is answered with BUSY."""
        if self is Admits.ALL:
            return True
        if self is Admits.PROBES:
            return method in PROBES
        return method in RPCS and RPCS[method].essential


def admits(there: int, most: int) -> Admits | None:
    """Return what one more connection may ask where `there` are and `most` have room; None if it is to wait."""
    if there < most:
        return Admits.ALL
    if there < most + RESERVE_MAX:
        return Admits.ESSENTIAL
    return Admits.PROBES if there < most + RESERVE_MAX + REFUSED_MAX else None
