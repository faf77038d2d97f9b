"""The client side. Imports only agent.wire and agent.errors."""

import importlib
from typing import TYPE_CHECKING, Any

from ..agent.errors import Code, Fault
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
from .holding import Freeze

if TYPE_CHECKING:
    from .aio import AsyncAgent
    from .group import AgentGroup, AsyncAgentGroup, GroupFreeze

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
]

_LATER = {"AsyncAgent": "aio", "AgentGroup": "group", "AsyncAgentGroup": "group", "GroupFreeze": "group"}


def __getattr__(name: str) -> Any:
    # asyncio takes a quarter of the time in which virtagentctl starts, and few of its runs need it.
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
