"""The harness itself: that a stall is what a dying disk does, and that nothing reaches the machine's own disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import HarnessError, linux
from harness.daemon import Daemon, check_includes
from harness.filesystems import KINDS
from harness.orders import Orders
from harness.processes import until, wait_gone
from harness.rig import Rig


@pytest.fixture
def other(rig: Rig) -> Iterator[Rig]:
    """A rig that the test itself closes."""
    made = Rig(rig.area)
    yield made
    made.close()


KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
def test_a_write_waits_for_the_thaw(rig: Rig, kind: str) -> None:
    fs = rig.fs(kind)
    fs.assert_thawed()
    assert fs.freeze() == "ok"
    fs.assert_frozen()
    assert fs.freeze() == "EBUSY"
    fs.assert_frozen()
    write = fs.write()
    write.wait_blocked()
    assert fs.thaw() == "ok"
    assert write.answer() == "ok"
    fs.assert_thawed()
    assert fs.thaw() == "EINVAL"


@KIND
def test_freeze_hangs_while_the_disk_is_stalled(rig: Rig, kind: str) -> None:
    stall = rig.stall(kind)
    stall.stall()
    freeze = stall.fs.ioctl("freeze")
    freeze.wait_blocked()

    def hangs() -> bool:
        # For some milliseconds the kernel waits for writers with its lock let go, and says that it is frozen.
        try:
            assert stall.fs.is_frozen(timeout=0.2)
        except HarnessError as error:
            return "under way" in str(error)
        return False

    until(hangs, 10, "a freeze that waits for the disk")
    assert freeze.state() == "D"
    stall.release()
    assert freeze.answer() == "ok"
    stall.fs.assert_frozen()


@KIND
def test_a_freeze_killed_in_a_stall_takes_effect_after_it(rig: Rig, kind: str) -> None:
    stall = rig.stall(kind)
    stall.stall()
    freeze = stall.fs.ioctl("freeze")
    freeze.wait_blocked()
    freeze.kill()
    assert wait_gone([freeze.pid], 0.2) == [freeze.pid]
    stall.release()
    assert freeze.process.wait(10) == -9
    stall.fs.assert_frozen()
    assert stall.fs.thaw() == "ok"
    stall.fs.assert_writable()


@KIND
def test_a_thaw_queued_in_a_stall_follows_the_freeze(rig: Rig, kind: str) -> None:
    stall = rig.stall(kind)
    stall.stall()
    freeze = stall.fs.ioctl("freeze")
    freeze.wait_blocked()
    thaw = stall.fs.ioctl("thaw")
    thaw.wait_blocked()
    stall.release()
    assert (freeze.answer(), thaw.answer()) == ("ok", "ok")
    stall.fs.assert_thawed()


def test_the_rig_takes_down_what_is_frozen_stalled_and_blocked(other: Rig) -> None:
    outer = other.fs("ext4", size=512 << 20)
    inner = other.fs("xfs", outer=outer)
    inner.bind("a b\\c*[d]")
    other.fs("btrfs").subvolume()
    stall = other.stall("xfs")
    inner.freeze()
    outer.freeze()
    other.writer(inner.aliases[0]).wait_still()
    inner.write()
    stall.stall()
    freeze = stall.fs.ioctl("freeze")
    freeze.wait_blocked()
    freeze.kill()
    assert other.close() == []
    assert linux.loop_devices(str(other.area.root)) == {}


def test_what_is_left_behind_is_told(rig: Rig, other: Rig) -> None:
    left = rig.fs("ext4")
    assert any(left.device in line for line in other.close())


def test_the_writer_measures_its_longest_stall(rig: Rig) -> None:
    fs = rig.fs("ext4")
    writer = rig.writer(fs)
    writer.wait_moving()
    fs.freeze()
    still = writer.wait_still(0.2)
    assert still.now >= 0.2
    assert writer.report().writes == still.writes
    with pytest.raises(TimeoutError):
        writer.wait_moving(0.1)
    fs.thaw()
    assert writer.wait_moving().writes > still.writes
    assert writer.report().longest >= still.now
    with pytest.raises(TimeoutError):
        writer.wait_still(5, timeout=0.1)
    writer.reset()
    assert writer.report().longest < still.now


@pytest.mark.parametrize("pattern", ["*", "/", "/*", "/tm*", "/proc", "[/]*"])
def test_no_daemon_on_the_machines_file_systems(rig: Rig, pattern: str) -> None:
    for make in (
        lambda: rig.daemon([pattern]),
        lambda: rig.daemon([rig.everywhere], ["--include", pattern]),
        lambda: rig.daemon([rig.everywhere], [f"--include={pattern}"]),
    ):
        with pytest.raises(HarnessError, match="not the test's own"):
            make()
    with pytest.raises(HarnessError, match="without --include"):
        rig.daemon()
    check_includes([rig.everywhere], str(rig.area.root))


def test_a_daemon_sees_no_disk_of_the_machine_and_every_later_file_system_of_the_test(rig: Rig) -> None:
    early = rig.fs("ext4")
    daemon = rig.daemon([rig.everywhere], module="harness.pretender")
    late = rig.fs("xfs")
    seen = daemon.folder / "seen"
    os.kill(daemon.pid, signal.SIGUSR1)
    until(seen.exists, 5, "what the daemon sees")
    # Read off mountinfo, never tried out: if the shield were broken, trying would stop this machine.
    disks = {m for m, t in map(str.split, seen.read_text().splitlines()) if t not in linux.nodev_types()}
    assert disks == {str(early), str(late)}
    late.unmount()
    assert str(late) not in [m.mountpoint for m in linux.mounts()]
    assert daemon.stop() == 0


def test_a_daemon_that_does_not_start_says_why(rig: Rig) -> None:
    with pytest.raises(HarnessError, match="No module named"):
        rig.daemon([rig.everywhere], module="harness.nothing")


def test_a_daemon_that_leaves_a_child_is_reported(rig: Rig) -> None:
    daemon = Daemon(rig.area, [rig.everywhere], module="harness.pretender", env={"PRETEND": "leave a child"})
    assert [line for line in daemon.close() if "left" in line]
    assert daemon.end_orphans() == []


def test_clearing_up_after_a_killed_test_process(rig: Rig) -> None:
    """A test run that is killed leaves nothing frozen, mounted or running."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from harness import namespace
from harness.rig import Rig
rig = Rig(namespace.enter())
outer = rig.fs("ext4", size=512 << 20); inner = rig.fs("xfs", outer=outer)
daemon = rig.daemon([rig.everywhere], module="harness.pretender", env={{"PRETEND": "leave a child"}})
writer = rig.writer(outer)
writer.wait_moving()
inner.freeze(); outer.freeze()
print(rig.area.holder, rig.area.guardian_pid, writer.pid, daemon.pid, *[c.pid for c in daemon.children()], flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    holder, *pids = killed.stdout.split()
    assert killed.returncode == -9, killed.stderr
    assert wait_gone(map(int, pids), 20) == []
    assert not os.path.exists(holder)
    assert linux.loop_devices(holder) == {}


def test_a_dead_taker_has_nothing_under_way(tmp_path: Path) -> None:
    orders = Orders(tmp_path, "order")
    orders.give("one")
    pid = os.fork()
    if pid == 0:
        os._exit(orders.take(lambda text: True) is None)
    assert os.waitpid(pid, 0)[1] == 0
    assert not orders.waiting()
    assert not orders.under_way()
