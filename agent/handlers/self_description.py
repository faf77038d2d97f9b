"""RPCs about the agent itself; inline, from its own table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..offer import Agent, Call


def dummy(_agent: Agent, _call: Call, _args: dict[str, Any]) -> str:
    """Answer as the agent of 2011 did."""
    return "dummy"


def capabilities(agent: Agent, _call: Call, _args: dict[str, Any]) -> dict[str, Any]:
    """Return {version, methods}; methods that the configuration blocks are not listed."""
    return {"version": agent.version, "methods": agent.methods()}


def list_methods(agent: Agent, _call: Call, _args: dict[str, Any]) -> list[str]:
    """Return the names of the methods that a host may call."""
    return agent.methods()


def method_help(agent: Agent, _call: Call, args: dict[str, Any]) -> str:
    """Return what a method does, takes and returns; raise Fault PARAMS if there is none of that name."""
    return agent.help(args["method"])
