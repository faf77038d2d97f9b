"""The client side. Of virtagent it imports only agent.api and agent.wire."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..agent.api.errors import Code, Fault, VirtagentError
    from .aio import AsyncAgent
    from .client import Agent
    from .errors import (
        BadReply,
        FreezeBroken,
        GroupFailed,
        HostError,
        Lost,
        NothingFrozen,
        NotThawed,
        TimedOut,
        Unreachable,
        Unsendable,
        Unsupported,
    )
    from .group import AgentGroup, AsyncAgentGroup, GroupFreeze
    from .holding import Freeze

__all__ = [
    "Agent",
    "AgentGroup",
    "AsyncAgent",
    "AsyncAgentGroup",
    "BadReply",
    "Code",
    "Fault",
    "Freeze",
    "FreezeBroken",
    "GroupFailed",
    "GroupFreeze",
    "HostError",
    "Lost",
    "NotThawed",
    "NothingFrozen",
    "TimedOut",
    "Unreachable",
    "Unsendable",
    "Unsupported",
    "VirtagentError",
]

_WHERE = {
    "Agent": ".client",
    "AgentGroup": ".group",
    "AsyncAgent": ".aio",
    "AsyncAgentGroup": ".group",
    "Code": "..agent.api.errors",
    "Fault": "..agent.api.errors",
    "Freeze": ".holding",
    "GroupFreeze": ".group",
    "VirtagentError": "..agent.api.errors",
}


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: virtagentctl must be able to catch a Ctrl-C that comes during an import,
    # and asyncio takes a quarter of its start time.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE.get(name, ".errors"), __name__), name)
