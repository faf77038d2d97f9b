"""The client side. Imports only agent.wire and agent.errors."""

from ..agent.errors import Code, Fault
from .client import Agent, AsyncAgent
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
]
