"""The status record: frozen copies, so that whoever reads it needs no lock and asks no worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...agent.api.states import MountState
from ...agent.worker import messages
from .freeze import Freeze
from .ledger import Ledger
from .transaction import Last
from .turn import Turn
from .workers import Workers


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One file system: what has been done to it, or the reason why it is left out."""

    mountpoint: str
    aliases: tuple[str, ...]
    device: str
    fstype: str
    level: int
    state: str
    errno: int
    error: str
    seconds: float
    reason: str


_MOUNT_FIELDS = tuple(field.name for field in fields(MountRecord))


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker; `seconds` since it was forked. Its process state is read when the record is sent."""

    id: int
    pid: int
    rpc: str
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """The status record of the design, section 7. Seconds and bytes that do not apply are -1, texts are empty."""

    state: str
    code: int
    seq: int
    freeze_id: int
    phase: str
    since: float
    limit_left: float
    hold_left: float
    error: str
    mounts: tuple[MountRecord, ...]
    progress: messages.Progress | None
    workers: tuple[WorkerRecord, ...]
    last: Last | None
    waiting: int
    dropped: int
    version: str
    uptime: float

    def dump(self, process_state: Callable[[int], str]) -> dict[str, Any]:
        """Return the record as it is sent; `process_state` reads a pid's state."""
        record = {name: getattr(self, name) for name in ("state", "code", "seq", "freeze_id", "phase", "since")}
        record |= {"limit_left": self.limit_left, "hold_left": self.hold_left, "error": self.error}
        record["mounts"] = [{name: getattr(mount, name) for name in _MOUNT_FIELDS} for mount in self.mounts]
        progress = self.progress or messages.Progress("")
        record["progress"] = {
            "dirty_bytes": progress.dirty_bytes,
            "flushed_bytes": progress.flushed_bytes,
            "bytes_per_second": progress.bytes_per_second,
            "eta": progress.eta,
        }
        record["workers"] = [
            asdict(w) | {"process_state": process_state(w.pid) if w.pid else "starting"} for w in self.workers
        ]
        record["last"] = asdict(self.last) if self.last else {}
        record["audit"] = {"waiting": self.waiting, "dropped": self.dropped}
        return record | {"version": self.version, "uptime": self.uptime}


def _mounts(ledger: Ledger | None) -> tuple[MountRecord, ...]:
    if ledger is None:
        return ()
    planned = [
        MountRecord(
            mark.mount.mountpoint,
            mark.mount.aliases,
            mark.mount.device,
            mark.mount.fstype,
            mark.mount.level,
            mark.state.value,
            mark.errno,
            mark.error,
            mark.seconds,
            "",
        )
        for mark in ledger.marks
    ]
    left_out = [
        MountRecord(m.mountpoint, m.aliases, m.device, m.fstype, -1, MountState.LEFT_OUT.value, 0, "", 0.0, m.reason)
        for m in ledger.plan.left_out
    ]
    return (*planned, *left_out)


def record(
    turn: Turn, freeze: Freeze, workers: Workers, seq: int, version: str, audit: tuple[int, int], start: float
) -> Record:
    """Return the record of this turn; `audit` is (waiting, dropped), `start` when the daemon started."""
    now = turn.now
    owner, phase = freeze.owner, freeze.phase
    transaction = freeze.transaction
    return Record(
        state=freeze.state.name,
        code=int(freeze.state),
        seq=seq,
        freeze_id=transaction.id if transaction else 0,
        phase=phase,
        since=now - (owner.phase_since if owner else freeze.since),
        limit_left=turn.left(owner.key) if owner and owner.limit else -1.0,
        hold_left=max(0.0, freeze.hold_ends - now) if freeze.hold_ends else -1.0,
        error=freeze.error,
        mounts=_mounts(transaction.ledger if transaction else None),
        progress=transaction.ledger.progress if transaction and phase in ("sync", "freeze") else None,
        workers=tuple(WorkerRecord(w.id, w.pid, w.row.name, w.phase.value, now - w.born) for w in workers),
        last=freeze.last,
        waiting=audit[0],
        dropped=audit[1],
        version=version,
        uptime=now - start,
    )
