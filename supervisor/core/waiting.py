"""The calls that begin when a freeze is over: a shutdown, which ends it, and other freezes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import Disk, Rpc
from ...agent.api.states import FreezeEvent
from .events import Disconnected
from .freeze import Freeze
from .pending import Call, Pending
from .turn import Turn

WAITS_MAX = 64  # calls that wait, of all hosts


class _Waits(NamedTuple):
    """A call that waits; `thaws_asked` is how many thaws had been asked for when it came."""

    call: Call
    row: Rpc
    args: dict[str, Any]
    thaws_asked: int

    @property
    def connection(self) -> int:
        return self.call.request.connection

    @property
    def in_vain(self) -> bool:
        """Whether it is a freeze that nobody would thaw."""
        return self.row.disk is Disk.FREEZES and self.call.abandoned

    @property
    def attended(self) -> bool:
        return bool((self.args.get("options") or {}).get("attended"))


class Waiting:
    """These calls, oldest first. `refusal` says why a row is not admitted now, `begin` begins a call if there is room.

    A call that has ended the freeze was admitted before that, and `goes_on` whatever has changed since.
    """

    def __init__(
        self,
        freeze: Freeze,
        pending: Pending,
        refusal: Callable[[Rpc], Fault | None],
        begin: Callable[[Turn, Call, Rpc, dict[str, Any]], None],
        goes_on: Callable[[Turn, Call, Rpc, dict[str, Any]], None],
    ) -> None:
        self._freeze = freeze
        self._pending = pending
        self._refusal = refusal
        self._begin = begin
        self._goes_on = goes_on
        self._calls: list[_Waits] = []

    def add(self, call: Call, row: Rpc, args: dict[str, Any]) -> None:
        """Let the call wait.

        Raises Fault BUSY if it ends the freeze, and another of its kind waits already; or if too many others do.
        """
        if row.thaws_first and any(other.row is row for other in self._calls):
            raise Fault(Code.BUSY, f"{row.name}: it was asked already, and waits for the thaw")
        self._calls = [other for other in self._calls if not other.in_vain]
        if not row.thaws_first and len(self._calls) >= WAITS_MAX:
            raise Fault(Code.BUSY, f"{row.name}: {WAITS_MAX} calls wait already; call again later")
        self._calls.append(_Waits(call, row, args, self._freeze.thaws_asked))

    def disconnected(self, event: Disconnected) -> None:
        """Forget the freezes that the host of this connection was to let go."""
        if not event.evicted:
            self._calls = [one for one in self._calls if not one.attended or one.connection != event.connection]

    def takes(self, row: Rpc) -> bool:
        """Return whether a call of `row` waits for the outcome of a freeze that is not held yet, or is being undone.

        A QEMU guest agent has no such moment, so what it says then, that the guest is frozen, would not be true.
        """
        freeze = self._freeze
        outcome_is_open = freeze.expects(FreezeEvent.CALLED_OFF) or freeze.expects(FreezeEvent.SETTLED)
        return row.is_guest and row.disk is Disk.FREEZES and outcome_is_open

    def held(self, turn: Turn) -> None:
        """Refuse the freezes that wait, if another is held now."""
        if self._calls and self._freeze.expects(FreezeEvent.HOLD_ASKED):
            self.settled(turn)

    def settled(self, turn: Turn) -> None:
        """Begin or refuse what waits: the freeze is thawed or held, or cannot be thawed for now."""
        waited, self._calls = self._calls, []
        for one in waited:
            call, row, args = one.call, one.row, one.args
            freezes = row.disk is Disk.FREEZES
            if (freezes and self.takes(row)) or ((freezes or row.prepares) and self._freeze.busy):
                self._calls.append(one)  # another that waited has begun
                continue
            thawed = one.thaws_asked != self._freeze.thaws_asked and not self._pending.waits(call.id)
            if one.in_vain or (freezes and thawed):
                continue  # nobody would thaw it, or somebody has called it off
            if row.thaws_first:
                self._goes_on(turn, call, row, args)
                continue
            try:
                if (refused := self._refusal(row)) is not None:
                    raise refused
                self._begin(turn, call, row, args)
            except Fault as fault:
                self._pending.answer(turn, call.id, fault)
