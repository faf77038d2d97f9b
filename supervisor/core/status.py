"""The status record (`agent.api.records.Status`): a copy of the present state, made without asking a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...agent.api import records
from ...agent.api.records import MountStatus, Progress, Status, WorkerStatus
from ...agent.api.states import FreezeEvent, MountState, Phase
from .audit import Audit
from .freeze import Freeze
from .ledger import Ledger
from .totals import Counting
from .transaction import Transaction
from .turn import Turn
from .workers import Worker, Workers
from .writers import Writers

WRITERS_PHASES = (Phase.PREPARE.value, Phase.QUIESCE.value, Phase.CONFIRM.value, Phase.RELEASE.value)

_LEFT_OUT = (MountState.UNSUPPORTED, MountState.BUSY, MountState.FAILED)


def dump(status: Status, process_state: Callable[[int], str], troubles: int = 0) -> dict[str, Any]:
    """Return the record as it is sent; `process_state` returns the process state of a pid."""
    workers = (replace(w, process_state=process_state(w.pid) if w.pid else "starting") for w in status.workers)
    return records.dump(replace(status, workers=tuple(workers), troubles=troubles))


def _mounts(transaction: Transaction | None) -> tuple[MountStatus, ...]:
    if transaction is None:
        return ()
    ledger = transaction.ledger
    left = _LEFT_OUT if transaction.options.partial else _LEFT_OUT[:1]
    planned = [
        MountStatus(
            mark.mount.mountpoint,
            mark.mount.aliases,
            mark.mount.device,
            mark.mount.fstype,
            mark.mount.level,
            mark.state.value,
            mark.errno,
            mark.error,
            mark.seconds,
            mark.state.value if mark.state in left else "",
            mark.mount.more_aliases,
        )
        for mark in ledger.marks
    ]
    out = MountState.LEFT_OUT.value
    left_out = [
        MountStatus(m.mountpoint, m.aliases, m.device, m.fstype, -1, out, 0, "", 0.0, m.reason, m.more_aliases)
        for m in ledger.plan.left_out
    ]
    return (*planned, *left_out)


def _progress(ledger: Ledger) -> Progress:
    found = ledger.progress
    return Progress(found.dirty_bytes, found.flushed_bytes, found.bytes_per_second, found.eta)


def _owner(freeze: Freeze, workers: Workers) -> Worker | None:
    """Return the worker whose phase and limit are those of the freeze; None if it has yet to begin the thaw."""
    if freeze.thawed or freeze.transaction is None:
        return None
    ledger = freeze.transaction.ledger
    thawer = min(ledger.thawers, default=None)
    worker = workers.get(ledger.freezer if thawer is None else thawer)
    waits = worker is not None and worker.phase is not Phase.THAW and freeze.expects(FreezeEvent.SETTLED)
    return None if waits else worker


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
    """The makers of the status record, and of what is counted from its phases."""

    def __init__(
        self, freeze: Freeze, workers: Workers, writers: Writers, audit: Audit, version: str, now: float
    ) -> None:
        self._freeze = freeze
        self._workers = workers
        self._writers = writers
        self._audit = audit
        self._version = version
        self._counting = Counting(now)

    @property
    def seq(self) -> int:
        """The number of the present record: another after each change."""
        return 1 + self._freeze.changes + self._workers.changes + self._writers.changes

    def note(self, turn: Turn) -> str:
        """Count what has passed, and return the phase; to be called after each event."""
        phase = phase_of(self._freeze, self._workers)
        self._counting.note(turn.now, phase, self._freeze.history.last)
        return phase

    def record(self, turn: Turn) -> Status:
        """Return the record of this turn."""
        now, freeze = turn.now, self._freeze
        owner = _owner(freeze, self._workers)
        phase = self.note(turn)
        transaction = freeze.transaction
        limit_left = turn.left(owner.key) if owner and owner.limit else -1.0
        if phase in WRITERS_PHASES:
            limit_left = self._writers.limit_left(turn)
        return Status(
            state=freeze.state.name,
            code=int(freeze.state),
            seq=self.seq,
            freeze_id=transaction.id if transaction else 0,
            phase=phase,
            since=now - (owner.phase_since if owner else freeze.busy_since if freeze.busy else freeze.since),
            limit_left=limit_left,
            hold_left=max(0.0, freeze.hold_ends - now) if freeze.hold_ends else -1.0,
            error=freeze.error,
            mounts=_mounts(transaction),
            progress=_progress(transaction.ledger) if transaction and phase in ("sync", "freeze") else Progress(),
            workers=tuple(WorkerStatus(w.id, w.pid, w.row.name, w.phase.value, now - w.born) for w in self._workers),
            writers=self._writers.status(now),
            last=freeze.history.last,
            audit=records.Audit(self._audit.waiting, self._audit.dropped),
            version=self._version,
            uptime=now - self._counting.start,
            totals=self._counting.record(),
            left_out_counts=transaction.ledger.plan.left_out_counts if transaction else {},
        )
