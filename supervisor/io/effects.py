"""Applying what the core has decided: one method for each kind of effect. It returns the event that follows, if any."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import setproctitle

from ...agent.api import timeofday
from ...agent.api.methods import RPCS, Disk
from ...agent.api.records import Status
from ...agent.api.text import printable
from ...agent.wire.messages import Shared
from ...agent.worker import context, queues
from ..channels.connections import Connections
from ..core import events, status
from .children import Children
from .journal import Journal
from .log import Log
from .process import Processes


class Effects:
    """The methods that apply effects; `exit_code` is None until it is decided."""

    def __init__(
        self,
        children: Children,
        connections: Connections,
        journal: Journal,
        log: Log,
        processes: Processes,
        clock: Callable[[], float],
    ) -> None:
        self.exit_code: int | None = None
        self._children = children
        self._connections = connections
        self._journal = journal
        self._log = log
        self._processes = processes
        self._clock = clock
        self._told: tuple[tuple[Status, Shared], ...] = ()
        self.table: dict[type, Callable[[Any], events.Event | None]] = {
            events.Spawn: self._spawn,
            events.Adopt: lambda effect: children.adopt(effect.worker, effect.pid, effect.started),
            events.Probe: self._probe,
            events.Kill: lambda effect: children.kill(effect.worker),
            events.Tell: lambda effect: children.tell(effect.worker, effect.message),
            events.KeepHandle: self._keep_handle,
            events.KeepFreeze: self._keep_freeze,
            events.Answer: self._answer,
            events.SetTitle: self._set_title,
            events.Log: lambda effect: log.add(effect.level, effect.text, effect.entry),
            events.LogStatus: self._log_status,
            events.Configured: self._configured,
            events.WriteJournal: self._write_journal,
            events.RemoveJournal: self._remove_journal,
            events.LookAtQueues: lambda effect: events.QueuesSeen(queues.left(effect.folder)),
            events.Quit: self._quit,
        }

    def _spawn(self, spawn: events.Spawn) -> events.Event:
        try:
            # ADR 0036: forked now, and not ahead.
            child = self._children.spawn(context.Job(spawn.worker, spawn.rpc, spawn.args), spawn.lifeline)
        except OSError as error:
            return events.SpawnFailed(spawn.worker, error)
        if RPCS[spawn.rpc].disk is Disk.FREEZES:
            # Now, while the worker plans. If it cannot be had now, it is tried again before anything is frozen.
            with contextlib.suppress(OSError):
                self._children.stand_by()
        return events.Spawned(spawn.worker, child.pid)

    def _probe(self, probe: events.Probe) -> events.Event:
        pid = self._children.pid(probe.worker)
        return events.Probed(probe.worker, self._processes.state(pid), self._processes.dying(pid))

    def _configured(self, effect: events.Configured) -> None:
        self._connections.config = effect.config
        self._log.choose(effect.config.log_level)

    def _log_status(self, effect: events.LogStatus) -> None:
        record = status.dump(effect.record, self._processes.state, self._connections.troubles.count)
        self._log.add("notice", f"status: {json.dumps(record)}")

    def _answer(self, answer: events.Answer) -> None:
        value = answer.value
        if isinstance(value, Status):
            value = self._shared(value)
        self._connections.answer(answer.connection, answer.token, value, receipt=answer.receipt)

    def _shared(self, record: Status) -> Shared:
        """Return the record as it is sent, made once for all who are told it now."""
        for known, shared in self._told:
            if known is record:
                return shared
        made = Shared(status.dump(record, self._processes.state, self._connections.troubles.count))
        self._told = (*self._told[-1:], (record, made))  # the last two: a brief one and a whole one
        return made

    def _set_title(self, title: events.SetTitle) -> None:
        text = printable(title.text)
        if title.until is not None:  # ADR 0001: the time of day, since a count needs a wake-up a second
            text += f" {timeofday.clock(time.time() + title.until - self._clock())}"
        setproctitle.setproctitle(f"{context.TITLE}supervisor [{text}]")

    def _write_journal(self, write: events.WriteJournal) -> events.Event:
        try:
            if write.pid:
                self._children.stand_by()
            else:
                self._children.dismiss()
            self._journal.write(write.pid, write.record)
        except events.NoStandby as error:
            self._log.add("err", f"no process can be had ahead for the thaw: {error.strerror}")
            return events.JournalFailed(write.freeze, error)
        except OSError as error:
            self._log.add("err", f"journal: {error}")
            return events.JournalFailed(write.freeze, error)
        return events.Journaled(write.freeze)

    def _remove_journal(self, effect: events.RemoveJournal) -> None:
        self._children.dismiss()
        try:
            self._journal.remove()
        except OSError as error:
            self._log.add("err", f"journal: {error}; the next start will say that a freeze was broken")

    def _keep_handle(self, effect: events.KeepHandle) -> None:
        try:
            self._journal.keep_handle(effect.next)
        except OSError as error:
            self._log.add("warning", f"handles: {error}; after a restart numbers of files are given out again")

    def _keep_freeze(self, effect: events.KeepFreeze) -> None:
        try:
            self._journal.keep_freeze(effect.number)
        except OSError as error:
            self._log.add("warning", f"freeze-id: {error}; after a restart numbers of freezes are given out again")

    def _quit(self, effect: events.Quit) -> None:
        self.exit_code = effect.code
