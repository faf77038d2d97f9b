"""The handlers of RPCs that the supervisor answers itself, by the names that the rows of the table give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...agent.api.errors import Code, Fault
from ...agent.api.methods import RPCS
from ...agent.api.rpc import Runs
from ...agent.wire.qmp import SILENT
from .engine import Engine, InlineHandler
from .options import near
from .pending import Call, Deferred
from .turn import Turn


def dummy(_engine: Engine, _turn: Turn, _call: Call, _args: dict[str, Any]) -> str:
    """Answer "dummy", as the agent of 2011 did."""
    return "dummy"


def capabilities(engine: Engine, _turn: Turn, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Return {version, methods}, without the methods that the configuration blocks."""
    return {"version": engine.version, "methods": _methods(engine)}


def list_methods(engine: Engine, _turn: Turn, _call: Call, _args: dict[str, Any]) -> list[str]:
    """Return the names of the methods that a host may call."""
    return _methods(engine)


def method_help(engine: Engine, _turn: Turn, _call: Call, args: dict[str, Any]) -> str:
    """Return what a method does, takes and returns; raise Fault PARAMS if there is no such method."""
    method = args["method"]
    if method not in _methods(engine):
        raise Fault(Code.PARAMS, f"system.methodHelp: no method {method[:80]!r}")
    return RPCS[method].help()


def _methods(engine: Engine) -> list[str]:
    return [row.name for row in RPCS.values() if row.public and not row.is_guest and engine.allows(row.name)]


def ping(_engine: Engine, _turn: Turn, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Return nothing, to show that the agent is there."""
    return {}


def sync(_engine: Engine, _turn: Turn, _call: Call, args: dict[str, Any]) -> int:
    """Return the `id`: what the host read before it is older."""
    number: int = args["id"]
    return number


def info(engine: Engine, _turn: Turn, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Return the version of the qemu-ga that this is, and all commands, with whether each is admitted now."""
    commands = [
        {"name": row.name, "enabled": engine.refusal(row) is None, "success-response": row.name not in SILENT}
        for row in RPCS.values()
        if row.public and row.since <= engine.qga
    ]
    return {"version": engine.qga_version, "supported_commands": commands}


def fsfreeze_status(engine: Engine, turn: Turn, call: Call, _args: dict[str, Any]) -> str | Deferred:
    """Return "thawed" or "frozen"; while a freeze or thaw is in progress, the answer waits."""
    return engine.freeze.settled(turn, call)


def fsfreeze_thaw(engine: Engine, turn: Turn, call: Call, _args: dict[str, Any]) -> int | Deferred:
    """Thaw, as va.fsthaw does."""
    return engine.freeze.thaw(turn, call)


def fsthaw(engine: Engine, turn: Turn, call: Call, args: dict[str, Any]) -> int | Deferred:
    """Thaw; or cancel a freeze, retry a thaw, or join one that is in progress."""
    options = args["options"] or {}
    return engine.freeze.thaw(turn, call, options.get("freeze_id"), options.get("verdict") or "")


def fshold(engine: Engine, turn: Turn, call: Call, args: dict[str, Any]) -> Deferred:
    """Extend the hold."""
    return engine.freeze.hold(turn, call, args["seconds"])


def fsgo(engine: Engine, turn: Turn, _call: Call, args: dict[str, Any]) -> int:
    """Set the instant of the freeze that waits in phase ready."""
    return engine.freeze.go(turn, near("va.fsgo", args["at"] or 0.0, turn.wall))


def fsforget(engine: Engine, turn: Turn, _call: Call, args: dict[str, Any]) -> int:
    """Count a file system as thawed that cannot be thawed; return how many others may be frozen still."""
    return engine.forget(turn, args["mountpoint"])


def fsstatus(engine: Engine, turn: Turn, call: Call, args: dict[str, Any]) -> Any:
    """Return the number of the state; the status record if a struct was given."""
    options = args["options"]
    if options is None:
        return engine.freeze.when_reaped(turn, call, lambda _: int(engine.freeze.state))
    if options["history"] and options["since"] is not None:
        raise Fault(Code.PARAMS, "va.fsstatus: history is told at once: not together with since")
    brief, past = bool(options["brief"]), bool(options["history"])
    return engine.status(turn, call, options["since"], options["wait"], brief=brief, past=past)


HANDLERS: Mapping[str, InlineHandler] = {
    "inline.capabilities": capabilities,
    "inline.dummy": dummy,
    "inline.fsforget": fsforget,
    "inline.fsfreeze_status": fsfreeze_status,
    "inline.fsfreeze_thaw": fsfreeze_thaw,
    "inline.fsgo": fsgo,
    "inline.fshold": fshold,
    "inline.fsstatus": fsstatus,
    "inline.fsthaw": fsthaw,
    "inline.info": info,
    "inline.list_methods": list_methods,
    "inline.method_help": method_help,
    "inline.ping": ping,
    "inline.sync": sync,
}


def prove_bound() -> None:
    """Raise ValueError if a row has no handler here, or a handler no row; it names the row or the handler."""
    named = {row.handler for row in RPCS.values() if row.runs is Runs.INLINE}
    if named != HANDLERS.keys():
        raise ValueError(f"not bound, or bound in vain: {', '.join(sorted(named ^ HANDLERS.keys()))}")
