"""The states and the two transition tables; docs/states.md is generated from here.

The theory in short. A freeze has an owner, the freeze worker, which stays as the keeper while the file systems are
frozen. SIGKILL does not stop a FIFREEZE that is in flight: it takes effect when the disk recovers, just before the
worker dies, and the file system stays frozen. So a killed worker is compensated twice, at the kill and at the reaping,
and THAWED is entered only when every worker that could freeze has been reaped.

A worker that is in D inside FITHAW when its limit passes is not killed: SIGKILL would not end it sooner, and makes
btrfs fail to read its superblock and go read-only (6 of 600 kills on Linux 6.18; 0 on ext4 and xfs).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from .errors import Code


class FreezeState(enum.IntEnum):
    """The state of the guest's file systems; va.fsstatus returns these numbers, those of the virtagent of 2011."""

    ERROR = -1
    THAWED = 0
    INPROGRESS = 1
    FROZEN = 2
    THAWINPROGRESS = 3


class FreezeEvent(enum.Enum):
    """What changes a freeze: requests of hosts, reports and deaths of its workers, limits that pass."""

    ADMITTED = "fsfreeze admitted"
    JOURNAL = "journal found at start"
    SYNCED = "worker has synced, and asks to proceed"
    JOURNALED = "the plan is in the journal"
    INSTANT = "the instant of the freeze has come"
    JOURNAL_FAILED = "the journal could not be written"
    FROZEN = "worker reports Frozen"
    ENDED = "worker had nothing to freeze"
    DONE = "worker ended unasked"
    FAILED = "worker failed"
    THAWS = "worker thaws"
    GAVE_UP = "worker gave up and thaws"
    TOO_SLOW = "worker was too slow and thaws"
    EXPIRED = "keeper thaws: the hold limit passed"
    FOUND_THAWED = "someone else had thawed"
    FOUND_BROKEN = "keeper found the hold broken"
    UNPROVED = "nobody saw that all was frozen until the thaw"
    DIED = "worker or keeper died"
    OVERRAN = "a limit passed"
    HOLD_PASSED = "hold limit passed"
    CALLED_OFF = "ended before Proceed, whatever the reason"
    UNRESPONSIVE = "keeper does not begin to thaw"
    THAW_ASKED = "thaw asked"
    HOLD_ASKED = "longer hold asked"
    HELD = "keeper holds longer"
    STOPPING = "the daemon was told to stop"
    CHANGED = "something to thaw, or a worker, has changed"
    VETOED = "a writer refused, overran or was lost"
    WRITER_LOST = "a writer with paths that are not frozen was lost"
    SETTLED = "all thawed, all reaped"
    THAW_FAILED = "a thaw failed"
    STUCK = "a worker is stuck"
    RETRY = "retry due"
    FORGOTTEN = "an operator forgets a file system"


class Outcome(str, enum.Enum):
    """How the last freeze ended (last.outcome of the status record)."""

    THAWED = "thawed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    OVERRAN = "overran"
    EXPIRED = "expired"
    BROKEN = "broken"
    VETOED = "vetoed"


class FreezeRow(NamedTuple):
    """One row of FREEZE_TABLE: the next state, and what the machine of supervisor/core/freeze.py then does.

    `action` is the name of its method. `outcome`, `code` and `text` are what the host is told if this is the first
    cause that ends the freeze; a `code` of None is the one that the event brings, `text` may hold {id} of the freeze,
    {why} of the event and {where} it found the worker, or what the system said. `doc` is for people.
    """

    state: FreezeState
    action: str
    outcome: Outcome | None = None
    code: Code | None = None
    doc: str = ""
    text: str = "{why}"


_F, _E, _O = FreezeState, FreezeEvent, Outcome
_CANCEL = "the freeze was cancelled: {why}"
_ENDED_FROZEN = "the freeze worker ended with file systems frozen"


def _noted(state: FreezeState) -> FreezeRow:
    return FreezeRow(state, "nothing", doc="noted")


def _fails(code: Code | None, outcome: Outcome = _O.FAILED, text: str = "{why}") -> FreezeRow:
    return FreezeRow(_F.THAWINPROGRESS, "nothing", outcome, code, "compensate; the host learns why", text)


def _killed(code: Code, outcome: Outcome = _O.FAILED, text: str = "{why}") -> FreezeRow:
    doc = "kill the worker, compensate; the host learns why"
    return FreezeRow(_F.THAWINPROGRESS, "kill_freezer", outcome, code, doc, text)


