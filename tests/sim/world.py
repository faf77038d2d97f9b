"""The machine of one storm: kernel, processes, supervisor, hosts, journal, and a clock that only the storm moves.

Whoever can go on has a name: "S" the supervisor, "3" the main thread of the third process, "3:1" its thread of file
system 1, "3x" its death. So a list of names replays an interleaving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtagent.agent.api.records import Mount, Plan
from virtagent.agent.api.writers import WriterConfig
from virtagent.supervisor.config import Config
from virtagent.supervisor.core import events

from . import process
from .kernel import FLOWS, FOREIGNER, FileSystem, Kernel
from .oracle import WALL, Oracle
from .pairing import Violation
from .process import Process
from .supervisor import Died, Supervisor
from .writer import App, process_of

PEER = events.Peer("unix:/run/a", "pid:1,uid:0")
BEGIN = 1000.0


@dataclass(slots=True)
class Asked:
    """A request of a host: what it was answered; `lost`: its connection or its supervisor is gone."""

    connection: int
    token: int
    method: str
    sent: int
    answers: list[Any] = field(default_factory=list)
    lost: bool = False
    params: Any = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """What is mounted: for each file system on which others it lies in truth, and whether the plan knows that.

    `writers` are the applications that take part.
    """

    below: tuple[tuple[int, ...], ...]
    known: tuple[bool, ...]
    supported: tuple[bool, ...]
    writers: tuple[WriterConfig, ...] = ()


class World:
    """One machine."""

    def __init__(self, layout: Layout, limits: Mapping[str, float], *, trace: list[str] | None = None) -> None:
        self.now = BEGIN
        self.moment = 0
        self.trace = trace
        self.config = Config(**limits, every_writer=layout.writers)
        self.apps = {one.name: App(one) for one in layout.writers}
        self.freezer: Process | None = None
        self.layout = layout
        below: dict[int, frozenset[int]] = {}
        for i in reversed(range(len(layout.below))):  # each lies on later ones only
            below[i] = frozenset(layout.below[i]).union(*(below[j] for j in layout.below[i]))
        every = [FileSystem(i, below[i], supported=layout.supported[i]) for i in range(len(below))]
        self.oracle = Oracle(self)
        self.kernel = Kernel(every, self.oracle.changed)
        self.plan: Plan | Exception = _plan(layout)
        self.may_expedite = True
        self.no_threads = self.forks_fail = self.journal_fails = self.pipes_full = self.hosts_slow = False
        self.no_counters = False
        self.last_freeze = 0
        self.journal: events.WriteJournal | None = None
        self.torn = False
        self.processes: list[Process] = []
        self.forked = 0
        self.supervisor: Supervisor | None = None
        self.asked: dict[tuple[int, int], Asked] = {}
        self.connections: set[int] = set()
        self._last_connection = self._last_token = 0
        self.dies_in = self.slow_for = self.late_in = 0
        self.counts: dict[str, int] = {}

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now - BEGIN:9.4f} {line}")

    def count(self, what: str) -> None:
        """Count that this has happened."""
        self.counts[what] = self.counts.get(what, 0) + 1

    # -- who can go on

    def runnable(self) -> list[str]:
        """Return the names of all that can go on."""
        found = []
        supervisor = self.supervisor
        if supervisor is not None and supervisor.can():
            found.append("S")
        for one in self.processes:
            if one.ended:
                if one.ended == process.DEAD:
                    found.append(f"{one.name}x")
                continue
            if one.main_can():
                found.append(str(one.name))
            for thread in one.threads.values():
                if thread.operation is not None and one.thread_can(thread):
                    found.append(thread.name)
        return found

    def let(self, name: str) -> bool:
        """Let the one of that name go on; return False if it cannot."""
        if name == "S":
            supervisor = self.supervisor
            if supervisor is None or not supervisor.can():
                return False
            self.moment += 1
            self.note("S")
            try:
                supervisor.step()
            except Died:
                self.note("    the supervisor dies")
                self._bury()
            else:
                if supervisor.quit:
                    self.oracle.quits()
                    self._bury()
            return True
        number, colon, index = name.partition(":")
        dies = name.endswith("x")
        wanted = int(number.rstrip("x"))
        one = next((p for p in self.processes if p.name == wanted), None)
        if one is None:
            return False
        self.moment += 1
        if dies:
            if one.ended != process.DEAD:
                return False
            has_parent = self.supervisor is not None and one.parent is self.supervisor
            one.ended = process.REAPABLE if has_parent else process.GONE  # init reaps it
            self.note(f"{name}: ended")
            self.forget()
        elif colon:
            thread = one.threads.get(int(index))
            if one.ended or thread is None or thread.operation is None or not one.thread_can(thread):
                return False
            before = thread.call.stage if thread.call else -1
            one.thread_step(thread)
            if self.trace is not None:
                at = f"in the kernel, stage {thread.call.stage}" if thread.call else f"errno {thread.error}"
                self.note(f"{name}: {thread.operation or 'reported'} ({before}) {at}")
        else:
            if one.ended or not one.main_can():
                return False
            self.note(name)
            one.main_step()
        return True

    def forget(self) -> None:
        """Forget those that are reaped."""
        self.processes = [p for p in self.processes if p.ended < process.GONE]

    # -- the supervisor's life

    def start(self) -> bool:
        """Start the daemon if it does not run."""
        if self.supervisor is not None:
            return False
        found = None
        if self.torn:
            found = self._unreadable()
        elif self.journal is not None:
            found = self._found(self.journal)
        self.note(f"the daemon starts, {'a journal' if found else 'no journal'}")
        self.dies_in = 0
        self.supervisor = Supervisor(self, found)
        self.oracle.started(found)
        return True

    def _found(self, journal: events.WriteJournal) -> events.JournalFound:
        record = journal.record
        lives = journal.pid > 0 and self.process(journal.pid) is not None
        orphan = (journal.pid, journal.pid) if lives else (0, 0)
        expedites = record["expedites"] is True
        told_at = record.get("told_at", 0.0)
        return events.JournalFound(
            record["freeze"], Plan.load(record["plan"]), record["untold"], orphan, expedites, told_at
        )

    def _unreadable(self) -> events.JournalFound:
        # As main._found: the journal is replaced by one that names all that can be frozen.
        assert self.journal is not None
        why = "a freeze was broken: the agent died, and its journal cannot be read"
        plan = self.plan if isinstance(self.plan, Plan) else Plan((), ())
        found = events.JournalFound(0, plan, why, expedites=True)
        record = {"freeze": 0, "plan": plan.dump(), "untold": why, "expedites": True}
        if not self.journal_fails:
            self.journal, self.torn = events.WriteJournal(0, 0, record), False
        return found

    def die(self) -> bool:
        """Kill the supervisor."""
        if self.supervisor is None:
            return False
        self.note("the supervisor is killed")
        self._bury()
        return True

    def effect_comes(self) -> None:
        """Die if that was to be before this effect; or let others go on, or time pass, if that was to be before it."""
        if self.slow_for:
            self.slow_for -= 1
            while found := [name for name in self.runnable() if name != "S"]:
                for name in found:
                    self.let(name)
        if self.late_in:
            self.late_in -= 1
            if not self.late_in and self.jump(amid=True):
                self.count("time passed between two effects")
        if self.dies_in:
            self.dies_in -= 1
            if not self.dies_in:
                self.count("death between two effects")
                raise Died

    def _bury(self) -> None:
        self.supervisor = None
        self.connections.clear()
        for call in self.asked.values():
            call.lost = call.lost or not call.answers
        for one in self.processes:
            one.abandon()
            if one.ended:
                one.ended = process.GONE
        self.forget()
        self.oracle.died()

    def fork(self, number: int, rpc: str, args: Mapping[str, Any]) -> Process:
        """Fork a worker."""
        self.forked += 1
        child = process_of(rpc)(self, self.forked, 5000 + self.forked, number, rpc, args)
        self.processes.append(child)
        if rpc == "va.fsfreeze":
            self.freezer = child
            self.oracle.begins()
        self.forget()
        self.count(f"fork of {rpc}")
        return child

    def process(self, pid: int) -> Process | None:
        """Return the process of that pid, if it is not reaped."""
        return next((p for p in self.processes if p.pid == pid and p.ended < process.GONE), None)

    # -- the journal

    def write_journal(self, write: events.WriteJournal) -> None:
        """Replace the journal."""
        self.journal, self.torn = write, False

    def remove_journal(self) -> None:
        """Remove the journal."""
        self.journal, self.torn = None, False

    def tear_journal(self) -> bool:
        """Make the journal unreadable; return False if there is none, or if a worker is left that nobody would know."""
        if self.supervisor is not None or self.journal is None or self.torn or self.processes:
            return False
        self.note("the journal cannot be read any more")
        self.torn = True
        return True

    # -- hosts

    def ask(
        self, method: str, params: Sequence[Any] | Mapping[str, Any] = (), connection: int | None = None
    ) -> Asked | None:
        """Send a request, by default on a new connection; None if nobody listens."""
        supervisor = self.supervisor
        if supervisor is None:
            return None
        if connection is None or connection not in self.connections:
            self._last_connection += 1
            connection = self._last_connection
            self.connections.add(connection)
        self._last_token += 1
        self.moment += 1
        call = Asked(connection, self._last_token, method, self.moment, params=params)
        self.asked[connection, call.token] = call
        wall = WALL + self.now
        given = dict(params) if isinstance(params, Mapping) else list(params)
        supervisor.inbox.append(events.Requested(connection, call.token, method, given, PEER, wall))
        self.note(f"host {connection} asks {method} {given}")
        return call

    def hang_up(self, connection: int, *, unread: bool = False) -> bool:
        """Have a host disconnect, perhaps with replies unread; return False if there is no such connection."""
        if self.supervisor is None or connection not in self.connections:
            return False
        self.note(f"host {connection} hangs up{', with replies unread' if unread else ''}")
        self.connections.discard(connection)
        self.supervisor.inbox.append(events.Disconnected(connection, unread))
        return True

    def lose(self, connection: int, *, unread: bool) -> None:
        """Take note that the supervisor knows that this host is gone."""
        self.oracle.lost(connection, unread=unread)
        for call in self.asked.values():
            call.lost = call.lost or (call.connection == connection and not call.answers)

    def answered(self, connection: int, token: int, value: Any) -> None:
        """Give a host its answer."""
        call = self.asked[connection, token]
        if call.lost:
            raise Violation(f"{call.method} was answered to a host that is gone")
        if call.answers:
            raise Violation(f"{call.method} was answered twice: {call.answers[0]}, {value}")
        call.answers.append(value)
        self.oracle.answered(call, value)

    # -- time

    def deadline(self) -> float:
        """Return the nearest second at which somebody wakes, infinity if nobody does."""
        soonest = math.inf
        if self.supervisor is not None:
            nearest = self.supervisor.timers.nearest()
            if nearest is not None:
                soonest = nearest
        for one in self.processes:
            soonest = min(soonest, one.due())
        return soonest

    def jump(self, until: float = math.inf, *, amid: bool = False) -> bool:
        """Let time pass until the nearest deadline that has not passed; return False if there is none by `until`.

        `amid`: between two effects, where nobody is at rest.
        """
        later = math.inf
        if self.supervisor is not None:
            later = min((at for at in self.supervisor.timers.times() if at > self.now), default=math.inf)
        for one in self.processes:
            if self.now < one.due() < later:
                later = one.due()
        if later == math.inf or later > until:
            return False
        if not amid and not self.runnable():
            self.oracle.quiet()
        self.now = later
        self.moment += 1
        self.note("time passes")
        return True

    # -- calm

    def settle(self, most: int = 20_000) -> None:
        """Let everybody go on, in a fixed order, until nobody can; no time passes."""
        for _ in range(most):
            found = self.runnable()
            if not found:
                self.oracle.quiet()
                return
            for name in found:
                self.let(name)
        raise Violation("it never comes to rest")

    def release_disks(self) -> None:
        """Let all disks work again."""
        self.note("calm: all disks work")
        for fs in self.kernel.every:
            fs.disk = FLOWS

    def end_faults(self) -> None:
        """Turn off all faults but stuck disks: forks and the journal work, who was stopped goes on, others let go."""
        self.note("calm: no more faults")
        self.no_threads = self.forks_fail = self.journal_fails = self.pipes_full = self.hosts_slow = False
        self.no_counters = False
        self.dies_in = self.late_in = 0
        for app in self.apps.values():
            app.refuses = app.hangs = app.undo_fails = False
        for fs in self.kernel.every:
            fs.errors.clear()
        for one in self.processes:
            one.stopped = False
        if self.supervisor is not None:
            self.supervisor.stopped = False
        self.settle()
        for fs in self.kernel.every:
            if fs.frozen == FOREIGNER:
                self.kernel.thaw_by_another(fs)


def _plan(layout: Layout) -> Plan:
    """Return the plan: what lies on others first, by what is known of that."""
    count = len(layout.below)
    hosts = [layout.below[i] if layout.known[i] else () for i in range(count)]
    levels = [0] * count
    for i in range(count):
        for host in hosts[i]:
            levels[host] = max(levels[host], levels[i] + 1)
    order = sorted(range(count), key=lambda i: (levels[i], i))
    if order != list(range(count)):
        raise ValueError("a layout lists what lies on others first")
    return Plan(
        tuple(
            Mount(
                *(f"/srv/{i}", (), f"7:{i}", "ext4", f"/dev/loop{i}", levels[i], tuple(hosts[i]), (f"loop{i}",)),
                devices=(f"loop{i}",),
            )
            for i in range(count)
        ),
        (),
    )
