"""What hosts, workers and deadlines do to a freeze. Pure.

Whatever ends a freeze leads to THAWINPROGRESS; the way from there to THAWED is thawing.py. What may be frozen is in
transaction.py.
"""

from __future__ import annotations

from ...agent.api.errors import Code, Fault, from_number
from ...agent.api.methods import RPCS
from ...agent.api.options import Options
from ...agent.api.records import Plan
from ...agent.api.states import FreezeEvent, FreezeState, MountState, Outcome, Phase, WorkerEvent, WorkerState
from ...agent.worker import messages
from .events import Effect, JournalFound, Log, Probe, RemoveJournal, Tell, WriteJournal
from .pending import DEFERRED, Calls, Deferred
from .state import State
from .thawing import Thawing
from .transaction import Freeze, Last, journal
from .workers import LOOK_AGAIN, Worker, Workers, at

REACT_GRACE = 2.0  # seconds for the keeper to say that it thaws, before it is taken for stopped or dead
IN_D, UNKNOWN = "disk-sleep", "unknown"  # psutil's name of the state; and none could be had
HOLDS_MAX = 64  # calls of va.fshold under way, so that the control pipe cannot fill
MOUNT_STATES = frozenset(state.value for state in MountState)


class Freezing:
    """The freeze under way: asked for, reported on, ended."""

    def __init__(
        self,
        out: list[Effect],
        workers: Workers,
        calls: Calls,
        state: State,
        thawing: Thawing,
    ) -> None:
        self._out = out
        self._workers = workers
        self._calls = calls
        self._state = state
        self._thawing = thawing
        self._last_id = 0
        self.hold_max = 0.0

    @property
    def freeze(self) -> Freeze | None:
        """The present freeze, or the last one, None before the first."""
        return self._thawing.freeze

    # -- what hosts ask

    def begin(self, call: int, options: Options, plan_limit: float, now: float) -> None:
        """Fork the freeze worker; the state is THAWED."""
        self._last_id += 1
        worker = self._workers.spawn(RPCS["va.fsfreeze"], {"options": options}, call, plan_limit, now)
        self._thawing.freeze = Freeze(self._last_id, worker.id, options, caller=call)
        self._workers.enter_phase(worker, Phase.PLAN, plan_limit, now)
        self._state.enter(FreezeEvent.ADMITTED, f"freeze {self._last_id} by {worker.name}", now)

    def thaw(self, call: int, now: float) -> int | Deferred:
        """Thaw, cancel, retry, join, or answer at once if there is nothing to thaw.

        Answers FREEZE_BROKEN, once, if the last freeze was broken and nobody was told.
        """
        if self._state.now is FreezeState.THAWED:
            if not self._thawing.untold:
                return 0
            # Told first, forgotten afterwards: dying in between, it is told twice rather than never.
            if self._calls.answer(call, Fault(Code.FREEZE_BROKEN, self._thawing.untold), now):
                self._thawing.untold = ""
                self._out.append(RemoveJournal())
            return DEFERRED
        freeze = self._current()
        freeze.thaw_callers = [*filter(self._calls.waits, freeze.thaw_callers), call]
        freeze.thaw_asked_at = freeze.thaw_asked_at or now
        if self._state.now is FreezeState.INPROGRESS:
            self._cancel(FreezeEvent.THAW_ASKED, "va.fsthaw", now)
        elif self._state.now is FreezeState.FROZEN:
            freeze.over_at = now
            self._state.enter(FreezeEvent.THAW_ASKED, "va.fsthaw", now)
            self._end_holds(Fault(Code.WRONG_STATE, "va.fshold: va.fsthaw was called meanwhile"), now)
            self._tell_keeper_to_thaw(now)
        elif self._state.now is FreezeState.ERROR:
            self._thawing.try_now()
            self._state.enter(FreezeEvent.THAW_ASKED, "va.fsthaw", now)
            self._thawing.advance(now)
        return DEFERRED

    def hold(self, call: int, seconds: float, now: float) -> Deferred:
        """Ask the keeper to hold until `seconds` from now; its word is the answer."""
        if self._state.now is not FreezeState.FROZEN:
            raise Fault(Code.WRONG_STATE, f"va.fshold needs state FROZEN, the state is {self._state.now.name}")
        freeze = self._current()
        if seconds <= 0:
            raise Fault(Code.PARAMS, "va.fshold: seconds is 0, expected more; to thaw call va.fsthaw")
        if len(freeze.hold_callers) >= HOLDS_MAX:
            raise Fault(Code.BUSY, f"va.fshold: {HOLDS_MAX} calls wait for the keeper already")
        bounded = min(seconds, self.hold_max) if self.hold_max else seconds
        freeze.hold_callers.append((call, now + bounded))
        self._out.append(Tell(freeze.worker, messages.Hold(now + bounded)))
        return DEFERRED

    def stop(self, why: str, now: float) -> None:
        """End any freeze because the agent or the guest goes down; nothing if there is none."""
        if self._state.now is FreezeState.INPROGRESS:
            self._cancel(FreezeEvent.STOPPING, why, now)
        elif self._state.now is FreezeState.FROZEN:
            self._end(FreezeEvent.STOPPING, Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, self._broken(why)), now)
            self._tell_keeper_to_thaw(now)
        elif self._state.now is FreezeState.ERROR:
            self._thawing.try_now()
            self._thawing.advance(now)

    def recover(self, found: JournalFound, options: Options, now: float) -> None:
        """Thaw what the journal of a supervisor before this one names, and tell the next fsthaw."""
        plan, untold, orphan = found.plan, found.untold, found.orphan
        self._last_id = number = found.freeze
        if not plan.mounts:
            self._thawing.untold = untold
            self._thawing.last = Last(number, Outcome.BROKEN.value, False, 0.0, 0.0, untold, -1.0)
            return
        worker = self._workers.adopt(RPCS["va.fsfreeze"], orphan, now).id if orphan[0] else 0
        self._thawing.freeze = freeze = Freeze(number, worker, options)
        freeze.take(plan)
        freeze.expedites = found.expedites
        freeze.suspect_all()
        freeze.reaped = not worker
        freeze.outcome = Outcome.BROKEN
        freeze.fault = Fault(Code.FREEZE_BROKEN, untold)
        self._state.enter(FreezeEvent.JOURNAL, untold, now)
        self._thawing.advance(now)

    # -- what workers and deadlines bring

    def owns(self, worker: Worker) -> bool:
        """Return whether the worker belongs to the present freeze."""
        return self.freeze is not None and (worker.id == self.freeze.worker or worker.id in self.freeze.thawers)

    def receive(self, worker: Worker, message: messages.Report, now: float) -> str:
        """Take a report of a freeze or thaw worker; return what is wrong with it, empty if nothing."""
        freeze = self._current()
        self._state.changes += 1
        match message:
            case messages.Step():
                return self._step(freeze, worker, message, now)
            case messages.Plan():
                return self._plan(freeze, worker, message)
            case messages.Progress():
                return self._progress(freeze, worker, message, now)
            case messages.Frozen():
                return self._frozen(freeze, worker, message, now)
            case messages.Held():
                return self._held(freeze, message, now)
            case messages.Thawing():
                self._thaws(freeze, worker, message, now)
            case messages.Done() if worker.id == freeze.worker:
                self._done(freeze, now)
            case messages.Failed() if worker.id == freeze.worker:
                self._failed(freeze, message, now)
        return ""

    def journaled(self, number: int, refused: OSError | None, now: float) -> None:
        """The plan is in the journal: let the worker go on to freeze. Or it is not: nothing is frozen."""
        freeze = self.freeze
        if freeze is None or freeze.id != number or self._state.now is not FreezeState.INPROGRESS:
            return
        if refused is None:
            self._out.append(Tell(freeze.worker, messages.Proceed()))
        else:
            fault = Fault(
                Code.FREEZE_FAILED, f"the journal could not be written, so nothing was frozen: {refused.strerror}"
            )
            self._end(FreezeEvent.FAILED, Outcome.FAILED, fault, now)
            self._kill_freezer("; the journal could not be written", now)

    def limit_passed(self, worker: Worker, now: float) -> None:
        """A limit of the freeze worker or of a thaw worker has passed."""
        limit = f"the {worker.phase.value} limit of {worker.limit:g} s passed"
        if worker.phase is Phase.THAW:
            self._out.append(Probe(worker.id))
        elif self._state.now is FreezeState.FROZEN:
            text = self._broken(f"the hold limit of {worker.limit:.3g} s passed")
            self._end(FreezeEvent.HOLD_PASSED, Outcome.EXPIRED, Fault(Code.FREEZE_BROKEN, text), now)
            self._tell_keeper_to_thaw(now)  # an extension may have reached it just before its own clock ended
        elif self._state.now is FreezeState.INPROGRESS:
            fault = Fault(Code.OVERRUN, f"{limit}{at(worker)}")
            self._end(FreezeEvent.OVERRAN, Outcome.OVERRAN, fault, now)
            self._kill(worker, f": {limit}", now)
        else:
            self._kill(worker, f": it did not begin to thaw within {REACT_GRACE:g} s", now)

    def probed(self, worker: Worker, state: str, now: float) -> None:
        """The thaw limit of `worker` has passed, and this is its process state: if it is in the kernel, let it be."""
        in_kernel = state in (IN_D, UNKNOWN)
        if in_kernel and worker.state is WorkerState.STUCK:
            self._workers.arm(worker, LOOK_AGAIN, now)
            return
        if not in_kernel or worker.state is WorkerState.SPAWNED:
            self._kill(worker, f": the thaw limit of {worker.limit:g} s passed", now)
            return
        self._workers.change(worker, WorkerEvent.IN_KERNEL, now)
        self._thawing.advance(now)

    def _kill(self, worker: Worker, why: str, now: float) -> None:
        self._workers.kill(worker, WorkerEvent.LIMIT, why, now)
        self.killed(worker, now)

    def killed(self, worker: Worker, now: float) -> None:
        """A worker of this freeze got SIGKILL: compensate now."""
        freeze = self._current()
        if worker.id == freeze.worker:
            if self._state.now in (FreezeState.INPROGRESS, FreezeState.FROZEN):
                self._died(f"{worker.name} was killed{at(worker)}{worker.why_killed}", now)
            freeze.suspects |= freeze.possible(worker.rubbish)
        self._thawing.advance(now)

    def exited(self, worker: Worker, unreported: bool, death: str, now: float) -> None:
        """A worker of this freeze was reaped; `unreported` if it was killed or never reported its end."""
        freeze = self._current()
        if worker.id == freeze.worker:
            if self._state.now in (FreezeState.INPROGRESS, FreezeState.FROZEN):
                self._died(death, now)
            freeze.reaped = True
            if unreported:
                freeze.floor = self._workers.last_id
                freeze.suspects |= freeze.possible(worker.rubbish)
                self._thawing.try_now()
            else:
                freeze.expedites = False  # it has put that back
        freeze.trying = {mount: thawer for mount, thawer in freeze.trying.items() if thawer != worker.id}
        if worker.id != freeze.worker:
            given = freeze.thawers.pop(worker.id)
            if freeze.reaped and worker.id > freeze.floor and worker.outcome is not None:
                freeze.expedites = False
            if isinstance(worker.outcome, messages.Failed):
                self._thawing.try_later(worker.outcome.text, now)
            elif unreported:
                self._thawing.try_later(death, now)
            elif freeze.suspects & given and (not freeze.reaped or worker.id > freeze.floor):
                self._thawing.try_later(f"{worker.name} did not prove all thawed", now)
        self._thawing.advance(now)

    # -- the ways a freeze ends

    def _end(self, event: FreezeEvent, outcome: Outcome, fault: Fault, now: float) -> None:
        """Leave INPROGRESS or FROZEN; the first cause is the one that is told."""
        freeze = self._current()
        freeze.outcome, freeze.fault, freeze.over_at = outcome, fault, now
        self._state.enter(event, fault.text, now)
        self._end_holds(fault, now)

    def _end_holds(self, fault: Fault, now: float) -> None:
        freeze = self._current()
        for number, _ in freeze.hold_callers:
            self._calls.answer(number, fault, now)
        freeze.hold_callers.clear()

    def _cancel(self, event: FreezeEvent, why: str, now: float) -> None:
        self._end(event, Outcome.CANCELLED, Fault(Code.FREEZE_FAILED, f"the freeze was cancelled: {why}"), now)
        self._kill_freezer(f": {why}", now)

    def _died(self, death: str, now: float) -> None:
        if self._state.now is FreezeState.FROZEN:
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
            self._thawing.advance(now)

    def _tell_keeper_to_thaw(self, now: float) -> None:
        worker = self._workers.get(self._current().worker)
        if worker is None or not worker.alive:
            return
        self._out.append(Tell(worker.id, messages.Thaw()))
        self._workers.arm(worker, REACT_GRACE, now)

    # -- reports

    def _plan(self, freeze: Freeze, worker: Worker, message: messages.Plan) -> str:
        if freeze.planned:
            return "a second Plan"
        try:
            freeze.take(Plan.load(message.plan))
            freeze.expedites = bool(message.expedites)
        except ValueError as error:
            return f"Plan: {error}"
        untold = "; ".join(filter(None, (self._thawing.untold, self._broken("the agent died"))))
        self._out.append(WriteJournal(freeze.id, worker.pid, journal(freeze.id, freeze.plan, untold, freeze.expedites)))
        return ""

    def _step(self, freeze: Freeze, worker: Worker, step: messages.Step, now: float) -> str:
        if not 0 <= step.mount < len(freeze.marks) or step.state not in MOUNT_STATES:
            return f"Step to {step.state[:40]!r} of mount {step.mount} of {len(freeze.marks)}"
        if freeze.note(worker.id, step, MountState(step.state), now) and freeze.outcome is Outcome.THAWED:
            why = f"someone else had thawed {freeze.marks[step.mount].mount.mountpoint}"
            freeze.outcome, freeze.fault = Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, self._broken(why))
        worker.doing = freeze.doing if worker.alive else freeze.doing()
        return ""

    def _progress(self, freeze: Freeze, worker: Worker, progress: messages.Progress, now: float) -> str:
        limits = {Phase.SYNC.value: freeze.options.sync_limit, Phase.FREEZE.value: freeze.options.freeze_limit}
        known = worker.id == freeze.worker and progress.phase in {worker.phase.value, *limits}
        if not known:
            return f"Progress in phase {progress.phase[:40]!r}"
        freeze.progress = progress
        if progress.phase != worker.phase.value and worker.state is WorkerState.RUNNING:
            self._workers.enter_phase(worker, Phase(progress.phase), limits[progress.phase], now)
        return ""

    def _frozen(self, freeze: Freeze, worker: Worker, frozen: messages.Frozen, now: float) -> str:
        if self._state.now is not FreezeState.INPROGRESS or worker.state is not WorkerState.HOLDING:
            return ""  # it was killed meanwhile: what it froze is suspect and gets thawed
        limit = freeze.options.hold_limit
        if (
            frozen.count != len(freeze.held)
            or not 0 <= frozen.at <= now
            or frozen.until != (limit and frozen.at + limit)
        ):
            return f"Frozen for {frozen.count} of {len(freeze.held)}, from {frozen.at:g} to {frozen.until:g}"
        freeze.expedites = False  # it has put that back
        freeze.frozen_at, freeze.until = float(frozen.at), float(frozen.until)
        if self._thawing.untold:
            # Whoever asks for a thaw from now on asks for that of this freeze.
            self._out.append(Log("warning", f"nobody was told: {self._thawing.untold}"))
            self._thawing.untold = ""
        self._workers.enter_phase(worker, Phase.HOLD, max(freeze.until - now, 1e-3) if limit else 0, now)
        worker.limit = limit
        self._state.enter(FreezeEvent.FROZEN, f"freeze {freeze.id}, file systems: {frozen.count}", now)
        self._calls.answer(freeze.caller, frozen.count, now)
        freeze.caller = None
        return ""

    def _held(self, freeze: Freeze, held: messages.Held, now: float) -> str:
        if self._state.now is not FreezeState.FROZEN:
            return ""
        if not freeze.hold_callers or held.until != freeze.hold_callers[0][1]:
            return f"Held until {held.until:g}, which nobody asked"
        call, freeze.until = freeze.hold_callers.pop(0)
        worker = self._workers.get(freeze.worker)
        assert worker is not None
        self._workers.arm(worker, max(freeze.until - now, 1e-3), now)
        worker.limit = freeze.until - worker.phase_since
        self._calls.answer(call, max(0.0, freeze.until - now), now)
        return ""

    def _thaws(self, freeze: Freeze, worker: Worker, thawing: messages.Thawing, now: float) -> None:
        if not worker.alive:
            return
        asked = self._state.now in (FreezeState.THAWINPROGRESS, FreezeState.ERROR)
        reason = thawing.reason or ("" if asked else "the keeper thawed unasked")
        text = self._broken(reason)
        if self._state.now is FreezeState.INPROGRESS:
            self._end(FreezeEvent.FAILED, Outcome.FAILED, Fault(Code.FREEZE_FAILED, reason), now)
        elif self._state.now is FreezeState.FROZEN:
            expired = freeze.until and thawing.at >= freeze.until
            event = FreezeEvent.HOLD_PASSED if expired else FreezeEvent.FAILED
            self._end(event, Outcome.EXPIRED if expired else Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, text), now)
        elif reason and freeze.outcome is Outcome.THAWED and thawing.at < freeze.thaw_asked_at:
            freeze.outcome, freeze.fault = Outcome.BROKEN, Fault(Code.FREEZE_BROKEN, text)
        self._workers.enter_phase(worker, Phase.THAW, self._thawing.limit, now)

    def _done(self, freeze: Freeze, now: float) -> None:
        if self._state.now is FreezeState.INPROGRESS and not freeze.suspects:
            self._state.enter(FreezeEvent.ENDED, "there is nothing to freeze", now)
        elif self._state.now is FreezeState.INPROGRESS:
            fault = Fault(Code.INTERNAL, "the freeze worker ended with file systems frozen")
            self._end(FreezeEvent.FAILED, Outcome.FAILED, fault, now)
        elif self._state.now is FreezeState.FROZEN:
            fault = Fault(Code.FREEZE_BROKEN, self._broken("the keeper ended unasked"))
            self._end(FreezeEvent.FAILED, Outcome.BROKEN, fault, now)

    def _failed(self, freeze: Freeze, failed: messages.Failed, now: float) -> None:
        fault = from_number(failed.code, failed.text)
        if self._state.now is FreezeState.INPROGRESS:
            self._end(FreezeEvent.FAILED, Outcome.FAILED, fault, now)
        elif self._state.now is FreezeState.FROZEN:
            broken = Fault(Code.FREEZE_BROKEN, self._broken(failed.text))
            self._end(FreezeEvent.FAILED, Outcome.BROKEN, broken, now)
        elif freeze.outcome is Outcome.FAILED:
            freeze.fault = fault  # its Thawing gave the reason already; this one says what was undone, too

    def _current(self) -> Freeze:
        assert self.freeze is not None
        return self.freeze
