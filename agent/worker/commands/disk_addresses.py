"""The place of a disk in the machine: from sysfs and the udev database to QGA's GuestDiskAddress.

The path of a device in sysfs shows its bus: it contains the PCI functions, the virtio device, the ATA port, the SCSI
target. `bus`, `target` and `unit` are counted as the host counts them in its description of the machine. qemu-ga knows
the buses of seven PCI drivers and calls all others "unknown"; here the path decides, so that other controllers have an
address, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...api.structs import Value
from ..reach import walk_down
from .reading import names_in, numbered, read_if_any

_PCI = re.compile(r"/([0-9a-f]{4,}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])(?=/)")
_TARGET = re.compile(r"/target\d+:\d+:\d+/\d+:(\d+):(\d+):(\d+)/")
_ATA = re.compile(r"/ata(\d+)/")
_CCW = re.compile(r"/css[0-9a-f]+/([0-9a-f]+)\.([0-9a-f]+)\.([0-9a-f]+)/[0-9a-f]+\.[0-9a-f]+\.([0-9a-f]+)/")
_SUBSYSTEM = re.compile(r"(.*/nvme-subsys\d+)/nvme\d+n\d+(/|$)")
_BUSES = (
    (re.compile(r"/usb\d+/"), "usb"),
    (re.compile(r"/nvme(/|-subsystem/|-fabrics/)"), "nvme"),
    (re.compile(r"/vbd-\d+/"), "xen"),
    (re.compile(r"/floppy\.\d+/"), "fdc"),
    (re.compile(r"/virtio\d+/(?!host)"), "virtio"),
)


class Tree(Value):
    """The folders that describe devices: sysfs and the database of udev."""

    sysfs: str = "/sys"
    udev: str = "/run/udev/data"

    def resolve(self, path: str) -> str:
        """Return the folder of a device in sysfs, from /devices on; raise OSError if it has no folder."""
        return os.path.realpath(f"{self.sysfs}{path}", strict=True).removeprefix(os.path.realpath(self.sysfs))


def is_virtual(device: str) -> bool:
    """Return whether a device (path from /devices on) is not hardware: loop, device-mapper, md, zram."""
    return device.startswith("/devices/virtual/block/")


def node(tree: Tree, device: str) -> str:
    """Return the path of the device node, "" if it has no node."""
    for line in read_if_any(f"{tree.sysfs}{device}/uevent").split("\n"):
        if line.startswith("DEVNAME="):
            return "/dev/" + line.removeprefix("DEVNAME=")
    return ""


def known_to_udev(tree: Tree, device: str, name: str) -> str:
    """Return a property of the device in udev's database, "" if it is not there."""
    number = read_if_any(f"{tree.sysfs}{device}/dev")
    for line in read_if_any(f"{tree.udev}/b{number}").split("\n"):
        if line.startswith(f"E:{name}="):
            return line.partition("=")[2]
    return ""


def disks_below(tree: Tree, device: str) -> list[str]:
    """Return the real disks and partitions that a device lies on through dm, md and their partitions, each once."""

    def below(here: str) -> Iterator[str]:
        if not is_virtual(here):
            return
        whole = os.path.dirname(here) if os.path.exists(f"{tree.sysfs}{here}/partition") else here
        for slave in names_in(f"{tree.sysfs}{whole}/slaves"):
            try:
                yield tree.resolve(f"{whole}/slaves/{slave}")
            except OSError:
                continue  # it was removed meanwhile

    return [found for found in walk_down([device], below) if not is_virtual(found)]


def address(tree: Tree, device: str) -> dict[str, Any]:
    """Return the GuestDiskAddress of a disk or partition that is not virtual (path from /devices on)."""
    path = _through_controller(tree, device)
    found: dict[str, Any] = {}
    pci, driver = _pci(tree, path)
    bus_type, bus, target, unit = place(path, driver, lambda folder: numbered(names_in(f"{tree.sysfs}{folder}"), "ata"))
    found["pci-controller"] = dict(zip(("domain", "bus", "slot", "function"), pci, strict=True))
    if ccw := _CCW.search(path):
        numbers = (int(number, 16) for number in ccw.groups())
        found["ccw-address"] = dict(zip(("cssid", "ssid", "subchno", "devno"), numbers, strict=True))
    found |= {"bus-type": bus_type, "bus": bus, "target": target, "unit": unit}
    if serial := known_to_udev(tree, device, "ID_SERIAL"):
        found["serial"] = serial
    if dev := node(tree, device):
        found["dev"] = dev
    return found


def place(path: str, driver: str, ports: Callable[[str], Sequence[int]]) -> tuple[str, int, int, int]:
    """Return bus type, bus, target and unit of the device with that path in sysfs.

    `driver` is that of its PCI function; `ports` returns the sorted numbers of the ATA ports in a folder of sysfs.
    """
    for pattern, name in _BUSES:
        if pattern.search(path):
            return name, 0, 0, 0
    scsi = _TARGET.search(path)
    if scsi is None:
        return "unknown", 0, 0, 0
    channel, target, lun = map(int, scsi.groups())
    if ata := _ATA.search(path):
        # The kernel numbers all ports of the machine; those of one controller are next to each other.
        known = ports(path[: ata.start()])
        if int(ata[1]) not in known:
            return "unknown", 0, 0, 0
        port = known.index(int(ata[1]))
        if driver == "ata_piix" or driver.startswith("pata_"):
            return "ide", port, 0, target
        return "sata", 0, 0, port
    if driver == "sym53c8xx":
        return "scsi", 0, 0, target
    return "scsi", channel, target, lun


def _pci(tree: Tree, path: str) -> tuple[tuple[int, ...], str]:
    """Return the address and the driver of the PCI function nearest to the device; -1 and "" if it has none."""
    functions = list(_PCI.finditer(path))
    if not functions:
        return (-1, -1, -1, -1), ""
    last = functions[-1]
    try:
        driver = os.path.basename(os.readlink(f"{tree.sysfs}{path[: last.end()]}/driver"))
    except OSError:
        driver = ""
    return tuple(int(part, 16) for part in last.groups()), driver


def _through_controller(tree: Tree, device: str) -> str:
    """Return the path that shows the place: for an NVMe namespace with several paths that of one controller."""
    if shared := _SUBSYSTEM.match(device):
        for name in names_in(f"{tree.sysfs}{shared[1]}"):
            if re.fullmatch(r"nvme\d+", name):
                try:
                    return f"{tree.resolve(f'{shared[1]}/{name}')}/"
                except OSError:
                    continue  # that path is gone
    return device
