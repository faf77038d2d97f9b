"""From reports, limits and process states of a freeze's workers to events of its machine. Pure.

A report is checked against what its worker may say. What is wrong with it is returned, and the worker is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from ...agent.api.errors import Code, from_number
from ...agent.api.records import Plan
from ...agent.api.states import FreezeEvent, MountState, Phase, WorkerEvent, WorkerState
from ...agent.api.text import digits, listed
from ...agent.worker import messages
from ...agent.worker.evidence import NOT_KNOWN
from .events import NoStandby
from .freeze import REACT_GRACE, Freeze
from .participation import Participation
from .transaction import THAWED_BY_ANOTHER
from .turn import Turn
from .workers import LOOK_AGAIN, Worker, Workers, while_clause

IN_D, UNKNOWN = "disk-sleep", "unknown"  # psutil's name of state D; and /proc could not be read
_MOUNT_STATES = {state.value: state for state in MountState}


class FreezeReports:
    """Reports, limits and process states of the freeze worker and the thaw workers."""

    def __init__(self, freeze: Freeze, workers: Workers, participation: Participation) -> None:
        self._freeze = freeze
        self._participation = participation
        self._workers = workers

    def receive(self, turn: Turn, worker: Worker, message: messages.Report) -> str:
        """Take a report of a freeze or thaw worker; return what is wrong with it, "" if nothing is."""
        self._freeze.count_change()
        handler = self._RECEIVE.get(type(message))
        return handler(self, turn, worker, message) if handler else ""

    def _receive_step(self, turn: Turn, worker: Worker, step: messages.Step) -> str:
        ledger = self._freeze.current.ledger
        state = _MOUNT_STATES.get(step.state)
        if state is None or not 0 <= step.mount < len(ledger.marks):
            return f"Step to {step.state[:40]!r} of mount {step.mount} of {len(ledger.marks)}"
        thaws = state in (MountState.THAWING, MountState.THAWED) and worker.id == ledger.freezer
        if thaws and self._freeze.current.frozen_at and worker.alive and worker.phase is not Phase.THAW:
            return f"Step to {step.state!r} of mount {step.mount} before Thawing"
        if state in (MountState.FREEZING, MountState.FROZEN) and not self._freeze.current.may_have_frozen:
            return f"Step to {step.state!r} of mount {step.mount} before Proceed"
        if state is MountState.THAWING and worker.id == ledger.freezer and self._freeze.expects(FreezeEvent.VETOED):
            self._participation.slowed(turn)
        if ledger.note(worker.id, step, state, turn.now):
            where = ledger.marks[step.mount].mount.mountpoint
            self._freeze.take(turn, FreezeEvent.FOUND_THAWED, f"{THAWED_BY_ANOTHER} {where}")
        about = self._freeze.current.about
        if worker.alive:
            self._workers.describe(worker, ledger.doing, about)
        else:
            self._workers.describe(worker, ledger.doing(), about())
        if worker.state is WorkerState.STUCK and step.mount in ledger.to_thaw:
            self._freeze.changed(turn)  # stuck on another file system, it will not try this one again
        return ""

    def _receive_plan(self, turn: Turn, worker: Worker, message: messages.Plan) -> str:
        transaction = self._freeze.current
        if transaction.ledger.planned:
            return "a second Plan"
        try:
            transaction.ledger.take(Plan.load(message.plan), expedites=bool(message.expedites))
        except ValueError as error:
            return f"Plan: {error}"
        self._log_notes(turn, transaction.id, transaction.ledger.plan)
        if worker.alive and self._freeze.expects(FreezeEvent.VETOED):
            self._participation.planned(turn)
        return ""

    def _log_notes(self, turn: Turn, freeze: int, plan: Plan) -> None:
        for note in plan.notes:
            turn.log("info", f"freeze {freeze}: {note}")
        if left := [f"{one.mountpoint} ({one.reason})" for one in plan.left_out if one.strict_error]:
            turn.log("info", f"freeze {freeze}: left out, which strict would refuse: {listed(left)}")

    def _receive_synced(self, turn: Turn, worker: Worker, _synced: messages.Synced) -> str:
        transaction = self._freeze.current
        if not transaction.ledger.planned or transaction.asks:
            return "Synced without a Plan" if not transaction.ledger.planned else "a second Synced"
        if worker.alive and self._freeze.expects(FreezeEvent.SYNCED):
            self._freeze.take(turn, FreezeEvent.SYNCED)
        return ""

    def _receive_progress(self, turn: Turn, worker: Worker, progress: messages.Progress) -> str:
        transaction = self._freeze.current
        options = transaction.options
        limits = {Phase.SYNC.value: options.sync_limit, Phase.FREEZE.value: options.freeze_limit}
        if worker.id != transaction.ledger.freezer or progress.phase not in {worker.phase.value, *limits}:
            return f"Progress in phase {progress.phase[:40]!r}"
        if wrong := transaction.ledger.note_progress(progress):
            return wrong
        if progress.phase == Phase.SYNC.value:
            transaction.note_syncs(turn.now)
        late = worker.phase is Phase.READY and progress.phase == Phase.SYNC.value
        if progress.phase != worker.phase.value and worker.state is WorkerState.RUNNING and not late:
            self._workers.enter_phase(turn, worker, Phase(progress.phase), limits[progress.phase])
        return ""

    def _receive_learnt(self, turn: Turn, worker: Worker, learnt: messages.Learnt) -> str:
        marks = self._freeze.current.ledger.marks
        wrong = [i for i in (learnt.mount, *learnt.hosts) if type(i) is not int or not 0 <= i < len(marks)]
        named = [one for one in learnt.ids if isinstance(one, str)]
        if wrong or learnt.mount in learnt.hosts or len(named) != 1 + len(learnt.hosts):
            return f"Learnt of mount {learnt.mount}, on {learnt.hosts[:5]}, of {len(marks)}"
        hosts = [marks[index].mount for index in learnt.hosts]
        self._freeze.learnt.learn(turn, self._freeze.current, marks[learnt.mount].mount, hosts, named)
        return ""

    def _receive_frozen(self, turn: Turn, worker: Worker, frozen: messages.Frozen) -> str:
        if not self._freeze.expects(FreezeEvent.FROZEN) or worker.state is not WorkerState.HOLDING:
            return ""  # it was killed meanwhile: what it froze is suspect and will be thawed
        transaction = self._freeze.current
        limit = transaction.options.hold_limit
        held = len(transaction.ledger.held)
        until = limit and frozen.at + limit
        if (
            not transaction.may_have_frozen
            or frozen.count != held
            or not 0 <= frozen.at <= turn.now
            or frozen.until != until
        ):
            return f"Frozen for {frozen.count} of {held}, from {frozen.at:g} to {frozen.until:g}"
        self._workers.enter_phase(turn, worker, Phase.HOLD, limit)
        self._workers.arm(turn, worker, max(until - turn.now, 1e-3) if limit else 0)
        self._participation.frozen(turn, frozen)
        return ""

    def _receive_held(self, turn: Turn, _worker: Worker, held: messages.Held) -> str:
        if not self._freeze.expects(FreezeEvent.HELD):
            return ""
        callers = self._freeze.current.hold_callers
        if not callers or held.until != callers[0][1]:
            return f"Held until {held.until:g}, which nobody asked"
        self._freeze.take(turn, FreezeEvent.HELD)
        return ""

    def _receive_thawing(self, turn: Turn, worker: Worker, thawing: messages.Thawing) -> str:
        transaction = self._freeze.current
        if thawing.written < NOT_KNOWN or (thawing.written > 0) != bool(thawing.wrote):
            return f"Thawing with {thawing.written} bytes written, and {thawing.wrote[:40]!r}"
        transaction.ledger.thaws_for_good()
        # ADR 0002: its end of the hold and a host's thaw may cross; the keeper's clock says which was first. A tie is
        # not known to be good. What it says counts also if it was killed meanwhile.
        in_time = bool(transaction.thaw_asked_at) and thawing.at > transaction.thaw_asked_at
        if not thawing.reason or in_time:
            event = FreezeEvent.THAWS
        elif transaction.hold_ends and thawing.at >= transaction.hold_ends:
            event = FreezeEvent.EXPIRED
        elif thawing.code == Code.OVERRUN and self._freeze.expects(FreezeEvent.TOO_SLOW):
            event = FreezeEvent.TOO_SLOW
        else:
            event = FreezeEvent.GAVE_UP
        self._freeze.thaws(turn, event, thawing.reason)
        transaction.note_written(thawing)
        if thawing.wrote and self._freeze.expects(FreezeEvent.FOUND_BROKEN):
            self._freeze.take(turn, FreezeEvent.FOUND_BROKEN, thawing.wrote)
        if worker.alive:
            self._workers.enter_phase(turn, worker, Phase.THAW, self._freeze.thaw_limit)
        return ""

    def _receive_done(self, turn: Turn, worker: Worker, _done: messages.Done) -> str:
        ledger = self._freeze.current.ledger
        if worker.id == ledger.freezer:
            if self._freeze.expects(FreezeEvent.CALLED_OFF) and not ledger.suspects:
                self._freeze.take(turn, FreezeEvent.ENDED, "there is nothing to freeze")
            else:
                self._freeze.take(turn, FreezeEvent.DONE)
        return ""

    def _receive_failed(self, turn: Turn, worker: Worker, failed: messages.Failed) -> str:
        if worker.id == self._freeze.current.ledger.freezer:
            fault = from_number(failed.code, failed.text)
            known = fault.text == self._freeze.current.reason  # judged when it said Thawing
            found = fault.code is Code.FREEZE_BROKEN and not known and self._freeze.expects(FreezeEvent.FOUND_BROKEN)
            self._freeze.take(
                turn, FreezeEvent.FOUND_BROKEN if found else FreezeEvent.FAILED, fault.text, code=fault.code
            )
        return ""

    _RECEIVE: ClassVar[Mapping[type, Callable[..., str]]] = {
        messages.Step: _receive_step,
        messages.Plan: _receive_plan,
        messages.Synced: _receive_synced,
        messages.Progress: _receive_progress,
        messages.Frozen: _receive_frozen,
        messages.Held: _receive_held,
        messages.Learnt: _receive_learnt,
        messages.Thawing: _receive_thawing,
        messages.Done: _receive_done,
        messages.Failed: _receive_failed,
    }

    # -- from effects and deadlines

    def journaled(self, turn: Turn, freeze: int, refused: OSError | None) -> None:
        """Let the worker go on to freeze if the journal was written; otherwise nothing is frozen."""
        if self._freeze.expects(FreezeEvent.JOURNALED) and self._freeze.current.awaits(freeze):
            if refused is None:
                self._freeze.take(turn, FreezeEvent.JOURNALED)
            else:
                alone = isinstance(refused, NoStandby)
                why = "no process can be had ahead for the thaw" if alone else "the journal could not be written"
                self._freeze.take(turn, FreezeEvent.JOURNAL_FAILED, why, where=str(refused.strerror))

    def limit_passed(self, turn: Turn, worker: Worker) -> None:
        """Act on a limit of the freeze worker or of a thaw worker that has passed."""
        if worker.phase is Phase.THAW:
            turn.probe(worker.id)
        elif worker.phase is Phase.READY and self._freeze.expects(FreezeEvent.INSTANT):
            self._freeze.instant(turn)
        elif self._freeze.expects(FreezeEvent.HOLD_PASSED):
            self._freeze.take(turn, FreezeEvent.HOLD_PASSED, f"the hold limit of {digits(worker.limit)} s passed")
        elif self._freeze.expects(FreezeEvent.OVERRAN):
            why = f"the {worker.phase.value} limit of {worker.limit:g} s passed"
            self._freeze.take(turn, FreezeEvent.OVERRAN, why, where=while_clause(worker))
        else:  # it was told to thaw, or said so and did something else
            self._freeze.take(turn, FreezeEvent.UNRESPONSIVE, f"it did not begin to thaw within {REACT_GRACE:g} s")

    def probed(self, turn: Turn, worker: Worker, process_state: str, *, dying: bool) -> None:
        """Act on a thaw limit that has passed, now that the process state is known: in the kernel, it is left alone.

        `dying`: somebody has killed it, so that it does no more than it is doing in the kernel.
        """
        in_kernel = process_state in (IN_D, UNKNOWN)
        if dying:
            self._freeze.current.ledger.free(worker.id)  # ADR 0030: on which of them it hangs, nobody knows
        if dying or not in_kernel:
            self._freeze.kill(turn, worker, f"the thaw limit of {worker.limit:g} s passed")
        elif worker.state is WorkerState.STUCK:
            self._workers.arm(turn, worker, LOOK_AGAIN)
        else:
            # ADR 0015: SIGKILL inside FITHAW would not end it sooner, and does harm.
            self._workers.change(turn, worker, WorkerEvent.IN_KERNEL)
            self._freeze.changed(turn)
