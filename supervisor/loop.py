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

from ..agent import worker
from ..agent.errors import Fault
from ..agent.text import printable
from ..agent.wire.messages import Abandoned, Limits, Refused, Request
from . import channel, events
from .children import Child, Children
from .config import Config
from .core import Core
from .journal import Journal, start_time
from .log import Log
from .notify import Notify
from .process import Processes
from .status import Record

UNSENT_MAX = 64 << 20  # bytes of replies that hosts have not read, above which only essential RPCs are admitted
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
        journal: Journal,
        log: Log,
        processes: Processes,
        clock: Callable[[], float],
        notify: Notify,
    ) -> None:
        self._config = config
        self._core = core
        self._journal = journal
        self._log = log
        self._processes = processes
        self._clock = clock
        self._children = Children(processes)
        self._listeners: list[channel.Listener] = []
        self._queue: deque[events.Event] = deque()
        self._feeding = False
        self._turns: deque[channel.Conversation] = deque()
        self._talks: dict[int, channel.Conversation] = {}
        self._last_talk = 0
        self._notify = notify
        self._feed_watchdog_at = None if notify.interval is None else clock()
        self._select = selectors.EpollSelector()
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

    def listen(self, listener: channel.Listener) -> None:
        """Accept hosts there."""
        self._listeners.append(listener)
        self._listen(listener)

    def feed(self, event: events.Event) -> None:
        """Have the core take an event, and apply what it decides, in order."""
        self._queue.append(event)
        if self._feeding:
            return  # what an effect brings about comes after the effects that stand behind it
        self._feeding = True
        try:
            while self._queue:
                for effect in self._core.handle(self._queue.popleft(), self._clock()):
                    drawn = self._effects[type(effect)](effect)
                    if drawn is not None:
                        self._queue.append(drawn)
        finally:
            self._feeding = False
        self._write_log()

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        while self._exit is None:
            ready = self._select.select(self._patience())
            for key, _ in sorted(ready, key=lambda item: item[0].data[0]):
                # What stands before it in this turn may have closed it.
                if self._select.get_map().get(key.fd) is key:
                    key.data[1]()
            now = self._clock()
            nearest = self._core.nearest()
            if nearest is not None and nearest <= now:
                self.feed(events.Woken())
            self._expire(now)
            self._feed_watchdog(now)
            while self._turns:
                self._listen_to(self._turns.popleft())
        self._close()
        return self._exit

    def _feed_watchdog(self, now: float) -> None:
        if self._notify.interval is not None and self._feed_watchdog_at is not None and self._feed_watchdog_at <= now:
            self._say("WATCHDOG=1")
            self._feed_watchdog_at = now + self._notify.interval

    def _patience(self) -> float | None:
        """Return how long to wait, in whole milliseconds rounded up, so that a deadline is past when it ends."""
        moments = [t.deadline() for t in self._talks.values()] + [x.paused_until for x in self._listeners]
        moments.append(self._feed_watchdog_at)
        nearest = min((m for m in (self._core.nearest(), *moments) if m is not None), default=None)
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

    # -- effects

    def _spawn(self, spawn: events.Spawn) -> events.Event:
        try:
            child = self._children.fork(worker.Job(spawn.worker, spawn.rpc, spawn.args))
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
        self._config = effect.config
        self._log.choose(effect.config.log_level)

    def _log_status(self, effect: events.LogStatus) -> None:
        status = effect.record.dump(self._processes.state)
        self._log.add("notice", f"status: {json.dumps(status)}")

    def _answer(self, answer: events.Answer) -> None:
        talk = self._talks.get(answer.connection)
        if talk is None:
            return
        value = answer.value
        if isinstance(value, Fault):
            talk.stream.fault(answer.token, value)
        else:
            if isinstance(value, Record):
                value = value.dump(self._processes.state)
            talk.stream.reply(answer.token, value)
        # What waited for its turn has it now, but must not be taken before what stands in the queue.
        self._turns.append(talk)
        self._settle(talk)

    def _set_title(self, title: events.SetTitle) -> None:
        text = printable(title.text)
        if title.until is not None:
            text += time.strftime(" %H:%M:%S", time.localtime(time.time() + title.until - self._clock()))
        setproctitle.setproctitle(f"{worker.TITLE}supervisor [{text}]")

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
        for message in messages:
            self.feed(events.Reported(child.id, message))
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
        self._resume(self._clock(), at_once=True)

    # -- hosts

    def _listen(self, listener: channel.Listener) -> None:
        listener.paused_until = None
        self._select.register(listener.sock, selectors.EVENT_READ, (3, lambda: self._accept(listener)))

    def _pause(self, listener: channel.Listener) -> None:
        listener.paused_until = self._clock() + channel.PAUSE
        self._select.unregister(listener.sock)

    def _resume(self, now: float, *, at_once: bool) -> None:
        for listener in self._listeners:
            if listener.paused_until is not None and (at_once or listener.paused_until <= now):
                self._listen(listener)

    def _accept(self, listener: channel.Listener) -> None:
        mates = sum(talk.peer.channel == listener.spec for talk in self._talks.values())
        if mates >= self._config.max_clients + channel.REFUSED_MAX:
            self._pause(listener)
            return
        try:
            accepted = listener.accept()
        except OSError as error:
            self._log.add("warning", f"{listener.spec}: accept: {error.strerror}")
            self._pause(listener)
            return
        if accepted is None:
            return
        sock, peer = accepted
        config = self._config
        limits = Limits(config.max_header, config.max_body, config.max_nesting)
        self._last_talk += 1
        refused = mates >= config.max_clients
        talk = channel.Conversation(self._last_talk, sock, peer, limits, config.message_age)
        if refused:
            talk.refuse(self._clock())
        self._talks[talk.id] = talk
        self._select.register(sock, selectors.EVENT_READ, (4, lambda: self._talk(talk)))

    def _talk(self, talk: channel.Conversation) -> None:
        now = self._clock()
        talk.write(now)
        if talk.reading:
            talk.read(now)
        self._listen_to(talk)

    def _listen_to(self, talk: channel.Conversation) -> None:
        while not talk.gone and (event := talk.next_event(self._clock())) is not None:
            match event:
                case Request(token, method, params):
                    crowded = sum(t.stream.output_size for t in self._talks.values()) > UNSENT_MAX
                    self.feed(events.Requested(talk.id, token, method, params, talk.peer, time.time(), crowded))
                case Abandoned(token):
                    self.feed(events.GivenUp(talk.id, token))
                case Refused(code, text):
                    self.feed(events.Malformed(code, text, talk.peer, time.time()))
        self._settle(talk)
        self._write_log()

    def _settle(self, talk: channel.Conversation) -> None:
        """Write what waits, then close the conversation or wait for what it needs next."""
        if talk.id not in self._talks:
            return
        talk.write(self._clock())
        if talk.over:
            self._hang_up(talk)
            return
        wanted = selectors.EVENT_READ * talk.reading | selectors.EVENT_WRITE * talk.writing
        key = self._select.get_key(talk.port)
        if key.events != wanted:
            self._select.modify(talk.port, wanted, key.data)

    def _hang_up(self, talk: channel.Conversation) -> None:
        del self._talks[talk.id]
        self._select.unregister(talk.port)
        talk.port.close()
        self.feed(events.Disconnected(talk.id))
        self._resume(self._clock(), at_once=True)

    def _expire(self, now: float) -> None:
        self._resume(now, at_once=False)
        for talk in list(self._talks.values()):
            deadline = talk.deadline()
            if deadline is not None and deadline <= now:
                talk.expire(now)
                self._listen_to(talk)

    def _close(self) -> None:
        for talk in list(self._talks.values()):
            talk.write(self._clock())
            talk.port.close()
        for listener in self._listeners:
            listener.close()
        signal.set_wakeup_fd(-1)
        self._select.close()
        self._log.write()
