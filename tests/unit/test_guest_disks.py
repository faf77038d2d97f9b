"""Facts on disks: recorded trees of sysfs and texts of /proc to what qemu-ga answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.counting import assert_linear
from fakes.devices import PCI, Devices, add_zoo
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.commands import disk_addresses, disks
from virtagent.agent.worker.commands.disk_addresses import Tree
from virtagent.agent.worker.mountinfo import MountInfo, parse_mountinfo


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


@pytest.fixture
def tree(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> Tree:
    found = Tree(str(devices.sysfs), str(devices.udev))
    monkeypatch.setattr(disks, "TREE", found)
    return found


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths that statvfs was called for; the mounts of these tests are not real."""
    paths: list[str] = []

    def statvfs(path: str) -> os.statvfs_result:
        paths.append(path)
        if path == "/gone":
            raise FileNotFoundError(2, "No such file or directory")
        return os.statvfs_result((4096, 1024, 1000, 400, 300, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    return paths


def mount(device: str, mountpoint: str = "/srv", fstype: str = "ext4", source: str = "none") -> MountInfo:
    return MountInfo(2, 1, device, "/", mountpoint, fstype, source, "rw")


def pci(slot: int, function: int = 0, bus: int = 0) -> dict[str, int]:
    return {"domain": 0, "bus": bus, "slot": slot, "function": function}


def at(bus_type: str, controller: dict[str, int], dev: str, **rest: Any) -> dict[str, Any]:
    base = {"pci-controller": controller, "bus-type": bus_type, "bus": 0, "target": 0, "unit": 0, "dev": dev}
    return {**base, **rest}


WORKER: Any = None  # these handlers need none
NOWHERE = {"domain": -1, "bus": -1, "slot": -1, "function": -1}
USAGE = {"used-bytes": 614400, "total-bytes": 921600, "total-bytes-privileged": 1024000}


def info(tree: Tree, *mounts: MountInfo) -> list[dict[str, Any]]:
    return list(disks.fsinfo(list(mounts), tree))


def below(tree: Tree, device: str) -> list[str]:
    return [d["dev"] for d in info(tree, mount(device))[0]["disk"]]


def test_every_kind_of_disk_with_its_partitions(devices: Devices, tree: Tree) -> None:
    add_zoo(devices)
    disk: dict[str, Any] = {"partition": False, "dependencies": []}
    assert disks.get_disks(None, {}) == [  # type: ignore[arg-type]
        {"name": "/dev/loop0", **disk},
        {"name": "/dev/loop0p1", "partition": True, "dependencies": ["/dev/loop0"]},
        {"name": "/dev/nvme0n1", **disk, "address": at("nvme", pci(0, bus=1), "/dev/nvme0n1", serial="nvme_serial")},
        {"name": "/dev/nvme0n1p2", "partition": True, "dependencies": ["/dev/nvme0n1"]},
        {
            "name": "/dev/sda",
            **disk,
            "address": at("scsi", pci(3), "/dev/sda", unit=4, serial="0QEMU_QEMU_HARDDISK_data"),
        },
        {"name": "/dev/sda1", "partition": True, "dependencies": ["/dev/sda"]},
        {"name": "/dev/sdb", **disk, "address": at("sata", pci(0x1F, 2), "/dev/sdb", unit=2)},
        {"name": "/dev/sdc", **disk, "address": at("scsi", pci(5), "/dev/sdc", unit=5)},
        {"name": "/dev/sdd", **disk, "address": at("usb", pci(6), "/dev/sdd")},
        {"name": "/dev/sr0", **disk, "address": at("ide", pci(1, 1), "/dev/sr0", bus=1, unit=1)},
        {"name": "/dev/vda", **disk, "address": at("virtio", pci(2), "/dev/vda")},
        {"name": "/dev/vda1", "partition": True, "dependencies": ["/dev/vda"]},
        {"name": "/dev/vda2", "partition": True, "dependencies": ["/dev/vda"]},
        {"name": "/dev/vda10", "partition": True, "dependencies": ["/dev/vda"]},
    ]


@pytest.mark.parametrize(
    ("path", "driver", "expected"),
    [
        (f"/devices/{PCI}:03.0/virtio2/host6/target6:1:3/6:1:3:40/block/sda", "virtio-pci", ("scsi", 1, 3, 40)),
        (f"/devices/{PCI}:03.0/host0/target0:2:1/0:2:1:0/block/sda", "megaraid_sas", ("scsi", 2, 1, 0)),
        (f"/devices/{PCI}:03.0/ata5/host4/target4:0:0/4:0:0:0/block/sda", "ahci", ("unknown", 0, 0, 0)),  # port gone
        (f"/devices/{PCI}:03.0/ata3/host4/target4:0:1/4:0:1:0/block/sda", "pata_amd", ("ide", 2, 0, 1)),
        (f"/devices/{PCI}:03.0/ata3/host4/", "ahci", ("unknown", 0, 0, 0)),
        ("/devices/platform/a003e00.virtio_mmio/virtio0/block/vda", "", ("virtio", 0, 0, 0)),
        ("/devices/vbd-51712/block/xvda", "", ("xen", 0, 0, 0)),
        ("/devices/platform/floppy.0/block/fd0", "", ("fdc", 0, 0, 0)),
        ("/devices/LNXSYSTM:00/VMBUS:01/f8b3/host0/target0:0:0/0:0:0:2/block/sda", "", ("scsi", 0, 0, 2)),
        ("/devices/rbd/0/block/rbd0", "", ("unknown", 0, 0, 0)),
        ("/devices/target1:x/block/ata9/virtio/sda", "", ("unknown", 0, 0, 0)),
    ],
)
def test_the_path_tells_the_place(path: str, driver: str, expected: tuple[str, int, int, int]) -> None:
    assert disk_addresses.place(path, driver, lambda _: [1, 2, 3]) == expected


def test_pci_behind_another_host_bridge(devices: Devices, tree: Tree) -> None:
    vmd = "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.7"
    devices.drive(vmd, "nvme")
    device = devices.add(f"{vmd}/nvme/nvme0/nvme0n1")
    controller = {"domain": 0x10000, "bus": 0xE1, "slot": 0, "function": 7}
    assert disk_addresses.address(tree, device)["pci-controller"] == controller


def test_a_namespace_with_several_ways_to_it_has_the_address_of_the_first(devices: Devices, tree: Tree) -> None:
    devices.drive(f"{PCI}:07.0", "nvme")
    device = devices.add("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0")
    devices.add("virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p1", "259:1")
    subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0"
    (devices.sysfs / f"devices/{PCI}:07.0/nvme/nvme1").mkdir(parents=True)
    devices.link(f"{subsystem}/nvme0", "devices/gone")
    devices.link(f"{subsystem}/nvme1", f"devices/{PCI}:07.0/nvme/nvme1")
    assert disk_addresses.address(tree, device) == at("nvme", pci(7), "/dev/nvme0n1")
    assert disk_addresses.address(tree, f"{device}/nvme0n1p1") == at("nvme", pci(7), "/dev/nvme0n1p1")


def test_a_disk_of_a_mainframe(devices: Devices, tree: Tree) -> None:
    device = devices.add("css0/0.0.0002/0.0.1a03/virtio1/block/vdb")
    ccw = {"cssid": 0, "ssid": 0, "subchno": 2, "devno": 0x1A03}
    assert disk_addresses.address(tree, device) == at("virtio", NOWHERE, "/dev/vdb") | {"ccw-address": ccw}


def test_dm_over_md_over_partitions(devices: Devices, tree: Tree) -> None:
    add_zoo(devices)
    md = devices.add("virtual/block/md127", "9:127")
    part = devices.add("virtual/block/md127/md127p1", "259:9")
    pool = devices.add("virtual/block/dm-0", "253:0", DM_NAME="vg-pool")
    thin = devices.add("virtual/block/dm-1", "253:1")
    devices.write("devices/virtual/block/dm-1/dm/name", "vg-thin\n")
    devices.lies_on(md, f"/devices/{PCI}:02.0/virtio1/block/vda/vda1")
    devices.lies_on(md, f"/devices/{PCI}:03.0/virtio2/host6/target6:0:0/6:0:0:4/block/sda/sda1")
    devices.lies_on(pool, part, f"/devices/{PCI}:02.0/virtio1/block/vda/vda1", "/devices/gone")
    devices.lies_on(thin, pool)
    assert below(tree, "253:1") == ["/dev/sda1", "/dev/vda1"]
    found = {d["name"]: d for d in disks.get_disks(None, {})}  # type: ignore[arg-type]
    assert found["/dev/dm-0"]["alias"] == "vg-pool"
    assert found["/dev/dm-0"]["dependencies"] == ["/dev/md127p1", "/dev/vda1"]
    assert found["/dev/dm-1"] == {
        "name": "/dev/dm-1",
        "partition": False,
        "alias": "vg-thin",
        "dependencies": ["/dev/dm-0"],
    }


def test_devices_that_lie_on_each_other_end(devices: Devices, tree: Tree) -> None:
    one, two = devices.add("virtual/block/dm-0", "253:0"), devices.add("virtual/block/dm-1", "253:1")
    devices.lies_on(one, two)
    devices.lies_on(two, one)
    assert below(tree, "253:0") == []


def test_file_systems_the_last_mount_first(devices: Devices, tree: Tree, asked: list[str]) -> None:
    add_zoo(devices)
    mounts = [
        mount("0:21", "/proc", "proc"),
        mount("254:1", "/"),
        mount("7:0", "/mnt/loop", "squashfs"),
        mount("254:1", "/mnt/bind"),
        mount("0:40", "/tmp", "tmpfs"),
    ]
    vda1 = at("virtio", pci(2), "/dev/vda1")
    assert info(tree, *mounts) == [
        {"name": "vda1", "mountpoint": "/mnt/bind", "type": "ext4", "disk": [vda1], **USAGE},
        {"name": "loop0", "mountpoint": "/mnt/loop", "type": "squashfs", "disk": [], **USAGE},
        {"name": "vda1", "mountpoint": "/", "type": "ext4", "disk": [vda1], **USAGE},
    ]
    assert asked == ["/mnt/bind", "/mnt/loop", "/"]


def test_many_mounts_beside_many_fuse_mounts_cost_what_each_costs(devices: Devices, tree: Tree) -> None:
    """Any user may mount a thousand by FUSE."""
    add_zoo(devices)

    def listing(count: int) -> Callable[[], object]:
        served = [mount("0:50", f"/home/u/{i}", "fuse.x", "x") for i in range(count)]
        local = [mount("254:1", f"/gone/{i}") for i in range(count)]
        return lambda: info(tree, *served, *local)

    assert_linear(listing, 50)


def test_a_path_over_a_network_file_system_is_not_asked(devices: Devices, tree: Tree, asked: list[str]) -> None:
    add_zoo(devices)
    network = [
        mount("0:50", "/", "9p"),
        mount("0:51", "/net", "nfs4"),
        mount("0:52", "/home/u/ssh", "fuse.sshfs"),
        mount("0:53", "/tmp", "tmpfs"),
    ]
    local = [
        mount("254:1", path) for path in ("/net/disk", "/net", "/home/u/ssh/x/y", "/tmp/disk", "/network", "/gone")
    ]
    found = info(tree, *network, *local)
    assert {i["mountpoint"] for i in found if "used-bytes" not in i} == {
        "/net/disk",
        "/net",
        "/home/u/ssh/x/y",
        "/gone",
    }
    assert set(asked) == {"/tmp/disk", "/network", "/gone"}


def test_btrfs_has_all_disks_of_its_pool(devices: Devices, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    add_zoo(devices)
    monkeypatch.setattr(disks, "number_of_node", {"/dev/mapper/x": "8:1", "/dev/vda2": "254:2", "/dev/root": ""}.get)
    for name in ("sda1", "vda1", "gone"):
        path = devices.sysfs / "fs/btrfs/5c2c/devices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("nowhere")
    (devices.sysfs / "fs/btrfs/features").mkdir()
    pool = info(tree, mount("0:40", "/b", "btrfs", "/dev/mapper/x"))
    single = info(tree, mount("0:41", "/c", "btrfs", "/dev/vda2"))
    assert pool[0]["name"] == "sda1"
    assert [d["dev"] for d in pool[0]["disk"]] == ["/dev/sda1", "/dev/vda1"]
    assert [d["dev"] for d in single[0]["disk"]] == ["/dev/vda2"]
    assert info(tree, mount("0:42", "/d", "btrfs", "/dev/root")) == []


@pytest.mark.parametrize("path", ["/dev/null", "/dev/no such device", "/dev/" + "x" * 300, "/etc", "none"])
def test_what_is_no_block_device_has_no_number(path: str) -> None:
    assert disks.number_of_node(path) == ""


def test_odd_mount_points_are_unescaped(tree: Tree) -> None:
    mounts = parse_mountinfo("36 1 8:1 / /mnt/a\\040b\\012\\134\udcff rw - ext4 /dev/sda1 rw\n")
    assert [i["mountpoint"] for i in disks.fsinfo(mounts, tree)] == ["/mnt/a b\n\\\udcff"]


def test_a_device_that_sysfs_hides_is_known_by_its_number(tree: Tree) -> None:
    assert info(tree, mount("8:77")) == [{"name": "8:77", "mountpoint": "/srv", "type": "ext4", "disk": [], **USAGE}]


def test_slashes_in_the_name_of_a_device(devices: Devices, tree: Tree) -> None:
    devices.add("pci0000:00/0000:00:03.0/cciss0/c0d0/block/cciss!c0d0", "104:0")
    assert disks.get_disks(None, {})[0]["name"] == "/dev/cciss/c0d0"  # type: ignore[arg-type]
    assert info(tree, mount("104:0"))[0]["name"] == "cciss!c0d0"


def test_hostile_contents(devices: Devices, tree: Tree) -> None:
    add_zoo(devices)
    path = f"devices/{PCI}:02.0/virtio1/block/vda"
    devices.write(f"{path}/vda1/partition", "²\n")
    (devices.sysfs / path / "vda2/uevent").unlink()
    devices.write(f"{path}/uevent", "DEVNAME\n=x\nDEVNAME=vda\n\udcff")
    (devices.udev / "b254:0").write_bytes(b"E:ID_SERIAL\nE:ID_SERIAL=a=\xff\\x20\rb\nE:ID_SERIAL=2\n")
    devices.link("block/vanished", "devices/nowhere")
    devices.write(f"devices/{PCI}:1f.2/ata11/host2/target2:0:0/2:0:0:0/block/sdb/uevent", "")
    names = [d["name"] for d in disks.get_disks(None, {})]  # type: ignore[arg-type]
    assert names == [
        *("/dev/loop0", "/dev/loop0p1", "/dev/nvme0n1", "/dev/nvme0n1p2", "/dev/sda", "/dev/sda1"),
        *("/dev/sdc", "/dev/sdd", "/dev/sr0", "/dev/vda", "/dev/vda10"),
    ]
    assert disk_addresses.address(tree, f"/{path}")["serial"] == "a=\udcff\\x20\rb"


def test_without_sysfs_there_are_no_disks(tree: Tree, devices: Devices) -> None:
    devices.sysfs.rename(devices.sysfs.with_name("elsewhere"))
    with pytest.raises(Fault, match=r'^Can\'t open directory ".*/sys/block": No such file or directory') as caught:
        disks.get_disks(WORKER, {})
    assert caught.value.code is Code.FAILED


def test_diskstats_of_kernels_old_and_new() -> None:
    text = (
        "   8       0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n"
        "   8       1 sda1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n"
        " 259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11\n"
        "   8       2 sda2 1 2 3 4 5 6 7\n"
        "   8       x sdx 1 2 3 4 5 6 7 8 9 10 11\n"
        "   8       3 sdy 1 2 3 -4 5 6 7 8 9 10 11\n"
        "rubbish\n\n"
    )
    reads = {"read-ios": 1, "read-merges": 2, "read-sectors": 3, "read-ticks": 4}
    writes = {"write-ios": 5, "write-merges": 6, "write-sectors": 7, "write-ticks": 8}
    old = reads | writes | {"ios-pgr": 9, "total-ticks": 10, "weight-ticks": 11}
    discards = {"discard-ios": 12, "discard-merges": 13, "discard-sectors": 14, "discard-ticks": 15}
    flushes = {"flush-ios": 16, "flush-ticks": 17}
    assert list(disks.diskstats(text)) == [
        {"name": "sda", "major": 8, "minor": 0, "stats": old | discards | flushes},
        {"name": "sda1", "major": 8, "minor": 1, "stats": old | discards},
        {"name": "nvme0n1", "major": 259, "minor": 0, "stats": old},
        {"name": "sda2", "major": 8, "minor": 2, "stats": {}},
    ]


def test_without_diskstats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disks, "DISKSTATS", str(tmp_path / "diskstats"))
    with pytest.raises(Fault, match=r'^open\(".*/diskstats"\): No such file or directory \['):
        disks.get_diskstats(WORKER, {})


def test_an_older_qemu_ga_tells_no_privileged_bytes() -> None:
    for version in ((9, 1), (9, 0)):
        told = disks.get_fsinfo(WORKER, {"qga": version})
        assert all(("total-bytes-privileged" in info) == (version == (9, 1)) for info in told if "total-bytes" in info)


def test_this_machine() -> None:
    mounts = {i["mountpoint"] for i in disks.get_fsinfo(None, {})}  # type: ignore[arg-type]
    assert mounts <= {m.mountpoint for m in disks.read_mountinfo()}
    names = {d["name"] for d in disks.get_disks(None, {})}  # type: ignore[arg-type]
    assert all(os.path.exists(name) for name in names)
    assert disks.get_diskstats(WORKER, {})
