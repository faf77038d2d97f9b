"""Waiting for descriptors, and calling what belongs to the ready ones: epoll with an order of precedence.

Reports and deaths of workers come before requests of hosts, so that no answer is older than the facts.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# What is called first when several are ready. New hosts come after those that are there: one that leaves makes room.
REPORTS, EXITS, WRITES, PATHS, HOSTS, NEWCOMERS = range(6)


class _Entry:
    __slots__ = ("call", "rank")

    def __init__(self, rank: int, call: Callable[[], object]) -> None:
        self.rank = rank
        self.call = call


class Poller:
    """A level-triggered epoll; a hang-up or an error always wakes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._entries: dict[int, _Entry] = {}

    def register(self, fd: int, rank: int, events: int, call: Callable[[], object]) -> None:
        """Call `call` whenever `fd` is ready for `events`, a mask of READ and WRITE; lower ranks first."""
        self._epoll.register(fd, events)
        self._entries[fd] = _Entry(rank, call)

    def modify(self, fd: int, events: int) -> None:
        """Wait for these events instead; with 0, only for a hang-up or an error."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Wait for `fd` no more; to be called before `fd` is closed."""
        del self._entries[fd]
        with contextlib.suppress(OSError):  # the kernel removes what is closed from the epoll
            self._epoll.unregister(fd)

    def turn(self, seconds: float | None) -> int:
        """Wait at most so many seconds (None: for ever), call what is ready; return how many were ready."""
        entries = self._entries
        ready = [(fd, entries[fd]) for fd, _ in self._epoll.poll(seconds, max(1, len(entries)))]
        if len(ready) > 1:
            ready.sort(key=_rank)
        for fd, entry in ready:
            # Something before it in this turn may have closed it.
            if entries.get(fd) is entry:
                entry.call()
        return len(ready)

    def close(self) -> None:
        """Close the epoll."""
        self._epoll.close()


def _rank(ready: tuple[int, _Entry]) -> int:
    return ready[1].rank
