"""What a worker's script asks for, step by step, and what it is told. Pure data.

A script (`freeze`) is a generator. It yields a step and is sent what came of it; where a step raises, the exception is
thrown into the script at that place. Whoever drives a script decides nothing: the threads of `mount_threads` in a
worker, a list in a unit test.
"""

from __future__ import annotations

import enum
import errno
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..api import records
from ..api.options import Rules
from ..api.states import MountState, Phase
from . import messages


class Operation(enum.Enum):
    """A call on one file system that may block: its name, and the states of the file system around it."""

    SYNC = ("syncfs", MountState.SYNCING, MountState.SYNCED)
    FREEZE = ("FIFREEZE", MountState.FREEZING, MountState.FROZEN)
    THAW = ("FITHAW", MountState.THAWING, MountState.THAWED)

    def __init__(self, call: str, during: MountState, after: MountState) -> None:
        self.call = call
        self.during = during
        self.after = after


def judge(operation: Operation, error: int, said: str) -> tuple[MountState, str]:
    """Return what the errno of a call (0: done) makes of the file system, and the words for it.

    `said` is what the system says about the errno.
    """
    if error == 0:
        return operation.after, ""
    words = f"{operation.call}: {said} ({errno.errorcode.get(error, error)})"
    if operation is Operation.THAW and error == errno.EINVAL:
        return MountState.THAWED, "was not frozen any more"  # ADR 0014: of a killed worker it proves nothing
    if operation is Operation.FREEZE and error in (errno.EOPNOTSUPP, errno.ENOTTY):
        return MountState.UNSUPPORTED, f"its type cannot freeze: {words}"
    if operation is Operation.FREEZE and error == errno.EBUSY:
        return MountState.BUSY, f"frozen by someone else: {words}"
    if operation is Operation.FREEZE and error == errno.ECANCELED:
        return MountState.SYNCED, "freeze given up before it began"
    return MountState.FAILED, words


def announced(mount: int, operation: Operation) -> messages.Step:
    """Return the report that a call is about to begin."""
    return messages.Step(mount, operation.during.value)


def ended(mount: int, operation: Operation, error: int, said: str, seconds: float) -> messages.Step:
    """Return the report of a call that has ended; for `error` and `said` see `judge`."""
    state, words = judge(operation, error, said)
    return messages.Step(mount, state.value, error, words, seconds)


# What a script asks for.


@dataclass(slots=True)
class ReadPlan:
    """Read what is mounted and choose: answers a `records.Plan`; raises Fault."""

    rules: Rules


@dataclass(slots=True)
class Start:
    """Take these file systems, by their index in the plan; raises OSError or RuntimeError.

    `obeys`: listen to the supervisor from now on and watch whether it lives; if not, no `Told` and no `Gone` comes.
    """

    mounts: tuple[tuple[int, records.Mount], ...]
    obeys: bool


@dataclass(slots=True)
class Order:
    """Do `operation` on all these file systems simultaneously; each is idle and gives one `Result`. Raises nothing.

    A result is reported to the supervisor (`ended`) by whoever did the call, before the script hears of it.
    """

    mounts: tuple[int, ...]
    operation: Operation


@dataclass(slots=True)
class StopFreezing:
    """Begin no FIFREEZE from now on: one that is ordered ends with ECANCELED. `Gone` does not come any more."""


@dataclass(slots=True)
class Wait:
    """Wait for an event, at most until that CLOCK_MONOTONIC second: answers an `Event`.

    `taken`: and at most until the supervisor can read all that was posted (`Taken`).
    """

    until: float = math.inf
    taken: bool = False


@dataclass(slots=True)
class Now:
    """Answers the CLOCK_MONOTONIC seconds."""


@dataclass(slots=True)
class Alone:
    """Answers whether the supervisor is gone: nobody else would thaw."""


@dataclass(slots=True)
class Send:
    """Report, waiting until the pipe has taken it; returns immediately if the supervisor is gone."""

    report: messages.Report


@dataclass(slots=True)
class Post:
    """Report without waiting: what a full pipe does not take is kept, in order."""

    reports: tuple[messages.Report, ...]


@dataclass(slots=True)
class Inform:
    """Report unless the pipe is full: a newer report will say more."""

    report: messages.Report


@dataclass(slots=True)
class Measure:
    """Answers the figures of the disks of all that was started, as a `messages.Progress`."""

    phase: Phase
    round: int


@dataclass(slots=True)
class Title:
    """Show in ps what is happening now."""

    text: str


@dataclass(slots=True)
class BecomeKeeper:
    """Be called keeper from the next title on."""


@dataclass(slots=True)
class LockMemory:
    """Stay in memory, where that is allowed."""


@dataclass(slots=True)
class PrepareToExpedite:
    """Answers whether `Expedite` is going to change something (`rcu`)."""


@dataclass(slots=True)
class Expedite:
    """Make grace periods short; nothing if that is done or refused."""


@dataclass(slots=True)
class EndExpedite:
    """Put back what `Expedite` changed, if anything; raises OSError."""


@dataclass(slots=True)
class PutBack:
    """Make grace periods normal after a worker that died between `Expedite` and `EndExpedite`, if that is allowed."""


Step = (
    ReadPlan
    | Start
    | Order
    | StopFreezing
    | Wait
    | Now
    | Alone
    | Send
    | Post
    | Inform
    | Measure
    | Title
    | BecomeKeeper
    | LockMemory
    | PrepareToExpedite
    | Expedite
    | EndExpedite
    | PutBack
)
T = TypeVar("T")
Script = Generator[Step, Any, T]


# What a script is told when it waits.


@dataclass(slots=True)
class Result:
    """A call has ended: `error` is its errno, 0 if it did what it should, `said` the system's words for that."""

    mount: int
    operation: Operation
    error: int = 0
    said: str = ""


@dataclass(slots=True)
class Told:
    """The supervisor said something."""

    message: messages.Control


@dataclass(slots=True)
class Gone:
    """The freeze must end: the supervisor is gone, or a signal asks for it. It comes once."""

    reason: str


@dataclass(slots=True)
class Timeout:
    """The second that was waited for has come."""


@dataclass(slots=True)
class Taken:
    """The report pipe has taken all that was posted."""


Event = Result | Told | Gone | Timeout | Taken
