"""Facts about file systems and disks, in qemu-ga's form.

A file system is asked only for its figures (statvfs), and not even for those if the path to it crosses a network file
system, whose server may be dead. No device is opened, so there are no SMART data.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...api import qemu
from ...api.errors import failed
from ..mountinfo import MountInfo, Server, server_of
from ..sysfs import read_mountinfo
from .disk_addresses import Tree, address, disks_below, is_virtual, known_to_udev, node
from .reading import is_number, names_in, read_if_any, read_needed, refused

if TYPE_CHECKING:
    from ..context import Args, Worker

DISKSTATS = "/proc/diskstats"
TREE = Tree()
# The fields after major, minor and name (Documentation/admin-guide/iostats.rst); older kernels have fewer.
_STATS = (
    *("read-ios", "read-merges", "read-sectors", "read-ticks"),
    *("write-ios", "write-merges", "write-sectors", "write-ticks", "ios-pgr", "total-ticks", "weight-ticks"),
    *("discard-ios", "discard-merges", "discard-sectors", "discard-ticks"),
    *("flush-ios", "flush-ticks"),
)
_STATS_GROUPS = (11, 15, 17)


def get_fsinfo(_worker: Worker, args: Args) -> list[dict[str, Any]]:
    """Return the mounts of local file systems, the newest first, with the bytes used and the disks they lie on."""
    try:
        mountinfo = read_mountinfo()
    except OSError as error:
        raise failed(error, "guest-get-fsinfo: /proc/self/mountinfo") from None
    found = list(fsinfo(mountinfo, TREE))
    if args.get("qga", qemu.LATEST) < qemu.PRIVILEGED_BYTES:
        for info in found:
            info.pop("total-bytes-privileged", None)
    return found


def fsinfo(mountinfo: list[MountInfo], tree: Tree) -> Iterator[dict[str, Any]]:
    """Yield the GuestFilesystemInfo of each mount that has a block device, the last mount first."""
    hang = (Server.NETWORK, Server.FUSE)
    over_network = {m.mountpoint for m in mountinfo if server_of(m.fstype) in hang and m.mountpoint != "/"}
    for mount in reversed(mountinfo):
        devices = _devices(mount, tree)
        if not devices:
            continue
        info: dict[str, Any] = {
            "name": os.path.basename(devices[0]),
            "mountpoint": mount.mountpoint,
            "type": mount.fstype,
            "disk": [],
        }
        if over_network.isdisjoint(_on_the_way(mount.mountpoint)):
            info |= _usage(mount.mountpoint)
        disks = dict.fromkeys(disk for device in devices for disk in disks_below(tree, device))
        info["disk"] = [address(tree, disk) for disk in disks]
        yield info


def _on_the_way(path: str) -> Iterator[str]:
    """Yield the folders above an absolute path, and the path itself."""
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)
    yield path


def get_disks(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return the disks that are not empty, each followed by its partitions; raise Fault FAILED without /sys/block."""
    try:
        names = sorted(os.listdir(f"{TREE.sysfs}/block"))
    except OSError as error:
        raise refused(error, f'Can\'t open directory "{TREE.sysfs}/block"') from None
    return [info for name in names for info in _disk(TREE, name)]


def get_diskstats(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return the counters of every block device. Ticks are milliseconds, sectors have 512 bytes."""
    return list(diskstats(read_needed(DISKSTATS)))


def diskstats(text: str) -> Iterator[dict[str, Any]]:
    """Yield the GuestDiskStatsInfo of each line of /proc/diskstats; a malformed line is left out."""
    for line in text.split("\n"):
        fields = line.split()
        values = [int(f) for f in (*fields[:2], *fields[3:]) if is_number(f)]
        if len(fields) < 7 or len(values) != len(fields) - 1:
            continue
        major, minor, *counters = values
        known = max((size for size in _STATS_GROUPS if size <= len(counters)), default=0)
        yield {
            "name": fields[2],
            "major": major,
            "minor": minor,
            "stats": dict(zip(_STATS[:known], counters, strict=False)),
        }


def _devices(mount: MountInfo, tree: Tree) -> list[str]:
    """Return the block devices of a mount (paths from /devices on), its source first; may be empty."""
    number = mount.device
    if number.startswith("0:"):
        # A btrfs does not have the number of a device; its source is the device that it was mounted by.
        number = number_of_node(mount.source) if mount.fstype == "btrfs" else ""
        if not number:
            return []
    try:
        source = tree.resolve(f"/dev/block/{number}")
    except OSError:
        return [f"/devices/virtual/block/{number}"]  # hidden in a container: only the number is known
    return list(dict.fromkeys((source, *_pool(source, tree)))) if mount.fstype == "btrfs" else [source]


def number_of_node(path: str) -> str:
    """Return major:minor of the block device with that node, "" if the path is not such a node."""
    try:
        found = os.stat(path) if path.startswith("/dev/") else None
    except OSError:
        return ""
    if found is None or not stat.S_ISBLK(found.st_mode):
        return ""
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _pool(device: str, tree: Tree) -> Iterator[str]:
    """Yield the devices of the mounted btrfs that a device belongs to."""
    for uuid in names_in(f"{tree.sysfs}/fs/btrfs"):
        members = names_in(f"{tree.sysfs}/fs/btrfs/{uuid}/devices")
        if os.path.basename(device) in members:
            for member in members:
                try:
                    yield tree.resolve(f"/class/block/{member}")
                except OSError:
                    continue  # it was removed meanwhile


def _usage(mountpoint: str) -> dict[str, int]:
    """Return the bytes used, and the total without and with what is reserved for root; {} if statvfs(3) fails."""
    try:
        figures = os.statvfs(mountpoint)
    except OSError:
        return {}
    used = max(0, figures.f_blocks - figures.f_bfree)
    return {
        "used-bytes": used * figures.f_frsize,
        "total-bytes": (used + figures.f_bavail) * figures.f_frsize,
        "total-bytes-privileged": figures.f_blocks * figures.f_frsize,
    }


def _disk(tree: Tree, name: str) -> Iterator[dict[str, Any]]:
    """Yield the GuestDiskInfo of a disk and of its partitions; nothing if the disk is empty or has vanished."""
    try:
        device = tree.resolve(f"/block/{name}")
    except OSError:
        return
    dev = node(tree, device)
    if not dev or read_if_any(f"{tree.sysfs}{device}/size") in ("", "0"):
        return
    info: dict[str, Any] = {"name": dev, "partition": False}
    alias = known_to_udev(tree, device, "DM_NAME") or read_if_any(f"{tree.sysfs}{device}/dm/name")
    if alias:
        info["alias"] = alias
    if not is_virtual(device):
        info["address"] = address(tree, device)
    if os.path.isdir(f"{tree.sysfs}{device}/slaves"):
        info["dependencies"] = _nodes(tree, f"{device}/slaves")
    yield info
    for partition in sorted(_partitions(tree, device)):
        if part := node(tree, f"{device}/{partition[1]}"):
            yield {"name": part, "partition": True, "dependencies": [dev]}


def _partitions(tree: Tree, device: str) -> Iterable[tuple[int, str]]:
    for name in names_in(f"{tree.sysfs}{device}"):
        number = read_if_any(f"{tree.sysfs}{device}/{name}/partition")
        if is_number(number):
            yield int(number), name


def _nodes(tree: Tree, folder: str) -> list[str]:
    nodes = (node(tree, f"{folder}/{name}") for name in names_in(f"{tree.sysfs}{folder}"))
    return [found for found in nodes if found]
