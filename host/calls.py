"""The RPCs as a host sees them: what to send, how long the agent may delay the answer, what must come back. No I/O.

A client, with or without an event loop, carries out a `Call` and gives what came back to `take`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..agent.api.records import Capabilities, Misshapen, PastFreeze, Plan, Status, load
from .errors import BadReply

T = TypeVar("T")
Texts = str | Iterable[str]
"""Texts, or one: what takes several takes one string as one of them, not as its letters."""

FREEZE_WAIT = 900.0  # the default limits of all phases together, and a margin
SYNC_WAIT = 630.0
THAW_WAIT = 60.0
INSTANT_WAIT = 300.0  # the farthest instant of a freeze
STATUS_WAIT = 30.0
SMALL = 8 << 20


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC. `wait` is how many seconds the agent may delay the answer; `take` checks and converts the answer.

    `most` is how many bytes the answer may have; None: as many as any answer.
    """

    method: str
    params: Sequence[Any]
    take: Callable[[Any], T]
    wait: float = 0.0
    most: int | None = SMALL

    def within(self, wait: float) -> Call[T]:
        """Return a call that asks the agent not to delay its answer longer than `wait`."""
        if self.wait <= wait:
            return self
        match self.params:
            case [{"wait": _} as options]:
                return replace(self, wait=wait, params=(options | {"wait": wait},))
        return replace(self, wait=wait)


def ping() -> Call[str]:
    """Return "dummy"."""
    return _call("va.ping", str)


def hello() -> Call[str]:
    """Return "dummy", as in 2011."""
    return _call("va.hello", str)


def capabilities() -> Call[Capabilities]:
    """Return the agent's version and methods."""
    return _ask("va.capabilities", Capabilities)


def plan(
    include: Texts = (),
    exclude: Texts = (),
    *,
    strict: bool = False,
    partial: bool = False,
    writers: str | None = None,
    hold_limit: float | None = None,
) -> Call[Plan]:
    """Return what `freeze` would do, freezing nothing."""
    options = _select(include, exclude, strict, partial) | _given(writers=writers, hold_limit=hold_limit)
    return _ask("va.fsplan", Plan, options)


def sync(
    include: Texts = (),
    exclude: Texts = (),
    *,
    partial: bool = False,
    wait: float | None = None,
    sync_limit: float | None = None,
) -> Call[int]:
    """Sync what `freeze` would freeze, freezing nothing; return the number of file systems.

    Waits until the agent's limit ends the job. After `wait` seconds raises Fault IN_PROGRESS, and the job goes on.
    """
    wait = SYNC_WAIT + (sync_limit or 0) if wait is None else wait
    options = _select(include, exclude, False, partial) | _given(sync_limit=sync_limit) | {"wait": wait}
    return _call("va.fssync", int, options, wait=wait)


def freeze(
    include: Texts = (),
    exclude: Texts = (),
    *,
    strict: bool = False,
    partial: bool = False,
    writers: str | None = None,
    wait: float | None = None,
    sync_limit: float | None = None,
    freeze_limit: float | None = None,
    hold_limit: float | None = None,
    at: float | None = None,
) -> Call[int]:
    """Freeze, and return the number of file systems frozen; the agent thaws them when the hold limit passes.

    Waits until the agent's own limits end the job. After `wait` seconds raises Fault IN_PROGRESS, and the job goes
    on, as it does after TimedOut. `partial` leaves out what cannot be frozen; `writers` says which take part: "all",
    "try", "none", None: as the agent is configured. With `at`, a time of day in seconds (`time.time()`, at most 300
    ahead), all is synced at once, and frozen at that instant or when `go` says.
    """
    ahead = INSTANT_WAIT if at is not None else 0
    wait = FREEZE_WAIT + (sync_limit or 0) + (freeze_limit or 0) + ahead if wait is None else wait
    limits = _given(sync_limit=sync_limit, freeze_limit=freeze_limit, hold_limit=hold_limit, at=at, writers=writers)
    return _call("va.fsfreeze", int, _select(include, exclude, strict, partial) | limits | {"wait": wait}, wait=wait)


