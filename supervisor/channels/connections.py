"""Hosts: who comes by which way, what they say as events, and the answers to it. Part of the loop, which it calls back.

Hosts come through a listening socket, each on a descriptor of its own, or are at the other end of a port (ports.py),
where one after another has the same descriptor. Each host is a conversation with a number of its own: what was said in
one, or is still to be answered, never reaches another.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from typing import Any

from ...agent.api.errors import Code, Fault
from ...agent.wire.messages import Abandoned, Incoming, Limits, Refused, Request
from ..config import Config
from ..core import events
from ..io.log import Log
from . import connection
from .char_device import CharDevice
from .listener import PAUSE, Listener, PeerRejected

UNSENT_MAX = 64 << 20  # bytes of replies that hosts have not read, above which only essential RPCs are admitted
INPUT_MAX = 112 << 20  # bytes of requests that have come and cannot be answered yet; two of the longest have room
HALF_MAX = 1 << 20  # bytes of half a message that is never refused for lack of room
EVENTS_MAX = 64  # things that one host says in one turn of the loop
REFUSED_MAX = 16  # clients over max_clients that are told so at once; others wait in the backlog


class Connections:
    """All conversations, and the ways that they come by."""

    def __init__(
        self,
        config: Config,
        select: selectors.EpollSelector,
        log: Log,
        clock: Callable[[], float],
        feed: Callable[[events.Event], None],
    ) -> None:
        self.config = config
        self._select = select
        self._log = log
        self._clock = clock
        self._feed = feed
        self._listeners: list[Listener] = []
        self._devices: list[CharDevice] = []
        self._talks: dict[int, connection.Connection] = {}
        self._last_talk = 0
        self._turns: dict[int, connection.Connection] = {}

    def listen(self, way: Listener | CharDevice) -> None:
        """Have hosts come that way."""
        if isinstance(way, Listener):
            self._listeners.append(way)
            self._listen(way)
        else:
            self._devices.append(way)
            self._look(way)

    def answer(self, connection: int, token: int, value: Any) -> None:
        """Reply with a value or a Fault; nothing if the conversation has ended."""
        talk = self._talks.get(connection)
        if talk is None:
            return
        if isinstance(value, Fault):
            talk.stream.fault(token, value)
        else:
            talk.stream.reply(token, value)
        # What waited for its turn has it now, but must not be taken before what stands in the loop's queue.
        self._turns[talk.id] = talk
        self._settle(talk)

    def take_turns(self) -> bool:
        """Take what waited for its turn, some of each; return whether there is more, for the next turn of the loop."""
        turns, self._turns = self._turns, {}
        for talk in turns.values():
            self._listen_to(talk)
        return bool(self._turns)

    def deadlines(self) -> Iterator[float | None]:
        """Yield when `expire` is due."""
        yield from (talk.deadline() for talk in self._talks.values())
        yield from (listener.paused_until for listener in self._listeners)
        yield from (device.look_at for device in self._devices)

    def expire(self, now: float) -> None:
        """Do what is due."""
        self.resume(now, at_once=False)
        for device in self._devices:
            if device.look_at is not None and device.look_at <= now:
                self._look(device, again=True)
        for talk in list(self._talks.values()):
            deadline = talk.deadline()
            if deadline is not None and deadline <= now:
                talk.expire(now)
                self._listen_to(talk)

    def resume(self, now: float, *, at_once: bool) -> None:
        """Accept again where that was put off."""
        for listener in self._listeners:
            if listener.paused_until is not None and (at_once or listener.paused_until <= now):
                self._listen(listener)

    def close(self) -> None:
        """Write what can be written now, and close all."""
        for talk in list(self._talks.values()):
            talk.write(self._clock())
            if not isinstance(talk.port, CharDevice):
                talk.port.close()
            elif talk.stream.output_size:
                talk.port.drop()  # the host does not read, and closing would wait for it
        for listener in self._listeners:
            listener.close()
        for device in self._devices:
            device.close()
            device.close_watch()

    # -- listeners

    def _listen(self, listener: Listener) -> None:
        listener.paused_until = None
        # After those who are there: one that leaves makes room for one that comes.
        self._select.register(listener.sock, selectors.EVENT_READ, (5, lambda: self._accept(listener)))

    def _pause(self, listener: Listener) -> None:
        listener.paused_until = self._clock() + PAUSE
        self._select.unregister(listener.sock)

    def _accept(self, listener: Listener) -> None:
        mates = sum(talk.peer.channel == listener.spec for talk in self._talks.values())
        if mates >= self.config.max_clients + REFUSED_MAX:
            self._pause(listener)
            return
        try:
            accepted = listener.accept()
        except PeerRejected as stranger:
            if text := str(stranger):
                self._log.add("warning", f"{listener.spec}: {text}")
            return
        except OSError as error:
            self._log.add("warning", f"{listener.spec}: accept: {error.strerror}")
            self._pause(listener)
            return
        if accepted is None:
            return
        sock, peer = accepted
        talk = self._begin(sock, peer)
        if mates >= self.config.max_clients:
            talk.refuse(self._clock())
        self._select.register(sock, selectors.EVENT_READ, (4, lambda: self._talk(talk)))

    # -- devices

    def _look(self, device: CharDevice, *, again: bool = False) -> None:
        """Open the port, or wait until it can be opened."""
        if device.watch is not None:
            self._select.unregister(device.watch)
        before = device.why
        if device.look(self._clock(), again=again):
            self._log.add("notice", f"{device.spec}: open")
            self._select.register(device, selectors.EVENT_READ, (4, lambda: self._hear(device)))
            return
        if device.why != before:
            self._log.add("warning", f"{device.spec}: {device.why}; waiting for that to change")
        if device.watch is not None:
            self._select.register(device.watch, selectors.EVENT_READ, (3, lambda: self._look_if(device)))

    def _look_if(self, device: CharDevice) -> None:
        if device.watch is not None and device.watch.happened():
            self._look(device)

    def _hear(self, device: CharDevice) -> None:
        gone = device.happened()
        talk = device.talk = device.talk or self._begin(device, device.peer)
        if gone and not talk.reading:
            talk.drain()  # its replies are for nobody, and what it said last is not the next one's
        self._talk(talk)

    def _next(self, device: CharDevice) -> None:
        """Be ready for the host that comes next, or for what this one says next."""
        device.talk = None
        if device.dead:
            self._select.unregister(device)
            device.drop()
            device.close()
            self._log.add("notice", f"{device.spec}: hung up, unplugged or failed")
            self._look(device)
        elif not device.at_end:
            device.arm(reading=True, writing=False)

    # -- conversations

    def _begin(self, port: connection.Transport, peer: events.Peer) -> connection.Connection:
        config = self.config
        self._last_talk += 1
        limits = Limits(config.max_header, config.max_body, config.max_nesting)
        shared = isinstance(port, CharDevice) and not port.terminal
        talk = connection.Connection(self._last_talk, port, peer, limits, config.message_age, shared=shared)
        self._talks[talk.id] = talk
        return talk

    def _talk(self, talk: connection.Connection) -> None:
        now = self._clock()
        talk.write(now)
        if talk.reading:
            talk.read(now)
        elif not talk.writing and not isinstance(talk.port, CharDevice):
            talk.gone = True  # only a hang-up is told where nothing is waited for
        self._listen_to(talk)
        if talk.stream.input_size > HALF_MAX:
            self._make_room()

    def _make_room(self) -> None:
        """Refuse the half message that was begun last, if there is more of all than there is room for."""
        while sum(talk.stream.input_size for talk in self._talks.values()) > INPUT_MAX:
            halves = [talk for talk in self._talks.values() if talk.stream.half_size > HALF_MAX]
            if not halves:
                return  # what waits for its turn is bounded by how much half messages were let come
            newest = max(halves, key=lambda talk: talk.half_since or 0.0)
            newest.stream.refuse(Fault(Code.BUSY, "other hosts are sending too much at once; call again later"))
            self._listen_to(newest)

    def _listen_to(self, talk: connection.Connection) -> None:
        for _ in range(EVENTS_MAX):
            event = None if talk.gone else talk.next_event(self._clock())
            if event is None:
                break
            self._tell(talk, event)
        else:
            self._turns[talk.id] = talk  # the others first
        self._settle(talk)

    def _tell(self, talk: connection.Connection, event: Incoming) -> None:
        match event:
            case Request(token, method, params):
                crowded = sum(t.stream.output_size for t in self._talks.values()) > UNSENT_MAX
                peer, wall = talk.peer, time.time()
                self._feed(events.Requested(talk.id, token, method, params, peer, wall, crowded, event.unheard))
            case Abandoned(token):
                self._feed(events.GivenUp(talk.id, token))
            case Refused(code, text) if not event.reset:
                self._feed(events.Malformed(code, text, talk.peer, time.time()))

    def _settle(self, talk: connection.Connection) -> None:
        """Write what waits, then close the conversation or wait for what it needs next."""
        if talk.id not in self._talks:
            return
        talk.write(self._clock())
        if talk.over:
            self._hang_up(talk)
        elif isinstance(talk.port, CharDevice):
            doubt = talk.in_doubt  # the end is there all the time, and a host that comes is told of as one to write to
            talk.port.arm(reading=talk.reading and not doubt, writing=talk.writing or doubt)
        else:
            wanted = selectors.EVENT_READ * talk.reading | selectors.EVENT_WRITE * talk.writing
            key = self._select.get_key(talk.port)
            if key.events != wanted:
                self._select.modify(talk.port, wanted, key.data)

    def _hang_up(self, talk: connection.Connection) -> None:
        for event in talk.stream.give_up():
            self._tell(talk, event)  # what it asked is done, though nobody waits for it
        del self._talks[talk.id]
        port = talk.port
        if isinstance(port, CharDevice):
            if talk.stream.output_size:
                port.drop()
            self._next(port)
        else:
            self._select.unregister(port)
            port.close()
        self._feed(events.Disconnected(talk.id))
        self.resume(self._clock(), at_once=True)
