"""What va.fssync has the writers do first: prepare, as a freeze would, and let go again. Nothing is held. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...agent.api.errors import Code, Fault
from ...agent.api.options import Options
from ...agent.api.rpc import Rpc
from .freeze import Freeze
from .pending import Call, Pending
from .turn import Turn
from .writers import Writers

NOTHING_SYNCED = "nothing was synced"


class _Waits(NamedTuple):
    call: Call
    row: Rpc
    args: dict[str, Any]


class Presync:
    """The one call whose writers prepare. `begin` begins its job when they are let go."""

    def __init__(
        self,
        freeze: Freeze,
        writers: Writers,
        pending: Pending,
        begin: Callable[[Turn, Call, Rpc, dict[str, Any]], None],
    ) -> None:
        self._freeze = freeze
        self._writers = writers
        self._pending = pending
        self._begin = begin
        self._waits: _Waits | None = None

    def prepare(self, turn: Turn, call: Call, row: Rpc, options: Options) -> None:
        """Have the writers prepare; to be called only when none is in use.

        Raises Fault VETOED if a writer of an earlier freeze could not be let go.
        """
        if stuck := self._writers.stuck():
            raise Fault(Code.VETOED, f"{stuck}; {NOTHING_SYNCED}")
        self._waits = _Waits(call, row, {"options": options})
        self._freeze.prepare_only(turn)
        self._writers.prepare(turn, options.writers, options.held_at_most, None)

    def settled(self, turn: Turn) -> None:
        """Sync, or tell that a writer has refused: all are let go."""
        waits, self._waits = self._waits, None
        if waits is None:
            return
        try:
            if self._freeze.cut_short:
                raise Fault(Code.FAILED, f"the sync was cancelled: {self._freeze.cut_short}; {NOTHING_SYNCED}")
            if self._writers.refusal:
                raise Fault(Code.VETOED, f"{self._writers.refusal}; {NOTHING_SYNCED}")
            self._begin(turn, *waits)
        except Fault as fault:
            self._pending.answer(turn, waits.call.id, fault)
