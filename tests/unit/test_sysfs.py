"""The reader of sysfs, on a small sysfs made of plain folders and relative links, as the kernel lays it out."""

from __future__ import annotations

import builtins
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.options import Rules
from virtagent.agent.worker import probe as probe_module
from virtagent.agent.worker import sysfs
from virtagent.agent.worker.mountinfo import MountInfo
from virtagent.agent.worker.plan import BlockDevice
from virtagent.agent.worker.probe import Backing, Probe
from virtagent.agent.worker.view import View

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


class Answers(Probe):
    """A probe that knows what loop devices lie on, and asks nobody."""

    def __init__(self, **backings: Backing) -> None:
        super().__init__(View([]))
        self._backings = backings

    def loops(self, devices: Iterable[tuple[str, str, str]]) -> Mapping[str, Backing]:
        return {name: self._backings[name] for name, *_ in devices if name in self._backings}


FILE = Backing("8:1")


def read(root: Path, *mounts: MountInfo, probe: Probe | None = None) -> dict[str, BlockDevice]:
    probe = probe or Answers(loop0=FILE, loop1=FILE)
    return {d.name: d for d in sysfs.read_devices(mounts, probe, str(root), str(root / "proc"))}


def test_only_what_mounts_lie_on_is_read(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    add("loop1", "7:1")
    assert read(tmp_path, mount("7:1"), mount("7:1"), mount("0:40", "tmpfs")) == {
        "loop1": BlockDevice("loop1", "7:1", file_on="8:1")
    }


@pytest.mark.parametrize("probe", [None, Answers()])
def test_a_loop_device_that_is_not_asked_or_does_not_answer(add: Add, tmp_path: Path, probe: Probe | None) -> None:
    add("loop0", "7:0", **{"loop/backing_file": "/a.img\n"})
    (found,) = sysfs.read_devices([mount("7:0")], probe, str(tmp_path), str(tmp_path))
    assert found == BlockDevice("loop0", "7:0", understood=False)


def test_a_loop_device_over_a_device_that_has_vanished(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    found = read(tmp_path, mount("7:0"), probe=Answers(loop0=Backing(device="8:16")))
    assert found == {"loop0": BlockDevice("loop0", "7:0", understood=False)}


@pytest.mark.parametrize(
    ("path", "understood"),
    [
        ("virtual/block/loop0", True),
        ("virtual/block/dm-0", True),
        ("virtual/block/md127", True),
        ("virtual/block/nbd0", False),
        ("virtual/block/drbd1", False),
        ("virtual/block/zd16", False),
        ("virtual/block/ublkb0", False),
        ("virtual/block/zloop0", False),
        ("virtual/nvme-fabrics/ctl/nvme0/nvme0n1", False),
        ("pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1", True),
        ("pci0000:00/0000:00:05.0/virtio2/block/vda", True),
        ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", True),
        ("platform/host2/session1/target2:0:0/2:0:0:1/block/sdb", False),
        ("rbd/0/block/rbd0", False),
        ("tcm_loop_0/tcm_loop_adapter_0/host2/target2:0:1/2:0:1:0/block/sda", False),
        ("platform/dummy_hcd.0/usb1/1-1/1-1:1.0/host3/target3:0:0/3:0:0:0/block/sdc", False),
        ("platform/vhci_hcd.0/usb3/3-1/3-1:1.0/host4/target4:0:0/4:0:0:0/block/sdd", False),
    ],
)
def test_what_a_program_or_another_machine_serves_is_not_understood(
    tmp_path: Path, path: str, understood: bool
) -> None:
    folder = tmp_path / "devices" / path
    folder.mkdir(parents=True)
    (folder / "dev").write_text("1:0\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/1:0").symlink_to(f"../../devices/{path}")
    (found,) = read(tmp_path, mount("1:0")).values()
    assert found.understood is understood


@pytest.mark.parametrize(
    ("transports", "understood"),
    [
        (["pcie\n"], True),
        (["pcie\n", "pcie\n"], True),
        (["apple-nvme\n"], True),
        (["loop\n"], False),
        (["tcp\n"], False),
        (["pcie\n", "rdma\n"], False),
        (["pcie\n", ""], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("partition", [False, True])
def test_an_nvme_disk_is_understood_if_each_way_to_it_is_a_bus(
    tmp_path: Path, transports: list[str], understood: bool, partition: bool
) -> None:
    """With multipath, the default, such a disk is a folder of its subsystem, whose controllers are links there."""
    subsystem = tmp_path / "devices/virtual/nvme-subsystem/nvme-subsys0"
    folder = subsystem / ("nvme0n1/nvme0n1p1" if partition else "nvme0n1")
    folder.mkdir(parents=True)
    (folder / "dev").write_text("259:1\n")
    if partition:
        (folder / "partition").write_text("1\n")
    (subsystem / "subsystem").symlink_to("../../../../class")
    for number, transport in enumerate(transports):
        controller = tmp_path / f"devices/pci0000:00/0000:00:0{number}.0/nvme/nvme{number}"
        controller.mkdir(parents=True)
        if transport:
            (controller / "transport").write_text(transport)
        (subsystem / f"nvme{number}").symlink_to(controller)
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/259:1").symlink_to(f"../../{folder.relative_to(tmp_path)}")
    (found,) = read(tmp_path, mount("259:1")).values()
    assert found.understood is understood


def journal(
    root: Path,
    task: str,
    comm: str,
    *journals: str,
    device: str = "md0",
    number: str = "9:0",
    probe: Probe | None = None,
) -> BlockDevice:
    """Return a device with an ext4 whose journal's thread is told as in sysfs and procfs."""
    for path, text in ((f"fs/ext4/{device}/journal_task", task), ("proc/17/comm", comm)):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(f"{text}\n")
    for name in journals:
        (root / "proc/fs/jbd2" / name).mkdir(parents=True)
    return read(root, mount(number), probe=probe)[device]


@pytest.mark.parametrize(
    ("task", "comm", "journals", "name", "understood"),
    [
        ("<none>", "x", (), "", True),
        ("17", "jbd2/md0-8", ("md0-8",), "", True),
        ("17", "jbd2/md0-8", (), "", True),
        ("0", "x", ("md0-8",), "", True),
        ("17", "jbd2/loop0", ("loop0", "sdb-8"), "loop0", True),
        ("17", "jbd2/cciss!c0d0", ("cciss!c0d0p1",), "", False),
        ("0", "x", ("loop0",), "", False),
        ("17", "bash", ("loop0",), "", False),
    ],
)
def test_the_journal_of_an_ext4(
    add: Add, tmp_path: Path, task: str, comm: str, journals: tuple[str, ...], name: str, understood: bool
) -> None:
    add("md0", "9:0")
    add("loop0", "7:0")
    found = journal(tmp_path, task, comm, *journals)
    assert (found.journal, found.understood) == (name, understood)


def test_a_known_journal_makes_no_served_disk_understood(add: Add, tmp_path: Path) -> None:
    add("nbd0", "43:0")
    add("loop0", "7:0")
    found = journal(tmp_path, "17", "jbd2/loop0", "loop0", device="nbd0", number="43:0")
    assert found == BlockDevice("nbd0", "43:0", journal="loop0", understood=False)


def test_a_known_device_below_makes_no_unknown_journal_understood(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    add("md0", "9:0")
    probe = Answers(loop0=Backing(device="9:0"))
    found = journal(tmp_path, "17", "jbd2/???", "x", device="loop0", number="7:0", probe=probe)
    assert found == BlockDevice("loop0", "7:0", slaves=("md0",), understood=False)


def test_the_device_with_a_journal_is_read_too(add: Add, tmp_path: Path) -> None:
    add("md0", "9:0")
    add("loop0", "7:0")
    journal(tmp_path, "17", "jbd2/loop0", "loop0")
    assert read(tmp_path, mount("9:0"))["loop0"] == BlockDevice("loop0", "7:0", file_on="8:1")


def test_a_partition_brings_its_disk(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    add("loop0/loop0p1", "259:0", partition="1\n")
    assert read(tmp_path, mount("259:0")) == {
        "loop0p1": BlockDevice("loop0p1", "259:0", disk="loop0"),
        "loop0": BlockDevice("loop0", "7:0", file_on="8:1"),
    }


def test_slaves_and_devices_under_loop_devices_are_followed(add: Add, tmp_path: Path) -> None:
    add("dm-0", "253:0", slaves=("dm-1", "gone"), **{"dm/name": "top\n"})
    add("dm-1", "253:1", slaves=("loop0",), **{"dm/name": "vg-x\n"})
    add("loop0", "7:0")
    add("dm-2", "253:2", slaves=("loop1",), **{"dm/name": "low\n"})
    add("loop1", "7:1")
    add("cciss!c0d0", "104:0")
    probe = Answers(loop0=Backing(device="253:2"), loop1=Backing(device="104:0"))
    found = read(tmp_path, mount("253:0"), probe=probe)
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
    expected = {n: BlockDevice(n, f"7:{n[-1]}", pool=pool, file_on="8:1") for n in ("loop0", "loop1")}
    assert read(tmp_path, info) == expected


def test_btrfs_on_a_mapped_device(add: Add, tmp_path: Path) -> None:
    add("dm-3", "253:3", **{"dm/name": "vg-x\n"})
    assert set(read(tmp_path, mount("0:40", "btrfs", "/dev/mapper/vg-x"))) == {"dm-3"}


@pytest.mark.parametrize("path", ["loop1", "dev/loop1", "//dev/loop1", "/dev/../loop1", "/dev/", "/dev/mapper/", ""])
def test_a_text_that_is_no_path_below_dev_names_no_device(add: Add, tmp_path: Path, path: str) -> None:
    add("loop0", "7:0")
    add("loop1", "7:1")
    add("dm-0", "253:0", **{"dm/name": ""})
    for info in (mount("7:0", "xfs", options=f"rw,logdev={path}"), mount("0:40", "bcachefs", f"/dev/loop0:{path}")):
        assert set(read(tmp_path, info)) == {"loop0"}


@pytest.mark.parametrize("source", ["/dev/..", "/dev/../../etc", "/dev/" + "x" * 5000, "/dev/", "/dev/mapper/"])
def test_a_source_that_a_user_made_up_names_no_device(add: Add, tmp_path: Path, source: str) -> None:
    assert read(tmp_path, mount("0:40", "fuse.x", source)) == {}


def test_devices_may_vanish(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0")
    (tmp_path / "devices/virtual/block/loop0/dev").unlink()
    (tmp_path / "dev/block/7:1").symlink_to("../../devices/virtual/block/loop1")
    assert read(tmp_path, mount("7:0"), mount("7:1"), mount("7:2")) == {}


@pytest.mark.parametrize("source", ["/dev/mapper/vg-y", "/dev/dm-7", "/dev/mapper/"])
def test_a_mapped_device_that_is_being_deleted_has_no_name(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    add("dm-0", "253:0", **{"dm/name": "vg-x\n"})
    add("dm-7", "253:7", **{"dm/name": "vg-y\n"})
    refuse(monkeypatch, "dm-7/dm/name", errno.EINVAL)
    found = read(tmp_path, mount("0:40", "btrfs", "/dev/mapper/vg-x"), mount("0:41", "btrfs", source))
    assert {name: device.mapper for name, device in found.items()} == {
        "dm-0": "vg-x",
        **({"dm-7": ""} if source == "/dev/dm-7" else {}),
    }


def test_a_journal_whose_thread_ends_while_it_is_read_is_not_known(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("md0", "9:0")
    refuse(monkeypatch, "/comm", errno.ESRCH)
    assert not journal(tmp_path, "17", "jbd2/md0", "md0").understood


def refuse(monkeypatch: pytest.MonkeyPatch, end: str, number: int) -> None:
    """Have the kernel refuse to read the files whose paths end so."""

    def read_text(path: str) -> str:
        if path.endswith(end):
            raise OSError(number, os.strerror(number), path)
        return real(path)

    real = sysfs.read_text
    monkeypatch.setattr(sysfs, "read_text", read_text)


def test_any_other_error_ends_the_plan_and_names_the_file(add: Add, tmp_path: Path) -> None:
    add("dm-0", "253:0", **{"dm/name": ""})
    name = tmp_path / "devices/virtual/block/dm-0/dm/name"
    name.unlink()
    name.symlink_to("/proc/self/mem")  # opens, but its first page does not read
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(tmp_path, mount("253:0"))
    assert caught.value.filename == str(name)


def test_without_sysfs_there_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


def test_what_cannot_be_read_is_a_fault_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> list[BlockDevice]:
        raise OSError(36, "File name too long", "/sys/block/dm-0/dm/name")

    monkeypatch.setattr(sysfs, "read_devices", refuse)
    with pytest.raises(Fault, match="name: File name too long") as caught:
        sysfs.read_plan(Rules())
    assert caught.value.code is Code.FAILED


def test_this_machine_has_a_plan() -> None:
    found = sysfs.read_plan(Rules())
    records = (*found.mounts, *found.left_out)
    assert {m.device for m in records if not m.namespace} == {m.device for m in sysfs.read_mountinfo()}


def test_unless_it_may_ask_nothing_outside_procfs_and_sysfs_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
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
    sysfs.read_plan(Rules(), ask=False)
    monkeypatch.undo()
    assert {"/proc/self/mountinfo", "/proc/filesystems"} <= set(touched)
    assert all(path.startswith(("/proc/", "/sys/")) or path in ("/proc", "/sys") for path in touched)


def test_a_loop_device_whose_file_is_behind_a_server_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def status(name: str, _number: str) -> tuple[int, int]:
        asked.append(name)
        return os.makedev(8, 1), 0

    monkeypatch.setattr(probe_module, "_status_of", status)
    mounts = [
        MountInfo(1, 1, "8:1", "/", "/", "ext4", "/dev/sda1", "rw"),
        MountInfo(2, 1, "0:50", "/", "/srv/pool", "fuse.mergerfs", "a:b", "rw"),
        MountInfo(3, 1, "0:51", "/", "/srv/nfs", "nfs4", "server:/x", "rw"),
    ]
    found = Probe(View(mounts)).loops(
        [
            ("loop0", "7:0", "/srv/x.img"),
            ("loop1", "7:1", "/srv/pool/x.img"),
            ("loop2", "7:2", "/srv/nfs/deep/x.img"),
            ("loop3", "7:3", ""),
        ]
    )
    assert sorted(asked) == ["loop0", "loop3"]
    assert found == {"loop0": Backing("8:1"), "loop3": Backing("8:1")}


OVERLAID = [
    MountInfo(20, 1, "8:1", "/", "/", "ext4", "/dev/sda1", "rw"),
    MountInfo(21, 20, "8:16", "/", "/a", "ext4", "/dev/sdb", "rw"),
    MountInfo(22, 20, "8:32", "/", "/b", "ext4", "/dev/sdc", "rw"),
    MountInfo(23, 20, "0:50", "/", "/o", "overlay", "overlay", "rw,lowerdir=/l,upperdir=/a/u,workdir=/a/w"),
]
BOUND = [MountInfo(30, 21, "8:32", "/", "/a", "ext4", "/dev/sdc", "rw")]  # mount --bind /b /a, after the overlay


@pytest.mark.parametrize(("later", "found"), [([], {"0:50": "8:16"}), (BOUND, {})])
def test_an_upper_layer_is_what_its_path_led_to_before_the_overlay(
    monkeypatch: pytest.MonkeyPatch, later: list[MountInfo], found: dict[str, str]
) -> None:
    view = View([*OVERLAID, *later])
    monkeypatch.setattr(probe_module, "mount_at", lambda _: (view.leads_to["/a"], 0))
    assert Probe(view).uppers(["0:50"]) == found


# Where paths below /dev lead

DEV = View(
    [
        MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", "rw"),
        MountInfo(2, 1, "0:5", "/", "/dev", "devtmpfs", "devtmpfs", "rw"),
        MountInfo(3, 2, "0:20", "/", "/dev/shm", "tmpfs", "tmpfs", "rw"),
        MountInfo(4, 3, "0:60", "/", "/dev/shm/me/m", "fuse.x", "x", "rw,user_id=1000"),
        MountInfo(5, 1, "0:61", "/", "/mnt/nfs", "nfs4", "server:/x", "rw"),
    ]
)
SERVED = ["/dev/../mnt/nfs/x", "/dev/shm/me/m", "/dev/shm/me/m/x", "/dev/shm/../shm/me/m/x", "/dev/..", "/dev/"]
LONG = "/dev/" + "a/" * 3000


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def block_device(path: str) -> str:
        found.append(path)
        return "/dev/sdb"

    monkeypatch.setattr(probe_module, "_block_device", block_device, raising=False)
    return found


def no_thread(*_: object) -> int:
    raise AssertionError("a thread is started")


def test_only_ways_that_ask_nobody_are_walked_below_dev(walked: list[str]) -> None:
    found = Probe(DEV).block_devices(["/dev/disk/by-id/x", "/dev/shm/x", "/dev/a/../b", LONG, *SERVED])
    assert found == {"/dev/disk/by-id/x": "/dev/sdb", "/dev/shm/x": "/dev/sdb", "/dev/a/../b": "/dev/sdb"}
    assert sorted(walked) == ["/dev/b", "/dev/disk/by-id/x", "/dev/shm/x"]


def test_a_way_below_dev_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(probe_module, "_block_device", lambda _: str(go_on.wait(30)), raising=False)
    assert Probe(DEV, until=time.monotonic() + 0.05).block_devices(["/dev/shm/x"]) == {}
    go_on.set()


def test_what_is_no_block_device_leads_to_none() -> None:
    for path in ("/dev/null", "/dev/that-is-not-there", "/dev/null/x", "/dev/\0", "/dev/\ud800"):
        assert probe_module._block_device(path) == ""


def test_selectors_and_servers_are_asked_about_at_once_and_what_is_not_known_is_noted(walked: list[str]) -> None:
    rules = Rules(exclude=("dev:/dev/vg/lv", "/x"), request_include=("dev:/dev/../mnt/nfs/x", "dev:8:1", "type:ext4"))
    served = [
        mount("0:70", "fuse", "/dev/vg/other", "rw,user_id=0"),
        mount("0:71", "fuse", "/dev/fuse", "rw,user_id=0"),
        mount("0:72", "fuse", "/dev/shm/me/m", "rw,user_id=1000"),
    ]
    links, notes = sysfs._links(rules, served, Probe(DEV))
    assert links == {"/dev/vg/lv": "/dev/sdb", "/dev/vg/other": "/dev/sdb", "/dev/fuse": ""}
    assert len(walked) == 2
    (note,) = notes
    assert note.startswith("dev:/dev/../mnt/nfs/x ")


def test_a_plan_with_no_path_to_look_up_starts_no_thread_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module._thread, "start_new_thread", no_thread)
    served = [mount("0:71", "fuse", "/dev/fuse", "rw,user_id=0"), mount("0:72", "fuse.x", "/dev/sdb", "rw,user_id=7")]
    assert sysfs._links(Rules(include=("/srv/*", "dev:8:1", "type:xfs")), served, Probe(DEV)) == ({"/dev/fuse": ""}, [])


# Superblocks that have the same number one after another


def born(root: Path, folder: str) -> str:
    """Make a folder in sysfs anew, as the kernel does at each mount; return its number."""
    path = root / "fs" / folder
    path.mkdir(parents=True)
    return f"{path.parent.name}{path.stat().st_ino}"


@pytest.mark.parametrize(("fstype", "family"), [("ext4", "ext4"), ("ext3", "ext4"), ("xfs", "xfs"), ("f2fs", "f2fs")])
def test_a_superblock_is_known_by_its_own_folder(add: Add, tmp_path: Path, fstype: str, family: str) -> None:
    add("loop0", "7:0", diskseq="4\n")
    number = born(tmp_path, f"{family}/loop0")
    assert sysfs.superblock_id("7:0", fstype, "/dev/loop0", str(tmp_path)) == f"7:0@{number}"
    (tmp_path / family).mkdir()
    (tmp_path / "fs" / family / "loop0").rename(tmp_path / family / "before")  # its inode stays taken
    assert sysfs.superblock_id("7:0", fstype, "/dev/loop0", str(tmp_path)) == "7:0@4"
    again = born(tmp_path, f"{family}/loop0")
    assert again != number
    assert sysfs.superblock_id("7:0", fstype, "/dev/loop0", str(tmp_path)) == f"7:0@{again}"


def test_a_btrfs_is_known_by_the_folder_of_its_pool(tmp_path: Path) -> None:
    for uuid, member in (("a", "loop1"), ("b", "loop2")):
        (tmp_path / f"fs/btrfs/{uuid}/devices" / member).mkdir(parents=True)
    number = (tmp_path / "fs/btrfs/b").stat().st_ino
    assert sysfs.superblock_id("0:47", "btrfs", "/dev/loop2", str(tmp_path)) == f"0:47@btrfs{number}"
    for source in ("/dev/loop3", "loop2", "none", ""):
        assert sysfs.superblock_id("0:47", "btrfs", source, str(tmp_path)) == "0:47@"
    assert sysfs.superblock_id("0:47", "bcachefs", "/dev/loop2", str(tmp_path)) == "0:47@"


@pytest.mark.parametrize("fstype", ["fuse", "bcachefs", "overlay", "nfs4"])
def test_a_text_that_may_be_a_users_is_not_walked(monkeypatch: pytest.MonkeyPatch, fstype: str) -> None:
    walked: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "realpath", lambda path: walked.append(path) or path)
        assert sysfs.superblock_id("0:47", fstype, "/dev/shm/me/m") == "0:47@"
    assert walked == []


def test_other_types_are_known_by_their_disk(add: Add, tmp_path: Path) -> None:
    add("loop0", "7:0", diskseq="17\n")
    add("loop0/loop0p1", "259:0", partition="1\n")
    for number in ("7:0", "259:0"):
        assert sysfs.superblock_id(number, "jfs", "/dev/x", str(tmp_path)) == f"{number}@17"
    assert sysfs.superblock_id("7:9", "jfs", "/dev/x", str(tmp_path)) == "7:9@"


def test_a_superblock_of_which_nothing_can_be_read_is_none_that_is_known(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("loop0", "7:0")

    def refuse(*_: Any) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(sysfs, "read_text", refuse)
    assert sysfs.superblock_id("7:0", "jfs", "/dev/loop0", str(tmp_path)) == "7:0@"
