"""Commands of the QEMU guest agent protocol that the supervisor answers itself: about the agent, and the freeze."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..offer import Agent, Call, Later


def ping(_agent: Agent, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Answer."""
    return {}


def sync(_agent: Agent, _call: Call, args: dict[str, Any]) -> int:
    """Return the `id`: what the host reads before it is older."""
    number: int = args["id"]
    return number


def info(agent: Agent, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Return version and all commands, each with whether it is admitted now."""
    return {"version": agent.version, "supported_commands": agent.commands()}


def fsfreeze_status(agent: Agent, call: Call, _args: dict[str, Any]) -> str | Later:
    """Return "thawed" or "frozen"; in the middle of a freeze or thaw neither is true, and the answer waits."""
    return agent.settled(call)


def fsfreeze_thaw(agent: Agent, call: Call, _args: dict[str, Any]) -> int | Later:
    """Thaw, cancel, retry or join, as va.fsthaw does."""
    return agent.thaw(call)
