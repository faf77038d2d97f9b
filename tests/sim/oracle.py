"""What must be true after each event (promises 3 to 6, 9 and 12 of docs/architecture.md), judged by the kernel.

A freeze begins to count when the supervisor enters FROZEN, since then a host may know of it. It is broken if one of the
file systems that its worker held is thawed before the first host that asks for the thaw has sent that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.states import FreezeState
from virtagent.agent.api.writers import Step
from virtagent.agent.worker import messages
from virtagent.agent.worker.steps import Operation
from virtagent.supervisor.core import events
from virtagent.supervisor.core.engine import Engine
from virtagent.supervisor.core.freeze import GOOD, REACT_GRACE

from .kernel import FLOWS, FileSystem
from .pairing import Pairing, Violation

if TYPE_CHECKING:
    from .process import Process
    from .world import Asked, World
    from .writer import App, WriterProcess

THAWS = ("va.fsthaw", "guest-fsfreeze-thaw")
FREEZES = ("va.fsfreeze", "guest-fsfreeze-freeze")
ACTS = (*THAWS, *FREEZES, "va.fshold")
SLACK = 0.1
WALL = 1.7e9
_UNDER_WAY = (FreezeState.INPROGRESS, FreezeState.THAWINPROGRESS)
_BROKEN = re.compile(r"freeze (\d+) was broken")


class Frozen:
    """One freeze that a host may know of. Moments are those of the world, 0 is never.

    `promised` is the second until which a host was told that it is held. `told` is the second at which a host first
    took the news that it is broken, if not all that did have left it unread. `told_by` are the connections of those
    hosts, `surely`: one of them has ended well. `over`: another has begun, and a thaw may be that one's.
    """

    __slots__ = ("asked", "broken", "id", "over", "process", "promised", "surely", "told", "told_by", "what")

    def __init__(self, number: int, process: Process) -> None:
        self.id = number
        self.process = process
        self.promised = process.hold_until
        self.asked = 0
        self.broken = 0
        self.what = ""
        self.told: float | None = None
        self.told_by: set[int] = set()
        self.surely = self.over = False

    @property
    def is_broken(self) -> bool:
        """Whether it was thawed before a host had asked for that."""
        return bool(self.broken) and (not self.asked or self.broken < self.asked)


class Oracle:
    """The judge of one storm."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._state = int(FreezeState.THAWED)
        self._freeze: Frozen | None = None
        self._decided_at = 0.0
        self._ids: dict[int, int] = {}
        self._told_good: set[int] = set()
        self._alone: set[int] = set()
        self._late_since: tuple[Process, float] | None = None
        self._pairing = Pairing(world, WALL)

    # -- what happens

    def begins(self) -> None:
        """Take note that a freeze worker was forked: none may be left that has frozen for the same supervisor."""
        self._pairing.begins()
        self._nobody_has_frozen("another freeze begins")

    def app_held(self, app: App) -> None:
        """Take note that an application comes to be held."""
        self._pairing.held(app)

    def app_let_go(self, app: App, worker: WriterProcess) -> None:
        """Take note that a worker lets an application go."""
        self._pairing.let_go(app, worker)

    def changed(self, fs: FileSystem) -> None:
        """Take note that the kernel has frozen or thawed a file system."""
        world, freeze = self._world, self._freeze
        world.moment += 1
        world.note(f"    /srv/{fs.index} is {'frozen by ' + str(fs.frozen) if fs.frozen else 'thawed'}")
        if fs.frozen > 0 and world.supervisor is not None and self._state == FreezeState.THAWED:
            raise Violation(f"promise 6: /srv/{fs.index} was frozen in state THAWED")
        if not fs.frozen and freeze is not None and not freeze.broken and fs.index in freeze.process.held:
            freeze.broken, freeze.what = world.moment, f"/srv/{fs.index} was thawed"

    @property
    def has_news(self) -> bool:
        """Whether the last freeze that a host may know of is broken."""
        return self._freeze is not None and self._freeze.is_broken

    def counts_on(self, index: int) -> bool:
        """Return whether it would hide a break, from whoever can know of it, if somebody else froze this one now.

        What was thawed before its counters were read first, and frozen again after they were read last, cannot be seen.
        """
        those = [p for p in self._world.processes if index in p.held]
        if self._freeze is not None and self._state != FreezeState.THAWED and index in self._freeze.process.held:
            those.append(self._freeze.process)
        unseen = [p for p in those if p.has_counted and index in (p.thawed_before or ())]
        return bool(unseen) or not all(process.counters for process in those)

    def enters(self, process: Process, index: int, operation: Operation) -> None:
        """Take note that a call enters the kernel: of FITHAW it must be the only one, before FIFREEZE all is noted."""
        if operation is Operation.THAW:
            self._only_attempt(process, index)
        if operation is not Operation.FREEZE:
            return
        world = self._world
        self._pairing.not_before(f"FIFREEZE of /srv/{index}")
        if index not in process.announced:
            raise Violation(f"write-ahead: FIFREEZE of /srv/{index} before the supervisor could know")
        journal = world.journal
        if journal is None or not any(m["mountpoint"] == f"/srv/{index}" for m in journal.record["plan"]["mounts"]):
            raise Violation(f"promise 4: FIFREEZE of /srv/{index}, and no journal names it")

    def _only_attempt(self, process: Process, index: int) -> None:
        """Require that no other thaw worker is in FITHAW there, unless that was killed or spoke rubbish (ADR 0030).

        A keeper that was stuck and goes on may meet the thaw worker that took its place.
        """
        for other in self._world.processes:
            thread = other.threads.get(index)
            if thread is None or thread.call is None or thread.operation is not Operation.THAW or other is process:
                continue
            if not process.rpc == other.rpc == "thaw" or other.killed or other.distrusted or process.distrusted:
                continue
            if other.forked_by is process.forked_by is self._world.supervisor:
                raise Violation(f"FITHAW of /srv/{index} by {process.name}, while that of {other.name} is in flight")

    def said(self, process: Process, report: messages.Report) -> None:
        """Take note of what a worker says."""
        if isinstance(report, messages.Frozen):
            process.held = frozenset(process.froze)
            process.hold_until = float(report.until)
        elif isinstance(report, messages.Held):
            process.hold_until = float(report.until)
            process.granted.add(process.hold_until)
        elif isinstance(report, messages.Thawing):
            process.thaws = True

    def asked(self, call: Asked) -> None:
        """Take note that the supervisor takes a request."""
        if call.method in THAWS and self._freeze is not None and not self._freeze.asked:
            self._freeze.asked = call.sent

    def started(self, found: events.JournalFound | None) -> None:
        """Take note that a supervisor starts."""
        self._state = int(FreezeState.THAWINPROGRESS if found else FreezeState.THAWED)
        self._late_since = None

    def died(self) -> None:
        """Take note that the supervisor is dead."""
        live = self._world.processes
        self._alone = {p.pid for p in live if p.row.compensation and not (p.killed or p.ended or p.finished)}

    def killed(self, process: Process) -> None:
        """Take note that a worker was killed."""
        self._alone.discard(process.pid)

    def quits(self) -> None:
        """Require that the supervisor leaves nothing frozen when it ends by itself."""
        self._nothing_frozen("the supervisor ended")

    # -- after each event

    def decided(self, engine: Engine, event: events.Event, effects: Sequence[events.Effect]) -> None:
        """Judge what the core has decided."""
        self._order(effects)
        self._decided_at = self._world.now
        for effect in effects:
            if isinstance(effect, events.WriteJournal) and effect.pid and effect.pid not in self._ids:
                self._ids[effect.pid] = effect.freeze
                self._told_good.discard(effect.freeze)  # after a restart numbers may begin again
            if isinstance(effect, events.Answer) and effect.value == 1:
                self._pairing.answered(self._world.asked[effect.connection, effect.token])
            match effect:
                case events.Log(text=text):
                    self._not_after_all(text)
                case events.Tell(worker, messages.Act(step=Step.RELEASE.value, verdict=verdict)) if verdict == GOOD:
                    self._pairing.told_good(worker, self._freeze)
        state = int(engine.freeze.state)
        if state != self._state:
            self._world.note(f"        state {FreezeState(state).name}")
            self._world.count(FreezeState(state).name)
            self._ends_early(event)
            self._state = state
            if state == FreezeState.FROZEN:
                self._begin()
            elif state == FreezeState.INPROGRESS and self._freeze is not None:
                self._freeze.over = True

    def _ends_early(self, event: events.Event) -> None:
        """Require that a hold which was promised to a host is not ended by a deadline before its end."""
        freeze = self._freeze
        if self._state != FreezeState.FROZEN or not isinstance(event, events.Due) or freeze is None:
            return
        promised = min(freeze.promised, freeze.process.hold_until)  # a host may have asked for less, and hung up
        if self._world.now < promised - SLACK:
            raise Violation(f"promise 5: the hold was promised until {promised}, and is ended now")

    def _begin(self) -> None:
        process = self._world.freezer
        assert process is not None
        freeze = self._freeze = Frozen(self._ids.get(process.pid, 0), process)
        self._late_since = None
        self._world.moment += 1
        every = self._world.kernel.every
        gone = [index for index in process.held if not every[index].frozen]
        if gone:
            freeze.broken, freeze.what = self._world.moment, f"/srv/{gone[0]} was thawed before"

    def acted(self, engine: Engine) -> None:
        """Judge the state after the effects of an event."""
        if self._state == FreezeState.THAWED:
            self._nothing_frozen("state THAWED")
            self._nobody_has_frozen("state THAWED")
            self._pairing.told_last(engine.freeze.history.last, self._freeze)

    def _nothing_frozen(self, when: str) -> None:
        for fs in self._world.kernel.every:
            if fs.frozen > 0:
                raise Violation(f"promise 6: {when}, and /srv/{fs.index} is frozen by {fs.frozen}")
        for process in self._world.processes:
            if not process.ended and process.freezing:
                raise Violation(f"promise 6: {when}, and process {process.name} may still freeze")
        if self._world.kernel.expedited:
            raise Violation(f"{when}, and grace periods are still expedited")

    def _nobody_has_frozen(self, when: str) -> None:
        supervisor = self._world.supervisor
        for process in self._world.processes:
            if process.first_freeze and process.exists and process.forked_by is supervisor is not None:
                raise Violation(f"promise 6: {when}, and process {process.name}, which has frozen, is not reaped")

    def _order(self, effects: Sequence[events.Effect]) -> None:
        watched = False
        for effect in effects:
            if isinstance(effect, events.Answer):
                method = self._world.asked[effect.connection, effect.token].method
                if method == "va.fsstatus":
                    watched = True
                elif watched and method in ACTS:
                    raise Violation(f"promise 12: {method} is answered after a watcher")

    # -- answers

    def answered(self, call: Asked, value: Any) -> None:
        """Judge an answer."""
        if call.method in THAWS:
            self._thaw_answered(value)
        elif call.method == "va.fshold" and not isinstance(value, Fault):
            self._hold_answered(value)
        elif call.method == "guest-fsfreeze-status" and value == "thawed":
            self._nothing_frozen("status thawed was told")
        elif call.method in FREEZES and not isinstance(value, Fault) and value:
            self._world.count("freeze answered")
            freeze = self._freeze
            if freeze is None or value != len(freeze.process.held):
                raise Violation(f"promise 5: {value} file systems were said to be frozen, in truth {freeze}")
            self._pairing.told_frozen(freeze.process)

    def _thaw_answered(self, value: Any) -> None:
        freeze = self._freeze
        if isinstance(value, Fault):
            self._world.count(f"thaw answered {value.code.name}")
            if value.code is Code.IN_PROGRESS:
                return
            self._not_after_all(value.text)
            return
        self._world.count("thaw answered with a number" if value else "thaw answered 0")
        self._nothing_frozen("a thaw was answered")
        if freeze is None:
            return
        if freeze.is_broken and not self._over(freeze):
            raise Violation(f"promises 5 and 9: thaw was answered {value}, but freeze {freeze.id}: {freeze.what}")
        if not value or freeze.over:
            return
        if freeze.process.distrusted or not freeze.process.told_counts:
            raise Violation(f"promise 9: thaw was answered {value}, but what was written meanwhile nobody knows")
        if not freeze.is_broken:
            self._told_good.add(freeze.id)

    def _not_after_all(self, text: str) -> None:
        for number in map(int, _BROKEN.findall(text)):
            if number in self._told_good:
                raise Violation(f"promise 5: freeze {number} was said to be good, and now: {text}")

    def _over(self, freeze: Frozen) -> bool:
        """Return whether the news of a freeze was told for long enough."""
        return freeze.told is not None and self._world.now >= freeze.told + self._world.config.news_limit

    def taken(self, connection: int, value: Any) -> None:
        """Take note that a host has taken a reply that may be news."""
        freeze = self._freeze
        if freeze is not None and isinstance(value, Fault) and value.code is Code.FREEZE_BROKEN:
            freeze.told = self._world.now if freeze.told is None else freeze.told
            freeze.told_by.add(connection)

    def lost(self, connection: int, *, unread: bool) -> None:
        """Take note that the supervisor knows that a host is gone."""
        self._pairing.lost(connection)
        freeze = self._freeze
        if freeze is not None and connection in freeze.told_by:
            freeze.told_by.discard(connection)
            freeze.surely |= not unread
            if not (freeze.told_by or freeze.surely or self._over(freeze)):
                freeze.told = None

    def _hold_answered(self, seconds: float) -> None:
        freeze, until = self._freeze, self._decided_at + seconds
        granted = freeze is not None and any(abs(until - its_word) < 1e-6 for its_word in freeze.process.granted)
        if seconds and not granted:
            raise Violation(f"promise 5: a hold of {seconds} s was granted that the keeper does not keep")
        if freeze is not None:
            freeze.promised = until

    # -- when nobody can go on at this second

    def quiet(self) -> None:
        """Require that the supervisor has done in time what it had to do at this second, and is going to."""
        supervisor = self._world.supervisor
        self._keepers_end(alone=supervisor is None)
        if supervisor is None or supervisor.stopped:
            self._late_since = None
            return
        self._pairing.quiet(supervisor.engine)
        wakes = supervisor.wakes_for_the_freeze()
        if self._state in _UNDER_WAY and not wakes:
            raise Violation(f"promise 2: in state {FreezeState(self._state).name} the supervisor waits without limit")
        freeze = self._freeze
        if freeze is None or freeze.process.parent is not supervisor:
            self._late_since = None
            return
        self._hold_ends(freeze.process, wakes)

    def _keepers_end(self, *, alone: bool) -> None:
        """Require that a keeper thaws by itself when its hold ends, and when the supervisor is dead (`alone`)."""
        for one in self._world.processes:
            if not one.held or one.thaws or one.stopped or one.killed or one.ended or one.finished:
                continue
            if one.hold_until and self._world.now > one.hold_until + SLACK:
                raise Violation(f"promise 3: the hold of keeper {one.name} has ended, and it does not thaw by itself")
            if alone:
                raise Violation(f"promise 3: the supervisor is dead, and keeper {one.name} does not thaw")

    def _hold_ends(self, keeper: Process, wakes: Sequence[float]) -> None:
        """Require that whoever is there sees to the end of the keeper's hold."""
        now, until = self._world.now, keeper.hold_until
        if not until or keeper.thaws or keeper.killed or keeper.ended:
            self._late_since = None
            return
        if self._state == FreezeState.FROZEN and not (keeper.unread or keeper.distrusted):
            if now > until + SLACK:
                raise Violation(f"the hold ended at {until}, and the state is still FROZEN")
            if min(wakes, default=math.inf) > max(until, now) + SLACK:
                raise Violation(f"the hold ends at {until}, and the supervisor does not wake for that: {wakes}")
        if now < until:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = keeper, now
        elif now > self._late_since[1] + REACT_GRACE + SLACK:
            raise Violation(f"the keeper's hold ended at {until}, and nobody makes it thaw")

    def while_disks_are_stuck(self) -> None:
        """Require that only what lies on a stuck disk is not settled, long after all other faults."""
        world = self._world
        every = world.kernel.every
        assert world.supervisor is not None
        stuck = {fs.index for fs in every if fs.disk != FLOWS}
        for fs in every:
            if fs.frozen > 0 and not stuck & {fs.index, *fs.below}:
                raise Violation(f"promise 10: /srv/{fs.index} stays frozen because the disk of another is stuck")
        hang = any(
            process.distrusted or thread.operation in (Operation.FREEZE, Operation.THAW) or process.first_freeze
            for process in world.processes
            for thread in process.threads.values()
        )
        if not hang and not any(fs.frozen > 0 for fs in every) and not world.supervisor.engine.thawed:
            raise Violation("promise 6: nothing is frozen, no worker that froze or thaws hangs, and it is not THAWED")

    def nobody_but_the_keeper(self) -> None:
        """Require that workers which the supervisor's death left alone have thawed by themselves (promise 3)."""
        for fs in self._world.kernel.every:
            if fs.frozen in self._alone:
                raise Violation(f"promise 3: /srv/{fs.index} stays frozen after the supervisor's death")
        self._pairing.nobody_holds()

    def at_rest(self) -> None:
        """Judge the end: calm has lasted long enough."""
        world = self._world
        supervisor = world.supervisor
        assert supervisor is not None
        if not supervisor.engine.thawed:
            raise Violation("promises 3 and 4: long after the last fault the state is not THAWED")
        for fs in world.kernel.every:
            if fs.frozen:
                raise Violation(f"promise 3: /srv/{fs.index} stays frozen")
        if world.processes:
            raise Violation(f"worker {world.processes[0].name} {world.processes[0].rpc} never ends")
        for call in world.asked.values():
            if not call.answers and not call.lost:
                raise Violation(f"{call.method} was never answered")
        self._pairing.nobody_is_held("long after the last fault")
        if supervisor.timers.nearest() is not None:
            raise Violation("the supervisor still waits for something")
