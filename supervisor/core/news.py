"""The hosts that wait for a thaw, and the news of freezes that went wrong. Pure.

A broken freeze is told to every fsthaw until a later freeze is FROZEN, at the longest `news-limit` seconds after it was
first told (ADR 0006). Told means that the host has taken the reply (`events.Taken`), and has not then closed the
connection with bytes unread. How a freeze failed is told to the host that asked for it; only if that one does not take
it does it become news.
"""

from __future__ import annotations

from collections.abc import Callable

from ...agent.api.errors import Code, Fault
from ...agent.api.states import Outcome
from ...agent.api.structs import Struct, field
from .ledger import NO_PLAN, journal
from .pending import Call, Pending
from .timing import OWNER
from .transaction import Transaction
from .turn import Turn

NEWS = (OWNER, "news")  # the deadline at which something that was told may be forgotten
NEWS_MAX = 16
Reply = tuple[int, int]  # connection and token


class Item(Struct):
    """One thing to be told. Times are seconds of the loop's clock; 0 means not yet.

    `channel` is the only one whose hosts are told, "" for all. `by` are the open connections on which it was taken;
    `surely`: it was taken on one that has ended well. `owed`: it is the answer of a host that asked for that freeze,
    which need not be told to anybody else once that has taken it.
    """

    text: str
    channel: str = ""
    owed: bool = False
    by: set[int] = field(default_factory=set)
    surely: bool = False
    told_at: float = 0.0

    @property
    def told(self) -> bool:
        """Whether somebody has taken it."""
        return self.surely or bool(self.by)


