"""The supervisor's core without a supervisor: a clock, a loop that applies effects to lists, workers played by hand.

The loop here is the real one in small: effects in order, and what they draw (Spawned, Journaled) is fed after them.
"""

from __future__ import annotations

import errno
import signal
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.records import Mount, Plan, Status
from virtagent.agent.api.states import FreezeState
from virtagent.agent.worker import messages
from virtagent.supervisor.config import Config
from virtagent.supervisor.core import events
from virtagent.supervisor.core.engine import Engine
from virtagent.supervisor.core.inline import HANDLERS
from virtagent.supervisor.core.news import NEWS
from virtagent.supervisor.core.pending import WATCHERS
from virtagent.supervisor.core.turn import Turn
from virtagent.supervisor.io.timers import Timers

BEGIN = 1000.0
PEER = events.Peer("unix:/run/a", "pid:1,uid:0")


def plan_of(count: int) -> Plan:
    """Return a plan of that many file systems, each on its own disk."""
    return Plan(
        tuple(Mount(f"/srv/{i}", (), f"7:{i}", "ext4", f"/dev/loop{i}", 0, (), (f"loop{i}",)) for i in range(count)),
        (),
    )


@dataclass
class Asked:
    """A request that was made: what it was answered, if it was. `reads`: the host takes the answer."""

    connection: int
    token: int
    method: str
    answers: list[Any] = field(default_factory=list)
    gone: bool = False
    reads: bool = True

    @property
    def answered(self) -> bool:
        """Whether the answer came."""
        return bool(self.answers)

    @property
    def value(self) -> Any:
        """The one answer, which is no fault."""
        assert len(self.answers) == 1, f"{self.method} has {len(self.answers)} answers"
        assert not isinstance(self.answers[0], Fault), f"{self.method}: {self.answers[0]}"
        return self.answers[0]

    @property
    def fault(self) -> Fault:
        """The one answer, which is a fault."""
        assert len(self.answers) == 1, f"{self.method} has {len(self.answers)} answers"
        assert isinstance(self.answers[0], Fault), f"{self.method} returned {self.answers[0]!r}"
        return self.answers[0]

    @property
    def code(self) -> Code:
        """The code of the fault."""
        return self.fault.code

    def refused(self, code: Code, *words: str) -> None:
        """Require that the one answer is a fault of that code, and that its text holds these words."""
        assert self.code is code, self.fault
        assert [word for word in words if word not in self.fault.text] == [], self.fault.text


