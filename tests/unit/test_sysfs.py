"""The reader of sysfs, on a small sysfs made of plain folders and relative links, as the kernel lays it out."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.options import Rules
from virtagent.agent.worker import sysfs
from virtagent.agent.worker.plan import BlockDevice, MountInfo

Add = Callable[..., None]


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Return the function that adds a device: add("loop0/loop0p1", "259:0", partition="1", **{"dm/name": "x"})."""
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "class/block").mkdir(parents=True)

    def device(path: str, number: str, slaves: tuple[str, ...] = (), **files: str) -> None:
        folder = tmp_path / "devices/virtual/block" / path
        folder.mkdir(parents=True)
        for name, text in {"dev": f"{number}\n", **files}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        for slave in slaves:
            (folder / "slaves").mkdir(exist_ok=True)
            (folder / "slaves" / slave).symlink_to(f"../../{slave}")
        for link in (f"dev/block/{number}", f"class/block/{folder.name}"):
            (tmp_path / link).symlink_to(f"../../devices/virtual/block/{path}")

    return device


def mount(device: str, fstype: str = "ext4", source: str = "none", options: str = "rw") -> MountInfo:
    return MountInfo(2, 1, device, "/", "/srv", fstype, source, options)


def read(root: Path, *mounts: MountInfo) -> dict[str, BlockDevice]:
    return {d.name: d for d in sysfs.read_devices(mounts, str(root))}


def test_only_what_mounts_lie_on_is_read(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0", **{"loop/backing_file": "/a.img\n"})
    add("loop1", "7:1", **{"loop/backing_file": "/b.img\n"})
    assert read(tmp_path, mount("7:1"), mount("7:1"), mount("0:40", "tmpfs")) == {
        "loop1": BlockDevice("loop1", "7:1", backing_file="/b.img")
    }


def test_only_the_last_newline_of_a_backing_file_is_not_its_name(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0", **{"loop/backing_file": "/a\r\n\udcff \\040 \n\n"})
    assert read(tmp_path, mount("7:0"))["loop0"].backing_file == "/a\r\n\udcff \\040 \n"


def test_a_partition_brings_its_disk(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0", **{"loop/backing_file": "/a.img\n"})
    add("loop0/loop0p1", "259:0", partition="1\n")
    assert read(tmp_path, mount("259:0")) == {
        "loop0p1": BlockDevice("loop0p1", "259:0", disk="loop0"),
        "loop0": BlockDevice("loop0", "7:0", backing_file="/a.img"),
    }


def test_slaves_and_devices_under_loop_devices_are_followed(add: Add, tmp_path: Path) -> None:
    add("dm-0", "253:0", slaves=("dm-1", "gone"), **{"dm/name": "top\n"})
    add("dm-1", "253:1", slaves=("loop0",), **{"dm/name": "vg-x\n"})
    add("loop0", "7:0", **{"loop/backing_file": "/dev/mapper/low (deleted)\n"})
    add("dm-2", "253:2", slaves=("loop1",), **{"dm/name": "low\n"})
    add("loop1", "7:1", **{"loop/backing_file": "/dev/cciss/c0d0\n"})
    add("cciss!c0d0", "104:0")
    found = read(tmp_path, mount("253:0"))
    assert set(found) == {"dm-0", "dm-1", "loop0", "dm-2", "loop1", "cciss!c0d0"}
    assert found["dm-0"] == BlockDevice("dm-0", "253:0", mapper="top", slaves=("dm-1", "gone"))


@pytest.mark.parametrize(
    "info",
    [
        mount("0:40", "bcachefs", "/dev/loop0:/dev/loop1"),
        mount("7:0", "xfs", "/dev/loop0", "rw,logdev=/dev/loop1"),
        mount("0:40", "btrfs", "/dev/loop0"),
        mount("0:40", "btrfs", "/dev/root"),
    ],
)
def test_file_systems_on_several_devices(add: Add, tmp_path: Path, info: MountInfo) -> None:
    add("loop0", "7:0")
    add("loop1", "7:1")
    members = tmp_path / "fs/btrfs/5c2c/devices"
    members.mkdir(parents=True)
    (tmp_path / "fs/btrfs/features").mkdir()
    for name in ("loop0", "loop1"):
        (members / name).symlink_to(f"../../../../class/block/{name}")
    pool = ("loop0", "loop1") if info.fstype == "btrfs" else ()
    assert read(tmp_path, info) == {n: BlockDevice(n, f"7:{n[-1]}", pool=pool) for n in ("loop0", "loop1")}


def test_btrfs_on_a_mapped_device(add: Add, tmp_path: Path) -> None:
    add("dm-3", "253:3", **{"dm/name": "vg-x\n"})
    assert set(read(tmp_path, mount("0:40", "btrfs", "/dev/mapper/vg-x"))) == {"dm-3"}


@pytest.mark.parametrize("source", ["/dev/..", "/dev/../../etc", "/dev/" + "x" * 5000, "/dev/", "/dev/mapper/"])
def test_a_source_that_a_user_made_up_names_no_device(add: Add, tmp_path: Path, source: str) -> None:
    assert read(tmp_path, mount("0:40", "fuse.x", source)) == {}


def test_devices_may_vanish(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    (tmp_path / "devices/virtual/block/loop0/dev").unlink()
    (tmp_path / "dev/block/7:1").symlink_to("../../devices/virtual/block/loop1")
    assert read(tmp_path, mount("7:0"), mount("7:1"), mount("7:2")) == {}


def test_any_other_error_ends_the_plan_and_names_the_file(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0", **{"loop/backing_file": ""})
    backing_file = tmp_path / "devices/virtual/block/loop0/loop/backing_file"
    backing_file.unlink()
    backing_file.symlink_to("/proc/self/mem")  # opens, but its first page does not read
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(tmp_path, mount("7:0"))
    assert caught.value.filename == str(backing_file)


def test_without_sysfs_there_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


def test_what_cannot_be_read_is_a_fault_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> list[BlockDevice]:
        raise OSError(36, "File name too long", "/sys/block/loop0/loop/backing_file")

    monkeypatch.setattr(sysfs, "read_devices", refuse)
    with pytest.raises(Fault, match="backing_file: File name too long") as caught:
        sysfs.read_plan(Rules())
    assert caught.value.code is Code.FAILED


def test_this_machine_has_a_plan() -> None:
    found = sysfs.read_plan(Rules())
    devices = {m.device for m in found.mounts} | {m.device for m in found.left_out}
    assert devices == {m.device for m in sysfs.read_mountinfo()}


def test_nothing_outside_procfs_and_sysfs_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(path: Any, *args: Any, **named: Any) -> Any:
            touched.append(os.fspath(path))
            return real(path, *args, **named)

        monkeypatch.setattr(module, name, watched)

    for name in ("stat", "lstat", "listdir", "readlink", "scandir", "open"):
        watch(os, name)
    watch(builtins, "open")
    sysfs.read_plan(Rules())
    monkeypatch.undo()
    assert {"/proc/self/mountinfo", "/proc/filesystems"} <= set(touched)
    assert all(path.startswith(("/proc/", "/sys/")) or path == "/sys" for path in touched)
