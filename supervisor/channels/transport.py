"""What a connection runs on (`Transport`), how hosts come to it (`Endpoint`), and what both use of the loop (`Hub`).

A channel is what is configured; a connection is one host on it. A socket carries one connection. A character device is
its own endpoint, and carries one connection after another. Only these two classes know which of them it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Protocol

from ..config import Config
from ..core.events import Peer
from ..core.timing import Deadlines
from ..io.descriptors import Descriptors
from ..io.log import Log
from ..io.poller import HOSTS, READ, WRITE, Poller
from ..io.troubles import Troubles

PAST, PAST_MAX = 16 << 10, 64 << 10  # bytes of one read, and of all, that are thrown away before a close


class End(Enum):
    """The meaning of having nothing more to read."""

    HALF = "the peer has said all that it has to say, and may wait for the answers"
    UNSURE = "nobody is there, or a host that the kernel has not announced yet"
    GONE = "nobody reads an answer any more"


class Transport(Protocol):
    """A byte stream that does not block, and its place in the loop."""

    @property
    def peer(self) -> Peer:
        """The host at the other end."""

    def recv(self, size: int, /) -> bytes:
        """Read; return nothing at the end. Raises BlockingIOError, ConnectionError, OSError."""

    def send(self, data: memoryview, /) -> int:
        """Write what is taken; return how much. Raises as `recv` does."""

    def happened(self) -> bool:
        """Take note of what woke the loop; return whether it shows that nobody is at the other end."""

    def end(self) -> End:
        """Return what it means that `recv` returned nothing."""

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Wake the loop for this from now on; with neither, only when the host is gone."""

    def left_unread(self) -> bool:
        """Return whether the peer is known to have hung up without reading all that it was sent."""

    def drop_unsent(self) -> None:
        """Throw away what was written and has not left yet: the connection is over, and nobody else may get it."""

    def finish(self) -> None:
        """Close, or be ready for the next host: the connection is over."""

    def close(self) -> None:
        """Close, since the daemon ends."""


class Hub(Protocol):
    """What endpoints and transports use of the loop, and of what all channels share."""

    poller: Poller
    timers: Deadlines
    log: Log
    config: Config
    troubles: Troubles
    descriptors: Descriptors

    def clock(self) -> float:
        """Return the time of the loop's clock."""

    def begin(self, transport: Transport) -> object:
        """A host has come: begin a connection."""

    def ready(self, transport: Transport) -> None:
        """Read, write, and do what the host asks: the transport's descriptor is ready."""

    def same_channel(self, spec: str) -> int:
        """Return how many connections there are on a channel."""

    def make_room(self, spec: str) -> bool:
        """End the connection of a full channel that is missed least; return whether there was one."""


class Endpoint(Protocol):
    """Where hosts come: one configured channel. The key of its timer is the name of an owner and `spec`."""

    @property
    def spec(self) -> str:
        """The channel as configured."""

    def serve(self, hub: Hub) -> None:
        """Let hosts come."""

    def due(self) -> None:
        """Do what its timer was armed for."""

    def has_room(self) -> None:
        """Try again what was put off for lack of room: a connection or a worker has ended."""

    def close(self) -> None:
        """Let nobody come any more, since the daemon ends."""


class Socket:
    """A connected socket, with one host."""

    send: Callable[[memoryview], int]

    def __init__(self, sock: socket.socket, peer: Peer, hub: Hub) -> None:
        self.peer = peer
        self.send = sock.send
        self._sock = sock
        self._reset = False
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
        """Return HALF unless the host has closed both directions."""
        return End.GONE if hung_up(self._sock) else End.HALF

    def arm(self, *, reading: bool, writing: bool) -> None:
        """Wait for this from now on."""
        wanted = READ * reading | WRITE * writing
        if wanted != self._wanted:
            self._wanted = wanted
            self._poller.modify(self._sock.fileno(), wanted)

    def recv(self, size: int, /) -> bytes:
        """Read; return nothing at the end. Raises BlockingIOError, ConnectionError, OSError."""
        try:
            return self._sock.recv(size)
        except ConnectionResetError:
            self._reset = True
            raise

    def left_unread(self) -> bool:
        """Return whether the peer of a unix socket has hung up with bytes unread; of others only their kernel knows.

        Its close throws away what it has not read, so that SIOCOUTQ is 0 then, but leaves ECONNRESET behind. Where it
        has only shut down, SIOCOUTQ tells (ADR 0028).
        """
        sock = self._sock
        if sock.family != socket.AF_UNIX or not hung_up(sock):
            return False
        reset = self._reset or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        return reset or struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0] > 0

    def drop_unsent(self) -> None:
        """Do nothing: what the kernel has taken is for this host, and a close does not wait for it."""

    def finish(self) -> None:
        """Close, after throwing away what is there to read, up to a bound: bytes unread would reset the connection."""
        try:
            self._poller.unregister(self._sock.fileno())
            with contextlib.suppress(OSError):
                for _ in range(PAST_MAX // PAST):
                    if not self.recv(PAST):
                        break
        finally:
            self._sock.close()

    def close(self) -> None:
        """Close."""
        self._sock.close()


def hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed both directions, so that nobody would read an answer."""
    now = select.poll()
    now.register(sock, 0)  # the mask does not matter: a hang-up is always reported
    return bool(now.poll(0))
