"""One connection: a host on a transport. It reads and writes without blocking, and decides nothing.

A connection whose host does not read is not read either, until the host has taken its replies; half a message and an
unread reply may each be `message_age` seconds old. What is not asked of the core on a full channel (admission.py) is
answered with BUSY.
"""

from __future__ import annotations

import math

from ...agent.api.errors import Code, Fault
from ...agent.wire.messages import Incoming, Limits, Request
from ...agent.wire.session import Session
from ..core.timing import Deadlines
from .admission import STATUS, Admits
from .patience import DOUBT, HALF, REFUSED, UNREAD, Patience
from .transport import End, Transport

READ = 16 << 10  # bytes of one read: how much of one host's is looked at before the others have their turn
RUN_AGE = 1.0  # seconds without anything said after which bytes that are no request are news again
UNREAD_MAX = 256 << 10  # bytes of replies that a peer has not read, above which it is not listened to
REFUSED_AGE = 5.0
DOUBT_AGE = 0.1  # seconds after which the last words on a device are no longer taken for those of the next host


class Connection:
    """One host. `unsent` is how many bytes of its replies are counted in the sum over all connections.

    `evicted`: it is ended for want of room, though the host is there.
    """

    def __init__(
        self, number: int, transport: Transport, limits: Limits, age: float, timers: Deadlines, now: float = 0.0
    ) -> None:
        """Begin `now`; it waits `age` seconds for the rest of a message, and for a reply to be taken."""
        self.id = number
        self.transport = transport
        self.peer = transport.peer
        self.session = Session(limits)
        self.patience = Patience(timers, number)
        self.gone = False
        self.unsent = 0
        self._age = age
        self._at_end = False
        self.admits = Admits.ALL
        self.leaving = False
        self.evicted = False
        self.active_at = now  # when something was last said on it, by either side
        self.waiting: dict[int, tuple[str, float]] = {}  # what the core was asked: method and when, by token
        self._heard_at = -math.inf
        self._run_until = -math.inf
        self._run_more = 0
        self._written = 0  # bytes
        self._receipts: list[tuple[int, int]] = []  # token, and how many bytes are written when its reply is taken

    def begins_run(self, now: float) -> bool:
        """Note bytes that are no request; return whether they begin a run of such, of which only that is told."""
        begins = now >= self._run_until
        self._run_until = now + RUN_AGE
        self._run_more += not begins
        return begins

    def end_run(self) -> int:
        """A request came, or nothing more does: return how many more than one there were in the run."""
        more, self._run_more, self._run_until = self._run_more, 0, -math.inf
        return more

    def admit(self, admits: Admits, now: float) -> None:
        """Let it ask that; if it is next to nothing, it has not long to do so."""
        self.admits = admits
        if admits is Admits.PROBES:
            self.patience.begin(REFUSED, now + REFUSED_AGE)
        else:
            self.patience.end(REFUSED)

    @property
    def idle(self) -> bool:
        """Whether it is owed nothing."""
        return not self.session.owing

    @property
    def waits_for_news(self) -> bool:
        """Whether all that it is owed are status records."""
        return all(method == STATUS for method, _ in self.waiting.values()) and not self.session.output_size

    def asked(self, token: int, method: str, now: float) -> None:
        """The core was asked that."""
        self.waiting[token] = method, now

    def settled(self, token: int, now: float) -> None:
        """The core was told that nobody waits for it any more, or has answered it."""
        self.active_at = now
        self.waiting.pop(token, None)

    def exchange(self, now: float) -> None:
        """Take note of what woke the loop, then write and read what goes."""
        if self.transport.happened() and not self.reading:
            self.drain()  # its replies are for nobody, and what it said last is not the next one's
        self.write(now)
        if self.reading and self.session.backlog < READ:
            self.read(now)

    def read(self, now: float) -> None:
        """Read once into the session.

        The end of a device ends the connection immediately only if nothing was said just now. Otherwise the last words
        may be those of the next host: a virtio port hands over a host's first words before it says that the host is
        there, and takes no reply until then (ADR 0017).
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
            self._heard_at = self.active_at = now
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
        """Throw away what is there to read: the host is gone."""
        try:
            while self.transport.recv(READ):
                pass
        except OSError:
            pass  # nothing more to read, or the transport is dead
        self.gone = True

    def next_event(self, now: float) -> Incoming | None:
        """Return what the host said next; None if it said nothing more, or should first read its replies."""
        session = self.session
        if self.unheeding:
            return None
        event = session.next_event()
        if event is None and session.mid_message:
            self.patience.begin(HALF, now + self._age)
        elif HALF in self.patience.until:
            self.patience.end(HALF)
        return event

    def takes(self, event: Incoming) -> bool:
        """Return whether that is for the core; else it is answered with BUSY."""
        if not isinstance(event, Request) or self.admits.take(event.method):
            return True
        text = f"{event.method[:80]}: too many clients on this channel; call again later"
        self.session.fault(event.token, Fault(Code.BUSY, text))
        return False

    def write(self, now: float) -> None:
        """Write as much of the replies as the transport takes."""
        session = self.session
        try:
            while pending := session.pending():
                count = self.transport.send(pending)
                session.wrote(count)
                self._written += count
                if UNREAD in self.patience.until:
                    self.patience.end(UNREAD)
        except BlockingIOError:
            self.patience.begin(UNREAD, now + self._age)
        except OSError:
            self.gone = True

    def expect_receipt(self, token: int) -> None:
        """Note that this reply, which was sent last, is to be reported when all its bytes are written."""
        self._receipts.append((token, self._written + self.session.output_size))

    def receipts(self) -> list[int]:
        """Return the tokens of the replies to be reported that were taken since the last call."""
        taken = [token for token, end in self._receipts if end <= self._written]
        if taken:
            self._receipts = [receipt for receipt in self._receipts if receipt[1] > self._written]
        return taken

    @property
    def over(self) -> bool:
        """Whether to end the connection."""
        session = self.session
        if self.gone or (self._at_end and not session.owing):
            return True
        return (session.closing or self.leaving) and not session.output_size

    @property
    def unheeding(self) -> bool:
        """Whether the host is not listened to, since it should first read its replies."""
        return self.session.output_size > UNREAD_MAX

    @property
    def reading(self) -> bool:
        """Whether to wait for more to read."""
        return not self._at_end and not self.unheeding and not self.session.full

    def arm(self) -> None:
        """Set what the loop wakes up for."""
        # A device at its end is always readable; that a host has come shows in that it is writable (ADR 0017).
        doubt = DOUBT in self.patience.until
        writing = doubt or self.session.output_size > 0
        self.transport.arm(reading=not doubt and self.reading, writing=writing)

    def due(self, what: str) -> None:
        """Give up `what`, which has not come in time."""
        del self.patience.until[what]
        if what == HALF:
            self.session.expire()
        else:
            self.gone = True
