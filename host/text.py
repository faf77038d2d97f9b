"""Records to plain lines for an operator. Pure; `plain` is what every line passes on its way to a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .records import Audit, Last, LeftOut, MountStatus, Plan, PlannedMount, Progress, Status, WorkerStatus

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_KERNEL = {"disk-sleep": "waits in the kernel (D)", "zombie": "dead, not reaped (Z)", "stopped": "stopped (T)"}
_LEFT_OUT = "left-out"
_PSEUDO = "pseudo"
_LONG = 2.0  # seconds in one phase, from which on a worker in D is worth a line of `watch`
_SYNCING = ("sync", "freeze")


def plain(text: str) -> str:
    """Return `text` in one line that no terminal takes for a command: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int, noun: str = "file system") -> str:
    """Return "1 file system" or "3 file systems"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(number: float) -> str:
    """Return bytes in the unit that leaves few digits."""
    unit = 0
    while number >= 1024 and unit < len(_SIZES) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.4g} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Return seconds as 0.031 s, 41 s, 3 min 20 s, 5 h 2 min or 12 d 3 h."""
    if seconds < 10:
        return f"{round(seconds, 3):g} s"
    whole = round(seconds)
    for unit, below, name, name_below in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit:.12g} {name}" + (f" {rest} {name_below}" if rest else "")
    return f"{whole} s"


def status_lines(status: Status) -> Iterator[str]:
    """Say all of a status record, the state first."""
    yield _headline(status)
    if moved := _progress(status.progress):
        yield f"  {moved}"
    if status.mounts:
        named = [mount for mount in status.mounts if mount.reason != _PSEUDO]
        yield "file systems"
        yield from _table([_mount_row(mount) for mount in named])
        yield from _pseudo(len(status.mounts) - len(named))
    if status.workers:
        yield "workers"
        yield from _table([_worker_row(worker) for worker in status.workers])
    yield f"last freeze: {_last(status.last)}" if status.last else "last freeze: none since the agent started"
    yield f"audit: {_audit(status.audit)}"
    yield f"agent: version {status.version or 'unknown'}, up {_known(status.uptime)}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Say what a freeze would do, level by level, and what it would leave out."""
    yield f"a freeze would freeze {count(len(plan.mounts))}" + (", level by level" if plan.mounts else "")
    for level in sorted({mount.level for mount in plan.mounts}):
        yield f"level {level}"
        yield from _table([_planned_row(mount, plan) for mount in plan.mounts if mount.level == level])
    if plan.left_out:
        yield "left out"
        # What an operator may miss is named; of /proc and its like the number says enough.
        named = [left for left in plan.left_out if left.reason != _PSEUDO]
        yield from _table([_left_out_row(left) for left in sorted(named, key=lambda x: (x.reason, x.mountpoint))])
        yield from _pseudo(len(plan.left_out) - len(named))


def changes(before: Status | None, after: Status) -> Iterator[str]:
    """Say what of `after` matters to one who has seen `before`: state, phase, mounts, progress, stuck workers."""
    if before is None or _where(before) != _where(after):
        yield _headline(after)
    known = {mount.mountpoint: mount for mount in before.mounts} if before else {}
    for mount in _planned(after.mounts):
        old = known.get(mount.mountpoint)
        if old is None or (old.state, old.error) != (mount.state, mount.error):
            yield "  ".join(cell for cell in _mount_row(mount) if cell)
    moved = _progress(after.progress) if after.phase in _SYNCING else ""
    if moved and (before is None or _progress(before.progress) != moved):
        yield moved
    shown = {worker.id for worker in before.workers if _waits(worker, before)} if before else set()
    for worker in after.workers:
        if _waits(worker, after) and worker.id not in shown:
            yield "worker " + ", ".join(cell for cell in _worker_row(worker) if cell)
    if after.last and (before is None or before.last != after.last):
        yield f"last freeze: {_last(after.last)}"


def held(status: Status) -> str:
    """Say how long a freeze is held and which one it is: ", held for 60 s (freeze 17)"."""
    if status.state != "FROZEN":
        return f"; the state is now {status.state}"
    until = f"held for {duration(status.hold_left)}" if status.hold_left >= 0 else "held without a limit"
    return f", {until} (freeze {status.freeze_id})"


