"""Calls that wait for news: for another status record, or for the freeze state to be one that lasts. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ...agent.api.states import FreezeState
from .pending import Calls
from .status import Record
from .timing import Deadlines

WAIT_DEFAULT = 30.0
_MOVING = (FreezeState.INPROGRESS, FreezeState.THAWINPROGRESS)


class Polls:
    """Who waits. `status` makes the present record."""

    def __init__(self, calls: Calls, deadlines: Deadlines, status: Callable[[], Record]) -> None:
        self._calls = calls
        self._deadlines = deadlines
        self._status = status
        self._since: dict[int, int] = {}
        self._unsettled: list[int] = []

    def wait(self, call: int, since: int, wait: float | None, now: float) -> None:
        """Answer the call with the status record once its seq is another than `since`, or after `wait` seconds."""
        self._since[call] = since
        self._deadlines.arm(("core", "poll", call), now + (WAIT_DEFAULT if wait is None else wait))

    def due(self, call: int, now: float) -> None:
        """The wait of a call has passed."""
        self._since.pop(call, None)
        self._calls.answer(call, self._status(), now)

    def settle(self, call: int, state: FreezeState) -> str | None:
        """Return "thawed" or "frozen"; None if neither is true, and the call is answered when one is.

        In ERROR something is frozen and cannot be thawed for now: that lasts, and is no "thawed".
        """
        if state in _MOVING:
            self._unsettled = [*filter(self._calls.waits, self._unsettled), call]
            return None
        return "thawed" if state is FreezeState.THAWED else "frozen"

    def tell(self, seq: int, state: FreezeState, now: float) -> None:
        """Answer those for whom there is news."""
        for number in [n for n, since in self._since.items() if since != seq or not self._calls.waits(n)]:
            del self._since[number]
            self._deadlines.cancel(("core", "poll", number))
            if self._calls.waits(number):
                self._calls.answer(number, self._status(), now)
        if self._unsettled and state not in _MOVING:
            waiting, self._unsettled = self._unsettled, []
            for number in waiting:
                self._calls.answer(number, self.settle(number, state), now)

    def tell_all(self, now: float) -> None:
        """Answer with the present record all that wait for another."""
        for number in self._since:
            self._calls.answer(number, self._status(), now)
