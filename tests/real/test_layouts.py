"""File systems that lie on each other in ways that no path tells: frozen in order, or left out with a reason.

A wrong order stops all of them for the freeze limit, so that is short here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import filesystems, linux
from harness.daemon import Daemon
from harness.filesystems import LoopFs
from harness.rig import Rig

SHORT = ["--freeze-limit", "5", "--sync-limit", "20"]
QUICK = 3  # seconds


def daemon_for(rig: Rig) -> Daemon:
    return rig.daemon([rig.everywhere], SHORT)


def freezes_and_thaws(daemon: Daemon, *those: LoopFs) -> None:
    """Show that these are frozen within seconds, and thawed."""
    host = daemon.proxy()
    for fs in those:
        fs.fill(100_000)
    begun = time.monotonic()
    assert host.va.fsfreeze() == len(those)
    assert time.monotonic() - begun < QUICK
    for fs in those:
        fs.assert_frozen()
    assert host.va.fsthaw() == len(those)
    for fs in those:
        fs.assert_thawed()


def lies_on(daemon: Daemon, fs: LoopFs) -> set[str]:
    """Return the mount points of what the plan says that it lies on."""
    mounts = daemon.proxy().va.fsplan()["mounts"]
    (hosts,) = [m["hosts"] for m in mounts if m["mountpoint"] == str(fs)]
    return {mounts[index]["mountpoint"] for index in hosts}


@contextlib.contextmanager
def unmounted_after(place: Path, *on_it: LoopFs) -> Iterator[None]:
    """Unmount what is mounted at a place in the end, after the file systems that lie on it."""
    try:
        yield
    finally:
        for fs in on_it:
            fs.unmount()
            fs.detach()
        linux.umount(str(place))


def cover(place: Path) -> None:
    linux.mount("cover", str(place), "tmpfs")


def test_an_image_whose_folder_was_covered(rig: Rig) -> None:
    outer, other = rig.fs("ext4"), rig.fs("ext4")
    folder = outer.path / "img"
    folder.mkdir()
    inner = rig.fs("ext4", outer=outer, folder=folder)
    linux.mount(other.device, str(folder), "ext4")
    with unmounted_after(folder):
        daemon = daemon_for(rig)
        assert lies_on(daemon, inner) == {str(outer)}
        freezes_and_thaws(daemon, inner, outer, other)


def attach_elsewhere(image: Path) -> tuple[str, int]:
    """Return a loop device that was set up in a mount namespace in which the image lies below /mnt."""
    script = 'mount --bind "$1" /mnt && exec losetup --find --show "/mnt/$2"'
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(image.parent), image.name]
    device = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    subprocess.run(["losetup", "--detach", device], check=True, timeout=20)  # when nobody has it open any more
    return device, fd


def test_an_image_of_another_mount_namespace(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = rig.fs("ext4")
    with monkeypatch.context() as patch:
        patch.setattr(linux, "attach_loop", attach_elsewhere)
        inner = rig.fs("ext4", outer=outer)
    daemon = daemon_for(rig)
    assert lies_on(daemon, inner) == {str(outer)}
    freezes_and_thaws(daemon, inner, outer)


def overlay(rig: Rig, outer: LoopFs, *, relative: bool) -> Path:
    """Mount an overlay whose upper layer is on `outer`."""
    merged = rig.area.fresh("merged")
    merged.mkdir()
    for name in ("lower", "upper", "work"):
        (outer.path / name).mkdir()
    folder = "" if relative else f"{outer}/"
    options = ",".join(f"{key}dir={folder}{key}" for key in ("lower", "upper", "work"))
    cwd = os.open(".", os.O_PATH)
    try:
        os.chdir(outer.path)
        linux.mount("overlay", str(merged), "overlay", data=options)
    finally:
        os.fchdir(cwd)
        os.close(cwd)
    return merged


@pytest.mark.parametrize("relative", [False, True])
def test_an_image_on_an_overlay(rig: Rig, relative: bool) -> None:
    outer = rig.fs("ext4")
    merged = overlay(rig, outer, relative=relative)
    inner = rig.fs("ext4", outer=outer, folder=merged)
    later = rig.fs("ext4")
    with unmounted_after(merged, inner):
        daemon = daemon_for(rig)
        assert lies_on(daemon, inner) == {str(outer)}
        freezes_and_thaws(daemon, inner, outer, later)


def test_an_image_in_a_subvolume(rig: Rig) -> None:
    outer = rig.fs("btrfs")
    inner = rig.fs("ext4", outer=outer, folder=outer.subvolume())
    later = rig.fs("ext4")
    daemon = daemon_for(rig)
    assert lies_on(daemon, inner) == {str(outer)}
    freezes_and_thaws(daemon, inner, outer, later)


def test_an_image_in_a_subvolume_that_is_mounted_nowhere(rig: Rig) -> None:
    outer = rig.fs("btrfs")
    linux.make_subvolume(str(outer), "inside")
    inner = rig.fs("ext4", outer=outer, folder=outer.path / "inside")
    later = rig.fs("ext4")
    daemon = daemon_for(rig)
    assert lies_on(daemon, inner) == {str(outer)}, "mounted before it; the root is not included"
    freezes_and_thaws(daemon, inner, outer, later)


def test_an_ext4_with_its_journal_elsewhere(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = rig.fs("ext4")
    image = outer.path / "journal"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    journal, fd = linux.attach_loop(image)
    try:
        command = ["mke2fs", "-q", "-O", "journal_dev", "-b", "4096", journal]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
        make = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", f"device={journal}"]
        with monkeypatch.context() as patch:
            patch.setitem(filesystems._MAKE, "ext4", make)
            fs = rig.fs("ext4")
    finally:
        os.close(fd)  # the mount keeps the device
    daemon = daemon_for(rig)
    assert lies_on(daemon, fs) == {str(outer)}
    freezes_and_thaws(daemon, fs, outer)
    fs.unmount()
    fs.detach()


def reason(daemon: Daemon, number: str) -> str:
    """Return why the file system with that number is left out."""
    left_out = daemon.proxy().va.fsplan()["left_out"]
    (found,) = [m["reason"] for m in left_out if m["device"] == number]
    return str(found)


def test_a_file_system_of_which_only_a_fifo_is_mounted(rig: Rig) -> None:
    fs, other = rig.fs("ext4"), rig.fs("ext4")
    number = fs.number
    fifo, place = fs.path / "fifo", rig.area.fresh("fifo")
    os.mkfifo(fifo)
    place.touch()
    linux.mount(str(fifo), str(place), flags=linux.MS_BIND)
    linux.umount(str(fs))
    with unmounted_after(place):
        daemon = daemon_for(rig)
        assert reason(daemon, number) == "unreachable"
        freezes_and_thaws(daemon, other)
    fs.mount()


def test_a_file_system_that_stopped_writing_after_an_error(rig: Rig) -> None:
    fs, other = rig.fs("ext4"), rig.fs("ext4")
    linux.mount("", str(fs), flags=linux.MS_REMOUNT, data="errors=remount-ro")
    Path("/sys/fs/ext4", Path(fs.device).name, "trigger_fs_error").write_text("a test")
    daemon = daemon_for(rig)
    why = reason(daemon, fs.number)
    if why == "read-only":
        pytest.skip("this kernel calls it read-only, as it was before 6.12")
    assert why == "damaged"
    freezes_and_thaws(daemon, other)


def test_selectors_by_device_and_type(rig: Rig) -> None:
    ext4, xfs = rig.fs("ext4"), rig.fs("xfs")
    host = daemon_for(rig).proxy()
    for selector, chosen in ((f"dev:{ext4.device}", ext4), (f"dev:{xfs.number}", xfs), ("type:xf?", xfs)):
        (mount,) = host.va.fsplan({"include": [selector]})["mounts"]
        assert mount["mountpoint"] == str(chosen)
