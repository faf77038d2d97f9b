"""Between two freezes: writers that prepare or are let go, and a worker that has yet to be reaped. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...agent.api.states import FreezeEvent
from .machine import Machine
from .news import News
from .pending import SETTLED, Call, Deferred, Pending
from .recovery import died
from .transaction import Transaction
from .turn import Turn
from .workers import Worker, Workers
from .writers import Writers

REAPING = 0.5  # seconds for which a call that asks for the state waits, so that it is THAWED after a thaw

T = TypeVar("T")


class Between(Machine):
    """What keeps a new freeze waiting although nothing is frozen.

    `preparing`: the writers do, and no freeze follows; the agent's or the guest's end has `cut_short` that, "" if not.
    `releasing`: nothing is frozen, and the writers are let go before that is told. `news` is what hosts that thaw are
    told; the journal has it, too.
    """

    def __init__(self, workers: Workers, pending: Pending, writers: Writers, last_id: int) -> None:
        super().__init__(pending)
        self._workers = workers
        self._writers = writers
        self._last_id = last_id
        self.news = News(pending, self._keep_news)
        self.preparing = self.releasing = False
        self.cut_short = ""

    @property
    def over(self) -> bool:
        """Whether nothing is frozen, but the worker of the freeze has yet to be reaped (ADR 0040)."""
        return self.expects(FreezeEvent.SETTLED) and self.current.concluded

    @property
    def busy(self) -> bool:
        """Whether nothing is frozen, but the writers or the last worker are in use: no freeze may begin."""
        return self.preparing or self.releasing or self.over

    def prepare_only(self, turn: Turn) -> None:
        """Take note that the writers prepare, and that no freeze follows."""
        self.preparing, self.cut_short = True, ""
        self.changes += 1

    def release(self, turn: Turn, verdict: str) -> None:
        """Let the writers go: nothing is frozen any more; `released` is called when they are."""
        self.preparing, self.releasing = False, True
        self._writers.release(turn, verdict)

    # -- what hosts that ask are told

    def when_reaped(self, turn: Turn, call: Call, make: Callable[[Turn], T]) -> T | Deferred:
        """Return what `make` makes, a moment later if the worker of a freeze that is over is about to be reaped."""
        return self._pending.when_settled(turn, call, make, REAPING) if self.over else make(turn)

    def settled(self, turn: Turn, call: Call) -> str | Deferred:
        """Return "thawed" or "frozen"; while neither is true, answer when one of them is."""
        return SETTLED[self.state] or self._pending.when_settled(turn, call, lambda _: SETTLED[self.state])

    # -- the journal

    def _freezer(self) -> Worker | None:
        """Return the freeze worker, None if it is reaped."""
        return self._workers.get(self.current.ledger.freezer)

    def _keep_news(self, turn: Turn) -> None:
        """Let the journal have what is to be told; while something may be frozen, it stays as it is."""
        nothing_yet = self._nothing_frozen
        if not (self.thawed or self.over or nothing_yet):
            return
        untold = self.transaction if self.transaction is not None and not self.transaction.told else None
        if untold and (untold.journaled or (nothing_yet and untold.asks)):
            self._write_journal(turn, untold)  # also while it is being written: by that the freeze goes on
        elif not (untold and untold.recovered):
            self.news.keep(turn, self._last_id - nothing_yet)  # by its own number a freeze would go on

    def _write_journal(self, turn: Turn, transaction: Transaction) -> None:
        freezer = self._freezer()
        unreported = self.news.with_unreported(died(transaction.id))
        record = transaction.ledger.journal(transaction.id, unreported, transaction.synced_at)
        turn.journal(transaction.id, freezer.pid if freezer else 0, record)
