"""What happens to the supervisor (events), and what it does about it (effects): the vocabulary of core and loop."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from ...agent.api.errors import Fault
from ...agent.api.records import Plan, Status
from ...agent.api.structs import Struct, Value
from ...agent.worker import messages
from .timing import Key

if TYPE_CHECKING:
    from ..config import Config

Fields = tuple[tuple[str, str], ...]  # names and values, of an entry of the log


class Peer(Struct):
    """The host at the other end of a connection: the channel as configured, and its pid/uid or CID as text."""

    channel: str
    who: str


class Requested(Struct):
    """A well-formed request came; `wall` is the time of day (seconds since the epoch) for the audit record.

    `crowded`: hosts leave so many replies unread that only essential RPCs are to be admitted. `unheard`: nobody waits
    for the answer any more.
    """

    connection: int
    token: int
    method: str
    params: list[Any] | dict[str, Any]
    peer: Peer
    wall: float
    crowded: bool = False
    unheard: bool = False


class Malformed(Struct):
    """Bytes that are not a request came, and were answered with this fault."""

    code: int
    text: str
    peer: Peer
    wall: float


class GivenUp(Struct):
    """The host no longer waits for this request's reply."""

    connection: int
    token: int


class NewsCut(Value):
    """The status calls of this connection are to be answered now: its place is needed."""

    connection: int


class Taken(Value):
    """All bytes of a reply that was sent with `receipt` were taken by the transport."""

    connection: int
    token: int


class Disconnected(Value):
    """The connection is closed; none of its replies will be read. `unread`: the host left some that it had taken.

    `evicted`: the host did not leave, its place was needed.
    """

    connection: int
    unread: bool = False
    evicted: bool = False


class Spawned(Struct):
    """The worker was forked."""

    worker: int
    pid: int


class SpawnFailed(Struct):
    """The worker could not be forked."""

    worker: int
    error: OSError


class Reported(Struct):
    """The worker sent a message; `more`: another that was read with it is the next event."""

    worker: int
    message: messages.Report
    more: bool = False


class RubbishReported(Struct):
    """The worker sent something that is not a message."""

    worker: int
    why: str


class ReportEnded(Struct):
    """The worker's report pipe is at its end: it is dying. That it is dead only its pidfd says."""

    worker: int


class Exited(Struct):
    """The worker was reaped: killed by `signal`, or ended with `code` (then `signal` is 0)."""

    worker: int
    signal: int
    code: int


class Probed(Struct):
    """The process state of a worker (psutil's names; "disk-sleep" is D).

    `dying`: it was killed, and only threads that are in the kernel are left of it.
    """

    worker: int
    state: str
    dying: bool = False


class Journaled(Struct):
    """The journal holds the plan of this freeze."""

    freeze: int


class NoStandby(OSError):
    """No process could be forked ahead that would thaw if the keeper died."""


class JournalFailed(Struct):
    """The journal could not be written."""

    freeze: int
    error: OSError


class JournalFound(Struct):
    """An earlier supervisor left a journal: what it planned to freeze, and what was not reported to a host yet.

    `orphan` is pid and start time of its freeze worker if that lives, else (0, 0). `expedites`: it may have left
    grace periods expedited. `told_at` is the second of the loop's clock at which `unreported` was first told, 0 if
    it was not; `since` the one at which it was about to freeze, 0 if that is not known.
    """

    freeze: int
    plan: Plan
    unreported: str
    orphan: tuple[int, int] = (0, 0)
    expedites: bool = False
    told_at: float = 0.0
    since: float = 0.0


class LatchesFound(Struct):
    """An earlier agent may have left these writers set."""

    names: list[str]


class QueuesSeen(Struct):
    """Request queues of disks are on record as shortened, by a worker that may be dead, if `left`."""

    left: bool


class Reload(Struct):
    """The daemon was told to read its configuration again."""


class ShowStatus(Struct):
    """The daemon was told to log the status record."""


class Stopped(Struct):
    """The daemon was told to stop, and by what."""

    signal: str


class Due(Struct):
    """A deadline of the core has passed, and is disarmed."""

    key: Key


class Woken(Struct):
    """Nothing happened except that time has passed."""


Event = (
    Requested
    | Malformed
    | GivenUp
    | NewsCut
    | Taken
    | Disconnected
    | Spawned
    | SpawnFailed
    | Reported
    | RubbishReported
    | ReportEnded
    | Exited
    | Probed
    | Journaled
    | JournalFailed
    | JournalFound
    | LatchesFound
    | QueuesSeen
    | Reload
    | ShowStatus
    | Stopped
    | Due
    | Woken
)


class Lifeline(enum.Enum):
    """Which end of the pipe from the freeze worker to the writers a worker gets."""

    HOLD = "hold"
    WATCH = "watch"


class Spawn(Struct):
    """Fork a worker; draws Spawned or SpawnFailed."""

    worker: int
    rpc: str
    args: dict[str, Any]
    lifeline: Lifeline | None = None


class Adopt(Struct):
    """Adopt the freeze worker of a dead supervisor under this number; draws Exited if it is gone already."""

    worker: int
    pid: int
    started: int


class Kill(Struct):
    """Send SIGKILL to the worker through its pidfd."""

    worker: int


class Probe(Struct):
    """Look at the worker's process state; draws Probed."""

    worker: int


class Tell(Struct):
    """Write to the worker's control pipe."""

    worker: int
    message: messages.Control


class Answer(Struct):
    """Reply to a request with a value, a status record, or a fault; with `receipt` it draws Taken when that is so."""

    connection: int
    token: int
    value: Any | Fault
    receipt: bool = False


class SetTitle(Struct):
    """Show this in ps; `until` is a second of the loop's clock that is shown as time of day."""

    text: str
    until: float | None = None


class Entry(Value):
    """What a line of the log tells programs: the kind of thing that happened, "" for none that has a name, and fields.

    A field is freeze_id, phase, outcome, mount (once for each), errno, writer or lies_on (once for each).
    """

    kind: str
    fields: Fields = ()


class Log(Struct):
    """Write a line to the log; `level` as in syslog(3): err, warning, notice, info, debug; or audit, always written."""

    level: str
    text: str
    entry: Entry | None = None


class Configured(Struct):
    """Use another configuration from now on."""

    config: Config


class LogStatus(Struct):
    """Write the status record to the log."""

    record: Status


class WriteJournal(Struct):
    """Write the journal, with the start time of the worker `pid`; draws Journaled or JournalFailed."""

    freeze: int
    pid: int
    record: dict[str, Any]


class RemoveJournal(Struct):
    """Remove the journal: nothing is frozen, and there is nothing to report."""


class KeepHandle(Struct):
    """Remember, also after a restart, that the next file opened for a host gets this number."""

    next: int


class KeepFreeze(Struct):
    """Remember, also after a restart, that a freeze got this number."""

    number: int


class LookAtQueues(Struct):
    """Look whether request queues are on record in that folder; draws QueuesSeen."""

    folder: str


class Quit(Struct):
    """Flush, close and end with this exit code."""

    code: int


Effect = (
    Spawn
    | Adopt
    | Kill
    | Probe
    | Tell
    | Answer
    | SetTitle
    | Log
    | LogStatus
    | Configured
    | WriteJournal
    | RemoveJournal
    | KeepHandle
    | KeepFreeze
    | LookAtQueues
    | Quit
)
