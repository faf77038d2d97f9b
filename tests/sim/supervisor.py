"""The supervisor: the real core with its real deadlines, in a loop that may be stopped, delayed or killed anywhere.

The loop is `supervisor/io/loop.py` in small: what was ready at one look is taken by rank (signals and reports, exits,
hosts), deadlines come before each event, and effects are applied in order. A death may come between any two effects.
"""

from __future__ import annotations

import errno
import signal
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from virtagent.supervisor.core import events
from virtagent.supervisor.core.compensation import RETRY
from virtagent.supervisor.core.engine import Engine
from virtagent.supervisor.core.inline import HANDLERS
from virtagent.supervisor.core.timing import Key
from virtagent.supervisor.core.writers import PATIENCE, RELEASE
from virtagent.supervisor.io.timers import Timers

from . import process
from .oracle import WALL
from .writer import WriterProcess

if TYPE_CHECKING:
    from .process import Process
    from .world import World

_SIGNALS = {
    signal.SIGTERM: lambda: events.Stopped("SIGTERM"),
    signal.SIGHUP: events.Reload,
    signal.SIGUSR1: events.ShowStatus,
}


_OURS = ("thaw", "writer", "unlatch")


class Died(BaseException):
    """The supervisor was killed between two effects."""


class Deadlines(Timers):
    """The real heap of deadlines, which also tells all of them."""

    def times(self) -> list[float]:
        """Return when the keys are due."""
        return [at for at, _, _ in self._armed.values()]

    def of(self, keys: Iterable[Key]) -> list[float]:
        """Return when those of these keys are due that are armed."""
        return [self._armed[key][0] for key in keys if key in self._armed]


class Child:
    """A worker as the supervisor sees it."""

    __slots__ = ("adopted", "eof", "number", "process", "rubbish")

    def __init__(self, number: int, child: Process, *, adopted: bool = False) -> None:
        self.number = number
        self.process = child
        self.adopted = adopted
        self.eof = adopted
        self.rubbish = False