_LIMITED = "fsfreeze is limited: {why}"
"""For KubeVirt, which looks for these words and then marks the snapshot for good (its indication QuiesceTimeout)."""


def _breaks(
    state: FreezeState, doc: str, outcome: Outcome = _O.BROKEN, action: str = "nothing", why: str = "{why}"
) -> FreezeRow:
    text = f"freeze {{id}} was broken: {why}"
    return FreezeRow(state, action, outcome, Code.FREEZE_BROKEN, f"{doc}; the freeze is broken", text)


def _after_the_end(state: FreezeState) -> dict[tuple[FreezeState, FreezeEvent], FreezeRow]:
    """Return the rows for what a worker may still say after the end: only what breaks a good freeze counts."""
    return {
        (state, _E.FAILED): FreezeRow(state, "amend_fault", doc="of a failed freeze: told, it says what was undone"),
        (state, _E.GAVE_UP): _breaks(state, "before the thaw was asked"),
        (state, _E.EXPIRED): _breaks(state, "before the thaw was asked", why=_LIMITED),
        (state, _E.FOUND_BROKEN): _breaks(state, "it says what it found"),
        (state, _E.UNRESPONSIVE): FreezeRow(state, "kill_unresponsive", doc="kill the worker, compensate"),
        **{(state, event): _noted(state) for event in (_E.ENDED, _E.THAWS, _E.DIED)},
    }


