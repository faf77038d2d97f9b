"""What a connection runs on (`Transport`), how hosts come to it (`Endpoint`), and what both use of the loop (`Hub`).

A channel is what is configured; a connection is one host on it. A socket carries one connection. A character device is
its own endpoint, and carries one connection after another. Nothing outside the two classes asks which of them it has.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Protocol

from ..config import Config
from ..core.events import Peer
from ..core.timing import Deadlines
from ..io.log import Log
from ..io.poller import HOSTS, READ, WRITE, Poller


class End(Enum):
    """What it means that there is nothing more to read."""

    HALF = "the peer has said all that it has to say, and may wait for the answers"
    UNSURE = "nobody is there, or somebody whose coming the kernel has not told of yet"
    GONE = "nobody reads an answer any more"


class Transport(Protocol):
    """A byte stream that does not block, and its place in the loop."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""

    def recv(self, size: int, /) -> bytes:
        """Read; empty at the end. Raises BlockingIOError, ConnectionError, OSError."""

    def send(self, data: memoryview, /) -> int:
        """Write what can be written; return how much. Raises as `recv` does."""

    def happened(self) -> bool:
        """Take note of what woke the loop; return whether it tells that nobody is at the other end."""

    def end(self) -> End:
        """Return what it means that `recv` returned nothing."""

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Wake the loop for this from now on; with neither only when the peer is gone."""

    def drop_unsent(self) -> None:
        """Throw away what was sent and has not left yet: the connection is over, and it is for nobody else."""

    def finish(self) -> None:
        """The connection is over: close, or be ready for the next host."""

    def close(self) -> None:
        """Close: the daemon ends."""


class Hub(Protocol):
    """What endpoints and transports use of the loop and of what is common to all channels."""

    poller: Poller
    timers: Deadlines
    log: Log
    config: Config

    def clock(self) -> float:
        """Return the time of the loop's clock."""

    def begin(self, transport: Transport, *, refused: bool = False) -> object:
        """A host has come: begin a connection. With `refused` its first request is answered with BUSY."""

    def ready(self, transport: Transport) -> None:
        """The transport's descriptor is ready: read, write, and do what the host asks."""

    def same_channel(self, spec: str) -> int:
        """Return how many connections there are on a channel."""


class Endpoint(Protocol):
    """Where hosts come: one configured channel. Its timer's key is an owner's name and `spec`."""

    @property
    def spec(self) -> str:
        """The channel as configured."""

    def serve(self, hub: Hub) -> None:
        """Let hosts come."""

    def due(self) -> None:
        """Do what its timer was armed for."""

    def has_room(self) -> None:
        """A connection or a worker has ended: try again what was put off for lack of room."""

    def close(self) -> None:
        """Let nobody come any more: the daemon ends."""


class Socket:
    """A connected socket: one host's."""

    recv: Callable[[int], bytes]
    send: Callable[[memoryview], int]

    def __init__(self, sock: socket.socket, peer: Peer, hub: Hub) -> None:
        self.peer = peer
        self.recv, self.send = sock.recv, sock.send
        self._sock = sock
        self._poller = hub.poller
        self._wanted = READ
        self._poller.register(sock.fileno(), HOSTS, READ, partial(hub.ready, self))

    def happened(self) -> bool:
        """Return whether the peer has hung up: only that is told where nothing is waited for.

        But what was told may be what was waited for until just now: whoever was served before it in this turn of the
        loop may have answered this host.
        """
        return not self._wanted and hung_up(self._sock)

    def end(self) -> End:
        """Return HALF unless the peer has closed both directions."""
        return End.GONE if hung_up(self._sock) else End.HALF

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Wait for this from now on."""
        wanted = READ * reading | WRITE * writing
        if wanted != self._wanted:
            self._wanted = wanted
            self._poller.modify(self._sock.fileno(), wanted)

    def drop_unsent(self) -> None:
        """Do nothing: what the kernel has taken is this peer's, and closing does not wait for it."""

    def finish(self) -> None:
        """Close."""
        self._poller.unregister(self._sock.fileno())
        self._sock.close()

    def close(self) -> None:
        """Close."""
        self._sock.close()


def hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed both directions, so that nobody reads an answer either."""
    now = select.poll()
    now.register(sock, 0)  # what is asked for does not matter: a hang-up is always told
    return bool(now.poll(0))
