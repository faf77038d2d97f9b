"""The states and the two transition tables of the design; docs/states.md is generated from here.

The theory in short. A freeze has an owner, the freeze worker, which stays as the keeper while the file systems are
frozen. SIGKILL does not stop a FIFREEZE that is under way: it takes effect when the disk recovers, just before the
worker dies, and stays. So a worker that is killed is compensated twice, at the kill and at the reaping, and THAWED is
entered only when no worker that may still freeze is unreaped.

A worker that is in D inside FITHAW when its limit passes is not killed: SIGKILL would end it no sooner, and it makes
btrfs read its superblock in vain and go read-only (6 of 600 on Linux 6.18; none on ext4 and xfs).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar


class FreezeState(enum.IntEnum):
    """State of the guest's file systems, with the numbers of the 2011 virtagent patches (va.fsstatus returns them)."""

    ERROR = -1
    THAWED = 0
    INPROGRESS = 1
    FROZEN = 2
    THAWINPROGRESS = 3


class FreezeEvent(enum.Enum):
    """What changes the freeze state."""

    ADMITTED = "fsfreeze admitted"
    FROZEN = "worker reports Frozen"
    ENDED = "worker had nothing to freeze"
    FAILED = "worker failed"
    DIED = "worker or keeper died"
    OVERRAN = "a limit passed"
    THAW_ASKED = "thaw asked"
    STOPPING = "the daemon was told to stop"
    HOLD_PASSED = "hold limit passed"
    SETTLED = "all thawed, all reaped"
    THAW_FAILED = "a thaw failed"
    STUCK = "a worker is stuck"
    RETRY = "retry due"
    JOURNAL = "journal found at start"


_F, _E = FreezeState, FreezeEvent
_UNDO = "compensate; the host learns why"

FREEZE_TABLE: Mapping[tuple[FreezeState, FreezeEvent], tuple[FreezeState, str]] = {
    (_F.THAWED, _E.ADMITTED): (_F.INPROGRESS, "fork the freeze worker; records are held from here on"),
    (_F.THAWED, _E.JOURNAL): (_F.THAWINPROGRESS, "thaw what the journal names; the freeze was broken"),
    (_F.INPROGRESS, _E.FROZEN): (_F.FROZEN, "answer fsfreeze; arm the hold limit"),
    (_F.INPROGRESS, _E.ENDED): (_F.THAWINPROGRESS, "nothing is frozen; wait for the worker's exit"),
    (_F.INPROGRESS, _E.FAILED): (_F.THAWINPROGRESS, _UNDO),
    (_F.INPROGRESS, _E.DIED): (_F.THAWINPROGRESS, _UNDO),
    (_F.INPROGRESS, _E.OVERRAN): (_F.THAWINPROGRESS, "kill the worker; " + _UNDO),
    (_F.INPROGRESS, _E.THAW_ASKED): (_F.THAWINPROGRESS, "kill the worker, compensate: the freeze is cancelled"),
    (_F.INPROGRESS, _E.STOPPING): (_F.THAWINPROGRESS, "kill the worker, compensate: the freeze is cancelled"),
    (_F.FROZEN, _E.THAW_ASKED): (_F.THAWINPROGRESS, "tell the keeper to thaw"),
    (_F.FROZEN, _E.HOLD_PASSED): (_F.THAWINPROGRESS, "the keeper thaws by itself; the freeze is broken"),
    (_F.FROZEN, _E.FAILED): (_F.THAWINPROGRESS, "the keeper gave up and thaws; the freeze is broken"),
    (_F.FROZEN, _E.DIED): (_F.THAWINPROGRESS, "compensate at once; the freeze is broken"),
    (_F.FROZEN, _E.STOPPING): (_F.THAWINPROGRESS, "tell the keeper to thaw; the freeze is broken"),
    (_F.THAWINPROGRESS, _E.SETTLED): (_F.THAWED, "answer fsthaw; write the records that were held"),
    (_F.THAWINPROGRESS, _E.THAW_FAILED): (_F.ERROR, "name the mount; retry with back-off"),
    (_F.THAWINPROGRESS, _E.STUCK): (_F.ERROR, "name the mount; try again when the worker is reaped"),
    (_F.ERROR, _E.RETRY): (_F.THAWINPROGRESS, "thaw again what is not proved thawed"),
    (_F.ERROR, _E.THAW_ASKED): (_F.THAWINPROGRESS, "thaw again what is not proved thawed"),
}


class WorkerState(enum.Enum):
    """Life of a forked worker."""

    SPAWNED = "spawned"
    RUNNING = "running"
    HOLDING = "holding"
    REPORTED = "reported"
    KILLED = "killed"
    STUCK = "stuck"
    REAPED = "reaped"


class WorkerEvent(enum.Enum):
    """What changes a worker's life: its reports, its deadlines, its death."""

    STARTED = "Started"
    PLAN = "Plan"
    STEP = "Step"
    PROGRESS = "Progress"
    FROZEN = "Frozen"
    HELD = "Held"
    THAWING = "Thawing"
    ACQUIRED = "Acquired"
    REPLIED = "Replied"
    DECLINED = "Declined"
    RELEASABLE = "Releasable"
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
    (_W.RUNNING, _V.PLAN): (_W.RUNNING, "journal the plan, then let the worker go on to freeze"),
    (_W.RUNNING, _V.STEP): (_W.RUNNING, _NOTE),
    (_W.RUNNING, _V.PROGRESS): (_W.RUNNING, _NOTE),
    (_W.RUNNING, _V.FROZEN): (_W.HOLDING, "reply; arm hold limit"),
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
    (_W.RUNNING, _V.IN_KERNEL): (_W.STUCK, _LEFT),
    (_W.HOLDING, _V.IN_KERNEL): (_W.STUCK, _LEFT),
    (_W.STUCK, _V.LIMIT): (_W.KILLED, "it left the kernel and does not end"),
    (_W.KILLED, _V.GRACE): (_W.STUCK, "title and log name the mount it is stuck on"),
    **{
        (s, e): (s, _LATE)
        for s in (_W.KILLED, _W.STUCK)
        for e in (
            _V.STARTED,
            _V.PLAN,
            _V.STEP,
            _V.PROGRESS,
            _V.FROZEN,
            _V.HELD,
            _V.THAWING,
            _V.ACQUIRED,
            _V.REPLIED,
            _V.DECLINED,
            _V.RELEASABLE,
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
    """A (state, event) pair that no table row allows."""


def following(table: Mapping[tuple[S, E], tuple[S, str]], state: S, event: E) -> S:
    """Return the state that `event` leads to; raise Unlisted if the table has no such row."""
    try:
        return table[state, event][0]
    except KeyError:
        raise Unlisted(f"{event.value!r} in state {state.name}") from None


class Phase(str, enum.Enum):
    """Phases of the freeze transaction, each with its own limit; other RPCs have only RUN and KEEP."""

    PLAN = "plan"
    SYNC = "sync"
    FREEZE = "freeze"
    HOLD = "hold"
    THAW = "thaw"
    RUN = "run"
    KEEP = "keep"


class MountState(str, enum.Enum):
    """What has been done to one file system (status record, mounts[].state)."""

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
    PSEUDO = "pseudo"
    READ_ONLY = "read-only"
    EXCLUDED = "excluded"
    NOT_INCLUDED = "not-included"


class Outcome(str, enum.Enum):
    """How the last freeze ended (status record, last.outcome)."""

    THAWED = "thawed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    OVERRAN = "overran"
    EXPIRED = "expired"
    BROKEN = "broken"
