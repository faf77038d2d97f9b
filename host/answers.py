"""What an operator asks of a status record at three in the morning, answered in words. Pure.

Is anything frozen now, since when, on which disk, does it end by itself and when, what shall I do, what was not harmed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from ..agent.api import timeofday
from ..agent.api.records import MountStatus, Status, WorkerStatus
from ..agent.api.text import left, listed, printable, took
from .options import PROG

_NAMED = 3
_GOING = ("syncing", "freezing", "thawing")
_IN_KERNEL = "disk-sleep"
_LONG = 2.0  # seconds in the kernel that are worth a word


def answers(status: Status) -> Iterator[tuple[str, str]]:
    """Yield what is asked, in a word, and the answer, the most urgent first."""
    planned = [mount for mount in status.mounts if mount.state != "left-out"]
    frozen = [mount for mount in planned if mount.may_be_frozen]
    yield "now", _now(status, frozen, len(planned))
    slow = _slow(status, planned, frozen)
    for mount in slow[:_NAMED]:
        yield "disk", _disk(mount)
    if len(slow) > _NAMED:
        yield "disk", f"and {len(slow) - _NAMED} more"
    for worker in status.workers:
        if _hangs(worker) and worker.phase != "hold":
            yield "process", _waits(status, worker)
    if ends := _ends(status, frozen):
        yield "ends", ends
    if to_do := _to_do(status, frozen, slow):
        yield "to do", to_do
    if status.state == "ERROR" and planned and (fine := len(planned) - len({*frozen, *slow})):
        yield "others", f"{fine} of {len(planned)} are not frozen"


def lines(status: Status) -> Iterator[str]:
    """Say the answers in lines; the word stands once."""
    before = ""
    for asked, answer in answers(status):
        yield f"  {'' if asked == before else asked:<8} {printable(answer)}"
        before = asked


def _count(number: int) -> str:
    return "1 file system" if number == 1 else f"{number} file systems"


def _now(status: Status, frozen: Sequence[MountStatus], planned: int) -> str:
    since = max((mount.still_seconds for mount in frozen), default=-1.0)
    still = "; who writes to them waits" + (f", for {took(since)}" if since >= 0 else "")
    match status.state:
        case "THAWED" if status.phase == "sync":
            return f"nothing is frozen, applications run; a sync is under way for {took(max(0.0, status.since))}"
        case "THAWED":
            return "nothing is frozen, applications run"
        case "FROZEN":
            return f"{_count(len(frozen) or planned)} frozen{still}"
        case "INPROGRESS" if not frozen:
            return "nothing is frozen yet, applications run"
        case "INPROGRESS":
            return f"{_count(len(frozen))} frozen, or about to be{still}"
        case "ERROR" if not frozen:
            return "nothing is frozen, applications run; there is no new freeze until this ends"
        case "ERROR" | "THAWINPROGRESS" if frozen:
            return f"{len(frozen)} of {_count(planned)} may be frozen still{still}"
        case "THAWINPROGRESS":
            return "nothing is frozen any more; its workers end"
    return f"the state is {status.state}"


def _slow(status: Status, planned: Sequence[MountStatus], frozen: Sequence[MountStatus]) -> list[MountStatus]:
    """Return what the freeze or thaw waits for, the longest first."""
    if status.state == "FROZEN":
        return []
    those = [mount for mount in planned if mount.state in _GOING]
    if status.state == "ERROR":
        those += [mount for mount in frozen if mount not in those]
    return sorted(those, key=lambda mount: -mount.seconds)


def _disk(mount: MountStatus) -> str:
    known = mount.source and mount.source != mount.mountpoint
    where = f" on {mount.source}" if known else f", device {mount.device}"
    where += f" ({mount.dm})" if mount.dm else ""
    doing = f"{mount.state} for {took(mount.seconds)}" if mount.state in _GOING and mount.seconds >= 0 else mount.state
    facts = [f"{mount.mountpoint}, {mount.fstype}{where}: {doing}"]
    if mount.error:
        facts.append(mount.error)
    if mount.bytes_per_second >= 0:
        facts.append(f"{mount.bytes_per_second / (1 << 20):.1f} MiB/s")
    if mount.eta >= 0:
        facts.append(f"about {left(mount.eta)} left")
    return ", ".join(facts)


def _hangs(worker: WorkerStatus) -> bool:
    return worker.process_state == _IN_KERNEL and worker.seconds >= _LONG


def _waits(status: Status, worker: WorkerStatus) -> str:
    harmless = "; it freezes nothing any more" if status.state == "THAWED" and worker.rpc == "va.fsfreeze" else ""
    doing = f" while {worker.doing}" if worker.doing else " for its disk"
    return f"worker {worker.id} {worker.rpc} (pid {worker.pid}) waits in the kernel{doing}{harmless}"


def _ends(status: Status, frozen: Sequence[MountStatus]) -> str:
    if status.stopping:
        more = "" if status.state == "THAWED" else ", when nothing may be frozen any more"
        return f"the agent is stopping ({status.stopping.rpartition(': ')[2]}){more}"
    limit = f" in {left(status.limit_left)}" if status.limit_left >= 0 else ""
    match status.state, status.phase:
        case "FROZEN", _ if status.hold_left >= 0:
            return f"it thaws by itself at {at(status.hold_left)} (in {left(status.hold_left)})"
        case "FROZEN", _:
            return "not by itself: the hold has no limit"
        case "ERROR", _:
            return "by itself when the disk answers: the agent tries again at least every 30 s"
        case "THAWINPROGRESS", _:
            return "when all is thawed"
        case _, "sync":
            about = f"in about {left(status.progress.eta)}; " if status.progress.eta >= 0 else ""
            return f"{about}gives up{limit}, and then nothing was frozen" if limit else about.removesuffix("; ")
        case "INPROGRESS", _:
            return f"gives up{limit}" + (", and thaws" if frozen else ", and then nothing was frozen") if limit else ""
    return ""


def at(seconds: float) -> str:
    """Return the time of day in so many seconds."""
    return timeofday.clock(time.time() + seconds)


def _to_do(status: Status, frozen: Sequence[MountStatus], slow: Sequence[MountStatus]) -> str:
    last = status.last
    match status.state, status.phase:
        case "ERROR", _:
            names = [_kernel_name(mount) for mount in slow] or ["the disk that is named above"]
            forget = f"; if it never will, boot, or `{PROG} forget MOUNTPOINT`" if frozen else ""
            return f"mend or detach {listed(names)}{_dmesg(slow)}{forget}"
        case "FROZEN", _:
            return f"nothing, if a backup runs; else `{PROG} thaw`, and what was copied meanwhile is worthless"
        case "INPROGRESS", _ if not frozen:
            return f"nothing; `{PROG} thaw` cancels it, and nothing is frozen"
        case "INPROGRESS", _:
            return f"nothing; `{PROG} thaw` cancels it, and thaws"
        case "THAWED", "" if any(_hangs(worker) and worker.doing for worker in status.workers):
            return "mend or detach the disk that it waits for (`dmesg`); until then leave it out with --exclude"
        case "THAWED", "" if last is not None and last.outcome in ("broken", "expired"):
            return f"throw away what was copied during freeze {last.freeze_id}, and freeze again"
    return ""


def _kernel_name(mount: MountStatus) -> str:
    return mount.source if mount.source.startswith("/dev/") else f"the disk of {mount.mountpoint}"


def _dmesg(slow: Sequence[MountStatus]) -> str:
    names = [os.path.basename(mount.source) for mount in slow if mount.source.startswith("/dev/")]
    return f" (`dmesg | grep {names[0]}`)" if names else ""
