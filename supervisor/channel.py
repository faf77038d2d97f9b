"""Channels: listening sockets and the conversations on them. Non-blocking reads and partial writes, no decisions.

A conversation whose peer does not read is not read either, until it has taken its replies; half a message and an unread
reply may each be `message_age` seconds old. Above `max_clients` a client's first request is answered with BUSY.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

from ..agent.errors import Code, Fault
from ..agent.wire.messages import Incoming, Limits, Request
from ..agent.wire.stream import Stream
from .events import Peer

READ = 64 << 10
UNREAD_MAX = 256 << 10  # bytes of replies that a peer has not read, above which it is not listened to
REFUSED_MAX = 16  # clients over max_clients that are told so at once; others wait in the backlog
REFUSED_AGE = 5.0
PAUSE = 1.0  # seconds until a listener that could not accept tries again


class Port(Protocol):
    """A byte stream that does not block: a socket or a character device."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def recv(self, size: int) -> bytes:
        """Read; empty at the end. Raises BlockingIOError, ConnectionError, OSError."""

    def send(self, data: memoryview) -> int:
        """Write what can be written; return how much."""

    def close(self) -> None:
        """Close."""


class Conversation:
    """One peer on one byte stream."""

    def __init__(self, number: int, port: Port, peer: Peer, limits: Limits, age: float) -> None:
        self.id = number
        self.port = port
        self.peer = peer
        self.stream = Stream(limits)
        self.refused = False
        self.gone = False
        self._age = age
        self._half_since: float | None = None
        self._unread_since: float | None = None
        self._refuse_at: float | None = None
        self._answered = False

    def refuse(self, now: float) -> None:
        """Answer its first request with BUSY; it has not long to ask."""
        self.refused = True
        self._refuse_at = now + REFUSED_AGE

    def read(self, now: float) -> None:
        """Read once into the stream."""
        try:
            data = self.port.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.gone = True
        self.stream.receive_data(data)

    def next_event(self, now: float) -> Incoming | None:
        """Return the next thing that the peer said, None if there is none or it should first read its replies."""
        if self.stream.output_size > UNREAD_MAX:
            return None
        event = self.stream.next_event()
        if event is not None or not self.stream.mid_message:
            self._half_since = None
        elif self._half_since is None:
            self._half_since = now
        if self.refused and isinstance(event, Request):
            self.stream.fault(event.token, Fault(Code.BUSY, "too many clients on this channel; call again later"))
            self._answered = True
            return None
        return event

    def write(self, now: float) -> None:
        """Write what the port takes."""
        try:
            while pending := self.stream.pending():
                self.stream.wrote(self.port.send(pending))
                self._unread_since = None
        except BlockingIOError:
            self._unread_since = self._unread_since or now
        except OSError:
            self.gone = True

    @property
    def over(self) -> bool:
        """Whether the conversation is to be closed."""
        return self.gone or ((self.stream.closing or self._answered) and not self.stream.output_size)

    @property
    def writing(self) -> bool:
        """Whether to wait for the port to take more."""
        return self.stream.output_size > 0

    @property
    def reading(self) -> bool:
        """Whether to wait for more to read."""
        return self.stream.output_size <= UNREAD_MAX and not self.stream.full

    def deadline(self) -> float | None:
        """Return when `expire` is due, or None."""
        ages = [since + self._age for since in (self._half_since, self._unread_since) if since is not None]
        return min([*ages, *([self._refuse_at] if self._refuse_at is not None else [])], default=None)

    def expire(self, now: float) -> None:
        """End what has taken too long."""
        if self._half_since is not None and self._half_since + self._age <= now:
            self.stream.expire()
            self._half_since = None
        else:
            self.gone = True


@dataclass(slots=True)
class Listener:
    """A listening unix socket; `paused_until` while it cannot accept."""

    spec: str
    path: str
    sock: socket.socket
    paused_until: float | None = None

    @classmethod
    def open(cls, spec: str) -> Listener:
        """Listen at `unix:PATH`, mode 0600, over a socket that nobody answers on any more; raises OSError."""
        path = spec.partition(":")[2]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _unlink_stale(path)
            before = os.umask(0o177)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
        return cls(spec, path, sock)

    def accept(self) -> tuple[socket.socket, Peer] | None:
        """Accept one peer, None if there is none. Raises OSError if it cannot be had, EMFILE above all."""
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        sock.setblocking(False)
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return sock, Peer(self.spec, f"pid:{pid},uid:{uid}")

    def close(self) -> None:
        """Stop listening and take the socket's name away."""
        self.sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def _unlink_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another process listens there")
