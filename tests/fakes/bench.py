"""Connections with real descriptors and no daemon: what hosts say is a list, and what is logged another."""

from __future__ import annotations

from virtagent.supervisor.channels.connections import Connections
from virtagent.supervisor.config import Config
from virtagent.supervisor.core import events
from virtagent.supervisor.io.log import Log
from virtagent.supervisor.io.poller import Poller
from virtagent.supervisor.io.timers import Timers


class Sink:
    """A log that is read as a list."""

    waits_while_frozen = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def fileno(self) -> int:
        return -1

    def line(self, priority: int, text: str, entry: events.Entry | None = None) -> bytes:
        return text.encode()

    def write(self, data: bytes) -> int:
        self.lines.append(data.decode())
        return len(data)


class Bench:
    """Connections, and what they fed: each request is answered with the number of its connection."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fed: list[events.Event] = []
        self.sink = Sink()
        self.log = Log(self.sink, "debug")
        self.poller = Poller()
        self.timers = Timers()
        config = Config(message_age=5)
        self.hosts = Connections(config, self.poller, self.timers, self.log, lambda: self.now, self.feed)
        self.answers = True
        self.answered_methods: tuple[str, ...] = ()  # of any other none is answered; empty: all are

    def feed(self, event: events.Event) -> None:
        self.fed.append(event)
        if not isinstance(event, events.Requested) or not self.answers:
            return
        if not self.answered_methods or event.method in self.answered_methods:
            self.hosts.answer(event.connection, event.token, f"to {event.connection}")

    def turn(self) -> int:
        """Do what is ready, until nothing is; return how many turns that took."""
        for turns in range(50):
            if not self.poller.turn(0):
                return turns
            self.hosts.take_turns()
        raise AssertionError("it is ready all the time: the loop would spin")

    def due(self) -> None:
        """Do what is due."""
        while (key := self.timers.take_due(self.now)) is not None:
            self.hosts.due(key)

    def methods(self) -> list[tuple[int, str]]:
        return [(e.connection, e.method) for e in self.fed if isinstance(e, events.Requested)]

    def gone(self) -> list[int]:
        return [e.connection for e in self.fed if isinstance(e, events.Disconnected)]

    def lines(self) -> list[str]:
        self.log.write()
        return self.sink.lines