def not_frozen(mounts: Sequence[MountStatus]) -> Iterator[str]:
    """Name the planned file systems that a freeze that succeeded has not frozen."""
    rows = [_mount_row(mount) for mount in mounts if mount.state in ("unsupported", "busy", "failed")]
    if rows:
        yield "not frozen:"
        yield from _table(rows)


def _waits(worker: WorkerStatus, status: Status) -> bool:
    return worker.process_state == "disk-sleep" and status.since >= _LONG


def _planned(mounts: Sequence[MountStatus]) -> list[MountStatus]:
    return [mount for mount in mounts if mount.state != _LEFT_OUT]


def _pseudo(number: int) -> Iterator[str]:
    if number:
        yield f"  {count(number)} on no disk ({_PSEUDO})"


def _where(status: Status) -> tuple[object, ...]:
    return status.state, status.phase, status.freeze_id, status.error


def _headline(status: Status) -> str:
    facts = []
    if status.phase:
        facts.append(f"{status.phase} for {_known(status.since)}")
    if status.freeze_id > 0 and status.state != "THAWED":
        facts.append(f"freeze {status.freeze_id}")
    if status.hold_left >= 0:
        facts.append(f"thaws in {duration(status.hold_left)}")
    elif status.limit_left >= 0:
        facts.append(f"limit in {duration(status.limit_left)}")
    if status.error:
        facts.append(status.error)
    return f"{status.state}: {', '.join(facts)}" if facts else status.state


def _progress(progress: Progress) -> str:
    facts = []
    if progress.flushed_bytes >= 0:
        facts.append(f"{size(progress.flushed_bytes)} written")
    if progress.dirty_bytes >= 0:
        facts.append(f"{size(progress.dirty_bytes)} dirty")
    if progress.bytes_per_second >= 0:
        facts.append(f"{size(progress.bytes_per_second)}/s")
    if progress.eta >= 0:
        facts.append(f"{duration(progress.eta)} left")
    return ", ".join(facts)


def _mount_row(mount: MountStatus) -> tuple[str, ...]:
    took = duration(mount.seconds) if mount.seconds > 0 and mount.state != _LEFT_OUT else ""
    facts = [mount.reason, mount.error or (f"errno {mount.errno}" if mount.errno > 0 else ""), _also(mount.aliases)]
    return mount.state, mount.mountpoint, mount.fstype, took, ", ".join(fact for fact in facts if fact)


def _worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    state = _KERNEL.get(worker.process_state, worker.process_state)
    return f"{worker.id} {worker.rpc}", f"pid {worker.pid}", worker.phase, _known(worker.seconds), state


def _planned_row(mount: PlannedMount, plan: Plan) -> tuple[str, ...]:
    below = [plan.mounts[host].mountpoint for host in mount.hosts if 0 <= host < len(plan.mounts)]
    facts = [_also(mount.aliases), f"lies on {', '.join(below)}" if below else ""]
    return mount.mountpoint, mount.fstype, mount.source or mount.device, ", ".join(fact for fact in facts if fact)


def _left_out_row(left: LeftOut) -> tuple[str, ...]:
    return left.reason, left.mountpoint, left.fstype, _also(left.aliases)


def _also(aliases: Sequence[str]) -> str:
    return f"also {', '.join(aliases)}" if aliases else ""


def _last(last: Last) -> str:
    facts = [f"{last.freeze_id} {last.outcome}"]
    if last.held_seconds >= 0:
        how = "without a break" if last.held_continuously else "with a break: a snapshot taken meanwhile is worthless"
        facts.append(f"held {duration(last.held_seconds)} {how}")
    if last.stall_seconds >= 0:
        facts.append(f"writers stood still {duration(last.stall_seconds)}")
    if last.error:
        facts.append(last.error)
    if last.at >= 0:
        facts.append(f"ended {_clock(last.at)}")
    return ", ".join(facts)


def _audit(audit: Audit) -> str:
    waiting = f"{count(audit.waiting, 'record')} wait for the thaw" if audit.waiting else "no record waits"
    return waiting + (f", {count(audit.dropped, 'record')} lost" if audit.dropped else "")


def _clock(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, OSError, ValueError):
        return f"at second {at:g}"


def _known(seconds: float) -> str:
    return duration(seconds) if seconds >= 0 else "an unknown time"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Line up the cells. A row is escaped before it is measured."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [min(max(map(len, column)), 40) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
