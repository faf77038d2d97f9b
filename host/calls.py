"""The RPCs as a host sees them: what to send, how long the agent may let it wait, what must come back. No I/O.

A client of any kind, with or without an event loop, carries out a `Call` and gives what came back to `take`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import BadReply
from .records import Capabilities, Plan, Status, load

T = TypeVar("T")

FREEZE_WAIT = 900.0  # the default limits of all phases together, and some more
THAW_WAIT = 60.0
STATUS_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC. `wait` is how many seconds the agent may keep the answer back; `take` checks and converts it."""

    method: str
    params: Sequence[Any]
    take: Callable[[Any], T]
    wait: float = 0.0


def ping() -> Call[str]:
    return _call("va.ping", str)


def capabilities() -> Call[Capabilities]:
    return Call("va.capabilities", (), lambda value: load(Capabilities, value, "va.capabilities"))


def plan(include: Sequence[str] = (), exclude: Sequence[str] = (), *, strict: bool = False) -> Call[Plan]:
    options = _select(include, exclude, strict)
    return Call("va.fsplan", (options,), lambda value: load(Plan, value, "va.fsplan"))


def freeze(
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    strict: bool = False,
    wait: float,
    sync_limit: float | None = None,
    freeze_limit: float | None = None,
    hold_limit: float | None = None,
) -> Call[int]:
    limits = {"sync_limit": sync_limit, "freeze_limit": freeze_limit, "hold_limit": hold_limit}
    options = _select(include, exclude, strict) | {k: v for k, v in limits.items() if v is not None} | {"wait": wait}
    return _call("va.fsfreeze", int, options, wait=wait)


def thaw(wait: float) -> Call[int]:
    return _call("va.fsthaw", int, {"wait": wait}, wait=wait)


def status(since: int | None = None, wait: float = 0.0) -> Call[Status]:
    options: dict[str, Any] = {} if since is None else {"since": since, "wait": wait}
    return Call("va.fsstatus", (options,), lambda value: load(Status, value, "va.fsstatus"), wait)


def state() -> Call[int]:
    return _call("va.fsstatus", int)


def hold(seconds: float) -> Call[float]:
    return Call("va.fshold", (seconds,), lambda value: float(_of("va.fshold", int | float, value)))


def getfile(path: str) -> Call[bytes]:
    return Call("va.getfile", (path,), _contents)


def getdmesg() -> Call[str]:
    return _call("va.getdmesg", str)


def shutdown(mode: str) -> Call[str]:
    return _call("va.shutdown", str, mode, wait=THAW_WAIT)


def _call(method: str, kind: type[T], *params: Any, wait: float = 0.0) -> Call[T]:
    return Call(method, params, lambda value: _of(method, kind, value), wait)


def _of(method: str, kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = getattr(kind, "__name__", "number")
        raise BadReply(
            f"{method} returned {type(value).__name__}, expected {expected}; see that the URL names a virtagentd"
        )
    return value


def _contents(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(_of("va.getfile", str, value), validate=True)
    except binascii.Error:
        raise BadReply("va.getfile returned a text that is not base64; see that the URL names a virtagentd") from None


def _select(include: Sequence[str], exclude: Sequence[str], strict: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"include": list(include), "exclude": list(exclude), "strict": strict}
    return {name: value for name, value in options.items() if value}
