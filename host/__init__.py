"""The client side. Imports only agent.wire and agent.errors."""

from .client import Agent
from .errors import BadReply, HostError, Lost, TimedOut, Unreachable, Unsendable

__all__ = ["Agent", "BadReply", "HostError", "Lost", "TimedOut", "Unreachable", "Unsendable"]
