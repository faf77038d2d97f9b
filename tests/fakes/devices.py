"""A tree like sysfs with the devices that a test wants, and a database of udev beside it."""

from __future__ import annotations

import itertools
from pathlib import Path

PCI = "pci0000:00/0000:00"


class Devices:
    """Makes folders and links as sysfs has them: `sysfs` is its root, `udev` the database."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root / "sys"
        self.udev = root / "udev"
        for folder in (self.udev, *(self.sysfs / f for f in ("dev/block", "class/block", "block", "devices"))):
            folder.mkdir(parents=True)
        self._minors = itertools.count()

    def add(self, path: str, number: str = "", size: int = 2048, **properties: str) -> str:
        """Add a disk, or a partition if its folder lies in that of a disk; return its path in sysfs.

        `properties` are those that udev knows.
        """
        folder = self.sysfs / "devices" / path
        part = (folder.parent / "dev").exists()
        number = number or f"8:{next(self._minors)}"
        self.write(f"devices/{path}/dev", f"{number}\n")
        self.write(f"devices/{path}/size", f"{size}\n")
        name = folder.name.replace("!", "/")
        major, _, minor = number.partition(":")
        kind = "partition" if part else "disk"
        self.write(f"devices/{path}/uevent", f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\nDEVTYPE={kind}\n")
        if part:
            self.write(f"devices/{path}/partition", f"{folder.name.removeprefix(folder.parent.name).strip('p')}\n")
        else:
            (folder / "slaves").mkdir()
            self.link(f"block/{folder.name}", f"devices/{path}")
        self.link(f"class/block/{folder.name}", f"devices/{path}")
        self.link(f"dev/block/{number}", f"devices/{path}")
        self.link(f"devices/{path}/subsystem", "class/block")
        if properties:
            text = "".join(f"E:{key}={value}\n" for key, value in properties.items())
            (self.udev / f"b{number}").write_text(f"S:disk/by-id/x\nI:1\n{text}G:systemd\n", encoding="utf-8")
        return f"/devices/{path}"

    def drive(self, function: str, driver: str) -> None:
        """Bind a PCI function (path below /devices) to a driver."""
        (self.sysfs / "devices" / function).mkdir(parents=True, exist_ok=True)
        (self.sysfs / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        self.link(f"devices/{function}/driver", f"bus/pci/drivers/{driver}")

    def lies_on(self, upper: str, *lower: str) -> None:
        """Let a virtual device have slaves (paths in sysfs)."""
        for path in lower:
            self.link(f"{upper.strip('/')}/slaves/{Path(path).name}", path.strip("/"))

    def link(self, link: str, target: str) -> None:
        """Make a symbolic link, relative as in sysfs."""
        path = self.sysfs / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("../" * link.count("/") + target)

    def write(self, name: str, text: str) -> None:
        """Write a file below the root of sysfs."""
        path = self.sysfs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


def add_zoo(devices: Devices) -> None:
    """Add a disk of every kind that a virtual machine may have."""
    pci = PCI
    devices.drive(f"{pci}:02.0", "virtio-pci")
    devices.add(f"{pci}:02.0/virtio1/block/vda", "254:0")
    devices.add(f"{pci}:02.0/virtio1/block/vda/vda1", "254:1")
    devices.add(f"{pci}:02.0/virtio1/block/vda/vda10", "254:10")
    devices.add(f"{pci}:02.0/virtio1/block/vda/vda2", "254:2")
    devices.drive(f"{pci}:03.0", "virtio-pci")
    scsi = f"{pci}:03.0/virtio2/host6/target6:0:0/6:0:0:4/block/sda"
    devices.add(scsi, "8:0", ID_SERIAL="0QEMU_QEMU_HARDDISK_data", ID_MODEL="QEMU HARDDISK")
    devices.add(f"{scsi}/sda1", "8:1", ID_SERIAL="0QEMU_QEMU_HARDDISK_data")
    devices.drive(f"{pci}:04.0", "pcieport")
    devices.drive(f"{pci}:04.0/0000:01:00.0", "nvme")
    devices.add(f"{pci}:04.0/0000:01:00.0/nvme/nvme0/nvme0n1", "259:0", ID_SERIAL="nvme_serial")
    devices.add(f"{pci}:04.0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p2", "259:1")
    devices.drive(f"{pci}:1f.2", "ahci")
    for port in (9, 10, 11, 12):
        (devices.sysfs / f"devices/{pci}:1f.2/ata{port}").mkdir(parents=True)
    devices.add(f"{pci}:1f.2/ata11/host2/target2:0:0/2:0:0:0/block/sdb", "8:16")
    devices.drive(f"{pci}:01.1", "ata_piix")
    for port in (1, 2):
        (devices.sysfs / f"devices/{pci}:01.1/ata{port}").mkdir(parents=True)
    devices.add(f"{pci}:01.1/ata2/host1/target1:0:1/1:0:1:0/block/sr0", "11:0")
    devices.drive(f"{pci}:05.0", "sym53c8xx")
    devices.add(f"{pci}:05.0/host3/target3:0:5/3:0:5:0/block/sdc", "8:32")
    devices.drive(f"{pci}:06.0", "xhci_hcd")
    devices.add(f"{pci}:06.0/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0/block/sdd", "8:48")
    devices.add("virtual/block/loop0", "7:0")
    devices.add("virtual/block/loop0/loop0p1", "259:2")
    devices.add("virtual/block/loop1", "7:1", size=0)
