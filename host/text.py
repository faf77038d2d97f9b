"""From records to plain lines or JSON for an operator. Pure; `printable` escapes every line for a terminal."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ..agent.api import forecast, summary, timeofday
from ..agent.api.bounds import also_at
from ..agent.api.records import (
    Audit,
    Last,
    LeftOut,
    Mount,
    MountStatus,
    PastFreeze,
    Plan,
    PlannedWriter,
    Progress,
    Status,
    WorkerStatus,
    WriterStatus,
)
from ..agent.api.states import Phase
from ..agent.api.structs import replace
from ..agent.api.text import left, printable, size, took
from . import answers as answering
from . import folded
from .folded import count as count

_KERNEL = {"disk-sleep": "waits in the kernel (D)", "zombie": "dead, not reaped (Z)", "stopped": "stopped (T)"}
LEFT_OUT = "left-out"
PSEUDO = "pseudo"
_LONG = 2.0  # seconds in one phase; after that a worker in D is worth a line of `watch`
_SYNCING = ("sync", "freeze")
_GOING = ("syncing", "freezing", "thawing")


def to_json(data: Any, indent: int | None = None) -> str:
    """Return the data as JSON; bytes as base64."""
    return json.dumps(data, indent=indent, default=lambda value: base64.b64encode(value).decode())


def status_lines(status: Status, *, verbose: bool = False) -> Iterator[str]:
    """Say what a status record answers; with `verbose` all of it: each file system, workers, audit."""
    yield headline(status)
    if not status.stock:
        yield from answering.lines(status)
    if going := moved(status.progress):
        yield f"  {going}"
    rows = folded.planned(status.mounts, verbose=verbose)
    if folded.planned(status.mounts, verbose=True):
        yield "file systems"
        yield from table([mount_row(mount) for mount in rows])
        yield from (f"  {line}" for line in folded.counted_planned(status.mounts, rows))
    yield from _left_out_lines(status, verbose=verbose)
    if status.writers:
        yield "writers"
        yield from table([writer_row(writer) for writer in status.writers])
    if status.workers and verbose:
        yield "workers"
        yield from table([worker_row(worker) for worker in status.workers])
    yield f"last freeze: {last_freeze(status.last)}" if status.last else "last freeze: none since the agent started"
    if verbose or status.audit.dropped:
        yield f"audit: {audit_line(status.audit)}"
    yield f"agent: version {status.version or 'unknown'}, up {known(status.uptime)}"


def plan_lines(plan: Plan, *, verbose: bool = False) -> Iterator[str]:
    """Say what a freeze would do, level by level, and what it would leave out; with `verbose` each by name."""
    yield f"a freeze would freeze {count(len(plan.mounts))}" + (", level by level" if plan.mounts else "")
    for level in sorted({mount.level for mount in plan.mounts}):
        yield f"level {level}"
        yield from table([planned_row(mount, plan) for mount in plan.mounts if mount.level == level])
    yield from _left_out_lines(plan, verbose=verbose)
    yield from (f"note: {note}" for note in plan.notes)
    yield from forecast.lines(plan)
    if plan.writers:
        yield "writers"
        yield from table([planned_writer_row(writer) for writer in plan.writers])


def _left_out_lines(record: Plan | Status, *, verbose: bool) -> Iterator[str]:
    shown = folded.all_left_out(record)
    rows = folded.left_out(shown, verbose=verbose)
    counted = list(folded.counted_left_out(shown, record.left_out_counts, rows))
    if rows or counted:
        yield "left out"
    yield from table([left_out_row(left) for left in rows])
    yield from (f"  {line}" for line in counted)


def changes(before: Status | None, after: Status) -> Iterator[str]:
    """Say what has changed from `before` to `after`: state, phase, mounts, progress, stuck workers."""
    if before is None or _where(before) != _where(after):
        yield headline(after)
    earlier = {mount.mountpoint: mount for mount in before.mounts} if before else {}
    for mount in _planned(after.mounts):
        old = earlier.get(mount.mountpoint)
        if old is None or (old.state, old.error) != (mount.state, mount.error):
            yield "  ".join(cell for cell in mount_row(mount) if cell)
    states = {writer.name: (writer.state, writer.error) for writer in before.writers} if before else {}
    for writer in after.writers:
        if states.get(writer.name) != (writer.state, writer.error):
            yield "writer " + "  ".join(cell for cell in writer_row(writer) if cell)
    going = moved(after.progress) if after.phase in _SYNCING else ""
    if going and (before is None or moved(before.progress) != going):
        yield going
    shown = {worker.id for worker in before.workers if waits(worker, before)} if before else set()
    for worker in after.workers:
        if waits(worker, after) and worker.id not in shown:
            yield "worker " + ", ".join(cell for cell in worker_row(worker) if cell)
    # While its writers are let go it is not known how a freeze ended.
    if after.last and (before is None or before.last != after.last) and after.phase != Phase.RELEASE.value:
        yield f"last freeze: {last_freeze(after.last)}"


def held(status: Status) -> str:
    """Return the number of a freeze, and when it ends: " (freeze 17); thaws by itself at 08:59:12 (in 1 min)"."""
    if status.state != "FROZEN":
        return f"; the state is now {status.state}"
    return f" (freeze {status.freeze_id}); {thaws(status.hold_left)}"


def thaws(seconds: float) -> str:
    """Return when a freeze ends if nobody ends it, in so many seconds; -1 if its hold has no limit."""
    if seconds < 0:
        return "its hold has no limit"
    return f"thaws by itself at {answering.at(seconds)} (in {left(seconds)})"


def not_frozen(mounts: Sequence[MountStatus]) -> Iterator[str]:
    """Name the planned file systems that are not frozen although the freeze succeeded."""
    rows = [mount_row(mount) for mount in mounts if mount.state in ("unsupported", "busy", "failed")]
    if rows:
        yield "not frozen:"
        yield from table(rows)


def waits(worker: WorkerStatus, status: Status) -> bool:
    """Return whether a worker has been in the kernel for so long that an operator should know."""
    return worker.process_state == "disk-sleep" and status.since >= _LONG


def _planned(mounts: Sequence[MountStatus]) -> list[MountStatus]:
    return [mount for mount in mounts if mount.state != LEFT_OUT]


def _where(status: Status) -> tuple[object, ...]:
    return status.state, status.phase, status.freeze_id, status.error


S = TypeVar("S", bound=Status)


def aged(status: S, seconds: float) -> S:
    """Return the record as it would be so many seconds later if only time passed."""

    def up(value: float) -> float:
        return value + seconds if value >= 0 else value

    def down(value: float) -> float:
        return max(0.0, value - seconds) if value >= 0 else value

    return replace(
        status,
        since=up(status.since),
        limit_left=down(status.limit_left),
        hold_left=down(status.hold_left),
        mounts=tuple(
            replace(mount, seconds=up(mount.seconds), eta=down(mount.eta)) if mount.state in _GOING else mount
            for mount in status.mounts
        ),
        progress=replace(status.progress, eta=down(status.progress.eta)),
        workers=tuple(replace(worker, seconds=up(worker.seconds)) for worker in status.workers),
        uptime=up(status.uptime),
    )


def headline(status: Status) -> str:
    facts = []
    if status.phase:
        facts.append(f"{status.phase} for {known(status.since)}")
    if status.freeze_id > 0 and status.state != "THAWED":
        facts.append(f"freeze {status.freeze_id}")
    if status.hold_left >= 0:
        facts.append(f"thaws in {left(status.hold_left)}")
    elif status.limit_left >= 0:
        facts.append(f"limit in {left(status.limit_left)}")
    if status.error:
        facts.append(status.error)
    return f"{status.state}: {', '.join(facts)}" if facts else status.state


def moved(progress: Progress) -> str:
    facts = []
    if progress.flushed_bytes >= 0:
        facts.append(f"{size(progress.flushed_bytes)} written")
    if progress.dirty_bytes >= 0:
        facts.append(f"{size(progress.dirty_bytes)} dirty")
    if progress.bytes_per_second >= 0:
        facts.append(f"{size(progress.bytes_per_second)}/s")
    if progress.eta >= 0:
        facts.append(f"{left(progress.eta)} left")
    return ", ".join(facts)


def mount_row(mount: MountStatus) -> tuple[str, ...]:
    facts = [mount.reason, mount.error or (f"errno {mount.errno}" if mount.errno > 0 else ""), also(mount)]
    return (
        mount.state,
        mount.mountpoint,
        mount.fstype,
        device(mount),
        _times(mount),
        ", ".join(fact for fact in facts if fact),
    )


def _times(mount: MountStatus) -> str:
    """Return for how long what is being done has gone on, or else how long its sync and its standstill were."""
    if mount.state in _GOING and mount.seconds >= 0:
        return took(mount.seconds)
    spent = {"sync": mount.sync_seconds, "still": mount.still_seconds}
    return ", ".join(f"{name} {took(seconds)}" for name, seconds in spent.items() if seconds >= 0)


def device(mount: Mount | MountStatus) -> str:
    """Return the device of a file system, with both of its names if it is the device-mapper's."""
    return (mount.source or mount.device) + (f" ({mount.dm})" if mount.dm else "")


def worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    state = _KERNEL.get(worker.process_state, worker.process_state)
    return f"{worker.id} {worker.rpc}", f"pid {worker.pid}", worker.phase, known(worker.seconds), state


def planned_row(mount: Mount, plan: Plan) -> tuple[str, ...]:
    below = [plan.mounts[host].mountpoint for host in mount.hosts if 0 <= host < len(plan.mounts)]
    facts = [also(mount), where(mount), f"lies on {', '.join(below)}" if below else ""]
    return mount.mountpoint, mount.fstype, device(mount), ", ".join(fact for fact in facts if fact)


def planned_writer_row(writer: PlannedWriter) -> tuple[str, ...]:
    facts = [
        "" if writer.required else "not required",
        f"after {', '.join(writer.after)}" if writer.after else "",
        ", ".join(writer.paths) or "its paths are not known",
        f"NOT FROZEN: {', '.join(writer.not_frozen)}" if writer.not_frozen else "",
        writer.error,
    ]
    return writer.name, writer.type, ", ".join(fact for fact in facts if fact)


def writer_row(writer: WriterStatus) -> tuple[str, ...]:
    stood = f"held {took(writer.seconds.held)}" if writer.seconds.held >= 0 else ""
    facts = [
        "" if writer.required else "not required",
        *(f"{name} {_fact(value)}" for name, value in writer.info.items()),
        f"NOT FROZEN: {', '.join(writer.not_frozen)}" if writer.not_frozen else "",
        writer.error,
    ]
    return writer.name, writer.type, writer.state, stood, ", ".join(fact for fact in facts if fact)


