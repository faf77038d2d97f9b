"""One turn of the core: when it is, and what is to be done about it. Pure.

A turn is passed wherever something may be decided. Each decision is a method, which appends an effect in order.
"""

from __future__ import annotations

from typing import Any

from ...agent.api.errors import Fault
from ...agent.api.methods import Rpc
from ...agent.worker import messages
from . import events
from .timing import Deadlines, Key


class Turn:
    """One turn. `now` is in seconds of the loop's clock; `wall` is the time of day, in seconds since the epoch."""

    __slots__ = ("_deadlines", "effects", "now", "wall")

    def __init__(self, now: float, wall: float, deadlines: Deadlines) -> None:
        self.now = now
        self.wall = wall
        self.effects: list[events.Effect] = []
        self._deadlines = deadlines

    def told(self, wall: float) -> None:
        """Take note of the time of day, as a request has just brought it."""
        self.wall = wall

    def at_time(self, wall: float) -> float:
        """Return which second of the loop's clock that time of day is; now for 0."""
        return self.now + wall - self.wall if wall else self.now

    def answer(self, connection: int, token: int, value: Any | Fault, *, receipt: bool = False) -> None:
        """Reply to a request; `receipt` asks to be told when the host has taken it."""
        self.effects.append(events.Answer(connection, token, value, receipt))

    def spawn(self, worker: int, row: Rpc, args: dict[str, Any], lifeline: events.Lifeline | None = None) -> None:
        """Fork a worker."""
        self.effects.append(events.Spawn(worker, row.name, args, lifeline))

    def adopt(self, worker: int, pid: int, started: int) -> None:
        """Adopt the freeze worker that a dead supervisor left."""
        self.effects.append(events.Adopt(worker, pid, started))

    def kill(self, worker: int) -> None:
        """Send SIGKILL."""
        self.effects.append(events.Kill(worker))

    def probe(self, worker: int) -> None:
        """Look at the process state."""
        self.effects.append(events.Probe(worker))

    def tell(self, worker: int, message: messages.Control) -> None:
        """Write to the worker's control pipe."""
        self.effects.append(events.Tell(worker, message))

    def log(self, level: str, text: str, entry: events.Entry | None = None) -> None:
        """Write a line to the log; `entry` is what it tells programs."""
        self.effects.append(events.Log(level, text, entry))

    def title(self, text: str, until: float | None) -> None:
        """Show this in ps."""
        self.effects.append(events.SetTitle(text, until))

    def journal(self, freeze: int, pid: int, record: dict[str, Any]) -> None:
        """Replace the journal."""
        self.effects.append(events.WriteJournal(freeze, pid, record))

    def no_journal(self) -> None:
        """Remove the journal."""
        self.effects.append(events.RemoveJournal())

    def do(self, effect: events.Effect) -> None:
        """Do something rare, which has no method of its own."""
        self.effects.append(effect)

    def arm(self, key: Key, seconds: float) -> None:
        """Make `key` due after `seconds`."""
        self._deadlines.arm(key, self.now + seconds)

    def cancel(self, key: Key) -> None:
        """Disarm `key`."""
        self._deadlines.cancel(key)

    def left(self, key: Key) -> float:
        """Return the seconds until `key` is due, or -1 if it is not armed."""
        return self._deadlines.left(key, self.now)
