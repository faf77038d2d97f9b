"""Conversations: a peer on a byte stream. Non-blocking reads and partial writes, no decisions.

A conversation whose peer does not read is not read either, until it has taken its replies; half a message and an unread
reply may each be `message_age` seconds old. Above `max_clients` a client's first request is answered with BUSY.
"""

from __future__ import annotations

import select
import socket
from typing import Protocol

from ..agent.errors import Code, Fault
from ..agent.wire.messages import Incoming, Limits, Request
from ..agent.wire.stream import Stream
from .events import Peer

READ = 64 << 10
UNREAD_MAX = 256 << 10  # bytes of replies that a peer has not read, above which it is not listened to
REFUSED_AGE = 5.0


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
        self._at_end = False
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
            # A socket's host may only have said all that it has to say, and wait for the answers.
            self._at_end = isinstance(self.port, socket.socket) and not hung_up(self.port)
            self.gone = not self._at_end
        self.stream.receive_data(data)

    def drain(self) -> None:
        """Throw away what there is to read: the peer is gone."""
        try:
            while self.port.recv(READ):
                pass
        except OSError:
            pass  # nothing more, or not even that
        self.gone = True

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
        done = self.stream.closing or self._answered or (self._at_end and not self.stream.busy)
        return self.gone or (done and not self.stream.output_size)

    @property
    def writing(self) -> bool:
        """Whether to wait for the port to take more."""
        return self.stream.output_size > 0

    @property
    def reading(self) -> bool:
        """Whether to wait for more to read."""
        return self.stream.output_size <= UNREAD_MAX and not self.stream.full and not self._at_end

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


def hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed both directions, so that nobody reads an answer either."""
    now = select.poll()
    now.register(sock, 0)  # what is asked for does not matter: a hang-up is always told
    return bool(now.poll(0))
