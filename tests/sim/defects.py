"""Planted defects: each breaks the real core or the real script in one place, and the storms must find it.

A defect replaces words in one function's source. If the words are no longer there, planting it fails: then either the
defect is to be planted where the code went, or it has become impossible.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from virtagent.agent.api.states import FREEZE_TABLE, FreezeEvent, FreezeState
from virtagent.agent.worker import freeze as script
from virtagent.supervisor.core import (
    between,
    compensation,
    engine,
    freeze,
    ledger,
    news,
    participation,
    pending,
    recovery,
    reports,
    transaction,
    waiting,
    writers,
)

_F, _E = FreezeState, FreezeEvent


class Edit(NamedTuple):
    """Words in a function, and what stands there instead."""

    function: Any
    words: str
    instead: str


class Row(NamedTuple):
    """Members of a row of FREEZE_TABLE that are different."""

    state: FreezeState
    event: FreezeEvent
    changes: dict[str, Any]


DEFECTS: Mapping[str, tuple[Edit | Row, ...]] = {
    # what proves that something is thawed
    "EINVAL is proof before the freeze worker is reaped": (
        Edit(ledger.Ledger.note, "(self.reaped or undone)", "True"),
    ),
    "a thaw worker forked before the reaping proves": (
        Edit(ledger.Ledger.freezer_reaped, "self.proof_after = last_worker", "pass"),
    ),
    "after rubbish what was said before counts": (
        Edit(ledger.Ledger.freezer_died, "if spoke_rubbish else", "if False else"),
    ),
    "a recovered plan suspects nothing": (
        Edit(ledger.Ledger.adopt, "self.attempted, self.suspects = set(everything), set(everything)", "pass"),
    ),
    "what is about to freeze is not suspect until it is frozen": (
        Edit(
            ledger.Ledger.note,
            "freezer and state in (MountState.FREEZING, MountState.FROZEN)",
            "freezer and state is MountState.FROZEN",
        ),
    ),
    "a thaw that failed counts as thawed": (
        Edit(
            ledger.Ledger.note,
            "elif state is MountState.THAWED:",
            "elif state in (MountState.THAWED, MountState.FAILED):",
        ),
    ),
    # compensation
    "compensation is forgotten after the reaping": (
        Edit(freeze.Freeze.exited, "ledger.freezer_died(spoke_rubbish=worker.rubbish)", "ledger.suspects.clear()"),
    ),
    "no compensation at the kill": (
        Edit(compensation.Compensation.due, "(WorkerState.KILLED, WorkerState.STUCK)", "()"),
    ),
    "a thaw worker that died is not followed by another": (
        Edit(
            compensation.Compensation.due,
            "bool(ledger.to_thaw)",
            "bool(ledger.to_thaw) and self._workers.last_id < ledger.freezer + 2",
        ),
    ),
    "THAWED while a thaw worker is left": (
        Edit(compensation.Compensation.nothing_left, "not self.at_work(ledger) and", ""),
    ),
    "grace periods are not put back": (Edit(compensation.Compensation.start, "ledger.expedites", "False"),),
    "a failed thaw is never tried again": (
        Edit(compensation.Compensation._try_later, "turn.arm(RETRY, self._backoff)", "turn.arm(RETRY, 1e9)"),
    ),
    "two attempts at one file system": (
        Edit(ledger.Ledger.to_thaw.fget, "self.suspects - self.in_flight.keys()", "set(self.suspects)"),
    ),
    # truth
    "evidence that died with the keeper counts for the freeze (H8)": (
        Edit(transaction.Transaction.doubt.fget, "if self.unproved:", "if False:"),
    ),
    "what a keeper did not live to count counts for the freeze": (
        Edit(transaction.Transaction.doubt.fget, "if self.held and not self.counted:", "if False:"),
    ),
    "a tie between the keeper's end and the thaw is good (H8)": (
        Edit(reports.FreezeReports._receive_thawing, "thawing.at > ", "thawing.at >= "),
    ),
    "news is forgotten when it is not asked for at once": (
        Edit(news.News.settle, "if not reported and not wanted:", "if False:"),
    ),
    "a journal with a fault is removed before that is told": (
        Edit(news.News.keep, 'if text := self.with_unreported(""):', "if False:"),
    ),
    "success is told before the journal is removed": (
        Edit(news.News.settle, "self.keep(turn, transaction.id)\n        self._pending", "self._pending"),
        Edit(news.News.settle, "if fault is not None:", "if True:"),
    ),
    "what lies on one whose thaw was refused is tried all the same": (
        Edit(script.FileSystems.thaw, "for fs in self.refused()", "for fs in ()"),
    ),
    "what a stuck keeper could not thaw waits for it": (
        Edit(reports.FreezeReports._receive_step, "if worker.state is", "if False and worker.state is"),
    ),
    "the keeper's own end of the hold is in time if the thaw was asked later": (
        Edit(reports.FreezeReports._receive_thawing, "thawing.at > transaction.thaw_asked_at", "True"),
    ),
    "a keeper that died in the hold is no break": (
        Row(_F.FROZEN, _E.DIED, {"outcome": None}),
        Row(_F.THAWINPROGRESS, _E.UNPROVED, {"outcome": None}),
    ),
    "a hold that passed is no break": (
        Row(_F.FROZEN, _E.EXPIRED, {"outcome": None}),
        Row(_F.FROZEN, _E.HOLD_PASSED, {"outcome": None}),
        Row(_F.THAWINPROGRESS, _E.EXPIRED, {"outcome": None}),
    ),
    "SIGTERM to the daemon is no break": (Row(_F.FROZEN, _E.STOPPING, {"outcome": None}),),
    "a keeper that gave up is no break": (Row(_F.FROZEN, _E.GAVE_UP, {"outcome": None}),),
    "a longer hold is granted before the keeper agrees": (
        Edit(freeze.Freeze.hold, "return DEFERRED", "return seconds"),
    ),
    # the journal
    "the worker goes on before the plan is in the journal": (
        Edit(
            freeze.Freeze._do_journal,
            "self._write_journal(",
            "self.current.goes = True; self.proceed_if_ready(turn); self._write_journal(",
        ),
    ),
    "what was told to proceed counts as one that froze nothing": (
        Edit(
            transaction.Transaction.note_proceeds,
            "self.may_have_frozen, self.proceeded_at = True, now",
            "self.proceeded_at = now",
        ),
    ),
    "a journal that could not be written does not matter": (
        Row(_F.INPROGRESS, _E.JOURNAL_FAILED, {"state": _F.INPROGRESS, "action": "proceed", "outcome": None}),
    ),
    "news that are over take the plan out of the journal": (
        Edit(between.Between._keep_news, "(nothing_yet and untold.asks)", "False"),
    ),
    "the journal says nothing of the freeze worker": (Edit(between.Between._write_journal, "freezer.pid", "0"),),
    "a freeze that a start finds in the journal counts as good": (
        Edit(recovery.adopted, "outcome=Outcome.BROKEN, fault=broken", "outcome=Outcome.THAWED"),
    ),
    # the machine
    "the keeper is not told to thaw": (
        Edit(freeze.Freeze._do_tell_keeper_to_thaw, "turn.tell(keeper.id, messages.Thaw())", "pass"),
    ),
    "a stopped keeper is waited for": (
        Edit(
            freeze.Freeze._do_tell_keeper_to_thaw,
            "self._workers.arm(turn, keeper, REACT_GRACE)",
            "self._workers.arm(turn, keeper, 0)",
        ),
    ),
    "the hold limit counts from the report": (
        Edit(reports.FreezeReports._receive_frozen, "max(until - turn.now, 1e-3) if limit else 0", "limit"),
    ),
    "a longer hold leaves the old limit": (
        Edit(freeze.Freeze._do_extend_hold, "self._workers.limit(turn, keeper, transaction.hold_ends)", "pass"),
    ),
    "hosts that hang up are answered": (
        Edit(pending.Pending.abandon, "self._close(turn, number)", "self._open[number]"),
    ),
    "only the first of those who wait for a thaw is answered": (
        Edit(news.News._take_callers, "map(self._pending.get, callers)", "map(self._pending.get, callers[:1])"),
    ),
    # the script of the worker
    "FIFREEZE begins before the announcement is read": (
        Edit(script.FreezeScript._announce, "taken=True)), Taken)", "taken=True)), object)"),
    ),
    "the script thaws without waiting for a FIFREEZE in flight": (
        Edit(script.FileSystems.thaw, "if not self.busy:", "if not free:"),
    ),
    "the keeper stays when the supervisor is gone": (
        Edit(script.FreezeScript._hold, "case Gone(reason):", "case None:"),
    ),
    "the keeper never ends the hold by itself": (
        Edit(script.FreezeScript._hold, "wait(until - max(0, seconds - 1) if limit else math.inf)", "wait(math.inf)"),
    ),
    "what someone else has thawed counts as thawed by us": (
        Edit(script.FreezeScript._freeze_and_hold, "if fs.froze and fs.error == errno.EINVAL", "if False"),
        Edit(ledger.Ledger.note, "state is MountState.THAWED and step.errno == errno.EINVAL", "False"),
    ),
    "outermost is not first": (Edit(script.FileSystems.thaw, "waiting.isdisjoint(fs.hosts)", "True"),),
    "the script ends with what it could not thaw": (Edit(script.FreezeScript._thaw, "(yield steps.Alone())", "False"),),
    # writers, and the instant
    "writers are let go before the thaw": (
        Edit(
            freeze.Freeze._do_tell_keeper_to_thaw,
            "self._workers.arm(turn, keeper, REACT_GRACE)",
            "self._workers.arm(turn, keeper, REACT_GRACE); self._writers.release(turn, GOOD)",
        ),
    ),
    "the freeze goes on before all writers have quiesced": (
        Edit(freeze.Freeze.proceed_if_ready, "transaction.goes and self._writers.quiesced", "transaction.goes"),
    ),
    "frozen is told before all writers have confirmed": (
        Edit(participation.Participation._go_on, "if writers.confirmed:", "if True:"),
    ),
    "a writer that is lost while it holds does not refuse the freeze": (
        Edit(writers.Writers._fails, "before is not _S.CONFIRMED", "before in (_S.PREPARING, _S.READY)"),
    ),
    "what the worker of a writer leaves is not undone": (
        Edit(writers.Writers._begin_release, "self._undo(turn, writer)", 'self._let_go(turn, writer, "")'),
    ),
    "an undo that failed is not tried again": (
        Edit(writers.Writers._not_undone, "turn.arm(writer.key, writer.backoff)", "pass"),
    ),
    "a writer that has let go and hangs has overrun": (Edit(writers.Writers._fails, "writer.let_go or ", ""),),
    "what an earlier agent left set is forgotten": (Edit(writers.Writers.found, "writer.set = True", "pass"),),
    "writers are told that a broken freeze was good": (
        Edit(freeze.Freeze._conclude, "GOOD if transaction.verdict_good else BAD", "GOOD"),
    ),
    "a writer that refuses is told that the freeze was good": (
        Edit(writers.Writers._tell, "BAD if early else self._verdict", "self._verdict"),
    ),
    "one that waits for a writer which does not end stays held": (
        Edit(writers.Writers.release_due, "if worker is not None", "if False and worker is not None"),
    ),
    "writers are quiesced in any order": (Edit(writers.Writers._advance, "if not any(", "if True or not any("),),
    "a writer that is stopped has no limit": (Edit(writers.Writers._tell, "limit + LATER)", "0)"),),
    "the instant is not waited for": (Edit(freeze.Freeze._await_instant, "if left > 0 and", "if False and"),),
    "a later va.fsgo leaves the old instant": (
        Edit(freeze.Freeze.go, "transaction.let_go(turn.at_time(at))", "transaction.let_go(transaction.starts_at)"),
    ),
    "what a host was to let go goes on at its instant": (
        Edit(freeze.Freeze.instant, "if self.current.attended_by:", "if False:"),
    ),
    "a freeze whose host has left waits for its instant": (
        Edit(freeze.Freeze.disconnected, "self.current.attended_by == event.connection", "False"),
    ),
    "a freeze that waits begins although its host has left": (
        Edit(waiting.Waiting.disconnected, "not one.attended or", "True or"),
    ),
    # between the end of a freeze and the reaping
    "another freeze begins before the last worker is reaped": (Edit(between.Between.busy.fget, "or self.over", ""),),
    "THAWED before the last worker is reaped": (Row(_F.THAWINPROGRESS, _E.DONE, {"state": _F.THAWED}),),
    "what becomes of the keeper after the answer breaks the freeze": (
        Edit(transaction.Transaction.may_end_badly.fget, " and not self.told", ""),
    ),
    # answers
    "the thaw is answered before all is thawed": (Row(_F.FROZEN, _E.THAW_ASKED, {"action": "settle"}),),
    "a call that waits is forgotten when its worker dies": (
        Edit(engine.Engine._lost, "self._pending.answer(turn, worker.call, fault)", "pass"),
    ),
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a defect for as long as this context lasts; raise LookupError if its words are not there any more."""
    undo: list[Callable[[], None]] = []
    try:
        by_function: dict[Any, list[Edit]] = {}
        for change in DEFECTS[name]:
            if isinstance(change, Edit):
                by_function.setdefault(change.function, []).append(change)
            else:
                undo.append(_change_row(*change))
        undo += [_edit(function, edits) for function, edits in by_function.items()]
        yield
    finally:
        for back in reversed(undo):
            back()


def _edit(function: Any, edits: Sequence[Edit]) -> Callable[[], None]:
    source = textwrap.dedent(inspect.getsource(function))
    for _, words, instead in edits:
        if words not in source:
            raise LookupError(f"{function.__qualname__} has no {words!r}")
        source = source.replace(words, instead)
    names: dict[str, Any] = {}
    code = compile(f"from __future__ import annotations\n{source}", "<planted>", "exec")
    exec(code, function.__globals__, names)
    new = names[function.__name__]
    old, function.__code__ = function.__code__, getattr(new, "fget", new).__code__

    def back() -> None:
        function.__code__ = old

    return back


def _change_row(state: FreezeState, event: FreezeEvent, changes: dict[str, Any]) -> Callable[[], None]:
    table: Any = FREEZE_TABLE
    old = table[state, event]
    table[state, event] = old._replace(**changes)

    def back() -> None:
        table[state, event] = old

    return back
