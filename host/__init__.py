"""The client side. Imports only agent.wire and agent.errors."""

from ..agent.errors import Code, Fault
from .client import Agent, AsyncAgent
from .errors import (
    BadReply,
    FreezeBroken,
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

__all__ = [
    "Agent",
    "AsyncAgent",
    "BadReply",
    "Code",
    "Fault",
    "Freeze",
    "FreezeBroken",
    "HostError",
    "Lost",
    "NotThawed",
    "NothingFrozen",
    "TimedOut",
    "Unreachable",
    "Unsendable",
    "Unsupported",
]
