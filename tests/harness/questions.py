"""What is asked after each blow: is all writable, is the state THAWED, does the next freeze work, is nothing left?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from .daemon import Daemon, process_line
from .filesystems import LoopFs
from .hosts import call
from .processes import process_state, until, wait_gone
from .rig import Footprint, Rig

BOUND = 10.0  # seconds to THAWED and to the end of a write
_DEFECT = re.compile(r"Traceback|AssertionError|\[INTERNAL|fault=-32603|InternalError|Error: .*\(\w+\.py:\d+\)")


def unwell(log: str) -> list[str]:
    """Return the lines of a daemon's log that tell of a defect."""
    return [line for line in log.splitlines() if _DEFECT.search(line)]


def resting(rig: Rig, daemon: Daemon) -> Footprint:
    """Return the footprint of a daemon that has just started, for `assert_well`; nobody may be connected.

    It has answered on a connection that came after all others: they are closed, and who ended is reaped.
    """
    host = daemon.proxy()
    assert host.va.ping() == "dummy"
    prints = [rig.footprint(daemon)]

    def same() -> bool:
        # Whether grace periods are expedited is of the whole machine: another agent on it may freeze just now.
        prints.append(replace(rig.footprint(daemon), expedited=()))
        if daemon.children():
            return False  # who stood by for the thaw is dismissed after its answer, and ends in its own time
        return len(prints) > 3 and prints[-1] == prints[-2] == prints[-3]

    until(same, 30, "a daemon at rest")
    host("close")()
    fds = list(prints[-1].fds)
    fds.remove("socket")  # that connection
    return replace(prints[-1], fds=tuple(fds))


def stopped_worker(daemon: Daemon) -> psutil.Process:
    """Wait until a worker is stopped, and return it."""

    def stopped() -> list[psutil.Process]:
        return [child for child in daemon.children() if process_state(child.pid) == "T"]

    until(lambda: bool(stopped()), 10, "a worker stopped")
    return stopped()[0]


def assert_writable(every: Sequence[LoopFs]) -> None:
    """Assert that a write to each ends, which it does on none that is frozen."""
    writes = [(fs, fs.write()) for fs in every]
    for fs, write in writes:
        try:
            assert write.answer(BOUND) == "ok", f"a write to {fs} failed"
        except TimeoutError:
            raise AssertionError(f"a write to {fs} did not end within {BOUND:g} s") from None
    for fs in every:
        fs.end_probes()


def assert_frozen(every: Sequence[LoopFs]) -> None:
    for fs in every:
        fs.assert_frozen()
        fs.end_probes()


def forgets(daemon: Daemon) -> None:
    """Wait until there is nothing to tell a thaw any more: what was told is told again for a while."""
    until(lambda: call(daemon, "va.fsthaw") == 0, 5, "va.fsthaw answers 0")


def assert_well(
    rig: Rig, daemon: Daemon, every: Sequence[LoopFs], rest: Footprint | None = None, *, log: bool = True
) -> None:
    """Ask all the questions; nobody may be owed the news of a broken freeze. `log`: no defect may be logged."""
    daemon.wait_state("THAWED", BOUND)
    assert_writable(every)
    forgets(daemon)
    assert not (daemon.state_dir / "journal").exists(), "the journal is left"
    assert call(daemon, "va.fsfreeze", {"hold_limit": 3}) == len(every)  # a busy machine takes its time to look
    assert_frozen(every)
    assert call(daemon, "va.fsthaw") == len(every)
    assert_writable(every)
    until(lambda: not daemon.children(), 5, "no worker is left")
    if rest is not None:
        rig.assert_unchanged(rest, daemon)
    left = sorted(path.name for path in daemon.state_dir.iterdir() if path.name not in ("lock", "freeze-id"))
    assert not left, f"left in the state folder: {left}"
    assert not log or not unwell(daemon.log()), unwell(daemon.log())


def orphans(rig: Rig) -> list[int]:
    """Return the workers whose supervisor is dead: they have become children of this process."""
    supervisors = {daemon.pid for daemon in rig.daemons}
    return [
        child.pid
        for child in psutil.Process().children()
        if child.pid not in supervisors and process_state(child.pid) not in ("", "Z") and _is_ours(child.pid)
    ]


def wait_orphans(rig: Rig, timeout: float = BOUND) -> None:
    """Wait until the workers of dead supervisors have ended by themselves."""
    left = wait_gone(orphans(rig), timeout)
    assert not left, f"still there after {timeout:g} s: {[process_line(pid) for pid in left]}"


def _is_ours(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").startswith("virtagentd")
    except OSError:
        return False
