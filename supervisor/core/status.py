"""The status record (`agent.api.records.Status`): a copy of the present state, made without asking a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...agent.api import records
from ...agent.api.records import MountStatus, Progress, Status, WorkerStatus
from ...agent.api.states import FreezeEvent, MountState, Phase
from ...agent.api.structs import replace
from ...agent.worker.freeze import OWN_LIMIT_LATER
from .audit import Audit
from .freeze import Freeze
from .ledger import Ledger, Mark
from .syncing import Syncs
from .totals import Counting
from .turn import Turn
from .workers import Worker, Workers
from .writers import Writers

WRITERS_PHASES = (Phase.PREPARE.value, Phase.QUIESCE.value, Phase.CONFIRM.value, Phase.RELEASE.value)

_MOVES = (Phase.SYNC.value, Phase.FREEZE.value)
NOTHING = (-1, -1, -1.0, -1.0)
_LEFT_OUT = (MountState.UNSUPPORTED, MountState.BUSY, MountState.FAILED)


def dump(status: Status, process_state: Callable[[int], str], troubles: int = 0) -> dict[str, Any]:
    """Return the record as it is sent; `process_state` returns the process state of a pid."""
    workers = (replace(w, process_state=process_state(w.pid) if w.pid else "starting") for w in status.workers)
    return records.dump(replace(status, workers=tuple(workers), troubles=troubles))


def _mounts(ledger: Ledger, now: float, *, partial: bool) -> tuple[MountStatus, ...]:
    left = _LEFT_OUT if partial else _LEFT_OUT[:1]
    planned = (_mount(index, mark, ledger, now, left) for index, mark in enumerate(ledger.marks))
    out = MountState.LEFT_OUT.value
    left_out = (
        MountStatus(m.mountpoint, m.aliases, m.device, m.fstype, -1, out, reason=m.reason, more_aliases=m.more_aliases)
        for m in ledger.plan.left_out
    )
    return (*planned, *left_out)


def _mount(index: int, mark: Mark, ledger: Ledger, now: float, left: tuple[MountState, ...]) -> MountStatus:
    mount, state = mark.mount, mark.state
    going = ledger.going.get(index, NOTHING) if state is MountState.SYNCING else NOTHING
    return MountStatus(
        mount.mountpoint,
        mount.aliases,
        mount.device,
        mount.fstype,
        mount.level,
        state.value,
        mark.errno,
        mark.error,
        mark.seconds(now),
        state.value if state in left else "",
        mount.more_aliases,
        mount.source,
        mark.seconds_of(MountState.SYNCING, now),
        mark.seconds_of(MountState.FREEZING, now),
        mark.still(now),
        mark.written,
        *going[1:],
        may_be_frozen=index in ledger.suspects,
        dm=mount.dm,
    )


def _progress(ledger: Ledger, phase: str) -> Progress:
    found = ledger.progress
    eta = found.eta if phase == Phase.SYNC.value else -1.0
    return Progress(found.dirty_bytes, found.flushed_bytes, found.bytes_per_second, eta)


def _owner(freeze: Freeze, workers: Workers) -> Worker | None:
    """Return the worker whose phase and limit are those of the freeze; None if it has yet to begin the thaw."""
    if freeze.thawed or freeze.transaction is None:
        return None
    ledger = freeze.transaction.ledger
    thawer = min(ledger.thawers, default=None)
    worker = workers.get(ledger.freezer if thawer is None else thawer)
    waits = worker is not None and worker.phase is not Phase.THAW and freeze.expects(FreezeEvent.SETTLED)
    return None if waits else worker


def _worker(worker: Worker, now: float) -> WorkerStatus:
    # What one that lives is doing is told by the file systems, and costs more to say.
    doing = worker.doing if worker.dying and isinstance(worker.doing, str) else ""
    return WorkerStatus(worker.id, worker.pid, worker.row.name, worker.phase.value, now - worker.born, doing=doing)


def _limit_left(turn: Turn, owner: Worker | None) -> float:
    """Return the seconds that are left of its limit; -1 if it has none, or none any more since it was killed."""
    if owner is None or not owner.limit or not owner.alive:
        return -1.0
    limit = owner.limit
    if owner.row.limited_by:  # it keeps its own limit, from the beginning of its sync on, and is killed later
        limit = max(0.0, limit - OWN_LIMIT_LATER - (turn.now - owner.phase_since))
    return min(turn.left(owner.key), limit)


def phase_of(freeze: Freeze, workers: Workers) -> str:
    """Return the phase of the freeze, "" if there is no freeze."""
    transaction = freeze.transaction
    if transaction is not None and transaction.holds is not None and freeze.expects(FreezeEvent.FROZEN):
        return Phase.CONFIRM.value
    if freeze.preparing:
        return Phase.PREPARE.value
    if freeze.releasing:
        return Phase.RELEASE.value
    if freeze.expects(FreezeEvent.CHANGED):
        return Phase.THAW.value
    owner = _owner(freeze, workers)
    return owner.phase.value if owner else ""


class Records:
    """The makers of the status record, and of what is counted from its phases.

    `syncs` has what each va.fssync does. `stopping` says why the agent is about to end, "" if it is not.
    """

    def __init__(
        self, freeze: Freeze, workers: Workers, writers: Writers, audit: Audit, version: str, now: float
    ) -> None:
        self.syncs = Syncs(workers)
        self.stopping = ""
        self._freeze = freeze
        self._workers = workers
        self._writers = writers
        self._audit = audit
        self._version = version
        self._counting = Counting(now)
        self._present = ("", 0)
        self._since = now

    @property
    def seq(self) -> int:
        """The number of the present record: another after each change."""
        ours = bool(self.stopping) + self.syncs.changes
        return 1 + ours + self._freeze.changes + self._workers.changes + self._writers.changes

    def stops(self, why: str) -> None:
        """Take note that the agent is about to end."""
        self.stopping = why

    def note(self, turn: Turn) -> str:
        """Count what has passed, and return the phase of the freeze; to be called after each event."""
        phase = phase_of(self._freeze, self._workers)
        present = phase, self._freeze.transaction.id if self._freeze.transaction else 0
        if present != self._present:
            self._present, self._since = present, turn.now
        self._counting.note(turn.now, phase, self._freeze.history.last)
        return phase

    def record(self, turn: Turn) -> Status:
        """Return the record of this turn."""
        now, freeze = turn.now, self._freeze
        owner = _owner(freeze, self._workers)
        phase, since = self.note(turn), now - self._since
        transaction = freeze.transaction
        ledger = transaction.ledger if transaction else None
        sync = self.syncs.newest() if freeze.thawed and not freeze.busy else None
        if sync is not None:
            owner, ledger = sync
            phase, since = Phase.SYNC.value, now - owner.phase_since
        limit_left = self._writers.limit_left(turn) if phase in WRITERS_PHASES else _limit_left(turn, owner)
        if freeze.expects(FreezeEvent.RETRY):
            limit_left = -1.0  # that of one try is none of what goes on
        partial = transaction is not None and transaction.options.partial
        return Status(
            state=freeze.state.name,
            code=int(freeze.state),
            seq=self.seq,
            freeze_id=transaction.id if transaction else 0,
            phase=phase,
            since=since,
            limit_left=limit_left,
            hold_left=max(0.0, round(freeze.hold_ends - now, 6)) if freeze.hold_ends else -1.0,
            error=freeze.error,
            mounts=_mounts(ledger, now, partial=partial) if ledger else (),
            progress=_progress(ledger, phase) if ledger and phase in _MOVES else Progress(),
            workers=tuple(_worker(one, now) for one in self._workers),
            writers=self._writers.status(now),
            last=freeze.history.last,
            audit=records.Audit(self._audit.waiting, self._audit.dropped),
            version=self._version,
            uptime=now - self._counting.start,
            totals=self._counting.record(),
            left_out_counts=ledger.plan.left_out_counts if ledger else {},
            stopping=self.stopping,
        )
