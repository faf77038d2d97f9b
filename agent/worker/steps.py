"""What a worker's script asks for, step by step, and the events that it gets. Pure data.

A script (`freeze`) is a generator. It yields a step and is sent the result; if the step raises, the exception is thrown
into the script. The driver of a script decides nothing: in a worker it is `mount_threads`, in a unit test a list.
"""

from __future__ import annotations

import enum
import errno
import math
from collections.abc import Generator
from typing import Any, TypeVar

from ..api import records
from ..api.options import Rules
from ..api.states import MountState, Phase
from ..api.structs import Struct
from . import messages


class Operation(enum.Enum):
    """A call on one file system that may block: its name, and the states of the file system during and after it."""

    SYNC = ("syncfs", MountState.SYNCING, MountState.SYNCED)
    FREEZE = ("FIFREEZE", MountState.FREEZING, MountState.FROZEN)
    THAW = ("FITHAW", MountState.THAWING, MountState.THAWED)

    def __init__(self, call: str, during: MountState, after: MountState) -> None:
        self.call = call
        self.during = during
        self.after = after


NOT_BEGUN = "not begun"
"""Instead of the name of the call that failed: no call was made, since the freeze had been given up."""


def judge(operation: Operation, error: int, said: str, failed: str = "") -> tuple[MountState, str]:
    """Return the state of the file system after an operation with this errno (0: done), and the words for it.

    `said` is the system's text for the errno. `failed` is the call that returned it, if that is not the operation's
    own: what an errno proves of FIFREEZE or FITHAW, it does not prove of an open.
    """
    if error == 0:
        return operation.after, ""
    if failed == NOT_BEGUN:
        return MountState.SYNCED, "freeze given up before it began"
    words = f"{failed or operation.call}: {said} ({errno.errorcode.get(error, error)})"
    if failed:
        return MountState.FAILED, words
    if operation is Operation.THAW and error == errno.EINVAL:
        return MountState.THAWED, "was not frozen any more"  # ADR 0014: after a killed worker it proves nothing
    if operation is Operation.FREEZE and error in (errno.EOPNOTSUPP, errno.ENOTTY):
        return MountState.UNSUPPORTED, f"its type cannot freeze: {words}"
    if operation is Operation.FREEZE and error == errno.EBUSY:
        return MountState.BUSY, f"frozen by someone else: {words}"
    return MountState.FAILED, words


def announced(mount: int, operation: Operation) -> messages.Step:
    """Return the report that a call is about to begin."""
    return messages.Step(mount, operation.during.value)


def ended(result: Result, seconds: float) -> messages.Step:
    """Return the report of an operation that has ended."""
    state, words = judge(result.operation, result.error, result.said, result.failed)
    return messages.Step(result.mount, state.value, result.error, words, seconds)


# What a script asks for.


class ReadPlan(Struct):
    """Read what is mounted, and choose; the answer is a `records.Plan`. Raises Fault."""

    rules: Rules


class Start(Struct):
    """Take these file systems, by their index in the plan; raise OSError.

    `obeys`: from now on listen to the supervisor and watch whether it lives. Otherwise neither `Told` nor `Gone` comes.
    """

    mounts: tuple[tuple[int, records.Mount], ...]
    obeys: bool


class Order(Struct):
    """Do `operation` on all these file systems simultaneously: each must be idle, and gives one `Result`.

    The driver reports each result to the supervisor (`ended`) before the script gets it.
    """

    mounts: tuple[int, ...]
    operation: Operation


class StopFreezing(Struct):
    """Begin no FIFREEZE from now on: an ordered one ends as `NOT_BEGUN`. `Gone` does not come any more."""


class Wait(Struct):
    """Wait for an event, at most until that CLOCK_MONOTONIC second; the answer is an `Event`.

    `taken`: also end the wait when the supervisor can read all that was posted (`Taken`).
    """

    until: float = math.inf
    taken: bool = False


class Now(Struct):
    """Ask for the time of CLOCK_MONOTONIC in seconds."""


class Alone(Struct):
    """Ask whether the supervisor is gone, so that nobody else would thaw."""


class Send(Struct):
    """Report, and wait until the pipe has taken it; do not wait if the supervisor is gone."""

    report: messages.Report


class Post(Struct):
    """Report without waiting: what a full pipe does not take is stored, in order."""

    reports: tuple[messages.Report, ...]


class Inform(Struct):
    """Report, unless the pipe is full: a newer report will say more."""

    report: messages.Report


class Measure(Struct):
    """Ask for the figures of the disks of all started file systems, of which `syncing` are being synced.

    The answer is a `messages.Progress`.
    """

    phase: Phase
    round: int
    syncing: frozenset[int] = frozenset()


class OpenCounters(Struct):
    """Open the counters for `ReadWritten`: that comes before the first FIFREEZE, since it may ask disks."""


class ReadWritten(Struct):
    """Ask for the sectors written so far to the devices of the started file systems, by the devices' names.

    Absent are those that give no evidence (`written`). The sectors are those of the kernel, of 512 bytes.
    """


class Identify(Struct):
    """Ask for the ids of the superblocks of these file systems (`sysfs.superblock_id`), as a list of texts."""

    mounts: tuple[records.Mount, ...]


class Title(Struct):
    """Show in ps what is happening now."""

    text: str


class BecomeKeeper(Struct):
    """Call the worker keeper from the next title on."""


class LockMemory(Struct):
    """Lock the worker in memory, where that is allowed."""


class PrepareToExpedite(Struct):
    """Ask whether `Expedite` is going to change something (`rcu`)."""


class Expedite(Struct):
    """Make grace periods short, unless that is done already or refused."""


class EndExpedite(Struct):
    """Put back what `Expedite` changed, if anything; raise OSError."""


class ShortenQueues(Struct):
    """Shorten the request queues of these disks to `number`, where they are longer; the record is in `folder`."""

    folder: str
    disks: tuple[str, ...]
    number: int


class LengthenQueues(Struct):
    """Put the request queues back that `ShortenQueues` has shortened. `ends`: nothing is frozen after that."""

    ends: bool = False


class PutBack(Struct):
    """Make grace periods normal, if allowed, after a worker that died between `Expedite` and `EndExpedite`."""


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
    | OpenCounters
    | ReadWritten
    | Identify
    | Title
    | BecomeKeeper
    | LockMemory
    | PrepareToExpedite
    | Expedite
    | EndExpedite
    | ShortenQueues
    | LengthenQueues
    | PutBack
)
T = TypeVar("T")
Script = Generator[Step, Any, T]


# The events that a script can wait for.


class Result(Struct):
    """An operation has ended, `at` that CLOCK_MONOTONIC second: for `error`, `said` and `failed` see `judge`."""

    mount: int
    operation: Operation
    error: int = 0
    said: str = ""
    failed: str = ""
    at: float = 0.0


class Told(Struct):
    """The supervisor has sent this message."""

    message: messages.Control


class Gone(Struct):
    """The freeze must end: the supervisor is gone, or a signal asks for it. It comes once."""

    reason: str


class Timeout(Struct):
    """The wait has lasted until its second."""


class Taken(Struct):
    """The report pipe has taken all that was posted."""


Event = Result | Told | Gone | Timeout | Taken
