"""Connections: one host on a transport. Non-blocking reads and partial writes, no decisions.

A connection whose host does not read is not read either, until the host has taken its replies; half a message and an
unread reply may each be `message_age` seconds old. Above `max_clients` a client's first request is answered with BUSY.
"""

from __future__ import annotations

import math

from ...agent.api.errors import Code, Fault
from ...agent.wire.messages import Incoming, Limits, Request
from ...agent.wire.session import Session
from ..core.timing import Deadlines
from .patience import DOUBT, HALF, REFUSED, UNREAD, Patience
from .transport import End, Transport

READ = 64 << 10
UNREAD_MAX = 256 << 10  # bytes of replies that a peer has not read, above which it is not listened to
REFUSED_AGE = 5.0
DOUBT_AGE = 0.1  # seconds after which what was said on a device is the host's that has gone, and not the next one's


class Connection:
    """One host. `unsent` is what is counted of its replies in the sum over all connections, in bytes."""

    def __init__(self, number: int, transport: Transport, limits: Limits, age: float, timers: Deadlines) -> None:
        """Have it wait `age` seconds for the rest of a message, and for a reply to be taken."""
        self.id = number
        self.transport = transport
        self.peer = transport.peer
        self.session = Session(limits)
        self.patience = Patience(timers, number)
        self.gone = False
        self.unsent = 0
        self._age = age
        self._at_end = False
        self._refused = False
        self._answered = False
        self._heard_at = -math.inf

    def refuse(self, now: float) -> None:
        """Answer its first request with BUSY; it has not long to ask."""
        self._refused = True
        self.patience.begin(REFUSED, now + REFUSED_AGE)

    def read(self, now: float) -> None:
        """Read once into the session.

        A device at its end is believed at once only if nothing was said just now. What is read then is what the host
        said last, or what another said that has come since: a virtio port has a host's first words before it tells that
        the host is there, and takes no reply until then (ADR 0017).
        """
        if DOUBT in self.patience.until:
            self.patience.end(DOUBT)
        try:
            data = self.transport.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            self.gone = True
            return
        if data:
            self._heard_at = now
            self.session.receive_data(data)
            return
        end = self.transport.end()
        if end is End.HALF:
            self._at_end = True
        elif end is End.UNSURE and self._just_asked(now):
            self.patience.begin(DOUBT, self._heard_at + DOUBT_AGE)  # ADR 0017
        else:
            self.gone = True

    def _just_asked(self, now: float) -> bool:
        return now < self._heard_at + DOUBT_AGE and self.session.owing and not self.session.mid_message

    def drain(self) -> None:
        """Throw away what there is to read: the peer is gone."""
        try:
            while self.transport.recv(READ):
                pass
        except OSError:
            pass  # nothing more, or not even that
        self.gone = True

    def next_event(self, now: float) -> Incoming | None:
        """Return the next thing that the peer said, None if there is none or it should first read its replies."""
        session = self.session
        if self.unheeding:
            return None
        event = session.next_event()
        if event is None and session.mid_message:
            self.patience.begin(HALF, now + self._age)
        elif HALF in self.patience.until:
            self.patience.end(HALF)
        if self._refused and isinstance(event, Request):
            session.fault(event.token, Fault(Code.BUSY, "too many clients on this channel; call again later"))
            self._answered = True
            return None
        return event

    def write(self, now: float) -> None:
        """Write what the transport takes."""
        session = self.session
        try:
            while pending := session.pending():
                session.wrote(self.transport.send(pending))
                if UNREAD in self.patience.until:
                    self.patience.end(UNREAD)
        except BlockingIOError:
            self.patience.begin(UNREAD, now + self._age)
        except OSError:
            self.gone = True

    @property
    def over(self) -> bool:
        """Whether the connection is to be ended."""
        session = self.session
        if self.gone or (self._at_end and not session.owing):
            return True
        return (session.closing or self._answered) and not session.output_size

    @property
    def unheeding(self) -> bool:
        """Whether the host is not listened to, since it should first read its replies."""
        return self.session.output_size > UNREAD_MAX

    @property
    def reading(self) -> bool:
        """Whether to wait for more to read."""
        return not self._at_end and not self.unheeding and not self.session.full

    def arm(self) -> None:
        """Have the loop woken for what is needed next."""
        # The end of a device is there all the time, and a host that comes is told of as one to write to (ADR 0017).
        doubt = DOUBT in self.patience.until
        writing = doubt or self.session.output_size > 0
        self.transport.arm(reading=not doubt and self.reading, writing=writing)

    def due(self, what: str) -> None:
        """What was waited for has not come in time."""
        del self.patience.until[what]
        if what == HALF:
            self.session.expire()
        else:
            self.gone = True