class Drive:
    """A core under a hand-held clock. `effects` is all that it ever decided, in order."""

    def __init__(self, *, last_freeze: int = 0, **config: Any) -> None:
        self.now = BEGIN
        self.timers = Timers()
        self.core = Engine(Config(**config), "1.2", self.now, 1000, self.timers, HANDLERS, last_freeze=last_freeze)
        self.effects: list[events.Effect] = []
        self.asked: list[Asked] = []
        self.spawned: dict[int, events.Spawn] = {}
        self.live: set[int] = set()
        self.killed: set[int] = set()
        self.in_kernel: set[int] = set()
        self.dying: set[int] = set()
        self.tells_watchers = True
        self.told: list[tuple[int, messages.Control]] = []
        self.journal: dict[str, Any] | None = None
        self.journal_error: OSError | None = None
        self.writing_takes = 0.0
        self.fork_error: OSError | None = None
        self.queues_left = False
        self._seq = 0

    # -- the loop

    def feed(self, *happened: events.Event) -> list[events.Effect]:
        """Have the core take events now, what is due before them; return all that they and what they drew led to."""
        done: list[events.Effect] = []
        queue: deque[events.Event] = deque(happened)
        while (event := self._next(queue)) is not None:
            for effect in self.core.handle(event, self.now):
                done.append(effect)
                drawn = self._apply(effect)
                if drawn is not None:
                    queue.append(drawn)
        self.effects += done
        return done

    def _next(self, queue: deque[events.Event]) -> events.Event | None:
        key = self.timers.take_due(self.now, "core")
        if key is not None:
            return events.Due(key)
        if queue:
            return queue.popleft()
        # Those who watch are told as soon as nothing else is to be done, though the loop may do that some ms later.
        if self.tells_watchers and self.timers.left(WATCHERS, self.now) >= 0:
            self.timers.cancel(WATCHERS)
            return events.Due(WATCHERS)
        return None

    def _apply(self, effect: events.Effect) -> events.Event | None:
        match effect:
            case events.Spawn(worker):
                assert worker not in self.spawned, "a worker's number was used twice"
                self.spawned[worker] = effect
                if self.fork_error is not None:
                    return events.SpawnFailed(worker, self.fork_error)
                self.live.add(worker)
                return events.Spawned(worker, 5000 + worker)
            case events.Kill(worker):
                assert worker in self.spawned
                self.killed.add(worker)
            case events.Tell(worker, message):
                self.told.append((worker, message))
            case events.Answer(connection, token, value):
                call = next(a for a in self.asked if (a.connection, a.token) == (connection, token))
                assert not call.gone, f"{call.method} was answered to a host that is gone"
                call.answers.append(value)
                assert len(call.answers) == 1, f"{call.method} was answered twice: {call.answers}"
                if effect.receipt and call.reads:
                    return events.Taken(connection, token)
            case events.WriteJournal():
                if self.journal_error is not None:
                    return events.JournalFailed(effect.freeze, self.journal_error)
                self.journal = effect.record
                self.now += self.writing_takes  # so that a deadline may pass before it is told that it is written
                return events.Journaled(effect.freeze)
            case events.Probe(worker):
                state = "disk-sleep" if worker in self.in_kernel else "sleeping"
                return events.Probed(worker, state if worker in self.live else "gone", worker in self.dying)
            case events.Adopt(worker):
                self.spawned[worker] = events.Spawn(worker, "va.fsfreeze", {})
                self.live.add(worker)
            case events.RemoveJournal():
                self.journal = None
            case events.LookAtQueues():
                return events.QueuesSeen(self.queues_left)
        return None

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the core at each deadline."""
        end = self.now + seconds
        for _ in range(10_000):
            due = self.timers.nearest()
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.feed()
        raise AssertionError("the core ticks")

    # -- hosts

    def ask(
        self,
        method: str,
        *params: Any,
        connection: int | None = None,
        crowded: bool = False,
        reads: bool = True,
        peer: events.Peer = PEER,
    ) -> Asked:
        """Make a request, by default on a connection of its own; `reads` says whether the host takes the answer."""
        return self._ask(method, list(params), connection, crowded=crowded, reads=reads, peer=peer)

    def ask_by_name(self, method: str, arguments: dict[str, Any], connection: int | None = None) -> Asked:
        """Make a request as JSON does, its arguments by name."""
        return self._ask(method, arguments, connection)

    def ask_unheard(self, method: str, arguments: dict[str, Any]) -> Asked:
        """Make a request that its host has given up on already."""
        return self._ask(method, arguments, None, unheard=True)

    def _ask(
        self,
        method: str,
        params: list[Any] | dict[str, Any],
        connection: int | None,
        *,
        unheard: bool = False,
        crowded: bool = False,
        reads: bool = True,
        peer: events.Peer = PEER,
    ) -> Asked:
        token = len(self.asked)
        call = Asked(1000 + token if connection is None else connection, token, method)
        call.gone, call.reads = unheard, reads
        self.asked.append(call)
        asked = events.Requested(call.connection, token, method, params, peer, 1.7e9, crowded, unheard)
        self.feed(asked)
        return call

    def take(self, call: Asked) -> None:
        """Have the host of this call take its answer, which it had not taken yet."""
        self.feed(events.Taken(call.connection, call.token))

    def hang_up(self, call: Asked, *, unread: bool = False) -> None:
        """Have the host of this call disconnect, and leave unread what it had taken or not."""
        self.feed(events.Disconnected(call.connection, unread))
        for other in self.asked:
            other.gone |= other.connection == call.connection and not other.answered

    def give_up(self, call: Asked) -> None:
        """Have the host give up on this call alone."""
        self.feed(events.GivenUp(call.connection, call.token))
        call.gone = not call.answered  # a wait that had passed by then was answered first

    # -- workers

    def report(self, worker: int, *reports: messages.Report) -> None:
        """Have the worker report."""
        for message in reports:
            self.feed(events.Reported(worker, message))

    def exit(self, worker: int, number: int = 0, code: int = 0) -> None:
        """Have the worker end and be reaped."""
        self.live.discard(worker)
        self.feed(events.Exited(worker, number, code))

    def die(self, worker: int) -> None:
        """Have the worker die of SIGKILL and be reaped."""
        self.exit(worker, signal.SIGKILL)

    @property
    def newest(self) -> int:
        """The worker that was forked last."""
        return max(self.spawned)

    def workers(self, rpc: str) -> list[int]:
        """Return the workers of that RPC that are not reaped, oldest first."""
        return sorted(w for w in self.live if self.spawned[w].rpc == rpc)

    # -- a freeze, played

    def begin(self, count: int = 2, options: dict[str, Any] | None = None) -> tuple[Asked, int]:
        """Ask for a freeze and play its worker up to the plan; return the call and the worker."""
        call = self.ask("va.fsfreeze", *([] if options is None else [options]))
        worker = self.newest
        assert self.spawned[worker].rpc == "va.fsfreeze"
        self.report(worker, messages.Started(1), messages.Progress("plan"), messages.Plan(plan_of(count).dump()))
        return call, worker

    def sync(self, worker: int, count: int = 2) -> None:
        """Play the sync phase."""
        self.report(worker, messages.Progress("sync", 1))
        for i in range(count):
            self.report(worker, messages.Step(i, "syncing"), messages.Step(i, "synced"))
        self.report(worker, messages.Synced())

    def freezes(self, worker: int, *mounts: int) -> None:
        """Play FIFREEZE up to the moment before the ioctl returns."""
        self.report(worker, messages.Progress("freeze"))
        for i in mounts:
            self.report(worker, messages.Step(i, "freezing"))

    def frozen(self, worker: int, *mounts: int) -> None:
        """Play FIFREEZE having returned."""
        for i in mounts:
            self.report(worker, messages.Step(i, "frozen"))

    def hold(self, count: int = 2, options: dict[str, Any] | None = None) -> tuple[Asked, int]:
        """Play a freeze up to the hold; return the call, answered, and the keeper."""
        call, worker = self.begin(count, options)
        self.sync(worker, count)
        self.freezes(worker, *range(count))
        self.frozen(worker, *range(count))
        limit = self.spawned[worker].args["options"].hold_limit
        self.report(worker, messages.Frozen(count, self.now, self.now + limit if limit else 0))
        return call, worker

    def thaws(self, worker: int, count: int = 2, reason: str = "") -> None:
        """Play the keeper thawing all of it, up to its exit."""
        self.report(worker, messages.Thawing(reason, self.now))
        self.undo(worker, *range(count))
        self.report(worker, messages.Failed(Code.FREEZE_BROKEN, reason) if reason else messages.Done(count))
        self.exit(worker)

    def undo(self, worker: int, *mounts: int, refused: int = 0) -> None:
        """Play FITHAW of these: the step before, and the one after with that errno."""
        for i in mounts:
            self.report(worker, messages.Step(i, "thawing"))
        for i in mounts:
            good = refused in (0, errno.EINVAL)
            self.report(
                worker, messages.Step(i, "thawed" if good else "failed", refused, "" if good else "FITHAW: bad")
            )

    def compensates(self, worker: int | None = None, refused: Mapping[int, int] = MappingProxyType({})) -> int:
        """Play a thaw worker (the newest) through all that it was given, to its exit; return it.

        `refused` are the mounts whose FITHAW fails, with the errno.
        """
        worker = self.newest if worker is None else worker
        assert self.spawned[worker].rpc == "thaw"
        mounts = self.spawned[worker].args["mounts"]
        self.report(worker, messages.Started(1))
        self.undo(worker, *(mount for mount in mounts if mount not in refused))
        for mount, number in refused.items():
            self.undo(worker, mount, refused=number)
        bad = [f"/srv/{mount}: FITHAW: errno {number}" for mount, number in refused.items() if number != errno.EINVAL]
        self.report(worker, messages.Failed(Code.FAILED, bad[0]) if bad else messages.Done(len(mounts)))
        self.exit(worker)
        return worker

    def refuses(self, worker: int | None = None) -> int:
        """Play a thaw worker whose every FITHAW fails with EIO, to its exit; return it."""
        worker = self.newest if worker is None else worker
        return self.compensates(worker, dict.fromkeys(self.spawned[worker].args["mounts"], errno.EIO))

    # -- what is the case

    def status(self) -> Status:
        """Return the status record."""
        record = self.ask("va.fsstatus", {}).value
        assert isinstance(record, Status)
        assert record.seq >= self._seq, "seq went back"
        self._seq = record.seq
        return record

    def present(self) -> Status:
        """Return the status record, also where who asks for it would wait for the reaping (ADR 0040)."""
        return self.core._records.record(Turn(self.now, 1.7e9, self.timers))

    @property
    def state(self) -> FreezeState:
        """The freeze state."""
        return FreezeState(self.ask("va.fsstatus").value)

    def suspected(self, thawer: int) -> set[int]:
        """Return the mounts that a thaw worker was given."""
        return set(self.spawned[thawer].args["mounts"])

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the effects of that kind, in order."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def logged(self, text: str) -> list[str]:
        """Return the log lines that hold the text."""
        return [line.text for line in self.of(events.Log) if text in line.text]

    def idle(self) -> bool:
        """Return whether all is thawed, nothing runs, nothing is due, and everybody who still listens is answered."""
        waits = [a for a in self.asked if not a.answered and not a.gone]
        return self.state is FreezeState.THAWED and not self.live and not self.due and not waits

    @property
    def due(self) -> list[Any]:
        """The deadlines that are armed, but for the one at which news may be forgotten."""
        return [key for key in self.timers._armed if key != NEWS]