def _fact(value: str) -> str:
    """Return what a writer tells for one line: a file of many is for the report."""
    lines = value.count("\n")
    return f"of {count(lines, 'line')}" if lines else printable(value)


def left_out_row(left: LeftOut | MountStatus) -> tuple[str, ...]:
    facts = also(left), where(left) if isinstance(left, LeftOut) else left.error
    return left.reason, left.mountpoint, left.fstype, ", ".join(filter(None, facts))


def where(record: Mount | LeftOut) -> str:
    return f"only in the mount namespace of {record.namespace}" if record.namespace else ""


def also(record: Mount | LeftOut | MountStatus) -> str:
    return f"also {also_at(record)}" if record.aliases else ""


def last_freeze(last: Last) -> str:
    return (f"{last.freeze_id} " if last.freeze_id > 0 else "") + ended(last)


def ended(last: Last) -> str:
    """Say how a freeze ended, and when."""
    return summary.sentence(last) + (f"; ended {timeofday.moment(last.at)}" if last.at >= 0 else "")


def history_lines(past: Sequence[PastFreeze]) -> Iterator[str]:
    """Say what became of the last freezes, the newest first."""
    if not past:
        yield "no freeze since the agent started"
        return
    newest_first = past[::-1]
    heads = ("freeze", "began (UTC)", "by", "result", "synced", "sync", "still")
    head, *rows = table([heads, *map(_past_row, newest_first)])
    yield head
    for one, row in zip(newest_first, rows, strict=True):
        yield row
        if one.error:
            yield f"          {one.error}"


def _past_row(one: PastFreeze) -> tuple[str, ...]:
    return (
        str(one.freeze_id),
        timeofday.day_utc(one.began) if one.began >= 0 else "-",
        _asked_by(one.by) or "-",
        summary.result(one),
        size(one.synced_bytes) if one.synced_bytes >= 0 else "-",
        took(one.sync_seconds) if one.sync_seconds >= 0 else "-",
        took(one.stall_seconds) if one.stall_seconds >= 0 else "-",
    )


def _asked_by(by: str) -> str:
    """Return who asked for a freeze in a word or two: a process, a user who is not root, or the channel of the host."""
    who, _, channel = by.partition(" at ")
    fields = dict(field.split(":", 1) for field in who.split(",") if ":" in field)
    if "pid" in fields:
        user = fields.get("uid", "0")
        return f"pid {fields['pid']}" if user == "0" else f"uid {user}"
    kind = channel.partition(":")[0]
    return who if not kind or fields.get("cid") not in (None, "2") else kind


def audit_line(audit: Audit) -> str:
    waits = "waits" if audit.waiting == 1 else "wait"
    waiting = f"{count(audit.waiting, 'record')} {waits} for the thaw" if audit.waiting else "no record waits"
    return waiting + (f", {count(audit.dropped, 'record')} lost" if audit.dropped else "")


def known(seconds: float) -> str:
    return took(seconds) if seconds >= 0 else "an unknown time"


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Align the cells in columns. Cells are escaped before they are measured."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [min(max(map(len, column)), 40) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