class News:
    """The calls that wait for a thaw, and what hosts that thaw are to be told.

    `on_change` is called when what the journal must hold has changed by itself.
    """

    def __init__(self, pending: Pending, on_change: Callable[[Turn], None]) -> None:
        self._pending = pending
        self._on_change = on_change
        self._thaw_callers: list[int] = []
        self._items: list[Item] = []
        self._on_its_way: dict[Reply, list[Item]] = {}
        self._limit = 0.0

    def configure(self, turn: Turn | None, limit: float) -> None:
        """Set for how many seconds after it was first told something is told again; 0 means no limit."""
        self._limit = limit
        if turn is not None:  # there is none before anything could be told
            self._arm(turn)

    def wait_for_thaw(self, call: int) -> None:
        """Let the call wait for the end of a thaw."""
        self._thaw_callers = [*filter(self._pending.waits, self._thaw_callers), call]

    # -- what there is to tell

    def _open(self, call: Call) -> list[Item]:
        channels = ("", call.request.peer.channel)
        return [item for item in self._items if not item.owed and item.channel in channels]

    def with_unreported(self, more: str) -> str:
        """Return what is to be told, and `more`, as one text; that is for the journal."""
        return "; ".join(filter(None, (*(item.text for item in self._for_all), more)))

    @property
    def _for_all(self) -> list[Item]:
        return [item for item in self._items if not item.channel and not (item.owed and item.told)]

    def add(self, turn: Turn, text: str, told_at: float = 0.0, *, channel: str = "", owed: bool = False) -> Item:
        """Remember this for whoever thaws, or thaws by that channel; `told_at` is when it was first told before.

        Of too many the first to go is an answer that its host has, then one that is on its way to it, then what was
        told: hosts whose freezes fail do not wear out the news of a broken one.
        """
        item = Item(text, channel, owed, surely=told_at > 0, told_at=told_at)
        self._items.append(item)
        self._arm(turn)
        if len(self._items) > NEWS_MAX:
            self._forget(turn, [min(self._items, key=lambda one: (not one.owed, not one.told))])  # of equals the oldest
        return item

    def drop(self, turn: Turn, channel: str) -> None:
        """Forget the news: a thaw from now on is that of a later freeze, which this channel asked for (ADR 0006)."""
        self._forget(turn, [item for item in self._items if item.channel in ("", channel)])

    def _forget(self, turn: Turn, items: list[Item]) -> None:
        for item in items:
            if not item.told:
                who = "it is told only to the host that asked for that freeze" if item.owed else "nobody was told"
                turn.log("warning", f"{who}: {item.text}")
            self._items.remove(item)
        self._arm(turn)

    def keep(self, turn: Turn, freeze: int) -> None:
        """Leave in the journal only what is to be told (ADR 0006): nothing is frozen now."""
        if text := self.with_unreported(""):
            first = min(item.told_at for item in self._for_all)
            turn.journal(freeze, 0, journal(freeze, NO_PLAN, text, told_at=first))
        else:
            turn.no_journal()

    # -- telling

    def answer(self, turn: Turn, value: int | Fault) -> None:
        """Answer those who wait for a thaw."""
        for call in self._take_callers():
            self._pending.answer(turn, call.id, value)

    def tell(self, turn: Turn, otherwise: int) -> None:
        """Answer those who wait for a thaw: with the news if there is any."""
        for call in self._take_callers():
            self._send(turn, call, self._open(call), otherwise)

    def refuse(self, turn: Turn, call: Call, why: str) -> None:
        """Answer a thaw that is not carried out why that is so, and the news for its channel."""
        items = self._open(call)
        text = "; ".join(dict.fromkeys((why, *(item.text for item in items))))
        if self._pending.answer(turn, call.id, Fault(Code.FREEZE_BROKEN, text), receipt=True):
            self._on_its_way[call.reply] = items

    def tell_caller(self, turn: Turn, number: int | None, fault: Fault) -> bool:
        """Answer the host that asked for the freeze how it failed; return whether it still waited."""
        call = self._pending.get(number)
        if call is None:
            return False
        item = self.add(turn, fault.text, owed=True)
        self._on_its_way[call.reply] = [item]
        self._pending.answer(turn, call.id, fault, receipt=True)
        return True

    def _take_callers(self) -> list[Call]:
        callers, self._thaw_callers = self._thaw_callers, []
        return [call for call in map(self._pending.get, callers) if call is not None]

    def _send(self, turn: Turn, call: Call, items: list[Item], otherwise: int) -> None:
        if not items:
            self._pending.answer(turn, call.id, otherwise)
            return
        self._on_its_way[call.reply] = list(items)
        text = "; ".join(item.text for item in items)
        self._pending.answer(turn, call.id, Fault(Code.FREEZE_BROKEN, text), receipt=True)

    def settle(self, turn: Turn, transaction: Transaction) -> None:
        """Tell how a freeze ended: its caller and those who wait for a thaw, or else each thaw that comes."""
        fault = transaction.final_fault
        reported = wanted = False
        if fault is None:
            # Before a success is answered, nothing on disk may contradict it; a fault stays there until it is told.
            self.keep(turn, transaction.id)
            self._pending.answer(turn, transaction.caller, 0)
        else:
            reported = self.tell_caller(turn, transaction.caller, fault) or transaction.reported
            wanted = transaction.outcome is Outcome.CANCELLED and transaction.thaw_asked_at > 0
            if not reported and not wanted:
                self.add(turn, fault.text)
        if (elsewhere := transaction.ended_elsewhere) and not reported and (fault is None or wanted):
            self.add(turn, elsewhere, channel=transaction.channel)
        self.tell(turn, transaction.thawed_count)
        if fault is not None:
            self.keep(turn, transaction.id)

    # -- what became of it

    def taken(self, turn: Turn, connection: int, token: int) -> None:
        """Take note that the host has taken that reply."""
        items = self._on_its_way.pop((connection, token), [])
        first = [item for item in items if not item.told_at]
        for item in items:
            item.by.add(connection)
            item.told_at = item.told_at or turn.now
        self._arm(turn)
        if first:
            self._on_change(turn)

    def given_up(self, turn: Turn, connection: int, token: int) -> None:
        """Close that call; if it is answered already, nobody takes the reply."""
        self._pending.abandon(turn, connection, token)
        for item in self._on_its_way.pop((connection, token), []):
            item.owed = False

    def disconnected(self, turn: Turn, connection: int, *, unread: bool) -> None:
        """Take note that the connection has ended, with replies unread or not."""
        before = [item.told_at for item in self._items]
        for reply in [reply for reply in self._on_its_way if reply[0] == connection]:
            for item in self._on_its_way.pop(reply):
                item.owed = False
        for item in self._items:
            if connection in item.by:
                item.by.discard(connection)
                item.surely |= not unread
                if not item.told:
                    item.told_at, item.owed = 0.0, False
        self._items = [item for item in self._items if not (item.owed and item.surely)]
        self._arm(turn)
        if before != [item.told_at for item in self._items]:
            self._on_change(turn)

    def due(self, turn: Turn) -> None:
        """Forget what was first told long enough ago."""
        self._items = [item for item in self._items if not (item.told_at and item.told_at + self._limit <= turn.now)]
        self._arm(turn)
        self._on_change(turn)

    def _arm(self, turn: Turn) -> None:
        first = min((item.told_at for item in self._items if item.told_at), default=0.0)
        if first and self._limit:
            turn.arm(NEWS, max(first + self._limit - turn.now, 1e-3))
        else:
            turn.cancel(NEWS)