FREEZE_TABLE: Mapping[tuple[FreezeState, FreezeEvent], FreezeRow] = {
    (_F.THAWED, _E.ADMITTED): FreezeRow(
        _F.INPROGRESS, "nothing", doc="fork the freeze worker; records are held from here on"
    ),
    (_F.THAWED, _E.JOURNAL): FreezeRow(
        _F.THAWINPROGRESS, "advance", doc="thaw what the journal names; the freeze was broken"
    ),
    (_F.THAWED, _E.THAW_ASKED): FreezeRow(
        _F.THAWED, "answer_thaw", doc="answer 0, or what broke the last freeze if nobody was told"
    ),
    (_F.THAWED, _E.STOPPING): _noted(_F.THAWED),
    (_F.INPROGRESS, _E.SYNCED): FreezeRow(_F.INPROGRESS, "journal", doc="journal the plan"),
    (_F.INPROGRESS, _E.JOURNALED): FreezeRow(
        _F.INPROGRESS, "await_instant", doc="let the worker go on to freeze; with `at`, at that instant"
    ),
    (_F.INPROGRESS, _E.INSTANT): FreezeRow(_F.INPROGRESS, "proceed", doc="let the worker go on to freeze"),
    (_F.INPROGRESS, _E.CALLED_OFF): FreezeRow(  # ADR 0024: outcome and fault are those of the cause's own row
        _F.THAWED, "call_off", doc="nothing is frozen nor will be: kill the worker, which is only listed until it ends"
    ),
    (_F.INPROGRESS, _E.JOURNAL_FAILED): _killed(Code.FREEZE_FAILED, text="{why}, so nothing was frozen: {where}"),
    (_F.INPROGRESS, _E.FROZEN): FreezeRow(_F.FROZEN, "answer_freeze", doc="answer fsfreeze; arm the hold limit"),
    (_F.INPROGRESS, _E.ENDED): FreezeRow(  # ADR 0009: no keeper for nothing
        _F.THAWINPROGRESS, "nothing", doc="nothing is frozen; wait for the worker's exit"
    ),
    (_F.INPROGRESS, _E.DONE): _fails(Code.INTERNAL, text=_ENDED_FROZEN),
    (_F.INPROGRESS, _E.FAILED): _fails(None),
    (_F.INPROGRESS, _E.THAWS): _fails(Code.FREEZE_FAILED, text="the keeper thawed unasked"),
    (_F.INPROGRESS, _E.GAVE_UP): _fails(Code.FREEZE_FAILED),
    (_F.INPROGRESS, _E.TOO_SLOW): _fails(Code.OVERRUN, _O.OVERRAN),
    (_F.INPROGRESS, _E.DIED): _fails(Code.WORKER_DIED),
    (_F.INPROGRESS, _E.VETOED): _killed(Code.VETOED, _O.VETOED),
    (_F.INPROGRESS, _E.EXPIRED): _fails(Code.OVERRUN, _O.OVERRAN),
    (_F.INPROGRESS, _E.OVERRAN): _killed(Code.OVERRUN, _O.OVERRAN, "{why}{where}"),
    (_F.INPROGRESS, _E.THAW_ASKED): _killed(Code.FREEZE_FAILED, _O.CANCELLED, _CANCEL),
    (_F.INPROGRESS, _E.STOPPING): _killed(Code.FREEZE_FAILED, _O.CANCELLED, _CANCEL),
    (_F.FROZEN, _E.THAW_ASKED): FreezeRow(_F.THAWINPROGRESS, "tell_keeper_to_thaw", doc="tell the keeper to thaw"),
    (_F.FROZEN, _E.HOLD_ASKED): FreezeRow(_F.FROZEN, "nothing", doc="ask the keeper; its word is the answer"),
    (_F.FROZEN, _E.HELD): FreezeRow(_F.FROZEN, "extend_hold", doc="answer fshold; arm the new limit"),
    (_F.FROZEN, _E.HOLD_PASSED): _breaks(
        _F.THAWINPROGRESS, "the keeper thaws by itself", _O.EXPIRED, "tell_keeper_to_thaw", _LIMITED
    ),
    (_F.FROZEN, _E.EXPIRED): _breaks(_F.THAWINPROGRESS, "the keeper thaws by itself", _O.EXPIRED, why=_LIMITED),
    (_F.FROZEN, _E.FAILED): _breaks(_F.THAWINPROGRESS, "the keeper gave up"),
    (_F.FROZEN, _E.THAWS): _breaks(_F.THAWINPROGRESS, "the keeper thaws", why="the keeper thawed unasked"),
    (_F.FROZEN, _E.GAVE_UP): _breaks(_F.THAWINPROGRESS, "the keeper gave up and thaws"),
    (_F.FROZEN, _E.DONE): _breaks(_F.THAWINPROGRESS, "the keeper ended", why="the keeper ended unasked"),
    (_F.FROZEN, _E.DIED): _breaks(_F.THAWINPROGRESS, "compensate now"),
    (_F.FROZEN, _E.WRITER_LOST): _breaks(_F.THAWINPROGRESS, "tell the keeper to thaw", action="tell_keeper_to_thaw"),
    (_F.FROZEN, _E.STOPPING): _breaks(_F.THAWINPROGRESS, "tell the keeper to thaw", action="tell_keeper_to_thaw"),
    (_F.THAWINPROGRESS, _E.CHANGED): FreezeRow(
        _F.THAWINPROGRESS, "advance", doc="do the next thing that brings all to be thawed"
    ),
    (_F.THAWINPROGRESS, _E.THAW_ASKED): FreezeRow(_F.THAWINPROGRESS, "nothing", doc="answered when this one ends"),
    (_F.THAWINPROGRESS, _E.STOPPING): _noted(_F.THAWINPROGRESS),
    (_F.THAWINPROGRESS, _E.SETTLED): FreezeRow(
        _F.THAWED, "settle", doc="answer fsthaw if that was not done; write the records that were held"
    ),
    (_F.THAWINPROGRESS, _E.THAW_FAILED): FreezeRow(_F.ERROR, "tell_error", doc="name the mount; retry with back-off"),
    (_F.THAWINPROGRESS, _E.STUCK): FreezeRow(
        _F.ERROR, "tell_error", doc="name the mount; try again when the worker is reaped"
    ),
    **_after_the_end(_F.THAWINPROGRESS),
    (_F.THAWINPROGRESS, _E.DONE): FreezeRow(
        _F.THAWINPROGRESS, "conclude_if_good", doc="if the freeze was good, let the writers go and answer fsthaw"
    ),
    (_F.ERROR, _E.CHANGED): FreezeRow(
        _F.ERROR, "retry_if_useful", doc="thaw again if that is due, or nothing is left to thaw"
    ),
    (_F.ERROR, _E.FORGOTTEN): FreezeRow(
        _F.ERROR, "retry_if_useful", doc="count it as thawed, which nothing proves; go on if nothing else is left"
    ),
    (_F.ERROR, _E.RETRY): FreezeRow(_F.THAWINPROGRESS, "advance", doc="thaw again what is not proved thawed"),
    (_F.ERROR, _E.THAW_ASKED): FreezeRow(_F.THAWINPROGRESS, "retry_now", doc="thaw again what is not proved thawed"),
    (_F.ERROR, _E.STOPPING): FreezeRow(_F.ERROR, "retry_now", doc="thaw again what is not proved thawed"),
    **_after_the_end(_F.ERROR),
    (_F.ERROR, _E.DONE): _noted(_F.ERROR),
    **{
        (state, _E.UNPROVED): _breaks(state, "the evidence died with its worker")
        for state in (_F.THAWINPROGRESS, _F.ERROR)
    },
    **{
        (state, _E.WRITER_LOST): _breaks(state, "found when it was let go")
        for state in (_F.THAWED, _F.THAWINPROGRESS, _F.ERROR)
    },
    **{
        (state, _E.FOUND_THAWED): _breaks(state, "a FITHAW of ours found it thawed")
        for state in (_F.INPROGRESS, _F.FROZEN, _F.THAWINPROGRESS, _F.ERROR)
    },
}
"""What each event does to a freeze in each state. A pair that is not listed is a defect."""


