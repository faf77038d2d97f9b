"""The calls that wait for an answer, and among them those that wait for news of the freeze. Pure.

A host that has gone away waits for nothing and is answered nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...agent.api.bounds import without_details
from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS
from ...agent.api.records import PastFreeze, Status
from ...agent.api.states import FreezeState
from ...agent.api.structs import Struct, replace
from . import audit
from .events import Requested
from .timing import Key
from .turn import Turn

WAIT_DEFAULT = 30.0  # seconds that a call waits for another status record
WATCHERS: Key = ("watchers",)  # the loop's own, not the core's: a deadline of the core's comes before what workers say
WATCHERS_A_TURN = 8  # calls that are told of a change before the loop looks again at workers and hosts
WATCHERS_LATER = 0.025  # seconds that they are told later while somebody waits who acts
_ACT = frozenset({"methods.fsfreeze", "inline.fsthaw", "inline.fshold"})
SETTLED: Mapping[FreezeState, str | None] = {
    FreezeState.THAWED: "thawed",
    FreezeState.INPROGRESS: None,
    FreezeState.FROZEN: "frozen",
    FreezeState.THAWINPROGRESS: None,
    FreezeState.ERROR: "frozen",  # something is frozen and cannot be thawed for now, which may last
}
"""What guest-fsfreeze-status answers; None: its answer waits."""


class Deferred:
    """What an inline handler returns when the answer comes later."""


DEFERRED = Deferred()


class Call(Struct):
    """One request: when it came, on the loop's clock, and the number of the worker that carries it out.

    `abandoned`: its host had given up on it before it was answered.
    """

    id: int
    request: Requested
    at: float
    worker: int | None = None
    abandoned: bool = False

    @property
    def reply(self) -> tuple[int, int]:
        """Where its answer goes: connection and token."""
        return self.request.connection, self.request.token


class Pending:
    """The open calls by number. `status` returns the present record. Each call that ends gets an audit record."""

    def __init__(self, records: audit.Audit, status: Callable[[Turn], Status]) -> None:
        self._audit = records
        self._status = status
        self._open: dict[int, Call] = {}
        self._by_connection: dict[int, set[int]] = {}
        self._since: dict[int, int] = {}
        self._brief: set[int] = set()
        self._acting: set[int] = set()
        self._made: dict[bool, tuple[int, Status]] = {}
        self._unsettled: dict[int, Callable[[Turn], Any]] = {}
        self._last_id = 0

    def open(self, turn: Turn, request: Requested) -> Call:
        """Give the request a number, and store it until it is answered."""
        self._last_id += 1
        call = Call(self._last_id, request, turn.now)
        self._open[call.id] = call
        row = RPCS.get(request.method)
        if row is not None and row.handler in _ACT:
            self._acting.add(call.id)
        self._by_connection.setdefault(request.connection, set()).add(call.id)
        return call

    def __iter__(self) -> Iterator[Call]:
        return iter(self._open.values())

    def count(self, connection: int) -> int:
        """Return how many calls of this connection are open."""
        return len(self._by_connection.get(connection, ()))

    def waits(self, number: int | None) -> bool:
        """Return whether somebody still waits for the answer to this call."""
        return number in self._open

    def get(self, number: int | None) -> Call | None:
        """Return the call if somebody still waits for its answer."""
        return self._open.get(number) if number is not None else None

    def runs_in(self, call: Call, worker: int) -> None:
        """Take note that this worker was forked, or asked, for the call."""
        call.worker = worker

    def limit_wait(self, turn: Turn, call: Call, seconds: float) -> None:
        """Answer the call with IN_PROGRESS after `seconds`."""
        if call.id in self._open:
            turn.arm(("core", "call", call.id), seconds)

    def answer(self, turn: Turn, number: int | None, value: Any | Fault, *, receipt: bool = False) -> bool:
        """Answer the call, with a receipt or not; return whether somebody waited for it."""
        call = self._close(turn, number)
        if call is None:
            return False
        turn.answer(call.request.connection, call.request.token, value, receipt=receipt)
        fault = value if isinstance(value, Fault) else None
        self._record(turn, call, "fault" if fault else "done", fault)
        return True

    def wait_passed(self, turn: Turn, number: int) -> None:
        """Answer IN_PROGRESS; the job goes on."""
        call = self._open.get(number)
        if call is not None:
            waited = turn.now - call.at
            text = f"{call.request.method} is still in progress after {waited:.1f} s; the job goes on, see va.fsstatus"
            self.answer(turn, number, Fault(Code.IN_PROGRESS, text))

    def abandon(self, turn: Turn, connection: int, token: int | None) -> None:
        """Close this request, or (token None) all of this connection: the host waits no more."""
        for number in sorted(self._by_connection.get(connection, ())):
            if token is None or token == self._open[number].request.token:
                call = self._close(turn, number)
                assert call is not None
                call.abandoned = True
                self._record(turn, call, "abandoned", None)

    def answer_all(self, turn: Turn, fault: Fault) -> None:
        """Answer all who wait: with `fault`, but those who ask for the state, who are told the present one, last."""
        for number in [number for number in self._open if number not in self._since and number not in self._unsettled]:
            self.answer(turn, number, fault)
        self._tell_settled(turn)
        self._tell(turn, list(self._since))

    def _record(self, turn: Turn, call: Call, outcome: str, fault: Fault | None) -> None:
        line = audit.line(call.request, outcome, fault, turn.now - call.at, call.worker)
        row = RPCS.get(call.request.method)
        if row is not None and row.watches and fault is None:
            turn.log("debug", line)
        else:
            self._audit.add(line)

    def _close(self, turn: Turn, number: int | None) -> Call | None:
        call = self._open.pop(number, None) if number is not None else None
        if call is None:
            return None
        turn.cancel(("core", "call", call.id))
        mine = self._by_connection[call.request.connection]
        mine.discard(call.id)
        if not mine:
            del self._by_connection[call.request.connection]
        self._brief.discard(call.id)
        self._acting.discard(call.id)
        if self._unsettled.pop(call.id, None) or self._since.pop(call.id, None) is not None:
            turn.cancel(("core", "poll", call.id))
        return call

    # -- news of the freeze

    def record(self, turn: Turn, *, brief: bool, past: tuple[PastFreeze, ...] = ()) -> Status:
        """Return the present status record, a `brief` one without details, with the `past` freezes."""
        found = without_details(self._status(turn)) if brief else self._status(turn)
        return replace(found, history=past) if past else found

    def wait_for_news(self, turn: Turn, call: Call, since: int, wait: float | None, *, brief: bool) -> None:
        """Answer with the status record once its seq differs from `since`, at the latest after `wait` seconds."""
        if call.id not in self._open:
            return  # its host has given up already
        self._since[call.id] = since
        if brief:
            self._brief.add(call.id)
        turn.arm(("core", "poll", call.id), WAIT_DEFAULT if wait is None else wait)

    def poll_due(self, turn: Turn, number: int) -> None:
        """Answer a call that has waited for long enough with what is so now."""
        if make := self._unsettled.get(number):
            self.answer(turn, number, make(turn))
        else:
            self._tell(turn, [number])

    def cut(self, turn: Turn, connection: int) -> None:
        """Answer now the calls of this connection that wait for news."""
        self._tell(turn, sorted(self._by_connection.get(connection, set()) & self._since.keys()))

    def when_settled(self, turn: Turn, call: Call, make: Callable[[Turn], Any], most: float = 0.0) -> Deferred:
        """Answer the call with what `make` returns when no freeze or thaw is in progress, or after `most` seconds."""
        if call.id in self._open:
            self._unsettled[call.id] = make
            if most:
                turn.arm(("core", "poll", call.id), most)
        return DEFERRED

    def tell_news(self, turn: Turn, seq: int, state: FreezeState) -> None:
        """Let those be told for whom there is news, soon; answer those who wait for the end of a freeze or thaw."""
        if self._since and self._behind(seq):
            later = WATCHERS_LATER if self._acting else 0.0
            if not 0 <= turn.left(WATCHERS) <= later:
                turn.arm(WATCHERS, later)
        if self._unsettled and SETTLED[state] is not None:
            self._tell_settled(turn)

    def _tell_settled(self, turn: Turn) -> None:
        for number, make in list(self._unsettled.items()):
            self.answer(turn, number, make(turn))

    def tell_some(self, turn: Turn, seq: int) -> None:
        """Tell some of those for whom there is news, those that have waited longest, and the others in later turns."""
        behind = self._behind(seq)
        for number in behind[:WATCHERS_A_TURN]:
            brief = number in self._brief
            if (made := self._made.get(brief)) is None or made[0] != seq:
                made = self._made[brief] = seq, self.record(turn, brief=brief)
            self.answer(turn, number, made[1])
        if len(behind) > WATCHERS_A_TURN:
            turn.arm(WATCHERS, 0.0)
        else:
            self._made.clear()

    def _behind(self, seq: int) -> list[int]:
        # ADR 0012: `!=`, not `<`, since a restart begins seq anew
        return [number for number, since in self._since.items() if since != seq]

    def _tell(self, turn: Turn, numbers: Sequence[int]) -> None:
        """Answer these with the present record, which is made once."""
        made: dict[bool, Status] = {}
        for number in numbers:
            if (brief := number in self._brief) not in made:
                made[brief] = self.record(turn, brief=brief)
            self.answer(turn, number, made[brief])
