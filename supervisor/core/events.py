"""What happens to the supervisor (events), and what it does about it (effects): the vocabulary of core and loop."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...agent.api.errors import Fault
from ...agent.api.records import Plan, Status
from ...agent.worker import messages
from .timing import Key

if TYPE_CHECKING:
    from ..config import Config

Fields = tuple[tuple[str, str], ...]  # names and values, of an entry of the log


@dataclass(slots=True)
class Peer:
    """The host at the other end of a connection: the channel as configured, and its pid/uid or CID as text."""

    channel: str
    who: str


@dataclass(slots=True)
class Requested:
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


@dataclass(slots=True)
class Malformed:
    """Bytes that are not a request came, and were answered with this fault."""

    code: int
    text: str
    peer: Peer
    wall: float


@dataclass(slots=True)
class GivenUp:
    """The host no longer waits for this request's reply."""

    connection: int
    token: int


@dataclass(frozen=True, slots=True)
class NewsCut:
    """The status calls of this connection are to be answered now: its place is needed."""

    connection: int


@dataclass(frozen=True, slots=True)
class Taken:
    """All bytes of a reply that was sent with `receipt` were taken by the transport."""

    connection: int
    token: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is closed; none of its replies will be read. `unread`: the host left some that it had taken.

    `evicted`: the host did not leave, its place was needed.
    """

    connection: int
    unread: bool = False
    evicted: bool = False


@dataclass(slots=True)
class Spawned:
    """The worker was forked."""

    worker: int
    pid: int


@dataclass(slots=True)
class SpawnFailed:
    """The worker could not be forked."""

    worker: int
    error: OSError


@dataclass(slots=True)
class Reported:
    """The worker sent a message; `more`: another that was read with it is the next event."""

    worker: int
    message: messages.Report
    more: bool = False


@dataclass(slots=True)
class RubbishReported:
    """The worker sent something that is not a message."""

    worker: int
    why: str


@dataclass(slots=True)
class ReportEnded:
    """The worker's report pipe is at its end: it is dying. That it is dead only its pidfd says."""

    worker: int


@dataclass(slots=True)
class Exited:
    """The worker was reaped: killed by `signal`, or ended with `code` (then `signal` is 0)."""

    worker: int
    signal: int
    code: int


@dataclass(slots=True)
class Probed:
    """The process state of a worker (psutil's names; "disk-sleep" is D).

    `dying`: it was killed, and only threads that are in the kernel are left of it.
    """

    worker: int
    state: str
    dying: bool = False


@dataclass(slots=True)
class Journaled:
    """The journal holds the plan of this freeze."""

    freeze: int


class NoStandby(OSError):
    """No process could be forked ahead that would thaw if the keeper died."""


@dataclass(slots=True)
class JournalFailed:
    """The journal could not be written."""

    freeze: int
    error: OSError


@dataclass(slots=True)
class JournalFound:
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


@dataclass(slots=True)
class LatchesFound:
    """An earlier agent may have left these writers set."""

    names: list[str]


@dataclass(slots=True)
class Reload:
    """The daemon was told to read its configuration again."""


@dataclass(slots=True)
class ShowStatus:
    """The daemon was told to log the status record."""


@dataclass(slots=True)
class Stopped:
    """The daemon was told to stop, and by what."""

    signal: str


@dataclass(slots=True)
class Due:
    """A deadline of the core has passed, and is disarmed."""

    key: Key


@dataclass(slots=True)
class Woken:
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


@dataclass(slots=True)
class Spawn:
    """Fork a worker; draws Spawned or SpawnFailed."""

    worker: int
    rpc: str
    args: dict[str, Any]
    lifeline: Lifeline | None = None


@dataclass(slots=True)
class Adopt:
    """Adopt the freeze worker of a dead supervisor under this number; draws Exited if it is gone already."""

    worker: int
    pid: int
    started: int


@dataclass(slots=True)
class Kill:
    """Send SIGKILL to the worker through its pidfd."""

    worker: int


@dataclass(slots=True)
class Probe:
    """Look at the worker's process state; draws Probed."""

    worker: int


@dataclass(slots=True)
class Tell:
    """Write to the worker's control pipe."""

    worker: int
    message: messages.Control


@dataclass(slots=True)
class Answer:
    """Reply to a request with a value, a status record, or a fault; with `receipt` it draws Taken when that is so."""

    connection: int
    token: int
    value: Any | Fault
    receipt: bool = False


@dataclass(slots=True)
class SetTitle:
    """Show this in ps; `until` is a second of the loop's clock that is shown as time of day."""

    text: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line of the log tells programs: the kind of thing that happened, "" for none that has a name, and fields.

    A field is freeze_id, phase, outcome, mount (once for each), errno, writer or lies_on (once for each).
    """

    kind: str
    fields: Fields = ()


@dataclass(slots=True)
class Log:
    """Write a line to the log; `level` as in syslog(3): err, warning, notice, info, debug; or audit, always written."""

    level: str
    text: str
    entry: Entry | None = None


@dataclass(slots=True)
class Configured:
    """Use another configuration from now on."""

    config: Config


@dataclass(slots=True)
class LogStatus:
    """Write the status record to the log."""

    record: Status


@dataclass(slots=True)
class WriteJournal:
    """Write the journal, with the start time of the worker `pid`; draws Journaled or JournalFailed."""

    freeze: int
    pid: int
    record: dict[str, Any]


@dataclass(slots=True)
class RemoveJournal:
    """Remove the journal: nothing is frozen, and there is nothing to report."""


@dataclass(slots=True)
class KeepHandle:
    """Remember, also after a restart, that the next file opened for a host gets this number."""

    next: int


@dataclass(slots=True)
class KeepFreeze:
    """Remember, also after a restart, that a freeze got this number."""

    number: int


@dataclass(slots=True)
class Quit:
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
    | Quit
)
