"""What can go wrong between a host and an agent. What the agent itself refuses is an `agent.errors.Fault`."""

from __future__ import annotations


class HostError(Exception):
    """The call has no answer to trust: one sentence says why and, after a semicolon, what to do next."""


class Unreachable(HostError):
    """There is no connection; nothing was asked."""


class Lost(Unreachable):
    """The connection ended before the agent answered a byte. What was asked for may still happen."""


class TimedOut(HostError):
    """The agent did not answer in time. What was asked for may still happen."""


class BadReply(HostError):
    """What came back is no answer: not HTTP or XML-RPC, too big, broken off, or of another shape than promised."""


class Unsendable(ValueError):
    """An argument that cannot travel to the agent; nothing was asked."""
