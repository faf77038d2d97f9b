"""The machine of a freeze: what hosts, workers, deadlines and deaths do to it. Pure.

It is the only owner of the state, the outcome, the calls that wait, and the end of the hold; what may be frozen is in
its ledger (ledger.py). Everything that happens is an event. `take` (machine.py) looks up the pair of state and event in
FREEZE_TABLE (agent/api/states.py), takes over the row's outcome and fault if this is the first cause that ends the
freeze, enters the row's state, and calls the row's action, a method `_do_...` here. A handler only says which event.

Whatever ends a freeze leads to THAWINPROGRESS. There the action of every change is `advance`, which does the next
possible thing, until nothing may be frozen any more; then the state is THAWED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS
from ...agent.api.options import Options
from ...agent.api.states import FreezeEvent, Outcome, Phase, WorkerEvent, WorkerState
from ...agent.worker import messages
from . import entries
from .between import Between
from .compensation import Compensation
from .events import Disconnected, JournalFound, KeepFreeze, Lifeline
from .history import History
from .learnt import Edges
from .ledger import Ledger
from .machine import NOTHING_FROZEN, Cause
from .pending import DEFERRED, Call, Deferred, Pending
from .recovery import adopted, apart, told_of, why_not
from .transaction import Transaction
from .turn import Turn
from .workers import Worker, Workers, while_clause
from .writer import HELD_LATER
from .writers import BAD, GOOD, Writers

REACT_GRACE = 2.0  # seconds until the keeper must have said that it thaws; then it is considered stopped


class Freeze(Between):
    """What is done about each event.

    `thaws_asked` is how many thaws hosts have asked for, of whatever is frozen.
    `on_settled` is called when the freeze is thawed, or cannot be thawed for now.
    """

    def __init__(
        self, workers: Workers, pending: Pending, writers: Writers, on_settled: Callable[[Turn], None], last_id: int
    ) -> None:
        super().__init__(workers, pending, writers, last_id)
        self._on_settled = on_settled
        self.history = History()
        self.thaws_asked = 0
        self.learnt = Edges()
        self._undo = Compensation(workers)
        self._hold_max = self.thaw_limit = 0.0

    def tell(self, turn: Turn, text: str, ended: Outcome | None) -> None:
        """Log that the state has changed, or that the freeze has `ended` badly, with fields for programs."""
        transaction = self.transaction
        freezer = self._workers.get(transaction.ledger.freezer) if transaction else None
        entries.tell(turn, text, self.state, ended, transaction, freezer, self._writers.refused_by)

    def configure(self, turn: Turn | None, hold_max: float, thaw_limit: float, news_limit: float) -> None:
        """Set the longest hold that a host may ask for, how long a thaw may take, and how long news are told again."""
        self.news.configure(turn, news_limit)
        self._hold_max, self.thaw_limit = hold_max, thaw_limit
        self._undo.configure(thaw_limit)

    # -- what hosts ask

    def begin(self, turn: Turn, call: Call, options: Options, plan_limit: float) -> Worker:
        """Fork the freeze worker and return it; to be called only when all is thawed and no writer is let go.

        Raises Fault VETOED if a writer of an earlier freeze could not be let go.
        """
        if options.writers != "none" and (stuck := self._writers.stuck()):
            raise Fault(Code.VETOED, f"{stuck}; {NOTHING_FROZEN}")
        self._last_id += 1
        turn.do(KeepFreeze(self._last_id))
        args: dict[str, object] = {"options": options}
        lifeline = Lifeline.HOLD if options.waits else None
        worker = self._workers.spawn(turn, RPCS["va.fsfreeze"], args, call.id, plan_limit, lifeline)
        self.transaction = Transaction(
            self._last_id,
            options,
            Ledger(worker.id),
            call.id,
            channel=call.request.peer.channel,
            starts_at=turn.at_time(options.at),
            attended_by=call.request.connection if options.attended else 0,
        )
        self._workers.enter_phase(turn, worker, Phase.PLAN, plan_limit)
        self.history.begin(turn, call.request.peer)
        self.take(turn, FreezeEvent.ADMITTED, f"freeze {self._last_id} by {worker.name}")
        return worker

    def thaw(self, turn: Turn, call: Call, freeze_id: int | None = None, verdict: str = "") -> Deferred:
        """Thaw; or cancel a freeze, retry a thaw, join one that is in progress, or answer if there is nothing to thaw.

        Answers FREEZE_BROKEN if the last freeze was broken, until that was told for long enough (news.py).
        """
        ended = self.history.last if self.thawed and not self.releasing else None
        if freeze_id is not None and (wrong := why_not(freeze_id, self._last_id, ended)):
            self.news.refuse(turn, call, wrong)
            return DEFERRED
        self.thaws_asked += freeze_id is None
        self.news.wait_for_thaw(call.id)
        if not (self.thawed or self.over):
            self.current.ask_thaw(turn, call.request.peer, verdict)
        self.take(turn, FreezeEvent.THAW_ASKED, "va.fsthaw")
        return DEFERRED

    def hold(self, turn: Turn, call: Call, seconds: float) -> Deferred:
        """Ask the keeper to hold until `seconds` from now; answer when it has agreed."""
        if not self.expects(FreezeEvent.HOLD_ASKED):
            raise Fault(Code.WRONG_STATE, f"va.fshold needs state FROZEN, the state is {self.state.name}")
        transaction = self.current
        until = transaction.ask_hold(call.id, turn.now, seconds, self._hold_max)
        turn.tell(transaction.ledger.freezer, messages.Hold(until))
        return DEFERRED  # ADR 0011: only the keeper knows that it still holds

    def go(self, turn: Turn, at: float) -> int:
        """Set the time of day (0: now) at which the freeze goes on that waits in phase ready; return 1.

        Raises Fault WRONG_STATE if none does.
        """
        freezer = self._freezer() if self.expects(FreezeEvent.INSTANT) else None
        if freezer is None or freezer.phase is not Phase.READY:
            where = f"it is in phase {freezer.phase.value}" if freezer else f"the state is {self.state.name}"
            raise Fault(Code.WRONG_STATE, f"va.fsgo needs a freeze that waits in phase ready; {where}")
        transaction = self.current
        transaction.let_go(turn.at_time(at))
        self._await_instant(turn, freezer)
        return 1

    def disconnected(self, turn: Turn, event: Disconnected) -> None:
        """Take note that a connection has ended; call off the freeze that its host was to let go."""
        self.news.disconnected(turn, event.connection, unread=event.unread)
        if self._nothing_frozen and self.current.attended_by == event.connection and not event.evicted:
            self.current.note_left(turn.now)
            self.take(turn, FreezeEvent.THAW_ASKED, "its host has left before va.fsgo")  # ADR 0039

    def stop(self, turn: Turn, why: str) -> None:
        """End the freeze, if any, because the agent or the guest goes down."""
        self.take(turn, FreezeEvent.STOPPING, why)
        if self.preparing:
            self.cut_short = why
            self.release(turn, BAD)

    def recover(self, turn: Turn, found: JournalFound, options: Options) -> None:
        """Thaw what the journal of an earlier supervisor names, and report that to the next fsthaw."""
        self._last_id = max(self._last_id, found.freeze)
        if not found.plan.mounts:
            self.news.add(turn, found.unreported, found.told_at)
            self.history.end(told_of(found))
            return
        earlier, own = apart(found)
        if earlier:
            self.news.add(turn, earlier)
        self.transaction = adopted(turn, found, options, self._workers)
        self.take(turn, FreezeEvent.JOURNAL, own)

    # -- its workers

    def owns(self, worker: Worker) -> bool:
        """Return whether the worker belongs to the present freeze; one that was called off has no workers."""
        if self.thawed or self.transaction is None:
            return False
        return worker.id == self.transaction.ledger.freezer or worker.id in self.transaction.ledger.thawers

    def thaws(self, turn: Turn, event: FreezeEvent, reason: str) -> None:
        """Take note that the freeze worker thaws, as that event, and for that reason ("": it was told to)."""
        transaction = self.current
        transaction.reason = reason
        self.take(turn, event, reason or "the keeper thawed unasked")

    def changed(self, turn: Turn) -> None:
        """Do what is possible now that a worker, the back-off, or what may be frozen has changed."""
        if self.expects(FreezeEvent.CHANGED):
            self.take(turn, FreezeEvent.CHANGED)

    def killed(self, turn: Turn, worker: Worker) -> None:
        """Compensate now: a worker of this freeze got SIGKILL, or it is stuck and what it says cannot be read."""
        transaction = self.current
        ledger = transaction.ledger
        if worker.rubbish or (worker.state is WorkerState.KILLED and worker.id == ledger.freezer):
            ledger.free(worker.id)  # ADR 0030: nobody learns what it does, or no thread of it begins another call
        if worker.id == ledger.freezer:
            if worker.rubbish:
                transaction.disbelieve()
            how = "is stuck" if worker.state is WorkerState.STUCK else "was killed"
            self.take(turn, FreezeEvent.DIED, f"{worker.name} {how}{while_clause(worker)}{worker.why_killed}")
            if not self.owns(worker):
                return  # it was called off
            ledger.freezer_died(spoke_rubbish=worker.rubbish)
        self.changed(turn)

    def exited(self, turn: Turn, worker: Worker, death: str, *, reported: bool) -> None:
        """Take note that a worker of this freeze was reaped; `reported`: it had reported its end and was not killed."""
        ledger = self.current.ledger
        if worker.id == ledger.freezer:
            self.take(turn, FreezeEvent.DIED, death)
            if not self.owns(worker):
                return  # it was called off
            ledger.freezer_reaped(reported=reported, last_worker=self._workers.last_id)
            if not reported:
                ledger.freezer_died(spoke_rubbish=worker.rubbish)
                self._undo.try_now(turn)
        else:
            self._undo.ended(turn, ledger, worker, death, reported=reported)
        self.changed(turn)

    # -- actions of the table's rows

    def act(self, turn: Turn, action: str, cause: Cause) -> None:
        """Call the action of a row by its name."""
        self._ACTIONS[action](self, turn, cause)

    def _do_nothing(self, turn: Turn, cause: Cause) -> None:
        pass

    def _do_journal(self, turn: Turn, _cause: Cause) -> None:
        self.current.note_synced(turn.now)
        self._write_journal(turn, self.current)

    def _do_await_instant(self, turn: Turn, _cause: Cause) -> None:
        transaction = self.current
        transaction.journaled = True
        self._await_instant(turn, self._freezer())

    def _await_instant(self, turn: Turn, freezer: Worker | None) -> None:
        left = self.current.starts_at - turn.now
        if left > 0 and freezer is not None:
            self._workers.enter_phase(turn, freezer, Phase.READY, left)
        else:
            self.instant(turn)

    def instant(self, turn: Turn) -> None:
        """The instant has come: go on, or call off what should have been let go by now."""
        if self.current.attended_by:
            self.take(turn, FreezeEvent.THAW_ASKED, "va.fsgo did not come by its instant")
        else:
            self.take(turn, FreezeEvent.INSTANT)

    def _do_proceed(self, turn: Turn, _cause: Cause) -> None:
        transaction = self.current
        transaction.goes = True
        self._writers.quiesce(turn)

    def proceed_if_ready(self, turn: Turn) -> None:
        """Let the freeze worker freeze if nothing is missing any more: the only place that decides this (ADR 0024)."""
        transaction = self.current
        ready = transaction.goes and self._writers.quiesced
        if ready and not transaction.may_have_frozen:
            transaction.note_proceeds(turn.now)
            turn.tell(transaction.ledger.freezer, messages.Proceed())  # ADR 0003: only now is the plan in the journal

    def _do_call_off(self, turn: Turn, cause: Cause) -> None:
        worker = self._freezer()
        if worker is not None:
            self._workers.answered(worker)  # the call waits for the end of the freeze, not for this worker's
            if worker.alive:
                self._workers.kill(turn, worker, WorkerEvent.CANCELLED, f": {cause.why}")
        self._do_settle(turn, cause)

    def _do_answer_freeze(self, turn: Turn, cause: Cause) -> None:
        transaction, frozen = self.current, cause.report
        assert isinstance(frozen, messages.Frozen)
        transaction.ledger.not_expedited()
        transaction.frozen_at = float(frozen.at)
        self.news.drop(turn, transaction.channel)
        transaction.held = frozenset(transaction.ledger.held)
        self._pending.answer(turn, transaction.caller, len(transaction.held))
        transaction.caller = None

    def _do_extend_hold(self, turn: Turn, _cause: Cause) -> None:
        transaction = self.current
        call, transaction.hold_ends = transaction.hold_callers.pop(0)
        keeper = self._workers.get(transaction.ledger.freezer)
        assert keeper is not None
        self._workers.limit(turn, keeper, transaction.hold_ends)
        if transaction.options.held_at_most:
            self._writers.extend(turn, transaction.hold_ends + self.thaw_limit + HELD_LATER)
        self._pending.answer(turn, call, max(0.0, transaction.hold_ends - turn.now))

    def _do_kill_freezer(self, turn: Turn, cause: Cause) -> None:
        worker = self._freezer()
        if worker is not None and worker.alive:
            self._workers.kill(turn, worker, WorkerEvent.CANCELLED, f": {cause.why}")
            self.killed(turn, worker)
        else:
            self.changed(turn)

    def _do_kill_unresponsive(self, turn: Turn, cause: Cause) -> None:
        worker = self._freezer()
        assert worker is not None
        self.kill(turn, worker, cause.why)

    def _do_tell_keeper_to_thaw(self, turn: Turn, _cause: Cause) -> None:
        keeper = self._freezer()
        if keeper is not None and keeper.alive:
            turn.tell(keeper.id, messages.Thaw())
            self._workers.arm(turn, keeper, REACT_GRACE)  # ADR 0010: not the thaw limit, which begins with Thawing

    def _do_amend_fault(self, _turn: Turn, cause: Cause) -> None:
        transaction = self.current
        if transaction.outcome is Outcome.FAILED:
            transaction.fault = cause.fault  # Thawing gave the reason before; this text also says what was undone

    def _do_advance(self, turn: Turn, _cause: Cause) -> None:
        transaction = self.current
        ledger = transaction.ledger
        if self._undo.nothing_left(self.current.ledger):
            if transaction.outcome is Outcome.THAWED and (doubt := transaction.doubt):
                self.take(turn, FreezeEvent.UNPROVED, doubt)
            how = f"{transaction.outcome.value}, thawed: {transaction.thawed_count}"
            self.take(turn, FreezeEvent.SETTLED, f"freeze {transaction.id} {how}")
            return
        event, why = self._undo.advance(turn, ledger)
        if event is not None:
            self.take(turn, event, why)

    def _do_retry_if_useful(self, turn: Turn, _cause: Cause) -> None:
        if useful := self._undo.retry_is_useful(turn, self.current.ledger):
            self.take(turn, FreezeEvent.RETRY, useful)

    def _do_retry_now(self, turn: Turn, _cause: Cause) -> None:
        self._undo.try_now(turn)
        self.changed(turn)

    def _do_tell_error(self, turn: Turn, cause: Cause) -> None:
        transaction = self.current
        if transaction.concluded:  # ADR 0040: how it went is known, whatever the worker does after that
            self._do_answer_thaw(turn, cause)
            self._on_settled(turn)
            return
        still = f"{cause.why}; not yet thawed: {transaction.ledger.what_is_left()}; trying again"
        fault = transaction.fault
        if fault is not None and self.news.tell_caller(
            turn, transaction.caller, Fault(fault.code, f"{fault.text}; {still}")
        ):
            transaction.caller = None
            transaction.reported = True
        self.news.answer(turn, Fault(Code.FAILED, still))
        self._on_settled(turn)

    def _do_conclude_if_good(self, turn: Turn, _cause: Cause) -> None:
        # ADR 0040: the worker has thawed all and ends. For hosts and writers the freeze is over before it is reaped.
        transaction, freezer = self.current, self._freezer()
        ended = freezer is not None and freezer.state is WorkerState.REPORTED
        alone = not (transaction.ledger.suspects or transaction.ledger.thawers)
        if ended and alone and transaction.outcome is Outcome.THAWED and not transaction.doubt:
            self._conclude(turn)

    def _do_settle(self, turn: Turn, _cause: Cause) -> None:
        self._undo.try_now(turn)
        if not self.current.concluded:
            self._conclude(turn)
        elif not self.releasing:
            if self.current.outcome is not Outcome.THAWED:  # a good end has removed the journal already
                self._keep_news(turn)  # what was to be told may have passed meanwhile
            self.news.tell(turn, 0)  # who asked after it was told that all is thawed: there was nothing more to thaw
            self._on_settled(turn)

    def _conclude(self, turn: Turn) -> None:
        """Say how the freeze went, now that nothing is frozen, and let the writers go."""
        transaction = self.current
        transaction.concluded = True
        transaction.ledger.settle(turn.now)
        last = transaction.summary(turn, self._writers)
        entries.sum_up(turn, last, transaction, self.history.end(last, transaction))
        self.release(turn, GOOD if transaction.verdict_good else BAD)

    def released(self, turn: Turn) -> None:
        """Tell how the freeze ended; then whoever waited for that goes on."""
        self.releasing = False
        self.changes += 1
        transaction = self.transaction
        if transaction is not None and transaction.concluded and not transaction.told:
            self._tell_end(turn, transaction)
        else:
            self._keep_news(turn)  # what was to be told may have passed meanwhile
            self._do_answer_thaw(turn, Cause("", Fault(Code.INTERNAL, ""), None))
        if self.thawed or self.expects(FreezeEvent.RETRY):
            self._on_settled(turn)

    def _tell_end(self, turn: Turn, transaction: Transaction) -> None:
        good = transaction.outcome is Outcome.THAWED
        if good and self._writers.broken:
            self.take(turn, FreezeEvent.WRITER_LOST, self._writers.broken)
        elif good and transaction.doubt:
            self.take(turn, FreezeEvent.UNPROVED, transaction.doubt)
        transaction.told = True
        self.history.amend(turn, transaction, self._writers)
        self.news.settle(turn, transaction)

    def _do_answer_thaw(self, turn: Turn, _cause: Cause) -> None:
        if not self.releasing:  # else answered when the writers are let go
            self.news.tell(turn, 0)

    _ACTIONS: ClassVar[Mapping[str, Callable[[Freeze, Turn, Cause], None]]] = {
        "nothing": _do_nothing,
        "journal": _do_journal,
        "await_instant": _do_await_instant,
        "proceed": _do_proceed,
        "call_off": _do_call_off,
        "answer_freeze": _do_answer_freeze,
        "extend_hold": _do_extend_hold,
        "kill_freezer": _do_kill_freezer,
        "kill_unresponsive": _do_kill_unresponsive,
        "tell_keeper_to_thaw": _do_tell_keeper_to_thaw,
        "amend_fault": _do_amend_fault,
        "advance": _do_advance,
        "retry_if_useful": _do_retry_if_useful,
        "retry_now": _do_retry_now,
        "tell_error": _do_tell_error,
        "settle": _do_settle,
        "conclude_if_good": _do_conclude_if_good,
        "answer_thaw": _do_answer_thaw,
    }

    # -- on the way to THAWED

    def kill(self, turn: Turn, worker: Worker, why: str) -> None:
        """Kill a worker of this freeze whose limit has passed, and compensate."""
        self._workers.kill(turn, worker, WorkerEvent.LIMIT, f": {why}")
        self.killed(turn, worker)
