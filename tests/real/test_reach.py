"""File systems to which no plain path leads are frozen all the same, by another way, and thawed whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import fuse, linux
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.processes import act, until
from harness.rig import Rig

SHORT = ["--freeze-limit", "5", "--sync-limit", "20"]
QUICK = 3  # seconds


class Glimpse:
    """A file system by a descriptor that was opened when its path still led to it."""

    def __init__(self, fs: LoopFs) -> None:
        self.number = fs.number
        self._fd = os.open(fs.path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def is_frozen(self) -> bool:
        return act("frozen", self.path) == "yes"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def covered(place: Path, kind: str = "tmpfs") -> Iterator[None]:
    """Mount something over a place; in the end it and all that was mounted on it goes."""
    if kind == "stopped fuse":
        with fuse.mounted(place) as server:
            server.process.send_signal(signal.SIGSTOP)
            yield
        return
    linux.mount("cover", str(place), "tmpfs")
    try:
        yield
    finally:
        linux.umount(str(place), linux.MNT_DETACH)


def daemon_for(rig: Rig, state_dir: Path | None = None) -> Daemon:
    return rig.daemon([rig.everywhere], SHORT, state_dir=state_dir)


def planned(daemon: Daemon) -> set[str]:
    return {mount["device"] for mount in daemon.proxy().va.fsplan()["mounts"]}


def reason(daemon: Daemon, number: str) -> str:
    (found,) = [m["reason"] for m in daemon.proxy().va.fsplan()["left_out"] if m["device"] == number]
    return str(found)


def keeper(daemon: Daemon) -> int:
    (pid,) = [pid for pid, title in daemon.titles().items() if "keeper" in title]
    return pid


def freezes_and_thaws(daemon: Daemon, glimpse: Glimpse, count: int) -> None:
    host = daemon.proxy()
    begun = time.monotonic()
    assert host.va.fsfreeze({"strict": True}) == count
    assert time.monotonic() - begun < QUICK
    assert glimpse.is_frozen()
    assert namespaces_of(daemon) == {os.readlink(f"/proc/{daemon.pid}/ns/mnt")}, "none outlives the plan"
    assert host.va.fsthaw() == count
    assert not glimpse.is_frozen()


def namespaces_of(daemon: Daemon) -> set[str]:
    """Return the mount namespaces of all threads of the daemon and its workers."""
    pids = [daemon.pid, *(child.pid for child in daemon.children())]
    return {os.readlink(link / "ns/mnt") for pid in pids for link in Path(f"/proc/{pid}/task").iterdir()}


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("above", [False, True], ids=["itself", "the folder above"])
@pytest.mark.parametrize("cover", ["tmpfs", "stopped fuse"])
def test_a_covered_file_system_is_frozen(rig: Rig, kind: str, above: bool, cover: str) -> None:
    other = rig.fs("ext4")
    fs = rig.fs(kind, name="folder/in")
    glimpse = Glimpse(fs)
    with contextlib.closing(glimpse), covered(fs.path.parent if above else fs.path, cover):
        freezes_and_thaws(daemon_for(rig), glimpse, 2)
    other.assert_thawed()


def test_one_below_the_other_below_a_third(rig: Rig) -> None:
    lowest, middle = rig.fs("ext4"), rig.fs("xfs")
    linux.mount(middle.device, str(lowest.path), "xfs")
    low, mid = Glimpse(rig.fs("ext4")), Glimpse(middle)
    linux.umount(str(middle.path), linux.MNT_DETACH)
    with contextlib.closing(low), contextlib.closing(mid), covered(lowest.path):
        daemon = daemon_for(rig)
        freezes_and_thaws(daemon, mid, 3)
        (entry,) = [m for m in daemon.proxy().va.fsplan()["mounts"] if m["device"] == mid.number]
        assert entry["mountpoint"] == str(lowest.path)
    linux.umount(str(lowest.path))
    middle.mount()


@pytest.mark.parametrize("both", [False, True], ids=["the keeper", "keeper and supervisor"])
def test_a_covered_file_system_is_thawed_whoever_dies(rig: Rig, both: bool) -> None:
    fs = rig.fs("ext4")
    glimpse = Glimpse(fs)
    with contextlib.closing(glimpse), covered(fs.path):
        daemon = daemon_for(rig)
        assert daemon.proxy().va.fsfreeze() == 1
        assert glimpse.is_frozen()
        holds = keeper(daemon)
        if both:
            os.kill(holds, signal.SIGSTOP)
            daemon.kill()
        os.kill(holds, signal.SIGKILL)
        if both:
            daemon.wait_orphans()
            assert glimpse.is_frozen()
            daemon = daemon_for(rig, daemon.state_dir)
        daemon.wait_state("THAWED")
        assert not glimpse.is_frozen()


@pytest.mark.parametrize("stopped", [False, True], ids=["answers", "stopped"])
def test_a_file_system_behind_a_fuse_server(rig: Rig, stopped: bool) -> None:
    fs, other, pool = rig.fs("ext4"), rig.fs("ext4"), rig.area.fresh("pool")
    pool.mkdir()
    glimpse = Glimpse(fs)
    with contextlib.closing(glimpse), fuse.mounted(pool) as server:
        linux.mount(str(fs.path), str(pool / "in"), flags=linux.MS_BIND)
        linux.umount(str(fs.path), linux.MNT_DETACH)
        if stopped:
            server.process.send_signal(signal.SIGSTOP)
        daemon = daemon_for(rig)
        if not stopped:
            freezes_and_thaws(daemon, glimpse, 2)
        else:
            assert reason(daemon, glimpse.number) == "unreachable"
            begun = time.monotonic()
            assert daemon.proxy().va.fsfreeze() == 1
            assert time.monotonic() - begun < QUICK
            other.assert_frozen()
            daemon.proxy().va.fsthaw()
            with pytest.raises(xmlrpc.client.Fault, match="unreachable"):
                daemon.proxy().va.fsfreeze({"strict": True})
            fs.mount()  # another way
            freezes_and_thaws(daemon, glimpse, 2)
            linux.umount(str(fs.path), linux.MNT_DETACH)
    fs.mount()


def test_a_file_system_behind_a_server_that_stops_while_it_is_frozen(rig: Rig) -> None:
    """The keeper has it open; a thaw worker cannot open it by its path, and mounts its device."""
    fs, pool = rig.fs("ext4"), rig.area.fresh("pool")
    pool.mkdir()
    glimpse = Glimpse(fs)
    with contextlib.closing(glimpse), fuse.mounted(pool) as server:
        linux.mount(str(fs.path), str(pool / "in"), flags=linux.MS_BIND)
        linux.umount(str(fs.path), linux.MNT_DETACH)
        daemon = daemon_for(rig)
        assert daemon.proxy().va.fsfreeze() == 1
        server.process.send_signal(signal.SIGSTOP)
        os.kill(keeper(daemon), signal.SIGKILL)
        daemon.wait_state("THAWED")
        assert not glimpse.is_frozen()
    fs.mount()


def test_a_path_that_no_system_call_takes_whole(rig: Rig) -> None:
    fs = rig.fs("ext4")
    glimpse = Glimpse(fs)
    before = os.open(".", os.O_RDONLY)
    os.chdir(rig.area.root)
    try:
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        linux.mount(str(fs.path), ".", flags=linux.MS_BIND)
        linux.umount(str(fs.path), linux.MNT_DETACH)
        with contextlib.closing(glimpse):
            freezes_and_thaws(daemon_for(rig), glimpse, 1)
        linux.umount("../" + "d" * 250)
    finally:
        os.fchdir(before)
        os.close(before)
    fs.mount()


def test_unmounted_while_frozen_and_the_keeper_dies(rig: Rig) -> None:
    """The freeze holds the superblock, which is mounted nowhere: the thaw worker mounts its device for itself."""
    fs = rig.fs("ext4")
    daemon = daemon_for(rig)
    assert daemon.proxy().va.fsfreeze() == 1
    linux.umount(str(fs.path), linux.MNT_DETACH)
    os.kill(keeper(daemon), signal.SIGKILL)
    daemon.wait_state("THAWED")
    fs.mount()
    fs.assert_thawed()


def test_unmounted_and_its_device_detached_while_frozen(rig: Rig) -> None:
    fs, other = rig.fs("xfs"), rig.fs("ext4")
    device = Path(fs.device).name
    daemon = daemon_for(rig)
    assert daemon.proxy().va.fsfreeze() == 2
    linux.umount(str(fs.path), linux.MNT_DETACH)
    fs.detach()
    os.kill(keeper(daemon), signal.SIGKILL)
    daemon.wait_state("THAWED")
    other.assert_thawed()
    until(lambda: not Path(f"/sys/block/{device}/loop/backing_file").exists(), 5, "the device let go")
    assert daemon.proxy().va.fsfreeze() == 1