class WorkerState(enum.Enum):
    """A stage in the life of a forked worker."""

    SPAWNED = "spawned"
    RUNNING = "running"
    HOLDING = "holding"
    REPORTED = "reported"
    KILLED = "killed"
    STUCK = "stuck"
    REAPED = "reaped"


class WorkerEvent(enum.Enum):
    """What changes the state of a worker: its reports, its deadlines, its death."""

    STARTED = "Started"
    PLAN = "Plan"
    STEP = "Step"
    PROGRESS = "Progress"
    SYNCED = "Synced"
    FROZEN = "Frozen"
    HELD = "Held"
    LEARNT = "Learnt"
    THAWING = "Thawing"
    ACQUIRED = "Acquired"
    REPLIED = "Replied"
    DECLINED = "Declined"
    RELEASABLE = "Releasable"
    ACTED = "Acted"
    DONE = "Done"
    FAILED = "Failed"
    LIMIT = "limit passed"
    CANCELLED = "cancelled"
    IN_KERNEL = "limit passed inside FITHAW"
    RUBBISH = "rubbish reported"
    GRACE = "grace passed"
    EXIT = "exit"
    REPORT_END = "report end-of-file"


_W, _V = WorkerState, WorkerEvent
_NOTE, _KILL = "new status record", "SIGKILL through the pidfd; compensate now"
_LATE = "noted: sent before the kill took effect"
_LEFT = "left alone: SIGKILL inside FITHAW does harm; title and log name the mount"
_VERDICT = "verdict; compensate if it died unreported"

