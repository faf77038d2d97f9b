"""The only blocking call: waits for descriptors and the nearest deadline, makes events of what came, applies effects.

What workers say and how they end is taken before what hosts ask, so that no answer is older than the facts.
"""

from __future__ import annotations

import json
import math
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import setproctitle

from ...agent.api.text import printable
from ...agent.worker import context
from ..channels.char_device import CharDevice
from ..channels.connections import Connections
from ..channels.listener import Listener
from ..config import Config
from ..core import events, timing
from ..core.engine import Core
from ..core.status import Record
from .children import Child, Children
from .journal import Journal, start_time
from .log import Log
from .log_writer import AGAIN, LogFile
from .notify import Notify
from .process import Processes
from .timers import Timers

LONGEST = 86400.0  # seconds of one wait; epoll_wait(2) takes at most 2**31 ms
_SIGNALS: dict[int, Callable[[int], events.Event]] = {
    signal.SIGTERM: lambda number: events.Stopped(signal.Signals(number).name),
    signal.SIGINT: lambda number: events.Stopped(signal.Signals(number).name),
    signal.SIGHUP: lambda _: events.Reload(),
    signal.SIGUSR1: lambda _: events.ShowStatus(),
}


class Loop:
    """The supervisor's hands and ears; `run` ends with the exit code."""

    def __init__(
        self,
        config: Config,
        core: Core,
        timers: Timers,
        journal: Journal,
        log: Log,
        processes: Processes,
        clock: Callable[[], float],
        notify: Notify,
    ) -> None:
        self._core = core
        self._timers = timers
        self._journal = journal
        self._log = log
        self._processes = processes
        self._clock = clock
        self._children = Children(processes)
        self._queue: deque[events.Event] = deque()
        self._feeding = False
        self._hurry = False
        self._notify = notify
        self._feed_watchdog_at = None if notify.interval is None else clock()
        self._select = selectors.EpollSelector()
        self._hosts = Connections(config, self._select, log, clock, self.feed)
        self._log_waits = False
        self._exit: int | None = None
        self._effects: dict[type, Callable[[Any], events.Event | None]] = {
            events.Spawn: self._spawn,
            events.Adopt: self._adopt,
            events.Probe: self._probe,
            events.Kill: lambda effect: self._children.kill(effect.worker),
            events.Tell: self._tell,
            events.KeepHandle: self._keep_handle,
            events.Answer: self._answer,
            events.SetTitle: self._set_title,
            events.Log: lambda effect: self._log.add(effect.level, effect.text),
            events.LogStatus: self._log_status,
            events.Configured: self._configured,
            events.WriteJournal: self._write_journal,
            events.RemoveJournal: self._remove_journal,
            events.Quit: self._quit,
        }
        self._wakeup_r, wakeup_w = socket.socketpair()
        self._wakeup_w = wakeup_w
        for end in (self._wakeup_r, wakeup_w):
            end.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up descriptor tells
        signal.set_wakeup_fd(wakeup_w.fileno())
        self._select.register(self._wakeup_r, selectors.EVENT_READ, (0, self._signalled))
        self._log_file = log.sink if isinstance(log.sink, LogFile) else None
        self._start_writer_at: float | None = None
        self._watch_writer()

    def listen(self, way: Listener | CharDevice) -> None:
        """Have hosts come that way."""
        self._hosts.listen(way)

    def feed(self, event: events.Event | None = None) -> None:
        """Give the core its deadlines that have passed, then `event`; apply what it decides, in order."""
        if event is not None:
            self._queue.append(event)
        if self._feeding:
            return  # what an effect brings about comes after the effects that stand behind it
        self._feeding = True
        try:
            while (taken := self._next(now := self._clock())) is not None:
                for effect in self._core.handle(taken, now):
                    drawn = self._effects[type(effect)](effect)
                    if drawn is not None:
                        self._queue.append(drawn)
        finally:
            self._feeding = False
        self._write_log()

    def _next(self, now: float) -> events.Event | None:
        """Return what the core is to take next. An answer must not be given on a hold that is over."""
        key = self._timers.take_due(now, timing.OWNER)
        if key is not None:
            return events.Due(key)
        return self._queue.popleft() if self._queue else None

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        while self._exit is None:
            self._write_log()
            ready = self._select.select(self._patience())
            for key, _ in sorted(ready, key=lambda item: item[0].data[0]):
                # What stands before it in this turn may have closed it.
                if self._select.get_map().get(key.fd) is key:
                    key.data[1]()
            now = self._clock()
            nearest = self._timers.nearest()
            if nearest is not None and nearest <= now:
                self.feed()
            self._hosts.expire(now)
            self._feed_watchdog(now)
            self._start_writer(now)
            self._hurry = self._hosts.take_turns()
        self._close()
        return self._exit

    def _feed_watchdog(self, now: float) -> None:
        if self._notify.interval is not None and self._feed_watchdog_at is not None and self._feed_watchdog_at <= now:
            self._say("WATCHDOG=1")
            self._feed_watchdog_at = now + self._notify.interval

    def _patience(self) -> float | None:
        """Return how long to wait, in whole milliseconds rounded up, so that a deadline is past when it ends."""
        if self._hurry:
            return 0.0
        moments = (self._timers.nearest(), self._feed_watchdog_at, self._start_writer_at, *self._hosts.deadlines())
        nearest = min((m for m in moments if m is not None), default=None)
        if nearest is None:
            return None
        return min(max(0.0, math.ceil((nearest - self._clock()) * 1000) / 1000), LONGEST)

    def _say(self, state: str) -> None:
        if wrong := self._notify.say(state):
            self._log.add("warning", wrong)

    # -- signals, log

    def _signalled(self) -> None:
        for number in self._wakeup_r.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._say("STOPPING=1")
            if number in _SIGNALS:
                self.feed(_SIGNALS[number](number))

    def _write_log(self) -> None:
        waits = self._log.sink.waits_while_frozen and not self._core.thawed
        more = not waits and self._log.write()
        if more and not self._log_waits:
            self._select.register(self._log.sink, selectors.EVENT_WRITE, (2, self._write_log))
        elif self._log_waits and not more:
            self._select.unregister(self._log.sink)
        self._log_waits = more

    def _watch_writer(self) -> None:
        if self._log_file is not None:
            self._select.register(self._log_file.pidfd, selectors.EVENT_READ, (2, self._writer_ended))

    def _writer_ended(self) -> None:
        assert self._log_file is not None
        self._select.unregister(self._log_file.pidfd)
        ended = self._log_file.reap()
        how = f"was killed by signal {ended.signal}" if ended and ended.signal else "ended"
        self._log.add("warning", f"the log writer {how}: what it had not written yet is lost; another goes on")
        self._start_writer_at = self._clock() + AGAIN

    def _start_writer(self, now: float) -> None:
        if self._log_file is None or self._start_writer_at is None or self._start_writer_at > now:
            return
        try:
            self._log_file.start()
        except OSError as error:
            self._log.add("warning", f"the log writer could not be started: {error.strerror}")
            self._start_writer_at = now + AGAIN
            return
        self._start_writer_at = None
        self._watch_writer()

    # -- effects

    def _spawn(self, spawn: events.Spawn) -> events.Event:
        try:
            child = self._children.fork(context.Job(spawn.worker, spawn.rpc, spawn.args))
        except OSError as error:
            return events.SpawnFailed(spawn.worker, error)
        self._select.register(child.report_fd, selectors.EVENT_READ, (0, lambda: self._report(child)))
        self._select.register(child.pidfd, selectors.EVENT_READ, (1, lambda: self._reap(child)))
        return events.Spawned(spawn.worker, child.pid)

    def _adopt(self, adopt: events.Adopt) -> events.Event | None:
        try:
            child = self._children.adopt(adopt.worker, adopt.pid)
        except OSError:
            return events.Exited(adopt.worker, signal.SIGKILL, 0)
        # The pid could have become another's before the descriptor was opened; from now on it cannot.
        if start_time(adopt.pid) != adopt.started:
            self._children.forget(child)
            return events.Exited(adopt.worker, signal.SIGKILL, 0)
        self._select.register(child.pidfd, selectors.EVENT_READ, (1, lambda: self._reap(child)))
        return None

    def _probe(self, probe: events.Probe) -> events.Event:
        return events.Probed(probe.worker, self._processes.state(self._children.pid(probe.worker)))

    def _configured(self, effect: events.Configured) -> None:
        self._hosts.config = effect.config
        self._log.choose(effect.config.log_level)

    def _log_status(self, effect: events.LogStatus) -> None:
        status = effect.record.dump(self._processes.state)
        self._log.add("notice", f"status: {json.dumps(status)}")

    def _answer(self, answer: events.Answer) -> None:
        value = answer.value
        if isinstance(value, Record):
            value = value.dump(self._processes.state)
        self._hosts.answer(answer.connection, answer.token, value)

    def _set_title(self, title: events.SetTitle) -> None:
        text = printable(title.text)
        if title.until is not None:
            text += time.strftime(" %H:%M:%S", time.localtime(time.time() + title.until - self._clock()))
        setproctitle.setproctitle(f"{context.TITLE}supervisor [{text}]")

    def _write_journal(self, write: events.WriteJournal) -> events.Event:
        try:
            self._journal.write(write.pid, write.record)
        except OSError as error:
            self._log.add("err", f"journal: {error}")
            return events.JournalFailed(write.freeze, error)
        return events.Journaled(write.freeze)

    def _remove_journal(self, effect: events.RemoveJournal) -> None:
        try:
            self._journal.remove()
        except OSError as error:
            self._log.add("err", f"journal: {error}; the next start will say that a freeze was broken")

    def _quit(self, effect: events.Quit) -> None:
        self._exit = effect.code

    # -- workers

    def _tell(self, tell: events.Tell) -> None:
        child = self._children.tell(tell.worker, tell.message)
        if child is not None:
            self._write_to(child)

    def _write_to(self, child: Child) -> None:
        more = child.write()
        if more and not child.waits:
            self._select.register(child.control_fd, selectors.EVENT_WRITE, (2, lambda: self._write_to(child)))
        elif child.waits and not more:
            self._select.unregister(child.control_fd)
        child.waits = more

    def _keep_handle(self, effect: events.KeepHandle) -> None:
        try:
            self._journal.keep_handle(effect.next)
        except OSError as error:
            self._log.add("warning", f"handles: {error}; after a restart numbers of files are given out again")

    def _report(self, child: Child) -> bool:
        """Take what the worker said; return whether there may be more."""
        taken = child.read()
        if taken is None:
            return False
        messages, wrong, end = taken
        for left, message in zip(range(len(messages), 0, -1), messages, strict=True):
            self.feed(events.Reported(child.id, message, more=left > 1))
        if wrong:
            self.feed(events.RubbishReported(child.id, wrong))
        if end:
            self._select.unregister(child.report_fd)
            child.close_report()
            self.feed(events.ReportEnded(child.id))
        return not end

    def _reap(self, child: Child) -> None:
        ended = self._children.reap(child)
        if ended is None:
            return
        # What it wrote before it died is true, and comes first.
        while child.report_fd >= 0 and self._report(child):
            pass
        if child.report_fd >= 0:
            self._select.unregister(child.report_fd)
        self._select.unregister(child.pidfd)
        if child.waits:
            self._select.unregister(child.control_fd)
        child.close()
        self.feed(events.Exited(child.id, ended.signal, ended.code))
        self._hosts.resume(self._clock(), at_once=True)

    def _close(self) -> None:
        self._hosts.close()
        signal.set_wakeup_fd(-1)
        self._select.close()
        self._log.write()
