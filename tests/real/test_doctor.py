"""virtagentctl doctor in a guest with a real daemon: a guest in which all is well, and one that is frozen already."""

from __future__ import annotations

import subprocess

from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import until
from harness.rig import Rig
from harness.terminal import CTL


def doctor(daemon: Daemon, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [*CTL, "--agent", daemon.url, "doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, stdin=subprocess.DEVNULL)


def waits(ran: subprocess.CompletedProcess[str]) -> bool:
    return " is frozen already, by someone else" in ran.stdout


def test_a_rehearsal_in_a_guest(rig: Rig) -> None:
    fs = [rig.fs("ext4"), rig.fs("xfs")]
    daemon = rig.daemon([rig.everywhere])
    ran: list[subprocess.CompletedProcess[str]] = []

    def rehearsed() -> bool:
        ran.append(doctor(daemon, "--rehearse"))
        return not waits(ran[-1])  # a neighbour's test may have something frozen: that is seen, too

    until(rehearsed, 30, "nothing else is frozen on this machine")
    out = ran[-1].stdout
    assert "asked from outside" not in out
    assert "the agent runs as root" in out
    assert "2 file systems" in out
    if ran[-1].returncode == 0:  # 1 where a qemu-ga runs beside
        assert "rehearsed: 2 synced, 2 frozen, 2 thawed" in out
        last = daemon.status()["last"]
        assert (last["outcome"], last["held_continuously"]) == ("thawed", True)
    else:
        assert "FAIL  qemu-ga runs" in out
    for one in fs:
        one.assert_writable()


def test_a_guest_that_someone_else_has_frozen(rig: Rig) -> None:
    fs: LoopFs = rig.fs("ext4")
    daemon = rig.daemon([fs])
    writer = rig.writer(fs)
    writer.wait_moving()
    fs.freeze()
    try:
        writer.wait_still()
        ran = doctor(daemon, "--rehearse")
        assert ran.returncode == 1, ran.stdout
        assert waits(ran), ran.stdout
        assert f"{fs} is frozen already" in ran.stdout
        assert "rehearsed" not in ran.stdout
        assert daemon.status()["last"] in (None, {})
    finally:
        fs.thaw()
