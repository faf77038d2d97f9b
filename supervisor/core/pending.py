"""The requests that wait for their answer. A host that has gone away waits for nothing, and is told nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...agent.api.errors import Code, Fault
from .events import Answer, Effect, Requested
from .timing import Deadlines


class Deferred:
    """What an inline handler returns when the answer comes later."""


DEFERRED = Deferred()


@dataclass(slots=True)
class Call:
    """One request under way: when it came, on the loop's clock, and the number of the worker forked for it."""

    id: int
    request: Requested
    at: float
    worker: int | None = None


class Calls:
    """The open calls by number. `record` is told of each end: the call, its outcome, its fault, when."""

    def __init__(
        self, out: list[Effect], deadlines: Deadlines, record: Callable[[Call, str, Fault | None, float], None]
    ) -> None:
        self._out = out
        self._deadlines = deadlines
        self._record = record
        self._open: dict[int, Call] = {}
        self._last_id = 0

    def open(self, request: Requested, now: float) -> Call:
        """Number the request and keep it until it is answered."""
        self._last_id += 1
        call = Call(self._last_id, request, now)
        self._open[call.id] = call
        return call

    def __iter__(self) -> Iterator[Call]:
        return iter(self._open.values())

    def count(self, connection: int) -> int:
        """Return how many calls of that connection are open."""
        return sum(call.request.connection == connection for call in self._open.values())

    def waits(self, number: int | None) -> bool:
        """Return whether somebody still waits for that call's answer."""
        return number in self._open

    def limit_wait(self, call: Call, seconds: float, now: float) -> None:
        """Have the call answered with IN_PROGRESS after `seconds`."""
        if call.id in self._open:
            self._deadlines.arm(("core", "call", call.id), now + seconds)

    def answer(self, number: int | None, value: Any | Fault, now: float) -> bool:
        """Answer the call; return whether somebody waited for it."""
        call = self._close(number)
        if call is None:
            return False
        self._out.append(Answer(call.request.connection, call.request.token, value))
        fault = value if isinstance(value, Fault) else None
        self._record(call, "fault" if fault else "done", fault, now)
        return True

    def wait_passed(self, number: int, now: float) -> None:
        """Answer IN_PROGRESS; the job goes on."""
        call = self._open.get(number)
        if call is not None:
            waited = now - call.at
            text = f"{call.request.method} is still in progress after {waited:.1f} s; the job goes on, see va.fsstatus"
            self.answer(number, Fault(Code.IN_PROGRESS, text), now)

    def abandon(self, connection: int, token: int | None, now: float) -> None:
        """The host waits no more for this request, or (token None) for any of this connection."""
        for call in list(self._open.values()):
            if call.request.connection == connection and token in (None, call.request.token):
                self._close(call.id)
                self._record(call, "abandoned", None, now)

    def answer_all(self, fault: Fault, now: float) -> None:
        """Answer whoever waits with `fault`."""
        for number in list(self._open):
            self.answer(number, fault, now)

    def _close(self, number: int | None) -> Call | None:
        self._deadlines.cancel(("core", "call", number))
        return self._open.pop(number, None) if number is not None else None
