"""The way from THAWINPROGRESS to THAWED: compensate, wait for the reaping, try again, tell who waits. Pure.

`advance` is called after everything that may have changed what is left to do, and does the next thing that can be
done. At most one attempt is in flight for a file system, so a stuck disk piles up nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS
from ...agent.api.records import Plan
from ...agent.api.states import FreezeEvent, FreezeState, Outcome, Phase, WorkerState
from ...agent.api.text import listed
from .events import Effect, Log, RemoveJournal, WriteJournal
from .pending import Calls
from .state import State
from .timing import Deadlines
from .transaction import Freeze, Last, journal
from .workers import Worker, Workers, at

RETRY_FIRST, RETRY_MAX = 0.02, 30.0
RETRY = ("core", "retry")
"""Key of the deadline at which `advance` is due."""


class Thawing:
    """Undoes a freeze until nothing can be frozen any more. `untold` is what the next fsthaw must be told.

    `wall` is what the time of day is ahead of the loop's clock, in seconds.
    """

    def __init__(self, out: list[Effect], deadlines: Deadlines, workers: Workers, calls: Calls, state: State) -> None:
        self._out = out
        self._deadlines = deadlines
        self._workers = workers
        self._calls = calls
        self._state = state
        self.limit = 0.0
        self._backoff = RETRY_FIRST
        self._last_refusal = "a thaw failed"
        self.freeze: Freeze | None = None
        self.last: Last | None = None
        self.untold = ""
        self.wall = 0.0
        self.on_over: Callable[[float], None] = lambda now: None

    def try_now(self) -> None:
        """Forget the back-off: something has changed, or somebody asks."""
        self._backoff = RETRY_FIRST
        self._deadlines.cancel(RETRY)

    def try_later(self, why: str, now: float) -> None:
        """Try again after the back-off, which doubles each time: the last attempt failed, and why."""
        self._out.append(Log("warning", f"thaw again in {self._backoff:g} s: {why}"))
        self._deadlines.arm(RETRY, now + self._backoff)
        self._backoff = min(self._backoff * 2, RETRY_MAX)
        self._last_refusal = why

    def advance(self, now: float) -> None:
        """Do what brings the state nearer to THAWED, if there is something to undo."""
        freeze = self.freeze
        if freeze is None or self._state.now not in (FreezeState.THAWINPROGRESS, FreezeState.ERROR):
            return
        freezer = self._workers.get(freeze.worker)
        thawers = [w for w in map(self._workers.get, freeze.thawers) if w is not None]
        undone = freezer is None or freezer.state in (WorkerState.KILLED, WorkerState.STUCK)
        wanted = freeze.suspects - freeze.trying.keys()
        # A worker that died when all had been refused has left nothing frozen, but grace periods expedited.
        owed = freeze.reaped and freeze.expedites and bool(freeze.touched) and not thawers
        may_try = undone and (bool(wanted) or owed) and self._deadlines.left(RETRY, now) < 0
        settled = freezer is None and not freeze.suspects and not thawers and not owed
        if self._state.now is FreezeState.ERROR:
            if not (may_try or settled):
                return
            self._state.enter(FreezeEvent.RETRY, "thaw again" if may_try else "nothing is frozen any more", now)
        if settled:
            self._settle(freeze, now)
            return
        if may_try:
            thawers.append(self._compensate(freeze, wanted, now))
        stuck = [w for w in (freezer, *thawers) if w is not None and w.state is WorkerState.STUCK]
        if stuck:
            self._give_error(FreezeEvent.STUCK, freeze, "; ".join(f"{w.name} is stuck{at(w)}" for w in stuck), now)
        elif freezer is None and not thawers:
            self._give_error(FreezeEvent.THAW_FAILED, freeze, self._last_refusal, now)

    def _compensate(self, freeze: Freeze, wanted: set[int], now: float) -> Worker:
        mounts = {index: freeze.marks[index].mount for index in sorted(wanted)}
        worker = self._workers.spawn(
            RPCS["thaw"], {"mounts": mounts, "expedited": freeze.expedites}, None, self.limit, now
        )
        worker.doing = "thawing " + ", ".join(m.mountpoint for m in list(mounts.values())[:3])
        self._workers.enter_phase(worker, Phase.THAW, self.limit, now)
        freeze.thawers[worker.id] = wanted
        freeze.trying.update(dict.fromkeys(wanted, worker.id))
        return worker

    def _give_error(self, event: FreezeEvent, freeze: Freeze, why: str, now: float) -> None:
        self._state.enter(event, why, now)
        left = listed(freeze.marks[index].mount.mountpoint for index in sorted(freeze.suspects))
        still = f"{why}; not yet thawed: {left or 'nothing, but a worker may still freeze'}; trying again"
        if freeze.fault is not None and self._calls.answer(
            freeze.caller, Fault(freeze.fault.code, f"{freeze.fault.text}; {still}"), now
        ):
            freeze.caller = None
            freeze.told = True
        for number in freeze.thaw_callers:
            self._calls.answer(number, Fault(Code.FAILED, still), now)
        freeze.thaw_callers.clear()
        self.on_over(now)

    def _settle(self, freeze: Freeze, now: float) -> None:
        self.try_now()
        freeze.settle()
        undone = len(freeze.froze if freeze.outcome is Outcome.THAWED else freeze.undone)
        fault = freeze.fault
        if fault is not None and fault.code in (Code.OVERRUN, Code.WORKER_DIED, Code.FREEZE_BROKEN):
            fault = Fault(fault.code, f"{fault.text}{freeze.what_was_undone()}")
        self.last = freeze.summary(fault, now, self.wall + now)
        self._state.enter(FreezeEvent.SETTLED, f"freeze {freeze.id} {freeze.outcome.value}, thawed: {undone}", now)
        # A success is told when nothing says otherwise any more, a fault before what would repeat it is removed.
        if fault is None and not self.untold:
            self._journal(freeze)
        told = self._calls.answer(freeze.caller, fault or undone, now) or freeze.told
        cancelled = freeze.outcome is Outcome.CANCELLED
        mine = fault.text if fault is not None and not told and not cancelled else ""
        news = "; ".join(filter(None, (self.untold, mine)))
        value = Fault(Code.FREEZE_BROKEN, news) if news else undone
        # Not any(): each of them is answered.
        heard = sum(self._calls.answer(number, value, now) for number in freeze.thaw_callers) > 0
        if heard:
            self.untold = ""
        elif fault is not None and not told and not (cancelled and freeze.thaw_asked_at):
            self.untold = "; ".join(filter(None, (self.untold, fault.text)))
        if fault is not None or news:
            self._journal(freeze)
        self.on_over(now)

    def _journal(self, freeze: Freeze) -> None:
        """Nothing is frozen any more: what stays in the journal is what nobody was told."""
        if self.untold:
            self._out.append(WriteJournal(freeze.id, 0, journal(freeze.id, Plan((), ()), self.untold)))
        else:
            self._out.append(RemoveJournal())
