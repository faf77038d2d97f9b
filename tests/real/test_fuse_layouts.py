"""FUSE file systems below, above and beside what is frozen: they tell nothing, and hold nothing up."""

from __future__ import annotations

import contextlib
import os
import stat
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import linux
from harness.filesystems import MIB, LoopFs
from harness.fuse_programs import NOBODY, pool, require, served
from harness.rig import Rig
from test_layouts import daemon_for, freezes_and_thaws, lies_on, reason


def fresh(rig: Rig, name: str) -> Path:
    """Return a new folder of the area."""
    place = rig.area.fresh(name)
    place.mkdir()
    return place


def gone(*those: LoopFs) -> None:
    """Unmount these, before what their images lie on goes."""
    for fs in those:
        fs.unmount()
        fs.detach()


@contextlib.contextmanager
def fuse_for_all(rig: Rig) -> Iterator[None]:
    """Let every user mount by FUSE, as udev does, where a container has only the device."""
    if os.stat("/dev/fuse").st_mode & 0o006:
        yield
        return
    node = rig.area.fresh("fuse")
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    node.chmod(0o666)
    linux.mount(str(node), "/dev/fuse", flags=linux.MS_BIND)
    try:
        yield
    finally:
        linux.umount("/dev/fuse", linux.MNT_DETACH)


@pytest.mark.parametrize("program", ["mergerfs", "bindfs", "unionfs-fuse", "fuse-overlayfs"])
def test_an_image_on_a_fuse_file_system(rig: Rig, program: str) -> None:
    """What a program does with writes nobody knows: so it lies on all that was mounted before it."""
    require(program)
    a, b = rig.fs("ext4"), rig.fs("xfs")
    place = fresh(rig, "pool")
    with served(rig.area, pool(program, a.path, b.path), place):
        inner = rig.fs("ext4", 32 * MIB, outer=a, folder=place)
        later = rig.fs("ext4")
        daemon = daemon_for(rig)
        assert lies_on(daemon, inner) == {str(a), str(b)}
        freezes_and_thaws(daemon, inner, later, a, b)
        gone(inner)


def test_an_image_whose_folder_a_user_covered(rig: Rig) -> None:
    """He needs only a folder of his own: what lies on what must not depend on what he mounts there."""
    require("bindfs", "fusermount3")
    outer = rig.fs("ext4")
    folder = outer.path / "home"
    folder.mkdir()
    inner = rig.fs("ext4", 32 * MIB, outer=outer, folder=folder)
    os.chown(folder, NOBODY, NOBODY)
    cover = ["bindfs", "-f", "--no-allow-other", "-o", "nonempty", "/usr/share"]
    with fuse_for_all(rig), served(rig.area, cover, folder, NOBODY):
        daemon = daemon_for(rig)
        assert lies_on(daemon, inner) == {str(outer)}
        freezes_and_thaws(daemon, inner, outer)


def test_fuse_file_systems_that_name_each_others_mount_points(rig: Rig) -> None:
    """Their user writes these texts: followed, they would be a circle."""
    outers = [rig.fs("ext4") for _ in range(2)]
    folders = [outer.path / "img" for outer in outers]
    for folder in folders:
        folder.mkdir()
    inners = [rig.fs("ext4", 32 * MIB, outer=o, folder=f) for o, f in zip(outers, folders, strict=True)]
    source = fresh(rig, "source")

    def naming(other: Path) -> list[str]:
        return ["mergerfs", "-f", "-o", f"nonempty,fsname={other}", str(source)]

    with served(rig.area, naming(folders[1]), folders[0]), served(rig.area, naming(folders[0]), folders[1]):
        daemon = daemon_for(rig)
        for inner, outer in zip(inners, outers, strict=True):
            assert str(outer) in lies_on(daemon, inner)
        freezes_and_thaws(daemon, *inners, *outers)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_local_disk_that_a_program_serves(rig: Rig, on_disk: bool) -> None:
    """Nobody can freeze it: that is an error under strict if a disk of the guest is concerned."""
    require("fuse2fs")
    other, served_fs = rig.fs("ext4"), rig.fs("ext4")
    served_fs.unmount()
    place = fresh(rig, "served")
    with served(rig.area, ["fuse2fs", "-f", served_fs.device if on_disk else str(served_fs.image)], place):
        (mount,) = linux.mounts_under(str(place))
        daemon = daemon_for(rig)
        assert reason(daemon, mount.device) == "fuse"
        freezes_and_thaws(daemon, other)
        host = daemon.proxy()
        if on_disk:
            with pytest.raises(xmlrpc.client.Fault, match=r"strict.*served \(fuse\)"):
                host.va.fsfreeze({"strict": True})
            other.assert_thawed()
        else:
            assert host.va.fsfreeze({"strict": True}) == 1
            assert host.va.fsthaw() == 1


def test_a_mirror_of_memory_is_no_disk(rig: Rig) -> None:
    """Its source begins with /dev/, as that of FUSE file systems without a name does, and is no block device."""
    require("bindfs")
    rig.fs("ext4")
    with served(rig.area, ["bindfs", "-f", "/dev/shm"], fresh(rig, "mirror")):
        host = daemon_for(rig).proxy()
        assert host.va.fsfreeze({"strict": True}) == 1
        assert host.va.fsthaw() == 1