def go(at: float | None = None) -> Call[int]:
    """Set the instant (a time of day in seconds; None: now) of the freeze that waits in phase ready; return 1.

    Raises Fault WRONG_STATE if no freeze waits.
    """
    return _call("va.fsgo", int, *(() if at is None else (at,)))


def thaw(wait: float = THAW_WAIT, *, freeze_id: int | None = None) -> Call[int]:
    """Thaw, or cancel a freeze, and return the number of file systems thawed.

    With `freeze_id` thaws that freeze, and nothing if another one is under way. Raises Fault FREEZE_BROKEN then, and
    if they were not held frozen all the time: a snapshot taken meanwhile is worthless.
    """
    return _call("va.fsthaw", int, _given(freeze_id=freeze_id) | {"wait": wait}, wait=wait)


def status(since: int | None = None, wait: float = STATUS_WAIT) -> Call[Status]:
    """Return the status record: now, or with `since` once its `seq` differs, at the latest after `wait` seconds."""
    options: dict[str, Any] = {} if since is None else {"since": since, "wait": wait}
    wait = 0.0 if since is None else wait
    return _ask("va.fsstatus", Status, options, wait=wait)


def history() -> Call[tuple[PastFreeze, ...]]:
    """Return what became of the last freezes, at most 64, oldest first."""
    whole = _ask("va.fsstatus", Status, {"history": True, "brief": True})
    return Call(whole.method, whole.params, lambda value: whole.take(value).history)


def state() -> Call[int]:
    """Return the number of the freeze state (`agent.api.states.FreezeState`)."""
    return _call("va.fsstatus", int)


def hold(seconds: float) -> Call[float]:
    """Extend the hold to `seconds` from now, as far as the agent allows; return the seconds left."""
    return Call("va.fshold", (seconds,), lambda value: float(_of("va.fshold", int | float, value)))


def forget(mountpoint: str) -> Call[int]:
    """In state ERROR, count a file system as thawed that cannot be thawed; return how many others may be frozen still.

    `mountpoint` may also be dev:MAJOR:MINOR. Raises Fault WRONG_STATE in any other state.
    """
    return _call("va.fsforget", int, mountpoint)


def getfile(path: str) -> Call[bytes]:
    """Return the contents of a file in the guest, at most 16 MiB."""
    return Call("va.getfile", (path,), _contents, most=None)


def getdmesg() -> Call[str]:
    """Return the end of the guest's kernel log."""
    return _call("va.getdmesg", str)


def shutdown(mode: str) -> Call[str]:
    """Shut down the guest after a thaw; `mode` is "halt", "powerdown" or "reboot"."""
    return _call("va.shutdown", str, mode, wait=THAW_WAIT)


def call(method: str, *params: Any, wait: float = 0.0) -> Call[Any]:
    """Return the value of any method; `wait` is how long the agent was asked to delay the answer.

    A command that is not of the families va. and system. takes one dict, its arguments by name.
    """
    return Call(method, params, lambda value: value, wait, most=None)


def _call(method: str, kind: type[T], *params: Any, wait: float = 0.0) -> Call[T]:
    return Call(method, params, lambda value: _of(method, kind, value), wait)


def _ask(method: str, kind: type[T], *params: Any, wait: float = 0.0) -> Call[T]:
    """Return the call whose answer is a record."""

    def take(value: Any) -> T:
        try:
            return load(kind, value, method)
        except Misshapen as error:
            raise BadReply(f"{error}; see that agent and client are of one version") from None

    return Call(method, params, take, wait)


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


def _given(**limits: float | str | None) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if value is not None}


def texts(name: str, value: Texts) -> tuple[str, ...]:
    """Return the texts that the argument `name` has, of one string that string; raise TypeError if it has others."""
    if isinstance(value, str):
        return (value,)
    found = tuple(value)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{name} has {one!r:.80}, expected a string or several")
    return found


def _select(include: Texts, exclude: Texts, strict: bool, partial: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"include": list(texts("include", include)), "exclude": list(texts("exclude", exclude))}
    options["strict"], options["partial"] = strict, partial
    return {name: value for name, value in options.items() if value}
