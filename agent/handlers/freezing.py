"""The RPCs that freeze, hold and thaw. The inline ones only ask the supervisor; the transaction is freeze.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import freeze, sysfs

if TYPE_CHECKING:
    from ..offer import Agent, Call, Later
    from ..worker import Worker


def fsfreeze(worker: Worker, args: dict[str, Any]) -> int:
    """Freeze what `args["options"]` (freeze.Options) chooses, hold it, thaw it; return the number of file systems."""
    return freeze.Transaction(worker, args["options"]).run()


def thaw(worker: Worker, args: dict[str, Any]) -> int:
    """Thaw the file systems of `args["mounts"]` (index -> mounts.Mount); return how many are proved thawed."""
    return freeze.thaw_again(worker, args["mounts"], args["expedited"])


def fssync(worker: Worker, args: dict[str, Any]) -> int:
    """Sync what `args["options"]` (freeze.Options) chooses, freezing nothing; return the number of file systems."""
    return freeze.Flush(worker, args["options"]).run()


def fsplan(_worker: Worker, args: dict[str, Any]) -> dict[str, Any]:
    """Return the plan that va.fsfreeze would carry out."""
    return sysfs.read_plan(args["options"].rules).dump()


def fsthaw(agent: Agent, call: Call, _args: dict[str, Any]) -> int | Later:
    """Thaw, cancel, retry or join."""
    return agent.thaw(call)


def fshold(agent: Agent, call: Call, args: dict[str, Any]) -> Later:
    """Extend the hold."""
    return agent.hold(call, args["seconds"])


def fsstatus(agent: Agent, call: Call, args: dict[str, Any]) -> int | dict[str, Any] | Later:
    """Return the state's number, or the status record if a struct was given."""
    options = args["options"]
    if options is None:
        return agent.state_number()
    return agent.status(call, options["since"], options["wait"])
