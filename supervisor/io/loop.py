"""The only blocking call: it waits for descriptors and the nearest deadline. What came is given to the core as events.

In one turn reports of workers come before their deaths, and both before requests of hosts (poller.py); before each
event come the deadlines that have passed. So no answer is older than the facts.
"""

from __future__ import annotations

import math
import signal
import socket
from collections import deque
from collections.abc import Callable

from ..channels.connections import Connections
from ..channels.transport import Endpoint
from ..config import Config
from ..core import events, timing
from ..core.engine import Engine
from .children import Children
from .effects import Effects
from .journal import Journal
from .log import Log
from .log_writer import AGAIN, LogFile
from .notify import Notify
from .poller import READ, REPORTS, WRITE, WRITES, Poller
from .process import Processes
from .timers import Timers

LONGEST = 86400.0  # seconds of one wait; epoll_wait(2) takes at most 2**31 ms
_WATCHDOG = ("watchdog",)
_LOG_WRITER = ("log-writer",)
_SIGNALS: dict[int, Callable[[int], events.Event]] = {
    signal.SIGTERM: lambda number: events.Stopped(signal.Signals(number).name),
    signal.SIGINT: lambda number: events.Stopped(signal.Signals(number).name),
    signal.SIGHUP: lambda _: events.Reload(),
    signal.SIGUSR1: lambda _: events.ShowStatus(),
}


class Loop:
    """The loop of the supervisor: it waits, feeds the core, and applies the effects; `run` returns the exit code."""

    def __init__(
        self,
        config: Config,
        core: Engine,
        timers: Timers,
        journal: Journal,
        log: Log,
        processes: Processes,
        clock: Callable[[], float],
        notify: Notify,
    ) -> None:
        self._core = core
        self._timers = timers
        self._log = log
        self._clock = clock
        self._notify = notify
        self._queue: deque[events.Event] = deque()
        self._feeding = False
        self._hurry = False
        self._poller = Poller()
        self._connections = Connections(config, self._poller, timers, log, clock, self.feed)
        troubles, ended = self._connections.troubles, self._connections.has_room
        children = Children(processes, self._poller, timers, clock, self.feed, ended, troubles)
        self._effects = Effects(children, self._connections, journal, log, processes, clock)
        self._due: dict[object, Callable[[timing.Key], None]] = {
            timing.OWNER: lambda key: self.feed(events.Due(key)),
            "watchers": lambda key: self.feed(events.Due(key)),
            "connection": self._connections.due,
            "listener": self._connections.due,
            "device": self._connections.due,
            "orphan": children.adopt_again,
            "standby": children.stand_by_again,
            "watchdog": self._feed_watchdog,
            "log-writer": self._start_writer,
        }
        self._wakeup_r, self._wakeup_w = socket.socketpair()
        for end in (self._wakeup_r, self._wakeup_w):
            end.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up descriptor reports it
        signal.set_wakeup_fd(self._wakeup_w.fileno())
        self._poller.register(self._wakeup_r.fileno(), REPORTS, READ, self._on_signal)
        if notify.interval is not None:
            timers.arm(_WATCHDOG, clock())
        self._log_waits = False
        self._log_file = log.sink if isinstance(log.sink, LogFile) else None
        self._watch_writer()

    def listen(self, endpoint: Endpoint) -> None:
        """Let hosts come to this endpoint."""
        self._connections.listen(endpoint)

    def feed(self, event: events.Event | None = None) -> None:
        """Give the core its deadlines that have passed, then `event`; apply the effects in order."""
        if event is not None:
            self._queue.append(event)
        if self._feeding:
            return  # an event that an effect causes is taken after the other effects of the same turn
        self._feeding = True
        apply = self._effects.table
        try:
            while (self._queue or event is None) and (taken := self._next(now := self._clock())) is not None:
                for effect in self._core.handle(taken, now):
                    drawn = apply[type(effect)](effect)
                    if drawn is not None:
                        self._queue.append(drawn)
        finally:
            self._feeding = False
        self._write_log()

    def _next(self, now: float) -> events.Event | None:
        """Return the core's next event, deadlines first: an answer must not be based on a hold that is over."""
        key = self._timers.take_due(now, timing.OWNER)
        if key is not None:
            return events.Due(key)
        return self._queue.popleft() if self._queue else None

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        while self._effects.exit_code is None:
            self._write_log()
            self._poller.turn(self._time_to_wait())
            self._take_due()
            self._hurry = self._connections.take_turns()
        self._close()
        return self._effects.exit_code

    def _time_to_wait(self) -> float | None:
        """Return how long to wait in seconds, rounded up to milliseconds, so that the deadline has passed then."""
        if self._hurry:
            return 0.0
        nearest = self._timers.nearest()
        if nearest is None:
            return None
        return min(max(0.0, math.ceil((nearest - self._clock()) * 1000) / 1000), LONGEST)

    def _take_due(self) -> None:
        """Do everything that is due, the core's deadlines first."""
        now = self._clock()
        nearest = self._timers.nearest()
        if nearest is None or nearest > now:
            return
        self.feed()
        while (key := self._timers.take_due(now)) is not None:
            self._due[key[0]](key)

    def _close(self) -> None:
        self._connections.close()
        signal.set_wakeup_fd(-1)
        self._poller.close()
        self._log.write()

    # -- the service manager, signals

    def _say(self, state: str) -> None:
        if wrong := self._notify.say(state):
            self._log.add("warning", wrong)

    def _feed_watchdog(self, key: timing.Key) -> None:
        if self._notify.interval is not None:
            self._say("WATCHDOG=1")
            self._timers.arm(key, self._clock() + self._notify.interval)

    def _on_signal(self) -> None:
        for number in self._wakeup_r.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._say("STOPPING=1")
                self._say("STATUS=stopping" + ("" if self._core.thawed else "; what may be frozen is thawed first"))
            if number in _SIGNALS:
                self.feed(_SIGNALS[number](number))

    # -- the log

    def _write_log(self) -> None:
        if not self._log.waiting:
            return
        waits = self._log.sink.waits_while_frozen and not self._core.thawed
        more = not waits and self._log.write()
        if more and not self._log_waits:
            try:
                self._poller.register(self._log.sink.fileno(), WRITES, WRITE, self._write_log)
            except OSError:
                return  # what waits is written in a later turn
        elif self._log_waits and not more:
            self._poller.unregister(self._log.sink.fileno())
        self._log_waits = more

    def _watch_writer(self) -> None:
        if self._log_file is not None:
            self._poller.register(self._log_file.pidfd, WRITES, READ, self._on_writer_end)

    def _on_writer_end(self) -> None:
        assert self._log_file is not None
        self._poller.unregister(self._log_file.pidfd)
        ended = self._log_file.reap()
        how = f"was killed by signal {ended.signal}" if ended and ended.signal else "ended"
        self._log.add("warning", f"the log writer {how}: what it had not written yet is lost; another goes on")
        self._timers.arm(_LOG_WRITER, self._clock() + AGAIN)

    def _start_writer(self, key: timing.Key) -> None:
        assert self._log_file is not None
        try:
            if self._log_file.pid < 0:
                self._log_file.start()
            self._watch_writer()
        except OSError as error:
            self._log.add("warning", f"the log writer could not be started or watched: {error.strerror}")
            self._timers.arm(key, self._clock() + AGAIN)
