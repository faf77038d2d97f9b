"""Descriptors to wait for, and what to call when they are ready: epoll with an order of precedence.

What workers say and how they end is taken before what hosts ask, so that no answer is older than the facts.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from dataclasses import dataclass

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# Who is called first when several are ready. Newcomers come after the hosts that are there: one that leaves makes room.
REPORTS, EXITS, WRITES, PATHS, HOSTS, NEWCOMERS = range(6)


@dataclass(slots=True, eq=False)
class _Entry:
    rank: int
    call: Callable[[], object]


class Poller:
    """Waits for descriptors, level-triggered; a hang-up or an error wakes whatever was asked for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._entries: dict[int, _Entry] = {}

    def register(self, fd: int, rank: int, events: int, call: Callable[[], object]) -> None:
        """Call `call` whenever `fd` is ready for `events`, a mask of READ and WRITE; lower ranks first."""
        self._epoll.register(fd, events)
        self._entries[fd] = _Entry(rank, call)

    def modify(self, fd: int, events: int) -> None:
        """Wait for these events instead; with 0 only a hang-up or an error is told."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Wait for `fd` no more; to be called before it is closed."""
        del self._entries[fd]
        with contextlib.suppress(OSError):  # what was closed is out of the epoll already
            self._epoll.unregister(fd)

    def turn(self, seconds: float | None) -> int:
        """Wait at most so long (None: without end), call what is ready; return how many were."""
        entries = self._entries
        ready = [(fd, entries[fd]) for fd, _ in self._epoll.poll(seconds, max(1, len(entries)))]
        if len(ready) > 1:
            ready.sort(key=_rank)
        for fd, entry in ready:
            # What stands before it in this turn may have closed it.
            if entries.get(fd) is entry:
                entry.call()
        return len(ready)

    def close(self) -> None:
        """Close the epoll."""
        self._epoll.close()


def _rank(ready: tuple[int, _Entry]) -> int:
    return ready[1].rank