class Supervisor:
    """One life of the supervisor."""

    def __init__(self, world: World, found: events.JournalFound | None) -> None:
        self.world = world
        self.timers = Deadlines()
        self.engine = Engine(
            world.config, "simulated", world.now, 1000, self.timers, HANDLERS, last_freeze=world.last_freeze
        )
        self.children: dict[int, Child] = {}
        self.signals: deque[int] = deque()
        self.inbox: deque[events.Event] = deque()
        self.stopped = False
        self.quit = False
        self._lifeline: Process | None = None
        self._ready: deque[tuple[Any, Any]] = deque()
        self._untaken: list[events.Answer] = []
        self.apply = {
            events.Spawn: self._spawn,
            events.Adopt: self._adopt,
            events.Kill: self._kill,
            events.Probe: self._probe,
            events.Tell: self._tell,
            events.Answer: self._answer,
            events.WriteJournal: self._write_journal,
            events.RemoveJournal: self._remove_journal,
            events.Quit: self._quit,
            events.SetTitle: lambda _: None,
            events.Log: lambda _: None,
            events.LogStatus: lambda _: None,
            events.Configured: lambda _: None,
            events.KeepHandle: lambda _: None,
            events.KeepFreeze: self._keep_freeze,
        }
        self._first = deque[events.Event]([found or events.Woken()])
        if left := sorted(app.name for app in world.apps.values() if app.recorded):
            self._first.append(events.LatchesFound(tuple(left)))

    # -- the loop

    def can(self) -> bool:
        """Whether there is something for it to do."""
        if self.stopped:
            return False
        if self._first or self._ready or self.signals or self.inbox:
            return True
        if self._untaken and not self.world.hosts_slow:
            return True
        for child in self.children.values():
            if (child.process.pipe and not child.eof) or child.process.ended > process.DEAD:
                return True
            if child.process.ended == process.DEAD and not child.eof:
                return True
        nearest = self.timers.nearest()
        return nearest is not None and nearest <= self.world.now

    def step(self) -> None:
        """Take one thing of those that were ready at the last look, or look again."""
        if self._first:
            self.feed(self._first.popleft())
            return
        if not self._ready:
            self._look()
        if self._ready:
            take, what = self._ready.popleft()
            take(what)
        else:
            self.feed()

    def _look(self) -> None:
        ready = self._ready
        while self.signals:
            ready.append((self._take_signal, self.signals.popleft()))
        children = list(self.children.values())
        for child in children:
            if not child.eof and (child.process.pipe or child.process.ended):
                ready.append((self._read, child))
        for child in children:
            if child.process.ended > process.DEAD:
                ready.append((self._reap, child))
        if self._untaken and not self.world.hosts_slow:
            ready.append((self._hosts_take, None))
        while self.inbox:
            ready.append((self._take_request, self.inbox.popleft()))

    def _take_signal(self, number: int) -> None:
        self.feed(_SIGNALS[signal.Signals(number)]())

    def _take_request(self, event: events.Event) -> None:
        if isinstance(event, events.Requested):
            self.world.oracle.asked(self.world.asked[event.connection, event.token])
            event = replace(event, wall=WALL + self.world.now)
        self.feed(event)
        if isinstance(event, events.Disconnected):
            self.world.lose(event.connection, unread=event.unread)

    def _read(self, child: Child) -> None:
        """Read what is in the report pipe; or its end."""
        if child.eof:
            return
        said = child.process.pipe
        if said:
            messages = list(said)
            said.clear()
            if child.rubbish:
                return
            for left, message in zip(range(len(messages), 0, -1), messages, strict=True):
                self.feed(events.Reported(child.number, message, more=left > 1))
        elif child.process.ended:
            child.eof = True
            self.feed(events.ReportEnded(child.number))

    def _reap(self, child: Child) -> None:
        dead = child.process
        if self.children.pop(child.number, None) is None:
            return
        while not child.eof:
            self._read(child)
        dead.ended = process.GONE
        self.world.forget()
        number = signal.SIGKILL if child.adopted else dead.signal
        self.feed(events.Exited(child.number, number, 0 if number else dead.code))

    def feed(self, event: events.Event | None = None) -> None:
        """Have the core take its deadlines that have passed, then the event; apply the effects in order."""
        world, queue = self.world, deque[events.Event]()
        if event is not None:
            queue.append(event)
        while (taken := self._next(queue)) is not None:
            if world.trace is not None:
                world.note(f"    {_short(taken)}")
            if isinstance(taken, events.RubbishReported):
                self.children[taken.worker].process.distrusted = True  # only now is it known
            effects = self.engine.handle(taken, world.now)
            world.oracle.decided(self.engine, taken, effects)
            for effect in effects:
                world.effect_comes()
                if world.trace is not None and not isinstance(effect, events.SetTitle):
                    world.note(f"        -> {_short(effect)}")
                drawn = self.apply[type(effect)](effect)
                if drawn is not None:
                    queue.append(drawn)
        world.oracle.acted(self.engine)

    def wakes_for_the_freeze(self) -> list[float]:
        """Return the seconds at which it wakes for a worker of a freeze, to thaw again, or for a writer."""
        those = [
            n for n, child in self.children.items() if child.process.row.compensation or child.process.rpc in _OURS
        ]
        return self.timers.of([RETRY, RELEASE, PATIENCE, *(("core", "worker", number) for number in those)])

    def seq(self) -> int:
        """Return the number of the present status record."""
        return self.engine._records.seq

    def cannot_read(self, name: int) -> bool:
        """Have the report pipe of that process fail; return False if it is not read any more."""
        child = next((c for c in self.children.values() if c.process.name == name and not c.eof), None)
        if child is None or child.rubbish or self.stopped:
            return False
        child.rubbish = True
        self._ready.append((self._take_rubbish, child))
        return True

    def _take_rubbish(self, child: Child) -> None:
        self.feed(events.RubbishReported(child.number, "cannot be read"))

    def _next(self, queue: deque[events.Event]) -> events.Event | None:
        key = self.timers.take_due(self.world.now, "core")
        if key is not None:
            return events.Due(key)
        if queue:
            return queue.popleft()
        key = self.timers.take_due(self.world.now, "watchers")
        return events.Due(key) if key is not None else None

    # -- effects

    def _spawn(self, spawn: events.Spawn) -> events.Event:
        world = self.world
        if world.forks_fail:
            return events.SpawnFailed(spawn.worker, OSError(errno.EAGAIN, "Resource temporarily unavailable"))
        child = world.fork(spawn.worker, spawn.rpc, spawn.args)
        child.parent = child.forked_by = self
        self.children[spawn.worker] = Child(spawn.worker, child)
        if spawn.lifeline is events.Lifeline.HOLD:
            self._lifeline = child
        if isinstance(child, WriterProcess):
            child.lifeline = self._lifeline if spawn.lifeline is events.Lifeline.WATCH else None
        return events.Spawned(spawn.worker, child.pid)

    def _adopt(self, adopt: events.Adopt) -> events.Event | None:
        orphan = self.world.process(adopt.pid)
        if orphan is None:
            return events.Exited(adopt.worker, signal.SIGKILL, 0)
        orphan.parent = self
        self.children[adopt.worker] = Child(adopt.worker, orphan, adopted=True)
        return None

    def _kill(self, kill: events.Kill) -> None:
        child = self.children.get(kill.worker)
        if child is not None:
            child.process.kill()

    def _probe(self, probe: events.Probe) -> events.Event:
        child = self.children.get(probe.worker)
        if child is None:
            return events.Probed(probe.worker, "gone")
        return events.Probed(probe.worker, child.process.state, child.process.killed)

    def _tell(self, tell: events.Tell) -> None:
        child = self.children.get(tell.worker)
        if child is not None and not child.adopted and not child.process.ended:
            child.process.control.append(tell.message)

    def _answer(self, answer: events.Answer) -> events.Event | None:
        self.world.answered(answer.connection, answer.token, answer.value)
        if not answer.receipt or answer.connection not in self.world.connections:
            return None
        if self.world.hosts_slow:
            self._untaken.append(answer)
            return None
        return self._take_reply(answer)

    def _take_reply(self, answer: events.Answer) -> events.Event:
        self.world.oracle.taken(answer.connection, answer.value)
        return events.Taken(answer.connection, answer.token)

    def _hosts_take(self, _nothing: None) -> None:
        """Have the hosts take the replies that they had not taken."""
        replies, self._untaken = self._untaken, []
        for answer in replies:
            if answer.connection in self.world.connections:
                self.feed(self._take_reply(answer))

    def _write_journal(self, write: events.WriteJournal) -> events.Event:
        if self.world.journal_fails:
            return events.JournalFailed(write.freeze, OSError(errno.ENOSPC, "No space left on device"))
        self.world.write_journal(write)
        return events.Journaled(write.freeze)

    def _remove_journal(self, _remove: events.RemoveJournal) -> None:
        self.world.remove_journal()

    def _keep_freeze(self, keep: events.KeepFreeze) -> None:
        self.world.last_freeze = keep.number

    def _quit(self, _quit: events.Quit) -> None:
        self.quit = True


def _short(what: object) -> str:
    return f"{what!r:.300}"
