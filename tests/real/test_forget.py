"""`virtagentctl forget`: the last way out of ERROR, where no thaw worker can prove that a file system is thawed."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import linux
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.hosts import call, code_of
from harness.processes import kill, until
from harness.rig import Rig
from harness.terminal import CTL
from virtagent.agent.api.errors import Code


def forget(daemon: Daemon, name: str) -> tuple[int, str]:
    """Return how virtagentctl ends, and what it says when the agent is not just trying to thaw again."""
    command = [*CTL, "--agent", daemon.url, "forget", name]
    said: list[tuple[int, str]] = []

    def ended() -> bool:
        one = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        said.append((one.returncode, one.stdout + one.stderr))
        return "the state is THAWINPROGRESS" not in said[-1][1]

    until(ended, 20, "it does not try to thaw just now")
    return said[-1]


def lose_keeper(daemon: Daemon) -> None:
    (keeper,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    kill(keeper)


def thawed_again(daemon: Daemon, fs: LoopFs, **options: object) -> None:
    """The next freeze is as any other."""
    assert daemon.status()["state"] == "THAWED"
    fs.assert_writable()
    assert code_of(call(daemon, "va.fsthaw")) == Code.FREEZE_BROKEN, "the keeper died: that is told"
    assert call(daemon, "va.fsfreeze", options) == 1
    fs.assert_frozen()
    assert call(daemon, "va.fsthaw") == 1
    assert daemon.wait_state("THAWED")["last"]["held_continuously"]


@contextmanager
def hidden(rig: Rig) -> Iterator[tuple[LoopFs, int]]:
    """Give a btrfs of whose device nothing but a path tells, and a descriptor by which it lives on when unmounted."""
    fs = rig.fs("btrfs")
    fs.unmount()
    node = rig.area.fresh("node")
    os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(fs.device).st_rdev)
    linux.mount(str(node), str(fs.path), "btrfs")
    lives = os.open(fs.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fs, lives
    finally:
        os.close(lives)
        node.unlink()


def test_one_that_is_unmounted_and_cannot_be_reached(rig: Rig) -> None:
    other = rig.fs("ext4")
    with hidden(rig) as (fs, lives):
        daemon = rig.daemon([rig.everywhere])
        assert call(daemon, "va.fsfreeze") == 2
        linux.umount(str(fs), linux.MNT_DETACH)
        code, said = forget(daemon, str(fs))
        assert code == 1
        assert "(state ERROR) can be forgotten: the state is FROZEN [WRONG_STATE 2]" in said
        lose_keeper(daemon)
        record = daemon.wait_state("ERROR")
        assert str(fs) in record["error"]
        until(lambda: not other.is_frozen(), 5, "the other one thaws")
        assert code_of(call(daemon, "va.fsfreeze")) == Code.WRONG_STATE
        for wrong in (str(other), "/", f"{fs}/"):
            code, said = forget(daemon, wrong)
            assert code == 1
            assert f"{fs} (dev:0:" in said, "the one that is meant is named"
        code, said = forget(daemon, str(fs))
        assert code == 0, said
        thawed_again(daemon, other)
        assert "counts as thawed, and may be frozen still" in daemon.log()
        fcntl.ioctl(lives, linux.FITHAW, 0)  # it was frozen still, as was said
        assert daemon.stop() == 0
        assert not Path(daemon.state_dir, "journal").exists()


@pytest.mark.parametrize("by", ["mount point", "device"])
def test_one_whose_disk_does_not_answer(rig: Rig, by: str) -> None:
    stall, other = rig.stall("ext4"), rig.fs("ext4")
    options = ["--thaw-limit", "0.3", "--kill-grace", "0.2"]
    daemon = rig.daemon([stall.fs, other], options)
    assert call(daemon, "va.fsfreeze") == 2
    stall.stall(dirty=False)
    lose_keeper(daemon)
    record = daemon.wait_state("ERROR")
    assert str(stall.fs) in record["error"]
    number = stall.fs.number
    code, said = forget(daemon, str(stall.fs) if by == "mount point" else f"dev:{number}")
    assert code == 0, said
    thawed_again(daemon, other, exclude=[str(stall.fs)])
    stall.release()
    until(lambda: not daemon.children(), 10, "the end of the thaw worker that was stuck")
    stall.fs.assert_thawed()
    assert call(daemon, "va.fsfreeze") == 2
    assert call(daemon, "va.fsthaw") == 2
