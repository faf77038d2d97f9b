"""The audit records, one for each RPC, in a bounded ring while anything may be frozen. Pure."""

from __future__ import annotations

import json
import reprlib
from collections import deque
from datetime import datetime, timezone
from typing import Any

from ...agent.api.errors import Fault
from ...agent.api.methods import RPCS
from .events import Malformed, Peer, Requested

PARAMS_MAX = 256
HIDDEN = "(not shown)"
_short = reprlib.Repr()  # cuts first and formats then: parameters may be megabytes
_short.maxstring = _short.maxother = PARAMS_MAX + 2


class Audit:
    """The ring of records that wait for the thaw; `dropped` counts those of essential RPCs that found it full."""

    def __init__(self) -> None:
        self._ring = 0
        self._waiting: deque[str] = deque()
        self.dropped = 0
        self._dropped_told = 0

    def configure(self, ring: int) -> None:
        """Set how many records may wait."""
        self._ring = ring

    @property
    def waiting(self) -> int:
        """How many records wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether only essential RPCs are to be admitted."""
        return len(self._waiting) >= self._ring

    def add(self, line: str) -> None:
        """Store a record until `take`."""
        if self.full:
            self.dropped += 1
        else:
            self._waiting.append(line)

    def take(self) -> list[str]:
        """Return the records that waited, in order, and a line that says how many were dropped since the last call."""
        lines = list(self._waiting)
        self._waiting.clear()
        if self.dropped > self._dropped_told:
            lines.append(
                f"audit: {self.dropped - self._dropped_told} records dropped: the ring of {self._ring} was full"
            )
            self._dropped_told = self.dropped
        return lines


def line(request: Requested, outcome: str, fault: Fault | None, seconds: float, worker: int | None) -> str:
    """Return the record of one RPC, which took `seconds`, as a line of name=value fields."""
    params = _short.repr(_without_secrets(request.method, request.params))
    return _line(
        request.wall,
        request.peer,
        method=json.dumps(request.method[:80]),
        params=json.dumps(params[1:-1][:PARAMS_MAX] if isinstance(request.params, list) else params[:PARAMS_MAX]),
        outcome=outcome,
        fault=int(fault.code) if fault else 0,
        ms=f"{seconds * 1000:.1f}",
        worker="-" if worker is None else worker,
    )


def _without_secrets(method: str, params: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """Return the parameters as they may be logged; of unknown ones only the fact that they were there."""
    row = RPCS.get(method)
    if row is None or not row.public:
        return {name[:80]: HIDDEN for name in params} if isinstance(params, dict) else [HIDDEN] * len(params)
    if not isinstance(params, dict) or not any(param.secret for param in row.params):
        return params
    shown = {param.name for param in row.params if not param.secret}
    return {name[:80]: value if name in shown else HIDDEN for name, value in params.items()}


def malformed(event: Malformed) -> str:
    """Return the record of bytes that were not a request."""
    return _line(event.wall, event.peer, outcome="refused", fault=event.code, text=json.dumps(event.text[:PARAMS_MAX]))


def _line(wall: float, peer: Peer, **fields: object) -> str:
    moment = (
        datetime.fromtimestamp(int(wall), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + f".{int(wall % 1 * 1000):03}Z"
    )
    fields = {"time": moment, "channel": peer.channel, "peer": peer.who, **fields}
    return "audit: " + " ".join(f"{name}={value}" for name, value in fields.items())
