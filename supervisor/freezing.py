"""The freeze state, and what becomes of the file systems when anything ends a freeze. Pure.

Whatever ends a freeze leads to THAWINPROGRESS, and from there `_advance` alone leads on: it is called after everything
that may have changed what is left to do, and does the next thing that can be done. What may be frozen is in
transaction.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ..agent import report
from ..agent.errors import Code, Fault, from_number
from ..agent.freeze import Options
from ..agent.mounts import Plan
from ..agent.offer import LATER, Later
from ..agent.rpcs import RPCS
from ..agent.states import (
    FREEZE_TABLE,
    FreezeEvent,
    FreezeState,
    MountState,
    Outcome,
    Phase,
    WorkerEvent,
    WorkerState,
    following,
)
from .calls import Calls
from .deadlines import Deadlines
from .events import Effect, Log, RemoveJournal, Tell, WriteJournal
from .transaction import Freeze, Last, journal
from .workers import Worker, Workers

RETRY_FIRST, RETRY_MAX = 0.25, 30.0
REACT_GRACE = 2.0  # seconds for the keeper to say that it thaws, before it is taken for stopped or dead
HOLDS_MAX = 64  # calls of va.fshold under way, so that the control pipe cannot fill
_RETRY = "retry"
_OVER = (FreezeState.THAWINPROGRESS, FreezeState.ERROR)


class Freezing:
    """The one owner of the freeze state."""

    def __init__(
        self,
        out: list[Effect],
        deadlines: Deadlines,
        workers: Workers,
        calls: Calls,
        thaw_limit: float,
        hold_max: float,
    ) -> None:
        self._out = out
        self._deadlines = deadlines
        self._workers = workers
        self._calls = calls
        self._thaw_limit = thaw_limit
        self._hold_max = hold_max
        self._backoff = RETRY_FIRST
        self.state = FreezeState.THAWED
        self.since = 0.0
        self.freeze: Freeze | None = None
        self.last_id = 0
        self.last: Last | None = None
        self.error = ""
        self.untold = ""
        self.changes = 0
        self.on_over: Callable[[float], None] = lambda now: None

    # -- what hosts ask

    def begin(self, call: int, options: Options, plan_limit: float, now: float) -> None:
        """Fork the freeze worker; the state is THAWED."""
        self.last_id += 1
        worker = self._workers.spawn(RPCS["va.fsfreeze"], {"options": options}, call, plan_limit, now)
        self.freeze = Freeze(self.last_id, worker.id, options, caller=call)
        self._workers.enter_phase(worker, Phase.PLAN, plan_limit, now)
        self._enter(FreezeEvent.ADMITTED, f"freeze {self.last_id} by {worker.name}", now)

    def thaw(self, call: int, now: float) -> int | Later:
        """Thaw, cancel, retry, join, or answer at once if there is nothing to thaw.

        Raises Fault FREEZE_BROKEN, once, if the last freeze was broken and nobody was told.
        """
        if self.state is FreezeState.THAWED:
            if not self.untold:
                return 0
            fault = Fault(Code.FREEZE_BROKEN, self.untold)
            self.untold = ""
            self._out.append(RemoveJournal())
            raise fault
        freeze = self._current()
        freeze.thaw_callers.append(call)
        freeze.thaw_asked_at = freeze.thaw_asked_at or now
        if self.state is FreezeState.INPROGRESS:
            self._cancel(FreezeEvent.THAW_ASKED, "cancelled by va.fsthaw", now)
        elif self.state is FreezeState.FROZEN:
            freeze.over_at = now
            self._enter(FreezeEvent.THAW_ASKED, "va.fsthaw", now)
            self._tell_keeper_to_thaw(now)
        elif self.state is FreezeState.ERROR:
            self._backoff = RETRY_FIRST
            self._deadlines.cancel(_RETRY)
            self._enter(FreezeEvent.THAW_ASKED, "va.fsthaw", now)
            self._advance(now)
        return LATER

    def hold(self, call: int, seconds: float, now: float) -> Later:
        """Ask the keeper to hold until `seconds` from now; its word is the answer."""
        if self.state is not FreezeState.FROZEN:
            raise Fault(Code.WRONG_STATE, f"va.fshold needs state FROZEN, the state is {self.state.name}")
        freeze = self._current()
        if seconds <= 0:
            raise Fault(Code.PARAMS, "va.fshold: seconds is 0, expected more; to thaw call va.fsthaw")
        if len(freeze.hold_callers) >= HOLDS_MAX:
            raise Fault(Code.BUSY, f"va.fshold: {HOLDS_MAX} calls wait for the keeper already")
        bounded = min(seconds, self._hold_max) if self._hold_max else seconds
        freeze.hold_callers.append(call)
        self._out.append(Tell(freeze.worker, report.Hold(now + bounded)))
        return LATER

    def stop(self, why: str, now: float) -> None:
        """End any freeze because the agent or the guest goes down; nothing if there is none."""
        if self.state is FreezeState.INPROGRESS:
            self._cancel(FreezeEvent.STOPPING, why, now)
        elif self.state is FreezeState.FROZEN:
            self._end(FreezeEvent.STOPPING, Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, self._broken(why)), now)
            self._tell_keeper_to_thaw(now)

    def recover(self, number: int, plan: Plan, untold: str, options: Options, now: float) -> None:
        """Thaw what the journal of a supervisor before this one names, and tell the next fsthaw."""
        self.last_id = number
        if not plan.mounts:
            self.untold = untold
            return
        self.freeze = Freeze(number, 0, options)
        self.freeze.take(plan)
        self.freeze.touched = self.freeze.suspects = set(range(len(plan.mounts)))
        self.freeze.outcome = Outcome.BROKEN
        self.freeze.fault = Fault(Code.FREEZE_BROKEN, untold)
        self._enter(FreezeEvent.JOURNAL, untold, now)
        self._advance(now)

    # -- what workers and deadlines bring

    def owns(self, worker: Worker) -> bool:
        """Return whether the worker belongs to the present freeze."""
        return self.freeze is not None and (worker.id == self.freeze.worker or worker.id in self.freeze.thawers)

    def receive(self, worker: Worker, message: report.Report, now: float) -> str:
        """Take a report of a freeze or thaw worker; return what is wrong with it, empty if nothing."""
        freeze = self._current()
        self.changes += 1
        match message:
            case report.Step():
                return self._step(freeze, worker, message, now)
            case report.Plan():
                if freeze.marks:
                    return "a second Plan"
                try:
                    freeze.take(Plan.load(message.plan))
                except ValueError as error:
                    return f"Plan: {error}"
                untold = self._broken("the agent died")
                self._out.append(WriteJournal(freeze.id, journal(freeze.id, freeze.plan, untold)))
            case report.Progress():
                return self._progress(freeze, worker, message, now)
            case report.Frozen():
                self._frozen(freeze, worker, message, now)
            case report.Held():
                self._held(freeze, worker, message, now)
            case report.Thawing():
                self._thawing(freeze, worker, message, now)
            case report.Done() if worker.id == freeze.worker:
                self._done(freeze, message, now)
            case report.Failed() if worker.id == freeze.worker:
                self._failed(freeze, message, now)
        return ""

    def journaled(self, number: int, refused: OSError | None, now: float) -> None:
        """The plan is in the journal: let the worker go on to freeze. Or it is not: nothing is frozen."""
        freeze = self.freeze
        if freeze is None or freeze.id != number or self.state is not FreezeState.INPROGRESS:
            return
        if refused is None:
            self._out.append(Tell(freeze.worker, report.Proceed()))
        else:
            fault = Fault(
                Code.FREEZE_FAILED, f"the journal could not be written, so nothing was frozen: {refused.strerror}"
            )
            self._end(FreezeEvent.FAILED, Outcome.FAILED, fault, now)
            self._kill_freezer("; the journal could not be written", now)

    def limit_passed(self, worker: Worker, now: float) -> None:
        """A limit of the freeze worker or of a thaw worker has passed."""
        freeze = self._current()
        limit = f" of {worker.limit:g} s passed"
        if worker.id != freeze.worker:
            self._workers.kill(worker, WorkerEvent.LIMIT, f": its limit{limit}", now)
            self.killed(worker, now)
        elif self.state is FreezeState.FROZEN:
            text = self._broken(f"the hold limit of {freeze.until - freeze.frozen_at:.0f} s passed")
            self._end(FreezeEvent.HOLD_PASSED, Outcome.EXPIRED, Fault(Code.FREEZE_BROKEN, text), now)
            self._workers.arm(worker, REACT_GRACE, now)
        else:
            if self.state is FreezeState.INPROGRESS:
                text = f"the {worker.phase.value} limit{limit}{self._where(worker)}"
                self._end(FreezeEvent.OVERRAN, Outcome.OVERRAN, Fault(Code.OVERRUN, text), now)
            self._workers.kill(worker, WorkerEvent.LIMIT, f": the {worker.phase.value} limit{limit}", now)
            self.killed(worker, now)

    def killed(self, worker: Worker, now: float) -> None:
        """A worker of this freeze got SIGKILL: compensate now."""
        freeze = self._current()
        if worker.id == freeze.worker:
            if self.state in (FreezeState.INPROGRESS, FreezeState.FROZEN):
                self._died(f"{worker.name} was killed{self._where(worker)}{worker.why_killed}", now)
            freeze.suspects |= freeze.possible(worker.rubbish)
        self._advance(now)

    def exited(self, worker: Worker, unreported: bool, death: str, now: float) -> None:
        """A worker of this freeze was reaped; `unreported` if it was killed or never reported its end."""
        freeze = self._current()
        if worker.id == freeze.worker:
            if self.state in (FreezeState.INPROGRESS, FreezeState.FROZEN):
                self._died(death, now)
            if unreported:
                freeze.floor = self._workers.last_id
                freeze.suspects |= freeze.possible(worker.rubbish)
                self._deadlines.cancel(_RETRY)
        else:
            freeze.thawers.discard(worker.id)
            for mount in [m for m, thawer in freeze.trying.items() if thawer == worker.id]:
                del freeze.trying[mount]
            if unreported or isinstance(worker.outcome, report.Failed):
                self._try_later(worker.outcome.text if isinstance(worker.outcome, report.Failed) else death, now)
        self._advance(now)

    def stuck(self, worker: Worker, now: float) -> None:
        """A killed worker of this freeze does not die: it is in the kernel."""
        if self.owns(worker):
            self._advance(now)

    def due(self, key: object, now: float) -> bool:
        """Take a deadline of the freeze itself; return whether it was one."""
        if key != _RETRY:
            return False
        self._advance(now)
        return True

    # -- the one setter

    def _enter(self, event: FreezeEvent, why: str, now: float) -> None:
        old = self.state
        self.state = following(FREEZE_TABLE, old, event)
        self.since = now
        self.changes += 1
        if self.state is not FreezeState.ERROR:
            self.error = ""
        level = "err" if self.state is FreezeState.ERROR else "notice"
        self._out.append(Log(level, f"{old.name} -> {self.state.name}: {why}"))

    # -- the ways a freeze ends

    def _end(self, event: FreezeEvent, outcome: Outcome, fault: Fault, now: float) -> None:
        """Leave INPROGRESS or FROZEN; the first cause is the one that is told."""
        freeze = self._current()
        freeze.outcome, freeze.fault, freeze.over_at = outcome, fault, now
        self._enter(event, fault.text, now)
        for number in freeze.hold_callers:
            self._calls.answer(number, fault, now)
        freeze.hold_callers.clear()

    def _cancel(self, event: FreezeEvent, why: str, now: float) -> None:
        self._end(event, Outcome.CANCELLED, Fault(Code.FREEZE_FAILED, f"the freeze was {why}"), now)
        self._kill_freezer(f": {why}", now)

    def _died(self, death: str, now: float) -> None:
        if self.state is FreezeState.FROZEN:
            fault = Fault(Code.FREEZE_BROKEN, self._broken(death))
            self._end(FreezeEvent.DIED, Outcome.BROKEN, fault, now)
        else:
            self._end(FreezeEvent.DIED, Outcome.FAILED, Fault(Code.WORKER_DIED, death), now)

    def _broken(self, why: str) -> str:
        return f"freeze {self._current().id} was broken: {why}"

    def _kill_freezer(self, why: str, now: float) -> None:
        worker = self._workers.get(self._current().worker)
        if worker is not None and worker.alive:
            self._workers.kill(worker, WorkerEvent.CANCELLED, why, now)
            self.killed(worker, now)
        else:
            self._advance(now)

    def _tell_keeper_to_thaw(self, now: float) -> None:
        worker = self._workers.get(self._current().worker)
        if worker is None or not worker.alive:
            return
        self._out.append(Tell(worker.id, report.Thaw()))
        self._workers.arm(worker, REACT_GRACE, now)

    # -- reports

    def _step(self, freeze: Freeze, worker: Worker, step: report.Step, now: float) -> str:
        if not 0 <= step.mount < len(freeze.marks):
            return f"Step for mount {step.mount} of {len(freeze.marks)}"
        try:
            state = MountState(step.state)
        except ValueError:
            return f"Step with unknown state {step.state[:40]!r}"
        if freeze.note(worker.id, step, state, now) and freeze.outcome is Outcome.THAWED:
            why = f"someone else had thawed {freeze.marks[step.mount].mount.mountpoint}"
            freeze.outcome, freeze.fault = Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, self._broken(why))
        worker.doing = freeze.doing()
        return ""

    def _progress(self, freeze: Freeze, worker: Worker, progress: report.Progress, now: float) -> str:
        try:
            phase = Phase(progress.phase)
        except ValueError:
            return f"Progress in unknown phase {progress.phase[:40]!r}"
        if worker.id != freeze.worker:
            return "Progress of a thaw worker"
        freeze.progress = progress
        if phase is not worker.phase and worker.state is WorkerState.RUNNING:
            options = freeze.options
            limits = {Phase.SYNC: options.sync_limit, Phase.FREEZE: options.freeze_limit}
            if phase not in limits:
                return f"Progress in phase {phase.value} after {worker.phase.value}"
            self._workers.enter_phase(worker, phase, limits[phase], now)
        return ""

    def _frozen(self, freeze: Freeze, worker: Worker, frozen: report.Frozen, now: float) -> None:
        if self.state is not FreezeState.INPROGRESS or worker.state is not WorkerState.HOLDING:
            return  # it was killed meanwhile: what it froze is suspect and gets thawed
        limit = freeze.options.hold_limit
        freeze.frozen_at = min(float(frozen.at), now)
        freeze.until = freeze.frozen_at + limit if limit else 0.0
        self._workers.enter_phase(worker, Phase.HOLD, max(freeze.until - now, 1e-3) if limit else 0, now)
        worker.limit = limit
        self._enter(FreezeEvent.FROZEN, f"freeze {freeze.id}: {frozen.count} file systems", now)
        self._calls.answer(freeze.caller, frozen.count, now)
        freeze.caller = None

    def _held(self, freeze: Freeze, worker: Worker, held: report.Held, now: float) -> None:
        if self.state is not FreezeState.FROZEN:
            return
        left = float(held.until) - now
        freeze.until = float(held.until)
        self._workers.arm(worker, max(left, 1e-3), now)
        worker.limit = freeze.until - worker.phase_since
        for number in freeze.hold_callers:
            self._calls.answer(number, max(0.0, left), now)
        freeze.hold_callers.clear()

    def _thawing(self, freeze: Freeze, worker: Worker, thawing: report.Thawing, now: float) -> None:
        if not worker.alive:
            return
        reason = thawing.reason or ("" if freeze.thaw_asked_at or self.state in _OVER else "the keeper thawed unasked")
        text = self._broken(reason)
        if self.state is FreezeState.INPROGRESS:
            self._end(FreezeEvent.FAILED, Outcome.FAILED, Fault(Code.FREEZE_FAILED, reason), now)
        elif self.state is FreezeState.FROZEN:
            expired = freeze.until and thawing.at >= freeze.until
            event = FreezeEvent.HOLD_PASSED if expired else FreezeEvent.FAILED
            self._end(event, Outcome.EXPIRED if expired else Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, text), now)
        elif reason and freeze.outcome is Outcome.THAWED and thawing.at < freeze.thaw_asked_at:
            freeze.outcome, freeze.fault = Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, text)
        self._workers.enter_phase(worker, Phase.THAW, self._thaw_limit, now)

    def _done(self, freeze: Freeze, done: report.Done, now: float) -> None:
        if self.state is FreezeState.INPROGRESS:
            self._enter(FreezeEvent.ENDED, "there is nothing to freeze", now)
        elif self.state is FreezeState.FROZEN:
            fault = Fault(Code.FREEZE_BROKEN, self._broken("the keeper ended unasked"))
            self._end(FreezeEvent.FAILED, Outcome.BROKEN, fault, now)

    def _failed(self, freeze: Freeze, failed: report.Failed, now: float) -> None:
        fault = from_number(failed.code, failed.text)
        if self.state is FreezeState.INPROGRESS:
            self._end(FreezeEvent.FAILED, Outcome.FAILED, fault, now)
        elif self.state is FreezeState.FROZEN:
            broken = Fault(Code.FREEZE_BROKEN, self._broken(failed.text))
            self._end(FreezeEvent.FAILED, Outcome.BROKEN, broken, now)
        elif freeze.outcome is Outcome.FAILED:
            freeze.fault = fault  # its Thawing gave the reason already; this one says what was undone, too

    # -- towards THAWED

    def _try_later(self, why: str, now: float) -> None:
        self._out.append(Log("warning", f"thaw again in {self._backoff:g} s: {why}"))
        self._deadlines.arm(_RETRY, now + self._backoff)
        self._backoff = min(self._backoff * 2, RETRY_MAX)
        self.error = why

    def _advance(self, now: float) -> None:
        """Do what brings the state nearer to THAWED; called after everything that could have changed that."""
        freeze = self.freeze
        if freeze is None or self.state not in _OVER:
            return
        freezer = self._workers.get(freeze.worker)
        thawers = [w for w in map(self._workers.get, freeze.thawers) if w is not None]
        undone = freezer is None or freezer.state in (WorkerState.KILLED, WorkerState.STUCK)
        wanted = freeze.suspects - freeze.trying.keys()
        may_try = undone and bool(wanted) and self._deadlines.left(_RETRY, now) < 0
        settled = freezer is None and not freeze.suspects and not thawers
        if self.state is FreezeState.ERROR:
            if not (may_try or settled):
                return
            self._enter(FreezeEvent.RETRY, "thaw again" if may_try else "nothing is frozen any more", now)
        if settled:
            self._settle(freeze, now)
            return
        if may_try:
            thawers.append(self._compensate(freeze, wanted, now))
        stuck = [w for w in (freezer, *thawers) if w is not None and w.state is WorkerState.STUCK]
        if stuck:
            self._give_error(
                FreezeEvent.STUCK, freeze, "; ".join(f"{w.name} is stuck{self._where(w)}" for w in stuck), now
            )
        elif freezer is None and not thawers:
            self._give_error(FreezeEvent.THAW_FAILED, freeze, self.error or "a thaw failed", now)

    def _compensate(self, freeze: Freeze, wanted: set[int], now: float) -> Worker:
        mounts = {index: freeze.marks[index].mount for index in sorted(wanted)}
        worker = self._workers.spawn(RPCS["thaw"], {"mounts": mounts}, None, self._thaw_limit, now)
        worker.doing = "thawing " + ", ".join(m.mountpoint for m in list(mounts.values())[:3])
        freeze.thawers.add(worker.id)
        freeze.trying.update(dict.fromkeys(wanted, worker.id))
        return worker

    def _where(self, worker: Worker) -> str:
        return f" while {worker.doing}" if worker.doing else ""

    def _give_error(self, event: FreezeEvent, freeze: Freeze, why: str, now: float) -> None:
        self._enter(event, why, now)
        self.error = why
        left = ", ".join(freeze.marks[index].mount.mountpoint for index in sorted(freeze.suspects))
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
        self._backoff = RETRY_FIRST
        self._deadlines.cancel(_RETRY)
        undone = len(freeze.froze)
        fault = freeze.fault
        if fault is not None and fault.code in (Code.OVERRUN, Code.WORKER_DIED, Code.FREEZE_BROKEN) and undone:
            fault = Fault(fault.code, f"{fault.text}; thawed {undone} of {undone}")
        self.last = freeze.summary(fault, now)
        self._enter(
            FreezeEvent.SETTLED, f"freeze {freeze.id} {freeze.outcome.value}, {undone} file systems thawed", now
        )
        told = self._calls.answer(freeze.caller, fault or undone, now) or freeze.told
        broken = None
        if fault is not None and not told and freeze.outcome is not Outcome.CANCELLED:
            broken = Fault(Code.FREEZE_BROKEN, fault.text)
        # Not any(): each of them is answered.
        told |= sum(self._calls.answer(number, broken or undone, now) for number in freeze.thaw_callers) > 0
        if fault is None or told:
            self.untold = ""
            self._out.append(RemoveJournal())
        else:
            self.untold = fault.text
            self._out.append(WriteJournal(freeze.id, journal(freeze.id, Plan((), ()), self.untold)))
        self.on_over(now)

    def _current(self) -> Freeze:
        assert self.freeze is not None
        return self.freeze
