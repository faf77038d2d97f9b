"""What can go wrong between a host and an agent. What the agent itself refuses is a `Fault` (agent/api/errors.py)."""

from __future__ import annotations

from collections.abc import Mapping

from ..agent.api.errors import VirtagentError


class HostError(VirtagentError):
    """The call has no answer to trust: one sentence says why and, after a semicolon, what to do next.

    `asked` is False if nothing of the call was sent, so that it has no effect.
    """

    asked = True


class Unreachable(HostError):
    """There is no connection; nothing was asked."""


class Lost(HostError):
    """The connection ended before the agent answered a byte. What was asked for may still happen."""


class TimedOut(HostError):
    """The agent did not answer in time. What was asked for may still happen."""


class BadReply(HostError):
    """What came back is not an answer: not HTTP, XML-RPC or JSON, too big, broken off, or of the wrong shape."""


class Unsupported(HostError):
    """The other end is a stock qemu-ga, which cannot do this; nothing was asked."""


class GroupFailed(HostError):
    """Not all guests of a group could be frozen; those that were are thawed. `causes` has the errors by URL."""

    def __init__(self, text: str, causes: Mapping[str, VirtagentError], *, froze: bool = True) -> None:
        super().__init__(text)
        self.causes = causes
        self.froze = froze
        """Whether any guest may have been frozen."""


class TooSkewed(HostError):
    """Too much time lay between the first and the last freeze of a group; all are thawed."""


class NothingFrozen(HostError):
    """The answer to a freeze was 0: a snapshot would be taken while the guest writes."""


class FreezeBroken(HostError):
    """The file systems were not held frozen all the time: a snapshot taken meanwhile is worthless."""


class NotThawed(FreezeBroken):
    """The agent could not be told to thaw, or could not thaw yet: the guest may be frozen, and the freeze is broken."""


class Unsendable(VirtagentError, ValueError):
    """An argument that cannot travel to the agent; nothing was asked."""
