"""The va.* methods that a stock qemu-ga can do, and a sentence for what it cannot. No I/O.

It knows no limits, no plan and no progress, and only says "frozen" or "thawed". A method is done in full or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ..agent.api.records import STOCK
from ..agent.api.states import FreezeState
from .errors import BadReply, Unsupported

Ask = Callable[..., Generator[Any, Any, Any]]
Script = Generator[Any, Any, Any]

_GLOB = frozenset("*?[")


def answer(method: str, params: Sequence[Any], ask: Ask) -> Script:
    """Do `method` with guest-* commands, each carried out by `ask(method, *params)`; return the va.* method's value.

    Raises Unsupported if it cannot be done; then nothing was asked.
    """
    if method.startswith("guest-"):
        return (yield from ask(method, *params))
    if method not in _CAN:
        raise Unsupported(f"{method} is not known to a stock qemu-ga; install virtagentd in the guest")
    options = params[0] if params else None
    return (yield from _CAN[method](ask, options))


def _ping(ask: Ask, _options: Any) -> Script:
    yield from ask("guest-ping")
    return "dummy"


def _capabilities(ask: Ask, _options: Any) -> Script:
    match (yield from ask("guest-info")):
        case {"version": str(version), "supported_commands": list(commands)}:
            names = [c["name"] for c in commands if isinstance(c, dict) and c.get("enabled") and "name" in c]
            return {"version": f"{STOCK} {version}", "methods": names}
    raise BadReply("guest-info answered no list of commands; see what the URL names")


def _freeze(ask: Ask, options: Any) -> Script:
    given = {k: v for k, v in (options or {}).items() if v and k not in ("include", "wait")}
    for name in given:
        raise Unsupported(f"a stock qemu-ga knows no {name.replace('_', ' ')} for a freeze; leave it out")
    include = (options or {}).get("include") or []
    globs = [one for one in include if _GLOB & set(one)]
    if globs:
        raise Unsupported(f"a stock qemu-ga matches no globs, and {globs[0]!r} is one; name each mount point")
    if include:
        return _count((yield from ask("guest-fsfreeze-freeze-list", {"mountpoints": list(include)})))
    return _count((yield from ask("guest-fsfreeze-freeze")))


def _thaw(ask: Ask, options: Any) -> Script:
    if options and options.get("freeze_id") is not None:
        raise Unsupported("a stock qemu-ga does not number its freezes; thaw without freeze_id")
    return _count((yield from ask("guest-fsfreeze-thaw")))


def _status(ask: Ask, options: Any) -> Script:
    if options and options.get("since") is not None:
        raise Unsupported("a stock qemu-ga cannot wait for a change; ask for the status at once")
    found = yield from ask("guest-fsfreeze-status")
    if found not in ("frozen", "thawed"):
        raise BadReply("guest-fsfreeze-status answered neither frozen nor thawed; see what the URL names")
    state = FreezeState[found.upper()]
    if options is None:
        return state.value
    return {"state": state.name, "code": state.value, "seq": -1, "version": STOCK}


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadReply("the qemu-ga answered no number of file systems; see what the URL names")
    return value


_CAN: Mapping[str, Callable[[Ask, Any], Script]] = {
    "va.ping": _ping,
    "va.hello": _ping,
    "va.capabilities": _capabilities,
    "va.fsfreeze": _freeze,
    "va.fsthaw": _thaw,
    "va.fsstatus": _status,
}
