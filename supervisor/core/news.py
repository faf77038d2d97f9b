"""The hosts that wait for a thaw, and the news of a broken freeze that no host was told yet (ADR 0006). Pure."""

from __future__ import annotations

from ...agent.api.errors import Code, Fault
from ...agent.api.states import Outcome
from .ledger import NO_PLAN, journal
from .pending import Pending
from .transaction import Transaction
from .turn import Turn


class News:
    """The calls that wait for a thaw. `unreported` is what the next fsthaw must be told, "" if there is nothing."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._thaw_callers: list[int] = []
        self.unreported = ""

    def add(self, more: str) -> None:
        """Remember this, too, for the next fsthaw."""
        self.unreported = self.with_unreported(more)

    def with_unreported(self, more: str) -> str:
        """Return what is unreported, and `more`."""
        return "; ".join(filter(None, (self.unreported, more)))

    def wait_for_thaw(self, call: int) -> None:
        """Let the call wait for the end of a thaw."""
        self._thaw_callers = [*filter(self._pending.waits, self._thaw_callers), call]

    def answer(self, turn: Turn, value: int | Fault) -> bool:
        """Answer those who wait for a thaw; return whether anybody did."""
        callers, self._thaw_callers = self._thaw_callers, []
        return sum(self._pending.answer(turn, number, value) for number in callers) > 0  # not any(): all are answered

    def tell(self, turn: Turn, otherwise: int, more: str = "") -> bool:
        """Answer those who wait for a thaw: with the news and `more` if there is any; return whether anybody waited.

        ADR 0006: answered first and forgotten then, so that a death in between reports it twice rather than never.
        """
        news = self.with_unreported(more)
        told = self.answer(turn, Fault(Code.FREEZE_BROKEN, news) if news else otherwise)
        if told:
            self.unreported = ""
        return told

    def settle(self, turn: Turn, transaction: Transaction) -> None:
        """Tell how a freeze ended: its caller and those who wait for a thaw, or else the next fsthaw."""
        fault = transaction.final_fault
        # Before a success is answered, nothing on disk may contradict it; a fault stays there until it is answered.
        if fault is None and not self.unreported:
            self.keep(turn, transaction.id)
        reported = self._pending.answer(turn, transaction.caller, fault or 0) or transaction.reported
        cancelled = transaction.outcome is Outcome.CANCELLED
        mine = fault.text if fault is not None and not reported and not cancelled else ""
        news = self.with_unreported(mine)
        if (
            not self.tell(turn, transaction.thawed_count, mine)
            and fault is not None
            and not reported
            and not (cancelled and transaction.thaw_asked_at)
        ):
            self.add(fault.text)
        if fault is not None or news:
            self.keep(turn, transaction.id)

    def drop(self, turn: Turn) -> None:
        """Forget the news: from now on a thaw that is asked for is the thaw of a later freeze (ADR 0006)."""
        if self.unreported:
            turn.log("warning", f"nobody was told: {self.unreported}")
            self.unreported = ""

    def keep(self, turn: Turn, freeze: int) -> None:
        """Leave in the journal only what was not reported (ADR 0006): nothing is frozen now."""
        if self.unreported:
            turn.journal(freeze, 0, journal(freeze, NO_PLAN, self.unreported))
        else:
            turn.no_journal()
