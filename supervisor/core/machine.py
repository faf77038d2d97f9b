"""The state of a freeze, and its one setter, which the table drives (agent/api/states.py). Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from ...agent.api.errors import Code, Fault
from ...agent.api.states import FREEZE_TABLE, FreezeEvent, FreezeState, Outcome, freeze_row
from ...agent.worker import messages
from .pending import Pending
from .transaction import Transaction
from .turn import Turn

NOTHING_FROZEN = "nothing was frozen"


class Cause(NamedTuple):
    """What a row's action gets: why the event happened, the fault for a host, the report that brought it if one did."""

    why: str
    fault: Fault
    report: messages.Report | None


class Machine(ABC):
    """The state, and the transaction that is in progress or was the last one.

    `since` is when the state was entered, `error` the reason of an ERROR, `changes` a count of changes.
    """

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.state = FreezeState.THAWED
        self.since = 0.0
        self.error = ""
        self.changes = 0
        self.transaction: Transaction | None = None

    @abstractmethod
    def act(self, turn: Turn, action: str, cause: Cause) -> None:
        """Call the action of a row by its name."""

    @abstractmethod
    def tell(self, turn: Turn, text: str, ended: Outcome | None) -> None:
        """Log that the state has changed, or that the freeze has `ended` badly."""

    def take(
        self,
        turn: Turn,
        event: FreezeEvent,
        why: str = "",
        *,
        where: str = "",
        code: Code = Code.INTERNAL,
        report: messages.Report | None = None,
    ) -> None:
        """Take `event`: its row gives outcome, state and action. Raises Unlisted, which is a defect here."""
        row = freeze_row(self.state, event)
        transaction = self.transaction
        text = row.text.format(id=transaction.id if transaction else 0, why=why, where=where)
        if self._nothing_frozen and (row.state, FreezeEvent.SETTLED) in FREEZE_TABLE:
            end = freeze_row(self.state, FreezeEvent.CALLED_OFF)
            row = row._replace(state=end.state, action=end.action)
            text = text if NOTHING_FROZEN in text else f"{text}; {NOTHING_FROZEN}"
        fault = Fault(row.code or code, text)
        ended = transaction.outcome if transaction and event is FreezeEvent.JOURNAL else None
        if row.outcome is not None and transaction is not None and transaction.may_end_badly:
            transaction.outcome, transaction.fault = ended, _ = row.outcome, fault
        if row.state is not self.state:
            self._enter(turn, row.state, fault.text, ended)
        elif ended is not None:
            self.tell(turn, fault.text, ended)
        self.act(turn, row.action, Cause(why, fault, report))

    def _enter(self, turn: Turn, state: FreezeState, why: str, ended: Outcome | None) -> None:
        old, self.state = self.state, state
        self.since = turn.now
        self.changes += 1
        self.error = why if self.expects(FreezeEvent.RETRY) else ""
        self.tell(turn, f"{old.name} -> {state.name}: {why}", ended)
        transaction = self.transaction
        if transaction is not None and not transaction.held_until and self.expects(FreezeEvent.SETTLED):
            for number, fault in transaction.end_hold(turn.now):
                self._pending.answer(turn, number, fault)

    def count_change(self) -> None:
        """Count a change that shows in the status record, but not in the state."""
        self.changes += 1

    def expects(self, event: FreezeEvent) -> bool:
        """Return whether the table has a row for `event` in the present state."""
        return (self.state, event) in FREEZE_TABLE

    @property
    def thawed(self) -> bool:
        """Whether nothing may be frozen."""
        return self.expects(FreezeEvent.ADMITTED)

    @property
    def under_way(self) -> bool:
        """Whether a freeze is in progress, and not stuck in ERROR."""
        return not self.thawed and not self.expects(FreezeEvent.RETRY)

    @property
    def _nothing_frozen(self) -> bool:
        """Whether a freeze is under way whose worker was not told to proceed: it has frozen nothing, and will not."""
        return self.expects(FreezeEvent.CALLED_OFF) and not self.current.may_have_frozen

    @property
    def hold_ends(self) -> float:
        """The second of the loop's clock at which the hold ends; 0 if nothing is held, or there is no limit."""
        return self.current.hold_ends if self.expects(FreezeEvent.HOLD_ASKED) else 0.0

    @property
    def current(self) -> Transaction:
        """The transaction that is in progress or was the last one; there must be one."""
        assert self.transaction is not None
        return self.transaction
