"""Conversations: a peer on a byte stream. Non-blocking reads and partial writes, no decisions.

A conversation whose peer does not read is not read either, until it has taken its replies; half a message and an unread
reply may each be `message_age` seconds old. Above `max_clients` a client's first request is answered with BUSY.
"""

from __future__ import annotations

import math
import select
import socket
from typing import Protocol

from ...agent.api.errors import Code, Fault
from ...agent.wire.messages import Incoming, Limits, Request
from ...agent.wire.session import Session
from ..core.events import Peer

READ = 64 << 10
UNREAD_MAX = 256 << 10  # bytes of replies that a peer has not read, above which it is not listened to
REFUSED_AGE = 5.0
DOUBT = 0.1  # seconds after which what was said on a port is that host's who has gone, and not the next one's


class Transport(Protocol):
    """A byte stream that does not block: a socket or a character device."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def recv(self, size: int) -> bytes:
        """Read; empty at the end. Raises BlockingIOError, ConnectionError, OSError."""

    def send(self, data: memoryview) -> int:
        """Write what can be written; return how much."""

    def close(self) -> None:
        """Close."""


class Connection:
    """One peer on one byte stream."""

    def __init__(
        self, number: int, port: Transport, peer: Peer, limits: Limits, age: float, *, shared: bool = False
    ) -> None:
        """With `shared` one peer after another has the same port."""
        self.id = number
        self.port = port
        self.peer = peer
        self.shared = shared
        self.stream = Session(limits)
        self.refused = False
        self.gone = False
        self._at_end = False
        self._age = age
        self.half_since: float | None = None
        self._unread_since: float | None = None
        self._refuse_at: float | None = None
        self._answered = False
        self._heard_at = -math.inf
        self._gone_at: float | None = None

    def refuse(self, now: float) -> None:
        """Answer its first request with BUSY; it has not long to ask."""
        self.refused = True
        self._refuse_at = now + REFUSED_AGE

    def read(self, now: float) -> None:
        """Read once into the stream.

        A port at its end is believed at once only if nothing was said just now. What is read then is what the host said
        last, or what another said that has come since: a virtio port has a host's first words before it tells that the
        host is there, and takes no reply until then.
        """
        self._gone_at = None
        try:
            data = self.port.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            self.gone = True
            return
        if data:
            self._heard_at = now
        elif isinstance(self.port, socket.socket):
            # The host may only have said all that it has to say, and wait for the answers.
            self._at_end = not hung_up(self.port)
            self.gone = not self._at_end
        elif self.shared and now < self._heard_at + DOUBT and self.stream.owing and not self.stream.mid_message:
            self._gone_at = self._heard_at + DOUBT
        else:
            self.gone = True
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
            self.half_since = None
        elif self.half_since is None:
            self.half_since = now
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
        done = self.stream.closing or self._answered
        return self.gone or (done and not self.stream.output_size) or (self._at_end and not self.stream.owing)

    @property
    def in_doubt(self) -> bool:
        """Whether the port is at its end, and not to be read before something happens there."""
        return self._gone_at is not None

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
        ages = [since + self._age for since in (self.half_since, self._unread_since) if since is not None]
        return min([*ages, *(at for at in (self._refuse_at, self._gone_at) if at is not None)], default=None)

    def expire(self, now: float) -> None:
        """End what has taken too long."""
        if self.half_since is not None and self.half_since + self._age <= now:
            self.stream.expire()
            self.half_since = None
        else:
            self.gone = True


def hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed both directions, so that nobody reads an answer either."""
    now = select.poll()
    now.register(sock, 0)  # what is asked for does not matter: a hang-up is always told
    return bool(now.poll(0))
