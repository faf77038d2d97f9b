"""All connections: from what hosts say to events for the core, and from its answers to replies. Part of the loop.

Each connection has a number of its own. So what was said on one, or is still to be answered on it, never reaches
another host, even where one host after another uses the same character device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ...agent.api import qemu
from ...agent.api.errors import Code, Fault
from ...agent.wire.messages import Abandoned, Incoming, Limits, Refused, Request
from ..config import Config
from ..core import events
from ..core.timing import Deadlines, Key
from ..io.descriptors import Descriptors
from ..io.log import Log
from ..io.poller import Poller
from ..io.troubles import Troubles
from .admission import Admits, admits
from .connection import Connection
from .patience import HALF
from .transport import Endpoint, Transport

UNSENT_MAX = 64 << 20  # bytes of replies that hosts have not read, above which only essential RPCs are admitted
INPUT_MAX = 112 << 20  # bytes of requests that have come and cannot be answered yet; two of the longest have room
HALF_MAX = 1 << 20  # bytes of half a message that is never refused for lack of room
EVENTS_MAX = 64  # things that one host says in one turn of the loop
T = TypeVar("T")


class Connections:
    """All connections, and the endpoints that hosts come to.

    What is done for one connection stands inside its boundary (`_try`); what the core does with what it says does not.
    """

    def __init__(
        self,
        config: Config,
        poller: Poller,
        timers: Deadlines,
        log: Log,
        clock: Callable[[], float],
        feed: Callable[[events.Event], None],
    ) -> None:
        self.config = config
        self.poller = poller
        self.timers = timers
        self.log = log
        self.clock = clock
        self.troubles = Troubles(log)
        self.descriptors = Descriptors()
        self._feed = feed
        self._endpoints: dict[str, Endpoint] = {}
        self._by_id: dict[int, Connection] = {}
        self._by_transport: dict[Transport, Connection] = {}
        self._on_channel: dict[str, int] = {}
        self._unsent = 0  # bytes, the sum over all connections
        self._last_id = 0
        self._turns: dict[int, Connection] = {}
        self._pumping: Connection | None = None

    def listen(self, endpoint: Endpoint) -> None:
        """Let hosts come to this endpoint."""
        self._endpoints[endpoint.spec] = endpoint
        endpoint.serve(self)

    def answer(self, number: int, token: int, value: Any, *, receipt: bool = False) -> None:
        """Reply with a value or a Fault, unless the connection has ended; with `receipt`, Taken follows."""
        connection = self._by_id.get(number)
        if connection is None:
            return
        connection.settled(token, self.clock())
        send = connection.session.fault if isinstance(value, Fault) else connection.session.reply
        before = connection.session.output_size
        self._try(connection, partial(send, token, value))
        if receipt and connection.session.output_size > before:  # else the host has given up on it
            connection.expect_receipt(token)
        # What waited for its turn has it now, but must not be taken before what stands in the loop's queue. Where the
        # host is being heard right now, that goes on anyway.
        if connection is not self._pumping:
            self._turns[number] = connection
        self._flush(connection)

    def take_turns(self) -> bool:
        """Take requests that waited for their turn, some of each host; return whether more are left for next time."""
        if self._turns:
            turns, self._turns = self._turns, {}
            for connection in turns.values():
                self._pump(connection)
        return bool(self._turns)

    def due(self, key: Key) -> None:
        """Act on a deadline: ("connection", number, what), or (kind of endpoint, spec)."""
        match key:
            case ("connection", int(number), str(what)):
                connection = self._by_id[number]
                self._try(connection, partial(connection.due, what))
                self._pump(connection)
            case (_, str(spec)):
                self._endpoints[spec].due()

    def has_room(self) -> None:
        """Accept again where that was put off: something has ended."""
        self.descriptors.restock()
        for endpoint in self._endpoints.values():
            endpoint.has_room()

    def close(self) -> None:
        """Write what can be written now, and close everything."""
        for connection in self._by_id.values():
            self._try(connection, partial(connection.write, self.clock()))
            if connection.session.output_size:
                # The host does not read, and closing would wait for it.
                self._try(connection, connection.transport.drop_unsent)
            self._try(connection, connection.transport.close)
        for endpoint in self._endpoints.values():
            endpoint.close()
        self.descriptors.close()

    # -- what endpoints and transports use (Hub)

    def begin(self, transport: Transport) -> Connection:
        """A host has come: begin a connection."""
        config, now = self.config, self.clock()
        self._last_id += 1
        qga = qemu.version(config.qga_version)
        limits = Limits(config.max_header, config.max_body, config.max_nesting, qga)
        connection = Connection(self._last_id, transport, limits, config.message_age, self.timers, now)
        self._by_id[connection.id] = self._by_transport[transport] = connection
        there = self.same_channel(connection.peer.channel)
        self._on_channel[connection.peer.channel] = there + 1
        connection.admit(admits(there, config.max_clients) or Admits.PROBES, now)
        return connection

    def make_room(self, spec: str) -> bool:
        """End the connection that has been idle the longest and is owed nothing; else the longest waiting va.fsstatus.

        The status call is answered with the present record. Return whether a connection was ended; none is if all wait
        for a freeze, a thaw, a hold or a worker.
        """
        here = [each for each in self._by_id.values() if each.peer.channel == spec]
        if idle := [each for each in here if each.idle and each.id not in self._turns]:
            victim = min(idle, key=lambda each: each.active_at)
            victim.gone = victim.evicted = True
        elif news := [each for each in here if each.waiting and each.waits_for_news]:
            victim = min(news, key=lambda each: min(at for _, at in each.waiting.values()))
            self._feed(events.NewsCut(victim.id))
            victim.leaving = victim.evicted = True
        else:
            return False
        self._flush(victim)
        if victim.id in self._by_id:
            return False
        why = "for the one that was idle the longest" if idle else "for the one that waited for news the longest"
        self.log.add("info", f"{spec}: full; the next is served {why}, {victim.peer.who}")
        return True

    def same_channel(self, spec: str) -> int:
        """Return how many connections there are on a channel."""
        return self._on_channel.get(spec, 0)

    def ready(self, transport: Transport) -> None:
        """Write and read what goes, and do what the host asks."""
        connection = self._by_transport.get(transport) or self.begin(transport)
        self._try(connection, partial(connection.exchange, self.clock()))
        self._pump(connection)
        if connection.session.input_size > HALF_MAX:
            self._make_room()

    # -- connections

    def _make_room(self) -> None:
        """Refuse the half message that was begun last, if all input together is over the limit."""
        while sum(each.session.input_size for each in self._by_id.values()) > INPUT_MAX:
            halves = [each for each in self._by_id.values() if each.session.half_size > HALF_MAX]
            if not halves:
                return  # the rest waits for its turn, and is within the limit for half messages
            newest = max(halves, key=lambda each: each.patience.until.get(HALF, 0.0))
            fault = Fault(Code.BUSY, "other hosts are sending too much at once; call again later")
            self._try(newest, partial(newest.session.refuse, fault))
            self._pump(newest)

    def _pump(self, connection: Connection) -> None:
        """Give the core what the host said, then write the answers."""
        self._pumping = connection
        for _ in range(EVENTS_MAX):
            event = None if connection.gone else self._try(connection, partial(connection.next_event, self.clock()))
            if event is None:
                break
            self._dispatch(connection, event)
        else:
            self._turns[connection.id] = connection  # the other hosts first
        self._pumping = None
        unheeding = connection.unheeding
        self._flush(connection)
        if unheeding and not connection.unheeding:
            self._turns[connection.id] = connection  # it has read now, and nothing else will wake us for what it said

    def _dispatch(self, connection: Connection, event: Incoming) -> None:
        """Give the core one thing that the host has said, if that is for it."""
        if (
            connection.admits is not Admits.ALL
            and self.same_channel(connection.peer.channel) <= self.config.max_clients
        ):
            connection.admit(Admits.ALL, self.clock())  # there is room by now
        match event:
            case Request() if not self._try(connection, partial(connection.takes, event)):
                pass  # it was answered, or went wrong
            case Request(token, method, params):
                self._end_run(connection)
                if not event.unheard:
                    connection.asked(token, method, self.clock())
                crowded = self._unsent > UNSENT_MAX
                peer, now = connection.peer, time.time()
                self._feed(events.Requested(connection.id, token, method, params, peer, now, crowded, event.unheard))
            case Abandoned(token):
                connection.settled(token, self.clock())
                self._feed(events.GivenUp(connection.id, token))
            case Refused(code, text) if not event.reset and connection.begins_run(self.clock()):
                self._feed(events.Malformed(code, text, connection.peer, time.time()))

    def _end_run(self, connection: Connection) -> None:
        if more := connection.end_run():
            peer = connection.peer
            self.log.add("notice", f"{peer.channel}: {peer.who}: {more} more in a row that were no requests")

    def _flush(self, connection: Connection) -> None:
        """Write what is pending, then end the connection or arm what it needs next."""
        if connection.id not in self._by_id:
            return
        self._try(connection, partial(connection.write, self.clock()))
        for token in connection.receipts():
            self._feed(events.Taken(connection.id, token))
        if connection.id not in self._by_id:
            return
        self._count_unsent(connection, connection.session.output_size)
        if not connection.over:
            self._try(connection, connection.arm)
        if connection.over:
            self._hang_up(connection)

    def _count_unsent(self, connection: Connection, size: int) -> None:
        self._unsent += size - connection.unsent
        connection.unsent = size

    def _hang_up(self, connection: Connection) -> None:
        """End the connection. Whatever is said to it from now on is dropped: it is in no table any more."""
        transport, channel = connection.transport, connection.peer.channel
        connection.gone = True  # whoever is at it just now, or has noted it for its turn, leaves it alone
        del self._by_id[connection.id], self._by_transport[transport]
        self._turns.pop(connection.id, None)
        self._on_channel[channel] -= 1
        self._count_unsent(connection, 0)
        connection.patience.end_all()
        if connection.session.output_size:
            self._try(connection, transport.drop_unsent)
        asked = self._try(connection, connection.session.give_up)
        try:
            unread = transport.left_unread()
        except OSError:
            unread = True  # nobody knows, and what is not known was not told
        self._try(connection, transport.finish)
        for event in asked or ():
            self._dispatch(connection, event)  # what it asked is done, though nobody waits for it
        self._end_run(connection)
        self._feed(events.Disconnected(connection.id, unread, connection.evicted))
        self.has_room()

    def _try(self, connection: Connection, work: Callable[[], T]) -> T | None:
        """Do some work for one connection; whatever goes wrong in it ends that connection, with a line in the log."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the boundary around one of many (promise 11)
            peer = connection.peer
            self.troubles.tell(f"{peer.channel}: the connection of {peer.who} was dropped", error)
            connection.gone = True
            return None
