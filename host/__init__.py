"""Freeze and thaw guests from a program: one agent, many, blocking or with asyncio.

    from virtagent.host import Agent

    with Agent("libvirt:vm1") as agent, agent.frozen("/srv/*", hold=60) as freeze:
        take_the_snapshot(freeze.mounts)

The block is left with FreezeBroken if the guest was not held frozen all the time; then the snapshot is worthless.
`AgentGroup` freezes many guests at one point; `AsyncAgent` and `AsyncAgentGroup` are awaited. `help(Agent)` lists the
methods, docs/host.md explains them, and every error is a `VirtagentError`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..agent.api.errors import Code, Fault, VirtagentError
    from ..agent.api.records import Capabilities, Last, MountStatus, PastFreeze, Plan, Status
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
        TooSkewed,
        Unreachable,
        Unsendable,
        Unsupported,
    )
    from .group import AsyncAgentGroup, GroupFreeze
    from .group_thread import AgentGroup
    from .guest_status import GuestStatus
    from .holding import Freeze

__all__ = [
    "Agent",
    "AgentGroup",
    "AsyncAgent",
    "AsyncAgentGroup",
    "BadReply",
    "Capabilities",
    "Code",
    "Fault",
    "Freeze",
    "FreezeBroken",
    "GroupFailed",
    "GroupFreeze",
    "GuestStatus",
    "HostError",
    "Last",
    "Lost",
    "MountStatus",
    "NotThawed",
    "NothingFrozen",
    "PastFreeze",
    "Plan",
    "Status",
    "TimedOut",
    "TooSkewed",
    "Unreachable",
    "Unsendable",
    "Unsupported",
    "VirtagentError",
]

_WHERE = {
    "Agent": ".client",
    "AgentGroup": ".group_thread",
    "AsyncAgent": ".aio",
    "AsyncAgentGroup": ".group",
    **dict.fromkeys(("Capabilities", "Last", "MountStatus", "PastFreeze", "Plan", "Status"), "..agent.api.records"),
    "Code": "..agent.api.errors",
    "Fault": "..agent.api.errors",
    "Freeze": ".holding",
    "GroupFreeze": ".group",
    "GuestStatus": ".guest_status",
    "VirtagentError": "..agent.api.errors",
}


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: virtagentctl must be able to catch a Ctrl-C that comes during an import,
    # and asyncio takes a quarter of its start time.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE.get(name, ".errors"), __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