WORKER_TABLE: Mapping[tuple[WorkerState, WorkerEvent], tuple[WorkerState, str]] = {
    (_W.SPAWNED, _V.STARTED): (_W.RUNNING, ""),
    (_W.RUNNING, _V.PLAN): (_W.RUNNING, "noted, for the journal"),
    (_W.RUNNING, _V.SYNCED): (_W.RUNNING, "journal the plan, then let the worker go on to freeze"),
    (_W.RUNNING, _V.STEP): (_W.RUNNING, _NOTE),
    (_W.RUNNING, _V.PROGRESS): (_W.RUNNING, _NOTE),
    (_W.RUNNING, _V.LEARNT): (_W.RUNNING, "noted, for the next plan"),
    (_W.RUNNING, _V.FROZEN): (_W.HOLDING, "reply; arm hold limit"),
    (_W.RUNNING, _V.ACTED): (_W.RUNNING, "a writer has done a step, or has refused it"),
    (_W.RUNNING, _V.ACQUIRED): (_W.HOLDING, "reply; the worker keeps what the host opened or started"),
    (_W.HOLDING, _V.REPLIED): (_W.HOLDING, "reply"),
    (_W.HOLDING, _V.DECLINED): (_W.HOLDING, "reply with the fault"),
    (_W.HOLDING, _V.RELEASABLE): (_W.HOLDING, "noted: it may be dropped"),
    (_W.HOLDING, _V.HELD): (_W.HOLDING, "the hold was extended; reply"),
    (_W.HOLDING, _V.THAWING): (_W.HOLDING, "the keeper thaws; arm thaw limit"),
    (_W.HOLDING, _V.STEP): (_W.HOLDING, _NOTE),
    (_W.HOLDING, _V.PROGRESS): (_W.HOLDING, _NOTE),
    (_W.RUNNING, _V.THAWING): (_W.RUNNING, "the worker gave up and thaws; arm thaw limit"),
    (_W.RUNNING, _V.DONE): (_W.REPORTED, "arm exit grace"),
    (_W.RUNNING, _V.FAILED): (_W.REPORTED, "arm exit grace"),
    (_W.HOLDING, _V.DONE): (_W.REPORTED, "arm exit grace"),
    (_W.HOLDING, _V.FAILED): (_W.REPORTED, "arm exit grace"),
    **{(s, e): (_W.KILLED, _KILL) for s in (_W.SPAWNED, _W.RUNNING, _W.HOLDING) for e in (_V.LIMIT, _V.CANCELLED)},
    **{(s, _V.RUBBISH): (_W.KILLED, _KILL) for s in (_W.SPAWNED, _W.RUNNING, _W.HOLDING, _W.REPORTED)},
    (_W.REPORTED, _V.GRACE): (_W.KILLED, "SIGKILL"),
    **{(s, _V.IN_KERNEL): (_W.STUCK, _LEFT) for s in (_W.SPAWNED, _W.RUNNING, _W.HOLDING)},
    (_W.STUCK, _V.LIMIT): (_W.KILLED, "it left the kernel and does not end"),
    (_W.KILLED, _V.GRACE): (_W.STUCK, "title and log name the mount it is stuck on"),
    **{  # ADR 0004: late reports are noted, not defects
        (s, e): (s, _LATE)
        for s in (_W.KILLED, _W.STUCK)
        for e in (
            _V.STARTED,
            _V.PLAN,
            _V.STEP,
            _V.PROGRESS,
            _V.SYNCED,
            _V.FROZEN,
            _V.HELD,
            _V.LEARNT,
            _V.THAWING,
            _V.ACQUIRED,
            _V.REPLIED,
            _V.DECLINED,
            _V.RELEASABLE,
            _V.ACTED,
            _V.DONE,
            _V.FAILED,
            _V.RUBBISH,
        )
    },
    **{(s, _V.EXIT): (_W.REAPED, _VERDICT) for s in (_W.SPAWNED, _W.RUNNING, _W.HOLDING)},
    (_W.REPORTED, _V.EXIT): (_W.REAPED, "verdict"),
    **{(s, _V.EXIT): (_W.REAPED, "verdict; compensate again") for s in (_W.KILLED, _W.STUCK)},
    **{(s, _V.REPORT_END): (s, "drain, unregister, close") for s in _W},
}

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)


class Unlisted(Exception):
    """A pair of state and event that has no row in the table."""


def following(table: Mapping[tuple[S, E], tuple[S, str]], state: S, event: E) -> S:
    """Return the state that `event` leads to; raise Unlisted if there is no such row."""
    try:
        return table[state, event][0]
    except KeyError:
        raise Unlisted(f"{event.value!r} in state {state.name}") from None


def freeze_row(state: FreezeState, event: FreezeEvent) -> FreezeRow:
    """Return the row of FREEZE_TABLE; raise Unlisted if there is no such row."""
    try:
        return FREEZE_TABLE[state, event]
    except KeyError:
        raise Unlisted(f"{event.value!r} in state {state.name}") from None


class Phase(str, enum.Enum):
    """The phases of a freeze, each with its own limit; other RPCs have only RUN and KEEP."""

    PLAN = "plan"
    PREPARE = "prepare"
    SYNC = "sync"
    READY = "ready"
    QUIESCE = "quiesce"
    FREEZE = "freeze"
    CONFIRM = "confirm"
    HOLD = "hold"
    THAW = "thaw"
    RELEASE = "release"
    RUN = "run"
    KEEP = "keep"


class MountState(str, enum.Enum):
    """What has been done to one file system (mounts[].state of the status record)."""

    PENDING = "pending"
    SYNCING = "syncing"
    SYNCED = "synced"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"
    THAWED = "thawed"
    UNSUPPORTED = "unsupported"
    BUSY = "busy"
    FAILED = "failed"
    LEFT_OUT = "left-out"


class Reason(str, enum.Enum):
    """Why a file system is not part of the plan."""

    NETWORK = "network"
    FUSE = "fuse"
    ZFS = "zfs"
    PSEUDO = "pseudo"
    READ_ONLY = "read-only"
    DAMAGED = "damaged"
    UNREACHABLE = "unreachable"
    EXCLUDED = "excluded"
    NOT_INCLUDED = "not-included"
