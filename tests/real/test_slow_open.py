"""An XFS whose root folder cannot be opened for reading, as its disk stands still: the plan does not wait for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.fuse_programs import pool, require, served
from harness.rig import Rig
from test_stall import Asking

LIMITS = ["--plan-limit", "4", "--sync-limit", "20", "--freeze-limit", "10"]


@contextlib.contextmanager
def standing_still(process: int, fs: LoopFs) -> Iterator[None]:
    """Stop the disk, and have somebody make folders in the root of `fs`, who has it locked while he waits for the disk.

    Opening a folder of XFS takes that lock, too (xfs_dir_open in fs/xfs/xfs_file.c).
    """
    os.kill(process, signal.SIGSTOP)
    try:
        fs.ioctl("crowd").wait_blocked()
        fs.ioctl("open").wait_blocked()
        yield
    finally:
        os.kill(process, signal.SIGCONT)
        fs.end_probes()


def wait_let_go(daemon: Daemon) -> None:
    """Wait until no worker of the daemon has a file system open."""
    daemon.wait_status(lambda record: record["state"] == "THAWED" and not record["workers"])


@pytest.fixture
def scene(rig: Rig) -> Iterator[tuple[LoopFs, LoopFs, int]]:
    """A file system on a disk that can stand still, one that is well, and the process that is the disk."""
    require("bindfs")
    outer = rig.fs("ext4", size=512 << 20)
    place = rig.area.fresh("disk")
    place.mkdir()
    with served(rig.area, pool("bindfs", outer.path, outer.path), place) as disk:
        inner, well = rig.fs("xfs", outer=outer, folder=place), rig.fs("ext4")
        inner.unmount()  # what it had read
        inner.mount()
        yield inner, well, disk.pid
        inner.unmount()
        inner.detach()


def test_a_plan_does_not_wait_to_open_it(rig: Rig, scene: tuple[LoopFs, LoopFs, int]) -> None:
    inner, well, disk = scene
    daemon = rig.daemon([inner, well], LIMITS)
    with standing_still(disk, inner):
        plan = daemon.proxy().va.fsplan()
    wait_let_go(daemon)
    assert {mount["mountpoint"] for mount in plan["mounts"]} == {str(inner), str(well)}


def test_a_freeze_waits_in_its_sync_and_goes_on(rig: Rig, scene: tuple[LoopFs, LoopFs, int]) -> None:
    inner, well, disk = scene
    daemon = rig.daemon([inner, well], LIMITS)
    with standing_still(disk, inner):
        freezing = Asking(daemon, "va.fsfreeze")
        record = daemon.wait_status(
            lambda r: (
                {("syncing", str(inner)), ("synced", str(well))} <= {(m["state"], m["mountpoint"]) for m in r["mounts"]}
            )
        )
        assert record["phase"] == "sync"
    assert freezing.answer() == 2
    inner.assert_frozen()
    assert daemon.proxy().va.fsthaw() == 2
    wait_let_go(daemon)
