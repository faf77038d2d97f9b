"""Layers of devices that only a whole kernel has: dm-crypt, LVM with a snapshot, RAID 1, nbd over its own root.

All of them over files on the guest's other file systems, so that a wrong order would stop it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness.vm.guest import FILE_SYSTEMS, Guest
from harness.vm.machine import Transport

FREEZE_LIMIT = 20
QUICK = 10  # seconds in an emulated machine; a wrong order takes the freeze limit
EVERYTHING = {"/", "/srv/ext4", "/srv/xfs", "/srv/btrfs"}
FUNCTIONS = """
set -e
loop() { truncate -s $2 $1; /usr/sbin/losetup --find --show $1; }
fs() { mkfs.ext4 -q $1; mkdir -p $2; mount -t ext4 $1 $2; dd if=/dev/zero of=$2/dirty bs=64k count=16 2>/dev/null; }
"""


@dataclass(frozen=True)
class Layer:
    """How it is made and undone, where it is mounted, and on what it must be taken to lie."""

    make: str
    undo: str
    places: tuple[str, ...]
    lies_on: frozenset[str]


LAYERS = {
    "dm-crypt": Layer(
        """modprobe dm-crypt
        device=$(loop /srv/ext4/crypt.img 24M)
        echo secret >/run/ram/key
        cryptsetup luksFormat -q --type luks1 --iter-time 10 --key-file /run/ram/key $device
        cryptsetup open --key-file /run/ram/key $device secret
        fs /dev/mapper/secret /srv/crypt""",
        "cryptsetup close secret",
        ("/srv/crypt",),
        frozenset({"/srv/ext4"}),
    ),
    "LVM with a snapshot": Layer(
        """modprobe dm-snapshot
        vgcreate -q vg $(loop /srv/xfs/lvm.img 64M)
        lvcreate -q -y -L 16M -n origin vg
        fs /dev/vg/origin /srv/origin
        lvcreate -q -y -s -L 16M -n snap vg/origin
        mkdir -p /srv/snap
        mount -t ext4 /dev/vg/snap /srv/snap
        dd if=/dev/zero of=/srv/snap/dirty bs=64k count=16 2>/dev/null""",
        "vgremove -q -y -f vg",
        ("/srv/origin", "/srv/snap"),
        frozenset({"/srv/xfs"}),
    ),
    "RAID 1": Layer(
        """modprobe raid1
        one=$(loop /srv/ext4/raid.img 24M)
        mdadm --create /dev/md0 --quiet --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean \
            $one $(loop /srv/btrfs/raid.img 24M)
        fs /dev/md0 /srv/raid""",
        "mdadm --stop --quiet /dev/md0",
        ("/srv/raid",),
        frozenset({"/srv/ext4", "/srv/btrfs"}),
    ),
    "nbd over a file of its own root": Layer(
        """modprobe nbd
        truncate -s 24M /var/tmp/nbd.img
        printf '[generic]\\nunixsock=/run/nbd.sock\\n[disk]\\nexportname=/var/tmp/nbd.img\\n' >/run/nbd.conf
        nbd-server -C /run/nbd.conf -p /run/nbd.pid
        nbd-client -unix /run/nbd.sock -N disk /dev/nbd0
        fs /dev/nbd0 /srv/nbd""",
        "nbd-client -d /dev/nbd0; kill $(cat /run/nbd.pid)",
        ("/srv/nbd",),
        frozenset(EVERYTHING | {"/srv/crypt", "/srv/origin", "/srv/snap", "/srv/raid"}),
    ),
}
COUNT = FILE_SYSTEMS + sum(len(layer.places) for layer in LAYERS.values())


@pytest.fixture
def layered(guest: Guest) -> Iterator[Guest]:
    """The guest with all layers mounted, the network device last."""
    made: list[Layer] = []
    try:
        for layer in LAYERS.values():
            made.append(layer)
            guest.sh(FUNCTIONS + layer.make, 180)
        yield guest
    finally:
        for layer in reversed(made):
            guest.sh(f"umount {' '.join(layer.places)}; {layer.undo}", 120, check=False)
        guest.sh("for one in $(ls /sys/block | grep loop); do /usr/sbin/losetup -d /dev/$one; done", check=False)
        guest.sh("rm -f /srv/*/*.img /var/tmp/nbd.img; rmdir /srv/crypt /srv/origin /srv/snap /srv/raid /srv/nbd")


def frozen_and_thawed(port: Transport) -> tuple[float, float]:
    """Freeze all and thaw all; return how long each took."""
    began = time.monotonic()
    assert port.ask("va.fsfreeze", {"strict": True, "freeze_limit": FREEZE_LIMIT}) == {"return": COUNT}
    frozen = time.monotonic() - began
    record = port.ask("va.fsstatus", {"brief": True})["return"]
    assert {m["state"] for m in record["mounts"]} == {"frozen"}
    began = time.monotonic()
    assert port.ask("va.fsthaw") == {"return": COUNT}
    thawed = time.monotonic() - began
    last = port.ask("va.fsstatus", {"brief": True})["return"]["last"]
    assert (last["outcome"], last["held_continuously"]) == ("thawed", True), last
    return frozen, thawed


def test_layers_of_devices_freeze_inside_out(layered: Guest) -> None:
    port = layered.host()
    plan = port.ask("va.fsplan")["return"]
    order = [mount["mountpoint"] for mount in plan["mounts"]]
    level = {mount["mountpoint"]: mount["level"] for mount in plan["mounts"]}
    lies_on = {mount["mountpoint"]: {order[host] for host in mount["hosts"]} for mount in plan["mounts"]}
    for name, layer in LAYERS.items():
        for place in layer.places:
            assert lies_on[place] == layer.lies_on, name
            assert all(level[place] < level[host] for host in layer.lies_on), name
    layered.write_everywhere()
    layered.wait_writing()
    for _ in range(3):
        frozen, thawed = frozen_and_thawed(port)
        layered.wait_writing()
        for layer in LAYERS.values():
            for place in layer.places:
                layered.sh(f"dd if=/dev/zero of={place}/dirty bs=64k count=16 2>/dev/null")
        print(f"frozen after {frozen:.2f} s, thawed after {thawed:.2f} s")
        assert frozen < QUICK
